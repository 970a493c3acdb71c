/* The steps of a repeated run: which visit a request means in one, and the way to the next. `Steps.number`
   and `advance`, `Run.ahead` and `report`, `Passing.add`. */

#include "quick.h"

/* -- what is passed in search of a step that may never come ------------------------------------------------------- */

static PyObject *new_passing(void)
{
    PyObject *passing = PyType_GenericAlloc(Passing, 0);
    if (passing != NULL &&
        (hold(passing, Passing_visits, PyDict_New()) < 0 || hold(passing, Passing_log, PyList_New(0)) < 0))
        Py_CLEAR(passing);
    return passing;
}

/* Take in a visit; at the output it can be read from then on, if it is the first or later ones are kept. */
static int take_in(PyObject *passing, PyObject *visit, int later)
{
    PyObject *key = PEEK(visit, Visit, key), *number = PEEK(visit, Visit, number), *port = PEEK(visit, Visit, port);
    PyObject *entry = PyTuple_Pack(2, key, port), *place;
    int kept = entry == NULL || PyList_Append(PEEK(passing, Passing, log), entry) < 0 ? FAILED : port == s_output;
    Py_XDECREF(entry);
    if (kept == 1 && !later)
        kept = equal(number, zero);
    if (kept != 1)
        return kept;
    if ((place = PyTuple_Pack(2, key, number)) == NULL)
        return FAILED;
    int failed = PyDict_SetItem(PEEK(passing, Passing, visits), place, visit);
    Py_DECREF(place);
    return failed;
}

/* Let what looks ahead have a visit that is passed. */
int pass_by(PyObject *run, PyObject *visit)
{
    PyObject *passing = PEEK(run, Run, passing), *done;
    int later = Py_TYPE(PEEK(PEEK(run, Run, tally), Tally, after)) == Everything;
    if (Py_TYPE(passing) == Passing && PEEK(passing, Passing, log) != NULL)
        return take_in(passing, visit, later);
    Py_INCREF(passing);
    done = PyObject_CallMethodObjArgs(passing, s_add, visit, later ? Py_True : Py_False, NULL);
    Py_DECREF(passing);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* -- the way there ------------------------------------------------------------------------------------------------- */

/* What has not been left of the sites of a line, and of those that were learned of since, must report. */
static int add_unpassed(PyObject *run, PyObject *asked, char *marks)
{
    PyObject *notes = PEEK(PEEK(run, Run, tally), Tally, left), *learned_of = PySequence_List(PEEK(run, Run, _new));
    int failed = learned_of == NULL || mark_unpassed(notes, PEEK(run, Run, _ends), marks) < 0;
    for (Py_ssize_t at = 0; !failed && at < PyList_GET_SIZE(learned_of); at++) {
        long times = passed(run, PyList_GET_ITEM(learned_of, at), s_output);
        failed = times < 0 || (!times && add_asked(asked, PyList_GET_ITEM(learned_of, at)) < 0);
    }
    Py_XDECREF(learned_of);
    return failed ? FAILED : 0;
}

/* Have what was not yet left report, beside what is asked for. Ordinary: the run's line is known, and nobody has asked
   for its modules in Python. */
static int report_first(PyObject *run)
{
    PyObject *tally = PEEK(run, Run, tally), *keys = line_of(PEEK(tally, Tally, left)), *after;
    PyObject *asked = PyDict_GetItemWithError(PEEK(run, Run, _asked), s_output);
    if (asked == NULL || keys == NULL || marks_of(asked, keys) == NULL || PEEK(run, Run, known) == Py_None)
        return PyErr_Occurred() ? FAILED : OTHER;
    after = copy_of_asked(asked);
    if (after == NULL || add_unpassed(run, after, marks_of(after, keys)) < 0) {
        Py_XDECREF(after);
        return FAILED;
    }
    PUT(tally, Tally, after, after);
    return ORDINARY;
}

/* Have what is to be kept report. Ordinary: first visits. */
PyObject *run_report(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    int plain = size == 2 && is_run(args[0]) && equal(args[1], s_first) == 1 ? report_first(args[0]) : OTHER;
    if (plain == OTHER)
        return PyErr_Occurred() ? NULL : PyObject_Vectorcall(py_report, args, size, NULL);
    return plain < 0 ? NULL : new_ref(Py_None);
}

/* Keep first visits that are passed from now on. */
static int look(PyObject *run)
{
    PyObject *passing = new_passing(), *request[] = {run, s_first}, *done;
    if (passing == NULL)
        return FAILED;
    PUT(run, Run, passing, passing);
    done = run_report(NULL, request, 2);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Nobody looks ahead any more. */
static void looked(PyObject *run)
{
    PyObject *tally = PEEK(run, Run, tally), *asked = PEEK(run, Run, _asked);
    PUT(tally, Tally, before, new_ref(PyDict_GetItem(asked, s_input)));
    PUT(tally, Tally, after, new_ref(PyDict_GetItem(asked, s_output)));
    PUT(run, Run, passing, new_ref(Py_None));
}

/* Whether a run can look ahead: no blocks stand beside its own. */
static int may_look(PyObject *run)
{
    if (!is_run(run) || PEEK(run, Run, schedule) != Py_None || Py_TYPE(PEEK(run, Run, switch)) != Switch)
        return OTHER;
    PyObject *asked = PEEK(run, Run, _asked);
    return PyDict_GetItem(asked, s_input) != NULL && PyDict_GetItem(asked, s_output) != NULL;
}

/* Run until a visit, and keep first visits on the way; whether it came before the model ended, or FAILED. */
static int ahead(PyObject *run, PyObject *site, PyObject *port, PyObject *number)
{
    PyObject *turns = PEEK(run, Run, switch), *request[] = {run, site, port, number};
    PUT(run, Run, side, new_ref(Py_None)); /* what the block calls itself is no step of the model */
    if (PEEK(turns, Switch, done) != Py_True && look(run) < 0)
        return FAILED;
    PyObject *visit = run_ask(NULL, request, 4);
    int came = visit != NULL;
    Py_XDECREF(visit);
    if (!came && PyErr_ExceptionMatches(py_NotReached))
        PyErr_Clear();
    if (PEEK(turns, Switch, done) != Py_True && PEEK(turns, Switch, ending) != Py_True)
        looked(run);
    return PyErr_Occurred() ? FAILED : came;
}

/* Run until a visit. Ordinary: first visits on the way are kept. */
PyObject *run_ahead(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    int plain = (size == 4 || (size == 5 && equal(args[4], s_first) == 1)) && may_look(args[0]) && is_site(args[1]) &&
                is_port(args[2]) && PyLong_CheckExact(args[3]);
    if (!plain)
        return PyErr_Occurred() ? NULL : PyObject_Vectorcall(py_ahead, args, size, NULL);
    int came = ahead(args[0], args[1], args[2], args[3]);
    return came < 0 ? NULL : PyBool_FromLong(came);
}

/* -- the step ------------------------------------------------------------------------------------------------------ */

/* Whether a step is known, made to the end: no request sets its pace. */
static int is_step(PyObject *step)
{
    return step != NULL && Py_TYPE(step) == Step && PEEK(step, Step, stop) != NULL &&
           PEEK(step, Step, waiting) == Py_False;
}

/* The visit that a request made now means. Ordinary: the step is known. */
PyObject *steps_number(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    int plain = size == 3 && learned && Py_TYPE(args[0]) == Steps && is_site(args[1]) && is_port(args[2]);
    PyObject *step = plain ? PEEK(args[0], Steps, current) : NULL;
    if (step == Py_None)
        return new_ref(zero);
    PyObject *counts = !is_step(step) ? NULL : args[2] == s_input ? PEEK(step, Step, starts) : PEEK(step, Step, ends);
    if (counts == NULL || !are_counts(counts))
        return PyObject_Vectorcall(py_number, args, size, NULL);
    long number = number_in(counts, PEEK(args[1], Site, key));
    return number < 0 ? NULL : PyLong_FromLong(number);
}

/* Be in a step, which has begun with the visit of that number. */
static int begin_step(PyObject *steps, PyObject *run, PyObject *site, PyObject *index)
{
    PyObject *tally = PEEK(run, Run, tally), *step = PyType_GenericAlloc(Step, 0);
    PyObject *entered[] = {PEEK(tally, Tally, entered), PEEK(run, Run, _starts)};
    PyObject *left[] = {PEEK(tally, Tally, left), PEEK(run, Run, _ends)};
    if (step == NULL || hold(step, Step_starts, counted_by_now(NULL, entered, 2)) < 0 ||
        hold(step, Step_ends, counted_by_now(NULL, left, 2)) < 0 ||
        PyObject_SetItem(PEEK(step, Step, starts), PEEK(site, Site, key), index) < 0) {
        Py_XDECREF(step);
        return FAILED;
    }
    PUT(step, Step, index, new_ref(index));
    PUT(step, Step, waiting, new_ref(Py_False));
    PUT(step, Step, stop, new_ref(zero));
    PUT(steps, Steps, current, step);
    return 0;
}

/* Whether the next step is that of a method's run, which nobody has followed to its end. */
static int may_advance(PyObject *steps, PyObject *index)
{
    PyObject *site, *run;
    if (!learned || Py_TYPE(steps) != Steps || !PyLong_CheckExact(index) || PEEK(steps, Steps, trail) != Py_None ||
        PEEK(steps, Steps, inside) != Py_False || PEEK(steps, Steps, paced) != Py_True)
        return OTHER;
    site = PEEK(steps, Steps, pacemaker);
    run = PEEK(steps, Steps, run);
    return is_site(site) && may_look(run) && equal(index, zero) == 0; /* the first may have begun already */
}

/* Run to the beginning of a step; whether it came before the model ended. */
PyObject *steps_advance(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 2 || !may_advance(args[0], args[1]))
        return PyObject_Vectorcall(py_advance, args, size, NULL);
    PyObject *site = new_ref(PEEK(args[0], Steps, pacemaker)), *run = new_ref(PEEK(args[0], Steps, run));
    int came = ahead(run, site, s_input, args[1]);
    if (came == 1 && begin_step(args[0], run, site, args[1]) < 0)
        came = FAILED;
    Py_DECREF(site);
    Py_DECREF(run);
    return came < 0 ? NULL : PyBool_FromLong(came);
}

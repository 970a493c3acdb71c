/* A run: what has passed, the arrival of the model at a visit, the request of the block for one. */

#include "quick.h"

/* -- the model's side: `Run.reach`, `Run.leave` and what both call, `Run._arrive` ---------------------------------- */

static PyObject *new_visit(PyObject *key, PyObject *number, PyObject *args, PyObject *kwargs, PyObject *port,
                           PyObject *result)
{
    PyObject *visit = PyType_GenericAlloc(Visit, 0);
    if (visit == NULL)
        return NULL;
    PyObject *dict = kwargs != NULL ? new_ref(kwargs) : PyDict_New();
    if (dict == NULL) {
        Py_DECREF(visit);
        return NULL;
    }
    PUT(visit, Visit, key, new_ref(key));
    PUT(visit, Visit, number, new_ref(number));
    PUT(visit, Visit, args, new_ref(args));
    PUT(visit, Visit, kwargs, dict);
    PUT(visit, Visit, port, new_ref(port));
    PUT(visit, Visit, result, new_ref(result));
    PUT(visit, Visit, skipped, new_ref(Py_False));
    return visit;
}

/* How often the model has passed a port of a site; -1 with an error. */
long passed(PyObject *run, PyObject *key, PyObject *port)
{
    PyObject *tally = PEEK(run, Run, tally);
    return port == s_output ? counted(PEEK(tally, Tally, left), PEEK(run, Run, _ends), key)
                            : counted(PEEK(tally, Tally, entered), PEEK(run, Run, _starts), key);
}

/* Whether it is a run of a known kind, made to the end, whose blocks have had their first turn. */
int is_run(PyObject *run)
{
    int known = Py_TYPE(run) == Run || Py_TYPE(run) == Edited ||
                (Py_TYPE(run) == Served && PEEK(run, Served, begun) == Py_True);
    return known && PEEK(run, Run, switch) != NULL;
}

/* Whether the forward of an `autograd.Function` calls the model, which may run again. */
static int in_function(void)
{
    PyFrameObject *frame = PyEval_GetFrame();
    int inside = 0;
    Py_XINCREF(frame);
    while (frame != NULL && !inside) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        inside = (PyObject *)code == py_apply;
        Py_DECREF(code);
        Py_SETREF(frame, PyFrame_GetBack(frame));
    }
    Py_XDECREF(frame);
    return inside;
}

/* Ordinary: nobody records, no region may be recomputed, the run goes on, and can pause if its block waits. */
static int may_arrive(PyObject *run)
{
    PyObject *turns = PEEK(run, Run, switch);
    if (Py_TYPE(turns) != Switch || PEEK(turns, Switch, ending) != Py_False ||
        PyList_GET_SIZE(PEEK(run, Run, recorders)))
        return OTHER;
    if (PEEK(run, Run, changes) != Py_None) {
        int plain = truth(py_forward_grad);
        if (plain == 0) /* as it is in inference mode too */
            plain = !in_function();
        if (plain == 1)
            plain = no_hooks();
        if (plain != 1)
            return plain;
    }
    return PEEK(run, Run, _wanted) == Py_None ? ORDINARY : may_pause(turns);
}

/* Who watches a port of a site: a list, borrowed; NULL where nobody does, or with an error. */
static PyObject *watchers_of(PyObject *run, PyObject *key, PyObject *port)
{
    PyObject *watchers = PEEK(run, Run, watchers);
    if (!PyDict_GET_SIZE(watchers))
        return NULL;
    PyObject *place = PyTuple_Pack(2, key, port), *found;
    if (place == NULL)
        return NULL;
    found = PyDict_GetItemWithError(watchers, place);
    Py_DECREF(place);
    return found;
}

/* Whether a visit is the one that the block waits for. */
static int is_wanted(PyObject *run, PyObject *key, PyObject *number, PyObject *port)
{
    PyObject *wanted = PEEK(run, Run, _wanted);
    if (wanted == Py_None)
        return 0;
    int same = equal(PyTuple_GET_ITEM(wanted, 0), key);
    if (same == 1)
        same = equal(PyTuple_GET_ITEM(wanted, 1), number);
    return same == 1 ? equal(PyTuple_GET_ITEM(wanted, 2), port) : same;
}

/* Note, without keeping it alive, what the block has read. */
static int remember(PyObject *run, PyObject *visit, PyObject *port)
{
    PyObject *reads = PEEK(run, Run, reads), *result = PEEK(visit, Visit, result);
    if (port == s_output && Py_TYPE(result) == Tensor) {
        PyObject *flag = PyObject_GetAttr(result, s_requires_grad);
        if (flag == NULL)
            return FAILED;
        int needs = PyObject_IsTrue(flag);
        Py_DECREF(flag);
        if (needs != 1)
            return needs;
        PyObject *key = PyTuple_Pack(3, PEEK(visit, Visit, key), PEEK(visit, Visit, number), port);
        PyObject *weak = PyWeakref_NewRef(result, NULL);
        int failed = key == NULL || weak == NULL ? FAILED : PyDict_SetItem(reads, key, weak);
        Py_XDECREF(key);
        Py_XDECREF(weak);
        return failed;
    }
    int grad = truth(py_grad);
    if (grad != 1)
        return grad;
    PyObject *done = PyObject_CallFunctionObjArgs(py_remember, reads, visit, port, NULL);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Show a visit to those who watch its place; they may end the run, and with it this list. */
static int show(PyObject *visit, PyObject *watching)
{
    int failed = 0;
    Py_INCREF(watching);
    for (Py_ssize_t at = 0; !failed && at < PyList_GET_SIZE(watching); at++) {
        PyObject *watcher = new_ref(PyList_GET_ITEM(watching, at));
        PyObject *done = PyObject_CallOneArg(watcher, visit);
        Py_DECREF(watcher);
        Py_XDECREF(done);
        failed = done == NULL ? FAILED : 0;
    }
    Py_DECREF(watching);
    return failed;
}

/* Let the blocks that stand beside the run's own have a visit. */
static int serve(PyObject *run, PyObject *visit)
{
    PyObject *pair[] = {new_ref(PEEK(run, Run, schedule)), visit}, *done = schedule_reached(NULL, pair, 2);
    Py_DECREF(pair[0]);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Have it recorded, where a block has begun a recording at this very visit. */
static int record(PyObject *run, PyObject *visit, PyObject *port)
{
    if (!PyList_GET_SIZE(PEEK(run, Run, recorders)))
        return 0;
    PyObject *done = PyObject_CallMethodObjArgs(run, s__record, visit, port, NULL);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Show a visit to those who watch its place, and let the block have it if it is the one that it waits for. */
static int arrive(PyObject *run, PyObject *visit, PyObject *port, PyObject *watching)
{
    PyObject *key = PEEK(visit, Visit, key);
    int waited = is_wanted(run, key, PEEK(visit, Visit, number), port);
    if (waited < 0)
        return FAILED;
    PUT(visit, Visit, port, new_ref(port));
    if (watching != NULL && show(visit, watching) < 0)
        return FAILED;
    if (PEEK(run, Run, schedule) != Py_None && serve(run, visit) < 0)
        return FAILED;
    if (PEEK(run, Run, passing) != Py_None && PEEK(PEEK(run, Run, switch), Switch, done) != Py_True &&
        pass_by(run, visit) < 0)
        return FAILED;
    if (!waited)
        return record(run, visit, port);
    PUT(run, Run, _wanted, new_ref(Py_None));
    if (watching == NULL && PEEK(run, Run, schedule) == Py_None) {
        PyObject *asked = PyDict_GetItemWithError(PEEK(run, Run, _asked), port);
        if (asked == NULL || discard_asked(asked, key) < 0)
            return FAILED;
    }
    PUT(run, Run, live, new_ref(visit));
    if (pause_here(PEEK(run, Run, switch)) < 0 || remember(run, visit, port) < 0)
        return FAILED;
    return record(run, visit, port);
}

/* Whether nobody has a use for a visit that the block does not wait for. */
static int is_idle(PyObject *run, PyObject *watching)
{
    return watching == NULL && PEEK(run, Run, passing) == Py_None && PEEK(run, Run, schedule) == Py_None;
}

/* Report a call that has been made, and return what the model goes on with; takes over `result`. */
PyObject *leave(PyObject *stack, PyObject *key, PyObject *args, PyObject *kwargs, PyObject *result)
{
    PyObject *run = PyObject_GetAttr(stack, s_tracing), *visit = NULL, *number = NULL, *given = NULL;
    if (run == NULL)
        goto over;
    int plain = is_run(run) ? may_arrive(run) : OTHER;
    if (plain == OTHER) {
        PyObject *dict = kwargs != NULL ? new_ref(kwargs) : PyDict_New();
        if (dict != NULL)
            given = PyObject_CallMethodObjArgs(run, s_leave, key, args, dict, result, NULL);
        Py_XDECREF(dict);
        goto over;
    }
    long ends = plain < 0 ? FAILED : passed(run, key, s_output);
    if (ends < 0 || (number = PyLong_FromLong(ends - 1)) == NULL)
        goto over;
    PyObject *watching = watchers_of(run, key, s_output);
    if (watching == NULL && PyErr_Occurred())
        goto over;
    if (is_idle(run, watching) && (plain = is_wanted(run, key, number, s_output)) != 1) {
        if (plain == 0)
            given = new_ref(result);
        goto over;
    }
    if ((visit = new_visit(key, number, args, kwargs, s_output, result)) == NULL)
        goto over;
    Py_CLEAR(result); /* the visit has it, and what replaces it lets go of it */
    if (arrive(run, visit, s_output, watching) == 0)
        given = new_ref(PEEK(visit, Visit, result));
over:
    Py_XDECREF(run);
    Py_XDECREF(number);
    Py_XDECREF(visit);
    Py_XDECREF(result);
    return given;
}

/* Note that a call has ended with an error, which stays. */
void broke(PyObject *stack, PyObject *key)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *run = PyObject_GetAttr(stack, s_tracing);
    PyObject *done = run == NULL ? NULL : PyObject_CallMethodOneArg(run, s_broke, key);
    if (done == NULL) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    } else
        PyErr_Restore(type, value, traceback);
    Py_XDECREF(run);
    Py_XDECREF(done);
}

/* Let the block have the output of a visit whose input somebody waited for. */
static int left_again(PyObject *run, PyObject *visit)
{
    PyObject *key = PEEK(visit, Visit, key), *number;
    long ends = passed(run, key, s_output);
    if (ends < 0 || (number = PyLong_FromLong(ends - 1)) == NULL)
        return FAILED;
    PUT(visit, Visit, number, number);
    int plain = may_arrive(run);
    if (plain < 0)
        return FAILED;
    if (plain == ORDINARY) {
        PyObject *watching = watchers_of(run, key, s_output);
        return watching == NULL && PyErr_Occurred() ? FAILED : arrive(run, visit, s_output, watching);
    }
    PyObject *done = PyObject_CallMethodObjArgs(run, s__arrive, visit, s_output, NULL);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Make a call that somebody waits for: pause before it, and after it where that was asked for. */
PyObject *reach(PyObject *stack, PyObject *tally, PyObject *key, PyObject *places, Py_ssize_t at, PyObject *inner,
                PyObject *args, PyObject *kwargs)
{
    PyObject *run = PyObject_GetAttr(stack, s_tracing);
    PyObject *given = NULL, *visit = NULL, *number = NULL;
    if (run == NULL)
        return NULL;
    int plain = is_run(run) ? may_arrive(run) : OTHER;
    if (plain == OTHER) {
        PyObject *dict = kwargs != NULL ? new_ref(kwargs) : PyDict_New();
        if (dict != NULL)
            given = PyObject_CallMethodObjArgs(run, s_reach, key, inner, args, dict, NULL);
        Py_XDECREF(dict);
        goto over;
    }
    long starts = plain < 0 ? FAILED : passed(run, key, s_input);
    if (starts < 0 || (number = PyLong_FromLong(starts)) == NULL ||
        (visit = new_visit(key, number, args, kwargs, s_input, Py_None)) == NULL ||
        note(PEEK(tally, Tally, entered), key, places, at) < 0)
        goto over;
    PyObject *watching = watchers_of(run, key, s_input);
    if ((watching == NULL && PyErr_Occurred()) || arrive(run, visit, s_input, watching) < 0)
        goto over;
    if (PEEK(visit, Visit, skipped) == Py_False) {
        PyObject *own = PySequence_Tuple(PEEK(visit, Visit, args)), *named = PEEK(visit, Visit, kwargs), *result = NULL;
        named = PyDict_CheckExact(named) ? new_ref(named) : PyObject_CallOneArg((PyObject *)&PyDict_Type, named);
        if (own != NULL && named != NULL)
            result = PyObject_Call(inner, own, named);
        Py_XDECREF(own);
        Py_XDECREF(named);
        if (result == NULL) {
            broke(stack, key);
            goto over;
        }
        PUT(visit, Visit, result, result);
    }
    if (note(PEEK(tally, Tally, left), key, places, at) < 0)
        goto over;
    int after = is_asked(PEEK(tally, Tally, after), key, places, at);
    if (after < 0 || (after && left_again(run, visit) < 0))
        goto over;
    given = new_ref(PEEK(visit, Visit, result));
over:
    Py_DECREF(run);
    Py_XDECREF(number);
    Py_XDECREF(visit);
    return given;
}

/* -- the beginning: `Run.__init__` --------------------------------------------------------------------------------- */

/* What taps look at and write to. */
static PyObject *new_tally(void)
{
    PyObject *before = new_asked(), *after = new_asked(), *entered = new_notes(), *left = new_notes();
    PyObject *tally = PyType_GenericAlloc(Tally, 0);
    if (before == NULL || after == NULL || entered == NULL || left == NULL || tally == NULL) {
        Py_XDECREF(before);
        Py_XDECREF(after);
        Py_XDECREF(entered);
        Py_XDECREF(left);
        Py_XDECREF(tally);
        return NULL;
    }
    PUT(tally, Tally, stack, new_ref(py_NOBODY));
    PUT(tally, Tally, before, before);
    PUT(tally, Tally, after, after);
    PUT(tally, Tally, entered, entered);
    PUT(tally, Tally, left, left);
    return tally;
}

/* The keys at which somebody asks, by port. */
static PyObject *asked_of(PyObject *tally)
{
    PyObject *asked = PyDict_New();
    if (asked != NULL && (PyDict_SetItem(asked, s_input, PEEK(tally, Tally, before)) < 0 ||
                          PyDict_SetItem(asked, s_output, PEEK(tally, Tally, after)) < 0))
        Py_CLEAR(asked);
    return asked;
}

/* How often each site was passed. */
static PyObject *new_counts(void)
{
    PyObject *nothing = PyTuple_New(0), *counts = nothing == NULL ? NULL : PyDict_Type.tp_new(Counts, nothing, NULL);
    Py_XDECREF(nothing);
    return counts;
}

#define HOLD(name, made) (hold(run, Run_##name, made) < 0)

PyObject *run_init(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 2 || !learned || !PyObject_TypeCheck(args[0], Run))
        return PyObject_Vectorcall(py_run_init, args, size, NULL);
    PyObject *run = args[0], *model;
    if (HOLD(tally, new_tally()) || HOLD(_asked, asked_of(PEEK(run, Run, tally))) ||
        HOLD(_starts, new_counts()) || HOLD(_ends, new_counts()) ||
        HOLD(watchers, PyDict_New()) || HOLD(recorders, PyList_New(0)) || HOLD(skipped, PyList_New(0)) ||
        HOLD(kinds, PyDict_New()) || HOLD(pending, PyList_New(0)) || HOLD(_broken, PySet_New(NULL)) ||
        HOLD(_new, PySet_New(NULL)) || HOLD(frames, PyDict_New()) || HOLD(reads, PyDict_New()) ||
        HOLD(at_end, PyList_New(0)))
        return NULL;
    const Slot none[] = {Run_live, Run_side, Run_passing, Run_failed, Run__wanted, Run__site, Run_known, Run_changes,
                         Run_schedule};
    for (size_t at = 0; at < sizeof none / sizeof *none; at++)
        put(run, none[at], new_ref(Py_None));
    PUT(run, Run, stopped, new_ref(Py_False));
    PUT(run, Run, _held_back, new_ref(Py_False));
    PUT(run, Run, _call, new_ref(args[1]));
    if ((model = PyObject_GetAttr(run, s__model)) == NULL)
        return NULL;
    int failed = HOLD(switch, new_switch(model, run, Py_None));
    Py_DECREF(model);
    return failed ? NULL : new_ref(Py_None);
}

/* The model's call, on its own stack. */
PyObject *run_model(PyObject *module, PyObject *run)
{
    if (!is_run(run) || PEEK(run, Run, _call) == Py_None)
        return PyObject_CallOneArg(py_model, run);
    PyObject *tally = new_ref(PEEK(run, Run, tally)), *call = new_ref(PEEK(run, Run, _call)), *result = NULL;
    PyObject *here = stack_here();
    PUT(run, Run, _call, new_ref(Py_None));
    if (here != NULL) {
        PUT(tally, Tally, stack, here);
        result = PyObject_CallNoArgs(call);
        PUT(tally, Tally, stack, new_ref(py_NOBODY));
    }
    Py_DECREF(tally);
    Py_DECREF(call);
    return result;
}

/* -- and the end: `Run.finish` ------------------------------------------------------------------------------------- */

/* The model has ended. Ordinary: without an error, and nothing is to be undone. */
static int end(PyObject *run)
{
    if (PEEK(PEEK(run, Run, switch), Switch, error) != Py_None || PyList_GET_SIZE(PEEK(run, Run, at_end))) {
        PyObject *done = PyObject_CallMethodNoArgs(run, s__close);
        Py_XDECREF(done);
        return done == NULL ? FAILED : 0;
    }
    PUT(run, Run, live, new_ref(Py_None));
    PUT(run, Run, side, new_ref(Py_None));
    PyDict_Clear(PEEK(run, Run, watchers));
    PyDict_Clear(PEEK(run, Run, frames));
    PyObject *recorders = PEEK(run, Run, recorders);
    return PyList_SetSlice(recorders, 0, PyList_GET_SIZE(recorders), NULL);
}

/* Let the model run to its end. Ordinary: nothing waits for it to go on. */
PyObject *run_finish(PyObject *module, PyObject *run)
{
    PyObject *turns = is_run(run) ? PEEK(run, Run, switch) : NULL;
    int plain = turns != NULL && Py_TYPE(turns) == Switch && !PyList_GET_SIZE(PEEK(run, Run, pending));
    if (plain)
        PUT(run, Run, _wanted, new_ref(Py_None));
    while (plain == ORDINARY && PEEK(turns, Switch, done) != Py_True) {
        if ((plain = may_resume(turns)) != ORDINARY)
            break;
        PyObject *live = new_ref(PEEK(run, Run, live));
        PUT(run, Run, live, new_ref(Py_None));
        plain = take_turn(turns) < 0 ? FAILED : ORDINARY;
        if (plain < 0) /* it could not go on, and is where it was */
            PUT(run, Run, live, new_ref(live));
        Py_DECREF(live);
        if (plain == ORDINARY && (resume(turns) < 0 || (PEEK(turns, Switch, done) == Py_True && end(run) < 0)))
            plain = FAILED;
    }
    if (plain == OTHER)
        return PyObject_CallOneArg(py_finish, run);
    return plain < 0 ? NULL : new_ref(PEEK(turns, Switch, result));
}

/* -- the block's side: `Run.ask` ------------------------------------------------------------------------------------- */

/* Whether the model is paused at a visit; the input of one can still be read at its output. */
int is_live(PyObject *live, PyObject *key, PyObject *number, PyObject *port)
{
    if (live == Py_None)
        return 0;
    int same = equal(PEEK(live, Visit, key), key);
    if (same == 1)
        same = equal(PEEK(live, Visit, number), number);
    return same == 1 && port != s_input ? equal(PEEK(live, Visit, port), port) : same;
}

/* Let the model run to a visit. Ordinary: it is ahead, and nothing waits for the model to go on. */
int ask(PyObject *run, PyObject *site, PyObject *port, PyObject *number, PyObject **found)
{
    int plain = OTHER;
    PyObject *wanted = NULL, *before = NULL, *key = PEEK(site, Site, key), *turns = PEEK(run, Run, switch);
    if (PEEK(run, Run, side) != Py_None)
        return OTHER;
    plain = is_live(PEEK(run, Run, live), key, number, port);
    if (plain) {
        *found = plain == 1 ? new_ref(PEEK(run, Run, live)) : NULL;
        goto over;
    }
    if (PyList_GET_SIZE(PEEK(run, Run, pending)) || Py_TYPE(turns) != Switch || PEEK(turns, Switch, done) != Py_False)
        goto over;
    int larger = 0;
    long before_it = passed(run, key, port), which = PyLong_AsLongAndOverflow(number, &larger);
    if (before_it < 0 || (which == -1 && !larger && PyErr_Occurred()))
        goto failed;
    if (larger || before_it > which || (plain = may_resume(turns)) != ORDINARY)
        goto over;
    PyObject *asked = PyDict_GetItemWithError(PEEK(run, Run, _asked), port);
    if (asked == NULL || add_asked(asked, key) < 0 || (wanted = PyTuple_Pack(3, key, number, port)) == NULL)
        goto failed;
    before = new_ref(PEEK(run, Run, live));
    PUT(run, Run, _wanted, new_ref(wanted));
    PUT(run, Run, live, new_ref(Py_None));
    if (take_turn(turns) < 0) { /* it could not go on, and is where it was */
        PUT(run, Run, live, new_ref(before));
        PUT(run, Run, _wanted, new_ref(Py_None));
        goto failed;
    }
    Py_CLEAR(before);
    if (resume(turns) < 0)
        goto failed;
    PyObject *live = PEEK(run, Run, live);
    if (live == Py_None || PEEK(turns, Switch, done) == Py_True) { /* a pause that is refused has failed the model */
        PyObject *error = PyObject_CallMethodObjArgs(run, s_nothing_came, site, port, number, NULL);
        if (error != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_XDECREF(error);
        goto failed;
    }
    PUT(run, Run, _site, new_ref(site));
    if (port == s_output &&
        PyDict_SetItem(PEEK(run, Run, kinds), key, (PyObject *)Py_TYPE(PEEK(live, Visit, result))) < 0)
        goto failed;
    *found = new_ref(live);
    plain = ORDINARY;
    goto over;
failed:
    plain = FAILED;
over:
    Py_XDECREF(before);
    Py_XDECREF(wanted);
    return plain;
}

int is_site(PyObject *site) { return Py_TYPE(site) == Site && PEEK(site, Site, key) != NULL; }

int is_port(PyObject *port) { return port == s_output || port == s_input; }

PyObject *run_ask(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *visit = NULL;
    int plain = OTHER;
    if (size == 4 && is_run(args[0]) && is_site(args[1]) && is_port(args[2]) && PyLong_CheckExact(args[3]))
        plain = ask(args[0], args[1], args[2], args[3], &visit);
    return plain == OTHER ? PyObject_Vectorcall(py_ask, args, size, NULL) : visit;
}

/* How often the model has passed a port of a site. */
PyObject *run_seen(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 3 || !is_run(args[0]) || !is_port(args[2]))
        return PyObject_Vectorcall(py_seen, args, size, NULL);
    long seen = passed(args[0], args[1], args[2]);
    return seen < 0 ? NULL : PyLong_FromLong(seen);
}

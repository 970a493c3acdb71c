/* One block of several: its beginning and end, its request, its turn. `Worker.__init__`, `_serve` and `ask`,
   `Schedule.__init__`, `reached` and `_turns`, `Trace._part` and `__del__`. */

#include "quick.h"

/* -- a block's worker ---------------------------------------------------------------------------------------------- */

#define HOLD(name, made) (hold(worker, Worker_##name, made) < 0)

/* The trace of one block among several, which has what a request needs. */
PyObject *trace_part(PyObject *module, PyObject *trace)
{
    PyObject *names[] = {s_model, s__tree, s__paced, s__thread}, *nothing = PyTuple_New(0), *part = NULL, *value;
    if (!learned || !PyObject_HasAttr(trace, s__outer))
        Py_CLEAR(nothing);
    if (nothing == NULL)
        return PyErr_Occurred() ? NULL : PyObject_CallOneArg(py_part, trace);
    part = PyBaseObject_Type.tp_new(Py_TYPE(trace), nothing, NULL);
    int failed = part == NULL;
    for (size_t at = 0; !failed && at < sizeof names / sizeof *names; at++) {
        value = PyObject_GetAttr(trace, names[at]);
        failed = value == NULL || PyObject_SetAttr(part, names[at], value) < 0;
        Py_XDECREF(value);
    }
    Py_DECREF(nothing);
    if (failed || PyObject_SetAttr(part, s__outer, trace) < 0)
        Py_CLEAR(part);
    return part;
}

/* Ordinary: it is closed, or never was open. */
PyObject *trace_del(PyObject *module, PyObject *trace)
{
    PyObject *taps = learned ? PyObject_GetAttr(trace, s__taps) : NULL;
    if (taps == NULL)
        PyErr_Clear();
    Py_XDECREF(taps);
    return taps == Py_None ? new_ref(Py_None) : PyObject_CallOneArg(py_trace_del, trace);
}

/* Make a worker. Ordinary: nobody traces, so that coverage needs no tracer of its own for it. */
PyObject *worker_init(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    int plain = size == 7 && learned && Py_TYPE(args[0]) == Worker ? gives_none(PyObject_CallNoArgs(py_gettrace)) : OTHER;
    if (plain != ORDINARY)
        return plain < 0 ? NULL : PyObject_Vectorcall(py_worker_init, args, size, NULL);
    PyObject *worker = args[0], *trace = args[1], *serve = NULL, *owner = NULL;
    const Slot none[] = {Worker_side, Worker_want, Worker_until, Worker_waits, Worker_tells, Worker__view,
                         Worker__schedule, Worker__coverage};
    for (size_t at = 0; at < sizeof none / sizeof *none; at++)
        put(worker, none[at], new_ref(Py_None));
    PUT(worker, Worker, _body, new_ref(args[2]));
    PUT(worker, Worker, rows, new_ref(args[3]));
    PUT(worker, Worker, name, new_ref(args[4]));
    PUT(worker, Worker, _trees, new_ref(args[5]));
    PUT(worker, Worker, _keep, new_ref(args[6]));
    PUT(worker, Worker, place, new_ref(zero));
    PUT(worker, Worker, _looked, new_ref(Py_False));
    int failed = HOLD(reads, PyDict_New()) || HOLD(_ended, PyDict_New()) || HOLD(pending, PyList_New(0)) ||
                 HOLD(trace, PyObject_CallMethodNoArgs(trace, s__part)) ||
                 (serve = PyObject_GetAttr(worker, s__serve)) == NULL ||
                 (owner = PyObject_GetAttr(trace, s__owner)) == NULL ||
                 HOLD(switch, new_switch(serve, worker, owner)) ||
                 HOLD(pause, PyObject_GetAttr(PEEK(worker, Worker, switch), s_pause));
    Py_XDECREF(serve);
    Py_XDECREF(owner);
    return failed ? NULL : new_ref(Py_None);
}

/* Whether it is a block's worker, made to the end. */
static int is_worker(PyObject *worker)
{
    return Py_TYPE(worker) == Worker && PEEK(worker, Worker, pause) != NULL &&
           Py_TYPE(PEEK(worker, Worker, switch)) == Switch;
}

/* Nothing on this stack asks any more. */
static int close_part(PyObject *worker, PyObject *part, PyObject *owner, PyObject *trees)
{
    PyObject *done;
    if (PyDict_GET_SIZE(PEEK(worker, Worker, reads))) {
        done = PyObject_CallMethodObjArgs(worker, s__over, part, owner, NULL);
        Py_XDECREF(done);
        return done == NULL ? FAILED : 0;
    }
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(trees); at++) {
        PyObject *closed[] = {PyTuple_GET_ITEM(trees, at), owner, part};
        if ((done = tree_closed(NULL, closed, 3)) == NULL)
            return FAILED;
        Py_DECREF(done);
    }
    if (PyObject_SetAttr(part, s__run, Py_None) < 0 || PyObject_SetAttr(part, s__steps, Py_None) < 0 ||
        PyObject_SetAttr(part, s__outer, Py_None) < 0)
        return FAILED;
    PUT(worker, Worker, trace, new_ref(Py_None));
    return 0;
}

/* Let an error go on, whose reference is taken over, unless another came meanwhile, which then has it as its context. */
static int go_on(PyObject *error)
{
    PyObject *other = take_error();
    if (other == NULL)
        other = error;
    else if (error != NULL)
        PyException_SetContext(other, error);
    if (other == NULL)
        return 0;
    give_error(other);
    return FAILED;
}

/* The same whatever error is under way, which goes on; and again after any, for an interrupt may have fallen into it. */
static int over(PyObject *worker, PyObject *part, PyObject *owner, PyObject *trees)
{
    PyObject *error = take_error();
    close_part(worker, part, owner, trees);
    if (go_on(error) == 0)
        return 0;
    error = take_error();
    PyObject *done = PyObject_CallMethodObjArgs(worker, s__over, part, owner, NULL);
    Py_XDECREF(done);
    return go_on(error);
}

/* Run a block that can ask now, and say what it returns to who wants to know. */
static int run_block(PyObject *worker, PyObject *body)
{
    PyObject *result = PyObject_CallNoArgs(body), *keep, *done;
    if (result != NULL && PyList_GET_SIZE(PEEK(worker, Worker, pending))) { /* edits in place that go back */
        done = PyObject_CallMethodNoArgs(worker, s_settle);
        if (done == NULL || PyList_SetSlice(PEEK(worker, Worker, pending), 0, PY_SSIZE_T_MAX, NULL) < 0)
            Py_CLEAR(result);
        Py_XDECREF(done);
    }
    if (result != NULL && (keep = PEEK(worker, Worker, _keep)) != Py_None) {
        done = PyObject_CallOneArg(keep, result);
        if (done == NULL)
            Py_CLEAR(result);
        Py_XDECREF(done);
    }
    Py_XDECREF(result);
    return result == NULL ? FAILED : 0;
}

/* Run a block, while requests of this stack go to its part of the trace. Its owner is the frame that calls this. */
PyObject *worker_serve(PyObject *module, PyObject *worker)
{
    PyObject *frame = (PyObject *)PyEval_GetFrame();
    if (!learned || !is_worker(worker) || PEEK(worker, Worker, _body) == Py_None || PEEK(worker, Worker, trace) == Py_None ||
        !PyTuple_CheckExact(PEEK(worker, Worker, _trees)) || frame == NULL)
        return PyObject_CallOneArg(py_serve, worker);
    PyObject *body = new_ref(PEEK(worker, Worker, _body)), *part = new_ref(PEEK(worker, Worker, trace));
    PyObject *trees = new_ref(PEEK(worker, Worker, _trees)), *owner = new_owner(frame);
    int failed = owner == NULL || PyObject_SetAttr(part, s__run, worker) < 0 || PyObject_SetAttr(part, s__owner, owner) < 0;
    PUT(worker, Worker, _body, new_ref(Py_None));
    if (owner != NULL) {
        for (Py_ssize_t at = 0; !failed && at < PyTuple_GET_SIZE(trees); at++) {
            PyObject *opened[] = {PyTuple_GET_ITEM(trees, at), owner, part}, *done = tree_opened(NULL, opened, 3);
            Py_XDECREF(done);
            failed = done == NULL;
        }
        failed = failed || run_block(worker, body) < 0;
        failed = over(worker, part, owner, trees) < 0 || failed;
    }
    Py_DECREF(body);
    Py_DECREF(part);
    Py_DECREF(trees);
    Py_XDECREF(owner);
    return failed ? NULL : new_ref(Py_None);
}

/* Let go of everything. Ordinary: the block has ended. */
PyObject *worker_leave(PyObject *module, PyObject *worker)
{
    PyObject *turns = learned && is_worker(worker) ? PEEK(worker, Worker, switch) : NULL, *pause;
    if (turns == NULL || PEEK(turns, Switch, done) != Py_True)
        return PyObject_CallOneArg(py_worker_leave, worker);
    if ((pause = PyObject_GetAttr(turns, s_pause)) == NULL) /* one of its own would hold it */
        return NULL;
    PUT(turns, Switch, carries, new_ref(Py_None));
    PUT(worker, Worker, pause, pause);
    const Slot none[] = {Worker__schedule, Worker__body, Worker__view, Worker_trace};
    for (size_t at = 0; at < sizeof none / sizeof *none; at++)
        put(worker, none[at], new_ref(Py_None));
    PyObject *pending = PEEK(worker, Worker, pending);
    return PyList_SetSlice(pending, 0, PyList_GET_SIZE(pending), NULL) < 0 ? NULL : new_ref(Py_None);
}

/* -- a block's request --------------------------------------------------------------------------------------------- */

/* A visit as a block sees it: with its rows only, where it has rows of its own. */
static PyObject *own_visit(PyObject *worker, PyObject *schedule, PyObject *visit)
{
    PyObject *rows = PEEK(worker, Worker, rows), *view = PEEK(worker, Worker, _view), *views = PEEK(schedule, Schedule, views);
    if (rows == Py_None)
        return new_ref(visit);
    if (view != Py_None && PEEK(view, RowVisit, visit) == visit)
        for (Py_ssize_t at = 0; at < PyList_GET_SIZE(views); at++)
            if (PyList_GET_ITEM(views, at) == view)
                return new_ref(view);
    PyObject *pieces = PyDict_New();
    view = pieces == NULL ? NULL : PyType_GenericAlloc(RowVisit, 0);
    if (view == NULL) {
        Py_XDECREF(pieces);
        return NULL;
    }
    PUT(view, RowVisit, visit, new_ref(visit));
    PUT(view, RowVisit, rows, new_ref(rows));
    PUT(view, RowVisit, pieces, pieces);
    if (PyList_Append(views, view) < 0)
        Py_CLEAR(view);
    else
        PUT(worker, Worker, _view, new_ref(view));
    return view;
}

/* Note that a worker waits for a visit, and have its site report. */
static int expect(PyObject *schedule, PyObject *worker, PyObject *want)
{
    PyObject *waiting = PEEK(schedule, Schedule, _waiting), *others = PyDict_GetItemWithError(waiting, want), *asked;
    if (others != NULL)
        return PyList_Append(others, worker);
    PyObject *alone = PyErr_Occurred() ? NULL : PyList_New(1);
    if (alone == NULL)
        return FAILED;
    PyList_SET_ITEM(alone, 0, new_ref(worker));
    int failed = PyDict_SetItem(waiting, want, alone);
    Py_DECREF(alone);
    if (failed)
        return FAILED;
    asked = PyDict_GetItemWithError(PEEK(PEEK(schedule, Schedule, run), Run, _asked), PyTuple_GET_ITEM(want, 2));
    return asked == NULL ? FAILED : add_asked(asked, PyTuple_GET_ITEM(want, 0));
}

/* Hand the turn back, and with it the place of a tracer, where coverage has one. */
static int pause_block(PyObject *worker)
{
    PyObject *turns = PEEK(worker, Worker, switch), *done;
    int plain = PEEK(worker, Worker, _coverage) == Py_None && Py_TYPE(turns) == Switch &&
                        PEEK(turns, Switch, ending) == Py_False
                    ? may_pause(turns)
                    : OTHER;
    if (plain != OTHER)
        return plain < 0 ? FAILED : pause_here(turns);
    PyObject *pause = new_ref(PEEK(worker, Worker, pause));
    done = PyObject_CallNoArgs(pause);
    Py_DECREF(pause);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Ordinary: the model goes on, and nothing waits for that. */
static int may_ask(PyObject *worker, PyObject *schedule)
{
    return is_worker(worker) && PEEK(worker, Worker, side) == Py_None && !PyDict_GET_SIZE(PEEK(worker, Worker, _ended)) &&
           !PyList_GET_SIZE(PEEK(worker, Worker, pending)) && PEEK(schedule, Schedule, over) == Py_False;
}

/* Wait until the model reaches a visit. Ordinary: it is ahead. */
int block_ask(PyObject *worker, PyObject *site, PyObject *port, PyObject *number, PyObject **found)
{
    PyObject *schedule = PEEK(worker, Worker, _schedule), *key = PEEK(site, Site, key), *run, *live, *want;
    int larger = 0, plain = OTHER;
    if (schedule == NULL || Py_TYPE(schedule) != Schedule || !may_ask(worker, schedule))
        return OTHER;
    live = PEEK(schedule, Schedule, live);
    if (live != Py_None && Py_TYPE(live) != Visit)
        return OTHER;
    plain = is_live(live, key, number, port);
    if (plain) {
        *found = plain < 0 ? NULL : own_visit(worker, schedule, live);
        return *found == NULL ? FAILED : ORDINARY;
    }
    run = PEEK(schedule, Schedule, run);
    if (!is_run(run) || PEEK(run, Run, stopped) != Py_False)
        return OTHER;
    long before = passed(run, key, port), which = PyLong_AsLongAndOverflow(number, &larger);
    if (before < 0 || (which == -1 && !larger && PyErr_Occurred()))
        return FAILED;
    if (larger || before > which)
        return OTHER;
    if ((want = PyTuple_Pack(3, key, number, port)) == NULL)
        return FAILED;
    Py_INCREF(schedule); /* it lets go of both when the run is over */
    Py_INCREF(run);
    PUT(worker, Worker, want, new_ref(want));
    plain = expect(schedule, worker, want) < 0 || pause_block(worker) < 0 ? FAILED : ORDINARY;
    live = PEEK(schedule, Schedule, live);
    if (plain == ORDINARY && (PEEK(worker, Worker, want) != Py_None || live == Py_None)) {
        PyObject *done = PyObject_CallMethodObjArgs(worker, s__unmet, run, site, port, number, NULL);
        Py_XDECREF(done);
        plain = FAILED;
    } else if (plain == ORDINARY) {
        PUT(run, Run, _site, new_ref(site));
        if (port == s_output &&
            PyDict_SetItem(PEEK(run, Run, kinds), key, (PyObject *)Py_TYPE(PEEK(live, Visit, result))) < 0)
            plain = FAILED;
        else if ((*found = own_visit(worker, schedule, live)) == NULL)
            plain = FAILED;
    }
    Py_DECREF(want);
    Py_DECREF(run);
    Py_DECREF(schedule);
    return plain;
}

PyObject *worker_ask(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *visit = NULL;
    int plain = OTHER;
    if (size == 4 && learned && Py_TYPE(args[0]) == Worker && is_site(args[1]) && is_port(args[2]) &&
        PyLong_CheckExact(args[3]))
        plain = block_ask(args[0], args[1], args[2], args[3], &visit);
    return plain == OTHER ? PyObject_Vectorcall(py_worker_ask, args, size, NULL) : visit;
}

/* -- whose turn it is ---------------------------------------------------------------------------------------------- */

/* Whether workers stand in the order in which they are written. */
static int in_order(PyObject *workers)
{
    long last = -1;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(workers); at++) {
        PyObject *worker = PyList_GET_ITEM(workers, at);
        if (!is_worker(worker))
            return OTHER;
        long place = PyLong_AsLong(PEEK(worker, Worker, place));
        if (place < last || PyErr_Occurred())
            return PyErr_Occurred() ? FAILED : OTHER;
        last = place;
    }
    return ORDINARY;
}

/* Let one worker go on. */
static int turn(PyObject *schedule, PyObject *worker, PyObject *live)
{
    if (!is_worker(worker)) {
        PyErr_SetString(PyExc_TypeError, "only the workers of blocks take turns");
        return FAILED;
    }
    PyObject *views = PEEK(schedule, Schedule, views), *turns = PEEK(worker, Worker, switch), *done;
    PUT(worker, Worker, want, new_ref(Py_None));
    if (PyList_GET_SIZE(views)) { /* the worker sees what those before it wrote */
        int shared = PEEK(worker, Worker, rows) == Py_None ? 1 : rows_shared(views);
        if (shared == 1) {
            done = PyObject_CallFunctionObjArgs(py_join, live, views, Py_True, NULL);
            Py_XDECREF(done);
            shared = done == NULL ? FAILED : 0;
        }
        if (shared < 0)
            return FAILED;
    }
    if ((done = switch_resume(NULL, turns)) == NULL)
        return FAILED;
    Py_DECREF(done);
    if (PEEK(worker, Worker, tells) != Py_None) {
        done = PyObject_CallMethodOneArg(schedule, s__tell, worker);
        Py_XDECREF(done);
        if (done == NULL)
            return FAILED;
    }
    int grad = live == Py_None ? 0 : truth(py_grad);
    if (grad == 1) {
        done = PyObject_CallMethodOneArg(worker, s_note, live);
        Py_XDECREF(done);
        grad = done == NULL ? FAILED : 0;
    }
    if (grad < 0)
        return FAILED;
    PyObject *error = PEEK(turns, Switch, error);
    if (error == Py_None)
        return 0;
    PUT(schedule, Schedule, error, new_ref(error));
    PUT(turns, Switch, error, new_ref(Py_None));
    PyErr_SetNone(py_RunEnded);
    return FAILED;
}

/* Resume workers that can go on, until none can; earlier ones first. */
static int take_turns(PyObject *schedule, PyObject *ready)
{
    PyObject *live = new_ref(PEEK(schedule, Schedule, live)), *held = PEEK(schedule, Schedule, _held), *done;
    int failed = 0;
    Py_INCREF(held);
    while (!failed && PyList_GET_SIZE(ready)) {
        PyObject *worker = new_ref(PyList_GET_ITEM(ready, 0));
        failed = PyList_SetSlice(ready, 0, 1, NULL) < 0 ? FAILED : turn(schedule, worker, live);
        Py_DECREF(worker);
        if (!failed && PyList_GET_SIZE(held)) {
            done = PyObject_CallMethodOneArg(schedule, s__release, ready);
            Py_XDECREF(done);
            failed = done == NULL ? FAILED : 0;
        }
    }
    Py_DECREF(held);
    Py_DECREF(live);
    if (!failed && PEEK(schedule, Schedule, over) == Py_False &&
        PEEK(PEEK(schedule, Schedule, run), Run, stopped) == Py_True) {
        PyErr_SetNone(py_RunEnded);
        return FAILED;
    }
    return failed;
}

/* Make a schedule. Ordinary: its workers are made to the end. */
PyObject *schedule_init(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *schedule = size == 2 && learned && Py_TYPE(args[0]) == Schedule ? args[0] : NULL;
    PyObject *workers = schedule == NULL ? NULL : args[1];
    int plain = workers != NULL && PyList_CheckExact(workers);
    for (Py_ssize_t at = 0; plain && at < PyList_GET_SIZE(workers); at++)
        plain = is_worker(PyList_GET_ITEM(workers, at));
    if (!plain)
        return PyObject_Vectorcall(py_schedule_init, args, size, NULL);
    const Slot none[] = {Schedule_live, Schedule_result, Schedule_error, Schedule_run};
    for (size_t at = 0; at < sizeof none / sizeof *none; at++)
        put(schedule, none[at], new_ref(Py_None));
    PUT(schedule, Schedule, workers, new_ref(workers));
    PUT(schedule, Schedule, over, new_ref(Py_False));
    if (hold(schedule, Schedule_views, PyList_New(0)) < 0 || hold(schedule, Schedule__waiting, PyDict_New()) < 0 ||
        hold(schedule, Schedule__held, PyList_New(0)) < 0 || hold(schedule, Schedule__skips, PyDict_New()) < 0 ||
        hold(schedule, Schedule__ahead, PySet_New(NULL)) < 0)
        return NULL;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(workers); at++) {
        PyObject *worker = PyList_GET_ITEM(workers, at);
        if (hold(worker, Worker_place, PyLong_FromSsize_t(at)) < 0)
            return NULL;
        PUT(worker, Worker, _schedule, new_ref(schedule));
    }
    Py_RETURN_NONE;
}

/* Ordinary: a schedule whose run has begun. */
static int is_schedule(PyObject *schedule)
{
    return learned && Py_TYPE(schedule) == Schedule && PEEK(schedule, Schedule, _ahead) != NULL &&
           PyObject_TypeCheck(PEEK(schedule, Schedule, run), Run);
}

PyObject *schedule_turns(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    int plain = size == 2 && is_schedule(args[0]) && PyList_CheckExact(args[1]) ? in_order(args[1]) : OTHER;
    if (plain == OTHER)
        return PyObject_Vectorcall(py_turns, args, size, NULL);
    return plain < 0 || take_turns(args[0], args[1]) < 0 ? NULL : new_ref(Py_None);
}

/* The workers that wait for a visit, whom nobody waits for any more; NULL where there are none, or with an error. */
static PyObject *take_waiting(PyObject *schedule, PyObject *visit)
{
    PyObject *waiting = PEEK(schedule, Schedule, _waiting), *ready;
    PyObject *want = PyTuple_Pack(3, PEEK(visit, Visit, key), PEEK(visit, Visit, number), PEEK(visit, Visit, port));
    if (want == NULL)
        return NULL;
    ready = PyDict_GetItemWithError(waiting, want);
    Py_XINCREF(ready);
    if (ready != NULL && PyDict_DelItem(waiting, want) < 0)
        Py_CLEAR(ready);
    Py_DECREF(want);
    return ready;
}

/* Ordinary: nobody skips rows, and who waits for the visit stands in order. */
PyObject *schedule_reached(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 2 || !is_schedule(args[0]) || Py_TYPE(args[1]) != Visit ||
        PyDict_GET_SIZE(PEEK(args[0], Schedule, _skips)))
        return PyObject_Vectorcall(py_reached, args, size, NULL);
    PyObject *schedule = args[0], *visit = args[1], *ready = take_waiting(schedule, visit);
    if (ready == NULL)
        return PyErr_Occurred() ? NULL : new_ref(Py_None);
    PyObject *outer = new_ref(PEEK(schedule, Schedule, live)), *views = new_ref(PEEK(schedule, Schedule, views));
    PyObject *pair[] = {schedule, ready}, *own = PyList_New(0), *done = NULL;
    if (own != NULL) {
        PUT(schedule, Schedule, live, new_ref(visit));
        PUT(schedule, Schedule, views, own);
        done = schedule_turns(NULL, pair, 2);
        own = new_ref(PEEK(schedule, Schedule, views));
        if (done != NULL && PyList_GET_SIZE(own) && rows_join(visit, own) < 0)
            Py_CLEAR(done);
        Py_DECREF(own);
    }
    PUT(schedule, Schedule, live, outer);
    PUT(schedule, Schedule, views, views);
    Py_DECREF(ready);
    if (done != NULL && PyDict_GET_SIZE(PEEK(schedule, Schedule, _skips))) {
        Py_DECREF(done);
        done = PyObject_CallMethodOneArg(schedule, s__skip_all, visit);
    }
    return done;
}

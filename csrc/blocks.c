/* One block of several: its request, its turn, its rows of a visit. `Worker.ask`, `Schedule.reached` and `_turns`,
   `RowVisit`, `join`. */

#include "quick.h"

/* -- what a block has of a visit: its rows ------------------------------------------------------------------------- */

/* Whether it is the rows of a visit of the model's. */
int are_rows(PyObject *view)
{
    return Py_TYPE(view) == RowVisit && PEEK(view, RowVisit, pieces) != NULL &&
           Py_TYPE(PEEK(view, RowVisit, visit)) == Visit && PyObject_TypeCheck(PEEK(view, RowVisit, rows), Rows);
}

/* The output of a visit as one prompt has it so far, borrowed; NULL where it has asked for nothing yet. */
static PyObject *piece_of(PyObject *view)
{
    PyObject *pieces = PEEK(view, RowVisit, pieces);
    return PyDict_GET_SIZE(pieces) ? PyDict_GetItemWithError(pieces, s_result) : NULL;
}

/* Whether the first dimension of a value counts the rows of all prompts. Ordinary: it is a tensor for which it does. */
static int has_rows(PyObject *rows, PyObject *value)
{
    if (Py_TYPE(value) != Tensor)
        return OTHER;
    PyObject *shape = PyObject_GetAttr(value, s_shape);
    int has = shape == NULL ? FAILED : OTHER;
    if (shape != NULL && PyTuple_Check(shape) && PyTuple_GET_SIZE(shape))
        has = equal(PyTuple_GET_ITEM(shape, 0), PEEK(rows, Rows, total));
    Py_XDECREF(shape);
    return has;
}

/* Let a prompt have `value` where `whole` stands, which has rows; takes over `marks`. */
static int have(PyObject *view, PyObject *whole, PyObject *value, PyObject *marks)
{
    PyObject *piece = marks == NULL ? NULL : PyType_GenericAlloc(Piece, 0);
    if (piece == NULL) {
        Py_XDECREF(marks);
        return FAILED;
    }
    PUT(piece, Piece, rows, new_ref(PEEK(view, RowVisit, rows)));
    PUT(piece, Piece, whole, new_ref(whole));
    PUT(piece, Piece, value, new_ref(value));
    PUT(piece, Piece, _marks, marks);
    PUT(piece, Piece, fits, new_ref(Py_True));
    int failed = PyDict_SetItem(PEEK(view, RowVisit, pieces), s_result, piece);
    Py_DECREF(piece);
    return failed;
}

/* Address, shape and strides of a tensor; None for one that has no such. */
static PyObject *place_of(PyObject *tensor)
{
    PyObject *layout = Py_TYPE(tensor) == Tensor ? PyObject_GetAttr(tensor, s_layout) : new_ref(Py_None);
    PyObject *address = NULL, *shape = NULL, *strides = NULL, *place = NULL;
    Py_XDECREF(layout);
    if (layout != py_strided)
        return layout == NULL ? NULL : new_ref(Py_None);
    if ((address = PyObject_CallMethodNoArgs(tensor, s_data_ptr)) != NULL &&
        (shape = PyObject_GetAttr(tensor, s_shape)) != NULL &&
        (strides = PyObject_CallMethodNoArgs(tensor, s_stride)) != NULL)
        place = PyTuple_Pack(3, address, shape, strides);
    Py_XDECREF(address);
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    return place;
}

/* Hand out the rows of a tensor, and remember what they are. */
static int take(PyObject *view, PyObject *whole)
{
    PyObject *rows = PEEK(view, RowVisit, rows), *first = PEEK(rows, Rows, start);
    PyObject *end = PyNumber_Add(first, PEEK(rows, Rows, size)), *slice = NULL, *own = NULL, *place = NULL;
    PyObject *mark = NULL, *key = NULL, *marks = NULL;
    int failed = FAILED;
    if (end == NULL || (slice = PySlice_New(first, end, NULL)) == NULL ||
        (own = PyObject_GetItem(whole, slice)) == NULL ||
        (place = place_of(own)) == NULL || (mark = PyTuple_Pack(4, own, zero, place, zero)) == NULL || (key = PyLong_FromVoidPtr(whole)) == NULL ||
        (marks = PyDict_New()) == NULL || PyDict_SetItem(marks, key, mark) < 0)
        goto over;
    failed = have(view, whole, own, new_ref(marks));
over:
    Py_XDECREF(end);
    Py_XDECREF(slice);
    Py_XDECREF(own);
    Py_XDECREF(place);
    Py_XDECREF(mark);
    Py_XDECREF(key);
    Py_XDECREF(marks);
    return failed;
}

/* A prompt's rows of an output. Ordinary: of a tensor, without gradients. */
PyObject *rows_read(PyObject *view)
{
    PyObject *piece = piece_of(view), *whole;
    if (piece != NULL || PyErr_Occurred())
        return piece == NULL ? NULL : new_ref(PEEK(piece, Piece, value));
    whole = new_ref(PEEK(PEEK(view, RowVisit, visit), Visit, result)); /* what looks at it may run code of anybody's */
    int plain = has_rows(PEEK(view, RowVisit, rows), whole);
    if (plain == 1) {
        int grad = truth(py_grad);
        plain = grad < 0 ? FAILED : !grad;
    }
    if (plain == ORDINARY && take(view, whole) < 0)
        plain = FAILED;
    Py_DECREF(whole);
    if (plain == OTHER)
        return PyObject_GetAttr(view, s_result);
    piece = plain < 0 ? NULL : piece_of(view);
    return piece == NULL ? NULL : new_ref(PEEK(piece, Piece, value));
}

/* Whether a tensor has the shape of a prompt's rows of another, and its dtype and device. */
static int is_like_rows(PyObject *rows, PyObject *whole, PyObject *value)
{
    if (Py_TYPE(whole) != Tensor)
        return OTHER;
    PyObject *theirs = PyObject_GetAttr(whole, s_shape), *mine = theirs == NULL ? NULL : PyObject_GetAttr(value, s_shape);
    int alike = mine == NULL ? FAILED : OTHER;
    if (mine != NULL && PyTuple_Check(mine) && PyTuple_Check(theirs) &&
        PyTuple_GET_SIZE(mine) == PyTuple_GET_SIZE(theirs) && PyTuple_GET_SIZE(mine)) {
        alike = equal(PyTuple_GET_ITEM(theirs, 0), PEEK(rows, Rows, total));
        if (alike == 1)
            alike = equal(PyTuple_GET_ITEM(mine, 0), PEEK(rows, Rows, size));
        for (Py_ssize_t at = 1; alike == 1 && at < PyTuple_GET_SIZE(mine); at++)
            alike = equal(PyTuple_GET_ITEM(mine, at), PyTuple_GET_ITEM(theirs, at));
    }
    Py_XDECREF(theirs);
    Py_XDECREF(mine);
    if (alike == 1)
        alike = agree(value, whole, s_dtype);
    return alike == 1 ? agree(value, whole, s_device) : alike;
}

/* Replace a prompt's rows of an output. Ordinary: it has not read them, and a tensor takes the place of rows like it. */
int rows_replace(PyObject *view, PyObject *value, int checked)
{
    if (piece_of(view) != NULL || Py_TYPE(value) != Tensor)
        return OTHER;
    PyObject *whole = new_ref(PEEK(PEEK(view, RowVisit, visit), Visit, result)), *rows = PEEK(view, RowVisit, rows);
    int plain = PyErr_Occurred() ? FAILED : checked ? is_like_rows(rows, whole, value) : has_rows(rows, whole);
    if (plain == ORDINARY)
        plain = have(view, whole, value, PyDict_New()) < 0 ? FAILED : ORDINARY;
    Py_DECREF(whole);
    return plain;
}

/* Let a value stand where a prompt's rows of an output stand, which it has read. */
int rows_put(PyObject *view, PyObject *value)
{
    PyObject *piece = piece_of(view);
    if (piece == NULL)
        return PyErr_Occurred() ? FAILED : PyObject_SetAttr(view, s_result, value);
    PUT(piece, Piece, value, new_ref(value));
    return 0;
}

/* -- and what becomes of them -------------------------------------------------------------------------------------- */

/* Ordinary: rows that were handed out as a view still are one, and need no gradients. */
static int is_view(PyObject *mark)
{
    PyObject *own = PyTuple_GET_ITEM(mark, 0), *place;
    if (Py_TYPE(own) != Tensor)
        return OTHER;
    int needs = truth_of(PyObject_GetAttr(own, s_requires_grad));
    if (needs || (place = place_of(own)) == NULL)
        return needs == 1 ? OTHER : FAILED;
    int same = PyObject_RichCompareBool(place, PyTuple_GET_ITEM(mark, 2), Py_EQ);
    Py_DECREF(place);
    return same;
}

/* Whether what stands where a prompt's rows of a tensor were is something that the model does not have yet. */
static int is_touched(PyObject *piece)
{
    PyObject *whole = PEEK(piece, Piece, whole), *value = PEEK(piece, Piece, value);
    if (value == whole)
        return 0;
    if (!PyDict_GET_SIZE(PEEK(piece, Piece, _marks)))
        return 1;
    PyObject *key = PyLong_FromVoidPtr(whole);
    if (key == NULL)
        return FAILED;
    PyObject *mark = PyDict_GetItemWithError(PEEK(piece, Piece, _marks), key);
    Py_DECREF(key);
    if (mark == NULL || PyTuple_GET_ITEM(mark, 0) != value)
        return PyErr_Occurred() ? FAILED : 1;
    int plain = PyTuple_GET_ITEM(mark, 1) == zero ? is_view(mark) : OTHER;
    return plain == OTHER ? truth_of(PyObject_CallMethodNoArgs(piece, s_edited)) : plain < 0 ? FAILED : 0;
}

/* Append the rows of a tensor from one on to another. */
static int append_rows(PyObject *parts, PyObject *whole, PyObject *from, PyObject *to)
{
    PyObject *slice = PySlice_New(from, to, NULL), *own = slice == NULL ? NULL : PyObject_GetItem(whole, slice);
    int failed = own == NULL ? FAILED : PyList_Append(parts, own);
    Py_XDECREF(slice);
    Py_XDECREF(own);
    return failed;
}

/* Append what a prompt has made of its rows, and before it the rows up to there. Ordinary: it comes after what is there
   already, which ends at `at`. */
static int append_piece(PyObject *parts, PyObject *whole, PyObject *piece, PyObject **at)
{
    PyObject *rows = PEEK(piece, Piece, rows), *start = PEEK(rows, Rows, start), *end;
    int plain = PEEK(piece, Piece, fits) == Py_True && PEEK(piece, Piece, whole) == whole &&
                Py_TYPE(PEEK(piece, Piece, value)) == Tensor;
    if (plain)
        plain = PyObject_RichCompareBool(start, *at, Py_GE);
    if (plain != 1 || (end = PyNumber_Add(start, PEEK(rows, Rows, size))) == NULL)
        return plain == 1 ? FAILED : plain;
    int before = equal(start, *at) == 1 ? 0 : append_rows(parts, whole, *at, start);
    int failed = before < 0 ? FAILED : PyList_Append(parts, PEEK(piece, Piece, value));
    Py_SETREF(*at, end);
    return failed < 0 ? FAILED : ORDINARY;
}

/* The parts that an output is to be made of, in order; none where nobody has changed it. Ordinary: it is a tensor with
   rows, and prompts have nothing else of the visit. */
static int append_parts(PyObject *parts, PyObject *whole, PyObject *views)
{
    PyObject *at = new_ref(zero), *total = NULL;
    int plain = Py_TYPE(whole) == Tensor;
    for (Py_ssize_t which = 0; plain == ORDINARY && which < PyList_GET_SIZE(views); which++) {
        PyObject *view = PyList_GET_ITEM(views, which), *piece = are_rows(view) ? piece_of(view) : NULL;
        if (PyErr_Occurred())
            plain = FAILED;
        else if (!are_rows(view) || PyDict_GET_SIZE(PEEK(view, RowVisit, pieces)) != (piece != NULL))
            plain = OTHER;
        else if (piece != NULL && Py_TYPE(PEEK(piece, Piece, whole)) != Tensor)
            plain = OTHER;
        else if (piece != NULL) {
            int touched = is_touched(piece);
            plain = touched == 1 ? append_piece(parts, whole, piece, &at) : touched < 0 ? FAILED : ORDINARY;
            total = PEEK(PEEK(piece, Piece, rows), Rows, total);
        }
    }
    if (plain == ORDINARY && PyList_GET_SIZE(parts)) {
        int ends = equal(at, total);
        if (ends < 0 || (ends == 0 && append_rows(parts, whole, at, Py_None) < 0))
            plain = FAILED;
    }
    Py_DECREF(at);
    return plain;
}

/* Hand the rows of all prompts back to the model. Ordinary: they fit together; else Python says why not. */
static int join(PyObject *visit, PyObject *views)
{
    PyObject *parts = PyList_New(0), *whole = new_ref(PEEK(visit, Visit, result)), *done = NULL;
    int plain = parts == NULL ? FAILED : append_parts(parts, whole, views);
    if (plain == ORDINARY && PyList_GET_SIZE(parts)) {
        done = PyObject_CallOneArg(py_cat, parts);
        if (done != NULL)
            PUT(visit, Visit, result, done);
        else if (PyErr_ExceptionMatches(PyExc_RuntimeError)) {
            PyErr_Clear();
            plain = OTHER;
        } else
            plain = FAILED;
    }
    Py_XDECREF(parts);
    Py_DECREF(whole);
    if (plain == OTHER) {
        done = PyObject_CallFunctionObjArgs(py_join, visit, views, NULL);
        Py_XDECREF(done);
        plain = done == NULL ? FAILED : ORDINARY;
    }
    return plain < 0 ? FAILED : 0;
}

/* Whether something was replaced that may have no rows, so that it is every prompt's. */
static int is_shared(PyObject *views)
{
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(views); at++) {
        PyObject *view = PyList_GET_ITEM(views, at), *piece, *name;
        Py_ssize_t next = 0;
        int fits = 1, shares = 0;
        while (fits && PyDict_Next(PEEK(view, RowVisit, pieces), &next, &name, &piece))
            fits = PEEK(piece, Piece, fits) == Py_True;
        if (!fits)
            shares = truth_of(PyObject_CallMethodNoArgs(view, s_shares));
        if (shares)
            return shares;
    }
    return 0;
}

/* -- a block's worker ---------------------------------------------------------------------------------------------- */

#define HOLD(name, made) (hold(worker, Worker_##name, made) < 0)

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
                 HOLD(switch, PyObject_CallFunctionObjArgs((PyObject *)Switch, serve, worker, owner, NULL)) ||
                 HOLD(pause, PyObject_GetAttr(PEEK(worker, Worker, switch), s_pause));
    Py_XDECREF(serve);
    Py_XDECREF(owner);
    return failed ? NULL : new_ref(Py_None);
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
    return asked == NULL ? FAILED : PySet_Add(asked, PyTuple_GET_ITEM(want, 0));
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

/* Whether it is a block's worker, made to the end. */
static int is_worker(PyObject *worker)
{
    return Py_TYPE(worker) == Worker && PEEK(worker, Worker, pause) != NULL &&
           Py_TYPE(PEEK(worker, Worker, switch)) == Switch;
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
        int shared = PEEK(worker, Worker, rows) == Py_None ? 1 : is_shared(views);
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
        if (done != NULL && PyList_GET_SIZE(own) && join(visit, own) < 0)
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

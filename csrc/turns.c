/* Two stacks take turns, each with torch's state of its own. */

#include "quick.h"

/* -- stacks, which are greenlets ------------------------------------------------------------------------------------ */

/* The places of two functions in greenlet's interface for C, which stay what they are from version to version. */
#define GET_CURRENT 4
#define SWITCH 6

static PyObject *(*greenlet_current)(void);
static PyObject *(*greenlet_switch)(PyObject *stack, PyObject *args, PyObject *kwargs);

/* Find greenlet, without which nothing here can work. */
int know_greenlet(void)
{
    void **interface = PyCapsule_Import("greenlet._C_API", 0);
    if (interface == NULL)
        return FAILED;
    greenlet_current = (PyObject * (*)(void)) interface[GET_CURRENT];
    greenlet_switch = (PyObject * (*)(PyObject *, PyObject *, PyObject *)) interface[SWITCH];
    return 0;
}

/* The stack that runs here. */
PyObject *stack_here(void) { return greenlet_current(); }

/* Let another stack go on, with nothing; what it switches back with. */
PyObject *switch_to(PyObject *stack) { return greenlet_switch(stack, NULL, NULL); }

/* -- torch's ambient state: `ambient.read` and `ambient.swap` ------------------------------------------------------ */

#define GRAD 1
#define INFERENCE 2

/* Whether all is at rest but grad mode, inference mode, and where the work goes on a GPU. */
static int at_rest(void)
{
    PyObject *each[] = {py_autocast, py_functions, py_dispatches};
    for (size_t at = 0; at < sizeof each / sizeof *each; at++) {
        int is = truth(each[at]);
        if (is)
            return is < 0 ? FAILED : 0;
    }
    return no_hooks();
}

/* Whether work may go to a GPU. */
static int has_place(void) { return py_cuda == Py_None ? 0 : truth_of(PyObject_GetAttr(py_cuda, s__initialized)); }

/* The current device, and the current stream of every device: what `ambient._place` gives. */
static PyObject *place_now(void)
{
    PyObject *devices = PyObject_CallNoArgs(py_cuda_devices), *device = NULL, *place = NULL;
    Py_ssize_t size = devices == NULL ? FAILED : PyObject_Size(devices);
    PyObject *streams = size < 0 ? NULL : PyTuple_New(size);
    for (Py_ssize_t at = 0; streams != NULL && at < size; at++) {
        PyObject *number = PyLong_FromSsize_t(at), *stream = NULL;
        if (number != NULL)
            stream = PyObject_CallOneArg(py_cuda_stream, number);
        Py_XDECREF(number);
        if (stream == NULL)
            Py_CLEAR(streams);
        else
            PyTuple_SET_ITEM(streams, at, stream);
    }
    if (streams != NULL && (device = PyObject_CallNoArgs(py_cuda_device)) != NULL)
        place = PyTuple_Pack(2, device, streams);
    Py_XDECREF(devices);
    Py_XDECREF(device);
    Py_XDECREF(streams);
    return place;
}

/* Grad mode and inference mode, as the flags of a number. */
static PyObject *flags_now(void)
{
    int grad = truth(py_grad), inference = grad < 0 ? FAILED : truth(py_inference);
    return inference < 0 ? NULL : PyLong_FromLong(GRAD * grad + INFERENCE * inference);
}

PyObject *ambient_now(void)
{
    int rests = at_rest(), placed = rests == 1 ? has_place() : 0;
    if (rests < 0 || placed < 0)
        return NULL;
    PyObject *state = rests ? flags_now() : PyObject_CallNoArgs(py_ambient_read);
    if (state == NULL || !placed)
        return state;
    PyObject *place = place_now(), *both = place == NULL ? NULL : PyTuple_Pack(2, state, place);
    Py_DECREF(state);
    Py_XDECREF(place);
    return both;
}

PyObject *ambient(PyObject *module, PyObject *nothing) { return ambient_now(); }

/* What grad mode becomes with a state; NULL where more than that differs. */
static PyObject *only_grad(PyObject *now, PyObject *then)
{
    if (!PyLong_CheckExact(now) || !PyLong_CheckExact(then))
        return NULL;
    long new = PyLong_AsLong(then), differing = PyLong_AsLong(now) ^ new;
    return differing & INFERENCE ? NULL : new & GRAD ? Py_True : Py_False;
}

/* Replace one state by another, where they differ. */
static int ambient_swap(PyObject *now, PyObject *then)
{
    int same = equal(now, then);
    if (same)
        return same < 0 ? FAILED : 0;
    PyObject *grad = only_grad(now, then), *done;
    if (PyTuple_CheckExact(now) && PyTuple_CheckExact(then)) {
        if ((same = equal(PyTuple_GET_ITEM(now, 1), PyTuple_GET_ITEM(then, 1))) < 0)
            return FAILED;
        grad = same ? only_grad(PyTuple_GET_ITEM(now, 0), PyTuple_GET_ITEM(then, 0)) : NULL;
    }
    done = grad != NULL ? PyObject_CallOneArg(py_set_grad, grad)
                        : PyObject_CallFunctionObjArgs(py_ambient_swap, now, then, NULL);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* -- the two sides take turns: `Switch.resume` and `Switch.pause` -------------------------------------------------- */

/* Make a switch. Ordinary: this thread has nothing to unwind first, and no transform of torch.func is under way. */
PyObject *switch_init(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size < 3 || size > 4 || !learned || !PyObject_TypeCheck(args[0], Switch) || !PyList_GET_SIZE(py_guard))
        return PyObject_Vectorcall(py_switch_init, args, size, NULL);
    PyObject *turns = args[0], *home = PyObject_GetAttr(py_homes, s_home), *token = NULL, *context = NULL, *now = NULL;
    Py_ssize_t abandoned = home == NULL || Py_TYPE(home) != Home ? -1 : PyObject_Size(PEEK(home, Home, abandoned));
    int plain = abandoned ? OTHER : gives_none(PyObject_CallNoArgs(py_transform));
    if (plain == OTHER && !PyErr_Occurred()) {
        Py_XDECREF(home);
        return PyObject_Vectorcall(py_switch_init, args, size, NULL);
    }
    if (plain != ORDINARY || (now = ambient_now()) == NULL || (context = PyContext_CopyCurrent()) == NULL ||
        (token = size == 4 && args[3] != Py_None ? new_ref(args[3]) : PyType_GenericAlloc(&PyBaseObject_Type, 0)) == NULL) {
        Py_XDECREF(home);
        Py_XDECREF(now);
        Py_XDECREF(context);
        return NULL;
    }
    PUT(turns, Switch, _function, new_ref(args[1]));
    PUT(turns, Switch, carries, new_ref(args[2]));
    PUT(turns, Switch, _worker, new_ref(Py_None));
    PUT(turns, Switch, _resumer, new_ref(Py_None));
    PUT(turns, Switch, _ambient, now);
    PUT(turns, Switch, _context, context);
    PUT(turns, Switch, _level, new_ref(zero));
    PUT(turns, Switch, _home, home);
    PUT(turns, Switch, _abandoned, new_ref(Py_False));
    PUT(turns, Switch, _token, token);
    PUT(turns, Switch, done, new_ref(Py_False));
    PUT(turns, Switch, ending, new_ref(Py_False));
    PUT(turns, Switch, unwound, new_ref(Py_False));
    PUT(turns, Switch, result, new_ref(Py_None));
    PUT(turns, Switch, error, new_ref(Py_None));
    Py_RETURN_NONE;
}

PyObject *new_switch(PyObject *function, PyObject *carries, PyObject *token)
{
    PyObject *turns = PyType_GenericAlloc(Switch, 0), *args[] = {turns, function, carries, token}, *done = NULL;
    if (turns != NULL && (done = switch_init(NULL, args, 4)) == NULL)
        Py_CLEAR(turns);
    Py_XDECREF(done);
    return turns;
}

/* Ordinary: nothing was abandoned, and nobody traces, which Python must see to. */
int may_resume(PyObject *turns)
{
    Py_ssize_t abandoned = PyObject_Size(PEEK(PEEK(turns, Switch, _home), Home, abandoned));
    if (abandoned)
        return abandoned < 0 ? FAILED : OTHER;
    return gives_none(PyObject_CallNoArgs(py_gettrace));
}

/* Whether a home is that of the thread which asks. */
static int is_home(PyObject *home)
{
    unsigned long ident = PyLong_AsUnsignedLong(PEEK(home, Home, ident));
    return PyErr_Occurred() ? FAILED : ident == PyThread_get_thread_ident();
}

/* Give an idle stack its job. */
static int start(PyObject *turns, PyObject *worker, PyObject *me)
{
    if (PyObject_SetAttr(worker, s_parent, me) < 0 || PyObject_SetAttr(worker, s_job, turns) < 0 ||
        PyObject_SetAttr(worker, s_tracing, PEEK(turns, Switch, carries)) < 0 ||
        PyObject_SetAttr(worker, s_gr_context, PEEK(turns, Switch, _context)) < 0)
        return FAILED;
    PUT(turns, Switch, carries, new_ref(Py_None));
    PUT(turns, Switch, _context, new_ref(Py_None));
    PUT(turns, Switch, _resumer, new_ref(me));
    PUT(turns, Switch, _worker, new_ref(worker));
    return 0;
}

/* Take the turn from another stack than the last time. Ordinary: in the same thread. */
static int meet(PyObject *turns, PyObject *me)
{
    PyObject *worker = PEEK(turns, Switch, _worker);
    int here = is_home(PEEK(turns, Switch, _home));
    if (here == 1) {
        if (worker != Py_None && PyObject_SetAttr(worker, s_parent, me) < 0)
            return FAILED;
        PUT(turns, Switch, _resumer, new_ref(me));
        return 0;
    }
    PyObject *done = here < 0 ? NULL : PyObject_CallMethodOneArg(turns, s__meet, me);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Make the stack ready to be switched to; after an error it is not. */
int take_turn(PyObject *turns)
{
    PyObject *home = PEEK(turns, Switch, _home), *parked = PEEK(home, Home, parked), *done = NULL;
    PyObject *me = stack_here();
    if (me == NULL)
        return FAILED;
    PyObject *idle = PEEK(home, Home, idle);
    Py_ssize_t waiting = PyList_GET_SIZE(idle);
    if (PEEK(turns, Switch, _worker) == Py_None && PEEK(turns, Switch, _resumer) == Py_None && waiting &&
        is_home(home) == 1) {
        PyObject *worker = new_ref(PyList_GET_ITEM(idle, waiting - 1));
        if (PyList_SetSlice(idle, waiting - 1, waiting, NULL) == 0 && start(turns, worker, me) == 0)
            done = new_ref(Py_None);
        Py_DECREF(worker);
        goto over;
    }
    if (PyErr_Occurred())
        goto over;
    if (me != PEEK(turns, Switch, _resumer) && meet(turns, me) < 0)
        goto over;
    Py_ssize_t size = PyList_GET_SIZE(parked);
    if (PEEK(turns, Switch, _worker) == Py_None)
        done = PyObject_CallMethodObjArgs(turns, s__start, home, me, NULL);
    else if (size && PyList_GET_ITEM(parked, size - 1) == PEEK(turns, Switch, _token))
        done = PyList_SetSlice(parked, size - 1, size, NULL) < 0 ? NULL : new_ref(Py_None);
    else
        done = PyObject_CallMethodObjArgs(turns, s__take_turn, parked, PEEK(turns, Switch, _worker), NULL);
over:
    Py_XDECREF(done);
    Py_DECREF(me);
    return done == NULL ? FAILED : 0;
}

/* Make a state this thread's; `was` is what it was, unless it could not be read. */
static int become(PyObject *then, PyObject **was)
{
    *was = ambient_now();
    return *was == NULL ? FAILED : ambient_swap(*was, then);
}

/* Give the block's side its own state back, and keep that of the other side if it was there. An error that is under way
   stays, unless an interrupt comes in between. */
static int change_back(PyObject *turns, PyObject *mine, int was_there)
{
    PyObject *type, *value, *traceback, *now, *again;
    PyErr_Fetch(&type, &value, &traceback);
    int failed = become(mine, &now);
    if (now != NULL && was_there)
        PUT(turns, Switch, _ambient, new_ref(now));
    Py_XDECREF(now);
    if (failed) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        PyErr_Fetch(&type, &value, &traceback);
        if (become(mine, &again) < 0)
            PyErr_Clear();
        Py_XDECREF(again);
    }
    if (type == NULL)
        return 0;
    PyErr_Restore(type, value, traceback);
    return FAILED;
}

/* Run the function until it pauses or ends; called after `take_turn`. */
int resume(PyObject *turns)
{
    int failed = FAILED;
    PyObject *parked = PEEK(PEEK(turns, Switch, _home), Home, parked);
    PyObject *worker = new_ref(PEEK(turns, Switch, _worker)), *mine = ambient_now();
    if (mine == NULL)
        goto over;
    int there = ambient_swap(mine, PEEK(turns, Switch, _ambient)) == 0;
    if (there) {
        PyObject *came = switch_to(worker);
        /* A greenlet that the model switched to has ended here, and what it returned is the model's. */
        while (came != NULL && came != py_TURN && PEEK(turns, Switch, done) != Py_True) {
            PyObject *again = PyObject_CallMethodOneArg(worker, s_switch, came);
            Py_DECREF(came);
            came = again;
        }
        Py_XDECREF(came);
    }
    if (change_back(turns, mine, there) < 0)
        goto over;
    if (PEEK(turns, Switch, done) == Py_True) {
        PUT(turns, Switch, _worker, new_ref(Py_None));
        PUT(turns, Switch, _resumer, new_ref(Py_None));
        failed = PyObject_SetAttr(worker, s_gr_context, Py_None);
    } else
        failed = PyList_Append(parked, PEEK(turns, Switch, _token));
over:
    Py_DECREF(worker);
    Py_XDECREF(mine);
    return failed;
}

/* Ordinary: no transform of torch.func is under way. */
int may_pause(PyObject *turns)
{
    if (PEEK(turns, Switch, _resumer) == Py_None)
        return OTHER;
    int rests = equal(PEEK(turns, Switch, _level), zero);
    return rests != 1 ? rests : gives_none(PyObject_CallNoArgs(py_transform));
}

int pause_here(PyObject *turns)
{
    PyObject *resumer = new_ref(PEEK(turns, Switch, _resumer));
    PyObject *came = switch_to(resumer);
    Py_DECREF(resumer);
    if (came == NULL)
        return FAILED;
    Py_DECREF(came);
    if (PEEK(turns, Switch, ending) != Py_True)
        return 0;
    PyErr_SetNone(py_RunEnded);
    return FAILED;
}

/* Whether it is a switch, made to the end. */
static int is_switch(PyObject *turns) { return PyObject_TypeCheck(turns, Switch) && PEEK(turns, Switch, error) != NULL; }

PyObject *switch_resume(PyObject *module, PyObject *turns)
{
    int plain = is_switch(turns) ? may_resume(turns) : OTHER;
    if (plain == OTHER)
        return PyObject_CallOneArg(py_resume, turns);
    if (plain < 0 || take_turn(turns) < 0 || resume(turns) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *switch_pause(PyObject *module, PyObject *turns)
{
    int plain = is_switch(turns) && PEEK(turns, Switch, ending) == Py_False ? may_pause(turns) : OTHER;
    if (plain == OTHER)
        return PyObject_CallOneArg(py_pause, turns);
    if (plain < 0 || pause_here(turns) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Run the function to its end, on the stack that it is given. */
PyObject *switch_execute(PyObject *module, PyObject *turns)
{
    if (!is_switch(turns) || PEEK(turns, Switch, _function) == Py_None)
        return PyObject_CallOneArg(py_execute, turns);
    PyObject *function = new_ref(PEEK(turns, Switch, _function));
    PUT(turns, Switch, _function, new_ref(Py_None));
    PyObject *result = PyObject_CallNoArgs(function);
    Py_DECREF(function);
    int leaves = result == NULL && PyErr_ExceptionMatches(py_GreenletExit); /* the worker itself is going away */
    if (result != NULL)
        PUT(turns, Switch, result, result);
    else if (PyErr_ExceptionMatches(py_RunEnded)) {
        PyErr_Clear();
        PUT(turns, Switch, unwound, new_ref(Py_True));
    } else if (!leaves)
        PUT(turns, Switch, error, take_error());
    PUT(turns, Switch, done, new_ref(Py_True));
    return leaves ? NULL : new_ref(Py_None);
}

/* -- a stack that waits for jobs: `switch.work` -------------------------------------------------------------------- */

/* Whether an attribute of an object is a larger number than `most`. */
static int exceeds(PyObject *object, PyObject *name, PyObject *most)
{
    PyObject *found = PyObject_GetAttr(object, name);
    int larger = found == NULL ? FAILED : PyObject_RichCompareBool(found, most, Py_GT);
    Py_XDECREF(found);
    return larger;
}

/* Whether the pool keeps a stack whose job is done. */
static int is_kept(PyObject *worker, PyObject *resumer, PyObject *idle)
{
    int far = exceeds(resumer, s__stack_saved, py_far), deep = far ? far : exceeds(worker, s_depth, py_deep);
    return deep ? (deep < 0 ? FAILED : 0) : PyList_GET_SIZE(idle) < PyLong_AsSsize_t(py_kept);
}

/* Do a job, whatever comes of it, and have none then; the pool of its thread, or NULL after an error. */
static PyObject *do_job(PyObject *worker, PyObject *turns)
{
    PyObject *idle = new_ref(PEEK(PEEK(turns, Switch, _home), Home, idle)), *done = switch_execute(NULL, turns);
    PyObject *error = done == NULL ? take_error() : NULL;
    int failed = PyObject_SetAttr(worker, s_job, Py_None) < 0 || PyObject_SetAttr(worker, s_tracing, Py_None) < 0;
    if (error != NULL)
        give_error(error);
    if (failed || done == NULL)
        Py_CLEAR(idle);
    Py_XDECREF(done);
    return idle;
}

/* Do one job after the other until the pool drops the stack. */
PyObject *work(PyObject *module, PyObject *worker)
{
    for (;;) {
        PyObject *turns = PyObject_GetAttr(worker, s_job), *idle = NULL, *resumer = NULL, *came = NULL;
        if (turns == NULL || turns == Py_None)
            return turns;
        if (!is_switch(turns)) {
            Py_DECREF(turns);
            return PyObject_CallOneArg(py_work, worker);
        }
        idle = do_job(worker, turns);
        Py_DECREF(turns);
        int kept = FAILED;
        if (idle != NULL && (resumer = PyObject_GetAttr(worker, s_parent)) != NULL)
            kept = is_kept(worker, resumer, idle);
        if (kept == 1)
            came = PyList_Append(idle, worker) < 0 ? NULL : switch_to(resumer);
        Py_XDECREF(idle);
        Py_XDECREF(resumer);
        Py_XDECREF(came);
        if (kept != 1 || came == NULL)
            return kept == 0 ? new_ref(Py_None) : NULL;
    }
}

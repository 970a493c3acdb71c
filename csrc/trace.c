/* The beginning and the end of a trace: its call, its run, its taps. `Given.__call__` and `combined`, `Called._placed`,
   `Trace._begin`, `_leave_run` and `_close`, `Taps.install` and `remove`. */

#include "quick.h"

/* -- what is called ------------------------------------------------------------------------------------------------ */

/* Whether a class has a method that is the one of `Envoy`. */
static int is_own(PyObject *envoy, PyObject *name, PyObject *method)
{
    PyObject *found = PyObject_GetAttr((PyObject *)Py_TYPE(envoy), name);
    Py_XDECREF(found);
    return found == NULL ? FAILED : found == method;
}

/* The device of the first parameter of a tree's module, None where there is none; NULL, without an error, where Python
   must look. */
static PyObject *device_of(PyObject *tree)
{
    PyObject *place = PyObject_GetAttr(tree, s__parameter), *device = NULL, *parameter;
    if (place == Py_None) { /* none was found when the taps were made */
        device = PyObject_GetAttr(tree, s__taps);
        if (device == Py_None)
            Py_CLEAR(device);
        else if (device != NULL)
            Py_SETREF(device, new_ref(Py_None));
    } else if (place != NULL && PyTuple_CheckExact(place) && PyTuple_GET_SIZE(place) == 2 &&
               PyDict_Check(PyTuple_GET_ITEM(place, 0)) &&
               (parameter = PyDict_GetItemWithError(PyTuple_GET_ITEM(place, 0), PyTuple_GET_ITEM(place, 1))) != NULL &&
               parameter != Py_None)
        device = PyObject_GetAttr(parameter, s_device);
    Py_XDECREF(place);
    return device;
}

/* Whether a value is a tensor on a device, or nothing that has one. */
static int is_there(PyObject *value, PyObject *device)
{
    if (Py_TYPE(value) != Tensor)
        return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
               PyUnicode_CheckExact(value);
    PyObject *own = device == Py_None ? NULL : PyObject_GetAttr(value, s_device);
    int same = device == Py_None ? ORDINARY : own == NULL ? FAILED : equal(own, device);
    Py_XDECREF(own);
    return same;
}

/* Whether all arguments are where the model is. */
static int are_there(PyObject *envoy, PyObject *args, PyObject *kwargs)
{
    PyObject *tree = PyObject_GetAttr(envoy, s__tree), *device = tree == NULL ? NULL : device_of(tree), *key, *value;
    Py_ssize_t next = 0;
    int there = device == NULL ? (PyErr_Occurred() ? FAILED : OTHER) : ORDINARY;
    for (Py_ssize_t at = 0; there == ORDINARY && at < PyTuple_GET_SIZE(args); at++)
        there = is_there(PyTuple_GET_ITEM(args, at), device);
    while (there == ORDINARY && PyDict_Next(kwargs, &next, &key, &value))
        there = is_there(value, device);
    Py_XDECREF(tree);
    Py_XDECREF(device);
    return there;
}

/* A module's call, that takes no more arguments. */
static PyObject *bound_to(PyObject *envoy, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t size = PyTuple_GET_SIZE(args);
    PyObject *module = PyObject_GetAttr(envoy, s__module), *all = module == NULL ? NULL : PyTuple_New(size + 1), *call = NULL;
    if (all != NULL) {
        PyTuple_SET_ITEM(all, 0, new_ref(module));
        for (Py_ssize_t at = 0; at < size; at++)
            PyTuple_SET_ITEM(all, at + 1, new_ref(PyTuple_GET_ITEM(args, at)));
        call = PyObject_Call(py_partial, all, kwargs);
    }
    Py_XDECREF(module);
    Py_XDECREF(all);
    return call;
}

/* The call on prepared input. Ordinary: of the module itself, whose input is where it is. */
PyObject *called_placed(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    int plain = size == 3 && learned && Py_TYPE(args[0]) == Given && PEEK(args[0], Given, fn) == Py_None &&
                PyTuple_CheckExact(args[1]) && PyDict_CheckExact(args[2]);
    if (plain)
        plain = are_there(PEEK(args[0], Given, envoy), args[1], args[2]);
    if (plain == OTHER)
        return PyObject_Vectorcall(py_placed, args, size, NULL);
    return plain < 0 ? NULL : bound_to(PEEK(args[0], Given, envoy), args[1], args[2]);
}

/* Whether a trace runs the module itself on input that its class does not prepare, and whose weights are there. */
static int is_plain(PyObject *given)
{
    if (!learned || Py_TYPE(given) != Given || PEEK(given, Given, kwargs) == NULL || PEEK(given, Given, fn) != Py_None ||
        !PyTuple_CheckExact(PEEK(given, Given, args)) || !PyDict_CheckExact(PEEK(given, Given, kwargs)))
        return OTHER;
    PyObject *envoy = PEEK(given, Given, envoy), *tree = NULL, *loader = NULL;
    int plain = is_own(envoy, s__prepare_input, py_prepare_input);
    if (plain == ORDINARY) {
        if ((tree = PyObject_GetAttr(envoy, s__tree)) == NULL || (loader = PyObject_GetAttr(tree, s_loader)) == NULL)
            plain = FAILED;
        else
            plain = loader == Py_None;
    }
    Py_XDECREF(tree);
    Py_XDECREF(loader);
    return plain;
}

/* The call of a trace that has its input. */
PyObject *given_call(PyObject *module, PyObject *given)
{
    int plain = is_plain(given);
    if (plain == ORDINARY)
        plain = PyTuple_GET_SIZE(PEEK(given, Given, args)) || PyDict_GET_SIZE(PEEK(given, Given, kwargs));
    if (plain != ORDINARY)
        return plain < 0 ? NULL : PyObject_CallOneArg(py_given_call, given);
    PyObject *placed[] = {given, PEEK(given, Given, args), PEEK(given, Given, kwargs)};
    return called_placed(NULL, placed, 3);
}

/* The call on the inputs of several prompts, and the rows of each. */
PyObject *given_combined(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    int plain = size == 2 ? is_plain(args[0]) : OTHER;
    if (plain == ORDINARY)
        plain = !PyTuple_GET_SIZE(PEEK(args[0], Given, args)) && !PyDict_GET_SIZE(PEEK(args[0], Given, kwargs));
    if (plain == ORDINARY)
        plain = is_own(PEEK(args[0], Given, envoy), s__combine, py_combine);
    if (plain == ORDINARY)
        plain = is_own(PEEK(args[0], Given, envoy), s__copies, py_copies);
    if (plain != ORDINARY)
        return plain < 0 ? NULL : PyObject_Vectorcall(py_combined, args, size, NULL);
    PyObject *batch = concatenate(NULL, args[1]), *call = NULL, *both = NULL;
    if (batch != NULL && PyTuple_CheckExact(batch) && PyTuple_GET_SIZE(batch) == 3) {
        PyObject *placed[] = {args[0], PyTuple_GET_ITEM(batch, 0), PyTuple_GET_ITEM(batch, 1)};
        call = called_placed(NULL, placed, 3);
    } else if (batch != NULL)
        PyErr_SetString(PyExc_TypeError, "a batch is its arguments and its rows");
    if (call != NULL)
        both = PyTuple_Pack(2, call, PyTuple_GET_ITEM(batch, 2));
    Py_XDECREF(batch);
    Py_XDECREF(call);
    return both;
}

/* -- its taps ------------------------------------------------------------------------------------------------------ */

/* Whether they are taps, made to the end. */
static int are_taps(PyObject *taps)
{
    return learned && Py_TYPE(taps) == Taps && PEEK(taps, Taps, replaced) != NULL && PySet_CheckExact(PEEK(taps, Taps, users));
}

/* What a method of an object without arguments returns, let go of. */
static int tell(PyObject *object, PyObject *name)
{
    PyObject *done = PyObject_CallMethodNoArgs(object, name);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Let go of the lock, whatever error is under way. */
static int unlock(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (tell(py_lock, s_release) == 0) {
        PyErr_Restore(type, value, traceback);
        return type == NULL ? 0 : FAILED;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return FAILED;
}

/* Put the taps in place for a user, unless they are. */
static int install(PyObject *taps, PyObject *user)
{
    if (PySet_Add(PEEK(taps, Taps, users), user) < 0)
        return FAILED;
    if (PEEK(taps, Taps, placed) == Py_True)
        return 0;
    PyObject *placed[] = {PEEK(taps, Taps, slots), py_SLOT, PEEK(taps, Taps, calls)}, *found = place(NULL, placed, 3), *done;
    if (found != NULL && found != Py_None) { /* something stood there */
        done = PyObject_CallMethodOneArg(taps, s__share, found);
        Py_SETREF(found, done);
    }
    if (found != NULL)
        PUT(taps, Taps, placed, new_ref(Py_True));
    Py_XDECREF(found);
    return found == NULL ? FAILED : 0;
}

PyObject *taps_install(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 2 || !are_taps(args[0]))
        return PyObject_Vectorcall(py_install, args, size, NULL);
    PyObject *user = PyLong_FromVoidPtr(args[1]);
    int failed = user == NULL || tell(py_lock, s_acquire) < 0;
    if (!failed) {
        install(args[0], user);
        failed = unlock() < 0;
    }
    Py_XDECREF(user);
    return failed ? NULL : new_ref(Py_None);
}

/* Take the taps away when their last user has gone. OTHER where they must give back what stood there before. */
static int remove_taps(PyObject *taps, PyObject *user)
{
    PyObject *users = PEEK(taps, Taps, users), *done;
    int known = PySet_Contains(users, user);
    if (known != 1)
        return known < 0 ? FAILED : ORDINARY;
    if (PySet_GET_SIZE(users) > 1)
        return PySet_Discard(users, user) < 0 ? FAILED : ORDINARY;
    if (PyObject_IsTrue(PEEK(taps, Taps, replaced)) || PyObject_IsTrue(PEEK(taps, Taps, lenders)))
        return PyErr_Occurred() ? FAILED : OTHER;
    PyObject *displaced[] = {PEEK(taps, Taps, slots), py_SLOT, PEEK(taps, Taps, calls)};
    if ((done = PyObject_CallOneArg(PEEK(taps, Taps, serve), py_idle)) != NULL)
        Py_SETREF(done, displace(NULL, displaced, 3));
    if (done == NULL)
        return FAILED;
    Py_DECREF(done);
    PUT(taps, Taps, placed, new_ref(Py_False));
    return PySet_Clear(users) < 0 ? FAILED : ORDINARY;
}

PyObject *taps_remove(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *user = NULL;
    int plain = size == 2 && are_taps(args[0]);
    if (plain && ((user = PyLong_FromVoidPtr(args[1])) == NULL || tell(py_lock, s_acquire) < 0))
        plain = FAILED;
    else if (plain) {
        plain = remove_taps(args[0], user);
        if (unlock() < 0)
            plain = FAILED;
    }
    Py_XDECREF(user);
    if (plain == OTHER)
        return PyObject_Vectorcall(py_remove, args, size, NULL);
    return plain < 0 ? NULL : new_ref(Py_None);
}

/* -- its run ------------------------------------------------------------------------------------------------------- */

/* Whether an attribute of an object is a list that is empty. */
static int is_empty(PyObject *object, PyObject *name)
{
    PyObject *list = PyObject_GetAttr(object, name);
    int empty = list == NULL ? FAILED : PyList_CheckExact(list) && PyList_GET_SIZE(list) == 0;
    Py_XDECREF(list);
    return empty;
}

static int set_none(PyObject *object, PyObject *const *names, size_t many)
{
    int failed = 0;
    for (size_t at = 0; !failed && at < many; at++)
        failed = PyObject_SetAttr(object, names[at], Py_None);
    return failed;
}

/* Let taps report to a run. */
static int serve_run(PyObject *taps, PyObject *run)
{
    PyObject *done = PyObject_CallOneArg(PEEK(taps, Taps, serve), PEEK(run, Run, tally)), *changes = NULL;
    if (done != NULL && hold(run, Run_known, PyObject_GetAttr(taps, s_keys)) == 0 &&
        (changes = PyObject_CallOneArg(py_Changes, taps)) != NULL)
        hold(run, Run_changes, PyObject_GetAttr(changes, s_enter));
    Py_XDECREF(done);
    Py_XDECREF(changes);
    return PyErr_Occurred() ? FAILED : 0;
}

/* The run of a call, with blocks served if there are any. */
static PyObject *new_run(PyObject *trace, PyObject *call, PyObject *blocks)
{
    PyObject *run = NULL, *runs = NULL, *workers = NULL;
    if (blocks == NULL || PySequence_Size(blocks) == 0) {
        if ((runs = PyObject_GetAttr(trace, s__runs)) != NULL)
            run = PyObject_CallOneArg(runs, call);
    } else if ((workers = PySequence_List(blocks)) != NULL &&
               (runs = PyObject_CallOneArg((PyObject *)Schedule, workers)) != NULL)
        run = PyObject_CallMethodOneArg(runs, s_around, call);
    Py_XDECREF(runs);
    Py_XDECREF(workers);
    return run;
}

/* Make the run of a call. Ordinary: no edits are stored, and nothing was prepared for it. */
PyObject *trace_begin(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *trace = size ? args[0] : NULL, *tree = NULL, *taps = NULL, *run = NULL;
    int plain = (size == 2 || size == 3) && learned ? is_empty(trace, s__breaks) : OTHER;
    if (plain == ORDINARY)
        plain = is_empty(trace, s__caches);
    if (plain == ORDINARY)
        plain = (tree = PyObject_GetAttr(trace, s__tree)) == NULL ? FAILED : is_empty(tree, s_edits);
    if (plain == ORDINARY)
        plain = (taps = PyObject_GetAttr(trace, s__taps)) == NULL ? FAILED : taps == Py_None || are_taps(taps);
    Py_XDECREF(tree);
    if (plain == OTHER) {
        Py_XDECREF(taps);
        return PyObject_Vectorcall(py_begin, args, size, NULL);
    }
    if (plain == ORDINARY && (run = new_run(trace, args[1], size == 3 ? args[2] : NULL)) != NULL) {
        if (!PyObject_TypeCheck(run, Run)) {
            PyErr_SetString(PyExc_TypeError, "a trace begins a run");
            Py_CLEAR(run);
        } else if (PyObject_SetAttr(trace, s__run, run) < 0 || PyObject_SetAttr(trace, s__steps, Py_None) < 0 ||
                   (taps != Py_None && serve_run(taps, run) < 0))
            Py_CLEAR(run);
    }
    Py_XDECREF(taps);
    return run;
}

/* -- and the end --------------------------------------------------------------------------------------------------- */

/* No more requests are served, and the taps are gone. */
static int close_taps(PyObject *trace, PyObject *trees, PyObject *taps)
{
    PyObject *owner = PyObject_GetAttr(trace, s__owner), *done = NULL;
    int failed = owner == NULL;
    for (Py_ssize_t at = 0; !failed && at < PyTuple_GET_SIZE(trees); at++) {
        PyObject *closed[] = {PyTuple_GET_ITEM(trees, at), owner, trace};
        done = tree_closed(NULL, closed, 3);
        failed = done == NULL;
        Py_XDECREF(done);
    }
    if (!failed) {
        PyObject *removed[] = {taps, trace};
        done = taps_remove(NULL, removed, 2);
        failed = done == NULL;
        Py_XDECREF(done);
    }
    Py_XDECREF(owner);
    return failed ? FAILED : 0;
}

/* What was read with gradients can be asked for in a backward. */
static int remember_reads(PyObject *trace, PyObject *run)
{
    PyObject *reads = PyObject_GetAttr(run, s_reads), *tree = NULL, *done = NULL;
    int any = reads == NULL ? FAILED : PyObject_IsTrue(reads);
    if (any == 1 && (tree = PyObject_GetAttr(trace, s__tree)) != NULL)
        done = PyObject_CallMethodOneArg(tree, s_remember, reads);
    Py_XDECREF(reads);
    Py_XDECREF(tree);
    Py_XDECREF(done);
    return any == 0 ? 0 : done == NULL ? FAILED : 0;
}

/* Undo what entering did. Ordinary: no other taps were placed, and nothing was taken out of torch's fused paths. */
PyObject *trace_close(PyObject *module, PyObject *trace)
{
    PyObject *taps = learned ? PyObject_GetAttr(trace, s__taps) : NULL, *run = NULL, *unfused = NULL, *trees = NULL;
    PyObject *names[] = {s__run, s__steps, s__prepare, s__taps};
    int plain = taps == Py_None ? ORDINARY : taps != NULL && are_taps(taps) ? is_empty(trace, s__strays) : OTHER;
    if (taps == Py_None || taps == NULL || plain != ORDINARY)
        goto over;
    if ((unfused = PyObject_GetAttr(trace, s__unfused)) == NULL || (trees = PyObject_GetAttr(trace, s__trees)) == NULL)
        plain = FAILED;
    else
        plain = PyDict_CheckExact(unfused) && !PyDict_GET_SIZE(unfused) && PyTuple_CheckExact(trees);
    if (plain == ORDINARY)
        plain = is_empty(trace, s__breaks);
    if (plain != ORDINARY)
        goto over;
    if (close_taps(trace, trees, taps) < 0 || (run = PyObject_GetAttr(trace, s__run)) == NULL)
        plain = FAILED;
    else if (run != Py_None && (PyObject_SetAttr(run, s_failed, Py_None) < 0 || remember_reads(trace, run) < 0))
        plain = FAILED; /* the traceback of what failed holds the run */
    else if (set_none(trace, names, sizeof names / sizeof *names) < 0)
        plain = FAILED;
over:
    if (plain == OTHER && PyErr_Occurred())
        PyErr_Clear();
    Py_XDECREF(taps);
    Py_XDECREF(run);
    Py_XDECREF(unfused);
    Py_XDECREF(trees);
    if (plain == OTHER)
        return PyObject_CallOneArg(py_close, trace);
    return plain < 0 ? NULL : new_ref(Py_None);
}

/* Whether a run is over as most are: the model has returned, and nothing is left to be undone or raised. */
static int is_over(PyObject *run)
{
    PyObject *turns = is_run(run) ? PEEK(run, Run, switch) : NULL;
    return turns != NULL && Py_TYPE(turns) == Switch && PEEK(turns, Switch, done) == Py_True &&
           PEEK(run, Run, failed) == Py_None && PEEK(run, Run, stopped) == Py_False &&
           PEEK(run, Run, schedule) == Py_None && !PyList_GET_SIZE(PEEK(run, Run, at_end)) &&
           (Py_TYPE(run) != Served || PEEK(run, Served, raised) == Py_None);
}

/* Keep what the run has given, and close what stood over it. Ordinary: without an error. */
PyObject *trace_leave_run(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *trace = size == 2 && learned && args[1] == Py_None ? args[0] : NULL, *prompts = NULL, *done = NULL;
    PyObject *run = trace == NULL ? NULL : PyObject_GetAttr(trace, s__run);
    int plain = run != NULL && is_over(run) ? is_empty(trace, s__caches) : OTHER;
    if (plain == OTHER) {
        PyErr_Clear();
        Py_XDECREF(run);
        return PyObject_Vectorcall(py_leave_run, args, size, NULL);
    }
    if (plain < 0 || PyObject_SetAttr(trace, s__result, PEEK(PEEK(run, Run, switch), Switch, result)) < 0 ||
        PyObject_SetAttr(trace, s__no_result, Py_None) < 0 || (done = PyObject_CallMethodNoArgs(trace, s__close)) == NULL)
        goto over;
    if ((prompts = PyObject_GetAttr(trace, s__prompts)) == NULL)
        Py_CLEAR(done);
    else if (prompts != Py_None)
        Py_SETREF(done, PyObject_CallMethodNoArgs(trace, s__close_prompts));
over:
    Py_XDECREF(run);
    Py_XDECREF(prompts);
    Py_XDECREF(done);
    return done == NULL ? NULL : new_ref(Py_None);
}

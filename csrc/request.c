/* The block's side: `Trace._visit`, and the output, input and items of an envoy. */

#include "quick.h"

/* The visit that a request means now, which depends on the step that a loop is in. */
static PyObject *number_now(PyObject *trace, PyObject *site, PyObject *port)
{
    PyObject *steps = PyObject_GetAttr(trace, s__steps), *request[] = {steps, site, port}, *number = NULL;
    if (steps != NULL)
        number = steps == Py_None ? new_ref(zero) : steps_number(NULL, request, 3);
    Py_XDECREF(steps);
    return number;
}

/* Let the error that is under way say more of why a site was not reached, where more is known. */
static void explain(PyObject *trace, PyObject *site)
{
    if (!PyErr_ExceptionMatches(py_NotReached))
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject *done = PyObject_CallMethodObjArgs(trace, s__unreached, value, site, NULL);
    if (done != NULL)
        PyErr_Restore(type, value, traceback);
    else {
        PyObject *error = take_error();
        PyException_SetContext(error, value);
        give_error(error);
        Py_XDECREF(type);
        Py_XDECREF(traceback);
    }
    Py_XDECREF(done);
}

/* A visit that has passed, where a backward can still name it; else the error that is under way, or one that says
   more. */
static int recall(PyObject *trace, PyObject *site, PyObject *port, PyObject *number, PyObject **found)
{
    PyObject *type, *value, *traceback, *tree, *frame = (PyObject *)PyEval_GetFrame();
    PyErr_Fetch(&type, &value, &traceback);
    tree = PyObject_GetAttr(trace, s__tree);
    *found = tree == NULL ? NULL
                          : PyObject_CallMethodObjArgs(
                                tree, s_recalled, frame == NULL ? Py_None : frame, site, port, number, NULL);
    Py_XDECREF(tree);
    if (*found == Py_None) {
        Py_CLEAR(*found);
        PyErr_Restore(type, value, traceback);
        return FAILED;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return *found == NULL ? FAILED : ORDINARY;
}

/* The visit that a request made now means. Ordinary: its run, or that of a block of several, has begun. */
static int visit_of(PyObject *envoy, PyObject *port, PyObject **found)
{
    PyObject *trace = NULL, *run = NULL, *visits = NULL, *number = NULL;
    PyObject *own = PyObject_GenericGetDict(envoy, NULL), *tree = NULL, *fused = NULL, *site = NULL;
    int plain = own == NULL ? FAILED : OTHER;
    if (own == NULL || (tree = PyDict_GetItemWithError(own, s__tree)) == NULL ||
        (fused = PyDict_GetItemWithError(own, s__fused)) != Py_False ||
        (site = PyDict_GetItemWithError(own, s__site)) == NULL) {
        plain = PyErr_Occurred() ? FAILED : OTHER;
        tree = site = NULL;
        goto over;
    }
    Py_INCREF(tree);
    Py_INCREF(site);
    plain = find_trace(tree, &trace);
    if (plain != ORDINARY)
        goto over;
    plain = FAILED;
    if ((visits = PyObject_GetAttr((PyObject *)Py_TYPE(trace), s__visit)) == NULL ||
        (run = PyObject_GetAttr(trace, s__run)) == NULL)
        goto over;
    int block = PyObject_TypeCheck(run, Worker); /* one of several */
    if (visits != py_visit || !is_site(site) || !(block || is_run(run))) {
        plain = OTHER;
        goto over;
    }
    if ((number = number_now(trace, site, port)) == NULL)
        goto over;
    if (block) {
        plain = block_ask(run, site, port, number, found);
        if (plain == OTHER) {
            *found = PyObject_CallMethodObjArgs(run, s_ask, site, port, number, NULL);
            plain = *found != NULL ? ORDINARY : FAILED;
        }
    } else
        plain = ask(run, site, port, number, found);
    if (plain < 0 && PyErr_ExceptionMatches(py_OrderError)) {
        plain = recall(trace, site, port, number, found);
        goto over;
    }
    if (plain < 0)
        explain(trace, site);
    if (plain == ORDINARY && port == s_input) {
        PyObject *side = PyObject_GetAttr(*found, s_port), *reads = NULL, *done = side;
        if (side == s_output) {
            reads = PyObject_GetAttr(run, s_reads);
            done = reads == NULL ? NULL : PyObject_CallFunctionObjArgs(py_remember, reads, *found, port, NULL);
            Py_DECREF(side);
        }
        Py_XDECREF(reads);
        Py_XDECREF(done);
        if (done == NULL) {
            Py_CLEAR(*found);
            plain = FAILED;
        }
    }
over:
    Py_XDECREF(number);
    Py_XDECREF(trace);
    Py_XDECREF(run);
    Py_XDECREF(visits);
    Py_XDECREF(tree);
    Py_XDECREF(site);
    Py_XDECREF(own);
    return plain;
}

/* What an output is, as the block has it. */
static PyObject *result_of(PyObject *visit)
{
    if (Py_TYPE(visit) == Visit)
        return new_ref(PEEK(visit, Visit, result));
    return are_rows(visit) ? rows_read(visit) : PyObject_GetAttr(visit, s_result);
}

PyObject *get_output(PyObject *module, PyObject *envoy)
{
    PyObject *visit = NULL, *given = NULL;
    int plain = visit_of(envoy, s_output, &visit);
    if (plain == OTHER)
        return PyObject_CallOneArg(py_get_output, envoy);
    if (plain == ORDINARY)
        given = result_of(visit);
    Py_XDECREF(visit);
    return given;
}

PyObject *get_input(PyObject *module, PyObject *envoy)
{
    PyObject *visit = NULL, *given = NULL;
    int plain = visit_of(envoy, s_input, &visit);
    if (plain == ORDINARY) {
        PyObject *args = PyObject_GetAttr(visit, s_args);
        if (args != NULL && PyTuple_CheckExact(args) && PyTuple_GET_SIZE(args))
            given = new_ref(PyTuple_GET_ITEM(args, 0));
        else if (args != NULL)
            plain = OTHER;
        Py_XDECREF(args);
    }
    Py_XDECREF(visit);
    return plain == OTHER ? PyObject_CallOneArg(py_get_input, envoy) : given;
}

/* Whether an attribute of two tensors is the same. */
int agree(PyObject *one, PyObject *other, PyObject *name)
{
    PyObject *first = PyObject_GetAttr(one, name), *second = first == NULL ? NULL : PyObject_GetAttr(other, name);
    int same = second == NULL ? FAILED : equal(first, second);
    Py_XDECREF(first);
    Py_XDECREF(second);
    return same;
}

/* Whether what is written is checked. */
static int is_checked(void)
{
    PyObject *checks = PyObject_GetAttr(py_config, s_checks);
    Py_XDECREF(checks);
    return checks == NULL ? FAILED : checks != Py_False;
}

/* What the model goes on with where `old` stood. Ordinary: a tensor, like the one that stood there where writes are
   checked; `writes.replace` says the rest. */
static PyObject *replacement(PyObject *envoy, PyObject *old, PyObject *value, int checked)
{
    int alike = Py_TYPE(value) == Tensor && (!checked || Py_TYPE(old) == Tensor);
    PyObject *each[] = {s_shape, s_dtype, s_device};
    for (size_t at = 0; checked && alike == 1 && at < sizeof each / sizeof *each; at++)
        alike = agree(value, old, each[at]);
    if (alike)
        return alike < 0 ? NULL : new_ref(value);
    PyObject *path = PyObject_GetAttr(envoy, s__path), *new = NULL;
    if (path != NULL)
        new = PyObject_CallFunctionObjArgs(py_replace, old, value, path, result_suffix, NULL);
    Py_XDECREF(path);
    return new;
}

/* Let the model go on with a value where an output stands. */
static int write_result(PyObject *envoy, PyObject *visit, PyObject *value)
{
    int checked = is_checked(), rows = are_rows(visit);
    int plain = checked < 0 ? FAILED : rows ? rows_replace(visit, value, checked) : OTHER;
    if (plain != OTHER)
        return plain < 0 ? FAILED : 0;
    PyObject *old = result_of(visit), *new = old == NULL ? NULL : replacement(envoy, old, value, checked);
    int failed = new == NULL ? FAILED : 0;
    if (new != NULL && Py_TYPE(visit) == Visit)
        PUT(visit, Visit, result, new_ref(new));
    else if (new != NULL)
        failed = rows ? rows_put(visit, new) : PyObject_SetAttr(visit, s_result, new);
    Py_XDECREF(old);
    Py_XDECREF(new);
    return failed;
}

PyObject *set_output(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *visit = NULL;
    if (size != 2) {
        PyErr_SetString(PyExc_TypeError, "an envoy and a value are wanted");
        return NULL;
    }
    int plain = visit_of(args[0], s_output, &visit);
    if (plain == OTHER)
        return PyObject_Vectorcall(py_set_output, args, 2, NULL);
    int failed = plain < 0 ? FAILED : write_result(args[0], visit, args[1]);
    Py_XDECREF(visit);
    return failed ? NULL : new_ref(Py_None);
}

/* The envoy of a module that is now what a list has at a place; NULL, without an error, where it is not made yet. */
static PyObject *made_at(PyObject *envoy, PyObject *name)
{
    PyObject *module = PyObject_GetAttr(envoy, s__module), *children = NULL, *child, *held = NULL, *made = NULL, *its;
    int lists = module == NULL ? FAILED : PySet_Contains(py_LISTS, (PyObject *)Py_TYPE(module));
    if (lists == 1 && (children = PyObject_GetAttr(module, s__modules)) != NULL && PyDict_Check(children) &&
        (child = PyDict_GetItemWithError(children, name)) != NULL &&
        (held = PyObject_GenericGetDict(envoy, NULL)) != NULL &&
        (made = PyDict_GetItemWithError(held, name)) != NULL) {
        Py_INCREF(made);
        if ((its = PyObject_GetAttr(made, s__module)) != child)
            Py_CLEAR(made);
        Py_XDECREF(its);
    }
    Py_XDECREF(module);
    Py_XDECREF(children);
    Py_XDECREF(held);
    return made;
}

/* Ordinary: a module of a list, by its number, whose envoy is made. */
PyObject *get_item(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size == 2 && PyLong_CheckExact(args[1])) {
        PyObject *name = PyObject_Str(args[1]), *made = name == NULL ? NULL : made_at(args[0], name);
        Py_XDECREF(name);
        if (made != NULL || PyErr_Occurred())
            return made;
    }
    return PyObject_Vectorcall(py_get_item, args, size, NULL);
}

/* Ordinary: the output of an envoy whose class hides nothing. */
PyObject *set_attr(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size == 3 && args[1] == s_output) {
        PyObject *own = PyObject_GetAttr((PyObject *)Py_TYPE(args[0]), s_output);
        Py_XDECREF(own);
        if (own == NULL)
            return NULL;
        if (own == py_property) {
            PyObject *pair[] = {args[0], args[2]};
            return set_output(module, pair, 2);
        }
    }
    return PyObject_Vectorcall(py_set_attr, args, size, NULL);
}

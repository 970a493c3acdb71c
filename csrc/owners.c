/* The frame that a trace belongs to, and the trace that is open there: `frames.owner`, `Tree.opened`, `closed`, `trace_at`. */

#include "quick.h"

#define PARKED (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR)

/* Whether a reader sees the `with` in this frame itself: 1, 0, or -1 with an error. */
static int stands_in(PyFrameObject *frame, PyCodeObject *code)
{
    int is = equal(code->co_filename, py_contextlib);
    if (!is)
        is = PySet_Contains(py_enters, code->co_name);
    PyFrameObject *back = is || !(code->co_flags & PARKED) ? NULL : PyFrame_GetBack(frame);
    if (back != NULL) {
        PyCodeObject *drives = PyFrame_GetCode(back);
        is = equal(drives->co_filename, py_contextlib);
        Py_DECREF(drives);
        Py_DECREF(back);
    }
    return is < 0 ? FAILED : !is;
}

/* The owner of what belongs to a frame. */
PyObject *new_owner(PyObject *frame)
{
    PyObject *key = PyLong_FromVoidPtr(frame), *owner = key == NULL ? NULL : PyType_GenericAlloc(Owner, 0);
    if (owner != NULL) {
        PUT(owner, Owner, key, new_ref(key));
        PUT(owner, Owner, code, (PyObject *)PyFrame_GetCode((PyFrameObject *)frame));
    }
    Py_XDECREF(key);
    return owner;
}

/* The owner of a trace that is entered from a frame. Ordinary: it is that frame. */
PyObject *frame_owner(PyObject *module, PyObject *frame)
{
    if (!learned || !PyFrame_Check(frame))
        return PyObject_CallOneArg(py_owner, frame);
    PyCodeObject *code = PyFrame_GetCode((PyFrameObject *)frame);
    int plain = stands_in((PyFrameObject *)frame, code);
    Py_DECREF(code);
    return plain < 0 ? NULL : plain == OTHER ? PyObject_CallOneArg(py_owner, frame) : new_owner(frame);
}

/* The open traces of a tree, and the key of an owner's among them; NULL where these are not what they should be. */
static PyObject *open_at(PyObject *const *args, Py_ssize_t size, PyObject **key)
{
    if (size != 3 || !learned || Py_TYPE(args[1]) != Owner || (*key = PEEK(args[1], Owner, key)) == NULL)
        return NULL;
    PyObject *open = PyObject_GetAttr(args[0], s__open);
    if (open != NULL && !PyDict_CheckExact(open))
        Py_CLEAR(open);
    return open;
}

/* A trace begins to serve the requests of its owner's frame. */
PyObject *tree_opened(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *key, *open = open_at(args, size, &key), *before, *weak = NULL, *opened = NULL;
    if (open == NULL)
        return PyErr_Occurred() ? NULL : PyObject_Vectorcall(py_opened, args, size, NULL);
    before = PyDict_GetItemWithError(open, key);
    if ((before != NULL || !PyErr_Occurred()) && (weak = PyWeakref_NewRef(args[2], NULL)) != NULL &&
        (opened = PyType_GenericAlloc(Opened, 0)) != NULL) {
        PUT(opened, Opened, code, new_ref(PEEK(args[1], Owner, code)));
        PUT(opened, Opened, trace, new_ref(weak));
        PUT(opened, Opened, before, new_ref(before == NULL ? Py_None : before));
        if (PyDict_SetItem(open, key, opened) < 0)
            Py_CLEAR(opened);
    }
    Py_DECREF(open);
    Py_XDECREF(weak);
    Py_XDECREF(opened);
    return opened == NULL ? NULL : new_ref(Py_None);
}

/* What a weak reference leads to; NULL, without an error, where that is gone. */
static PyObject *deref(PyObject *weak)
{
    PyObject *found = PyObject_CallNoArgs(weak);
    if (found == Py_None)
        Py_CLEAR(found);
    return found;
}

/* A trace serves no more requests. Ordinary: no other is open in the same frame. */
PyObject *tree_closed(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *key, *open = open_at(args, size, &key), *opened = NULL, *there = NULL;
    int plain = open == NULL ? OTHER : ORDINARY;
    if (open != NULL && (opened = PyDict_GetItemWithError(open, key)) != NULL) {
        plain = Py_TYPE(opened) == Opened && PEEK(opened, Opened, before) == Py_None;
        there = plain ? deref(PEEK(opened, Opened, trace)) : NULL;
        plain = plain && (there == NULL || there == args[2]);
        Py_XDECREF(there);
    }
    if (PyErr_Occurred() || (plain && opened != NULL && PyDict_DelItem(open, key) < 0))
        plain = FAILED;
    Py_XDECREF(open);
    if (plain == OTHER)
        return PyObject_Vectorcall(py_closed, args, size, NULL);
    return plain < 0 ? NULL : new_ref(Py_None);
}

/* Ordinary: a frame outward from the asker's has a trace open, and no operator written in Python stands between. */
int find_trace(PyObject *tree, PyObject **trace)
{
    PyObject *open = PyObject_GetAttr(tree, s__open);
    if (open == NULL)
        return FAILED;
    int found = OTHER;
    PyFrameObject *frame = PyDict_CheckExact(open) && PyDict_GET_SIZE(open) ? PyEval_GetFrame() : NULL;
    Py_XINCREF(frame);
    while (frame != NULL && found == OTHER) {
        PyObject *code = (PyObject *)PyFrame_GetCode(frame), *id = PyLong_FromVoidPtr(frame), *opened = NULL;
        if (id == NULL || ((opened = PyDict_GetItemWithError(open, id)) == NULL && PyErr_Occurred()))
            found = FAILED;
        for (; found == OTHER && opened != NULL && Py_TYPE(opened) == Opened; opened = PEEK(opened, Opened, before)) {
            if (PEEK(opened, Opened, code) != code)
                continue;
            if ((*trace = deref(PEEK(opened, Opened, trace))) != NULL)
                found = ORDINARY;
            else if (PyErr_Occurred())
                found = FAILED;
        }
        int inside = found == OTHER ? PySet_Contains(py_operators, ((PyCodeObject *)code)->co_filename) : 0;
        Py_XDECREF(id);
        Py_DECREF(code);
        if (inside) {
            found = inside < 0 ? FAILED : OTHER;
            break;
        }
        if (found == OTHER)
            Py_SETREF(frame, PyFrame_GetBack(frame));
    }
    Py_XDECREF(frame);
    Py_DECREF(open);
    return found;
}

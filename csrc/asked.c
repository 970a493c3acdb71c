/* The sites at which a tap must report: what `Tally.before` and `after` are sets for in Python. */

#include "quick.h"

typedef struct {
    PyObject_HEAD
    PyObject *keys, *places; /* of the line whose sites have a mark; NULL until it is known */
    char *marks; /* for each key of it */
    PyObject *others; /* a set: what the line does not know; NULL where there is none */
} Asked;

static int Asked_traverse(Asked *self, visitproc visit, void *arg)
{
    Py_VISIT(self->keys);
    Py_VISIT(self->places);
    Py_VISIT(self->others);
    return 0;
}

static int Asked_clear(Asked *self)
{
    Py_CLEAR(self->keys);
    Py_CLEAR(self->places);
    Py_CLEAR(self->others);
    PyMem_Free(self->marks);
    self->marks = NULL;
    return 0;
}

static void Asked_dealloc(Asked *self)
{
    PyObject_GC_UnTrack(self);
    Asked_clear(self);
    Py_TYPE(self)->tp_free(self);
}

/* The mark of a site; NULL where the line does not know it, or with an error. */
static char *mark_of(Asked *self, PyObject *key)
{
    PyObject *place = self->places == NULL ? NULL : PyDict_GetItemWithError(self->places, key);
    return place == NULL ? NULL : self->marks + PyLong_AsSsize_t(place);
}

static int add(Asked *self, PyObject *key)
{
    char *mark = mark_of(self, key);
    if (mark != NULL)
        *mark = 1;
    else if (PyErr_Occurred() || (self->others == NULL && (self->others = PySet_New(NULL)) == NULL))
        return FAILED;
    return mark != NULL ? 0 : PySet_Add(self->others, key);
}

static int discard(Asked *self, PyObject *key)
{
    char *mark = mark_of(self, key);
    if (mark != NULL)
        *mark = 0;
    else if (PyErr_Occurred() || (self->others != NULL && PySet_Discard(self->others, key) < 0))
        return FAILED;
    return 0;
}

static int Asked_contains(Asked *self, PyObject *key)
{
    char *mark = mark_of(self, key);
    if (mark != NULL)
        return *mark;
    return PyErr_Occurred() ? FAILED : self->others == NULL ? 0 : PySet_Contains(self->others, key);
}

static int update(Asked *self, PyObject *keys)
{
    PyObject *each = keys == NULL ? NULL : PyObject_GetIter(keys), *key;
    while (each != NULL && (key = PyIter_Next(each)) != NULL) {
        add(self, key);
        Py_DECREF(key);
        if (PyErr_Occurred())
            break;
    }
    Py_XDECREF(each);
    return PyErr_Occurred() ? FAILED : 0;
}

static PyObject *Asked_add(Asked *self, PyObject *key) { return add(self, key) < 0 ? NULL : new_ref(Py_None); }

static PyObject *Asked_discard(Asked *self, PyObject *key) { return discard(self, key) < 0 ? NULL : new_ref(Py_None); }

static PyObject *Asked_update(Asked *self, PyObject *keys) { return update(self, keys) < 0 ? NULL : new_ref(Py_None); }

/* These and other sites. */
static PyObject *Asked_or(PyObject *one, PyObject *other)
{
    PyObject *both = Py_TYPE(one) == &AskedType ? copy_of_asked(one) : NULL;
    if (both == NULL)
        return PyErr_Occurred() ? NULL : new_ref(Py_NotImplemented);
    if (update((Asked *)both, other) < 0)
        Py_CLEAR(both);
    return both;
}

static PyMethodDef Asked_methods[] = {
    {"add", (PyCFunction)Asked_add, METH_O, "Have a site report."},
    {"discard", (PyCFunction)Asked_discard, METH_O, "Have a site report no more."},
    {"update", (PyCFunction)Asked_update, METH_O, "Have sites report."},
    {NULL},
};

static PySequenceMethods Asked_sequence = {.sq_contains = (objobjproc)Asked_contains};

static PyNumberMethods Asked_number = {.nb_or = Asked_or};

PyTypeObject AskedType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "interlace._quick.Asked",
    .tp_doc = "The sites at which a tap must report.",
    .tp_basicsize = sizeof(Asked),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = (destructor)Asked_dealloc,
    .tp_traverse = (traverseproc)Asked_traverse,
    .tp_clear = (inquiry)Asked_clear,
    .tp_methods = Asked_methods,
    .tp_as_sequence = &Asked_sequence,
    .tp_as_number = &Asked_number,
};

PyObject *new_asked(void) { return PyType_GenericAlloc(&AskedType, 0); }

/* Say which line's sites will mostly be asked for. What is no such set stays as it is. */
int ask_line(PyObject *asked, PyObject *keys, PyObject *places)
{
    Asked *self = (Asked *)asked;
    if (Py_TYPE(asked) != &AskedType || self->keys != NULL)
        return 0;
    char *marks = PyMem_Calloc(PyTuple_GET_SIZE(keys) + 1, 1);
    if (marks == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    PyObject *before = self->others;
    self->others = NULL;
    self->marks = marks;
    self->keys = new_ref(keys);
    self->places = new_ref(places);
    int failed = before != NULL && update(self, before) < 0;
    Py_XDECREF(before);
    return failed ? FAILED : 0;
}

PyObject *copy_of_asked(PyObject *asked)
{
    Asked *self = (Asked *)asked;
    PyObject *copy = new_asked();
    if (copy == NULL || (self->keys != NULL && ask_line(copy, self->keys, self->places) < 0) ||
        (self->others != NULL && update((Asked *)copy, self->others) < 0)) {
        Py_XDECREF(copy);
        return NULL;
    }
    if (self->marks != NULL)
        memcpy(((Asked *)copy)->marks, self->marks, PyTuple_GET_SIZE(self->keys));
    return copy;
}

/* The marks of the sites of a line; NULL where they are of another, or none is known. */
char *marks_of(PyObject *asked, PyObject *keys)
{
    return Py_TYPE(asked) == &AskedType && ((Asked *)asked)->keys == keys ? ((Asked *)asked)->marks : NULL;
}

/* Whether a site must report. Ordinary: `at` is its place in the line whose sites have marks. */
int is_asked(PyObject *asked, PyObject *key, PyObject *places, Py_ssize_t at)
{
    if (Py_TYPE(asked) != &AskedType)
        return contains(asked, key);
    return ((Asked *)asked)->places == places && places != NULL ? ((Asked *)asked)->marks[at]
                                                                : Asked_contains((Asked *)asked, key);
}

int add_asked(PyObject *asked, PyObject *key)
{
    return Py_TYPE(asked) == &AskedType ? add((Asked *)asked, key) : PySet_Add(asked, key);
}

int discard_asked(PyObject *asked, PyObject *key)
{
    return Py_TYPE(asked) == &AskedType ? discard((Asked *)asked, key) : PySet_Discard(asked, key);
}

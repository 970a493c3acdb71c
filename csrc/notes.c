/* How often each site was passed since that was last counted: what `Tally.entered` and `left` are lists for in Python. */

#include "quick.h"

typedef struct {
    PyObject_HEAD
    PyObject *keys, *places; /* of the line that these notes are for; NULL until it is known */
    Py_ssize_t *times; /* for each key of it */
    PyObject *others; /* a dictionary: how often what the line does not know was passed; NULL where there is none */
} Notes;

static int Notes_traverse(Notes *self, visitproc visit, void *arg)
{
    Py_VISIT(self->keys);
    Py_VISIT(self->places);
    Py_VISIT(self->others);
    return 0;
}

static int Notes_clear(Notes *self)
{
    Py_CLEAR(self->keys);
    Py_CLEAR(self->places);
    Py_CLEAR(self->others);
    PyMem_Free(self->times);
    self->times = NULL;
    return 0;
}

static void Notes_dealloc(Notes *self)
{
    PyObject_GC_UnTrack(self);
    Notes_clear(self);
    Py_TYPE(self)->tp_free(self);
}

/* Add to the number that a dictionary has under a key. */
static int add_to(PyObject *counts, PyObject *key, long times)
{
    PyObject *known = PyDict_GetItemWithError(counts, key);
    if (known == NULL && PyErr_Occurred())
        return FAILED;
    long before = known == NULL ? 0 : PyLong_AsLong(known);
    if (before == -1 && PyErr_Occurred())
        return FAILED;
    PyObject *more = PyLong_FromLong(before + times);
    int failed = more == NULL ? FAILED : PyDict_SetItem(counts, key, more);
    Py_XDECREF(more);
    return failed;
}

static int note_other(Notes *self, PyObject *key)
{
    if (self->others == NULL && (self->others = PyDict_New()) == NULL)
        return FAILED;
    return add_to(self->others, key, 1);
}

static PyObject *Notes_append(Notes *self, PyObject *key)
{
    return note_other(self, key) < 0 ? NULL : new_ref(Py_None);
}

static int Notes_bool(Notes *self)
{
    int any = self->others != NULL;
    for (Py_ssize_t at = 0; !any && self->times != NULL && at < PyTuple_GET_SIZE(self->keys); at++)
        any = self->times[at] != 0;
    return any;
}

static PyMethodDef Notes_methods[] = {
    {"append", (PyCFunction)Notes_append, METH_O, "Note that a site was passed once more."},
    {NULL},
};

static PyNumberMethods Notes_number = {.nb_bool = (inquiry)Notes_bool};

PyTypeObject NotesType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "interlace._quick.Notes",
    .tp_doc = "How often each site was passed since that was last counted.",
    .tp_basicsize = sizeof(Notes),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = (destructor)Notes_dealloc,
    .tp_traverse = (traverseproc)Notes_traverse,
    .tp_clear = (inquiry)Notes_clear,
    .tp_methods = Notes_methods,
    .tp_as_number = &Notes_number,
};

PyObject *new_notes(void) { return PyType_GenericAlloc(&NotesType, 0); }

/* Say which line's sites these notes will mostly be of: its keys, and the place of each. What is no notes stays as it is. */
int know_line(PyObject *noted, PyObject *keys, PyObject *places)
{
    Notes *self = (Notes *)noted;
    if (Py_TYPE(noted) != &NotesType || self->keys != NULL)
        return 0;
    Py_ssize_t *times = PyMem_Calloc(PyTuple_GET_SIZE(keys) + 1, sizeof *times);
    if (times == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    self->times = times;
    self->keys = new_ref(keys);
    self->places = new_ref(places);
    return 0;
}

/* Note that a site was passed. Ordinary: `at` is its place in the line that the notes are for. */
int note(PyObject *noted, PyObject *key, PyObject *places, Py_ssize_t at)
{
    Notes *self = (Notes *)noted;
    if (Py_TYPE(noted) != &NotesType)
        return PyList_Append(noted, key);
    if (places == NULL || self->places != places)
        return note_other(self, key);
    self->times[at]++;
    return 0;
}

/* Count what has been noted, and note it no longer. */
static int count(PyObject *noted, PyObject *counts)
{
    if (Py_TYPE(noted) != &NotesType) {
        for (Py_ssize_t at = 0; at < PyList_GET_SIZE(noted); at++)
            if (add_to(counts, PyList_GET_ITEM(noted, at), 1) < 0)
                return FAILED;
        return PyList_SetSlice(noted, 0, PyList_GET_SIZE(noted), NULL);
    }
    Notes *self = (Notes *)noted;
    for (Py_ssize_t at = 0; self->times != NULL && at < PyTuple_GET_SIZE(self->keys); at++) {
        long times = self->times[at];
        self->times[at] = 0;
        if (times && add_to(counts, PyTuple_GET_ITEM(self->keys, at), times) < 0)
            return FAILED;
    }
    PyObject *others = self->others, *key, *times;
    Py_ssize_t next = 0;
    int failed = 0;
    self->others = NULL;
    while (others != NULL && !failed && PyDict_Next(others, &next, &key, &times))
        failed = add_to(counts, key, PyLong_AsLong(times));
    Py_XDECREF(others);
    return failed;
}

/* The number that a dictionary has under a key; 0 where there is none, -1 with an error. */
static long number_of(PyObject *counts, PyObject *key)
{
    PyObject *known = counts != NULL && PyDict_GET_SIZE(counts) ? PyDict_GetItemWithError(counts, key) : NULL;
    return known != NULL ? PyLong_AsLong(known) : PyErr_Occurred() ? FAILED : 0;
}

/* How often a site was passed, by its counts and what has been noted since; -1 with an error. */
long counted(PyObject *noted, PyObject *counts, PyObject *key)
{
    Notes *self = (Notes *)noted;
    if (Py_TYPE(noted) != &NotesType)
        return count(noted, counts) < 0 ? FAILED : number_of(counts, key);
    long before = number_of(counts, key), others = before < 0 ? FAILED : number_of(self->others, key);
    PyObject *place = others < 0 || self->places == NULL ? NULL : PyDict_GetItemWithError(self->places, key);
    if (others < 0 || (place == NULL && PyErr_Occurred()))
        return FAILED;
    return before + others + (place == NULL ? 0 : self->times[PyLong_AsSsize_t(place)]);
}

PyObject *count_all(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 2 || !(PyList_CheckExact(args[0]) || Py_TYPE(args[0]) == &NotesType) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "notes and their counts are wanted");
        return NULL;
    }
    return count(args[0], args[1]) < 0 ? NULL : new_ref(args[1]);
}

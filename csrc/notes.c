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

/* The number that a dictionary has under a key; 0 where there is none, -1 with an error. */
static long number_of(PyObject *counts, PyObject *key)
{
    PyObject *known = counts != NULL && PyDict_GET_SIZE(counts) ? PyDict_GetItemWithError(counts, key) : NULL;
    return known != NULL ? PyLong_AsLong(known) : PyErr_Occurred() ? FAILED : 0;
}

/* Where the number of a site is; NULL where the line does not know it, or with an error. */
static Py_ssize_t *times_of(Notes *self, PyObject *key)
{
    PyObject *place = self->places == NULL ? NULL : PyDict_GetItemWithError(self->places, key);
    return place == NULL ? NULL : self->times + PyLong_AsSsize_t(place);
}

/* How often a site was passed; -1 with an error. */
static long noted(Notes *self, PyObject *key)
{
    long others = number_of(self->others, key);
    Py_ssize_t *times = others < 0 ? NULL : times_of(self, key);
    return others < 0 || (times == NULL && PyErr_Occurred()) ? FAILED : others + (times == NULL ? 0 : (long)*times);
}

/* What a dictionary of numbers would give for a key; the default is for one that is not there, and so 0. */
static PyObject *Notes_get(Notes *self, PyObject *args)
{
    PyObject *key, *other = NULL;
    if (!PyArg_ParseTuple(args, "O|O", &key, &other))
        return NULL;
    long times = noted(self, key);
    return times < 0 ? NULL : times == 0 && other != NULL ? new_ref(other) : PyLong_FromLong(times);
}

/* Say how often a site was passed. */
static int Notes_assign(Notes *self, PyObject *key, PyObject *times)
{
    if (times == NULL || !PyLong_Check(times)) {
        PyErr_SetString(PyExc_TypeError, "a site is passed a number of times");
        return FAILED;
    }
    Py_ssize_t *known = times_of(self, key);
    if ((known == NULL && PyErr_Occurred()) || (self->others == NULL && (self->others = PyDict_New()) == NULL))
        return FAILED;
    if (known != NULL)
        *known = 0;
    return PyDict_SetItem(self->others, key, times);
}

static PyMethodDef Notes_methods[] = {
    {"get", (PyCFunction)Notes_get, METH_VARARGS, "How often a site was passed."},
    {"append", (PyCFunction)Notes_append, METH_O, "Note that a site was passed once more."},
    {NULL},
};

static PyMappingMethods Notes_mapping = {.mp_ass_subscript = (objobjargproc)Notes_assign};

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
    .tp_as_mapping = &Notes_mapping,
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

/* How often a site was passed, by its counts and what has been noted since; -1 with an error. */
long counted(PyObject *notes, PyObject *counts, PyObject *key)
{
    if (Py_TYPE(notes) != &NotesType)
        return count(notes, counts) < 0 ? FAILED : number_of(counts, key);
    long before = number_of(counts, key), since = before < 0 ? FAILED : noted((Notes *)notes, key);
    return since < 0 ? FAILED : before + since;
}

/* What was counted by now, which later visits leave as it is. */
static PyObject *copy_of(Notes *self, PyObject *counts)
{
    PyObject *copy = new_notes();
    Notes *made = (Notes *)copy;
    if (copy == NULL || (self->keys != NULL && know_line(copy, self->keys, self->places) < 0) ||
        (made->others = PyDict_Copy(counts)) == NULL)
        goto failed;
    if (self->times != NULL)
        memcpy(made->times, self->times, PyTuple_GET_SIZE(self->keys) * sizeof *self->times);
    PyObject *key, *times;
    Py_ssize_t next = 0;
    while (self->others != NULL && PyDict_Next(self->others, &next, &key, &times))
        if (add_to(made->others, key, PyLong_AsLong(times)) < 0)
            goto failed;
    return copy;
failed:
    Py_XDECREF(copy);
    return NULL;
}

PyObject *counted_by_now(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 2 || Py_TYPE(args[0]) != &NotesType || !PyDict_Check(args[1])) {
        PyObject *counts = count_all(module, args, size);
        Py_XDECREF(counts);
        return counts == NULL ? NULL : PyDict_Copy(args[1]);
    }
    return copy_of((Notes *)args[0], args[1]);
}

/* Whether `number_in` can tell a number in it. */
int are_counts(PyObject *counts) { return Py_TYPE(counts) == &NotesType || PyDict_CheckExact(counts); }

/* The number of a site; -1 with an error. */
long number_in(PyObject *counts, PyObject *key)
{
    return Py_TYPE(counts) == &NotesType ? noted((Notes *)counts, key) : number_of(counts, key);
}

/* Mark what was not passed: the marks are for the sites of the notes' line. */
int mark_unpassed(PyObject *notes, PyObject *counts, char *marks)
{
    Notes *self = (Notes *)notes;
    int any = self->others != NULL || PyDict_GET_SIZE(counts);
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(self->keys); at++) {
        long times = (long)self->times[at];
        if (!times && any)
            times = counted(notes, counts, PyTuple_GET_ITEM(self->keys, at));
        if (times < 0)
            return FAILED;
        marks[at] |= !times;
    }
    return 0;
}

/* The keys of the line that notes are for, borrowed; NULL where none is known. */
PyObject *line_of(PyObject *notes) { return Py_TYPE(notes) == &NotesType ? ((Notes *)notes)->keys : NULL; }

PyObject *count_all(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 2 || !(PyList_CheckExact(args[0]) || Py_TYPE(args[0]) == &NotesType) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "notes and their counts are wanted");
        return NULL;
    }
    return count(args[0], args[1]) < 0 ? NULL : new_ref(args[1]);
}

/* Taps: what runs in place of a module's call. */

#include "quick.h"

/* What all taps of a tree share. */
typedef struct {
    PyObject_HEAD
    PyObject *served; /* the tally of the run that was opened last */
    PyObject *everywhere; /* a tuple of torch's hooks for all modules */
    PyObject *keys, *places; /* of the modules: a tuple, and a dictionary of their places in it */
} Line;

#define CACHE_LINE 64 /* bytes of a processor's cache that are brought together */
#define AHEAD 13

typedef struct {
    PyObject_HEAD
    Line *line;
    PyObject *key, *module, *inner;
    PyObject *looked; /* where the hooks of the module are; NULL where it must not be called by its forward */
    PyObject *tap;
    Py_ssize_t at; /* the place of the key in the line */
    const void *ahead[AHEAD]; /* what the tap of the module after this one will look at */
} Report;

/* Whether it is a tally, made to the end. */
static int is_tally(PyObject *tally) { return learned && Py_TYPE(tally) == Tally && PEEK(tally, Tally, left) != NULL; }

static int Line_traverse(Line *self, visitproc visit, void *arg)
{
    Py_VISIT(self->served);
    Py_VISIT(self->everywhere);
    Py_VISIT(self->keys);
    Py_VISIT(self->places);
    return 0;
}

static int Line_clear(Line *self)
{
    Py_CLEAR(self->served);
    Py_CLEAR(self->everywhere);
    Py_CLEAR(self->keys);
    Py_CLEAR(self->places);
    return 0;
}

static void Line_dealloc(Line *self)
{
    PyObject_GC_UnTrack(self);
    Line_clear(self);
    Py_TYPE(self)->tp_free(self);
}

/* The place of each key of a tuple. */
static PyObject *places_of(PyObject *keys)
{
    PyObject *places = PyDict_New();
    for (Py_ssize_t at = 0; places != NULL && at < PyTuple_GET_SIZE(keys); at++) {
        PyObject *place = PyLong_FromSsize_t(at);
        if (place == NULL || PyDict_SetItem(places, PyTuple_GET_ITEM(keys, at), place) < 0)
            Py_CLEAR(places);
        Py_XDECREF(place);
    }
    return places;
}

static PyObject *Line_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *served, *everywhere, *keys, *places;
    static char *names[] = {"served", "everywhere", "keys", NULL};
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO!O!", names, &served, &PyTuple_Type, &everywhere, &PyTuple_Type, &keys))
        return NULL;
    int dicts = 1;
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(everywhere); at++)
        dicts &= PyDict_Check(PyTuple_GET_ITEM(everywhere, at));
    if (!dicts || !is_tally(served)) {
        PyErr_SetString(PyExc_TypeError, "a line serves a tally, and hooks are in dictionaries");
        return NULL;
    }
    Line *self = (places = places_of(keys)) == NULL ? NULL : (Line *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->served = new_ref(served);
        self->everywhere = new_ref(everywhere);
        self->keys = new_ref(keys);
        self->places = new_ref(places);
    }
    Py_XDECREF(places);
    return (PyObject *)self;
}

static PyObject *Line_serve(Line *self, PyObject *tally)
{
    if (!is_tally(tally)) {
        PyErr_SetString(PyExc_TypeError, "a line serves a tally");
        return NULL;
    }
    if (know_line(PEEK(tally, Tally, entered), self->keys, self->places) < 0 ||
        know_line(PEEK(tally, Tally, left), self->keys, self->places) < 0 ||
        ask_line(PEEK(tally, Tally, before), self->keys, self->places) < 0 ||
        ask_line(PEEK(tally, Tally, after), self->keys, self->places) < 0)
        return NULL;
    Py_INCREF(tally);
    Py_SETREF(self->served, tally);
    Py_RETURN_NONE;
}

static PyMethodDef Line_methods[] = {
    {"serve", (PyCFunction)Line_serve, METH_O, "Say whose run is found without looking for it."},
    {NULL},
};

PyTypeObject LineType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "interlace._quick.Line",
    .tp_doc = "What all taps of a tree share: the tally of the run that was opened last.",
    .tp_basicsize = sizeof(Line),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = Line_new,
    .tp_dealloc = (destructor)Line_dealloc,
    .tp_traverse = (traverseproc)Line_traverse,
    .tp_clear = (inquiry)Line_clear,
    .tp_methods = Line_methods,
};

static int Report_traverse(Report *self, visitproc visit, void *arg)
{
    Py_VISIT(self->line);
    Py_VISIT(self->key);
    Py_VISIT(self->module);
    Py_VISIT(self->inner);
    Py_VISIT(self->looked);
    Py_VISIT(self->tap);
    return 0;
}

static int Report_clear(Report *self)
{
    Py_CLEAR(self->line);
    Py_CLEAR(self->key);
    Py_CLEAR(self->module);
    Py_CLEAR(self->inner);
    Py_CLEAR(self->looked);
    Py_CLEAR(self->tap);
    return 0;
}

static void Report_dealloc(Report *self)
{
    PyObject_GC_UnTrack(self);
    Report_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *Report_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *line, *key, *module, *inner, *looked, *tap;
    static char *names[] = {"line", "key", "module", "inner", "looked", "tap", NULL};
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!OOOOO", names, &LineType, &line, &key, &module, &inner, &looked, &tap))
        return NULL;
    PyObject *place = PyDict_GetItemWithError(((Line *)line)->places, key);
    if (place == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "the line does not know the key");
        return NULL;
    }
    if (looked != Py_None && !PyDict_Check(looked)) {
        PyErr_SetString(PyExc_TypeError, "hooks are looked up in a dictionary");
        return NULL;
    }
    Report *self = (Report *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->line = (Line *)new_ref(line);
        self->at = PyLong_AsSsize_t(place);
        self->key = new_ref(PyTuple_GET_ITEM(((Line *)line)->keys, self->at)); /* the same object for all */
        self->module = new_ref(module);
        self->inner = new_ref(inner);
        self->looked = looked == Py_None ? NULL : new_ref(looked);
        self->tap = new_ref(tap);
    }
    return (PyObject *)self;
}

/* Whether a module's call is its forward, which is what torch makes of it when there are no hooks. */
static int is_plain(Report *self)
{
    if (self->looked == NULL)
        return 0;
    PyObject *each[] = {s__forward_hooks, s__forward_pre_hooks, s__backward_hooks, s__backward_pre_hooks};
    for (size_t at = 0; at < sizeof each / sizeof *each; at++) {
        PyObject *hooks = PyDict_GetItemWithError(self->looked, each[at]);
        if (hooks == NULL || !PyDict_Check(hooks))
            return PyErr_Occurred() ? FAILED : 0;
        if (PyDict_GET_SIZE(hooks))
            return 0;
    }
    PyObject *everywhere = self->line->everywhere;
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(everywhere); at++) {
        if (PyDict_GET_SIZE(PyTuple_GET_ITEM(everywhere, at)))
            return 0;
    }
    return 1;
}

static PyObject *call_module(Report *self, PyObject *args, PyObject *kwargs)
{
    int plain = is_plain(self);
    if (plain <= 0)
        return plain < 0 ? NULL : PyObject_Call(self->inner, args, kwargs);
    PyObject *forward = PyObject_GetAttr(self->module, s_forward);
    if (forward == NULL)
        return NULL;
    PyObject *result = PyObject_Call(forward, args, kwargs);
    Py_DECREF(forward);
    return result;
}

/* -- what the next module's tap will look at ----------------------------------------------------------------------- */

/* Let the processor bring it while this module computes: in a large model nothing of it is in the caches. The addresses
   are never followed, so that one where something else is by now does no harm. */
static void fetch_ahead(Report *self)
{
#ifdef __GNUC__
    for (size_t at = 0; at < AHEAD; at++)
        __builtin_prefetch(self->ahead[at]);
#endif
}

/* Note where it is: the tap, its module, the module's attributes, and the hooks among them. */
static void note_ahead(PyObject *before, PyObject *tap)
{
    PyObject *each[] = {s__forward_hooks, s__forward_pre_hooks, s__backward_hooks, s__backward_pre_hooks};
    Report *self = (Report *)before, *next = (Report *)tap;
    if (Py_TYPE(before) != &ReportType || Py_TYPE(tap) != &ReportType || next->looked == NULL)
        return;
    const char *attributes = (const char *)((PyDictObject *)next->looked)->ma_keys;
    if (self->ahead[0] == next && self->ahead[1] == attributes)
        return;
    const void **ahead = self->ahead;
    *ahead++ = next;
    *ahead++ = attributes;
    *ahead++ = next->looked;
    *ahead++ = next->module;
    for (size_t at = 1; at <= 2; at++)
        *ahead++ = (const char *)next + at * CACHE_LINE;
    for (size_t at = 1; at <= 3; at++)
        *ahead++ = attributes + at * CACHE_LINE;
    for (size_t at = 0; at < sizeof each / sizeof *each; at++)
        *ahead++ = PyDict_GetItem(next->looked, each[at]);
}

/* Ordinary: the call is part of the run that was opened last, and nobody waits for it. */
static PyObject *Report_call(Report *self, PyObject *args, PyObject *kwargs)
{
    if (self->line == NULL || self->line->served == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this tap is being collected");
        return NULL;
    }
    PyObject *tally = new_ref(self->line->served), *stack = stack_here(), *given = NULL;
    if (stack == NULL)
        goto over;
    if (stack != PEEK(tally, Tally, stack)) {
        Py_SETREF(tally, PyObject_CallNoArgs(py_here));
        if (tally == NULL)
            goto over;
        if (tally == Py_None) { /* a plain call while a trace is open */
            given = PyObject_Call(self->inner, args, kwargs);
            goto over;
        }
    }
    int waits = is_asked(PEEK(tally, Tally, before), self->key, self->line->places, self->at);
    if (waits) {
        if (waits > 0)
            given = reach(stack, tally, self->key, self->line->places, self->at, self->inner, args, kwargs);
        goto over;
    }
    if (note(PEEK(tally, Tally, entered), self->key, self->line->places, self->at) < 0)
        goto over;
    fetch_ahead(self);
    PyObject *result = call_module(self, args, kwargs);
    if (result == NULL) {
        broke(stack, self->key);
        goto over;
    }
    if (note(PEEK(tally, Tally, left), self->key, self->line->places, self->at) < 0 ||
        (waits = is_asked(PEEK(tally, Tally, after), self->key, self->line->places, self->at)) < 0)
        Py_DECREF(result);
    else
        given = waits ? leave(stack, self->key, args, kwargs, result) : result;
over:
    Py_XDECREF(tally);
    Py_XDECREF(stack);
    return given;
}

static PyMemberDef Report_members[] = {
    {"tap", T_OBJECT, offsetof(Report, tap), READONLY, "What belongs to the module's report."},
    {NULL},
};

PyTypeObject ReportType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "interlace._quick.Report",
    .tp_doc = "Called in place of a module: makes the call, and reports it to the run that executes here.",
    .tp_basicsize = sizeof(Report),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = Report_new,
    .tp_dealloc = (destructor)Report_dealloc,
    .tp_traverse = (traverseproc)Report_traverse,
    .tp_clear = (inquiry)Report_clear,
    .tp_call = (ternaryfunc)Report_call,
    .tp_members = Report_members,
};

/* Fetch a dictionary of a list, or its keys, before it is needed: in a large model nothing of it is in the caches. */
static inline void fetch(PyObject *list, Py_ssize_t at, int keys)
{
#ifdef __GNUC__
    if (at >= PyList_GET_SIZE(list))
        return;
    char *start = (char *)PyList_GET_ITEM(list, at);
    if (keys)
        start = (char *)((PyDictObject *)start)->ma_keys;
    for (int line = 0; line <= 3 * keys; line++)
        __builtin_prefetch(start + CACHE_LINE * line);
#endif
}

/* Whether all dictionaries of a list are that, and nothing else. */
static int are_dicts(PyObject *dicts)
{
    int are = PyList_CheckExact(dicts);
    for (Py_ssize_t at = 0; are && at < PyList_GET_SIZE(dicts); at++) {
        fetch(dicts, at + 8, 0);
        are = PyDict_Check(PyList_GET_ITEM(dicts, at));
    }
    return are;
}

/* Whether two dictionaries have the same keys and values. Ordinary: in the same order. */
static int are_same(PyObject *one, PyObject *other)
{
    if (!PyDict_CheckExact(one))
        return PyObject_RichCompareBool(one, other, Py_EQ) == 1;
    PyObject *key, *value, *key_there, *value_there;
    Py_ssize_t next = 0, next_there = 0;
    int same = PyDict_GET_SIZE(one) == PyDict_GET_SIZE(other);
    while (same && PyDict_Next(one, &next, &key, &value))
        same = PyDict_Next(other, &next_there, &key_there, &value_there) && value == value_there &&
               (key == key_there || equal(key, key_there) == 1);
    return same && !PyErr_Occurred();
}

/* Whether modules that had no children have none, and the others those that they had. Ordinary: they are in the order in
   which they were. */
PyObject *same(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 3 || !are_dicts(args[0]) || !are_dicts(args[1]) || !are_dicts(args[2]) ||
        PyList_GET_SIZE(args[1]) != PyList_GET_SIZE(args[2])) {
        PyErr_SetString(PyExc_TypeError, "three lists of dictionaries are wanted");
        return NULL;
    }
    int are = 1;
    for (Py_ssize_t at = 0; are && at < PyList_GET_SIZE(args[0]); at++)
        are = !PyDict_GET_SIZE(PyList_GET_ITEM(args[0], at));
    for (Py_ssize_t at = 0; are && at < PyList_GET_SIZE(args[1]); at++) {
        fetch(args[1], at + 2, 1);
        fetch(args[2], at + 2, 1);
        are = are_same(PyList_GET_ITEM(args[1], at), PyList_GET_ITEM(args[2], at));
    }
    return PyErr_Occurred() ? NULL : PyBool_FromLong(are);
}

static int are_slots(PyObject *const *args, Py_ssize_t size)
{
    int are = size == 3 && PyList_CheckExact(args[0]) && PyList_CheckExact(args[2]) &&
              PyList_GET_SIZE(args[0]) == PyList_GET_SIZE(args[2]);
    for (Py_ssize_t at = 0; are && at < PyList_GET_SIZE(args[0]); at++)
        are = PyDict_CheckExact(PyList_GET_ITEM(args[0], at));
    if (!are)
        PyErr_SetString(PyExc_TypeError, "a list of dictionaries, a key and a list of values are wanted");
    return are;
}

/* Put each value under a key of its dictionary, where nothing stands. What stands there then, None if all is new. */
PyObject *place(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (!are_slots(args, size))
        return NULL;
    Py_ssize_t many = PyList_GET_SIZE(args[0]);
    PyObject *found = NULL;
    for (Py_ssize_t at = 0; at < many; at++) {
        fetch(args[0], at + 8, 0);
        fetch(args[0], at + 4, 1);
        PyObject *value = PyList_GET_ITEM(args[2], at);
        PyObject *there = PyDict_SetDefault(PyList_GET_ITEM(args[0], at), args[1], value);
        if (there == NULL)
            goto failed;
        if (at)
            note_ahead(PyList_GET_ITEM(args[2], at - 1), value);
        if (there == value && found == NULL)
            continue;
        if (found == NULL && (found = PyList_GetSlice(args[2], 0, many)) == NULL)
            goto failed;
        PyList_SetItem(found, at, new_ref(there));
    }
    if (found != NULL)
        return found;
    Py_RETURN_NONE;
failed:
    Py_XDECREF(found);
    return NULL;
}

/* Take each value away from under a key of its dictionary, and leave what is something else. */
PyObject *displace(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (!are_slots(args, size))
        return NULL;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(args[0]); at++) {
        fetch(args[0], at + 8, 0);
        fetch(args[0], at + 4, 1);
        PyObject *there = PyDict_GetItemWithError(PyList_GET_ITEM(args[0], at), args[1]);
        if (there == PyList_GET_ITEM(args[2], at)) {
            if (PyDict_DelItem(PyList_GET_ITEM(args[0], at), args[1]) < 0)
                return NULL;
        } else if (PyErr_Occurred())
            return NULL;
    }
    Py_RETURN_NONE;
}

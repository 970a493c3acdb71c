/* A captured block: left where it stands, its names taken from the frame around it, run, and what it bound given back.
   `Invoke.__enter__` and `__exit__`, `Bound.__call__`, `Scope._il_settled_`, `Family.close`. */

#include "quick.h"

#define SKIPS (PY_VERSION_HEX < 0x030C0000) /* later versions leave a block by `sys.monitoring`, which Python sees to */
#define READS (PY_VERSION_HEX < 0x030D0000) /* up to here the names of a frame are a dictionary */

/* -- leaving a block where it stands ------------------------------------------------------------------------------- */

/* What raises in one frame when that enters its block. */
typedef struct {
    PyObject_HEAD
    PyObject *frame, *offsets, *error, *opcodes;
    int waits;
} Skip;

static int Skip_traverse(Skip *self, visitproc visit, void *arg)
{
    Py_VISIT(self->frame);
    Py_VISIT(self->offsets);
    Py_VISIT(self->error);
    Py_VISIT(self->opcodes);
    return 0;
}

static int Skip_clear(Skip *self)
{
    Py_CLEAR(self->frame);
    Py_CLEAR(self->offsets);
    Py_CLEAR(self->error);
    Py_CLEAR(self->opcodes);
    return 0;
}

static void Skip_dealloc(Skip *self)
{
    PyObject_GC_UnTrack(self);
    Skip_clear(self);
    Py_TYPE(self)->tp_free(self);
}

PyTypeObject SkipType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "interlace._quick.Skip",
    .tp_doc = "What raises in one frame when that enters its block.",
    .tp_basicsize = sizeof(Skip),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = (destructor)Skip_dealloc,
    .tp_traverse = (traverseproc)Skip_traverse,
    .tp_clear = (inquiry)Skip_clear,
};

/* Called by the interpreter while a skip waits: raise where the block begins, and be gone with that. */
static int trace(PyObject *skips, PyFrameObject *frame, int what, PyObject *arg)
{
    Skip *skip = (Skip *)skips;
    if ((PyObject *)frame != skip->frame || what != PyTrace_OPCODE)
        return 0;
    PyObject *at = PyObject_GetAttr(skip->frame, s_f_lasti);
    int here = at == NULL ? FAILED : PySequence_Contains(skip->offsets, at);
    Py_XDECREF(at);
    if (here == 1) {
        PyObject *error = new_ref(skip->error);
        skip->waits = 0;
        PyEval_SetTrace(NULL, NULL); /* which lets go of the skip */
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return here ? FAILED : 0;
}

/* Let the frame be traced no more. */
static int restore(Skip *skip)
{
    if (skip->waits)
        PyEval_SetTrace(NULL, NULL);
    skip->waits = 0;
    PyException_SetTraceback(skip->error, Py_None);
    return PyObject_SetAttr(skip->frame, s_f_trace_opcodes, skip->opcodes);
}

/* Whether the interpreter calls a skip: an audit hook may have refused it, which says so in Python only. */
static int is_set(Skip *skip)
{
    PyObject *tracer = PyObject_CallNoArgs(py_gettrace);
    Py_XDECREF(tracer);
    return tracer == NULL ? FAILED : tracer == (PyObject *)skip;
}

/* Make a frame leave the block that it is about to enter; NULL, without an error, where that is refused. */
static PyObject *leave_block(PyObject *frame, PyObject *offsets)
{
    Skip *skip = (Skip *)PyType_GenericAlloc(&SkipType, 0);
    if (skip == NULL)
        return NULL;
    skip->frame = new_ref(frame);
    skip->offsets = new_ref(offsets);
    skip->error = PyObject_CallNoArgs(py_Skipped);
    skip->opcodes = PyObject_GetAttr(frame, s_f_trace_opcodes);
    if (skip->error == NULL || skip->opcodes == NULL || PyObject_SetAttr(frame, s_f_trace_opcodes, Py_True) < 0)
        Py_CLEAR(skip);
    else {
        skip->waits = 1;
        PyEval_SetTrace(trace, (PyObject *)skip);
        if (is_set(skip) != ORDINARY) {
            skip->waits = 0;
            restore(skip);
            Py_CLEAR(skip);
        }
    }
    return (PyObject *)skip;
}

/* What is known of the block that a frame is about to enter; NULL if nothing is. */
static PyObject *template_of(PyObject *frame)
{
    PyObject *code = PyObject_GetAttr(frame, s_f_code), *key = code == NULL ? NULL : PyLong_FromVoidPtr(code);
    PyObject *at = key == NULL ? NULL : PyObject_GetAttr(frame, s_f_lasti), *found = NULL;
    if (at != NULL && (found = PyDict_GetItemWithError(py_templates, key)) != NULL)
        found = PyDict_CheckExact(found) ? PyDict_GetItemWithError(found, at) : NULL;
    Py_XINCREF(found);
    Py_XDECREF(code);
    Py_XDECREF(key);
    Py_XDECREF(at);
    return found;
}

/* Make a prompt of a trace. */
PyObject *invoke_init(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 3 || !learned || Py_TYPE(args[0]) != Invoke)
        return PyObject_Vectorcall(py_invoke_init, args, size, NULL);
    PUT(args[0], Invoke, _prompts, new_ref(args[1]));
    PUT(args[0], Invoke, _given, new_ref(args[2]));
    PUT(args[0], Invoke, _body, new_ref(Py_None));
    Py_RETURN_NONE;
}

/* Whether it is a prompt, and its trace's prompts are there, made to the end. */
static int is_prompt(PyObject *invoke)
{
    int made = Py_TYPE(invoke) == Invoke && PEEK(invoke, Invoke, _body) != NULL;
    PyObject *prompts = made ? PEEK(invoke, Invoke, _prompts) : NULL;
    return prompts != NULL && Py_TYPE(prompts) == Prompts && PEEK(prompts, Prompts, _workers) != NULL;
}

/* Ordinary: the block was met before, needs nothing but names, and nobody traces. */
PyObject *invoke_enter(PyObject *module, PyObject *invoke)
{
    PyObject *frame = (PyObject *)PyEval_GetFrame(), *template = NULL, *body = NULL, *skip = NULL;
    int plain = SKIPS && learned && is_prompt(invoke) && frame != NULL;
    if (plain && (template = template_of(frame)) == NULL && PyErr_Occurred())
        return NULL;
    plain = template != NULL && Py_TYPE(template) == Template && PEEK(template, Template, plain) == Py_True
                ? gives_none(PyObject_CallNoArgs(py_gettrace))
                : OTHER;
    if (plain == ORDINARY && (body = PyType_GenericAlloc(Body, 0)) == NULL)
        plain = FAILED;
    if (plain == ORDINARY && (skip = leave_block(frame, PEEK(template, Template, entry))) == NULL)
        plain = PyErr_Occurred() ? FAILED : OTHER;
    if (plain == ORDINARY) {
        PUT(body, Body, template, new_ref(template));
        PUT(body, Body, frame, new_ref(frame));
        PUT(body, Body, _skip, skip);
        PUT(invoke, Invoke, _body, new_ref(body));
    }
    Py_XDECREF(template);
    Py_XDECREF(body);
    if (plain == OTHER)
        return PyObject_CallOneArg(py_invoke_enter, invoke);
    return plain < 0 ? NULL : new_ref(invoke);
}

/* -- its names ----------------------------------------------------------------------------------------------------- */

/* What a frame holds of the names that a block mentions. */
static PyObject *held(PyObject *frame, PyObject *mentions)
{
    PyObject *here = PyObject_GetAttr(frame, s_f_locals), *found = here == NULL ? NULL : PyDict_New(), *name, *value;
    PyObject *names = found == NULL ? NULL : PyObject_GetIter(mentions);
    while (names != NULL && (name = PyIter_Next(names)) != NULL) {
        if ((value = PyDict_GetItemWithError(here, name)) != NULL)
            PyDict_SetItem(found, name, value);
        Py_DECREF(name);
        if (PyErr_Occurred())
            break;
    }
    if (here != NULL)
        PyDict_Clear(here); /* a snapshot that would keep its values alive */
    Py_XDECREF(here);
    Py_XDECREF(names);
    if (PyErr_Occurred())
        Py_CLEAR(found);
    return found;
}

/* The names for a run of a block. */
static PyObject *new_scope(PyObject *frame, PyObject *template)
{
    PyObject *nothing = PyTuple_New(0), *scope = nothing == NULL ? NULL : Scope->tp_new(Scope, nothing, NULL);
    Py_XDECREF(nothing);
    if (scope == NULL)
        return NULL;
    PUT(scope, Scope, _il_binds, new_ref(PEEK(template, Template, binds)));
    PUT(scope, Scope, _il_uses, new_ref(PEEK(template, Template, uses)));
    PUT(scope, Scope, _il_family, new_ref(Py_None));
    PUT(scope, Scope, _il_outer, new_ref(Py_None));
    PUT(scope, Scope, _il_place, new_ref(zero));
    if (hold(scope, Scope__il_before, held(frame, PEEK(template, Template, mentions))) < 0 ||
        hold(scope, Scope__il_globals, PyObject_GetAttr(frame, s_f_globals)) < 0 ||
        hold(scope, Scope__il_base, PyDict_New()) < 0 || hold(scope, Scope__il_settled, PySet_New(NULL)) < 0 ||
        hold(scope, Scope__il_pending, PyList_New(0)) < 0)
        Py_CLEAR(scope);
    return scope;
}

/* The block as a function that takes nothing. */
static PyObject *new_run(PyObject *template, PyObject *scope)
{
    PyObject *globals = PEEK(scope, Scope, _il_globals), *run = NULL, *bound = PyType_GenericAlloc(Bound, 0);
    if (bound != NULL && hold(bound, Bound_function, PyFunction_New(PEEK(template, Template, code), globals)) == 0) {
        PUT(bound, Bound, first, new_ref(Py_None));
        PUT(bound, Bound, __globals__, new_ref(globals));
        run = PyObject_CallFunctionObjArgs(py_partial, bound, scope, NULL);
    }
    Py_XDECREF(bound);
    return run;
}

/* Whether it is a scope, made to the end. */
static int is_scope(PyObject *scope)
{
    return Py_TYPE(scope) == Scope && PEEK(scope, Scope, _il_pending) != NULL;
}

/* Take in the next block in program order. */
static int add(PyObject *family, PyObject *scope)
{
    PyObject *scopes = PEEK(family, Family, scopes), *binders = PEEK(family, Family, binders), *name, *places;
    PyObject *place = PyLong_FromSsize_t(PyList_GET_SIZE(scopes));
    PyObject *names = place == NULL ? NULL : PyObject_GetIter(PEEK(scope, Scope, _il_binds));
    int failed = names == NULL || PyList_Append(scopes, scope) < 0;
    while (!failed && (name = PyIter_Next(names)) != NULL) {
        if ((places = PyDict_GetItemWithError(binders, name)) != NULL)
            failed = PyList_Append(places, place) < 0;
        else if (!(failed = PyErr_Occurred() || (places = PyList_New(0)) == NULL)) {
            failed = PyList_Append(places, place) < 0 || PyDict_SetItem(binders, name, places) < 0;
            Py_DECREF(places);
        }
        Py_DECREF(name);
    }
    Py_XDECREF(names);
    if (failed || PyErr_Occurred()) {
        Py_XDECREF(place);
        return FAILED;
    }
    PUT(scope, Scope, _il_family, new_ref(family));
    PUT(scope, Scope, _il_place, place);
    return 0;
}

static PyObject *new_family(PyObject *prompts)
{
    PyObject *family = PyType_GenericAlloc(Family, 0);
    if (family != NULL && (hold(family, Family_scopes, PyList_New(0)) < 0 ||
                           hold(family, Family_binders, PyDict_New()) < 0 ||
                           hold(family, Family__wait, PyObject_GetAttr(prompts, s__wait)) < 0 ||
                           hold(family, Family__use, PyObject_GetAttr(prompts, s__wait_for_use)) < 0))
        Py_CLEAR(family);
    return family;
}

/* The blocks of a frame in a trace. */
static PyObject *family_at(PyObject *prompts, PyObject *frame)
{
    PyObject *families = PEEK(prompts, Prompts, _families), *key = PyLong_FromVoidPtr(frame), *family = NULL;
    PyObject *known = key == NULL ? NULL : PyDict_GetItemWithError(families, key);
    if (known != NULL)
        family = new_ref(PyTuple_GET_ITEM(known, 1));
    else if (!PyErr_Occurred() && (family = new_family(prompts)) != NULL) {
        known = PyTuple_Pack(2, frame, family);
        if (known == NULL || PyDict_SetItem(families, key, known) < 0)
            Py_CLEAR(family);
        Py_XDECREF(known);
    }
    Py_XDECREF(key);
    return family;
}

/* Take in a captured block. */
static int add_body(PyObject *prompts, PyObject *given, PyObject *body)
{
    PyObject *frame = PEEK(body, Body, frame), *template = PEEK(body, Body, template), *scope = NULL, *run = NULL;
    PyObject *blocks = PEEK(prompts, Prompts, _blocks), *block = NULL, *place = NULL;
    PyObject *family = family_at(prompts, frame);
    int added = family != NULL && (scope = new_scope(frame, template)) != NULL && add(family, scope) == 0 &&
                PyDict_SetItem(PEEK(prompts, Prompts, _templates), scope, template) == 0 &&
                (place = PyLong_FromSsize_t(PyList_GET_SIZE(blocks))) != NULL &&
                PyDict_SetItem(PEEK(prompts, Prompts, _places), scope, place) == 0 &&
                (run = new_run(template, scope)) != NULL &&
                (block = PyTuple_Pack(4, given, run, PEEK(template, Template, called), Py_None)) != NULL &&
                PyList_Append(blocks, block) == 0;
    Py_XDECREF(family);
    Py_XDECREF(scope);
    Py_XDECREF(place);
    Py_XDECREF(run);
    Py_XDECREF(block);
    return added ? 0 : FAILED;
}

/* Ordinary: the block was entered by `invoke_enter`. */
PyObject *invoke_exit(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *invoke = size == 4 && learned && Py_TYPE(args[0]) == Invoke ? args[0] : NULL, *body, *skip;
    body = invoke == NULL ? NULL : PEEK(invoke, Invoke, _body);
    skip = body == NULL || Py_TYPE(body) != Body ? NULL : PEEK(body, Body, _skip);
    if (skip == NULL || Py_TYPE(skip) != &SkipType)
        return PyObject_Vectorcall(py_invoke_exit, args, size, NULL);
    Py_INCREF(body);
    Py_INCREF(skip);
    PUT(invoke, Invoke, _body, new_ref(Py_None));
    PUT(body, Body, _skip, new_ref(Py_None));
    int left = args[2] == ((Skip *)skip)->error, failed = restore((Skip *)skip) < 0;
    if (!failed && left)
        failed = add_body(PEEK(invoke, Invoke, _prompts), PEEK(invoke, Invoke, _given), body) < 0;
    Py_DECREF(body);
    Py_DECREF(skip);
    return failed ? NULL : PyBool_FromLong(left);
}

/* -- its run ------------------------------------------------------------------------------------------------------- */

/* Whether it is what knows a scope's siblings, or None where nothing does. */
static int is_family(PyObject *family)
{
    return family == Py_None || (Py_TYPE(family) == Family && PEEK(family, Family, _use) != NULL);
}

/* Put in place what no sibling can change, so that reading it costs an attribute. */
static int start(PyObject *scope)
{
    PyObject *family = PEEK(scope, Scope, _il_family), *before = PEEK(scope, Scope, _il_before), *name, *value;
    PyObject *shared = family == Py_None ? NULL : PEEK(family, Family, binders), *own = PEEK(scope, Scope, _il_binds);
    PyObject *names = PyObject_GenericGetDict(scope, NULL);
    Py_ssize_t next = 0;
    int taken = names == NULL ? FAILED : 0;
    while (taken >= 0 && PyDict_Next(before, &next, &name, &value)) {
        taken = PySet_Contains(own, name);
        if (!taken && shared != NULL)
            taken = PyDict_Contains(shared, name);
        if (!taken)
            taken = PyDict_SetItem(names, name, value);
    }
    Py_XDECREF(names);
    return taken < 0 ? FAILED : 0;
}

/* How the block was left is nobody's business. */
static void forget_skip(void)
{
    PyObject *error = take_error(), *done = PyObject_CallOneArg(py_forget_skip, error);
    if (done != NULL)
        give_error(error);
    else
        Py_DECREF(error);
    Py_XDECREF(done);
}

/* Run a block. Ordinary: in a scope with a dictionary of what was there before. */
PyObject *bound_call(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    int plain = size == 2 && learned && Py_TYPE(args[0]) == Bound && PEEK(args[0], Bound, first) != NULL &&
                is_scope(args[1]) && is_family(PEEK(args[1], Scope, _il_family)) &&
                PyDict_CheckExact(PEEK(args[1], Scope, _il_before)) && PyAnySet_Check(PEEK(args[1], Scope, _il_binds));
    if (!plain)
        return PyObject_Vectorcall(py_bound_call, args, size, NULL);
    PyObject *scope = args[1], *given[] = {PEEK(args[0], Bound, first), scope};
    if (start(scope) < 0)
        return NULL;
    PyObject *result = PyObject_Vectorcall(PEEK(args[0], Bound, function), given, 2, NULL);
    if (result == NULL)
        forget_skip();
    PUT(scope, Scope, _il_settled, new_ref(Py_None)); /* the block has ended, well or not */
    Py_XDECREF(result);
    return result == NULL ? NULL : new_ref(Py_None);
}

/* Names of a block are what they will be. */
PyObject *scope_settled(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *settled = size && learned && Py_TYPE(args[0]) == Scope ? PEEK(args[0], Scope, _il_settled) : NULL;
    if (settled == NULL || (settled != Py_None && !PySet_Check(settled)))
        return PyObject_Vectorcall(py_settled, args, size, NULL);
    for (Py_ssize_t at = 1; settled != Py_None && at < size; at++)
        if (PySet_Add(settled, args[at]) < 0)
            return NULL;
    Py_RETURN_NONE;
}

/* -- what it leaves ------------------------------------------------------------------------------------------------ */

/* What a block bound a name to, borrowed; NULL if it left it alone. */
static PyObject *made(PyObject *scope, PyObject *name)
{
    PyObject *names = PyObject_GenericGetDict(scope, NULL), *value;
    if (names == NULL)
        return NULL;
    value = PyDict_GetItemWithError(names, name);
    Py_DECREF(names);
    return value == NULL || value == PyDict_GetItemWithError(PEEK(scope, Scope, _il_base), name) ? NULL : value;
}

/* Give each name that blocks bound what the last of them left, unless a line of the frame has bound it since. */
static int settle_names(PyObject *family, PyObject *here, PyObject *out)
{
    PyObject *scopes = PEEK(family, Family, scopes), *name, *places;
    Py_ssize_t next = 0;
    while (PyDict_Next(PEEK(family, Family, binders), &next, &name, &places)) {
        PyObject *now = PyDict_GetItemWithError(here, name), *value = NULL;
        for (Py_ssize_t at = PyList_GET_SIZE(places) - 1; at >= 0 && value == NULL && !PyErr_Occurred(); at--) {
            PyObject *scope = PyList_GetItem(scopes, PyLong_AsSsize_t(PyList_GET_ITEM(places, at)));
            if (scope == NULL || PyDict_GetItemWithError(PEEK(scope, Scope, _il_before), name) != now)
                break;
            value = made(scope, name);
        }
        if (PyErr_Occurred() || (value != NULL && PyDict_SetItem(out, name, value) < 0))
            return FAILED;
    }
    return 0;
}

/* Whether a name is one of a function's own. */
static int is_own(PyObject *code, PyObject *name)
{
    PyObject *each[] = {s_co_varnames, s_co_cellvars, s_co_freevars};
    int is = 0;
    for (size_t at = 0; !is && at < sizeof each / sizeof *each; at++) {
        PyObject *names = PyObject_GetAttr(code, each[at]);
        is = names == NULL ? FAILED : PySequence_Contains(names, name);
        Py_XDECREF(names);
    }
    return is;
}

/* Bind names in the frame of a function. */
static int bind(PyObject *frame, PyObject *code, PyObject *here, PyObject *values)
{
    PyObject *globals = PyObject_GetAttr(frame, s_f_globals), *name, *value;
    Py_ssize_t next = 0;
    int failed = globals == NULL;
    while (!failed && PyDict_Next(values, &next, &name, &value)) {
        int own = is_own(code, name);
        failed = own < 0 || (own ? PyDict_SetItem(here, name, value) : PyObject_SetItem(globals, name, value)) < 0;
    }
    Py_XDECREF(globals);
#if READS
    if (!failed)
        PyFrame_LocalsToFast((PyFrameObject *)frame, 0);
#endif
    return failed ? FAILED : 0;
}

/* Write what blocks bound into the frame of a function. */
static int commit(PyObject *family, PyObject *frame, PyObject *code)
{
    PyObject *out = PyDict_New(), *here = out == NULL ? NULL : PyObject_GetAttr(frame, s_f_locals);
    int failed = here == NULL || settle_names(family, here, out) < 0;
    if (!failed && PyDict_GET_SIZE(out))
        failed = bind(frame, code, here, out) < 0;
    if (here != NULL)
        PyDict_Clear(here);
    Py_XDECREF(here);
    Py_XDECREF(out);
    return failed ? FAILED : 0;
}

/* Whether the blocks stand in the frame itself, and have kept what was there before in dictionaries. */
static int stand_alone(PyObject *scopes)
{
    int are = PyList_CheckExact(scopes);
    for (Py_ssize_t at = 0; are && at < PyList_GET_SIZE(scopes); at++) {
        PyObject *scope = PyList_GET_ITEM(scopes, at);
        are = is_scope(scope) && PEEK(scope, Scope, _il_outer) == Py_None &&
              PyDict_CheckExact(PEEK(scope, Scope, _il_before));
    }
    return are;
}

/* Write what the blocks bound into the frame, and let go of everything. Ordinary: it is the frame of a function. */
PyObject *family_close(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *family = READS && size == 2 && learned && Py_TYPE(args[0]) == Family ? args[0] : NULL, *code = NULL;
    if (family != NULL && PyFrame_Check(args[1]) && PEEK(family, Family, _use) != NULL &&
        stand_alone(PEEK(family, Family, scopes))) {
        code = (PyObject *)PyFrame_GetCode((PyFrameObject *)args[1]);
        if (!(((PyCodeObject *)code)->co_flags & CO_OPTIMIZED))
            Py_CLEAR(code);
    }
    if (code == NULL)
        return PyObject_Vectorcall(py_family_close, args, size, NULL);
    PyObject *scopes = PEEK(family, Family, scopes);
    int failed = commit(family, args[1], code) < 0;
    Py_DECREF(code);
    for (Py_ssize_t at = 0; !failed && at < PyList_GET_SIZE(scopes); at++) {
        PyObject *scope = PyList_GET_ITEM(scopes, at);
        PUT(scope, Scope, _il_family, new_ref(Py_None));
        failed = hold(scope, Scope__il_before, PyDict_New()) < 0;
    }
    if (failed || PyList_SetSlice(scopes, 0, PyList_GET_SIZE(scopes), NULL) < 0)
        return NULL;
    PyDict_Clear(PEEK(family, Family, binders));
    Py_RETURN_NONE;
}

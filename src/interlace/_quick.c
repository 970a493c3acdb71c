/* The ordinary case of a module's call and of a request, in C.

   Everything here is written in Python too, and Python has the last word: whatever is not the ordinary case is handed
   to it before anything was changed. What the ordinary case is stands at the top of each function. Objects are the
   ones of Python; `learn` is told their classes, and finds where these keep their attributes. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#include <structmember.h>

typedef Py_ssize_t Slot;

#define ORDINARY 1
#define OTHER 0
#define FAILED (-1)

/* -- what is known of the classes of Python ------------------------------------------------------------------------ */

#define CLASSES(X) \
    X(Run) X(Edited) X(Served) X(Tally) X(Switch) X(Home) X(Visit) X(Site) X(Opened) X(Tensor) X(Everything) \
    X(Worker)

#define SLOTS(X) \
    X(Run, tally) X(Run, live) X(Run, side) X(Run, switch) X(Run, passing) X(Run, watchers) X(Run, recorders) \
    X(Run, pending) X(Run, kinds) X(Run, reads) X(Run, changes) X(Run, _starts) X(Run, _ends) X(Run, _asked) \
    X(Run, _wanted) X(Run, _site) X(Served, begun) \
    X(Tally, stack) X(Tally, before) X(Tally, after) X(Tally, entered) X(Tally, left) \
    X(Switch, _ambient) X(Switch, _home) X(Switch, _level) X(Switch, _resumer) X(Switch, _token) X(Switch, _worker) \
    X(Switch, done) X(Switch, ending) X(Switch, error) X(Switch, carries) X(Switch, _context) \
    X(Home, abandoned) X(Home, idle) X(Home, ident) X(Home, parked) \
    X(Visit, args) X(Visit, key) X(Visit, kwargs) X(Visit, number) X(Visit, port) X(Visit, result) X(Visit, skipped) \
    X(Site, key) X(Opened, code) X(Opened, trace) X(Opened, before)

#define OBJECTS(X) \
    X(RunEnded) X(getcurrent) X(gettrace) X(TURN) X(here) X(operators) X(visit) X(remember) X(replace) \
    X(ambient_read) X(ambient_swap) X(grad) X(set_grad) X(inference) X(autocast) X(functions) X(dispatches) \
    X(hooks) X(transform) X(forward_grad) X(cuda) X(get_output) X(set_output) X(get_input) X(set_attr) X(seen) \
    X(ask) X(resume) X(pause) X(NotReached) X(OrderError) X(property) X(config)

#define NAMES(X) \
    X(_tree) X(_open) X(_fused) X(_site) X(_path) X(_run) X(_steps) X(_visit) X(current) X(number) X(switch) \
    X(tracing) X(gr_context) X(parent) X(job) X(_initialized) X(forward) X(count) X(reach) X(leave) X(broke) \
    X(_record) X(_arrive) X(nothing_came) X(recalled) X(_unreached) X(_meet) X(_start) X(_take_turn) X(add) \
    X(ask) X(port) X(result) X(args) X(reads) X(output) X(input) X(requires_grad) X(shape) X(dtype) X(device) \
    X(checks) X(_forward_hooks) X(_forward_pre_hooks) X(_backward_hooks) X(_backward_pre_hooks)

#define DECLARE_CLASS(name) static PyTypeObject *name;
#define DECLARE_SLOT(class, name) static Slot class##_##name;
#define DECLARE_OBJECT(name) static PyObject *py_##name;
#define DECLARE_NAME(name) static PyObject *s_##name;
CLASSES(DECLARE_CLASS)
SLOTS(DECLARE_SLOT)
OBJECTS(DECLARE_OBJECT)
NAMES(DECLARE_NAME)

static PyObject *zero, *result_suffix;
static int learned;

static inline PyObject **slot_of(PyObject *object, Slot slot) { return (PyObject **)((char *)object + slot); }

/* What a slot holds, borrowed; NULL where nothing was assigned. */
static inline PyObject *peek(PyObject *object, Slot slot) { return *slot_of(object, slot); }

/* Let a slot hold `value`, whose reference is taken over. */
static inline void put(PyObject *object, Slot slot, PyObject *value)
{
    PyObject **at = slot_of(object, slot), *old = *at;
    *at = value;
    Py_XDECREF(old);
}

#define PEEK(object, class, name) peek(object, class##_##name)
#define PUT(object, class, name, value) put(object, class##_##name, value)

static inline PyObject *new_ref(PyObject *object)
{
    Py_INCREF(object);
    return object;
}

static int equal(PyObject *one, PyObject *other)
{
    return one == other ? 1 : PyObject_RichCompareBool(one, other, Py_EQ);
}

static int contains(PyObject *keys, PyObject *key)
{
    return PySet_CheckExact(keys) ? PySet_Contains(keys, key) : PySequence_Contains(keys, key);
}

/* The truth of what a function without arguments returns. */
static int truth(PyObject *function)
{
    PyObject *found = PyObject_CallNoArgs(function);
    if (found == NULL)
        return FAILED;
    int is = PyObject_IsTrue(found);
    Py_DECREF(found);
    return is;
}

/* Whether a function gives None. */
static int gives_none(PyObject *found)
{
    if (found == NULL)
        return FAILED;
    Py_DECREF(found);
    return found == Py_None;
}

static inline int no_hooks(void) { return gives_none(PyObject_CallOneArg(py_hooks, Py_True)); }

/* -- counting ------------------------------------------------------------------------------------------------------ */

/* Count what has been noted, and note it no longer. */
static int count(PyObject *noted, PyObject *counts)
{
    Py_ssize_t size = PyList_GET_SIZE(noted);
    for (Py_ssize_t at = 0; at < size; at++) {
        PyObject *key = PyList_GET_ITEM(noted, at), *known = PyDict_GetItemWithError(counts, key);
        if (known == NULL && PyErr_Occurred())
            return FAILED;
        PyObject *more = PyLong_FromLong(known == NULL ? 1 : PyLong_AsLong(known) + 1);
        int failed = more == NULL || PyDict_SetItem(counts, key, more) < 0;
        Py_XDECREF(more);
        if (failed)
            return FAILED;
    }
    return size ? PyList_SetSlice(noted, 0, size, NULL) : 0;
}

/* How often a key has been counted; -1 with an error. */
static long counted(PyObject *noted, PyObject *counts, PyObject *key)
{
    if (count(noted, counts) < 0)
        return FAILED;
    PyObject *known = PyDict_GetItemWithError(counts, key);
    return known != NULL ? PyLong_AsLong(known) : PyErr_Occurred() ? FAILED : 0;
}

/* -- torch's ambient state: `ambient.read` and `ambient.swap` ------------------------------------------------------ */

/* Whether all but grad mode is at rest. */
static int at_rest(void)
{
    PyObject *each[] = {py_inference, py_autocast, py_functions, py_dispatches};
    for (size_t at = 0; at < sizeof each / sizeof *each; at++) {
        int is = truth(each[at]);
        if (is)
            return is < 0 ? FAILED : 0;
    }
    int none = no_hooks();
    if (none != 1 || py_cuda == Py_None)
        return none;
    PyObject *begun = PyObject_GetAttr(py_cuda, s__initialized);
    int is = begun == NULL ? FAILED : PyObject_IsTrue(begun);
    Py_XDECREF(begun);
    return is < 0 ? FAILED : !is;
}

static PyObject *ambient_now(void)
{
    int rests = at_rest();
    return rests < 0 ? NULL : PyObject_CallNoArgs(rests ? py_grad : py_ambient_read);
}

static PyObject *ambient(PyObject *module, PyObject *nothing) { return ambient_now(); }

/* Replace one state by another, where they differ. */
static int ambient_swap(PyObject *now, PyObject *then)
{
    int same = equal(now, then);
    if (same)
        return same < 0 ? FAILED : 0;
    PyObject *done = PyBool_Check(now) && PyBool_Check(then)
                         ? PyObject_CallOneArg(py_set_grad, then)
                         : PyObject_CallFunctionObjArgs(py_ambient_swap, now, then, NULL);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* -- the two sides take turns: `Switch.resume` and `Switch.pause` -------------------------------------------------- */

/* Ordinary: nothing was abandoned, and nobody traces, which Python must see to. */
static int may_resume(PyObject *turns)
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

/* Make the stack ready to be switched to. An error leaves all as it was. */
static int take_turn(PyObject *turns)
{
    PyObject *home = PEEK(turns, Switch, _home), *parked = PEEK(home, Home, parked), *done = NULL;
    PyObject *me = PyObject_CallNoArgs(py_getcurrent);
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
    if (me != PEEK(turns, Switch, _resumer)) {
        done = PyObject_CallMethodOneArg(turns, s__meet, me);
        if (done == NULL)
            goto over;
        Py_DECREF(done);
    }
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
static int resume(PyObject *turns)
{
    int failed = FAILED;
    PyObject *parked = PEEK(PEEK(turns, Switch, _home), Home, parked);
    PyObject *worker = new_ref(PEEK(turns, Switch, _worker)), *mine = ambient_now();
    if (mine == NULL)
        goto over;
    int there = ambient_swap(mine, PEEK(turns, Switch, _ambient)) == 0;
    if (there) {
        PyObject *came = PyObject_CallMethodNoArgs(worker, s_switch);
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
static int may_pause(PyObject *turns)
{
    if (PEEK(turns, Switch, _resumer) == Py_None)
        return OTHER;
    int rests = equal(PEEK(turns, Switch, _level), zero);
    return rests != 1 ? rests : gives_none(PyObject_CallNoArgs(py_transform));
}

static int pause_here(PyObject *turns)
{
    PyObject *resumer = new_ref(PEEK(turns, Switch, _resumer));
    PyObject *came = PyObject_CallMethodNoArgs(resumer, s_switch);
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

static PyObject *switch_resume(PyObject *module, PyObject *turns)
{
    int plain = is_switch(turns) ? may_resume(turns) : OTHER;
    if (plain == OTHER)
        return PyObject_CallOneArg(py_resume, turns);
    if (plain < 0 || take_turn(turns) < 0 || resume(turns) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *switch_pause(PyObject *module, PyObject *turns)
{
    int plain = is_switch(turns) && PEEK(turns, Switch, ending) == Py_False ? may_pause(turns) : OTHER;
    if (plain == OTHER)
        return PyObject_CallOneArg(py_pause, turns);
    if (plain < 0 || pause_here(turns) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* -- the model's side: `Run.reach`, `Run.leave` and what both call, `Run._arrive` ---------------------------------- */

static PyObject *new_visit(PyObject *key, PyObject *number, PyObject *args, PyObject *kwargs, PyObject *port,
                           PyObject *result)
{
    PyObject *visit = PyType_GenericAlloc(Visit, 0);
    if (visit == NULL)
        return NULL;
    PyObject *dict = kwargs != NULL ? new_ref(kwargs) : PyDict_New();
    if (dict == NULL) {
        Py_DECREF(visit);
        return NULL;
    }
    PUT(visit, Visit, key, new_ref(key));
    PUT(visit, Visit, number, new_ref(number));
    PUT(visit, Visit, args, new_ref(args));
    PUT(visit, Visit, kwargs, dict);
    PUT(visit, Visit, port, new_ref(port));
    PUT(visit, Visit, result, new_ref(result));
    PUT(visit, Visit, skipped, new_ref(Py_False));
    return visit;
}

/* How often the model has passed a port of a site; -1 with an error. */
static long passed(PyObject *run, PyObject *key, PyObject *port)
{
    PyObject *tally = PEEK(run, Run, tally);
    return port == s_output ? counted(PEEK(tally, Tally, left), PEEK(run, Run, _ends), key)
                            : counted(PEEK(tally, Tally, entered), PEEK(run, Run, _starts), key);
}

/* Whether it is a run of a known kind, made to the end, whose blocks have had their first turn. */
static int is_run(PyObject *run)
{
    int known = Py_TYPE(run) == Run || Py_TYPE(run) == Edited ||
                (Py_TYPE(run) == Served && PEEK(run, Served, begun) == Py_True);
    return known && PEEK(run, Run, switch) != NULL;
}

/* Ordinary: nobody records, no region may be recomputed, no transform is under way, the run goes on. */
static int may_arrive(PyObject *run)
{
    PyObject *turns = PEEK(run, Run, switch);
    if (Py_TYPE(turns) != Switch || PEEK(turns, Switch, ending) != Py_False ||
        PyList_GET_SIZE(PEEK(run, Run, recorders)))
        return OTHER;
    if (PEEK(run, Run, changes) != Py_None) {
        int plain = truth(py_forward_grad);
        if (plain == 1)
            plain = no_hooks();
        if (plain != 1)
            return plain;
    }
    return may_pause(turns);
}

/* Who watches a port of a site: a list, borrowed; NULL where nobody does, or with an error. */
static PyObject *watchers_of(PyObject *run, PyObject *key, PyObject *port)
{
    PyObject *watchers = PEEK(run, Run, watchers);
    if (!PyDict_GET_SIZE(watchers))
        return NULL;
    PyObject *place = PyTuple_Pack(2, key, port), *found;
    if (place == NULL)
        return NULL;
    found = PyDict_GetItemWithError(watchers, place);
    Py_DECREF(place);
    return found;
}

/* Whether a visit is the one that the block waits for. */
static int is_wanted(PyObject *run, PyObject *key, PyObject *number, PyObject *port)
{
    PyObject *wanted = PEEK(run, Run, _wanted);
    if (wanted == Py_None)
        return 0;
    int same = equal(PyTuple_GET_ITEM(wanted, 0), key);
    if (same == 1)
        same = equal(PyTuple_GET_ITEM(wanted, 1), number);
    return same == 1 ? equal(PyTuple_GET_ITEM(wanted, 2), port) : same;
}

/* Note, without keeping it alive, what the block has read. */
static int remember(PyObject *run, PyObject *visit, PyObject *port)
{
    PyObject *reads = PEEK(run, Run, reads), *result = PEEK(visit, Visit, result);
    if (port == s_output && Py_TYPE(result) == Tensor) {
        PyObject *flag = PyObject_GetAttr(result, s_requires_grad);
        if (flag == NULL)
            return FAILED;
        int needs = PyObject_IsTrue(flag);
        Py_DECREF(flag);
        if (needs != 1)
            return needs;
        PyObject *key = PyTuple_Pack(3, PEEK(visit, Visit, key), PEEK(visit, Visit, number), port);
        PyObject *weak = PyWeakref_NewRef(result, NULL);
        int failed = key == NULL || weak == NULL ? FAILED : PyDict_SetItem(reads, key, weak);
        Py_XDECREF(key);
        Py_XDECREF(weak);
        return failed;
    }
    int grad = truth(py_grad);
    if (grad != 1)
        return grad;
    PyObject *done = PyObject_CallFunctionObjArgs(py_remember, reads, visit, port, NULL);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Show a visit to those who watch its place; they may end the run, and with it this list. */
static int show(PyObject *visit, PyObject *watching)
{
    int failed = 0;
    Py_INCREF(watching);
    for (Py_ssize_t at = 0; !failed && at < PyList_GET_SIZE(watching); at++) {
        PyObject *watcher = new_ref(PyList_GET_ITEM(watching, at));
        PyObject *done = PyObject_CallOneArg(watcher, visit);
        Py_DECREF(watcher);
        Py_XDECREF(done);
        failed = done == NULL ? FAILED : 0;
    }
    Py_DECREF(watching);
    return failed;
}

/* Have it recorded, where a block has begun a recording at this very visit. */
static int record(PyObject *run, PyObject *visit, PyObject *port)
{
    if (!PyList_GET_SIZE(PEEK(run, Run, recorders)))
        return 0;
    PyObject *done = PyObject_CallMethodObjArgs(run, s__record, visit, port, NULL);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Show a visit to those who watch its place, and let the block have it if it is the one that it waits for. */
static int arrive(PyObject *run, PyObject *visit, PyObject *port, PyObject *watching)
{
    PyObject *key = PEEK(visit, Visit, key), *passing, *done;
    int waited = is_wanted(run, key, PEEK(visit, Visit, number), port);
    if (waited < 0)
        return FAILED;
    PUT(visit, Visit, port, new_ref(port));
    if (watching != NULL && show(visit, watching) < 0)
        return FAILED;
    passing = PEEK(run, Run, passing);
    if (passing != Py_None && PEEK(PEEK(run, Run, switch), Switch, done) != Py_True) {
        PyObject *later = Py_TYPE(PEEK(PEEK(run, Run, tally), Tally, after)) == Everything ? Py_True : Py_False;
        Py_INCREF(passing);
        done = PyObject_CallMethodObjArgs(passing, s_add, visit, later, NULL);
        Py_DECREF(passing);
        Py_XDECREF(done);
        if (done == NULL)
            return FAILED;
    }
    if (!waited)
        return record(run, visit, port);
    PUT(run, Run, _wanted, new_ref(Py_None));
    if (watching == NULL) {
        PyObject *asked = PyDict_GetItemWithError(PEEK(run, Run, _asked), port);
        if (asked == NULL || PySet_Discard(asked, key) < 0)
            return FAILED;
    }
    PUT(run, Run, live, new_ref(visit));
    if (pause_here(PEEK(run, Run, switch)) < 0 || remember(run, visit, port) < 0)
        return FAILED;
    return record(run, visit, port);
}

/* Whether nobody has a use for a visit that the block does not wait for. */
static int is_idle(PyObject *run, PyObject *watching) { return watching == NULL && PEEK(run, Run, passing) == Py_None; }

/* Report a call that has been made, and return what the model goes on with; takes over `result`. */
static PyObject *leave(PyObject *stack, PyObject *key, PyObject *args, PyObject *kwargs, PyObject *result)
{
    PyObject *run = PyObject_GetAttr(stack, s_tracing), *visit = NULL, *number = NULL, *given = NULL;
    if (run == NULL)
        goto over;
    int plain = is_run(run) ? may_arrive(run) : OTHER;
    if (plain == OTHER) {
        PyObject *dict = kwargs != NULL ? new_ref(kwargs) : PyDict_New();
        if (dict != NULL)
            given = PyObject_CallMethodObjArgs(run, s_leave, key, args, dict, result, NULL);
        Py_XDECREF(dict);
        goto over;
    }
    long ends = plain < 0 ? FAILED : passed(run, key, s_output);
    if (ends < 0 || (number = PyLong_FromLong(ends - 1)) == NULL)
        goto over;
    PyObject *watching = watchers_of(run, key, s_output);
    if (watching == NULL && PyErr_Occurred())
        goto over;
    if (is_idle(run, watching) && (plain = is_wanted(run, key, number, s_output)) != 1) {
        if (plain == 0)
            given = new_ref(result);
        goto over;
    }
    if ((visit = new_visit(key, number, args, kwargs, s_output, result)) == NULL)
        goto over;
    Py_CLEAR(result); /* the visit has it, and what replaces it lets go of it */
    if (arrive(run, visit, s_output, watching) == 0)
        given = new_ref(PEEK(visit, Visit, result));
over:
    Py_XDECREF(run);
    Py_XDECREF(number);
    Py_XDECREF(visit);
    Py_XDECREF(result);
    return given;
}

/* Note that a call has ended with an error, which stays. */
static void broke(PyObject *stack, PyObject *key)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *run = PyObject_GetAttr(stack, s_tracing);
    PyObject *done = run == NULL ? NULL : PyObject_CallMethodOneArg(run, s_broke, key);
    if (done == NULL) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    } else
        PyErr_Restore(type, value, traceback);
    Py_XDECREF(run);
    Py_XDECREF(done);
}

/* -- taps: what runs in place of a module's call ------------------------------------------------------------------- */

/* What all taps of a tree share. */
typedef struct {
    PyObject_HEAD
    PyObject *served; /* the tally of the run that was opened last */
    PyObject *everywhere; /* a tuple of torch's hooks for all modules */
    Py_ssize_t many; /* how many notes are kept uncounted */
} Line;

typedef struct {
    PyObject_HEAD
    Line *line;
    PyObject *key, *module, *inner;
    PyObject *looked; /* where the hooks of the module are; NULL where it must not be called by its forward */
    PyObject *tap;
    char root;
} Report;

/* Whether it is a tally, made to the end. */
static int is_tally(PyObject *tally) { return learned && Py_TYPE(tally) == Tally && PEEK(tally, Tally, left) != NULL; }

static int Line_traverse(Line *self, visitproc visit, void *arg)
{
    Py_VISIT(self->served);
    Py_VISIT(self->everywhere);
    return 0;
}

static int Line_clear(Line *self)
{
    Py_CLEAR(self->served);
    Py_CLEAR(self->everywhere);
    return 0;
}

static void Line_dealloc(Line *self)
{
    PyObject_GC_UnTrack(self);
    Line_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *Line_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *served, *everywhere;
    Py_ssize_t many;
    static char *names[] = {"served", "everywhere", "many", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!n", names, &served, &PyTuple_Type, &everywhere, &many))
        return NULL;
    if (!is_tally(served)) {
        PyErr_SetString(PyExc_TypeError, "a line serves a tally");
        return NULL;
    }
    Line *self = (Line *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->served = new_ref(served);
        self->everywhere = new_ref(everywhere);
        self->many = many;
    }
    return (PyObject *)self;
}

static PyObject *Line_serve(Line *self, PyObject *tally)
{
    if (!is_tally(tally)) {
        PyErr_SetString(PyExc_TypeError, "a line serves a tally");
        return NULL;
    }
    Py_INCREF(tally);
    Py_SETREF(self->served, tally);
    Py_RETURN_NONE;
}

static PyMethodDef Line_methods[] = {
    {"serve", (PyCFunction)Line_serve, METH_O, "Say whose run is found without looking for it."},
    {NULL},
};

static PyTypeObject LineType = {
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
    int root;
    static char *names[] = {"line", "key", "module", "inner", "looked", "tap", "root", NULL};
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!OOOOOp", names, &LineType, &line, &key, &module, &inner, &looked, &tap, &root))
        return NULL;
    if (looked != Py_None && !PyDict_Check(looked)) {
        PyErr_SetString(PyExc_TypeError, "hooks are looked up in a dictionary");
        return NULL;
    }
    Report *self = (Report *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->line = (Line *)new_ref(line);
        self->key = new_ref(key);
        self->module = new_ref(module);
        self->inner = new_ref(inner);
        self->looked = looked == Py_None ? NULL : new_ref(looked);
        self->tap = new_ref(tap);
        self->root = (char)root;
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
        Py_ssize_t size = PyObject_Size(PyTuple_GET_ITEM(everywhere, at));
        if (size)
            return size < 0 ? FAILED : 0;
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

/* Let the block have the output of a visit whose input somebody waited for. */
static int left_again(PyObject *run, PyObject *visit)
{
    PyObject *key = PEEK(visit, Visit, key), *number;
    long ends = passed(run, key, s_output);
    if (ends < 0 || (number = PyLong_FromLong(ends - 1)) == NULL)
        return FAILED;
    PUT(visit, Visit, number, number);
    int plain = may_arrive(run);
    if (plain < 0)
        return FAILED;
    if (plain == ORDINARY) {
        PyObject *watching = watchers_of(run, key, s_output);
        return watching == NULL && PyErr_Occurred() ? FAILED : arrive(run, visit, s_output, watching);
    }
    PyObject *done = PyObject_CallMethodObjArgs(run, s__arrive, visit, s_output, NULL);
    Py_XDECREF(done);
    return done == NULL ? FAILED : 0;
}

/* Make a call that somebody waits for: pause before it, and after it where that was asked for. */
static PyObject *reach(Report *self, PyObject *stack, PyObject *tally, PyObject *args, PyObject *kwargs)
{
    PyObject *run = PyObject_GetAttr(stack, s_tracing), *key = self->key;
    PyObject *given = NULL, *visit = NULL, *number = NULL;
    if (run == NULL)
        return NULL;
    int plain = is_run(run) ? may_arrive(run) : OTHER;
    if (plain == OTHER) {
        PyObject *dict = kwargs != NULL ? new_ref(kwargs) : PyDict_New();
        if (dict != NULL)
            given = PyObject_CallMethodObjArgs(run, s_reach, key, self->inner, args, dict, NULL);
        Py_XDECREF(dict);
        goto over;
    }
    long starts = plain < 0 ? FAILED : passed(run, key, s_input);
    if (starts < 0 || (number = PyLong_FromLong(starts)) == NULL ||
        (visit = new_visit(key, number, args, kwargs, s_input, Py_None)) == NULL ||
        PyList_Append(PEEK(tally, Tally, entered), key) < 0)
        goto over;
    PyObject *watching = watchers_of(run, key, s_input);
    if ((watching == NULL && PyErr_Occurred()) || arrive(run, visit, s_input, watching) < 0)
        goto over;
    if (PEEK(visit, Visit, skipped) == Py_False) {
        PyObject *own = PySequence_Tuple(PEEK(visit, Visit, args)), *named = PEEK(visit, Visit, kwargs), *result = NULL;
        named = PyDict_CheckExact(named) ? new_ref(named) : PyObject_CallOneArg((PyObject *)&PyDict_Type, named);
        if (own != NULL && named != NULL)
            result = PyObject_Call(self->inner, own, named);
        Py_XDECREF(own);
        Py_XDECREF(named);
        if (result == NULL) {
            broke(stack, key);
            goto over;
        }
        PUT(visit, Visit, result, result);
    }
    if (PyList_Append(PEEK(tally, Tally, left), key) < 0)
        goto over;
    int after = contains(PEEK(tally, Tally, after), key);
    if (after < 0 || (after && left_again(run, visit) < 0))
        goto over;
    given = new_ref(PEEK(visit, Visit, result));
over:
    Py_DECREF(run);
    Py_XDECREF(number);
    Py_XDECREF(visit);
    return given;
}

/* Ordinary: the call is part of the run that was opened last, and nobody waits for it. */
static PyObject *Report_call(Report *self, PyObject *args, PyObject *kwargs)
{
    if (self->line == NULL || self->line->served == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this tap is being collected");
        return NULL;
    }
    PyObject *tally = new_ref(self->line->served), *stack = PyObject_CallNoArgs(py_getcurrent), *given = NULL;
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
    } else if (self->root && PyList_GET_SIZE(PEEK(tally, Tally, entered)) > self->line->many) {
        PyObject *run = PyObject_GetAttr(stack, s_tracing);
        PyObject *done = run == NULL ? NULL : PyObject_CallMethodNoArgs(run, s_count);
        Py_XDECREF(run);
        Py_XDECREF(done);
        if (done == NULL)
            goto over;
    }
    int waits = contains(PEEK(tally, Tally, before), self->key);
    if (waits) {
        if (waits > 0)
            given = reach(self, stack, tally, args, kwargs);
        goto over;
    }
    if (PyList_Append(PEEK(tally, Tally, entered), self->key) < 0)
        goto over;
    PyObject *result = call_module(self, args, kwargs);
    if (result == NULL) {
        broke(stack, self->key);
        goto over;
    }
    if (PyList_Append(PEEK(tally, Tally, left), self->key) < 0 ||
        (waits = contains(PEEK(tally, Tally, after), self->key)) < 0)
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

static PyTypeObject ReportType = {
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
        __builtin_prefetch(start + 64 * line);
#endif
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
static PyObject *place(PyObject *module, PyObject *const *args, Py_ssize_t size)
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
static PyObject *displace(PyObject *module, PyObject *const *args, Py_ssize_t size)
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

/* -- the block's side: `Tree.trace_at`, `Trace._visit`, `Run.ask` -------------------------------------------------- */

/* What a weak reference leads to; NULL, without an error, where that is gone. */
static PyObject *deref(PyObject *weak)
{
    PyObject *found = PyObject_CallNoArgs(weak);
    if (found == Py_None)
        Py_CLEAR(found);
    return found;
}

/* Ordinary: a frame outward from the asker's has a trace open, and no operator written in Python stands between. */
static int find_trace(PyObject *tree, PyObject **trace)
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

/* The visit that a request means now, which depends on the step that a loop is in. */
static PyObject *number_now(PyObject *trace, PyObject *site, PyObject *port)
{
    PyObject *steps = PyObject_GetAttr(trace, s__steps), *current, *number = NULL;
    if (steps == NULL)
        return NULL;
    if (steps == Py_None) {
        Py_DECREF(steps);
        return new_ref(zero);
    }
    current = PyObject_GetAttr(steps, s_current);
    if (current != NULL)
        number = current == Py_None ? new_ref(zero) : PyObject_CallMethodObjArgs(steps, s_number, site, port, NULL);
    Py_XDECREF(current);
    Py_DECREF(steps);
    return number;
}

/* Whether the model is paused at a visit; the input of one can still be read at its output. */
static int is_live(PyObject *live, PyObject *key, PyObject *number, PyObject *port)
{
    if (live == Py_None)
        return 0;
    int same = equal(PEEK(live, Visit, key), key);
    if (same == 1)
        same = equal(PEEK(live, Visit, number), number);
    return same == 1 && port != s_input ? equal(PEEK(live, Visit, port), port) : same;
}

/* Let the model run to a visit. Ordinary: it is ahead, and nothing waits for the model to go on. */
static int ask(PyObject *run, PyObject *site, PyObject *port, PyObject *number, PyObject **found)
{
    int plain = OTHER;
    PyObject *wanted = NULL, *before = NULL, *key = PEEK(site, Site, key), *turns = PEEK(run, Run, switch);
    if (PEEK(run, Run, side) != Py_None)
        return OTHER;
    plain = is_live(PEEK(run, Run, live), key, number, port);
    if (plain) {
        *found = plain == 1 ? new_ref(PEEK(run, Run, live)) : NULL;
        goto over;
    }
    if (PyList_GET_SIZE(PEEK(run, Run, pending)) || Py_TYPE(turns) != Switch || PEEK(turns, Switch, done) != Py_False)
        goto over;
    int larger = 0;
    long before_it = passed(run, key, port), which = PyLong_AsLongAndOverflow(number, &larger);
    if (before_it < 0 || (which == -1 && !larger && PyErr_Occurred()))
        goto failed;
    if (larger || before_it > which || (plain = may_resume(turns)) != ORDINARY)
        goto over;
    PyObject *asked = PyDict_GetItemWithError(PEEK(run, Run, _asked), port);
    if (asked == NULL || PySet_Add(asked, key) < 0 || (wanted = PyTuple_Pack(3, key, number, port)) == NULL)
        goto failed;
    before = new_ref(PEEK(run, Run, live));
    PUT(run, Run, _wanted, new_ref(wanted));
    PUT(run, Run, live, new_ref(Py_None));
    if (take_turn(turns) < 0) { /* it could not go on, and is where it was */
        PUT(run, Run, live, new_ref(before));
        PUT(run, Run, _wanted, new_ref(Py_None));
        goto failed;
    }
    Py_CLEAR(before);
    if (resume(turns) < 0)
        goto failed;
    PyObject *live = PEEK(run, Run, live);
    if (live == Py_None || PEEK(turns, Switch, done) == Py_True) { /* a pause that is refused has failed the model */
        PyObject *error = PyObject_CallMethodObjArgs(run, s_nothing_came, site, port, number, NULL);
        if (error != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_XDECREF(error);
        goto failed;
    }
    PUT(run, Run, _site, new_ref(site));
    if (port == s_output &&
        PyDict_SetItem(PEEK(run, Run, kinds), key, (PyObject *)Py_TYPE(PEEK(live, Visit, result))) < 0)
        goto failed;
    *found = new_ref(live);
    plain = ORDINARY;
    goto over;
failed:
    plain = FAILED;
over:
    Py_XDECREF(before);
    Py_XDECREF(wanted);
    return plain;
}

static int is_site(PyObject *site) { return Py_TYPE(site) == Site && PEEK(site, Site, key) != NULL; }

static int is_port(PyObject *port) { return port == s_output || port == s_input; }

static PyObject *run_ask(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *visit = NULL;
    int plain = OTHER;
    if (size == 4 && is_run(args[0]) && is_site(args[1]) && is_port(args[2]) && PyLong_CheckExact(args[3]))
        plain = ask(args[0], args[1], args[2], args[3], &visit);
    return plain == OTHER ? PyObject_Vectorcall(py_ask, args, size, NULL) : visit;
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
        Py_XDECREF(type);
        Py_XDECREF(value);
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

/* The visit that a request made now means. Ordinary: the trace serves one block, and its run has begun. */
static int visit_of(PyObject *envoy, PyObject *port, PyObject **found)
{
    int plain = FAILED;
    PyObject *trace = NULL, *run = NULL, *site = NULL, *own = NULL, *number = NULL;
    PyObject *tree = PyObject_GetAttr(envoy, s__tree), *fused = tree == NULL ? NULL : PyObject_GetAttr(envoy, s__fused);
    if (fused == NULL)
        goto over;
    plain = fused == Py_False ? find_trace(tree, &trace) : OTHER;
    if (plain != ORDINARY)
        goto over;
    plain = FAILED;
    if ((own = PyObject_GetAttr((PyObject *)Py_TYPE(trace), s__visit)) == NULL ||
        (run = PyObject_GetAttr(trace, s__run)) == NULL || (site = PyObject_GetAttr(envoy, s__site)) == NULL)
        goto over;
    int block = PyObject_TypeCheck(run, Worker); /* one of several */
    if (own != py_visit || !is_site(site) || !(block || is_run(run))) {
        plain = OTHER;
        goto over;
    }
    if ((number = number_now(trace, site, port)) == NULL)
        goto over;
    if (block) {
        *found = PyObject_CallMethodObjArgs(run, s_ask, site, port, number, NULL);
        plain = *found != NULL ? ORDINARY : FAILED;
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
    Py_XDECREF(site);
    Py_XDECREF(own);
    Py_XDECREF(tree);
    Py_XDECREF(fused);
    return plain;
}

static PyObject *get_output(PyObject *module, PyObject *envoy)
{
    PyObject *visit = NULL, *given = NULL;
    int plain = visit_of(envoy, s_output, &visit);
    if (plain == OTHER)
        return PyObject_CallOneArg(py_get_output, envoy);
    if (plain == ORDINARY)
        given = Py_TYPE(visit) == Visit ? new_ref(PEEK(visit, Visit, result)) : PyObject_GetAttr(visit, s_result);
    Py_XDECREF(visit);
    return given;
}

static PyObject *get_input(PyObject *module, PyObject *envoy)
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
static int agree(PyObject *one, PyObject *other, PyObject *name)
{
    PyObject *first = PyObject_GetAttr(one, name), *second = first == NULL ? NULL : PyObject_GetAttr(other, name);
    int same = second == NULL ? FAILED : equal(first, second);
    Py_XDECREF(first);
    Py_XDECREF(second);
    return same;
}

/* What the model goes on with where `old` stood. Ordinary: a tensor, like the one that stood there where writes are
   checked; `writes.replace` says the rest. */
static PyObject *replacement(PyObject *envoy, PyObject *old, PyObject *value)
{
    int alike = Py_TYPE(value) == Tensor;
    if (alike) {
        PyObject *checks = PyObject_GetAttr(py_config, s_checks);
        if (checks == NULL)
            return NULL;
        Py_DECREF(checks);
        if (checks == Py_False)
            return new_ref(value);
        alike = Py_TYPE(old) == Tensor;
    }
    PyObject *each[] = {s_shape, s_dtype, s_device};
    for (size_t at = 0; alike == 1 && at < sizeof each / sizeof *each; at++)
        alike = agree(value, old, each[at]);
    if (alike)
        return alike < 0 ? NULL : new_ref(value);
    PyObject *path = PyObject_GetAttr(envoy, s__path);
    PyObject *new = NULL;
    if (path != NULL)
        new = PyObject_CallFunctionObjArgs(py_replace, old, value, path, result_suffix, NULL);
    Py_XDECREF(path);
    return new;
}

static PyObject *set_output(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    PyObject *visit = NULL, *new = NULL;
    if (size != 2) {
        PyErr_SetString(PyExc_TypeError, "an envoy and a value are wanted");
        return NULL;
    }
    int plain = visit_of(args[0], s_output, &visit);
    if (plain == OTHER)
        return PyObject_Vectorcall(py_set_output, args, 2, NULL);
    if (plain < 0)
        return NULL;
    int own = Py_TYPE(visit) == Visit, done = 0; /* else the rows of one prompt */
    PyObject *old = own ? new_ref(PEEK(visit, Visit, result)) : PyObject_GetAttr(visit, s_result);
    new = old == NULL ? NULL : replacement(args[0], old, args[1]);
    if (new != NULL && own)
        PUT(visit, Visit, result, new_ref(new));
    done = new != NULL && (own || PyObject_SetAttr(visit, s_result, new) == 0);
    Py_XDECREF(old);
    Py_XDECREF(new);
    Py_DECREF(visit);
    return done ? new_ref(Py_None) : NULL;
}

/* Ordinary: the output of an envoy whose class hides nothing. */
static PyObject *set_attr(PyObject *module, PyObject *const *args, Py_ssize_t size)
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

/* How often the model has passed a port of a site. */
static PyObject *run_seen(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 3 || !is_run(args[0]) || !is_port(args[2]))
        return PyObject_Vectorcall(py_seen, args, size, NULL);
    long seen = passed(args[0], args[1], args[2]);
    return seen < 0 ? NULL : PyLong_FromLong(seen);
}

static PyObject *count_all(PyObject *module, PyObject *const *args, Py_ssize_t size)
{
    if (size != 2 || !PyList_CheckExact(args[0]) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "a list of notes and their counts are wanted");
        return NULL;
    }
    return count(args[0], args[1]) < 0 ? NULL : new_ref(args[1]);
}

/* What a class can have as a method: it is called with the instance before its arguments. */
static PyObject *method(PyObject *module, PyObject *function) { return PyInstanceMethod_New(function); }

/* -- what Python tells --------------------------------------------------------------------------------------------- */

/* Where the instances of a class keep an attribute of its `__slots__`. */
static int learn_slot(PyTypeObject *class, const char *name, Slot *slot)
{
    PyObject *member = PyObject_GetAttrString((PyObject *)class, name);
    if (member == NULL)
        return FAILED;
    int is = Py_IS_TYPE(member, &PyMemberDescr_Type) && ((PyMemberDescrObject *)member)->d_member->type == T_OBJECT_EX;
    if (is)
        *slot = ((PyMemberDescrObject *)member)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%s has no slot %s", class->tp_name, name);
    Py_DECREF(member);
    return is ? 0 : FAILED;
}

static PyObject *learn(PyObject *module, PyObject *args, PyObject *told)
{
    PyObject *found;
    if (told == NULL || PyTuple_GET_SIZE(args)) {
        PyErr_SetString(PyExc_TypeError, "classes and functions are told by name");
        return NULL;
    }
#define TOLD(name) \
    if ((found = PyDict_GetItemString(told, #name)) == NULL) \
        return PyErr_Format(PyExc_TypeError, "%s was not told", #name);
#define LEARN_CLASS(name) \
    TOLD(name) \
    if (!PyType_Check(found)) \
        return PyErr_Format(PyExc_TypeError, "%s is no class", #name); \
    Py_XSETREF(name, (PyTypeObject *)new_ref(found));
#define LEARN_OBJECT(name) \
    TOLD(name) \
    Py_XSETREF(py_##name, new_ref(found));
#define LEARN_SLOT(class, name) \
    if (learn_slot(class, #name, &class##_##name) < 0) \
        return NULL;
    Py_ssize_t wanted = 0;
#define COUNT(...) wanted++;
    CLASSES(COUNT)
    OBJECTS(COUNT)
    if (PyDict_GET_SIZE(told) != wanted)
        return PyErr_Format(PyExc_TypeError, "%zd names are known, %zd were told", wanted, PyDict_GET_SIZE(told));
    CLASSES(LEARN_CLASS)
    OBJECTS(LEARN_OBJECT)
    SLOTS(LEARN_SLOT)
    if (!PyAnySet_Check(py_operators)) {
        PyErr_SetString(PyExc_TypeError, "the operators are a set of files");
        return NULL;
    }
    learned = 1;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"learn", (PyCFunction)(void (*)(void))learn, METH_VARARGS | METH_KEYWORDS,
     "Be told the classes and functions of Python that all else here works with."},
    {"get_output", get_output, METH_O, "The output of an envoy, as `Envoy.output` gives it."},
    {"set_output", (PyCFunction)(void (*)(void))set_output, METH_FASTCALL, "Replace the output of an envoy."},
    {"get_input", get_input, METH_O, "The input of an envoy, as `Envoy.input` gives it."},
    {"set_attr", (PyCFunction)(void (*)(void))set_attr, METH_FASTCALL, "Assign to an attribute of an envoy."},
    {"ask", (PyCFunction)(void (*)(void))run_ask, METH_FASTCALL, "Run a model until it reaches a visit."},
    {"resume", switch_resume, METH_O, "Run the function of a switch until it pauses or ends."},
    {"pause", switch_pause, METH_O, "Hand the turn back."},
    {"seen", (PyCFunction)(void (*)(void))run_seen, METH_FASTCALL, "How often a model has passed a port of a site."},
    {"count", (PyCFunction)(void (*)(void))count_all, METH_FASTCALL, "Count what has been noted; returns the counts."},
    {"place", (PyCFunction)(void (*)(void))place, METH_FASTCALL,
     "Put each value under a key of its dictionary, where nothing stands."},
    {"displace", (PyCFunction)(void (*)(void))displace, METH_FASTCALL,
     "Take each value away from under a key of its dictionary, and leave what is something else."},
    {"ambient", ambient, METH_NOARGS, "This thread's state now."},
    {"method", method, METH_O, "A function of this module as a method of a class."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "interlace._quick",
    .m_doc = "The ordinary case of a module's call and of a request.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__quick(void)
{
#define INTERN(name) \
    if ((s_##name = PyUnicode_InternFromString(#name)) == NULL) \
        return NULL;
    NAMES(INTERN)
    if ((zero = PyLong_FromLong(0)) == NULL || (result_suffix = PyUnicode_InternFromString(".output")) == NULL)
        return NULL;
    if (PyType_Ready(&LineType) < 0 || PyType_Ready(&ReportType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddObjectRef(module, "Line", (PyObject *)&LineType) < 0 ||
        PyModule_AddObjectRef(module, "Report", (PyObject *)&ReportType) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}

/* The ordinary case of a module's call and of a request, in C: what its files know of each other, and of Python.

   Everything here is written in Python too, and Python has the last word: whatever is not the ordinary case is handed
   to it before anything was changed. What the ordinary case is stands at the top of each function. Objects are the
   ones of Python; `learn` is told their classes, and finds where these keep their attributes.

   learn.c     what is told of the classes and functions of Python
   trace.c     the beginning and the end of a trace
   turns.c     two stacks take turns, each with torch's state of its own
   notes.c     how often each site was passed
   asked.c     at which sites a tap must report
   steps.c     the steps of a repeated run
   run.c       a run: its beginning and end, what has passed, the arrival at a visit, the request for one
   tap.c       what runs in place of a module's call
   rows.c      one prompt's rows of the inputs and of a visit, and how they come together
   blocks.c    one block of several: its beginning and end, its request, its turn
   captured.c  a captured block: left where it stands, its names, what it gives back
   owners.c    the frame that a trace belongs to, and the trace that is open there
   request.c   an envoy's output and input, read and written
   module.c    what Python can call */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#include <structmember.h>

#pragma GCC visibility push(hidden)

typedef Py_ssize_t Slot;

#define ORDINARY 1
#define OTHER 0
#define FAILED (-1)

/* -- what is known of the classes of Python ------------------------------------------------------------------------ */

#define CLASSES(X) \
    X(Run) X(Edited) X(Served) X(Tally) X(Switch) X(Home) X(Visit) X(Site) X(Opened) X(Tensor) X(Everything) \
    X(Worker) X(Schedule) X(RowVisit) X(Piece) X(Rows) X(Counts) X(Owner) X(Invoke) X(Prompts) X(Body) X(Template) \
    X(Bound) X(Scope) X(Family) X(Passing) X(Steps) X(Step) X(Given) X(Taps)

#define SLOTS(X) \
    X(Run, tally) X(Run, live) X(Run, side) X(Run, switch) X(Run, passing) X(Run, watchers) X(Run, recorders) \
    X(Run, pending) X(Run, kinds) X(Run, reads) X(Run, changes) X(Run, _starts) X(Run, _ends) X(Run, _asked) \
    X(Run, _wanted) X(Run, _site) X(Run, stopped) \
    X(Run, _broken) X(Run, _call) X(Run, _held_back) X(Run, _new) X(Run, at_end) X(Run, failed) X(Run, frames) \
    X(Run, known) X(Run, skipped) X(Run, schedule) X(Served, begun) \
    X(Tally, stack) X(Tally, before) X(Tally, after) X(Tally, entered) X(Tally, left) \
    X(Switch, _ambient) X(Switch, _home) X(Switch, _level) X(Switch, _resumer) X(Switch, _token) X(Switch, _worker) \
    X(Switch, done) X(Switch, ending) X(Switch, error) X(Switch, carries) X(Switch, _context) X(Switch, _function) \
    X(Switch, _abandoned) X(Switch, unwound) X(Switch, result) \
    X(Home, abandoned) X(Home, idle) X(Home, ident) X(Home, parked) \
    X(Visit, args) X(Visit, key) X(Visit, kwargs) X(Visit, number) X(Visit, port) X(Visit, result) X(Visit, skipped) \
    X(Site, key) X(Opened, code) X(Opened, trace) X(Opened, before) \
    X(Worker, rows) X(Worker, place) X(Worker, side) X(Worker, want) X(Worker, pending) X(Worker, tells) \
    X(Worker, switch) X(Worker, pause) X(Worker, _view) X(Worker, _schedule) X(Worker, _coverage) X(Worker, _ended) \
    X(Schedule, live) X(Schedule, views) X(Schedule, over) X(Schedule, error) X(Schedule, run) \
    X(Schedule, workers) X(Schedule, result) \
    X(Schedule, _waiting) X(Schedule, _held) X(Schedule, _skips) X(Schedule, _ahead) \
    X(RowVisit, visit) X(RowVisit, rows) X(RowVisit, pieces) \
    X(Worker, name) X(Worker, reads) X(Worker, until) X(Worker, waits) X(Worker, trace) X(Worker, _body) \
    X(Worker, _trees) X(Worker, _keep) X(Worker, _looked) X(Owner, key) X(Owner, code) \
    X(Piece, rows) X(Piece, whole) X(Piece, value) X(Piece, _marks) X(Piece, fits) X(Rows, start) \
    X(Rows, size) X(Rows, total) X(Rows, padding) X(Rows, length) X(Rows, copies) \
    X(Invoke, _body) X(Invoke, _given) X(Invoke, _prompts) \
    X(Prompts, _blocks) X(Prompts, _families) X(Prompts, _places) X(Prompts, _templates) X(Prompts, _workers) \
    X(Body, _skip) X(Body, frame) X(Body, template) X(Bound, __globals__) X(Bound, first) X(Bound, function) \
    X(Template, binds) X(Template, called) X(Template, code) X(Template, entry) X(Template, mentions) \
    X(Template, plain) X(Template, uses) \
    X(Scope, _il_base) X(Scope, _il_before) X(Scope, _il_binds) X(Scope, _il_family) X(Scope, _il_globals) \
    X(Scope, _il_outer) X(Scope, _il_pending) X(Scope, _il_place) X(Scope, _il_settled) X(Scope, _il_uses) \
    X(Family, _use) X(Family, _wait) X(Family, binders) X(Family, scopes) X(Passing, log) X(Passing, visits) \
    X(Steps, current) X(Steps, inside) X(Steps, paced) X(Steps, pacemaker) X(Steps, run) X(Steps, trail) \
    X(Given, args) X(Given, envoy) X(Given, fn) X(Given, kwargs) X(Served, raised) \
    X(Taps, calls) X(Taps, lenders) X(Taps, placed) X(Taps, replaced) X(Taps, serve) X(Taps, slots) X(Taps, users) \
    X(Step, ends) X(Step, index) X(Step, starts) X(Step, stop) X(Step, waiting)

#define OBJECTS(X) \
    X(RunEnded) X(NOBODY) X(gettrace) X(TURN) X(here) X(operators) X(visit) X(remember) X(replace) X(ambient_read) \
    X(ambient_swap) X(grad) X(set_grad) X(inference) X(autocast) X(functions) X(dispatches) X(hooks) X(transform) \
    X(forward_grad) X(cuda) X(cuda_device) X(cuda_devices) X(cuda_stream) X(get_output) X(set_output) X(get_input) \
    X(set_attr) X(seen) X(ask) X(resume) X(pause) X(NotReached) X(OrderError) X(property) X(config) \
    X(worker_ask) X(worker_leave) X(turns) X(reached) X(join) X(cat) X(strided) X(guard) X(homes) X(switch_init) \
    X(run_init) X(owner) X(opened) X(closed) X(contextlib) X(enters) X(worker_init) X(get_item) X(LISTS) X(execute) \
    X(model) X(finish) X(GreenletExit) X(work) X(far) X(deep) X(kept) X(serve) X(concatenate) X(apply) \
    X(templates) X(Skipped) X(partial) X(forget_skip) X(invoke_init) X(invoke_enter) X(invoke_exit) X(bound_call) \
    X(settled) X(family_close) X(part) X(trace_del) X(schedule_init) \
    X(ahead) X(report) X(number) X(advance) X(placed) X(given_call) X(combined) X(install) X(remove) X(begin) \
    X(close) X(leave_run) X(prepare_input) X(combine) X(copies) X(lock) X(SLOT) X(idle) X(Changes)

#define NAMES(X) \
    X(_tree) X(_open) X(_fused) X(_site) X(_path) X(_run) X(_steps) X(_visit) X(switch) \
    X(tracing) X(gr_context) X(parent) X(job) X(_initialized) X(forward) X(reach) X(leave) X(broke) X(_record) \
    X(_arrive) X(nothing_came) X(recalled) X(_unreached) X(_meet) X(_start) X(_take_turn) X(add) X(ask) X(port) \
    X(result) X(args) X(depth) X(_stack_saved) X(reads) X(output) X(input) X(requires_grad) X(shape) X(dtype) \
    X(device) X(checks) X(data_ptr) X(layout) X(stride) X(edited) X(shares) X(note) X(home) X(_part) X(_serve) \
    X(_owner) X(pause) X(_model) X(_module) X(_modules) X(_close) X(_unmet) X(_over) X(_outer) X(settle) X(_tell) \
    X(_release) X(_skip_all) X(_forward_hooks) X(_forward_pre_hooks) X(_backward_hooks) X(_backward_pre_hooks) \
    X(model) X(_paced) X(_thread) X(_taps) X(_wait) X(_wait_for_use) X(f_code) X(f_lasti) X(f_locals) X(f_globals) \
    X(f_trace_opcodes) X(co_varnames) X(co_cellvars) X(co_freevars) X(first) \
    X(_parameter) X(_prepare_input) X(_combine) X(_copies) X(loader) X(acquire) X(release) X(_share) X(keys) X(enter) \
    X(_runs) X(around) X(_breaks) X(_caches) X(edits) X(_trees) X(remember) X(_strays) X(_unfused) X(_prepare) \
    X(failed) X(_result) X(_no_result) X(_prompts) X(_close_prompts)

#define DECLARE_CLASS(name) extern PyTypeObject *name;
#define DECLARE_SLOT(class, name) extern Slot class##_##name;
#define DECLARE_OBJECT(name) extern PyObject *py_##name;
#define DECLARE_NAME(name) extern PyObject *s_##name;
CLASSES(DECLARE_CLASS)
SLOTS(DECLARE_SLOT)
OBJECTS(DECLARE_OBJECT)
NAMES(DECLARE_NAME)

extern PyObject *zero, *result_suffix; /* 0 and ".output" */
extern int learned; /* whether all of that was told */

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

/* The same for what was made just now; FAILED where it could not be. */
static inline int hold(PyObject *object, Slot slot, PyObject *made)
{
    if (made != NULL)
        put(object, slot, made);
    return made == NULL ? FAILED : 0;
}

static inline PyObject *new_ref(PyObject *object)
{
    Py_INCREF(object);
    return object;
}

static inline int equal(PyObject *one, PyObject *other)
{
    return one == other ? 1 : PyObject_RichCompareBool(one, other, Py_EQ);
}

static inline int contains(PyObject *keys, PyObject *key)
{
    if (!PySet_CheckExact(keys))
        return PySequence_Contains(keys, key);
    return PySet_GET_SIZE(keys) ? PySet_Contains(keys, key) : 0;
}

/* The truth of an object, which is let go of; FAILED where there is none, for an error. */
static inline int truth_of(PyObject *found)
{
    if (found == NULL)
        return FAILED;
    int is = PyObject_IsTrue(found);
    Py_DECREF(found);
    return is;
}

/* The truth of what a function without arguments returns. */
static inline int truth(PyObject *function) { return truth_of(PyObject_CallNoArgs(function)); }

/* Whether a function gives None. */
static inline int gives_none(PyObject *found)
{
    if (found == NULL)
        return FAILED;
    Py_DECREF(found);
    return found == Py_None;
}

/* Take an error that is under way, so that another may come; NULL where there is none. */
static inline PyObject *take_error(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (type == NULL)
        return NULL;
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    Py_DECREF(type);
    Py_XDECREF(traceback);
    return value;
}

/* Let an error go on, whose reference is taken over. */
static inline void give_error(PyObject *error)
{
    PyErr_Restore(new_ref((PyObject *)Py_TYPE(error)), error, PyException_GetTraceback(error));
}

static inline int no_hooks(void) { return gives_none(PyObject_CallOneArg(py_hooks, Py_True)); }

/* -- what the files have for each other ---------------------------------------------------------------------------- */

/* learn.c */
int begin(void);

/* turns.c */
int know_greenlet(void);
PyObject *stack_here(void);
PyObject *switch_to(PyObject *stack);
PyObject *ambient_now(void);
PyObject *new_switch(PyObject *function, PyObject *carries, PyObject *token);
int may_resume(PyObject *turns);
int take_turn(PyObject *turns);
int resume(PyObject *turns);
int may_pause(PyObject *turns);
int pause_here(PyObject *turns);

/* notes.c */
extern PyTypeObject NotesType;
PyObject *new_notes(void);
int know_line(PyObject *noted, PyObject *keys, PyObject *places);
int note(PyObject *noted, PyObject *key, PyObject *places, Py_ssize_t at);
long counted(PyObject *noted, PyObject *counts, PyObject *key);
int are_counts(PyObject *counts);
long number_in(PyObject *counts, PyObject *key);
int mark_unpassed(PyObject *notes, PyObject *counts, char *marks);
PyObject *line_of(PyObject *notes);

/* asked.c */
extern PyTypeObject AskedType;
PyObject *new_asked(void);
int ask_line(PyObject *asked, PyObject *keys, PyObject *places);
PyObject *copy_of_asked(PyObject *asked);
char *marks_of(PyObject *asked, PyObject *keys);
int is_asked(PyObject *asked, PyObject *key, PyObject *places, Py_ssize_t at);
int add_asked(PyObject *asked, PyObject *key);
int discard_asked(PyObject *asked, PyObject *key);

/* steps.c */
int pass_by(PyObject *run, PyObject *visit);

/* run.c */
long passed(PyObject *run, PyObject *key, PyObject *port);
int is_run(PyObject *run);
int is_site(PyObject *site);
int is_port(PyObject *port);
int is_live(PyObject *live, PyObject *key, PyObject *number, PyObject *port);
int ask(PyObject *run, PyObject *site, PyObject *port, PyObject *number, PyObject **found);
PyObject *reach(PyObject *stack, PyObject *tally, PyObject *key, PyObject *places, Py_ssize_t at, PyObject *inner,
                PyObject *args, PyObject *kwargs);
PyObject *leave(PyObject *stack, PyObject *key, PyObject *args, PyObject *kwargs, PyObject *result);
void broke(PyObject *stack, PyObject *key);

/* blocks.c */
int block_ask(PyObject *worker, PyObject *site, PyObject *port, PyObject *number, PyObject **found);
PyObject *schedule_reached(PyObject *module, PyObject *const *args, Py_ssize_t size);

/* rows.c */
int are_rows(PyObject *view);
PyObject *rows_read(PyObject *view);
int rows_replace(PyObject *view, PyObject *value, int checked);
int rows_put(PyObject *view, PyObject *value);
int rows_join(PyObject *visit, PyObject *views);
int rows_shared(PyObject *views);

/* captured.c */
extern PyTypeObject SkipType;

/* owners.c */
PyObject *new_owner(PyObject *frame);
int find_trace(PyObject *tree, PyObject **trace);

/* request.c */
int agree(PyObject *one, PyObject *other, PyObject *name);

/* tap.c */
extern PyTypeObject LineType, ReportType;

/* -- what Python can call: module.c says what each does ------------------------------------------------------------ */

PyObject *learn(PyObject *module, PyObject *args, PyObject *told);
PyObject *ambient(PyObject *module, PyObject *nothing);
PyObject *switch_init(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *switch_execute(PyObject *module, PyObject *turns);
PyObject *work(PyObject *module, PyObject *worker);
PyObject *switch_resume(PyObject *module, PyObject *turns);
PyObject *switch_pause(PyObject *module, PyObject *turns);
PyObject *run_init(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *run_model(PyObject *module, PyObject *run);
PyObject *run_finish(PyObject *module, PyObject *run);
PyObject *run_ask(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *called_placed(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *given_call(PyObject *module, PyObject *given);
PyObject *given_combined(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *taps_install(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *taps_remove(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *trace_begin(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *trace_close(PyObject *module, PyObject *trace);
PyObject *trace_leave_run(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *run_report(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *run_ahead(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *steps_number(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *steps_advance(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *run_seen(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *counted_by_now(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *count_all(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *frame_owner(PyObject *module, PyObject *frame);
PyObject *tree_opened(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *tree_closed(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *worker_init(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *worker_serve(PyObject *module, PyObject *worker);
PyObject *worker_leave(PyObject *module, PyObject *worker);
PyObject *worker_ask(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *schedule_turns(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *concatenate(PyObject *module, PyObject *inputs);
PyObject *invoke_init(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *trace_part(PyObject *module, PyObject *trace);
PyObject *trace_del(PyObject *module, PyObject *trace);
PyObject *schedule_init(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *invoke_enter(PyObject *module, PyObject *invoke);
PyObject *invoke_exit(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *bound_call(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *scope_settled(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *family_close(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *place(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *same(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *displace(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *get_output(PyObject *module, PyObject *envoy);
PyObject *get_input(PyObject *module, PyObject *envoy);
PyObject *set_output(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *get_item(PyObject *module, PyObject *const *args, Py_ssize_t size);
PyObject *set_attr(PyObject *module, PyObject *const *args, Py_ssize_t size);

/* What Python can call. */

#include "quick.h"

/* What a class can have as a method: it is called with the instance before its arguments. */
static PyObject *method(PyObject *module, PyObject *function) { return PyInstanceMethod_New(function); }

static PyMethodDef methods[] = {
    {"learn", (PyCFunction)(void (*)(void))learn, METH_VARARGS | METH_KEYWORDS,
     "Be told the classes and functions of Python that all else here works with."},
    {"get_output", get_output, METH_O, "The output of an envoy, as `Envoy.output` gives it."},
    {"set_output", (PyCFunction)(void (*)(void))set_output, METH_FASTCALL, "Replace the output of an envoy."},
    {"get_input", get_input, METH_O, "The input of an envoy, as `Envoy.input` gives it."},
    {"get_item", (PyCFunction)(void (*)(void))get_item, METH_FASTCALL, "An item of an envoy."},
    {"set_attr", (PyCFunction)(void (*)(void))set_attr, METH_FASTCALL, "Assign to an attribute of an envoy."},
    {"ask", (PyCFunction)(void (*)(void))run_ask, METH_FASTCALL, "Run a model until it reaches a visit."},
    {"switch_init", (PyCFunction)(void (*)(void))switch_init, METH_FASTCALL, "Make a switch."},
    {"run_init", (PyCFunction)(void (*)(void))run_init, METH_FASTCALL, "Make a run."},
    {"execute", switch_execute, METH_O, "Run the function of a switch to its end."},
    {"work", work, METH_O, "Do the jobs of a stack."},
    {"model", run_model, METH_O, "Make a model's call."},
    {"finish", run_finish, METH_O, "Let a model run to its end."},
    {"resume", switch_resume, METH_O, "Run the function of a switch until it pauses or ends."},
    {"pause", switch_pause, METH_O, "Hand the turn back."},
    {"owner", frame_owner, METH_O, "The owner of a trace that is entered from a frame."},
    {"opened", (PyCFunction)(void (*)(void))tree_opened, METH_FASTCALL, "A trace begins to serve requests."},
    {"closed", (PyCFunction)(void (*)(void))tree_closed, METH_FASTCALL, "A trace serves no more requests."},
    {"worker_init", (PyCFunction)(void (*)(void))worker_init, METH_FASTCALL, "Make the worker of a block."},
    {"serve", worker_serve, METH_O, "Run a block."},
    {"concatenate", concatenate, METH_O, "Put the inputs of several prompts into one call."},
    {"worker_ask", (PyCFunction)(void (*)(void))worker_ask, METH_FASTCALL, "Wait until a model reaches a visit."},
    {"worker_leave", worker_leave, METH_O, "Unwind a block where it waits."},
    {"turns", (PyCFunction)(void (*)(void))schedule_turns, METH_FASTCALL, "Resume workers, until none can go on."},
    {"reached", (PyCFunction)(void (*)(void))schedule_reached, METH_FASTCALL, "Resume the workers that wait for a visit."},
    {"invoke_init", (PyCFunction)(void (*)(void))invoke_init, METH_FASTCALL, "Make a prompt of a trace."},
    {"part", trace_part, METH_O, "The trace of one block among several."},
    {"trace_del", trace_del, METH_O, "Nothing holds a trace any more."},
    {"schedule_init", (PyCFunction)(void (*)(void))schedule_init, METH_FASTCALL, "Make a schedule."},
    {"invoke_enter", invoke_enter, METH_O, "Leave a captured block where it is entered."},
    {"invoke_exit", (PyCFunction)(void (*)(void))invoke_exit, METH_FASTCALL, "Take in a captured block."},
    {"bound_call", (PyCFunction)(void (*)(void))bound_call, METH_FASTCALL, "Run a captured block."},
    {"settled", (PyCFunction)(void (*)(void))scope_settled, METH_FASTCALL, "Names of a block are what they will be."},
    {"family_close", (PyCFunction)(void (*)(void))family_close, METH_FASTCALL,
     "Write what blocks bound into their frame."},
    {"placed", (PyCFunction)(void (*)(void))called_placed, METH_FASTCALL, "The call on prepared input."},
    {"given_call", given_call, METH_O, "The call of a trace that has its input."},
    {"combined", (PyCFunction)(void (*)(void))given_combined, METH_FASTCALL, "The call on the inputs of prompts."},
    {"install", (PyCFunction)(void (*)(void))taps_install, METH_FASTCALL, "Put taps in place."},
    {"remove", (PyCFunction)(void (*)(void))taps_remove, METH_FASTCALL, "Take taps away."},
    {"begin", (PyCFunction)(void (*)(void))trace_begin, METH_FASTCALL, "Make the run of a call."},
    {"close", trace_close, METH_O, "Undo what entering a trace did."},
    {"leave_run", (PyCFunction)(void (*)(void))trace_leave_run, METH_FASTCALL, "Keep what a run has given, and end it."},
    {"ahead", (PyCFunction)(void (*)(void))run_ahead, METH_FASTCALL, "Run until a visit, and tell whether it came."},
    {"number", (PyCFunction)(void (*)(void))steps_number, METH_FASTCALL, "The visit that a request made now means."},
    {"advance", (PyCFunction)(void (*)(void))steps_advance, METH_FASTCALL, "Run to the beginning of a step."},
    {"report", (PyCFunction)(void (*)(void))run_report, METH_FASTCALL, "Have what is to be kept report."},
    {"seen", (PyCFunction)(void (*)(void))run_seen, METH_FASTCALL, "How often a model has passed a port of a site."},
    {"count", (PyCFunction)(void (*)(void))count_all, METH_FASTCALL, "Count what has been noted; returns the counts."},
    {"by_now", (PyCFunction)(void (*)(void))counted_by_now, METH_FASTCALL, "What has been counted by now."},
    {"place", (PyCFunction)(void (*)(void))place, METH_FASTCALL,
     "Put each value under a key of its dictionary, where nothing stands."},
    {"same", (PyCFunction)(void (*)(void))same, METH_FASTCALL, "Whether modules have the children that they had."},
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

#pragma GCC visibility pop

PyMODINIT_FUNC PyInit__quick(void)
{
    if (begin() < 0 || know_greenlet() < 0 || PyType_Ready(&LineType) < 0 || PyType_Ready(&ReportType) < 0 ||
        PyType_Ready(&NotesType) < 0 || PyType_Ready(&SkipType) < 0 ||
        PyType_Ready(&AskedType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddObjectRef(module, "Line", (PyObject *)&LineType) < 0 ||
        PyModule_AddObjectRef(module, "Report", (PyObject *)&ReportType) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}

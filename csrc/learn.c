/* What Python tells of its classes and functions. */

#include "quick.h"

#define DEFINE_CLASS(name) PyTypeObject *name;
#define DEFINE_SLOT(class, name) Slot class##_##name;
#define DEFINE_OBJECT(name) PyObject *py_##name;
#define DEFINE_NAME(name) PyObject *s_##name;
CLASSES(DEFINE_CLASS)
SLOTS(DEFINE_SLOT)
OBJECTS(DEFINE_OBJECT)
NAMES(DEFINE_NAME)

PyObject *zero, *result_suffix;
int learned;

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

PyObject *learn(PyObject *module, PyObject *args, PyObject *told)
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
    if (!PyAnySet_Check(py_operators) || !PyAnySet_Check(py_LISTS) || !PyAnySet_Check(py_enters) || !PyList_CheckExact(py_guard)) {
        PyErr_SetString(PyExc_TypeError, "the operators and the lists are sets, and the guard is in a list");
        return NULL;
    }
    learned = 1;
    Py_RETURN_NONE;
}

/* Make what needs not be told: the names of attributes. */
int begin(void)
{
#define INTERN(name) \
    if ((s_##name = PyUnicode_InternFromString(#name)) == NULL) \
        return FAILED;
    NAMES(INTERN)
    zero = PyLong_FromLong(0);
    result_suffix = PyUnicode_InternFromString(".output");
    return zero == NULL || result_suffix == NULL ? FAILED : 0;
}

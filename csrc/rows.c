/* One prompt's rows: of the inputs, of what the model has at a visit, and how they come together. `batch.concatenate`,
   `RowVisit`, `join`. */

#include "quick.h"

/* -- the inputs of several prompts as one: `batch.concatenate` ----------------------------------------------------- */

/* The arguments of a prompt's input, borrowed. Ordinary: `many` of them, none of them named; else NULL. */
static PyObject *arguments_of(PyObject *input, Py_ssize_t many)
{
    if (!PyTuple_CheckExact(input) || PyTuple_GET_SIZE(input) != 2)
        return NULL;
    PyObject *args = PyTuple_GET_ITEM(input, 0), *named = PyTuple_GET_ITEM(input, 1);
    int plain = PyTuple_CheckExact(args) && PyDict_CheckExact(named) && PyTuple_GET_SIZE(args) && !PyDict_GET_SIZE(named);
    return plain && (many < 0 || PyTuple_GET_SIZE(args) == many) ? args : NULL;
}

/* The shape of a value, in `shape`. Ordinary: it is a tensor, and has rows. */
static int shape_of(PyObject *value, PyObject **shape)
{
    if (Py_TYPE(value) != Tensor)
        return OTHER;
    if ((*shape = PyObject_GetAttr(value, s_shape)) == NULL)
        return FAILED;
    if (PyTuple_Check(*shape) && PyTuple_GET_SIZE(*shape))
        return ORDINARY;
    Py_CLEAR(*shape);
    return OTHER;
}

/* Whether two tensors have the same dtype and device, and the same shape but for their rows; where `rows` are told, the
   one is to have as many as a prompt, and the other as many as the batch. */
static int are_alike(PyObject *one, PyObject *other, PyObject *rows)
{
    PyObject *mine = NULL, *theirs = NULL;
    int alike = shape_of(one, &mine);
    if (alike == ORDINARY)
        alike = shape_of(other, &theirs);
    if (alike == ORDINARY)
        alike = PyTuple_GET_SIZE(mine) == PyTuple_GET_SIZE(theirs);
    if (alike == ORDINARY && rows != NULL)
        alike = equal(PyTuple_GET_ITEM(theirs, 0), PEEK(rows, Rows, total));
    if (alike == ORDINARY && rows != NULL)
        alike = equal(PyTuple_GET_ITEM(mine, 0), PEEK(rows, Rows, size));
    for (Py_ssize_t at = 1; alike == ORDINARY && at < PyTuple_GET_SIZE(mine); at++)
        alike = equal(PyTuple_GET_ITEM(mine, at), PyTuple_GET_ITEM(theirs, at));
    Py_XDECREF(mine);
    Py_XDECREF(theirs);
    if (alike == ORDINARY)
        alike = agree(one, other, s_dtype);
    return alike == ORDINARY ? agree(one, other, s_device) : alike;
}

/* One argument of all prompts, joined. Ordinary: tensors that are alike, and have rows. */
static int join_argument(PyObject *inputs, Py_ssize_t at, PyObject **joined)
{
    Py_ssize_t many = PyList_GET_SIZE(inputs);
    PyObject *column = PyList_New(0), *first = NULL, *shape = NULL;
    int plain = column == NULL ? FAILED : ORDINARY;
    for (Py_ssize_t which = 0; plain == ORDINARY && which < many; which++) {
        PyObject *value = PyTuple_GET_ITEM(PyTuple_GET_ITEM(PyList_GET_ITEM(inputs, which), 0), at);
        first = which ? first : value;
        plain = which ? are_alike(first, value, NULL) : shape_of(first, &shape);
        if (plain == ORDINARY && PyList_Append(column, value) < 0)
            plain = FAILED;
    }
    if (plain == ORDINARY && (*joined = many == 1 ? new_ref(first) : PyObject_CallOneArg(py_cat, column)) == NULL)
        plain = FAILED;
    Py_XDECREF(column);
    Py_XDECREF(shape);
    return plain;
}

/* Which rows of the batch are a prompt's, from `first` on; `total` is said when all are known. */
static PyObject *new_rows(PyObject *value, PyObject *first)
{
    PyObject *shape, *rows = NULL;
    if (shape_of(value, &shape) != ORDINARY)
        return NULL;
    if ((rows = PyType_GenericAlloc(Rows, 0)) != NULL) {
        PUT(rows, Rows, start, new_ref(first));
        PUT(rows, Rows, size, new_ref(PyTuple_GET_ITEM(shape, 0)));
        PUT(rows, Rows, total, new_ref(zero));
        PUT(rows, Rows, padding, new_ref(zero));
        PUT(rows, Rows, length, new_ref(zero));
        PUT(rows, Rows, copies, PyTuple_New(0));
    }
    Py_DECREF(shape);
    return rows;
}

/* The rows of each prompt, in order. */
static PyObject *share_out(PyObject *inputs)
{
    PyObject *found = PyList_New(0), *end = new_ref(zero);
    for (Py_ssize_t which = 0; found != NULL && which < PyList_GET_SIZE(inputs); which++) {
        PyObject *args = PyTuple_GET_ITEM(PyList_GET_ITEM(inputs, which), 0);
        PyObject *rows = new_rows(PyTuple_GET_ITEM(args, 0), end), *next = NULL;
        if (rows == NULL || (next = PyNumber_Add(end, PEEK(rows, Rows, size))) == NULL || PyList_Append(found, rows) < 0)
            Py_CLEAR(found);
        if (next != NULL)
            Py_SETREF(end, next);
        Py_XDECREF(rows);
    }
    for (Py_ssize_t which = 0; found != NULL && which < PyList_GET_SIZE(found); which++)
        PUT(PyList_GET_ITEM(found, which), Rows, total, new_ref(end));
    Py_DECREF(end);
    return found;
}

/* Ordinary: each prompt gives tensors alone, none by name, which differ from the first one's in their rows only. */
PyObject *concatenate(PyObject *module, PyObject *inputs)
{
    PyObject *args = NULL, *joined = NULL, *rows = NULL, *named = NULL, *batch = NULL;
    int plain = learned && PyList_CheckExact(inputs) && PyList_GET_SIZE(inputs);
    for (Py_ssize_t which = 0; plain == ORDINARY && which < PyList_GET_SIZE(inputs); which++) {
        args = arguments_of(PyList_GET_ITEM(inputs, which), args == NULL ? -1 : PyTuple_GET_SIZE(args));
        plain = args == NULL ? OTHER : ORDINARY;
    }
    if (plain == ORDINARY && (joined = PyTuple_New(PyTuple_GET_SIZE(args))) == NULL)
        plain = FAILED;
    for (Py_ssize_t at = 0; plain == ORDINARY && at < PyTuple_GET_SIZE(joined); at++) {
        PyObject *one = NULL;
        plain = join_argument(inputs, at, &one);
        PyTuple_SET_ITEM(joined, at, one);
    }
    if (plain == ORDINARY && (rows = share_out(inputs)) != NULL && (named = PyDict_New()) != NULL)
        batch = PyTuple_Pack(3, joined, named, rows);
    Py_XDECREF(joined);
    Py_XDECREF(rows);
    Py_XDECREF(named);
    return plain == OTHER ? PyObject_CallOneArg(py_concatenate, inputs) : batch;
}

/* -- what a block has of a visit: its rows ------------------------------------------------------------------------- */

/* Whether it is the rows of a visit of the model's. */
int are_rows(PyObject *view)
{
    return Py_TYPE(view) == RowVisit && PEEK(view, RowVisit, pieces) != NULL &&
           Py_TYPE(PEEK(view, RowVisit, visit)) == Visit && PyObject_TypeCheck(PEEK(view, RowVisit, rows), Rows);
}

/* The output of a visit as one prompt has it so far, borrowed; NULL where it has asked for nothing yet. */
static PyObject *piece_of(PyObject *view)
{
    PyObject *pieces = PEEK(view, RowVisit, pieces);
    return PyDict_GET_SIZE(pieces) ? PyDict_GetItemWithError(pieces, s_result) : NULL;
}

/* Whether the first dimension of a value counts the rows of all prompts. Ordinary: it is a tensor for which it does. */
static int has_rows(PyObject *rows, PyObject *value)
{
    PyObject *shape;
    int has = shape_of(value, &shape);
    if (has == ORDINARY) {
        has = equal(PyTuple_GET_ITEM(shape, 0), PEEK(rows, Rows, total));
        Py_DECREF(shape);
    }
    return has;
}

/* Let a prompt have `value` where `whole` stands, which has rows; takes over `marks`. */
static int have(PyObject *view, PyObject *whole, PyObject *value, PyObject *marks)
{
    PyObject *piece = marks == NULL ? NULL : PyType_GenericAlloc(Piece, 0);
    if (piece == NULL) {
        Py_XDECREF(marks);
        return FAILED;
    }
    PUT(piece, Piece, rows, new_ref(PEEK(view, RowVisit, rows)));
    PUT(piece, Piece, whole, new_ref(whole));
    PUT(piece, Piece, value, new_ref(value));
    PUT(piece, Piece, _marks, marks);
    PUT(piece, Piece, fits, new_ref(Py_True));
    int failed = PyDict_SetItem(PEEK(view, RowVisit, pieces), s_result, piece);
    Py_DECREF(piece);
    return failed;
}

/* Address, shape and strides of a tensor; None for one that has no such. */
static PyObject *place_of(PyObject *tensor)
{
    PyObject *layout = Py_TYPE(tensor) == Tensor ? PyObject_GetAttr(tensor, s_layout) : new_ref(Py_None);
    PyObject *address = NULL, *shape = NULL, *strides = NULL, *place = NULL;
    Py_XDECREF(layout);
    if (layout != py_strided)
        return layout == NULL ? NULL : new_ref(Py_None);
    if ((address = PyObject_CallMethodNoArgs(tensor, s_data_ptr)) != NULL &&
        (shape = PyObject_GetAttr(tensor, s_shape)) != NULL &&
        (strides = PyObject_CallMethodNoArgs(tensor, s_stride)) != NULL)
        place = PyTuple_Pack(3, address, shape, strides);
    Py_XDECREF(address);
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    return place;
}

/* Hand out the rows of a tensor, and remember what they are. */
static int take(PyObject *view, PyObject *whole)
{
    PyObject *rows = PEEK(view, RowVisit, rows), *first = PEEK(rows, Rows, start);
    PyObject *end = PyNumber_Add(first, PEEK(rows, Rows, size)), *slice = NULL, *own = NULL, *place = NULL;
    PyObject *mark = NULL, *key = NULL, *marks = NULL;
    int failed = FAILED;
    if (end == NULL || (slice = PySlice_New(first, end, NULL)) == NULL ||
        (own = PyObject_GetItem(whole, slice)) == NULL ||
        (place = place_of(own)) == NULL || (mark = PyTuple_Pack(4, own, zero, place, zero)) == NULL || (key = PyLong_FromVoidPtr(whole)) == NULL ||
        (marks = PyDict_New()) == NULL || PyDict_SetItem(marks, key, mark) < 0)
        goto over;
    failed = have(view, whole, own, new_ref(marks));
over:
    Py_XDECREF(end);
    Py_XDECREF(slice);
    Py_XDECREF(own);
    Py_XDECREF(place);
    Py_XDECREF(mark);
    Py_XDECREF(key);
    Py_XDECREF(marks);
    return failed;
}

/* A prompt's rows of an output. Ordinary: of a tensor, without gradients. */
PyObject *rows_read(PyObject *view)
{
    PyObject *piece = piece_of(view), *whole;
    if (piece != NULL || PyErr_Occurred())
        return piece == NULL ? NULL : new_ref(PEEK(piece, Piece, value));
    whole = new_ref(PEEK(PEEK(view, RowVisit, visit), Visit, result)); /* what looks at it may run code of anybody's */
    int plain = has_rows(PEEK(view, RowVisit, rows), whole);
    if (plain == 1) {
        int grad = truth(py_grad);
        plain = grad < 0 ? FAILED : !grad;
    }
    if (plain == ORDINARY && take(view, whole) < 0)
        plain = FAILED;
    Py_DECREF(whole);
    if (plain == OTHER)
        return PyObject_GetAttr(view, s_result);
    piece = plain < 0 ? NULL : piece_of(view);
    return piece == NULL ? NULL : new_ref(PEEK(piece, Piece, value));
}

/* Replace a prompt's rows of an output. Ordinary: it has not read them, and a tensor takes the place of rows like it. */
int rows_replace(PyObject *view, PyObject *value, int checked)
{
    if (piece_of(view) != NULL || Py_TYPE(value) != Tensor)
        return OTHER;
    PyObject *whole = new_ref(PEEK(PEEK(view, RowVisit, visit), Visit, result)), *rows = PEEK(view, RowVisit, rows);
    int plain = PyErr_Occurred() ? FAILED : checked ? are_alike(value, whole, rows) : has_rows(rows, whole);
    if (plain == ORDINARY)
        plain = have(view, whole, value, PyDict_New()) < 0 ? FAILED : ORDINARY;
    Py_DECREF(whole);
    return plain;
}

/* Let a value stand where a prompt's rows of an output stand, which it has read. */
int rows_put(PyObject *view, PyObject *value)
{
    PyObject *piece = piece_of(view);
    if (piece == NULL)
        return PyErr_Occurred() ? FAILED : PyObject_SetAttr(view, s_result, value);
    PUT(piece, Piece, value, new_ref(value));
    return 0;
}

/* -- and what becomes of them -------------------------------------------------------------------------------------- */

/* Ordinary: rows that were handed out as a view still are one, and need no gradients. */
static int is_view(PyObject *mark)
{
    PyObject *own = PyTuple_GET_ITEM(mark, 0), *place;
    if (Py_TYPE(own) != Tensor)
        return OTHER;
    int needs = truth_of(PyObject_GetAttr(own, s_requires_grad));
    if (needs || (place = place_of(own)) == NULL)
        return needs == 1 ? OTHER : FAILED;
    int same = PyObject_RichCompareBool(place, PyTuple_GET_ITEM(mark, 2), Py_EQ);
    Py_DECREF(place);
    return same;
}

/* Whether what stands where a prompt's rows of a tensor were is something that the model does not have yet. */
static int is_touched(PyObject *piece)
{
    PyObject *whole = PEEK(piece, Piece, whole), *value = PEEK(piece, Piece, value);
    if (value == whole)
        return 0;
    if (!PyDict_GET_SIZE(PEEK(piece, Piece, _marks)))
        return 1;
    PyObject *key = PyLong_FromVoidPtr(whole);
    if (key == NULL)
        return FAILED;
    PyObject *mark = PyDict_GetItemWithError(PEEK(piece, Piece, _marks), key);
    Py_DECREF(key);
    if (mark == NULL || PyTuple_GET_ITEM(mark, 0) != value)
        return PyErr_Occurred() ? FAILED : 1;
    int plain = PyTuple_GET_ITEM(mark, 1) == zero ? is_view(mark) : OTHER;
    return plain == OTHER ? truth_of(PyObject_CallMethodNoArgs(piece, s_edited)) : plain < 0 ? FAILED : 0;
}

/* Append the rows of a tensor from one on to another. */
static int append_rows(PyObject *parts, PyObject *whole, PyObject *from, PyObject *to)
{
    PyObject *slice = PySlice_New(from, to, NULL), *own = slice == NULL ? NULL : PyObject_GetItem(whole, slice);
    int failed = own == NULL ? FAILED : PyList_Append(parts, own);
    Py_XDECREF(slice);
    Py_XDECREF(own);
    return failed;
}

/* Append what a prompt has made of its rows, and before it the rows up to there. Ordinary: it comes after what is there
   already, which ends at `at`. */
static int append_piece(PyObject *parts, PyObject *whole, PyObject *piece, PyObject **at)
{
    PyObject *rows = PEEK(piece, Piece, rows), *start = PEEK(rows, Rows, start), *end;
    int plain = PEEK(piece, Piece, fits) == Py_True && PEEK(piece, Piece, whole) == whole &&
                Py_TYPE(PEEK(piece, Piece, value)) == Tensor;
    if (plain)
        plain = PyObject_RichCompareBool(start, *at, Py_GE);
    if (plain != 1 || (end = PyNumber_Add(start, PEEK(rows, Rows, size))) == NULL)
        return plain == 1 ? FAILED : plain;
    int before = equal(start, *at) == 1 ? 0 : append_rows(parts, whole, *at, start);
    int failed = before < 0 ? FAILED : PyList_Append(parts, PEEK(piece, Piece, value));
    Py_SETREF(*at, end);
    return failed < 0 ? FAILED : ORDINARY;
}

/* The parts that an output is to be made of, in order; none where nobody has changed it. Ordinary: it is a tensor with
   rows, and prompts have nothing else of the visit. */
static int append_parts(PyObject *parts, PyObject *whole, PyObject *views)
{
    PyObject *at = new_ref(zero), *total = NULL;
    int plain = Py_TYPE(whole) == Tensor;
    for (Py_ssize_t which = 0; plain == ORDINARY && which < PyList_GET_SIZE(views); which++) {
        PyObject *view = PyList_GET_ITEM(views, which), *piece = are_rows(view) ? piece_of(view) : NULL;
        if (PyErr_Occurred())
            plain = FAILED;
        else if (!are_rows(view) || PyDict_GET_SIZE(PEEK(view, RowVisit, pieces)) != (piece != NULL))
            plain = OTHER;
        else if (piece != NULL && Py_TYPE(PEEK(piece, Piece, whole)) != Tensor)
            plain = OTHER;
        else if (piece != NULL) {
            int touched = is_touched(piece);
            plain = touched == 1 ? append_piece(parts, whole, piece, &at) : touched < 0 ? FAILED : ORDINARY;
            total = PEEK(PEEK(piece, Piece, rows), Rows, total);
        }
    }
    if (plain == ORDINARY && PyList_GET_SIZE(parts)) {
        int ends = equal(at, total);
        if (ends < 0 || (ends == 0 && append_rows(parts, whole, at, Py_None) < 0))
            plain = FAILED;
    }
    Py_DECREF(at);
    return plain;
}

/* Hand the rows of all prompts back to the model. Ordinary: they fit together; else Python says why not. */
int rows_join(PyObject *visit, PyObject *views)
{
    PyObject *parts = PyList_New(0), *whole = new_ref(PEEK(visit, Visit, result)), *done = NULL;
    int plain = parts == NULL ? FAILED : append_parts(parts, whole, views);
    if (plain == ORDINARY && PyList_GET_SIZE(parts)) {
        done = PyObject_CallOneArg(py_cat, parts);
        if (done != NULL)
            PUT(visit, Visit, result, done);
        else if (PyErr_ExceptionMatches(PyExc_RuntimeError)) {
            PyErr_Clear();
            plain = OTHER;
        } else
            plain = FAILED;
    }
    Py_XDECREF(parts);
    Py_DECREF(whole);
    if (plain == OTHER) {
        done = PyObject_CallFunctionObjArgs(py_join, visit, views, NULL);
        Py_XDECREF(done);
        plain = done == NULL ? FAILED : ORDINARY;
    }
    return plain < 0 ? FAILED : 0;
}

/* Whether something was replaced that may have no rows, so that it is every prompt's. */
int rows_shared(PyObject *views)
{
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(views); at++) {
        PyObject *view = PyList_GET_ITEM(views, at), *piece, *name;
        Py_ssize_t next = 0;
        int fits = 1, shares = 0;
        while (fits && PyDict_Next(PEEK(view, RowVisit, pieces), &next, &name, &piece))
            fits = PEEK(piece, Piece, fits) == Py_True;
        if (!fits)
            shares = truth_of(PyObject_CallMethodNoArgs(view, s_shares));
        if (shares)
            return shares;
    }
    return 0;
}

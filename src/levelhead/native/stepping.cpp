// The stepping loop, between one thing that Python has to see to and the next. A Python module of its own, as it needs
// Python's headers, which the rest does not.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cmath>
#include <cstdint>
#include <cstring>

using Act = void (*)(void *actor, int64_t t, const uint8_t *legal);

// An object's numbers, for as long as this lives. Without any where it has none to show; there is no error then.
class View {
   public:
    View(PyObject *object, int flags) : held(PyObject_GetBuffer(object, &buffer, flags) == 0) {
        if (!held) PyErr_Clear();
    }
    ~View() {
        if (held) PyBuffer_Release(&buffer);
    }
    View(const View &) = delete;
    View &operator=(const View &) = delete;

    explicit operator bool() const { return held; }
    operator const Py_buffer *() const { return &buffer; }
    const Py_buffer *operator->() const { return &buffer; }

    bool of(char kind) const { return buffer.format && buffer.format[0] == kind && !buffer.format[1]; }

   private:
    Py_buffer buffer;
    bool held;
};

// A reference that is ours to give up.
class Owned {
   public:
    explicit Owned(PyObject *object) : object(object) {}
    ~Owned() { Py_XDECREF(object); }
    Owned(const Owned &) = delete;
    Owned &operator=(const Owned &) = delete;

    explicit operator bool() const { return object; }
    operator PyObject *() const { return object; }

   private:
    PyObject *object;
};

// Rows `[T, ...]` that answers are written to.
class Rows : public View {
   public:
    explicit Rows(PyObject *array) : View(array, PyBUF_CONTIG | PyBUF_FORMAT) {}

    int64_t size() const { return (*this)->len / (*this)->shape[0]; }
    char *row(int64_t t) const { return static_cast<char *>((*this)->buf) + t * size(); }

    // Whether an answer is just what a row has room for, which it is written to then; doubles may be rounded.
    bool write(int64_t t, PyObject *answer) const {
        const View given(answer, PyBUF_STRIDED_RO | PyBUF_FORMAT);
        if (!given || given->ndim != (*this)->ndim - 1) return false;
        for (int i = 0; i < given->ndim; i++)
            if (given->shape[i] != (*this)->shape[i + 1]) return false;
        if (given.of('d') && of('f')) return round(given, reinterpret_cast<float *>(row(t)));
        const char *format = (*this)->format;
        if (!given->format || std::strcmp(given->format, format) != 0) return false;
        if (PyBuffer_ToContiguous(row(t), given, given->len, 'C') == 0) return true;
        PyErr_Clear();
        return false;
    }

    bool any(int64_t t) const {
        for (int64_t i = 0; i < size(); i++)
            if (row(t)[i]) return true;
        return false;
    }

   private:
    // False where a number is not finite or becomes infinite, of which NumPy has something to say.
    static bool round(const Py_buffer *from, float *to) {
        if (!PyBuffer_IsContiguous(from, 'C')) return false;
        const int64_t count = from->len / (int64_t)sizeof(double);
        for (int64_t i = 0; i < count; i++) {
            double x;  // which may not be aligned
            std::memcpy(&x, static_cast<const char *>(from->buf) + i * sizeof x, sizeof x);
            to[i] = (float)x;
            if (!std::isfinite(to[i])) return false;
        }
        return true;
    }
};

static bool empty(PyObject *infos) { return PyDict_Check(infos) && PyDict_Size(infos) == 0; }

static PyObject *stretch(PyObject *, PyObject *arguments) {
    unsigned long long act_address, actor_address;
    PyObject *actions, *step, *arrays[4];
    long long t;
    if (!PyArg_ParseTuple(arguments, "KKO!O(OOOO)L", &act_address, &actor_address, &PyList_Type, &actions, &step,
                          &arrays[0], &arrays[1], &arrays[2], &arrays[3], &t))
        return nullptr;
    const auto act = reinterpret_cast<Act>(static_cast<uintptr_t>(act_address));
    void *const actor = reinterpret_cast<void *>(static_cast<uintptr_t>(actor_address));
    const Rows observation(arrays[0]), reward(arrays[1]), terminated(arrays[2]), truncated(arrays[3]);
    if (!observation || !reward || !terminated || !truncated) {
        PyErr_SetString(PyExc_TypeError, "rows must be arrays that are contiguous and may be written to");
        return nullptr;
    }
    for (const int64_t steps = PyList_Size(actions); t < steps; t++) {
        PyThreadState *const python = PyEval_SaveThread();  // others may go on meanwhile
        act(actor, t, nullptr);
        PyEval_RestoreThread(python);
        if (PyErr_CheckSignals() != 0) return nullptr;  // which nobody else does where `step` isn't written in Python
        const Owned action(PyObject_CallMethod(PyList_GetItem(actions, t), "copy", nullptr));
        if (!action) return nullptr;
        Owned answer(PyObject_CallFunctionObjArgs(step, static_cast<PyObject *>(action), nullptr));
        if (!answer) return nullptr;
        const auto part = [&](int i) { return PyTuple_GetItem(answer, i); };
        const bool plain = PyTuple_Check(answer) && PyTuple_Size(answer) == 5 && empty(part(4)) &&
                           observation.write(t + 1, part(0)) && reward.write(t, part(1)) &&
                           terminated.write(t, part(2)) && truncated.write(t, part(3));
        if (!plain || terminated.any(t) || truncated.any(t))
            return Py_BuildValue("LO", t, static_cast<PyObject *>(answer));
    }
    return Py_BuildValue("LO", t, Py_None);
}

static PyMethodDef functions[] = {{"stretch", stretch, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_stepping", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__stepping() { return PyModule_Create(&module); }

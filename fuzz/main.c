/* The fuzzer: libFuzzer around a Python with the instrumented modules in it.
 *
 * VNIC_FUZZ_TARGET names the target: fuzz.targets.find returns a capsule of a compiled function, or
 * a Python function. VNIC_FUZZ_PYTHON is the interpreter whose packages are used. An input that
 * violates an invariant aborts, and libFuzzer stores it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "interfere.h"

struct interference vnic_interference;

typedef void (*compiled_target)(const uint8_t *data, size_t size);
static compiled_target compiled;
static PyObject *interpreted;

/* libFuzzer takes these for counters of code, too: lines of Python, as edges between two of them. */
__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t lines[1 << 13];

static int trace(PyObject *self, PyFrameObject *frame, int what, PyObject *argument)
{
    static uint32_t before;
    PyCodeObject *code;
    uint32_t line;
    (void)self;
    (void)argument;
    if (what != PyTrace_LINE)
        return 0;
    code = PyFrame_GetCode(frame);
    line = (uint32_t)PyFrame_GetLineNumber(frame) * 2654435761u
        ^ (uint32_t)PyUnicode_GET_LENGTH(code->co_filename) * 40503u;
    lines[(line ^ before >> 1) >> 9 & (sizeof(lines) - 1)]++;
    before = line;
    Py_DECREF(code);
    return 0;
}

static void fail(const char *what)
{
    fprintf(stderr, "vnic: fuzz: %s\n", what);
    PyErr_Print();
    exit(2);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyConfig config;
    PyObject *module, *found;
    const char *python = getenv("VNIC_FUZZ_PYTHON"), *target = getenv("VNIC_FUZZ_TARGET");
    (void)argc;
    (void)argv;
    if (!python || !target) {
        fprintf(stderr, "vnic: start it by `make fuzz`\n");
        exit(2);
    }
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;      /* libFuzzer has its own */
    config.parse_argv = 0;
    if (PyStatus_Exception(PyConfig_SetBytesString(&config, &config.program_name, python))
        || PyStatus_Exception(Py_InitializeFromConfig(&config)))
        fail("Python does not start");
    PyConfig_Clear(&config);
    module = PyImport_ImportModule("fuzz.targets");
    found = module ? PyObject_CallMethod(module, "find", "s", target) : NULL;
    if (!found)
        fail("the target does not start");
    if (PyCapsule_CheckExact(found))
        compiled = (compiled_target)PyCapsule_GetPointer(found, "fuzz");
    else
        interpreted = found;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PyObject *result;
    if (compiled) {
        compiled(data, size);
        return 0;
    }
    PyEval_SetTrace(trace, NULL);
    result = PyObject_CallFunction(interpreted, "y#", (const char *)data, (Py_ssize_t)size);
    PyEval_SetTrace(NULL, NULL);
    if (!result) {
        PyErr_Print();
        fflush(NULL);
        abort();
    }
    Py_DECREF(result);
    return 0;
}

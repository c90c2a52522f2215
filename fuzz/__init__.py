"""The hostile front end: fuzzers of everything that a guest, or its virtual machine monitor, sends.

    make fuzz                          all targets, a minute together
    make fuzz ARGS="rings --seconds 3600"

Targets: `rings` (guest.pyx), `commands`, `messages` and `connection` (front_end.py). Each takes one
input of bytes and does to the device what the bytes say; seeds.py makes the first inputs, a case at
least for each class of fault that back ends have had. main.c is the engine, which is LLVM's
libFuzzer: it keeps inputs that reach new code, of compiled modules by Clang's counters and of
Python by a trace of lines.
"""

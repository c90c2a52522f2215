"""The AddressSanitizer build detects a bad write, and vnic's modules are built with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dataplane.packet.pool
from tests.tools import need

pytestmark = pytest.mark.skipif(os.environ.get("VNIC_BUILD") != "asan", reason="of the AddressSanitizer build only")

OVERFLOW = """
#include <stdlib.h>
int write_at(int place) {
    volatile char *buffer = malloc(16);
    buffer[place] = 1;
    free((void *)buffer);
    return 0;
}
"""


def run(library, place):
    script = f"import ctypes; print(ctypes.CDLL({str(library)!r}).write_at({place}))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_a_write_past_the_end_is_caught(tmp_path):
    source, library = tmp_path / "overflow.c", tmp_path / "overflow.so"
    source.write_text(OVERFLOW)
    subprocess.run([need("gcc"), "-shared", "-fPIC", "-g", "-fsanitize=address", "-o", library, source], check=True)
    assert run(library, 15).stdout == "0\n"
    caught = run(library, 16)
    assert caught.returncode != 0
    assert "heap-buffer-overflow" in caught.stderr


def test_our_modules_are_instrumented():
    module = Path(dataplane.packet.pool.__file__)
    assert b"__asan_report_" in module.read_bytes()
    assert "build/asan" in str(module)

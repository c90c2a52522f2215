"""Executes a program inside a container's network namespace: `main` of `python -c '...' NETNS
ERRORS PROGRAM...`. NETNS: a descriptor of the namespace. ERRORS: a descriptor of a pipe, which gets
the reason if the program cannot be executed, and is closed otherwise."""

from __future__ import annotations

import os
import sys

from dataplane.errors import VnicError
from vnic.device.namespaces import enter


def main() -> None:
    netns, errors, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    try:
        enter(netns, "the container")
        os.close(netns)
        os.set_inheritable(errors, False)
        os.execvp(argv[0], argv)
    except OSError as error:
        why = f"{argv[0]}: {error.strerror}"
    except (VnicError, ValueError) as error:
        why = str(error)
    os.write(errors, why.encode(errors="replace"))
    os._exit(127)

"""A test's handle of the guardian of its live network; see guardian.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dataplane.descriptors import close_all, receive_with_descriptors, system_error
from dataplane.errors import ConfigError, VnicError
from vnic.daemon.worker_process import environment

START = "from vnic.testing.guardian import main; main()"
MESSAGE_MOST, DESCRIPTORS_MOST = 1 << 16, 64
END_S = 60.0  # longer than the guardian waits for the instance


class Guarded:
    """A guardian's process and its resources. Calls may come from any thread; one runs at a
    time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._log = os.memfd_create("vnic-log", os.MFD_CLOEXEC)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        test = -1
        try:
            with theirs:
                test = os.pidfd_open(os.getpid())
                self._process = subprocess.Popen(
                    # -P: a file in the working directory must not be imported in place of a module.
                    [sys.executable, "-P", "-c", START, str(theirs.fileno()), str(test)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=[theirs.fileno(), test],
                    start_new_session=True,
                    env=environment(),
                )
        except BaseException as error:
            self._channel.close()
            os.close(self._log)
            if isinstance(error, OSError):
                raise VnicError(
                    f"the guardian of the network cannot be started: {system_error(error)}"
                ) from None
            raise
        finally:
            if test >= 0:
                os.close(test)

    def call(
        self, method: str, passing: Mapping[str, int] | None = None, **parameters: Any
    ) -> tuple[dict[str, Any], list[int]]:
        """Calls a method of the guardian with descriptors by parameter; returns its answer, with
        descriptors. Raises ConfigError, VnicError."""
        with self._lock:
            self._send(method, passing or {}, parameters)
            try:
                data, found, lost = receive_with_descriptors(
                    self._channel, MESSAGE_MOST, DESCRIPTORS_MOST
                )
            except OSError as error:
                raise self._gone(error) from None
            except BaseException:  # Ctrl-C: its answer would be taken for that of the next call
                self._channel.close()
                raise
        if not data or lost:
            close_all(found)
            raise (
                VnicError("descriptors got lost: too many open files; raise the limit (ulimit -n)")
                if data
                else self._gone()
            )
        answer = json.loads(data)
        if "error" in answer:
            kind = ConfigError if answer["config"] else VnicError
            raise kind(answer["error"], code=answer["code"], field=answer["field"])
        return answer, found

    def tell(self, method: str, passing: Mapping[str, int]) -> None:
        """Calls a method that does not answer."""
        with self._lock:
            self._send(method, passing, {})

    def _send(self, method: str, passing: Mapping[str, int], parameters: Mapping[str, Any]) -> None:
        request = json.dumps({"call": method, "passed": list(passing), **parameters}).encode()
        try:
            socket.send_fds(self._channel, [request], list(passing.values()))
        except OSError as error:
            raise self._gone(error) from None

    def _gone(self, error: OSError | None = None) -> VnicError:
        why = f": {error.strerror}" if error is not None and error.strerror else ""
        return VnicError(f"the guardian of the network (pid {self._process.pid}) is gone{why}")

    def log(self) -> str:
        """The instance's log."""
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode(errors="replace")

    def close(self) -> bool:
        """Ends the guardian; returns True when it has ended everything, False if it was killed
        before. May be called twice."""
        if self._channel.fileno() >= 0:
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            self._channel.close()
        if self._log < 0:
            return True
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._log)
            self._log = -1
        return self._process.returncode == 0

    def abandon(self) -> None:
        """In a fork of the test's process: closes this process' descriptors; the network stays the
        test's."""
        self._channel.close()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
        self._process.returncode = 0  # no child of this process

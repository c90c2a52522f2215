"""A synchronous client of the control API, for commands and scripts. Imports little, so that
commands start fast."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Self

from dataplane.descriptors import readable, receive_with_descriptors
from dataplane.errors import ConfigError, VnicError
from vnic.api.interface import (
    DESCRIPTORS_MOST,
    INTERFACE,
    REPLY_MOST,
    REQUEST_MOST,
    find_socket,
    not_running,
)

# the daemon answers one request after the other, and attaching a NIC may take seconds
TIMEOUT_S = 60.0
ASKED_S = 15.0  # the same for Shutdown, after which a signal can end the daemon
ENDS_S = 5.0  # time for a daemon to end after its worker has ended


def _marks(reply: dict[str, Any]) -> dict[str, str]:
    """Code and field of an error's reply."""
    return {mark: str(reply[mark]) for mark in ("code", "field") if reply.get(mark) is not None}


class Client:
    """A connection to a running daemon.

    with Client("default") as vnic:
        vnic.call("SetRate", name="web", egress="10mbit")

    instance: a name, or the path of a socket. uid, pid: the daemon's, from the kernel
    (SO_PEERCRED). descriptors: those received with the last reply; the caller closes them.
    """

    def __init__(self, instance: str = "default", *, timeout_s: float = TIMEOUT_S) -> None:
        self.instance = instance
        self._rest = bytearray()
        self.descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(find_socket(instance))
            peer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            self.pid: int
            self.uid: int
            self.pid, self.uid, _ = struct.unpack("3i", peer)
        except (FileNotFoundError, ConnectionRefusedError):
            self._socket.close()
            raise not_running(instance) from None
        except PermissionError:
            self._socket.close()
            raise VnicError(
                f"instance {instance}: is another user's, who can list you under clients: "
                f"in its file"
            ) from None
        except BlockingIOError:
            self._socket.close()
            raise VnicError(
                f"instance {instance}: too many clients wait to be let in; try again"
            ) from None
        except OSError as error:
            self._socket.close()
            raise VnicError(f"instance {instance}: cannot connect: {error.strerror}") from None
        except BaseException:
            self._socket.close()
            raise

    def call(
        self, method: str, /, *, passing: Sequence[int] = (), **parameters: Any
    ) -> dict[str, Any]:
        """Calls a method of org.vnic.Control, or of another interface by its full name; parameters
        that are None are left out. passing: descriptors to send with the call; they stay the
        caller's.

        Raises ConfigError where the daemon reports an invalid request, VnicError for a failure.
        """
        given = {key: value for key, value in parameters.items() if value is not None}
        request = {
            "method": method if "." in method else f"{INTERFACE}.{method}",
            "parameters": given,
        }
        try:
            # a daemon that closed the connection may have sent the reason first
            with suppress(BrokenPipeError):
                self._send(json.dumps(request).encode() + b"\0", passing)
            reply = json.loads(self._message())
        except TimeoutError:
            raise VnicError(
                f"instance {self.instance}: no answer within {self._socket.gettimeout():g} s"
            ) from None
        except OSError as error:
            raise VnicError(
                f"instance {self.instance}: connection lost: {error.strerror}"
            ) from None
        except ValueError:
            raise VnicError(
                f"instance {self.instance}: answers something that is not Varlink"
            ) from None
        return self._checked(method, reply)

    def shape(self, policy: Any, **parameters: Any) -> dict[str, Any]:
        """Calls Shape; a policy that is too long for a request, with traces, goes in a document."""
        content = json.dumps(policy).encode()
        if len(content) <= REQUEST_MOST // 2:
            return self.call("Shape", policy=policy, **parameters)
        descriptor = os.memfd_create("vnic-policy", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as document:
                document.write(content)
            return self.call("Shape", passing=[descriptor], document=0, **parameters)
        finally:
            os.close(descriptor)

    def _send(self, data: bytes, passing: Sequence[int]) -> None:
        if passing:
            data = data[socket.send_fds(self._socket, [data], list(passing)) :]
        self._socket.sendall(data)

    def _checked(self, method: str, reply: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a reply. Raises the exception for its error."""
        result = reply.get("parameters") or {}
        match reply.get("error"):
            case None:
                return dict(result)
            case "org.vnic.Control.InvalidConfig":
                raise ConfigError(str(result.get("message")), **_marks(result))
            case "org.vnic.Control.Failed" | "org.vnic.Control.NotPermitted":
                raise VnicError(str(result.get("message")), **_marks(result))
            case "org.varlink.service.InvalidParameter":
                raise ConfigError(f"{method}: parameter {result.get('parameter')} is not right")
            case error:
                raise VnicError(f"instance {self.instance}: {method}: {error}")

    def stream(self, method: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Calls a method that replies repeatedly; returns an endless iterator over the replies,
        which raises as `call` does. The connection cannot be used for anything else then."""
        given = {key: value for key, value in parameters.items() if value is not None}
        request = {"method": f"{INTERFACE}.{method}", "parameters": given, "more": True}
        with suppress(OSError):  # the first reply has the error
            self._socket.sendall(json.dumps(request).encode() + b"\0")
        return self._replies(method)

    def _replies(self, method: str) -> Iterator[dict[str, Any]]:
        self._socket.settimeout(None)  # events may be hours apart
        try:
            while True:
                reply = json.loads(self._message())
                yield self._checked(method, reply)
                if not reply.get("continues"):
                    return
        except OSError as error:
            raise VnicError(
                f"instance {self.instance}: connection lost: {error.strerror}"
            ) from None

    def _message(self) -> bytes:
        while (end := self._rest.find(b"\0")) < 0:
            if len(self._rest) > REPLY_MOST:
                raise ValueError
            data, descriptors, _ = receive_with_descriptors(self._socket, 1 << 16, DESCRIPTORS_MOST)
            self.descriptors = descriptors or self.descriptors
            if not data:
                raise VnicError(f"instance {self.instance}: the daemon went away")
            self._rest += data
        message = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return message

    def shutdown(self, *, timeout_s: float = 40.0) -> None:
        """Ends the daemon, and returns when its process is gone. Where it does not answer, or has
        no worker to answer, sends a signal. timeout_s is longer than the daemon waits for its
        worker."""
        try:
            process: int | None = os.pidfd_open(self.pid)
        except OSError:  # the pid is of another pid namespace, or it is gone already
            process = None
        try:
            failure = self._ask_to_end(timeout_s)
            if process is None:
                if failure is not None:
                    raise failure
                return
            if readable(process, 0 if failure is not None else ENDS_S):
                return
            if os.geteuid() not in (0, self.uid):
                raise failure or VnicError(
                    f"instance {self.instance}: still there (pid {self.pid})"
                )
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGTERM)
            if not readable(process, timeout_s):
                raise VnicError(
                    f"instance {self.instance}: still there after {timeout_s:g} s (pid {self.pid})"
                )
        finally:
            if process is not None:
                os.close(process)

    def _ask_to_end(self, timeout_s: float) -> VnicError | None:
        """Calls Shutdown, and waits until the connection closes, after everything is removed.
        Returns the failure, if any."""
        try:
            self._socket.settimeout(ASKED_S)
            self.call("Shutdown")
            self._socket.settimeout(timeout_s)
            while self._socket.recv(4096):
                pass
        except VnicError as error:
            return error
        except TimeoutError:
            return VnicError(
                f"instance {self.instance}: still there after {timeout_s:g} s (pid {self.pid})"
            )
        except OSError:
            pass  # the daemon has ended
        return None

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

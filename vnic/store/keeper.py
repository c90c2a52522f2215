"""What the supervisor stores for its workers, and the messages between them.

It stores descriptors by key: TAP queues, memory segments, documents (sealed memfds, which the
supervisor does not read). They survive a worker, so that the next one, after a crash or in an
upgrade, continues with them:

    config          the present configuration, with all changes since it was loaded (JSON)
    version         vnic's version when the first worker started, which is the supervisor's
    nic/NAME        an interface: document (KeptNic), its network namespace, a pidfd if the
                    container was given by pid, then the descriptors of its kind's report: queues,
                    and netlink sockets of that namespace
    guest/NAME      a NIC of kind vhost-user, stream or dgram: document (vnic.device.kinds.sockets,
                    KeptOf), and the sockets and descriptors that it names
    ring/NAME       a ring and its doorbell: of a NIC, or of LINK/SWITCH, a direction of a link
    segment/pool    the packet pool
    segment/table/SWITCH   the MAC table of a switch
    history         configurations before the last changes by `apply`, for `vnic undo` (JSON)
    policies        the last generations of the policy of shaping, for `vnic shape undo` (JSON)
    guaranteed      an empty document while a group has a guarantee of CPU time: the supervisor sets
                    a worker's capabilities before it starts (privileges.py)
    losses          objects that workers lost in a crash (JSON)
    module/NAME/KEY descriptors that a module stores for the next worker (Module.keep)
    capture/N       a live capture: document, and its file or pipe

Two SOCK_SEQPACKET pairs connect them. On `calls` the worker sends Put, Drop, Open, Alter,
SetCarrier and waits for the answer: Done, Opened or Refused with the same number. The supervisor
refuses calls of a successor that has not taken over yet. Messages on `events` have no answers: the
supervisor sends the stored items (Item...) and Start, later HandOver, Failed, Quit, and a Ping now
and then; a worker sends Ready, TookOver, HandedOver, Abandon, Failed, Stop, Upgrade, and a Pong for
each Ping. A message is a JSON object of at most MESSAGE_BYTES, with at most DESCRIPTORS
descriptors.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from dataplane.descriptors import (
    close_all,
    receive_with_descriptors,
    system_error,
    with_descriptors,
)
from dataplane.errors import ConfigError, PortError, VnicError
from vnic.device.kinds.contract import InterfaceKind
from vnic.device.kinds.registry import interface_kind
from vnic.device.namespaces import NetNamespace
from vnic.device.tap import MAX_QUEUES, Agent, Tap, TapRequest

MESSAGE_BYTES = 1 << 16
# Two sockets per queue of a veth, its far namespace, document, namespace, pidfd and netlink
# sockets. The kernel permits 253.
DESCRIPTORS = 2 * MAX_QUEUES + 6
GUARANTEED = "guaranteed"
KEYS_MOST = 1 << 14  # bound on the keys that a faulty worker can create
CALL_TIMEOUT_S = 30.0
# After a call without an answer, until the next answer: what a change undoes then is not waited for
# as long again, so that its client, who waits 60 s, receives the error.
SILENT_TIMEOUT_S = 1.0
ANOTHER_VERSION = (
    "an interface was stored by another version of vnic; use `vnic down` and `vnic up`"
)


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class _Numbered(_Message, frozen=True, kw_only=True):
    """A call, or the answer to the call with the same number. So a late answer, whose caller no
    longer waits, is not mistaken for another call's."""

    number: int = 0


class Put(_Numbered, frozen=True):
    """Store the descriptors under `key`, replacing those stored there."""

    key: str


class Drop(_Numbered, frozen=True):
    """Close the descriptors stored under `key`; answered afterwards."""

    key: str


class Open(_Numbered, frozen=True):
    """Make a NIC's interface in its container, store it under nic/NAME, and send it (Opened). The
    optional descriptors are the container's network namespace and a pidfd. request: the kind's
    REQUEST."""

    nic: str
    kind: str
    request: msgspec.Raw


class SetCarrier(_Numbered, frozen=True):
    """Set the link up or down of a NIC whose kind needs the agent for that."""

    nic: str
    up: bool


class Alter(_Numbered, frozen=True):
    """Give the interface of nic/NAME the settings of another request of its kind that are LIVE, and
    hand it over (Opened) as it is then. What is stored is the new one."""

    nic: str
    request: msgspec.Raw


class Done(_Numbered, frozen=True):
    """The call has succeeded."""


class Opened(_Numbered, frozen=True):
    """The interface, as descriptors in the order of nic/NAME."""


class Refused(_Numbered, frozen=True):
    """The call has failed. config: because the request is invalid (ConfigError)."""

    error: str
    config: bool = False


class Item(_Message, frozen=True):
    """The descriptors stored under `key`."""

    key: str


class Start(_Message, frozen=True, kw_only=True):
    """All items were sent; start. role first: only the configuration is stored; crash: the last
    worker died; successor: the last worker still runs."""

    role: Literal["first", "crash", "successor"]
    instance: str
    supervisor: int
    restarts: int = 0
    last: str = ""  # why the last worker ended


class HandOver(_Message, frozen=True):
    """To both workers of an upgrade: hand over through this socket."""


class Ping(_Message, frozen=True):
    """To a worker: answer with Pong. It does if its event loop runs."""


class Quit(_Message, frozen=True):
    """Detach everything and end."""


class Ready(_Message, frozen=True):
    """From a worker: everything is up. From a successor: it is prepared to take over."""


class TookOver(_Message, frozen=True):
    """From a successor: it owns every engine."""


class HandedOver(_Message, frozen=True):
    """From an old worker: its successor owns every engine, and it ends."""


class Pong(_Message, frozen=True):
    """From a worker: its event loop runs."""


class Abandon(_Message, frozen=True):
    """From an old worker: end the successor; the old worker continues."""


class Failed(_Message, frozen=True):
    """From a worker: it failed. To an old worker: its successor failed."""

    error: str
    config: bool = False


class Stop(_Message, frozen=True):
    """From a worker: a client requested the instance's end, and everything is detached."""


class Upgrade(_Message, frozen=True):
    """From a worker: start its successor with this Python ("": the same)."""

    python: str = ""


Call = Put | Drop | Open | Alter | SetCarrier
Answer = Done | Opened | Refused
ToWorker = Item | Start | HandOver | Failed | Ping | Quit
FromWorker = Ready | TookOver | HandedOver | Abandon | Failed | Stop | Upgrade | Pong

decode_call = msgspec.json.Decoder(Call).decode
decode_answer = msgspec.json.Decoder(Answer).decode
decode_to_worker = msgspec.json.Decoder(ToWorker).decode
decode_from_worker = msgspec.json.Decoder(FromWorker).decode


class KeptNic(msgspec.Struct, frozen=True):
    """The document of nic/NAME. request, report: the kind's REQUEST, and its REPORT, which another
    process needs besides the descriptors. The container was given by `pid` or `path`; without both
    it is the daemon's own namespace."""

    label: str
    kind: str
    request: msgspec.Raw
    report: msgspec.Raw
    pid: int | None = None
    path: str | None = None


def send(
    sock: socket.socket,
    message: msgspec.Struct,
    descriptors: Sequence[int] = (),
    *,
    wait: bool = True,
) -> None:
    """Sends a message; the receiver gets duplicates of the descriptors. Raises OSError, with
    wait=False also BlockingIOError if the socket is full."""
    data = msgspec.json.encode(message)
    ancillary = with_descriptors(descriptors)
    # not socket.send_fds, which ignores its flags
    sock.sendmsg([data], ancillary, 0 if wait else socket.MSG_DONTWAIT)


class DescriptorsLostError(VnicError):
    """A message arrived without some of its descriptors, since its receiver cannot open more files.
    `data`: the message."""

    def __init__(self, data: bytes) -> None:
        super().__init__(
            "descriptors got lost between supervisor and worker: too many open files; "
            "raise the limit (ulimit -n)"
        )
        self.data = data


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receives a message and its descriptors, which the caller closes; b"" if the peer has ended.
    Raises OSError, DescriptorsLostError."""
    data, found, lost = receive_with_descriptors(sock, MESSAGE_BYTES, DESCRIPTORS)
    if lost:
        close_all(found)
        raise DescriptorsLostError(data)
    return data, found


def write_document(content: bytes) -> int:
    """Makes a sealed memfd with `content`; the caller closes the descriptor."""
    descriptor = os.memfd_create("vnic-document", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW,
        )
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def read_document(descriptor: int) -> bytes:
    """The content of a document."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def nic_descriptors(interface: Tap, request: TapRequest) -> list[int]:
    """The descriptors to store under nic/NAME. The caller owns them; the interface's handle and its
    namespace are closed."""
    namespace = interface.namespace
    kept = KeptNic(
        namespace.label,
        interface.KIND,
        msgspec.Raw(msgspec.json.encode(request)),
        msgspec.Raw(msgspec.json.encode(interface.report())),
        namespace.pid,
        namespace.path,
    )
    try:
        document = write_document(msgspec.json.encode(kept))
    except BaseException:
        interface.close()
        raise
    descriptors = [
        document,
        namespace.fd,
        *([namespace.pidfd] if namespace.pidfd >= 0 else []),
        *interface.let_go(),
    ]
    namespace.fd = namespace.pidfd = -1
    return descriptors


def kept_document(descriptors: Sequence[int]) -> KeptNic:
    """The document stored under nic/NAME. Raises VnicError for that of another version of vnic."""
    try:
        return msgspec.json.decode(read_document(descriptors[0]), type=KeptNic)
    except msgspec.MsgspecError:
        raise VnicError(ANOTHER_VERSION) from None


def kept_kind(descriptors: Sequence[int]) -> InterfaceKind:
    """The kind of the NIC stored under nic/NAME. Raises VnicError."""
    return interface_kind(kept_document(descriptors).kind)


def kept_request(descriptors: Sequence[int]) -> TapRequest:
    """The request for which the interface stored under nic/NAME was made. Raises VnicError."""
    kept = kept_document(descriptors)
    try:
        return interface_kind(kept.kind).decode_request(kept.request)
    except msgspec.MsgspecError:
        raise VnicError(ANOTHER_VERSION) from None


def kept_nic(descriptors: Sequence[int], agent: Agent) -> Tap:
    """The handle of a stored interface; it takes over `descriptors`. Raises VnicError after closing
    them."""
    try:
        kept = kept_document(descriptors)
        kind = interface_kind(kept.kind)
        report = kind.decode_report(kept.report)
    except msgspec.MsgspecError:
        close_all(descriptors)
        raise VnicError(ANOTHER_VERSION) from None
    except BaseException:
        close_all(descriptors)
        raise
    document, namespace, *rest = descriptors
    os.close(document)
    pidfd = rest.pop(0) if kept.pid is not None else -1
    container = NetNamespace(namespace, kept.label, pid=kept.pid, pidfd=pidfd, path=kept.path)
    return kind.interface(report, rest, container, agent)


class Store:
    """The supervisor's descriptors by key."""

    def __init__(self) -> None:
        self._kept: dict[str, list[int]] = {}

    def put(self, key: str, descriptors: list[int]) -> None:
        """Stores the descriptors, which it owns from now on."""
        if key not in self._kept and len(self._kept) >= KEYS_MOST:
            close_all(descriptors)
            raise VnicError(f"the supervisor keeps {KEYS_MOST} things already")
        old, self._kept[key] = self._kept.get(key, []), descriptors
        close_all(old)

    def drop(self, key: str) -> None:
        """Closes the descriptors stored under `key`, if any."""
        close_all(self._kept.pop(key, []))

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str) -> list[int] | None:
        """The descriptors stored under `key`, which the store still owns; None: none."""
        return self._kept.get(key)

    def items(self) -> list[tuple[str, list[int]]]:
        """All items, in the order in which they were first stored."""
        return list(self._kept.items())

    def close(self) -> None:
        """Closes everything."""
        for key in list(self._kept):
            self.drop(key)


class Keeper:
    """The worker's side: calls, from any thread, and the inherited items. may_change: this worker
    may change the store; False for a successor that has not taken over."""

    def __init__(self, calls: socket.socket, inherited: dict[str, list[int]] | None = None) -> None:
        self._calls = calls
        self._silent_since_s: float | None = None  # when the first call without an answer was made
        self._lock = threading.Lock()
        self._number = 0
        self._inherited = inherited or {}
        self.may_change = True

    def take(self, key: str) -> list[int] | None:
        """Takes the descriptors that the last worker stored under `key`; the caller closes them.
        None if there are none."""
        return self._inherited.pop(key, None)

    def inherited(self, prefix: str) -> list[str]:
        """Keys with this prefix of inherited items that were not taken yet."""
        return [key for key in self._inherited if key.startswith(prefix)]

    def drop_inherited(self, *prefixes: str) -> None:
        """Removes inherited items that were not taken from the store. Raises VnicError."""
        for key in [key for prefix in prefixes for key in self.inherited(prefix)]:
            close_all(self.take(key) or [])
            self.drop(key)

    def put(self, key: str, descriptors: Sequence[int]) -> None:
        """Stores duplicates of the descriptors. Raises VnicError."""
        self._call(Put(key), descriptors)

    def put_document(self, key: str, content: bytes, descriptors: Sequence[int] = ()) -> None:
        """Stores a document, with duplicates of the descriptors behind it. Raises VnicError."""
        try:
            descriptor = write_document(content)
        except OSError as error:
            raise VnicError(f"{key} cannot be kept: {system_error(error)}") from None
        try:
            self.put(key, [descriptor, *descriptors])
        finally:
            os.close(descriptor)

    def drop(self, key: str) -> None:
        """Removes an item, and returns when it is closed. Raises VnicError."""
        self._call(Drop(key))

    def open_nic(self, nic: str, request: TapRequest, container: Sequence[int] = ()) -> list[int]:
        """Makes an interface; returns the descriptors of nic/NAME. container: the descriptors of
        Open. Raises ConfigError, PortError."""
        return self._call(
            Open(nic, request.KIND, msgspec.Raw(msgspec.json.encode(request))), container
        )

    def alter_nic(self, nic: str, request: TapRequest) -> list[int]:
        """Gives a NIC's interface the settings of `request` that are LIVE; returns descriptors as
        of nic/NAME. Raises ConfigError, PortError."""
        return self._call(Alter(nic, msgspec.Raw(msgspec.json.encode(request))))

    def set_carrier(self, nic: str, up: bool) -> None:
        """Sets the link up or down of a NIC whose kind needs the agent for that. Raises
        VnicError."""
        self._call(SetCarrier(nic, up))

    def close(self) -> None:
        """Closes the inherited items that were not taken."""
        for descriptors in self._inherited.values():
            close_all(descriptors)
        self._inherited = {}

    def _call(self, message: Call, descriptors: Sequence[int] = ()) -> list[int]:
        if not self.may_change:
            raise VnicError("what the other worker has cannot be changed before it is handed over")
        try:
            with self._lock:
                self._number += 1
                began_s, silent_s = time.monotonic(), self._silent_since_s
                self._calls.settimeout(CALL_TIMEOUT_S if silent_s is None else SILENT_TIMEOUT_S)
                send(
                    self._calls, msgspec.structs.replace(message, number=self._number), descriptors
                )
                answer, received = self._await(self._number)
                self._silent_since_s = None
        except TimeoutError:
            self._silent_since_s = began_s if silent_s is None else silent_s
            silent_for_s = time.monotonic() - self._silent_since_s
            raise VnicError(f"no answer from the supervisor for {silent_for_s:.3g} s") from None
        except OSError as error:
            gone = (
                "the supervisor is gone"
                if isinstance(error, ConnectionError)
                else "the supervisor cannot be asked"
            )
            raise VnicError(f"{gone}: {system_error(error)}") from None
        if isinstance(answer, Refused):
            close_all(received)
            raise (ConfigError if answer.config else PortError)(answer.error)
        return received

    def _await(self, number: int) -> tuple[Answer, list[int]]:
        """Receives the answer to call `number`; discards earlier ones, whose callers no longer
        wait."""
        while True:
            try:
                data, received = receive(self._calls)
            except DescriptorsLostError as lost:
                if decode_answer(lost.data).number == number:
                    raise
                continue
            if not data:
                raise VnicError("the supervisor is gone")
            answer = decode_answer(data)
            if answer.number == number:
                return answer, received
            close_all(received)

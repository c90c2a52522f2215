"""The live captures of the NICs: limits, what the supervisor stores of them, and their ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import msgspec

from dataplane.descriptors import close_all
from dataplane.errors import VnicError
from vnic.api.method import NotPermittedError, Session, user_name
from vnic.modules.capture import KeptCapture, LiveCapture, reopened
from vnic.modules.host import Host
from vnic.modules.nic_node import NicNode
from vnic.modules.switch_host import SwitchHost
from vnic.store.keeper import read_document

CAPTURES_MOST = 64  # each has a thread and a buffer of 8 MiB
CAPTURES_OF_A_USER_MOST = 4  # of a user other than the instance's owner


class Captures:
    """Starts and ends captures. find: returns the NIC of a capture point, or raises ConfigError."""

    def __init__(
        self, host: Host, homes: Sequence[SwitchHost], find: Callable[[str], NicNode]
    ) -> None:
        self._host, self._homes, self._find = host, homes, find
        self._running: dict[int, LiveCapture] = {}
        # Of captures that ended with their NIC: the results, until their clients ask.
        self._ended: dict[int, Future[dict[str, Any]]] = {}
        self._finishing: dict[int, LiveCapture] = {}  # what waits is still being written
        self._writers = ThreadPoolExecutor(CAPTURES_MOST, "vnic-finish")
        self._orphans: set[int] = set()  # captures whose client disconnected during an upgrade
        self.count = 0  # captures ever started, which numbers them

    def start(self, point: str, target: str | int, snaplen: int, uid: int | None) -> int:
        """Starts a capture; returns its number. uid: the user, unless it is the instance's owner.
        Raises VnicError."""
        running = [each.kept for each in (*self._running.values(), *self._finishing.values())]
        if len(running) >= CAPTURES_MOST:
            raise VnicError(
                f"{CAPTURES_MOST} captures run already; end one of them first", code="limit"
            )
        theirs = sum(each.uid == uid for each in running)
        if uid is not None and theirs >= CAPTURES_OF_A_USER_MOST:
            raise NotPermittedError(
                f"capture: user {user_name(uid)} has {theirs} captures already; end one of them "
                "first",
                code="limit",
            )
        self.count += 1
        number, kept = self.count, KeptCapture(point, snaplen, uid)
        capture = self._insert(
            number, kept, reopened(target) if isinstance(target, int) else target
        )
        try:
            if self._host.keeping is not None:
                kept.keep(self._host.keeping, number, capture.file.fileno())
        except BaseException:
            self.end(number)
            raise
        self._host.emit("capture", nic=capture.nic, point=capture.point, state="started")
        return number

    def _insert(self, number: int, kept: KeptCapture, path: str) -> LiveCapture:
        nic = self._find(kept.point)
        capture = LiveCapture(self._homes[nic.home], nic, kept, number, path)
        capture.start()
        self._running[number] = capture
        return capture

    def inherit(self) -> None:
        """Continues the captures that the previous worker left in the supervisor's store."""
        keeping = self._host.keeping
        for key in keeping.inherited("capture/") if keeping is not None else ():
            assert keeping is not None
            document, descriptor = keeping.take(key) or []
            try:
                kept = msgspec.json.decode(read_document(document), type=KeptCapture)
                self._insert(int(key.removeprefix("capture/")), kept, reopened(descriptor))
            finally:
                close_all([document, descriptor])

    def of(self, *nics: str) -> list[LiveCapture]:
        """The running captures of these NICs."""
        return [capture for capture in self._running.values() if capture.nic in nics]

    def end(self, number: int) -> Future[dict[str, Any]]:
        """Ends a capture: takes it out of the graph. A thread writes the rest, which takes up to a
        second if the file or pipe blocks; the result is what `LiveCapture.finish` returns."""
        capture = self._running.pop(number, None)
        if capture is None:
            return self._ended.pop(number, None) or self._writers.submit(dict)
        capture.stop()
        self._finishing[number] = capture
        finished = self._writers.submit(capture.finish)
        finished.add_done_callback(lambda _: self._finishing.pop(number, None))
        if self._host.keeping is not None:
            self._host.keeping.drop(f"capture/{number}")
        self._host.accounts.settle()
        self._host.emit(
            "capture",
            nic=capture.nic,
            point=capture.point,
            state="stopped",
            captured=capture.captured,
        )
        return finished

    def end_with(self, *nics: str) -> None:
        """Ends the captures of NICs that are about to leave the graph."""
        for number in [number for number, capture in self._running.items() if capture.nic in nics]:
            self._ended[number] = self.end(number)

    def client_gone(self, session: Session) -> None:
        """Ends the captures of a client that disconnected."""
        if self._host.upgrading:  # the successor has been told of the graph as it is
            self._orphans |= session.captures
        else:
            self._end_all(session.captures)
        session.captures.clear()

    def _end_all(self, captures: Iterable[int]) -> None:
        for number in list(captures):
            self.end(number)  # does not wait for a reader

    def upgrade_failed(self) -> None:
        """Ends the captures whose clients disconnected during an upgrade that failed."""
        self._end_all(self._orphans)
        self._orphans = set()

    def keep_only(self, captures: set[int]) -> None:
        """A successor has taken over: ends the captures that belong to none of its clients."""
        self._end_all(set(self._running) - captures)

    def let_go(self) -> None:
        """A successor has taken over every engine: writes what was captured here, so that the
        successor's file may continue."""
        wait([self._writers.submit(capture.file.close) for capture in self._running.values()])

    def memory(self) -> dict[str, int]:
        """Bytes of the buffers, by NIC."""
        found: dict[str, int] = {}
        for capture in (*self._running.values(), *self._finishing.values()):
            found[capture.nic] = found.get(capture.nic, 0) + capture.file.capacity
        return found

    def close(self) -> None:
        """Ends the threads that write; waits for what is captured."""
        self._writers.shutdown()

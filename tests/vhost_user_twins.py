"""Doubles for the tests of vhost-user: a device without packets, a supervisor that stores books, a
worker that can be killed at each step, and a front end beside it in the same thread."""

import os
import socket
from collections.abc import Mapping, Sequence

from dataplane.descriptors import close_all, readable
from virt.vhost_user.books import Books, Inflight, Log, Region, Ring
from virt.vhost_user.connection import Connection
from virt.vhost_user.device import Offer, RingDescriptors
from virt.vhost_user.features import Abilities, offered
from virt.vhost_user.front_end import FrontEnd
from virt.vhost_user.guest_memory import GuestMemory
from virt.vhost_user.net_config import NetConfig
from virt.vhost_user.protocol import ProtocolError
from virt.vhost_user.session import Session

MAC = bytes.fromhex("020000000001")
OFFER = Offer(features=offered(Abilities(queue_pairs=2, mtu=1500)), queue_pairs=2)


class Killed(BaseException):
    """The worker ends here, at once. Not an Exception: nothing may handle it."""


class Fuse:
    """Kills the worker at the step of this number, once; 0: never. `steps` counts them, while
    active."""

    def __init__(self, step: int = 0) -> None:
        self.at, self.steps, self.active = step, 0, True

    def step(self) -> None:
        self.steps += self.active
        if self.active and self.steps == self.at:
            raise Killed


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Guest:
    """What outlives a worker: how far each ring has come, in which start of it, and how many
    buffers wait there for a device to run it."""

    def __init__(self) -> None:
        self.positions: dict[int, int] = {}
        self.generations: dict[int, int] = {}
        self.waiting: dict[int, int] = {}


class DeviceTwin:
    """A device that keeps what it is told, checks what it is promised, and moves no packet."""

    def __init__(self, guest: Guest | None = None, fuse: Fuse | None = None) -> None:
        self.guest, self.fuse = guest or Guest(), fuse or Fuse()
        self.features = self.status = self.mtu = 0
        self.regions: tuple[Region, ...] = ()
        self.running: dict[int, Ring] = {}
        self.log: Log | None = None
        self.inflight: Inflight | None = None
        self.announced: list[bytes] = []
        self.starts: list[tuple[int, int, bool]] = []  # ring, position, resumed
        self.refusal: Exception | None = None  # of the next apply_memory

    def apply_features(self, features: int) -> None:
        self.fuse.step()
        assert not self.running
        assert not features & (1 << 26 | 1 << 30)
        self.features = features

    def apply_memory(self, regions: Sequence[Region], descriptors: Sequence[int]) -> None:
        self.fuse.step()
        assert not self.running
        assert len(regions) == len(descriptors)
        for region, descriptor in zip(regions, descriptors, strict=True):
            assert os.fstat(descriptor).st_size >= region.offset + region.size
        if self.refusal:
            refusal, self.refusal = self.refusal, None
            raise refusal
        self.regions = tuple(regions)

    def start_ring(self, index: int, ring: Ring, descriptors: RingDescriptors, *, resumed: bool) -> None:
        self.fuse.step()
        assert index not in self.running
        assert ring.started and ring.enabled and ring.size and ring.addresses
        assert (descriptors.kick is None) == (not ring.kick)
        for each in descriptors:
            assert each is None or os.fstat(each)
        position = ring.base
        if resumed and self.guest.generations.get(index) == ring.generation:
            position = self.guest.positions[index]
        self.guest.positions[index] = position + self.guest.waiting.pop(index, 0)
        self.guest.generations[index] = ring.generation
        self.running[index] = ring
        self.starts.append((index, position, resumed))
        self.fuse.step()

    def stop_ring(self, index: int) -> int:
        self.fuse.step()
        del self.running[index]
        self.fuse.step()
        return self.guest.positions[index]

    def set_log(self, log: Log | None, descriptor: int | None) -> None:
        self.fuse.step()
        assert (log is None) == (descriptor is None)
        self.log = log

    def set_inflight(self, inflight: Inflight | None, descriptor: int | None) -> None:
        self.fuse.step()
        assert not self.running
        self.inflight = inflight

    def set_status(self, status: int) -> None:
        self.fuse.step()
        self.status = status

    def set_mtu(self, mtu: int) -> None:
        self.fuse.step()
        self.mtu = mtu

    def announce(self, mac: bytes) -> None:
        self.fuse.step()
        self.announced.append(mac)

    def read_config(self) -> bytes:
        return NetConfig(mac=MAC, queue_pairs=2, mtu=1500, speed_mbps=10_000).packed()


class Supervisor:
    """Stores books and duplicates of their descriptors, all at once."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.held: dict[str, int] = {}

    def store(self, books: Books, descriptors: Mapping[str, int]) -> None:
        duplicates = {role: os.dup(each) for role, each in descriptors.items()}
        close_all(self.held.values())
        self.data, self.held = books.encode(), duplicates

    def handed_out(self) -> dict[str, int]:
        return {role: os.dup(each) for role, each in self.held.items()}

    def close(self) -> None:
        close_all(self.held.values())
        self.held.clear()


class BreakingSocket:
    """A socket whose user may be killed before and after each system call."""

    def __init__(self, sock: socket.socket, fuse: Fuse) -> None:
        self._sock, self._fuse = sock, fuse

    def __getattr__(self, name):
        value = getattr(self._sock, name)
        if name not in {"recv", "recvmsg", "sendmsg", "setsockopt"}:
            return value

        def call(*arguments):
            self._fuse.step()
            result = value(*arguments)
            try:
                self._fuse.step()
            except Killed:
                if name == "recvmsg":
                    for _, _, data in result[1]:
                        close_all(memoryview(data).cast("i"))
                raise
            return result

        return call


class Bench:
    """A front end and a back end in one thread. The back end's worker is killed where the fuse says,
    and the next one carries on from what the supervisor has stored."""

    def __init__(
        self,
        memory: GuestMemory,
        *,
        offer: Offer = OFFER,
        fuse: Fuse | None = None,
        front=FrontEnd,
        rings: int = 4,
        ring_size: int = 256,
    ) -> None:
        self.offer, self.fuse = offer, fuse or Fuse()
        self.guest, self.supervisor = Guest(), Supervisor()
        ours, self.sock = socket.socketpair()
        self.kills = 0
        self.alive = True
        self.error: ProtocolError | None = None
        self._work()
        self.front = front(ours, memory, rings=rings, ring_size=ring_size, turn=self.turn)

    @property
    def books(self) -> Books:
        return self.session.books

    def _work(self) -> None:
        stored = self.supervisor.data
        self.device = DeviceTwin(self.guest, self.fuse)
        self.session = Session(
            self.device,
            self.offer,
            Books.decode(stored) if stored else None,
            self.supervisor.handed_out(),
        )
        self.connection = Connection(BreakingSocket(self.sock.dup(), self.fuse), self.session, self._store)
        if stored:
            self.connection.resume()

    def _store(self, books: Books, descriptors: Mapping[str, int]) -> None:
        self.fuse.step()
        self.supervisor.store(books, descriptors)
        self.fuse.step()

    def turn(self) -> None:
        """The worker handles what has arrived; it is killed and replaced if the fuse says so."""
        while self.alive and readable(self.connection.fileno(), 0):
            try:
                self.alive = self.connection.read()
            except ProtocolError as error:
                self.alive, self.error = False, error
            except Killed:
                self.replace()
        if not self.alive and self.connection is not None:
            self.connection.close()
            self.sock.close()
            self.connection = None

    def replace(self) -> None:
        """The worker's end, and its successor."""
        self.kills += 1
        self.connection.abandon()
        self.session.descriptors.close_all()
        try:
            self._work()
        except Killed:
            self.replace()

    def close(self) -> None:
        self.front.close()
        self.turn()
        if self.connection is not None:
            self.alive = False
            self.turn()
        self.supervisor.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

"""Idle engines that share a thread stay asleep while others work; none of their packets is late or
lost."""

import threading
import time

import pytest

from dataplane.engine.thread import EngineThread
from dataplane.graph.port import PortRx, PortTx
from dataplane.groups.group import EngineGroup
from dataplane.groups.threads import Mode
from dataplane.packet.pool import PacketPool
from dataplane.packet.ring import MpscRing
from dataplane.ports.memory import MemoryPort
from dataplane.ports.ring_port import RingPort
from shaping.shaper import Shaper
from tests.test_group import CPUS, FRAME, until
from tests.test_group import Lane as PlainLane

ALONE = {"cpus": CPUS[:1]}  # one CPU, one thread: no engine moves


class Counting:
    """Counts a port's packets without posting to its engine, which that would wake."""

    def __init__(self, port):
        self.port, self.times_ns = port, []

    def __len__(self):
        self.times_ns += [frame.time_ns for frame in self.port.take()]
        return len(self.times_ns)


class Lane(PlainLane):
    def __init__(self, pool, name):
        super().__init__(pool, name)
        self.out = Counting(self.output)

    def all_through(self):
        return len(self.out) >= self.sent


@pytest.fixture
def together():
    """Engines in a compacting group on one thread, by lanes; checks that no packet is lost."""
    pool = PacketPool(small=4096, large=16)
    group, made = EngineGroup("g", "compacting", **ALONE), []

    def make(count):
        for _ in range(count):
            made.append(Lane(pool, f"e{len(made)}"))
            group.add(made[-1].engine)
        group.start()
        return group, made

    yield make
    group.stop()
    for lane in made:
        assert lane.engine.conservation()["conserved"]
        lane.engine.close()
        lane.output.take()
    assert pool.in_use == 0


def polls(lane):
    return lane.engine.status()["polls"]


def one_by_one(lane, count):
    """Sends packets one by one; most find the thread asleep."""
    for _ in range(count):
        lane.send()
        until(lane.all_through)


def test_a_lone_packet_is_its_engine_s_alone(together):
    group, (busy, *idle) = together(4)
    for thread in group.threads:
        thread.look_ns = 1 << 60  # no resting engine is polled because a packet took long
    one_by_one(busy, 20)  # all have been polled once, and rest
    before = [polls(each) for each in (busy, *idle)]
    one_by_one(busy, 400)
    more = [polls(each) - count for each, count in zip((busy, *idle), before, strict=True)]
    assert more[0] >= 400 and more[1:] == [0, 0, 0]


def test_who_rests_is_asked_while_others_are_busy(together):
    """A resting engine is polled after `look_ns` at the latest, without a wake-up."""
    group, (busy, resting) = together(2)
    for thread in group.threads:
        thread.look_ns = 0
    one_by_one(busy, 20)
    before = polls(resting)

    def asked():
        busy.send(64)
        until(busy.all_through)
        return polls(resting) > before

    until(asked)


def test_who_rests_is_there_when_something_comes(together):
    """Packets by a port and by a ring's doorbell, and work in the mailbox, reach an engine that
    rests while another is always busy."""
    _, (busy, resting) = together(2)
    over = threading.Event()

    def keep_busy():
        while not over.is_set():
            busy.send(64)
            until(busy.all_through)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for number in range(200):
            resting.send()
            until(resting.all_through)
            assert resting.engine.call(lambda number=number: number) == number
    finally:
        over.set()
        thread.join()


def test_a_ring_to_an_engine_that_rests():
    """The sender sees the flag for the doorbell, since a resting engine is always asleep."""
    pool = PacketPool(small=4096, large=16)
    ring = MpscRing(64)
    sender, other, receiver = Lane(pool, "s"), Lane(pool, "o"), Lane(pool, "r")
    sender.engine.load([])
    rx = PortRx(sender.input, name="rx")
    rx >> PortTx(RingPort("to", 2, None, ring), name="to")
    sender.engine.load([rx])
    ring_rx = PortRx(RingPort("from", 3, ring, None), name="from")
    out = MemoryPort("out", 4)
    came = Counting(out)
    ring_rx >> PortTx(out, name="out")
    receiver.engine.load([ring_rx])
    group = EngineGroup("g", "compacting", **ALONE)
    for lane in (other, receiver):
        group.add(lane.engine)
    group.start()
    thread = EngineThread("s", None)
    thread.start([sender.engine])
    try:
        for number in range(1, 301):
            # so that the thread is awake for another engine, or asleep, when the ring gets a packet
            other.send()
            sender.input.inject([FRAME])
            until(lambda number=number: len(came) == number)
    finally:
        thread.stop()
        group.stop()
    assert all(lane.engine.conservation()["conserved"] for lane in (sender, other, receiver))
    for lane in (sender, other, receiver):
        lane.engine.close()
        lane.output.take()
    out.take()
    assert pool.in_use == 0


def test_timers_of_who_rests(together):
    """A shaper sends packets on time although its engine has no other turns."""
    _, (busy, timed) = together(2)
    shaper = Shaper(1_000_000, name="shaper")
    rx, out = PortRx(MemoryPort("in", 2), name="rx"), MemoryPort("out", 3)
    rx >> shaper >> PortTx(out, name="out")
    timed.engine.load([rx])
    begin_ns = time.monotonic_ns()
    rx.port.inject([bytes(125)] * 20)  # a millisecond each
    one_by_one(busy, 50)
    came = Counting(out)
    until(lambda: len(came) == 20)
    times = came.times_ns
    # None early, and in order; lateness depends on the machine. (The poll that finds the packets
    # may begin up to one packet's time before: the port waits for the GIL that `inject` holds.)
    assert all(at_ns >= begin_ns + (number - 1) * 1_000_000 for number, at_ns in enumerate(times))
    assert times == sorted(times)
    out.take()


def test_moves_of_who_rests(together):
    """A resting engine is halted, resumed, and its group's mode changed."""
    group, (busy, resting) = together(2)
    for mode in ("spreading", "compacting"):
        one_by_one(busy, 5)
        group.halt(resting.engine)
        one_by_one(busy, 5)
        resting.send(3)
        group.resume(resting.engine)
        until(resting.all_through)
        group.change(mode=Mode(mode))
        one_by_one(resting, 5)

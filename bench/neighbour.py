"""Round trips between two guests of one vnic, while a third one is absent, well behaved or hostile.

The guests are drivers in this process, behind the sockets of three NICs on one engine. Before each round trip the third
guest does a step of what is measured, so that the engine has its work and that of the neighbours at the same time; blocks
of round trips of all kinds take turns.
"""

from __future__ import annotations

import os
import time

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.report import show_machine
from bench.space import Space, sweep
from bench.tap import Json, Series, rotate, say
from bench.virt_back_ends import start_vnic
from tests.support.guests import TX
from tests.support.socket_guest import SocketGuest
from virt.driver import NEXT, WRITE
from virt.vhost_user.protocol import Request

MACS = [bytes.fromhex(f"02000000000{number}") for number in (1, 2, 3)]
BLOCK = 500  # round trips
FRAME_BYTES = 60
KICKS = 8  # of a step
BURST = 32  # chains of a step


class Third:
    """The guest beside the two: absent."""

    name = "absent"

    def __init__(self, path: str) -> None:
        self.path = path

    def begin(self) -> None:
        """Before a block."""

    def step(self) -> None:
        """Before a round trip."""

    def end(self) -> None:
        """After a block."""


class Present(Third):
    """It sends a frame to a guest that is not there."""

    name = "sends"

    def begin(self) -> None:
        self.guest = SocketGuest(self.path, MACS[2])

    def step(self) -> None:
        self.guest.send(b"\2\0\0\0\0\x09" + MACS[2] + bytes(FRAME_BYTES - 12))

    def end(self) -> None:
        self.guest.close()


class FullCall(Present):
    """It sends, and its call descriptor is full and blocks."""

    name = "full call"

    def begin(self) -> None:
        super().begin()
        call = self.guest.front.notifiers[TX].call
        os.eventfd_write(call, 2**64 - 2)
        os.set_blocking(call, True)


class Kicks(Present):
    """It kicks for nothing."""

    name = "kicks"

    def step(self) -> None:
        for _ in range(KICKS):
            self.guest.kick(TX)


class Longest(Present):
    """It sends a burst of the longest chains that are walked, of which no frame can be made: all heads lead into one."""

    name = "longest chains"

    def begin(self) -> None:
        self.guest = SocketGuest(self.path, MACS[2], size=1024)
        ring, at = self.guest.rings[TX], self.guest.ram.allocate(64)
        for number in range(ring.size - 1):
            ring.write(number, at, 1, NEXT, number + 1)
        ring.write(ring.size - 1, at, 1, WRITE, 0)

    def step(self) -> None:
        ring = self.guest.rings[TX]
        for _ in range(BURST):
            self.guest.ram.store(ring.available + 4 + 2 * (ring.index % ring.size), 0)
            ring.index = (ring.index + 1) & 0xFFFF
        self.guest.ram.store(ring.available + 2, ring.index)
        self.guest.kick(TX)


class Broken(Present):
    """Its ring breaks, and it sets it up again."""

    name = "breaks"

    def step(self) -> None:
        guest, ring = self.guest, self.guest.rings[TX]
        guest.ram.store(ring.available + 2, ring.index + 4000)
        guest.kick(TX)
        guest.front.get_base(TX)
        guest.ram.store(ring.available + 2, ring.index)
        guest.front.set_notifier(Request.SET_VRING_KICK, TX, tell=True)


KINDS: tuple[type[Third], ...] = (Third, Present, FullCall, Kicks, Longest, Broken)


def round_trip(one: SocketGuest, two: SocketGuest) -> float:
    """Microseconds of a frame there and back."""
    began_ns = time.perf_counter_ns()
    one.send(two.mac + one.mac + bytes(FRAME_BYTES - 12))
    two.receive()
    two.send(one.mac + two.mac + bytes(FRAME_BYTES - 12))
    one.receive()
    return (time.perf_counter_ns() - began_ns) / 1000


def measure(one: SocketGuest, two: SocketGuest, third: Third, count: int) -> dict[str, float]:
    """Round trips beside the third guest."""
    third.begin()
    try:
        times = []
        for _ in range(count):
            third.step()
            times.append(round_trip(one, two))
    finally:
        third.end()
    times.sort()
    return {"p50_us": times[count // 2], "p99_us": times[count * 99 // 100]}


def run(rounds: int, count: int = BLOCK) -> Json:
    """Blocks of all kinds, interleaved. Raises BenchError."""
    sweep()
    described = machine.describe()
    series = {kind.name: Series(str(kind.__doc__)) for kind in KINDS}
    with Space() as space:
        sockets = [space.directory / f"v{n}.sock" for n in range(3)]
        start_vnic(space, sockets)
        with SocketGuest(str(sockets[0]), MACS[0]) as one, SocketGuest(str(sockets[1]), MACS[1]) as two:
            measure(one, two, Third(""), count)  # caches
            for number in range(rounds):
                for kind in rotate(list(KINDS), number % len(KINDS)):
                    found = measure(one, two, kind(str(sockets[2])), count)
                    series[kind.name].samples.append(found)
                    say(f"round {number + 1}/{rounds} {kind.name:14} " + " ".join(f"{k}={v:.1f}" for k, v in found.items()))
    return {"rounds": rounds, "kinds": {name: each.as_json() for name, each in series.items()}, "machine": described}


def show(console: Console, result: Json) -> None:
    """The table: medians of the rounds."""
    table = Table(title=f"round trips of two guests beside a third one: medians of {result['rounds']} rounds")
    for title in ("the third guest", "p50 us", "p99 us"):
        table.add_column(title, justify="left" if title.startswith("the") else "right", no_wrap=True)
    kinds = result["kinds"]
    assert isinstance(kinds, dict)
    for name, one in kinds.items():
        table.add_row(name, f"{one['p50_us']:.1f}", f"{one['p99_us']:.1f}")
    show_machine(console, result["machine"])  # type: ignore[arg-type]
    console.print(table)

"""Scenario of the hand-over tests: two engines with a NIC each, on shared segments, which can be
replaced while packets wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from dataplane.elements.classifier import Classifier
from dataplane.elements.counter import Counter
from dataplane.elements.nic_tx import NicTx
from dataplane.elements.parse import Parse
from dataplane.elements.rss import Rss
from dataplane.engine import handover
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handover import PREFIX, Loading, Marks, forget_engine, save_engine, save_parts
from dataplane.engine.virtual_time import VirtualTime
from dataplane.graph.element import BatchView, Element, PyElement
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.packet.ring import MpscRing
from dataplane.ports.memory import Frame, MemoryPort
from dataplane.ports.ring_port import RingPort
from shaping.shaper import Shaper
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable
from tests.wire_frames import Spec

START_NS = 10**12
MBIT = 10**6
RATES = ((MBIT // 5, None), (None, 50_000))  # of busy(), egress and ingress
MACS = [bytes.fromhex("020000000001"), bytes.fromhex("020000000002")]


class Seen(PyElement):
    """Marks packets with the number of packets before; an example of a user's element with
    state."""

    def __init__(self, *, name: str | None = None) -> None:
        self.seen = 0
        self.fails: str | None = None

    def process(self, batch: BatchView) -> None:
        batch.set("mark", range(self.seen, self.seen + len(batch)))
        self.seen += len(batch)

    def save_state(self) -> dict[str, Any]:
        if self.fails == "save":
            raise RuntimeError("no\nway")
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.fails == "load" and state["seen"]:
            raise KeyError("no\nway")
        self.seen = state["seen"]


@dataclass
class Home:
    """An engine, the port of its NIC and its elements by name, with its own objects over the shared
    segments."""

    engine: Engine
    port: MemoryPort
    elements: dict[str, Element]
    segments: list[Any] = field(default_factory=list)


class Pair:
    """NICs a and b, each with its engine, connected by rings. `out` gets the frames transmitted:
    (port, instant, frame)."""

    def __init__(
        self,
        egress: tuple[int | None, ...],
        ingress: tuple[int | None, ...],
        *,
        small: int = 2048,
        segments: list[int] | None = None,
        start_ns: int = START_NS,
    ):
        """segments: descriptors of another process' Pair."""
        self.rates = egress, ingress
        self.clock = Clock(virtual=True, start_ns=start_ns)
        if segments is None:
            self.pool, self.table, self.rings = PacketPool(small, 64), MacTable(64), [MpscRing(64), MpscRing(64)]
        else:
            self.pool, self.table = PacketPool.from_descriptor(segments[0]), MacTable.from_descriptor(segments[1])
            self.rings = [MpscRing.from_descriptor(*segments[2:4]), MpscRing.from_descriptor(*segments[4:6])]
        self.homes = [self.build(0), self.build(1)]
        self.incoming: list[list[bytes | Frame]] = [[], []]
        self.out: list[tuple[int, Frame]] = []
        self.handed_over: list[bytes] = []
        self.prepared: dict[int, tuple[Home, Loading, Marks]] = {}

    @property
    def segments(self) -> list[int]:
        return [self.pool.fd, self.table.fd, *(fd for ring in self.rings for fd in (ring.fd, ring.doorbell))]

    def build(self, number: int) -> Home:
        """A fresh engine for NIC `number`, with all segments attached again, as in another
        process."""
        pool, table = PacketPool.from_descriptor(self.pool.fd), MacTable.from_descriptor(self.table.fd)
        rings = [MpscRing.from_descriptor(ring.fd, ring.doorbell) for ring in self.rings]
        name, other = "ab"[number], "ab"[1 - number]
        port = MemoryPort(name, number, queues=2, offloads=0x1F)
        switch = L2Switch(table, 2, name="switch")
        egress = Shaper(self.rates[0][number], "1mb", name=f"{name}.egress")
        ingress = Shaper(self.rates[1][number], "1mb", name=f"{name}.ingress")
        split = Classifier([{"protocol": "tcp"}, {"protocol": "udp"}], name=f"{name}.split")
        rx, ring_rx = PortRx(port), PortRx(RingPort(f"{name}.ring", number, rings[number], None))
        _ = rx >> Parse(name=f"{name}.parse") >> split
        for gate in range(3):
            _ = split[gate] >> Counter(name=f"{name}.{gate}") >> egress
        _ = egress >> Seen(name=f"{name}.seen") >> switch
        _ = switch[number] >> ingress
        _ = switch[1 - number] >> PortTx(RingPort(f"{other}.ring", 1 - number, None, rings[1 - number]))
        _ = ring_rx >> ingress >> NicTx(port, Rss(queues=2), name=f"{name}.tx")
        engine = Engine(name, pool, clock=self.clock, seed=7 + number)
        engine.load([rx, ring_rx])
        for gate in range(2):
            switch.activate(gate)
        return Home(engine, port, {element.name: element for element in engine.elements}, [pool, table, rings])

    def send(self, number: int, bytes_each: int, count: int, gso_size: int = 0) -> None:
        frames: list[bytes | Frame] = []
        for i in range(count):
            link = MACS[1 - number] + MACS[number]
            payload = bytes([i, number]) * (bytes_each // 2)
            spec = Spec(payload=payload, source_port=i, protocol=6 if i % 3 or gso_size else 17, flags=0x10)
            frame = spec.frame(gso_size)
            frames.append(frame._replace(data=link + frame.data[12:]) if i % 7 != 6 else link + b"\x88\xb5" + payload)
        # as if in the kernel: the next engine of the NIC reads them
        self.incoming[number] += frames

    def run(self, gap_ns: int, who: int) -> None:
        """Advances virtual time by `gap_ns` for the engines in the bit mask `who`; for the others
        it stands still, and all their packets are late."""
        until = self.clock.now_ns + gap_ns
        engines = [home.engine for i, home in enumerate(self.homes) if who >> i & 1]
        for i, home in enumerate(self.homes):
            if who >> i & 1:
                home.port.inject(self.incoming[i])
                self.incoming[i] = []
        if engines:
            VirtualTime(engines).advance(until)
        self.clock.set(until)
        self.take()

    def take(self) -> None:
        for number, home in enumerate(self.homes):
            self.out += [(number, frame) for frame in home.port.take()]

    def set_rate(self, number: int, which: str, rate: int | None) -> None:
        shaper = self.homes[number].elements[f"{'ab'[number]}.{which}"]
        assert isinstance(shaper, Shaper)
        shaper.set_rate(rate)

    def prepare(self, number: int) -> None:
        """Builds the next engine of a NIC and loads the states of the elements, while the engine
        goes on until `hand_over`."""
        self.abandon(number)
        new = self.build(number)
        self.prepared[number] = new, Loading(new.engine), {}
        _, loading, marks = self.prepared[number]
        for part in save_parts(self.homes[number].engine, marks):
            loading.part(part)

    def abandon(self, number: int) -> None:
        """Closes an engine that was prepared."""
        if number in self.prepared:
            engine = self.prepared.pop(number)[0].engine
            forget_engine(engine)
            engine.close()

    def hand_over(self, number: int) -> None:
        """Replaces the engine of a NIC by a new one. The old one is closed, and must not free
        packets of the new one."""
        if number not in self.prepared:
            new = self.build(number)
            self.prepared[number] = new, Loading(new.engine), {}
        old, (new, loading, marks) = self.homes[number], self.prepared.pop(number)
        in_use = self.pool.in_use
        data = save_engine(old.engine, marks)
        self.handed_over.append(data)
        loading.finish(data)
        forget_engine(old.engine)
        assert all(not value or term == "conserved" for term, value in old.engine.conservation().items())
        old.engine.close()
        assert self.pool.in_use == in_use
        self.homes[number] = new

    def books(self) -> list[Any]:
        """All counters of both sides."""
        for home in self.homes:
            assert home.engine.conservation()["conserved"]
        return [
            [home.engine.snapshot(), home.port.queue_statistics(), home.elements[f"{name}.split"].hits()]  # type: ignore[attr-defined]
            for home, name in zip(self.homes, "ab", strict=True)
        ]

    def close(self) -> None:
        for number in list(self.prepared):
            self.abandon(number)
        held = sum(home.engine.conservation()["held"] for home in self.homes)
        store = sum(
            home.elements[f"{name}.{which}"].save_state()["split"] is not None
            for home, name in zip(self.homes, "ab", strict=True)
            for which in ("egress", "ingress")
        )
        assert self.pool.in_use == held + store + sum(len(ring) for ring in self.rings)
        for home in self.homes:
            for element in home.elements.values():
                if isinstance(element, PortRx) and isinstance(element.port, RingPort):
                    element.port.drain(home.engine)
            home.engine.close()
        assert self.pool.in_use == 0


def busy(**options: Any) -> Pair:
    """Both shapers of a hold packets, one is segmenting a frame, and b's ring has packets that b
    has not received yet."""
    pair = Pair(*RATES, **options)
    pair.send(0, 30_000, 1, 60)  # more segments than a batch holds
    pair.send(0, 1000, 20)
    pair.send(1, 700, 8)
    pair.run(100_000_000, 3)
    pair.send(1, 400, 6)
    pair.send(0, 5000, 2, 900)
    pair.run(40_000_000, 1)
    pair.send(1, 200, 6)
    assert len(pair.rings[1])
    return pair


def finish(pair: Pair) -> list[Any]:
    """Runs the scenario until all is quiet; returns its result."""
    pair.send(0, 900, 5)
    pair.run(300 * 10**9, 3)
    result = [pair.books(), pair.out]
    assert not any(home.engine.conservation()["held"] for home in pair.homes)
    pair.close()
    return result


def contents(data: bytes) -> dict[str, Any]:
    return msgspec.msgpack.decode(data[PREFIX.size :])


def packed(content: dict[str, Any], version: int = handover.FORMAT_VERSION) -> bytes:
    return PREFIX.pack(handover.MAGIC, version) + msgspec.msgpack.encode(content)


def entry(content: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [element for element in content["elements"] if element["name"] == name]
    return found

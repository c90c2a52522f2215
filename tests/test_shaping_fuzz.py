"""Random chains of elements that shape, random traffic with GSO frames, changes while packets wait, small pools. A chain that is
handed over to another engine again and again sends the same bytes at the same nanoseconds; every packet is accounted for.

`python -m tests.test_shaping_fuzz SECONDS` goes on for that time, with other seeds."""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import pytest

from dataplane.elements.classifier import Classifier
from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handler_access import write_handler
from dataplane.engine.handover import Loading, forget_engine, save_engine, save_parts
from dataplane.engine.running import advance
from dataplane.errors import ConfigError
from dataplane.graph.element import Element
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from shaping.impairment import Impairment
from shaping.link import Link
from shaping.marker import Marker
from shaping.pacer import Pacer
from shaping.policer import Policer
from shaping.scheduler import Scheduler
from shaping.shaper import Shaper
from shaping.trace_link import TraceLink
from tests.wire_frames import ACK, TCP, UDP, Spec

START_NS = 10**12
RATES = ["1kbit", "64kbit", "1mbit", "9.6mbit", "100mbit", "1gbit", "400gbit", "10tbit", "none"]
TIMES = ["0", "1ns", "3us", "1ms", "20ms", "1s", "1h"]
SHARES = ["0%", "0.3%", "5%", "50%", "100%"]
OVERHEADS = ["none", "docsis", "conservative", "pppoe-ptm", {"bytes": -64, "minimum": 200, "cell": "atm"}]


class Scenario:
    """What is built, sent and changed, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = self.random.choice([1, 1, 2, 3])
        self.exact = True  # whether CoDel's memory of idle flows, which does not move, has no part in it
        self.small, self.large = self.random.choice([(64, 16), (256, 16), (4096, 64)])
        self.elements = [self.element(number) for number in range(self.count)]

    def pick(self, *values: Any) -> Any:
        return self.random.choice(values)

    def element(self, number: int) -> tuple[type[Element], dict[str, Any]]:
        kind = self.pick(Shaper, Link, TraceLink, Impairment, Scheduler, Pacer, Policer, Marker)
        return kind, {name: self.value(kind, name) for name in ARGUMENTS[kind]} | {"name": f"e{number}"}

    def value(self, kind: type[Element], name: str) -> Any:
        pick = self.pick
        match name:
            case "rate":
                return pick(*RATES)
            case "queue":
                if kind is TraceLink:
                    return pick({"packets": 1}, {"packets": 30}, "64b", "1mb")
                many = [{"packets": 1}, {"packets": 30}] if kind is Link else []
                return pick("0ms", "1ms", "100ms", "10s", "64b", "256kb", *many)
            case "burst":
                return pick("0ms", "250us", "5ms") if kind is not Policer else pick("1us", "100us", "64kb")
            case "overhead":
                return pick(*OVERHEADS)
            case "delay" if kind is not Impairment:
                return pick(*TIMES)
            case "delay":
                return pick(None, *TIMES, {
                    "mean": pick(*TIMES), "jitter": pick(*TIMES), "shape": pick("uniform", "normal", "pareto"),
                    "correlation": pick("0%", "30%", "99%"), "order": pick("keep", "any"),
                })  # fmt: skip
            case "loss":
                return pick(
                    None,
                    *SHARES,
                    {"share": "5%", "burst": 4},
                    {"share": "30%", "correlation": "40%"},
                    {"to_bad": "5%", "to_good": "20%", "bad": "80%"},
                    {"p13": "5%", "p31": "30%", "p32": "20%", "p14": "2%"},
                )
            case "duplicate":
                return pick(None, *SHARES)
            case "corrupt":
                return pick(
                    None, *SHARES, {"share": "50%", "part": "payload", "checksum": "mend"}, {"share": "50%", "part": "header"}
                )
            case "reorder":
                return pick(None, "0%", "5%", {"share": "30%", "by": pick(1, 3, 64), "within": pick("0ms", "1ms", "1s")})
            case "trace":
                steps = [{"for": pick("1us", "1ms", "30ms"), "rate": pick("0bit", "1kbit", "5mbit", "1gbit")} for _ in range(3)]
                return {"steps": [*steps, {"for": "1ms", "rate": "2mbit"}], "loop": pick(True, False)}
            case "per":
                return pick("all", "flow", "mark")
            case "rates":
                return {str(mark): pick(*RATES) for mark in range(pick(0, 1, 3))}
            case "horizon":
                return pick("1us", "10ms", "2s")
            case "exceed":
                return pick("drop", "pace") if kind is Pacer else "drop"
            case "flows":
                return 4096  # with few, flows share clocks, and another table has others of them
            case "classes":
                return self.classes()
            case "seed":
                return self.random.getrandbits(40)
            case "dscp":
                return pick("ef", 0, 63)
            case "mark":
                return pick(None, 0, 2)
        raise AssertionError(name)

    def classes(self) -> dict[str, Any]:
        marks = iter(range(8))

        def tree(depth: int) -> dict[str, Any]:
            found = {}
            for name in self.random.sample("abcd", self.pick(1, 2, 3)):
                each: dict[str, Any] = {"weight": self.pick(1, 7), "priority": self.pick(0, 4, 4)}
                if self.random.random() < 0.3:
                    each["ceiling"] = self.pick("64kbit", "5mbit")
                if depth < 2 and self.random.random() < 0.3:
                    each["tree"] = tree(depth + 1)
                else:
                    each["mark"] = next(marks, None)
                    if each["mark"] is None:
                        del each["mark"]
                    if self.random.random() < 0.4:
                        each |= {"guarantee": self.pick("1kbit", "4kbit"), "latency": self.pick("0ms", "3ms")}
                    discipline = self.pick("fifo", "codel", "fq", "fq_codel", "cake")
                    self.exact = self.exact and discipline != "fq_codel"
                    each["queue"] = {"discipline": discipline} | self.pick({}, {"packets": 4}, {"size": "3kb"})
                    if discipline == "cake":
                        each["queue"] |= {"flows": self.pick(8, 16), "hosts": self.pick("none", "source", "both"),
                                          "rtt": self.pick("1ms", "100ms")}  # fmt: skip
                found[name] = each
            return found

        made = tree(0)
        path, below = "", made
        while True:
            name = sorted(below)[0]
            path = f"{path}/{name}" if path else name
            if "tree" not in below[name]:
                return {"rate": self.pick(*RATES[2:]), "default": path, "tree": made}
            below = below[name]["tree"]

    def frame(self) -> bytes | Frame:
        pick, version = self.pick, self.pick(4, 4, 6)
        payload = self.random.randbytes(pick(0, 1, 100, 1400, 5000, 60_000))
        spec = Spec(version=version, protocol=pick(TCP, UDP), payload=payload, tos=pick(0, 1, 2, 3, 0xB8),
                    tags=pick([], [], [(0x8100, 5)]), source_port=pick(1, 2, 3), flags=ACK)  # fmt: skip
        if len(payload) > 1400 or (payload and self.random.random() < 0.2):
            spec.protocol = TCP
            return spec.frame(pick(1, 100, 536, 1440, 1440)) if len(payload) < 6000 else spec.frame(pick(536, 1440))
        data = spec.build()
        if self.random.random() < 0.05:
            data = data[: self.random.randrange(14, len(data) + 1)]
        return data


ARGUMENTS: dict[type[Element], tuple[str, ...]] = {
    Shaper: ("rate", "queue", "burst"),
    Link: ("rate", "queue", "overhead", "delay"),
    TraceLink: ("trace", "queue", "overhead", "delay"),
    Impairment: ("loss", "duplicate", "corrupt", "reorder", "delay", "seed"),
    Scheduler: ("classes", "overhead", "burst"),
    Pacer: ("rate", "per", "rates", "horizon", "exceed", "flows"),
    Policer: ("rate", "burst", "exceed"),
    Marker: ("dscp", "mark"),
}
CHANGES: dict[type[Element], dict[str, str]] = {  # arguments by handler
    Shaper: {"rate": "rate"}, Policer: {"rate": "rate"}, Pacer: {"rate": "rate", "rates": "rates"},
    Link: {"rate": "rate", "delay": "delay"}, TraceLink: {"trace": "trace", "delay": "delay"}, Scheduler: {"tree": "classes"},
    Impairment: {name: name for name in ("loss", "duplicate", "corrupt", "reorder", "delay")}, Marker: {},
}  # fmt: skip
RULES = [
    {"protocol": "tcp", "gate": 0, "mark": 1},
    {"dscp": "ef", "gate": 0, "mark": 2},
    {"source_port": 2, "gate": 0, "mark": 5},
]


class Run:
    def __init__(self, seed: int, moves: random.Random | None) -> None:
        """moves: when the chain is handed over; None: never."""
        self.scenario, self.moves = Scenario(seed), moves
        self.clock = Clock(virtual=True, start_ns=START_NS)
        self.pool = PacketPool(self.scenario.small, self.scenario.large)
        self.arguments = [(kind, dict(arguments)) for kind, arguments in self.scenario.elements]
        self.engine, self.port, self.elements = self.build()
        self.out: list[tuple[int, bytes, int]] = []

    def build(self) -> tuple[Engine, MemoryPort, list[Element]]:
        port = MemoryPort("p", offloads=0x1F, mtu=9000)
        elements = [kind(**arguments) for kind, arguments in self.arguments]
        rx = PortRx(port)
        end = rx >> Parse(name="parse") >> Classifier(RULES, default=0, name="split")
        for each in elements:
            end = end >> each
        _ = end >> PortTx(port)
        engine = Engine("e", PacketPool.from_descriptor(self.pool.fd), clock=self.clock, seed=3)
        engine.load([rx])
        return engine, port, elements

    def hand_over(self) -> None:
        engine, port, elements = self.build()
        loading, marks = Loading(engine), {}
        for part in save_parts(self.engine, marks):
            loading.part(part)
        loading.finish(save_engine(self.engine, marks))
        forget_engine(self.engine)
        self.engine.close()
        self.engine, self.port, self.elements = engine, port, elements

    def change(self) -> None:
        number = self.scenario.random.randrange(len(self.elements))
        kind, arguments = self.arguments[number]
        for handler, argument in CHANGES[kind].items():
            if self.scenario.random.random() < 0.5:
                value = self.scenario.value(kind, argument)
                try:
                    write_handler([self.elements[number]], handler, value, halt=never, resume=never)
                except ConfigError:
                    continue
                if kind is Scheduler or argument == "trace":
                    arguments[argument] = value

    def take(self) -> None:
        self.out += [(self.clock.now_ns, each.data, each.gso_size) for each in self.port.take()]

    def play(self, rounds: int = 25) -> list[tuple[int, bytes, int]]:
        rng = self.scenario.random
        for _ in range(rounds):
            frames = [self.scenario.frame() for _ in range(rng.choice([0, 1, 3, 40]))]
            self.port.inject(frames)
            if rng.random() < 0.3:
                self.change()
            until = self.clock.now_ns + rng.choice([0, 1, 10**3, 10**5, 10**6, 2 * 10**7, 10**9])
            advance(self.engine, until)
            self.take()
            if self.moves is not None and self.moves.random() < 0.4:
                self.hand_over()
            law = self.engine.conservation()
            assert law["conserved"], law
        held = self.engine.conservation()["held"]
        splitting = sum(each.save_state()["split"] is not None for each in self.elements if isinstance(each, Shaper))
        assert self.pool.in_use == held + splitting, (self.pool.in_use, held)
        self.engine.close()
        assert self.pool.in_use == 0
        return self.out


def never(engine: object) -> None:
    raise AssertionError("a live handler halts no engine")


def check(seed: int) -> None:
    run = Run(seed, None)
    still = run.play()
    moved = Run(seed, random.Random(seed)).play()
    if not run.scenario.exact:
        return
    assert len(still) == len(moved)
    for number, (one, other) in enumerate(zip(still, moved, strict=True)):
        assert one == other, (number, one[0], other[0], len(one[1]), len(other[1]))


@pytest.mark.parametrize("seed", range(250))
def test_a_chain(seed):
    check(seed)


if __name__ == "__main__":
    until = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < until:
        seed = random.getrandbits(40)
        try:
            check(seed)
        except BaseException:
            print(f"seed {seed}")
            raise

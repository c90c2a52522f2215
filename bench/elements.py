"""Elements one by one: ns per packet at batches of 1, 32 and 256, by the same `push` that an engine
calls."""

import importlib
import statistics
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from bench import frames, guest_rings, machine
from bench.micro import Flows, Hop, Lane, Sink, Steer, measure_timers
from dataplane.elements.counter import Counter
from dataplane.elements.parse import Parse
from dataplane.elements.rss import Rss
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.graph.element import BatchView, Element, PyElement
from dataplane.packet.pool import PacketPool
from dataplane.packet.ring import MpscRing, Ring, SpscRing
from dataplane.units import RATE_MOST_BPS
from shaping.impairment import Impairment
from shaping.link import Link
from shaping.marker import Marker
from shaping.pacer import Pacer
from shaping.pacer_settings import FLOWS_MOST
from shaping.policer import Policer
from shaping.scheduler import Scheduler
from shaping.shaper import Shaper
from shaping.trace import OpportunityTrace
from shaping.trace_link import TraceLink

BATCHES = (1, 32, 256)
# Short and many: a median is robust against other load of a shared machine.
REPETITIONS = 31
PACKETS = 128 * 1024  # of one repetition: about a millisecond
# records and first cache lines of the frames fit a CPU's own cache, as in a busy engine
LANE_PACKETS = 512
SHAPED_BPS = 1_000_000_000
QUEUED = 128
LINE_QUEUED = 32
DELAYED, DELAYED_PACKETS = "64 B, delayed", 4096  # for elements that hold a whole batch
ADDRESSES = 1000
FLOWS = {"Pacer": (1, 1000, 1_000_000), "Scheduler, cake": (1, 1000, 10_000)}

Json = dict[str, object]


class PassThrough(PyElement):
    """The cheapest element possible in Python."""

    def process(self, batch: BatchView) -> None:
        """Passes every packet on."""


class MarkColumn(PyElement):
    """Reads a column, writes a column."""

    def process(self, batch: BatchView) -> None:
        batch.set("mark", batch.length > 100)


@dataclass
class Case:
    """One element over one kind of traffic. `build` makes the element; Bench connects its
    outputs."""

    name: str
    traffic: str
    build: Callable[[], Element]
    packets: int = PACKETS
    step_ns_packet: int = 0
    queued: int = 0
    loses: bool = False
    raw_ns: dict[int, list[float]] = field(default_factory=dict)


TRAFFIC: dict[str, tuple[list[bytes], tuple[int, int, int, int, int] | None]] = {
    "64 B": ([frames.SMALL], None),
    "1500 B": ([frames.FULL], None),
    "64 KB GSO": ([frames.LARGE], frames.LARGE_GSO),
    DELAYED: ([frames.SMALL], None),
    "64 B, 1000 MACs": (frames.many_destinations(ADDRESSES), None),
}


def _built(module: str, name: str) -> Any:
    """The class; None, with a message, where this build lacks its module."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        print(f"{name} is left out: {module} is not built", file=sys.stderr)
        return None


def _switch_cases() -> list[Case]:
    switch, table = _built("switching.l2_switch", "L2Switch"), _built("switching.mac_table", "MacTable")
    if not switch or not table:
        return []

    def build() -> Element:
        macs = table(4 * ADDRESSES)
        for number in range(1, ADDRESSES + 1):
            macs.add_static(frames.mac(number).hex(":"), 1)
        element: Element = switch(macs, 2)
        for port in (0, 1):
            element.activate(port)  # type: ignore[attr-defined]
        return element

    return [
        Case("L2Switch, one destination", "64 B", build),
        Case("L2Switch, random destinations", "64 B, 1000 MACs", build),
    ]


def _classifier_cases() -> list[Case]:
    classifier = _built("dataplane.elements.classifier", "Classifier")
    if not classifier:
        return []

    def rules(count: int) -> Element:
        # The last rule matches: all others are tried for every packet.
        ports = [*range(6000, 6000 + count - 1), frames.PORT]
        made: Element = classifier([{"protocol": "udp", "destination_port": port, "gate": 0} for port in ports], default=1)
        return made

    return [Case(f"Classifier, match in rule {n} of {n}", "64 B", lambda n=n: rules(n)) for n in (1, 16, 256)]  # type: ignore[misc]


def _mirror_cases() -> list[Case]:
    mirror = _built("dataplane.elements.mirror", "Mirror")
    if not mirror:
        return []

    def build() -> Element:
        # The copies of one repetition fit the buffer: this measures a copy, not a full buffer.
        made: Element = mirror("/dev/null", buffer="64mb")
        return made

    packets = {"64 B": 16384, "1500 B": 8192, "64 KB GSO": 512}
    return [Case("Mirror", traffic, build, packets=count) for traffic, count in packets.items()]


def _scheduler_cases() -> list[Case]:
    """For each packet that enters, one leaves, with LINE_QUEUED others before it."""

    def build(count: int, queue: str) -> Element:
        tree: dict[str, Any] = {f"c{i}": {"mark": i, "guarantee": "1mbit", "queue": queue} for i in range(1, count)}
        return Scheduler({"rate": SHAPED_BPS, "default": "rest", "tree": {**tree, "rest": {"queue": queue}}}, burst=0)

    return [
        Case(
            f"Scheduler, {count} {'class' if count == 1 else 'classes'}, {queue}",
            DELAYED,
            lambda count=count, queue=queue: build(count, queue),  # type: ignore[misc]
            step_ns_packet=len(frames.SMALL) * 8 * 1_000_000_000 // SHAPED_BPS,
            queued=LINE_QUEUED,
        )
        for count, queue in ((1, "fifo"), (1000, "fifo"), (1, "fq_codel"), (1, "cake"))
    ]


def _guest_cases() -> list[Case]:
    memory = _built("virt.flow_memory", "FlowMemory")
    if not memory:
        return []

    def build(learns: bool) -> Element:
        made: Element = memory(Rss(queues=4))
        made.learn(learns)  # type: ignore[attr-defined]
        return made

    return [
        Case("FlowMemory, steered by flow", "64 B", lambda: build(True)),
        Case("FlowMemory, not steered by flow", "64 B", lambda: build(False)),
    ]


def _cases() -> list[Case]:
    cases = [Case("hop (element that only forwards)", "64 B", Hop)]
    for traffic in ("64 B", "1500 B", "64 KB GSO"):
        cases += [Case("Counter", traffic, Counter), Case("Parse", traffic, Parse)]
    cases += [
        Case("Shaper, unlimited", "64 B", Shaper),
        Case("Marker, DSCP", "64 B", lambda: Marker(dscp="ef")),
        # Every packet conforms: the clock advances by the packets' time at the rate.
        Case(
            "Policer",
            "64 B",
            lambda: Policer(SHAPED_BPS),
            step_ns_packet=len(frames.SMALL) * 8 * 1_000_000_000 // SHAPED_BPS,
        ),
        # The clock advances by the packets' time at the rate: for each packet that enters, one
        # leaves, with QUEUED others before it.
        Case(
            "Shaper, enqueue + dequeue",
            "64 B",
            lambda: Shaper(rate=SHAPED_BPS),
            step_ns_packet=len(frames.SMALL) * 8 * 1_000_000_000 // SHAPED_BPS,
            queued=QUEUED,
        ),
        Case("Impairment, 1 % loss", "64 B", lambda: Impairment(loss="1%"), loses=True),
        # Packets wait for one another: some 45 are delayed at a time.
        Case(
            "Impairment, delay and jitter",
            DELAYED,
            lambda: Impairment(delay={"mean": LINE_QUEUED * 1000, "jitter": 4_000, "shape": "normal"}),
            step_ns_packet=1000,
            queued=LINE_QUEUED,
        ),
        Case(
            "Link, enqueue + dequeue",
            DELAYED,
            lambda: Link(rate=SHAPED_BPS),
            step_ns_packet=len(frames.SMALL) * 8 * 1_000_000_000 // SHAPED_BPS,
            queued=LINE_QUEUED,
        ),
        Case(
            "Link, ATM cells, on the line for 20 us",
            DELAYED,
            lambda: Link(rate=SHAPED_BPS, overhead="pppoa-llc", delay="20us"),
            step_ns_packet=2 * 53 * 8 * 1_000_000_000 // SHAPED_BPS,
            queued=LINE_QUEUED,
        ),
        *_scheduler_cases(),
        Case(
            "TraceLink, an opportunity each ms",
            DELAYED,
            lambda: TraceLink(OpportunityTrace(range(1, 10_001))),
            step_ns_packet=40_000,  # 25 of the 30 packets that an opportunity takes
            queued=LINE_QUEUED,
        ),
        Case(
            "Pacer, enqueue + dequeue",
            DELAYED,
            lambda: Pacer(rate=SHAPED_BPS),
            step_ns_packet=len(frames.SMALL) * 8 * 1_000_000_000 // SHAPED_BPS,
            queued=LINE_QUEUED,
        ),
        Case("RSS hash and queue", "64 B", Steer),
        *_guest_cases(),
        *_switch_cases(),
        *_classifier_cases(),
        *_mirror_cases(),
        Case("PyElement, empty process", "64 B", PassThrough, packets=2048),
        Case("PyElement, reads and writes a column", "64 B", MarkColumn, packets=2048),
    ]
    return cases


class Bench:
    """The lanes and the engine that elements are bound to; only the measured element runs."""

    def __init__(self) -> None:
        self.pool = PacketPool(small=8192, large=LANE_PACKETS + 16)
        self.engine = Engine("bench", self.pool, clock=Clock(virtual=True))
        self.lanes: dict[str, Lane] = {}
        self.sinks: dict[str, Sink] = {}

    def lane(self, traffic: str) -> Lane:
        if traffic not in self.lanes:
            made, gso = TRAFFIC[traffic]
            packets = DELAYED_PACKETS if traffic == DELAYED else LANE_PACKETS
            self.lanes[traffic] = Lane(self.pool, made, max(packets // len(made), 1), gso)
            self.sinks[traffic] = Sink(self.lanes[traffic])
            self.push_once(traffic, self.ready(Case("Parse", traffic, Parse)))
        return self.lanes[traffic]

    def push_once(self, traffic: str, element: Element) -> None:
        """Pushes the whole lane through the element once."""
        self.lanes[traffic].measure(element, self.lanes[traffic].waiting // 32, 32)

    def ready(self, case: Case) -> Element:
        """The case's element, connected to the lane's sink and initialised."""
        return self.connect(case.build(), case.traffic)

    def connect(self, element: Element, traffic: str) -> Element:
        """Connects an element to the lane's sink, and initialises it."""
        for gate in range(len(element.outputs)):
            element.connect(gate, self.sinks[traffic])
        element.bind(self.engine)
        element.initialize()
        return element

    def repeat(self, case: Case, element: Element, batch: int) -> None:
        lane = self.lanes[case.traffic]
        turns = max(case.packets // batch, 1)
        case.raw_ns.setdefault(batch, []).append(lane.measure(element, turns, batch, case.step_ns_packet * batch, case.loses))


def _spread(values: list[float]) -> Json:
    return {"ns": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def _measure_rings(lane: Lane, repetitions: int, packets: int) -> list[Json]:
    rows: list[Json] = []
    kinds: tuple[type[Ring], ...] = (SpscRing, MpscRing)
    for kind in kinds:
        ring = kind(1024)
        times = {b: [lane.measure_ring(ring, packets // b, b) for _ in range(repetitions)] for b in BATCHES}
        rows.append(
            {"name": f"{kind.__name__}, push + pop", "traffic": "-", "batches": {str(b): _spread(t) for b, t in times.items()}}
        )
    return rows


def _of_flows(name: str, count: int) -> Element:
    """An element for `count` flows whose packets wait for a rate that all have in common."""
    if name == "Pacer":
        return Pacer(RATE_MOST_BPS, per="flow", rates={0: SHAPED_BPS}, flows=min(4 * count, FLOWS_MOST))
    queue = {"discipline": "cake", "flows": 65536}
    return Scheduler({"rate": SHAPED_BPS, "default": "all", "tree": {"all": {"queue": queue}}}, burst=0)


def _measure_flows(repetitions: int, packets: int) -> list[Json]:
    """ns per packet at batches of 32, by the number of flows that come in turn, behind LINE_QUEUED
    others: each packet needs the state of its flow, with cake that of its hosts, too. Each case has a
    clock of its own, since while others are measured no packet may become late."""
    step = len(frames.SMALL) * 8 * 1_000_000_000 // SHAPED_BPS * 32
    turns = max(packets // 32, 1)
    cases = [(name, count, Bench()) for name, counts in FLOWS.items() for count in counts]
    heads: list[tuple[Flows, Flows]] = []
    made = [_of_flows(name, count) for name, count, _ in cases]
    for (_, count, bench), element in zip(cases, made, strict=True):
        lane = bench.lane(DELAYED)
        heads.append((Flows(count), Flows(count)))
        for head, last in zip(heads[-1], (bench.connect(element, DELAYED), bench.sinks[DELAYED]), strict=True):
            head.connect(0, last)
        lane.measure(heads[-1][0], LINE_QUEUED // 32, 32)
        lane.measure(heads[-1][0], max(count // 32, turns), 32, step)
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(repetitions):
        for (_, _, bench), (filled, empty), row in zip(cases, heads, times, strict=True):
            lane = bench.lanes[DELAYED]
            busy = lane.measure(filled, turns, 32, step)
            row.append(busy - lane.measure(empty, turns, 32))
    for element in made:
        element.release()
    return [{"name": name, "flows": count, **_spread(row)} for (name, count, _), row in zip(cases, times, strict=True)]


def _measure_timers(repetitions: int, turns: int) -> list[Json]:
    """ns to set a timer anew, by the number of an engine's timers."""
    return [
        {"timers": count, **_spread([measure_timers(count, turns) for _ in range(repetitions)])} for count in (1, 100, 10_000)
    ]


def run(repetitions: int = REPETITIONS, packets: int = PACKETS, only: Collection[str] | None = None) -> Json:
    """Measures every element: ns per packet (median, min, max) by batch size, less the empty loop,
    which is given separately. only: the names of the cases; None: all."""
    bench, cases = Bench(), [case for case in _cases() if only is None or case.name in only]
    for case in cases:
        case.packets = min(case.packets, packets)
    empty = {traffic: Case("empty loop (source, sink)", traffic, Hop, packets) for traffic in TRAFFIC}
    for traffic in TRAFFIC:
        bench.lane(traffic)
    elements = [bench.ready(case) for case in cases]
    for case, element in zip(cases, elements, strict=True):
        if case.queued:
            bench.lanes[case.traffic].measure(element, case.queued // 32, 32)
            bench.repeat(case, element, 32)
            case.raw_ns.clear()
    for _ in range(repetitions):
        for batch in BATCHES:
            for traffic, loop in empty.items():
                bench.repeat(loop, bench.sinks[traffic], batch)
            for case, element in zip(cases, elements, strict=True):
                bench.repeat(case, element, batch)
    flows = _measure_flows(repetitions, packets)
    for element in elements:
        element.release()
        element.cleanup()
    rows: list[Json] = []
    floor = {t: {b: statistics.median(times) for b, times in loop.raw_ns.items()} for t, loop in empty.items()}
    for case in cases:
        net = {str(b): _spread([t - floor[case.traffic][b] for t in times]) for b, times in case.raw_ns.items()}
        rows.append({"name": case.name, "traffic": case.traffic, "batches": net})
    rows += _measure_rings(bench.lanes["64 B"], repetitions, packets)
    loops = [
        {"name": loop.name, "traffic": t, "batches": {str(b): _spread(times) for b, times in loop.raw_ns.items()}}
        for t, loop in empty.items()
    ]
    return {
        "unit": "ns/packet",
        "repetitions": repetitions,
        "empty": loops,
        "elements": rows,
        "flows": flows,
        "timers": _measure_timers(repetitions, packets),
        "guests": [
            {"rings": rings, "bytes": length, **_spread(times)}
            for rings, length, times in guest_rings.measure(repetitions, packets)
        ],
        "machine": machine.describe(),
    }

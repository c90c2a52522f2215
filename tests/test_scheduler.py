"""The Scheduler compared with a fluid model of its classes, CoDel with the pseudocode of RFC 8289, and the turns of
flows with a trace, in virtual time."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections import deque
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.classifier import Classifier
from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handler_access import read_handler, write_handler
from dataplane.engine.handover import forget_engine, load_engine, save_engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.class_settings import PRIORITY_DEFAULT, read_tree
from shaping.pool_share import PoolShare
from shaping.scheduler import Scheduler
from tests.wire_frames import UDP, Spec

START_NS = 10**9
MBIT, US, MS, SECOND = 10**6, 10**3, 10**6, 10**9
HEADERS = Spec(protocol=UDP).payload_offset
MARKS = 64


def packet(mark: int, length: int = 1000, *, flow: int = 1000, tos: int = 0, number: int = 0) -> bytes:
    """A UDP packet of `length` bytes for the class with this mark; number: to tell packets apart."""
    payload = number.to_bytes(4, "big") + bytes(length - HEADERS - 4)
    spec = Spec(protocol=UDP, destination_port=mark, source_port=flow, tos=tos, payload=payload)
    return bytes(spec.frame().data)


class Bench:
    """a >> Parse >> Classifier (destination port -> mark) >> scheduler >> b in virtual time."""

    def __init__(self, classes: dict, *, small: int = 8192, large: int = 512, share: PoolShare | None = None, **config) -> None:
        self.pool = PacketPool(small=small, large=large)
        self.classes, self.config, self.share = classes, config, share
        self.out: list = []
        self.build(START_NS)

    def build(self, now_ns: int) -> None:
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=now_ns))
        self.a, self.b = MemoryPort("a", 0), MemoryPort("b", 1)
        self.scheduler = Scheduler(self.classes, name="classes", **self.config)
        if self.share is not None:
            self.scheduler.join(self.share)
        rules = [{"destination_port": mark, "mark": mark, "gate": 0} for mark in range(1, MARKS)]
        split = Classifier(rules, default=0, name="split")
        rx = PortRx(self.a)
        rx >> Parse(name="parse") >> split >> self.scheduler >> PortTx(self.b)
        self.engine.load([rx])

    def upgrade(self) -> None:
        old, taken = self.engine, self.take()
        self.build(old.clock.now_ns)
        load_engine(self.engine, save_engine(old))
        forget_engine(old)
        old.close()
        self.out = taken

    def change(self, classes: dict) -> None:
        write_handler([self.scheduler], "tree", classes, halt=lambda engine: None, resume=lambda engine: None)
        self.classes = classes

    def advance(self, at_ns: int) -> None:
        advance(self.engine, at_ns)

    def inject(self, *frames: object) -> None:
        self.a.inject(list(frames))
        self.advance(self.engine.clock.now_ns)

    def take(self) -> list:
        """(time, data) of what has left since the last call."""
        found = self.out + [(frame.time_ns, bytes(frame.data)) for frame in self.b.take()]
        self.out = []
        return found

    def rows(self) -> dict[str, dict]:
        return {row["path"]: row for row in read_handler(self.scheduler, "classes")}

    def dropped(self, reason: str) -> int:
        return self.scheduler.statistics()["dropped"][reason]

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


def mark_of(data: bytes) -> int:
    return int.from_bytes(data[36:38], "big")


def flow_of(data: bytes) -> int:
    return int.from_bytes(data[34:36], "big")


def number_of(data: bytes) -> int:
    return int.from_bytes(data[42:46], "big")


# -- the fluid model -------------------------------------------------------------------------------


def fluid(tree, which: int, capacity: Fraction, busy: set[int]) -> dict[int, Fraction]:
    """bit/s of each leaf of `which` that always has packets: guarantees first, then what is left by weight, each by
    priority, up to ceilings."""
    classes = tree.classes
    if classes[which].queue is not None:
        return {which: capacity} if which in busy else {}
    children = [i for i, each in enumerate(classes) if i and each.parent == which and demand(tree, i, busy)]
    got = dict.fromkeys(children, Fraction(0))
    most = {i: demand(tree, i, busy) for i in children}
    left = capacity
    for priority in range(8):
        for i in children:
            if classes[i].priority == priority:
                got[i] = min(Fraction(classes[i].guarantee_bps), most[i], left)
                left -= got[i]
    for priority in range(8):
        hungry = [i for i in children if classes[i].priority == priority and got[i] < most[i]]
        while hungry and left > 0:
            weights = sum(classes[i].weight for i in hungry)
            step = min(min(Fraction(most[i] - got[i]) / classes[i].weight for i in hungry), left / weights)
            for i in hungry:
                got[i] += step * classes[i].weight
                left -= step * classes[i].weight
            hungry = [i for i in hungry if got[i] < most[i]]
    found: dict[int, Fraction] = {}
    for i in children:
        found.update(fluid(tree, i, got[i], busy))
    return found


def demand(tree, which: int, busy: set[int]) -> Fraction:
    """The most that a class can use; 0: nothing in it has packets."""
    each = tree.classes[which]
    if each.queue is not None:
        total = Fraction(10**13) if which in busy else Fraction(0)
    else:
        total = sum((demand(tree, i, busy) for i, c in enumerate(tree.classes) if i and c.parent == which), Fraction(0))
    return min(total, Fraction(each.ceiling_bps)) if each.ceiling_bps else total


def sent(bench: Bench, busy: dict[int, int], for_ns: int, step_ns: int = 10 * MS) -> Tally:
    """Bytes by mark that leave in for_ns while each class of `busy` (mark -> packet length) always has packets."""
    end = bench.engine.clock.now_ns + for_ns
    bytes_of: Tally = Tally()
    inside: Tally = Tally()
    while bench.engine.clock.now_ns < end:
        for mark, length in busy.items():
            depth = 20_000 // length
            bench.inject(*[packet(mark, length)] * (depth - inside[mark]))
            inside[mark] = depth
        bench.advance(min(bench.engine.clock.now_ns + step_ns, end))
        for _, data in bench.take():
            bytes_of[mark_of(data)] += len(data)
            inside[mark_of(data)] -= 1
            assert inside[mark_of(data)] >= 0
        assert all(inside[mark] > 0 for mark in busy), "a class ran dry"
    return bytes_of


def leaf(mark: int, **settings: object) -> dict:
    return {"mark": mark, "queue": {"packets": 1000}, **settings}


CASES = {
    "weights": ({"a": leaf(1, weight=1), "b": leaf(2, weight=3)}, [1, 2]),
    "guarantees": ({"a": leaf(1, guarantee="2mbit"), "b": leaf(2, guarantee="5mbit"), "c": leaf(3)}, [1, 2, 3]),
    "ceilings": ({"a": leaf(1, ceiling="1mbit"), "b": leaf(2, ceiling="2mbit"), "c": leaf(3, weight=9)}, [1, 2, 3]),
    "all below their ceilings": ({"a": leaf(1, ceiling="1mbit"), "b": leaf(2, ceiling="2mbit")}, [1, 2]),
    "priority": ({"a": leaf(1, priority=0, ceiling="3mbit"), "b": leaf(2), "c": leaf(3)}, [1, 2, 3]),
    "priority starves": ({"a": leaf(1, priority=0), "b": leaf(2, guarantee="1mbit"), "c": leaf(3)}, [1, 2, 3]),
    # what a child of `x` does not use goes to its sibling first
    "nearest lender": ({
        "x": {"guarantee": "6mbit", "tree": {"a": leaf(1, guarantee="2mbit"), "b": leaf(2, guarantee="4mbit")}},
        "y": {"guarantee": "4mbit", "tree": {"c": leaf(3), "d": leaf(4, weight=3)}},
    }, [1, 3, 4]),
    "an inner ceiling": ({
        "x": {"ceiling": "3mbit", "tree": {"a": leaf(1, weight=2), "b": leaf(2)}}, "y": leaf(3),
    }, [1, 2, 3]),
    # the guarantees of classes are those of their parent, where it has none
    "implied": ({"x": {"tree": {"a": leaf(1, guarantee="7mbit"), "b": leaf(2)}}, "y": leaf(3), "z": leaf(4)}, [1, 2, 3, 4]),
    "weights far apart": ({"a": leaf(1, weight=1), "b": leaf(2, weight=1000), "c": leaf(3, weight=1000)}, [1, 2, 3]),
}  # fmt: skip


def default_of(tree: dict) -> str:
    name, first = next(iter(tree.items()))
    return f"{name}/{default_of(first['tree'])}" if "tree" in first else name


@pytest.mark.parametrize("case", CASES)
def test_shares_are_those_of_the_fluid_model(case):
    tree, marks = CASES[case]
    classes = {"rate": "10mbit", "default": default_of(tree), "tree": tree}
    check_fluid(classes, dict.fromkeys(marks, 1000), 4 * SECOND)


def check_fluid(classes: dict, busy: dict[int, int], for_ns: int) -> None:
    bench = Bench(classes)
    model = read_tree("x", classes)
    leaves = {each.mark: number for number, each in enumerate(model.classes) if each.mark in busy}
    expected = fluid(model, 0, Fraction(model.classes[0].ceiling_bps), set(leaves.values()))
    found = sent(bench, busy, for_ns)
    for mark, number in leaves.items():
        depth = model.classes[number].path.count("/") + 1
        wanted = expected[number] * for_ns / (8 * SECOND)
        # at each level a packet of its own and one of each other class, and the burst of a ceiling and of the guarantee
        bound = depth * (max(busy.values()) * (len(busy) + 1)) + 2 * 250 * US * model.classes[0].ceiling_bps / (8 * SECOND)
        assert abs(found[mark] - wanted) <= bound, (model.classes[number].path, found[mark], float(wanted))
    total = sum(found.values())
    assert total <= model.classes[0].ceiling_bps * (for_ns + 250 * US) / (8 * SECOND) + max(busy.values())
    bench.advance(2**62)
    bench.close()


@st.composite
def trees(draw: st.DrawFn, marks: list[int] | None = None, guarantee: int = 10 * MBIT, depth: int = 0) -> dict:
    marks = [] if marks is None else marks
    found: dict[str, dict] = {}
    left = guarantee
    for name in "abcd"[: draw(st.integers(1 if depth else 2, 3 if depth else 4))]:
        given = draw(st.sampled_from([0, 0, left // 2, left // 3]))
        left -= given
        each: dict = {"priority": draw(st.sampled_from([4, 4, 4, 1])), "weight": draw(st.integers(1, 9))}
        if given >= 1000:
            each["guarantee"] = given
        if draw(st.integers(0, 3)) == 0:
            each["ceiling"] = max(given, draw(st.integers(MBIT, 12 * MBIT)))
        if depth < 2 and draw(st.integers(0, 2)) == 0:
            each["tree"] = draw(trees(marks, given, depth + 1))
            if given < 1000 or each.get("ceiling"):
                each.pop("ceiling", None)
        else:
            marks.append(len(marks) + 1)
            each |= {"mark": marks[-1], "queue": {"packets": 1000}}
        found[name] = each
    return found


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tree_shares_as_the_fluid_model(data):
    marks: list[int] = []
    tree = data.draw(trees(marks))
    classes = {"rate": 10 * MBIT, "default": default_of(tree), "tree": tree}
    busy = {mark: data.draw(st.sampled_from([200, 600, 1000])) for mark in marks if data.draw(st.integers(0, 3))}
    if busy:
        check_fluid(classes, busy, 2 * SECOND)


# -- the rate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_the_rate_is_exact_with_any_number_of_classes(count):
    """The union of all classes leaves as from one line, to the nanosecond."""
    tree = {f"c{i}": leaf(i + 1, guarantee=8000 * MBIT // count // 1000, weight=1 + i % 7) for i in range(count)}
    bench = Bench({"rate": "8mbit", "default": "c0", "tree": tree}, burst=0)
    for i in range(40):
        bench.inject(*[packet(1 + (i + j) % min(count, MARKS - 1), 500) for j in range(2)])
    bench.advance(2**62)
    assert [time for time, _ in bench.take()] == [START_NS + i * 500 * US for i in range(80)]
    bench.close()


def test_a_single_class_is_a_shaper_to_the_nanosecond():
    sizes = [60 + 37 * i % 1400 for i in range(200)]
    bench = Bench({"rate": 7_777_777, "default": "all", "tree": {"all": {"queue": {"size": "10mb"}}}}, burst=0)
    bench.inject(*[packet(1, size) for size in sizes])
    bench.advance(2**62)
    starts = [Fraction(sum(sizes[:i]) * 8 * SECOND, 7_777_777) for i in range(len(sizes))]
    assert [(time, len(data)) for time, data in bench.take()] == [
        (START_NS + math.ceil(start), size) for start, size in zip(starts, sizes, strict=True)
    ]
    bench.close()


def test_a_ceiling_is_exact_to_the_nanosecond():
    classes = {"rate": "1gbit", "default": "rest", "tree": {"slow": leaf(1, ceiling=3_333_333), "rest": {}}}
    bench = Bench(classes, burst=0)
    bench.inject(*[packet(1, 1000)] * 50)
    bench.advance(2**62)
    assert [time for time, _ in bench.take()] == [
        START_NS + math.ceil(Fraction(i * 8000 * SECOND, 3_333_333)) for i in range(50)
    ]
    bench.close()


@pytest.mark.parametrize("priority", [0, 4])
def test_a_class_that_waited_for_others_does_not_exceed_its_ceiling_afterwards(priority):
    """It has had next to nothing for a second, while another one had its priority or guarantee."""
    first = leaf(2, priority=0) if priority == 0 else leaf(2, guarantee="9.5mbit")
    bench = Bench({"rate": "10mbit", "default": "held", "tree": {"held": leaf(1, ceiling="5mbit"), "first": first}})
    bench.inject(*[packet(1, 1000)] * 900)
    for _ in range(100):
        bench.inject(*[packet(2, 1000)] * 12)
        bench.advance(bench.engine.clock.now_ns + 10 * MS)
    before = Tally(mark_of(data) for _, data in bench.take())
    assert before[1] < 100 < 1000 < before[2]
    bench.advance(bench.engine.clock.now_ns + 200 * MS)  # what is left of the other one goes
    bench.take()
    begin = bench.engine.clock.now_ns
    bench.advance(begin + 200 * MS)
    times = [time for time, _ in bench.take()]
    assert len(times) == 125 and times[-1] - times[0] == 124 * 8_000_000_000 // 5_000_000 * 1000
    bench.advance(2**62)
    bench.close()


def test_voice_waits_for_one_packet_only():
    classes = {"rate": "10mbit", "default": "bulk", "tree": {
        "voice": leaf(1, guarantee="1mbit", priority=0), "bulk": {"queue": {"packets": 1000}}}}  # fmt: skip
    bench = Bench(classes)
    bench.inject(*[packet(2, 1500)] * 500)
    waits = []
    for i in range(20):
        bench.advance(START_NS + 5 * MS + i * 17 * MS)
        bench.take()
        bench.inject(packet(1, 200))
        asked = bench.engine.clock.now_ns
        bench.advance(asked + 3 * MS)
        [time] = [time for time, data in bench.take() if mark_of(data) == 1]
        waits.append(time - asked)
    assert max(waits) <= 1500 * 8 * SECOND // (10 * MBIT)
    bench.advance(2**62)
    bench.close()


# -- flows -----------------------------------------------------------------------------------------


def one_class(queue: object, rate: object = "10mbit") -> dict:
    return {"rate": rate, "default": "all", "tree": {"all": {"queue": queue}}}


def test_turns_of_flows_are_those_of_rfc_8290():
    """The trace of ns-3's authors, quantum 90 and packets of 120 bytes: the first flow has used more than its turn,
    so the second one is first, although it came later."""
    bench = Bench(one_class({"discipline": "fq", "quantum": 90}, rate="9600bit"), burst=0)  # 100 ms a packet
    bench.inject(packet(1, 120, flow=9), packet(1, 120, flow=1, number=1))
    bench.advance(START_NS + 150 * MS)
    bench.inject(*[packet(1, 120, flow=flow, number=number) for flow, number in ((1, 2), (1, 3), (2, 4), (2, 5))])
    bench.advance(2**62)
    assert [(time - START_NS, number_of(data)) for time, data in bench.take()] == [
        (0, 0), (100 * MS, 1), (200 * MS, 4), (300 * MS, 2), (400 * MS, 5), (500 * MS, 3),
    ]  # fmt: skip
    bench.close()


@pytest.mark.parametrize("count", [2, 10, 100])
def test_flows_get_equal_shares(count):
    bench = Bench(one_class({"discipline": "fq", "flows": 65536}, rate="100mbit"), burst=0)
    bench.inject(packet(1, 1000, flow=9999))  # the line is busy, so that all others wait
    for flow in range(count):
        bench.inject(*[packet(1, 400 if flow % 2 else 1400, flow=1 + flow)] * (40 if flow % 2 else 12))
    bench.advance(START_NS + count * 12 * 1400 * 8 * 10 // 2)  # about half of it
    found = Tally()
    for _, data in bench.take():
        found[flow_of(data)] += len(data)
    del found[9999]
    assert len(found) == count
    assert max(found.values()) - min(found.values()) <= 1514 + 1400 + 400
    bench.advance(2**62)
    bench.close()


def test_a_new_flow_passes_those_that_queue():
    bench = Bench(one_class("fq_codel"))
    bench.inject(*[packet(1, 1500, flow=flow) for flow in (1, 2, 3) for _ in range(100)])
    bench.advance(START_NS + 50 * MS)
    bench.take()
    bench.inject(packet(1, 100, flow=4))
    asked = bench.engine.clock.now_ns
    bench.advance(asked + 5 * MS)
    [time] = [time for time, data in bench.take() if flow_of(data) == 4]
    assert time - asked <= 1500 * 8 * SECOND // (10 * MBIT)
    bench.advance(2**62)
    bench.close()


def test_the_longest_flow_loses_when_the_queue_is_full():
    bench = Bench(one_class({"discipline": "fq", "packets": 100}, rate="100kbit"))
    bench.inject(*[packet(1, 100, flow=1)] * 5, *[packet(1, 100, flow=2)] * 150)
    assert bench.rows()["all"]["waiting_packets"] <= 100
    assert bench.dropped("queue_full") == bench.rows()["all"]["dropped"]["queue_full"] >= 54
    bench.advance(2**62)
    assert Tally(flow_of(data) for _, data in bench.take())[1] == 5
    bench.close()


# -- CoDel -----------------------------------------------------------------------------------------


class CoDel:
    """RFC 8289, section 5, for one queue of packets of one length on a line."""

    def __init__(self, target: int, interval: int) -> None:
        self.target, self.interval = target, interval
        self.first_above = self.drop_next = self.count = self.last_count = 0
        self.dropping = False
        self.queue: deque[tuple[int, int]] = deque()  # (arrival, length)
        self.dropped: list[int] = []

    def pop(self, now: int) -> tuple[tuple[int, int] | None, bool]:
        if not self.queue:
            self.first_above = 0
            return None, False
        waiting = sum(length for _, length in self.queue)
        head = self.queue.popleft()
        if now - head[0] < self.target or waiting <= 1514:
            self.first_above = 0
        elif self.first_above == 0:
            self.first_above = now + self.interval
        else:
            return head, now >= self.first_above
        return head, False

    def law(self, at: int) -> int:
        return at + int(self.interval / math.sqrt(self.count))

    def take(self, now: int) -> tuple[int, int] | None:
        head, bad = self.pop(now)
        if self.dropping:
            if not bad:
                self.dropping = False
            while self.dropping and now >= self.drop_next:
                self.dropped.append(now)
                self.count += 1
                head, bad = self.pop(now)
                if bad:
                    self.drop_next = self.law(self.drop_next)
                else:
                    self.dropping = False
        elif bad:
            self.dropped.append(now)
            head, bad = self.pop(now)
            self.dropping = True
            delta = self.count - self.last_count
            self.count = delta if delta > 1 and now - self.drop_next < 16 * self.interval else 1
            self.drop_next = self.law(now)
            self.last_count = self.count
        return head


@settings(max_examples=100, deadline=None)
@given(
    length=st.sampled_from([100, 500, 1000]),
    bursts=st.lists(st.tuples(st.integers(0, 300 * MS), st.integers(1, 60)), min_size=1, max_size=40),
)
def test_codel_is_that_of_the_rfc(length, bursts):
    rate, target, interval = 2 * MBIT, 5 * MS, 100 * MS
    queue = {"discipline": "codel", "target": "5ms", "interval": "100ms", "packets": 4000}
    bench = Bench(one_class(queue, rate=rate), burst=0)
    twin, clock, left = CoDel(target, interval), Fraction(0), []
    now = START_NS

    def serve(until: int) -> None:
        nonlocal clock
        while twin.queue and math.ceil(clock) <= until:
            head = twin.take(math.ceil(clock))
            if head is None:
                break
            left.append(math.ceil(clock))
            clock += Fraction(length * 8 * SECOND, rate)

    for gap, count in bursts:
        now += gap
        bench.advance(now)
        serve(now)
        for _ in range(count):
            if not twin.queue:
                twin.first_above = 0  # an idle line has tried to take a packet meanwhile
                twin.dropping = twin.dropping and False
                clock = max(clock, Fraction(now))
            twin.queue.append((now, length))
            serve(now)
        for _ in range(count):
            bench.inject(packet(1, length))
    bench.advance(2**62)
    serve(2**62)
    assert [time for time, _ in bench.take()] == left
    assert bench.dropped("codel") == len(twin.dropped)
    bench.close()


def test_codel_drops_at_the_times_of_its_law():
    """Under constant overload: 100 ms after the sojourn exceeded the target, and then at the sums of 100 ms /
    sqrt(k)."""
    rate, length = 10 * MBIT, 125  # 100 us a packet
    bench = Bench(one_class({"discipline": "codel", "packets": 100_000}, rate=rate), small=65536, burst=0)
    drops: list[int] = []
    now = START_NS
    while now < START_NS + 900 * MS:
        bench.inject(*[packet(1, length)] * 2)
        drops += [now] * (bench.dropped("codel") - len(drops))
        now += 100 * US
        bench.advance(now)
        bench.take()
    law = [0.0, 100, 170.71, 228.45, 278.45, 323.17, 363.99, 401.79, 437.14, 470.48, 502.10, 532.25]
    assert len(drops) >= len(law)
    for found, expected in zip(drops, law, strict=False):
        assert abs((found - drops[0]) / MS - expected) <= 0.21, (found - drops[0], expected)
    bench.advance(2**62)
    bench.close()


@pytest.mark.parametrize(("tos", "marked"), [(1, True), (2, True), (3, True), (0, False)])
def test_ecn_capable_packets_are_marked_in_place_of_drops(tos, marked):
    bench = Bench(one_class({"discipline": "fq_codel", "packets": 10000}, rate="10mbit"))
    bench.inject(*[packet(1, 1000, tos=tos << 0 | 0x28)] * 500)
    bench.advance(2**62)
    left = [data for _, data in bench.take()]
    row = bench.rows()["all"]
    assert (row["marked"] > 0) == marked
    assert (bench.dropped("codel") == 0) == marked
    assert len(left) == 500 - bench.dropped("codel")
    if marked and tos != 3:
        assert sum(data[15] == 0x2B for data in left) == row["marked"]
    for data in left:  # the header checksum is right
        words = [int.from_bytes(data[i : i + 2], "big") for i in range(14, 34, 2)]
        total = sum(words)
        assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    bench.close()


# -- GSO frames ------------------------------------------------------------------------------------


def gso(mark: int, segments: int, *, tos: int = 0, number: int = 0):
    payload = b"".join((number + i).to_bytes(4, "big") + bytes(996) for i in range(segments))
    return Spec(payload=payload, destination_port=mark, tos=tos).frame(1000)


@pytest.mark.parametrize("discipline", ["fifo", "fq", "codel", "fq_codel"])
def test_a_gso_frame_leaves_as_its_segments_would(discipline):
    """The last byte of each segment has left at the same time, with GSO and without."""
    ends = []
    for whole in (True, False):
        bench = Bench(one_class({"discipline": discipline, "packets": 1000}, rate="10mbit"), burst=0)
        header = Spec(payload=bytes(1000)).payload_offset
        if whole:
            bench.inject(gso(1, 30), gso(1, 30, number=30))
        else:
            bench.inject(*[Spec(payload=bytes(1000), destination_port=1).frame() for _ in range(60)])
        bench.advance(2**62)
        found = bench.take()
        assert sum(len(data) - header for _, data in found) == 60_000
        ends.append(found[-1][0])
        assert bench.scheduler.statistics()["counters"]["split"] == (2 if whole else 0)
        bench.close()
    assert ends[0] == ends[1]


def test_codel_drops_single_segments():
    bench = Bench(one_class({"discipline": "codel", "packets": 10000}, rate="10mbit"), large=512)
    bench.inject(*[gso(1, 40, number=40 * i) for i in range(10)])
    bench.advance(2**62)
    payload = sum(len(data) - Spec(payload=b"x").payload_offset for _, data in bench.take())
    assert 0 < bench.dropped("codel") < 40
    assert payload == 400_000 - 1000 * bench.dropped("codel")
    bench.close()


def test_of_a_frame_that_does_not_fit_the_first_segments_are_queued():
    bench = Bench(one_class({"packets": 25}, rate="10mbit"))
    bench.inject(packet(1, 1000), gso(1, 40))
    assert bench.dropped("queue_full") == 1
    bench.advance(2**62)
    payload = sum(len(data) - Spec(payload=b"x").payload_offset for _, data in bench.take() if len(data) != 1000)
    assert payload in (25_000, 26_000)
    bench.close()


# -- changes and upgrades --------------------------------------------------------------------------

BEFORE = {"rate": "10mbit", "default": "rest", "tree": {
    "a": {"mark": 1, "queue": "fq_codel", "guarantee": "2mbit"},
    "b": {"ceiling": "4mbit", "tree": {"c": {"mark": 2, "weight": 2}, "d": {"mark": 3, "queue": "codel"}}},
    "e": {"mark": 5, "queue": {"discipline": "cake", "rtt": "5ms", "size": "40kb"}},
    "rest": {"queue": {"discipline": "fq", "packets": 500}},
}}  # fmt: skip
AFTER = {"rate": "20mbit", "default": "rest", "tree": {
    "rest": {"queue": "fifo", "weight": 5},
    "a": {"mark": 1, "queue": {"discipline": "cake", "flows": 1024}, "guarantee": "9mbit", "priority": 1},
    "b": {"tree": {"c": {"mark": 2, "queue": "fq"}}},
    "e": {"mark": 5, "queue": {"discipline": "cake", "rtt": "2ms", "size": "30kb"}},
}}  # fmt: skip

events = st.lists(
    st.one_of(
        st.tuples(st.just("packets"), st.integers(1, 5), st.integers(1, 40), st.integers(100, 1500)),
        st.tuples(st.just("gso"), st.integers(1, 5), st.integers(2, 40)),
        st.tuples(st.just("wait"), st.integers(0, 30 * MS)),
        st.tuples(st.just("upgrade")),
        st.tuples(st.just("change")),
    ),
    min_size=1,
    max_size=30,
)


def run(found: list[tuple], *, upgrades: bool = True, changes: bool = True) -> list[tuple[int, bytes]]:
    bench = Bench(BEFORE)
    number = 0
    left: list[tuple[int, bytes]] = []
    for kind, *values in found:
        if kind == "packets":
            mark, count, length = values
            bench.inject(*[packet(mark, length, flow=1 + i % 5, number=number + i) for i in range(count)])
            number += count
        elif kind == "gso":
            bench.inject(gso(values[0], values[1], number=number))
            number += values[1]
        elif kind == "wait":
            bench.advance(bench.engine.clock.now_ns + values[0])
        elif kind == "upgrade" and upgrades:
            bench.upgrade()
        elif kind == "change" and changes:
            bench.change(AFTER if bench.classes is BEFORE else BEFORE)
            bench.advance(bench.engine.clock.now_ns)
        assert bench.engine.conservation()["conserved"]
    bench.advance(2**62)
    left = bench.take()
    assert bench.scheduler.statistics()["counters"]["queue_bytes"] == 0
    assert sum(row["waiting_packets"] for row in bench.rows().values()) == 0
    assert bench.dropped("queue_full") + bench.dropped("over_memory") + bench.dropped("no_buffer") >= 0
    bench.close()
    return left


@settings(max_examples=150, deadline=None)
@given(found=events)
def test_an_upgrade_changes_nothing(found):
    assert run(found, changes=False) == run(found, upgrades=False, changes=False)


@settings(max_examples=150, deadline=None)
@given(found=events)
def test_a_change_loses_and_reorders_nothing(found):
    """Each flow's packets leave in order, also those of a class that the change removes."""
    last: dict[tuple[int, int], int] = {}
    for _, data in run(found):
        if data[23] != UDP:
            continue
        key = (mark_of(data), flow_of(data))
        assert number_of(data) > last.get(key, -1)
        last[key] = number_of(data)


def test_a_change_applies_to_what_waits():
    bench = Bench(one_class("fifo", rate="1mbit"), burst=0)
    bench.inject(*[packet(1, 1000, number=i) for i in range(10)])
    bench.advance(START_NS + 20 * MS)  # 3 packets, at 0, 8 and 16 ms
    bench.change(one_class("fifo", rate="2mbit"))
    bench.advance(2**62)
    found = bench.take()
    assert [number_of(data) for _, data in found] == list(range(10))
    # 4 of the 8 ms of the third packet were left, at half the time each
    assert [(time - START_NS) / MS for time, _ in found] == [0, 8, 16, *(22 + 4 * i for i in range(7))]
    assert bench.rows()["all"]["sent_packets"] == 10
    bench.close()


def test_classes_in_another_order_keep_what_waits():
    tree = {f"c{n}": {"mark": n, "queue": {"packets": 10}} for n in range(1, MARKS)}
    bench = Bench({"rate": "1mbit", "default": "c1", "tree": tree}, burst=0)
    bench.inject(*[packet(n, 500, number=i) for n in range(1, MARKS) for i in range(3)])
    before = {path: row["waiting_packets"] for path, row in bench.rows().items() if path}
    assert sum(before.values()) == 3 * (MARKS - 1) - 1
    for order in (reversed(tree), sorted(tree, key=lambda name: name[::-1])):
        bench.change({"rate": "1mbit", "default": "c1", "tree": {name: tree[name] for name in order}})
        assert {path: row["waiting_packets"] for path, row in bench.rows().items() if path} == before
    bench.advance(2**62)
    assert len(bench.take()) == 3 * (MARKS - 1)
    bench.close()


def test_what_waits_in_a_class_that_is_gone_leaves_first():
    tree = {"old": {"mark": 1}, "rest": {}}
    bench = Bench({"rate": "1mbit", "default": "rest", "tree": tree}, burst=0)
    bench.inject(*[packet(2, 1000, number=i) for i in range(4)], *[packet(1, 1000, number=i) for i in range(4, 8)])
    bench.advance(START_NS + MS)
    bench.take()
    bench.change({"rate": "1mbit", "default": "rest", "tree": {"rest": {}}})
    bench.inject(*[packet(1, 1000, number=i) for i in range(8, 10)])
    bench.upgrade()
    bench.advance(2**62)
    assert [number_of(data) for _, data in bench.take()] == [4, 5, 6, 7, 1, 2, 3, 8, 9]
    bench.close()


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_all_classes_hold_a_quarter_of_the_pool_and_the_longest_loses(shared):
    tree = {"a": {"mark": 1, "queue": {"packets": 10000}}, "rest": {"queue": {"packets": 10000}}}
    share = PoolShare(small=256, large=16) if shared else None
    bench = Bench({"rate": "100kbit", "default": "rest", "tree": tree}, small=2048 if shared else 1024, share=share)
    bench.inject(*[packet(1, 100)] * 20)
    for _ in range(10):
        bench.inject(*[packet(2, 100)] * 50)
    assert bench.pool.in_use <= 256 + 32 + 32
    rows = bench.rows()
    assert bench.dropped("over_memory") == rows["rest"]["dropped"]["over_memory"] > 0
    assert rows["a"]["sent_packets"] + rows["a"]["waiting_packets"] == 20
    bench.advance(2**62)
    bench.close()


def test_pieces_without_a_buffer_wait_no_more():
    """The only large buffer is the frame's. Nothing is left of its pieces in the queue's bound."""
    bench = Bench(one_class({"discipline": "fifo", "packets": 100}, rate="30mbit"), small=64, large=1)
    for number in range(5):
        bench.inject(gso(1, 7, number=7 * number))
        bench.advance(bench.engine.clock.now_ns + 100 * MS)
        row = bench.rows()["all"]
        assert row["waiting_packets"] == row["waiting_bytes"] == 0 == bench.scheduler.statistics()["counters"]["queue_bytes"]
    assert bench.dropped("no_buffer") == 2 * 5 and len(bench.take()) == 5
    bench.close()


@pytest.mark.parametrize("ceiling", [None, "50kbit"])
@pytest.mark.parametrize("discipline", ["fq", "fq_codel"])
def test_a_queue_that_loses_all_at_once(discipline, ceiling):
    """A small packet and a GSO frame of one flow exceed the bound together, and the longest flow loses both."""
    tree: dict = {
        "a": {"mark": 1, "queue": {"discipline": discipline, "packets": 20}},
        "rest": {"mark": 2, "queue": {"packets": 50}},
    }
    if ceiling is not None:
        tree["a"]["ceiling"] = ceiling
    bench = Bench({"rate": "100kbit", "default": "rest", "tree": tree}, burst=0)
    bench.inject(packet(1, 1000), packet(2, 1000))
    for number in range(1, 6):
        small = Spec(payload=bytes(10), destination_port=1).frame()
        bench.inject(small, gso(1, 40), packet(1, 500, flow=7, number=number), packet(2, 500, number=number))
    rows = bench.rows()
    assert rows["a"]["waiting_packets"] == 5 and rows["a"]["dropped"]["queue_full"] == 10
    bench.advance(2**62)
    found = [data for _, data in bench.take()]
    for mark in (1, 2):
        assert [number_of(data) for data in found if mark_of(data) == mark] == [0, 1, 2, 3, 4, 5]
    assert bench.scheduler.statistics()["held"] == 0
    bench.close()


def test_codel_remembers_across_an_upgrade():
    """Also where the queue is empty at that moment."""
    found = []
    for upgrades in (False, True):
        bench = Bench(one_class("codel", rate="1mbit"), burst=0)
        bench.inject(*[packet(1, 1000, number=n) for n in range(150)])
        bench.advance(START_NS + 1200 * MS)
        first = bench.dropped("codel")
        assert bench.scheduler.statistics()["held"] == 0 and first > 3
        if upgrades:
            bench.upgrade()
        bench.inject(*[packet(1, 1000, number=n) for n in range(150, 300)])
        bench.advance(2**62)
        found.append(bench.take())
        bench.close()
    assert found[0] == found[1]


def test_packets_that_wait_are_released_with_the_element():
    bench = Bench(one_class("fq_codel", rate="100kbit"))
    bench.inject(*[packet(1, 500, flow=i) for i in range(1, 40)], gso(1, 20))
    bench.close()


# -- the configuration -----------------------------------------------------------------------------

GOOD = {"rate": "10mbit", "default": "a", "tree": {"a": {}}}


@pytest.mark.parametrize(("classes", "error"), [
    ("10mbit", "'10mbit': expected a mapping such as {rate: 10mbit, default: rest, tree: {rest: {}}}"),
    ({**GOOD, "default": None}, "has no default: expected the class of packets that no other class has, such as default: a"),
    ({**GOOD, "default": "b"}, "default 'b': there is no such class without classes of its own; expected one of a"),
    ({**GOOD, "trees": {}}, "unknown key 'trees'; did you mean 'tree'?"),
    ({**GOOD, "tree": {}}, "tree a mapping: expected classes such as {gold: {}, rest: {}}"),
    ({**GOOD, "tree": {"a/b": {}}}, "class 'a/b': expected a name of letters, digits, '_', '.' and '-', at most 32"),
    ({**GOOD, "tree": {"a": {"weight": 0}}}, "a: weight 0: expected a number, 1 to 10000"),
    ({**GOOD, "tree": {"a": {"priority": 8}}}, "a: priority 8: expected a number, 0 to 7"),
    ({**GOOD, "tree": {"a": {"guarantee": "2mbit", "ceiling": "1mbit"}}}, "a: guarantee 2mbit is more than ceiling 1mbit"),
    ({**GOOD, "tree": {"a": {"guarantee": "11mbit"}}},
     "a rate of 10mbit is less than the 11mbit that its classes are guaranteed together: lower them"),
    ({**GOOD, "default": "x/a", "tree": {"x": {"guarantee": "1mbit", "tree": {"a": {"guarantee": "2mbit"}}}}},
     "x: its rate of 1mbit is less than the 2mbit that its classes are guaranteed together: lower them"),
    ({**GOOD, "tree": {"a": {"queue": "red"}}}, "a: queue 'red': unknown; expected one of fifo, codel, fq, fq_codel, cake"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "fq", "target": "5ms"}}}},
     "a: queue: target has no effect on fq: expected codel or fq_codel, or no such key"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "fq", "flows": 1000}}}},
     "a: queue: flows 1000: expected a power of 2, such as 1024"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "cake", "flows": 4}}}},
     "a: queue: flows 4: expected a number, 8 to 65536"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "cake", "target": "5ms"}}}},
     "a: queue: target has no effect on cake: expected codel or fq_codel, or no such key"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "fq_codel", "rtt": "5ms"}}}},
     "a: queue: rtt has no effect on fq_codel: expected cake, or no such key"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "cake", "rtt": "19us"}}}},
     "a: queue: rtt '19us': expected 20us to 1h"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "cake", "rtt": "61min"}}}},
     "a: queue: rtt '61min': expected 20us to 1h"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "cake", "hosts": "dual"}}}},
     "a: queue: hosts 'dual': unknown; expected one of none, source, destination, both"),
    ({**GOOD, "tree": {"a": {"queue": {"discipline": "cake", "hosts": {}}}}},
     "a: queue: hosts a mapping: unknown; expected one of none, source, destination, both"),
    ({**GOOD, "tree": {"a": {"queue": {"time": "5ms", "packets": 3}}}},
     "a: queue: has time and packets: expected one of them"),
    ({**GOOD, "tree": {"a": {"latency": "5ms"}}}, "a: latency without guarantee: expected guarantee, such as 2mbit"),
    ({**GOOD, "tree": {"a": {"mark": 1, "tree": {"b": {}}}}},
     "a: has mark and tree: packets wait in the classes of its tree"),
    ({**GOOD, "tree": {"a": {"mark": 1}, "b": {"mark": 1}}},
     "classes a and b both have mark 1: expected a mark of its own for each"),
    ({**GOOD, "tree": {f"c{i}": {} for i in range(10_001)}}, "more than 4096 classes: expected fewer"),
])  # fmt: skip
def test_bad_classes_are_one_line(classes, error):
    with pytest.raises(ConfigError) as caught:
        Scheduler(classes, name="classes")
    assert str(caught.value).removeprefix("classes: ") == error


def test_a_loop_of_classes_is_refused():
    tree: dict = {"a": {}}
    tree["a"]["tree"] = tree
    with pytest.raises(ConfigError, match="more than 8 levels"):
        Scheduler({"rate": "10mbit", "default": "a", "tree": tree}, name="classes")


def test_a_bad_change_changes_nothing():
    bench = Bench(BEFORE)
    with pytest.raises(ConfigError, match="has no default"):
        bench.change({"rate": "1mbit", "tree": {"a": {}}})
    assert read_handler(bench.scheduler, "tree") == BEFORE
    bench.close()


def test_without_a_rate_ceilings_hold():
    bench = Bench({"rate": "none", "default": "rest", "tree": {"a": {"mark": 1, "ceiling": "1mbit"}, "rest": {}}}, burst=0)
    bench.inject(*[packet(mark, 1000) for mark in (1, 2, 1, 2)])
    bench.advance(2**62)
    assert [(mark_of(data), time - START_NS) for time, data in bench.take()] == [(1, 0), (2, 0), (2, 0), (1, 8 * MS)]
    bench.close()


def test_the_default_priority_is_in_the_middle():
    assert PRIORITY_DEFAULT == 4


# -- classes of shares -----------------------------------------------------------------------------


def of_share(gold: str, **more: object) -> dict:
    """A tree whose class gold has this ceiling, and is in a share unless `share` is None."""
    own = {"ceiling": gold, "share": "up", **more}
    return {
        "rate": "40mbit",
        "default": "rest",
        "tree": {
            "gold": {
                **{key: value for key, value in own.items() if value is not None},
                "tree": {"slow": {"mark": 1, "ceiling": "12mbit"}, "fast": {"mark": 2, "queue": "fq_codel", "weight": 2}},
            },
            "rest": {"mark": 3, "queue": {"discipline": "fifo", "packets": 50}},
        },
    }


moves = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 3), st.integers(1, 40)),
        st.tuples(st.just("wait"), st.integers(0, 30_000_000), st.just(0)),
        st.tuples(st.just("rate"), st.sampled_from([1, 3, 8, 11, 12, 13, 39, 40, 60]), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(moves=moves)
def test_a_share_sets_a_ceiling_as_another_tree_does(moves):
    """Each packet leaves when it does where the whole tree is written anew; nothing else of the class changes."""
    live, twin = Bench(of_share("10mbit")), Bench(of_share("10mbit", share=None))
    number = 0
    for kind, first, second in [*moves, ("wait", 2 * SECOND, 0)]:
        if kind == "send":
            frames = [packet(first, flow=1000 + k % 5, number=number + k) for k in range(second)]
            number += second
            for bench in (live, twin):
                bench.inject(*frames)
        elif kind == "wait":
            for bench in (live, twin):
                bench.advance(bench.engine.clock.now_ns + first)
        else:
            live.scheduler.set_ceiling("gold", first * MBIT)
            twin.change(of_share(f"{first}mbit", share=None))
            assert live.scheduler.share_of("gold")[0] == first * MBIT
        assert live.take() == twin.take()
        assert live.rows() == twin.rows()
    for bench in (live, twin):
        bench.close()


def test_what_a_share_lets_a_class_have_outlives_trees_and_workers():
    bench = Bench(of_share("10mbit"))
    bench.scheduler.set_ceiling("gold", "4mbit")
    bench.inject(*[packet(2, 1000, number=n) for n in range(20)])
    assert bench.scheduler.share_of("gold") == (4 * MBIT, 1000, True)
    bench.change(of_share("9mbit"))  # another ceiling to begin with: the share has set it since
    assert bench.scheduler.share_of("gold") == (4 * MBIT, 1000, True)
    assert bench.scheduler.get_tree()["tree"]["gold"]["ceiling"] == "9mbit"
    bench.upgrade()
    assert bench.scheduler.share_of("gold") == (4 * MBIT, 1000, True)
    bench.advance(START_NS + 2 * SECOND)
    assert [at - START_NS for at, _ in bench.take()] == [max(n * 2 * MS - 250 * US, 0) for n in range(20)]
    bench.change(of_share("9mbit", share="down"))
    assert bench.scheduler.share_of("gold")[0] == 9 * MBIT
    bench.change(of_share("9mbit", share=None))
    assert bench.scheduler.share_of("gold") is None
    with pytest.raises(ConfigError, match="classes: gold is no class of a share"):
        bench.scheduler.set_ceiling("gold", "1mbit")
    bench.close()


def test_wrong_ceilings_of_shares_change_nothing():
    bench = Bench(of_share("10mbit"))
    for rate, message in (("none", "expected a rate such as 10mbit"), (1, "1 bit/s: expected 1kbit"), ("5mbps", "5mbps")):
        with pytest.raises(ConfigError, match=message):
            bench.scheduler.set_ceiling("gold", rate)
    assert bench.scheduler.share_of("gold") == (10 * MBIT, 0, False)
    for wrong in ("x", 1, -1, 10**14, True):
        state = bench.scheduler.save_state()
        state["classes"]["gold"]["ceiling_bps"] = wrong
        with pytest.raises(VnicError, match="its state is not that of a Scheduler"):
            bench.scheduler.load_state(state)
    bench.close()


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ({"share": 5}, "gold: share 5: expected the name of a share"),
        ({"share": "a b"}, "gold: share 'a b': expected the name of a share"),
        ({"ceiling": None}, "gold: has share up, and no ceiling to begin with: add ceiling"),
        ({"guarantee": "1mbit"}, "gold: share up sets what it gets, and it or a class in it has a guarantee"),
    ],
)
def test_a_tree_with_a_wrong_share_is_refused(gold, message):
    with pytest.raises(ConfigError, match=message):
        Scheduler(of_share("10mbit", **gold))

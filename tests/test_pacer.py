"""The pacer compared with virtual clocks in exact fractions, in virtual time."""

from __future__ import annotations

import copy
import heapq
import itertools
import math
from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataplane.elements.classifier import Classifier
from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handler_access import read_handler
from dataplane.engine.handover import forget_engine, load_engine, save_engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from shaping.pacer import Pacer
from shaping.pool_share import PoolShare
from tests.wire_frames import TCP, UDP, Spec, big_specs

START_NS = 10**9
MBIT = 10**6
MARKED_PORT = 5000  # packets to port MARKED_PORT + n get the mark n, for n from 1 to 3
RATE_MOST = 10**13


class Bench:
    """a >> parse >> marks >> pacer >> b, in virtual time."""

    def __init__(
        self, pool: PacketPool | None = None, *, small: int = 8192, large: int = 256, seed: int = 1, **config: Any
    ) -> None:
        self.pool = pool or PacketPool(small=small, large=large)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=START_NS), seed=seed)
        self.a, self.b = MemoryPort("a", 0), MemoryPort("b", 1)
        self.pacer = Pacer(**config, name="pace")
        rules = [{"destination_port": MARKED_PORT + mark, "mark": mark, "gate": 0} for mark in (1, 2, 3)]
        rx = PortRx(self.a)
        rx >> Parse() >> Classifier(rules, default=0) >> self.pacer >> PortTx(self.b)
        self.engine.load([rx])

    def inject(self, frames: list[Frame | bytes], at_ns: int | None = None) -> None:
        at_ns = self.engine.clock.now_ns if at_ns is None else at_ns
        if at_ns - 1 >= self.engine.clock.now_ns:
            advance(self.engine, at_ns - 1)
        self.engine.clock.set(at_ns)
        self.a.inject(frames)
        advance(self.engine, at_ns)

    def departures(self) -> list[tuple[int, int]]:
        """(time, number) of the packets sent since the last call."""
        return [(frame.time_ns, number_of(frame.data)) for frame in self.b.take()]

    def count(self, name: str) -> int:
        found = self.pacer.statistics()
        return found["counters"][name] if name in found["counters"] else found["dropped"][name]

    def write(self, handler: str, value: object) -> None:
        self.engine.post(getattr(self.pacer, f"prepare_{handler}")(value))

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


def numbered(number: int, *, flow: int = 0, mark: int = 0, size: int = 100) -> bytes:
    """A UDP packet of `size` bytes that carries its number."""
    port = MARKED_PORT + mark if mark else 80
    payload = number.to_bytes(4, "big") + bytes(size - 46)
    return Spec(protocol=UDP, source_port=1024 + flow, destination_port=port, payload=payload).build()


def number_of(data: bytes) -> int:
    return int.from_bytes(data[42:46], "big")


class Reference:
    """One packet at a time, with a clock in exact fractions for each policy.

    `chain`: the policies of a packet, each (key, rate), the narrower one first.
    """

    def __init__(self, horizon_ns: int, exceed: str) -> None:
        self.horizon_ns, self.exceed = horizon_ns, exceed
        self.clocks: dict[Any, Fraction] = defaultdict(Fraction)
        self.waiting: list[tuple[int, int, int, Any, int]] = []
        self.order = itertools.count()
        self.out: list[tuple[int, int]] = []
        self.dropped: list[int] = []

    def run_until(self, now: int) -> None:
        while self.waiting and self.waiting[0][0] <= now:
            at, _, number, packet, stage = heapq.heappop(self.waiting)
            self.go_on(at, number, packet, stage + 1)

    def arrive(self, now: int, number: int, packet: Any) -> None:
        self.go_on(now, number, packet, 0)

    def go_on(self, now: int, number: int, packet: Any, stage: int) -> None:
        size, chain = packet
        while stage < len(chain):
            key, rate = chain[stage]
            if rate:
                turn = max(self.clocks[key], Fraction(now))
                if math.ceil(turn) - now > self.horizon_ns:
                    if self.exceed == "drop":
                        self.dropped.append(number)
                        return
                    turn = Fraction(now + self.horizon_ns)
                self.clocks[key] = turn + Fraction(size * 8 * 10**9, rate)
                if turn > now:
                    heapq.heappush(self.waiting, (math.ceil(turn), next(self.order), number, packet, stage))
                    return
            stage += 1
        self.out.append((now, number))


def policies(per: str, rate: int, rates: dict[int, int], flow: int, mark: int) -> list[tuple[Any, int]]:
    """The policies of a packet as the element's documentation says."""
    of_mark = [(("mark", mark), rates[mark])] if mark in rates else []
    if per == "flow":
        return [(("flow", flow, mark), rate), *of_mark]  # the mark follows from the port here
    if per == "mark":
        return of_mark or [(("each mark", mark), rate)]
    return [*of_mark, ("all", rate)]


some_rates = st.one_of(st.just(0), st.integers(1000, 10**6), st.integers(10**6, 10**9), st.integers(10**9, 10**13))
packets = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 10**9)),
        st.integers(0, 5),
        st.integers(0, 3),
        st.one_of(st.integers(60, 1514), st.integers(60, 9000)),
    ),
    min_size=1,
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(
    per=st.sampled_from(["all", "mark", "flow"]),
    rate=some_rates,
    rates=st.dictionaries(st.integers(1, 3), some_rates),
    horizon=st.sampled_from([1000, 10**6, 10**8, 2 * 10**9, 10**12]),
    exceed=st.sampled_from(["drop", "pace"]),
    arrivals=packets,
)
def test_every_departure_is_that_of_the_reference(per, rate, rates, horizon, exceed, arrivals):
    bench = Bench(rate=rate, per=per, rates=rates, horizon=horizon, exceed=exceed)
    reference = Reference(horizon, exceed)
    now, batches = START_NS, []
    for number, (gap, flow, mark, size) in enumerate(arrivals):
        now += gap
        if gap or not batches:
            batches.append((now, []))
        batches[-1][1].append((number, flow, mark, size))
    for at, batch in batches:
        bench.inject([numbered(number, flow=flow, mark=mark, size=size) for number, flow, mark, size in batch], at)
        reference.run_until(at)
        for number, flow, mark, size in batch:
            reference.arrive(at, number, (size, policies(per, rate, rates, flow, mark)))
        assert bench.engine.conservation()["conserved"]
    advance(bench.engine, 2**62)
    reference.run_until(2**62)
    assert bench.departures() == reference.out
    assert bench.count("horizon") == len(reference.dropped)
    limited = bool(rate or rates)
    assert bench.count("sent_bytes") == limited * sum(arrivals[number][3] for _, number in reference.out)
    assert bench.pacer.statistics()["held"] == 0 and bench.count("shared") == 0
    bench.close()


@settings(max_examples=150, deadline=None)
@given(
    per=st.sampled_from(["all", "mark", "flow"]),
    rate=st.sampled_from([10**5, 10**7, 10**9]),
    rates=st.dictionaries(st.integers(1, 3), st.sampled_from([10**5, 10**7])),
    arrivals=packets,
)
def test_lateness_changes_neither_the_order_nor_later_times(per, rate, rates, arrivals):
    """The engine runs when packets come, and not in between: what was due leaves then, all else at its time."""
    bench = Bench(rate=rate, per=per, rates=rates, horizon="1h")
    reference = Reference(3600 * 10**9, "drop")
    now, runs = START_NS, []
    for number, (gap, flow, mark, size) in enumerate(arrivals):
        now += gap
        runs.append(now)
        reference.run_until(now)
        reference.arrive(now, number, (size, policies(per, rate, rates, flow, mark)))
        bench.engine.clock.set(now)
        bench.a.inject([numbered(number, flow=flow, mark=mark, size=size)])
        advance(bench.engine, now)
    advance(bench.engine, 2**62)
    reference.run_until(2**62)
    late = [(next((run for run in runs if run >= at), at), number) for at, number in reference.out]
    assert bench.departures() == late
    bench.close()


def test_backlogged_flows_leave_by_the_closed_form():
    """Each of ten flows at its rate, whatever the others do; to the nanosecond."""
    rate, size, flows, each = 7_777_777, 1514, 10, 40
    bench = Bench(rate=rate, per="flow")
    bench.inject([numbered(flow * each + i, flow=flow, size=size) for flow in range(flows) for i in range(each)])
    advance(bench.engine, START_NS + 10**9)
    times = {number: at for at, number in bench.departures()}
    assert times == {
        flow * each + i: START_NS + math.ceil(Fraction(i * size * 8 * 10**9, rate))
        for flow in range(flows)
        for i in range(each)
    }
    assert bench.count("passed") == flows and bench.count("delayed") == flows * (each - 1)
    assert bench.count("delay_max_ns") == max(times.values()) - START_NS
    assert bench.count("delay_ns") == sum(times.values()) - START_NS * flows * each
    bench.close()


@settings(max_examples=150, deadline=None)
@given(per=st.sampled_from(["all", "mark", "flow"]), arrivals=packets, marks_rate=st.sampled_from([None, 10**5, 10**8]))
def test_no_policy_lets_more_pass_than_its_rate(per, arrivals, marks_rate):
    """In any interval [s, t], packets of a policy that begin to leave in it have, but for the last
    one, at most rate * (t - s) bits: the law of the generic cell rate algorithm without a burst.
    A time is a whole nanosecond, so the interval may be up to one longer."""
    rate = 10**6
    rates = dict.fromkeys((1, 2), marks_rate) if marks_rate else None
    bench = Bench(rate=rate, per=per, rates=rates, horizon="1h")
    now = START_NS
    for number, (gap, flow, mark, size) in enumerate(arrivals):
        now += gap
        bench.inject([numbered(number, flow=flow, mark=mark, size=size)], now)
    advance(bench.engine, 2**62)
    out = bench.departures()
    assert len(out) == len(arrivals)
    # the last policy that a packet passes; the earlier one holds where that one does not delay
    law = {}
    for at, number in out:
        _, flow, mark, size = arrivals[number]
        key, limit = policies(per, rate, rates or {}, flow, mark)[-1]
        law.setdefault((key, limit), []).append((at, size))
    for (_, limit), sent in law.items():
        total, least = 0, None
        for at, size in sent:
            # bits so far less what the time allows; its growth from any earlier point is bounded
            behind = total * 8 * 10**9 - (at - START_NS) * limit
            least = behind if least is None else min(least, behind)
            assert behind - least <= limit
            total += size
    bench.close()


@settings(max_examples=150, deadline=None)
@given(arrivals=packets, flows=st.sampled_from([1, 8, 16]), rate=st.sampled_from([10**5, 10**7]), seed=st.integers(0, 1000))
def test_flows_that_share_a_clock_keep_their_order_and_the_rate(arrivals, flows, rate, seed):
    """More flows than clocks: they share; nothing is lost or overtaken."""

    def flow_of(number: int) -> int:
        return arrivals[number][1] + 6 * (number % 4)

    bench = Bench(rate=rate, per="flow", flows=flows, horizon="1h", seed=seed)
    now = START_NS
    for number, (gap, flow, _, size) in enumerate(arrivals):
        now += gap
        bench.inject([numbered(number, flow=flow_of(number), size=size)], now)
    advance(bench.engine, 2**62)
    out = bench.departures()
    assert len(out) == len(arrivals)
    law = defaultdict(list)
    for at, number in out:
        law[flow_of(number)].append((at, number, arrivals[number][3]))
    for sent in law.values():
        assert [number for _, number, _ in sent] == sorted(number for _, number, _ in sent)
        for (at, _, size), (following, _, _) in itertools.pairwise(sent):
            assert following - at >= size * 8 * 10**9 // rate
    bench.close()


def test_flows_without_a_clock_of_their_own_are_counted():
    bench = Bench(rate="1mbit", per="flow", flows=8)
    bench.inject([numbered(n, flow=n % 9, size=1250) for n in range(18)])
    assert bench.count("shared") in (1, 2)  # the ninth flow: both of its packets, or one where it came to an idle clock
    assert read_handler(bench.pacer, "flows") == {"clocks": 8, "active": 8}
    advance(bench.engine, START_NS + 10**9)
    assert read_handler(bench.pacer, "flows") == {"clocks": 8, "active": 0}
    assert len(bench.departures()) == 18
    bench.close()


def test_a_slow_flow_does_not_use_up_the_rate_of_its_class():
    """A hundred packets of one flow wait for it; another flow of the mark is not held up by them."""
    bench = Bench(rate="1mbit", per="flow", rates={1: "10mbit"})
    bench.inject([numbered(n, flow=1, mark=1, size=1250) for n in range(100)])
    bench.inject([numbered(100, flow=2, mark=1, size=1250)], START_NS + 500_000)
    # the first packet of flow 1 takes the class for 1 ms
    advance(bench.engine, START_NS + 9_000_000)
    assert bench.departures() == [(START_NS, 0), (START_NS + 1_000_000, 100)]
    advance(bench.engine, START_NS + 2 * 10**9)
    assert [at - START_NS for at, _ in bench.departures()] == [10_000_000 * n for n in range(1, 100)]
    bench.close()


def test_packets_of_one_flow_are_told_by_their_five_tuple():
    """Two flows that differ in one field only are two; fragments of a flow are one, and what is not
    IP another one."""
    base: dict[str, Any] = {"protocol": UDP, "payload": bytes(1208), "source_port": 1, "destination_port": 2}
    others = [
        {}, {"source_port": 3}, {"destination_port": 3}, {"source": bytes([10, 0, 0, 3])},
        {"destination": bytes([10, 0, 0, 3])}, {"protocol": TCP}, {"version": 6},
        {"version": 6, "source": bytes.fromhex("fd00") + bytes(13) + b"\x09"},
        {"version": 6, "destination": bytes.fromhex("fd00") + bytes(13) + b"\x09"}, {"version": 6, "source_port": 9},
    ]  # fmt: skip
    bench = Bench(rate="1mbit", per="flow")
    frames = [Spec(**{**base, **other}).build() for other in others]
    frames.append(bytes.fromhex("02000000000202000000000188b5") + bytes(1236))
    bench.inject(frames)
    assert len(bench.b.take()) == len(frames)
    bench.inject(frames)
    assert len(bench.b.take()) == 0
    advance(bench.engine, START_NS + 10**9)
    assert len(bench.b.take()) == len(frames)
    first = Spec(**base, fragment=0x2000).build()
    later = Spec(**{**base, "source_port": 77}, fragment=0x2010).build()
    bench.inject([first, later, first])
    assert len(bench.b.take()) == 1
    advance(bench.engine, START_NS + 2 * 10**9)
    assert len(bench.b.take()) == 2
    bench.close()


# -- GSO -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(big_specs()))
@pytest.mark.parametrize("rate", [1 * MBIT, 10 * MBIT, 25 * MBIT])
@pytest.mark.parametrize("per", ["all", "flow"])
def test_a_gso_frame_worth_more_than_a_millisecond_is_cut(kind, rate, per):
    bench = Bench(rate=rate, per=per)
    spec, gso_size = big_specs()[kind], 700
    whole = spec.segments(gso_size)
    each = max(1, rate // 8000 // (spec.payload_offset + gso_size))
    bench.inject([spec.frame(gso_size), *([bytes(60)] if per == "all" else [])])
    advance(bench.engine, START_NS + 10**9)
    out = bench.b.take()
    groups = [whole[i : i + each] for i in range(0, len(whole), each)]
    assert len(out) == len(groups) + (per == "all")
    clock = Fraction(START_NS)
    for frame, group in zip(out, groups, strict=False):
        wire = sum(len(part.build()) for part in group)
        # between the frame's begin and end the pieces' times are whole nanoseconds
        assert 0 <= frame.time_ns - math.ceil(clock) <= 1
        assert wire * 8 * 1000 <= rate or len(group) == 1
        assert frame.data[spec.payload_offset :] == b"".join(part.payload for part in group)
        assert (frame.gso_size, bool(frame.gso_type)) == ((gso_size, True) if len(group) > 1 else (0, False))
        clock += Fraction(wire * 8 * 10**9, rate)
    if per == "all":
        assert out[-1].time_ns == math.ceil(clock) and len(out[-1].data) == 60
    assert bench.count("split") == 1 and bench.pacer.statistics()["generated"] == len(groups) - 1
    assert bench.count("sent_bytes") == sum(len(part.build()) for part in whole) + 60 * (per == "all")
    bench.close()


@settings(max_examples=60, deadline=None)
@given(
    rate=st.integers(10**5, 10**9),
    frames=st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 2), st.integers(1, 12)), min_size=1, max_size=12),
)
def test_the_last_byte_leaves_at_the_same_time_with_and_without_gso(rate, frames):
    """Behind each frame comes a short packet, whose time is that of the flow's clock after the
    frame's last byte."""
    ends: list[dict[int, int]] = []
    for gso in (True, False):
        bench = Bench(rate=rate, per="flow", horizon="1h")
        now = START_NS
        for number, (gap, flow, segments) in enumerate(frames):
            now += gap
            spec = Spec(protocol=UDP, source_port=1024 + flow, payload=bytes(1000 * segments), destination_port=80)
            sent: list[Frame | bytes] = (
                [spec.frame(1000)] if gso and segments > 1 else [each.build() for each in spec.segments(1000)]
            )
            bench.inject([*sent, numbered(number, flow=flow, size=60)], now)
        advance(bench.engine, 2**61)
        out = bench.b.take()
        ends.append({number_of(frame.data): frame.time_ns for frame in out if len(frame.data) == 60})
        assert bench.pacer.statistics()["held"] == 0 and len(ends[-1]) == len(frames)
        bench.close()
    assert ends[0] == ends[1]


def test_a_gso_frame_is_cut_for_each_of_its_policies():
    """At 30 Mbit/s in pieces of three segments, then at 10 Mbit/s in single ones."""
    bench = Bench(rate="30mbit", per="flow", rates={1: "10mbit"})
    spec = Spec(protocol=UDP, destination_port=MARKED_PORT + 1, payload=bytes(8 * 1208))
    bench.inject([spec.frame(1208)])
    advance(bench.engine, START_NS + 10**9)
    out = bench.b.take()
    assert [(frame.time_ns - START_NS, len(frame.data)) for frame in out] == [(1_000_000 * n, 1250) for n in range(8)]
    assert bench.count("split") == 1 + 3 and bench.pacer.statistics()["generated"] == 7
    bench.close()


def test_a_frame_keeps_its_times_when_the_rate_changes_while_it_is_cut():
    """And what comes behind it comes after its end."""
    spec = Spec(payload=bytes(10 * 1196))
    for rate in ("1mbit", "1gbit", None):
        bench = Bench(rate="10mbit", per="all")
        bench.inject([spec.frame(1196)])
        advance(bench.engine, START_NS + 2_500_000)
        bench.write("rate", rate)
        bench.inject([bytes(60)])
        advance(bench.engine, START_NS + 10**9)
        out = bench.b.take()
        assert [frame.time_ns - START_NS for frame in out] == [1_000_000 * n for n in range(11)]
        assert [len(frame.data) for frame in out] == [1250] * 10 + [60]
        bench.close()


def test_a_late_engine_catches_up_in_order():
    """All pieces that were due in the meantime leave at once, and the next one in time."""
    bench = Bench(rate="10mbit", per="flow")
    spec = Spec(payload=bytes(10 * 1196))
    bench.inject([spec.frame(1196), numbered(0, size=1250), Spec(payload=bytes(1196)).build()])
    bench.b.take()
    late = START_NS + 8_500_000
    bench.engine.clock.set(late)
    advance(bench.engine, late)
    assert [frame.time_ns for frame in bench.b.take()] == [late] * 8
    advance(bench.engine, START_NS + 10**9)
    assert [frame.time_ns - START_NS for frame in bench.b.take()] == [9_000_000, 10_000_000]
    bench.close()


@settings(max_examples=100, deadline=None)
@given(
    rate=st.sampled_from([10**6, 7 * 10**6, 10**8]),
    marks_rate=st.sampled_from([None, 5 * 10**6]),
    steps=st.lists(
        st.tuples(st.integers(0, 3 * 10**7), st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=6)),
        min_size=1,
        max_size=15,
    ),
)
def test_a_late_engine_neither_loses_nor_reorders(rate, marks_rate, steps):
    """The clock jumps; what was due in between leaves late, and each flow's packets in order."""
    rates = {1: marks_rate} if marks_rate else None
    bench = Bench(rate=rate, per="flow", rates=rates, horizon="1h", large=2048)
    now, number, flow_of = START_NS, 0, []
    for gap, arriving in steps:
        now += gap
        bench.engine.clock.set(now)
        for flow, segments in arriving:
            payload = b"".join((number + n).to_bytes(4, "big") + bytes(996) for n in range(segments))
            port = MARKED_PORT + 1 if flow % 2 else 80
            spec = Spec(protocol=UDP, source_port=1024 + flow, destination_port=port, payload=payload)
            bench.a.inject([spec.frame(1000) if segments > 1 else spec.build()])
            flow_of += [flow] * segments
            number += segments
        advance(bench.engine, now)
        assert bench.engine.conservation()["conserved"]
    bench.engine.clock.set(now + 10**8)
    advance(bench.engine, now + 10**8)
    advance(bench.engine, 2**61)
    order: dict[int, list[int]] = defaultdict(list)
    for frame in bench.b.take():
        for at in range(42, len(frame.data), frame.gso_size or len(frame.data)):
            found = int.from_bytes(frame.data[at : at + 4], "big")
            order[flow_of[found]].append(found)
    assert sum(map(len, order.values())) == number
    assert all(numbers == sorted(numbers) for numbers in order.values())
    bench.close()


def test_pieces_without_a_buffer_are_counted():
    """The only large buffer is the frame's; of its pieces, the last one alone fits a small one, and does
    not wait for the others' times."""
    bench = Bench(rate="30mbit", small=64, large=1)
    bench.inject([Spec(protocol=UDP, payload=bytes(7 * 1208)).frame(1208)])
    advance(bench.engine, START_NS + 10**9)
    assert [frame.time_ns - START_NS for frame in bench.b.take()] == [0]
    assert bench.count("no_buffer") == 2 and bench.pacer.statistics()["generated"] == 2
    bench.close()


def test_an_unparsed_gso_frame_goes_whole():
    pool = PacketPool(small=64, large=8)
    engine = Engine("e0", pool, clock=Clock(virtual=True, start_ns=START_NS))
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx, pacer = PortRx(a), Pacer(rate="1mbit", per="flow")
    rx >> pacer >> PortTx(b)
    engine.load([rx])
    a.inject([Spec(payload=bytes(3000)).frame(1000)] * 2)
    advance(engine, START_NS)
    assert len(b.take()) == 1 and pacer.statistics()["held"] == 1
    engine.close()
    assert pool.in_use == 0 and pacer.statistics()["dropped"]["released"] == 1


# -- bounds ----------------------------------------------------------------------------------------


def test_what_lies_beyond_the_horizon_is_dropped_or_leaves_there():
    for exceed, times in (("drop", [0, 10, 20]), ("pace", [0, 10, 20, 25, 25])):
        bench = Bench(rate="1mbit", horizon="25ms", exceed=exceed)
        bench.inject([numbered(n, size=1250) for n in range(5)])
        advance(bench.engine, START_NS + 10**9)
        assert [(at - START_NS) // 10**6 for at, _ in bench.departures()] == times
        assert bench.count("horizon") == (2 if exceed == "drop" else 0)
        assert bench.count("at_horizon") == (2 if exceed == "pace" else 0)
        bench.close()


def test_pieces_of_a_frame_leave_at_the_horizon_at_the_latest():
    """Later packets leave there, and may not overtake the pieces."""
    for per in ("all", "flow"):
        bench = Bench(rate="1mbit", horizon="25ms", exceed="pace", per=per)
        frame = Spec(protocol=UDP, source_port=1024, payload=b"".join((n).to_bytes(4, "big") + bytes(1204) for n in range(20)))
        bench.inject([frame.frame(1208), *[numbered(n, size=1250) for n in range(20, 25)]])
        advance(bench.engine, START_NS + 10**9)
        found = bench.b.take()
        numbers = [
            int.from_bytes(each.data[at : at + 4], "big")
            for each in found
            for at in range(42, len(each.data), each.gso_size or len(each.data))
        ]
        assert numbers == list(range(25)) and max(each.time_ns for each in found) == START_NS + 25 * 10**6
        assert bench.count("at_horizon") == 6 and bench.count("split") == 1
        bench.close()


def test_a_packet_that_is_dropped_charges_nothing():
    """For want of buffers, beyond the horizon: those that wait keep their turns."""
    bench = Bench(rate="1mbit", horizon="25ms", exceed="pace", small=64)
    bench.inject([Spec(protocol=UDP, payload=bytes(20 * 1208)).frame(1208), *[numbered(n) for n in range(40)]])
    assert bench.count("queue_full") == 24
    clock = bench.pacer.save_state()["clock"]
    bench.inject([numbered(n) for n in range(3)], START_NS + 10**6)
    assert bench.count("queue_full") == 27 and bench.pacer.save_state()["clock"] == clock
    bench.close()


def test_packets_that_take_less_than_a_nanosecond_move_to_another_engine():
    bench = Bench(rate="10tbit")
    bench.inject([numbered(n, size=1400) for n in range(8)])  # 1.12 ns each
    other = Bench(rate="10tbit", pool=bench.pool)
    for size in (60, 60, 1400, 60):
        bench.inject([numbered(0, size=size)] * 3)
        data = save_engine(bench.engine)
        other = Bench(rate="10tbit", pool=bench.pool)
        other.engine.clock.set(bench.engine.clock.now_ns)
        load_engine(other.engine, data)
        forget_engine(bench.engine)
        bench.engine.close()
        bench = other
    advance(bench.engine, START_NS + 10**9)
    bench.close()


def test_a_quarter_of_the_pool_may_wait():
    bench = Bench(rate="10mbit", per="flow", small=400, large=20)
    bench.inject([numbered(n, flow=1, size=60) for n in range(150)] + [bytes(9000)] * 10)
    # one of each flow leaves at once
    assert bench.pacer.statistics()["held"] == 100 + 5
    assert bench.count("queue_full") == 49 + 4
    advance(bench.engine, START_NS + 10**9)
    assert len(bench.b.take()) == 100 + 5 + 2
    bench.close()


def test_pacers_and_shapers_of_a_share_hold_no_more_than_it_allows():
    share = PoolShare(small=30, large=2)
    benches = []
    for _ in range(2):
        bench = Bench(rate="8kbit", per="flow", horizon="1h")
        bench.engine.load([])
        bench.pacer = Pacer(rate="8kbit", per="flow", horizon="1h", name="pace")
        bench.pacer.join(share)
        rx = PortRx(bench.a, name="rx")
        rx >> Parse() >> bench.pacer >> PortTx(bench.b)
        bench.engine.load([rx])
        benches.append(bench)
    benches[0].inject([numbered(n, size=60) for n in range(26)])
    assert share.packets == (25, 0)
    benches[1].inject([numbered(n, size=60) for n in range(20)] + [bytes(4000)] * 4)
    assert share.packets == (30, 2)
    assert [bench.count("queue_full") for bench in benches] == [0, 14 + 1]
    for bench in benches:
        advance(bench.engine, START_NS + 3600 * 10**9)
    assert share.packets == (0, 0)
    benches[0].inject([numbered(n, size=60) for n in range(20)])
    assert share.packets == (19, 0)
    with pytest.raises(ConfigError, match="pace: runs already"):
        benches[0].pacer.join(share)
    for bench in benches:
        bench.close()
    assert share.packets == (0, 0)


def test_without_a_rate_batches_pass():
    for per in ("all", "mark", "flow"):
        bench = Bench(per=per)
        bench.inject([numbered(n, flow=n % 7, mark=n % 4) for n in range(200)])
        assert bench.departures() == [(START_NS, n) for n in range(200)]
        assert bench.count("passed") == 200
        bench.close()


# -- changes ---------------------------------------------------------------------------------------


def test_the_rate_changes_live():
    """Packets that wait keep their times; what is left of the last one's is converted."""
    bench = Bench(rate=1 * MBIT)
    bench.inject([numbered(n, size=1250) for n in range(3)])  # at 0, 10 and 20 ms; the clock at 30
    bench.write("rate", "2mbit")
    bench.inject([numbered(n, size=1250) for n in range(3, 5)], START_NS + 5_000_000)
    advance(bench.engine, START_NS + 10**9)
    assert [(at - START_NS) / 1e6 for at, _ in bench.departures()] == [0, 10, 20, 25, 30]
    assert read_handler(bench.pacer, "rate") == "2mbit" and bench.pacer.describe()["rate"] == "2mbit"
    bench.close()


def test_the_rates_of_marks_change_live():
    bench = Bench(rates={1: "1mbit", 2: "1mbit"})
    bench.inject([numbered(10 * mark + n, mark=mark, size=1250) for n in range(2) for mark in (1, 2, 3)])
    bench.write("rates", {"1": "2mbit", "3": "1mbit"})
    assert read_handler(bench.pacer, "rates") == {"1": "2mbit", "3": "1mbit"}
    bench.inject([numbered(10 * mark + n, mark=mark, size=1250) for n in (2, 3) for mark in (1, 2, 3)])
    advance(bench.engine, START_NS + 10**9)
    times = {number: (at - START_NS) / 1e6 for at, number in bench.departures()}
    assert {number: at for number, at in times.items() if number < 20} == {10: 0, 11: 10, 12: 15, 13: 20}
    assert {number: at for number, at in times.items() if number >= 30} == {30: 0, 31: 0, 32: 0, 33: 10}
    # without a rate, but not before those that wait since there was one
    assert times[20] == 0 and times[21] == 10 and 20 <= times[22] <= times[23] < 20.00001
    bench.write("rates", {})
    bench.write("rates", {})
    assert read_handler(bench.pacer, "rates") == {}
    bench.inject([numbered(n, mark=2, size=1250) for n in range(50)])
    assert len(bench.departures()) == 50
    bench.close()


def test_marks_that_lost_their_rates_are_bounded():
    bench = Bench(rates=dict.fromkeys(range(1024), "1kbit"), horizon="1h")
    for first in (1024, 2048):
        bench.write("rates", dict.fromkeys(range(first, first + 1024), "1kbit"))
    bench.write("rates", {})  # all of them may have packets that wait
    bench.write("rates", dict.fromkeys(range(1024), "1kbit"))
    assert len(read_handler(bench.pacer, "rates")) == 1024
    bench.close()


@settings(max_examples=100, deadline=None)
@given(
    per=st.sampled_from(["all", "mark", "flow"]),
    changes=st.lists(
        st.tuples(
            st.integers(0, 50_000_000),
            st.sampled_from(["rate", "rates"]),
            st.one_of(st.none(), st.integers(1000, 10**11)),
            st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from([0, 5])), max_size=12),
        ),
        max_size=20,
    ),
)
@example(  # a mark whose rate came, went and came back while its packets waited for the common one
    per="mark",
    changes=[(0, "rates", 1000, []), (0, "rates", None, []), (0, "rates", 1000, [(2, 2, 5)]), (0, "rate", None, [(2, 2, 0)])],
)
def test_changes_neither_lose_nor_reorder(per, changes):
    bench = Bench(rate="10mbit", per=per, rates={1: "20mbit"}, horizon="1h", large=1024)
    now, number = START_NS, 0
    sent: dict[int, tuple[int, int]] = {}
    for gap, handler, rate, arriving in changes:
        frames: list[Frame | bytes] = []
        for flow, mark, segments in arriving:
            port = MARKED_PORT + mark if mark else 80
            if segments:
                payload = b"".join((number + n).to_bytes(4, "big") + bytes(996) for n in range(segments))
                frames.append(Spec(protocol=UDP, source_port=1024 + flow, destination_port=port, payload=payload).frame(1000))
            else:
                frames.append(numbered(number, flow=flow, mark=mark, size=1000))
            for _ in range(max(segments, 1)):
                sent[number] = (flow, mark)
                number += 1
        now += gap
        bench.inject(frames, now)
        bench.write(
            handler, rate if handler == "rate" else {1: "none" if rate is None else rate, **({2: rate} if rate else {})}
        )
        assert bench.engine.conservation()["conserved"]
    advance(bench.engine, 2**62)
    order: dict[Any, list[int]] = defaultdict(list)
    for frame in bench.b.take():
        step = frame.gso_size or len(frame.data)
        for at in range(42, len(frame.data), step):
            found = int.from_bytes(frame.data[at : at + 4], "big")
            order[sent[found]].append(found)
    assert sum(map(len, order.values())) == len(sent)
    assert all(numbers == sorted(numbers) for numbers in order.values())
    bench.close()


# -- hand-over -------------------------------------------------------------------------------------


def taken_over(old: Bench, **config: Any) -> Bench:
    """A bench that has the state of another one and continues on its ports."""
    new = Bench(old.pool, **config)
    new.engine.clock.set(old.engine.clock.now_ns)
    load_engine(new.engine, save_engine(old.engine))
    forget_engine(old.engine)
    old.engine.close()
    return new


@settings(max_examples=60, deadline=None)
@given(per=st.sampled_from(["all", "mark", "flow"]), arrivals=packets, cut=st.integers(0, 120), gso=st.booleans())
def test_packets_leave_at_their_times_after_a_hand_over(per, arrivals, cut, gso):
    config: dict[str, Any] = {"rate": "2mbit", "per": per, "rates": {1: "1mbit"}, "horizon": "1h", "flows": 64}
    results = []
    for moves in (False, True):
        bench, now, out = Bench(**config), START_NS, []
        for number, (gap, flow, mark, size) in enumerate(arrivals):
            now += gap
            frames: list[Frame | bytes] = [numbered(number, flow=flow, mark=mark, size=size)]
            if gso and number % 7 == 0:
                frames.append(Spec(payload=bytes(5000), source_port=flow + 1).frame(700))
            bench.inject(frames, now)
            if moves and number == cut:
                out += [(frame.time_ns, frame.data) for frame in bench.b.take()]
                bench = taken_over(bench, **config)
        advance(bench.engine, 2**61)
        out += [(frame.time_ns, frame.data) for frame in bench.b.take()]
        results.append(out)
        bench.close()
    assert results[0] == results[1]


def test_rates_that_were_changed_are_handed_over():
    bench = Bench(rate="2mbit", per="flow", rates={1: "1mbit"})
    bench.inject([numbered(n, mark=1, size=1250) for n in range(4)])
    bench.write("rate", "3mbit")
    bench.write("rates", {2: "5mbit"})
    new = taken_over(bench, rate="2mbit", per="flow", rates={1: "1mbit"})
    assert read_handler(new.pacer, "rate") == "3mbit" and read_handler(new.pacer, "rates") == {"2": "5mbit"}
    advance(new.engine, START_NS + 10**9)
    assert [number for _, number in new.departures()] == [1, 2, 3]
    new.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_bps": 1}, {"rate_bps": None}, {"clock": [0, 0]}, {"clock": [2**64 - 1, 0, 0]}, {"clock": [0, 10**13, 0]},
        {"clock": [0, 0, 1]}, {"marks": [[1, 10, 0, 0, 0]]}, {"marks": [[-1, 1000, 0, 0, 0]]}, {"marks": 1},
        {"marks": [[1, 1000, 0, 1000, 0]]}, {"marks": [[n, None, 0, 0, 0] for n in range(3073)]}, {"marks": [["1", None, 0, 0, 0]]},
        {"flows": b"x"}, {"flows": bytes(20) * 100}, {"flows": (99).to_bytes(4, "little") + bytes(16)},
        {"flows": bytes(4) + b"\xff" * 8 + bytes(8)}, {"packets": b"xyz"}, {"packets": b""}, {"wheel": 1},
        {"wheel": [0, START_NS + 1]}, {"wheel": [4, 0]}, {"other": 1},
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(wrong):
    bench = Bench(rate="2mbit", per="flow", rates={1: "1mbit"}, flows=64)
    bench.inject([numbered(n, mark=1, size=1250) for n in range(4)])
    state = bench.pacer.save_state()
    assert wrong.keys() <= state.keys() or "other" in wrong
    with pytest.raises(VnicError, match="pace: its state is not that of a Pacer"):
        bench.pacer.load_state({**copy.deepcopy(state), **wrong})
    bench.close()


def test_a_frame_that_cannot_be_cut_is_refused():
    bench = Bench(rate="2mbit", per="flow")
    bench.inject([Spec(payload=bytes(5000)).frame(700), numbered(1, size=60)])
    state = bench.pacer.save_state()
    [index] = [
        each
        for each in range(bench.pool.small_count, bench.pool.small_count + bench.pool.large_count)
        if bench.pool.records[each]["flags"]
    ]
    record = bench.pool.records[index]
    for field, value in (("gso_size", 0), ("held_ns", 0), ("held_word", record["held_word"] | 0x1FFFF)):
        before = record[field].copy()
        record[field] = value
        with pytest.raises(VnicError, match="cannot be one that is being cut"):
            bench.pacer.load_state(state)
        record[field] = before
    bench.close()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rate": "100"}, "no unit"),
        ({"rate": 1}, "expected 1kbit to 10tbit"),
        ({"per": "packet"}, "per 'packet': expected all, mark or flow"),
        ({"per": None}, "per nothing: expected all, mark or flow"),
        ({"exceed": "shape"}, "exceed 'shape': expected drop or pace"),
        ({"horizon": "1d"}, "horizon"),
        ({"horizon": "500ns"}, "horizon of 500ns: expected 1us to 1h"),
        ({"horizon": "2h"}, "horizon of 2h: expected at most 1h"),
        ({"flows": 0}, "flows 0: expected a number, 1 to 4194304"),
        ({"flows": 1 << 23}, "expected a number, 1 to 4194304"),
        ({"flows": "many"}, "flows 'many': expected a number"),
        ({"rates": "1mbit"}, r"rates '1mbit': expected at most 1024 marks with their rates, such as \{1: 10mbit\}"),
        ({"rates": dict.fromkeys(range(1025), "1mbit")}, "rates of 1025 marks: expected at most 1024"),
        ({"rates": {-1: "1mbit"}}, "mark -1: expected a number from 0 to 4294967295"),
        ({"rates": {"gold": "1mbit"}}, "mark 'gold': expected a number"),
        ({"rates": {"9" * 5000: "1mbit"}}, "expected a number from 0"),
        ({"rates": {True: "1mbit"}}, "mark true: expected a number"),
        ({"rates": {1: "fast"}}, "rates: mark 1: rate 'fast'"),
        ({"rates": {1: "1mbit", "1": "2mbit"}}, "mark 1 is given twice"),
    ],
)
def test_settings_that_are_refused(config, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Pacer(**config, name="pace")
    assert str(raised.value).startswith("pace: ") and "\n" not in str(raised.value)


def test_what_it_describes():
    pacer = Pacer("10mbit", per="mark", rates=dict.fromkeys(range(6), "1mbit"), horizon="10ms", exceed="pace", flows=1000)
    described = pacer.describe()
    assert {key: described[key] for key in ("rate", "per", "horizon", "exceed")} == {
        "rate": "10mbit", "per": "mark", "horizon": "10ms", "exceed": "pace",
    }  # fmt: skip
    assert described["rates"].count("1mbit") == 4 and described["rates"].endswith(", ...")
    assert pacer.get_flows() == {"clocks": 1024, "active": 0} and pacer.memory_bytes() == 1024 * 16
    assert Pacer("10mbit").get_flows() == {"clocks": 0, "active": 0}

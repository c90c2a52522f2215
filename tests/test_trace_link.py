"""The TraceLink compared with twins, in virtual time: Mahimahi's queue, and a line of rates in exact
fractions."""

from __future__ import annotations

import gc
import math
import random
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.engine import Engine
from dataplane.engine.handler_access import prepare_arguments, read_handler, write_handler
from dataplane.engine.running import start
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.trace import OPPORTUNITY_BYTES, OpportunityTrace, RateTrace, Trace
from shaping.trace_link import TraceLink
from tests.test_shaping_link import HEADERS, MBIT, MS, SECOND, START_NS, Bench, Frame, gso_frame
from tests.wire_frames import Spec
from vnic.testing import VirtualNetwork

FULL = 1514  # a frame that takes one opportunity
ADDED = -10  # to a frame, by default: without Ethernet's header, with that of mm-link


class TraceBench(Bench):
    element = TraceLink


def opportunities(*times_ms: int) -> OpportunityTrace:
    return OpportunityTrace(times_ms)


# -- twins -----------------------------------------------------------------------------------------


class Mahimahi:
    """The queue of mm-link, from the description of its algorithm: an opportunity of 1504 bytes at
    each instant of the trace, one after the other; packets and parts of packets use it, and what is
    left of it is lost. Opportunities up to now are used before a packet is queued."""

    def __init__(self, times_ms: list[int], packets: int, begin: int, loop: bool) -> None:
        self.times, self.limit, self.loop = times_ms, packets, loop
        self.base, self.next = begin, 0
        self.waiting: deque[tuple[int, int]] = deque()  # (bytes, length for the comparison)
        self.moving: list[int] = []  # the packet that is being sent: bytes left, length
        self.left: list[tuple[int, int]] = []
        self.drops = 0

    def due(self) -> float:
        return math.inf if self.next is None else self.base + self.times[self.next] * MS

    def run(self, now: float, idle: bool = True) -> None:
        """idle: also while nothing waits."""
        while self.due() <= now and (idle or self.waiting or self.moving):
            at, room = self.due(), OPPORTUNITY_BYTES
            self.next += 1
            if self.next == len(self.times):
                self.next, self.base = 0, self.base + self.times[-1] * MS
                if not self.loop:
                    self.next = None
            while room:
                if not self.moving:
                    if not self.waiting:
                        break
                    self.moving = list(self.waiting.popleft())
                used = min(room, self.moving[0])
                room -= used
                self.moving[0] -= used
                if self.moving[0] == 0:
                    self.left.append((int(at), self.moving[1]))
                    self.moving = []

    def arrive(self, now: int, lengths: list[int]) -> None:
        """A frame, or the segments of a GSO frame."""
        self.run(now)
        for length in lengths:
            if len(self.waiting) == self.limit:
                self.drops += 1  # the cut-off end of a GSO frame counts as one
                break
            self.waiting.append((max(length + ADDED, 1), length))


class Steps:
    """A line of rates: a packet begins when the line is free, and its bits use the rates as they
    come."""

    def __init__(self, steps: list[tuple[int, int]], begin: int, loop: bool) -> None:
        self.steps, self.begin, self.loop = steps, begin, loop
        self.free = Fraction(begin)

    def pieces(self, since: Fraction) -> Iterator[tuple[Fraction, float, int]]:
        """(begin, end, rate) from an instant on."""
        period = self.steps[-1][0]
        base = self.begin
        if self.loop:
            base += (since - self.begin) // period * period
        while True:
            before = base
            for number, (end, rate) in enumerate(self.steps):
                last = not self.loop and number == len(self.steps) - 1
                if last or base + end > since:
                    yield max(Fraction(before), since), math.inf if last else base + end, rate
                before = base + end
            base += period

    def send(self, now: int, length: int) -> int:
        """When the last bit of a packet that arrives now has been sent."""
        bits = Fraction(length * 8 * SECOND)
        for begin, end, rate in self.pieces(max(self.free, Fraction(now))):
            if rate and begin + bits / rate <= end:
                self.free = begin + bits / rate
                return math.ceil(self.free)
            assert end != math.inf
            bits -= (end - begin) * rate
        raise AssertionError


def segments(frame: Frame) -> list[int]:
    return [frame.headers + each for each in frame.segments]


traces = st.lists(st.integers(0, 12), min_size=1, max_size=12).map(sorted).filter(lambda times: times[-1] > 0)
gaps = st.one_of(st.integers(0, 3).map(lambda n: n * MS), st.integers(0, 3 * MS), st.integers(0, 40 * MS))
sizes = st.one_of(st.integers(14, 80), st.integers(60, FULL), st.sampled_from([1513, 1514, 1515, 4000]))
arrivals = st.one_of(
    st.tuples(st.just("frame"), sizes),
    st.tuples(st.just("gso"), st.tuples(st.integers(8, 1460), st.integers(2, 40), st.integers(1, 1460))),
    st.tuples(st.just("upgrade"), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(
    times=traces, packets=st.sampled_from([1, 2, 7, 1000]), delay=st.sampled_from([0, 1, 20 * MS]), loop=st.booleans(),
    events=st.lists(st.tuples(gaps, arrivals), max_size=40),
)  # fmt: skip
def test_every_departure_is_mahimahis(times, packets, delay, loop, events):
    """Departures and drops, with frames that share opportunities, GSO frames and hand-overs."""
    trace = {"data": OpportunityTrace(times).packed, "loop": loop}
    bench, twin = TraceBench(trace=trace, queue={"packets": packets}, delay=delay), Mahimahi(times, packets, START_NS, loop)
    now = START_NS
    for gap, (kind, value) in events:
        now += gap
        bench.advance(now)
        if kind == "frame":
            bench.inject(bytes(value))
            twin.arrive(now, [value])
        elif kind == "gso":
            frame, plain = gso_frame(*value)
            bench.inject(frame)
            twin.arrive(now, segments(plain))
        else:
            bench.upgrade()
        assert bench.engine.conservation()["conserved"]
    end = now + 600 * SECOND
    bench.advance(end)
    twin.run(end, idle=False)
    assert bench.take() == [(at + delay, length) for at, length in twin.left]
    if loop:
        assert bench.counters()["queue_bytes"] == bench.counters()["line_packets"] == 0
        assert bench.dropped("queue_full") == twin.drops
    bench.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_long_trace(seed):
    """Minutes of a line like a telephone's, and traffic that finds it empty and full."""
    rng = random.Random(seed)
    times, at = [], 0
    while at < 25_000:
        at += rng.choice([0, 0, 0, 1, 1, 2, 5]) if rng.random() < 0.999 else rng.randrange(1000, 4000)
        times.append(at)
    bench, twin = TraceBench(trace=OpportunityTrace(times), queue={"packets": 50}), Mahimahi(times, 50, START_NS, True)
    now = START_NS
    for _ in range(20_000):
        now += rng.choice([0, 300_000, 1 * MS, rng.randrange(20 * MS)])
        length = rng.choice([60, 200, FULL, rng.randrange(14, FULL)])
        bench.inject_at(now, bytes(length))
        twin.arrive(now, [length])
    bench.advance(now + 600 * SECOND)
    twin.run(now + 600 * SECOND, idle=False)
    assert now - START_NS > 2 * times[-1] * MS and len(twin.left) > 5000 and twin.drops > 100
    assert bench.take() == twin.left and bench.dropped("queue_full") == twin.drops
    assert bench.counters()["sent_bytes"] == sum(max(length + ADDED, 1) for _, length in twin.left)
    bench.close()


step_rates = st.one_of(st.just(0), st.integers(1000, MBIT), st.integers(MBIT, 10**13))
step_lists = st.builds(
    lambda steps, rate: [*steps, (2 * MS, rate)],  # so that a packet takes the twin few periods
    st.lists(st.tuples(st.one_of(st.integers(1, 1000), st.integers(1, 50 * MS)), step_rates), max_size=6),
    st.integers(MBIT, SECOND),
)


def steps_of(lengths: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(end, rate) of (length, rate)."""
    return [(sum(length for length, _ in lengths[: n + 1]), rate) for n, (_, rate) in enumerate(lengths)]


@settings(max_examples=300, deadline=None)
@given(
    lengths=step_lists, loop=st.booleans(), delay=st.sampled_from([0, 7, 20 * MS]),
    events=st.lists(st.tuples(gaps, arrivals), max_size=25),
)  # fmt: skip
def test_every_departure_is_that_of_the_rates(lengths, loop, delay, events):
    steps = steps_of(lengths)
    bench = TraceBench(trace={"data": RateTrace(steps).packed, "loop": loop}, queue="100mb", delay=delay)
    twin, expected = Steps(steps, START_NS, loop), []
    now = START_NS
    for gap, (kind, value) in events:
        now += gap
        bench.advance(now)
        if kind == "upgrade":
            bench.upgrade()
            continue
        frame, plain = (bytes(value), Frame(0, [value])) if kind == "frame" else gso_frame(*value)
        bench.inject(frame)
        expected += [(twin.send(now, length) + delay, length) for length in segments(plain)]
    bench.advance(expected[-1][0] if expected else now)
    assert bench.take() == expected
    assert bench.counters()["queue_bytes"] == bench.counters()["line_packets"] == 0
    bench.close()


def test_a_constant_rate_is_that_of_a_link():
    """A trace of one rate, and of many steps of the same one."""
    rng = random.Random(5)
    events = [(rng.randrange(1_500_000), rng.randrange(14, FULL)) for _ in range(500)]
    taken = []
    for bench in (
        Bench(rate=7_654_321, queue={"packets": 9}, delay="3ms"),
        TraceBench(trace=RateTrace([(7, 7_654_321)]), queue={"packets": 9}, delay="3ms"),
        TraceBench(trace=[{"for": f"{n}ns", "rate": "7654321bit"} for n in range(1, 50)], queue={"packets": 9}, delay="3ms"),
    ):
        now = START_NS
        for gap, length in events:
            now += gap
            bench.inject_at(now, bytes(length))
        bench.advance(now + SECOND)
        taken.append((bench.take(), bench.dropped("queue_full")))
        bench.close()
    assert taken[0] == taken[1] == taken[2] and taken[0][1] > 0


# -- what users rely on ----------------------------------------------------------------------------


def leaving(bench: Bench, until_ms: int = 600_000) -> list[tuple[float, int]]:
    """(ms since the start, length) of what leaves until then."""
    bench.advance(START_NS + until_ms * MS)
    return [((at - START_NS) / MS, length) for at, length in bench.take()]


def test_small_packets_share_an_opportunity_and_a_large_one_takes_several():
    bench = TraceBench(trace=opportunities(1, 2, 3, 10))
    bench.inject(*[bytes(762)] * 2, bytes(FULL + 1), bytes(14))
    # 2 x 752 bytes fill the first; 1505 take the second and a byte of the third, which the last
    # one shares.
    assert leaving(bench) == [(1.0, 762), (1.0, 762), (3.0, FULL + 1), (3.0, 14)]
    bench.close()


def test_a_packet_of_1500_bytes_takes_one_opportunity():
    bench = TraceBench(trace=opportunities(1, 1, 1, 5))
    bench.inject(*[bytes(FULL)] * 5)
    assert [at for at, _ in leaving(bench)] == [1.0, 1.0, 1.0, 5.0, 6.0]
    bench.close()


def test_what_is_not_used_is_lost():
    bench = TraceBench(trace=opportunities(*[1] * 10, 9))
    bench.inject(bytes(14))
    bench.inject_at(START_NS + 1 * MS + 1, *[bytes(FULL)] * 2)
    assert leaving(bench) == [(1.0, 14), (9.0, FULL), (10.0, FULL)]
    bench.close()


def test_a_packet_that_arrives_with_an_opportunity_misses_it():
    bench = TraceBench(trace=opportunities(0, 4, 9))
    bench.inject(bytes(FULL))
    bench.inject_at(START_NS + 4 * MS, bytes(FULL))
    # The one at 0 ms is missed by the first packet; from the second period on it coincides with
    # the last one, at 9 ms.
    bench.inject_at(START_NS + 9 * MS - 1, bytes(FULL))
    assert leaving(bench) == [(4.0, FULL), (9.0, FULL), (9.0, FULL)]
    bench.close()


@pytest.mark.parametrize(("gap_ms", "leaves"), [(0, 1), (5, 6), (999_999, 1_000_000)])
def test_one_opportunity_each_millisecond_is_12_mbit(gap_ms, leaves):
    bench = TraceBench(trace=opportunities(1))
    bench.inject_at(START_NS + gap_ms * MS, *[bytes(FULL)] * 3)
    assert leaving(bench, 2 * 10**6) == [(float(leaves + n), FULL) for n in range(3)]
    assert bench.link.rate_bps == 1504 * 8 * 1000 and bench.link.get_rate() == "12.032mbit"
    bench.close()


def test_without_a_loop_packets_wait_at_the_end():
    bench = TraceBench(trace={"data": opportunities(2, 4).packed, "loop": False}, queue={"packets": 2})
    bench.inject(*[bytes(FULL)] * 4)
    assert leaving(bench) == [(2.0, FULL), (4.0, FULL)] and bench.dropped("queue_full") == 2
    bench.inject(*[bytes(FULL)] * 3)
    assert leaving(bench, 10**8) == [] and bench.link.get_queue()["packets"] == 2
    assert bench.link.get_trace()["played_ns"] is None
    bench.close()
    assert bench.dropped("released") == 2 and bench.dropped("queue_full") == 3


def test_without_a_loop_the_last_rate_stays():
    steps = [{"at": "0s", "rate": "1mbit"}, {"at": "10ms", "rate": "2mbit"}]
    bench = TraceBench(trace={"steps": steps, "loop": False})
    bench.inject(bytes(1250))
    bench.inject_at(START_NS + 10 * SECOND, bytes(1250))
    assert leaving(bench) == [(10.0, 1250), (10_005.0, 1250)]
    bench.close()


def test_a_rate_changes_within_a_packet():
    bench = TraceBench(
        trace=[{"for": "4ms", "rate": "1mbit"}, {"for": "6ms", "rate": "0bit"}, {"for": "10ms", "rate": "2mbit"}]
    )
    bench.inject(bytes(1250))  # 4 ms at 1 Mbit/s, none for 6 ms, 3 ms at 2 Mbit/s
    assert leaving(bench) == [(13.0, 1250)]
    bench.close()


def test_each_segment_of_a_gso_frame_leaves_as_it_would_without_gso():
    """Departures, drops and bytes are the same with and without GSO."""
    taken = []
    frame, twin = gso_frame(1000, 30, 77)
    for frames in ([frame], [bytes(length) for length in segments(twin)]):
        bench = TraceBench(trace=opportunities(1, 2, 2, 7), queue={"packets": 20}, delay="5ms")
        bench.inject(bytes(60))
        bench.inject_at(START_NS + 500_000, *frames)
        counted = bench.counters()["queue_bytes"]
        taken.append((leaving(bench), bench.counters()["sent_bytes"], counted))
        bench.close()
    assert taken[0] == taken[1] and len(taken[0][0]) == 20


def test_an_overhead_counts_and_a_queue_may_be_a_size():
    bench = TraceBench(trace=opportunities(1), overhead={"bytes": 0, "minimum": 188}, queue="400b")
    bench.inject(*[bytes(60)] * 4)
    assert [at for at, _ in leaving(bench)] == [1.0, 1.0] and bench.dropped("queue_full") == 2
    assert bench.link.describe()["queue"] == "400b" and bench.counters()["sent_bytes"] == 2 * 188
    bench.close()


def test_packets_that_wait_make_up_what_the_engine_is_late():
    bench = TraceBench(trace=opportunities(1), queue={"packets": 100})
    bench.inject(*[bytes(FULL)] * 20)
    late = START_NS + 10 * MS + 1
    bench.engine.clock.set(late)
    bench.advance(late)
    assert len(bench.take()) == 10
    bench.close()


def test_traces_of_the_same_content_share_one_schedule():
    times = random.Random(1).sample(range(1, 10**6), 1000)
    first, second = (TraceLink(OpportunityTrace(sorted(times)), name=name) for name in "ab")
    assert first.schedule is second.schedule
    digest = first.schedule.digest
    del first, second
    gc.collect()
    from shaping.trace import _schedules

    assert digest not in _schedules


# -- another trace, live ---------------------------------------------------------------------------


def change(bench: Bench, trace: object) -> None:
    write_handler([bench.link], "trace", trace, halt=str, resume=str)


def test_a_packet_goes_on_by_the_new_trace_with_what_it_has_left():
    bench = TraceBench(trace=opportunities(1, 1000))
    bench.inject(bytes(2010), bytes(FULL))  # 2000 bytes: 496 are left after 1 ms
    bench.advance(START_NS + 3 * MS)
    change(bench, {"data": opportunities(5).packed, "loop": True, "file": "other.up"})
    assert bench.link.get_trace()["file"] == "other.up"
    # at 8 ms 496 bytes and 1008 of the next packet, at 13 ms the rest
    assert leaving(bench) == [(8.0, 2010), (13.0, FULL)]
    bench.close()


def test_what_is_sent_already_keeps_its_time():
    bench = TraceBench(trace=opportunities(1), delay="50ms")
    bench.inject(*[bytes(FULL)] * 3)
    bench.advance(START_NS + 2 * MS)
    change(bench, {"data": opportunities(100).packed})
    assert leaving(bench) == [(51.0, FULL), (52.0, FULL), (152.0, FULL)]
    bench.close()


def test_rates_change_within_a_packet():
    bench = TraceBench(trace=[{"for": "1s", "rate": "1mbit"}])
    bench.inject(bytes(1250), bytes(1250))
    bench.advance(START_NS + 4 * MS)
    change(bench, [{"for": "1ms", "rate": "0bit"}, {"for": "1s", "rate": "2mbit"}])
    # 750 bytes are left: 1 ms of nothing, 3 ms; then 5 ms
    assert leaving(bench) == [(8.0, 1250), (13.0, 1250)]
    bench.close()


def test_a_trace_that_ends_before_the_packet_does_lets_it_go():
    bench = TraceBench(trace=opportunities(1, 1000))
    bench.inject(bytes(8010))
    bench.advance(START_NS + 2 * MS)
    change(bench, {"data": opportunities(1, 2).packed, "loop": False})
    assert leaving(bench) == [(2.0, 8010)]
    bench.close()


def test_another_kind_of_trace_needs_an_overhead():
    bench = TraceBench(trace=opportunities(1))
    with pytest.raises(ConfigError, match="^link: trace steps: its overhead by default is another one than that of"):
        change(bench, [{"for": "1s", "rate": "1mbit"}])
    bench.close()
    bench = TraceBench(trace=opportunities(1), overhead="none")
    bench.inject(bytes(1250))
    change(bench, [{"for": "1s", "rate": "1mbit"}])
    assert leaving(bench) == [(10.0, 1250)]
    bench.close()


def test_only_trace_and_delay_change_live():
    bench = TraceBench(trace=opportunities(1))
    before = {"trace": {"data": opportunities(1).packed}, "delay": "1ms"}
    after = {"trace": {"data": opportunities(2).packed}, "delay": "2ms"}
    assert len(prepare_arguments(bench.link, before, after)) == 2
    assert prepare_arguments(bench.link, before, {**before, "queue": {"packets": 5}}) is None
    assert read_handler(bench.link, "rate") == "12.032mbit"
    with pytest.raises(ConfigError, match="handler rate can only be read"):
        write_handler([bench.link], "rate", "1mbit", halt=str, resume=str)
    for refused in (bench.link.set_rate, bench.link.prepare_rate):
        with pytest.raises(ConfigError, match="^link: its rate follows from its trace"):
            refused("1mbit")
    write_handler([bench.link], "delay", "4ms", halt=str, resume=str)
    bench.inject(bytes(FULL))
    assert leaving(bench) == [(5.0, FULL)]
    bench.close()


def test_a_trace_changes_while_a_thread_runs():
    pool = PacketPool()
    engine = Engine("e0", pool)
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    link, rx = TraceLink(opportunities(3_600_000), name="link"), PortRx(a)
    rx >> link >> PortTx(b)
    engine.load([rx])
    start(engine)
    try:
        a.inject([number.to_bytes(4, "big") + bytes(996) for number in range(50)])
        while link.statistics()["held"] < 50:
            engine.call(lambda: None)
        write_handler([link], "trace", {"data": opportunities(1).packed}, halt=str, resume=str)
        got = []
        while len(got) < 50:
            got += b.take()
            engine.call(lambda: None)
    finally:
        engine.stop()
    assert [frame.data[:4] for frame in got] == [number.to_bytes(4, "big") for number in range(50)]
    assert engine.conservation()["conserved"]
    engine.close()
    assert pool.in_use == 0


# -- state -----------------------------------------------------------------------------------------


def halfway() -> tuple[Bench, dict]:
    """Packets wait, one is being sent, others are on the line; and the saved state."""
    bench = TraceBench(trace=opportunities(1, 2, 3, 9), delay="5ms")
    bench.inject(*[bytes(FULL + 200)] * 10)
    bench.advance(START_NS + 3 * MS + 1)
    return bench, bench.link.save_state()


def test_the_state_has_the_position():
    bench, state = halfway()
    assert state["line"] == 3 and len(state["packets"]) == 40 and state["sending"] is True
    assert (state["base_ns"], state["time_ns"], state["index"]) == (START_NS, START_NS + 9 * MS, 3)
    # 3 packets of 1704 bytes, of four opportunities
    assert state["left"] == 4 * 1504 - 3 * 1704 and state["next_ns"] == START_NS + 9 * MS and state["loop"] is True
    bench.close()


@pytest.mark.parametrize("damage", [
    {"line": -1}, {"line": 2}, {"last_ns": 5}, {"settled_ns": 0}, {"sending": 1}, {"packets": b""}, {"rate_bps": 5},
    {"rate_bps": "fast"}, {"next_ns": 2**63}, {"emptied_ns": 2**63}, {"split": 7}, {"more": 1}, {"trace": "0" * 64},
    {"trace": None}, {"index": 4}, {"index": -1}, {"index": 2}, {"index": 2**32}, {"index": True}, {"left": 0}, {"left": 1505},
    {"left": "9"}, {"left": 2**64}, {"base_ns": -1}, {"base_ns": 2**63}, {"base_ns": 5}, {"time_ns": 5}, {"time_ns": 2**64 - 1},
    {"loop": 1}, {"loop": None},
])  # fmt: skip
def test_a_damaged_state_is_refused(damage):
    bench, state = halfway()
    heir = TraceBench(trace=opportunities(1, 2, 3, 9), delay="5ms")
    old_pool, heir.pool = heir.pool, bench.pool
    heir.engine.close()
    heir.build(bench.engine.clock.now_ns)
    begins = heir.link.get_trace()
    with pytest.raises(VnicError, match="^link: ") as error:
        heir.link.load_state({**state, **damage})
    assert "\n" not in str(error.value)
    assert heir.link.get_queue()["packets"] == heir.link.get_queue()["line_packets"] == 0
    assert heir.link.get_trace() == begins
    heir.engine.close()
    bench.close()
    assert old_pool.in_use == 0


@pytest.mark.parametrize("missing", sorted(halfway()[1]))
def test_a_state_without_a_member_is_refused(missing):
    bench, state = halfway()
    del state[missing]
    with pytest.raises(VnicError, match="^link: its state is not that of a "):
        bench.link.load_state(state)
    bench.close()


@pytest.mark.parametrize("damage", [
    {"index": 2}, {"left": 10**6}, {"time_ns": START_NS - 1}, {"time_ns": START_NS + 5 * MS}, {"time_ns": 2**64 - 1, "left": 1},
])  # fmt: skip
def test_a_damaged_position_among_rates_is_refused(damage):
    bench = TraceBench(trace=[{"for": "5ms", "rate": "1mbit"}, {"for": "5ms", "rate": "2mbit"}])
    state = bench.link.save_state()
    with pytest.raises(VnicError, match="^link: its trace has no position"):
        bench.link.load_state({**state, **damage})
    bench.link.load_state(state)
    bench.close()


# -- hostile ---------------------------------------------------------------------------------------

PACKED = opportunities(1, 5).packed


@pytest.mark.parametrize(("config", "says"), [
    ({"trace": None}, "trace nothing: expected steps"),
    ({"trace": "lte.up"}, "trace 'lte.up': expected steps"),
    ({"trace": 5}, "trace 5: expected steps"),
    ({"trace": []}, "steps a list: expected"),
    ({"trace": {}}, "nothing has not been read"),
    ({"trace": {"file": "/etc/shadow"}}, "'/etc/shadow' has not been read"),
    ({"trace": {"file": 5, "data": PACKED}}, "file 5: expected a path"),
    ({"trace": {"data": PACKED, "loop": "on"}}, "loop 'on': expected yes or no"),
    ({"trace": {"data": PACKED, "lop": True}}, "unknown key 'lop'; did you mean 'loop'"),
    ({"trace": {"data": PACKED, "digest": "00"}}, "its data is of another trace than its digest"),
    ({"trace": {"data": PACKED, "steps": []}}, "has steps and a file"),
    ({"trace": {"data": "opportunities:!!"}}, "damaged"),
    ({"trace": {"data": PACKED[:-8]}}, "damaged|cut off"),
    ({"trace": {"data": "rates:" + PACKED.partition(":")[2]}}, "unknown kind"),
    ({"trace": {"data": "music:" + PACKED.partition(":")[2]}}, "unknown kind"),
    ({"trace": [{"for": "1s", "rate": "0bit"}]}, "no rates above 0"),
    ({"trace": [{"for": "0s", "rate": "1mbit"}]}, "step 1 is for 0s"),
    ({"trace": [{"for": "1s"}]}, "step 1 has no rate"),
    ({"trace": [{"for": "1s", "rate": 0}]}, "step 1: rate 0 could mean no limit or nothing at all"),
    ({"trace": [{"for": "1s", "rate": "none"}]}, "step 1: rate 'none' could mean"),
    ({"trace": [{"for": "1s", "rate": "5mbps"}]}, "step 1: rate '5mbps': mbps is ambiguous"),
    ({"trace": [{"for": "1s", "rate": 5}]}, "step 1: rate '5' has no unit"),
    ({"trace": [{"for": "1s", "rate": "1bit"}]}, "step 1: rate 1bit: expected 1kbit to 10tbit"),
    ({"trace": [{"for": 5, "rate": "5mbit"}]}, "step 1: time '5' has no unit"),
    ({"trace": [{"for": "25h", "rate": "5mbit"}]}, "last longer than 24h"),
    ({"trace": [{"for": "1s", "at": "0s", "rate": "5mbit"}]}, "step 1: expected at"),
    ({"trace": [{"for": "1s", "rate": "5mbit"}, {"at": "2s"}]}, "step 2: expected for"),
    ({"trace": [{"for": "1s", "rate": "5mbit", "loss": "1%"}]}, "step 1: unknown key 'loss'"),
    ({"trace": ["5mbit"]}, "step 1 '5mbit': expected"),
    ({"trace": [{"at": "1s", "rate": "5mbit"}, {"at": "2s"}]}, "step 1 is at 1s: expected the first at 0s"),
    ({"trace": [{"at": "0s", "rate": "5mbit"}]}, "the last step has no end"),
    ({"trace": [{"at": "0s"}]}, "step 1 has no rate"),
    ({"trace": [{"at": "0s", "rate": "5mbit"}, {"at": "0s"}]}, "step 2 is at 0ns, after one at 0ns"),
    ({"trace": [{"at": "0s"}, {"at": "1s", "rate": "5mbit"}, {"at": "2s"}]}, "step 1 has no rate, and is not the end"),
    ({"queue": "100ms"}, "queue '100ms': the rate varies, so a time is no bound"),
    ({"queue": 5}, "queue 5: the rate varies"),
    ({"queue": "50"}, "queue"),
    ({"queue": {"packets": 0}}, "expected a time, a size or packets"),
    ({"overhead": "adsl"}, "overhead 'adsl': unknown"),
    ({"delay": "2h"}, "delay of 2h: expected at most 1h"),
])  # fmt: skip
def test_wrong_configuration_is_one_line(config, says):
    with pytest.raises(ConfigError, match=says) as error:
        TraceLink(name="line", **{"trace": opportunities(1), **config})
    assert "\n" not in str(error.value) and str(error.value).startswith("line: ")


@pytest.mark.parametrize(
    "trace", [opportunities(86_400_000), RateTrace([(MS, 1000), (86400 * SECOND, 0)])], ids=["times", "rates"]
)
def test_a_frame_that_would_take_years_does_not_stop_the_engine(trace: Trace):
    """The largest frame and the slowest line: it waits until the element is removed."""
    frame, _ = gso_frame(1, 60_000, 1)
    bench = TraceBench(trace=trace, queue="1gb", overhead={"bytes": 256}, parsed=False)
    bench.inject(frame, bytes(60))
    bench.advance(START_NS + 3600 * 24 * SECOND)
    assert bench.take() == [] and bench.engine.conservation()["conserved"]
    bench.close()
    assert bench.link.statistics()["held"] == 0


def test_a_line_of_a_configuration_has_its_parts():
    text = f"""
    nics:
      web:
        egress:
          elements:
            - {{element: TraceLink, name: line, queue: {{packets: 2}}, delay: 1ms, trace: {{data: "{PACKED}", file: x.up}}}}
      db: {{}}
    """
    frame = Spec(payload=bytes(500)).build()
    with VirtualNetwork(text) as net:
        net.send("web", [frame] * 6)
        begun = net.now_ns
        net.run()
        assert [each.time_ns - begun for each in net.take("db")] == [2 * MS, 2 * MS]
        assert sum(net.drops().values()) == 4
    assert HEADERS + 500 + ADDED < 752

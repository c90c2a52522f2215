"""The shaper compared with a schedule in exact fractions, in virtual time."""

from __future__ import annotations

import math
from collections import deque
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handover import forget_engine, load_engine, save_engine
from dataplane.engine.running import advance, start
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.pool_share import PoolShare
from shaping.shaper import Shaper
from tests.wire_frames import TCP, UDP, Spec, big_specs

START_NS = 10**9
MBIT = 10**6


class Bench:
    """a >> shaper >> b in virtual time."""

    def __init__(self, *, small: int = 4096, large: int = 64, **config: object) -> None:
        self.pool = PacketPool(small=small, large=large)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=START_NS))
        self.a, self.b = MemoryPort("a", 0), MemoryPort("b", 1)
        self.shaper = Shaper(**config)
        rx = PortRx(self.a)
        rx >> self.shaper >> PortTx(self.b)
        self.engine.load([rx])

    def inject(self, at_ns: int, sizes: list[int]) -> None:
        """Frames that arrive at `at_ns`, numbered in their first four bytes."""
        advance(self.engine, at_ns - 1) if at_ns - 1 >= self.engine.clock.now_ns else None
        self.engine.clock.set(at_ns)
        self.a.inject([size.to_bytes(4, "big") + bytes(size - 4) for size in sizes])
        advance(self.engine, at_ns)

    def inject_frames(self, frames: list[bytes]) -> None:
        """Frames that arrive now."""
        self.a.inject(frames)
        advance(self.engine, self.engine.clock.now_ns)

    def departures(self) -> list[tuple[int, int]]:
        """(time, length) of the packets sent since the last call."""
        return [(frame.time_ns, len(frame.data)) for frame in self.b.take()]

    def counters(self) -> dict[str, int]:
        return self.shaper.statistics()["counters"]

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


def schedule(arrivals: list[tuple[int, int]], rate: int, burst_ns: int, limit: int) -> tuple[list[tuple[int, int]], int]:
    """The reference: (departures, tail drops) of a virtual-clock shaper, in exact arithmetic."""
    clock = Fraction(0)  # when the wire has sent all earlier packets
    waiting: deque[int] = deque()
    out: list[tuple[int, int]] = []
    drops = 0

    def run_until(now: int) -> None:
        nonlocal clock
        while waiting and math.ceil(clock) <= now:
            size = waiting.popleft()
            # A packet leaves at its turn, but not before its arrival.
            out.append((max(math.ceil(clock), came.popleft()), size))
            clock += Fraction(size * 8 * 10**9, rate)

    came: deque[int] = deque()
    for now, size in arrivals:
        run_until(now)
        if not waiting:
            clock = max(clock, Fraction(now - burst_ns))
        elif sum(waiting) + size > limit:
            drops += 1
            continue
        waiting.append(size)
        came.append(now)
    run_until(2**63)
    return out, drops


def test_backlogged_departures_are_the_closed_form():
    rate, size, count = 7_777_777, 1514, 80
    bench = Bench(rate=rate, queue="1mb", burst=0)
    bench.inject(START_NS, [size] * count)
    advance(bench.engine, START_NS + 10**9)
    assert bench.departures() == [(START_NS + math.ceil(Fraction(i * size * 8 * 10**9, rate)), size) for i in range(count)]
    assert bench.counters()["passed"] == 1 and bench.counters()["delayed"] == count - 1
    bench.close()


@settings(max_examples=150, deadline=None)
@given(
    rate=st.one_of(st.integers(1000, 10**6), st.integers(10**6, 10**9), st.integers(10**9, 10**11)),
    burst_ns=st.sampled_from([1, 1000, 250_000, 3_000_000]),
    limit=st.sampled_from([3000, 20_000, 10**6]),
    arrivals=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 10**10)),
            st.one_of(st.integers(14, 1514), st.integers(14, 60_000)),
        ),
        min_size=1, max_size=60,
    ),
)  # fmt: skip
def test_every_departure_is_that_of_the_reference(rate, burst_ns, limit, arrivals):
    bench = Bench(rate=rate, queue=f"{limit}b", burst=burst_ns, small=1024, large=256)
    now, timed = START_NS, []
    for gap, size in arrivals:
        now += gap
        timed.append((now, size))
    for at_ns, size in timed:
        bench.inject(at_ns, [size])
    advance(bench.engine, 2**62)
    expected, drops = schedule(timed, rate, burst_ns, limit)
    assert bench.departures() == expected
    assert bench.shaper.statistics()["dropped"]["queue_full"] == drops
    assert bench.counters()["sent_bytes"] == sum(size for _, size in expected)
    assert bench.counters()["queue_bytes"] == 0
    bench.close()


def feed(bench: Bench, rate: int, seconds: float, late_ns: list[int]) -> list[tuple[int, int]]:
    """Keeps the queue busy; timers are late by `late_ns`, as on a loaded machine."""
    out: list[tuple[int, int]] = []
    end = START_NS + int(seconds * 10**9)
    step = 0
    now = START_NS
    frames = max(2, int(rate * 0.01 / 8 / 1514))
    while now < end:
        bench.a.inject([bytes(1514)] * frames)
        upto = now + 5_000_000
        while now < upto:
            now += late_ns[step % len(late_ns)]
            step += 1
            bench.engine.clock.set(now)  # nothing ran meanwhile: all timers since then are late
            advance(bench.engine, now)
        out += bench.departures()
    return out


@pytest.mark.parametrize("rate", [10 * MBIT, 100 * MBIT, 1000 * MBIT])
@pytest.mark.parametrize("late_ns", [[1_000], [60_000, 90_000, 250_000, 40_000], [50_000] * 40 + [3_000_000]])
def test_rate_over_seconds_and_in_every_window(rate, late_ns):
    # At 1 Gbit/s a second has 82,563 frames: half of it is enough, and fast.
    seconds = 5.0 if rate <= 10 * MBIT else 0.5
    if late_ns == [1_000]:
        late_ns = [20_000]
    bench = Bench(rate=rate, queue="20ms", small=16384)
    out = feed(bench, rate, seconds, late_ns)
    end = START_NS + int(seconds * 10**9)
    total = sum(size for _, size in out) * 8 / seconds
    # 250 us of burst and one frame, in 0.5 s
    assert abs(total / rate - 1) < (0.002 if seconds >= 5 else 0.008)
    window = 100_000_000
    for begin in range(START_NS + 10_000_000, end - window, 7_000_000):
        bits = sum(size for at_ns, size in out if begin <= at_ns < begin + window) * 8
        worst = 0.02 + (max(late_ns) / window if max(late_ns) > 10**6 else 0)
        assert abs(bits / (rate * window / 1e9) - 1) < worst
    bench.close()


def test_idle_time_earns_no_more_than_the_burst():
    bench = Bench(rate=10 * MBIT, queue="1mb", burst="2ms")
    bench.inject(START_NS + 10**9, [1250] * 10)  # a frame is 1 ms
    advance(bench.engine, START_NS + 2 * 10**9)
    times = [at - START_NS - 10**9 for at, _ in bench.departures()]
    assert times == [0, 0, 0, *(i * 10**6 for i in range(1, 8))]
    bench.close()


def test_lateness_is_made_up_in_full_while_packets_wait():
    bench = Bench(rate=10 * MBIT, queue="1mb", burst=0)
    bench.inject(START_NS, [1250] * 100)
    bench.engine.clock.set(START_NS + 49_500_000)
    advance(bench.engine, START_NS + 49_500_000)
    assert len(bench.departures()) == 50
    advance(bench.engine, START_NS + 50_000_000)
    assert bench.departures() == [(START_NS + 50_000_000, 1250)]
    bench.close()


@pytest.mark.parametrize(("idle_ms", "at_once"), [(0, 30), (10, 20), (29, 3), (500, 3)])
def test_lateness_is_made_up_by_what_comes_soon_after(idle_ms, at_once):
    """The engine is 39 ms late for a queue of 10 frames of 1 ms; later packets get the other 29 ms,
    minus the time until they arrive."""
    bench = Bench(rate=10 * MBIT, queue="1mb", burst="2ms")
    bench.inject(START_NS, [1250] * 13)
    assert len(bench.departures()) == 3  # a burst of 2 ms, and one more
    late = START_NS + 40 * 10**6  # the next was due after 1 ms, the last after 10
    bench.engine.clock.set(late)
    advance(bench.engine, late)
    assert len(bench.departures()) == 10
    bench.inject(late + idle_ms * 10**6, [1250] * 60)
    assert len(bench.departures()) == at_once
    bench.close()


def test_the_rate_changes_live():
    bench = Bench(rate=1 * MBIT, queue="1mb", burst=0)
    bench.inject(START_NS, [1250] * 7)  # 10 ms each
    advance(bench.engine, START_NS + 12_000_000)
    assert [at - START_NS for at, _ in bench.departures()] == [0, 10_000_000]
    bench.shaper.set_rate("2mbit")  # 8 ms of the second frame remain: 4 ms at the new rate
    advance(bench.engine, START_NS + 21_500_000)
    assert [at - START_NS for at, _ in bench.departures()] == [16_000_000, 21_000_000]
    bench.shaper.set_rate("100kbit")  # 4.5 ms at 2 Mbit/s remain: 90 ms
    advance(bench.engine, START_NS + 200_000_000)
    assert [at - START_NS for at, _ in bench.departures()] == [111_500_000]
    assert bench.shaper.statistics()["held"] == 2
    bench.shaper.set_rate(None)
    advance(bench.engine, START_NS + 200_000_000)
    assert [at - START_NS for at, _ in bench.departures()] == [200_000_000] * 2
    bench.inject(START_NS + 300_000_000, [60] * 600)
    assert len(bench.departures()) == 600
    assert bench.shaper.describe()["rate"] == "unlimited"
    bench.close()


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 50_000_000), st.one_of(st.none(), st.integers(1000, 10**11))), max_size=20))
def test_changes_of_rate_neither_lose_nor_reorder(changes):
    bench = Bench(rate="10mbit", queue="1mb")
    now = START_NS
    sizes = [60 + i for i in range(500)]
    bench.inject(now, sizes)
    for gap, rate in changes:
        now += gap
        advance(bench.engine, now)
        bench.shaper.set_rate(rate)
        assert bench.engine.conservation()["conserved"]
    bench.shaper.set_rate(0)
    advance(bench.engine, now)
    out = bench.departures()
    assert [size for _, size in out] == sizes
    assert [at for at, _ in out] == sorted(at for at, _ in out)
    bench.close()


def test_unlimited_passes_batches_as_they_are():
    bench = Bench()
    bench.inject(START_NS, [60] * 100)
    assert len(bench.departures()) == 100
    assert bench.counters()["passed"] == 100 and bench.shaper.rate_bps == 0
    bench.close()


def test_the_queue_is_bounded_by_bytes_and_by_the_pool():
    bench = Bench(rate="10mbit", queue="10000b")
    bench.inject(START_NS, [1000] * 20)
    assert bench.shaper.statistics()["dropped"]["queue_full"] == 9
    assert bench.counters()["queue_bytes"] == bench.counters()["queue_bytes_max"] == 10_000
    advance(bench.engine, START_NS + 10**9)
    assert len(bench.departures()) == 11
    bench.close()
    bench = Bench(rate="10gbit", queue="1s", burst=0, small=400, large=20)
    bench.inject(START_NS, [60_000] * 10 + [60] * 150)
    # The first leaves at once; then a quarter of 20 large and of 400 small buffers may wait.
    assert bench.shaper.statistics()["held"] == 5 + 100
    assert bench.shaper.statistics()["dropped"]["queue_full"] == 4 + 50
    bench.close()


def sharing(share: PoolShare, number: int, **config: object) -> Bench:
    """As gso_bench, with a share of a pool that others use, too."""
    bench = gso_bench(**config)
    bench.shaper = Shaper(name=f"shaper{number}", rate="8kbit", queue="10s", burst=0)
    bench.shaper.join(share)
    rx = PortRx(bench.a, name="rx")
    rx >> Parse() >> bench.shaper >> PortTx(bench.b)
    bench.engine.load([rx])
    return bench


def test_several_shapers_hold_no_more_than_their_share():
    """On all engines together, for all packets; each shaper may hold at least one packet."""
    share = PoolShare(small=30, large=2)
    benches = [sharing(share, number) for number in range(3)]
    short, long = Spec(protocol=UDP).build(), Spec(payload=bytes(4000)).build()
    benches[0].inject_frames([short] * 26)  # the first leaves at once
    assert share.packets == (25, 0)
    benches[1].inject_frames([short] * 20 + [long] * 4)
    assert share.packets == (30, 2)
    benches[2].inject_frames([short] * 20)
    assert share.packets == (31, 2)  # an empty queue accepts one
    assert [bench.shaper.statistics()["held"] for bench in benches] == [25, 7, 1]
    assert [bench.shaper.statistics()["dropped"]["queue_full"] for bench in benches] == [0, 16, 18]
    for bench in benches:
        advance(bench.engine, START_NS + 60 * 10**9)
    assert share.packets == (0, 0)
    benches[0].inject_frames([short] * 20)
    assert share.packets == (19, 0)
    for bench in benches:
        bench.close()
    assert share.packets == (0, 0)


def test_a_frame_is_cut_into_as_many_pieces_as_the_share_has_room_for():
    share = PoolShare(small=10, large=10)
    bench, spec = sharing(share, 0), Spec(payload=bytes(i % 251 for i in range(16_000)))
    bench.shaper.set_rate("400kbit")
    bench.a.inject([spec.frame(8), bytes(60)])
    out = []
    for ms in range(0, 3000, 100):
        advance(bench.engine, START_NS + ms * 10**6)
        assert share.packets[0] <= 11 and bench.engine.conservation()["conserved"]
        out += bench.b.take()
    assert b"".join(frame.data[spec.payload_offset :] for frame in out[:-1]) == spec.payload and len(out) == 2001
    assert share.packets == (0, 0)
    bench.close()


def test_a_share_goes_along_when_an_engine_is_handed_over():
    shares = [PoolShare(small=30, large=2) for _ in range(2)]
    old, new = (sharing(share, 0) for share in shares)
    old.inject_frames([Spec(protocol=UDP).build()] * 26)
    successor = Engine("e0", old.pool, clock=Clock(virtual=True, start_ns=START_NS))
    rx = new.engine.sources[0]
    new.engine.load([])
    successor.load([rx])
    load_engine(successor, save_engine(old.engine))
    assert [share.packets for share in shares] == [(25, 0), (25, 0)]
    forget_engine(old.engine)
    assert [share.packets for share in shares] == [(0, 0), (25, 0)]
    with pytest.raises(ConfigError, match="shaper0: runs already"):
        new.shaper.join(shares[0])
    successor.close()
    assert shares[1].packets == (0, 0)
    old.engine.close()
    new.close()


def test_a_limit_in_time_is_that_time_at_the_rate():
    assert Shaper("1mbit", queue="20ms").queue_limit_bytes == 2500
    assert Shaper("1gbit", queue="100ms").queue_limit_bytes == 12_500_000
    assert Shaper("10tbit", queue="1h").queue_limit_bytes == 10**13 // 8 * 3600
    assert Shaper(queue="20ms").queue_limit_bytes is None  # nothing waits without a rate
    assert Shaper("1mbit", queue="20ms").describe() == {"rate": "1mbit", "queue": "20ms", "queue_limit": "2500b"}


@pytest.mark.parametrize(
    ("rate", "queue_ms"), [(MBIT, 20), (10 * MBIT, 10), (MBIT // 10, 100), (10 * MBIT, 1), (100 * MBIT, 20)]
)
@pytest.mark.parametrize("gso", [False, True])
def test_no_packet_waits_longer_than_the_queue_says(rate, queue_ms, gso):
    """For plain frames and for GSO frames, which are longer than the whole queue: at most the
    queue's time and one frame's; drops do not lower the output rate."""
    bench = gso_bench(rate=rate, queue=f"{queue_ms}ms", burst=0, small=8192, large=256)
    frame_ns = 1514 * 8 * 10**9 // rate
    frame = Spec(payload=bytes(40 * 1460)).frame(1460) if gso else Spec(payload=bytes(1460)).build()
    out = []
    for step in range(120):
        bench.inject_frames([frame] * (1 if gso else 3))
        advance(bench.engine, START_NS + (step + 1) * frame_ns)
        out += bench.departures()
    counters = bench.counters()
    assert counters["sojourn_max_ns"] <= queue_ms * 10**6 + frame_ns
    assert bench.shaper.statistics()["dropped"]["queue_full"] > 0
    # A GSO frame leaves in pieces of at most 1 ms: one may be partly sent.
    assert 120 * 1514 <= counters["sent_bytes"] <= 121 * 1514 + rate // 8000
    assert gso or {size for _, size in out} == {1514}
    assert counters["queue_bytes_max"] <= max(bench.shaper.queue_limit_bytes, 1514)
    advance(bench.engine, 2**62)
    bench.close()


@pytest.mark.parametrize("limit_bytes", [100, 1514, 5000, 9083, 9084, 60_000])
def test_of_a_gso_frame_the_first_segments_that_fit_are_queued(limit_bytes):
    """The same bytes that a queue of segments would have accepted; the others count as one dropped
    packet."""
    bench = gso_bench(rate="1mbit", queue=f"{limit_bytes}b", burst=0)
    spec = Spec(payload=bytes(i % 251 for i in range(20 * 1460)), protocol=TCP)
    bench.inject_frames([bytes(60), spec.frame(1460)])
    statistics = bench.shaper.statistics()
    fit = min(max(limit_bytes // 1514, 1), 20)
    assert statistics["dropped"]["queue_full"] == (fit < 20) and statistics["held"] >= 1
    advance(bench.engine, START_NS + 10**10)
    out = bench.b.take()[1:]
    assert b"".join(frame.data[spec.payload_offset :] for frame in out) == spec.payload[: fit * 1460]
    assert [len(frame.data) for frame in out] == [1514] * fit
    assert bench.engine.conservation()["conserved"]
    bench.close()


def test_a_gso_frame_behind_others_gets_the_rest_of_the_queue():
    bench = gso_bench(rate="1mbit", queue="10000b", burst=0)
    spec = Spec(payload=bytes(20 * 1460))
    bench.inject_frames([bytes(60), Spec(payload=bytes(946)).build(), spec.frame(1460), spec.frame(1460), bytes(64), bytes(64)])
    # 1000 bytes wait already: 5 segments of 1514 bytes fit, then nothing of the next, 1430 bytes
    # are left for small frames.
    assert bench.counters()["queue_bytes"] == 1000 + 5 * 1514 + 128
    assert bench.shaper.statistics()["dropped"]["queue_full"] == 2
    advance(bench.engine, START_NS + 10**10)
    assert [len(frame.data) for frame in bench.b.take()] == [60, 1000, *[1514] * 5, 64, 64]
    bench.close()


def test_lifting_the_rate_while_a_gso_frame_waits_cuts_nothing_off():
    bench = gso_bench(rate="1mbit", queue="20ms", burst=0)
    bench.inject_frames([bytes(60), bytes(1000)])
    bench.shaper.set_rate(None)
    spec = Spec(payload=bytes(20 * 1460))
    bench.a.inject([spec.frame(1460)] * 3)
    advance(bench.engine, bench.engine.clock.now_ns)
    assert sum(len(frame.data) > 1514 for frame in bench.b.take()) == 3
    assert bench.shaper.statistics()["dropped"]["queue_full"] == 0
    bench.close()


def gso_bench(**config: object) -> Bench:
    """As Bench, with Parse before the shaper: only parsed frames are cut."""
    bench = Bench(**config)
    rx = PortRx(bench.a, name="rx")
    rx >> Parse() >> bench.shaper
    bench.engine.load([rx])
    return bench


@pytest.mark.parametrize("kind", sorted(big_specs()))
@pytest.mark.parametrize("rate", [1 * MBIT, 10 * MBIT, 25 * MBIT])
def test_a_gso_frame_worth_more_than_a_millisecond_is_cut(kind, rate):
    bench = gso_bench(rate=rate, queue="1mb", burst=0)
    spec, gso_size = big_specs()[kind], 700
    whole = spec.segments(gso_size)
    each = max(1, rate // 8000 // (spec.payload_offset + gso_size))
    bench.a.inject([spec.frame(gso_size), bytes(60)])
    advance(bench.engine, START_NS + 10**9)
    out = bench.b.take()
    groups = [whole[i : i + each] for i in range(0, len(whole), each)]
    assert len(out) == len(groups) + 1 and len(out[-1].data) == 60
    clock = Fraction(START_NS)
    for frame, group in zip(out, groups, strict=False):
        wire = sum(len(part.build()) for part in group)
        assert frame.time_ns == math.ceil(clock)
        assert wire * 8 * 1000 <= rate or len(group) == 1
        assert frame.data[spec.payload_offset :] == b"".join(part.payload for part in group)
        assert (frame.gso_size, bool(frame.gso_type)) == ((gso_size, True) if len(group) > 1 else (0, False))
        clock += Fraction(wire * 8 * 10**9, rate)
    assert out[-1].time_ns == math.ceil(clock)
    assert bench.counters()["split"] == 1 and bench.shaper.statistics()["generated"] == len(groups) - 1
    assert bench.counters()["sent_bytes"] == sum(len(part.build()) for part in whole) + 60
    assert bench.counters()["queue_bytes"] == 0
    bench.close()


def test_a_gso_frame_worth_less_than_a_millisecond_stays_whole():
    bench = gso_bench(rate="1gbit")
    bench.a.inject([Spec(payload=bytes(60_000)).frame(1448)])
    advance(bench.engine, START_NS)
    assert len(bench.b.take()) == 1 and bench.counters()["split"] == 0
    bench.close()


def many_pieces(**config: object) -> tuple[Bench, Spec]:
    """A hostile frame: many more segments than a batch holds, and a frame behind it."""
    bench = gso_bench(queue="1mb", burst=0, **config)
    spec = Spec(payload=bytes(i % 251 for i in range(16_000)))
    bench.a.inject([spec.frame(8), bytes(60)])
    return bench, spec


def test_more_pieces_than_a_batch_keep_their_order():
    bench, spec = many_pieces(rate="400kbit")
    advance(bench.engine, START_NS + 10**8)
    assert bench.engine.conservation()["conserved"] and 0 < bench.shaper.statistics()["held"] <= 257
    advance(bench.engine, START_NS + 3 * 10**9)
    out = bench.b.take()
    assert b"".join(frame.data[spec.payload_offset :] for frame in out[:-1]) == spec.payload and len(out) == 2001
    assert bench.shaper.statistics()["generated"] == 1999 and bench.counters()["queue_bytes"] == 0
    bench.close()


def test_the_rate_is_lifted_in_the_middle_of_a_frame():
    bench, spec = many_pieces(rate="400kbit")
    advance(bench.engine, START_NS + 10**8)
    bench.shaper.set_rate(None)
    advance(bench.engine, START_NS + 10**8)
    out = bench.b.take()
    assert b"".join(frame.data[spec.payload_offset :] for frame in out[:-1]) == spec.payload and len(out[-1].data) == 60
    assert bench.counters()["queue_bytes"] == 0 and bench.shaper.statistics()["held"] == 0
    bench.close()


def test_closing_in_the_middle_of_a_frame():
    bench, _ = many_pieces(rate="400kbit")
    advance(bench.engine, START_NS + 10**7)
    bench.close()
    assert bench.shaper.statistics()["held"] == 0


def test_pieces_without_a_buffer_are_counted():
    bench, _ = many_pieces(rate="400kbit", small=20, large=4)
    advance(bench.engine, START_NS + 3 * 10**9)
    statistics = bench.shaper.statistics()
    assert statistics["generated"] == 1999 and statistics["dropped"]["no_buffer"] == 2001 - len(bench.b.take()) > 0
    assert statistics["counters"]["queue_bytes"] == 0
    bench.close()


def test_an_unparsed_gso_frame_goes_whole():
    bench = Bench(rate="1mbit")
    bench.a.inject([Spec(payload=bytes(3000)).frame(1000)])
    advance(bench.engine, START_NS)
    assert len(bench.b.take()) == 1
    bench.close()


def test_closing_drops_what_is_held_under_its_reason():
    bench = Bench(rate="10kbit", queue="1mb")
    bench.inject(START_NS, [100] * 10)
    held = bench.shaper.statistics()["held"]
    bench.close()
    assert held == 9
    assert bench.shaper.statistics()["dropped"]["released"] == 9 and bench.shaper.statistics()["held"] == 0


@pytest.mark.parametrize("config", [
    {"rate": "10"}, {"rate": "fast"}, {"rate": -1}, {"rate": 999}, {"rate": 10**14}, {"rate": True}, {"queue": "-1ms"},
    {"queue": -5}, {"queue": "12kbb"}, {"burst": "2s"}, {"burst": "many"},
])  # fmt: skip
def test_wrong_configuration_is_one_line(config):
    with pytest.raises(ConfigError) as error:
        Shaper(name="limit", **config)
    assert str(error.value).startswith("limit: ") and "\n" not in str(error.value)


def test_a_wrong_rate_changes_nothing():
    bench = Bench(rate="10mbit")
    with pytest.raises(ConfigError):
        bench.shaper.set_rate("nonsense")
    assert bench.shaper.rate_bps == 10 * MBIT
    bench.close()


def test_the_rate_changes_while_a_thread_runs():
    pool = PacketPool()
    engine = Engine("e0", pool)
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    shaper, rx = Shaper("8kbit", queue="1mb"), PortRx(a)
    rx >> shaper >> PortTx(b)
    engine.load([rx])
    start(engine)
    try:
        a.inject([bytes(1000)] * 50)  # a second each
        while shaper.statistics()["held"] == 0:
            engine.call(lambda: None)
        shaper.set_rate("100mbit")  # 4 ms
        got = 0
        while got < 50:
            got += len(b.take())
            engine.call(lambda: None)
    finally:
        engine.stop()
    assert engine.conservation()["conserved"]
    engine.close()
    assert pool.in_use == 0

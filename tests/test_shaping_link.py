"""The Link compared with the closed form of a bottleneck line in exact fractions, in virtual time."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handler_access import read_handler, write_handler
from dataplane.engine.handover import forget_engine, load_engine, save_engine
from dataplane.engine.running import advance, start
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.link import Link
from shaping.overhead import KEYWORDS, NOTHING, overhead_of
from shaping.pool_share import PoolShare
from tests.wire_frames import Spec
from vnic.testing import VirtualNetwork

START_NS = 10**9
MBIT, MS, SECOND = 10**6, 10**6, 10**9
HEADERS = Spec(payload=b"x").payload_offset


class Bench:
    """a >> Parse >> link >> b in virtual time."""

    element = Link

    def __init__(self, *, small: int = 8192, large: int = 512, parsed: bool = True, **config: object) -> None:
        self.pool = PacketPool(small=small, large=large)
        self.config, self.parsed = config, parsed
        self.out: list[tuple[int, int]] = []
        self.build(START_NS)

    def build(self, now_ns: int) -> None:
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=now_ns))
        self.a, self.b = MemoryPort("a", 0), MemoryPort("b", 1)
        self.link = self.element(name="link", **self.config)
        rx = PortRx(self.a)
        (rx >> Parse(name="parse") if self.parsed else rx) >> self.link >> PortTx(self.b)
        self.engine.load([rx])

    def upgrade(self) -> None:
        """Hands the engine over to another one, which continues."""
        old, taken = self.engine, self.take()
        self.build(old.clock.now_ns)
        load_engine(self.engine, save_engine(old))
        forget_engine(old)
        old.close()
        self.out = taken

    def advance(self, at_ns: int) -> None:
        advance(self.engine, at_ns)

    def inject(self, *frames: object) -> None:
        """Frames that arrive now."""
        self.a.inject(list(frames))
        self.advance(self.engine.clock.now_ns)

    def inject_at(self, at_ns: int, *frames: object) -> None:
        """Frames that arrive at an instant, behind what leaves until then."""
        self.advance(at_ns)
        self.inject(*frames)

    def take(self) -> list[tuple[int, int]]:
        """(time, length) of what has left since the last call."""
        found = self.out + [(frame.time_ns, len(frame.data)) for frame in self.b.take()]
        self.out = []
        return found

    def counters(self) -> dict[str, int]:
        return self.link.statistics()["counters"]

    def dropped(self, reason: str) -> int:
        return self.link.statistics()["dropped"][reason]

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


# -- the reference ---------------------------------------------------------------------------------


def plain(length: int) -> int:
    return length


def atm(length: int) -> int:
    return -(-length // 48) * 53


def ptm(length: int) -> int:
    return length + -(-length // 64)


def framed(added: int, minimum: int, cell: Callable[[int], int]) -> Callable[[int], int]:
    return lambda length: cell(max(length + added, minimum, 1))


@dataclass
class Frame:
    """A frame of `segments` payloads that each have `headers`; a plain frame: 0 and its length."""

    headers: int
    segments: list[int]

    def length(self) -> int:
        return self.headers + sum(self.segments)


class Line:
    """t(n) = max(t(n-1), a(n)) + length / rate; the packet leaves at ceil(t(n) + delay), but not
    before the packet in front of it."""

    def __init__(self, rate: int, delay: int, on_line: Callable[[int], int], queue: str | int | dict) -> None:
        self.rate, self.delay, self.on_line, self.queue = rate, delay, on_line, queue
        self.clock = Fraction(0)  # when the last bit of all transmissions so far has been sent
        self.waiting: deque[Frame] = deque()
        self.left: list[tuple[int, int]] = []  # (time, length), in order
        self.before = 0  # release time of the packet in front of the last one that left
        self.drops = 0

    def bytes(self, frame: Frame) -> int:
        return sum(self.on_line(frame.headers + each) for each in frame.segments)

    def leave(self, frame: Frame) -> None:
        self.before = self.left[-1][0] if self.left else 0
        self.left.append((max(self.before, math.ceil(self.clock + self.delay)), frame.length()))

    def start(self, now: int) -> None:
        """The transmissions that have begun by now."""
        while self.waiting and (self.rate == 0 or math.ceil(self.clock) <= now):
            frame = self.waiting.popleft()
            if self.rate == 0:
                self.clock = Fraction(now)
            elif len(frame.segments) > 1:
                quantum = self.rate * MS // (8 * SECOND)
                each = max(quantum // self.on_line(frame.headers + frame.segments[0]), 1)
                if self.bytes(frame) > quantum and each < len(frame.segments):
                    pieces = [frame.segments[i : i + each] for i in range(0, len(frame.segments), each)]
                    self.waiting.extendleft(Frame(frame.headers, piece) for piece in reversed(pieces))
                    continue
            if self.rate:
                self.clock += Fraction(self.bytes(frame) * 8 * SECOND, self.rate)
            self.leave(frame)

    def room(self) -> tuple[float, float]:
        """Bytes and segments for which the queue has room."""
        if self.rate == 0:
            return math.inf, math.inf
        if isinstance(self.queue, dict):
            return math.inf, self.queue["packets"] - sum(len(each.segments) for each in self.waiting)
        limit = self.queue if isinstance(self.queue, str) else None
        most = int(limit[:-1]) if limit else self.rate * self.queue // (8 * SECOND)
        return most - sum(map(self.bytes, self.waiting)), math.inf

    def arrive(self, now: int, frame: Frame) -> None:
        self.start(now)
        if not self.waiting:
            self.clock = max(self.clock, Fraction(now))
        octets, segments = self.room()
        if self.bytes(frame) > octets or len(frame.segments) > segments:
            fit = min(max(octets, 0), MBIT**2) // self.on_line(frame.headers + frame.segments[0])
            kept = int(max(min(fit, segments), 0 if self.waiting else 1))
            self.drops += kept < len(frame.segments)
            frame = Frame(frame.headers, frame.segments[:kept])
        if frame.segments:
            self.waiting.append(frame)
        self.start(now)

    def change(self, now: int, *, rate: int | None = None, delay: int | None = None) -> None:
        self.start(now)
        sending = self.rate and self.clock > now
        if rate is not None:
            remaining = max(self.clock - now, Fraction(0)) * self.rate
            self.clock = now + (remaining / rate if rate else Fraction(0))
            self.rate = rate
        if delay is not None:
            self.delay = delay
        if sending:
            self.left[-1] = (max(self.before, math.ceil(self.clock + self.delay)), self.left[-1][1])
        self.start(now)


OVERHEADS = {
    "none": plain,
    "raw": plain,
    "ethernet": framed(24, 84, plain),
    "pppoe-ptm": framed(16, 0, ptm),
    "ipoa-vcmux": framed(-6, 0, atm),
    "conservative": framed(34, 0, atm),
}
CUSTOM = [
    ({"bytes": -40, "minimum": 47}, framed(-40, 47, plain)),
    ({"bytes": 7, "minimum": 200, "cell": "ptm"}, framed(7, 200, ptm)),
    ({"cell": "atm"}, framed(0, 0, atm)),
]
gaps = st.one_of(st.integers(0, 1000), st.integers(0, MS), st.integers(0, 20 * MS), st.integers(0, 5 * SECOND))
rates = st.one_of(st.integers(1000, MBIT), st.integers(MBIT, SECOND), st.integers(SECOND, 10**13))
delays = st.one_of(st.just(0), st.integers(0, 1000), st.integers(0, 100 * MS), st.just(3600 * SECOND))
arrivals = st.one_of(
    st.tuples(st.just("frame"), st.one_of(st.integers(14, 1514), st.sampled_from([47, 48, 49, 1500]))),
    st.tuples(st.just("gso"), st.tuples(st.integers(8, 1460), st.integers(2, 40), st.integers(1, 1460))),
)
changes = st.one_of(
    st.tuples(st.just("rate"), st.one_of(rates, st.just(0))),
    st.tuples(st.just("delay"), delays),
    st.tuples(st.just("upgrade"), st.none()),
)


def gso_frame(gso_size: int, count: int, last: int) -> tuple[object, Frame]:
    """A GSO frame of `count` segments, the last of at most `last` bytes, and its reference."""
    last = min(last, gso_size)
    payload = bytes((count - 1) * gso_size + last)
    return Spec(payload=payload).frame(gso_size), Frame(HEADERS, [gso_size] * (count - 1) + [last])


def play(bench: Bench, line: Line, events: list[tuple[int, tuple[str, object]]]) -> None:
    """The same events for both; what leaves is compared after them."""
    now = START_NS
    for gap, (kind, value) in events:
        now += gap
        bench.advance(now)
        if kind == "frame":
            bench.inject(bytes(value))
            line.arrive(now, Frame(0, [value]))
        elif kind == "gso":
            frame, twin = gso_frame(*value)
            bench.inject(frame)
            line.arrive(now, twin)
        elif kind == "upgrade":
            bench.upgrade()
        else:
            (bench.link.set_rate if kind == "rate" else bench.link.set_delay)(value)
            bench.advance(now)
            line.change(now, **{kind: value})
        assert bench.engine.conservation()["conserved"]
    bench.advance(2**62)
    line.start(2**62)
    assert bench.take() == line.left
    assert bench.dropped("queue_full") == line.drops
    assert bench.counters()["queue_bytes"] == bench.counters()["line_packets"] == 0
    bench.close()


@settings(max_examples=300, deadline=None)
@given(
    rate=rates,
    delay=delays,
    overhead=st.one_of(st.sampled_from(sorted(OVERHEADS.items())), st.sampled_from(CUSTOM)),
    queue=st.sampled_from([100 * MS, MS, "3000b", "20000b", {"packets": 1}, {"packets": 60}]),
    events=st.lists(st.tuples(gaps, st.one_of(arrivals, arrivals, arrivals, changes)), max_size=40),
)
def test_every_departure_is_that_of_the_line(rate, delay, overhead, queue, events):
    """Plain and GSO frames, tail drops, live changes of rate and delay, hand-overs between."""
    keyword, on_line = overhead
    bench = Bench(rate=rate, delay=delay, overhead=keyword, queue=queue)
    play(bench, Line(rate, delay, on_line, queue), events)


@settings(max_examples=60, deadline=None)
@given(rate=rates, sizes=st.lists(st.integers(60, 1514), min_size=1, max_size=300), delay=delays)
def test_a_batch_is_sent_back_to_back(rate, sizes, delay):
    bench = Bench(rate=rate, queue="10mb", delay=delay)
    bench.inject(*map(bytes, sizes))
    bench.advance(2**62)
    ends = [Fraction(sum(sizes[: i + 1]) * 8 * SECOND, rate) for i in range(len(sizes))]
    assert bench.take() == [(START_NS + math.ceil(end) + delay, size) for end, size in zip(ends, sizes, strict=True)]
    assert bench.counters()["sent_bytes"] == sum(sizes)
    bench.close()


# -- overheads -------------------------------------------------------------------------------------

# tc-cake(8): bytes sent with each IP packet, least length, cells.
CAKE = {
    "ethernet": (38, 84, plain), "docsis": (18, 64, plain), "pppoe-ptm": (30, 0, ptm), "bridged-ptm": (22, 0, ptm),
    "pppoa-vcmux": (10, 0, atm), "pppoa-llc": (14, 0, atm), "pppoe-vcmux": (32, 0, atm), "pppoe-llcsnap": (40, 0, atm),
    "bridged-vcmux": (24, 0, atm), "bridged-llcsnap": (32, 0, atm), "ipoa-vcmux": (8, 0, atm), "ipoa-llcsnap": (16, 0, atm),
    "conservative": (48, 0, atm), "ethernet ether-vlan": (42, 84, plain), "ether-vlan": (42, 84, plain),
    "Docsis ether-vlan ether-vlan": (26, 64, plain),
}  # fmt: skip


def sent_bytes(overhead: object, *frames: object) -> int:
    """Bytes on the line of frames, by the counter; their time agrees with it."""
    bench = Bench(rate=8000, overhead=overhead, queue="1mb", parsed=False)  # 1 ms a byte
    bench.inject(*frames)
    bench.advance(2**62)
    counted = bench.counters()["sent_bytes"]
    assert bench.take()[-1][0] - START_NS == counted * MS
    bench.close()
    return counted


@pytest.mark.parametrize("keyword", sorted(CAKE))
@pytest.mark.parametrize("ip_bytes", [1, 47, 48, 49, 1500])
def test_a_keyword_adds_to_the_ip_packet_what_cake_adds(keyword, ip_bytes):
    added, minimum, cell = CAKE[keyword]
    assert sent_bytes(keyword, bytes(14 + ip_bytes)) == cell(max(ip_bytes + added, minimum))


def test_the_doc_block_says_what_each_keyword_adds():
    doc = " ".join(Link.__doc__.split())
    told = dict(re.findall(r"([a-z-]+) ([+-]\d+)", doc[doc.index("Without cells:") :]))
    assert told == {word: f"{overhead_of('line', word).bytes:+}" for word in [*NOTHING, *KEYWORDS]}


@pytest.mark.parametrize(("cell", "expected"), [
    ("none", [1, 47, 48, 49, 1500]), ("atm", [53, 53, 53, 106, 1696]), ("ptm", [2, 48, 49, 50, 1524]),
])  # fmt: skip
def test_cells_of_frames_around_their_size(cell, expected):
    for length, on_line in zip([1, 47, 48, 49, 1500], expected, strict=True):
        frame = max(length, 60)
        assert sent_bytes({"bytes": length - frame, "cell": cell}, bytes(frame)) == on_line


def test_a_frame_takes_at_least_one_byte_of_the_line():
    assert sent_bytes({"bytes": -64}, bytes(60)) == 1


def test_each_segment_of_a_gso_frame_has_the_overhead():
    frame, twin = gso_frame(500, 7, 123)
    bench = Bench(rate="1gbit", overhead="pppoa-vcmux")
    bench.inject(frame)
    bench.advance(2**62)
    expected = 6 * atm(HEADERS + 500 - 4) + atm(HEADERS + 123 - 4)
    assert bench.counters()["sent_bytes"] == expected and bench.counters()["split"] == 0
    assert bench.take() == [(START_NS + expected * 8, twin.length())]
    bench.close()


# -- what users rely on ----------------------------------------------------------------------------


def test_a_packet_leaves_when_its_last_bit_has_been_sent_and_has_travelled():
    bench = Bench(rate="10mbit", delay="20ms")
    bench.inject(bytes(1250))
    bench.advance(START_NS + 21 * MS - 1)
    assert bench.take() == [] and bench.link.statistics()["held"] == 1
    bench.advance(START_NS + 21 * MS)
    assert bench.take() == [(START_NS + 21 * MS, 1250)]
    bench.close()


def test_idle_time_earns_no_burst():
    bench = Bench(rate=10 * MBIT, queue="1mb")
    bench.advance(START_NS + SECOND)
    bench.inject(*[bytes(1250)] * 5)
    bench.advance(START_NS + 2 * SECOND)
    assert [at - START_NS - SECOND for at, _ in bench.take()] == [i * MS for i in range(1, 6)]
    bench.close()


@pytest.mark.parametrize(("idle_ms", "made_up"), [(0, 29), (10, 19), (28, 1), (29, 0), (500, 0)])
def test_lateness_is_made_up_by_what_comes_soon_after(idle_ms, made_up):
    """The engine is 29 ms late for 11 frames of 1 ms; later packets get that, minus the time until
    they arrive."""
    bench = Bench(rate=10 * MBIT, queue="1mb")
    bench.inject(*[bytes(1250)] * 11)
    late = START_NS + 40 * MS
    bench.engine.clock.set(late)
    bench.advance(late)
    assert len(bench.take()) == 11
    bench.advance(late + idle_ms * MS)
    bench.inject(*[bytes(1250)] * 60)
    assert len(bench.take()) == made_up
    bench.close()


@pytest.mark.parametrize("idle_ms", [0, 10])
def test_what_makes_up_lateness_takes_the_whole_delay(idle_ms):
    """Packets that come after a late engine are sent in its lateness, by the clock before they came."""
    bench = Bench(rate=10 * MBIT, queue="1mb", delay="20ms")
    bench.inject(*[bytes(1250)] * 11)
    late = START_NS + 60 * MS
    bench.engine.clock.set(late)
    bench.advance(late)
    assert len(bench.take()) == 11
    bench.inject_at(late + idle_ms * MS, *[bytes(1250)] * 60)
    bench.advance(late + SECOND)
    came = late + idle_ms * MS
    at_once = 49 - idle_ms  # the last bit of the 11 was due after 11 ms
    later = [came + (n + 1) * MS for n in range(60 - at_once)]
    assert [at - 20 * MS for at, _ in bench.take()] == [came] * at_once + later
    bench.close()


def test_lateness_beyond_100_ms_is_lost():
    bench = Bench(rate=10 * MBIT, queue="1mb")
    bench.inject(bytes(1250))
    late = START_NS + 10 * SECOND
    bench.engine.clock.set(late)
    bench.advance(late)
    bench.inject(*[bytes(1250)] * 300)
    assert len(bench.take()) == 1 + 100
    bench.close()


def test_the_packet_that_is_being_sent_gets_the_new_rate_and_delay():
    bench = Bench(rate=1 * MBIT, delay="5ms")
    bench.inject(*[bytes(1250)] * 3)  # 10 ms each
    bench.advance(START_NS + 12 * MS)
    bench.link.set_rate("4mbit")  # 8 ms of the second frame remain: 2 ms at the new rate
    bench.advance(START_NS + 13 * MS)
    bench.link.set_delay("1ms")  # the first frame keeps its time, and the second waits for it
    bench.advance(START_NS + SECOND)
    assert [at - START_NS for at, _ in bench.take()] == [15 * MS, 15 * MS, 17_500_000]
    assert bench.link.get_delay() == "1ms" and bench.link.get_rate() == "4mbit"
    bench.close()


def test_without_a_rate_packets_take_the_delay_only():
    bench = Bench(rate=None, delay="3ms", queue={"packets": 1})
    bench.inject(*[bytes(60)] * 50)
    bench.advance(START_NS + SECOND)
    assert bench.take() == [(START_NS + 3 * MS, 60)] * 50
    assert bench.link.get_queue() == {"packets": 0, "bytes": 0, "limit_bytes": None, "limit_packets": 1, "line_packets": 0}
    bench.link.set_delay(0)
    bench.advance(START_NS + SECOND)
    bench.inject(*[bytes(60)] * 50)
    assert bench.take() == [(START_NS + SECOND, 60)] * 50
    bench.close()


def test_a_queue_of_packets_counts_segments():
    bench = Bench(rate="1mbit", queue={"packets": 10})
    frame, _ = gso_frame(1000, 8, 1000)
    bench.inject(bytes(60), frame, frame, bytes(60))
    assert bench.dropped("queue_full") == 2  # the end of the second GSO frame, and the last
    assert bench.link.get_queue()["limit_packets"] == 10 and bench.link.describe()["queue"] == "10 packets"
    bench.advance(2**62)
    assert [length for _, length in bench.take()] == [60, *[1000 + HEADERS] * 10]
    bench.close()


def test_the_line_holds_a_quarter_of_the_pool():
    bench = Bench(rate="10gbit", delay="1s", queue="1mb", small=400, large=20)
    bench.inject(*[bytes(60)] * 150, *[bytes(4000)] * 8)
    bench.advance(START_NS + MS)
    assert bench.counters()["line_packets"] == bench.counters()["line_packets_max"] == 100 + 5
    # Of 158 packets, 50 waited for none; a quarter of each size may be on the line.
    assert bench.dropped("delay_line_full") + bench.dropped("queue_full") == 50 + 3
    assert bench.dropped("delay_line_full") > 0
    assert bench.link.memory_bytes() > 0
    bench.advance(START_NS + 2 * SECOND)
    assert len(bench.take()) == 105
    bench.close()


def test_packets_on_the_line_count_in_the_share_of_a_pool():
    share = PoolShare(small=10, large=2)
    bench = Bench(rate="10mbit", delay="1s", queue="1s")
    link = Link(rate="10mbit", delay="1s", queue="1s", name="link")
    link.join(share)
    rx = PortRx(bench.a, name="rx")
    rx >> Parse() >> link >> PortTx(bench.b)
    bench.engine.load([rx])
    bench.inject(*[bytes(60)] * 20)
    assert share.packets == (10, 0) and link.statistics()["dropped"]["queue_full"] == 10
    bench.advance(START_NS + SECOND // 2)
    assert share.packets == (10, 0) and link.get_queue()["line_packets"] == 10
    bench.advance(START_NS + 3 * SECOND)
    assert share.packets == (0, 0) and len(bench.take()) == 10
    bench.inject(*[bytes(60)] * 5)
    bench.close()
    assert share.packets == (0, 0) and link.statistics()["dropped"]["released"] == 5


def test_closing_drops_what_waits_and_what_is_on_the_line():
    bench = Bench(rate="10mbit", delay="5ms")
    bench.inject(*[bytes(1250)] * 10)
    bench.advance(START_NS + 3 * MS)
    assert bench.counters()["line_packets"] == 4 and bench.link.get_queue()["packets"] == 6
    bench.close()
    assert bench.dropped("released") == 10 and bench.link.statistics()["held"] == 0


# -- state -----------------------------------------------------------------------------------------


def halfway() -> tuple[Bench, dict]:
    """Packets wait, one is being sent, others are on the line; and the saved state."""
    bench = Bench(rate="10mbit", delay="5ms")
    bench.inject(*[bytes(1250)] * 10)
    bench.advance(START_NS + 3 * MS + 1)
    return bench, bench.link.save_state()


@pytest.mark.parametrize("damage", [{"last_ns": 2**63}, {"settled_ns": 1}, {"sending": True}])
def test_a_damaged_state_of_an_empty_line_is_refused(damage):
    bench = Bench(rate="10mbit")
    with pytest.raises(VnicError, match="^link: its line ends at 0 ns"):
        bench.link.load_state({**bench.link.save_state(), **damage})
    bench.link.load_state(bench.link.save_state())
    bench.close()


def test_the_state_has_queue_and_line():
    bench, state = halfway()
    assert state["line"] == 4 and len(state["packets"]) == 40 and state["sending"] is True
    assert state["last_ns"] == START_NS + 9 * MS and state["settled_ns"] == START_NS + 8 * MS
    bench.close()


@pytest.mark.parametrize("damage", [
    {"line": -1}, {"line": "4"}, {"line": True}, {"line": 11}, {"line": 3}, {"line": 2**40}, {"delay_ns": -1},
    {"delay_ns": 2**63}, {"delay_ns": 1.5}, {"last_ns": -1}, {"last_ns": 5}, {"last_ns": 2**64}, {"settled_ns": 2**64 - 1},
    {"settled_ns": 0}, {"sending": 1}, {"sending": None}, {"packets": b""}, {"packets": b"\xff" * 40}, {"packets": None},
    {"packets": [1, 2, 3]}, {"rate_bps": "fast"}, {"rate_bps": 5}, {"next_ns": 2**63}, {"remainder": 10**9},
    {"emptied_ns": 2**63}, {"split": [1, 2]}, {"split": 7}, {"more": 1},
])  # fmt: skip
def test_a_damaged_state_is_refused(damage):
    bench, state = halfway()
    heir = Bench(rate="10mbit", delay="5ms")
    old_pool, heir.pool = heir.pool, bench.pool
    heir.engine.close()
    heir.build(bench.engine.clock.now_ns)
    with pytest.raises(VnicError, match="^link: ") as error:
        heir.link.load_state({**state, **damage})
    assert "\n" not in str(error.value)
    assert heir.link.get_queue()["packets"] == heir.link.get_queue()["line_packets"] == 0
    heir.engine.close()
    bench.close()
    assert old_pool.in_use == 0


@pytest.mark.parametrize("missing", sorted(halfway()[1]))
def test_a_state_without_a_member_is_refused(missing):
    bench, state = halfway()
    del state[missing]
    with pytest.raises(VnicError, match="^link: its state is not that of a Link"):
        bench.link.load_state(state)
    bench.close()


@pytest.mark.parametrize("config", [
    {}, {"rate": "10"}, {"rate": "fast"}, {"rate": -1}, {"rate": 10**14}, {"rate": True}, {"queue": "-1ms"}, {"queue": -5},
    {"queue": {}}, {"queue": {"packets": 0}}, {"queue": {"packets": True}}, {"queue": {"packets": "9"}}, {"queue": None},
    {"queue": {"packets": 1, "bytes": 2}}, {"queue": {"frames": 3}}, {"queue": {"packets": 2**40}}, {"queue": [1]},
    {"delay": "2h"}, {"delay": -1}, {"delay": "soon"}, {"delay": None}, {"delay": True}, {"overhead": "adsl"},
    {"overhead": ""}, {"overhead": "none ether-vlan"}, {"overhead": "ethernet docsis"}, {"overhead": "ethernet" + " ether-vlan" * 60},
    {"overhead": 38}, {"overhead": None}, {"overhead": {"bytes": -65}}, {"overhead": {"bytes": 257}}, {"overhead": {"bytes": "8"}},
    {"overhead": {"bytes": True}}, {"overhead": {"minimum": -1}}, {"overhead": {"minimum": 257}}, {"overhead": {"cell": "wifi"}},
    {"overhead": {"cell": None}}, {"overhead": {"cell": ["atm"]}}, {"overhead": {"cells": "atm"}}, {"overhead": {5: 5}},
])  # fmt: skip
def test_wrong_configuration_is_one_line(config):
    with pytest.raises((ConfigError, TypeError) if not config else ConfigError) as error:
        Link(name="line", **({"rate": "1mbit", **config} if config else {}))
    assert "\n" not in str(error.value) and (not config or str(error.value).startswith("line: "))


def test_a_wrong_value_changes_nothing():
    bench = Bench(rate="10mbit", delay="5ms")
    for change, value in ((bench.link.set_rate, "nonsense"), (bench.link.set_delay, "2h")):
        with pytest.raises(ConfigError):
            change(value)
    assert (bench.link.get_rate(), bench.link.get_delay()) == ("10mbit", "5ms")
    bench.close()


def test_a_link_of_a_configuration_has_its_parts():
    text = """
    nics:
      web:
        egress:
          elements:
            - {element: Link, name: line, rate: 1mbit, queue: {packets: 4}, overhead: {bytes: 10, cell: atm}, delay: 1ms}
      db: {}
    """
    frame = Spec(payload=bytes(500)).build()
    on_line = atm(len(frame) + 10) * 8000
    with VirtualNetwork(text) as net:
        net.send("web", [frame] * 6)
        begun = net.now_ns
        net.run()
        # One is being sent when the others arrive, in one batch of which five are one too many.
        assert [each.time_ns - begun for each in net.take("db")] == [MS + on_line * n for n in range(1, 6)]
        assert sum(net.drops().values()) == 1


def test_handlers_change_rate_and_delay_live():
    bench = Bench(rate="1mbit", delay="1ms")
    for handler, value in (("delay", "3ms"), ("rate", "2mbit")):
        write_handler([bench.link], handler, value, halt=str, resume=str)
        assert read_handler(bench.link, handler) == value
    bench.inject(bytes(1250))
    bench.advance(START_NS + SECOND)
    assert bench.take() == [(START_NS + 8 * MS, 1250)]
    with pytest.raises(ConfigError, match="^link: delay of 2h: expected at most 1h"):
        write_handler([bench.link], "delay", "2h", halt=str, resume=str)
    assert read_handler(bench.link, "queue")["line_packets"] == 0
    bench.close()


def test_rate_and_delay_change_while_a_thread_runs():
    pool = PacketPool()
    engine = Engine("e0", pool)
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    link, rx = Link("8kbit", queue="1mb", delay="1h"), PortRx(a)
    rx >> link >> PortTx(b)
    engine.load([rx])
    start(engine)
    try:
        a.inject([number.to_bytes(4, "big") + bytes(996) for number in range(50)])  # a second each
        while link.statistics()["held"] < 50:
            engine.call(lambda: None)
        link.set_delay("1ms")
        link.set_rate("100mbit")  # 4 ms
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

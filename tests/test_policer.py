"""The policer compared with the generic cell rate algorithm in exact fractions, in virtual time."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handover import forget_engine, load_engine, save_engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from shaping.policer import Policer
from tests.wire_frames import Spec, big_specs

START_NS = 10**9


class Bench:
    """a >> parse >> policer, whose outputs lead to b (and c)."""

    def __init__(self, pool: PacketPool | None = None, **config: object) -> None:
        self.pool = pool or PacketPool(small=1024, large=256)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=START_NS))
        self.a = MemoryPort("a", 0)
        self.b, self.c = MemoryPort("b", 1, 1, 0), MemoryPort("c", 2, 1, 0)  # GSO frames leave in segments
        self.policer = Policer(**config)
        rx = PortRx(self.a)
        rx >> Parse() >> self.policer >> PortTx(self.b)
        if len(self.policer.outputs) == 2:
            self.policer[1] >> PortTx(self.c)
        self.engine.load([rx])

    def inject(self, at_ns: int, frames: list[Frame]) -> tuple[list[Frame], list[Frame]]:
        """Frames that arrive at once; those that conformed, and those that did not and were led on."""
        self.engine.clock.set(at_ns)
        self.a.inject(frames)
        advance(self.engine, at_ns)
        return self.b.take(), self.c.take()

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


class Reference:
    """Which segments conform. clock: when a wire of the rate would have sent all that conformed before."""

    def __init__(self, rate: int, burst_ns: int) -> None:
        self.rate, self.burst_ns, self.clock = rate, burst_ns, Fraction(0)

    def conforms(self, now: int, size: int) -> bool:
        self.clock = max(self.clock, Fraction(now - self.burst_ns))
        if self.clock > now:
            return False
        self.clock += Fraction(size * 8 * 10**9, self.rate)
        return True


def plain(size: int) -> Frame:
    return Frame(bytes(12) + b"\x88\xb5" + bytes(size - 14))


ARRIVALS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 10**10)),
        st.one_of(st.integers(14, 1514), st.sampled_from(sorted(big_specs()))),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(
    rate=st.one_of(st.integers(1000, 10**6), st.integers(10**6, 10**9), st.integers(10**9, 10**13)),
    burst_ns=st.sampled_from([0, 1, 1000, 250_000, 3_000_000]),
    exceed=st.sampled_from(["drop", "output"]),
    arrivals=ARRIVALS,
)
def test_every_verdict_is_that_of_the_reference(rate, burst_ns, exceed, arrivals):
    """Also of each segment of a GSO frame. In any window no more conforms than rate, burst and one packet."""
    burst_ns = min(burst_ns, (1 << 30) * 8 * 10**9 // rate)
    bench, reference, specs = Bench(rate=rate, burst=burst_ns, exceed=exceed), Reference(rate, burst_ns), big_specs()
    now, passed = START_NS, []
    for gap, what in arrivals:
        now += gap
        if isinstance(what, int):
            wanted, sizes = [what] if reference.conforms(now, what) else [], [what]
            got, excess = bench.inject(now, [plain(what)])
        else:
            spec = specs[what]
            sizes = [len(each.build()) for each in spec.segments(1000)]
            wanted = []
            for size in sizes:  # once one does not conform, no later one at the same instant does
                if not reference.conforms(now, size):
                    break
                wanted.append(size)
            got, excess = bench.inject(now, [spec.frame(1000)])
        assert [len(frame.data) for frame in got] == wanted
        if exceed == "output":
            assert [len(frame.data) for frame in excess] == sizes[len(wanted) :]
        passed += [(now, size) for size in wanted]
    for first, (begin, _) in enumerate(passed):
        total = 0
        for at, size in passed[first:]:
            total += size
            assert (total - size) * 8 * 10**9 <= rate * (at - begin + burst_ns)
    found = bench.policer.statistics()
    assert found["counters"]["conforming_bytes"] == sum(size for _, size in passed)
    if exceed == "output":
        assert found["dropped"] == {"exceeded": 0, "no_buffer": 0}
    else:
        assert found["dropped"]["exceeded"] == found["counters"]["excess"]
    bench.close()


@pytest.mark.parametrize("name", sorted(big_specs()))
def test_the_parts_of_a_gso_frame_are_its_segments(name):
    """The first three conform, the others leave by output 1: together they are the frame's segments, byte for byte."""
    spec = big_specs()[name]
    segments = [each.build() for each in spec.segments(1000)]
    bench = Bench(rate=8 * 10**9, burst=len(segments[0]) * 2, exceed="output")  # 1 ns a byte
    got, excess = bench.inject(START_NS, [spec.frame(1000)])
    assert [frame.data for frame in got] == segments[:3] and [frame.data for frame in excess] == segments[3:]
    assert bench.policer.statistics()["counters"]["split"] == (len(segments) > 3)
    bench.close()


def test_without_a_rate_all_conforms():
    bench = Bench(rate="none", exceed="output")
    got, excess = bench.inject(START_NS, [plain(1000)] * 50)
    assert len(got) == 50 and excess == [] and bench.policer.get_burst() is None
    bench.close()


@pytest.mark.parametrize("exceed", ["drop", "output"])
def test_no_buffer_for_a_part(exceed):
    """16 frames have all large buffers: the first one's parts find none; it is freed, and the second's first
    part does."""
    frame = Spec(payload=bytes(30_000)).frame(1000)
    bench = Bench(PacketPool(small=1024, large=16), rate=8 * 10**9, burst=15_000, exceed=exceed)
    got, excess = bench.inject(START_NS, [frame] * 16)
    found = bench.policer.statistics()
    assert len(got) == 15 and found["dropped"]["no_buffer"] == (2 if exceed == "drop" else 3)
    assert found["counters"]["split"] == 2 and found["counters"]["conforming"] == 1
    assert len(excess) == (0 if exceed == "drop" else 14 * 30)
    bench.close()


@pytest.mark.parametrize("exceed", ["drop", "output"])
def test_the_rate_changes_while_it_runs(exceed):
    """The rest of the last packet's time is converted; a credit stays, up to the burst."""
    bench = Bench(rate=8000, burst=0, exceed=exceed)  # 1 ms a byte
    assert len(bench.inject(START_NS, [plain(100)])[0]) == 1
    bench.engine.post(bench.policer.prepare_rate(80_000))  # 100 bytes are owed: 10 ms
    assert bench.policer.get_rate() == "80kbit"
    assert len(bench.inject(START_NS + 9_999_999, [plain(100)])[0]) == 0
    assert len(bench.inject(START_NS + 10_000_000, [plain(100)])[0]) == 1
    bench.engine.post(bench.policer.prepare_rate("none"))
    assert len(bench.inject(START_NS + 10_000_001, [plain(100)] * 9)[0]) == 9
    with pytest.raises(ConfigError, match="expected 1kbit to 10tbit"):
        bench.policer.prepare_rate(1)
    bench.close()


def test_its_state_goes_on_in_another_engine():
    before, after = Bench(rate=8000, burst=0), None
    before.inject(START_NS, [plain(100)])
    saved = save_engine(before.engine)
    after = Bench(before.pool, rate=8000, burst=0)
    after.engine.clock.set(START_NS)
    load_engine(after.engine, copy.deepcopy(saved))
    forget_engine(before.engine)
    assert len(after.inject(START_NS + 99_999_999, [plain(100)])[0]) == 0
    assert len(after.inject(START_NS + 100_000_000, [plain(100)])[0]) == 1
    for wrong in ({}, {"rate_bps": "x", "next_ns": 0, "remainder": 0}, {"rate_bps": 8000, "next_ns": 2**63, "remainder": 0},
                  {"rate_bps": 8000, "next_ns": 0, "remainder": 8000}, {"rate_bps": 8000, "next_ns": -1, "remainder": 0}):  # fmt: skip
        with pytest.raises(VnicError):
            after.policer.load_state(wrong)
    after.close()
    before.engine.close()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rate": "100"}, "rate '100'"),
        ({"rate": "1mbit", "burst": "10"}, "burst"),
        ({"rate": "1mbit", "burst": -1}, "expected 0 or more"),
        ({"rate": "10tbit", "burst": "1s"}, "burst of 1250000000000 bytes: expected at most 1gb"),
        ({"rate": "1mbit", "burst": "2gb"}, "expected at most 1gb"),
        ({"rate": "1mbit", "exceed": "mark"}, "exceed 'mark': expected drop or output"),
    ],
)
def test_wrong_settings_are_one_line(config, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Policer(**config)
    assert "\n" not in str(caught.value)

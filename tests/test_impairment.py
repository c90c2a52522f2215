"""The impairment compared with its models, packet by packet, in virtual time."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any

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
from shaping.impairment import Impairment
from shaping.loss_model import Chain, chain_of
from tests.test_random import splitmix64
from tests.wire_frames import Spec, checksum

START_NS = 10**9
NEVER = 1 << 62


class Stream:
    """Numbers of a random stream in [0, 1), as random_stream.pxd says."""

    def __init__(self, key: int) -> None:
        self.key, self.count = key, 0

    def word(self) -> int:
        self.count += 1
        return splitmix64(self.key, self.count - 1)

    def unit(self) -> float:
        return (self.word() >> 11) / (1 << 53)

    def geometric(self, goes_on: float) -> int:
        if goes_on <= 0:
            return 0
        return NEVER if goes_on >= 1 else int(math.log(1 - self.unit()) / math.log(goes_on))


def hits(chain: Chain | None, key: int) -> Iterator[int]:
    """The numbers of the packets that a chain hits, in order."""
    if chain is None:
        return
    stream, state, at = Stream(key), 0, 0
    left = 1 + stream.geometric(chain.moves[0][0])
    while at < NEVER:
        if left == 0:
            u, row = stream.unit(), chain.moves[state]
            total = sum(each for to, each in enumerate(row) if to != state)
            last = max(to for to, each in enumerate(row) if each and to != state)
            so_far, to = 0.0, 0
            for to, each in enumerate(row):
                so_far += 0 if to == state else each
                if to >= last or u < so_far / total:
                    break
            state = to
            left = 1 + stream.geometric(chain.moves[state][state])
        until = stream.geometric(1 - chain.loss[state])
        if until < left:
            yield at + until
            at, left = at + until + 1, left - until - 1
        else:
            at, left = at + left, 0


def hit_below(chain: Chain | None, key: int, count: int) -> set[int]:
    return set(itertools.takewhile(lambda at: at < count, hits(chain, key)))


class Bench:
    """a >> parse >> impairment >> b, which takes no GSO frames."""

    def __init__(self, pool: PacketPool | None = None, *, seed: int = 1, own: int | None = None, **config: Any) -> None:
        self.pool = pool or PacketPool(small=8192, large=256)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=START_NS), seed=seed)
        self.a, self.b = MemoryPort("a", 0), MemoryPort("b", 1, 1, 0)
        self.impairment = Impairment(**config, seed=own, name="bad")
        rx = PortRx(self.a)
        rx >> Parse() >> self.impairment >> PortTx(self.b)
        self.engine.load([rx])

    def inject(self, frames: list[Frame], at_ns: int | None = None) -> None:
        at_ns = self.engine.clock.now_ns if at_ns is None else at_ns
        if at_ns - 1 >= self.engine.clock.now_ns:
            advance(self.engine, at_ns - 1)
        self.engine.clock.set(at_ns)
        self.a.inject(frames)
        advance(self.engine, at_ns)

    def taken(self) -> list[bytes]:
        return [frame.data for frame in self.b.take()]

    def count(self, name: str) -> int:
        found = self.impairment.statistics()
        return found["counters"][name] if name in found["counters"] else found["dropped"][name]

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


def numbered(number: int, size: int = 60) -> Frame:
    return Frame(bytes.fromhex("02000000000202000000000188b5") + number.to_bytes(4, "big") + bytes(size - 18))


def number_of(data: bytes) -> int:
    return int.from_bytes(data[14:18], "big")


def stream_frame(first: int, segments: int) -> Spec:
    """A TCP packet of this many segments of 100 bytes; byte n of the stream is n modulo 251."""
    payload = bytes((first * 100 + each) % 251 for each in range(segments * 100))
    return Spec(payload=payload, sequence=first * 100)


MODELS: list[Any] = [
    "5%",
    {"share": "10%", "burst": 3},
    {"share": "20%", "correlation": "40%"},
    {"to_bad": "5%", "to_good": "25%", "bad": "50%", "good": "1%"},
    {"p13": "5%", "p31": "20%", "p32": "10%", "p23": "30%", "p14": "2%"},
    {"p13": "100%"},
    "100%",
]


@settings(max_examples=120, deadline=None)
@given(
    loss=st.sampled_from([None, *MODELS]),
    duplicate=st.sampled_from([None, "3%", "50%"]),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
)
def test_the_same_packets_are_hit_with_and_without_gso_in_batches_of_any_size(loss, duplicate, sizes, cuts, seed):
    """The reference goes packet by packet; the element sees frames of 1 to 40 segments, some at once."""
    firsts = list(itertools.accumulate(sizes, initial=0))
    specs = [stream_frame(first, size) for first, size in zip(firsts, sizes, strict=False)]
    whole = [each.build() for spec in specs for each in spec.segments(100)]
    key = Bench(seed=seed).impairment.seed
    lost, twice = (
        hit_below(chain_of("", loss), key("loss"), len(whole)),
        hit_below(chain_of("", duplicate), key("duplicate"), len(whole)),
    )
    wanted = [data for at, data in enumerate(whole) for _ in range((at not in lost) + (at in twice))]
    for frames in ([spec.frame(100) for spec in specs], [Frame(data) for data in whole]):
        bench, left, turns = Bench(seed=seed, loss=loss, duplicate=duplicate), list(frames), itertools.cycle(cuts)
        while left:
            at_once = next(turns)
            bench.inject(left[:at_once])
            left = left[at_once:]
        assert bench.taken() == wanted
        assert bench.count("lost") == bench.count("loss") == len(lost) and bench.count("duplicated") == len(twice)
        assert bench.count("wire_packets") == len(whole)
        bench.close()


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_shares_are_those_of_the_closed_forms(model):
    """200,000 packets; five standard deviations of a share of correlated packets, whose lag-1 correlation
    is at most that of the longest state."""
    chain = chain_of("", model)
    count = 200_000
    bench, lost = Bench(loss=model), 0
    for first in range(0, count, 5000):
        bench.inject([numbered(n) for n in range(first, first + 5000)])
        lost += 5000 - len(bench.b.take())
    share = chain.share
    stay = max((row[i] for i, row in enumerate(chain.moves) if row[i] < 1), default=0)
    deviation = math.sqrt(share * (1 - share) / count * (1 + stay) / (1 - stay))
    assert abs(lost / count - share) <= 5 * deviation + 2 / count  # the chain begins in its first state
    bench.close()


@pytest.mark.parametrize(
    ("model", "share"),
    [
        ({"to_bad": "1%", "to_good": "25%"}, 0.03846),
        ({"to_bad": "1%", "to_good": "25%", "bad": "50%", "good": "0.1%"}, 0.02019),
        ({"p13": "1%", "p31": "20%", "p32": "10%", "p23": "30%", "p14": "0.5%"}, 0.05132),
        ({"p13": "1%", "p31": "25%"}, 0.03846),
        ({"share": "0.3%", "correlation": "25%"}, 0.003),
        ({"share": "1%", "burst": 4}, 0.01),
    ],
)
def test_loss_shares_of_published_models(model, share):
    assert chain_of("", model).share == pytest.approx(share, abs=5e-6)


def test_bursts_have_the_length_asked_for():
    lost = sorted(hit_below(chain_of("", {"share": "5%", "burst": 4}), Bench(seed=3).impairment.seed("loss"), 2_000_000))
    runs = 1 + sum(b != a + 1 for a, b in itertools.pairwise(lost))
    assert len(lost) / runs == pytest.approx(4, abs=5 * math.sqrt(12 / runs))


def test_a_rare_loss_in_short_states_stalls_no_engine():
    """Each state lasts two packets, and one in a thousand million is lost: the chain is drawn piece by piece."""
    bench = Bench(loss={"to_bad": "50%", "to_good": "50%", "bad": "0.0000001%", "good": "0.0000001%"})
    for first in range(0, 100_000, 5000):
        bench.inject([numbered(n) for n in range(first, first + 5000)])
    assert len(bench.taken()) == 100_000
    bench.close()


def test_loss_is_the_same_with_other_settings():
    """Each setting has a stream of its own."""
    bench = Bench(seed=9, loss="10%", duplicate="10%", delay={"mean": "1ms", "jitter": "1ms"})
    bench.inject([numbered(n) for n in range(1500)])
    advance(bench.engine, START_NS + 10**9)
    lost = hit_below(chain_of("", "10%"), bench.impairment.seed("loss"), 1500)
    twice = hit_below(chain_of("", "10%"), bench.impairment.seed("duplicate"), 1500)
    assert {number_of(data) for data in bench.taken()} == set(range(1500)) - lost | twice
    bench.close()


@settings(max_examples=60, deadline=None)
@given(
    mean=st.integers(0, 3_000_000),
    jitter=st.sampled_from([0, 1, 500_000, 5_000_000]),
    shape=st.sampled_from(["uniform", "normal", "pareto"]),
    correlation=st.sampled_from(["0%", "30%", "90%"]),
    order=st.sampled_from(["keep", "any"]),
    gaps=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=200),
    seed=st.integers(0, 2**32),
)
def test_every_departure_is_that_of_the_reference(mean, jitter, shape, correlation, order, gaps, seed):
    bench = Bench(seed=seed, delay={"mean": mean, "jitter": jitter, "shape": shape, "correlation": correlation, "order": order})
    stream, rho, z, last, now, wanted = (
        Stream(bench.impairment.seed("delay")),
        int(correlation[:-1]) / 100,
        0.0,
        0,
        START_NS,
        [],
    )
    for number, gap in enumerate(gaps):
        now += gap
        bench.inject([numbered(number)], now)
        delay = float(mean)
        if jitter:
            u = ((stream.word() >> 11) + 0.5) / (1 << 53)
            z = rho * z + math.sqrt(1 - rho * rho) * statistics.NormalDist().inv_cdf(u)
            u = 0.5 * math.erfc(-z * math.sqrt(0.5)) if rho else u
            score = {"normal": z, "uniform": 2 * u - 1, "pareto": (1 / math.cbrt(max(1 - u, 1e-18)) - 1.5) / math.sqrt(0.75)}[
                shape
            ]
            delay = jitter * min(score, 20) + mean + 0.5
        leaves = now + int(max(delay, 0))
        if order == "keep":
            last = leaves = max(leaves, last)
        wanted.append((leaves, number))
    advance(bench.engine, START_NS + 10**12)
    # of those that are released at the same instant, the one that came first leaves first
    assert [(frame.time_ns, number_of(frame.data)) for frame in bench.b.take()] == sorted(wanted, key=lambda each: each[0])
    bench.close()


def test_jitter_has_the_deviation_and_correlation_asked_for():
    """20,000 delays of 100 ms; five standard deviations of each estimate."""
    count = 20_000
    for shape, deviation in (("uniform", 10 / math.sqrt(3)), ("normal", 10.0), ("pareto", 10.0)):
        bench, sent = Bench(delay={"mean": "100ms", "jitter": "10ms", "shape": shape, "correlation": "60%", "order": "any"}), {}
        for number in range(count):
            sent[number] = START_NS + number * 100_000
            bench.inject([numbered(number)], sent[number])
        advance(bench.engine, START_NS + 10**11)
        delays = {number_of(frame.data): (frame.time_ns - sent[number_of(frame.data)]) / 1e6 for frame in bench.b.take()}
        values = [delays[number] for number in range(count)]
        mean = sum(values) / count
        spread = math.sqrt(sum((each - mean) ** 2 for each in values) / count)
        assert abs(mean - 100) < 5 * deviation * 2 / math.sqrt(count)  # 2: (1 + c) / (1 - c), its root
        # the fourth moment of a Pareto distribution of exponent 3 does not exist: its estimate is wide
        assert abs(spread / deviation - 1) < (0.25 if shape == "pareto" else 0.06)
        if shape == "normal":
            pairs = sum((a - mean) * (b - mean) for a, b in itertools.pairwise(values)) / (count - 1)
            assert abs(pairs / spread**2 - 0.6) < 5 / math.sqrt(count)
        bench.close()


@pytest.mark.parametrize("by", [1, 3, 64])
def test_a_late_packet_is_overtaken_by_as_many_as_asked(by):
    bench = Bench(seed=5, reorder={"share": "2%", "by": by})
    late = hit_below(chain_of("", "2%"), bench.impairment.seed("reorder"), 3000)
    bench.inject([numbered(n) for n in range(3000)])
    advance(bench.engine, START_NS + 10**9)
    order: list[int] = []
    waiting: list[tuple[int, int]] = []
    for n in range(3000):
        if n in late and len(waiting) < 64:
            waiting.append((n + 1 + by, n))
        else:
            order.append(n)
        while waiting and waiting[0][0] <= n + 1:
            order.append(waiting.pop(0)[1])
    assert [number_of(data) for data in bench.taken()] == order + [n for _, n in waiting]
    assert bench.count("reordered") == len(late) > 20
    bench.close()


def test_a_late_packet_does_not_wait_for_ever():
    bench = Bench(reorder={"share": "100%", "by": 10, "within": "30ms"})
    bench.inject([numbered(1)])
    advance(bench.engine, START_NS + 30_000_000 - 1)
    assert bench.taken() == []
    advance(bench.engine, START_NS + 30_000_000)
    assert [number_of(data) for data in bench.taken()] == [1]
    bench.close()


def test_a_corrupted_packet_differs_in_one_bit():
    bench = Bench(corrupt="10%")
    frames = [numbered(n, 300) for n in range(3000)]
    bench.inject(frames)
    hit = hit_below(chain_of("", "10%"), bench.impairment.seed("corrupt"), 3000)
    places = set()
    for n, (data, frame) in enumerate(zip(bench.taken(), frames, strict=True)):
        changed = int.from_bytes(data, "big") ^ int.from_bytes(frame.data, "big")
        assert changed.bit_count() == (n in hit)
        places.add(changed)
    assert len(places) > 0.8 * len(hit) and bench.count("corrupted") == len(hit)
    bench.close()


def is_right(data: bytes, spec: Spec) -> bool:
    """Whether the TCP or UDP checksum fits."""
    l4 = data[spec.l4_offset :]
    return checksum(spec.pseudo() + l4) == 0


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("version", [4, 6])
def test_checksums_of_corrupted_packets(protocol, version):
    """Kept, a receiver finds the change; mended, it does not. Also of frames whose checksum the NIC completes,
    and of each segment."""
    spec = Spec(version=version, protocol=protocol, payload=bytes(range(200)) * 2)
    for mode, part in (("keep", "payload"), ("mend", "payload"), ("keep", "header")):
        bench = Bench(corrupt={"share": "100%", "part": part, "checksum": mode})
        bench.inject([Frame(spec.build()), spec.frame()] * 20)
        sent, found = spec.build(), bench.taken()
        assert len(found) == 40
        for data in found:
            at = next(i for i in range(len(data)) if i not in (spec.l4_offset + spec.checksum_at, spec.l4_offset + spec.checksum_at + 1)
                      and data[i] != sent[i]) if part == "payload" else 0  # fmt: skip
            assert part == "header" or at >= spec.payload_offset
            if part == "payload":
                assert is_right(data, spec) == (mode == "mend")
        assert bench.count("corrupted") == 40
        bench.close()


def test_a_full_line_drops_under_its_reason():
    bench = Bench(PacketPool(small=400, large=16), delay="1s")
    bench.inject([numbered(n) for n in range(250)])
    assert bench.count("line_full") == 150 and bench.count("delayed") == 100
    advance(bench.engine, START_NS + 10**9)
    assert [number_of(data) for data in bench.taken()] == list(range(100))
    bench.close()


def test_a_late_packet_that_left_by_its_time_cuts_no_frame():
    """As after an upgrade: the frame behind it stays whole."""
    bench = Bench(reorder={"share": "100%", "by": 10, "within": "5ms"}, loss=None)
    bench.inject([numbered(0)])
    bench.engine.post(bench.impairment.prepare_reorder("0%"))
    advance(bench.engine, START_NS + 10 * 10**6)
    assert [number_of(data) for data in bench.taken()] == [0]
    bench.inject([stream_frame(0, 30).frame(100)])
    assert bench.count("split") == 0 and bench.count("wire_packets") == 31
    bench.close()


def test_no_buffer_for_segments():
    """14 frames have nearly all large buffers, so that few pieces find one; the packets that pass are those that
    the same losses leave."""
    spec = stream_frame(0, 300)
    bench = Bench(PacketPool(small=64, large=16), loss="50%")
    bench.inject([spec.frame(100)] * 14)
    assert bench.count("no_buffer") > 0 and bench.count("wire_packets") == 4200
    bench.taken()
    bench.close()


def test_settings_change_while_it_runs():
    """Packets that wait leave when they were to leave; later ones do not overtake them."""
    bench = Bench(delay="10ms")
    write = bench.impairment.prepare_delay
    bench.inject([numbered(0)])
    bench.engine.post(write("1ms"))
    assert bench.impairment.get_delay() == "1ms"
    bench.inject([numbered(1)], START_NS + 1000)
    bench.engine.post(write({"mean": "1ms", "order": "any"}))
    bench.inject([numbered(2)], START_NS + 2000)
    bench.engine.post(write(None))
    bench.inject([numbered(3)], START_NS + 3000)
    assert bench.impairment.get_delay() is None
    advance(bench.engine, START_NS + 10**9)
    found = [(frame.time_ns - START_NS, number_of(frame.data)) for frame in bench.b.take()]
    assert found == [(3000, 3), (1_002_000, 2), (10_000_000, 0), (10_000_000, 1)] or found == [
        (1_002_000, 2), (10_000_000, 0), (10_000_000, 1), (10_000_000, 3)]  # fmt: skip
    bench.engine.post(bench.impairment.prepare_loss("100%"))
    bench.inject([numbered(4)])
    bench.engine.post(bench.impairment.prepare_loss(0))
    bench.inject([numbered(5)])
    assert [number_of(data) for data in bench.taken()] == [5]
    assert bench.impairment.describe() == {"loss": 0}
    with pytest.raises(ConfigError, match="expected a share in percent"):
        bench.impairment.prepare_loss("1")
    bench.close()


def test_its_state_goes_on_in_another_engine():
    """Half of the packets before, half after: the same ones leave, at the same times."""
    config = {
        "loss": {"share": "10%", "burst": 3}, "duplicate": "5%", "reorder": {"share": "5%", "by": 7}, "corrupt": "5%",
        "delay": {"mean": "5ms", "jitter": "3ms", "correlation": "50%", "order": "any"},
    }  # fmt: skip
    times = [START_NS + n * 10_000 for n in range(2000)]
    alone = Bench(**config)
    for n, at_ns in enumerate(times):
        alone.inject([numbered(n)], at_ns)
    advance(alone.engine, START_NS + 10**9)
    wanted = [(frame.time_ns, frame.data) for frame in alone.b.take()]
    alone.close()
    before = Bench(**config)
    for n, at_ns in enumerate(times[:1000]):
        before.inject([numbered(n)], at_ns)
    found = [(frame.time_ns, frame.data) for frame in before.b.take()]
    saved = save_engine(before.engine)
    after = Bench(before.pool, **config)
    after.engine.clock.set(before.engine.clock.now_ns)
    load_engine(after.engine, copy.deepcopy(saved))
    forget_engine(before.engine)
    for n, at_ns in enumerate(times[1000:]):
        after.inject([numbered(n + 1000)], at_ns)
    advance(after.engine, START_NS + 10**9)
    assert found + [(frame.time_ns, frame.data) for frame in after.b.take()] == wanted
    after.close()
    before.engine.close()


WRONG_STATES: list[dict[str, Any]] = [
    {"position": -1}, {"position": "x"}, {"events": []}, {"events": [[0, False, 0, 0, 0]] * 3},
    {"events": [[0, False, 7, 0, 0]] * 4}, {"events": [[2**63, False, 0, 0, 0]] * 4}, {"late": [1]}, {"packets": b"xyz"},
    {"packets": bytes(4)}, {"settings": {}}, {"z": float("nan")}, {"z": None}, {"other": 1},
    {"settings": {"loss": "x", "duplicate": None, "corrupt": None, "reorder": None, "delay": None}},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_STATES, ids=str)
def test_wrong_states_are_refused(wrong):
    bench = Bench(loss="1%")
    state = bench.impairment.save_state()
    with pytest.raises(VnicError, match="bad: "):
        bench.impairment.load_state({**state, **wrong})
    bench.impairment.load_state(state)
    bench.close()


def test_packets_that_wait_are_dropped_with_the_element():
    bench = Bench(delay="1s", reorder="50%")
    bench.inject([numbered(n) for n in range(10)])
    bench.engine.close()
    assert bench.pool.in_use == 0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"loss": 0.01}, "loss: 0.01: expected a share in percent, such as 0.1%"),
        ({"loss": "0.01"}, "expected a share in percent"),
        ({"loss": "101%"}, "at most 100%"),
        ({"loss": "-1%"}, "expected a share"),
        ({"loss": "nan%"}, "expected a share"),
        ({"loss": "1e30%"}, "expected a share"),
        ({"loss": 1}, "expected a share"),
        ({"loss": True}, "expected a share"),
        ({"loss": {}}, "an empty mapping: expected share, share and burst"),
        ({"loss": {"share": "1%", "burst": 0.5}}, "expected the mean number of packets lost in a row, at least 1"),
        ({"loss": {"share": "90%", "burst": 2}}, "at least 9 for a share of 90%"),
        ({"loss": {"share": "1%", "burst": "x"}}, "expected a number"),
        ({"loss": {"share": "1%", "correlation": "100%"}}, "expected less than 100%"),
        ({"loss": {"p13": "60%", "p14": "60%"}}, "p13 and p14 are 120%: expected at most 100%"),
        ({"loss": {"p13": "1%", "p31": "60%", "p32": "60%"}}, "p31 and p32 are 120%"),
        ({"loss": {"share": "1%", "p13": "1%"}}, "p13, share: expected share, share"),
        ({"loss": ["1%"]}, "expected a share"),
        ({"duplicate": "x"}, "duplicate: 'x'"),
        ({"corrupt": {"share": "1%", "part": "tail"}}, "part 'tail': expected any, header or payload"),
        ({"corrupt": {"share": "1%", "part": "header", "checksum": "mend"}}, "write part: payload"),
        ({"corrupt": {"part": "any"}}, "no share"),
        ({"reorder": {"share": "1%", "by": 65}}, "by 65: expected a number of packets, 1 to 64"),
        ({"reorder": {"share": "1%", "by": 0}}, "by 0"),
        ({"reorder": {"share": "1%", "within": "2h"}}, "expected a time from 0 to 1h"),
        ({"delay": "10"}, "has no unit"),
        ({"delay": -1}, "expected a time from 0 to 1h"),
        ({"delay": 1.5}, "expected a time such as 40ms"),
        ({"delay": {"jitter": "1ms"}}, "no mean"),
        ({"delay": {"mean": "1ms", "sigma": 1}}, "sigma: expected mean, and of "),
        ({"delay": {"mean": "1ms", "shape": "flat"}}, "expected uniform, normal or pareto"),
        ({"delay": {"mean": "1ms", "order": "no"}}, "expected keep or any"),
        ({"delay": {"mean": "1ms", "correlation": "100%"}}, "expected less than 100%"),
    ],
)
def test_wrong_settings_are_one_line(config, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Impairment(**config, name="bad")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("bad: ")


def test_a_seed_of_its_own():
    """The same packets are lost in instances of different seeds."""
    lost = []
    for instance, own in ((1, 7), (2, 7), (1, None)):
        bench = Bench(seed=instance, loss="20%", own=own)
        bench.inject([numbered(n) for n in range(200)])
        lost.append([number_of(data) for data in bench.taken()])
        bench.close()
    assert lost[0] == lost[1] != lost[2]
    for wrong in (-1, 1.5, True, 1 << 63, "x"):
        with pytest.raises(ConfigError, match="expected 0 to"):
            Impairment(seed=wrong)

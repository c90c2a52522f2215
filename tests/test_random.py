"""Random streams of elements: compared with SplitMix64 in Python, and independent of what else an engine runs."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.elements.counter import Counter, Discard
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.errors import VnicError
from dataplane.graph.element import PyElement
from dataplane.graph.port import PortRx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from tests.twins import compiled
from vnic.testing import VirtualNetwork

WORD = (1 << 64) - 1
words = st.integers(0, WORD)


def splitmix64(key: int, n: int) -> int:
    x = (key + (n + 1) * 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return compiled("random_twin", tmp_path_factory.mktemp("random")).TwinStream


def test_the_first_numbers_of_splitmix64(twin):
    """Of key 1234567, as in the author's splitmix64.c (https://prng.di.unimi.it/splitmix64.c)."""
    stream = twin(1234567)
    assert [stream.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(key=words, count=st.integers(0, 1 << 40), bound=st.integers(1, WORD))
def test_a_stream_is_that_of_the_reference(twin, key, count, bound):
    stream = twin(key, count)
    assert stream.at(5) == splitmix64(key, 5)
    assert stream.next() == splitmix64(key, count)
    assert stream.below(bound) == splitmix64(key, count + 1) * bound >> 64
    assert stream.unit() == (splitmix64(key, count + 2) >> 11) / (1 << 53)
    assert stream.count == count + 3


def test_numbers_are_uniform_and_streams_unlike(twin):
    first, second = twin(1), twin(2)
    ones = [first.below(16) for _ in range(160_000)]
    others = [second.below(16) for _ in range(160_000)]
    for drawn in (ones, others):
        # Chi-square of 15 degrees of freedom: 37.7 is its 99.9 % quantile.
        assert sum((drawn.count(value) - 10_000) ** 2 / 10_000 for value in range(16)) < 37.7
    assert abs(sum(a == b for a, b in zip(ones, others, strict=True)) - 10_000) < 400  # four standard deviations


def seeds(seed: int, *names: str) -> list[int]:
    engine = Engine("e0", PacketPool(64, 2), clock=Clock(virtual=True), seed=seed)
    rx, elements = PortRx(MemoryPort("in")), [Counter(name=name) for name in names]
    last = rx
    for each in [*elements, Discard()]:
        last >> each
        last = each
    engine.load([rx])
    found = [each.seed() for each in elements]
    engine.close()
    return found


def test_a_seed_depends_on_the_instance_the_name_and_the_purpose_alone():
    assert seeds(7, "a.loss", "b.loss")[1] == seeds(7, "b.loss")[0]
    assert len({*seeds(7, "a", "b"), *seeds(8, "a", "b"), *seeds(0, "a", "b")}) == 6
    lonely = Counter(name="lonely")
    with pytest.raises(VnicError, match="^lonely: is in no engine, so it has no seed yet"):
        lonely.seed()


FIRST = [1, 2, 14, 18, 20, 21]  # of the frames that stay, with seed 3


class Drops(PyElement):
    """Drops half of the packets; the choice is that of a stream of its own."""

    DROP_REASONS = ("chance",)

    def initialize(self):
        self.chance = random.Random(self.seed("drop"))

    def process(self, batch):
        batch.drop([self.chance.random() < 0.5 for _ in range(len(batch))], "chance")


@pytest.mark.parametrize("engines", [1, 2, 4])
def test_the_same_packets_are_chosen_over_any_number_of_engines(engines):
    """And whatever other elements draw."""
    chosen = []
    for others in (False, True):
        ways = "{elements: [{element: 'tests.test_random:Drops', name: loss}]}"
        extra = f", c: {{egress: {ways}}}" if others else ", c:"
        with VirtualNetwork(f"engines: {engines}\nnics: {{a: {{egress: {ways}}}, b: {extra}}}", seed=3) as net:
            for number in range(200):
                frame = b"\xff" * 6 + bytes([2, 0, 0, 0, 0, 1]) + b"\x88\xb5" + number.to_bytes(2, "big") + bytes(44)
                net.send("a", frame, at=f"{number + 1}us")
                if others:
                    net.send("c", b"\x02" * 12 + b"\x88\xb5" + bytes(46), at=f"{number + 1}us")
            net.run()
            chosen.append(
                [int.from_bytes(bytes(each)[14:16], "big") for each in net.take("b") if bytes(each)[:6] == b"\xff" * 6]
            )
    assert chosen[0] == chosen[1] and 60 < len(chosen[0]) < 140
    assert chosen[0][:6] == FIRST

"""examples/shaping/: each policy does what its first line says, in virtual time."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from shaping.policy.check import check_policy
from shaping.policy.load import load_policy
from vnic.config.load import load_config
from vnic.config.shape import network_of
from vnic.testing import VirtualNetwork
from vnic.testing.frames import Received

EXAMPLES = Path(__file__).parent.parent / "examples" / "shaping"
POLICIES = sorted(path.name for path in EXAMPLES.glob("*.yaml") if path.name != "net.yaml")
COUNT = 2000


def frame(source: bytes, target: bytes, number: int) -> bytes:
    return target + source + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(182)


class Lab:
    """The network of the examples with one of their policies; the switch knows both addresses."""

    def __init__(self, policy: str) -> None:
        self.net = VirtualNetwork(str(EXAMPLES / "net.yaml"), seed=3)
        self.mac = {name: nic.mac.packed for name, nic in self.net.config.nics.items()}
        for name in self.mac:
            self.net.send(name, frame(self.mac[name], b"\2" + bytes(5), 0))
        self.net.run()
        for name in self.mac:
            self.net.take(name)
        self.net.shape(str(EXAMPLES / policy))

    def sent(
        self, source: str, target: str, count: int = COUNT, gap_ms: int = 2
    ) -> tuple[list[Received], list[float], list[int]]:
        """What arrives of `count` packets: packets, delays in ms, and numbers."""
        begin = self.net.now_ns
        self.net.send(source, [frame(self.mac[source], self.mac[target], n) for n in range(count)], gap=gap_ms * 1_000_000)
        self.net.run()
        found = self.net.take(target)
        numbers = [int.from_bytes(each.data[14:18], "big") for each in found]
        step = gap_ms * 1_000_000
        return found, [(each.time_ns - begin - n * step) / 1e6 for each, n in zip(found, numbers, strict=True)], numbers


@pytest.fixture
def lab():
    made: list[Lab] = []

    def make(policy: str) -> Lab:
        made.append(Lab(policy))
        return made[-1]

    yield make
    for each in made:
        each.net.close()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_applied(name):
    network = network_of(load_config(EXAMPLES / "net.yaml"))
    assert [each for each in check_policy(load_policy(EXAMPLES / name), network) if each.kind == "error"] == []
    assert f"({name})" in (EXAMPLES / "README.md").read_text()


def test_page_over_3g(lab):
    made = lab("page-over-3g.yaml")
    for source, target, rate in (("server", "client", 1.6e6), ("client", "server", 0.768e6)):
        _, delays, _ = made.sent(source, target, 100, 5)
        assert delays == pytest.approx([150 + 200 * 8e3 / rate] * 100)
    received, _, _ = made.sent("server", "client", 20, 0)
    gaps = {b.time_ns - a.time_ns for a, b in itertools.pairwise(received)}
    assert gaps == {1_000_000}  # 200 bytes at 1.6 Mbit/s


def test_satellite(lab):
    found, delays, _ = lab("satellite.yaml").sent("client", "server")
    assert 0 < COUNT - len(found) < 20
    assert delays == pytest.approx([300 + 200 * 8e3 / 3e6] * len(found))


def test_lossy_wifi(lab):
    _found, delays, numbers = lab("lossy-wifi.yaml").sent("client", "server")
    assert numbers == sorted(numbers) and len(set(delays)) > COUNT // 2
    lost = sorted(set(range(COUNT)) - set(numbers))
    assert 0.002 * COUNT < len(lost) < 0.06 * COUNT
    assert sum(b == a + 1 for a, b in itertools.pairwise(lost)) > len(lost) // 2  # in bursts


def test_home_office(lab):
    received, _, _ = lab("home-office.yaml").sent("client", "server", 50, 0)
    on_line = 200 - 14 + 30
    on_line += -(-on_line // 64)
    gaps = [b.time_ns - a.time_ns for a, b in itertools.pairwise(received)]
    assert gaps == pytest.approx([on_line * 800] * 49, abs=1)


def test_slow_database(lab):
    made = lab("slow-database.yaml")
    assert set(made.sent("client", "server", 20)[1]) == {0.0}
    assert set(made.sent("server", "client", 20)[1]) == {150.0}


def test_bad_cable(lab):
    made = lab("bad-cable.yaml")
    sent = {n: frame(made.mac["client"], made.mac["server"], n) for n in range(COUNT)}
    found, _, _ = made.sent("client", "server")
    wrong = [each for n, each in enumerate(found) if each.data != sent[n]]
    # a changed address may lead a packet elsewhere; here none does
    assert len(found) == COUNT and 0 < len(wrong) < 10


def test_unordered(lab):
    _, _, numbers = lab("unordered.yaml").sent("client", "server")
    late = [n for place, n in enumerate(numbers[:-1]) if n < max(numbers[: place + 1])]
    assert 5 < len(late) < 45 and set(numbers) == set(range(COUNT))


def test_shared_uplink(lab):
    made = lab("shared-uplink.yaml")
    for source, target, rate in (("server", "client", 15e6), ("client", "server", 5e6)):
        received, _, _ = made.sent(source, target, 50, 0)
        gaps = [b.time_ns - a.time_ns for a, b in itertools.pairwise(received)]
        assert gaps == pytest.approx([200 * 8e9 / rate] * 49, abs=1)


def test_one_way(lab):
    made = lab("one-way.yaml")
    assert len(made.sent("client", "server", 20)[0]) == 20
    assert made.sent("server", "client", 20)[0] == []

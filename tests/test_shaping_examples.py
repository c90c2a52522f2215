"""examples/shaping/: each policy does what its first line says, in virtual time."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from examples.shaping.lte_trace import opportunities
from shaping.policy.check import check_policy
from shaping.policy.load import load_policy
from tests.test_trace_link import Mahimahi
from tests.wire_frames import UDP, Spec
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


def test_the_synthetic_trace_is_that_of_its_program():
    assert (EXAMPLES / "lte.down").read_text().split() == [str(at) for at in opportunities()]


def test_video_over_lte(lab):
    """What arrives, and when, is what Mahimahi's queue would let pass; the other way the rate drops to
    a quarter after 15 s."""
    made = lab("video-over-lte.yaml")
    twin, begin = Mahimahi(opportunities(), 100, made.net.now_ns, True), made.net.now_ns
    for n in range(8 * COUNT):
        twin.arrive(begin + n * 1_000_000, [200])
    twin.run(begin + 60 * 10**9, idle=False)
    found, delays, numbers = made.sent("server", "client", 8 * COUNT, 1)
    assert [each.time_ns - 30_000_000 for each in found] == [at for at, _ in twin.left]
    assert twin.drops == 8 * COUNT - len(found) > 500 and numbers == sorted(numbers)
    assert max(delays) > 900 + 30  # across the outage
    made = lab("video-over-lte.yaml")
    made.net.advance("14s")
    _, delays, _ = made.sent("client", "server", 800, 2)
    assert delays[:400] == pytest.approx([30 + 200 * 8e3 / 4e6] * 400)
    assert delays[-250:] == pytest.approx([30 + 200 * 8e3 / 1e6] * 250)


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


def ip_frame(made: Lab, source: str, target: str, *, tos: int = 0, port: int = 1, size: int = 1000) -> bytes:
    addresses = {"client": bytes([10, 0, 0, 1]), "server": bytes([10, 0, 0, 2])}
    spec = Spec(
        protocol=UDP, tos=tos, source_port=port, source=addresses[source], destination=addresses[target],
        payload=bytes(size - 42),
    )  # fmt: skip
    return made.mac[target] + made.mac[source] + bytes(spec.frame().data)[12:]


def test_upload_and_calls(lab):
    made = lab("upload-and-calls.yaml")
    work, backup, call = (ip_frame(made, "client", "server", tos=tos) for tos in (0, 8 << 2, 46 << 2))
    made.net.send("client", [backup] * 50 + [work] * 50 + [call] * 5)
    made.net.run()
    order = [each.data[15] >> 2 for each in made.net.take("server")]
    assert len(order) == 105
    assert max(n for n, dscp in enumerate(order) if dscp == 46) < 20  # within their ceiling, before all others
    # work has 6 of 9.5 Mbit/s, and 8 of 9 of what is left
    half = order[: order.index(0) + 56]
    assert half.count(0) > 4 * half.count(8)


def test_tenants(lab):
    made = lab("tenants.yaml")
    gold, others = ip_frame(made, "server", "client"), bytearray(ip_frame(made, "server", "client"))
    others[33] = 99  # another destination
    made.net.send("server", [bytes(others)] * 100 + [gold] * 100)
    made.net.run()
    found = [each.data[33] for each in made.net.take("client")]
    half = found[:80]
    assert len(found) == 200 and half.count(1) >= 3 * half.count(99)


def test_noisy_neighbour(lab):
    made = lab("noisy-neighbour.yaml")
    flows = [ip_frame(made, "server", "client", port=port) for port in range(1, 41)]
    made.net.send("server", flows * 5 + [ip_frame(made, "server", "client", port=999, size=100)])
    made.net.run()
    ports = [int.from_bytes(each.data[34:36], "big") for each in made.net.take("client")]
    assert ports.index(999) <= 2 * 40 + 1  # two packets a turn; 200 came before it


def test_failover_flap(lab):
    made = lab("failover-flap.yaml")
    start = made.net.now_ns
    _, delays, numbers = made.sent("client", "server", 6500, 10)
    assert set(numbers) & set(range(2000, 2200)) == set()  # nothing for two seconds
    lost = set(range(6500)) - set(numbers) - set(range(2000, 2200))
    assert 3 < len(lost) < 50 and all(2200 <= n < 4000 for n in lost)
    fast, slow = round(5 + 200 * 8e3 / 50e6, 6), round(45 + 200 * 8e3 / 4e6, 6)

    def came(begin, end):
        return {round(delay, 6) for n, delay in zip(numbers, delays, strict=True) if begin <= n < end}

    assert came(0, 2000) == came(4510, 6000) == came(6000, 6500) == {fast}
    assert came(2200, 4000) == {slow}
    back = sorted(came(4000, 4500))  # in 50 parts
    assert len(back) == 50 and back[-1] == slow and fast < back[0] < fast + 1
    # the other direction, in the second minute; the delay comes before the line that is down
    begin_ms = (made.net.now_ns - start) / 1e6
    _, _, numbers = made.sent("server", "client", 2000, 10)
    missing = set(range(2000)) - set(numbers)
    assert {n for n in range(2000) if 80_000 <= begin_ms + 10 * n < 81_950} <= missing and len(missing) < 210


def test_explained(lab):
    made = lab("explained.yaml")
    begin = made.net.now_ns
    work, backup, call = (ip_frame(made, "client", "server", tos=tos) for tos in (0, 8 << 2, 46 << 2))
    made.net.send("client", [backup] * 60 + [work] * 60 + [call] * 5)
    made.net.run()
    order = [each.data[15] >> 2 for each in made.net.take("server")]
    assert order.count(46) == 5 and len(order) >= 122  # 0.1 % are lost
    assert max(n for n, dscp in enumerate(order) if dscp == 46) < 20  # within their ceiling, before all others
    # work has 5 of 9.5 Mbit/s, and three parts of four of the rest
    half = order[: order.index(0) + 60]
    assert half.count(0) > 5 * half.count(8)
    # then one packet every 10 ms, until after the storm
    start_ms = (made.net.now_ns - begin) / 1e6
    _, delays, numbers = made.sent("client", "server", 6000, 10)
    assert numbers == sorted(numbers) and 11 < sum(delays) / len(delays) < 14 and max(delays) < 30
    lost = [(start_ms + 10 * n) / 1000 for n in sorted(set(range(6000)) - set(numbers))]
    storm = [at for at in lost if 20 <= at < 45]
    assert 10 < len(storm) < 120 and len(lost) - len(storm) < 20
    received, _, _ = made.sent("server", "client", 50, 0)
    on_line = 200 - 14 + 30
    on_line += -(-on_line // 64)
    gaps = [b.time_ns - a.time_ns for a, b in itertools.pairwise(received)]
    assert gaps == pytest.approx([on_line * 8e9 / 50e6] * 49, abs=1)


def test_the_explanation_is_of_this_policy():
    """docs/a-policy-explained.md has the policy, and small pictures with a white ground."""
    docs = EXAMPLES.parent.parent / "docs"
    page = (docs / "a-policy-explained.md").read_text()
    assert f"```yaml\n{(EXAMPLES / 'explained.yaml').read_text()}```" in page
    pictures = sorted((docs / "pictures").iterdir())
    assert [each.name for each in pictures] == [f"explained-{name}.svg" for name in ("classes", "line", "network", "packets")]
    for each in pictures:
        text = each.read_text()
        assert f"(pictures/{each.name})" in page and len(text) < 60_000
        assert re.search(r"<(rect|polygon|path)[^>]*fill[=:] ?\"?(white|#ffffff)", text), each.name

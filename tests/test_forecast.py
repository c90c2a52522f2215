"""What `check` foretells of TCP: bounds that contain simulations of published algorithms; exact framing; and what
classes leave to each other, compared with a Scheduler in virtual time."""

from __future__ import annotations

import json
import math
import random

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from shaping.class_settings import read_tree
from shaping.policy.check import foretell
from shaping.policy.forecast import CLASSES_SAID, Forecast, least_rates
from shaping.policy.load import parse_policy
from shaping.policy.network import Network
from shaping.policy.tcp_bounds import (
    HOSTS_NS,
    SEGMENT_BYTES,
    filled,
    least_by_loss,
    least_by_windows,
    most_by_loss,
    queue_needed,
)
from vnic.cli.main import cli
from vnic.testing import VirtualNetwork

NETWORK = Network(
    {name: f"02:00:00:00:00:0{number}" for number, name in enumerate(("web", "db", "lab"), 1)}, {"lan--dmz": ("lan", "dmz")}
)
MS, MBIT = 10**6, 10**6


def foretold(text: str) -> dict[str, Forecast]:
    return {each.place: each for each in foretell(parse_policy(f"version: 1\n{text}", "p.yaml"), NETWORK)}


def lines(*entries: str) -> dict[str, Forecast]:
    return foretold("links:\n" + "".join(f"  {each}\n" for each in entries))


# -- losses: simulations -----------------------------------------------------------------------------


class Losses:
    """Packets until the next loss: evenly spaced, or independent."""

    def __init__(self, share: float, spaced: bool) -> None:
        self.rng, self.share, self.spaced = random.Random(1), share, spaced
        self.left = self.next()

    def next(self) -> float:
        return 1 / self.share if self.spaced else math.log(self.rng.random()) / math.log(1 - self.share)

    def happens(self, packets: float) -> bool:
        self.left -= packets
        if self.left > 0:
            return False
        self.left = self.next()
        return True


def reno(losses: Losses, rtt: float, count: int) -> float:
    """The mean window: a segment more each round trip, half of it after one with a loss (RFC 5681)."""
    window, total, trips, lost = 1 / math.sqrt(losses.share), 0.0, 0, 0
    while lost < count:
        total, trips = total + window, trips + 1
        if losses.happens(window):
            lost, window = lost + 1, max(window / 2, 1)
        else:
            window += 1
    return total / trips


def cubic(losses: Losses, rtt: float, count: int) -> float:
    """The mean window by RFC 9438, sections 4.2 to 4.7, without slow start and timeouts."""
    beta, c = 0.7, 0.4
    window = friendly = top = 1 / math.sqrt(losses.share)
    total, trips, lost, since = 0.0, 0, 0, 0.0
    while lost < count:
        total, trips, since = total + window, trips + 1, since + rtt
        if losses.happens(window):
            lost, since = lost + 1, 0.0
            top = window * (1 + beta) / 2 if window < top else window
            window = friendly = max(window * beta, 1)
            continue
        friendly += 3 * (1 - beta) / (1 + beta)
        k = math.cbrt(max(top - top * beta, 0) / c)
        wanted = top + c * (since + rtt - k) ** 3
        window = max(window, friendly) if wanted < friendly else max(window, min(wanted, 1.5 * window))
    return total / trips


@pytest.mark.parametrize("spaced", [True, False], ids=["spaced", "independent"])
@pytest.mark.parametrize("algorithm", [reno, cubic])
@pytest.mark.parametrize(
    ("share", "rtt_ms"),
    [
        (0.02, 20),
        (0.01, 20),
        (0.01, 100),
        (0.001, 2),
        (0.001, 100),
        (1e-4, 20),
        (1e-4, 100),
        (1e-4, 300),
        (1e-5, 100),
        (1e-6, 300),
    ],
)
def test_simulated_connections_are_within_the_bounds(share, rtt_ms, algorithm, spaced):
    if algorithm is reno and share < 1e-4 and rtt_ms > 20:
        return  # CUBIC alone has the window that the upper bound is for
    window = algorithm(Losses(share, spaced), rtt_ms / 1000, 300 if spaced else 3000)
    reached = window * SEGMENT_BYTES * 8 * 1000 / rtt_ms
    assert least_by_loss(rtt_ms * MS + HOSTS_NS, share, 1) <= reached <= most_by_loss(rtt_ms * MS, share)


def test_bounds_of_losses():
    # sqrt(3/2) / sqrt(1 %) = 12.2 segments in 20 ms, and 20 %
    assert most_by_loss(20 * MS, 0.01) == pytest.approx(1.2 * 12.247 * 1448 * 8 / 0.02, rel=1e-4)
    # (100 ms / 0.01 %)^0.75 = 177.8; (0.4 * 3.7 / 1.2)^0.25 = 1.0538
    assert most_by_loss(100 * MS, 0.0001) == pytest.approx(1.2 * 1.0538 * 177.83 * 1448 * 8 / 0.1, rel=1e-4)
    # RFC 5348 with b = 2: 20 ms * sqrt(0.04 / 3) + 220 ms * 3 sqrt(0.06 / 8) * 0.01 * 1.0032
    assert least_by_loss(20 * MS, 0.01, 1.01) == pytest.approx(0.8 * 1448 * 8 / (0.0023094 + 0.00057343), rel=1e-3)
    assert most_by_loss(20 * MS, 0) == most_by_loss(0, 0.01) == least_by_loss(20 * MS, 0, 1) == math.inf
    assert least_by_loss(20 * MS, 0.01, 2) == 0  # six packets: one burst in 64 takes them all
    assert least_by_loss(20 * MS, 0.001, 2) == least_by_loss(20 * MS, 0.001, 1) > 0
    assert least_by_windows(100 * MS) == (2 << 20) * 8 * 10


@given(st.integers(1, 10**10), st.floats(1e-9, 0.5))
def test_the_lower_bound_is_below_the_upper_one(rtt_ns, share):
    assert 0 < least_by_loss(rtt_ns, share, 1) < most_by_loss(rtt_ns, share)


# -- queues: a simulation ----------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [10, 40, 100, 200, 500])
@pytest.mark.parametrize("underway", [1, 20, 100, 400])
def test_a_simulated_queue_is_used_as_foretold(queue, underway):
    """A window grows until the queue is full, then it is 0.7 of it: the slowest way, by one segment each time."""
    window, used, trips = 0.7 * (underway + queue), 0.0, 0
    while window < underway + queue:
        used, trips, window = used + min(window / underway, 1), trips + 1, window + 1
    assert used / trips >= filled(queue, underway)
    assert filled(queue_needed(underway), underway) == 1


# -- lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "most", "rtt"),
    [
        ("rate: 10mbit", 10e6 * 1448 / 1514, 100 + 2 * 1.2112 + 10),
        ("rate: 10mbit, queue: {packets: 10}", 10e6 * 1448 / 1514, 10 * 1.2112 + 2 * 1.2112 + 10),
        ("rate: 1gbit, queue: 5ms", 1e9 * 1448 / 1514, 5 + 2 + 10),  # parts of GSO frames of 1 ms
        ("rate: 10mbit, overhead: ethernet", 10e6 * 1448 / 1538, 100 + 2 * 1.2304 + 10),
        ("rate: 10mbit, overhead: conservative", 10e6 * 1448 / (33 * 53), 100 + 2 * 1.3992 + 10),
    ],
)
def test_framing_is_exact(settings, most, rtt):
    found = lines(f"web -> any: {{{settings}}}")["web -> any"]
    assert found.goodput_bps == (pytest.approx(0.9 * most, abs=1), pytest.approx(most, abs=1))
    assert found.rtt_ns == (0, pytest.approx(rtt * MS, abs=2))


def test_a_way_has_all_its_lines():
    found = lines(
        "web -> any: {rate: 50mbit, queue: 50ms}",
        "web <-> db: {rtt: 40ms}",
        "any -> db: {rate: 20mbit, queue: 30ms, delay: 1ms}",
    )
    assert found["web -> db"].goodput_bps[1] == math.ceil(20e6 * 1448 / 1514)
    assert found["web -> any"].goodput_bps[1] == math.ceil(50e6 * 1448 / 1514)
    least, most = found["web -> db"].rtt_ns
    assert least == 41 * MS and most == pytest.approx((41 + 10 + 50 + 2 + 30 + 2) * MS)
    assert found["db -> web"] == Forecast("db -> web", None, (least, most))


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ("{mean: 20ms, jitter: 5ms}", 15, 25),
        ("{mean: 20ms, jitter: 30ms}", 0, 50),
        ("{mean: 40ms, jitter: 5ms, shape: normal}", 10, 70),
        ("{mean: 20ms, jitter: 10ms, shape: pareto}", 14.2, 220),
    ],
)
def test_jitter_widens_the_round_trip(settings, least, most):
    found = lines(f"web -> db: {{delay: {settings}}}")["web -> db"]
    assert found.rtt_ns == (least * MS, most * MS + HOSTS_NS)


def test_what_lowers_the_lower_bound():
    def least(settings: str, *more: str) -> float:
        return (
            lines(f"web -> db: {{rate: 10mbit, {settings}}}", "db -> web: {delay: 20ms}", *more)["web -> db"].goodput_bps[0]
            / MBIT
        )

    whole = 0.9 * 10 * 1448 / 1514
    assert least("queue: 100ms") == pytest.approx(whole, abs=1e-5)
    # 17 packets are under way; 10 come at once
    assert least("queue: {packets: 6}") == pytest.approx(whole * 6 / (3 / 7 * 27), abs=1e-5)
    assert least("queue: 100ms, duplicate: 25%") == pytest.approx(whole / 1.25, abs=1e-5)
    assert least("queue: 100ms, reorder: {share: 1%, by: 3}") == 0
    assert least("queue: 100ms, reorder: {share: 1%, by: 2}") > 0
    assert least("delay: {mean: 5ms, jitter: 1ms, order: any}") == 0
    assert least("loss: {share: 1%, burst: 4}") == 0
    assert 0 < least("loss: 1%") < least("loss: 0.1%") < whole
    # acknowledgements of 66 bytes, one of two segments
    assert least("queue: 100ms", "any -> web: {rate: 100kbit}") == pytest.approx(0.9 * 0.1 * 2 * 1448 / 66, abs=1e-5)
    assert least("loss: 1%") < least("queue: 100ms", "any -> web: {loss: 1%}") < whole
    assert least("queue: 100ms", "any -> web: {loss: 0.1%}") == pytest.approx(whole, abs=1e-5)
    assert least("queue: 100ms", "any -> web: {loss: 100%}") == 0
    # hosts have 2 MB under way
    slow = lines("web -> db: {rate: 1gbit, queue: 5s, delay: 100ms}")["web -> db"].goodput_bps[0]
    assert slow == pytest.approx(0.9 * (2 << 20) * 8 * 10)


def test_nothing_is_foretold_where_nothing_bounds_it():
    found = lines("web <-> db: {rtt: 40ms}", "lab -> db: {loss: 1%}", "db -> lab: {loss: 100%, rate: 1mbit}")
    assert found["web -> db"].goodput_bps is None and found["lab -> db"].goodput_bps is None
    assert found["db -> lab"].goodput_bps is None
    assert found["web -> db"].rtt_ns == (40 * MS, 50 * MS)


def test_a_trace_is_used_for_the_half():
    trace = "[{for: 900ms, rate: 20mbit}, {for: 100ms, rate: 0bit}]"
    found = lines(f"web -> any: {{trace: {trace}, queue: {{packets: 100}}}}")["web -> any"]
    mean = 18e6 * 1448 / 1514
    assert found.goodput_bps == (pytest.approx(0.9 * 0.4 * mean, abs=1), pytest.approx(mean, abs=1))


def test_a_share_of_an_uplink():
    found = foretold("shares:\n  uplink:\n    capacity: 40mbit\n    web: {weight: 3}\n    db: {weight: 1}\n")
    assert found["web -> any"].goodput_bps == pytest.approx((0.9 * 30e6 * 1448 / 1514, 40e6 * 1448 / 1514), abs=2)
    assert found["db -> any"].goodput_bps == pytest.approx((0.9 * 10e6 * 1448 / 1514, 40e6 * 1448 / 1514), abs=2)


def test_a_link_has_two_directions():
    found = lines("lan--dmz: {rate: 10mbit, delay: 5ms}")
    assert list(found) == ["lan--dmz -> dmz", "lan--dmz -> lan"] and len({each.rtt_ns for each in found.values()}) == 1


# -- classes -----------------------------------------------------------------------------------------

TREE = """
  web.egress:
    rate: 20mbit
    default: bulk
    tree:
      voice: {match: {dscp: ef}, guarantee: 1mbit, ceiling: 2mbit, priority: 0}
      gold: {match: {protocol: tcp}, guarantee: 8mbit, queue: fq_codel}
      bulk: {weight: 3}
"""


def test_classes_have_what_others_leave():
    found = foretold(f"links:\n  web -> any: {{delay: 10ms}}\nclasses:{TREE}")
    payload = 1448 / 1514
    # 20 less 1 and 8; voice takes 1 more; the others share 10 as 1 to 3
    assert found["web.egress/voice"].goodput_bps == pytest.approx((0.9 * 2e6 * payload, 2e6 * payload), abs=2)
    # CoDel: 0.7; alone it has all
    assert found["web.egress/gold"].goodput_bps == pytest.approx((0.7 * 0.9 * 10.5e6 * payload, 20e6 * payload), abs=2)
    assert found["web.egress/bulk"].goodput_bps == pytest.approx((0.9 * 7.5e6 * payload, 20e6 * payload), abs=2)
    # CoDel's target and interval, and a round trip; a fifo of 100 ms at its ceiling lasts longer at less
    send = 1514 * 8 / 10.5
    assert found["web.egress/gold"].rtt_ns == (
        10 * MS,
        pytest.approx(((10 + 10 + 5 + 100 + 10) * 1000 + 2 * send) * 1000, abs=5),
    )
    longest = (20 * 1000 + 100_000 * 20 / 7.5 + 2 * 1514 * 8 / 7.5) * 1000
    assert found["web.egress/bulk"].rtt_ns == (10 * MS, pytest.approx(longest, abs=5))
    # a packet that no class matches, while nothing else is sent
    assert found["web -> any"].goodput_bps == pytest.approx((0.9 * 20e6 * payload, 20e6 * payload), abs=2)


def test_a_class_that_others_can_starve():
    found = foretold("classes:" + TREE.replace("bulk: {weight: 3}", "bulk: {priority: 7}"))
    assert found["web.egress/bulk"].goodput_bps[0] == 0 and found["web.egress/bulk"].rtt_ns == (0, None)


def test_classes_of_links_and_of_what_a_nic_receives():
    tree = "{rate: 10mbit, default: rest, tree: {rest: {}}}"
    found = foretold(f"classes:\n  db.ingress: {tree}\n  lan--dmz -> dmz: {tree}\nlinks:\n  web <-> db: {{rtt: 10ms}}\n")
    assert {"db.ingress/rest", "lan--dmz -> dmz/rest"} < set(found)
    assert found["web -> db"].goodput_bps[1] == math.ceil(10e6 * 1448 / 1514) and found["db -> web"].goodput_bps is None


def test_many_classes_are_said_up_to_a_bound():
    tree = "".join(f"      c{number}: {{guarantee: 10kbit, match: {{source_port: {number + 1}}}}}\n" for number in range(1000))
    text = f"version: 1\nclasses:\n  web.egress:\n    rate: 20mbit\n    default: c0\n    tree:\n{tree}"
    from shaping.policy.check import check_policy

    said = [each.text for each in check_policy(parse_policy(text), NETWORK) if "one TCP connection" in each.text]
    assert len(said) == CLASSES_SAID and len(foretell(parse_policy(text), NETWORK)) == 1000


def frame(source: int, target: int, size: int, mark: int) -> bytes:
    head = bytes([2, 0, 0, 0, 0, target]) + bytes([2, 0, 0, 0, 0, source]) + b"\x08\x00"
    ip = (
        bytes([0x45, mark << 2])
        + (size - 14).to_bytes(2, "big")
        + bytes([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, source, 10, 0, 0, target])
    )
    return head + ip + bytes(size - 34)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(3, 5), st.sampled_from([None, 4, 8])),
        min_size=2,
        max_size=4,
    )
)
def test_least_rates_are_those_of_a_scheduler_whose_classes_all_send(classes):
    """classes: (guarantee, weight, priority, ceiling); rates in Mbit/s, of 12."""
    tree = {}
    for number, (guarantee, weight, priority, ceiling) in enumerate(classes):
        tree[f"c{number}"] = {
            "guarantee": f"{guarantee}mbit" if guarantee else None, "weight": weight, "priority": priority,
            "ceiling": f"{ceiling}mbit" if ceiling else None, "match": {"dscp": number + 1},
            "queue": {"discipline": "fifo", "packets": 2000},
        }  # fmt: skip
        tree[f"c{number}"] = {key: each for key, each in tree[f"c{number}"].items() if each is not None}
    setting = read_tree("t", {"rate": "12mbit", "default": "c0", "tree": {
        name: {key: each for key, each in fields.items() if key != "match"} for name, fields in tree.items()}})  # fmt: skip
    rates = least_rates(setting.classes)[1:]
    nics = "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}}"
    with VirtualNetwork(nics) as net:
        net.send("db", frame(2, 1, 60, 0))
        net.run()
        net.shape({"version": 1, "classes": {"web.egress": {"rate": "12mbit", "default": "c0", "tree": tree}}})
        for number in range(len(classes)):
            net.send("web", [frame(1, 2, 1000, number + 1)] * 500)
        net.take("db")
        net.advance("300ms")
        got = [0] * len(classes)
        for each in net.take("db"):
            got[(each.data[15] >> 2) - 1] += 8000
    for bits, rate in zip(got, rates, strict=True):
        assert bits >= 0.3 * rate - 4 * 8000, (got, rates)


def test_json_has_the_forecasts(tmp_path):
    (tmp_path / "net.yaml").write_text("nics: {web: {netns: /run/netns/web}, db: {netns: /run/netns/db}}")
    (tmp_path / "p.yaml").write_text("version: 1\nlinks: {web -> db: {rate: 10mbit}}\n")
    done = CliRunner().invoke(cli, ["shape", "check", str(tmp_path / "p.yaml"), "-c", str(tmp_path / "net.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["forecasts"] == [
        {"place": "web -> db", "goodput_bps": [8607661, 9564069], "rtt_ns": [0, 112422400]},
        {"place": "db -> web", "goodput_bps": None, "rtt_ns": [0, 112422400]},
    ]

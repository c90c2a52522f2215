"""Promises of policies in tests: rates, delays and losses that are kept pass, others say why not."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.errors import ConfigError
from shaping.loss_bounds import loss_bounds
from shaping.loss_model import Chain, chain_of
from tests.test_shape import frame
from vnic.testing import VirtualNetwork

NET = "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}, cam: {mac: '02:00:00:00:00:03'}}"
NUMBERS = {"web": 1, "db": 2, "cam": 3}
RARE = 1e-6


def numbered(source: str, target: str, count: int, size: int = 1250, first: int = 0) -> list[bytes]:
    made = frame(NUMBERS[source], NUMBERS[target], size)
    return [made[:14] + n.to_bytes(4, "big") + made[18:] for n in range(first, first + count)]


@pytest.fixture
def net():
    with VirtualNetwork(NET, seed=1) as made:
        for nic, number in NUMBERS.items():  # the switch knows all addresses
            made.send(nic, frame(number, 9))
        made.run()
        for nic in NUMBERS:
            made.take(nic)
        yield made


def shaped(net: VirtualNetwork, line: str) -> None:
    net.shape(f"version: 1\nseed: 4\nlinks: {{{line}}}")


# -- rates -----------------------------------------------------------------------------------------


def test_a_rate_is_exact_in_virtual_time(net):
    shaped(net, "web -> db: {rate: 10mbit, queue: 10s, delay: 20ms}")
    packets = [each for size in range(100, 1500) for each in numbered("web", "db", 1, size, size)]
    net.send("web", packets)
    net.run()
    net.assert_rate("web -> db", "10mbit", window="100ms")
    net.assert_rate("web -> any", "10mbit")
    net.assert_rate("any -> db", "10mbit", after="50ms")
    net.assert_rate("web -> db", "9.95mbit", within="1%")
    with pytest.raises(AssertionError, match=r"asked 10.001mbit, measured 10mbit \(-0.01%\) over 895ms, bound exact"):
        net.assert_rate("web -> db", "10.001mbit")


def test_the_rate_of_a_limit_and_that_of_a_line_are_measured(net):
    """A shaper's packet leaves when its transmission begins, a line's when it ends."""
    sizes = [300, 1500, 60, 700]
    net.apply(NET.replace("'02:00:00:00:00:01'", "'02:00:00:00:00:01', egress: {rate: 1mbit}"))
    net.send("web", [each for n, size in enumerate(sizes) for each in numbered("web", "db", 1, size, n)])
    net.run()
    net.assert_rate("web -> db", "1mbit", after="1ms")  # after the credit of the time before
    net.shape("version: 1\nlinks: {any -> db: {rate: 500kbit}}")
    net.send("web", [each for n, size in enumerate(sizes) for each in numbered("web", "db", 1, size, 10 + n)])
    net.run()
    net.assert_rate("web -> db", "500kbit")


def test_a_rate_with_what_the_line_adds(net):
    shaped(net, "web -> db: {rate: 1mbit, queue: 10s, overhead: pppoa-llc}")
    net.send("web", numbered("web", "db", 100, 91))  # 91 - 14 + 14 bytes: two cells
    net.run()
    net.assert_rate("web -> db", "1mbit", overhead="pppoa-llc")
    with pytest.raises(AssertionError, match="measured 858.491kbit"):
        net.assert_rate("web -> db", "1mbit")


def test_why_a_rate_is_not_kept(net):
    shaped(net, "web -> db: {rate: 10mbit}")
    net.send("web", numbered("web", "db", 20), gap="2ms")
    net.send("web", numbered("web", "db", 20, first=20), gap="2ms", at="200ms")
    net.run()
    with pytest.raises(AssertionError) as failed:
        net.assert_rate("web -> db", "10mbit", within="5%")
    assert str(failed.value).splitlines() == [
        "web -> db: rate: asked 10mbit, measured 1.64% of it".replace("1.64% of it", "1.63866mbit (-83.6%) over 238ms,")
        + " bound 9.5mbit to 10.5mbit",
        "  the senders sent only 1.63866mbit: send more",
        "  nothing came for 162ms from 39ms on",
        "  policy: web -> db: rate 10mbit",
    ]


def test_a_rate_in_every_window(net):
    """On average it is kept, in 10 ms of them it is not."""
    net.send("web", numbered("web", "db", 10), gap="500us")
    net.send("web", numbered("web", "db", 10, first=10), gap="1500us", at="5500us")
    net.run()
    net.assert_rate("web -> db", "10mbit", within="1%")
    with pytest.raises(AssertionError, match=r"in the 4ms from \S+ on, bound 9.9mbit to 10.1mbit and one packet"):
        net.assert_rate("web -> db", "10mbit", within="1%", window="4ms")
    with pytest.raises(ConfigError, match="window 1s: packets came for 19ms: expected less than that"):
        net.assert_rate("web -> db", "10mbit", within="1%", window="1s")


# -- delays ----------------------------------------------------------------------------------------


def test_delays_are_exact_in_virtual_time(net):
    shaped(net, "web -> db: {delay: 20ms}, web -> any: {delay: 1ms}")
    net.send("web", numbered("web", "db", 50), gap="100us")
    net.send("cam", numbered("cam", "db", 50))
    net.run()
    net.assert_delay("web -> db", mean="21ms", p50="21ms", p99=21_000_000, most="21ms")
    net.assert_delay("cam -> db", most=0)
    net.assert_delay("web -> db", mean="20ms", within="1ms")
    with pytest.raises(AssertionError) as failed:
        net.assert_delay("web -> db", mean="20ms", within="10us")
    assert str(failed.value).splitlines() == [
        "web -> db: delay: asked mean 20ms, measured 21ms of 50 packets (21ms to 21ms), bound 19.99ms to 20.01ms",
        "  policy: web -> any: delay 1ms",
        "  policy: web -> db: delay 20ms",
    ]
    with pytest.raises(AssertionError, match="asked most 20ms, measured 21ms"):
        net.assert_delay("web -> db", most="20ms")


def test_delays_that_vary(net):
    shaped(net, "web -> db: {delay: {mean: 20ms, jitter: 2ms, shape: normal}}")
    net.send("web", numbered("web", "db", 2000), gap="20ms")
    net.run()
    net.assert_delay("web -> db", mean="20ms", p99="24.65ms", within="300us")
    with pytest.raises(AssertionError, match=r"the mean of 2000 that are independent is uncertain by \d+us"):
        net.assert_delay("web -> db", mean="19ms", within="300us")


def test_packets_under_way_at_a_change_are_not_measured(net):
    shaped(net, "web -> db: {delay: 20ms}")
    net.send("web", numbered("web", "db", 5))
    net.advance("1ms")
    shaped(net, "web -> db: {delay: 30ms}")
    net.send("web", numbered("web", "db", 5))  # the same bytes
    net.run()
    net.assert_delay("web -> db", mean="30ms")
    assert len(net.measured("web -> db").packets) == 5
    net.take("db")
    with pytest.raises(AssertionError, match="delay: not measured: no packet was sent there"):
        net.assert_delay("web -> db", mean="30ms")


def test_packets_with_the_same_bytes(net):
    net.send("web", [frame(1, 2)] * 3, gap="1ms")
    net.run()
    net.assert_delay("web -> db", mean=0)
    shaped(net, "web -> db: {loss: 100%}")
    net.send("web", [frame(1, 2)] * 2, gap="1ms")
    net.run()
    net.assert_loss("web -> db", "100%")
    with pytest.raises(ConfigError, match="5 packets have the bytes of others and not all of them arrived once"):
        net.assert_delay("web -> db", mean=0)


def test_segments_of_a_capture_are_measured(net, tmp_path):
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw
    from scapy.utils import wrpcap

    tcp = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="A")
    wrpcap(str(tmp_path / "in.pcap"), tcp / Raw(bytes(range(256)) * 60))
    shaped(net, "web -> db: {rate: 10mbit, delay: 5ms}")
    net.send_capture("web", tmp_path / "in.pcap")
    net.run()
    found = net.measured("web -> db")
    assert len(found.packets) == len(found.arrived) == 11 and found.unknown == 0
    net.assert_rate("web -> db", "10mbit", within="10%")


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["5%", {"share": "5%", "burst": 4}, {"to_bad": "1%", "to_good": "20%"}])
def test_losses_within_their_bounds(net, share):
    from dataplane.config.load import parse_yaml

    loss = str(share).replace("'", "")
    assert parse_yaml(loss, "x")
    shaped(net, f"web -> db: {{loss: {loss}}}")
    net.send("web", numbered("web", "db", 4000))
    net.run()
    net.assert_loss("web -> db", share)
    found = net.measured("web -> db")
    assert 0 < len(found.lost) == 4000 - len(found.arrived) == net.drops()["db.ingress.shape-pairs.shape-from-web: loss"]
    for wrong in ("1%", "10%", "0%"):
        with pytest.raises(AssertionError, match=r"loss: asked .*%, measured .*% \(.* of 4000 packets\), bound"):
            net.assert_loss("web -> db", wrong)


def test_why_a_loss_is_not_kept(net):
    shaped(net, "web -> db: {rate: 1mbit, queue: {packets: 4}, duplicate: 50%}")
    net.send("web", numbered("web", "db", 20))
    net.run()
    with pytest.raises(AssertionError) as failed:
        net.assert_loss("web -> db", "1%", confidence=0.999)
    first, *why = str(failed.value).splitlines()
    assert first == ("web -> db: loss: asked 1%, measured 75% (15 of 20 packets), bound 0 to 3 packets (99.9% of all cases)")
    assert why[0].endswith("packets arrived more than once")
    assert why[1:] == [
        "  policy: web -> db: rate 1mbit, queue {packets: 4}, duplicate 50%",
        "  dropped: db.ingress.shape-pairs.shape-line-from-web: queue_full: 15",
    ]


def test_changed_packets_are_lost_ones(net):
    shaped(net, "web -> db: {corrupt: {share: 100%, part: payload}}")
    net.send("web", numbered("web", "db", 20))
    net.run()
    assert net.measured("web -> db").unknown == 0  # no payload: nothing is changed
    shaped(net, "web -> any: {corrupt: 100%}")
    net.send("web", numbered("web", "db", 20, first=20))
    net.run()
    with pytest.raises(AssertionError, match="received frames are none of those sent: a packet that is changed"):
        net.assert_loss("web -> db", "1%")


def exact_losses(chain: Chain, packets: int) -> list[float]:
    """The distribution of the number of losses, packet by packet."""
    states = range(len(chain.loss))
    found = [[1.0 if state == 0 else 0.0 for state in states]] + [[0.0] * len(states) for _ in range(packets)]
    for _ in range(packets):
        after = [[0.0] * len(states) for _ in found]
        for count, at in enumerate(found):
            for state in states:
                for lost, share in ((0, 1 - chain.loss[state]), (1, chain.loss[state])):
                    if at[state] * share:
                        for to in states:
                            after[count + lost][to] += at[state] * share * chain.moves[state][to]
        found = after
    return [sum(each) for each in found]


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from(
        [
            "1%",
            "0.01%",
            "50%",
            "99%",
            {"share": "10%", "burst": 5},
            {"share": "30%", "correlation": "60%"},
            {"to_bad": "5%", "to_good": "25%", "bad": "50%", "good": "1%"},
            {"p13": "5%", "p31": "20%", "p32": "10%", "p23": "30%", "p14": "2%"},
        ]
    ),
    packets=st.integers(1, 120),
    rare=st.sampled_from([1e-6, 1e-3, 0.05]),
)
def test_bounds_hold_and_are_no_wider_than_they_need_to_be(model, packets, rare):
    chain = chain_of("", model)
    least, most = loss_bounds(chain, packets, 1 - rare)
    exact = exact_losses(chain, packets)
    outside = sum(each for count, each in enumerate(exact) if not least <= count <= most)
    assert outside <= rare * (1 + 1e-9)
    # the narrowest bounds for a chain that is in its long run, a quarter wider
    spread = max(count for count, _ in enumerate(exact) if sum(exact[count:]) > rare / 2)
    assert most <= max(spread * 1.4, spread + 6) or most == packets or chain.mean_burst > 2


def test_bounds_of_a_million_packets_are_those_of_the_normal_distribution():
    for share in (0.001, 0.01, 0.3):
        least, most = loss_bounds(chain_of("", f"{100 * share:g}%"), 10**6)
        deviation = math.sqrt(10**6 * share * (1 - share))
        for bound in (10**6 * share - least, most - 10**6 * share):
            assert 4.9 * deviation < bound < 5.6 * deviation
    # correlated losses: the variance is (1 + c) / (1 - c) as large
    _, most = loss_bounds(chain_of("", {"share": "1%", "correlation": "50%"}), 10**6)
    assert 4.9 < (most - 10**4) / math.sqrt(10**6 * 0.01 * 0.99 * 3) < 5.6


@pytest.mark.parametrize(
    ("model", "packets", "bounds"),
    [(None, 10**9, (0, 0)), ("100%", 10**9, (10**9, 10**9)), ("100%", 1, (1, 1)), ("1%", 0, (0, 0)),
     ("0.0000001%", 10**5, (0, 1)), ("50%", 10, (0, 10))],
)  # fmt: skip
def test_bounds_at_the_edges(model, packets, bounds):
    assert loss_bounds(chain_of("", model), packets) == bounds


# -- places ----------------------------------------------------------------------------------------

TWO_LANS = """
nodes: {lan: {switch: {}}, dmz: {switch: {}}}
links: [lan -- dmz]
nics:
  web: {on: lan, mac: '02:00:00:00:00:01'}
  db: {on: dmz, mac: '02:00:00:00:00:02'}
  cam: {on: lan, mac: '02:00:00:00:00:03'}
"""


def test_the_packets_of_a_link():
    with VirtualNetwork(TWO_LANS) as net:
        for nic, number in NUMBERS.items():
            net.send(nic, frame(number, 9))
        net.run()
        net.shape("version: 1\nlinks: {lan--dmz -> dmz: {rate: 1mbit, queue: 10s, delay: 5ms}}")
        for source, target in itertools.permutations(NUMBERS, 2):
            net.send(source, numbered(source, target, 10))
        net.run()
        assert len(net.measured("lan--dmz -> dmz").packets) == 20
        net.assert_rate("lan--dmz -> dmz", "1mbit")
        net.assert_delay("lan--dmz -> lan", most=0)
        with pytest.raises(ConfigError, match="has two directions: expected lan--dmz -> dmz or lan--dmz -> lan"):
            net.measured("lan--dmz")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: net.assert_rate("web", "1mbit"), "place 'web': has two directions: expected web -> any or any -> web"),
        (lambda net: net.assert_rate("web -> dbx", "1mbit"), "place 'web -> dbx': there is no NIC or link dbx; did you mean"),
        (lambda net: net.assert_rate("web - db", "1mbit"), "is not a place"),
        (lambda net: net.assert_rate("web -> db", "10"), "assert_rate: rate '10' has no unit"),
        (lambda net: net.assert_rate("web -> db", "10mbps"), "could mean bits"),
        (lambda net: net.assert_rate("web -> db", "none"), "assert_rate: rate none: expected a rate such as 10mbit"),
        (lambda net: net.assert_rate("web -> db", "1mbit", within=0.01), "share '0.01' could mean two shares"),
        (lambda net: net.assert_rate("web -> db", "1mbit", overhead="x"), "overhead 'x': unknown"),
        (lambda net: net.assert_delay("web -> db"), "nothing to compare: expected mean, p50, p99 or most"),
        (lambda net: net.assert_delay("web -> db", mean="1"), "has no unit"),
        (lambda net: net.assert_loss("web -> db", 1), "expected a share in percent"),
        (lambda net: net.assert_loss("web -> db", "1%", confidence=1), "confidence 1: expected a number from 0.5"),
        (lambda net: net.assert_loss("web -> db", "1%", confidence=float("nan")), "confidence nan"),
    ],
)
def test_wrong_use_is_one_line(net, call, says):
    with pytest.raises(ConfigError, match=says) as refused:
        call(net)
    assert "\n" not in str(refused.value)


def test_nothing_to_measure(net):
    for call in (lambda: net.assert_rate("web -> db", "1mbit"), lambda: net.assert_loss("web -> db", "1%")):
        with pytest.raises(AssertionError, match="not measured: no packet was sent there: a packet is for the NIC with its"):
            call()

"""Policies of shaping in a network: in virtual time."""

from __future__ import annotations

import pytest

from dataplane.errors import ConfigError
from vnic.testing import VirtualNetwork

NET = """
nics: {web: {}, db: {}, cam: {}}
"""
A_TO_B = "web", "db"


def frame(source: int, target: int, size: int = 100) -> bytes:
    head = bytes([2, 0, 0, 0, 0, target]) + bytes([2, 0, 0, 0, 0, source])
    return head + b"\x88\xb5" + bytes(size - 14)


@pytest.fixture
def net():
    made = VirtualNetwork(
        "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}, cam: {mac: '02:00:00:00:00:03'}, a: {}}"
    )
    # the switch knows all addresses
    for nic, number in (("web", 1), ("db", 2), ("cam", 3)):
        made.send(nic, frame(number, 9))
    made.run()
    for nic in ("web", "db", "cam"):
        made.take(nic)
    yield made
    made.close()


def delays(net: VirtualNetwork, source: str, sender: int, target: str, receiver: int, count: int = 10) -> list[int]:
    """How long packets take, 1 ms apart."""
    begin = net.now_ns
    net.send(source, [frame(sender, receiver)] * count, gap="1ms")
    net.run()
    return [received.time_ns - begin - n * 1_000_000 for n, received in enumerate(net.take(target))]


def test_a_policy_comes_changes_and_goes(net):
    assert delays(net, "web", 1, "db", 2) == [0] * 10
    assert net.shape("version: 1\nlinks: {web -> db: {delay: 20ms}, cam: {delay: 3ms}}") == [
        "add shape policy", "change nic db", "change nic cam"]  # fmt: skip
    assert delays(net, "web", 1, "db", 2) == [20_000_000] * 10
    assert delays(net, "db", 2, "web", 1) == [0] * 10
    assert delays(net, "web", 1, "cam", 3) == [3_000_000] * 10
    assert delays(net, "cam", 3, "db", 2) == [3_000_000] * 10
    assert net.shape("version: 1\nlinks: {web <-> db: {rtt: 50ms}}") == [
        "change shape policy", "change nic web", "change nic db", "change nic cam"]  # fmt: skip
    assert delays(net, "web", 1, "db", 2) == delays(net, "db", 2, "web", 1) == [25_000_000] * 10
    assert delays(net, "web", 1, "cam", 3) == [0] * 10
    assert net.shape(None) == ["remove shape policy", "change nic web", "change nic db"]
    assert delays(net, "web", 1, "db", 2) == [0] * 10
    assert not [name for name in net._runtime.handlers() if ".shape" in name]
    assert net.shape(None) == []


def test_a_number_changes_while_packets_wait(net):
    """Nothing is lost: what waits leaves when it was to leave, and what comes later waits for it."""
    net.shape("version: 1\nlinks: {web -> db: {delay: 20ms}}")
    net.send("web", [frame(1, 2)] * 5)
    net.advance("1ms")
    net.shape("version: 1\nlinks: {web -> db: {delay: 2ms}}")
    begin = net.now_ns
    net.send("web", [frame(1, 2)])
    net.run()
    times = [received.time_ns - begin for received in net.take("db")]
    assert times == [19_000_000] * 6
    assert net.drops() == {}
    assert delays(net, "web", 1, "db", 2) == [2_000_000] * 10


def test_pairs_come_and_go_while_packets_of_another_wait(net):
    """Another sender's line to the same NIC takes nothing of the line that stays, wherever it stands in the file."""
    lines = {"web": "web -> db: {delay: 20ms, loss: 0%}", "cam": "cam -> db: {delay: 3ms}", "a": "a -> db: {delay: 1ms}"}
    total = 0
    for number, names in enumerate(
        (["web"], ["cam", "web"], ["web", "cam"], ["a", "cam", "web"], ["a", "web"], ["cam", "web"])
    ):
        net.shape("version: 1\nseed: 1\nlinks: {" + ", ".join(lines[name] for name in names) + "}")
        begin = net.now_ns
        net.send("web", [frame(1, 2, 100 + number)] * 5)
        net.send("cam", [frame(3, 2, 200 + number)] * 5)
        net.advance("10ms")
        total += 5
        stats = {each["name"]: each for engine in net._stats()["engines"] for each in engine["elements"]}
        assert stats["db.ingress.shape-pairs.shape-from-web"]["counters"]["wire_packets"] == total
        own = 3_000_000 if "cam" in names else 0
        assert [each.time_ns - begin for each in net.received("db") if len(each.data) == 200 + number] == [own] * 5
    net.run()
    assert len(net.take("db")) == 2 * total and net.drops() == {}


def test_the_same_numbers_with_another_loss(net):
    """A changed loss leaves the delay's packets alone, and the other way round."""
    net.shape("version: 1\nlinks: {web -> any: {delay: 20ms, loss: 0%}}")
    net.send("web", [frame(1, 2)] * 5)
    net.advance("1ms")
    net.shape("version: 1\nlinks: {web -> any: {delay: 20ms, loss: 100%}}")
    net.send("web", [frame(1, 2)] * 5)
    net.run()
    assert len(net.take("db")) == 5
    assert net.drops() == {"web.egress.shape: loss": 5}


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"links": {"web -> dbx": {"delay": "1ms"}}}, "did you mean 'db'"),
        ({"links": {"web -> db": {"delay": "10"}}}, "has no unit"),
        ({"links": {"web -> db": {"latency": "10ms"}}}, "latency"),
        ({"version": 2}, "version"),
        ({"lines": {}}, "lines"),
        ("version: 1\nlinks:\n  web -> db: {loss: 5}\n", ":3: "),
    ],
)
def test_a_wrong_policy_changes_nothing(net, policy, says):
    net.shape("version: 1\nlinks: {web -> db: {delay: 20ms}}")
    with pytest.raises(ConfigError, match=says) as caught:
        net.shape(policy)
    assert "\n" not in str(caught.value)
    assert delays(net, "web", 1, "db", 2) == [20_000_000] * 10


def test_a_policy_in_the_networks_file():
    text = "nics: {a: {mac: '02:00:00:00:00:01'}, b: {mac: '02:00:00:00:00:02'}}\nshape:\n  links:\n    a -> b: {delay: 4ms}\n"
    with VirtualNetwork(text) as net:
        assert delays(net, "a", 1, "b", 2) == [4_000_000] * 10
        assert net.apply(text.replace("4ms", "5ms")) == ["change shape policy", "change nic b"]
        assert delays(net, "a", 1, "b", 2) == [5_000_000] * 10
    with pytest.raises(ConfigError, match=r"<test>:5: .*a -> c"):
        VirtualNetwork(text.replace("a -> b", "a -> c").replace("shape:", "\nshape:"))


def test_links_of_a_network():
    text = (
        "nodes: {lan: {switch: {}}, dmz: {switch: {}}}\nlinks: [lan -- dmz]\n"
        "nics: {a: {on: lan, mac: '02:00:00:00:00:01'}, b: {on: dmz, mac: '02:00:00:00:00:02'}}"
    )
    with VirtualNetwork(text) as net:
        assert delays(net, "a", 1, "b", 2) == [0] * 10
        net.shape("version: 1\nlinks: {lan--dmz -> dmz: {delay: 7ms}}")
        assert delays(net, "a", 1, "b", 2) == [7_000_000] * 10 and delays(net, "b", 2, "a", 1) == [0] * 10
        net.shape(None)
        assert delays(net, "a", 1, "b", 2) == [0] * 10


def test_a_line_with_a_rate(net):
    """Each packet leaves when its last bit has been sent, and arrives 5 ms later."""
    net.shape("version: 1\nlinks: {web -> any: {rate: 1mbit, queue: {packets: 4}, delay: 5ms}}")
    begin = net.now_ns
    net.send("web", [frame(1, 2, 125)] * 10)  # 1 ms each
    net.run()
    # one is being sent, four wait
    assert [each.time_ns - begin for each in net.take("db")] == [6_000_000 + n * 1_000_000 for n in range(5)]
    assert net.drops() == {"web.egress.shape-line: queue_full": 5}
    net.send("web", [frame(1, 2, 125)] * 3)
    net.advance("500us")
    changed = net.now_ns
    net.shape("version: 1\nlinks: {web -> any: {rate: 2mbit, queue: {packets: 4}, delay: 5ms}}")
    net.run()
    # half of the first one is left, which takes a quarter of a millisecond now
    assert [each.time_ns - changed for each in net.take("db")] == [5_250_000, 5_750_000, 6_250_000]

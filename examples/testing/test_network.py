"""Tests of a network, to copy: run them with `pytest`, vnic and scapy installed. Each takes milliseconds and is exact."""

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

REQUEST = (
    Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / Raw(bytes(1208))
)


def test_a_packet_arrives_unchanged_and_at_once(vnic_network):
    net = vnic_network("net.yaml")
    net.send("web", REQUEST, at="1ms")
    net.run()
    net.assert_received("db", REQUEST, at="1ms")


def test_ten_megabit_are_a_millisecond_for_1250_bytes(vnic_network):
    net = vnic_network("net.yaml")
    net.send("web", [REQUEST] * 4, at="10ms")
    net.run()
    # The first goes at once, the second has the credit of the time before (250us), the others follow at 10 Mbit/s.
    net.assert_received("db", [REQUEST] * 4, at=["10ms", "10.75ms", "11.75ms", "12.75ms"])


def test_everything_is_as_it_was(vnic_network):
    net = vnic_network("net.yaml")
    net.send("web", [REQUEST] * 10, gap="100us")
    net.run()
    vnic_network.assert_golden(net, "golden.pcapng")

"""The frame that is broadcast for a guest which has moved."""

import pytest
from scapy.layers.l2 import ARP, Ether

from dataplane.errors import ConfigError
from tests.support.guests import PACKED, VERSION_1, Guest
from tests.test_control_queue import OWN
from tests.test_guest_device import Lab, driver_of
from virt.announcement import LEAST_FRAME_BYTES, rarp_request
from virt.vhost_user.protocol import Refused

MAC = bytes.fromhex("020000000001")
SENT = bytes([0x41]) * LEAST_FRAME_BYTES


def test_a_request_of_rarp():
    """RFC 903: opcode 3, the sender's hardware address as source and target, no protocol address."""
    frame = rarp_request(MAC)
    assert len(frame) == LEAST_FRAME_BYTES
    found = Ether(frame)
    assert (found.dst, found.src, found.type) == ("ff:ff:ff:ff:ff:ff", MAC.hex(":"), 0x8035)
    assert frame[14:42] == bytes(
        ARP(
            hwtype=1, ptype=0x800, hwlen=6, plen=4, op=3, hwsrc=MAC.hex(":"), psrc="0.0.0.0", hwdst=MAC.hex(":"), pdst="0.0.0.0"
        )
    )
    assert not any(frame[42:])


@pytest.mark.parametrize("mac", [b"", MAC[:5], MAC + b"\0", bytes(6), b"\x01" + MAC[1:], b"\xff" * 6])
def test_addresses_that_no_station_has(mac):
    with pytest.raises(ConfigError, match="is no MAC address of a station"):
        rarp_request(mac)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_it_is_received_once_and_before_frames_of_the_driver(packed):
    with Guest(VERSION_1, *([PACKED] if packed else [])) as guest:
        guest.port.announce(rarp_request(bytes(5) + b"\x02"))
        guest.port.announce(rarp_request(MAC))  # in place of the former one
        assert not guest.port.can_sleep()
        assert [frame.data for frame in guest.sent(SENT)] == [rarp_request(MAC), SENT]
        assert [frame.data for frame in guest.sent(SENT)] == [SENT]
        assert guest.port.can_sleep()
        [statistics] = guest.port.queue_statistics()
        assert (statistics["rx_packets"], statistics["rx_bytes"]) == (3, 3 * LEAST_FRAME_BYTES)


def test_it_needs_no_ring():
    with Guest(VERSION_1) as guest:
        for ring in (0, 1):
            guest.port.stop(ring)
        guest.port.announce(rarp_request(MAC))
        guest.run()
        assert [frame.data for frame in guest.lan.take()] == [rarp_request(MAC)]


def test_a_front_end_asks_for_it():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.begin()
        lab.device.announce(OWN)
        assert not lab.port.can_sleep()
        with pytest.raises(Refused, match="SEND_RARP: ff:ff:ff:ff:ff:ff is no MAC address of a station"):
            lab.device.announce(b"\xff" * 6)
        lab.end()

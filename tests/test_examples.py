"""examples/ works: the files are valid, and the element behaves as in its tutorial."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from examples.ttl import SetTtl
from vnic.config.load import load_config

EXAMPLES = Path(__file__).parent.parent / "examples"


def checksum(header):
    """RFC 1071, in plain Python."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def packet(ttl, identification, tags):
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, identification, 0, ttl, 17, 0, b"\x0a\0\0\x01", b"\x0a\0\0\x02")
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    udp = struct.pack("!HHHH", 1000, 2000, 8, 0)
    return b"\2" * 12 + b"\x81\x00\x00\x05" * tags + b"\x08\x00" + header + udp


def through(element, frames):
    """The frames transmitted, in order; checks that no packet is lost or held."""
    pool = PacketPool(small=256, large=4)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx = PortRx(a)
    rx >> Parse() >> element >> PortTx(b)
    engine.load([rx])
    a.inject(frames)
    advance(engine, 1000)
    assert engine.conservation()["conserved"]
    assert pool.in_use == 0
    assert element.last_error is None
    engine.close()
    return [frame.data for frame in b.take()]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_example_files_are_valid(path):
    config = load_config(path)
    text = path.read_text()
    assert config.nics
    for name, nic in config.nics.items():
        places = (f"/run/netns/{name}", "/proc/self/ns/net", None if nic.kind in ("module", "vhost-user", "memif") else "")
        assert nic.netns in places and name in text


def test_the_custom_element_is_asked_for_as_the_element_takes_it():
    [entry] = load_config(EXAMPLES / "custom-element.yaml").nics["web"].egress.elements
    assert entry.element == "ttl:SetTtl"
    assert SetTtl(**entry.arguments).ttl == 17


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2)), min_size=1, max_size=40),
    st.integers(1, 255),
)
def test_ttl_is_set_and_the_checksum_stays_true(packets, ttl):
    got = through(SetTtl(ttl), [packet(*each) for each in packets])
    assert len(got) == len(packets)
    for frame, (_, identification, tags) in zip(got, packets, strict=True):
        start = 14 + 4 * tags
        assert frame[start + 8] == ttl
        assert checksum(frame[start : start + 20]) == 0
        want = packet(ttl, identification, tags)
        assert frame[: start + 10] + frame[start + 12 :] == want[: start + 10] + want[start + 12 :]


def test_other_frames_pass_untouched():
    frames = [b"\2" * 12 + b"\x08\x06" + bytes(46), b"\2" * 12 + b"\x12\x34" + bytes(range(50))]
    assert through(SetTtl(9), frames) == frames

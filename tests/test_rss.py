"""RSS compared with the published verification vectors, and with Toeplitz' definition bit by
bit."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.counter import Discard
from dataplane.elements.parse import Parse
from dataplane.elements.rss import DEFAULT_KEY, Rss
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError
from dataplane.graph.element import BatchView, PyElement
from dataplane.graph.port import PortRx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from tests.wire_frames import TCP, UDP, Spec

# "Verifying the RSS hash calculation", Windows network driver documentation: source, its port,
# destination, its port, hash of the addresses, hash with the ports.
VECTORS = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024, 0x4B61E985, 0x02D1FEEF),
]


def toeplitz(key: bytes, data: bytes) -> int:
    """The definition: for every set bit of the input, the 32 bits of the key that begin at its
    position."""
    stream, bits = int.from_bytes(key, "big"), 8 * len(key)
    result = 0
    for i in range(8 * len(data)):
        if data[i // 8] >> (7 - i % 8) & 1:
            result ^= stream >> (bits - 32 - i) & 0xFFFFFFFF
    return result


@pytest.mark.parametrize("vector", VECTORS)
def test_published_vectors(vector):
    source, source_port, destination, destination_port, addresses, all_four = vector
    rss = Rss()
    assert rss.hash_tuple(source, destination) == addresses
    assert rss.hash_tuple(source, destination, source_port, destination_port) == all_four
    assert rss.hash_tuple(ipaddress.ip_address(source), destination) == addresses


@given(st.binary(min_size=40, max_size=40), st.sampled_from([4, 6]), st.data())
def test_hash_is_toeplitz_by_definition(key, version, data):
    size, kind = (4, ipaddress.IPv4Address) if version == 4 else (16, ipaddress.IPv6Address)
    source, destination = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    ports = data.draw(st.just(()) | st.tuples(st.integers(0, 65535), st.integers(0, 65535)))
    rss = Rss(key)
    expected = toeplitz(key, source + destination + b"".join(port.to_bytes(2, "big") for port in ports))
    assert rss.hash_tuple(kind(source), kind(destination), *ports) == expected


class Hasher(PyElement):
    """Stores the hash of each packet and of its record."""

    def __init__(self, rss: Rss, pool: PacketPool) -> None:
        self.rss, self.pool, self.hashes = rss, pool, []

    def process(self, batch: BatchView) -> None:
        for index in batch._indices:
            self.hashes.append(self.rss.hash_parsed(self.pool, int(index)))
            assert self.pool.records["hash"][index] == self.hashes[-1]


def hashes(rss: Rss, frames: list, parse: bool = True) -> list[int]:
    """The hashes by `rss` of frames, parsed or not."""
    pool = PacketPool(small=64, large=4)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    port, hasher = MemoryPort("a", 0), Hasher(rss, pool)
    rx = PortRx(port)
    head = rx >> Parse() if parse else rx
    head >> hasher >> Discard()
    engine.load([rx])
    port.inject(frames)
    advance(engine, 1)
    assert engine.conservation()["conserved"]
    engine.close()
    assert hasher.last_error is None
    assert pool.in_use == 0
    return hasher.hashes


def test_packets_are_hashed_by_what_parse_found():
    rss = Rss()
    four = Spec(
        source=bytes([66, 9, 149, 187]), destination=bytes([161, 142, 100, 80]), source_port=2794, destination_port=1766
    )
    six = Spec(
        version=6,
        source=ipaddress.ip_address(VECTORS[5][0]).packed,
        destination=ipaddress.ip_address(VECTORS[5][2]).packed,
        source_port=2794,
        destination_port=1766,
    )
    tagged = Spec(**{**four.__dict__, "tags": [(0x88A8, 7), (0x8100, 9)], "protocol": UDP})
    sctp = Spec(**{**four.__dict__, "protocol": 132, "payload": bytes(8)})
    first_fragment = Spec(**{**four.__dict__, "fragment": 0x2000, "payload": bytes(40)})
    later_fragment = Spec(**{**four.__dict__, "fragment": 0x0010})
    icmp = Spec(**{**four.__dict__, "protocol": 1})
    arp = bytes.fromhex("ffffffffffff0200000000010806") + bytes(28)
    given_frames = [four, six, tagged, sctp, first_fragment, later_fragment, icmp]
    assert hashes(rss, [spec.build() for spec in given_frames] + [arp]) == [
        0x51CCC178,
        0x40207D3D,
        0x51CCC178,
        0x51CCC178,
        0x323E8FC2,
        0x323E8FC2,
        0x323E8FC2,
        0,
    ]


SCTP, ICMP, FRAGMENT_HEADER = 132, 1, 44


@st.composite
def packets(draw) -> tuple[Spec, bytes]:
    """A packet, and the bytes of it that RSS hashes."""
    size = draw(st.sampled_from([4, 16]))
    fragment = draw(st.sampled_from([None, "first", "later"]))
    spec = Spec(
        version=4 if size == 4 else 6,
        protocol=draw(st.sampled_from([TCP, UDP, SCTP, ICMP])),
        payload=bytes(8 * draw(st.integers(1, 4))),
        tags=draw(st.sampled_from([[], [(0x8100, 5)], [(0x88A8, 7), (0x8100, 9)]])),
        source=draw(st.binary(min_size=size, max_size=size)),
        destination=draw(st.binary(min_size=size, max_size=size)),
        source_port=draw(st.integers(0, 65535)),
        destination_port=draw(st.integers(0, 65535)),
    )
    if fragment is not None and size == 4:
        # more fragments; 128 bytes from the start
        spec.fragment = 0x2000 if fragment == "first" else 0x0010
    elif fragment is not None:
        spec.extensions = [(FRAGMENT_HEADER, (b"\x00\x01" if fragment == "first" else b"\x00\x80") + bytes(4))]
    hashed = spec.source + spec.destination
    if fragment is None and spec.protocol in (TCP, UDP, SCTP):
        hashed += spec.source_port.to_bytes(2, "big") + spec.destination_port.to_bytes(2, "big")
    return spec, hashed


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=40, max_size=40), st.lists(packets(), min_size=1, max_size=32))
def test_parsed_packets_hash_like_the_definition(key, given_packets):
    frames = [spec.build() for spec, _ in given_packets]
    assert hashes(Rss(key), frames) == [toeplitz(key, hashed) for _, hashed in given_packets]


def test_what_was_not_parsed_hashes_to_0():
    assert hashes(Rss(), [Spec().build(), Spec(version=6).build()], parse=False) == [0, 0]


def test_hash_parsed_refuses_what_is_no_packet_of_a_pool():
    pool = PacketPool(small=64, large=4)
    with pytest.raises(TypeError):
        Rss().hash_parsed(None, 0)
    with pytest.raises(IndexError, match="packet 68: the pool has 68"):
        Rss().hash_parsed(pool, 68)


def test_a_long_key_hashes_like_its_first_40_bytes():
    assert Rss(DEFAULT_KEY + bytes(12)).hash_tuple("10.0.0.1", "10.0.0.2", 1, 2) == Rss().hash_tuple(
        "10.0.0.1", "10.0.0.2", 1, 2
    )


@given(st.integers(0, 9), st.integers(1, 64), st.integers(0, 0xFFFFFFFF), st.randoms(use_true_random=False))
def test_low_bits_pick_the_entry(power, queues, value, random):
    table = [random.randrange(queues) for _ in range(1 << power)]
    rss = Rss(table=table, queues=queues)
    assert rss.table == table
    assert rss.queue(value) == table[value % len(table)]


def test_default_table_serves_every_queue():
    assert Rss(queues=5).table == [i % 5 for i in range(128)]


def test_key_and_table_can_be_set():
    rss = Rss(queues=2)
    rss.set_key(bytes(range(40)))
    assert rss.key == bytes(range(40))
    assert rss.hash_tuple("10.0.0.1", "10.0.0.2") == toeplitz(bytes(range(40)), bytes([10, 0, 0, 1, 10, 0, 0, 2]))
    rss.set_table([1])
    assert {rss.queue(i) for i in range(1000)} == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": bytes(39)}, "a key of 39 bytes: expected 40 or 52"),
        ({"key": "6d5a"}, "a key of str: expected 40 or 52"),
        ({"key": memoryview(bytes(160)).cast("I")}, "a key of 160 bytes: expected 40 or 52"),
        ({"table": 5}, "table of int: expected a list of queue numbers"),
        ({"table": []}, "table of 0 entries: expected a power of two up to 512"),
        ({"table": [0, 0, 0]}, "of 3 entries: expected a power of two"),
        ({"table": [0] * 1024}, "of 1024 entries: expected a power of two"),
        ({"table": [0, 2], "queues": 2}, r"names queue 2; there are 2 \(0 to 1\)"),
        ({"table": [-1]}, "names queue -1"),
        ({"table": [0.0]}, "names queue 0.0"),
        ({"queues": 0}, "0 queues: expected 1 to 64"),
        ({"queues": 65}, "65 queues"),
        ({"queues": -1}, "-1 queues"),
        ({"queues": 1 << 32}, "4294967296 queues"),
        ({"queues": 2.5}, "2.5 queues: expected 1 to 64"),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Rss(**arguments)
    assert "\n" not in str(caught.value)


def test_a_refused_change_changes_nothing():
    rss = Rss(table=[1, 0], queues=2)
    with pytest.raises(ConfigError):
        rss.set_table([0, 1, 2, 3])
    with pytest.raises(ConfigError):
        rss.set_key(b"short")
    assert rss.table == [1, 0]
    assert rss.key == DEFAULT_KEY
    with pytest.raises(ConfigError, match="one family"):
        rss.hash_tuple("10.0.0.1", "::1")
    with pytest.raises(ConfigError, match="two ports or none"):
        rss.hash_tuple("10.0.0.1", "10.0.0.2", 1)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (("nowhere", "10.0.0.2"), "'nowhere' does not appear to be .*: expected two addresses"),
        (("10.0.0.1", "10.0.0.2", 65536, 1), "port 65536: expected 0 to 65535"),
        (("10.0.0.1", "10.0.0.2", 1, -1), "port -1: expected 0 to 65535"),
        (("10.0.0.1", "10.0.0.2", "1", 2), "port '1': expected 0 to 65535"),
    ],
)
def test_a_flow_that_is_none_is_refused(flow, message):
    with pytest.raises(ConfigError, match=message):
        Rss().hash_tuple(*flow)

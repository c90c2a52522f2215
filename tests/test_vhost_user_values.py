"""vhost-user: features, the configuration space, numbers and messages."""

import os
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.descriptors import readable
from dataplane.errors import ConfigError
from tests.vhost_user_twins import OFFER, DeviceTwin, Supervisor
from virt.vhost_user import inflight, messages
from virt.vhost_user.books import Answer, Books, Inflight, Log, Region, Ring, RingAddresses
from virt.vhost_user.connection import Connection
from virt.vhost_user.device import Offer
from virt.vhost_user.features import (
    _NEEDS,
    OF_VHOST,
    Abilities,
    Feature,
    consistent,
    names,
    offered,
    parse_names,
)
from virt.vhost_user.front_end import FrontEnd
from virt.vhost_user.guest_memory import GuestMemory
from virt.vhost_user.handshakes import Qemu
from virt.vhost_user.net_config import CONFIG_BYTES, SPEED_UNKNOWN, NetConfig
from virt.vhost_user.protocol import ProtocolFeature
from virt.vhost_user.session import Session

F = Feature
NOTHING = Abilities(
    checksum=False, tso=False, uso=False, mergeable=False, control=False, packed=False,
    event_index=False, indirect=False, speed=False, migration=False,
)  # fmt: skip


def test_what_is_always_offered():
    assert offered(NOTHING) == F.VERSION_1 | F.MAC | F.STATUS


def test_bits_are_those_of_the_specification():
    assert [bit.bit_length() - 1 for bit in (F.CSUM, F.MTU, F.HOST_USO, F.RSS, F.SPEED_DUPLEX)] == [
        0, 3, 56, 60, 63,
    ]  # fmt: skip
    assert F.VERSION_1 == 1 << 32 and F.RING_PACKED == 1 << 34 and F.IN_ORDER == 1 << 35
    assert ProtocolFeature(0x1FDFF) == ProtocolFeature(0x1FFFF) & ~ProtocolFeature.CONFIG


@pytest.mark.parametrize(
    ("abilities", "missing"),
    [
        (Abilities(checksum=False), F.HOST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.HOST_USO),
        (Abilities(tso=False), F.HOST_TSO4 | F.HOST_ECN | F.GUEST_ECN),
        (Abilities(control=False, queue_pairs=4, rss=True), F.MQ | F.RSS | F.GUEST_ANNOUNCE),
        (Abilities(queue_pairs=1), F.MQ),
        (Abilities(mtu=0), F.MTU),
    ],
)
def test_what_needs_something_that_is_lacking_is_not_offered(abilities, missing):
    assert not offered(abilities) & missing


def test_a_mask_leaves_what_a_driver_needs_and_what_it_never_sees():
    found = offered(Abilities(), ["csum", "host-tso4", "GUEST_TSO4"])
    assert found == F.VERSION_1 | F.LOG_ALL | F.CSUM | F.HOST_TSO4
    assert offered(Abilities(migration=False), []) == F.VERSION_1


@given(st.integers(0, 2**64 - 1))
def test_a_consistent_set_is_the_largest_one_of_its_features(bits):
    found = consistent(F(bits))
    assert not int(found) & ~bits
    assert consistent(found) == found
    for feature, groups in _NEEDS.items():
        if feature in found:
            assert all(found & group for group in groups)
        elif bits & feature:
            assert not all(found & group for group in groups)


@given(st.integers(0, 2**64 - 1))
def test_names_and_bits(bits):
    known = parse_names(name for name in names(bits) if not name.startswith("bit"))
    unknown = sum(1 << int(name[3:]) for name in names(bits) if name.startswith("bit"))
    assert int(known) | unknown == bits
    assert not int(known) & unknown


def test_names_of_qemu_and_of_offloads():
    assert parse_names(["packed", "hash", "queue-reset"]) == F.RING_PACKED | F.HASH_REPORT | F.RING_RESET
    assert parse_names(["uso"]) == F.GUEST_USO4 | F.GUEST_USO6 | F.HOST_USO
    assert offered(Abilities(), without=["tso", "packed"]) == offered(Abilities(tso=False, packed=False))
    assert not offered(Abilities(), without=["csum"]) & (F.HOST_TSO4 | F.HOST_ECN | F.HOST_USO)


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="feature 'paket' is unknown: did you mean 'packed'?"):
        parse_names(["csum", "paket"])
    with pytest.raises(ConfigError, match="feature 'zzz' is unknown: expected names such as csum"):
        parse_names(["zzz"])


def test_the_bits_of_vhost():
    assert int(OF_VHOST) == 1 << 26 | 1 << 30


def test_the_configuration_space():
    mac = bytes.fromhex("020000000001")
    config = NetConfig(
        mac=mac, up=False, announce=True, queue_pairs=4, mtu=9000, speed_mbps=40_000,
        rss_key_bytes=40, rss_table_entries=128, hash_types=0x1FF, tunnel_types=1,
    ).packed()  # fmt: skip
    assert len(config) == CONFIG_BYTES == 28
    offsets = {0: mac, 6: b"\2\0", 8: b"\4\0", 10: struct.pack("<H", 9000)}
    offsets |= {12: struct.pack("<I", 40_000), 16: b"\1", 17: b"\x28", 18: b"\x80\0"}
    offsets |= {20: b"\xff\1\0\0", 24: b"\1\0\0\0"}
    for offset, value in offsets.items():
        assert config[offset : offset + len(value)] == value
    plain = NetConfig(mac=mac, full_duplex=False).packed()
    assert plain[6:8] == b"\1\0" and plain[12:17] == b"\xff" * 5
    assert struct.unpack_from("<I", plain, 12) == (SPEED_UNKNOWN,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": b"12345"},
        {"mac": bytes(6), "rss_key_bytes": 39},
        {"mac": bytes(6), "rss_table_entries": 64},
        {"mac": bytes(6), "speed_mbps": 1 << 31},
    ],
)
def test_a_wrong_configuration_space(wrong):
    with pytest.raises(ValueError):
        NetConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"queue_pairs": 0}, {"queue_pairs": 128}, {"protocol_features": 1 << 14}])
def test_a_wrong_offer(wrong):
    with pytest.raises(ValueError):
        Offer(features=0, **wrong)


def test_inflight_regions_are_whole_cache_lines():
    assert inflight.region_bytes(1, packed=False) == 64
    assert inflight.region_bytes(256, packed=False) == 16 + 16 * 256 + 48
    assert inflight.region_bytes(256, packed=True) == 32 + 32 * 256 + 32


u64 = st.integers(0, 2**64 - 1)
text = st.text(max_size=8)


@given(
    st.builds(
        Books,
        owned=st.booleans(),
        features=u64,
        protocol_features=u64,
        status=st.integers(0, 255),
        memory=st.lists(st.builds(Region, u64, u64, u64, u64, text), max_size=3),
        rings=st.lists(
            st.builds(
                Ring,
                base=st.integers(0, 2**32 - 1),
                addresses=st.none() | st.builds(RingAddresses, u64, u64, u64, u64, st.booleans()),
                kick=text,
            ),
            max_size=3,
        ),
        log=st.none() | st.builds(Log, u64, u64),
        inflight=st.none() | st.builds(Inflight, u64, u64, u64, u64),
        answer=st.none() | st.builds(Answer, st.binary(max_size=20), text),
    )
)
def test_books_are_json(books):
    assert Books.decode(books.encode()) == books


def test_a_struct_of_each_message_has_the_specifications_size():
    sizes = {
        messages.HEADER: 12, messages.STATE: 8, messages.ADDRESSES: 40, messages.REGION: 32,
        messages.LOG: 16, messages.CONFIG: 12, messages.INFLIGHT: 24,
    }  # fmt: skip
    assert all(layout.size == size for layout, size in sizes.items())


@pytest.mark.parametrize("front_end_listens", [False, True])
def test_either_side_listens(tmp_path, front_end_listens):
    """Over a socket file, the back end in a thread of its own."""
    path = str(tmp_path / "socket")
    supervisor = Supervisor()
    device = DeviceTwin()

    def serve(sock):
        connection = Connection(sock, Session(device, OFFER), supervisor.store)
        while readable(connection.fileno(), 60) and connection.read():
            pass
        connection.close()

    def connect():
        sock = socket.socket(socket.AF_UNIX)
        while sock.connect_ex(path):
            os.sched_yield()
        serve(sock)

    if front_end_listens:
        thread = threading.Thread(target=connect)
        thread.start()
        front = FrontEnd.listen(path, GuestMemory.of_qemu())
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(1)
        front = FrontEnd.connect(path, GuestMemory.of_qemu())
        sock, _ = server.accept()
        server.close()
        thread = threading.Thread(target=serve, args=[sock])
        thread.start()
    with front:
        qemu = Qemu(front)
        qemu.connect()
        qemu.start()
        assert qemu.stop() == {0: 0x8000_8000, 1: 0x8000_8000}
        qemu.start()
    thread.join(60)
    assert not thread.is_alive()
    assert {ring for ring, _, _ in device.starts} == {0, 1} and device.running == {}
    supervisor.close()

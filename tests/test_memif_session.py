"""Both sides of memif's messages: with each other, against peers that lie, and when the process of one side is killed."""

from __future__ import annotations

import os
import socket
import struct
from itertools import pairwise

import msgspec
import pytest

from dataplane.descriptors import close_all
from dataplane.errors import ConfigError
from virt.memif import protocol
from virt.memif.connection import Connection
from virt.memif.protocol import S2M, AddRegion, AddRing, Disconnected, Hello, Init, Kind, ProtocolError
from virt.memif.session import Books, ClientSession, Interface, ServerSession

SECRET = b"sesame"
INIT = Init(0x200, 3, 0, SECRET, "twin")


class Killed(Exception):
    """The process of one side is killed here."""


class TwinDevice:
    """A device that counts."""

    def __init__(self) -> None:
        self.started: list[bool] = []
        self.fault = ""

    def start(self, books, descriptors, *, resumed):
        if self.fault:
            raise ConfigError(self.fault)
        assert {ring.descriptor for ring in (*books.s2m, *books.m2s)} <= set(descriptors)
        self.started.append(resumed)

    def stop(self):
        self.started.clear()

    def make_memory(self, size, headers):
        made = memory(size)
        for at in headers:
            os.pwrite(made, struct.pack("=I", protocol.COOKIE), at)
        return made

    def make_interrupt(self):
        return os.eventfd(0, os.EFD_NONBLOCK)


def memory(size):
    made = os.memfd_create("twin")
    os.ftruncate(made, size)
    return made


class Side:
    """A connection, and what a supervisor would hold of it."""

    def __init__(self, sock, kind, interface):
        self.sock, self.kind, self.interface, self.device = sock, kind, interface, TwinDevice()
        self.kept, self.held, self.stores, self.dies_at = b"", {}, 0, 0
        self.join(None, {})

    def join(self, books, descriptors):
        session = self.kind(self.interface, self.device, books, descriptors)
        self.connection = Connection(self.sock.dup(), session, self.store)

    def store(self, books, descriptors):
        close_all(self.held.values())
        self.kept, self.held = msgspec.json.encode(books), {role: os.dup(fd) for role, fd in descriptors.items()}
        self.stores += 1
        if self.stores == self.dies_at:
            raise Killed

    def succeed(self):
        """The process was killed: another one carries on from what was stored."""
        self.connection._sock.close()
        close_all(self.connection.session.descriptors.values())
        self.join(msgspec.json.decode(self.kept, type=Books), {role: os.dup(fd) for role, fd in self.held.items()})
        self.connection.resume()

    def read(self):
        try:
            return self.connection.read()
        except Killed:
            self.succeed()
            return True

    @property
    def books(self):
        return self.connection.session.books

    def close(self):
        self.connection.close("the test ends")
        close_all(self.held.values())
        self.sock.close()


class Pair:
    def __init__(self, server=None, client=None):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server = Side(ours, ServerSession, server or Interface("lan", 3, SECRET, 2))
        self.client = Side(theirs, ClientSession, client or Interface("app", 3, SECRET, 2, 64))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.server.close()

    def run(self):
        try:
            self.server.connection.begin()
        except Killed:
            self.server.succeed()
        for _ in range(30):
            self.client.read()
            self.server.read()


def test_both_sides_agree(leak_check):
    with Pair() as pair:
        pair.run()
        server, client = pair.server.books, pair.client.books
        assert server.connected and client.connected
        assert (server.peer, server.interface, client.interface) == ("vnic", "app", "lan")
        assert pair.server.device.started == pair.client.device.started == [False]
        for word in ("s2m", "m2s"):
            ours, theirs = getattr(server, word), getattr(client, word)
            assert [(ring.region, ring.offset, ring.size_log2) for ring in ours] == [(0, ring.offset, 6) for ring in theirs]
            assert len(ours) == 2
        assert server.regions == client.regions
        # rings and buffers do not overlap, and are in the region
        rings = [*client.s2m, *client.m2s]
        spans = [(ring.offset, ring.offset + 128 + 16 * 64) for ring in rings]
        spans += [(ring.buffers, ring.buffers + 2048 * 64) for ring in rings]
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert spans[-1][1] <= client.regions[0].size == os.fstat(pair.client.held["region0"]).st_size


def test_the_smaller_of_both_counts(leak_check):
    with Pair(Interface("lan", 3, queues=1), Interface("app", 3, queues=4, ring_size=16)) as pair:
        pair.run()
        assert [len(pair.client.books.s2m), len(pair.client.books.m2s)] == [1, 1]


@pytest.mark.parametrize("dies_at", range(1, 17))
def test_a_server_that_is_killed_after_any_store_is_not_noticed(dies_at):
    with Pair() as pair:
        pair.server.dies_at = dies_at
        pair.run()
        assert pair.server.stores >= dies_at and pair.client.books.connected and pair.server.books.connected


def test_both_sides_carry_on_when_connected(leak_check):
    with Pair() as pair:
        pair.run()
        for side in (pair.server, pair.client):
            side.succeed()
            assert side.books.connected and side.device.started == [False, True]
            assert side.read()


def test_a_client_that_was_killed_while_it_connected_begins_anew(leak_check):
    with Pair() as pair:
        pair.server.connection.begin()
        pair.client.read()
        with pytest.raises(ProtocolError, match="was not complete"):
            pair.client.succeed()


def test_reasons_reach_the_other_side(leak_check):
    with Pair(client=Interface("app", 3, b"guess")) as pair:
        pair.server.connection.begin()
        pair.client.read()
        with pytest.raises(ProtocolError, match="the secret is missing or wrong"):
            pair.server.read()
        pair.server.connection.close("the secret is missing or wrong")
        with pytest.raises(Disconnected, match="^the secret is missing or wrong$"):
            pair.client.read()


def test_a_device_that_refuses_the_rings(leak_check):
    with Pair() as pair:
        pair.server.device.fault = "no cookie"
        with pytest.raises(ProtocolError, match="no cookie"):
            pair.run()


def test_secrets():
    for given in (SECRET, SECRET + b"\0garbage", SECRET.ljust(24, b"\0")):
        assert protocol.same_secret(SECRET, given.ljust(24, b"\0"))
    for given in (b"", b"sesam", b"sesame1", b"\0sesame"):
        assert not protocol.same_secret(SECRET, given.ljust(24, b"\0"))


def test_sizes_of_messages():
    """As the structs of memif.h, which are packed: the type, then the fields."""
    assert len(protocol.ack()) == 128 and protocol.ack()[:2] == struct.pack("=H", 1)
    sent = protocol.hello(Hello("x" * 40, 0x200, 0x201, 5, 6, 7, 8))
    assert sent[33] == 0 and sent[34:45] == struct.pack("=HHHHHB", 0x200, 0x201, 5, 6, 7, 8)
    assert protocol.parse_hello(sent) == Hello("x" * 31, 0x200, 0x201, 5, 6, 7, 8)
    sent = protocol.init(INIT)
    assert sent[2:9] == struct.pack("=HIB", 0x200, 3, 0) and sent[9:15] == SECRET
    assert protocol.add_region(AddRegion(1, 1 << 33))[:12] == struct.pack("=HHQ", 4, 1, 1 << 33)
    assert protocol.add_ring(AddRing(1, 2, 3, 4, 5, 0))[:15] == struct.pack("=HHHHIBH", 5, 1, 2, 3, 4, 5, 0)
    assert protocol.parse_disconnect(protocol.disconnect("a\tb\nc" + "x" * 200)).startswith("a?b?c")


# -- peers that lie --------------------------------------------------------------------------------


class Server:
    """A ServerSession that is spoken to."""

    def __init__(self):
        self.session = ServerSession(Interface("lan", 3, SECRET, 2), TwinDevice())

    def say(self, data, *descriptors):
        return self.session.handle(data, list(descriptors))

    def begin(self, region=True):
        self.say(protocol.init(INIT))
        if region:
            self.say(protocol.add_region(AddRegion(0, 1 << 16)), memory(1 << 16))

    def close(self):
        self.session.close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


def event():
    return os.eventfd(0)


@pytest.mark.parametrize(("data", "why"), [
    (protocol.init(INIT._replace(version=0x100)), "version 1.0: expected 2.0"),
    (protocol.init(INIT._replace(id=4)), "interface id 4: expected 3"),
    (protocol.init(INIT._replace(mode=1)), "interface mode 1"),
    (protocol.init(INIT._replace(secret=b"")), "secret"),
    (protocol.connect("x"), "CONNECT before INIT"),
    (protocol.ack(), "ACK before INIT"),
    (b"\x03", "message of 1 bytes"),
    (bytes(128), "message type 0"),
    (struct.pack("=H126x", 9), "message type 9"),
    (protocol.disconnect("bye"), "^bye$"),
    (protocol.disconnect(""), "no reason"),
])  # fmt: skip
def test_first_messages_that_are_wrong(server, data, why):
    with pytest.raises(ProtocolError, match=why):
        server.say(data)


@pytest.mark.parametrize(("index", "size", "bytes_", "why"), [
    (1, 1 << 16, 1 << 16, "region 1 after 0"),
    (40, 1 << 16, 1 << 16, "expected at most 32"),
    (0, 0, 1 << 16, "of 0 bytes"),
    (0, 1 << 40, 1 << 16, "of 1099511627776 bytes"),
    (0, 1 << 16, 100, "a file of 100 bytes"),
    (0, 1 << 16, None, "without a descriptor"),
])  # fmt: skip
def test_regions_that_are_wrong(server, index, size, bytes_, why):
    server.begin(region=False)
    with pytest.raises(ProtocolError, match=why):
        server.say(protocol.add_region(AddRegion(index, size)), *[] if bytes_ is None else [memory(bytes_)])


def test_a_region_that_is_no_file(server):
    server.begin(region=False)
    with pytest.raises(ProtocolError, match="no file that can be mapped"):
        server.say(protocol.add_region(AddRegion(0, 1)), os.pipe2(os.O_CLOEXEC)[0])


RING = AddRing(S2M, 0, 0, 0, 4, 0)


@pytest.mark.parametrize(("ring", "why"), [
    (RING._replace(number=1), "ring 1 after 0"),
    (RING._replace(number=2), "expected at most 2"),
    (RING._replace(region=1), "there is none"),
    (RING._replace(offset=0xFFFFFFFF), "exceeds region 0"),
    (RING._replace(size_log2=12), "exceeds region 0"),
    (RING._replace(size_log2=15), r"2\^15"),
    (RING._replace(size_log2=0), r"2\^0"),
    (RING._replace(private_header=8), "private headers"),
])  # fmt: skip
def test_rings_that_are_wrong(server, ring, why):
    server.begin()
    with pytest.raises(ProtocolError, match=why):
        server.say(protocol.add_ring(ring), event())


def test_messages_at_the_wrong_time(server):
    server.begin()
    with pytest.raises(ProtocolError, match="without a descriptor"):
        server.say(protocol.add_ring(RING))
    with pytest.raises(ProtocolError, match="with 2 descriptors"):
        server.say(protocol.add_ring(RING), event(), event())
    server.say(protocol.add_ring(RING), event())
    for late in (protocol.init(INIT), protocol.add_region(AddRegion(1, 1))):
        with pytest.raises(ProtocolError, match="not expected"):
            server.say(late)
    assert protocol.kind_of(server.say(protocol.connect("x")).data) == Kind.CONNECTED
    with pytest.raises(ProtocolError, match="not expected"):
        server.say(protocol.add_ring(RING), event())


@pytest.mark.parametrize(("messages", "why"), [
    ([protocol.ack()], "ACK before HELLO"),
    ([protocol.hello(Hello("", 0x300, 0x301, 1, 0, 0, 10))], "expected 2.0"),
    ([protocol.hello(Hello("", 0x200, 0x200, 1, 0, 0, 0))], r"2\^0"),
    ([protocol.hello(Hello("", 0x200, 0x200, 1, 0, 0, 255))] * 2, "not expected"),
    ([protocol.hello(Hello("", 0x200, 0x200, 1, 0, 0, 10)), protocol.connected("x")], "not expected"),
    ([protocol.hello(Hello("", 0x200, 0x200, 1, 0, 0, 10)), *[protocol.ack()] * 5], "not expected"),
])  # fmt: skip
def test_servers_that_are_wrong(messages, why):
    session = ClientSession(Interface("app", 3, SECRET, 2, 64), TwinDevice())
    with pytest.raises(ProtocolError, match=why):
        for message in messages:
            session.handle(message, [])
    session.close()

"""StreamPort and DgramPort against a reference in Python: frames cross in order and whole however the bytes come in pieces,
hostile peers end their own stream only, and a process that is killed leaves the stream at a known byte."""

import os
import select
import signal
import socket
import struct
from contextlib import closing, contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import PortError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.packet.shared_memory import create
from dataplane.ports.dgram_port import DgramPort
from dataplane.ports.memory import Frame, MemoryPort
from dataplane.ports.stream_port import BYTES, StreamBuffers, StreamPort

LONGEST = 69504  # LARGE_FRAME


def frame(length, number=0):
    return bytes((number + at) & 255 for at in range(length))


def streamed(frames):
    return b"".join(struct.pack("!I", len(each)) + each for each in frames)


def unstreamed(data):
    """The whole frames at the beginning, and the rest."""
    found = []
    while len(data) >= 4 and len(data) >= 4 + (length := struct.unpack_from("!I", data)[0]):
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found, data


class Wire:
    """A port of one of the kinds and an engine in virtual time between it and a MemoryPort."""

    def __init__(self, port, large=16):
        self.port = port
        self.pool = PacketPool(small=128, large=large)
        self.lan = MemoryPort("lan", 2)
        rx, lan_rx = PortRx(port), PortRx(self.lan)
        rx >> PortTx(self.lan)
        lan_rx >> PortTx(port)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=1))
        self.engine.load([rx, lan_rx])
        self.now = 1

    def run(self):
        """Runs the engine while the port has input; returns the frames that arrived."""
        found = []
        while True:
            self.now += 1
            advance(self.engine, self.now)
            found += [each.data for each in self.lan.take()]
            assert self.engine.conservation()["conserved"]
            if not select.select(self.port.descriptors(), [], [], 0)[0]:
                return found

    def send(self, *frames):
        self.lan.inject([Frame(each) for each in frames])
        return self.run()

    def close(self):
        self.engine.close()
        self.port.close()
        assert self.pool.in_use == 0


def pair(kind):
    """Two connected sockets, of which the first is the port's."""
    if kind == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
    theirs.setblocking(False)
    return ours, theirs


@contextmanager
def stream(kind="unix", mtu=65535, large=16):
    ours, theirs = pair(kind)
    port = StreamPort("s", number=1, mtu=mtu)
    buffers = StreamBuffers()
    port.connect(ours.fileno(), buffers)
    with closing(buffers), ours, theirs, closing(Wire(port, large)) as wire:
        wire.run()
        yield wire, theirs


def receive_all(peer):
    data = b""
    with suppress(BlockingIOError):
        while got := peer.recv(1 << 20):
            data += got
    return data


def send_all(peer, data, wire):
    """Writes it as the port reads; returns the frames that arrived."""
    found = []
    while data:
        with suppress(BlockingIOError):
            data = data[peer.send(data) :]
        found += wire.run()
    return found + wire.run()


lengths = st.one_of(st.integers(1, 64), st.integers(1500, 2100), st.integers(60000, LONGEST))


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_frames_cross_both_ways(kind):
    frames = [frame(length, number) for number, length in enumerate((1, 14, 1514, 1920, 1921, 9000, 65536, LONGEST) * 9)]
    with stream(kind) as (wire, peer):
        got = send_all(peer, streamed(frames), wire)
        select_more(wire, got, len(frames))
        assert got == frames
        data = b""
        for each in frames:
            if len(each) <= 65535 + 22:
                wire.send(each)
                while len(unstreamed(data)[0]) == 0 or unstreamed(data)[1]:
                    wire.run()
                    data += receive_all(peer)
                assert unstreamed(data) == ([each], b"")
                data = b""


def select_more(wire, got, count):
    """TCP delivers a little later."""
    while len(got) < count:
        select.select(wire.port.descriptors(), [], [], 60)
        got += wire.run()


@settings(max_examples=60, deadline=None)
@given(st.lists(lengths, max_size=12), st.lists(st.integers(1, 70000), min_size=1, max_size=30))
def test_pieces_of_any_length_are_frames_again(sizes, cuts):
    frames = [frame(length, number) for number, length in enumerate(sizes)]
    data, found, turn = streamed(frames), [], 0
    with stream() as (wire, peer):
        while data:
            piece, data = data[: cuts[turn % len(cuts)]], data[cuts[turn % len(cuts)] :]
            turn += 1
            found += send_all(peer, piece, wire)
    assert found == frames


def test_byte_by_byte():
    frames = [frame(length) for length in (1, 2, 60)]
    with stream() as (wire, peer):
        found = []
        for at in range(len(streamed(frames))):
            found += send_all(peer, streamed(frames)[at : at + 1], wire)
        assert found == frames


def test_many_frames_at_once_are_taken_in_bursts():
    frames = [frame(60, number) for number in range(1000)]
    with stream() as (wire, peer):
        assert send_all(peer, streamed(frames), wire) == frames


def test_a_peer_that_reads_late_gets_whole_frames_in_order():
    with stream() as (wire, peer):
        sent = [frame(1400, number) for number in range(256)]
        for at in range(0, len(sent), 32):
            wire.send(*sent[at : at + 32])
        dropped = wire.port.queue_statistics()[0]["tx_dropped"]
        assert dropped  # the socket and the port's buffer are full
        assert send_all(peer, streamed([b"x" * 60]), wire) == [b"x" * 60]  # and it is read from all the same
        data = b""
        while True:
            got = receive_all(peer)
            data += got
            wire.run()
            if not got:
                break
        found, rest = unstreamed(data)
        assert rest == b"" and found == sent[: len(found)] and len(found) == len(sent) - dropped
        wire.send(b"y" * 60)
        assert unstreamed(receive_all(peer)) == ([b"y" * 60], b"")


@pytest.mark.parametrize("length", [LONGEST + 1, 1 << 31, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_ends_the_stream(length):
    with stream() as (wire, peer):
        assert send_all(peer, streamed([b"a" * 60]) + struct.pack("!I", length) + b"b" * 5000, wire) == [b"a" * 60]
        assert not wire.port.connected and f"{length} bytes" in wire.port.problem
        assert os.eventfd_read(wire.port.gone) == 1
        assert wire.send(b"c" * 60) == []
        assert wire.port.queue_statistics()[0]["tx_dropped"] == 1


def test_empty_frames_are_counted_and_skipped():
    with stream() as (wire, peer):
        assert send_all(peer, streamed([b"", b"a" * 60, b"", b""] + [b""] * 100), wire) == [b"a" * 60]
        assert wire.port.queue_statistics()[0]["rx_dropped"] == 103


def test_an_empty_pool_loses_frames_and_not_the_stream():
    with stream(large=1) as (wire, peer):
        assert send_all(peer, streamed([frame(60000)] * 3), wire) == [frame(60000)]  # of one burst
        assert wire.port.queue_statistics()[0]["rx_dropped"] == 2
        assert send_all(peer, streamed([frame(60000, 1)]), wire) == [frame(60000, 1)]


def test_the_peer_closes_and_another_comes():
    with stream() as (wire, peer):
        peer.send(struct.pack("!I", 60) + b"half")
        peer.close()
        assert wire.run() == []
        assert not wire.port.connected and wire.port.problem == ""
        wire.port.disconnect()
        ours, theirs = pair("unix")
        with ours, theirs, closing(StreamBuffers()) as buffers:
            wire.port.connect(ours.fileno(), buffers)
            assert send_all(theirs, streamed([b"a" * 60]), wire) == [b"a" * 60]  # nothing of the old stream
            wire.port.disconnect()


def test_frames_longer_than_the_mtu_are_refused():
    with stream(mtu=1500) as (wire, peer):
        wire.send(b"a" * 1522, b"b" * 1523, b"c" * 60)
        assert unstreamed(receive_all(peer)) == ([b"a" * 1522, b"c" * 60], b"")


def test_another_process_goes_on_in_the_middle_of_frames():
    """Both directions hold half a frame when the port is handed over."""
    ours, theirs = pair("unix")
    sent = [frame(1400, number) for number in range(200)]
    with ours, theirs:
        with closing(StreamBuffers()) as buffers:
            port = StreamPort("s", mtu=1500)
            port.connect(ours.fileno(), buffers)
            with closing(Wire(port)) as wire:
                first = send_all(theirs, streamed(sent)[:5000], wire)
                wire.send(*sent)  # more than the socket takes
                kept = os.dup(buffers.fd)
        assert first == sent[:3]
        dropped = port.queue_statistics()[0]["tx_dropped"]
        with closing(StreamBuffers(kept)) as buffers:
            os.close(kept)
            port = StreamPort("s", mtu=1500)
            port.connect(ours.fileno(), buffers)
            with closing(Wire(port)) as wire:
                assert send_all(theirs, streamed(sent)[5000:], wire) == sent[3:]
                data = b""
                while got := receive_all(theirs):
                    data += got
                    wire.run()
        found, rest = unstreamed(data)
        assert rest == b"" and len(found) == 200 - dropped and found == sent[: len(found)]


def echo_until_killed(ours, descriptor):
    """In a child: receives frames and sends them back, for ever."""
    port = StreamPort("s", mtu=65535)
    port.connect(ours.fileno(), StreamBuffers(descriptor))
    pool = PacketPool(small=128, large=16)
    rx = PortRx(port)
    rx >> PortTx(port)
    engine = Engine("e0", pool, clock=Clock(virtual=True, start_ns=1))
    engine.load([rx])
    now = 1
    while True:
        select.select(port.descriptors(), [], [])
        now += 1
        advance(engine, now)


def test_killed_at_any_instant_the_stream_stays_whole():
    """Frames that were in the killed process may be lost; all others arrive whole and in order."""
    ours, theirs = pair("unix")
    sent = received = 0
    frames, data, out = [], b"", b""
    with ours, theirs, closing(StreamBuffers()) as buffers:
        for _ in range(30):
            child = os.fork()
            if not child:
                with suppress(BaseException):
                    echo_until_killed(ours, buffers.fd)
                os._exit(1)
            until = received + 200_000
            while received < until:
                if len(out) < 100_000:
                    out += streamed([struct.pack("!I", sent) + frame(56 + sent % 3000, sent)])
                    sent += 1
                    continue
                select.select([theirs], [theirs], [], 60)
                with suppress(BlockingIOError):
                    out = out[theirs.send(out[:50_000]) :]
                got = receive_all(theirs)
                received += len(got)
                whole, data = unstreamed(data + got)
                frames += whole
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    numbers = [struct.unpack_from("!I", each)[0] for each in frames]
    for number, each in zip(numbers, frames, strict=True):
        assert each[4:] == frame(56 + number % 3000, number)
    assert numbers == sorted(set(numbers)) and len(numbers) > 1000


def test_buffers_of_something_else_are_refused():
    with pytest.raises(VnicError, match="no shared segment"), open(os.devnull) as other:
        StreamBuffers(other.fileno())
    descriptor, mapping = create("other", BYTES)
    mapping.close()
    with pytest.raises(VnicError, match="something else"):
        StreamBuffers(descriptor)
    os.close(descriptor)


def test_buffers_with_wrong_positions_are_refused():
    with closing(StreamBuffers()) as buffers:
        os.pwrite(buffers.fd, b"\xff" * 64, 16)
        with pytest.raises(VnicError, match="inconsistent"):
            StreamBuffers(buffers.fd)


# -- datagrams -------------------------------------------------------------------------------------


@contextmanager
def datagrams(directory, mtu=65535):
    ours, theirs = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    here, there = str(directory / "a"), str(directory / "b")
    with ours, theirs:
        ours.bind(here)
        theirs.bind(there)
        theirs.connect(here)
        theirs.setblocking(False)
        peer = struct.pack("=H", socket.AF_UNIX) + there.encode() + b"\0"
        with closing(Wire(DgramPort("d", ours.fileno(), peer=peer, mtu=mtu))) as wire:
            yield wire, theirs


def test_datagrams_both_ways(tmp_path):
    with datagrams(tmp_path) as (wire, peer):
        for length in (1, 60, 1514, 1920, 1921, 9000, 65535, LONGEST):
            each = frame(length, length)
            peer.send(each)
            assert wire.run() == [each]
            if length <= 65535 + 22:
                wire.send(each)
                assert peer.recv(1 << 17) == each
        few = [frame(60, number) for number in range(8)]
        for each in few:
            peer.send(each)
        assert wire.run() == few
        wire.send(*few)
        assert [peer.recv(1 << 17) for _ in few] == few


def test_datagrams_that_are_no_frames_are_counted(tmp_path):
    with datagrams(tmp_path) as (wire, peer):
        peer.send(b"")
        peer.send(bytes(LONGEST + 1))
        peer.send(b"a" * 60)
        assert wire.run() == [b"a" * 60]
        assert wire.port.queue_statistics()[0]["rx_dropped"] == 2


def test_a_full_or_absent_peer_costs_frames_only(tmp_path):
    with datagrams(tmp_path) as (wire, peer):
        wire.send(*[frame(60)] * 1000)
        dropped = wire.port.queue_statistics()[0]["tx_dropped"]
        assert 0 < dropped < 1000
        peer.close()
        wire.send(frame(60))
        assert wire.port.queue_statistics()[0]["tx_dropped"] == dropped + 1
        os.unlink(tmp_path / "b")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
            again.bind(str(tmp_path / "b"))
            wire.send(frame(61))
            assert again.recv(100) == frame(61)


def test_an_udp_peer_that_is_away_and_comes_back():
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        there = other.getsockname()
        ours.bind(("127.0.0.1", 0))
        ours.connect(there)
        other.close()
        with closing(Wire(DgramPort("d", ours.fileno()))) as wire:
            wire.send(frame(60), frame(61))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
                again.bind(there)
                again.connect(ours.getsockname())
                wire.send(frame(62))
                assert again.recv(100) == frame(62)
                again.send(frame(63))
                assert wire.run() == [frame(63)]


def test_an_address_that_is_too_long():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours, pytest.raises(PortError, match="at most 128"):
        DgramPort("d", ours.fileno(), peer=bytes(129))

"""A container's side of its interface: packet sockets that send and receive frames there."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from dataplane.descriptors import system_error
from dataplane.errors import VnicError
from dataplane.graph.offload import split_frame
from dataplane.ports.memory import Frame

HEADER = struct.Struct(
    "=BBHHHH"
)  # struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
NEEDS_CSUM = 1
SOL_PACKET, PACKET_STATISTICS, PACKET_AUXDATA, VLAN_VALID, VLAN_TPID_VALID = 263, 6, 8, 0x10, 0x40
SO_TIMESTAMPNS = 35
AUXDATA, TIMESPEC = struct.Struct("=IIIHHHH"), struct.Struct("@qq")
FRAME_MOST = 1 << 17
ANCILLARY_MOST = 256
STORED_MOST = 64 << 20  # bytes of received frames that the test has not taken
RETRIES, PAUSE_S = 1000, 0.001  # while the interface has no room for another frame
MACS_BYTES = 12


class Arrival(NamedTuple):
    """A frame that arrived. real_ns: the system's clock (CLOCK_REALTIME) then."""

    real_ns: int
    queue: int
    data: bytes


def with_checksum(frame: bytes, start: int, offset: int) -> bytes:
    """Completes a frame's checksum at `start + offset`, which has the pseudo-header's sum, over
    everything from `start` on."""
    covered = frame[start:]
    # The ones' complement sum of 16-bit words is the number modulo 65535.
    found = ~(int.from_bytes(covered + bytes(len(covered) % 2)) % 0xFFFF) & 0xFFFF or 0xFFFF
    return b"".join((frame[: start + offset], found.to_bytes(2), frame[start + offset + 2 :]))


def finished(header: bytes, frame: bytes, tag: bytes) -> list[bytes]:
    """The frames that a wire would carry for a frame from a packet socket: with its VLAN tag,
    segmented, with complete checksums."""
    flags, gso_type, _, gso_size, start, offset = HEADER.unpack(header)
    if tag:
        frame = frame[:MACS_BYTES] + tag + frame[MACS_BYTES:]
        start += len(tag) if flags & NEEDS_CSUM else 0
    if gso_type:
        segments, _ = split_frame(frame, gso_type, gso_size, start, offset)
        return [
            with_checksum(data, first, at) if more & NEEDS_CSUM else data
            for data, more, _, _, _, first, at in segments
        ]
    if flags & NEEDS_CSUM and start + offset + 2 <= len(frame):
        return [with_checksum(frame, start, offset)]
    return [frame]


class Station:
    """Sends and receives frames on the interface of a NIC's container. It owns the descriptors of
    the packet sockets, one per queue.

    sent      frames that the interface was given, and that it refused
    arrived   frames that came, a GSO frame counted once, also those that were lost
    lost      frames that came and were not kept, for lack of room
    """

    def __init__(self, nic: str, descriptors: Sequence[int]) -> None:
        self.nic = nic
        self._sockets = [socket.socket(fileno=each) for each in descriptors]
        for each in self._sockets:
            each.setblocking(False)
        self.sent = self.arrived = self.lost = 0
        self.stored_bytes = 0
        self._buffer = memoryview(bytearray(FRAME_MOST))

    @property
    def has_room(self) -> bool:
        """Whether `receive` reads frames."""
        return self.stored_bytes < STORED_MOST

    def descriptors(self) -> list[int]:
        """Become readable when a frame arrives."""
        return [each.fileno() for each in self._sockets]

    def send(self, frame: Frame) -> None:
        """Sends a frame as the container's stack would. Waits briefly if the interface's queue is
        full. Raises VnicError."""
        header = HEADER.pack(
            *(frame.vnet_flags, frame.gso_type, frame.header_length, frame.gso_size),
                             *(frame.csum_start, frame.csum_offset))  # fmt: skip
        for _ in range(RETRIES):
            self.sent += 1
            try:
                self._sockets[0].send(header + frame.data)
                return
            except (BlockingIOError, OSError) as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    self.sent -= 1
                    raise VnicError(f"send: nic {self.nic}: {system_error(error)}") from None
                self.sent -= error.errno == errno.EAGAIN
            time.sleep(PAUSE_S)
        raise VnicError(f"send: nic {self.nic}: its interface takes no frame")

    def receive(self) -> list[Arrival]:
        """The frames that have arrived, in order."""
        found: list[Arrival] = []
        for queue, sock in enumerate(self._sockets):
            while self.has_room:
                try:
                    length, messages, _, _ = sock.recvmsg_into([self._buffer], ANCILLARY_MOST)
                except BlockingIOError:
                    break
                except OSError:  # the interface is gone
                    break
                self.arrived += 1
                real_ns, tag = time.time_ns(), b""
                for level, kind, content in messages:
                    if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                        seconds, rest = TIMESPEC.unpack_from(content)
                        real_ns = seconds * 10**9 + rest
                    elif (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                        status, _, _, _, _, tci, tpid = AUXDATA.unpack_from(content)
                        if status & VLAN_VALID:
                            tag = struct.pack(
                                ">HH", tpid if status & VLAN_TPID_VALID else 0x8100, tci
                            )
                data = bytes(self._buffer[:length])
                frames = finished(data[: HEADER.size], data[HEADER.size :], tag)
                found += [Arrival(real_ns, queue, frame) for frame in frames]
                self.stored_bytes += sum(map(len, frames))
            self._count_lost(sock)
        found.sort(key=lambda arrival: arrival.real_ns)
        return found

    def _count_lost(self, sock: socket.socket) -> None:
        try:
            _, lost = struct.unpack("=II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        except OSError:
            return
        self.lost += lost
        self.arrived += lost

    def close(self) -> None:
        for each in self._sockets:
            each.close()

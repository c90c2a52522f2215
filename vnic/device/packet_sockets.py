"""AF_PACKET sockets at an interface, as `dataplane.ports.packet_port` takes them, and the handle of an interface that is served by them.

Sources: packet(7); net/packet/af_packet.c and Documentation/networking/packet_mmap.rst of Linux 6.18.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from vnic.device.tap import Tap, TapReport

if TYPE_CHECKING:
    from dataplane.graph.port import Port
    from vnic.device.namespaces import NetNamespace
    from vnic.device.tap import Agent

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 1, 1
PACKET_RX_RING, PACKET_COPY_THRESH, PACKET_AUXDATA, PACKET_VERSION, PACKET_TX_RING, PACKET_LOSS = (
    5,
    7,
    8,
    10,
    13,
    14,
)
PACKET_VNET_HDR, PACKET_FANOUT, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING = 15, 18, 20, 23
TPACKET_V2 = 1
PACKET_FANOUT_HASH = 0
PACKET_FANOUT_FLAG_UNIQUEID, PACKET_FANOUT_FLAG_IGNORE_OUTGOING = 0x2000, 0x4000
ETH_P_ALL = 0x0003
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33

# Frames that wait in a queue's ring, of all its queues together: what an engine that is halted for an upgrade, or kept from its CPU, must
# not lose; as many as a TAP's queues have where the machine is busy.
RING_FRAMES, RING_FRAMES_LEAST = 1024, 256
# A slot holds the packet header (76 bytes) and a frame of an MTU of 1500 with two VLAN tags. Its size is an odd number of cache lines:
# slots whose distance is a power of two would compete for a few sets of the caches.
SLOT_BYTES = 1600
BLOCK_BYTES = 65536  # the kernel allocates the ring in blocks; 40 slots each, and the rest is the port's own, see PacketPort
SLOTS_OF_A_BLOCK = 40
# Of a ring to transmit by. Frames leave it while the system call lasts, unless the interface is late with them.
SENDING_BLOCKS = 4
# Of frames that are longer than a slot (GSO), per queue: 4 MB hold some 60, if root of the machine's user namespace asks; others get the
# limit that net.core.rmem_max and wmem_max set.
BUFFER_BYTES = 4 << 20


class RingReport(TapReport, frozen=True, kw_only=True):
    """An interface that is served by sockets. Behind the queues' sockets to receive from come those to transmit by, as many; then what
    the kind adds, and the netlink sockets as TapReport says. The fields are those of the queues' rings, as PacketPort takes them."""

    slot_bytes: int
    block_bytes: int
    blocks: int
    sending_blocks: int


def ring_settings(queues: int) -> dict[str, int]:
    """The fields of a RingReport, of an interface with so many queues."""
    return {
        "slot_bytes": SLOT_BYTES,
        "block_bytes": BLOCK_BYTES,
        "blocks": blocks_of(queues),
        "sending_blocks": SENDING_BLOCKS,
    }


def blocks_of(queues: int) -> int:
    """Blocks of the ring of each of so many queues."""
    return -(-max(RING_FRAMES // queues, RING_FRAMES_LEAST) // SLOTS_OF_A_BLOCK)


# --- in the agent's child, inside the interface's network namespace ---------------------------------------------------


def open_queues(interface: str, queues: int, *, bypass: bool) -> list[socket.socket]:
    """Sockets that receive what arrives at an interface into rings, each its share of the flows, and transmit long frames there. They
    see nothing that this machine sends out of the interface. bypass: transmit past the queueing discipline. Raises OSError."""
    opened = [_open_queue(interface, queues, bypass=bypass) for _ in range(queues)]
    if queues > 1:
        kind = PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_IGNORE_OUTGOING
        opened[0].setsockopt(SOL_PACKET, PACKET_FANOUT, (kind | PACKET_FANOUT_FLAG_UNIQUEID) << 16)
        group = opened[0].getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
        for queue in opened[1:]:
            queue.setsockopt(SOL_PACKET, PACKET_FANOUT, group | kind << 16)
    for queue in opened:
        queue.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    return opened


def open_sending(interface: str, *, bypass: bool) -> socket.socket:
    """A socket that transmits the frames of a ring. It receives nothing, and so no error either when the interface goes down. Raises
    OSError."""
    sending = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    _set_options(sending, PACKET_LOSS, bypass=bypass)
    sending.setsockopt(SOL_PACKET, PACKET_TX_RING, _ring(SENDING_BLOCKS))
    sending.bind((interface, 0))
    return sending


def receive_all(queue: socket.socket, ifindex: int) -> None:
    """Has an interface receive the frames for all addresses, as long as the socket is open. Raises OSError."""
    queue.setsockopt(
        SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8x", ifindex, PACKET_MR_PROMISC, 0)
    )


def _open_queue(interface: str, queues: int, *, bypass: bool) -> socket.socket:
    # Protocol 0: it receives nothing before it is bound, so that a frame of another interface never gets in.
    queue = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    _set_options(queue, PACKET_AUXDATA, PACKET_COPY_THRESH, PACKET_IGNORE_OUTGOING, bypass=bypass)
    queue.setsockopt(SOL_PACKET, PACKET_RX_RING, _ring(blocks_of(queues)))
    # Until all have their shares, since each of them would take every frame.
    _drop_all(queue)
    queue.bind((interface, ETH_P_ALL))
    return queue


def _drop_all(queue: socket.socket) -> None:
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET of 0 bytes
    queue.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program))
    )


def _set_options(sock: socket.socket, *more: int, bypass: bool) -> None:
    sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
    for option in (PACKET_VNET_HDR, *((PACKET_QDISC_BYPASS,) if bypass else ()), *more):
        sock.setsockopt(SOL_PACKET, option, 1)
    for forced, limited in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, limited, BUFFER_BYTES)


def _ring(blocks: int) -> bytes:
    return struct.pack("=IIII", BLOCK_BYTES, blocks, SLOT_BYTES, blocks * SLOTS_OF_A_BLOCK)


# --- the handle -------------------------------------------------------------------------------------------------------


class SocketInterface(Tap):
    """An interface that is served by packet sockets, with the interface of a Tap.

    fds        one socket a queue, each with a ring to receive from that is not mapped
    sending    another one a queue, with a ring to transmit by
    extra      what the kind adds
    ring_drops what the queues' rings had no room for; set by the port's owner, who alone can ask
    """

    def __init__(
        self, report: RingReport, fds: Sequence[int], namespace: NetNamespace, agent: Agent
    ) -> None:
        super().__init__(report, fds, namespace, agent)
        self.slot_bytes, self.block_bytes = report.slot_bytes, report.block_bytes
        self.blocks, self.sending_blocks = report.blocks, report.sending_blocks
        queues = len(self.fds) // 2
        self.sending, self.extra = self.fds[queues : 2 * queues], self.fds[2 * queues :]
        del self.fds[queues:]
        self.ring_drops: Callable[[], int] = int

    def report(self) -> RingReport:
        """What another process needs beside the descriptors of `let_go`."""
        return RingReport(
            **msgspec.structs.asdict(super().report()),
            slot_bytes=self.slot_bytes,
            block_bytes=self.block_bytes,
            blocks=self.blocks,
            sending_blocks=self.sending_blocks,
        )

    def present(self) -> bool:
        """Whether the interface is there: root of its container may delete it. True of one that is closed."""
        if self.closed:
            return True
        with socket.socket(fileno=os.dup(self.fds[0])) as queue:
            return bool(
                queue.getsockname()[0]
            )  # the name of the interface that it is bound to; none when that is gone

    def let_go(self) -> list[int]:
        """The descriptors in the order of RingReport; they are the caller's now, and this is closed."""
        if not self.closed:
            self.fds += [*self.sending, *self.extra]
            self.sending, self.extra = [], []
        return super().let_go()

    def make_port(self, name: str, number: int) -> Port:
        """The port over the sockets. Raises PortError."""
        from dataplane.ports.packet_port import PacketPort

        port = PacketPort(
            name,
            self.fds,
            self.sending,
            slot_bytes=self.slot_bytes,
            block_bytes=self.block_bytes,
            blocks=self.blocks,
            sending_blocks=self.sending_blocks,
            number=number,
            offloads=self.offloads,
            mtu=self.mtu,
        )
        self.ring_drops = port.ring_drops
        return port

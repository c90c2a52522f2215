"""AF_PACKET sockets at an interface, for `dataplane.ports.packet_port`, and the interface's handle.

Sources: packet(7); net/packet/af_packet.c and Documentation/networking/packet_mmap.rst of Linux
6.18.
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

# Slots of the receive rings of all queues of a NIC, and at least of each: frames that wait while an
# engine is halted for an upgrade or waits for its CPU; as many as a TAP's queues have on a busy
# machine.
RING_FRAMES, RING_FRAMES_LEAST = 1024, 256
# A slot holds the packet header (76 bytes) and a frame of an MTU of 1500 with two VLAN tags. Its
# size is an odd number of cache lines: slots at a power of two would compete for a few sets of the
# caches.
SLOT_BYTES = 1600
# the kernel allocates a ring in blocks of 40 slots; PacketPort uses the rest of the last one
BLOCK_BYTES = 65536
SLOTS_OF_A_BLOCK = 40
# of a transmit ring, which is mostly empty after each system call
SENDING_BLOCKS = 4
# Socket buffer per queue for frames longer than a slot (GSO): 4 MB hold some 60. Only root of the
# initial user namespace gets this size, others at most net.core.rmem_max and wmem_max.
BUFFER_BYTES = 4 << 20


class RingReport(TapReport, frozen=True, kw_only=True):
    """The properties of an interface with packet sockets: the queues' rings, for PacketPort. The
    descriptors are the queues' receiving sockets, as many transmitting ones, those that the kind
    adds, and the netlink sockets of TapReport."""

    slot_bytes: int
    block_bytes: int
    blocks: int
    sending_blocks: int


def ring_settings(queues: int) -> dict[str, int]:
    """The fields of a RingReport for a number of queues."""
    return {
        "slot_bytes": SLOT_BYTES,
        "block_bytes": BLOCK_BYTES,
        "blocks": blocks_of(queues),
        "sending_blocks": SENDING_BLOCKS,
    }


def blocks_of(queues: int) -> int:
    """Blocks per receive ring for a number of queues."""
    return -(-max(RING_FRAMES // queues, RING_FRAMES_LEAST) // SLOTS_OF_A_BLOCK)


# --- in the agent's child, inside the interface's network namespace -------------------------------


def open_queues(interface: str, queues: int, *, bypass: bool) -> list[socket.socket]:
    """Opens sockets that receive an interface's frames into rings, each a part of the flows, and
    that transmit long frames. They do not receive the machine's own outgoing frames. bypass:
    transmit past the queueing discipline. Raises OSError."""
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
    """Opens a socket that transmits the frames of a ring. It receives nothing, so it has no pending
    error when the interface goes down. Raises OSError."""
    sending = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    _set_options(sending, PACKET_LOSS, bypass=bypass)
    sending.setsockopt(SOL_PACKET, PACKET_TX_RING, _ring(SENDING_BLOCKS))
    sending.bind((interface, 0))
    return sending


def receive_all(queue: socket.socket, ifindex: int) -> None:
    """Puts an interface into promiscuous mode while the socket is open. Raises OSError."""
    queue.setsockopt(
        SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8x", ifindex, PACKET_MR_PROMISC, 0)
    )


def _open_queue(interface: str, queues: int, *, bypass: bool) -> socket.socket:
    # protocol 0: receives nothing before it is bound, in particular no frame of another interface
    queue = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    _set_options(queue, PACKET_AUXDATA, PACKET_COPY_THRESH, PACKET_IGNORE_OUTGOING, bypass=bypass)
    queue.setsockopt(SOL_PACKET, PACKET_RX_RING, _ring(blocks_of(queues)))
    # until the fanout group is complete, since each socket would receive every frame
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


# --- the handle -----------------------------------------------------------------------------------


class SocketInterface(Tap):
    """The handle of an interface with packet sockets, with the methods of a Tap.

    fds         one socket per queue, with a receive ring, which is not mapped
    sending     one socket per queue, with a transmit ring
    extra       descriptors that the kind adds
    ring_drops  returns the frames dropped because a ring was full; set by `make_port`
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
        """The data that another process needs besides the descriptors of `let_go`."""
        return RingReport(
            **msgspec.structs.asdict(super().report()),
            slot_bytes=self.slot_bytes,
            block_bytes=self.block_bytes,
            blocks=self.blocks,
            sending_blocks=self.sending_blocks,
        )

    def present(self) -> bool:
        """Whether the interface still exists: root of its container may delete it. True if
        closed."""
        if self.closed:
            return True
        with socket.socket(fileno=os.dup(self.fds[0])) as queue:
            # the name of the interface that the socket is bound to; empty when that is gone
            return bool(queue.getsockname()[0])

    def let_go(self) -> list[int]:
        """Returns the descriptors in the order of RingReport, which the caller closes; the handle
        is closed."""
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

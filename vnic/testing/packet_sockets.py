"""Packet sockets on the interface of a container, opened inside it. Uses the standard library only,
to load fast."""

from __future__ import annotations

import array
import socket
import struct

SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 8, 15, 23
ETH_P_ALL = 3
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 26, 33, 35
BUFFER_BYTES = 32 << 20
SKF_AD_QUEUE = 0xFFFFF000 + 24  # linux/filter.h: the packet's queue, as the kernel counts it


def packet_sockets(interface: str, queues: int) -> list[int]:
    """Packet sockets on an interface of the network namespace that this process is in: one for each
    queue of the NIC, which receives that queue's frames only. They have virtio-net headers and
    times of arrival. Raises OSError."""
    made: list[socket.socket] = []
    try:
        for queue in range(queues):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            made.append(sock)
            for option in (PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING):
                sock.setsockopt(SOL_PACKET, option, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            if queues > 1:
                _of_queue(sock, queue)
            sock.bind((interface, ETH_P_ALL))
        return [sock.detach() for sock in made]
    except BaseException:
        for sock in made:
            sock.close()
        raise


def _of_queue(sock: socket.socket, queue: int) -> None:
    """Makes a packet socket receive frames of one queue only. The kernel counts queues from 1; 0 is
    a frame without one, which the first socket gets."""
    wanted = (0, 1) if queue == 0 else (queue + 1, queue + 1)
    code = [
        (0x20, 0, 0, SKF_AD_QUEUE),  # load the queue
        (0x15, 1, 0, wanted[0]),  # equal: accept
        (0x15, 0, 1, wanted[1]),  # not equal: reject
        (0x06, 0, 0, 0x40000),  # accept, whole
        (0x06, 0, 0, 0),  # reject
    ]
    program = array.array("B", b"".join(struct.pack("=HBBI", *each) for each in code))
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(code), program.buffer_info()[0])
    )

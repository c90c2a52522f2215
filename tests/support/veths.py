"""Frames on the container's side of an interface."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dataplane.elements.rss import Rss
from tests.support.containers import IS_ROOT, Container
from vnic.device.agent import NamespaceAgent
from vnic.device.kinds.registry import interface_kind
from vnic.device.nic import Nic
from vnic.device.tap import TapRequest

SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, VLAN_VALID = 263, 8, 15, 23, 0x10
OPEN_SOCKET = """
import socket, sys
opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
opened.bind((sys.argv[2], 3))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"."], [opened.fileno()])
"""


@contextmanager
def quiet_container(*, user_namespace: bool = not IS_ROOT, nested: bool = False) -> Iterator[Container]:
    """A container whose kernel sends nothing by itself; it needs no /dev/net/tun."""
    try:
        container = Container(user_namespace=user_namespace, nested=nested)
    except RuntimeError as error:
        pytest.skip(f"missing tool: {error}; see kernel.apparmor_restrict_unprivileged_userns and user.max_user_namespaces")
    with container:
        container.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        yield container


def open_nic(agent: NamespaceAgent, name: str, number: int, request: TapRequest) -> Nic:
    """A NIC over an interface that the agent makes."""
    interface = agent.open_nic(request)
    port = interface_kind(request.KIND).port(name, number, interface)
    return Nic(name, interface, port, Rss(queues=request.queues), lambda settings: None)


class Station:
    """A packet socket on an interface of a container, opened inside and passed out. vnet: frames have a virtio-net header."""

    def __init__(self, container: Container, interface: str = "eth0", *, vnet: bool = False) -> None:
        here, there = socket.socketpair()
        with here, there:
            command = container.command([sys.executable, "-c", OPEN_SOCKET, str(there.fileno()), interface])
            subprocess.run(command, pass_fds=[there.fileno()], check=True, timeout=120)
            _, (descriptor,), _, _ = socket.recv_fds(here, 1, 1)
        self.socket = socket.socket(fileno=descriptor)
        self.socket.settimeout(60)
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, int(vnet))
        self.vnet = vnet

    def send(self, frame: bytes) -> None:
        """Sends a frame as the container's stack would."""
        assert self.socket.send(frame) == len(frame)

    def receive(self) -> bytes:
        """The next frame that arrives at the interface, with the VLAN tag that the kernel took out."""
        data, messages, _, _ = self.socket.recvmsg(80000, 256)
        for level, kind, aux in messages:
            status, _, _, _, _, tci, tpid = struct.unpack_from("=IIIHHHH", aux)
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA) and status & VLAN_VALID:
                at = 12 + (10 if self.vnet else 0)
                data = data[:at] + struct.pack(">HH", tpid, tci) + data[at:]
        return data

    def nothing_waits(self) -> bool:
        """Whether no frame has arrived."""
        try:
            self.socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self.socket.close()


def descriptors_of(pid: int) -> list[str]:
    """What a process' descriptors are."""
    return [os.readlink(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd")]

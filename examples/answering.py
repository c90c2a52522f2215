"""A module behind a NIC: its engine answers ARP and ping at an address, as a container would. docs/modules.md explains it.

modules: [{module: answering:Answering, nic: beacon, address: 10.0.0.9, mac: "02:00:00:00:00:09"}]
nics: {beacon: {kind: module}}
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from dataplane.graph.element import BatchView, PyElement
from dataplane.graph.port import PortRx, PortTx
from vnic.modules.engine_host import EngineHost
from vnic.modules.module import Module

if TYPE_CHECKING:
    from vnic.modules.host import Host

ARP, IPV4, ICMP = b"\x08\x06", b"\x08\x00", 1
ARP_REQUEST, ECHO_REQUEST = b"\x00\x01\x08\x00\x06\x04\x00\x01", 8


class Answer(PyElement):
    """Turns ARP requests for `address` and echo requests to it into the answers; drops all else."""

    DROP_REASONS = ("not_for_us",)

    def __init__(self, address: str, mac: str, *, name: str | None = None) -> None:
        self.address = ipaddress.IPv4Address(address).packed
        self.mac = bytes.fromhex(mac.replace(":", ""))

    def process(self, batch: BatchView) -> None:
        answered = [self._answer(batch.frame(i)) for i in range(len(batch))]
        batch.drop([not each for each in answered], "not_for_us")

    def _answer(self, view: memoryview) -> bool:
        """Answers a frame in place; returns whether it was for this address."""
        frame = bytes(view[:42])
        if frame[12:22] == ARP + ARP_REQUEST and frame[38:42] == self.address:
            answer = frame[6:12] + self.mac + frame[12:21] + b"\2" + self.mac + self.address + frame[22:32]
        elif self._is_echo(frame):
            total = (frame[36] << 8 | frame[37]) + (ECHO_REQUEST << 8)  # RFC 1624: the type becomes 0
            total = (total & 0xFFFF) + (total >> 16)
            addresses = frame[30:34] + frame[26:30]
            answer = frame[6:12] + self.mac + frame[12:26] + addresses + b"\0\0" + total.to_bytes(2, "big")
        else:
            return False
        for i, byte in enumerate(answer):
            view[i] = byte
        return True

    def _is_echo(self, frame: bytes) -> bool:
        plain = frame[12:15] == IPV4 + b"\x45" and not frame[20] & 0x3F and not frame[21]  # no options, no fragment
        return plain and frame[23] == ICMP and frame[30:34] == self.address and frame[34:36] == b"\x08\0" and len(frame) == 42


class Answering(Module):
    """An engine that answers at `address`, behind the NIC `nic` of kind `module`."""

    def __init__(self, runtime: Host, nic: str, address: str, mac: str, group: str | None = None) -> None:
        super().__init__(runtime, nic=nic, address=address, mac=mac, group=group)
        port = runtime.module_port(nic)
        receive, answer = PortRx(port, name=f"{nic}.received"), Answer(address, mac, name=f"{nic}.answer")
        receive >> answer >> PortTx(port, name=f"{nic}.sent")
        runtime.add_engine(nic, group, make=EngineHost).load([receive])

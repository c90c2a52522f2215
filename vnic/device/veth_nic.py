"""The emulated NIC over a veth pair: its interface in the container, its port, and receive-side scaling."""

from __future__ import annotations

from dataplane.graph.port import Port
from dataplane.ports.packet_port import PacketPort
from vnic.device.nic import Nic
from vnic.device.veth import Veth


class VethNic(Nic):
    """A NIC over a veth pair, with the interface of Nic; to be opened with a VethRequest."""

    def _make_port(self, number: int) -> Port:
        veth = self.tap
        assert isinstance(veth, Veth)
        port = PacketPort(
            self.name,
            veth.fds,
            veth.sending,
            slot_bytes=veth.slot_bytes,
            block_bytes=veth.block_bytes,
            blocks=veth.blocks,
            sending_blocks=veth.sending_blocks,
            number=number,
            offloads=veth.offloads,
            mtu=veth.mtu,
        )
        veth.ring_drops = port.ring_drops
        return port

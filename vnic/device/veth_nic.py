"""The emulated NIC over a veth pair: its interface in the container, its port, and receive-side scaling."""

from __future__ import annotations

import msgspec

from vnic.device.agent import NamespaceAgent
from vnic.device.nic import Nic
from vnic.device.nic_tx import NicTx
from vnic.device.packet_port import PacketPort
from vnic.device.rss import Rss
from vnic.device.tap import TapRequest
from vnic.device.veth import Veth, VethRequest


class VethNic(Nic):
    """A NIC over a veth pair, with the interface of Nic."""

    def __init__(self, name: str, number: int, tap: Veth, rss: Rss) -> None:
        self.name, self.tap, self.rss = name, tap, rss
        port = PacketPort(
            name,
            tap.fds,
            tap.sending,
            slot_bytes=tap.slot_bytes,
            block_bytes=tap.block_bytes,
            blocks=tap.blocks,
            sending_blocks=tap.sending_blocks,
            number=number,
            offloads=tap.offloads,
            mtu=tap.mtu,
        )
        self.port = port
        tap.ring_drops = port.ring_drops
        self.tx = NicTx(self.port, rss, name=f"{name}.tx")

    @classmethod
    def open(
        cls,
        agent: NamespaceAgent,
        name: str,
        number: int,
        request: TapRequest,
        *,
        rss_key: bytes | None = None,
        rss_table: list[int] | None = None,
    ) -> VethNic:
        """As Nic.open."""
        rss = Rss(rss_key, rss_table, queues=request.queues)
        veth = agent.open_veth(VethRequest(**msgspec.structs.asdict(request)))
        try:
            return cls(name, number, veth, rss)
        except BaseException:
            veth.close()
            raise

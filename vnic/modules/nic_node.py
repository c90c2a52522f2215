"""A NIC in the running network."""

from __future__ import annotations

from itertools import pairwise

from dataplane.elements.parse import Parse
from dataplane.graph.element import Element, Source
from dataplane.graph.port import PortRx
from shaping.pacer import Pacer
from shaping.pool_share import PoolShare
from shaping.scheduler import Scheduler
from shaping.shaper import Shaper
from vnic.api.method import is_owner
from vnic.config.schema import NicConfig
from vnic.device.kinds.contract import Device, Watch
from vnic.modules.chain import Chain
from vnic.modules.switch_port import SwitchPort, ring_source, with_entry
from vnic.modules.way import Way


class NicNode:
    """A NIC in the running network: the device and its elements. before: the running NIC, whose
    device, ring and unchanged elements are taken over. watch: the watch over its container, if
    there is one already."""

    def __init__(
        self,
        config: NicConfig,
        port: SwitchPort,
        nic: Device,
        directory: str | None,
        *,
        engines: int,
        before: NicNode | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.config, self.port, self.nic = config, port, nic
        self.watch: Watch = watch or (nic.watch() if before is None else before.watch)
        name = config.name
        self.rx: PortRx = PortRx(nic.port, name=f"{name}.rx") if before is None else before.rx
        egress, ingress = (None, None) if before is None else (before.egress, before.ingress)
        self.egress: Way = Way(config.egress, f"{name}.egress", directory, egress)
        self.ingress: Way = Way(config.ingress, f"{name}.ingress", directory, ingress)
        self.ingress.chain.join(nic.tx)
        if before is not None and before.config.malformed == config.malformed:
            self.parse: Parse = before.parse
        else:
            self.parse = Parse(config.malformed, port=nic.port, name=f"{name}.parse")
        self.sources: list[Source] = [self.rx]
        # Connections besides those of the chains.
        received: list[Element] = [self.rx, self.parse, *nic.after_parse, self.egress.head]
        self.edges: list[tuple[Element, Element]] = list(pairwise(received))
        if port.ring is not None:
            if before is not None:
                self.sources.append(before.sources[1])
            else:
                self.sources.append(ring_source(port.ring, name, port.number))
            self.edges.append((self.sources[1], self.ingress.head))
        for element, target in self.edges:
            if element.engine is None:
                element.connect(0, target)
        self.elements = [
            *self.sources,
            self.parse,
            *nic.after_parse,
            *self.egress.chain.elements,
            *self.ingress.chain.elements,
            nic.tx,
        ]
        for element in self.elements:
            element.owner = name
        # Whether a policy's scenario has cut its carrier; None: a worker before this one may have.
        self.cut: bool | None = None if before is None else before.cut
        if before is None:
            port.lead(self.ingress.head, engines, name, name)
        else:
            port.entries = with_entry(before.port.entries, port.home, self.ingress.head)

    @property
    def ports(self) -> list[SwitchPort]:
        """Its only port; a link has two."""
        return [self.port]

    @property
    def chains(self) -> dict[str, Chain]:
        """The chains of its directions, by the names that their elements' begin with."""
        ways = {"egress": self.egress, "ingress": self.ingress}
        return {f"{self.config.name}.{name}": way.chain for name, way in ways.items()}

    @property
    def is_up(self) -> bool:
        """Whether its port is open."""
        return self.config.link_up

    def elements_in(self, engine: int) -> list[Element]:
        """Its elements in the graph of an engine."""
        return self.elements if engine == self.home else [self.port.entries[engine]]

    def sources_in(self, engine: int) -> list[Source]:
        """Those of its elements that the graph of an engine begins with."""
        return self.sources if engine == self.home else []

    def connect(self) -> None:
        """Makes all connections, on the engine's thread."""
        for element, target in self.edges:
            element.connect(0, target)
        for way in (self.egress, self.ingress):
            way.chain.connect()

    def settle(self) -> None:
        """Gives elements that were taken over the settings of the configuration."""
        for way in (self.egress, self.ingress):
            way.settle()

    @property
    def number(self) -> int:
        """The number of its port, which is also the Packet.port of its packets."""
        return self.port.number

    @property
    def home(self) -> int:
        """The number of the engine that serves it."""
        assert self.port.home is not None
        return self.port.home

    def join(self, share: PoolShare) -> None:
        """Adds its shapers to a share of the pool before they run; together, the shapers of a share
        hold no more packets than it allows."""
        for element in self.elements:
            if isinstance(element, Shaper | Scheduler | Pacer) and element.engine is None:
                element.join(share)

    @property
    def source(self) -> str | None:
        """The one MAC address that the container may send from; None: any."""
        checked = self.config.spoof_check
        if checked is None:
            checked = not is_owner(self.config.owner)
        return self.nic.mac if checked else None

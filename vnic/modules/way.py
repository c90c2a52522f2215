"""One direction of a NIC or link."""

from __future__ import annotations

from dataplane.graph.element import Element
from shaping.shaper import Shaper
from vnic.config.schema import DirectionConfig
from vnic.modules.chain import Chain, build_chain


class Way:
    """One direction of a NIC or link: the elements of its configuration, a shaper, and what
    follows.

    before: the running direction; unchanged elements are taken over from it.
    """

    def __init__(
        self, config: DirectionConfig, prefix: str, directory: str | None, before: Way | None = None
    ) -> None:
        self.config = config
        self.chain: Chain = build_chain(
            config.elements, prefix, directory, None if before is None else before.chain
        )
        if before is not None and before.config.queue == config.queue:
            self.shaper: Shaper = before.shaper
        else:
            self.shaper = Shaper(config.rate, int(config.queue), name=f"{prefix}.rate")
        self.chain.append(self.shaper)

    def settle(self) -> None:
        """Gives elements that were taken over the settings of the configuration."""
        self.chain.settle()
        if self.shaper.rate_bps != int(self.config.rate or 0):
            self.shaper.set_rate(self.config.rate)

    @property
    def head(self) -> Element:
        """The first element."""
        assert self.chain.head is not None
        return self.chain.head

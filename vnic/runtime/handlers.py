"""Handlers of the running graph, by element name in all engines (see dataplane/graph/handlers.py).

Most elements exist once, in the home engine of their NIC. The switch has a copy in every engine,
under one name.

A value written to an element of the configuration is stored there, as the constructor's argument
that the handler names, so that a worker after a crash, or a successor, builds the element with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from dataplane.config.convert import did_you_mean
from dataplane.config.scalars import Rate
from dataplane.engine.engine import Engine
from dataplane.engine.handler_access import (
    describe,
    find_handler,
    plain,
    read_handler,
    write_handler,
)
from dataplane.errors import ConfigError
from dataplane.graph.element import Element
from vnic.config.schema import ElementConfig, NodeConfig
from vnic.modules.element_node import ElementNode
from vnic.modules.engine_host import EngineHost
from vnic.modules.link_node import LinkNode
from vnic.modules.nic_node import NicNode


class SetRate(Protocol):
    """Network.set_rate."""

    def __call__(self, name: str, /, **limits: int | None) -> object: ...


class Handlers:
    """Finds elements by name and reads and writes their handlers. The caller holds the runtime's
    lock.

    halt, resume: stop an engine between two batches and let it go on. set_rate: sets a NIC's limits
    and stores them.
    """

    def __init__(
        self,
        hosted: Sequence[EngineHost],
        nics: Mapping[str, NicNode],
        links: Mapping[str, LinkNode],
        nodes: Mapping[str, ElementNode],
        *,
        halt: Callable[[Engine], object],
        resume: Callable[[Engine], object],
        set_rate: SetRate,
    ) -> None:
        self._hosted, self._nics, self._links, self._nodes = hosted, nics, links, nodes
        self._halt, self._resume, self._set_rate = halt, resume, set_rate

    def describe(self, name: str | None = None) -> dict[str, dict[str, Any]]:
        """Describes all elements, or one: {element: {"type", "engines": names, "handlers": see
        dataplane.engine.handler_access.describe}}, in the order of the graphs. Raises ConfigError
        for an unknown element."""
        found: dict[str, dict[str, Any]] = {}
        for element in self._copies(name) if name is not None else self._all():
            assert element.engine is not None
            entry = {"type": type(element).__name__, "engines": [], "handlers": describe(element)}
            found.setdefault(element.name, entry)["engines"].append(element.engine.name)
        return found

    def read(self, name: str, handler: str) -> list[dict[str, Any]]:
        """Reads a handler of each copy, between two batches: [{"engine", "value"}]; one entry with
        engine None for state that the copies share. Raises ConfigError for an unknown or unreadable
        handler."""
        copies = self._copies(name)
        if find_handler(copies[0], handler).shared:
            return [{"engine": None, "value": read_handler(copies[0], handler)}]
        return [
            {
                "engine": None if copy.engine is None else copy.engine.name,
                "value": read_handler(copy, handler),
            }
            for copy in copies
        ]

    def write(self, name: str, handler: str, value: Any) -> Any:
        """Writes a handler of all copies, see dataplane.engine.handler_access.write_handler, and
        stores the value in the configuration."""
        copies = self._copies(name)
        for nic, attached in self._nics.items():
            for limit, shaper in (
                ("egress_bps", attached.egress.shaper),
                ("ingress_bps", attached.ingress.shaper),
            ):
                # a NIC's own limit has its own key in the configuration
                if shaper is copies[0] and handler == "rate":
                    self._set_rate(nic, **{limit: shaper.prepare_rate(value).rate_bps or None})
                    return None
        result = write_handler(copies, handler, value, halt=self._halt, resume=self._resume)
        self._keep(name, find_handler(copies[0], handler).argument, value)
        return result

    def _all(self) -> list[Element]:
        return [element for each in self._hosted for element in each.engine.elements]

    def _copies(self, name: str) -> list[Element]:
        copies = [element for element in self._all() if element.name == name]
        if not copies:
            known = list(dict.fromkeys(element.name for element in self._all()))
            raise ConfigError(
                f"element {name}: there is none; {did_you_mean(name, known)}", code="not-found"
            )
        return copies

    def _keep(self, name: str, argument: str | None, value: object) -> None:
        ways = [
            way for attached in self._nics.values() for way in (attached.egress, attached.ingress)
        ]
        ways += [way for link in self._links.values() for way in link.ways.values()]
        configs: list[ElementConfig | NodeConfig | None] = [
            way.chain.configs.get(name) for way in ways
        ]
        configs += [self._nodes[name].config] if name in self._nodes else []
        for config in configs:
            if config is not None and argument is not None:
                config.arguments = {**config.arguments, argument: plain(value)}
        for way in ways:
            # a link's own limit; a NIC's is set by set_rate
            if way.shaper.name == name and argument == "rate":
                bps = way.shaper.rate_bps
                way.config.rate = Rate(bps) if bps else None

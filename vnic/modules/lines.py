"""The lines of the running policy, and the elements of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dataplane.graph.element import Element
from shaping.policy.compile import chain_of_place, elements_of
from shaping.policy.load import convert_policy
from shaping.policy.places import Line, plan_of
from shaping.policy.scenario import scenario_of
from vnic.config.schema import Config
from vnic.config.shape import network_of
from vnic.modules.link_node import LinkNode
from vnic.modules.nic_node import NicNode


class RunningLine(NamedTuple):
    """A line and its elements, in the order in which packets pass them; empty: its NICs have been
    attached anew without them."""

    line: Line
    elements: list[Element]

    @property
    def name(self) -> str:
        return str(self.line.place)

    @property
    def rate_bps(self) -> int:
        """0: it has none."""
        return self.line.rate

    @property
    def element_names(self) -> list[str]:
        return [element.name for element in self.elements]

    @property
    def asked(self) -> str:
        """Its settings, in the words of a policy."""
        return ", ".join(f"{name} {setting}" for name, setting in self.line.settings.items())


def running_lines(
    config: Config, nics: Mapping[str, NicNode], links: Mapping[str, LinkNode]
) -> list[RunningLine]:
    """The lines of the policy that a configuration has, in the order of its file."""
    if config.shape is None:
        return []
    found = []
    policy, network = convert_policy(config.shape), network_of(config)
    plan = plan_of(policy, network)
    scenario_of(policy, plan, network)  # lines have elements for what a scenario sets later
    for line in plan.lines.values():
        chain = chain_of_place(line.place)
        if chain.of_link:
            way = links[chain.owner].ways.get(chain.direction) if chain.owner in links else None
        else:
            nic = nics.get(chain.owner)
            way = None if nic is None else getattr(nic, chain.direction)
        names = [str(entry["name"]) for entry in elements_of(line)]
        mine = {} if way is None else way.chain.of_policy
        found.append(RunningLine(line, [mine[name] for name in names if name in mine]))
    return found


def policy_elements(nics: Mapping[str, NicNode], links: Mapping[str, LinkNode]) -> list[str]:
    """The names of the elements of a policy in the running network."""
    ways = [way for nic in nics.values() for way in (nic.egress, nic.ingress)]
    ways += [way for link in links.values() for way in link.ways.values()]
    return [element.name for way in ways for element in way.chain.of_policy.values()]

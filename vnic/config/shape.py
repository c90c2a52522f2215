"""The policy of `shape`: its elements, put into the chains of NICs and links.

The elements of a policy are marked (ElementConfig.shapes), so that they can be taken out again. On
the way out of a container they come after the NIC's own elements, on the way in before them: the
policy is the line between the container's equipment and the network.
"""

from __future__ import annotations

from typing import Any

from dataplane.config.convert import Locate, Path
from shaping.policy.check import check_policy
from shaping.policy.compile import EGRESS, Chain, ElementEntry, compile_policy
from shaping.policy.findings import refuse
from shaping.policy.load import Policy, convert_policy, policy_data
from shaping.policy.network import Network
from shaping.policy.schema import POLICY_VERSION
from vnic.config.elements import convert_elements
from vnic.config.schema import Config, DirectionConfig, ElementConfig


def set_policy(config: Config, data: Any, locate: Locate = lambda path: "") -> None:
    """Makes `data` the policy of a configuration, in place of the one that it has; None: none.
    Raises ConfigError, and then nothing has changed."""
    policy = None if data is None else read_policy(data, locate)
    chains = {} if policy is None else _compile(policy, config)
    made = {
        chain: convert_elements(entries, ("shape", chain.owner), lambda path: "")
        for chain, entries in chains.items()
    }
    take_out(config)
    config.shape = None if policy is None else policy_data(policy)
    for chain, elements in made.items():
        for element in elements:
            _mark(element)
        if chain.of_link:
            link = next(each for each in config.links if each.name == chain.owner)
            for end in link.ends:
                link.to.setdefault(end, DirectionConfig())
            way = link.to[chain.direction]
        else:
            way = getattr(config.nics[chain.owner], chain.direction)
        before = chain.of_link or chain.direction == EGRESS
        way.elements = [*way.elements, *elements] if before else [*elements, *way.elements]


def _compile(policy: Policy, config: Config) -> dict[Chain, list[ElementEntry]]:
    """Raises ConfigError also for a delay that the packet pool has no room for."""
    network = network_of(config)
    refuse(check_policy(policy, network, config.pool.small))
    return compile_policy(policy, network)


def read_policy(data: Any, locate: Locate = lambda path: "") -> Policy:
    """The policy of a `shape` section, or of a file's content. Raises ConfigError."""

    def locate_here(path: Path) -> str:
        return locate(("shape", *path))

    if isinstance(data, dict):
        data = {"version": POLICY_VERSION, **data}
    return convert_policy(data, locate_here)


def take_out(config: Config) -> None:
    """Takes the elements of the policy out of all chains."""
    ways = [way for nic in config.nics.values() for way in (nic.egress, nic.ingress)]
    for way in (*ways, *(way for link in config.links for way in link.to.values())):
        if any(element.shapes for element in way.elements):
            way.elements = [element for element in way.elements if not element.shapes]
    config.shape = None


def network_of(config: Config) -> Network:
    """What a policy can refer to. NICs whose container a client passed are left out: they are the
    client's."""
    return Network(
        nics={name: str(nic.mac) for name, nic in config.nics.items() if not nic.passed},
        links={str(link.name): link.ends for link in config.links},
    )


def _mark(element: ElementConfig) -> None:
    element.shapes = True
    for branch in element.branches.values():
        for each in branch:
            _mark(each)

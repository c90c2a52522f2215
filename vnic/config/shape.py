"""The policy of `shape`: its elements, put into the chains of NICs and links.

The elements of a policy are marked (ElementConfig.shapes), so that they can be taken out again. On
the way out of a container they come after the NIC's own elements, on the way in before them: the
policy is the line between the container's equipment and the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dataplane.config.convert import Locate, Path
from shaping.policy.check import check_policy
from shaping.policy.compile import EGRESS, Chain, ElementEntry, compile_policy
from shaping.policy.findings import refuse
from shaping.policy.load import Policy, convert_policy, names_in, policy_data
from shaping.policy.network import Network
from shaping.policy.schema import POLICY_VERSION
from vnic.config.elements import convert_elements
from vnic.config.schema import Config, DirectionConfig, ElementConfig, NicConfig


def set_policy(
    config: Config,
    data: Any,
    locate: Locate = lambda path: "",
    *,
    spared: Iterable[Any] = (),
) -> None:
    """Makes `data` the policy of a configuration, in place of the one that it has; None: none.
    spared: policies that have been running; names that the network no longer has are no error where
    one of them has them. Raises ConfigError, and then nothing has changed."""
    policy = None if data is None else read_policy(data, locate)
    chains = {} if policy is None else _compile(policy, config, spared)
    made = {chain: _elements(chain, entries) for chain, entries in chains.items()}
    take_out(config)
    config.shape = None if policy is None else policy_data(policy)
    for chain, elements in made.items():
        if chain.of_link:
            link = next(each for each in config.links if each.name == chain.owner)
            for end in link.ends:
                link.to.setdefault(end, DirectionConfig())
            way = link.to[chain.direction]
        else:
            way = getattr(config.nics[chain.owner], chain.direction)
        _put_in(way, chain, elements)


def _elements(chain: Chain, entries: list[ElementEntry]) -> list[ElementConfig]:
    """The elements of a chain, marked as the policy's."""
    elements = convert_elements(entries, ("shape", chain.owner), lambda path: "")
    for element in elements:
        _mark(element)
    return elements


def _put_in(way: DirectionConfig, chain: Chain, elements: list[ElementConfig]) -> None:
    after = chain.of_link or chain.direction == EGRESS
    way.elements = [*way.elements, *elements] if after else [*elements, *way.elements]


def _compile(
    policy: Policy, config: Config, spared: Iterable[Any]
) -> dict[Chain, list[ElementEntry]]:
    """Raises ConfigError also for a delay that the packet pool has no room for."""
    network = network_of(config, spared)
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


def network_of(config: Config, spared: Iterable[Any] = ()) -> Network:
    """What a policy can refer to. NICs whose container a client passed are left out: they are the
    client's. spared: see `set_policy`."""
    return Network(
        nics={name: str(nic.mac) for name, nic in config.nics.items() if not nic.passed},
        links={str(link.name): link.ends for link in config.links},
        absent=frozenset(name for policy in spared for name in names_in(policy)),
    )


def shape_nic(config: Config, nic: NicConfig) -> None:
    """Gives a NIC that is about to be attached the elements of the running policy."""
    if config.shape is None or nic.passed:
        return
    network = network_of(config, (config.shape,))
    network = replace(network, nics={**network.nics, nic.name: str(nic.mac)})
    chains = compile_policy(convert_policy(config.shape), network)
    for chain, entries in chains.items():
        if not chain.of_link and chain.owner == nic.name:
            _put_in(getattr(nic, chain.direction), chain, _elements(chain, entries))


def is_shaped(config: Config, nic: NicConfig) -> bool:
    """Whether the running policy names a NIC, or the NIC has elements of a policy."""
    elements = (*nic.egress.elements, *nic.ingress.elements)
    return nic.name in names_in(config.shape) or any(each.shapes for each in elements)


def _mark(element: ElementConfig) -> None:
    element.shapes = True
    for branch in element.branches.values():
        for each in branch:
            _mark(each)

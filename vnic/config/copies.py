"""Copies of configurations, whose settings may change while the network runs."""

from __future__ import annotations

import copy

from vnic.config.schema import Config, ElementConfig, LinkConfig, NicConfig


def own_config(config: Config) -> Config:
    """A copy that is changed along with the running network."""
    config = copy.copy(config)
    config.nics = {name: own_nic(nic) for name, nic in config.nics.items()}
    config.groups = {name: copy.copy(group) for name, group in config.groups.items()}
    config.modules = [copy.copy(module) for module in config.modules]
    config.nodes = {name: copy.copy(node) for name, node in config.nodes.items()}
    config.hops = list(config.hops)
    config.links = [own_link(link) for link in config.links]
    return config


def own_link(config: LinkConfig) -> LinkConfig:
    """A copy whose settings may change while the link runs."""
    config = copy.copy(config)
    config.to = {end: copy.copy(way) for end, way in config.to.items()}
    for way in config.to.values():
        way.elements = _own_elements(way.elements)
    return config


def own_nic(config: NicConfig) -> NicConfig:
    """A copy whose settings may change while the NIC runs."""
    config = copy.copy(config)
    config.egress, config.ingress = copy.copy(config.egress), copy.copy(config.ingress)
    for direction in (config.egress, config.ingress):
        direction.elements = _own_elements(direction.elements)
    return config


def _own_elements(configs: list[ElementConfig]) -> list[ElementConfig]:
    own = [copy.copy(config) for config in configs]
    for config in own:
        config.branches = {gate: _own_elements(branch) for gate, branch in config.branches.items()}
    return own

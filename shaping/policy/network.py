"""What a policy needs to know about the network that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Network:
    """The names in a network.

    nics     MAC addresses, by NIC
    links    the two switches of each link, by its name
    """

    nics: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, tuple[str, str]] = field(default_factory=dict)

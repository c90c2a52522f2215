"""What a policy needs to know about the network that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Network:
    """The names in a network.

    nics     MAC addresses, by NIC
    links    the two switches of each link, by its name
    absent   names that a running policy has and the network has no longer, such as a NIC's whose
             container has ended: their lines wait
    """

    nics: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    absent: Set[str] = frozenset()

    def lacks(self, name: str) -> bool:
        """Whether a name is absent, and no error."""
        return name in self.absent and name not in self.nics and name not in self.links

"""What a running instance says of its policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shaping.policy.network import Network
    from vnic.api.client import Client


def running_network(status: dict[str, Any]) -> tuple[Network, int]:
    """The names of a running network, by ShapeStatus with `whole`, and its pool's small buffers."""
    from shaping.policy.network import Network

    found = status["network"]
    links = {name: (first, second) for name, (first, second) in found["links"].items()}
    return Network(found["nics"], links, frozenset(found["absent"])), found["pool"]


def elements_by_name(client: Client) -> dict[str, dict[str, Any]]:
    """Counters of all elements by name."""
    stats = client.call("Stats")["stats"]
    return {each["name"]: each for engine in stats["engines"] for each in engine["elements"]}

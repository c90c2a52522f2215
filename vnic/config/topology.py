"""The network that a configuration describes: which NIC is on which switch, and which links join switches.

`check` finds what cannot be built: names or MAC addresses that mean two things, switches that do not exist, and links that
make a loop. A loop would repeat each broadcast for ever, since there is no spanning tree.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataplane.errors import ConfigError
from vnic.config.schema import Config, LinkConfig, LinkVlanConfig

PORTS_MOST = 1024  # of all switches together; switching.mac_table has the same bound
VLANS = range(4095)  # 0: frames without a tag
Place = tuple[str | int, ...]


class NetworkError(ConfigError):
    """A network that cannot be. place: where the configuration says so."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place, self.text = place, text


def check(config: Config) -> None:
    """Raises NetworkError, one line."""
    switches = config.switches
    owners: dict[str, str] = {}
    places: dict[Place, str] = {}
    for name, nic in config.nics.items():
        place = (str(nic.pid), str(nic.netns), str(nic.interface))
        if (
            nic.kind == "packet" and place in places
        ):  # each would forward to the other what arrives there
            raise NetworkError(
                ("nics", name, "interface"),
                f"{nic.interface} is that of NIC {places[place]}, too; take out one",
            )
        places[place] = name
        other = owners.setdefault(str(nic.mac), name)
        if other != name:
            raise NetworkError(
                ("nics", name, "mac"), f"{nic.mac} is {other}'s already; choose another one"
            )
        if name in config.nodes:
            raise NetworkError(("nics", name), "is the name of a node, too; choose another one")
        try:
            config.switch_of(nic.on)
        except ConfigError as error:
            raise NetworkError(("nics", name), str(error)) from None
    for user, client in config.clients.items():
        if client.on is not None and client.on not in switches:
            text = f"there is no switch {client.on!r}: expected {' or '.join(switches)}"
            raise NetworkError(("clients", user, "on"), text)
    names: dict[str, int] = {}
    for number, link in enumerate(config.links):
        for end in link.ends:
            if end not in switches:
                text = f"there is no switch {end!r}: expected {' or '.join(switches)}"
                raise NetworkError(("links", number), text)
        if (first := names.setdefault(str(link.name), number)) != number:
            text = f"{link.name} is the name of link {first + 1}, too; give one of them name: OTHER"
            raise NetworkError(("links", number), text)
        if link.name in config.nodes or link.name in config.nics:
            raise NetworkError(
                ("links", number),
                f"{link.name} is the name of something else, too; give it name: OTHER",
            )
        if (
            nic_name := next(
                (each for each in config.nics if each.startswith(f"{link.name}.")), None
            )
        ) is not None:
            text = f"elements of {link.name} would begin like the name of NIC {nic_name}; give the link name: OTHER"
            raise NetworkError(("links", number), text)
        if link.engine is not None:
            try:
                config.engine_index(link.engine)
            except ConfigError as error:
                raise NetworkError(("links", number, "engine"), str(error)) from None
    if len(config.nics) + 2 * len(config.links) > PORTS_MOST:
        text = f"{len(config.nics)} NICs and {len(config.links)} links need more than {PORTS_MOST} ports on switches"
        raise NetworkError(("links",) if config.links else ("nics",), text)
    _check_loops(config)


def _check_loops(config: Config) -> None:
    """Raises NetworkError for the first link that closes a loop in a VLAN."""
    for vlan, carrying in _classes(config.links):
        joined: dict[str, str] = {}
        neighbours: dict[str, list[str]] = {}
        for number in carrying:
            first, second = config.links[number].ends
            if _root(joined, first) == _root(joined, second):
                path = " -- ".join(_path(neighbours, first, second))
                of_vlan = f" in VLAN {vlan}" if config.links[number].vlan is not None else ""
                text = f"{first} -- {second} closes a loop{of_vlan}: {path} are joined already; take out one of these links"
                raise NetworkError(("links", number), text)
            joined[_root(joined, first)] = _root(joined, second)
            neighbours.setdefault(first, []).append(second)
            neighbours.setdefault(second, []).append(first)


def _classes(links: list[LinkConfig]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Of VLANs that the same links carry one each, with these links: VLANs are thousands, such classes few."""
    everywhere = tuple(number for number, link in enumerate(links) if link.vlan is None)
    carried: dict[int, list[int]] = {}
    for number, link in enumerate(links):
        for vlan in _vlans(link.vlan) if link.vlan is not None else ():
            carried.setdefault(vlan, []).append(number)
    seen = set()
    for vlan, some in carried.items():
        carrying = tuple(sorted((*everywhere, *some)))
        if carrying not in seen:
            seen.add(carrying)
            yield vlan, carrying
    if everywhere and everywhere not in seen:
        yield 0, everywhere


def _vlans(vlan: LinkVlanConfig) -> set[int]:
    if vlan.untagged:
        return {0}
    return {each for each in (vlan.access, *(vlan.trunk or ())) if each is not None}


def _root(joined: dict[str, str], switch: str) -> str:
    while (above := joined.get(switch)) is not None:
        if (further := joined.get(above)) is not None:
            joined[switch] = further  # halves the path, so that long chains of links stay cheap
        switch = above
    return switch


def _path(neighbours: dict[str, list[str]], first: str, last: str) -> list[str]:
    """The switches between two that are joined."""
    came_from: dict[str, str] = {first: first}
    pending = [first]
    for switch in pending:
        for other in neighbours.get(switch, ()):
            if other not in came_from:
                came_from[other] = switch
                pending.append(other)
    path = [last]
    while path[-1] != first:
        path.append(came_from[path[-1]])
    return path[::-1]

"""The network that a configuration describes: NICs on switches, links between switches, and one-way
links through elements.

`check` rejects networks that cannot be built: names or MAC addresses used twice, nodes that do not
exist, and links that form a loop. A loop of switches would repeat each broadcast for ever, since
there is no spanning tree; a loop of elements would never end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from dataplane.config.convert import did_you_mean
from dataplane.errors import ConfigError
from vnic.config.schema import Config, HopConfig, LinkConfig, LinkVlanConfig

PORTS_MOST = 1024  # of all switches together; switching.mac_table has the same bound
# Elements that one-way links lead through in a row: each adds a nested C call.
ROW_MOST = 256
VLANS = range(4095)  # 0: frames without a tag
Place = tuple[str | int, ...]


class NetworkError(ConfigError):
    """A network that cannot be built. place: the path of the cause in the configuration."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place, self.text = place, text


def check(config: Config) -> None:
    """Raises NetworkError, with one line of text, for a network that cannot be built."""
    switches = config.switches
    owners: dict[str, str] = {}
    places: dict[Place, str] = {}
    for name, nic in config.nics.items():
        place = (str(nic.pid), str(nic.netns), str(nic.interface))
        # each NIC would forward to the other the frames that arrive there
        if nic.kind == "packet" and place in places:
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
            text = (
                f"elements of {link.name} would begin like the name of NIC {nic_name}; give the "
                "link name: OTHER"
            )
            raise NetworkError(("links", number), text)
        if link.engine is not None:
            try:
                config.engine_index(link.engine)
            except ConfigError as error:
                raise NetworkError(("links", number, "engine"), str(error)) from None
    if len(config.nics) + 2 * len(config.links) > PORTS_MOST:
        text = (
            f"{len(config.nics)} NICs and {len(config.links)} links need more than {PORTS_MOST} "
            "ports on switches"
        )
        raise NetworkError(("links",) if config.links else ("nics",), text)
    _check_loops(config)
    _check_elements(config)
    _check_hops(config)


def _check_elements(config: Config) -> None:
    """Raises NetworkError for a node whose engine does not exist, or whose elements are named like
    a NIC's."""
    for name, node in config.elements.items():
        if node.engine is not None:
            try:
                config.engine_index(node.engine)
            except ConfigError as error:
                raise NetworkError(("nodes", name, "engine"), str(error)) from None
    for nic_name in config.nics:
        if (name := nic_name.partition(".")[0]) != nic_name and name in config.elements:
            text = f"begins like the elements of node {name}; choose another name"
            raise NetworkError(("nics", nic_name), text)


def _check_hops(config: Config) -> None:
    """Raises NetworkError for one-way links that cannot be built."""
    leads: dict[tuple[str, int], HopConfig] = {}
    behind: dict[str, list[str]] = {}  # by NIC or element, the nodes and NICs it leads to
    elements = config.elements
    known = {**config.nics, **elements}
    for hop in config.hops:
        _check_ends(config, known, hop)
        other = leads.setdefault((hop.source, hop.output), hop)
        if other is not hop:
            text = f"{hop.text}: there is {other.text} already; a packet can go one way only"
            raise NetworkError(("links",), text)
        behind.setdefault(hop.source, []).append(hop.target)
    _check_circles(behind, config)
    for name in behind.keys() & config.nics.keys():
        nic = config.nics[name]
        for switch in _reached(name, behind, elements) & config.switches.keys():
            # The switch has no port for its frames.
            if nic.on is not None and nic.on != switch:
                text = (
                    f"{name} leads to switch {switch}, but {name} is on {nic.on}; set on: {switch}"
                )
                raise NetworkError(("nics", name), text)


def _check_ends(config: Config, known: Mapping[str, object], hop: HopConfig) -> None:
    """known: NICs and elements by name."""
    if hop.source in config.switches:
        text = f"{hop.source} is a switch: a one-way link begins at a NIC or an element"
        raise NetworkError(("links",), f"{hop.text}: {text}")
    if hop.source not in known:
        text = f"there is no NIC or element {hop.source}; {did_you_mean(hop.source, list(known))}"
        raise NetworkError(("links",), f"{hop.text}: {text}")
    if hop.source in config.nics and hop.output:
        raise NetworkError(("links",), f"{hop.text}: NIC {hop.source} has output 0 only")
    if hop.target not in known and hop.target not in config.switches:
        ends = [*known, *config.switches]
        text = f"there is no node or NIC {hop.target}; {did_you_mean(hop.target, ends)}"
        raise NetworkError(("links",), f"{hop.text}: {text}")


def _check_circles(behind: dict[str, list[str]], config: Config) -> None:
    """Raises NetworkError for a loop of elements, and for more elements in a row than an engine's
    stack can certainly hold. A path ends at a switch or NIC."""
    elements = config.elements
    inner = {
        name: [target for target in targets if target in elements]
        for name, targets in behind.items()
        if name in elements
    }
    lengths: dict[str, int] = {}
    try:
        for name in TopologicalSorter(inner).static_order():
            behind_it = (lengths[target] for target in inner.get(name, ()))
            lengths[name] = 1 + max(behind_it, default=0)
    except CycleError as error:
        path = " -> ".join(reversed(error.args[1]))
        raise NetworkError(("links",), f"{path} is a loop; take out one of these") from None
    if (longest := max(lengths.values(), default=0)) > ROW_MOST:
        text = f"{longest} elements in a row: expected at most {ROW_MOST}"
        raise NetworkError(("links",), text)


def _reached(name: str, behind: dict[str, list[str]], elements: Mapping[str, object]) -> set[str]:
    """The nodes and NICs that packets from a NIC's container can reach over one-way links."""
    found: set[str] = set()
    pending = list(behind.get(name, ()))
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            if each in elements:  # a NIC passes packets to its container
                pending += behind.get(each, ())
    return found


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
                text = (
                    f"{first} -- {second} closes a loop{of_vlan}: {path} are joined already; take "
                    "out one of these links"
                )
                raise NetworkError(("links", number), text)
            joined[_root(joined, first)] = _root(joined, second)
            neighbours.setdefault(first, []).append(second)
            neighbours.setdefault(second, []).append(first)


def _classes(links: list[LinkConfig]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """One VLAN of each set of VLANs that the same links carry, and the numbers of these links:
    there may be thousands of VLANs, but few such sets."""
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

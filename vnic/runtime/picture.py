"""Pictures of the network, as text and for Graphviz: switches, the NICs on them, the links between
them, and the elements that one-way links lead through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataplane.units import format_rate
from vnic.config.schema import (
    Config,
    DirectionConfig,
    LinkConfig,
    LinkVlanConfig,
    NicConfig,
    VlanConfig,
)


def network_data(config: Config) -> dict[str, Any]:
    """Switches, elements, NICs and links by name, with the details that a picture shows; one-way
    links in order."""
    return {
        "switches": {name: {"table": switch.table} for name, switch in config.switches.items()},
        "nics": {
            name: {"on": nic.on, "details": nic_details(config, nic)}
            for name, nic in config.nics.items()
        },
        "links": {
            str(link.name): {"ends": list(link.ends), "details": link_details(link)}
            for link in config.links
        },
        "elements": {name: {"details": node_details(config, name)} for name in config.elements},
        "hops": [
            {"source": hop.source, "output": hop.output, "target": hop.target}
            for hop in config.hops
        ],
    }


def nic_details(config: Config, nic: NicConfig) -> list[str]:
    """The details of a NIC in a picture: its engine and VLANs, and the elements and rates of both
    directions."""
    engine = None if nic.engine is None else config.engines[config.engine_index(nic.engine)].name
    found = ["waits for its namespace"] if nic.waiting else [] if nic.link_up else ["link down"]
    found += [] if engine is None or len(config.engines) == 1 else [f"engine {engine}"]
    found += vlan_details(nic.vlan)
    for way, direction in (("egress", nic.egress), ("ingress", nic.ingress)):
        found += [f"{way} {each}" for each in way_details(direction)]
    return found


def node_details(config: Config, name: str) -> list[str]:
    """The details of an element in a picture: its class, and its engine where there are several."""
    node = config.nodes[name]
    engine = config.engines[config.engine_index(node.engine or 0)].name
    found = [str(node.element).rpartition(":")[2]]
    return found + ([] if len(config.engines) == 1 else [f"engine {engine}"])


def link_details(link: LinkConfig) -> list[str]:
    """The details of a link in a picture."""
    ways = {end: way_details(way) for end, way in link.to.items()}
    if len({tuple(each) for each in ways.values()}) == 1:
        found = next(iter(ways.values()))
    else:
        found = [f"to {end} {each}" for end, details in ways.items() for each in details]
    return vlan_details(link.vlan) + found


def way_details(way: DirectionConfig) -> list[str]:
    """Elements and rate of one direction, in the order in which packets meet them."""
    elements = " > ".join(each.element.rpartition(":")[2] for each in way.elements)
    return [
        each for each in (elements, "" if way.rate is None else format_rate(int(way.rate))) if each
    ]


def vlan_details(vlan: VlanConfig | LinkVlanConfig | None) -> list[str]:
    """VLANs of a port."""
    if vlan is None:
        return []
    if vlan.untagged:
        return ["untagged"]
    if vlan.access is not None:
        return [f"VLAN {vlan.access}"]
    native = "" if vlan.native is None else f", native {vlan.native}"
    return [f"trunk {', '.join(_ranges(vlan.trunk or []))}{native}"]


def _ranges(numbers: Iterable[int]) -> list[str]:
    """1, 2, 3, 7 as 1-3, 7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]


def network_text(config: Config) -> str:
    """A block for each switch, with a line for each of its NICs and links, and a block for each
    element, with a line for each of its one-way links."""
    data = network_data(config)
    ways_out = _ways_out(data)
    lines: list[str] = []
    for switch in data["switches"]:
        lines.append(switch)
        rows = [
            ("--", name, [*each["details"], *ways_out.get(name, ())])
            for name, each in data["nics"].items()
            if each["on"] == switch
        ]
        for name, link in data["links"].items():
            if switch in link["ends"]:
                [other] = [end for end in link["ends"] if end != switch]
                named = [] if name == "--".join(link["ends"]) else [f"link {name}"]
                rows.append(("==", other, named + link["details"]))
        lines += _rows(rows)
    for name, element in data["elements"].items():
        lines.append(f"{name}  {', '.join(element['details'])}")
        lines += _rows([(way[:2], way[3:], []) for way in ways_out.get(name, ())])
    return "\n".join(lines) + "\n"


def _ways_out(data: dict[str, Any]) -> dict[str, list[str]]:
    """The one-way links by the NIC or element that they begin at, such as `-> lan` or
    `-> lan (output 1)`."""
    hops: dict[str, list[dict[str, Any]]] = {}
    for hop in data["hops"]:
        hops.setdefault(hop["source"], []).append(hop)
    found = {}
    for name, mine in hops.items():
        outputs = any(hop["output"] for hop in mine)
        found[name] = [
            f"-> {hop['target']}" + (f" (output {hop['output']})" if outputs else "")
            for hop in mine
        ]
    return found


def _rows(rows: list[tuple[str, str, list[str]]]) -> list[str]:
    """Lines below a node. rows: kind of line, name, details."""
    width = max((len(name) for _, name, _ in rows), default=0)
    return [
        (
            f"  {'`' if number == len(rows) - 1 else '|'}"
            f"{line} {name:<{width}}  {', '.join(details)}"
        ).rstrip()
        for number, (line, name, details) in enumerate(rows)
    ]


def network_dot(config: Config) -> str:
    """The network in Graphviz' language."""
    data = network_data(config)

    def quoted(*lines: str) -> str:
        return (
            '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'
        )

    lines = [
        "graph vnic {",
        "  rankdir=LR;",
        '  node [shape=box, fontname="sans-serif"];',
        '  edge [fontname="sans-serif"];',
    ]
    lines += [f"  {quoted(name)} [shape=box3d, style=bold];" for name in data["switches"]]
    senders = {hop["source"] for hop in data["hops"]}
    for name, nic in data["nics"].items():
        lines.append(f"  {quoted(f'nic {name}')} [label={quoted(name)}];")
        # A NIC whose packets are led elsewhere only receives from its switch.
        arrow = "dir=back, " if name in senders else ""
        edge = f"{quoted(f'nic {name}')} -- {quoted(nic['on'] or '')}"
        lines.append(f"  {edge} [{arrow}label={quoted(*nic['details'])}];")
    for name, link in data["links"].items():
        first, second = link["ends"]
        named = [] if name == f"{first}--{second}" else [name]
        label = quoted(*named, *link["details"])
        lines.append(f"  {quoted(first)} -- {quoted(second)} [style=bold, label={label}];")
    for name, element in data["elements"].items():
        lines.append(
            f"  {quoted(name)} [shape=ellipse, label={quoted(name, *element['details'])}];"
        )
    for hop in data["hops"]:
        ends = [
            f"nic {end}" if end in data["nics"] else end for end in (hop["source"], hop["target"])
        ]
        label = quoted(str(hop["output"])) if hop["output"] else quoted()
        lines.append(f"  {quoted(ends[0])} -- {quoted(ends[1])} [dir=forward, label={label}];")
    return "\n".join([*lines, "}"]) + "\n"

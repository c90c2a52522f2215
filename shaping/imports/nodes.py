"""Classes of a tree, and the rules that filters give to its leaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dataplane.elements.classifier_rules import MAX_RULES
from dataplane.elements.classifier_rules import Rule as Numbers
from dataplane.units import format_rate
from shaping.imports.filters import IPV4_ANY, IPV6_ANY, Rule
from shaping.imports.notes import Notes, Unsupported, unsupported
from shaping.imports.rules import disjoint, note_families, numbers_of
from shaping.imports.tc_objects import Device, Filter, Qdisc, id_text

DEPTH_MOST = 8  # classes below each other, as in htb
MERGES_MOST = 20_000  # pairs of filters, of which one is below the other's class
COMPARED_MOST = 300  # rules that are compared with each other
_MACS = ("source_mac", "destination_mac")
_EACH_FAMILY = [{"destination": IPV4_ANY}, {"destination": IPV6_ANY}]


@dataclass
class Node:
    """A class. guarantee and ceiling in bit/s, ceiling 0: the parent's; weight: of any scale;
    latency in ns, 0: none; rules: any of which matches; order: of each rule, the number of its
    filter."""

    where: str
    name: str
    classid: int
    guarantee: int
    ceiling: int = 0
    weight: int = 1
    priority: int = 0
    latency: int = 0
    children: list[Node] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    queue: Any = None

    def leaves(self) -> Iterator[Node]:
        """In the order in which a policy tries them: those without rules, and classes with classes
        of their own, after the others."""
        if not self.children:
            yield self
        yield from leaves_of(self.children)


def leaves_of(nodes: list[Node]) -> Iterator[Node]:
    for each in sorted(nodes, key=lambda each: not each.rules):
        yield from each.leaves()


def fit(nodes: list[Node], rate: int, notes: Notes) -> None:
    """Makes guarantees fit: a class is guaranteed what its classes are together, as in htb, and all
    together the rate that there is."""
    _raise(nodes)
    _lower(nodes, rate, notes)


def _raise(nodes: list[Node]) -> None:
    for each in nodes:
        if each.children:
            _raise(each.children)
            each.guarantee = max(each.guarantee, sum(below.guarantee for below in each.children))


def _lower(nodes: list[Node], rate: int, notes: Notes) -> None:
    for each in nodes:
        each.guarantee = min(each.guarantee, each.ceiling or rate, rate)
    total = sum(each.guarantee for each in nodes)
    if total > rate:
        notes.warn(
            nodes[0].where,
            f"guarantees of {format_rate(total)} together: there are {format_rate(rate)}, and they "
            "are lowered in proportion; htb sends more than its rate",
        )
    for each in nodes:
        if total > rate:
            each.guarantee = each.guarantee * rate // total
        if each.children:
            _lower(each.children, each.guarantee, notes)


def give_rules(
    device: Device,
    qdisc: Qdisc,
    leaves: dict[int, Node],
    default: Node | None,
    notes: Notes,
    *,
    for_lines: bool = False,
) -> Node | None:
    """Gives leaves the rules of a qdisc's filters; returns the leaf for what matches none.
    for_lines: the rules become those of lines, which may name the MAC address that receives, and
    which have their own bound."""
    return _Giving(device, leaves, notes, for_lines=for_lines).give(qdisc, default)


class _Giving:
    def __init__(
        self, device: Device, leaves: dict[int, Node], notes: Notes, *, for_lines: bool
    ) -> None:
        self.device, self.leaves, self.notes = device, leaves, notes
        self.for_lines = for_lines
        self.number = 0  # of the filter
        self.merges = self.rules = 0
        self.known: dict[int, set[frozenset[tuple[str, Any]]]] = {}  # rules by the id of their leaf

    def give(self, qdisc: Qdisc, default: Node | None) -> Node | None:
        filters = self.device.filters_of(qdisc.handle)
        if sum(each.was_auto for each in filters) > 1:
            self.notes.note(
                filters[0].where,
                "filters without prio: the kernel tries the last one first, and so it is here",
            )
        for self.number, each in enumerate(filters):
            try:
                caught = self.add(each, each.match, 0)
            except Unsupported as error:
                self.notes.refuse(each.where, error)
                continue
            if caught is not None:
                if self.number + 1 < len(filters):
                    self.notes.note(
                        each.where, "a filter that matches all: those behind it never match"
                    )
                return caught
        if default is None and filters and filters[-1].flowid in self.leaves:
            last = filters[-1]
            if last.match and last.match[0] in _EACH_FAMILY:
                default = self.leaves[last.flowid]
                self.notes.note(
                    last.where, "the last filter matches all packets of IP: its class is default"
                )
        if default is not None:
            both = zip(default.rules, default.order, strict=True)
            kept = [(rule, number) for rule, number in both if rule not in _EACH_FAMILY]
            default.rules = [rule for rule, _ in kept]
            default.order = [number for _, number in kept]
        return default

    def add(self, each: Filter, rules: list[Rule] | None, depth: int) -> Node | None:
        """Adds a filter's rules to its leaf; returns the leaf if it matches every packet."""
        if each.broken is not None:
            raise each.broken
        assert rules is not None
        if each.police is not None or each.verdict == "drop" or each.redirect:
            raise unsupported("an action in a filter of classes", "expected flowid alone")
        for rule in rules:
            if "destination_mac" in rule and not self.for_lines:
                raise unsupported("match ether dst", "rules know the source MAC address only")
            _read(rule)
            note_families(rule, each.where, self.notes)
        leaf = self.leaves.get(each.flowid)
        if leaf is None:
            self.inner(each, rules, depth)
            return None
        if rules == [{}]:
            return leaf
        if self.rules + len(rules) > MAX_RULES and not self.for_lines:
            raise unsupported("more filters", f"expected at most {MAX_RULES} for a tree")
        known = self.known.setdefault(leaf.classid, set())
        distinct = {frozenset(rule.items()): rule for rule in rules}
        new = [rule for key, rule in distinct.items() if key not in known]
        known.update(distinct)
        leaf.rules += new
        self.rules += len(new)
        leaf.order += [self.number] * len(new)
        return None

    def inner(self, each: Filter, rules: list[Rule], depth: int) -> None:
        """A filter to a class that is no leaf: that class's own filters decide further."""
        what = f"filter to {id_text(each.flowid)}"
        if each.flowid not in self.device.classes:
            raise unsupported(what, "there is no such class: its packets match nothing")
        inner = self.device.filters_of(each.flowid)
        if not inner or depth == DEPTH_MOST:
            raise unsupported(
                what, "it has classes below it, and no filters: write a filter to one of them"
            )
        for below in inner:
            self.merges += 1
            if self.merges > MERGES_MOST:
                raise unsupported(what, "more filters below filters than can be combined")
            both = [merged for rule in rules for more in below.match or ()
                    if (merged := _both(rule, more)) is not None]  # fmt: skip
            self.add(below, both, depth + 1)


def _both(first: Rule, second: Rule) -> Rule | None:
    """The rule that matches what both match; None: nothing. Raises Unsupported."""
    found = dict(first)
    for key, value in second.items():
        if key not in found or found[key] in (IPV4_ANY, IPV6_ANY):
            found[key] = value
        elif found[key] != value and value not in (IPV4_ANY, IPV6_ANY):
            if key in ("protocol", "dscp", "vlan", *_MACS):
                return None
            raise unsupported(f"two filters for {key}, one below the other", "write one filter")
    return found


# -- order -----------------------------------------------------------------------------------------


def in_order(nodes: list[Node], notes: Notes) -> list[Node]:
    """The nodes in an order in which the first rule that matches is that of the first filter that
    matches: rules are tried leaf by leaf. Notes where there is none."""
    if not _wrong(nodes):
        return nodes
    nodes = _sorted(nodes)
    if pair := _wrong(nodes):
        first, second = pair
        notes.warn(
            second.where,
            f"filters to {first.name} and {second.name} alternate: here all rules of {first.name} "
            "are tried first",
        )
    return nodes


def _sorted(nodes: list[Node]) -> list[Node]:
    """By the first filter of each; those without filters last."""
    for each in nodes:
        each.children = _sorted(each.children)
    return sorted(nodes, key=_first)


def _first(node: Node) -> int:
    return min((number for leaf in node.leaves() for number in leaf.order), default=1 << 30)


def _wrong(nodes: list[Node]) -> tuple[Node, Node] | None:
    """Two leaves of which the first has a rule that a filter to the second comes before, and both
    may match the same packet."""
    leaves = list(leaves_of(nodes))
    ordered = [(number, rule, leaf) for leaf in leaves
               for rule, number in zip(leaf.rules, leaf.order, strict=True)]  # fmt: skip
    numbers = [number for number, _, _ in ordered]
    if numbers == sorted(numbers) or len(leaves) < 2:
        return None
    if len(ordered) > COMPARED_MOST:
        pairs = itertools.pairwise(ordered)
        return next((first[2], second[2]) for first, second in pairs if first[0] > second[0])
    read = [(number, *_read(rule), leaf) for number, rule, leaf in ordered]
    for at, (number, mac, rule, leaf) in enumerate(read):
        for other_number, other_mac, other, other_leaf in read[at + 1 :]:
            apart = (mac and other_mac and mac != other_mac) or disjoint(rule, other)
            if other_number < number and leaf is not other_leaf and not apart:
                return leaf, other_leaf
    return None


def _read(rule: Rule) -> tuple[str, Numbers]:
    """The MAC address that a rule leads to, "" for any, and its other conditions."""
    mac = str(rule.get("destination_mac", ""))
    return mac, numbers_of({key: rule[key] for key in rule if key != "destination_mac"})

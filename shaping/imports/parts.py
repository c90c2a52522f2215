"""Lines for packets that filters select: to the NICs whose addresses are known, and parts of lines
for all others.

Of filters, the first one that matches has a packet, and it alone. Parts of one line do the same. A
line to a NIC does not: its packets pass `NIC -> any` and the parts of that, too. So filters are
lines to single NICs only where no other filter matches the same packets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dataplane.elements.classifier_rules import MAX_RULES
from dataplane.elements.classifier_rules import Rule as Numbers
from dataplane.errors import ConfigError
from shaping.imports.filters import IPV4_ANY, IPV6_ANY, Rule
from shaping.imports.form import EGRESS, NAME, Draft, Settings, line_key
from shaping.imports.notes import Notes, Unsupported, unsupported
from shaping.imports.rules import ALL, EVERYTHING, REST, disjoint, numbers_of, part_name
from shaping.policy.keys import ANY, PART_MOST
from shaping.policy.schema import MATCHES_MOST
from shaping.settings import UNLIMITED

COMPARED_MOST = 100_000  # pairs of rules; beyond these, rules are taken to share packets
NOTHING: Settings = {"rate": UNLIMITED}  # of a part that only keeps its packets from later ones


class Selection(NamedTuple):
    """Packets that filters select, and what happens to them.

    rules: any of which matches; [{}]: all packets. settings: of a line; {}: nothing happens to
    them. name: of the part; "": it follows from the rules.
    """

    where: str
    rules: list[Rule]
    settings: Settings
    name: str = ""


class _Piece(NamedTuple):
    """One rule of a selection.

    at: the selection's number; other: the NIC that its address tells, or any; rule: its conditions
    in a part of all that a NIC sends or receives; left: those in a part of the line to the other
    NIC; by_mac: `rule` lacks the MAC address that it leads to, which no rule can have
    """

    at: int
    other: str
    rule: Rule
    left: Rule
    numbers: Numbers
    by_mac: bool


def put_selected(
    draft: Draft,
    nic: str,
    direction: str,
    selections: Sequence[Selection],
    nic_of: Callable[[str], str | None],
) -> None:
    """Adds the lines for what filters select of all that a NIC sends or receives. selections: in
    the order in which they are tried. nic_of: the NIC that has an address. Raises ConfigError."""
    selections = _reached(selections, draft.notes)
    pieces = [
        piece
        for at, each in enumerate(selections)
        for piece in _pieces(at, each, nic, direction, nic_of, draft.notes)
    ]
    pieces = _needed(pieces, selections)
    shared = _shared(pieces, direction)
    groups: dict[tuple[int, str], list[_Piece]] = {}
    for piece in pieces:
        place = piece.other
        if place in shared:
            draft.notes.note(
                selections[piece.at].where,
                "filters by addresses of NICs, and others for the same packets: parts of "
                f"{line_key(nic, direction)}, since the first filter has a packet alone",
            )
            place = ANY
        if place == ANY and piece.by_mac:
            error = unsupported(
                "match ether dst beside other filters for the same packets",
                f"a part of {line_key(nic, direction)} knows the source MAC address only",
            )
            draft.notes.refuse(selections[piece.at].where, error)
            continue
        groups.setdefault((piece.at, place), []).append(piece)
    _add(draft, nic, direction, selections, groups)


def _reached(selections: Sequence[Selection], notes: Notes) -> list[Selection]:
    """The selections up to the first one that has all packets."""
    found: list[Selection] = []
    for each in selections:
        found.append(each)
        if {} in each.rules:
            break
    if len(found) < len(selections):
        notes.note(found[-1].where, "a filter that matches all: those behind it never match")
    return found


def _pieces(
    at: int,
    selection: Selection,
    nic: str,
    direction: str,
    nic_of: Callable[[str], str | None],
    notes: Notes,
) -> Iterable[_Piece]:
    end, mac = ("destination", "destination_mac") if direction == EGRESS else (
        "source", "source_mac")  # fmt: skip
    for rule in selection.rules:
        key = mac if mac in rule else end
        address = str(rule.get(key, ""))
        other = nic_of(address) if address else None
        if other in (nic, ANY):
            raise ConfigError(f"{selection.where}: {address} is {other}: expected another NIC")
        left = {name: value for name, value in rule.items() if name != key or other is None}
        if "destination_mac" in left:
            known = (
                f"no NIC is known to have it: write --map {address}=NIC"
                if direction == EGRESS else "rules know the source MAC address only"
            )  # fmt: skip
            notes.refuse(
                selection.where, unsupported(f"a line for {left['destination_mac']}", known)
            )
            continue
        whole = {name: value for name, value in rule.items() if name != "destination_mac"}
        try:
            numbers = numbers_of(whole)
        except Unsupported as error:
            notes.refuse(selection.where, error)
            continue
        yield _Piece(at, other or ANY, whole, left, numbers, len(whole) < len(rule))


def _needed(pieces: list[_Piece], selections: list[Selection]) -> list[_Piece]:
    """Without those to which nothing happens, where no later one matches the same packets."""
    later: list[Numbers] = []
    compared = 0
    found = []
    for piece in reversed(pieces):
        if selections[piece.at].settings:
            later.append(piece.numbers)
        else:
            compared += len(later)
            if compared <= COMPARED_MOST and all(disjoint(piece.numbers, each) for each in later):
                continue
        found.append(piece)
    return found[::-1]


def _shared(pieces: list[_Piece], direction: str) -> set[str]:
    """NICs of which some packets match rules for other places, too."""
    found = _nested(pieces, direction)
    others = [each.numbers for each in pieces if each.other == ANY]
    compared = 0
    for piece in pieces:
        if piece.other == ANY or piece.other in found:
            continue
        compared += len(others)
        if compared > COMPARED_MOST or not all(disjoint(piece.numbers, each) for each in others):
            found.add(piece.other)
    return found


def _nested(pieces: list[_Piece], direction: str) -> set[str]:
    """NICs whose networks are within those of other NICs, or around them."""
    networks = []
    for piece in pieces:
        prefix = piece.numbers.destination if direction == EGRESS else piece.numbers.source
        if piece.other != ANY and prefix is not None:
            first, mask = (int.from_bytes(each) for each in (prefix.value, prefix.mask))
            networks.append((prefix.version, first, -(first | ~mask & (1 << 128) - 1), piece.other))
    found: set[str] = set()
    around: list[tuple[int, int, str]] = []  # networks that the present one may be within
    for version, first, last, other in sorted(networks):
        while around and (around[-1][0] != version or around[-1][1] < first):
            around.pop()
        if strange := {each for _, _, each in around if each != other}:
            found |= {other, *strange}
        around.append((version, -last, other))
    return found


def _add(
    draft: Draft,
    nic: str,
    direction: str,
    selections: list[Selection],
    groups: dict[tuple[int, str], list[_Piece]],
) -> None:
    matches = {
        key: _match([piece.rule if key[1] == ANY else piece.left for piece in group])
        for key, group in groups.items()
    }
    of_place: dict[str, list[list[Rule]]] = {}
    for (_, place), match in matches.items():
        of_place.setdefault(place, []).append(match)
    # A filter for one family alone stands for all packets: tools that know one family write it so.
    whole = {
        place for place, each in of_place.items()
        if all(match == EVERYTHING for match in each) or (len(matches) == 1 and each[0] in ALL)
    }  # fmt: skip
    for place, each in of_place.items():
        if place not in whole and sum(map(len, each)) > MAX_RULES:
            what = f"more filters for {line_key(nic, direction, place)}"
            error = unsupported(what, f"expected at most {MAX_RULES}")
            draft.notes.refuse(selections[0].where, error)
            return
    lines: Counter[int] = Counter()
    for (at, _), match in matches.items():
        lines[at] += -(-len(match) // MATCHES_MOST)
    known: set[tuple[str, frozenset[frozenset[tuple[str, Any]]]]] = set()
    for (at, place), match in matches.items():
        selection, key = selections[at], line_key(nic, direction, place)
        where, settings = selection.where, selection.settings
        same = place, frozenset(frozenset(rule.items()) for rule in match)
        if same in known:
            draft.notes.warn(where, "a filter for the packets of one before it: it never matches")
            continue
        known.add(same)
        if "rate" in settings and lines[at] > 1:
            rate = settings["rate"]
            draft.notes.warn(where, f"rate {rate}: of several lines together; here each has it")
        if place in whole:
            draft.add_line(key, settings, where)
            continue
        for begin in range(0, len(match), MATCHES_MOST):
            some = match[begin : begin + MATCHES_MOST]
            name = selection.name
            if len(name) > PART_MOST or not NAME.fullmatch(name):
                name = _name(groups[at, place], some)
            draft.add_part(key, name, some, settings or NOTHING, where)


def _match(rules: list[Rule]) -> list[Rule]:
    """The `match` of a part: each rule once, or what stands for all packets."""
    if {} in rules or all({"destination": each} in rules for each in (IPV4_ANY, IPV6_ANY)):
        return EVERYTHING
    return list({frozenset(rule.items()): rule for rule in rules}.values())


def _is_all(match: list[Rule]) -> bool:
    return match == EVERYTHING or match in ALL


def _name(group: list[_Piece], match: list[Rule]) -> str:
    if _is_all(match):
        return REST
    nics = {piece.other for piece in group}
    if len(nics) == 1 and nics != {ANY} and not any(piece.left for piece in group):
        return nics.pop()
    return part_name(match)

"""Reads `shares` of a policy file. Short forms are written out: groups beside `capacity` and
`levels` instead of in `groups`, the NICs of a group of several in its `of` instead of in `members`,
one piece instead of a list of pieces, the pieces of the only level without its name, and a NIC in
`of` without pieces, which has a weight of 1 in the last level."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dataplane.config.convert import Locate, Path, convert, did_you_mean, error_at, shown
from dataplane.errors import ConfigError
from shaping.policy.classes import ClassName, class_name
from shaping.policy.keys import parse_name
from shaping.policy.scalars import LineRate
from shaping.policy.share_schema import BEST_EFFORT, PieceConfig, ShareConfig

# Bounds on hostile files: what they allow is computed in about a second. Groups and pieces are
# those of all shares together.
SHARES_MOST, GROUPS_MOST, PIECES_MOST = 64, 4096, 16384
LEVELS_MOST, PIECES_OF_LEVEL_MOST = 8, 16
CAPACITY_LEAST = LineRate("100kbit")  # for each group
EXAMPLE = "{uplink: {capacity: 35gbit, web: {weight: 2}, db: {weight: 1}}}"
PIECES_EXAMPLE = "[{weight: 20, upto: 10gbit}, {weight: 5}]"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", re.ASCII)
_LEVEL = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_OWN = ("capacity", "levels", "groups", "members")


def read_shares(data: Any, locate: Locate) -> dict[str, ShareConfig]:
    """The shares of untyped data. Raises ConfigError."""
    if data is None:
        return {}
    path: Path = ("shares",)
    if not isinstance(data, Mapping) or len(data) > SHARES_MOST:
        what = f"of {len(data)} entries" if isinstance(data, Mapping) else shown(data)
        text = f"invalid value {what}: expected at most {SHARES_MOST} entries, such as {EXAMPLE}"
        raise error_at(locate, path, text)
    found: dict[str, ShareConfig] = {}
    homes: dict[str | ClassName, str] = {}  # a place has several spellings
    pieces = 0
    for name, value in data.items():
        name = str(name)
        if not _NAME.fullmatch(name):
            text = "is not a share: expected letters, digits, '_', '.' and '-', at most 32"
            raise error_at(locate, (*path, name), text)
        found[name] = share = _share(value, (*path, name), locate)
        for leaf in share.leaves:
            if (which := class_name(leaf) or leaf) in homes:
                text = f"has a share of {homes[which]} already: expected one share for each"
                raise error_at(locate, (*path, name, leaf), text)
            homes[which] = name
        for each in (share.groups, *share.members.values()):
            pieces += sum(len(own) for levels in each.values() for own in levels.values())
        if len(homes) > GROUPS_MOST or pieces > PIECES_MOST:
            text = f"{len(homes)} NICs with {pieces} pieces so far: expected at most {GROUPS_MOST} "
            text += f"NICs and {PIECES_MOST} pieces in all shares"
            raise error_at(locate, (*path, name), text)
    return found


def _share(data: Any, path: Path, locate: Locate) -> ShareConfig:
    if not isinstance(data, Mapping):
        text = f"invalid value {shown(data)}: expected a mapping such as {EXAMPLE}"
        raise error_at(locate, path, text)
    own = {key: data[key] for key in _OWN[:2] if key in data}
    share = convert(own, ShareConfig, path, locate)
    share.groups, share.members = {}, {}
    if not share.capacity:
        raise error_at(locate, (*path, "capacity"), "none cannot be divided: expected a rate")
    _check_levels(share.levels, (*path, "levels"), locate)
    groups = dict(_groups(data, path, locate))
    if not groups or len(groups) > GROUPS_MOST:
        text = f"has {len(groups)} groups: expected 1 to {GROUPS_MOST}, such as web: {{weight: 2}}"
        raise error_at(locate, path, text)
    members = dict(_given_members(data, path, locate))
    for name, (value, at) in groups.items():
        _check_name(name, "the name of a NIC or of a group, or a class", at, locate)
        if isinstance(value, Mapping) and "of" in value:
            if name in members:
                raise error_at(locate, (*at, "of"), "is in members, too: expected one of them")
            members[name] = value["of"], (*at, "of")
            value = {key: each for key, each in value.items() if key != "of"}
        share.groups[name] = _group(value, share.levels, at, locate)
    for name, (value, at) in members.items():
        share.members[name] = _members(name, value, share, at, locate)
    if (count := len(share.leaves)) > GROUPS_MOST or share.capacity < count * CAPACITY_LEAST:
        text = f"{share.capacity} is too little for {count} NICs: expected "
        text += f"{CAPACITY_LEAST} or more for each"
        raise error_at(locate, (*path, "capacity"), text)
    return share


def _given_members(
    data: Mapping[Any, Any], path: Path, locate: Locate
) -> Iterator[tuple[str, tuple[Any, Path]]]:
    """(group, (its members, their path)) of each group in `members`."""
    given, at = data.get("members", {}), (*path, "members")
    if not isinstance(given, Mapping):
        text = f"invalid value {shown(given)}: expected a mapping such as {{search: {{web: {{}}}}}}"
        raise error_at(locate, at, text)
    for name, value in given.items():
        yield str(name), (value, (*at, name))


def _members(
    group: str, data: Any, share: ShareConfig, path: Path, locate: Locate
) -> dict[str, dict[str, list[PieceConfig]]]:
    """The NICs of a group of several."""
    if group not in share.groups:
        text = f"there is no group {group}: expected one of {', '.join(share.groups)}"
        raise error_at(locate, path, text)
    if not isinstance(data, Mapping) or not 1 <= len(data) <= GROUPS_MOST:
        what = f"of {len(data)} NICs" if isinstance(data, Mapping) else shown(data)
        text = f"invalid value {what}: expected 1 to {GROUPS_MOST} NICs such as "
        raise error_at(locate, path, f"{text}{{web: {{weight: 2}}, db: {{}}}}")
    weight = {share.levels[-1]: {"weight": 1}}
    for nic in data:
        _check_name(str(nic), "the name of a NIC, or a class", (*path, nic), locate)
    return {
        str(nic): _group(value or weight, share.levels, (*path, nic), locate)
        for nic, value in data.items()
    }


def _check_name(name: str, wanted: str, path: Path, locate: Locate) -> None:
    try:
        if class_name(name) is None:
            parse_name(name, f"{wanted} such as web.egress/gold")
    except ConfigError as error:
        raise error_at(locate, path, str(error)) from None


def _groups(data: Mapping[Any, Any], path: Path, locate: Locate) -> Iterator[tuple[str, Any]]:
    """(name, (value, its path)) of each group."""
    inner = data.get("groups", {})
    if not isinstance(inner, Mapping):
        text = f"invalid value {shown(inner)}: expected a mapping such as {{web: {{weight: 2}}}}"
        raise error_at(locate, (*path, "groups"), text)
    for name, value in data.items():
        if name in inner:
            raise error_at(locate, (*path, name), "is in groups, too: expected one of them")
        if name not in _OWN:
            yield str(name), (value, (*path, name))
    for name, value in inner.items():
        yield str(name), (value, (*path, "groups", name))


def _check_levels(levels: list[str], path: Path, locate: Locate) -> None:
    if not 1 <= len(levels) <= LEVELS_MOST or len(set(levels)) != len(levels):
        text = f"expected 1 to {LEVELS_MOST} different names, such as [guaranteed, {BEST_EFFORT}]"
        raise error_at(locate, path, text)
    for level in levels:
        if not _LEVEL.fullmatch(level) or level in ("weight", "upto"):
            text = f"invalid value {shown(level)}: expected a name such as {BEST_EFFORT}"
            raise error_at(locate, path, text)


def _group(
    data: Any, levels: list[str], path: Path, locate: Locate
) -> dict[str, list[PieceConfig]]:
    if len(levels) == 1 and (
        isinstance(data, list) or (isinstance(data, Mapping) and "weight" in data)
    ):
        data = {levels[0]: data}
    if not isinstance(data, Mapping) or not data:
        what = shown(data) if data else "without weight or levels"
        text = f"invalid value {what}: expected levels, such as {{{levels[-1]}: {PIECES_EXAMPLE}}}"
        raise error_at(locate, path, text)
    for level in data:
        if level not in levels:
            text = f"unknown level; {did_you_mean(str(level), levels)}"
            raise error_at(locate, (*path, level), text)
    return {
        level: _pieces(data[level], level == levels[-1], (*path, level), locate)
        for level in levels
        if level in data
    }


def _pieces(data: Any, last: bool, path: Path, locate: Locate) -> list[PieceConfig]:
    given = [data] if isinstance(data, Mapping) else data
    if not isinstance(given, list) or not 1 <= len(given) <= PIECES_OF_LEVEL_MOST:
        what = f"of {len(given)} pieces" if isinstance(given, list) else shown(data)
        text = f"invalid value {what}: expected 1 to {PIECES_OF_LEVEL_MOST} pieces, such as "
        text += PIECES_EXAMPLE
        raise error_at(locate, path, text)
    found = [convert(each, PieceConfig, (*path, at), locate) for at, each in enumerate(given)]
    before = 0
    for at, piece in enumerate(found):
        if piece.upto is None and not (last and at == len(found) - 1):
            text = "has no upto, which only the last piece of the last level can lack: add upto"
            raise error_at(locate, (*path, at), text)
        if piece.upto is not None and piece.upto <= before:
            text = f"upto {piece.upto} is not more than in the piece before: expected rising rates"
            raise error_at(locate, (*path, at), text)
        before = piece.upto or 0
    return found

"""Reads `shares` of a policy file. Short forms are written out: groups beside `capacity` and
`levels` instead of in `groups`, one piece instead of a list of pieces, and the pieces of the only
level without its name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dataplane.config.convert import Locate, Path, convert, did_you_mean, error_at, shown
from shaping.policy.scalars import LineRate
from shaping.policy.share_schema import BEST_EFFORT, PieceConfig, ShareConfig

# Bounds on hostile files: what they allow is computed in about a second. Groups and pieces are
# those of all shares together.
SHARES_MOST, GROUPS_MOST, PIECES_MOST = 64, 4096, 16384
LEVELS_MOST, PIECES_OF_LEVEL_MOST = 8, 16
CAPACITY_LEAST = LineRate("100kbit")  # for each group
EXAMPLE = "{uplink: {capacity: 35gbit, web: {weight: 2}, db: {weight: 1}}}"
PIECES_EXAMPLE = "[{weight: 20, upto: 10gbit}, {weight: 5}]"

_LEVEL = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_OWN = ("capacity", "levels", "groups")


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
    homes: dict[str, str] = {}
    pieces = 0
    for name, value in data.items():
        name = str(name)
        found[name] = share = _share(value, (*path, name), locate)
        for group in share.groups:
            if group in homes:
                text = f"has a share of {homes[group]} already: expected one share of a NIC"
                raise error_at(locate, (*path, name, group), text)
            homes[group] = name
            pieces += sum(map(len, share.groups[group].values()))
        if len(homes) > GROUPS_MOST or pieces > PIECES_MOST:
            text = (
                f"{len(homes)} groups with {pieces} pieces so far: expected at most {GROUPS_MOST} "
            )
            text += f"groups and {PIECES_MOST} pieces in all shares"
            raise error_at(locate, (*path, name), text)
    return found


def _share(data: Any, path: Path, locate: Locate) -> ShareConfig:
    if not isinstance(data, Mapping):
        text = f"invalid value {shown(data)}: expected a mapping such as {EXAMPLE}"
        raise error_at(locate, path, text)
    own = {key: data[key] for key in _OWN[:2] if key in data}
    share = convert({**own, "groups": {}}, ShareConfig, path, locate)
    if not share.capacity:
        raise error_at(locate, (*path, "capacity"), "none cannot be divided: expected a rate")
    _check_levels(share.levels, (*path, "levels"), locate)
    groups = dict(_groups(data, path, locate))
    if not groups or len(groups) > GROUPS_MOST:
        text = f"has {len(groups)} groups: expected 1 to {GROUPS_MOST}, such as web: {{weight: 2}}"
        raise error_at(locate, path, text)
    if share.capacity < len(groups) * CAPACITY_LEAST:
        text = f"{share.capacity} is too little for {len(groups)} groups: expected "
        text += f"{CAPACITY_LEAST} or more for each"
        raise error_at(locate, (*path, "capacity"), text)
    for name, (value, at) in groups.items():
        share.groups[name] = _group(value, share.levels, at, locate)
    return share


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
        what = shown(data) if data else "without levels"
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

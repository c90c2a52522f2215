"""Converts untyped data to the elements of a chain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dataplane.config.convert import Locate, Path, convert, error_at, shown
from vnic.config.schema import ElementConfig

DEPTH_MOST = 8  # nesting of branches
ELEMENTS_MOST = 256  # of one chain


def convert_elements(data: Any, path: Path, locate: Locate, depth: int = 0) -> list[ElementConfig]:
    if not isinstance(data, list):
        raise error_at(
            locate,
            path,
            f"invalid value {shown(data)}: "
            "expected a list of elements such as [{element: Counter}]",
        )
    if depth > DEPTH_MOST or len(data) > ELEMENTS_MOST:
        raise error_at(
            locate,
            path,
            f"too much: expected at most {ELEMENTS_MOST} elements and branches {DEPTH_MOST} deep",
        )
    return [_element(each, (*path, number), locate, depth) for number, each in enumerate(data)]


def _element(data: Any, path: Path, locate: Locate, depth: int) -> ElementConfig:
    if isinstance(data, str):
        data = {"element": data}  # [Counter] is short for [{element: Counter}]
    if not isinstance(data, Mapping):
        raise error_at(
            locate,
            path,
            f"invalid value {shown(data)}: expected an element such as {{element: Counter}}",
        )
    fields = {key: data[key] for key in ("element", "name") if key in data}
    arguments = arguments_of(data, ("element", "name", "branches"), path, locate)
    element = convert(fields, ElementConfig, path, locate)
    branches = data.get("branches", {})
    if not isinstance(branches, Mapping):
        raise error_at(
            locate,
            (*path, "branches"),
            f"invalid value {shown(branches)}: "
            "expected {OUTPUT: [elements]} such as {1: [Discard]}",
        )
    for gate, chain in branches.items():
        if not re.fullmatch(r"[0-9]{1,4}", str(gate), re.ASCII):
            raise error_at(
                locate,
                (*path, "branches", gate),
                "is not an output: expected its number, such as 1",
            )
        element.branches[int(gate)] = convert_elements(
            chain, (*path, "branches", gate), locate, depth + 1
        )
    element.arguments, element.where = arguments, locate(path)
    return element


def arguments_of(
    data: Mapping[Any, Any], ours: Sequence[str], path: Path, locate: Locate
) -> dict[str, Any]:
    """The items of `data` that are a constructor's arguments."""
    arguments = {key: value for key, value in data.items() if key not in ours}
    for key in arguments:
        if not isinstance(key, str) or not key.isidentifier():
            raise error_at(
                locate,
                (*path, key),
                "is not a constructor argument: expected a word of letters, digits and '_'",
            )
    return arguments

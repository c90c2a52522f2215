"""Rows of the handler `classes` of a Scheduler, added up: of classes, or of copies of one."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

Row = dict[str, Any]


def add_row(to: Row, row: Row, own: Container[str] = ("path",)) -> None:
    """Adds the numbers of a class to those of `to`. own: keys whose values stay."""
    for key, value in row.items():
        if key == "dropped":
            for reason, count in value.items():
                to[key][reason] += count
        elif key == "sojourn_max_ns":
            to[key] = max(to[key], value)
        elif key not in own:
            to[key] += value

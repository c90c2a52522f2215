"""Settings of a Pacer as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataplane.config.convert import shown
from dataplane.errors import ConfigError
from shaping.settings import delay_of, rate_of

PER = ("all", "mark", "flow")
EXCEED = ("drop", "pace")
MARKS_MOST = 1024  # as MARKS_MOST of mark_table.pxd
FLOWS_MOST = 1 << 22
HORIZON_LEAST_NS = 1_000


def choice_of(name: str, what: str, value: object, choices: tuple[str, ...]) -> int:
    """The number of a choice. Raises ConfigError."""
    if not isinstance(value, str) or value not in choices:
        expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise ConfigError(f"{name}: {what} {shown(value)}: expected {expected}")
    return choices.index(value)


def rates_of(name: str, rates: Mapping[Any, Any] | None) -> dict[int, int]:
    """bit/s by mark; 0: no limit. Raises ConfigError."""
    if rates is None:
        return {}
    if not isinstance(rates, Mapping) or len(rates) > MARKS_MOST:
        what = f"of {len(rates)} marks" if isinstance(rates, Mapping) else shown(rates)
        raise ConfigError(
            f"{name}: rates {what}: expected at most {MARKS_MOST} marks with their rates, such as "
            "{1: 10mbit}"
        )
    found: dict[int, int] = {}
    for key, rate in rates.items():
        # a mapping that came by JSON has texts as keys
        text = key if isinstance(key, str) and key.isascii() and key.isdecimal() else ""
        mark = int(text) if 0 < len(text) <= 10 else key
        if type(mark) is not int or not 0 <= mark <= 0xFFFFFFFF:
            raise ConfigError(
                f"{name}: rates: mark {shown(key)}: expected a number from 0 to 4294967295"
            )
        if mark in found:
            raise ConfigError(f"{name}: rates: mark {mark} is given twice")
        found[mark] = rate_of(f"{name}: rates: mark {mark}", rate)
    return found


def flows_of(name: str, flows: object) -> int:
    """The number of clocks for flows. Raises ConfigError."""
    if type(flows) is not int or not 1 <= flows <= FLOWS_MOST:
        raise ConfigError(f"{name}: flows {shown(flows)}: expected a number, 1 to {FLOWS_MOST}")
    return flows


def horizon_of(name: str, horizon: str | int) -> int:
    """The horizon in nanoseconds. Raises ConfigError."""
    found = delay_of(name, "horizon", horizon)
    if found < HORIZON_LEAST_NS:
        raise ConfigError(f"{name}: horizon of {horizon}: expected 1us to 1h")
    return found

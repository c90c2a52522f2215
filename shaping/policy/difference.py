"""Differences between two policies, setting by setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

Difference = tuple[str, Any, Any]  # path, value before, value after; None: none


def flat_policy(policy: Any) -> dict[str, Any]:
    """The settings of a policy (plain data; None: none) by path, such as `links.web -> db.rate`.
    Steps of a scenario are compared as a whole: each is a path, with the number of such steps."""
    if policy is None:
        return {}
    steps = Counter(f"scenario {_in_file(step)}" for step in policy.get("scenario", []))
    rest = {name: value for name, value in policy.items() if name != "scenario"}
    return {**dict(_flat(rest, "")), **steps}


def _in_file(value: Any) -> str:
    """Plain data as a file has it."""
    if isinstance(value, dict):
        items = ", ".join(f"{name}: {_in_file(each)}" for name, each in value.items())
        return f"{{{items}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_in_file, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flat(value: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    """Between two results of `flat_policy`, in the order of the paths."""
    paths = [*before, *(path for path in after if path not in before)]
    pairs = ((path, before.get(path), after.get(path)) for path in paths)
    return [(path, was, will) for path, was, will in pairs if was != will]


def difference_texts(found: Iterable[Difference]) -> list[str]:
    """One line for each, such as "~ web -> db.rate: 10mbit -> 5mbit"."""
    texts = []
    for path, was, will in found:
        sign = "+" if was is None else "-" if will is None else "~"
        if path.startswith("scenario "):
            count = abs((will or 0) - (was or 0))
            times = f" ({count} times)" if count > 1 else ""
            texts.append(f"{'+' if (will or 0) > (was or 0) else '-'} {path}{times}")
            continue
        before = "" if was is None else f"{_in_file(was)} -> "
        text = "none" if will is None else _in_file(will)
        texts.append(f"{sign} {path.removeprefix('links.')}: {before}{text}")
    return texts

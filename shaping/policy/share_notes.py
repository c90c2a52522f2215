"""What the shares of a policy mean: each group's function, and what it gets when all send."""

from __future__ import annotations

from collections.abc import Iterator

from shaping.policy.findings import Finding
from shaping.policy.load import Policy
from shaping.policy.places import Plan
from shaping.policy.scalars import LineRate
from shaping.shares.function import BandwidthFunction


def share_notes(plan: Plan, policy: Policy) -> Iterator[Finding]:
    for name, uplink in plan.uplinks.items():
        where = policy.share_lines.get(name, "")
        rates = {leaf: plan.rate_in_share(leaf) for leaf in uplink.leaves}
        for group, function in uplink.functions.items():
            points = points_text(function, uplink.unit)
            members = uplink.members.get(group, {})
            rate = LineRate(sum(rates[nic] for nic in members)) if members else rates[group]
            text = f"shares.{name}: {group}: {rate} when all send; gets {points}"
            yield Finding("note", where, text)
            for nic, inner in members.items():
                text = f"shares.{name}: {group}: {nic}: {rates[nic]} when all send; gets of what "
                text += f"{group} gets {points_text(inner, uplink.unit)}"
                yield Finding("note", where, text)
        for nic, rate in rates.items():
            if rate <= uplink.least_bps:
                text = (
                    f"shares.{name}: {nic}: gets only {rate} while the others send as much as "
                    "they may: move it to a higher level, or bound the others there (upto)"
                )
                yield Finding("warning", where, text)


def points_text(function: BandwidthFunction, unit: int) -> str:
    """The breakpoints of a function, such as "0 at 2, 10gbit at 2.5, 15gbit at 3.5"."""
    parts = [
        f"{_rate_text(float(bps))} at {float(share) / unit:.4g}" for share, bps in function.points
    ]
    return f"{', '.join(parts)}{' and more' if function.slope else ''}"


def _rate_text(bps: float) -> str:
    """A rate in four digits."""
    for factor, unit in ((1e12, "tbit"), (1e9, "gbit"), (1e6, "mbit"), (1e3, "kbit")):
        if bps >= factor:
            return f"{bps / factor:.4g}{unit}"
    return f"{bps:.4g}"


def function_points(plan: Plan, name: str) -> dict[str, list[tuple[float, float]]]:
    """The functions of a share, to be drawn: points (fair share, bit/s) of each group, and of their
    sum as "total". Raises KeyError for an unknown name."""
    return plan.uplinks[name].points()

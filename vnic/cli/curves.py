"""What a running instance has recorded, as curves over time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from vnic.api.client import Client

LISTED_MS = 100  # the shortest question about all: only who is there counts
MARKS_MOST = 8  # steps of a scenario; more than these would hide the curves


@dataclass
class Curve:
    """A NIC's direction, a line or a class over time, with a number for each interval.

    delay_ms   mean wait in queues; None: no packet left one
    drops, lost  packets a second: dropped, and lost as asked
    """

    name: str
    kind: str
    way: str
    asked: str
    limit_bps: int | None
    ended: float | None
    rate_bps: list[float]
    packets: list[float]
    queue_bytes: list[int]
    delay_ms: list[float | None]
    drops: list[float]
    lost: list[float]
    octets: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.way}" if self.way else self.name


class Mark(NamedTuple):
    """A step of the policy's scenario. at: when it began, in seconds since 1970."""

    at: float
    number: int
    text: str


@dataclass
class Recorded:
    """bounds: of the intervals, in seconds since 1970; one more than there are intervals. marks: at
    most MARKS_MOST, the last ones."""

    bounds: list[float]
    curves: list[Curve]
    marks: list[Mark] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [max(end - begin, 0.001) for begin, end in pairwise(self.bounds)]


def recorded(
    client: Client, names: Sequence[str] | None, *, last_ms: int, step_ms: int
) -> Recorded:
    """What was recorded of these, or of all. Raises VnicError."""
    found = client.call("History", names=names, last_ms=last_ms, step_ms=step_ms)
    bounds = [found["begin"], *found["times"]] if found["times"] else []
    made = Recorded(bounds, [])
    made.curves = [_curve(each, made.seconds) for each in found["series"]]
    return made


def _curve(series: dict[str, Any], seconds: list[float]) -> Curve:
    def column(name: str) -> list[int]:
        found: list[int] = series.get(name) or [0] * len(seconds)
        return found

    def each_second(name: str) -> list[float]:
        return [count / long for count, long in zip(column(name), seconds, strict=True)]

    # What the rate of a line counts is what it can be compared with. Before it had one, or where it
    # has none, it has bytes only.
    sent = series.get("sent_bytes") or column("bytes")
    octets = [each or plain for each, plain in zip(sent, column("bytes"), strict=True)]
    waits = zip(column("sojourn_ns"), column("sojourn_packets"), strict=True)
    return Curve(
        name=series["name"],
        kind=series["kind"],
        way=series.get("way", ""),
        asked=series.get("asked", ""),
        limit_bps=series.get("rate_bps"),
        ended=series.get("ended"),
        rate_bps=[8 * each / long for each, long in zip(octets, seconds, strict=True)],
        packets=each_second("packets"),
        queue_bytes=column("queue_bytes"),
        delay_ms=[ns / packets / 1e6 if packets else None for ns, packets in waits],
        drops=each_second("drops"),
        lost=each_second("lost"),
        octets=sum(octets),
    )


def describe(found: Recorded, status: dict[str, Any]) -> None:
    """Adds what the policy says: steps of its scenario that began meanwhile, and what classes are
    promised. status: of ShapeStatus, with `whole`."""
    if status["policy"] is None:
        return
    from vnic.cli.shape_classes import asked, classes_by_name
    from vnic.cli.shape_report import asked_now

    classes = classes_by_name(asked_now(status).classes)
    for curve in found.curves:
        if curve.kind == "class" and (each := classes.get(curve.name)) is not None:
            curve.asked, curve.limit_bps = asked(each), each.ceiling_bps or None
    if found.bounds and status["scenario"] is not None:
        began = time.time() - status["scenario"]["elapsed_ns"] / 1e9
        found.marks = _marks(status["policy"], began, found.bounds)


def _marks(policy: dict[str, Any], began: float, bounds: Sequence[float]) -> list[Mark]:
    from shaping.policy.load import convert_policy
    from shaping.policy.scenario import step_text

    steps = convert_policy(policy).steps
    repeats = steps[-1].kind == "repeat"
    period = steps[-1].at_ns / 1e9 if repeats else 0.0
    found: list[Mark] = []
    # backwards, from the round in which the last interval ends
    rounds = max(int((bounds[-1] - began) // period), 0) if repeats else 0
    for number in range(rounds, max(rounds - MARKS_MOST, -1), -1):
        for step in reversed(steps):
            at = began + number * period + step.at_ns / 1e9
            if at < bounds[0] or len(found) == MARKS_MOST:
                return found[::-1]
            if at <= bounds[-1]:
                found.append(Mark(at, step.number, step_text(step)))
    return found[::-1]


def listed(client: Client) -> list[dict[str, Any]]:
    """What is recorded: kind, name, way and asked of each series. Raises VnicError."""
    found: list[dict[str, Any]] = client.call("History", last_ms=LISTED_MS)["series"]
    return found


def names_of(name: str, series: Iterable[dict[str, Any]]) -> list[str]:
    """The names of the series that a NIC, line, link or class stands for: `web <-> db` for both
    lines between these two, a link for its two lines. Others stay as they are."""
    known = {each["name"] for each in series}
    if name in known:
        return [name]
    words = name.split()
    if len(words) == 3 and words[1] in ("->", "<->"):
        first, arrow, second = words
        both = [f"{first} -> {second}", *([f"{second} -> {first}"] if arrow == "<->" else [])]
        return [each for each in both if each in known] or [name]
    lines = sorted(each["name"] for each in series if each["name"].startswith(f"{name} -> "))
    return lines or [name]

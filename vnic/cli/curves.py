"""What a running instance has recorded, as curves over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vnic.api.client import Client

LISTED_MS = 100  # the shortest question about all: only who is there counts


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


@dataclass
class Recorded:
    """bounds: of the intervals, in seconds since 1970; one more than there are intervals."""

    bounds: list[float]
    curves: list[Curve]

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

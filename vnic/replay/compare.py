"""Compares two captures: packets missing, extra, changed or reordered, time differences, the first
difference."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dataplane.capture.reader import CaptureReader
from dataplane.errors import ConfigError
from vnic.replay.dissect import differences, normaliser

ANY_TIME = 2**63  # as a tolerance: times are not compared
UNMATCHED_MOST = 100_000  # per interface and side; with more, the two captures are unrelated

Capture = str | os.PathLike[str] | int


class Seen(NamedTuple):
    """A packet of a capture."""

    number: int  # within its interface, from 1
    time_ns: int
    data: bytes


@dataclass
class Pair:
    """A packet found and the one expected; one of the two may be None."""

    interface: str
    found: Seen | None
    expected: Seen | None

    def at_ns(self) -> int:
        seen = self.expected or self.found
        assert seen is not None
        return seen.time_ns


@dataclass
class Difference:
    """The result of a comparison."""

    found: str
    expected: str
    tolerance_ns: int
    packets: int = 0  # equal ones
    changed: list[Pair] = field(default_factory=list)
    missing: list[Pair] = field(default_factory=list)
    extra: list[Pair] = field(default_factory=list)
    reordered: int = 0
    late: int = 0  # beyond the tolerance
    deviation_ns: int = 0  # the greatest, also within the tolerance
    first_late: Pair | None = None
    # lines on interface names that differ between the captures
    names: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (self.changed or self.missing or self.extra or self.reordered or self.late)

    def first(self) -> Pair | None:
        """The earliest packet that is not as expected."""
        pairs = [
            *self.changed[:1],
            *self.missing[:1],
            *self.extra[:1],
            *([self.first_late] if self.first_late else []),
        ]
        return min(pairs, key=Pair.at_ns, default=None)

    def as_dict(self) -> dict[str, Any]:
        first = self.first()
        return {
            "equal": self.equal,
            "packets": self.packets,
            "changed": len(self.changed),
            "missing": len(self.missing),
            "extra": len(self.extra),
            "reordered": self.reordered,
            "late": self.late,
            "deviation_ns": self.deviation_ns,
            "tolerance_ns": self.tolerance_ns if self.tolerance_ns < ANY_TIME else None,
            "interfaces": self.names,
            "first": None if first is None else describe(first),
        }

    def text(self) -> str:
        """The result as text for users."""
        if self.equal:
            when = (
                "times were ignored"
                if self.tolerance_ns >= ANY_TIME
                else f"instants differ by at most {self.deviation_ns} ns"
            )
            return "\n".join([f"equal: {self.packets} packets, {when}", *self.names])
        counts = [
            f"{len(self.changed)} changed",
            f"{len(self.missing)} missing",
            f"{len(self.extra)} extra",
            f"{self.reordered} reordered",
        ]
        if self.tolerance_ns < ANY_TIME:
            late = (
                f"{self.late} at another time (by up to {self.deviation_ns} ns; "
                f"tolerance {self.tolerance_ns} ns)"
            )
            counts.append(late)
        lines = [f"different: {self.packets} packets are equal, {', '.join(counts)}", *self.names]
        first = self.first()
        if first is not None:
            lines += describe(first)
        return "\n".join(lines)


def describe(pair: Pair) -> list[str]:
    """Lines on a pair: its position, then the differences."""
    seconds = f"{pair.at_ns() // 10**9}.{pair.at_ns() % 10**9:09d} s"
    seen = pair.found or pair.expected
    assert seen is not None
    head = f"first difference: interface {pair.interface}, packet {seen.number}, {seconds}"
    if pair.found is None or pair.expected is None:
        return [
            f"{head}: {'missing' if pair.found is None else 'extra'}",
            *(f"    {line}" for line in differences(seen.data, None)),
        ]
    if pair.found.data == pair.expected.data:
        return [
            f"{head}: comes {pair.found.time_ns - pair.expected.time_ns:+d} ns from its instant"
        ]
    return [head, *(f"    {line}" for line in differences(pair.found.data, pair.expected.data))]


class _Stream:
    """One interface of both captures: matches packets in order of arrival."""

    def __init__(self, name: str, result: Difference, key: Callable[[bytes], bytes]) -> None:
        self.name, self.result, self.key = name, result, key
        self.waiting: tuple[deque[Seen], deque[Seen]] = (deque(), deque())
        self.counts = [0, 0]
        self.unmatched: tuple[dict[bytes, deque[Seen]], dict[bytes, deque[Seen]]] = (
            defaultdict(deque),
            defaultdict(deque),
        )
        self.open = [0, 0]
        # (found, expected) numbers of the matched packet last in `found`, and of the one last in
        # `expected`
        self.last_found, self.last_expected = (0, 0), (0, 0)

    def add(self, side: int, time_ns: int, data: bytes) -> None:
        self.counts[side] += 1
        self.waiting[side].append(Seen(self.counts[side], time_ns, data))
        while self.waiting[0] and self.waiting[1]:
            found, expected = self.waiting[0].popleft(), self.waiting[1].popleft()
            if found.data == expected.data or self.key(found.data) == self.key(expected.data):
                self.match(found, expected)
            else:
                self.seek(0, found)
                self.seek(1, expected)

    def seek(self, side: int, seen: Seen) -> None:
        """Matches a packet with an unmatched one of the other side, or stores it as unmatched."""
        key = self.key(seen.data)
        others = self.unmatched[1 - side].get(key)
        if others:
            other = others.popleft()
            self.open[1 - side] -= 1
            if not others:
                del self.unmatched[1 - side][key]
            self.match(*((seen, other) if side == 0 else (other, seen)))
            return
        self.unmatched[side][key].append(seen)
        self.open[side] += 1
        if self.open[side] > UNMATCHED_MOST:
            raise ConfigError(
                f"interface {self.name}: more than {UNMATCHED_MOST} packets differ; "
                f"these captures are not of the same"
            )

    def match(self, found: Seen, expected: Seen) -> None:
        result = self.result
        result.packets += 1
        here = (found.number, expected.number)
        if (found.number < self.last_found[0] and expected.number > self.last_found[1]) or (
            expected.number < self.last_expected[1] and found.number > self.last_expected[0]
        ):
            result.reordered += 1
        self.last_found = max(self.last_found, here)
        self.last_expected = max(self.last_expected, here, key=lambda pair: pair[1])
        deviation = abs(found.time_ns - expected.time_ns)
        result.deviation_ns = max(result.deviation_ns, deviation)
        if deviation > result.tolerance_ns:
            result.late += 1
            if result.first_late is None:
                result.first_late = Pair(self.name, found, expected)

    def finish(self) -> None:
        for side in (0, 1):
            for seen in self.waiting[side]:
                self.seek(side, seen)
        found, expected = (
            sorted(
                (seen for each in self.unmatched[side].values() for seen in each),
                key=lambda seen: seen.number,
            )
            for side in (0, 1)
        )
        pairs = min(len(found), len(expected))
        self.result.changed += [
            Pair(self.name, *each) for each in zip(found[:pairs], expected[:pairs], strict=True)
        ]
        self.result.extra += [Pair(self.name, seen, None) for seen in found[pairs:]]
        self.result.missing += [Pair(self.name, None, seen) for seen in expected[pairs:]]


def _names(reader: CaptureReader, number: int) -> str:
    """An interface's name, or its number where the file has no name."""
    return reader.names[number] or str(number)


def _both(
    left: CaptureReader, right: CaptureReader
) -> Iterator[tuple[int, CaptureReader, tuple[int, bytes, int, int]]]:
    """Packets of both captures, merged by time."""
    heads = [next(left, None), next(right, None)]
    readers = (left, right)
    while any(head is not None for head in heads):
        first, second = heads
        side = 0 if second is None or (first is not None and first[0] <= second[0]) else 1
        head = heads[side]
        assert head is not None
        yield side, readers[side], head
        heads[side] = next(readers[side], None)


def compare(
    found: Capture,
    expected: Capture,
    *,
    tolerance_ns: int = 0,
    ignore: Iterable[str] = (),
    pairs: Mapping[str, str] | None = None,
) -> Difference:
    """Compares capture `found` with what was expected. ignore: fields such as "IP.id" (needs
    scapy), and "time".

    Interfaces are matched by name; `pairs` renames those of `found`. Where each capture has packets
    of one interface only, these two are compared, even if their names differ. Raises CaptureError
    for a capture that cannot be read to its end, ConfigError for an unknown field.
    """
    fields = set(ignore)
    if "time" in fields:
        fields.remove("time")
        tolerance_ns = ANY_TIME
    key = normaliser(fields)
    try:
        return _compare(found, expected, tolerance_ns, key, dict(pairs or {}), single=not pairs)
    except _SeveralInterfacesError:
        if isinstance(found, int) or isinstance(expected, int):
            raise ConfigError(
                "the interfaces of the two captures are named differently, and there are several; "
                "use --interface A=B"
            ) from None
        return _compare(found, expected, tolerance_ns, key, {}, single=False)


class _SeveralInterfacesError(Exception):
    """Each capture was assumed to have one interface, but one of them has several."""


def _compare(
    found: Capture,
    expected: Capture,
    tolerance_ns: int,
    key: Callable[[bytes], bytes],
    renamed: dict[str, str],
    *,
    single: bool,
) -> Difference:
    """single: the first interface of each capture is its only one, and they are compared."""
    with closing(CaptureReader(found)) as left, closing(CaptureReader(expected)) as right:
        result = Difference(left.path, right.path, tolerance_ns)
        streams: dict[str, _Stream] = {}
        names: tuple[dict[str, None], dict[str, None]] = ({}, {})  # in order of appearance
        for side, reader, (time_ns, data, _, interface) in _both(left, right):
            name = _names(reader, interface)
            names[side].setdefault(name)
            if single and len(names[side]) > 1:
                raise _SeveralInterfacesError
            name = renamed.get(name, name) if side == 0 else name
            stream = streams.get("" if single else name)
            if stream is None:
                stream = streams["" if single else name] = _Stream(name, result, key)
            stream.add(side, time_ns, data)
        for stream in streams.values():
            stream.finish()
        for each in (result.changed, result.missing, result.extra):
            each.sort(key=Pair.at_ns)
        if (
            names[0]
            and names[1]
            and {renamed.get(name, name) for name in names[0]} != set(names[1])
        ):
            result.names.append(
                f"interfaces are named differently: {', '.join(names[0])} / {', '.join(names[1])}"
            )
        return result

"""Files of traces: Mahimahi's, `seconds Mbit/s` as Pensieve uses it, and captures.

    mahimahi       a whole number of milliseconds a line, in order: an opportunity of 1504 bytes
                   each; the last one ends the period (Netravali et al., USENIX ATC 2015)
    seconds-mbit   two numbers a line: the rate holds from the time of the line before to this
                   line's, so that the first line only gives the begin (Mao et al., SIGCOMM 2017)
    pcap           pcap or pcapng, also compressed: each packet that arrived is an opportunity

A file is read as a stream and only as far as its bounds allow: of a line 64 bytes, and as many
lines as a trace may have. Errors are "FILE:LINE: what: expected what".
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from dataplane.capture.reader import CaptureReader
from dataplane.config.convert import shown
from dataplane.errors import CaptureError, ConfigError
from dataplane.units import RATE_MOST_BPS
from shaping.trace import (
    MS,
    OPPORTUNITIES_MOST,
    OPPORTUNITY_BYTES,
    PERIOD_MOST_NS,
    SECOND,
    STEPS_MOST,
    OpportunityTrace,
    RateTrace,
    Trace,
)

Format = Literal["auto", "mahimahi", "seconds-mbit", "pcap"]
FORMATS: tuple[Format, ...] = ("auto", "mahimahi", "seconds-mbit", "pcap")
Keep = Callable[[bytes], bool]  # whether a captured frame counts

_CAPTURES = (
    b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d",
    b"\x34\xcd\xb2\xa1", b"\xa1\xb2\xcd\x34", b"\x0a\x0d\x0d\x0a", b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18",
)  # fmt: skip
_CHUNK, _LINE_MOST = 1 << 20, 64
_MS_MOST = PERIOD_MOST_NS // MS
_NUMBER = re.compile(rb"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?")
_DIGITS = re.compile(rb"[0-9]{1,20}")


def read_trace(
    path: str | os.PathLike[str],
    form: Format = "auto",
    *,
    every: int | None = None,
    keep: Keep | None = None,
) -> Trace:
    """The trace of a file. Raises ConfigError, one line.

    every: bytes of an opportunity, of a capture: each `every` bytes of packets that arrive make
    one; None: each packet makes one. keep: packets of a capture that count; None: all.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise ConfigError(f"{name!r} is not a path: it has a zero byte")
    try:
        with open(name, "rb") as file:
            head = file.peek(4)[:4]
            if form == "pcap" or (form == "auto" and head.startswith(_CAPTURES)):
                pass
            elif not head:
                raise ConfigError(f"{name}: is empty: expected a trace")
            else:
                lines = _lines(file, name)
                if form == "auto":
                    lines, form = _recognised(lines, name)
                return _mahimahi(lines, name) if form == "mahimahi" else _rates(lines, name)
        return _arrivals(name, every, keep)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None


# -- text ------------------------------------------------------------------------------------------


def _error(name: str, line: int, text: str) -> ConfigError:
    return ConfigError(f"{name}:{line}: {text}")


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, lines) of each part of a file. The last line may lack its end."""
    rest, number = b"", 1
    while True:
        part = file.read(_CHUNK)
        lines = (rest + part).split(b"\n")
        rest = lines.pop()
        # What is read on has no line as long as this, so `rest` stays short.
        if len(rest) > _LINE_MOST:
            raise _error(
                name, number + len(lines), f"a line is longer than {_LINE_MOST} bytes: {_not(rest)}"
            )
        if not part and rest:
            lines.append(rest)
        if lines:
            yield number, lines
        number += len(lines)
        if not part:
            return


def _not(line: bytes) -> str:
    """What a line is that is none of a trace."""
    if not line.strip():
        return "an empty line: remove it"
    text = line[:12].decode("latin-1").strip()
    return f"{shown(text)}{'...' if len(line) > 12 else ''} is no line of a trace"


def _recognised(
    lines: Iterator[tuple[int, list[bytes]]], name: str
) -> tuple[Iterator[tuple[int, list[bytes]]], Format]:
    """The lines again, and their format by the number of columns in the first one."""
    first = next(lines)
    columns = len(first[1][0].split())  # there is a line, since the file is not empty

    def again() -> Iterator[tuple[int, list[bytes]]]:
        yield first
        yield from lines

    if columns == 1:
        return again(), "mahimahi"
    if columns == 2:
        return again(), "seconds-mbit"
    raise _error(
        name,
        1,
        f"{_not(first[1][0])}: expected milliseconds (mahimahi), seconds and Mbit/s "
        "(seconds-mbit), or a capture",
    )


def _mahimahi(parts: Iterable[tuple[int, list[bytes]]], name: str) -> OpportunityTrace:
    found: list[NDArray[np.int64]] = []
    last, count = 0, 0
    for number, lines in parts:
        count += len(lines)
        if count > OPPORTUNITIES_MOST:
            raise ConfigError(f"{name}: expected at most {OPPORTUNITIES_MOST} lines")
        times = _whole(lines, last)
        if times is None:
            times = _one_by_one(lines, number, last, name)
        last = int(times[-1])
        found.append(times)
    if not last:
        raise _error(name, count, "the last line is 0: the period needs a length, such as 1")
    return OpportunityTrace(np.concatenate(found))


def _whole(lines: list[bytes], last: int) -> NDArray[np.int64] | None:
    """The numbers of many lines at once; None: one of them is wrong, or unusual."""
    if max(map(len, lines)) > 10:
        return None
    digits = b"\n".join(lines)
    if digits.translate(None, b"0123456789\n"):
        return None
    try:
        times = np.array(list(map(int, lines)), dtype=np.int64)
    except ValueError:  # an empty line
        return None
    if times[0] < last or times[-1] > _MS_MOST or (times[1:] < times[:-1]).any():
        return None
    return times


def _one_by_one(lines: list[bytes], number: int, last: int, name: str) -> NDArray[np.int64]:
    """As `_whole`; raises ConfigError for the first wrong line."""
    times = []
    for place, line in enumerate(lines, number):
        text = line.strip()
        if not _DIGITS.fullmatch(text):
            hint = "expected a whole number of milliseconds, such as 12"
            if len(text.split()) == 2:
                hint += "; two numbers a line are the format seconds-mbit"
            elif _NUMBER.fullmatch(text):
                many = len(re.sub(rb"\D", b"", text)) > 20
                hint = f"{_large() if many else hint}"
            raise _error(name, place, f"{_not(line)}: {hint}")
        value = int(text)
        if value > _MS_MOST:
            raise _error(name, place, f"{value} ms: {_large()}")
        if value < last:
            raise _error(
                name, place, f"{value} ms, after {last} ms in a line before: put the lines in order"
            )
        times.append(value)
        last = value
    return np.array(times, dtype=np.int64)


def _large() -> str:
    return f"expected at most {_MS_MOST} (24h)"


def _rates(parts: Iterable[tuple[int, list[bytes]]], name: str) -> RateTrace:
    steps: list[tuple[int, int]] = []
    begin: int | None = None
    end, place = 0, 0
    for number, lines in parts:
        for place, line in enumerate(lines, number):
            if place > STEPS_MOST + 1:
                raise ConfigError(f"{name}: expected at most {STEPS_MOST + 1} lines")
            time_ns, rate = _seconds_mbit(line, place, name)
            if begin is None:
                begin = end = time_ns
            if time_ns < end:
                raise _error(
                    name,
                    place,
                    f"{time_ns / 1e9:.9g} s, after {end / 1e9:.9g} s in the line before: "
                    "put the lines in order",
                )
            if place > 1:
                steps.append((time_ns - begin, rate))
            end = time_ns
    if not steps:
        raise _error(name, place, "a single line: expected the begin, then the end of each rate")
    if not steps[-1][0]:
        raise _error(name, place, "all lines have the same time: the period needs a length")
    if not any(rate for _, rate in steps):
        raise ConfigError(f"{name}: no rate above 0")
    return RateTrace(steps)


def _seconds_mbit(line: bytes, place: int, name: str) -> tuple[int, int]:
    """(ns, bit/s) of a line."""
    words = line.split()
    if len(words) != 2 or not all(map(_NUMBER.fullmatch, words)):
        raise _error(name, place, f"{_not(line)}: expected seconds and Mbit/s, such as 1.5 12.25")
    seconds, mbit = (Decimal(word.decode()) for word in words)
    # As decimals, whose comparison does not expand an exponent.
    if not 0 <= seconds <= PERIOD_MOST_NS // SECOND:
        raise _error(name, place, f"{words[0].decode()} s: expected 0 to 86400 (24h)")
    if not 0 <= mbit <= RATE_MOST_BPS // 10**6:
        raise _error(name, place, f"{words[1].decode()} Mbit/s: expected 0 to 10000000 (10tbit)")
    return round(seconds * SECOND), round(mbit * 10**6)


# -- captures --------------------------------------------------------------------------------------


def _arrivals(name: str, every: int | None, keep: Keep | None) -> OpportunityTrace:
    try:
        reader = CaptureReader(name)
    except CaptureError as error:
        raise ConfigError(str(error)) from None
    times: list[int] = []
    first: int | None = None
    owed = 0
    try:
        for time_ns, data, original, _ in reader:
            if keep is not None and not keep(data):
                continue
            first = time_ns if first is None else first
            # A capture of several interfaces need not be in order.
            at = max((time_ns - first) // MS, times[-1] if times else 0)
            owed += original if every is not None else 0
            if at > _MS_MOST:
                raise ConfigError(
                    f"{name}: is longer than 24h: expected a part of it (Wireshark's editcap -A "
                    "and -B cut one out)"
                )
            count, owed = (1, 0) if every is None else divmod(owed, every)
            times += [at] * count
            if len(times) > OPPORTUNITIES_MOST:
                raise ConfigError(f"{name}: more than {OPPORTUNITIES_MOST} opportunities")
        if reader.error is not None:
            raise ConfigError(reader.error)
    finally:
        reader.close()
    if not times:
        raise ConfigError(f"{name}: no packets{'' if keep is None else ' of this direction'}")
    if not times[-1]:
        raise ConfigError(f"{name}: all packets are within 1 ms: the period needs a length")
    try:
        return OpportunityTrace(times)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


# -- conversion and writing ------------------------------------------------------------------------


def opportunities_of(trace: Trace, every: int = OPPORTUNITY_BYTES) -> OpportunityTrace:
    """A trace as opportunities: one as soon as `every` bytes could have been sent, rounded up to
    milliseconds. The last one is put at the end of the period. Raises ConfigError."""
    if isinstance(trace, OpportunityTrace):
        return trace
    assert isinstance(trace, RateTrace)
    need = every * 8 * SECOND  # bits x 10^9
    times: list[int] = []
    owed = before = 0
    for end, rate in trace.steps:
        count = (owed + rate * (end - before)) // need
        if len(times) + count > OPPORTUNITIES_MOST:
            raise ConfigError(
                f"more than {OPPORTUNITIES_MOST} opportunities of {every} bytes: give a larger size"
            )
        times += [
            -(-(before * rate + need * number - owed) // (rate * MS))
            for number in range(1, count + 1)
        ]
        owed += rate * (end - before) - count * need
        before = end
    if not times:
        raise ConfigError(f"the trace sends less than {every} bytes: give a smaller size")
    times[-1] = -(-trace.duration_ns // MS)
    return OpportunityTrace(times)


def mahimahi_text(trace: OpportunityTrace) -> bytes:
    """A trace as a file of Mahimahi."""
    return ("\n".join(map(str, trace.times_ms.tolist())) + "\n").encode()


def seconds_mbit_text(trace: Trace) -> bytes:
    """A trace as a file of the format seconds-mbit; of opportunities the rate of each second."""
    if isinstance(trace, RateTrace):
        steps = [(end / SECOND, rate / 1e6) for end, rate in trace.steps]
    else:
        rates = trace.bits_each_second()
        ends = [min((second + 1) * SECOND, trace.duration_ns) for second in range(len(rates))]
        steps = [(end / SECOND, rate / 1e6) for end, rate in zip(ends, rates, strict=True)]
    lines = [(0.0, steps[0][1]), *steps]
    return "".join(f"{end:.9g} {mbit:.9g}\n" for end, mbit in lines).encode()

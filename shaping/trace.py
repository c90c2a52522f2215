"""Traces: the course of a line's rate, as data. Files are read and written by trace_files.py; a
TraceLink plays a trace.

A trace also has a packed form, one line of text for a configuration or a message. It is compressed,
about 0.3 bytes an opportunity: the public traces of Mahimahi take 13 to 174 KB.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import zlib
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar, Literal
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from dataplane.errors import ConfigError
from dataplane.units import RATE_MOST_BPS
from shaping.schedule import Opportunities, RateSteps, Schedule

MS, SECOND = 10**6, 10**9
OPPORTUNITY_BYTES = 1504  # as in schedule.pxd
# Bounds on what a file or a client can make a process hold: an array of 16 MB, 24 hours. The
# longest public trace has a million opportunities, and 17 minutes.
OPPORTUNITIES_MOST, STEPS_MOST = 4_000_000, 100_000
PERIOD_MOST_NS = 24 * 3600 * SECOND
PACKED_MOST = 8 << 20  # characters
_LONG = 255  # a byte of a gap that goes on in the next one

_schedules: WeakValueDictionary[str, Schedule] = WeakValueDictionary()


class Trace:
    """The course of a rate over a period. Base of OpportunityTrace and RateTrace."""

    KIND: ClassVar[str]
    ENTRY_BYTES: ClassVar[int]  # of memory, about
    duration_ns: int
    entries: int  # opportunities, or steps

    def _content(self) -> bytes:
        raise NotImplementedError

    def _packed(self) -> bytes:
        raise NotImplementedError

    def _make_schedule(self) -> Schedule:
        raise NotImplementedError

    def bits_each_second(self) -> NDArray[np.float64]:
        """The rate in bit/s of each second; the last one may be a part of a second."""
        raise NotImplementedError

    @cached_property
    def mean_bps(self) -> int:
        """The mean rate, at least 1; of opportunities, as if each was used."""
        raise NotImplementedError

    @cached_property
    def longest_outage_ns(self) -> int:
        """The longest time between two opportunities, or without a rate; at the end of the period
        the trace begins again."""
        raise NotImplementedError

    def _longest_wait_ns(self, length: int) -> int:
        raise NotImplementedError

    @cached_property
    def _waits(self) -> dict[int, int]:
        return {}

    def longest_wait_ns(self, length: int) -> int:
        """The longest time that the line needs for `length` bytes, wherever in the period they
        begin; the trace loops."""
        if length not in self._waits:  # many lines have the same trace and queue
            self._waits[length] = self._longest_wait_ns(length)
        return self._waits[length]

    @cached_property
    def busiest_bps(self) -> int:
        """The rate of the busiest second."""
        return math.ceil(float(self.bits_each_second().max()))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal digits."""
        return hashlib.sha256(self.KIND.encode() + b"\n" + self._content()).hexdigest()

    @cached_property
    def packed(self) -> str:
        """The packed form, which `unpack` reads. Raises ConfigError where it is too long."""
        data = base64.b64encode(zlib.compress(self._packed())).decode()
        if len(data) > PACKED_MOST:
            raise ConfigError(f"a trace of {len(data)} bytes: expected at most {PACKED_MOST}")
        return f"{self.KIND}:{data}"

    def schedule(self) -> Schedule:
        """What a TraceLink plays: one for all users of the same content."""
        found = _schedules.get(self.digest)
        if found is None:
            found = self._make_schedule()
            _schedules[self.digest] = found
        return found


class OpportunityTrace(Trace):
    """Opportunities of 1504 bytes, as in Mahimahi's traces; the last one ends the period.

    times_ms: in order, at most 24 hours, the last one not 0. Raises ConfigError.
    """

    KIND = "opportunities"
    ENTRY_BYTES = 4

    def __init__(self, times_ms: Iterable[int] | NDArray[np.integer]) -> None:
        given = np.asarray(times_ms if hasattr(times_ms, "__len__") else list(times_ms))
        if given.ndim != 1 or not given.size or not np.issubdtype(given.dtype, np.integer):
            raise ConfigError("no opportunities: expected whole milliseconds")
        if given.size > OPPORTUNITIES_MOST:
            raise ConfigError(f"{given.size} opportunities: expected at most {OPPORTUNITIES_MOST}")
        if given.min() < 0 or given.max() > PERIOD_MOST_NS // MS or (given[1:] < given[:-1]).any():
            raise ConfigError("opportunities are not in order, or later than 24h")
        if not given[-1]:
            raise ConfigError("the last opportunity is at 0 ms, so that the period has no length")
        self.times_ms: NDArray[np.uint32] = np.ascontiguousarray(given, dtype=np.uint32)
        self.times_ms.flags.writeable = False
        self.duration_ns = int(self.times_ms[-1]) * MS
        self.entries = self.times_ms.size

    def _content(self) -> bytes:
        return self.times_ms.astype("<u4").tobytes()

    def _packed(self) -> bytes:
        """Each opportunity's time since the one before as bytes: 255 for each whole 255 ms, then
        the rest."""
        gaps: NDArray[np.int64] = np.diff(self.times_ms, prepend=np.int64(0))
        ends = np.cumsum(gaps // _LONG + 1) - 1
        packed = np.full(int(ends[-1]) + 1, _LONG, dtype=np.uint8)
        packed[ends] = gaps % _LONG
        return packed.tobytes()

    def _make_schedule(self) -> Schedule:
        return Opportunities(self.digest, self.times_ms)

    def bits_each_second(self) -> NDArray[np.float64]:
        # Second k is (k, k + 1], so that the last opportunity counts in a second with a length.
        seconds = (np.maximum(self.times_ms.astype(np.int64), 1) - 1) // 1000
        bits = np.bincount(seconds).astype(np.float64) * OPPORTUNITY_BYTES * 8
        return _scaled(bits, self.duration_ns)

    @cached_property
    def mean_bps(self) -> int:
        return max(self.times_ms.size * OPPORTUNITY_BYTES * 8 * SECOND // self.duration_ns, 1)

    @cached_property
    def longest_outage_ns(self) -> int:
        return int(np.diff(self.times_ms.astype(np.int64), prepend=0).max()) * MS

    def _longest_wait_ns(self, length: int) -> int:
        count = self.times_ms.size
        rounds, more = divmod(max(-(-length // OPPORTUNITY_BYTES), 1), count)
        times = self.times_ms.astype(np.int64)
        twice = np.concatenate([times, times + times[-1]])
        # from right behind one opportunity until the last that is needed
        waits = twice[more : more + count] - times if more else np.zeros(1, dtype=np.int64)
        return (int(waits.max()) + rounds * int(times[-1])) * MS


class RateTrace(Trace):
    """Rates that each hold until a time.

    steps: (end of the step in ns since the begin, bit/s), in order, at most 24 hours; not all rates
    are 0. Steps without a length are left out. Raises ConfigError.
    """

    KIND = "rates"
    ENTRY_BYTES = 160

    def __init__(self, steps: Iterable[tuple[int, int]]) -> None:
        ends: list[int] = []
        rates: list[int] = []
        before = 0
        for end, rate in steps:
            if not before <= end <= PERIOD_MOST_NS:
                raise ConfigError("steps are not in order, or last longer than 24h")
            if not 0 <= rate <= RATE_MOST_BPS:
                raise ConfigError(f"a rate of {rate} bit/s: expected 0 to 10tbit")
            if end == before:
                continue
            if rates and rates[-1] == rate:
                ends[-1] = end
            else:
                ends.append(end)
                rates.append(rate)
            before = end
        if len(ends) > STEPS_MOST:
            raise ConfigError(f"{len(ends)} steps: expected at most {STEPS_MOST}")
        if not any(rates):
            raise ConfigError("no rates above 0")
        self.steps = list(zip(ends, rates, strict=True))
        self.duration_ns, self.entries = before, len(ends)

    def _arrays(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        ends, rates = zip(*self.steps, strict=True)
        return np.array(ends, dtype=np.uint64), np.array(rates, dtype=np.uint64)

    def _content(self) -> bytes:
        return b"".join(array.astype("<u8").tobytes() for array in self._arrays())

    def _packed(self) -> bytes:
        return self._content()

    def _make_schedule(self) -> Schedule:
        return RateSteps(self.digest, *self._arrays())

    def _sent(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(times in ns, bits sent until then) at the begin and at the end of each step."""
        ends, rates = (array.astype(np.float64) for array in self._arrays())
        lengths = np.diff(ends, prepend=0.0)
        zero, bits = np.zeros(1), np.cumsum(lengths * rates / 1e9)
        return np.concatenate([zero, ends]), np.concatenate([zero, bits])

    def bits_each_second(self) -> NDArray[np.float64]:
        seconds = np.arange(-(-self.duration_ns // SECOND) + 1) * 1e9
        bits = np.diff(np.interp(seconds, *self._sent()))
        return _scaled(bits, self.duration_ns)

    @cached_property
    def mean_bps(self) -> int:
        before, bits = 0, 0
        for end, rate in self.steps:
            bits, before = bits + (end - before) * rate, end
        return max(bits // self.duration_ns, 1)

    @cached_property
    def longest_outage_ns(self) -> int:
        first = self.steps[0][0] if not self.steps[0][1] else 0
        longest, before = 0, 0
        for number, (end, rate) in enumerate(self.steps):
            if not rate:
                again = first if number == len(self.steps) - 1 else 0
                longest = max(longest, end - before + again)
            before = end
        return longest

    def _longest_wait_ns(self, length: int) -> int:
        times, sent = self._sent()
        rounds, bits = divmod(length * 8, float(sent[-1]))
        times = np.concatenate([times, times[1:] + times[-1]])
        sent = np.concatenate([sent, sent[1:] + sent[-1]])
        half = times.size // 2
        # The longest wait begins or ends where a rate changes: between such instants its length is
        # a linear function of its begin. Where bits end with an outage's begin, those that begin a
        # little later wait for its end.
        begins = np.concatenate([times[:half], _when(times, sent, sent[half:] - bits, "left")])
        begins %= times[half]
        ends = _when(times, sent, np.interp(begins, times, sent) + bits, "right")
        waits = ends - begins
        return int(waits.max()) + int(rounds) * self.duration_ns


def _when(
    times: NDArray[np.float64],
    sent: NDArray[np.float64],
    bits: NDArray[np.float64],
    side: Literal["left", "right"],
) -> NDArray[np.float64]:
    """The first (left) or last (right) instants at which so many bits have been sent."""
    after = np.clip(np.searchsorted(sent, bits, side=side), 1, sent.size - 1)
    span = sent[after] - sent[after - 1]
    share = np.divide(bits - sent[after - 1], span, out=np.zeros_like(span), where=span > 0)
    found: NDArray[np.float64] = times[after - 1] + share * (times[after] - times[after - 1])
    return found


def _scaled(bits: NDArray[np.float64], duration_ns: int) -> NDArray[np.float64]:
    """Bits of each second as bit/s: the last second may be a part of one."""
    if part := duration_ns % SECOND:
        bits[-1] *= SECOND / part
    return bits


def unpack(text: str) -> Trace:
    """A trace from its packed form. Raises ConfigError."""
    kind, _, data = text.partition(":")
    if len(text) > PACKED_MOST + 32:
        raise ConfigError(f"a packed trace of {len(text)} characters: at most {PACKED_MOST}")
    # Opportunities one byte each and one for each 255 ms of 24 hours; steps 16 bytes.
    most = max(OPPORTUNITIES_MOST + PERIOD_MOST_NS // MS // _LONG, 16 * STEPS_MOST)
    try:
        reader = zlib.decompressobj()
        packed = reader.decompress(base64.b64decode(data, validate=True), most)
        if not reader.eof or reader.unused_data:
            raise ConfigError("the packed trace is cut off or too long")
    except (binascii.Error, ValueError, zlib.error):
        raise ConfigError("the packed trace is damaged") from None
    trace: Trace
    if kind == OpportunityTrace.KIND:
        gaps = np.frombuffer(packed, dtype=np.uint8)
        trace = OpportunityTrace(np.cumsum(gaps, dtype=np.int64)[gaps != _LONG])
    elif kind == RateTrace.KIND and packed and len(packed) % 16 == 0:
        ends, rates = np.frombuffer(packed, dtype="<u8").reshape(2, -1).tolist()
        trace = RateTrace(zip(ends, rates, strict=True))
    else:
        raise ConfigError("the packed trace is of an unknown kind")
    trace.packed = text  # to pack it again takes a hundred times as long
    return trace

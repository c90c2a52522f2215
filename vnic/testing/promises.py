"""Compares what was measured with what a policy promises. A check raises AssertionError with what
was asked for, what was measured, the bound, and why it was not kept."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

from dataplane.errors import ConfigError
from dataplane.units import format_time
from shaping.loss_model import chain_of
from shaping.overhead import Overhead, overhead_of
from shaping.policy.figures import time_text
from shaping.policy.scalars import LineRate, Share
from vnic.testing.frames import in_unit_of, nanoseconds
from vnic.testing.measure import Measured, Sample

LIVE_RATE, LIVE_DELAY_NS = Share("1%"), 2_000_000
SILENCE = Fraction(1, 20)  # of the time: a pause that is worth naming


def check_rate(
    measured: Measured,
    rate: str,
    *,
    within: str | int | None,
    window: str | int | None,
    after: str | int,
    overhead: str | dict[str, Any],
    live: bool,
    hints: list[str],
) -> None:
    """See AnyNetwork.assert_rate. hints: what else may be the reason, a line each."""
    __tracebackhide__ = True
    asked = _rate(rate)
    bound = (LIVE_RATE if live else Share(0)) if within is None else Share.parse(within)
    line = _Line(measured, overhead_of("assert_rate", overhead), nanoseconds(after))
    if line.took_ns <= 0:
        raise AssertionError(
            f"{measured.place}: rate: asked {rate}, not measured: {_arrivals(measured)}; a rate "
            f"needs two that arrive at different times, {format_time(nanoseconds(after))} after "
            "the first or later" + _why(hints)
        )
    # Each instant is a whole nanosecond, the first at which the packet may leave, so the time
    # between two of them is exact to one nanosecond.
    for bits in {line.bits_after_first, line.bits_before_last}:
        if _time(bits, asked, bound, -1) < line.took_ns < _time(bits, asked, -bound, 1):
            break
    else:
        found = line.bits_after_first * 10**9 / line.took_ns
        raise AssertionError(
            f"{measured.place}: rate: asked {rate}, measured {_rate_text(found)} "
            f"({100 * (found / asked - 1):+.3g}%) over {time_text(line.took_ns)}, bound "
            f"{_range(asked, bound)}" + _why([*line.reasons(asked, found), *hints])
        )
    if window is not None:
        _check_windows(line, asked, rate, bound, nanoseconds(window), hints)


def _check_windows(
    line: _Line, asked: int, rate: str, bound: Fraction, window_ns: int, hints: list[str]
) -> None:
    __tracebackhide__ = True
    if not 0 < window_ns <= line.took_ns:
        raise ConfigError(
            f"assert_rate: window {format_time(max(window_ns, 0))}: packets came for "
            f"{format_time(line.took_ns)}: expected less than that"
        )
    # Packets are whole: a window has up to one more, or less, than the rate's bits.
    whole = Fraction(asked * window_ns, 10**9)
    least, most = whole * (1 - bound) - line.longest_bits, whole * (1 + bound) + line.longest_bits
    for start_ns, bits in line.windows(window_ns):
        if not least <= bits <= most:
            found = bits * 10**9 / window_ns
            raise AssertionError(
                f"{line.measured.place}: rate: asked {rate}, measured {_rate_text(found)} in the "
                f"{format_time(window_ns)} from {time_text(start_ns)} on, bound "
                f"{_range(asked, bound)} and one packet"
                + _why([*line.reasons(asked, found), *hints])
            )


def check_delay(
    measured: Measured,
    *,
    asked: dict[str, str | int | None],
    within: str | int | None,
    live: bool,
    hints: list[str],
) -> None:
    """See AnyNetwork.assert_delay. asked: by mean, p50, p99 and most."""
    __tracebackhide__ = True
    wanted = {name: nanoseconds(each) for name, each in asked.items() if each is not None}
    if not wanted:
        raise ConfigError("assert_delay: nothing to compare: expected mean, p50, p99 or most")
    bound = (LIVE_DELAY_NS if live else 0) if within is None else nanoseconds(within)
    if measured.alike:
        raise ConfigError(
            f"assert_delay: {measured.place}: {measured.alike} packets have the bytes of others "
            "and not all of them arrived once, so that a late one cannot be told from a lost one: "
            "number them"
        )
    delays = sorted(measured.delays_ns)
    if not delays:
        raise AssertionError(
            f"{measured.place}: delay: not measured: {_arrivals(measured)}" + _why(hints)
        )
    figures = {
        "mean": Fraction(sum(delays), len(delays)),
        "p50": Fraction(_quantile(delays, 50)),
        "p99": Fraction(_quantile(delays, 99)),
        "most": Fraction(delays[-1]),
    }
    for name, time_ns in wanted.items():
        found = figures[name]
        if found > time_ns + bound or (name != "most" and found < time_ns - bound):
            least = "" if name == "most" else f"{in_unit_of(max(time_ns - bound, 0), time_ns)} to "
            raise AssertionError(
                f"{measured.place}: delay: asked {name} {format_time(time_ns)}, measured "
                f"{in_unit_of(round(found), time_ns)} of {len(delays)} packets "
                f"({in_unit_of(delays[0], time_ns)} to {in_unit_of(delays[-1], time_ns)}), bound "
                f"{least}{in_unit_of(time_ns + bound, time_ns)}"
                + _why([*_spread(delays, name), *hints])
            )


def check_loss(measured: Measured, share: Any, *, confidence: float, hints: list[str]) -> None:
    """See AnyNetwork.assert_loss."""
    __tracebackhide__ = True
    from shaping.loss_bounds import loss_bounds

    if not 0.5 <= confidence < 1:
        raise ConfigError(
            f"assert_loss: confidence {confidence}: expected a number from 0.5 and below 1, such "
            "as 0.999999"
        )
    chain = chain_of("assert_loss", share)
    sent, lost = len(measured.packets), len(measured.lost)
    if not sent:
        raise AssertionError(
            f"{measured.place}: loss: not measured: {_arrivals(measured)}" + _why(hints)
        )
    least, most = loss_bounds(chain, sent, confidence)
    if not least <= lost <= most:
        asked = 0.0 if chain is None else chain.share
        raise AssertionError(
            f"{measured.place}: loss: asked {100 * asked:.4g}%, measured {100 * lost / sent:.4g}% "
            f"({lost} of {sent} packets), bound {least} to {most} packets "
            f"({100 * confidence:.10g}% of all cases)" + _why([*_counts(measured), *hints])
        )


class _Line:
    """The packets that arrived, as bits on a line with an overhead."""

    def __init__(self, measured: Measured, overhead: Overhead, after_ns: int) -> None:
        self.measured = measured
        arrived = measured.arrived
        begin = (arrived[0].received_ns or 0) + after_ns if arrived else 0
        self.arrived: list[Sample] = [each for each in arrived if (each.received_ns or 0) >= begin]
        self.times = [each.received_ns or 0 for each in self.arrived]
        self.bits = [8 * overhead.on_line(len(each.data)) for each in self.arrived]
        self.took_ns = self.times[-1] - self.times[0] if self.times else 0
        self.longest_bits = max(self.bits, default=0)

    @property
    def bits_after_first(self) -> int:
        """Of a line whose packets leave when their last bit has been sent."""
        return sum(self.bits[bisect_right(self.times, self.times[0]) :])

    @property
    def bits_before_last(self) -> int:
        """Of a rate limit whose packets leave when their first bit is sent."""
        return sum(
            bits for bits, time in zip(self.bits, self.times, strict=True) if time < self.times[-1]
        )

    def windows(self, window_ns: int) -> Iterator[tuple[int, int]]:
        """(begin, bits) of each window that begins behind a packet and ends before the last."""
        sums = [0]
        for bits in self.bits:
            sums.append(sums[-1] + bits)
        for start_ns in self.times:
            end_ns = start_ns + window_ns
            if end_ns > self.times[-1]:
                break
            first, last = (bisect_right(self.times, each) for each in (start_ns, end_ns))
            yield start_ns, sums[last] - sums[first]

    def reasons(self, asked: int, found: float) -> list[str]:
        """Why it was too slow."""
        if found > asked:
            return []
        reasons = []
        sent = [each.sent_ns for each in self.measured.packets]
        offered_ns = sent[-1] - sent[0]
        offered = sum(8 * len(each.data) for each in self.measured.packets[1:])
        if offered_ns and offered * 10**9 < asked * offered_ns:
            reasons.append(
                f"the senders sent only {_rate_text(offered * 10**9 / offered_ns)}: send more"
            )
        pause_ns, begin_ns = max(((b - a, a) for a, b in pairwise(self.times)), default=(0, 0))
        if pause_ns > self.took_ns * SILENCE:
            reasons.append(f"nothing came for {time_text(pause_ns)} from {time_text(begin_ns)} on")
        return reasons


def _rate(text: str) -> int:
    try:
        rate = LineRate.parse(text)
    except ConfigError as error:
        raise ConfigError(f"assert_rate: {error}") from None
    if not rate:
        raise ConfigError(f"assert_rate: rate {text}: expected a rate such as 10mbit")
    return rate


def _time(bits: int, rate: int, bound: Fraction, rounded_ns: int) -> Fraction:
    """The time that bits take at a rate that differs by a share."""
    if bound <= -1:
        return Fraction(2**63)
    return bits * 10**9 / (rate * (1 + bound)) + rounded_ns


def _rate_text(bps: float | Fraction) -> str:
    """A measured rate, in six digits."""
    for factor, unit in ((1e9, "gbit"), (1e6, "mbit"), (1e3, "kbit")):
        if bps >= factor:
            return f"{bps / factor:.6g}{unit}"
    return f"{bps:.6g}bit"


def _range(asked: int, bound: Fraction) -> str:
    if not bound:
        return "exact"
    return f"{_rate_text(asked * (1 - bound))} to {_rate_text(asked * (1 + bound))}"


def _quantile(values: list[int], percent: int) -> int:
    """The smallest of sorted values that `percent` of all do not exceed."""
    return values[-(-len(values) * percent // 100) - 1]


def _spread(delays: list[int], name: str) -> list[str]:
    """How uncertain the mean of delays that vary is."""
    if name != "mean" or len(delays) < 2 or delays[0] == delays[-1]:
        return []
    mean = sum(delays) / len(delays)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in delays) / (len(delays) - 1))
    uncertain = time_text(4.9 * deviation / math.sqrt(len(delays)))
    return [
        f"the delays vary: the mean of {len(delays)} that are independent is uncertain by "
        f"{uncertain} (99.9999%)"
    ]


def _arrivals(measured: Measured) -> str:
    if not measured.packets:
        return "no packet was sent there: a packet is for the NIC with its destination MAC address"
    return f"{len(measured.packets)} packets were sent, {len(measured.arrived)} arrived"


def _counts(measured: Measured) -> list[str]:
    found = []
    if measured.duplicates:
        found.append(f"{measured.duplicates} packets arrived more than once")
    if measured.unknown:
        found.append(
            f"{measured.unknown} received frames are none of those sent: a packet that is changed "
            "counts as lost"
        )
    return found


def _why(reasons: list[str]) -> str:
    return "".join(f"\n  {each}" for each in reasons)

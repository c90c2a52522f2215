"""Each promise of the running policy, what was measured of it, and whether it is kept: from what
the instance has recorded since the line or class got its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dataplane.errors import ConfigError
from dataplane.units import format_rate, format_time
from shaping.class_settings import ClassSetting
from shaping.loss_bounds import loss_bounds
from shaping.policy.compile import FRAME_BYTES
from shaping.policy.kept import EXACT_NS, QUANTUM_NS, AskedShare, mean_margin, shares_of
from shaping.policy.places import Line
from vnic.cli.common import about, plural

if TYPE_CHECKING:
    from vnic.api.client import Client

# By which a busy machine delays a sample, or an engine, which then makes up for it.
LATE_S = 0.1
WINDOW_S = 1.0  # in which a rate is judged, besides all the time
BUSY_S = 1.0  # a queue that is never empty for so long shows what its rate is
SLOW = 0.01  # of the rate: what may be missing then
RECORD_MS, SAMPLE_MS = 60_000, 100
VARYING = {"trace": "rate", "order": "delay"}  # settings on which promises depend
AT_ONCE = 64  # series that are asked for: an answer has at most 100,000 numbers of a kind


@dataclass
class Promise:
    """kept: None: nothing was measured."""

    line: str
    promise: str
    asked: str
    measured: str = "-"
    kept: bool | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Measured:
    """What was recorded of a line or class since it got its settings: sums of the columns, and
    samples."""

    def __init__(self, series: dict[str, Any] | None, bounds: Sequence[float]) -> None:
        since = (series or {}).get("since", 0.0)
        # a sample that began before has counted by the settings before, too
        first = next((n for n, at in enumerate(bounds) if at >= since - 1e-3), len(bounds))
        self._series = series or {}
        self._first = first
        self.bounds = bounds[first:]

    @property
    def is_known(self) -> bool:
        return bool(self._series)

    @property
    def seconds(self) -> float:
        return self.bounds[-1] - self.bounds[0] if len(self.bounds) > 1 else 0.0

    def column(self, name: str) -> list[int]:
        found: list[int] = self._series.get(name, [])[self._first :]
        return found

    def sum(self, name: str) -> int:
        return sum(self.column(name))


def promises_of(
    client: Client, lines: Sequence[Line], classes: Mapping[str, ClassSetting] | None = None
) -> list[Promise]:
    """classes: by name, such as web.egress/gold. Raises VnicError."""
    classes = classes or {}
    of_classes = _recorded(client, list(classes), "class")
    of_lines = _recorded(client, [str(line.place) for line in lines], "line")
    found: list[Promise] = []
    for name, setting in classes.items():
        found += judged_class(name, setting, of_classes[name])
    for line in lines:
        found += judged(line, of_lines[str(line.place)])
    return found


def _recorded(client: Client, names: list[str], kind: str) -> dict[str, Measured]:
    """By name. Some are asked for at once, so that no answer is too long, and none is asked of an
    instance with a thousand lines a thousand times."""
    found = {name: Measured(None, []) for name in names}
    for at in range(0, len(names), AT_ONCE):
        asked = names[at : at + AT_ONCE]
        try:
            answer = client.call(
                "History", names=asked, last_ms=RECORD_MS, step_ms=SAMPLE_MS, alone=True
            )
        except ConfigError:  # a change is under way: some are there
            if len(asked) > 1:
                for name in asked:
                    found |= _recorded(client, [name], kind)
            continue
        bounds = [answer["begin"], *answer["times"]] if answer["times"] else []
        for each in answer["series"]:
            if (
                each["kind"] == kind and not found[each["name"]].is_known
            ):  # then those that are gone
                found[each["name"]] = Measured(each, bounds)
    return found


def judged(line: Line, measured: Measured) -> Iterator[Promise]:
    """The promises of one line. Of a setting that varies, what was recorded is said and not judged:
    samples do not tell which value packets had."""
    for number, promise in enumerate(_promises(line, measured)):
        setting = VARYING.get(promise.promise, promise.promise)
        if promise.kept is not None and (why := line.varies(setting)):
            promise.kept, promise.reason = None, why
        if number == 0 and (count := measured.sum("no_memory")):
            promise.kept = False
            promise.reason = (
                f"{plural(count, 'packet')} dropped for want of buffers: a larger pool: helps"
            )
        yield promise


def _promises(line: Line, measured: Measured) -> Iterator[Promise]:
    if line.rate:
        yield _rate(line, measured)
    if line.delay is not None:
        yield _delay(line, measured)
    for asked in shares_of(line):
        yield _share(line, measured, asked)
    if line.delay is not None and line.delay.jitter is not None:
        yield _order(line, measured)


def _asked(line: Line, setting: str) -> str:
    return str(line.settings[setting])


def judged_class(name: str, setting: ClassSetting, measured: Measured) -> Iterator[Promise]:
    """The promises of one class: its ceiling, and of one with a queue its guarantee. A class of
    classes need not have its guarantee where those in it are at their ceilings."""
    sent = measured.column("bytes")
    if setting.effective_bps:
        found = Promise(name, "ceiling", format_rate(setting.effective_bps))
        yield _judge_rate(found, measured, sent, setting.effective_bps, 0)
    if setting.guarantee_bps and setting.queue is not None:
        found = Promise(name, "guarantee", format_rate(setting.guarantee_bps))
        yield _judge_rate(found, measured, sent, 0, setting.guarantee_bps)


def _rate(line: Line, measured: Measured) -> Promise:
    setting = "rate" if line.trace is None else "trace"
    found = Promise(str(line.place), setting, _asked(line, setting))
    return _judge_rate(found, measured, measured.column("sent_bytes"), line.rate, line.rate)


def _judge_rate(
    found: Promise, measured: Measured, sent: list[int], most_bps: int, least_bps: int
) -> Promise:
    """most_bps: what is never exceeded; 0: anything. least_bps: what is sent while packets wait."""
    if not sum(sent) or measured.seconds <= 0:
        return _unmeasured(found, measured)
    longest = max(FRAME_BYTES * 2, max(most_bps, least_bps) / 8 * QUANTUM_NS / 1e9)
    found.measured = about(8 * sum(sent) / measured.seconds, "bit/s")
    found.kept, busy_s, bounds = True, 0.0, measured.bounds
    for begin, end in _busy(measured.column("queue_bytes")):
        took_s, run = bounds[end] - bounds[begin], sum(sent[begin:end])
        busy_s += took_s
        least = least_bps / 8 * (took_s - LATE_S) * (1 - SLOW) - longest
        if took_s >= BUSY_S and run < least:
            found.kept = False
            rate = about(8 * run / took_s, "bit/s")
            found.reason = f"packets waited for {took_s:.3g} s, and {rate} was sent"
    for begin, end in ((0, len(sent)), *_windows(bounds)):
        took_s, count = bounds[end] - bounds[begin], sum(sent[begin:end])
        if most_bps and count > most_bps / 8 * (took_s + LATE_S) + longest:
            found.kept = False
            found.reason = f"{about(8 * count / took_s, 'bit/s')} in {took_s:.3g} s"
    if found.kept:
        share = busy_s / measured.seconds
        found.reason = (
            f"packets waited {100 * share:.0f} % of the time"
            if share >= 0.005
            else "the sender sends less"
        )
    return found


def _windows(bounds: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Samples that follow each other for WINDOW_S or some more."""
    begin = 0
    for at, end in enumerate(bounds):
        if end - bounds[begin] >= WINDOW_S * 0.99:
            yield begin, at
            begin = at


def _busy(waiting: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of samples through which packets waited: at the end of each of them, and of the one
    before."""
    begin = None
    for at, count in enumerate([*waiting, 0]):
        if count and begin is None:
            begin = at + 1
        elif not count and begin is not None:
            if at > begin:
                yield begin, at
            begin = None


def _delay(line: Line, measured: Measured) -> Promise:
    delay = line.delay
    assert delay is not None
    found = Promise(str(line.place), "delay", _asked(line, "delay"))
    if line.rate and delay.jitter is None:
        found.kept = True if measured.sum("packets") else None
        found.reason = "each packet takes it behind the rate" if found.kept else "no packets yet"
        return found
    count = measured.sum("delay_packets")
    if not count:
        return _unmeasured(found, measured)
    mean = measured.sum("delay_ns") / count
    found.measured = f"{mean / 1e6:.4g} ms on average"
    found.reason = plural(count, "packet")
    if not delay.jitter:
        found.kept = abs(mean - int(delay.mean)) <= EXACT_NS
        return found
    uncertain, longer = mean_margin(delay, count)
    found.kept = mean >= int(delay.mean) - uncertain and (
        longer or mean <= int(delay.mean) + uncertain
    )
    if not found.kept:
        found.reason = f"expected {format_time(int(delay.mean))} within {uncertain / 1e6:.2g} ms"
    elif mean > int(delay.mean) + uncertain:
        found.reason += "; longer, as order and 0 as the least delay make it"
    return found


def _share(line: Line, measured: Measured, asked: AskedShare) -> Promise:
    found = Promise(str(line.place), asked.setting, _asked(line, asked.setting))
    packets, count = measured.sum("arrived"), measured.sum(asked.counter)
    if not packets:
        return _unmeasured(found, measured)
    found.measured = f"{100 * count / packets:.3g} %"
    found.reason = f"{count} of {plural(packets, 'packet')}"
    least, most = loss_bounds(asked.chain, packets)
    found.kept = count <= most and (not asked.exact or count >= least)
    if not found.kept:
        found.reason += f", expected {max(least, 0):.0f} to {min(most, packets):.0f}"
    return found


def _order(line: Line, measured: Measured) -> Promise:
    delay = line.delay
    assert delay is not None
    found = Promise(str(line.place), "order", "any" if delay.order == "any" else "keep")
    packets = measured.sum("delay_packets")
    if not packets:
        return _unmeasured(found, measured)
    found.kept = True
    late = measured.sum("reordered")
    found.measured = f"{late} overtaken" if delay.order != "any" else "-"
    found.reason = (
        "packets may overtake each other" if delay.order == "any"
        else "as reorder asks" if late else "each packet waits for those before it"
    )  # fmt: skip
    return found


def _unmeasured(found: Promise, measured: Measured) -> Promise:
    found.reason = "no packets yet" if measured.is_known else "nothing is recorded of it yet"
    return found

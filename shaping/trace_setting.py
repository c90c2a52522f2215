"""The arguments of a TraceLink as users write them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dataplane.config.convert import did_you_mean, shown
from dataplane.errors import ConfigError
from dataplane.units import RATE_LEAST_BPS, RATE_MOST_BPS, format_time, parse_rate, parse_time
from shaping.overhead import MAHIMAHI_BYTES
from shaping.settings import loop_of, packets_of, time_or_size_of
from shaping.trace import STEPS_MOST, OpportunityTrace, RateTrace, Trace, unpack

_KEYS = ("file", "loop", "steps", "digest", "data")
_STEP_KEYS = ("for", "at", "rate")


class TraceSetting(NamedTuple):
    """label: what people call the trace."""

    trace: Trace
    label: str
    loop: bool


def trace_setting(name: str, value: object) -> TraceSetting:
    """The argument `trace`: a Trace, steps, or a mapping with a packed trace or steps. Raises
    ConfigError."""
    if isinstance(value, Trace):
        return TraceSetting(value, value.digest[:12], True)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = {"steps": value}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name}: trace {shown(value)}: expected steps such as [{{for: 10s, rate: 5mbit}}], or "
            "a trace that shaping.trace_files.read_trace has read"
        )
    for key in value:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise ConfigError(f"{name}: trace: unknown key {shown(key)}; {hint}")
    file = value.get("file")
    if file is not None and not isinstance(file, str):
        raise ConfigError(f"{name}: trace: file {shown(file)}: expected a path")
    try:
        loop = loop_of(value.get("loop", True))
        if "steps" in value:
            if len(value.keys() - {"steps", "loop"}):
                raise ConfigError("has steps and a file: expected one of them")
            return TraceSetting(trace_of_steps(value["steps"], loop), "steps", loop)
        if not isinstance(value.get("data"), str):
            raise ConfigError(
                f"{shown(file)} has not been read: a file is read where a configuration or policy "
                "is loaded; in Python use shaping.trace_files.read_trace"
            )
        trace = unpack(value["data"])
        if value.get("digest", trace.digest) != trace.digest:
            raise ConfigError("its data is of another trace than its digest")
        return TraceSetting(trace, file or trace.digest[:12], loop)
    except ConfigError as error:
        raise ConfigError(f"{name}: trace: {error}") from None


def trace_of_steps(steps: object, loop: bool) -> RateTrace:
    """The trace of steps: [{for: TIME, rate: RATE}, ...] or [{at: TIME, rate: RATE}, ..., {at:
    TIME}], the last one being the end. Raises ConfigError."""
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise ConfigError(f"steps {shown(steps)}: expected [{{for: 10s, rate: 5mbit}}, ...]")
    if len(steps) > STEPS_MOST:
        raise ConfigError(f"{len(steps)} steps: expected at most {STEPS_MOST}")
    first = steps[0]
    if isinstance(first, Mapping) and "at" in first:
        instants = [_step(step, number, "at") for number, step in enumerate(steps)]
        return RateTrace(_from_instants(instants, loop))
    found, end = [], 0
    for number, step in enumerate(steps):
        time_ns, rate = _step(step, number, "for")
        if rate is None:
            raise ConfigError(f"step {number + 1} has no rate: expected one such as 5mbit")
        if time_ns == 0:
            raise ConfigError(f"step {number + 1} is for 0s: expected a time such as 10s")
        end += time_ns
        found.append((end, rate))
    return RateTrace(found)


def _from_instants(steps: list[tuple[int, int | None]], loop: bool) -> list[tuple[int, int]]:
    if steps[0][0] != 0:
        raise ConfigError(f"step 1 is at {format_time(steps[0][0])}: expected the first at 0s")
    for number, (before, step) in enumerate(itertools.pairwise(steps), 2):
        if step[0] <= before[0]:
            raise ConfigError(
                f"step {number} is at {format_time(step[0])}, after one at "
                f"{format_time(before[0])}: expected times that increase"
            )
        if before[1] is None:
            raise ConfigError(f"step {number - 1} has no rate, and is not the end: give a rate")
    if steps[-1][1] is not None:
        if loop:
            raise ConfigError(
                "the last step has no end: add the end, such as {at: 30s}, or loop: no"
            )
        # Without a loop the last rate stays, so any end will do.
        steps = [*steps, (steps[-1][0] + 10**9, None)]
    if len(steps) == 1:
        raise ConfigError("step 1 has no rate: expected one such as 5mbit")
    return [(end, rate) for (_, rate), (end, _) in itertools.pairwise(steps) if rate is not None]


def _step(step: object, number: int, key: str) -> tuple[int, int | None]:
    """(time in ns, bit/s) of a step; None: it has no rate."""
    place = f"step {number + 1}"
    if not isinstance(step, Mapping):
        raise ConfigError(f"{place} {shown(step)}: expected {{{key}: 10s, rate: 5mbit}}")
    for each in step:
        if each not in _STEP_KEYS:
            raise ConfigError(
                f"{place}: unknown key {shown(each)}; {did_you_mean(str(each), _STEP_KEYS)}"
            )
    if key not in step or ("at" in step and "for" in step):
        raise ConfigError(f"{place}: expected {key}, as in {{{key}: 10s, rate: 5mbit}}")
    try:
        return parse_time(step[key]), None if "rate" not in step else _rate(step["rate"])
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _rate(value: Any) -> int:
    """The rate of a step; a bare 0 and none are refused: they could mean no limit, too."""
    if value in (0, "0", None) or (isinstance(value, str) and value.strip().lower() == "none"):
        raise ConfigError(
            f"rate {shown(value)} could mean no limit or nothing at all: write 0bit for nothing"
        )
    rate = parse_rate(value)
    if rate and not RATE_LEAST_BPS <= rate <= RATE_MOST_BPS:
        raise ConfigError(f"rate {value}: expected 1kbit to 10tbit, or 0bit")
    return rate


def overhead_for(trace: Trace) -> str | Mapping[str, Any]:
    """The overhead of a line that plays the trace, where none is given."""
    return {"bytes": MAHIMAHI_BYTES} if isinstance(trace, OpportunityTrace) else "none"


def queue_of(name: str, queue: Any) -> Any:
    """The queue, which is not a time. Raises ConfigError."""
    if packets_of(name, queue) is None and time_or_size_of(name, "queue", queue)[1] is None:
        raise ConfigError(
            f"{name}: queue {shown(queue)}: the rate varies, so a time is no bound: expected "
            "{packets: 1000} or a size such as 256kb"
        )
    return queue

"""Foretells what a policy will do: what it overrides, how long its queues get, what it needs of the
packet pool, which loss it means, and what TCP can reach.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataplane.errors import ConfigError
from shaping.policy.classes import ClassEntry, check_classes
from shaping.policy.compile import FRAME_BYTES, class_chain
from shaping.policy.figures import (
    arriving_rate,
    bdp_packets,
    percent_text,
    queue_ns,
    queue_packets,
    rate_text,
    time_text,
)
from shaping.policy.findings import Finding
from shaping.policy.forecast import REORDER_AS_LOSS, Forecast, forecasts, overtakes, route_notes
from shaping.policy.keys import ANY
from shaping.policy.load import Policy
from shaping.policy.network import Network
from shaping.policy.places import Line, Plan, plan_of, setting_text
from shaping.policy.presets import PRESETS
from shaping.policy.scenario import Scenario, meaning, scenario_of, step_name, wrong_trees
from shaping.policy.share_notes import share_notes

POOL_SMALL = 16384  # small buffers, by default
POOL_MOST = 1 << 20
SHARE_OF_POOL = 4  # a delay line or a queue may take a quarter
QUEUE_LONG_NS = 10**9
STEPS_FORETOLD = 100  # of a scenario: each is looked at with all lines that it changes


def check_policy(policy: Policy, network: Network, pool_small: int = POOL_SMALL) -> list[Finding]:
    """All findings, errors first, then warnings, then notes; of each kind in the order of the file.

    pool_small: the number of small buffers in the packet pool.
    """
    plan = plan_of(policy, network)
    scenario = scenario_of(policy, plan, network)
    found = [
        *plan.findings,
        *_names(policy, network),
        *_presets(policy),
        *share_notes(plan, policy),
    ]
    for line in plan.lines.values():
        found += [
            *_trace(line),
            *_queue(line, pool_small),
            *_delay(line, plan, pool_small),
            *_loss(line),
            *_reorder(line),
        ]
    for entry in policy.classes:
        found += _classes(entry, network)
    if scenario is not None:
        found += [*wrong_trees(scenario), *meaning(scenario), *_steps(scenario, plan, pool_small)]
    found += _whole_pool(plan, pool_small)
    found += route_notes(plan, policy, network)
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def foretell(policy: Policy, network: Network) -> list[Forecast]:
    """What one TCP connection reaches, and how long round trips take, as bounds: see Forecast."""
    return forecasts(plan_of(policy, network), policy, network)


def _classes(entry: ClassEntry, network: Network) -> Iterator[Finding]:
    try:
        if network.lacks(class_chain(entry, network).owner):
            return
    except ConfigError as error:
        yield Finding("error", entry.where, str(error))
        return
    yield from check_classes(entry, network)


def _steps(scenario: Scenario, plan: Plan, pool_small: int) -> Iterator[Finding]:
    """What is wrong with what lines become."""
    said: set[str] = set()
    for step in scenario.steps[:STEPS_FORETOLD]:
        for line in scenario.lines_at(step.at_ns + step.lasts_ns) if step.entries else []:
            for each in (*_queue(line, pool_small), *_delay(line, plan, pool_small)):
                if each.kind != "note" and each.text not in said:
                    said.add(each.text)
                    yield Finding(each.kind, step.where, f"{step_name(step)}: {each.text}")


# -- lines -----------------------------------------------------------------------------------------


def _names(policy: Policy, network: Network) -> Iterator[Finding]:
    if ANY in network.nics:
        where = policy.entries[0].where if policy.entries else ""
        text = f"NIC {ANY} cannot be named here, where {ANY} means all NICs: give it another name"
        yield Finding("warning", where, text)


def _presets(policy: Policy) -> Iterator[Finding]:
    for entry in policy.entries:
        if (name := entry.settings.preset) is None:
            continue
        preset = PRESETS[name]
        rates = f"rate {preset.up}" if preset.one_way else f"{preset.down} down, {preset.up} up"
        loss = f", loss {preset.loss}" if preset.loss else ""
        text = f"{entry.key}: preset {name}: {rates}, {preset.delay_text}{loss} ({preset.origin})"
        yield Finding("note", entry.lines["preset"], text)


def _trace(line: Line) -> Iterator[Finding]:
    if line.trace is None:
        return
    trace, setting = line.trace, line.settings["trace"]
    text = (
        f"{line.place}: trace {setting}: {rate_text(trace.mean_bps)} on average, "
        f"{time_text(trace.duration_ns)} long"
    )
    if trace.longest_outage_ns:
        text += f", nothing for {time_text(trace.longest_outage_ns)} at most"
    yield Finding("note", setting.where, text)
    if not setting.value.loop and trace.KIND == "opportunities":
        text = f"{line.place}: nothing passes after {time_text(trace.duration_ns)}: loop is no"
        yield Finding("warning", setting.where, text)


def _queue(line: Line, pool_small: int) -> Iterator[Finding]:
    if not line.rate:
        return
    name = "rate" if line.trace is None else "trace"
    setting = line.settings.get("queue") or line.settings[name]
    waits, packets = queue_ns(line), queue_packets(line)
    why = setting_text(line.value(name)) if line.trace is None else f"{packets} packets before it"
    text = f"{line.place}: a packet waits at most {time_text(waits)} for {why}"
    # An outage makes packets wait with any queue.
    if waits > QUEUE_LONG_NS and (line.trace is None or waits > 2 * line.trace.longest_outage_ns):
        text += ": TCP fills such a queue, and round trips get as long; lower queue"
        yield Finding("warning", setting.where, text)
    else:
        yield Finding("note", setting.where, text)
    if packets > pool_small // SHARE_OF_POOL:
        text = (
            f"{line.place}: a full queue is {packets} packets, and a queue may take a quarter of "
            f"the pool's {pool_small}, {pool_small // SHARE_OF_POOL}: lower queue, or "
            f"{_pool_hint(packets)}"
        )
        yield Finding("warning", setting.where, text)
    if packets < 2:
        text = f"{line.place}: a queue of less than 2 packets drops most bursts: raise queue"
        yield Finding("warning", setting.where, text)


def _pool_hint(packets: int) -> str:
    """The pool of which a quarter has place for the packets."""
    small = -(-packets * SHARE_OF_POOL // 1024) * 1024
    if small > POOL_MOST:
        return f"use another rate: the largest pool has {POOL_MOST} packets"
    return f"set pool: {{small: {small}}}"


def _delay(line: Line, plan: Plan, pool_small: int) -> Iterator[Finding]:
    delay = line.delay
    if delay is None or not delay.longest:
        return
    where = line.settings["delay"].where
    if delay.jitter is not None and delay.jitter > delay.mean:
        text = (
            f"{line.place}: jitter {delay.jitter} is more than the mean {delay.mean}: delays below "
            "0 become 0, so that the mean is longer; lower jitter or raise mean"
        )
        yield Finding("warning", where, text)
    if delay.order == "any":
        text = f"{line.place}: packets overtake each other, which TCP can take for loss"
        yield Finding("note", where, text)
    most, longest = pool_small // SHARE_OF_POOL, delay.longest
    rate = arriving_rate(line, plan)
    if not rate:
        fits = most * FRAME_BYTES * 8 * 10**9 / longest
        text = (
            f"{line.place}: has a delay and no rate: {most} packets, a quarter of the pool, are "
            f"under way at most, which is {rate_text(fits)} of full packets"
        )
        yield Finding("note", where, text)
        return
    packets = bdp_packets(rate, longest)
    text = f"{line.place}: {packets} packets are under way at {rate_text(rate)}"
    if packets > most:
        text += (
            f", and a delay may hold a quarter of the pool's {pool_small}, {most}: "
            f"{_pool_hint(packets)}"
        )
        yield Finding("error", where, text)
    else:
        yield Finding("note", where, f"{text}, of {most} that a delay may hold")


def _loss(line: Line) -> Iterator[Finding]:
    loss = line.loss
    if loss is None or not (chain := loss.chain).share:
        return
    where = line.settings["loss"].where
    if chain.share > 1 - 1e-12:
        yield Finding("warning", where, f"{line.place}: nothing arrives: loss is 100%")
        return
    text = (
        f"{line.place}: {percent_text(chain.share)} of packets are lost, "
        f"{chain.mean_burst:.3g} in a row on average"
    )
    yield Finding("note", where, text)


def _reorder(line: Line) -> Iterator[Finding]:
    reorder = line.value("reorder")
    if overtakes(line):
        text = (
            f"{line.place}: {reorder.by} packets overtake {percent_text(float(reorder.share))} of "
            f"all: TCP takes {REORDER_AS_LOSS} or more for a loss"
        )
        yield Finding("note", line.settings["reorder"].where, text)


def _whole_pool(plan: Plan, pool_small: int) -> Iterator[Finding]:
    """All delays and queues together."""
    held = 0
    for line in plan.lines.values():
        most = pool_small // SHARE_OF_POOL
        if line.rate:
            held += min(queue_packets(line), most)
        if line.delay is not None and (rate := arriving_rate(line, plan)):
            held += min(bdp_packets(rate, line.delay.longest), most)
    if held > pool_small:
        text = (
            f"all lines together hold up to {held} packets, and the pool has {pool_small}: "
            f"set pool: {{small: {min(-(-held // 1024) * 1024, POOL_MOST)}}}"
        )
        yield Finding("warning", next(iter(plan.lines.values())).where, text)

"""Foretells what a policy will do: what it overrides, how long its queues get, what it needs of the
packet pool, which loss it means, and what TCP can reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dataplane.errors import ConfigError
from dataplane.units import format_time
from shaping.overhead import MAHIMAHI_BYTES
from shaping.policy.classes import ClassEntry, check_classes
from shaping.policy.compile import FRAME_BYTES, class_chain, elements_of, queue_of
from shaping.policy.findings import Finding
from shaping.policy.keys import ANY
from shaping.policy.load import Policy
from shaping.policy.network import Network
from shaping.policy.overhead_schema import OverheadConfig
from shaping.policy.places import Line, Place, Plan, plan_of, setting_text
from shaping.policy.presets import PRESETS
from shaping.policy.scenario import Scenario, meaning, scenario_of, step_name
from shaping.policy.share_notes import share_notes

POOL_SMALL = 16384  # small buffers, by default
POOL_MOST = 1 << 20
SHARE_OF_POOL = 4  # a delay line or a queue may take a quarter
SEGMENT_BYTES = 1448  # payload of a full TCP segment with timestamps
HEADER_BYTES = 14
MATHIS = 1.22  # Mathis et al. (1997): rate = 1.22 MSS / (RTT sqrt(p))
QUEUE_LONG_NS = 10**9
STEPS_FORETOLD = 100  # of a scenario: each is looked at with all lines that it changes
REORDER_AS_LOSS = 3  # duplicate ACKs that TCP takes for a loss


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
        found += [*meaning(scenario), *_steps(scenario, plan, pool_small)]
    found += _whole_pool(plan, pool_small)
    for first, second in _routes(plan):
        found += _route(plan, first, second)
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.kind))


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


# -- numbers ---------------------------------------------------------------------------------------


def percent_text(share: float) -> str:
    return f"{100 * share:.4g}%"


def rate_text(bps: float) -> str:
    """A computed rate, in three digits."""
    for factor, unit in ((1e12, "tbit"), (1e9, "gbit"), (1e6, "mbit"), (1e3, "kbit")):
        if bps >= factor * 0.9995:
            return f"{bps / factor:.3g}{unit}"
    return f"{bps:.3g}bit"


def time_text(time_ns: float) -> str:
    """A computed time, in three digits."""
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if time_ns >= factor * 0.9995:
            return f"{time_ns / factor:.3g}{unit}"
    return f"{time_ns:.3g}ns"


def line_bytes(frame: int, overhead: OverheadConfig | None) -> int:
    """Bytes that a frame takes on a line: the frame itself without `overhead`; with it the IP
    packet and what the line adds, in cells."""
    return frame if overhead is None else overhead.added.on_line(frame)


def full_packet_bytes(line: Line) -> int:
    """Bytes that a full packet takes on a line with a rate."""
    overhead: OverheadConfig | None = line.value("overhead")
    if overhead is None and line.trace is not None and line.trace.KIND == "opportunities":
        return FRAME_BYTES + MAHIMAHI_BYTES
    return line_bytes(FRAME_BYTES, overhead)


def queue_ns(line: Line) -> int:
    """The longest time that a packet waits for the line's rate, which is not 0."""
    queue = queue_of(line)
    if queue.time is not None:
        return queue.time
    size = queue.size or (queue.packets or 0) * full_packet_bytes(line)
    if line.trace is not None:
        return line.trace.longest_wait_ns(size)
    return math.ceil(size * 8 * 10**9 / line.rate)


def queue_packets(line: Line) -> int:
    """Full packets in the longest queue of a line with a rate."""
    queue = queue_of(line)
    if queue.packets is not None:
        return queue.packets
    if queue.size is not None:
        return -(-queue.size // full_packet_bytes(line))
    return math.ceil(queue_ns(line) * line.rate / 8 / 10**9 / FRAME_BYTES)


def bdp_packets(rate: int, delay_ns: int) -> int:
    """Full packets under way on a line: rate x delay."""
    return -(-rate * delay_ns // (FRAME_BYTES * 8 * 10**9))


def arriving_rate(line: Line, plan: Plan) -> int:
    """The rate at which packets reach the line's delay at most: its own, or that of the sender; 0:
    no limit. Of a trace, that of its busiest second."""
    if not line.rate and line.place.is_pair:
        line = plan.lines.get(Place(line.place.source, ANY), line)
    if line.trace is not None:
        return line.trace.busiest_bps
    return line.rate


def lost_share(line: Line) -> float:
    """The share of packets that the line loses, those included that arrive damaged and that a
    receiver discards."""
    share = line.loss.chain.share if line.loss is not None else 0.0
    corrupt = line.value("corrupt")
    if corrupt is not None and corrupt.checksum == "keep":
        share = 1 - (1 - share) * (1 - float(corrupt.share))
    return share


def loss_events(line: Line) -> float:
    """Bursts of losses for each packet: TCP reacts once to a burst."""
    events = line.loss.chain.bursts if line.loss is not None else 0.0
    corrupt = line.value("corrupt")
    if corrupt is not None and corrupt.checksum == "keep":
        events += float(corrupt.share) * (1 - events)
    return events


def mathis(rtt_ns: int, events: float) -> float:
    """The rate of one TCP connection in bit/s, headers not included; infinite without loss or
    round trip time."""
    if not rtt_ns or not events:
        return math.inf
    return MATHIS * SEGMENT_BYTES * 8 * 10**9 / (rtt_ns * math.sqrt(events))


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
    if reorder is not None and reorder.share and reorder.by >= REORDER_AS_LOSS:
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


# -- routes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """What a route does to packets in one direction.

    rate_bps    of TCP's payload at the slowest line; infinite without a rate
    delay_ns    one way, without queues
    lost        share of packets that do not arrive
    events      bursts of losses, for each packet
    """

    rate_bps: float
    delay_ns: int
    lost: float
    events: float


def forecast(lines: Iterable[Line]) -> Forecast:
    """What the lines do together to a packet that passes them one after the other."""
    rate, delay, arrives, whole = math.inf, 0, 1.0, 1.0
    for line in lines:
        if line.rate:
            share = SEGMENT_BYTES / full_packet_bytes(line)
            rate = min(rate, line.rate * share)
        if line.delay is not None:
            delay += line.delay.mean
        arrives *= 1 - lost_share(line)
        whole *= 1 - loss_events(line)
    return Forecast(rate, delay, 1 - arrives, 1 - whole)


def lines_between(plan: Plan, place: Place) -> list[Line]:
    """The lines that a packet passes on its way, in order."""
    places = [place, place.whole] if place.part else [place]
    if place.is_pair:
        places = [Place(place.source, ANY), *places, Place(ANY, place.target)]
    return [plan.lines[each] for each in places if each in plan.lines]


def _routes(plan: Plan) -> list[tuple[Place, Place]]:
    """Both directions of each pair, NIC and link that has a line; first the direction that the
    file names first."""
    found: list[tuple[Place, Place]] = []
    seen: set[Place] = set()
    for place in plan.lines:
        if place not in seen:
            found.append((place, place.opposite))
            seen.update(found[-1])
    return found


def _route(plan: Plan, first: Place, second: Place) -> Iterator[Finding]:
    there_lines, back_lines = lines_between(plan, first), lines_between(plan, second)
    lines = [*there_lines, *back_lines]
    if not any(elements_of(line) for line in lines):
        return
    where = plan.lines[first].where
    there, back = forecast(there_lines), forecast(back_lines)
    rtt = there.delay_ns + back.delay_ns
    name = _route_name(first)
    if (there.lost and back.lost) or len([line for line in lines if lost_share(line)]) > 1:
        both = 1 - (1 - there.lost) * (1 - back.lost)
        text = (
            f"{name}: {percent_text(both)} of round trips lose a packet "
            f"({percent_text(there.lost)} there, {percent_text(back.lost)} back)"
        )
        yield Finding("note", where, text)
    if rtt:
        ways = f"{format_time(there.delay_ns)} there, {format_time(back.delay_ns)} back"
        yield Finding("note", where, f"{name}: round trip {format_time(rtt)} ({ways})")
    for place, way in ((first, there), (second, back)):
        yield from _throughput(place, way, rtt, where)


def _route_name(place: Place) -> str:
    if place.link:
        name = place.link
    elif place.is_pair:
        name = f"{place.source} <-> {place.target}"
    else:
        name = place.source if place.target == ANY else place.target
    return f"{name}/{place.part}" if place.part else name


def _throughput(place: Place, way: Forecast, rtt: int, where: str) -> Iterator[Finding]:
    by_loss = mathis(rtt, way.events)
    reached = min(way.rate_bps, by_loss)
    if way.lost > 1 - 1e-12 or math.isinf(reached):
        return
    text = f"{place}: one TCP connection reaches about {rate_text(reached)} of payload"
    if by_loss < way.rate_bps:
        limit = "" if math.isinf(way.rate_bps) else f", not the rate's {rate_text(way.rate_bps)}"
        text += f": loss and round trip limit it{limit}"
    else:
        text += ", by the rate"
    yield Finding("note", where, text)

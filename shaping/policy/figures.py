"""Figures of a policy's lines, and texts of computed numbers."""

from __future__ import annotations

import math

from shaping.overhead import MAHIMAHI_BYTES
from shaping.policy.compile import FRAME_BYTES, queue_of
from shaping.policy.keys import ANY
from shaping.policy.overhead_schema import OverheadConfig
from shaping.policy.places import Line, Place, Plan


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


def packet_bytes(line: Line, frame: int = FRAME_BYTES) -> int:
    """Bytes that a frame takes on a line with a rate; default: a full one."""
    overhead: OverheadConfig | None = line.value("overhead")
    if overhead is None and line.trace is not None and line.trace.KIND == "opportunities":
        return frame + MAHIMAHI_BYTES
    return line_bytes(frame, overhead)


def queue_ns(line: Line) -> int:
    """The longest time that a packet waits for the line's rate, which is not 0."""
    queue = queue_of(line)
    if queue.time is not None:
        return queue.time
    size = queue.size or (queue.packets or 0) * packet_bytes(line)
    if line.trace is not None:
        return line.trace.longest_wait_ns(size)
    return math.ceil(size * 8 * 10**9 / line.rate)


def queue_packets(line: Line) -> int:
    """Full packets in the longest queue of a line with a rate."""
    queue = queue_of(line)
    if queue.packets is not None:
        return queue.packets
    if queue.size is not None:
        return -(-queue.size // packet_bytes(line))
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

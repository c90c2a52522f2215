"""Warnings about a configuration that is right, but may not mean what its author thinks: a line
each, for `up` and `config check`."""

from __future__ import annotations

from collections.abc import Iterator

from dataplane.units import format_rate, format_time
from vnic.config.schema import Config

LINK_HEADER_BYTES = 14  # Ethernet: what a frame has above the MTU


def queue_warnings(config: Config) -> Iterator[str]:
    """Queues that are shorter than one full frame, and so longer than they say: an empty queue
    takes one frame of any length."""
    for nic in config.nics.values():
        for name, direction in (("egress", nic.egress), ("ingress", nic.ingress)):
            if direction.rate is None:
                continue
            rate_bps, frame_bytes = int(direction.rate), nic.mtu + LINK_HEADER_BYTES
            limit_bytes = rate_bps * int(direction.queue) // 8_000_000_000
            if limit_bytes < frame_bytes:
                wait_us = frame_bytes * 8_000_000 // rate_bps
                yield (
                    f"{nic.where + ': ' if nic.where else ''}nic {nic.name}: {name}: queue {format_time(int(direction.queue))} at "
                    f"{format_rate(rate_bps)} is {limit_bytes} bytes, less than one frame of {frame_bytes}; one frame waits "
                    f"all the same, up to {format_time(wait_us * 1000)}"
                )

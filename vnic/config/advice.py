"""Warnings about valid configurations that may not mean what their author intended, one line each,
for `up` and `config check`."""

from __future__ import annotations

from collections.abc import Iterator

from dataplane.units import format_rate, format_time
from vnic.config.schema import Config

LINK_HEADER_BYTES = 14  # the Ethernet header, which the MTU does not include


def queue_warnings(config: Config) -> Iterator[str]:
    """Queues that are shorter than one full frame. An empty queue takes one frame of any length, so
    packets may wait longer than configured."""
    for nic in config.nics.values():
        for name, direction in (("egress", nic.egress), ("ingress", nic.ingress)):
            if direction.rate is None:
                continue
            rate_bps, frame_bytes = int(direction.rate), nic.mtu + LINK_HEADER_BYTES
            limit_bytes = rate_bps * int(direction.queue) // 8_000_000_000
            if limit_bytes < frame_bytes:
                wait_us = frame_bytes * 8_000_000 // rate_bps
                yield (
                    f"{nic.where + ': ' if nic.where else ''}nic {nic.name}: {name}: "
                    f"queue {format_time(int(direction.queue))} at {format_rate(rate_bps)} "
                    f"is {limit_bytes} bytes, less than one frame of {frame_bytes}; "
                    f"one frame waits all the same, up to {format_time(wait_us * 1000)}"
                )

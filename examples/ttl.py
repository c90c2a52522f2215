"""An element in Python: sets the TTL of IPv4 packets. docs/tutorial-element.md builds it step by step."""

from __future__ import annotations

import numpy as np

from dataplane.graph.element import BatchView, PyElement

IPV4 = 0x0800


class SetTtl(PyElement):
    """Every IPv4 packet goes on with this TTL, its header checksum corrected (RFC 1624, equation 3)."""

    def __init__(self, ttl: int = 64, *, name: str | None = None) -> None:
        self.ttl = ttl

    def process(self, batch: BatchView) -> None:
        l3_offset = batch.l3_offset  # a column: one value a packet
        for i in np.flatnonzero(batch.ethertype == IPV4):
            header = batch.frame(i)[l3_offset[i] :][:20]  # a view: what is written here is sent
            checksum = int(header[10]) << 8 | int(header[11])
            total = (checksum ^ 0xFFFF) + (0xFFFF - (int(header[8]) << 8)) + (self.ttl << 8)
            total = (total & 0xFFFF) + (total >> 16)
            total = ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF
            header[8], header[10], header[11] = self.ttl, total >> 8, total & 0xFF

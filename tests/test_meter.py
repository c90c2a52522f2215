"""The meter compared with sorted lists."""

from __future__ import annotations

import math
import random

import pytest

from tests.support.capture_files import pcap
from tests.test_replay import START_NS, A, B, frame
from vnic.config.load import parse_config
from vnic.replay.session import Replay


@pytest.mark.parametrize("spread_ns", [10, 1000, 10**6, 10**10])
def test_percentiles_and_rates(tmp_path, spread_ns):
    dice = random.Random(spread_ns)
    packets, now = [], START_NS
    for number in range(2000):
        now += dice.randint(0, spread_ns)
        packets.append((now, frame(B, A, dice.randint(60, 1500), number)))
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(packets, nanoseconds=True))
    with Replay(parse_config("nics: {a: {egress: {rate: 50mbit, queue: 10s}}, b: {}}", contained=False), {"a": str(path)},
                str(tmp_path / "out.pcap")) as session:  # fmt: skip
        session.run()
        meter = session.kind.nics["b"].sink.meters[0]
        summary, (start_ns, bin_ns, bps) = meter.summary(), meter.rate()
    from dataplane.capture.reader import CaptureReader

    departures = [(time_ns, data) for time_ns, data, _, _ in CaptureReader(str(tmp_path / "out.pcap"))]
    delays = sorted(left - came for (left, _), (came, _) in zip(departures, packets, strict=True))
    for name, fraction in (("p50", 0.5), ("p99", 0.99)):
        exact = delays[math.ceil(fraction * len(delays)) - 1]
        assert exact <= summary["delay_ns"][name] <= exact * (1 + 1 / 32) + 1
    assert summary["delay_ns"]["max"] == delays[-1] and summary["delay_ns"]["mean"] == sum(delays) // len(delays)
    assert summary["packets"] == 2000 and summary["bytes"] == sum(len(data) for _, data in packets)
    assert len(bps) <= 2048 and start_ns == departures[0][0]
    expected = [0.0] * len(bps)
    for time_ns, data in departures:
        expected[(time_ns - start_ns) // bin_ns] += len(data) * 8e9 / bin_ns
    assert bps == pytest.approx(expected)

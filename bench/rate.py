"""Accuracy of a rate: one TCP stream through a running vnic, timed by the receiving kernel.

Every frame counts as its layer-2 frames on a wire: for a GSO frame, each segment with its headers.
The kernel reports how a frame is segmented (PACKET_VNET_HDR) and when it arrived (SO_TIMESTAMPNS),
so the result does not depend on vnic's own counters.
"""

import json
import socket
import struct
import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from bench import contestants, machine
from bench.errors import BenchError
from bench.probes import BIN, compile_probes, run
from bench.space import ADDRESS_B, Space
from bench.tap import Json, say
from dataplane.units import format_rate

SETTLE_NS = 200_000_000
WINDOW_NS = 100_000_000
STEP_NS = 10_000_000  # between the starts of two windows

SO_TIMESTAMPNS = 35
SOL_PACKET, PACKET_VNET_HDR = 263, 15
PACKET_OUTGOING = 4
VNET_HEADER = struct.Struct("=BBHHHH")
ETHERNET, IPV4_VERSION = 14, 4


def wire_bytes(frame: bytes, length: int, gso_size: int) -> int:
    """Layer-2 bytes of the segments of an IPv4 TCP frame of `length` bytes."""
    if not gso_size or frame[ETHERNET] >> 4 != IPV4_VERSION:
        return length
    transport = ETHERNET + (frame[ETHERNET] & 15) * 4
    headers = transport + (frame[transport + 12] >> 4) * 4
    return length + (-(-(length - headers) // gso_size) - 1) * headers


def listen(interface: str, seconds: float) -> None:
    """Runs in the receiving namespace: prints [[nanoseconds, wire bytes], ...] of frames received
    within `seconds`."""
    arrivals: list[tuple[int, int]] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as s:
        s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        s.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        s.bind((interface, 0x0800))
        s.settimeout(0.5)
        print("ready", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                data, messages, _, address = s.recvmsg(1 << 17, 128)
            except TimeoutError:
                continue
            if address[2] == PACKET_OUTGOING:
                continue
            seconds_part, nanoseconds = struct.unpack("=qq", messages[0][2])
            gso_size = VNET_HEADER.unpack_from(data)[3]
            frame = data[VNET_HEADER.size :]
            arrivals.append((seconds_part * 10**9 + nanoseconds, wire_bytes(frame, len(frame), gso_size)))
        dropped = struct.unpack("=II", s.getsockopt(SOL_PACKET, 6, 8))[1]  # PACKET_STATISTICS
    print(json.dumps({"arrivals": arrivals, "dropped": dropped}))


def judge(arrivals: Sequence[Sequence[int]], rate_bps: int, seconds: float) -> Json:
    """Error of the whole and of each 100 ms window, in percent, after the first 200 ms."""
    times = [at for at, _ in arrivals]
    sums = [0]
    for _, count in arrivals:
        sums.append(sums[-1] + count)
    begin = times[0] + SETTLE_NS
    end = begin + round(seconds * 1e9)
    if times[-1] < end - WINDOW_NS:
        raise BenchError(f"the stream ended {(end - times[-1]) / 1e9:.1f} s early")

    def error_percent(start: int, stop: int) -> float:
        counted = sums[bisect_left(times, stop)] - sums[bisect_left(times, start)]
        return (counted * 8e9 / (stop - start) / rate_bps - 1) * 100

    windows = [error_percent(at, at + WINDOW_NS) for at in range(begin, end - WINDOW_NS + 1, STEP_NS)]
    beyond = sum(abs(each) > 2 for each in windows)
    return {
        "error_percent": round(error_percent(begin, end), 4),
        "window_error_percent": {"min": round(min(windows), 3), "max": round(max(windows), 3)},
        "windows": len(windows),
        "windows_beyond_2_percent": beyond,
    }


def measure(rate_bps: int, seconds: float) -> Json:
    """Measures one rate, applied to a running vnic before the stream begins. Raises BenchError."""
    with Space() as space:
        contestant = contestants.Vnic()
        process = contestant.up(space)
        assert process is not None
        vnic = ["env", f"VNIC_RUNTIME_DIR={space.directory}", f"PYTHONPATH={Path(__file__).parents[1]}", sys.executable]
        run([*vnic, "-m", "vnic.cli.main", "rate", "a", "--egress", format_rate(rate_bps)])
        total = seconds + 1.5
        listener = space.start([sys.executable, "-m", "bench.rate", "t0", str(total)], within=space.b, PYTHONPATH=str(
            Path(__file__).parents[1]))  # fmt: skip
        log = space.directory / f"log{space.processes.index(listener)}"
        deadline = time.monotonic() + 10
        while "ready" not in log.read_text():
            if listener.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the listener did not start: {space.complaint(listener)}")
            time.sleep(0.02)
        stream = space.start([str(BIN / "stream"), space.path(space.a), space.path(space.b), ADDRESS_B, str(total)])
        listener.wait(total + 10)
        stream.wait(30)
        report = json.loads(log.read_text().splitlines()[-1])
        if report["dropped"] or len(report["arrivals"]) < 10:
            raise BenchError(f"the listener missed {report['dropped']} frames, has {len(report['arrivals'])}")
        return judge(report["arrivals"], rate_bps, seconds)


def run_rates(rates: Sequence[int], seconds: float, rounds: int) -> Json:
    """Measures every rate `rounds` times, interleaved."""
    compile_probes()
    description = machine.describe()
    results: dict[str, list[Json]] = {format_rate(rate): [] for rate in rates}
    for round_number in range(1, rounds + 1):
        for rate in rates:
            one = measure(rate, seconds)
            results[format_rate(rate)].append(one)
            window = one["window_error_percent"]
            say(f"round {round_number}/{rounds} {format_rate(rate):8} error {one['error_percent']} %, windows {window}")
    return {"machine": description, "seconds": seconds, "rates": results}


if __name__ == "__main__":
    listen(sys.argv[1], float(sys.argv[2]))

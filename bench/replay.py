"""Replay: packets per second through a whole configuration in virtual time, compared with a scapy
loop over the same file."""

from __future__ import annotations

import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench import machine
from bench.errors import BenchError

CONFIG = "nics:\n  a: {egress: {rate: 10gbit}}\n  b: {}\n"
FRAME_BYTES = 60  # 64 on the wire, with the FCS, which captures do not contain
GAP_NS = 200
SCAPY_SECONDS = 3.0
START_NS = 1_700_000_000_000_000_000
CHUNK = 500_000

Json = dict[str, object]


def write_capture(path: Path, packets: int) -> int:
    """Writes a capture of 64-byte UDP frames, 200 ns apart; returns its size in bytes."""
    record = np.dtype([("s", "<u4"), ("f", "<u4"), ("captured", "<u4"), ("original", "<u4"), ("data", "u1", (FRAME_BYTES,))])
    frame = bytes.fromhex("020000000002020000000001 0800 4500002e00010000401166bb0a0000010a000002")
    frame += struct.pack(">HHHH", 1000, 2000, 26, 0) + bytes(18)
    with path.open("wb") as file:
        file.write(struct.pack("<IHHIIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
        for first in range(0, packets, CHUNK):
            count = min(CHUNK, packets - first)
            rows = np.zeros(count, record)
            times = np.arange(first, first + count, dtype="u8") * GAP_NS + START_NS
            rows["s"], rows["f"] = times // 10**9, times % 10**9
            rows["captured"] = rows["original"] = FRAME_BYTES
            rows["data"] = np.frombuffer(frame, dtype="u1")
            rows.tofile(file)
    return path.stat().st_size


def write_answer(path: Path) -> None:
    """Writes a capture of one packet from the other container, before all others, so that the
    switch knows both addresses."""
    frame = bytes.fromhex("020000000001 020000000002 0806") + bytes(46)
    head = struct.pack("<IHHIIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)
    second, rest = divmod(START_NS - 1_000_000, 10**9)
    path.write_bytes(head + struct.pack("<IIII", second, rest, len(frame), len(frame)) + frame)


def replay_once(capture: str, answer: str, output: str) -> Json:
    """Runs in a process of its own (see `main`): seconds, packets, maximum resident memory."""
    from vnic.config.load import parse_config
    from vnic.replay.session import Replay

    with Replay(parse_config(CONFIG, contained=False), {"a": capture, "b": answer}, output) as session:
        begin, cpu = time.perf_counter(), time.process_time()
        session.run()
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
        results = session.results()
    if not results["conserved"] or results["transmitted"] != results["received"]:
        raise BenchError(f"the replay lost packets: {results['dropped']}")
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"packets": results["received"], "seconds": seconds, "cpu_seconds": cpu_seconds, "max_rss_mb": rss_mb}


def scapy_once(capture: str) -> Json:
    """The usual loop with scapy: read, check headers, write. Bounded in time."""
    from scapy.layers.inet import IP, UDP
    from scapy.utils import PcapReader, PcapWriter

    begin, count = time.perf_counter(), 0
    with PcapReader(capture) as packets, PcapWriter(os.devnull, nano=True) as out:
        for packet in packets:
            if IP in packet and UDP in packet and packet[IP].ttl > 0:
                out.write(packet)
            count += 1
            if count % 256 == 0 and time.perf_counter() - begin > SCAPY_SECONDS:
                break
    return {"packets": count, "seconds": time.perf_counter() - begin}


def _child(what: str, *arguments: str) -> Json:
    done = subprocess.run([sys.executable, "-m", "bench.replay", what, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{what}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    answer: Json = json.loads(done.stdout)
    return answer


def run(packets: int, rounds: int, keep_output: bool) -> Json:
    """Runs replay and scapy in turns over one file. Raises BenchError."""
    mpps: list[float] = []
    per_cpu: list[float] = []
    slow: list[float] = []
    rss: list[float] = []
    with tempfile.TemporaryDirectory(prefix="vnic-bench-") as directory:
        capture = Path(directory) / "in.pcap"
        size = write_capture(capture, packets)
        answer = Path(directory) / "answer.pcap"
        write_answer(answer)
        output = str(Path(directory) / "out.pcapng") if keep_output else os.devnull
        for number in range(rounds):
            one = _child("replay", str(capture), str(answer), output)
            mpps.append(float(str(one["packets"])) / float(str(one["seconds"])) / 1e6)
            per_cpu.append(float(str(one["packets"])) / float(str(one["cpu_seconds"])) / 1e6)
            rss.append(float(str(one["max_rss_mb"])))
            other = _child("scapy", str(capture))
            slow.append(float(str(other["packets"])) / float(str(other["seconds"])) / 1e6)
            text = f"round {number + 1}/{rounds} vnic {mpps[-1]:.2f} Mpps, scapy {slow[-1]:.4f} Mpps, {rss[-1]:.0f} MB"
            print(text, file=sys.stderr, flush=True)
    return {
        "mpps": round(statistics.median(mpps), 3),
        "mpps_a_cpu_second": round(statistics.median(per_cpu), 3),
        "vs_scapy": round(statistics.median(mpps) / statistics.median(slow), 1),
        "scapy_mpps": round(statistics.median(slow), 5),
        "max_rss_mb": round(max(rss), 1),
        "capture_bytes": size,
        "packets": packets,
        "rounds": rounds,
        "spread": {
            "mpps": [round(min(mpps), 3), round(max(mpps), 3)],
            "scapy_mpps": [round(min(slow), 5), round(max(slow), 5)],
        },
        "output": "a pcapng file" if keep_output else "/dev/null",
        "machine": machine.describe(),
    }


if __name__ == "__main__":
    print(json.dumps((replay_once if sys.argv[1] == "replay" else scapy_once)(*sys.argv[2:])))

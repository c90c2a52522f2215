"""TAP to TAP: all contestants in one run, interleaved round by round; medians and ratios."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self, TypeVar

from bench import contestants, machine
from bench.errors import BenchError
from bench.probes import compile_probes, ping, probe
from bench.space import ADDRESS_B, Space, sweep

PINGS = 1000
PING_INTERVAL_MS = 2
UDP_ROUND_TRIPS = 1000
UDP_PAUSE_US = 1000
IDLE_SECONDS = 2.0

T = TypeVar("T")
Sample = dict[str, float]
Json = dict[str, object]


def say(text: str) -> None:
    """Prints progress on stderr: stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


class CpuTime:
    """CPU time of a process and its descendants during a `with`: `ns`; 0 where the kernel forwards.
    Includes the kernel's work in their system calls: a write to a TAP delivers the packet to its
    receiver. On a machine that shares its CPUs it varies less than throughput."""

    def __init__(self, process: subprocess.Popen[bytes] | None) -> None:
        self._pid = process.pid if process else 0
        self.ns = 0

    def __enter__(self) -> Self:
        self._before_ns = contestants.tree_cpu_ns(self._pid) if self._pid else 0
        return self

    def __exit__(self, *exception: object) -> None:
        self.ns = contestants.tree_cpu_ns(self._pid) - self._before_ns if self._pid else 0


def measure(contestant: contestants.Contestant, seconds: float, idle: bool) -> Sample:
    """Builds the contestant's path and measures it once. Raises BenchError."""
    with Space() as space:
        process = contestant.up(space)
        interface_a, interface_b = contestant.interfaces()
        a, b = space.path(space.a), space.path(space.b)
        sample: Sample = {}
        icmp = ping(a, ADDRESS_B, PINGS, PING_INTERVAL_MS)
        udp = probe("pingpong", a, b, ADDRESS_B, UDP_ROUND_TRIPS, UDP_PAUSE_US, timeout_seconds=60)
        sample |= {"rtt_p50_us": icmp["p50_us"], "rtt_p99_us": icmp["p99_us"]}
        sample |= {"udp_rtt_p50_us": udp["p50_us"], "udp_rtt_p99_us": udp["p99_us"]}
        with CpuTime(process) as cpu:
            blast = probe("blast", a, interface_a, b, interface_b, seconds, timeout_seconds=seconds + 30)
        sample["mpps_64b"] = blast["mpps"]
        if cpu.ns > 0 and blast["packets"]:
            sample["cpu_ns_per_packet"] = cpu.ns / blast["packets"]
        with CpuTime(process) as cpu:
            stream = probe("stream", a, b, ADDRESS_B, seconds, timeout_seconds=seconds + 30)
        sample["tcp_gbps"] = stream["gbps"]
        if cpu.ns > 0:  # ns per byte are s per GB
            sample["cpu_s_per_gb"] = cpu.ns / stream["bytes"]
        if idle and process:
            time.sleep(0.3)  # the end of the start-up does not count as idle
            start = time.monotonic()
            with CpuTime(process) as cpu:
                time.sleep(IDLE_SECONDS)
            sample["idle_cpu_percent"] = 100 * cpu.ns / ((time.monotonic() - start) * 1e9)
        if process and process.poll() is not None:
            raise BenchError(f"{contestant.name} ended while it was measured: {space.complaint(process)}")
        return sample


@dataclass
class Series:
    """The results of one contestant, round by round."""

    what: str
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def values(self, key: str) -> list[float]:
        return [s[key] for s in self.samples if key in s]

    def median(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.median(values) if values else None

    def as_json(self) -> Json:
        keys = sorted({key for sample in self.samples for key in sample})
        medians: Json = {key: rounded(self.median(key)) for key in keys}
        spread: Json = {key: {"min": rounded(min(self.values(key))), "max": rounded(max(self.values(key)))} for key in keys}
        return {"what": self.what, **medians, "spread": spread, "rounds": len(self.samples), "failures": self.failures}


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def ratio(value: float | None, base: float | None) -> float | None:
    """The ratio of two medians; None where either is missing."""
    return rounded(value / base) if value is not None and base else None


def of_bare(series: dict[str, Series], key: str) -> list[float]:
    """The medians of the bare loops."""
    return [m for name in contestants.BARE if name in series and (m := series[name].median(key)) is not None]


def better(series: dict[str, Series], key: str) -> float | None:
    """The higher median of the bare loops."""
    return max(of_bare(series, key), default=None)


def cheapest(series: dict[str, Series], key: str) -> float | None:
    """The lower median of the bare loops."""
    return min(of_bare(series, key), default=None)


def summarise(series: dict[str, Series], rounds: int, seconds: float) -> Json:
    """The object that `--json` prints. A figure whose contestant did not run is null."""
    none = Series("")
    vnic, spin = series.get("vnic", none), series.get("vnic-spin", none)
    peers: dict[str, Json] = {}
    for name, one in series.items():
        peers[name] = one.as_json()
        for key, label in (("tcp_gbps", "tcp_ratio_vs_bare"), ("mpps_64b", "pps_ratio_vs_bare")):
            peers[name][label] = ratio(one.median(key), better(series, key))
            if name not in contestants.OURS:
                peers[name][f"vnic_{key}_ratio"] = ratio(vnic.median(key), one.median(key))
    ours: dict[str, Json] = {name: peers.pop(name) for name in contestants.OURS if name in peers}
    return {
        "tcp_gbps": rounded(vnic.median("tcp_gbps")),
        "tcp_ratio_vs_bare": ratio(vnic.median("tcp_gbps"), better(series, "tcp_gbps")),
        "mpps_64b": rounded(vnic.median("mpps_64b")),
        "pps_ratio_vs_bare": ratio(vnic.median("mpps_64b"), better(series, "mpps_64b")),
        "rtt_p50_us": rounded(vnic.median("rtt_p50_us")),
        "bare_rtt_p50_us": rounded(cheapest(series, "rtt_p50_us")),
        "rtt_spin_p50_us": rounded(spin.median("rtt_p50_us")),
        "cpu_ns_per_packet": rounded(vnic.median("cpu_ns_per_packet")),
        "bare_cpu_ns_per_packet": rounded(cheapest(series, "cpu_ns_per_packet")),
        "cpu_s_per_gb": rounded(vnic.median("cpu_s_per_gb")),
        "bare_cpu_s_per_gb": rounded(cheapest(series, "cpu_s_per_gb")),
        "idle_cpu_percent": rounded(vnic.median("idle_cpu_percent")),
        "rounds": rounds,
        "seconds": seconds,
        "peers": peers,
        "ours": ours,
    }


def run(rounds: int, seconds: float, names: list[str]) -> Json:
    """Measures the named contestants (none named: all that are installed) `rounds` times,
    interleaved. Raises BenchError."""
    compile_probes()
    sweep()
    chosen, lacking = contestants.choose(names)
    for line in lacking:
        say(line)
    if not chosen:
        raise BenchError("no contestant is left to measure")
    described = machine.describe()
    series = {c.name: Series(c.what) for c in chosen}
    for number in range(rounds):
        # Rotated, so that no contestant always follows the same other one.
        start = number % len(chosen)
        for contestant in rotate(chosen, start):
            one = series[contestant.name]
            if len(one.failures) >= 2:
                continue
            try:
                sample = measure(contestant, seconds, idle=contestant.name in contestants.OURS)
            except BenchError as error:
                one.failures.append(f"round {number + 1}: {error}")
                say(f"round {number + 1}/{rounds} {contestant.name:10} failed: {error}")
                continue
            one.samples.append(sample)
            say(f"round {number + 1}/{rounds} {contestant.name:10} " + " ".join(f"{k}={v:.3g}" for k, v in sample.items()))
    return {**summarise(series, rounds, seconds), "machine": described}


def failure_of_ours(result: Json) -> str:
    """The first failure of vnic, or "": a run that failed to measure vnic must not exit with 0."""
    ours = result["ours"]
    assert isinstance(ours, dict)
    return next((f"{name}: {failure}" for name, one in ours.items() for failure in one["failures"]), "")


def rotate(items: list[T], start: int) -> Iterable[T]:
    return [*items[start:], *items[:start]]

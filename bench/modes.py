"""Scheduling modes of engine groups: CPU time and latency of each, by load (Snap, figures 6b to 7).

Four engines in one group. Three carry the load, a third each: 64-byte frames, together a share of
what one engine can forward. The fourth carries the probe: round trips of a small datagram,
at intervals of 0.5 to 1 ms. `neighbour`: 10 % load, and a process for each CPU that never sleeps.

A round trip includes the wake-ups of both its ends, which wait for a CPU like other processes.
"through" is the engines' part of it: one way, from the send to the receiving kernel's time stamp.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import contestants, machine
from bench.errors import BenchError
from bench.probes import compile_probes, probe
from bench.probes import run as run_tool
from bench.report import show_machine
from bench.space import Space, sweep, wait_for
from bench.tap import rounded, say

CPUS = sorted(os.sched_getaffinity(0))
# A CPU of its own where the machine has two: with both of two CPUs, none would be left to the
# containers.
MODES: dict[str, dict[str, object]] = {
    "dedicated": {"mode": "dedicated", "cpus": CPUS[-1:]},
    "spreading": {"mode": "spreading"},
    # Four of them are 1.8 CPUs: the kernel admits guarantees of up to 95 % of all CPUs (sched(7)).
    "spreading-guaranteed": {"mode": "spreading", "guarantee": "{runtime: 450us, period: 1ms}"},
    "compacting": {"mode": "compacting"},
    "compacting-spin": {"mode": "compacting", "spin": "200us"},
}
LOADS = {"1%": 0.01, "10%": 0.1, "50%": 0.5, "90%": 0.9, "neighbour": 0.1}
PAUSE_US = 500
LOADED = 3  # engines with load; the next one has the probe
ENGINES = range(LOADED + 1)
PROBED = f"10.9{LOADED}.0.2"
KEYS = ("cpu_percent", "p50_us", "p99_us", "p999_us", "through_p50_us", "through_p99_us")
Sample = dict[str, float]


def _up(space: Space, group: Mapping[str, object]) -> subprocess.Popen[bytes]:
    """Starts an instance with a NIC for each engine in each of the namespaces: t0, t1 ... for the
    load, the last for the probe."""
    settings = ", ".join(f"{key}: {value}" for key, value in group.items())
    nics = "".join(
        f"  {name}{number}: {{netns: {space.path(end)}, interface: t{number}, engine: {number}, "
        f"vlan: {{access: {10 + number}}}, addresses: [10.9{number}.0.{host}/24]}}\n"
        for host, (name, end) in enumerate((("a", space.a), ("b", space.b)), 1)
        for number in ENGINES
    )
    file = space.directory / "vnic.yaml"
    file.write_text(f"groups: {{all: {{{settings}}}}}\nengines: {len(ENGINES)}\nnics:\n{nics}")
    root = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": root, "VNIC_RUNTIME_DIR": str(space.directory)}
    process = space.start([sys.executable, "-m", "vnic.cli.main", "up", str(file)], **environment)
    for end in (space.a, space.b):
        for number in ENGINES:
            space.wait_interface(end, f"t{number}", process)
        wait_for(lambda end=end: _addresses(end) == len(ENGINES), 10, f"no addresses in {end}")  # type: ignore[misc]
    return process


def _addresses(netns: str) -> int:
    return run_tool(["ip", "-n", netns, "-brief", "-4", "address"]).count(" 10.9")


def _blast(space: Space, seconds: float, pps: float = 0, number: int = 0) -> Sample:
    ends = (space.path(space.a), f"t{number}", space.path(space.b), f"t{number}")
    return probe("blast", *ends, seconds, *([f"{pps:.0f}"] if pps else []), timeout_seconds=seconds + 30)


def _capacity(seconds: float) -> float:
    """Frames per second that an engine forwards, counted at the receiver."""
    with Space() as space:
        _up(space, MODES["spreading"])
        return 1e6 * _blast(space, seconds)["mpps"]


def _measure(mode: str, load: str, pps: float, seconds: float) -> Sample:
    """Measures one mode under one load. Raises BenchError."""
    with Space() as space:
        process = _up(space, MODES[mode])
        a, b = space.path(space.a), space.path(space.b)
        # addresses are resolved, engines warm
        probe("pingpong", a, b, PROBED, 50, PAUSE_US, timeout_seconds=20)
        hungry = CPUS if load == "neighbour" else []
        for _ in hungry:
            space.start(["sh", "-c", "while :; do :; done"])
        trips = int(seconds * 1e6 / (1.5 * PAUSE_US + 100))
        with ThreadPoolExecutor(LOADED) as senders:
            each = LOADS[load] * pps / LOADED
            blasted = [senders.submit(_blast, space, 2 * seconds + 1, each, number) for number in range(LOADED)]
            threading.Event().wait(0.3)  # the load's own warm-up
            before_ns, start_ns = contestants.tree_cpu_ns(process.pid), time.monotonic_ns()
            found = probe("pingpong", a, b, PROBED, trips, PAUSE_US, timeout_seconds=seconds + 60)
            used_ns, elapsed_ns = contestants.tree_cpu_ns(process.pid) - before_ns, time.monotonic_ns() - start_ns
        if process.poll() is not None:
            raise BenchError(f"{mode} ended while it was measured: {space.complaint(process)}")
        return {
            "cpu_percent": 100 * used_ns / elapsed_ns,
            **{key: found[key] for key in KEYS[1:]},
            "lost": found["lost"],
            "load_mpps": sum(blast.result()["mpps"] for blast in blasted),
        }


def run(rounds: int, seconds: float) -> dict[str, Any]:
    """Measures every mode under every load, `rounds` times, interleaved. Raises BenchError."""
    compile_probes()
    sweep()
    described = machine.describe()
    pps = _capacity(seconds)
    say(f"an engine takes {pps / 1e6:.3f} Mpps")
    samples: dict[str, dict[str, list[Sample]]] = {mode: {load: [] for load in LOADS} for mode in MODES}
    for number in range(rounds):
        for load in LOADS:
            for mode in list(MODES)[number % len(MODES) :] + list(MODES)[: number % len(MODES)]:
                sample = _measure(mode, load, pps, seconds)
                samples[mode][load].append(sample)
                say(f"round {number + 1}/{rounds} {load:10} {mode:20} " + " ".join(f"{k}={v:.3g}" for k, v in sample.items()))
    return {"modes": {mode: {load: _summary(each) for load, each in loads.items()} for mode, loads in samples.items()},
            "capacity_mpps": rounded(pps / 1e6), "rounds": rounds, "seconds": seconds, "machine": described}  # fmt: skip


def _summary(samples: list[Sample]) -> dict[str, Any]:
    medians = {key: rounded(statistics.median(sample[key] for sample in samples)) for key in samples[0]}
    spread = {key: [rounded(min(s[key] for s in samples)), rounded(max(s[key] for s in samples))] for key in KEYS}
    return {"cpu": medians.pop("cpu_percent"), **medians, "spread": spread}


def show(console: Console, result: Mapping[str, Any]) -> None:
    """A table: medians (min-max)."""
    show_machine(console, result["machine"])
    table = Table(title=f"Four engines by mode and load: medians of {result['rounds']} (min-max)")
    for number, title in enumerate(("load", "mode", "CPU %", "p50 us", "p99 us", "p99.9 us", "through p50", "p99")):
        table.add_column(title, justify="right" if number > 1 else "left", no_wrap=True)
    for load in LOADS:
        for mode, loads in result["modes"].items():
            one = loads[load]
            spread = one["spread"]
            cells = [("cpu", "cpu_percent"), *((key, key) for key in KEYS[1:])]
            figures = [f"{one[key]:.0f} [dim]({spread[each][0]:.0f}-{spread[each][1]:.0f})[/dim]" for key, each in cells]
            table.add_row(load, mode, *figures)
        table.add_section()
    console.print(table)


def plot(result: Mapping[str, Any], path: Path) -> Path:
    """A plot of CPU time and tail latency by load, one line per mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
    titles = (
        ("cpu", "CPU, % of one core"),
        ("p50_us", "round trip p50, us"),
        ("p99_us", "round trip p99, us"),
        ("through_p99_us", "through the engines p99, us"),
    )
    for axis, (key, title) in zip(axes, titles, strict=True):
        for mode, loads in result["modes"].items():
            axis.plot(list(loads), [one[key] for one in loads.values()], marker="o", label=mode)
        axis.set_title(title)
        axis.set_xlabel("load of the other three engines")
        axis.set_ylim(bottom=0) if key == "cpu" else axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"Four engines, {result['capacity_mpps']} Mpps at full load, medians of {result['rounds']} rounds")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path

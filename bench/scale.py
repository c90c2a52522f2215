"""Idle NICs: their effect on a busy pair on the same engine, and on the time of start, attach,
upgrade and crash."""

import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.contestants import tree_resident_kb
from bench.errors import BenchError
from bench.probes import compile_probes, ping, probe
from bench.probes import run as execute
from bench.report import show_machine
from bench.space import ADDRESS_B, Space, sweep, wait_for
from bench.tap import ratio, rotate, rounded, say
from dataplane.errors import VnicError
from vnic.api.client import Client

PINGS, PING_INTERVAL_MS = 500, 2
ATTACHES = 5
UP_LIMIT_S, BACK_LIMIT_S = 300, 60
ROOT = Path(__file__).parents[1]
Json = dict[str, Any]


def _up(space: Space, idle: int) -> float:
    """Starts vnic with a busy pair and `idle` NICs in a third namespace; returns seconds."""
    space.use_runtime(space.directory)
    pair = "".join(f"  {nic}: {{netns: {space.path(name)}, interface: t0}}\n" for nic, name in (("a", space.a), ("b", space.b)))
    others = "".join(f"  n{number}: {{netns: {space.path(space.middle)}, interface: n{number}}}\n" for number in range(idle))
    file = space.directory / "vnic.yaml"
    file.write_text(f"nics:\n{pair}{others}")
    # With IPv6, a thousand interfaces would send router solicitations, flooded to a million copies.
    silence = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
    execute(["nsenter", f"--net={space.path(space.middle)}", "sh", "-c", silence])
    began_s = time.monotonic()
    process = space.start([sys.executable, "-m", "vnic.cli.main", "up", str(file)], PYTHONPATH=str(ROOT))

    def there() -> bool:
        if process.poll() is not None:
            raise BenchError(space.complaint(process))
        return _answers(idle + 2)

    wait_for(there, UP_LIMIT_S, f"vnic with {idle + 2} NICs did not come up")
    took_s = time.monotonic() - began_s
    space.connect("t0", "t0")
    return took_s


def _answers(nics: int, not_pid: int = 0) -> bool:
    try:
        with Client() as client:
            status: Json = client.call("Status")["status"]
    except (VnicError, OSError):
        return False
    return len(status["nics"]) == nics and status["pid"] != not_pid


def _attach_ms(space: Space) -> float:
    """Time to attach one more NIC in ms, the median of several."""
    times = []
    with Client() as client:
        for number in range(ATTACHES):
            began_s = time.monotonic()
            client.call("Attach", name=f"more{number}", nic={"netns": space.path(space.middle), "interface": f"m{number}"})
            times.append(1e3 * (time.monotonic() - began_s))
        for number in range(ATTACHES):
            client.call("Detach", name=f"more{number}")
    return statistics.median(times)


def _crash_s(idle: int) -> float:
    """Seconds from the worker's end to the first answer of the next one with all NICs."""
    with Client() as client:
        pid = client.call("Status")["status"]["pid"]
    began_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: _answers(idle + 2, pid), BACK_LIMIT_S, "the next worker did not come up")
    return time.monotonic() - began_s


def measure(idle: int, seconds: float) -> Json:
    """One round with `idle` idle NICs. Raises BenchError."""
    with Space() as space:
        sample: Json = {"up_s": _up(space, idle)}
        a, b = space.path(space.a), space.path(space.b)
        found = ping(a, ADDRESS_B, PINGS, PING_INTERVAL_MS)
        sample |= {"rtt_p50_us": found["p50_us"], "rtt_p99_us": found["p99_us"]}
        sample["mpps_64b"] = probe("blast", a, "t0", b, "t0", seconds, timeout_seconds=seconds + 30)["mpps"]
        sample["attach_ms"] = _attach_ms(space)
        sample["memory_mib"] = tree_resident_kb(space.processes[0].pid) / 1024
        with Client() as client:
            sample["blackout_ms"] = client.call("Upgrade")["report"]["blackout_ms"]
        sample["recovery_s"] = _crash_s(idle)
        return sample


def run(counts: list[int], seconds: float, rounds: int) -> Json:
    """Measures each number of idle NICs `rounds` times, interleaved. Raises BenchError."""
    compile_probes()
    sweep()
    described = machine.describe()
    samples: dict[int, list[Json]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in rotate(counts, number % len(counts)):
            samples[count].append(measure(count, seconds))
            figures = " ".join(f"{key}={value:.3g}" for key, value in samples[count][-1].items())
            say(f"round {number + 1}/{rounds} idle={count} {figures}")
    rows = []
    for count in counts:
        keys = samples[count][0]
        rows.append(
            {"idle_nics": count, **{key: rounded(statistics.median(each[key] for each in samples[count])) for key in keys}}
        )
    for row in rows:
        row["mpps_ratio"] = ratio(row["mpps_64b"], rows[0]["mpps_64b"])
        row["rtt_ratio"] = ratio(row["rtt_p50_us"], rows[0]["rtt_p50_us"])
    return {"rows": rows, "rounds": rounds, "seconds": seconds, "machine": described}


def show(console: Console, result: Json) -> None:
    """The table of `bench scale`: medians."""
    table = Table(title=f"One engine: medians of {result['rounds']} rounds of {result['seconds']:g} s")
    columns = {"idle_nics": "idle NICs", "mpps_64b": "64 B Mpps", "mpps_ratio": "/ none idle", "rtt_p50_us": "ping p50 us",
               "rtt_ratio": "/ none idle", "rtt_p99_us": "p99 us", "up_s": "up s", "attach_ms": "attach ms",
               "blackout_ms": "blackout ms", "recovery_s": "recovery s", "memory_mib": "memory MiB"}  # fmt: skip
    for title in columns.values():
        table.add_column(title, justify="right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(*("-" if row[key] is None else f"{row[key]:g}" for key in columns))
    show_machine(console, result["machine"])
    console.print(table)

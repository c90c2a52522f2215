"""A vnic under load: what the measurements of faults, upgrades and changes have in common.

Two engines, two pairs of NICs, one pair per engine. One pair carries PPS numbered datagrams a
second; the other a TCP stream, shaped to TCP_RATE, so that a shaper always holds packets. (Pairs
across engines take a third more CPU time: on two CPUs, which both ends of both streams share with
the engines, none would be left for the measurement.)
"""

import json
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bench.instance import Instance, Json
from bench.probes import BIN, compile_probes
from bench.space import Space, sweep
from bench.tap import rounded, say

PPS = 100_000
TCP_RATE = "300mbit"
LIMIT_S = 3600


class Loaded(Instance):
    """An instance between the two namespaces of a space, under load."""

    def __init__(self, space: Space) -> None:
        # A VLAN for each pair: on one switch, both interfaces of a container would answer ARP for
        # both addresses.
        nics = "".join(
            f"  {name}{number}: {{netns: {space.path(end)}, interface: t{number}, engine: {number}, "
            f"vlan: {{access: {10 + number}}}, addresses: [10.9{number}.0.{host}/24]"
            f"{f', egress: {{rate: {TCP_RATE}}}' if number and name == 'a' else ''}}}\n"
            for host, (name, end) in enumerate((("a", space.a), ("b", space.b)), 1)
            for number in (0, 1)
        )
        super().__init__(space, f"engines: 2\nnics:\n{nics}")
        arguments = [space.path(space.a), space.path(space.b), "10.90.0.2", str(PPS), str(LIMIT_S), "10.91.0.2"]
        self.load = subprocess.Popen([str(BIN / "sequence"), *arguments], stdout=subprocess.PIPE, text=True)

    def finish(self) -> Json:
        """Ends the load and returns its report."""
        self.load.send_signal(signal.SIGTERM)
        out, _ = self.load.communicate(timeout=30)
        found: Json = json.loads(out)
        return found

    def close(self) -> None:
        if self.load.poll() is None:
            self.load.kill()
        self.load.wait()


class Rounds(NamedTuple):
    """What was found: the report of each round, the load's report, the last status and
    statistics."""

    reports: list[Json]
    load: Json
    status: Json
    stats: Json


def run_rounds(rounds: int, pause_s: tuple[float, float], act: Callable[[Loaded, int], Json]) -> Rounds:
    """Acts once a round on an instance under load, each time before a random pause. Raises
    BenchError."""
    compile_probes()
    sweep()
    with Space() as space:
        instance = Loaded(space)
        try:
            time.sleep(1.0)  # the TCP stream opens its window
            reports = []
            for number in range(rounds):
                reports.append(act(instance, number))
                figures = {key: value for key, value in reports[-1].items() if key.endswith("ms") or key == "restarts"}
                say(f"round {number + 1}/{rounds} " + " ".join(f"{key}={value}" for key, value in figures.items()))
                time.sleep(random.uniform(*pause_s))
            status, stats = instance.status(), instance.stats()
            return Rounds(reports, instance.finish(), status, stats)
        finally:
            instance.close()


def traffic(load: Json) -> Json:
    """What the load's report says of packets. lost: without those that the receiver's own socket
    lost."""
    same = ("overrun", "reordered", "resets", "damaged", "sent", "tcp_retransmitted", "tcp_reordered")
    return {
        "lost": load["lost"] - load["overrun"],
        **{key: load[key] for key in same},
        "tcp_gbytes": rounded(load["tcp_bytes"] / 1e9),
    }


def changed(reports: list[Json], status: Json) -> Json:
    """How long changes and their undoing took, and what is left of them. reports: with apply_ms and
    undo_ms."""
    return {
        **{key: quantiles(report[key] for report in reports) for key in ("apply_ms", "undo_ms")},
        "restarts": status["supervisor"]["restarts"],
        "conserved": status["conserved"],
        "series_ms": [report["apply_ms"] for report in reports],
    }


def quantiles(values: Iterable[float]) -> Json:
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p99": None, "max": None}
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"p50": rounded(statistics.median(ordered)), "p99": rounded(p99), "max": rounded(ordered[-1])}


def queue_drops(stats: Json, *names: str) -> int:
    """Packets dropped because the queues of these NICs, by default of all, were full."""
    return sum(nic["queue_drops"] or 0 for nic in stats["nics"] if not names or nic["name"] in names)

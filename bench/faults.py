"""Faults and upgrades under load: the effect on traffic of killing or upgrading the worker.

Two engines, two pairs of NICs, one pair per engine. One pair carries PPS numbered datagrams a
second; the other a TCP stream, shaped to TCP_RATE, so that a shaper always holds packets. (Pairs
across engines take a third more CPU time: on two CPUs, which both ends of both streams share with
the engines, none would be left for the measurement.) Each round kills or upgrades once, after a
random pause.
"""

import contextlib
import copy
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.errors import BenchError
from bench.probes import BIN, compile_probes
from bench.probes import run as run_tool
from bench.report import show_machine
from bench.space import Space, sweep, wait_for
from bench.tap import rounded, say
from vnic.api.client import Client

PPS = 100_000
TCP_RATE = "300mbit"
PAUSE_S = (0.2, 0.6)
# longer than the supervisor takes to trust a worker again: this does not measure a crash loop
CRASH_PAUSE_S = (3.2, 4.0)
LIMIT_S = 3600
ROOT = Path(__file__).parents[1]
Json = dict[str, Any]


class Instance:
    """A vnic between the two namespaces of a space, under load."""

    def __init__(self, space: Space) -> None:
        self.space = space
        os.environ["VNIC_RUNTIME_DIR"] = str(space.directory)  # for the client in this process too
        # A VLAN for each pair: on one switch, both interfaces of a container would answer ARP for
        # both addresses.
        nics = "".join(
            f"  {name}{number}: {{netns: {space.path(end)}, interface: t{number}, engine: {number}, "
            f"vlan: {{access: {10 + number}}}, addresses: [10.9{number}.0.{host}/24]"
            f"{f', egress: {{rate: {TCP_RATE}}}' if number and name == 'a' else ''}}}\n"
            for host, (name, end) in enumerate((("a", space.a), ("b", space.b)), 1)
            for number in (0, 1)
        )
        file = space.directory / "vnic.yaml"
        file.write_text(f"engines: 2\nnics:\n{nics}")
        command = [sys.executable, "-m", "vnic.cli.main", "up", str(file)]
        self.supervisor = space.start(command, PYTHONPATH=str(ROOT))
        wait_for(lambda: (space.directory / "default.sock").exists() and self._is_up(), 20, "vnic did not come up")
        arguments = [space.path(space.a), space.path(space.b), "10.90.0.2", str(PPS), str(LIMIT_S), "10.91.0.2"]
        self.load = subprocess.Popen([str(BIN / "sequence"), *arguments], stdout=subprocess.PIPE, text=True)

    def _is_up(self) -> bool:
        if self.supervisor.poll() is not None:
            raise BenchError(self.space.complaint(self.supervisor))
        counted = run_tool(["ip", "-n", self.space.b, "-brief", "-4", "address"])
        return counted.count(" 10.9") == 2

    def ask(self, method: str, **parameters: Any) -> Json:
        """Calls a method of the control API directly: starting a Python process for the command
        takes a tenth of what two CPUs have in a second."""
        with Client() as client:
            return client.call(method, **parameters)

    def status(self) -> Json:
        found: Json = self.ask("Status")["status"]
        return found

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


def _counters(stats: Json) -> dict[tuple[str, str], int]:
    """All counters that never decrease."""
    found = {
        (element["name"], key): value
        for engine in stats["engines"]
        for element in engine["elements"]
        for key, value in {**element, **element["dropped"]}.items()
        if isinstance(value, int) and key != "held"
    }
    for nic in stats["nics"]:
        found |= {(nic["name"], f"{number} {key}"): v for number, queue in enumerate(nic["queues"]) for key, v in queue.items()}
    return found


def _queue_drops(stats: Json) -> int:
    """Packets dropped because a NIC's queues were full."""
    return sum(nic["queue_drops"] or 0 for nic in stats["nics"])


def _entries(status: Json) -> set[tuple[str, str]]:
    return {(entry["mac"], entry["nic"]) for entry in status["switch"]["entries"]}


def _run(rounds: int, pause_s: tuple[float, float], act: Callable[[Instance, int], Json]) -> tuple[list[Json], Json, Json]:
    """The report of each round, the load's report, the last status."""
    compile_probes()
    sweep()
    with Space() as space:
        instance = Instance(space)
        try:
            time.sleep(1.0)  # the TCP stream opens its window
            reports = []
            for number in range(rounds):
                reports.append(act(instance, number))
                figures = {key: value for key, value in reports[-1].items() if key.endswith("ms") or key == "restarts"}
                say(f"round {number + 1}/{rounds} " + " ".join(f"{key}={value}" for key, value in figures.items()))
                time.sleep(random.uniform(*pause_s))
            status = instance.status()
            return reports, instance.finish(), status
        finally:
            instance.close()


def _quantiles(values: list[float]) -> Json:
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p99": None, "max": None}
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"p50": rounded(statistics.median(ordered)), "p99": rounded(p99), "max": rounded(ordered[-1])}


def _gap_after(load: Json, begin_ns: int, end_ns: int) -> Json:
    """The longest gap that ended in the interval, and the packets lost in it."""
    inside = [gap for gap in load["gaps"] if begin_ns <= gap[0] <= end_ns]
    return dict(zip(("at_ns", "ms", "lost"), max(inside, key=lambda gap: gap[1], default=[0, 0.0, 0]), strict=True))


def crash(rounds: int) -> Json:
    """Kills the worker with SIGKILL, `rounds` times. Raises BenchError."""
    described = machine.describe()

    def act(instance: Instance, number: int) -> Json:
        before = instance.status()
        begin_ns = time.monotonic_ns()
        os.kill(before["pid"], signal.SIGKILL)
        while (after := instance.status())["pid"] == before["pid"]:
            pass
        return {"begin_ns": begin_ns, "end_ns": time.monotonic_ns(), "restarts": after["supervisor"]["restarts"]}

    reports, load, status = _run(rounds, CRASH_PAUSE_S, act)
    gaps = [_gap_after(load, report["begin_ns"], report["end_ns"] + 1_000_000_000) for report in reports]
    return {
        "rounds": rounds,
        "lost": load["lost"],
        "lost_in_gaps": int(sum(gap["lost"] for gap in gaps)),
        "overrun": load["overrun"],
        "resets": load["resets"],
        "damaged": load["damaged"],
        "reordered": load["reordered"],
        "sent": load["sent"],
        "survived": sum(gap["ms"] > 0 for gap in gaps),
        "nics": len(status["nics"]),
        "conserved": status["conserved"],
        "gap_ms": _quantiles([gap["ms"] for gap in gaps]),
        "series_ms": [gap["ms"] for gap in gaps],
        "machine": described,
    }


def upgrade(rounds: int) -> Json:
    """Runs `vnic upgrade`, `rounds` times. Raises BenchError."""
    described = machine.describe()
    broken: dict[str, int] = {"mac_table": 0, "counters": 0}

    def act(instance: Instance, number: int) -> Json:
        before, learned = instance.ask("Stats")["stats"], _entries(instance.status())
        begin_ns = time.monotonic_ns()
        report = instance.ask("Upgrade")["report"]
        end_ns = time.monotonic_ns()
        after, entries = instance.ask("Stats")["stats"], _entries(instance.status())
        counted, now = _counters(before), _counters(after)
        queue_drops = {"before": _queue_drops(before), "after": _queue_drops(after)}
        broken["counters"] += any(now.get(key, -1) < value for key, value in counted.items())
        broken["mac_table"] += not learned <= entries
        moved = sum(each["packets_moved"] for each in report["engines"])
        size = sum(each["state_bytes"] for each in report["engines"])
        return {"begin_ns": begin_ns, "end_ns": end_ns, "blackout_ms": report["blackout_ms"], "brownout_ms": report["brownout_ms"],
                "packets_moved": moved, "state_bytes": size, "lost": report["packets_lost"], "engines": report["engines"],
                "queue_drops": queue_drops}  # fmt: skip

    reports, load, status = _run(rounds, PAUSE_S, act)
    gaps = [_gap_after(load, report["begin_ns"], report["end_ns"]) for report in reports]
    whole_ms = (reports[-1]["end_ns"] - reports[0]["begin_ns"]) / 1e6
    upgrades_ms = sum(report["end_ns"] - report["begin_ns"] for report in reports) / 1e6
    drops = [report["queue_drops"] for report in reports]
    return {
        "rounds": rounds,
        "lost": load["lost"] - load["overrun"],
        # Of those: the losses that the upgrades report, from the first engine's halt until the last
        # one runs.
        "lost_by_upgrades": sum(report["lost"] for report in reports),
        # Packets dropped by full TAP queues: while a new worker started and took over, and in the
        # pauses between upgrades.
        "queue_drops": {
            "in_upgrades": sum(each["after"] - each["before"] for each in drops),
            "in_upgrades_ms": round(upgrades_ms),
            "in_pauses": sum(after["before"] - before["after"] for before, after in itertools.pairwise(drops)),
            "in_pauses_ms": round(whole_ms - upgrades_ms),
        },
        "overrun": load["overrun"],
        "resets": load["resets"],
        "damaged": load["damaged"],
        "reordered": load["reordered"],
        "sent": load["sent"],
        "tcp_gbytes": rounded(load["tcp_bytes"] / 1e9),
        "blackout_ms": _quantiles([each["blackout_ms"] for report in reports for each in report["engines"]]),
        "gap_ms": _quantiles([gap["ms"] for gap in gaps]),
        "brownout_ms": _quantiles([report["brownout_ms"] for report in reports]),
        "packets_moved": sum(report["packets_moved"] for report in reports),
        "state_bytes": max(report["state_bytes"] for report in reports),
        "discontinuous": broken,
        "restarts": status["supervisor"]["restarts"],
        "conserved": status["conserved"],
        "series_ms": [report["blackout_ms"] for report in reports],
        "machine": described,
    }


def _changed(config: Json, number: int) -> Json:
    """A network that is unlike `config`, and unlike that of any other number, in what the load passes."""
    config = copy.deepcopy(config)
    nics = config["nics"]
    kind, detail = number % 5, number // 5
    if kind == 0:
        nics["a0"].setdefault("egress", {})["rate"] = f"{2000 + detail}mbit"
    elif kind == 1:
        for name, way in (("a0", "egress"), ("b0", "ingress"), ("b1", "egress")):
            nics[name].setdefault(way, {})["elements"] = [{"element": "Counter"}] * (1 + detail)
    elif kind == 2:
        nics["a0"]["vlan"] = nics["b0"]["vlan"] = {"access": 100 + detail}
    else:
        link = {"link": "left -- right"} if kind == 3 else {"link": "left -- right", "rate": f"{10000 + detail}mbit"}
        config |= {"nodes": {name: {"switch": {}} for name in ("left", "right")}, "links": [{**link, "name": f"line{detail}"}]}
        config.pop("switch", None)
        for name, nic in nics.items():
            nic["on"] = "left" if name.startswith("a") else "right"
    return config


def apply(rounds: int) -> Json:
    """Applies `rounds` different networks, and undoes each. Raises BenchError."""
    described = machine.describe()
    first: Json = {}

    def act(instance: Instance, number: int) -> Json:
        if not first:
            first.update(instance.ask("GetConfig")["config"])
        begin_ns = time.monotonic_ns()
        changes = instance.ask("Apply", config=_changed(first, number))["changes"]
        middle_ns = time.monotonic_ns()
        instance.ask("Undo")
        end_ns = time.monotonic_ns()
        if not changes or instance.ask("GetConfig")["config"] != first:
            raise BenchError(f"change {number + 1} was not made, or not undone")
        return {"apply_ms": rounded((middle_ns - begin_ns) / 1e6), "undo_ms": rounded((end_ns - middle_ns) / 1e6)}

    reports, load, status = _run(rounds, (0.02, 0.1), act)
    return {
        "rounds": rounds,
        "lost": load["lost"] - load["overrun"],
        # Of those: frames that were on a link with a rate when it was taken out.
        "dropped": sum(engine["dropped"] for engine in status["engines"]),
        "overrun": load["overrun"],
        "resets": load["resets"],
        "damaged": load["damaged"],
        "reordered": load["reordered"],
        "sent": load["sent"],
        "tcp_gbytes": rounded(load["tcp_bytes"] / 1e9),
        "apply_ms": _quantiles([report["apply_ms"] for report in reports]),
        "undo_ms": _quantiles([report["undo_ms"] for report in reports]),
        "restarts": status["supervisor"]["restarts"],
        "conserved": status["conserved"],
        "series_ms": [report["apply_ms"] for report in reports],
        "machine": described,
    }


def show(console: Console, result: Json, title: str) -> None:
    """A table of the results."""
    show_machine(console, result["machine"])
    table = Table(title=title)
    table.add_column("")
    table.add_column("", justify="right")
    for key, value in result.items():
        if key in ("machine", "series_ms"):
            continue
        text = ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(key, text)
    console.print(table)


def plot(result: Json, path: Path, title: str) -> Path:
    """A plot of each round's gap or blackout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    axis.bar(range(1, len(result["series_ms"]) + 1), result["series_ms"])
    axis.set_xlabel("round")
    axis.set_ylabel("ms")
    axis.set_title(title)
    axis.grid(alpha=0.3, axis="y")
    with contextlib.closing(path.open("wb")) as file:
        figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return path

"""Faults, upgrades and changes under load: the effect on traffic of killing or upgrading the
worker, and of another network. Each round does so once, after a random pause (see bench/load.py).
"""

import copy
import itertools
import os
import signal
import time

from bench import machine
from bench.errors import BenchError
from bench.instance import Json
from bench.load import Loaded, changed, quantiles, queue_drops, run_rounds, traffic
from bench.tap import rounded

PAUSE_S = (0.2, 0.6)
# longer than the supervisor takes to trust a worker again: this does not measure a crash loop
CRASH_PAUSE_S = (3.2, 4.0)


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


def _entries(status: Json) -> set[tuple[str, str]]:
    return {(entry["mac"], entry["nic"]) for entry in status["switch"]["entries"]}


def _gap_after(load: Json, begin_ns: int, end_ns: int) -> Json:
    """The longest gap that ended in the interval, and the packets lost in it."""
    inside = [gap for gap in load["gaps"] if begin_ns <= gap[0] <= end_ns]
    return dict(zip(("at_ns", "ms", "lost"), max(inside, key=lambda gap: gap[1], default=[0, 0.0, 0]), strict=True))


def crash(rounds: int) -> Json:
    """Kills the worker with SIGKILL, `rounds` times. Raises BenchError."""
    described = machine.describe()

    def act(instance: Loaded, number: int) -> Json:
        before = instance.status()
        begin_ns = time.monotonic_ns()
        os.kill(before["pid"], signal.SIGKILL)
        while (after := instance.status())["pid"] == before["pid"]:
            pass
        return {"begin_ns": begin_ns, "end_ns": time.monotonic_ns(), "restarts": after["supervisor"]["restarts"]}

    reports, load, status, _ = run_rounds(rounds, CRASH_PAUSE_S, act)
    gaps = [_gap_after(load, report["begin_ns"], report["end_ns"] + 1_000_000_000) for report in reports]
    return {
        "rounds": rounds,
        **traffic(load),
        "lost": load["lost"],
        "lost_in_gaps": int(sum(gap["lost"] for gap in gaps)),
        "survived": sum(gap["ms"] > 0 for gap in gaps),
        "nics": len(status["nics"]),
        "conserved": status["conserved"],
        "gap_ms": quantiles(gap["ms"] for gap in gaps),
        "series_ms": [gap["ms"] for gap in gaps],
        "machine": described,
    }


def upgrade(rounds: int) -> Json:
    """Runs `vnic upgrade`, `rounds` times. Raises BenchError."""
    described = machine.describe()
    broken: dict[str, int] = {"mac_table": 0, "counters": 0}

    def act(instance: Loaded, number: int) -> Json:
        before, learned = instance.stats(), _entries(instance.status())
        begin_ns = time.monotonic_ns()
        report = instance.ask("Upgrade")["report"]
        end_ns = time.monotonic_ns()
        after, entries = instance.stats(), _entries(instance.status())
        counted, now = _counters(before), _counters(after)
        drops = {"before": queue_drops(before), "after": queue_drops(after)}
        broken["counters"] += any(now.get(key, -1) < value for key, value in counted.items())
        broken["mac_table"] += not learned <= entries
        moved = sum(each["packets_moved"] for each in report["engines"])
        size = sum(each["state_bytes"] for each in report["engines"])
        return {"begin_ns": begin_ns, "end_ns": end_ns, "blackout_ms": report["blackout_ms"], "brownout_ms": report["brownout_ms"],
                "packets_moved": moved, "state_bytes": size, "lost": report["packets_lost"], "engines": report["engines"],
                "queue_drops": drops}  # fmt: skip

    reports, load, status, _ = run_rounds(rounds, PAUSE_S, act)
    gaps = [_gap_after(load, report["begin_ns"], report["end_ns"]) for report in reports]
    whole_ms = (reports[-1]["end_ns"] - reports[0]["begin_ns"]) / 1e6
    upgrades_ms = sum(report["end_ns"] - report["begin_ns"] for report in reports) / 1e6
    drops = [report["queue_drops"] for report in reports]
    return {
        "rounds": rounds,
        **traffic(load),
        # Of those lost: the losses that the upgrades report, from the first engine's halt until the
        # last one runs.
        "lost_by_upgrades": sum(report["lost"] for report in reports),
        # Packets dropped by full TAP queues: while a new worker started and took over, and in the
        # pauses between upgrades.
        "queue_drops": {
            "in_upgrades": sum(each["after"] - each["before"] for each in drops),
            "in_upgrades_ms": round(upgrades_ms),
            "in_pauses": sum(after["before"] - before["after"] for before, after in itertools.pairwise(drops)),
            "in_pauses_ms": round(whole_ms - upgrades_ms),
        },
        "blackout_ms": quantiles(each["blackout_ms"] for report in reports for each in report["engines"]),
        "gap_ms": quantiles(gap["ms"] for gap in gaps),
        "brownout_ms": quantiles(report["brownout_ms"] for report in reports),
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

    def act(instance: Loaded, number: int) -> Json:
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

    reports, load, status, _ = run_rounds(rounds, (0.02, 0.1), act)
    return {
        "rounds": rounds,
        **traffic(load),
        # Of those lost: frames that were on a link with a rate when it was taken out.
        "dropped": sum(engine["dropped"] for engine in status["engines"]),
        **changed(reports, status),
        "machine": described,
    }

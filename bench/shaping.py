"""Shaping: how exact rates and delays are, live, beside the kernel's tbf and htb in the same rounds, and what a packet costs.

A rate is measured at the receiving kernel's times of arrival. A line's packets are taken as bits that
flow evenly from one arrival to the next, so that neither the whole nor a window of 100 ms is wrong by
the part of a packet that lies across its edge: what is left is the error of rate and timing. All lines
together always have the same rate, TOTAL_BPS, so that one line and a thousand load the machine alike."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bench import machine
from bench.contestants import Contestant
from bench.errors import BenchError
from bench.probes import BIN, compile_probes, finish, run
from bench.space import Space, sweep
from bench.tap import Json, rotate, rounded, say

TOTAL_BPS = 400_000_000
TREE_BPS = 1_000_000_000  # of a tree of classes whose ceilings are together TOTAL_BPS
OVERLOAD = 1.15  # what is sent, as a multiple of the rates
FRAME_BYTES = 1514
FIRST_PORT = 5000  # of lines.c
# Before each line, so that a sender that the machine stops for a while leaves none idle.
QUEUE_MS, QUEUE_PACKETS_LEAST = 50, 8
GROUP = 32  # lines for which one Classifier tries its rules
SETTLE_NS, WINDOW_NS, STEP_NS = 500_000_000, 100_000_000, 10_000_000
LINES = (1, 10, 1000)
DELAY_MS, DELAY_PPS, DELAY_BYTES = 20, 1000, 200
NAP_S = 0.0005
GUARANTEE = "{runtime: 450us, period: 1ms}"
STALLS = ("stall_percent", "stall_p99_percent")
ERRORS = ("rate_error_percent", "window_error_percent", "window_error_p99_percent")
RECORD = np.dtype([("arrived", "u8"), ("sent", "u8"), ("line", "u4"), ("bytes", "u4")])
ROOT = Path(__file__).parents[1]

Records = NDArray[Any]

# What a packet costs: the name in the result, and the case of elements.py.
COSTS = {
    "policer": "Policer",
    "marker": "Marker, DSCP",
    "shaper": "Shaper, enqueue + dequeue",
    "link": "Link, enqueue + dequeue",
    "impairment_loss": "Impairment, 1 % loss",
    "impairment_jitter": "Impairment, delay and jitter",
    "scheduler_fifo": "Scheduler, 1 class, fifo",
    "scheduler_fq_codel": "Scheduler, 1 class, fq_codel",
    "pacer": "Pacer, enqueue + dequeue",
}
# Cases with many classes and with one: what a packet costs is to be the same.
FLAT = {"scheduler_classes": ("Scheduler, 1000 classes, fifo", "Scheduler, 1 class, fifo")}
MANY_FLOWS, SOME_FLOWS = 1_000_000, 1000  # of a Pacer, by which its costs are compared


# -- contestants -----------------------------------------------------------------------------------


class Lines(Contestant):
    """A path with lines of one rate each, from namespace a to b."""

    def __init__(self, lines: int) -> None:
        self.lines = lines

    @property
    def rate_bps(self) -> int:
        return TOTAL_BPS // self.lines

    @property
    def queue_packets(self) -> int:
        return max(self.rate_bps * QUEUE_MS // 8000 // FRAME_BYTES, QUEUE_PACKETS_LEAST)


class VnicLines(Lines):
    """vnic: a policy's line for one, Links behind Classifiers by port for several."""

    name, what = "vnic", "vnic: Link"

    def shaped(self) -> str:
        """The network's file, without the NICs' interfaces."""
        line = {"element": "Link", "rate": f"{self.rate_bps}bit", "queue": {"packets": self.queue_packets}}
        if self.lines == 1:
            policy = {"links": {"a -> any": {"rate": line["rate"], "queue": line["queue"]}}}
            return f"shape: {json.dumps(policy)}\nnics:\n  a: {{ENDA}}\n"
        groups = [range(first, min(first + GROUP, self.lines)) for first in range(0, self.lines, GROUP)]
        ports = [range(FIRST_PORT + group.start, FIRST_PORT + group.stop) for group in groups]
        branches = {
            number: [
                _classifier(f"group{number}", [f"{port}" for port in group], {
                    each: [{**line, "name": f"line{port}"}] for each, port in enumerate(group)
                })
            ]
            for number, group in enumerate(ports)
        }  # fmt: skip
        top = _classifier("groups", [f"{group.start}-{group.stop - 1}" for group in ports], branches)
        return f"pool: {{small: 65536}}\nnics:\n  a: {{ENDA, egress: {{elements: [{json.dumps(top)}]}}}}\n"

    def up(self, space: Space) -> subprocess.Popen[bytes]:
        return start_vnic(space, self.shaped())


class VnicClasses(Lines):
    """vnic: one Scheduler, with a class for each line that its ceiling holds."""

    name, what = "vnic-classes", "vnic: Scheduler, one class a line"

    def shaped(self) -> str:
        queue = {"discipline": "fifo", "packets": self.queue_packets}
        rate = f"{self.rate_bps}bit"
        tree: dict[str, Any] = {
            f"c{line}": {
                "match": {"protocol": "udp", "destination_port": FIRST_PORT + line},
                "guarantee": rate,
                "ceiling": rate,
                "queue": queue,
            }
            for line in range(self.lines)
        }
        whole = {"rate": f"{TREE_BPS}bit", "default": "rest", "tree": {**tree, "rest": {}}}
        policy = json.dumps({"classes": {"a.egress": whole}})
        return f"pool: {{small: 65536}}\nshape: {policy}\nnics:\n  a: {{ENDA}}\n"

    def up(self, space: Space) -> subprocess.Popen[bytes]:
        return start_vnic(space, self.shaped())


class VnicGuaranteed(VnicLines):
    """vnic, with CPU time that no other process can take from its engine."""

    name, what = "vnic-guaranteed", "vnic: Link, the engine with a guarantee of CPU time"

    def shaped(self) -> str:
        group = f"groups: {{sure: {{mode: spreading, guarantee: {GUARANTEE}}}}}\n"
        return f"{group}engines: [{{name: e0, group: sure}}]\n{super().shaped()}"


def _classifier(name: str, ports: Sequence[str], branches: dict[int, Any]) -> dict[str, Any]:
    rules = [{"protocol": "udp", "destination_port": port} for port in ports]
    return {"element": "Classifier", "name": name, "rules": rules, "branches": branches}


def start_vnic(space: Space, text: str) -> subprocess.Popen[bytes]:
    """`vnic up` with NICs a and b in the two namespaces. ENDA in the text: a's interface."""
    ends = {name: f"netns: {space.path(within)}, interface: t0" for name, within in (("a", space.a), ("b", space.b))}
    file = space.directory / "vnic.yaml"
    file.write_text(text.replace("ENDA", ends["a"]) + f"  b: {{{ends['b']}}}\n")
    places = {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(space.directory), "VNIC_RUNTIME_DIR": str(space.directory)}
    process = space.start([sys.executable, "-m", "vnic.cli.main", "up", str(file)], **places)
    for name in (space.a, space.b):
        space.wait_interface(name, "t0", process)
    space.connect("t0", "t0")
    return process


class KernelLines(Lines):
    """A veth pair with a qdisc at the sending end."""

    def qdisc(self) -> Iterable[str]:
        """Commands of `tc -batch`."""
        raise NotImplementedError

    def missing(self) -> str:
        with Space() as space:
            done = _tc(
                space,
                f"qdisc add dev lo root {self.name} {'default 1' if self.name == 'htb' else 'rate 1mbit burst 2kb limit 9kb'}",
            )
            return "" if done.returncode == 0 else f"{self.name} in this kernel"

    def up(self, space: Space) -> None:
        run(["ip", "-n", space.a, "link", "add", "t0", "type", "veth", "peer", "name", "t0", "netns", space.b])
        space.connect("t0", "t0")
        done = _tc(space, *self.qdisc())
        if done.returncode:
            raise BenchError(f"tc: {done.stderr.strip().splitlines()[0]}")


def _tc(space: Space, *commands: str) -> subprocess.CompletedProcess[str]:
    batch = space.directory / "tc"
    batch.write_text("".join(f"{command}\n" for command in commands))
    return finish(["tc", "-n", space.a, "-batch", str(batch)], timeout_seconds=60)


class Tbf(KernelLines):
    """tc-tbf(8): its burst is what its manual asks for, rate / HZ at least, and no less than a few packets."""

    name, what = "tbf", "Linux tbf on a veth pair"

    def qdisc(self) -> Iterable[str]:
        yield f"qdisc add dev t0 root tbf rate {self.rate_bps}bit burst 64kb limit {self.queue_packets * FRAME_BYTES}"


class Htb(KernelLines):
    """tc-htb(8) with its default burst."""

    name, what = "htb", "Linux htb on a veth pair, one class a line"

    def qdisc(self) -> Iterable[str]:
        yield "qdisc add dev t0 root handle 1: htb default 0"
        for line in range(1, self.lines + 1):
            yield f"class add dev t0 parent 1: classid 1:{line:x} htb rate {self.rate_bps}bit quantum {FRAME_BYTES}"
            yield f"qdisc add dev t0 parent 1:{line:x} pfifo limit {self.queue_packets}"


CONTESTANTS: tuple[Callable[[int], Lines], ...] = (VnicLines, VnicGuaranteed, VnicClasses, Tbf, Htb)
OTHERS = ("vnic-guaranteed", "vnic-classes", "tbf", "htb")
ONE_LINE = ("tbf",)  # a qdisc without classes


# -- measuring -------------------------------------------------------------------------------------


def arrivals(space: Space, lines: int, frame_bytes: int, pps: float, seconds: float) -> Records:
    """Sends frames of so many lines through a path, and returns their records. Raises BenchError."""
    file = space.directory / "arrivals"
    ends = [space.path(space.a), "t0", space.path(space.b), "t0"]
    done = finish(
        ["nice", "-n", "10", str(BIN / "lines"), *ends, *map(str, (lines, frame_bytes, pps, seconds, file))], seconds + 30
    )
    if done.returncode:
        raise BenchError(f"lines failed: {done.stderr.strip()}")
    said = json.loads(done.stdout)
    if said["missed"]:
        raise BenchError(f"the receiver missed {said['missed']} frames")
    found: Records = np.fromfile(file, dtype=RECORD)
    return found


def rate_errors(records: Records, lines: int, rate_bps: int, seconds: float) -> Json:
    """Errors in percent of the line that is furthest off: of the whole time, of its worst window of 100 ms, and of the one that
    99 % of all lines' windows do not exceed."""
    whole, worst, all_windows = [], [], []
    for line in range(lines):
        mine = records[records["line"] == line]
        if len(mine) < 10:
            raise BenchError(f"of line {line} only {len(mine)} frames came")
        times = mine["arrived"].astype(np.int64)
        order = np.argsort(times, kind="stable")
        times = times[order] - times[order[0]]
        bits = np.cumsum(mine["bytes"][order].astype(np.float64)) * 8
        begin, end = SETTLE_NS, SETTLE_NS + round(seconds * 1e9)
        if times[-1] < end:
            raise BenchError(f"line {line} ended {(end - times[-1]) / 1e9:.1f} s early")
        # From the first arrival after `begin` to the last before `end`.
        first, last = np.searchsorted(times, [begin, end])
        last -= 1
        whole.append(_error(bits[last] - bits[first], times[last] - times[first], rate_bps))
        starts = np.arange(begin, end - WINDOW_NS + 1, STEP_NS)
        flowed = np.interp(starts + WINDOW_NS, times, bits) - np.interp(starts, times, bits)
        windows = np.abs(_error(flowed, WINDOW_NS, rate_bps))
        worst.append(float(np.max(windows)))
        all_windows.append(windows)
    return {
        "rate_error_percent": float(max(whole, key=abs)),
        "window_error_percent": max(worst),
        "window_error_p99_percent": float(np.quantile(np.concatenate(all_windows), 0.99)),
    }


def _error(bits: Any, time_ns: Any, rate_bps: int) -> Any:
    return (bits * 1e9 / time_ns / rate_bps - 1) * 100


class Stalls:
    """How long the machine lets a process of this priority wait that is ready to run, during a `with`. A path in user space is
    late by as much, whatever it does."""

    def __init__(self) -> None:
        self._late_s: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        before_s = time.monotonic()
        while not self._ended.is_set():
            time.sleep(NAP_S)
            now_s = time.monotonic()
            self._late_s.append((now_s, now_s - before_s - NAP_S))
            before_s = now_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def as_json(self) -> Json:
        """The longest wait, and the one that 99 % of windows of 100 ms do not exceed, in percent of such a window."""
        late = np.array(self._late_s)
        windows = ((late[:, 0] - late[0, 0]) * 1e9 // WINDOW_NS).astype(int)
        most = np.zeros(windows[-1] + 1)
        np.maximum.at(most, windows, late[:, 1])
        percent = most * 1e9 / WINDOW_NS * 100
        return {"stall_percent": float(percent.max()), "stall_p99_percent": float(np.quantile(percent, 0.99))}


def measure_rate(contestant: Lines, seconds: float) -> Json:
    with Space() as space:
        contestant.up(space)
        pps = TOTAL_BPS * OVERLOAD / 8 / FRAME_BYTES
        total = seconds + SETTLE_NS / 1e9 + 0.3
        with Stalls() as stalls:
            found = arrivals(space, contestant.lines, FRAME_BYTES, pps, total)
        return {**rate_errors(found, contestant.lines, contestant.rate_bps, seconds), **stalls.as_json()}


def measure_delay(delay_ms: int, seconds: float) -> Json:
    """How much later than asked packets arrive, in us."""
    with Space() as space:
        policy = f"shape: {{links: {{a -> any: {{delay: {delay_ms}ms}}}}}}\n" if delay_ms else ""
        start_vnic(space, policy + "nics:\n  a: {ENDA}\n")
        found = arrivals(space, 1, DELAY_BYTES, DELAY_PPS, seconds)
        late_us = np.sort((found["arrived"] - found["sent"]).astype(np.float64) / 1e3 - delay_ms * 1e3)
        return {"p50": float(np.quantile(late_us, 0.5)), "p99": float(np.quantile(late_us, 0.99)), "least": float(late_us[0])}


@dataclass
class Measured:
    """Samples of one measurement, round by round."""

    what: str
    samples: list[Json] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def median(self, key: str) -> float | None:
        """By absolute value."""
        values = sorted((float(each[key]) for each in self.samples), key=abs)  # type: ignore[arg-type]
        return rounded(values[len(values) // 2]) if values else None

    def worst(self, key: str) -> float | None:
        return rounded(max((float(each[key]) for each in self.samples), key=abs, default=None))  # type: ignore[arg-type]


def measure_lives(rounds: int, seconds: float, lines: Sequence[int] = LINES) -> dict[str, Measured]:
    """All live measurements `rounds` times, interleaved, by names such as "vnic 10" and "delay 20". Raises BenchError."""
    compile_probes()
    sweep()
    steps: list[tuple[str, str, Callable[[], Json]]] = []
    for make in CONTESTANTS:
        one = make(1)
        if lacking := one.missing():
            say(f"{one.name} is left out: no {lacking}")
            continue
        for count in lines:
            if count == 1 or one.name not in ONE_LINE:
                made = make(count)
                steps.append((f"{one.name} {count}", one.what, partial(measure_rate, made, seconds)))
    for delay_ms in (0, DELAY_MS):
        steps.append((f"delay {delay_ms}", "vnic: a delay", partial(measure_delay, delay_ms, seconds)))
    found = {name: Measured(what) for name, what, _ in steps}
    for number in range(rounds):
        for name, _, step in rotate(steps, number % len(steps)):
            try:
                sample = step()
            except BenchError as error:
                found[name].failures.append(f"round {number + 1}: {error}")
                say(f"round {number + 1}/{rounds} {name:10} failed: {error}")
                continue
            found[name].samples.append(sample)
            say(f"round {number + 1}/{rounds} {name:10} " + " ".join(f"{key}={value:.4g}" for key, value in sample.items()))
    return found


def costs(repetitions: int = 31) -> Json:
    """`ns_per_packet` at batches of 32, and `flows_flat_ratio`: by what many flows or classes cost more than few."""
    from bench import elements

    wanted = {*COSTS.values(), *(name for pair in FLAT.values() for name in pair)}
    measured: Any = elements.run(repetitions, only=wanted)
    ns = {row["name"]: row["batches"]["32"]["ns"] for row in measured["elements"]}
    flows = {row["flows"]: row["ns"] for row in measured["flows"]}
    flat = {name: rounded(ns[many] / ns[one]) for name, (many, one) in FLAT.items()}
    found: Json = {"ns_per_packet": {name: ns[case] for name, case in COSTS.items()}}
    found["flows_flat_ratio"] = {"pacer": rounded(flows[MANY_FLOWS] / flows[SOME_FLOWS]), **flat}
    return found


def summarise(lives: dict[str, Measured]) -> Json:
    """The live part of the object that `--json` prints; what was not measured is left out."""

    def of(contestant: str) -> Json:
        mine = {name.split()[1]: each for name, each in lives.items() if name.startswith(f"{contestant} ") and each.samples}
        return {
            **{key: {count: each.median(key) for count, each in mine.items()} for key in (*ERRORS, *STALLS)},
            "worst_round": {key: {count: each.worst(key) for count, each in mine.items()} for key in ERRORS},
        }

    found = of("vnic")
    if (delay := lives.get(f"delay {DELAY_MS}")) and delay.samples:
        found["delay_error_us"] = {key: delay.median(key) for key in ("p50", "p99", "least")}
        path = lives["delay 0"]
        found["path_us"] = {key: path.median(key) for key in ("p50", "p99", "least")}
    for other in OTHERS:
        if any(name.startswith(f"{other} ") for name in lives):
            found[other.replace("-", "_")] = of(other)
    found["failures"] = [f"{name}: {each}" for name, one in lives.items() for each in one.failures]
    return found


def run_shaping(rounds: int, seconds: float, lines: Sequence[int] = LINES) -> Json:
    described = machine.describe()
    lives = measure_lives(rounds, seconds, lines)
    rates = {str(count): TOTAL_BPS // count for count in lines}
    return {
        **summarise(lives),
        **costs(),
        "rates_bps": rates,
        "rounds": rounds,
        "seconds": seconds,
        "machine": described,
    }


def show(console: Any, result: Json) -> None:
    """The tables: errors of rates beside the peers', of delays, and costs."""
    from rich.table import Table

    from bench.report import show_machine

    table = Table(
        title=f"Error of rates in %: {result['seconds']:g} s / 99 % of 100 ms / worst 100 ms; medians of {result['rounds']} rounds"
    )
    counts = list(result["rates_bps"])  # type: ignore[call-overload]
    table.add_column("")
    for count in counts:
        table.add_column(f"{count} lines", justify="right", no_wrap=True)
    for name in ("vnic", *OTHERS):
        one = result if name == "vnic" else result.get(name.replace("-", "_"))
        if isinstance(one, dict):
            figures = [[one[key].get(count) for key in ERRORS] for count in counts]
            table.add_row(
                name, *("-" if error is None else f"{error:+.4f} / {most:.2f} / {worst:.2f}" for error, worst, most in figures)
            )
    show_machine(console, result["machine"])  # type: ignore[arg-type]
    console.print(table)
    for key, title in (
        ("delay_error_us", f"a delay of {DELAY_MS} ms is late by"),
        ("path_us", "the path without a delay takes"),
    ):
        if isinstance(found := result.get(key), dict):
            console.print(f"{title}, us: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()), highlight=False)
    for key in ("ns_per_packet", "flows_flat_ratio"):
        if isinstance(found := result.get(key), dict):
            console.print(f"{key}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()), highlight=False)
    for failure in result["failures"]:  # type: ignore[attr-defined]
        console.print(f"failed: {failure}", highlight=False)

"""Leases of policies of shaping: that a policy ends when it says, whatever is killed, and leaves nothing.

Each round starts `vnic shape apply` with one of ENDS, and kills one of VICTIMS with SIGKILL at a
random instant: about when the policy is applied, while it runs, or after its end. The bench asks
the instance every few milliseconds what its policy is, and so sees when it ends. Then `vnic shape
show` has to agree, and after `vnic shape clear` nothing of the policy may be left: no element, no
part of the configuration, no file in the runtime directory, and no lease among what the supervisor
stores, which is read from its descriptors.

What ends a policy, and how late it may be:

--for, --confirm         the worker, at an instant that it knows
--while                  the worker, when the command behind -- has ended
--until-disconnect       the worker, when `vnic shape apply` is interrupted
command killed           the worker, when it has lost the connection of a command that held the policy
command lost             the next worker, RETURN_S after its begin: the command that held the policy
                         ended when the worker was killed, before it knew that it held one
instance                 the kernel, when the supervisor is killed: no worker is left

A worker ends a policy by one change of its network, which takes 10 to 30 ms and under load 120 ms
(`python -m bench apply`), so BOUND_MS leaves eight times that to a busy machine. Where the worker was
killed before the end, the next one has to begin, which takes up to 430 ms (`python -m bench crash`), and
the command has to find it, which it tries ten times a second, and looks once a second whether it has to:
WORKER_BOUND_MS.
"""

import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bench import machine
from bench.errors import BenchError
from bench.instance import ROOT, Instance, Json
from bench.load import quantiles
from bench.probes import finish
from bench.space import Space, sweep
from bench.tap import rounded, say
from dataplane.errors import VnicError
from shaping.policy.load import load_policy, policy_data
from vnic.api.client import Client

ENDS = ("--for", "--while", "--until-disconnect", "--confirm")
VICTIMS = ("worker", "supervisor", "command")
SEED = 1
LASTS_S = (0.3, 2.0)
STARTS_S = 0.5  # what the first command needs until its policy runs; then the median so far counts
EARLY, AROUND = 0.3, (0.6, 1.1)  # share of kills about when the policy is applied; parts of that time
ASK_S = 0.003
RETURN_S = 5.0  # vnic.runtime.policy_life.RETURN_NS
WELL_S = 3.2  # after so long the supervisor replaces a worker at once
BOUND_MS, WORKER_BOUND_MS = 1000.0, 2500.0
EARLY_MS = 10.0  # ends are told in whole milliseconds, and known after an answer
LIMIT_S = 20.0  # of a round
PROBLEMS_MOST = 20
NS = 1_000_000_000

CONFIG = "nics:\n" + "".join(
    f"  {name}0: {{{{netns: {{{name}}}, interface: t0, addresses: [10.90.0.{host}/24]}}}}\n"
    for host, name in enumerate(("a", "b"), 1)
)
BASE: Json = {"version": 1, "links": {"a0 <-> b0": {"delay": "1ms"}}}


class End:
    """When a process, this one's child or another, has ended: at_ns, by the monotonic clock."""

    def __init__(self, pid: int) -> None:
        self.pid, self.at_ns = pid, 0
        self._descriptor = os.pidfd_open(pid)
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        waiting.poll()
        self.at_ns = time.monotonic_ns()
        os.close(self._descriptor)

    def wait(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return self.at_ns != 0


class Asking:
    """A connection to the instance that is made again after each kill."""

    def __init__(self) -> None:
        self._client: Client | None = None

    def status(self) -> Json | None:
        """ShapeStatus, with the policy; None: there is no answer. Waits while a worker is
        replaced."""
        try:
            if self._client is None:
                self._client = Client(timeout_s=LIMIT_S)
            found: Json = self._client.call("ShapeStatus", whole=True)["status"]
            return found
        except VnicError:
            self.close()
            return None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class Outcome(NamedTuple):
    """what: what ended the policy; late_ms: None: there was none; worker_killed: before the end."""

    what: str
    late_ms: float | None
    worker_killed: bool = False

    @property
    def label(self) -> str:
        return f"{self.what}, worker killed" if self.worker_killed else self.what

    @property
    def bound_ms(self) -> float:
        return WORKER_BOUND_MS if self.worker_killed else BOUND_MS


class Bench:
    """An instance, and what is found out about it."""

    def __init__(self, space: Space, rng: random.Random) -> None:
        self.instance, self.rng = Instance(space, CONFIG.format(a=space.path(space.a), b=space.path(space.b))), rng
        self.asking = Asking()
        self.problems: list[str] = []
        self.starts_s: list[float] = []  # from the command's begin until its policy was seen
        self.counts: Counter[str] = Counter()
        self.before = self.traces()

    # -- a round -----------------------------------------------------------------------------------

    def round(self, number: int, end: str, victim: str) -> Outcome:
        """Raises BenchError."""
        file, data = self.write(number)
        based = end == "--confirm" and self.rng.random() < 0.5
        if based:
            self.instance.ask("Shape", policy=BASE, about="base")
        if victim == "worker":
            self._await_well()
        run = Run(self, end, victim, file, data)
        try:
            outcome = run.watch()
        finally:
            run.close()
        if victim == "supervisor":
            self.instance.supervisor.wait(LIMIT_S)
            self.instance.start()
            self.asking.close()
            if self.instance.ask("ShapeLog")["generations"]:
                self.problem(f"round {number}: a new instance has generations")
        self.check(number, BASE if based and victim != "supervisor" else None)
        return outcome

    def write(self, number: int) -> tuple[Path, Json]:
        """A policy that differs from those of other rounds, and its plain data."""
        file = self.instance.space.directory / "policy.yaml"
        file.write_text(json.dumps({"version": 1, "links": {"a0 <-> b0": {"delay": f"{number + 2}ms", "loss": "1%"}}}))
        data: Json = policy_data(load_policy(file))
        return file, data

    def _await_well(self) -> None:
        """Waits until the worker has run so long that its successor would start without a pause."""
        fields = Path(f"/proc/{self.instance.status()['pid']}/stat").read_text().rpartition(")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        time.sleep(max(WELL_S - age_s, 0))

    # -- what is left ------------------------------------------------------------------------------

    def problem(self, text: str) -> None:
        self.problems.append(text)
        say(text)

    def check(self, number: int, policy: Json | None) -> None:
        """After the end of a round's policy: that the one before runs, if there was one, and that
        nothing is left once that is cleared."""
        shown = json.loads(self._vnic("shape", "show", "--over", "1ms", "--json"))
        lines = [each["line"] for each in shown["lines"]]
        if lines != ([] if policy is None else ["a0 -> b0", "b0 -> a0"]) or shown.get("left"):
            self.problem(f"round {number}: vnic shape show has {lines} {shown.get('left')}")
            self.counts["disagreements"] += 1
        self._vnic("shape", "clear")
        found = self.traces()
        for what, before in self.before.items():
            if more := found[what] - before:
                self.problem(f"round {number}: left behind: {what} {sorted(more)}")
                self.counts["leftovers"] += len(more)

    def traces(self) -> dict[str, set[str]]:
        """All in which a policy could be left behind."""
        return {
            "elements": {each["name"] for engine in self.instance.stats()["engines"] for each in engine["elements"]},
            "configuration": {json.dumps(self.instance.ask("GetConfig")["config"], sort_keys=True)},
            "files": set(os.listdir(self.instance.runtime_directory)),
            "leases": set(self._leases()),
        }

    def _leases(self) -> list[str]:
        """What the supervisor stores of a policy that runs, or of its end."""
        found = []
        for document in self._documents():
            if isinstance(document, dict) and "config" in document:
                config = document["config"]
                found += [f"{key} {config[key]}" for key in ("shape", "shape_term") if self._is_lease(key, config.get(key))]
            if isinstance(document, list) and document and "policy" in document[-1]:
                last = document[-1]
                found += [f"{key} {last[key]}" for key in ("policy", "term") if self._is_lease(key, last.get(key))]
        return found

    @staticmethod
    def _is_lease(key: str, value: Any) -> bool:
        if key.endswith("term"):
            return any(each in value for each in ("until_ns", "confirm_ns", "held", "back")) if value else False
        return value is not None

    def _documents(self) -> list[Any]:
        """The documents that the supervisor stores (vnic/store/keeper.py), without those that are
        not JSON."""
        directory, found = Path(f"/proc/{self.instance.supervisor.pid}/fd"), []
        for each in directory.iterdir():
            with suppress(OSError, ValueError):
                if os.readlink(each).startswith("/memfd:vnic-document"):
                    found.append(json.loads(each.read_bytes()))
        return found

    def _vnic(self, *words: str) -> str:
        done = finish([sys.executable, "-m", "vnic.cli.main", *words], timeout_seconds=60)
        if done.returncode:
            raise BenchError(f"vnic {' '.join(words)}: {done.stderr.strip() or done.returncode}")
        return done.stdout


class Run:
    """`vnic shape apply` in one round, and what is seen of its policy. Times are of the monotonic
    clock."""

    def __init__(self, bench: Bench, end: str, victim: str, file: Path, data: Json) -> None:
        self.bench, self.end, self.victim, self.data = bench, end, victim, data
        rng = bench.rng
        self.lasts_s = rng.uniform(*LASTS_S)
        early = rng.random() < EARLY
        # when the victim is killed: after the command began, or after its policy was seen
        starts_s = statistics.median(bench.starts_s) if bench.starts_s else STARTS_S
        self.kill_after_s = rng.uniform(*AROUND) * starts_s if early else rng.uniform(0, 1.1 * self.lasts_s)
        self.kill_ns = time.monotonic_ns() + int(self.kill_after_s * NS) if early else 0
        self.killed_ns = self.released_ns = self.seen_ns = self.back_ns = 0
        self.end_ns: int | None = None  # when the instance says that it ends
        status = bench.instance.status()
        self.worker, self.supervisor = End(status["pid"]), bench.instance.supervisor
        self.inner: End | None = None  # the command behind --while
        time_text = f"{self.lasts_s * 1000:.0f}ms"
        words = {
            "--for": ["--for", time_text],
            "--confirm": ["--confirm", time_text],
            "--until-disconnect": ["--until-disconnect"],
            "--while": ["--while", "--", "sleep", f"{self.lasts_s:.3f}"],
        }[end]
        command = [sys.executable, "-m", "vnic.cli.main", "shape", "apply", str(file), *words]
        self.began_ns = time.monotonic_ns()
        self.process = bench.instance.space.start(command, PYTHONPATH=str(ROOT))

    def watch(self) -> Outcome:
        """Kills the victim in time, and returns when the policy has ended. Raises BenchError."""
        until_ns = time.monotonic_ns() + int(LIMIT_S * NS)
        while time.monotonic_ns() < until_ns:
            now_ns = time.monotonic_ns()
            if self.kill_ns and not self.killed_ns and now_ns >= self.kill_ns:
                self.kill()
                if self.victim == "supervisor":
                    return self.end_of_instance()
            if self.is_over(now_ns):
                self.released_ns = time.monotonic_ns()
                self.process.send_signal(signal.SIGINT)
            status = self.bench.asking.status()
            now_ns = time.monotonic_ns()
            if status is not None:
                if self.killed_ns and not self.back_ns:
                    self.back_ns = now_ns
                if status["policy"] == self.data:
                    self.see(status, now_ns)
                elif self.seen_ns:
                    return self.ended(now_ns)
                elif self.process.poll() is not None and self.killed_ns:
                    return Outcome("never applied", None)
            time.sleep(ASK_S)
        raise BenchError(f"{self.end}, {self.victim} killed: the policy has not ended within {LIMIT_S:.0f} s")

    def is_over(self, now_ns: int) -> bool:
        """Whether the command is to be interrupted now, as by Ctrl-C."""
        if self.end != "--until-disconnect" or not self.seen_ns or self.released_ns or self.killed_before_end("command"):
            return False
        return now_ns >= self.seen_ns + int(self.lasts_s * NS)

    def see(self, status: Json, now_ns: int) -> None:
        """The policy runs."""
        if not self.seen_ns:
            self.seen_ns = now_ns
            if not self.killed_ns:
                self.bench.starts_s.append((now_ns - self.began_ns) / NS)
            if not self.kill_ns:
                self.kill_ns = now_ns + int(self.kill_after_s * NS)
        left_ms = status["ends_in_ms" if self.end == "--for" else "withdrawn_in_ms"]
        if left_ms is not None:
            end_ns = now_ns + (left_ms + 1) * 1_000_000
            self.end_ns = end_ns if self.end_ns is None else min(self.end_ns, end_ns)
        if self.end == "--while" and self.inner is None:
            with suppress(OSError):
                children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
                if children:
                    self.inner = End(int(children[0]))

    def kill(self) -> None:
        pid = {"worker": self.worker.pid, "supervisor": self.supervisor.pid, "command": self.process.pid}[self.victim]
        if self.victim != "command" or self.process.poll() is None:
            os.kill(pid, signal.SIGKILL)
        self.killed_ns = time.monotonic_ns()

    def killed_before_end(self, victim: str) -> bool:
        return self.victim == victim and self.killed_ns != 0

    def end_of_instance(self) -> Outcome:
        if not self.worker.wait(LIMIT_S):
            raise BenchError("the supervisor was killed, and its worker still runs")
        return Outcome("instance", (self.worker.at_ns - self.killed_ns) / 1e6)

    def ended(self, now_ns: int) -> Outcome:
        """The policy was seen to have ended; kills the victim if it is not dead yet."""
        what, expected_ns = self.expected()
        worker_killed = self.victim == "worker" and 0 < self.killed_ns < now_ns
        late_ms = (now_ns - expected_ns) / 1e6
        outcome = Outcome(what, late_ms, worker_killed)
        if late_ms < -EARLY_MS:
            self.bench.counts["early"] += 1
            self.bench.problem(f"{self.end}, {self.victim} killed: ended {-late_ms:.0f} ms early")
        if late_ms > outcome.bound_ms:
            self.bench.counts["beyond_bound"] += 1
            self.bench.problem(f"{self.end}, {self.victim} killed: ended {late_ms:.0f} ms late")
        if not self.killed_ns:
            time.sleep(max(self.kill_ns - time.monotonic_ns(), 0) / NS)
            self.kill()
            if self.victim == "supervisor":
                self.end_of_instance()
        return outcome

    def expected(self) -> tuple[str, int]:
        """What had to end the policy, and when."""
        if self.end_ns is not None:
            return self.end, self.end_ns
        if self.killed_before_end("command"):
            return "command killed", max(self.killed_ns, self.seen_ns)
        if (
            self.killed_before_end("worker")
            and self.process.poll() not in (None, 0)
            and not self.released_ns
            and self.inner is None
        ):
            return "command lost", self.back_ns + int(RETURN_S * NS)
        if self.end == "--while":
            if self.inner is None:
                raise BenchError("--while: the command behind it was not seen")
            return self.end, self.inner.at_ns
        return self.end, self.released_ns

    def close(self) -> None:
        """Waits until the command has ended by itself, as it has to; ends what is left of it."""
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.bench.counts["leftovers"] += 1
            self.bench.problem(f"{self.end}, {self.victim} killed: the command has not ended")
            self.process.kill()
            self.process.wait()
        if self.inner is not None and not self.inner.at_ns:  # of a command that was killed
            os.kill(self.inner.pid, signal.SIGKILL)
            self.inner.wait(LIMIT_S)


def leases(rounds: int) -> Json:
    """Starts `rounds` policies that end by themselves, and kills something each time. Raises
    BenchError."""
    described, rng = machine.describe(), random.Random(SEED)
    sweep()
    kinds = [(end, victim) for end in ENDS for victim in VICTIMS]
    outcomes: list[Outcome] = []
    with Space() as space:
        bench = Bench(space, rng)
        order: list[tuple[str, str]] = []
        for number in range(rounds):
            order = order or rng.sample(kinds, len(kinds))
            end, victim = order.pop()
            outcomes.append(outcome := bench.round(number, end, victim))
            late = "" if outcome.late_ms is None else f" late_ms={outcome.late_ms:.1f}"
            say(f"round {number + 1}/{rounds} {end}, {victim} killed: {outcome.label}{late}")
            bench.counts[f"{victim} killed"] += 1
    late_ms: dict[str, list[float]] = {}
    for each in outcomes:
        if each.late_ms is not None:
            late_ms.setdefault(each.label, []).append(each.late_ms)
    counts = bench.counts
    return {
        "rounds": rounds,
        "seed": SEED,
        "killed": {victim: counts[f"{victim} killed"] for victim in VICTIMS},
        "ended": dict(sorted(Counter(each.label for each in outcomes).items())),
        "late_ms": {label: quantiles(late) for label, late in sorted(late_ms.items())},
        "bound_ms": {"worker not killed": BOUND_MS, "worker killed": WORKER_BOUND_MS},
        "beyond_bound": counts["beyond_bound"],
        "early": counts["early"],
        "show_disagreed": counts["disagreements"],
        "leftovers": counts["leftovers"],
        "problems": bench.problems[:PROBLEMS_MOST],
        "series_ms": [rounded(each.late_ms or 0.0) for each in outcomes],
        "machine": described,
    }

"""The life of virtual machines' NICs: what a guest loses while vnic's worker is killed or upgraded, while the whole of
vnic is killed and started again, and while the guest migrates.

Guests of User-mode Linux and of QEMU (without KVM) beside a container. What is counted:

- connections: a TCP stream in both directions (iperf3 --bidir) from the container to the guest, for as long as the
  rounds take. It is lost if iperf3 ends before it is told to, or if no more packets pass the guest's NIC after a round;
- dropped: packets for which the guest had no receive buffer, as one that a busy machine does not run has none. Echoes are
  among them, and are no loss of an upgrade;
- pings: numbered echoes, every PING_MS, from the container to the guest beside that stream; those that came twice, too;
- books: packets that an upgrade says that it lost, and whether all packets of the instance are accounted for;
- after a restart: echoes that the guest sends, every GUEST_PING_MS. Those lost in one piece, in ms, against the time
  from the kill until the guest is connected again: what is lost beyond it;
- in a migration: echoes of the guest, and those of the container, whose longest silence is the downtime as the network
  sees it, against QEMU's own (query-migrate).
"""

import os
import random
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.errors import BenchError
from bench.faults import CRASH_PAUSE_S, PAUSE_S
from bench.instance import Instance, Json
from bench.probes import run as run_tool
from bench.report import show_machine
from bench.space import Space, sweep, wait_for
from bench.tap import rounded, say
from tests.support.qemu import Qemu
from tests.support.shell import Shell
from tests.support.uml import Uml

GUEST, BOX = "10.99.0.2", "10.99.0.3"
MAC = "02:00:00:00:00:02"
PING_MS, GUEST_PING_MS = 5, 20
WAIT_S = 60.0
FLOWING = 200  # packets of the guest's NIC after which a stream goes on
SLACK_MS = 50  # of a downtime: an echo's interval, and the time that a busy machine takes to answer
# Of the container's stream. Without it, a guest's receive ring overflows, which is a loss of the guest's own.
STREAM_RATE = "100M"


class Echoes:
    """Echoes from the container to the guest, until `finish`."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.process = space.start(["ping", "-n", "-D", "-i", f"{PING_MS / 1000}", GUEST], within=space.a)

    def finish(self) -> "Echoed":
        """Ends them after the last reply has come."""
        end(self.process)
        return Echoed.parse(output_of(self.space, self.process))


class Echoed(NamedTuple):
    """What ping has printed. replies: when they came, s since 1970; lost: numbers of echoes without a reply before the last
    one; slowest_ms: the longest round trip."""

    sent: int
    replies: list[float]
    lost: list[int]
    twice: int
    slowest_ms: float

    @classmethod
    def parse(cls, text: str) -> "Echoed":
        found = re.findall(r"^(?:\[([0-9.]+)\] )?.*icmp_seq=(\d+) ttl=.*?(\(DUP!\))?$", text, re.MULTILINE)
        summary = re.search(r"(\d+) packets transmitted", text)
        if not found or summary is None:
            raise BenchError(f"no echo was answered: {text.strip().splitlines()[-1] if text.strip() else 'no output'}")
        numbers = {int(number) for _, number, _ in found}
        return cls(
            int(summary[1]),
            [float(at) for at, _, _ in found if at],
            sorted(set(range(min(numbers), max(numbers) + 1)) - numbers),
            sum(bool(twice) for _, _, twice in found),
            max(float(each) for each in re.findall(r"time=([0-9.]+) ms", text)),
        )

    def silence_ms(self, begin_s: float, end_s: float) -> float:
        """The longest time without a reply that overlaps this interval."""
        gaps = [(b - a) for a, b in zip(self.replies, self.replies[1:], strict=False) if a < end_s and b > begin_s]
        return 1000 * max(gaps, default=0.0)

    def pieces(self) -> list[int]:
        """How many were lost in a row, each time."""
        found: list[int] = []
        for before, number in zip([None, *self.lost], self.lost, strict=False):
            if before is not None and number == before + 1:
                found[-1] += 1
            else:
                found.append(1)
        return found


def end(process: "Popen[bytes]") -> None:
    """Ends ping or iperf3 in order, so that it prints a summary."""
    process.send_signal(signal.SIGINT)
    process.wait(WAIT_S)


def output_of(space: Space, process: "Popen[bytes]") -> str:
    return (space.directory / f"log{space.processes.index(process)}").read_text(errors="replace")


def spread(values: Iterable[float]) -> Json:
    """Median, least and greatest."""
    found = sorted(values)
    if not found:
        return {"median": None, "min": None, "max": None}
    return {"median": rounded(statistics.median(found)), "min": rounded(found[0]), "max": rounded(found[-1])}


def nic_of(instance: Instance, name: str) -> Json:
    found: Json = next(nic for nic in instance.status()["nics"] if nic["name"] == name)
    return found


def statistics_of(instance: Instance, name: str) -> Json:
    found: Json = next(nic for nic in instance.stats()["nics"] if nic["name"] == name)
    return found


def packets(instance: Instance, name: str) -> int:
    found = nic_of(instance, name)
    return int(found["rx_packets"]) + int(found["tx_packets"])


def wait_flow(instance: Instance, name: str, what: str, least: int = FLOWING) -> None:
    """Waits until packets pass a NIC. Raises BenchError."""
    before = packets(instance, name)
    wait_for(lambda: packets(instance, name) >= before + least, WAIT_S, f"{what}: no packets passed")


# -- guests ----------------------------------------------------------------------------------------


def uml(space: Space, stack: ExitStack, path: Path) -> Shell:
    home = space.directory / "guest"
    home.mkdir(exist_ok=True)
    return addressed(stack.enter_context(Uml(home, path)))


def qemu(space: Space, stack: ExitStack, path: Path, device: str = "packed=off") -> Qemu:
    guest = stack.enter_context(Qemu(path, server=True, device=f"{device},mac={MAC}"))
    addressed(guest)
    return guest


def addressed(guest: Shell) -> Shell:
    guest.run(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
    return guest


def box(space: Space) -> str:
    return f"  box: {{netns: {space.path(space.a)}, interface: eth0, addresses: [{BOX}/24]}}\n"


def begin_echoes(guest: Shell, interval_ms: int) -> None:
    """Has the guest send echoes to the container. Its console is silent meanwhile: what a guest prints while it migrates
    may be lost."""
    guest.run(f"/bin/ping -n -i {interval_ms / 1000} {BOX} > /tmp/echoes 2>&1 & echo $! > /tmp/pid")


def end_echoes(guest: Shell) -> Echoed:
    return Echoed.parse(guest.run("kill -INT $(cat /tmp/pid); wait $(cat /tmp/pid); cat /tmp/echoes", check=False))


# -- kills and upgrades of the worker --------------------------------------------------------------


def kill_worker(instance: Instance) -> Json:
    before = instance.status()["pid"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: instance.status()["pid"] != before, WAIT_S, "no other worker came")
    return {}


def upgrade(instance: Instance) -> Json:
    report: Json = instance.ask("Upgrade")["report"]
    return {"lost": report["packets_lost"], "blackout_ms": max(each["blackout_ms"] for each in report["engines"])}


def measure_faults(kind: str, act: Callable[[Instance], Json], pause_s: tuple[float, float], rounds: int) -> Json:
    """Does something to the worker, `rounds` times, under a stream. Raises BenchError."""
    with Space() as space, ExitStack() as stack:
        path = space.directory / "vm.sock"
        how = "listen" if kind == "uml" else "connect"
        config = f"nics:\n  vm: {{kind: vhost-user, {how}: {path}, mac: '{MAC}'}}\n{box(space)}"
        instance = Instance(space, config)
        guest = uml(space, stack, path) if kind == "uml" else qemu(space, stack, path)
        guest.run("iperf3 -s > /tmp/iperf 2>&1 &")
        stream = begin_stream(space)
        wait_flow(instance, "vm", "the stream")
        echoes, lost_connections, reports = Echoes(space), 0, []
        for number in range(rounds):
            begin_s = time.time()
            report = act(instance) | {"begin_s": begin_s, "end_s": time.time()}
            reports.append(report)
            wait_flow(instance, "vm", f"round {number + 1}")
            if stream.poll() is not None:
                lost_connections += 1
                say(f"the stream ended: {space.complaint(stream)}")
                stream = begin_stream(space)
            say(f"{kind} {act.__name__} {number + 1}/{rounds} {report['end_s'] - begin_s:.3f} s")
            time.sleep(random.uniform(*pause_s))
        seen = echoes.finish()
        found = instance.status()
        end(stream)
        rate = re.findall(r"\[TX-C\].*?([0-9.]+) ([MG])bits/sec.*sender", output_of(space, stream))
        nic = next(each for each in found["nics"] if each["name"] == "vm")
        return {
            "rounds": rounds,
            "connections_lost": lost_connections,
            "pings": seen.sent,
            "pings_lost": len(seen.lost),
            "pings_twice": seen.twice,
            "dropped": sum(queue["tx_dropped"] for queue in statistics_of(instance, "vm")["queues"]),
            "packets_lost_by_books": sum(report.get("lost", 0) for report in reports),
            "conserved": found["conserved"],
            "broken_rings": sum(bool(ring["broken"] or ring["faults"]) for ring in nic["rings"]),
            "silence_ms": spread(seen.silence_ms(report["begin_s"], report["end_s"] + 0.1) for report in reports),
            "blackout_ms": spread(report["blackout_ms"] for report in reports if "blackout_ms" in report),
            "stream_mbps": rounded(float(rate[-1][0]) * (1000 if rate[-1][1] == "G" else 1)) if rate else None,
        }


def begin_stream(space: Space) -> "Popen[bytes]":
    """A TCP stream in both directions, once the guest's server listens. Raises BenchError."""
    command = ["iperf3", "-c", GUEST, "-t", "86400", "--bidir", "-b", STREAM_RATE, "-i", "0"]
    for _ in range(100):
        process = space.start(command, within=space.a)
        time.sleep(0.3)
        if process.poll() is None:
            return process
    raise BenchError(f"iperf3: {space.complaint(process)}")


# -- the whole instance is killed and started again ------------------------------------------------


def measure_restarts(rounds: int) -> Json:
    """Kills the worker and the supervisor, and starts vnic again, beside a guest of QEMU, which listens."""
    with Space() as space, ExitStack() as stack:
        path = space.directory / "vm.sock"
        instance = Instance(space, f"nics:\n  vm: {{kind: vhost-user, connect: {path}, mac: '{MAC}'}}\n{box(space)}")
        guest = qemu(space, stack, path)
        begin_echoes(guest, GUEST_PING_MS)
        wait_flow(instance, "vm", "the guest's echoes", 20)
        outages_ms = []
        for number in range(rounds):
            begin_s = time.monotonic()
            kill_all(instance)
            instance.start()
            wait_for(lambda: all(ring["started"] for ring in nic_of(instance, "vm")["rings"]), WAIT_S, "the guest's rings")
            outages_ms.append(1000 * (time.monotonic() - begin_s))
            say(f"restart {number + 1}/{rounds} {outages_ms[-1]:.0f} ms")
            wait_flow(instance, "vm", f"restart {number + 1}", 20)
            time.sleep(random.uniform(*PAUSE_S))
        seen = end_echoes(guest)
        lost_ms = [GUEST_PING_MS * piece for piece in seen.pieces()]
        beyond = [lost - outage for lost, outage in zip(sorted(lost_ms), sorted(outages_ms)[-len(lost_ms) :], strict=False)]
        return {
            "rounds": rounds,
            "pings": seen.sent,
            "pings_lost": len(seen.lost),
            "pings_twice": seen.twice,
            "pieces": len(lost_ms),
            "lost_ms": spread(lost_ms),
            "outage_ms": spread(outages_ms),
            "beyond_ms": rounded(max(0.0, *beyond)) if beyond else 0,
        }


def kill_all(instance: Instance) -> None:
    """Ends all processes of an instance at once."""
    found = instance.status()
    for pid in (found["supervisor"]["pid"], found["pid"]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    instance.supervisor.wait()
    wait_for(lambda: not is_alive(found["pid"]), WAIT_S, "the killed worker is still there")


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


# -- migration -------------------------------------------------------------------------------------


class Move(NamedTuple):
    """How a guest migrates. joined: between two instances, whose switches a veth pair joins; else between two NICs of one.
    echoes: it sends some meanwhile; else only what announces it tells the switches where it is. device: QEMU's options."""

    joined: bool
    echoes: bool
    device: str = "packed=off"


MOVES = {
    "one vnic": Move(joined=False, echoes=True),
    "two vnics": Move(joined=True, echoes=True),
    "two vnics, packed rings": Move(joined=True, echoes=True, device="packed=on"),
    "two vnics, silent guest": Move(joined=True, echoes=False),
    "two vnics, silent guest, RARP": Move(joined=True, echoes=False, device="packed=off,guest_announce=off"),
}


def instances_of(space: Space, move: Move, paths: Sequence[Path]) -> list[Instance]:
    """The instance behind each of the guest's two NICs."""
    vms = [f"  vm{n}: {{kind: vhost-user, connect: {path}}}\n" for n, path in enumerate(paths)]  # QEMU has the address
    if not move.joined:
        return [Instance(space, f"nics:\n{vms[0]}{vms[1]}{box(space)}")] * 2
    run_tool(["ip", "-n", space.middle, "link", "add", "j0", "type", "veth", "peer", "name", "j1"])
    found = []
    for number, beside in enumerate((box(space), "")):
        run_tool(["ip", "-n", space.middle, "link", "set", f"j{number}", "up"])
        join = f"  join: {{kind: packet, netns: {space.path(space.middle)}, interface: j{number}}}\n"
        found.append(Instance(space, f"nics:\n{vms[number]}{join}{beside}", str(number)))
    return found


def measure_moves(move: Move, rounds: int) -> Json:
    """Migrates a guest to and fro, `rounds` times. Raises BenchError."""
    with Space() as space, ExitStack() as stack:
        paths = [space.directory / f"vm{n}.sock" for n in range(2)]
        instances = instances_of(space, move, paths)
        guest = qemu(space, stack, paths[0], move.device)
        if move.echoes:
            begin_echoes(guest, 2 * PING_MS)
        else:
            guest.run(f"ping -c 1 {BOX}")
        reports: list[Json] = []
        echoes = Echoes(space)
        for number in range(rounds):
            to = (number + 1) % 2
            after = stack.enter_context(Qemu(paths[to], server=True, incoming=True, device=f"{move.device},mac={MAC}"))
            uri = f"unix:{space.directory}/migration{number}.sock"
            after.command("migrate-incoming", uri=uri)
            wait_for(lambda: nic_of(instances[to], f"vm{to}")["guest"] == "connected", WAIT_S, "the destination")  # noqa: B023
            wait_flow(instances[1 - to], f"vm{1 - to}", "before the migration", 20)
            begin_s = time.time()
            guest.command("migrate", uri=uri)
            while (state := guest.command("query-migrate"))["status"] not in ("completed", "failed"):
                time.sleep(0.01)
            if state["status"] == "failed":
                raise BenchError(f"migration {number + 1} failed: {state}")
            wait_flow(instances[to], f"vm{to}", f"migration {number + 1}", 40)
            reports.append(
                {"begin_s": begin_s, "end_s": time.time(), **{key: state[key] for key in ("downtime", "total-time")}}
            )
            guest.close()
            guest = after
            say(f"migration {number + 1}/{rounds} downtime {state['downtime']} ms of {state['total-time']} ms, {begin_s:.3f}")
        seen = echoes.finish()
        own = end_echoes(guest) if move.echoes else None
        silences = [seen.silence_ms(report["begin_s"], report["end_s"]) for report in reports]
        excess = [silence - report["downtime"] for silence, report in zip(silences, reports, strict=True)]
        return {
            "rounds": rounds,
            "guest_pings": own and own.sent,
            "guest_pings_lost": own and len(own.lost),
            "guest_pings_twice": own and own.twice,
            "guest_slowest_ms": own and own.slowest_ms,
            "pings": seen.sent,
            "pings_lost": len(seen.lost),
            "pings_twice": seen.twice,
            "downtime_ms": spread(report["downtime"] for report in reports),
            "silence_ms": spread(silences),
            "excess_ms": spread(excess),
            "total_ms": spread(report["total-time"] for report in reports),
            "series_ms": [rounded(each) for each in silences],
            "problem": nic_of(instances[rounds % 2], f"vm{rounds % 2}")["problem"],
        }


# -- all -------------------------------------------------------------------------------------------


PARTS = ("faults", "restarts", "migrations")


def run(rounds: int, parts: Sequence[str] = PARTS) -> Json:
    """Kills and upgrades `rounds` times, restarts and migrates 0.4 times as often. Raises BenchError."""
    sweep()
    described, fewer = machine.describe(), max(1, rounds * 2 // 5)
    measures: dict[str, dict[str, Callable[[], Json]]] = {
        "faults": {
            f"{kind}, {name}": partial(measure_faults, kind, act, pause_s, rounds)
            for kind in ("uml", "qemu")
            for name, act, pause_s in (("kill", kill_worker, CRASH_PAUSE_S), ("upgrade", upgrade, PAUSE_S))
        },
        "restarts": {"qemu": partial(measure_restarts, fewer)},
        "migrations": {name: partial(measure_moves, move, fewer) for name, move in MOVES.items()},
    }
    found: Json = {"rounds": rounds}
    for part in PARTS:
        found[part] = {}
        for name, measure in measures[part].items() if part in parts else ():
            try:
                found[part][name] = measure()
            except AssertionError as error:  # of a guest's console
                raise BenchError(f"{name}: {error}") from None
            say(f"{name}: {found[part][name]}")
    return {**found, "machine": described, "broken": broken(found)}


def broken(result: Json) -> list[str]:
    """What must not be, on any machine."""
    found = []
    for name, one in result["faults"].items():
        wanted = {"connections_lost": 0, "packets_lost_by_books": 0, "broken_rings": 0, "conserved": True}
        if name.endswith("upgrade"):
            wanted |= {"pings_twice": 0}
            if one["pings_lost"] > one["dropped"]:
                found.append(f"{name}: {one['pings_lost']} echoes lost, {one['dropped']} dropped")
        found += [f"{name}: {key} {one[key]}" for key, value in wanted.items() if one[key] != value]
    for name, one in result["restarts"].items():
        if one["beyond_ms"] > SLACK_MS:
            found.append(f"{name}, restart: echoes of {one['beyond_ms']} ms were lost beyond the outage")
        if one["pieces"] > one["rounds"] or one["pings_twice"]:
            found.append(f"{name}, restart: {one['pieces']} pieces lost, {one['pings_twice']} echoes twice")
    for name, one in result["migrations"].items():
        # a reply that is under way when the guest stops meets a ring that does not run
        most = {"guest_pings_lost": max(1, one["rounds"] // 10), "guest_pings_twice": 0}
        found += [f"{name}: {key} {one[key]}" for key, bound in most.items() if (one[key] or 0) > bound]
        if one["excess_ms"]["max"] > SLACK_MS:
            found.append(f"{name}: {one['excess_ms']['max']} ms beyond the front end's downtime")
        found += [f"{name}: {one['problem']}"] if one["problem"] else []
    return found


def show(console: Console, result: Json) -> None:
    """A table for each kind of fault."""
    show_machine(console, result["machine"])
    for title, rows in (
        ("Worker killed or upgraded", result["faults"]),
        ("vnic killed and started again", result["restarts"]),
        ("Migration", result["migrations"]),
    ):
        if not rows:
            continue
        table = Table(title=title)
        keys = [key for key in next(iter(rows.values())) if key != "series_ms"]
        for key in ("", *keys):
            table.add_column(key.replace("_", " "), justify="right" if key else "left")
        for name, one in rows.items():
            table.add_row(name, *(_shown(one[key]) for key in keys))
        console.print(table)
    for each in result["broken"]:
        console.print(f"  broken: {each}", highlight=False)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "-" if value["median"] is None else f"{value['median']:g} ({value['min']:g}-{value['max']:g})"
    return "-" if value is None else str(value)

"""Effect of the control API on packets: round trips between two containers, measured in turns:

alone; beside CLIENTS clients of the control API of the instance between them ("clients"); and
beside the same clients of another instance ("elsewhere"), which has as many engines and NICs but no
packets.

Each client requests the status, statistics, and a new rate, in turn, every PAUSE_S: some
CLIENTS / PAUSE_S calls a second. Clients and control take CPU time from all processes on the same
CPUs. "elsewhere" shows the effect of that alone; "clients" compared with "elsewhere" shows the
additional effect on engines whose own control is used.

A round trip includes the wake-ups of its two ends, ordinary processes which clients can delay.
"through" is the engines' part: one way, from the send to the receiving kernel's time stamp. All is
measured with the engines' default scheduling ("default") and with a guarantee of CPU time
("guaranteed").
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import contestants, machine
from bench.modes import ENGINES, PAUSE_US, _up
from bench.probes import compile_probes, probe
from bench.report import show_machine
from bench.space import Space, sweep
from bench.tap import rounded, say
from vnic.api.client import Client

CLIENTS = 200
PAUSE_S = 0.25
KEYS = ("p50_us", "p99_us", "through_p50_us", "through_p99_us", "through_p999_us")
KINDS = ("alone", "elsewhere", "clients")
GROUPS: dict[str, dict[str, object]] = {
    "default": {"mode": "spreading"},
    # Four of them are 0.8 CPUs: the kernel admits guarantees of up to 95 % of all CPUs (sched(7)).
    "guaranteed": {"mode": "spreading", "guarantee": "{runtime: 200us, period: 1ms}"},
}

# Runs in a process of its own, as clients do. Prints the numbers of calls answered and failed at
# the end.
LOAD = """
import asyncio, json, sys
path, clients, pause_s, seconds = sys.argv[1], *map(float, sys.argv[2:])
done = {"calls": 0, "errors": 0}

async def client(number):
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
    await asyncio.sleep(pause_s * number / clients)
    calls = [("Status", {}), ("Stats", {}), ("SetRate", {"name": "a0", "egress": f"{900 + number}mbit"})]
    turn = number
    while True:
        method, parameters = calls[turn % 3]
        turn += 1
        writer.write(json.dumps({"method": f"org.vnic.Control.{method}", "parameters": parameters}).encode() + b"\\0")
        reply = await reader.readuntil(b"\\0")
        done["calls"] += 1
        done["errors"] += reply.startswith(b'{"error"')
        await asyncio.sleep(pause_s)

async def main():
    tasks = [asyncio.create_task(client(number)) for number in range(int(clients))]
    print("begun", flush=True)
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    done["errors"] += sum(task.done() for task in tasks)
    print(json.dumps(done), flush=True)

asyncio.run(main())
"""


def _up_elsewhere(space: Space) -> Path:
    """Starts another instance, whose NICs are not used; returns its runtime directory."""
    directory = space.directory / "elsewhere"
    directory.mkdir(mode=0o700)
    nics = "".join(
        f"  {name}{number}: {{netns: {space.path(space.middle)}, interface: {name}{number}, engine: {number}}}\n"
        for name in "ab"
        for number in ENGINES
    )
    (directory / "vnic.yaml").write_text(f"engines: {len(ENGINES)}\nnics:\n{nics}")
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "VNIC_RUNTIME_DIR": str(directory)}
    process = space.start([sys.executable, "-m", "vnic.cli.main", "up", str(directory / "vnic.yaml")], **environment)
    space.wait_interface(space.middle, f"b{ENGINES[-1]}", process)
    return directory


def _measure(space: Space, directory: Path | None, seconds: float) -> dict[str, float]:
    trips = int(seconds * 1e6 / (1.5 * PAUSE_US + 100))
    load: subprocess.Popen[str] | None = None
    if directory is not None:
        arguments = [str(directory / "default.sock"), str(CLIENTS), str(PAUSE_S), str(seconds + 0.5)]
        load = subprocess.Popen([sys.executable, "-c", LOAD, *arguments], stdout=subprocess.PIPE, text=True)
        assert load.stdout is not None
        load.stdout.readline()
    try:
        found = probe(
            "pingpong", space.path(space.a), space.path(space.b), "10.91.0.2", trips, PAUSE_US, timeout_seconds=seconds + 60
        )
        answered = json.loads(load.communicate(timeout=60)[0]) if load else {"calls": 0, "errors": 0}
    finally:
        if load is not None and load.poll() is None:
            load.kill()
            load.wait()
    return {
        **{key: found[key] for key in KEYS},
        "lost": found["lost"],
        "calls_per_s": answered["calls"] / seconds,
        "errors": answered["errors"],
    }


def _in_turn(group: str, number: int, seconds: float) -> tuple[dict[str, dict[str, float]], str, int]:
    """All kinds once, in rotated order: the samples, the engines' scheduling class, resident memory
    in kB."""
    with Space() as space:
        process = _up(space, GROUPS[group])
        places = dict(zip(KINDS, (None, _up_elsewhere(space), space.directory), strict=True))
        _measure(space, None, 0.3)
        samples = {}
        for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
            samples[kind] = _measure(space, places[kind], seconds)
            say(f"round {number + 1} {group:10} {kind:9} " + " ".join(f"{k}={v:.4g}" for k, v in samples[kind].items()))
        with Client(str(space.directory / "default.sock")) as client:
            threads = client.call("Status")["status"]["groups"][0]["threads"]
        return samples, threads[0]["scheduling"], contestants.tree_resident_kb(process.pid)


def run(rounds: int, seconds: float) -> dict[str, Any]:
    """Medians over `rounds`, measured in turns. Raises BenchError."""
    compile_probes()
    sweep()
    described = machine.describe()
    samples: dict[str, dict[str, list[dict[str, float]]]] = {group: {kind: [] for kind in KINDS} for group in GROUPS}
    scheduling, resident_kb = {}, 0
    for number in range(rounds):
        for group in GROUPS:
            taken, scheduling[group], resident_kb = _in_turn(group, number, seconds)
            for kind, sample in taken.items():
                samples[group][kind].append(sample)
    return {
        **{group: {**_summary(each), "scheduling": scheduling[group]} for group, each in samples.items()},
        "clients_count": CLIENTS, "resident_mb": rounded(resident_kb / 1024), "rounds": rounds, "seconds": seconds,
        "machine": described,
    }  # fmt: skip


def _summary(samples: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians = {
        kind: {key: rounded(statistics.median(sample[key] for sample in each)) for key in each[0]}
        for kind, each in samples.items()
    }
    spread = {
        kind: {key: [min(s[key] for s in each), max(s[key] for s in each)] for key in KEYS} for kind, each in samples.items()
    }
    ratios = {
        f"clients/{base}": {key: rounded(float(medians["clients"][key] or 0) / float(medians[base][key] or 1)) for key in KEYS}
        for base in KINDS[:2]
    }
    return {**medians, "ratios": ratios, "spread": spread}


def show(console: Console, result: Mapping[str, Any]) -> None:
    """A table: medians (min-max)."""
    show_machine(console, result["machine"])
    table = Table(
        title=f"Packets without and with {result['clients_count']} control clients: medians of {result['rounds']} (min-max), us"
    )
    titles = ("engines", "", "trip p50", "p99", "through p50", "p99", "p99.9", "calls/s")
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number > 1 else "left", no_wrap=True)
    for group in GROUPS:
        found = result[group]
        for kind in KINDS:
            spread = found["spread"][kind]
            cells = [f"{found[kind][key]:.0f} [dim]({spread[key][0]:.0f}-{spread[key][1]:.0f})[/dim]" for key in KEYS]
            name = f"{group} [dim]({found['scheduling']})[/dim]" if kind == KINDS[0] else ""
            table.add_row(name, kind, *cells, f"{found[kind]['calls_per_s']:.0f}")
        for name, ratios in found["ratios"].items():
            table.add_row("", name, *(f"{ratios[key]:.2f}" for key in KEYS), "")
        table.add_section()
    console.print(table)

"""Virtual machines' NICs: packets that circulate between two ports of a DPDK front end through vnic, beside DPDK's own
back end; TCP and round trips between two guests of User-mode Linux; the CPU time of an idle vnic.

The front end is testpmd with two virtio-user ports, which sends what it receives at one port out of the other. The back
end has another CPU for its packets. Each packet that the front end counts has passed the back end once.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.contestants import tree_cpu_ns
from bench.errors import BenchError
from bench.instance import ROOT
from bench.report import show_machine
from bench.space import Space, sweep, wait_for
from bench.tap import Json, Series, ratio, rotate, say
from tests.support.uml import Uml

CPUS = sorted(os.sched_getaffinity(0))
TESTPMD = "dpdk-testpmd"
# 512 MB each, 4 KiB pages: no huge pages are needed, and two of them fit a machine of 2 GB
MEMORY = ("--no-huge", "-m", "512", "--no-pci", "--no-telemetry")
MACS = ("02:00:00:00:01:00", "02:00:00:00:01:01")
RING = 256
BURSTS = 4  # of 32 packets that circulate in each direction: half of a ring
START_S = 20.0
RATE = "100gbit"  # a shaper that delays nothing: what its work costs
PINGS = 2000
IDLE_S = 5.0


class BackEnd:
    """What forwards between the two sockets."""

    name = ""
    what = ""

    def __init__(self, *, packed: bool) -> None:
        self.packed = packed

    def up(self, space: Space, sockets: Sequence[Path]) -> None:
        """Starts it. Raises BenchError."""
        raise NotImplementedError


class Vnic(BackEnd):
    """vnic with two NICs on its switch, on an engine that polls."""

    def __init__(self, *, packed: bool, shape: bool = False) -> None:
        super().__init__(packed=packed)
        self.shape = shape
        self.name = f"vnic-{'packed' if packed else 'split'}{'-shape' if shape else ''}"
        self.what = f"vnic: switch{' and shaper' if shape else ''}"

    def up(self, space: Space, sockets: Sequence[Path]) -> None:
        group = f"groups: {{default: {{mode: dedicated, cpus: [{CPUS[-1]}]}}}}\n"
        start_vnic(space, sockets, group, f", egress: {{rate: {RATE}}}" if self.shape else "")


class Testpmd(BackEnd):
    """testpmd with two vhost ports: it passes packets on without a look at them."""

    def __init__(self, *, packed: bool) -> None:
        super().__init__(packed=packed)
        self.name = f"testpmd-{'packed' if packed else 'split'}"
        self.what = "DPDK testpmd, io: no lookup"

    def up(self, space: Space, sockets: Sequence[Path]) -> None:
        ports = [f"--vdev=net_vhost{n},iface={path},queues=1" for n, path in enumerate(sockets)]
        process = start_testpmd(space, "back", CPUS[-1], CPUS[0], ports, 64)
        tell(process, "start")


CONTESTANTS: tuple[BackEnd, ...] = (
    Vnic(packed=False),
    Vnic(packed=True),
    Vnic(packed=False, shape=True),
    Vnic(packed=True, shape=True),
    Testpmd(packed=False),
    Testpmd(packed=True),
)


def start_vnic(space: Space, sockets: Sequence[Path], group: str = "", settings: str = "") -> "Popen[bytes]":
    """An instance with a NIC for each socket. Raises BenchError."""
    nics = "".join(f"  v{n}: {{kind: vhost-user, listen: {path}{settings}}}\n" for n, path in enumerate(sockets))
    file = space.directory / "vnic.yaml"
    file.write_text(f"{group}nics:\n{nics}")
    process = space.start(
        [sys.executable, "-m", "vnic.cli.main", "up", str(file)], PYTHONPATH=str(ROOT), VNIC_RUNTIME_DIR=str(space.directory)
    )
    wait_up(space, process, lambda: all(path.exists() for path in sockets), "vnic did not come up")
    return process


def start_testpmd(space: Space, name: str, cpu: int, other: int, ports: Sequence[str], length: int) -> "Popen[bytes]":
    """testpmd that forwards on one CPU and reads commands on another."""
    # stdbuf: what it prints is read while it runs
    command = [
        "stdbuf",
        "-oL",
        TESTPMD,
        "-l",
        f"{min(cpu, other)},{max(cpu, other)}",
        "--main-lcore",
        str(other),
        *MEMORY,
        f"--file-prefix={name}",
    ]
    forward = ["--nb-cores=1", "--total-num-mbufs=8192", "--forward-mode=io", f"--txpkts={length}", "--stats-period=0"]
    peers = [f"--eth-peer={n},{mac}" for n, mac in enumerate(reversed(MACS))]
    process = space.start(
        [*command, *ports, "--", *forward, *peers, "-i"],
        HOME=str(space.directory),
        XDG_RUNTIME_DIR=str(space.directory),
        LD_PRELOAD="",  # a sanitizer's library, in tests of the checked build
    )
    wait_up(space, process, lambda: "testpmd>" in output_of(space, process), "testpmd did not start")
    return process


def wait_up(space: Space, process: "Popen[bytes]", condition: Callable[[], bool], what: str) -> None:
    """Waits for a process that has just been started. Raises BenchError, with the process' own last
    line if it has ended."""

    def is_up() -> bool:
        if process.poll() is not None:
            raise BenchError(space.complaint(process))
        return condition()

    wait_for(is_up, START_S, what)


def tell(process: "Popen[bytes]", command: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{command}\n".encode())
    process.stdin.flush()


def output_of(space: Space, process: "Popen[bytes]") -> str:
    return (space.directory / f"log{space.processes.index(process)}").read_text(errors="replace")


def received(space: Space, front: "Popen[bytes]", count: int) -> tuple[int, float]:
    """Packets that both ports have received, as the `count`th report has them, and when it came."""
    tell(front, "show port stats all")
    wait_for(lambda: output_of(space, front).count("RX-packets:") >= 2 * count, START_S, "testpmd did not answer")
    now = time.monotonic()
    counts = re.findall(r"RX-packets:\s*(\d+)", output_of(space, front))
    return sum(int(each) for each in counts[2 * count - 2 : 2 * count]), now


def measure(back: BackEnd, length: int, seconds: float) -> dict[str, float]:
    """Packets in millions a second through one back end. Raises BenchError."""
    with Space() as space:
        sockets = [space.directory / f"v{n}.sock" for n in range(2)]
        back.up(space, sockets)
        ring = f",queues=1,queue_size={RING}" + (",packed_vq=1" if back.packed else "")
        ports = [f"--vdev=net_virtio_user{n},path={path},mac={MACS[n]}{ring}" for n, path in enumerate(sockets)]
        front = start_testpmd(space, "front", CPUS[0], CPUS[-1], ports, length)
        tell(front, f"start tx_first {BURSTS}")
        time.sleep(0.5)  # caches and the CPUs' clocks
        first, began_s = received(space, front, 1)
        time.sleep(seconds)
        last, ended_s = received(space, front, 2)
        if first == last:
            raise BenchError("no packet came back")
        return {"mpps": (last - first) / (ended_s - began_s) / 1e6}


@contextmanager
def guests(space: Space, sockets: Sequence[Path]) -> Iterator[list[Uml]]:
    """A guest of User-mode Linux behind each socket, 10.99.0.1 and so on. Raises BenchError."""
    with ExitStack() as stack:
        found = []
        for number, path in enumerate(sockets, 1):
            home = space.directory / f"guest{number}"
            home.mkdir()
            guest = stack.enter_context(Uml(home, path))
            guest.run(f"ip addr add 10.99.0.{number}/24 dev eth0; ip link set eth0 up")
            found.append(guest)
        yield found


def measure_guests(seconds: float) -> dict[str, float]:
    """TCP and round trips between two guests, and what an idle vnic takes. Raises BenchError."""
    with Space() as space:
        sockets = [space.directory / f"v{n}.sock" for n in range(2)]
        process = start_vnic(space, sockets)
        with guests(space, sockets) as (one, two):
            two.begin("iperf3 -s -1 -J")
            sent = one.run(f"for n in $(seq 50); do iperf3 -c 10.99.0.2 -t {seconds:g} -f g && break; sleep 0.1; done")
            two.finish()
            rate = re.search(r"([0-9.]+) Gbits/sec\s+receiver", sent)
            times = one.run(f"ping -c {PINGS} -i 0.002 10.99.0.2")
            rtt_us = sorted(float(each) * 1000 for each in re.findall(r"time=([0-9.]+) ms", times))
            before = tree_cpu_ns(process.pid)
            time.sleep(IDLE_S)
            idle = (tree_cpu_ns(process.pid) - before) / 1e9 / IDLE_S * 100
        if rate is None or not rtt_us:
            raise BenchError("the guests did not reach each other")
        return {
            "uml_tcp_gbps": float(rate[1]),
            "rtt_p50_us": rtt_us[len(rtt_us) // 2],
            "rtt_p99_us": rtt_us[len(rtt_us) * 99 // 100],
            "idle_cpu_percent": idle,
        }


def run(rounds: int, seconds: float) -> Json:
    """Measures all back ends `rounds` times, interleaved. Raises BenchError."""
    sweep()
    described = machine.describe()
    lengths = {"mpps": 60, "mpps_1518": 1514}
    series = {each.name: Series(each.what) for each in CONTESTANTS}
    ours = Series("vnic, guests of User-mode Linux")
    for number in range(rounds):
        for back in rotate(list(CONTESTANTS), number % len(CONTESTANTS)):
            sample: dict[str, float] = {}
            try:
                for key, length in lengths.items():
                    sample[key] = measure(back, length, seconds)["mpps"]
            except BenchError as error:
                series[back.name].failures.append(f"round {number + 1}: {error}")
                say(f"round {number + 1}/{rounds} {back.name:18} failed: {error}")
                continue
            series[back.name].samples.append(sample)
            say(
                f"round {number + 1}/{rounds} {back.name:18} " + " ".join(f"{key}={value:.4g}" for key, value in sample.items())
            )
        try:
            ours.samples.append(found := measure_guests(seconds))
            say(f"round {number + 1}/{rounds} guests " + " ".join(f"{key}={value:.4g}" for key, value in found.items()))
        except (BenchError, AssertionError) as error:
            ours.failures.append(f"round {number + 1}: {error}")
            say(f"round {number + 1}/{rounds} guests failed: {error}")
    contestants: Json = {}
    for back in CONTESTANTS:
        one, peer = series[back.name], series["testpmd-packed" if back.packed else "testpmd-split"]
        contestants[back.name] = {
            **one.as_json(),
            **{f"{key}_ratio": ratio(one.median(key), peer.median(key)) for key in lengths},
        }
    return {"rounds": rounds, "seconds": seconds, "contestants": contestants, "guests": ours.as_json(), "machine": described}


def show(console: Console, result: Json) -> None:
    """The tables: medians, and their ratios to testpmd's on the same kind of rings."""
    table = Table(title=f"virtio-user through a back end: medians of {result['rounds']} rounds, and / testpmd")
    for title in ("", "64 B Mpps", "1518 B Mpps"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    contestants, ours = result["contestants"], result["guests"]
    assert isinstance(contestants, dict)
    assert isinstance(ours, dict)
    for name, one in contestants.items():
        keys = ("mpps", "mpps_1518")
        table.add_row(
            name, *("-" if one.get(key) is None else f"{one[key]:.4g} [dim]({one[f'{key}_ratio']})[/dim]" for key in keys)
        )
    show_machine(console, result["machine"])  # type: ignore[arg-type]
    console.print(table)
    words = {
        "uml_tcp_gbps": "TCP Gbit/s",
        "rtt_p50_us": "ping p50 us",
        "rtt_p99_us": "p99 us",
        "idle_cpu_percent": "idle vnic CPU %",
    }
    console.print(
        "two guests of User-mode Linux: " + ", ".join(f"{words[key]} {ours[key]:.4g}" for key in words if ours.get(key))
    )
    for name, one in {**contestants, "guests": ours}.items():
        for failure in one["failures"]:
            console.print(f"  {name:18} {failure}", highlight=False)

"""Virtual machines' NICs: packets that circulate between two ports of a DPDK front end through vnic, beside its peers;
TCP and round trips between two guests of User-mode Linux, TCP between two of QEMU; the CPU time of an idle vnic.

The front end is testpmd with two virtio-user ports, which sends what it receives at one port out of the other. The back
end has another CPU for its packets, on which it polls. Each packet that the front end counts has passed the back end
once.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.contestants import tree_cpu_ns
from bench.errors import BenchError
from bench.report import show_machine
from bench.space import Space, sweep
from bench.tap import Json, Sample, Series, ratio, rotate, say
from bench.virt_back_ends import CPUS, MACS, OURS, PEERS, BackEnd, received, start_testpmd, start_vnic, tell
from tests.support.qemu import Qemu
from tests.support.shell import Shell
from tests.support.uml import Uml

RING = 256
BURSTS = 4  # of 32 packets that circulate in each direction: half of a ring
SETTLE_S = 1.0
PINGS = 2000
IDLE_S = 5.0
LENGTHS = {"mpps": 60, "mpps_1518": 1514}


def measure(back: BackEnd, length: int, seconds: float) -> float:
    """Packets in millions a second through one back end. Raises BenchError."""
    with Space() as space:
        sockets = [space.directory / f"v{n}.sock" for n in range(2)]
        back.up(space, sockets)
        ring = f",queues=1,queue_size={RING}" + (",packed_vq=1" if back.packed else "")
        ports = [f"--vdev=net_virtio_user{n},path={path},mac={MACS[n]}{ring}" for n, path in enumerate(sockets)]
        front = start_testpmd(space, "front", CPUS[0], CPUS[-1], ports, length)
        # A switch that has not brought up both ports yet would drop some of the packets for good.
        time.sleep(SETTLE_S)
        tell(front, f"start tx_first {BURSTS}")
        time.sleep(0.5)  # caches and the CPUs' clocks
        first, began_s = received(space, front, 1)
        time.sleep(seconds)
        last, ended_s = received(space, front, 2)
        if first == last:
            raise BenchError("no packet came back")
        return (last - first) / (ended_s - began_s) / 1e6


def measure_rates(back: BackEnd, seconds: float) -> Sample:
    """All lengths through one back end. Raises BenchError."""
    sample = {key: measure(back, length, seconds) for key, length in LENGTHS.items()}
    if hz := machine.clock_hz():
        # The back end polls, so all cycles of its CPU are its packets', where it is the slower side.
        sample["cycles_per_packet"] = hz / 1e6 / sample["mpps"]
    return sample


@contextmanager
def guests(space: Space, sockets: Sequence[Path], boot: Callable[[Path, Path], Shell]) -> Iterator[list[Shell]]:
    """A guest behind each socket, 10.99.0.1 and so on. Raises AssertionError."""
    with ExitStack() as stack:
        found = []
        for number, path in enumerate(sockets, 1):
            home = space.directory / f"guest{number}"
            home.mkdir()
            guest = stack.enter_context(boot(home, path))
            guest.run(f"ip addr add 10.99.0.{number}/24 dev eth0; ip link set eth0 up")
            found.append(guest)
        yield found


def tcp_gbps(one: Shell, two: Shell, seconds: float) -> float:
    """TCP from one guest to the other. Raises BenchError."""
    whole = max(round(seconds), 1)  # iperf3 takes 0 for no end
    two.begin("iperf3 -s -1")
    sent = one.run(f"for n in $(seq 50); do iperf3 -c 10.99.0.2 -t {whole} -f g && break; sleep 0.1; done")
    two.finish()
    if (rate := re.search(r"([0-9.]+) Gbits/sec\s+receiver", sent)) is None:
        raise BenchError("the guests did not reach each other by TCP")
    return float(rate[1])


def measure_uml(seconds: float) -> Sample:
    """TCP and round trips between two guests of User-mode Linux, and what vnic takes while they are
    idle. Raises BenchError, AssertionError."""
    with Space() as space:
        sockets = [space.directory / f"v{n}.sock" for n in range(2)]
        process = start_vnic(space, sockets)
        with guests(space, sockets, Uml) as (one, two):
            rate = tcp_gbps(one, two, seconds)
            times = one.run(f"ping -c {PINGS} -i 0.002 10.99.0.2")
            rtt_us = sorted(float(each) * 1000 for each in re.findall(r"time=([0-9.]+) ms", times))
            before = tree_cpu_ns(process.pid)
            time.sleep(IDLE_S)
            idle = (tree_cpu_ns(process.pid) - before) / 1e9 / IDLE_S * 100
        if not rtt_us:
            raise BenchError("the guests did not reach each other")
        return {
            "uml_tcp_gbps": rate,
            "rtt_p50_us": rtt_us[len(rtt_us) // 2],
            "rtt_p99_us": rtt_us[len(rtt_us) * 99 // 100],
            "idle_cpu_percent": idle,
        }


def measure_qemu(seconds: float) -> Sample:
    """TCP between two guests of QEMU, which emulates their CPUs. Raises BenchError, AssertionError."""
    with Space() as space:
        sockets = [space.directory / f"v{n}.sock" for n in range(2)]
        start_vnic(space, sockets)
        macs = dict(zip(sockets, MACS, strict=True))  # QEMU's default is the same for all
        with guests(space, sockets, lambda _, path: Qemu(path, device=f"mac={macs[path]}")) as (one, two):
            return {"qemu_tcp_gbps": tcp_gbps(one, two, seconds)}


def attempt(series: Series, what: str, measured: Callable[[], Sample]) -> None:
    """Adds a sample to the series, or why there is none."""
    try:
        series.samples.append(found := measured())
    except (BenchError, AssertionError, pytest.skip.Exception) as error:  # skip: a tool of the guests is missing
        series.failures.append(f"{what}: {error}")
        say(f"{what} failed: {error}")
    else:
        say(f"{what} " + " ".join(f"{key}={value:.4g}" for key, value in found.items()))


def run(rounds: int, seconds: float) -> Json:
    """Measures all back ends `rounds` times, interleaved. Raises BenchError."""
    sweep()
    described = machine.describe()
    lacking = {each.name: each.missing() for each in (*OURS, *PEERS) if each.missing()}
    for name, missing in lacking.items():
        say(f"{name} is left out: install {missing}")
    back_ends = [each for each in (*OURS, *PEERS) if each.name not in lacking]
    series = {each.name: Series(each.what) for each in back_ends}
    ours = Series("vnic: guests")
    for number in range(rounds):
        for back in rotate(back_ends, number % len(back_ends)):
            attempt(
                series[back.name],
                f"round {number + 1}/{rounds} {back.name:21}",
                lambda back=back: measure_rates(back, seconds),  # type: ignore[misc]
            )
        for measured in (measure_uml, measure_qemu):
            attempt(ours, f"round {number + 1}/{rounds} guests", lambda measured=measured: measured(seconds))  # type: ignore[misc]

    def row(back: BackEnd) -> Json:
        one, peer = series[back.name], series.get(back.peer)
        return {
            **one.as_json(),
            **{f"{key}_ratio": ratio(one.median(key), peer.median(key)) for key in LENGTHS if peer is not None},
        }

    return {
        "rounds": rounds,
        "seconds": seconds,
        "vnic": {each.name.removeprefix("vnic_"): row(each) for each in OURS if each.name in series},
        "peers": {each.name: row(each) for each in PEERS if each.name in series},
        "missing": lacking,
        "guests": ours.as_json(),
        "machine": described,
    }


def show(console: Console, result: Json) -> None:
    """The tables: medians, and their ratios to testpmd's on the same kind of rings."""
    table = Table(title=f"virtio-user through a back end: medians of {result['rounds']} rounds, and / testpmd io")
    for title in ("", "64 B Mpps", "lowest-highest", "cycles", "1518 B Mpps"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    ours, peers, guests = result["vnic"], result["peers"], result["guests"]
    assert isinstance(ours, dict)
    assert isinstance(peers, dict)
    assert isinstance(guests, dict)
    rows = {**{f"vnic {name}": one for name, one in ours.items()}, **peers}
    for name, one in rows.items():
        if one.get("mpps") is None:
            table.add_row(name, "-", "-", "-", "-")
            continue
        rate, large = (f"{one[key]:.4g} [dim]({one.get(f'{key}_ratio')})[/dim]" for key in LENGTHS)
        spread = one["spread"]["mpps"]
        table.add_row(name, rate, f"{spread['min']:.3g}-{spread['max']:.3g}", f"{one.get('cycles_per_packet', 0):.0f}", large)
    show_machine(console, result["machine"])  # type: ignore[arg-type]
    console.print(table)
    words = {
        "uml_tcp_gbps": "TCP of User-mode Linux Gbit/s",
        "qemu_tcp_gbps": "of QEMU",
        "rtt_p50_us": "ping p50 us",
        "rtt_p99_us": "p99 us",
        "idle_cpu_percent": "idle vnic CPU %",
    }
    console.print("two guests: " + ", ".join(f"{words[key]} {guests[key]:.4g}" for key in words if guests.get(key)))
    for name, one in {**rows, "guests": guests}.items():
        for failure in one["failures"]:
            console.print(f"  {name:18} {failure}", highlight=False)

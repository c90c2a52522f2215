"""NICs over veth pairs beside NICs over TAPs and the bare TAP loop: 64-byte packets, one TCP stream, round trips; interleaved."""

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.contestants import Bare, Contestant, Vnic
from bench.errors import BenchError
from bench.probes import compile_probes
from bench.report import show_machine
from bench.space import sweep
from bench.tap import Json, Series, measure, ratio, rotate, say

KEYS = ("mpps_64b", "cpu_ns_per_packet", "tcp_gbps", "cpu_s_per_gb", "rtt_p50_us", "udp_rtt_p50_us")


CONTESTANTS: tuple[Contestant, ...] = (Vnic(kind="veth"), Vnic(), Bare(1))


def run(rounds: int, seconds: float) -> Json:
    """Measures all contestants `rounds` times, interleaved. Raises BenchError."""
    compile_probes()
    sweep()
    described = machine.describe()
    series = {each.name: Series(each.what) for each in CONTESTANTS}
    for number in range(rounds):
        for contestant in rotate(list(CONTESTANTS), number % len(CONTESTANTS)):
            one = series[contestant.name]
            try:
                sample = measure(contestant, seconds, idle=False)
            except BenchError as error:
                one.failures.append(f"round {number + 1}: {error}")
                say(f"round {number + 1}/{rounds} {contestant.name:7} failed: {error}")
                continue
            one.samples.append(sample)
            say(
                f"round {number + 1}/{rounds} {contestant.name:7} "
                + " ".join(f"{k}={sample[k]:.4g}" for k in KEYS if k in sample)
            )
    base = series["bare-1"]
    found: Json = {}
    for name, one in series.items():
        ratios = {f"{key}_ratio": ratio(one.median(key), base.median(key)) for key in KEYS}
        found[name] = {**one.as_json(), **ratios}
    return {"rounds": rounds, "seconds": seconds, "contestants": found, "machine": described}


def show(console: Console, result: Json) -> None:
    """The table: medians, and their ratios to the bare TAP loop's."""
    table = Table(title=f"veth and TAP: medians of {result['rounds']} rounds of {result['seconds']:g} s, and / bare TAP loop")
    for title in ("", "64 B Mpps", "CPU ns/pkt", "TCP Gbit/s", "CPU s/GB", "ping p50 us", "UDP p50 us"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    contestants = result["contestants"]
    assert isinstance(contestants, dict)
    for name, one in contestants.items():
        cells = ["-" if one.get(key) is None else f"{one[key]:.4g} [dim]({one[f'{key}_ratio']})[/dim]" for key in KEYS]
        table.add_row(name, *cells)
    show_machine(console, result["machine"])  # type: ignore[arg-type]
    console.print(table)
    for name, one in contestants.items():
        for failure in one["failures"]:
            console.print(f"  {name:7} {failure}", highlight=False)

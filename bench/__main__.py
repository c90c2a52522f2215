"""`python -m bench`: see `python -m bench --help`."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console

from bench import interrupts, report
from bench.errors import BenchError, RequestError

Result = Mapping[str, Any]
# Figures that are 0 on any machine, however busy: else the exit status is 1.
BROKEN = {
    "policy": ("dropped", "unexplained", "reordered", "resets", "damaged"),
    "leases": ("beyond_bound", "early", "show_disagreed", "leftovers"),
}


def _console() -> Console:
    # A pipe has no width; this truncates no column.
    return Console() if sys.stdout.isatty() else Console(width=150)


def _need_root() -> None:
    if os.geteuid() != 0:
        raise RequestError("bench tap makes network namespaces: run it as root")


def _tap(rounds: int, seconds: float, names: list[str]) -> Result:
    from bench import tap

    _need_root()
    result = tap.run(rounds, seconds, names)
    report.save("tap", result)
    return result


def _complain(result: Result) -> None:
    from bench.tap import failure_of_ours

    if failure := failure_of_ours(dict(result)):
        raise BenchError(failure)


def _elements() -> Result:
    try:
        from bench import elements
    except ModuleNotFoundError as error:
        raise BenchError(f"{error.name} is not compiled: run make build") from None
    result = elements.run()
    report.save("elements", result)
    return result


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables (without a command).")
@click.pass_context
def main(context: click.Context, as_json: bool) -> None:
    """Measure vnic against the bare floor and its peers (`tap`), its elements (`elements`), its rates
    (`rate`), its replay (`replay`), its scheduling modes (`modes`).

    Without a command: the first two.

    What was measured is also written to bench/results/.
    """
    if context.invoked_subcommand is not None:
        return
    _need_root()
    elements, tap = _elements(), _tap(rounds=5, seconds=2, names=[])
    if as_json:
        print(json.dumps({"tap": tap, "elements": elements}))
    else:
        report.show_elements(_console(), elements)
        report.show_tap(_console(), tap)
    _complain(tap)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Rounds over all contestants.")
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=3, show_default=True, help="Of each throughput measurement.")
@click.option("--peers", default="", help="Contestants to run, separated by commas. Default: all that are installed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def tap(rounds: int, seconds: float, peers: str, as_json: bool) -> None:
    """TCP goodput, 64-byte packets and round trips between two namespaces. Needs root."""
    result = _tap(rounds, seconds, [name.strip() for name in peers.split(",") if name.strip()])
    if as_json:
        print(json.dumps(result))
    else:
        report.show_tap(_console(), result)
    _complain(result)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Rounds over all contestants.")
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=3, show_default=True, help="Of each throughput measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def veth(rounds: int, seconds: float, as_json: bool) -> None:
    """NICs over veth pairs beside NICs over TAPs and the bare TAP loop. Needs root."""
    from bench import veth as bench_veth

    _need_root()
    result = bench_veth.run(rounds, seconds)
    report.save("veth", result)
    if as_json:
        print(json.dumps(result))
    else:
        bench_veth.show(_console(), result)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Rounds over all contestants.")
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=3, show_default=True, help="Of each throughput measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
def virt(rounds: int, seconds: float, as_json: bool) -> None:
    """Virtual machines: virtio-user through vnic and through DPDK; guests. Needs root."""
    from bench import virt as bench_virt

    _need_root()
    result = bench_virt.run(rounds, seconds)
    report.save("virt", result)
    if as_json:
        print(json.dumps(result))
    else:
        bench_virt.show(_console(), result)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Blocks of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def neighbour(rounds: int, as_json: bool) -> None:
    """Round trips of two guests beside a third one that is hostile. Needs root."""
    from bench import neighbour as bench_neighbour

    _need_root()
    result = bench_neighbour.run(rounds)
    report.save("neighbour", result)
    if as_json:
        print(json.dumps(result))
    else:
        bench_neighbour.show(_console(), result)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def elements(as_json: bool) -> None:
    """Each element alone: ns a packet at batches of 1, 32 and 256."""
    result = _elements()
    if as_json:
        print(json.dumps(result))
    else:
        report.show_elements(_console(), result)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Rounds over all contestants.")
@click.option("--seconds", type=click.FloatRange(1, 60), default=5, show_default=True, help="How long each is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
def shaping(rounds: int, seconds: float, as_json: bool) -> None:
    """Rates of 1, 10 and 1000 lines and delays, live, beside the kernel's tbf and htb; what a packet costs. Needs root."""
    from bench import shaping as bench_shaping

    _need_root()
    result = bench_shaping.run_shaping(rounds, seconds)
    report.save("shaping", result)
    if as_json:
        print(json.dumps(result))
    else:
        bench_shaping.show(_console(), result)


@main.command()
@click.option(
    "--only", "subjects", multiple=True, metavar="SUBJECT", help="Only this subject, such as losses. May be repeated."
)
@click.option(
    "--no-live", "live", is_flag=True, flag_value=False, default=True, help="Only what takes virtual time, as any user."
)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Rounds of live measurements.")
@click.option("--seconds", type=click.FloatRange(1, 60), default=5, show_default=True, help="Of each live measurement.")
@click.option(
    "--packets",
    type=click.IntRange(100_000, 10**7),
    default=1_000_000,
    show_default=True,
    help="For statistics of losses and delays.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a summary.")
def truth(subjects: tuple[str, ...], live: bool, rounds: int, seconds: float, packets: int, as_json: bool) -> None:
    """Every promise of shaping, expected and measured, as a page and as JSON. Exit status 1 where one is broken."""
    from bench import truth as bench_truth
    from bench.promises import Run

    result = bench_truth.run_all(bench_truth.chosen(subjects, live), Run(rounds, seconds, packets))
    paths = bench_truth.save(result)
    if as_json:
        print(json.dumps(result))
    else:
        bench_truth.show(result, paths)
    if result["counts"]["broken"]:
        sys.exit(1)


@main.command()
@click.option("--rates", default="10mbit,100mbit,1gbit", show_default=True, help="Rates to ask for, separated by commas.")
@click.option("--seconds", type=click.FloatRange(1, 60), default=5, show_default=True, help="How long each is measured.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def rate(rates: str, seconds: float, rounds: int, as_json: bool) -> None:
    """How exact a rate is, in all and in every 100 ms, seen by the receiving kernel. Needs root."""
    from bench.rate import run_rates
    from dataplane.errors import ConfigError
    from dataplane.units import parse_rate

    _need_root()
    try:
        wanted = [parse_rate(each) for each in rates.split(",")]
    except ConfigError as error:
        raise RequestError(str(error)) from None
    result = run_rates(wanted, seconds, rounds)
    report.save("rate", result)
    if as_json:
        print(json.dumps(result))
    else:
        report.show_rates(_console(), result)


@main.command()
@click.option(
    "--packets", type=click.IntRange(1000, 200_000_000), default=4_000_000, show_default=True, help="Of 64 bytes each."
)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--output/--no-output", default=True, help="Write the result to a file, or to /dev/null.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def replay(packets: int, rounds: int, output: bool, as_json: bool) -> None:
    """A capture through parser, switch, shaper and sink in virtual time, against a scapy loop over the same file."""
    from bench.replay import run as run_replay

    result = run_replay(packets, rounds, output)
    report.save("replay", result)
    if as_json:
        print(json.dumps(result))
    else:
        report.show_replay(_console(), result)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5, 60), default=2, show_default=True, help="Of each measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def modes(rounds: int, seconds: float, as_json: bool) -> None:
    """Scheduling modes of engine groups: CPU used and round trips beside a load, and beside a CPU-hungry neighbour. Needs root."""
    from bench import modes as bench_modes

    _need_root()
    result = bench_modes.run(rounds, seconds)
    path = report.save("modes", result)
    plot = bench_modes.plot(result, path.with_suffix(".png"))
    if as_json:
        print(json.dumps(result))
    else:
        bench_modes.show(_console(), result)
        print(f"plot: {plot}")


@main.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5, 60), default=3, show_default=True, help="Of each measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def control(rounds: int, seconds: float, as_json: bool) -> None:
    """Round trips with and without 200 clients of the control API. Needs root."""
    from bench import control as bench_control

    _need_root()
    result = bench_control.run(rounds, seconds)
    report.save("control", result)
    if as_json:
        print(json.dumps(result))
    else:
        bench_control.show(_console(), result)


def _rounds(kind: str, rounds: int, as_json: bool, title: str) -> None:
    from bench import faults, leases, policy

    _need_root()
    runs = {"crash": faults.crash, "upgrade": faults.upgrade, "apply": faults.apply, "policy": policy.policies,
            "leases": leases.leases}  # fmt: skip
    result = runs[kind](rounds)
    path = report.save(kind, result)
    plot = report.plot_series(result, path.with_suffix(".png"), title)
    if as_json:
        print(json.dumps(result))
    else:
        report.show_figures(_console(), result, title)
        print(f"plot: {plot}")
    if any(result[figure] for figure in BROKEN.get(kind, ())):
        sys.exit(1)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def crash(rounds: int, as_json: bool) -> None:
    """The worker killed with SIGKILL under 100,000 datagrams a second and a TCP stream. Needs root."""
    _rounds("crash", rounds, as_json, "Silence at the receiver after kill -9 of the worker")


@main.command()
@click.option("--rounds", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def upgrade(rounds: int, as_json: bool) -> None:
    """`vnic upgrade` under 100,000 datagrams a second and a TCP stream. Needs root."""
    _rounds("upgrade", rounds, as_json, "Longest blackout of an engine in each upgrade")


@main.command()
@click.option("--rounds", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def apply(rounds: int, as_json: bool) -> None:
    """Loss while a running network becomes another one and is changed back, many times, each time another. Needs root."""
    _rounds("apply", rounds, as_json, f"`vnic apply` and `vnic undo`, {rounds} times under load")


@main.command()
@click.option("--rounds", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def policy(rounds: int, as_json: bool) -> None:
    """Loss while policies of shaping that lose nothing themselves are applied and undone. Needs root."""
    _rounds("policy", rounds, as_json, f"`vnic shape apply` and `undo`, {rounds} times under load")


@main.command()
@click.option("--rounds", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def leases(rounds: int, as_json: bool) -> None:
    """When policies end that are to end by themselves, while worker, supervisor or command are killed. Needs root."""
    _rounds("leases", rounds, as_json, f"How late {rounds} policies ended")


@main.command("guest_life")
@click.option("--rounds", type=click.IntRange(1, 1000), default=50, show_default=True, help="Kills and upgrades of each guest.")
@click.option("--only", "parts", multiple=True, metavar="PART", help="Only faults, restarts or migrations. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
def guest_life(rounds: int, parts: tuple[str, ...], as_json: bool) -> None:
    """What guests lose while vnic is killed, upgraded and started anew, and while they migrate. Needs root.

    Exit status 1 if something is lost that must not be.
    """
    from bench import guest_life as bench_guest_life

    _need_root()
    if unknown := set(parts) - set(bench_guest_life.PARTS):
        raise RequestError(f"--only {min(unknown)}: expected one of {', '.join(bench_guest_life.PARTS)}")
    result = bench_guest_life.run(rounds, parts or bench_guest_life.PARTS)
    report.save("guest_life", result)
    if as_json:
        print(json.dumps(result))
    else:
        bench_guest_life.show(_console(), result)
    if result["broken"]:
        sys.exit(1)


@main.command()
@click.option("--idle", default="0,100,500,1000", show_default=True, help="Numbers of idle NICs, separated by commas.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=3, show_default=True, help="Of each throughput measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def scale(idle: str, rounds: int, seconds: float, as_json: bool) -> None:
    """A busy pair beside idle NICs; coming up, one more NIC, upgrade and crash with them. Needs root."""
    from bench import scale as bench_scale

    _need_root()
    try:
        counts = [int(each) for each in idle.split(",")]
    except ValueError:
        raise RequestError(f"--idle {idle}: expected numbers such as 0,100") from None
    result = bench_scale.run(counts, seconds, rounds)
    report.save("scale", result)
    if as_json:
        print(json.dumps(result))
    else:
        bench_scale.show(_console(), result)


def run() -> None:
    """Exit status: 0 success, 1 failure, 2 invalid request, 130 interrupted."""
    interrupts.install()
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        print(f"bench: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except RequestError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        print("bench: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()

"""`vnic replay` and `vnic diff`: captures in virtual time."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from dataplane.errors import ConfigError
from dataplane.units import parse_time
from vnic.cli.common import about, json_option, plural, print_json, print_table

if TYPE_CHECKING:
    from vnic.control.schema import Config
    from vnic.replay.compare import Difference

EPILOG = "Exit status: 0 all well, 1 a capture broke off or --expect found a difference, 2 wrong use, configuration or capture."


def _tolerance(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return 0 if value == "0" else parse_time(value)
    except ConfigError as error:
        raise click.BadParameter(str(error), ctx, parameter) from None


def compare_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What both commands take to say when two packets are equal."""
    function = click.option("--ignore", multiple=True, metavar="FIELD", help="Do not compare this field, such as IP.id, TCP.window, "
                            "Ether.src, or time. May be repeated.")(function)  # fmt: skip
    return click.option("--tolerance", default="0", callback=_tolerance, metavar="TIME", show_default=True,
                        help="How far instants may differ, such as 5us.")(function)  # fmt: skip


@click.command(epilog=EPILOG)
@click.argument("captures", nargs=-1, metavar="[IN.pcap]...", type=click.Path())
@click.option("--config", "-c", "config_file", required=True, metavar="FILE.yaml", type=click.Path(), help="The network.")
@click.option("--output", "-o", metavar="OUT.pcapng", type=click.Path(),
              help="What the NICs transmit; '-' is stdout. NAME.pcap gives classic pcap.")  # fmt: skip
@click.option("--port", "ports", multiple=True, metavar="NAME=IN.pcap", help="What the container of NIC NAME sends.")
@click.option("--drops", is_flag=True, help="Write dropped packets, too, with reasons.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of everything random.")
@click.option("--expect", metavar="GOLDEN.pcapng", type=click.Path(), help="Compare what comes out with this capture.")
@click.option("--realtime", "realtime", metavar="SCHEDULE", help="In real time, into the other NICs' containers: "
              "captured, speed=FACTOR, pps=NUMBER, rate=RATE, asap.")  # fmt: skip
@click.option("--loop", "loops", type=click.IntRange(1), default=1, show_default=True, help="How often, in real time.")
@click.option("--report", "reports", multiple=True, metavar="FILE.html|.png|.json", type=click.Path(),
              help="Write a report. May be repeated.")  # fmt: skip
@compare_options
@json_option
def replay(
    captures: tuple[str, ...],
    config_file: str,
    output: str | None,
    ports: tuple[str, ...],
    drops: bool,
    seed: int,
    expect: str | None,
    realtime: str | None,
    loops: int,
    reports: tuple[str, ...],
    tolerance: int,
    ignore: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put captures through a configuration in virtual time.

    The same graph as live. Packets enter when they were recorded, as if a NIC's container had sent them: the first IN.pcap at the first
    NIC, and so on. The same captures, configuration and seed give the same bytes, whatever the machine.

    \b
    vnic replay web.pcap --config net.yaml -o out.pcapng
    vnic replay --port web=a.pcap --port db=b.pcap -c net.yaml -o out.pcapng --drops
    vnic replay web.pcap -c net.yaml --expect golden.pcapng --tolerance 5us --ignore IP.id
    vnic replay web.pcap -c net.yaml --report out.html
    vnic replay web.pcap -c net.yaml --realtime captured --loop 3    # the other NICs are containers
    vnic replay web.pcap -c net.yaml -o - | tcpdump -r -
    """
    from vnic.control.load import load_config

    config = load_config(config_file, contained=False)
    inputs = _inputs(config, captures, ports)
    if not inputs:
        raise click.UsageError("nothing to replay; want IN.pcap or --port NAME=IN.pcap")
    if realtime is not None:
        if output or expect or drops or reports:
            raise click.UsageError(
                "--output, --expect, --drops and --report are of virtual time; `vnic capture` shows live traffic"
            )
        _realtime(config, inputs, realtime, loops, as_json)
        return
    if loops != 1:
        raise click.UsageError("--loop is of real time: want --realtime, too")
    if output == "-" and as_json:
        raise click.UsageError("--json and -o - both want stdout")
    if expect is not None and (output is None or output == "-"):
        raise click.UsageError("--expect compares a file: want -o OUT.pcapng, too")
    for option, written in [("--output", output), *(("--report", report) for report in reports)]:
        for what, read in [("--config", config_file), ("--expect", expect), *(("input", path) for path in inputs.values())]:
            if written and read and os.path.exists(read) and os.path.exists(written) and os.path.samefile(read, written):
                raise click.UsageError(f"{read} is both {option} and {what}; write to another file")
    if reports:
        from vnic.replay.report import check_report, write_report

        for report in reports:
            check_report(report)
    result = _run(config, inputs, output, drops, seed)
    difference = None
    if expect is not None and output is not None:
        from vnic.replay.compare import compare

        difference = compare(output, expect, tolerance_ns=tolerance, ignore=ignore)
        result["expected"] = difference.as_dict()
    about_it = {"command": shlex.join(["vnic", *sys.argv[1:]]), "configuration": config_file, "seed": seed}
    for report in reports:
        write_report(report, result, about_it)
    if as_json:
        for nic in result["nics"]:
            nic.pop("rates")  # long; --report FILE.json has them
        result.pop("dropped_rates")
        print_json(result)
    else:
        _show(result, sys.stderr if output == "-" else sys.stdout)
        if difference is not None:
            _show_difference(difference)
    for error in result["errors"]:
        click.echo(f"vnic: error: {error}; everything before it was used", err=True)
    if result["errors"] or not result["conserved"] or (difference is not None and not difference.equal):
        raise click.exceptions.Exit(1)


def _inputs(config: Config, captures: tuple[str, ...], ports: tuple[str, ...]) -> dict[str, str]:
    names = list(config.nics)
    if len(captures) > len(names):
        raise click.UsageError(f"{len(captures)} captures, but the configuration has {plural(len(names), 'NIC')}")
    inputs: dict[str, str] = dict(zip(names, captures, strict=False))
    for port in ports:
        name, equals, path = port.partition("=")
        if not equals or not name or not path:
            raise click.UsageError(f"--port {port}: want NAME=IN.pcap")
        if name in inputs:
            raise click.UsageError(f"--port {port}: {name} has {inputs[name]} already")
        inputs[name] = path
    return inputs


def _run(config: Config, inputs: dict[str, str], output: str | None, drops: bool, seed: int) -> dict[str, Any]:
    from vnic.replay.session import Replay

    opened: dict[str, str | int] = {name: 0 if path == "-" else path for name, path in inputs.items()}
    target: str | int | None = sys.stdout.fileno() if output == "-" else output
    with Replay(config, opened, target, drops=drops, seed=seed) as session:
        with _progress() as progress:
            session.run(progress)
        return session.results()


def _realtime(config: Config, inputs: dict[str, str], schedule: str, loops: int, as_json: bool) -> None:
    from vnic.replay.realtime import RealtimeReplay, Schedule

    with RealtimeReplay(config, inputs, Schedule.parse(schedule), loops=loops) as session:
        with _progress() as progress:
            session.run(progress)
        result = session.results()
    if as_json:
        print_json(result)
    else:
        rows = []
        for nic in result["nics"]:
            late = [about(nic["lateness_ns"][key], "s", base="n") for key in ("p50", "p99", "max")]
            rows.append([nic["name"], nic["sent"], nic["counted"], *late])
        title = f"{plural(result['captured'], 'packet')} captured, {result['entered']} sent"
        print_table(["NIC", ">sent", ">counted by its interface", ">late p50", ">p99", ">max"], rows, title)
        click.echo("delivered: " + ("yes, every packet" if result["delivered"] else "NO"))
    for complaint in [*result["complaints"], *(f"{error}; everything before it was used" for error in result["errors"])]:
        click.echo(f"vnic: error: {complaint}", err=True)
    if not result["delivered"]:
        raise click.exceptions.Exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _show(result: dict[str, Any], file: Any) -> None:
    rows = []
    for nic in result["nics"]:
        delay = _merged(nic["classes"])
        seconds = result["duration_ns"] / 1e9
        rate = nic["transmitted_bytes"] * 8 / seconds if seconds else None
        rows.append([nic["name"], nic["received"], nic["transmitted"], about(nic["transmitted_bytes"], "B"),
                     None if rate is None else about(rate, "bit/s"), *delay])  # fmt: skip
    columns = ["NIC", ">from container", ">to container", ">bytes", ">mean rate", ">delay p50", ">p99", ">max"]
    title = f"{plural(result['received'], 'packet')} in {about(result['duration_ns'], 's', base='n')} of virtual time"
    print_table(columns, rows, title, file=file)
    if result["dropped"]:
        print_table(["dropped by", "reason", ">packets"], [[*key.rsplit(": ", 1), count] for key, count in result["dropped"].items()],
                    file=file)  # fmt: skip
    if result["malformed"]:
        print_table(["malformed at", "reason", ">forwarded"], [[*key.rsplit(": ", 1), count] for key, count in result["malformed"].items()],
                    file=file)  # fmt: skip
    click.echo("conserved: " + ("yes" if result["conserved"] else "NO"), file=file)


def _merged(classes: dict[int, dict[str, Any]]) -> list[str | None]:
    """Delay of a NIC's packets over all classes: the one class's figures, or the greatest of several."""
    if not classes:
        return [None, None, None]
    return [about(max(each["delay_ns"][key] for each in classes.values()), "s", base="n") for key in ("p50", "p99", "max")]


@click.command(epilog="Exit status: 0 equal, 1 different, 2 wrong use or no capture.")
@click.argument("left", metavar="A", type=click.Path())
@click.argument("right", metavar="B", type=click.Path())
@compare_options
@json_option
def diff(left: str, right: str, tolerance: int, ignore: tuple[str, ...], as_json: bool) -> None:
    """Compare two captures, packet by packet and interface by interface: A is what there is, B what is expected.

    Says which packets are missing, extra, changed or in another order, how far instants differ, and shows the first that differs, field
    by field.

    \b
    vnic diff out.pcapng golden.pcapng
    vnic diff out.pcapng golden.pcapng --tolerance 5us --ignore IP.id --ignore TCP.chksum
    """
    from vnic.replay.compare import compare

    found = compare(left, right, tolerance_ns=tolerance, ignore=ignore)
    if as_json:
        print_json(found.as_dict())
    else:
        _show_difference(found)
    if not found.equal:
        raise click.exceptions.Exit(1)


def _show_difference(found: Difference) -> None:
    click.echo(found.text())

"""`vnic replay` and `vnic diff`: captures in virtual time."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from dataplane.errors import ConfigError, VnicError
from dataplane.units import parse_time
from vnic.cli.common import about, json_option, plural, print_json, print_table

if TYPE_CHECKING:
    from dataplane.wire.rewrite import Rewrite
    from vnic.config.schema import Config
    from vnic.replay.compare import Difference

WAYS = ("auto", "mac", "prefix", "port", "none")
EPILOG = (
    "Exit status: 0 all well, 1 a capture broke off, --expect differs or a promise of the policy "
    "is broken, 2 wrong use or input."
)


def _tolerance(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return 0 if value == "0" else parse_time(value)
    except ConfigError as error:
        raise click.BadParameter(str(error), ctx, parameter) from None


def compare_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of both commands for the comparison of packets."""
    function = click.option("--ignore", multiple=True, metavar="FIELD",
                            help="Do not compare this field, such as IP.id, Ether.src or "
                            "time. May be repeated.")(function)  # fmt: skip
    return click.option(
        "--tolerance",
        default="0",
        callback=_tolerance,
        metavar="TIME",
        show_default=True,
        help="Largest difference between the times of two equal packets, such as 5us.",
    )(function)


@click.command(epilog=EPILOG)
@click.argument("captures", nargs=-1, metavar="[IN.pcap]...", type=click.Path())
@click.option(
    "--config",
    "-c",
    "config_file",
    required=True,
    metavar="FILE.yaml",
    type=click.Path(),
    help="Configuration of the network.",
)
@click.option(
    "--shape",
    "policy_file",
    metavar="POLICY.yaml",
    type=click.Path(),
    help="Policy of shaping, see `vnic shape`.",
)
@click.option(
    "--output",
    "-o",
    metavar="OUT.pcapng",
    type=click.Path(),
    help="What the NICs transmit; '-' is stdout. NAME.pcap gives classic pcap.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="NAME=IN.pcap",
    help="What the container of NIC NAME sends.",
)
@click.option("--drops", is_flag=True, help="Write dropped packets, too, with reasons.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of random numbers.",
)
@click.option(
    "--expect",
    metavar="GOLDEN.pcapng",
    type=click.Path(),
    help="Compare the output with this capture.",
)
@click.option("--realtime", "realtime", metavar="SCHEDULE",
              help="Send in real time into the other NICs' containers. SCHEDULE "
              "is captured, speed=FACTOR, pps=NUMBER, rate=RATE or asap.")  # fmt: skip
@click.option(
    "--loop",
    "loops",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="With --realtime: send the captures this many times.",
)
@click.option("--report", "reports", multiple=True, metavar="FILE.html|.png|.json",
              type=click.Path(),
              help="Write a report. May be repeated.")  # fmt: skip
@click.option("--split", "way", type=click.Choice(WAYS), default="auto", show_default=True,
              help="How to find the sender of each "
              "packet of a capture of both directions; auto: where unambiguous.")  # fmt: skip
@click.option("--side", "side_rules", multiple=True, metavar="NAME=RULE,...",
              help="NIC NAME sends what comes from this MAC address, "
              "prefix or port; * is the rest.")  # fmt: skip
@click.option(
    "--rewrite-mac",
    "rewrite_macs",
    multiple=True,
    metavar="OLD=NEW|nics",
    help="Replace a MAC address; nics: by the NICs'.",
)
@click.option(
    "--rewrite-ip",
    "rewrite_ips",
    multiple=True,
    metavar="OLD=NEW",
    help="Replace a prefix, such as 10.0.0.0/24=192.168.1.0/24.",
)
@click.option(
    "--rewrite-vlan",
    "rewrite_vlans",
    multiple=True,
    metavar="WHAT",
    help="Change VLAN tags: add=VID, set=VID, remove or OLD=NEW.",
)
@click.option("--align", is_flag=True, help="Let all captures begin at the same time.")
@click.option("--each", is_flag=True, help="Replay each IN.pcap alone; so with a directory.")
@click.option(
    "--delay",
    metavar="TIME",
    default="0",
    callback=_tolerance,
    help="With --realtime: wait before sending.",
)
@click.option("--wait", "listeners", multiple=True, metavar="NAME=WHAT",
              help="With --realtime: wait up to 60 s for a socket of NIC "
              "NAME's container: udp/PORT, tcp/PORT or packet (tcpdump).")  # fmt: skip
@compare_options
@json_option
def replay(
    captures: tuple[str, ...],
    config_file: str,
    policy_file: str | None,
    output: str | None,
    ports: tuple[str, ...],
    drops: bool,
    seed: int,
    expect: str | None,
    realtime: str | None,
    loops: int,
    reports: tuple[str, ...],
    way: str,
    side_rules: tuple[str, ...],
    rewrite_macs: tuple[str, ...],
    rewrite_ips: tuple[str, ...],
    rewrite_vlans: tuple[str, ...],
    align: bool,
    each: bool,
    delay: int,
    listeners: tuple[str, ...],
    tolerance: int,
    ignore: tuple[str, ...],
    as_json: bool,
) -> None:
    """Replay captures through a configuration in virtual time, a simulated clock.

    The packets pass the same elements as live traffic. Each enters at its recorded time, as if a
    NIC's container had sent it: those of the first IN.pcap at the first NIC, and so on. The same
    captures, configuration and seed give the same bytes on any machine.

    \b
    vnic replay web.pcap --config net.yaml -o out.pcapng
    vnic replay --port web=a.pcap --port db=b.pcap -c net.yaml -o out.pcapng --drops
    vnic replay web.pcap -c net.yaml -o o.pcapng --expect ok.pcapng --tolerance 5us --ignore IP.id
    vnic replay web.pcap -c net.yaml --realtime captured --loop 3    # the other NICs are containers
    vnic replay web.pcap -c net.yaml --shape slow.yaml               # rates, delays, losses
    vnic replay both.pcap -c net.yaml --side web=10.0.0.1 --side 'db=*' --rewrite-mac nics
    vnic replay captures/ -c net.yaml --json                         # every file on its own
    """
    from vnic.config.load import load_config
    from vnic.replay.sides import rewrite_of

    config = load_config(config_file, contained=False)
    if policy_file is not None:
        _shape(config, policy_file)
    rewrite, of_nics = rewrite_of(rewrite_macs, rewrite_ips, rewrite_vlans)
    plan = Plan(way, side_rules, rewrite, of_nics, align)
    if each or any(os.path.isdir(path) for path in captures):
        options = {
            "--port": ports,
            "--realtime": realtime,
            "--output": output,
            "--expect": expect,
            "--report": reports,
            "--drops": drops,
        }
        if unfit := [name for name, value in options.items() if value]:
            raise click.UsageError(
                f"{unfit[0]} does not go with --each or a directory, which replay each capture on "
                "its own"
            )
        _each(config, captures, plan, seed, as_json)
        return
    inputs = _inputs(config, captures, ports)
    if not inputs:
        raise click.UsageError("nothing to replay; give IN.pcap or --port NAME=IN.pcap")
    if realtime is not None:
        if output or expect or drops or reports:
            raise click.UsageError(
                "--output, --expect, --drops and --report do not go with --realtime; "
                "`vnic capture` shows live traffic"
            )
        if side_rules or rewrite is not None or of_nics or way != "auto":
            raise click.UsageError(
                "--split, --side and --rewrite-... do not go with --realtime; "
                "write the result with -o and replay that"
            )
        _realtime(config, inputs, realtime, loops, delay, listeners, as_json)
        return
    if listeners:
        raise click.UsageError("--wait needs --realtime")
    if delay:
        raise click.UsageError("--delay needs --realtime")
    if loops != 1:
        raise click.UsageError("--loop needs --realtime")
    if output == "-" and as_json:
        raise click.UsageError("--json and -o - both write to stdout")
    if expect is not None and (output is None or output == "-"):
        raise click.UsageError("--expect compares a file: use -o OUT.pcapng, too")
    for option, written in [("--output", output), *(("--report", report) for report in reports)]:
        for what, read in [
            ("--config", config_file),
            ("--shape", policy_file),
            ("--expect", expect),
            *(("input", path) for path in inputs.values()),
        ]:
            if (
                written
                and read
                and os.path.exists(read)
                and os.path.exists(written)
                and os.path.samefile(read, written)
            ):
                raise click.UsageError(f"{read} is both {option} and {what}; write to another file")
    if reports:
        from vnic.replay.report import check_report, write_report

        for report in reports:
            check_report(report)
    result = _run(
        config,
        inputs,
        output,
        drops,
        seed,
        plan if not ports or side_rules else replace(plan, way="none"),
    )
    difference = None
    if expect is not None and output is not None:
        from vnic.replay.compare import compare

        difference = compare(output, expect, tolerance_ns=tolerance, ignore=ignore)
        result["expected"] = difference.as_dict()
    about_it = {
        "command": shlex.join(["vnic", *sys.argv[1:]]),
        "configuration": config_file,
        **({} if policy_file is None else {"policy": policy_file}),
        "seed": seed,
    }
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
    for warning in result["warnings"]:
        click.echo(f"vnic: warning: {warning['text']}", err=True)
    for error in result["errors"]:
        click.echo(f"vnic: error: {error}; everything before it was used", err=True)
    if (
        result["errors"]
        or not result["conserved"]
        or (difference is not None and not difference.equal)
        or not result.get("shape", {"kept": True})["kept"]
    ):
        raise click.exceptions.Exit(1)


def _shape(config: Config, file: str) -> None:
    """Makes a policy file the configuration's policy. Raises ConfigError; prints warnings."""
    from shaping.policy.check import check_policy
    from shaping.policy.findings import refuse
    from shaping.policy.load import load_policy, policy_data
    from vnic.config.shape import network_of, set_policy

    policy = load_policy(file)
    found = check_policy(policy, network_of(config), config.pool.small)
    refuse(found)
    for each in found:
        if each.kind == "warning":
            click.echo(str(each), err=True)
    set_policy(config, policy_data(policy))


def _inputs(config: Config, captures: tuple[str, ...], ports: tuple[str, ...]) -> dict[str, str]:
    names = config.outer_nics
    if len(captures) > len(names):
        raise click.UsageError(
            f"{len(captures)} captures, but the configuration has {plural(len(names), 'NIC')}"
        )
    inputs: dict[str, str] = dict(zip(names, captures, strict=False))
    for port in ports:
        name, equals, path = port.partition("=")
        if not equals or not name or not path:
            raise click.UsageError(f"--port {port}: expected NAME=IN.pcap")
        if name in inputs:
            raise click.UsageError(f"--port {port}: {name} has {inputs[name]} already")
        inputs[name] = path
    return inputs


@dataclass(frozen=True)
class Plan:
    """How captures are split, rewritten and aligned."""

    way: str
    rules: tuple[str, ...]
    rewrite: Rewrite | None
    of_nics: bool
    align: bool

    def sides(
        self, config: Config, inputs: dict[str, str], opened: dict[str, str | int], undo: ExitStack
    ) -> tuple[Any, str]:
        """(the sides of the only input, or None; a line about them). Replaces a pipe in `opened` by
        one that repeats the beginning that was read."""
        from vnic.replay import sides

        if self.rules:
            if len(inputs) != 1:
                raise click.UsageError("--side splits one capture")
            return sides.given(config, self.rules), ""
        if len(inputs) != 1 or self.way == "none" or len(config.outer_nics) < 2:
            if self.way not in ("auto", "none"):
                raise click.UsageError(
                    f"--split {self.way} splits one capture among at least two NICs"
                )
            return None, ""
        if self.way == "port":
            return sides.decide(config, sides.Seen({}, {}, True), "port")
        [(name, capture)] = opened.items()
        source: str | int = capture
        if isinstance(capture, int):
            path = sides.again(capture)
            if path is None:
                pipe = sides.Prefix(capture)
                undo.callback(pipe.close)
                path = f"/proc/self/fd/{pipe.beginning}"
                opened[name] = pipe.rest()
            source = path
        elif not os.path.isfile(capture):
            return None, ""  # a named pipe can be read once only
        return sides.decide(config, sides.look(source), self.way)


def _run(
    config: Config,
    inputs: dict[str, str],
    output: str | None,
    drops: bool,
    seed: int,
    plan: Plan,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    from vnic.replay.session import Replay

    opened: dict[str, str | int] = {
        name: 0 if path == "-" else path for name, path in inputs.items()
    }
    target: str | int | None = sys.stdout.fileno() if output == "-" else output
    with ExitStack() as undo:
        found, line = plan.sides(config, inputs, opened, undo)
        if line and not quiet:
            click.echo(f"vnic: {line}", err=True)
        session = undo.enter_context(
            Replay(
                config,
                opened,
                target,
                drops=drops,
                seed=seed,
                split=None if found is None else found.split,
                rewrite=plan.rewrite,
                macs_of_nics=plan.of_nics,
                align=plan.align,
            )
        )
        with _progress() as progress:
            session.run(progress)
        return {**session.results(), "split": line or (found.why if found is not None else None)}


def _files(paths: tuple[str, ...]) -> list[str]:
    """All files; those of directories in the order of their names."""
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            for folder, folders, names in os.walk(path):
                folders.sort()
                found += [os.path.join(folder, name) for name in sorted(names)]
        else:
            found.append(path)
    return found


def _each(config: Config, paths: tuple[str, ...], plan: Plan, seed: int, as_json: bool) -> None:
    """Replays each capture alone, through its own network."""
    files = _files(paths)
    if not files:
        raise click.UsageError("nothing to replay: no file there")
    name = next(iter(config.outer_nics), "")
    results: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    for number, path in enumerate(files, 1):
        if sys.stderr.isatty():
            click.echo(f"\r{number} of {len(files)}", nl=False, err=True)
        try:
            result = _run(config, {name: path}, None, False, seed, plan, quiet=True)
        except VnicError as error:
            results.append({"file": path, "broken": True, "errors": [str(error)], "warnings": []})
            rows.append([path, None, None, None, str(error).removeprefix(f"{path}: ")])
            continue
        for nic in result["nics"]:
            nic.pop("rates")
        kept = result.get("shape", {"kept": True})["kept"]
        broken = bool(result["errors"]) or not result["conserved"] or not kept
        results.append({"file": path, "broken": broken, **result})
        lost = sum(result["dropped"].values())
        why = ", ".join(
            f"{count} {key.rsplit(': ', 1)[1]}" for key, count in result["dropped"].items()
        )
        notes = [
            *result["errors"],
            why,
            *([] if kept else ["a promise of the policy is broken"]),
            *([result["split"]] if result["split"] else []),
        ]
        rows.append(
            [
                path,
                result["received"],
                result["transmitted"],
                lost,
                "; ".join(note for note in notes if note) or "all came out",
            ]
        )
    if sys.stderr.isatty():
        click.echo(err=True)
    bad = sum(each["broken"] for each in results)
    if as_json:
        print_json(results)
    else:
        print_table(
            ["file", ">in", ">out", ">dropped", "why not more"],
            rows,
            f"{plural(len(files), 'capture')}, {bad} broken",
        )
        if any(each["warnings"] for each in results):
            count = sum(bool(each["warnings"]) for each in results)
            click.echo(f"vnic: warning: {plural(count, 'capture')} lost more than half of the "
                       "packets; "
                       "replay one of them alone to see what to do", err=True)  # fmt: skip
    if bad:
        raise click.exceptions.Exit(1)


def _realtime(
    config: Config,
    inputs: dict[str, str],
    schedule: str,
    loops: int,
    delay: int,
    listeners: tuple[str, ...],
    as_json: bool,
) -> None:
    from vnic.replay.realtime import Listener, RealtimeReplay, Schedule

    awaited = [Listener.parse(each) for each in listeners]
    with RealtimeReplay(
        config, inputs, Schedule.parse(schedule), loops=loops, delay_ns=delay
    ) as session:
        if awaited:
            click.echo(f"vnic: waiting for {', '.join(map(str, awaited))} ...", err=True)
            session.wait(awaited)
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
        print_table(
            ["NIC", ">sent", ">counted by its interface", ">late p50", ">p99", ">max"], rows, title
        )
        click.echo("delivered: " + ("yes, every packet" if result["delivered"] else "NO"))
    for complaint in [
        *result["complaints"],
        *(f"{error}; everything before it was used" for error in result["errors"]),
    ]:
        click.echo(f"vnic: error: {complaint}", err=True)
    if not result["delivered"]:
        raise click.exceptions.Exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, if that is a terminal."""
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
        rows.append(
            [nic["name"], nic["received"], nic["transmitted"], about(nic["transmitted_bytes"], "B"),
                     None if rate is None else about(rate, "bit/s"), *delay])  # fmt: skip
    columns = [
        "NIC",
        ">from container",
        ">to container",
        ">bytes",
        ">mean rate",
        ">delay p50",
        ">p99",
        ">max",
    ]
    title = (
        f"{plural(result['received'], 'packet')} in {about(result['duration_ns'], 's', base='n')} "
        "of virtual time"
    )
    print_table(columns, rows, title, file=file)
    if result["dropped"]:
        print_table(["dropped by", "reason", ">packets"],
                    [[*key.rsplit(": ", 1), count] for key, count in result["dropped"].items()],
                    file=file)  # fmt: skip
    if result["malformed"]:
        print_table(["malformed at", "reason", ">forwarded"],
                    [[*key.rsplit(": ", 1), count] for key, count in result["malformed"].items()],
                    file=file)  # fmt: skip
    if "shape" in result:
        _show_promises(result["shape"], file)
    click.echo("conserved: " + ("yes" if result["conserved"] else "NO"), file=file)


def _show_promises(found: dict[str, Any], file: Any) -> None:
    """The lines of the policy: what was asked for, what was measured, whether it was kept."""
    print_table(
        ["line", "asked for", ">packets", ">mean rate", ">waited", ">delay", ">lost", ">dropped",
         "kept?"],
        [
            [
                line["line"],
                ", ".join(f"{name} {each}" for name, each in line["asked"].items()),
                line["packets"],
                about(line["rate"]["mean_bps"], "bit/s")
                if line["rate"] and line["rate"]["mean_bps"] is not None
                else None,
                line["queue"] and about(line["queue"]["mean_ns"], "s", base="n"),
                line["delay"] and about(line["delay"]["mean_ns"], "s", base="n"),
                f"{100 * line['shares']['loss']['share']:.3g} %"
                if "loss" in line["shares"]
                else None,
                sum(count for reason, count in line["dropped"].items() if reason != "loss"),
                "yes" if line["kept"] else f"no: {'; '.join(line['why'])}",
            ]
            for line in found["lines"]
        ],
        file=file,
    )  # fmt: skip
    if found["classes"]:
        print_table(
            ["class", "asked for", ">packets", ">mean rate", ">waited at most", ">dropped",
             "kept?"],
            [
                [
                    row["class"],
                    ", ".join(f"{name} {each}" for name, each in row["asked"].items()),
                    row["sent_packets"],
                    None if row["mean_bps"] is None else about(row["mean_bps"], "bit/s"),
                    about(row["sojourn_max_ns"], "s", base="n"), sum(row["dropped"].values()),
                    "yes" if row["kept"] else f"no: {'; '.join(row['why'])}",
                ]
                for row in found["classes"]
            ],
            file=file,
        )  # fmt: skip


def _merged(classes: dict[int, dict[str, Any]]) -> list[str | None]:
    """Delay of a NIC's packets over all classes: the only class's figures, or the maxima of
    several."""
    if not classes:
        return [None, None, None]
    return [
        about(max(each["delay_ns"][key] for each in classes.values()), "s", base="n")
        for key in ("p50", "p99", "max")
    ]


@click.command(epilog="Exit status: 0 equal, 1 different, 2 wrong use or no capture.")
@click.argument("left", metavar="A", type=click.Path())
@click.argument("right", metavar="B", type=click.Path())
@click.option("--interface", "pairs", multiple=True, metavar="A=B",
              help="Compare interface A of the first capture with B of the second. "
              "May be repeated.")  # fmt: skip
@compare_options
@json_option
def diff(
    left: str,
    right: str,
    pairs: tuple[str, ...],
    tolerance: int,
    ignore: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare two captures, packet by packet and interface by interface: A is what there is, B what
    is expected.

    One of them may be '-', standard input. Where each has packets of one interface only, these two
    are compared, however they are named.

    Says which packets are missing, extra, changed or in another order, how far instants differ, and
    shows the first that differs, field by field.

    \b
    vnic diff out.pcapng golden.pcapng
    vnic diff tcpdump.pcap out.pcapng --interface 0=db --ignore time
    vnic diff out.pcapng golden.pcapng --tolerance 5us --ignore IP.id --ignore TCP.chksum
    """
    from vnic.replay.compare import compare

    if left == right == "-":
        raise click.UsageError("both captures are standard input; choose one of them")
    renamed: dict[str, str] = {}
    for pair in pairs:
        mine, equals, other = pair.partition("=")
        if not equals or not mine or not other:
            raise click.UsageError(f"--interface {pair}: expected A=B")
        renamed[mine] = other
    one, two = (0 if path == "-" else path for path in (left, right))
    found = compare(one, two, tolerance_ns=tolerance, ignore=ignore, pairs=renamed)
    if as_json:
        print_json(found.as_dict())
    else:
        _show_difference(found)
    if not found.equal:
        raise click.exceptions.Exit(1)


def _show_difference(found: Difference) -> None:
    click.echo(found.text())

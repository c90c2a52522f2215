"""`vnic shape`: policies of shaping: check, apply, show, set, clear, presets; import and tc are in
shape_import.py."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import click

from dataplane.errors import VnicError, printable
from vnic.cli import shape_life
from vnic.cli.common import (
    Time,
    connect,
    instance_option,
    json_option,
    print_json,
    print_table,
)
from vnic.cli.running_policy import running_network
from vnic.cli.shape_import import import_policy, tc
from vnic.cli.shape_plot import plot
from vnic.cli.shape_show import show
from vnic.cli.shape_trace import trace

if TYPE_CHECKING:
    from shaping.policy.findings import Finding
    from shaping.policy.load import Policy
    from vnic.api.client import Client


@click.group()
def shape() -> None:
    """Give a running network rates, delays and losses, while packets flow.

    A policy is a file: which lines (between two NICs, of one NIC, of a link) have which rate, delay
    and loss. It can end by itself, and leaves nothing behind.

    \b
    vnic shape check slow.yaml             what it would mean, without changing anything
    vnic shape apply slow.yaml --for 10m
    vnic shape show                        what was asked for, and what was measured
    vnic shape clear

    \b
    slow.yaml:
      version: 1
      links:
        web <-> db: {rtt: 40ms, loss: 1%}
        web -> any: {rate: 10mbit, queue: 50ms}
    """


shape.add_command(trace)
shape.add_command(import_policy)
shape.add_command(tc)
shape.add_command(plot)
shape.add_command(show)


@shape.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path())
@click.option(
    "-c", "--config", "config_file", type=click.Path(), metavar="NET.yaml",
    help="The network that the policy is for. Default: the running one.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@instance_option
@json_option
def check(file: str, config_file: str | None, strict: bool, instance: str, as_json: bool) -> None:
    """Check a policy, and say what it would mean.

    Delays and losses in total, queues, bounds on what TCP would reach and on its round trips, and
    whether the packet pool is large enough.

    Exit status: 0 it can be applied, 2 it cannot.

    \b
    vnic shape check slow.yaml
    vnic shape check slow.yaml -c net.yaml
    """
    from shaping.policy.check import check_policy, foretell
    from shaping.policy.load import load_policy
    from vnic.config.shape import network_of

    policy = load_policy(file)
    if config_file is not None:
        from vnic.config.load import load_config

        config = load_config(config_file, contained=False)
        network, pool = network_of(config), config.pool.small
    else:
        with connect(instance) as client:
            network, pool = running_network(client.call("ShapeStatus", whole=True)["status"])
    found = check_policy(policy, network, pool)
    wrong = any(each.kind == "error" or (strict and each.kind == "warning") for each in found)
    if as_json:
        print_json(
            {
                "ok": not wrong,
                "findings": [each._asdict() for each in found],
                "forecasts": [each._asdict() for each in foretell(policy, network)],
            }
        )
    else:
        _print_findings(found)
        click.echo(f"{file}: {'cannot be applied' if wrong else 'can be applied'}")
    if wrong:
        raise click.exceptions.Exit(2)


@shape.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path())
@click.option("--for", "for_ns", type=Time(), help="End the policy after this time.")
@click.option(
    "--while", "command", is_flag=True,
    help="Keep the policy while the command after -- runs.",
)  # fmt: skip
@click.option(
    "--until-disconnect", "held", is_flag=True,
    help="Keep the policy until this command ends, or is killed.",
)  # fmt: skip
@click.option(
    "--confirm", "confirm_ns", type=Time(),
    help="Go back to the policy before after this time, unless `vnic shape confirm` comes.",
)  # fmt: skip
@click.option("-n", "--dry-run", "dry", is_flag=True, help="Only show what would change.")
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@instance_option
@json_option
def apply(
    file: str,
    for_ns: int | None,
    command: bool,
    held: bool,
    confirm_ns: int | None,
    dry: bool,
    words: tuple[str, ...],
    instance: str,
    as_json: bool,
) -> None:
    """Make FILE.yaml the policy of the running network.

    It takes the place of the policy before. What both policies have stays as it is: packets that
    wait go on waiting, and a number that differs changes while packets flow. With --for, --while or
    --until-disconnect the policy ends by itself, and with --confirm it makes room for the one
    before, also when this command or vnic's worker is killed. `vnic shape undo` goes back to the
    policy before.

    \b
    vnic shape apply slow.yaml
    vnic shape apply slow.yaml --for 10m
    vnic shape apply slow.yaml --confirm 1m
    vnic shape apply slow.yaml --while -- pytest tests/
    """
    from shaping.policy.load import load_policy, policy_data

    if command != bool(words):
        raise click.UsageError(
            "--while needs a command behind --, such as --while -- pytest"
            if command
            else "a command is given with --while, such as --while -- pytest"
        )
    given = {"--for": for_ns is not None, "--while": command, "--until-disconnect": held}
    if [*given.values()].count(True) > 1:
        named = " and ".join(name for name, is_given in given.items() if is_given)
        raise click.UsageError(f"{named} exclude each other")
    if confirm_ns is not None and (command or held):
        raise click.UsageError("--confirm excludes --while and --until-disconnect")
    policy, held = load_policy(file), (command or held) and not dry
    with connect(instance) as client:
        _refuse(policy, client.call("ShapeStatus", whole=True)["status"])
        answer = _send(
            client, policy_data(policy), for_ns, confirm_ns=confirm_ns, hold=held,
            about=f"apply {file}", dry=dry,
        )  # fmt: skip
        shape_life.report(file, answer, instance, dry=dry, as_json=as_json)
        if not held:
            return
        hold = shape_life.Hold(client, instance, answer["held"])
        if command:
            raise click.exceptions.Exit(_run_while(hold, words))
        if not hold.wait():
            raise VnicError(f"{file}: the policy has ended, or another one replaced it")


@shape.command(name="set")
@click.argument("line", metavar="LINE")
@click.argument("settings", metavar="SETTING=VALUE...", nargs=-1, required=True)
@click.option("--for", "for_ns", type=Time(), help="End the policy after this time.")
@click.option("-n", "--dry-run", "dry", is_flag=True, help="Only show what would change.")
@instance_option
@json_option
def set_line(
    line: str,
    settings: tuple[str, ...],
    for_ns: int | None,
    dry: bool,
    instance: str,
    as_json: bool,
) -> None:
    """Change settings of one line or class of the running policy.

    SETTING is a key of an entry of `links` or of a class in a policy file, such as rate, delay, rtt
    or loss. A setting without a value is removed. All other lines, classes and settings stay.

    \b
    vnic shape set 'web -> db' loss=1% delay=20ms
    vnic shape set 'web <-> db' loss=
    vnic shape set web rate=10mbit --for 30s
    vnic shape set web.egress/gold guarantee=5mbit
    """
    from dataplane.config.convert import path_text
    from dataplane.config.load import parse_yaml
    from shaping.policy.change import change_class, change_line
    from shaping.policy.keys import CLASS_WAYS
    from shaping.policy.load import convert_policy, policy_data
    from shaping.policy.traces import read_traces

    changed: dict[str, Any] = {}
    for each in settings:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{each}: expected SETTING=VALUE, such as loss=1%")
        changed[name] = parse_yaml(text, path_text((each,)))[0] if text else None
    with connect(instance) as client:
        status = client.call("ShapeStatus", whole=True)["status"]
        data = status["policy"] or {"version": 1}
        place = line.partition("/")[0]
        is_class = place in (data.get("classes") or {}) or place.endswith(CLASS_WAYS)
        if is_class and line not in (data.get("links") or {}):
            data = change_class(data, line, changed)
        else:
            data = change_line(data, line, changed, running_network(status)[0])
        policy = convert_policy(read_traces(data, lambda path: "", os.getcwd()))
        _refuse(policy, status)
        about = " ".join(("set", line, *settings))
        answer = _send(client, policy_data(policy), for_ns, keeps_end=True, about=about, dry=dry)
    shape_life.report(line, answer, instance, dry=dry, as_json=as_json)


@shape.command()
@instance_option
@json_option
def clear(instance: str, as_json: bool) -> None:
    """End the running policy. Packets that wait because of it leave at once; nothing of it is left.

    \b
    vnic shape clear
    """
    with connect(instance) as client:
        answer = _send(client, None, None, about="clear", dry=False)
        left = client.call("ShapeStatus", whole=True)["status"]["left"]
    if left:
        raise click.ClickException(f"left behind: {', '.join(left)}; see `vnic graph`")
    if as_json:
        print_json({key: answer[key] for key in ("changes", "generation")})
    else:
        click.echo("the policy is gone" if answer["changes"] else "no policy")


@shape.command()
@click.argument("name", required=False)
@json_option
def presets(name: str | None, as_json: bool) -> None:
    """List known lines, such as a 3G telephone's.

    Each with the origin of its numbers.

    \b
    vnic shape presets
    vnic shape presets wpt-3g
    """
    from shaping.policy.presets import PRESETS, no_preset

    if name is not None and name not in PRESETS:
        raise click.UsageError(no_preset(name))
    found = [each for each in PRESETS.values() if name in (None, each.name)]
    if as_json:
        print_json({
            "presets": [
                {"name": each.name, "down": str(each.down), "up": str(each.up),
                 "delay": each.delay_text, "loss": str(each.loss), "origin": each.origin}
                for each in found
            ]
        })  # fmt: skip
        return
    print_table(
        ["preset", ">down", ">up", "delay", ">loss", "origin"],
        [
            [each.name, str(each.down or "-"), str(each.up or "-"), each.delay_text,
             str(each.loss) if each.loss else "-", each.origin]
            for each in found
        ],
    )  # fmt: skip


# -- the running policy ----------------------------------------------------------------------------


def _refuse(policy: Policy, status: dict[str, Any]) -> None:
    """Raises ConfigError for a policy that cannot be applied; prints warnings."""
    from shaping.policy.check import check_policy
    from shaping.policy.findings import refuse

    found = check_policy(policy, *running_network(status))
    refuse(found)
    _print_findings([each for each in found if each.kind == "warning"], err=True)


def _print_findings(findings: list[Finding], *, err: bool = False) -> None:
    for finding in findings:
        click.echo(printable(str(finding)), err=err)


def _send(
    client: Client,
    policy: Any,
    lease_ns: int | None,
    *,
    confirm_ns: int | None = None,
    about: str = "",
    hold: bool = False,
    keeps_end: bool = False,
    dry: bool,
) -> dict[str, Any]:
    for_ms, confirm_ms = (
        None if each is None else max(each // 1_000_000, 1) for each in (lease_ns, confirm_ns)
    )
    return client.shape(
        policy, for_ms=for_ms, confirm_ms=confirm_ms, hold=hold, keeps_end=keeps_end,
        about=about[:200], dry=dry,
    )  # fmt: skip


def _run_while(hold: shape_life.Hold, words: tuple[str, ...]) -> int:
    """Runs a command, and keeps the policy meanwhile; returns the command's exit status."""
    try:
        process = subprocess.Popen(words)
    except OSError as error:
        hold.end()
        raise click.UsageError(f"{words[0]}: cannot be run: {error.strerror}") from None
    with shape_life.interrupts():  # the terminal sends Ctrl-C to the command, too
        try:
            while True:
                try:
                    status = process.wait(shape_life.LOOK_S)
                    break
                except subprocess.TimeoutExpired:
                    hold.is_there()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()
            hold.end()
    return status if status >= 0 else 128 - status


for each in shape_life.COMMANDS:
    shape.add_command(each)

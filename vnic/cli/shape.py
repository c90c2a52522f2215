"""`vnic shape`: policies of shaping: check, apply, show, set, clear, presets."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING, Any

import click

from vnic.cli.common import (
    Time,
    connect,
    instance_option,
    json_option,
    plural,
    print_json,
    print_table,
)
from vnic.cli.shape_plot import plot
from vnic.cli.shape_show import elements_by_name, show

if TYPE_CHECKING:
    from shaping.policy.findings import Finding
    from shaping.policy.load import Policy
    from shaping.policy.network import Network
    from vnic.api.client import Client

LEASE_S = 5.0  # of --while: how long a policy outlives a command that was killed
RENEW_S = 1.0


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


shape.add_command(show)
shape.add_command(plot)


@shape.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path())
@click.option(
    "-c", "--config", "network", type=click.Path(), metavar="NET.yaml",
    help="The network that the policy is for. Default: the running one.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@instance_option
@json_option
def check(file: str, network: str | None, strict: bool, instance: str, as_json: bool) -> None:
    """Check a policy, and say what it would mean: delays and losses in total, queues, what TCP
    would reach, and whether the packet pool is large enough.

    Exit status: 0 it can be applied, 2 it cannot.

    \b
    vnic shape check slow.yaml
    vnic shape check slow.yaml -c net.yaml
    """
    from shaping.policy.check import check_policy
    from shaping.policy.load import load_policy
    from vnic.config.shape import network_of

    policy = load_policy(file)
    if network is not None:
        from vnic.config.load import load_config

        config = load_config(network, contained=False)
        found = check_policy(policy, network_of(config), config.pool.small)
    else:
        with connect(instance) as client:
            running = client.call("GetConfig")["config"]
        found = check_policy(policy, _network(running), running["pool"]["small"])
    wrong = any(each.kind == "error" or (strict and each.kind == "warning") for each in found)
    if as_json:
        print_json({"ok": not wrong, "findings": [each._asdict() for each in found]})
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
@click.option("-n", "--dry-run", "dry", is_flag=True, help="Only show what would change.")
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@instance_option
@json_option
def apply(
    file: str,
    for_ns: int | None,
    command: bool,
    dry: bool,
    words: tuple[str, ...],
    instance: str,
    as_json: bool,
) -> None:
    """Make FILE.yaml the policy of the running network, in place of the one before.

    What both policies have stays as it is: packets that wait go on waiting, and a number that
    differs changes while packets flow. With --for or --while the policy ends by itself, also when
    this command or vnic's worker is killed. `vnic undo` goes back to the policy before.

    \b
    vnic shape apply slow.yaml
    vnic shape apply slow.yaml --for 10m
    vnic shape apply slow.yaml --while -- pytest tests/
    """
    from shaping.policy.load import load_policy, policy_data

    if command != bool(words):
        raise click.UsageError(
            "--while needs a command behind --, such as --while -- pytest"
            if command
            else "a command is given with --while, such as --while -- pytest"
        )
    if command and for_ns is not None:
        raise click.UsageError("--for and --while exclude each other")
    policy = load_policy(file)
    lease_ns = int(LEASE_S * 1e9) if command else for_ns
    with connect(instance) as client:
        _refuse(policy, client.call("GetConfig")["config"])
        changes = _send(client, policy_data(policy), lease_ns, dry=dry)
        _report(file, changes, dry, as_json)
        if command and not dry:
            raise click.exceptions.Exit(_run_while(client, words))


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
    """Change settings of one line of the running policy; all others stay. A value of nothing takes
    a setting away.

    \b
    vnic shape set 'web -> db' loss=1% delay=20ms
    vnic shape set 'web <-> db' loss=
    vnic shape set web rate=10mbit --for 30s
    """
    from dataplane.config.load import parse_yaml
    from shaping.policy.load import convert_policy, policy_data

    changed: dict[str, Any] = {}
    for each in settings:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{each}: expected SETTING=VALUE, such as loss=1%")
        changed[name] = parse_yaml(text, each)[0] if text else None
    with connect(instance) as client:
        running = client.call("GetConfig")["config"]
        data = dict(running.get("shape") or {"version": 1})
        lines = dict(data.get("links") or {})
        # The last entry counts: this one moves there.
        entry = {**(lines.pop(line, None) or {}), **changed}
        entry = {name: value for name, value in entry.items() if value is not None}
        data["links"] = {**lines, **({line: entry} if entry else {})}
        policy = convert_policy(data)
        _refuse(policy, running)
        changes = _send(client, policy_data(policy), for_ns, keeps_end=True, dry=dry)
    _report(line, changes, dry, as_json)


@shape.command()
@instance_option
@json_option
def clear(instance: str, as_json: bool) -> None:
    """End the running policy. Packets that wait because of it are dropped, and counted; nothing
    else of it is left.

    \b
    vnic shape clear
    """
    with connect(instance) as client:
        changes = _send(client, None, None, dry=False)
        left = [name for name in elements_by_name(client) if ".shape" in name]
    if left:
        raise click.ClickException(f"left behind: {', '.join(left[:8])}; see `vnic graph`")
    if as_json:
        print_json({"changes": changes})
    else:
        click.echo("the policy is gone" if changes else "no policy")


@shape.command()
@click.argument("name", required=False)
@json_option
def presets(name: str | None, as_json: bool) -> None:
    """List known lines, such as a 3G telephone's, with the origin of their numbers.

    \b
    vnic shape presets
    vnic shape presets wpt-3g
    """
    from dataplane.config.convert import did_you_mean
    from shaping.policy.presets import PRESETS

    if name is not None and name not in PRESETS:
        raise click.UsageError(f"there is no preset {name}; {did_you_mean(name, list(PRESETS))}")
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


def _network(config: dict[str, Any]) -> Network:
    """The names of a running network, from its configuration."""
    from vnic.cli.shape_report import running_network

    return running_network(config)


def _refuse(policy: Policy, running: dict[str, Any]) -> None:
    """Raises ConfigError for a policy that cannot be applied; prints warnings."""
    from shaping.policy.check import check_policy
    from shaping.policy.findings import refuse

    found = check_policy(policy, _network(running), running["pool"]["small"])
    refuse(found)
    _print_findings([each for each in found if each.kind == "warning"], err=True)


def _print_findings(findings: list[Finding], *, err: bool = False) -> None:
    for finding in findings:
        click.echo(str(finding), err=err)


def _send(
    client: Client, policy: Any, lease_ns: int | None, *, keeps_end: bool = False, dry: bool
) -> list[dict[str, Any]]:
    for_ms = None if lease_ns is None else max(lease_ns // 1_000_000, 1)
    answer = client.call("Shape", policy=policy, for_ms=for_ms, keeps_end=keeps_end, dry=dry)
    changes: list[dict[str, Any]] = answer["changes"]
    return changes


def _report(what: str, changes: list[dict[str, Any]], dry: bool, as_json: bool) -> None:
    if as_json:
        print_json({"changes": changes})
        return
    fields = [each for change in changes if change["kind"] == "shape" for each in change["fields"]]
    fields = [each for each in fields if each["field"] not in ("until", "version")]
    for each in fields:
        before, after = each["before"], each["after"]
        sign = "+" if before is None else "-" if after is None else "~"
        was = "" if before is None else f"{before} -> "
        click.echo(f"{sign} {each['field'].removeprefix('links.')}: {was}{after or 'none'}")
    done = f"{plural(len(fields), 'change')} {'would be made' if dry else 'made'}"
    click.echo(f"{what}: {done if changes else 'nothing to change'}")


def _run_while(client: Client, words: tuple[str, ...]) -> int:
    """Runs a command, and keeps the policy meanwhile; returns the command's exit status. The
    policy is renewed for a few seconds each time, so that it ends soon when this process is
    killed."""
    try:
        process = subprocess.Popen(words)
    except OSError as error:
        _send(client, None, None, dry=False)
        raise click.UsageError(f"{words[0]}: cannot be run: {error.strerror}") from None
    try:
        while True:
            try:
                status = process.wait(RENEW_S)
                break
            except subprocess.TimeoutExpired:
                client.call("RenewShape", for_ms=int(LEASE_S * 1000))
            except KeyboardInterrupt:  # the terminal sends it to the command, too
                continue
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
        _send(client, None, None, dry=False)
    return status if status >= 0 else 128 - status

"""`vnic apply`, `vnic undo`, and `vnic config diff` and `show`: the network of a running instance
as a whole."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from vnic.cli.common import connect, instance_option, json_option, plural, print_json

if TYPE_CHECKING:
    from vnic.api.client import Client

SIGNS = {"add": "+", "remove": "-", "change": "~"}
dry_option = click.option(
    "-n", "--dry-run", "dry", is_flag=True, help="Only show what would change."
)


@click.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path())
@dry_option
@instance_option
@json_option
def apply(file: str, dry: bool, instance: str, as_json: bool) -> None:
    """Make a running network the one that FILE.yaml describes, while packets flow.

    NICs, switches and links are added, changed and removed; what both have in common stays as it
    is, with its queues, tables and counters. All or nothing: if any part fails, the network is as
    it was. NICs that are not in FILE.yaml are removed, also those of `vnic attach`; only NICs of
    other users stay.

    \b
    +  added      -  removed      ~  changed: setting: before -> after
    Engines, pool, metrics, modules and clients cannot change while vnic runs.

    \b
    vnic apply net.yaml
    vnic apply net.yaml --dry-run
    vnic undo                          go back to the network before
    """
    with connect(instance) as client:
        begin = time.monotonic()
        changes = _send(client, file, dry=dry)
        took_ms = (time.monotonic() - begin) * 1000
    _report(changes, as_json)
    if not as_json:
        done = "would be made" if dry else f"in {took_ms:.0f} ms"
        click.echo(
            f"{file}: {plural(len(changes), 'change')} {done}"
            if changes
            else f"{file}: nothing to change"
        )


@click.command()
@dry_option
@instance_option
@json_option
def undo(dry: bool, instance: str, as_json: bool) -> None:
    """Go back to the network before the last `vnic apply`; repeated, to that before the one before,
    up to 16. What was changed since by other commands is taken back, too.

    \b
    vnic undo
    vnic undo --dry-run
    """
    with connect(instance) as client:
        changes = client.call("Undo", dry=dry)["changes"]
    _report(changes, as_json)
    if not as_json:
        click.echo(f"{plural(len(changes), 'change')} {'would be made' if dry else 'made'}")


@click.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path())
@instance_option
@json_option
def diff(file: str, instance: str, as_json: bool) -> None:
    """Show what `vnic apply FILE.yaml` would change in a running network.

    Exit status: 0 nothing, 1 something, 2 wrong input.

    \b
    vnic config diff net.yaml
    """
    with connect(instance) as client:
        changes = _send(client, file, dry=True)
    _report(changes, as_json)
    if changes:
        raise click.exceptions.Exit(1)


@click.command()
@instance_option
@json_option
def show(instance: str, as_json: bool) -> None:
    """Print the configuration of a running network, as a file for `vnic apply`: as it is now, with
    everything that was implied written out. NICs whose container was passed by a client are left
    out.

    \b
    vnic config show > now.yaml
    """
    with connect(instance) as client:
        found = client.call("GetConfig")["config"]
    if as_json:
        print_json(found)
        return
    from dataplane.config.load import dump_yaml

    click.echo(dump_yaml(found).rstrip("\n"))


def _send(client: Client, file: str, *, dry: bool) -> list[dict[str, Any]]:
    """Sends a configuration file, which is checked here, where its lines are known."""
    from vnic.config.advice import queue_warnings
    from vnic.config.convert import encode_config
    from vnic.config.load import load_config

    config = load_config(file)
    for warning in queue_warnings(config):
        click.echo(f"vnic: warning: {warning}", err=True)
    descriptor = os.memfd_create("vnic-config", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as document:
            document.write(encode_config(config))
        changes: list[dict[str, Any]] = client.call(
            "Apply", passing=[descriptor], document=0, dry=dry
        )["changes"]
    finally:
        os.close(descriptor)
    return changes


def _report(changes: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"changes": changes})
        return
    for change in changes:
        head = f"{SIGNS[change['action']]} {change['kind']} {change['name']}"
        fields = [
            f"{each['field']}: {_shown(each['before'])} -> {_shown(each['after'])}"
            for each in change["fields"]
        ]
        again = " (its interface is removed and made again)" if change["remade"] else ""
        click.echo(head + (f"  {', '.join(fields)}" if fields else "") + again)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)

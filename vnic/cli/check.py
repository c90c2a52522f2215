"""`vnic doctor`, `vnic config`, `vnic completion`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vnic.cli.apply import diff, show
from vnic.cli.common import json_option, plural, print_json

if TYPE_CHECKING:
    from vnic.config.reference import Key
    from vnic.config.schema import Config


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check whether this machine can run vnic, and suggest fixes. Nothing is changed.

    Exit status 1 if something that vnic needs is missing.

    \b
    vnic doctor
    vnic doctor --json
    """
    from vnic.daemon.doctor import examine

    findings = examine()
    if as_json:
        print_json(
            {
                "ok": all(each.ok or not each.needed for each in findings),
                "checks": [each.as_dict() for each in findings],
            }
        )
    else:
        for each in findings:
            mark = "ok  " if each.ok else "FAIL" if each.needed else "hint"
            click.echo(
                f"{mark}  {each.name}: {each.found}"
                + ("" if each.ok or not each.remedy else f"\n      {each.remedy}")
            )
    if any(each.needed and not each.ok for each in findings):
        raise click.exceptions.Exit(1)


@click.group()
def config() -> None:
    """Check, explain and compare configurations, or print the schema that editors use.

    \b
    vnic config check net.yaml
    vnic config diff net.yaml
    vnic config show
    vnic config explain nics.egress.rate
    vnic config schema > vnic.schema.json
    """


config.add_command(diff)
config.add_command(show)


@config.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path())
@click.option(
    "--for",
    "use",
    type=click.Choice(["replay", "containers"]),
    help="Check that the file fits this use; default: any.",
)
@json_option
def check(file: str, use: str | None, as_json: bool) -> None:
    """Check FILE.yaml without changing anything; --json prints it with all defaults filled in.

    Built-in elements are checked with their arguments. Your own elements and modules (module:Class)
    are imported; their arguments are checked only by `vnic up`.

    \b
    vnic config check net.yaml
    vnic config check net.yaml --for replay
    vnic config check net.yaml --json
    """
    import msgspec

    from vnic.config.advice import queue_warnings
    from vnic.config.load import load_config
    from vnic.config.schema import encode_scalar
    from vnic.device.kinds.registry import kind_of
    from vnic.modules.chain import check_chain, check_node, module_class

    found = load_config(file, contained=use == "containers")
    lone = [
        nic.name
        for nic in found.nics.values()
        if kind_of(nic.kind).needs_container and nic.pid is None and nic.netns is None
    ]
    for nic in found.nics.values():
        for direction in (nic.egress, nic.ingress):
            check_chain(direction.elements, found.directory)
    for link in found.links:
        for way in link.to.values():
            check_chain(way.elements, found.directory)
    for name, node in found.elements.items():
        check_node(name, node, found.hops, found.directory)
    for module in found.modules:
        module_class(module.module, found.directory)
    for warning in queue_warnings(found):
        click.echo(f"vnic: warning: {warning}", err=True)
    if as_json:
        print_json(msgspec.json.decode(msgspec.json.encode(found, enc_hook=encode_scalar)))
    else:
        click.echo(
            f"{file}: valid; "
            f"{plural(len(found.nics), 'NIC')} on {plural(len(found.engines), 'engine')}"
        )
        if lone and use is None:
            click.echo(
                f"fits replay only: {', '.join(lone)} without pid: or netns:, which `vnic up` needs"
            )
    for hint in _hints(found):
        click.echo(f"vnic: warning: {file}: {hint}", err=True)


def _hints(found: Config) -> list[str]:
    """Warnings about valid settings that are probably mistakes."""
    if not found.nics:
        return ["has no NIC: expected nics: {NAME: {...}}"]
    hints = []
    owners: dict[str, str] = {}
    for nic in found.nics.values():
        for each in nic.addresses:
            address = str(each).partition("/")[0]
            other = owners.setdefault(address, nic.name)
            if other != nic.name:
                hints.append(
                    f"{nic.name} and {other} have the same address {address}; choose different ones"
                )
    return hints


@config.command()
@click.argument("key", required=False)
@json_option
def explain(key: str | None, as_json: bool) -> None:
    """Explain KEY of a configuration file: what it does, what it accepts, its default and an
    example.

    Without KEY, list all keys. The name of a NIC, group or user may be left out of KEY.

    \b
    vnic config explain
    vnic config explain nics.egress.rate
    vnic config explain engines --json
    """
    import msgspec

    from vnic.config.reference import find, reference

    keys = reference() if key is None else [find(key)]
    if as_json:
        plain = [msgspec.to_builtins(each, str_keys=True) for each in keys]
        print_json(plain if key is None else plain[0])
    elif key is None:
        for each in keys:
            click.echo(f"{each.path:<40} {each.about.partition('. ')[0].rstrip('.')}")
    else:
        _print_key(keys[0])


def _print_key(key: Key) -> None:
    click.echo(key.path)
    click.echo(click.wrap_text(key.about, 90, "  ", "  "))
    for word, value in key.facts():
        click.echo(f"  {word + ':':<10}{value}")
    if key.keys:
        click.echo(f"  {'keys:':<10}" + ", ".join(each.rpartition(".")[2] for each in key.keys))
    click.echo("  example:")
    for line in key.example_yaml().splitlines():
        click.echo(f"      {line}")


@config.command()
def schema() -> None:
    """Print the JSON Schema of configuration files.

    \b
    vnic config schema > vnic.schema.json
    """
    from vnic.config.json_schema import json_schema

    print_json(json_schema())


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes vnic's commands and options.

    \b
    vnic completion bash > ~/.local/share/bash-completion/completions/vnic
    vnic completion zsh > "${fpath[1]}/_vnic"
    vnic completion fish > ~/.config/fish/completions/vnic.fish
    """
    from click.shell_completion import get_completion_class

    from vnic.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "vnic", "_VNIC_COMPLETE").source())

"""`vnic doctor`, `vnic config`, `vnic completion`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dataplane.errors import ConfigError
from vnic.cli.common import json_option, plural, print_json

if TYPE_CHECKING:
    from vnic.control.schema import ElementConfig


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine lacks for vnic and how to mend it. Changes nothing.

    Exit status 1 where something needed is missing.

    \b
    vnic doctor
    vnic doctor --json
    """
    from vnic.control.doctor import examine

    findings = examine()
    if as_json:
        print_json(
            {"ok": all(each.ok or not each.needed for each in findings), "checks": [each.as_dict() for each in findings]}
        )
    else:
        for each in findings:
            mark = "ok  " if each.ok else "FAIL" if each.needed else "hint"
            click.echo(f"{mark}  {each.name}: {each.found}" + ("" if each.ok or not each.remedy else f"\n      {each.remedy}"))
    if any(each.needed and not each.ok for each in findings):
        raise click.exceptions.Exit(1)


@click.group()
def config() -> None:
    """Check a configuration file, or print the schema that editors use.

    \b
    vnic config check net.yaml
    vnic config schema > vnic.schema.json
    """


@config.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path())
@json_option
def check(file: str, as_json: bool) -> None:
    """Say whether FILE.yaml is right, without touching anything; --json prints it with all defaults filled in.

    Elements and modules are looked for, too: what module:Class names is imported, but made only by `vnic up`, which may still refuse
    its settings.

    \b
    vnic config check net.yaml
    vnic config check net.yaml --json
    """
    import msgspec

    from vnic.control.chain import module_class
    from vnic.control.load import load_config
    from vnic.control.schema import encode_scalar

    found = load_config(file)
    for nic in found.nics.values():
        for direction in (nic.egress, nic.ingress):
            _find_elements(direction.elements, found.directory)
    for module in found.modules:
        module_class(module.module, found.directory)
    if as_json:
        print_json(msgspec.json.decode(msgspec.json.encode(found, enc_hook=encode_scalar)))
    else:
        click.echo(f"{file}: right; {plural(len(found.nics), 'NIC')} on {plural(len(found.engines), 'engine')}")


def _find_elements(elements: list[ElementConfig], directory: str | None) -> None:
    from vnic.control.chain import element_class

    for each in elements:
        try:
            element_class(each.element, directory)
        except ConfigError as error:
            raise ConfigError(f"{each.where}: {error}") from error
        for branch in each.branches.values():
            _find_elements(branch, directory)


@config.command()
def schema() -> None:
    """Print the JSON Schema of configuration files.

    \b
    vnic config schema > vnic.schema.json
    """
    from vnic.control.schema import json_schema

    print_json(json_schema())


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes vnic's commands and options in SHELL.

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

"""`vnic element`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vnic.cli.common import json_option, print_json

if TYPE_CHECKING:
    from vnic.cli.element_docs import ElementDoc


@click.command()
@click.argument("name", required=False)
@json_option
def element(name: str | None, as_json: bool) -> None:
    """List the built-in elements, or describe the element called NAME.

    NAME is a built-in element or module:Class, whose file is searched for in the current directory
    first.

    \b
    vnic element
    vnic element Classifier
    vnic element ttl:SetTtl --json
    """
    import os

    import msgspec

    from vnic.cli.element_docs import built_in, describe_element

    found = built_in() if name is None else [describe_element(name, os.getcwd())]
    if as_json:
        plain = [msgspec.to_builtins(each) for each in found]
        print_json(plain if name is None else plain[0])
    elif name is None:
        for each in found:
            click.echo(f"{each.name:<12}{each.summary}")
    else:
        _print_element(found[0])


def _print_element(found: ElementDoc) -> None:
    click.echo(f"{found.name}: {found.summary}")
    for paragraph in ([found.ports] if found.ports else []) + found.about:
        click.echo("\n" + click.wrap_text(paragraph, 98, "  ", "  "))
    arguments = {name: each.text() for name, each in found.arguments.items()}
    ways = {(True, True): "read, write", (True, False): "read", (False, True): "write"}
    handlers = {
        name: f"{each['help']} ({ways[each['read'], each['write']]})"
        for name, each in found.handlers.items()
    }
    for title, entries in (
        ("arguments", arguments),
        ("counters", {"packets": "packets that came in", **found.counters}),
        ("drop reasons", found.drops),
        ("handlers", handlers),
    ):
        if entries:
            click.echo(f"\n  {title}")
        for name, text in entries.items():
            click.echo(click.wrap_text(text or "-", 98, f"    {name:<18}", " " * 22))
    if found.example:
        click.echo(f"\n  example: {found.example_about}")
        click.echo("\n".join(f"    {line}" for line in found.example.splitlines()))

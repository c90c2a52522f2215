"""`vnic handler`."""

from __future__ import annotations

import json
from typing import Any

import click

from vnic.cli.common import (
    completing,
    connect,
    instance_option,
    json_option,
    print_json,
    print_table,
)


@click.command()
@click.argument("element", required=False, shell_complete=completing("element"))
@click.argument("handler", required=False, shell_complete=completing("handler"))
@click.argument("value", required=False)
@instance_option
@json_option
def handler(
    element: str | None, handler: str | None, value: str | None, instance: str, as_json: bool
) -> None:
    """List the handlers of all elements or of ELEMENT, read HANDLER, or write VALUE to it.

    VALUE is parsed as JSON if possible, else it is text. A write takes effect between two batches.
    While a live handler is written, packets flow; for a quiescing handler, all engines that have a
    copy of the element stop until the change is made.

    \b
    vnic handler                                        list all
    vnic handler web.egress.rate                        list those of one element
    vnic handler web.egress.classifier hits             read
    vnic handler web.egress.rate rate 50mbit            write
    vnic handler switch flush '{"port": 2}'
    """
    with connect(instance) as client:
        if element is None or handler is None:
            found = client.call("Handlers", element=element)["elements"]
        elif value is None:
            found = client.call("ReadHandler", element=element, handler=handler)["copies"]
        else:
            found = client.call(
                "WriteHandler", element=element, handler=handler, value=_value(value)
            ).get("result")
    if as_json:
        print_json(found)
    elif element is None or handler is None:
        rows = [
            [
                name,
                word,
                "".join(way for way in "rw" if each[{"r": "read", "w": "write"}[way]]),
                each["mode"],
                each["help"],
            ]
            for name, entry in found.items()
            for word, each in entry["handlers"].items()
        ]
        print_table(["element", "handler", "", "", "what"], rows)
    elif value is None:
        for copy in found:
            who = f"{copy['engine']}: " if len(found) > 1 else ""
            click.echo(who + _shown(copy["value"]))
    elif found is not None:
        click.echo(_shown(found))


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text


def _no_number(text: str) -> Any:
    """Rejects NaN and Infinity, which JSON does not have."""
    raise ValueError(text)


def _shown(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, indent=2 if isinstance(value, list | dict) else None)
    )

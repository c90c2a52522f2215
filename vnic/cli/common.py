"""What several commands share: the instance option, JSON, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from vnic.control.client import Client

F = TypeVar("F", bound=Callable[..., Any])


def instance_option(function: F) -> F:
    return click.option(
        "-i", "--instance", default="default", envvar="VNIC_INSTANCE", metavar="NAME", show_default=True, show_envvar=True,
        help="Which running vnic.",
    )(function)  # fmt: skip


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def connect(instance: str) -> Client:
    from vnic.control.client import Client

    return Client(instance)


class Seconds(click.FloatRange):
    """A number of seconds within bounds: NaN is beyond any."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        found: float = super().convert(value, parameter, context)
        if math.isnan(found):
            self.fail(f"{value} is not in the range {self._describe_range()}.", parameter, context)
        return found


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def about(value: float, unit: str, *, base: str = "") -> str:
    """A figure for people: four digits and an SI prefix, about(79484, "bit/s") == "79.48 kbit/s". base: the prefix that `value` has."""
    prefixes = ["n", "u", "m", "", "k", "M", "G", "T"]
    place = prefixes.index(base)
    while abs(value) >= 1000 and place + 1 < len(prefixes) and not (unit == "s" and prefixes[place] == ""):
        value, place = value / 1000, place + 1
    return f"{value:.4g} {prefixes[place]}{unit}" if abs(value) < 10000 else f"{value:.0f} {prefixes[place]}{unit}"


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def print_line(value: Any) -> None:
    """One object a line, at once: for streams."""
    import sys

    click.echo(json.dumps(value))
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "", file: IO[str] | None = None) -> None:
    """A table for people. A column whose name begins with > is aligned right."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    # Into a pipe, rows are as long as they are: a program that reads them wants no folding.
    Console(file=file, width=None if (file or sys.stdout).isatty() else 10_000).print(table)

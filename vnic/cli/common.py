"""Shared by several commands: the instance option, JSON, tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from dataplane.errors import printable

if TYPE_CHECKING:
    from vnic.api.client import Client

F = TypeVar("F", bound=Callable[..., Any])


def instance_option(function: F) -> F:
    return click.option(
        "-i", "--instance", default="default", envvar="VNIC_INSTANCE", metavar="NAME",
        show_default=True, show_envvar=True,
        help="Running instance to use.", shell_complete=completing("instance"),
    )(function)  # fmt: skip


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def connect(instance: str) -> Client:
    from vnic.api.client import Client

    return Client(instance)


class Seconds(click.FloatRange):
    """A number of seconds within bounds; rejects NaN."""

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        found: float = super().convert(value, parameter, context)
        if math.isnan(found):
            self.fail(f"{value} is not in the range {self._describe_range()}.", parameter, context)
        return found


class Time(click.ParamType[int]):
    """A time such as 30s or 10m, in ns."""

    name = "TIME"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        from dataplane.errors import ConfigError
        from dataplane.units import parse_time

        try:
            # m: minutes, as elsewhere on the command line; elsewhere in vnic it could be bytes
            words = f"{value}in" if re.fullmatch(r"\s*[0-9.]+\s*m", str(value)) else value
            found = value if isinstance(value, int) else parse_time(words)
        except ConfigError as error:
            self.fail(str(error).replace("250us", "30s or 10m"), parameter, context)
        if not 10**6 <= found <= 366 * 24 * 3600 * 10**9:
            self.fail(f"{value}: expected 1ms to 8784h", parameter, context)
        return found


def plural(count: int, noun: str, several: str | None = None) -> str:
    """1 packet, 2 packets; several: an irregular plural."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or f'{noun}s'}"


def shown_rate(bps: int | None) -> str:
    """A limit in the notation of the configuration: 100mbit, or none."""
    from dataplane.units import format_rate

    return format_rate(bps) if bps else "none"


def about(value: float, unit: str, *, base: str = "") -> str:
    """A figure with four digits and an SI prefix: about(79484, "bit/s") == "79.48 kbit/s". base:
    the prefix of `value`."""
    prefixes = ["n", "u", "m", "", "k", "M", "G", "T"]
    place = prefixes.index(base)
    while (
        abs(value) >= 1000
        and place + 1 < len(prefixes)
        and not (unit == "s" and prefixes[place] == "")
    ):
        value, place = value / 1000, place + 1
    return (
        f"{value:.4g} {prefixes[place]}{unit}"
        if abs(value) < 10000
        else f"{value:.0f} {prefixes[place]}{unit}"
    )


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def print_line(value: Any) -> None:
    """Prints one object per line, flushed: for streams."""
    import sys

    click.echo(json.dumps(value))
    sys.stdout.flush()


COMPLETION_S = 0.5  # time limit for the daemon's answer


def completing(what: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """For shell_complete: names in the running instance: "nic", "element", "handler", "group",
    "point" (NICs and elements), "series" (NICs, lines and classes) or "instance". On errors,
    silently none."""

    def complete(context: click.Context, _: click.Parameter, typed: str) -> list[str]:
        found: list[str] = []
        with suppress(Exception):
            found = _instances() if what == "instance" else _names(what, context)
        return [name for name in found if name.startswith(typed)]

    return complete


def _instances() -> list[str]:
    import os

    from vnic.api.interface import runtime_directory

    return sorted(name[:-5] for name in os.listdir(runtime_directory()) if name.endswith(".sock"))


def _names(what: str, context: click.Context) -> list[str]:
    import os

    from vnic.api.client import Client

    instance = context.params.get("instance") or os.environ.get("VNIC_INSTANCE") or "default"
    with Client(instance, timeout_s=COMPLETION_S) as client:
        if what == "handler":
            element = context.params["element"]
            return list(client.call("Handlers", element=element)["elements"][element]["handlers"])
        if what == "element":
            return list(client.call("Handlers")["elements"])
        if what == "series":
            found = client.call("History", last_ms=100)["series"]
            return list(dict.fromkeys(each["name"] for each in found))
        status = client.call("Status")["status"]
        if what == "group":
            return [group["name"] for group in status["groups"]]
        names = [nic["name"] for nic in status["nics"]]
        return names if what == "nic" else names + list(client.call("Handlers")["elements"])


def _cell(cell: Any) -> str:
    """What clients and files say goes to terminals of others."""
    return "\n".join(map(printable, str(cell).split("\n")))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str = "",
    file: IO[str] | None = None,
) -> None:
    """Prints a table. A column whose name begins with > is aligned right. Words of a column's name
    are not broken."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        name, justify = column.removeprefix(">"), "right" if column.startswith(">") else "left"
        longest = max(map(len, name.split()), default=1)
        table.add_column(
            name,
            justify=justify,  # type: ignore[arg-type]
            overflow="fold",
            min_width=longest,
        )
    for row in rows:
        table.add_row(*(Text("-" if cell is None else _cell(cell)) for cell in row))
    # No folding of rows in a pipe, for programs that read them.
    Console(file=file, width=None if (file or sys.stdout).isatty() else 10_000).print(table)

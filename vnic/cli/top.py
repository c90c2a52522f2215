"""`vnic top`."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from contextlib import suppress
from typing import Any

import click

from dataplane.errors import ConfigError
from vnic.cli.common import connect, instance_option, json_option, print_json, print_line

DELAY_MS = 100, 3_600_000


@click.command()
@click.option(
    "-d", "--delay", metavar="TIME", default="1s", show_default=True,
    help="Time between two looks, 100ms to 1h.",
)  # fmt: skip
@click.option(
    "-b", "--batch", is_flag=True, help="Print all rows again and again, for programs and logs."
)
@click.option("-n", "--count", type=click.IntRange(1), help="With -b: how often.")
@click.option("--once", is_flag=True, help="Print all rows once: -b -n 1.")
@click.option(
    "--sort", type=click.Choice(["name", "rate", "packets", "queue", "delay", "drops"]),
    default="rate", show_default=True, help="What comes first.",
)  # fmt: skip
@click.option("--filter", "text", default="", metavar="TEXT", help="Only names with this text.")
@instance_option
@json_option
def top(
    delay: str,
    batch: bool,
    count: int | None,
    once: bool,
    sort: str,
    text: str,
    instance: str,
    as_json: bool,
) -> None:
    """Watch NICs, and the lines and classes of the policy: rates, packets, queues, delays and drops
    of the last second, and rates of the last minute.

    Keys: ? for help, s sort, / filter, Tab view, p pause, q quit; e changes the rate of the
    selected line while packets flow. With --json: {time, rows}, each time on a line; times in ms,
    rates in bit/s, packets and drops by the second.

    \b
    vnic top
    vnic top --once --sort drops
    vnic top -b -d 5s --json >> top.jsonl
    """
    from vnic.cli.top_view import View

    delay_s = _seconds(delay)
    if count is not None and not batch:
        raise click.UsageError("--count needs --batch")
    view = View(instance=instance, sort=sort, filter=text)
    if once or batch or as_json:
        _print(view, delay_s, 1 if once else count, as_json)
        return
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise click.UsageError("is not in a terminal: use --once, --batch or --json")
    import curses

    from vnic.cli.top_screen import run

    try:
        run(view, delay_s)
    except curses.error as error:
        raise click.UsageError(f"this terminal cannot do it ({error}): use --once") from None


def _seconds(delay: str) -> float:
    from dataplane.units import parse_time

    try:
        found = parse_time(delay)
    except ConfigError as error:
        raise click.UsageError(f"--delay: {error}") from None
    if not DELAY_MS[0] * 10**6 <= found <= DELAY_MS[1] * 10**6:
        raise click.UsageError(f"--delay {delay}: expected 100ms to 1h")
    return found / 1e9


def _print(view: Any, delay_s: float, count: int | None, as_json: bool) -> None:
    """Prints all rows `count` times, or until Ctrl-C."""
    from vnic.cli.plot_text import has_blocks
    from vnic.cli.top_rows import add_past, rows_now
    from vnic.cli.top_view import past_columns, table, text_of

    width = shutil.get_terminal_size().columns
    due = time.monotonic()
    with connect(view.instance) as client, suppress(KeyboardInterrupt):
        for number in itertools.count() if count is None else range(count):
            view.rows = rows_now(client)
            rows = view.shown()
            if as_json:
                found = {"time": round(time.time(), 3), "rows": [row.as_dict() for row in rows]}
                print_json(found) if count == 1 else print_line(found)
            else:
                add_past(client, rows, past_columns(width))
                lines = table(rows, width, sort=view.sort, blocks=has_blocks())
                click.echo(f"{time.strftime('%H:%M:%S')}\n{text_of(lines)}")
                sys.stdout.flush()
            if count is None or number + 1 < count:
                due = max(due + delay_s, time.monotonic())
                time.sleep(due - time.monotonic())

"""`vnic shape show`."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from vnic.cli.common import (
    Time,
    about,
    connect,
    instance_option,
    json_option,
    print_json,
    print_line,
    print_table,
)
from vnic.cli.running_policy import elements_by_name, running_network

if TYPE_CHECKING:
    from shaping.policy.classes import ClassEntry
    from shaping.policy.network import Network
    from vnic.api.client import Client
    from vnic.cli.shape_classes import Table

Found = dict[str, Any]
GIVEN = ("generation", "ends_in_ms", "withdrawn_in_ms", "back", "held", "scenario")


@click.command()
@click.option(
    "--over", "over_ns", type=Time(), default="1s", show_default=True, metavar="TIME",
    help="Measure rates over this time.",
)  # fmt: skip
@click.option(
    "--watch", "watch_ns", type=Time(), metavar="TIME",
    help="Show it again and again, each time over this time, until Ctrl-C.",
)  # fmt: skip
@click.option(
    "--promises", is_flag=True,
    help="Judge each promise, by what was recorded in the last minute.",
)  # fmt: skip
@instance_option
@json_option
def show(over_ns: int, watch_ns: int | None, promises: bool, instance: str, as_json: bool) -> None:
    """Show the running policy, and what was measured of it.

    Of each line and class what was asked for, what was measured, and whether it is kept.

    With --promises, each promise of a line or class has a row (rate, delay, loss, order and
    others), with the reason. It is judged since it was made, at most over the last minute; random
    numbers by bounds that a kept promise exceeds once in a million times. With --watch and --json,
    an object a line.

    \b
    vnic shape show
    vnic shape show --over 5s --json
    vnic shape show --watch 1s
    vnic shape show --promises
    """
    with connect(instance) as client:
        measuring = None if promises else _Measuring(client)
        if watch_ns is None:
            found = measuring.after(over_ns) if measuring else _promises(client)
            print_json(found) if as_json else _print(found)
            return
        with suppress(KeyboardInterrupt):
            while True:
                found = measuring.after(watch_ns) if measuring else _promises(client)
                if as_json:
                    print_line({"time": round(time.time(), 3), **found})
                else:
                    if sys.stdout.isatty():
                        click.clear()
                    _print(found)
                    sys.stdout.flush()
                if measuring is None:
                    time.sleep(watch_ns / 1e9)


def _promises(client: Client) -> Found:
    from vnic.cli.shape_classes import classes_by_name
    from vnic.cli.shape_promises import promises_of
    from vnic.cli.shape_report import asked_now

    status = client.call("ShapeStatus", whole=True)["status"]
    if status["policy"] is None:
        return _nothing(status, "promises")
    asked = asked_now(status)
    found = promises_of(client, asked.lines, classes_by_name(asked.classes))
    return {
        "seed": status["policy"].get("seed"), **{key: status[key] for key in GIVEN},
        "promises": [each.as_dict() for each in found],
    }  # fmt: skip


def _nothing(status: Found, what: str) -> Found:
    """What is said where there is no policy."""
    return {"generation": status["generation"], what: [], "left": status["left"]}


class _Measuring:
    """Measures the lines and classes from one call to the next."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._generation: int | None = None  # at the last reading
        self._elements: dict[str, Found] = {}
        self._classes: dict[str, Table] = {}
        self._read_s = 0.0

    def after(self, wait_ns: int) -> Found:
        """What was measured since the last call; since now at the first one, and where the policy
        was changed."""
        from vnic.cli.shape_classes import class_rows
        from vnic.cli.shape_report import asked_now, measured, waiting

        status = self._client.call("ShapeStatus", whole=True)["status"]
        if (policy := status["policy"]) is None:
            self._generation = None
            return _nothing(status, "lines")
        network, asked = running_network(status)[0], asked_now(status)
        if status["generation"] != self._generation:
            self._generation = status["generation"]
            self._read(asked.classes, network)
        time.sleep(wait_ns / 1e9)
        elements, classes, read_s = self._elements, self._classes, self._read_s
        self._read(asked.classes, network)
        took_s = self._read_s - read_s
        return {
            "seed": policy.get("seed"),
            **{key: status[key] for key in GIVEN},
            "lines": [
                *class_rows(asked.classes, network, classes, self._classes, took_s),
                *(measured(line, elements, self._elements, took_s) for line in asked.lines),
                *waiting(policy, network),
            ],
            "shares": self._client.call("Status")["status"].get("shares", []),
        }

    def _read(self, classes: list[ClassEntry], network: Network) -> None:
        from vnic.cli.shape_classes import class_tables

        self._elements, self._read_s = elements_by_name(self._client), time.monotonic()
        self._classes = class_tables(self._client, classes, network, self._elements)


def _print(found: Found) -> None:
    from vnic.cli import shape_life

    if "left" in found:
        left = ", ".join(found["left"])
        click.echo(f"no policy, but there is still {left}" if left else "no policy")
        return
    click.echo("; ".join([f"generation {found['generation']}", *shape_life.ending_texts(found)]))
    if found["scenario"] is not None:
        click.echo(shape_life.scenario_text(found["scenario"]))
    if "promises" in found:
        _print_promises(found["promises"])
    else:
        _print_lines(found["lines"], found["shares"])


def _print_lines(rows: list[Found], shares: list[Found]) -> None:
    from vnic.cli.shape_report import share_rows

    print_table(
        ["line", "asked for", ">packets", ">rate now", ">lost", ">mean delay", "kept?"],
        [
            [
                row["line"], row["asked"], row["packets"],
                None if row["rate_bps"] is None else about(row["rate_bps"], "bit/s"),
                None if row["lost"] is None else f"{row['lost']:.3g} %",
                None if row["delay_ms"] is None else f"{row['delay_ms']:.3f} ms",
                row["kept"],
            ]
            for row in rows
        ],
    )  # fmt: skip
    if shares:
        click.echo()
        print_table(
            ["share", ">capacity", "NIC or class", ">may send", ">wants"], share_rows(shares)
        )


def _print_promises(rows: list[Found]) -> None:
    said = {True: "yes", False: "NO", None: "-"}
    print_table(
        ["line", "promise", "asked", "measured", "kept?", "reason"],
        [
            [
                "" if number and rows[number - 1]["line"] == row["line"] else row["line"],
                row["promise"], row["asked"], row["measured"], said[row["kept"]], row["reason"],
            ]
            for number, row in enumerate(rows)
        ],
    )  # fmt: skip

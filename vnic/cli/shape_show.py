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

if TYPE_CHECKING:
    from shaping.policy.places import Line
    from vnic.api.client import Client


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
    """Show the running policy: what was asked for, what was measured, and whether it is kept.

    With --promises, each promise of a line has a row (rate, delay, loss, order and others), with
    the reason. It is judged since it was made, at most over the last minute; random numbers by
    bounds that a kept promise exceeds once in a million times. With --watch and --json, an object a
    line.

    \b
    vnic shape show
    vnic shape show --over 5s --json
    vnic shape show --watch 1s
    vnic shape show --promises
    """
    with connect(instance) as client:
        if watch_ns is None:
            found = _promises(client) if promises else _Measuring(client).after(over_ns)
            print_json(found) if as_json else _print(found)
            return
        measuring = None if promises else _Measuring(client)
        with suppress(KeyboardInterrupt):
            while True:
                if measuring is None:
                    found = _promises(client)
                else:
                    found = measuring.after(watch_ns)
                if as_json:
                    print_line({"time": round(time.time(), 3), **found})
                else:
                    if sys.stdout.isatty():
                        click.clear()
                    _print(found)
                    sys.stdout.flush()
                if measuring is None:
                    time.sleep(watch_ns / 1e9)


def _lines(client: Client) -> tuple[Any, list[Line]] | None:
    """Seed and lines of the running policy; None: there is none."""
    from vnic.cli.shape_report import lines_of, running_network

    config = client.call("GetConfig")["config"]
    if "shape" not in config:
        return None
    return config["shape"].get("seed"), lines_of(config["shape"], running_network(config))


def _promises(client: Client) -> dict[str, Any]:
    from vnic.cli.shape_promises import promises_of

    policy = _lines(client)
    if policy is None:
        return {"promises": []}
    seed, lines = policy
    return {"seed": seed, "promises": [each.as_dict() for each in promises_of(client, lines)]}


class _Measuring:
    """Measures the lines from one call to the next."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._before: dict[str, dict[str, Any]] = {}
        self._began = 0.0

    def after(self, wait_ns: int) -> dict[str, Any]:
        """What was measured since the last call, or at the first one while it waits."""
        from vnic.cli.shape_report import measured

        if _lines(self._client) is None:
            return {"lines": []}
        if not self._before:
            self._begin()
        time.sleep(wait_ns / 1e9)
        before, began = self._before, self._began
        policy = _lines(self._client)
        self._begin()
        if policy is None:
            return {"lines": []}
        took_s = self._began - began
        rows = [measured(line, before, self._before, took_s) for line in policy[1]]
        return {"seed": policy[0], "lines": rows}

    def _begin(self) -> None:
        self._before, self._began = elements_by_name(self._client), time.monotonic()


def elements_by_name(client: Client) -> dict[str, dict[str, Any]]:
    """Counters of all elements by name."""
    stats = client.call("Stats")["stats"]
    return {each["name"]: each for engine in stats["engines"] for each in engine["elements"]}


def _print(found: dict[str, Any]) -> None:
    if not found.get("lines") and not found.get("promises"):
        click.echo("no policy" if "seed" not in found else "the policy has no lines")
    elif "promises" in found:
        _print_promises(found["promises"])
    else:
        _print_lines(found["lines"])


def _print_lines(rows: list[dict[str, Any]]) -> None:
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


def _print_promises(rows: list[dict[str, Any]]) -> None:
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

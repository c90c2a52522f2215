"""`vnic shape plot`: what NICs, lines and classes have done in the last minute."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from dataplane.errors import ConfigError, VnicError
from vnic.cli.common import completing, connect, instance_option, json_option, print_json

if TYPE_CHECKING:
    from vnic.api.client import Client
    from vnic.cli.curves import Recorded

LAST_MS = 1000, 60_000
SAMPLE_MS = 100
PICTURE_STEPS = 300  # more of them in a picture are a blur
TITLE_MOST = 60  # characters
KINDS = (".svg", ".png", ".html")
# Programs that make a PNG of an SVG, with their arguments.
CONVERTERS = {
    "rsvg-convert": ["--output", "{png}", "{svg}"],
    "resvg": ["{svg}", "{png}"],
    "inkscape": ["--export-type=png", "--export-filename={png}", "{svg}"],
}


@click.command()
@click.argument(
    "names", metavar="[NIC|LINE|CLASS]...", nargs=-1, shell_complete=completing("series")
)
@click.option(
    "--last", metavar="TIME", default="60s", show_default=True,
    help="Show this time, 1s to 60s.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(), metavar="FILE",
    help="Draw it into a file: .svg, .html or .png.",
)  # fmt: skip
@instance_option
@json_option
def plot(
    names: tuple[str, ...], last: str, output: str | None, instance: str, as_json: bool
) -> None:
    """Plot rates, delays in queues and drops over the last minute.

    Of the policy's lines and classes, or where there are none, of NICs; or of those that are named.
    They are recorded all the time.

    Of a line with a rate, the rate is what its limit counts. The delay is the mean of the packets
    that left queues in a three-hundredth of the time, or 100 ms; in a terminal, in a column. Of
    more than 8, the busiest are shown. The last 8 steps of the policy's scenario are marked.

    \b
    vnic shape plot
    vnic shape plot 'web -> db' --last 10s
    vnic shape plot web.egress/gold web.egress/bulk
    vnic shape plot -o lines.svg
    """
    kind = None if output is None else _kind(output)
    last_ms = _milliseconds(last)
    from vnic.cli.curves import describe
    from vnic.cli.plot_text import columns_of, draw_text, has_blocks, has_colours

    # as wide as what reads it, in a pipe as COLUMNS says
    width = shutil.get_terminal_size().columns
    steps = columns_of(width) if output is None else PICTURE_STEPS
    step_ms = SAMPLE_MS if as_json else max(last_ms // steps // SAMPLE_MS * SAMPLE_MS, SAMPLE_MS)
    with connect(instance) as client:
        found, left_out = _chosen(client, names, last_ms, step_ms)
        describe(found, client.call("ShapeStatus", whole=True)["status"])
    if as_json:
        print_json(_plain(found))
    elif not found.bounds or not found.curves:
        click.echo("nothing is recorded yet")
        return
    elif output is None:
        text = draw_text(found, width, blocks=has_blocks(), colours=has_colours())
        # click would take the colours away where it sees no terminal; has_colours has decided
        click.echo(text, nl=False, color=True)
    else:
        _write(output, str(kind), found, _title(names))
        click.echo(output)
    if left_out:
        click.echo(f"{left_out} more had less traffic: name those to see", err=True)


def _title(names: tuple[str, ...]) -> str:
    """The names, classes of one place by their paths."""
    place = names[0].partition("/")[0] if names else ""
    if len(names) > 1 and all(each.startswith(f"{place}/") for each in names):
        names = (
            f"{place}: {names[0][len(place) + 1 :]}",
            *(n[len(place) + 1 :] for n in names[1:]),
        )
    title = ", ".join(names)
    return title if 0 < len(title) <= TITLE_MOST else "What the network does"


def _kind(output: str) -> str:
    kind = os.path.splitext(output)[1].lower()
    if kind not in KINDS:
        raise click.UsageError(
            f"--output {output}: expected a name that ends in {', '.join(KINDS)}"
        )
    if kind == ".png" and _converter() is None:
        raise click.UsageError(
            f"--output {output}: a PNG is made by rsvg-convert (package librsvg2-bin), resvg or "
            "inkscape, and there is none of them: install one, or write a .svg"
        )
    return kind


def _milliseconds(last: str) -> int:
    from dataplane.units import parse_time

    try:
        found = parse_time(last) // 1_000_000
    except ConfigError as error:
        raise click.UsageError(f"--last: {error}") from None
    if not LAST_MS[0] <= found <= LAST_MS[1]:
        raise click.UsageError(f"--last {last}: expected 1s to 60s")
    return found


def _chosen(
    client: Client, wanted: tuple[str, ...], last_ms: int, step_ms: int
) -> tuple[Recorded, int]:
    """The curves to show, the busiest first, and how many more there are. Raises VnicError."""
    from vnic.cli.curves import listed, names_of, recorded
    from vnic.cli.plot_svg import CURVES_MOST

    series = listed(client)
    if wanted:
        names = list(dict.fromkeys(each for name in wanted for each in names_of(name, series)))
    else:
        kinds = ("line", "class") if any(each["kind"] != "nic" for each in series) else ("nic",)
        names = list(dict.fromkeys(each["name"] for each in series if each["kind"] in kinds))
    # Which are the busiest is asked first, in one step: all samples of all could be too many.
    whole = recorded(client, names, last_ms=last_ms, step_ms=last_ms)
    most = sorted(whole.curves, key=lambda each: -each.octets)[:CURVES_MOST]
    keep = {(each.name, each.way) for each in most}
    found = recorded(client, sorted({name for name, _ in keep}), last_ms=last_ms, step_ms=step_ms)
    found.curves = [each for each in found.curves if (each.name, each.way) in keep]
    return found, len(whole.curves) - len(keep)


def _plain(found: Recorded) -> dict[str, Any]:
    keys = ("name", "kind", "way", "asked", "limit_bps", "ended", "rate_bps", "packets",
            "queue_bytes", "delay_ms", "drops", "lost")  # fmt: skip
    return {
        "begin": found.bounds[0] if found.bounds else None,
        "times": found.bounds[1:],
        "curves": [{key: getattr(each, key) for key in keys} for each in found.curves],
        "steps": [each._asdict() for each in found.marks],
    }


# -- files -----------------------------------------------------------------------------------------


def _write(output: str, kind: str, found: Recorded, title: str) -> None:
    """Writes the file, or leaves the one before. Raises OSError, VnicError."""
    from vnic.cli.plot_svg import draw_page, draw_svg

    content = (draw_page if kind == ".html" else draw_svg)(found, title)
    directory = os.path.dirname(os.path.abspath(output))
    try:
        with tempfile.TemporaryDirectory(prefix=".vnic-plot-", dir=directory) as place:
            drawn = os.path.join(place, "plot.svg")
            with open(drawn, "w", encoding="utf-8") as file:
                file.write(content)
            if kind == ".png":
                drawn = _png_of(drawn)
            os.replace(drawn, output)
    except OSError as error:
        error.filename = output
        raise


def _converter() -> str | None:
    return next(filter(None, map(shutil.which, CONVERTERS)), None)


def _png_of(svg: str) -> str:
    program, png = _converter(), f"{svg}.png"
    assert program is not None
    words = [each.format(svg=svg, png=png) for each in CONVERTERS[os.path.basename(program)]]
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    if done.returncode or not os.path.exists(png):
        why = ""
        with suppress(IndexError):
            why = f": {done.stderr.strip().splitlines()[-1]}"
        raise VnicError(f"{os.path.basename(program)} makes no PNG{why}; write a .svg")
    return png

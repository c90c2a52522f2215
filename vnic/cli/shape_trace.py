"""`vnic shape trace`: traces of time-varying lines: import, record, show, plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vnic.cli.common import json_option, plural, print_json, print_table

if TYPE_CHECKING:
    from shaping.trace import Trace
    from shaping.trace_files import Format

FORMATS = ("auto", "mahimahi", "seconds-mbit", "pcap")
PLOT_ROWS, PLOT_COLUMNS_LEAST, PLOT_COLUMNS_MOST = 8, 20, 200
BLOCKS = " ▁▂▃▄▅▆▇█"


class Size(click.ParamType[int]):
    """A number of bytes such as 1500b."""

    name = "SIZE"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        from dataplane.errors import ConfigError
        from dataplane.units import parse_size

        try:
            found = value if isinstance(value, int) else parse_size(value)
        except ConfigError as error:
            self.fail(str(error), parameter, context)
        if not 1 <= found <= 1 << 30:
            self.fail(f"{value}: expected 1b to 1gb", parameter, context)
        return found


def format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-f", "--format", "form", type=click.Choice(FORMATS), default="auto", show_default=True,
        help="Format of FILE; auto: by its content.",
    )(function)  # fmt: skip


every_option = click.option(
    "--every", type=Size(), metavar="SIZE",
    help="Bytes of an opportunity, such as 1500b. Default: 1504b of a rate, and each packet of a "
    "capture.",
)  # fmt: skip
output_option = click.option(
    "-o", "--output", required=True, metavar="OUT", help="File to write; - for standard output."
)
as_option = click.option(
    "--as", "target", type=click.Choice(FORMATS[1:3]), default="mahimahi", show_default=True,
    help="Format of OUT.",
)  # fmt: skip


@click.group()
def trace() -> None:
    """Import, record and show traces of lines whose rate varies.

    A trace is played by the setting `trace` of a line: {cam -> any: {trace: lte.up}}. Formats:

    \b
    mahimahi      a number of milliseconds a line: an opportunity of 1504 bytes each
    seconds-mbit  two numbers a line: the rate since the line before, as Pensieve uses it
    pcap          pcap or pcapng, also compressed: each packet is an opportunity

    \b
    vnic shape trace show lte.up
    vnic shape trace import bus.txt -o bus.down
    """


@trace.command(name="import")
@click.argument("file", metavar="FILE", type=click.Path())
@format_option
@every_option
@as_option
@output_option
def import_trace(file: str, form: Format, every: int | None, target: str, output: str) -> None:
    """Convert FILE to another format of traces.

    Of rates, an opportunity is as soon as its bytes could have been sent, and the last one is put
    at the end, so that the period stays. Of a capture, each packet that arrived is an opportunity;
    --every makes one of each so many bytes.

    \b
    vnic shape trace import norway_bus_1 -o bus.down
    vnic shape trace import saturator.pcap --every 1500b -o lte.up
    vnic shape trace import lte.up --as seconds-mbit -o lte.txt
    """
    from shaping.trace_files import read_trace

    _write(read_trace(file, form, every=every), every, target, output)


@trace.command()
@click.argument("file", metavar="CAPTURE", type=click.Path())
@click.option("--from", "source", metavar="ADDRESS", help="Only packets of this MAC or IP address.")
@click.option("--to", "destination", metavar="ADDRESS", help="Only packets to this address.")
@every_option
@as_option
@output_option
def record(
    file: str,
    source: str | None,
    destination: str | None,
    every: int | None,
    target: str,
    output: str,
) -> None:
    """Make a trace of one direction of a capture.

    The line delivers as packets arrived in the capture. That is its rate where the sender always
    had something to send. --from and --to choose the direction; a capture of one direction needs
    neither.

    \b
    vnic capture phone -w phone.pcap
    vnic shape trace record phone.pcap --from 10.0.0.2 --every 1500b -o phone.up
    """
    from shaping.trace_files import read_trace

    _write(
        read_trace(file, "pcap", every=every, keep=_keep(source, destination)),
        every,
        target,
        output,
    )


@trace.command()
@click.argument("file", metavar="FILE", type=click.Path())
@format_option
@json_option
def show(file: str, form: Format, as_json: bool) -> None:
    """Show length, rates and outages of a trace; with --json also the rate of each second.

    \b
    vnic shape trace show lte.up
    vnic shape trace show lte.up --json
    """
    from shaping.trace_files import read_trace

    found = read_trace(file, form)
    facts = _facts(file, found)
    if as_json:
        print_json({**facts, "rates_bps": [round(bps) for bps in found.bits_each_second()]})
        return
    print_table(
        ["trace", "kind", ">entries", ">length", ">mean", ">busiest second", ">longest outage"],
        [[
            file, facts["kind"], facts["entries"], f"{facts['duration_s']:.10g} s",
            _rate(facts["mean_bps"]), _rate(facts["busiest_bps"]),
            f"{facts['longest_outage_s']:.10g} s",
        ]],
    )  # fmt: skip


@trace.command()
@click.argument("file", metavar="FILE", type=click.Path())
@format_option
@click.option(
    "-o", "--output", metavar="OUT.svg", help="Write a picture, .svg or .png, instead."
)  # fmt: skip
@json_option
def plot(file: str, form: Format, output: str | None, as_json: bool) -> None:
    """Draw the rate of a trace over time.

    In the terminal, or as a picture.

    \b
    vnic shape trace plot lte.up
    vnic shape trace plot lte.up -o lte.svg
    """
    from shaping.trace_files import read_trace

    if output is not None:
        _check_picture(output)
    found = read_trace(file, form)
    rates = found.bits_each_second().tolist()
    if output is not None:
        _write_file(output, _picture(file, found, rates, output))
    if as_json:
        print_json({**_facts(file, found), "rates_bps": [round(bps) for bps in rates]})
    elif output is None:
        import shutil

        columns = shutil.get_terminal_size().columns
        for line in blocks(rates, found.duration_ns / 1e9, columns):
            click.echo(line)


# -- facts and pictures ----------------------------------------------------------------------------


def _facts(file: str, found: Trace) -> dict[str, Any]:
    return {
        "file": file,
        "kind": found.KIND,
        "entries": found.entries,
        "duration_s": found.duration_ns / 1e9,
        "mean_bps": found.mean_bps,
        "busiest_bps": found.busiest_bps,
        "longest_outage_s": found.longest_outage_ns / 1e9,
        "digest": found.digest,
    }


def _rate(bps: int) -> str:
    from vnic.cli.common import about

    return about(bps, "bit/s")


def blocks(rates: list[float], duration_s: float, columns: int) -> list[str]:
    """Lines of text that draw rates over time, with their axes."""
    width = min(max(columns - 16, PLOT_COLUMNS_LEAST), PLOT_COLUMNS_MOST, len(rates))
    bars = [_mean(rates, number / width, (number + 1) / width) for number in range(width)]
    most = max(rates)
    lines = []
    for row in range(PLOT_ROWS, 0, -1):
        label = _rate(round(most * row / PLOT_ROWS)) if row in (PLOT_ROWS, PLOT_ROWS // 2) else ""
        eighths = [round(bar / most * PLOT_ROWS * 8) - (row - 1) * 8 for bar in bars]
        drawn = "".join(BLOCKS[min(max(each, 0), 8)] for each in eighths)
        lines.append(f"{label:>13} ┤{drawn}".rstrip())
    end = f"{duration_s:.6g} s"
    lines.append(f"{'0':>13} └{'─' * width}")
    lines.append(f"{'0 s':>17}{end:>{max(width - 2, len(end) + 1)}}")
    return lines


def _mean(rates: list[float], begin: float, end: float) -> float:
    """The mean over a part of the time, given as shares of it."""
    first = min(int(begin * len(rates)), len(rates) - 1)
    part = rates[first : max(round(end * len(rates)), first + 1)]
    return sum(part) / len(part)


def _check_picture(output: str) -> None:
    from dataplane.errors import ConfigError

    if not output.endswith((".svg", ".png")):
        raise ConfigError(f"{output}: expected a name in .svg or .png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"{output}: pictures need matplotlib: pip install 'vnic[report]'"
        ) from None


def _picture(file: str, found: Trace, rates: list[float], output: str) -> bytes:
    """The rate over time: a step for each second, and the mean."""
    import io

    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    end_s = found.duration_ns / 1e9
    edges = [*range(len(rates)), end_s]
    axes.stairs([bps / 1e6 for bps in rates], edges, fill=True, alpha=0.4)
    axes.axhline(found.mean_bps / 1e6, color="black", linestyle="--", linewidth=1, label="mean")
    axes.set(xlabel="time, s", ylabel="Mbit/s of each second", xlim=(0, end_s))
    axes.set_ylim(bottom=0)
    # A file's name is no formula.
    axes.set_title(file.replace("$", r"\$"), fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    out = io.BytesIO()
    # Without a date and random names, so that the same trace gives the same file.
    metadata = {"Date": None} if output.endswith(".svg") else {"Software": "vnic"}
    with rc_context({"svg.hashsalt": "vnic"}):
        figure.savefig(out, format=output[-3:], dpi=110, metadata=metadata)
    return out.getvalue()


# -- files -----------------------------------------------------------------------------------------


def _write(found: Trace, every: int | None, target: str, output: str) -> None:
    from shaping.trace import OPPORTUNITY_BYTES
    from shaping.trace_files import mahimahi_text, opportunities_of, seconds_mbit_text

    if target == "mahimahi":
        found = opportunities_of(found, every or OPPORTUNITY_BYTES)
        content = mahimahi_text(found)
    else:
        content = seconds_mbit_text(found)
    _write_file(output, content)
    lines = content.count(b"\n")
    click.echo(
        f"{output}: {plural(lines, 'line')}, {found.duration_ns / 1e9:.10g} s, "
        f"{_rate(found.mean_bps)} on average, at most {found.longest_outage_ns / 1e9:.10g} s "
        "without any",
        err=output == "-",
    )


def _write_file(output: str, content: bytes) -> None:
    """Writes the whole file, or leaves the one that is there."""
    import os
    import sys
    from contextlib import suppress

    if output == "-":
        sys.stdout.buffer.write(content)
        return
    place = os.path.realpath(output)
    if os.path.exists(place) and not os.path.isfile(place):  # a device or a pipe
        with open(place, "wb") as file:
            file.write(content)
        return
    part = f"{place}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
        os.replace(part, place)
    except OSError as error:
        with suppress(OSError):
            os.unlink(part)
        raise click.ClickException(f"{output}: {error.strerror}") from None


def _keep(source: str | None, destination: str | None) -> Callable[[bytes], bool] | None:
    """Whether a frame is from and to these addresses."""
    if source is None and destination is None:
        return None
    wanted = [
        None if text is None else _address(option, text)
        for option, text in (("--from", source), ("--to", destination))
    ]

    def keep(frame: bytes) -> bool:
        from vnic.replay.sides import ip_addresses

        pair = ip_addresses(frame) or (b"", b"")
        macs = frame[6:12], frame[:6]
        return all(
            each is None or each == (macs if len(each) == 6 else pair)[end]
            for end, each in enumerate(wanted)
        )

    return keep


def _address(option: str, text: str) -> bytes:
    """The bytes of a MAC or IP address."""
    import ipaddress

    parts = text.split(":")
    try:
        if len(parts) == 6 and all(len(part) == 2 for part in parts):
            return bytes.fromhex("".join(parts))
        return ipaddress.ip_address(text).packed
    except ValueError:
        raise click.UsageError(
            f"{option} {text}: expected an address such as 10.0.0.1 or 02:00:00:00:00:01"
        ) from None

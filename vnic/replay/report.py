"""A replay's report: JSON, a picture (PNG) or a page (HTML)."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from typing import Any

from dataplane.errors import ConfigError, VnicError
from dataplane.units import format_rate

STEPS_MOST = 200  # of a curve; shorter steps show single packets, not a rate
KINDS = (".html", ".png", ".json")


def batched(values: list[float], count: int) -> Iterator[list[float]]:
    """Splits `values` into parts of `count`; the last one may be shorter."""
    for first in range(0, len(values), count):
        yield values[first : first + count]


def check_report(path: str) -> str:
    """The report's kind, by its file name. Raises ConfigError for an unknown one, and where
    matplotlib is missing."""
    kind = os.path.splitext(path)[1].lower()
    if kind not in KINDS:
        raise ConfigError(f"report {path}: expected a name in {', '.join(KINDS)}")
    if kind != ".json":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"report {path}: plots need matplotlib: pip install 'vnic[report]'"
            ) from None
    return kind


def write_report(
    path: str, result: Mapping[str, Any], about: Mapping[str, Any] | None = None
) -> None:
    """Writes the result of `Replay.results`, with rates over time. about: `command`,
    `configuration` and `seed`, which the report shows. Raises VnicError where that fails."""
    kind = check_report(path)
    try:
        origin = origin_of(result, about or {})
        if kind == ".json":
            content = json.dumps({"about": origin, **result}, indent=2).encode() + b"\n"
        else:
            picture = draw(result, origin)
            content = picture if kind == ".png" else page(result, origin, picture).encode()
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise VnicError(f"cannot write {path}: {error.strerror}") from None


def origin_of(result: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
    """The report's origin, as text by label."""
    try:
        version = metadata.version("vnic")
    except metadata.PackageNotFoundError:
        version = "unknown"
    captures = [
        f"{nic['name']}={os.path.basename(nic['capture'])}"
        for nic in result["nics"]
        if nic["capture"]
    ]
    return {
        "captures": ", ".join(captures),
        **{label: str(value) for label, value in about.items()},
        "vnic": version,
        "written": datetime.now().astimezone().isoformat(" ", "seconds"),
    }


LIMIT_STYLES = ("--", ":", "-.")
NO_DELAY_MS = 1.0  # the axis of delays that are all 0


def policies(result: Mapping[str, Any], receiver: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Rate limits on what a NIC's container receives, in bit/s by name: its own ingress limit, and
    the egress limits of the NICs that sent."""
    found = (
        [(f"limit {receiver['name']} ingress", receiver["ingress_bps"])]
        if receiver["ingress_bps"]
        else []
    )
    for nic in result["nics"]:
        if nic["name"] != receiver["name"] and nic["received"] and nic["egress_bps"]:
            found.append((f"limit {nic['name']} egress", nic["egress_bps"]))
    return [(f"{name} {format_rate(bps)}", bps) for name, bps in found]


def curve(axes: Any, series: Mapping[str, Any], start_ns: int, **style: Any) -> None:
    """A rate over time, in Mbit/s, in at most STEPS_MOST steps."""
    start_s, step_s = (series["start_ns"] - start_ns) / 1e9, series["bin_ns"] / 1e9
    merge = max(-(-len(series["bps"]) // STEPS_MOST), 1)
    values = [sum(part) / merge / 1e6 for part in batched(series["bps"], merge)]
    axes.stairs(
        values,
        [start_s + step_s * merge * i for i in range(len(values) + 1)],
        linewidth=1.2,
        **style,
    )


def above(axes: Any, title: str) -> None:
    """Adds title and legend, both above the plot, where they cover no curve."""
    axes.set_title(title, loc="left", fontsize=10, pad=24)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            fontsize=8,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=4,
            frameon=False,
            borderaxespad=0.2,
            handlelength=1.6,
        )


def draw(result: Mapping[str, Any], origin: Mapping[str, str]) -> bytes:
    """A PNG: for each NIC the rate at which its container received, with the limits as lines, and
    delays; below them the drops over time. All have the same time axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    nics = [nic for nic in result["nics"] if nic["transmitted"]] or result["nics"][:1]
    drops = result.get("dropped_rates") or {}
    rows = len(nics) + bool(drops)
    figure = Figure(figsize=(11, 1.2 + 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    shown = [
        f"{label} {origin[label]}"
        for label in ("captures", "configuration", "seed", "vnic")
        if origin.get(label)
    ]
    figure.suptitle(
        textwrap.shorten("vnic replay: " + ", ".join(shown), 150), fontsize=9, x=0.01, ha="left"
    )
    panels = figure.subplots(rows, 2, squeeze=False, width_ratios=[3, 1])
    end_s = max(result["duration_ns"] / 1e9, 1e-6)
    for (rates, delays), nic in zip(panels, nics, strict=False):
        for number, series in nic["rates"].items():
            curve(
                rates,
                series,
                result["start_ns"],
                label="received" if int(number) == 0 else f"received, class {number}",
            )
        for (name, bps), line in zip(
            policies(result, nic), itertools.cycle(LIMIT_STYLES), strict=False
        ):
            rates.axhline(bps / 1e6, color="black", linestyle=line, linewidth=1, label=name)
        above(rates, f"{nic['name']}: what its container received")
        rates.set_ylabel("Mbit/s of layer 2")
        draw_delays(delays, nic)
    if drops:
        for name, series in drops.items():
            curve(panels[-1][0], series, result["start_ns"], label=name)
        above(panels[-1][0], "dropped, by element and reason")
        panels[-1][0].set_ylabel("Mbit/s of layer 2")
        panels[-1][1].set_axis_off()
    for rates in panels[:, 0]:
        rates.set_xlabel("virtual time, s")
        rates.set_xlim(0, end_s)
        rates.set_ylim(0, rates.get_ylim()[1] * 1.05)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": "vnic"})
    return out.getvalue()


def draw_delays(axes: Any, nic: Mapping[str, Any]) -> None:
    shown = {
        f"class {number}" if int(number) else "all": each["delay_ns"]
        for number, each in nic["classes"].items()
    }
    for offset, what in enumerate(("p50", "p99", "max")):
        places = [place + 0.27 * (offset - 1) for place in range(len(shown))]
        axes.bar(places, [each[what] / 1e6 for each in shown.values()], width=0.25, label=what)
    axes.set_xticks(range(len(shown)), list(shown), fontsize=8)
    highest = max((each["max"] / 1e6 for each in shown.values()), default=0)
    axes.set_ylim(0, highest * 1.08 or NO_DELAY_MS)
    if not highest:
        axes.text(
            0.5, 0.5, "no delay", transform=axes.transAxes, ha="center", fontsize=9, color="gray"
        )
    above(axes, "delay, ms")


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } .bad { color: #b00020 }
.about th, .about td { text-align: left; font-weight: normal } .about th { color: #777 }
"""  # noqa: E501


def cells(tag: str, values: Sequence[object]) -> str:
    """A row of a table."""
    return (
        "<tr>" + "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values) + "</tr>"
    )


def promises(found: Mapping[str, Any]) -> str:
    """The lines of a policy as a part of the page."""
    rows = []
    for line in found["lines"]:
        asked = ", ".join(f"{name} {each}" for name, each in line["asked"].items())
        rate, queue, delay, loss = (
            line["rate"], line["queue"], line["delay"], line["shares"].get("loss")
        )  # fmt: skip
        measured = [
            f"{line['packets']:,}",
            f"{rate['mean_bps'] / 1e6:.4g}" if rate and rate["mean_bps"] is not None else "-",
            f"{rate['most_bps'] / 1e6:.4g}" if rate else "-",
            f"{queue['max_ns'] / 1e6:.3f}" if queue else "-",
            f"{delay['mean_ns'] / 1e6:.3f}" if delay else "-",
            f"{100 * loss['share']:.4g}" if loss else "-",
            ", ".join(f"{count:,} {reason}" for reason, count in line["dropped"].items()) or "-",
            "kept" if line["kept"] else f"broken: {'; '.join(line['why'])}",
        ]
        rows.append(cells("td", [line["line"], asked, *measured]))
    head = cells(
        "th",
        ["line", "asked for", "packets", "mean Mbit/s", "most Mbit/s in 100 ms",
         "waited at most, ms", "mean delay, ms", "lost, %", "dropped", "promise"],
    )  # fmt: skip
    return f"""<h2>Policy</h2>
<table>{head}{"".join(rows)}</table>
{classes(found["classes"]) if found["classes"] else ""}
<p>Mean rates are those of the whole replay, in which there may have been few packets. Packets wait
for the rate; the delay comes behind it.</p>"""


def classes(found: Sequence[Mapping[str, Any]]) -> str:
    """The classes of a policy as a table."""
    rows = [
        cells("td", [
            each["class"],
            ", ".join(f"{name} {value}" for name, value in each["asked"].items()),
            f"{each['sent_packets']:,}",
            "-" if each["mean_bps"] is None else f"{each['mean_bps'] / 1e6:.4g}",
            f"{each['most_bps'] / 1e6:.4g}",
            f"{each['sojourn_max_ns'] / 1e6:.3f}",
            ", ".join(f"{count:,} {reason}" for reason, count in each["dropped"].items() if count)
            or "-",
            "kept" if each["kept"] else f"broken: {'; '.join(each['why'])}",
        ])
        for each in found
    ]  # fmt: skip
    head = cells(
        "th",
        ["class", "asked for", "packets", "mean Mbit/s", "most Mbit/s in 100 ms",
         "waited at most, ms", "dropped", "promise"],
    )  # fmt: skip
    return f"<table>{head}{''.join(rows)}</table>"


def page(result: Mapping[str, Any], origin: Mapping[str, str], picture: bytes) -> str:
    """A self-contained HTML file."""
    rows = []
    for nic in result["nics"]:
        for number, each in nic["classes"].items() or [("-", None)]:
            delay = (
                [f"{each['delay_ns'][key] / 1e6:.3f}" for key in ("p50", "p99", "max")]
                if each
                else ["-"] * 3
            )
            counts = [f"{each[what]:,}" for what in ("packets", "bytes")] if each else ["0", "0"]
            rows.append(cells("td", [nic["name"], f"{nic['received']:,}", number, *counts, *delay]))
    drops = "".join(
        cells("td", [*key.rsplit(": ", 1), count]) for key, count in result["dropped"].items()
    )
    conserved = (
        "every packet is accounted for" if result["conserved"] else "packets are unaccounted for"
    )
    errors = "".join(f'<p class="bad">{html.escape(error)}</p>' for error in result["errors"])
    image = base64.b64encode(picture).decode()
    head = cells(
        "th",
        [
            "NIC",
            "packets sent",
            "class",
            "packets received",
            "bytes received",
            "delay p50, ms",
            "delay p99, ms",
            "delay max, ms",
        ],
    )
    about = "".join(
        f"<tr><th>{html.escape(label)}</th><td>{html.escape(value)}</td></tr>"
        for label, value in origin.items()
    )
    title = html.escape(f"vnic replay of {origin['captures']}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<table class="about">{about}</table>
<p>{result["received"]} packets in {result["duration_ns"] / 1e9:.6f} s of virtual time, {result["transmitted"]} received; {conserved}.</p>
{errors}
<img alt="Rates over time against the limits, delays, and drops over time" src="data:image/png;base64,{image}">
<table>{head}{"".join(rows)}</table>
<p>Sent is what the NIC's container sent, from its capture; received is what it got. Bytes are those of layer 2, without
preamble and FCS. The delay is the time between the two. The class is the mark that an element such
as Classifier gave the packet; 0: none did. - : the container received nothing.</p>
{promises(result["shape"]) if "shape" in result else ""}
<h2>Dropped</h2>
<table>{cells("th", ["element", "reason", "packets"])}{drops or cells("td", ["nothing", "", 0])}</table>
</body></html>
"""  # noqa: E501

"""A replay's report: JSON for programs, a picture or a page for people."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from dataplane.errors import ConfigError, VnicError
from dataplane.units import format_rate

STEPS_MOST = 200  # of a curve: finer ones show single packets, not a rate
KINDS = (".html", ".png", ".json")


def batched(values: list[float], count: int) -> Iterator[list[float]]:
    """Parts of `count` values, the last one shorter."""
    for first in range(0, len(values), count):
        yield values[first : first + count]


def check_report(path: str) -> str:
    """The report's kind, by its name. Raises ConfigError for another, and where a plot cannot be drawn."""
    kind = os.path.splitext(path)[1].lower()
    if kind not in KINDS:
        raise ConfigError(f"report {path}: want a name in {', '.join(KINDS)}")
    if kind != ".json":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ConfigError(f"report {path}: plots need matplotlib: pip install 'vnic[report]'") from None
    return kind


def write_report(path: str, result: Mapping[str, Any]) -> None:
    """Writes what `Replay.results` gave, with rates over time. Raises VnicError where it cannot be written."""
    kind = check_report(path)
    try:
        if kind == ".json":
            content = json.dumps(result, indent=2).encode() + b"\n"
        else:
            picture = draw(result)
            content = picture if kind == ".png" else page(result, picture).encode()
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise VnicError(f"cannot write {path}: {error.strerror}") from None


def draw(result: Mapping[str, Any]) -> bytes:
    """A PNG: for each NIC the rate that its container received over time, the policy as a line, and delays."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    nics = [nic for nic in result["nics"] if nic["transmitted"]] or result["nics"][:1]
    figure = Figure(figsize=(11, 1.2 + 2.6 * len(nics)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(nics), 2, squeeze=False, width_ratios=[3, 1])
    for (rates, delays), nic in zip(panels, nics, strict=True):
        limits = [limit for limit in (nic["ingress_bps"],) if limit]
        for number, series in nic["rates"].items():
            start_s = (series["start_ns"] - result["start_ns"]) / 1e9
            step_s = series["bin_ns"] / 1e9
            merge = max(-(-len(series["bps"]) // STEPS_MOST), 1)
            values = [sum(part) / merge / 1e6 for part in batched(series["bps"], merge)]
            edges = [start_s + step_s * merge * i for i in range(len(values) + 1)]
            name = "received" if int(number) == 0 else f"class {number}"
            rates.stairs(values, edges, label=name, linewidth=1.2)
        for limit in limits:
            rates.axhline(limit / 1e6, color="black", linestyle="--", linewidth=1, label=f"policy {format_rate(limit)}")
        rates.set_title(f"{nic['name']}: what its container received", loc="left", fontsize=10)
        rates.set_xlabel("virtual time, s")
        rates.set_ylabel("Mbit/s of layer 2")
        rates.set_ylim(bottom=0)
        rates.legend(fontsize=8, loc="upper right")
        shown = {f"class {number}" if int(number) else "all": each["delay_ns"] for number, each in nic["classes"].items()}
        for offset, what in enumerate(("p50", "p99", "max")):
            places = [place + 0.27 * (offset - 1) for place in range(len(shown))]
            delays.bar(places, [each[what] / 1e6 for each in shown.values()], width=0.25, label=what)
        delays.set_xticks(range(len(shown)), list(shown), fontsize=8)
        delays.set_title("delay, ms", loc="left", fontsize=10)
        delays.legend(fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": "vnic"})
    return out.getvalue()


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } .bad { color: #b00020 }
"""


def page(result: Mapping[str, Any], picture: bytes) -> str:
    """One HTML file, with nothing to fetch."""

    def cells(tag: str, values: list[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values) + "</tr>"

    rows = []
    for nic in result["nics"]:
        for number, each in nic["classes"].items() or [("-", None)]:
            delay = [f"{each['delay_ns'][key] / 1e6:.3f}" for key in ("p50", "p99", "max")] if each else ["-"] * 3
            counts = [each["packets"], each["bytes"]] if each else [0, 0]
            rows.append(cells("td", [nic["name"], nic["received"], number, *counts, *delay]))
    drops = "".join(cells("td", [*key.rsplit(": ", 1), count]) for key, count in result["dropped"].items())
    conserved = "every packet is accounted for" if result["conserved"] else "packets are unaccounted for"
    errors = "".join(f'<p class="bad">{html.escape(error)}</p>' for error in result["errors"])
    image = base64.b64encode(picture).decode()
    head = cells("th", ["NIC", "sent", "class", "received", "bytes", "delay p50, ms", "p99", "max"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vnic replay</title><style>{STYLE}</style></head><body>
<h1>Replay</h1>
<p>{result["received"]} packets in {result["duration_ns"] / 1e9:.6f} s of virtual time, {result["transmitted"]} received; {conserved}.</p>
{errors}
<img alt="Rates over time against the policy, and delays" src="data:image/png;base64,{image}">
<table>{head}{"".join(rows)}</table>
<h2>Dropped</h2>
<table>{cells("th", ["element", "reason", "packets"])}{drops or cells("td", ["nothing", "", 0])}</table>
</body></html>
"""

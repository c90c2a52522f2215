"""Results as tables for users and as JSON files under bench/results/."""

import contextlib
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def save(kind: str, result: Mapping[str, object]) -> Path:
    """Writes the result to bench/results/KIND-DATE.json and returns the path."""
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    path = RESULTS / f"{kind}-{stamp}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def _figure(one: Mapping[str, Any], key: str, digits: int, spread: bool = True) -> str:
    value = one.get(key)
    if value is None:
        return "-"
    if not spread:
        return f"{value:.{digits}f}"
    low, high = one["spread"][key]["min"], one["spread"][key]["max"]
    return f"{value:.{digits}f} [dim]({low:.{digits}f}-{high:.{digits}f})[/dim]"


def _ratio(one: Mapping[str, Any], key: str) -> str:
    return "-" if one.get(key) is None else f"{one[key]:.2f}"


def show_machine(console: Console, machine: Mapping[str, Any]) -> None:
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel']}, Python {machine['versions']['python']},"
        f" load before {machine['load_before']:.2f}, {machine['date']}",
        highlight=False,
    )


def show_tap(console: Console, result: Mapping[str, Any]) -> None:
    """The table of `bench tap`: medians (min-max), ratios to the better bare loop."""
    table = Table(title=f"TAP to TAP: medians of {result['rounds']} rounds of {result['seconds']:g} s (min-max)")
    rates = ("TCP Gbit/s", "/ bare", "64 B Mpps", "/ bare")
    times = ("ping p50 us", "p99 us", "UDP p50 us", "CPU ns/pkt", "CPU s/GB", "idle CPU %")
    for title in ("", *rates, *times):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    for name, one in {**result["ours"], **result["peers"]}.items():
        table.add_row(
            name,
            _figure(one, "tcp_gbps", 2),
            _ratio(one, "tcp_ratio_vs_bare"),
            _figure(one, "mpps_64b", 3),
            _ratio(one, "pps_ratio_vs_bare"),
            _figure(one, "rtt_p50_us", 1),
            _figure(one, "rtt_p99_us", 0, spread=False),
            _figure(one, "udp_rtt_p50_us", 1, spread=False),
            _figure(one, "cpu_ns_per_packet", 0, spread=False),
            _figure(one, "cpu_s_per_gb", 3, spread=False),
            _figure(one, "idle_cpu_percent", 2, spread=False),
        )
    show_machine(console, result["machine"])
    console.print(table)
    for name, one in {**result["ours"], **result["peers"]}.items():
        console.print(f"  {name:10} {one['what']}", highlight=False)
        for failure in one["failures"]:
            console.print(f"  {name:10} {failure}", highlight=False)


def show_elements(console: Console, result: Mapping[str, Any]) -> None:
    """The table of `bench elements`: ns per packet, median (min-max) of the repetitions."""
    table = Table(title=f"Elements: ns/packet, medians of {result['repetitions']} (min-max), empty loop subtracted")
    table.add_column("")
    table.add_column("traffic")
    batches = list(result["empty"][0]["batches"])
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right", no_wrap=True)
    for group in ("empty", "elements"):
        for row in result[group]:
            figures = [row["batches"][batch] for batch in batches]
            cells = [f"{f['ns']:.2f} [dim]({f['min']:.2f}-{f['max']:.1f})[/dim]" for f in figures]
            table.add_row(row["name"], row["traffic"], *cells)
        table.add_section()
    show_machine(console, result["machine"])
    console.print(table)
    for row in result["flows"]:
        console.print(
            f"{row['name']}, 32 packets, {row['flows']} flows: {row['ns']:.1f} ns "
            f"[dim]({row['min']:.1f}-{row['max']:.1f})[/dim]"
        )
    for row in result["timers"]:
        console.print(
            f"a timer set anew, of {row['timers']}: {row['ns']:.1f} ns [dim]({row['min']:.1f}-{row['max']:.1f})[/dim]"
        )
    for row in result["guests"]:
        console.print(
            f"guest to guest, {row['rings']} rings, {row['bytes']} bytes: {row['ns']:.1f} ns "
            f"[dim]({row['min']:.1f}-{row['max']:.1f})[/dim]"
        )


def show_rates(console: Console, result: Mapping[str, Any]) -> None:
    """The table of `bench rate`: every round of every rate."""
    show_machine(console, result["machine"])
    table = Table(title=f"Rates over {result['seconds']:g} s, and in every window of 100 ms, seen by the receiving kernel")
    for title in ("asked", "error %", "worst windows %", "windows", "beyond 2 %"):
        table.add_column(title, justify="left" if title == "asked" else "right", no_wrap=True)
    for rate, rounds in result["rates"].items():
        for one in rounds:
            window = one["window_error_percent"]
            worst = f"{window['min']:+.2f} {window['max']:+.2f}"
            table.add_row(
                rate, f"{one['error_percent']:+.3f}", worst, str(one["windows"]), str(one["windows_beyond_2_percent"])
            )
    console.print(table)


def show_replay(console: Console, result: Mapping[str, Any]) -> None:
    show_machine(console, result["machine"])
    table = Table(
        title=f"{result['packets']} packets, {result['capture_bytes'] / 1e6:.0f} MB: medians of {result['rounds']} (min-max)"
    )
    for title in ("", "Mpps", "max RSS MB"):
        table.add_column(title, justify="left" if not title else "right")
    for name, key, rss in (("vnic replay", "mpps", result["max_rss_mb"]), ("scapy", "scapy_mpps", None)):
        low, high = result["spread"][key]
        table.add_row(name, f"{result[key]:.4g} [dim]({low:.4g}-{high:.4g})[/dim]", "-" if rss is None else f"{rss:.0f}")
    console.print(table)
    console.print(f"vnic / scapy: {result['vs_scapy']:.0f}; written to {result['output']}", highlight=False)


def show_figures(console: Console, result: Mapping[str, Any], title: str) -> None:
    """A table of a result's figures by name."""
    show_machine(console, result["machine"])
    table = Table(title=title)
    table.add_column("")
    table.add_column("", justify="right")
    for key, value in result.items():
        if key in ("machine", "series_ms"):
            continue
        for name, each in _figures(key, value):
            text = ", ".join(f"{word} {figure}" for word, figure in each.items()) if isinstance(each, dict) else str(each)
            table.add_row(name, text)
    console.print(table)


def _figures(key: str, value: Any) -> list[tuple[str, Any]]:
    """A figure, or those of each kind."""
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        return [(f"{key}, {name}", each) for name, each in value.items()]
    return [(key, value)]


def plot_series(result: Mapping[str, Any], path: Path, title: str) -> Path:
    """A plot of each round's gap, blackout or change."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    axis.bar(range(1, len(result["series_ms"]) + 1), result["series_ms"])
    axis.set_xlabel("round")
    axis.set_ylabel("ms")
    axis.set_title(title)
    axis.grid(alpha=0.3, axis="y")
    with contextlib.closing(path.open("wb")) as file:
        figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return path

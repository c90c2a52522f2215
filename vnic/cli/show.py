"""`vnic status`, `vnic stats`, `vnic monitor`, `vnic graph`."""

from __future__ import annotations

import textwrap
import time
from contextlib import suppress
from typing import Any

import click

from dataplane.errors import ConfigError, VnicError
from vnic.cli.common import (
    about,
    completing,
    connect,
    instance_option,
    json_option,
    plural,
    print_json,
    print_line,
    print_table,
    shown_rate,
)

WATCH_MS = 10, 3_600_000
CONTAINED = "tap", "veth", "packet"  # kinds of interfaces of a container


def _limit(nic: dict[str, Any], direction: str) -> str | None:
    """A rate limit and the size of its queue: 10mbit, 12.5 kB."""
    if not nic.get(f"{direction}_bps"):
        return None
    waiting = nic.get(f"{direction}_queue_bytes")
    return shown_rate(nic[f"{direction}_bps"]) + (
        "" if waiting is None else f", {about(waiting, 'B')}"
    )


def _cpus(cpus: list[int] | None) -> str:
    return "any" if cpus is None else ", ".join(map(str, cpus))


def _guarantee(group: dict[str, Any]) -> str | None:
    """900us of 1ms (rr): the guarantee requested, and the scheduling class in force."""
    if group["guarantee"] is None:
        return None
    from dataplane.units import format_time

    runtime, period = (format_time(group["guarantee"][key]) for key in ("runtime_ns", "period_ns"))
    classes = sorted({thread["scheduling"] for thread in group["threads"]})
    return f"{runtime} of {period} ({', '.join(classes) or 'none yet'})"


def _cgroups(groups: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows: a group's cgroup, the CPU time that the kernel has charged to it, and whether all of
    the group's threads are in it."""
    return [
        [
            group["name"],
            each["path"],
            None if (ns := each["cpu_ns"]) is None else f"{ns / 1e9:.2f}",
            each["why"] or "yes",
        ]
        for group in groups
        for each in group.get("cgroups", ())
    ]


def _container(nic: dict[str, Any]) -> str:
    if "guest" in nic:
        return "guest connected" if nic["guest"] == "connected" else "no guest"
    if nic.get("netns"):
        return str(nic["netns"])
    if nic.get("pid") is not None:
        return f"pid {nic['pid']}"
    return "passed by its client" if nic.get("kind") in CONTAINED else "none"


@click.command()
@instance_option
@json_option
def status(instance: str, as_json: bool) -> None:
    """Show engines, NICs and switch of a running vnic, and whether every packet is accounted for.

    \b
    Engines: packets that came in and went out, were dropped, or are inside now (held); CPU time;
    iterations longer than the group's budget (overruns); the thread that runs the engine. Packets
    are counted as the kernel does: a GSO frame is one.
    NICs: egress and ingress are the limits of what leaves and enters the container, each with the
    bytes that may wait for it: the queue's time at the rate.

    \b
    vnic status
    vnic status --json
    """
    with connect(instance) as client:
        found = client.call("Status")["status"]
    if as_json:
        print_json(found)
        return
    entries = found.get("switch", {}).get("entries", [])
    worker = f", worker {found['pid']}" if "pid" in found else ""  # only the owner gets it
    click.echo(
        f"instance {instance}{worker}, {plural(len(entries), 'address', 'addresses')} learned"
    )
    supervisor = found.get("supervisor") or {}
    if supervisor.get("version", found.get("version")) != found.get("version"):
        click.echo(
            f"the worker is vnic {found['version']}; "
            f"supervisor and namespace agent remain {supervisor['version']} until `vnic down`"
        )
    if supervisor.get("restarts"):
        click.echo(
            f"the worker was replaced {plural(supervisor['restarts'], 'time')}; the last one: "
            f"{supervisor['last']}"
        )
    for waiting in found.get("waiting", []):
        click.echo(f"WAITING: nic {waiting['name']}: {waiting['why']}")
    for lost in found.get("lost", []):
        click.echo(f"LOST: {lost['what']}: {lost['why']}")
    for nic in found["nics"]:
        if nic.get("problem"):
            click.echo(f"PROBLEM: nic {nic['name']}: {nic['problem']}")
    click.echo(
        "packets: "
        + (
            "every one is accounted for"
            if found["conserved"]
            else "SOME ARE MISSING (see vnic status --json)"
        )
    )
    if found["engines"]:  # a client that is not the owner gets none
        print_table(
            ["engine", ">received", ">transmitted", ">dropped", ">held", ">CPU s", ">overruns",
             "group", "thread"],
            [
                [each["name"], each.get("received"), each.get("transmitted"), each.get("dropped"),
                 each.get("held"),
                 f"{each.get('cpu_ns', 0) / 1e9:.2f}", each.get("overruns"), each.get("group"),
                 each.get("thread")]
                for each in found["engines"]
            ],
        )  # fmt: skip
    if found.get("groups"):
        print_table(
            ["group", "mode", "CPUs", "guarantee", ">threads"],
            [
                [
                    group["name"],
                    group["mode"],
                    _cpus(group["cpus"]),
                    _guarantee(group),
                    len(group["threads"]),
                ]
                for group in found["groups"]
            ],
        )
    if rows := _cgroups(found.get("groups", [])):
        print_table(["group", "cgroup", ">CPU s", "in force"], rows)
    if found["nics"]:
        switches = (
            ["switch"]
            if len({nic.get("on") for nic in found["nics"]}) > 1 or found.get("links")
            else []
        )
        owned = ["owner"] if any(nic.get("owner") is not None for nic in found["nics"]) else []
        print_table(
            ["NIC", "interface", "container", "MAC", ">MTU", ">queues", "link", ">egress",
             ">ingress", "engine", *switches, *owned],
            [
                [nic["name"], nic.get("interface"), _container(nic), nic.get("mac"), nic.get("mtu"),
                 nic.get("queues"),
                 nic.get("link"), _limit(nic, "egress"), _limit(nic, "ingress"), nic["engine"],
                 *([nic.get("on")] if switches else []), *([nic.get("owner")] if owned else [])]
                for nic in found["nics"]
            ],
        )  # fmt: skip
    if found.get("links"):
        print_table(
            ["link", "switches", "VLANs", "limits", "engine"],
            [_link_row(link) for link in found["links"]],
        )
    if found.get("nodes"):
        print_table(
            ["node", "element", "engine", "one-way links"],
            [
                [
                    node["name"],
                    node["element"],
                    node["engine"],
                    ", ".join(hop for hop in found["hops"] if node["name"] in _ends(hop)) or None,
                ]
                for node in found["nodes"]
            ],
        )


def _ends(hop: str) -> list[str]:
    """The two ends of a one-way link such as `split[1] -> lan`."""
    source, _, target = hop.partition(" -> ")
    return [source.partition("[")[0], target]


def _link_row(link: dict[str, Any]) -> list[Any]:
    vlan = link["vlan"] or {}
    numbers = vlan.get("trunk") or [vlan.get("access") or 0]
    limits = [
        f"to {end}: {shown_rate(way['bps'])}" for end, way in link["to"].items() if way["bps"]
    ]
    return [
        link["name"],
        " -- ".join(link["ends"]),
        "all" if not vlan else ", ".join(map(str, numbers)) if any(numbers) else "untagged",
        ", ".join(limits) or None,
        link["engine"] or "each",
    ]


@click.command()
@click.argument("name", required=False, shell_complete=completing("nic"))
@click.option("--watch", metavar="TIME", help="Repeat at this interval, 10ms to 1h, until Ctrl-C.")
@instance_option
@json_option
def stats(name: str | None, watch: str | None, instance: str, as_json: bool) -> None:
    """Show counters of each queue and of each element, with drops by reason; of the NIC called NAME
    only, if given.

    \b
    rx, tx        what the container sent; what it received
    packets       as the kernel counts, like `ip -s link`: a GSO frame (TSO, USO) of many segments
                  is one packet, and its bytes have the headers once
    wire packets  after segmentation: every segment with its headers, as on a wire. Rates limit wire
                  bytes.
    held          packets inside an element now; a source's packets are those that it took from its
                  port
    counters      the element's own. Shaper, Link: passed (did not wait), delayed, split (GSO frames
                  cut); queue: wire bytes that wait, and the limit; delay of a packet in the queue,
                  mean and longest so far

    With --json: {time, nics, engines}, with --watch one such object a line. Keys ending in _ns are
    nanoseconds.

    \b
    vnic stats
    vnic stats web
    vnic stats web --watch 500ms
    vnic stats web --json
    """
    if watch is None:
        with connect(instance) as client:
            found = client.call("Stats", name=name)["stats"]
        if as_json:
            print_json({"time": round(time.time(), 6), **found})
        else:
            _show_stats(found)
        return
    from dataplane.units import parse_time

    try:
        interval_ms = parse_time(watch) // 1_000_000
    except ConfigError as error:
        raise click.UsageError(f"--watch: {error}") from None
    if not WATCH_MS[0] <= interval_ms <= WATCH_MS[1]:
        raise click.UsageError(f"--watch {watch}: expected 10ms to 1h")
    with connect(instance) as client, suppress(KeyboardInterrupt):
        for reply in client.stream("WatchStats", name=name, interval_ms=interval_ms):
            if as_json:
                print_line({"time": reply["time"], **reply["stats"]})
            else:
                click.clear()
                _show_stats(reply["stats"])


@click.command()
@instance_option
@json_option
def monitor(instance: str, as_json: bool) -> None:
    """Show events as they occur, until Ctrl-C: NICs attached and detached, changes of rates and
    links, captures, engines that move to another thread or exceed their budget, the first of a
    series of drops, workers replaced.

    \b
    vnic monitor
    vnic monitor --json | jq -c 'select(.event == "drops")'
    """
    with connect(instance) as client, suppress(KeyboardInterrupt):
        for reply in client.stream("Monitor"):
            event: dict[str, Any] = reply["event"]
            if as_json:
                print_line(event)
                continue
            click.echo(_event_line(event))


def _event_line(event: dict[str, Any]) -> str:
    """An event as text: 10:00:00.123 rate nic=web egress=none."""
    import datetime

    when = datetime.datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S.%f")[:-3]
    words = {key: value for key, value in event.items() if key not in ("time", "event")}
    for direction in ("egress", "ingress"):
        if (key := f"{direction}_bps") in words:
            words[direction] = shown_rate(words.pop(key))
    return f"{when} {event['event']:12} " + " ".join(
        f"{key}={value}" for key, value in words.items() if value is not None
    )


QUEUE_COLUMNS = ("packets", "bytes", "wire_packets", "wire_bytes", "dropped")
CELL = 30  # columns of a cell of counters, so that a table of elements is at most about 100 wide


def _show_stats(found: dict[str, Any]) -> None:
    for nic in found["nics"]:
        rows = [
            [number, way, *(queue.get(f"{way}_{column}", 0) for column in QUEUE_COLUMNS)]
            for number, queue in enumerate(nic["queues"])
            for way in ("rx", "tx")
        ]
        columns = [f">{column.replace('_', ' ')}" for column in QUEUE_COLUMNS]
        print_table([">queue", "", *columns], rows, title=nic["name"])
        if drops := nic.get("queue_drops"):
            click.echo(
                f"{nic['name']}: "
                f"the container sent {plural(drops, 'packet')} that its queues had no room for"
            )
    for engine in found["engines"]:
        rows = []
        for element in engine["elements"]:
            drops = [
                f"{count} {reason}" for reason, count in element.get("dropped", {}).items() if count
            ]
            cells = [_cell(drops, 16), _cell(_counters(element), CELL)]
            rows.append(
                [
                    element["name"],
                    element.get("type"),
                    element.get("packets", 0),
                    element.get("held", 0),
                    *cells,
                ]
            )
        if rows:
            print_table(
                ["element", "type", ">packets", ">held", "dropped", "counters"],
                rows,
                title=f"engine {engine['name']}",
            )


def _cell(words: list[str], columns: int) -> str:
    return "\n".join(textwrap.wrap(", ".join(words), columns, break_long_words=False))


def _counters(element: dict[str, Any]) -> list[str]:
    """An element's own counters as text; those of a shaper or line with units and means."""
    counters = dict(element.get("counters", {}))
    found: list[str] = []
    if {"sojourn_ns", "sojourn_max_ns", "queue_bytes"} <= counters.keys():
        packets = counters.get("passed", 0) + counters.get("delayed", 0)
        total_ns, longest_ns, waiting = (
            counters.pop(key) for key in ("sojourn_ns", "sojourn_max_ns", "queue_bytes")
        )
        if (limit := element.get("queue_limit_bytes")) is not None:
            found.append(f"queue {waiting} of {limit} bytes")
        if longest_ns:
            found.append(
                f"delay mean {total_ns / max(packets, 1) / 1e6:.3f} ms, max {longest_ns / 1e6:.3f} "
                f"ms"
            )
    found = [f"{key} {value}" for key, value in counters.items() if value] + found
    return found + ([f"hits {' '.join(map(str, element['hits']))}"] if element.get("hits") else [])


@click.command()
@instance_option
@json_option
def metrics(instance: str, as_json: bool) -> None:
    """Show counters, gauges and accounts in Prometheus' text format. They are the numbers of
    `vnic stats --json`, in seconds, bytes and packets.

    A running vnic serves the same over HTTP where its configuration says: metrics: {listen:
    "127.0.0.1:9464"}.

    \b
    vnic metrics
    vnic metrics | promtool check metrics
    """
    with connect(instance) as client:
        if as_json:
            print_json(client.call("Metrics", format="json")["families"])
        else:
            click.echo(client.call("Metrics")["text"], nl=False)


@click.command()
@click.option(
    "--elements", is_flag=True, help="Show the elements of each engine and their connections."
)
@click.option("--dot", "style", flag_value="dot", help="Print it in Graphviz' language.")
@click.option("--json", "style", flag_value="json", help="Print JSON.")
@click.option("--text", "style", flag_value="text", default="text", hidden=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="Draw it into a file: .svg, .png or .pdf. Needs Graphviz.",
)
@instance_option
def graph(elements: bool, style: str, output: str | None, instance: str) -> None:
    """Show the network: switches, the NICs on them and the links between them, with what packets
    pass.

    \b
    vnic graph
    vnic graph -o network.svg
    vnic graph --elements
    """
    suffix = "" if output is None else output.rpartition(".")[2].lower()
    if output is not None and suffix not in PICTURES:
        raise click.UsageError(
            f"--output {output}: expected a name that ends in .{', .'.join(PICTURES)}"
        )
    with connect(instance) as client:
        picture = client.call(
            "Graph", format=style if output is None else "dot", elements=elements
        )["graph"]
    if output is None:
        click.echo(picture.rstrip("\n"))
    else:
        _draw(picture, output, suffix)


def _draw(picture: str, output: str, kind: str) -> None:
    import shutil
    import subprocess

    if (dot := shutil.which("dot")) is None:
        raise VnicError("drawing needs Graphviz: install the package graphviz, or use --dot")
    done = subprocess.run(
        [dot, f"-T{kind}", "-o", output], input=picture, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise VnicError(f"{output}: cannot be drawn: {done.stderr.strip().splitlines()[-1]}")


PICTURES = ("svg", "png", "pdf")

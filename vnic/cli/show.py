"""`vnic status`, `vnic stats`, `vnic monitor`, `vnic graph`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from vnic.cli.common import connect, instance_option, json_option, print_json, print_line, print_table

WATCH_MS = 10, 3_600_000


def _rate(bps: int | None) -> str | None:
    from dataplane.units import format_rate

    return format_rate(bps) if bps else None


def _cpus(cpus: list[int] | None) -> str:
    return "any" if cpus is None else ", ".join(map(str, cpus))


def _guarantee(group: dict[str, Any]) -> str | None:
    """900us of 1ms (rr): what was asked for, and what is in force."""
    if group["guarantee"] is None:
        return None
    from dataplane.units import format_time

    runtime, period = (format_time(group["guarantee"][key]) for key in ("runtime_ns", "period_ns"))
    return f"{runtime} of {period} ({', '.join(sorted({thread['scheduling'] for thread in group['threads']})) or 'none yet'})"


def _cgroups(groups: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows: a group's cgroup, the CPU time that the kernel has charged to it, and whether all threads of the group are in it."""
    return [
        [group["name"], each["path"], None if (ns := each["cpu_ns"]) is None else f"{ns / 1e9:.2f}", each["why"] or "yes"]
        for group in groups
        for each in group.get("cgroups", ())
    ]


def _container(nic: dict[str, Any]) -> str:
    if nic.get("netns"):
        return str(nic["netns"])
    return "passed by its client" if nic.get("pid") is None else f"pid {nic['pid']}"


@click.command()
@instance_option
@json_option
def status(instance: str, as_json: bool) -> None:
    """Show engines, NICs and switch of a running vnic, and whether every packet is accounted for.

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
    worker = f", worker {found['pid']}" if "pid" in found else ""  # the owner's alone to know
    click.echo(f"instance {instance}{worker}, {len(entries)} addresses learned")
    supervisor = found.get("supervisor") or {}
    if supervisor.get("version", found.get("version")) != found.get("version"):
        click.echo(
            f"the worker is vnic {found['version']}; supervisor and namespace agent remain {supervisor['version']} until `vnic down`"
        )
    if supervisor.get("restarts"):
        click.echo(f"the worker was replaced {supervisor['restarts']} times; the last one: {supervisor['last']}")
    for waiting in found.get("waiting", []):
        click.echo(f"WAITING: nic {waiting['name']}: {waiting['why']}")
    for lost in found.get("lost", []):
        click.echo(f"LOST: {lost['what']}: {lost['why']}")
    click.echo(
        "packets: " + ("every one is accounted for" if found["conserved"] else "SOME ARE MISSING (see vnic status --json)")
    )
    if found["engines"]:  # a client that is not the owner sees none
        print_table(
            ["engine", ">received", ">transmitted", ">dropped", ">held", ">CPU s", ">overruns", "group", "thread"],
            [
                [each["name"], each.get("received"), each.get("transmitted"), each.get("dropped"), each.get("held"),
                 f"{each.get('cpu_ns', 0) / 1e9:.2f}", each.get("overruns"), each.get("group"), each.get("thread")]
                for each in found["engines"]
            ],
        )  # fmt: skip
    if found.get("groups"):
        print_table(
            ["group", "mode", "CPUs", "guarantee", ">threads"],
            [
                [group["name"], group["mode"], _cpus(group["cpus"]), _guarantee(group), len(group["threads"])]
                for group in found["groups"]
            ],
        )
    if rows := _cgroups(found.get("groups", [])):
        print_table(["group", "cgroup", ">CPU s", "in force"], rows)
    if found["nics"]:
        owned = ["owner"] if any(nic.get("owner") is not None for nic in found["nics"]) else []
        print_table(
            ["NIC", "interface", "container", "MAC", ">MTU", ">queues", "link", ">egress", ">ingress", "engine", *owned],
            [
                [nic["name"], nic.get("interface"), _container(nic), nic.get("mac"), nic.get("mtu"), nic.get("queues"),
                 nic.get("link"), _rate(nic.get("egress_bps")), _rate(nic.get("ingress_bps")), nic["engine"],
                 *([nic.get("owner")] if owned else [])]
                for nic in found["nics"]
            ],
        )  # fmt: skip


@click.command()
@click.argument("name", required=False)
@click.option("--watch", metavar="TIME", help="Again and again, at this interval, 10ms to 1h, until Ctrl-C.")
@instance_option
@json_option
def stats(name: str | None, watch: str | None, instance: str, as_json: bool) -> None:
    """Show counters of each queue, and of each element with its drops by reason; of the NIC called NAME only, if given.

    Received is what the container sent, transmitted what it got.

    \b
    vnic stats
    vnic stats web
    vnic stats web --watch 500ms
    vnic stats web --json
    """
    if watch is None:
        with connect(instance) as client:
            _show_stats(client.call("Stats", name=name)["stats"], as_json)
        return
    from dataplane.units import parse_time

    interval_ms = parse_time(watch) // 1_000_000
    if not WATCH_MS[0] <= interval_ms <= WATCH_MS[1]:
        raise click.UsageError(f"--watch {watch}: want 10ms to 1h")
    with connect(instance) as client, suppress(KeyboardInterrupt):
        for reply in client.stream("WatchStats", name=name, interval_ms=interval_ms):
            if as_json:
                print_line(reply)
            else:
                click.clear()
                _show_stats(reply["stats"], as_json=False)


@click.command()
@instance_option
@json_option
def monitor(instance: str, as_json: bool) -> None:
    """Show what happens, as it happens, until Ctrl-C: NICs attached and detached, rates, links, captures, engines that move to another
    thread or take too long for a turn, packets that begin to be dropped, workers replaced.

    \b
    vnic monitor
    vnic monitor --json | jq -c 'select(.event == "drops")'
    """
    import datetime

    with connect(instance) as client, suppress(KeyboardInterrupt):
        for reply in client.stream("Monitor"):
            event: dict[str, Any] = reply["event"]
            if as_json:
                print_line(event)
                continue
            when = datetime.datetime.fromtimestamp(event.pop("time")).strftime("%H:%M:%S.%f")[:-3]
            what = event.pop("event")
            click.echo(f"{when} {what:12} " + " ".join(f"{key}={value}" for key, value in event.items() if value is not None))


def _show_stats(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for nic in found["nics"]:
        queues: list[dict[str, Any]] = nic["queues"]
        columns = list(dict.fromkeys(key for queue in queues for key, value in queue.items() if not isinstance(value, dict)))
        rows = [[number, *(queue.get(column, 0) for column in columns)] for number, queue in enumerate(queues)]
        print_table([">queue", *(f">{column}" for column in columns)], rows, title=nic["name"])
        if drops := nic.get("queue_drops"):
            click.echo(f"{nic['name']}: the container sent {drops} packets that its queues had no room for")
    for engine in found["engines"]:
        rows = []
        for element in engine["elements"]:
            drops = ", ".join(f"{count} {reason}" for reason, count in element.get("dropped", {}).items() if count)
            counters = ", ".join(f"{key} {value}" for key, value in element.get("counters", {}).items() if value)
            packets = element.get("packets") or element.get("received", 0)  # nothing enters a source: it takes
            rows.append([element["name"], element.get("type"), packets, element.get("held", 0), drops, counters])
        if rows:
            print_table(["element", "type", ">packets", ">held", "dropped", "counters"], rows, title=f"engine {engine['name']}")


@click.command()
@instance_option
def metrics(instance: str) -> None:
    """Show counters, gauges and accounts in Prometheus' text format.

    A running vnic serves the same over HTTP where its configuration says: metrics: {listen: "127.0.0.1:9464"}.

    \b
    vnic metrics
    vnic metrics | promtool check metrics
    """
    with connect(instance) as client:
        click.echo(client.call("Metrics")["text"], nl=False)


@click.command()
@click.option("--dot", "style", flag_value="dot", help="In Graphviz' language.")
@click.option("--json", "style", flag_value="json", help="As one JSON object.")
@click.option("--text", "style", flag_value="text", default="text", hidden=True)
@instance_option
def graph(style: str, instance: str) -> None:
    """Show the elements that run and how packets pass from one to the next.

    \b
    vnic graph
    vnic graph --dot | dot -Tsvg > graph.svg
    """
    with connect(instance) as client:
        click.echo(client.call("Graph", format=style)["graph"].rstrip("\n"))

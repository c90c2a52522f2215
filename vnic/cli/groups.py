"""`vnic group`, `vnic accounts`."""

from __future__ import annotations

from typing import Any

import click

from vnic.cli.common import (
    completing,
    connect,
    instance_option,
    json_option,
    plural,
    print_json,
    print_table,
)


@click.command()
@click.argument("name", shell_complete=completing("group"))
@click.option(
    "--mode",
    type=click.Choice(["dedicated", "spreading", "compacting"]),
    help="How its engines get CPU time.",
)
@click.option("--cpus", metavar="N,N...|any", help="CPUs that its threads may use.")
@click.option(
    "--guarantee",
    metavar="TIME/TIME|none",
    help="CPU time for each of its threads, in each period.",
)
@click.option("--slo", metavar="TIME", help="Queueing delay to stay below when compacting.")
@click.option("--spin", metavar="TIME", help="Time that an idle thread polls before it sleeps.")
@click.option(
    "--budget",
    metavar="TIME",
    help="Longest iteration of an engine; longer ones are counted; 0: no limit.",
)
@click.option(
    "--cgroup",
    multiple=True,
    metavar="PATH|none",
    help="Cgroup that its threads join; may be given several times.",
)
@instance_option
@json_option
def group(
    name: str,
    mode: str | None,
    cpus: str | None,
    guarantee: str | None,
    cgroup: tuple[str, ...],
    instance: str,
    as_json: bool,
    **times: str | None,
) -> None:
    """Change the engine group called NAME while packets flow.

    Options have the names and units of the configuration file. Settings without an option stay;
    `any` and `none` remove one.

    \b
    dedicated   one thread for each CPU, which polls without sleeping
    spreading   one thread for each engine, which sleeps when idle
    compacting  one thread for all engines, more while packets wait too long

    \b
    vnic group default --mode compacting --slo 80us
    vnic group default --mode dedicated --cpus 2,3
    vnic group default --guarantee 200us/1ms     200 us of CPU time in each millisecond, and no more
    vnic group default --guarantee none --cpus any
    """
    settings: dict[str, Any] = {word: time for word, time in times.items() if time is not None}
    if mode is not None:
        settings["mode"] = mode
    if cpus is not None:
        settings["cpus"] = None if cpus == "any" else _numbers(cpus)
    if guarantee is not None:
        runtime, slash, period = guarantee.partition("/")
        if not slash and guarantee != "none":
            raise click.UsageError(
                f"--guarantee {guarantee}: expected RUNTIME/PERIOD such as 200us/1ms, or none"
            )
        settings["guarantee"] = {"runtime": runtime, "period": period} if slash else None
    if cgroup:
        settings["cgroup"] = None if cgroup == ("none",) else list(cgroup)
    if not settings:
        raise click.UsageError(
            "nothing to change; "
            "use --mode, --cpus, --guarantee, --slo, --spin, --budget or --cgroup"
        )
    with connect(instance) as client:
        found = client.call("SetGroup", name=name, settings=settings)["group"]
    if as_json:
        print_json(found)
        return
    click.echo(f"{name}: {found['mode']}, {plural(len(found['threads']), 'thread')}")
    for each in found.get("cgroups", ()):
        if not each["in_force"]:
            click.echo(f"not charged to its cgroup: {each['why']}")
    if settings.get("guarantee") and {thread["scheduling"] for thread in found["threads"]} == {
        "budget"
    }:
        click.echo(
            "the guarantee is a bound only; "
            "see 'vnic doctor', and 'vnic upgrade' where the daemon started without one"
        )


def _numbers(cpus: str) -> list[int]:
    words = cpus.split(",")
    if not all(word.isdecimal() for word in words):
        raise click.UsageError(f"--cpus {cpus}: expected CPU numbers such as 0,1, or any")
    return [int(word) for word in words]


@click.command()
@instance_option
@json_option
def accounts(instance: str, as_json: bool) -> None:
    """Show the CPU time and memory that each NIC is charged for, also in engines that several NICs
    share.

    A NIC is charged for the packets that it sends, up to the queue of the receiving NIC, and for
    packets that wait in its shapers. Overhead is CPU time that belongs to no NIC: polling without
    packets, control. The sum is the CPU time of the engines. Memory is charged for packets that
    wait for the NIC, for its ring and for its captures.

    \b
    vnic accounts
    vnic accounts --json
    """
    with connect(instance) as client:
        found = client.call("Accounts")["accounts"]
    if as_json:
        print_json(found)
        return
    total = found["cpu_ns"] or 1
    rows = [
        [each["nic"], each["cpu_ns"], each["memory_bytes"], each["packets_held"]]
        for each in found["accounts"]
    ]
    rows += [
        ["(detached)", found["detached_cpu_ns"], None, None],
        ["(overhead)", found["overhead_ns"], None, None],
    ]
    rows += [["(all)", found["cpu_ns"], None, None]]
    print_table(
        ["NIC", ">CPU s", ">share", ">bytes", ">packets held"],
        [
            [name, f"{cpu_ns / 1e9:.3f}", f"{100 * cpu_ns / total:.1f} %", memory, held]
            for name, cpu_ns, memory, held in rows
            if cpu_ns or not name.startswith("(det")
        ],
    )

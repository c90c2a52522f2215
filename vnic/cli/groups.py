"""`vnic group`, `vnic accounts`."""

from __future__ import annotations

import click

from vnic.cli.common import connect, instance_option, json_option, print_json, print_table


@click.command()
@click.argument("name")
@click.option("--mode", type=click.Choice(["dedicated", "spreading", "compacting"]), help="How its engines get CPU time.")
@click.option("--cpus", metavar="N,N...", help="The CPUs that it may use.")
@instance_option
@json_option
def group(name: str, mode: str | None, cpus: str | None, instance: str, as_json: bool) -> None:
    """Change the scheduling mode of the engine group called NAME, or its CPUs, while packets flow.

    \b
    dedicated   a thread for each of its CPUs, which polls without end
    spreading   a thread for each engine, which sleeps when there is nothing to do
    compacting  one thread for all of them, more while packets wait too long

    \b
    vnic group default --mode compacting
    vnic group default --mode dedicated --cpus 2,3
    """
    if mode is None and cpus is None:
        raise click.UsageError("nothing to change; want --mode, --cpus or both")
    numbers = None
    if cpus is not None:
        words = cpus.split(",")
        if not all(word.isdecimal() for word in words):
            raise click.UsageError(f"--cpus {cpus}: want CPU numbers such as 0,1")
        numbers = [int(word) for word in words]
    with connect(instance) as client:
        found = client.call("SetGroup", name=name, mode=mode, cpus=numbers)["group"]
    if as_json:
        print_json(found)
        return
    click.echo(f"{name}: {found['mode']}, {len(found['threads'])} thread{'s' if len(found['threads']) != 1 else ''}")
    for each in found.get("cgroups", ()):
        if not each["in_force"]:
            click.echo(f"not charged to its cgroup: {each['why']}")


@click.command()
@instance_option
@json_option
def accounts(instance: str, as_json: bool) -> None:
    """Show the CPU time and memory that each NIC is charged for, also in engines that many share.

    A NIC pays for the packets that it sends, up to the other NIC's queue, and for those that wait in its shapers. Overhead is
    what nobody asked for: polling without end, control. All together is the CPU time of the engines. Memory is what is taken for a NIC:
    by packets that wait for it, by the ring in front of it, and by its captures.

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
    rows = [[each["nic"], each["cpu_ns"], each["memory_bytes"], each["packets_held"]] for each in found["accounts"]]
    rows += [["(detached)", found["detached_cpu_ns"], None, None], ["(overhead)", found["overhead_ns"], None, None]]
    rows += [["(all)", found["cpu_ns"], None, None]]
    print_table(
        ["NIC", ">CPU s", ">share", ">bytes", ">packets held"],
        [
            [name, f"{cpu_ns / 1e9:.3f}", f"{100 * cpu_ns / total:.1f} %", memory, held]
            for name, cpu_ns, memory, held in rows
            if cpu_ns or not name.startswith("(det")
        ],
    )

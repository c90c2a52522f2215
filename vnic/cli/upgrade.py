"""`vnic upgrade`."""

from __future__ import annotations

import os

import click

from vnic.cli.common import connect, instance_option, json_option, print_json, print_table


@click.command()
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False),
    help="Python with the version to run.  [default: the same]",
)
@instance_option
@json_option
def upgrade(python: str | None, instance: str, as_json: bool) -> None:
    """Replace the running program by the version that is installed now, while packets flow.

    A second worker is prepared beside the running one. Then each engine stops for some milliseconds
    and continues in the new worker with its state and packets. Containers keep interfaces and
    connections. If anything fails, the old worker continues.

    Packets count as lost if the queues of an interface or an engine had no room for them between
    the first engine's stop and the last engine's start, by the counters of kernel and engines.

    The supervisor and its namespace agent, two small processes, are not replaced before
    `vnic down`.

    \b
    pip install --upgrade ./vnic && vnic upgrade     a source tree, or a wheel or its URL
    vnic upgrade --python /opt/vnic-2/bin/python     use this Python from now on, also after a crash
    vnic upgrade --json
    """
    with connect(instance) as client:
        before = client.call("Status")["status"].get("pid")
        report = client.call("Upgrade", python=os.path.abspath(python) if python else None)[
            "report"
        ]
    with connect(instance) as client:
        after = client.call("Status")["status"].get("pid")
    report = {**report, "worker": {"before": before, "after": after}}
    report.pop("pid", None)
    if as_json:
        print_json(report)
        return
    print_table(
        ["engine", ">blackout ms", ">state bytes", ">packets moved", ">packets lost"],
        [
            [
                each["name"],
                f"{each['blackout_ms']:.2f}",
                each["state_bytes"],
                each["packets_moved"],
                each.get("packets_lost"),
            ]
            for each in report["engines"]
        ],
    )
    queues = {nic: drops for nic, drops in report.get("queue_drops", {}).items() if drops != 0}
    where = ", ".join(
        f"{'unknown' if drops is None else drops} in {nic}'s queues"
        for nic, drops in queues.items()
    )
    click.echo(
        f"packets lost: {report.get('packets_lost', 'unknown')}" + (f" ({where})" if where else "")
    )
    click.echo(
        f"worker {after} took over from {before}; it was prepared in {report['brownout_ms']:.0f} ms"
    )

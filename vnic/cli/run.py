"""`vnic demo`, `vnic up`, `vnic down`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from dataplane.errors import ConfigError, VnicError
from vnic.cli.common import Seconds, connect, instance_option, json_option, plural, print_json


@click.command()
@click.option("--rate", default="100mbit", show_default=True, help="Rate limit of the second half.")
@click.option(
    "--queues",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Queue pairs of each NIC.",
)
@click.option(
    "--seconds",
    type=Seconds(0.2, 600),
    default=3.0,
    show_default=True,
    help="Duration of each measurement.",
)
@click.option(
    "--spin",
    default="0us",
    show_default=True,
    help="Time that the idle engine polls before it sleeps.",
)
@click.option("--guest", is_flag=True, help="Connect two virtual machines instead of containers.")
@json_option
def demo(rate: str, queues: int, seconds: float, spin: str, guest: bool, as_json: bool) -> None:
    """Create two containers, connect them, and measure TCP in both directions: without a rate
    limit, then with one that is set while it runs.

    Prints measured and expected throughput, round-trip times, and what became of all packets. Needs
    no root and leaves nothing behind. Without /dev/net/tun it uses veth pairs, and says so.

    With --guest, it boots two virtual machines of User-mode Linux from this machine's files, which
    they can only read, and connects these: NICs of kind vhost-user. It also runs ethtool in one of
    them, and upgrades vnic under a TCP connection. Their NICs have two queue pairs.

    \b
    vnic demo
    vnic demo --rate 10mbit --queues 4
    vnic demo --guest                        two virtual machines, booted in seconds
    vnic demo --json
    """
    from dataplane.config.scalars import Rate
    from dataplane.units import parse_rate

    rate_bps = int(Rate(parse_rate(rate)))

    def progress(text: str) -> None:
        click.echo(f"vnic: {text} ...", err=True)

    # these load compiled modules, so only after the rate is checked
    if guest:
        from vnic.cli.demo_guest import run_guest_demo

        result = run_guest_demo(rate_bps=rate_bps, seconds=seconds, progress=progress)
    else:
        from vnic.cli.demo import run_demo

        result = run_demo(
            rate_bps=rate_bps, queues=queues, seconds=seconds, spin=spin, progress=progress
        )
    if as_json:
        print_json(result)
        return
    click.echo(f"unshaped      {result['unshaped_gbps']:.2f} Gbit/s of TCP payload")
    click.echo(f"shaped        {result['shaped_mbps']:.3f} Mbit/s of TCP payload at {rate}")
    click.echo(
        f"expected      {result['expected_mbps']:.3f} Mbit/s, the rate without headers; "
        f"measured {result['error_percent']:+.3f} %"
    )
    click.echo(
        f"round trip    {result['rtt_us']['p50']} us p50, {result['rtt_us']['p99']} us p99 of a "
        "UDP datagram and its echo"
    )
    if guest:
        used, upgraded = result["queues_used"], result["upgrade"]
        said = "ethtool -L in a guest" if result["ethtool"] else "ethtool is not installed"
        click.echo(f"queue pairs   {used} used by guest left ({said})")
        click.echo(
            f"upgrade       {upgraded['blackout_ms']:.1f} ms, {upgraded['packets_lost']} packets "
            f"lost; the TCP connection over it had {upgraded['gbps']:.2f} Gbit/s"
        )
    from vnic.cli.demo import TERMS

    terms = {term: sum(engine[term] for engine in result["conservation"]) for term in TERMS}
    click.echo(
        "packets       {received} received + {generated} made by segmentation".format_map(terms)
    )
    click.echo(
        "              = {transmitted} transmitted + {dropped} dropped + {held} held".format_map(
            terms
        )
    )
    if not result["conserved"]:
        raise VnicError("packets are missing: the two sides differ")


@click.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path())
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Run in the background with a log file; return once it is up.",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
    envvar="VNIC_LOG_FORMAT",
    help="Format of the log, one line for each event.",
)  # fmt: skip
@click.option(
    "--partial",
    is_flag=True,
    help="Come up without the NICs that cannot be attached, and say which.",
)
@instance_option
@click.option("--ready-descriptor", type=int, hidden=True)
def up(
    file: str,
    detach: bool,
    log_format: str,
    partial: bool,
    instance: str,
    ready_descriptor: int | None,
) -> None:
    """Run the configuration FILE.yaml (-: standard input) until Ctrl-C, SIGTERM or `vnic down`.

    If any part fails, nothing is started, unless --partial is given. Relative paths and the modules
    of module:Class are looked for in the directory of the file.

    A NIC with `netns: PATH` is detached when the namespace at PATH vanishes, and attached again
    when one appears there; until then `vnic status` lists it as waiting. With --partial it may wait
    from the start.

    \b
    vnic up net.yaml                  in the foreground
    vnic up -d net.yaml               in the background
    vnic up -d --partial net.yaml     also where a container does not run yet
    vnic up -i lab lab.yaml           a second instance; `vnic status -i lab` shows it
    vnic config check net.yaml        check the file without running it
    """
    from vnic.cli.main import explain

    os.environ["VNIC_LOG_FORMAT"] = log_format  # for every process of the instance
    if detach:
        _up_detached(file, instance, partial=partial)
        return
    if ready_descriptor is None:
        _up(file, instance, lambda: None, partial=partial)
        return
    with os.fdopen(ready_descriptor, "w") as pipe:
        # The parent prints the error and exits with its status; after "ready" it ends.
        try:
            _up(file, instance, lambda: _tell(pipe.fileno(), {"ready": True}), partial=partial)
        except Exception as error:
            message, status = explain(error)
            _tell(pipe.fileno(), {"error": message, "status": status})
            raise


def _tell(descriptor: int, answer: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # the parent has ended
        os.write(descriptor, json.dumps(answer).encode() + b"\n")


def _up(file: str, instance: str, ready: Callable[[], None], *, partial: bool) -> None:
    from vnic.api.log import Log, set_up
    from vnic.config.advice import queue_warnings
    from vnic.config.load import load_config
    from vnic.daemon.up import run_instance

    set_up(interactive=sys.stderr.isatty())
    config = load_config(file)
    config.partial = partial
    for warning in queue_warnings(config):
        Log("vnic").warning(warning)

    def is_up(worker: int) -> None:
        made = f"{plural(len(config.nics), 'NIC')} on {plural(len(config.engines), 'engine')}"
        text = f"instance {instance} is up: {made}; Ctrl-C or 'vnic down' stops it"
        Log("vnic").info(text, pid=os.getpid(), worker=worker)
        ready()

    run_instance(config, instance, is_up)


def _up_detached(file: str, instance: str, *, partial: bool) -> None:
    import subprocess

    from vnic.daemon.instance import log_path

    log = log_path(instance)
    read_end, write_end = os.pipe()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(read_end) as answers, open(os.open(log, flags, 0o600), "wb") as output:
        # -P: a file in the current directory must not be imported in place of a module.
        command = [
            sys.executable,
            "-P",
            "-m",
            "vnic.cli.main",
            "up",
            "-i",
            instance,
            "--ready-descriptor",
            str(write_end),
        ]
        environment = dict(os.environ)
        root = Path(__file__).resolve().parents[2]
        # a source tree, which the new interpreter would not find
        if not root.name.endswith("-packages"):
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(root), *filter(None, [environment.get("PYTHONPATH")])]
            )
        child = subprocess.Popen(
            [*command, *(["--partial"] if partial else []), "--", file],
            stdin=None if file == "-" else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[write_end],
            start_new_session=True,
            env=environment,
        )
        os.close(write_end)
        try:
            answer = json.loads(answers.readline() or "{}")
        except BaseException:  # Ctrl-C while the daemon comes up: end it
            child.terminate()
            child.wait()
            raise
    if answer.get("ready"):
        click.echo(f"instance {instance} is up (pid {child.pid}); its log is {log}")
        if partial:
            _say_what_is_absent(instance)
        return
    child.wait()
    kind = ConfigError if answer.get("status") == 2 else VnicError
    raise kind(answer.get("error") or f"the daemon died while it came up; its log is {log}")


def _say_what_is_absent(instance: str) -> None:
    with connect(instance) as client:
        found = client.call("Status")["status"]
    for each in found.get("waiting", []):
        click.echo(f"vnic: nic {each['name']} waits: {each['why']}", err=True)
    for each in found.get("lost", []):
        click.echo(f"vnic: {each['what']} is not attached: {each['why']}", err=True)


@click.command()
@instance_option
def down(instance: str) -> None:
    """Stop a running instance; return when its NICs are detached and its processes have ended.

    \b
    vnic down
    vnic down -i lab
    """
    with connect(instance) as client:
        client.shutdown()

"""`vnic attach`, `vnic detach`, `vnic rate`, `vnic link`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from dataplane.errors import ConfigError
from vnic.cli.common import (
    F,
    about,
    completing,
    connect,
    instance_option,
    json_option,
    plural,
    print_json,
    shown_rate,
)

if TYPE_CHECKING:
    from vnic.api.client import Client


@click.group()
def attach() -> None:
    """Attach a NIC of a kind to a container; see `vnic attach tap --help`."""


PLACE = (
    click.argument("name"),
    click.option("--pid", type=int, help="A process in the container."),
    click.option("--netns", type=click.Path(), help="Network namespace: path or `ip netns` name."),
    click.option("--interface", help="Name of the interface in the container.  [default: NAME]"),
    click.option("--queues", type=int, help="Queue pairs, 1 to 64.  [default: 1]"),
)
INTERFACE = (
    click.option("--mac", help="MAC address.  [default: made from NAME]"),
    click.option("--mtu", type=int, help="MTU, 68 to 65521.  [default: 1500]"),
    click.option(
        "--address",
        "addresses",
        multiple=True,
        metavar="ADDRESS/PREFIX",
        help="IP address; may be given several times.",
    ),
    click.option("--gateway", metavar="ADDRESS", help="Gateway of the container's default route."),
    click.option(
        "--route",
        "routes",
        multiple=True,
        metavar='"NETWORK [via ADDRESS]"',
        help="Route of the container; may be given several times.",
    ),
)
PORT = (
    click.option(
        "--engine",
        help="Number or name of the engine that processes its packets.  "
        "[default: the one with the fewest NICs]",
    ),
    click.option("--on", metavar="SWITCH", help="Switch that it is on.  [default: the only one]"),
    click.option("--vlan", type=int, help="Make it an access port of this VLAN, 1 to 4094."),
    click.option(
        "--spoof-check/--no-spoof-check",
        default=None,
        help="Drop frames from other MAC addresses.  [default: only of other users' NICs]",
    ),
    click.option(
        "--egress", metavar="RATE", help="Rate limit of what the container sends, such as 100mbit."
    ),
    click.option(
        "--ingress",
        metavar="RATE",
        help="Rate limit of what the container receives, such as 100mbit.",
    ),
    click.option(
        "--owner", metavar="USER", help="User who may see it and set its link up and down."
    ),
    instance_option,
)


def with_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@attach.command()
@with_options(*PLACE, *INTERFACE, *PORT)
def tap(**options: Any) -> None:
    """Attach the NIC called NAME: a TAP interface, connected to a switch.

    \b
    vnic attach tap web --pid 4242 --address 10.0.0.1/24 --gateway 10.0.0.254
    vnic attach tap db --netns /run/netns/db --interface eth0 --queues 4 --egress 100mbit
    vnic attach tap mine --pid 4711 -i /run/vnic/lab.sock      to another user's vnic
    """
    _attach("tap", **options)


@attach.command()
@with_options(*PLACE, *INTERFACE, *PORT)
def veth(**options: Any) -> None:
    """Attach the NIC called NAME: a veth interface in a container, connected to a switch. It needs
    no /dev/net/tun.

    \b
    vnic attach veth web --pid 4242 --address 10.0.0.1/24
    """
    _attach("veth", **options)


@attach.command()
@with_options(*PLACE, *PORT)
def packet(**options: Any) -> None:
    """Attach the NIC called NAME: an interface that exists and stays as it is, connected to a
    switch. Without --pid and --netns it is one of the host.

    \b
    vnic attach packet up --interface eth1
    """
    _attach("packet", **options)


@attach.command()
@with_options(
    click.argument("name"),
    click.option("--read", type=click.Path(), help="Capture file whose frames it sends."),
    click.option("--write", type=click.Path(), help="File for the frames that it receives."),
    *PORT,
)
def capture(read: str | None, write: str | None, **options: Any) -> None:
    """Attach the NIC called NAME: capture files in place of a container, connected to a switch.
    What is read is sent at its times from now on; the file that is written is overwritten.

    \b
    vnic attach capture load --read in.pcap
    vnic attach capture sink --write out.pcapng
    """
    if read is None and write is None:
        raise click.UsageError("which file? give --read FILE or --write FILE")
    _attach("capture", read=_absolute(read), write=_absolute(write), **options)


def _absolute(path: str | None) -> str | None:
    """Of a path, or of a socket's place: an address stays as it is."""
    from vnic.device.kinds.sockets import is_address

    return path if path is None or is_address(path) else os.path.abspath(path)


@attach.command("vhost-user")
@with_options(
    click.argument("name"),
    click.option("--listen", type=click.Path(), help="Unix socket that vnic makes."),
    click.option("--connect", type=click.Path(), help="Unix socket that the machine makes."),
    click.option("--group", "socket_group", help="Group of the socket of --listen."),
    click.option("--queues", type=int, help="Queue pairs.  [default: 1]"),
    click.option("--mac", help="MAC address.  [default: made from NAME]"),
    click.option("--mtu", type=int, help="MTU.  [default: 1500]"),
    *PORT,
)
def vhost_user(listen: str | None, connect: str | None, **options: Any) -> None:
    """Attach the NIC called NAME: a virtio-net device of a virtual machine, connected to a switch.

    \b
    vnic attach vhost-user vm1 --listen /run/vm1.sock
    vnic attach vhost-user vm2 --connect /run/vm2.sock     the machine has server=on
    """
    if (listen is None) == (connect is None):
        raise click.UsageError("which socket? give --listen PATH or --connect PATH")
    _attach("vhost-user", listen=_absolute(listen), connect=_absolute(connect), **options)


SOCKETS = (
    click.option("--group", "socket_group", help="Group of the socket of --listen."),
    click.option("--mac", help="MAC address.  [default: made from NAME]"),
    click.option("--mtu", type=int, help="MTU.  [default: 1500]"),
)


@attach.command()
@with_options(
    click.argument("name"),
    click.option("--listen", metavar="PLACE", help="Socket that vnic makes: PATH or HOST:PORT."),
    click.option("--connect", metavar="PLACE", help="Socket that the machine makes."),
    *SOCKETS,
    *PORT,
)
def stream(listen: str | None, connect: str | None, **options: Any) -> None:
    """Attach the NIC called NAME: a stream socket, as of QEMU's -netdev stream and of passt,
    connected to a switch. Addresses are loopback ones.

    \b
    vnic attach stream vm1 --listen /run/vm1.sock
    vnic attach stream vm2 --connect 127.0.0.1:5000       the machine has server=on
    vnic attach stream up --connect /tmp/passt_1.socket   passt -f -1
    """
    if (listen is None) == (connect is None):
        raise click.UsageError("which socket? give --listen PLACE or --connect PLACE")
    _attach("stream", listen=_absolute(listen), connect=_absolute(connect), **options)


@attach.command()
@with_options(
    click.argument("name"),
    click.option("--listen", metavar="PLACE", help="vnic's socket: PATH or HOST:PORT."),
    click.option("--connect", metavar="PLACE", help="The machine's socket."),
    *SOCKETS,
    *PORT,
)
def dgram(listen: str | None, connect: str | None, **options: Any) -> None:
    """Attach the NIC called NAME: a datagram socket, as of QEMU's -netdev dgram, connected to a
    switch. Addresses are loopback ones.

    \b
    vnic attach dgram vm1 --listen /run/vnic1.sock --connect /run/vm1.sock
    vnic attach dgram vm2 --listen 127.0.0.1:5001 --connect 127.0.0.1:5002
    """
    if listen is None or connect is None:
        raise click.UsageError("which sockets? give --listen PLACE and --connect PLACE")
    _attach("dgram", listen=_absolute(listen), connect=_absolute(connect), **options)


@attach.command()
@with_options(
    click.argument("name"),
    click.option("--listen", type=click.Path(), help="Unix socket that vnic makes, as a server."),
    click.option("--connect", type=click.Path(), help="Unix socket of a server."),
    click.option("--id", type=int, help="Number of the interface.  [default: 0]"),
    click.option("--secret", help="What a client must say to the server."),
    click.option("--ring-size", type=int, help="Descriptors of each ring.  [default: 1024]"),
    click.option("--group", "socket_group", help="Group of the socket of --listen."),
    click.option("--queues", type=int, help="Queue pairs.  [default: 1]"),
    click.option("--mac", help="MAC address.  [default: made from NAME]"),
    click.option("--mtu", type=int, help="MTU.  [default: 1500]"),
    *PORT,
)
def memif(listen: str | None, connect: str | None, **options: Any) -> None:
    """Attach the NIC called NAME: shared-memory rings of a program that uses memif, connected to a
    switch.

    \b
    vnic attach memif app --listen /run/app.sock
    vnic attach memif vpp --connect /run/vpp/memif.sock --id 3
    """
    if (listen is None) == (connect is None):
        raise click.UsageError("which socket? give --listen PATH or --connect PATH")
    _attach("memif", listen=_absolute(listen), connect=_absolute(connect), **options)


@attach.command()
@with_options(
    click.argument("name"),
    click.option("--mac", help="MAC address.  [default: made from NAME]"),
    *PORT,
)
def module(**options: Any) -> None:
    """Attach the NIC called NAME: a port of the switch for an engine of one of the instance's
    modules.

    \b
    vnic attach module beacon
    """
    _attach("module", **options)


def _attach(
    kind: str,
    name: str,
    instance: str,
    pid: int | None = None,
    netns: str | None = None,
    **options: Any,
) -> None:
    from vnic.config.load import netns_path

    inside = kind in ("tap", "veth") or (kind == "packet" and pid is not None)
    if inside and (pid is None) == (netns is None):
        raise click.UsageError("which container? give --pid PID or --netns PATH")
    nic: dict[str, Any] = {
        "kind": kind,
        "pid": pid,
        "netns": None if netns is None else netns_path(netns, os.getcwd()),
    }
    for key in (
        *("interface", "queues", "mac", "mtu", "gateway", "owner", "spoof_check", "on"),
        *("read", "write", "listen", "connect", "socket_group", "id", "secret", "ring_size"),
    ):
        nic[key] = options.get(key)
    nic["addresses"] = list(options.get("addresses", ())) or None
    nic["routes"] = [_route(text) for text in options.get("routes", ())] or None
    nic |= nested(options)
    check_nic(name, nic)
    with connect(instance) as client:
        made = attach_nic(client, name, nic)
    click.echo(
        f"{name}: "
        f"{made.get('interface') or kind} with {made.get('mac', 'its MAC')}, "
        f"{plural(made.get('queues', 1), 'queue pair')}"
    )


NESTED = ("engine", "vlan", "egress", "ingress")  # words of `nested`


def nested(words: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a NIC's configuration that options and annotations give as plain text: engine by
    number or name, access VLAN, rates."""
    nic: dict[str, Any] = {}
    if (engine := words.get("engine")) is not None:
        nic["engine"] = int(engine) if engine.isdecimal() else engine
    for key, inner in (("vlan", "access"), ("egress", "rate"), ("ingress", "rate")):
        if (value := words.get(key)) is not None:
            nic[key] = {inner: value}
    return nic


def check_nic(name: str, nic: dict[str, Any]) -> None:
    """Raises ConfigError for values that no instance would accept, before a request."""
    from vnic.config.convert import convert_nic

    convert_nic(name, {key: value for key, value in nic.items() if value is not None}, (name,))


def _route(text: str) -> dict[str, str]:
    """A route in the words of ip-route(8)."""
    match text.split():
        case [to]:
            return {"to": to}
        case [to, "via", via]:
            return {"to": to, "via": via}
    raise click.UsageError(
        f"--route {text!r}: "
        f"expected NETWORK or NETWORK via ADDRESS, such as '10.1.0.0/16 via 10.0.0.254'"
    )


def attach_nic(client: Client, name: str, nic: dict[str, Any]) -> dict[str, Any]:
    """Attaches a NIC; returns the daemon's description of it."""
    from vnic.device.namespaces import NetNamespace

    given = {key: value for key, value in nic.items() if value is not None}
    with ExitStack() as stack:
        passing = []
        # another user's vnic accepts only namespaces that this user can open
        if client.uid != os.geteuid():
            container = stack.enter_context(
                NetNamespace.find(given.pop("pid", None), given.pop("netns", None))
            )
            passing = [container.fd, *([container.pidfd] if container.pidfd >= 0 else [])]
        made: dict[str, Any] = client.call(
            "Attach",
            passing=passing,
            name=name,
            nic=given,
            netns=0 if passing else None,
            process=1 if len(passing) > 1 else None,
        )["nic"]
    return made


@click.command()
@click.argument("name", shell_complete=completing("nic"))
@instance_option
def detach(name: str, instance: str) -> None:
    """Detach the NIC called NAME: its interface disappears from the container.

    \b
    vnic detach web
    """
    with connect(instance) as client:
        client.call("Detach", name=name)


@click.command()
@click.argument("name", shell_complete=completing("nic"))
@click.option(
    "--egress", metavar="RATE|none", help="Rate limit of packets that the container sends."
)
@click.option(
    "--ingress", metavar="RATE|none", help="Rate limit of packets that the container receives."
)
@instance_option
@json_option
def rate(name: str, egress: str | None, ingress: str | None, instance: str, as_json: bool) -> None:
    """Set rate limits of the NIC called NAME while packets flow; waiting packets stay. `none`
    removes a limit. Without options, print the limits and the sizes of their queues.

    A rate counts the bits of layer-2 frames, without preamble and FCS.

    \b
    vnic rate web --egress 100mbit
    vnic rate web --egress none --ingress 2.5gbit
    vnic rate web
    """
    given = {
        key: value for key, value in (("egress", egress), ("ingress", ingress)) if value is not None
    }
    for direction, value in given.items():
        if value != "none":
            _check_rate(name, direction, value)
    with connect(instance) as client:
        if given:
            nic = client.call("SetRate", name=name, egress=egress, ingress=ingress)["nic"]
            if as_json:
                print_json(_rates(nic))
            return
        nics = {nic["name"]: nic for nic in client.call("Status")["status"]["nics"]}
    if name not in nics:
        raise ConfigError(f"nic {name}: is not attached; attached: {', '.join(nics) or 'none is'}")
    found = _rates(nics[name])
    if as_json:
        print_json(found)
        return
    for direction in ("egress", "ingress"):
        waiting = found[f"{direction}_queue_bytes"]
        queue = "" if waiting is None else f", queue of {about(waiting, 'B')}"
        click.echo(f"{direction:8}{shown_rate(found[f'{direction}_bps'])}{queue}")


def _check_rate(name: str, direction: str, value: str) -> None:
    """Raises ConfigError for a rate that no instance would accept, before a request."""
    from dataplane.config.scalars import Rate

    try:
        Rate.parse(value)
    except ConfigError as error:
        raise ConfigError(f"{name}.{direction}.rate: {error}") from None


def _rates(nic: dict[str, Any]) -> dict[str, Any]:
    keys = [
        f"{direction}_{what}"
        for direction in ("egress", "ingress")
        for what in ("bps", "queue_bytes")
    ]
    return {"name": nic["name"], **{key: nic.get(key) or None for key in keys}}


@click.command()
@click.argument("name", shell_complete=completing("nic"))
@click.argument("state", type=click.Choice(["up", "down"]), required=False)
@click.option(
    "--spoof-check",
    type=click.Choice(["on", "off"]),
    help="Whether frames whose source MAC address is not the NIC's are dropped; "
    "only the instance's owner may set it.",
)
@instance_option
def link(name: str, state: str | None, spoof_check: str | None, instance: str) -> None:
    """Set the link of the NIC called NAME up or down, as the container sees its carrier, or set its
    spoof check.

    \b
    vnic link web down
    vnic link web --spoof-check on
    """
    if state is None and spoof_check is None:
        raise click.UsageError("nothing to set: expected up, down or --spoof-check on|off")
    with connect(instance) as client:
        if spoof_check is not None:
            client.call("SetSpoofCheck", name=name, on=spoof_check == "on")
        if state is not None:
            client.call("SetLink", name=name, up=state == "up")

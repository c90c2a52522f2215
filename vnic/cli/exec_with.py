"""`vnic exec-with`: a NIC for as long as a program runs, a virtual machine above all."""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import click

from dataplane.descriptors import system_error
from dataplane.errors import ConfigError, VnicError
from vnic.api.interface import find_socket
from vnic.cli.common import connect, json_option, print_json
from vnic.cli.nics import NESTED, PORT, check_nic, nested, with_options

KINDS = ("vhost-user", "stream")
RETRY_S, RETRIES = 0.2, 300  # of a detach while vnic's worker is being replaced
EXPANDED = ("{qemu}", "{socket}", "{mac}")


def memory_of(command: Sequence[str]) -> str:
    """The size of the guest's memory in QEMU's option -m, for an object of that size. Raises
    ConfigError."""
    for word, value in pairwise(command):
        if word in ("-m", "--m"):
            size = value.split(",")[0].removeprefix("size=")
            return f"{size}M" if size.isdecimal() else size  # megabytes, unlike an object's size
    raise ConfigError(
        "{qemu} needs the size of the guest's memory, which has to be shared with vnic: "
        "expected -m SIZE in the command, or --kind stream"
    )


def qemu_options(kind: str, path: str, mac: str, queues: int, command: Sequence[str]) -> list[str]:
    """QEMU's options for a NIC of vnic. A comma in a value is doubled."""
    path = path.replace(",", ",,")
    device = f"virtio-net-pci,netdev=vnic,mac={mac}"
    if kind == "stream":
        netdev = f"stream,id=vnic,server=off,addr.type=unix,addr.path={path}"
        return ["-netdev", netdev, "-device", device]
    memory = f"memory-backend-memfd,id=vnic,size={memory_of(command)},share=on"
    several = f",queues={queues}" if queues > 1 else ""
    return [
        "-object", memory, "-machine", "memory-backend=vnic",
        "-chardev", f"socket,id=vnic,path={path}",
        "-netdev", f"vhost-user,id=vnic,chardev=vnic{several}",
        "-device", device + (",mq=on" if queues > 1 else ""),
    ]  # fmt: skip


def expanded(command: Sequence[str], kind: str, path: str, mac: str, queues: int) -> list[str]:
    """The command with the words that stand for the NIC replaced. Raises ConfigError."""
    if not any(each in word for word in command for each in EXPANDED):
        raise ConfigError(
            "the command does not use the NIC: expected {qemu} as a word of its own, or {socket}, "
            "in it"
        )
    found: list[str] = []
    for word in command:
        if word == "{qemu}":
            found += qemu_options(kind, path, mac, queues, command)
        else:
            found.append(word.replace("{socket}", path).replace("{mac}", mac))
    return found


@click.command("exec-with")
@with_options(
    click.argument("name"),
    click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED),
    click.option(
        "--kind",
        type=click.Choice(KINDS),
        default=KINDS[0],
        show_default=True,
        help="Kind of the NIC. stream: no shared memory, no offloads.",
    ),
    click.option("--queues", type=click.IntRange(1, 64), default=1, help="Queue pairs."),
    click.option("--mac", help="MAC address.  [default: made from NAME]"),
    click.option("--mtu", type=int, help="MTU.  [default: 1500]"),
    *PORT,
    click.option(
        "-n", "--dry-run", is_flag=True, help="Print the command; attach and run nothing."
    ),
    json_option,
)
def exec_with(
    name: str,
    command: tuple[str, ...],
    kind: str,
    queues: int,
    instance: str,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run COMMAND with a NIC called NAME, which is attached before, and detached when it ends,
    however that is.

    In COMMAND, the word {qemu} stands for QEMU's options for this NIC, {socket} for the path of its
    Unix socket, and {mac} for its MAC address. COMMAND takes the place of this program: its
    signals and exit status are its own. The socket is in a directory of this user alone.

    \b
    vnic exec-with vm1 -- qemu-system-x86_64 -m 1G -accel kvm -drive file=vm1.qcow2 {qemu}
    vnic exec-with vm2 --kind stream -- qemu-system-x86_64 ... {qemu}
    vnic exec-with vm3 -- linux.uml mem=128M ... virtio_uml.device={socket}:1
    vnic exec-with vm1 -n -- qemu-system-x86_64 -m 1G {qemu}      only print it
    """
    from dataplane.config.scalars import Mac

    if kind == "stream" and queues > 1:
        raise click.UsageError("--queues: a NIC of kind stream has one queue pair")
    plain = {key: options[key] for key in options if key not in NESTED}
    nic: dict[str, Any] = {**plain, **nested(options), "kind": kind}
    if kind == "vhost-user":
        nic["queues"] = queues
    mac = str(options["mac"] or Mac.from_name(name))
    check_nic(name, {**nic, "listen": "/socket"})
    words = expanded(command, kind, "/socket", mac, queues)
    if dry_run:
        words = expanded(command, kind, f"/SOCKET-OF-{name}", mac, queues)
        if as_json:
            print_json({"nic": {"name": name, "mac": mac, **_given(nic)}, "command": words})
        else:
            import shlex

            click.echo(shlex.join(words))
        return
    # beside the instance's own socket, where its worker may write
    directory = tempfile.mkdtemp(prefix="exec-", dir=os.path.dirname(find_socket(instance)))
    path = f"{directory}/{name}.sock"
    _start_guard(name, path, instance)
    with connect(instance) as client:
        if client.uid != os.geteuid():
            raise ConfigError(
                f"instance {instance} is another user's: NICs of kind {kind} are for its owner"
            )
        client.call("Attach", name=name, nic={**_given(nic), "listen": path})
    _become(expanded(command, kind, path, mac, queues))


def _given(nic: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in nic.items() if value is not None}


def _become(words: Sequence[str]) -> NoReturn:
    try:
        os.execvp(words[0], list(words))
    except OSError as error:
        raise VnicError(f"{words[0]}: {system_error(error)}") from None


def _start_guard(name: str, path: str, instance: str) -> None:
    """Starts the process that detaches the NIC when this one has ended, by whatever signal. It is
    no child of this one, which becomes a command that may wait for its children."""
    this = os.pidfd_open(os.getpid())
    if child := os.fork():
        os.close(this)
        os.waitpid(child, 0)
        return
    try:
        os.setsid()  # the terminal's signals are for the command
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):  # a reader of the command's output sees its end
                os.dup2(null, standard)
            select.select([this], [], [])
            _detach(name, path, instance)
    finally:
        os._exit(0)


def _detach(name: str, path: str, instance: str) -> None:
    """Detaches the NIC, unless another one has its name by now. Tries again while vnic's worker is
    being replaced."""
    for _ in range(RETRIES):
        try:
            with connect(instance) as client:
                nics = client.call("Status")["status"]["nics"]
                if any(nic["name"] == name and nic["interface"] == path for nic in nics):
                    client.call("Detach", name=name)
                break
        except VnicError:
            if not os.path.exists(path):  # the instance has ended, and its NICs with it
                break
            time.sleep(RETRY_S)
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)

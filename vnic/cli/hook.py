"""`vnic hook`: an OCI hook that attaches a container's NIC before the container's program starts.

A container runtime runs it as a `createRuntime` hook, in the runtime's namespaces, once those of
the container exist, with the container's state on standard input. If the hook fails, the runtime
does not start the container, and shows the printed line.

Sources: OCI runtime specification, config.md (POSIX-platform hooks) and runtime.md (state);
oci-hooks(5).
"""

from __future__ import annotations

import json
import os
import sys
import syslog
import time
from pathlib import Path
from typing import Any

import click

from dataplane.errors import ConfigError, VnicError
from vnic.cli.common import print_json

PREFIX = "vnic."
STATE_MOST = 1 << 20  # bytes of a state or a bundle's configuration
# Annotations (after PREFIX), grouped by how their text is converted to the NIC's configuration.
TEXTS = ("interface", "mac", "owner")
NUMBERS = ("queues", "mtu")
OTHERS = ("nic", "instance", "addresses", "engine", "vlan", "egress", "ingress")
# time limit for the NIC of a container that just ended to be detached, an iteration of the loop
FREED_S = 5.0


def settings(annotations: dict[str, str]) -> tuple[str, str, dict[str, Any]] | None:
    """Instance, name and configuration of the NIC that a container's annotations request; None
    without any. Raises ConfigError."""
    from vnic.cli.nics import nested

    given = {
        key.removeprefix(PREFIX): value
        for key, value in annotations.items()
        if key.startswith(PREFIX)
    }
    if unknown := sorted(given.keys() - {*TEXTS, *NUMBERS, *OTHERS}):
        known = ", ".join(PREFIX + each for each in sorted((*TEXTS, *NUMBERS, *OTHERS)))
        raise ConfigError(f"annotation {PREFIX}{unknown[0]}: unknown: expected one of {known}")
    if not given:
        return None
    if not given.get("nic"):
        raise ConfigError(f"annotation {PREFIX}nic is missing: it is the NIC's name")
    nic: dict[str, Any] = {key: given[key] for key in TEXTS if key in given}
    nic |= {key: _number(given, key) for key in NUMBERS if key in given}
    if "addresses" in given:
        nic["addresses"] = [each.strip() for each in given["addresses"].split(",")]
    nic |= nested({**given, "vlan": _number(given, "vlan")} if "vlan" in given else given)
    return given.get("instance", "default"), given["nic"], nic


def _number(given: dict[str, str], key: str) -> int:
    if not (given[key].isascii() and given[key].isdecimal() and len(given[key]) < 10):
        raise ConfigError(f"annotation {PREFIX}{key}: {given[key][:40]!r}: expected a number")
    return int(given[key])


def read_state(text: str) -> tuple[int, dict[str, str]]:
    """The container's process and annotations (from its state, else from its bundle's
    configuration). Raises ConfigError."""
    try:
        state = json.loads(text)
        pid, annotations = state["pid"], state.get("annotations")
        if annotations is None:
            with open(Path(state["bundle"]) / "config.json") as file:
                annotations = json.loads(file.read(STATE_MOST)).get("annotations") or {}
        if type(pid) is not int or not all(
            isinstance(each, str) for pair in annotations.items() for each in pair
        ):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            "standard input is no container's state: "
            "a container runtime runs this as a createRuntime hook"
        ) from None
    return pid, annotations


def find_runtime_directory() -> None:
    """Sets XDG_RUNTIME_DIR, where the user's instances are: a rootless runtime starts hooks as root
    of a user namespace and without the user's environment."""
    if "XDG_RUNTIME_DIR" in os.environ or "VNIC_RUNTIME_DIR" in os.environ:
        return
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, outside, _ = map(int, line.split())
        if inside == os.geteuid() and outside != inside and os.path.isdir(f"/run/user/{outside}"):
            os.environ["XDG_RUNTIME_DIR"] = f"/run/user/{outside}"


def attach_when_free(
    instance: str, name: str, nic: dict[str, Any], wait_s: float = FREED_S
) -> None:
    """Attaches a NIC. When a container restarts, first waits until the ended container's NIC of
    that name is detached. Raises ConfigError, VnicError."""
    from vnic.api.client import Client
    from vnic.cli.nics import attach_nic

    deadline_s = time.monotonic() + wait_s
    while True:
        with Client(instance) as client:
            attached = client.call("Status")["status"]["nics"]
            there = next((each for each in attached if each["name"] == name), None)
            gone = (
                there is not None
                and there.get("pid") is not None
                and not os.path.exists(f"/proc/{there['pid']}")
            )
            if not gone or time.monotonic() > deadline_s:
                attach_nic(client, name, nic)
                return
        time.sleep(0.02)


def description() -> dict[str, Any]:
    """The hook's description for a hooks directory (oci-hooks(5)): for containers with the
    annotation vnic.nic."""
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) != "vnic":
        program = os.path.join(sys.prefix, "bin", "vnic")
    return {
        "version": "1.0.0",
        "hook": {"path": program, "args": ["vnic", "hook"], "timeout": 30},
        "when": {"annotations": {f"^{PREFIX.replace('.', chr(92) + '.')}nic$": "."}},
        "stages": ["createRuntime"],
    }


@click.command()
@click.option(
    "--print",
    "show",
    is_flag=True,
    help="Print the description of the hook that podman reads, and do nothing else.",
)
def hook(show: bool) -> None:
    """Attach a container's NIC while a container runtime starts it: an OCI hook.

    podman runs it for containers with the annotation vnic.nic; the others say more about the NIC:
    vnic.instance, vnic.interface, vnic.addresses (with commas between), vnic.egress, vnic.ingress,
    vnic.vlan, vnic.mac, vnic.mtu, vnic.queues, vnic.engine, vnic.owner.

    \b
    vnic hook --print > /etc/containers/oci/hooks.d/vnic.json
    podman run --network none --annotation vnic.nic=web \\
        --annotation vnic.addresses=10.0.0.1/24 IMAGE
    """
    if show:
        print_json(description())
        return
    try:
        pid, annotations = read_state(sys.stdin.read(STATE_MOST))
        found = settings(annotations)
        if found is not None:
            find_runtime_directory()
            instance, name, nic = found
            attach_when_free(instance, name, {"pid": pid, **nic})
    except VnicError as error:
        syslog.openlog("vnic")
        syslog.syslog(syslog.LOG_ERR, f"hook: {error}")  # crun does not show a hook's output
        raise

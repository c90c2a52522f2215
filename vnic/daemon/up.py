"""Runs the instance of a configuration, as `vnic up` does: this process becomes its supervisor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from vnic.config.convert import encode_config
from vnic.config.schema import Config, NicConfig
from vnic.daemon.supervisor import supervise
from vnic.device.namespaces import identity_of


def run_instance(config: Config, instance: str, ready: Callable[[int], None]) -> None:
    """Runs the instance until it ends. Calls `ready` with the worker's pid when it is up. Raises
    ConfigError, VnicError if it cannot be started."""
    supervise(
        encode_config(config),
        instance,
        ready,
        clients=bool(config.clients),
        guaranteed=config.guaranteed,
        host_interfaces=config.host_interfaces or any(map(_is_on_the_host, config.nics.values())),
    )


def _is_on_the_host(nic: NicConfig) -> bool:
    """Whether a NIC of the file is in this process' network namespace, which then permits NICs
    there."""
    with contextlib.suppress(OSError):
        path = nic.netns if nic.pid is None else f"/proc/{nic.pid}/ns/net"
        return path is not None and identity_of(path) == identity_of("/proc/self/ns/net")
    return False

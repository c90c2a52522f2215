"""vnic: software NICs for containers. `import vnic` costs nothing: each name is imported when it is
first used.

Client          a connection to a running instance (docs/python.md)
VirtualNetwork  a network in virtual time, for tests
Network         a network on this machine, with real containers and in real time
network         a function that makes one of these two
Received        a frame that a container of a network received
VnicError       base of all errors; ConfigError where the request itself is wrong
"""

from __future__ import annotations

TYPE_CHECKING = False  # known to type checkers; importing typing takes 8 ms
if TYPE_CHECKING:
    from typing import Any

    from dataplane.errors import ConfigError, VnicError
    from vnic.api.client import Client
    from vnic.testing.choose import network
    from vnic.testing.frames import Received
    from vnic.testing.live import Network
    from vnic.testing.network import VirtualNetwork

__all__ = ["Client", "ConfigError", "Network", "Received", "VirtualNetwork", "VnicError", "network"]

_MODULES = {
    "Client": "vnic.api.client",
    "ConfigError": "dataplane.errors",
    "Network": "vnic.testing.live",
    "Received": "vnic.testing.frames",
    "VirtualNetwork": "vnic.testing.network",
    "VnicError": "dataplane.errors",
    "network": "vnic.testing.choose",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""vnic: software NICs for containers. `import vnic` costs nothing: each name is imported when it is first used.

Client          a connection to a running instance (docs/python.md)
VirtualNetwork  a network in virtual time, for tests
Received        a frame that a container of a VirtualNetwork received
VnicError       base of all errors; ConfigError where the request itself is wrong
"""

from __future__ import annotations

TYPE_CHECKING = False  # known to type checkers; importing typing takes 8 ms
if TYPE_CHECKING:
    from typing import Any

    from dataplane.errors import ConfigError, VnicError
    from vnic.api.client import Client
    from vnic.testing.network import Received, VirtualNetwork

__all__ = ["Client", "ConfigError", "Received", "VirtualNetwork", "VnicError"]

_MODULES = {
    "Client": "vnic.api.client",
    "ConfigError": "dataplane.errors",
    "Received": "vnic.testing.network",
    "VirtualNetwork": "vnic.testing.network",
    "VnicError": "dataplane.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

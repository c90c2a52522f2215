"""Networks for tests: `VirtualNetwork` in virtual time, `Network` in real time on real containers,
and a pytest plugin (fixture `vnic_network`). Each name is imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vnic.testing.frames import Received
    from vnic.testing.kit import AnyNetwork
    from vnic.testing.live import Network
    from vnic.testing.measure import Measured
    from vnic.testing.network import VirtualNetwork

__all__ = ["AnyNetwork", "Measured", "Network", "Received", "VirtualNetwork"]

_MODULES = {
    "AnyNetwork": "vnic.testing.kit",
    "Measured": "vnic.testing.measure",
    "Network": "vnic.testing.live",
    "Received": "vnic.testing.frames",
    "VirtualNetwork": "vnic.testing.network",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)

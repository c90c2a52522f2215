"""The kinds of NICs by name."""

from __future__ import annotations

from dataplane.errors import ConfigError
from vnic.device.kinds.capture import CaptureKind
from vnic.device.kinds.contract import Device, InterfaceKind, NicKind
from vnic.device.kinds.dgram import DgramKind
from vnic.device.kinds.memif import MemifKind
from vnic.device.kinds.module import ModuleKind
from vnic.device.kinds.packet import PacketKind
from vnic.device.kinds.stream import StreamKind
from vnic.device.kinds.tap import TapKind
from vnic.device.kinds.veth import VethKind
from vnic.device.kinds.vhost_user import VhostUserKind

KINDS: dict[str, NicKind[Device]] = {
    kind.NAME: kind
    for kind in (
        TapKind(),
        VethKind(),
        PacketKind(),
        CaptureKind(),
        ModuleKind(),
        VhostUserKind(),
        MemifKind(),
        StreamKind(),
        DgramKind(),
    )
}


def kind_of(name: str) -> NicKind[Device]:
    """The kind of that name. Raises ConfigError."""
    if name not in KINDS:
        raise ConfigError(f"kind {name!r}: there is none: expected one of {', '.join(KINDS)}")
    return KINDS[name]


def interface_kind(name: str) -> InterfaceKind:
    """The kind of that name, of those whose NICs are interfaces. Raises ConfigError."""
    kind = kind_of(name)
    if not isinstance(kind, InterfaceKind):
        raise ConfigError(f"kind {name!r}: its NICs are no interfaces")
    return kind

"""The rings between NICs of kind `module` and the modules behind them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from dataplane.errors import ConfigError
from dataplane.packet.ring import MpscRing
from dataplane.ports.ring_port import RingPort
from vnic.modules.host import Host


@dataclass
class _Pair:
    """from_module, to_module: the rings. nic, module: the ports at their two sides, once they
    exist."""

    from_module: MpscRing
    to_module: MpscRing
    nic: RingPort | None = None
    module: RingPort | None = None

    def join(self) -> None:
        """Lets each side transmit while the other exists; packets that it transmits otherwise are
        dropped."""
        for side, other in ((self.nic, self.module), (self.module, self.nic)):
            if side is not None:
                side.joined = other is not None


class ModulePorts:
    """The ring pairs by the names of their NICs. A pair exists as long as one of its sides."""

    def __init__(self, runtime: Host) -> None:
        self._runtime = runtime
        self._pairs: dict[str, _Pair] = {}

    def rings(self, nic: str) -> tuple[MpscRing, MpscRing]:
        """The ring that the NIC receives from, and the one that it transmits to."""
        pair = self._pair(nic)
        return pair.from_module, pair.to_module

    def opened(self, nic: str, port: RingPort) -> None:
        """Makes `port` the NIC's side."""
        self._pair(nic).nic = port
        self._pair(nic).join()

    def closed(self, nic: str) -> None:
        """Removes the NIC's side, once the NIC is in no graph; frees the packets that its module
        has sent since."""
        pair = self._pairs[nic]
        port, pair.nic = pair.nic, None
        self._close(nic, port)

    def take(self, nic: str) -> RingPort:
        """A module's side of a NIC: the port receives the packets that were sent to the NIC. Raises
        ConfigError if another module has it."""
        pair = self._pair(nic)
        if pair.module is not None:
            raise ConfigError(
                f"nic {nic}: another module is behind it already; choose another NIC", code="exists"
            )
        pair.module = RingPort(f"{nic}.module", 0, pair.to_module, pair.from_module)
        pair.join()
        return pair.module

    @property
    def taken(self) -> set[str]:
        """The names of the NICs whose other side a module has, whether the NICs exist or not."""
        return {nic for nic, pair in self._pairs.items() if pair.module is not None}

    def give_back(self, nics: set[str]) -> None:
        """Removes the module's sides of these NICs, once its engines no longer run."""
        for nic in nics:
            pair = self._pairs[nic]
            port, pair.module = pair.module, None
            self._close(nic, port)

    def _pair(self, nic: str) -> _Pair:
        if nic not in self._pairs:
            with ExitStack() as undo:
                ring = self._runtime.segments.ring
                self._pairs[nic] = _Pair(
                    ring(f"module/{nic}/nic", undo), ring(f"module/{nic}/module", undo)
                )
                undo.pop_all()
        return self._pairs[nic]

    def _close(self, nic: str, port: RingPort | None) -> None:
        """Frees the packets on their way to a removed side."""
        pair = self._pairs[nic]
        pair.join()
        if port is None or self._runtime.closed:
            return
        for engine in self._runtime.engines:  # from here on no engine pushes a batch into the ring
            engine.call(lambda: None)
        port.drain(self._runtime.engines[0])
        if pair.nic is pair.module is None:
            del self._pairs[nic]
            for end in ("nic", "module"):
                self._runtime.segments.drop_ring(f"module/{nic}/{end}")

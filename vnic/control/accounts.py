"""Accounts: CPU time and memory, charged to the NIC, or other client of a module, on whose behalf they are spent (Snap, section 2.5).

An engine charges what it does to the source or timer that made it do it (dataplane/engine.pyx): a NIC's receive side, its rings, its
shapers. These bear the NIC's name, also in an engine that many NICs share. So the sender pays for its packets' way through the switch to
the other NIC's queue, and the receiver for what waits in its own shaper; both for looking once more, before the thread sleeps, whether
anything has come. What nobody asked for - polling without end, control's work - is `overhead`. Charges and overhead together are the CPU
time of the engines' threads.

Memory: rings between engines, and the frames that wait in the NIC's shapers, as bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataplane.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    class Charged(Protocol):
        """What is needed of vnic.control.parts.Hosted."""

        engine: Engine
        charged: dict[str, int]


class Accounts:
    """The books of all engines. What elements were charged that went with their graph stays with their NIC's name."""

    def __init__(self, homes: Sequence[Charged]) -> None:
        self._homes = homes
        self.gone: dict[str, int] = {}  # CPU time by NIC, of elements that are gone

    def collect(self, nics: dict[str, int]) -> dict[str, Any]:
        """The accounts now. `nics`: those attached and the bytes of memory that each has for itself. Times in nanoseconds.

        {"accounts": [{"nic", "cpu_ns", "memory_bytes", "packets_held"}...], "detached_cpu_ns", "overhead_ns", "cpu_ns"}
        """
        cpu = {nic: self.gone.get(nic, 0) for nic in nics}
        held = dict.fromkeys(nics, 0)
        memory = dict(nics)
        overhead = 0
        for home in self._homes:
            for element, charged in home.engine.charges().items():
                nic = _nic_of(element, nics)
                if nic is None:
                    overhead += charged
                else:
                    cpu[nic] += charged
            for element, statistics in home.engine.snapshot():
                nic = _nic_of(element, nics)
                if nic is not None:
                    held[nic] += statistics["held"]
                    memory[nic] += statistics["counters"].get("queue_bytes", 0)
        return {
            "accounts": [
                {"nic": nic, "cpu_ns": cpu[nic], "memory_bytes": memory[nic], "packets_held": held[nic]} for nic in nics
            ],
            "detached_cpu_ns": sum(charged for nic, charged in self.gone.items() if nic not in nics),
            "overhead_ns": overhead,
            "cpu_ns": sum(home.engine.cpu_ns for home in self._homes),
        }

    def retire(self, nic: str) -> None:
        """Takes over what the NIC's elements were charged that no engine runs any more: after its detachment, or a capture's end."""
        for home in self._homes:
            self.gone[nic] = self.gone.get(nic, 0) + sum(home.charged.values())
            home.charged.clear()


def _nic_of(element: str, nics: Iterable[str]) -> str | None:
    """The NIC whose name begins the element's. Names of NICs may have dots, so the longest."""
    return max((nic for nic in nics if element.startswith(f"{nic}.")), key=len, default=None)

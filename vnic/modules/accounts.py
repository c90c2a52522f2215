"""Accounts: CPU time and memory, charged to the NIC (or a module's client) for which they are used
(Snap, section 2.5).

An engine charges its work to the source or timer that caused it (dataplane/engine/engine.pyx): a
NIC's receive side, its rings, its shapers. The NIC is their `owner`, also in an engine that many
NICs share. So the sender is charged for its packets up to the queue of the other NIC, and the
receiver for packets that wait in its shaper; both for the check for new packets before the thread
sleeps. Busy polling and control's work have no owner and are `overhead`. Charges and overhead
together are the CPU time of the engines' threads.

A NIC is charged for memory that no other NIC can use meanwhile: whole buffers and records of
packets in its shapers and in the ring in front of it; the ring itself; buffers of captures.

A new account begins at zero. The charges of detached NICs are in one total, so that a NIC does not
get those of an earlier NIC of its name, and there are no more accounts than NICs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataplane.engine.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class Charged(Protocol):
        """The part of vnic.modules.EngineHost that accounts use."""

        engine: Engine
        charged: dict[str, int]


NOBODY = ""  # the key in `gone` of all detached NICs


class Accounts:
    """The accounts of all engines. clients: returns the present clients, with each one's bytes of
    memory outside elements."""

    def __init__(self, homes: Sequence[Charged], clients: Callable[[], dict[str, int]]) -> None:
        self._homes, self._clients = homes, clients
        # CPU time of removed elements, by client; handed over in an upgrade
        self.gone: dict[str, int] = {}

    def collect(self) -> dict[str, Any]:
        """The accounts now. Times in nanoseconds.

        {"accounts": [{"nic", "cpu_ns", "memory_bytes", "packets_held"}...], "detached_cpu_ns",
        "overhead_ns", "cpu_ns"}
        """
        nics = self.settle()
        cpu = {nic: self.gone.get(nic, 0) for nic in nics}
        held = dict.fromkeys(nics, 0)
        memory = dict(nics)
        overhead = 0
        for home in self._homes:
            elements = {element.name: element for element in home.engine.elements}
            charges = home.engine.charges()
            overhead += charges.pop("overhead")
            for name, charged in charges.items():
                owner = elements[name].owner if name in elements else None
                if owner in cpu:
                    cpu[owner] += charged
                else:
                    overhead += charged
            for name, statistics in home.engine.snapshot():
                if (owner := elements[name].owner) in held:
                    held[owner] += statistics["held"]
            for element in elements.values():
                if element.owner in memory:
                    memory[element.owner] += element.memory_bytes()
        return {
            "accounts": [
                {
                    "nic": nic,
                    "cpu_ns": cpu[nic],
                    "memory_bytes": memory[nic],
                    "packets_held": held[nic],
                }
                for nic in nics
            ],
            "detached_cpu_ns": self.gone.get(NOBODY, 0),
            "overhead_ns": overhead,
            "cpu_ns": sum(home.engine.cpu_ns for home in self._homes),
        }

    def settle(self) -> dict[str, int]:
        """Adds the CPU time of removed elements to their owner's account, or to NOBODY's where the
        owner is gone, too. Returns the clients. Called whenever elements were removed, so that no
        time is charged to a later client of the same name."""
        nics = self._clients()
        for home in self._homes:
            for owner, charged in home.charged.items():
                self._book(owner if owner in nics else NOBODY, charged)
            home.charged.clear()
        for stranger in self.gone.keys() - nics.keys() - {NOBODY}:
            self._book(NOBODY, self.gone.pop(stranger))
        return nics

    def retire(self, *nics: str) -> None:
        """Closes the accounts of clients, which are still listed, once their elements are
        removed."""
        self.settle()
        for nic in nics:
            self._book(NOBODY, self.gone.pop(nic, 0))

    def _book(self, nic: str, charged: int) -> None:
        self.gone[nic] = self.gone.get(nic, 0) + charged

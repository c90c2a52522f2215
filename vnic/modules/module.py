"""Modules, the parts of an instance (Snap, section 2.3). A module offers methods of the control
API, builds engines, loads them into engine groups, and prepares them for its clients, whose packets
the engines then move.

    Runtime -+- Instance        the instance as a whole: status, groups, apply (runtime/instance.py)
             +- NetworkModule   NICs in containers, switches, links            (network_methods.py)
             `- users' modules  `modules:` in the configuration: module:Class

A module sees the instance as a Host (host.py). Its methods run on the event loop's thread, or on
the thread of changes, one after the other; none runs on an engine's thread. Control reaches an
engine through the engine's mailbox only.
"""

from __future__ import annotations

from typing import Any, ClassVar

from vnic.api.method import Method, Session
from vnic.modules.host import Host

MODULE_KEYS = "module/"  # prefix of the keys that the supervisor stores for modules


class Module:
    """Base of modules. `settings` are those of the configuration; `runtime.remember()` stores
    changes that a method makes in them for the next worker. Engines are made in the constructor, by
    `runtime.add_engine`, since a successor loads their state before they run.

    name         its class in the configuration, with a number where there are several of one class
    interface    the Varlink interface of its methods, such as "org.example.Echo"; "": it has none
    description  the interface's definition in Varlink's language, which `GetInterfaceDescription`
                 returns
    """

    interface: ClassVar[str] = ""
    description: ClassVar[str] = ""

    def __init__(self, runtime: Host, **settings: Any) -> None:
        self.runtime, self.settings = runtime, settings
        self.name = runtime.module_name

    def methods(self) -> list[Method]:
        """The methods that clients may call."""
        return []

    # -- descriptors that outlive a worker ---------------------------------------------------------

    def keep(self, key: str, *descriptors: int) -> None:
        """Has the supervisor store duplicates of descriptors, such as a memfd or a connected
        socket, under a name of the module's own, for the next worker: after a crash or an upgrade.
        Raises VnicError."""
        if self.runtime.keeping is not None:
            self.runtime.keeping.put(self._key(key), descriptors)

    def kept(self, key: str) -> list[int]:
        """The descriptors that the previous worker stored under `key`; the caller owns them. Empty
        if there are none, or if they were taken already."""
        found = None if self.runtime.keeping is None else self.runtime.keeping.take(self._key(key))
        return found or []

    def drop(self, key: str) -> None:
        """Has the supervisor close what is stored under `key`. Raises VnicError."""
        if self.runtime.keeping is not None:
            self.runtime.keeping.drop(self._key(key))

    def _key(self, key: str) -> str:
        return f"{MODULE_KEYS}{self.name}/{key}"

    # -- hooks, in the order of a worker's life ----------------------------------------------------

    def open(self) -> None:
        """Called before anything has started, when the process has no threads of engines. Raises
        VnicError, which ends the start."""

    def watch(self) -> None:
        """Called on the loop's thread when the engines' threads exist."""

    def start(self) -> None:
        """Called when the groups' threads run (a successor's do not yet). Raises VnicError, which
        ends the start."""

    def claim(self, captures: set[int]) -> None:
        """Called in a successor that has taken over every engine and the old worker's clients, with
        these captures: resources that it was not to change before are its own from here on."""

    def let_go(self) -> None:
        """Called in the old worker when a successor has taken over every engine; the old worker
        then ends without `close`."""

    def status(self) -> dict[str, Any]:
        """The module's part of the instance's status."""
        return {}

    def accounts(self) -> dict[str, int]:
        """Its clients by name, with the bytes of memory that each has for itself. A client is
        charged for the elements whose `owner` it is."""
        return {}

    def ended(self, session: Session) -> None:
        """Called when a client has disconnected, for any reason."""

    def end_upgrade(self) -> None:
        """Called when an upgrade has failed and this worker continues: changes are possible
        again."""

    def save(self) -> dict[str, Any]:
        """The module's state besides settings and engines' states, as plain data for the next
        worker's `load`."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Loads a result of `save`, of this version or an older one. Raises VnicError."""

    def close(self) -> None:
        """Frees the module's resources. Engines still run; may be called twice."""

    def closed(self) -> None:
        """Called after `close`, when all engines have ended."""

"""Modules: what an instance consists of (Snap, section 2.3). A module offers methods of the control API,
builds engines, loads them into engine groups, and prepares them for its clients, whose packets the
engines then move.

    Runtime -+- Instance        the instance as a whole: status, groups, apply   (vnic/runtime/instance.py)
             +- NetworkModule   NICs in containers, switches, links              (network_methods.py)
             `- users' modules  `modules:` in the configuration: module:Class

A module sees the instance as a Host (host.py). Its methods run on the event loop's thread, or on the
thread of changes, one after the other; none runs on an engine's thread. Control reaches an engine
through the engine's mailbox only.
"""

from __future__ import annotations

from typing import Any, ClassVar

from vnic.api.method import Method, Session
from vnic.modules.host import Host

MODULE_KEYS = "module/"  # of what the supervisor stores for modules


class Module:
    """Base of modules. `settings` are those of the configuration; what a method changes in them is kept for the next worker by
    `runtime.remember()`. Engines are made in the constructor, by `runtime.add_engine`, since a successor's are filled before they run.

    name         in the configuration: its class, with a number where there are several of one class
    interface    the Varlink interface of its methods, such as "org.example.Echo"; "": it has none
    description  the interface's definition in Varlink's language: what `GetInterfaceDescription` answers
    """

    interface: ClassVar[str] = ""
    description: ClassVar[str] = ""

    def __init__(self, runtime: Host, **settings: Any) -> None:
        self.runtime, self.settings = runtime, settings
        self.name = runtime.module_name

    def methods(self) -> list[Method]:
        """What clients may call."""
        return []

    # -- descriptors that outlive a worker -----------------------------------------------------------------

    def keep(self, key: str, *descriptors: int) -> None:
        """Has the supervisor store duplicates of descriptors, such as a memfd or a connected socket, under a
        name of the module's own, for the next worker: after a crash or an upgrade. Raises VnicError."""
        if self.runtime.keeping is not None:
            self.runtime.keeping.put(self._key(key), descriptors)

    def kept(self, key: str) -> list[int]:
        """The descriptors that the worker before has stored under `key`, which are the caller's now; none if
        there are none, or if they were taken already."""
        found = None if self.runtime.keeping is None else self.runtime.keeping.take(self._key(key))
        return found or []

    def drop(self, key: str) -> None:
        """Has the supervisor close what is stored under `key`. Raises VnicError."""
        if self.runtime.keeping is not None:
            self.runtime.keeping.drop(self._key(key))

    def _key(self, key: str) -> str:
        return f"{MODULE_KEYS}{self.name}/{key}"

    # -- hooks, in the order of a worker's life ----------------------------------------------------------------

    def open(self) -> None:
        """Nothing has started, and the process has no thread of an engine's yet. Raises VnicError, and then
        nothing comes up."""

    def watch(self) -> None:
        """The engines' threads are there; on the loop's thread."""

    def start(self) -> None:
        """The groups' threads run (a successor's do not yet). Raises VnicError, and then nothing comes up."""

    def claim(self, captures: set[int]) -> None:
        """A successor has every engine and the old worker's clients, with these captures: what was not to be
        touched before is this worker's from here on."""

    def let_go(self) -> None:
        """A successor has every engine, and this worker is about to end without `close`."""

    def status(self) -> dict[str, Any]:
        """What it adds to the instance's status."""
        return {}

    def accounts(self) -> dict[str, int]:
        """Its clients by name, and the bytes of memory that each has for itself. The client is charged for the elements whose
        `owner` it is."""
        return {}

    def ended(self, session: Session) -> None:
        """A client is gone, however it went."""

    def end_upgrade(self) -> None:
        """It failed, and this worker goes on: what could not be changed meanwhile can be."""

    def save(self) -> dict[str, Any]:
        """What it knows besides settings and engines' states, as plain data: for the next worker's `load`."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """What `save` said, of this version or an older one. Raises VnicError."""

    def close(self) -> None:
        """Frees what it holds. Engines still run; may be called twice."""

    def closed(self) -> None:
        """After `close`, when all engines have ended."""

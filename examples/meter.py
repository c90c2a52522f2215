"""A module: meters that clients open, each at a rate of its own, in an engine of the module's. docs/modules.md explains it.

modules: [{module: meter:Meter, group: meters}]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataplane.elements.counter import Counter, Discard
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx
from dataplane.ports.memory import MemoryPort
from dataplane.units import parse_rate
from shaping.shaper import Shaper
from vnic.api.method import Caller, Method, Parameters, Session
from vnic.modules.engine_host import EngineHost
from vnic.modules.module import Module

if TYPE_CHECKING:
    from vnic.runtime.runtime import Runtime

METERS_MOST = 100  # a client could open them without end
FRAMES_MOST = 64  # of a call


class Open(Parameters):
    name: str
    rate: str


class Send(Parameters):
    name: str
    frames: list[str]


class Read(Parameters):
    name: str


class Meter(Module):
    """Frames that a client sends to its meter leave it at the meter's rate, and are counted."""

    interface = "org.example.Meter"
    description = """\
# Meters frames.
interface org.example.Meter

# Opens a meter of a rate such as "1mbit". It stays until it is closed, whatever becomes of client and program.
method Open(name: string, rate: string) -> ()

# Puts frames, in hexadecimal, into a meter.
method Send(name: string, frames: []string) -> ()

# Packets that have left, and those that still wait.
method Read(name: string) -> (left: int, waiting: int)

method Close(name: string) -> ()
"""

    def __init__(self, runtime: Runtime, group: str | None = None, meters: dict[str, str] | None = None) -> None:
        super().__init__(runtime, group=group, meters=meters or {})
        self._engine = runtime.add_engine("meters", group, make=EngineHost)
        self._ports: dict[str, MemoryPort] = {}
        self._sources: dict[str, PortRx] = {}
        for name, rate in self.settings["meters"].items():  # those of the worker before
            self._build(name, rate)

    def _build(self, name: str, rate: str) -> None:
        source = PortRx(MemoryPort(name), name=f"{name}.rx")
        shaper = Shaper(parse_rate(rate), "256kb", name=f"{name}.rate")
        left, end = Counter(name=f"{name}.left"), Discard(name=f"{name}.end")
        source >> shaper >> left >> end
        for element in (source, shaper, left, end):
            element.owner = name  # the client who is charged for it
        self._engine.load([*self._sources.values(), source])
        self._sources[name], self._ports[name] = source, source.port

    def methods(self) -> list[Method]:
        return [
            Method("Open", self._open, Open, "change", clients=True),
            Method("Send", self._send, Send, clients=True),
            Method("Read", self._read, Read, clients=True),
            Method("Close", self._close, Read, "change", clients=True),
        ]

    def _open(self, parameters: Open, caller: Caller) -> dict[str, Any]:
        self.runtime.check_open()  # not while the program is being replaced
        if parameters.name in self._ports or parameters.name in self.runtime.nics.names():
            raise ConfigError(f"{parameters.name}: the name is taken; choose another")
        if len(self._ports) >= METERS_MOST:
            raise ConfigError(f"{METERS_MOST} meters are open, and no more fit")
        self._build(parameters.name, parameters.rate)
        self.settings["meters"][parameters.name] = parameters.rate
        self.runtime.remember()
        return {}

    def _port(self, name: str) -> MemoryPort:
        if name not in self._ports:
            raise ConfigError(f"{name}: there is no such meter")
        return self._ports[name]

    def _send(self, parameters: Send, caller: Caller) -> dict[str, Any]:
        port = self._port(parameters.name)
        if len(parameters.frames) > FRAMES_MOST:
            raise ConfigError(f"frames: {len(parameters.frames)} at once: expected at most {FRAMES_MOST}")
        try:
            port.inject([bytes.fromhex(frame) for frame in parameters.frames])
        except ValueError:
            raise ConfigError("frames: one is not hexadecimal") from None
        return {}

    def _read(self, parameters: Read, caller: Caller) -> dict[str, Any]:
        self._port(parameters.name)
        found = dict(self._engine.engine.snapshot())
        return {"left": found[f"{parameters.name}.left"]["packets"], "waiting": found[f"{parameters.name}.rate"]["held"]}

    def _close(self, parameters: Read, caller: Caller) -> dict[str, Any]:
        self.runtime.check_open()
        self._port(parameters.name)
        source = self._sources.pop(parameters.name)
        self._engine.load(list(self._sources.values()))
        self.runtime.accounts.retire(parameters.name)
        source.port.close()
        del self._ports[parameters.name], self.settings["meters"][parameters.name]
        self.runtime.remember()
        return {}

    def accounts(self) -> dict[str, int]:
        return dict.fromkeys(self._ports, 0)

    def status(self) -> dict[str, Any]:
        return {"meters": list(self._ports)}

    def ended(self, session: Session) -> None:
        """Meters outlive their clients."""

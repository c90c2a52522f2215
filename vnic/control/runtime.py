"""The runtime: engines, switch and NICs as one running whole.

Every NIC belongs to one engine, its home, which serves all its queues in both directions. Every engine has its own instance of the
switch; all share one MAC table. What the switch of another engine has for a NIC goes to its home by ring:

    home:   TAP rx > parse > egress chain > egress shaper > switch > ingress chain > ingress shaper > TAP tx
    others:                                                 switch > ring .. > (the same ingress chain)

Egress and ingress are the container's: what leaves it, what enters it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

from dataplane.clock import Clock
from dataplane.elements.l2_switch import L2Switch
from dataplane.engine import Engine
from dataplane.errors import ConfigError, VnicError
from dataplane.graph import to_data, to_dot, to_text
from dataplane.group import EngineGroup
from dataplane.port import PortTx
from dataplane.ports.ring_port import RingPort
from vnic.control.accounts import Accounts
from vnic.control.capture import LiveCapture
from vnic.control.convert import encode_config
from vnic.control.devices import Devices, TapDevices
from vnic.control.events import Emit
from vnic.control.handlers import Handlers
from vnic.control.keeper import Keeper
from vnic.control.parts import Attached, Home, make_group, own_config, own_nic
from vnic.control.scalars import Rate
from vnic.control.schema import Config, NicConfig
from vnic.control.segments import RING_BYTES, Segments

MAX_NICS = 1024

log = logging.getLogger("vnic")


class Runtime:
    """Runs a configuration. All methods may be called from any thread; none is called from an engine's.

    loop: the event loop that watches the containers; a NIC whose container ends is detached from there. Without one nobody watches.
    devices: what the NICs are made of; TAPs in containers by default. clock: a virtual one leaves the engines without threads, to be run
    by VirtualTime.
    """

    def __init__(
        self,
        config: Config,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        devices: Devices | None = None,
        clock: Clock | None = None,
        seed: int = 0,
        keeping: Keeper | None = None,
        role: Literal["first", "crash", "successor"] = "first",
    ) -> None:
        self.emit: Emit = lambda event, /, **fields: None  # whoever runs this may listen
        self.config = own_config(config)
        self._keeping, self._role = keeping, role
        self._loop = loop
        self._lock = threading.RLock()
        self._nics: dict[str, Attached] = {}
        self._captures: dict[int, LiveCapture] = {}
        self._ended: dict[int, dict[str, Any]] = {}  # by the end of their NIC
        self._captured = 0
        self._devices: Devices = devices or TapDevices()
        self._started = self._closed = self._upgrading = False
        self.clock = clock or Clock()
        self._segments = Segments(keeping, reset=role == "crash")
        self.pool = self._segments.pool(config.pool.small, config.pool.large)
        self.table = self._segments.table(config.switch.table, int(config.switch.ageing))
        # In virtual time nothing has threads.
        self.groups = {} if self.clock.virtual else {name: make_group(name, each) for name, each in config.groups.items()}
        self.homes: list[Home] = []
        for number, engine in enumerate(config.engines):
            self.homes.append(
                Home(
                    Engine(
                        str(engine.name),
                        self.pool,
                        clock=self.clock,
                        spin_ns=int(engine.spin or 0),
                        cpu=engine.cpu,
                        seed=seed + number + 1,
                        budget_ns=int(config.groups[str(engine.group)].budget),
                    ),
                    L2Switch(self.table, name="switch"),
                )
            )
            if self.groups:
                self.groups[str(engine.group)].add(self.homes[-1].engine)
        self.accounts = Accounts(self.homes)
        self._handlers = Handlers(
            self.homes,
            self._nics,
            halt=lambda engine: self.group_of(engine).halt(engine),
            resume=lambda engine: self.group_of(engine).resume(engine),
            set_rate=self.set_rate,
        )

    def start(self) -> None:
        """Starts the engines and attaches the configured NICs: all, or none and the error of the first that failed. A successor only
        builds, see `start_threads`."""
        with self._lock:
            # The devices' agent before the threads: it is a process of its own, and small when it is started early.
            self._devices.start()
            self._started = True
            try:
                if self._role != "successor":
                    self.start_threads()
                for nic in list(self.config.nics.values()):
                    self._attach_first(nic)
                if self._role != "successor":
                    self._remember()
            except BaseException:
                self.close()
                raise

    def start_threads(self) -> None:
        """Starts the engines' threads, on the loop's thread. A successor's engines run once they have their state."""
        for group in self.groups.values():
            group.start(run=self._role != "successor")
        for attached in self._nics.values():
            self._watch(attached)

    def _watch(self, attached: Attached) -> None:
        if self._loop is not None:
            attached.watch.on_gone(self._loop, lambda: self._target_gone(attached))

    def _attach_first(self, config: NicConfig) -> None:
        """After a crash, what cannot be attached again (its container went meanwhile) is no reason to leave the others without."""
        try:
            self._attach(config)
        except VnicError as error:
            if self._role != "crash":
                raise
            log.error("nic %s is lost: %s", config.name, error)
            del self.config.nics[config.name]

    def _remember(self) -> None:
        """Has the supervisor keep the configuration as it is now: a worker after this one begins with it."""
        if self._keeping is not None and not self._closed:
            self._keeping.put_document("config", encode_config(self.config))

    # -- NICs --------------------------------------------------------------------------------------------------------------

    def attach(self, config: NicConfig) -> dict[str, Any]:
        """Puts a NIC into its container and into the graph while traffic runs; returns its status. All or nothing."""
        with self._lock:
            self._check_open()
            config = own_nic(config)
            status = self._attach(config)
            self.config.nics[config.name] = config
            self._remember()
            self.emit("attached", nic=config.name, engine=status["engine"])
            return status

    def _attach(self, config: NicConfig) -> dict[str, Any]:
        with self._lock, ExitStack() as undo:
            if not self._started or self._closed:
                raise VnicError("the runtime does not run")
            if config.name in self._nics:
                raise ConfigError(f"nic {config.name}: is attached already; choose another name or detach it first")
            taken = {attached.number for attached in self._nics.values()}
            # One that has had a number keeps it: the MAC table goes by numbers.
            number = config.number if config.number not in taken else None
            if number is None:
                free = taken | {each.number for each in self.config.nics.values()}
                number = next((n for n in range(MAX_NICS) if n not in free), None)
            if number is None:
                raise ConfigError(f"nic {config.name}: {MAX_NICS} NICs are attached, and no more fit")
            home = self._home(config)
            nic = self._devices.open(config, number)
            undo.callback(nic.close)
            ring = self._segments.ring(config.name, undo) if len(self.homes) > 1 else None
            attached = Attached(config, number, home, nic, ring, self.config.directory or None)
            undo.callback(attached.watch.close)
            attached.egress.join(self.homes[home].switch)
            self._join(attached, undo)
            self._nics[config.name] = attached
            undo.callback(self._nics.pop, config.name)
            if self._role != "successor" or all(group.alive for group in self.groups.values()):
                self._watch(attached)
            config.number, config.engine = number, home
            undo.pop_all()
            return self._nic_status(attached)

    def _home(self, config: NicConfig) -> int:
        if config.engine is not None:
            return self.config.engine_index(config.engine)
        loads = [sum(a.home == index for a in self._nics.values()) for index in range(len(self.homes))]
        return loads.index(min(loads))

    def _join(self, attached: Attached, undo: ExitStack) -> None:
        """Leads every engine's gate to the NIC, then opens the gates: no frame meets a half-built graph."""
        for index, each in enumerate(self.homes):
            undo.callback(each.load, list(each.sources))
            undo.callback(each.connect, attached.number, each.unused)
            if index == attached.home:
                each.connect(attached.number, attached.entry)
                each.load(each.sources + attached.sources)
            else:
                assert attached.ring is not None
                port = RingPort(f"{attached.config.name}.ring", attached.number, None, attached.ring)
                each.connect(attached.number, PortTx(port, name=f"{attached.config.name}.ring.tx"))
                each.load(list(each.sources))
        for each in self.homes:
            undo.callback(each.deactivate, attached.number)
            if attached.config.link_up:
                each.activate(attached.number, attached.config.vlan)

    def detach(self, name: str) -> None:
        """Takes a NIC out of the graph and its interface out of the container; frames under way to it are dropped and counted."""
        with self._lock:
            self._check_open()
            attached = self._get(name)
            for number in [number for number, capture in self._captures.items() if capture.nic == name]:
                self._ended[number] = self.stop_capture(number)
            attached.watch.close()
            for each in self.homes:
                each.deactivate(attached.number)
                each.connect(attached.number, each.unused)
            home = self.homes[attached.home]
            for each in self.homes:
                if each is not home:
                    each.load(list(each.sources))
            # Nobody pushes to the ring any more; what is in it leaves through the home engine before its graph goes.
            while attached.ring is not None and len(attached.ring) and home.engine.running:
                home.engine.call(lambda: None)
            home.load([source for source in home.sources if source not in attached.sources])
            self.accounts.retire(name)
            self.table.forget_port(attached.number)
            attached.nic.close()
            if attached.ring is not None:
                self._segments.drop_ring(name)
            del self._nics[name]
            if not self._closed:
                del self.config.nics[name]
                self._remember()
                self.emit("detached", nic=name)

    def _target_gone(self, attached: Attached) -> None:
        with self._lock:
            if self._nics.get(attached.config.name) is attached:
                self.detach(attached.config.name)

    def _get(self, name: str) -> Attached:
        if name not in self._nics:
            known = ", ".join(self._nics) or "none is attached"
            raise ConfigError(f"nic {name}: is not attached; attached: {known}")
        return self._nics[name]

    def set_rate(self, name: str, /, **limits: int | None) -> dict[str, Any]:
        """Sets egress_bps and/or ingress_bps of a NIC at once, in bit/s of layer-2 frames; None lifts a limit."""
        with self._lock:
            self._check_open()
            attached = self._get(name)
            for direction, rate_bps in limits.items():
                shaper = {"egress_bps": attached.egress_shaper, "ingress_bps": attached.ingress_shaper}[direction]
                rate = None if rate_bps is None else Rate(rate_bps)  # first: it refuses what could not be kept
                shaper.set_rate(rate_bps)  # goes through the engine's mailbox by itself
                way = attached.config.egress if direction == "egress_bps" else attached.config.ingress
                way.rate = rate
            self._remember()
            self.emit("rate", nic=name, **limits)
            return self._nic_status(attached)

    def start_capture(self, point: str, path: str, snaplen: int = 262144) -> int:
        """Copies what passes `point` (a NIC's name, or one of its elements') to the file or pipe `path`; returns the capture's number."""
        with self._lock:
            self._check_open()
            # Names of NICs may have dots: the longest that begins the point's.
            of = max(
                (name for name in self._nics if f"{point}.".startswith(f"{name}.")), key=len, default=point.partition(".")[0]
            )
            attached = self._get(of)
            capture = LiveCapture(self.homes[attached.home], attached, point, path, snaplen)
            capture.start()
            self._captured += 1
            self._captures[self._captured] = capture
            self.emit("capture", point=point, state="started")
            return self._captured

    def stop_capture(self, number: int) -> dict[str, Any]:
        """Ends a capture; returns how many packets it has and how many it missed."""
        with self._lock:
            capture = self._captures.pop(number, None)
            if capture is None:
                return self._ended.pop(number, {})
            result = capture.stop()
            self.accounts.retire(capture.nic)
            self.emit("capture", point=capture.point, state="stopped", captured=result["captured"])
            return result

    def set_link(self, name: str, up: bool) -> dict[str, Any]:
        """Raises or cuts the link: the container sees its carrier come and go, frames for it are no longer forwarded."""
        with self._lock:
            self._check_open()
            attached = self._get(name)
            for each in self.homes:
                if up:
                    each.activate(attached.number, attached.config.vlan)
                else:
                    each.deactivate(attached.number)
            attached.nic.set_carrier(up)
            attached.config.link_up = up
            self._remember()
            self.emit("link", nic=name, link="up" if up else "down")
            return self._nic_status(attached)

    def call_at(self, name: str, function: Callable[[], object]) -> None:
        """Runs a function on the thread of a NIC's engine, between two batches."""
        with self._lock:
            self.homes[self._get(name).home].engine.call(function)

    def handlers(self, element: str | None = None) -> dict[str, dict[str, Any]]:
        """What elements, or one of that name, can be asked and told; this and the next two: see vnic.control.handlers."""
        with self._lock:
            return self._handlers.describe(element)

    def read_handler(self, element: str, handler: str) -> list[dict[str, Any]]:
        """What the handler reads: [{"engine", "value"}] of each copy of the element."""
        with self._lock:
            return self._handlers.read(element, handler)

    def write_handler(self, element: str, handler: str, value: object) -> Any:
        """Writes a handler of all copies of the element, or of none; returns what the change returned."""
        with self._lock:
            self._check_open()
            result = self._handlers.write(element, handler, value)
            self._remember()
            self.emit("handler", element=element, handler=handler)
            return result

    # -- upgrade -----------------------------------------------------------------------------------------------------------

    def group_of(self, engine: Engine) -> EngineGroup:
        """The group that the engine is in."""
        return next(group for group in self.groups.values() if engine in group.engines)

    def digest(self) -> str:
        """Of the configuration as it is now: two workers that have the same can hand over."""
        return hashlib.sha256(encode_config(self.config)).hexdigest()

    def begin_upgrade(self) -> None:
        """From here on nothing is attached, detached or set, until `end_upgrade`; captures end. Raises VnicError where one is under way."""
        with self._lock:
            self._check_open()
            for number in list(self._captures):
                self._ended[number] = {**self.stop_capture(number), "error": "the worker was replaced"}
            self._upgrading = True

    def end_upgrade(self) -> None:
        """The upgrade failed: this worker goes on."""
        self._upgrading = False

    def _check_open(self) -> None:
        if self._upgrading:
            raise VnicError("an upgrade is under way; try again when it is over")

    def save_control(self) -> dict[str, Any]:
        """What control itself counted, for the next worker."""
        return {
            "captured": self._captured,
            "gone": self.accounts.gone,
            "engines": {each.engine.name: {"retired": each.retired, "charged": each.charged} for each in self.homes},
        }

    def load_control(self, state: dict[str, Any]) -> None:
        """What `save_control` said. Members that this version does not know are left alone. Raises VnicError."""
        try:
            self._captured = int(state.get("captured", 0))
            self.accounts.gone = {str(nic): int(ns) for nic, ns in state.get("gone", {}).items()}
            for each in self.homes:
                counts = state.get("engines", {}).get(each.engine.name, {})
                each.retired.update({term: int(counts["retired"][term]) for term in each.retired})
                each.charged = {str(name): int(ns) for name, ns in counts.get("charged", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VnicError(f"what control counted cannot be read: {type(error).__name__}: {error}") from None

    # -- what control reads ------------------------------------------------------------------------------------------------

    def _nic_status(self, attached: Attached) -> dict[str, Any]:
        return {
            "name": attached.config.name,
            "number": attached.number,
            "engine": self.homes[attached.home].engine.name,
            **attached.nic.status(),
            "link": "up" if attached.config.link_up else "down",
            "egress_bps": attached.egress_shaper.rate_bps,
            "ingress_bps": attached.ingress_shaper.rate_bps,
        }

    def status(self) -> dict[str, Any]:
        """Engines, NICs, switch and pool at a glance; `conserved` says whether every engine's packets add up."""
        with self._lock:
            engines = [{**each.engine.status(), **each.conservation(), **self._place(each.engine)} for each in self.homes]
            return {
                "conserved": all(engine["conserved"] for engine in engines),
                "engines": engines,
                "groups": [group.status() for group in self.groups.values()],
                "nics": [self._nic_status(attached) for attached in self._nics.values()],
                "switch": {"capacity": self.table.capacity, "entries": self._entries()},
                "pool": {"small": self.pool.small_count, "large": self.pool.large_count, "in_use": self.pool.in_use},
            }

    def _place(self, engine: Engine) -> dict[str, Any]:
        """Of an engine: its group, and the thread that runs it now."""
        group = next((group for group in self.groups.values() if engine in group.engines), None)
        return {} if group is None else {"group": group.name, "thread": group.thread_of(engine)}

    def set_group(self, name: str, mode: str | None = None, cpus: list[int] | None = None) -> dict[str, Any]:
        """Changes a group's scheduling mode and/or CPUs while packets flow; returns its status."""
        with self._lock:
            self._check_open()
            if name not in self.groups:
                raise ConfigError(f"group {name}: there is none; there are {', '.join(self.groups)}")
            group = self.groups[name]
            group.set_mode(mode or group.mode, cpus=cpus)
            self.config.groups[name].mode, self.config.groups[name].cpus = group.mode.value, group.cpus
            self._remember()
            self.emit("group", group=name, mode=group.mode.value, cpus=group.cpus)
            return group.status()

    def charges(self) -> dict[str, Any]:
        """CPU time and memory by NIC; see vnic.control.accounts."""
        with self._lock:
            for group in self.groups.values():
                group.settle()
            return self.accounts.collect({name: RING_BYTES if each.ring else 0 for name, each in self._nics.items()})

    def _entries(self) -> list[dict[str, Any]]:
        names = {attached.number: attached.config.name for attached in self._nics.values()}
        return [{**entry, "nic": names.get(entry["port"])} for entry in self.table.entries()]

    def stats(self, name: str | None = None) -> dict[str, Any]:
        """Counters of one NIC, or of everything: per queue, and per element with drops by reason."""
        with self._lock:
            chosen = [self._get(name)] if name is not None else list(self._nics.values())
            kinds = {element.name: type(element).__name__ for each in self.homes for element in each.engine.elements}
            return {
                "nics": [{"name": a.config.name, "queues": a.nic.queue_statistics()} for a in chosen],
                "engines": [
                    {
                        "name": each.engine.name,
                        "elements": [
                            {"name": element, "type": kinds[element], **statistics}
                            for element, statistics in each.engine.snapshot()
                            if name is None or element.startswith(f"{name}.")
                        ],
                    }
                    for each in self.homes
                ],
            }

    def graph(self, style: Literal["text", "dot", "json"] = "text") -> str:
        """A picture of what runs: "text", "dot" for Graphviz, or "json"."""
        with self._lock:
            if style == "dot":
                return to_dot([element for each in self.homes for element in each.engine.elements])
            if style == "json":
                return json.dumps({each.engine.name: to_data(each.engine.elements) for each in self.homes})
            return "\n".join(f"{each.engine.name}:\n{to_text(each.engine.elements)}" for each in self.homes)

    def close(self) -> None:
        """Detaches everything and ends engines and agent. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for name in list(self._nics):
                self.detach(name)
            for group in self.groups.values():
                group.stop()
            for each in self.homes:
                each.engine.close()
            self._devices.stop()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

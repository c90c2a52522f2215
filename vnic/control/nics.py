"""NICs on a learning switch: the module that puts interfaces into containers and moves packets between them.

Every NIC belongs to one engine, its home, which serves all its queues in both directions. Every engine has its own instance of the
switch; all share one MAC table. What the switch of another engine has for a NIC goes to its home by ring:

    home:   TAP rx > parse > egress chain > egress shaper > switch > ingress chain > ingress shaper > TAP tx
    others:                                                 switch > ring .. > (the same ingress chain)

Egress and ingress are the container's: what leaves it, what enters it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from dataplane.elements.l2_switch import L2Switch
from dataplane.errors import ConfigError, VnicError
from dataplane.port import PortTx
from dataplane.ports.ring_port import RingPort
from shaping.pool_share import PoolShare
from vnic.control.api import DESCRIPTION, INTERFACE
from vnic.control.capture import KeptCapture, LiveCapture, reopened
from vnic.control.devices import Devices, Passed
from vnic.control.keeper import read_document
from vnic.control.log import Log
from vnic.control.module import Method, Module, NotPermittedError, Session, is_owner, user_name
from vnic.control.nic_methods import nic_methods
from vnic.control.parts import Attached, Home, own_nic
from vnic.control.scalars import Rate
from vnic.control.schema import NicConfig, VlanConfig
from vnic.control.segments import RING_BYTES
from vnic.control.watching import Watching
from vnic.device.descriptors import close_all, system_error
from vnic.device.nic import Nic

if TYPE_CHECKING:
    from vnic.control.runtime import Runtime

MAX_NICS = 1024
CAPTURES_MOST = 64  # each has a thread and a buffer of 8 MiB
CAPTURES_OF_A_USER_MOST = 4  # who is not the instance's owner

log = Log("vnic")


class Nics(Module):
    """The NICs of an instance, the engines that serve them, and the switch between them."""

    interface = INTERFACE
    description = DESCRIPTION

    def __init__(self, runtime: Runtime, devices: Devices) -> None:
        super().__init__(runtime)
        self.config = config = runtime.config
        self._devices = devices
        self.attached: dict[str, Attached] = {}
        self._captures: dict[int, LiveCapture] = {}
        self._ended: dict[int, Future[dict[str, Any]]] = {}  # by the end of their NIC
        self._finishing: dict[int, LiveCapture] = {}  # what waits is still being written out
        self._aside = ThreadPoolExecutor(CAPTURES_MOST, "vnic-finish")
        self._captured = 0
        self._orphans: set[int] = set()  # captures whose client went during an upgrade
        self.watching = Watching(self)
        self._started = False
        self.table = runtime.segments.table(config.switch.table, int(config.switch.ageing))
        # What users' NICs may hold of the pool, by the user's number: however many NICs and shapers, in whichever engines.
        pool = runtime.pool.small_count, runtime.pool.large_count
        self._shares = {
            uid: PoolShare(*(max(count * client.pool_percent // 100, 1) for count in pool))
            for uid, client in config.clients.items()
        }
        self.homes: list[Home] = []
        for engine in config.engines:
            home = runtime.add_engine(
                str(engine.name),
                str(engine.group),
                spin_ns=int(engine.spin or 0),
                cpu=engine.cpu,
                make=lambda made: Home(made, L2Switch(self.table, name="switch")),
            )
            self.homes.append(home)

    def methods(self) -> list[Method]:
        return nic_methods(self)

    def open(self) -> None:
        """Gets the devices ready: before any thread is there, since TAPs of our own need a process that is small when it starts early."""
        self._devices.start()
        self._started = True

    def start(self) -> None:
        with self._at_once():
            for nic in list(self.config.nics.values()):
                self.watching.attach_first(nic)
        self._inherit_captures()

    def forget(self, config: NicConfig) -> None:
        """Drops what is kept of a NIC of the configuration that cannot be attached."""
        if config.number is not None:
            self.table.forget_port(config.number)
        self._devices.forget(config.name)
        self.runtime.segments.drop_ring(config.name)

    def bring_back(self, config: NicConfig) -> None:
        """Attaches a NIC that waits, as it was. Raises VnicError, and then it waits on."""
        why, config.waiting = config.waiting, ""
        try:
            status = self.put_in(config)
            self.runtime.remember(undo=lambda: self._take_out(config.name))
        except BaseException:
            config.waiting = why
            self._devices.forget(config.name)
            raise
        log.info("attached again", nic=config.name, netns=config.netns)
        self.runtime.emit("attached", nic=config.name, engine=status["engine"])

    def names(self, owner: int | None = None) -> list[str]:
        """The NICs that are attached; of one user only, where `owner` is given."""
        return [name for name, each in self.attached.items() if owner is None or each.config.owner == owner]

    # -- attaching ---------------------------------------------------------------------------------------------------------

    def attach(self, config: NicConfig, passed: Passed | None = None) -> dict[str, Any]:
        """Puts a NIC into its container (that of a namespace which a client passed, where there is one) and into the graph while
        traffic runs; returns its status. All or nothing."""
        with self.runtime.lock:
            self.runtime.check_open()
            config = own_nic(config)
            known, waiting = config.name in self.attached, self.watching.waiting.get(config.name)
            self._check_new(config, waiting)
            config.passed = passed is not None
            config.number = config.number if waiting is None else waiting.number
            try:
                status = self.put_in(config, passed)
            except BaseException:
                if not known:
                    self._devices.forget(config.name)
                raise

            def undo() -> None:
                self._take_out(self.config.nics.pop(config.name).name)
                if waiting is not None:
                    self.config.nics[config.name] = waiting

            self.config.nics[config.name] = config
            self.runtime.remember(undo)
            self.runtime.losses.found_again(f"nic {config.name}")
            self.runtime.emit("attached", nic=config.name, engine=status["engine"])
            return status

    def put_in(self, config: NicConfig, passed: Passed | None = None) -> dict[str, Any]:
        """Attaches a NIC that is, or is to be, one of the configuration. All or nothing. Raises VnicError."""
        try:
            return self._put_in(config, passed)
        except OSError as error:
            raise VnicError(f"nic {config.name}: cannot be attached: {system_error(error)}") from None

    def _put_in(self, config: NicConfig, passed: Passed | None) -> dict[str, Any]:
        runtime = self.runtime
        with runtime.lock, ExitStack() as undo:
            undo.callback(runtime.accounts.settle)  # at the very end
            if not self._started or runtime.closed:
                raise VnicError("the runtime does not run")
            if config.name in self.attached:
                raise ConfigError(f"nic {config.name}: is attached already; choose another name or detach it first")
            self._check_name(config)
            if not is_owner(config.owner):
                self._restrict(config)
            taken = {attached.number for attached in self.attached.values()}
            # One that has had a number keeps it: the MAC table goes by numbers.
            number = config.number if config.number not in taken else None
            if number is None:
                free = taken | {each.number for each in self.config.nics.values()}  # also of those that wait
                number = next((n for n in range(MAX_NICS) if n not in free), None)
            if number is None:
                raise ConfigError(f"nic {config.name}: {MAX_NICS} NICs are attached, and no more fit")
            home = self._home(config)
            nic = self._devices.open(config, number, passed)
            undo.callback(nic.close)
            ring = runtime.segments.ring(config.name, undo) if len(self.homes) > 1 else None
            attached = Attached(config, number, home, nic, ring, self.config.directory or None)
            undo.callback(attached.watch.close)
            if (share := self._shares.get(str(config.owner))) is not None:
                attached.join(share)
            attached.egress.join(self.homes[home].switch)
            self._join(attached, undo)
            self.attached[config.name] = attached
            undo.callback(self.attached.pop, config.name)
            if runtime.runs:
                self.watching.over(attached)
            config.number, config.engine = number, home
            undo.pop_all()
            return self._status(attached)

    def _check_name(self, config: NicConfig) -> None:
        """Elements are known by their NIC's name: one user's must not look like another's, as those of prod.egress and prod would."""
        for name, other in self.config.nics.items():  # with those that wait
            if name == config.name or other.owner == config.owner:
                continue
            if f"{config.name}.".startswith(f"{name}.") or f"{name}.".startswith(f"{config.name}."):
                raise ConfigError(f"nic {config.name}: begins like the name of another user's NIC; choose another name")

    def _restrict(self, config: NicConfig) -> None:
        """A client's NIC is in the VLANs that are granted: without `vlan:` in the first, and without a grant in none."""
        grant = self.config.clients.get(str(config.owner))
        if config.vlan is None:
            granted = grant.vlans if grant is not None else None
            config.vlan = VlanConfig(access=granted[0]) if granted else VlanConfig(untagged=True)

    def _check_new(self, config: NicConfig, waiting: NicConfig | None) -> None:
        """Raises ConfigError for what only a NIC that comes later can get wrong. waiting: one of that name that waits."""
        if waiting is not None and waiting.owner != config.owner and not is_owner(config.owner):
            raise ConfigError(f"nic {config.name}: the name is that of another user's NIC; choose another one")
        if self.runtime.is_client(config.name):
            raise ConfigError(f"nic {config.name}: the name is that of a module's client; choose another one")
        # Frames to an address that two NICs have reach either of them, and the spoof check allows it to both.
        for other in self.config.nics.values():
            if other.mac == config.mac and other.name != config.name:
                named = is_owner(config.owner) or other.owner == config.owner
                whose = f"{other.name}'s" if named else "that of another user's NIC"
                raise ConfigError(f"nic {config.name}: mac: {config.mac} is {whose} already; choose another one")

    def _home(self, config: NicConfig) -> int:
        if config.engine is not None:
            return self.config.engine_index(config.engine)
        homes = [attached.home for attached in self.attached.values()]
        return min(self.config.engines_of(config.owner), key=homes.count)

    def _join(self, attached: Attached, undo: ExitStack) -> None:
        """Leads every engine's gate to the NIC, then opens the gates: no frame meets a half-built graph. Where the changes are
        postponed (`Home.at_once`) gates open before the load; no source runs until then."""
        for index, each in enumerate(self.homes):
            undo.callback(each.load, list(each.sources))
            undo.callback(each.disconnect, attached.number)
            if index == attached.home:
                undo.callback(each.abandon, attached.elements)
                each.connect(attached.number, attached.entry)
                each.load(each.sources + attached.sources, attached.elements)
            else:
                assert attached.ring is not None
                port = RingPort(f"{attached.config.name}.ring", attached.number, None, attached.ring)
                transmit = PortTx(port, name=f"{attached.config.name}.ring.tx")
                transmit.owner = attached.config.name
                undo.callback(each.abandon, [transmit])
                each.connect(attached.number, transmit)
                each.load(list(each.sources), [transmit])
        for each in self.homes:
            undo.callback(each.deactivate, attached.number)
            if attached.config.link_up:
                each.activate(attached.number, attached.config.vlan, attached.source)

    def detach(self, name: str, why: str = "", *, waits: bool = False) -> None:
        """Takes a NIC out of the graph and its interface out of the container; frames under way to it are dropped and counted. waits: its
        settings stay, until its namespace is back. A NIC that waits does so no more."""
        with self.runtime.lock:
            self.runtime.check_open()
            config = self.config.nics[name] if name in self.watching.waiting else self.get(name).config
            before = config.waiting

            def keep() -> None:
                self.config.nics[name], config.waiting = config, before

            config.waiting = why if waits else ""
            if not waits:
                del self.config.nics[name]
            self.runtime.remember(undo=keep)
            if name in self.attached:
                self._take_out(name)
            self.watching.look()
            said = {**({"why": why} if why else {}), **({"waits": True} if waits else {})}
            log.info("detached", nic=name, **said)
            self.runtime.emit("detached", nic=name, **said, **({} if config.owner is None else {"owner": int(config.owner)}))

    def _take_out(self, *names: str) -> None:
        leaving = [self.attached[name] for name in names]
        for number in [number for number, capture in self._captures.items() if capture.nic in names]:
            self._ended[number] = self._end_capture(number)
        with self._at_once():
            for attached in leaving:
                attached.watch.close()
                for each in self.homes:
                    each.deactivate(attached.number)
                    each.disconnect(attached.number)
                    if each is not self.homes[attached.home]:
                        each.load(list(each.sources))
        # No engine pushes to the rings any more; what is in them leaves through the home engine before its graph goes.
        for attached in leaving:
            home = self.homes[attached.home]
            while attached.ring is not None and len(attached.ring) and home.engine.running:
                home.engine.call(lambda: None)
        sources = {source for attached in leaving for source in attached.sources}
        with self._at_once():
            for home in {self.homes[attached.home] for attached in leaving}:
                home.load([source for source in home.sources if source not in sources])
        self.runtime.accounts.retire(*names)
        for attached in leaving:
            name = attached.config.name
            self.table.forget_port(attached.number)
            attached.nic.close()
            self._devices.forget(name)
            if attached.ring is not None:
                self.runtime.segments.drop_ring(name)
            del self.attached[name]

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Changes every engine's graph once, at the end of a `with`."""
        with ExitStack() as stack:
            for home in self.homes:
                stack.enter_context(home.at_once())
            yield

    def get(self, name: str, session: Session | None = None) -> Attached:
        """A NIC that is attached; for `session` only one that is its user's. Raises ConfigError, NotPermittedError."""
        restricted = session is not None and not session.is_owner
        attached = self.attached.get(name)
        if attached is None and not restricted and name in self.watching.waiting:
            raise ConfigError(
                f"nic {name}: is not attached; it waits for a network namespace at {self.config.nics[name].netns}"
            )
        if attached is None:
            known = ", ".join(self.names(session.uid if session is not None and restricted else None)) or "none is"
            raise ConfigError(f"nic {name}: is not attached; attached: {known}")
        if session is not None and restricted and attached.config.owner != session.uid:
            raise NotPermittedError(
                f"nic {name}: is not {session.who}'s; only its owner and the instance's may see and change it"
            )
        return attached

    # -- settings ----------------------------------------------------------------------------------------------------------

    def set_rate(self, name: str, /, **limits: int | None) -> dict[str, Any]:
        """Sets egress_bps and/or ingress_bps of a NIC at once, in bit/s of layer-2 frames; None lifts a limit."""
        with self.runtime.lock:
            self.runtime.check_open()
            attached = self.get(name)
            ways = {"egress_bps": attached.config.egress, "ingress_bps": attached.config.ingress}
            shapers = {"egress_bps": attached.egress_shaper, "ingress_bps": attached.ingress_shaper}
            before = {direction: ways[direction].rate for direction in limits}

            def keep(rates: dict[str, Rate | None]) -> None:
                for direction, rate in rates.items():
                    ways[direction].rate = rate

            keep({direction: None if bps is None else Rate(bps) for direction, bps in limits.items()})
            self.runtime.remember(undo=lambda: keep(before))
            for direction, rate_bps in limits.items():
                shapers[direction].set_rate(rate_bps)  # goes through the engine's mailbox by itself
            self.runtime.emit("rate", nic=name, **limits)
            return self._status(attached)

    def set_link(self, name: str, up: bool) -> dict[str, Any]:
        """Raises or cuts the link: the container sees its carrier come and go, frames for it are no longer forwarded."""
        with self.runtime.lock:
            self.runtime.check_open()
            attached = self.get(name)
            before, attached.config.link_up = attached.config.link_up, up
            self.runtime.remember(undo=lambda: setattr(attached.config, "link_up", before))
            for each in self.homes:
                if up:
                    each.activate(attached.number, attached.config.vlan, attached.source)
                else:
                    each.deactivate(attached.number)
            attached.nic.set_carrier(up)
            self.runtime.emit("link", nic=name, link="up" if up else "down")
            return self._status(attached)

    def set_spoof_check(self, name: str, on: bool) -> dict[str, Any]:
        """Drops what a NIC's container sends from another MAC address than the NIC's, or no longer; from the next batch on."""
        with self.runtime.lock:
            self.runtime.check_open()
            attached = self.get(name)
            before, attached.config.spoof_check = attached.config.spoof_check, on
            self.runtime.remember(undo=lambda: setattr(attached.config, "spoof_check", before))
            for each in self.homes if attached.config.link_up else []:
                each.activate(attached.number, attached.config.vlan, attached.source)
            return self._status(attached)

    def call_at(self, name: str, function: Callable[[], object]) -> None:
        """Runs a function on the thread of a NIC's engine, between two batches."""
        with self.runtime.lock:
            self.homes[self.get(name).home].engine.call(function)

    # -- captures ----------------------------------------------------------------------------------------------------------

    def start_capture(self, point: str, target: str | int, snaplen: int = 262144, uid: int | None = None) -> int:
        """Copies what passes `point` (a NIC's name, or one of its elements') to a file or pipe, by path or descriptor, for user `uid` if
        not for the instance's owner; returns the capture's number."""
        with self.runtime.lock:
            self.runtime.check_open()
            running = [each.kept for each in (*self._captures.values(), *self._finishing.values())]
            if len(running) >= CAPTURES_MOST:
                raise VnicError(f"{CAPTURES_MOST} captures run already; end one of them first")
            theirs = sum(each.uid == uid for each in running)
            if uid is not None and theirs >= CAPTURES_OF_A_USER_MOST:
                raise NotPermittedError(f"capture: user {user_name(uid)} has {theirs} captures already; end one of them first")
            self._captured += 1
            number, kept = self._captured, KeptCapture(point, snaplen, uid)
            capture = self._capture(number, kept, reopened(target) if isinstance(target, int) else target)
            try:
                if self.runtime.keeping is not None:
                    kept.keep(self.runtime.keeping, number, capture.file.fileno())
            except BaseException:
                self._end_capture(number)
                raise
            self.runtime.emit("capture", nic=capture.nic, point=point, state="started")
            return number

    def _capture(self, number: int, kept: KeptCapture, path: str) -> LiveCapture:
        attached = self.get(self.nic_of(kept.point))
        capture = LiveCapture(self.homes[attached.home], attached, kept, number, path)
        capture.start()
        self._captures[number] = capture
        return capture

    def _inherit_captures(self) -> None:
        """Those of the worker before: a successor goes on with them. After a crash their clients are gone, and so they end; as does what is
        left of a NIC that the worker died attaching or detaching."""
        if (keeping := self.runtime.keeping) is None:
            return
        if self.runtime.role == "crash":
            keeping.drop_inherited("nic/", "ring/", "capture/")
        for key in keeping.inherited("capture/"):
            document, descriptor = keeping.take(key) or []
            try:
                kept = msgspec.json.decode(read_document(document), type=KeptCapture)
                self._capture(int(key.removeprefix("capture/")), kept, reopened(descriptor))
            finally:
                close_all([document, descriptor])

    def nic_of(self, point: str) -> str:
        """The NIC of that name, or the owner of the element of that name."""
        if point in self.attached:
            return point
        elements = (element for engine in self.runtime.engines for element in engine.elements)
        return next((element.owner or "" for element in elements if element.name == point), point.partition(".")[0])

    def stop_capture(self, number: int) -> Future[dict[str, Any]]:
        """Ends a capture: takes it out of the graph. What waits is written out aside, which takes up to a second where nobody reads; the
        result is how many packets it has and how many it missed."""
        with self.runtime.lock:
            self.runtime.check_open()
            return self._end_capture(number)

    def _end_capture(self, number: int) -> Future[dict[str, Any]]:
        capture = self._captures.pop(number, None)
        if capture is None:
            return self._ended.pop(number, None) or self._aside.submit(dict)
        capture.stop()
        self._finishing[number] = capture
        finished = self._aside.submit(capture.finish)
        finished.add_done_callback(lambda _: self._finishing.pop(number, None))
        if self.runtime.keeping is not None:
            self.runtime.keeping.drop(f"capture/{number}")
        self.runtime.accounts.settle()
        self.runtime.emit("capture", nic=capture.nic, point=capture.point, state="stopped", captured=capture.captured)
        return finished

    def ended(self, session: Session) -> None:
        with self.runtime.lock:
            if self.runtime.upgrading:  # the graph is what the successor has been told
                self._orphans |= session.captures
            else:
                self._abandon(session.captures)
            session.captures.clear()

    def _abandon(self, captures: Iterable[int]) -> None:
        for number in list(captures):
            self._end_capture(number)  # its reader may be gone, asleep or malicious: nobody waits for it

    # -- upgrade -----------------------------------------------------------------------------------------------------------

    def end_upgrade(self) -> None:
        self._abandon(self._orphans)
        self._orphans = set()
        self.watching.settle()
        self.watching.look()

    def claim(self, captures: set[int]) -> None:
        """A successor has taken over, and its clients are here: captures of others are nobody's."""
        self._abandon(set(self._captures) - captures)
        self.watching.claim()

    def let_go(self) -> None:
        """Every engine is a successor's: what was captured here is written out, and its turn comes."""
        wait([self._aside.submit(capture.file.close) for capture in self._captures.values()])

    def save(self) -> dict[str, Any]:
        return {"captured": self._captured}

    def load(self, state: dict[str, Any]) -> None:
        self._captured = int(state.get("captured", 0))

    # -- what control reads ------------------------------------------------------------------------------------------------

    def _status(self, attached: Attached) -> dict[str, Any]:
        return {
            "name": attached.config.name,
            "number": attached.number,
            "engine": self.homes[attached.home].engine.name,
            "owner": None if attached.config.owner is None else int(attached.config.owner),
            **attached.nic.status(),
            "link": "up" if attached.config.link_up else "down",
            "spoof_check": attached.source is not None,
            "egress_bps": attached.egress_shaper.rate_bps,
            "ingress_bps": attached.ingress_shaper.rate_bps,
            "egress_queue_bytes": attached.egress_shaper.queue_limit_bytes,
            "ingress_queue_bytes": attached.ingress_shaper.queue_limit_bytes,
        }

    def status(self) -> dict[str, Any]:
        names = {attached.number: attached.config.name for attached in self.attached.values()}
        return {
            "nics": [self._status(attached) for attached in self.attached.values()],
            "waiting": self.watching.status(),
            "switch": {
                "capacity": self.table.capacity,
                "entries": [{**entry, "nic": names.get(entry["port"])} for entry in self.table.entries()],
            },
        }

    def statistics(self, name: str | None = None) -> list[dict[str, Any]]:
        """Of one NIC or all: its queues' counters, and what did not get into its queues."""
        chosen = {name: self.get(name)} if name is not None else self.attached
        drops = self.queue_drops(chosen)
        return [
            {"name": each, "queues": attached.nic.queue_statistics(), "queue_drops": drops.get(each)}
            for each, attached in chosen.items()
        ]

    def queue_drops(self, chosen: dict[str, Attached] | None = None) -> dict[str, int | None]:
        """By NIC, of all if not told: packets of its container that its queues had no room for, as the kernel counts; None where it does
        not say."""
        attached = self.attached if chosen is None else chosen
        return {name: each.nic.tap.queue_drops() for name, each in attached.items() if isinstance(each.nic, Nic)}

    def accounts(self) -> dict[str, int]:
        memory = dict.fromkeys(self.attached, 0)
        for name, each in self.attached.items():
            if each.ring is not None:
                memory[name] += RING_BYTES + self.runtime.pool.memory_bytes(each.ring.peek())
        for capture in (*self._captures.values(), *self._finishing.values()):
            if capture.nic in memory:
                memory[capture.nic] += capture.file.capacity
        return memory

    def close(self) -> None:
        self.watching.close()
        self._take_out(*self.attached)

    def stop_devices(self) -> None:
        """After all engines."""
        self._aside.shutdown()
        self._devices.stop()

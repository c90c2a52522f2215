"""The network: NICs, learning switches, the links between them, and the engines that serve them.

Every NIC belongs to one engine, its home, which serves all its queues in both directions. Every
engine has its own instance of each switch; all instances of a switch share one MAC table. A frame
for a NIC of another engine reaches the NIC's home by a ring:

    home:   rx > parse > egress chain > egress shaper > switch > ingress chain > ingress shaper > tx
    others:                                             switch > ring .. > (the same ingress chain)

A link joins two switches (vnic.modules.link_node). A one-way link sends the packets of a NIC to
another node than its switch, through elements that several NICs share (vnic.modules.wiring). Egress
and ingress are the container's directions: egress packets are those that it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import msgspec

from dataplane.config.scalars import Rate
from dataplane.descriptors import system_error
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.element import Element, Source
from shaping.pool_share import PoolShare
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable
from vnic.api.log import Log
from vnic.api.method import NotPermittedError, Session, is_owner
from vnic.config.copies import own_nic
from vnic.config.schema import (
    HopConfig,
    LinkConfig,
    NicConfig,
    SwitchConfig,
    VlanConfig,
)
from vnic.config.shape import is_shaped, shape_nic
from vnic.config.topology import PORTS_MOST
from vnic.config.written import written
from vnic.device.kinds.contract import LIVE, Device
from vnic.device.kinds.module import ModuleKind
from vnic.device.kinds.registry import kind_of
from vnic.modules.capture import LiveCapture
from vnic.modules.captures import Captures
from vnic.modules.devices import Devices, Passed
from vnic.modules.guests import Guests
from vnic.modules.host import Host
from vnic.modules.link_node import LinkNode
from vnic.modules.module import Module
from vnic.modules.module_ports import ModulePorts
from vnic.modules.nic_node import NicNode
from vnic.modules.switch_host import SwitchHost
from vnic.modules.switch_port import SwitchPort
from vnic.modules.watching import Watching
from vnic.modules.wiring import Wiring
from vnic.store.segments import RING_BYTES

log = Log("vnic")


def _polled(thing: NicNode | LinkNode, engine: int) -> list[Source]:
    """The sources in an engine that deliver packets by themselves, once they are in its graph."""
    return [source for source in thing.sources_in(engine) if not source.TAKES_INPUT]


class Network(Module):
    """The network of an instance: NICs, switches, links, and the engines that serve them."""

    def __init__(self, runtime: Host, devices: Devices) -> None:
        super().__init__(runtime)
        self.config = config = runtime.config
        self._devices = devices
        self.attached: dict[str, NicNode] = {}
        self.links: dict[str, LinkNode] = {}
        self.tables: dict[str, MacTable] = {}  # by switch
        self.watching = Watching(runtime, self)
        self.guests = Guests(runtime, self)
        self.ports = ModulePorts(runtime)
        self._started = False
        # NICs whose interfaces are being made, with the engines that will serve them.
        self._opening: dict[str, tuple[NicConfig, int]] = {}
        self._gathering = False  # within at_once
        self._leaving: list[NicNode | LinkNode] = []  # unplugged within it
        # Within it, once one-way links are to be put in place: NICs that leave.
        self._unwired: set[str] | None = None
        self._stale: list[tuple[str, int]] = []  # ports closed within it: switch, number
        # The part of the pool that a user's NICs may hold, by the user's number: all NICs and
        # shapers of the user in all engines together.
        pool = runtime.pool.small_count, runtime.pool.large_count
        self._shares = {
            uid: PoolShare(*(max(count * client.pool_percent // 100, 1) for count in pool))
            for uid, client in config.clients.items()
        }
        self.homes: list[SwitchHost] = []
        self.captures = Captures(runtime, self.homes, lambda point: self.get(self.nic_of(point)))
        for engine in config.engines:
            home = runtime.add_engine(
                str(engine.name),
                str(engine.group),
                spin_ns=int(engine.spin or 0),
                cpu=engine.cpu,
                make=SwitchHost,
            )
            self.homes.append(home)
        for name, switch in config.switches.items():
            self.add_switch(name, switch)
        self.wiring = Wiring(runtime, self.homes, self.attached)
        for name, node in config.elements.items():
            if not self._made_first(f"node {name}", partial(self.wiring.add, name, node)):
                del self.config.nodes[name]  # packets for it are dropped, not led past it
        self.wiring.set(config.hops)

    def open(self) -> None:
        """Starts the agent, before any thread: it is a fork of this process, which is small
        then."""
        self._devices.start()
        self._started = True

    def watch(self) -> None:
        self.watching.over_all()
        if self.runtime.role != "successor":
            self.guests.over_all()

    def start(self) -> None:
        with self.at_once():
            for nic in list(self.config.nics.values()):
                self.watching.attach_first(nic)
            for link in list(self.config.links):
                if not self._made_first(f"link {link.name}", partial(self.add_link, link)):
                    self.config.links.remove(link)
        self._drop_inherited()
        self.captures.inherit()

    def _made_first(self, what: str, make: Callable[[], object]) -> bool:
        """Makes a link or node of the configuration when this worker comes up; returns whether it
        exists. After a crash, the worker goes on without one that fails."""
        try:
            make()
        except VnicError as error:
            if self.runtime.role != "crash":
                raise
            self.runtime.losses.add(what, str(error))
            return False
        return True

    def forget(self, config: NicConfig) -> None:
        """Deletes the stored state of a NIC of the configuration that cannot be attached."""
        if config.number is not None:
            self.tables[self._switch(config)].forget_port(config.number)
        self._devices.forget(config.name)
        self.runtime.segments.drop_ring(config.name)

    def bring_back(self, config: NicConfig) -> None:
        """Attaches a waiting NIC again, with its settings; on any thread, see `attach`. Raises
        VnicError, and then the NIC continues to wait."""
        runtime = self.runtime
        with runtime.lock:
            runtime.check_open()
            self._check_waits(config)
            self.restrict(config)
            self.reserve(config)
        try:
            device = self.open_device(config)
            with runtime.lock:
                status = self._enter_late(config, device, lambda: self._check_waits(config))
                why, config.waiting = config.waiting, ""

                def undo() -> None:
                    config.waiting = why
                    self.take_out(config.name)

                runtime.remember(undo)
        finally:
            self.free(config)
        log.info("attached again", nic=config.name, netns=config.netns)
        runtime.emit("attached", nic=config.name, engine=status["engine"])

    def _check_waits(self, config: NicConfig) -> None:
        if self.watching.waiting.get(config.name) is not config:
            raise VnicError(f"nic {config.name}: waits no more")

    def names(self, owner: int | None = None) -> list[str]:
        """The names of the attached NICs; only those of user `owner`, if given."""
        return [
            name
            for name, each in self.attached.items()
            if owner is None or each.config.owner == owner
        ]

    # -- attaching ---------------------------------------------------------------------------------

    def attach(self, config: NicConfig, passed: Passed | None = None) -> dict[str, Any]:
        """Puts a NIC into its container (or that of a namespace which a client passed) and into the
        graph while traffic runs; returns its status. All or nothing. May be called on any thread:
        the lock is free while the interface is made, which a container can delay. The running
        policy of shaping is the NIC's from its first packet on."""
        with self.runtime.lock:
            self.runtime.check_open()
            config = own_nic(config)
            waiting = self.watching.waiting.get(config.name)
            self._check_new(config, waiting)
            config.passed = passed is not None
            config.number = config.number if waiting is None else waiting.number
            shape_nic(self.config, config)
            self.restrict(config)
            self._switch(config)
            self.reserve(config)
        try:
            device = self.open_device(config, passed)
            with self.runtime.lock:
                status = self._enter_late(config, device)
                self._add(config, waiting)
        finally:
            self.free(config)
        if is_shaped(self.config, config):
            self._renew_policy(config.name)
        return status

    def _renew_policy(self, name: str) -> None:
        """After an attach: the elements of lines that lead from the NIC are other NICs', and the
        policy may have changed meanwhile."""
        try:
            self.runtime.renew_policy()
        except VnicError as error:
            log.warning("attached, but the policy lacks it", nic=name, why=str(error))

    def _add(self, config: NicConfig, waiting: NicConfig | None) -> None:
        """Stores a NIC that has been attached in the configuration. Raises VnicError, and then it
        is detached again."""

        def undo() -> None:
            self.take_out(self.config.nics.pop(config.name).name)
            if waiting is not None:
                self.config.nics[config.name] = waiting

        self.config.nics[config.name] = config
        self.runtime.remember(undo)
        self.runtime.losses.found_again(f"nic {config.name}")
        self.runtime.emit(
            "attached",
            nic=config.name,
            engine=self.homes[self.attached[config.name].home].engine.name,
        )

    def put_in(self, config: NicConfig, passed: Passed | None = None) -> dict[str, Any]:
        """Attaches a NIC that is, or will be, in the configuration. All or nothing, except for the
        state that the supervisor stores, see `forget`. Raises VnicError."""
        with self.runtime.lock:
            self.restrict(config)
            self.reserve(config)
            try:
                device = self._open(config, passed)
                try:
                    return self.enter(config, device)
                except BaseException:
                    device.close()
                    raise
            finally:
                self.free(config)

    def reserve(self, config: NicConfig) -> None:
        """Checks a NIC that is to be attached and reserves its name, number and engine until
        `free`. Raises VnicError."""
        if not self._started or self.runtime.closed:
            raise VnicError("the runtime does not run")
        if config.name in self.attached or config.name in self._opening:
            raise ConfigError(
                f"nic {config.name}: is attached already; choose another name or detach it first",
                code="exists",
            )
        self._check_name(config)
        taken = {attached.number for attached in self.attached.values()}
        # A NIC that has had a number keeps it, since the MAC table refers to ports by number.
        if config.number is None or config.number in taken:
            config.number = self._free_number(f"nic {config.name}")
        self._opening[config.name] = config, self._home(config)

    def free(self, config: NicConfig) -> None:
        """Ends the reservation that `reserve` made."""
        self._opening.pop(config.name, None)

    def _open(self, config: NicConfig, passed: Passed | None) -> Device:
        assert config.number is not None
        try:
            if config.kind == ModuleKind.NAME:  # its rings belong to this process, like its modules
                return ModuleKind().open(config, config.number, self.ports)
            return self._devices.open(config, config.number, passed)
        except OSError as error:
            raise VnicError(
                f"nic {config.name}: cannot be attached: {system_error(error)}"
            ) from None

    def open_device(self, config: NicConfig, passed: Passed | None = None) -> Device:
        """Makes the interface of a reserved NIC. Needs no lock. Raises VnicError, and then the
        interface does not exist."""
        try:
            return self._open(config, passed)
        except BaseException:
            self._devices.forget(config.name)
            raise

    def discard(self, config: NicConfig, device: Device) -> None:
        """Removes the interface of a NIC that is in no graph."""
        device.close()
        self._devices.forget(config.name)

    def _enter_late(
        self, config: NicConfig, device: Device, check: Callable[[], object] = lambda: None
    ) -> dict[str, Any]:
        """Calls `enter` after the lock was free, and so checks again first. Raises VnicError, and
        then the device has been removed."""
        try:
            self.runtime.check_open()
            check()
            return self.enter(config, device)
        except BaseException:
            self.discard(config, device)
            raise

    def enter(self, config: NicConfig, device: Device) -> dict[str, Any]:
        """Connects the device of a reserved NIC. Raises VnicError, and then the NIC is in no graph;
        the caller closes the device."""
        runtime = self.runtime
        try:
            with runtime.lock, ExitStack() as undo:
                undo.callback(runtime.accounts.settle)  # at the very end
                if runtime.closed:
                    raise VnicError("the runtime does not run")
                number, home = config.number, self._opening[config.name][1]
                assert number is not None
                port = SwitchPort(self._switch(config), number, home)
                port.ring = (
                    runtime.segments.ring(config.name, undo) if len(self.homes) > 1 else None
                )
                attached = NicNode(
                    config, port, device, self.config.directory or None, engines=len(self.homes)
                )
                undo.callback(attached.watch.close)
                self._plug_nic(attached, undo)
                undo.callback(self.wire, [config.name])
                self.attached[config.name] = attached
                undo.callback(self.attached.pop, config.name)
                self.wire()
                if runtime.runs:
                    self.watching.over(attached)
                    self.guests.over(attached)
                config.engine = home
                undo.pop_all()
                return self._status(attached)
        except OSError as error:
            raise VnicError(
                f"nic {config.name}: cannot be attached: {system_error(error)}"
            ) from None

    def _switch(self, config: NicConfig) -> str:
        """The name of the switch that a NIC is connected to; sets it in the NIC's configuration."""
        try:
            if config.on not in self.tables:
                config.on = self.config.switch_of(config.on)
            return config.on
        except ConfigError as error:
            raise ConfigError(f"nic {config.name}: {error}") from None

    def _free_number(self, what: str, taken: Iterable[int] = ()) -> int:
        """A port number that no NIC (attached or waiting) and no link uses."""
        used = {*taken, *(attached.number for attached in self.attached.values())}
        known = (*self.config.nics.values(), *(each for each, _ in self._opening.values()))
        used |= {nic.number for nic in known if nic.number is not None}
        used.update(
            *(link.numbers for link in self.config.links),
            *(link.config.numbers for link in self.links.values()),
        )
        number = next((n for n in range(PORTS_MOST) if n not in used), None)
        if number is None:
            raise ConfigError(
                f"{what}: all {PORTS_MOST} ports of switches are taken, and no more fit",
                code="limit",
            )
        return number

    def _check_name(self, config: NicConfig) -> None:
        """Checks that a NIC's name does not begin like another user's: the names of elements begin
        with their NIC's, and those of prod.egress and prod could not be told apart. Raises
        ConfigError."""
        for name, other in self.config.nics.items():  # with those that wait
            if name == config.name or other.owner == config.owner:
                continue
            if f"{config.name}.".startswith(f"{name}.") or f"{name}.".startswith(f"{config.name}."):
                raise ConfigError(
                    f"nic {config.name}: begins like the name of another user's NIC; choose "
                    "another name",
                    code="exists",
                )

    def restrict(self, config: NicConfig) -> None:
        """Puts a client's NIC on the granted switch and, if it has no `vlan:`, into the first
        granted VLAN; without a granted VLAN it may exchange untagged frames only."""
        if is_owner(config.owner):
            return
        grant = self.config.clients.get(str(config.owner))
        if config.on is None and grant is not None:
            config.on = grant.on
        if config.vlan is None:
            granted = grant.vlans if grant is not None else None
            config.vlan = VlanConfig(access=granted[0]) if granted else VlanConfig(untagged=True)

    def _check_new(self, config: NicConfig, waiting: NicConfig | None) -> None:
        """Raises ConfigError for conflicts that only a NIC attached at run time can have. waiting:
        the waiting NIC of that name."""
        if waiting is not None and waiting.owner != config.owner and not is_owner(config.owner):
            raise ConfigError(
                f"nic {config.name}: the name is that of another user's NIC; choose another one",
                code="exists",
            )
        if config.name in self.config.nodes or any(
            config.name == link.name for link in self.config.links
        ):
            raise ConfigError(
                f"nic {config.name}: the name is that of a node or link; choose another one",
                code="exists",
            )
        others = [*self.config.elements, *(link.name for link in self.config.links)]
        if any(config.name.startswith(f"{other}.") for other in others):
            raise ConfigError(
                f"nic {config.name}: begins like the elements of a link or node; choose another "
                "name",
                code="exists",
            )
        if self.runtime.is_client(config.name):
            raise ConfigError(
                f"nic {config.name}: the name is that of a module's client; choose another one",
                code="exists",
            )
        # Frames to an address that two NICs have reach either of them, and the spoof check allows
        # it to both.
        for other in self.config.nics.values():
            if other.mac == config.mac and other.name != config.name:
                named = is_owner(config.owner) or other.owner == config.owner
                whose = f"{other.name}'s" if named else "that of another user's NIC"
                raise ConfigError(
                    f"nic {config.name}: mac: {config.mac} is {whose} already; choose another one",
                    code="exists",
                )

    def _home(self, config: NicConfig) -> int:
        if config.engine is not None:
            return self.config.engine_index(config.engine)
        homes = [attached.home for attached in self.attached.values()]
        homes += [home for _, home in self._opening.values()]
        return min(self.config.engines_of(config.owner), key=homes.count)

    def _plug_nic(self, attached: NicNode, undo: ExitStack) -> None:
        """Connects a NIC that is in no graph."""
        if (share := self._shares.get(str(attached.config.owner))) is not None:
            attached.join(share)
        attached.egress.chain.join(self.wiring.behind(attached))
        self._plug(attached, undo)

    def _plug(self, thing: NicNode | LinkNode, undo: ExitStack) -> None:
        """Connects the outputs of every engine's switches to a NIC or link, then opens its ports,
        then starts its sources, so that no frame enters a half-built graph or comes from a closed
        port. Where the changes are postponed (`SwitchHost.at_once`), ports open before the load; no
        source runs until then."""
        for index, each in enumerate(self.homes):
            undo.callback(each.load, list(each.sources))
            elements, polled = thing.elements_in(index), _polled(thing, index)
            undo.callback(each.abandon, elements)
            for port in thing.ports:
                undo.callback(each.disconnect, port.switch, port.number)
                each.connect(port.switch, port.number, port.entries[index])
            add = each.add_ahead if polled else each.add
            add(
                [source for source in thing.sources_in(index) if source not in polled],
                [element for element in elements if element not in polled],
            )
        self._settle_policy(thing)
        for each in self.homes:
            for port in thing.ports:
                undo.callback(each.deactivate, port.switch, port.number)
                if thing.is_up:
                    each.activate(port.switch, port.number, thing.config.vlan, thing.source)
        for index, each in enumerate(self.homes):
            if polled := _polled(thing, index):
                each.add(polled, polled)

    def _settle_policy(self, thing: NicNode | LinkNode) -> None:
        """Before packets reach them: gives elements of the policy what its scenario has made of
        their settings."""
        self.runtime.settle_policy({
            name: chain.of_policy for name, chain in thing.chains.items()
        })  # fmt: skip
        if isinstance(thing, NicNode) and self.runtime.cuts_carrier(str(thing.config.name)):
            self.settle_carrier(thing, True)

    def _unplug(self, things: Sequence[NicNode | LinkNode]) -> None:
        """Removes NICs and links from the graph; frames on their way to them are dropped and
        counted."""
        with self.at_once():
            for index, each in enumerate(self.homes):
                for thing in things:
                    for port in thing.ports:
                        each.deactivate(port.switch, port.number)
                        each.disconnect(port.switch, port.number)
                gone = [thing for thing in things if thing.ports[0].home != index]
                leaving = [element for thing in gone for element in thing.elements_in(index)]
                sources = {source for thing in gone for source in thing.sources_in(index)}
                each.load(
                    [source for source in each.sources if source not in sources], leaving=leaving
                )
            self._leaving += [thing for thing in things if thing.ports[0].home is not None]

    def _leave_homes(self, things: Sequence[NicNode | LinkNode]) -> None:
        """Removes NICs and links that no switch output leads to any more from their home engines,
        after these have processed the packets in the rings."""
        for port in (port for thing in things for port in thing.ports):
            assert port.home is not None
            self.homes[port.home].receive_all(port.ring)
        with self.at_once():
            for index, each in enumerate(self.homes):
                if sources := {source for thing in things for source in thing.sources_in(index)}:
                    each.load([source for source in each.sources if source not in sources])

    def _replace(
        self,
        before: NicNode | LinkNode,
        after: NicNode | LinkNode,
        captures: Sequence[LiveCapture] = (),
    ) -> None:
        """Replaces a NIC or link by one with other settings, between two batches of each engine.
        captures: the running ones, which continue at the elements that now have the names of their
        points."""
        with self.at_once():
            gone: list[list[Element]] = []
            with ExitStack() as undo:
                for index, each in enumerate(self.homes):
                    elements = after.elements_in(index)
                    leaving = [
                        element for element in before.elements_in(index) if element not in elements
                    ]
                    undo.callback(each.abandon, elements)
                    each.load(list(each.sources), elements, leaving)
                    gone.append(leaving)
                undo.pop_all()
            for each, leaving in zip(self.homes, gone, strict=True):
                each.drain(leaving)
            self._settle_policy(after)
            for capture in captures:
                capture.home.do(capture.remove)
            for index, each in enumerate(self.homes):
                if after.sources_in(index):
                    each.do(after.connect, after.elements_in(index))
                if index == after.ports[0].home:
                    # Between the same two batches: a packet is to meet all of the new settings, or
                    # none. With the classes of one policy, and the rules of another, it would go
                    # into a class in which others of its flow do not wait.
                    each.do(after.settle)
                for port, old in zip(after.ports, before.ports, strict=True):
                    if port.switch != old.switch:
                        each.deactivate(old.switch, old.number)
                        each.disconnect(old.switch, old.number)
                    each.connect(port.switch, port.number, port.entries[index])
            for capture in captures:
                capture.follow(after.elements_in(self.homes.index(capture.home)))
            self._activate(after)

    # -- switches and links ------------------------------------------------------------------------

    def add_switch(self, name: str, config: SwitchConfig) -> None:
        """Makes a switch, with an instance in every engine. The instances join the graphs when
        something is connected to them."""
        self.tables[name] = self.runtime.segments.table(name, config.table, int(config.ageing))
        for home in self.homes:
            home.switches[name] = L2Switch(self.tables[name], name=name)

    def change_switch(self, name: str, config: SwitchConfig) -> None:
        """Replaces a switch's table by one of another size or ageing time, with the old entries.
        Addresses that an engine learns in the old table until it has the new one are learned
        again."""
        table = self.runtime.segments.new_table(name, config.table, int(config.ageing))
        table.take_entries(self.tables[name])
        self.tables[name] = table
        for home in self.homes:
            switch = home.switches[name]
            home.do(partial(switch.set_table, table))

    def remove_switch(self, name: str) -> None:
        """Removes a switch that nothing is connected to."""
        for home in self.homes:
            del home.switches[name]
        del self.tables[name]
        self.runtime.segments.drop_table(name)

    def set_hops(self, hops: Sequence[HopConfig]) -> None:
        """Makes these the one-way links. Raises VnicError."""
        self.wiring.set(hops)
        self.wire()

    def add_link(self, config: LinkConfig) -> None:
        """Joins two switches. All or nothing. Raises VnicError."""
        with ExitStack() as undo:
            if len(config.numbers) != 2:
                first = self._free_number(f"link {config.name}")
                config.numbers = [first, self._free_number(f"link {config.name}", [first])]
            if not config.plain:
                config.engine = self.config.engine_index(config.engine or 0)
            directory = self.config.directory or None
            link = LinkNode(
                config,
                self.homes,
                directory,
                lambda target: self.runtime.segments.ring(target, undo),
            )
            self._plug(link, undo)
            self.links[link.name] = link
            undo.pop_all()

    def change_link(self, name: str, config: LinkConfig) -> None:
        """Changes the settings of a link, between the same switches and in the same home. Raises
        VnicError, and then nothing has changed."""
        before = self.links[name]
        directory = self.config.directory or None
        link = LinkNode(
            config,
            self.homes,
            directory,
            lambda target: self.runtime.segments.ring(target, ExitStack()),
            before,
        )
        self._replace(before, link)
        self.links[name] = link

    def remove_link(self, name: str, *, forgets: bool = True) -> None:
        """Removes a link; the packets that it holds go on to the switch that it leads to. forgets:
        the switches forget the addresses behind it; False: it is added again between them."""
        link = self.links.pop(name)
        with self.at_once():
            for index, each in enumerate(self.homes):
                each.drain(link.holders_in(index))
            self._unplug([link])
        for port in link.ports:
            if forgets:
                self._forget_port(port.switch, port.number)
            if port.ring is not None:
                other = next(each for each in link.ports if each is not port)
                self.runtime.segments.drop_ring(f"{name}/{other.switch}")

    def detach(self, name: str, why: str = "", *, waits: bool = False) -> None:
        """Removes a NIC from the graph and its interface from the container; frames on their way to
        it are dropped and counted. waits: its settings stay, and it is attached again when its
        namespace returns. A waiting NIC stops waiting."""
        with self.runtime.lock:
            self.runtime.check_open()
            config = (
                self.config.nics[name] if name in self.watching.waiting else self.get(name).config
            )
            before, hops = config.waiting, self.config.hops

            def keep() -> None:
                self.config.nics[name], config.waiting = config, before
                self.config.hops = hops

            config.waiting = why if waits else ""
            if not waits:
                del self.config.nics[name]
                self.config.hops = [hop for hop in hops if name not in (hop.source, hop.target)]
            self.runtime.remember(undo=keep)
            self.wiring.set(self.config.hops)
            if name in self.attached:
                self.take_out(name)
            self.watching.look()
            said = {**({"why": why} if why else {}), **({"waits": True} if waits else {})}
            log.info("detached", nic=name, **said)
            self.runtime.emit(
                "detached",
                nic=name,
                **said,
                **({} if config.owner is None else {"owner": int(config.owner)}),
            )

    def take_out(self, *names: str) -> None:
        """Removes NICs from the network and their interfaces from the containers; drops and counts
        the frames on their way to them."""
        if not names:
            return
        leaving = [self.attached[name] for name in names]
        self.captures.end_with(*names)
        for attached in leaving:
            self.watching.end(attached)
            self.guests.end(attached)
        with self.at_once():
            self.wire(names)
            self._unplug(leaving)
        self.runtime.accounts.retire(*names)
        for attached in leaving:
            name = attached.config.name
            del self.attached[name]
            self._forget_port(attached.port.switch, attached.number)
            attached.nic.close()
        for attached in leaving:
            self._devices.forget(attached.config.name)
            if attached.port.ring is not None:
                self.runtime.segments.drop_ring(attached.config.name)

    def change(self, name: str, config: NicConfig) -> None:
        """Changes settings of a NIC that its interface does not depend on. Unchanged elements keep
        their packets and counts. Raises VnicError, and then nothing has changed."""
        before = self.attached[name]
        with ExitStack() as undo:
            own = kind_of(config.kind).LIVE - LIVE
            if any(getattr(before.config, each) != getattr(config, each) for each in own):
                undo.callback(self._alter, before, before.config)
                self._alter(before, config)
            self._change(before, config)
            undo.pop_all()
        after = self.attached[name]
        config.number, config.engine = after.number, after.home

    def _alter(self, attached: NicNode, config: NicConfig) -> None:
        """Applies the settings that only NICs of this kind can change live, such as an MTU."""
        port_too = attached.nic.change(config)
        self.homes[attached.home].engine.call(port_too)

    def _change(self, before: NicNode, config: NicConfig) -> None:
        """Applies the settings that NICs of all kinds can change live."""
        if config.engine is not None and self.config.engine_index(config.engine) != before.home:
            self._move(before, config)
        elif (
            self._differs(before.config, config)
            or config.egress.elements
            or config.ingress.elements
        ):
            self._rewire(before, config)
        else:
            for way, settings in ((before.egress, config.egress), (before.ingress, config.ingress)):
                way.config = settings
            before.config = config
            before.settle()
            self._activate(before)

    def _differs(self, before: NicConfig, after: NicConfig) -> bool:
        """Whether other elements, or other connections, are needed."""
        ways = (before.egress, after.egress), (before.ingress, after.ingress)
        return (
            before.malformed != after.malformed
            or self.attached[before.name].port.switch != self._switch(after)
            or any(
                (old.queue, written(old.elements)) != (new.queue, written(new.elements))
                for old, new in ways
            )
        )

    def _rewire(self, before: NicNode, config: NicConfig) -> None:
        """Rebuilds a NIC around its device; unchanged elements are taken over."""
        name, port = config.name, SwitchPort(self._switch(config), before.number, before.home)
        port.ring = before.port.ring
        attached = NicNode(
            config,
            port,
            before.nic,
            self.config.directory or None,
            engines=len(self.homes),
            before=before,
        )
        if (share := self._shares.get(str(config.owner))) is not None:
            attached.join(share)
        attached.egress.chain.join(self.wiring.behind(attached))
        with self.at_once():
            self._replace(before, attached, self.captures.of(name))
            self.attached[name] = attached
            self.wire()
        if port.switch != before.port.switch:
            self._forget_port(before.port.switch, port.number)

    def _move(self, before: NicNode, config: NicConfig) -> None:
        """Moves a NIC to another engine. The packets in its shapers are dropped and counted; its
        container sees no change."""
        name = config.name
        self.captures.end_with(name)
        self.wire([name])
        self._unplug([before])
        try:
            self._place(before, config)
        except BaseException:
            self._place(before, before.config)
            raise
        if before.port.switch != self.attached[name].port.switch:
            self._forget_port(before.port.switch, before.number)

    def _place(self, before: NicNode, config: NicConfig) -> None:
        """Connects the device of a NIC that was unplugged."""
        with ExitStack() as undo:
            port = SwitchPort(self._switch(config), before.number, self._home(config))
            port.ring = before.port.ring
            directory = self.config.directory or None
            attached = NicNode(
                config, port, before.nic, directory, engines=len(self.homes), watch=before.watch
            )
            self._plug_nic(attached, undo)
            self.attached[config.name] = attached
            undo.pop_all()
        self.wire()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Changes every engine's graph once, at the end of a `with`, between two batches; within
        another such `with`, at the end of that."""
        outermost, self._gathering = not self._gathering, True
        try:
            with ExitStack() as stack:
                for home in self.homes:
                    stack.enter_context(home.at_once())
                try:
                    yield
                finally:
                    if outermost and self._unwired is not None:
                        without, self._unwired = self._unwired, None
                        self.wiring.update(without)
        finally:
            if outermost:
                self._gathering = False
                leaving, self._leaving = self._leaving, []
                stale, self._stale = self._stale, []
                if leaving:
                    self._leave_homes(leaving)
                for switch, number in stale:
                    self._forget_port(switch, number)

    def wire(self, without: Collection[str] = ()) -> None:
        """Puts the one-way links in place. without: NICs that are about to leave."""
        if self._gathering:
            self._unwired = {*(self._unwired or ()), *without}
        else:
            self.wiring.update(without)

    def _forget_port(self, switch: str, number: int) -> None:
        """Forgets the addresses that were learned at a port, once no engine learns there any
        more."""
        if self._gathering:
            self._stale.append((switch, number))
        elif switch in self.tables:
            self.tables[switch].forget_port(number)

    def get(self, name: str, session: Session | None = None) -> NicNode:
        """An attached NIC; for `session` only one of its user. Raises ConfigError,
        NotPermittedError."""
        restricted = session is not None and not session.is_owner
        attached = self.attached.get(name)
        if attached is None and not restricted and name in self.watching.waiting:
            raise ConfigError(
                f"nic {name}: is not attached; it waits for a network namespace at "
                f"{self.config.nics[name].netns}"
            )
        if attached is None:
            known = (
                ", ".join(self.names(session.uid if session is not None and restricted else None))
                or "none is"
            )
            raise ConfigError(f"nic {name}: is not attached; attached: {known}", code="not-found")
        if session is not None and restricted and attached.config.owner != session.uid:
            raise NotPermittedError(
                f"nic {name}: is not {session.who}'s; only its owner and the instance's may see "
                "and change it"
            )
        return attached

    # -- settings ----------------------------------------------------------------------------------

    def set_rate(self, name: str, /, **limits: int | None) -> dict[str, Any]:
        """Sets egress_bps and/or ingress_bps of a NIC at once, in bit/s of layer-2 frames; None
        lifts a limit."""
        with self.runtime.lock:
            self.runtime.check_open()
            attached = self.get(name)
            ways = {"egress_bps": attached.config.egress, "ingress_bps": attached.config.ingress}
            shapers = {"egress_bps": attached.egress.shaper, "ingress_bps": attached.ingress.shaper}
            before = {direction: ways[direction].rate for direction in limits}

            def keep(rates: dict[str, Rate | None]) -> None:
                for direction, rate in rates.items():
                    ways[direction].rate = rate

            keep(
                {direction: None if bps is None else Rate(bps) for direction, bps in limits.items()}
            )
            self.runtime.remember(undo=lambda: keep(before))
            for direction, rate_bps in limits.items():
                shapers[direction].set_rate(rate_bps)  # goes through the engine's mailbox by itself
            self.runtime.emit("rate", nic=name, **limits)
            return self._status(attached)

    def set_link(self, name: str, up: bool) -> dict[str, Any]:
        """Raises or cuts the link: sets the carrier that the container sees, and forwards frames
        for the NIC or stops that."""
        with self.runtime.lock:
            self.runtime.check_open()
            attached = self.get(name)
            before, attached.config.link_up = attached.config.link_up, up
            self.runtime.remember(undo=lambda: setattr(attached.config, "link_up", before))
            port = attached.port
            for each in self.homes:
                if up:
                    each.activate(port.switch, port.number, attached.config.vlan, attached.source)
                else:
                    each.deactivate(port.switch, port.number)
            attached.nic.set_carrier(up and not attached.cut)
            self.runtime.emit("link", nic=name, link="up" if up else "down")
            return self._status(attached)

    def settle_carrier(self, attached: NicNode, cut: bool) -> None:
        """A policy's scenario cuts the carrier that the container sees, or lets it be what
        `set_link` says. Raises VnicError. The caller holds the lock."""
        if attached.cut != cut:
            attached.nic.set_carrier(attached.config.link_up and not cut)
            attached.cut = cut

    def set_spoof_check(self, name: str, on: bool) -> dict[str, Any]:
        """Switches the spoof check on or off from the next batch on: it drops frames that a NIC's
        container sends from another MAC address than the NIC's."""
        with self.runtime.lock:
            self.runtime.check_open()
            attached = self.get(name)
            before, attached.config.spoof_check = attached.config.spoof_check, on
            self.runtime.remember(undo=lambda: setattr(attached.config, "spoof_check", before))
            self._activate(attached)
            return self._status(attached)

    def _activate(self, thing: NicNode | LinkNode) -> None:
        """Applies the configuration of a NIC or link to its open ports."""
        for each in self.homes if thing.is_up else []:
            for port in thing.ports:
                each.activate(port.switch, port.number, thing.config.vlan, thing.source)

    def call_at(self, name: str, function: Callable[[], object]) -> None:
        """Runs a function on the thread of a NIC's engine, between two batches."""
        with self.runtime.lock:
            self.homes[self.get(name).home].engine.call(function)

    # -- captures ----------------------------------------------------------------------------------

    def start_capture(
        self, point: str, target: str | int, snaplen: int = 262144, uid: int | None = None
    ) -> int:
        """Copies the packets that pass `point` (a NIC's name, or one of its elements') to a file or
        pipe, by path or descriptor, for user `uid` if not for the instance's owner; returns the
        capture's number."""
        with self.runtime.lock:
            self.runtime.check_open()
            return self.captures.start(point, target, snaplen, uid)

    def _drop_inherited(self) -> None:
        """After a crash: deletes the stored state of NICs that the previous worker was attaching or
        detaching when it died, and of its captures, whose clients have disconnected."""
        if self.runtime.keeping is not None and self.runtime.role == "crash":
            self.runtime.keeping.drop_inherited(
                "nic/", "guest/", "ring/", "segment/table/", "capture/"
            )

    def nic_of(self, point: str) -> str:
        """The NIC of that name, or the owner of the element of that name; else the point's first
        part, for the error message."""
        if point in self.attached:
            return point
        elements = (element for engine in self.runtime.engines for element in engine.elements)
        return next(
            (element.owner for element in elements if element.name == point and element.owner),
            point.partition(".")[0],
        )

    def stop_capture(self, number: int) -> Future[dict[str, Any]]:
        """Ends a capture; the future's result has the numbers of packets captured and missed."""
        with self.runtime.lock:
            self.runtime.check_open()
            return self.captures.end(number)

    def ended(self, session: Session) -> None:
        with self.runtime.lock:
            self.captures.client_gone(session)

    # -- upgrade -----------------------------------------------------------------------------------

    def end_upgrade(self) -> None:
        self.captures.upgrade_failed()
        self.watching.settle()
        self.watching.look()
        self.guests.resume()

    def claim(self, captures: set[int]) -> None:
        self.captures.keep_only(captures)
        self.watching.claim()
        self.guests.over_all()

    def let_go(self) -> None:
        self.captures.let_go()
        self.guests.let_go()

    def save(self) -> dict[str, Any]:
        return {"captured": self.captures.count}

    def load(self, state: dict[str, Any]) -> None:
        self.captures.count = int(state.get("captured", 0))

    # -- status and counters -----------------------------------------------------------------------

    def _status(self, attached: NicNode) -> dict[str, Any]:
        return {
            "name": attached.config.name,
            "number": attached.number,
            "engine": self.homes[attached.home].engine.name,
            "on": attached.port.switch,
            "owner": None if attached.config.owner is None else int(attached.config.owner),
            **attached.nic.status(),
            "link": "up" if attached.config.link_up and not attached.cut else "down",
            "spoof_check": attached.source is not None,
            "egress_bps": attached.egress.shaper.rate_bps,
            "ingress_bps": attached.ingress.shaper.rate_bps,
            "egress_queue_bytes": attached.egress.shaper.queue_limit_bytes,
            "ingress_queue_bytes": attached.ingress.shaper.queue_limit_bytes,
        }

    def status(self) -> dict[str, Any]:
        names = {attached.number: attached.config.name for attached in self.attached.values()}
        links = {
            number: link.name for link in self.links.values() for number in link.config.numbers
        }
        entries = [
            {
                **entry,
                "switch": switch,
                "nic": names.get(entry["port"]),
                "link": links.get(entry["port"]),
            }
            for switch, table in self.tables.items()
            for entry in table.entries()
        ]
        return {
            "nics": [self._status(attached) for attached in self.attached.values()],
            "waiting": self.watching.status(),
            "links": [self._link_status(link) for link in self.links.values()],
            "nodes": [
                {
                    "name": node.name,
                    "element": node.config.element,
                    "engine": self.homes[node.home].engine.name,
                }
                for node in self.wiring.nodes.values()
            ],
            "hops": [hop.text for hop in self.config.hops],
            "switch": {
                "capacity": sum(table.capacity for table in self.tables.values()),
                "entries": entries,
            },
        }

    def _link_status(self, link: LinkNode) -> dict[str, Any]:
        home = link.ports[0].home
        return {
            "name": link.name,
            "ends": list(link.config.ends),
            "vlan": None if link.config.vlan is None else msgspec.to_builtins(link.config.vlan),
            "engine": None if home is None else self.homes[home].engine.name,
            "to": {
                end: {"bps": way.shaper.rate_bps, "queue_bytes": way.shaper.queue_limit_bytes}
                for end, way in link.ways.items()
            },
        }

    def statistics(self, name: str | None = None) -> list[dict[str, Any]]:
        """Of one NIC or all: the counters of its queues, and the packets that its queues
        dropped."""
        chosen = {name: self.get(name)} if name is not None else self.attached
        drops = self.queue_drops(chosen)
        return [
            {
                "name": each,
                "queues": attached.nic.queue_statistics(),
                "queue_drops": drops.get(each),
            }
            for each, attached in chosen.items()
        ]

    def queue_drops(self, chosen: dict[str, NicNode] | None = None) -> dict[str, int | None]:
        """By NIC (by default of all): packets of its container that its queues had no room for, as
        the kernel counts them; None if it does not count them."""
        attached = self.attached if chosen is None else chosen
        return {name: each.nic.queue_drops() for name, each in attached.items()}

    def accounts(self) -> dict[str, int]:
        memory = dict.fromkeys(self.attached, 0)
        for name, each in self.attached.items():
            if each.port.ring is not None:
                memory[name] += RING_BYTES + self.runtime.pool.memory_bytes(each.port.ring.peek())
        for name, captured in self.captures.memory().items():
            if name in memory:
                memory[name] += captured
        return memory

    def close(self) -> None:
        self.watching.close()
        self.guests.close()
        self.take_out(*self.attached)

    def closed(self) -> None:
        self.captures.close()
        self._devices.stop()

"""`apply`: changes a running network to the one that a configuration describes, by their
difference.

Parts that both have stay as they are, with their queues, tables and counters. The other parts are
added, changed or removed in an order in which each step can be undone until the last. First new
NICs are made, since their interfaces may fail; then the configuration is stored, so that a worker
after a crash begins with the new one; then parts are made again, parts change in place, and at last
parts are removed. A failure undoes the steps so far and stores the old configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from dataplane.errors import ConfigError, VnicError
from shaping.policy.difference import differences, flat_policy
from vnic.api.log import Log
from vnic.config.copies import own_config
from vnic.config.schema import Config, HopConfig, LinkConfig, NicConfig
from vnic.config.topology import NetworkError, check
from vnic.config.written import written
from vnic.device.kinds.contract import Device
from vnic.device.kinds.registry import kind_of
from vnic.modules.host import Host
from vnic.modules.network import Network

# Parts of a configuration that cannot change while vnic runs.
SHAPE = ("shape", "shape_term")
FIXED = ("engines", "spin", "pool", "metrics", "modules", "clients", "host_interfaces")


log = Log("vnic")


@dataclass(frozen=True)
class Change:
    """A difference between two networks. fields: by path, the values before and after (None: none).
    remade: the NIC's interface is removed and made again."""

    kind: Literal["shape", "switch", "node", "link", "nic", "group"]
    name: str
    action: Literal["add", "remove", "change"]
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    remade: bool = False

    def __str__(self) -> str:
        return f"{self.action} {self.kind} {self.name}"

    def as_dict(self) -> dict[str, Any]:
        """The change in the form of the control API."""
        fields = [
            {"field": path, "before": before, "after": after}
            for path, (before, after) in self.fields.items()
        ]
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "remade": self.remade,
            "fields": fields,
        }


def prepared(running: Config, wanted: Config, nics: Network) -> Config:
    """A copy of `wanted`, completed from the running network: numbers of ports, engines that were
    chosen, waiting NICs, and the NICs whose container a client passed. Raises ConfigError for a
    network that cannot be built."""
    config = own_config(wanted)
    config.partial = running.partial
    term = running.shape_term
    if config.shape == running.shape and config.shape_term.began_ns is None:  # it goes on
        config.shape_term = msgspec.structs.replace(config.shape_term, began_ns=term.began_ns)
    if config.directory is None or not _has_classes(running):
        config.directory = config.directory or running.directory
    elif config.directory != running.directory:
        raise ConfigError(
            f"the elements and modules of this instance are in {running.directory}, and the file "
            f"is in {config.directory}: "
            "apply a file in the same directory"
        )
    for name, nic in config.nics.items():
        now = running.nics.get(name)
        if now is None:
            # `wanted` may be from the history: its number may be another NIC's by now
            nic.number = nic.began_ns = None
            continue
        if now.passed:
            raise ConfigError(
                f"nics.{name}: is the name of a NIC that a client attached; choose another one"
            )
        nic.number, nic.link_up, nic.waiting = now.number, now.link_up, now.waiting
        nic.began_ns = now.began_ns if (nic.read, nic.write) == (now.read, now.write) else None
        if nic.engine is None:
            nic.engine = now.engine
        else:
            nic.engine = config.engine_index(nic.engine)
    for name, now in running.nics.items():
        if now.passed:
            config.nics[name] = now
    for name, nic in config.nics.items():
        nics.restrict(nic)
        try:
            nic.on = config.switch_of(nic.on)
        except ConfigError as error:
            raise ConfigError(f"nics.{name}: {error}") from None
    for name, node in config.elements.items():
        same_node = running.elements.get(name)
        if node.engine is None and same_node is not None:
            node.engine = same_node.engine
        node.engine = config.engine_index(node.engine or 0)
    links = {link.name: link for link in running.links}
    for link in config.links:
        same = links.get(link.name)
        link.numbers = []
        if same is not None and same.ends == link.ends:
            link.numbers = list(same.numbers)
            if link.engine is None and not link.plain:
                link.engine = same.engine
        if not link.plain:
            link.engine = config.engine_index(link.engine or 0)
    try:
        check(config)
    except NetworkError as error:
        field = ".".join(map(str, error.place))
        raise ConfigError(f"{field}: {error.text}", field=field) from None
    return config


def _has_classes(config: Config) -> bool:
    """Whether modules or elements are searched for in the configuration's directory."""
    ways = [way for nic in config.nics.values() for way in (nic.egress, nic.ingress)]
    ways += [way for link in config.links for way in link.to.values()]
    pending = [element for way in ways for element in way.elements]
    for element in pending:
        pending += [each for branch in element.branches.values() for each in branch]
    classes = [element.element for element in pending]
    classes += [node.element or "" for node in config.elements.values()]
    return bool(config.modules) or any(":" in each for each in classes)


def difference(running: Config, wanted: Config) -> list[Change]:
    """The changes from `running` to `wanted`. Raises ConfigError for a part that cannot change
    while vnic runs."""
    for word in FIXED:
        before, after = written(getattr(running, word)), written(getattr(wanted, word))
        if word == "modules":  # modules may change their own settings
            before, after = (
                [each.module for each in config.modules] for config in (running, wanted)
            )
        if before != after:
            raise ConfigError(
                f"{word}: cannot change while vnic runs; use `vnic down` and `vnic up` for that"
            )
    if list(running.groups) != list(wanted.groups):
        raise ConfigError(
            "groups: cannot come or go while vnic runs; use `vnic down` and `vnic up` for that"
        )
    changes = list(_compare_policies(running, wanted))
    changes += _compare("group", running.groups, wanted.groups)
    changes += _compare("switch", running.switches, wanted.switches)
    changes += _compare("node", running.elements, wanted.elements)
    changes += _compare("link", _links(running), _links(wanted))
    changes += _compare("link", _hops(running), _hops(wanted))
    changes += _compare("nic", running.nics, wanted.nics)
    return changes


def _compare_policies(running: Config, wanted: Config) -> Iterator[Change]:
    """The policy's own difference; that of the elements which follow from it is the NICs' and
    links'."""
    before, after = _policy_fields(running), _policy_fields(wanted)
    fields = {path: (was, will) for path, was, will in differences(before, after)}
    if fields:
        yield Change(
            "shape", "policy", "add" if not before else "change" if after else "remove", fields
        )


def _policy_fields(config: Config) -> dict[str, Any]:
    if config.shape is None:
        return {}
    # without the contents of traces, which the digests of lines stand for
    shape = {**config.shape, "traces": {}}
    return {**flat_policy(shape), **config.shape_term.fields("scenario" in config.shape)}


def _links(config: Config) -> dict[str, LinkConfig]:
    return {str(link.name): link for link in config.links}


def _hops(config: Config) -> dict[str, HopConfig]:
    return {hop.text: hop for hop in config.hops}


def _compare(kind: Any, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            yield Change(kind, name, "remove")
        elif name not in before:
            yield Change(kind, name, "add")
        elif before[name] is not after[name] and before[name] != after[name]:
            old, new = _flat(written(before[name])), _flat(written(after[name]))
            paths = [
                path
                for path in (*old, *(path for path in new if path not in old))
                if old.get(path) != new.get(path)
            ]
            fields = {path: (old.get(path), new.get(path)) for path in paths}
            if fields:
                live = kind_of(after[name].kind).LIVE if kind == "nic" else ()
                remade = kind == "nic" and any(
                    path.partition(".")[0] not in live for path in fields
                )
                yield Change(kind, name, "change", fields, remade)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by path."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = item
    return found


class Applying:
    """One `apply`: `runtime`'s configuration becomes `wanted`, which `prepared` returned, by
    `changes`."""

    def __init__(self, runtime: Host, nics: Network, wanted: Config, changes: list[Change]) -> None:
        self._runtime, self._nics, self._wanted = runtime, nics, wanted
        self._changes = changes
        changed = {(change.kind, change.name) for change in changes}
        # Unchanged parts keep their objects, which the running network refers to.
        for name, nic in runtime.config.nics.items():
            if name in wanted.nics and ("nic", name) not in changed:
                nic.where = wanted.nics[name].where
                wanted.nics[name] = nic
        for name, node in runtime.config.elements.items():
            if name in wanted.nodes and ("node", name) not in changed:
                node.where = wanted.nodes[name].where
                wanted.nodes[name] = node
        links = _links(runtime.config)
        wanted.links = [
            link if ("link", link.name) in changed else links[str(link.name)]
            for link in wanted.links
        ]
        self._before = copy.copy(runtime.config)
        self._again = self._made_again()
        self._new = [
            wanted.nics[name] for name in self._names("nic", "add") if name not in self._again
        ]
        self._reserved: list[NicConfig] = []
        self._devices: dict[str, Device] = {}  # of those, by name, until they are in the graph

    def reserve(self) -> None:
        """Before `open`: reserves the names, numbers and engines of the new NICs. Raises
        VnicError."""
        self._put(self._wanted)
        try:
            for config in self._new:
                config.waiting = ""
                self._nics.reserve(config)
                self._reserved.append(config)
        finally:
            self._put(self._before)

    def open(self) -> None:
        """Makes the interfaces of the new NICs, which containers can delay: without the runtime's
        lock. Raises VnicError."""
        for config in self._reserved:
            self._devices[config.name] = self._nics.open_device(config)

    def close(self) -> None:
        """At the end, in any case: removes the interfaces that are in no graph."""
        for config in self._reserved:
            self._nics.free(config)
            if (device := self._devices.pop(config.name, None)) is not None:
                self._nics.discard(config, device)

    def run(self) -> None:
        """Makes the changes, after `open`: all of them, or none and raises the error."""
        stored = False
        with ExitStack() as undo:
            undo.callback(self._runtime.accounts.settle)
            undo.callback(lambda: self._runtime.remember() if stored else None)
            undo.callback(self._put, self._before)
            self._put(self._wanted)
            self._add(undo)
            self._runtime.remember()
            stored = True
            self._remake(undo, self._again)
            self._change(undo)
            undo.pop_all()
        self._remove(self._again)
        self._runtime.accounts.settle()

    def _names(self, kind: str, action: str) -> list[str]:
        return [
            change.name
            for change in self._changes
            if (change.kind, change.action) == (kind, action)
        ]

    def _put(self, config: Config) -> None:
        """Replaces the parts of the running configuration that an apply changes, except groups."""
        for word in ("nics", "nodes", "links", "hops", "switch", "directory", *SHAPE):
            setattr(self._runtime.config, word, getattr(config, word))

    def _made_again(self) -> set[str]:
        """NICs whose interface is made again or takes the place of another one, which has to be
        removed first."""
        nics = self._before.nics
        remade = {
            change.name
            for change in self._changes
            if change.remade and change.name in self._nics.attached
        }
        going = {_place(nics[name]): name for name in (*self._names("nic", "remove"), *remade)}
        coming = {_place(self._wanted.nics[name]): name for name in self._names("nic", "add")}
        for place in going.keys() & coming.keys():
            remade |= {going[place], coming[place]}
        return remade

    def _add(self, undo: ExitStack) -> None:
        nics = self._nics
        for name in self._names("switch", "add"):
            nics.add_switch(name, self._wanted.switches[name])
            undo.callback(nics.remove_switch, name)
        for name in self._names("node", "add"):
            nics.wiring.add(name, self._wanted.elements[name])
            undo.callback(nics.wiring.remove, name)
        undo.callback(nics.set_hops, self._before.hops)
        new = {*self._names("node", "add"), *(config.name for config in self._new)}
        # Before the NICs, so that none of their packets bypasses the elements of their one-way
        # links.
        nics.set_hops(
            [*self._before.hops, *(hop for hop in self._wanted.hops if hop.source in new)]
        )
        with nics.at_once():
            for config in self._new:
                nics.enter(config, self._devices[config.name])
                del self._devices[config.name]
                undo.callback(nics.take_out, config.name)

    def _remake(self, undo: ExitStack, names: set[str]) -> None:
        nics, before = self._nics, self._before.nics
        for name in sorted(names & nics.attached.keys()):
            nics.take_out(name)
            undo.callback(nics.put_in, before[name])
        for name in [name for name in self._wanted.nics if name in names]:
            self._attach(undo, name)

    def _attach(self, undo: ExitStack, name: str) -> None:
        config = self._wanted.nics[name]
        config.waiting = ""
        try:
            self._nics.put_in(config)
        except BaseException:
            self._nics.forget(config)
            raise
        undo.callback(self._nics.take_out, name)

    def _change(self, undo: ExitStack) -> None:
        """Changes groups; moves NICs to other engines; then makes all other changes in one step of
        each engine."""
        nics, config = self._nics, self._runtime.config
        before, after = _links(self._before), _links(self._wanted)
        for change in self._changes:
            if change.kind == "group":
                words = {path.partition(".")[0] for path in change.fields}
                was, will = (
                    written(config.groups[change.name]),
                    written(self._wanted.groups[change.name]),
                )
                undo.callback(
                    self._runtime.change_group, change.name, {word: was.get(word) for word in words}
                )
                self._runtime.change_group(change.name, {word: will.get(word) for word in words})
        changed = [
            change for change in self._changes if change.action == "change" and not change.remade
        ]
        here = [each for each in changed if each.kind == "nic" and each.name in nics.attached]
        nodes = [each for each in changed if each.kind == "node"]
        links = [each.name for each in changed if each.kind == "link"]
        moved = [name for name in links if _home(before[name]) != _home(after[name])]
        for change in [change for change in here if "engine" in change.fields]:
            self._change_nic(undo, change.name)
        for change in [change for change in nodes if "engine" in change.fields]:
            undo.callback(nics.wiring.move, change.name, self._before.elements[change.name])
            nics.wiring.move(change.name, self._wanted.elements[change.name])
        # A link with other ends has elements of the same names in the same engine: the old ones are
        # removed first.
        turned = [name for name in moved if before[name].ends != after[name].ends]
        for name in turned:
            nics.remove_link(name)
            undo.callback(nics.add_link, before[name])
        with nics.at_once():
            for change in [change for change in here if "engine" not in change.fields]:
                self._change_nic(undo, change.name)
            # Undone last: an old element may have outputs that the new one lacks.
            undo.callback(nics.set_hops, self._before.hops)
            for change in [change for change in nodes if "engine" not in change.fields]:
                undo.callback(nics.wiring.replace, change.name, self._before.elements[change.name])
                nics.wiring.replace(change.name, self._wanted.elements[change.name])
            nics.set_hops(self._wanted.hops)
            for name in self._names("switch", "change"):
                undo.callback(nics.change_switch, name, self._before.switches[name])
                nics.change_switch(name, self._wanted.switches[name])
            for name in (
                *(name for name in moved if name not in turned),
                *(name for name in self._names("link", "remove") if name in before),
            ):
                nics.remove_link(name, forgets=name not in moved)
                undo.callback(nics.add_link, before[name])
            for name in [name for name in links if name not in moved]:
                undo.callback(nics.change_link, name, before[name])
                nics.change_link(name, after[name])
            added = [name for name in self._names("link", "add") if name in after]
            for name in (*moved, *added):
                nics.add_link(after[name])
                undo.callback(nics.remove_link, name)

    def _change_nic(self, undo: ExitStack, name: str) -> None:
        undo.callback(self._nics.change, name, self._nics.attached[name].config)
        self._nics.change(name, self._wanted.nics[name])

    def _remove(self, gone: set[str]) -> None:
        going = [
            name
            for name in self._names("nic", "remove")
            if name in self._nics.attached and name not in gone
        ]
        try:
            self._nics.take_out(*going)
        except VnicError as error:
            # the new network runs; the next worker drops interfaces that are stored too long
            log.warning("a NIC is gone, but the supervisor keeps its interface", why=str(error))
        for name in self._names("switch", "remove"):
            self._nics.remove_switch(name)
        for name in self._names("node", "remove"):
            self._nics.wiring.remove(name)
        self._nics.watching.look()


def _home(link: LinkConfig) -> tuple[Any, ...]:
    """The settings that decide in which engine a link's elements are."""
    return link.ends, None if link.plain else link.engine


def _place(nic: NicConfig) -> tuple[Any, ...]:
    return nic.pid, nic.netns, nic.interface

"""Qdiscs, classes and filters of devices, as tc(8) commands leave them.

Handles are numbers as in the kernel: the major number in the upper 16 bits, the minor one in the
lower. ROOT and the hooks of ingress and clsact have numbers of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dataplane.errors import ConfigError
from shaping.imports.notes import quoted, unsupported
from shaping.imports.quantities import hex_of

ROOT = 0xFFFFFFFF
INGRESS = 0xFFFFFFF1  # parent of the qdiscs ingress and clsact
HOOKS = 0xFFFF  # their major number
INGRESS_HOOK, EGRESS_HOOK = 0xFFFFFFF2, 0xFFFFFFF3
PREF_AUTO = 0xC000  # of the first filter without a preference; each later one gets one less
PREF_AUTO_LEAST = 0x8000
ONE_CLASS = ("netem", "tbf")
CHAIN_MOST = 8  # qdiscs one in the other
REMOVALS_MOST = 1000  # of a device: each searches all its objects


def handle_of(text: str) -> int:
    """A qdisc's handle such as 1: or 10:0, as a class id with the minor number 0. Raises
    ConfigError."""
    major, _, minor = text.partition(":")
    number = hex_of("handle", major, 0xFFFF)
    if minor and hex_of("handle", minor, 0xFFFF):
        raise ConfigError(f"handle {quoted(text)}: expected a major number such as 1:")
    return number << 16


def classid_of(text: str) -> int:
    """A class id such as 1:10, root or none. Raises ConfigError."""
    if text == "root":
        return ROOT
    if text == "none":
        return 0
    major, colon, minor = text.partition(":")
    if not colon:
        return hex_of("class", major)
    upper = hex_of("class", major, 0xFFFF) if major else 0
    return upper << 16 | (hex_of("class", minor, 0xFFFF) if minor else 0)


def id_text(number: int) -> str:
    """1: or 1:10"""
    if number == ROOT:
        return "root"
    return f"{number >> 16:x}:" + (f"{number & 0xFFFF:x}" if number & 0xFFFF else "")


@dataclass
class Qdisc:
    """options: as its kind's parser returns them, or the words of an unknown kind; size: what
    `stab` adds (bytes, least length, cells); name: from a comment behind the command"""

    where: str
    kind: str
    handle: int
    parent: int
    options: Any = None
    size: tuple[int, int, str] | None = None
    name: str = ""


@dataclass
class TcClass:
    """name: from a comment behind the command."""

    where: str
    kind: str
    classid: int
    parent: int
    options: Any = None
    name: str = ""


@dataclass
class Filter:
    """A filter: what it matches, and where it leads to.

    match     options as the kind's parser returns them
    flowid    class id; 0: none
    redirect  device to which packets are sent instead
    police    (rate in bit/s, burst in bytes) beyond which packets are dropped
    verdict   drop or pass; "": none
    broken    what of it cannot be imported
    """

    where: str
    kind: str
    parent: int
    pref: int
    protocol: str
    match: Any = None
    handle: str = ""
    flowid: int = 0
    redirect: str = ""
    police: tuple[int, int] | None = None
    verdict: str = ""
    broken: ConfigError | None = None
    name: str = ""
    was_auto: bool = False


@dataclass
class Device:
    """One device. checked: commands are refused as the kernel refuses them; a listing has its
    objects in any order."""

    name: str
    checked: bool = True
    qdiscs: dict[int, Qdisc] = field(default_factory=dict)  # by parent
    handles: dict[int, Qdisc] = field(default_factory=dict)
    classes: dict[int, TcClass] = field(default_factory=dict)
    filters: dict[int, list[Filter]] = field(default_factory=dict)  # by parent
    _removals: int = 0
    _children: dict[int, list[int]] = field(default_factory=dict)  # class ids, by parent
    _auto_least: dict[int, int] = field(default_factory=dict)  # by the parent of filters

    # -- commands ----------------------------------------------------------------------------------

    def add_qdisc(self, verb: str, qdisc: Qdisc) -> None:
        """Raises ConfigError."""
        there = self.qdiscs.get(qdisc.parent)
        if verb == "change":
            if there is None or there.kind != qdisc.kind:
                raise ConfigError(f"there is no {qdisc.kind} to change: expected tc qdisc add")
            there.options, there.size = qdisc.options, qdisc.size or there.size
            there.name = qdisc.name or there.name
            return
        if there is not None and verb == "add" and self.checked:
            raise ConfigError(
                f"{id_text(qdisc.parent)} has a qdisc already, {there.kind} of {there.where}: "
                "expected tc qdisc replace, or tc qdisc del before"
            )
        if self.checked:
            self._check_parent(qdisc)
            other = self.handles.get(qdisc.handle)
            if other is not None and other is not there:
                raise ConfigError(
                    f"handle {id_text(qdisc.handle)} is that of the qdisc of {other.where}: "
                    "expected another one"
                )
        if there is not None:
            if there.kind == qdisc.kind and qdisc.handle in (0, there.handle):
                there.options, there.size = qdisc.options, qdisc.size
                there.name = qdisc.name or there.name
                return
            self.remove_qdisc(qdisc.parent)
        self.qdiscs[qdisc.parent] = qdisc
        if qdisc.handle:
            self.handles[qdisc.handle] = qdisc

    def _check_parent(self, qdisc: Qdisc) -> None:
        parent = qdisc.parent
        if parent in (ROOT, INGRESS):
            return
        above = self.handles.get(parent & 0xFFFF0000)
        if above is None:
            raise ConfigError(f"parent {id_text(parent)}: there is no qdisc {id_text(parent)}")
        if above.kind in ("htb", "hfsc") and parent not in self.classes:
            raise ConfigError(f"parent {id_text(parent)}: there is no such class")

    def remove_qdisc(self, parent: int) -> None:
        """Removes a qdisc with all below it; nothing happens where there is none."""
        if parent not in self.qdiscs:
            return
        self._count_removal()
        waiting = [parent]
        gone: set[int] = set()
        while waiting:
            qdisc = self.qdiscs.pop(waiting.pop(), None)
            if qdisc is None:
                continue
            gone.add(qdisc.handle >> 16)
            self.handles.pop(qdisc.handle, None)
            if qdisc.handle:
                below = [each for each in self.qdiscs if each >> 16 == qdisc.handle >> 16]
                waiting += [each for each in below if each not in (ROOT, INGRESS)]
        self.classes = {key: each for key, each in self.classes.items() if key >> 16 not in gone}
        self._children = {
            key: [each for each in below if each >> 16 not in gone]
            for key, below in self._children.items()
        }
        majors = gone | ({0} if parent == ROOT else {HOOKS} if parent == INGRESS else set())
        self.filters = {key: each for key, each in self.filters.items() if key >> 16 not in majors}

    def _count_removal(self) -> None:
        self._removals += 1
        if self._removals > REMOVALS_MOST:
            raise ConfigError(
                f"more than {REMOVALS_MOST} removals: expected the result, as tc qdisc show, "
                "tc class show and tc filter show print it"
            )

    def add_class(self, verb: str, each: TcClass) -> None:
        """Raises ConfigError."""
        there = self.classes.get(each.classid)
        if there is not None and verb != "add":
            there.options, there.name = each.options, each.name or there.name
            return
        if self.checked:
            if verb == "change":
                raise ConfigError(f"class {id_text(each.classid)}: there is no such class")
            if there is not None:
                raise ConfigError(
                    f"class {id_text(each.classid)} is there already, of {there.where}: expected "
                    "tc class change or replace"
                )
            self._check_class(each)
        if there is None:
            self._children.setdefault(self.parent_of(each), []).append(each.classid)
        self.classes[each.classid] = each

    def _check_class(self, each: TcClass) -> None:
        if each.parent == ROOT:
            above = self.qdiscs.get(ROOT)
        else:
            above = self.handles.get(each.parent & 0xFFFF0000)
        if above is None or above.kind != each.kind:
            raise ConfigError(
                f"parent {id_text(each.parent)}: there is no qdisc {each.kind} for this class"
            )
        if each.classid >> 16 != above.handle >> 16:
            raise ConfigError(
                f"class {id_text(each.classid)}: expected the major number of its qdisc, "
                f"{id_text(above.handle)}"
            )
        if each.parent != ROOT and each.parent & 0xFFFF and each.parent not in self.classes:
            raise ConfigError(f"parent {id_text(each.parent)}: there is no such class")

    def parent_of(self, each: TcClass) -> int:
        """The class or, as number without minor part, the qdisc that a class is below."""
        return each.classid & 0xFFFF0000 if each.parent == ROOT else each.parent

    def remove_class(self, classid: int) -> None:
        each = self.classes.pop(classid, None)
        if each is not None:
            self._count_removal()
            self._children[self.parent_of(each)].remove(classid)
            self.remove_qdisc(classid)

    def add_filter(self, verb: str, each: Filter) -> None:
        if each.parent in (0, ROOT):
            each.parent = self.root.handle if self.root is not None else 0
        elif (
            self.checked
            and each.parent >> 16 != HOOKS
            and each.parent & 0xFFFF0000 not in self.handles
        ):
            raise ConfigError(
                f"parent {id_text(each.parent)}: there is no qdisc {id_text(each.parent)}"
            )
        if each.pref == 0:
            least = self._auto_least.get(each.parent, PREF_AUTO + 1)
            each.pref, each.was_auto = max(least - 1, PREF_AUTO_LEAST), True
        if each.pref >= PREF_AUTO_LEAST:
            least = self._auto_least.get(each.parent, each.pref)
            self._auto_least[each.parent] = min(least, each.pref)
        if verb != "add" and each.handle:
            self.remove_filters(each.parent, each.pref, each.protocol, each.handle)
        self.filters.setdefault(each.parent, []).append(each)

    def remove_filters(self, parent: int, pref: int, protocol: str, handle: str) -> None:
        """Removes filters of a parent; 0 and "" stand for any."""
        if parent not in self.filters:
            return
        self._count_removal()
        self.filters[parent] = [
            each for each in self.filters[parent] if (pref and each.pref != pref)
            or (protocol and each.protocol != protocol) or (handle and each.handle != handle)
        ]  # fmt: skip

    # -- reading -----------------------------------------------------------------------------------

    @property
    def root(self) -> Qdisc | None:
        return self.qdiscs.get(ROOT)

    def below(self, parent: int) -> Iterator[TcClass]:
        """The classes below a class or a qdisc's handle, in the order in which they were added."""
        for classid in self._children.get(parent, ()):
            yield self.classes[classid]

    def child(self, qdisc: Qdisc) -> Qdisc | None:
        """The qdisc in a qdisc of ONE_CLASS."""
        if not qdisc.handle:
            return None
        for minor in (1, 0):
            if (found := self.qdiscs.get(qdisc.handle | minor)) is not None:
                return found
        return None

    def chain(self, classid: int) -> Iterator[Qdisc]:
        """The qdiscs in a class or at the root, each in the one before it, which has one class."""
        qdisc = self.qdiscs.get(classid)
        for _ in range(CHAIN_MOST):
            if qdisc is None:
                return
            yield qdisc
            qdisc = self.child(qdisc) if qdisc.kind in ONE_CLASS else None
        if qdisc is not None:
            raise unsupported("more qdiscs one in the other", f"expected at most {CHAIN_MOST}")

    def filters_of(self, parent: int) -> list[Filter]:
        """In the order in which the kernel tries them."""
        found = list(self.filters.get(parent, ()))
        if self.root is not None and parent == self.root.handle and parent:
            found += self.filters.get(0, ())  # of a listing that leaves the parent out
        return sorted(found, key=lambda each: each.pref)


class Devices(dict[str, Device]):
    """Devices by name; names the first that a file mentions first."""

    def __init__(self, *, checked: bool = True) -> None:
        super().__init__()
        self.checked = checked

    def of(self, name: str) -> Device:
        if name not in self:
            self[name] = Device(name, self.checked)
        return self[name]

    def join_unnamed(self) -> None:
        """Gives what has no name, as `tc class show dev eth0` prints it, to the one device that
        has a name and is no target of another's ingress. Nothing happens where there are several,
        or none."""
        unnamed = self.get("")
        targets = {each.redirect for device in self.values()
                   for each in device.filters.get(INGRESS_HOOK, ())}  # fmt: skip
        named = [name for name, device in self.items() if name and device.qdiscs
                 and name not in targets]  # fmt: skip
        if unnamed is None or len(named) != 1:
            return
        device = self[named[0]]
        for qdisc in unnamed.qdiscs.values():
            device.qdiscs.setdefault(qdisc.parent, qdisc)
            device.handles.setdefault(qdisc.handle, qdisc)
        for each in unnamed.classes.values():
            device.add_class("replace", each)
        for parent, filters in unnamed.filters.items():
            device.filters.setdefault(parent, []).extend(filters)
        del self[""]

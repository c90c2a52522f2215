"""A tree of classes as htb, with u32 filters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dataplane.config.convert import shown
from dataplane.errors import ConfigError
from dataplane.units import format_rate, parse_rate, parse_size, parse_time
from shaping.class_settings import DISCIPLINES
from shaping.imports.export_filters import Matches, filters_of
from shaping.imports.filters import Rule
from shaping.imports.rules import EVERYTHING, disjoint, numbers_of
from shaping.imports.shell import LABEL
from shaping.overhead import ETHERNET_HEADER, Overhead, overhead_of
from shaping.settings import UNLIMITED

CLASSES_MOST = 60_000  # minor numbers are 16 bits
DEPTH_MOST = 7  # below the class for the whole; htb has 8 levels
TOO_DEEP = f"more than {DEPTH_MOST} levels: htb has no more"
FILTERS_MOST = 65_000  # preferences are 16 bits
FRAME_BYTES = 1514
COMPARED_MOST = 100_000  # pairs of rules of parts and classes
NETEM_MOST = 0x3FFF  # minor numbers of classes with netem, which gives the qdisc its handle
FAST_BPS = 10**12  # in place of no limit
PRIORITY = 4  # of a class that has none
CAKE_HOSTS = {"none": "flows", "source": "dual-srchost", "destination": "dual-dsthost",
              "both": "triple-isolate"}  # fmt: skip


class Tree:
    """One entry of `classes`. name: its key; nics: MAC addresses; cannot: takes a line on what tc
    cannot say. Raises ConfigError."""

    def __init__(
        self, name: str, data: Any, nics: Mapping[str, str], cannot: Callable[[str], None]
    ) -> None:
        self.name, self.nics, self.cannot = name, nics, cannot
        self.data = _mapping(data, name)
        self.rate = _rate(self.data.get("rate"), f"{name}.rate")
        self.minors = itertools.count(0x10)
        self.lines: list[str] = []
        self.filters: list[tuple[Matches, str]] = []  # with class ids
        self.paths: dict[str, int] = {}
        self.ranked = _ranked(self.data.get("tree"))

    def leaves_of(self, parts: list[list[Rule]]) -> list[str] | None:
        """For parts of the line behind the classes, by their matches, the paths of the leaves whose
        packets are exactly theirs; None where there are no such leaves for all of them."""
        if not parts:
            return []
        leaves = [
            (path, EVERYTHING if path == self.data.get("default") and not rules else rules)
            for path, rules in self.rules_of(_mapping(self.data.get("tree"), self.name), "", None)
        ]
        found = [next((path for path, rules in leaves if rules == part), "") for part in parts]
        order = [path for path, _ in leaves if path in found]
        if found != order:
            return None
        told = [numbers_of(rule) for part in parts for rule in part]
        others = [numbers_of(rule) for path, rules in leaves if path not in found for rule in rules]
        if len(told) * len(others) > COMPARED_MOST:
            return None
        return found if all(disjoint(one, two) for one in told for two in others) else None

    def commands(
        self, device: str, where: str, handle: int, impaired: Mapping[str, str] | None = None
    ) -> list[str]:
        """The commands that put the tree below a parent. impaired: by the path of a leaf, the netem
        that its packets pass."""
        self.device, self.handle, self.impaired = device, f"{handle:x}:", impaired or {}
        size = self.overhead()
        before = ""
        self.more = ""
        if size.bytes < 0:
            before = f"stab {_size_words(size)} "
        elif size != Overhead():
            self.more = f" {_size_words(size)}"
        if size.cell == "ptm":
            self.cannot(f"{self.name}: cells of PTM: left out")
        top = f"{self.handle}1"
        self.add_class(self.handle, top, self.rate, self.rate, "")
        self.children(_mapping(self.data.get("tree"), f"{self.name}.tree"), top, self.rate, "", 1,
                      None)  # fmt: skip
        for path, rules in self.rules_of(_mapping(self.data["tree"], self.name), "", None):
            self.match(rules, f"{self.name}: {path}", f"{self.handle}{self.paths[path]:x}")
        default = self.data.get("default")
        if default not in self.paths:
            raise ConfigError(
                f"{self.name}.default: {shown(default)}: expected the path of a leaf such as "
                f"{next(iter(self.paths), 'bulk')}"
            )
        root = (
            f"tc qdisc add dev {device} {where} handle {self.handle} {before}htb default "
            f"{self.paths[str(default)]:x}"
        )
        if len(self.filters) > FILTERS_MOST:
            raise ConfigError(
                f"{self.name}: more than {FILTERS_MOST} filters: expected fewer rules"
            )
        filters = [
            matches.command(device, self.handle, number, classid)
            for number, (matches, classid) in enumerate(self.filters, 1)
        ]
        return [root, *self.lines, *filters]

    def overhead(self) -> Overhead:
        value = self.data.get("overhead")
        if value is None:
            return Overhead()
        if isinstance(value, Mapping) and "keyword" in value:  # as a running policy has it
            value = value["keyword"]
        if isinstance(value, Mapping):
            found = overhead_of(f"{self.name}.overhead", value)
            return found._replace(bytes=found.bytes - ETHERNET_HEADER)
        return overhead_of(f"{self.name}.overhead", value)

    def add_class(self, parent: str, classid: str, rate: int, ceil: int, more: str) -> None:
        self.lines.append(
            f"tc class add dev {self.device} parent {parent} classid {classid} htb rate "
            f"{format_rate(rate)} ceil {format_rate(ceil)}{self.more}{more}"
        )

    def children(
        self, tree: dict[str, Any], parent: str, ceiling: int, above: str, depth: int,
        priority: int | None,
    ) -> None:  # fmt: skip
        if depth > DEPTH_MOST:
            raise ConfigError(f"{self.name}: {TOO_DEEP}")
        least = min((_weight(each, self.name) for each in tree.values()), default=1)
        different = len({_weight(each, self.name) for each in tree.values()}) > 1
        for name, value in tree.items():
            path = f"{above}/{name}" if above else name
            what = f"{self.name}.tree.{path.replace('/', '.tree.')}"
            entry = _mapping(value, what)
            minor = next(self.minors)
            if minor > CLASSES_MOST:
                raise ConfigError(f"{self.name}: more than {CLASSES_MOST} classes")
            classid = f"{self.handle}{minor:x}"
            guarantee = _rate(entry.get("guarantee", 0), f"{what}.guarantee") or 8
            own = _rate(entry.get("ceiling"), f"{what}.ceiling") if "ceiling" in entry else ceiling
            more = ""
            if different:
                # whole multiples, so that the proportion is exact
                more += f" quantum {round(_weight(entry, what) * math.ceil(FRAME_BYTES / least))}"
            mine = self.priority(entry, what, priority)
            if mine is None and self.ranked:
                mine = PRIORITY
            inner = entry.get("tree")
            if mine is not None and not inner:
                more += f" prio {mine}"
            if LABEL.fullmatch(name):
                more += f"  # {name}"
            self.add_class(parent, classid, guarantee, own, more)
            if "latency" in entry:
                self.cannot(f"{what}.latency: htb has no delay of its own for a class")
            if inner:
                self.children(_mapping(inner, what), classid, own, path, depth + 1, mine)
            else:
                self.paths[path] = minor
                if netem := self.impaired.get(path):
                    classid = self.netem(netem, what, classid, minor)
                self.queue(entry.get("queue"), f"{what}.queue", classid, minor, own)

    def priority(self, entry: dict[str, Any], what: str, above: int | None) -> int | None:
        """htb compares all leaves: those of an inner class get its priority."""
        value = entry.get("priority")
        if value is None:
            return above
        if type(value) is not int or not 0 <= value <= 7:
            raise ConfigError(f"{what}.priority: {shown(value)}: expected 0 to 7")
        if above is not None:
            self.cannot(f"{what}.priority: htb compares the priorities of all leaves")
        return value

    # -- queues ------------------------------------------------------------------------------------

    def netem(self, words: str, what: str, classid: str, minor: int) -> str:
        """Puts netem into a class; returns the class in it."""
        if minor > NETEM_MOST:
            self.cannot(f"{what}: netem: left out: no handle is left")
            return classid
        handle = f"{0x4000 | minor:x}:"
        self.lines.append(
            f"tc qdisc add dev {self.device} parent {classid} handle {handle} {words}"
        )
        return f"{handle}1"

    def queue(self, value: Any, what: str, classid: str, minor: int, ceiling: int) -> None:
        if value is None:
            return
        queue = {"discipline": value} if isinstance(value, str) else _mapping(value, what)
        discipline = queue.get("discipline")
        if discipline not in DISCIPLINES:
            raise ConfigError(
                f"{what}: {shown(discipline)}: expected one of {', '.join(DISCIPLINES)}"
            )
        write = {"fifo": self.fifo, "cake": self.cake}.get(str(discipline), self.aqm)
        words = write(queue, what, ceiling)
        handle = f"handle {0x8000 | minor:x}: " if minor < 0x7FF0 else ""
        self.lines.append(
            f"tc qdisc add dev {self.device} parent {classid} {handle}{' '.join(words)}"
        )

    def fifo(self, queue: dict[str, Any], what: str, ceiling: int) -> list[str]:
        if "size" in queue:
            return ["bfifo", "limit", f"{parse_size(queue['size'])}b"]
        if "time" in queue:
            self.cannot(f"{what}.time: as bytes at the ceiling")
            size = parse_time(queue["time"]) * ceiling // (8 * 10**9)
            return ["bfifo", "limit", f"{size}b"]
        return ["pfifo", "limit", str(_whole(queue.get("packets", 1000), what))]

    def aqm(self, queue: dict[str, Any], what: str, ceiling: int) -> list[str]:
        words = [str(queue["discipline"])]
        names = {"packets": "limit", "flows": "flows", "quantum": "quantum"}
        for name, value in queue.items():
            if name in ("target", "interval") and words[0] != "fq":
                words += [name, f"{max(parse_time(value) // 1000, 1)}us"]
            elif name == "ecn" and words[0] != "fq":
                if value not in ("yes", "no", True, False):
                    raise ConfigError(f"{what}.ecn: {shown(value)}: expected yes or no")
                words.append("ecn" if value in ("yes", True) else "noecn")
            elif name == "packets" or (name == "flows" and words[0] == "fq_codel") or (
                name == "quantum" and words[0] != "codel"
            ):  # fmt: skip
                words += [names[name], str(_whole(value, f"{what}.{name}"))]
            elif name != "discipline":
                self.cannot(f"{what}.{name}: {words[0]} of tc has none")
        return words

    def cake(self, queue: dict[str, Any], what: str, ceiling: int) -> list[str]:
        """cake without a rate of its own and tins; it has no bound in packets, and always marks."""
        hosts = queue.get("hosts", "both")
        if not isinstance(hosts, str) or hosts not in CAKE_HOSTS:
            raise ConfigError(
                f"{what}.hosts: {shown(hosts)}: expected one of {', '.join(CAKE_HOSTS)}"
            )
        words = ["cake", "besteffort", CAKE_HOSTS[hosts]]
        for name, value in queue.items():
            if name == "rtt":
                words += ["rtt", f"{max(parse_time(value) // 1000, 1)}us"]
            elif name == "size":
                words += ["memlimit", f"{parse_size(value)}b"]
            elif name not in ("discipline", "hosts") and not (
                name == "ecn" and value in ("yes", True)
            ):
                self.cannot(f"{what}.{name}: cake of tc has none")
        return words

    # -- filters -----------------------------------------------------------------------------------

    def rules_of(
        self, tree: dict[str, Any], above: str, outer: list[dict[str, Any]] | None
    ) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The rules of each leaf, in the order in which leaves are tried: those without a match
        last, which have what their parent has and their siblings have not."""
        found = {
            name: _mapping(value, f"{self.name}: {above}/{name}") for name, value in tree.items()
        }
        if above.count("/") >= DEPTH_MOST:
            raise ConfigError(f"{self.name}: {TOO_DEEP}")
        for name, each in sorted(found.items(), key=lambda item: not item[1].get("match")):
            path = f"{above}/{name}" if above else name
            rules = outer
            if match := each.get("match"):
                own = [
                    self.conditions(path, rule)
                    for rule in (match if isinstance(match, list) else [match])
                ]
                rules = own if outer is None else [{**a, **b} for a in outer for b in own]
                if len(rules) > FILTERS_MOST:
                    raise ConfigError(f"{self.name}: {path}: too many matches: expected fewer")
            if inner := each.get("tree"):
                yield from self.rules_of(inner, path, rules)
            else:
                yield path, rules or []

    def conditions(self, path: str, rule: Any) -> dict[str, Any]:
        found = _mapping(rule, f"{self.name}: {path}: match")
        sender = found.pop("sender", None)
        if sender is not None:
            if sender not in self.nics:
                raise ConfigError(f"{self.name}: {path}: there is no NIC {shown(sender)}")
            found["source_mac"] = self.nics[sender]
        return found

    def match(self, rules: list[dict[str, Any]], what: str, classid: str) -> None:
        self.filters += [(each, classid) for each in filters_of(rules, what, self.cannot)]


# -- plain data ------------------------------------------------------------------------------------


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what}: {shown(value)}: expected a mapping")
    return dict(value)


def _rate(value: Any, what: str) -> int:
    if value == UNLIMITED:
        return FAST_BPS
    try:
        return parse_rate(value)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**32:
        raise ConfigError(f"{what}: {shown(value)}: expected a whole number")
    return value


def _weight(entry: Any, what: str) -> float:
    value = entry.get("weight", 1) if isinstance(entry, Mapping) else 1
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise ConfigError(f"{what}.weight: {shown(value)}: expected a number above 0")
    return value


def _ranked(tree: Any, depth: int = 0) -> bool:
    """Whether a class of a tree has a priority: then all leaves of htb need one."""
    if not isinstance(tree, Mapping) or depth > DEPTH_MOST:
        return False
    return any(
        isinstance(each, Mapping) and ("priority" in each or _ranked(each.get("tree"), depth + 1))
        for each in tree.values()
    )


def _size_words(size: Overhead) -> str:
    words = [f"overhead {size.bytes}"] if size.bytes else []
    words += [f"mpu {size.minimum}"] if size.minimum else []
    words += ["linklayer atm"] if size.cell == "atm" else []
    return " ".join(words)

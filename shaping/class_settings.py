"""The classes of a Scheduler as users write them: a tree of mappings, to a list of
`ClassSetting`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dataplane.config.convert import did_you_mean, shown
from dataplane.errors import ConfigError
from dataplane.units import format_rate
from shaping.settings import (
    flag_of,
    nanoseconds_of,
    packets_of,
    rate_of,
    time_or_size_of,
)

CLASSES_MOST = 4096
DEPTH_MOST = 8
PRIORITIES, PRIORITY_DEFAULT = 8, 4
WEIGHT_MOST = 10_000
MARK_MOST = 65_535
FLOWS_MOST = 65_536
FLOWS_ALL_MOST = 1 << 22  # of all queues of a tree: 0.5 GB, of cake 0.9 GB, where packets use all
QUANTUM_LEAST, QUANTUM_MOST = 64, 65_536
FULL_FRAME = 1514
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", re.ASCII)

TARGET_NS, INTERVAL_NS = 5_000_000, 100_000_000
TARGET_MOST_NS = 10**12
RTT_NS, RTT_LEAST_NS, RTT_MOST_NS = 100_000_000, 20_000, 3600 * 10**9
DISCIPLINES = ("fifo", "codel", "fq", "fq_codel", "cake")
HOSTS = {"none": (), "source": (0,), "destination": (1,), "both": (0, 1)}  # sides of a flow
WAYS = 8
# of a queue of cake, as in Linux
CAKE_BYTES_LEAST, CAKE_BYTES_MOST = 4 << 20, 10_240 * FULL_FRAME
CAKE_FLOWS, CAKE_QUANTUM_LEAST = 4096, 300
_TREE_KEYS = ("rate", "default", "tree")
_CLASS_KEYS = ("guarantee", "ceiling", "weight", "priority", "latency", "mark", "queue", "tree",
               "share")  # fmt: skip
_QUEUE_KEYS = ("discipline", "target", "interval", "ecn", "flows", "quantum", "rtt", "hosts",
               "time", "size", "packets")  # fmt: skip
# of keys that not all have
_KEY_OF = {
    "target": ("codel", "fq_codel"), "interval": ("codel", "fq_codel"),
    "ecn": ("codel", "fq_codel", "cake"),
    "flows": ("fq", "fq_codel", "cake"), "quantum": ("fq", "fq_codel", "cake"),
    "rtt": ("cake",), "hosts": ("cake",),
}  # fmt: skip


class QueueSettings(NamedTuple):
    """How packets of a leaf wait. limit_ns: as time at the ceiling; of the limits, at most one is
    set: without one the bound of cake follows from rtt_ns, of its flows. target_ns: None: 5 ms, or
    longer at a rate at which a frame takes longer. quantum: None: of cake, by the rate. sides: of a
    flow, whose hosts share equally; 0 is the source."""

    discipline: str
    target_ns: int | None = None
    interval_ns: int | None = None
    ecn: bool = True
    flows: int = 1024
    quantum: int | None = None
    limit_ns: int | None = None
    limit_bytes: int | None = None
    limit_packets: int | None = None
    rtt_ns: int = RTT_NS
    sides: tuple[int, ...] = ()

    @property
    def aqm(self) -> bool:
        return self.discipline in ("codel", "fq_codel", "cake")

    @property
    def fair(self) -> bool:
        return self.discipline in ("fq", "fq_codel", "cake")

    @property
    def is_cake(self) -> bool:
        return self.discipline == "cake"

    def codel_ns(self, rate_bps: int) -> tuple[int, int]:
        """Target and interval of CoDel at a rate in bit/s (0: none). At a low rate the target is
        the time of 1.5 full frames, since one that is being sent makes the next one wait. CAKE's
        follow from the round trip, as in Linux."""
        wanted = self.rtt_ns // 20 if self.is_cake else TARGET_NS
        target = max(wanted, _frames_ns(3, rate_bps) // 2)
        if self.target_ns is not None:
            target = self.target_ns
        interval = self.interval_ns
        if self.is_cake:
            interval = max(self.rtt_ns + target - wanted, 2 * target)
        elif interval is None:
            interval = max(INTERVAL_NS, 2 * target)
        return target, interval

    def long_ns(self, rate_bps: int) -> int:
        """The wait above which COBALT finds a queue too long: the target, or 4 full frames."""
        return max(self.codel_ns(rate_bps)[0], _frames_ns(4, rate_bps))

    def quantum_bytes(self, rate_bps: int) -> int:
        """Bytes that a flow sends in its turn. CAKE's are fewer where a frame takes long."""
        if self.quantum is not None:
            return self.quantum
        if self.is_cake and rate_bps:
            return min(max(rate_bps // (8 * 4096), CAKE_QUANTUM_LEAST), FULL_FRAME)
        return FULL_FRAME

    def limits(self, rate_bps: int) -> tuple[int, int]:
        """Bounds on bytes and on packets at a rate in bit/s (0: none)."""
        size = packets = 1 << 62
        if self.limit_packets is not None:
            packets = self.limit_packets
        elif self.limit_bytes is not None:
            size = self.limit_bytes
        elif self.limit_ns is not None:
            if rate_bps:
                size = min(rate_bps * self.limit_ns // (8 * 10**9), size)
        elif self.is_cake:
            size = CAKE_BYTES_MOST
            if rate_bps:
                size = min(max(4 * rate_bps * self.rtt_ns // (8 * 10**9), CAKE_BYTES_LEAST), size)
        return size, packets


def _frames_ns(count: int, rate_bps: int) -> int:
    """Time of full frames at a rate; 0: there is none."""
    return count * FULL_FRAME * 8 * 10**9 // rate_bps if rate_bps else 0


class ClassSetting(NamedTuple):
    """One class. parent: index in the list; of the root -1. ceiling_bps: its own, 0: none.
    effective_bps: the least ceiling of it and its ancestors; 0: none. queue: None in an inner
    class. mark: of packets for this leaf; None: none have it. own_bps: its ceiling also where one
    around it is lower. share: what sets its ceiling while packets flow; "": nothing does."""

    path: str
    parent: int
    guarantee_bps: int = 0
    ceiling_bps: int = 0
    effective_bps: int = 0
    weight: int = 1
    priority: int = PRIORITY_DEFAULT
    latency_ns: int = 0
    mark: int | None = None
    queue: QueueSettings | None = None
    own_bps: int = 0
    share: str = ""


class TreeSetting(NamedTuple):
    """classes: each before those in it, which follow it; [0] is the root. default: index of the
    leaf for packets that no other leaf has."""

    classes: list[ClassSetting]
    default: int


def read_tree(name: str, data: Any) -> TreeSetting:
    """The classes of `classes`, as Scheduler documents it. name: for errors. Raises ConfigError."""
    fields = _mapping(name, data, _TREE_KEYS, "{rate: 10mbit, default: rest, tree: {rest: {}}}")
    rate = rate_of(f"{name}: rate", fields.get("rate"))
    found = [ClassSetting("", -1, ceiling_bps=rate, effective_bps=rate)]
    _children(name, fields.get("tree"), 0, 1, found)
    found = _with_sums(name, found)
    flows = sum(each.queue.flows for each in found if each.queue is not None)
    if flows > FLOWS_ALL_MOST:
        raise ConfigError(
            f"{name}: its queues have {flows} flows together: expected at most {FLOWS_ALL_MOST}"
        )
    return TreeSetting(found, _default(name, fields.get("default"), found))


def _default(name: str, default: Any, found: list[ClassSetting]) -> int:
    leaves = {each.path: number for number, each in enumerate(found) if each.queue is not None}
    if default is None:
        raise ConfigError(
            f"{name}: has no default: expected the class of packets that no other class has, such "
            f"as default: {next(iter(leaves))}"
        )
    if default not in leaves:
        raise ConfigError(
            f"{name}: default {shown(default)}: there is no such class without classes of its "
            f"own; {did_you_mean(str(default), list(leaves)[:64])}"
        )
    return leaves[default]


def _mapping(name: str, data: Any, known: tuple[str, ...], example: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{name}: {shown(data)}: expected a mapping such as {example}")
    for key in data:
        if key not in known:
            raise ConfigError(f"{name}: unknown key {shown(key)}; {did_you_mean(str(key), known)}")
    return data


def _children(name: str, data: Any, parent: int, depth: int, found: list[ClassSetting]) -> None:
    if not isinstance(data, Mapping) or not data:
        what = f"tree {shown(data)}" if data is not None else "has no tree"
        raise ConfigError(f"{name}: {what}: expected classes such as {{gold: {{}}, rest: {{}}}}")
    if depth > DEPTH_MOST:
        raise ConfigError(f"{name}: more than {DEPTH_MOST} levels: expected fewer")
    for key, each in data.items():
        if not isinstance(key, str) or not NAME.fullmatch(key):
            raise ConfigError(
                f"{name}: class {shown(key)}: expected a name of letters, digits, '_', '.' and "
                "'-', at most 32"
            )
        if len(found) > CLASSES_MOST:
            raise ConfigError(f"{name}: more than {CLASSES_MOST} classes: expected fewer")
        above = found[parent]
        path = f"{above.path}/{key}" if above.path else key
        _read_class(f"{name}: {path}", {} if each is None else each, path, parent, depth, found)


def _read_class(
    name: str, data: Any, path: str, parent: int, depth: int, found: list[ClassSetting]
) -> None:
    fields = _mapping(name, data, _CLASS_KEYS, "{guarantee: 2mbit, weight: 3}")
    above = found[parent]
    guarantee = rate_of(f"{name}: guarantee", fields.get("guarantee"))
    ceiling = rate_of(f"{name}: ceiling", fields.get("ceiling"))
    if ceiling and guarantee > ceiling:
        raise ConfigError(
            f"{name}: guarantee {fields['guarantee']} is more than ceiling {fields['ceiling']}"
        )
    latency = nanoseconds_of(name, "latency", fields.get("latency", 0))
    if latency and not guarantee:
        raise ConfigError(f"{name}: latency without guarantee: expected guarantee, such as 2mbit")
    if latency > TARGET_MOST_NS:
        raise ConfigError(f"{name}: latency {fields['latency']}: expected at most 1000s")
    share = fields.get("share", "")
    if not isinstance(share, str) or (share and not NAME.fullmatch(share)):
        raise ConfigError(f"{name}: share {shown(share)}: expected the name of a share")
    if share and not ceiling:
        raise ConfigError(f"{name}: has share {share}, and no ceiling to begin with: add ceiling")
    inner = "tree" in fields
    if latency and inner:
        raise ConfigError(f"{name}: has latency and tree: expected latency in a class of its tree")
    if inner and ("queue" in fields or "mark" in fields):
        what = "queue" if "queue" in fields else "mark"
        raise ConfigError(f"{name}: has {what} and tree: packets wait in the classes of its tree")
    number = len(found)
    found.append(
        ClassSetting(
            path, parent, guarantee, *_limits(ceiling, above.effective_bps),
            _whole(name, "weight", fields.get("weight", 1), 1, WEIGHT_MOST),
            _whole(name, "priority", fields.get("priority", PRIORITY_DEFAULT), 0, PRIORITIES - 1),
            latency,
            None if "mark" not in fields else _whole(name, "mark", fields["mark"], 0, MARK_MOST),
            None if inner else queue_settings(name, fields.get("queue", "fifo")),
            own_bps=ceiling, share=share,
        )
    )  # fmt: skip
    if inner:
        _children(name.rsplit(":", 1)[0], fields["tree"], number, depth + 1, found)


def _limits(own_bps: int, above_bps: int) -> tuple[int, int]:
    """`ceiling_bps`, 0 where it never decides, and `effective_bps` of a class with this ceiling in
    one with that effective ceiling."""
    decides = own_bps and (not above_bps or own_bps < above_bps)
    return (own_bps, own_bps) if decides else (0, above_bps)


def with_ceiling(
    classes: list[ClassSetting], number: int, ceiling_bps: int
) -> dict[int, ClassSetting]:
    """A class with another ceiling, and the classes in it with what follows for them. None of them
    has a guarantee, of which a ceiling would be a bound."""
    found: dict[int, ClassSetting] = {}
    for at in range(number, len(classes)):
        each = classes[at]
        if at != number and each.parent < number:
            break  # behind the classes in it
        own = ceiling_bps if at == number else each.own_bps
        above = found.get(each.parent, classes[each.parent])
        ceiling, effective = _limits(own, above.effective_bps)
        found[at] = each._replace(ceiling_bps=ceiling, effective_bps=effective, own_bps=own)
    return found


def _whole(name: str, what: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{name}: {what} {shown(value)}: expected a number, {least} to {most}")
    return value


def _with_sums(name: str, found: list[ClassSetting]) -> list[ClassSetting]:
    """The classes, those without a guarantee of their own guaranteed what their classes are
    together. Raises ConfigError where classes are guaranteed more than there is."""
    sums = [0] * len(found)
    done = list(found)
    for number in range(len(found) - 1, -1, -1):
        each, total = found[number], sums[number]
        given = each.effective_bps if number == 0 else each.guarantee_bps
        if number and not given:
            given = total
            if each.effective_bps and total > each.effective_bps:
                given = each.effective_bps
            done[number] = each._replace(guarantee_bps=given)
        if each.share and given:
            raise ConfigError(
                f"{name}: {each.path}: share {each.share} sets what it gets, and it or a class in "
                "it has a guarantee: remove one of them"
            )
        if given and total > given:
            what = f"{each.path}: its" if each.path else "a"
            raise ConfigError(
                f"{name}: {what} rate of {format_rate(given)} is less than the "
                f"{format_rate(total)} that its classes are guaranteed together: lower them"
            )
        if number:
            sums[each.parent] += done[number].guarantee_bps
    return done


def queue_settings(name: str, data: Any) -> QueueSettings:
    """The `queue` of a class. Raises ConfigError."""
    fields = {"discipline": data} if isinstance(data, str) else data
    fields = _mapping(f"{name}: queue", fields, _QUEUE_KEYS, "{discipline: fq_codel}")
    discipline = fields.get("discipline", "fifo")
    if discipline not in DISCIPLINES:
        raise ConfigError(
            f"{name}: queue {shown(discipline)}: unknown; "
            f"{did_you_mean(str(discipline), DISCIPLINES)}"
        )
    for key, users in _KEY_OF.items():
        if key in fields and discipline not in users:
            raise ConfigError(
                f"{name}: queue: {key} has no effect on {discipline}: expected "
                f"{' or '.join(users)}, or no such key"
            )
    found = QueueSettings(discipline)
    times = {key: _time(name, key, fields.get(key)) for key in ("target", "interval")}
    ecn = flag_of(f"{name}: queue: ecn", fields.get("ecn", True))
    limit_ns, limit_bytes, limit_packets = _limit(name, discipline, fields)
    return found._replace(
        target_ns=times["target"], interval_ns=times["interval"], ecn=ecn,
        flows=_flows(name, found, fields), quantum=_quantum(name, fields), limit_ns=limit_ns,
        limit_bytes=limit_bytes, limit_packets=limit_packets, rtt_ns=_rtt(name, fields),
        sides=HOSTS[_hosts(name, fields)] if found.is_cake else (),
    )  # fmt: skip


def _flows(name: str, found: QueueSettings, fields: Mapping[str, Any]) -> int:
    if not found.fair:
        return 1
    # a set of CAKE's table has WAYS flows
    usual, least = (CAKE_FLOWS, WAYS) if found.is_cake else (found.flows, 1)
    flows = _whole(name, "queue: flows", fields.get("flows", usual), least, FLOWS_MOST)
    if flows & (flows - 1):
        raise ConfigError(f"{name}: queue: flows {flows}: expected a power of 2, such as 1024")
    return flows


def _quantum(name: str, fields: Mapping[str, Any]) -> int | None:
    if "quantum" not in fields:
        return None
    return _whole(name, "queue: quantum", fields["quantum"], QUANTUM_LEAST, QUANTUM_MOST)


def _rtt(name: str, fields: Mapping[str, Any]) -> int:
    rtt = nanoseconds_of(name, "queue: rtt", fields.get("rtt", RTT_NS))
    if not RTT_LEAST_NS <= rtt <= RTT_MOST_NS:
        raise ConfigError(f"{name}: queue: rtt {shown(fields['rtt'])}: expected 20us to 1h")
    return rtt


def _hosts(name: str, fields: Mapping[str, Any]) -> str:
    hosts = fields.get("hosts", "both")
    if not isinstance(hosts, str) or hosts not in HOSTS:
        known = did_you_mean(str(hosts), tuple(HOSTS))
        raise ConfigError(f"{name}: queue: hosts {shown(hosts)}: unknown; {known}")
    return hosts


def _time(name: str, key: str, value: Any) -> int | None:
    if value is None:
        return None
    found = nanoseconds_of(name, f"queue: {key}", value)
    if not 1000 <= found <= TARGET_MOST_NS:
        raise ConfigError(f"{name}: queue: {key} {shown(value)}: expected 1us to 1000s")
    return found


def _limit(
    name: str, discipline: str, fields: Mapping[str, Any]
) -> tuple[int | None, int | None, int | None]:
    """The bound as time, bytes or packets."""
    given = {key: fields[key] for key in ("time", "size", "packets") if key in fields}
    if len(given) > 1:
        raise ConfigError(f"{name}: queue: has {' and '.join(given)}: expected one of them")
    if "packets" in given:
        return None, None, packets_of(name, given)
    if given:
        key, value = given.popitem()
        limit_ns, size = time_or_size_of(name, f"queue: {key}", value)
        if (size is None) != (key == "time"):
            raise ConfigError(
                f"{name}: queue: {key} {shown(value)}: expected a {key} such as "
                f"{'100ms' if key == 'time' else '64kb'}"
            )
        return limit_ns, size, None
    if discipline == "cake":
        return None, None, None
    # what Linux' disciplines of these names have
    packets = {"codel": 1000, "fq": 10_240, "fq_codel": 10_240}.get(discipline)
    return (None, None, packets) if packets else (100_000_000, None, None)

"""Trees of classes - htb, hfsc, the bands of prio - as `classes` of a policy.

A tree is made in two steps: nodes, in which the kinds are alike, and the plain data of a policy
file. Semantics of htb are those of net/sched/sch_htb.c of Linux 6.18.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from dataplane.errors import ConfigError
from dataplane.units import RATE_LEAST_BPS, format_rate, format_time
from shaping.imports.classful import HfscClass, HtbClass, HtbQdisc, Prio
from shaping.imports.form import NAME, Settings
from shaping.imports.leaf import Leaf
from shaping.imports.leaves import LEAVES
from shaping.imports.nodes import Node, fit, give_rules, in_order, leaves_of
from shaping.imports.notes import Notes, Unsupported, unsupported
from shaping.imports.overheads import overhead_setting
from shaping.imports.quantities import line_rate
from shaping.imports.tc_objects import ONE_CLASS, Device, Qdisc, TcClass, id_text

DEPTH_MOST = 8  # of htb
PRIORITY_MOST = 7
QUANTUM_LEAST, QUANTUM_MOST = 1000, 200_000  # that htb computes from a rate
WEIGHT_MOST = 1000
CLASSES_MOST = 4096  # of a policy's tree
NAME_MOST = 32
DIRECT = "direct"  # the leaf for what htb does not shape


class Tree(NamedTuple):
    """settings: an entry of `classes`; leaves: in the order in which they are tried; default: the
    one for what matches none."""

    settings: Settings
    leaves: list[Node]
    default: Node


def tree_of(device: Device, qdisc: Qdisc, notes: Notes) -> Tree:
    """The classes of a device whose root, or the qdisc below it, is htb or hfsc. Raises
    ConfigError."""
    tops = [_node(device, each, qdisc, notes, 1) for each in device.below(qdisc.handle)]
    known = sum(each >> 16 == qdisc.handle >> 16 for each in device.classes)
    if not tops:
        raise unsupported(qdisc.kind, "it has no classes, so that nothing is shaped")
    if known > CLASSES_MOST:
        raise unsupported(f"{known} classes", f"expected at most {CLASSES_MOST}")
    if sum(1 for top in tops for _ in _all(top)) != known:
        raise ConfigError(
            f"{qdisc.kind}: a class has a parent that is not there: import all classes"
        )
    return _tree(device, qdisc, tops, notes)


def _all(node: Node) -> Iterator[Node]:
    yield node
    for each in node.children:
        yield from _all(each)


def _node(device: Device, each: TcClass, qdisc: Qdisc, notes: Notes, depth: int) -> Node:
    if depth > DEPTH_MOST:
        raise ConfigError(f"class {id_text(each.classid)}: more than {DEPTH_MOST} levels")
    if isinstance(each.options, HtbClass):
        found = _htb_node(each, each.options, qdisc, notes)
    elif isinstance(each.options, HfscClass):
        found = _hfsc_node(each, each.options, notes)
    else:
        raise unsupported(f"class {each.kind}", "expected htb or hfsc")
    found.children = [
        _node(device, below, qdisc, notes, depth + 1) for below in device.below(each.classid)
    ]
    return found


def _name(each: TcClass) -> str:
    if len(each.name) <= NAME_MOST and NAME.fullmatch(each.name):
        return each.name
    return f"class-{each.classid & 0xFFFF:x}"


def _htb_node(each: TcClass, options: HtbClass, qdisc: Qdisc, notes: Notes) -> Node:
    r2q = qdisc.options.r2q if isinstance(qdisc.options, HtbQdisc) else 10
    quantum = options.quantum or min(max(options.rate // 8 // r2q, QUANTUM_LEAST), QUANTUM_MOST)
    if options.burst or options.cburst:
        notes.note(
            each.where, "htb burst and cburst: left out: classes here send at their rate from the "
            "first packet on"
        )  # fmt: skip
    if options.prio > PRIORITY_MOST:
        notes.note(each.where, f"htb prio {options.prio}: the kernel uses {PRIORITY_MOST}")
    return Node(
        each.where, _name(each), each.classid, min(options.rate, options.ceil), options.ceil,
        quantum, min(options.prio, PRIORITY_MOST),
    )  # fmt: skip


def _hfsc_node(each: TcClass, options: HfscClass, notes: Notes) -> Node:
    """Real time and link share must be alike: then a class has a guarantee, and what is left over
    is shared by the guarantees."""
    rt, ls, ul = options.rt, options.ls, options.ul
    what = f"hfsc class {id_text(each.classid)}"
    if rt is not None and ls is not None and rt != ls:
        raise unsupported(what, "rt and ls differ: a class has one guarantee, by which it shares")
    curve = rt or ls
    assert curve is not None
    steep, time, rate = curve
    latency = 0
    if time and steep > rate:
        latency = time
        notes.note(
            each.where,
            f"{what}: m1 for {format_time(time)}: becomes latency: {format_time(time)}, which "
            "serves the first packets at the ceiling",
        )
    elif time:
        notes.note(each.where, f"{what}: m1 below m2: left out")
    if ul is not None and ul[1]:
        notes.note(each.where, f"{what}: ul: its first part is left out")
    weight = ls[2] if ls is not None else 1
    return Node(each.where, _name(each), each.classid, rate if rt is not None else 0,
                ul[2] if ul is not None else 0, max(weight, 1), 0, latency)  # fmt: skip


# -- the tree of a device --------------------------------------------------------------------------


def _tree(device: Device, qdisc: Qdisc, tops: list[Node], notes: Notes) -> Tree:
    """One class at the top is the whole; several are its parts, each up to its own rate."""
    size = qdisc.size or _size_of(device, tops, notes)
    if qdisc.kind == "htb":
        for top in tops:
            borrows_nothing(top.where, top.classid, top.guarantee, top.ceiling, notes)
            top.ceiling = top.guarantee
    for top in tops:
        top.ceiling = top.ceiling or top.guarantee or top.weight
    rate = sum(top.ceiling for top in tops)
    nodes = tops[0].children if len(tops) == 1 and tops[0].children else tops
    leaves = {leaf.classid: leaf for top in tops for leaf in top.leaves()}
    default = _default_leaf(qdisc, leaves)
    default = give_rules(device, qdisc, leaves, default, notes)
    for leaf in leaves.values():
        _queue(device, leaf, notes)
    if default is None:
        default = Node(qdisc.where, DIRECT, 0, 0)
        nodes = [*nodes, default]
        notes.warn(
            qdisc.where,
            f"{qdisc.kind}: packets that match no filter bypass its classes; here they share the "
            f"rate, in leaf {DIRECT}",
        )
    return whole_tree(nodes, rate, default, size, notes)


def borrows_nothing(where: str, classid: int, rate: int, ceil: int, notes: Notes) -> None:
    """Notes that htb sends the rate of a class without a parent, not its ceil."""
    if ceil > rate:
        notes.warn(
            where,
            f"htb class {id_text(classid)}: has no parent to borrow from: htb sends its rate "
            f"{format_rate(rate)}, not its ceil {format_rate(ceil)}",
        )


def whole_tree(
    nodes: list[Node], rate: int, default: Node, size: tuple[int, int, str], notes: Notes
) -> Tree:
    nodes = in_order(nodes, notes)
    fit(nodes, rate, notes)
    _priorities(nodes, notes)
    found: Settings = {"rate": line_rate("rate", rate)}
    overhead = overhead_setting("overhead", *size)
    if overhead is not None:
        found["overhead"] = overhead
    paths: dict[int, str] = {}
    tree = _data(nodes, rate, paths, "", notes)
    found["default"] = paths[id(default)]
    found["tree"] = tree
    return Tree(found, list(leaves_of(nodes)), default)


def _size_of(device: Device, tops: list[Node], notes: Notes) -> tuple[int, int, str]:
    sizes = {
        each.options.size for each in device.classes.values() if isinstance(each.options, HtbClass)
    }
    if len(sizes) > 1:
        notes.warn(
            tops[0].where, "htb overhead: differs between classes: the first class's is used"
        )
    first = device.classes[tops[0].classid].options
    return first.size if isinstance(first, HtbClass) else (0, 0, "")


def _default_leaf(qdisc: Qdisc, leaves: dict[int, Node]) -> Node | None:
    """The leaf for what matches no filter; an inner class does not count in htb."""
    minor = qdisc.options.default if isinstance(qdisc.options, HtbQdisc) else 0
    if not minor or minor > 0xFFFF:
        return None
    return leaves.get(qdisc.handle | minor)


def _data(
    nodes: list[Node], ceiling: int, paths: dict[int, str], above: str, notes: Notes
) -> Settings:
    """A `tree`, and in `paths` the path of each leaf by its id()."""
    found: Settings = {}
    weights = _weights([each.weight for each in nodes])
    same_priority = len({each.priority for each in nodes}) == 1
    for each, weight in zip(nodes, weights, strict=True):
        name = each.name
        if name in found:
            name = f"class-{each.classid & 0xFFFF:x}"
        if name in found:
            raise ConfigError(f"two classes are called {name}: change the comment that names one")
        entry = found[name] = {}
        path = f"{above}/{name}" if above else name
        if each.rules:
            entry["match"] = each.rules[0] if len(each.rules) == 1 else each.rules
        own = min(each.ceiling or ceiling, ceiling)
        if each.guarantee >= RATE_LEAST_BPS:  # tc has no class without a rate
            entry["guarantee"] = format_rate(min(each.guarantee, own))
        if own < ceiling:
            entry["ceiling"] = line_rate("ceiling", own)
        if weight != 1:
            entry["weight"] = weight
        if not same_priority:
            entry["priority"] = each.priority
        if each.latency and not each.children and each.guarantee >= RATE_LEAST_BPS:
            entry["latency"] = format_time(each.latency)
        if each.queue is not None:
            entry["queue"] = each.queue
        if each.children:
            entry["tree"] = _data(each.children, own, paths, path, notes)
        paths[id(each)] = path
    return found


def _weights(quanta: list[int]) -> list[int]:
    """Small whole numbers in the proportion of quanta."""
    divisor = math.gcd(*quanta)
    weights = [each // divisor for each in quanta]
    if max(weights) > WEIGHT_MOST:
        weights = [max(round(each * WEIGHT_MOST / max(quanta)), 1) for each in quanta]
        weights = [each // math.gcd(*weights) for each in weights]
    return weights


def _priorities(nodes: list[Node], notes: Notes) -> None:
    """htb compares the priorities of all leaves, a tree those of siblings: an inner class gets
    that of its leaves."""
    for each in nodes:
        if each.children:
            _priorities(each.children, notes)
            priorities = {leaf.priority for leaf in each.leaves()}
            each.priority = min(priorities)
            if len(priorities) > 1 and len(nodes) > 1:
                notes.warn(
                    each.where,
                    f"htb prio: compares all leaves; here class {each.name} has the priority of "
                    "its first leaf, and its leaves have theirs among each other",
                )


# -- queues ----------------------------------------------------------------------------------------


def _queue(device: Device, leaf: Node, notes: Notes) -> None:
    chain = list(device.chain(leaf.classid))
    if not chain:
        notes.note(
            leaf.where,
            "classes without a qdisc: have a fifo of the device's txqueuelen, usually 1000 "
            "packets; here the default queue",
        )
        return
    qdisc = chain[-1]
    # netem and tbf become settings of a line, which has the queue in front of tbf's rate
    if qdisc.kind in ONE_CLASS or any(each.kind == "tbf" for each in chain):
        return
    try:
        leaf.queue = queue_of(qdisc, notes)
        options = qdisc.options
        if isinstance(options, Leaf) and options.rate:
            leaf.ceiling = min(leaf.ceiling or options.rate, options.rate)
    except Unsupported as error:
        notes.refuse(qdisc.where, error)


def queue_of(qdisc: Qdisc, notes: Notes) -> Any:
    """The `queue` of a leaf for a qdisc. Raises Unsupported."""
    if qdisc.kind not in LEAVES or not isinstance(qdisc.options, Leaf):
        known = ", ".join(LEAVES)
        raise unsupported(f"{qdisc.kind} in a class", f"expected one of {known}")
    return qdisc.options.queue(qdisc.kind, qdisc.where, notes)


# -- prio ------------------------------------------------------------------------------------------

BEHIND_FILTERS = 1 << 20  # the number of a rule that is tried when no filter matches
# Priority of the kernel for the two bits of TOS that ask for delay and throughput
# (net/ipv4/route.c, ip_tos2prio).
_TOS_PRIORITY = {0: 0, 1: 2, 2: 6, 3: 4}


def band_nodes(device: Device, qdisc: Qdisc, notes: Notes) -> tuple[list[Node], Node]:
    """The bands of prio as leaves, and the one that packets without a mark are in."""
    prio = qdisc.options
    assert isinstance(prio, Prio)
    bands = [
        Node(qdisc.where, f"band-{number}", qdisc.handle | number + 1, 0,
             priority=min(number, PRIORITY_MOST))
        for number in range(prio.bands)
    ]  # fmt: skip
    leaves = {band.classid: band for band in bands}
    default: Node | None = bands[prio.priomap[0]]
    default = give_rules(device, qdisc, leaves, default, notes) or bands[0]
    for bits, priority in _TOS_PRIORITY.items():
        band = bands[prio.priomap[priority]]
        if band is not default:
            marks = [{"dscp": each} for each in range(64) if each >> 1 & 3 == bits]
            band.rules += marks
            band.order += [BEHIND_FILTERS] * len(marks)
    notes.note(
        qdisc.where, "prio priomap: becomes rules of DSCP; sockets' own priorities are left out"
    )
    for band in bands:
        if band.classid in device.qdiscs:
            _queue(device, band, notes)
    return bands, default

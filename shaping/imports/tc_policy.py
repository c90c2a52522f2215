"""The policy for what tc has set up on devices.

A device's root is what its NIC sends (or, where --map says so, what it receives); its ingress, and
an ifb device to which its ingress leads, the other direction.

    netem, tbf at the root            settings of `NIC -> any`
    netem below filters by address    settings of `NIC -> other`
    htb, hfsc, prio below a rate      classes
    police at the ingress             a rate of `any -> NIC`
"""

from __future__ import annotations

from dataplane.errors import ConfigError
from dataplane.units import format_rate, format_size, format_time
from shaping.imports.classful import HtbClass, HtbQdisc, Prio, Tbf
from shaping.imports.filters import IPV4_ANY, IPV6_ANY, Rule
from shaping.imports.form import Draft, Names, Settings, line_key, opposite
from shaping.imports.leaf import Leaf
from shaping.imports.leaves import LEAVES
from shaping.imports.netem import Netem, line_of, seed_of
from shaping.imports.nodes import Node
from shaping.imports.notes import Notes, Unsupported, unsupported
from shaping.imports.overheads import overhead_setting
from shaping.imports.quantities import line_rate
from shaping.imports.tc_objects import INGRESS_HOOK, Device, Devices, Filter, Qdisc, id_text
from shaping.imports.tree import band_nodes, queue_of, tree_of, whole_tree
from shaping.policy.keys import ANY
from shaping.policy.scalars import QueueLength, QueueSize

CHAIN_MOST = 8  # qdiscs one in the other
UNLIMITED_BPS = 10**10  # the least rate of a class that tools write for none
_ALL: list[list[Rule]] = [[{}], [{"destination": IPV4_ANY}], [{"destination": IPV6_ANY}]]


def draft_of(devices: Devices, names: Names, notes: Notes) -> Draft:
    """Raises ConfigError; what cannot be said is in the notes."""
    draft = Draft(notes=notes)
    redirected = _redirects(devices, names, notes)
    for device in devices.values():
        if not device.qdiscs and not device.classes:
            continue
        try:
            _device(device, redirected.get(device.name), names, draft)
        except Unsupported as error:
            notes.refuse(_where(device), error)
    return draft


def _where(device: Device) -> str:
    return next(iter(device.qdiscs.values())).where if device.qdiscs else ""


def _redirects(devices: Devices, names: Names, notes: Notes) -> dict[str, str]:
    """By the name of an ifb device, that of the device whose ingress leads to it."""
    found: dict[str, str] = {}
    for device in devices.values():
        for each in device.filters_of(INGRESS_HOOK):
            if not each.redirect or each.broken is not None:
                continue
            space, slash, _ = device.name.rpartition("/")
            target = f"{space}{slash}{each.redirect}"
            if each.match not in _ALL:
                notes.refuse(
                    each.where,
                    unsupported(
                        f"mirred of a part of what {device.name} receives",
                        "a direction of a NIC is shaped as a whole",
                    ),
                )
            elif found.setdefault(target, device.name) != device.name:
                notes.refuse(
                    each.where,
                    unsupported(f"mirred to {target} from several devices",
                                "each NIC has its own lines"),
                )  # fmt: skip
    return found


def _device(device: Device, comes_from: str | None, names: Names, draft: Draft) -> None:
    where = _where(device)
    if comes_from is not None and device.name not in names.given:
        nic, direction = names.place(comes_from, where)
        direction = opposite(direction)
    else:
        nic, direction = names.place(device.name, where)
    if device.root is not None:
        _Root(device, nic, direction, names, draft).compile(device.root)
    _ingress(device, nic, opposite(direction), draft)


class _Root:
    """What hangs below the root of one device."""

    def __init__(
        self, device: Device, nic: str, direction: str, names: Names, draft: Draft
    ) -> None:
        self.device, self.nic, self.direction = device, nic, direction
        self.names, self.draft, self.notes = names, draft, draft.notes
        self.line: Settings = {}

    def compile(self, root: Qdisc) -> None:
        qdisc: Qdisc | None = root
        tbf: Qdisc | None = None
        for _ in range(CHAIN_MOST):
            if qdisc is None:
                break
            if qdisc.kind == "netem":
                self.netem(qdisc, self.line)
            elif qdisc.kind == "tbf":
                tbf = qdisc
                self.tbf(qdisc, self.line)
            else:
                self.last(qdisc, tbf)
                break
            qdisc = self.device.child(qdisc)
        else:
            raise unsupported("more qdiscs one in the other", f"expected at most {CHAIN_MOST}")
        if self.line:
            self.draft.add_line(line_key(self.nic, self.direction), self.line, root.where)

    def netem(self, qdisc: Qdisc, line: Settings) -> None:
        assert isinstance(qdisc.options, Netem)
        found = line_of(qdisc.options, qdisc.where, self.notes)
        self.merge(line, found, qdisc)
        if qdisc.size is not None and any(qdisc.size):
            self.merge(line, {"overhead": overhead_setting("stab", *qdisc.size)}, qdisc)
        seed = seed_of(qdisc.options, qdisc.where, self.notes)
        if seed is not None and self.draft.seed not in (None, seed):
            self.notes.note(qdisc.where, "netem seed: a policy has one: the last one is used")
        self.draft.seed = self.draft.seed if seed is None else seed

    def merge(self, line: Settings, found: Settings, qdisc: Qdisc) -> None:
        for name, value in found.items():
            if name in line and line[name] != value:
                raise unsupported(
                    f"{qdisc.kind} {id_text(qdisc.handle)}: a second {name} for the same packets",
                    "a line has one",
                )
            line[name] = value

    def tbf(self, qdisc: Qdisc, line: Settings) -> None:
        tbf = qdisc.options
        assert isinstance(tbf, Tbf)
        if {"delay", "loss", "duplicate", "corrupt", "reorder"} & line.keys():
            self.notes.note(
                qdisc.where,
                "netem before tbf: in tc packets are delayed and lost before they wait for the "
                "rate, here behind it",
            )
        found: Settings = {"rate": line_rate("tbf rate", tbf.rate)}
        overhead = overhead_setting("tbf", *(qdisc.size or tbf.size))
        if overhead is not None:
            found["overhead"] = overhead
        if tbf.latency:
            if not QueueLength.LEAST <= tbf.latency <= QueueLength.MOST:
                raise unsupported(
                    f"tbf latency {format_time(tbf.latency)}", "a queue is 1us to 60s"
                )
            found["queue"] = format_time(tbf.latency)
        else:
            found["queue"] = _size("tbf limit", tbf.limit)
        self.notes.note(
            qdisc.where,
            "tbf burst: left out: a line sends at its rate from the first packet on, tbf begins "
            "with a burst",
        )
        if tbf.peakrate:
            self.notes.note(qdisc.where, "tbf peakrate: left out: a line has no bursts to limit")
        self.merge(line, found, qdisc)

    # -- what ends the chain -----------------------------------------------------------------------

    def last(self, qdisc: Qdisc, tbf: Qdisc | None) -> None:
        kind = qdisc.kind
        if kind in ("htb", "prio") and self.has_lines(qdisc):
            self.pairs(qdisc)
        elif kind in ("htb", "hfsc"):
            if tbf is not None:
                raise unsupported(f"{kind} below tbf", "a tree has its rate itself")
            self.classes(tree_of(self.device, qdisc, self.notes))
        elif kind == "prio":
            self.prio(qdisc, tbf)
        elif kind in LEAVES:
            self.leaf(qdisc, tbf)
        else:
            raise unsupported(f"qdisc {kind}", "expected netem, tbf, htb, hfsc, prio or a queue")

    def classes(self, tree: Settings) -> None:
        self.draft.classes[f"{self.nic}.{self.direction}"] = tree

    def prio(self, qdisc: Qdisc, tbf: Qdisc | None) -> None:
        if tbf is None:
            self.notes.warn(
                qdisc.where, "prio without a rate: left out: packets of a NIC never wait here"
            )
            return
        nodes, default = band_nodes(self.device, qdisc, self.notes)
        self.tree(tbf, nodes, default)

    def tree(self, tbf: Qdisc, nodes: list[Node], default: Node) -> None:
        """A tree in place of the rate of a tbf."""
        assert isinstance(tbf.options, Tbf)
        for name in ("rate", "queue", "overhead"):
            self.line.pop(name, None)
        size = tbf.size or tbf.options.size
        self.classes(whole_tree(nodes, tbf.options.rate, default, size, self.notes))

    def leaf(self, qdisc: Qdisc, tbf: Qdisc | None) -> None:
        leaf = qdisc.options
        assert isinstance(leaf, Leaf)
        if leaf.discipline == "fifo" and self.line:
            if tbf is not None or "rate" in self.line:
                self.line["queue"] = _fifo(leaf, self.line)
            return
        if leaf.rate:
            if tbf is not None:
                raise unsupported("cake bandwidth below tbf", "a tree has one rate")
            node = Node(qdisc.where, "all", 0, 0, queue=queue_of(qdisc, self.notes))
            self.classes(whole_tree([node], leaf.rate, node, leaf.overhead or (0, 0, ""),
                                    self.notes))  # fmt: skip
        elif tbf is not None:
            node = Node(qdisc.where, "all", 0, 0, queue=queue_of(qdisc, self.notes))
            self.tree(tbf, [node], node)
        else:
            self.notes.warn(
                qdisc.where,
                f"{qdisc.kind} without a rate: left out: packets of a NIC never wait here",
            )

    # -- lines to other NICs -----------------------------------------------------------------------

    def has_lines(self, qdisc: Qdisc) -> bool:
        """Whether classes of a qdisc impair packets."""
        return any(
            each.kind in ("netem", "tbf") for parent, each in self.device.qdiscs.items()
            if qdisc.handle and parent >> 16 == qdisc.handle >> 16 and parent & 0xFFFF
        )  # fmt: skip

    def pairs(self, qdisc: Qdisc) -> None:
        """netem below classes: filters by address tell which NIC it is for."""
        filters: dict[int, list[Filter]] = {}
        for each in self.device.filters_of(qdisc.handle):
            if each.broken is not None and isinstance(each.broken, Unsupported):
                self.notes.refuse(each.where, each.broken)
            filters.setdefault(each.flowid, []).append(each)
        self.any_pair = bool(filters)
        for classid, settings in self.impaired(qdisc):
            where = self.device.qdiscs[classid].where if classid in self.device.qdiscs else (
                self.device.classes[classid].where)  # fmt: skip
            try:
                self.pair(qdisc, classid, settings, filters.get(classid, []), where)
            except Unsupported as error:
                self.notes.refuse(where, error)

    def impaired(self, qdisc: Qdisc) -> list[tuple[int, Settings]]:
        """Class ids with the settings of their lines."""
        found: list[tuple[int, Settings]] = []
        if isinstance(qdisc.options, Prio):
            ids = [qdisc.handle | number + 1 for number in range(qdisc.options.bands)]
        else:
            ids = [each for each in self.device.classes if each >> 16 == qdisc.handle >> 16]
        for classid in ids:
            line: Settings = {}
            below = self.device.qdiscs.get(classid)
            for _ in range(CHAIN_MOST):
                if below is None:
                    break
                if below.kind == "netem":
                    self.netem(below, line)
                elif below.kind == "tbf":
                    self.tbf(below, line)
                elif isinstance(below.options, Leaf):
                    if below.options.discipline == "fifo" and "rate" in line:
                        line["queue"] = _fifo(below.options, line)
                else:
                    raise unsupported(f"{below.kind} in a class", "expected netem, tbf or a queue")
                below = self.device.child(below)
            each = self.device.classes.get(classid)
            is_leaf = each is not None and next(self.device.below(classid), None) is None
            if each is not None and is_leaf and isinstance(each.options, HtbClass):
                ceil = each.options.ceil
                if ceil < UNLIMITED_BPS and "rate" not in line:
                    line["rate"] = line_rate("htb ceil", ceil)
                elif ceil >= UNLIMITED_BPS:
                    self.notes.note(each.where, f"htb ceil {format_rate(ceil)}: taken for no limit")
            if line:
                found.append((classid, line))
        return found

    def pair(
        self, qdisc: Qdisc, classid: int, line: Settings, filters: list[Filter], where: str
    ) -> None:
        what = f"{id_text(classid)}: a line for some packets"
        everything = not filters or any(each.match in _ALL for each in filters)
        if everything:
            if not filters and not self.is_default(qdisc, classid):
                self.notes.note(where, f"class {id_text(classid)}: no filter leads to it: left out")
                return
            if self.any_pair and (len(filters) != 1 or filters[0].match not in _ALL):
                raise unsupported(
                    what, f"packets that match no filter have a line of their own: {self.nic} -> "
                    "any is for all packets"
                )  # fmt: skip
            self.draft.add_line(line_key(self.nic, self.direction), line, where)
            return
        band = (classid & 0xFFFF) - 1
        if isinstance(qdisc.options, Prio) and band in qdisc.options.priomap:
            self.notes.note(
                where, "prio priomap: leads packets of some TOS to a band, too: left out"
            )
        for each in filters:
            for rule in each.match or ():
                other = self.other(rule, each)
                key = line_key(self.nic, self.direction, other)
                self.draft.add_line(key, dict(line), each.where)

    def is_default(self, qdisc: Qdisc, classid: int) -> bool:
        if isinstance(qdisc.options, Prio):
            return classid == qdisc.handle | qdisc.options.priomap[0] + 1
        options = qdisc.options
        return isinstance(options, HtbQdisc) and classid == qdisc.handle | options.default

    def other(self, rule: Rule, each: Filter) -> str:
        """The NIC that a rule is about."""
        sends = self.direction == "egress"
        keys = ("destination", "destination_mac") if sends else ("source", "source_mac")
        if len(rule) != 1 or next(iter(rule)) not in keys:
            given = ", ".join(f"{name} {value}" for name, value in rule.items())
            raise unsupported(
                f"a line for packets with {given}",
                f"a line is for all packets between two NICs: expected {keys[0]} alone",
            )
        address = next(iter(rule.values()))
        found = self.names.of_address(address) or each.name
        if not found:
            raise unsupported(
                f"a line for {address}",
                f"no NIC is known to have it: write --map {str(address).partition('/')[0]}=NIC",
            )
        if found in (self.nic, ANY):
            raise ConfigError(f"{each.where}: {address} is {found}: expected another NIC")
        return found


def _size(what: str, size: int) -> str:
    if not QueueSize.LEAST <= size <= QueueSize.MOST:
        raise unsupported(
            f"{what} {format_size(size)}",
            f"a queue is {format_size(QueueSize.LEAST)} to {format_size(QueueSize.MOST)}",
        )
    return format_size(size)


def _fifo(leaf: Leaf, line: Settings) -> str | Settings:
    """The queue of a line for that of a fifo."""
    if "packets" in leaf.settings:
        packets = leaf.settings["packets"]
        if not 1 <= packets <= 1 << 20:
            raise unsupported(f"pfifo limit {packets}", "a queue is 1 to 1048576 packets")
        return {"packets": packets}
    if "size" in leaf.settings:
        size: str = leaf.settings["size"]
        QueueSize.parse(size)
        return size
    queue: str | Settings = line.get("queue", {"packets": 1000})
    return queue


def _ingress(device: Device, nic: str, direction: str, draft: Draft) -> None:
    """Filters of ingress and clsact: police and drop. mirred is read before."""
    for each in device.filters_of(INGRESS_HOOK):
        try:
            if each.broken is not None:
                raise each.broken
            if each.redirect or (each.police is None and each.verdict != "drop"):
                continue
            if each.match not in _ALL:
                raise unsupported(
                    "police or drop of some packets", "a line is for all packets: expected matchall"
                )
            line: Settings = {"loss": "100%"}
            if each.police is not None:
                rate, burst = each.police
                line = {"rate": line_rate("police rate", rate), "queue": _size("burst", burst)}
                draft.notes.warn(
                    each.where,
                    "police: drops what exceeds the rate and burst at once; here as much as the "
                    "burst waits, and no burst passes",
                )
            draft.add_line(line_key(nic, direction), line, each.where)
        except Unsupported as error:
            draft.notes.refuse(each.where, error)

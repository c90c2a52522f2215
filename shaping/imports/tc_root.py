"""What hangs below the root of a device of tc: lines, parts of lines, and classes."""

from __future__ import annotations

from dataplane.units import format_rate, format_size, format_time
from shaping.imports.classful import HtbClass, HtbQdisc, Prio, Tbf
from shaping.imports.form import Draft, Names, Settings, line_key
from shaping.imports.leaf import Leaf
from shaping.imports.leaves import LEAVES
from shaping.imports.netem import Netem, line_of, seed_of
from shaping.imports.nodes import Node, give_rules, in_order
from shaping.imports.notes import Unsupported, unsupported
from shaping.imports.overheads import overhead_setting
from shaping.imports.parts import Selection, put_selected
from shaping.imports.quantities import line_rate
from shaping.imports.tc_objects import ONE_CLASS, ROOT, Device, Qdisc, TcClass, id_text
from shaping.imports.tree import Tree, band_nodes, borrows_nothing, queue_of, tree_of, whole_tree
from shaping.policy.scalars import QueueLength, QueueSize

UNLIMITED_BPS = 10**10  # the least rate of a class that tools write for none


class Root:
    """What hangs below the root of one device."""

    def __init__(
        self, device: Device, nic: str, direction: str, names: Names, draft: Draft
    ) -> None:
        self.device, self.nic, self.direction = device, nic, direction
        self.names, self.draft, self.notes = names, draft, draft.notes
        self.line: Settings = {}

    def compile(self) -> None:
        tbf: Qdisc | None = None
        for qdisc in self.device.chain(ROOT):
            if qdisc.kind == "netem":
                self.netem(qdisc, self.line)
            elif qdisc.kind == "tbf":
                tbf = qdisc
                self.tbf(qdisc, self.line)
            else:
                self.last(qdisc, tbf)
        if self.line:
            key = line_key(self.nic, self.direction)
            self.draft.add_line(key, self.line, self.device.qdiscs[ROOT].where)

    def only_line(self) -> Settings:
        """The settings of netem and tbf, where there is nothing else. Raises Unsupported."""
        for qdisc in self.device.chain(ROOT):
            self.impairment(qdisc, self.line, f"mirred of some packets to {qdisc.kind}")
        return self.line

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
            found["queue"] = size_setting("tbf limit", tbf.limit)
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
        if kind in ("htb", "hfsc"):
            if tbf is not None:
                raise unsupported(f"{kind} below tbf", "a tree has its rate itself")
            self.classes_and_lines(qdisc)
        elif kind == "prio" and self.has_lines(qdisc):
            self.bands(qdisc)
        elif kind == "prio":
            self.prio(qdisc, tbf)
        elif kind in LEAVES:
            self.leaf(qdisc, tbf)
        else:
            raise unsupported(f"qdisc {kind}", "expected netem, tbf, htb, hfsc, prio or a queue")

    def classes(self, tree: Tree) -> None:
        self.draft.classes[f"{self.nic}.{self.direction}"] = tree.settings

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

    # -- lines for some packets --------------------------------------------------------------------

    def has_lines(self, qdisc: Qdisc) -> bool:
        """Whether classes of a qdisc impair packets."""
        return any(
            each.kind in ONE_CLASS for parent, each in self.device.qdiscs.items()
            if qdisc.handle and parent >> 16 == qdisc.handle >> 16 and parent & 0xFFFF
        )  # fmt: skip

    def classes_and_lines(self, qdisc: Qdisc) -> None:
        """A tree; where its leaves impair packets, with lines for them. htb whose classes have no
        parents to borrow from is a rate for each of the lines, without a tree."""
        impairs = self.has_lines(qdisc)
        tops = list(self.device.below(qdisc.handle))
        inner = any(next(self.device.below(each.classid), None) for each in tops)
        if impairs and qdisc.kind == "htb" and tops and not inner:
            self.rates(qdisc, tops)
            return
        tree = tree_of(self.device, qdisc, self.notes)
        self.classes(tree)
        if impairs:
            self.notes.note(
                qdisc.where,
                f"netem in a class of {qdisc.kind}: in tc packets are delayed before they wait "
                "for the class, here behind it",
            )
            self.lines(qdisc, tree.leaves, tree.default, in_tree=True)

    def rates(self, qdisc: Qdisc, tops: list[TcClass]) -> None:
        """Classes of htb without parents."""
        assert isinstance(qdisc.options, HtbQdisc)
        nodes = {each.classid: self.node(each.classid, each.where) for each in tops}
        default = nodes.get(qdisc.handle | qdisc.options.default)
        default = give_rules(self.device, qdisc, nodes, default, self.notes, for_lines=True)
        self.lines(qdisc, in_order(list(nodes.values()), self.notes), default)

    def bands(self, qdisc: Qdisc) -> None:
        """Bands of prio, of which some impair packets."""
        prio = qdisc.options
        assert isinstance(prio, Prio)
        ids = [qdisc.handle | minor for minor in range(1, prio.bands + 1)]
        nodes = {classid: self.node(classid, qdisc.where) for classid in ids}
        default: Node | None = nodes[ids[prio.priomap[0]]]
        default = give_rules(self.device, qdisc, nodes, default, self.notes, for_lines=True)
        for band in set(prio.priomap):
            node = nodes[ids[band]]
            if node.rules and node is not default and node.classid in self.device.qdiscs:
                self.notes.note(
                    self.device.qdiscs[node.classid].where,
                    "prio priomap: leads packets of some TOS to a band, too: left out",
                )
        self.lines(qdisc, in_order(list(nodes.values()), self.notes), default)

    def node(self, classid: int, where: str) -> Node:
        return Node(where, f"class-{classid & 0xFFFF:x}", classid, 0)

    def lines(
        self, qdisc: Qdisc, nodes: list[Node], default: Node | None, *, in_tree: bool = False
    ) -> None:
        """Lines for the packets of classes, which are in the order in which they are tried.
        in_tree: they are those of a tree, which has their rates."""
        ordered = [node for node in nodes if node.rules]
        if ordered and ordered[-1] is default:
            ordered.pop()  # its packets are among those that are left
        found = [self.selection(node, in_tree=in_tree) for node in ordered]
        if default is not None:
            found.append(self.selection(default, in_tree=in_tree)._replace(rules=[{}]))
        for node in nodes:
            if node.rules or node is default:
                continue
            selection = self.selection(node, in_tree=in_tree)
            if selection.settings:
                text = f"class {id_text(node.classid)}: no filter leads to it: left out"
                self.notes.note(selection.where, text)
        labels = {
            str(address): each.name for each in self.device.filters_of(qdisc.handle)
            if each.name and each.match and len(each.match) == 1 and len(each.match[0]) == 1
            for address in each.match[0].values()
        }  # fmt: skip

        def nic_of(address: str) -> str | None:
            return self.names.of_address(address) or labels.get(address)

        put_selected(self.draft, self.nic, self.direction, found, nic_of)

    def selection(self, node: Node, *, in_tree: bool) -> Selection:
        """What happens to the packets of a class."""
        first = self.device.qdiscs.get(node.classid)
        tc_class = self.device.classes.get(node.classid)
        name = node.name if in_tree else (first and first.name) or (tc_class and tc_class.name)
        where = first.where if first is not None else node.where
        line: Settings = {}
        try:
            if not in_tree or (first is not None and first.kind in ONE_CLASS):
                for each in self.device.chain(node.classid):
                    self.impairment(each, line, f"{each.kind} in a class")
            if tc_class is not None and not in_tree:
                self.rate_of_class(tc_class, line)
        except Unsupported as error:
            self.notes.refuse(where, error)
            line = {}
        return Selection(where, node.rules, line, name or "")

    def impairment(self, qdisc: Qdisc, line: Settings, what: str) -> None:
        """One of the qdiscs of a class."""
        leaf = qdisc.options
        if qdisc.kind == "netem":
            self.netem(qdisc, line)
        elif qdisc.kind == "tbf":
            self.tbf(qdisc, line)
        elif not isinstance(leaf, Leaf):
            raise unsupported(what, "expected netem, tbf or a queue")
        elif leaf.discipline == "fifo" and "rate" in line:
            line["queue"] = _fifo(leaf, line)
        elif leaf.discipline != "fifo" and "rate" in line:
            self.notes.note(qdisc.where, f"{qdisc.kind}: left out: a line has a fifo")

    def rate_of_class(self, tc_class: TcClass, line: Settings) -> None:
        """The rate of a class of htb without a parent, where netem in it has none."""
        options = tc_class.options
        assert isinstance(options, HtbClass)
        borrows_nothing(tc_class.where, tc_class.classid, options.rate, options.ceil, self.notes)
        if options.rate >= UNLIMITED_BPS:
            rate = format_rate(options.rate)
            self.notes.note(tc_class.where, f"htb rate {rate}: taken for no limit")
        elif "rate" not in line:
            line["rate"] = line_rate("htb rate", options.rate)
            overhead = overhead_setting("htb", *options.size)
            if overhead is not None:
                line["overhead"] = overhead


def size_setting(what: str, size: int) -> str:
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

"""What the worker records of a network: a series of samples for each direction of a NIC, each line
of the policy and each class. A series is a row of sums of counters, in the columns below."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from dataplane.graph.element import Element
from dataplane.graph.port import Port
from dataplane.graph.tally import Tally
from shaping.class_tallies import class_tallies, has_classes, tree_of
from shaping.link import Link
from shaping.settings import NO_MEMORY
from vnic.modules.lines import RunningLine
from vnic.modules.nic_node import NicNode
from vnic.modules.way import Way

# packets         on the wire: that a NIC received or transmitted, that a line delivered; of a class
#                 packets sent, a GSO frame as one
# bytes           theirs; of a class with the overhead of its line
# drops           packets dropped, but not those that a line was to lose
# queue_bytes     that wait now
# sojourn_ns      time in queues, summed over the sojourn_packets that left them
COMMON = ("packets", "bytes", "drops", "queue_bytes", "sojourn_ns", "sojourn_packets")
# no_memory       of the drops, those for want of the packet pool's buffers
# sent_bytes      of a line with a rate: what its rate counts
# arrived         packets that were to be lost, duplicated and so on; lost, duplicated, corrupted,
#                 reordered: those to which it happened, as asked
# delay_ns        delays, summed over delay_packets; a constant one behind a rate is in neither
OF_LINES = (
    "no_memory",
    "sent_bytes",
    "arrived",
    "lost",
    "duplicated",
    "corrupted",
    "reordered",
    "delay_ns",
    "delay_packets",
)
COUNTERS = {"arrived": "wire_packets", "delay_packets": "delayed"}  # of elements, by column
# marked          packets marked with CE
OF_CLASSES = ("marked",)
COLUMNS = (*COMMON, *OF_LINES, *OF_CLASSES)
NUMBER = {name: number for number, name in enumerate(COLUMNS)}
LEVELS = 1 << NUMBER["queue_bytes"]  # what is there now; all others count

Kind = Literal["nic", "line", "class"]
COLUMNS_OF: dict[Kind, tuple[str, ...]] = {
    "nic": COMMON,
    "line": (*COMMON, *OF_LINES),
    "class": (*COMMON, *OF_CLASSES),
}


@dataclass(eq=False)
class Series:
    """kind, name, way: what it is of; way: "egress" or "ingress" of a NIC, else "". of: what its
    counters belong to; a series whose `of` stays goes on as it is. asked, rate_bps: a line's
    settings, and its rate, or 0; since_ns: of a line or class, from when on samples have no other
    settings' counts."""

    kind: Kind
    name: str
    way: str
    of: object
    tally: Tally
    asked: str = ""
    rate_bps: int = 0
    since_ns: int | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.name, self.way

    @property
    def names(self) -> list[str]:
        """The names that stand for it: its own, and those of the classes that it is in."""
        if self.kind != "class":
            return [self.name]
        parts = self.name.split("/")
        return ["/".join(parts[: count + 1]) for count in range(len(parts))]

    def ended(self) -> Series:
        """The same, without what it is of, which then need not stay in memory."""
        return replace(self, of=None, tally=Tally(len(COLUMNS)), rate_bps=self.rate_now())

    def head(self) -> dict[str, Any]:
        """What it is, for an answer."""
        found: dict[str, Any] = {"kind": self.kind, "name": self.name}
        if self.way:
            found["way"] = self.way
        if self.asked:
            found["asked"] = self.asked
        if rate_bps := self.rate_now():
            found["rate_bps"] = rate_bps
        return found

    def rate_now(self) -> int:
        """A line's rate: that of its element, which a scenario or a share changes; 0: none."""
        if self.kind != "line" or not isinstance(self.of, tuple):
            return self.rate_bps
        return next((int(each.rate_bps) for each in self.of if isinstance(each, Link)), 0)


def series_of_nic(nic: NicNode) -> list[Series]:
    """Egress is what its container sends."""
    name = nic.config.name
    received, transmitted = Tally(len(COLUMNS)), Tally(len(COLUMNS))
    _port(received, nic.rx.port, "rx")
    received.add(NUMBER["drops"], nic.parse, "dropped")
    if isinstance(port := getattr(nic.nic.tx, "port", None), Port):
        _port(transmitted, port, "tx")
    for tally, way in ((received, nic.egress), (transmitted, nic.ingress)):
        _queues(tally, way)
    return [
        Series("nic", name, "egress", nic, received),
        Series("nic", name, "ingress", nic, transmitted),
    ]


def _port(tally: Tally, port: Port, verb: Literal["rx", "tx"]) -> None:
    tally.add_port(NUMBER["packets"], port, f"{verb}_wire_packets")
    tally.add_port(NUMBER["bytes"], port, f"{verb}_wire_bytes")
    tally.add_port(NUMBER["drops"], port, f"{verb}_dropped")


def _queues(tally: Tally, way: Way) -> None:
    """The queues of one direction. All packets pass the NIC's own shaper once, but those that a
    line loses behind its queue: the sum of all waits over their number is the mean."""
    for element in way.chain.elements:
        tally.add(NUMBER["drops"], element, "dropped", but=("loss",))
        for column in ("queue_bytes", "sojourn_ns"):
            if column in element.COUNTERS:
                tally.add(NUMBER[column], element, column)
        if "lost" in element.COUNTERS:
            tally.add(NUMBER["sojourn_packets"], element, "lost")
    for counter in ("passed", "delayed"):
        tally.add(NUMBER["sojourn_packets"], way.shaper, counter)


def series_of_line(running: RunningLine) -> Series:
    tally = Tally(len(COLUMNS))
    for element in running.elements:
        tally.add(NUMBER["drops"], element, "dropped", but=("loss",))
        others = [reason for reason in element.DROP_REASONS if reason not in NO_MEMORY]
        tally.add(NUMBER["no_memory"], element, "dropped", but=others)
        for column in ("queue_bytes", "sojourn_ns", *OF_LINES):
            counter = COUNTERS.get(column, column)
            # a queue counts what it delayed, too
            if counter in element.COUNTERS and (
                counter != "delayed" or "delay_ns" in element.COUNTERS
            ):
                tally.add(NUMBER[column], element, counter)
        if "sojourn_ns" in element.COUNTERS:
            tally.add(NUMBER["sojourn_packets"], element, "passed")
            tally.add(NUMBER["sojourn_packets"], element, "delayed")
    for last in running.elements[-1:]:
        tally.add(NUMBER["packets"], last, "delivered_packets")
        tally.add(NUMBER["bytes"], last, "delivered_bytes")
    return Series(
        "line", running.name, "", (*running.elements,), tally, running.asked, running.rate_bps
    )


CLASS_COUNTS: dict[str, str | tuple[str, ...]] = {
    "packets": "sent_packets",
    "bytes": "sent_bytes",
    "drops": ("queue_full", "codel", "over_memory", "blue"),
    "queue_bytes": "waiting_bytes",
    "sojourn_ns": "sojourn_ns",
    "sojourn_packets": "sent_packets",
    "marked": "marked",
}


def series_of_classes(element: Element, name: str, tree: object) -> list[Series]:
    """A series for all classes of an element, called `name`, and one for each: `name/path`."""
    counts = [CLASS_COUNTS.get(column, ()) for column in COLUMNS]
    return [
        Series("class", f"{name}/{path}" if path else name, "", tree, tally)
        for path, tally in class_tallies(tree, counts)
    ]


@dataclass(frozen=True)
class Classes:
    """An element with classes, and what its series are called."""

    element: Element
    name: str

    @property
    def tree(self) -> object:
        return tree_of(self.element)


def classes_in(ways: Iterable[tuple[str, Way]]) -> list[Classes]:
    """The elements with classes in directions of NICs and links, by the name of each direction.
    Those of a policy are called by where they are, such as web.egress."""
    return [
        Classes(element, place if way.chain.configs[element.name].shapes else element.name)
        for place, way in ways
        for element in way.chain.elements
        if has_classes(element) and element.name in way.chain.configs
    ]

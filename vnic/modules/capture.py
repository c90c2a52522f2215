"""Live captures: mirrors inserted into the running graph, and removed again.

In an upgrade the successor inserts its mirrors before it takes over, and opens the file again. A
lock orders the two workers: the old worker writes its packets first, the successor's wait until the
old worker has closed the file (dataplane/ports/pcap_writer.pyx).
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from dataplane.elements.mirror import Mirror
from dataplane.errors import ConfigError
from dataplane.graph.element import Element, Source
from dataplane.ports.pcap_writer import CaptureFile
from vnic.modules.nic_node import NicNode
from vnic.modules.switch_host import SwitchHost
from vnic.store.keeper import Keeper, write_document


def reopened(descriptor: int) -> str:
    """The path to open a file or pipe again. Locks of descriptors opened separately conflict."""
    return f"/proc/self/fd/{descriptor}"


def points(attached: NicNode, elements: list[Element]) -> list[str]:
    """The capture points of a NIC: its name (both directions), and the names of its elements."""
    name = attached.config.name
    return [name, *(element.name for element in elements if element.owner == name)]


class KeptCapture(msgspec.Struct, frozen=True):
    """The document stored under capture/N, see vnic.store.keeper."""

    point: str
    snaplen: int
    uid: int | None = None  # the user who started it, unless that is the instance's owner

    def keep(self, keeping: Keeper, number: int, descriptor: int) -> None:
        """Stores it in the supervisor as capture `number`, with the file or pipe that it writes.
        Raises VnicError."""
        document = write_document(msgspec.json.encode(self))
        try:
            keeping.put(f"capture/{number}", [document, descriptor])
        finally:
            os.close(document)


class LiveCapture:
    """Copies the packets that pass a point of a NIC to a file or pipe, from `start` until `stop`.

    point: a NIC's name (all that its container sends and receives, in one file), or an element's
    (its input; for a source, its output). The engine never waits for the file: packets that do not
    fit into the buffer are counted and not captured.
    """

    def __init__(
        self, home: SwitchHost, attached: NicNode, kept: KeptCapture, number: int, target: str
    ) -> None:
        point, snaplen = kept.point, kept.snaplen
        name = attached.config.name
        elements = {element.name: element for element in home.engine.elements}
        wanted = [f"{name}.rx", f"{name}.tx"] if point == name else [point]
        for each in wanted:
            if each not in elements or elements[each].owner != name:
                known = ", ".join(points(attached, home.engine.elements))
                raise ConfigError(
                    f"capture: there is no point {point}; {name} has {known}", code="not-found"
                )
        self.point, self.nic, self.home, self.kept = point, name, home, kept
        self.file = CaptureFile(
            f"capture of {point}", target, snaplen=snaplen, clock=home.engine.clock
        )
        self.mirrors = [
            # Named by number: a successor's elements get the same names, whatever captures were
            # started and stopped here.
            (elements[each], Mirror(self.file, snaplen, name=f"{each}.capture{number}"))
            for each in wanted
        ]
        for _, mirror in self.mirrors:
            mirror.owner = name
        self._counters: list[dict[str, int]] = []  # of the mirrors, at the end

    def start(self) -> None:
        """Inserts the mirrors, between two batches."""
        self.home.engine.call(self._insert_all)
        self.home.load(list(self.home.sources))

    def _insert_all(self) -> None:
        for element, mirror in self.mirrors:
            self._insert(element, mirror, self.home.engine.elements)

    def remove(self) -> None:
        """Takes the mirrors out of their places, on the engine's thread."""
        for _, mirror in self.mirrors:
            self._remove(mirror)

    def _insert(self, element: Element, mirror: Mirror, elements: list[Element]) -> None:
        if isinstance(element, Source):
            follower = element.outputs[0]
            assert follower is not None
            mirror.connect(0, follower)
            element.connect(0, mirror)
            return
        mirror.connect(0, element)
        for before, gate in _leading_to(elements, element):
            before.connect(gate, mirror)

    def _remove(self, mirror: Mirror) -> None:
        follower = mirror.outputs[0]
        assert follower is not None
        for before, gate in _leading_to(self.home.engine.elements, mirror):
            before.connect(gate, follower)

    def follow(self, elements: list[Element]) -> None:
        """After `remove`, when other elements take the place of those around it: puts the mirrors
        in front of the elements that have the names of those before. A mirror whose element is gone
        captures nothing more."""
        names = {element.name: element for element in elements}
        self.mirrors = [
            (names.get(element.name, element), mirror) for element, mirror in self.mirrors
        ]

        def work() -> None:
            for element, mirror in list(self.mirrors):
                if element.name in names:
                    self._insert(element, mirror, [*self.home.engine.elements, *elements])
                else:
                    self._counters.append(mirror.statistics()["counters"])
                    self.mirrors.remove((element, mirror))

        self.home.do(work)

    def stop(self) -> None:
        """Removes the mirrors."""
        self.home.engine.call(self.remove)
        self._counters += [mirror.statistics()["counters"] for _, mirror in self.mirrors]
        self.home.load(list(self.home.sources))

    @property
    def captured(self) -> int:
        """Number of packets captured, once it is stopped."""
        return sum(each["mirrored"] for each in self._counters)

    def finish(self) -> dict[str, Any]:
        """After `stop`: writes the rest and closes the file; returns packets captured and missed,
        and why writing ended early."""
        error = self.file.error
        self.file.close()
        return {
            "point": self.point,
            "captured": self.captured,
            "missed": sum(
                each["mirror_overflow"] + each["mirror_failed"] for each in self._counters
            ),
            "error": error,
        }


def _leading_to(elements: list[Element], target: Element) -> list[tuple[Element, int]]:
    return [
        (element, gate)
        for element in dict.fromkeys(elements)
        for gate, output in enumerate(element.outputs)
        if output is target
    ]

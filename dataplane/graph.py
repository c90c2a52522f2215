"""Graphs of elements: composition with `a >> b`, validation, and rendering as text and dot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataplane.element import Element, Source
from dataplane.errors import GraphError


class Path:
    """A path in a graph from `head` to output `gate` of `tail`; `>>` makes and extends it."""

    def __init__(self, head: Element, gate: int, tail: Element) -> None:
        self.head, self.gate, self.tail = head, gate, tail

    def __rshift__(self, other: Element | Path) -> Path:
        head = other.head if isinstance(other, Path) else other
        if not isinstance(head, Element):
            raise GraphError(f"{self.tail.name}: {other!r} cannot follow it: expected an element")
        if isinstance(head, Source):
            raise GraphError(f"{head.name}: is a source and takes no input, so it cannot follow {self.tail.name}")
        self.tail.connect(self.gate, head)
        if isinstance(other, Path):
            return Path(self.head, other.gate, other.tail)
        return Path(self.head, 0, other)


def walk(sources: Iterable[Element]) -> list[Element]:
    """All elements reachable from `sources`, sources first, each before its successors.

    Raises GraphError for an unconnected output, a cycle, or a start that is not a Source.
    """
    finished: list[Element] = []
    done: set[Element] = set()
    for source in sources:
        if not isinstance(source, Source):
            raise GraphError(f"{source.name}: is no source, so a graph cannot begin with it")
        _visit(source, [], done, finished)
    order = finished[::-1]
    return [e for e in order if isinstance(e, Source)] + [e for e in order if not isinstance(e, Source)]


# Not a function within `walk`: that would be in a cycle with what it uses, and all elements of a graph that is gone would live until
# Python's cycle collector runs, with the descriptors of their rings.
def _visit(element: Element, on_path: list[Element], done: set[Element], finished: list[Element]) -> None:
    if element in done:
        return
    if element in on_path:
        ring = [each.name for each in on_path[on_path.index(element) :]] + [element.name]
        raise GraphError(f"{element.name}: the graph has a cycle: {' >> '.join(ring)}")
    on_path.append(element)
    for gate, target in enumerate(element.outputs):
        if target is None:
            raise GraphError(f"{element.name}: gate {gate} leads nowhere; connect it, or end it in Discard()")
        _visit(target, on_path, done, finished)
    on_path.pop()
    done.add(element)
    finished.append(element)


def _label(element: Element) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in element.describe().items())
    kind = type(element).__name__
    head = element.name if element.name == kind else f"{element.name} :: {kind}"
    return f"{head}({settings})" if settings else head


def to_text(elements: Iterable[Element]) -> str:
    """One line per element: its class and settings, and the elements at its outputs."""
    lines = []
    for element in elements:
        targets = [
            f"[{gate}] -> {target.name}" if len(element.outputs) > 1 else f"-> {target.name}"
            for gate, target in enumerate(element.outputs)
            if target is not None
        ]
        lines.append(_label(element) + ("  " + "  ".join(targets) if targets else ""))
    return "\n".join(lines) + "\n"


def to_data(elements: Iterable[Element]) -> list[dict[str, Any]]:
    """The graph as data: one dict per element; `gates` has the names of the elements at its
    outputs."""
    return [
        {
            "name": element.name,
            "type": type(element).__name__,
            "settings": element.describe(),
            "gates": [target.name if target is not None else None for target in element.outputs],
        }
        for element in elements
    ]


def to_dot(elements: Iterable[Element]) -> str:
    """The graph in Graphviz' language."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = ["digraph vnic {", "  rankdir=LR;", "  node [shape=box, fontname=monospace];"]
    for element in elements:
        lines.append(f"  {quoted(element.name)} [label={quoted(_label(element))}];")
        for gate, target in enumerate(element.outputs):
            if target is not None:
                label = f" [label={quoted(str(gate))}]" if len(element.outputs) > 1 else ""
                lines.append(f"  {quoted(element.name)} -> {quoted(target.name)}{label};")
    return "\n".join([*lines, "}"]) + "\n"

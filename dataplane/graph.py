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
        if isinstance(head, Source) and not head.TAKES_INPUT:
            raise GraphError(f"{head.name}: is a source and takes no input, so it cannot follow {self.tail.name}")
        self.tail.connect(self.gate, head)
        if isinstance(other, Path):
            return Path(self.head, other.gate, other.tail)
        return Path(self.head, 0, other)


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

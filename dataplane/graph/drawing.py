"""Drawings of a graph of elements: text, dot for Graphviz, and plain data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataplane.graph.element import Element


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

"""Composition: connections that `>>` accepts, those that it rejects by name, and graph output."""

import pytest

from dataplane.elements.counter import Counter, Discard
from dataplane.errors import GraphError
from dataplane.graph.drawing import to_dot, to_text
from dataplane.graph.element import PyElement
from dataplane.graph.port import PortRx
from dataplane.graph.walk import walk
from dataplane.ports.memory import MemoryPort


class Fork(PyElement):
    OUTPUTS = 2

    def process(self, batch):
        batch.emit(batch.length > 100, 1)


def source():
    return PortRx(MemoryPort("a"))


def test_order_and_text():
    rx, fork, end = source(), Fork(), Discard()
    rx >> fork >> Counter(name="short") >> end
    fork[1] >> Counter(name="long") >> end
    elements = walk([rx])
    assert [element.name for element in elements][0] == "a.rx"
    assert elements.index(end) == len(elements) - 1
    assert to_text(elements).splitlines()[:2] == ["a.rx :: PortRx  -> Fork", "Fork  [0] -> short  [1] -> long"]
    dot = to_dot(elements)
    assert '"Fork" -> "long" [label="1"];' in dot and dot.startswith("digraph vnic {")


def test_dangling_gate_is_named():
    rx, fork = source(), Fork()
    rx >> fork >> Discard()
    with pytest.raises(GraphError, match="Fork: gate 1 leads nowhere"):
        walk([rx])


def test_cycle_is_spelled_out():
    rx, one, two = source(), Counter(name="one"), Counter(name="two")
    rx >> one >> two >> one
    with pytest.raises(GraphError, match="cycle: one >> two >> one"):
        walk([rx])


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: Counter()[1], "Counter: has no gate 1"),
        (lambda: Counter()[-1], "Counter: has no gate -1"),
        (lambda: Discard() >> Counter(), "Discard: has no outputs"),
        (lambda: Counter() >> source(), "is a source and takes no input"),
        (lambda: Counter() >> 5, "cannot follow"),
        (lambda: walk([Counter()]), "is no source"),
    ],
)
def test_wrong_compositions(compose, message):
    with pytest.raises(GraphError, match=message):
        compose()


def test_paths_compose():
    rx, one, two = source(), Counter(name="one"), Counter(name="two")
    tail = one >> two
    rx >> tail >> Discard()
    assert [element.name for element in walk([rx])] == ["a.rx", "one", "two", "Discard"]

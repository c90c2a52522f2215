"""Elements in Python: columns, frames, drops and gates by mask, and what happens when they
raise."""

import time

import numpy as np
import pytest

from dataplane.elements.counter import Discard
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.graph.element import REPORT_S, PyElement, report_failure
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort


def run(element, frames, gates=()):
    pool = PacketPool(small=512, large=8)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx = PortRx(a)
    rx >> element >> PortTx(b)
    for gate in gates:
        element[gate] >> Discard(name=f"discard{gate}")
    engine.load([rx])
    a.inject(frames)
    advance(engine, 1)
    assert engine.conservation()["conserved"]
    assert pool.in_use == 0
    return [frame.data for frame in b.take()], element.statistics()


def test_columns_and_frames():
    seen = {}

    class Look(PyElement):
        def process(self, batch):
            seen["length"] = batch.length.tolist()
            seen["head"] = batch.head(2).tolist()
            batch.frame(1)[0] = 9
            batch.set("mark", np.arange(len(batch)))
            seen["mark"] = batch.mark.tolist()
            with pytest.raises(AttributeError, match="no column 'colour'"):
                _ = batch.colour

    out, _ = run(Look(), [b"\1" * 60, b"\2" * 100, b"\3"])
    assert seen == {"length": [60, 100, 1], "head": [[1, 1], [2, 2], [3, 0]], "mark": [0, 1, 2]}
    assert out == [b"\1" * 60, b"\x09" + b"\2" * 99, b"\3"]


def test_drop_and_emit_by_mask():
    class Sort(PyElement):
        OUTPUTS = 2
        DROP_REASONS = ("odd", "tiny")

        def process(self, batch):
            batch.emit(batch.length > 200, 1)
            batch.drop(batch.length % 2 == 1, "odd")
            batch.drop(batch.length < 60, "tiny")

    out, statistics = run(Sort(), [bytes(n) for n in (10, 60, 61, 300, 301, 62)], gates=(1,))
    assert [len(frame) for frame in out] == [60, 62]
    assert statistics["dropped"] == {"exception": 0, "odd": 2, "tiny": 1}


def test_an_exception_costs_the_batch_and_nothing_else(caplog):
    class Fails(PyElement):
        def process(self, batch):
            if batch.length[0] == 60:
                raise RuntimeError("on purpose")

    element = Fails()
    out, statistics = run(element, [bytes(60)] * 3)
    assert out == [] and statistics["dropped"]["exception"] == 3
    assert isinstance(element.last_error, RuntimeError)
    (record,) = caplog.records
    assert record.getMessage() == "element failed" and record.exc_info[1] is element.last_error
    assert record.fields == {"element": element.name, "exception": "RuntimeError: on purpose"}
    out, _ = run(Fails(), [bytes(61)] * 3)
    assert len(out) == 3


def test_an_element_that_fails_for_every_batch_does_not_flood_the_log(caplog, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    element = Broken()
    for _ in range(50):
        report_failure(element, ValueError("again"))
    assert len(caplog.records) == 1
    now_s[0] += REPORT_S
    report_failure(element, ValueError("still"))
    report_failure(Broken(), ValueError("another element"))
    assert [record.fields.get("unreported") for record in caplog.records] == [None, 49, None]


class Broken(PyElement):
    """Its process is never called."""


def test_wrong_masks_are_refused():
    class Wrong(PyElement):
        def process(self, batch):
            batch.drop([1, 2])

    element = Wrong()
    run(element, [bytes(60)])
    assert "mask: expected 1 booleans" in str(element.last_error)


@pytest.mark.parametrize("left", ["one too few", "no gate", "no reason", "words"])
def test_fates_that_make_no_sense_drop_the_batch_once(left, caplog):
    """Results of `process` are checked before the first packet of the batch is passed on: each
    packet is freed once."""

    class Wrong(PyElement):
        def process(self, batch):
            if left == "one too few":
                batch._fate = batch._fate[:-1]
            elif left == "words":
                batch._fate = ["on"] * len(batch)
            else:
                batch._fate[-1] = 1 if left == "no gate" else -9

    out, statistics = run(Wrong(), [bytes(60)] * 5)
    assert out == []
    assert statistics["dropped"] == {"exception": 5, "dropped": 0}
    (record,) = caplog.records
    assert record.fields["exception"].startswith("ValueError: ")

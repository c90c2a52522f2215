"""Sums of counters that control reads: of elements, ports and classes, against what these say themselves."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.counter import Counter, Discard
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import GraphError
from dataplane.graph.port import PortRx, PortTx
from dataplane.graph.tally import Steps, Tally, TallyTable
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.class_tallies import class_tallies, has_classes, tree_of
from shaping.link import Link
from tests.test_scheduler import Bench, packet
from tests.wire_frames import TCP, Spec

FRAME = bytes(60)


@pytest.fixture
def bench():
    """a >> counter >> link >> b, in virtual time."""
    pool = PacketPool(small=512, large=32)
    engine = Engine("e0", pool, clock=Clock(virtual=True, start_ns=10**9))
    a, b = MemoryPort("a", 0, 2), MemoryPort("b", 1)
    counter, link = Counter(name="seen"), Link("1mbit", {"packets": 4}, name="line")
    rx = PortRx(a)
    rx >> counter >> link >> PortTx(b)
    engine.load([rx])
    yield engine, a, b, counter, link
    assert engine.conservation()["conserved"]
    engine.close()


def test_sums_are_those_of_elements_and_ports(bench):
    engine, a, _, counter, link = bench
    tally = Tally(7)
    tally.add(0, counter, "packets")
    tally.add(0, link, "packets")
    tally.add(1, link, "dropped")
    tally.add(2, link, "held")
    tally.add(3, link, "queue_bytes")
    tally.add_port(4, a, "rx_wire_bytes")
    tally.add_port(5, a, "rx_packets")
    tally.add(6, link, "dropped", but=("queue_full",))
    assert tally.read() == [0] * 7
    a.inject([FRAME] * 10 + [Spec(protocol=TCP, payload=bytes(3000)).frame(1000)])
    advance(engine, 10**9)
    seen, line, [first, second] = counter.statistics(), link.statistics(), a.queue_statistics()
    drops = sum(line["dropped"].values())
    assert drops and line["counters"]["queue_bytes"]
    assert tally.read() == [
        seen["packets"] + line["packets"], drops, line["held"], line["counters"]["queue_bytes"],
        first["rx_wire_bytes"] + second["rx_wire_bytes"], 11, 0,
    ]  # fmt: skip
    advance(engine, 11 * 10**9)


def test_what_was_counted_stays_readable_after_its_element_has_gone(bench):
    engine, a, _, counter, _ = bench
    tally = Tally(1)
    tally.add(0, counter, "packets")
    a.inject([FRAME] * 3)
    advance(engine, 2 * 10**9)
    rx = PortRx(a, name="other")
    rx >> Discard()
    engine.load([rx])
    del counter
    assert tally.read()[0] in (0, 3)  # a graph's change may have reset it


@pytest.mark.parametrize(
    ("add", "says"),
    [
        (lambda tally, link, port: tally.add(0, link, "absent"), "line: Link does not count absent"),
        (lambda tally, link, port: tally.add(2, link, "packets"), "column 2 of a Tally: it has 2"),
        (lambda tally, link, port: tally.add_port(0, port, "packets"), "port a: does not count packets"),
        (lambda *_: Tally(0), "expected 1 to 32"),
        (lambda *_: Tally(33), "expected 1 to 32"),
    ],
)
def test_what_cannot_be_added_is_one_line(bench, add, says):
    _, a, _, _, link = bench
    with pytest.raises(GraphError, match=says):
        add(Tally(2), link, a)


class Counted:
    """Ports whose counters a test sets."""

    def __init__(self, count: int, levels: int = 0) -> None:
        self.ports = [MemoryPort(f"p{n}", n) for n in range(count)]
        self.tallies = []
        for port in self.ports:
            tally = Tally(2)
            tally.add_port(0, port, "rx_packets")
            tally.add_port(1, port, "rx_bytes")
            self.tallies.append(tally)
        self.table = TallyTable([10 + n for n in range(count)], self.tallies, 2, levels)

    def set(self, values: list[tuple[int, int]]) -> None:
        for port, (packets, octets) in zip(self.ports, values, strict=True):
            port.load_statistics("rx", [[packets, octets, 0, 0, 0]])


def unpacked(records: bytes) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("=3Q", records))


values = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1)), min_size=3, max_size=3)


@settings(deadline=None)
@given(st.lists(values, max_size=5), st.integers(0, 3))
def test_records_are_what_has_been_counted_since(steps, levels):
    counted, before = Counted(3, levels), [(0, 0)] * 3
    for step in steps:
        counted.set(step)
        expected = []
        for row, (now, was) in enumerate(zip(step, before, strict=True)):
            change = [
                each if levels >> column & 1 or each < was[column] else each - was[column] for column, each in enumerate(now)
            ]
            level = any(levels >> column & 1 and each for column, each in enumerate(now))
            if now != was or level:
                expected.append((10 + row, *change))
        assert unpacked(counted.table.take()) == expected
        before = step


def test_a_table_goes_on_where_another_ended_or_begins_anew():
    counted = Counted(3)
    counted.set([(1, 10), (2, 20), (3, 30)])
    counted.table.take()
    counted.set([(2, 20), (4, 40), (6, 60)])
    other = TallyTable([7, 8], [counted.tallies[2], counted.tallies[1]], 2)
    other.go_on(0, counted.table, 2)
    other.begin(1)
    assert unpacked(other.take()) == [(7, 3, 30)]
    counted.set([(2, 20), (5, 50), (6, 60)])
    assert unpacked(other.take()) == [(8, 1, 10)]


records = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2**40), st.integers(0, 2**40)), max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), records), max_size=6), st.sets(st.integers(0, 4)), st.integers(0, 3))
def test_steps_add_up_records(samples, ids, levels):
    steps = Steps(3, 2, levels=levels, ids=ids, most=15)
    expected: dict[int, list[list[int]]] = {}
    for step, rows in samples:
        steps.add(step, b"".join(struct.pack("=3Q", *row) for row in rows))
        for id, *numbers in rows:
            if id in ids:
                sums = expected.setdefault(id, [[0, 0, 0], [0, 0, 0]])
                for column, number in enumerate(numbers):
                    was = sums[column][step]
                    sums[column][step] = max(was, number) if levels >> column & 1 else was + number
    for id in range(6):
        assert [steps.column(id, column) for column in range(2)] == expected.get(id, [[], []])


def test_what_does_not_fit_is_refused():
    counted = Counted(2)
    for make in (
        lambda: TallyTable([1], counted.tallies, 2),
        lambda: TallyTable([1, 2], counted.tallies, 3),
        lambda: TallyTable([1, 2], counted.tallies, 33),
        lambda: counted.table.begin(2),
        lambda: counted.table.go_on(2, counted.table, 0),
        lambda: counted.table.go_on(0, counted.table, 2),
        lambda: counted.table.go_on(0, TallyTable([], [], 3), 0),
        lambda: Steps(1, 0, ids=(), most=1),
        lambda: Steps(1, 2, ids=(), most=1).add(0, bytes(23)),
        lambda: Steps(1, 2, ids=(), most=1).add(1, bytes(24)),
        lambda: Steps(1, 2, ids=(0, 1), most=1).add(0, bytes(24) + struct.pack("=3Q", 1, 0, 0)),
    ):
        with pytest.raises(GraphError):
            make()
    with pytest.raises(TypeError):
        TallyTable([1], [None], 2)


TREE = {
    "rate": "8mbit", "default": "rest",
    "tree": {"gold": {"tree": {"voice": {"mark": 1}, "video": {"mark": 2}}},
             "rest": {"queue": {"discipline": "fifo", "packets": 3}}},
}  # fmt: skip


def test_the_sums_of_classes_are_those_of_the_scheduler():
    bench = Bench(TREE)
    assert has_classes(bench.scheduler) and not has_classes(Counter())
    tree = tree_of(bench.scheduler)
    assert tree is tree_of(bench.scheduler)
    tallies = class_tallies(
        tree, ["sent_packets", "sent_bytes", "waiting_bytes", "sojourn_ns", "marked", ("queue_full", "codel", "over_memory")]
    )
    bench.inject(*(packet(mark) for mark in [1] * 5 + [2] * 3 + [9] * 9))
    bench.advance(10**9 + 5_000_000)
    rows = {row["path"]: row for row in bench.scheduler.get_classes()}
    assert rows[""]["dropped"]["queue_full"] > 0 < rows[""]["waiting_bytes"]
    for path, tally in tallies:
        row = rows[path]
        assert tally.read() == [
            row["sent_packets"], row["sent_bytes"], row["waiting_bytes"], row["sojourn_ns"], row["marked"],
            sum(row["dropped"].values()),
        ]  # fmt: skip
    assert [path for path, _ in tallies] == ["", "gold", "gold/voice", "gold/video", "rest"]
    bench.change({**TREE, "rate": "9mbit"})
    assert tree_of(bench.scheduler) is not tree
    [before] = [tally.read() for path, tally in tallies if path == ""]  # the old one stays in memory
    assert len(before) == 6
    with pytest.raises(GraphError, match="does not count absent"):
        class_tallies(tree, ["absent"])

"""States that load_engine rejects, in one line and without effect on either engine; damaged data
has no effect either."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dataplane.elements.counter import Discard
from dataplane.engine import handover
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handover import PREFIX, forget_engine, load_engine, save_engine
from dataplane.engine.running import start
from dataplane.errors import VnicError
from dataplane.graph.element import PyElement
from dataplane.graph.port import PortRx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from tests.handover_twin import MBIT, Pair, busy, contents, entry, finish, packed


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    return finish(busy())


# -- rejected states -------------------------------------------------------------------------------


def set_held(content: dict[str, Any], packets: list[Any]) -> None:
    shaper = entry(content, "a.egress")
    fits = all(isinstance(index, int) and index >= 0 for index in packets)
    shaper["state"]["packets"] = struct.pack(f"<{len(packets)}I", *packets) if fits else packets
    shaper["statistics"]["held"] = len(packets) - 1  # one of them is being segmented


def held(content: dict[str, Any]) -> list[int]:
    packets = entry(content, "a.egress")["state"]["packets"]
    return list(struct.unpack(f"<{len(packets) // 4}I", packets))


CHANGES: dict[str, tuple[Any, str]] = {
    "other engine": (lambda c: c.update(name="e9"), "the state is that of engine e9"),
    "other clock": (lambda c: c.update(clock="monotonic"), "by another clock"),
    "later": (lambda c: c.update(now_ns=2**62), "by another clock"),
    "other pool": (lambda c: c["pool"].update(inode=1), "another pool"),
    "of another format": (lambda c: c.update(random_state=1), "its state is damaged: ValidationError: Object contains unknown"),
    "missing element": (lambda c: c["elements"].pop(), "its state is of another graph: .* only here"),
    "unknown element": (lambda c: c["elements"][0].update(name="x\ny"), r"of another graph: x\?y only there, .* only here"),
    "twice": (lambda c: c["elements"].append(c["elements"][0]), "two elements of one name"),
    "other class": (lambda c: entry(c, "a.0").update(kind="Discard"), "a.0: is a Counter here, and a Discard in the state"),
    "newer": (lambda c: entry(c, "a.0").update(version=2), "a.0: its state has version 2, this Counter reads up to 1"),
    "older": (lambda c: entry(c, "a.0").update(version=0), "a.0: a Counter has no way from version 0 of its state to 1"),
    "negative": (
        lambda c: entry(c, "a.0")["statistics"].update(packets=-1),
        "its state is damaged: ValidationError: Expected `int` >= 0",
    ),
    "strange drop": (lambda c: entry(c, "a.0")["statistics"]["dropped"].update(late=1), "does not count late"),
    "strange state": (lambda c: entry(c, "a.0")["state"].update(x=1), "Counter has no state, and was given x"),
    "held by a counter": (lambda c: entry(c, "a.0")["statistics"].update(held=1), "holds 1 packets and names 0"),
    "packets of a counter": (lambda c: entry(c, "a.0")["state"].update(packets=[]), "has no state"),
    "beyond the pool": (lambda c: set_held(c, [*held(c), 2048 + 64]), "packet 2112, which the pool does not have"),
    "negative index": (lambda c: set_held(c, [*held(c), -1]), "not a list of packets"),
    "odd bytes": (lambda c: entry(c, "a.egress")["state"].update(packets=b"123"), "not a list of packets"),
    "no index": (lambda c: set_held(c, [*held(c), "1"]), "not a list of packets"),
    "named twice": (lambda c: set_held(c, [*held(c), held(c)[0]]), "which a.egress holds"),
    "free packet": (lambda c: set_held(c, [*held(c), 2047]), "packet 2047, which is free"),
    "other order": (lambda c: set_held(c, held(c)[::-1]), "is not linked as the queue says"),
    "one short": (lambda c: set_held(c, held(c)[1:]), "wait, its counters say"),
    "other bytes": (lambda c: entry(c, "a.egress")["statistics"]["counters"].update(queue_bytes=3), "its counters say .* of 3"),
    "rate": (lambda c: entry(c, "a.egress")["state"].update(rate_bps=1), "a rate of 1 bit/s"),
    "no rate": (lambda c: entry(c, "a.egress")["state"].update(rate_bps="1mbit"), "not that of a Shaper"),
    "far future": (lambda c: entry(c, "a.egress")["state"].update(next_ns=2**63), "its clock says"),
    "emptied later": (lambda c: entry(c, "a.egress")["state"].update(emptied_ns=2**63), "its clock says"),
    "remainder": (lambda c: entry(c, "a.egress")["state"].update(remainder=MBIT // 5), "its clock says"),
    "cut nothing": (
        lambda c: entry(c, "a.egress")["state"].update(split=[held(c)[-1], 10**6]),
        "cannot be the one that is being cut",
    ),
    "cut another's": (lambda c: entry(c, "a.egress")["state"].update(split=[2000, 0]), "cannot be the one that is being cut"),
    "cut what": (lambda c: entry(c, "a.egress")["state"].update(split=[1]), "not that of a Shaper"),
    "queues": (lambda c: entry(c, "a.rx")["state"]["queues"].pop(), "has 2 queue pairs, its state 1"),
    "queue": (lambda c: entry(c, "a.rx")["state"]["queues"].__setitem__(0, [1, 2]), "not five numbers"),
    "no queues": (lambda c: entry(c, "a.rx")["state"].clear(), "not a list of queues"),
    "rss": (lambda c: entry(c, "a.tx")["state"].update(rss_table=[5]), "names queue 5"),
    "rss key": (lambda c: entry(c, "a.tx")["state"].update(rss_key=b"1"), "a key of 1 bytes"),
    "hits": (lambda c: entry(c, "a.split")["state"]["hits"].append(1), "does not fit 2 rules"),
    "ageing": (lambda c: entry(c, "switch")["state"].update(ageing_ns=2**63), "ageing is due at"),
    "further field": (lambda c: c.update(x=1), "unknown field"),
}


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_a_state_that_does_not_fit_is_refused_in_one_line(undisturbed, what: str):
    change, message = CHANGES[what]
    pair = busy()
    new = pair.build(0)
    before = new.engine.snapshot(), save_engine(new.engine)
    content = contents(save_engine(pair.homes[0].engine))
    change(content)
    with pytest.raises(VnicError, match=message) as caught:
        load_engine(new.engine, packed(content))
    assert str(caught.value).isprintable()
    assert (new.engine.snapshot(), save_engine(new.engine)) == before
    new.engine.close()
    assert finish(pair) == undisturbed


@pytest.mark.parametrize(
    "data", [b"", b"vnicengn", b"x" * 100, PREFIX.pack(b"vnicengn", 1), PREFIX.pack(b"vnicengn", 0) + b"\x80"]
)
def test_what_is_no_state_is_refused(data: bytes):
    pair = Pair((None, None), (None, None))
    with pytest.raises(VnicError, match=r"^engine a: (what was handed over is no engine's state|its state is damaged)"):
        load_engine(pair.homes[0].engine, data)
    pair.close()


def test_a_newer_format_is_refused():
    pair = Pair((None, None), (None, None))
    data = save_engine(pair.homes[0].engine)
    with pytest.raises(
        VnicError, match="^engine a: its state has format 3, this vnic reads up to 2; take one at least as new$"
    ):
        load_engine(pair.homes[0].engine, PREFIX.pack(handover.MAGIC, 3) + data[PREFIX.size :])
    pair.close()


def test_an_engine_that_has_seen_packets_takes_no_state():
    pair = busy()
    with pytest.raises(VnicError, match="has seen packets of its own"):
        load_engine(pair.homes[0].engine, save_engine(pair.homes[0].engine))
    pair.close()


def test_a_running_engine_is_neither_loaded_nor_forgotten():
    pool = PacketPool(64, 2)
    engine, other = Engine("e", pool), Engine("e", pool)
    sources = []
    for each in (engine, other):
        rx = PortRx(MemoryPort("m"))
        _ = rx >> Discard()
        each.load([rx])
        sources.append(rx)
    start(engine)
    data = save_engine(engine)  # taken between two batches
    with pytest.raises(VnicError, match="runs; a state is loaded before it starts"):
        load_engine(engine, data)
    with pytest.raises(VnicError, match="runs; stop it before another takes over"):
        forget_engine(engine)
    engine.stop()
    load_engine(other, data)
    forget_engine(engine)
    for each in (engine, other):
        each.close()


class Odd(PyElement):
    """Returns the test's value as its state."""

    state: Any = None

    def save_state(self) -> Any:
        return self.state


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "state", [None, [], {1: 2}, {"a": {1}}, {"a": (1,)}, {"a": 1 << 64}, {"a": LOOP}, {"packets": 3}, {"a": object()}]
)
def test_a_state_of_a_users_element_is_plain_data(state: Any):
    engine = Engine("e", PacketPool(64, 2), clock=Clock(virtual=True))
    rx, odd = PortRx(MemoryPort("m")), Odd(name="odd")
    _ = rx >> odd >> Discard()
    engine.load([rx])
    odd.state = state
    with pytest.raises(VnicError, match="^odd: save_state must return a dict of plain data"):
        save_engine(engine)
    odd.state = {"a": [1, -1, 1.5, None, True, b"x", {"y": [[]]}], "packets": []}
    assert entry(contents(save_engine(engine)), "odd")["state"] == odd.state
    engine.close()


def test_what_cannot_move_says_so():
    from dataplane.ports.loopback import LoopbackPort

    engine = Engine("e", PacketPool(64, 2), clock=Clock(virtual=True))
    rx = PortRx(LoopbackPort("lo"))
    _ = rx >> Discard()
    engine.load([rx])
    with pytest.raises(VnicError, match="^port lo: a LoopbackPort cannot be handed over; take it out of the graph first$"):
        save_engine(engine)
    engine.close()


def goes_on_after(pair: Pair, data: bytes) -> None:
    """The state is rejected, or it is a possible state. In both cases: nothing is written before
    the point of no return, the engine that continues works, and every packet is freed once."""
    old, new = pair.homes[0], pair.build(0)
    records = pair.pool.records.copy()
    try:
        load_engine(new.engine, data)
    except VnicError as error:
        assert str(error).isprintable()
        new.engine.close()
        assert (pair.pool.records == records).all()
    else:
        event("loaded")
        assert (pair.pool.records == records).all()
        forget_engine(old.engine)
        old.engine.close()
        pair.homes[0] = new
    pair.run(300 * 10**9, 3)
    for home in pair.homes:
        home.engine.close()
    assert pair.pool.in_use == 0


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6), cut=st.integers(0, 3))
def test_damaged_bytes_do_no_harm(changes: list[tuple[int, int]], cut: int):
    pair = busy(small=512)
    data = bytearray(save_engine(pair.homes[0].engine))
    for where, value in changes:
        data[where % len(data)] = value
    goes_on_after(pair, bytes(data[: len(data) - cut]))


PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.integers(0, 600), st.floats(), st.text(), st.binary()
    ),
    lambda each: st.one_of(st.lists(each, max_size=3), st.dictionaries(st.text(max_size=3), each, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_values_that_cannot_be_do_no_harm(data: st.DataObject):
    pair = busy(small=512)
    content = contents(save_engine(pair.homes[0].engine))
    for _ in range(data.draw(st.integers(1, 3))):
        elements = content["elements"]
        where: Any = data.draw(st.sampled_from(elements)) if elements and data.draw(st.integers(0, 9)) else content
        while isinstance(where, list | dict):
            keys = list(range(len(where))) if isinstance(where, list) else list(where)
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(where[key], list | dict) and data.draw(st.integers(0, 5)):
                where = where[key]
                continue
            if isinstance(where[key], int) and data.draw(st.booleans()):
                where[key] += data.draw(st.sampled_from([-1, 1, 7, 2**20]))
            elif where[key] is not elements:
                where[key] = data.draw(PLAIN)
            break
    try:
        damaged = packed(content)
    except (OverflowError, UnicodeEncodeError):  # a count beyond 64 bits, half a surrogate pair
        damaged = b""
    goes_on_after(pair, damaged)

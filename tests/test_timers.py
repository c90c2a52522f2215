"""The engine's timers: the heap compared with a dict, and shapers of many rates, all on time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.engine import Engine
from dataplane.engine.running import start
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.shaper import Shaper
from tests.twins import compiled

NEVER = 2**64 - 1
ELEMENTS, ROOM = 12, 10


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The class TwinHeap, compiled for the test."""
    return compiled("timers_twin", tmp_path_factory.mktemp("timers")).TwinHeap


changes = st.lists(st.tuples(st.integers(0, ELEMENTS - 1), st.integers(0, 20) | st.just(NEVER)), max_size=80)


@settings(max_examples=300, deadline=None)
@given(changes)
def test_the_heap_is_that_of_a_dict(twin, changes):
    heap, reference = twin(ELEMENTS, ROOM), {}
    for element, deadline in changes:
        heap.set(element, deadline)
        if deadline == NEVER:
            reference.pop(element, None)
        elif element in reference or len(reference) < ROOM:  # without room there is no timer
            reference[element] = deadline
        assert sorted(heap.entries()) == sorted((due, each) for each, due in reference.items())
        assert heap.first() == min(reference.values(), default=NEVER)
    for element in list(reference):
        heap.remove(element)
        heap.remove(element)
        del reference[element]
        assert sorted(heap.entries()) == sorted((due, each) for each, due in reference.items())


PACKETS, BYTES = 20, 100


@pytest.mark.parametrize("lanes", [1, 100])
def test_shapers_of_many_rates(lanes):
    """Each packet leaves, none early, and the engine sleeps while none is due."""
    pool = PacketPool(small=8192, large=8)
    engine, sources, ports, slowest_s = Engine("e0", pool), [], [], 0.0
    for number in range(lanes):
        rate = 160_000 + 37_000 * ((number * 7919) % lanes)  # neither rising nor falling
        into, out = MemoryPort(f"in{number}", 2 * number), MemoryPort(f"out{number}", 2 * number + 1)
        rx = PortRx(into)
        rx >> Shaper(rate, 10**10, name=f"rate{number}") >> PortTx(out)
        sources.append(rx)
        ports += [into, out]
        slowest_s = max(slowest_s, (PACKETS - 1) * BYTES * 8 / rate)
    engine.load(sources)
    start(engine)
    try:
        began_s = time.monotonic()
        for into in ports[::2]:
            into.inject([bytes(BYTES)] * PACKETS)
        end_s = time.monotonic() + 120
        while sum(statistics["transmitted"] for _, statistics in engine.snapshot()) < lanes * PACKETS:
            assert time.monotonic() < end_s, "in vain"
        assert time.monotonic() - began_s >= 0.9 * slowest_s  # a shaper catches up on a late timer
        assert engine.conservation()["held"] == 0 and engine.status()["sleeps"] > 0
    finally:
        engine.close()
        for port in ports:
            port.close()
    assert pool.in_use == 0

"""NicTx: every packet on the queue that its hash selects, in order, and none lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.frames import UDP, frame
from dataplane.elements.nic_tx import NicTx
from dataplane.elements.parse import Parse
from dataplane.elements.rss import Rss
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(1, 60000), max_size=300))
def test_each_packet_leaves_by_the_queue_of_its_hash(queues, ports):
    pool = PacketPool(small=512, large=8)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    source, nic = MemoryPort("a", 0), MemoryPort("b", 1, queues=queues)
    rss = Rss(queues=queues)
    rx = PortRx(source)
    rx >> Parse() >> NicTx(nic, rss)
    engine.load([rx])
    source.inject([frame(UDP, 100, destination_port=port) for port in ports])
    advance(engine, 1)
    sent = nic.take()
    for queue in range(queues):
        expected = [
            port for port in ports if rss.table[rss.hash_tuple("10.0.0.1", "10.0.0.2", 40000, port) % len(rss.table)] == queue
        ]
        assert [int.from_bytes(each.data[36:38], "big") for each in sent if each.queue == queue] == expected
    assert engine.conservation()["conserved"] and engine.conservation()["transmitted"] == len(ports)
    assert pool.in_use == 0


def test_more_queues_than_the_port_has_are_refused():
    with pytest.raises(ConfigError, match="RSS over 64 queues, but the port has 2"):
        NicTx(MemoryPort("b", 1, queues=2), Rss(queues=64))
    with pytest.raises(TypeError):
        NicTx(MemoryPort("b", 1, queues=2), None)

"""Ports of a switch: many ports, changes while it runs, invalid ports."""

from __future__ import annotations

import pytest

from dataplane.errors import ConfigError
from dataplane.graph.port import PortTx
from dataplane.ports.memory import MemoryPort
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable
from tests.test_l2_switch import BROADCAST, Bench, ethernet, mac


def test_a_thousand_ports():
    bench = Bench(1024, small=8192)
    for port in range(1024):
        bench.switch.activate(port)
    # More copies than the pool has packets: they are transmitted while they are made.
    out = bench.send(1023, *[ethernet(BROADCAST, mac(1))] * 20)
    assert [len(frames) for frames in out] == [20] * 1023 + [0]
    assert [len(frames) for frames in bench.send(7, ethernet(mac(1), mac(2)))] == [0] * 1023 + [1]
    bench.close()


def test_ports_come_and_go_while_it_runs():
    bench = Bench(2)
    bench.switch.activate(0)
    bench.switch.activate(1)
    late = MemoryPort("late", 2)

    def add() -> None:
        bench.switch.set_gates(4)
        for gate in (2, 3):
            bench.switch.connect(gate, PortTx(late, name=f"late{gate}"))
        bench.switch.activate(2)

    bench.engine.call(add)
    bench.engine.load(bench.engine.sources)
    assert [len(frames) for frames in bench.send(0, ethernet(BROADCAST, mac(1)))] == [0, 1]
    assert len(late.take()) == 1
    assert bench.switch.active_ports == [0, 1, 2]
    # closes the ports behind the removed gates
    bench.engine.call(lambda: bench.switch.set_gates(1))
    assert bench.switch.active_ports == [0]
    bench.send(0, ethernet(BROADCAST, mac(1)))
    bench.send(1, ethernet(BROADCAST, mac(1)))
    assert bench.drops() == {"no_destination": 1, "unknown_port": 1}
    bench.close()


def test_a_gate_that_leads_nowhere_is_not_used():
    bench = Bench(2)
    bench.switch.activate(0)

    def add() -> None:
        bench.switch.set_gates(3)
        bench.switch.activate(2)

    bench.engine.call(add)
    bench.send(0, ethernet(BROADCAST, mac(1)))
    assert bench.drops() == {"no_destination": 1}
    bench.close()


@pytest.mark.parametrize(
    ("port", "arguments", "message"),
    [
        (2, {}, "port 2: there is no such gate; it has 2"),
        (0, {"access": 0}, "VLAN 0: expected 1 to 4094"),
        (0, {"access": 4095}, "VLAN 4095: expected 1 to 4094"),
        (0, {"trunk": [1, 5000]}, "VLAN 5000: expected 1 to 4094"),
        (0, {"trunk": ["10"]}, "VLAN '10': expected 1 to 4094"),
        (0, {"native": -1}, "VLAN -1: expected 1 to 4094"),
        (0, {"access": 1, "native": 1}, "is either an access port or a trunk"),
    ],
)
def test_what_is_wrong_with_a_port_is_said(port, arguments, message):
    switch = L2Switch(MacTable(), 2)
    with pytest.raises(ConfigError, match=message):
        switch.activate(port, **arguments)
    assert switch.active_ports == []
    with pytest.raises(ConfigError, match="1025 ports: expected at most 1024"):
        switch.set_gates(1025)
    switch.deactivate(5000)

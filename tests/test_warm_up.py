"""Prefetches of an engine when it wakes: cache lines of the objects on its path and of their code,
each once, bounded in number."""

from dataplane.engine.warm_up import WarmUp
from dataplane.graph.element import Element
from dataplane.graph.port import PortRx, PortTx
from dataplane.ports.memory import MemoryPort
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable


def test_a_port_is_asked_for_with_its_element():
    port = MemoryPort("m")
    alone, with_port = WarmUp([Element()]), WarmUp([PortRx(port)])
    assert 0 < alone.count < with_port.count
    port.close()


def test_what_elements_share_is_asked_for_once():
    port = MemoryPort("m")
    transmit = PortTx(port)
    one = WarmUp([transmit]).count
    assert WarmUp([transmit, transmit]).count == one
    second = WarmUp([transmit, PortTx(port)]).count - one
    assert 0 < second < one  # its own object, not the class's code again
    port.close()


def test_there_is_a_limit():
    table = MacTable()
    assert WarmUp([L2Switch(table, 2) for _ in range(128)]).count == 768


def test_of_many_elements_only_the_code_is_asked_for():
    table = MacTable()
    many = WarmUp([L2Switch(table, 2) for _ in range(129)]).count
    assert many < WarmUp([L2Switch(table, 2)]).count
    assert many == WarmUp([L2Switch(table, 2) for _ in range(1000)]).count


class Plain(Element):
    def companions(self):
        return [object(), "text"]


def test_a_companion_may_be_any_object():
    assert WarmUp([Plain()]).count > 0

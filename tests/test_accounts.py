"""Accounts: memory in use; no NIC is charged for an earlier one of its name. CPU time compared with
the kernel's: test_groups_live.py."""

import msgspec
import pytest

from dataplane.engine.clock import Clock
from dataplane.engine.running import advance
from dataplane.errors import VnicError
from dataplane.packet.ring import MpscRing
from dataplane.ports.memory import Frame
from tests.wire_frames import UDP, Spec
from vnic.config.load import parse_config
from vnic.config.schema import DirectionConfig, ElementConfig, NicConfig
from vnic.device.kinds.memory import MemoryKind
from vnic.modules.devices import OneKind
from vnic.modules.module import Module
from vnic.runtime.runtime import Runtime
from vnic.store.segments import RING_BYTES

SMALL_BYTES, LARGE_BYTES = 2048 + 128, 69632 + 128  # a buffer and its record
CAPTURE_BYTES = 8 << 20
TEXT = """
engines: 2
nics:
  a: {engine: 0, egress: {rate: 8kbit, queue: 10s, elements: [{element: Shaper, rate: 8kbit, queue: 1mb}]}}
  a.b: {engine: 0}
  c: {engine: 1}
"""
FRAME = Spec(protocol=UDP).build()


class Broken(Module):
    """A user's module."""

    def accounts(self):
        raise RuntimeError("no accounts today")


class Running:
    def __init__(self, text=TEXT):
        self.devices = OneKind(MemoryKind())
        config = parse_config(text, "<test>", None, contained=False)
        self.runtime = Runtime(config, devices=self.devices, clock=Clock(virtual=True, start_ns=10**9))
        self.runtime.start()

    def memory(self):
        return {each["nic"]: each["memory_bytes"] for each in self.runtime.charges()["accounts"]}

    def cpu(self):
        found = self.runtime.charges()
        return {**{each["nic"]: each["cpu_ns"] for each in found["accounts"]}, "gone": found["detached_cpu_ns"]}

    def retire(self, **charged):
        """Removes charged elements of these owners."""
        self.runtime.hosted[0].charged |= {name.replace("__", "."): ns for name, ns in charged.items()}

    def send(self, nic, *frames):
        self.devices.nics[nic].port.inject([Frame(frame) for frame in frames])
        advance(self.runtime.engines[0], self.runtime.clock.now_ns)


@pytest.fixture
def running():
    made = Running()
    try:
        yield made
    finally:
        made.runtime.close()
        assert made.runtime.pool.in_use == 0


def test_what_waits_is_charged_as_it_is_stored(running):
    """A short frame takes a whole buffer, a jumbo frame a large one."""
    assert running.memory() == {"a": RING_BYTES, "a.b": RING_BYTES, "c": RING_BYTES}
    running.send("a", *[FRAME] * 10, FRAME + bytes(4000))
    held = sum(each["packets_held"] for each in running.runtime.charges()["accounts"])
    assert held >= 9  # the burst has let some pass, in two shapers
    waiting = (held - 1) * SMALL_BYTES + LARGE_BYTES
    # Packets that left are in c's ring, since c's engine has not run: c is charged.
    crossed = 11 - held
    assert running.memory() == {"a": RING_BYTES + waiting, "a.b": RING_BYTES, "c": RING_BYTES + crossed * SMALL_BYTES}
    advance(running.runtime.engines[1], running.runtime.clock.now_ns)


def test_captures_are_charged_to_their_nic(running, tmp_path):
    number = running.runtime.nics.start_capture("a.b", str(tmp_path / "a.b.pcap"))
    assert running.memory() == {"a": RING_BYTES, "a.b": RING_BYTES + CAPTURE_BYTES, "c": RING_BYTES}
    running.runtime.nics.stop_capture(number).result()
    other = Running("nics: {a: {ingress: {elements: [{element: Mirror, file: %s, buffer: 1mb}]}}, b: {}}" % (tmp_path / "b"))
    try:
        assert other.memory() == {"a": 1 << 20, "b": 0}
    finally:
        other.runtime.close()


def test_who_looks_into_a_ring_takes_nothing():
    ring = MpscRing(8, 2**32 - 3)
    for values in ([1, 2, 3, 4, 5], [6, 7], []):
        ring.push_many(values)
    assert ring.peek() == [1, 2, 3, 4, 5, 6, 7] and ring.pop_many(3) == [1, 2, 3]
    ring.push_many(range(8, 20))
    assert ring.peek() == [4, 5, 6, 7, 8, 9, 10, 11] == ring.pop_many(100) and ring.peek() == []


def test_a_name_begins_at_zero(running):
    running.retire(c=5, a=7)
    assert running.cpu() == {"a": 7, "a.b": 0, "c": 5, "gone": 0}
    running.retire(c=2)
    running.runtime.nics.detach("c")
    assert running.cpu() == {"a": 7, "a.b": 0, "gone": 7}
    running.runtime.nics.attach(NicConfig(name="c"))
    assert running.cpu() == {"a": 7, "a.b": 0, "c": 0, "gone": 7}


def test_what_is_gone_is_booked_by_name(running, tmp_path):
    """To the elements' NIC, no matter which NIC's or capture's end triggers the booking."""
    running.retire(a=1, a__b=2, m=4)
    running.runtime.nics.detach("a.b")
    assert running.cpu() == {"a": 1, "c": 0, "gone": 6}
    running.retire(c=8)
    number = running.runtime.nics.start_capture("a", str(tmp_path / "a.pcap"))
    running.runtime.nics.stop_capture(number).result()
    running.retire(m=16)
    running.runtime.nics.detach("c")
    assert running.cpu() == {"a": 1, "gone": 30}


def test_the_books_of_an_attach_that_failed_are_closed(running):
    running.retire(d=3)
    refused = DirectionConfig(elements=[ElementConfig(element="Mirror", arguments={"file": "/nowhere/at/all"})])
    with pytest.raises(VnicError, match="/nowhere/at/all"):
        running.runtime.nics.attach(NicConfig(name="d", egress=refused))
    running.runtime.nics.attach(NicConfig(name="d"))
    assert running.cpu() == {"a": 0, "a.b": 0, "c": 0, "d": 0, "gone": 3}


def test_who_comes_and_goes_leaves_one_number(running):
    for number in range(50):
        running.runtime.nics.attach(NicConfig(name=f"n{number}"))
        running.runtime.hosted[1].charged[f"n{number}"] = 1
        running.runtime.nics.detach(f"n{number}")
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(running.runtime.save_control()))
    assert running.cpu()["gone"] == 50 and list(state["gone"]) == [""]
    successor = Running()
    try:
        state["gone"] |= {"gone.before": 4, "a": 2}  # as from a worker of an older version
        successor.runtime.load_control(state)
        successor.runtime.nics.attach(NicConfig(name="gone.before"))
        assert successor.cpu() == {"a": 2, "a.b": 0, "c": 0, "gone.before": 0, "gone": 54}
    finally:
        successor.runtime.close()


def test_a_module_s_fault_closes_nobody_s_books():
    running = Running("nics: {a: {}, b: {}}\nmodules: [{module: 'tests.test_accounts:Broken'}]")
    try:
        running.runtime.nics.detach("a")
        assert running.cpu() == {"b": 0, "gone": 0}
    finally:
        running.runtime.close()

"""The device of a guest's NIC without a guest: queue pairs in use, the control queue's turns, and what a successor knows."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dataplane.elements.rss import Rss
from tests.support.guests import FRESH
from tests.test_control_queue import KEY, OWN, Driver, hash_config, rss
from virt.control_queue import Coalescing, ControlState, Steering
from virt.flow_memory import FlowMemory
from virt.guest_tx import GuestTx
from virt.vhost_user.books import Books, Region, Ring, RingAddresses
from virt.vhost_user.device import Offer, RingDescriptors
from virt.vhost_user.features import Abilities, Feature, offered
from virt.vhost_user.net_config import LinkStatus, NetConfig
from virt.virtio_port import VirtioPort
from vnic.device.guest import GuestDevice, Positions
from vnic.device.kinds import vhost_user
from vnic.device.kinds.vhost_user import COMMANDS_A_TURN, COMMANDS_MOST, PERIOD_S, GuestNic

PAIRS = 4
ABILITIES = Abilities(queue_pairs=PAIRS, event_index=False, rss=True, hash_report=True, coalescing=True, statistics=True)
FEATURES = int(offered(ABILITIES) & ~Feature.LOG_ALL)
NONE = RingDescriptors(None, None, None)
both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Lab:
    """A NIC with a driver whose control ring it has. stored: what it has kept, in order."""

    def __init__(self, driver: Driver, state: ControlState | None = None, positions: int | None = None, **owns: bool) -> None:
        self.driver, self.stored = driver, list[bytes]()
        self.features = FEATURES if driver.packed else FEATURES & ~Feature.RING_PACKED
        self.port = VirtioPort("vm", queues=PAIRS)
        self.rss = Rss(queues=PAIRS)
        self.positions = Positions(2 * PAIRS + 1, positions)
        config = NetConfig(mac=OWN, queue_pairs=PAIRS)
        self.tx = GuestTx(self.port, self.rss, FlowMemory(self.rss))
        self.device = GuestDevice(self.tx, config, self.positions, state or ControlState(), **{"owns": True, **owns})
        origin: Any = SimpleNamespace(keep=lambda document, _: self.stored.append(document))
        settings: Any = SimpleNamespace(name="vm", listen="/vm.sock", connect=None)
        self.nic = GuestNic(settings, self.port, self.tx, self.device, Offer(features=self.features, queue_pairs=PAIRS), origin)
        session = SimpleNamespace(books=Books.of(2 * PAIRS + 1), descriptors=SimpleNamespace(by_role=dict))
        connection: Any = SimpleNamespace(read=lambda: True, fileno=lambda: 99, session=session)
        self.nic.connection = connection

    def begin(self, generation: int = 1, **resumed: bool) -> None:
        ram = self.driver.ram
        self.device.apply_features(self.features)
        self.device.apply_memory([Region(ram.guest, ram.size, ram.user, 0, "memory0")], [ram.fd])
        places = self.driver.driver.places
        ring = Ring(
            size=places["size"], base=FRESH if self.driver.packed else 0, generation=generation,
            addresses=RingAddresses(places["descriptors"], places["used"], places["available"]),
        )  # fmt: skip
        descriptors = RingDescriptors(self.driver.kick, self.driver.call, self.driver.error)
        self.device.start_ring(2 * PAIRS, ring, descriptors, **{"resumed": False, **resumed})

    def answers(self, command: bytes) -> bytes:
        self.driver.send(command)
        self.nic.ready()
        [answer] = self.driver.answers()
        return answer

    def queues(self) -> set[int]:
        return set(self.rss.table)

    def end(self) -> None:
        self.device.stop_ring(2 * PAIRS)
        self.device.apply_memory([], [])
        self.port.close()


def kept(lab: Lab) -> ControlState:
    """The state that was stored last."""
    document = msgspec.json.decode(lab.stored[-1], type=vhost_user.Kept)
    return msgspec.json.decode(document.control, type=ControlState)


def driver_of(packed: bool) -> Driver:
    return Driver(packed, size=256)


@both
def test_what_a_command_sets_is_stored_before_it_is_answered(packed):
    with driver_of(packed) as driver:
        lab = Lab(driver)
        lab.begin()
        assert lab.answers(b"\0\0\1") == b"\0" and kept(lab).promiscuous
        assert lab.answers(b"\1\1" + bytes(5) + b"\7") == b"\0" and kept(lab).mac == bytes(5) + b"\7"
        assert lab.device.read_config()[:6] == bytes(5) + b"\7"
        before = len(lab.stored)
        assert lab.answers(b"\0\0\1") == b"\0" and lab.answers(b"\0\0\7") == b"\1" and len(lab.stored) == before

        # killed between the two: the successor handles the command again
        driver.send(b"\0\1\1")
        command = lab.device.ring.take()
        assert command is not None
        lab.device.control.handle(command)
        lab.nic._store_session(lab.nic.connection)
        successor = Lab(driver, kept(lab), lab.positions.fd)
        successor.begin(resumed=True)
        assert successor.device.control.state.promiscuous and successor.device.mac == bytes(5) + b"\7"
        successor.nic.ready()
        assert driver.answers() == [b"\0"] and successor.device.control.state.all_multicast
        assert successor.answers(b"\0\0\0") == b"\0" and not kept(successor).promiscuous
        successor.end()
        lab.end()


@both
def test_a_successor_leaves_the_ring_alone_until_it_owns_the_guest(packed):
    with driver_of(packed) as driver:
        lab = Lab(driver)
        lab.begin()
        lab.answers(b"\0\0\1")
        successor = Lab(driver, kept(lab), lab.positions.fd, owns=False)
        successor.begin(resumed=True)
        driver.send(b"\0\1\1")
        successor.nic.ready()
        assert driver.answers() == [] and not successor.device.ring.started
        lab.nic.ready()  # the upgrade may still fail
        assert driver.answers() == [b"\0"]
        driver.send(b"\0\0\0")
        successor.device.own()
        successor.nic.ready()
        assert driver.answers() == [b"\0"] and not successor.device.control.state.promiscuous
        successor.end()
        lab.end()


def test_a_driver_that_floods_waits(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(vhost_user.time, "monotonic", lambda: now[0])
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.begin()
        assert lab.nic.inputs == [99, driver.kick]
        for _ in range(100):
            driver.send(b"\0\0\1")
        answered = 0
        while True:
            lab.nic.ready()
            got = len(driver.answers())
            answered += got
            assert got <= COMMANDS_A_TURN
            if lab.nic.again_s:
                break
            assert lab.nic.again_s == 0.0
        assert COMMANDS_MOST - COMMANDS_MOST // COMMANDS_A_TURN - 1 <= answered <= COMMANDS_MOST
        assert lab.nic.again_s == pytest.approx(PERIOD_S) and lab.nic.inputs == [99]
        lab.nic.ready()
        assert driver.answers() == []
        now[0] += PERIOD_S
        while len(driver.waiting):
            lab.nic.ready()
            driver.answers()
            now[0] += PERIOD_S
        # kicks without commands, too
        turns = 0
        while not lab.nic.again_s:
            lab.nic.ready()
            turns += 1
        assert turns <= COMMANDS_MOST
        lab.end()


def start(lab: Lab, *rings: int, generation: int = 1) -> None:
    """Starts data rings, as far as the device is concerned."""
    ring = SimpleNamespace(addresses=object(), generation=generation)
    lab.device._start = lambda *_: None  # type: ignore[method-assign]
    for each in rings:
        lab.device.start_ring(each, ring, NONE, resumed=False)  # type: ignore[arg-type]


def test_frames_go_to_the_pairs_in_use():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.begin()
        start(lab, *range(2 * PAIRS))
        assert lab.queues() == {0} and lab.device.queue_pairs == 1  # until the driver says
        for pairs in (3, 4, 2, 1):
            assert lab.answers(b"\4\0" + struct.pack("<H", pairs)) == b"\0"
            assert lab.queues() == set(range(pairs)) and lab.device.queue_pairs == pairs
        for wrong in (0, 5, 0x8000, 0xFFFF):
            assert lab.answers(b"\4\0" + struct.pack("<H", wrong)) == b"\1" and lab.device.queue_pairs == 1
        lab.answers(b"\4\0\4\0")
        lab.device.stop_ring(4)
        assert lab.queues() == {0, 1}, "nothing for a ring that does not run"
        lab.device.set_status(15)
        lab.device.set_status(0)
        assert lab.queues() == {0} and lab.device.control.state.queue_pairs == 1
        lab.end()


def test_the_driver_steers_frames_by_its_table():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.begin()
        assert lab.answers(b"\4\1" + rss([3, 1], unclassified=2)) == b"\0"
        assert lab.tx.driver is not None and lab.tx.driver.key == KEY
        # those of its rings that run have all frames, as long as others do not
        assert lab.tx.driver.table == [0, 0] and lab.device.queue_pairs == 1
        start(lab, *range(2 * PAIRS))
        assert lab.tx.driver.table == [3, 1] and lab.device.queue_pairs == PAIRS and not lab.tx.flows.learns
        assert kept(lab).steering == Steering([3, 1], 2)
        before = lab.tx.driver
        assert lab.answers(b"\0\0\1") == b"\0" and lab.tx.driver is before, "tables of hashes are made for a new key only"
        lab.device.stop_ring(6)
        assert lab.tx.driver.table == [0, 1] and before.table == [3, 1], "the engine may use it"
        start(lab, 6)

        successor = Lab(driver, kept(lab), lab.positions.fd)
        successor.begin(resumed=True)
        start(successor, *range(2 * PAIRS))
        assert successor.tx.driver is not None
        assert (successor.tx.driver.table, successor.tx.driver.key) == ([3, 1], KEY)
        assert successor.answers(b"\4\0\3\0") == b"\0"
        assert successor.tx.driver is not None, "for hashes in headers"
        assert successor.tx.flows.learns and successor.queues() == {0, 1, 2}
        assert successor.answers(b"\4\0\1\0") == b"\0" and not successor.tx.flows.learns
        successor.device.set_status(15)
        successor.device.set_status(0)
        assert successor.tx.driver is None and successor.device.control.state.hashing is None
        successor.end()
        lab.end()


def test_hashes_without_rss():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.features &= ~int(Feature.RSS)
        lab.begin()
        assert lab.answers(b"\4\2" + hash_config(types=0x12)) == b"\0"
        assert lab.tx.driver is not None and lab.tx.driver.key == KEY and lab.port.reports
        assert lab.answers(b"\4\1" + rss([0])) == b"\1"
        lab.end()


def test_a_queue_that_is_set_up_anew_has_the_notifications_of_all():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.begin()
        start(lab, *range(2 * PAIRS))
        assert lab.answers(b"\6\1" + struct.pack("<II", 5, 6)) == b"\0"
        assert lab.answers(b"\6\2" + struct.pack("<HHII", 0, 0, 7, 8)) == b"\0"
        assert kept(lab).queue_coalescing == {0: Coalescing(7, 8)}
        lab.device.stop_ring(0)
        start(lab, 0)  # as for a change of the guest's memory
        assert lab.device.control.state.coalescing_of(0) == Coalescing(7, 8)
        successor = Lab(driver, kept(lab), lab.positions.fd)
        successor.begin(resumed=True)
        start(successor, 0, 1, generation=7)
        assert successor.device.control.state.coalescing_of(0) == Coalescing(7, 8)
        successor.end()
        lab.device.stop_ring(0)
        start(lab, 0, generation=2)
        assert lab.device.control.state.coalescing_of(0) == Coalescing(5, 6)
        lab.end()


def test_statistics_are_those_of_the_queues():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.begin()
        found = [[number, number, number, number, 0] for number in range(PAIRS)]
        lab.port.load_statistics("rx", found)
        lab.port.load_statistics("tx", [[10 * value for value in each] for each in found])
        for queue, packets in ((2, 10), (3, 1)):
            driver.send(b"\x08\1" + struct.pack("<QQ", queue, 1 << 16 if queue & 1 else 1), room=57)
            lab.nic.ready()
            [reply] = driver.answers()
            ack, kind, number, size, notifications, count, octets, calls, drops, _ = struct.unpack("<BBxHxxH6Q", reply)
            assert (ack, kind, number, size) == (0, 16 if queue & 1 else 0, queue, 56)
            assert (count, octets, drops, notifications, calls) == (packets, packets, packets, 0, 0)
        driver.send(b"\x08\1" + struct.pack("<QQ", 2, 1), room=20)  # less than the reply
        lab.nic.ready()
        assert [len(reply) for reply in driver.answers()] == [20]
        lab.end()


def test_a_front_end_that_serves_the_control_queue_starts_the_rings_of_pairs_in_use():
    """QEMU acknowledges MQ, and not CTRL_VQ."""
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.device.apply_features(FEATURES & ~Feature.CTRL_VQ)
        start(lab, 0, 1)
        assert lab.queues() == {0}
        start(lab, 2, 3)
        assert lab.queues() == {0, 1}
        lab.device.stop_ring(2)
        assert lab.queues() == {0}
        lab.end()


def test_the_control_ring_is_the_last_one_or_the_third():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.features &= ~int(Feature.MQ | Feature.RSS)
        lab.begin()
        assert not lab.device.ring.started, "ring 8 is unused: the driver does not know of it"
        assert lab.device.stop_ring(2 * PAIRS) == 0
        lab.end()


def test_a_driver_that_begins_anew_has_the_defaults():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.begin()
        lab.answers(b"\0\0\1")
        lab.answers(b"\5\0" + bytes(8))
        assert lab.port.offloads == 0
        lab.device.stop_ring(2 * PAIRS)  # as for a change of the guest's memory
        assert lab.device.control.state.promiscuous
        lab.device.apply_features(0)
        lab.device.apply_features(lab.features)
        assert not lab.device.control.state.promiscuous and lab.port.offloads
        lab.end()


def test_an_announcement_is_in_the_configuration_space():
    with driver_of(False) as driver:
        lab = Lab(driver)
        lab.begin()
        assert lab.device.control.ask_to_announce()
        assert lab.device.read_config()[6] == LinkStatus.LINK_UP | LinkStatus.ANNOUNCE
        assert lab.answers(b"\3\0") == b"\0"
        assert lab.device.read_config()[6] == LinkStatus.LINK_UP
        lab.end()

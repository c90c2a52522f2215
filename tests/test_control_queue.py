"""The control queue: its ring against a driver in plain Python, its commands, and what hostile drivers can do."""

from __future__ import annotations

import os
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.guests import EVENT_IDX, FRESH, GUEST_CSUM, GUEST_TSO4, INDIRECT, PACKED, RX, VERSION_1, Guest, mask
from virt.control_queue import (
    ADDRESSES_MOST,
    ERR,
    HASH_KEY_BYTES,
    OK,
    RSS_TABLE_MOST,
    Coalescing,
    ControlQueue,
    ControlState,
    Hashing,
    Steering,
)  # fmt: skip
from virt.control_ring import ControlRing
from virt.driver import Buffer, GuestRam, PackedRing, SplitRing
from virt.guest_memory import GuestMemory
from virt.vhost_user.features import Abilities, Feature, offered

both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
ALL = int(offered(Abilities(queue_pairs=4, rss=True, hash_report=True, coalescing=True, statistics=True)))
OWN = bytes.fromhex("020000000001")


class Driver:
    """A driver's side of a control queue, and a ControlRing that runs it."""

    def __init__(self, packed: bool, *features: int, size: int = 8) -> None:
        self.features = mask(VERSION_1, *[PACKED] * packed, *features)
        self.packed, self.ram = packed, GuestRam(1 << 20)
        kind: Any = PackedRing if packed else SplitRing
        self.driver = kind(self.ram, size, event_index=EVENT_IDX in features)
        self.memory = GuestMemory([self.ram.region])
        self.kick, self.call, self.error = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
        self.positions = bytearray(16)
        self.ring = self.start(FRESH if packed else 0)
        self.waiting: dict[int, tuple[Buffer, int]] = {}

    def start(self, base: int, **changes: Any) -> ControlRing:
        ring = ControlRing("control")
        ring.set_positions(self.positions)
        places = self.driver.places
        ring.start(
            self.memory, features=self.features, base=base, kick_fd=self.kick, call_fd=self.call, error_fd=self.error,
            **{**places, **changes},
        )  # fmt: skip
        self.ring = ring
        return ring

    def put(self, data: bytes, writable: bool) -> list[Buffer]:
        if not data:
            return []
        address = self.ram.allocate(len(data))
        self.ram.write(address, data)
        return [Buffer(address, len(data), writable)]

    def send(self, command: bytes, pieces: list[int] | None = None, room: int = 1, indirect: bool = False) -> bool:
        """Sends a command, cut into pieces of these lengths; whether the device wants a kick."""
        parts: list[Buffer] = []
        for piece in pieces or []:
            parts += self.put(command[:piece], False)
            command = command[piece:]
        parts += self.put(command, False)
        [answer] = self.put(b"\xaa" * room, True)
        parts.append(answer)
        self.waiting[self.driver.add(parts, indirect=len(parts) if indirect else 0)] = answer, room
        return bool(self.driver.publish())

    def answers(self) -> list[bytes]:
        found = []
        for token, written in self.driver.used():
            answer, _ = self.waiting.pop(token)
            found.append(self.ram.read(answer.address, written))
        return found

    def is_told(self) -> bool:
        try:
            return os.eventfd_read(self.error) > 0
        except BlockingIOError:
            return False

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.ring.stop()
        self.memory.close()
        self.ram.close()
        for each in (self.kick, self.call, self.error):
            os.close(each)


# -- the ring --------------------------------------------------------------------------------------

COMMANDS = st.lists(
    st.tuples(st.binary(min_size=2, max_size=300), st.lists(st.integers(1, 9), max_size=4), st.binary(max_size=20), st.integers(1, 30)),
    min_size=1,
    max_size=30,
)  # fmt: skip


@both
@settings(max_examples=80, deadline=None)
@given(commands=COMMANDS, indirect=st.booleans(), events=st.booleans())
def test_commands_arrive_and_are_answered(packed, commands, indirect, events):
    with Driver(packed, INDIRECT, *[EVENT_IDX] * events) as driver:
        for command, pieces, result, room in commands:
            assert driver.ring.take() is None and not driver.ring.arm()
            assert driver.send(command, pieces, room, indirect), "a device that waits wants a kick"
            assert driver.ring.arm()
            assert driver.ring.take() == command
            assert driver.ring.take() is None, "one at a time"
            driver.ring.answer(7, result)
            assert driver.answers() == [(b"\x07" + result)[:room]]
        assert driver.ring.state()["faults"] == {} and os.eventfd_read(driver.call) > 0


@both
def test_a_killed_process_s_command_is_taken_again(packed):
    with Driver(packed) as driver:
        for number in range(20):
            driver.send(bytes([number, 1]))
            assert driver.ring.take() == bytes([number, 1])
            # killed: nothing was written, and nothing is stopped
            assert driver.start(FRESH if packed else 0, resumed=True).take() == bytes([number, 1])
            driver.ring.answer(0)
            assert driver.answers() == [b"\0"]
            assert driver.start(FRESH if packed else 0, resumed=True).take() is None


@both
def test_a_stopped_ring_s_command_is_taken_again(packed):
    with Driver(packed) as driver:
        driver.send(b"ab")
        assert driver.ring.take() == b"ab"
        base = driver.ring.stop()
        driver.ring.answer(0)
        assert driver.answers() == []
        assert driver.start(base).take() == b"ab"
        driver.ring.answer(1)
        assert driver.answers() == [b"\1"]
        assert driver.ring.stop() & 0xFFFF != base & 0xFFFF


@both
def test_chains_that_are_no_commands_are_given_back(packed):
    with Driver(packed) as driver:
        driver.send(b"a")  # no command
        driver.driver.add(driver.put(b"abc", False))  # no room for an answer
        driver.driver.publish()
        driver.send(b"ok")
        assert driver.ring.take() == b"ok"
        driver.ring.answer(0)
        used = driver.driver.used()
        assert [written for _, written in used] == [0, 0, 1]
        assert driver.ring.state()["faults"] == {"a buffer too short": 2}
        assert not driver.is_told()


@both
def test_many_chains_without_a_command_take_turns(packed):
    with Driver(packed, size=64) as driver:
        for _ in range(20):
            driver.send(b"a")
        driver.send(b"ok")
        turns = 1
        while driver.ring.take() is None:
            assert driver.ring.arm()
            turns += 1
        assert turns == 3


@both
def test_a_command_too_long_is_answered_and_not_read(packed):
    with Driver(packed) as driver:
        for _ in range(3):
            driver.send(bytes(65537))
            assert driver.ring.take() == b""
            driver.ring.answer(ERR)
            assert driver.answers() == [b"\1"]
        driver.send(bytes(65536))
        assert driver.ring.take() == bytes(65536)


@both
@pytest.mark.parametrize("what", ["address", "loop"])
def test_a_ring_that_makes_no_sense_is_stopped_and_told(packed, what):
    with Driver(packed, INDIRECT) as driver:
        if what == "address":
            driver.driver.add([Buffer(1 << 40, 2), *driver.put(b"x", True)])
        elif packed:
            driver.driver.add(driver.put(b"ab", False) * 8)
            for slot in range(8):  # each one goes on
                at = driver.driver.descriptors + 16 * slot + 14
                driver.ram.store(at, driver.ram.load(at) | 1)
            driver.driver.firsts = [(at, flags | 1) for at, flags in driver.driver.firsts]
        else:
            driver.driver.add(driver.put(b"ab", False) * 2)
            driver.driver.write(1, driver.ram.guest, 2, 1, 0)
        driver.driver.publish()
        assert driver.ring.take() is None and not driver.ring.runs and driver.is_told()
        assert driver.ring.state()["broken"]
        assert driver.ring.take() is None and not driver.ring.arm() and not driver.is_told()


def test_truncated_memory_stops_the_ring():
    with Driver(False) as driver:
        driver.send(b"ab")
        os.ftruncate(driver.ram.fd, 0)
        assert driver.ring.take() is None and not driver.ring.arm()
        assert driver.ring.state()["broken"] == "the guest's memory was truncated" and driver.is_told()


@both
@settings(max_examples=150, deadline=None)
@given(noise=st.binary(min_size=16 * 8, max_size=16 * 8), index=st.integers(0, 0xFFFF), data=st.data())
def test_any_ring_contents(packed, noise, index, data):
    """Descriptors of any contents, some of which point into the guest's memory."""
    with Driver(packed, INDIRECT, EVENT_IDX) as driver:
        content = bytearray(noise)
        for slot in range(8):
            if data.draw(st.booleans()):
                struct.pack_into("<QI", content, 16 * slot, driver.ram.guest + data.draw(st.integers(0, 1 << 20)), 16 * slot)
        driver.ram.write(driver.driver.descriptors, bytes(content))
        driver.ram.store(driver.driver.available + 2, index)
        for _ in range(64):
            command = driver.ring.take()
            if command is not None:
                assert len(command) <= 65536
                driver.ring.answer(0, b"result")
            elif not driver.ring.arm():
                break
        assert driver.ring.runs != driver.is_told()


# -- the commands ----------------------------------------------------------------------------------


def queue(features: int = ALL, pairs: int = 4) -> tuple[ControlQueue, list[ControlState]]:
    applied: list[ControlState] = []
    made = ControlQueue(pairs, applied.append, ControlState())
    made.begin(features, 1)
    return made, applied


def macs(*tables: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(table)) + b"".join(table) for table in tables)


def numbered(first: int, count: int) -> list[bytes]:
    return [bytes([first, 0, 0, 0, number >> 8, number & 255]) for number in range(count)]


KEY = bytes(range(100, 140))
QUARTERS = [0, 1, 2, 3] * 32


def rss(
    table: list[int], types: int = 0x3F, unclassified: int = 0, pairs: int = 4, key: bytes = KEY, mask: int | None = None
) -> bytes:
    """Data of MQ_RSS_CONFIG."""
    found = struct.pack("<IHH", types, len(table) - 1 if mask is None else mask, unclassified)
    return found + struct.pack(f"<{len(table)}HHB", *table, pairs, len(key)) + key


def hash_config(types: int = 0x3F, key: bytes = KEY, reserved: bytes = bytes(8)) -> bytes:
    """Data of MQ_HASH_CONFIG."""
    return struct.pack("<I", types) + reserved + bytes([len(key)]) + key


VALID = [
    (b"\0\0\1", "promiscuous", True),
    (b"\0\1\1", "all_multicast", True),
    (b"\0\2\1", "all_unicast", True),
    (b"\0\3\1", "no_multicast", True),
    (b"\0\4\1", "no_unicast", True),
    (b"\0\5\1", "no_broadcast", True),
    (b"\1\0" + macs(numbered(2, 3), numbered(3, 2)), "unicast", numbered(2, 3)),
    (b"\1\0" + macs(numbered(2, 3), numbered(3, 2)), "multicast", numbered(3, 2)),
    (b"\1\0" + macs(numbered(2, ADDRESSES_MOST), []), "unicast", numbered(2, ADDRESSES_MOST)),
    (b"\1\0" + macs(numbered(2, ADDRESSES_MOST + 1), []), "unicast", None),
    (b"\1\0" + macs([], numbered(3, 5000)), "multicast", None),
    (b"\1\1" + OWN, "mac", OWN),
    (b"\2\0" + struct.pack("<H", 4095), "vlans", [4095]),
    (b"\4\0" + struct.pack("<H", 4), "queue_pairs", 4),
    (b"\5\0" + struct.pack("<Q", 1 << GUEST_CSUM | 1 << GUEST_TSO4), "offloads", 1 << GUEST_CSUM | 1 << GUEST_TSO4),
    (b"\4\1" + rss(QUARTERS), "hashing", Hashing(0x3F, KEY)),
    (b"\4\1" + rss(QUARTERS, unclassified=2), "steering", Steering(QUARTERS, 2)),
    (b"\4\1" + rss(QUARTERS, pairs=1), "queue_pairs", 4),
    (b"\4\1" + rss([1], pairs=3), "queue_pairs", 3),
    (b"\4\1" + rss([0, 1], key=b"short"), "hashing", Hashing(0x3F, b"short" + bytes(35))),
    (b"\4\1" + rss([0], types=0, key=b""), "hashing", Hashing(0, bytes(HASH_KEY_BYTES))),
    (b"\4\2" + hash_config(0x12), "hashing", Hashing(0x12, KEY)),
    (b"\4\2" + hash_config(reserved=b"\xff" * 8), "hashing", Hashing(0x3F, KEY)),
    (b"\6\0" + struct.pack("<II", 9, 7), "tx_coalescing", Coalescing(9, 7)),
    (b"\6\1" + struct.pack("<II", 16, 0xFFFFFFFF), "rx_coalescing", Coalescing(16, 0xFFFFFFFF)),
    (b"\6\2" + struct.pack("<HHII", 1, 0xFFFF, 3, 4), "queue_coalescing", {1: Coalescing(3, 4)}),
]


@pytest.mark.parametrize(("command", "field", "value"), VALID)
def test_a_command_sets_the_state(command, field, value):
    made, applied = queue()
    assert made.handle(command).ack == OK
    assert getattr(made.state, field) == value and applied[-1] == made.state
    assert made.handle(command).ack == OK, "a second time, as after a crash"
    assert getattr(made.state, field) == value and made.counts == [2, 0]
    stored = msgspec.json.encode(made.state)
    assert msgspec.json.decode(stored, type=ControlState) == made.state


@pytest.mark.parametrize("command", [command for command, _, _ in VALID])
def test_a_command_of_another_length_or_without_its_feature_is_refused(command):
    for wrong in (command[:-1], command + b"\0"):
        made, applied = queue()
        before = made.state
        assert made.handle(wrong).ack == ERR
        assert made.state is before and len(applied) == 1
    for features in (0, ALL & ~Feature.CTRL_VQ):
        made, _ = queue(features)
        assert made.handle(command).ack == ERR and made.counts == [0, 1]


@pytest.mark.parametrize(
    "command",
    [
        b"", b"\0", b"\0\0", b"\0\0\2", b"\0\6\1", b"\7\0", b"\xff\xff", b"\1\0", b"\1\0\0\0\0\0", b"\1\2" + OWN,
        b"\1\0" + b"\xff\xff\xff\xff" + bytes(100), b"\1\0" + macs(numbered(3, 1), []), b"\1\0" + macs([], numbered(2, 1)),
        b"\1\1" + bytes(6), b"\1\1\xff\xff\xff\xff\xff\xff", b"\2\0\x00\x10", b"\2\1\xff\xff", b"\3\1", b"\4\0\0\0", b"\4\0\5\0",
        b"\4\1" + bytes(40), b"\4\1", b"\4\2", b"\4\1" + rss([0] * 3), b"\4\1" + rss([0] * 2 * RSS_TABLE_MOST), b"\4\1" + rss([4]),
        b"\4\1" + rss([0], mask=0xFFFF), b"\4\1" + rss([0x8000]), b"\4\1" + rss([0], unclassified=4), b"\4\1" + rss([0], pairs=0),
        b"\4\1" + rss([0], pairs=5), b"\4\1" + rss([0], types=0x40), b"\4\1" + rss([0], key=bytes(41)), b"\4\2" + hash_config(1 << 31),
        b"\4\2" + hash_config(key=bytes(41)), b"\4\2" + bytes(12), b"\4\3" + bytes(8), b"\6\2" + struct.pack("<HHII", 2, 0, 1, 1),
        b"\6\2" + struct.pack("<HHII", 0xFFFF, 0, 1, 1), b"\6\3" + struct.pack("<HH", 2, 0), b"\6\4" + bytes(8), b"\6\3",
        b"\x08\0\0", b"\x08\1", b"\x08\2", b"\x08\1" + bytes(15), b"\x08\1" + struct.pack("<QQ", 0, 1 << 16),
        b"\x08\1" + struct.pack("<QQ", 1, 1), b"\x08\1" + struct.pack("<QQ", 9, 0), b"\x08\1" + struct.pack("<QQ", 0, 3),
        b"\x08\1" + bytes(16 * 257), b"\5\0" + struct.pack("<Q", 1 << 63), b"\5\0" + struct.pack("<Q", 1 << 32), b"\6\0" + bytes(7),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(command):
    made, applied = queue()
    before = made.state
    assert made.handle(command).ack == ERR and made.state is before and len(applied) == 1


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda head, rest: bytes(head) + rest, st.tuples(st.integers(0, 8), st.integers(0, 5)), st.binary(max_size=12)
            ),
            st.sampled_from([command for command, _, _ in VALID]),
        ),
        max_size=20,
    ),
    st.integers(0, (1 << 64) - 1),
)
def test_any_commands(commands, features):
    """None raises; one that is refused changes nothing; the state is bounded and can be stored."""
    made, applied = queue(features)
    for command in commands:
        before = made.state
        if made.handle(command).ack == ERR:
            assert made.state is before
        assert 1 <= made.state.queue_pairs <= 4
        assert len(made.state.unicast or []) <= ADDRESSES_MOST >= len(made.state.multicast or [])
        made.state.filter_of(OWN)
        made.state.status()
    assert msgspec.json.decode(msgspec.json.encode(made.state), type=ControlState) == made.state
    assert not applied or applied[-1] == made.state


STORED = (
    '{"features":FEATURES,"generation":3,"queue_pairs":4,"promiscuous":true,"all_multicast":false,"all_unicast":false,'
    '"no_multicast":false,"no_unicast":false,"no_broadcast":false,"mac":"AgAAAAAB","unicast":["AgAAAAAA"],"multicast":null,'
    '"vlans":[7],"offloads":2,"announce":false'
)
STORED_NOW = STORED + (
    ',"hashing":{"types":63,"key":"ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoOEhYaHiImKiw=="},"steering":{"table":[3,1],'
    '"unclassified":2},"rx_coalescing":{"packets":5,"usecs":6},"tx_coalescing":{"packets":0,"usecs":0},'
    '"queue_coalescing":{"1":{"packets":7,"usecs":8}}}'
)


def test_the_stored_form_stays_readable():
    """An upgrade reads what the worker before it has stored, which may not have known the later commands. A field that is
    renamed, or has another meaning, would have a guest lose what it has set."""
    before, now = ((text + end).replace("FEATURES", str(ALL)) for text, end in ((STORED, "}"), (STORED_NOW, "")))
    made, _ = queue()
    made.begin(ALL, 3)
    for command in (
        b"\0\0\1", b"\1\1" + OWN, b"\1\0" + macs(numbered(2, 1), numbered(3, 100)), b"\2\0\7\0", b"\4\0\4\0",
        b"\5\0" + struct.pack("<Q", 2),
    ):  # fmt: skip
        assert made.handle(command).ack == OK
    assert msgspec.json.decode(before, type=ControlState) == made.state
    for command in (
        b"\4\1" + rss([3, 1], unclassified=2), b"\6\1" + struct.pack("<II", 5, 6), b"\6\2" + struct.pack("<HHII", 1, 0, 7, 8),
    ):  # fmt: skip
        assert made.handle(command).ack == OK
    assert msgspec.json.decode(now, type=ControlState) == made.state
    assert msgspec.json.decode(msgspec.json.encode(made.state)) == msgspec.json.decode(now)


def test_the_last_command_says_how_frames_are_steered():
    """Section 5.1.6.5.5; hashes are still reported by the last key."""
    made, _ = queue()
    assert made.state.status()["steering"] == "configured"
    assert made.handle(b"\4\1" + rss(QUARTERS)).ack == OK
    found = made.state.status()
    assert found["steering"] == "rss" and found["rss_table"] == QUARTERS and not made.state.steers_by_flow
    assert found["hash_key"] == KEY.hex(":") and found["hash_types"] == ["ipv4", "tcpv4", "udpv4", "ipv6", "tcpv6", "udpv6"]
    assert made.handle(b"\4\0\2\0").ack == OK
    assert made.state.steering is None and made.state.steers_by_flow and made.state.hashing == Hashing(0x3F, KEY)
    assert made.state.status()["steering"] == "flow"
    assert made.handle(b"\4\0\1\0").ack == OK
    assert not made.state.steers_by_flow
    for features, known in ((ALL & ~Feature.RSS, 2), (ALL & ~Feature.HASH_REPORT, 1)):
        made, _ = queue(features)
        assert made.handle(b"\4\1" + rss(QUARTERS)).ack == (OK if known == 1 else ERR)
        assert made.handle(b"\4\2" + hash_config()).ack == (OK if known == 2 else ERR)
    made, _ = queue(ALL & ~Feature.MQ)
    assert made.handle(b"\4\1" + rss(QUARTERS)).ack == OK and made.state.queue_pairs == 4


def test_notifications_of_one_queue_and_of_all():
    """The specification's example: the last setting of a queue counts, whichever command made it."""

    def set_queue(number: int, packets: int, usecs: int) -> None:
        assert made.handle(b"\6\2" + struct.pack("<HHII", number, 0, packets, usecs)).ack == OK

    def told(number: int) -> tuple[int, ...]:
        reply = made.handle(b"\6\3" + struct.pack("<HH", number, 7))
        assert reply.ack == OK
        return struct.unpack("<II", reply.result)

    made, _ = queue()
    assert made.handle(b"\4\0\2\0").ack == OK
    assert made.handle(b"\6\1" + struct.pack("<II", 1, 2)).ack == OK
    set_queue(0, 3, 4)
    assert told(0) == (3, 4) and told(2) == (1, 2) and told(1) == told(3) == (0, 0)
    set_queue(1, 5, 6)
    assert told(1) == (5, 6) and told(3) == (0, 0)
    assert made.handle(b"\6\0" + struct.pack("<II", 7, 8)).ack == OK
    assert told(1) == told(3) == (7, 8) and told(0) == (3, 4)
    made.forget_queue(2)
    assert told(2) == (1, 2)
    made.forget_queue(0)
    assert told(0) == (1, 2)
    set_queue(3, 1, 1)
    assert made.handle(b"\4\0\1\0").ack == OK
    for command in (b"\6\2" + struct.pack("<HHII", 3, 0, 1, 1), b"\6\3" + struct.pack("<HH", 2, 0)):
        assert made.handle(command).ack == ERR, "not enabled"
    made.reset()
    assert told(0) == told(1) == (0, 0)


def test_statistics():
    """As struct virtio_net_ctrl_queue_stats asks for them."""
    made, _ = queue()
    assert made.handle(b"\x08\0") == (OK, struct.pack("<Q", 1 | 1 << 16 | 1 << 32))
    counters = {"rx_packets": 5, "rx_bytes": 600, "tx_packets": (1 << 64) + 7, "rx_drop_overruns": 2}
    made.statistics = lambda virtqueue: counters
    asked = [(0, 1), (3, 1 << 16), (8, 1 << 32), (2, 0)]
    reply = made.handle(b"\x08\1" + b"".join(struct.pack("<HHHHQ", number, 1, 2, 3, types) for number, types in asked))
    assert reply.ack == OK and reply.result == (
        struct.pack("<BBHHH6Q", 0, 0, 0, 0, 56, 0, 5, 600, 0, 0, 2)
        + struct.pack("<BBHHH6Q", 16, 0, 3, 0, 56, 0, 7, 0, 0, 0, 0)
        + struct.pack("<BBHHHQQ", 32, 0, 8, 0, 24, 2, 2)
    )
    made, _ = queue(ALL & ~(Feature.MQ | Feature.RSS))
    assert made.handle(b"\x08\1" + struct.pack("<QQ", 2, 1 << 32)).ack == OK, "the third virtqueue is the control queue"


def test_vlans_are_added_and_deleted():
    made, _ = queue()
    for vlan in (7, 3, 7, 4095):
        assert made.handle(b"\2\0" + struct.pack("<H", vlan)).ack == OK
    assert made.state.vlans == [3, 7, 4095]
    for vlan in (7, 100):
        assert made.handle(b"\2\1" + struct.pack("<H", vlan)).ack == OK
    assert made.state.vlans == [3, 4095]


def test_an_announcement_is_asked_for_and_answered():
    made, _ = queue()
    assert made.ask_to_announce() and made.state.announce
    assert made.handle(b"\3\0").ack == OK and not made.state.announce
    made, _ = queue(ALL & ~Feature.GUEST_ANNOUNCE)
    assert not made.ask_to_announce()


def test_other_drivers_begin_anew():
    made, applied = queue()
    made.handle(b"\0\0\1")
    made.begin(ALL, 1)  # the same
    assert made.state.promiscuous
    made.begin(ALL, 2)
    assert made.state == applied[-1] == ControlState(features=ALL, generation=2)
    made.handle(b"\0\0\1")
    made.reset()
    assert made.state == ControlState(features=ALL, generation=2)


# -- the receive filter ----------------------------------------------------------------------------

ADDRESS = st.sampled_from([OWN, *numbered(2, 4), *numbered(3, 4), b"\xff" * 6])
STATE = st.builds(
    ControlState,
    features=st.sampled_from([ALL, ALL & ~Feature.CTRL_VLAN, ALL & ~Feature.CTRL_RX, ALL & ~Feature.CTRL_VQ]),
    promiscuous=st.booleans(), all_multicast=st.booleans(), all_unicast=st.booleans(), no_multicast=st.booleans(),
    no_unicast=st.booleans(), no_broadcast=st.booleans(), mac=st.none() | st.just(numbered(2, 5)[4]),
    unicast=st.none() | st.lists(st.sampled_from(numbered(2, 4))), multicast=st.none() | st.lists(st.sampled_from(numbered(3, 4))),
    vlans=st.lists(st.sampled_from([1, 7, 8, 4095]), unique=True).map(sorted),
)  # fmt: skip


def wanted(state: ControlState, address: bytes, vlan: int | None) -> bool:
    """The specification's rules, one after the other."""
    if state.promiscuous or not state.features & Feature.CTRL_VQ:
        return True
    if state.features & Feature.CTRL_VLAN and vlan and vlan not in state.vlans:
        return False
    if not state.features & Feature.CTRL_RX:
        return True
    if address == b"\xff" * 6:
        return not state.no_broadcast
    if address[0] & 1:
        return not state.no_multicast and (state.all_multicast or state.multicast is None or address in state.multicast)
    if state.no_unicast:
        return False
    return state.all_unicast or state.unicast is None or address in (state.mac or OWN, *state.unicast)


@settings(max_examples=200, deadline=None)
@given(STATE, st.lists(st.tuples(ADDRESS, st.sampled_from([None, 0, 1, 7, 8, 9, 4095])), min_size=1, max_size=8))
def test_frames_that_the_driver_does_not_want_are_dropped(state, frames):
    with Guest(VERSION_1, size=16) as guest:
        guest.port.set_receive_filter(**state.filter_of(OWN))
        for _ in frames:
            guest.net.post(200)
        guest.rings[RX].publish()
        contents = [
            address
            + OWN
            + (b"" if vlan is None else struct.pack(">HH", 0x8100, 0xE000 | vlan))
            + b"\x08\x00"
            + bytes([number] * 50)
            for number, (address, vlan) in enumerate(frames)
        ]
        guest.lan.inject(contents)
        guest.run()  # and packets are conserved
        expected = [content for content, (address, vlan) in zip(contents, frames, strict=True) if wanted(state, address, vlan)]
        assert [content for content, _ in guest.net.received()] == expected
        [drops] = [each["dropped"] for name, each in guest.engine.snapshot() if name == "vm.tx"]
        assert drops["filtered"] == len(frames) - len(expected) == sum(drops.values())

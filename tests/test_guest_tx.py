"""What a guest's driver asks of its frames' way to it: receive-side scaling by its key and table, hashes in its headers, answers
on the pair that asked, and notifications that come later; against the specification's rules, in virtual time."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.parse import Parse
from dataplane.elements.rss import Rss
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from tests.support.guests import CSUM, EVENT_IDX, FRESH, GUEST_CSUM, HASH_REPORT, MRG_RXBUF, PACKED, VERSION_1, mask
from tests.test_rss import ICMP, SCTP, VECTORS, packets, toeplitz
from tests.wire_frames import TCP, UDP, Spec
from virt.driver import GuestRam, Header, NetQueues, PackedRing, SplitRing
from virt.flow_memory import FlowMemory
from virt.guest_memory import GuestMemory
from virt.guest_tx import GuestTx
from virt.hash_types import HASH_TYPES, HashType
from virt.virtio_port import VirtioPort

both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
KEY = bytes(range(1, 41))
ALL_PAIRS = [0, 1, 2, 3]


class Lab:
    """A guest with several queue pairs, whose frames come from and go to the port `lan`."""

    def __init__(self, *features: int, pairs: int = 4, size: int = 64, room: int = 300) -> None:
        self.pairs, self.size, self.room = pairs, size, room
        self.packed = PACKED in features
        self.ram = GuestRam()
        kind: Any = PackedRing if self.packed else SplitRing
        self.rings = [kind(self.ram, size, event_index=EVENT_IDX in features) for _ in range(2 * pairs)]
        header = 20 if HASH_REPORT in features else 12
        self.nets = [NetQueues(*self.rings[2 * pair : 2 * pair + 2], header) for pair in range(pairs)]
        self.port = VirtioPort("vm", number=1, queues=pairs, mtu=65535)
        self.memory = GuestMemory([self.ram.region])
        self.port.set_memory(self.memory)
        self.port.set_features(mask(VERSION_1, *features))
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in self.rings]
        for ring in range(2 * pairs):
            self.start(ring)
        self.pool = PacketPool(small=256, large=16)
        self.lan = MemoryPort("lan", 2)
        self.rss = Rss(queues=pairs)
        self.flows = FlowMemory(self.rss) if pairs > 1 else None
        self.tx = GuestTx(self.port, self.rss, self.flows)
        rx, lan_rx = PortRx(self.port), PortRx(self.lan)
        head = rx >> Parse(name="vm.parse")
        if self.flows is not None:
            head = head >> self.flows
        head >> PortTx(self.lan)
        lan_rx >> Parse() >> self.tx
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=1))
        self.engine.load([rx, lan_rx])
        self.now = 1

    def start(self, ring: int, base: int = -1, **resumed: bool) -> None:
        position = (FRESH if self.packed else 0) if base == -1 else base
        self.port.start(ring, **self.rings[ring].places, base=position, call_fd=self.calls[ring], **resumed)
        self.port.enable(ring, True)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        assert self.pool.in_use == 0
        self.port.close()
        self.memory.close()
        self.ram.close()
        for each in self.calls:
            os.close(each)

    def run(self, until: int | None = None) -> None:
        self.now = self.now + 1 if until is None else until
        advance(self.engine, self.now)
        assert self.engine.conservation()["conserved"]

    def post(self) -> None:
        """As many receive buffers as there is room for."""
        for pair, net in enumerate(self.nets):
            while len(net.buffers) < self.size // 2:
                net.post(self.room)
            self.rings[2 * pair].publish()

    def deliver(self, *frames: bytes) -> list[list[tuple[bytes, Header]]]:
        """What each pair gets of frames from the network."""
        self.post()
        self.lan.inject(list(frames))
        self.run()
        return [net.received() for net in self.nets]

    def send(self, pair: int, *frames: bytes) -> None:
        """Frames that the driver transmits on a pair."""
        for frame in frames:
            self.nets[pair].transmit(frame)
        self.rings[2 * pair + 1].publish()
        self.run()
        assert len(self.lan.take()) == len(frames)
        self.nets[pair].transmitted()

    def calls_of(self, ring: int) -> int:
        """Notifications since the last call."""
        try:
            return os.eventfd_read(self.calls[ring])
        except BlockingIOError:
            return 0


def pairs_of(found: list[list[tuple[bytes, Header]]], frames: list[bytes]) -> list[int]:
    """On which pair each of different frames arrived, once."""
    where = {content: pair for pair, each in enumerate(found) for content, _ in each}
    assert sum(map(len, found)) == len(frames) == len(where)
    return [where[frame] for frame in frames]


# -- hashes ----------------------------------------------------------------------------------------


def vector_spec(vector: tuple[Any, ...], protocol: int) -> Spec:
    source, source_port, destination, destination_port, *_ = vector
    first, second = (ipaddress.ip_address(each) for each in (source, destination))
    return Spec(version=first.version, protocol=protocol, source=first.packed, destination=second.packed,
                source_port=source_port, destination_port=destination_port)  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS)
def test_published_vectors_are_in_the_header(vector):
    """The hashes of Microsoft's verification, and the types of virtio's header."""
    four, six = ("." in vector[0]), (":" in vector[0])
    *_, addresses, all_four = vector
    with Lab(HASH_REPORT, pairs=1) as lab:
        for types, protocol, expected in (
            (HASH_TYPES, TCP, (all_four, 2 if four else 5)),
            (HASH_TYPES, UDP, (all_four, 3 if four else 6)),
            (HASH_TYPES, ICMP, (addresses, 1 if four else 4)),
            (HashType.IPV4 | HashType.IPV6, TCP, (addresses, 1 if four else 4)),
            (HashType.UDPV4 | HashType.UDPV6, TCP, (0, 0)),
            (HashType.IPV6 | HashType.TCPV6 | HashType.UDPV6 if four else HashType.IPV4 | HashType.TCPV4, TCP, (0, 0)),
            (0, TCP, (0, 0)),
        ):
            lab.tx.steer([0], pairs=1, driver=Rss(), types=int(types))
            frame = vector_spec(vector, protocol).build()
            [[(content, header)]] = lab.deliver(frame)
            assert content == frame and (header.hash, header.hash_report) == expected
        lab.tx.steer([0], pairs=1)
        [[(_, header)]] = lab.deliver(frame)
        assert (header.hash, header.hash_report) == (0, 0)
    assert four != six


def expected_hash(key: bytes, spec: Spec, hashed: bytes, types: int) -> tuple[int, int]:
    """The specification's rules in their order (section 5.1.6.4.3): hash and report. hashed: what RSS hashes of the packet."""
    family = 0 if spec.version == 4 else 3
    addresses = spec.source + spec.destination
    if len(hashed) > len(addresses):
        for protocol, report in ((TCP, 2), (UDP, 3)):
            if spec.protocol == protocol and types >> (report + family - 1) & 1:
                return toeplitz(key, hashed), report + family
    if types >> family & 1:
        return toeplitz(key, addresses), 1 + family
    return 0, 0


@settings(max_examples=40, deadline=None)
@given(
    st.binary(min_size=40, max_size=40), st.integers(0, HASH_TYPES), st.lists(packets(), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), min_size=8, max_size=8), st.integers(0, 3), st.booleans(), st.booleans(),
)  # fmt: skip
def test_frames_are_hashed_and_steered_by_the_rules(key, types, given_packets, table, unclassified, reports, steers):
    with Lab(*[HASH_REPORT] * reports, MRG_RXBUF, CSUM, GUEST_CSUM) as lab:
        driver = Rss(key, table, queues=4)
        lab.tx.steer(ALL_PAIRS, pairs=4, driver=driver, types=types, unclassified=unclassified if steers else None)
        frames, wanted = [], []
        for number, (spec, hashed) in enumerate(given_packets):
            spec.payload = number.to_bytes(8, "big") + spec.payload[8:]  # to tell them apart
            frames.append(spec.build())
            value, report = expected_hash(key, spec, hashed, types)
            if steers:
                queue = table[value % 8] if report else unclassified
            else:
                queue = ALL_PAIRS[toeplitz(lab.rss.key, hashed) % 4]
            wanted.append((queue, value if reports else 0, report if reports else 0))
        found = lab.deliver(*frames)
        assert pairs_of(found, frames) == [queue for queue, _, _ in wanted]
        headers = {content: header for each in found for content, header in each}
        assert [(headers[frame].hash, headers[frame].hash_report) for frame in frames] == [each[1:] for each in wanted]
        assert all(header.buffers == 1 for header in headers.values())


def test_what_is_no_ip_packet_has_no_hash():
    arp = bytes.fromhex("ffffffffffff0200000000010806") + bytes(46)
    with Lab(HASH_REPORT) as lab:
        lab.tx.steer(ALL_PAIRS, pairs=4, driver=Rss(KEY, [1, 2], queues=4), types=HASH_TYPES, unclassified=3)
        found = lab.deliver(arp)
        assert pairs_of(found, [arp]) == [3] and found[3][0][1].hash_report == 0


def test_steering_that_cannot_be_is_refused():
    with Lab() as lab:
        for wrong in ({"pairs": 0}, {"pairs": 5}, {"pairs": 4, "unclassified": 4}, {"pairs": 4, "driver": Rss(queues=5)}):
            with pytest.raises(ConfigError, match="the port has 4"):
                lab.tx.steer(ALL_PAIRS, **wrong)


# -- the flows that a guest transmits --------------------------------------------------------------


def flow(number: int, version: int = 4, protocol: int = TCP, **changes: Any) -> Spec:
    return Spec(version=version, protocol=protocol, payload=number.to_bytes(8, "big"), source_port=1000 + number, **changes)


def answer(spec: Spec) -> bytes:
    ends = {"source": spec.destination, "destination": spec.source,
            "source_port": spec.destination_port, "destination_port": spec.source_port}  # fmt: skip
    return Spec(**{**spec.__dict__, **ends}).build()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 3), st.sampled_from([4, 6]), st.sampled_from([TCP, UDP, ICMP, SCTP])),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 4),
)
def test_answers_arrive_on_the_pair_that_transmitted_the_flow(sent, pairs):
    """The last one, if it is in use; frames of other flows where the table says."""
    with Lab() as lab:
        table = [queue % pairs for queue in ALL_PAIRS]
        lab.tx.steer(table, pairs=pairs, by_flow=True)
        last: dict[bytes, tuple[Spec, int]] = {}  # TCP and UDP of the same ports have one hash
        for number, pair, version, protocol in sent:
            spec = flow(number, version, protocol)
            lab.send(pair, spec.build())
            last[hashed_of_answer(spec)] = spec, pair
        for hashed, (spec, pair) in last.items():
            frame = answer(spec)
            expected = pair if pair < pairs else table[toeplitz(lab.rss.key, hashed) % 4]
            assert pairs_of(lab.deliver(frame), [frame]) == [expected]
        unknown = flow(40).build()
        [where] = pairs_of(lab.deliver(unknown), [unknown])
        assert where == table[lab.rss.hash_tuple("10.0.0.1", "10.0.0.2", 1040, 80) % 4]


def hashed_of_answer(spec: Spec) -> bytes:
    """What RSS hashes of the answers to a packet."""
    hashed = spec.destination + spec.source
    if spec.protocol in (TCP, UDP, SCTP):
        hashed += spec.destination_port.to_bytes(2, "big") + spec.source_port.to_bytes(2, "big")
    return hashed


def test_flows_are_forgotten_when_they_do_not_steer():
    with Lab() as lab:
        frame = answer(flow(1))
        usual = lab.rss.queue(toeplitz(lab.rss.key, hashed_of_answer(flow(1))))
        other = (usual + 1) % 4
        lab.send(other, flow(1).build())
        assert pairs_of(lab.deliver(frame), [frame]) == [usual], "not asked for"
        lab.tx.steer(ALL_PAIRS, pairs=4, by_flow=True)
        lab.send(other, flow(1).build())
        assert pairs_of(lab.deliver(frame), [frame]) == [other]
        lab.tx.steer(ALL_PAIRS, pairs=4)
        lab.tx.steer(ALL_PAIRS, pairs=4, by_flow=True)
        assert pairs_of(lab.deliver(frame), [frame]) == [usual]


def test_a_guest_with_more_flows_than_are_remembered():
    """Each is steered to a pair in use, the newest ones as they were transmitted."""
    with Lab() as lab:
        lab.tx.steer(ALL_PAIRS, pairs=4, by_flow=True)
        for first in range(0, 6000, 30):
            lab.send(first // 30 % 4, *(flow(number).build() for number in range(first, first + 30)))
        frames = [answer(flow(number)) for number in range(5970, 6000)]
        where = pairs_of(lab.deliver(*frames), frames)
        assert where.count(5970 // 30 % 4) >= 28  # two of 30 in one place of 4096 would be bad luck


# -- notifications that come later -----------------------------------------------------------------

USEC = 1000
FRAME = Spec(payload=bytes(20)).build()


@both
@pytest.mark.parametrize("events", [False, True], ids=["flags", "events"])
def test_a_notification_comes_with_the_packet_or_at_the_time(packed, events):
    with Lab(*[PACKED] * packed, *[EVENT_IDX] * events, pairs=1) as lab:
        receive = lab.rings[0]
        receive.ask_for_calls(True)
        lab.deliver(FRAME)
        assert lab.calls_of(0) == 1, "each burst, until the driver says otherwise"
        lab.port.set_coalescing(0, 3, 10)
        receive.ask_for_calls(True)
        began = lab.now
        assert [content for content, _ in lab.deliver(FRAME)[0]] == [FRAME], "visible at once"
        receive.ask_for_calls(True)
        lab.run(began + 5 * USEC)
        lab.deliver(FRAME)
        receive.ask_for_calls(True)
        lab.run(began + 10 * USEC - 1)
        assert lab.calls_of(0) == 0
        lab.run(began + 10 * USEC)
        # with EVENT_IDX the driver has said that it has seen these frames
        assert lab.calls_of(0) == (0 if events else 1)


@both
@pytest.mark.parametrize("ring", [0, 1], ids=["receive", "transmit"])
@pytest.mark.parametrize("events", [False, True], ids=["flags", "events"])
def test_golden_times_of_notifications(packed, ring, events):
    """To the nanosecond: by number, by time from the first packet on, then anew."""
    with Lab(*[PACKED] * packed, *[EVENT_IDX] * events, pairs=1) as lab:
        driver = lab.rings[ring]

        def pass_one() -> None:
            if ring == 0:
                lab.lan.inject([FRAME])
            else:
                lab.nets[0].transmit(FRAME)
                driver.publish()
            lab.run()

        lab.post()
        driver.ask_for_calls(True)
        pass_one()
        assert lab.calls_of(ring) == 1
        (lab.nets[0].received if ring == 0 else lab.nets[0].transmitted)()
        lab.port.set_coalescing(ring, 3, 10)
        driver.ask_for_calls(True)
        for _ in range(2):
            pass_one()
        assert lab.calls_of(ring) == 0
        pass_one()
        assert lab.calls_of(ring) == 1, "the third one"
        (lab.nets[0].received if ring == 0 else lab.nets[0].transmitted)()
        driver.ask_for_calls(True)
        lab.run(lab.now + 50 * USEC)
        assert lab.calls_of(ring) == 0, "no packet, no notification"
        began = lab.now
        pass_one()
        lab.run(began + 4 * USEC)
        pass_one()
        lab.run(began + 10 * USEC - 1)
        assert lab.calls_of(ring) == 0
        lab.run(began + 10 * USEC)
        assert lab.calls_of(ring) == 1, "10 us after the first one"
        lab.run(began + 100 * USEC)
        assert lab.calls_of(ring) == 0
        # suppression by the driver wins
        (lab.nets[0].received if ring == 0 else lab.nets[0].transmitted)()
        driver.ask_for_calls(False)
        for _ in range(4):
            pass_one()
        lab.run(lab.now + 20 * USEC)
        assert lab.calls_of(ring) == 0
        lab.lan.take()


@both
def test_a_changed_setting_counts_at_once(packed):
    with Lab(*[PACKED] * packed, pairs=1) as lab:
        lab.rings[0].ask_for_calls(True)
        lab.port.set_coalescing(0, 15, 1000)
        for changed in ((8, 1000), (15, 1), (0, 0)):
            lab.deliver(*[FRAME] * 10)
            assert lab.calls_of(0) == 0
            lab.run(lab.now + 2 * USEC)
            lab.port.set_coalescing(0, *changed)
            lab.run()
            assert lab.calls_of(0) == 1
            lab.port.set_coalescing(0, 15, 1000)
        # nothing is postponed: nothing to do
        lab.port.set_coalescing(0, 1, 1)
        lab.run(lab.now + 5 * USEC)
        assert lab.calls_of(0) == 0


@both
@pytest.mark.parametrize("events", [False, True], ids=["flags", "events"])
def test_a_driver_is_notified_before_its_ring_is_used_up(packed, events):
    """However much it asks for: half of the ring is the most."""
    with Lab(*[PACKED] * packed, *[EVENT_IDX] * events, pairs=1, size=8) as lab:
        lab.port.set_coalescing(0, 0xFFFFFFFF, 0xFFFFFFFF)
        lab.port.set_coalescing(1, 0xFFFFFFFF, 0xFFFFFFFF)
        for _ in range(20):
            lab.rings[0].ask_for_calls(True)
            assert len(lab.deliver(*[FRAME] * 4)[0]) == 4
            assert lab.calls_of(0) == 1
            lab.rings[1].ask_for_calls(True)
            lab.send(0, *[FRAME] * 4)
            assert lab.calls_of(1) == 1


@both
def test_a_stopped_ring_owes_no_notification(packed):
    with Lab(*[PACKED] * packed, pairs=1) as lab:
        lab.rings[0].ask_for_calls(True)
        lab.port.set_coalescing(0, 15, 1000)
        lab.deliver(FRAME)
        base = lab.port.stop(0)
        assert lab.calls_of(0) == 1
        lab.run(lab.now + 2000 * USEC)
        assert lab.calls_of(0) == 0
        # the process was killed: what it had postponed is told by the next one
        lab.start(0, base, resumed=True)
        assert lab.calls_of(0) == 1


RATES = st.tuples(st.sampled_from([0, 1, 2, 5]), st.sampled_from([0, 1, 10, 100]))
STEPS = st.one_of(
    st.tuples(st.just("packets"), st.integers(1, 6)),
    st.tuples(st.just("time"), st.sampled_from([1, USEC - 1, USEC, 5 * USEC, 200 * USEC])),
    st.tuples(st.just("setting"), RATES),
)


@both
@settings(max_examples=60, deadline=None)
@given(RATES, st.lists(STEPS, max_size=20))
def test_notifications_are_those_of_the_rules(packed, setting, steps):
    """A driver that always wants to be notified, against the rules in plain Python."""
    with Lab(*[PACKED] * packed, pairs=1) as lab:
        lab.rings[0].ask_for_calls(True)
        lab.port.set_coalescing(0, *setting)
        most, usecs = setting
        waiting, began = 0, 0
        for what, value in steps:
            expected = 0
            if what == "packets":
                lab.post()
                lab.lan.inject([FRAME] * value)
                began = began if waiting else lab.now
                lab.run()
                waiting += value
                if not most or not usecs or waiting >= most or lab.now >= began + usecs * USEC:
                    expected, waiting = 1, 0
            elif what == "time":
                lab.run(lab.now + value)
                if waiting and lab.now >= began + usecs * USEC:
                    expected, waiting = 1, 0
            else:
                lab.port.set_coalescing(0, *value)
                most, usecs = value
                lab.run()
                if waiting and (not most or not usecs or waiting >= most or lab.now >= began + usecs * USEC):
                    expected, waiting = 1, 0
            assert lab.calls_of(0) == expected, (what, value)
            lab.nets[0].received()

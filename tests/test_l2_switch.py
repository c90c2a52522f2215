"""The switch compared with a model of dicts: same frames from every port, same drops, same
counters."""

from __future__ import annotations

from collections import Counter as Multiset
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dataplane.elements.counter import Discard
from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError
from dataplane.graph.element import BatchView, PyElement
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable
from tests.wire_frames import Spec, big_specs

START_NS = 10**9
SECOND_NS = 10**9
BROADCAST = b"\xff" * 6
OFFLOAD_ALL = 0x1F


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def ethernet(
    destination: bytes, source: bytes, *tags: tuple[int, int], payload: bytes = b"\x12\x34 payload of a frame"
) -> bytes:
    """A frame; tags: (type, TCI). The payload begins with the inner type."""
    return destination + source + b"".join(kind.to_bytes(2, "big") + tci.to_bytes(2, "big") for kind, tci in tags) + payload


class Bench:
    """`count` ports around a switch, in virtual time."""

    def __init__(
        self,
        count: int,
        *,
        parse: bool = False,
        small: int = 1024,
        watch: PyElement | None = None,
        offloads: int = OFFLOAD_ALL,
        **table: Any,
    ) -> None:
        self.pool = PacketPool(small=small, large=16)
        self.clock = Clock(virtual=True, start_ns=START_NS)
        self.engine = Engine("e0", self.pool, clock=self.clock)
        self.table = MacTable(**table)
        self.switch = L2Switch(self.table, count)
        self.ports = [MemoryPort(f"p{i}", i, offloads=offloads) for i in range(count)]
        sources = []
        for i, port in enumerate(self.ports):
            rx = PortRx(port)
            (rx >> Parse(name=f"parse{i}") >> self.switch) if parse else (rx >> self.switch)
            tx = PortTx(port)
            (self.switch[i] >> watch >> tx) if watch is not None and i == 1 else (self.switch[i] >> tx)
            sources.append(rx)
        self.engine.load(sources)

    def send(self, port: int, *frames: bytes | Frame) -> list[list[bytes]]:
        """The frames that leave each port."""
        self.ports[port].inject(list(frames))
        advance(self.engine, self.clock.now_ns)
        return [[frame.data for frame in each.take()] for each in self.ports]

    def drops(self) -> dict[str, int]:
        return {reason: count for reason, count in self.switch.statistics()["dropped"].items() if count}

    def counters(self) -> dict[str, int]:
        return {name: count for name, count in self.switch.statistics()["counters"].items() if count}

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


@dataclass
class Vlan:
    """A port's settings."""

    access: int | None = None
    trunk: list[int] | None = None
    native: int | None = None
    untagged: bool | None = None
    source: bytes | None = None

    def arguments(self) -> dict[str, Any]:
        given = {key: value for key, value in self.__dict__.items() if value is not None}
        return given if self.source is None else {**given, "source": self.source.hex(":")}

    @property
    def plain(self) -> bool:
        return self.access is None and self.trunk is None and self.native is None and not self.untagged

    def carries(self, vlan: int) -> bool:
        if vlan == 4095:
            return False
        if self.access is not None:
            return vlan == self.access
        if vlan == 0:
            return self.plain or bool(self.untagged)
        if self.untagged:
            return False
        return self.trunk is None or vlan in self.trunk or vlan == self.native

    def leaves_untagged(self, vlan: int) -> bool:
        return vlan == (self.access if self.access is not None else self.native)


@dataclass
class Model:
    """The switch in plain Python."""

    ageing_ms: int
    ports: dict[int, Vlan] = field(default_factory=dict)
    # (vlan, mac) -> port, ms when noted
    table: dict[tuple[int, bytes], tuple[int, int]] = field(default_factory=dict)
    drops: Multiset[str] = field(default_factory=Multiset)
    counters: Multiset[str] = field(default_factory=Multiset)

    def known(self, vlan: int, address: bytes, now_ms: int) -> int | None:
        port, seen_ms = self.table.get((vlan, address), (None, 0))
        return port if port is not None and now_ms - seen_ms < self.ageing_ms else None

    def learn(self, vlan: int, address: bytes, port: int, now_ms: int) -> None:
        old = self.known(vlan, address, now_ms)
        if old == port and now_ms - self.table[vlan, address][1] < min(1000, self.ageing_ms // 10):
            return
        if old is None:
            self.counters["learned"] += 1
        elif old != port:
            self.counters["moved"] += 1
        self.table[vlan, address] = (port, now_ms)

    def vlan_of(self, frame: bytes, config: Vlan) -> int | None:
        tagged = frame[12:14] in (b"\x81\x00", b"\x88\xa8")
        tag = int.from_bytes(frame[14:16], "big") & 0xFFF if tagged else 0
        twice = tagged and frame[16:18] in (b"\x81\x00", b"\x88\xa8")
        if (tag or twice) and (config.access is not None or config.untagged):
            return None
        vlan = tag or config.access or config.native or 0
        return vlan if config.carries(vlan) else None

    def leaving(self, frame: bytes, vlan: int, config: Vlan) -> bytes:
        tagged = frame[12:14] in (b"\x81\x00", b"\x88\xa8")
        if vlan == 0:
            return frame
        if config.leaves_untagged(vlan):
            return frame[:12] + frame[16:] if tagged else frame
        if not tagged:
            return frame[:12] + b"\x81\x00" + vlan.to_bytes(2, "big") + frame[12:]
        tci = int.from_bytes(frame[14:16], "big") & 0xF000 | vlan
        return frame[:14] + tci.to_bytes(2, "big") + frame[16:]

    def take(self, port: int, frame: bytes, now_ms: int) -> dict[int, bytes]:
        """Frames that leave, by port."""
        config, destination, source = self.ports.get(port), frame[:6], frame[6:12]

        def drop(reason: str) -> dict[int, bytes]:
            self.drops[reason] += 1
            return {}

        if config is None:
            return drop("unknown_port")
        if len(frame) < 14 or (frame[12:14] in (b"\x81\x00", b"\x88\xa8") and len(frame) < 18):
            return drop("runt")
        if source[0] & 1 or source == bytes(6):
            return drop("bad_source")
        if config.source is not None and source != config.source:
            return drop("spoofed")
        if destination[:5] == bytes.fromhex("0180c20000") and destination[5] < 16:
            return drop("reserved_multicast")
        vlan = self.vlan_of(frame, config)
        if vlan is None:
            return drop("vlan_filtered")
        self.learn(vlan, source, port, now_ms)
        known = None if destination[0] & 1 else self.known(vlan, destination, now_ms)
        if known == port:
            return drop("hairpin")
        if known is not None:
            if known not in self.ports or not self.ports[known].carries(vlan):
                return drop("no_destination")
            return {known: self.leaving(frame, vlan, self.ports[known])}
        others = [each for each, theirs in self.ports.items() if each != port and theirs.carries(vlan)]
        if not others:
            return drop("no_destination")
        self.counters["flooded"] += 1
        return {each: self.leaving(frame, vlan, self.ports[each]) for each in others}


PORTS = 4
VLANS = [1, 10, 20, 4094]
vlans = st.sampled_from(VLANS)
configs = st.one_of(
    st.just(Vlan()),
    st.builds(Vlan, access=vlans),
    st.builds(Vlan, trunk=st.lists(vlans, min_size=1, unique=True), native=st.none() | vlans),
    st.builds(Vlan, native=vlans),
    st.builds(Vlan, untagged=st.just(True), source=st.none() | st.just(mac(1))),
    st.builds(Vlan, access=vlans, source=st.just(mac(2))),
)
addresses = st.integers(1, 5).map(mac)
destinations = st.one_of(
    addresses,
    st.sampled_from(
        [BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("0180c200000e"), bytes.fromhex("0180c2000010"), bytes(6)]
    ),
)
sources = st.one_of(addresses, addresses, addresses, st.sampled_from([bytes(6), BROADCAST, bytes.fromhex("030000000001")]))
tags = st.lists(
    st.tuples(
        st.sampled_from([0x8100, 0x88A8]),
        st.builds(lambda bits, vlan: bits << 12 | vlan, st.integers(0, 15), st.sampled_from([0, *VLANS, 4095])),
    ),
    max_size=3,
)
whole_frames = st.builds(
    lambda d, s, t, payload: ethernet(d, s, *t, payload=payload),
    destinations,
    sources,
    tags,
    st.binary(min_size=2, max_size=40),
)
frames = whole_frames | st.builds(lambda frame, length: frame[:length], whole_frames, st.integers(1, 20))


def passes_parse(frame: bytes) -> bool:
    """Whether a frame is complete, and not IP."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8", b"\x91\x00") and at < 20:
        at += 4
    return len(frame) >= at + 2 and frame[at : at + 2] not in (b"\x08\x00", b"\x86\xdd")


class Twins(RuleBasedStateMachine):
    """Switch and model get the same frames, settings and times."""

    @initialize(ageing_s=st.sampled_from([1, 5, 300]), parse=st.booleans())
    def begin(self, ageing_s: int, parse: bool) -> None:
        self.parse = parse
        self.bench = Bench(PORTS, parse=parse, ageing_ns=ageing_s * SECOND_NS)
        self.model = Model(ageing_s * 1000)
        for port in range(PORTS - 1):
            self.activate(port, Vlan())

    @rule(port=st.integers(0, PORTS - 1), config=configs)
    def activate(self, port: int, config: Vlan) -> None:
        self.bench.engine.call(lambda: self.bench.switch.activate(port, **config.arguments()))
        self.model.ports[port] = config

    @rule(port=st.integers(0, PORTS - 1))
    def deactivate(self, port: int) -> None:
        self.bench.engine.call(lambda: self.bench.switch.deactivate(port))
        self.model.ports.pop(port, None)

    @rule(port=st.integers(0, PORTS - 1))
    def forget(self, port: int) -> None:
        self.bench.table.forget_port(port)
        self.model.table = {key: value for key, value in self.model.table.items() if value[0] != port}

    @rule(milliseconds=st.sampled_from([1, 99, 100, 499, 500, 999, 1000, 4001, 300_000]))
    def wait(self, milliseconds: int) -> None:
        advance(self.bench.engine, self.bench.clock.now_ns + milliseconds * 10**6)

    @rule(port=st.integers(0, PORTS - 1), sent=st.lists(frames, min_size=1, max_size=20))
    def send(self, port: int, sent: list[bytes]) -> None:
        if self.parse:  # Parse drops some before the switch
            sent = [frame for frame in sent if passes_parse(frame)]
        now_ms = self.bench.clock.now_ns // 10**6
        expected: list[list[bytes]] = [[] for _ in range(PORTS)]
        before = self.bench.switch.statistics()["packets"]
        out = self.bench.send(port, *sent)
        assert self.bench.switch.statistics()["packets"] - before == len(sent)
        for frame in sent:
            for number, data in self.model.take(port, frame, now_ms).items():
                expected[number].append(data)
        assert out == expected

    @rule(port=st.integers(0, PORTS - 1), frame=whole_frames, count=st.integers(2, 40))
    def burst(self, port: int, frame: bytes, count: int) -> None:
        """Frames of one flow, which the switch treats as one."""
        self.send(port, [frame] * count)

    @invariant()
    def agree(self) -> None:
        bench, model = self.bench, self.model
        assert bench.drops() == {reason: count for reason, count in model.drops.items() if count}
        counters = bench.counters()
        aged = counters.pop("aged", 0)
        assert counters == {name: count for name, count in model.counters.items() if count}
        now_ms = bench.clock.now_ns // 10**6
        entries = [
            (e["vlan"], bytes.fromhex(e["mac"].replace(":", "")), e["port"], e["age_s"])
            for e in bench.table.entries(bench.clock.now_ns)
        ]
        assert entries == [
            (vlan, address, port, (now_ms - seen) / 1000)
            for (vlan, address), (port, seen) in sorted(model.table.items())
            if model.known(vlan, address, now_ms) is not None
        ]
        assert aged <= counters.get("learned", 0)
        assert bench.pool.in_use == 0
        assert bench.engine.conservation()["conserved"]

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.close()


Twins.TestCase.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTwins = Twins.TestCase


COLUMNS = (
    "length l3_offset l4_offset payload_offset ethertype vlan_count csum_start csum_offset header_length gso_size gso_type "
    "ip_protocol source_port destination_port"
).split()


class Watch(PyElement):
    """Stores the fields of records."""

    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []

    def process(self, batch: BatchView) -> None:
        columns = {name: getattr(batch, name) for name in [*COLUMNS, "vlan_tci", "vlan_inner_tci"]}
        for i in range(len(batch)):
            tci = ["vlan_tci", "vlan_inner_tci"][: int(columns["vlan_count"][i])]
            self.seen.append({name: int(columns[name][i]) for name in [*COLUMNS, *tci]})


def parsed(frame: Frame) -> dict[str, int]:
    """Parse's record of a frame."""
    pool = PacketPool(small=16, large=16)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    port, watch = MemoryPort("a", 0), Watch()
    rx = PortRx(port)
    rx >> Parse() >> watch >> Discard()
    engine.load([rx])
    port.inject([frame])
    advance(engine, 1)
    engine.close()
    return watch.seen[0]


TAGS: dict[str, list[tuple[int, int]]] = {
    "untagged": [],
    "tagged": [(0x8100, 0xE00A)],
    "provider": [(0x88A8, 10), (0x8100, 9)],
    "priority": [(0x8100, 0x6000)],
}


@pytest.mark.parametrize("kind", ["tcp4", "tcp4 options", "tcp6 extensions", "udp4"])
@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("out", [Vlan(), Vlan(access=10), Vlan(trunk=[10]), Vlan(trunk=[20], native=10)], ids=str)
def test_records_stay_true_when_tags_come_and_go(kind, tags, out):
    """GSO frames from VLAN 10, tagged in every way, to every kind of port: the record equals
    Parse's of the frame that leaves."""
    spec = Spec(**{**big_specs()[kind].__dict__, "tags": TAGS[tags]})
    sent = spec.frame(1000)
    watch = Watch()
    bench = Bench(2, parse=True, watch=watch)
    bench.switch.activate(0, **(Vlan(native=10).arguments()))
    bench.switch.activate(1, **out.arguments())
    bench.ports[0].inject([sent])
    advance(bench.engine, bench.clock.now_ns)
    (left,) = bench.ports[1].take()
    model = Model(1000, {0: Vlan(native=10), 1: out})
    assert left.data == model.take(0, sent.data, 0)[1]
    assert watch.seen == [parsed(left)]
    assert left.csum_start == watch.seen[0]["l4_offset"]
    assert watch.last_error is None
    bench.close()


def test_a_tag_pushed_on_two_and_popped_again_changes_nothing():
    """Three tags exceed a record's room for tags, but the offsets stay correct."""
    spec = Spec(payload=bytes(100), tags=[(0x88A8, 7), (0x8100, 9)])
    watch = Watch()
    pool = PacketPool(small=64, large=16)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    # An access port rejects tagged frames, but an outer type older than 802.1ad counts as untagged.
    data = spec.build().replace(b"\x88\xa8\x00\x07", b"\x91\x00\x00\x07", 1)
    first, second = L2Switch(MacTable(), 2, name="first"), L2Switch(MacTable(), 2, name="second")
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx = PortRx(a)
    rx >> Parse() >> first
    first[0] >> Discard(name="no one")
    first[1] >> watch >> second
    second[0] >> Discard(name="nobody")
    second[1] >> PortTx(b)
    first.activate(0, access=30)
    first.activate(1, trunk=[30])
    second.activate(0, trunk=[30])
    second.activate(1, access=30)
    engine.load([rx])
    a.inject([data])
    advance(engine, 1)
    assert [frame.data for frame in b.take()] == [data]
    before, (between,) = parsed(Frame(data)), watch.seen
    assert between["vlan_count"] == 3
    for name in ("l3_offset", "l4_offset", "payload_offset", "length"):
        assert between[name] == before[name] + 4
    assert engine.conservation()["conserved"]
    engine.close()
    assert pool.in_use == 0


def test_a_guest_cannot_change_its_vlan_behind_the_switch():
    """A partial checksum whose position is in the tag: stored on transmission, it would move a
    frame of VLAN 10 to another."""
    bench = Bench(2, parse=True, offloads=0)
    bench.switch.activate(0, trunk=[10])
    bench.switch.activate(1, trunk=[10, 20])
    tagged = ethernet(BROADCAST, mac(1), (0x8100, 10), payload=bytes(50))
    assert bench.send(0, *(Frame(tagged, 1, csum_start=start) for start in range(14, 18))) == [[], []]
    (frame,) = bench.send(0, Frame(tagged, 1, csum_start=18, csum_offset=10))[1]
    assert frame[:18] == tagged[:18]
    # Untagged frames get their tag before the sum is stored, whose position moves with it.
    bench.switch.activate(0, access=10)
    (frame,) = bench.send(0, Frame(ethernet(BROADCAST, mac(1), payload=bytes(50)), 1, csum_start=14))[1]
    assert frame[:18] == tagged[:18]
    bench.close()


@pytest.mark.parametrize("config", [Vlan(access=20), Vlan(untagged=True)], ids=str)
def test_a_second_tag_does_not_leave_its_vlan(config):
    """A priority tag, then VLAN 10: if the first were removed, as for a native VLAN, the second
    would decide."""
    bench = Bench(3)
    bench.switch.activate(0, **config.arguments())
    bench.switch.activate(1, trunk=[10, 20], native=20)
    bench.switch.activate(2)
    for kind in (0x8100, 0x88A8):
        hops = ethernet(BROADCAST, mac(1), (0x8100, 0xE000), (kind, 10))
        assert bench.send(0, hops, hops) == [[], [], []]
    assert bench.drops() == {"vlan_filtered": 4}
    assert bench.counters() == {}  # nothing was learned of them
    # In one burst with a frame of the same first 16 bytes but without a second tag: that one
    # passes, in either order.
    once, twice = (
        ethernet(BROADCAST, mac(1), (0x8100, 0xE000), payload=each)
        for each in (b"\x88\xb5" + bytes(40), b"\x81\x00" + bytes(40))
    )
    for burst in ([once, twice, once], [twice, once, twice]):
        _, native, plain = bench.send(0, *burst)
        assert len(native or plain) == burst.count(once)
    bench.close()


def test_a_trunk_may_send_two_tags():
    bench = Bench(2)
    bench.switch.activate(0, trunk=[20])
    bench.switch.activate(1, trunk=[10, 20], native=20)
    twice = ethernet(BROADCAST, mac(1), (0x8100, 20), (0x8100, 10))
    assert bench.send(0, twice) == [[], [twice[:12] + twice[16:]]]
    bench.close()


def test_a_port_without_tags_is_in_vlan_0_alone():
    bench = Bench(4)
    bench.switch.activate(0, untagged=True)
    bench.switch.activate(1, untagged=True)
    bench.switch.activate(2)  # a trunk of all VLANs
    bench.switch.activate(3, access=10)
    plain, priority = ethernet(BROADCAST, mac(1)), ethernet(BROADCAST, mac(1), (0x8100, 0xE000))
    assert bench.send(0, plain, priority) == [[], [plain, priority], [plain, priority], []]
    assert bench.send(0, ethernet(BROADCAST, mac(1), (0x8100, 10))) == [[], [], [], []]
    assert bench.drops() == {"vlan_filtered": 1}
    tagged = ethernet(BROADCAST, mac(3), (0x8100, 10))
    assert bench.send(2, tagged) == [[], [], [], [tagged[:12] + tagged[16:]]]
    assert bench.send(3, ethernet(BROADCAST, mac(4)))[:2] == [[], []]
    assert bench.switch.get_ports()[0] == {"port": 0, "untagged": True}
    for wrong in ({"access": 10}, {"trunk": [10]}, {"native": 10}):
        with pytest.raises(ConfigError, match="give untagged alone"):
            bench.switch.activate(0, untagged=True, **wrong)
    bench.close()


def test_a_port_with_a_source_sends_from_no_other():
    bench = Bench(3)
    for port in range(3):
        bench.switch.activate(port)
    bench.switch.activate(0, source="02:00:00:00:00:01")
    bench.send(1, ethernet(BROADCAST, mac(2)))
    assert bench.send(0, *[ethernet(BROADCAST, mac(2))] * 3) == [[], [], []]
    assert bench.drops() == {"spoofed": 3}
    frame = ethernet(mac(2), mac(3))
    assert bench.send(2, frame) == [[], [frame], []]  # unchanged: the neighbour keeps its traffic
    own = ethernet(BROADCAST, mac(1))
    assert bench.send(0, own) == [[], [own], [own]]
    assert bench.switch.get_ports()[0] == {"port": 0, "trunk": "1-4094", "native": None, "source": "02:00:00:00:00:01"}
    bench.switch.activate(0)
    assert bench.send(0, ethernet(BROADCAST, mac(2)))[1]
    with pytest.raises(ConfigError, match="expected a unicast address"):
        bench.switch.activate(0, source="01:00:00:00:00:01")
    bench.close()


@pytest.mark.parametrize("start", [1, 3, 13, 65533, 65535])
def test_places_that_no_frame_has_do_not_wrap(start):
    """Without VNET_NEEDS_CSUM, the header's other fields are invalid and unchecked."""
    bench = Bench(2)
    # a tag is removed, a tag is added
    for tags, config in (([(0x8100, 10)], Vlan(access=10)), ([], Vlan(trunk=[10]))):
        bench.switch.activate(0, **(Vlan(native=10).arguments()))
        bench.switch.activate(1, **config.arguments())
        bench.ports[0].inject([Frame(ethernet(BROADCAST, mac(1), *tags), csum_start=start, header_length=start)])
        advance(bench.engine, bench.clock.now_ns)
        (left,) = bench.ports[1].take()
        moved = start - 4 if tags else start + 4
        expected = moved if start >= 14 and moved < 65536 else 0
        assert (left.csum_start, left.header_length) == (expected, expected)
    bench.close()


def test_a_flooded_frame_without_buffers_is_counted_and_the_law_holds():
    bench = Bench(5, small=3)
    for port in range(5):
        bench.switch.activate(port)
    out = bench.send(0, ethernet(BROADCAST, mac(1)))
    # two copies, then none, and the frame itself
    assert [len(frames) for frames in out] == [0, 1, 1, 0, 1]
    assert bench.drops() == {"no_buffer": 1}
    assert bench.engine.conservation()["generated"] == 3
    bench.close()

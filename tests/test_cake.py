"""The queue `cake` compared with a model in plain Python, packet by packet, and with the shares that hosts and flows
are to have."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dataplane.engine.handover import forget_engine, load_engine, save_engine
from dataplane.errors import VnicError
from shaping.class_settings import read_tree
from tests.cake_twin import Cake, Sent, Setting
from tests.handover_twin import contents, entry, packed
from tests.test_scheduler import MBIT, MS, SECOND, START_NS, US, Bench, gso, number_of
from tests.wire_frames import UDP, Spec

HEADERS = Spec(protocol=UDP).payload_offset
SIDES = {"none": (), "source": (0,), "destination": (1,), "both": (0, 1)}


def address(host: int) -> bytes:
    return bytes([10, 0, host >> 8, host & 0xFF])


def packet(source: int, destination: int, flow: int, length: int = 1000, *, number: int = 0, tos: int = 0) -> bytes:
    """A UDP packet of `length` bytes from one host to another one."""
    payload = number.to_bytes(4, "big") + bytes(length - HEADERS - 4)
    spec = Spec(
        protocol=UDP, source=address(source), destination=address(destination), source_port=5000 + flow,
        destination_port=9000, tos=tos, payload=payload,
    )  # fmt: skip
    return bytes(spec.frame().data)


def of(data: bytes) -> tuple[int, int, int]:
    """(source, destination, flow)"""
    numbers = (int.from_bytes(data[at : at + 2], "big") for at in (28, 32, 34))
    source, destination, port = numbers
    return source, destination, port - 5000


def cake(rate: int = 10 * MBIT, *, small: int = 8192, **queue: object) -> Bench:
    classes = {"rate": rate, "default": "all", "tree": {"all": {"queue": {"discipline": "cake", **queue}}}}
    return Bench(classes, burst=0, small=small)


# -- the model -------------------------------------------------------------------------------------


class Both:
    """A bench and its twin, which get the same packets."""

    def __init__(self, rate: int, *, hosts: str, rtt: int, flows: int, size: int, quantum: int | None) -> None:
        more = {} if quantum is None else {"quantum": quantum}
        self.bench = cake(rate, hosts=hosts, rtt=f"{rtt}ns", flows=flows, size=f"{size}b", **more)
        keys = self.bench.scheduler.seed("flows"), self.bench.scheduler.seed("more flows")
        setting = Setting(rate, rtt, SIDES[hosts], flows, size, quantum)
        self.twin = Cake(setting, keys, self.bench.scheduler.seed("blue"))
        self.now, self.number = START_NS, 0
        self.left: list[tuple[int, int, bool]] = []

    def send(self, source: int, destination: int, flow: int, length: int, *, ecn: bool) -> None:
        ends = address(source), address(destination)
        self.twin.arrive(self.now, Sent(self.number, *ends, (5000 + flow, 9000), length, ecn))
        self.bench.inject(packet(source, destination, flow, length, number=self.number, tos=1 if ecn else 0))
        self.number += 1

    def wait(self, ns: int) -> None:
        self.now += ns
        self.bench.advance(self.now)
        self.twin.serve(self.now)

    def compare(self) -> None:
        self.left += [(time, number_of(data), data[15] == 3) for time, data in self.bench.take()]
        assert self.left == self.twin.left
        row = self.bench.rows()["all"]
        assert {name: row["dropped"][name] for name in self.twin.dropped} == {
            name: len(numbers) for name, numbers in self.twin.dropped.items()
        }
        assert (row["waiting_packets"], row["waiting_bytes"]) == (self.twin.packets, self.twin.bytes)

    def finish(self) -> None:
        self.bench.advance(2**62)
        self.twin.serve(2**62)
        self.compare()
        assert {number for _, number, _ in self.left} == set(range(self.number)) - {
            number for numbers in self.twin.dropped.values() for number in numbers
        }
        self.bench.close()


hosts_of = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 6))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("burst"), hosts_of, st.integers(1, 30), st.sampled_from([60, 300, 1000, 1500]), st.booleans()),
        st.tuples(st.just("each"), st.integers(1, 12), st.sampled_from([100, 1500])),
        st.tuples(st.just("flood"), hosts_of, st.integers(2, 150), st.integers(1, 4)),
        st.tuples(st.just("wait"), st.integers(0, 40 * MS)),
        st.tuples(st.just("pause"), st.integers(0, 3 * SECOND)),
        st.tuples(st.just("upgrade")),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(
    found=steps,
    hosts=st.sampled_from(sorted(SIDES)),
    rate=st.sampled_from([MBIT, 3_333_333, 20 * MBIT]),
    rtt=st.sampled_from([MS, 20 * MS, 100 * MS]),
    flows=st.sampled_from([8, 16, 1024]),
    size=st.sampled_from([3000, 20_000, 200_000]),
    quantum=st.sampled_from([None, 64, 1514]),
)
def test_packets_and_drops_are_those_of_the_model(found, hosts, rate, rtt, flows, size, quantum):
    both = Both(rate, hosts=hosts, rtt=rtt, flows=flows, size=size, quantum=quantum)
    for kind, *values in found:
        if kind == "burst":
            ends, count, length, ecn = values
            for _ in range(count):
                both.send(*ends, length, ecn=ecn)
        elif kind == "each":  # many flows at once
            for flow in range(values[0]):
                both.send(1 + flow % 3, 1 + flow % 2, 20 + flow, values[1], ecn=False)
        elif kind == "flood":  # more than the line takes, so that the queue overflows again and again
            ends, count, times = values
            for _ in range(count):
                for _ in range(times):
                    both.send(*ends, 1000, ecn=True)
                both.wait(1000 * 8 * SECOND // rate)
        elif kind in ("wait", "pause"):
            both.wait(values[0])
        else:
            both.bench.upgrade()
        both.compare()
        event(f"flows share: {bool(both.twin.flow_table.shared)}")
    both.finish()
    for reason, numbers in both.twin.dropped.items():
        event(f"{reason}: {bool(numbers)}")


def test_the_model_has_seen_everything():
    """One long run in which flows share numbers, and packets are marked, and dropped for each reason."""
    both = Both(4 * MBIT, hosts="both", rtt=20 * MS, flows=8, size=60_000, quantum=None)
    for turn in range(1500):
        both.send(1, 1, 0, 1000, ecn=turn % 5 == 0)
        both.send(1, 1, 1, 1000, ecn=True)
        both.send(2, 1 + turn % 3, 2 + turn % 11, 700, ecn=False)
        both.wait(3 * MS)
        if turn % 100 == 99:
            both.bench.upgrade()
            both.compare()
    both.finish()
    assert all(len(numbers) > 20 for numbers in both.twin.dropped.values()), both.twin.dropped
    assert sum(marked for _, _, marked in both.left) > 20
    assert both.twin.blue.count > 500


# -- shares of hosts and flows ---------------------------------------------------------------------


def shares(bench: Bench, flows: list[tuple[int, int, int]], *, length: int = 1000, for_packets: int = 2000) -> Tally:
    """Bytes that each flow sends while all of them have packets."""
    for each in flows:
        bench.inject(*[packet(*each, length)] * 20)
    bench.advance(bench.engine.clock.now_ns + 40 * len(flows) * MS)  # all queue
    bench.take()
    found: Tally = Tally()
    inside = dict.fromkeys(flows, 0)
    for _ in range(for_packets // 10):
        for each in flows:
            bench.inject(*[packet(*each, length)] * (10 - inside[each]))
            inside[each] = max(inside[each], 10)
        bench.advance(bench.engine.clock.now_ns + 10 * length * 8 * SECOND // (10 * MBIT))
        for _, data in bench.take():
            found[of(data)] += len(data)
            inside[of(data)] -= 1
    bench.advance(2**62)
    bench.close()
    return found


def expected_shares(flows: list[tuple[int, int, int]], hosts: str) -> dict[tuple[int, int, int], float]:
    """Each flow gets an equal part of its host's turn; with two hosts, of the one that has more flows."""
    loads = [Tally(each[side] for each in flows) for side in (0, 1)]
    parts = {each: Fraction(1, max([1, *(loads[side][each[side]] for side in SIDES[hosts])])) for each in flows}
    return {each: float(part / sum(parts.values())) for each, part in parts.items()}


TEN_TO_ONE = [(1, 1, flow) for flow in range(10)] + [(2, 2, 0)]
CASES = [
    ("none", TEN_TO_ONE),
    ("source", TEN_TO_ONE),
    ("destination", TEN_TO_ONE),
    ("both", TEN_TO_ONE),
    # one destination, so that only the source tells them apart, and the other way round
    ("source", [(1, 9, flow) for flow in range(8)] + [(2, 9, 0)]),
    ("destination", [(1, 9, flow) for flow in range(8)] + [(2, 9, 0)]),
    ("destination", [(9, 1, flow) for flow in range(8)] + [(9, 2, 0)]),
    ("both", [(1, 9, flow) for flow in range(8)] + [(2, 9, 0), (3, 8, 0)]),
    # destination 7 has five flows, of which four stand with source 1, that has six
    ("both", [(1, 7, flow) for flow in range(4)] + [(1, 8, 4), (1, 8, 5), (2, 7, 0), (3, 6, 0)]),
    # a third of a turn: one flow of destination 5 with three, the others stand with source 1
    ("both", [(1, 5, 0), (1, 5, 1), (1, 4, 2), (1, 4, 3), (2, 5, 0), (3, 3, 0)]),
]


@pytest.mark.parametrize(("hosts", "flows"), CASES)
def test_hosts_share_equally_and_then_flows(hosts, flows):
    found = shares(cake(hosts=hosts, rtt="10s"), flows)
    total = sum(found.values())
    for each, share in expected_shares(flows, hosts).items():
        assert abs(found[each] / total - share) < 0.012, (each, found[each] / total, share)


def test_one_flow_has_half_beside_ten_of_another_host():
    found = shares(cake(hosts="source", rtt="10s"), TEN_TO_ONE)
    assert abs(found[2, 2, 0] / sum(found.values()) - 1 / 2) < 0.01
    found = shares(cake(hosts="none", rtt="10s"), TEN_TO_ONE)
    assert abs(found[2, 2, 0] / sum(found.values()) - 1 / 11) < 0.01


@settings(max_examples=25, deadline=None)
@given(
    hosts=st.sampled_from(sorted(SIDES)),
    flows=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9)), min_size=2, max_size=14, unique=True),
)
def test_any_flows_of_any_hosts_share_so(hosts, flows):
    found = shares(cake(hosts=hosts, rtt="10s"), flows, for_packets=3000)
    total = sum(found.values())
    for each, share in expected_shares(flows, hosts).items():
        assert abs(found[each] / total - share) < 0.02, (each, found[each] / total, share)


def test_packets_of_any_length_share_by_bytes():
    bench = cake(hosts="source", rtt="10s", small=65536)
    for _ in range(120):
        bench.inject(*[packet(1, 1, flow, 1500) for flow in range(5)], *[packet(2, 2, 0, 100)] * 60)
    bench.advance(START_NS + 500 * MS)
    sent: Tally = Tally()
    for _, data in bench.take():
        sent[of(data)[0]] += len(data)
    # host 1 begins five flows, and each of them has a packet before those that queue
    assert abs(sent[1] - sent[2]) <= (5 + 2) * 1514
    bench.advance(2**62)
    bench.close()


def test_hosts_of_ipv6_and_what_is_not_ip():
    def of_version_6(host: int, flow: int) -> bytes:
        ends = {"source": bytes.fromhex("fd00") + bytes(13) + bytes([host]), "destination": bytes.fromhex("fd00") + bytes(14)}
        spec = Spec(version=6, protocol=UDP, source_port=5000 + flow, payload=bytes(900), **ends)
        return bytes(spec.frame().data)

    bench = cake(hosts="source", rtt="10s")
    other = bytes(12) + b"\x88\xb5" + bytes(948)
    for _ in range(50):
        bench.inject(*[of_version_6(1, flow) for flow in range(9)], of_version_6(2, 0), *[other] * 3)
    bench.advance(START_NS + 100 * MS)
    found = Tally("other" if data[12:14] == b"\x88\xb5" else data[37] for _, data in bench.take())
    assert len(found) == 3 and max(found.values()) - min(found.values()) <= 10, found
    bench.advance(2**62)
    bench.close()


def test_a_thousand_flows_hardly_share():
    bench = cake(100 * MBIT, hosts="none")
    for flow in range(1000):
        bench.inject(packet(1 + flow % 7, 1, flow))
        bench.inject(packet(1 + flow % 7, 1, flow))
    flows = bench.scheduler.save_state()["classes"]["all"]["flows"]
    waiting = [each for each in flows if each[5]]
    assert len(waiting) >= 990 and sum(each[7] for each in flows) <= 2
    bench.advance(2**62)
    bench.close()


# -- delay -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosts", sorted(SIDES))
def test_a_sparse_flow_waits_for_few_packets_beside_a_flood(hosts):
    """Three times the line's rate in one flow, and a packet of another host every 20 ms: it waits for the packet that is
    being sent, and for one more."""
    bench = cake(hosts=hosts, size="500kb")
    waits = []
    for i in range(6000):
        bench.inject(*[packet(1, 1, 0, 1500)] * 3)
        if i % 17 == 0:
            asked = bench.engine.clock.now_ns
            bench.inject(packet(2, 2, 1, 200, number=i))
        bench.advance(bench.engine.clock.now_ns + 1500 * 8 * SECOND // (10 * MBIT))
        waits += [time - asked for time, data in bench.take() if of(data)[0] == 2]
    row = bench.rows()["all"]
    assert len(waits) == 353 and max(waits) <= 2 * 1500 * 8 * SECOND // (10 * MBIT)
    assert row["dropped"]["queue_full"] and row["dropped"]["blue"] and row["dropped"]["codel"]
    bench.advance(2**62)
    bench.close()


def test_blue_holds_a_flood_where_codel_alone_does_not():
    """After the first seconds the flood loses at its head, and the queue is full no more."""
    bench = cake(hosts="none", size="300kb")
    full = []
    for _ in range(8):
        before = bench.dropped("queue_full")
        for _ in range(833):
            bench.inject(*[packet(1, 1, 0, 1500)] * 2)
            bench.advance(bench.engine.clock.now_ns + 1500 * 8 * SECOND // (10 * MBIT))
        full.append(bench.dropped("queue_full") - before)
    assert full[0] > 100 and full[-1] < full[0] / 5, full
    bench.advance(2**62)
    bench.close()


# -- COBALT ----------------------------------------------------------------------------------------


def cobalt(bench: Bench) -> list[int]:
    """[drop_ns, blue_ns, count, chance, dropping] of the only flow, in a list or kept."""
    saved = bench.scheduler.save_state()["classes"]["all"]
    [found] = [each[4] for each in saved["flows"]] + [each[2] for each in saved["kept"]]
    return found


def test_drops_come_at_the_times_of_the_law():
    """Under constant overload: an interval after the sojourn was too long, and then at the sums of 100 ms / sqrt(k)
    from k = 2 on. (CoDel counts from 1: its second drop is an interval after the first.)"""
    bench = cake(10 * MBIT, hosts="none", size="100mb", small=65536)
    length, each_ns = 125, 100 * US
    drops: list[int] = []
    late_ns = 0
    now = START_NS
    while now < START_NS + 700 * MS:
        bench.inject(*[packet(1, 1, 0, length)] * 2)
        drops += [now] * (bench.dropped("codel") - len(drops))
        # a packet that arrived at t leaves after 2 (t - START): it is late once that exceeds the target
        if not late_ns and (now - START_NS) / 2 > 5 * MS:
            late_ns = now
        now += each_ns
        bench.advance(now)
        bench.take()
    law = [100.0]
    for k in range(2, 12):
        law.append(law[-1] + 100 / k**0.5)
    for found, expected in zip(drops, law, strict=False):
        assert abs((found - late_ns) / MS - expected) <= 0.5, (found - late_ns, expected)
    assert len(drops) >= len(law)
    bench.advance(2**62)
    bench.close()


def overflow(bench: Bench, count: int) -> None:
    for _ in range(count):
        bench.inject(packet(1, 1, 0, 1000))


def test_blue_rises_by_a_256th_once_in_a_target():
    bench = cake(MBIT, hosts="none", rtt="400ms", size="10kb")  # a target of 20 ms: 2.5 packets
    overflow(bench, 30)
    assert cobalt(bench)[3] == 1 << 24 and bench.dropped("queue_full") > 10
    for step in range(2, 40):
        bench.advance(bench.engine.clock.now_ns + 19 * MS)
        overflow(bench, 20)
        assert cobalt(bench)[3] == (step - 1) << 24  # not within a target
        bench.advance(bench.engine.clock.now_ns + MS + 1)
        overflow(bench, 20)
        assert cobalt(bench)[3] == step << 24
    bench.advance(2**62)
    bench.close()


def test_blue_falls_by_a_4096th_for_each_target_that_the_flow_is_empty():
    bench = cake(MBIT, hosts="none", rtt="400ms", size="10kb")
    for _ in range(5):
        overflow(bench, 30)
        bench.advance(bench.engine.clock.now_ns + 20 * MS + 1)
    chance, now = cobalt(bench)[3], bench.engine.clock.now_ns
    assert chance == 5 << 24
    bench.advance(now + 500 * MS)  # all have left
    emptied_ns = cobalt(bench)[1]
    assert cobalt(bench)[3] == chance - (1 << 20) and emptied_ns < now + 200 * MS
    bench.advance(emptied_ns + 41 * 20 * MS - 1)
    bench.inject(packet(3, 1, 0, 1500), packet(1, 1, 0, 1000))  # the line is busy: the second one waits
    found = {tuple(each[4]) for each in bench.scheduler.save_state()["classes"]["all"]["flows"]}
    assert {each[3] for each in found} == {chance - (41 << 20)}
    bench.advance(bench.engine.clock.now_ns + 1000 * SECOND)
    bench.inject(packet(3, 1, 0, 1500), packet(1, 1, 0, 1000))
    assert cobalt(bench)[2:4] == [0, 0]
    bench.advance(2**62)
    bench.close()


def test_the_count_falls_while_the_queue_is_good_and_after_a_long_pause_it_is_nothing():
    bench = cake(10 * MBIT, hosts="none", rtt="1ms", size="1mb")
    for _ in range(3000):
        bench.inject(*[packet(1, 1, 0, 1000)] * 4)
        bench.advance(bench.engine.clock.now_ns + 800 * US)
    assert cobalt(bench)[2] > 500
    bench.advance(bench.engine.clock.now_ns + 10 * SECOND)
    bench.inject(packet(3, 1, 0, 1500), packet(1, 1, 0, 1000))
    assert cobalt(bench)[2:4] == [0, 0]
    bench.advance(2**62)
    bench.close()


@pytest.mark.parametrize(("ecn", "marked"), [(True, True), (False, False)])
def test_packets_of_senders_that_know_ecn_are_marked(ecn, marked):
    bench = cake(hosts="none", ecn=ecn, small=65536)
    bench.inject(*[packet(1, 1, 0, 1000, tos=2)] * 200)
    for _ in range(20):
        bench.inject(*[packet(1, 1, 0, 1000, tos=2)] * 25)
        bench.advance(bench.engine.clock.now_ns + 20 * MS)
    row = bench.rows()["all"]
    assert (row["marked"] > 0, row["dropped"]["codel"] > 0) == (marked, not marked)
    bench.advance(2**62)
    assert sum(data[15] == 3 for _, data in bench.take()) <= bench.rows()["all"]["marked"]
    bench.close()


# -- GSO frames ------------------------------------------------------------------------------------


def test_a_gso_frame_leaves_as_its_segments_would():
    left = []
    for frame in (True, False):
        bench = cake(2 * MBIT, hosts="both")
        bench.inject(packet(1, 1, 0, 1000))
        if frame:
            bench.inject(gso(1, 30))
        else:
            bench.inject(*[packet(1, 1, 1, 1054)] * 30)
        bench.advance(2**62)
        left.append([(time, len(data)) for time, data in bench.take()])
        bench.close()
    assert left[0] == left[1]


def test_blue_drops_segments_of_a_flood_of_gso_frames():
    bench = cake(10 * MBIT, hosts="none", size="500kb")
    for _ in range(400):
        bench.inject(gso(1, 40), gso(1, 40))
        bench.advance(bench.engine.clock.now_ns + 33 * MS)
        assert bench.engine.conservation()["conserved"]
    row = bench.rows()["all"]
    chance = cobalt(bench)[3] / 2**32
    segments = row["sent_packets"] + row["dropped"]["codel"] + row["dropped"]["blue"]
    assert chance > 0.2 and row["dropped"]["blue"] > 0.1 * segments
    bench.advance(2**62)
    bench.close()


# -- changes, upgrades, memory ---------------------------------------------------------------------


def test_a_change_of_settings_keeps_what_waits():
    bench = cake(MBIT, hosts="none")
    bench.inject(*[packet(host, 1, flow, number=10 * flow + i) for i in range(5) for host, flow in ((1, 1), (2, 2), (2, 3))])
    order: dict[int, list[int]] = {}
    for change in ({"rtt": "10ms"}, {"hosts": "source"}, {"hosts": "both", "flows": 64}, {"quantum": 300}, {"size": "3kb"}):
        queue = {"discipline": "cake", **change}
        bench.change({"rate": MBIT, "default": "all", "tree": {"all": {"queue": queue}}})
        bench.advance(bench.engine.clock.now_ns + 5 * MS)
        assert bench.rows()["all"]["waiting_packets"] >= 9 and bench.engine.conservation()["conserved"]
    for queue in ("fq_codel", "cake", "fifo", "cake"):
        bench.change({"rate": MBIT, "default": "all", "tree": {"all": {"queue": queue}}})
    bench.advance(2**62)
    for _, data in bench.take():
        order.setdefault(of(data)[2], []).append(number_of(data))
    assert order == {flow: [10 * flow + i for i in range(5)] for flow in (1, 2, 3)}
    bench.close()


def test_flows_and_their_hosts_go_on_after_a_change_of_the_round_trip():
    """With the same flows and hosts, nothing but the AQM's times differs."""
    left = []
    for changes in (False, True):
        bench = cake(hosts="both", rtt="10s")
        for flow in range(12):
            bench.inject(*[packet(1 + flow % 3, 1 + flow % 2, flow, 700 + 60 * flow, number=i) for i in range(15)])
            bench.advance(bench.engine.clock.now_ns + 2 * MS)
            if changes:
                queue = {"discipline": "cake", "hosts": "both", "rtt": f"{20 + flow}s"}
                bench.change({"rate": 10 * MBIT, "default": "all", "tree": {"all": {"queue": queue}}})
        bench.advance(2**62)
        left.append(bench.take())
        bench.close()
    assert left[0] == left[1]


def test_memory_is_the_longest_flows():
    bench = cake(100_000, hosts="source", small=1024)
    bench.inject(*[packet(1, 1, 0, 100)] * 20)
    for _ in range(10):
        bench.inject(*[packet(2, 1, 1, 100)] * 50)
    assert bench.pool.in_use <= 256 + 64
    assert bench.dropped("over_memory") == bench.rows()["all"]["dropped"]["over_memory"] > 100
    bench.advance(2**62)
    assert Tally(of(data)[0] for _, data in bench.take())[1] >= 18  # CoDel may have one or two
    bench.close()


def test_packets_that_wait_are_released_with_the_element():
    bench = cake(100_000)
    bench.inject(*[packet(1 + i % 3, 1, i) for i in range(40)], gso(1, 20))
    bench.close()


def busy() -> Bench:
    bench = cake(MBIT, hosts="both", flows=32, size="60kb")
    for i in range(60):
        bench.inject(*[packet(1 + i % 3, 1 + i % 2, i % 9, 1000)] * 4)
        bench.advance(bench.engine.clock.now_ns + 9 * MS)
    bench.take()
    return bench


def test_an_upgrade_from_a_version_without_cake():
    """Version 1 had no count of BLUE's drops, and no draws."""
    left = []
    for upgrade in (False, True):
        bench = Bench({"rate": MBIT, "default": "all", "tree": {"all": {"queue": "fq_codel"}}}, burst=0)
        bench.inject(*[packet(1, 1, i % 3, number=i) for i in range(30)])
        if upgrade:
            old, engine, rows = contents(save_engine(bench.engine)), bench.engine, bench.rows()
            saved = entry(old, "classes")
            saved["version"] = 1
            del saved["state"]["blue"]
            saved["state"]["classes"]["all"]["counts"].pop()
            taken = bench.take()
            bench.build(engine.clock.now_ns)
            load_engine(bench.engine, packed(old))
            forget_engine(engine)
            engine.close()
            bench.out = taken
            assert bench.rows() == rows
        bench.advance(2**62)
        left.append(bench.take())
        bench.close()
    assert left[0] == left[1]


def damages() -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    """What cannot be in a saved class, and how it is made."""
    yield "a flow of another set", lambda saved: saved["flows"][0].__setitem__(6, saved["flows"][0][6] ^ 8)
    yield "a flow twice", lambda saved: saved["flows"].append(saved["flows"][0])
    yield "a flow beyond the table", lambda saved: saved["flows"][0].__setitem__(0, 4096)
    yield "a flow of an unknown host", lambda saved: saved["flows"][0].__setitem__(8, [63, 63])
    yield "a flow of one host", lambda saved: saved["flows"][0].__setitem__(8, saved["flows"][0][8][:1])
    yield "a flow in the list of another's host", lambda saved: saved["flows"][-1].__setitem__(9, 62)
    yield "a flow in no list", lambda saved: saved["flows"][0].__setitem__(1, 0)
    yield "a flow of CoDel", lambda saved: saved["flows"][0].__setitem__(4, [0, 0, 0, 0, 0, 0])
    yield "no hosts", lambda saved: saved.pop("hosts")
    yield "a host twice", lambda saved: saved["hosts"].append(saved["hosts"][0])
    yield "a host beyond the table", lambda saved: saved["hosts"][0].__setitem__(0, 1 << 20)
    yield "a host without flows", lambda saved: saved["hosts"].append([*unused(saved["hosts"], 64), 0, False])
    yield "a host that has left its list", lambda saved: [each.__setitem__(3, False) for each in saved["hosts"]]
    yield "a kept flow without a past", lambda saved: saved["kept"].append([*unused(saved["flows"], 32), [0] * 5])
    yield "a text for a number", lambda saved: saved["hosts"][0].__setitem__(2, "1")


def unused(rows: list[list[Any]], count: int) -> tuple[int, int]:
    """A number that is in no row, and a hash that could have it."""
    number = next(number for number in range(count) if number not in {each[0] for each in rows})
    return number, number


@pytest.mark.parametrize("damage", [each for _, each in damages()], ids=[name for name, _ in damages()])
def test_a_state_that_cannot_be_is_refused(damage):
    bench = busy()
    state = contents(save_engine(bench.engine))
    damage(entry(state, "classes")["state"]["classes"]["all"])
    engine = bench.engine
    bench.build(engine.clock.now_ns)
    with pytest.raises(VnicError, match="^classes: its state is not that of a Scheduler: "):
        load_engine(bench.engine, packed(state))
    forget_engine(bench.engine)
    bench.engine.close()
    bench.engine = engine
    bench.close()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "rtt", "target", "interval", "long", "quantum", "limit"), [
    ("100mbit", "100ms", 5 * MS, 100 * MS, 5 * MS, 1514, 5_000_000),
    ("10mbit", "100ms", 5 * MS, 100 * MS, 5 * MS, 305, 4 << 20),
    ("1mbit", "100ms", 18_168_000, 113_168_000, 48_448_000, 300, 4 << 20),  # 1.5 and 4 frames of 1514 bytes
    ("10gbit", "100ms", 5 * MS, 100 * MS, 5 * MS, 1514, 10_240 * 1514),
    ("10gbit", "100us", 5 * US, 100 * US, 5 * US, 1514, 4 << 20),
    ("100mbit", "1ms", 181_680, 1_131_680, 484_480, 1514, 4 << 20),
    ("1mbit", "10ms", 18_168_000, 36_336_000, 48_448_000, 300, 4 << 20),  # two targets, where these are more
    ("none", "100ms", 5 * MS, 100 * MS, 5 * MS, 1514, 10_240 * 1514),
])  # fmt: skip
def test_what_follows_from_the_round_trip_and_the_rate(rate, rtt, target, interval, long, quantum, limit):
    data = {"rate": rate, "default": "a", "tree": {"a": {"queue": {"discipline": "cake", "rtt": rtt}}}}
    [_, each] = read_tree("classes", data).classes
    assert each.queue is not None
    assert each.queue.codel_ns(each.effective_bps) == (target, interval)
    assert each.queue.long_ns(each.effective_bps) == long
    assert each.queue.quantum_bytes(each.effective_bps) == quantum
    assert each.queue.limits(each.effective_bps) == (limit, 1 << 62)
    assert (each.queue.flows, each.queue.sides, each.queue.ecn) == (4096, (0, 1), True)

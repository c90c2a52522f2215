"""The MAC table: its hash, its limits, ageing to the millisecond, and two engines at once."""

from __future__ import annotations

import mmap
import random
import struct
import threading
from collections import Counter as Multiset

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.engine.engine import Engine
from dataplane.engine.running import advance, start
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable, siphash
from tests.test_l2_switch import BROADCAST, SECOND_NS, Bench, ethernet, mac

MASK = (1 << 64) - 1


def sip(c: int, d: int, key: bytes, data: bytes) -> int:
    """SipHash-c-d as defined in its paper."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turn(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & MASK

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & MASK
            v[2] = (v[2] + v[3]) & MASK
            v[1], v[3] = turn(v[1], 13) ^ v[0], turn(v[3], 16) ^ v[2]
            v[0] = turn(v[0], 32)
            v[2] = (v[2] + v[1]) & MASK
            v[0] = (v[0] + v[3]) & MASK
            v[1], v[3] = turn(v[1], 17) ^ v[2], turn(v[3], 21) ^ v[0]
            v[2] = turn(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(c)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(d)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_the_reference_gives_the_value_printed_in_the_paper():
    assert sip(2, 4, bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5


@given(st.binary(min_size=16, max_size=16), st.integers(0, MASK))
def test_hash_is_siphash_1_3(key, word):
    assert siphash(key, word) == sip(1, 3, key, word.to_bytes(8, "little"))


def text(number: int) -> str:
    return "02:00:" + number.to_bytes(4, "big").hex(":")


def address(number: int) -> bytes:
    return bytes.fromhex(text(number).replace(":", ""))


def consistent(table: MacTable, now_ns: int = 0) -> list[dict]:
    """Checks that the table's counts match its entries, each address once; returns the entries. At
    `now_ns` none has aged."""
    entries = table.entries(now_ns)
    assert len(table) == len(entries) == len({(entry["vlan"], entry["mac"]) for entry in entries})
    by_port = Multiset(entry["port"] for entry in entries)
    assert all(table.port_count(port) == by_port[port] for port in range(1024))
    return entries


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "forget", "forget port"]), st.integers(0, 9), st.integers(0, 3), st.integers(0, 2))
    )
)
def test_static_entries_are_a_dict(steps):
    table, model = MacTable(64), {}
    for what, number, port, vlan in steps:
        if what == "add":
            table.add_static(text(number), port, vlan)
            model[vlan, text(number)] = port
        elif what == "forget":
            assert table.forget(text(number), vlan) == (model.pop((vlan, text(number)), None) is not None)
        else:
            gone = [key for key, value in model.items() if value == port]
            assert table.forget_port(port) == len(gone)
            for key in gone:
                del model[key]
    assert [((e["vlan"], e["mac"]), e["port"]) for e in consistent(table)] == sorted(model.items())
    assert all(entry["static"] and entry["age_s"] is None for entry in table.entries())


@pytest.mark.parametrize("capacity", [16, 100, 4096])
def test_a_table_can_be_filled(capacity):
    """Fills every place, except for the one address in a hundred thousand both of whose buckets are
    full early."""
    table, refused = MacTable(capacity), 0
    for number in range(capacity + 5):
        try:
            table.add_static(text(number), number % 7)
        except ConfigError as error:
            refused += 1
            assert str(error).startswith(f"MAC table: no room for {text(number)} of VLAN 0 at port {number % 7}; make")
    assert refused == capacity + 5 - len(table)
    assert capacity - 3 <= len(consistent(table)) <= capacity
    table.add_static(text(5), 999)  # an existing entry can be changed
    assert table.port_count(999) == 1
    consistent(table)


def test_the_segment_says_what_it_is():
    table = MacTable(1000, 7 * SECOND_NS, per_port=10)
    with mmap.mmap(table.fd, 0, prot=mmap.PROT_READ) as segment:
        magic, version, capacity, slots, per_port, ageing_ns = struct.unpack_from("<8sIIIIQ", segment)
        assert (magic, version, capacity, slots, per_port, ageing_ns) == (b"vnimcacs", 2, 1000, 2048, 10, 7 * SECOND_NS)
        assert len(segment) == 64 + 64 + 4096 + 2048 * 16
    assert (table.capacity, table.per_port, table.ageing_ns) == (1000, 10, 7 * SECOND_NS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 15}, "capacity 15: expected 16 to 1048576"),
        ({"capacity": 2**20 + 1}, "capacity 1048577"),
        ({"ageing_ns": 10**9 - 1}, "ageing 999999999 ns: expected 1 s"),
        ({"per_port": 0}, "per_port 0: expected 1 to the capacity"),
        ({"capacity": 16, "per_port": 17}, "per_port 17"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MacTable(**arguments)


@pytest.mark.parametrize("wrong", ["", "02:00", "zz:00:00:00:00:01", "01:00:00:00:00:01", "00:00:00:00:00:00", None])
def test_what_is_wrong_with_an_address_is_said(wrong):
    table = MacTable()
    with pytest.raises(ConfigError, match="expected a unicast address such as"):
        table.add_static(wrong, 1)
    with pytest.raises(ConfigError, match="0 to 4094"):
        table.add_static(text(1), 1, 4095)
    with pytest.raises(ConfigError, match="port 1024: expected 0 to 1023"):
        table.add_static(text(1), 1024)
    assert len(table) == 0


def switched(ports: int = 3, **table) -> Bench:
    bench = Bench(ports, **table)
    for port in range(ports):
        bench.switch.activate(port)
    return bench


def test_an_address_ages_to_the_millisecond():
    bench = switched(ageing_ns=30 * SECOND_NS)
    seen_ns = bench.clock.now_ns
    bench.send(0, ethernet(BROADCAST, mac(1)))
    probe = ethernet(mac(1), mac(2))
    advance(bench.engine, seen_ns + 30 * SECOND_NS - 10**6)
    assert [len(out) for out in bench.send(1, probe)] == [1, 0, 0]
    assert bench.table.entries(bench.clock.now_ns)[0]["age_s"] == 29.999
    advance(bench.engine, seen_ns + 30 * SECOND_NS)
    assert [len(out) for out in bench.send(1, probe)] == [1, 0, 1]
    assert [entry["mac"] for entry in bench.table.entries(bench.clock.now_ns)] == ["02:00:00:00:00:02"]
    advance(bench.engine, seen_ns + 70 * SECOND_NS)
    assert len(bench.table) == 0
    assert bench.counters() == {"learned": 2, "aged": 2, "flooded": 2}
    bench.close()


def test_ageing_clears_a_large_table_in_slices():
    bench = switched(2, capacity=4096, ageing_ns=10 * SECOND_NS, small=4096)
    bench.send(0, *(ethernet(mac(255), address(number)) for number in range(1000, 2000)))
    bench.send(1, ethernet(BROADCAST, mac(255)))
    advance(bench.engine, bench.clock.now_ns + 9 * SECOND_NS)
    assert len(bench.table) == 1001
    # aged, and removed within a tenth of the ageing time
    advance(bench.engine, bench.clock.now_ns + 1 * SECOND_NS + 1 * SECOND_NS)
    assert len(bench.table) == 0
    assert bench.counters()["aged"] == 1001
    bench.close()


def test_an_address_that_speaks_stays():
    bench = switched(ageing_ns=10 * SECOND_NS)
    for _ in range(50):
        bench.send(0, ethernet(BROADCAST, mac(1)))
        advance(bench.engine, bench.clock.now_ns + SECOND_NS)
    assert bench.counters() == {"learned": 1, "flooded": 50}
    bench.close()


def test_a_flood_of_addresses_takes_half_the_table_and_nobodys_place():
    bench = switched(capacity=256, small=8192)
    bench.send(1, *(ethernet(BROADCAST, mac(number)) for number in range(1, 21)))
    for begin in range(0, 4000, 100):
        bench.send(0, *(ethernet(mac(1), address(1000 + number)) for number in range(begin, begin + 100)))
    assert 100 <= bench.table.port_count(0) <= 128
    assert bench.table.port_count(1) == 20
    assert bench.counters()["learn_refused"] == 4000 - bench.table.port_count(0)
    # Other addresses are still learned and found.
    bench.send(2, *(ethernet(mac(1), mac(number)) for number in range(30, 60)))
    assert bench.table.port_count(2) == 30
    assert [len(out) for out in bench.send(0, *(ethernet(mac(number), address(1000)) for number in range(1, 60)))] == [
        0,
        20 + 9,
        30 + 9,
    ]
    consistent(bench.table)
    bench.close()


def test_many_flooders_leave_room_for_one_more():
    bench = switched(4, capacity=400, small=8192)
    for turn in range(30):
        for port in range(3):
            bench.send(port, *(ethernet(mac(1), bytes([2, 9, port, turn, 0, i])) for i in range(100)))
    bench.send(3, *(ethernet(mac(1), mac(number)) for number in range(1, 51)))
    assert bench.table.port_count(3) == 50
    consistent(bench.table)
    bench.close()


def test_a_ports_share_can_be_set():
    bench = switched(per_port=3)
    bench.send(0, *(ethernet(BROADCAST, mac(number)) for number in range(1, 6)))
    assert bench.table.port_count(0) == 3
    # three move, the others are new and find no room
    bench.send(1, *(ethernet(BROADCAST, mac(number)) for number in range(1, 6)))
    assert (bench.table.port_count(0), bench.table.port_count(1)) == (0, 3)
    assert bench.counters() == {"learned": 3, "moved": 3, "learn_refused": 4, "flooded": 10}
    bench.close()


def test_static_entries_neither_move_nor_age_and_are_not_learned_elsewhere():
    bench = switched(ageing_ns=SECOND_NS)
    bench.table.add_static("02:00:00:00:00:01", 2)
    bench.send(0, ethernet(BROADCAST, mac(1)))
    assert bench.counters()["learn_refused"] == 1
    advance(bench.engine, bench.clock.now_ns + 100 * SECOND_NS)
    assert [len(out) for out in bench.send(0, ethernet(mac(1), mac(7)))] == [0, 0, 1]
    assert bench.table.forget_port(2) == 1
    bench.close()


@pytest.mark.parametrize("capacity", [64, 4096])
def test_threads_that_insert_move_and_remove_the_same_addresses_at_once(capacity):
    """Three writers use the same 200 addresses, one of them removing what others insert; the counts
    stay right and no address appears twice."""
    table = MacTable(capacity, SECOND_NS)
    addresses = [np.random.default_rng(seed).permutation(np.arange(200, dtype=np.uint64) + (2 << 40)) for seed in range(4)]
    stop, failures = threading.Event(), []

    def learn(port: int) -> None:
        for turn in range(600):
            # Time advances, so that entries are refreshed, and jumps ahead, so that they age.
            table.learn_all(np.tile(addresses[(port + turn) % 4], 25), port, now_ns=turn * SECOND_NS // 3)

    def forget() -> None:
        turn = 0
        while not stop.is_set():
            table.forget_port(turn % 2)
            table.forget(text(turn % 200))
            turn += 1

    def guarded(function, *arguments) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            failures.append(error)

    learners = [threading.Thread(target=guarded, args=(learn, port)) for port in range(2)]
    remover = threading.Thread(target=guarded, args=(forget,))
    for thread in [*learners, remover]:
        thread.start()
    for thread in learners:
        thread.join()
    stop.set()
    remover.join()
    assert failures == []
    consistent(table, 599 * SECOND_NS // 3)
    refused = table.learn_all(addresses[0], 2, now_ns=599 * SECOND_NS // 3)
    entries = consistent(table, 599 * SECOND_NS // 3)
    assert sum(entry["port"] == 2 for entry in entries) == 200 - refused


def test_two_engines_learn_in_one_table():
    """Each engine's thread learns the same and different addresses at its ports, moving them back
    and forth, while a third thread removes them."""
    table, pool = MacTable(512), PacketPool(small=4096, large=16)
    rounds, burst = 60, 64
    engines, switches, inputs = [], [], []
    for number in range(2):
        engine, switch = Engine(f"e{number}", pool), L2Switch(table, 4)
        ports = [MemoryPort(f"p{number}.{i}", 2 * number + i) for i in range(2)]
        sources = []
        for port in ports:
            rx = PortRx(port)
            rx >> switch
            sources.append(rx)
        out = PortTx(MemoryPort(f"out{number}", 9))
        for gate in range(4):
            switch.connect(gate, out)
            switch.activate(gate)
        engine.load(sources)
        start(engine)
        engines.append(engine)
        switches.append(switch)
        inputs.append(ports)
    draw = random.Random(1)
    sent = 0
    try:
        for _ in range(rounds):
            for ports in inputs:
                for port in ports:
                    # 40 addresses used by all ports, and 400 of which only some find room.
                    port.inject(
                        [
                            ethernet(mac(255), address(draw.choice([draw.randrange(40), draw.randrange(1000, 1400)])))
                            for _ in range(burst)
                        ]
                    )
            sent += 4 * burst
            table.forget_port(draw.randrange(4))
            while sum(switch.statistics()["packets"] for switch in switches) < sent:
                engines[0].call(lambda: None)
    finally:
        for engine in engines:
            engine.stop()
    entries = consistent(table)
    assert len(entries) > 40
    counters = Multiset()
    for switch in switches:
        counters.update(switch.statistics()["counters"])
    assert counters["learned"] and counters["moved"]
    for engine in engines:
        assert engine.conservation()["conserved"]
        engine.close()
    assert pool.in_use == 0
    for port in range(4):
        table.forget_port(port)
    assert consistent(table) == []


@pytest.mark.parametrize(("first", "second"), [(64, 4096), (4096, 64), (1 << 14, 1 << 14)])
def test_another_table_takes_the_entries_over(first, second):
    before, after = MacTable(first), MacTable(second)
    before.add_static("02:00:00:00:ff:ff", 3, 7)
    for port in range(4):
        before.learn_all(np.arange(port, first // 2, 4, dtype=np.uint64) + (2 << 40), port, 5, now_ns=port * SECOND_NS)
    now_ns = 10 * SECOND_NS
    refused = after.take_entries(before)
    kept = after.entries(now_ns=now_ns)
    assert len(after) == len(kept) == len(before) - refused
    assert refused == 0 if first <= second else second // 2 < len(after) <= second  # each port has its share
    entries = before.entries(now_ns=now_ns)
    assert all(entry in entries for entry in kept) and after.take_entries(before) == refused  # again
    assert [after.port_count(port) for port in range(4)] == [sum(entry["port"] == port for entry in kept) for port in range(4)]
    assert after.repair() == 0

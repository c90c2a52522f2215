"""The MAC table shared by two processes, after a crash of one, and with damaged contents."""

from __future__ import annotations

import mmap
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import VnicError
from dataplane.graph.port import PortRx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable, siphash
from tests.test_shared_memory import DAMAGE, content, damaged, memfd, run_python, started

SLOTS_AT = 128 + 4096  # after the header
COUNT_AT, PORTS_AT = 64, 128
MAX_PORTS = 1024


def address(i: int) -> str:
    return (0x020000000000 + i).to_bytes(6, "big").hex(":")


def full_table(entries: int = 40) -> MacTable:
    table = MacTable(capacity=64)
    for i in range(entries):
        assert table.learn_all(np.array([0x020000000000 + i], np.uint64), i % 3, vlan=i % 2, now_ns=10**9) == 0
    table.add_static("02:00:00:00:ff:01", 5)
    return table


def table_view(table: MacTable) -> np.ndarray:
    return np.frombuffer(mmap.mmap(table.fd, os.fstat(table.fd).st_size), np.uint64)


def test_two_tables_on_one_segment_are_one_table():
    table = full_table()
    other = MacTable.from_descriptor(table.fd)
    assert (other.capacity, other.per_port, other.ageing_ns) == (table.capacity, table.per_port, table.ageing_ns)
    assert other.entries(now_ns=10**9) == table.entries(now_ns=10**9)
    other.add_static("02:00:00:00:ff:02", 6)
    assert table.forget("02:00:00:00:ff:02")
    code = """
import sys
from switching.mac_table import MacTable
table = MacTable.from_descriptor(int(sys.argv[1]))
print(len(table), table.forget("02:00:00:00:ff:01"), table.forget_port(1))
"""
    assert run_python(code, table.fd) == "41 True 13\n"
    assert len(table) == 27


def learn_much(table: MacTable, first_port: int) -> None:
    """Learns addresses, moves them between two ports, and removes them."""
    for turn in range(60):
        macs = np.arange(0x020000000000 + turn % 7, 0x020000000000 + turn % 7 + 40, dtype=np.uint64)
        table.learn_all(macs, first_port + turn % 2, now_ns=10**9 * (turn + 1))
        if turn % 5 == 4:
            table.forget_port(first_port + turn % 2)


LEARN = """
import sys
from switching.mac_table import MacTable
from tests.test_mac_table_shared import learn_much
table = MacTable.from_descriptor(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    learn_much(table, 2)
"""


def test_two_processes_learn_the_same_stations_at_the_same_time():
    table = MacTable(64)
    child = started(LEARN, table.fd)
    for _ in range(20):
        learn_much(table, 0)
    child.communicate()
    assert child.returncode == 0
    assert len(table) > 0
    before = content(table)
    assert table.repair() == 0
    assert content(table) == before, "counts had drifted"


def test_a_switch_ages_a_table_that_it_took_over():
    table = MacTable(64, ageing_ns=10**10)
    table.learn_all(np.array([0x020000000001], np.uint64), 0, now_ns=0)
    engine = Engine("e", PacketPool(8, 2), clock=Clock(virtual=True))
    rx, switch = PortRx(MemoryPort("m")), L2Switch(MacTable.from_descriptor(table.fd, reset=True), name="switch")
    _ = rx >> switch
    engine.load([rx])
    advance(engine, 5 * 10**9)
    assert len(table) == 1
    advance(engine, 30 * 10**9)
    assert len(table) == 0
    engine.close()


def test_repair_finds_nothing_wrong_with_a_sound_table():
    table = full_table()
    before = content(table)
    assert table.repair() == 0
    assert content(table) == before
    assert len(MacTable.from_descriptor(table.fd, reset=True)) == 41


def test_repair_clears_what_a_killed_writer_left():
    table = full_table()
    before = table.entries(now_ns=10**9)
    words = table_view(table)
    first = SLOTS_AT // 8
    slots = words[first:].reshape(-1, 2)
    used = [i for i in range(len(slots)) if slots[i, 0]]
    free = [i for i in range(len(slots)) if not slots[i, 0]]
    slots[used[0], 1] = 0  # killed between the two steps of a removal, before the counts changed
    gone = int(slots[used[0], 0])
    slots[free[0], 0] = 0x020000001234 << 16 | 1  # killed between the two steps of an insert
    # an entry in a bucket where no lookup finds it (or twice in its bucket)
    slots[free[1]] = slots[used[1]]
    slots[free[2], 1] = 1 << 50 | 77
    np.frombuffer(words, np.uint32)[COUNT_AT // 4] += 9
    np.frombuffer(words, np.uint32)[PORTS_AT // 4 + 2] += 5
    np.frombuffer(words, np.uint32)[PORTS_AT // 4 + 1000] = 1
    assert table.repair() == 4
    lost = {"mac": (gone >> 16).to_bytes(6, "big").hex(":"), "vlan": gone >> 1 & 0xFFF}
    kept = [entry for entry in before if {"mac": entry["mac"], "vlan": entry["vlan"]} != lost]
    assert len(kept) == len(before) - 1
    assert table.entries(now_ns=10**9) == kept
    assert len(table) == 40
    assert [table.port_count(port) for port in range(MAX_PORTS)] == [
        sum(entry["port"] == port for entry in kept) for port in range(MAX_PORTS)
    ]
    assert table.repair() == 0


def test_of_an_address_that_stands_twice_the_static_entry_stays():
    table = MacTable(capacity=16)
    table.add_static("02:00:00:00:00:01", 7)
    words = table_view(table)
    secret = content(table)[32:48]
    key = 0x020000000001 << 16 | 1
    digest = siphash(secret, key)
    mask = 32 // 4 - 1
    bucket = digest & mask
    second = bucket ^ ((digest >> 24 & mask) | 1)
    slots = words[SLOTS_AT // 8 :].reshape(-1, 2)
    [at] = [i for i in range(len(slots)) if slots[i, 0]]
    static_value = int(slots[at, 1])
    dynamic = static_value & ~(1 << 51) & ~(0xFFF << 52) | 3 << 52
    slots[at] = 0
    slots[bucket * 4 + 1] = (key, dynamic)
    slots[bucket * 4 + 2] = (key, dynamic)
    slots[second * 4] = (key, static_value)
    assert table.repair() == 2
    assert table.entries(now_ns=0) == [{"mac": "02:00:00:00:00:01", "vlan": 0, "port": 7, "age_s": None, "static": True}]
    assert (len(table), table.port_count(3), table.port_count(7)) == (1, 0, 1)


@settings(max_examples=100, deadline=None)
@given(damage=DAMAGE, reset=st.booleans())
def test_a_damaged_table_is_refused_or_harmless(damage: list[tuple[int, bytes]], reset: bool):
    whole = content(full_table())
    descriptor = damaged(whole, damage, len(whole))
    try:
        table = MacTable.from_descriptor(descriptor, reset=reset)
    except VnicError as error:
        assert "\n" not in str(error)
    else:
        table.entries(now_ns=10**9)
        for i in range(60):
            table.learn_all(np.array([0x020000000000 + i], np.uint64), 4, now_ns=2 * 10**9)
        table.forget_port(4)
        table.forget_port(1)
        if reset:
            entries = table.entries(now_ns=10**9)
            assert table.port_count(4) == 0
            assert len(table) >= len(entries)
            assert table.repair() == 0
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("where", "layout", "value", "message"),
    [
        (0, "<Q", 1, "holds something else"),
        (8, "<I", 1, "has version 1, this vnic knows 2"),
        (12, "<I", 0, "capacity 0"),
        (12, "<I", 65, "header is damaged"),
        (16, "<I", 64, "header is damaged"),
        (20, "<I", 0, "per_port 0"),
        (24, "<Q", 5, "ageing 5 ns"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(where: int, layout: str, value: int, message: str):
    raw = bytearray(content(full_table()))
    struct.pack_into(layout, raw, where, value)
    descriptor = memfd(bytes(raw))
    with pytest.raises(VnicError, match=message) as caught:
        MacTable.from_descriptor(descriptor, reset=True)
    assert "\n" not in str(caught.value)
    assert content(descriptor) == raw
    os.close(descriptor)

"""The MAC table compared step by step with a model: limits, shares, static entries, time. And
threads that stop half-way."""

from __future__ import annotations

import mmap
import struct
from collections import Counter as Multiset
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dataplane.errors import ConfigError
from switching.mac_table import MacTable

MS_NS = 10**6
SECOND_NS = 10**9
HEADER_BYTES = 128 + 4096
# A little more than a power of two: nearly four slots per entry, so that full buckets never cause a
# rejection.
CAPACITY = 17

Key = tuple[int, int]  # VLAN, address


def text(address: int) -> str:
    return address.to_bytes(6, "big").hex(":")


@dataclass
class Entry:
    """The port of an address, and when it was last seen."""

    port: int
    static: bool
    seen_ms: int


@dataclass
class Model:
    """The table as documented."""

    ageing_ms: int
    per_port: int
    entries: dict[Key, Entry] = field(default_factory=dict)

    def share(self, port: int) -> int:
        return sum(entry.port == port for entry in self.entries.values())

    def admits(self, port: int) -> bool:
        mine, free = self.share(port), CAPACITY - len(self.entries)
        return mine < self.per_port and (mine == 0 or mine < free)

    def learn(self, key: Key, port: int, now_ms: int) -> bool:
        """Returns whether there was room."""
        old = self.entries.get(key)
        if old is None:
            if len(self.entries) == CAPACITY or not self.admits(port):
                return False
            self.entries[key] = Entry(port, False, now_ms)
        elif old.port != port:
            if old.static or not self.admits(port):
                return False
            self.entries[key] = Entry(port, False, now_ms)
        elif not old.static and now_ms - old.seen_ms >= min(1000, self.ageing_ms // 10):
            old.seen_ms = now_ms
        return True

    def add_static(self, key: Key, port: int) -> bool:
        if key not in self.entries and len(self.entries) == CAPACITY:
            return False
        self.entries[key] = Entry(port, True, 0)
        return True


ports = st.sampled_from([0, 1, 2, 1023])
vlans = st.sampled_from([0, 1, 4094])
addresses = st.integers(0x020000000001, 0x02000000000C)


class Twins(RuleBasedStateMachine):
    """Table and model learn the same."""

    @initialize(ageing_s=st.sampled_from([1, 5, 300]), per_port=st.sampled_from([1, 4, CAPACITY]))
    def begin(self, ageing_s: int, per_port: int) -> None:
        self.table = MacTable(CAPACITY, ageing_s * SECOND_NS, per_port)
        self.model = Model(ageing_s * 1000, per_port)
        self.now_ms = 10**6

    @rule(macs=st.lists(addresses, min_size=1, max_size=20), port=ports, vlan=vlans)
    def learn(self, macs: list[int], port: int, vlan: int) -> None:
        refused = self.table.learn_all(np.array(macs, np.uint64), port, vlan, self.now_ms * MS_NS)
        assert refused == sum(not self.model.learn((vlan, mac), port, self.now_ms) for mac in macs)

    @rule(mac=addresses, port=ports, vlan=vlans)
    def add_static(self, mac: int, port: int, vlan: int) -> None:
        if self.model.add_static((vlan, mac), port):
            self.table.add_static(text(mac), port, vlan)
        else:
            with pytest.raises(ConfigError, match="no room"):
                self.table.add_static(text(mac), port, vlan)

    @rule(mac=addresses, vlan=vlans)
    def forget(self, mac: int, vlan: int) -> None:
        assert self.table.forget(text(mac), vlan) == (self.model.entries.pop((vlan, mac), None) is not None)

    @rule(port=ports)
    def forget_port(self, port: int) -> None:
        gone = self.model.share(port)
        assert self.table.forget_port(port) == gone
        self.model.entries = {key: entry for key, entry in self.model.entries.items() if entry.port != port}

    @rule(milliseconds=st.sampled_from([1, 99, 100, 499, 500, 999, 1000, 299_000]))
    def wait(self, milliseconds: int) -> None:
        self.now_ms += milliseconds

    @invariant()
    def agree(self) -> None:
        model = self.model
        assert len(self.table) == len(model.entries) <= CAPACITY
        counts = Multiset(entry.port for entry in model.entries.values())
        assert {port: self.table.port_count(port) for port in (0, 1, 2, 1023)} == {
            port: counts[port] for port in (0, 1, 2, 1023)
        }
        found = [(e["vlan"], e["mac"], e["port"], e["static"], e["age_s"]) for e in self.table.entries(self.now_ms * MS_NS)]
        assert found == [
            (vlan, text(mac), entry.port, entry.static, None if entry.static else (self.now_ms - entry.seen_ms) / 1000)
            for (vlan, mac), entry in sorted(model.entries.items())
            if entry.static or self.now_ms - entry.seen_ms < model.ageing_ms
        ]


Twins.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestTwins = Twins.TestCase


def test_a_thread_that_stops_half_way_is_in_nobodys_way():
    """A key without a value is an insert or a removal that has not ended and perhaps never will:
    the address is learned in another slot."""
    table = MacTable(64)
    macs = np.arange(0x020000000000, 0x020000000010, dtype=np.uint64)
    assert table.learn_all(macs, 1, now_ns=SECOND_NS) == 0
    with mmap.mmap(table.fd, 0) as segment:
        halted = []
        for at in range(HEADER_BYTES, len(segment), 16):
            key, _ = struct.unpack_from("<QQ", segment, at)
            if key:
                struct.pack_into("<Q", segment, at + 8, 0)
                halted.append(at)
        assert len(halted) == len(macs)
        assert table.entries(SECOND_NS) == []
        assert table.forget_port(1) == 0
        assert not table.forget(text(int(macs[0])))
        # The unfinished entries still count; the table has room for both.
        for turn in (0, 1):
            assert table.learn_all(macs, 2, now_ns=SECOND_NS) == 0, turn
            assert [int(e["mac"].replace(":", ""), 16) for e in table.entries(SECOND_NS)] == macs.tolist()
        assert table.port_count(2) == len(macs)
        assert table.forget_port(2) == len(macs)
        assert all(segment[at : at + 16] == segment[at : at + 8] + bytes(8) for at in halted)
    assert (len(table), table.port_count(1), table.port_count(2)) == (len(macs), len(macs), 0)

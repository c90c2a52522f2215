"""The fuzzers' targets in every build: their first inputs, one at least for each class of fault that back ends have had,
and some inputs by chance. `make fuzz` goes on from there."""

from __future__ import annotations

import gc
import random
import subprocess
import sys

import pytest

from fuzz.front_end import TARGETS
from fuzz.guest import FEATURES, HostileGuest
from fuzz.seeds import SEEDS, TAKE, anywhere, beginning, descriptor, frame, offer

BYTES_MOST = 80


@pytest.fixture(autouse=True)
def no_garbage():
    """Targets count open descriptors: what other tests have left must not be closed meanwhile."""
    gc.collect()


def test_hostile_rings():
    """A rule that is broken ends the process."""
    guest = HostileGuest()
    for data in SEEDS["rings"].values():
        guest.run(data)
    counts = guest.counts()
    assert counts["executions"] == len(SEEDS["rings"])
    assert counts["frames out"] >= 200 and counts["frames in"] >= 30
    assert counts["faults of rings"] >= 200 and counts["faults of chains"] >= 70
    chance = random.Random(1)
    seeds = list(SEEDS["rings"].values())
    for _ in range(20000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        guest.run(bytes(data) + chance.randbytes(chance.randrange(24)))


def test_hostile_rings_in_each_format():
    guest = HostileGuest()
    for format_of in range(1 << len(FEATURES)):
        guest.run(beginning(format_of) + frame() + TAKE * 2)
        assert guest.counts()["frames out"] == format_of + 1
        guest.run(beginning(format_of) + descriptor(1, 0, anywhere(0), 50) + offer(1, 0) + TAKE)
        assert guest.counts()["faults of rings"] == format_of + 1


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_front_ends(name):
    target = TARGETS[name]()
    for data in SEEDS[name].values():
        target(data)
    chance = random.Random(name)
    seeds = list(SEEDS[name].values())
    for _ in range(60):
        data = bytearray(chance.choice(seeds) + chance.choice(seeds))
        for _ in range(chance.randrange(6)):
            data[chance.randrange(len(data))] = chance.choice([chance.randrange(256), chance.randrange(16)])
        target(bytes(data[: 2 * BYTES_MOST]))


def test_a_broken_rule_ends_the_process():
    """Else nothing would be found: the neighbour's memory is written where it may not be."""
    code = """
from fuzz.guest import HostileGuest, spoil
guest = HostileGuest()
guest.run(b"")
spoil(guest)
guest.run(b"")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode < 0
    assert "vnic: fuzz: broken: bytes behind the neighbour's buffers" in done.stderr

"""The test kit: its own example passes, and what fails fails readably."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from dataplane.errors import ConfigError
from tests.test_replay import A, B, frame
from vnic.testing import VirtualNetwork

ROOT = Path(__file__).parents[1]
TWO = "nics: {a: {egress: {rate: 10mbit}}, b: {}}"


def pytest_in(directory, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A user's pytest: the plugin as the distribution registers it."""
    installed = entry_points(group="pytest11", name="vnic")
    plugin = [] if installed else ["-p", "vnic.testing.plugin"]  # a tree that was never installed
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=55, check=False, env=environment)


@pytest.fixture
def example(tmp_path):
    shutil.copytree(ROOT / "examples" / "testing", tmp_path / "user", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "user"


def test_the_example(example):
    done = pytest_in(example)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout


def test_a_changed_byte_shows_its_field(example):
    file = example / "test_network.py"
    changed = 'Ether(bytes(REQUEST).replace(b"\\x40\\x11", b"\\x3f\\x11", 1))'
    file.write_text(file.read_text().replace('("db", REQUEST, at="1ms")', f'("db", {changed}, at="1ms")'))
    done = pytest_in(example)
    assert done.returncode == 1 and "1 failed, 2 passed" in done.stdout
    assert "IP.ttl                   64, expected 63" in done.stdout


def test_golden_captures(example):
    golden = example / "golden.pcapng"
    before = golden.read_bytes()
    damaged = bytearray(before)
    damaged[damaged.index(b"\x40\x11")] = 1
    golden.write_bytes(damaged)
    done = pytest_in(example)
    assert done.returncode == 1 and "not as in golden.pcapng: different: 9 packets are equal, 1 changed" in done.stdout
    assert "IP.ttl" in done.stdout and "--vnic-update-golden" in done.stdout
    assert pytest_in(example, "--vnic-update-golden").returncode == 0
    assert golden.read_bytes() == before
    golden.unlink()
    assert "does not exist; pytest --vnic-update-golden writes it" in pytest_in(example).stdout


def test_time_and_packets():
    with VirtualNetwork(TWO) as net:
        net.send("a", frame(B, A, 1250), at="1ms")
        net.send("a", frame(B, A, 1250, 1), at="1ms")
        net.advance("1500us")
        assert [(each.time_ns, each.data) for each in net.take("b")] == [(10**6, frame(B, A, 1250))]
        assert net.now_ns == 1_500_000
        net.advance("1ms")
        assert [each.time_ns for each in net.take("b")] == [1_750_000]
        net.send("b", frame(A, B), at="3ms")
        net.send("b", frame(A, B), at="3ms")
        net.run()
        net.assert_received("a", [frame(A, B)] * 2, at=["3ms", "3ms"])
        net.send("a", frame(A, A))
        net.run()
        assert net.drops() == {"switch: hairpin": 1}
        assert net.received("a") == []


@pytest.mark.parametrize(("expected", "at", "message"), [
    ([frame(B, A)], "1ms", "b received 2 packets, expected 1"),
    ([frame(B, A), frame(B, A, 61)], "1ms", "1 instants for 2 packets"),
    ([frame(B, A), frame(B, A, 61)], ["1ms", "1.1ms"], "b, packet 2: came at 1.05ms, expected at 1.1ms (-50000 ns)"),
    ([frame(B, A), frame(B, A, 61, 5)], None, "IP.id                    0, expected 5"),
    ([frame(B, A)] * 3, None, "packet 2"),
])  # fmt: skip
def test_failures_read_well(expected, at, message):
    with VirtualNetwork("nics: {a: {}, b: {}}") as net:
        net.send("a", frame(B, A), at="1ms")
        net.send("a", frame(B, A, 61), at="1050us")
        net.run()
        with pytest.raises(AssertionError) as failed:
            net.assert_received("b", expected, at=at)
        assert message in str(failed.value)


def test_a_capture_is_sent_and_written(tmp_path):
    with VirtualNetwork(TWO) as net:
        net.send("a", [frame(B, A, 100, n) for n in range(20)], gap="1ms")
        net.run()
        net.write(tmp_path / "first.pcapng")
    with VirtualNetwork(TWO) as net:
        assert net.send_capture("a", tmp_path / "first.pcapng", at="5ms") == 20
        net.run()
        assert [each.time_ns for each in net.received("b")] == [(5 + n) * 10**6 for n in range(20)]


def test_wrong_use():
    with VirtualNetwork(TWO) as net:
        with pytest.raises(ConfigError, match="nic x: there is none; the configuration has a, b"):
            net.send("x", b"")
        net.advance("1ms")
        with pytest.raises(ConfigError, match="send: 0ns is past; it is 1ms already"):
            net.send("a", b"", at=0)
    with pytest.raises(ConfigError, match="No such file"):
        VirtualNetwork("none.yaml")

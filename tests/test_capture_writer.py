"""The writer of captures: what it puts into files and pipes, and the space that it takes meanwhile."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from dataplane.capture.writer import CaptureWriter
from tests.support.capture_files import pcap

LIMITED = """
import resource, sys
from dataplane.capture.writer import CaptureWriter
from dataplane.errors import PortError
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_001, 9_000_001))
writer = CaptureWriter(sys.argv[1], ["a"])
try:
    for number in range(20_000):
        writer.write(0, number, bytes(1000))
    raise SystemExit("no error")
except PortError as error:
    print(error, writer.error == str(error))
try:
    writer.close()
except PortError as error:
    print(error)
"""


def packets(count: int, seed: int) -> list[tuple[int, bytes]]:
    """One to three packets at an instant, of all lengths modulo 4."""
    dice, now, made = random.Random(seed), 1_700_000_000_000_000_000, []
    for number in range(count):
        now += dice.choice((0, 0, 7, 1000))
        made.append((now, bytes([number & 255]) * dice.randint(0, 1500)))
    return made


def write_all(target: str | int, content: list[tuple[int, bytes]]) -> None:
    writer = CaptureWriter(target, ["a"], format="pcap")
    for time_ns, data in content:
        writer.write(0, time_ns, data)
    writer.close()


def test_a_file_and_a_pipe_get_the_same_bytes(tmp_path):
    content = packets(20_000, seed=3)
    copy = tmp_path / "copy.pcap"
    # a process: the writer blocks on a full pipe with the GIL held
    with copy.open("wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as reader:
        assert reader.stdin is not None
        write_all(reader.stdin.fileno(), content)
    path = tmp_path / "out.pcap"
    write_all(str(path), content)
    assert path.stat().st_size > 10_000_000
    assert path.read_bytes() == copy.read_bytes() == pcap(content, nanoseconds=True, snaplen=262144)


@pytest.mark.parametrize("octets", [3_000_000, 13_000_000])
def test_space_ahead_of_a_file_is_given_back(tmp_path, octets):
    path = tmp_path / "out.pcapng"
    writer = CaptureWriter(str(path), ["a"])
    for number in range(octets // 1000):
        writer.write(0, number, bytes(1000))
    writer.flush()
    assert path.stat().st_size == pytest.approx(octets, rel=0.1)
    writer.close()
    status = path.stat()
    assert status.st_blocks * 512 < status.st_size + 1_000_000


def test_writing_goes_on_after_a_flush(tmp_path):
    content = packets(2_000, seed=5)
    path = tmp_path / "out.pcap"
    writer = CaptureWriter(str(path), ["a"])
    for number, (time_ns, data) in enumerate(content):
        writer.write(0, time_ns, data)
        if number % 300 == 299 and content[number + 1][0] != time_ns:
            writer.flush()
            assert path.read_bytes() == pcap(content[: number + 1], nanoseconds=True, snaplen=262144)
    writer.close()
    assert path.read_bytes() == pcap(content, nanoseconds=True, snaplen=262144)


def test_a_write_that_fails_is_reported_and_the_file_has_what_came_before(tmp_path):
    path = tmp_path / "out.pcapng"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    message = f"cannot write {path}: File too large"
    assert (done.stdout, done.stderr) == (f"{message} True\n{message}\n", "")
    assert path.stat().st_size == 9_000_001
    assert path.stat().st_blocks * 512 < 10_000_000

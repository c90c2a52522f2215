"""`vnic replay` and `vnic diff` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.capture_files import pcap
from tests.test_replay import START_NS, A, B, frame

TWO = "nics:\n  a: {egress: {rate: 10mbit}}\n  b: {}\n"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "net.yaml").write_text(TWO)
    packets = [(START_NS + n * 1000, frame(B, A, 100, n)) for n in range(50)]
    (tmp_path / "in.pcap").write_bytes(pcap(packets, nanoseconds=True))
    return tmp_path


def vnic(place, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vnic.cli.main", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, timeout=200, check=False, input=stdin, env=_environment())
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())


def _environment() -> dict[str, str]:
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def test_replay_and_expect(place):
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", "-o", "golden.pcapng")
    assert done.returncode == 0 and "conserved: yes" in done.stdout and "50 packets" in done.stdout, done.stderr
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", "-o", "out.pcapng", "--expect", "golden.pcapng", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["received"] == result["transmitted"] == result["expected"]["packets"] == 50 and result["expected"]["equal"]
    assert (place / "out.pcapng").read_bytes() == (place / "golden.pcapng").read_bytes()


def test_a_changed_byte_is_shown_as_a_field(place):
    vnic(place, "replay", "in.pcap", "-c", "net.yaml", "-o", "golden.pcapng")
    golden = bytearray((place / "golden.pcapng").read_bytes())
    at = golden.index(b"\x08\x00\x45") + 10
    golden[at] = 63
    (place / "changed.pcapng").write_bytes(golden)
    done = vnic(place, "diff", "golden.pcapng", "changed.pcapng")
    assert done.returncode == 1
    assert "1 changed, 0 missing, 0 extra, 0 reordered" in done.stdout
    assert "interface b, packet 1" in done.stdout
    assert any(line.split() == ["IP.ttl", "64,", "expected", "63"] for line in done.stdout.splitlines())
    assert vnic(place, "diff", "golden.pcapng", "changed.pcapng", "--ignore", "IP.ttl").returncode == 0
    found = json.loads(vnic(place, "diff", "golden.pcapng", "changed.pcapng", "--json").stdout)
    assert found["changed"] == 1 and not found["equal"]


def test_missing_extra_reordered_and_late(place):
    one, two, three = ((START_NS + n * 10**6, frame(B, A, 100, n)) for n in range(3))
    files = {
        "all": [one, two, three], "less": [one, three], "swapped": [one, (two[0], three[1]), (three[0], two[1])],
        "late": [one, (two[0] + 4000, two[1]), three],
    }  # fmt: skip
    for name, packets in files.items():
        (place / name).write_bytes(pcap(packets, nanoseconds=True))
    assert "0 changed, 1 missing, 0 extra" in vnic(place, "diff", "less", "all").stdout
    assert "0 changed, 0 missing, 1 extra" in vnic(place, "diff", "all", "less").stdout
    assert "1 reordered" in vnic(place, "diff", "swapped", "all", "--tolerance", "1s").stdout
    done = vnic(place, "diff", "late", "all", "--tolerance", "3us")
    assert done.returncode == 1 and "1 at another time (by up to 4000 ns; tolerance 3000 ns)" in done.stdout
    assert "packet 2" in done.stdout and "+4000 ns" in done.stdout
    assert vnic(place, "diff", "late", "all", "--tolerance", "4us").returncode == 0
    assert vnic(place, "diff", "late", "all", "--ignore", "time").returncode == 0


def test_standard_streams(place):
    content = (place / "in.pcap").read_bytes()
    done = vnic(place, "replay", "-", "-c", "net.yaml", "-o", "out.pcapng", stdin=content)
    assert done.returncode == 0, done.stderr
    done = vnic(place, "replay", "--port", "a=in.pcap", "-c", "net.yaml", "-o", "-")
    assert done.returncode == 0 and "conserved: yes" in done.stderr and "vnic" in done.stdout[:60]


def test_a_broken_capture_ends_with_status_1(place):
    content = (place / "in.pcap").read_bytes()
    (place / "broken.pcap").write_bytes(content[:-7])
    done = vnic(place, "replay", "broken.pcap", "-c", "net.yaml", "-o", "out.pcapng", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["received"] == 49
    assert done.stderr.splitlines() == [
        "vnic: error: broken.pcap: offset 5708: the file ends within a packet; everything before it was used"
    ]


@pytest.mark.parametrize(("arguments", "message"), [
    (["replay", "-c", "net.yaml"], "nothing to replay; give IN.pcap or --port NAME=IN.pcap"),
    (["replay", "in.pcap", "in.pcap", "in.pcap", "-c", "net.yaml"], "3 captures, but the configuration has 2 NICs"),
    (["replay", "in.pcap", "--port", "a=in.pcap", "-c", "net.yaml"], "--port a=in.pcap: a has in.pcap already"),
    (["replay", "--port", "in.pcap", "-c", "net.yaml"], "--port in.pcap: expected NAME=IN.pcap"),
    (["replay", "--port", "x=in.pcap", "-c", "net.yaml"], "port x: the configuration has no such NIC; it has a, b"),
    (["replay", "none.pcap", "-c", "net.yaml"], "none.pcap: No such file or directory"),
    (["replay", "net.yaml", "-c", "net.yaml"], "net.yaml: begins with 6e 69 63 73: not a capture: expected pcap or pcapng"),
    (["replay", "in.pcap", "-c", "net.yaml", "--expect", "x"], "--expect compares a file: use -o OUT.pcapng, too"),
    (["replay", "in.pcap", "-c", "net.yaml", "-o", "in.pcap"], "in.pcap is both --output and input; write to another file"),
    (["replay", "in.pcap", "-c", "net.yaml", "-o", "net.yaml", "--expect", "net.yaml"], "net.yaml is both --output and --config"),
    (["replay", "in.pcap", "-c", "net.yaml", "-o", "golden", "--expect", "golden"],
     "golden is both --output and --expect"),
    (["replay", "in.pcap", "-c", "net.yaml", "-o", "out.pcapng", "--report", "golden", "--expect", "golden"],
     "golden is both --report and --expect"),
    (["replay", "in.pcap", "-c", "net.yaml", "-o", "no/where"], "cannot write no/where: No such file or directory"),
    (["diff", "in.pcap", "in.pcap", "--tolerance", "5"], "5"),
    (["diff", "in.pcap", "in.pcap", "--ignore", "IP.nose"], "--ignore IP.nose: no such field; IP has version, ihl"),
    (["diff", "in.pcap", "in.pcap", "--ignore", "nose"], "--ignore nose: expected Layer.field in scapy's names"),
])  # fmt: skip
def test_bad_use_is_one_line(place, arguments, message):
    (place / "golden").touch()
    done = vnic(place, *arguments)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and message in lines[0] and lines[0].startswith("vnic: error: ")
    assert done.returncode == (1 if "no/where" in arguments else 2)

"""NICs of kind capture: files in place of containers, in a running network."""

from __future__ import annotations

import json
import time
from contextlib import closing
from itertools import pairwise

import pytest

from dataplane.capture.reader import CaptureReader
from dataplane.capture.writer import CaptureWriter
from dataplane.errors import ConfigError, VnicError
from dataplane.ports.pcap_writer import PcapWriter, whole_records
from tests.test_command import environment, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import kill_worker, status
from vnic.config.load import parse_config
from vnic.config.written import written_config
from vnic.modules.devices import AgentDevices
from vnic.runtime.runtime import Runtime

MS = 1_000_000


def frame(number: int) -> bytes:
    return bytes.fromhex("0200000000aa0200000000bb88b5") + number.to_bytes(4, "big") + bytes(42)


def write(path, frames, gap_ns):
    writer = CaptureWriter(path, ["a"])
    for number in range(frames):
        writer.write(0, 10**18 + number * gap_ns, frame(number))
    writer.close()


def numbers(path):
    """The frames of a file, by number, and their times."""
    with closing(CaptureReader(path)) as reader:
        records = [(time_ns, int.from_bytes(data[14:18], "big")) for time_ns, data, _, _ in reader]
    return [number for _, number in records], [time_ns for time_ns, _ in records]


def configuration(tmp_path, out):
    return {
        "engines": 2,
        "nics": {
            "a": {"kind": "capture", "read": str(tmp_path / "in.pcap")},
            "b": {"kind": "capture", "write": str(tmp_path / out)},
        },
    }


def counted(nics, name, key):
    [nic] = [nic for nic in nics if nic["name"] == name]
    return nic[key]


@pytest.mark.parametrize("out", ["out.pcap", "out.pcapng"])
def test_frames_of_a_file_arrive_in_another_at_their_times(tmp_path, out):
    write(tmp_path / "in.pcap", 20, 5 * MS)
    (tmp_path / out).write_bytes(b"of before")
    runtime = Runtime(parse_config(json.dumps(configuration(tmp_path, out))), devices=AgentDevices())
    runtime.start()
    to_time_of_day_ns = time.time_ns() - time.monotonic_ns()
    while counted(runtime.status()["nics"], "b", "tx_packets") < 20:
        pass
    found = runtime.status()
    assert found["conserved"] and counted(found["nics"], "a", "rx_packets") == 20
    runtime.close()
    with open(tmp_path / out, "rb") as file:
        assert file.read(4).hex() == {"out.pcap": "4d3cb2a1", "out.pcapng": "0a0d0d0a"}[out]
    arrived, times = numbers(tmp_path / out)
    assert arrived == list(range(20))
    begin_ns = runtime.config.nics["a"].began_ns + to_time_of_day_ns
    assert all(time_ns >= begin_ns + number * 5 * MS - MS for number, time_ns in enumerate(times)), "none leaves early"


def test_it_goes_on_through_an_upgrade_and_after_kill(environment, tmp_path, leak_check):  # noqa: F811
    """An upgrade loses and repeats no frame; a crash loses those that were due meanwhile, and repeats none."""
    write(tmp_path / "in.pcap", 100_000, MS)
    file = tmp_path / "net.json"
    file.write_text(json.dumps(configuration(tmp_path, "out.pcapng")))
    vnic(environment, "up", "-d", str(file))
    for _ in range(2):
        assert json.loads(vnic(environment, "upgrade", "--json"))["packets_lost"] == 0
    before = counted(status(environment)["nics"], "b", "tx_packets")
    assert before > 0
    kill_worker(environment)
    while counted(status(environment)["nics"], "b", "tx_packets") < 100:
        pass
    vnic(environment, "apply", str(file))
    assert status(environment)["conserved"]
    vnic(environment, "down")
    arrived, _ = numbers(tmp_path / "out.pcapng")
    assert arrived == sorted(set(arrived))
    breaks = [(first, later) for first, later in pairwise(arrived) if later != first + 1]
    assert arrived[0] == 0 and len(breaks) <= 1
    assert breaks[0][0] > 0 if breaks else True
    assert len(arrived) > before // 2


@pytest.mark.parametrize("pcapng", [False, True])
def test_a_record_that_was_being_written_is_cut_off(tmp_path, pcapng):
    path = tmp_path / "out"
    PcapWriter("b", path, pcapng=pcapng).close()
    header = path.read_bytes()
    length = (32 + 64).to_bytes(4, "little")
    block = b"\6\0\0\0" + length + bytes(12) + (64).to_bytes(4, "little") * 2 + bytes(64) + length
    record = block if pcapng else bytes(8) + (64).to_bytes(4, "little") * 2 + bytes(64)
    for rest in (b"", record[:5], record[:-1]):
        path.write_bytes(header + record + record + rest)
        assert whole_records(path, header) == len(header) + 2 * len(record)
        PcapWriter("b", path, pcapng=pcapng, resume=True).close()
        assert path.read_bytes() == header + record + record
    PcapWriter("b", path, pcapng=not pcapng, resume=True).close()
    assert path.read_bytes() != header and len(path.read_bytes()) < 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "netns: /run/netns/x, read: a",
            "f.yaml:1: nics.a.netns: is not a setting of NICs of kind capture: files take the place",
        ),
        ("queues: 2, read: a", "f.yaml:1: nics.a.queues: is not a setting of NICs of kind capture"),
    ],
)
def test_settings_that_it_has_not_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        parse_config(f"nics: {{a: {{kind: capture, {settings}}}}}", "f.yaml")
    assert str(caught.value).startswith(message)


def test_read_is_a_setting_of_this_kind_only():
    with pytest.raises(ConfigError, match=r"nics\.a\.read: is not a setting of NICs of kind tap: "):
        parse_config("nics: {a: {pid: 1, read: in.pcap}}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", r"nic a \(<text>:1\): has neither read nor write"),
        ("read: absent.pcap", r"nic a \(<text>:1\): read: /.*/absent.pcap: No such file or directory"),
        ("read: .", r"nic a \(<text>:1\): read: /.* is not a file"),
        ("read: text", "text: "),
        ("read: in.pcap, write: in.pcap", r"nic a \(<text>:1\): write: is the file that it reads"),
        (
            "read: in.pcap, write: absent/out.pcap",
            r"nic a \(<text>:1\): cannot write /.*/absent/out.pcap: No such file or directory",
        ),
    ],
)
def test_files_that_cannot_be_are_one_clear_line(tmp_path, settings, message):
    write(tmp_path / "in.pcap", 1, 0)
    (tmp_path / "text").write_text("no capture")
    config = parse_config(f"nics: {{a: {{kind: capture, {settings}}}}}", directory=str(tmp_path))
    with pytest.raises(VnicError, match=message) as caught:
        Runtime(config, devices=AgentDevices()).start()
    assert "\n" not in str(caught.value)


def test_relative_paths_begin_at_the_file():
    config = parse_config("nics: {a: {kind: capture, read: in.pcap, write: ../out.pcap}}", directory="/some/where")
    assert (config.nics["a"].read, config.nics["a"].write) == ("/some/where/in.pcap", "/some/out.pcap")
    shown = written_config(config)
    assert shown["nics"]["a"]["read"] == "/some/where/in.pcap"
    assert written_config(parse_config(json.dumps(shown))) == shown


def test_attach_and_detach(environment, tmp_path, leak_check):  # noqa: F811
    write(tmp_path / "in.pcap", 20, MS)
    (tmp_path / "net.yaml").write_text("nics: {}")
    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        vnic(environment, "attach", "capture", "b", "--write", str(tmp_path / "out.pcapng"))
        said = vnic(environment, "attach", "capture", "a", "--read", str(tmp_path / "in.pcap"), "--egress", "1gbit")
        assert said.startswith(f"a: {tmp_path}/in.pcap with ")
        while counted(status(environment)["nics"], "b", "tx_packets") < 20:
            pass
        vnic(environment, "detach", "b")
        assert numbers(tmp_path / "out.pcapng")[0] == list(range(20))
        assert status(environment)["conserved"]
    finally:
        vnic(environment, "down")

"""Replays: exact, repeatable, conserved; real captures; tcpdump and tshark read the output."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from dataplane.capture.reader import CaptureReader
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import CaptureError, ConfigError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from dataplane.ports.pcap_source import PcapSource
from tests.support.capture_files import enhanced, interface, option, pcap, section
from tests.test_shaper import schedule
from vnic.config.load import parse_config
from vnic.replay.session import Replay

PCAPS = Path(os.environ.get("VNIC_PCAPS", Path(__file__).parents[2] / "shared" / "pcaps"))
CORPUS = sorted(path for folder in ("ndpi", "tcpdump") for path in (PCAPS / folder).glob("*") if path.is_file())
needs_corpus = pytest.mark.skipif(not CORPUS, reason="the captures are not beside this checkout")

START_NS = 1_700_000_000_000_000_000
A, B, C = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3))
EVERYBODY = b"\xff" * 6
# SHA-256 of the output for `SHAPED`
GOLDEN = "77761239402a219bca7d6799eae5a6799020e45be3c41dcb92d7cd5355eb4ce6"


def frame(target: bytes, source: bytes, length: int = 60, number: int = 0) -> bytes:
    """An IPv4 UDP frame of `length` bytes; `number` is its IP identification."""
    payload = length - 34
    head = bytes([0x45, 0]) + (length - 14).to_bytes(2, "big") + number.to_bytes(2, "big") + bytes([0, 0, 64, 17, 0, 0])
    udp = (1000).to_bytes(2, "big") + (2000).to_bytes(2, "big") + payload.to_bytes(2, "big") + b"\0\0"
    return target + source + b"\x08\x00" + head + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + udp + bytes(payload - 8)


def traffic(source: bytes, targets: list[bytes], count: int, seed: int) -> list[tuple[int, bytes]]:
    """Random sizes and gaps, often none."""
    dice = random.Random(seed)
    now, packets = START_NS, []
    for number in range(count):
        now += dice.choice([0, 0, 1, 1000, 1_000_000])
        packets.append((now, frame(dice.choice(targets), source, dice.randint(60, 1514), number % 65536)))
    return packets


def replay(tmp_path, config: str, inputs: dict[str, bytes], name: str = "out.pcapng", **options):
    """(results, the output's bytes)."""
    paths = {}
    for port, content in inputs.items():
        paths[port] = str(tmp_path / f"{port}.in")
        Path(paths[port]).write_bytes(content)
    out = tmp_path / name
    with Replay(parse_config(config, contained=False), paths, str(out), **options) as session:
        session.run()
        results = session.results()
    assert results["conserved"]
    return results, out.read_bytes()


def packets_of(path) -> list[tuple[int, bytes, str]]:
    reader = CaptureReader(str(path))
    found = [(time_ns, data, reader.names[number]) for time_ns, data, _, number in reader]
    reader.close()
    return found


SHAPED = """
engines: {engines}
nics:
  a: {{engine: 0, egress: {{rate: 20mbit, queue: 5ms}}}}
  b: {{engine: {b}, ingress: {{rate: 30mbit, queue: 5ms}}, egress: {{rate: 8mbit}}}}
  c: {{engine: {c}, queues: 4}}
  d: {{engine: {d}, vlan: {{access: 7}}}}
"""


@pytest.mark.parametrize(
    ("rate_bps", "limits", "queue_ms"),
    [(10**6, "rate: 1mbit, queue: 20ms", 20), (10**7, "rate: 10mbit, queue: 10ms", 10), (10**5, "rate: 100kbit", 100)],
)
def test_the_delay_is_at_most_that_of_the_queue_and_one_packet(tmp_path, rate_bps, limits, queue_ms):
    packets = [(START_NS + n * 100_000, frame(B, A, 1514, n)) for n in range(300)]
    results, _ = replay(tmp_path, f"nics: {{a: {{egress: {{{limits}}}}}, b: {{}}}}", {"a": pcap(packets, nanoseconds=True)})
    delay = results["nics"][1]["classes"][0]["delay_ns"]
    packet_ns = 1514 * 8 * 10**9 // rate_bps
    assert 0 < delay["max"] <= queue_ms * 10**6 + packet_ns
    assert results["dropped"]["a.egress.rate: queue_full"] > 200


def test_the_same_over_a_hundred_runs_and_over_one_and_four_engines(tmp_path):
    inputs = {
        "a": pcap(traffic(A, [B, C, EVERYBODY], 400, 1), nanoseconds=True),
        "b": pcap(traffic(B, [A, C], 400, 2), nanoseconds=True),
        "c": pcap(traffic(C, [A, EVERYBODY], 400, 3), nanoseconds=True),
    }
    seen = set()
    for run in range(100):
        engines = (1, 4)[run % 2]
        homes = {"b": 0, "c": 0, "d": 0} if engines == 1 else {"b": 1, "c": 2, "d": 3}
        results, out = replay(tmp_path, SHAPED.format(engines=engines, **homes), inputs, drops=True, seed=5)
        seen.add(hashlib.sha256(out).hexdigest())
        assert results["received"] == 1200 and sum(results["dropped"].values()) > 50
    # Equal in every build: debug and sanitizer builds run this test, too.
    assert seen == {GOLDEN}
    drops = [data for _, data, name in packets_of(tmp_path / "out.pcapng") if name == "dropped"]
    assert len(drops) == sum(results["dropped"].values())


@pytest.mark.parametrize("rate", [10_000_000, 7_777_777])
def test_every_departure_is_the_closed_form(tmp_path, rate):
    packets = traffic(A, [B], 3000, 11)
    results, _ = replay(
        tmp_path, f"nics: {{a: {{egress: {{rate: {rate}bit, queue: 10s}}}}, b: {{}}}}", {"a": pcap(packets, nanoseconds=True)}
    )
    arrivals = [(time_ns, len(data)) for time_ns, data in packets]
    expected, drops = schedule(arrivals, rate, 250_000, 10**9)
    assert drops == 0
    got = [(time_ns, len(data)) for time_ns, data, name in packets_of(tmp_path / "out.pcapng") if name == "b"]
    assert got == expected
    assert results["nics"][1]["classes"][0]["delay_ns"]["max"] == max(
        left - came for (left, _), (came, _) in zip(expected, arrivals, strict=True)
    )


def test_several_inputs_merge_in_time_order(tmp_path):
    inputs = {
        "a": pcap([(START_NS + n * 1000, frame(C, A, number=n)) for n in range(0, 50, 2)], nanoseconds=True),
        "b": pcap([(START_NS + n * 1000, frame(C, B, number=n)) for n in range(1, 50, 2)], nanoseconds=True),
        "c": pcap([(START_NS - 1000, frame(EVERYBODY, C))], nanoseconds=True),
    }
    replay(tmp_path, "nics: {a: {}, b: {}, c: {}}", inputs)
    times = [(time_ns, data[18:20]) for time_ns, data, name in packets_of(tmp_path / "out.pcapng") if name == "c"]
    assert times == [(START_NS + n * 1000, n.to_bytes(2, "big")) for n in range(50)]


def test_the_clock_does_not_go_back(tmp_path):
    packets = [
        (START_NS + 5000, frame(B, A, number=0)),
        (START_NS, frame(B, A, number=1)),
        (START_NS + 6000, frame(B, A, number=2)),
    ]
    results, _ = replay(tmp_path, "nics: {a: {}, b: {}}", {"a": pcap(packets, nanoseconds=True)})
    assert [time_ns - START_NS for time_ns, _, _ in packets_of(tmp_path / "out.pcapng")] == [5000, 5000, 6000]
    assert results["nics"][0]["out_of_order"] == 1


def test_a_packet_cut_by_the_capture_is_worth_what_it_was(tmp_path):
    whole = frame(B, A, 1500)
    packets = [(START_NS, whole[:96], 1500)] * 3
    results, _ = replay(tmp_path, "nics: {a: {egress: {rate: 12mbit}}, b: {}}", {"a": pcap(packets, nanoseconds=True)})
    out = tmp_path / "out.pcapng"
    reader = CaptureReader(str(out))
    got = list(reader)
    assert [(time_ns - START_NS, len(data), original) for time_ns, data, original, _ in got] == [
        (0, 96, 1500), (750_000, 96, 1500), (1_750_000, 96, 1500),
    ]  # fmt: skip
    assert results["nics"][0]["truncated"] == 3 and results["nics"][1]["transmitted_bytes"] == 4500
    reader.close()


@pytest.mark.parametrize("original", [262145, 1_000_000_000, 2**31 + 200_000_000, 2**32 - 1])
def test_an_original_length_that_no_frame_has_is_bounded_and_said(tmp_path, original):
    """Lengths above 2.3e9 once wrapped the shaper's 64 bits, and 4 GiB left after 16 s, not 34."""
    packets = [(START_NS, frame(B, A), original)] * 3
    results, _ = replay(
        tmp_path, "nics: {a: {egress: {rate: 1gbit, queue: 1s}}, b: {}}", {"a": pcap(packets, nanoseconds=True)}
    )
    times = [time_ns - START_NS for time_ns, _, _ in packets_of(tmp_path / "out.pcapng")]
    assert times[2] - times[1] == 262144 * 8
    assert [(each["code"], "3 packets" in each["text"]) for each in results["warnings"]] == [("overlong", True)]


def test_a_packet_that_claims_gigabytes_is_worth_the_longest_frame(tmp_path):
    """Its cost at the shaper does not overflow, so the next one leaves after such a frame's
    time."""
    packets = [(START_NS, frame(B, A, 60), 2**32 - 1)] * 3
    config = "nics: {a: {egress: {rate: 1gbit, queue: 10s}}, b: {}}"
    replay(tmp_path, config, {"a": pcap(packets, nanoseconds=True)})
    times = [time_ns for time_ns, _, _ in packets_of(tmp_path / "out.pcapng")]
    assert times[2] - times[1] == 262144 * 8


def test_a_packet_due_after_the_end_of_the_clock_is_not_due_at_once(tmp_path):
    """146 years at a sixteenth of the speed are 2^66 ns."""
    path = tmp_path / "in.pcapng"
    path.write_bytes(section() + interface(options=option(9, b"\x09")) + enhanced(bytes(60), 0) + enhanced(bytes(60), 1 << 62))
    clock = Clock(virtual=True, start_ns=START_NS)
    engine, source = (
        Engine("e0", PacketPool(small=64, large=16), clock=clock),
        PcapSource("in", CaptureReader(str(path)), held=True),
    )
    source.start(START_NS, "captured", 1, 16)
    rx, out = PortRx(source), MemoryPort("out", 1)
    rx >> PortTx(out)
    engine.load([rx])
    advance(engine, (1 << 63) - 2)
    assert [frame.time_ns for frame in out.take()] == [START_NS] and not source.done
    advance(engine, (1 << 63) - 1)
    assert [frame.time_ns for frame in out.take()] == [(1 << 63) - 1] and source.done
    engine.close()


def test_comments_travel_and_drops_are_explained(tmp_path):
    content = section() + interface(options=option(9, b"\x09") + option(0, b""))
    content += enhanced(frame(B, A), START_NS, options=option(1, b"from the wire") + option(0, b""))
    content += enhanced(frame(A, A), START_NS + 1, options=option(1, b"to itself") + option(0, b""))
    _, out = replay(tmp_path, "nics: {a: {}, b: {}}", {"a": content}, drops=True)
    assert out.count(option(1, b"from the wire")) == 1
    assert out.count(option(1, b"dropped: switch: hairpin") + option(1, b"to itself") + option(0, b"")) == 1


def test_classic_pcap_comes_out_where_the_name_says_so(tmp_path):
    packets = [(START_NS, frame(B, A)), (START_NS + 1, frame(B, A, 61))]
    _, out = replay(tmp_path, "nics: {a: {}, b: {}}", {"a": pcap(packets, nanoseconds=True)}, name="out.pcap")
    assert out == pcap(packets, nanoseconds=True, snaplen=262144)


@pytest.mark.parametrize(("inputs", "message"), [
    ({"x": "any"}, "port x: the configuration has no such NIC; it has a, b"),
    ({"a": "absent.pcap"}, "absent.pcap: No such file or directory"),
])  # fmt: skip
def test_what_cannot_be_replayed_leaves_nothing(tmp_path, inputs, message):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=message):
        Replay(parse_config("nics: {a: {}, b: {}}", contained=False), inputs, str(tmp_path / "out.pcapng"))
    assert not (tmp_path / "out.pcapng").exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_output_appears_when_it_is_complete(tmp_path):
    path, out = tmp_path / "in.pcap", tmp_path / "out.pcapng"
    path.write_bytes(pcap([(START_NS, frame(B, A))], nanoseconds=True))
    out.write_bytes(b"precious")
    config = parse_config("nics: {a: {}, b: {}}", contained=False)
    session = Replay(config, {"a": str(path)}, str(out))
    session.close()  # interrupted
    assert out.read_bytes() == b"precious" and sorted(os.listdir(tmp_path)) == ["in.pcap", "out.pcapng"]
    wrong = parse_config("nics: {a: {egress: {elements: [{element: Mirror, file: /no/where}]}}, b: {}}", contained=False)
    with pytest.raises(VnicError, match="/no/where"):
        Replay(wrong, {"a": str(path)}, str(out))
    assert out.read_bytes() == b"precious" and sorted(os.listdir(tmp_path)) == ["in.pcap", "out.pcapng"]
    with Replay(config, {"a": str(path)}, str(out)) as session:
        session.run()
        assert out.read_bytes() == b"precious"
    assert len(packets_of(out)) == 1 and sorted(os.listdir(tmp_path)) == ["in.pcap", "out.pcapng"]


def test_output_is_not_input(tmp_path):
    path = tmp_path / "same.pcap"
    path.write_bytes(pcap([(START_NS, frame(B, A))]))
    with pytest.raises(ConfigError, match="is both input and output"):
        Replay(parse_config("nics: {a: {}, b: {}}", contained=False), {"a": str(path)}, str(path))
    assert path.stat().st_size > 60


def test_a_broken_capture_is_used_up_to_the_break(tmp_path):
    content = pcap([(START_NS, frame(B, A)), (START_NS + 5, frame(B, A))])[:-10]
    results, _ = replay(tmp_path, "nics: {a: {}, b: {}}", {"a": content})
    assert results["received"] == 1 and results["errors"] == [f"{tmp_path}/a.in: offset 100: the file ends within a packet"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "long.pcap"
    chunk = pcap([(START_NS + n, frame(B, A, 1000)) for n in range(10_000)], nanoseconds=True)
    with path.open("wb") as file:
        file.write(chunk[:24])
        for _ in range(20):  # 200 MB
            file.write(chunk[24:])
    with Replay(parse_config("nics: {a: {}, b: {}}", contained=False), {"a": str(path)}, str(tmp_path / "out")) as session:
        session.time.run(20_000)
        before = _resident_kb()
        session.run()
        assert session.results()["transmitted"] == 200_000
        assert _resident_kb() - before < 20_000


def _resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def _tool(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@needs_corpus
def test_every_capture_of_the_corpus(tmp_path):
    """Ethernet captures pass parser, switch and shaper with every packet accounted for; others are
    rejected by name; tcpdump reads the output without errors."""
    if shutil.which("tcpdump") is None:
        pytest.skip("missing tool: tcpdump")
    config = "nics: {a: {egress: {rate: 10mbit}}, b: {ingress: {rate: 20mbit}}}"
    used = refused = 0
    for path in CORPUS:
        out = tmp_path / "out.pcapng"
        try:
            with Replay(parse_config(config, contained=False), {"a": str(path)}, str(out), drops=True) as session:
                session.run()
                results = session.results()
        except CaptureError as error:
            assert ": expected Ethernet" in str(error) or "no capture" in str(error), error
            refused += 1
            continue
        used += 1
        assert results["conserved"], path
        count = sum(1 for _ in packets_of(out))
        assert count == results["transmitted"] + sum(results["dropped"].values()), path
        if used % 10 == 0:
            read = _tool("tcpdump", "-nn", "-r", str(out), "-w", "/dev/null")
            assert read.returncode == 0 and len(read.stderr.splitlines()) == 1, (path, read.stderr)
    assert used > 250 and refused > 100


@needs_corpus
def test_tshark_reads_what_is_written(tmp_path):
    if shutil.which("tshark") is None:
        pytest.skip("missing tool: tshark")
    packets = traffic(A, [B, EVERYBODY, A], 200, 4)
    results, _ = replay(tmp_path, SHAPED.format(engines=1, b=0, c=0, d=0), {"a": pcap(packets, nanoseconds=True)}, drops=True)
    fields = ["-T", "fields", "-e", "frame.time_epoch", "-e", "frame.interface_name", "-e", "frame.comment"]
    read = _tool("tshark", "-n", "-r", str(tmp_path / "out.pcapng"), *fields)
    assert read.returncode == 0 and "damaged" not in read.stderr
    lines = [line.split("\t") for line in read.stdout.splitlines()]
    mine = packets_of(tmp_path / "out.pcapng")
    assert [(each[0], each[1]) for each in lines] == [(f"{t // 10**9}.{t % 10**9:09d}", name) for t, _, name in mine]
    assert sum(each[2].startswith("dropped: ") for each in lines if len(each) > 2) == sum(results["dropped"].values())

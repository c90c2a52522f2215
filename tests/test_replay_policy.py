"""A policy in a replay: its lines are measured, and the verdict says why a promise is not kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shaping.class_settings import ClassSetting
from shaping.policy.kept import WINDOW_NS, RateWindows, judge
from shaping.policy.kept_classes import ClassWindows
from shaping.policy.load import parse_policy
from shaping.policy.network import Network
from shaping.policy.places import Line, plan_of
from tests.support.capture_files import pcap
from tests.test_replay import START_NS, A, B, frame
from tests.test_replay_command import vnic
from tests.wire_frames import Spec
from vnic.config.load import parse_config
from vnic.replay.session import Replay

NET = 'nics:\n  a: {mac: "02:00:00:00:00:01"}\n  b: {mac: "02:00:00:00:00:02"}\n'
POLICY = """version: 1
seed: 3
links:
  a -> b: {rate: 10mbit, queue: 50ms, loss: {share: 1%, burst: 3}, delay: {mean: 20ms, jitter: 3ms}}
  b -> any: {rate: 1mbit}
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "net.yaml").write_text(NET)
    (tmp_path / "slow.yaml").write_text(POLICY)
    burst = [(START_NS + n * 800_000, frame(B, A, 1250, n)) for n in range(2000)]
    later = [(START_NS + 10**10 + n * 800_000, frame(B, A, 1250, n)) for n in range(2000)]
    (tmp_path / "in.pcap").write_bytes(pcap([*burst, *later], nanoseconds=True))
    return tmp_path


def test_what_was_asked_and_what_was_measured(place):
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--shape", "slow.yaml", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["shape"]
    assert found["kept"] and found["seed"] == 3 and found["window_ns"] == WINDOW_NS and found["classes"] == []
    line, idle = found["lines"]
    assert line["line"] == "a -> b" and line["asked"]["rate"] == "10mbit" and line["kept"] and line["why"] == []
    assert line["packets"] == 4000 and line["dropped"]["queue_full"] > 500
    rate = line["rate"]
    # 1.6 s of 12.5 Mbit/s twice, with nothing between: all but the windows at the edges are busy
    assert rate["busy_windows"] >= 30 and rate["least_busy_bps"] >= 9.9e6 and rate["most_bps"] <= 10.1e6
    assert 45e6 < line["queue"]["mean_ns"] <= line["queue"]["max_ns"] <= 51e6
    assert 19e6 < line["delay"]["mean_ns"] < 22e6
    loss = line["shares"]["loss"]
    assert loss["least"] <= loss["packets"] == line["dropped"]["loss"] <= loss["most"]
    assert idle["line"] == "b -> any" and idle["packets"] == 0 and idle["kept"]


def test_the_policy_of_the_configuration_is_measured_too(place):
    section = "shape:\n" + "".join(f"  {line}\n" for line in POLICY.splitlines())
    (place / "both.yaml").write_text(NET + section)
    one = json.loads(vnic(place, "replay", "in.pcap", "-c", "both.yaml", "--json").stdout)
    other = json.loads(vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--shape", "slow.yaml", "--json").stdout)
    assert one == other
    (place / "none.yaml").write_text("version: 1\nlinks: {a -> b: {delay: 5ms}}\n")
    done = vnic(place, "replay", "in.pcap", "-c", "both.yaml", "--shape", "none.yaml", "--json")
    [line] = json.loads(done.stdout)["shape"]["lines"]
    assert line["asked"] == {"delay": "5ms"} and line["delay"] == {"mean_ns": 5e6, "max_ns": 5_000_000}
    assert "shape" not in json.loads(vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--json").stdout)


def test_tables_and_reports(place):
    pytest.importorskip("matplotlib")
    done = vnic(
        place, "replay", "in.pcap", "-c", "net.yaml", "--shape", "slow.yaml", "--report", "o.html", "--report", "o.json"
    )
    assert done.returncode == 0, done.stderr
    assert "asked for" in done.stdout and "rate 10mbit, queue 50ms" in done.stdout
    page = (place / "o.html").read_text()
    assert "<h2>Policy</h2>" in page and "<td>a -&gt; b</td>" in page and "<td>kept</td>" in page and "slow.yaml" in page
    assert json.loads((place / "o.json").read_text())["shape"]["kept"]


def test_a_broken_promise_says_why(place):
    """The delay needs more buffers than the pool may give."""
    (place / "net.yaml").write_text(NET + "pool: {small: 1024}\n")
    (place / "far.yaml").write_text("version: 1\nlinks: {a -> b: {delay: 500ms}}\n")
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--shape", "far.yaml")
    assert done.returncode == 1 and "no:" in done.stdout and "line_full" in done.stdout and "Traceback" not in done.stderr
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--shape", "far.yaml", "--json")
    [line] = json.loads(done.stdout)["shape"]["lines"]
    assert not line["kept"] and line["why"] == [
        f"{line['dropped']['line_full']} packets dropped: line_full: a larger pool: helps"
    ]
    done = vnic(place, "replay", "--each", "in.pcap", "-c", "net.yaml", "--shape", "far.yaml")
    assert done.returncode == 1 and "a promise of the policy is broken" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: 1\nlinks:\n  a -> c: {delay: 1ms}\n", "slow.yaml:3: a -> c: there is no NIC or link c"),
        ("version: 1\nlinks:\n  a -> b: {delay: 1}\n", "slow.yaml:3: "),
        ("version: 1\nlinks:\n  a -> b: {rate: 10gbit, delay: 10s}\n", "slow.yaml:3: "),
        ("", "slow.yaml"),
    ],
)
def test_a_wrong_policy_is_one_line(place, text, says):
    (place / "slow.yaml").write_text(text)
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--shape", "slow.yaml", "-o", "out.pcapng")
    assert done.returncode == 2 and done.stdout == "" and not (place / "out.pcapng").exists()
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from(["20kbit", "1mbit", "50mbit"]),
    queue=st.sampled_from(["10ms", "64kb", "{packets: 5}", "2s"]),
    gaps=st.lists(st.sampled_from([0, 10_000, 1_000_000, 250_000_000]), min_size=1, max_size=80),
    sizes=st.lists(st.integers(60, 1514), min_size=1, max_size=10),
    loss=st.sampled_from(["0%", "5%", "100%"]),
)
def test_a_working_line_is_never_taken_for_broken(tmp_path_factory, rate, queue, gaps, sizes, loss):
    now, packets = START_NS, []
    for n, gap in enumerate(gaps):
        now += gap
        packets += [(now, frame(B, A, sizes[(n + k) % len(sizes)], k)) for k in range(5)]
    path = tmp_path_factory.mktemp("r") / "in.pcap"
    path.write_bytes(pcap(packets, nanoseconds=True))
    shape = f"shape:\n  seed: 1\n  links: {{a -> b: {{rate: {rate}, queue: {queue}, delay: 3ms, loss: {loss}}}}}\n"
    with Replay(parse_config(NET + shape, contained=False), {"a": path}) as session:
        session.run()
        found = session.results()
    with Replay(parse_config(NET + shape, contained=False), {"a": path}) as session:
        while session.time.run(1000):  # without windows
            pass
        assert session.clock.now_ns - session.start_ns == found["duration_ns"]
    [line] = found["shape"]["lines"]
    assert line["kept"], line["why"]
    assert line["packets"] == len(packets)


# -- verdicts --------------------------------------------------------------------------------------


def line_of(settings: str) -> Line:
    policy = parse_policy(f"version: 1\nlinks:\n  a -> b: {settings}\n")
    [line] = plan_of(policy, Network({"a": "02:00:00:00:00:01", "b": "02:00:00:00:00:02"})).lines.values()
    return line


def windows_of(*steps: tuple[int, int, int]) -> RateWindows:
    """Of a line of 8 Mbit/s: 100,000 bytes a window. steps: bytes sent, bytes waiting at the end, packets passed."""
    made = RateWindows.of(line_of("{rate: 8mbit}"), 1500)
    sent = passed = 0
    for n, (more, waiting, at_once) in enumerate(steps):
        sent, passed = sent + more, passed + at_once
        made.note(n * WINDOW_NS, {"sent_bytes": sent, "queue_bytes": waiting, "passed": passed})
    return made


@pytest.mark.parametrize(
    ("steps", "broken"),
    [
        ([(100_000, 5000, 1), (100_000, 5000, 0), (98_500, 10, 0)], ""),
        ([(101_500, 0, 9)], ""),
        ([(101_501, 0, 9)], "8.12mbit in the 100ms from 0ns on, expected at most 8mbit and one packet"),
        ([(10, 5000, 1), (98_499, 10, 0)], "7.88mbit in the 100ms from 100ms on, expected with packets waiting 8mbit and one"),
        ([(10, 5000, 1), (50_000, 10, 1)], ""),  # a packet found the line free: it was idle before
        ([(10, 5000, 1), (50_000, 0, 0)], ""),  # the queue ended
    ],
)
def test_windows(steps, broken):
    assert windows_of(*steps).broken.startswith(broken) and bool(windows_of(*steps).broken) == bool(broken)


def impairment(**counters: int) -> dict[str, object]:
    zero = dict.fromkeys(
        ("wire_packets", "lost", "duplicated", "corrupted", "reordered", "delayed", "delay_ns", "delay_max_ns"), 0
    )
    return {"type": "Impairment", "packets": 0, "dropped": {}, "counters": zero | counters}


@pytest.mark.parametrize(
    ("settings_", "counters", "why"),
    [
        ("{loss: 1%}", {"wire_packets": 10_000, "lost": 110}, ""),
        ("{loss: 1%}", {"wire_packets": 10_000, "lost": 0}, "0 of 10000 packets lost (0%), expected 1%, "),
        ("{loss: 0%}", {"wire_packets": 10_000, "lost": 1}, "1 of 10000 packets lost (0.01%), expected 0%, 0 to 0 of them"),
        ("{loss: {share: 1%, burst: 100}}", {"wire_packets": 10_000, "lost": 0}, ""),
        ("{duplicate: 50%}", {"wire_packets": 100, "duplicated": 100}, "100 of 100 packets duplicated (100%), expected 50%, "),
        ("{corrupt: 50%}", {"wire_packets": 100, "corrupted": 0}, ""),
        ("{corrupt: 0%}", {"wire_packets": 100, "corrupted": 1}, "1 of 100 packets corrupted"),
        ("{delay: 20ms}", {"delayed": 10, "delay_ns": 200_000_000, "delay_max_ns": 20_000_000}, ""),
        ("{delay: 20ms}", {"delayed": 10, "delay_ns": 200_000_001, "delay_max_ns": 20_000_001}, "delays of 20ms on average, 20ms at"),
        ("{delay: {mean: 20ms, jitter: 5ms}}", {"delayed": 10_000, "delay_ns": 198 * 10**9, "delay_max_ns": 1}, "a mean delay of 19.8ms"),
        ("{delay: {mean: 20ms, jitter: 5ms}}", {"delayed": 10_000, "delay_ns": 199_900 * 10**6, "delay_max_ns": 1}, ""),
        ("{delay: {mean: 20ms, jitter: 5ms}}", {"delayed": 10_000, "delay_ns": 230 * 10**9, "delay_max_ns": 1}, ""),
        (
            "{delay: {mean: 20ms, jitter: 5ms, order: any}}",
            {"delayed": 10_000, "delay_ns": 230 * 10**9, "delay_max_ns": 1},
            "a mean delay of 23ms, expected 20ms within",
        ),
    ],
)  # fmt: skip
def test_verdicts(settings_, counters, why):
    kept = judge(line_of(settings_), [impairment(**counters)], 10**9, None)
    assert "; ".join(kept.why).startswith(why) and bool(kept.why) == bool(why)
    assert kept.as_dict()["kept"] is not bool(why)


def test_a_packet_that_waits_too_long():
    counted = {
        "type": "Link", "packets": 2, "dropped": {},
        "counters": {"sent_bytes": 2000, "passed": 1, "delayed": 1, "sojourn_ns": 60_000_000, "sojourn_max_ns": 60_000_000},
    }  # fmt: skip
    line = line_of("{rate: 8mbit, queue: 50ms}")
    kept = judge(line, [counted], 10**9, RateWindows.of(line, 1500))
    assert kept.why == ["a packet waited 60ms for the rate, expected at most 51.5ms"]
    assert judge(line_of("{rate: 8mbit, queue: {packets: 5}}"), [counted], 10**9, None).why == []


# -- rates that vary, and classes ------------------------------------------------------------------


def replayed(tmp_path, policy: str, packets: list[tuple[int, bytes]]) -> dict[str, Any]:
    """What a replay through a policy, without its version, says of it."""
    (tmp_path / "in.pcap").write_bytes(pcap(packets, nanoseconds=True))
    section = "shape:\n" + "".join(f"  {line}\n" for line in policy.splitlines())
    with Replay(parse_config(NET + section, contained=False), {"a": tmp_path / "in.pcap"}) as session:
        session.run()
        found = session.results()
    assert found["conserved"]
    return found["shape"]


def steady(count: int, gap_ns: int, size: int = 1250) -> list[tuple[int, bytes]]:
    return [(START_NS + n * gap_ns, frame(B, A, size, n)) for n in range(count)]


def test_a_scenario_changes_what_is_measured(tmp_path):
    policy = (
        "seed: 1\nlinks: {a -> b: {rate: 10mbit, loss: 0%, delay: {mean: 1ms, jitter: 1ms}}}\n"
        "scenario: [{at: 1s, set: {a -> b: {rate: 2mbit, loss: 50%, delay: {mean: 9ms, jitter: 1ms}}}}]"
    )
    found = replayed(tmp_path, policy, steady(2000, 1_000_000))
    [line] = found["lines"]
    assert found["kept"] and line["kept"], line
    assert line["shares"]["loss"].keys() == {"packets", "share"} and line["shares"]["loss"]["packets"] > 50
    assert line["rate"] == {"mean_bps": line["rate"]["mean_bps"]}  # there is no one rate to judge it by


def test_a_trace_is_measured(tmp_path):
    policy = "links: {a -> b: {trace: [{for: 500ms, rate: 10mbit}, {for: 500ms, rate: 1mbit}], loss: 1%}}"
    found = replayed(tmp_path, policy, steady(2000, 1_000_000))
    [line] = found["lines"]
    assert found["kept"] and line["packets"] == 2000 and line["rate"]["mean_bps"] > 4e6


CLASSES = """classes:
  a.egress:
    rate: 10mbit
    default: rest
    tree:
      voice: {match: {protocol: udp, destination_port: 5000}, guarantee: 1mbit, ceiling: 2mbit, priority: 0}
      gold: {guarantee: 6mbit, tree: {one: {match: {destination_port: 5001}, weight: 3},
             two: {match: {destination_port: 5002}, guarantee: 2mbit}}}
      rest: {queue: fq_codel}
"""


def udp(port: int, number: int, size: int) -> bytes:
    whole = Spec(protocol=17, destination_port=port, identification=number, payload=bytes(size - 42)).build()
    return B + A + whole[12:]


def test_classes_are_measured(tmp_path):
    packets = [
        (START_NS + n * 400_000, udp(port, n, 1000))
        for n in range(6000)
        for port in (5000, 5001, 5002, 5003)
        if n % 4 == port - 5000
    ]
    found = replayed(tmp_path, CLASSES, packets)
    rows = {row["class"]: row for row in found["classes"]}
    assert found["kept"], [row["why"] for row in rows.values()]
    assert set(rows) == {f"a.egress{path}" for path in ("", "/voice", "/gold", "/gold/one", "/gold/two", "/rest")}
    assert rows["a.egress"]["asked"] == {"rate": "10mbit"} and rows["a.egress"]["most_bps"] <= 10.2e6
    # all of them want 5 Mbit/s: the voice is held to its ceiling, and two get their guarantee at least
    voice = rows["a.egress/voice"]
    assert voice["asked"]["ceiling"] == "2mbit" and 1.9e6 <= voice["most_bps"] <= 2.1e6
    assert rows["a.egress/gold/two"]["busy_windows"] > 10 and rows["a.egress/gold/two"]["least_busy_bps"] >= 1.9e6
    assert (
        sum(rows[f"a.egress/{name}"]["sent_packets"] for name in ("voice", "gold", "rest")) == rows["a.egress"]["sent_packets"]
    )


def test_classes_without_a_rate_of_their_own(tmp_path):
    policy = "classes: {a.egress: {rate: none, default: rest, tree: {x: {match: {destination_port: 5000}, ceiling: 1mbit}, rest: {}}}}"
    found = replayed(tmp_path, policy, [(START_NS + n * 1_000_000, udp(5000 + n % 2, n, 1000)) for n in range(1000)])
    rows = {row["class"]: row for row in found["classes"]}
    assert found["kept"] and rows["a.egress/x"]["most_bps"] <= 1.1e6 < rows["a.egress/rest"]["most_bps"]


def test_classes_in_tables_and_reports(place):
    pytest.importorskip("matplotlib")
    (place / "slow.yaml").write_text("version: 1\n" + CLASSES)
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--shape", "slow.yaml", "--report", "o.html")
    assert done.returncode == 0, done.stderr
    assert "a.egress/gold/one" in done.stdout and "guarantee 6mbit" in done.stdout
    assert "<td>a.egress/gold/one</td>" in (place / "o.html").read_text()


@settings(max_examples=25, deadline=None)
@given(
    ports=st.lists(st.integers(5000, 5003), min_size=1, max_size=12),
    gap_ns=st.sampled_from([50_000, 400_000, 3_000_000]),
    sizes=st.lists(st.integers(60, 1514), min_size=1, max_size=5),
    guarantee=st.sampled_from(["100kbit", "4mbit"]),
    queue=st.sampled_from(["fifo", "fq", "codel", "fq_codel"]),
)
def test_working_classes_are_never_taken_for_broken(tmp_path_factory, ports, gap_ns, sizes, guarantee, queue):
    policy = (
        "classes:\n  a.egress: {rate: 10mbit, default: rest, tree: {"
        f"x: {{match: {{destination_port: 5000}}, guarantee: {guarantee}, ceiling: 5mbit, queue: {queue}}}, "
        "y: {priority: 0, tree: {one: {match: {destination_port: 5001}, weight: 5}, two: {match: {destination_port: 5002}}}}, "
        "rest: {guarantee: 1mbit}}}"
    )
    packets = [(START_NS + n * gap_ns, udp(ports[n % len(ports)], n, max(sizes[n % len(sizes)], 60))) for n in range(1500)]
    found = replayed(tmp_path_factory.mktemp("c"), policy, packets)
    assert found["kept"], [row["why"] for row in found["classes"]]


def class_windows(*steps: tuple[int, int, int]) -> ClassWindows:
    """Of a class with a guarantee of 4 Mbit/s and a ceiling of 8: 50,000 and 100,000 bytes a window. steps: bytes and packets
    sent, packets waiting at the end."""
    made = ClassWindows(ClassSetting("x", 0, guarantee_bps=4_000_000, effective_bps=8_000_000), 1500, 0)
    sent = packets = 0
    for n, (more, count, waiting) in enumerate(steps):
        sent, packets = sent + more, packets + count
        made.note(n * WINDOW_NS, {"sent_bytes": sent, "sent_packets": packets, "dropped": {}, "waiting_packets": waiting}, 1)
    return made


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([(100_000, 80, 90), (47_000, 40, 50)], []),
        ([(101_751, 80, 0)], ["8.14mbit in the 100ms from 0ns on, expected at most 8mbit"]),
        (
            [(10, 1, 90), (46_999, 40, 50)],
            ["3.76mbit in the 100ms from 100ms on, expected with packets waiting at least 4mbit"],
        ),
        ([(10, 1, 30), (30_000, 30, 50)], []),  # it may have had no packet for a while
    ],
)
def test_windows_of_classes(steps, why):
    assert list(class_windows(*steps).why.values()) == why
    row = {"sent_bytes": 1, "sent_packets": 1, "dropped": {"over_memory": 2}, "waiting_packets": 0, "path": "x"}
    judged = class_windows(*steps).judged("a.egress/x", row, 10**9)
    assert judged["why"] == [*why, "2 packets dropped: over_memory: a larger pool: helps"] and not judged["kept"]

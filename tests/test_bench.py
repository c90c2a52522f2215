"""The bench itself: probes compile, figures are computed correctly. Nothing is measured."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench import (
    contestants,
    faults,
    guest_life,
    leases,
    machine,
    neighbour,
    policy,
    probes,
    report,
    shaping,
    tap,
    veth,
    virt,
)
from bench.errors import BenchError
from bench.space import NETNS, PREFIX, Space
from tests.tools import need
from vnic.config.load import parse_config
from vnic.replay.session import Replay

ROOT = Path(__file__).parents[1]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")


def series(name: str, **values: list[float]) -> tap.Series:
    rounds = max(len(v) for v in values.values())
    return tap.Series(name, [{k: v[i] for k, v in values.items()} for i in range(rounds)])


def test_probes_compile_and_explain_themselves() -> None:
    probes.compile_probes()
    for name in probes.PROBES:
        done = subprocess.run([str(probes.BIN / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"usage: {name} ")


def test_a_failed_probe_is_one_line() -> None:
    probes.compile_probes()
    with pytest.raises(BenchError, match="pingpong failed: /nowhere: No such file or directory"):
        probes.probe("pingpong", "/nowhere", "/nowhere", "10.99.0.2", 1, 0, timeout_seconds=5)


def test_ratios_are_of_medians_against_the_better_bare_loop() -> None:
    result = tap.summarise(
        {
            "vnic": series(
                "v",
                tcp_gbps=[36, 38, 10],
                mpps_64b=[0.5, 0.6, 0.5],
                rtt_p50_us=[33, 34, 35],
                idle_cpu_percent=[0.1, 0.1, 0.3],
                cpu_ns_per_packet=[1900, 2000, 2500],
                cpu_s_per_gb=[0.3, 0.2, 0.2],
            ),
            "bare-1": series(
                "1",
                tcp_gbps=[38, 30, 30],
                mpps_64b=[0.6, 0.4, 0.5],
                rtt_p50_us=[30, 31, 32],
                cpu_ns_per_packet=[1800] * 3,
                cpu_s_per_gb=[0.25] * 3,
            ),
            "bare-2": series("2", tcp_gbps=[40, 40, 20], mpps_64b=[0.4, 0.4, 0.4], rtt_p50_us=[36, 37, 38]),
            "ovs-tso": series("o", tcp_gbps=[18, 18, 18], mpps_64b=[0.25, 0.25, 0.25], rtt_p50_us=[60, 61, 62]),
        },
        rounds=3,
        seconds=1,
    )
    assert result["tcp_gbps"] == 36 and result["tcp_ratio_vs_bare"] == 0.9
    assert result["mpps_64b"] == 0.5 and result["pps_ratio_vs_bare"] == 1.0
    assert result["rtt_p50_us"] == 34 and result["bare_rtt_p50_us"] == 31
    assert result["idle_cpu_percent"] == 0.1
    assert result["cpu_ns_per_packet"] == 2000 and result["bare_cpu_ns_per_packet"] == 1800
    assert result["cpu_s_per_gb"] == 0.2 and result["bare_cpu_s_per_gb"] == 0.25
    assert result["rtt_spin_p50_us"] is None  # that contestant did not run
    peers = result["peers"]
    assert isinstance(peers, dict) and set(peers) == {"bare-1", "bare-2", "ovs-tso"}
    assert peers["ovs-tso"]["vnic_tcp_gbps_ratio"] == 2.0
    assert peers["bare-2"]["spread"]["tcp_gbps"] == {"min": 20, "max": 40}


def test_a_run_without_vnic_gives_nulls_not_errors() -> None:
    result = tap.summarise({"bare-1": series("1", tcp_gbps=[38.0])}, rounds=1, seconds=1)
    assert result["tcp_gbps"] is None and result["tcp_ratio_vs_bare"] is None


def test_a_failure_of_vnic_is_told_apart_from_a_peers() -> None:
    broken = tap.Series("v", [], ["round 1: no"])
    assert tap.failure_of_ours(tap.summarise({"vde": broken}, rounds=1, seconds=1)) == ""
    assert tap.failure_of_ours(tap.summarise({"vnic": broken}, rounds=1, seconds=1)) == "vnic: round 1: no"


def test_tables_print_what_is_missing_as_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    failed = tap.Series("nothing", [], ["round 1: no gcc"])
    result = tap.summarise({"bare-1": series("1", tcp_gbps=[38.0]), "vde": failed}, rounds=1, seconds=1)
    report.show_tap(Console(width=150), {**result, "machine": machine.describe()})
    printed = capsys.readouterr().out
    assert "38.00" in printed and "vde        round 1: no gcc" in printed


def test_an_unknown_contestant_is_an_error_that_lists_them() -> None:
    with pytest.raises(BenchError, match="unknown contestant 'ovs2': expected some of vnic, vnic-spin, bare-1"):
        contestants.choose(["ovs2"])


def test_cpu_time_of_a_process_and_its_children() -> None:
    """The child works, the parent waits."""
    work = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with subprocess.Popen([sys.executable, "-c", work]) as process:
        try:
            while contestants.tree_cpu_ns(process.pid) - contestants.cpu_ns(process.pid) < 50_000_000:
                pass
            with tap.CpuTime(process) as cpu:
                before_ns = contestants.tree_cpu_ns(process.pid)
                while contestants.tree_cpu_ns(process.pid) - before_ns < 50_000_000:
                    pass
            assert cpu.ns >= 50_000_000
        finally:
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            process.kill()
    with tap.CpuTime(None) as cpu:
        pass
    assert cpu.ns == 0


def test_cpu_time_grows_with_work() -> None:
    before = contestants.cpu_ns(os.getpid())
    sum(range(1_000_000))
    assert contestants.cpu_ns(os.getpid()) > before


@needs_root
def test_nics_over_veth_pairs_are_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "PINGS", 5)
    monkeypatch.setattr(tap, "UDP_ROUND_TRIPS", 5)
    result = veth.run(rounds=1, seconds=0.2)
    measured = result["contestants"]
    assert isinstance(measured, dict) and list(measured) == ["vnic-veth", "vnic", "bare-1"]
    assert all(one["failures"] == [] and one["mpps_64b"] > 0 for one in measured.values())
    assert measured["bare-1"]["mpps_64b_ratio"] == 1
    veth.show(Console(width=150), result)
    assert "64 B Mpps" in capsys.readouterr().out


@needs_root
def test_a_path_between_two_namespaces_comes_and_goes() -> None:
    probes.compile_probes()
    with Space() as space:
        bare = contestants.Bare(1)
        process = bare.up(space)
        assert process is not None and process.poll() is None
        names = [space.a, space.b, space.middle]
        assert all((NETNS / name).exists() for name in names)
        directory = space.directory
    assert process.poll() is not None
    assert not any((NETNS / name).exists() for name in names)
    assert not directory.exists()


@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "bench", "tap", "--rounds", "100", "--peers", "bare-1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    mine = f"{PREFIX}{process.pid}-*"
    deadline = time.monotonic() + 60
    child = ""
    while not (len(list(NETNS.glob(mine))) == 3 and child) and time.monotonic() < deadline:
        child = child_of(process.pid)
        time.sleep(0.01)
    process.send_signal(number)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 130
    assert printed.endswith("bench: interrupted\n") and "Traceback" not in printed
    assert not list(NETNS.glob(mine))
    assert child and not Path("/proc", child).exists()


def child_of(pid: int) -> str:
    """The pid of the process' first child; "" without one."""
    return next(iter(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()), "")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes a plain user")
def test_a_plain_user_gets_one_line() -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "bench", "tap"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "bench: bench tap makes network namespaces: run it as root\n")


def test_every_element_is_measured_and_none_loses_packets(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import elements

    result = elements.run(repetitions=1, packets=1024)
    rows = result["elements"]
    assert isinstance(rows, list) and all(set(row["batches"]) == {"1", "32", "256"} for row in rows)
    report.show_elements(Console(width=150), result)
    shown = capsys.readouterr().out
    assert "Shaper, enqueue + dequeue" in shown and "a timer set anew, of 10000: " in shown
    assert [row["timers"] for row in result["timers"]] == [1, 100, 10_000]
    assert [(row["rings"], row["bytes"]) for row in result["guests"]] == [
        ("split", 60), ("split", 1514), ("packed", 60), ("packed", 1514),
    ]  # fmt: skip
    assert [(row["name"], row["flows"]) for row in result["flows"]] == [
        ("Pacer", 1), ("Pacer", 1000), ("Pacer", 1_000_000),
        ("Scheduler, cake", 1), ("Scheduler, cake", 1000), ("Scheduler, cake", 10_000),
    ]  # fmt: skip


def test_a_lane_notices_that_packets_are_lost() -> None:
    from bench.micro import Lane
    from dataplane.elements.counter import Discard
    from dataplane.packet.pool import PacketPool

    lane = Lane(PacketPool(small=256, large=1), [bytes(60)], 64)
    with pytest.raises(RuntimeError, match="Discard: the lane ran dry after 64 packets"):
        lane.measure(Discard(), turns=3, batch=32)


@pytest.mark.skipif(os.geteuid() != 0, reason="ping at short intervals is root's")
def test_ping_is_read_as_it_prints() -> None:
    measured = probes.ping("/proc/self/ns/net", "127.0.0.1", 20, 2)
    assert measured["received"] == 20
    assert 0 < measured["p50_us"] <= measured["p99_us"] < 1e6
    with pytest.raises(BenchError, match="ping failed"):
        probes.ping("/nowhere", "127.0.0.1", 1, 2)


def records_of(*lines: list[tuple[int, int]]) -> "shaping.Records":
    """lines: (ns of arrival, bytes) of each line's frames."""
    found = [(10**18 + at, 0, number, size) for number, frames in enumerate(lines) for at, size in frames]
    return np.array(found, dtype=shaping.RECORD)


def test_errors_of_rates_are_those_of_the_line_that_is_furthest_off() -> None:
    exact = [(n * 1_000_000, 1250) for n in range(1600)]  # 10 Mbit/s
    slow = [(n * 1_010_000, 1250) for n in range(1600)]
    found = shaping.rate_errors(records_of(exact), 1, 10_000_000, 1)
    assert all(abs(found[key]) < 1e-6 for key in shaping.ERRORS)
    found = shaping.rate_errors(records_of(exact, slow), 2, 10_000_000, 1)
    assert all(abs(found[key]) == pytest.approx(0.990, abs=0.001) for key in shaping.ERRORS)
    assert found["rate_error_percent"] < 0
    # 25 ms of silence, made up afterwards, are up to 25 % of a window and nothing of the whole
    stalled = [(725_000_000 if 700_000_000 <= at < 725_000_000 else at, size) for at, size in exact]
    found = shaping.rate_errors(records_of(stalled), 1, 10_000_000, 1)
    assert abs(found["rate_error_percent"]) < 1e-6 and 14 < found["window_error_percent"] < 26
    # frames of different lengths, and a window that no frame begins or ends with
    mixed, at = [], 0
    for n in range(3000):
        size = 100 + n * 37 % 1400
        at += size * 800
        mixed.append((at, size))
    found = shaping.rate_errors(records_of(mixed), 1, 10_000_000, 1)
    assert all(abs(found[key]) < 1e-3 for key in shaping.ERRORS)
    with pytest.raises(BenchError, match="line 0 ended"):
        shaping.rate_errors(records_of(exact), 1, 10_000_000, 2)
    with pytest.raises(BenchError, match="of line 1 only 0 frames came"):
        shaping.rate_errors(records_of(exact), 2, 10_000_000, 1)


@pytest.mark.parametrize("lines", [1, 10, 33, 1000])
def test_networks_with_many_lines_are_configurations(lines: int) -> None:
    text = shaping.VnicLines(lines).shaped().replace("ENDA", "netns: /run/netns/a, interface: t0") + "  b: {}\n"
    with Replay(parse_config(text, contained=False), {}) as session:
        links = [each for engine in session.runtime.engines for each in engine.elements if type(each).__name__ == "Link"]
        assert len(links) == lines and {each.rate_bps for each in links} == {shaping.TOTAL_BPS // lines}


@pytest.mark.parametrize("lines", [1, 1000])
def test_networks_with_many_classes_are_configurations(lines: int) -> None:
    text = shaping.VnicClasses(lines).shaped().replace("ENDA", "netns: /run/netns/a, interface: t0") + "  b: {}\n"
    with Replay(parse_config(text, contained=False), {}) as session:
        [found] = [each for engine in session.runtime.engines for each in engine.elements if type(each).__name__ == "Scheduler"]
        assert len(found.get_classes()) == lines + 2


@needs_root
def test_shaping_is_measured_beside_the_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    """That it runs and what it prints; the figures depend on the machine."""
    lives = shaping.measure_lives(1, 0.2, (1, 3))
    found = shaping.summarise(lives)
    assert found["failures"] == [] and set(found["rate_error_percent"]) == set(found["window_error_percent"]) == {"1", "3"}
    assert found["delay_error_us"]["p50"] <= found["delay_error_us"]["p99"] and found["path_us"]["p50"] > 0
    assert found.keys() >= {"delay_error_us", "path_us", "worst_round", "vnic_guaranteed", "vnic_classes"}
    cost = shaping.costs(repetitions=1)
    assert cost["ns_per_packet"].keys() >= {"policer", "marker", "shaper", "link", "impairment_loss", "impairment_jitter"}
    assert None not in cost["ns_per_packet"].values()
    rates = {str(n): 1 for n in (1, 3)}
    result = {**found, **cost, "rates_bps": rates, "rounds": 1, "seconds": 0.2, "machine": machine.describe()}
    shaping.show(Console(width=150), result)
    assert "ns_per_packet: policer" in capsys.readouterr().out


@needs_root
def test_networks_are_applied_and_undone_under_load() -> None:
    """One of each kind of change. Loss depends on the machine; that all is undone and accounted for does not."""
    result = faults.apply(5)
    assert result["rounds"] == len(result["series_ms"]) == 5
    assert result["conserved"] and result["restarts"] == 0 and result["damaged"] == 0 and result["resets"] == 0
    assert result["sent"] > 1000 and result["tcp_gbytes"] > 0


@needs_root
def test_policies_are_applied_and_undone_under_load(capsys: pytest.CaptureFixture[str]) -> None:
    """Two of each kind. Packets that the kernel drops depend on the machine; what vnic drops or reorders does not."""
    result = policy.policies(2 * len(policy.KINDS))
    assert result["dropped"] == result["reordered"] == result["damaged"] == result["resets"] == result["restarts"] == 0
    assert result["conserved"] and result["sent"] > 1000 and result["tcp_gbytes"] > 0
    report.show_figures(Console(width=150), result, "policies")
    assert "sender_queue_drops" in capsys.readouterr().out


@needs_root
def test_policies_end_whatever_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    """That all end and leave nothing; how late depends on the machine."""
    result = leases.leases(4)
    assert (result["problems"], result["early"], result["show_disagreed"], result["leftovers"]) == ([], 0, 0, 0)
    assert sum(result["ended"].values()) == sum(result["killed"].values()) == 4
    report.show_figures(Console(width=150), result, "leases")
    assert "late_ms" in capsys.readouterr().out


@needs_root
def test_what_is_left_of_a_policy_is_found() -> None:
    before = dict(os.environ)
    with Space() as space:
        bench = leases.Bench(space, random.Random(1))
        _, data = bench.write(1)
        bench.instance.ask("Shape", policy=data, for_ms=10**8)
        found = bench.traces()
        assert "b0.ingress.shape-pairs.shape-from-a0" in found["elements"] - bench.before["elements"]
        assert {each.split()[0] for each in found["leases"]} == {"shape", "shape_term", "policy", "term"}
        assert found["configuration"] != bench.before["configuration"]
        bench.check(1, None)
        assert bench.counts["leftovers"] == 0 and bench.counts["disagreements"] == 1
    assert dict(os.environ) == before


@needs_root
def test_packets_of_a_front_end_circulate_through_vnic(capsys: pytest.CaptureFixture[str]) -> None:
    need("dpdk-testpmd")
    back_end = next(each for each in virt.OURS if each.packed and "shape" in each.name)
    assert virt.measure(back_end, 60, 0.2) > 0.001
    row = {"mpps": 4.0, "mpps_1518": 2.0, "mpps_ratio": 0.5, "mpps_1518_ratio": 1.0, "failures": []}
    rows = {each.name: {**row, "spread": {"mpps": {"min": 3.0, "max": 5.0}}} for each in (*virt.OURS, *virt.PEERS)}
    guests = {"uml_tcp_gbps": 3.4, "rtt_p50_us": 340.0, "failures": ["round 1: gone"]}
    result = {"rounds": 1, "vnic": rows, "peers": {}, "guests": guests, "machine": machine.describe()}
    virt.show(Console(width=150), result)
    text = capsys.readouterr().out
    assert "4 (0.5)" in text and "3-5" in text and "Gbit/s 3.4" in text and "round 1: gone" in text


@needs_root
def test_round_trips_beside_a_hostile_guest(capsys: pytest.CaptureFixture[str]) -> None:
    result = neighbour.run(1, 10)
    neighbour.show(Console(width=150), result)
    text = capsys.readouterr().out
    for kind in neighbour.KINDS:
        assert result["kinds"][kind.name]["p99_us"] >= result["kinds"][kind.name]["p50_us"] > 0
        assert kind.name in text


PINGED = """PING 10.99.0.2 (10.99.0.2) 56(84) bytes of data.
[1000.000] 64 bytes from 10.99.0.2: icmp_seq=1 ttl=64 time=0.2 ms
[1000.005] 64 bytes from 10.99.0.2: icmp_seq=2 ttl=64 time=0.2 ms
[1000.006] 64 bytes from 10.99.0.2: icmp_seq=2 ttl=64 time=1.2 ms (DUP!)
[1000.105] From 10.99.0.3 icmp_seq=5 Destination Host Unreachable
[1000.205] 64 bytes from 10.99.0.2: icmp_seq=6 ttl=64 time=0.2 ms
[1000.215] 64 bytes from 10.99.0.2: icmp_seq=8 ttl=64 time=0.2 ms

--- 10.99.0.2 ping statistics ---
9 packets transmitted, 4 received, +1 duplicates, +1 errors, 55% packet loss, time 300ms
"""


def test_echoes_are_counted() -> None:
    found = guest_life.Echoed.parse(PINGED)
    assert (found.sent, found.lost, found.twice, found.pieces()) == (9, [3, 4, 5, 7], 1, [3, 1])
    assert round(found.silence_ms(1000.1, 1000.15)) == 199 and round(found.silence_ms(1000.21, 1001)) == 10
    with pytest.raises(BenchError, match="no echo was answered: PING"):
        guest_life.Echoed.parse(PINGED.splitlines()[0])


@pytest.mark.timing
@needs_root
def test_guests_lose_nothing() -> None:
    result = guest_life.run(1, ["restarts"])
    result["faults"] = {"uml, upgrade": guest_life.measure_faults("uml", guest_life.upgrade, (0, 0), 1)}
    result["migrations"] = {"two vnics": guest_life.measure_moves(guest_life.MOVES["two vnics"], 1)}
    # How many echoes a guest has lost, and for how long, a busy machine decides, too.
    for fault in result["faults"].values():
        assert fault["connections_lost"] == fault["packets_lost_by_books"] == fault["broken_rings"] == 0
        assert fault["conserved"] and fault["pings_twice"] == 0
    assert [each["pings_twice"] for each in result["restarts"].values()] == [0]
    assert [each["problem"] for each in result["migrations"].values()] == [""]
    guest_life.show(Console(width=150), result)

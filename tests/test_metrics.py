"""Metrics: the figures of `vnic stats`, also over HTTP and after an upgrade; limits for clients."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.containers import Container
from tests.test_command import TREE, environment, ping, vnic, write_config  # noqa: F401 - a fixture
from tests.wire_frames import TCP, UDP, Spec
from vnic.api.metrics import CONNECTIONS_MOST, families_of, text_of
from vnic.testing import VirtualNetwork


def parsed(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def get(port, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=120) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


NETWORK = """
nics:
  a:
    egress:
      rate: 10mbit
      queue: 20ms
      elements:
        - {element: Classifier, name: kinds, rules: [{protocol: udp}, {protocol: tcp}]}
        - {element: Counter, name: seen}
  b: {ingress: {rate: 20mbit}}
"""
PROCESS = {"version": "9.9", "supervisor": {"restarts": 3}}


@pytest.fixture
def busy():
    """A network at rest after traffic of all kinds: plain and GSO frames, malformed ones, drops,
    delays."""
    with VirtualNetwork(NETWORK) as net:
        port = net._devices.nics["a"].port
        port.inject([Spec(protocol=UDP, payload=bytes(900)).build()] * 20 + [bytes(5)])
        port.inject([Spec(protocol=TCP, payload=bytes(20 * 1448)).frame(1448)] * 3)
        net.run()
        yield net._runtime


def expected_of(stats):
    """Expected samples, from `stats`."""
    found = {}

    def put(name, value, **labels):
        found[name, tuple(sorted(labels.items()))] = value

    for nic in stats["nics"]:
        for number, queue in enumerate(nic["queues"]):
            assert len(queue) == 10
            for key, value in queue.items():
                way, _, what = key.partition("_")
                verb = {"rx": "receive", "tx": "transmit"}[way]
                put(f"vnic_nic_{verb}_{what}_total", value, nic=nic["name"], queue=str(number))
    for engine in stats["engines"]:
        for element in engine["elements"]:
            labels = {"engine": engine["name"], "element": element["name"]}
            put("vnic_element_packets_total", element["packets"], **labels)
            put("vnic_element_held_packets", element["held"], **labels)
            for reason, value in element["dropped"].items():
                put("vnic_element_dropped_packets_total", value, **labels, reason=reason)
            for rule, value in enumerate(element.get("hits", [])):
                put("vnic_classifier_rule_packets_total", value, **labels, rule=str(rule))
            counters = element["counters"]
            if element["type"] == "Shaper":
                put("vnic_shaper_delay_seconds_count", counters["passed"] + counters["delayed"], **labels)
                put("vnic_shaper_delay_seconds_sum", counters["sojourn_ns"] / 1e9, **labels)
                put("vnic_shaper_delay_max_seconds", counters["sojourn_max_ns"] / 1e9, **labels)
                put("vnic_shaper_sent_bytes_total", counters["sent_bytes"], **labels)
                put("vnic_shaper_delayed_packets_total", counters["delayed"], **labels)
                put("vnic_shaper_split_packets_total", counters["split"], **labels)
                put("vnic_shaper_queue_bytes", counters["queue_bytes"], **labels)
                put("vnic_shaper_queue_packets", element["held"], **labels)
                put("vnic_shaper_queue_max_bytes", counters["queue_bytes_max"], **labels)
                if element["queue_limit_bytes"] is not None:
                    put("vnic_shaper_queue_limit_bytes", element["queue_limit_bytes"], **labels)
                continue
            for counter, value in counters.items():
                unit = "bytes" if counter.endswith("bytes") else "events"
                put(f"vnic_element_{unit}_total", value, **labels, type=element["type"], counter=counter)
    return found


OF_STATS = ("vnic_nic_receive_", "vnic_nic_transmit_", "vnic_element_", "vnic_shaper_", "vnic_classifier_")


def test_every_number_of_stats_that_has_a_metric_is_the_same(busy):
    stats, text = busy.stats(), text_of(busy, PROCESS).decode()
    found = {key: value for key, value in parsed(text).items() if key[0].startswith(OF_STATS)}
    assert found == expected_of(stats)
    elements = {each["name"]: each for engine in stats["engines"] for each in engine["elements"]}
    assert elements["a.rx"]["packets"] == 24  # a source's packets: those that it received
    assert elements["a.egress.kinds"]["hits"] == [20, 3]
    assert elements["a.parse"]["dropped"]["runt"] == 1
    assert elements["a.egress.rate"]["dropped"]["queue_full"] > 0 < elements["a.egress.rate"]["counters"]["delayed"]
    assert elements["a.egress.rate"]["queue_limit_bytes"] == 25_000


def test_a_nic_counts_packets_and_bytes_on_a_wire_beside_the_kernel_s(busy):
    """A GSO frame is one packet with one set of headers, and as many as it has segments on a wire:
    66 bytes of headers each."""
    a = busy.stats("a")["nics"][0]["queues"][0]
    udp, tcp = 14 + 20 + 8 + 900, 14 + 20 + 20
    assert (a["rx_packets"], a["rx_wire_packets"]) == (24, 21 + 3 * 20)
    assert (a["rx_bytes"], a["rx_wire_bytes"]) == (20 * udp + 5 + 3 * (tcp + 20 * 1448), 20 * udp + 5 + 60 * (tcp + 1448))
    seen = next(each for each in busy.stats("a")["engines"][0]["elements"] if each["name"] == "a.egress.seen")
    assert seen["counters"]["wire_bytes"] == a["rx_wire_bytes"] - 5
    b = busy.stats("b")["nics"][0]["queues"][0]
    sent = next(each for each in busy.stats("b")["engines"][0]["elements"] if each["name"] == "b.ingress.rate")["counters"]
    # segmented before this port, which has no TSO
    assert b["tx_wire_bytes"] == b["tx_bytes"] == sent["sent_bytes"]


SHAPED = """
version: 1
links:
  a -> any: {rate: 2mbit, queue: {packets: 5}, delay: 5ms, loss: 10%, duplicate: 20%, corrupt: 30%, reorder: 10%}
  a -> b: {delay: {mean: 20ms, jitter: 5ms}}
  b -> any: {rate: 3mbit}
"""


def test_lines_of_the_policy_by_name():
    """Every number of a line is its elements' in `stats`."""
    with VirtualNetwork(NETWORK.replace("egress:", "mac: '02:00:00:00:00:0a'\n    egress:", 1)) as net:
        runtime = net._runtime
        assert not [
            name for name, _ in parsed(text_of(runtime, PROCESS).decode()) if "_line_" in name and "vnic_link" not in name
        ]
        net.shape(SHAPED)
        for number in range(40):
            net.send("a", bytes.fromhex("ffffffffffff02000000000a88b5") + bytes(186), at=net.now_ns + number * 300_000)
        net.run()
        stats = {each["name"]: each for engine in runtime.stats()["engines"] for each in engine["elements"]}
        found = parsed(text_of(runtime, PROCESS).decode())
        lines = {(name, labels): value for (name, labels), value in found.items() if name.startswith("vnic_line_")}
    link, shape = stats["a.egress.shape-line"], stats["a.egress.shape"]
    pair, other = stats["b.ingress.shape-pairs.shape-from-a"], stats["b.egress.shape-line"]
    expected = {}

    def put(name, value, line, **labels):
        expected[f"vnic_line_{name}", tuple(sorted({**labels, "line": line}.items()))] = value

    for line, queued, impaired, rate in (
        ("a -> any", link, shape, 2e6),
        ("a -> b", None, pair, None),
        ("b -> any", other, None, 3e6),
    ):
        last = (impaired or queued)["counters"]
        put("packets_total", last["delivered_packets"], line)
        put("bytes_total", last["delivered_bytes"], line)
        if queued:
            put("rate_bps", rate, line)
            put("sent_bytes_total", queued["counters"]["sent_bytes"], line)
            put("queue_seconds_sum", queued["counters"]["sojourn_ns"] / 1e9, line)
            put("queue_seconds_count", queued["counters"]["passed"] + queued["counters"]["delayed"], line)
        if impaired:
            for counter in ("lost", "duplicated", "corrupted", "reordered"):
                put(f"{counter}_packets_total", impaired["counters"][counter], line)
            put("delay_seconds_sum", impaired["counters"]["delay_ns"] / 1e9, line)
            put("delay_seconds_count", impaired["counters"]["delayed"], line)
        reasons = {reason for element in (queued, impaired) if element for reason in element["dropped"]} - {"loss"}
        for reason in reasons:
            drops = sum(element["dropped"].get(reason, 0) for element in (queued, impaired) if element)
            put("dropped_packets_total", drops, line, reason=reason)
    assert lines == expected
    assert found["vnic_line_dropped_packets_total", (("line", "a -> any"), ("reason", "queue_full"))] > 0
    for counter in ("lost", "duplicated", "corrupted", "reordered"):
        assert found[f"vnic_line_{counter}_packets_total", (("line", "a -> any"),)] > 0
    assert found["vnic_line_delay_seconds_sum", (("line", "a -> b"),)] > 0


def test_metrics_of_the_process_and_of_limits(busy):
    found = parsed(text_of(busy, PROCESS).decode())
    (build,) = (key for key in found if key[0] == "vnic_build_info")
    assert found[build] == 1 and ("version", "9.9") in build[1]
    assert found["vnic_worker_restarts_total", ()] == 3
    way = (("direction", "egress"), ("nic", "a"))
    assert found["vnic_nic_rate_limit_bps", way] == 10_000_000 and found["vnic_nic_queue_limit_bytes", way] == 25_000


def test_metrics_as_json_are_the_same_samples(busy):
    families = families_of(busy, PROCESS)
    found = {
        (sample["name"], tuple(sorted(sample["labels"].items()))): sample["value"]
        for family in families
        for sample in family["samples"]
    }
    assert json.loads(json.dumps(families)) == families
    moving = ("vnic_nic_cpu", "vnic_engine")  # control's own work takes CPU time
    assert {key: value for key, value in found.items() if not key[0].startswith(moving)} == {
        key: value for key, value in parsed(text_of(busy, PROCESS).decode()).items() if not key[0].startswith(moving)
    }


def test_names_units_and_types_are_those_of_prometheus(busy):
    text = text_of(busy, PROCESS)
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation.endswith("."), family.name
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert all(name.endswith("_total") for name in names), family.name
        assert not any(name.endswith(("_ns", "_ms")) for name in names), family.name
    if promtool := shutil.which("promtool"):
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_dashboard_and_the_page_name_metrics_and_labels_that_are_there(busy):
    text = text_of(busy, PROCESS).decode()
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    there |= {f"{name}_{part}" for name in there for part in ("sum", "count")}
    # instance: Prometheus' own
    labels = {name for key in parsed(text) for name, _ in key[1]} | {"instance"}
    board = json.loads((TREE / "examples/grafana/vnic.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    assert len(queries) > 15
    for query in queries:
        assert set(re.findall(r"\bvnic_\w+", query)) <= there, query
        assert set(re.findall(r"(\w+)=~?\"", query)) <= labels, query
    page = (TREE / "docs/metrics.md").read_text()
    assert set(re.findall(r"\bvnic_\w+", page)) <= there
    named = {name.replace("transmit", "receive") for name in re.findall(r"\bvnic_\w+", page)}
    missing = {name for name in there if name.startswith("vnic_") and not name.endswith(("_sum", "_count"))} - named
    summaries = {"vnic_shaper_delay_seconds", "vnic_line_delay_seconds", "vnic_line_queue_seconds"}
    assert {name for name in missing if "transmit" not in name} <= {*summaries, *SHORTENED}


SHORTENED = {  # on the page: ..._bytes_total
    "vnic_nic_receive_bytes_total", "vnic_nic_receive_wire_bytes_total",
    "vnic_shaper_delayed_packets_total", "vnic_shaper_split_packets_total",
}  # fmt: skip


@pytest.fixture
def port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_metrics_say_what_stats_say(environment, tmp_path, leak_check, port):  # noqa: F811
    with Container() as a, Container() as b:
        file = tmp_path / "net.yaml"
        config = json.loads(open(write_config(file, a=a, b=b)).read())
        file.write_text(json.dumps({**config, "metrics": {"listen": f"127.0.0.1:{port}"}}))
        vnic(environment, "up", "-d", str(file))
        try:
            ping(a, "10.99.0.2", count=5)
            vnic(environment, "link", "b", "down")  # no more traffic
            vnic(environment, "rate", "a", "--egress", "3mbit")
            # The container sends packets of its own, so each reading is between those before and
            # after.
            first = json.loads(vnic(environment, "stats", "--json"))
            over_http, by_command = parsed(get(port)), parsed(vnic(environment, "metrics"))
            last = json.loads(vnic(environment, "stats", "--json"))
            counted = {key for key in over_http if key[0].endswith("_total")}
            assert over_http.keys() == by_command.keys() and len(counted) > 50
            assert not {key for key in counted if over_http[key] > by_command[key]}
            for before, after in zip(first["nics"], last["nics"], strict=True):
                labels = (("nic", before["name"]), ("queue", "0"))
                for metric, key in (
                    ("vnic_nic_receive_packets_total", "rx_packets"),
                    ("vnic_nic_transmit_bytes_total", "tx_bytes"),
                ):
                    assert 0 < before["queues"][0][key] <= over_http[metric, labels] <= after["queues"][0][key]
            assert over_http["vnic_nic_link_up", (("nic", "b"),)] == 0
            assert over_http["vnic_nic_rate_limit_bps", (("direction", "egress"), ("nic", "a"))] == 3_000_000
            assert over_http["vnic_conserved", ()] == 1
            vnic(environment, "upgrade")
            after = parsed(get(port))
            counters = {
                key for key in over_http if key[0].endswith("_total") and "sleeps" not in key[0] and "overruns" not in key[0]
            }
            assert not {key for key in counters if after[key] < over_http[key]}
        finally:
            vnic(environment, "down")


def test_what_is_another_s_is_left_alone(environment, tmp_path, leak_check, port):  # noqa: F811
    """A file at the socket's path; the port of another instance."""
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "file.yaml").write_text(json.dumps({"metrics": {"socket": str(tmp_path / "notes")}}))
    assert "already in use; choose another place" in vnic(environment, "up", "-d", str(tmp_path / "file.yaml"), status=1)
    assert (tmp_path / "notes").read_text() == "mine"
    (tmp_path / "net.yaml").write_text(json.dumps({"metrics": {"listen": f"127.0.0.1:{port}"}}))
    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        said = vnic(environment, "up", "-d", "--instance", "two", str(tmp_path / "net.yaml"), status=1)
        assert f"127.0.0.1:{port}" in said and "choose another place" in said
    finally:
        vnic(environment, "down")


def test_what_is_no_request_hurts_nobody(environment, tmp_path, leak_check, port):  # noqa: F811
    (tmp_path / "net.yaml").write_text(json.dumps({"metrics": {"listen": f"127.0.0.1:{port}"}}))
    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        with socket.create_connection(("127.0.0.1", port)) as slow, socket.create_connection(("127.0.0.1", port)) as huge:
            slow.sendall(b"GET /met")
            huge.settimeout(60)
            with pytest.raises((ConnectionResetError, BrokenPipeError, AssertionError)):
                for _ in range(1000):
                    huge.sendall(b"x" * 65536)
                assert huge.recv(1)
            assert "vnic_conserved 1.0" in get(port)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(port, "/")
            slow.settimeout(90)
            assert slow.recv(1) == b""  # disconnected
    finally:
        vnic(environment, "down")


def test_a_flood_of_connections_keeps_nobody_out(environment, tmp_path, leak_check, port):  # noqa: F811
    """Idle connections are closed for new ones; the worker does not run out of descriptors, and the
    API answers."""
    (tmp_path / "net.yaml").write_text(json.dumps({"metrics": {"listen": f"127.0.0.1:{port}"}}))
    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        worker = json.loads(vnic(environment, "status", "--json"))["pid"]
        before = len(os.listdir(f"/proc/{worker}/fd"))
        with contextlib.ExitStack() as closing:
            silent = [closing.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(300)]
            assert "vnic_conserved 1.0" in get(port)  # the newest client is served at once
            assert len(os.listdir(f"/proc/{worker}/fd")) <= before + CONNECTIONS_MOST
            for sock in silent:
                sock.setblocking(False)
            assert sum(hung_up(sock) for sock in silent) >= len(silent) - CONNECTIONS_MOST
            assert json.loads(vnic(environment, "status", "--json"))["pid"] == worker
    finally:
        vnic(environment, "down")


def hung_up(sock):
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_flood_of_requests_asks_the_engines_seldom(environment, tmp_path, leak_check, port):  # noqa: F811
    """Simultaneous requests get the same text."""
    (tmp_path / "net.yaml").write_text(json.dumps({"engines": 4, "metrics": {"listen": f"127.0.0.1:{port}"}}))
    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        texts = []
        for _ in range(20):
            with contextlib.ExitStack() as closing:
                asking = [closing.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CONNECTIONS_MOST)]
                for sock in asking:
                    sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                for sock in asking:
                    with sock.makefile("rb") as answer:
                        texts.append(answer.read())
        assert all(text.startswith(b"HTTP/1.1 200 OK\r\n") for text in texts)
        assert len(set(texts)) <= len(texts) // 4  # each new text has other CPU times
    finally:
        vnic(environment, "down")


def test_by_a_unix_socket(environment, tmp_path, leak_check):  # noqa: F811
    (tmp_path / "net.yaml").write_text(json.dumps({"metrics": {"socket": str(tmp_path / "metrics.sock")}}))
    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "metrics.sock"))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while data := client.recv(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"\nvnic_conserved 1.0\n" in answer
    finally:
        vnic(environment, "down")

"""Metrics: the same figures as `vnic stats`, over HTTP too, through an upgrade, and bounded."""

import contextlib
import json
import os
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.containers import Container
from tests.test_command import environment, ping, vnic, write_config  # noqa: F401 - a fixture
from vnic.control.metrics import CONNECTIONS_MOST


def parsed(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def get(port, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


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
            vnic(environment, "link", "b", "down")  # nothing moves any more
            vnic(environment, "rate", "a", "--egress", "3mbit")
            # The container itself sends something now and then, so each reading lies between those before and after.
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
    """A file in the place of the socket; the port of another instance."""
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
            huge.settimeout(10)
            with pytest.raises((ConnectionResetError, BrokenPipeError, AssertionError)):
                for _ in range(1000):
                    huge.sendall(b"x" * 65536)
                assert huge.recv(1)
            assert "vnic_conserved 1.0" in get(port)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(port, "/")
            slow.settimeout(30)
            assert slow.recv(1) == b""  # given up
    finally:
        vnic(environment, "down")


def test_a_flood_of_connections_keeps_nobody_out(environment, tmp_path, leak_check, port):  # noqa: F811
    """Those that say nothing make room for those that ask; the worker's descriptors stay its own, and the API answers."""
    (tmp_path / "net.yaml").write_text(json.dumps({"metrics": {"listen": f"127.0.0.1:{port}"}}))
    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        worker = json.loads(vnic(environment, "status", "--json"))["pid"]
        before = len(os.listdir(f"/proc/{worker}/fd"))
        with contextlib.ExitStack() as closing:
            silent = [closing.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(300)]
            assert "vnic_conserved 1.0" in get(port)  # who comes last is served at once
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
    """Many who ask at once get the same text."""
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
        assert len(set(texts)) <= len(texts) // 4  # each that is made anew says other CPU times
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

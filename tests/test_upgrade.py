"""Transparent upgrade: nothing is lost, connections stay; a new worker that fails at any step has
no effect."""

import json
import os
import select
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import plain_user
from tests.support.containers import Container
from tests.test_command import VNIC, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import ECHO, TALK, conserved, inside, kill_worker, status
from vnic.api.client import Client

TREE = Path(__file__).parents[1]
# Frames written to a TAP wait in a queue of the writing CPU (netif_rx): when an engine continues on
# another CPU, as after any move by the scheduler, a packet may overtake those in the previous CPU's
# queue.
OVERTAKEN_MOST = 20

# Sends numbered datagrams, about 3,000 a second, until stdin closes; prints their number.
SEND = """
import select, socket, sys, time
sender, number = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0.0003)[0]:
    sender.sendto(b"%d" % number, ("10.99.0.2", 7001))
    number += 1
sender.sendto(b"-1", ("10.99.0.2", 7001))
print(number, flush=True)
"""

# Prints the numbers of datagrams received, reordered, and dropped by its own full socket, when it
# had no CPU time to read.
RECEIVE = """
import socket, struct
SO_MEMINFO, DROPS = 55, 8
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
receiver.bind(("10.99.0.2", 7001))
receiver.settimeout(90)
print("ready", flush=True)
seen, wrong, last = 0, 0, -1
while (number := int(receiver.recv(64))) >= 0:
    seen, wrong, last = seen + 1, wrong + (number <= last), number
print(seen, wrong, struct.unpack("9I", receiver.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[DROPS], flush=True)
"""


def an_engine_each(**boxes):
    """NICs of a configuration: one per container, by name, each on its own engine."""
    return {
        name: {"pid": box.pid, "interface": "eth0", "addresses": [f"10.99.0.{number + 1}/24"], "engine": number}
        for number, (name, box) in enumerate(boxes.items())
    }


@pytest.fixture
def two(request, environment, tmp_path, leak_check):  # noqa: F811
    """Containers a and b on two engines, a shaped; parameter: how long packets may wait for the
    shaper."""
    with Container() as a, Container() as b:
        nics = an_engine_each(a=a, b=b)
        nics["a"]["egress"] = {"rate": "50mbit", "queue": getattr(request, "param", "100ms"), "elements": ["Counter"]}
        (tmp_path / "net.yaml").write_text(json.dumps({"engines": 2, "nics": nics}))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            yield a, b
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")


def link_counts(box):
    """The container's counters of its interface: packets transmitted, and dropped."""
    words = box.run("cat", "/proc/net/dev").split("eth0:")[1].split()
    return int(words[9]), int(words[11])


class Traffic:
    """Datagrams and a TCP connection from a to b during a `with`; at its end, checks that nothing
    is missing.

    `lost`: datagrams that did not arrive. `refused`: packets, also TCP's, that the kernel dropped
    because the queue of a's interface was full, when an engine got no CPU for most of a second.
    """

    def __init__(self, a, b):
        self.a, self.refused = a, -link_counts(a)[1]
        self.receiver, self.server = inside(b, RECEIVE), inside(b, ECHO)
        assert self.receiver.stdout.readline() == "ready\n" and self.server.stdout.readline() == "ready\n"
        self.sender, self.client = inside(a, SEND), inside(a, TALK)
        assert self.sender.stdout.readline() == "begun\n" and self.client.stdout.readline() == "connected\n"

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.sent = int(self.sender.communicate("\n", timeout=120)[0])
        self.exchanged = self.client.communicate("\n", timeout=120)[0].split()
        seen, self.wrong, unread = map(int, self.receiver.communicate(timeout=160)[0].split())
        self.lost = self.sent - seen - unread
        self.refused += link_counts(self.a)[1]
        self.server.communicate(timeout=120)


def counters(env):
    """All counters, by name."""
    found = json.loads(vnic(env, "stats", "--json"))
    each = {
        (element["name"], key): value
        for engine in found["engines"]
        for element in engine["elements"]
        for key, value in {**element, **element["counters"], **element["dropped"]}.items()
        if isinstance(value, int) and key not in ("held", "queue_bytes")
    }
    queues = {(nic["name"], number, key): value for nic in found["nics"] for number, queue in enumerate(nic["queues"])
              for key, value in queue.items()}  # fmt: skip
    return each | queues


def entries(env):
    return {(entry["mac"], entry["nic"]) for entry in status(env)["switch"]["entries"]}


def test_changes_wait_for_the_end_of_an_upgrade(environment, two, monkeypatch):  # noqa: F811
    """Changes requested while the successor is built are answered once it runs, with their
    descriptors and in order."""
    a, _ = two
    monkeypatch.setenv("VNIC_RUNTIME_DIR", environment["VNIC_RUNTIME_DIR"])
    supervisor = status(environment)["supervisor"]["pid"]
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    before = len(children.read_text().split())
    with Container() as c, Client() as rates, Client() as attaches, open(c.netns_path) as netns:
        old = rates.call("Status")["status"]["pid"]
        upgrade = subprocess.Popen([*VNIC, "upgrade"], env=environment, cwd=TREE, stdout=subprocess.DEVNULL)
        while len(children.read_text().split()) == before:
            pass
        for rate in (b"1mbit", b"2mbit"):
            rates._socket.sendall(b'{"method":"org.vnic.Control.SetRate","parameters":{"name":"b","egress":"%s"}}\0' % rate)
        nic = attaches.call("Attach", passing=[netns.fileno()], name="c", nic={"addresses": ["10.99.0.3/24"]}, netns=0)["nic"]
        replies = [json.loads(rates._message())["parameters"]["nic"]["egress_bps"] for _ in range(2)]
        assert upgrade.wait(60) == 0
        assert replies == [1_000_000, 2_000_000] and nic["name"] == "c"
        assert rates.call("Status")["status"]["pid"] == attaches.call("Status")["status"]["pid"] != old
        ping(a, "10.99.0.3")


def test_an_instance_that_is_ended_during_an_upgrade_ends(environment, two):  # noqa: F811
    supervisor = status(environment)["supervisor"]["pid"]
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    before = len(children.read_text().split())
    upgrade = subprocess.Popen([*VNIC, "upgrade"], env=environment, cwd=TREE, stderr=subprocess.DEVNULL)
    while len(children.read_text().split()) == before:
        pass
    vnic(environment, "down")
    assert upgrade.wait(60) in (0, 1)
    assert "does not run" in vnic(environment, "status", status=1)
    assert [box.interfaces() for box in two] == [[], []]


def test_nobody_notices(environment, two):  # noqa: F811
    a, b = two
    ping(a, "10.99.0.2")
    learned = entries(environment)
    assert len(learned) == 2
    with Traffic(a, b) as traffic:
        for _ in range(4):
            before, counted = status(environment), counters(environment)
            report = json.loads(vnic(environment, "upgrade", "--json"))
            after, counted_then = status(environment), counters(environment)
            assert report["worker"] == {"before": before["pid"], "after": after["pid"]} and before["pid"] != after["pid"]
            assert [each["name"] for each in report["engines"]] == ["e0", "e1"]
            assert report["packets_lost"] == 0 and report["queue_drops"] == {"a": 0, "b": 0}
            assert 0 < report["blackout_ms"] < 1000 and report["brownout_ms"] > report["blackout_ms"]
            assert not {
                key: (value, counted_then.get(key)) for key, value in counted.items() if counted_then.get(key, -1) < value
            }
            assert entries(environment) == learned
            assert after["supervisor"]["restarts"] == 0
    assert 0 <= traffic.lost <= traffic.refused and traffic.sent > 1000 and traffic.wrong <= OVERTAKEN_MOST
    assert int(traffic.exchanged[0]) > 100
    assert status(environment)["conserved"]


@pytest.mark.parametrize("two", ["10s"], indirect=True)
def test_packets_in_a_shaper_come_along(environment, two):  # noqa: F811
    a, b = two
    ping(a, "10.99.0.2")
    # packets wait 10 s: longer than a slow upgrade takes
    vnic(environment, "rate", "a", "--egress", "5kbit")
    receiver = inside(b, RECEIVE)
    assert receiver.stdout.readline() == "ready\n"
    a.python("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
             "for n in [*range(100), -1]: s.sendto(b'%d' % n, ('10.99.0.2', 7001))")  # fmt: skip
    report = json.loads(vnic(environment, "upgrade", "--json"))
    assert sum(each["packets_moved"] for each in report["engines"]) > 10
    vnic(environment, "rate", "a", "--egress", "10mbit")
    assert receiver.communicate(timeout=120)[0].split() == ["100", "0", "0"]
    assert status(environment)["conserved"]


def test_what_was_changed_live_comes_along(environment, two):  # noqa: F811
    with Container() as c:
        vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--address", "10.99.0.3/24")
        vnic(environment, "rate", "a", "--egress", "none", "--ingress", "7mbit")
        vnic(environment, "link", "b", "down")
        vnic(environment, "group", "default", "--mode", "compacting")
        ping(c, "10.99.0.1")
        kept = ("name", "number", "engine", "mac", "link", "egress_bps", "ingress_bps")
        before = [[nic[key] for key in kept] for nic in status(environment)["nics"]]
        vnic(environment, "upgrade")
        assert [[nic[key] for key in kept] for nic in status(environment)["nics"]] == before
        ping(c, "10.99.0.1")
        # A worker that ends after an upgrade is replaced from the same stored state.
        kill_worker(environment)
        assert [[nic[key] for key in kept] for nic in status(environment)["nics"]] == before
        ping(c, "10.99.0.1")
        vnic(environment, "detach", "c")
        assert c.interfaces() == [] and status(environment)["conserved"]


def test_after_nics_have_gone(environment, two):  # noqa: F811
    """In any order: the switch of a new worker has no gates for them, and the old one's elements
    behind the gates are not needed."""

    def attach(box, name, address):
        vnic(environment, "attach", "tap", name, "--pid", str(box.pid), "--interface", "eth1", "--address", f"{address}/24")

    def detach_and_upgrade(*names):
        for name in names:
            vnic(environment, "detach", name)
            vnic(environment, "upgrade")

    a, b = two
    attach(a, "c", "10.98.0.1")
    ping(a, "10.99.0.2")
    detach_and_upgrade("c")  # the last one
    attach(a, "c", "10.98.0.1")
    detach_and_upgrade("b", "c")  # one in the middle; then also the next one
    attach(b, "b", "10.99.0.2")
    detach_and_upgrade("a")  # the first one
    assert [nic["name"] for nic in status(environment)["nics"]] == ["b"]
    detach_and_upgrade("b")  # no NIC is left
    attach(a, "a", "10.99.0.1")
    attach(b, "b", "10.99.0.2")
    ping(a, "10.99.0.2")
    assert status(environment)["conserved"]


def test_clients_stay_connected(environment, two, monkeypatch, tmp_path):  # noqa: F811
    """An idle one, one in the middle of a request, one that receives events: no connection is
    closed."""
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path))
    request = b'{"method":"org.vnic.Control.Status"}\0'
    with Client() as idle, Client() as halfway, Client() as listener, Client() as watcher:
        assert idle.call("Status")["status"]["pid"] == (before := status(environment)["pid"])
        halfway._socket.sendall(request[:10])
        events, watched = listener.stream("Monitor"), watcher.stream("WatchStats", interval_ms=50)
        next(watched)
        vnic(environment, "rate", "b", "--egress", "10mbit")
        assert next(events)["event"].items() >= {"event": "rate", "nic": "b", "egress_bps": 10_000_000}.items()
        vnic(environment, "upgrade")
        after = idle.call("Status")["status"]["pid"]
        assert after != before
        halfway._socket.sendall(request[10:])
        assert json.loads(halfway._message())["parameters"]["status"]["pid"] == after
        assert next(events)["event"].items() >= {"event": "worker", "pid": after, "role": "successor"}.items()
        vnic(environment, "link", "a", "down")
        assert next(events)["event"].items() >= {"event": "link", "nic": "a", "link": "down"}.items()
        for _ in range(5):
            assert next(watched)["stats"]["nics"]


def test_monitor(environment, two):  # noqa: F811
    monitor = subprocess.Popen([*VNIC, "monitor", "--json"], env=environment, cwd=TREE, stdout=subprocess.PIPE, text=True)
    try:
        while not (status(environment)["nics"] and monitor.poll() is None and _listens(environment, monitor)):
            pass
        vnic(environment, "rate", "a", "--egress", "1mbit")
        seen = []
        # Drops before the subscription are no event.
        while not any(event.get("element") == "a.egress.rate" and event["packets"] > 10 for event in seen):
            two[0].python("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
                          "for _ in range(1000): s.sendto(bytes(1000), ('10.99.0.2', 9))")  # fmt: skip
            while select.select([monitor.stdout], [], [], 0.5)[0]:
                seen.append(json.loads(monitor.stdout.readline()))
        assert any({"event": "rate", "nic": "a", "egress_bps": 1_000_000}.items() <= event.items() for event in seen)
    finally:
        monitor.terminate()
        monitor.communicate()


def _listens(env, monitor):
    """Whether the monitor has its first event; causes events until it has."""
    vnic(env, "rate", "b", "--egress", "none")
    return bool(select.select([monitor.stdout], [], [], 0.2)[0])


def test_an_upgrade_to_nothing(environment, two, tmp_path):  # noqa: F811
    (tmp_path / "no-python").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "no-python").chmod(0o755)
    assert "exit status 3" in vnic(environment, "upgrade", "--python", str(tmp_path / "no-python"), status=1)
    assert "does not exist" in vnic(environment, "upgrade", "--python", str(tmp_path / "nothing"), status=2)
    ping(two[0], "10.99.0.2")
    assert os.path.exists(f"/proc/{status(environment)['pid']}")


@pytest.mark.again
@pytest.mark.root
@pytest.mark.timeout(960)
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_upgrade.py", timeout_s=880)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout

"""`vnic.Network`: the same tests in virtual time and on real containers; nothing is left behind."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import wrpcap

import vnic
from dataplane.ports.memory import Frame
from tests.support.containers import IS_ROOT
from tests.test_replay import A, B, C, frame
from tests.test_testing import pytest_in
from vnic.testing import Network, VirtualNetwork

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.commands
MAC_A, MAC_B, MAC_C = (each.hex(":") for each in (A, B, C))
PAIR = f'{{a: {{mac: "{MAC_A}"}}, b: {{mac: "{MAC_B}"}}}}'
SHAPED = f'nics: {{a: {{mac: "{MAC_A}", egress: {{rate: 50kbit, queue: 1s}}}}, b: {{mac: "{MAC_B}"}}}}'
LATE = "90ms"  # what a busy machine may add to a time


@pytest.fixture(autouse=True)
def _possible(make_container, tmp_path, monkeypatch):
    """Skips where there can be no containers; the instances have a directory of their own."""
    make_container().close()
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path / "run"))
    yield
    assert list((tmp_path / "run").iterdir()) == []


@pytest.fixture(params=[False, True], ids=["virtual", "live"])
def network(request, vnic_network):
    """Makes a network of each kind."""
    return lambda config: vnic_network(config, live=request.param)


# -- the same tests, both ways --------------------------------------------------------------------


def test_a_packet_arrives_unchanged(network):
    net = network(f"nics: {PAIR}")
    packets = [frame(B, A, size, n) for n, size in enumerate((60, 61, 500, 1514))]
    net.send("a", packets)
    assert net.received("b") == [], "nothing is sent before time passes"
    net.run()
    net.assert_received("b", packets)
    assert net.received("a") == net.received("b") == [] and net.drops() == {}
    net.send("b", frame(A, B), at=net.now_ns + 10**6)
    net.run()
    net.assert_received("a", frame(A, B))
    net.send("a", frame(A, A))
    net.run()
    assert net.drops() == {"switch: hairpin": 1}


def test_a_shaper_keeps_its_rate(network):
    net = network(SHAPED)
    net.send("a", [frame(B, A, 1250, n) for n in range(4)], at="10ms")
    net.run()
    tolerance = LATE if net.live else 0
    got = net.received("b")
    gaps = [later.time_ns - sooner.time_ns for sooner, later in itertools.pairwise(got)]
    net.assert_received(
        "b", [frame(B, A, 1250, n) for n in range(4)], at=["10ms", "209750us", "409750us", "609750us"], tolerance=tolerance
    )
    assert sum(gaps) >= 599_000_000 or not net.live, gaps  # a real shaper is never faster, whatever the machine does
    assert net.now_ns >= 609_000_000


def test_promises_are_measured(network):
    """A rate, a delay and a loss: exact in virtual time, live as far as a busy machine goes."""
    net = network(f"nics: {PAIR}")
    net.send("b", frame(A, B))  # the switch knows b
    net.run()
    net.take("a")
    net.shape("version: 1\nseed: 3\nlinks: {a -> b: {rate: 1mbit, queue: 2s, delay: 50ms, loss: 20%}, b -> a: {delay: 50ms}}")
    net.send("a", [frame(B, A, 1250, n) for n in range(100)], at="10ms")
    net.send("b", [frame(A, B, 60, n) for n in range(20)], at="10ms", gap="5ms")
    net.run()
    net.assert_loss("a -> b", "20%")
    # the packets that are lost have had their time: 1 s for 100
    net.assert_rate("a -> b", "1mbit", within="40%")
    net.assert_delay("b -> a", mean="50ms", p50="50ms", most="50ms", within=LATE if net.live else None)
    assert min(net.measured("b -> a").delays_ns) >= 50_000_000
    with pytest.raises(AssertionError, match="a -> b: loss: asked 90%, measured .*\n  policy: a -> b: rate 1mbit, "):
        net.assert_loss("a -> b", "90%")
    net.shape(None)
    net.send("a", frame(B, A, 99))
    net.run()
    net.assert_delay("a -> b", mean=0, within=LATE if net.live else None)


def test_time_passes_in_advance_alone(network):
    net = network(SHAPED)
    net.send("a", [frame(B, A, 1250, n) for n in range(3)], at="1ms")
    net.advance("100ms")
    assert net.now_ns == 100_000_000
    net.assert_received("b", frame(B, A, 1250), at="1ms", tolerance=LATE if net.live else 0)
    net.advance("200ms")
    assert net.now_ns == 300_000_000
    net.assert_received("b", frame(B, A, 1250, 1), at="200750us", tolerance=LATE if net.live else 0)
    net.run()
    net.assert_received("b", frame(B, A, 1250, 2))
    with pytest.raises(vnic.ConfigError, match="send: 1ms is past; it is .* already"):
        net.send("a", frame(B, A), at="1ms")


def test_many_packets(network):
    net = network(f'nics: {{a: {{mac: "{MAC_A}", egress: {{rate: 1gbit, queue: 1s}}}}, b: {{mac: "{MAC_B}"}}}}')
    packets = [frame(B, A, 1250, n) for n in range(3000)]
    net.send("a", packets)
    net.run()
    net.assert_received("b", packets)


def test_a_full_queue_drops(network):
    net = network(f'nics: {{a: {{mac: "{MAC_A}", egress: {{rate: 1mbit, queue: 20ms}}}}, b: {{mac: "{MAC_B}"}}}}')
    net.send("a", [frame(B, A, 1250, n) for n in range(100)])
    net.run()
    got = net.take("b")
    assert [each.data for each in got] == [frame(B, A, 1250, n) for n in range(len(got))]
    assert 3 <= len(got) < 20 and net.drops() == {"a.egress.rate: queue_full": 100 - len(got)}


VLANS = f"""
nics:
  a: {{mac: "{MAC_A}", vlan: {{access: 10}}}}
  b: {{mac: "{MAC_B}", vlan: {{trunk: [10, 20], native: 20}}}}
  c: {{mac: "{MAC_C}", vlan: {{access: 20}}}}
"""


def tagged(vlan, packet):
    ether = Ether(packet)
    payload, ether.payload = ether.payload, Raw()
    return bytes(Ether(src=ether.src, dst=ether.dst) / Dot1Q(vlan=vlan) / payload)


def test_vlans(network):
    net = network(VLANS)
    everyone = b"\xff" * 6
    net.send("a", frame(everyone, A))
    net.run()
    net.assert_received("b", tagged(10, frame(everyone, A)))
    net.assert_received("c", [])
    net.send("b", [tagged(10, frame(A, B)), frame(C, B), tagged(30, frame(A, B, number=7))])
    net.run()
    net.assert_received("a", frame(A, B))
    net.assert_received("c", frame(C, B))
    assert net.drops() == {"switch: vlan_filtered": 1}


TWO_SWITCHES = f"""
nodes: {{lan: switch, dmz: switch}}
links: [{{link: lan -- dmz, rate: 200kbit}}]
nics:
  a: {{mac: "{MAC_A}", on: lan}}
  b: {{mac: "{MAC_B}", on: dmz}}
"""


def test_two_switches_and_apply(network):
    net = network(TWO_SWITCHES)
    net.send("a", [frame(B, A, 1250, n) for n in range(3)])
    net.run()
    net.assert_received(
        "b", [frame(B, A, 1250, n) for n in range(3)], at=[0, "49750us", "99750us"], tolerance=LATE if net.live else 0
    )
    assert net.apply(TWO_SWITCHES.replace("links: [{link: lan -- dmz, rate: 200kbit}]", "")) == ["remove link lan--dmz"]
    net.send("a", frame(B, A))
    net.run()
    net.assert_received("b", [])
    changes = net.apply(TWO_SWITCHES.replace("b: {mac", "b: {mtu: 1400, mac") + f'  c: {{mac: "{MAC_C}", on: lan}}\n')
    assert sorted(changes) == ["add link lan--dmz", "add nic c", "change nic b"]
    net.send("b", frame(A, B))
    net.send("c", frame(A, C, 61), at=net.now_ns + 10**6)
    net.run()
    net.assert_received("a", [frame(A, B), frame(A, C, 61)])
    net.send("a", [frame(B, A), frame(C, A)])
    net.run()
    net.assert_received("b", frame(B, A))
    net.assert_received("c", frame(C, A))
    before = net.config
    with pytest.raises(vnic.ConfigError):
        net.apply(TWO_SWITCHES.replace("on: dmz", "on: nowhere") + f'  d: {{mac: "{MAC_C}", on: lan}}\n')
    assert net.config is before
    net.apply(f'nodes: {{lan: switch, dmz: switch}}\nnics: {{a: {{mac: "{MAC_A}", on: lan}}}}')
    with pytest.raises(vnic.ConfigError, match="nic b: there is none; the configuration has a"):
        net.send("b", b"")


def test_captures(network, tmp_path, vnic_network):
    long = Ether(src=MAC_A, dst=MAC_B) / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="PA") / Raw(bytes(range(250)) * 20)
    wrpcap(str(tmp_path / "in.pcap"), [long, Ether(frame(B, A))])
    net = network(f"nics: {PAIR}")
    assert net.send_capture("a", tmp_path / "in.pcap") == 2
    net.run()
    *segments, last = net.received("b")
    assert [len(each.data) for each in segments] == [1514, 1514, 1514, 54 + 5000 - 3 * 1460] and last.data == frame(B, A)
    for each in segments:
        packet = each.packet
        assert packet[TCP].chksum == packet.__class__(bytes(packet.__class__(each.data)))[TCP].chksum
        fresh = packet.copy()
        del fresh[TCP].chksum, fresh[IP].chksum
        assert bytes(fresh) == each.data
    net.write(tmp_path / "out.pcapng")
    vnic_network.directory = tmp_path
    vnic_network.assert_golden(net, "out.pcapng")


def test_queues(network):
    net = network(f'nics: {{a: {{mac: "{MAC_A}"}}, b: {{mac: "{MAC_B}", queues: 4}}}}')
    packets = [
        bytes(Ether(src=MAC_A, dst=MAC_B) / IP(src=f"10.0.1.{n}", dst="10.0.0.2") / UDP(sport=n, dport=9) / Raw(bytes(40)))
        for n in range(64)
    ]
    net.send("a", packets, gap="1ms")
    net.run()
    queues = {each.data: each.queue for each in net.take("b")}
    with VirtualNetwork(net.config) as virtual:
        virtual.send("a", packets)
        virtual.run()
        assert queues == {each.data: each.queue for each in virtual.take("b")} and set(queues.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("wrong", "message"), [
    (60, "send: int is not a packet: expected bytes, a scapy packet, or several of them"),
    (IP(), "send: IP is no Ethernet frame; put Ether"),
])  # fmt: skip
def test_wrong_packets(network, wrong, message):
    net = network(f"nics: {PAIR}")
    with pytest.raises(vnic.ConfigError, match=message):
        net.send("a", wrong)
    with pytest.raises(vnic.ConfigError, match="nic x: there is none; the configuration has a, b"):
        net.received("x")


def test_a_wrong_configuration(network):
    with pytest.raises(vnic.ConfigError, match="switch 'x'"):
        network("nics: {a: {on: x}}")


# -- live alone -----------------------------------------------------------------------------------

ADDRESSES = "nics: {a: {kind: veth, addresses: [10.0.0.1/24]}, b: {addresses: [10.0.0.2/24, 'fd00::2/64']}}"


def test_programs():
    with Network(ADDRESSES) as net:
        assert "1 received" in net.exec("a", ["ping", "-c", "1", "-W", "20", "10.0.0.2"]).stdout
        assert net.now_ns > 0, "time passes while a program runs"
        assert {each.packet.getlayer(1).name for each in net.take("b")} == {"ARP", "IP"}
        assert net.exec("b", ["cat"], stdin="text").stdout == "text"
        with pytest.raises(vnic.VnicError, match=r"^nic a: nosuch: No such file or directory$"):
            net.exec("a", ["nosuch"])
        with pytest.raises(vnic.VnicError, match=r"^nic a: sh -c echo no >&2; exit 3: status 3: no$"):
            net.exec("a", ["sh", "-c", "echo no >&2; exit 3"])
        assert net.exec("a", ["false"], check=False).returncode == 1
        with pytest.raises(vnic.VnicError, match=r"^nic a: sleep 1000: did not end within 100ms$"):
            net.exec("a", ["sleep", "1000"], timeout="100ms")
        with pytest.raises(vnic.ConfigError, match="argv 'true': expected a program"):
            net.exec("a", "true")
        assert os.path.samefile(net.netns("a"), f"/proc/{net.pid('a')}/ns/net")
        assert net.client.call("Status")["status"]["conserved"]
        assert net.popen("a", ["sleep", "1000"]).poll() is None
    with pytest.raises(vnic.VnicError, match="the network is closed"):
        _ = net.client


def test_a_container_gets_ipv6():
    with Network(ADDRESSES) as net:
        assert "inet6" not in net.exec("a", ["ip", "address"]).stdout.replace("inet6 ::1", "")
        assert net.apply(ADDRESSES.replace("10.0.0.1/24", "'fd00::1/64'")) == ["change nic a"]
        assert "1 received" in net.exec("a", ["ping", "-c", "1", "-W", "20", "fd00::2"]).stdout


def test_frames_are_sent_while_a_program_runs():
    with Network(f"nics: {PAIR}") as net:
        net.send("a", [frame(B, A), frame(B, A, 61)], gap="50ms")
        net.exec("b", ["sleep", "0.3"])
        assert net.now_ns >= 200_000_000  # the clock runs from when the program has begun
        net.assert_received("b", [frame(B, A), frame(B, A, 61)], at=[0, "50ms"], tolerance=LATE)


def test_containers_of_ones_own(make_container):
    container = make_container()
    with Network(f'nics: {{a: {{pid: {container.pid}, mac: "{MAC_A}"}}, b: {{mac: "{MAC_B}"}}}}') as net:
        assert net.pid("a") == container.pid and container.interfaces() == ["a"]
        net.send("b", frame(A, B))
        net.run()
        assert frame(A, B) in [each.data for each in net.take("a")]
    assert container.interfaces() == []


def test_a_stalled_engine_costs_no_frames():
    with Network(f"nics: {PAIR}") as net:
        worker = net.client.call("Status")["status"]["pid"]
        packets = [frame(B, A, 60, n) for n in range(5000)]  # more than any queue holds
        net.send("a", packets)
        os.kill(worker, signal.SIGSTOP)
        waker = threading.Timer(0.3, os.kill, (worker, signal.SIGCONT))
        waker.start()
        try:
            net.run()
        finally:
            waker.join()
        net.assert_received("b", packets)


def test_frames_that_a_queue_dropped_are_named():
    with Network(f"nics: {PAIR}") as net:
        worker = net.client.call("Status")["status"]["pid"]
        packets = [frame(B, A, 60, n) for n in range(3000)]
        os.kill(worker, signal.SIGSTOP)
        while {task.read_text().rpartition(") ")[2][0] for task in Path(f"/proc/{worker}/task").glob("*/stat")} != {"T"}:
            pass  # a thread that has a CPU takes frames until it stops
        try:
            for each in packets:  # not by the network's own hand, which would wait
                net._stations["a"].send(Frame(each))
        finally:
            os.kill(worker, signal.SIGCONT)
        net.run()
        with pytest.raises(AssertionError, match="expected 3000\ndropped: a: \\d+ frames that found its queues full"):
            net.assert_received("b", packets)


def test_what_cannot_be_sent():
    with Network(f"nics: {PAIR}") as net:
        with pytest.raises(vnic.ConfigError, match="send: packet 2: 1515 bytes: nic a with MTU 1500 sends at most 1514"):
            net.send("a", [bytes(1514), bytes(1515)])
        with pytest.raises(vnic.ConfigError, match="send: packet 1: 13 bytes: shorter than an Ethernet header"):
            net.send("a", bytes(13))


def test_a_network_that_is_never_idle():
    with Network(f'nics: {{a: {{mac: "{MAC_A}", egress: {{rate: 8kbit, queue: 10s}}}}, b: {{mac: "{MAC_B}"}}}}') as net:
        net.send("a", [frame(B, A, 1250)] * 3)
        with pytest.raises(vnic.VnicError, match="the network is not idle after 100ms: engine e0 holds . packets"):
            net.run(timeout="100ms")


def test_a_worker_that_dies():
    with Network(f"nics: {PAIR}") as net:
        net.send("a", frame(B, A))
        net.run()
        worker = net.client.call("Status")["status"]["pid"]
        pidfd = os.pidfd_open(worker)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        with pytest.raises(vnic.VnicError, match="the daemon went away|connection lost"):
            while True:
                net.client.call("Status")
        net.run()
        assert net.client.call("Status")["status"]["supervisor"]["restarts"] == 1 and "worker ended" in net.log()
        net.send("a", [frame(B, A), frame(B, A, 61)])
        net.run()
        net.assert_received("b", [frame(B, A), frame(B, A), frame(B, A, 61)])


def test_what_has_no_room(monkeypatch):
    with Network(f"nics: {PAIR}") as net:
        monkeypatch.setattr("vnic.testing.station.STORED_MOST", 1000)
        net.send("a", [frame(B, A, 60, n) for n in range(100)])
        with pytest.raises(vnic.VnicError, match="nic b: there is no room for more received packets; take some, then go on"):
            net.run()
        monkeypatch.undo()
        net.run()
        net.assert_received("b", [frame(B, A, 60, n) for n in range(100)])
        net._stations["b"]._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        net.send("a", [frame(B, A, 60, n) for n in range(100)])
        net.run()
        with pytest.raises(vnic.VnicError, match=r"nic b: \d+ frames that arrived had no room; take what arrives more often"):
            net.assert_received("b", [])
        assert len(net.take("b")) < 100


def test_the_plugin(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "CONFIG = 'nics: {a: {}, b: {}}'\n"
        "def test_default(vnic_network): assert vnic_network(CONFIG).live == LIVE\n"
        "@pytest.mark.vnic_live\n"
        "def test_marked(vnic_network): assert vnic_network(CONFIG).live\n"
        "@pytest.mark.vnic_live(False)\n"
        "def test_virtual(vnic_network): assert not vnic_network(CONFIG, seed=3).live\n"
    )
    text = (tmp_path / "test_it.py").read_text()
    for live, arguments in ((False, []), (True, ["--vnic-live"])):
        (tmp_path / "test_it.py").write_text(text.replace("LIVE", str(live)))
        done = pytest_in(tmp_path, "--strict-markers", *arguments)
        assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout


# -- nothing is left behind -----------------------------------------------------------------------

# Says which processes there are, and waits.
PROGRAM = """
import os, sys, threading
import vnic
from vnic.testing import Network
net = Network("nics: {a: {}, b: {}}")
sleeping = net.popen("a", ["sh", "-c", "sleep 1000 & sleep 1000"])
status = net.client.call("Status")["status"]
guardian = net._guarded._process.pid
print(sleeping.pid, net.pid("a"), net.pid("b"), status["pid"], status["supervisor"]["pid"], guardian, flush=True)
sys.stdin.readline()
"""


class Child:
    """A process with a network, which `end` ends; then everything is gone."""

    def __init__(self, end: str, directory: Path) -> None:
        self.directory = directory
        command = [sys.executable, "-c", PROGRAM + end]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.pids = [int(each) for each in line.split()]
        self.pidfds = [os.pidfd_open(each) for each in self.pids]
        # Held open: the kernel would reuse the number of a namespace that is gone.
        self.held = [os.open(f"/proc/{each}/ns/net", os.O_RDONLY) for each in self.pids[1:3]]
        self.namespaces = {os.stat(each).st_ino for each in self.held}
        assert self.in_namespaces() and len(list(directory.iterdir())) == 2
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def in_namespaces(self) -> list[str]:
        """Processes in the containers."""
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{pid}/ns/net").st_ino in self.namespaces:
                    found.append(pid)
            except OSError:  # it has ended
                pass
        return found

    def check(self) -> None:
        """Waits until all processes have ended; then there is nothing left."""
        for pid, pidfd in zip(self.pids, self.pidfds, strict=True):
            assert vnic_readable(pidfd), f"process {pid} of {self.pids}"
            os.close(pidfd)
        assert self.in_namespaces() == []
        for each in self.held:
            os.close(each)
        assert list(self.directory.iterdir()) == []
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()


def vnic_readable(descriptor: int) -> bool:
    from dataplane.descriptors import readable

    return readable(descriptor, 60)


WAIT = "\nsys.stdin.read()\n"


@pytest.mark.parametrize(("end", "status"), [
    ("net.close(); net.close()", 0),
    ("with net: raise KeyError('mine')", 1),
    ("sys.exit(0)", 0),
    ("os._exit(3)", 3),
    ("net = sleeping = None", 0),
    ("if os.fork() == 0: net.close(); os._exit(0)\nos.wait(); assert net.client.call('Status'); net.close()", 0),
])  # fmt: skip
def test_nothing_is_left(end, status, tmp_path):
    child = Child(f"\n{end}\n", tmp_path / "run")
    assert child.process.wait(60) == status, child.process.stderr.read()
    assert status != 1 or "KeyError: 'mine'" in child.process.stderr.read()
    child.check()


def test_nothing_is_left_after_ctrl_c(tmp_path):
    child = Child(f"\nwith net: {WAIT.strip()}\n", tmp_path / "run")
    os.killpg(child.process.pid, signal.SIGINT)
    # Python does not notice a signal that comes just before it enters read(2): the end of the input ends the call.
    child.process.stdin.close()
    assert child.process.wait(60) == -signal.SIGINT
    assert "KeyboardInterrupt" in child.process.stderr.read()
    child.check()


@pytest.mark.parametrize("whom", ["test", "guardian", "supervisor"])
def test_nothing_is_left_after_sigkill(whom, tmp_path):
    child = Child(WAIT, tmp_path / "run")
    if whom == "test":
        child.process.kill()
    else:
        signal.pidfd_send_signal(child.pidfds[{"guardian": 5, "supervisor": 4}[whom]], signal.SIGKILL)
        assert vnic_readable(child.pidfds[4])
        child.process.stdin.close()
    child.process.wait(60)
    child.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_network_that_comes_up(number, tmp_path):
    command = [sys.executable, "-c", "import vnic; vnic.Network('nics: {a: {}, b: {}}'); print('up')"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    while not list((tmp_path / "run").iterdir()):  # the supervisor runs now
        assert process.poll() is None
    [guardian] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    children = Path(f"/proc/{guardian}/task/{guardian}/children").read_text().split()
    pidfds = [os.pidfd_open(int(each)) for each in (guardian, *children)]
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == -number and output == "" and ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    for pidfd in pidfds:
        assert vnic_readable(pidfd)
        os.close(pidfd)


def test_a_network_that_does_not_come_up():
    with Network("nics: {a: {}}", instance="mine"):
        with pytest.raises(vnic.ConfigError, match="instance mine runs already"):
            Network("nics: {a: {}}", instance="mine")
    with pytest.raises(vnic.ConfigError, match="instance 'a/b': expected a name"):
        Network("nics: {a: {}}", instance="a/b")
    with pytest.raises(vnic.ConfigError, match="pid 4194303: no such process") as refused:
        Network("nics: {a: {}, b: {pid: 4194303}}")
    assert refused.value.code == "invalid"


@pytest.mark.again
@pytest.mark.skipif(not IS_ROOT, reason="runs as the plain user already")
def test_as_plain_user(run_as_plain_user):
    run_as_plain_user(__file__)

"""Clients of other users: they get what `clients:` grants, see only their own NICs, and get errors
by name for the rest."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import plain_user
from tests.support.containers import Container
from tests.test_command import VNIC, ping, vnic
from tests.test_supervisor import kill_worker
from vnic.api.client import Client
from vnic.api.server import CLIENTS_OF_A_USER_MOST

ALICE, BOB, EVE = 54321, 54322, 54323  # unused user ids; the users need not exist
WHO = {ALICE: f"user uid {ALICE}", EVE: f"user uid {EVE}"}
pytestmark = [pytest.mark.root, pytest.mark.commands]  # only root can run commands as three users


class UsersContainer(Container):
    """A container that a user created, in the user's own user namespace."""

    def __init__(self, uid):
        self.uid, self.user_namespace = uid, True
        inside = "ip link set lo up && echo $$ && exec cat"
        self.process = subprocess.Popen(
            plain_user.command_line(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", inside], uid=uid),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._pid = int(self.process.stdout.readline())

    @property
    def pid(self):
        return self._pid

    def command(self, argv):
        return ["nsenter", "-t", str(self.pid), "-n", *argv]


class Net:
    """root's instance, with a NIC of root's, one that root attached for Alice, and two users who
    may attach their own."""

    def __init__(self, directory, web, made):
        self.directory = directory
        self.environment = {**os.environ, "VNIC_RUNTIME_DIR": str(directory)}
        nic = {"interface": "eth0", "vlan": {"access": 10}}
        config = {
            "groups": {"default": {}, "guests": {}},
            "engines": [{}, {}, {"group": "guests"}],
            "clients": {
                str(ALICE): {"nics": 2, "vlans": [10, 11], "rate": "100mbit", "queues": 2},
                str(BOB): {"group": "guests", "pool_percent": 10},
            },
            "nics": {
                "web": {**nic, "pid": web.pid, "addresses": ["10.97.0.1/24"]},
                "made": {**nic, "pid": made.pid, "addresses": ["10.97.0.2/24"], "owner": ALICE, "egress": {"rate": "1mbit"}},
            },
        }
        (directory / "net.yaml").write_text(json.dumps(config))
        vnic(self.environment, "up", "-d", str(directory / "net.yaml"))

    def as_user(self, uid, *words, status=0):
        """The command, run by a user: its output, or with another status its error."""
        command = plain_user.command_line([*VNIC, *words, "-i", str(self.directory / "default.sock")], uid=uid)
        environment = {key: value for key, value in self.environment.items() if key != "VNIC_RUNTIME_DIR"}
        done = subprocess.run(command, env=environment, cwd=plain_user.REPOSITORY, capture_output=True, text=True, timeout=240)
        assert done.returncode == status, done.stdout + done.stderr
        if status:
            assert done.stderr.startswith("vnic: error: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr if status else done.stdout

    def code(self, uid, code):
        """Runs Python code, with the client in `vnic`, as a user; returns its output, parsed as
        JSON."""
        program = (
            f"import json\nfrom vnic.api.client import Client\nvnic = Client({str(self.directory / 'default.sock')!r})\n{code}"
        )
        done = plain_user.run([sys.executable, "-c", program], uid=uid)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def net(leak_check, monkeypatch):
    # other users can access it, unlike pytest's directory
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(directory))
    try:
        with Container() as web, UsersContainer(ALICE) as made:
            running = Net(directory, web, made)
            running.web, running.made = web, made
            try:
                yield running
            finally:
                vnic(running.environment, "down")
                assert web.interfaces() == []
    finally:
        shutil.rmtree(directory)


def names(text):
    return [each["name"] for each in json.loads(text)["nics"]]


def test_a_user_s_own_nic(net):
    """Attached by a namespace of the user, within the grant; survives crash and upgrade, and is
    detached with its container."""
    with UsersContainer(ALICE) as box:
        net.as_user(ALICE, "attach", "tap", "box", "--pid", str(box.pid), "--interface", "eth0", "--address", "10.97.0.3/24")
        assert box.interfaces() == ["eth0"]
        ping(box, "10.97.0.1")
        seen = json.loads(net.as_user(ALICE, "status", "--json"))
        assert "pid" not in seen and "supervisor" not in seen  # only the owner sees the processes
        assert "worker" not in net.as_user(ALICE, "status")
        theirs = {each["name"]: each for each in seen["nics"]}
        assert set(theirs) == {"made", "box"}
        assert (
            theirs["box"]["egress_bps"] == theirs["box"]["ingress_bps"] == 100_000_000
        )  # the granted rate is the default, too
        assert theirs["box"]["owner"] == ALICE and theirs["box"]["pid"] == box.pid
        net.as_user(ALICE, "rate", "box", "--egress", "10mbit")
        net.as_user(ALICE, "link", "box", "down")
        assert "100% packet loss" in ping(box, "10.97.0.1", count=1, check=False)
        net.as_user(ALICE, "link", "box", "up")
        kill_worker(net.environment)
        # ARP requests sent while the link was down may be about to fail
        box.run("ip", "neighbour", "flush", "dev", "eth0")
        ping(box, "10.97.0.1")
        json.loads(vnic(net.environment, "upgrade", "--json"))
        ping(box, "10.97.0.1")
        assert {each["name"]: each["egress_bps"] for each in json.loads(vnic(net.environment, "status", "--json"))["nics"]} == {
            "web": 0, "made": 1_000_000, "box": 10_000_000,
        }  # fmt: skip
        capture = net.as_user(ALICE, "capture", "box", "-d", "0.2", "-w", "/dev/net/tmp/box.pcap", "--json")
        assert json.loads(capture)["missed"] == 0
    with Client() as owner:  # the NIC's process has ended
        while "box" in [each["name"] for each in owner.call("Status")["status"]["nics"]]:
            pass


def test_what_is_another_s_is_refused_by_name(net):
    with UsersContainer(BOB) as box:
        net.as_user(BOB, "attach", "tap", "bobs", "--pid", str(box.pid), "--interface", "eth0")
        for words in (["rate", "made", "--egress", "none"], ["link", "made", "down"], ["detach", "made"], ["stats", "made"],
                      ["capture", "made", "-w", "/dev/null"], ["capture", "made.rx", "-w", "/dev/null"]):  # fmt: skip
            says = net.as_user(BOB, *words, status=1)
            assert f"nic made: is not user uid {BOB}'s; only its owner and the instance's" in says
        assert names(net.as_user(BOB, "status", "--json")) == names(net.as_user(BOB, "stats", "--json")) == ["bobs"]
        stats = json.loads(net.as_user(BOB, "stats", "--json"))
        assert {element["name"].split(".")[0] for each in stats["engines"] for element in each["elements"]} == {"bobs"}
        assert {each["nic"] for each in json.loads(net.as_user(BOB, "accounts", "--json"))["accounts"]} == {"bobs"}
        history = net.code(BOB, 'print(json.dumps([each["name"] for each in vnic.call("History")["series"]]))')
        assert set(history) == {"bobs"}
        for words in (["graph"], ["metrics"], ["group", "default", "--mode", "compacting"], ["upgrade"], ["down"]):
            assert f"is for the instance's owner, not for user uid {BOB}" in net.as_user(BOB, *words, status=1)
        assert "attached: bobs" in net.as_user(BOB, "detach", "nobody", status=2)
        with UsersContainer(BOB) as other:
            assert "may be in no VLAN" in net.as_user(
                BOB, "attach", "tap", "x", "--pid", str(other.pid), "--vlan", "10", status=1
            )
            # With such a name, an element of Alice's NIC would be taken for one of his.
            for name in ("made.egress", "web.x"):
                attach = ["attach", "tap", name, "--pid", str(other.pid), "--interface", "eth0"]
                assert "begins like the name of another user's NIC" in net.as_user(BOB, *attach, status=2)
        # He gets no events of others' NICs.
        heard = net.code(BOB, """
events = vnic.stream("Monitor")
other = Client(vnic.instance)
for word in ("down", "up"):
    other.call("SetLink", name="bobs", up=word == "up")
print(json.dumps([next(events)["event"], next(events)["event"]]))
""")  # fmt: skip
        assert [(each["event"], each["nic"], each["link"]) for each in heard] == [
            ("link", "bobs", "down"),
            ("link", "bobs", "up"),
        ]
        vnic(net.environment, "detach", "bobs")  # the instance's owner may
        assert box.interfaces() == []


def test_what_a_user_was_granted_is_the_limit(net):
    with UsersContainer(ALICE) as box, UsersContainer(ALICE) as more, Container() as roots:
        attach = ["attach", "tap", "box", "--pid", str(box.pid), "--interface", "eth0"]
        assert "may be in VLANs 10, 11 only" in net.as_user(ALICE, *attach, "--vlan", "12", status=1)
        net.as_user(ALICE, *attach, "--vlan", "11", "--egress", "1gbit")
        status = json.loads(vnic(net.environment, "status", "--json"))
        assert {each["name"]: each["egress_bps"] for each in status["nics"]}["box"] == 100_000_000
        for rate in ("101mbit", "none"):
            assert "may have at most 100mbit" in net.as_user(ALICE, "rate", "box", "--egress", rate, status=1)
        assert "its rates are set by the instance's owner" in net.as_user(ALICE, "rate", "made", "--egress", "2mbit", status=1)
        assert "it was attached by the instance's owner" in net.as_user(ALICE, "detach", "made", status=1)
        says = net.as_user(ALICE, "attach", "tap", "third", "--pid", str(more.pid), status=1)
        assert "may have 2 NICs, and has them" in says
        net.as_user(ALICE, "detach", "box")
        # root's container: its namespace cannot be opened by pid; a namespace that can be opened is
        # not Alice's.
        assert "not permitted" in net.as_user(ALICE, "attach", "tap", "x", "--pid", str(roots.pid), status=2)
        path = net.directory / "netns"
        path.touch()
        subprocess.run(["mount", "--bind", roots.netns_path, str(path)], check=True)
        try:
            says = net.as_user(ALICE, "attach", "tap", "x", "--netns", str(path), status=1)
        finally:
            subprocess.run(["umount", str(path)], check=True)
        assert f"belongs to a user namespace that user uid {ALICE} did not make" in says
        for nic, error in [
            ({"pid": box.pid}, "passes the container's network namespace as a descriptor"),
            ({"egress": {"elements": ["Counter"]}}, "elements run inside vnic"),
            ({"owner": 0}, "leave owner out"),
            ({"kind": "capture", "read": "/etc/passwd"}, "a NIC of kind capture is in no container"),
        ]:
            says = net.code(ALICE, f"""
import os
fd = os.open("/proc/{box.pid}/ns/net", os.O_RDONLY)
passing = {{}} if "pid" in {nic!r} else {{"netns": 0}}
try:
    vnic.call("Attach", passing=[fd], name="x", nic={nic!r}, **passing)
except Exception as error:
    print(json.dumps(str(error)))
""")  # fmt: skip
            assert error in says
        says = net.code(ALICE, """
try:
    vnic.call("StartCapture", point="made", path="/tmp/made.pcap")
except Exception as error:
    print(json.dumps(str(error)))
""")  # fmt: skip
        assert "only the instance's owner has it write files" in says
        assert box.interfaces() == more.interfaces() == roots.interfaces() == []


SPEAK = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as s:
    s.bind((socket.if_nameindex()[-1][1], 0))
    mac = s.getsockname()[4] if len(sys.argv) < 3 else bytes.fromhex(sys.argv[2].replace(":", ""))
    for _ in range(10):
        s.send(b"\\xff" * 6 + mac + bytes.fromhex(sys.argv[1]) + bytes(46))
"""


def dropped(net, element):
    stats = json.loads(vnic(net.environment, "stats", "--json"))
    found = [each for engine in stats["engines"] for each in engine["elements"] if each["name"] == element]
    return {reason: sum(each["dropped"][reason] for each in found) for reason in found[0]["dropped"]}


def switch_ports(net):
    with Client() as owner:
        return {
            each["port"]: each for each in owner.call("ReadHandler", element="switch", handler="ports")["copies"][0]["value"]
        }


def test_who_was_granted_no_vlan_is_in_none(net):
    """Tags that the container adds do not lead into a VLAN, and it receives no frames of one,
    neither at first nor after an upgrade."""
    with UsersContainer(BOB) as box, UsersContainer(BOB) as other:
        net.as_user(BOB, "attach", "tap", "bobs", "--pid", str(box.pid), "--interface", "eth0", "--address", "10.97.0.7/24")
        vnic(net.environment, "attach", "tap", "roots", "--pid", str(other.pid), "--interface", "eth0", "--owner", str(BOB),
             "--address", "10.97.0.8/24")  # fmt: skip
        for _ in range(2):
            ping(box, "10.97.0.8")  # untagged, to a NIC without a VLAN
            before = dropped(net, "switch")["vlan_filtered"]
            box.run(sys.executable, "-c", SPEAK, "8100000a88b5")  # VLAN 10, where web is
            other.run(sys.executable, "-c", SPEAK, "88a8000a88b5")
            while dropped(net, "switch")["vlan_filtered"] < before + 20:
                pass
            status = json.loads(vnic(net.environment, "status", "--json"))
            assert {each["vlan"] for each in status["switch"]["entries"] if each["nic"] in ("bobs", "roots")} == {0}
            numbers = {each["name"]: each["number"] for each in status["nics"]}
            ports = switch_ports(net)
            assert all(ports[numbers[name]].get("untagged") for name in ("bobs", "roots"))
            assert ports[numbers["web"]]["access"] == 10
            json.loads(vnic(net.environment, "upgrade", "--json"))
        assert "100% packet loss" in ping(box, "10.97.0.1", count=1, check=False)
        # Other requests for a VLAN fail, too; a user with granted VLANs is in the first of them,
        # not in VLAN 0.
        for uid, vlan in ((BOB, {"trunk": [10]}), (ALICE, {"untagged": True}), (ALICE, {"trunk": [10, 12]})):
            says = net.code(uid, f"""
import os
fd = os.open("/proc/self/ns/net", os.O_RDONLY)
try:
    vnic.call("Attach", passing=[fd], name="x", nic={{"vlan": {vlan!r}}}, netns=0)
except Exception as error:
    print(json.dumps(str(error)))
""")  # fmt: skip
            assert "the instance's owner can grant more" in says


def test_a_user_s_nic_sends_from_its_own_address(net):
    with UsersContainer(ALICE) as box, UsersContainer(BOB) as other:
        attach = ["attach", "tap", "box", "--pid", str(box.pid), "--interface", "eth0"]
        assert "spoof_check may be switched off by the instance's owner only" in net.as_user(
            ALICE, *attach, "--no-spoof-check", status=1
        )
        net.as_user(ALICE, *attach, "--address", "10.97.0.3/24")
        status = {each["name"]: each for each in json.loads(vnic(net.environment, "status", "--json"))["nics"]}
        assert {name: each["spoof_check"] for name, each in status.items()} == {"web": False, "made": True, "box": True}
        victim = status["web"]["mac"]
        says = net.as_user(BOB, "attach", "tap", "x", "--pid", str(other.pid), "--mac", victim, status=2)
        assert f"mac: {victim} is that of another user's NIC" in says
        ping(box, "10.97.0.1")
        box.run(sys.executable, "-c", SPEAK, "88b5", victim)
        while dropped(net, "switch")["spoofed"] < 10:
            pass
        places = {
            each["mac"]: each["nic"] for each in json.loads(vnic(net.environment, "status", "--json"))["switch"]["entries"]
        }
        assert places[victim] == "web"
        assert f"is for the instance's owner, not for user uid {ALICE}" in net.as_user(
            ALICE, "link", "box", "--spoof-check", "off", status=1
        )
        vnic(net.environment, "link", "box", "--spoof-check", "off")
        for replaced in (False, True):  # the next worker keeps it
            if replaced:
                json.loads(vnic(net.environment, "upgrade", "--json"))
            before = dropped(net, "switch")["spoofed"]
            box.run(sys.executable, "-c", SPEAK, "88b5", "02:00:00:00:00:77")
            with Client() as owner:
                while "02:00:00:00:00:77" not in [each["mac"] for each in owner.call("Status")["status"]["switch"]["entries"]]:
                    pass
            assert dropped(net, "switch")["spoofed"] == before
            vnic(net.environment, "handler", "switch", "flush", "all")
        vnic(net.environment, "link", "web", "--spoof-check", "on")
        vnic(net.environment, "link", "web", "down")
        vnic(net.environment, "link", "web", "up")
        before = dropped(net, "switch")["spoofed"]
        net.web.run(sys.executable, "-c", SPEAK, "88b5", "02:00:00:00:00:77")
        while dropped(net, "switch")["spoofed"] < before + 10:
            pass


def test_where_a_user_s_nics_are_and_how_many_queues_they_have(net):
    more = "; the instance's owner can grant more under clients: in the configuration"
    with UsersContainer(BOB) as box, UsersContainer(BOB) as second, UsersContainer(ALICE) as other:
        attach = ["attach", "tap", "bobs", "--pid", str(box.pid), "--interface", "eth0"]
        for engine in ("e0", "1"):
            says = net.as_user(BOB, *attach, "--engine", engine, status=1)
            assert f"user uid {BOB} may be in engines of group guests only{more}" in says
        assert "engine 'e9' does not exist" in net.as_user(BOB, *attach, "--engine", "e9", status=2)
        assert f"user uid {BOB} may have 4 queues, not 5{more}" in net.as_user(BOB, *attach, "--queues", "5", status=1)
        theirs = ["attach", "tap", "others", "--pid", str(other.pid), "--interface", "eth0"]
        assert f"user uid {ALICE} may have 2 queues, not 3{more}" in net.as_user(ALICE, *theirs, "--queues", "3", status=1)
        net.as_user(ALICE, *theirs, "--engine", "e0", "--queues", "2")
        net.as_user(BOB, *attach, "--engine", "e2", "--queues", "4")
        # other engines are idle, but not for him
        net.as_user(BOB, "attach", "tap", "second", "--pid", str(second.pid))
        status = json.loads(vnic(net.environment, "status", "--json"))
        assert {each["name"]: each["engine"] for each in status["nics"]} == {
            "web": "e0", "made": "e1", "others": "e0", "bobs": "e2", "second": "e2",
        }  # fmt: skip
        net.as_user(BOB, "detach", "bobs")
        vnic(net.environment, "attach", "tap", "bobs", "--pid", str(box.pid), "--owner", str(BOB), "--engine", "e1")
        assert box.interfaces() == ["bobs"]  # the instance's owner may choose any engine


def test_one_user_s_packets_leave_room_for_others(net):
    """All of a user's NICs and shapers together hold the granted share of the pool; others are not
    affected."""
    with UsersContainer(BOB) as one, UsersContainer(BOB) as two:
        for name, box in (("one", one), ("two", two)):
            nic = {"pid": box.pid, "interface": "eth0", "addresses": ["10.98.0.1/24"]}
            # holds more than the share of the pool
            nic["egress"] = {"rate": "100kbit", "queue": "10s"}
            net.code(BOB, f"from vnic.cli.nics import attach_nic\nprint(json.dumps(attach_nic(vnic, {name!r}, {nic!r})))")
            box.run("ip", "neigh", "add", "10.98.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0")
        with Client() as owner, one.udp_socket() as first, two.udp_socket() as second:
            full = 0
            while full < 1000:
                for _ in range(200):
                    first.sendto(b"x", ("10.98.0.9", 9))
                    second.sendto(b"x", ("10.98.0.9", 9))
                elements = [each for engine in owner.call("Stats")["stats"]["engines"] for each in engine["elements"]]
                found = {each["name"]: each for each in elements}
                shapers = [found["one.egress.rate"], found["two.egress.rate"]]
                held = sum(each["held"] for each in shapers)
                full = min(each["dropped"]["queue_full"] for each in shapers)
                # a tenth of 16384, and one for each shaper in any case
                assert held <= 1638 + len(shapers)
            assert held > 1500
            memory = {each["nic"]: each["memory_bytes"] for each in owner.call("Accounts")["accounts"]["accounts"]}
            assert memory["one"] + memory["two"] > 1500 * 2048
        ping(net.web, "10.97.0.2")


def test_a_user_makes_so_many_changes_and_no_more(net):
    """The limit is per user, over all connections; the owner has none."""
    said = net.code(ALICE, """
said = []
while len(said) < 3:
    try:
        Client(vnic.instance).call("SetLink", name="made", up=True)
    except Exception as error:
        said.append(str(error))
print(json.dumps(said))
""")  # fmt: skip
    assert all(f"user uid {ALICE} may make 50 changes at once and 10 a second after that; try again" in each for each in said)
    with Client() as owner:
        for _ in range(100):
            owner.call("SetLink", name="made", up=True)


def test_a_stranger_is_refused_by_name(net):
    says = net.as_user(EVE, "status", status=1)
    assert f"user uid {EVE}: may not use this vnic; its owner can list the user under clients:" in says


def test_users_leave_room_for_others(net):
    """Connections, captures whose reader sleeps, a request sent byte by byte."""
    counted = net.code(BOB, f"""
import contextlib, socket
socks = []
for _ in range({CLIENTS_OF_A_USER_MOST} + 5):
    socks.append(socket.socket(socket.AF_UNIX))
    socks[-1].connect(vnic.instance)
answers = []
for sock in socks:
    with contextlib.suppress(BrokenPipeError):  # who is refused is told so at once
        sock.sendall(b'{{"method":"org.varlink.service.GetInfo"}}\\0')
    answers.append("connections already" in sock.recv(65536).decode())
print(json.dumps(answers))
""")  # fmt: skip
    assert counted.count(True) >= 5 and counted.count(False) >= CLIENTS_OF_A_USER_MOST - 1
    refused = net.code(ALICE, """
others = [Client(vnic.instance) for _ in range(5)]
said = []
for other in others:
    try:
        other.call("StartCapture", point="made")
    except Exception as error:
        said.append(str(error))
print(json.dumps(said))
""")  # fmt: skip
    assert len(refused) == 1 and f"user uid {ALICE} has 4 captures already" in refused[0]
    assert json.loads(vnic(net.environment, "status", "--json"))["conserved"]


def test_a_capture_that_nobody_reads_holds_up_nobody(net):
    """Its pipe is full and its reader asleep, or gone: NICs are detached and the worker is upgraded
    without waiting for it."""
    with UsersContainer(ALICE) as box:
        net.as_user(ALICE, "attach", "tap", "box", "--pid", str(box.pid), "--interface", "eth0", "--address", "10.97.0.3/24")
        asleep, gone = Client(), Client()
        for client in (asleep, gone):
            client.call("StartCapture", point="box")
        box.run("ping", "-f", "-c", "2000", "-s", "1400", "10.97.0.1")
        os.close(gone.descriptors[0])
        json.loads(vnic(net.environment, "upgrade", "--json"))
        ping(box, "10.97.0.1")
        net.as_user(ALICE, "detach", "box")
        assert names(vnic(net.environment, "status", "--json")) == ["web", "made"]
        os.close(asleep.descriptors[0])
        for client in (asleep, gone):
            client.close()


def test_without_clients_nobody_else_comes_near(leak_check, monkeypatch):
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o711)
    environment = {**os.environ, "VNIC_RUNTIME_DIR": str(directory)}
    try:
        (directory / "net.yaml").write_text("{}")
        vnic(environment, "up", "-d", str(directory / "net.yaml"))
        try:
            assert (directory / "default.sock").stat().st_mode & 0o777 == 0o600
            code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(directory / 'default.sock')!r})"
            done = plain_user.run([sys.executable, "-c", code], uid=EVE)
            assert "PermissionError" in done.stderr
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(directory / "default.sock"))
        finally:
            vnic(environment, "down")
    finally:
        shutil.rmtree(directory)

"""Containers on vnic: TAPs, the kernel's TCP, UDP and ICMP, tcpdump; hostile frames; changes under
traffic."""

import asyncio
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.support import plain_user
from tests.support.containers import IS_ROOT, Container
from tests.tools import need
from vnic.api.events import differences, observe
from vnic.config.convert import convert_config, convert_nic
from vnic.device.link import QUEUE_PACKETS
from vnic.runtime.runtime import Runtime

# Sends argv[3] datagrams of argv[4] bytes to argv[1]:argv[2].
SEND_UDP = """
import socket, sys
address, port, count, size = sys.argv[1], *map(int, sys.argv[2:])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
    for number in range(count):
        s.sendto(number.to_bytes(4, "big") + bytes(size - 4), (address, port))
"""
# Counts datagrams on argv[1]:argv[2] up to argv[3]; prints their number, order, and checksum state
# by the kernel.
COUNT_UDP = """
import socket, sys
address, port, count = sys.argv[1], *map(int, sys.argv[2:])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind((address, port))
    s.settimeout(60)
    print("ready", flush=True)
    numbers = [int.from_bytes(s.recv(65536)[:4], "big") for _ in range(count)]
print(len(numbers), numbers == sorted(numbers))
"""
# TCP: sends argv[3] bytes to argv[1]:argv[2] and prints their digest; or receives and prints the
# same.
SEND_TCP = """
import hashlib, random, socket, sys
data = random.Random(1).randbytes(int(sys.argv[3]))
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=120) as s:
    s.sendall(data)
print(hashlib.sha256(data).hexdigest())
"""
RECEIVE_TCP = """
import hashlib, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=family) as server:
    server.settimeout(60)
    print("ready", flush=True)
    digest = hashlib.sha256()
    with server.accept()[0] as s:
        while data := s.recv(1 << 20):
            digest.update(data)
print(digest.hexdigest())
"""
# Sends raw frames, hexadecimal, given as arguments.
SEND_RAW = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
    s.bind((sys.argv[1], 0))
    for frame in sys.argv[2:]:
        s.send(bytes.fromhex(frame))
"""
FLOOD_MACS = """
import os, socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
    s.bind((sys.argv[1], 0))
    for _ in range(int(sys.argv[2])):
        s.send(bytes(5) + b"\\x0a" + b"\\x02" + os.urandom(5) + b"\\x08\\x06" + bytes(46))
"""

# Writes the first argv[2] frames on interface argv[1] that contain the bytes argv[3] as a pcap file
# to argv[4]. tcpdump cannot capture in a plain user's container, since it changes its groups, which
# user namespaces of plain users forbid.
CAPTURE = """
import socket, struct, sys
SOL_PACKET, PACKET_AUXDATA, VLAN_VALID = 263, 8, 0x10
count, needle = int(sys.argv[2]), bytes.fromhex(sys.argv[3])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s, open(sys.argv[4], "wb") as file:
    s.bind((sys.argv[1], 3))
    s.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    s.settimeout(60)
    file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
    print("ready", flush=True)
    while count:
        data, messages, _, _ = s.recvmsg(65536, 256)
        for level, kind, aux in messages:
            status, _, _, _, _, tci, tpid = struct.unpack_from("=IIIHHHH", aux)
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA) and status & VLAN_VALID:
                data = data[:12] + struct.pack(">HH", tpid, tci) + data[12:]
        if needle in data:
            file.write(struct.pack("=IIII", 0, 0, len(data), len(data)) + data)
            count -= 1
"""

NAMES = ("a", "b", "c")
KIND = "tap"
V4 = {name: f"10.99.0.{number}" for number, name in enumerate(NAMES, 1)}
V6 = {name: f"fd99::{number}" for number, name in enumerate(NAMES, 1)}


def nic(container: Container, name: str, **more):
    return {"pid": container.pid, "interface": "eth0", "addresses": [f"{V4[name]}/24", f"{V6[name]}/64"], "kind": KIND, **more}


class Net:
    """Containers by name, and the runtime between them."""

    def __init__(self, stack: ExitStack, count: int, settings: dict, nics: dict):
        self.containers = {name: stack.enter_context(Container()) for name in NAMES[:count]}
        config = {"nics": {name: nic(box, name, **nics.get(name, {})) for name, box in self.containers.items()}, **settings}
        self.runtime = stack.enter_context(Runtime(convert_config(config)))
        self.runtime.start()

    def __getitem__(self, name: str) -> Container:
        return self.containers[name]

    def drops(self) -> dict[str, int]:
        """Drops by reason, of all elements."""
        total: dict[str, int] = {}
        for engine in self.runtime.stats()["engines"]:
            for element in engine["elements"]:
                for reason, count in element["dropped"].items():
                    total[reason] = total.get(reason, 0) + count
        return total

    def counters(self, element: str) -> dict[str, int]:
        """The counters of one element."""
        found = [e for engine in self.runtime.stats()["engines"] for e in engine["elements"] if e["name"] == element]
        return found[0]["counters"]


@pytest.fixture
def net():
    """Creates the test's net; afterwards checks that every packet is accounted for."""
    with ExitStack() as stack:
        made: list[Net] = []

        def make(count: int = 2, nics: dict | None = None, **settings) -> Net:
            made.append(Net(stack, count, settings, nics or {}))
            return made[-1]

        yield make
        for each in made:
            status = each.runtime.status()
            assert status["conserved"], status
            each.runtime.close()
            assert each.runtime.pool.in_use == 0


def transfer(net: Net, source: str, target: str, address: str, size: int = 30_000_000) -> None:
    """One TCP connection; compares the data received with the data sent."""
    receiver = net[target].popen([sys.executable, "-c", RECEIVE_TCP, address, "5001"])
    assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
    sent = net[source].python(SEND_TCP, address, "5001", str(size))
    received = receiver.communicate(timeout=120)[0]
    assert received == sent


def count_udp(net: Net, source: str, target: str, address: str, count: int, size: int, while_sending=None) -> str:
    # First resolves the address: datagrams that wait for it in the sender's kernel may be
    # reordered.
    net[source].run("ping", "-c", "1", "-W", "2", address)
    receiver = net[target].popen([sys.executable, "-c", COUNT_UDP, address, "5002", str(count)])
    assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
    net[source].python(SEND_UDP, address, "5002", str(count), str(size))
    if while_sending is not None:
        while_sending()
    return receiver.communicate(timeout=120)[0].strip()


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_icmp_udp_and_tcp(net, family):
    need("ping")
    made = net()
    made["a"].run("ping", "-c", "3", "-i", "0.01", "-W", "2", family["b"])
    assert count_udp(made, "a", "b", family["b"], 50, 1000) == "50 True"
    transfer(made, "a", "b", family["b"])
    transfer(made, "b", "a", family["a"])
    assert made.drops().get("rejected") == 0


def test_gso_frames_travel_whole(net):
    made = net()
    transfer(made, "a", "b", V4["b"])
    queue = made.runtime.stats("b")["nics"][0]["queues"][0]
    assert queue["tx_bytes"] / queue["tx_packets"] > 6000
    # On a wire: frames of the MTU, with their headers.
    assert 1200 < queue["tx_wire_bytes"] / queue["tx_wire_packets"] <= 1514
    sent = made.runtime.stats("a")["nics"][0]["queues"][0]
    assert sent["rx_wire_packets"] >= queue["tx_wire_packets"] > 5 * sent["rx_packets"]


def test_without_offloads_the_same_bytes_arrive(net):
    """A container without offloads receives segments of its MTU with complete checksums."""
    made = net(nics={"b": {"offloads": {"checksum": False, "tso": False, "uso": False}}})
    transfer(made, "a", "b", V4["b"], 5_000_000)
    transfer(made, "a", "b", V6["b"], 5_000_000)
    transfer(made, "b", "a", V4["a"], 5_000_000)
    queue = made.runtime.stats("b")["nics"][0]["queues"][0]
    assert queue["tx_bytes"] / queue["tx_packets"] <= 1514


@pytest.mark.parametrize("mtu", [576, 9000, 65521])
def test_mtu(net, mtu):
    made = net(nics={name: {"mtu": mtu, "addresses": [f"{V4[name]}/24"]} for name in "ab"})
    size = mtu - 28
    made["a"].run("ping", "-c", "1", "-M", "do", "-s", str(size), "-W", "2", V4["b"])
    transfer(made, "a", "b", V4["b"], 5_000_000)


def test_a_smaller_mtu_on_the_other_side_is_counted(net):
    made = net(nics={"a": {"mtu": 3000}})
    made["a"].run("ping", "-c", "1", "-s", "2500", "-W", "1", V4["b"], check=False)
    assert made.drops()["too_long"] >= 1


def test_four_queues_spread_flows_and_keep_each_in_order(net):
    made = net(nics={name: {"queues": 4} for name in "ab"})
    made["a"].run("ping", "-c", "1", "-W", "2", V4["b"])
    for port in range(24):
        receiver = made["b"].popen([sys.executable, "-c", COUNT_UDP, V4["b"], str(6000 + port), "40"])
        assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
        made["a"].python(SEND_UDP, V4["b"], str(6000 + port), "40", "100")
        assert receiver.communicate(timeout=120)[0].strip() == "40 True"
    used = [queue["tx_packets"] for queue in made.runtime.stats("b")["nics"][0]["queues"]]
    assert sum(count > 0 for count in used) >= 3, used


def test_what_does_not_get_into_a_nic_s_queues_is_told(net):
    """While the engine is halted, a container sends more than its TAP's queue holds: the kernel
    drops packets before vnic can count them."""
    made = net()
    made["a"].run("ping", "-c", "1", "-W", "2", V4["b"])
    [engine] = made.runtime.engines
    before = observe(made.runtime.status(), made.runtime.stats())
    made.runtime.group_of(engine).halt(engine)
    made["a"].python(SEND_UDP, V4["b"], "6000", str(QUEUE_PACKETS + 1000), "100")
    made.runtime.group_of(engine).resume(engine)
    stats = made.runtime.stats()
    dropped = {nic["name"]: nic["queue_drops"] for nic in stats["nics"]}
    # plus multicast packets of the network stacks
    assert 1000 <= dropped["a"] < 1100 and dropped["b"] < 100
    told = [fields for event, fields in differences(before, observe(made.runtime.status(), stats)) if event == "drops"]
    assert {"nic": "a", "reason": "queue_full", "packets": dropped["a"]} in told


@pytest.mark.parametrize("engines", [2, 3])
def test_several_engines(net, engines):
    """Each container's NIC on its own engine: packets cross by rings."""
    made = net(3, engines=engines)
    homes = {each["name"]: each["engine"] for each in made.runtime.status()["nics"]}
    assert len(set(homes.values())) == min(engines, 3)
    transfer(made, "a", "b", V4["b"])
    transfer(made, "b", "c", V6["c"])
    made["c"].run("ping", "-c", "3", "-i", "0.01", "-W", "2", V4["a"])


def test_learned_traffic_reaches_nobody_else(net):
    made = net(3)
    made["a"].run("ping", "-c", "2", "-i", "0.01", "-W", "2", V4["b"])
    before = made.runtime.stats("c")["nics"][0]["queues"][0]["tx_packets"]
    made["a"].run("ping", "-c", "100", "-i", "0.002", "-W", "2", V4["b"])
    after = made.runtime.stats("c")["nics"][0]["queues"][0]["tx_packets"]
    assert after - before < 20  # multicast packets of the network stacks, not 200 pings


class Capture:
    """Frames seen on a container's eth0, as tcpdump shows them."""

    def __init__(self, container: Container, count: int, needle: bytes, path):
        need("tcpdump")
        self._path = path
        self._process = container.popen([sys.executable, "-c", CAPTURE, "eth0", str(count), needle.hex(), str(path)])
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def lines(self, *options: str) -> list[str]:
        """tcpdump's lines, once all frames have arrived."""
        assert self._process.communicate(timeout=120)[0] == ""
        command = ["tcpdump", "-n", "-t", *options, "-r", str(self._path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()


def test_tcpdump_sees_on_both_sides_what_was_sent(net, tmp_path):
    made = net()
    captures = [Capture(made[name], 20, b"\x13\x8a", tmp_path / name) for name in "ab"]  # port 5002
    assert count_udp(made, "a", "b", V4["b"], 20, 700) == "20 True"
    sent, received = (capture.lines("-e", "-x") for capture in captures)
    assert sum("10.99.0.2.5002: UDP, length 700" in line for line in received) == 20
    assert sent == received  # every byte, the partial checksum included: the frame is the same


def test_tcpdump_finds_complete_checksums_where_offloads_are_off(net, tmp_path):
    made = net(nics={"b": {"offloads": {"checksum": False, "tso": False, "uso": False}}})
    capture = Capture(made["b"], 10, b"\x13\x8a", tmp_path / "b")
    assert count_udp(made, "a", "b", V4["b"], 10, 701) == "10 True"
    lines = capture.lines("-vv")
    assert sum("[udp sum ok]" in line for line in lines) == 10, lines


HOSTILE = {
    "ipv4_length": "0200000000bb 0200000000aa 0800 4500 ffff 0000 0000 4011 0000 0a630001 0a630002" + "00" * 26,
    "ipv4_header": "0200000000bb 0200000000aa 0800 4100 0020 0000 0000 4011 0000 0a630001 0a630002" + "00" * 26,
    "ipv6_length": "0200000000bb 0200000000aa 86dd 60000000 ffff 1140" + "00" * 32 + "00" * 20,
    "l4_header": "0200000000bb 0200000000aa 0800 4500 0018 0000 0000 4006 0000 0a630001 0a630002 00500050",
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_malformed_frame_is_forwarded_and_counted_by_reason(net, tmp_path, reason):
    made, frame = net(), bytes.fromhex(HOSTILE[reason])
    capture = Capture(made["b"], 1, frame[:30], tmp_path / "b")
    made["a"].python(SEND_RAW, "eth0", frame.hex())
    assert capture.lines()
    assert made.drops()[reason] == 0 and made.counters("a.parse")[reason] == 1


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_nic_may_drop_malformed_frames_by_reason(net, reason):
    made = net(nics={"a": {"malformed": "drop"}})
    before = made.drops()[reason]
    made["a"].python(SEND_RAW, "eth0", HOSTILE[reason].replace(" ", ""))
    made["b"].run("ping", "-c", "2", "-i", "0.01", "-W", "2", V4["a"])
    assert made.drops()[reason] == before + 1


def test_fragments_that_end_within_the_tcp_header_pass(net, tmp_path):
    """RFC 791 permits fragments of 8 bytes."""
    made = net(nics={"a": {"malformed": "drop"}})
    link = "0200000000bb 0200000000aa 0800"
    first = bytes.fromhex(f"{link} 4500 001c 0007 2000 4006 0000 0a630001 0a630002 0050005000000001")
    later = bytes.fromhex(f"{link} 4500 0020 0007 0001 4006 0000 0a630001 0a630002 00000000500220000000 0000")
    capture = Capture(made["b"], 2, first[22:34], tmp_path / "b")
    for frame in (first, later):
        made["a"].python(SEND_RAW, "eth0", frame.hex())
    assert sum("10.99.0.1" in line for line in capture.lines()) == 2


def test_vlan_in_vlan_passes_and_a_third_tag_harms_nobody(net, tmp_path):
    made = net()
    capture = Capture(made["b"], 2, bytes.fromhex("02000000ccaa"), tmp_path / "b")
    head = "ffffffffffff 02000000ccaa"
    ip = "4500 0020 0000 0000 4011 0000 0a630001 0a630002" + "00" * 30
    double, triple = f"{head} 88a8 0064 8100 0065 0800 {ip}", f"{head} 8100 0064 8100 0065 8100 0066 0800 {ip}"
    made["a"].python(SEND_RAW, "eth0", double.replace(" ", ""), triple.replace(" ", ""))
    lines = capture.lines("-e")
    assert "vlan 100" in lines[0] and "vlan 101" in lines[0] and "vlan 102" in lines[1]
    made["b"].run("ping", "-c", "2", "-i", "0.01", "-W", "2", V4["a"])


def test_a_flood_of_source_macs_stops_nobody(net):
    made = net(3)
    made["b"].run("ping", "-c", "2", "-i", "0.01", "-W", "2", V4["c"])
    made["a"].python(FLOOD_MACS, "eth0", "6000")
    status = made.runtime.status()["switch"]
    assert len(status["entries"]) <= status["capacity"]
    assert made.counters("switch")["learn_refused"] > 0
    known = {entry["nic"] for entry in status["entries"]}
    assert {"b", "c"} <= known
    made["b"].run("ping", "-c", "10", "-i", "0.01", "-W", "2", V4["c"])


def test_a_live_change_of_rate_loses_nothing_queued(net):
    made = net(nics={"a": {"egress": {"rate": "1mbit", "queue": "2s"}}})
    made["a"].run("ping", "-c", "1", "-W", "2", V4["b"])

    def faster() -> None:
        assert made.runtime.stats("a")["engines"][0]["elements"]
        for rate in (2_000_000, 500_000, 50_000_000, None):
            made.runtime.nics.set_rate("a", egress_bps=rate)

    assert count_udp(made, "a", "b", V4["b"], 100, 1000, while_sending=faster) == "100 True"


def test_link_down_stops_traffic_and_up_brings_it_back(net):
    made = net()
    made["a"].run("ping", "-c", "1", "-W", "2", V4["b"])
    made.runtime.nics.set_link("b", up=False)
    assert "NO-CARRIER" in made["b"].run("ip", "link", "show", "eth0")
    assert "100% packet loss" in made["a"].run("ping", "-c", "1", "-W", "0.3", V4["b"], check=False)
    made.runtime.nics.set_link("b", up=True)
    made["a"].run("ping", "-c", "3", "-i", "0.2", "-W", "2", V4["b"])


def test_detach_and_attach_while_others_talk(net):
    made = net(3)
    made["a"].run("ping", "-c", "1", "-W", "2", V4["c"])
    made.runtime.nics.detach("c")
    assert made["c"].interfaces() == []
    made["a"].run("ping", "-c", "2", "-i", "0.01", "-W", "2", V4["b"])
    made.runtime.nics.attach(convert_nic("c", nic(made["c"], "c", queues=2)))
    made["a"].run("ping", "-c", "2", "-i", "0.01", "-W", "2", V4["c"])


def test_a_container_that_ends_is_detached():
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with Container() as stays, Container() as goes:
            config = convert_config({"nics": {"a": nic(stays, "a"), "b": nic(goes, "b")}})
            with Runtime(config, loop=loop) as runtime:
                runtime.start()
                goes.close()
                async with asyncio.timeout(60):
                    while [each["name"] for each in runtime.status()["nics"]] != ["a"]:
                        await asyncio.sleep(0.01)
                assert runtime.status()["conserved"]

    asyncio.run(scenario())


def test_a_failing_attach_leaves_nothing(net):
    made = net()
    from dataplane.errors import ConfigError

    with pytest.raises(ConfigError):
        # the name is taken in that container
        made.runtime.nics.attach(convert_nic("c", {"pid": made["a"].pid, "kind": KIND, "interface": "eth0"}))
    with pytest.raises(ConfigError, match="attached already"):
        made.runtime.nics.attach(convert_nic("a", {"pid": made["a"].pid, "kind": KIND, "interface": "eth1"}))
    bad = {"pid": made["a"].pid, "kind": KIND, "interface": "eth1", "egress": {"elements": [{"element": "nowhere:Nothing"}]}}
    with pytest.raises(ConfigError, match="cannot import nowhere"):
        made.runtime.nics.attach(convert_nic("c", bad))
    assert made["a"].interfaces() == ["eth0"]
    assert [each["name"] for each in made.runtime.status()["nics"]] == ["a", "b"]
    made["a"].run("ping", "-c", "2", "-i", "0.01", "-W", "2", V4["b"])


@pytest.mark.skipif(not IS_ROOT, reason="is the plain user's run already")
@pytest.mark.timeout(960)
@pytest.mark.again
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_end_to_end.py", timeout_s=920)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "1 skipped" in done.stdout

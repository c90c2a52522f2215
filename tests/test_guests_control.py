"""The control queue with a real guest: what its ip and ethtool set is what the NIC has, also after an upgrade and a crash."""

import base64
import json
import re
import sys
import time
import zlib
from contextlib import ExitStack

import pytest

from dataplane.elements.rss import Rss
from tests.test_command import environment, vnic  # noqa: F401 - a fixture
from tests.test_guests import ADDRESSES, Lab
from tests.test_supervisor import kill_worker

SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
    sock.bind(("eth0", 0))
    for _ in range(int(sys.argv[2])):
        sock.send(bytes.fromhex(sys.argv[1]))
"""
ECHO_PORT, FIRST_PORT = 7007, 20000
ECHO = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("", {ECHO_PORT}))
    print("ready", flush=True)
    while True:
        sock.sendto(*sock.recvfrom(2000))
"""
# UDP flows to the echo, a number of packets of each; prints the port and the hash of each answer, which the kernel has of
# the NIC (packet(7), TPACKET_V3).
FLOWS = f"""
import mmap, socket, struct, sys
address, flows, packets = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
BLOCK, BLOCKS = 1 << 18, 2
ring = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
ring.setsockopt(263, 10, 2)  # PACKET_VERSION
ring.setsockopt(263, 5, struct.pack("7I", BLOCK, BLOCKS, 2048, BLOCK // 2048 * BLOCKS, 10, 0, 1))  # PACKET_RX_RING
memory = mmap.mmap(ring.fileno(), BLOCK * BLOCKS)
ring.bind(("eth0", 0x0800))
seen = set()
def take():
    for block in range(0, BLOCK * BLOCKS, BLOCK):
        status, count, at = struct.unpack_from("III", memory, block + 8)
        if not status & 1:
            continue
        at += block
        for _ in range(count):
            following, mac, rxhash = struct.unpack_from("I20xHxxI", memory, at)
            frame = at + mac
            if memory[frame + 23] == 17 and memory[frame + 34 : frame + 36] == struct.pack(">H", {ECHO_PORT}):
                seen.add((*struct.unpack_from(">H", memory, frame + 36), rxhash))
            at += following
        struct.pack_into("I", memory, block + 8, 0)  # the kernel's again
for flow in range(flows):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", {FIRST_PORT} + flow))
        sock.settimeout(60)
        for _ in range(packets):
            sock.sendto(b"x" * 20, (address, {ECHO_PORT}))
            sock.recv(2000)
            take()
while len(seen) < flows:
    take()
for port, rxhash in sorted(seen):
    print(port, rxhash)
"""
FRAMES = 100
MODULES = "/usr/lib/uml/modules/$(uname -r)/kernel/net"
VLAN_MODULES = "llc/llc 802/stp 802/garp 802/mrp 8021q/8021q"


@pytest.fixture
def lab(environment, tmp_path, leak_check):  # noqa: F811
    with ExitStack() as stack:
        yield Lab(environment, tmp_path, stack)


def wait_for(lab, name, **wanted):
    """Waits until the guest has set these; returns the NIC's status."""
    while not wanted.items() <= (found := lab.status(name))["control"].items():
        time.sleep(0.02)  # the test's own timeout ends this
    return found


def everywhere(lab, name):
    """What the guest has set, which is the same after an upgrade and a crash."""
    found = lab.status(name)
    wanted = {key: found["control"][key] for key in found["control"].keys() - {"ring", "commands", "refused"}}
    for again in (lambda: vnic(lab.environment, "upgrade"), lambda: kill_worker(lab.environment)):
        again()
        # the next command finds the ring where it is
        lab.guest.run("ip link set eth0 mtu 1400; ip link set eth0 multicast off; ip link set eth0 multicast on")
        lab.guest.run("ip maddr add 33:33:00:00:00:77 dev eth0; ip maddr del 33:33:00:00:00:77 dev eth0")
        lab.guest.run(f"ping -c 2 -i 0.01 {ADDRESSES['box']}")
        now = wait_for(lab, name, **wanted)
        assert (now["mac"], now["queues_used"], now["offloads"]) == (found["mac"], found["queues_used"], found["offloads"])
        assert now["control"]["refused"] == 0 and now["control"]["ring"]["broken"] == ""
        assert now["control"]["ring"]["started"] and now["control"]["ring"]["faults"] == {}
        assert now["control"]["commands"] > 0
    return found


def test_ip_and_ethtool_set_the_nic(lab):
    one = lab.guest = lab.boot("one")
    found = wait_for(lab, "one", promiscuous=False)
    assert found["control"]["commands"] > 0 and {"ctrl_vq", "ctrl_rx", "ctrl_vlan", "ctrl_mac_addr"} <= set(found["features"])
    assert "01:00:5e:00:00:01" in found["control"]["multicast"]  # all hosts: Linux joins it with an IPv4 address
    one.run("ip link set eth0 promisc on")
    wait_for(lab, "one", promiscuous=True)
    one.run("ip link set eth0 promisc off; ip link set eth0 allmulticast on")
    wait_for(lab, "one", promiscuous=False, all_multicast=True)
    one.run("ip link set eth0 allmulticast off; ip maddr add 33:33:00:00:00:42 dev eth0")
    found = wait_for(lab, "one", all_multicast=False)
    assert "33:33:00:00:00:42" in found["control"]["multicast"]
    one.run("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:aa; ip link set eth0 up")
    assert lab.status("one")["mac"] == "02:00:00:00:00:aa"
    assert "lro" in (features := one.run("ethtool -k eth0")) or "rx-gro-hw" in features
    assert lab.status("one")["offloads"] == ["csum", "tso4", "tso6", "ecn"]
    one.run("ethtool -K eth0 rx-gro-hw off")
    found = wait_for(lab, "one", offloads=["guest_csum"])
    assert found["offloads"] == ["csum"]
    everywhere(lab, "one")
    one.run("ethtool -K eth0 rx-gro-hw on")
    assert lab.status("one")["offloads"] == ["csum", "tso4", "tso6", "ecn"]


def test_frames_that_the_guest_does_not_want_are_dropped(lab):
    """By address and VLAN, as frames of the box that nobody else wants show."""
    one = lab.guest = lab.boot("one")
    one.run(f"for each in {VLAN_MODULES}; do busybox insmod {MODULES}/$each.ko ; done")
    one.run("ip link add link eth0 name eth0.7 type vlan id 7; ip link set eth0.7 up")
    wait_for(lab, "one", vlans=[0, 7])
    one.run(f"ping -c 1 {ADDRESSES['box']}")
    everywhere(lab, "one")

    def arrives(destination, tag=""):
        """Whether the guest's driver gets frames; the NIC drops those that it does not get. They are more than the box's
        kernel sends by itself meanwhile."""
        frame = destination.replace(":", "") + "0200000000fe" + tag + "88b5" + "00" * 46
        got, dropped = received(), filtered()
        lab.box.python(SEND, frame, str(FRAMES))
        while max(received() - got, filtered() - dropped) < FRAMES:
            time.sleep(0.02)
        assert min(received() - got, filtered() - dropped) < FRAMES // 2
        return received() - got >= FRAMES

    def received():
        return lab.status("one")["tx_packets"]

    def filtered():
        found = json.loads(vnic(lab.environment, "stats", "--json"))
        elements = [each for engine in found["engines"] for each in engine["elements"]]
        [drops] = [each["dropped"] for each in elements if each["name"] == "one.tx"]
        return drops["filtered"]

    own = lab.status("one")["mac"]
    assert arrives(own) and arrives("ff:ff:ff:ff:ff:ff") and arrives("01:00:5e:00:00:01")
    assert not arrives("02:00:00:00:00:bb") and not arrives("01:00:5e:00:00:99")
    assert arrives(own, "81000007") and not arrives(own, "81000008")
    one.run("ip link set eth0 promisc on")
    assert arrives("02:00:00:00:00:bb") and arrives("01:00:5e:00:00:99")
    one.run("ip link set eth0 promisc off; ip link set eth0 allmulticast on")
    assert arrives("01:00:5e:00:00:99") and not arrives("02:00:00:00:00:bb")


@pytest.mark.parametrize("pairs", [2, 4])
def test_queue_pairs(environment, tmp_path, leak_check, pairs):  # noqa: F811
    with ExitStack() as stack:
        lab = Lab(environment, tmp_path, stack, queues=pairs)
        one = lab.guest = lab.boot("one")
        assert lab.status("one")["queues"] == pairs
        one.run(f"ping -c 3 -i 0.01 {ADDRESSES['box']}")
        one.run("ethtool -L eth0 combined 1")
        assert wait_for(lab, "one", queue_pairs=1)["queues_used"] == 1
        one.run(f"ping -c 3 -i 0.01 {ADDRESSES['box']}")
        one.run(f"ethtool -L eth0 combined {pairs}")
        assert wait_for(lab, "one", queue_pairs=pairs)["queues_used"] == pairs
        assert one.run("ethtool -l eth0").split("Combined:")[2].split()[0] == str(pairs)
        two = lab.boot("two")
        two.begin("iperf3 -s -1")
        assert "iperf Done." in one.run(
            f"for n in $(seq 50); do iperf3 -c {ADDRESSES['two']} -P 8 -n 64M && break; sleep 0.1; done"
        )
        two.finish()
        everywhere(lab, "one")
        one.run("ethtool -L eth0 combined 1")
        assert lab.status("one")["queues_used"] == 1
        one.run(f"ping -c 3 -i 0.01 {ADDRESSES['box']}")


def in_guest(code):
    """A command line that runs Python code in a guest: its console takes lines of less than 4 KiB."""
    packed = base64.b64encode(zlib.compress(code.encode())).decode()
    return f"{sys.executable} -c 'import base64, zlib; exec(zlib.decompress(base64.b64decode(\"{packed}\")))'"


def queue_packets(guest, direction):
    """Packets of each queue, as the driver counts."""
    lines = guest.run("ethtool -S eth0").splitlines()
    found = [re.fullmatch(rf"\s*{direction}_queue_(\d+)_packets: (\d+)", line) for line in lines]
    return [int(match[2]) for match in found if match]


def test_queues_hashes_and_the_table_of_the_driver(environment, tmp_path, leak_check):  # noqa: F811
    """Answers come on the queue that asked; then by the guest's key and table, and with their hashes; also after an upgrade and
    a kill."""
    flows, packets, table_of = 12, 20, [0, 0, 0, 1, 2, 2, 3, 3]
    key = bytes(range(7, 47))
    with ExitStack() as stack:
        lab = Lab(environment, tmp_path, stack, queues=4)
        lab.guest = one = lab.boot("one")
        echo = lab.box.popen([sys.executable, "-c", ECHO])
        stack.callback(lambda: (echo.kill(), echo.communicate()))
        assert echo.stdout.readline() == "ready\n"

        def talk():
            """Sends the flows; hashes of the answers by port, and packets that each queue received and transmitted."""
            before = queue_packets(one, "rx"), queue_packets(one, "tx")
            said = one.run(f"{in_guest(FLOWS)} {ADDRESSES['box']} {flows} {packets}")
            after = queue_packets(one, "rx"), queue_packets(one, "tx")
            hashes = dict(tuple(map(int, line.split())) for line in said.splitlines())
            return hashes, *([b - a for a, b in zip(*each, strict=True)] for each in zip(before, after, strict=True))

        settings = one.run("ethtool eth0")
        assert "Speed: 10000Mb/s" in settings and "Duplex: Full" in settings
        assert "maxmtu 1500" in one.run("ip -d link show eth0")
        assert {"rss", "hash_report", "notf_coal", "speed_duplex", "mq"} <= set(lab.status("one")["features"])
        one.run("ethtool -L eth0 combined 4")
        assert wait_for(lab, "one", queue_pairs=4)["control"]["steering"] == "flow"
        _, received, transmitted = talk()
        assert sum(each > packets // 2 for each in transmitted) > 1, "the guest uses several queues"
        for got, sent in zip(received, transmitted, strict=True):
            assert abs(got - sent) < packets // 2  # besides what the kernels say to each other

        one.run("ethtool -K eth0 rxhash on")
        one.run(f"ethtool -X eth0 hkey {key.hex(':')} weight 3 1 2 2")
        found = wait_for(lab, "one", hash_key=key.hex(":"))["control"]
        assert found["steering"] == "rss" and found["hash_types"] == ["ipv4", "tcpv4", "udpv4", "ipv6", "tcpv6", "udpv6"]
        shown = [line.split(":")[1].split() for line in one.run("ethtool -x eth0").splitlines() if re.match(r"\s*\d+:\s", line)]
        assert [int(each) for line in shown for each in line] == found["rss_table"]
        assert [found["rss_table"].count(queue) for queue in range(4)] == [16 * table_of.count(queue) for queue in range(4)]
        rss = Rss(key, found["rss_table"], queues=4)
        by_ports = {
            port: rss.hash_tuple(ADDRESSES["box"], ADDRESSES["one"], ECHO_PORT, port)
            for port in range(FIRST_PORT, FIRST_PORT + flows)
        }

        def check(expected, told=True):
            hashes, received, _ = talk()
            assert not told or hashes == expected
            queues = [rss.queue(each) for each in expected.values()]
            for queue in range(4):
                assert 0 <= received[queue] - packets * queues.count(queue) < packets // 2

        check(by_ports)
        everywhere(lab, "one")
        check(by_ports)
        one.run("ethtool -N eth0 rx-flow-hash udp4 sd; ethtool -K eth0 rxhash off; ethtool -K eth0 rxhash on")
        wait_for(lab, "one", hash_types=["ipv4", "tcpv4", "ipv6", "tcpv6", "udpv6"])
        # of a hash without ports the kernel makes one of its own
        check(dict.fromkeys(by_ports, rss.hash_tuple(ADDRESSES["box"], ADDRESSES["one"])), told=False)
        one.run("ethtool -X eth0 equal 2; ethtool -L eth0 combined 2")
        assert wait_for(lab, "one", queue_pairs=2)["control"]["steering"] == "flow"
        assert lab.status("one")["control"]["refused"] == 0


def test_notifications_come_later(lab):
    lab.guest = one = lab.boot("one")
    one.run("ip link set eth0 down; ethtool -C eth0 rx-usecs 50 rx-frames 8 tx-usecs 60 tx-frames 16; ip link set eth0 up")
    wait_for(lab, "one", rx_coalescing={"packets": 8, "usecs": 50}, tx_coalescing={"packets": 16, "usecs": 60})
    one.run(f"ping -c 3 -i 0.01 {ADDRESSES['box']}")
    everywhere(lab, "one")
    assert "rx-usecs: 50" in one.run("ethtool -c eth0")
    one.run("ip link set eth0 down; ethtool -C eth0 rx-usecs 1000000 rx-frames 100; ip link set eth0 up")
    wait_for(lab, "one", rx_coalescing={"packets": 100, "usecs": 1000000})

    def counted():
        found = lab.status("one")
        return found["tx_packets"], found["rings"][0]["calls"]

    packets, calls = counted()
    one.run(f"ping -c 60 -i 0.002 -W 60 {ADDRESSES['box']}")
    assert (counted()[1] - calls) * 2 < counted()[0] - packets


def test_commands_during_upgrades_and_kills_of_the_worker(lab):
    """Each is answered, else the guest would stop for ever, and the last of each kind is what the NIC has."""
    one = lab.guest = lab.boot("one")
    one.begin(
        "n=0; while [ $n -lt 100 ]; do ip link set eth0 promisc on; ip link set eth0 promisc off; "
        "ip maddr add 33:33:00:00:00:42 dev eth0; ip maddr del 33:33:00:00:00:42 dev eth0; n=$((n+1)); done; "
        "ip link set eth0 allmulticast on; ip maddr add 33:33:00:00:00:43 dev eth0"
    )
    for _ in range(3):
        before = lab.status("one")["control"]["commands"]
        while lab.status("one")["control"]["commands"] < before + 10:
            pass
        kill_worker(lab.environment)
        vnic(lab.environment, "upgrade")
    one.finish()
    found = wait_for(lab, "one", all_multicast=True, promiscuous=False)["control"]
    assert "33:33:00:00:00:43" in found["multicast"] and "33:33:00:00:00:42" not in found["multicast"]
    assert found["refused"] == 0 and found["ring"]["broken"] == "" and found["ring"]["faults"] == {}
    one.run(f"ping -c 3 -i 0.01 {ADDRESSES['box']}")


def test_a_guest_announces_itself_when_its_link_is_up_again(lab):
    one = lab.guest = lab.boot("one")
    one.run(f"ping -c 1 {ADDRESSES['box']}")
    before = lab.status("one")["control"]["commands"]
    vnic(lab.environment, "link", "one", "down")
    vnic(lab.environment, "link", "one", "up")
    found = wait_for(lab, "one", announcing=False)
    while found["control"]["commands"] == before or found["control"]["announcing"]:
        time.sleep(0.02)
        found = lab.status("one")
    one.run(f"ping -c 1 {ADDRESSES['box']}")


def test_the_next_guest_begins_anew(lab):
    one = lab.boot("one")
    one.run(
        "ip link set eth0 promisc on; ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:aa; ip link set eth0 up"
    )
    wait_for(lab, "one", promiscuous=True)
    configured = lab.status("two")["mac"]
    one.close()
    found = lab.wait("one", guest="absent")
    assert not found["control"]["promiscuous"] and found["mac"] not in ("02:00:00:00:00:aa", configured)
    one = lab.boot("one")
    assert lab.status("one")["mac"] == found["mac"] == one.run("cat /sys/class/net/eth0/address").strip()
    # and so does the driver that is taken off the device and put back
    one.run("ip link set eth0 promisc on")
    wait_for(lab, "one", promiscuous=True)
    for what in ("unbind", "bind"):
        one.run(f"echo virtio0 > /sys/bus/virtio/drivers/virtio_net/{what}")
    one.run(f"ip link set eth0 up; ip addr add {ADDRESSES['one']}/24 dev eth0; ping -c 1 {ADDRESSES['box']}")
    wait_for(lab, "one", promiscuous=False)

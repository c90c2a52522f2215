"""TAPs in containers: they are created as requested or not at all, and carry frames."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.engine import Engine
from dataplane.engine.running import start
from dataplane.errors import ConfigError, PortError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from dataplane.ports.tap_port import TapPort
from tests.support import plain_user
from tests.support.containers import IS_ROOT, Container
from tests.tools import need
from vnic.device.agent import NamespaceAgent
from vnic.device.link import QUEUE_PACKETS, QUEUE_PACKETS_LEAST, TUNSETVNETHDRSZ
from vnic.device.tap import VNET_HEADER_BYTES, Offload, Route, Tap, TapRequest, check, format_mac, parse_mac

ROOT = Path(__file__).parents[1]

MAC = "02:00:00:00:00:02"
OUR_MAC = bytes.fromhex("020000000001")


@pytest.fixture(scope="module")
def agent() -> Iterator[NamespaceAgent]:
    with NamespaceAgent.start() as agent:
        yield agent


def link(container: Container, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(container.run("ip", "-d", "-j", "addr", "show", "dev", name))[0]
    return answer


def read_frame(tap: Tap, wanted: Callable[[bytes], bool], timeout_s: float = 120) -> bytes:
    """The next frame on any queue for which `wanted` is true, without its virtio-net header."""
    poll = select.poll()
    for fd in tap.fds:
        poll.register(fd, select.POLLIN)
    while True:
        ready = poll.poll(timeout_s * 1000)
        assert ready, "no such frame"
        for fd, _ in ready:
            frame = os.read(fd, 70000)[VNET_HEADER_BYTES:]
            if wanted(frame):
                return frame


def write_frame(tap: Tap, frame: bytes, queue: int = 0) -> None:
    assert os.write(tap.fds[queue], bytes(VNET_HEADER_BYTES) + frame) == VNET_HEADER_BYTES + len(frame)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# --- what is there --------------------------------------------------------------------------------


@pytest.mark.parametrize("user_namespace", [pytest.param(False, marks=pytest.mark.root), True])
def test_a_tap_appears_as_asked_for(agent, make_container, user_namespace):
    container = make_container(user_namespace=user_namespace)
    request = TapRequest(
        name="eth0", pid=container.pid, queues=4, mac=MAC, mtu=9000, addresses=("10.0.0.2/24", "fd00::2/64"),
        routes=(Route("default", "10.0.0.1"), Route("fd01::/64", "fd00::1"), Route("10.9.0.0/16")),
    )  # fmt: skip
    with agent.open_nic(request) as tap:
        seen = link(container, "eth0")
        assert (seen["address"], seen["mtu"], seen["ifindex"]) == (MAC, 9000, tap.ifindex)
        assert (tap.mac, tap.mtu, tap.name, tap.queues) == (MAC, 9000, "eth0", 4)
        assert seen["linkinfo"]["info_data"]["numqueues"] == 4
        assert {"UP", "LOWER_UP"} <= set(seen["flags"])
        assert seen["linkinfo"]["info_data"]["persist"] is False
        addresses = {f"{each['local']}/{each['prefixlen']}": each for each in seen["addr_info"]}
        assert {"10.0.0.2/24", "fd00::2/64"} <= set(addresses)
        assert not addresses["fd00::2/64"].get("tentative"), "an IPv6 address can be used at once"
        assert "default via 10.0.0.1" in container.run("ip", "route")
        assert "10.9.0.0/16" in container.run("ip", "route")
        assert "fd01::/64 via fd00::1" in container.run("ip", "-6", "route")
        assert tap.netns_identity == (os.stat(container.netns_path).st_dev, os.stat(container.netns_path).st_ino)
        for fd in tap.fds:
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
    assert container.interfaces() == []


def test_the_kernel_grants_the_offloads_asked_for(agent, container):
    def features() -> set[str]:
        return set(re.findall(r"^\s*(tx-(?:checksum-ip-generic|tcp-segmentation|tcp6-segmentation|udp-segmentation)): on",
                              container.run("ethtool", "-k", "eth0"), re.MULTILINE))  # fmt: skip

    with agent.open_nic(TapRequest(name="eth0", pid=container.pid)) as tap:
        usual = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN
        assert tap.offloads & usual == usual
        assert ("tx-udp-segmentation" in features()) == bool(tap.offloads & Offload.USO)
        assert {"tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation"} <= features()
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid, offloads=0)) as tap:
        assert tap.offloads == 0
        assert features() == set()


def test_defaults_down_and_64_queues(agent, container):
    with agent.open_nic(TapRequest(name="a" * 15, pid=container.pid, queues=64, up=False, mtu=65521)) as tap:
        seen = link(container, "a" * 15)
        assert len(set(tap.fds)) == 64
        assert seen["linkinfo"]["info_data"]["numqueues"] == 64
        assert "UP" not in seen["flags"]
        assert seen["address"] == tap.mac
        assert seen["mtu"] == tap.mtu == 65521
        assert seen["txqlen"] == QUEUE_PACKETS_LEAST  # of each queue
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid)):
        assert link(container, "eth0")["txqlen"] == QUEUE_PACKETS


def test_in_a_user_namespace_within_another(agent, make_container):
    container = make_container(nested=True)
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid, addresses=("10.0.0.2/24",))):
        assert container.interfaces() == ["eth0"]
    assert container.interfaces() == []


WITHIN = """
import subprocess, sys
from tests.support.containers import Container
from vnic.device.agent import NamespaceAgent
from vnic.device.tap import TapRequest
with NamespaceAgent.start() as agent:
    for user_namespace in (False, True):
        with Container(user_namespace=user_namespace) as container:
            with agent.open_nic(TapRequest(name="eth0", pid=container.pid, addresses=("10.0.0.2/24",))) as tap:
                print(container.interfaces())
    with agent.open_nic(TapRequest(name="here")) as tap:
        print("here" in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout)
"""


def test_from_within_a_user_namespace_of_our_own(leak_check):
    """A plain user's daemon may run in its own user namespace; containers in it may or may not have
    their own."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("missing tool: /dev/net/tun cannot be opened by this user")
    command = ["unshare", "--user", "--map-root-user", "--net", plain_user.sys.executable, "-c", WITHIN]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=plain_user.REPOSITORY)
    assert (done.stdout, done.stderr) == ("['eth0']\n['eth0']\nTrue\n", "")


def test_by_netns_path_of_a_process(agent, container):
    with agent.open_nic(TapRequest(name="eth0", netns=container.netns_path)) as tap:
        assert container.interfaces() == ["eth0"]
        assert tap.namespace.pid == container.pid


@pytest.fixture
def named_netns(leak_check):
    name = f"vnic-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.root
@pytest.mark.parametrize("prefix", ["", "/run/netns/", "/var/run/netns/"])
def test_by_netns_name_and_path(agent, named_netns, prefix):
    with agent.open_nic(TapRequest(name="eth0", netns=prefix + named_netns)):
        assert "eth0" in subprocess.run(["ip", "-n", named_netns, "link"], capture_output=True, text=True, check=True).stdout
    assert "eth0" not in subprocess.run(["ip", "-n", named_netns, "link"], capture_output=True, text=True, check=True).stdout


# --- frames ---------------------------------------------------------------------------------------


def test_frames_pass_both_ways(agent, container):
    """The test is 10.0.0.1: it answers the container's ARP request, then its ping."""
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid, queues=2, mac=MAC, addresses=("10.0.0.2/24",))) as tap:
        ping = container.popen(["ping", "-c", "1", "-W", "5", "10.0.0.1"])
        request = read_frame(tap, lambda frame: frame[12:14] == b"\x08\x06")
        assert request[6:12] == bytes.fromhex(MAC.replace(":", ""))
        assert request[38:42] == bytes([10, 0, 0, 1])
        answer = request[6:12] + OUR_MAC + request[12:20] + b"\0\2" + OUR_MAC + request[38:42] + request[22:32]
        write_frame(tap, answer)
        echo = read_frame(tap, lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 1)
        icmp = b"\0" + echo[35:36] + b"\0\0" + echo[38:]
        icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
        write_frame(tap, echo[6:12] + echo[:6] + echo[12:26] + echo[30:34] + echo[26:30] + icmp, queue=1)
        output = ping.communicate(timeout=120)[0]
        assert ping.returncode == 0, output
        counters = tap.counters()
        assert counters["tx_packets"] >= 2
        assert counters["rx_packets"] == 2


def test_what_its_queues_had_no_room_for(agent, container):
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid, addresses=("10.0.0.2/24",))) as tap:
        container.run("ip", "neigh", "add", "10.0.0.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0")
        before = tap.queue_drops()
        container.python(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "for _ in range(3000): s.sendto(b'', ('10.0.0.1', 9))"
        )
        first, counted, last = tap.queue_drops(), tap.counters()["tx_dropped"], tap.queue_drops()
        assert before + 1000 <= first <= counted <= last  # the kernel sends IPv6 packets of its own
        assert not os.get_inheritable(tap.netlink)
        container.run("ip", "link", "del", "eth0")
        assert tap.queue_drops() is None


def test_a_gso_frame_travels_whole(agent, container):
    """20 kB sent over UDP with segmentation offload arrive as one frame, with GSO fields in the
    virtio-net header."""
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid, addresses=("10.0.0.2/24",))) as tap:
        if not tap.offloads & Offload.USO:
            pytest.skip("this kernel has no UDP segmentation for TAPs (Linux 6.2 has)")
        container.run("ip", "neigh", "add", "10.0.0.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0")
        container.python(
            "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.setsockopt(17, 103, 1000); "
            "s.sendto(bytes(20000), ('10.0.0.1', 9))"
        )
        poll = select.poll()
        poll.register(tap.fds[0], select.POLLIN)
        while True:
            assert poll.poll(5000), "no such frame"
            data = os.read(tap.fds[0], 70000)
            if data[VNET_HEADER_BYTES + 12 : VNET_HEADER_BYTES + 14] == b"\x08\x00":
                break
        flags, gso_type, header_bytes, gso_size, _, _ = struct.unpack_from("<BBHHHH", data)
        assert (flags & 1, gso_type, gso_size) == (1, 5, 1000)
        assert header_bytes == 14 + 20 + 8
        assert len(data) == VNET_HEADER_BYTES + 14 + 20 + 8 + 20000


# --- live change ----------------------------------------------------------------------------------


def test_live_changes(agent, container):
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid)) as tap:
        tap.set_mtu(1400)
        tap.set_mac(MAC)
        assert (link(container, "eth0")["mtu"], link(container, "eth0")["address"]) == (1400, MAC) == (tap.mtu, tap.mac)
        tap.set_carrier(False)
        assert "NO-CARRIER" in link(container, "eth0")["flags"]
        tap.set_carrier(True)
        assert "LOWER_UP" in link(container, "eth0")["flags"]
        tap.set_up(False)
        assert "UP" not in link(container, "eth0")["flags"]
        container.run("ip", "link", "set", "eth0", "name", "renamed")
        tap.set_up(True)
        assert "UP" in link(container, "renamed")["flags"]
        with pytest.raises(ConfigError, match="mtu: 65522"):
            tap.set_mtu(65522)


def test_delete_though_somebody_holds_a_queue(agent, container):
    tap = agent.open_nic(TapRequest(name="eth0", pid=container.pid))
    held = os.dup(tap.fds[0])
    tap.delete()
    assert container.interfaces() == []
    os.close(held)


def test_an_interface_deleted_in_the_container_is_a_clear_error(agent, container):
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid)) as tap:
        container.run("ip", "link", "del", "eth0")
        for use in (lambda: tap.set_up(True), tap.counters, lambda: tap.set_carrier(False), lambda: tap.set_mac(MAC)):
            with pytest.raises(PortError, match="gone from its network namespace; attach it again"):
                use()
    with pytest.raises(PortError, match="is closed"):
        tap.counters()


# --- all or nothing -------------------------------------------------------------------------------


def test_a_name_that_is_taken(agent, container):
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid)):
        with pytest.raises(ConfigError, match="tap eth0: the name is taken"):
            agent.open_nic(TapRequest(name="eth0", pid=container.pid))
        assert link(container, "eth0")["num_tx_queues"] == 1
        with pytest.raises(ConfigError, match="tap lo: the name is taken"):
            agent.open_nic(TapRequest(name="lo", pid=container.pid))
    assert container.interfaces() == []


def test_nothing_stays_of_a_tap_that_failed_half_way(agent, container):
    failing = [
        (TapRequest(name="eth0", pid=container.pid, queues=8, addresses=("10.0.0.2/24", "10.0.0.2/24")), "is there already"),
        (TapRequest(name="eth0", pid=container.pid, routes=(Route("default", "10.9.9.9"),)), "no address reaches its gateway"),
    ]
    for request, message in failing:
        with pytest.raises(ConfigError, match=message):
            agent.open_nic(request)
        assert container.interfaces() == []


def test_ipv6_switched_off_in_the_container(agent, container):
    container.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; "
                              "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")  # fmt: skip
    with pytest.raises(ConfigError, match="IPv6 is switched off"):
        agent.open_nic(TapRequest(name="eth0", pid=container.pid, addresses=("10.0.0.2/24", "fd00::2/64")))
    assert container.interfaces() == []


BAD = [
    ({"name": ""}, "no valid interface name"),
    ({"name": "a" * 16}, "no valid interface name"),
    ({"name": "a/b"}, "no valid interface name"),
    ({"name": "a b"}, "no valid interface name"),
    ({"name": "tap%d"}, "no valid interface name"),
    ({"name": "zoë"}, "no valid interface name"),
    ({"name": "all"}, "no valid interface name"),
    ({"queues": 0}, "queues: 0 is out of range: expected 1 to 64"),
    ({"queues": 65}, "queues: 65"),
    ({"mac": "01:00:00:00:00:01"}, "is a multicast address"),
    ({"mac": "00:00:00:00:00:00"}, "is all zero"),
    ({"mac": "02:00:00:00:01"}, "not a MAC address"),
    ({"mac": "02:00:00:00:00:0g"}, "not a MAC address"),
    ({"mac": "020000000001"}, "not a MAC address"),
    ({"mtu": 67}, "mtu: 67 is out of range: expected 68 to 65521"),
    ({"mtu": 65522}, "mtu: 65522"),
    ({"mtu": 1279, "addresses": ("fd00::1/64",)}, "too small for IPv6"),
    ({"addresses": ("10.0.0.2",)}, "no prefix length"),
    ({"addresses": ("10.0.0.256/24",)}, "'10.0.0.256/24' is none"),
    ({"addresses": ("fe80::1%eth0/64",)}, "'fe80::1%eth0/64' is none"),
    ({"addresses": ("10.0.0.2/24",) * 65}, "too many addresses"),
    ({"routes": (Route("default"),)}, "no gateway"),
    ({"routes": (Route("fd00::/64", "10.0.0.1"),)}, "mixes IPv4 and IPv6"),
    ({"routes": (Route("10.0.0.1/8"),)}, "is none: expected one like"),
    ({"routes": (Route("default", "10.0.0.1"),), "up": False}, "while the interface is down"),
    ({"offloads": 0x20}, "unknown bits"),
    ({"offloads": int(Offload.TSO4)}, "needs checksum offload"),
    ({"pid": 1, "netns": "/run/netns/x"}, "give one of the two"),
    ({"pid": 0}, "pid 0: no such process"),
    ({"pid": -1}, "pid -1: no such process"),
    ({"pid": 1 << 40}, "no such process"),
    ({"pid": 4194304}, "pid 4194304: no such process; give the pid"),
    ({"netns": ""}, "give a path"),
    ({"netns": "vnic-no-such"}, "/run/netns/vnic-no-such: no such file"),
    ({"netns": "/etc/passwd"}, "/etc/passwd: is not a network namespace"),
    ({"netns": "/dev/null"}, "is not a network namespace"),
    ({"netns": "/tmp"}, "is not a network namespace"),
    ({"netns": "/proc/self/ns/user"}, "is not a network namespace"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests_are_one_clear_line(agent, leak_check, change, message):
    with pytest.raises(ConfigError) as caught:
        agent.open_nic(TapRequest(**({"name": "vnic0"} | change)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(min_size=6, max_size=6))
def test_mac_addresses_round_trip(mac):
    text = format_mac(mac)
    if mac[0] & 1 or not any(mac):
        with pytest.raises(ConfigError):
            parse_mac(text, "tap")
    else:
        assert parse_mac(text, "tap") == mac


@settings(max_examples=30)
@given(st.text(max_size=20), st.text(max_size=40), st.text(max_size=40))
def test_no_text_breaks_the_checks(name, mac, address):
    for request in (TapRequest(name=name), TapRequest(name="a", mac=mac), TapRequest(name="a", addresses=(address,)),
                    TapRequest(name="a", routes=(Route(address, mac),))):  # fmt: skip
        message = ""
        try:
            check(request)
        except ConfigError as error:
            message = str(error)
        assert "\n" not in message


# --- /dev/net/tun, and who may --------------------------------------------------------------------

TRY = """
import sys
from dataplane.errors import ConfigError
from vnic.device.agent import NamespaceAgent
from vnic.device.tap import TapRequest
with NamespaceAgent.start() as agent:
    try:
        agent.open_nic(TapRequest(name="vnic-try", pid=int(sys.argv[1]) if len(sys.argv) > 1 else None)).close()
    except ConfigError as error:
        print(error)
"""


def attempt(*arguments: str, tun: str, uid: int = plain_user.UID) -> str:
    done = plain_user.run([plain_user.sys.executable, "-c", TRY, *arguments], tun=tun, uid=uid)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.root
@pytest.mark.parametrize("uid", [0, plain_user.UID])
def test_no_tun_device(leak_check, uid):
    assert attempt(tun="missing", uid=uid) == (
        "/dev/net/tun is missing: load the tun module (modprobe tun) or pass the device into the container "
        "(--device /dev/net/tun); a NIC of kind veth does without it\n"
    )


@pytest.mark.root
def test_a_tun_device_that_may_not_be_opened(leak_check):
    assert attempt(tun="closed").startswith("/dev/net/tun: not permitted to open it: ask root for chmod 0666 /dev/net/tun")


@pytest.mark.root
def test_a_plain_user_may_not_have_the_machines_or_another_users_namespace(make_container):
    assert attempt(tun="open").startswith("tap vnic-try: not permitted to make interfaces in that network namespace")
    container = make_container(user_namespace=True)
    for pid in (container.pid, os.getppid()):
        assert attempt(str(pid), tun="open") == (
            f"pid {pid}: not permitted to open its network namespace; "
            "run vnic as the user who started the container, or as root\n"
        )


@pytest.mark.root
def test_what_root_is_told_when_the_kernel_refuses():
    """Root without CAP_SYS_PTRACE may not inspect a process that has it. The advice is then not to
    run as root."""
    need("setpriv")
    code = "import os\nfrom vnic.device.namespaces import NetNamespace\nNetNamespace.find(os.getppid())"
    words = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = done.stderr.splitlines()[-1]
    assert f"pid {os.getpid()}: not permitted to open its network namespace; the kernel refuses it to root here" in said
    assert "CAP_SYS_PTRACE is missing" in said and "as root" not in said


@pytest.mark.root
def test_a_process_that_proc_hides(make_container):
    """/proc mounted with hidepid=2: another user's process exists, but its directory is hidden."""
    container = make_container(user_namespace=True)
    command = plain_user.command_line([plain_user.sys.executable, "-c", TRY, str(container.pid)])
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh", *command]
    done = subprocess.run(hidden, capture_output=True, text=True, check=False, cwd=plain_user.REPOSITORY)
    assert done.stdout.startswith(f"pid {container.pid}: not permitted to open its network namespace; run vnic as"), done


if IS_ROOT:

    @pytest.mark.timeout(1200)
    @pytest.mark.again
    def test_all_this_as_a_plain_user(run_as_plain_user):
        run_as_plain_user(__file__)


# --- what root of the container may do to the interface -------------------------------------------

JOIN = """
import fcntl, os, struct, sys
for flags in (0x5002, 0x5102):  # TAP, NO_PI, VNET_HDR, without and with MULTI_QUEUE
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"eth0", flags))  # TUNSETIFF
        print("joined")
    except OSError as error:
        print(error.errno)
"""


def test_a_tap_of_one_queue_cannot_be_joined(agent, container):
    """Header size, flags and persistence belong to the whole interface: a process that attaches a
    queue could change them."""
    join = ["-c", JOIN]
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid)) as tap:
        assert container.run(sys.executable, *join).split() == [str(errno.EBUSY), str(errno.EINVAL)]
        assert container.run("ls", "/sys/class/net/eth0/queues").split() == ["rx-0", "tx-0"]
        seen = link(container, "eth0")
        assert (seen["num_tx_queues"], seen["txqlen"]) == (1, QUEUE_PACKETS)
        assert not seen["linkinfo"]["info_data"]["multi_queue"]
        assert tap.queues == 1
    # a multi-queue TAP has to permit it
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid, queues=2)) as tap:
        assert container.run(sys.executable, *join).split() == [str(errno.EINVAL), "joined"]


def receiving(tap: Tap) -> tuple[Engine, PortRx, MemoryPort]:
    """An engine that receives the container's frames."""
    port, out = TapPort("eth0", tap.fds, offloads=tap.offloads), MemoryPort("out", 1)
    rx = PortRx(port)
    rx >> PortTx(out)
    engine = Engine("e0", PacketPool(small=64, large=16))
    engine.load([rx])
    return engine, rx, out


def test_frames_that_cannot_be_read_are_counted(agent, container):
    """A virtio-net header of 1 MiB, as root of a container may set for a multi-queue TAP: no frame
    fits behind it."""
    with agent.open_nic(TapRequest(name="eth0", pid=container.pid, addresses=("10.0.0.2/24",))) as tap:
        container.run("ip", "neigh", "add", "10.0.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0")
        engine, rx, out = receiving(tap)
        fcntl.ioctl(tap.fds[0], TUNSETVNETHDRSZ, struct.pack("i", 1 << 20))
        start(engine)
        with container.udp_socket() as sender:
            while rx.statistics()["dropped"]["unreadable"] < 100:
                sender.sendto(b"x" * 100, ("10.0.0.9", 9))
            before = rx.statistics()
            assert before["dropped"]["no_buffer"] == 0 and out.take() == []
            fcntl.ioctl(tap.fds[0], TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
            got: list[bytes] = []
            while not any(len(frame) == 142 for frame in got):  # reading continues
                sender.sendto(b"x" * 100, ("10.0.0.9", 9))
                got += [frame.data for frame in engine.call(out.take)]
        assert engine.conservation()["conserved"]
        engine.stop()
        engine.close()


# read(2) as of a TAP in Linux before "tun: Pad virtio headers": SURPLUS bytes behind the 10 of the
# virtio-net header are counted and not written.
OLD_KERNEL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
long syscall(long number, ...)
{
    static long (*real)(long, ...);
    static char frame[70000];
    long a[6], got, surplus = atol(getenv("SURPLUS"));
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number != SYS_read || a[2] < 60000)
        return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    got = real(SYS_read, a[0], frame, sizeof(frame));
    if (got < 10)
        return got;
    memcpy((char *)a[1], frame, 10);
    memcpy((char *)a[1] + 10 + surplus, frame + 10, got - 10);
    return got + surplus;
}
"""
OLD_READER = """
import json, socket
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.packet.pool import PacketPool
from dataplane.graph.port import PortRx, PortTx
from dataplane.ports.memory import MemoryPort
from dataplane.ports.tap_port import TapPort
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pool = PacketPool(small=64, large=4)
secret, port, out = MemoryPort("secret", 2), TapPort("eth0", [ours.fileno()]), MemoryPort("out", 1)
rx, before = PortRx(port), PortRx(secret)
rx >> PortTx(out)
before >> PortTx(MemoryPort("elsewhere", 3))
engine = Engine("e0", pool, clock=Clock(virtual=True, start_ns=1))
engine.load([rx, before])
secret.inject([b"SECRET" * 10000] * 4)  # every large buffer of the pool has been another NIC's
advance(engine, 2)
theirs.send(bytes(10) + b"\\xff" * 6 + b"\\2\\0\\0\\0\\0\\1" + b"\\x88\\xb5" + b"a" * 46)
while rx.statistics()["received"] == 0:
    advance(engine, 3)
assert engine.conservation()["conserved"]
print(json.dumps([[frame.data.hex() for frame in out.take()], rx.statistics()["dropped"]]))
"""


@pytest.mark.parametrize("surplus", [0, 1, 13, 14, 15, 40, 1190])
def test_an_old_kernel_shows_nothing_of_other_frames(tmp_path, surplus):
    """Root of the container has increased the virtio-net header size: bytes that the kernel did not
    write are not taken for a frame."""
    (tmp_path / "old.c").write_text(OLD_KERNEL)
    library = tmp_path / "old.so"
    subprocess.run([need("gcc"), "-shared", "-fPIC", "-o", library, tmp_path / "old.c", "-ldl"], check=True)
    # AddressSanitizer's must come first
    preloaded = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
    environment = {**os.environ, "LD_PRELOAD": preloaded, "SURPLUS": str(surplus)}
    done = subprocess.run(
        [sys.executable, "-c", OLD_READER],
        env=environment,
        cwd=plain_user.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    frames, dropped = json.loads(done.stdout)
    frame = b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x88\xb5" + b"a" * 46
    if surplus < 14:
        assert frames == [(bytes(surplus) + frame).hex()] and dropped["unreadable"] == 0
    else:
        assert frames == [] and dropped["unreadable"] == 1

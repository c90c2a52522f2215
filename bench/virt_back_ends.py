"""Back ends of `bench virt`: what forwards between the sockets of two vhost-user ports. vnic, and its
peers in C: DPDK's testpmd, and Open vSwitch with DPDK.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen

from bench.errors import BenchError
from bench.instance import ROOT
from bench.probes import run
from bench.space import Space, wait_for

CPUS = sorted(os.sched_getaffinity(0))
TESTPMD = "dpdk-testpmd"
# 512 MB each, 4 KiB pages: no huge pages are needed, and two of them fit a machine of 2 GB
MEMORY = ("--no-huge", "-m", "512", "--no-pci", "--no-telemetry")
MACS = ("02:00:00:00:01:00", "02:00:00:00:01:01")
START_S = 20.0
RATE = "100gbit"  # a shaper that delays nothing: what its work costs


class BackEnd:
    """What forwards between the two sockets, with one CPU for its packets.

    name   its key in the result
    what   for readers
    peer   the back end whose rates it is compared with
    """

    name = ""
    what = ""
    peer = ""

    def __init__(self, *, packed: bool) -> None:
        self.packed = packed
        self.rings = "packed" if packed else "split"
        self.peer = f"testpmd_io_{self.rings}"

    def missing(self) -> str:
        """What has to be installed; "": nothing."""
        return ""

    def up(self, space: Space, sockets: Sequence[Path]) -> None:
        """Starts it. Raises BenchError."""
        raise NotImplementedError


class Vnic(BackEnd):
    """vnic with two NICs on its switch, on an engine that polls."""

    def __init__(self, *, packed: bool, shape: bool = False) -> None:
        super().__init__(packed=packed)
        self.shape = shape
        self.name = f"vnic_{self.rings}{'_shape' if shape else ''}"
        self.what = f"vnic, {self.rings} rings: switch{' and shaper' if shape else ''}"

    def up(self, space: Space, sockets: Sequence[Path]) -> None:
        group = f"groups: {{default: {{mode: dedicated, cpus: [{CPUS[-1]}]}}}}\n"
        start_vnic(space, sockets, group, f", egress: {{rate: {RATE}}}" if self.shape else "")


class Testpmd(BackEnd):
    """testpmd with two vhost ports. Mode `io` passes packets on without a look at them; `macswap`
    exchanges their addresses, hence loads and stores their headers, as a switch does."""

    def __init__(self, *, packed: bool, mode: str = "io") -> None:
        super().__init__(packed=packed)
        self.mode = mode
        self.name = f"testpmd_{mode}_{self.rings}"
        self.what = f"DPDK testpmd, {self.rings} rings: {mode}, no lookup"

    def missing(self) -> str:
        return "" if shutil.which(TESTPMD) else "dpdk-testpmd (Debian: dpdk, librte-meta-all)"

    def up(self, space: Space, sockets: Sequence[Path]) -> None:
        ports = [f"--vdev=net_vhost{n},iface={path},queues=1" for n, path in enumerate(sockets)]
        process = start_testpmd(space, "back", CPUS[-1], CPUS[0], ports, 64, self.mode)
        tell(process, "start")


class OvsDpdk(BackEnd):
    """Open vSwitch's userspace datapath with DPDK, whose bridge looks addresses up: what vnic does
    here. Database and daemon have a directory of their own and end with the `with` block."""

    SCHEMA = Path("share/openvswitch/vswitch.ovsschema")
    # Debian's alternatives do not switch to the daemon with DPDK by themselves.
    DAEMON = Path("lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")

    def __init__(self, *, packed: bool) -> None:
        super().__init__(packed=packed)
        self.name = f"ovs_dpdk_{self.rings}"
        self.what = f"Open vSwitch with DPDK, {self.rings} rings: switch"

    @property
    def prefix(self) -> Path:
        """Where it is installed: the directory over that of ovs-vsctl."""
        return Path(shutil.which("ovs-vsctl") or "/usr/bin/ovs-vsctl").parents[1]

    def missing(self) -> str:
        tools = ("ovsdb-tool", "ovsdb-server", "ovs-vsctl")
        found = all(shutil.which(tool) for tool in tools) and (self.prefix / self.DAEMON).exists()
        return "" if found else "openvswitch-switch-dpdk (Debian)"

    def up(self, space: Space, sockets: Sequence[Path]) -> None:
        at = space.directory
        directories = dict.fromkeys(
            ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR", "HOME", "XDG_RUNTIME_DIR"), str(at)
        )
        database = f"unix:{at}/db.sock"
        common = ["--no-chdir", "-vconsole:warn", "-vsyslog:off", "-vfile:off"]
        run(["ovsdb-tool", "create", str(at / "conf.db"), str(self.prefix / self.SCHEMA)])
        server = ["ovsdb-server", str(at / "conf.db"), f"--remote=p{database}", f"--unixctl={at}/db.ctl"]
        space.start([*server, f"--pidfile={at}/db.pid", *common], **directories)
        wait_for((at / "db.sock").exists, START_S, "ovsdb-server did not open its socket")
        control = ["ovs-vsctl", f"--db={database}", f"--timeout={START_S:.0f}"]
        run([*control, "--no-wait", "init"])
        settings = {
            "dpdk-init": "true",
            # --legacy-mem is what --no-huge means; given, the daemon does not add its contrary
            "dpdk-extra": f'"{" ".join(MEMORY)} --legacy-mem --file-prefix=ovs"',
            "per-port-memory": "true",  # else 262,144 buffers of 3 KB
            "dpdk-lcore-mask": hex(1 << CPUS[0]),
            "pmd-cpu-mask": hex(1 << CPUS[-1]),
        }
        run(
            [
                *control,
                "--no-wait",
                "set",
                "Open_vSwitch",
                ".",
                *(f"other_config:{key}={value}" for key, value in settings.items()),
            ]
        )
        daemon = [str(self.prefix / self.DAEMON), database, f"--unixctl={at}/vs.ctl", f"--pidfile={at}/vs.pid", *common]
        process = space.start(daemon, within=space.middle, **directories)  # the bridge has an interface
        command = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"]
        for path in sockets:
            # Its sockets are in its own directory, named as the ports: the sockets asked for.
            command += ["--", "add-port", "br0", path.name, "--", "set", "interface", path.name, "type=dpdkvhostuser"]
        run([*control, *command])
        wait_up(space, process, lambda: all(path.exists() for path in sockets), "ovs-vswitchd did not open its sockets")


OURS: tuple[BackEnd, ...] = tuple(Vnic(packed=packed, shape=shape) for shape in (False, True) for packed in (False, True))
PEERS: tuple[BackEnd, ...] = (
    *(Testpmd(packed=packed, mode=mode) for mode in ("io", "macswap") for packed in (False, True)),
    *(OvsDpdk(packed=packed) for packed in (False, True)),
)


def start_vnic(space: Space, sockets: Sequence[Path], group: str = "", settings: str = "") -> "Popen[bytes]":
    """An instance with a NIC for each socket. Raises BenchError."""
    nics = "".join(f"  v{n}: {{kind: vhost-user, listen: {path}{settings}}}\n" for n, path in enumerate(sockets))
    file = space.directory / "vnic.yaml"
    file.write_text(f"{group}nics:\n{nics}")
    process = space.start(
        [sys.executable, "-m", "vnic.cli.main", "up", str(file)], PYTHONPATH=str(ROOT), VNIC_RUNTIME_DIR=str(space.directory)
    )
    wait_up(space, process, lambda: all(path.exists() for path in sockets), "vnic did not come up")
    return process


def start_testpmd(
    space: Space, name: str, cpu: int, other: int, ports: Sequence[str], length: int, mode: str = "io"
) -> "Popen[bytes]":
    """testpmd that forwards on one CPU and reads commands on another."""
    # stdbuf: what it prints is read while it runs
    command = [
        "stdbuf",
        "-oL",
        TESTPMD,
        "-l",
        f"{min(cpu, other)},{max(cpu, other)}",
        "--main-lcore",
        str(other),
        *MEMORY,
        f"--file-prefix={name}",
    ]
    forward = ["--nb-cores=1", "--total-num-mbufs=8192", f"--forward-mode={mode}", f"--txpkts={length}", "--stats-period=0"]
    peers = [f"--eth-peer={n},{mac}" for n, mac in enumerate(reversed(MACS))]
    process = space.start(
        [*command, *ports, "--", *forward, *peers, "-i"],
        HOME=str(space.directory),
        XDG_RUNTIME_DIR=str(space.directory),
        LD_PRELOAD="",  # a sanitizer's library, in tests of the checked build
    )
    wait_up(space, process, lambda: "testpmd>" in output_of(space, process), "testpmd did not start")
    return process


def wait_up(space: Space, process: "Popen[bytes]", condition: Callable[[], bool], what: str) -> None:
    """Waits for a process that has just been started. Raises BenchError, with the process' own last
    line if it has ended."""

    def is_up() -> bool:
        if process.poll() is not None:
            raise BenchError(space.complaint(process))
        return condition()

    wait_for(is_up, START_S, what)


def tell(process: "Popen[bytes]", command: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{command}\n".encode())
    process.stdin.flush()


def output_of(space: Space, process: "Popen[bytes]") -> str:
    return (space.directory / f"log{space.processes.index(process)}").read_text(errors="replace")


def received(space: Space, front: "Popen[bytes]", count: int) -> tuple[int, float]:
    """Packets that both ports have received, as the `count`th report has them, and when it came."""
    tell(front, "show port stats all")
    wait_for(lambda: output_of(space, front).count("RX-packets:") >= 2 * count, START_S, "testpmd did not answer")
    now = time.monotonic()
    counts = re.findall(r"RX-packets:\s*(\d+)", output_of(space, front))
    return sum(int(each) for each in counts[2 * count - 2 : 2 * count]), now

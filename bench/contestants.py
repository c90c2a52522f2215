"""The contestants: vnic, the bare loops, and the installed peers. Each connects two namespaces."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.errors import RequestError
from bench.probes import BIN, run
from bench.space import Space, wait_for

SPIN = "5ms"  # longer than the pause between two pings


class Contestant:
    """A path between two namespaces. `up` builds it in a Space, which removes everything
    afterwards."""

    name = ""
    what = ""

    def missing(self) -> str:
        """The missing program or file; "" where nothing is missing."""
        return ""

    def up(self, space: Space) -> subprocess.Popen[bytes] | None:
        """Builds the path and waits until it forwards datagrams. Returns the forwarding process;
        None where the kernel forwards."""
        raise NotImplementedError

    def interfaces(self) -> tuple[str, str]:
        """Names of the interfaces of the two ends."""
        return "t0", "t0"


class Bare(Contestant):
    """read() and write(), nothing between them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.name = f"bare-{threads}"
        self.what = "bare C loop, one thread, bursts" if threads == 1 else "bare C loop, two blocking threads"

    def up(self, space: Space) -> subprocess.Popen[bytes] | None:
        ends = [space.path(space.a), "t0", space.path(space.b), "t0"]
        process = space.start([str(BIN / "bare"), str(self.threads), *ends])
        space.wait_interface(space.b, "t0", process)
        space.connect("t0", "t0")
        return process


class Vnic(Contestant):
    """`vnic up FILE.yaml` as a user runs it: two NICs, one engine, the switch between them."""

    def __init__(self, spin: str = "", kind: str = "tap") -> None:
        self.spin, self.kind = spin, kind
        self.name = "vnic-spin" if spin else "vnic" if kind == "tap" else f"vnic-{kind}"
        over = "" if kind == "tap" else f" over {kind}"
        self.what = f"vnic{over}, switch, spins {spin}" if spin else f"vnic{over}, switch, sleeps when idle"

    def missing(self) -> str:
        # A tree without the command line can still measure the bare loops and the peers.
        return "" if (Path(__file__).parents[1] / "vnic" / "cli" / "main.py").exists() else "vnic/cli/main.py"

    def up(self, space: Space) -> subprocess.Popen[bytes] | None:
        nics = "".join(
            f"  {nic}: {{netns: {space.path(name)}, interface: t0, kind: {self.kind}}}\n"
            for nic, name in (("a", space.a), ("b", space.b))
        )
        file = space.directory / "vnic.yaml"
        file.write_text(f"nics:\n{nics}" + (f"spin: {self.spin}\n" if self.spin else ""))
        root = str(Path(__file__).parents[1])
        environment = {"PYTHONPATH": root, "XDG_RUNTIME_DIR": str(space.directory), "VNIC_RUNTIME_DIR": str(space.directory)}
        process = space.start([sys.executable, "-m", "vnic.cli.main", "up", str(file)], **environment)
        for name in (space.a, space.b):
            space.wait_interface(name, "t0", process)
        space.connect("t0", "t0")
        return process


class Bridge(Contestant):
    """The kernel's bridge between two veth pairs. Not directly comparable: it makes no copy to user
    space, and needs root."""

    name = "bridge"
    what = "Linux bridge + veth"

    def up(self, space: Space) -> subprocess.Popen[bytes] | None:
        middle = ["ip", "-n", space.middle, "link"]
        run([*middle, "add", "br0", "type", "bridge"])
        run([*middle, "set", "br0", "up"])
        for port, name in (("pa", space.a), ("pb", space.b)):
            run([*middle, "add", port, "type", "veth", "peer", "name", "t0", "netns", name])
            run([*middle, "set", port, "master", "br0", "up"])
        # For best results: where br_netfilter is loaded, every frame would pass iptables.
        switch_off = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ -e $f ] && echo 0 > $f; done; true"
        run(["nsenter", f"--net={space.path(space.middle)}", "sh", "-c", switch_off])
        space.connect("t0", "t0")
        return None


class Vde(Contestant):
    """vde_switch with one vde_plug2tap per namespace."""

    name = "vde"
    what = "VDE: vde_switch + vde_plug2tap"

    def missing(self) -> str:
        return next((tool for tool in ("vde_switch", "vde_plug2tap") if not shutil.which(tool)), "")

    def up(self, space: Space) -> subprocess.Popen[bytes] | None:
        socket = space.directory / "vde"
        switch = space.start(["vde_switch", "-s", str(socket)])
        wait_for((socket / "ctl").exists, 5, "vde_switch did not open its socket")
        for name in (space.a, space.b):
            plug = space.start(["vde_plug2tap", "-s", str(socket), "t0"], within=name)
            space.wait_interface(name, "t0", plug)
        space.connect("t0", "t0")
        return switch


class OpenVSwitch(Contestant):
    """Open vSwitch's userspace datapath: database server and switch daemon in a namespace and
    directory of their own."""

    SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")

    def __init__(self, tso: bool) -> None:
        self.tso = tso
        self.name = "ovs-tso" if tso else "ovs"
        self.what = "Open vSwitch userspace, TSO on" if tso else "Open vSwitch userspace"

    def missing(self) -> str:
        tools = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl")
        absent = next((tool for tool in tools if not shutil.which(tool)), "")
        return absent or ("" if self.SCHEMA.exists() else str(self.SCHEMA))

    def interfaces(self) -> tuple[str, str]:
        return "pa", "pb"

    def up(self, space: Space) -> subprocess.Popen[bytes] | None:
        at = space.directory
        directories = dict.fromkeys(("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"), str(at))
        database = f"unix:{at}/db.sock"
        common = ["--no-chdir", "-vconsole:warn", "-vsyslog:off", "-vfile:off"]
        run(["ovsdb-tool", "create", str(at / "conf.db"), str(self.SCHEMA)])
        server = ["ovsdb-server", str(at / "conf.db"), f"--remote=p{database}", f"--unixctl={at}/db.ctl"]
        space.start([*server, f"--pidfile={at}/db.pid", *common], **directories)
        wait_for((at / "db.sock").exists, 5, "ovsdb-server did not open its socket")
        control = ["ovs-vsctl", f"--db={database}", "--timeout=10"]
        run([*control, "--no-wait", "init"])
        if self.tso:
            run([*control, "--no-wait", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true"])
        daemon = ["ovs-vswitchd", database, "--disable-system", f"--unixctl={at}/vs.ctl", f"--pidfile={at}/vs.pid", *common]
        process = space.start(daemon, within=space.middle, **directories)
        command = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"]
        for port in self.interfaces():
            command += ["--", "add-port", "br0", port, "--", "set", "interface", port, "type=internal"]
        run([*control, *command])
        for port, name in zip(self.interfaces(), (space.a, space.b), strict=True):
            space.wait_interface(space.middle, port, process)
            run(["ip", "-n", space.middle, "link", "set", port, "netns", name])
        space.connect(*self.interfaces())
        return process


ALL: tuple[Contestant, ...] = (
    Vnic(),
    Vnic(SPIN),
    Bare(1),
    Bare(2),
    OpenVSwitch(tso=True),
    OpenVSwitch(tso=False),
    Vde(),
    Bridge(),
)
BARE = ("bare-1", "bare-2")
OURS = ("vnic", "vnic-spin")


def cpu_ns(pid: int) -> int:
    """CPU time used by all threads of the process, ns. (/proc/PID/stat counts in ticks of 10 ms:
    too coarse.)"""
    try:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        return sum(int(t) for t in ticks) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def tree_cpu_ns(pid: int) -> int:
    """CPU time of the process and of its descendants that still run, ns."""
    children: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        children |= {int(child) for child in (task / "children").read_text().split()}
    return cpu_ns(pid) + sum(tree_cpu_ns(child) for child in children)


def tree_resident_kb(pid: int) -> int:
    """Memory of the process and its descendants in KiB; shared pages are divided by their users
    (Pss)."""
    children: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        children |= {int(child) for child in (task / "children").read_text().split()}
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
    return own + sum(tree_resident_kb(child) for child in children)


def choose(names: list[str]) -> tuple[list[Contestant], list[str]]:
    """The named contestants (none named: all) that can run, and a line for each that cannot. Raises
    RequestError."""
    known = {c.name: c for c in ALL}
    for name in names:
        if name not in known:
            raise RequestError(f"unknown contestant {name!r}: expected some of {', '.join(known)}")
    wanted = [c for c in ALL if not names or c.name in names]
    lacking = [f"{c.name} is left out: no {c.missing()}" for c in wanted if c.missing()]
    return [c for c in wanted if not c.missing()], lacking

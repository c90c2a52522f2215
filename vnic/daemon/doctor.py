"""`vnic doctor`: checks this machine and suggests fixes.

Changes nothing. User namespaces and a TAP with offloads are tried in a child process, in namespaces
that end with it.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataplane.engine.cgroup import Hierarchy, hierarchies
from dataplane.errors import VnicError, one_line
from vnic.device.link import TUN_DEVICE, try_tun_device

# has pidfd_open, IFF_MULTI_QUEUE with vnet headers and all other features used
KERNEL_LEAST = (5, 10)
DESCRIPTORS_LEAST = 1024  # a NIC takes one per queue, up to 64, and a few others
TRIAL_S = 20.0
COMPILED_PACKAGES = ("dataplane", "shaping", "switching")


GUARANTEES = {
    "deadline": "by SCHED_DEADLINE, on all CPUs; SCHED_RR with a budget where cpus: are given",
    "rr": "by SCHED_RR with a budget",
    "budget": "none by the kernel; a budget of our own",
}


@dataclass
class Finding:
    """The result of a check. remedy: advice if not ok."""

    name: str
    ok: bool
    needed: bool
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# Runs in a child: enters new namespaces and reports features that work there as a JSON object. A
# script, so that the child has one thread and few modules; ctypes, as os.unshare needs Python 3.12.
_TRIAL = r"""
import ctypes, errno, fcntl, json, os, socket, struct
NEWUSER, NEWNET = 0x10000000, 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
TAP, MULTI_QUEUE, NO_PI, VNET_HDR = 0x2, 0x100, 0x1000, 0x4000
CSUM, TSO4, TSO6, ECN, USO4, USO6 = 1, 2, 4, 8, 0x20, 0x40
libc = ctypes.CDLL(None, use_errno=True)
report = {}
uid, gid = os.geteuid(), os.getegid()

def unshare(flags):
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

try:
    try:
        unshare(NEWUSER)
        report["user"] = None
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"),
                           ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        report["user"] = error.strerror
    unshare(NEWNET)
    report["net"] = None
    tun = os.open("/dev/net/tun", os.O_RDWR)
    flags = TAP | MULTI_QUEUE | NO_PI | VNET_HDR
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"vnicdoctor", flags))
    report["tap"] = None
    for name, bits in (("tso", CSUM | TSO4 | TSO6 | ECN),
                       ("uso", CSUM | TSO4 | TSO6 | USO4 | USO6)):
        try:
            fcntl.ioctl(tun, TUNSETOFFLOAD, bits)
            report[name] = None
        except OSError as error:
            report[name] = error.strerror
except OSError as error:
    report["net" if "net" not in report else "tap"] = error.strerror
if report["net"] is None:
    try:
        from pyroute2 import IPRoute
        with IPRoute() as ip:
            ip.link("add", ifname="v0", kind="veth", peer="v1")
        report["veth"] = None
    except Exception as error:
        report["veth"] = str(error)
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
        report["packet"] = None
    except OSError as error:
        report["packet"] = error.strerror
print(json.dumps(report))
"""


def _try_namespaces() -> dict[str, str | None]:
    """Features in a new user and network namespace: name -> None if it works, or the error."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL], capture_output=True, timeout=TRIAL_S
        )
        report: dict[str, str | None] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"user": f"the trial failed: {error}"}
    return report


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _compiled() -> Finding:
    """Whether the compiled modules, found by their stubs, can be imported."""
    root = Path(__file__).resolve().parents[2]
    stubs = sorted(
        stub for package in COMPILED_PACKAGES for stub in (root / package).rglob("*.pyi")
    )
    names = [".".join(stub.relative_to(root).with_suffix("").parts) for stub in stubs]
    remedy = (
        "install vnic again, from a wheel for this Python and machine, "
        "or from the source with a C compiler"
    )
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module of another Python or version may raise anything
            return Finding(
                "compiled modules",
                False,
                True,
                f"{name} cannot be imported: {one_line(error)}",
                remedy,
            )
    return Finding(
        "compiled modules",
        bool(names),
        True,
        f"all {len(names)} can be imported" if names else "none found",
        remedy,
    )


def _kernel() -> Finding:
    release = platform.release()
    number = re.match(r"(\d+)\.(\d+)", release)
    ok = number is not None and (int(number[1]), int(number[2])) >= KERNEL_LEAST
    least = ".".join(map(str, KERNEL_LEAST))
    return Finding(
        "kernel",
        ok,
        True,
        f"Linux {release}",
        f"vnic needs Linux {least} or newer: boot a newer kernel",
    )


def _tun(trial: dict[str, str | None]) -> Finding:
    try:
        try_tun_device()
    except VnicError as error:
        found, _, remedy = str(error).rpartition(": ")
        return Finding("tun device", False, not _has_veth(trial), found, remedy)
    return Finding("tun device", True, True, f"{TUN_DEVICE} can be opened")


def _user_namespaces(trial: dict[str, str | None]) -> Finding:
    problem = trial.get("user")
    # Only a plain user needs one to attach to containers.
    needed = os.geteuid() != 0
    if problem is None:
        return Finding("user namespaces", True, needed, "can be made")
    remedy = "let unprivileged users make them"
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        remedy = "sudo sysctl user.max_user_namespaces=15000"
    elif _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        remedy = "sudo sysctl kernel.unprivileged_userns_clone=1"
    elif _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        remedy = (
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, "
            "or give vnic an AppArmor profile with userns"
        )
    elif os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        remedy = (
            "this is a container whose seccomp profile forbids them: "
            "--security-opt seccomp=unconfined, or run as root"
        )
    return Finding("user namespaces", False, needed, f"cannot be made: {problem}", remedy)


def _has_veth(trial: dict[str, str | None]) -> bool:
    """Whether NICs of kind veth can do what TAPs cannot here."""
    return all(trial.get(each, "not tried") is None for each in ("veth", "packet"))


def _packet(trial: dict[str, str | None]) -> Finding:
    problem = trial.get("packet", "see user namespaces above")
    found = "can be opened" if problem is None else f"cannot be opened: {problem}"
    remedy = (
        "NICs of kinds veth and packet need them: give vnic CAP_NET_RAW, allow socket(AF_PACKET), "
        "or use NICs of kind tap"
    )
    return Finding("packet sockets", problem is None, False, found, remedy)


def _veth(trial: dict[str, str | None]) -> Finding:
    problem = trial.get("veth", "see user namespaces above")
    found = "a pair can be made" if problem is None else f"none can be made: {problem}"
    return Finding(
        "veth",
        problem is None,
        False,
        found,
        "load the module (modprobe veth), or use NICs of kind tap",
    )


def _tap(trial: dict[str, str | None]) -> list[Finding]:
    needed = not _has_veth(trial)
    if trial.get("net") is not None:
        found = f"no network namespace can be made: {trial['net']}"
        return [Finding("tap", False, True, found, "see user namespaces above, or run as root")]
    if "tap" not in trial:
        return [Finding("tap", False, True, "could not be tried", "see user namespaces above")]
    if trial["tap"] is not None:
        remedy = (
            "see tun device above"
            if trial["tap"] != "Invalid argument"
            else "the kernel needs CONFIG_TUN with multi-queue"
        )
        return [Finding("tap", False, needed, f"none can be made: {trial['tap']}", remedy)]
    findings = [Finding("tap", True, True, "multi-queue TAP with virtio-net header can be made")]
    tso, uso = trial.get("tso", "not tried"), trial.get("uso", "not tried")
    findings.append(
        Finding(
            "TSO",
            tso is None,
            False,
            f"not supported: {tso}" if tso else "supported",
            "TCP will be slower",
        )
    )
    remedy = "needs Linux 6.2 or newer; UDP is segmented by the containers instead"
    findings.append(
        Finding("USO", uso is None, False, f"not supported: {uso}" if uso else "supported", remedy)
    )
    return findings


def _memfd() -> Finding:
    try:
        os.close(os.memfd_create("vnic-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        return Finding(
            "memfd",
            False,
            True,
            f"cannot be made: {error.strerror}",
            "allow memfd_create in the seccomp profile",
        )
    return Finding("memfd", True, True, "can be made")


def _memory() -> Finding:
    available = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    limit = _read("/sys/fs/cgroup/memory.max")
    free = int(available[1]) >> 10 if available else 0
    if limit.isdecimal():
        used = _read("/sys/fs/cgroup/memory.current")
        free = min(free, (int(limit) - int(used or 0)) >> 20)
    # The default pool: 16,384 x 2 KiB and 1,024 x 68 KiB.
    return Finding(
        "memory",
        free >= 200,
        False,
        f"{free} MB available",
        "the default pool takes 100 MB; make pool: smaller",
    )


def _cpus() -> list[Finding]:
    usable = len(os.sched_getaffinity(0))
    findings = [
        Finding(
            "CPUs",
            usable >= 2,
            False,
            f"{usable} usable",
            "an engine beside its containers wants two or more",
        )
    ]
    words = _read("/sys/fs/cgroup/cpu.max").split()
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
        share = int(words[0]) / int(words[1])
        remedy = (
            "the limit stops an engine for milliseconds at a time, "
            "which shaping and latency will show: raise it"
        )
        findings.append(
            Finding("CPU limit", share >= usable, False, f"{share:g} CPUs by its cgroup", remedy)
        )
    else:
        findings.append(Finding("CPU limit", True, False, "none by its cgroup"))
    return findings


def _guarantee() -> Finding:
    """The kind of CPU guarantee that engines' threads can have, tried in a child process."""
    code = "from dataplane.groups.guarantee import permitted; print(permitted())"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TRIAL_S, cwd=root
    )
    found = done.stdout.strip()
    remedy = (
        "engines get no guarantee and keep to their budget by themselves; for more: "
        "CAP_SYS_NICE, or ulimit -r 1"
    )
    return Finding(
        "CPU guarantee",
        found in ("deadline", "rr"),
        False,
        GUARANTEES.get(found, "could not be tried"),
        remedy,
    )


def _cgroup_use(hierarchy: Hierarchy) -> str:
    """Use of the hierarchy's cgroups for an engine group: "charges", "bounds", both, or ""."""
    controllers, two = hierarchy.controllers, hierarchy.version == 2
    uses = {"charges": two or "cpuacct" in controllers, "bounds": "cpu" in controllers}
    return " and ".join(use for use, there in uses.items() if there)


def _cgroups() -> Finding:
    """Whether a cgroup for an engine group could be created and joined, by file permissions, since
    creating one would change the machine."""
    useful = [each for each in hierarchies() if _cgroup_use(each)]
    # To move threads, version 2 requires write access to cgroup.procs of the common ancestor.
    gates = {1: ".", 2: "cgroup.procs"}
    ours = [
        each
        for each in useful
        if os.access(each.own, os.W_OK | os.X_OK)
        and os.access(os.path.join(each.own, gates[each.version]), os.W_OK)
    ]
    remedy = (
        "engines are charged by vnic accounts all the same; "
        "for the kernel's charges, have a cgroup delegated to this user"
    )
    if not useful:
        return Finding(
            "cgroups",
            False,
            False,
            "no hierarchy that charges or bounds CPU time is mounted",
            remedy,
        )
    shown = ", ".join(
        f"v{each.version} in {each.own} ({_cgroup_use(each)} CPU time)" for each in ours or useful
    )
    return Finding(
        "cgroups",
        bool(ours),
        False,
        f"{'can' if ours else 'none can'} be made and joined: {shown}",
        remedy,
    )


def _timer_slack() -> Finding:
    text = _read("/proc/self/timerslack_ns")
    slack_ns = int(text) if text.isdecimal() else 50_000
    remedy = (
        "a sleeping engine wakes that late: "
        "set a spin time, or start vnic from a shell with the default slack"
    )
    return Finding("timer slack", slack_ns <= 50_000, False, f"{slack_ns / 1000:g} us", remedy)


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (at most {'unlimited' if hard == resource.RLIM_INFINITY else hard})"
    return Finding(
        "open files", soft >= DESCRIPTORS_LEAST, False, found, f"ulimit -n {DESCRIPTORS_LEAST}"
    )


def _tools() -> Finding:
    wanted = {"ip": "iproute2", "tcpdump": "tcpdump", "iperf3": "iperf3", "dot": "graphviz"}
    missing = {tool: package for tool, package in wanted.items() if shutil.which(tool) is None}
    if not missing:
        return Finding("optional tools", True, False, ", ".join(wanted))
    return Finding(
        "optional tools",
        False,
        False,
        f"without {', '.join(missing)}",
        f"apt install {' '.join(missing.values())}",
    )


def examine() -> list[Finding]:
    """Runs all checks, the required ones first."""
    trial = _try_namespaces()
    checks: list[Callable[[], Finding]] = [
        _compiled,
        _kernel,
        lambda: _tun(trial),
        lambda: _user_namespaces(trial),
    ]
    findings = (
        [check() for check in checks]
        + _tap(trial)
        + [_veth(trial), _packet(trial), _memfd(), _memory(), *_cpus()]
    )
    return findings + [_guarantee(), _cgroups(), _timer_slack(), _descriptors(), _tools()]

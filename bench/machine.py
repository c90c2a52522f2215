"""The machine's description, needed to interpret figures."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path


def _first_line(command: list[str]) -> str:
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def clock_hz() -> float:
    """The rate of the CPUs' time stamp counter, which virtual machines and most kernels give as the
    CPU's; 0: unknown."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2]) * 1e6
    return 0.0


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    return _first_line([*git, "describe", "--always", "--dirty"]) if (Path(__file__).parents[1] / ".git").exists() else ""


def describe() -> dict[str, object]:
    """CPU, kernel, versions, load, date, for the interpretation of figures."""
    versions = {
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "cython": _version("Cython"),
        "gcc": _first_line(["gcc", "--version"]),
        "openvswitch": _first_line(["ovs-vswitchd", "--version"]),
        "vde": _first_line(["vde_switch", "--version"]),
    }
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "load_before": os.getloadavg()[0],
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }

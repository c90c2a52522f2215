"""The kernel and the initial file system that QEMU's guests in tests boot: Debian's kernel for
clouds with its virtio-net driver, and the machine's own busybox, ping, iperf3 and ethtool.

    python -m tests.support.guest_kernel       # fetches and makes them, in build/guests
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.shell import LOOP
from tests.tools import need

DIRECTORY = Path(__file__).parents[2] / "build" / "guests"
PACKAGE = "linux-image-cloud-amd64"  # depends on the kernel of the day
APPLETS = "sh mount insmod ip cat echo sleep poweroff reboot ls grep head tail wc dmesg stty ln seq mkdir true"
TOOLS = ("ping", "iperf3", "ethtool")
# In the order of their dependencies.
MODULES = (
    "net/core/failover", "drivers/net/net_failover", "drivers/virtio/virtio_ring", "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci",
    "drivers/net/virtio_net",
)  # fmt: skip

INIT = f"""#!/bin/sh
export PATH=/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
stty -echo -onlcr
for each in {" ".join(Path(module).name for module in MODULES)}; do insmod /modules/$each.ko; done
ping() {{ /bin/ping "$@"; }}  # not busybox' own
ip link set lo up
tries=0; while [ ! -e /sys/class/net/eth0 ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries+1)); done
{LOOP}
poweroff -f
"""


class GuestKernel(NamedTuple):
    kernel: Path
    files: Path


def guest_kernel() -> GuestKernel:
    """Makes them once. Skips the test where something is missing."""
    found = GuestKernel(DIRECTORY / "vmlinuz", DIRECTORY / "files.cpio")
    busybox, tools = need("busybox"), [need(tool) for tool in TOOLS]
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with (DIRECTORY / "lock").open("w") as lock:  # several processes run tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.files.exists():
            with tempfile.TemporaryDirectory(dir=DIRECTORY) as scratch:
                _make(Path(scratch), found, busybox, tools)
    return found


def _make(scratch: Path, made: GuestKernel, busybox: str, tools: list[str]) -> None:
    subprocess.run([need("dpkg-deb"), "-x", _package(scratch), "kernel"], cwd=scratch, check=True)
    files = {"bin/busybox": Path(busybox)}
    (kernel,) = scratch.glob("kernel/boot/vmlinuz-*")
    for module in MODULES:
        (path,) = scratch.glob(f"kernel/lib/modules/*/kernel/{module}.ko")
        files[f"modules/{path.name}"] = path
    for tool in tools:
        files[f"bin/{Path(tool).name}"] = Path(tool)
        for library in re.findall(
            r"(?<=\s)/\S+", subprocess.run(["ldd", tool], capture_output=True, text=True, check=True).stdout
        ):
            files[library.lstrip("/")] = Path(library).resolve()
    archive = scratch / "files.cpio"
    archive.write_bytes(_cpio(files))
    shutil.copyfile(kernel, made.kernel)
    archive.replace(made.files)


def _package(scratch: Path) -> str:
    """Fetches the kernel's package; returns its name. Root renews the lists of packages where they
    are missing, or name a kernel that the archive has replaced."""
    why = ""
    for number in range(2):
        if number and os.geteuid() == 0:
            subprocess.run([need("apt-get"), "-q", "update"], capture_output=True, check=False)
        depends = subprocess.run([need("apt-cache"), "depends", PACKAGE], capture_output=True, text=True, check=False)
        if (name := re.search(r"Depends: (linux-image-\S+)", depends.stdout)) is None:
            why = f"{PACKAGE} is in no list of packages (run apt-get update)"
            continue
        done = subprocess.run(
            [need("apt-get"), "-q", "download", name[1]], cwd=scratch, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            (package,) = scratch.glob("*.deb")
            return package.name
        why = f"{name[1]}: {done.stderr.strip()}"
    pytest.skip(f"missing tool: the package {why}")


def _cpio(files: dict[str, Path]) -> bytes:
    """An archive of these files (format "newc": Documentation/driver-api/early-userspace/
    buffer-format.rst of Linux), with the init script, the directories and busybox' applets."""
    taken = {path.partition("/")[2] for path in files if path.startswith("bin/")}
    entries: dict[str, tuple[int, bytes]] = dict.fromkeys(("dev", "proc", "sys", "tmp"), (16877, b""))
    for path, source in files.items():
        for parent in [*Path(path).parents][-2::-1]:
            entries.setdefault(str(parent), (0o040755, b""))
        entries[path] = (0o100755, source.read_bytes())
    entries |= {f"bin/{applet}": (0o120777, b"busybox") for applet in APPLETS.split() if applet not in taken}
    entries["init"] = (0o100755, INIT.encode())
    entries["TRAILER!!!"] = (0, b"")
    made = bytearray()
    for number, (name, (mode, data)) in enumerate(entries.items(), 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        made += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        made += bytes(-len(made) % 4) + data
        made += bytes(-len(made) % 4)
    return bytes(made)


if __name__ == "__main__":
    print(*guest_kernel())

"""Runs a command as a plain user, started by root, without changing the machine.

    python tests/support/plain_user.py [--tun open|closed|missing] [--uid N] -- COMMAND...

The command gets a mount namespace of its own in which /dev/net/tun can be opened by all ("open"),
by root only ("closed"), or does not exist ("missing"); the machine's own node does not change. The
user id need not exist. Directories that only root may pass but that the command must pass (to reach
Python, for example, if that is in root's home) are covered there by empty ones that contain only
the path to what is needed. With `--uid 0` the command stays root: for the "missing" case.

Sources: mount_namespaces(7), mount(2).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path

UID = 12345  # an unused id: the user need not exist
REPOSITORY = Path(__file__).resolve().parents[2]
TUN = Path("/dev/net/tun")
TUN_NUMBER = os.makedev(10, 200)
TUN_MODES = ("open", "closed", "missing")

CLONE_NEWNS = 0x0002_0000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x4_0000


def command_line(argv: list[str], *, tun: str = "open", uid: int = UID) -> list[str]:
    """The command line that runs `argv` as a plain user."""
    return [sys.executable, str(Path(__file__).resolve()), "--tun", tun, "--uid", str(uid), "--", *argv]


def run(argv: list[str], *, tun: str = "open", uid: int = UID, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs `argv` as a plain user to its end; captures its output."""
    return subprocess.run(
        command_line(argv, tun=tun, uid=uid), cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def run_pytest(*arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs tests as a plain user."""
    return run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], timeout_s=timeout_s)


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: Path | str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount {target}")


def _cover_tun(mode: str) -> None:
    """Covers /dev/net, which contains only `tun`, with a new file system; no directory need be
    created for it."""
    mount("none", TUN.parent, "tmpfs", 0, "mode=755")
    if mode != "missing":
        os.mknod(TUN, stat.S_IFCHR, TUN_NUMBER)
        # not by mknod, whose mode the umask would restrict
        TUN.chmod(0o666 if mode == "open" else 0o600)


def _open_way(needed: list[Path]) -> None:
    """Makes the directories `needed` reachable for all users, whatever the modes of their
    parents."""
    for path in needed:
        for parent in reversed(path.parents):
            if parent.stat().st_mode & stat.S_IXOTH:
                continue
            below = [each for each in needed if each.is_relative_to(parent)]
            # still reachable when the parent is covered
            held = [os.open(each, os.O_PATH) for each in below]
            mount("none", parent, "tmpfs", 0, "mode=755")
            for each, fd in zip(below, held, strict=True):
                each.mkdir(parents=True, exist_ok=True)
                mount(f"/proc/self/fd/{fd}", each, flags=MS_BIND | MS_REC)
                os.close(fd)


def main() -> None:
    """Becomes the plain user and executes the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tun", choices=TUN_MODES, default="open")
    parser.add_argument("--uid", type=int, default=UID)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    _cover_tun(arguments.tun)
    here = os.getcwd()
    _open_way([REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)])
    os.chdir(here)  # again: the path to it may have been covered
    # A directory for temporary files that disappears with the mount namespace.
    work_dir = TUN.parent / "tmp"
    work_dir.mkdir()
    os.chown(work_dir, arguments.uid, arguments.uid)
    os.environ.update(HOME=str(work_dir), TMPDIR=str(work_dir), PYTHONDONTWRITEBYTECODE="1")
    if arguments.uid:
        os.setgroups([])
        os.setresgid(arguments.uid, arguments.uid, arguments.uid)
        os.setresuid(arguments.uid, arguments.uid, arguments.uid)
    os.execvp(arguments.command[0], arguments.command)


if __name__ == "__main__":
    main()

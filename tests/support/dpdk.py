"""A program that uses DPDK, for tests: dpdk-testpmd with the NIC virtio-user, over vhost-user, or
net_memif. It needs neither hugepages nor privileges."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.support.shell import Console
from tests.tools import need

RUN_S = 60.0
# A command that does nothing, and its output, which is the end of that of the one before: prompts
# come early.
END, ENDED = "set verbose 0", "Change verbose level from 0 to 0"
PLAIN_USER = 65534


class Testpmd(Console):
    """A running dpdk-testpmd with one device. As root's child it runs as a plain user.

    device    as --vdev has it
    forward   what it does with packets: `icmpecho` answers ARP and ping, `txonly` sends, `rxonly`
              counts
    queues    queue pairs
    """

    __test__ = False  # no class of tests

    def __init__(self, directory: Path, device: str, forward: str, queues: int = 1) -> None:
        directory.mkdir(exist_ok=True)
        plain = ["setpriv", f"--reuid={PLAIN_USER}", f"--regid={PLAIN_USER}", "--clear-groups"] if os.geteuid() == 0 else []
        if plain:
            os.chown(directory, PLAIN_USER, PLAIN_USER)
        super().__init__(
            [*plain, need("stdbuf"), "-oL", need("dpdk-testpmd"), "--lcores=0,1@(0-1)", "--no-huge", "-m", "128",
             "--no-pci", "--no-telemetry", f"--file-prefix={directory.name}", f"--vdev={device}",
             "--", "-i", "--nb-cores=1", "--total-num-mbufs=4096", f"--rxq={queues}", f"--txq={queues}"],
            {**os.environ, "XDG_RUNTIME_DIR": str(directory), "HOME": str(directory)}, cwd=directory, umask=0,
        )  # fmt: skip
        try:
            self.forward(forward)
        except BaseException:
            self.close()
            raise

    def run(self, command: str) -> str:
        """Runs a command at its prompt; returns its output."""
        self._write(command)
        self._write(END)
        return self._read_to(ENDED, RUN_S)

    def forward(self, mode: str, to: str = "") -> None:
        """What it does from now on, and to which MAC address it sends."""
        for command in ("stop", f"set fwd {mode}", *([f"set eth-peer 0 {to}"] if to else []), "start"):
            self.run(command)

    def statistics(self) -> dict[str, int]:
        """Of its port, such as RX-packets."""
        return {name: int(value) for name, value in re.findall(r"([RT]X-\w+): +(\d+)", self.run("show port stats 0"))}


class DpdkProgram(Testpmd):
    """One with the NIC virtio-user.

    path      of the front end's socket
    server    whether it listens at the path, with a socket that every user may connect to
    device    more options of the device, such as `packed_vq=1`
    """

    def __init__(self, directory: Path, path: Path, mac: str, forward: str, *, server: bool = False, device: str = "") -> None:
        if server:
            path.unlink(missing_ok=True)  # DPDK does not replace one that is left
        device = f"net_virtio_user0,path={path},mac={mac},{'server=1,' if server else ''}{device}".rstrip(",")
        super().__init__(directory, device, forward)


class MemifProgram(Testpmd):
    """One with the NIC net_memif: a client of the socket at the path, or a server, which makes it.

    device    more options of the device, such as `secret=sesame`
    """

    def __init__(self, directory: Path, path: Path, mac: str, forward: str, *, server: bool = False, device: str = "",
                 queues: int = 1) -> None:  # fmt: skip
        if server:
            path.unlink(missing_ok=True)
        role = "server" if server else "client"
        device = f"net_memif0,role={role},socket={path},socket-abstract=no,mac={mac},{device}".rstrip(",")
        super().__init__(directory, device, forward, queues)

"""A virtual machine for tests: QEMU without KVM, whose guest is Debian's kernel, over vhost-user or another of QEMU's back ends."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from tests.support.guest_kernel import guest_kernel
from tests.support.shell import Shell
from tests.tools import need

MEMORY = "memory-backend-memfd,id=memory,size=192M,share=on"


class Qemu(Shell):
    """A running guest with the NIC eth0.

    path      of the socket of eth0's front end
    server    whether QEMU listens there
    device    more options of the device, such as `packed=on`
    memory    the object of the guest's memory; "": QEMU's own, which is not shared
    queues    pairs of the device, which needs `mq=on` for more than one
    incoming  waits for a guest that migrates, see the command `migrate-incoming`, instead of booting
    netdev    another back end than vhost-user, such as `dgram,...`: `path` names the control socket only
    """

    def __init__(self, path: Path, *, server: bool = False, device: str = "", memory: str = MEMORY,
                 incoming: bool = False, queues: int = 1, netdev: str = "") -> None:  # fmt: skip
        boot = guest_kernel()
        self._control = path.with_suffix(".qmp")
        # Without romfile= a boot ROM would begin first. QEMU 7.2 without KVM ends by SIGSEGV where a
        # device of vhost-user has MSI-X, hence vectors=0.
        super().__init__(
            [need("qemu-system-x86_64"), "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "192M", "-nodefaults",
             *(["-object", memory, "-numa", "node,memdev=memory"] if memory else []),
             "-display", "none", "-serial", "stdio", "-qmp", f"unix:{self._control},server=on,wait=off",
             "-kernel", str(boot.kernel), "-initrd", str(boot.files), "-append", "console=ttyS0 quiet panic=-1",
             *(["-netdev", f"{netdev},id=net"] if netdev else
               ["-chardev", f"socket,id=socket,path={path}" + (",server=on,wait=off" if server else ""),
                "-netdev", "vhost-user,id=net,chardev=socket" + (f",queues={queues}" if queues > 1 else "")]),
             "-device", f"virtio-net-pci,netdev=net,romfile=,vectors=0,{device}".rstrip(","),
             *(["-incoming", "defer"] if incoming else [])],
        )  # fmt: skip
        if not incoming:
            self.wait_ready()

    def command(self, name: str, **arguments: Any) -> Any:
        """Runs a command of QEMU's control protocol (QMP)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            while True:
                try:
                    control.connect(str(self._control))
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    assert self.process.poll() is None, "QEMU has ended"
            with control.makefile("rw") as lines:
                lines.readline()  # its greeting
                for each in ({"execute": "qmp_capabilities"}, {"execute": name, "arguments": arguments}):
                    lines.write(json.dumps(each) + "\n")
                    lines.flush()
                    while "event" in (answer := json.loads(lines.readline())):
                        pass
        assert "error" not in answer, answer
        return answer["return"]

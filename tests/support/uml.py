"""A virtual machine for tests: User-mode Linux, whose virtio-net driver is Linux's own, over
vhost-user. It needs no privilege and no image: it boots from the machine's own files."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.shell import LOOP, Shell
from tests.tools import PATH, need

# The guest's first process.
INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
stty -echo -onlcr
modules=/usr/lib/uml/modules/$(uname -r)/kernel
for each in core/failover ../drivers/net/net_failover ../drivers/net/virtio_net; do
    busybox insmod $modules/net/$each.ko
done
ip link set lo up
nic=0; while [ $nic -lt $nics ]; do
    tries=0; while [ ! -e /sys/class/net/eth$nic ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries+1)); done
    nic=$((nic+1))
done
{LOOP}
echo o > /proc/sysrq-trigger
"""


class Uml(Shell):
    """A running guest. `sockets`: its NICs eth0 and so on, in this order."""

    def __init__(self, directory: Path, *sockets: Path, options: str = "") -> None:
        init = directory / "uml-init.sh"
        init.write_text(INIT)
        init.chmod(0o755)
        home = directory / "uml"
        home.mkdir(exist_ok=True)
        devices = [f"virtio_uml.device={path}:1" for path in sockets]
        super().__init__(
            [need("linux.uml"), "mem=128M", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}", f"uml_dir={home}",
             "con=null", "con0=fd:0,fd:1", "ssl=null", "panic=1", "quiet", f"nics={len(sockets)}", *devices, *options.split()],
            {**os.environ, "PATH": PATH, "HOME": str(home), "TMPDIR": str(home)},
        )  # fmt: skip
        self.wait_ready()

"""Two NICs of one kind between two network namespaces, on one engine with a switch: what `bench veth` runs as a process.

usage: python -m bench.veth_pair KIND NETNS_A NETNS_B; KIND: veth or tap
"""

import signal
import sys

from vnic.control.convert import convert_config
from vnic.control.devices import TapDevices, tap_request
from vnic.control.runtime import Runtime
from vnic.control.schema import NicConfig
from vnic.device.nic import Nic
from vnic.device.veth_nic import VethNic


class VethDevices(TapDevices):
    """NICs over veth pairs."""

    def open(self, config: NicConfig, number: int, passed: object = None, /) -> Nic:
        """As TapDevices opens them."""
        assert self._agent is not None
        return VethNic.open(self._agent, config.name, number, tap_request(config))


def main(kind: str, *netns: str) -> None:
    """Runs until the standard input closes or SIGTERM comes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    nics = {name: {"netns": path, "interface": "t0"} for name, path in zip("ab", netns, strict=True)}
    with Runtime(convert_config({"nics": nics}), devices=VethDevices() if kind == "veth" else TapDevices()) as runtime:
        runtime.start()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main(*sys.argv[1:])

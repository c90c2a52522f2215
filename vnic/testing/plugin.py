"""The pytest plugin of vnic: networks in virtual time, and golden captures.

def test_rate(vnic_network):
    net = vnic_network("nics: {a: {egress: {rate: 10mbit}}, b: {}}")
    net.send("a", packet)
    net.run()
    net.assert_received("b", packet)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vnic.testing.network import VirtualNetwork


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vnic")
    group.addoption(
        "--vnic-update-golden", action="store_true", help="write golden captures anew instead of comparing with them"
    )


class Networks:
    """Makes networks and closes them after the test: `vnic_network(config)`. Paths are relative to
    the test's file."""

    def __init__(self, directory: Path, update: bool) -> None:
        self.directory, self.update = directory, update
        self.made: list[VirtualNetwork] = []

    def __call__(self, config: Any, **options: Any) -> VirtualNetwork:
        from vnic.testing.network import VirtualNetwork

        if isinstance(config, str) and "\n" not in config and ":" not in config:
            config = self.directory / config
        network = VirtualNetwork(config, **options)
        self.made.append(network)
        return network

    def assert_golden(
        self, network: VirtualNetwork, golden: str | os.PathLike[str], *, tolerance: str | int = 0, ignore: tuple[str, ...] = ()
    ) -> None:
        """Fails unless all packets that the network's containers received, and their times, are as
        in the capture `golden`.

        With --vnic-update-golden the capture is written instead.
        """
        __tracebackhide__ = True
        from dataplane.units import parse_time
        from vnic.replay.compare import compare

        path = self.directory / golden
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            network.write(path)
            return
        if not path.exists():
            raise AssertionError(f"{path} does not exist; pytest --vnic-update-golden writes it")
        with tempfile.TemporaryDirectory() as directory:
            mine = os.path.join(directory, path.name)
            network.write(mine)
            found = compare(
                mine, path, tolerance_ns=parse_time(tolerance) if isinstance(tolerance, str) else tolerance, ignore=ignore
            )
        if not found.equal:
            raise AssertionError(f"not as in {path.name}: {found.text()}\n(pytest --vnic-update-golden accepts it)")

    def close(self) -> None:
        for network in self.made:
            network.close()


@pytest.fixture
def vnic_network(request: pytest.FixtureRequest) -> Iterator[Networks]:
    """Makes networks in virtual time; see `vnic.testing.VirtualNetwork`."""
    networks = Networks(request.path.parent, request.config.getoption("--vnic-update-golden"))
    yield networks
    networks.close()

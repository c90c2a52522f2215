"""The pytest plugin of vnic: networks in virtual time or on real containers, and golden captures.

def test_rate(vnic_network):
    net = vnic_network("nics: {a: {egress: {rate: 10mbit}}, b: {}}")
    net.send("a", packet)
    net.run()
    net.assert_received("b", packet)

Networks are in virtual time; `pytest --vnic-live` or the marker `vnic_live` makes them live.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vnic.testing.kit import AnyNetwork


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vnic")
    group.addoption(
        "--vnic-update-golden",
        action="store_true",
        help="write golden captures anew instead of comparing with them",
    )
    group.addoption(
        "--vnic-live",
        action="store_true",
        help="networks of vnic_network are real containers, in real time",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "vnic_live(live=True): networks of vnic_network are real containers, in real time; "
        "vnic_live(False): they are in "
        "virtual time, also with --vnic-live",
    )


class Networks:
    """Makes networks and closes them after the test: `vnic_network(config)`. Paths are relative to
    the test's file."""

    def __init__(self, directory: Path, update: bool, live: bool = False) -> None:
        self.directory, self.update, self.live = directory, update, live
        self.made: list[AnyNetwork] = []

    def __call__(self, config: Any, *, live: bool | None = None, **options: Any) -> AnyNetwork:
        """The network of `config`. live: on real containers; default: as the option and the marker
        say. options: of `vnic.network`."""
        from vnic.testing.choose import network

        if isinstance(config, str) and "\n" not in config and ":" not in config:
            config = self.directory / config
        made = network(config, live=self.live if live is None else live, **options)
        self.made.append(made)
        return made

    def assert_golden(
        self,
        network: AnyNetwork,
        golden: str | os.PathLike[str],
        *,
        tolerance: str | int = 0,
        ignore: tuple[str, ...] = (),
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
                mine,
                path,
                tolerance_ns=parse_time(tolerance) if isinstance(tolerance, str) else tolerance,
                ignore=ignore,
            )
        if not found.equal:
            raise AssertionError(
                f"not as in {path.name}: {found.text()}\n(pytest --vnic-update-golden accepts it)"
            )

    def close(self) -> None:
        """Closes all networks, and raises what the first failure was."""
        with ExitStack() as stack:
            while self.made:
                stack.callback(self.made.pop().close)


@pytest.fixture
def vnic_network(request: pytest.FixtureRequest) -> Iterator[Networks]:
    """Makes networks, in virtual time or live; see `vnic.network`."""
    marker = request.node.get_closest_marker("vnic_live")
    live = (
        request.config.getoption("--vnic-live")
        if marker is None
        else _is_live(*marker.args, **marker.kwargs)
    )
    networks = Networks(request.path.parent, request.config.getoption("--vnic-update-golden"), live)
    try:
        yield networks
    finally:
        networks.close()


def _is_live(live: bool = True) -> bool:
    return live

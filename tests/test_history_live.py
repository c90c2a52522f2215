"""What a running instance has recorded of itself: always, over upgrades and crashes."""

from __future__ import annotations

import os
import signal

import pytest

from dataplane.errors import ConfigError
from tests.test_replay import A, B, frame
from tests.test_shape_live import until
from vnic.api.client import Client
from vnic.testing import Network

pytestmark = pytest.mark.commands
NICS = f'nics: {{a: {{mac: "{A.hex(":")}"}}, b: {{mac: "{B.hex(":")}"}}}}'


@pytest.fixture
def net(make_container, tmp_path, monkeypatch):
    make_container().close()  # skips where there can be no containers
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path / "run"))
    with Network(NICS) as made:
        yield made


def packets(client: Client, name: str, **options) -> int:
    found = client.call("History", names=[name], **options)
    assert len(found["times"]) <= 600 and found["times"] == sorted(found["times"])
    return sum(sum(each.get("packets", [])) for each in found["series"] if each.get("way") != "ingress")


def test_history_is_there_before_anyone_asks(net):
    net.shape("version: 1\nlinks: {a -> b: {delay: 1ms}}")
    net.send("a", [frame(B, A, 200, n) for n in range(20)])
    net.run()
    until(lambda: packets(net.client, "a -> b") == 20)
    assert packets(net.client, "a", last_ms=60_000, step_ms=1000) == 20
    with pytest.raises(ConfigError, match="there is no NIC, line or class c; expected one of a, a -> b, b"):
        net.client.call("History", names=["c"])
    for wrong in ({"last_ms": 99}, {"last_ms": 60_001}, {"step_ms": 1}, {"names": "a"}, {"names": ["a"] * 5000}):
        with pytest.raises(ConfigError):
            net.client.call("History", **wrong)
    net.client.call("Upgrade")
    with Client(net.instance) as client:  # the next worker's record begins anew
        until(lambda: client.call("History")["times"])
        net.send("a", [frame(B, A, 200, n) for n in range(5)])
        net.run()
        until(lambda: packets(client, "a -> b") == 5)
    with Client(net.instance) as client:
        os.kill(client.call("Status")["status"]["pid"], signal.SIGKILL)
    with Client(net.instance) as client:  # once there is another worker
        assert packets(client, "a -> b") == 0

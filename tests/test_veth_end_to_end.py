"""What holds of NICs over TAPs holds of NICs over veth pairs: the same tests."""

import sys

import pytest

from tests import test_end_to_end as taps
from tests.support import plain_user
from tests.support.containers import IS_ROOT
from tests.test_end_to_end import *  # noqa: F403
from vnic.device.packet_sockets import SLOTS_OF_A_BLOCK, blocks_of

net = taps.net


@pytest.fixture(autouse=True)
def over_veth_pairs(monkeypatch):
    monkeypatch.setattr(taps, "KIND", "veth")
    monkeypatch.setattr(taps, "QUEUE_PACKETS", blocks_of(1) * SLOTS_OF_A_BLOCK)


def test_a_live_change_of_rate_loses_nothing_queued(net):
    """With fewer datagrams than over a TAP, since they come at once in the end: the kernel charges the receiver's socket 2304 bytes for
    each, which of a TAP it takes from a page that frames share, and a socket has room for 212,992."""
    made = net(nics={"a": {"egress": {"rate": "1mbit", "queue": "2s"}}})
    made["a"].run("ping", "-c", "1", "-W", "2", taps.V4["b"])

    def faster() -> None:
        for rate in (2_000_000, 500_000, 50_000_000, None):
            made.runtime.nics.set_rate("a", egress_bps=rate)

    assert taps.count_udp(made, "a", "b", taps.V4["b"], 80, 1000, while_sending=faster) == "80 True"


@pytest.mark.skipif(not IS_ROOT, reason="is the plain user's run already")
@pytest.mark.timeout(960)
@pytest.mark.again
def test_all_of_this_as_a_plain_user():
    """On a machine without /dev/net/tun."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_veth_end_to_end.py"]
    done = plain_user.run(command, tun="missing", timeout_s=920)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "1 skipped" in done.stdout

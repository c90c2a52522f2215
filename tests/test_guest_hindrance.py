"""Why a guest exchanges no frames, as `vnic status` says."""

import pytest

from tests.vhost_user_twins import Bench
from virt.vhost_user.device import USUAL_FEATURES
from virt.vhost_user.guest_memory import GuestMemory
from virt.vhost_user.handshakes import Qemu
from virt.vhost_user.protocol import LOG_ALL, Request
from vnic.device.guest_hindrance import LOOKED_AT_BYTES, hindrance


@pytest.fixture
def bench():
    with Bench(GuestMemory.of_qemu(2 * LOOKED_AT_BYTES)) as made:
        yield made


def test_memory_that_is_not_shared(bench):
    qemu = Qemu(bench.front)
    qemu.connect()
    session = bench.session
    assert hindrance(session) == ""  # no driver yet
    qemu.start()
    assert "is not shared" in hindrance(session)
    bench.front.memory.data[-1] = 1  # further than it looks
    assert "is not shared" in hindrance(session)
    bench.front.memory.data[1 << 20] = 1
    assert hindrance(session) == ""


def test_memory_that_is_not_passed(bench):
    bench.front.agree(USUAL_FEATURES)
    bench.front.set_features(bench.front.ask_number(Request.GET_FEATURES) & ~LOG_ALL)
    assert "has not passed its guest's memory" in hindrance(bench.session)

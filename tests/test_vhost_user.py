"""vhost-user: the handshakes of three front ends, and what each message does."""

import gc
import os
import select
import socket
import struct

import pytest

from dataplane.descriptors import readable
from dataplane.errors import ConfigError
from tests.vhost_user_twins import MAC, OFFER, Bench, open_descriptors
from virt.vhost_user import messages
from virt.vhost_user.back_end_requests import tell_config_changed
from virt.vhost_user.books import Books, Log
from virt.vhost_user.device import USUAL_FEATURES, Offer
from virt.vhost_user.features import Abilities, Feature, offered
from virt.vhost_user.front_end import FrontEndError
from virt.vhost_user.guest_memory import GuestMemory
from virt.vhost_user.handshakes import Dpdk, Qemu, UserModeLinux
from virt.vhost_user.messages import INFLIGHT, STATE, U64, Area
from virt.vhost_user.protocol import (
    LOG_ALL,
    NEED_REPLY,
    PROTOCOL_FEATURES,
    VERSION,
    BackendRequest,
    ProtocolFeature,
    Request,
    Status,
)

R = Request
SPLIT = offered(Abilities(packed=False))


@pytest.fixture(autouse=True, scope="module")
def no_garbage():
    """Descriptors are counted here: other tests' garbage must not be collected meanwhile."""
    gc.collect()


@pytest.fixture(autouse=True)
def no_descriptor_stays_open():
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def bench():
    with Bench(GuestMemory.of_qemu()) as made:
        yield made


def started(bench):
    """A bench with QEMU's two rings running."""
    qemu = Qemu(bench.front)
    qemu.connect()
    qemu.start()
    assert sorted(bench.device.running) == [0, 1]
    return qemu


def agreed(bench, wanted=USUAL_FEATURES):
    bench.front.agree(wanted)
    return bench.front


# -- handshakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("pairs", [1, 2])
def test_qemu(newest, slots, pairs):
    features = USUAL_FEATURES if slots else USUAL_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS
    offer = Offer(features=OFFER.features, queue_pairs=2, protocol_features=features)
    with Bench(GuestMemory.of_qemu(), offer=offer) as bench:
        qemu = Qemu(bench.front, pairs=pairs, newest=newest)
        qemu.connect()
        assert bench.device.running == {}
        qemu.start()
        assert sorted(bench.device.running) == list(range(2 * pairs))
        assert bench.books.status == Status(0xF)
        assert bench.books.rings[0].base == 0x8000_8000
        assert len(bench.device.regions) == 2
        bench.guest.positions[1] = 0x8005_8005
        assert qemu.stop() == {ring: 0x8000_8000 + 5 * 0x10001 * (ring == 1) for ring in range(2 * pairs)}
        assert bench.device.running == {}
        # the guest is reset: the firmware's driver, then the kernel's
        qemu.start({1: 0x8005_8005})
        assert (1, 0x8005_8005, False) in bench.device.starts
        assert ("ADD_MEM_REG" in bench.front.sent) == slots
        assert ("SET_MEM_TABLE" in bench.front.sent) != slots


def test_user_mode_linux():
    with Bench(GuestMemory.of_uml(), rings=5) as bench:
        uml = UserModeLinux(bench.front, rings=5)
        uml.connect()
        assert uml.start() == MAC
        assert sorted(bench.device.running) == [0, 1, 2, 3, 4]
        bench.guest.positions[0] = 77
        uml.stop()
        assert bench.device.running == {}
        # the driver is loaded again, and sets up rings that were never stopped
        uml.start()
        assert sorted(bench.device.running) == [0, 1, 2, 3, 4]
        assert (0, 0, False) in bench.device.starts[-5:]
        # with other features: none of its rings runs
        uml.stop()
        bench.front.set_features(bench.front.features & ~Feature.MTU, tell=True)
        assert not any(ring.started for ring in bench.books.rings)


def test_user_mode_linux_without_the_bit_of_vhost_user_enables_all_rings():
    with Bench(GuestMemory.of_uml(), rings=3) as bench:
        uml = UserModeLinux(bench.front)
        uml.connect()
        uml.start(plain=True)
        assert sorted(bench.device.running) == [0, 1, 2]
        assert not bench.books.features & PROTOCOL_FEATURES
        assert "SET_VRING_ENABLE" not in bench.front.sent


@pytest.mark.parametrize("features", [OFFER.features, SPLIT])
def test_dpdk(features):
    offer = Offer(features=features, queue_pairs=2)
    with Bench(GuestMemory.of_dpdk(), offer=offer) as bench:
        dpdk = Dpdk(bench.front, pairs=2)
        dpdk.connect()
        dpdk.start()
        assert sorted(bench.device.running) == [0, 1, 2, 3]
        bench.guest.positions[3] = 9
        assert dpdk.stop()[3] == 9
        dpdk.start()
        assert sorted(bench.device.running) == [0, 1, 2, 3]


# -- rings -------------------------------------------------------------------------------------------


def test_status_0_comes_before_the_position_and_does_not_lose_it(bench):
    qemu = started(bench)
    bench.guest.positions.update({0: 0x8003_8003, 1: 0x8004_8004})
    bench.front.set_number(R.SET_STATUS, 0)
    assert bench.device.status == 0
    assert sorted(bench.device.running) == [0, 1]
    assert qemu.stop() == {0: 0x8003_8003, 1: 0x8004_8004}
    assert qemu.stop() == {0: 0x8003_8003, 1: 0x8004_8004}


def test_a_kick_descriptor_for_a_running_ring_keeps_its_position(bench):
    started(bench)
    bench.guest.positions[0] = 0x8007_8007
    bench.front.set_notifier(R.SET_VRING_KICK, 0)
    assert bench.device.starts[-1] == (0, 0x8007_8007, False)
    assert bench.books.rings[0].generation == 2


def test_a_ring_without_descriptors_is_polled(bench):
    started(bench)
    bench.front.set_polled(R.SET_VRING_KICK, 0)
    bench.front.set_polled(R.SET_VRING_CALL, 0)
    ring = bench.books.rings[0]
    assert ring.started and not ring.kick and not ring.call
    assert sorted(bench.device.running) == [0, 1]
    assert "kick0" not in bench.session.descriptors.by_role()


def test_a_disabled_ring_does_not_run_and_keeps_its_position(bench):
    started(bench)
    bench.guest.positions[1] = 0x8001_8001
    bench.front.set_ring(R.SET_VRING_ENABLE, 1, 0)
    assert list(bench.device.running) == [0]
    assert bench.session.rings.hindrance(1) == "not enabled"
    bench.front.set_ring(R.SET_VRING_ENABLE, 1, 1)
    assert bench.device.starts[-1] == (1, 0x8001_8001, False)


def test_memory_changes_while_rings_run(bench):
    started(bench)
    bench.guest.positions[0] = 0x8002_8002
    _, high = bench.front.memory.areas
    agreed(bench)
    bench.front.change_memory(R.REM_MEM_REG, high)
    assert bench.device.running == {}
    assert "is not in guest memory" in bench.session.rings.hindrance(0)
    bench.front.change_memory(R.REM_MEM_REG, high)  # one that is gone already
    bench.front.change_memory(R.ADD_MEM_REG, high)
    bench.front.change_memory(R.ADD_MEM_REG, high)  # one that is there already
    assert sorted(bench.device.running) == [0, 1]
    assert bench.device.starts[-2] == (0, 0x8002_8002, False)
    assert [region.descriptor for region in bench.books.memory] == ["memory0", "memory1"]


def test_memory_that_is_told_again_does_not_stop_rings(bench):
    """As QEMU does for each pair of queues."""
    started(bench)
    agreed(bench)
    starts = list(bench.device.starts)
    bench.front.set_memory(tell=True)
    for area in bench.front.memory.areas:
        bench.front.change_memory(R.ADD_MEM_REG, area)
    assert bench.device.starts == starts
    descriptor = os.memfd_create("other")
    os.ftruncate(descriptor, 16 << 20)
    bench.front.memory.descriptor, former = descriptor, bench.front.memory.descriptor
    bench.front.change_memory(R.ADD_MEM_REG, bench.front.memory.areas[1])  # another file
    assert len(bench.device.starts) == len(starts) + 2
    bench.front.set_memory(tell=True)
    assert len(bench.device.starts) == len(starts) + 4
    os.close(former)


def test_memory_that_cannot_be_mapped_leaves_all_as_it_was(bench):
    started(bench)
    bench.device.refusal = OSError(12, "Cannot allocate memory")
    before = bench.books.memory
    assert not bench.front.tell(R.SET_MEM_TABLE, messages.TABLE.pack(0, 0))
    assert bench.session.refusal == "SET_MEM_TABLE: Cannot allocate memory"
    assert bench.books.memory == before
    assert sorted(bench.device.running) == [0, 1]


def test_a_split_rings_size_is_a_power_of_two():
    with Bench(GuestMemory.of_dpdk(), offer=Offer(features=SPLIT), ring_size=100) as bench:
        dpdk = Dpdk(bench.front)
        dpdk.connect()
        dpdk.start()
        assert bench.device.running == {}
        assert bench.session.rings.hindrance(0) == "size 100 of a split ring is not a power of two"


def test_a_split_rings_position_has_16_bits():
    with Bench(GuestMemory.of_dpdk(), offer=Offer(features=SPLIT)) as bench:
        bench.front.set_ring(R.SET_VRING_BASE, 0, 0x1_0005)
        assert bench.front.get_base(0) == 5


@pytest.mark.parametrize(("told", "base"), [(0x8000, 0x8000_8000), (7, 0x7_0007), (0x8003_0005, 0x8003_0005), (0, 0)])
def test_a_packed_rings_position_has_two_halves_or_one(bench, told, base):
    bench.front.set_features(OFFER.features | PROTOCOL_FEATURES)
    bench.front.set_ring(R.SET_VRING_BASE, 0, told)
    assert bench.front.get_base(0) == base


# -- features, status, configuration ---------------------------------------------------------------


def test_features_may_be_repeated_but_not_changed_while_rings_run(bench):
    started(bench)
    front = bench.front
    front.set_features(front.features, tell=True)
    assert sorted(bench.device.running) == [0, 1]
    assert not front.tell(R.SET_FEATURES, U64.pack(front.features & ~Feature.CSUM))
    assert bench.session.refusal == "SET_FEATURES: csum changed while ring 0 runs"
    assert bench.books.features == front.features


def test_a_driver_never_sees_the_bits_of_vhost(bench):
    started(bench)
    assert bench.books.features & PROTOCOL_FEATURES
    assert not bench.device.features & (PROTOCOL_FEATURES | LOG_ALL)


def test_a_feature_that_is_not_offered_is_refused(bench):
    front = agreed(bench)
    assert not front.tell(R.SET_FEATURES, U64.pack(1 << 62))
    assert bench.session.refusal == "SET_FEATURES: standby: not offered"


def test_the_configuration_space_is_read_byte_by_byte(bench):
    front = agreed(bench)
    assert bytes(front.get_config(0, end)[-1] for end in range(1, 7)) == MAC
    whole = front.get_config(0, 256)
    assert struct.unpack_from("<6sHHHIB", whole) == (MAC, 1, 2, 1500, 10_000, 1)
    assert whole[24:] == bytes(232)
    assert front.get_config(6, 2) == b"\1\0"
    payload = messages.CONFIG.pack(255, 2, 0) + bytes(2)
    assert front.ask(R.GET_CONFIG, payload) == b""
    payload = messages.CONFIG.pack(0xFFFF_FFFF, 2, 0)
    assert front.ask(R.GET_CONFIG, payload) == b""


def test_writing_the_configuration_space_has_no_effect(bench):
    front = agreed(bench)
    payload = messages.CONFIG.pack(0, 6, 0) + bytes(6)
    assert not front.tell(R.SET_CONFIG, payload)
    front.send(R.SET_CONFIG, payload)
    assert front.get_config(0, 6) == MAC
    assert bench.session.counts["refused"] == 2


def test_reset_device(bench):
    started(bench)
    front = agreed(bench)
    front.tell(R.RESET_DEVICE)
    front.tell(R.RESET_DEVICE)
    assert bench.device.running == {}
    assert bench.books.features == bench.books.status == bench.device.features == 0
    assert len(bench.books.memory) == 2
    assert all(ring.base == 0 and not ring.enabled for ring in bench.books.rings)
    assert bench.books.rings[0].error == "error0"  # QEMU sends it once


def test_reset_owner_is_ignored(bench):
    started(bench)
    bench.front.send(R.RESET_OWNER)
    assert sorted(bench.device.running) == [0, 1]


def test_mtu_and_announcements(bench):
    front = agreed(bench)
    assert front.tell(R.NET_SET_MTU, U64.pack(9000))
    assert bench.device.mtu == 9000
    for mtu in (67, 65536, 1 << 40):
        assert not front.tell(R.NET_SET_MTU, U64.pack(mtu))
    assert front.tell(R.SEND_RARP, MAC + b"\0\0")
    assert bench.device.announced == [MAC]


def test_numbers_that_are_asked_for(bench):
    front = agreed(bench)
    assert front.ask_number(R.GET_QUEUE_NUM) == 2
    assert front.ask_number(R.GET_MAX_MEM_SLOTS) == 32
    assert front.ask_number(R.GET_FEATURES) == OFFER.features | PROTOCOL_FEATURES


def test_the_back_end_tells_that_the_configuration_changed(bench):
    uml = UserModeLinux(bench.front)
    uml.connect()
    assert not tell_config_changed(bench.session)  # suspended
    uml.start()
    assert tell_config_changed(bench.session)
    assert bench.front.next_request() is BackendRequest.CONFIG_CHANGE_MSG
    while tell_config_changed(bench.session):
        pass  # a front end that does not read is not waited for
    bench.front.requests.close()
    assert not tell_config_changed(bench.session)


# -- migration and recovery ------------------------------------------------------------------------


def test_a_migration(bench):
    qemu = started(bench)
    bench.guest.positions[0] = 0x8004_8004
    log = os.memfd_create("log")
    os.ftruncate(log, 0x2000)
    qemu.begin_migration(log, 0x2000)
    os.close(log)
    assert bench.device.log == Log(0x2000, 0)
    assert sorted(bench.device.running) == [0, 1]
    used = bench.front.memory.ring(0).used
    assert bench.device.running[0].addresses.logged
    assert bench.device.running[0].addresses.log == bench.front.memory.guest_address(used)
    positions = qemu.stop()
    assert positions[0] == 0x8004_8004
    bench.front.set_features(bench.front.features & ~LOG_ALL, tell=True)
    assert bench.device.log is None


def test_a_log_is_as_large_as_its_file(bench):
    front = agreed(bench)
    log = os.memfd_create("log")
    with pytest.raises(FrontEndError):
        front.ask(R.SET_LOG_BASE, messages.LOG.pack(0x1000, 0), [log])
    os.close(log)
    assert str(bench.error) == "SET_LOG_BASE: the file has 0x0 bytes: expected 0x1000 at least"


def test_inflight_memory_is_made_and_taken_again_and_again():
    offer = Offer(features=SPLIT, protocol_features=USUAL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD)
    with Bench(GuestMemory.of_dpdk(), offer=offer) as bench:
        front = agreed(bench, offer.protocol_features)
        before = None
        for _ in range(5):
            payload = INFLIGHT.pack(0, 0, 2, 256)
            size, offset, queues, entries = INFLIGHT.unpack(front.ask(R.GET_INFLIGHT_FD, payload))
            assert (size, offset, queues, entries) == (2 * (64 + 256 * 16), 0, 2, 256)
            [descriptor] = front.received
            assert os.pread(descriptor, size, 0) == bytes(size)
            with pytest.raises(OSError):
                os.ftruncate(descriptor, 0)
            assert front.tell(R.SET_INFLIGHT_FD, INFLIGHT.pack(size, 0, 2, 256), [descriptor])
            os.close(front.received.pop())
            before = before or open_descriptors()
            assert open_descriptors() == before
        assert bench.device.inflight.size == size
        short = front.ask(R.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, 8)[:20])
        assert len(short) == 20
        for queues, entries in ((0, 8), (4, 8), (1, 0), (1, 32769)):
            assert not front.tell(R.SET_INFLIGHT_FD, INFLIGHT.pack(1 << 20, 0, queues, entries), front.received)


# -- a new worker ------------------------------------------------------------------------------------


def test_a_successor_must_offer_what_the_front_end_uses(bench):
    started(bench)
    for offer, error in (
        (
            Offer(features=OFFER.features & ~Feature.RING_PACKED, queue_pairs=2),
            "the guest uses ring_packed: the NIC must offer it until the guest is restarted",
        ),
        (
            Offer(features=OFFER.features),
            "the guest's device has 5 rings: the NIC cannot have 3 before the guest is restarted",
        ),
    ):
        bench.offer = offer
        with pytest.raises(ConfigError) as caught:
            bench.replace()
        assert str(caught.value) == error
        bench.session.descriptors.close_all()
        bench.connection.abandon()
    bench.offer = OFFER
    bench._work()
    assert sorted(bench.device.running) == [0, 1]


def test_a_successor_needs_all_descriptors(bench):
    started(bench)
    os.close(bench.supervisor.held.pop("kick1"))
    with pytest.raises(ConfigError, match="descriptors of the guest were not stored: kick1"):
        bench.replace()
    bench.session.descriptors.close_all()
    bench.connection.abandon()
    bench.supervisor.data = None
    bench.supervisor.close()
    bench._work()


def test_when_the_front_end_goes_nothing_is_left(bench):
    started(bench)
    device = bench.device
    bench.front.sock.close()
    bench.turn()
    assert bench.error is None and not bench.alive
    assert device.running == {} and device.regions == () and device.features == 0
    assert bench.supervisor.held == {}
    assert Books.decode(bench.supervisor.data) == Books.of(5)


# -- hostile front ends ----------------------------------------------------------------------------


def pack_u64(value):
    return U64.pack(value)


@pytest.mark.parametrize(
    ("request_", "payload", "error"),
    [
        (R.SET_VRING_NUM, STATE.pack(7, 8), "SET_VRING_NUM: ring 7: expected 0 to 4"),
        (R.SET_VRING_NUM, STATE.pack(1 << 16, 8), "SET_VRING_NUM: ring 65536: expected 0 to 4"),
        (R.SET_VRING_NUM, STATE.pack(0, 0), "SET_VRING_NUM: ring 0: size 0: expected 1 to 32768"),
        (R.SET_VRING_ENABLE, STATE.pack(0, 2), "SET_VRING_ENABLE: ring 0: 2: expected 0 or 1"),
        (R.SET_STATUS, U64.pack(256), "SET_STATUS: 0x100: expected 0 to 0xff"),
        (R.IOTLB_MSG, b"", "IOTLB_MSG: not offered"),
        (R.VRING_KICK, STATE.pack(0, 0), "VRING_KICK: not offered"),
        (R.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, 8), "GET_INFLIGHT_FD: INFLIGHT_SHMFD was not agreed on"),
        (R.SET_VRING_CALL, U64.pack(0x1FF), "SET_VRING_CALL: ring 255: expected 0 to 4"),
        (R.SET_PROTOCOL_FEATURES, U64.pack(1 << 14), "SET_PROTOCOL_FEATURES: 0x4000: not offered"),
    ],
)
def test_refusals(bench, request_, payload, error):
    """The front end hears of it if it asks; otherwise the connection ends."""
    front = agreed(bench)
    front.send(request_, payload, flags=VERSION | NEED_REPLY)
    if request_ is not R.GET_INFLIGHT_FD:
        assert front.reply(request_) == U64.pack(1)
        assert bench.session.refusal == error
        front.send(request_, payload)
    assert str(bench.error) == error
    with pytest.raises(FrontEndError):
        front.reply(request_)


@pytest.mark.parametrize(
    ("number", "flags", "payload", "descriptors", "error"),
    [
        (99, 1, b"", 0, "message 99 is unknown"),
        (1, 2, b"", 0, "GET_FEATURES: version 2: expected 1"),
        (1, 5, b"", 0, "GET_FEATURES: a reply, and nothing was asked"),
        (2, 1, bytes(4), 0, "SET_FEATURES: payload of 4 bytes: expected 8"),
        (22, 1, bytes(300), 0, "IOTLB_MSG: payload of 300 bytes: expected 0 to 268"),
        (5, 1, messages.TABLE.pack(9, 0), 0, "SET_MEM_TABLE: 9 regions: expected at most 8"),
        (5, 1, messages.TABLE.pack(1, 0), 0, "SET_MEM_TABLE: payload of 8 bytes: 1 regions need 40"),
        (12, 1, U64.pack(0), 0, "SET_VRING_KICK: 0 descriptors: expected 1"),
        (12, 1, U64.pack(0x200), 1, "SET_VRING_KICK: 0x200: expected bits 0 to 8 only"),
        (13, 1, U64.pack(0), 2, "SET_VRING_CALL: 2 descriptors: expected 1"),
        (
            9, 1, messages.ADDRESSES.pack(0, 0, 8, 0, 0, 0), 0,
            "SET_VRING_ADDR: ring 0: descriptors at 0x8: expected a multiple of 16",
        ),
        (9, 1, messages.ADDRESSES.pack(0, 2, 0, 0, 0, 0), 0, "SET_VRING_ADDR: flags 0x2: expected 0 or 1"),
        (
            5, 1, messages.TABLE.pack(1, 0) + messages.REGION.pack(0, 2, 2**64 - 1, 0), 1,
            "SET_MEM_TABLE: user address 0xffffffffffffffff and size 0x2 exceed 64 bits",
        ),
        (
            5, 1, messages.TABLE.pack(1, 0) + messages.REGION.pack(0, 0, 0, 0), 1,
            "SET_MEM_TABLE: region at 0x0: expected a size above 0",
        ),
        (5, 1, messages.TABLE.pack(0, 0) + bytes(256), 9, None),
        *(
            (13, 1, U64.pack(0), number,
            "SET_VRING_CALL: descriptors cannot be taken: expected at most 8, and fewer than the "
            "limit of open files (ulimit -n)")
            for number in (9, 40)
        ),
    ],
)  # fmt: skip
def test_violations(bench, number, flags, payload, descriptors, error):
    event = os.eventfd(0)
    try:
        socket.send_fds(
            bench.front.sock,
            [messages.HEADER.pack(number, flags, len(payload)) + payload],
            [event] * descriptors,
        )
        bench.turn()
    finally:
        os.close(event)
    assert bench.alive == (error is None)
    assert error is None or str(bench.error) == error


@pytest.mark.parametrize("kind", ["file", "terminal", "epoll"])
def test_notifications_go_to_nothing_but_events(bench, kind, tmp_path):
    front = agreed(bench)
    if kind == "file":
        descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    elif kind == "terminal":
        descriptor, other = os.openpty()
        os.close(other)
    else:
        with select.epoll() as epoll:
            descriptor = os.dup(epoll.fileno())
    for request in (R.SET_VRING_CALL, R.SET_VRING_KICK, R.SET_VRING_ERR):
        assert not front.tell(request, U64.pack(0), [descriptor])
        assert bench.session.refusal.endswith("expected an eventfd, a pipe or a Unix stream socket")
    os.close(descriptor)
    ends = [*os.pipe(), *(each.detach() for each in socket.socketpair())]
    for descriptor in ends:
        assert front.tell(R.SET_VRING_CALL, U64.pack(0), [descriptor])
        os.close(descriptor)


def test_memory_is_a_file_of_its_size(bench):
    front = agreed(bench)
    for descriptor, error in (
        (os.eventfd(0), "another kind of file: expected a file that can be mapped"),
        (os.memfd_create("short"), "the file has 0x0 bytes: expected 0x1000 at least"),
    ):
        payload = messages.PADDING.pack(0) + messages.REGION.pack(0, 0x800, 0, 0x800)
        assert not front.tell(R.ADD_MEM_REG, payload, [descriptor])
        assert error in bench.session.refusal
        os.close(descriptor)


@pytest.mark.parametrize("field", ["guest_address", "user_address"])
def test_regions_do_not_overlap(bench, field):
    front = agreed(bench)
    front.change_memory(R.ADD_MEM_REG, Area(0, 0x1000, 0, 0))
    other = Area(0x8000, 0x1000, 0x8000, 0)._replace(**{field: 0xFFF})
    front.change_memory(R.ADD_MEM_REG, other)
    assert bench.session.refusal.startswith("ADD_MEM_REG: regions at ")
    assert len(bench.books.memory) == 1


def test_memory_slots_are_bounded(bench):
    front = agreed(bench)
    for index in range(33):
        front.change_memory(R.ADD_MEM_REG, Area(index << 12, 1 << 12, index << 12, 0))
    assert len(bench.books.memory) == 32
    assert bench.session.refusal == "ADD_MEM_REG: 33 regions: expected at most 32"
    front.change_memory(R.REM_MEM_REG, Area(5 << 12, 1 << 12, 5 << 12, 77))
    front.change_memory(R.ADD_MEM_REG, Area(99 << 12, 1 << 12, 99 << 12, 0))
    assert bench.books.memory[-1].descriptor == "memory5"


def test_a_region_that_is_added_again_leaves_its_former_role(bench):
    front = agreed(bench)
    first, second = (Area(index << 12, 1 << 12, index << 12, 0) for index in range(2))
    for request, area in (
        (R.ADD_MEM_REG, first),
        (R.ADD_MEM_REG, second),
        (R.REM_MEM_REG, first),
    ):
        front.change_memory(request, area)
    with GuestMemory.of_uml() as other:  # another file
        front.memory.descriptor, former = other.descriptor, front.memory.descriptor
        front.change_memory(R.ADD_MEM_REG, second)
        front.memory.descriptor = former
    assert [region.descriptor for region in bench.books.memory] == ["memory0"]
    assert bench.session.descriptors.by_role().keys() == {"memory0"}


def test_a_front_end_that_does_not_read_is_disconnected(bench):
    bench.front.turn = lambda: None
    data = messages.HEADER.pack(R.GET_FEATURES, VERSION, 0)
    while bench.alive:
        bench.front.sock.sendall(data * 10)
        bench.turn()
    assert str(bench.error) == "the front end does not read its replies"


def test_a_flood_is_handled_in_turns(bench):
    bench.front.sock.sendall(messages.HEADER.pack(R.SET_OWNER, VERSION, 0) * 100)
    assert bench.connection.read()
    assert bench.session.counts["SET_OWNER"] == 64
    assert readable(bench.connection.fileno(), 0)
    assert bench.connection.read()
    assert bench.session.counts["SET_OWNER"] == 100
    assert not readable(bench.connection.fileno(), 0)


@pytest.mark.parametrize("with_descriptors", [False, True])
def test_a_message_comes_in_two_pieces_split_at_each_byte(with_descriptors):
    with Bench(GuestMemory.of_qemu()) as bench:
        if with_descriptors:
            payload = U64.pack(1)
            data = messages.HEADER.pack(R.SET_VRING_CALL, VERSION, len(payload)) + payload
            descriptors = [bench.front.notifiers[1].call]
        else:
            payload = STATE.pack(1, 64)
            data = messages.HEADER.pack(R.SET_VRING_NUM, VERSION, len(payload)) + payload
            descriptors = []
        for cut in range(1, len(data)):
            name = Request(data[0]).name
            socket.send_fds(bench.front.sock, [data[:cut]], descriptors)
            bench.turn()
            assert bench.session.counts[name] == cut - 1
            assert not readable(bench.connection.fileno(), 0)  # half a message wakes once
            bench.front.sock.sendall(data[cut:])
            bench.turn()
            assert bench.session.counts[name] == cut
        assert bench.alive
        for each in data:  # byte by byte
            bench.front.sock.sendall(bytes([each])) if not descriptors else socket.send_fds(
                bench.front.sock, [bytes([each])], descriptors
            )
            descriptors = []
            bench.turn()
        assert bench.session.counts[name] == len(data)


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (R.GET_FEATURES, b""),
        (R.SET_VRING_KICK, U64.pack(0x100)),
        (R.SET_MEM_TABLE, messages.TABLE.pack(0, 0)),
    ],
)
@pytest.mark.parametrize("number", [1, 9])
def test_descriptors_that_no_message_wants_are_closed(bench, request_, payload, number):
    reading, writing = os.pipe()
    bench.front.send(request_, payload, [writing] * number)
    os.close(writing)
    assert bench.alive
    assert os.read(reading, 1) == b""  # no process has the other end
    os.close(reading)


def test_messages_behind_each_other_keep_their_descriptors(bench):
    """One without and one with descriptors, sent before either is read."""
    bench.front.sock.sendall(messages.HEADER.pack(R.SET_OWNER, VERSION, 0))
    payload = U64.pack(1)
    data = messages.HEADER.pack(R.SET_VRING_CALL, VERSION, len(payload)) + payload
    socket.send_fds(bench.front.sock, [data], [bench.front.notifiers[1].call])
    bench.front.sock.sendall(messages.HEADER.pack(R.SET_OWNER, VERSION, 0))
    bench.turn()
    assert bench.session.counts["SET_OWNER"] == 2
    assert bench.books.rings[1].call == "call1"


def test_the_end_in_the_middle_of_a_message_is_an_end(bench):
    bench.front.sock.sendall(b"\1\0\0")
    bench.turn()
    bench.front.sock.shutdown(socket.SHUT_WR)
    bench.turn()
    assert not bench.alive and bench.error is None

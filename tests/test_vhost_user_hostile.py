"""vhost-user against front ends that send anything: whatever comes, the books stay consistent, no
descriptor is left open, and nothing but the protocol's error is raised."""

import gc
import os
import resource
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vhost_user_twins import Bench, DeviceTwin, open_descriptors
from virt.vhost_user import messages
from virt.vhost_user.books import Books
from virt.vhost_user.device import IMPLEMENTED, Offer
from virt.vhost_user.features import Abilities, Feature, offered
from virt.vhost_user.guest_memory import GuestMemory
from virt.vhost_user.handshakes import Qemu
from virt.vhost_user.messages import SHAPES, Message
from virt.vhost_user.protocol import NO_DESCRIPTOR, ProtocolError, Request
from virt.vhost_user.session import Session

R = Request
OFFER = Offer(features=offered(Abilities(queue_pairs=1)), protocol_features=IMPLEMENTED, memory_slots=4)

KINDS = {
    "eventfd": lambda: os.eventfd(0),
    "memfd": lambda: os.memfd_create("memory"),
    "large": lambda: _large(),
    "socket": lambda: _socket(),
    "null": lambda: os.open("/dev/null", os.O_RDWR),
}


def _large():
    descriptor = os.memfd_create("memory")
    os.ftruncate(descriptor, 1 << 20)
    return descriptor


def _socket():
    one, other = socket.socketpair()
    one.close()
    return other.detach()


u64 = st.one_of(st.integers(0, 16), st.sampled_from([1 << 30, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
index = st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1))
address = st.one_of(st.integers(0, 16).map(lambda n: n << 14), u64)
area = st.tuples(address, st.sampled_from([0x4000, 0x10000, 0, 2**64 - 1]), address, st.sampled_from([0, 0x4000, 2**63]))
state = st.builds(messages.STATE.pack, index, st.one_of(st.integers(0, 1), st.sampled_from([64, 256, 2**32 - 1])))
features = st.one_of(st.sampled_from([OFFER.features, OFFER.features | 1 << 30, 1 << 30, 0]), u64).map(messages.U64.pack)
ring_descriptor = st.tuples(index.map(lambda n: n & 0xFF), st.sampled_from([0, 0, NO_DESCRIPTOR, 1 << 9])).map(
    lambda both: messages.U64.pack(both[0] | both[1])
)
inflight = st.tuples(u64, st.sampled_from([0, 64, 2**64 - 1]), st.integers(0, 4), st.integers(0, 65535)).map(
    lambda four: messages.INFLIGHT.pack(*four)
)
PAYLOADS = {
    R.SET_FEATURES: features,
    R.SET_PROTOCOL_FEATURES: st.one_of(st.just(int(IMPLEMENTED)), st.integers(0, 2**20 - 1)).map(messages.U64.pack),
    R.SET_MEM_TABLE: st.lists(area, max_size=9).map(
        lambda areas: messages.TABLE.pack(len(areas), 0) + b"".join(messages.REGION.pack(*each) for each in areas)
    ),
    R.SET_LOG_BASE: st.builds(messages.LOG.pack, st.sampled_from([0, 0x1000, 2**64 - 1]), u64),
    R.SET_VRING_ADDR: st.builds(messages.ADDRESSES.pack, index, st.integers(0, 2), address, address, address, u64),
    R.GET_CONFIG: st.builds(messages.CONFIG.pack, index, index, index),
    R.GET_INFLIGHT_FD: inflight,
    R.SET_INFLIGHT_FD: inflight,
    R.ADD_MEM_REG: area.map(lambda each: bytes(8) + messages.REGION.pack(*each)),
    R.REM_MEM_REG: area.map(lambda each: bytes(8) + messages.REGION.pack(*each)),
    **dict.fromkeys((R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR), ring_descriptor),
    **dict.fromkeys((R.SET_VRING_NUM, R.SET_VRING_BASE, R.GET_VRING_BASE, R.SET_VRING_ENABLE), state),
}


@st.composite
def any_message(draw):
    request = draw(st.sampled_from([*SHAPES, R.IOTLB_MSG, R.VRING_KICK]))
    shape = SHAPES.get(request)
    size = shape.least if shape else 8
    payload = draw(PAYLOADS.get(request, st.binary(min_size=size, max_size=size)))
    wanted = {R.SET_MEM_TABLE: (len(payload) - 8) // 32, R.SET_VRING_KICK: 1, R.SET_VRING_CALL: 1, R.SET_VRING_ERR: 1}
    number = wanted.get(request, shape.descriptors if shape else 0)
    if draw(st.integers(0, 9)) == 0:
        number = draw(st.integers(0, 9))
    likely = "large" if request in {R.SET_MEM_TABLE, R.ADD_MEM_REG, R.SET_LOG_BASE, R.SET_INFLIGHT_FD} else "eventfd"
    kinds = [draw(st.sampled_from([likely, likely, likely, *KINDS])) for _ in range(number)]
    return request, draw(st.booleans()), payload, kinds


def running_session():
    """A session both of whose rings run, and its device."""
    device = DeviceTwin()
    session = Session(device, OFFER)
    ring_parts = [(R.SET_VRING_NUM, messages.STATE.pack), (R.SET_VRING_BASE, messages.STATE.pack)]
    told = [
        (R.SET_PROTOCOL_FEATURES, messages.U64.pack(IMPLEMENTED), 0),
        (R.SET_FEATURES, messages.U64.pack(OFFER.features & ~Feature.LOG_ALL | 1 << 30), 0),
        (R.ADD_MEM_REG, bytes(8) + messages.REGION.pack(0, 0x10000, 0, 0), 1),
    ]
    for ring in range(2):
        told += [(request, pack(ring, 64), 0) for request, pack in ring_parts]
        told += [
            (R.SET_VRING_ADDR, messages.ADDRESSES.pack(ring, 0, 0x4000, 0x8000, 0xC000, 0), 0),
            (R.SET_VRING_KICK, messages.U64.pack(ring), 1),
            (R.SET_VRING_ENABLE, messages.STATE.pack(ring, 1), 0),
        ]
    for request, payload, number in told:
        kind = "large" if request is R.ADD_MEM_REG else "eventfd"
        session.handle(Message(request, False, payload), [KINDS[kind]() for _ in range(number)])
        session.settle()
    assert sorted(device.running) == [0, 1]
    return session, device


def check(session, device):
    books = session.books
    assert Books.decode(books.encode()) == books
    held = session.descriptors.by_role()
    assert books.roles() == held.keys()
    assert len(set(held.values())) == len(held)
    for descriptor in held.values():
        os.fstat(descriptor)
    assert session.rings.running == device.running.keys()
    for number, ring in enumerate(books.rings):
        assert (number in device.running) == (not session.rings.hindrance(number))
        assert not ring.kick or ring.started
    assert [region.descriptor for region in books.memory] == [region.descriptor for region in device.regions]
    assert len(books.memory) <= 8
    assert not books.features & ~session._offered
    assert device.features == books.features & ~(1 << 30 | 1 << 26)


@pytest.fixture(autouse=True, scope="module")
def no_garbage():
    """Descriptors are counted here: other tests' garbage must not be collected meanwhile."""
    gc.collect()


@settings(max_examples=300, deadline=None)
@given(st.lists(any_message(), max_size=40), st.booleans())
def test_any_sequence_of_messages(sequence, running):
    before = open_descriptors()
    device = DeviceTwin()
    session = Session(device, OFFER)
    if running:
        session, device = running_session()
    for request, needs_reply, payload, kinds in sequence:
        descriptors = [KINDS[kind]() for kind in kinds]
        try:
            reply = session.handle(Message(request, needs_reply, payload), descriptors)
            session.settle()
        except ProtocolError as error:
            assert "\n" not in str(error)
            assert str(error).startswith(request.name)
        else:
            shape = SHAPES.get(request)
            if shape and shape.answered:
                assert reply is not None
        check(session, device)
    session.close()
    assert device.running == {} and device.regions == ()
    assert session.books == Books.of(OFFER.rings)
    assert open_descriptors() == before


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(any_message(), st.integers(1, 2)), max_size=40), st.booleans())
def test_handling_a_message_twice_has_the_same_effect(sequence, running):
    """As it is when a worker is killed before it has consumed the message."""
    device = DeviceTwin()
    session = Session(device, OFFER)
    if running:
        session, device = running_session()
    try:
        for (request, needs_reply, payload, kinds), times in sequence:
            seen = []
            for _ in range(times):
                try:
                    reply = session.handle(Message(request, needs_reply, payload), [KINDS[kind]() for kind in kinds])
                    session.settle()
                except ProtocolError as error:
                    reply = str(error)
                for ring in session.books.rings:
                    ring.generation = 0
                seen.append((reply, session.books.encode(), session.descriptors.by_role().keys(), set(device.running)))
            assert seen[0] == seen[-1]
    finally:
        session.close()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=8), st.data())
def test_any_bytes(pieces, data):
    """Bytes that are no messages, some with descriptors, some urgent, after a handshake or not."""
    before = open_descriptors()
    with Bench(GuestMemory.of_qemu()) as bench:
        if data.draw(st.booleans()):
            qemu = Qemu(bench.front)
            qemu.connect()
            qemu.start()
        for piece in pieces:
            if not bench.alive:
                break
            head = data.draw(
                st.one_of(
                    st.just(b""),
                    st.builds(
                        messages.HEADER.pack,
                        st.integers(1, 45),
                        st.sampled_from([1, 9]),
                        st.integers(0, 64),
                    ),
                )
            )
            event = os.eventfd(0)
            try:
                how = data.draw(st.sampled_from(["plain", "descriptors", "urgent"]))
                if how == "urgent":
                    bench.front.sock.send(head + piece, socket.MSG_OOB)
                else:
                    socket.send_fds(bench.front.sock, [head + piece], [event] * 3 if how == "descriptors" else [])
            finally:
                os.close(event)
            bench.turn()
            if bench.alive:
                check(bench.session, bench.device)
    assert open_descriptors() == before


@pytest.mark.parametrize("free", [0, 1])
def test_too_few_free_descriptors_end_the_connection(free):
    """The worker's limit of open files is reached while a front end sends memory."""
    before = open_descriptors()
    with Bench(GuestMemory.of_qemu()) as bench:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        bench.front.turn = lambda: None
        bench.front.set_memory()
        fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            while True:
                fillers.append(os.dup(0))
        except OSError:
            for _ in range(free):
                os.close(fillers.pop())
        try:
            bench.turn()
        finally:
            for each in fillers:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not bench.alive
        assert "limit of open files" in str(bench.error)
    assert open_descriptors() == before

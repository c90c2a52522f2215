"""A worker that is killed at any step of a handshake: its successor carries on from the stored
books, and the front end notices nothing."""

import gc
import os
import socket

import pytest

from dataplane.descriptors import readable
from tests.vhost_user_twins import OFFER, Bench, Fuse, Killed, open_descriptors
from virt.vhost_user import messages
from virt.vhost_user.books import Answer, Books
from virt.vhost_user.device import IMPLEMENTED, USUAL_FEATURES, Offer
from virt.vhost_user.front_end import FrontEnd
from virt.vhost_user.guest_memory import GuestMemory
from virt.vhost_user.handshakes import Dpdk, Qemu, UserModeLinux
from virt.vhost_user.protocol import PROTOCOL_FEATURES, VERSION, Request

R = Request


class Listener(FrontEnd):
    """Remembers the replies, and finds more than was asked for."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.heard = []

    def reply(self, request):
        self.heard.append((request, super().reply(request)))
        return self.heard[-1][1]

    def finds_nothing_more(self):
        return not readable(self.sock.fileno(), 0)


def progress(bench, number):
    """The guest uses both rings. What it does on one that does not run, the device finds when it
    starts it, and does at once."""
    for ring in range(2):
        if ring in bench.device.running:
            bench.guest.positions[ring] += number
        else:
            bench.guest.waiting[ring] = number


def qemu(bench):
    peer = Qemu(bench.front)
    peer.connect()
    progress(bench, 1)
    peer.start()
    progress(bench, 2)
    log = os.memfd_create("log")
    os.ftruncate(log, 0x2000)
    peer.begin_migration(log, 0x2000)
    os.close(log)
    progress(bench, 4)
    bases = peer.stop()
    assert bases == {0: 0x8000_8007, 1: 0x8000_8007}
    peer.start(bases)
    progress(bench, 5)
    bench.front.change_memory(R.REM_MEM_REG, bench.front.memory.areas[1])
    progress(bench, 2)
    bench.front.change_memory(R.ADD_MEM_REG, bench.front.memory.areas[1])
    progress(bench, 4)
    assert peer.stop() == {0: 0x8000_8012, 1: 0x8000_8012}
    peer.start()


def uml(bench):
    peer = UserModeLinux(bench.front, rings=2)
    peer.connect()
    peer.start()
    progress(bench, 3)
    peer.stop()
    progress(bench, 2)
    peer.start()
    progress(bench, 4)


def dpdk(bench):
    peer = Dpdk(bench.front)
    peer.connect()
    progress(bench, 1)
    peer.start()
    progress(bench, 2)
    assert peer.stop() == {0: 0x8000_8003, 1: 0x8000_8003}
    peer.start()


def the_rest(bench):
    """Messages that none of them sends."""
    front = bench.front
    front.agree(IMPLEMENTED)
    front.set_features(OFFER.features | PROTOCOL_FEATURES)
    payload = messages.INFLIGHT.pack(0, 0, 2, 64)
    for _ in range(2):
        reply = front.ask(R.GET_INFLIGHT_FD, payload)
        [descriptor] = front.received
        assert front.tell(R.SET_INFLIGHT_FD, reply, [descriptor])
        os.close(front.received.pop())
    front.set_memory(tell=True)
    assert front.tell(R.NET_SET_MTU, messages.U64.pack(9000))
    assert not front.tell(R.NET_SET_MTU, messages.U64.pack(1))
    assert not front.tell(R.SET_CONFIG, messages.CONFIG.pack(0, 1, 0) + b"x")
    front.set_polled(R.SET_VRING_CALL, 0)
    front.send(R.SET_LOG_FD, b"", [front.notifiers[0].error])
    for _ in range(2):
        for ring in range(2):
            front.set_ring(R.SET_VRING_NUM, ring, 64)
            front.set_ring(R.SET_VRING_BASE, ring, 0x8000_8000)
            front.set_addresses(ring)
            front.set_polled(R.SET_VRING_KICK, ring)
            front.set_ring(R.SET_VRING_ENABLE, ring, 1)
        if bench.books.status == 0:
            front.set_number(R.SET_STATUS, 15, tell=True)
            front.tell(R.RESET_DEVICE)
            front.set_features(OFFER.features | PROTOCOL_FEATURES)
            front.set_number(R.SET_STATUS, 15, tell=True)


FRONT_ENDS = {
    "qemu": (qemu, GuestMemory.of_qemu),
    "uml": (uml, GuestMemory.of_uml),
    "dpdk": (dpdk, GuestMemory.of_dpdk),
    "the rest": (the_rest, GuestMemory.of_qemu),
}


def run(name, fuse):
    """One whole story. Returns the replies, and what the device and the books have come to."""
    story, memory = FRONT_ENDS[name]
    offer = Offer(features=OFFER.features, queue_pairs=OFFER.queue_pairs, protocol_features=IMPLEMENTED)
    with Bench(memory(1 << 21), offer=offer, fuse=fuse, front=Listener, rings=2) as bench:
        story(bench)
        assert bench.alive and bench.error is None
        assert bench.front.finds_nothing_more()
        fuse.active = False
        books = Books.decode(bench.supervisor.data)
        assert books.answer is None
        assert books.roles() == bench.supervisor.held.keys()
        for ring in books.rings:
            ring.generation = 0  # a start that happens twice counts twice
        device = bench.device
        state = (books, sorted(device.running), device.regions, device.log, device.status)
        return bench.front.heard, state, dict(bench.guest.positions), bench.kills


@pytest.fixture(autouse=True, scope="module")
def no_garbage():
    """Descriptors are counted here: other tests' garbage must not be collected meanwhile."""
    gc.collect()


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_worker_killed_at_each_step(name):
    before = open_descriptors()
    whole = Fuse()
    heard, state, positions, kills = run(name, whole)
    assert kills == 0 and sorted(state[1]) == [0, 1]
    for step in range(1, whole.steps + 1):
        found = run(name, Fuse(step))
        assert found == (heard, state, positions, 1), step
        assert open_descriptors() == before, step


def test_every_worker_is_killed():
    """Each one comes a few steps further than its predecessor."""

    class Again(Fuse):
        def step(self):
            self.steps += 1
            if self.active and self.steps >= self.at:
                self.at += 50
                raise Killed

    expected = run("qemu", Fuse())
    found = run("qemu", Again(10))
    assert found[:3] == expected[:3]
    assert found[3] > 10


def test_a_reply_that_was_read_but_not_crossed_off_comes_twice_only_to_a_silent_front_end():
    """The window that no order of system calls can close."""
    with Bench(GuestMemory.of_uml(), front=Listener) as bench:
        bench.front.agree(USUAL_FEATURES)
        bench.front.ask_number(R.GET_QUEUE_NUM)
        books = bench.books
        reply = messages.reply(R.GET_QUEUE_NUM, messages.U64.pack(2))
        books.answer = Answer(reply)
        bench.supervisor.store(books, bench.session.descriptors.by_role())
        bench.front.turn = lambda: None
        bench.front.send(R.GET_STATUS)  # it went on: the reply is not repeated
        bench.replace()
        bench.turn()
        assert bench.front.reply(R.GET_STATUS) == messages.U64.pack(0)
        books = bench.books
        books.answer = Answer(reply)
        bench.supervisor.store(books, bench.session.descriptors.by_role())
        bench.replace()  # it is silent
        assert bench.front.reply(R.GET_QUEUE_NUM) == messages.U64.pack(2)
        assert bench.front.finds_nothing_more()


def test_half_a_message_waits_for_the_successor():
    with Bench(GuestMemory.of_uml()) as bench:
        payload = messages.U64.pack(1)
        data = messages.HEADER.pack(R.SET_VRING_CALL, VERSION, len(payload)) + payload
        socket.send_fds(bench.front.sock, [data[:5]], [bench.front.notifiers[1].call])
        bench.turn()
        bench.supervisor.store(bench.books, {})
        bench.replace()
        bench.turn()
        bench.front.sock.sendall(data[5:])
        bench.turn()
        assert bench.books.rings[1].call == "call1"


def test_the_front_end_may_have_gone_meanwhile():
    with Bench(GuestMemory.of_uml()) as bench:
        bench.front.agree(USUAL_FEATURES)
        bench.books.answer = Answer(messages.reply(R.GET_STATUS, messages.U64.pack(0)))
        bench.supervisor.store(bench.books, {})
        bench.front.sock.close()
        bench.replace()
        bench.turn()
        assert not bench.alive and bench.error is None

"""A guest beside one that is hostile, on one engine of a running instance: its frames arrive whole and in order, and none
is lost, whatever the other one sends, writes or leaves unread."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.support.guests import PACKED, RX, TX
from tests.support.socket_guest import SocketGuest
from tests.test_command import environment, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import conserved
from virt.driver import Buffer
from virt.vhost_user.front_end import FrontEndError
from virt.vhost_user.messages import HEADER, STATE, U64
from virt.vhost_user.protocol import NEED_REPLY, VERSION, Request

MACS = [bytes.fromhex(f"02000000000{number}") for number in (1, 2, 3)]
PLAIN = MACS[0] + MACS[2] + bytes(100)  # a frame of the hostile guest
ROUNDS = 8  # of frames there and back, at each step of the hostile guest
R = Request


class Neighbours:
    """Two guests that exchange frames, and the socket of a third one."""

    def __init__(self, one: SocketGuest, two: SocketGuest, path: str) -> None:
        self.one, self.two, self.path = one, two, path
        self.chance = random.Random(1)
        self.rounds = 0
        self.heard: list[bytes] = []  # frames of the hostile guest

    def exchange(self, rounds: int = ROUNDS) -> None:
        """Frames of all lengths there and back, each as it was sent. They are no IP packets: all bytes count."""
        for _ in range(rounds):
            body = self.chance.randbytes(self.chance.randrange(46, 1501))
            there = self.two.mac + self.one.mac + b"\x88\xb5" + body
            self.one.send(there)
            assert self.receive(self.two) == there
            back = self.one.mac + self.two.mac + b"\x88\xb5" + body[::-1]
            self.two.send(back)
            assert self.receive(self.one) == back
            self.rounds += 1

    def receive(self, guest: SocketGuest) -> bytes:
        """The guest's next frame of its neighbour."""
        while (frame := guest.receive())[6:12] == MACS[2]:
            self.heard.append(frame)
        return frame

    def hear(self, frame: bytes) -> None:
        """Waits for a frame of the hostile guest to the first one."""
        while frame not in self.heard:
            found = self.one.receive()
            assert found[6:12] == MACS[2], "a frame that the neighbour has not sent"
            self.heard.append(found)
        self.heard.remove(frame)

    @contextmanager
    def hostile(self, *features: int, **options: Any) -> Iterator[SocketGuest]:
        with SocketGuest(self.path, MACS[2], *features, **options) as guest:
            yield guest


def full_call(near: Neighbours) -> None:
    """It does not read its notifications, and has the descriptor block."""
    with near.hostile() as guest:
        call = guest.front.notifiers[TX].call
        os.eventfd_write(call, 2**64 - 2)
        os.set_blocking(call, True)
        for _ in range(ROUNDS):
            guest.send(PLAIN)
            near.exchange(1)
            near.hear(PLAIN)


def full_call_socket(near: Neighbours) -> None:
    """As User-mode Linux has it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, near.hostile() as guest:
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                theirs.send(bytes(4096))
        theirs.setblocking(True)
        guest.front.tell(R.SET_VRING_CALL, U64.pack(TX), [theirs.fileno()])
        for _ in range(ROUNDS):
            guest.send(PLAIN)
            near.exchange(1)
            near.hear(PLAIN)


def truncated_memory(near: Neighbours) -> None:
    """The file of its memory shrinks while the device reads it."""
    with near.hostile() as guest:
        guest.send(PLAIN)
        near.exchange(1)
        near.hear(PLAIN)
        for _ in range(8):
            guest.net.transmit(MACS[1] + MACS[2] + bytes(1000))
        guest.rings[TX].publish()
        os.ftruncate(guest.ram.fd, 0)
        guest.kick()
        near.exchange()
        assert guest.broke(TX)


def loops(near: Neighbours) -> None:
    """Chains of descriptors that do not end."""
    with near.hostile() as guest:
        ring, at = guest.rings[TX], guest.ram.allocate(64)
        ring.write(0, at, 12, 1, 1)
        ring.write(1, at, 30, 1, 0)
        ring.offer(0)
        ring.publish()
        guest.kick()
        near.exchange()
        assert guest.broke(TX)


def packed_without_an_end(near: Neighbours) -> None:
    with near.hostile(PACKED) as guest:
        ring, at = guest.rings[TX], guest.ram.allocate(64)
        for number in range(ring.size):
            ring.write(at, 8, 1, 1 | 0x80, first=number == 0)
        ring.publish()
        guest.kick()
        near.exchange()
        assert guest.broke(TX)


def addresses_of_others(near: Neighbours) -> None:
    """Receive buffers and frames at addresses that are not its own."""
    with near.hostile() as guest:
        guest.rings[TX].add([Buffer(guest.ram.guest + guest.ram.size - 8, 4096)])
        guest.rings[TX].publish()
        guest.kick()
        near.exchange()
        assert guest.broke(TX)


def nine_descriptors(near: Neighbours) -> None:
    """More than a message may have."""
    with near.hostile() as guest:
        with pytest.raises(FrontEndError):
            guest.front.tell(R.SET_VRING_CALL, U64.pack(RX), [guest.front.notifiers[RX].call] * 9)
        near.exchange()


def split_messages(near: Neighbours) -> None:
    """A message in two pieces, cut at each byte, and descriptors with the first."""
    with near.hostile(starts=False) as guest:
        front = guest.front
        payload = U64.pack(TX)
        text = HEADER.pack(R.SET_VRING_CALL, VERSION, len(payload)) + payload
        for cut in range(1, len(text)):
            socket.send_fds(front.sock, [text[:cut]], [front.notifiers[TX].call])
            near.exchange(1)
            front.sock.sendall(text[cut:])
            assert front.ask_number(R.GET_FEATURES)
        guest.start()
        guest.send(PLAIN)
        near.hear(PLAIN)


def status_first(near: Neighbours) -> None:
    """The status is 0 before the rings' positions are asked for."""
    with near.hostile() as guest:
        guest.send(PLAIN)
        near.hear(PLAIN)
        guest.front.set_number(R.SET_STATUS, 0)
        near.exchange()
        assert guest.front.get_base(TX) == 1


def no_protocol_features(near: Neighbours) -> None:
    """Features without bit 30: rings are enabled without a message."""
    with near.hostile(starts=False) as guest:
        guest.features &= ~(1 << 30)
        guest.start()
        guest.send(PLAIN)
        near.hear(PLAIN)
        near.exchange()


def rings_that_are_not_there(near: Neighbours) -> None:
    with near.hostile() as guest:
        for index in (9, 255, 65536, 2**32 - 1):
            assert not guest.front.tell(R.SET_VRING_NUM, STATE.pack(index, 16))
        assert not guest.front.tell(R.SET_VRING_NUM, STATE.pack(TX, 65536 + 16))
        near.exchange()


def half_messages(near: Neighbours) -> None:
    """It connects, says half a header, and goes; again and again."""
    for size in range(1, 12):
        with near.hostile(starts=False) as guest:
            guest.front.sock.sendall(bytes(size))
            near.exchange(1)


def noise(near: Neighbours) -> None:
    """Bytes that are no messages."""
    for number in range(8):
        with near.hostile(starts=False) as guest:
            head = HEADER.pack(near.chance.randrange(60), VERSION | NEED_REPLY, near.chance.randrange(400))
            guest.front.sock.sendall(head + near.chance.randbytes(200 + number))
            near.exchange(1)


def kicks(near: Neighbours) -> None:
    """Kicks without a frame, and receive buffers that are too short for any."""
    with near.hostile() as guest:
        for _ in range(8):
            guest.rings[RX].add([Buffer(guest.ram.allocate(4), 4, True)])
        guest.rings[RX].publish()
        for _ in range(200):
            guest.kick(TX)
            guest.kick(RX)
        near.exchange()


def used_index(near: Neighbours) -> None:
    """It overwrites what the device has written."""
    with near.hostile() as guest:
        for number in range(ROUNDS):
            guest.ram.write(guest.rings[TX].used_ring, struct.pack("<HH", 1, near.chance.randrange(65536)))
            guest.ram.store(guest.rings[TX].available + 2, number * 4099)
            guest.kick()
            near.exchange(1)
        assert guest.broke(TX)


HOSTILE: list[Callable[[Neighbours], None]] = [
    full_call,
    full_call_socket,
    truncated_memory,
    loops,
    packed_without_an_end,
    addresses_of_others,
    nine_descriptors,
    split_messages,
    status_first,
    no_protocol_features,
    rings_that_are_not_there,
    half_messages,
    noise,
    kicks,
    used_index,
]


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_guest_beside_a_hostile_one(environment, tmp_path, packed):  # noqa: F811
    nics = {name: {"kind": "vhost-user", "listen": f"{tmp_path}/{name}.sock"} for name in ("one", "two", "three")}
    file = tmp_path / "net.yaml"
    file.write_text(json.dumps({"nics": nics}))
    vnic(environment, "up", "-d", str(file))
    with ExitStack() as stack:
        stack.callback(vnic, environment, "down")
        more = [PACKED] * packed
        one = stack.enter_context(SocketGuest(nics["one"]["listen"], MACS[0], *more))
        two = stack.enter_context(SocketGuest(nics["two"]["listen"], MACS[1], *more))
        near = Neighbours(one, two, nics["three"]["listen"])
        near.exchange()
        for act in HOSTILE:
            act(near)
            near.exchange(1)
        assert conserved(environment)
        found = {nic["name"]: nic for nic in json.loads(vnic(environment, "status", "--json"))["nics"]}
        assert found["one"]["rx_packets"] == one.sent and found["two"]["rx_packets"] == two.sent
        for name in ("one", "two"):
            assert not any(ring["faults"] or ring["broken"] for ring in found[name]["rings"])
        assert one.sent == two.sent == near.rounds

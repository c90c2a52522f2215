"""A container of the demo: a process with its own network (and, for a plain user, user) namespace.

Runs as `python -m vnic.cli.demo_container FD`: reads one JSON request per line from the socket FD,
answers with one JSON object per line, and ends when the socket closes, and so with the demo. Uses
the standard library only, to start fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time
from typing import Any, TextIO

from vnic.device.new_container import end_with_parent, enter_new_namespaces

CHUNK = 1 << 18  # bytes per send or receive call; more do not fit the CPU's cache
TCP_INFO_SND_MSS = 16  # offset of tcpi_snd_mss in struct tcp_info (linux/tcp.h)


def tcp_socket() -> socket.socket:
    """A TCP socket with CUBIC if available: the default differs between kernels, and BBR does its
    own pacing."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    except OSError:
        pass  # not available: uses the default
    return made


class Container:
    """The container's requests; each method is one."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._datagrams: socket.socket | None = None

    def listen(self, address: str, tcp_port: int, udp_port: int) -> dict[str, Any]:
        """Accepts TCP connections and takes UDP datagrams from now on."""
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, tcp_port))
        self._listener.listen()
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind((address, udp_port))
        self._datagrams.settimeout(3)
        return {}

    def receive(self, seconds: float, settle: float) -> dict[str, Any]:
        """Accepts a connection and reads from it; returns the bytes received in `seconds` after the
        first `settle` seconds."""
        assert self._listener is not None
        self._listener.settimeout(10)
        connection, _ = self._listener.accept()
        buffer = bytearray(CHUNK)
        with connection:
            connection.settimeout(10)
            begin = time.monotonic()
            while time.monotonic() - begin < settle:
                if not connection.recv_into(buffer):
                    return {"bytes": 0, "seconds": 0.0}
            start = now = time.monotonic()
            total = 0
            while now - start < seconds:
                got = connection.recv_into(buffer)
                if not got:
                    break
                total += got
                now = time.monotonic()
            return {"bytes": total, "seconds": now - start}

    def send(self, address: str, port: int) -> dict[str, Any]:
        """Connects and writes until the receiver closes; returns the connection's MSS, too."""
        data = memoryview(bytes(CHUNK))
        sent = 0
        with tcp_socket() as connection:
            connection.settimeout(10)
            connection.connect((address, port))
            try:
                while True:
                    sent += connection.send(data)
            except (ConnectionError, TimeoutError):
                pass
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return {"sent": sent, "mss": struct.unpack_from("=I", info, TCP_INFO_SND_MSS)[0]}

    def echo(self, count: int) -> dict[str, Any]:
        """Answers `count` UDP datagrams, or as many as arrive before a pause of three seconds."""
        assert self._datagrams is not None
        answered = 0
        while answered < count:
            try:
                data, peer = self._datagrams.recvfrom(64)
            except TimeoutError:
                break
            self._datagrams.sendto(data, peer)
            answered += 1
        return {"answered": answered}

    def ping(self, address: str, port: int, count: int) -> dict[str, Any]:
        """`count` UDP round trips in sequence, in microseconds; a lost one takes half a second and
        is left out."""
        times: list[float] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
            endpoint.connect((address, port))
            endpoint.settimeout(0.5)
            for number in range(count):
                begin = time.perf_counter_ns()
                try:
                    endpoint.send(struct.pack("!I", number))
                    while struct.unpack("!I", endpoint.recv(64))[0] != number:
                        pass
                except TimeoutError:
                    if number - len(times) > 5:
                        break
                    continue
                times.append((time.perf_counter_ns() - begin) / 1000)
        return {"times_us": times}


def answer_requests(container: Container, requests: TextIO, replies: TextIO) -> None:
    """Answers requests, each a JSON object on a line, until there are none; the first answer is
    `ready`."""

    def answer(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    answer({"ready": os.getpid()})
    for line in requests:
        request = json.loads(line)
        try:
            answer(getattr(container, request.pop("call"))(**request))
        except OSError as error:  # also when the demo is ended and its interfaces go
            answer({"error": str(error)})


def serve(channel: socket.socket) -> None:
    """Makes the container, and answers requests until the channel closes."""
    with channel.makefile("rw") as stream:
        try:
            end_with_parent()
            enter_new_namespaces()
        except OSError as error:
            why = f"cannot make namespaces: {error.strerror}; `vnic doctor` says why"
            stream.write(json.dumps({"error": why}) + "\n")
            return
        answer_requests(Container(), stream, stream)


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):  # the demo was killed
        serve(socket.socket(fileno=int(sys.argv[1])))

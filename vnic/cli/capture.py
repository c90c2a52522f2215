"""`vnic capture`: packets of a running vnic, for tcpdump and Wireshark."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import click

from dataplane.errors import VnicError
from vnic.cli.common import (
    Seconds,
    completing,
    connect,
    instance_option,
    json_option,
    plural,
    print_json,
)

if TYPE_CHECKING:
    from types import FrameType

CHUNK = 1 << 16
HEADER_BYTES = 24  # of a pcap file
RECORD_BYTES = 16
DURATION_MOST_S = 1e7  # four months: fits a timeout of poll(2), in ms


@click.command(epilog="Exit status: 0 done, 1 packets were missed or writing failed, 2 wrong use.")
@click.argument("point", shell_complete=completing("point"))
@click.option(
    "--write",
    "-w",
    "target",
    default="-",
    show_default=True,
    metavar="FILE|-",
    help="Where to; '-' is stdout.",
)
@click.option(
    "--snaplen",
    "-s",
    type=click.IntRange(1, 262144),
    default=262144,
    show_default=True,
    help="Bytes kept of a frame.",
)
@click.option("--count", "-c", type=click.IntRange(1), help="Stop after so many packets.")
@click.option(
    "--duration",
    "-d",
    type=Seconds(0.001, DURATION_MOST_S),
    metavar="SECONDS",
    help="Stop after so long.",
)
@instance_option
@json_option
def capture(
    point: str,
    target: str,
    snaplen: int,
    count: int | None,
    duration: float | None,
    instance: str,
    as_json: bool,
) -> None:
    """Capture what passes POINT of a running vnic, as pcap with nanoseconds, until Ctrl-C.

    POINT is a NIC (what its container sends and receives) or one of a NIC's elements (what enters
    it): `vnic graph --elements` has their names. The network never waits for the capture: what the
    reader does not take in time is counted as missed.

    \b
    vnic capture web -w web.pcap
    vnic capture web.egress.rate | tcpdump -n -r -
    vnic capture db -c 100 -s 128 -w - | wireshark -k -i -
    """
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError(
            "a capture is not for a terminal; use -w FILE, or a pipe such as '| tcpdump -r -'"
        )
    if target == "-" and as_json:
        raise click.UsageError("--json and -w - both write to stdout")
    deadline = None if duration is None else time.monotonic() + duration
    with (
        connect(instance) as client,
        _stop_signal() as stop,
        _target(os.devnull) as null,
        ExitStack() as stack,
    ):
        number = client.call("StartCapture", point=point, snaplen=snaplen)["capture"]
        (reading,) = client.descriptors  # of a pipe that the daemon writes into
        stack.callback(os.close, reading)
        # opened after StartCapture, so that a failure does not truncate an older file
        writing = stack.enter_context(_target(target))
        with suppress(BrokenPipeError):
            _copy(reading, (writing, target), stop, count, deadline)
        # Reads while the daemon writes the rest, which it does before it answers.
        with ThreadPoolExecutor(1) as aside:
            stopping = aside.submit(client.call, "StopCapture", capture=number)
            with suppress(BrokenPipeError):
                _copy(
                    reading,
                    (writing, target) if count is None else (null, os.devnull),
                    None,
                    None,
                    None,
                )
            result = stopping.result()
    missed, error = result.get("missed", 0), result.get("error")
    if as_json:
        print_json(
            {
                "point": point,
                "file": target,
                "captured": result.get("captured", 0),
                "missed": missed,
            }
        )
    else:
        click.echo(
            f"{plural(result.get('captured', 0), 'packet')} captured, {missed} missed", err=True
        )
    if missed and not (count or error):
        raise click.exceptions.Exit(1)


@contextmanager
def _target(target: str) -> Iterator[int]:
    if target == "-":
        yield sys.stdout.fileno()
        return
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise VnicError(f"cannot write {target}: {error.strerror}") from None
    try:
        yield writing
    finally:
        os.close(writing)


@contextmanager
def _stop_signal() -> Iterator[int]:
    """A descriptor that becomes readable on SIGINT or SIGTERM."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop(number: int, frame: FrameType | None) -> None:
        with suppress(BlockingIOError):
            os.write(writing, b"\0")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _copy(
    reading: int,
    output: tuple[int, str],
    stop: int | None,
    count: int | None,
    deadline: float | None,
) -> None:
    """Copies a pipe to a file (descriptor, name) until the pipe ends, `stop` is readable, `count`
    packets were written, or the deadline."""
    writing, name = output
    packets = Packets() if count is not None else None
    watched = select.poll()
    for descriptor in (reading, stop):
        if descriptor is not None:
            watched.register(descriptor, select.POLLIN)
    while True:
        left_ms = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
        ready = [descriptor for descriptor, _ in watched.poll(left_ms)]
        if stop in ready or not ready:
            return
        data = os.read(reading, CHUNK)
        if not data:
            return
        if packets is not None and count is not None:
            data = packets.first(data, count)
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(writing, view) :]
            except BrokenPipeError:
                raise
            except OSError as error:
                raise VnicError(
                    f"cannot write {'standard output' if name == '-' else name}: {error.strerror}"
                ) from None
        if packets is not None and packets.done == count and packets.whole:
            return


class Packets:
    """Finds the ends of packets in the bytes of a pcap file in the machine's order."""

    def __init__(self) -> None:
        self.done = 0
        self._head = bytearray()
        self._skip = HEADER_BYTES  # bytes up to the next record's header

    @property
    def whole(self) -> bool:
        """Whether the last packet is complete."""
        return self._skip == 0 and not self._head

    def first(self, data: bytes, count: int) -> bytes:
        """The part of `data` that belongs to the first `count` packets."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                if self._skip == 0 and self.done == count:
                    break
                continue
            step = min(RECORD_BYTES - len(self._head), len(data) - at)
            self._head += data[at : at + step]
            at += step
            if len(self._head) == RECORD_BYTES:
                self._skip = int.from_bytes(self._head[8:12], sys.byteorder)
                self._head.clear()
                self.done += 1
        return data[:at]

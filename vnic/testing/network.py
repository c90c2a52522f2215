"""A configuration's network in virtual time: tests send packets, advance time, read received
ones."""

from __future__ import annotations

import heapq
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dataplane.capture.reader import CaptureReader
from dataplane.capture.writer import CaptureWriter
from dataplane.elements.nic_tx import NicTx
from dataplane.elements.rss import Rss
from dataplane.engine.clock import Clock
from dataplane.engine.virtual_time import VirtualTime
from dataplane.errors import ConfigError
from dataplane.graph.offload import captured_frame
from dataplane.ports.memory import Frame, MemoryPort
from dataplane.units import format_time, parse_time
from vnic.config.load import load_config, parse_config
from vnic.config.schema import Config, NicConfig
from vnic.replay.compare import Pair, Seen, describe
from vnic.replay.devices import Forever
from vnic.runtime.runtime import Runtime

START_NS = 10**9  # start of virtual time: greater than 0, so that earlier times exist

Packet = Any  # bytes, or a scapy packet that begins with Ethernet
FRAMES = ("Ether", "Dot3", "Raw")  # scapy classes of Ethernet frames; Raw: bytes


def _is_packet(value: Any) -> bool:
    """Whether `value` is one packet. Scapy packets are iterable, too, but have __bytes__."""
    return isinstance(value, bytes | bytearray | memoryview) or hasattr(type(value), "__bytes__")


def _frame(packet: Packet, what: str) -> bytes:
    """The bytes of an Ethernet frame. Raises ConfigError for others: bytes(5) would be five
    zeros."""
    kinds = [each.__name__ for each in type(packet).__mro__]
    if not _is_packet(packet):
        raise ConfigError(f"{what}: {type(packet).__name__} is not a packet: expected bytes or a scapy packet")
    if hasattr(packet, "fields_desc") and not set(FRAMES) & set(kinds):
        raise ConfigError(f"{what}: {kinds[0]} is no Ethernet frame; put Ether(...) / in front of it")
    return bytes(packet)


def _frames(packets: Packet | Iterable[Packet], what: str) -> list[bytes]:
    """The frames of one packet, or of several: a list, a generator, the result of rdpcap."""
    if _is_packet(packets):
        return [_frame(packets, what)]
    if isinstance(packets, str) or not isinstance(packets, Iterable):
        raise ConfigError(
            f"{what}: {type(packets).__name__} is not a packet: expected bytes, a scapy packet, or several of them"
        )
    return [_frame(packet, f"{what}: packet {number}") for number, packet in enumerate(packets, 1)]


@dataclass(frozen=True)
class Received:
    """A frame that a container received: time since the start, and bytes."""

    time_ns: int
    data: bytes
    queue: int = 0

    def __bytes__(self) -> bytes:
        return self.data

    def __repr__(self) -> str:
        return f"<{len(self.data)} bytes at {format_time(self.time_ns)}>"

    @property
    def packet(self) -> Any:
        """The frame as a scapy packet."""
        from vnic.replay.dissect import packet

        return packet(self.data)


class _Nic:
    """A NIC; the test takes the place of its container."""

    def __init__(self, config: NicConfig, number: int) -> None:
        self.config = config
        self.port = MemoryPort(config.name, number, config.queues, 0, mtu=config.mtu)
        self.tx = NicTx(self.port, Rss(config.rss.key, config.rss.table, queues=config.queues), name=f"{config.name}.tx")

    def watch(self) -> Forever:
        return Forever()

    def set_carrier(self, up: bool) -> None:
        """No effect: there is no container."""

    def status(self) -> dict[str, Any]:
        return {"interface": self.config.interface, "mac": self.config.mac, "mtu": self.config.mtu, "queues": self.port.queues}

    def queue_statistics(self) -> list[dict[str, int]]:
        return self.port.queue_statistics()

    def close(self) -> None:
        self.port.close()


class _Devices:
    def __init__(self) -> None:
        self.nics: dict[str, _Nic] = {}

    def start(self) -> None:
        """Nothing to start."""

    def open(self, config: NicConfig, number: int, passed: object = None, /) -> _Nic:
        nic = self.nics[config.name] = _Nic(config, number)
        return nic

    def forget(self, name: str) -> None:
        self.nics.pop(name, None)

    def stop(self) -> None:
        """Nothing to stop."""


def _config(config: str | os.PathLike[str] | Config) -> Config:
    """A configuration from YAML text, the path of a YAML file, or as it is."""
    if isinstance(config, str) and ("\n" in config or ":" in config):
        return parse_config(config, "<test>", os.getcwd(), contained=False)
    return config if isinstance(config, Config) else load_config(config, contained=False)


def _nanoseconds(time: str | int) -> int:
    if isinstance(time, str):
        return parse_time(time)
    try:
        return operator.index(time)
    except TypeError:
        raise ConfigError(f'time {time!r}: expected text such as "500ms", or a whole number of nanoseconds') from None


def _in_unit_of(time_ns: int, other_ns: int) -> str:
    """A time, exact, in the unit that suits another one, so that the two are easy to compare."""
    for unit, name in ((10**9, "s"), (10**6, "ms"), (10**3, "us")):
        if abs(other_ns) >= unit:
            whole, rest = divmod(abs(time_ns), unit)
            decimals = f".{rest:0{len(str(unit)) - 1}d}".rstrip("0").rstrip(".")
            return f"{'-' if time_ns < 0 else ''}{whole}{decimals}{name}"
    return f"{time_ns}ns"


class VirtualNetwork:
    """The network of `config` (YAML text, the path of a YAML file, or a Config); the test takes the
    place of all containers.

        net = VirtualNetwork("nics: {a: {egress: {rate: 10mbit}}, b: {}}")
        net.send("a", Ether(...) / IP(...) / UDP(...), at="1ms")
        net.run()
        net.assert_received("b", Ether(...) / IP(...) / UDP(...), at="1ms")

    Times are virtual, from 0, as "1ms" or nanoseconds. `close` checks that every packet is
    accounted for.
    """

    def __init__(self, config: str | os.PathLike[str] | Config, *, seed: int = 0) -> None:
        self.config = _config(config)
        self._devices = _Devices()
        self._clock = Clock(virtual=True, start_ns=START_NS)
        self._runtime = Runtime(self.config, devices=self._devices, clock=self._clock, seed=seed)
        self._runtime.start()
        self._time = VirtualTime(self._runtime.engines)
        self._sending: list[tuple[int, int, str, Frame]] = []
        self._sent = 0
        self._received: dict[str, list[Received]] = {name: [] for name in self._devices.nics}
        self._closed = False

    def apply(self, config: str | os.PathLike[str] | Config) -> list[str]:
        """Makes the network the one that `config` describes, as `vnic apply` does; returns what has changed, such as "add nic web".
        What stays keeps its queues, tables and counters. All or nothing. Raises ConfigError, VnicError."""
        self._collect()
        wanted = _config(config)
        try:
            changes = self._runtime.apply(wanted)
        finally:
            self._time = VirtualTime(self._runtime.engines)
        self.config = wanted
        self._received = {name: self._received.get(name, []) for name in self._devices.nics}
        return [f"{change.action} {change.kind} {change.name}" for change in changes]

    @property
    def now_ns(self) -> int:
        """Virtual time since the start."""
        return self._clock.now_ns - START_NS

    # -- sending -----------------------------------------------------------------------------------

    def send(self, nic: str, packets: Packet | Iterable[Packet], *, at: str | int | None = None, gap: str | int = 0) -> None:
        """The container of `nic` sends one or several packets, `gap` apart, the first at `at`
        (default: now).

        A packet is bytes or a scapy packet that begins with Ethernet; several are any iterable of
        them, such as a list, a generator or the result of scapy's rdpcap. Raises ConfigError for
        other values, and then sends nothing.
        """
        self._nic(nic)
        frames, gap_ns = _frames(packets, "send"), _nanoseconds(gap)
        instant = self.now_ns if at is None else _nanoseconds(at)
        if instant < self.now_ns:
            raise ConfigError(f"send: {format_time(instant)} is past; it is {format_time(self.now_ns)} already")
        for frame in frames:
            self._push(instant, nic, Frame(frame))
            instant += gap_ns

    def send_capture(self, nic: str, capture: str | os.PathLike[str], *, at: str | int | None = None) -> int:
        """The container of `nic` sends a capture's packets, the first at `at` (default: now).
        Returns their number.

        A TCP frame longer than the NIC's MTU is sent as the GSO frame that it was, as in a replay.
        """
        config = self._nic(nic).config
        mtu = config.mtu if config.offloads.tso else 0
        start, first, count = self.now_ns if at is None else _nanoseconds(at), None, 0
        reader = CaptureReader(capture)
        try:
            for time_ns, data, _, _ in reader:
                first = time_ns if first is None else first
                self._push(max(start + time_ns - first, start), nic, Frame(*captured_frame(data, mtu)))
                count += 1
        finally:
            reader.close()
        return count

    def _push(self, instant: int, nic: str, frame: Frame) -> None:
        heapq.heappush(self._sending, (instant, self._sent, nic, frame))
        self._sent += 1

    def _nic(self, name: str) -> _Nic:
        if name not in self._devices.nics:
            raise ConfigError(f"nic {name}: there is none; the configuration has {', '.join(self._devices.nics)}")
        return self._devices.nics[name]

    # -- time --------------------------------------------------------------------------------------

    def advance(self, time: str | int) -> None:
        """Advances virtual time by `time`."""
        self._run_until(self.now_ns + _nanoseconds(time))

    def run(self) -> None:
        """Advances time until every packet was sent and none is in flight."""
        while self._sending:
            self._run_until(self._sending[0][0])
        while self._time.run(1 << 62):
            pass
        self._collect()

    def _run_until(self, until_ns: int) -> None:
        while self._sending and self._sending[0][0] <= until_ns:
            instant = self._sending[0][0]
            if instant > self.now_ns:
                self._time.advance(START_NS + instant - 1)
                self._clock.set(START_NS + instant)
            while self._sending and self._sending[0][0] == instant:
                _, _, nic, frame = heapq.heappop(self._sending)
                self._devices.nics[nic].port.inject([frame])
            self._time.advance(START_NS + instant)
        self._time.advance(START_NS + until_ns)
        self._collect()

    def _collect(self) -> None:
        for name, nic in self._devices.nics.items():
            self._received[name] += [Received(frame.time_ns - START_NS, frame.data, frame.queue) for frame in nic.port.take()]

    # -- receiving ---------------------------------------------------------------------------------

    def received(self, nic: str) -> list[Received]:
        """The frames that the container of `nic` has received since the last `take` or
        `assert_received`.

        A list of `Received`, in order: `data` (the frame's bytes), `time_ns` (since the start),
        `queue` (of the NIC) and `packet` (the frame as a scapy packet). A GSO frame is listed in
        segments.
        """
        self._nic(nic)
        return list(self._received[nic])

    def take(self, nic: str) -> list[Received]:
        """As `received`, and removes them: the next call returns later frames only."""
        taken = self.received(nic)
        self._received[nic] = []
        return taken

    def drops(self) -> dict[str, int]:
        """Numbers of packets dropped so far, as a dict: "element: reason" -> count; without zeros.

        For example {"a.egress.rate: queue_full": 3, "b.tx: too_long": 1}; names as in `vnic stats`.
        """
        return {
            f"{element['name']}: {reason}": count
            for engine in self._runtime.stats()["engines"]
            for element in engine["elements"]
            for reason, count in element["dropped"].items()
            if count
        }

    def assert_received(
        self,
        nic: str,
        packets: Packet | Iterable[Packet],
        *,
        at: str | int | Iterable[str | int] | None = None,
        tolerance: str | int = 0,
    ) -> None:
        """Fails unless the container of `nic` received exactly these packets, in this order, and at
        the times `at`, if given. Removes the received packets, so that a test can go on."""
        __tracebackhide__ = True
        wanted = _frames(packets, "assert_received")
        instants = None if at is None else [_nanoseconds(each) for each in ([at] if isinstance(at, str | int) else at)]
        got = self.take(nic)
        for number, (mine, expected) in enumerate(zip(got, wanted, strict=False), 1):
            if mine.data != expected:
                pair = Pair(nic, Seen(number, mine.time_ns, mine.data), Seen(number, mine.time_ns, expected))
                raise AssertionError("\n".join(describe(pair)))
        if len(got) != len(wanted):
            raise AssertionError(f"{nic} received {len(got)} packets, expected {len(wanted)}{self._why(got, wanted, nic)}")
        if instants is not None:
            if len(instants) != len(got):
                raise AssertionError(f"{len(instants)} instants for {len(got)} packets")
            for number, (mine, instant) in enumerate(zip(got, instants, strict=True), 1):
                late_ns = mine.time_ns - instant
                if abs(late_ns) > _nanoseconds(tolerance):
                    came, due, late = (_in_unit_of(each, instant) for each in (mine.time_ns, instant, abs(late_ns)))
                    side = "late" if late_ns > 0 else "early"
                    raise AssertionError(f"{nic}, packet {number}: came at {came}, expected at {due} ({late} {side})")

    def _why(self, got: list[Received], wanted: list[bytes], nic: str) -> str:
        lines = [f"\ndropped: {key}: {count}" for key, count in self.drops().items()]
        if len(got) > len(wanted):
            extra = got[len(wanted)]
            lines.append("\n" + "\n".join(describe(Pair(nic, Seen(len(wanted) + 1, extra.time_ns, extra.data), None))))
        return "".join(lines)

    def write(self, capture: str | os.PathLike[str]) -> None:
        """Writes all frames received so far into a pcapng file, one interface per NIC."""
        names = list(self._received)
        lines = sorted((each.time_ns, number, each.data) for number, name in enumerate(names) for each in self._received[name])
        writer = CaptureWriter(capture, names)
        try:
            for time_ns, number, data in lines:
                writer.write(number, time_ns, data)
        finally:
            writer.close()

    def close(self) -> None:
        """Closes the network. Raises AssertionError where packets are unaccounted for. May be
        called twice."""
        if self._closed:
            return
        self._closed = True
        conserved = self._runtime.status()["conserved"]
        self._runtime.close()
        assert conserved, "packets are unaccounted for: received + generated = transmitted + dropped + held does not hold"

    def __enter__(self) -> VirtualNetwork:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

"""Replay in real time: captures through the graph into running containers, on an absolute schedule,
with proof of delivery."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from dataplane.capture.reader import CaptureReader
from dataplane.elements.departures import Departures
from dataplane.engine.clock import Clock
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.element import Element
from dataplane.graph.port import Port
from dataplane.ports.pcap_source import PcapSource
from dataplane.units import parse_rate
from vnic.config.schema import Config
from vnic.device.kinds.contract import INTERFACE, NicKind, Origin, Settings
from vnic.device.kinds.registry import interface_kind
from vnic.device.namespaces import TargetWatch
from vnic.device.nic import Nic
from vnic.modules.devices import AgentDevices
from vnic.replay.kind import ReplayKind
from vnic.replay.session import Capture
from vnic.replay.sides import check_inputs
from vnic.runtime.runtime import Runtime

# the source polls from so long before a packet is due: the worst wake-up latency on an idle machine
LEAD_NS = 300_000
# from the last NIC to the first packet: a container's kernel sends its own packets on a new link
SETTLE_S = 0.3
DRAIN_S = 5.0  # limit for shapers to send held packets after the last one
STEP_S = 0.05
# from the last packet to the end, where a packet socket is open: tcpdump's ring delivers a block
# that is not full after a second, and its packets are lost if the interface goes first
LINGER_S = 1.2
WAIT_S, LOOK_S = 60.0, 0.02  # limit for a listener to appear; interval between checks
MEASURED = ("tap", "veth")  # kinds whose interface counts what a container receives


@dataclass(frozen=True)
class Schedule:
    """When packets are due. mode: captured, pps, rate or asap; factor/divisor: its number."""

    mode: str
    factor: int = 1
    divisor: int = 1

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """captured, speed=2.5, pps=10000, rate=100mbit, asap. Raises ConfigError."""
        mode, equals, value = text.partition("=")
        try:
            match mode, bool(equals):
                case (("captured" | "asap"), False):
                    return cls(mode)
                case (("pps" | "speed"), True):
                    number = Fraction(value).limit_denominator(1_000_000)
                    if not 0 < number <= 10**9:
                        raise ValueError
                    return cls(
                        "pps" if mode == "pps" else "captured", number.numerator, number.denominator
                    )
                case "rate", True:
                    return cls("rate", parse_rate(value))
        except (ValueError, ZeroDivisionError):
            pass
        raise ConfigError(
            f"schedule {text!r}: "
            f"expected captured, speed=FACTOR, pps=NUMBER, rate=RATE (such as 100mbit) or asap"
        )


class _LiveNic:
    """A NIC in a container. Measures when packets depart, and reads the interface's counters."""

    def __init__(self, nic: Nic) -> None:
        self.nic = nic
        self.departures = Departures(name=f"{nic.name}.departures")
        self.departures.connect(0, nic.tx)
        self.before = nic.tap.counters()
        self.after: dict[str, int] = {}

    @property
    def port(self) -> Port:
        return self.nic.port

    @property
    def after_parse(self) -> Sequence[Element]:
        return self.nic.after_parse

    @property
    def tx(self) -> Element:
        return self.departures

    def watch(self) -> TargetWatch:
        return self.nic.watch()

    def set_carrier(self, up: bool) -> None:
        self.nic.set_carrier(up)

    def change(self, settings: Settings) -> Callable[[], object]:
        return self.nic.change(settings)

    def status(self) -> dict[str, Any]:
        return self.nic.status()

    @property
    def mac(self) -> str:
        return self.nic.mac

    def queue_statistics(self) -> list[dict[str, int]]:
        return self.nic.queue_statistics()

    def queue_drops(self) -> int | None:
        return self.nic.queue_drops()

    def counted(self) -> int:
        """Packets received since this NIC was opened, by the container's kernel."""
        self.after = self.nic.tap.counters()
        return self.after["rx_packets"] - self.before["rx_packets"]

    def has_packet_socket(self) -> bool:
        """Whether a packet socket is open in the container; False if the container has ended."""
        try:
            return self.nic.tap.listens("packet")
        except VnicError:
            return False

    def close(self) -> None:
        self.nic.close()


@dataclass(frozen=True)
class Listener:
    """A socket to wait for in a NIC's container: of a UDP or TCP port, or a packet socket
    (tcpdump)."""

    nic: str
    protocol: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Listener:
        """NAME=udp/5001, NAME=tcp/80 or NAME=packet. Raises ConfigError."""
        nic, _, what = text.partition("=")
        protocol, slash, port = what.partition("/")
        if nic and what == "packet":
            return cls(nic, what)
        if (
            nic
            and slash
            and protocol in ("udp", "tcp")
            and port.isascii()
            and port.isdecimal()
            and 1 <= int(port) <= 65535
        ):
            return cls(nic, protocol, int(port))
        raise ConfigError(f"--wait {text}: expected NAME=udp/PORT, NAME=tcp/PORT or NAME=packet")

    def __str__(self) -> str:
        return f"{self.nic}={self.protocol}" + (f"/{self.port}" if self.port else "")


class LiveKind(NicKind[_LiveNic]):
    """NICs in containers, each of its configured kind, that are measured. nics: those that are
    open, by name."""

    NAME = "live"
    SETTINGS = INTERFACE

    def __init__(self) -> None:
        self.nics: dict[str, _LiveNic] = {}

    def open(self, settings: Settings, number: int, origin: Origin) -> _LiveNic:
        if settings.kind not in MEASURED:
            raise ConfigError(
                f"nic {settings.name}: kind: {settings.kind} tells no container's counts: "
                f"expected {' or '.join(MEASURED)}"
            )
        nic = self.nics[settings.name] = _LiveNic(
            interface_kind(settings.kind).open(settings, number, origin)
        )
        return nic


class RealtimeReplay:
    """Replays `inputs` (NIC's name -> capture) through `config` in real time, to the containers of
    the other NICs.

    Each packet's due time is computed from the start of the replay, so errors do not add up. Raises
    ConfigError, PortError, and then leaves nothing open.
    """

    def __init__(
        self,
        config: Config,
        inputs: Mapping[str, Capture],
        schedule: Schedule,
        *,
        loops: int = 1,
        delay_ns: int = 0,
    ) -> None:
        check_inputs(config, inputs)
        lost = [
            name
            for name in config.outer_nics
            if name not in inputs
            and config.nics[name].pid is None
            and config.nics[name].netns is None
        ]
        if lost:
            raise ConfigError(
                f"nic {lost[0]}: has neither a capture nor a container; "
                f"use --port {lost[0]}=IN.pcap, pid: or netns:"
            )
        if len(inputs) == len(config.outer_nics):
            raise ConfigError(
                "a replay in real time needs a NIC in a container: every one has a capture"
            )
        self.schedule, self.loops = schedule, loops
        self.delay_ns = max(delay_ns, int(SETTLE_S * 1e9))
        self._begin_ns = 0
        with ExitStack() as undo:
            readers = {}
            for name, capture in inputs.items():
                readers[name] = CaptureReader(capture)
                undo.callback(readers[name].close)
            replayed, live = self.replayed, self.live = (
                ReplayKind(readers, None, held=True),
                LiveKind(),
            )
            devices = AgentDevices(lambda nic: replayed if nic.name in readers else live)
            self.runtime = Runtime(config, devices=devices)
            undo.callback(self.runtime.close)
            self.runtime.start()
            undo.pop_all()

    @property
    def _sources(self) -> list[PcapSource]:
        return [nic.source for nic in self.replayed.nics.values() if nic.source is not None]

    def wait(self, listeners: Sequence[Listener], limit_s: float = WAIT_S) -> None:
        """Returns once all listeners exist. Raises ConfigError for a NIC without a container,
        VnicError after `limit_s`."""
        for each in listeners:
            if each.nic not in self.live.nics:
                raise ConfigError(
                    f"--wait {each}: no such NIC in a container: "
                    f"expected one of {', '.join(self.live.nics)}"
                )
        end_s = time.monotonic() + limit_s
        for each in listeners:
            # The kernel has no event for a socket that begins to listen.
            while not self.live.nics[each.nic].nic.tap.listens(each.protocol, each.port):
                if time.monotonic() > end_s:
                    raise VnicError(
                        f"--wait {each}: no such socket in the container after {limit_s:g} s"
                    )
                time.sleep(LOOK_S)

    def run(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Runs to the end: all packets are sent, and shapers hold none, or DRAIN_S have passed;
        then packet sockets had LINGER_S to deliver."""
        clock = Clock()
        begin_ns = self._begin_ns = clock.now_ns + self.delay_ns
        self.runtime.policy.begin_scenario(begin_ns)
        for name, nic in self.replayed.nics.items():
            if nic.source is not None:
                self.runtime.nics.call_at(name, partial(self._start, nic.source, begin_ns))
        total = sum(source.reader.size for source in self._sources) * self.loops
        while not all(source.done for source in self._sources):
            time.sleep(STEP_S)
            if progress is not None:
                done = sum(
                    source.reader.size * (self.loops - 1 - source.rounds) + source.reader.position
                    for source in self._sources
                )
                progress(done, total)
        end = time.monotonic() + DRAIN_S
        while (
            any(engine["held"] for engine in self.runtime.status()["engines"])
            and time.monotonic() < end
        ):
            time.sleep(STEP_S)
        if any(nic.has_packet_socket() for nic in self.live.nics.values()):
            time.sleep(LINGER_S)

    def _start(self, source: PcapSource, begin_ns: int) -> None:
        plan = self.schedule
        source.start(
            begin_ns, plan.mode, plan.factor, plan.divisor, loops=self.loops, lead_ns=LEAD_NS
        )

    def results(self) -> dict[str, Any]:
        """Proof of delivery: packets captured, entered, sent to each container, counted by its
        interface; lateness; `complaints`."""
        stats = self.runtime.stats()
        complaints: list[str] = []
        nics: list[dict[str, Any]] = []
        span_ns = 0
        captured = sum(source.packets for source in self._sources)
        entered = sum(
            nic.port.queue_statistics()[0]["rx_packets"] for nic in self.replayed.nics.values()
        )
        if entered != captured:
            lost = sum(source.queue_statistics()[0]["rx_dropped"] for source in self._sources)
            complaints.append(
                f"{captured} packets captured, {entered} sent: "
                f"{lost} found no buffer, {captured - entered - lost} were not due yet"
            )
        dropped = {
            f"{element['name']}: {reason}": count
            for engine in stats["engines"]
            for element in engine["elements"]
            for reason, count in element["dropped"].items()
            if count
        }
        for name, nic in self.live.nics.items():
            meter = nic.departures.meter.summary()
            sent = sum(queue["tx_packets"] for queue in nic.queue_statistics())
            refused = sum(queue["tx_dropped"] for queue in nic.queue_statistics())
            counted = nic.counted()
            if meter["packets"]:
                span_ns = max(span_ns, meter["last_ns"] - self._begin_ns)
            nics.append(
                {
                    "name": name,
                    "sent": sent,
                    "refused": refused,
                    "counted": counted,
                    "lateness_ns": meter["delay_ns"],
                }
            )
            if refused:
                complaints.append(
                    f"{name}: its interface refused {refused} of {sent + refused} packets"
                )
            if counted != sent:
                complaints.append(
                    f"{name}: "
                    f"{sent} packets sent, but its interface counted {counted} "
                    f"({counted - sent:+d})"
                )
        arrived = sum(nic["sent"] + nic["refused"] for nic in nics)
        if arrived < entered:
            why = ", ".join(f"{count} by {key}" for key, count in dropped.items()) or "still held"
            complaints.append(
                f"{entered} packets entered the network, {arrived} reached a container: "
                f"dropped {why}"
            )
        errors = [source.error for source in self._sources if source.error]
        return {
            "captured": captured,
            "entered": entered,
            "span_ns": span_ns,
            "nics": nics,
            "dropped": dropped,
            "complaints": complaints,
            "delivered": not complaints and not errors,
            "errors": errors,
            "conserved": self.runtime.status()["conserved"],
        }

    def close(self) -> None:
        """Ends the replay. May be called twice."""
        self.runtime.close()
        for reader in self.replayed.readers.values():
            reader.close()

    def __enter__(self) -> RealtimeReplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

"""What networks in virtual time and live ones have in common: the same test can use either."""

from __future__ import annotations

import heapq
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from dataplane.capture.reader import CaptureReader
from dataplane.capture.writer import CaptureWriter
from dataplane.errors import ConfigError
from dataplane.graph.offload import captured_frame
from dataplane.ports.memory import Frame
from dataplane.units import format_time
from shaping.policy.forecast import lines_between
from shaping.policy.load import load_policy, parse_policy, policy_data
from shaping.policy.places import Place, plan_of
from vnic.config.load import load_config, parse_config
from vnic.config.schema import Config, NicConfig
from vnic.config.shape import network_of, read_policy
from vnic.replay.compare import Pair, Seen, describe
from vnic.testing.frames import Packet, Received, frames_of, in_unit_of, nanoseconds
from vnic.testing.measure import Journal, Measured
from vnic.testing.promises import check_delay, check_loss, check_rate

Configuration = str | os.PathLike[str] | Config
Shaping = str | os.PathLike[str] | dict[str, Any] | None
UNACCOUNTED = (
    "packets are unaccounted for: received + generated = transmitted + dropped + held does not hold"
)


def _is_yaml(text: str) -> bool:
    """Whether it is YAML text, and not a path."""
    return "\n" in text or ":" in text


def config_of(config: Configuration) -> Config:
    """A configuration from YAML text, the path of a YAML file, or as it is."""
    if isinstance(config, str) and _is_yaml(config):
        return parse_config(config, "<test>", os.getcwd(), contained=False)
    return config if isinstance(config, Config) else load_config(config, contained=False)


def policy_of(policy: Shaping) -> dict[str, Any] | None:
    """A policy as plain data, from YAML text, the path of a YAML file, or as it is."""
    if policy is None or isinstance(policy, dict):
        return policy
    if isinstance(policy, str) and _is_yaml(policy):
        found = parse_policy(policy, "<test>")
    else:
        found = load_policy(policy)
    return policy_data(found)  # type: ignore[no-any-return]


class AnyNetwork(ABC):
    """A network of which a test sends packets, lets time pass, and reads received packets.

    live: whether its containers and times are real. Times are since the start, as "1ms" or
    nanoseconds, and pass in `advance` and `run` alone, which send what `send` was given.
    """

    live: ClassVar[bool]

    def __init__(self, config: Config) -> None:
        self.config = config
        self._sending: list[tuple[int, int, str, Frame]] = []
        self._sent = 0
        self._received: dict[str, list[Received]] = {name: [] for name in config.nics}
        self._closed = False
        self._policy: Any = config.shape
        self._journal = Journal(config)

    @property
    @abstractmethod
    def now_ns(self) -> int:
        """Time since the start."""

    @abstractmethod
    def apply(self, config: Configuration) -> list[str]:
        """Changes the network to `config`, as `vnic apply` does; returns the changes, such as "add
        nic web". Unchanged parts keep their queues, tables and counters. All or nothing. Raises
        ConfigError, VnicError."""

    @abstractmethod
    def shape(self, policy: Shaping) -> list[str]:
        """Makes `policy` (YAML text, the path of a YAML file, or plain data; None: none) the policy
        of shaping, as `vnic shape apply` does; returns the changes. Raises ConfigError,
        VnicError."""

    # -- sending -----------------------------------------------------------------------------------

    def send(
        self,
        nic: str,
        packets: Packet | Iterable[Packet],
        *,
        at: str | int | None = None,
        gap: str | int = 0,
    ) -> None:
        """The container of `nic` sends one or several packets, `gap` apart, the first at `at`
        (default: now).

        A packet is bytes or a scapy packet that begins with Ethernet; several are any iterable of
        them, such as a list, a generator or the result of scapy's rdpcap. Raises ConfigError for
        other values, and then sends nothing.
        """
        self._nic_config(nic)
        frames, gap_ns = [Frame(frame) for frame in frames_of(packets, "send")], nanoseconds(gap)
        instant = self._instant("send", at)
        self._check(nic, frames)
        for frame in frames:
            self._push(instant, nic, frame)
            instant += gap_ns

    def send_capture(
        self, nic: str, capture: str | os.PathLike[str], *, at: str | int | None = None
    ) -> int:
        """The container of `nic` sends a capture's packets, the first at `at` (default: now).
        Returns their number.

        A TCP frame longer than the NIC's MTU is sent as the GSO frame that it was, as in a replay.
        """
        config = self._nic_config(nic)
        mtu = config.mtu if config.offloads.tso else 0
        start = self._instant("send_capture", at)
        reader = CaptureReader(capture)
        try:
            found = [(time_ns, Frame(*captured_frame(data, mtu))) for time_ns, data, _, _ in reader]
        finally:
            reader.close()
        self._check(nic, [frame for _, frame in found])
        for time_ns, frame in found:
            self._push(max(start + time_ns - found[0][0], start), nic, frame)
        return len(found)

    def _instant(self, what: str, at: str | int | None) -> int:
        instant = self.now_ns if at is None else nanoseconds(at)
        if instant < self.now_ns:
            raise ConfigError(
                f"{what}: {format_time(instant)} is past; it is {format_time(self.now_ns)} already"
            )
        return instant

    @abstractmethod
    def _check(self, nic: str, frames: list[Frame]) -> None:
        """Raises ConfigError for frames that cannot be sent."""

    def _push(self, instant: int, nic: str, frame: Frame) -> None:
        heapq.heappush(self._sending, (instant, self._sent, nic, frame))
        self._sent += 1

    def _changed(self, config: Config) -> None:
        """The network is the one of `config` now."""
        self.config = config
        self._received = {name: self._received.get(name, []) for name in config.nics}
        self._shaped(config.shape)
        self._sending = [each for each in self._sending if each[2] in config.nics]
        heapq.heapify(self._sending)

    def _shaped(self, policy: Any) -> None:
        """`policy`, plain data, is the policy of shaping now."""
        self._policy = policy
        self._journal.changed(self.config, self.now_ns)

    def _nic_config(self, name: str) -> NicConfig:
        if name not in self.config.nics:
            raise ConfigError(
                f"nic {name}: there is none; the configuration has {', '.join(self.config.nics)}"
            )
        return self.config.nics[name]

    # -- time --------------------------------------------------------------------------------------

    @abstractmethod
    def advance(self, time: str | int) -> None:
        """Lets `time` pass."""

    @abstractmethod
    def run(self) -> None:
        """Lets time pass until every packet was sent and none is in flight."""

    # -- receiving ---------------------------------------------------------------------------------

    def received(self, nic: str) -> list[Received]:
        """The frames that the container of `nic` has received since the last `take` or
        `assert_received`.

        A list of `Received`, in order: `data` (the frame's bytes), `time_ns` (since the start),
        `queue` (of the NIC) and `packet` (the frame as a scapy packet). A GSO frame is listed in
        segments.
        """
        self._nic_config(nic)
        return list(self._received[nic])

    def take(self, nic: str) -> list[Received]:
        """As `received`, and removes them: the next call returns later frames only."""
        taken = self.received(nic)
        self._received[nic] = []
        self._journal.forget(nic)
        return taken

    def drops(self) -> dict[str, int]:
        """Numbers of packets dropped so far, as a dict: "element: reason" -> count; without zeros.

        For example {"a.egress.rate: queue_full": 3, "b.tx: too_long": 1}; names as in `vnic stats`.
        """
        return {
            f"{element['name']}: {reason}": count
            for engine in self._stats()["engines"]
            for element in engine["elements"]
            for reason, count in element["dropped"].items()
            if count
        }

    @abstractmethod
    def _stats(self) -> dict[str, Any]:
        """Counters as the API's method Stats returns them."""

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
        wanted = frames_of(packets, "assert_received")
        instants = (
            None
            if at is None
            else [nanoseconds(each) for each in ([at] if isinstance(at, str | int) else at)]
        )
        got = self.take(nic)
        for number, (mine, expected) in enumerate(zip(got, wanted, strict=False), 1):
            if mine.data != expected:
                pair = Pair(
                    nic, Seen(number, mine.time_ns, mine.data), Seen(number, mine.time_ns, expected)
                )
                raise AssertionError("\n".join(describe(pair)))
        if len(got) != len(wanted):
            raise AssertionError(
                f"{nic} received {len(got)} packets, expected "
                f"{len(wanted)}{self._why(got, wanted, nic)}"
            )
        if instants is not None:
            if len(instants) != len(got):
                raise AssertionError(f"{len(instants)} instants for {len(got)} packets")
            for number, (mine, instant) in enumerate(zip(got, instants, strict=True), 1):
                late_ns = mine.time_ns - instant
                if abs(late_ns) > nanoseconds(tolerance):
                    came, due, late = (
                        in_unit_of(each, instant) for each in (mine.time_ns, instant, abs(late_ns))
                    )
                    side = "late" if late_ns > 0 else "early"
                    raise AssertionError(
                        f"{nic}, packet {number}: came at {came}, expected at {due} ({late} {side})"
                    )

    def _why(self, got: list[Received], wanted: list[bytes], nic: str) -> str:
        lines = [f"\ndropped: {key}: {count}" for key, count in self.drops().items()]
        lines += [
            f"\ndropped: {each['name']}: {each['queue_drops']} frames that found its queues full"
            for each in self._stats()["nics"]
            if each["queue_drops"]
        ]
        if len(got) > len(wanted):
            extra = got[len(wanted)]
            lines.append(
                "\n"
                + "\n".join(
                    describe(Pair(nic, Seen(len(wanted) + 1, extra.time_ns, extra.data), None))
                )
            )
        return "".join(lines)

    # -- promises ----------------------------------------------------------------------------------

    def measured(self, place: str) -> Measured:
        """The packets of a place, one direction such as `web -> db`, `web -> any` or `lan--dmz ->
        dmz`, and which of them arrived, when.

        Those count that `send` and `send_capture` sent since the last `shape`, `apply`, and `take`
        or `assert_received` of their receiver, to the MAC address of a NIC. They are told by their
        bytes. Raises ConfigError.
        """
        return self._journal.measured(place, self._received)

    def assert_rate(
        self,
        place: str,
        rate: str,
        *,
        within: str | int | None = None,
        window: str | int | None = None,
        after: str | int = 0,
        overhead: str | dict[str, Any] = "none",
    ) -> None:
        """Fails unless the packets of a place (see `measured`) arrived at `rate`, such as
        "10mbit", from the first to the last: the sender has to send that much.

        within: the share by which it may differ, such as "1%"; by default it is exact in virtual
        time, to the nanosecond in which a packet leaves, and 1 % live. window: it holds in each
        window of this time, too, to one packet. after: time at the begin that does not count.
        overhead: what the line adds to each packet, as in a policy. Raises AssertionError,
        ConfigError.
        """
        __tracebackhide__ = True
        found = self.measured(place)
        check_rate(
            found, rate, within=within, window=window, after=after, overhead=overhead,
            live=self.live, hints=self._hints(found.place),
        )  # fmt: skip

    def assert_delay(
        self,
        place: str,
        *,
        mean: str | int | None = None,
        p50: str | int | None = None,
        p99: str | int | None = None,
        most: str | int | None = None,
        within: str | int | None = None,
    ) -> None:
        """Fails unless the packets of a place (see `measured`) had these delays, from sending to
        receiving, all that waited included.

        mean; p50, p99: the delay that half, and 99 % of the packets do not exceed; most: none is
        longer. within: by how much they may differ; by default 0 in virtual time, 2 ms live. Raises
        AssertionError, ConfigError.
        """
        __tracebackhide__ = True
        found = self.measured(place)
        check_delay(
            found, asked={"mean": mean, "p50": p50, "p99": p99, "most": most}, within=within,
            live=self.live, hints=self._hints(found.place),
        )  # fmt: skip

    def assert_loss(self, place: str, share: Any, *, confidence: float = 0.999999) -> None:
        """Fails unless as many packets of a place (see `measured`) did not arrive as the model
        allows: a share such as "1%", or a mapping as a policy's `loss`, such as {"share": "1%",
        "burst": 4}.

        confidence: a line that keeps its promise fails in at most the rest of all cases, half of
        them with too few losses. In virtual time the case is a function of the seed, so a test that
        passes always passes. A share of 0% or 100% is exact. Raises AssertionError, ConfigError.
        """
        __tracebackhide__ = True
        found = self.measured(place)
        check_loss(found, share, confidence=confidence, hints=self._hints(found.place))

    def _hints(self, place: Place) -> list[str]:
        """What the policy says of the packets of a place, and what was dropped anywhere so far."""
        hints = []
        if self._policy is not None:
            plan = plan_of(read_policy(self._policy), network_of(self.config))
            for line in lines_between(plan, place):
                settings = ", ".join(f"{name} {each}" for name, each in line.settings.items())
                hints.append(f"policy: {line.place}: {settings}")
        return hints + [f"dropped: {key}: {count}" for key, count in self.drops().items()]

    def write(self, capture: str | os.PathLike[str]) -> None:
        """Writes all frames received so far into a pcapng file, one interface per NIC."""
        names = list(self._received)
        lines = sorted(
            (each.time_ns, number, each.data)
            for number, name in enumerate(names)
            for each in self._received[name]
        )
        writer = CaptureWriter(capture, names)
        try:
            for time_ns, number, data in lines:
                writer.write(number, time_ns, data)
        finally:
            writer.close()

    @abstractmethod
    def close(self) -> None:
        """Closes the network. Raises AssertionError where packets are unaccounted for. May be
        called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

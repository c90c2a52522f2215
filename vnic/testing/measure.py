"""What became of the packets that a test sent: which arrived, when, and over which place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dataplane.errors import ConfigError
from dataplane.ports.memory import Frame
from shaping.policy.keys import ANY, parse_key
from shaping.policy.places import Place, places_of
from vnic.config.schema import Config
from vnic.config.shape import network_of
from vnic.testing.frames import Received
from vnic.testing.station import HEADER, finished

MAC_BYTES = 6


class Sample(NamedTuple):
    """A packet that was sent. received_ns: None if it has not arrived. Times since the start."""

    sent_ns: int
    received_ns: int | None
    data: bytes


@dataclass(frozen=True)
class Measured:
    """The packets of a place, in the order in which they were sent: each on the wire, a GSO frame
    in segments.

    packets      those that were sent
    duplicates   received frames that are further copies of one of them
    alike        packets with the bytes of others of which not all arrived, or more than were sent:
                 which of them arrived cannot be told
    unknown      received frames that the test did not send in these bytes: they were changed on
                 the way, or the container's own system sent them
    """

    place: Place
    packets: list[Sample]
    duplicates: int = 0
    alike: int = 0
    unknown: int = 0

    @property
    def arrived(self) -> list[Sample]:
        """The packets that arrived, in the order of their arrival."""
        found = [each for each in self.packets if each.received_ns is not None]
        return sorted(found, key=lambda each: each.received_ns or 0)

    @property
    def lost(self) -> list[int]:
        """Which packets did not arrive, by number from 0."""
        return [n for n, each in enumerate(self.packets) if each.received_ns is None]

    @property
    def delays_ns(self) -> list[int]:
        """The delays of the packets that arrived, in the order in which these were sent."""
        return [
            each.received_ns - each.sent_ns for each in self.packets if each.received_ns is not None
        ]


class _Sent(NamedTuple):
    sent_ns: int
    source: str
    frame: Frame


class Journal:
    """The packets that containers sent, by the NIC that has their destination MAC address. Others,
    which a switch floods, are not noted."""

    def __init__(self, config: Config) -> None:
        self._nics: dict[bytes, str] = {}
        self._sent: dict[str, list[_Sent]] = {}
        self._before: dict[str, int] = {}  # of the sent packets, those that are not measured
        self.changed(config, 0)

    def changed(self, config: Config, now_ns: int) -> None:
        """The network or its policy is another one: packets sent from now on are measured."""
        self._config, self._since_ns = config, now_ns
        self._nics = {nic.mac.packed: name for name, nic in config.nics.items() if nic.mac}
        self._sent = {name: self._sent.get(name, []) for name in config.nics}
        self._before = {name: len(sent) for name, sent in self._sent.items()}

    def note(self, sent_ns: int, source: str, frame: Frame) -> None:
        """The container of `source` sends a frame."""
        target = self._nics.get(bytes(frame.data[:MAC_BYTES]))
        if target is not None:
            self._sent[target].append(_Sent(sent_ns, source, frame))

    def forget(self, nic: str) -> None:
        """What `nic` received was taken: packets that were sent to it are no longer measured."""
        self._sent[nic], self._before[nic] = [], 0

    def measured(self, place: str, received: Mapping[str, Iterable[Received]]) -> Measured:
        """What became of the packets of a place. received: frames by NIC. Raises ConfigError."""
        found = place_of(place, self._config)
        sources, targets = sides_of(found, self._config)
        packets: list[Sample] = []
        duplicates = alike = unknown = 0
        for target in targets:
            fates = _Fates(self._sent[target], received[target])
            unknown += sum(time_ns >= self._since_ns for time_ns in fates.unknown)
            chosen = [
                (fate, sent)
                for number, sent, fate in fates.of_sent
                if number >= self._before[target] and sent.source in sources
            ]
            packets += [Sample(sent.sent_ns, each.at_ns, each.data) for each, sent in chosen]
            copies = {each.data for each, _ in chosen}
            duplicates += sum(fates.duplicates.get(data, 0) for data in copies)
            alike += sum(fates.alike.get(data, 0) for data in copies)
        packets.sort(key=lambda each: each.sent_ns)
        return Measured(found, packets, duplicates, alike, unknown)


class _Fate:
    """A packet on the wire, and when it arrived; None: it did not."""

    __slots__ = ("at_ns", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at_ns: int | None = None


class _Fates:
    """Frames that were sent to a NIC and those that it received, told by their bytes; of several
    with the same bytes, the first that was sent is the first that arrived."""

    def __init__(self, sent: Iterable[_Sent], received: Iterable[Received]) -> None:
        self.of_sent = [
            (number, each, _Fate(data))
            for number, each in enumerate(sent)
            for data in on_the_wire(each.frame)
        ]
        waiting: dict[bytes, deque[_Fate]] = {}
        for _, _, fate in self.of_sent:
            waiting.setdefault(fate.data, deque()).append(fate)
        self.unknown: list[int] = []  # times of arrival of frames that were not sent
        self.duplicates: dict[bytes, int] = {}
        several = {data: len(fates) for data, fates in waiting.items() if len(fates) > 1}
        for each in received:
            fates = waiting.get(each.data)
            if fates is None:
                self.unknown.append(each.time_ns)
            elif fates:
                fates.popleft().at_ns = each.time_ns
            else:
                self.duplicates[each.data] = self.duplicates.get(each.data, 0) + 1
        self.alike = {
            data: count
            for data, count in several.items()
            if waiting[data] or data in self.duplicates
        }


def on_the_wire(frame: Frame) -> list[bytes]:
    """The frames that a wire carries for a frame of a container: the segments of a GSO frame, with
    complete checksums."""
    if not frame.gso_type and not frame.vnet_flags:
        return [bytes(frame.data)]
    header = HEADER.pack(
        frame.vnet_flags,
        frame.gso_type,
        frame.header_length,
        frame.gso_size,
        frame.csum_start,
        frame.csum_offset,
    )
    return finished(header, bytes(frame.data), b"")


def place_of(text: str, config: Config) -> Place:
    """The place of a key such as `web -> db`, `web -> any` or `lan--dmz -> dmz`. Raises
    ConfigError."""
    try:
        key = parse_key(text)
        places = places_of(key, network_of(config))
    except ConfigError as error:
        raise ConfigError(f"place {text!r}: {error}") from None
    if key.part:
        raise ConfigError(
            f"place {text!r}: is a part, which is not measured by itself: expected all"
        )
    if len(places) > 1:
        ways = " or ".join(str(place) for place, _ in places)
        raise ConfigError(f"place {text!r}: has two directions: expected {ways}")
    return places[0][0]


def sides_of(place: Place, config: Config) -> tuple[set[str], set[str]]:
    """The NICs whose packets pass a place, and those that receive them. Raises ConfigError."""
    if not place.link:
        return tuple(  # type: ignore[return-value]
            set(config.nics) if name == ANY else {name} for name in (place.source, place.target)
        )
    neighbours: dict[str, set[str]] = {}
    for link in config.links:
        if link.name != place.link:
            first, second = link.ends
            neighbours.setdefault(first, set()).add(second)
            neighbours.setdefault(second, set()).add(first)
    sides: list[set[str]] = []
    for end in (place.source, place.target):
        reached, rest = {end}, [end]
        while rest:
            for switch in neighbours.get(rest.pop(), set()) - reached:
                reached.add(switch)
                rest.append(switch)
        sides.append({n for n, nic in config.nics.items() if config.switch_of(nic.on) in reached})
    if sides[0] & sides[1]:
        raise ConfigError(f"place '{place}': other links lead around it: expected a pair of NICs")
    return sides[0], sides[1]

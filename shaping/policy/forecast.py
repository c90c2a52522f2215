"""Foretells what one TCP connection reaches on the ways that a policy shapes, and how long round
trips take: as bounds.

A way leads over lines and through classes, one after the other. The bounds hold for a long transfer
over IPv4 between hosts that are fast enough, while nothing else is sent over its lines; in a class,
whatever is sent in other ones. Of a scenario, they hold until its first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dataplane.errors import ConfigError
from dataplane.units import format_time
from shaping.class_settings import ClassSetting, TreeSetting
from shaping.policy.classes import ClassEntry, Shared, tree_setting
from shaping.policy.compile import EGRESS, FRAME_BYTES, class_chain, elements_of
from shaping.policy.figures import (
    bdp_packets,
    line_bytes,
    loss_events,
    lost_share,
    packet_bytes,
    percent_text,
    queue_ns,
    queue_packets,
    rate_text,
    time_text,
)
from shaping.policy.findings import Finding
from shaping.policy.keys import ANY
from shaping.policy.load import Policy
from shaping.policy.network import Network
from shaping.policy.places import Line, Place, Plan
from shaping.policy.schema import DelayConfig
from shaping.policy.tcp_bounds import (
    ACK_BYTES,
    BETA,
    HOSTS_NS,
    INDEPENDENT,
    RATE_REACHED,
    RENO,
    SEGMENT_BYTES,
    filled,
    least_by_loss,
    least_by_windows,
    most_by_loss,
    queue_needed,
)

# How far delays differ from the mean, in jitters: shorter and longer. A normal one does so once in
# a thousand million packets, a longer one of Pareto's once in 7000.
REACH = {"uniform": (1, 1), "normal": (6, 6), "pareto": (0.58, 20)}
REORDER_AS_LOSS = 3  # duplicate ACKs that TCP takes for a loss
GSO_NS = 10**6  # a GSO frame is cut to this time
TRACE_REACHED = 0.5  # of a rate that varies; less the longest outage, after which TCP waits as long
CLASSES_SAID = 20  # of a place; `vnic shape check --json` has all


class Forecast(NamedTuple):
    """place: a line such as "web -> db", or a class such as "web.egress/gold". goodput_bps: bounds
    on one connection's payload in bit/s; None: nothing bounds it. rtt_ns: bounds on the mean round
    trip; None: there is none."""

    place: str
    goodput_bps: tuple[int, int] | None
    rtt_ns: tuple[int, int | None]


@dataclass(frozen=True)
class Stage:
    """A queue with a rate.

    most_bps      of payload; least_bps: when all others send all they can
    acked_bps     payload of the other direction whose acknowledgements fit
    packets       full ones that the queue takes; aqm: whether CoDel drops some earlier
    wait_ns       the longest wait; of CoDel without the round trip, in which the sender reacts;
                  None: it has no bound
    send_ns       the time of a packet, or of a part of a GSO frame
    """

    most_bps: float
    least_bps: float
    acked_bps: float
    packets: float
    aqm: bool
    wait_ns: float | None
    send_ns: float


@dataclass(frozen=True)
class Way:
    """What lines and classes do to packets in one direction.

    shortest_ns, mean_ns, longest_ns  one way, without queues
    lost, events  shares of packets: lost; beginnings of bursts of losses
    burst         packets lost in a row on average, at most
    copies        of each packet
    mixed         whether packets overtake so many others that TCP takes it for a loss
    """

    stages: tuple[Stage, ...]
    shortest_ns: float
    mean_ns: int
    longest_ns: float
    lost: float
    events: float
    burst: float
    copies: float
    mixed: bool

    @property
    def most_bps(self) -> float:
        """Payload at the slowest rate; infinite without one."""
        return min((each.most_bps for each in self.stages), default=math.inf)


class Route(NamedTuple):
    """Both ways between two places."""

    name: str
    where: str
    first: Place
    there: Way
    back: Way

    @property
    def shortest_ns(self) -> float:
        return self.there.shortest_ns + self.back.shortest_ns

    @property
    def longest_ns(self) -> float:
        """Without queues."""
        return self.there.longest_ns + self.back.longest_ns

    @property
    def turned(self) -> Route:
        """The other direction's."""
        return self._replace(first=self.first.opposite, there=self.back, back=self.there)

    @property
    def rtt_ns(self) -> tuple[int, int | None]:
        stages = (*self.there.stages, *self.back.stages)
        most = self.longest_ns + HOSTS_NS
        for each in stages:
            if each.wait_ns is None:
                return int(self.shortest_ns), None
            # The acknowledgement of two packets waits for the second one.
            most += each.wait_ns + 2 * each.send_ns + (self.longest_ns if each.aqm else 0)
        return int(self.shortest_ns), math.ceil(most)

    @property
    def goodput_bps(self) -> tuple[int, int] | None:
        """In the direction `there`."""
        way = self.there
        by_loss = most_by_loss(self.shortest_ns, way.events)
        most = min(way.most_bps, by_loss)
        if math.isinf(most) or way.lost > 1 - 1e-12:
            return None
        return int(min(self._least_bps(), most)), math.ceil(most)

    def _least_bps(self) -> float:
        way, back = self.there, self.back
        if way.mixed or back.lost > 1 - 1e-12:
            return 0.0
        least = min(
            (each.least_bps * self._filled(each) * RATE_REACHED for each in way.stages),
            default=math.inf,
        )
        least = min(
            least,
            RATE_REACHED * least_by_windows(self.longest_ns),
            *(RATE_REACHED * each.acked_bps for each in back.stages),
        )
        # A lost acknowledgement is made up for by the next one; two in a row count as a loss.
        events = 1 - (1 - way.events) * (1 - back.lost * (1 - 1 / back.burst))
        burst = max(way.burst, back.burst)
        least = min(least, least_by_loss(self._loaded_ns(events), events, burst))
        return least / way.copies

    def _filled(self, stage: Stage) -> float:
        if stage.aqm:
            return BETA  # it drops one packet at a time
        return filled(stage.packets, self.underway_packets)

    @property
    def underway_packets(self) -> float:
        """Full packets that are under way at the payload's rate."""
        bits = self.there.most_bps * FRAME_BYTES / SEGMENT_BYTES
        return 0.0 if math.isinf(bits) else bdp_packets(math.ceil(bits), math.ceil(self.longest_ns))

    def _loaded_ns(self, events: float) -> float:
        """The longest mean round trip of a connection whose window losses limit: its window waits
        for its own transmission, as long as the queue has place."""
        window = INDEPENDENT * RENO / math.sqrt(events) if events else math.inf
        found = self.longest_ns + HOSTS_NS
        for each in self.there.stages:
            waits = window * each.send_ns
            found += waits if each.wait_ns is None else min(waits, each.wait_ns + each.send_ns)
        return found + sum(2 * each.send_ns for each in self.back.stages)

    def forecast(self, place: str) -> Forecast:
        return Forecast(place, self.goodput_bps, self.rtt_ns)


# -- what lines and classes do ---------------------------------------------------------------------


class ClassPlace(NamedTuple):
    """The classes of a place. least_bps: of each class, see `least_rates`."""

    entry: ClassEntry
    setting: TreeSetting
    least_bps: list[float]

    def stage(self, number: int, *, alone: bool) -> Stage | None:
        """alone: the others send nothing. None: it has no rate."""
        each, overhead = self.setting.classes[number], self.entry.config.overhead
        queue, rate = each.queue, each.effective_bps
        if queue is None or not rate:
            return None
        least = rate if alone else self.least_bps[number]
        full = line_bytes(FRAME_BYTES, overhead)
        size, packets = queue.limits(rate)
        send_ns = max(full * 8e9 / least, GSO_NS) if least else 0.0
        wait_ns: float | None = None
        if queue.aqm:
            wait_ns = float(sum(queue.codel_ns(rate)))
        elif least:
            wait_ns = min(size, packets * full) * 8e9 / least
        return Stage(
            rate * SEGMENT_BYTES / full,
            least * SEGMENT_BYTES / full,
            least * 2 * SEGMENT_BYTES / line_bytes(ACK_BYTES, overhead),
            min(packets, size / full),
            queue.aqm,
            wait_ns,
            send_ns,
        )


def least_rates(classes: list[ClassSetting]) -> list[float]:
    """The rate in bit/s of each class when all others send all they can: its guarantee, and its
    part by priority and weight of what its siblings' guarantees leave; 0 without a rate above."""
    found = [0.0] * len(classes)
    found[0] = float(classes[0].effective_bps)
    children: dict[int, list[int]] = {}
    for number, each in enumerate(classes[1:], 1):
        children.setdefault(each.parent, []).append(number)
    for parent in range(len(classes)):  # parents are before their classes
        inner = children.get(parent, [])
        left = max(found[parent] - sum(classes[number].guarantee_bps for number in inner), 0.0)
        for priority in sorted({classes[number].priority for number in inner}):
            equal = [number for number in inner if classes[number].priority == priority]
            weights = sum(classes[number].weight for number in equal)
            taken = 0.0
            for number in equal:
                each = classes[number]
                room = max((each.effective_bps or math.inf) - each.guarantee_bps, 0.0)
                found[number] = each.guarantee_bps + min(left * each.weight / weights, room)
                taken += room
            left = max(left - taken, 0.0)
    return found


def _stage(line: Line, plan: Plan) -> Stage:
    """Of a line with a rate."""
    share = SEGMENT_BYTES / packet_bytes(line)
    most = least = float(line.rate)
    if line.trace is not None:
        outage = line.trace.longest_outage_ns / line.trace.duration_ns
        least *= max(TRACE_REACHED - outage, 0.0)
    elif not line.place.link and line.place.target == ANY:
        most = max([most, *_alone(line.place.source, plan)])
    return Stage(
        most * share,
        least * share,
        least * 2 * SEGMENT_BYTES / packet_bytes(line, ACK_BYTES),
        queue_packets(line),
        False,
        queue_ns(line),
        max(packet_bytes(line) * 8e9 / line.rate, GSO_NS),
    )


def _alone(nic: str, plan: Plan) -> Iterator[float]:
    """What a NIC gets of uplinks while others send nothing."""
    for uplink in plan.uplinks.values():
        if nic in uplink.leaves:
            group = uplink.functions[uplink.groups.get(nic, nic)]
            bounds = (uplink.capacity_bps, uplink.leaves[nic].limit, group.limit)
            yield min(map(float, bounds))


def _delays(delay: DelayConfig) -> tuple[float, float]:
    """The shortest and the longest."""
    jitter = delay.jitter or 0
    shorter, longer = REACH[delay.shape]
    return max(delay.mean - shorter * jitter, 0), delay.mean + longer * jitter


def way_of(lines: Iterable[Line], stages: Iterable[Stage], plan: Plan) -> Way:
    """What the lines do together to a packet that passes them one after the other, and classes with
    their stages."""
    found = list(stages)
    shortest = longest = 0.0
    mean, arrives, whole, burst, copies, mixed = 0, 1.0, 1.0, 1.0, 1.0, False
    for line in lines:
        if line.rate:
            found.append(_stage(line, plan))
        if (delay := line.delay) is not None:
            least, most = _delays(delay)
            shortest, mean, longest = shortest + least, mean + delay.mean, longest + most
            mixed |= delay.order == "any" and bool(delay.jitter)
        arrives *= 1 - lost_share(line)
        whole *= 1 - loss_events(line)
        if line.loss is not None and line.loss.chain.share:
            burst = max(burst, line.loss.chain.mean_burst)
        copies *= 1 + float(line.value("duplicate") or 0)
        mixed |= overtakes(line)
    return Way(tuple(found), shortest, mean, longest, 1 - arrives, 1 - whole, burst, copies, mixed)


def overtakes(line: Line) -> bool:
    """Whether so many packets overtake others that TCP takes it for a loss."""
    reorder = line.value("reorder")
    return reorder is not None and bool(reorder.share) and reorder.by >= REORDER_AS_LOSS


# -- routes ----------------------------------------------------------------------------------------


def places_between(place: Place) -> list[Place]:
    """The places that a packet passes on its way, in order."""
    found = [place, place.whole] if place.part else [place]
    if place.is_pair:
        return [Place(place.source, ANY), *found, Place(ANY, place.target)]
    return found


def lines_between(plan: Plan, place: Place) -> list[Line]:
    """The lines that a packet passes on its way, in order."""
    return [plan.lines[each] for each in places_between(place) if each in plan.lines]


class Routes:
    """The routes of a plan, with their classes."""

    def __init__(self, plan: Plan, policy: Policy, network: Network) -> None:
        self.plan = plan
        self.classes = dict(_class_places(policy, network, plan.shared))

    def __iter__(self) -> Iterator[Route]:
        """Both directions of each pair, NIC and link that has a line; first the direction that the
        file names first."""
        seen: set[Place] = set()
        for place in self.plan.lines:
            if place in seen:
                continue
            seen.update((place, place.opposite))
            lines = [*lines_between(self.plan, place), *lines_between(self.plan, place.opposite)]
            if any(elements_of(line) for line in lines):
                where = self.plan.lines[place].where
                yield Route(_name(place), where, place, self._way(place), self._way(place.opposite))

    def of_classes(self) -> Iterator[tuple[str, Route]]:
        """The way through each class that has packets of its own: its name, such as
        "web.egress/gold"."""
        for place, classes in self.classes.items():
            lines, back = lines_between(self.plan, place), self._way(place.opposite)
            for number, each in enumerate(classes.setting.classes):
                stage = classes.stage(number, alone=False)
                if stage is not None:
                    name = f"{classes.entry.key}/{each.path}"
                    way = way_of(lines, [stage], self.plan)
                    yield name, Route(name, classes.entry.where, place, way, back)

    def _way(self, place: Place) -> Way:
        """A packet that no class matches, while nothing else is sent."""
        inside = [self.classes[each] for each in places_between(place) if each in self.classes]
        stages = [each.stage(each.setting.default, alone=True) for each in inside]
        return way_of(
            lines_between(self.plan, place),
            [each for each in stages if each is not None],
            self.plan,
        )


def _class_places(
    policy: Policy, network: Network, shared: Mapping[str, Shared]
) -> Iterator[tuple[Place, ClassPlace]]:
    for entry in policy.classes:
        try:
            chain = class_chain(entry, network)
            setting = tree_setting(entry)
        except ConfigError:  # a finding of its own
            continue
        if network.lacks(chain.owner):
            continue
        if chain.of_link:
            near, far = network.links[chain.owner]
            source = near if chain.direction == far else far
            place = Place(source, chain.direction, chain.owner)
        elif chain.direction == EGRESS:
            place = Place(chain.owner, ANY)
        else:
            place = Place(ANY, chain.owner)
        if entry.key in shared:  # which it has less of while others of the share send
            least = least_rates(tree_setting(entry, shared[entry.key]).classes)
        else:
            least = least_rates(setting.classes)
        yield place, ClassPlace(entry, setting, least)


def _name(place: Place) -> str:
    if place.link:
        name = place.link
    elif place.is_pair:
        name = f"{place.source} <-> {place.target}"
    else:
        name = place.source if place.target == ANY else place.target
    return f"{name}/{place.part}" if place.part else name


# -- what is said ----------------------------------------------------------------------------------


def forecasts(plan: Plan, policy: Policy, network: Network) -> list[Forecast]:
    """Of each line's route, in both directions, and of each class."""
    routes = Routes(plan, policy, network)
    found: list[Forecast] = []
    for route in routes:
        found += [
            route.forecast(str(route.first)),
            route.turned.forecast(str(route.first.opposite)),
        ]
    return found + [route.forecast(name) for name, route in routes.of_classes()]


def route_notes(plan: Plan, policy: Policy, network: Network) -> Iterator[Finding]:
    """The same in words."""
    routes = Routes(plan, policy, network)
    for route in routes:
        yield from _losses(plan, route)
        if route.longest_ns or route.there.stages or route.back.stages:
            yield Finding("note", route.where, f"{route.name}: {_round_trip(route)}")
        for each in (route, route.turned):
            if (text := _throughput(each)) is not None:
                yield Finding("note", each.where, f"{each.first}: {text}")
    said: dict[str, int] = {}
    for name, route in routes.of_classes():
        number = said[route.where] = said.get(route.where, 0) + 1
        if number <= CLASSES_SAID and (text := _throughput(route)) is not None:
            yield Finding("note", route.where, f"{name}: {text}; {_round_trip(route)}")
        elif number == CLASSES_SAID + 1:
            text = f"{name.partition('/')[0]}: --json foretells the other classes, too"
            yield Finding("note", route.where, text)


def _losses(plan: Plan, route: Route) -> Iterator[Finding]:
    there, back = route.there, route.back
    places = [*places_between(route.first), *places_between(route.first.opposite)]
    lossy = [each for each in places if each in plan.lines and lost_share(plan.lines[each])]
    if (there.lost and back.lost) or len(lossy) > 1:
        both = 1 - (1 - there.lost) * (1 - back.lost)
        text = (
            f"{route.name}: {percent_text(both)} of round trips lose a packet "
            f"({percent_text(there.lost)} there, {percent_text(back.lost)} back)"
        )
        yield Finding("note", route.where, text)


def _round_trip(route: Route) -> str:
    least, most = route.rtt_ns
    if most is None:
        bounds = f"of {time_text(least)} or more"
    else:
        bounds = f"{time_text(least)} to {time_text(most)}" if least else f"up to {time_text(most)}"
    there, back = (format_time(each.mean_ns) for each in (route.there, route.back))
    rest = "queues and hosts" if route.there.stages or route.back.stages else "hosts"
    if not route.longest_ns:
        return f"round trip {bounds} ({rest})"
    return f"round trip {bounds} ({there} there, {back} back; {rest} add the rest)"


def _throughput(route: Route) -> str | None:
    if (goodput := route.goodput_bps) is None:
        return None
    (least, most), rate = goodput, route.there.most_bps
    reached = f"{rate_text(least)} to {rate_text(most)}" if least else f"up to {rate_text(most)}"
    text = f"one TCP connection reaches {reached} of payload"
    if most < rate:
        limit = "" if math.isinf(rate) else f", not the rate's {rate_text(rate)}"
        return f"{text}: loss and round trip limit it{limit}"
    text += ", by the rate"
    slowest = min(route.there.stages, key=lambda each: each.most_bps)
    needed = math.ceil(queue_needed(route.underway_packets))
    if not slowest.aqm and slowest.packets < needed:
        text += f"; a queue of {needed} packets would keep the line busy after losses"
    return text

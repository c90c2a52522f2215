"""The lines that a policy makes of its entries: one for each place and direction.

Of two entries for the same place, the later one counts for each setting that it has. Lines of
different places do not replace each other: a packet from web to db passes `web -> any`, `web -> db`
and `any -> db`, in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from dataplane.config.convert import did_you_mean
from dataplane.elements.classifier_rules import MAX_RULES
from dataplane.errors import ConfigError
from shaping.policy.findings import Finding
from shaping.policy.keys import ANY, LinkKey
from shaping.policy.load import Policy
from shaping.policy.network import Network
from shaping.policy.presets import PRESETS, halves
from shaping.policy.scalars import LineRate
from shaping.policy.schema import DelayConfig, LossConfig, TraceConfig
from shaping.policy.share_schema import ShareConfig
from shaping.policy.steps import Entry
from shaping.policy.traces import trace_of, trace_text
from shaping.shares.uplink import Uplink, all_busy, make_uplink

if TYPE_CHECKING:
    from shaping.trace import Trace

ERRORS_MOST = 20  # unknown names that are reported: a suggestion for each takes time
SETTINGS = (
    "rate",
    "trace",
    "queue",
    "overhead",
    "delay",
    "loss",
    "duplicate",
    "corrupt",
    "reorder",
)


class Place(NamedTuple):
    """A direction: from NIC to NIC, either of them "any"; or of a link, between its two ends."""

    source: str
    target: str
    link: str = ""

    @property
    def is_pair(self) -> bool:
        return not self.link and ANY not in (self.source, self.target)

    @property
    def opposite(self) -> Place:
        return Place(self.target, self.source, self.link)

    def __str__(self) -> str:
        return f"{self.link or self.source} -> {self.target}"


class Setting(NamedTuple):
    """value: as in the schema; where: "FILE:LINE"; origin: what it follows from, "" for itself."""

    value: Any
    where: str
    origin: str = ""

    def __str__(self) -> str:
        return setting_text(self.value) + (f" ({self.origin})" if self.origin else "")


@dataclass
class Line:
    """What happens in one direction of one place. where: the entry that is named first. trace: the
    content of its setting. variants: of a setting that a scenario changes, the values that it has,
    the one at the beginning first."""

    place: Place
    where: str
    settings: dict[str, Setting] = field(default_factory=dict)
    trace: Trace | None = None
    variants: dict[str, list[Any]] = field(default_factory=dict)

    def value(self, setting: str) -> Any:
        """None: not set."""
        return self.settings[setting].value if setting in self.settings else None

    def with_settings(self, settings: dict[str, Setting]) -> Line:
        """The line with these settings in place of its own."""
        return replace(self, settings={**self.settings, **settings})

    @property
    def rate(self) -> int:
        """bit/s, of a trace on average; 0: no limit."""
        return self.trace.mean_bps if self.trace is not None else int(self.value("rate") or 0)

    @property
    def delay(self) -> DelayConfig | None:
        found: DelayConfig | None = self.value("delay")
        return found

    @property
    def jitters(self) -> bool:
        """Whether its delay ever varies."""
        delays: list[DelayConfig] = self.variants.get("delay", [*filter(None, [self.delay])])
        return any(delay.jitter is not None for delay in delays)

    @property
    def loss(self) -> LossConfig | None:
        found: LossConfig | None = self.value("loss")
        return found


class Plan(NamedTuple):
    """lines: by place, in the order of the file; findings: errors, and what is overridden; uplinks:
    capacities that are shared, by name."""

    lines: dict[Place, Line]
    findings: list[Finding]
    uplinks: dict[str, Uplink]


def setting_text(value: Any) -> str:
    """A setting as in a file, in its shortest form."""
    if isinstance(value, TraceConfig):
        return trace_text(value)
    if not isinstance(value, msgspec.Struct):
        return f"{value:g}" if isinstance(value, float) else str(value)
    given = {}
    for each in msgspec.structs.fields(type(value)):
        factory = each.default_factory
        default = factory() if callable(factory) else each.default
        if (set_to := getattr(value, each.name)) is not None and set_to != default:
            given[each.name] = set_to
    if len(given) == 1 and next(iter(given)) in ("share", "mean", "keyword", "time", "size"):
        return setting_text(next(iter(given.values())))
    return "{" + ", ".join(f"{name}: {setting_text(each)}" for name, each in given.items()) + "}"


def places_of(key: LinkKey, network: Network) -> list[tuple[Place, bool]]:
    """The places of a key, each with whether it leads away from the user of the line: the NIC of
    the key, or the name that stands first; none where one of its NICs is absent. Raises ConfigError
    for unknown names."""
    first, _, second = key
    # the end of a link is a switch, which is no name that could be absent
    is_end = second in network.links.get(first, ())
    if network.lacks(first) or (network.lacks(second) and not is_end):
        return []
    if first in network.links and first not in network.nics:
        near, far = network.links[first]
        if not second:
            return [(Place(near, far, first), True), (Place(far, near, first), False)]
        if key.both_ways or second not in (near, far):
            raise ConfigError(
                f"{first} is a link: expected {first}, {first} -> {far} or {first} -> {near}"
            )
        source = near if second == far else far
        return [(Place(source, second, first), second == far)]
    for name in (first, second):
        if name and name != ANY and name not in network.nics:
            raise ConfigError(_unknown(name, key, network))
    if not second:
        return [(Place(first, ANY), True), (Place(ANY, first), False)]
    found = [(Place(first, second), first != ANY)]
    return found + [(Place(second, first), False)] if key.both_ways else found


def _unknown(name: str, key: LinkKey, network: Network) -> str:
    """What to write in place of a name that is not a NIC's."""
    if name in network.links:
        return f"{name} is a link, which stands first or alone: expected {name}"
    joining = {ends: link for link, ends in network.links.items()}
    joining.update({ends[::-1]: link for ends, link in joining.items()})
    if (link := joining.get((key.first, key.second))) is not None:
        return f"is a link: write {link if key.both_ways else f'{link} -> {key.second}'}"
    for link, ends in network.links.items():
        if name in ends:
            return f"{name} is a switch: expected a NIC, or a link such as {link} -> {name}"
    known = [*network.nics, *network.links]
    if not known:
        return f"there is no NIC or link {name}: the network has none"
    return f"there is no NIC or link {name}; {did_you_mean(name, known)}"


def plan_of(policy: Policy, network: Network) -> Plan:
    """The policy's lines in this network."""
    plan = Plan({}, [], {})
    for entry in policy.entries:
        try:
            places = places_of(entry.key, network)
        except ConfigError as error:
            plan.findings.append(Finding("error", entry.where, f"{entry.key}: {error}"))
            if sum(finding.kind == "error" for finding in plan.findings) == ERRORS_MOST:
                break
            continue
        if not places:
            text = f"{entry.key}: is not attached; the line begins when it is"
            plan.findings.append(Finding("warning", entry.where, text))
        for place, upward in places:
            settings = settings_of(entry, place, upward, len(places) > 1)
            if settings:
                line = plan.lines.setdefault(place, Line(place, entry.where))
                plan.findings.extend(_overridden(line, settings))
                line.settings.update(settings)
    rated_later = _rated_later(policy, network)
    for name, share in policy.config.shares.items():
        plan.findings.extend(_share(plan, name, share, network, policy.share_lines.get(name, "")))
    for line in plan.lines.values():
        if (config := line.value("trace")) is not None:
            line.trace = trace_of(config, policy.traces)
        if line.place not in rated_later:
            plan.findings.extend(_without_rate(line))
    plan.findings.extend(_too_many(plan.lines))
    return plan


def settings_of(entry: Entry, place: Place, upward: bool, both: bool) -> dict[str, Setting]:
    """The settings of an entry for one of its places. both: the entry is for both ways."""
    return dict(_settings(entry, place, upward, both))


def _settings(
    entry: Entry, place: Place, upward: bool, both: bool
) -> Iterator[tuple[str, Setting]]:
    line = entry.settings
    if line.preset is not None:
        preset, where, origin = PRESETS[line.preset], entry.lines["preset"], f"preset {line.preset}"
        as_up = upward or (preset.one_way and not both)
        down, up = preset.delays
        rate, delay = (preset.up, up) if as_up else (preset.down, down)
        loss = preset.loss if as_up or not preset.one_way else None
        if rate and line.trace is None:
            yield "rate", Setting(rate, where, origin)
        if delay:
            yield "delay", Setting(DelayConfig(mean=delay), where, origin)
        if loss:
            yield "loss", Setting(LossConfig(share=loss), where, origin)
    if line.rtt is not None:
        half = halves(line.rtt)[0 if upward else 1]
        yield "delay", Setting(DelayConfig(mean=half), entry.lines["rtt"], f"rtt {line.rtt}")
    for name in SETTINGS:
        if (value := getattr(line, name)) is not None:
            yield name, Setting(value, entry.lines[name])


def _share(
    plan: Plan, name: str, share: ShareConfig, network: Network, where: str
) -> Iterator[Finding]:
    """Adds a share. Its NICs send over their lines `NIC -> any`, whose rates change with what the
    others send; a line begins with its rate for when all send as much as they may. A rate that the
    line has by itself bounds it."""
    groups = [group for group in share.groups if not network.lacks(group)]
    strange = [group for group in groups if group not in network.nics]
    for group in strange[:ERRORS_MOST]:
        hint = did_you_mean(group, list(network.nics)) if network.nics else "the network has none"
        if "/" in group or "." in group:
            hint = "expected the name of a NIC, as only NICs can have shares"
        yield Finding("error", where, f"shares.{name}: there is no NIC {group}; {hint}")
    if strange:
        return
    if not groups:
        return
    lines = {group: plan.lines.get(Place(group, ANY)) for group in groups}
    uplink = plan.uplinks[name] = make_uplink(
        share.capacity,
        {group: share.pieces(group) for group in groups},
        share.levels,
        {group: line.rate for group, line in lines.items() if line is not None and line.rate},
    )
    for group, rate in uplink.rates(all_busy(groups)).items():
        line = plan.lines.setdefault(Place(group, ANY), Line(Place(group, ANY), where))
        # in four digits, downwards: the allocator will not leave it so anyway
        rate -= rate % 10 ** max(len(str(rate)) - 4, 0)
        line.settings["rate"] = Setting(LineRate(rate), where, f"share of {name}")


def _overridden(line: Line, settings: dict[str, Setting]) -> Iterator[Finding]:
    for name, other in (("rate", "trace"), ("trace", "rate")):  # either is the line's rate
        if name in settings and (old := line.settings.pop(other, None)) is not None:
            new, at = settings[name], f" of {old.where}" if old.where else ""
            text = f"{line.place}: {name} {new} overrides {other} {old}{at}"
            yield Finding("note", new.where, text)
    for name, new in settings.items():
        old = line.settings.get(name)
        if old is not None and old.value != new.value:
            at = f" of {old.where}" if old.where else ""
            text = f"{line.place}: {name} {new} overrides {name} {old}{at}"
            yield Finding("note", new.where, text)


def _too_many(lines: dict[Place, Line]) -> Iterator[Finding]:
    """Senders to one NIC are told apart by the rules of one Classifier."""
    counts: dict[str, int] = {}
    for place, line in lines.items():
        if place.is_pair:
            counts[place.target] = counts.get(place.target, 0) + 1
            if counts[place.target] == MAX_RULES + 1:
                text = f"{place}: more than {MAX_RULES} lines lead to {place.target}: remove some"
                yield Finding("error", line.where, text)


def _rated_later(policy: Policy, network: Network) -> set[Place]:
    """The places that a step of the scenario gives a rate."""
    found: set[Place] = set()
    for entry in (entry for step in policy.steps for entry in step.entries):
        if entry.settings.rate or entry.settings.preset:
            with suppress(ConfigError):  # an error of the step
                found |= {place for place, _ in places_of(entry.key, network)}
    return found


def _without_rate(line: Line) -> Iterator[Finding]:
    """A queue and an overhead mean nothing without a rate, and a time none with a trace."""
    queue = line.settings.get("queue")
    if line.trace is not None and queue is not None and queue.value.time is not None:
        text = (
            f"{line.place}: queue {queue} is no bound where the rate varies: expected {{packets: "
            "1000} or a size such as 256kb"
        )
        yield Finding("error", queue.where, text)
    for name in ("queue", "overhead"):
        setting = line.settings.get(name)
        if setting is None or line.rate:
            continue
        if isinstance(line.value("rate"), LineRate):
            text = f"{line.place}: {name} has no effect, since rate is none"
            yield Finding("warning", setting.where, text)
        else:
            text = f"{line.place}: {name} without rate: add the line's rate, such as rate: 10mbit"
            yield Finding("error", setting.where, text)

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
from shaping.policy.classes import (
    ClassEntry,
    ClassName,
    class_at,
    class_name,
    conditions_of,
    place_key,
    tree_setting,
)
from shaping.policy.findings import Finding
from shaping.policy.keys import ANY, LinkKey
from shaping.policy.load import Policy
from shaping.policy.network import Network
from shaping.policy.presets import PRESETS, halves
from shaping.policy.scalars import LineRate
from shaping.policy.schema import DelayConfig, LossConfig, TraceConfig
from shaping.policy.share_schema import ShareConfig, exact_pieces
from shaping.policy.steps import Entry
from shaping.policy.traces import trace_of, trace_text
from shaping.shares.uplink import Uplink, all_busy, make_uplink

if TYPE_CHECKING:
    from shaping.trace import Trace

OF_SHARE = "share of"  # begins an origin
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
    """A direction: from NIC to NIC, either of them "any"; or of a link, between its two ends. part:
    of a part of its packets; "": of all."""

    source: str
    target: str
    link: str = ""
    part: str = ""

    @property
    def is_pair(self) -> bool:
        return not self.link and ANY not in (self.source, self.target)

    @property
    def opposite(self) -> Place:
        return Place(self.target, self.source, self.link, self.part)

    @property
    def whole(self) -> Place:
        """The place that it is a part of; of others, itself."""
        return self._replace(part="")

    def __str__(self) -> str:
        whole = f"{self.link or self.source} -> {self.target}"
        return f"{whole}/{self.part}" if self.part else whole


class Setting(NamedTuple):
    """value: as in the schema; where: "FILE:LINE"; origin: what it follows from, "" for itself."""

    value: Any
    where: str
    origin: str = ""

    @property
    def of_share(self) -> bool:
        return self.origin.startswith(OF_SHARE)

    def __str__(self) -> str:
        return setting_text(self.value) + (f" ({self.origin})" if self.origin else "")


@dataclass
class Line:
    """What happens in one direction of one place. where: the entry that is named first. matches:
    the conditions of a part, of which one holds. trace: the content of its setting. variants: of a
    setting that a scenario changes, the values that it has, the one at the beginning first."""

    place: Place
    where: str
    settings: dict[str, Setting] = field(default_factory=dict)
    matches: list[dict[str, Any]] = field(default_factory=list)
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

    def varies(self, setting: str) -> str:
        """Why a setting does not have the same value all the time; "": it has."""
        if setting in self.variants:
            return "the scenario changes it"
        if setting == "rate" and self.trace is not None:
            return "it is that of the trace"
        if setting == "rate" and "rate" in self.settings and self.settings["rate"].of_share:
            return "it changes with what the others of the share send"
        return ""

    @property
    def loss(self) -> LossConfig | None:
        found: LossConfig | None = self.value("loss")
        return found


class Plan(NamedTuple):
    """lines: by place, in the order of the file; findings: errors, and what is overridden; uplinks:
    capacities that are shared, by name; shared: the classes that are in shares, by the key of
    `classes`."""

    lines: dict[Place, Line]
    findings: list[Finding]
    uplinks: dict[str, Uplink]
    shared: dict[str, dict[str, tuple[str, LineRate]]] = {}

    def rate_in_share(self, leaf: str) -> LineRate:
        """What a NIC or a class of a share gets when all send."""
        if (name := class_name(leaf)) is None:
            rate: LineRate = self.lines[Place(leaf, ANY)].value("rate")
            return rate
        [found] = [each for key, each in self.shared.items() if place_key(key) == name.place]
        return found[name.path][1]


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
    found = _whole_places(key, network)
    return [(place._replace(part=key.part), upward) for place, upward in found]


def _whole_places(key: LinkKey, network: Network) -> list[tuple[Place, bool]]:
    first, second = key.first, key.second
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
    plan = Plan({}, [], {}, {})
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
                plan.findings.extend(
                    _matches(line, entry, network, mirrored=_mirrored(entry, upward))
                )
    rated_later = _rated_later(policy, network)
    for name, share in policy.config.shares.items():
        where = policy.share_lines.get(name, "")
        plan.findings.extend(_share(plan, name, share, policy.classes, network, where))
    for line in plan.lines.values():
        if (config := line.value("trace")) is not None:
            line.trace = trace_of(config, policy.traces)
        if line.place not in rated_later:
            plan.findings.extend(_without_rate(line))
    plan.findings.extend(_too_many(plan.lines))
    return plan


def _mirrored(entry: Entry, upward: bool) -> bool:
    """Whether a place of an entry for both ways is the way back: of a NIC alone, what it receives;
    else from the second name to the first."""
    return entry.key.both_ways and not upward


_MIRROR = {
    "source": "destination",
    "destination": "source",
    "source_port": "destination_port",
    "destination_port": "source_port",
}


def _matches(line: Line, entry: Entry, network: Network, *, mirrored: bool) -> Iterator[Finding]:
    """Gives a part's line its conditions. mirrored: with source and destination exchanged."""
    matches = [each for each in entry.settings.match or () if not network.lacks(each.sender or "")]
    try:
        found = [conditions_of(str(entry.key), each, network) for each in matches]
    except ConfigError as error:
        yield Finding("error", entry.where, str(error))
        return
    line.matches = [
        {_MIRROR.get(name, name) if mirrored else name: value for name, value in each.items()}
        for each in found
    ]


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
    plan: Plan,
    name: str,
    share: ShareConfig,
    classes: list[ClassEntry],
    network: Network,
    where: str,
) -> Iterator[Finding]:
    """Adds a share. Its NICs send over their lines `NIC -> any`, whose rates change with what the
    others send; a line begins with its rate for when all send as much as they may. A rate that the
    line has by itself bounds it. Of a class all that is said of the line holds for its ceiling."""
    named = {leaf: class_name(leaf) for leaf in share.leaves}
    present = [
        leaf
        for leaf, each in named.items()
        if not network.lacks(leaf if each is None else each.owner)
    ]
    strange = [nic for nic in present if named[nic] is None and nic not in network.nics]
    for nic in strange[:ERRORS_MOST]:
        hint = did_you_mean(nic, list(network.nics)) if network.nics else "the network has none"
        if "." in nic:
            hint = "a class has its path behind a /, such as web.egress/gold"
        yield Finding("error", where, f"shares.{name}: there is no NIC {nic}; {hint}")
    of_classes = {leaf: each for leaf in present if (each := named[leaf]) is not None}
    bounds, keys, wrong = _classes_of_share(of_classes, set(present), classes)
    yield from (Finding("error", where, f"shares.{name}: {text}") for text in wrong[:ERRORS_MOST])
    if strange or wrong or not present:
        return
    nics = [leaf for leaf in present if named[leaf] is None]
    lines = {nic: plan.lines.get(Place(nic, ANY)) for nic in nics}
    traced = [line for line in lines.values() if line is not None and "trace" in line.settings]
    for line in traced[:ERRORS_MOST]:
        text = f"{line.place}: has a trace, and share {name} sets its rate: remove one of them"
        yield Finding("error", line.settings["trace"].where, text)
    if traced:
        return
    uplink = plan.uplinks[name] = make_uplink(
        share.capacity,
        {group: exact_pieces(pieces) for group, pieces in share.groups.items()},
        share.levels,
        bounds | {nic: line.rate for nic, line in lines.items() if line is not None and line.rate},
        {
            group: {nic: exact_pieces(pieces) for nic, pieces in inner.items()}
            for group, inner in share.members.items()
        },
    ).only(present)
    for leaf, rate in uplink.rates(all_busy(present)).items():
        # in four digits, downwards: the allocator will not leave it so anyway
        rate -= rate % 10 ** max(len(str(rate)) - 4, 0)
        if leaf in of_classes:
            plan.shared.setdefault(keys[leaf], {})[of_classes[leaf].path] = name, LineRate(rate)
            continue
        line = plan.lines.setdefault(Place(leaf, ANY), Line(Place(leaf, ANY), where))
        line.settings["rate"] = Setting(LineRate(rate), where, f"{OF_SHARE} {name}")


def _classes_of_share(
    named: dict[str, ClassName], leaves: set[str], classes: list[ClassEntry]
) -> tuple[dict[str, int], dict[str, str], list[str]]:
    """Of the classes of a share the ceilings in bit/s, and the keys of `classes`; and the errors.
    leaves: of the whole share."""
    entries = {place_key(entry.key): entry for entry in classes} if named else {}
    trees = {
        each.place: {found.path: found for found in tree_setting(entries[each.place]).classes}
        for each in named.values()
        if each.place in entries
    }
    bounds, wrong = {}, []
    for leaf, each in named.items():
        config = class_at(entries[each.place], each.path) if each.place in entries else None
        if not each.path or config is None:
            wrong.append(f"there is no class {leaf}; classes have those that a share can name")
        elif trees[each.place][each.path].guarantee_bps:
            text = f"{leaf}: it, or a class in it, has a guarantee, and the share sets what it gets"
            wrong.append(f"{text}: remove it, or add a level of its own for it")
        elif each.place == (each.owner, "egress") and each.owner in leaves:
            wrong.append(f"{leaf}: {each.owner}, which sends its packets, is there, too")
        else:
            bounds[leaf] = trees[each.place][each.path].effective_bps
    return bounds, {leaf: entries[named[leaf].place].key for leaf in bounds}, wrong


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
    """Senders to one NIC are told apart by the rules of one Classifier, and so are the parts of one
    place."""
    senders: dict[str, set[str]] = {}
    rules: dict[Place, int] = {}
    for place, line in lines.items():
        if place.is_pair:
            known = senders.setdefault(place.target, set())
            if len(known) == MAX_RULES and place.source not in known:
                text = f"{place}: more than {MAX_RULES} lines lead to {place.target}: remove some"
                yield Finding("error", line.where, text)
                return
            known.add(place.source)
        before = rules.get(place.whole, 0)
        rules[place.whole] = before + len(line.matches)
        if before <= MAX_RULES < rules[place.whole]:
            text = f"{place.whole}: its parts have more than {MAX_RULES} matches: remove some"
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

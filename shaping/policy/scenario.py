"""Scenarios: what the settings of a policy's lines are at each moment.

A scenario changes settings that have handlers, while packets flow. Which elements a line has does
not depend on the moment: a setting that a step gives is there from the beginning, at 0 if `links`
does not have it. So the elements of a policy are the same at all times, and only their arguments
differ (shaping.policy.compile.arguments_at).

A ramp changes its values in equal parts every RAMP_NS, the last of them at its end. A link that is
down loses all packets that come to it. Numbers of classes change in the same way: the tree of a
place is one argument of its Scheduler.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from dataplane.config.convert import did_you_mean
from dataplane.config.scalars import SchemaError
from dataplane.errors import ConfigError
from dataplane.units import format_time
from shaping.policy.classes import ClassEntry, class_at, tree_setting, with_numbers
from shaping.policy.findings import Finding
from shaping.policy.keys import ANY, LinkKey
from shaping.policy.load import Policy
from shaping.policy.network import Network
from shaping.policy.places import (
    ERRORS_MOST,
    Line,
    Place,
    Plan,
    Setting,
    places_of,
    setting_text,
    settings_of,
)
from shaping.policy.scalars import LineRate, LineTime, Share
from shaping.policy.schema import CorruptConfig, DelayConfig, LossConfig, ReorderConfig
from shaping.policy.steps import ClassEntry as ClassStep
from shaping.policy.steps import Entry, Step

RAMP_NS = 100_000_000
CHANGES_MOST = 10_000  # of settings, by all steps together: each is kept and looked at
TREES_MOST = 200_000  # classes of a tree, at each instant at which one of them changes: 4 s
SHARE_DIGITS = 12  # of a ramp's shares, so that their text stays short

Values = dict[tuple[Place, str], Any]  # by place and setting
Where = Place | str  # of lines, or a key of `classes`

_NOTHING: dict[str, Any] = {
    "rate": LineRate(0),
    "delay": DelayConfig(mean=LineTime(0)),
    "loss": LossConfig(share=Share(0)),
    "duplicate": Share(0),
    "corrupt": CorruptConfig(share=Share(0)),
    "reorder": ReorderConfig(share=Share(0)),
}
_ALL_LOST = LossConfig(share=Share(1))


class Segment(NamedTuple):
    """A setting from `at_ns` on: a ramp from `first` to `last` within `over_ns`, then `last`."""

    at_ns: int
    first: Any
    last: Any
    over_ns: int = 0

    def value(self, now_ns: int) -> Any:
        passed_ns = now_ns - self.at_ns
        if passed_ns >= self.over_ns:
            return self.last
        passed_ns -= passed_ns % RAMP_NS
        return between(self.first, self.last, passed_ns, self.over_ns) if passed_ns else self.first


@dataclass
class Track:
    """One setting of one place: `base` until the first segment."""

    base: Any
    segments: list[Segment] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def add(self, segment: Segment) -> None:
        """Appends a segment that begins at or after the last one's beginning."""
        self.segments.append(segment)
        self.times.append(segment.at_ns)

    def value(self, now_ns: int) -> Any:
        place = bisect_right(self.times, now_ns)
        return self.segments[place - 1].value(now_ns) if place else self.base


class Position(NamedTuple):
    """A moment of a scenario. rounds: how often it has begun again; step: the last step that has
    begun, None: none has; next_ns: until something changes, None: nothing will."""

    rounds: int
    now_ns: int
    step: Step | None
    next_ns: int | None


class Scenario:
    """The changes of a plan's lines and classes. steps: those of the file; classes: by their key;
    shared: those of shares, as in the plan; period_ns: of `repeat`."""

    def __init__(self, steps: list[Step], plan: Plan, classes: dict[str, ClassEntry]) -> None:
        self.steps, self.lines, self.classes = steps, plan.lines, classes
        self.shared = plan.shared
        last = steps[-1] if steps else None
        self.period_ns = last.at_ns if last is not None and last.kind == "repeat" else None
        self.tracks: dict[Place, dict[str, Track]] = {}
        # of numbers of classes, by the key of `classes`, the path and the number's name
        self.class_tracks: dict[str, dict[tuple[str, str], Track]] = {}
        self.before: dict[int, list[str]] = {}  # by step: what its settings were, as text
        self._downs: dict[Place, list[tuple[int, int]]] = {}
        self._cuts: dict[str, list[tuple[int, int]]] = {}  # by NIC
        self._ramps: list[tuple[int, int, Where]] = []  # from, to; by `from`
        self._instants: list[tuple[int, Where]] = []  # of changes that are no ramps

    def close_down(self, place: Place, from_ns: int, to_ns: int) -> None:
        """Nothing passes a place in that time."""
        self._downs.setdefault(place, []).append((from_ns, to_ns))
        self._instants += [(from_ns, place), (to_ns, place)]

    def cut_carrier(self, nic: str, from_ns: int, to_ns: int) -> None:
        """A NIC that is down has no carrier, either."""
        self._cuts.setdefault(nic, []).append((from_ns, to_ns))

    def carriers_at(self, elapsed_ns: int) -> dict[str, bool]:
        """Of each NIC whose carrier it cuts whether it is cut then."""
        now_ns = self._now_ns(elapsed_ns)
        return {
            nic: any(from_ns <= now_ns < to_ns for from_ns, to_ns in cuts)
            for nic, cuts in self._cuts.items()
        }

    def change(self, place: Place, name: str, segment: Segment) -> None:
        """Changes one setting; segments come in the order of their times."""
        self.tracks[place][name].add(segment)
        self._note(place, segment)

    def change_class(self, place: str, path: str, name: str, segment: Segment) -> None:
        """Changes one number of a class."""
        self.class_tracks[place][path, name].add(segment)
        self._note(place, segment)

    def _note(self, where: Where, segment: Segment) -> None:
        end_ns = segment.at_ns + segment.over_ns
        self._instants += [(segment.at_ns, where), (end_ns, where)]
        if segment.over_ns:
            self._ramps.append((segment.at_ns, end_ns, where))

    def finish(self) -> None:
        """After the last change."""
        self._instants.sort(key=lambda each: each[0])
        self._ramps.sort(key=lambda each: each[0])

    def instants_of(self, where: Where) -> list[int]:
        """When something of a place changes, or ends to."""
        return sorted({at_ns for at_ns, each in self._instants if each == where})

    def _now_ns(self, elapsed_ns: int) -> int:
        """The time within its round."""
        return elapsed_ns if self.period_ns is None else elapsed_ns % self.period_ns

    def position(self, elapsed_ns: int) -> Position:
        """The moment `elapsed_ns` after the beginning."""
        now_ns = self._now_ns(elapsed_ns)
        rounds = 0 if self.period_ns is None else elapsed_ns // self.period_ns
        begun = bisect_right(self.steps, now_ns, key=lambda step: step.at_ns)
        following = bisect_right(self._instants, now_ns, key=lambda each: each[0])
        instants = [instant for instant, _ in self._instants[following : following + 1]]
        instants += [] if self.period_ns is None else [self.period_ns]
        for begin_ns, end_ns, _ in self._ramps:
            if begin_ns > now_ns:
                break
            if now_ns < end_ns:
                parts = (now_ns - begin_ns) // RAMP_NS + 1
                instants.append(min(begin_ns + parts * RAMP_NS, end_ns))
        next_ns = min(instants) - now_ns if instants else None
        return Position(rounds, now_ns, self.steps[begun - 1] if begun else None, next_ns)

    def places_changing(self, from_ns: int, to_ns: int) -> Collection[Where]:
        """The places that may have changed after `from_ns` and up to `to_ns`, both since the
        beginning: a step costs what it changes, not what the scenario has."""
        if self.period_ns is not None and from_ns // self.period_ns != to_ns // self.period_ns:
            return {*self.tracks, *self.class_tracks}
        from_ns, to_ns = self._now_ns(from_ns), self._now_ns(to_ns)
        first, last = (
            bisect_right(self._instants, each, key=lambda each: each[0])
            for each in (from_ns, to_ns)
        )
        found = {place for _, place in self._instants[first:last]}
        for begin_ns, end_ns, place in self._ramps:
            if begin_ns > to_ns:
                break
            if end_ns > from_ns:
                found.add(place)
        return found

    def values_at(self, elapsed_ns: int, places: Collection[Where] | None = None) -> Values:
        """The settings of lines that the scenario changes, of all places or of some, as they are
        then."""
        now_ns = self._now_ns(elapsed_ns)
        values: Values = {}
        for place in self.tracks if places is None else self.tracks.keys() & places:
            for name, track in self.tracks[place].items():
                values[place, name] = track.value(now_ns)
            if any(from_ns <= now_ns < to_ns for from_ns, to_ns in self._downs.get(place, ())):
                values[place, "loss"] = _ALL_LOST
        return values

    def classes_at(
        self, elapsed_ns: int, places: Collection[Where] | None = None
    ) -> list[ClassEntry]:
        """The classes that it changes, or some of them, with their numbers then."""
        now_ns = self._now_ns(elapsed_ns)
        chosen = [each for each in self.class_tracks if places is None or each in places]
        return [
            with_numbers(
                self.classes[place],
                {at: track.value(now_ns) for at, track in self.class_tracks[place].items()},
            )
            for place in chosen
        ]

    def lines_at(self, elapsed_ns: int, places: Collection[Where] | None = None) -> list[Line]:
        """The lines that it changes, or some of them, with their settings then."""
        found: dict[Place, dict[str, Setting]] = {}
        for (place, name), value in self.values_at(elapsed_ns, places).items():
            found.setdefault(place, {})[name] = Setting(value, self.lines[place].where)
        return [self.lines[place].with_settings(settings) for place, settings in found.items()]


def scenario_of(policy: Policy, plan: Plan, network: Network) -> Scenario | None:
    """The scenario of a policy whose `plan` has its lines; None: it has none. Adds to the plan the
    settings that only steps have, and the errors of the steps."""
    if not policy.steps:
        return None
    classes = {entry.key: entry for entry in policy.classes}
    scenario = Scenario(policy.steps, plan, classes)
    changes = 0
    for step in policy.steps:
        if sum(finding.kind == "error" for finding in plan.findings) >= ERRORS_MOST:
            return scenario
        for found in _changes(step, plan, network):
            changes += 1
            if changes > CHANGES_MOST:
                break
            _add(scenario, plan, step, *found)
        changes += sum(len(entry.numbers) for entry in step.classes)
        if changes > CHANGES_MOST:
            text = f"more than {CHANGES_MOST} settings change: write fewer steps or places"
            plan.findings.append(Finding("error", step.where, f"{step_name(step)}: {text}"))
            return scenario
        if step.carrier:
            if step.link in network.links and step.link not in network.nics:
                text = (
                    f"{step_name(step)}: {step.link} joins switches, and only NICs have a carrier"
                )
                plan.findings.append(Finding("error", step.where, f"{text}: remove carrier"))
            scenario.cut_carrier(step.link, step.at_ns, step.at_ns + step.lasts_ns)
        for entry in step.classes:
            plan.findings.extend(_add_class(scenario, step, entry))
        plan.findings.extend(_cut_off(scenario, step))
    scenario.finish()
    return scenario


def _changes(
    step: Step, plan: Plan, network: Network
) -> Iterator[tuple[Place, str, Setting | None]]:
    """The places and settings of a step; of a link that is down, loss without a value."""
    keys: list[tuple[LinkKey, Entry | None]] = [(entry.key, entry) for entry in step.entries]
    if step.kind == "link":
        keys = [(LinkKey(step.link), None)]
    for key, entry in keys:
        where = step.where if entry is None else entry.where
        try:
            places = places_of(key, network)
        except ConfigError as error:
            plan.findings.append(Finding("error", where, f"{step_name(step)}: {key}: {error}"))
            continue
        for place, upward in places:
            if place.part and place not in plan.lines:
                text = f"there is no part {place} in links, where its match is: expected one"
                plan.findings.append(Finding("error", where, f"{step_name(step)}: {text}"))
                continue
            if entry is None:
                yield place, "loss", None
                continue
            for name, setting in settings_of(entry, place, upward, len(places) > 1).items():
                yield place, name, setting


def _add(
    scenario: Scenario, plan: Plan, step: Step, place: Place, name: str, setting: Setting | None
) -> None:
    """Adds one change of a step to the scenario, and the setting to the plan."""
    line = plan.lines.setdefault(place, Line(place, step.where))
    if setting is not None and name == "rate" and (why := _other_rate(line, plan)) is not None:
        text = f"{step_name(step)}: {place}: rate: {why}"
        plan.findings.append(Finding("error", setting.where, text))
        return
    line.settings.setdefault(name, Setting(_NOTHING[name], step.where))
    variants = line.variants.setdefault(name, [line.settings[name].value])
    tracks = scenario.tracks.setdefault(place, {})
    track = tracks.setdefault(name, Track(line.settings[name].value))
    if setting is None:
        variants.append(_ALL_LOST)
        scenario.close_down(place, step.at_ns, step.at_ns + step.lasts_ns)
        return
    first = track.value(step.at_ns)
    if first != setting.value:
        was = f"{place} {name} {setting_text(first)}"
        scenario.before.setdefault(step.number, []).append(was)
    if step.kind == "ramp" and (why := _no_ramp(first, setting.value)) is not None:
        text = f"{step_name(step)}: {place}: {name}: {why}"
        plan.findings.append(Finding("error", setting.where, text))
        return
    variants.append(setting.value)
    scenario.change(place, name, Segment(step.at_ns, first, setting.value, step.lasts_ns))


def _add_class(scenario: Scenario, step: Step, entry: ClassStep) -> Iterator[Finding]:
    """Adds the changes of one class to the scenario."""
    known = scenario.classes.get(entry.place)
    name = f"{step_name(step)}: {entry.name}"
    if known is None:
        text = f"{name}: there is no {entry.place} in classes"
        hint = (
            did_you_mean(entry.place, list(scenario.classes))
            if scenario.classes
            else "it is not there"
        )
        yield Finding("error", entry.where, f"{text}; {hint}")
        return
    config = class_at(known, entry.path)
    if config is None:
        yield Finding("error", entry.where, f"{name}: there is no such class")
        return
    shared = scenario.shared.get(entry.place, {})
    for number, value in entry.numbers.items():
        of = _around(entry.path, shared)
        if of and (number == "guarantee" or (number == "ceiling" and of == entry.path)):
            text = f"the share of {shared[of][0]} sets what {of} gets again and again"
            yield Finding("error", entry.where, f"{name}: {number}: {text}")
            return
        tracks = scenario.class_tracks.setdefault(entry.place, {})
        base = getattr(config, number)
        track = tracks.setdefault((entry.path, number), Track(base))
        first = track.value(step.at_ns)
        if first != value:
            was = f"{entry.name} {number} {'none' if first is None else setting_text(first)}"
            scenario.before.setdefault(step.number, []).append(was)
        if step.lasts_ns and (first is None or number == "priority"):
            why = "is no number to begin with" if first is None else "does not change in parts"
            text = f"{name}: {number}: {why}: use a step without over"
            yield Finding("error", entry.where, text)
            return
        segment = Segment(step.at_ns, first, value, step.lasts_ns)
        scenario.change_class(entry.place, entry.path, number, segment)


def _around(path: str, shared: Collection[str]) -> str:
    """The class of a share that a class is, or is in; "": there is none."""
    while path and path not in shared:
        path = path.rpartition("/")[0]
    return path


def wrong_trees(scenario: Scenario) -> Iterator[Finding]:
    """Trees that cannot be, such as with guarantees beyond those of their parent. Between two
    instants all numbers change in proportion, so what holds at both holds between them. It takes
    time, so only a policy that is to run is looked at."""
    read = 0
    for place in scenario.class_tracks:
        size = len(tree_setting(scenario.classes[place]).classes)
        for at_ns in scenario.instants_of(place):
            read += size
            if read > TREES_MOST:
                text = f"its classes, at all instants of the steps, are more than {TREES_MOST}: "
                text += "write fewer steps, or fewer classes beside those that change"
                yield Finding("error", scenario.classes[place].where, f"scenario: {place}: {text}")
                return
            [entry] = scenario.classes_at(at_ns, [place])
            try:
                tree_setting(entry)
            except ConfigError as error:
                text = str(error).removeprefix("classes: ")
                moment = f"{place}, {format_time(at_ns)} after the beginning"
                yield Finding("error", entry.where, f"scenario: {moment}: {text}")
                break


def _other_rate(line: Line, plan: Plan) -> str | None:
    """What sets the rate of a line besides steps; None: nothing does."""
    if "trace" in line.settings:
        return "the line has a trace, which is its rate: expected one of them"
    for name, uplink in plan.uplinks.items():
        if line.place in [Place(nic, ANY) for nic in uplink.leaves]:
            return f"the share of {name} sets it again and again: expected it in links, as a bound"
    return None


def _cut_off(scenario: Scenario, step: Step) -> Iterator[Finding]:
    end_ns = scenario.period_ns
    if end_ns is not None and step.kind != "repeat" and step.at_ns + step.lasts_ns > end_ns:
        text = f"goes on when the scenario begins again at {format_time(end_ns)}, and is cut off"
        yield Finding("warning", step.where, f"{step_name(step)}: {text}")


# -- ramps -----------------------------------------------------------------------------------------


def _no_ramp(first: Any, last: Any) -> str | None:
    """Why there is no ramp between two values; None: there is."""
    wanted = f"cannot go from {setting_text(first)} to {setting_text(last)} in parts"
    if isinstance(last, LineRate):
        return None if first and last else f"{wanted}, since none is no number: use set"
    if isinstance(last, LossConfig) and first.model != last.model:
        return f"{wanted}, since the models differ: use set"
    try:
        for part in (0, 1):
            between(first, last, part, 1)
    except SchemaError as error:
        return f"{wanted}: {error}"
    return None


def between(first: Any, last: Any, part: int, whole: int) -> Any:
    """The value after `part` of `whole` on the way from `first` to `last`. Numbers change in
    proportion; all else, and what `first` does not have, is as in `last`."""
    if isinstance(last, msgspec.Struct):
        mixed = {
            name: between(getattr(first, name), getattr(last, name), part, whole)
            for name in last.__struct_fields__
        }
        return type(last)(**mixed)
    if part >= whole or first is None or isinstance(last, str) or last is None:
        return last
    if isinstance(last, Share):
        return Share(round(first + (last - first) * part / whole, SHARE_DIGITS))
    if isinstance(last, float):
        return first + (last - first) * part / whole
    return type(last)(first + _rounded((last - first) * part, whole))


def _rounded(dividend: int, divisor: int) -> int:
    return (2 * dividend + divisor) // (2 * divisor)


# -- texts -----------------------------------------------------------------------------------------


def step_name(step: Step) -> str:
    """A step in findings."""
    return f"step {step.number} (at {format_time(step.at_ns)})"


def step_text(step: Step) -> str:
    """What a step does."""
    if step.kind == "repeat":
        return "again from the start"
    if step.kind == "link":
        without = ", and it has no carrier" if step.carrier else ""
        return f"{step.link}: nothing passes for {format_time(step.lasts_ns)}{without}"
    texts = [
        f"{entry.name}: {', '.join(f'{name} {value}' for name, value in entry.numbers.items())}"
        for entry in step.classes
    ]
    for entry in step.entries:
        values = ", ".join(
            f"{name} {setting_text(value)}"
            for name in entry.lines
            if (value := getattr(entry.settings, name)) is not None
        )
        texts.append(f"{entry.key}: {values}")
    over = f" over {format_time(step.lasts_ns)}" if step.lasts_ns else ""
    return "; ".join(texts) + over


def meaning(scenario: Scenario) -> Iterator[Finding]:
    """What each step means, for `vnic shape check`."""
    for step in scenario.steps:
        was = scenario.before.get(step.number, [])
        before = f" (before: {', '.join(was[:4])}{', ...' if len(was) > 4 else ''})" if was else ""
        yield Finding("note", step.where, f"{step_name(step)}: {step_text(step)}{before}")

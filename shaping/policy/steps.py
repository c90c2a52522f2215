"""The steps of a policy's scenario: untyped data to `Step`, with line numbers for errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from dataplane.config.convert import (
    Locate,
    Path,
    convert,
    error_at,
    field_type,
    known_keys,
    mapping,
    shown,
    unknown_key,
)
from dataplane.errors import ConfigError
from dataplane.units import format_time
from shaping.policy.class_schema import ClassStepConfig
from shaping.policy.keys import CLASS_WAYS, LinkKey, parse_key, parse_name
from shaping.policy.schema import STEPS_MOST, LineConfig, PolicyConfig, StepConfig

# Settings that have handlers: they change while packets flow. The others belong to `links`.
LIVE = ("rate", "delay", "loss", "duplicate", "corrupt", "reorder")
FIXED = ("match", "trace", "queue", "overhead")
ENTRIES_MOST = 10_000  # of all steps: each changes a setting
REPEAT_LEAST_NS = 100_000_000  # between two rounds: a scenario must not keep control busy
SPAN_LEAST_NS = 1_000_000  # of a ramp, or of a link that is down

# How long each kind lasts; of those in AT_ONCE_TOO, it may be left out.
KINDS: dict[str, str | None] = {
    "set": None, "ramp": "over", "classes": "over", "link": "down", "repeat": None,
}  # fmt: skip
AT_ONCE_TOO = ("classes",)
SPANS = {"over": "ramp", "down": "link"}


class Entry(NamedTuple):
    """Settings for one key, in `links` or in a step.

    where      "FILE:LINE" of the entry
    lines      "FILE:LINE" of each of its settings
    """

    key: LinkKey
    settings: LineConfig
    where: str
    lines: dict[str, str]


MakeEntry = Callable[[Any, Any, Path, Locate], Entry]  # key, settings, path


class ClassEntry(NamedTuple):
    """Numbers for one class in a step.

    place      a key of `classes`
    path       of the class; "": all of them
    where      "FILE:LINE" of the entry
    """

    place: str
    path: str
    numbers: dict[str, Any]
    where: str

    @property
    def name(self) -> str:
        return f"{self.place}/{self.path}" if self.path else self.place


class Step(NamedTuple):
    """One step.

    number     in the file, from 1
    entries    of set and ramp
    link       the name that is down
    lasts_ns   of a ramp, also of classes, or of a link that is down
    classes    of classes
    carrier    whether the NIC that is down has no carrier
    """

    number: int
    at_ns: int
    kind: Literal["set", "ramp", "classes", "link", "repeat"]
    where: str
    entries: list[Entry] = []
    link: str = ""
    lasts_ns: int = 0
    classes: list[ClassEntry] = []
    carrier: bool = False


def convert_steps(
    data: Any, locate: Locate, make_entry: MakeEntry
) -> tuple[list[Step], list[StepConfig]]:
    """The steps, and the same as typed structs. Raises ConfigError."""
    if data is None:
        return [], []
    if not isinstance(data, list) or len(data) > STEPS_MOST:
        what = shown(data) if not isinstance(data, list) else f"of {len(data)} steps"
        wanted = field_type(PolicyConfig, ("scenario",))[1]
        raise error_at(locate, ("scenario",), f"invalid value {what}: expected {wanted}")
    steps: list[Step] = []
    configs: list[StepConfig] = []
    count = 0
    for number, each in enumerate(data):
        step, config = _step(each, number, locate, make_entry)
        count += len(step.entries)
        if count > ENTRIES_MOST:
            text = f"all steps so far have {count} lines: expected at most {ENTRIES_MOST}"
            raise error_at(locate, ("scenario", number), text)
        if steps and steps[-1].kind == "repeat":
            text = "is behind repeat, with which a scenario ends: expected no further step"
            raise error_at(locate, ("scenario", number), text)
        if steps and step.at_ns < steps[-1].at_ns:
            raise error_at(
                locate,
                ("scenario", number, "at"),
                f"{format_time(step.at_ns)} is before the step at {format_time(steps[-1].at_ns)}: "
                "expected times that do not decrease",
            )
        steps.append(step)
        configs.append(config)
    return steps, configs


def _step(data: Any, number: int, locate: Locate, make_entry: MakeEntry) -> tuple[Step, StepConfig]:
    path: Path = ("scenario", number)
    fields = mapping(data, StepConfig, path, locate)
    for key in fields:
        if key not in known_keys(StepConfig):
            raise unknown_key(locate, path, str(key), StepConfig)
    if fields.get("repeat") is True:
        fields["repeat"] = "yes"
    if isinstance(carrier := fields.get("carrier"), bool):
        fields["carrier"] = "yes" if carrier else "no"
    given = [kind for kind in KINDS if kind in fields]
    if len(given) != 1:
        what = f"has {' and '.join(given)}" if given else "does nothing"
        raise error_at(locate, path, f"{what}: expected one of {', '.join(KINDS)}, and at")
    kind: Any = given[0]
    entries: list[Entry] = []
    if kind in ("set", "ramp"):
        entries = _entries(fields.pop(kind), (*path, kind), locate, make_entry, kind)
    classes: dict[str, tuple[ClassEntry, ClassStepConfig]] = {}
    if kind == "classes":
        classes = _classes(fields.pop(kind), (*path, kind), locate)
    config = convert(fields, StepConfig, path, locate)
    if config.link is not None:
        try:
            parse_name(config.link)
        except ConfigError as error:
            raise error_at(locate, (*path, "link"), str(error)) from None
    if config.carrier is not None and kind != "link":
        raise error_at(locate, (*path, "carrier"), f"belongs to link, and this is {kind}")
    lasts_ns = 0
    for span, owner in SPANS.items():
        given = getattr(config, span)
        if span != KINDS[kind]:
            if given is not None:
                raise error_at(locate, (*path, span), f"belongs to {owner}, and this is {kind}")
        elif given is None and kind not in AT_ONCE_TOO:
            wanted = field_type(StepConfig, (span,))[1]
            raise error_at(locate, path, f"{kind} has no {span}: expected {span}: {wanted}")
        elif given is not None:
            lasts_ns = int(given)
            if lasts_ns < SPAN_LEAST_NS:
                text = f"{format_time(lasts_ns)}: expected at least {format_time(SPAN_LEAST_NS)}"
                raise error_at(locate, (*path, span), text)
    if kind == "repeat" and config.at < REPEAT_LEAST_NS:
        text = f"repeat at {config.at}: expected at least {format_time(REPEAT_LEAST_NS)}"
        raise error_at(locate, (*path, "at"), text)
    if entries:
        setattr(config, kind, {str(each.key): each.settings for each in entries})
    if classes:
        config.classes = {name: numbers for name, (_, numbers) in classes.items()}
    step = Step(
        number + 1, int(config.at), kind, locate(path), entries, config.link or "", lasts_ns,
        [entry for entry, _ in classes.values()], config.carrier == "yes",
    )  # fmt: skip
    return step, config


def _entries(
    data: Any, path: Path, locate: Locate, make_entry: MakeEntry, kind: str
) -> list[Entry]:
    """The entries of set or ramp."""
    if not isinstance(data, Mapping) or not data:
        wanted = field_type(StepConfig, (kind,))[1]
        raise error_at(locate, path, f"invalid value {shown(data)}: expected {wanted}")
    entries = [make_entry(key, value, (*path, key), locate) for key, value in data.items()]
    for (key, value), entry in zip(data.items(), entries, strict=True):
        if entry.key.part and not entry.key.arrow and entry.key.first.endswith(CLASS_WAYS):
            text = "is a class, and steps change lines only with set and ramp: write it in classes"
            raise error_at(locate, (*path, key), text)
        for word in FIXED:
            if word in value:
                raise error_at(
                    locate,
                    (*path, key, word),
                    f"cannot change while packets flow: write it in links: {entry.key}",
                )
    check_keys(entries, path, locate)
    return entries


def _classes(
    data: Any, path: Path, locate: Locate
) -> dict[str, tuple[ClassEntry, ClassStepConfig]]:
    """The entries of classes, by their names."""
    if not isinstance(data, Mapping) or not data:
        wanted = field_type(StepConfig, ("classes",))[1]
        raise error_at(locate, path, f"invalid value {shown(data)}: expected {wanted}")
    found = {}
    for key, value in data.items():
        here = (*path, key)
        place, _, inner = (each.strip() for each in str(key).partition("/"))
        if not isinstance(value, Mapping) or not value:
            text = f"invalid value {shown(value)}: expected numbers such as {{guarantee: 5mbit}}"
            raise error_at(locate, here, text)
        numbers = convert(value, ClassStepConfig, here, locate)
        if inner and numbers.rate is not None:
            text = "is of all classes of a place: expected ceiling or guarantee"
            raise error_at(locate, (*here, "rate"), text)
        if not inner and (other := next((each for each in numbers.given if each != "rate"), None)):
            text = f"is of one class: expected a key such as {place}/gold, or rate"
            raise error_at(locate, (*here, other), text)
        entry = ClassEntry(place, inner, numbers.given, locate(here))
        found[entry.name] = entry, numbers
    return found


def check_keys(entries: list[Entry], path: Path, locate: Locate) -> None:
    """Raises ConfigError for two entries of one key, which only their spaces tell apart."""
    seen: dict[LinkKey, Entry] = {}
    for entry in entries:
        if (first := seen.setdefault(entry.key, entry)) is not entry:
            at = f", at {first.where}" if first.where else ""
            text = f"is there twice{at}: expected all settings in one entry"
            raise error_at(partial(_where, entry), (*path, str(entry.key)), text)


def _where(entry: Entry, path: Path) -> str:
    return entry.where


def carriers_of_steps(data: Any) -> set[str]:
    """The NICs whose carrier a scenario's plain data cuts."""
    return {step["link"] for step in data or [] if step.get("carrier") == "yes"}


def names_of_steps(data: Any) -> set[str]:
    """The names of NICs and links in a scenario's plain data. Raises ConfigError."""
    names: set[str] = set()
    for step in data or []:
        names |= {step["link"]} if "link" in step else set()
        for key in (*step.get("set", ()), *step.get("ramp", ())):
            parsed = parse_key(key)
            names |= {parsed.first, parsed.second}
    return names

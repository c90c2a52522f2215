"""Policy files: YAML to `Policy`, with line numbers for errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from dataplane.config.convert import (
    Locate,
    Path,
    convert,
    did_you_mean,
    error_at,
    field_type,
    known_keys,
    mapping,
    shown,
)
from dataplane.config.load import parse_yaml, read_text
from dataplane.config.scalars import SchemaError
from dataplane.errors import ConfigError
from shaping.policy.classes import ClassEntry, names_of_classes, read_classes
from shaping.policy.keys import ANY, LinkKey, parse_key
from shaping.policy.presets import PRESETS, no_preset
from shaping.policy.scalars import LineTime, QueueLength, QueueSize, Share
from shaping.policy.schema import LINKS_MOST, LineConfig, PolicyConfig
from shaping.policy.share_load import read_shares
from shaping.policy.steps import Entry, Step, check_keys, convert_steps, names_of_steps
from shaping.policy.traces import read_traces, unpack_traces
from shaping.settings import loop_of

if TYPE_CHECKING:
    from shaping.trace import Trace

# Words of other tools and what to write here.
_OTHER_WORDS = {
    "latency": "could mean one way or there and back: write delay: (one way) or rtt: (both)",
    "ping": "write rtt: (there and back)",
    "jitter": "belongs to the delay: write delay: {mean: 40ms, jitter: 10ms}",
    "distribution": "belongs to the delay: write delay: {mean: 40ms, jitter: 10ms, shape: normal}",
    "correlation": "belongs to a setting: write loss: {share: 1%, correlation: 25%}",
    "limit": "is the longest queue: write queue: 100ms, or {packets: 100}",
    "bandwidth": "write rate: 10mbit",
    "bw": "write rate: 10mbit",
    "down": "has a key of its own: write any -> NAME: {rate: 10mbit}",
    "up": "has a key of its own: write NAME -> any: {rate: 10mbit}",
    "duplication": "write duplicate: 0.1%",
    "corruption": "write corrupt: 0.1%",
    "reordering": "write reorder: {share: 1%, by: 3}",
    "gap": "write reorder: {share: 1%, by: 3}",
}


class Policy(NamedTuple):
    """A policy as read: its entries and steps in the order of the file.

    name       of the file, for findings
    config     the same as typed structs
    classes    entries of `classes`
    traces     of files, by digest
    share_lines  "FILE:LINE" of each entry of `shares`
    """

    name: str
    config: PolicyConfig
    entries: list[Entry]
    classes: list[ClassEntry]
    traces: Mapping[str, Trace]
    steps: list[Step]
    share_lines: dict[str, str] = {}

    @property
    def seed(self) -> int | None:
        return self.config.seed


def parse_policy(text: str, name: str = "<text>", directory: str | None = None) -> Policy:
    """A policy from YAML text; name: for errors; directory: where relative paths of traces begin,
    by default the present one. Raises ConfigError, whose text is "FILE:LINE: path: error: expected
    values"."""
    data, locate = parse_yaml(text, name)
    return convert_policy(read_traces(data, locate, directory or os.getcwd()), locate, name)


def convert_policy(data: Any, locate: Locate = lambda path: "", name: str = "") -> Policy:
    """A policy from untyped data. Raises ConfigError."""
    fields = mapping(data, PolicyConfig, (), locate)
    links, classes = fields.pop("links", None), fields.pop("classes", None)
    scenario, shares = fields.pop("scenario", None), fields.pop("shares", None)
    if "version" not in fields:
        raise error_at(locate, (), "has no version: expected version: 1")
    config = convert(fields, PolicyConfig, (), locate)
    if links is None:
        links = {}
    if not isinstance(links, Mapping) or len(links) > LINKS_MOST:
        what = shown(links) if not isinstance(links, Mapping) else f"of {len(links)} entries"
        raise error_at(
            locate,
            ("links",),
            f"invalid value {what}: expected at most {LINKS_MOST} entries in a mapping such as "
            "{web <-> db: {rate: 10mbit}}",
        )
    entries = [_entry(key, value, ("links", key), locate) for key, value in links.items()]
    check_keys(entries, ("links",), locate)
    for key, entry in zip(links, entries, strict=True):
        _check_part(entry, ("links", key), locate)
    config.links = {str(entry.key): entry.settings for entry in entries}
    class_entries = read_classes(classes, locate)
    config.classes = {entry.key: entry.config for entry in class_entries}
    traces = unpack_traces(config.links, config.traces, locate)
    config.traces = {digest: config.traces[digest] for digest in traces}
    steps, config.scenario = convert_steps(scenario, locate, _entry)
    config.shares = read_shares(shares, locate)
    share_lines = {each: locate(("shares", each)) for each in config.shares}
    return Policy(name, config, entries, class_entries, traces, steps, share_lines)


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """A policy from a YAML file, or from standard input for "-". Raises ConfigError."""
    text, name = read_text(path)
    return parse_policy(text, name, None if name == "<stdin>" else os.path.dirname(name))


def names_in(policy: Any) -> set[str]:
    """The names of NICs and links in a policy's plain data (None: none). Raises ConfigError."""
    if policy is None:
        return set()
    keys = [parse_key(key) for key in policy.get("links", {})]
    names = {name for key in keys for name in (key.first, key.second)}
    for entry in policy.get("links", {}).values():
        names |= {match["sender"] for match in entry.get("match", ()) if "sender" in match}
    names |= names_of_classes(policy.get("classes"))
    for share in (policy.get("shares") or {}).values():
        members = share.get("members") or {}
        leaves = set(share.get("groups", {})) - set(members)
        leaves |= {leaf for inner in members.values() for leaf in inner}
        classes = {leaf for leaf in leaves if "/" in leaf}
        names |= (leaves - classes) | names_of_classes(classes)
    return (names | names_of_steps(policy.get("scenario"))) - {ANY, ""}


def _entry(key: Any, data: Any, path: Path, locate: Locate) -> Entry:
    try:
        place = parse_key(str(key))
    except ConfigError as error:
        raise error_at(locate, path, str(error)) from None
    if not isinstance(data, Mapping) or not data:
        what = shown(data) if data or not isinstance(data, Mapping) else "without settings"
        raise error_at(
            locate,
            path,
            f"invalid value {what}: expected settings such as {{rate: 10mbit, delay: 20ms}}",
        )
    settings = dict(data)
    for word, value in settings.items():
        check_word(word, (*path, word), locate)
        if value is None:
            raise error_at(
                locate,
                (*path, word),
                f"has no value: expected {field_type(LineConfig, (word,))[1]}",
            )
        settings[word] = _expanded(word, value, (*path, word), locate)
    line = convert(settings, LineConfig, path, locate)
    _check_entry(place, line, path, locate)
    lines = {str(word): locate((*path, word)) for word in settings}
    return Entry(place, line, locate(path), lines)


def _check_part(entry: Entry, path: Path, locate: Locate) -> None:
    """A part has a match, and nothing else has one."""
    matches, key = entry.settings.match, entry.key
    if key.part and matches is None:
        text = f"has no match: expected the packets of {key.part}, such as match: {{dscp: ef}}"
        raise error_at(locate, path, text)
    if not key.part and matches is not None:
        text = f"is of a part of the line: give it a name, such as {key}/calls"
        raise error_at(locate, (*path, "match"), text)
    if not entry.lines.keys() - {"match"}:
        text = "has no settings besides match: expected some, such as loss: 5%"
        raise error_at(locate, path, text)
    for match in matches or ():
        if key.both_ways and (match.sender or match.source_mac):
            given = "sender" if match.sender else "source_mac"
            text = f"{given} is of one way: expected a key of one way, such as web -> db/calls"
            raise error_at(locate, (*path, "match"), text)


def check_word(word: Any, path: Path, locate: Locate) -> None:
    """Raises ConfigError for a word that is no setting of a line, with what to write instead."""
    known = known_keys(LineConfig)
    if word in known:
        return
    hint = _OTHER_WORDS.get(str(word).lower())
    if hint is None:
        hint = f"unknown key; {did_you_mean(str(word), known)}"
    raise error_at(locate, path, hint)


def _expanded(word: str, value: Any, path: Path, locate: Locate) -> Any:
    """A setting's mapping in place of the text that stands for it."""
    if word == "match" and isinstance(value, Mapping):
        return [value]
    if word not in _SHORT:
        return value
    if isinstance(value, Mapping):
        if word == "trace" and "loop" in value:
            value = {**value, "loop": _loop(value["loop"], (*path, "loop"), locate)}
        if word == "delay" and "latency" in value:
            raise error_at(locate, (*path, "latency"), "write mean: (one way)")
        return dict(value)
    if isinstance(value, list):
        if word == "trace":
            return {"steps": value}
        raise error_at(
            locate,
            path,
            f"invalid value a list: expected {field_type(LineConfig, (word,))[1]}",
        )
    try:
        return _SHORT[word](value)
    except ConfigError as error:
        raise error_at(locate, path, str(error)) from None


def _share(value: Any) -> dict[str, Any]:
    Share.parse(value)
    return {"share": value}


def _delay(value: Any) -> dict[str, Any]:
    LineTime.parse(value)
    return {"mean": value}


def _loop(value: Any, path: Path, locate: Locate) -> bool:
    try:
        return loop_of(value)
    except ConfigError as error:
        raise error_at(locate, path, str(error)) from None


def _trace(value: Any) -> dict[str, Any]:
    if not isinstance(value, str) or not value:
        raise SchemaError(
            f"invalid value {shown(value)}: expected a file such as lte.up, or steps such as "
            "[{for: 10s, rate: 5mbit}]"
        )
    return {"file": value}


def _overhead(value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        raise SchemaError(
            f"invalid value {shown(value)}: expected a keyword such as docsis, or "
            "{bytes: 18, minimum: 64}"
        )
    return {"keyword": value}


def _queue(value: Any) -> dict[str, Any]:
    """A time or a size; its unit decides."""
    text = str(value).strip().lower()
    if isinstance(value, bool) or text.replace(".", "", 1).isdigit():
        raise SchemaError(
            f"queue {shown(value)} has no unit: expected a time such as 100ms, a size such as "
            "64kb, or {packets: 100}"
        )
    if re.fullmatch(r"[0-9.]{1,20}\s*m", text, re.ASCII):
        number = text[:-1].rstrip()
        raise SchemaError(
            f"queue {shown(value)} could mean bytes or milliseconds: write {number}mb or {number}ms"
        )
    try:
        if text.endswith(("b", "k", "g")):
            QueueSize.parse(value)
            return {"size": value}
        QueueLength.parse(value)
        return {"time": value}
    except SchemaError:
        raise
    except ConfigError as error:
        raise SchemaError(f"queue: {error}") from None


_SHORT = {
    "loss": _share,
    "corrupt": _share,
    "reorder": _share,
    "delay": _delay,
    "queue": _queue,
    "overhead": _overhead,
    "trace": _trace,
}


def _check_entry(key: LinkKey, line: LineConfig, path: Path, locate: Locate) -> None:
    """Raises ConfigError for settings that do not go together."""
    if line.rate is not None and line.trace is not None:
        raise error_at(
            locate, (*path, "trace"), "has rate, too: expected one of them; a trace is the rate"
        )
    if line.trace is not None and line.queue is not None and line.queue.time is not None:
        raise error_at(
            locate,
            (*path, "queue"),
            f"{line.queue.time} is no bound where the rate varies: expected {{packets: 1000}} or "
            "a size such as 256kb",
        )
    if line.rtt is not None and line.delay is not None:
        raise error_at(
            locate,
            (*path, "rtt"),
            f"has delay, too: expected one of them; rtt: {line.rtt} is half of it each way",
        )
    if line.rtt is not None and not key.both_ways:
        raise error_at(
            locate,
            (*path, "rtt"),
            f"is there and back, and {key} is one way: write delay:, or rtt: for {_both(key)}",
        )
    if line.preset is not None and line.preset not in PRESETS:
        raise error_at(
            locate,
            (*path, "preset"),
            no_preset(line.preset),
        )


def _both(key: LinkKey) -> str:
    """The key of both ways of a one-way key."""
    if "any" in (key.first, key.second):
        return key.second if key.first == "any" else key.first
    return f"{key.first} <-> {key.second}"


def encode_scalar(value: Any) -> Any:
    """msgspec's enc_hook: prints scalars in the form in which a file has them."""
    if hasattr(type(value), "parse"):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def policy_data(policy: Policy) -> Any:
    """The policy as plain data, in the form of a file, with what was short written out."""
    return msgspec.to_builtins(policy.config, enc_hook=encode_scalar)

"""The classes of a policy: read from a file, and compiled to a Classifier and a Scheduler.

The Classifier sets each packet's mark, and the Scheduler puts it into the leaf with this mark.
Marks follow from the paths of classes, so that those of other classes stay when one is added.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dataplane.config.convert import Locate, Path, convert, did_you_mean, error_at, shown
from dataplane.elements.classifier_rules import MAX_RULES
from dataplane.errors import ConfigError
from shaping.class_settings import (
    CLASSES_MOST,
    DEPTH_MOST,
    MARK_MOST,
    NAME,
    PRIORITY_DEFAULT,
    TreeSetting,
    read_tree,
)
from shaping.policy.class_schema import ClassConfig, ClassesConfig, MatchConfig
from shaping.policy.findings import Finding
from shaping.policy.keys import ANY, ONE, LinkKey, parse_key, parse_name
from shaping.policy.network import Network
from shaping.policy.scalars import LineRate
from shaping.settings import flag_of

SPLIT_NAME, SCHEDULER_NAME = "shape-split", "shape-classes"
WAYS = ("egress", "ingress")
EXAMPLES = "web.egress, web.ingress, or one way of a link such as lan--dmz -> dmz"
PLACES_MOST, CLASSES_ALL_MOST = 1024, 65_536
TOO_MANY = (
    f"more than {MAX_RULES} matches, each of a class with each of the classes around it: expected "
    "fewer"
)
UNUSED_MOST = 20  # classes without packets that are named
NUMBERS = ("guarantee", "ceiling", "weight", "priority", "latency")

Shared = Mapping[
    str, tuple[str, LineRate]
]  # by path: the name of the share, the rate when all send


class ClassEntry(NamedTuple):
    """One entry of `classes`. where: "FILE:LINE"."""

    key: str
    config: ClassesConfig
    where: str


# -- reading ---------------------------------------------------------------------------------------


def read_classes(data: Any, locate: Locate) -> list[ClassEntry]:
    """The section `classes`. Raises ConfigError."""
    path: Path = ("classes",)
    if data is None:
        return []
    if not isinstance(data, Mapping) or len(data) > PLACES_MOST:
        what = shown(data) if not isinstance(data, Mapping) else f"of {len(data)} entries"
        raise error_at(
            locate, path, f"invalid value {what}: expected at most {PLACES_MOST} places such as "
            "{web.egress: {rate: 10mbit, default: rest, tree: {rest: {}}}}",
        )  # fmt: skip
    found: dict[tuple[str, str] | LinkKey, ClassEntry] = {}
    count = 0
    for key, value in data.items():
        entry = _entry(str(key), value, (*path, key), locate)
        count += _count(entry.config.tree)
        if count > CLASSES_ALL_MOST:
            text = f"all places so far have {count} classes: expected at most {CLASSES_ALL_MOST}"
            raise error_at(locate, path, text)
        place = place_key(entry.key)
        if place in found:
            text = f"is the place of {found[place].key}, too: expected one tree of classes for it"
            raise error_at(locate, (*path, key), text)
        found[place] = entry
    return list(found.values())


def _entry(key: str, data: Any, path: Path, locate: Locate) -> ClassEntry:
    try:
        place_key(key)
    except ConfigError as error:
        raise error_at(locate, path, str(error)) from None
    if not isinstance(data, Mapping):
        raise error_at(
            locate, path,
            f"invalid value {shown(data)}: expected {{rate: 10mbit, default: rest, tree: {{...}}}}",
        )  # fmt: skip
    fields = dict(data)
    if isinstance(fields.get("overhead"), str):
        fields["overhead"] = {"keyword": fields["overhead"]}
    tree = _tree(fields.pop("tree", None), (*path, "tree"), locate, 1, [0])
    config = convert({**fields, "tree": {}}, ClassesConfig, path, locate)
    config.tree = tree
    entry = ClassEntry(key, config, locate(path))
    try:
        tree_setting(entry)
    except ConfigError as error:
        raise error_at(locate, path, str(error).removeprefix("classes: ")) from None
    return entry


def _tree(
    data: Any, path: Path, locate: Locate, depth: int, count: list[int]
) -> dict[str, ClassConfig]:
    """Classes by name, converted one by one so that errors have their place. count: of all classes
    so far; bounded, as is the depth, since a file may refer to itself."""
    if not isinstance(data, Mapping) or not data:
        what = shown(data) if data is None or not isinstance(data, Mapping) else "without classes"
        raise error_at(
            locate,
            path,
            f"invalid value {what}: expected classes such as {{gold: {{}}, rest: {{}}}}",
        )
    if depth > DEPTH_MOST:
        raise error_at(locate, path, f"more than {DEPTH_MOST} levels of classes: expected fewer")
    count[0] += len(data)
    if count[0] > CLASSES_MOST:
        raise error_at(locate, path, f"more than {CLASSES_MOST} classes: expected fewer")
    found: dict[str, ClassConfig] = {}
    for name, each in data.items():
        here = (*path, name)
        if not NAME.fullmatch(str(name)):
            raise error_at(
                locate, here,
                "is not a class: expected a name of letters, digits, '_', '.' and '-', at most 32",
            )  # fmt: skip
        if each is None:
            each = {}
        if not isinstance(each, Mapping):
            raise error_at(
                locate, here,
                f"invalid value {shown(each)}: expected settings such as {{guarantee: 2mbit}}",
            )  # fmt: skip
        fields = dict(each)
        if isinstance(fields.get("match"), Mapping):
            fields["match"] = [fields["match"]]
        if isinstance(fields.get("queue"), str):
            fields["queue"] = {"discipline": fields["queue"]}
        if isinstance(queue := fields.get("queue"), Mapping) and "ecn" in queue:
            try:
                fields["queue"] = {**queue, "ecn": flag_of("ecn", queue["ecn"])}
            except ConfigError as error:
                raise error_at(locate, (*here, "queue", "ecn"), str(error)) from None
        tree = None
        if "tree" in fields:
            tree = _tree(fields.pop("tree"), (*here, "tree"), locate, depth + 1, count)
        found[str(name)] = convert(fields, ClassConfig, here, locate)
        found[str(name)].tree = tree or {}
    return found


def _count(tree: Mapping[str, ClassConfig]) -> int:
    return len(tree) + sum(_count(each.tree) for each in tree.values())


def place_key(key: str) -> tuple[str, str] | LinkKey:
    """(NIC, "egress" or "ingress"), or one way of a link. Raises ConfigError."""
    nic, _, way = key.rpartition(".")
    if way in WAYS and nic:
        return parse_name(nic, EXAMPLES), way
    found = parse_key(key)
    if found.arrow != ONE or found.part:
        why = "is a part" if found.part else "is both ways"
        raise ConfigError(f"{why}: expected {EXAMPLES}")
    if ANY in (found.first, found.second):
        way, nic = ("egress", found.first) if found.second == ANY else ("ingress", found.second)
        return nic, way
    return found


def names_of_classes(classes: Iterable[str] | None) -> set[str]:
    """The names of NICs and links in keys of `classes` or names of classes, which are right."""
    return {ClassName(place_key(key.partition("/")[0].strip()), "").owner for key in classes or ()}


class ClassName(NamedTuple):
    """A class by its place, as `classes` has it, and its path there."""

    place: tuple[str, str] | LinkKey
    path: str

    @property
    def owner(self) -> str:
        """The NIC or link."""
        return self.place.first if isinstance(self.place, LinkKey) else self.place[0]


def class_name(name: str) -> ClassName | None:
    """Reads a name such as "web.egress/gold"; None: it is none of a class, which have a "/".
    Raises ConfigError for a wrong place."""
    place, slash, path = (each.strip() for each in name.partition("/"))
    return ClassName(place_key(place), path) if slash else None


def class_at(entry: ClassEntry, path: str) -> ClassesConfig | ClassConfig | None:
    """A class of an entry by its path, "": the entry's own settings; None: there is none."""
    found: ClassesConfig | ClassConfig = entry.config
    for name in path.split("/") if path else ():
        if name not in found.tree:
            return None
        found = found.tree[name]
    return found


def with_numbers(entry: ClassEntry, numbers: Mapping[tuple[str, str], Any]) -> ClassEntry:
    """The entry with other numbers. numbers: by the path of a class and the number's name; None:
    the class has none."""
    config = copy.deepcopy(entry.config)
    changed = entry._replace(config=config)
    for (path, name), value in numbers.items():
        setattr(class_at(changed, path), name, value)
    return changed


# -- compiling -------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """A leaf class: its path, mark, and the rules that lead to it."""

    path: str
    mark: int
    rules: list[dict[str, Any]]


def element_entries(
    entry: ClassEntry, network: Network, shared: Shared | None = None
) -> list[dict[str, Any]]:
    """The elements of one place. Raises ConfigError."""
    leaves = leaves_of(entry.config, network)
    rules = [{**rule, "mark": leaf.mark, "gate": 0} for leaf in leaves for rule in leaf.rules]
    scheduler: dict[str, Any] = {"element": "Scheduler", "name": SCHEDULER_NAME}
    marks = {leaf.path: leaf.mark for leaf in leaves}
    scheduler["classes"] = tree_entry(entry.config, marks, shared)
    if entry.config.overhead is not None:
        keyword = entry.config.overhead.keyword
        scheduler["overhead"] = keyword or entry.config.overhead.added._asdict()
    split = {"element": "Classifier", "name": SPLIT_NAME, "rules": rules, "default": 0}
    return [split, scheduler]


def tree_entry(
    config: ClassesConfig, marks: Mapping[str, int], shared: Shared | None = None
) -> dict[str, Any]:
    """The `classes` of a Scheduler. marks: of leaves, by path; others get none. shared: of classes
    that are in a share, by path."""
    return {
        "rate": str(config.rate),
        "default": config.default,
        "tree": _tree_entry(config.tree, "", marks, shared or {}),
    }


def _tree_entry(
    tree: Mapping[str, ClassConfig], above: str, marks: Mapping[str, int], shared: Shared
) -> dict[str, Any]:
    found = {}
    for name, each in tree.items():
        path = f"{above}{name}"
        entry: dict[str, Any] = {}
        for key in NUMBERS:
            value = getattr(each, key)
            if value is not None and (key, value) not in DEFAULTS:
                entry[key] = value if type(value) is int else str(value)
        if path in shared:
            entry["share"], rate = shared[path]
            entry["ceiling"] = str(rate)
        if path in marks:
            entry["mark"] = marks[path]
        if each.queue is not None:
            entry["queue"] = each.queue.entry
        if each.tree:
            entry["tree"] = _tree_entry(each.tree, f"{path}/", marks, shared)
        found[name] = entry
    return found


DEFAULTS = (("weight", 1), ("priority", PRIORITY_DEFAULT))


def tree_setting(entry: ClassEntry, shared: Shared | None = None) -> TreeSetting:
    """The classes as the Scheduler reads them. Raises ConfigError."""
    return read_tree("classes", tree_entry(entry.config, {}, shared))


def leaves_of(config: ClassesConfig, network: Network) -> list[Leaf]:
    """All leaves, in the order in which they are tried. Raises ConfigError."""
    taken: dict[int, str] = {}
    leaves: list[Leaf] = []
    count = 0
    for path, rules in _leaves(config.tree, "", None, network):
        count += len(rules)
        if count > MAX_RULES:
            raise ConfigError(TOO_MANY)
        leaves.append(Leaf(path, _mark(path, taken), rules))
    return leaves


def _leaves(
    tree: Mapping[str, ClassConfig],
    above: str,
    outer: list[dict[str, Any]] | None,
    network: Network,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Leaves with their rules; outer: one of these holds for all, None: no condition. Those without
    a match are tried last: they get what their siblings leave."""
    for name, each in sorted(tree.items(), key=lambda item: not item[1].match):
        path = f"{above}{name}"
        rules = outer
        if each.match:
            own = [
                conditions_of(path, match, network)
                for match in each.match
                if match.sender is None or not network.lacks(match.sender)
            ]
            # Each of a class's matches with each of its parent's: with eight levels, a small file
            # could ask for more than there is memory.
            if outer is not None and len(outer) * len(own) > MAX_RULES:
                raise ConfigError(f"{path}: {TOO_MANY}")
            rules = own if outer is None else [_both(path, a, b) for a in outer for b in own]
        if each.tree:
            yield from _leaves(each.tree, f"{path}/", rules, network)
        else:
            yield path, list(rules or [])


def _both(path: str, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    for key in first.keys() & second.keys():
        if first[key] != second[key]:
            raise ConfigError(
                f"{path}: its {key} and that of its parent exclude each other: expected one of them"
            )
    return {**first, **second}


def conditions_of(path: str, match: MatchConfig, network: Network) -> dict[str, Any]:
    """A match as the conditions of a Classifier's rule. path: for errors. Raises ConfigError."""
    conditions = match.conditions
    if match.sender is None:
        return conditions
    if match.sender not in network.nics:
        hint = did_you_mean(match.sender, list(network.nics)) if network.nics else "there are none"
        raise ConfigError(f"{path}: there is no NIC {match.sender}; {hint}")
    if "source_mac" in conditions:
        raise ConfigError(f"{path}: has sender and source_mac: expected one of them")
    return {**conditions, "source_mac": network.nics[match.sender]}


def _mark(path: str, taken: dict[int, str]) -> int:
    """A mark for a path, 1 to MARK_MOST, the same for the same path unless another one has it."""
    digest = hashlib.blake2b(path.encode(), digest_size=4).digest()
    mark = int.from_bytes(digest, "little") % MARK_MOST + 1
    while mark in taken:
        mark = mark % MARK_MOST + 1
    taken[mark] = path
    return mark


# -- what it means ---------------------------------------------------------------------------------


def check_classes(entry: ClassEntry, network: Network) -> Iterator[Finding]:
    """What one place's classes come to."""
    try:
        leaves = leaves_of(entry.config, network)
    except ConfigError as error:
        yield Finding("error", entry.where, f"{entry.key}: {error}")
        return
    matched = {leaf.path for leaf in leaves if leaf.rules}
    unused = [each.path for each in leaves if each.path not in {entry.config.default, *matched}]
    for path in unused[:UNUSED_MOST]:
        text = f"{entry.key}: {path} gets no packets: expected match, or default: {path}"
        yield Finding("warning", entry.where, text)
    if len(unused) > UNUSED_MOST:
        text = f"{entry.key}: {len(unused) - UNUSED_MOST} more classes get no packets"
        yield Finding("warning", entry.where, text)
    seen: list[dict[str, Any]] = []
    for leaf in leaves:
        for rule in leaf.rules:
            if any(earlier.items() <= rule.items() for earlier in seen):
                yield Finding(
                    "warning", entry.where,
                    f"{entry.key}: {leaf.path}: a class before it has all packets of one match",
                )  # fmt: skip
        seen += leaf.rules
    setting = tree_setting(entry)
    for each in setting.classes[1:]:
        if each.queue is None:
            continue
        size, packets = each.queue.limits(each.effective_bps)
        if each.queue.aqm or not each.effective_bps:
            continue
        longest = min(size, packets * 1514) * 8 / each.effective_bps
        if longest > 1:
            yield Finding(
                "warning", entry.where,
                f"{entry.key}: {each.path}: packets wait up to {longest:.3g}s for the rate: "
                "expected a shorter queue, or fq_codel",
            )  # fmt: skip

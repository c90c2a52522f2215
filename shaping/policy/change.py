"""A change of one line or class of a policy, as plain data, that leaves all others as they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dataplane.config.convert import did_you_mean, known_keys
from dataplane.errors import ConfigError
from shaping.policy.class_schema import ClassConfig, ClassesConfig
from shaping.policy.keys import LinkKey, parse_key
from shaping.policy.load import check_word, convert_policy
from shaping.policy.network import Network
from shaping.policy.places import Place, places_of, plan_of

Data = dict[str, Any]
Changed = Mapping[str, Any]  # settings; None: taken away
Effects = dict[tuple[Place, str], Any]  # by place and setting

# Settings of an entry that stand for others, or exclude them.
_MEANS = {
    "rtt": ("delay",),
    "preset": ("rate", "trace", "delay", "loss"),
    "rate": ("rate", "trace"),
    "trace": ("rate", "trace"),
}


def change_line(policy: Data, text: str, changed: Changed, network: Network) -> Data:
    """A policy with settings of the line `text` changed. Raises ConfigError, also where entries of
    other lines decide about the same packets, so that one entry cannot say it."""
    try:
        key = parse_key(text)
        places = {place for place, _ in places_of(key, network)}
    except ConfigError as error:
        raise ConfigError(f"{text[:80]!r}: {error}") from None
    for word in changed:
        check_word(word, (str(key), word), lambda path: "")
    links = dict(policy.get("links") or {})
    entry = {**links.get(str(key), {}), **changed}
    entry = {name: value for name, value in entry.items() if value is not None}
    others = {name: each for name, each in links.items() if name != str(key)}
    for word in (word for word, value in changed.items() if value is None):
        having = [name for name, each in others.items() if word in each]
        having = [name for name in having if places & _places(parse_key(name), network)]
        if having and word not in links.get(str(key), {}):
            raise ConfigError(f"{key}: has no {word}: {having[0]} has one for the same packets")
    made = {str(key): entry} if entry else {}
    in_place = {**policy, "links": {**links, **made} if made else others}
    if not any(places & _places(parse_key(other), network) for other in others):
        return in_place
    before = _effects(policy, network)
    last = {**policy, "links": {**others, **made}}  # where it overrides all others
    given = {word for word, value in changed.items() if value is not None}
    freed, wanted = _meant(set(changed) - given), _effects(last, network)
    for each in (in_place, last):
        found = _effects(each, network)
        if all(
            (place in places and name in freed)
            or found.get((place, name))
            == (wanted if place in places and name in _meant(given) else before).get((place, name))
            for place, name in {*before, *found, *wanted}
        ):
            return each
    raise ConfigError(
        f"{key}: cannot be changed alone, since other lines have settings for the same packets: "
        "change the file, and apply it"
    )


def _places(key: LinkKey, network: Network) -> set[Place]:
    try:
        return {place for place, _ in places_of(key, network)}
    except ConfigError:  # a name that the network has no longer
        return set()


def _meant(words: set[str]) -> set[str]:
    return {name for word in words for name in _MEANS.get(word, (word,))}


def _effects(policy: Data, network: Network) -> Effects:
    """What the lines of a policy have in the end. Raises ConfigError."""
    plan = plan_of(convert_policy(policy), network)
    return {
        (place, name): setting.value
        for place, line in plan.lines.items()
        for name, setting in line.settings.items()
    }


def change_class(policy: Data, text: str, changed: Changed) -> Data:
    """A policy with settings of the class `text` changed, such as web.egress/gold/video; web.egress
    stands for what all classes there share. Raises ConfigError."""
    place, _, path = text.partition("/")
    classes = copy.deepcopy(policy.get("classes") or {})
    if place not in classes:
        hint = did_you_mean(place, list(classes)) if classes else "the policy has no classes"
        raise ConfigError(f"{text[:80]!r}: there are no classes of {place[:80]!r}; {hint}")
    entry = classes[place]
    for name in path.split("/") if path else []:
        tree = entry.get("tree") or {}
        if name not in tree:
            hint = did_you_mean(name, list(tree)) if tree else "it has no classes"
            raise ConfigError(f"{text[:80]!r}: there is no class {name[:40]}; {hint}")
        entry = tree[name]
    known = known_keys(ClassConfig if path else ClassesConfig)
    for key, value in changed.items():
        if key not in known:
            raise ConfigError(f"{text}.{key[:40]}: unknown key; {did_you_mean(key, known)}")
        if value is None:
            entry.pop(key, None)
        else:
            entry[key] = value
    return {**policy, "classes": classes}

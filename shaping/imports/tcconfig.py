"""tcconfig: the JSON of `tcshow`, which `tcset --import-setting` reads, and `tcset` commands.

Its numbers without a unit are milliseconds and percent; its `Mbps` is a million bits a second. Of
its filters for a device and direction, the first that matches has a packet; what `--exclude-...`
names comes before them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dataplane.errors import ConfigError
from shaping.imports.filters import IPV4_ANY, IPV6_ANY, Rule
from shaping.imports.form import EGRESS, INGRESS, Draft, Names
from shaping.imports.netem import Netem
from shaping.imports.notes import Unsupported, quoted, unsupported
from shaping.imports.parts import Selection, put_selected
from shaping.imports.peers import (
    command_lines,
    located,
    milliseconds,
    number_text,
    options_of,
    same_names,
    settings_of,
    share,
)
from shaping.imports.quantities import whole_of
from shaping.imports.rules import condition, note_families
from shaping.imports.tc_json import values_of

_RATE = re.compile(
    r"(\d{1,12}(?:\.\d{0,9})?)\s*([kmgt]?)(i?)(?:bps|bits?(?:/|\s?per\s?)s(?:ec(?:ond)?)?)",
    re.ASCII | re.IGNORECASE,
)
_VALUED = same_names(
    "rate|bandwidth-rate", "delay", "delay-distro", "delay-distribution", "loss", "duplicate",
    "corrupt", "reordering", "limit", "shaping-algo", "mtu", "burst", "direction",
    "network|dst-network", "src-network", "port|dst-port", "src-port", "exclude-dst-network",
    "exclude-src-network", "exclude-dst-port", "exclude-src-port", "src-container",
    "dst-container",
)  # fmt: skip
_FLAGS = same_names("tc-command", "tc-script", "debug", "quiet", "overwrite", "change", "add",
                    "iptables", "ipv6", "docker")  # fmt: skip
_KEYS = {"rate", "delay", "delay-distro", "delay-distribution", "loss", "duplicate", "corrupt",
         "reordering", "limit", "filter_id"}  # fmt: skip
_FILTERS = {"dst-network": "destination", "src-network": "source", "dst-port": "destination_port",
            "src-port": "source_port", "protocol": "protocol"}  # fmt: skip
_FAMILIES = {"ip": IPV4_ANY, "ipv6": IPV6_ANY}
_EXCLUDE = "exclude-"
_EXCLUDED = tuple(f"{_EXCLUDE}{name}" for name in _FILTERS if name != "protocol")
_CONTAINERS = ("src-container", "dst-container")
_ANYWHERE = ("0.0.0.0/0", "::/0", "anywhere", "")
NETEM_LIMIT = 1000


def read_tcconfig(text: str, name: str, names: Names) -> Draft:
    """Raises ConfigError."""
    draft = Draft(notes=names.notes)
    rules = _Rules(names, draft)
    if text.lstrip()[:1] == "{":
        for value in values_of(text, name):
            _read(value, name, rules)
    else:
        for where, words in command_lines(text, name, "tcset"):
            _command(where, words, rules)
    rules.put()
    return draft


def _read(value: Any, name: str, rules: _Rules) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: expected the JSON of tcshow")
    for device, ways in value.items():
        if not isinstance(ways, Mapping):
            raise ConfigError(f"{name}: {quoted(device)}: expected outgoing and incoming")
        for way, filters in ways.items():
            where = f"{name}: {str(device)[:40]}.{str(way)[:20]}"
            if way not in ("outgoing", "incoming") or not isinstance(filters, Mapping):
                raise ConfigError(f"{where}: expected outgoing and incoming")
            for matched, settings in filters.items():
                if not isinstance(settings, Mapping) or settings.keys() - _KEYS:
                    raise ConfigError(f"{where}: {quoted(matched)}: expected keys of tcshow")
                conditions = dict(
                    part.strip().partition("=")[::2] for part in str(matched).split(",")
                )
                rules.add(where, str(device), way, conditions, settings)


def _command(where: str, words: list[str], rules: _Rules) -> None:
    options = options_of(where, words, _VALUED, _FLAGS)
    if len(options.rest) != 1:
        raise ConfigError(f"{where}: tcset: expected one device")
    given = options.options
    device = options.rest[0]
    if "overwrite" in given:
        rules.remove(where, device)
    conditions = {
        {"network": "dst-network", "port": "dst-port"}.get(name, name): value
        for name, value in given.items()
        if name in ("network", "src-network", "port", "src-port", *_EXCLUDED, *_CONTAINERS)
    }
    if "ipv6" in given:
        conditions["protocol"] = "ipv6"
    settings = {name: value for name, value in given.items() if name in _KEYS}
    rules.add(where, device, given.get("direction", "outgoing"), conditions, settings,
              change="change" in given)  # fmt: skip


class _Rules:
    """What filters select, by NIC and direction, in the order in which they are tried."""

    def __init__(self, names: Names, draft: Draft) -> None:
        self.names, self.draft = names, draft
        self.excluded: dict[tuple[str, str], list[Selection]] = {}
        self.found: dict[tuple[str, str], list[Selection]] = {}
        self.numbers: dict[tuple[Any, ...], int] = {}  # by place and rule

    def place(self, where: str, device: str, way: str) -> tuple[str, str]:
        if way not in ("outgoing", "incoming"):
            raise ConfigError(f"direction {quoted(way)}: expected outgoing or incoming")
        nic = self.names.nic(device.partition(" ")[0], where)
        return nic, EGRESS if way == "outgoing" else INGRESS

    def remove(self, where: str, device: str) -> None:
        """All that earlier commands have told of a device."""
        for way in ("outgoing", "incoming"):
            place = self.place(where, device, way)
            self.excluded.pop(place, None)
            self.found.pop(place, None)
        self.numbers = {key: each for key, each in self.numbers.items() if key[:2] in self.found}

    def add(
        self, where: str, device: str, way: str, conditions: dict[str, str],
        settings: Mapping[str, Any], *, change: bool = False,
    ) -> None:  # fmt: skip
        """Adds what one filter selects. change: in place of what it has selected so far."""
        notes = self.draft.notes
        try:
            place = self.place(where, device, way)
            excluded = {name: conditions.pop(name) for name in _EXCLUDED if name in conditions}
            rule = _rule(conditions)
            netem, rate = _values(settings, where)
            notes.note(
                where,
                "tcconfig calls delay and loss round trip, and applies them in one direction, as "
                "here",
            )
            line = settings_of(netem, rate, where, notes)
            if excluded:
                without = _rule({name[len(_EXCLUDE) :]: value for name, value in excluded.items()})
                self.excluded.setdefault(place, []).append(Selection(where, [without], {}))
        except Unsupported as error:
            notes.refuse(where, error)
            return
        except ConfigError as error:
            raise located(where, error) from None
        known = self.found.setdefault(place, [])
        note_families(rule, where, notes)
        selection = Selection(where, [rule], line)
        number = self.numbers.setdefault((*place, frozenset(rule.items())), len(known))
        if change and number < len(known):
            known[number] = selection
        else:
            known.append(selection)

    def put(self) -> None:
        for (nic, direction), found in self.found.items():
            excluded = self.excluded.get((nic, direction), [])
            selections = [*excluded, *found]
            put_selected(self.draft, nic, direction, selections, self.names.of_address)


def _rule(conditions: Mapping[str, str]) -> Rule:
    """The rule for the conditions of a filter; without any it is for all packets of a family.
    Raises ConfigError."""
    rule: Rule = {}
    family = _FAMILIES["ip"]
    for name, value in conditions.items():
        if name == "protocol" and value in _FAMILIES:
            family = _FAMILIES[value]
        elif name in _CONTAINERS:
            raise unsupported(
                f"tcset --{name} {value[:60]}",
                "Docker knows its address: write --network or --src-network ADDRESS",
            )
        elif name and name not in _FILTERS:
            raise ConfigError(f"filter {quoted(name)}: expected {', '.join(_FILTERS)}")
        elif name and value not in _ANYWHERE:
            rule[_FILTERS[name]] = condition(name, _FILTERS[name], value)
    return rule or {"destination": family}


def _values(settings: Mapping[str, Any], where: str) -> tuple[Netem, int]:
    netem = Netem(limit=NETEM_LIMIT)
    rate = 0
    for key, value in settings.items():
        if key == "rate":
            rate = rate_of(value)
        elif key == "delay":
            netem.delay = _time(key, value)
        elif key == "delay-distro":
            netem.jitter = _time(key, value)
            netem.distribution = netem.distribution or "normal"
        elif key == "delay-distribution":
            netem.distribution = number_text(key, value)
        elif key in ("loss", "duplicate", "corrupt"):
            setattr(netem, key, share(key, value))
        elif key == "reordering":
            netem.reorder = share(key, value)
        elif key == "limit":
            netem.limit = whole_of("limit", number_text("limit", value)) or NETEM_LIMIT
    netem.distribution = netem.distribution if netem.jitter else ""
    netem.check()
    return netem, rate


def _time(what: str, value: Any) -> int:
    text = number_text(what, value)
    for unit, factor in (("min", 60), ("hour", 3600), ("h", 3600), ("m", 60)):
        number = text.removesuffix("s").removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit() and not text.endswith("ms"):
            return int(float(number) * factor * 10**9)
    return milliseconds(what, text)


def rate_of(value: Any) -> int:
    """bit/s of "250Kbps", "10 mbit/s". Raises ConfigError."""
    text = number_text("rate", value)
    match = _RATE.fullmatch(text)
    if match is None:
        raise ConfigError(f"rate {quoted(text)}: expected a rate such as 10Mbps")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))

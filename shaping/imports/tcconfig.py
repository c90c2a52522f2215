"""tcconfig: the JSON of `tcshow`, which `tcset --import-setting` reads, and `tcset` commands.

Its numbers without a unit are milliseconds and percent; its `Mbps` is a million bits a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dataplane.errors import ConfigError
from shaping.imports.form import Draft, Names, line_key
from shaping.imports.netem import Netem
from shaping.imports.notes import Unsupported, quoted, unsupported
from shaping.imports.peers import (
    command_lines,
    located,
    milliseconds,
    number_text,
    options_of,
    put,
    same_names,
    share,
)
from shaping.imports.quantities import whole_of
from shaping.imports.tc_json import values_of
from shaping.policy.keys import ANY

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
_FILTERS = ("dst-network", "src-network", "dst-port", "src-port", "protocol")
_ANYWHERE = ("0.0.0.0/0", "::/0", "anywhere", "")
NETEM_LIMIT = 1000


def read_tcconfig(text: str, name: str, names: Names) -> Draft:
    """Raises ConfigError."""
    draft = Draft(notes=names.notes)
    if text.lstrip()[:1] == "{":
        for value in values_of(text, name):
            _read(value, name, names, draft)
    else:
        for where, words in command_lines(text, name, "tcset"):
            _command(where, words, names, draft)
    return draft


def _read(value: Any, name: str, names: Names, draft: Draft) -> None:
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
                _line(str(device), way, conditions, settings, where, names, draft)


def _command(where: str, words: list[str], names: Names, draft: Draft) -> None:
    options = options_of(where, words, _VALUED, _FLAGS)
    if len(options.rest) != 1:
        raise ConfigError(f"{where}: tcset: expected one device")
    given = options.options
    for name in given:
        if name.startswith("exclude-") or name.endswith("-container"):
            draft.notes.refuse(
                where, unsupported(f"tcset --{name}", "a line is for all packets between two NICs")
            )
    conditions = {
        {"network": "dst-network", "port": "dst-port"}.get(name, name): value
        for name, value in given.items()
        if name in ("network", "src-network", "port", "src-port")
    }
    settings = {name: value for name, value in given.items() if name in _KEYS}
    way = given.get("direction", "outgoing")
    _line(options.rest[0], way, conditions, settings, where, names, draft)


def _line(
    device: str, way: str, conditions: dict[str, str], settings: Mapping[str, Any], where: str,
    names: Names, draft: Draft,
) -> None:  # fmt: skip
    try:
        nic = names.nic(device.partition(" ")[0], where)
        direction = "egress" if way == "outgoing" else "ingress"
        other = _other(conditions, direction, where, names)
        netem, rate = _values(settings, where)
        draft.notes.note(
            where,
            "tcconfig calls delay and loss round trip, and applies them in one direction, as here",
        )
        put(draft, line_key(nic, direction, other), netem, rate, where)
    except Unsupported as error:
        draft.notes.refuse(where, error)
    except ConfigError as error:
        raise located(where, error) from None


def _other(conditions: dict[str, str], direction: str, where: str, names: Names) -> str:
    given = {
        key: value for key, value in conditions.items()
        if key and value not in _ANYWHERE and not (key == "protocol" and value in ("ip", "ipv6"))
    }  # fmt: skip
    if unknown := given.keys() - set(_FILTERS):
        raise ConfigError(f"{where}: filter {quoted(next(iter(unknown)))}: expected "
                          f"{', '.join(_FILTERS)}")  # fmt: skip
    if not given:
        return ANY
    address = given.pop("dst-network", None) or given.pop("src-network", None)
    if given or address is None:
        raise unsupported(
            f"a line for packets with {', '.join(given or conditions)}",
            "a line is for all packets between two NICs",
        )
    found = names.of_address(address)
    if found is None:
        raise unsupported(
            f"a line for {address}",
            f"no NIC is known to have it: write --map {address.partition('/')[0]}=NIC",
        )
    return found


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

"""wondershaper: its command lines, old (`wondershaper eth0 1024 512`) and new, and its file
wondershaper.conf. Rates are in kbit/s.

What is sent gets three classes with 20, 40 and 20 % of the rate, up to 95, 95 and 90 %; the first
is for interactive packets. What is received gets the rate."""

from __future__ import annotations

import re
from typing import Any

from dataplane.errors import ConfigError
from dataplane.units import format_rate
from shaping.imports.form import EGRESS, INGRESS, Draft, Names, Settings, line_key
from shaping.imports.notes import Unsupported, quoted
from shaping.imports.peers import command_lines, kilobits, located, options_of, same_names
from shaping.imports.quantities import line_rate

_VALUED = same_names("a", "d", "u", "f")
_FLAGS = same_names("c", "s", "p", "v", "h", "q")
_SET = re.compile(r"\s*([A-Z]+)=(\([^)]*\)|\"[^\"]*\"|'[^']*'|[^\s;#]*)[\s;]*(?:#.*)?", re.ASCII)
_LISTS = {"HIPRIODST": ("interactive", "destination"), "NOPRIOHOSTDST": ("low", "destination"),
          "NOPRIOHOSTSRC": ("low", "source"), "NOPRIOPORTDST": ("low", "destination_port"),
          "NOPRIOPORTSRC": ("low", "source_port")}  # fmt: skip
ITEMS_MOST = 1000


def read_wondershaper(text: str, name: str, names: Names) -> Draft:
    """Raises ConfigError."""
    draft = Draft(notes=names.notes)
    if re.search(r"^[ \t]*(?:IFACE|DSPEED|USPEED)=", text, re.MULTILINE | re.ASCII):
        _shape(name, _file(text, name), names, draft)
        return draft
    for where, words in command_lines(text, name, "wondershaper"):
        options = options_of(where, words, _VALUED, _FLAGS)
        given: dict[str, Any] = {
            key: options.options.get(option)
            for key, option in (("IFACE", "a"), ("DSPEED", "d"), ("USPEED", "u"))
        }
        if options.options.keys() & {"s", "v", "h", "q", "p", "f"}:
            raise ConfigError(f"{where}: wondershaper: expected -a DEVICE -d RATE -u RATE")
        if "c" in options.options or options.rest[:1] == ["clear"]:
            draft.links.clear()
            draft.classes.clear()
            continue
        if len(options.rest) == 3:
            given = dict(zip(("IFACE", "DSPEED", "USPEED"), options.rest, strict=True))
        elif options.rest:
            raise ConfigError(f"{where}: wondershaper: expected DEVICE DOWN UP")
        _shape(where, given, names, draft)
    return draft


def _file(text: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.strip().startswith(("#", "[")):
            continue
        match = _SET.fullmatch(line[:4096])
        if match is None:
            raise ConfigError(f"{name}:{number}: {quoted(line.strip())}: expected NAME=VALUE")
        value = match[2]
        if value.startswith("("):
            found[match[1]] = value[1:-1].split()
        else:
            found[match[1]] = value.strip("\"'")
    return found


def _shape(where: str, given: dict[str, Any], names: Names, draft: Draft) -> None:
    try:
        nic = names.nic(given.get("IFACE") or "", where)
        down = kilobits("download", given.get("DSPEED"))
        up = kilobits("upload", given.get("USPEED"))
        if not down and not up:
            raise ConfigError("wondershaper: has no rate: expected -d or -u")
        if down:
            line = {"rate": line_rate("download", down)}
            draft.add_line(line_key(nic, INGRESS), line, where)
        if up:
            draft.classes[f"{nic}.{EGRESS}"] = _classes(up, given)
            draft.notes.note(
                where, "wondershaper also puts acknowledgements of less than 64 bytes into its "
                "first class: rules do not know lengths"
            )  # fmt: skip
    except Unsupported as error:
        draft.notes.refuse(where, error)
    except ConfigError as error:
        raise located(where, error) from None


def _classes(up: int, given: dict[str, Any]) -> Settings:
    rules: dict[str, list[Settings]] = {"interactive": [{"dscp": 4}, {"protocol": "icmp"}],
                                        "low": []}  # fmt: skip
    for key, (name, condition) in _LISTS.items():
        items = given.get(key) or []
        if not isinstance(items, list) or len(items) > ITEMS_MOST:
            raise ConfigError(f"{key}: expected a list such as (80 443)")
        rules[name] += [{condition: each} for each in items]

    def leaf(name: str, share: int, ceiling: int, priority: int) -> Settings:
        found: Settings = {}
        if rules.get(name):
            found["match"] = rules[name]
        found["guarantee"] = format_rate(max(up * share // 100, 1000))
        found["ceiling"] = format_rate(max(up * ceiling // 100, 1000))
        return {**found, "weight": share // 20, "priority": priority, "queue": "fq"}

    return {
        "rate": line_rate("upload", up),
        "default": "bulk",
        "tree": {
            "interactive": leaf("interactive", 20, 95, 1),
            "low": leaf("low", 20, 90, 3),
            "bulk": leaf("bulk", 40, 95, 2),
        },
    }

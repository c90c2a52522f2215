"""Augmented Traffic Control: the JSON of a profile, or of its API.

Rates are in kbit/s, times in ms, shares in percent. `up` is what a device sends. With
`iptables_options` it is what one of these matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataplane.elements.classifier_rules import MAX_RULES
from dataplane.errors import ConfigError
from shaping.imports.filters import Rule
from shaping.imports.form import EGRESS, INGRESS, Draft, Names
from shaping.imports.netem import Netem
from shaping.imports.notes import Unsupported, quoted, unsupported
from shaping.imports.parts import Selection, put_selected
from shaping.imports.peers import kilobits, milliseconds, number_text, settings_of, share
from shaping.imports.quantities import whole_of
from shaping.imports.rules import condition, note_families
from shaping.imports.tc_json import values_of
from shaping.imports.words import Words

PROFILES_MOST = 64
_CONDITIONS = {
    name: key for key, names in {
        "protocol": "-p --protocol", "source": "-s --source --src",
        "destination": "-d --destination --dst",
        "source_port": "--sport --source-port --sports --source-ports",
        "destination_port": "--dport --destination-port --dports --destination-ports",
    }.items() for name in names.split()
}  # fmt: skip
_MODULES = ("tcp", "udp", "sctp", "multiport")
_PARTS = {"rate", "delay", "loss", "corruption", "reorder", "iptables_options"}


def read_atc(text: str, name: str, names: Names) -> Draft:
    """Raises ConfigError."""
    draft = Draft(notes=names.notes)
    values = values_of(text, name)
    if len(values) > PROFILES_MOST:
        raise ConfigError(f"{name}: more than {PROFILES_MOST} profiles: expected one")
    for value in values:
        content = value.get("content", value) if isinstance(value, Mapping) else None
        if not isinstance(content, Mapping) or not content.keys() & {"up", "down"}:
            raise ConfigError(f"{name}: expected a profile of ATC, with up and down")
        nic = names.nic("", name, "device")
        for way, direction in (("up", EGRESS), ("down", INGRESS)):
            if way not in content:
                continue
            where = f"{name}: {way}"
            try:
                netem, rate = _values(content[way])
                line = settings_of(netem, rate, where, draft.notes)
                rules = _rules(content[way].get("iptables_options") or [])
                for rule in rules:
                    note_families(rule, where, draft.notes)
                found = Selection(where, rules or [{}], line)
                put_selected(draft, nic, direction, [found], names.of_address)
            except Unsupported as error:
                draft.notes.refuse(where, error)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
    return draft


def _values(data: Any) -> tuple[Netem, int]:
    if not isinstance(data, Mapping) or data.keys() - _PARTS:
        raise ConfigError(f"{quoted(data)}: expected {', '.join(sorted(_PARTS))}")
    netem = Netem()
    delay = _part(data, "delay")
    netem.delay = milliseconds("delay", delay.get("delay", 0))
    netem.jitter = milliseconds("jitter", delay.get("jitter") or 0)
    if netem.jitter:
        netem.delay_correlation = share("delay correlation", delay.get("correlation") or 0)
    for key, field in (("loss", "loss"), ("corruption", "corrupt"), ("reorder", "reorder")):
        part = _part(data, key)
        setattr(netem, field, share(key, part.get("percentage") or 0))
        if getattr(netem, field):
            correlation = share(f"{key} correlation", part.get("correlation") or 0)
            setattr(netem, f"{field}_correlation", correlation)
        if key == "reorder" and netem.reorder:
            netem.gap = whole_of("reorder gap", number_text("gap", part.get("gap") or 0))
    netem.check()
    return netem, kilobits("rate", data.get("rate"))


def _part(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = data.get(key) or {}
    if not isinstance(part, Mapping):
        raise ConfigError(f"{key} {quoted(part)}: expected a mapping")
    return part


def _rules(options: Any) -> list[Rule]:
    """The packets that one of the options of iptables matches. Raises ConfigError."""
    if not isinstance(options, list) or len(options) > MAX_RULES:
        raise ConfigError(
            f"iptables_options {quoted(options)}: expected a list of at most {MAX_RULES}"
        )
    found: list[Rule] = []
    for each in options:
        found += _of_option(str(each))
        if len(found) > MAX_RULES:
            raise unsupported("iptables_options", f"expected at most {MAX_RULES} ports in all")
    return found


def _of_option(text: str) -> list[Rule]:
    words = Words(text.split(), "iptables_options")
    rules: list[Rule] = [{}]
    while words:
        word = words.take()
        value = words.value(word)
        if word in ("-m", "--match") and value in _MODULES:
            continue
        if word not in _CONDITIONS:
            raise unsupported(
                f"iptables_options {quoted(word)}", "expected -p, -s, -d, --sport or --dport"
            )
        key = _CONDITIONS[word]
        if key.endswith("_port"):
            value = value.replace(":", "-")
        values = [condition(word, key, each) for each in value.split(",")]
        rules = [{**rule, key: each} for rule in rules for each in values]
        if len(rules) > MAX_RULES:
            raise unsupported("iptables_options", f"expected at most {MAX_RULES} ports in all")
    return rules

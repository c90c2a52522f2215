"""Augmented Traffic Control: the JSON of a profile, or of its API.

Rates are in kbit/s, times in ms, shares in percent. `up` is what a device sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataplane.errors import ConfigError
from shaping.imports.form import EGRESS, INGRESS, Draft, Names, line_key
from shaping.imports.netem import Netem
from shaping.imports.notes import Unsupported, quoted
from shaping.imports.peers import kilobits, milliseconds, number_text, put, share
from shaping.imports.quantities import whole_of
from shaping.imports.tc_json import values_of

PROFILES_MOST = 64
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
                netem, rate = _values(content[way], where, draft)
                put(draft, line_key(nic, direction), netem, rate, where)
            except Unsupported as error:
                draft.notes.refuse(where, error)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
    return draft


def _values(data: Any, where: str, draft: Draft) -> tuple[Netem, int]:
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
    if data.get("iptables_options"):
        draft.notes.warn(where, "iptables_options: left out: the line is for all packets")
    return netem, kilobits("rate", data.get("rate"))


def _part(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = data.get(key) or {}
    if not isinstance(part, Mapping):
        raise ConfigError(f"{key} {quoted(part)}: expected a mapping")
    return part

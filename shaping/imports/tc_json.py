"""What `tc -j qdisc show`, `tc -j class show` and `tc -j filter show` print.

JSON has rates in bytes a second, times in seconds or microseconds and shares from 0 to 1. It is
turned into the words of a listing, which are read as such. Several outputs may follow each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from dataplane.errors import ConfigError
from dataplane.units import format_time
from shaping.imports.notes import Notes, Unsupported, quoted, unsupported
from shaping.imports.tc_commands import class_options, filter_options, qdisc_options
from shaping.imports.tc_objects import (
    EGRESS_HOOK,
    HOOKS,
    INGRESS,
    INGRESS_HOOK,
    ROOT,
    Devices,
    Filter,
    Qdisc,
    TcClass,
    classid_of,
    handle_of,
)
from shaping.imports.tc_show import DEFAULTS
from shaping.imports.words import Words

OBJECTS_MOST = 100_000
NAME_MOST = 64  # characters of a device's name


def values_of(text: str, name: str) -> list[Any]:
    """The JSON values of a text, one after the other. Raises ConfigError."""
    found: list[Any] = []
    decoder = json.JSONDecoder(object_pairs_hook=_pairs)
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            raise ConfigError(f"{name}:{line}: no JSON: {error.args[0][:80]}") from None
        except RecursionError:
            raise ConfigError(f"{name}: no JSON of tc: too deep") from None
        found.append(value)
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; tc prints the keys of a u32 filter as one key several times."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key == "match" and key in found:
            before = found[key] if isinstance(found[key], list) else [found[key]]
            value = [*before, value]
        found[key] = value
    return found


def read_json(text: str, name: str, notes: Notes) -> Devices:
    """Raises ConfigError."""
    devices = Devices(checked=False)
    objects = [each for value in values_of(text, name)
               for each in (value if isinstance(value, list) else [value])]  # fmt: skip
    if len(objects) > OBJECTS_MOST:
        raise ConfigError(f"{name}: more than {OBJECTS_MOST} objects: expected fewer")
    for number, each in enumerate(objects):
        where = f"{name}: object {number}"
        try:
            _read(each, where, devices)
        except Unsupported as error:
            notes.refuse(where, error)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return devices


def _read(each: Any, where: str, devices: Devices) -> None:
    if not isinstance(each, Mapping):
        raise ConfigError(f"{quoted(each)}: expected an object of tc -j show")
    if not each:
        return
    device = devices.of(_text(each, "dev", "")[:NAME_MOST].partition("@")[0])
    parent = _parent(each)
    if "class" in each:
        kind = _text(each, "class")
        if kind not in ("htb", "hfsc"):
            return
        classid = classid_of(_text(each, "handle"))
        if kind == "hfsc":
            raise unsupported("hfsc in JSON", "import the text of tc class show")
        options = class_options(kind, Words(_htb_class(each), "htb class"), shown=True)
        device.add_class("replace", TcClass(where, kind, classid, parent, options))
        return
    kind = _text(each, "kind")
    options = each.get("options", {})
    if not isinstance(options, Mapping):
        raise ConfigError(f"options {quoted(options)}: expected an object")
    if "protocol" in each or "pref" in each:
        _filter(each, options, kind, parent, where, devices)
        return
    if kind in ("ingress", "clsact"):
        device.qdiscs[INGRESS] = Qdisc(where, kind, HOOKS << 16, INGRESS)
        return
    handle = handle_of(_text(each, "handle"))
    if not handle and kind in DEFAULTS:
        return
    words = _WORDS.get(kind, _plain)(options)
    found = qdisc_options(kind, Words(words, kind), shown=True)
    device.add_qdisc("replace", Qdisc(where, kind, handle, parent, found))


def _text(each: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = each.get(key, default)
    if not isinstance(value, str):
        raise ConfigError(f"{key} {quoted(value)}: expected text")
    return value


def _parent(each: Mapping[str, Any]) -> int:
    if each.get("root") is True:
        return ROOT
    if each.get("ingress") is True:
        return INGRESS_HOOK
    if each.get("egress") is True:
        return EGRESS_HOOK
    return classid_of(_text(each, "parent")) if "parent" in each else 0


def _number(value: Any, what: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e20:
        raise ConfigError(f"{what} {quoted(value)}: expected a number")
    return Fraction(value)


def _rate(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{int(_number(value, 'rate')) * 8}bit"


def _seconds(value: Any) -> str:
    return format_time(round(_number(value, "time") * 10**9))


def _microseconds(value: Any) -> str:
    return format_time(int(_number(value, "time")) * 1000)


def _share(value: Any) -> str:
    """A share as a percentage; the kernel has it in 32 bits, which nine digits tell."""
    return f"{float(_number(value, 'share')) * 100:.9f}%"


def _netem(options: Mapping[str, Any]) -> list[str]:
    words = ["limit", str(options.get("limit", 1000))]
    delay = _mapping(options, "delay")
    if delay:
        words += ["delay", _seconds(delay.get("delay", 0)), _seconds(delay.get("jitter", 0))]
        words += [_share(delay["correlation"])] if delay.get("correlation") else []
    for key, name in (("loss-random", "loss"), ("duplicate", "duplicate"), ("reorder", "reorder"),
                      ("corrupt", "corrupt")):  # fmt: skip
        part = _mapping(options, key)
        if part:
            words += [name, _share(part.get(name, 0))]
            words += [_share(part["correlation"])] if part.get("correlation") else []
    for key, model, names in (
        ("loss-state", "state", ("p13", "p31", "p32", "p23", "p14")),
        ("loss-gemodel", "gemodel", ("p", "r", "1-h", "1-k")),
    ):
        part = _mapping(options, key)
        if part:
            words += ["loss", model, *(_share(part.get(name, 0)) for name in names)]
    rate = _mapping(options, "rate")
    if rate:
        words += ["rate", _rate(rate.get("rate", 0))]
        words += [str(rate.get(name, 0)) for name in ("packetoverhead", "cellsize", "celloverhead")]
    if _mapping(options, "slot"):
        words += ["slot", "1us"]
    if "seed" in options:
        words += ["seed", str(options["seed"])]
    words += ["ecn"] if options.get("ecn") else []
    words += ["gap", str(options["gap"])] if options.get("gap") else []
    return words


def _mapping(options: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = options.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} {quoted(value)}: expected an object")
    return value


def _tbf(options: Mapping[str, Any]) -> list[str]:
    words = ["rate", _rate(options.get("rate", 0)), "burst", str(options.get("burst", 0))]
    if "lat" in options:
        words += ["latency", _microseconds(options["lat"])]
    for name in ("limit", "mpu", "overhead", "linklayer"):
        words += [name, str(options[name])] if name in options else []
    return words


def _htb(options: Mapping[str, Any]) -> list[str]:
    return ["default", str(options.get("default", 0)), "r2q", str(options.get("r2q", 10))]


def _htb_class(each: Mapping[str, Any]) -> list[str]:
    words = ["rate", _rate(each.get("rate", 0)), "ceil", _rate(each.get("ceil", 0))]
    for name in ("prio", "quantum", "overhead", "linklayer", "burst", "cburst"):
        words += [name, str(each[name])] if name in each else []
    return words


def _prio(options: Mapping[str, Any]) -> list[str]:
    priomap = options.get("priomap", [])
    if not isinstance(priomap, list):
        raise ConfigError(f"priomap {quoted(priomap)}: expected a list")
    mapped = ["priomap", *map(str, priomap)] if priomap else []
    return ["bands", str(options.get("bands", 3)), *mapped]


_TIMES = ("target", "interval", "rtt", "ce_threshold")
_RATES = ("bandwidth", "maxrate", "defrate", "low_rate_threshold")
_NAMED = ("diffserv", "flowmode", "atm")
_LEFT_OUT = ("refill_delay", "timer_slack", "horizon", "offload_horizon", "bands", "priomap",
             "weights", "ack-filter", "fwmark", "autorate", "horizon_drop", "horizon_cap",
             "ingress", "raw", "split_gso", "nat", "wash", "pacing")  # fmt: skip


def _plain(options: Mapping[str, Any]) -> list[str]:
    """Options that are names and numbers."""
    words: list[str] = []
    for name, value in options.items():
        if name in _LEFT_OUT:
            continue
        if name in _NAMED:
            words.append(str(value))
        elif isinstance(value, bool) or value is None:
            words += [name] if value is not False else []
        elif name in _TIMES:
            words += [name, _microseconds(value)]
        elif name in _RATES:
            words += [name, _rate(value)]
        else:
            words += [name, str(value)]
    return words


_WORDS = {"netem": _netem, "tbf": _tbf, "htb": _htb, "hfsc": _htb, "prio": _prio}


def _filter(
    each: Mapping[str, Any], options: Mapping[str, Any], kind: str, parent: int, where: str,
    devices: Devices,
) -> None:  # fmt: skip
    if not options or "ht_divisor" in options:
        return
    pref = each.get("pref", 0)
    if type(pref) is not int or not 0 <= pref <= 0xFFFF:
        raise ConfigError(f"pref {quoted(pref)}: expected 0 to 65535")
    found = Filter(where, kind, parent, pref, _text(each, "protocol", "all"))
    words: list[str] = []
    flowid = options.get("flowid", options.get("classid"))
    words += ["flowid", str(flowid)] if flowid is not None else []
    if kind == "u32":
        words += _u32(options)
    elif kind == "flower":
        for key, value in _mapping(options, "keys").items():
            words += [key, str(value)]
    words += _actions(options.get("actions", []))
    filter_options(found, Words(words, kind), shown=True)
    if parent == HOOKS << 16 or (not parent and (found.redirect or found.police)):
        found.parent = INGRESS_HOOK
    devices.of(_text(each, "dev", "")[:NAME_MOST]).add_filter("add", found)


def _u32(options: Mapping[str, Any]) -> Iterator[str]:
    match = options.get("match", [])
    for each in match if isinstance(match, list) else [match]:
        if not isinstance(each, Mapping) or not {"value", "mask", "off"} <= each.keys():
            raise ConfigError("match: expected value, mask and off")
        yield from ("match", "u32", f"0x{str(each['value']).removeprefix('0x')}")
        yield from (str(each["mask"]), "at", f"{each.get('offmask', '')}{each['off']}")


def _actions(actions: Any) -> list[str]:
    words: list[str] = []
    for each in actions if isinstance(actions, list) else []:
        kind = each.get("kind") if isinstance(each, Mapping) else None
        if kind == "mirred":
            words += ["action", "mirred", str(each.get("direction")),
                      str(each.get("mirred_action")), "dev", str(each.get("to_dev"))]  # fmt: skip
        elif kind == "gact":
            verdict = _mapping(each, "control_action").get("type")
            words += ["action", str(verdict)]
        else:
            raise unsupported(f"action {quoted(kind)} in JSON", "import tc filter show's text")
    return words

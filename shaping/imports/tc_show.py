"""What `tc qdisc show`, `tc class show` and `tc filter show` print, with or without -s and -d."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dataplane.errors import ConfigError
from shaping.imports.classful import parse_stab
from shaping.imports.notes import Notes, Unsupported, quoted
from shaping.imports.shell import LINE_MOST, LINES_MOST
from shaping.imports.tc_commands import class_options, filter_options, qdisc_options
from shaping.imports.tc_objects import (
    EGRESS_HOOK,
    HOOKS,
    INGRESS,
    INGRESS_HOOK,
    ROOT,
    Device,
    Devices,
    Filter,
    Qdisc,
    TcClass,
    classid_of,
    handle_of,
)
from shaping.imports.words import Words

# qdiscs that the kernel makes by itself, with the handle 0:
DEFAULTS = ("pfifo_fast", "noqueue", "mq", "fq_codel", "fq", "pfifo", "sfq", "noop")
_BEGIN = re.compile(r"(qdisc|class|filter)\s", re.ASCII)
_COUNTED = re.compile(r"\((?:rule hit|success) [^)]*\)", re.ASCII)
_KEY = re.compile(r"\s*match (?P<value>[0-9a-f]{8})/(?P<mask>[0-9a-f]{8}) at (?P<at>\S+)", re.ASCII)
_PRETTY = re.compile(r"\s*match (?:IP |dport|sport)", re.ASCII)
_ACTION = re.compile(r"\s*action order \d+:\s*(?P<rest>.*)", re.ASCII)
_MIRRED = re.compile(
    r"mirred \((?P<way>\w+) (?P<verb>\w+) to device (?P<device>[^\s)]+)\)", re.ASCII | re.IGNORECASE
)
_FLOWER_KEY = re.compile(r"\s+(?P<key>[a-z_]+) (?P<value>\S+)\s*", re.ASCII)
_GACT = re.compile(r"gact action (?P<verdict>\w+)", re.ASCII)


def read_show(text: str, name: str, notes: Notes, devices: Devices | None = None) -> Devices:
    """devices: those that other outputs have told of. Raises ConfigError."""
    devices = Devices(checked=False) if devices is None else devices
    block: list[str] = []
    begin = 0
    for number, line in enumerate(text.split("\n"), 1):
        if number > LINES_MOST or len(line) > LINE_MOST:
            raise ConfigError(
                f"{name}:{number}: expected at most {LINES_MOST} lines of {LINE_MOST} characters"
            )
        if _BEGIN.match(line):
            _read_block(block, f"{name}:{begin}", devices, notes)
            block, begin = [line], number
        elif block:
            block.append(line)
        elif line.strip():
            raise ConfigError(
                f"{name}:{number}: {quoted(line.strip())}: expected a line of tc show"
            )
    _read_block(block, f"{name}:{begin}", devices, notes)
    notes.note(
        name, "tc show rounds times and sizes to three digits; a script has them as they were given"
    )
    return devices


def _read_block(block: list[str], where: str, devices: Devices, notes: Notes) -> None:
    if not block:
        return
    read = {"qdisc": _qdisc, "class": _class, "filter": _filter}[block[0].split()[0]]
    try:
        read(block, where, devices)
    except Unsupported as error:
        notes.refuse(where, error)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


class _Place:
    """Device, parent and the like, which a line begins with."""

    def __init__(self, words: Words, devices: Devices) -> None:
        device = ""
        self.parent = 0
        while words:
            if words.skip("dev"):
                device = words.value("dev")
            elif words.skip("root"):
                self.parent = ROOT
            elif words.skip("ingress"):
                self.parent = INGRESS_HOOK
            elif words.skip("egress"):
                self.parent = EGRESS_HOOK
            elif words.skip("parent"):
                self.parent = classid_of(words.value("parent"))
            elif words.skip("leaf", "refcnt", "ingress_block", "egress_block"):
                words.value("refcnt")
            elif not words.skip("[Unknown", "offloaded", "deleted"):
                break
        self.device: Device = devices.of(device.partition("@")[0])


def _qdisc(block: list[str], where: str, devices: Devices) -> None:
    words = Words(block[0].split(), "qdisc")
    words.take()
    kind, handle = words.take(), handle_of(words.value("handle"))
    place = _Place(words, devices)
    if kind in ("ingress", "clsact"):
        place.device.qdiscs[INGRESS] = Qdisc(where, kind, HOOKS << 16, INGRESS)
        return
    if not handle and kind in DEFAULTS:
        return
    options = qdisc_options(kind, words, shown=True)
    size = None
    for line in block[1:]:
        if line.strip().startswith("linklayer ") or line.strip().startswith("overhead "):
            size = parse_stab(Words(line.split(), "stab"))
    place.device.add_qdisc("replace", Qdisc(where, kind, handle, place.parent, options, size))


def _class(block: list[str], where: str, devices: Devices) -> None:
    words = Words(block[0].split(), "class")
    words.take()
    kind, classid = words.take(), classid_of(words.value("class"))
    place = _Place(words, devices)
    if not place.parent and kind in ("fq_codel", "cake", "sfq", "mq", "prio", "tbf", "netem"):
        return  # flows of a queue, not classes
    if kind not in ("htb", "hfsc"):
        return  # bands of prio, and the one class of tbf and netem
    options = class_options(kind, words, shown=True) if words else None
    if options is not None and classid & 0xFFFF:  # 1: is hfsc's own root
        parent = place.parent
        if kind == "hfsc" and not parent & 0xFFFF:
            parent = ROOT
        place.device.add_class("replace", TcClass(where, kind, classid, parent, options))


def _filter(block: list[str], where: str, devices: Devices) -> None:
    """One filter: its first line, its keys and its actions."""
    words = Words(_COUNTED.sub("", block[0]).split(), "filter")
    words.take()
    place = _Place(words, devices)
    protocol, pref, kind = "all", 0, ""
    while words:
        if words.skip("protocol"):
            protocol = words.value("protocol").lower()
        elif words.skip("pref"):
            pref = int(words.value("pref")) if words.next.isdigit() else 0
        elif words.skip("chain"):
            words.value("chain")
        else:
            kind = words.take()
            break
        if words.skip("root"):
            place.parent = ROOT
    # The first line of a kind has no options, and that of a table of u32 no keys.
    rest = words.words[words.at + 2 if words.next == "chain" else words.at :]
    if not rest or ("ht" in rest and "divisor" in rest):
        return
    found = Filter(where, kind, place.parent, pref, protocol)
    options: list[str] = []
    if kind == "u32":
        options = _u32_words(rest, block[1:])
    elif kind == "flower":
        options = _flower_words(rest, block[1:])
    else:
        options = _after_handle(rest)
    options += _actions(block[1:])
    filter_options(found, Words(options, kind), shown=True)
    # tc filter show dev DEV parent ffff: leaves the parent out
    if place.parent == HOOKS << 16 or (not place.parent and (found.redirect or found.police)):
        found.parent = INGRESS_HOOK
    place.device.add_filter("add", found)


def _u32_words(rest: Sequence[str], lines: list[str]) -> list[str]:
    """The words of a command for the listing of a u32 filter."""
    found: list[str] = []
    for name in ("flowid", "link"):
        if name in rest and rest.index(name) + 1 < len(rest):
            value = rest[rest.index(name) + 1]
            found += [name, value] if value != "???" and ":" in value else []
    if "*flowid" in rest and rest.index("*flowid") + 1 < len(rest):
        found += ["flowid", rest[rest.index("*flowid") + 1]]
    for line in lines:
        if match := _KEY.match(line):
            found += ["match", "u32", f"0x{match['value']}", match["mask"], "at", match["at"]]
        elif _PRETTY.match(line):
            raise ConfigError("expected tc filter show without -pretty")
    return found


def _after_handle(rest: Sequence[str]) -> list[str]:
    if rest[:1] == ["handle"]:
        rest = rest[2:]
    return [word for word in rest if word not in ("not_in_hw", "in_hw", "skip_hw", "skip_sw")]


def _flower_words(rest: Sequence[str], lines: list[str]) -> list[str]:
    options = _after_handle(rest)
    for line in lines:
        if _ACTION.match(line):
            break
        match = _FLOWER_KEY.fullmatch(line)
        if match is None or match["key"] in ("not_in_hw", "in_hw"):
            continue
        options += [match["key"], match["value"]]
    return options


def _actions(lines: list[str]) -> list[str]:
    """The words of commands for listed actions."""
    found: list[str] = []
    for line in lines:
        action = _ACTION.match(line)
        text = action["rest"] if action is not None else line.strip()
        if action is None and not text.startswith("police 0x"):
            continue
        if match := _MIRRED.match(text):
            verb = {"redirect": "redirect", "mirror": "mirror"}.get(match["verb"].lower(), "mirror")
            found += ["action", "mirred", match["way"].lower(), verb, "dev", match["device"]]
        elif match := _GACT.match(text):
            found += ["action", match["verdict"]]
        elif text.startswith("police "):
            found += ["action", "police", *text.split()[1:]]
        else:
            found += ["action", text.split()[0] if text.split() else ""]
    return found

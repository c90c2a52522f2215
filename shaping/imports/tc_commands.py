"""`tc qdisc`, `tc class` and `tc filter` commands, and the lines of their listings, which name the
same options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dataplane.errors import ConfigError
from shaping.imports.classful import (
    parse_hfsc,
    parse_hfsc_class,
    parse_htb,
    parse_htb_class,
    parse_prio,
    parse_stab,
    parse_tbf,
)
from shaping.imports.filters import (
    FLOWER_KEYS,
    PROTOCOL_WORDS,
    U32,
    flower_rules,
    parse_match,
    u32_rules,
)
from shaping.imports.leaves import LEAVES, parse_leaf
from shaping.imports.netem import parse_netem
from shaping.imports.notes import Unsupported, quoted, unsupported
from shaping.imports.quantities import burst_of, hex_of, rate_of, whole_of
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

VERBS = ("add", "change", "replace", "link", "delete")
OBJECTS = ("qdisc", "class", "filter")
DEVICE_MOST = 64  # characters of a device's name, with its namespace

_QDISCS: dict[str, Callable[..., Any]] = {
    "netem": parse_netem, "tbf": parse_tbf, "htb": parse_htb, "hfsc": parse_hfsc,
    "prio": parse_prio,
}  # fmt: skip
_CLASSES: dict[str, Callable[..., Any]] = {"htb": parse_htb_class, "hfsc": parse_hfsc_class}
CLASSLESS = (*LEAVES, "netem", "tbf", "ingress", "clsact")


def _object(word: str) -> str | None:
    return next((each for each in OBJECTS if word and each.startswith(word)), None)


def _verb(word: str) -> str | None:
    return next((each for each in VERBS if word and each.startswith(word)), None)


def is_command(words: Sequence[str]) -> bool:
    """Whether these words, without tc before them, are a command that changes something."""
    return len(words) > 1 and _object(words[0]) is not None and _verb(words[1]) is not None


def run(words: Sequence[str], devices: Devices, where: str, *, space: str, name: str) -> None:
    """Does what a command does: the words behind `tc` and its options. space: network namespace,
    "" the current one; name: from the comment behind the command. Raises ConfigError."""
    what = _object(words[0])
    verb = _verb(words[1]) if len(words) > 1 else None
    if what is None:
        raise unsupported(f"tc {quoted(words[0])}", "expected qdisc, class or filter")
    if verb is None:
        return  # show, list and help change nothing
    rest = Words(words[2:], f"tc {what} {verb}")
    if verb == "link":
        verb = "replace"
    {"qdisc": _qdisc, "class": _class, "filter": _filter}[what](
        rest, devices, where, verb, space, name
    )


def _named(devices: Devices, words: Words, name: str, space: str) -> Device:
    if not name:
        raise ConfigError(f"{words.what}: names no device: expected dev NAME")
    if len(name) > DEVICE_MOST:
        raise ConfigError(f"{words.what}: dev {quoted(name)}: expected a device's name")
    return devices.of(f"{space}/{name}" if space else name)


# -- qdiscs ----------------------------------------------------------------------------------------


def _qdisc(words: Words, devices: Devices, where: str, verb: str, space: str, name: str) -> None:
    device, parent, handle, kind, size = "", 0, 0, "", None
    while words:
        word = words.take()
        if word == "dev":
            words.once(device, "dev")
            device = words.value("dev")
        elif word == "handle":
            words.once(handle, "handle")
            handle = handle_of(words.value("handle"))
        elif word in ("root", "ingress", "clsact", "parent"):
            words.once(parent, word)
            if word == "parent":
                parent = classid_of(words.value("parent"))
            else:
                parent = ROOT if word == "root" else INGRESS
            if word in ("ingress", "clsact"):
                kind, handle = word, HOOKS << 16
                break
        elif word and "stab".startswith(word):
            size = parse_stab(words)
        elif word and "estimator".startswith(word):
            words.value("estimator")
            words.value("estimator")
        elif word in ("ingress_block", "egress_block"):
            raise unsupported(f"tc qdisc {word}", "filters that devices share")
        else:
            kind = word
            break
    there = _named(devices, words, device, space)
    if verb == "delete":
        if not parent and handle in there.handles:
            parent = there.handles[handle].parent
        there.remove_qdisc(parent)
        return
    if not kind:
        raise ConfigError(f"{words.what}: names no qdisc: expected one such as netem")
    if not parent:
        raise ConfigError(f"{words.what}: has no parent: expected root or parent ID")
    if kind in ("ingress", "clsact"):
        parent, handle = INGRESS, HOOKS << 16
    options = qdisc_options(kind, words)
    there.add_qdisc(verb, Qdisc(where, kind, handle, parent, options, size, name))


def qdisc_options(kind: str, words: Words, *, shown: bool = False) -> Any:
    """The options of a qdisc; of a kind that is not known here, its words."""
    words.what = kind
    if kind in LEAVES:
        return parse_leaf(kind, words, shown=shown)
    if kind in _QDISCS:
        return _QDISCS[kind](words, shown=shown)
    if kind in ("ingress", "clsact") and not shown:
        for word in words.words[words.at :]:
            if word not in ("handle", "ffff:", "ffff:0"):
                raise ConfigError(f"{kind}: unknown word {quoted(word)}: expected nothing more")
    return words.words[words.at :]


# -- classes ---------------------------------------------------------------------------------------


def _class(words: Words, devices: Devices, where: str, verb: str, space: str, name: str) -> None:
    device, parent, classid, kind = "", 0, 0, ""
    while words:
        word = words.take()
        if word == "dev":
            words.once(device, "dev")
            device = words.value("dev")
        elif word == "classid":
            words.once(classid, "classid")
            classid = classid_of(words.value("classid"))
        elif word == "handle":
            raise ConfigError(f"{words.what}: handle: expected classid")
        elif word in ("root", "parent"):
            words.once(parent, word)
            parent = ROOT if word == "root" else classid_of(words.value("parent"))
        elif word and "estimator".startswith(word):
            words.value("estimator")
            words.value("estimator")
        else:
            kind = word
            break
    there = _named(devices, words, device, space)
    if verb == "delete":
        there.remove_class(classid)
        return
    if not kind:
        raise ConfigError(f"{words.what}: names no kind: expected one such as htb")
    if not classid or not classid & 0xFFFF:
        raise ConfigError(f"{words.what}: has no class id: expected one such as classid 1:10")
    if not parent and verb == "add":
        raise ConfigError(f"{words.what}: has no parent: expected parent ID")
    options = class_options(kind, words)
    there.add_class(verb, TcClass(where, kind, classid, parent, options, name))


def class_options(kind: str, words: Words, *, shown: bool = False) -> Any:
    if kind in CLASSLESS:
        raise ConfigError(f"{words.what}: {kind} has no classes: expected htb or hfsc")
    words.what = f"{kind} class"
    if kind in _CLASSES:
        return _CLASSES[kind](words, shown=shown)
    return words.words[words.at :]


# -- filters ---------------------------------------------------------------------------------------


def _filter(words: Words, devices: Devices, where: str, verb: str, space: str, name: str) -> None:
    device, parent, pref, protocol, handle, kind = "", 0, 0, "", "", ""
    chain = 0
    while words:
        word = words.take()
        if word == "dev":
            words.once(device, "dev")
            device = words.value("dev")
        elif word in ("root", "ingress", "egress", "parent"):
            words.once(parent, word)
            hooks = {"root": ROOT, "ingress": INGRESS_HOOK, "egress": EGRESS_HOOK}
            parent = hooks.get(word) or classid_of(words.value("parent"))
        elif word == "handle":
            words.once(handle, "handle")
            handle = words.value("handle")
        elif word and ("preference".startswith(word) or "priority".startswith(word)):
            words.once(pref, "prio")
            pref = whole_of(f"{words.what} prio", words.value("prio"), most=0xFFFF)
        elif word and "protocol".startswith(word):
            words.once(protocol, "protocol")
            protocol = words.value("protocol").lower()
        elif word and "chain".startswith(word):
            chain = whole_of(f"{words.what} chain", words.value("chain"))
        elif word and "block".startswith(word):
            raise unsupported("tc filter block", "filters that devices share")
        elif word and "estimator".startswith(word):
            words.value("estimator")
            words.value("estimator")
        else:
            kind = word
            break
    there = _named(devices, words, device, space)
    if parent == HOOKS << 16:
        parent = INGRESS_HOOK
    if verb == "delete":
        if parent in (0, ROOT):
            parent = there.root.handle if there.root is not None else 0
        there.remove_filters(parent, pref, protocol, handle)
        return
    if not kind:
        raise ConfigError(f"{words.what}: names no kind: expected one such as u32")
    found = Filter(where, kind, parent, pref, protocol or "all", handle=handle, name=name)
    if kind == "u32" and words.has_only_table:
        return  # a hash table; filters in it are refused by themselves
    if chain:
        found.broken = unsupported("tc filter chain", "expected the filters of chain 0")
    filter_options(found, words)
    there.add_filter(verb, found)


def filter_options(found: Filter, words: Words, *, shown: bool = False) -> None:
    """Reads what is behind a filter's kind. Raises ConfigError; what a policy cannot say is kept in
    the filter."""
    words.what = found.kind
    try:
        if found.kind == "u32":
            _u32(found, words)
        elif found.kind == "flower":
            _flower(found, words, shown=shown)
        elif found.kind in ("matchall", "basic", "fw"):
            _simple(found, words)
        else:
            raise unsupported(f"filter {quoted(found.kind)}", "expected u32, flower or matchall")
    except Unsupported as error:
        found.broken = found.broken or error


def _u32(found: Filter, words: Words) -> None:
    match = U32()
    keys = 0
    options = ("match", "offset", "hashkey", "classid", "divisor", "order", "action", "police")
    exact = ("flowid", "link", "ht", "sample", "indev", "skip_hw", "skip_sw")
    while words:
        name = words.option(options, exact)
        if name == "match":
            keys += 1
            parse_match(words, match)
        elif name in ("classid", "flowid"):
            found.flowid = classid_of(words.value(name))
        elif name in ("action", "police"):
            _action(found, words, "police" if name == "police" else "")
        elif name in ("skip_hw", "skip_sw"):
            continue
        elif name in ("offset", "hashkey", "link", "ht", "sample", "divisor"):
            if name == "ht" and words.next in ("800:", "800::"):
                words.take()
                continue
            raise unsupported(f"u32 {name}", "tables of filters: write a filter for each match")
        else:
            words.value(name)
            if name == "indev":
                raise unsupported("u32 indev", "packets of a NIC come from its container")
    if not keys:
        raise ConfigError("u32: matches nothing: expected match, such as match ip dport 80 0xffff")
    found.match = u32_rules(match, _protocol(found))


def _protocol(found: Filter) -> str:
    protocol = PROTOCOL_WORDS.get(found.protocol)
    if protocol is None:
        raise unsupported(f"filter protocol {quoted(found.protocol)}", "expected ip, ipv6 or all")
    return protocol


def _flower(found: Filter, words: Words, *, shown: bool) -> None:
    pairs: list[tuple[str, str]] = []
    flags = ("skip_hw", "skip_sw", "verbose", *(("not_in_hw", "in_hw") if shown else ()))
    while words:
        name = words.option(("classid", "flowid", *FLOWER_KEYS, "action"), (*flags, "eth_type"))
        if name in ("classid", "flowid"):
            found.flowid = classid_of(words.value(name))
        elif name == "action":
            _action(found, words, "")
        elif name not in flags:
            pairs.append((name, words.value(f"flower {name}")))
    found.match = flower_rules(pairs, _protocol(found))


def _simple(found: Filter, words: Words) -> None:
    """matchall, whose match is its protocol; fw and basic, which match what rules do not know."""
    while words:
        if found.kind == "basic" and words.skip("match"):
            raise unsupported("filter basic", "expected u32, flower or matchall")
        name = words.option(("classid", "action", "police"), ("flowid", "skip_hw", "skip_sw",
                                                              "indev"))  # fmt: skip
        if name in ("classid", "flowid"):
            found.flowid = classid_of(words.value(name))
        elif name in ("action", "police"):
            _action(found, words, "police" if name == "police" else "")
        elif name == "indev":
            words.value(name)
    if found.kind == "fw":
        raise unsupported(
            "filter fw",
            "marks of the firewall do not exist here: write a filter that matches what the "
            "firewall's rule matches",
        )
    if found.kind == "basic":
        raise unsupported("filter basic", "expected u32, flower or matchall")
    found.match = flower_rules([], _protocol(found))


_GACTS = {"pass": "pass", "ok": "pass", "drop": "drop", "shot": "drop", "pipe": "", "continue": "",
          "reclassify": ""}  # fmt: skip


def _action(found: Filter, words: Words, name: str) -> None:
    """One action behind the word action, or behind police."""
    while words.skip("order"):
        words.value("order")
    name = name or words.value("action")
    if name in ("gact",):
        name = words.value("gact")
    if name in _GACTS:
        found.verdict = found.verdict or _GACTS[name]
    elif name == "mirred":
        direction, verb = words.value(name), words.value(name)
        if not words.skip("dev"):
            raise ConfigError("action mirred: expected egress redirect dev NAME")
        device = words.value("mirred dev")
        if direction not in ("egress", "ingress") or verb not in ("redirect", "mirror"):
            raise ConfigError("action mirred: expected egress redirect dev NAME")
        if verb == "mirror" or direction == "ingress":
            raise unsupported(
                f"action mirred {direction} {verb}", "expected egress redirect to an ifb device"
            )
        found.redirect = device
    elif name == "police":
        _police(found, words)
    else:
        raise unsupported(f"action {quoted(name)}", "expected mirred, police, drop or pass")
    while words.next in ("index", "cookie"):
        words.value(words.take())


def _police(found: Filter, words: Words) -> None:
    rate, burst, verdict, ok = 0, 0, "reclassify", False
    names = ("index", "burst", "peakrate", "reclassify", "drop", "shot", "continue", "pass", "ok",
             "pipe", "overhead", "linklayer", "avrate", "pkts_rate", "pkts_burst")  # fmt: skip
    exact = ("buffer", "maxburst", "mtu", "minburst", "mpu", "rate", "conform-exceed", "action")
    while words and words.next not in ("flowid", "classid", "match"):
        if words.next.startswith("0x") and not ok:  # a listing has the police's number here
            hex_of("police", words.take())
            continue
        name = words.option(names, exact)
        ok = True
        if name in _GACTS:
            verdict = name
        elif name == "action":
            if words.next not in (*_GACTS, *(f"{each}/pipe" for each in _GACTS)):
                words.at -= 1
                break
            verdict = words.take().partition("/")[0]
        elif name == "conform-exceed":
            verdict = words.value(name).partition("/")[0]
            if verdict not in _GACTS:
                raise ConfigError(f"police conform-exceed {quoted(verdict)}: expected drop")
        elif name == "rate":
            words.once(rate, name)
            rate = rate_of("police rate", words.value(name))
        elif name in ("burst", "buffer", "maxburst"):
            words.once(burst, name)
            burst = burst_of("police burst", words.value(name))
        elif name in ("mtu", "minburst", "mpu", "overhead"):
            burst_of(f"police {name}", words.value(name))
        elif name in ("avrate", "peakrate"):
            rate_of(f"police {name}", words.value(name))
            if name == "avrate":
                raise unsupported("police avrate", "expected rate and burst")
        elif name in ("pkts_rate", "pkts_burst"):
            whole_of(f"police {name}", words.value(name), most=2**64 - 1)
            raise unsupported(f"police {name}", "a rate is in bits: expected rate and burst")
        else:
            words.value(name)
    if not rate:
        raise ConfigError("police: has no rate: expected rate and burst")
    if not burst:
        raise ConfigError("police: has no burst: expected burst such as burst 32kb")
    if verdict not in ("drop", "shot"):
        raise unsupported(f"police {verdict}", "what exceeds the rate can only be dropped")
    found.police = (rate, burst)

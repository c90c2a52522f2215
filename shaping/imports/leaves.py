"""Queues without classes - pfifo, bfifo, sfq, codel, fq_codel, fq, cake - as `queue` of a leaf.

Each kind has a parser that reads the options as tc does, and makes a Leaf: what a policy says, and
what it cannot say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dataplane.errors import ConfigError
from dataplane.units import format_size, format_time, parse_time
from shaping.imports.notes import Notes, quoted, unsupported
from shaping.imports.quantities import (
    microseconds_of,
    rate_of,
    size_of,
    time_of,
    whole_of,
)
from shaping.imports.words import Words

# What a queue of a policy can have.
BOUNDS = {"packets": (1, 1 << 20), "flows": (1, 1 << 16), "quantum": (64, 1 << 16)}
HOUR_NS = 3600 * 10**9
PRIO_MAX = 15  # priorities of the kernel are 0 to 15


@dataclass
class Leaf:
    """settings: of `queue`, without the discipline; left_out: options without a counterpart; rate
    and overhead (bytes, least length, cells): cake's."""

    discipline: str
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    rate: int = 0
    overhead: tuple[int, int, str] | None = None

    def queue(self, kind: str, where: str, notes: Notes) -> str | dict[str, Any]:
        """The `queue` of a leaf."""
        for each in self.left_out:
            notes.note(where, f"{kind} {each}: left out")
        for name, (least, most) in BOUNDS.items():
            if name in self.settings and not least <= self.settings[name] <= most:
                raise unsupported(
                    f"{kind} {name} {self.settings[name]}", f"expected {least} to {most}"
                )
        for name in ("target", "interval"):
            if name in self.settings and not 1000 <= parse_time(self.settings[name]) <= HOUR_NS:
                raise unsupported(f"{kind} {name} {self.settings[name]}", "expected 1us to 1h")
        if self.discipline == "cake":
            return self._of_cake(where, notes)
        if kind == "sfq":
            notes.note(where, "sfq: becomes fq, which tells flows by addresses, protocol and ports")
        if not self.settings:
            return self.discipline
        return {"discipline": self.discipline, **self.settings}

    def _of_cake(self, where: str, notes: Notes) -> str | dict[str, Any]:
        """What FQ-CoDel has of cake: queues of flows, and CoDel for the round trip."""
        hosts = ", and hosts are not told apart" if "hosts" in self.settings else ""
        notes.note(where, f"cake: becomes fq_codel without cake's tins{hosts}")
        if "rtt" not in self.settings:
            return "fq_codel"
        rtt_ns = parse_time(self.settings["rtt"])
        # tc-cake(8): the target is a twentieth of the round trip
        target = format_time(max(rtt_ns // 20, 1000))
        return {"discipline": "fq_codel", "target": target, "interval": format_time(rtt_ns)}


def _packets(words: Words, name: str, *, shown: bool, least: int = 0) -> int:
    text = words.value(name)
    return whole_of(f"{words.what} {name}", text.removesuffix("p") if shown else text, least)


def _fifo(words: Words, *, shown: bool, bytes_counted: bool) -> Leaf:
    leaf = Leaf("fifo")
    while words:
        name = words.option((), ("limit",))
        if bytes_counted:
            limit = size_of(f"{words.what} limit", words.value(name))
            leaf.settings["size"] = format_size(limit)
        else:
            text = words.value(name)
            limit = size_of(f"{words.what} limit", text.removesuffix("p") if shown else text)
            leaf.settings["packets"] = limit
    return leaf


def _pfifo(words: Words, shown: bool) -> Leaf:
    return _fifo(words, shown=shown, bytes_counted=False)


def _bfifo(words: Words, shown: bool) -> Leaf:
    return _fifo(words, shown=shown, bytes_counted=True)


def _pfifo_fast(words: Words, shown: bool) -> Leaf:
    if not shown and words:
        raise ConfigError(f"pfifo_fast: unknown word {quoted(words.next)}: expected nothing more")
    return Leaf("fifo")


def _sfq(words: Words, shown: bool) -> Leaf:
    leaf = Leaf("fq")
    numbers = ("divisor", "flows", "depth", "redflowlimit", "max", "burst")
    known = ("limit", "quantum", "perturb", "headdrop", "min", "avpkt", "probability", "ecn",
             "harddrop", "ewma", *numbers)  # fmt: skip
    while words:
        name = words.option((), known)
        if name == "limit":
            leaf.settings["packets"] = _packets(words, name, shown=shown, least=2)
        elif name == "quantum":
            leaf.settings["quantum"] = size_of("sfq quantum", words.value(name))
        elif name in ("headdrop", "ecn", "harddrop"):
            leaf.left_out.append(name)
        elif name in ("perturb", "divisor"):  # of the hash, which is not one by perturbation here
            whole_of(f"sfq {name}", words.value(name).removesuffix("sec" if shown else ""))
        else:
            value = words.value(name)
            if name in numbers:
                whole_of(f"sfq {name}", value)
            leaf.left_out.append(name)
    return leaf


def _codel(words: Words, shown: bool) -> Leaf:
    leaf = Leaf("codel")
    while words:
        name = words.option((), ("limit", "target", "interval", "ecn", "noecn", "ce_threshold"))
        _codel_option(leaf, words, name, shown=shown)
    if shown:
        leaf.settings.setdefault("ecn", False)
    return leaf


def _codel_option(leaf: Leaf, words: Words, name: str, *, shown: bool) -> None:
    if name == "limit":
        leaf.settings["packets"] = _packets(words, name, shown=shown)
    elif name in ("target", "interval"):
        time = microseconds_of(f"{words.what} {name}", words.value(name))
        leaf.settings[name] = format_time(time)
    elif name in ("ecn", "noecn"):
        leaf.settings["ecn"] = name == "ecn"
    else:
        microseconds_of(f"{words.what} {name}", words.value(name))
        leaf.left_out.append(name)


def _fq_codel(words: Words, shown: bool) -> Leaf:
    leaf = Leaf("fq_codel")
    known = ("limit", "flows", "quantum", "target", "interval", "ecn", "noecn", "ce_threshold",
             "ce_threshold_selector", "memory_limit", "drop_batch")  # fmt: skip
    while words:
        name = words.option((), known)
        if name in ("flows", "quantum"):
            number = whole_of(f"fq_codel {name}", words.value(name))
            leaf.settings[name] = number if name == "quantum" else _power_of_two(number, leaf)
        elif name == "memory_limit":
            if size_of("fq_codel memory_limit", words.value(name)) != 32 << 20:  # the default
                leaf.left_out.append(name)
        elif name == "drop_batch":
            if whole_of("fq_codel drop_batch", words.value(name)) != 64:
                leaf.left_out.append(name)
        elif name == "ce_threshold_selector":
            value, slash, mask = words.value(name).partition("/")
            if not slash:
                raise ConfigError(f"fq_codel {name}: expected VALUE/MASK")
            whole_of(f"fq_codel {name}", value, most=255)
            whole_of(f"fq_codel {name}", mask, most=255)
            leaf.left_out.append(name)
        else:
            _codel_option(leaf, words, name, shown=shown)
    if shown:
        leaf.settings.setdefault("ecn", False)
    return leaf


def _power_of_two(flows: int, leaf: Leaf) -> int:
    """The next number of flows that a queue can have."""
    found = 1 << max(flows - 1, 0).bit_length()
    if found != flows:
        leaf.left_out.append(f"flows {flows}, which become {found}")
    return found


def _fq(words: Words, shown: bool) -> Leaf:
    leaf = Leaf("fq")
    whole = ("flow_limit", "buckets", "orphan_mask")
    rates = ("maxrate", "defrate", "low_rate_threshold")
    times = ("refill_delay", "ce_threshold", "horizon", "offload_horizon")
    known = ("limit", "quantum", "initial_quantum", "timer_slack", "pacing", "nopacing", "bands",
             "weights", "horizon_drop", "horizon_cap", *whole, *rates, *times)  # fmt: skip
    while words:
        name = words.option((), known)
        what = f"fq {name}"
        if name == "limit":
            leaf.settings["packets"] = _packets(words, name, shown=shown)
        elif name in ("quantum", "initial_quantum"):
            text = words.value(name)
            size = size_of(what, text) if shown else whole_of(what, text, most=2**31 - 1)
            if name == "quantum":
                leaf.settings["quantum"] = size
            elif not shown:
                leaf.left_out.append(name)
        elif name in whole:
            _packets(words, name, shown=shown)
            if not shown:
                leaf.left_out.append(name)
        elif name in rates:
            rate_of(what, words.value(name))
            if not (shown and name == "low_rate_threshold"):
                leaf.left_out.append(name)
        elif name in (*times, "timer_slack"):
            text = words.value(name)
            if not shown:
                time_of(what, f"{text}ns" if text.isdigit() else text)
                leaf.left_out.append(name)
        elif name == "bands":
            _fq_bands(words)
            leaf.left_out += [] if shown else ["priomap"]
        elif name == "weights":
            for _ in range(3):
                whole_of(what, words.value(name), 16384)
            leaf.left_out += [] if shown else [name]
        elif name in ("horizon_drop", "horizon_cap") and not shown:
            leaf.left_out.append(name)
    return leaf


def _fq_bands(words: Words) -> None:
    if whole_of("fq bands", words.value("bands")) != 3 or not words.skip("priomap"):
        raise ConfigError("fq bands: expected bands 3 priomap and 16 numbers")
    for _ in range(PRIO_MAX + 1):
        whole_of("fq priomap", words.value("priomap"), most=2)


_CAKE_RTT = {"datacentre": "100us", "lan": "1ms", "metro": "10ms", "regional": "30ms",
             "internet": "100ms", "oceanic": "300ms", "satellite": "1s",
             "interplanetary": "1h"}  # fmt: skip
_CAKE_HOSTS = {"dual-srchost": "source", "dual-dsthost": "destination", "triple-isolate": "both"}
_CAKE_TINS = ("precedence", "diffserv8", "diffserv4", "diffserv", "diffserv3")
_CAKE_FLOWS = ("flowblind", "srchost", "dsthost", "hosts", "flows")
_CAKE_LEFT_OUT = ("wash", "nat", "ack-filter", "ack-filter-aggressive", "ingress",
                  "autorate-ingress", "no-split-gso")  # fmt: skip
_CAKE_NOTHING = ("besteffort", "nowash", "nonat", "no-ack-filter", "split-gso", "egress",
                 "via-ethernet", "nowash")  # fmt: skip
# Bytes that each keyword adds to an IP packet, least length, cells: see tc-cake(8).
_CAKE_LINES = {
    "conservative": (48, None, "atm"), "ipoa-vcmux": (8, None, "atm"),
    "ipoa-llcsnap": (16, None, "atm"), "bridged-vcmux": (24, None, "atm"),
    "bridged-llcsnap": (32, None, "atm"), "pppoa-vcmux": (10, None, "atm"),
    "pppoa-llc": (14, None, "atm"), "pppoe-vcmux": (32, None, "atm"),
    "pppoe-llcsnap": (40, None, "atm"), "pppoe-ptm": (30, None, "ptm"),
    "bridged-ptm": (22, None, "ptm"), "ethernet": (38, 84, None), "ether-vlan": (4, None, None),
    "docsis": (18, 64, ""),
}  # fmt: skip


def _cake(words: Words, shown: bool) -> Leaf:
    leaf = Leaf("cake")
    added, minimum, cell, has_overhead = 0, 0, "", False
    known = ("bandwidth", "unlimited", "rtt", "ptm", "atm", "noatm", "raw", "overhead", "mpu",
             "memlimit", "fwmark", *_CAKE_RTT, *_CAKE_HOSTS, *_CAKE_TINS, *_CAKE_FLOWS,
             *_CAKE_LEFT_OUT, *_CAKE_NOTHING, *_CAKE_LINES)  # fmt: skip
    preset = ""
    while words:
        name = words.option((), known)
        if name == "bandwidth":
            text = words.value(name)
            leaf.rate = 0 if shown and text == "unlimited" else rate_of("cake bandwidth", text)
        elif name == "unlimited":
            leaf.rate = 0
        elif name == "rtt":
            rtt = microseconds_of("cake rtt", words.value(name))
            leaf.settings["rtt"] = format_time(rtt)
        elif name in _CAKE_RTT:
            words.once(preset, name)
            preset, leaf.settings["rtt"] = name, _CAKE_RTT[name]
        elif name in _CAKE_HOSTS:
            leaf.settings["hosts"] = _CAKE_HOSTS[name]
        elif name in _CAKE_FLOWS:
            leaf.left_out.append(name)
            leaf.settings.pop("hosts", None)
        elif name in _CAKE_TINS:
            # three tins are the default of tc, and a listing always has them
            leaf.left_out += [f"{name}: its tins"]
        elif name in _CAKE_LEFT_OUT:
            leaf.left_out.append(name)
        elif name in _CAKE_LINES:
            more, least, cells = _CAKE_LINES[name]
            added, minimum = added + more, minimum if least is None else least
            cell, has_overhead = cell if cells is None else cells, True
        elif name == "raw":
            added, cell, has_overhead = 0, "", False
        elif name in ("ptm", "atm", "noatm"):
            cell = "" if name == "noatm" else name
        elif name == "overhead":
            added, has_overhead = whole_of("cake overhead", words.value(name), -64, 256), True
        elif name == "mpu":
            minimum = whole_of("cake mpu", words.value(name), most=256)
        elif name == "memlimit":
            size_of("cake memlimit", words.value(name))
            leaf.left_out += [] if shown else [name]
        elif name == "fwmark":
            whole_of("cake fwmark", words.value(name))
            leaf.left_out.append(name)
    if shown and not (added or minimum or cell):
        has_overhead = False
    if has_overhead or cell or minimum:
        leaf.overhead = (added - 14 if has_overhead else 0, minimum, cell)
    return leaf


Parser = Callable[[Words, bool], Leaf]
LEAVES: dict[str, Parser] = {
    "pfifo": _pfifo, "bfifo": _bfifo, "sfq": _sfq, "codel": _codel, "fq_codel": _fq_codel,
    "fq": _fq, "cake": _cake, "pfifo_fast": _pfifo_fast,
}  # fmt: skip


def parse_leaf(kind: str, words: Words, *, shown: bool = False) -> Leaf:
    """The options behind the name of a qdisc of LEAVES. Raises ConfigError."""
    return LEAVES[kind](words, shown)


def priomap_of(words: Words, bands: int, *, shown: bool = False) -> list[int]:
    """Bands by priority, behind the word priomap. Raises ConfigError."""
    found = list(PRIOMAP)
    number = 0
    while words and words.has_number():
        if number > PRIO_MAX:
            raise ConfigError(f"priomap: expected at most {PRIO_MAX + 1} bands")
        found[number] = whole_of("priomap", words.take(), most=bands - 1)
        number += 1
    if words and not shown and words.next not in ("multiqueue",):
        raise ConfigError(f"priomap: unknown word {quoted(words.next)}: expected a band")
    return found


# The map of prio(8) and pfifo_fast: from priorities to bands.
PRIOMAP = (1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)

"""Queues without classes - pfifo, bfifo, sfq, codel, fq_codel, fq, cake - as `queue` of a leaf.

Each kind has a parser that reads the options as tc does, and makes a Leaf. That of cake is in
cake.py.
"""

from __future__ import annotations

from collections.abc import Callable

from dataplane.errors import ConfigError
from dataplane.units import format_size, format_time
from shaping.imports.cake import parse_cake
from shaping.imports.leaf import Leaf
from shaping.imports.notes import quoted
from shaping.imports.quantities import (
    microseconds_of,
    rate_of,
    size_of,
    time_of,
    whole_of,
)
from shaping.imports.words import Words

PRIO_MAX = 15  # priorities of the kernel are 0 to 15


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


Parser = Callable[[Words, bool], Leaf]
LEAVES: dict[str, Parser] = {
    "pfifo": _pfifo, "bfifo": _bfifo, "sfq": _sfq, "codel": _codel, "fq_codel": _fq_codel,
    "fq": _fq, "cake": parse_cake, "pfifo_fast": _pfifo_fast,
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

"""Options of qdiscs and classes that hold others: tbf, htb, hfsc, prio; and `stab`."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from dataplane.errors import ConfigError
from shaping.imports.leaves import PRIOMAP, priomap_of
from shaping.imports.notes import quoted
from shaping.imports.quantities import (
    burst_of,
    hex_of,
    microseconds_of,
    rate_of,
    size_of,
    whole_of,
)
from shaping.imports.words import Words

BANDS_MOST = 16  # of prio
_LINKLAYERS = {"ethernet": "", "atm": "atm", "adsl": "atm"}


def linklayer_of(what: str, text: str) -> str:
    """Cells: "" or atm. Raises ConfigError."""
    if text.lower() not in _LINKLAYERS:
        raise ConfigError(f"{what} {quoted(text)}: expected ethernet, atm or adsl")
    return _LINKLAYERS[text.lower()]


@dataclass
class Tbf:
    """rate in bit/s; burst and limit in bytes; latency in ns; of latency and limit one is given.
    size: what is added to a packet: bytes, least length, cells."""

    rate: int = 0
    burst: int = 0
    latency: int = 0
    limit: int = 0
    peakrate: int = 0
    mtu: int = 0
    size: tuple[int, int, str] = (0, 0, "")


def parse_tbf(words: Words, *, shown: bool = False) -> Tbf:
    """Raises ConfigError."""
    found = Tbf()
    added, minimum, cell = 0, 0, ""
    prefixes = ("limit", "latency", "burst", "peakrate", "overhead", "linklayer")
    exact = ("buffer", "maxburst", "mtu", "minburst", "mpu", "rate", *(("lat",) if shown else ()))
    while words:
        name = words.option(prefixes, exact)
        what = f"tbf {name}"
        if name == "limit":
            words.once(found.limit or found.latency, name)
            found.limit = size_of(what, words.value(name))
        elif name in ("latency", "lat"):
            words.once(found.limit or found.latency, name)
            found.latency = microseconds_of(what, words.value(name))
        elif name in ("burst", "buffer", "maxburst"):
            words.once(found.burst, name)
            found.burst = burst_of(what, words.value(name))
        elif name in ("mtu", "minburst"):
            words.once(found.mtu, name)
            found.mtu = burst_of(what, words.value(name))
        elif name == "mpu":
            words.once(minimum, name)
            minimum = size_of(what, words.value(name))
        elif name == "rate":
            words.once(found.rate, name)
            found.rate = rate_of(what, words.value(name))
        elif name == "peakrate":
            words.once(found.peakrate, name)
            found.peakrate = rate_of(what, words.value(name))
        elif name == "overhead":
            words.once(added, name)
            added = size_of(what, words.value(name)) if shown else whole_of(
                what, words.value(name), most=0xFFFF)  # fmt: skip
        else:
            cell = linklayer_of(what, words.value(name))
    found.size = (added, minimum, cell)
    if not found.rate:
        raise ConfigError("tbf: has no rate: expected a rate such as rate 1mbit")
    if not found.burst:
        raise ConfigError("tbf: has no burst: expected a burst such as burst 32kb")
    if not (found.limit or found.latency):
        raise ConfigError("tbf: has neither limit nor latency: expected one, such as latency 50ms")
    if found.peakrate and not found.mtu and not shown:
        raise ConfigError("tbf peakrate: needs mtu, such as mtu 1540")
    return found


@dataclass
class HtbQdisc:
    """default: minor number of the class for packets that match no filter; 0: none"""

    default: int = 0
    r2q: int = 10


def parse_htb(words: Words, *, shown: bool = False) -> HtbQdisc:
    """Raises ConfigError."""
    found = HtbQdisc()
    known = ("r2q", "default", "debug", "direct_qlen", "offload")
    more = ("direct_packets_stat", "ver") if shown else ()
    while words:
        name = words.option(known, more)
        if name == "default":
            found.default = hex_of("htb default", words.value(name))
        elif name == "r2q":
            found.r2q = whole_of("htb r2q", words.value(name), 1)
        elif name == "direct_qlen":
            whole_of("htb direct_qlen", words.value(name))
        elif name != "offload":
            words.value(name)
    return found


@dataclass
class HtbClass:
    """Rates in bit/s, bursts and quantum in bytes; 0: not given. size as of Tbf."""

    rate: int = 0
    ceil: int = 0
    burst: int = 0
    cburst: int = 0
    prio: int = 0
    quantum: int = 0
    size: tuple[int, int, str] = (0, 0, "")


def parse_htb_class(words: Words, *, shown: bool = False) -> HtbClass:
    """Raises ConfigError."""
    found = HtbClass()
    added, minimum, cell = 0, 0, ""
    prefixes = ("prio", "mtu", "mpu", "overhead", "linklayer", "quantum", "burst", "cburst")
    exact = ("buffer", "maxburst", "cbuffer", "cmaxburst", "ceil", "rate",
             *(("level",) if shown else ()))  # fmt: skip
    while words:
        name = words.option(prefixes, exact)
        what = f"htb {name}"
        if name == "rate":
            words.once(found.rate, name)
            found.rate = rate_of(what, words.value(name))
        elif name == "ceil":
            words.once(found.ceil, name)
            found.ceil = rate_of(what, words.value(name))
        elif name in ("burst", "buffer", "maxburst"):
            found.burst = burst_of(what, words.value(name))
        elif name in ("cburst", "cbuffer", "cmaxburst"):
            found.cburst = burst_of(what, words.value(name))
        elif name == "prio":
            found.prio = whole_of(what, words.value(name))
        elif name == "quantum":
            found.quantum = whole_of(what, words.value(name))
        elif name == "mpu":
            text = words.value(name)
            minimum = size_of(what, text) if shown else whole_of(what, text, most=0xFFFF)
        elif name == "overhead":
            added = whole_of(what, words.value(name), most=0xFFFF)
        elif name == "linklayer":
            cell = linklayer_of(what, words.value(name))
        else:
            whole_of(what, words.value(name))
    found.size = (added, minimum, cell)
    if not found.rate:
        raise ConfigError("htb class: has no rate: expected a rate such as rate 1mbit")
    found.ceil = found.ceil or found.rate
    return found


Curve = tuple[int, int, int]  # m1 in bit/s, d in ns, m2 in bit/s


@dataclass
class HfscClass:
    """Service curves: real time, link share, upper limit; None: not given."""

    rt: Curve | None = None
    ls: Curve | None = None
    ul: Curve | None = None


def parse_hfsc(words: Words, *, shown: bool = False) -> HtbQdisc:
    """The default class of hfsc. Raises ConfigError."""
    found = HtbQdisc()
    while words:
        name = words.option(("default",))
        words.once(found.default, name)
        found.default = hex_of("hfsc default", words.value(name), 0xFFFF)
    return found


def parse_hfsc_class(words: Words, *, shown: bool = False) -> HfscClass:
    """Raises ConfigError."""
    found = HfscClass()
    while words:
        name = words.option(("rt", "ls", "sc", "ul"))
        curve = _curve(words, name)
        for each in ("rt", "ls") if name == "sc" else (name,):
            setattr(found, each, curve)
    if (found.rt, found.ls, found.ul) == (None, None, None):
        raise ConfigError("hfsc class: has no curve: expected one such as sc rate 1mbit")
    if found.ul is not None and found.ls is None:
        raise ConfigError("hfsc class: has ul without ls: expected ls, too")
    return found


def _curve(words: Words, name: str) -> Curve:
    what = f"hfsc {name}"
    given: dict[str, int] = {}
    order = ("m1", "d", "umax", "dmax", "m2", "rate")
    while words and not (given.keys() & {"m2", "rate"}):
        part = next((each for each in order if words.next and each.startswith(words.next)), None)
        if part is None:
            break
        words.take()
        text = words.value(name)
        if part in ("d", "dmax"):
            given[part] = microseconds_of(f"{what} {part}", text)
        elif part == "umax":
            given[part] = size_of(f"{what} umax", text)
        else:
            given[part] = rate_of(f"{what} {part}", text)
    first, second = set(given) <= {"m1", "d", "m2"}, set(given) <= {"umax", "dmax", "rate"}
    if not (given.keys() & {"m2", "rate"}) or not (first or second):
        raise ConfigError(f"{what}: expected [m1 RATE d TIME] m2 RATE, or [umax SIZE dmax TIME] "
                          "rate RATE")  # fmt: skip
    if first:
        curve = (given.get("m1", 0), given.get("d", 0), given["m2"])
    else:
        size, time, rate = given.get("umax", 0), given.get("dmax", 0), given["rate"]
        if size and not time:
            raise ConfigError(f"{what}: umax without dmax: expected dmax, too")
        steep = Fraction(size * 8 * 10**9, time) if time else Fraction(0)
        # concave: first umax within dmax, then the rate; convex: nothing at first
        if steep > rate:
            curve = (int(steep), time, rate)
        else:
            late = time - Fraction(size * 8 * 10**9, rate) if rate else Fraction(0)
            curve = (0, int(late), rate)
    if not curve[0] and not curve[2]:
        raise ConfigError(f"{what}: has no rate: expected more than 0")
    return curve


@dataclass
class Prio:
    """bands, and by priority of a packet, 0 to 15, its band."""

    bands: int = 3
    priomap: list[int] = field(default_factory=lambda: list(PRIOMAP))


def parse_prio(words: Words, *, shown: bool = False) -> Prio:
    """Raises ConfigError."""
    found = Prio()
    mapped = False
    while words:
        name = words.option((), ("bands", "priomap", "multiqueue", *(("multiqueue:",) if shown
                                 else ())))  # fmt: skip
        if name == "bands":
            if mapped:
                raise ConfigError("prio bands: expected it before priomap")
            found.bands = whole_of("prio bands", words.value(name), 2, BANDS_MOST)
        elif name == "priomap":
            words.once(mapped, name)
            mapped = True
            found.priomap = priomap_of(words, found.bands, shown=shown)
        elif name == "multiqueue:":
            words.value(name)
    if max(found.priomap) >= found.bands:
        raise ConfigError(
            f"prio: priomap names band {max(found.priomap)} of {found.bands}: expected priomap "
            "with bands below that"
        )
    return found


def parse_stab(words: Words) -> tuple[int, int, str]:
    """What the options behind stab add to each frame: bytes, least length, cells. Raises
    ConfigError."""
    added, minimum, cell = 0, 0, ""
    known = ("mtu", "mpu", "overhead", "tsize", "linklayer")
    while words and any(words.next and each.startswith(words.next) for each in known):
        name = words.option(known)
        if name == "overhead":
            added = whole_of("stab overhead", words.value(name), -(2**31))
        elif name == "linklayer":
            cell = linklayer_of("stab linklayer", words.value(name))
        else:
            number = whole_of(f"stab {name}", words.value(name))
            minimum = number if name == "mpu" else minimum
    return added, minimum, cell

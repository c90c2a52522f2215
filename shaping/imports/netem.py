"""netem(8): its options, and the line that they describe.

Tools that wrap netem fill the same record, so that all imports say the same about it. Semantics are
those of net/sched/sch_netem.c of Linux 6.18 and tc/q_netem.c of iproute2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dataplane.errors import ConfigError
from dataplane.units import format_time
from shaping.imports.correlation import met_share, share_text
from shaping.imports.form import Settings
from shaping.imports.notes import Notes, quoted, unsupported
from shaping.imports.overheads import overhead_setting
from shaping.imports.quantities import (
    burst_of,
    line_rate,
    percent_of,
    rate_of,
    time_of,
    whole_of,
)
from shaping.imports.words import Words
from shaping.policy.figures import rate_text, time_text
from shaping.policy.scalars import LineTime, Share
from shaping.policy.schema import CORRELATION_MOST, SEED_MOST, LossConfig

LIMIT = 1000  # packets, where tc is not told
PACKETS_MOST = 1 << 20  # of a policy's queue
FRAME_BYTES = 1514
JITTER_CAP_NS = 2**31 - 1  # the kernel keeps jitter in an int

# netem's tables: mean and standard deviation in units of the jitter (netem/pareto.c and the others
# of iproute2, which clip a Pareto distribution with the exponent 3 at 4).
PARETO_MEAN, PARETO_DEVIATION = Fraction(-33, 1000), Fraction(82, 100)
PARETONORMAL_MEAN, PARETONORMAL_DEVIATION = Fraction(-25, 1000), Fraction(834, 1000)

NO = Fraction(0)
OPTIONS = ("limit", "latency", "delay", "loss", "drop", "seed", "ecn", "reorder", "corrupt", "gap",
           "duplicate", "distribution", "rate", "slot")  # fmt: skip


@dataclass
class Netem:
    """netem's options; times in ns, shares from 0 to 1, the rate in bit/s.

    state and gemodel: the models' probabilities, in the order of tc's words; limit: packets; None:
    not known
    """

    limit: int | None = LIMIT
    delay: int = 0
    jitter: int = 0
    delay_correlation: Fraction = NO
    distribution: str = ""
    loss: Fraction = NO
    loss_correlation: Fraction = NO
    state: tuple[Fraction, ...] = ()
    gemodel: tuple[Fraction, ...] = ()
    ecn: bool = False
    duplicate: Fraction = NO
    duplicate_correlation: Fraction = NO
    corrupt: Fraction = NO
    corrupt_correlation: Fraction = NO
    reorder: Fraction = NO
    reorder_correlation: Fraction = NO
    gap: int = 0
    rate: int = 0
    overhead: int = 0
    cell: int = 0
    cell_overhead: int = 0
    slot: bool = False
    seed: int | None = None

    def check(self) -> None:
        """Raises ConfigError for what tc refuses."""
        if self.reorder and not self.delay:
            raise ConfigError("netem reorder: needs a delay, such as delay 10ms")
        if self.gap and not self.reorder:
            raise ConfigError("netem gap: needs reorder, such as reorder 25%")
        if self.ecn and not (self.loss or self.state or self.gemodel):
            raise ConfigError("netem ecn: needs a loss, such as loss 1%")
        if self.distribution and not (self.delay and self.jitter):
            raise ConfigError("netem distribution: needs a delay and a jitter")


def parse_netem(words: Words, *, shown: bool = False) -> Netem:
    """The options behind the word netem. shown: they are of `tc qdisc show`, which names the parts
    of loss models and of rates. Raises ConfigError."""
    found = Netem()
    while words:
        name = words.option(OPTIONS)
        what = f"netem {name}"
        if name == "limit":
            found.limit = whole_of(what, words.value(name).removesuffix("p" if shown else ""))
        elif name in ("delay", "latency"):
            found.delay = time_of(what, words.value(name))
            if words.has_number():
                found.jitter = time_of("netem jitter", words.take())
                found.delay_correlation = _correlation(what, words)
        elif name in ("loss", "drop"):
            _loss(words, found, name, shown=shown)
        elif name == "seed":
            found.seed = whole_of(what, words.value(name), most=2**64 - 1)
        elif name == "ecn":
            found.ecn = True
        elif name in ("reorder", "corrupt", "duplicate"):
            setattr(found, name, percent_of(what, words.value(name)))
            setattr(found, f"{name}_correlation", _correlation(what, words))
        elif name == "gap":
            found.gap = whole_of(what, words.value(name))
        elif name == "distribution":
            found.distribution = words.value(name)
        elif name == "rate":
            found.rate = rate_of(what, words.value(name))
            _rate_parts(words, found, shown=shown)
        else:
            _slot(words, found)
    found.check()
    return found


def _correlation(what: str, words: Words) -> Fraction:
    return percent_of(f"{what}: correlation", words.take()) if words.has_number() else NO


def _loss(words: Words, found: Netem, name: str, *, shown: bool) -> None:
    words.once(found.loss or found.state or found.gemodel, name)
    word = words.value(name)
    if word == "state":
        names: tuple[str, ...] = ("p13", "p31", "p32", "p23", "p14")
        p13 = _probability(words, "p13", shown=shown)
        found.state = _rest(words, names, (p13, 1 - p13, NO, Fraction(1), NO), shown=shown)
    elif word == "gemodel":
        names = ("p", "r", "1-h", "1-k")
        p = _probability(words, "p", shown=shown)
        found.gemodel = _rest(words, names, (p, 1 - p, Fraction(1), NO), shown=shown)
    elif word == "random" or (word[:1].isdigit() and word[:1].isascii()):
        text = words.value(name) if word == "random" else word
        found.loss = percent_of("netem loss", text)
        found.loss_correlation = _correlation("netem loss", words)
    else:
        raise ConfigError(
            f"netem loss: unknown word {quoted(word)}: expected a share, random, state or gemodel"
        )


def _probability(words: Words, name: str, *, shown: bool) -> Fraction:
    if shown:
        words.skip(name)
    return percent_of(f"netem loss {name}", words.value("loss"))


def _rest(
    words: Words, names: tuple[str, ...], defaults: tuple[Fraction, ...], *, shown: bool
) -> tuple[Fraction, ...]:
    """A model's probabilities behind the first, as many as there are."""
    found = list(defaults)
    for number, name in enumerate(names[1:], 1):
        if not (words.has_number() or (shown and words.next == name)):
            break
        # `1-h` begins with a digit: it is a name in a listing, and no number
        found[number] = _probability(words, name, shown=shown)
    return tuple(found)


def _rate_parts(words: Words, found: Netem, *, shown: bool) -> None:
    if (shown and words.skip("packetoverhead")) or words.has_number(signed=True):
        found.overhead = whole_of("netem rate: overhead", words.take(), -(2**31))
    if (shown and words.skip("cellsize")) or words.has_number():
        found.cell = whole_of("netem rate: cell size", words.take())
    if (shown and words.skip("celloverhead")) or words.has_number(signed=True):
        found.cell_overhead = whole_of("netem rate: cell overhead", words.take(), -(2**31))


def _slot(words: Words, found: Netem) -> None:
    found.slot = True
    if words.skip("distribution"):
        if not words.has_number():  # a listing leaves the table's name out
            words.value("slot distribution")
        time_of("netem slot: delay", words.value("slot"))
        if time_of("netem slot: jitter", words.value("slot")) == 0:
            raise ConfigError("netem slot: jitter 0: expected more")
    else:
        least = time_of("netem slot", words.value("slot"))
        if words.has_number() and time_of("netem slot", words.take()) < least:
            raise ConfigError("netem slot: the longest delay is less than the shortest")
    if words.next and "packets".startswith(words.next):
        words.take()
        whole_of("netem slot: packets", words.value("packets"))
    if words.next and "bytes".startswith(words.next):
        words.take()
        burst_of("netem slot: bytes", words.value("bytes"))


# -- the line --------------------------------------------------------------------------------------


def line_of(netem: Netem, where: str, notes: Notes) -> Settings:
    """The settings of a line that does what netem was asked to do. Raises Unsupported."""
    found: Settings = {}
    if netem.slot:
        raise unsupported("netem slot", "a line sends packets as they come, not in slots")
    if netem.limit == 0:
        raise unsupported("netem limit 0", "it drops every packet: write loss 100%")
    _rate_and_queue(netem, found, where, notes)
    _delay(netem, found, where, notes)
    _losses(netem, found, where, notes)
    _duplicates(netem, found, where, notes)
    if netem.corrupt:
        found["corrupt"] = str(Share(netem.corrupt))
        _no_correlation("corrupt", netem.corrupt, netem.corrupt_correlation, where, notes)
    _reorder(netem, found, where, notes)
    if {"loss", "duplicate", "corrupt", "reorder"} & found.keys():
        notes.note(
            where,
            "netem takes a GSO frame of up to 64 KB for one packet; here each packet on the wire "
            "counts",
        )
    return found


def seed_of(netem: Netem, where: str, notes: Notes) -> int | None:
    """The seed of a policy for netem's."""
    if netem.seed is None:
        return None
    notes.note(where, f"netem seed {netem.seed}: repeatable here, too, with other random numbers")
    return netem.seed & SEED_MOST


def _rate_and_queue(netem: Netem, found: Settings, where: str, notes: Notes) -> None:
    limit = netem.limit
    if not netem.rate:
        if netem.delay and limit is not None:
            fits = limit * FRAME_BYTES * 8 * 10**9 / netem.delay
            notes.note(
                where,
                f"netem limit {limit}: with a delay of {time_text(netem.delay)} netem drops beyond "
                f"{rate_text(fits)} of full packets; here the packet pool is the limit "
                "(vnic shape check)",
            )
        return
    found["rate"] = line_rate("netem rate", netem.rate)
    if limit is not None:
        found["queue"] = {"packets": min(limit, PACKETS_MOST)}
        waits = time_text(limit * FRAME_BYTES * 8 * 10**9 / netem.rate)
        text = f"netem limit {limit}: a queue of up to {waits} of full packets at this rate"
        if netem.delay:
            text += "; netem counts packets that are delayed in it, too"
        notes.note(where, text)
    cell = ""
    if netem.cell:
        if (netem.cell, netem.cell_overhead) != (48, 5):
            raise unsupported(
                f"netem rate: cells of {netem.cell} bytes and {netem.cell_overhead} more",
                "a line has ATM's cells, 48 and 5",
            )
        cell = "atm"
    overhead = overhead_setting("netem rate", netem.overhead, 0, cell)
    if overhead is not None:
        found["overhead"] = overhead
    if netem.delay:
        notes.note(
            where,
            "netem rate and delay: in netem a packet's delay passes while it waits for the rate; "
            "here it begins when the packet has been sent",
        )


def _delay(netem: Netem, found: Settings, where: str, notes: Notes) -> None:
    if not netem.delay and not netem.jitter:
        return
    delay, jitter = netem.delay, netem.jitter
    if not jitter:
        found["delay"] = _time("netem delay", delay)
        return
    if jitter > JITTER_CAP_NS:
        notes.warn(where, f"netem jitter {format_time(jitter)}: the kernel uses 2.147s at most")
    settings: Settings = {}
    shape = {"": "uniform", "uniform": "uniform", "normal": "normal"}.get(netem.distribution)
    if netem.distribution in ("pareto", "paretonormal"):
        shape = "pareto"
        of_pareto = netem.distribution == "pareto"
        mean, deviation = (PARETO_MEAN, PARETO_DEVIATION) if of_pareto else (
            PARETONORMAL_MEAN, PARETONORMAL_DEVIATION)  # fmt: skip
        delay += round(mean * jitter)
        jitter = max(round(deviation * jitter), 1)
        text = (
            f"netem distribution {netem.distribution}: its table has a standard deviation of "
            f"{float(deviation):g} of the jitter and ends at 4 times the jitter; here jitter is "
            "the standard deviation"
        )
        if of_pareto:
            notes.note(where, text)
        else:
            notes.warn(where, f"{text}, and the distribution is pareto's")
    if shape is None:
        raise unsupported(
            f"netem distribution {quoted(netem.distribution)}",
            "its table is a file of tc: expected uniform, normal or pareto",
        )
    settings["mean"] = _time("netem delay", max(delay, 0))
    settings["jitter"] = _time("netem jitter", jitter)
    if shape != "uniform":
        settings["shape"] = shape
    if netem.delay_correlation:
        settings["correlation"] = _correlation_text("netem delay", netem.delay_correlation)
        notes.note(
            where,
            f"netem delay: correlation {Share(netem.delay_correlation)}: netem's has no effect on "
            "delays; here it has",
        )
    if not netem.rate:
        settings["order"] = "any"
        notes.warn(
            where,
            "netem jitter: packets overtake each other, which TCP takes for loss; order: any does "
            "the same, without it they stay in order",
        )
    found["delay"] = settings


def _time(what: str, time_ns: int) -> str:
    if time_ns > LineTime.MOST:
        raise unsupported(f"{what} {format_time(time_ns)}", "a delay is an hour at most")
    return format_time(time_ns)


def _correlation_text(what: str, correlation: Fraction) -> str:
    if correlation > CORRELATION_MOST:
        raise unsupported(
            f"{what}: correlation {Share(correlation)}",
            f"nothing would ever change: expected at most {CORRELATION_MOST}",
        )
    return str(Share(correlation))


def _losses(netem: Netem, found: Settings, where: str, notes: Notes) -> None:
    if netem.loss and netem.loss_correlation:
        share, correlation = Share(netem.loss), Share(netem.loss_correlation)
        found["loss"] = {
            "share": str(share),
            "correlation": _correlation_text("netem loss", netem.loss_correlation),
        }
        met = share_text(met_share(float(share), float(correlation)))
        notes.warn(
            where,
            f"netem loss {share} {correlation}: netem loses {met} with this correlation; here "
            f"{share} are lost, as asked",
        )
    elif netem.loss:
        found["loss"] = str(Share(netem.loss))
    elif netem.state:
        names: tuple[str, ...] = ("p13", "p31", "p32", "p23", "p14")
        found["loss"] = _model("state", dict(zip(names, netem.state, strict=True)))
    elif netem.gemodel:
        names = ("to_bad", "to_good", "bad", "good")
        found["loss"] = _model("gemodel", dict(zip(names, netem.gemodel, strict=True)))
    if netem.ecn:
        notes.warn(
            where, "netem ecn: netem marks packets of connections with ECN; here they are lost"
        )


def _model(name: str, shares: dict[str, Fraction]) -> Settings | str:
    defaults = {"bad": 1, "good": 0, "p32": 0, "p23": 1, "p14": 0, "p31": 1 - shares.get("p13", 0)}
    exact = {each: Share(share) for each, share in shares.items()}
    try:
        LossConfig(**exact)  # type: ignore[arg-type]
    except ConfigError as error:
        raise unsupported(f"netem loss {name}", str(error)) from None
    return {each: str(share) for each, share in exact.items() if share != defaults.get(each)}


def _duplicates(netem: Netem, found: Settings, where: str, notes: Notes) -> None:
    if not netem.duplicate:
        return
    found["duplicate"] = str(Share(netem.duplicate))
    # tc sends this correlation only together with another one (q_netem.c).
    others = (netem.delay_correlation, netem.loss_correlation, netem.reorder_correlation,
              netem.corrupt_correlation)  # fmt: skip
    if any(others):
        _no_correlation("duplicate", netem.duplicate, netem.duplicate_correlation, where, notes)
    elif netem.duplicate_correlation:
        notes.note(
            where, "netem duplicate: correlation: tc does not send it to the kernel; left out here"
        )
    if "loss" in found:
        notes.note(
            where,
            "netem loss and duplicate: a packet that is to be lost and duplicated passes netem "
            "once; here a copy of a lost packet arrives",
        )


def _no_correlation(
    name: str, share: Fraction, correlation: Fraction, where: str, notes: Notes
) -> None:
    if not correlation:
        return
    met = share_text(met_share(float(share), float(correlation)))
    notes.warn(
        where,
        f"netem {name} {Share(share)} {Share(correlation)}: left out: the correlation, with which "
        f"netem's share is {met}",
    )


def _reorder(netem: Netem, found: Settings, where: str, notes: Notes) -> None:
    if not netem.reorder:
        return
    # netem delays gap - 1 packets, then sends each next one at once with this probability, and
    # begins anew.
    share = round(1 / (max(netem.gap, 1) - 1 + 1 / netem.reorder), 8)
    found["reorder"] = {"share": str(Share(share)), "by": 1}
    text = (
        f"netem reorder {Share(netem.reorder)}"
        + (f" gap {netem.gap}" if netem.gap > 1 else "")
        + f": netem sends {share_text(float(share))} of packets ahead, without the delay; here as "
        "many are held back until `by` others have passed: set by:"
    )
    notes.warn(where, text)
    _no_correlation("reorder", netem.reorder, netem.reorder_correlation, where, notes)

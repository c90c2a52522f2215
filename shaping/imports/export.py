"""A policy as a script of tc commands for a Linux interface, with comments on what tc cannot say.

What a NIC sends hangs below the root of its device, what it receives below the root of an ifb
device. In both, netem comes first, then the rate (tbf) or the classes (htb), then parts (prio with
netem) and, within these, lines to single NICs (prio again): each qdisc holds the next.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

from dataplane.errors import ConfigError
from dataplane.units import format_rate, format_time
from shaping.imports.export_classes import FILTERS_MOST, Tree
from shaping.imports.export_filters import Matches, filters_of
from shaping.imports.netem import PARETO_DEVIATION, PARETO_MEAN
from shaping.imports.notes import Notes, quoted
from shaping.overhead import Overhead
from shaping.policy.compile import FRAME_BYTES, by_place, queue_of
from shaping.policy.figures import bdp_packets
from shaping.policy.findings import refuse
from shaping.policy.keys import ANY
from shaping.policy.load import Policy
from shaping.policy.network import Network
from shaping.policy.places import Line, Place, Plan, plan_of
from shaping.policy.scalars import QueueSize, decimal_text
from shaping.policy.schema import DelayConfig, LossConfig

DEVICE_MOST = 15  # characters of an interface's name in Linux
BANDS_MOST = 16  # of prio
PACKETS_MOST = 1_000_000
FAST_BPS = 10**10  # where packets come at an unknown rate
DECIMALS = 12  # of a percentage, as in a policy
SAID = ("rate", "queue", "overhead", "delay", "loss", "duplicate", "corrupt", "reorder")
BURST_NS = 10**6  # a burst of tbf, at its rate; and two frames at least
T = TypeVar("T")


@dataclass
class Script:
    """commands: and comments; notes: what tc cannot say"""

    nic: str
    device: str
    lines: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)

    def cannot(self, text: str) -> None:
        """Something that the script leaves out or changes."""
        self.notes.warn("", text)
        self.lines.append(f"# {text}")

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


def check_device(name: str) -> None:
    """Raises ConfigError for a name that an interface cannot have."""
    if not 0 < len(name) <= DEVICE_MOST or not name.replace("-", "a").replace(".", "a").replace(
        "_", "a"
    ).isalnum() or not name.isascii():  # fmt: skip
        raise ConfigError(
            f"{quoted(name)} is no name of an interface: expected at most {DEVICE_MOST} letters, "
            "digits, -, . and _; write --dev NAME"
        )


def export_tc(
    policy: Policy, classes: dict[str, Any], network: Network, nic: str, device: str
) -> Script:
    """The script for one NIC. classes: those of the policy, as plain data. Raises ConfigError."""
    check_device(device)
    plan = plan_of(policy, network)
    refuse(plan.findings)
    script = Script(nic, device)
    script.lines += [
        "#!/bin/sh",
        f"# What NIC {nic} sends and receives, for interface {device} of Linux.",
    ]
    if policy.seed is not None:
        script.cannot(f"seed {policy.seed}: netem has a seed from Linux 6.6 on, and draws others")
    trees = {
        way: Tree(key, classes[key], network.nics, script.cannot)
        for way, other in (("egress", f"{nic} -> {ANY}"), ("ingress", f"{ANY} -> {nic}"))
        for key in (f"{nic}.{way}", other) if key in classes
    }  # fmt: skip
    lines = by_place(plan.lines.values())
    out, back = (_place(each, lines.get(each, [])) for each in (Place(nic, ANY), Place(ANY, nic)))
    pairs = [
        _place(place, each) for place, each in lines.items()
        if place.is_pair and place.source == nic
    ]  # fmt: skip
    _others(plan, nic, script)
    script.lines.append(f"tc qdisc del dev {device} root 2>/dev/null || true")
    _Way(script, device, network).write(out, trees.get("egress"), pairs)
    if back.line is not None or back.parts or "ingress" in trees:
        mirror = f"ifb-{device}"[:DEVICE_MOST]
        script.lines += [
            f"ip link add {mirror} type ifb 2>/dev/null || true",
            f"ip link set {mirror} up",
            f"tc qdisc del dev {mirror} root 2>/dev/null || true",
            f"tc qdisc del dev {device} ingress 2>/dev/null || true",
            f"tc qdisc add dev {device} handle ffff: ingress",
            f"tc filter add dev {device} parent ffff: protocol all u32 match u32 0 0 action mirred "
            f"egress redirect dev {mirror}",
        ]
        _Way(script, mirror, network).write(back, trees.get("ingress"), [])
    return script


def nics_of(policy: Policy, classes: dict[str, Any], network: Network) -> list[str]:
    """The NICs that a policy says something about, in the order of the file."""
    plan = plan_of(policy, network)
    refuse(plan.findings)
    found: dict[str, None] = {}
    for place in plan.lines:
        if not place.link:
            found[place.target if place.source == ANY else place.source] = None
    for nic in network.nics:
        keys = (f"{nic}.egress", f"{nic}.ingress", f"{nic} -> {ANY}", f"{ANY} -> {nic}")
        if any(key in classes for key in keys):
            found[nic] = None
    return list(found)


def _others(plan: Plan, nic: str, script: Script) -> None:
    for place in plan.lines:
        if place.link:
            script.cannot(f"{place}: a link between switches has no interface of its own")
        elif place.is_pair and place.target == nic:
            script.lines.append(f"# {place}: in the script for {place.source}")


class _Place(NamedTuple):
    """What happens to the packets of one place: to all of them, and to parts of them before."""

    place: Place
    line: Line | None
    parts: list[Line]

    @property
    def has_rate(self) -> bool:
        return any(line.rate for line in (*self.parts, self.line) if line is not None)


def _place(place: Place, lines: list[Line]) -> _Place:
    parts = [line for line in lines if line.place.part]
    return _Place(place, next((line for line in lines if not line.place.part), None), parts)


class _Way:
    """The qdiscs of one device."""

    def __init__(self, script: Script, device: str, network: Network) -> None:
        self.script, self.device, self.network = script, device, network
        self.handle = 0
        self.parent = "root"

    def add(self, words: str, before: str = "", label: str = "") -> None:
        """Adds a qdisc below the last one. label: of a comment behind it."""
        self.handle += 1
        where = self.parent if self.parent == "root" else f"parent {self.parent}"
        comment = f"  # {label}" if label else ""
        self.script.lines.append(
            f"tc qdisc add dev {self.device} {where} handle {self.handle:x}: {before}{words}"
            f"{comment}"
        )
        self.parent = f"{self.handle:x}:1"

    def write(self, place: _Place, tree: Tree | None, pairs: list[_Place]) -> None:
        below = bool(place.parts or pairs)
        if place.line is not None:
            self.line(place.line, without_rate=tree is not None, without_queue=below)
        if tree is None:
            self.parts(place.parts, pairs)
            return
        self.handle += 1
        where = self.parent if self.parent == "root" else f"parent {self.parent}"
        impaired = self.impaired(tree, place.parts)
        self.script.lines += tree.commands(self.device, where, self.handle, impaired)
        if pairs:
            self.script.cannot(
                f"{', '.join(str(each.place) for each in pairs[:4])}: left out beside classes"
            )

    def impaired(self, tree: Tree, parts: list[Line]) -> dict[str, str]:
        """netem for leaves of a tree, by their paths."""
        paths = tree.leaves_of([line.matches for line in parts])
        if paths is None:
            names = ", ".join(str(line.place) for line in parts[:4])
            self.script.cannot(
                f"{names}: left out beside classes, since their packets are not those of classes"
            )
            return {}
        found = {}
        for path, line in zip(paths, parts, strict=True):
            self.unknown(line)
            if line.rate:
                self.script.cannot(f"{line.place}: rate: left out beside classes")
            if words := netem_words(line, self.script):
                found[path] = f"netem {words}  # {line.place.part}"
        return found

    def unknown(self, line: Line) -> None:
        if unknown := line.settings.keys() - set(SAID):
            self.script.cannot(f"{line.place}: {', '.join(sorted(unknown))}: tc has none: left out")

    def line(self, line: Line, *, without_rate: bool = False, without_queue: bool = False) -> None:
        """netem and tbf for a line. without_queue: what follows has queues of its own."""
        self.unknown(line)
        label = line.place.part
        if words := netem_words(line, self.script):
            self.add(f"netem {words}", label=label)
            label = ""
        if line.rate and without_rate:
            self.script.cannot(f"{line.place}: rate {line.value('rate')}: left out beside classes")
        elif line.rate:
            before, words, packets = tbf_words(line, self.script)
            self.add(f"tbf {words}", before, label)
            if without_queue:
                self.script.cannot(
                    f"{line.place}: queue: below tbf are the queues of parts and of lines to "
                    "single NICs, of which prio serves those of the first band first"
                )
            elif packets is not None:
                self.add(f"pfifo limit {packets}")

    def parts(self, parts: list[Line], pairs: list[_Place]) -> None:
        """A band of prio for each part, and in each band those of lines to single NICs, which all
        packets pass."""
        if not parts:
            self.pairs(pairs)
            return
        whole = parts[0].place.whole
        for each in pairs:
            if each.has_rate:
                self.script.cannot(f"{each.place}: rate: for each part of {whole} by itself")
        parts = self.bands(parts, f"parts of {whole}")
        number = self.prio(len(parts))
        self.pairs(pairs)
        pref = itertools.count(1)
        for band, line in enumerate(parts, 2):
            self.parent = f"{number:x}:{band:x}"
            self.line(line, without_queue=bool(pairs))
            self.pairs(pairs)
            for matches in filters_of(line.matches, str(line.place), self.script.cannot):
                if (at := next(pref)) > FILTERS_MOST:
                    raise ConfigError(f"{whole}: its parts need more than {FILTERS_MOST} filters")
                self.filter(number, band, at, matches)

    def pairs(self, pairs: list[_Place]) -> None:
        """A band of prio for each NIC; the first is for all others."""
        if not pairs:
            return
        pairs = self.bands(pairs, "lines to NICs")
        number = self.prio(len(pairs))
        for band, (place, line, parts) in enumerate(pairs, 2):
            self.parent = f"{number:x}:{band:x}"
            before = self.handle
            if line is not None:
                self.line(line, without_queue=bool(parts))
            self.parts(parts, [])
            if self.handle == before:
                continue  # nothing of it can be said
            to = Matches("all", [f"ether dst {self.network.nics[place.target]}"])
            self.filter(number, band, band - 1, to, f"  # {place.target}")

    def filter(self, prio: int, band: int, pref: int, matches: Matches, comment: str = "") -> None:
        command = matches.command(self.device, f"{prio:x}:", pref, f"{prio:x}:{band:x}")
        self.script.lines.append(command + comment)

    def bands(self, entries: list[T], what: str) -> list[T]:
        """As many as prio has bands for."""
        if len(entries) >= BANDS_MOST:
            self.script.cannot(
                f"{len(entries)} {what}: prio has {BANDS_MOST} bands: the first {BANDS_MOST - 1} "
                "are here"
            )
        return entries[: BANDS_MOST - 1]

    def prio(self, count: int) -> int:
        """Adds prio with a band for all that no filter leads elsewhere, and others; returns its
        number."""
        self.add(f"prio bands {max(count + 1, 2)} priomap{' 0' * 16}")
        return self.handle


# -- words -----------------------------------------------------------------------------------------


def percent(share: Fraction | float) -> str:
    return f"{decimal_text(round(Fraction(share) * 100, DECIMALS))}%"


def netem_words(line: Line, script: Script) -> str:
    """netem's options for a line; "" if it needs no netem."""
    words: list[str] = []
    if line.delay is not None and line.delay.longest:
        words += _delay(line, line.delay, script)
    if line.loss is not None and line.loss.chain.share:
        words += _loss(line, line.loss, script)
    if (duplicate := line.value("duplicate")) is not None and duplicate:
        words += ["duplicate", percent(duplicate)]
    if (corrupt := line.value("corrupt")) is not None and corrupt.share:
        words += ["corrupt", percent(corrupt.share)]
        if (corrupt.part, corrupt.checksum) != ("any", "keep"):
            script.cannot(
                f"{line.place}: corrupt part: {corrupt.part}, checksum: {corrupt.checksum}: netem "
                "changes a bit anywhere and no checksum"
            )
    if (reorder := line.value("reorder")) is not None and reorder.share:
        script.cannot(
            f"{line.place}: reorder by {reorder.by}: left out: netem sends packets ahead of all "
            "that are delayed"
        )
    if not words:
        return ""
    limit = 1000
    if line.delay is not None:
        # room for what is under way, twice: netem drops what exceeds its limit without a word
        limit = max(limit, 2 * bdp_packets(line.rate or FAST_BPS, line.delay.longest))
    return " ".join(["limit", str(min(limit, PACKETS_MOST)), *words])


def _delay(line: Line, delay: DelayConfig, script: Script) -> list[str]:
    mean, jitter = int(delay.mean), int(delay.jitter or 0)
    if not jitter:
        return ["delay", format_time(mean)]
    if delay.shape == "pareto":
        jitter = round(jitter / PARETO_DEVIATION)
        mean = max(mean - round(PARETO_MEAN * jitter), 0)
        script.cannot(f"{line.place}: pareto: netem's table ends at 4 times its jitter")
    words = ["delay", format_time(mean), format_time(jitter)]
    if delay.correlation:
        words.append(percent(delay.correlation))
        script.cannot(f"{line.place}: correlation of delays: netem's has no effect")
    if delay.order == "keep":
        script.cannot(f"{line.place}: order: keep: netem lets packets overtake each other")
    if delay.shape != "uniform":
        words += ["distribution", delay.shape]
    return words


def _loss(line: Line, loss: LossConfig, script: Script) -> list[str]:
    if loss.model == "p13":
        shares = [loss.p13, loss.p31, loss.p32, loss.p23, loss.p14]
        return ["loss", "state", *(percent(each or Fraction(0)) for each in shares)]
    if loss.model == "to_bad":
        shares = [loss.to_bad, loss.to_good, loss.bad, loss.good]
        return ["loss", "gemodel", *(percent(each or Fraction(0)) for each in shares)]
    share = Fraction(loss.share or 0)
    if share == 1 or (loss.burst is None and loss.correlation is None):
        return ["loss", "random", percent(share)]
    if loss.burst is not None:
        leave = 1 / Fraction(loss.burst)
        enter = leave * share / (1 - share)
    else:
        correlation = Fraction(loss.correlation or 0)
        enter, leave = share * (1 - correlation), (1 - share) * (1 - correlation)
        script.lines.append(
            f"# {line.place}: loss with correlation as Gilbert's model, since netem's own "
            "correlation changes the share"
        )
    return ["loss", "gemodel", percent(enter), percent(leave)]


def size_words(size: Overhead, script: Script, what: str) -> tuple[str, list[str]]:
    """What tc adds to each packet: as options of `stab`, "" for none, or of tbf and htb."""
    words: list[str] = []
    if size.bytes:
        words += ["overhead", str(size.bytes)]
    if size.minimum:
        words += ["mpu", str(size.minimum)]
    if size.cell == "atm":
        words += ["linklayer", "atm"]
    elif size.cell == "ptm":
        script.cannot(f"{what}: cells of PTM: their share is taken off the rate")
    if size.bytes < 0:
        return f"stab {' '.join(words)} ", []
    return "", words


def tbf_words(line: Line, script: Script) -> tuple[str, str, int | None]:
    """(what stands before tbf, tbf's options, packets of a fifo in it; None: it has none)"""
    overhead = line.value("overhead")
    size: Overhead = overhead.added if overhead is not None else Overhead()
    before, more = size_words(size, script, str(line.place))
    rate = line.rate * 64 // 65 if size.cell == "ptm" else line.rate
    burst = max(math.ceil(rate * BURST_NS / 8 / 10**9), 2 * FRAME_BYTES + 172)
    words = ["rate", format_rate(rate), "burst", f"{burst}b"]
    queue = queue_of(line)
    if queue.time is not None:
        words += ["latency", _latency(queue.time)]
    else:
        limit = int(queue.size) if queue.size is not None else (queue.packets or 0) * FRAME_BYTES
        words += ["limit", f"{min(limit, QueueSize.MOST)}b"]
    return before, " ".join([*words, *more]), queue.packets


def _latency(time_ns: int) -> str:
    """A time in whole microseconds, as tbf has it."""
    return format_time(max(time_ns // 1000, 1) * 1000)

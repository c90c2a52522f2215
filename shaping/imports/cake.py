"""tc's cake as the discipline of the same name.

Flows, hosts, the round trip and the memory carry over. Its rate and overhead are those of the
classes around it. Tins are classes that the file does not have; NAT, ACK filters, washing and the
rest of what changes or guesses is left out, with a note each.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.units import format_size, format_time, parse_time
from shaping.class_settings import RTT_NS
from shaping.imports.leaf import Leaf
from shaping.imports.notes import unsupported
from shaping.imports.quantities import microseconds_of, rate_of, size_of, whole_of
from shaping.imports.words import Words
from shaping.policy.scalars import QueueSize

_RTT = {"datacentre": "100us", "lan": "1ms", "metro": "10ms", "regional": "30ms",
        "internet": "100ms", "oceanic": "300ms", "satellite": "1s",
        "interplanetary": "1h"}  # fmt: skip
_HOSTS = {"dual-srchost": "source", "dual-dsthost": "destination", "triple-isolate": "both",
          "flows": "none"}  # fmt: skip
# One queue for all, or for each host; here flows have queues of their own always.
_ONE_QUEUE = {"flowblind": "none", "srchost": "source", "dsthost": "destination", "hosts": "both"}
_NO_TINS, _USUAL_TINS = "besteffort", "diffserv3"
_TINS = (_NO_TINS, _USUAL_TINS, "precedence", "diffserv8", "diffserv4", "diffserv")
_LEFT_OUT = ("wash", "nat", "ack-filter", "ack-filter-aggressive", "ingress", "autorate-ingress",
             "no-split-gso")  # fmt: skip
_NOTHING = ("nowash", "nonat", "no-ack-filter", "split-gso", "egress", "via-ethernet")
# Bytes that each keyword adds to an IP packet, least length, cells: see tc-cake(8).
_LINES = {
    "conservative": (48, None, "atm"), "ipoa-vcmux": (8, None, "atm"),
    "ipoa-llcsnap": (16, None, "atm"), "bridged-vcmux": (24, None, "atm"),
    "bridged-llcsnap": (32, None, "atm"), "pppoa-vcmux": (10, None, "atm"),
    "pppoa-llc": (14, None, "atm"), "pppoe-vcmux": (32, None, "atm"),
    "pppoe-llcsnap": (40, None, "atm"), "pppoe-ptm": (30, None, "ptm"),
    "bridged-ptm": (22, None, "ptm"), "ethernet": (38, 84, None), "ether-vlan": (4, None, None),
    "docsis": (18, 64, ""),
}  # fmt: skip
_SIZES = ("raw", "ptm", "atm", "noatm", "overhead", "mpu", *_LINES)
_KNOWN = ("bandwidth", "unlimited", "rtt", "memlimit", "fwmark", *_RTT, *_HOSTS, *_ONE_QUEUE,
          *_TINS, *_LEFT_OUT, *_NOTHING, *_SIZES)  # fmt: skip


@dataclass
class _Overhead:
    """What the line adds to each packet, word by word. added: to the IP packet, where is_given."""

    added: int = 0
    minimum: int = 0
    cell: str = ""
    is_given: bool = False

    def read(self, words: Words, name: str) -> None:
        """A word of _SIZES, with what is behind it."""
        if name in _LINES:
            more, least, cell = _LINES[name]
            self.added += more
            self.minimum = self.minimum if least is None else least
            self.cell = self.cell if cell is None else cell
            self.is_given = True
        elif name == "raw":
            self.added, self.cell, self.is_given = 0, "", False
        elif name == "overhead":
            self.added = whole_of("cake overhead", words.value(name), -64, 256)
            self.is_given = True
        elif name == "mpu":
            self.minimum = whole_of("cake mpu", words.value(name), most=256)
        else:
            self.cell = "" if name == "noatm" else name

    def of_frames(self, *, shown: bool) -> tuple[int, int, str] | None:
        """The same for frames, whose Ethernet header it replaces; None: nothing."""
        if shown and not (self.added or self.minimum or self.cell):
            return None  # a listing has also what is the default
        if not (self.is_given or self.cell or self.minimum):
            return None
        return (self.added - 14 if self.is_given else 0, self.minimum, self.cell)


def parse_cake(words: Words, shown: bool) -> Leaf:
    """The options of cake. Raises ConfigError."""
    leaf, overhead = Leaf("cake"), _Overhead()
    preset, tins, flows = "", _USUAL_TINS, ""
    while words:
        name = words.option((), _KNOWN)
        if name == "bandwidth":
            text = words.value(name)
            leaf.rate = 0 if shown and text == "unlimited" else rate_of("cake bandwidth", text)
        elif name == "unlimited":
            leaf.rate = 0
        elif name in _SIZES:
            overhead.read(words, name)
        elif name == "rtt":
            leaf.settings["rtt"] = format_time(microseconds_of("cake rtt", words.value(name)))
        elif name in _RTT:
            words.once(preset, name)
            preset, leaf.settings["rtt"] = name, _RTT[name]
        elif name in _HOSTS or name in _ONE_QUEUE:
            flows, leaf.settings["hosts"] = name, {**_HOSTS, **_ONE_QUEUE}[name]
        elif name in _TINS:
            tins = name
        elif name == "memlimit":
            leaf.settings["size"] = _memory(size_of("cake memlimit", words.value(name)))
        elif name == "fwmark":
            whole_of("cake fwmark", words.value(name))
            leaf.left_out.append(name)
        elif name in _LEFT_OUT:
            leaf.left_out.append(name)
    if flows in _ONE_QUEUE:
        hosts = leaf.settings["hosts"]
        leaf.left_out.append(f"{flows}, in place of hosts: {hosts} and their flows")
    if tins != _NO_TINS:
        leaf.left_out.append(f"{tins}: its tins")
    _forget_defaults(leaf)
    leaf.overhead = overhead.of_frames(shown=shown)
    return leaf


def _memory(size: int) -> str:
    if not QueueSize.LEAST <= size <= QueueSize.MOST:
        least, most = format_size(QueueSize.LEAST), format_size(QueueSize.MOST)
        raise unsupported(f"cake memlimit {format_size(size)}", f"a queue is {least} to {most}")
    return format_size(size)


def _forget_defaults(leaf: Leaf) -> None:
    """A listing says them all."""
    if leaf.settings.get("hosts") == "both":
        del leaf.settings["hosts"]
    if "rtt" in leaf.settings and parse_time(leaf.settings["rtt"]) == RTT_NS:
        del leaf.settings["rtt"]

"""Keys of a policy's `links`: which place an entry is for, in names that are not looked up yet."""

from __future__ import annotations

import re
from typing import NamedTuple

from dataplane.config.convert import shown
from dataplane.errors import ConfigError

ANY = "any"
BOTH, ONE = "<->", "->"
EXAMPLES = "web -> db, web <-> db, web -> any, any -> web, web, or a link such as lan--dmz"
PART_MOST = 32  # characters of a part's name
CLASS_WAYS = (".egress", ".ingress")  # ends of keys of `classes`, as in web.egress

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_KEY = re.compile(rf"({_NAME})(?:\s+(<->|->)\s+({_NAME}))?(?:\s*/\s*({_NAME}))?", re.ASCII)
_ARROW = re.compile(r"\s*(<-+>|<-+|-+>|<=>|=>|<=|→|↔|←)\s*")
NAME_MOST = 66  # characters of a link's name; a NIC's has 32
TEXT_MOST = 2 * NAME_MOST + 64  # of a key: what is longer is not searched for what it could mean


class LinkKey(NamedTuple):
    """first, arrow, second: `web -> db`; arrow and second are "" where there is one name only.
    part: the name of a part of these packets, as in `web -> db/dns`; "": all of them."""

    first: str
    arrow: str = ""
    second: str = ""
    part: str = ""

    @property
    def both_ways(self) -> bool:
        return self.arrow != ONE

    def __str__(self) -> str:
        whole = f"{self.first} {self.arrow} {self.second}" if self.arrow else self.first
        return f"{whole}/{self.part}" if self.part else whole


def parse_key(text: str) -> LinkKey:
    """Raises ConfigError."""
    if len(text) > TEXT_MOST:
        raise ConfigError(f"is longer than {TEXT_MOST} characters: expected {EXAMPLES}")
    match = _KEY.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"is not a place: {_hint(text)}")
    key = LinkKey(match[1], match[2] or "", match[3] or "", match[4] or "")
    if len(key.first) > NAME_MOST or len(key.second) > NAME_MOST:
        raise ConfigError(f"a name is longer than {NAME_MOST} characters: expected {EXAMPLES}")
    if len(key.part) > PART_MOST:
        raise ConfigError(f"the part's name is longer than {PART_MOST} characters: expected less")
    if ANY in (key.first, key.second):
        other = key.second if key.first == ANY else key.first
        if other in (ANY, ""):
            raise ConfigError(f"names no NIC: expected {EXAMPLES}")
        if key.arrow == BOTH:
            raise ConfigError(f"is all that {other} sends and receives: write {other}")
    if key.first == key.second:
        raise ConfigError(f"leads from {key.first} to itself: expected two NICs")
    return key


def parse_name(text: str, examples: str = "the name of a NIC or link, such as web") -> str:
    """One name, which is not looked up. Raises ConfigError."""
    if not re.fullmatch(_NAME, text, re.ASCII) or len(text) > NAME_MOST or text == ANY:
        raise ConfigError(f"invalid name {shown(text)}: expected {examples}")
    return text


def _hint(text: str) -> str:
    """What to write instead."""
    parts = _ARROW.split(text.strip())
    if len(parts) == 3 and all(re.fullmatch(_NAME, each, re.ASCII) for each in parts[::2]):
        first, arrow, second = parts
        if ("<" in arrow and ">" in arrow) or arrow == "↔":
            return f"write {first} {BOTH} {second}"
        if "<" in arrow or arrow == "←":
            return f"write {second} {ONE} {first}"
        return f"write {first} {ONE} {second}"
    ends = re.fullmatch(rf"({_NAME})\s+--\s+({_NAME})", text.strip(), re.ASCII)
    if ends is not None:
        return f"write the link's name, such as {ends[1]}--{ends[2]}"
    if len(parts) > 3:
        return "expected one arrow, such as web -> db"
    return f"expected {EXAMPLES}"

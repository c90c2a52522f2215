"""The form that all readers fill: places and settings of a policy, as plain data.

`links` and `classes` are those of a policy file; shaping/policy/schema.py describes them.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any

from dataplane.config.load import BYTES_MOST, dump_yaml
from dataplane.errors import ConfigError
from shaping.imports.notes import Notes, quoted
from shaping.policy.keys import ANY, PART_MOST
from shaping.policy.load import convert_policy
from shaping.policy.schema import POLICY_VERSION

TEXT_MOST = 8 << 20  # bytes of a file: a listing of 10,000 classes with filters is 3 MB
NIC_MOST = 32  # characters of a NIC's name
EGRESS, INGRESS = "egress", "ingress"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)

Settings = dict[str, Any]


@dataclass
class Draft:
    """A policy in the making.

    seed     of random numbers; None: not given
    links    settings by place (`web -> any`, or `web -> any/dns` for a part)
    classes  trees by `NIC.egress` or `NIC.ingress`
    notes    what differs
    """

    seed: int | None = None
    links: dict[str, Settings] = field(default_factory=dict)
    classes: dict[str, Settings] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    # Keys of parts by the name that was wanted and by their matches.
    _parts: dict[str, dict[str, str]] = field(default_factory=dict)

    def add_line(self, place: str, settings: Settings, where: str = "") -> None:
        """Adds settings to a place. Raises ConfigError for one that is there with another
        value."""
        line = self.links.setdefault(place, {})
        for name, value in settings.items():
            if name not in line:
                # a copy: YAML writes what is there twice as a reference to the first
                line[name] = copy.deepcopy(value)
            elif line[name] != value:
                raise ConfigError(
                    f"{where}: {place}: has {name} {line[name]} already, and now {value}: "
                    "expected one of them"
                )
        if not line:
            del self.links[place]

    def add_part(
        self, place: str, name: str, match: list[Settings], settings: Settings, where: str
    ) -> None:
        """Adds settings to a part of a place. name: wanted; one that another part has gets a
        number behind it. match: conditions, of which one holds. Raises ConfigError as add_line."""
        wanted = self._parts.setdefault(f"{place}/{name}", {})
        key = repr(match)
        if key not in wanted:
            found, number = f"{place}/{name}", len(wanted) + 1
            while found in self.links:
                found = f"{place}/{name[: PART_MOST - len(f'-{number}')]}-{number}"
                number += 1
            wanted[key] = found
        given = match[0] if len(match) == 1 else match
        self.add_line(wanted[key], {"match": given, **settings}, where)

    @property
    def empty(self) -> bool:
        return not self.links and not self.classes

    @property
    def data(self) -> dict[str, Any]:
        """The policy in the form of a file."""
        found: dict[str, Any] = {"version": POLICY_VERSION}
        if self.seed is not None:
            found["seed"] = self.seed
        if self.links:
            found["links"] = self.links
        if self.classes:
            found["classes"] = self.classes
        return found

    @property
    def text(self) -> str:
        """The policy as YAML. Raises ConfigError for one that a policy file cannot hold."""
        text = dump_yaml(self.data)
        if len(text) > BYTES_MOST:
            raise ConfigError(
                f"the policy has {len(text)} bytes: expected at most {BYTES_MOST}; import fewer "
                "devices at once"
            )
        return text

    def check(self) -> None:
        """Raises ConfigError where it is no valid policy."""
        convert_policy(self.data)


class Names:
    """Names of NICs for the names of another tool: devices, services, labels, addresses.

    given: from --map, such as {"eth0": "web", "ifb0": "web.ingress"}
    only: from --nic: the name for the one device of the file
    """

    def __init__(self, given: dict[str, str], only: str | None, notes: Notes) -> None:
        self.given, self.only, self.notes = given, only, notes
        self._of_only: str | None = None
        for name in [*(_split(each)[0] for each in given.values()), *([only] if only else [])]:
            check_nic(name)

    def nic(self, name: str, where: str, what: str = "device") -> str:
        """The NIC for a name of another tool. Raises ConfigError."""
        return self.place(name, where, what)[0]

    def place(self, name: str, where: str, what: str = "device") -> tuple[str, str]:
        """(NIC, direction of the container's traffic that leaves by this device)."""
        if name in self.given:
            return _split(self.given[name])
        if self.only is not None:
            if self._of_only not in (None, name):
                raise ConfigError(
                    f"{where}: --nic {self.only} is for one {what}, and there are "
                    f"{quoted(self._of_only)} and {quoted(name)}: "
                    "write --map NAME=NIC for each of them"
                )
            self._of_only = name
            return self.only, EGRESS
        if not name:
            raise ConfigError(f"{where}: names no {what}: write --nic NAME")
        if NAME.fullmatch(name) is None or len(name) > NIC_MOST or name == ANY:
            raise ConfigError(
                f"{where}: {what} {quoted(name)} cannot be a NIC's name: "
                f"write --map {name[:40]}=NIC"
            )
        self.notes.note(where, f"{what} {name}: taken for NIC {name}; --map {name}=NIC names it")
        return name, EGRESS

    def of_address(self, address: str) -> str | None:
        """The NIC that has an IP or MAC address, from --map ADDRESS=NIC."""
        for text in (address, address.removesuffix("/32").removesuffix("/128")):
            if text in self.given:
                return _split(self.given[text])[0]
        return None


def check_nic(name: str) -> None:
    """Raises ConfigError for a name that a NIC cannot have in a policy."""
    if NAME.fullmatch(name) is None or len(name) > NIC_MOST or name == ANY:
        raise ConfigError(
            f"{quoted(name)} is no name of a NIC: expected letters, digits, _, . and -, such as web"
        )


def _split(text: str) -> tuple[str, str]:
    name, dot, direction = text.rpartition(".")
    if dot and direction in (EGRESS, INGRESS):
        return name, direction
    return text, EGRESS


def line_key(nic: str, direction: str, other: str = ANY) -> str:
    """The place of what a NIC sends to another (egress) or receives from it (ingress)."""
    return f"{nic} -> {other}" if direction == EGRESS else f"{other} -> {nic}"


def opposite(direction: str) -> str:
    return INGRESS if direction == EGRESS else EGRESS

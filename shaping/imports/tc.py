"""Reads tc(8): a script of commands, what `tc show` prints, or what `tc -j show` prints."""

from __future__ import annotations

import re

from shaping.imports.form import Draft, Names
from shaping.imports.tc_json import read_json
from shaping.imports.tc_policy import draft_of
from shaping.imports.tc_script import read_script
from shaping.imports.tc_show import read_show

_SHOWN = re.compile(
    r"\s*(?:qdisc \S+ [0-9a-f]*:|class \S+ [0-9a-f]*:[0-9a-f]* |filter (?!add|rep|ch|del))",
    re.ASCII,
)


_CLASS = re.compile(r"class \S+ [0-9a-f]*:[0-9a-f]* ", re.ASCII)


def read_tc(text: str, name: str, names: Names) -> Draft:
    """The policy for a text of tc. Raises ConfigError."""
    notes = names.notes
    begin = text.lstrip()[:200]
    if begin[:1] in ("[", "{"):
        # tc -j class show prints text in many versions
        lines = text.split("\n")
        classes = [line if _CLASS.match(line) else "" for line in lines]
        others = ["" if found else line for line, found in zip(lines, classes, strict=True)]
        devices = read_json("\n".join(others), name, notes)
        if any(classes):
            read_show("\n".join(classes), name, notes, devices)
    elif _SHOWN.match(begin):
        devices = read_show(text, name, notes)
    else:
        return draft_of(read_script(text, name, notes), names, notes)
    devices.join_unnamed()
    return draft_of(devices, names, notes)

"""What an element's class says of itself, for `vnic element` and docs/elements.md.

The source is the class: its doc block (CONTRIBUTING.md, "An element"), COUNTERS, DROP_REASONS and
HANDLERS.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

from dataplane.graph.element import Element
from dataplane.graph.handlers import handlers_of
from vnic.modules.chain import BUILT_IN, element_class

SECTIONS = (
    "Synopsis",
    "Ports",
    "Config",
    "Drops",
    "Counters",
    "Handlers",
    "Threads",
    "Cost",
    "Example",
)
_SECTION = re.compile(rf"({'|'.join(SECTIONS)}): *(.*)")
_ENTRY = re.compile(r"([a-z_0-9]+): (.*)")
_SIGNATURE = re.compile(r"\w+\((.*)\)")


class Argument(msgspec.Struct, frozen=True):
    """An argument of an element's constructor; `default` as Python writes it, None: required."""

    default: str | None
    about: str

    def text(self) -> str:
        """The description, with the default unless it is told there."""
        if self.default is None or re.search("[Dd]efault:", self.about):
            return self.about
        return f"{self.about} [default: {self.default}]".strip()


class ElementDoc(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say of an element's class.

    summary    one sentence
    about      further paragraphs
    arguments  the constructor's, by name
    counters   what the element counts, besides packets
    drops      the reasons for which it drops packets
    handlers   name -> {"read", "write", "mode", "help"}
    example    a configuration in YAML, or "" ; example_about says what it does
    """

    name: str
    reference: str
    summary: str
    about: list[str]
    ports: str
    arguments: dict[str, Argument]
    counters: dict[str, str]
    drops: dict[str, str]
    handlers: dict[str, dict[str, Any]]
    example_about: str
    example: str


def _sections(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """The paragraphs of a doc block, and its sections by name, each as lines."""
    plain: list[str] = []
    sections: dict[str, list[str]] = {}
    lines: list[str] | None = None
    column = 0  # where the section's text begins; what its lines have beyond is their own
    for line in text.splitlines():
        if match := _SECTION.fullmatch(line):
            lines, column = [match[2]], match.start(2)
            sections[match[1]] = lines
        elif lines is not None and (line.startswith(" ") or not line):
            lines.append(line[min(column, len(line) - len(line.lstrip())) :])
        else:
            lines = None
            plain.append(line)
    found = {name: "\n".join(each).rstrip().splitlines() for name, each in sections.items()}
    return [each for each in re.split(r"\n\s*\n", "\n".join(plain).strip()) if each], found


def _entries(lines: list[str]) -> dict[str, str]:
    """`name: text` entries of a section; continuation lines of a text are indented."""
    found: dict[str, str] = {}
    entry = ""
    for line in lines:
        if match := _ENTRY.fullmatch(line):
            entry = match[1]
            found[entry] = match[2]
        elif entry and line.startswith(" "):
            found[entry] += " " + line.strip()
    return found


def _parameters(kind: type[Element]) -> dict[str, str | None]:
    """The constructor's arguments and their defaults as Python writes them; without `name`, which
    the configuration gives."""
    try:
        parameters = list(inspect.signature(kind).parameters.values())
    except ValueError:  # a compiled class: Cython writes the signature in front of the docstring
        first = (kind.__doc__ or "").partition("\n")[0]
        match = _SIGNATURE.fullmatch(first)
        arguments = [each.strip() for each in match[1].split(",")] if match else []
        # an argument of one of vnic's classes ("Port port") has no value in YAML
        given = [each for each in arguments if not re.match(r"[A-Z]\w* ", each)]
        found = {
            name: default or None for name, _, default in (each.partition("=") for each in given)
        }
    else:
        found = {
            each.name: None if each.default is each.empty else repr(each.default)
            for each in parameters
            if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        }
    return {name: default for name, default in found.items() if name not in ("name", "*", "")}


def _doc_block(kind: type[Element]) -> tuple[list[str], dict[str, list[str]]]:
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    if _SIGNATURE.fullmatch(text.partition("\n")[0]):
        text = inspect.cleandoc(text.partition("\n")[2])
    return _sections(text)


def describe_element(reference: str, directory: str | None = None) -> ElementDoc:
    """The documentation of the class `reference` ("Counter", "module:Class"). Raises
    ConfigError."""
    kind = element_class(reference, directory)
    paragraphs, sections = _doc_block(kind)
    said: dict[str, dict[str, str]] = {"Config": {}, "Counters": {}, "Drops": {}}
    for base in reversed(kind.__mro__):
        if issubclass(base, Element):
            for section, entries in said.items():
                entries.update(_entries(_doc_block(base)[1].get(section, [])))
    example_about, *example = sections.get("Example", [""])
    return ElementDoc(
        name=kind.__name__,
        reference=BUILT_IN.get(reference, reference),
        summary=" ".join(paragraphs[0].split()) if paragraphs else "",
        about=[" ".join(each.split()) for each in paragraphs[1:]],
        ports=" ".join(" ".join(sections.get("Ports", [])).split()),
        arguments={
            name: Argument(default, said["Config"].get(name, ""))
            for name, default in _parameters(kind).items()
        },
        counters={name: said["Counters"].get(name, "") for name in kind.COUNTERS},
        drops={name: said["Drops"].get(name, "") for name in kind.DROP_REASONS},
        handlers={
            name: {
                "read": each.read is not None,
                "write": each.write is not None,
                "mode": each.mode.value,
                "help": each.help,
            }
            for name, each in sorted(handlers_of(kind).items())
        },
        example_about=example_about,
        example="\n".join(example),
    )


def built_in() -> list[ElementDoc]:
    """All built-in elements, by name."""
    return [describe_element(name) for name in sorted(BUILT_IN)]

"""Converts untyped data (a YAML file, an API request) to structs.

Errors give place and reason: msgspec checks the types, and is called piece by piece, so that the
path in its error leads to the value and, by `Locate`, to the line. A struct may have HIDDEN: names
of fields that a file may not set.
"""

from __future__ import annotations

import difflib
import functools
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from dataplane.errors import ConfigError

Path = tuple[str | int, ...]
Locate = Callable[[Path], str]  # path -> "FILE:LINE", or "" where there is no file
S = TypeVar("S", bound=msgspec.Struct)
NAMED_MOST = 40  # words that an error lists: there can be as many NICs as a network has


_AT = re.compile(r"(?P<text>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_GIVEN = re.compile(r"Expected `(?P<wanted>[^`]*)`")
_KINDS = {
    "array": "a list",
    "object": "a mapping",
    "str": "text",
    "int": "a whole number",
    "bool": "true or false",
    "null": "nothing",
}


def shown(value: object) -> str:
    """A value as an error shows it: short, in YAML's form."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def path_text(path: Path) -> str:
    """("nics", "web", "addresses", 0) -> nics.web.addresses[0]"""
    text = ""
    for step in path:
        word = str(step) if str(step).isprintable() and len(str(step)) <= 60 else shown(step)
        text += f"[{step}]" if isinstance(step, int) else f".{word}" if text else word
    return text


def error_at(locate: Locate, path: Path, text: str) -> ConfigError:
    """An error on one line: place, path, what is wrong and what is expected."""
    where = locate(path)
    text = ": ".join(part for part in (where, path_text(path), " ".join(text.split())) if part)
    return ConfigError(text, field=path_text(path))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A suggestion for an unknown word: the nearest known one, or all of them, if they are few."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", and {len(known) - NAMED_MOST} more" if len(known) > NAMED_MOST else ""
    return f"expected one of {', '.join(known[:NAMED_MOST])}{more}"


def decode_scalar(kind: Any, value: Any) -> Any:
    """msgspec's dec_hook, for types with `parse`: those of scalars.py, and other rooms' own."""
    parse = getattr(kind, "parse", None)
    if parse is not None:
        try:
            return parse(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    raise NotImplementedError(kind)


def unwrapped(annotation: Any) -> tuple[Any, str]:
    """(the type inside Annotated, Optional and aliases, its description)"""
    description = ""
    while True:
        for meta in getattr(annotation, "__metadata__", ()):
            description = description or getattr(meta, "description", None) or ""
        if hasattr(annotation, "__metadata__"):
            annotation = annotation.__origin__
            continue
        inner = [each for each in typing.get_args(annotation) if each is not type(None)]
        if (
            isinstance(annotation, type)
            or typing.get_origin(annotation) in (list, dict)
            or len(inner) != 1
        ):
            return annotation, description
        annotation = inner[0]


def field_type(struct: type[msgspec.Struct], steps: Path) -> tuple[Any, str]:
    """Type and description of the field that `steps` lead to from `struct`."""
    kind: Any = struct
    description = ""
    for step in steps:
        if isinstance(step, int):
            # of "one or a list"
            listed = next(
                (each for each in typing.get_args(kind) if typing.get_origin(each) is list), kind
            )
            arguments = typing.get_args(listed)
            kind, description = unwrapped(arguments[-1] if arguments else Any)
        else:
            hints = (
                typing.get_type_hints(kind, include_extras=True) if isinstance(kind, type) else {}
            )
            kind, description = unwrapped(hints.get(step, Any))
    return kind, description


@functools.cache  # msgspec evaluates all annotations each time
def known_keys(struct: Any) -> tuple[str, ...]:
    hidden = getattr(struct, "HIDDEN", ())
    fields = msgspec.structs.fields(struct)
    return tuple(each.encode_name for each in fields if each.name not in hidden)


def unknown_key(locate: Locate, path: Path, key: str, struct: Any) -> ConfigError:
    return error_at(locate, (*path, key), f"unknown key; {did_you_mean(key, known_keys(struct))}")


def _explain(
    error: msgspec.ValidationError,
    data: Any,
    struct: type[msgspec.Struct],
    path: Path,
    locate: Locate,
) -> ConfigError:
    """Translates msgspec's error for users."""
    match = _AT.fullmatch(str(error))
    text, at = (match["text"], match["path"] or "") if match else (str(error), "")
    steps: Path = tuple(name or int(number) for name, number in _STEP.findall(at))
    kind, description = field_type(struct, steps)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        return unknown_key(locate, (*path, *steps), unknown[1], kind)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return error_at(
            locate,
            (*path, *steps),
            f"has no {missing[1]}: expected {missing[1]}: {field_type(kind, (missing[1],))[1]}",
        )
    expected = _GIVEN.match(text)
    if expected is not None or text.startswith("Invalid enum value"):
        value = data
        for step in steps:
            value = value[step]
        kinds = expected["wanted"].split(" | ") if expected is not None else []
        wanted = description or " or ".join(
            _KINDS.get(each, each) for each in kinds if each != "null"
        )
        return error_at(locate, (*path, *steps), f"invalid value {shown(value)}: expected {wanted}")
    return error_at(locate, (*path, *steps), text)


def convert(data: Any, struct: type[S], path: Path, locate: Locate) -> S:
    try:
        return msgspec.convert(data, struct, dec_hook=decode_scalar)
    except msgspec.ValidationError as error:
        raise _explain(error, data, struct, path, locate) from None


def mapping(data: Any, struct: Any, path: Path, locate: Locate) -> dict[str, Any]:
    """A copy of `data`, a mapping without the keys that only the loader sets. None counts as an
    empty one."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise error_at(
            locate,
            path,
            f"invalid value {shown(data)}: expected a mapping with keys such as "
            f"{', '.join(known_keys(struct)[:3])}",
        )
    for key in data:
        if key in struct.HIDDEN:
            raise unknown_key(locate, path, key, struct)
    return dict(data)

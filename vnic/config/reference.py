"""The configuration reference, generated from the schema: `vnic config explain` and
docs/configuration.md print it.

The docstring of a struct describes its keys; their types give the accepted values and examples; see
schema.py.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from dataplane.config.convert import shown, unwrapped
from dataplane.config.load import dump_yaml
from dataplane.config.scalars import Address, Duration, Gateway, Mac, Network, Rate, RssKey, User
from dataplane.errors import ConfigError
from vnic.config.schema import Config, ElementConfig, encode_scalar, scalar_example

_WORDS: dict[Any, str] = {
    Rate: "rate",
    Mac: "MAC address",
    Address: "address/prefix",
    Network: "network",
    Gateway: "IP address",
    User: "user",
    RssKey: "hexadecimal text",
    bool: "true or false",
    int: "whole number",
    str: "text",
    Any: "setting",
}
_ENTRY = re.compile(r"([a-z_][a-z0-9_]*): (.*)")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the configuration.

    path      its path; NAME is a name that the user chooses, [] an entry of a list
    type      the kind of its value
    accepts   the accepted values, in the words of the error messages
    bounds    least and greatest value or length, if there are any
    default   in YAML; None: there is none, or the description states it
    about     its description
    example   a value
    document  an example file with this value
    keys      the keys below it
    """

    path: str
    type: str
    accepts: str
    bounds: dict[str, Any]
    required: bool
    default: Any
    about: str
    example: Any
    document: dict[str, Any]
    keys: list[str]

    @property
    def plain_path(self) -> str:
        """The path without names and list entries, as users name it."""
        return _plain(self.path)

    def facts(self) -> list[tuple[str, str]]:
        """Facts about its values: (word, value)."""
        found = [("type", self.type), ("accepts", self.accepts)]
        if "least" in self.bounds:
            found.append(("bounds", f"{self.bounds['least']} to {self.bounds['greatest']}"))
        elif "greatest_length" in self.bounds:
            unit = "characters" if self.type == "text" else "entries"
            found.append(
                (
                    "bounds",
                    f"{self.bounds.get('least_length', 0)} to {self.bounds['greatest_length']} "
                    f"{unit}",
                )
            )
        if self.required:
            found.append(("default", "none: required"))
        elif self.default not in (None, [], {}):
            found.append(
                (
                    "default",
                    str(self.default).lower() if isinstance(self.default, bool) else self.default,
                )
            )
        return [(word, str(value)) for word, value in found]

    def example_yaml(self) -> str:
        """The example as in a file, below its parent keys."""
        return dump_yaml(self.document, width=90).strip()


# Example names for objects that the user names. A client is named by a user's number, which exists
# on every machine.
_NAMES = {"nics": "web", "groups": "all", "clients": "1000", "nodes": "lan", "to": "dmz"}
# By path: keys that an example needs beside a key, and in each of the key's entries.
_BESIDE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "links": ({"nodes": {"lan": {"switch": {}}, "dmz": {"switch": {}}}}, {"link": "lan -- dmz"}),
    "nics.read": ({"kind": "capture"}, {}),
    "nics.write": ({"kind": "capture"}, {}),
    "nics.listen": ({"kind": "vhost-user"}, {}),
    "nics.connect": ({"kind": "vhost-user"}, {}),
    "nics.socket_mode": ({"kind": "vhost-user", "listen": "/run/vm1.sock"}, {}),
    "nics.id": ({"kind": "memif", "listen": "/run/app.sock"}, {}),
    "nics.secret": ({"kind": "memif", "listen": "/run/app.sock"}, {}),
    "nics.ring_size": ({"kind": "memif", "connect": "/run/app.sock"}, {}),
    "nics.socket_group": ({"kind": "vhost-user", "listen": "/run/vm1.sock"}, {}),
    "nics.features": ({"kind": "vhost-user", "listen": "/run/vm1.sock"}, {}),
}


def _plain(path: str) -> str:
    return path.replace(".NAME", "").replace("[]", "")


def field_docs(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The descriptions of a struct's fields, from its docstring."""
    found: dict[str, str] = {}
    entry = ""
    for line in inspect.cleandoc(struct.__doc__ or "").splitlines():
        if match := _ENTRY.fullmatch(line):
            entry = match[1]
            found[entry] = match[2]
        elif line.startswith("    ") and entry:
            found[entry] += " " + line.strip()
        else:
            entry = ""
    return found


def about_struct(struct: type[msgspec.Struct]) -> str:
    """The description of a struct as a whole, from its docstring; each paragraph becomes one
    line."""
    paragraphs = inspect.cleandoc(struct.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(each.split()) for each in paragraphs if not _ENTRY.match(each))


def _constraints(annotation: Any) -> dict[str, Any]:
    """The bounds in an annotation's Meta objects, and those of a scalar's class."""
    found: dict[str, Any] = {}
    pending = [annotation]
    while pending:
        each = pending.pop()
        if hasattr(each, "__metadata__"):
            for meta in each.__metadata__:
                words = {
                    "ge": "least",
                    "le": "greatest",
                    "min_length": "least_length",
                    "max_length": "greatest_length",
                }
                found |= {
                    word: value
                    for name, word in words.items()
                    if (value := getattr(meta, name, None)) is not None
                }
            pending.append(each.__origin__)
        elif typing.get_origin(each) not in (list, dict) and typing.get_args(each):
            pending += typing.get_args(each)
        elif isinstance(each, type) and issubclass(each, Rate | Duration):
            found |= {"least": str(each(each.LEAST)), "greatest": str(each(each.MOST))}
    return found


def _type_word(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return f"list of {_type_word(unwrapped(arguments[0])[0])}"
    if origin is dict:
        return (
            f"mapping from {'number' if arguments[0] is int else 'name'} to "
            f"{_type_word(unwrapped(arguments[1])[0])}"
        )
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if arguments:
        return " or ".join(_type_word(each) for each in arguments if each is not type(None))
    if isinstance(kind, type) and issubclass(kind, Duration):
        return "time"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "element" if kind is ElementConfig else "mapping"
    if isinstance(kind, str):  # the only value of a Literal
        return f"one of {kind}"
    return _WORDS[kind]


def _struct_in(kind: Any) -> tuple[type[msgspec.Struct] | None, str]:
    """The struct inside a value of this kind, and the path step to it: ".NAME", "[]" or ""."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, ""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, dict):
        inner = unwrapped(arguments[-1])[0]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            return inner, "[]" if origin is list else ".NAME"
    return None, ""


def _default(field: msgspec.structs.FieldInfo, kind: Any) -> Any:
    if _struct_in(kind)[0] is not None:
        return None
    value = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    return (
        None if value is msgspec.NODEFAULT else msgspec.to_builtins(value, enc_hook=encode_scalar)
    )


def _example(annotation: Any, kind: Any, default: Any) -> Any:
    pending = [annotation]
    while pending:
        each = pending.pop(0)
        for meta in getattr(each, "__metadata__", ()):
            if meta.examples:
                return meta.examples[0]
        if hasattr(each, "__metadata__"):
            pending.append(each.__origin__)
        elif typing.get_origin(each) not in (list, dict):
            pending += typing.get_args(each)
    return default if (found := scalar_example(kind)) is None else found


def _keys_below(
    struct: type[msgspec.Struct],
    prefix: str,
    around: Callable[[Any], dict[str, Any]],
    whole: Any = None,
) -> list[Key]:
    """The keys of a struct. around: returns the document around a value of the struct; whole: an
    example of the struct."""
    hints, docs = typing.get_type_hints(struct, include_extras=True), field_docs(struct)
    found: list[Key] = []
    for field in msgspec.structs.fields(struct):
        if field.name in getattr(struct, "HIDDEN", ()):
            continue
        name = field.encode_name
        kind, accepts = unwrapped(hints[field.name])
        default = _default(field, kind)
        example = _example(hints[field.name], kind, default)
        beside = _BESIDE.get(_plain(f"{prefix}{name}"), ({}, {}))
        inner, step = _struct_in(kind)
        below: list[Key] = []
        if inner is not None and inner is not struct:  # branches of an element are elements again
            wraps: dict[str, Callable[[Any], Any]] = {
                "": _as_is,
                "[]": _in_list,
                ".NAME": partial(_named, _NAMES.get(name, "")),
            }
            inside = partial(_within, around, name, wraps[step], beside)
            inner_example = (
                example
                if step == ""
                else next(iter(example.values() if step == ".NAME" else example), None)
            )
            below = _keys_below(inner, f"{prefix}{name}{step}.", inside, inner_example)
        depth = f"{prefix}{name}{step}.".count(".")
        with_others = isinstance(whole, dict) and name in whole  # a key may need others beside it
        found.append(
            Key(
                path=f"{prefix}{name}",
                type=_type_word(kind),
                accepts=accepts,
                bounds=_constraints(hints[field.name]),
                required=field.required,
                default=default,
                about=docs.get(field.name, ""),
                example=example,
                document=around({**beside[0], **(whole if with_others else {name: example})}),
                keys=[each.path for each in below if each.path.count(".") == depth],
            )
        )
        found += below
    return found


def _within(
    around: Callable[[Any], dict[str, Any]],
    name: str,
    wrap: Callable[[Any], Any],
    beside: tuple[dict[str, Any], dict[str, Any]],
    value: Any,
) -> dict[str, Any]:
    outside, inside = beside
    return around({**outside, name: wrap({**inside, **value} if inside else value)})


def _as_is(value: Any) -> Any:
    return value


def _in_list(value: Any) -> list[Any]:
    return [value]


def _named(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


def reference() -> list[Key]:
    """All keys of a configuration file, each mapping's key before the keys inside it."""
    return _keys_below(Config, "", _as_is)


def find(text: str) -> Key:
    """The key that a user means: nics.egress.rate, nics.web.egress.rate, engines[0].cpu. Raises
    ConfigError."""
    keys = {each.plain_path: each for each in reference()}
    wanted = _plain(re.sub(r"\[\d*\]", "", text.strip().strip(".")))
    first, _, rest = wanted.partition(".")
    # After nics, groups, clients and nodes comes a name that the user has chosen, or a key
    # directly.
    named = f"{first}.{rest.partition('.')[2]}" if first in _NAMES else wanted
    if found := keys.get(wanted) or keys.get(named.rstrip(".")):
        return found
    last = wanted.rpartition(".")[2]
    close = [each for each in keys if each.endswith(f".{wanted}")]
    close = (
        close
        or difflib.get_close_matches(wanted, keys, 1, 0.8)
        or difflib.get_close_matches(named, keys, 1, 0.8)
    )
    close = close or [
        each for each in keys if difflib.get_close_matches(last, [each.rpartition(".")[2]], 1, 0.7)
    ]
    hint = (
        f"did you mean {' or '.join(close[:3])}?"
        if close
        else "`vnic config explain` lists the keys"
    )
    raise ConfigError(f"{shown(text)}: unknown key; {hint}")

"""YAML files with the line numbers of their values.

The form of a file is untrusted: its size, depth and number of nodes (aliases expanded) are bounded,
keys must be unique, tags are rejected. Scalars are those of YAML 1.2's core schema (`on`, `no` and
12:30:00 are text), since a MAC address is not a number in base 60.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import yaml

from dataplane.config.convert import Locate, Path
from dataplane.errors import ConfigError

BYTES_MOST = 1 << 20
NODES_MOST = 50_000
DEPTH_MOST = 40
_DIGITS_MOST = 30  # of a number; Python's int() would take quadratic time for long ones


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}  # none of YAML 1.1's


_TAG = "tag:yaml.org,2002:"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})\\Z"), _first)


class _Builder:
    """Builds Python values from YAML's node tree, and records the line of each path."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {}
        self.nodes = 0

    def fail(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{self.name}:{node.start_mark.line + 1}: {text}")

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > NODES_MOST:
            raise self.fail(node, f"too much: more than {NODES_MOST} values (aliases expanded)")
        if len(path) > DEPTH_MOST:
            raise self.fail(node, f"too deep: more than {DEPTH_MOST} levels")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, (*path, number)) for number, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        raise self.fail(
            node,
            f"the tag {node.tag.replace(_TAG, '!!')[:40]!r} is not allowed: expected plain YAML "
            "without tags",
        )

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if (
                not isinstance(key_node, yaml.ScalarNode)
                or not key_node.value
                or len(key_node.value) > 128
            ):
                raise self.fail(key_node, "a key must be a word")
            key = str(key_node.value)
            if key in result:
                first = self.lines[(*path, key)]
                raise self.fail(
                    key_node, f"{key!r} is there already, in line {first}; remove one of them"
                )
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, (*path, key))
        return result

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "null":
                return None
            case "bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "int" | "float" if len(text) > _DIGITS_MOST:
                raise self.fail(
                    node, f"the number {text[:_DIGITS_MOST]}... is too long; put text in quotes"
                )
            case "int" | "float" as kind:
                try:
                    return (
                        float(text)
                        if kind == "float"
                        else int(text, 16 if text.startswith("0x") else 10)
                    )
                except ValueError:
                    pass
        raise self.fail(
            node,
            f"the tag {node.tag.replace(_TAG, '!!')[:40]!r} is not allowed: expected plain YAML "
            "without tags",
        )

    def locate(self, path: Path) -> str:
        """FILE:LINE of the path, or of its nearest parent with a known line."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name


def read_text(path: str | os.PathLike[str], bytes_most: int = BYTES_MOST) -> tuple[str, str]:
    """(text, name for errors) of a file, or of standard input for "-". Raises ConfigError."""
    name = os.fspath(path)
    if "\0" in name:
        raise ConfigError(f"{name!r} is not a path: it has a zero byte")
    try:
        if name == "-":
            name = "<stdin>"
            content = sys.stdin.buffer.read(bytes_most + 1)
        else:
            with open(name, "rb") as file:
                content = file.read(bytes_most + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None
    if len(content) > bytes_most:
        raise ConfigError(f"{name}: too large: expected at most {bytes_most} bytes")
    try:
        return content.decode("utf-8"), name
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: is not UTF-8 text") from None


def parse_yaml(text: str, name: str) -> tuple[Any, Locate]:
    """The text's value in plain Python (every key a str), and the function that finds its lines.
    Raises ConfigError."""
    builder = _Builder(name)
    try:
        node = yaml.compose(text, Loader=_Loader)
        return (None if node is None else builder.build(node, ())), builder.locate
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        hint = " (indent with spaces, not tabs)" if "'\\t'" in str(error.problem) else ""
        text = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{name}{line}: no YAML: {' '.join(text.split())}{hint}") from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise ConfigError(f"{name}: no YAML: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise ConfigError(f"{name}: too deep: more than {DEPTH_MOST} levels") from None


class _Dumper(yaml.SafeDumper):
    """SafeDumper with the scalars of YAML 1.2's core schema: `on` needs no quotes."""

    yaml_implicit_resolvers = dict(_Loader.yaml_implicit_resolvers)


def dump_yaml(data: Any, width: int = 100) -> str:
    """Plain data as YAML that `parse_yaml` reads."""
    text: str = yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=width,
        allow_unicode=True,
    )
    return text

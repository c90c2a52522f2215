"""The JSON Schema of a configuration file, with the descriptions of the reference."""

from __future__ import annotations

import typing
from typing import Any

import msgspec

from dataplane.config.convert import unwrapped
from dataplane.config.scalars import Mac, Rate, RssKey, Spin, User
from vnic.config import schema
from vnic.config.reference import about_struct, field_docs
from vnic.config.schema import (
    ENGINES_MOST,
    NAME_PATTERN,
    Config,
    ElementConfig,
    LinkConfig,
    ModuleConfig,
    NicConfig,
    NodeConfig,
    scalar_example,
)


def _scalar_schema(kind: type) -> dict[str, Any]:
    patterns = {
        Rate: r"^\s*[0-9.]+\s*[kKmMgGtT]?i?[bB][iI][tT]\s*$",
        Mac: "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$",
        RssKey: "^[0-9a-fA-F]{2}(:?[0-9a-fA-F]{2}){39}$",
    }
    schema: dict[str, Any] = {"type": "string"}
    if kind is User:
        schema = {"type": ["string", "integer"], "description": "a user's name or number"}
    if kind is Spin:
        schema = {"type": ["string", "integer"], "description": "0, or a time with its unit"}
    if (example := scalar_example(kind)) is not None:
        schema["examples"] = [example]
    if kind in patterns:
        schema["pattern"] = patterns[kind]
    return schema


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration file."""
    schema: dict[str, Any] = msgspec.json.schema(Config, schema_hook=_scalar_schema)
    definitions = schema["$defs"]
    for kind in (Config, NicConfig, NodeConfig, LinkConfig, ElementConfig, ModuleConfig):
        definition = definitions[kind.__name__]
        for hidden in kind.HIDDEN:
            definition["properties"].pop(hidden)
        definition["required"] = [
            each for each in definition.get("required", ()) if each not in kind.HIDDEN
        ]
    for name in ("HopConfig", "PolicyTerm"):  # of hidden fields
        del definitions[name]
    for struct in ("ElementConfig", "ModuleConfig", "NodeConfig"):
        definitions[struct]["additionalProperties"] = True  # the constructor's arguments
    definitions["ElementConfig"]["properties"]["branches"]["propertyNames"] = {
        "pattern": "^[0-9]+$"
    }
    definitions["Config"]["properties"]["nics"]["propertyNames"] = {
        "pattern": NAME_PATTERN,
        "maxLength": 32,
    }
    # A text may stand for a link without settings, or for a node with the defaults.
    whole = definitions["Config"]["properties"]
    whole["links"]["items"] = {"anyOf": [{"type": "string"}, whole["links"]["items"]]}
    whole["nodes"]["additionalProperties"] = {
        "anyOf": [{"type": "string"}, whole["nodes"]["additionalProperties"]]
    }
    definitions["NicConfig"]["oneOf"] = [{"required": ["pid"]}, {"required": ["netns"]}]
    cgroups = definitions["GroupConfig"]["properties"]["cgroup"]
    definitions["GroupConfig"]["properties"]["cgroup"] = {
        "description": cgroups.pop("description"),
        "anyOf": [cgroups["items"], cgroups],
        "default": cgroups.pop("default"),
    }
    engines = definitions["Config"]["properties"]["engines"]
    definitions["Config"]["properties"]["engines"] = {
        "description": engines.pop("description"),
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": ENGINES_MOST}, engines],
        "default": 1,
    }
    _describe(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vnic configuration",
        **schema,
    }


def _describe(definitions: dict[str, Any]) -> None:
    """Puts the descriptions into the definitions of a JSON Schema."""
    for name, definition in definitions.items():
        struct = getattr(schema, name)
        definition["description"] = about_struct(struct)
        hints = typing.get_type_hints(struct, include_extras=True)
        for field, about in field_docs(struct).items():
            if (property_ := definition["properties"].get(field)) is not None:
                property_["description"] = f"{about} Accepts {unwrapped(hints[field])[1]}."

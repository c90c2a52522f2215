"""The running configuration in the form of a file, with implied settings written out: `vnic config
show`."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from vnic.config.copies import own_config
from vnic.config.schema import (
    Config,
    ElementConfig,
    ModuleConfig,
    NicConfig,
    NodeConfig,
    encode_scalar,
)
from vnic.config.shape import take_out
from vnic.config.traces import bare
from vnic.device.kinds.registry import kind_of


@cache
def _shown_fields(kind: type[msgspec.Struct]) -> list[tuple[str, str]]:
    """(name, key in a file) of the fields that a file may have. msgspec evaluates the annotations
    at each call, which took 95 % of an `apply` before this was cached."""
    hidden = getattr(kind, "HIDDEN", ())
    return [
        (field.name, field.encode_name)
        for field in msgspec.structs.fields(kind)
        if field.name not in hidden
    ]


def written(value: Any) -> Any:
    """A struct of the schema, or a part of one, as plain data that the loader reads again."""
    if isinstance(value, ElementConfig):
        branches = {gate: written(chain) for gate, chain in value.branches.items()}
        named = {} if value.name is None else {"name": value.name}
        return {
            "element": value.element,
            **named,
            **bare(value),
            **({"branches": branches} if branches else {}),
        }
    if isinstance(value, NodeConfig) and value.element is not None:
        engine = {} if value.engine is None else {"engine": value.engine}
        return {"element": value.element, **engine, **value.arguments}
    if isinstance(value, ModuleConfig):
        return {"module": value.module, **value.arguments}
    if isinstance(value, msgspec.Struct):
        kind = kind_of(value.kind) if isinstance(value, NicConfig) else None
        items = {
            word: written(getattr(value, name))
            for name, word in _shown_fields(type(value))
            if kind is None or kind.takes(name)
        }
        return {
            name: item
            for name, item in items.items()
            if item is not None and item != [] and item != {}
        }
    if isinstance(value, list | tuple):
        return [written(each) for each in value]
    if isinstance(value, dict):
        return {key: written(each) for key, each in value.items()}
    if value is None or type(value) in (str, int, bool, float):
        return value
    return msgspec.to_builtins(value, enc_hook=encode_scalar)


def written_config(config: Config) -> dict[str, Any]:
    """A whole configuration. NICs whose container a client passed are left out: a file cannot name
    such a container."""
    if config.shape is not None:  # its elements follow from it
        shape, config = config.shape, own_config(config)
        take_out(config)
        config.shape = shape
    found: dict[str, Any] = written(config)
    if not config.has_implied_switch:
        del found["switch"]
    if config.nodes:  # also the empty settings of a switch
        found["nodes"] = {
            name: written(node) if node.switch is None else {"switch": written(node.switch)}
            for name, node in config.nodes.items()
        }
    if config.hops:
        found["links"] = [*found.get("links", []), *(hop.text for hop in config.hops)]
    found["nics"] = {name: written(nic) for name, nic in config.nics.items() if not nic.passed}
    return found

"""Converts untyped data (a YAML file, an API request) to the configuration's structs, whole and in
parts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from dataplane.config.convert import (
    Locate,
    Path,
    convert,
    decode_scalar,
    error_at,
    field_type,
    mapping,
    shown,
)
from dataplane.config.scalars import SchemaError
from dataplane.errors import ConfigError
from vnic.config.elements import arguments_of, convert_elements
from vnic.config.schema import (
    HOPS_MOST,
    LINKS_MOST,
    NAME_PATTERN,
    NODE_PATTERN,
    ClientConfig,
    Config,
    DirectionConfig,
    ElementConfig,
    GroupConfig,
    HopConfig,
    LinkConfig,
    ModuleConfig,
    NicConfig,
    NodeConfig,
    SwitchConfig,
    encode_scalar,
)
from vnic.config.shape import set_policy
from vnic.config.topology import NetworkError, check
from vnic.config.traces import give_contents, without_contents
from vnic.device.kinds.registry import KINDS, kind_of

CONFIG_VERSION = 1


def _module(data: Any, path: Path, locate: Locate) -> ModuleConfig:
    if isinstance(data, str):
        data = {"module": data}
    if not isinstance(data, Mapping):
        raise error_at(
            locate,
            path,
            f"invalid value {shown(data)}: expected a module such as {{module: echo:Echo}}",
        )
    module = convert(
        {key: data[key] for key in ("module",) if key in data}, ModuleConfig, path, locate
    )
    module.arguments = arguments_of(data, ("module",), path, locate)
    return module


def convert_nic(
    name: str,
    data: Any,
    path: Path | None = None,
    locate: Locate = lambda path: "",
    *,
    contained: bool = True,
) -> NicConfig:
    """Converts a NIC from its mapping. path: where it is, default nics.NAME; contained: the mapping
    must name a container. Raises ConfigError, one line."""
    path = ("nics", name) if path is None else path
    if (
        not isinstance(name, str)
        or len(name) > 32
        or not re.fullmatch(NAME_PATTERN, name, re.ASCII)
    ):
        raise error_at(
            locate,
            path,
            f"invalid value {shown(name)}: expected {field_type(NicConfig, ('name',))[1]}",
        )
    fields = mapping(data, NicConfig, path, locate)
    _check_settings(fields, path, locate)
    chains: dict[str, list[ElementConfig]] = {}
    for direction in ("egress", "ingress"):
        if direction in fields:
            inner = fields[direction] = mapping(
                fields[direction], DirectionConfig, (*path, direction), locate
            )
            if "elements" in inner:
                chains[direction] = convert_elements(
                    inner.pop("elements"), (*path, direction, "elements"), locate
                )
    nic = convert({"name": name, **fields}, NicConfig, path, locate)
    for direction, chain in chains.items():
        getattr(nic, direction).elements = chain
    if contained and kind_of(nic.kind).needs_container and nic.pid is None and nic.netns is None:
        raise error_at(
            locate,
            path,
            "which container is it in? give pid: or netns:, "
            f"or `vnic attach {nic.kind} {name} --pid PID` later",
        )
    nic.where = locate(path)
    return nic


def _check_settings(fields: Mapping[str, Any], path: Path, locate: Locate) -> None:
    """Raises ConfigError for a setting that NICs of the kind do not have."""
    name = fields.get("kind", "tap")
    kind = KINDS.get(name) if isinstance(name, str) else None
    for setting, value in fields.items():
        if (
            kind is None
            or value is None
            or setting not in NicConfig.__struct_fields__
            or kind.takes(setting)
        ):
            continue
        raise error_at(
            locate, (*path, setting), f"is not a setting of NICs of kind {name}: {kind.WHY}"
        )


def _link(data: Any, path: Path, locate: Locate) -> LinkConfig:
    if isinstance(data, str):
        data = {"link": data}
    if not isinstance(data, Mapping):
        raise error_at(
            locate, path, f"invalid value {shown(data)}: expected a link such as lan -- dmz"
        )
    fields = mapping(data, LinkConfig, path, locate)
    chain = (
        convert_elements(fields.pop("elements"), (*path, "elements"), locate)
        if "elements" in fields
        else []
    )
    ways: dict[str, list[ElementConfig]] = {}
    if isinstance(fields.get("to"), Mapping):
        fields["to"] = dict(fields["to"])
        for end, way in fields["to"].items():
            inner = fields["to"][end] = mapping(way, DirectionConfig, (*path, "to", end), locate)
            if "elements" in inner:
                ways[end] = convert_elements(
                    inner.pop("elements"), (*path, "to", end, "elements"), locate
                )
    if chain and fields.get("to"):
        raise error_at(locate, path, "has both to and elements: give elements in to alone")
    link = convert(fields, LinkConfig, path, locate)
    if chain:
        for end in link.ends:
            link.to.setdefault(end, DirectionConfig()).elements = convert_elements(
                data["elements"], (*path, "elements"), locate
            )
    for end, elements in ways.items():
        link.to[end].elements = elements
    link.where = locate(path)
    return link


_STOP = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*?)(?:\[([0-9]{1,4})\])?", re.ASCII)


def _hops(text: str, path: Path, locate: Locate) -> list[HopConfig]:
    """The one-way links of a row such as `web -> split[1] -> lan`."""
    stops = []
    for word in re.split(r"\s*->\s*", text.strip()):
        if (match := _STOP.fullmatch(word)) is None:
            raise error_at(
                locate,
                path,
                f"invalid value {shown(text)}: expected a row such as web -> split[1] -> lan",
            )
        stops.append((match[1], match[2]))
    if stops[-1][1] is not None:
        last, output = stops[-1]
        raise error_at(
            locate, path, f"{last}[{output}] leads nowhere: expected {last}[{output}] -> NODE"
        )
    where = locate(path)
    return [
        HopConfig(source=source, output=int(output or 0), target=target, where=where)
        for (source, output), (target, _) in itertools.pairwise(stops)
    ]


def _node(data: Any, path: Path, locate: Locate) -> NodeConfig:
    if isinstance(data, str):  # lan: switch is short for lan: {switch: {}}
        data = {"switch": {}} if data == "switch" else {"element": data}
    if isinstance(data, Mapping) and data.get("element") is not None:
        ours = ("element", "engine")
        arguments = arguments_of(data, (*ours, "switch"), path, locate)
        for word in ("name", "branches"):
            if word in arguments:
                text = "the node's name" if word == "name" else "one-way links such as x[1] -> y"
                raise error_at(locate, (*path, word), f"an element's node has {text} instead")
        fields = {key: value for key, value in data.items() if key not in arguments}
        node = convert(fields, NodeConfig, path, locate)
        node.arguments, node.where = arguments, locate(path)
        return node
    fields = mapping(data, NodeConfig, path, locate)
    if "switch" in fields:
        fields["switch"] = mapping(fields["switch"], SwitchConfig, (*path, "switch"), locate)
    return convert(fields, NodeConfig, path, locate)


def _group(data: Any) -> Any:
    """Converts a single cgroup path to a list."""
    if isinstance(data, Mapping) and isinstance(data.get("cgroup"), str):
        return {**data, "cgroup": [data["cgroup"]]}
    return data


def changed_group(name: str, group: GroupConfig, settings: Mapping[str, Any]) -> GroupConfig:
    """A group with `settings` changed, given as in a file; None removes a setting. Raises
    ConfigError."""
    path = ("groups", name)
    now = msgspec.json.decode(msgspec.json.encode(group, enc_hook=encode_scalar))
    merged = {**now, **mapping(settings, GroupConfig, path, lambda path: "")}
    return convert(
        _group({key: value for key, value in merged.items() if value is not None}),
        GroupConfig,
        path,
        lambda path: "",
    )


class _Stored(msgspec.Struct):
    """An encoded configuration. version: the version of its format, raised when an older vnic would
    misread it."""

    config: msgspec.Raw
    version: int


def encode_config(config: Config) -> bytes:
    """Encodes a configuration, with the fields that the loader filled in and the format's version,
    as JSON: for another process of the same instance, which may run another version of vnic."""
    content = msgspec.json.encode(without_contents(config), enc_hook=encode_scalar)
    return msgspec.json.encode(_Stored(msgspec.Raw(content), CONFIG_VERSION))


# Created on import, since it takes milliseconds: a successor does its imports in short steps.
_decode_config = msgspec.json.Decoder(Config, dec_hook=decode_scalar).decode
_decode_stored = msgspec.json.Decoder(_Stored).decode


def decode_config(data: bytes) -> Config:
    """Decodes the output of `encode_config`. Raises ConfigError."""
    try:
        stored = _decode_stored(data)
        if stored.version != CONFIG_VERSION:
            raise ConfigError(
                f"the configuration that was handed over is of version {stored.version}, "
                f"and this vnic reads {CONFIG_VERSION}: "
                "upgrade to a version that reads it, or use `vnic down` and `vnic up`"
            )
        config = _decode_config(stored.config)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"the configuration that was handed over cannot be read: {error}"
        ) from None
    give_contents(config)
    return config


def convert_config(
    data: Any,
    locate: Locate = lambda path: "",
    directory: str | None = None,
    *,
    contained: bool = True,
) -> Config:
    """Converts a whole configuration. Raises ConfigError, one line."""
    fields = mapping(data, Config, (), locate)
    raw_nics = fields.pop("nics", None)
    if raw_nics is not None and not isinstance(raw_nics, Mapping):
        raise error_at(
            locate,
            ("nics",),
            f"invalid value {shown(raw_nics)}: expected {field_type(Config, ('nics',))[1]}",
        )
    engines = fields.get("engines")
    if isinstance(engines, int) and not isinstance(engines, bool):
        if not 1 <= engines <= 64:
            raise error_at(
                locate,
                ("engines",),
                f"invalid value {engines}: expected {field_type(Config, ('engines',))[1]}",
            )
        fields["engines"] = [{} for _ in range(engines)]
    if isinstance(groups := fields.get("groups"), Mapping):
        fields["groups"] = {name: _group(group) for name, group in groups.items()}
    kinds: dict[str, type[msgspec.Struct]] = {"groups": GroupConfig, "clients": ClientConfig}
    for field, kind in kinds.items():
        if isinstance(each := fields.get(field), Mapping):
            # one by one first: msgspec does not say which value of a mapping is wrong
            for name, settings in each.items():
                convert(mapping(settings, kind, (field, name), locate), kind, (field, name), locate)
            fields[field] = {
                name: {} if settings is None else settings for name, settings in each.items()
            }
    nodes, links = fields.pop("nodes", None) or {}, fields.pop("links", None) or []
    for field, given, form in (("nodes", nodes, Mapping), ("links", links, list)):
        if not isinstance(given, form) or (
            field == "links" and len(given) > LINKS_MOST + HOPS_MOST
        ):
            raise error_at(
                locate,
                (field,),
                f"invalid value {shown(given)}: expected {field_type(Config, (field,))[1]}",
            )
    modules = fields.pop("modules", None) or []
    if not isinstance(modules, list):
        raise error_at(
            locate,
            ("modules",),
            f"invalid value {shown(modules)}: expected {field_type(Config, ('modules',))[1]}",
        )
    config = convert(fields, Config, (), locate)
    config.modules = [
        _module(each, ("modules", number), locate) for number, each in enumerate(modules)
    ]
    for name, node in nodes.items():
        if (
            not isinstance(name, str)
            or len(name) > 32
            or not re.fullmatch(NODE_PATTERN, name, re.ASCII)
        ):
            raise error_at(
                locate,
                ("nodes", name),
                f"invalid name: expected {field_type(LinkConfig, ('name',))[1]}",
            )
        config.nodes[name] = _node(node, ("nodes", name), locate)
    if not config.has_implied_switch and "switch" in fields:
        text = (
            "is the switch of a network whose nodes have none; give these settings to one of "
            "nodes: {NAME: {switch: {...}}}"
        )
        raise error_at(locate, ("switch",), text)
    for number, each in enumerate(links):
        row = each.get("link") if isinstance(each, Mapping) else each
        if not (isinstance(row, str) and "->" in row):
            config.links.append(_link(each, ("links", number), locate))
            continue
        if isinstance(each, Mapping) and len(each) > 1:
            stray = next(str(key) for key in each if key != "link")
            raise error_at(locate, ("links", number, stray), "one-way links have no settings")
        config.hops += _hops(row, ("links", number), locate)
    for what, count, most in (
        ("links of switches", len(config.links), LINKS_MOST),
        ("one-way links", len(config.hops), HOPS_MOST),
    ):
        if count > most:
            raise error_at(locate, ("links",), f"{count} {what}: expected at most {most}")
    config.directory = directory
    for name, nic_data in (raw_nics or {}).items():
        config.nics[name] = convert_nic(name, nic_data, ("nics", name), locate, contained=contained)
    for name, nic in config.nics.items():
        if nic.engine is not None:
            try:
                config.engine_index(nic.engine)
            except SchemaError as error:
                raise error_at(locate, ("nics", name, "engine"), str(error)) from None
    if (policy := config.shape) is not None:
        config.shape = None
        set_policy(config, policy, locate)
    try:
        check(config)
    except NetworkError as error:
        raise error_at(locate, error.place, error.text) from None
    return config

"""Traces of a configuration: files are read where the configuration is, and their contents go with
it; see shaping/policy/traces.py.

A policy has each content once, by its digest. Its elements have it, too, as long as they are in
memory; where a configuration is stored, sent or shown they have the digest only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from dataplane.config.convert import Locate, Path, error_at
from dataplane.errors import ConfigError
from shaping.policy.traces import read_traces
from vnic.config.copies import own_config
from vnic.config.schema import Config, ElementConfig

ELEMENTS = ("TraceLink", "shaping.trace_link:TraceLink")


def read_files(data: Any, locate: Locate, directory: str) -> Any:
    """The untyped data of a configuration with the contents of its traces' files: of the policy
    `shape`, and of elements TraceLink. Raises ConfigError."""
    if not isinstance(data, Mapping):
        return data
    if isinstance(data.get("shape"), Mapping):
        shape = read_traces(data["shape"], lambda path: locate(("shape", *path)), directory)
        data = {**data, "shape": shape}
    places = ("nics", "links", "nodes")
    read = {
        key: _elements_read(data[key], (key,), locate, directory) for key in places if key in data
    }
    return {**data, **read}


def _elements_read(data: Any, path: Path, locate: Locate, directory: str) -> Any:
    """A part of a configuration, whose depth is bounded, with its elements' traces read."""
    if isinstance(data, list):
        return [
            _elements_read(each, (*path, number), locate, directory)
            for number, each in enumerate(data)
        ]
    if not isinstance(data, Mapping):
        return data
    if data.get("element") in ELEMENTS:
        trace = data.get("trace")
        given = trace if isinstance(trace, Mapping) else {"file": trace}
        file = given.get("file")
        if isinstance(file, str) and "data" not in given:
            from shaping.trace_files import read_trace  # loads numpy

            try:
                found = read_trace(os.path.join(directory, file))
            except ConfigError as error:
                raise error_at(locate, (*path, "trace"), str(error)) from None
            data = {**data, "trace": {**given, "digest": found.digest, "data": found.packed}}
    return {
        key: _elements_read(each, (*path, key), locate, directory) for key, each in data.items()
    }


# -- contents, once --------------------------------------------------------------------------------


def bare(element: ElementConfig) -> dict[str, Any]:
    """The arguments of an element, without a content that its policy has."""
    trace = element.arguments.get("trace")
    if not element.shapes or not isinstance(trace, dict) or "data" not in trace:
        return element.arguments
    kept = {key: value for key, value in trace.items() if key != "data"}
    return {**element.arguments, "trace": kept}


def without_contents(config: Config) -> Config:
    """The configuration, or a copy whose elements lack what the policy has."""
    if not _contents(config):
        return config
    config = own_config(config)
    for element in _shaping(config):
        element.arguments = bare(element)
    return config


def give_contents(config: Config) -> None:
    """The reverse of `without_contents`."""
    contents = _contents(config)
    for element in _shaping(config) if contents else ():
        trace = element.arguments.get("trace")
        if isinstance(trace, dict) and trace.get("digest") in contents:
            element.arguments["trace"] = {**trace, "data": contents[trace["digest"]]}


def _contents(config: Config) -> Mapping[str, str]:
    """Packed traces of the policy, by digest."""
    found: Mapping[str, str] = (config.shape or {}).get("traces", {})
    return found


def _shaping(config: Config) -> Iterator[ElementConfig]:
    """The elements of the policy."""
    ways = [way for nic in config.nics.values() for way in (nic.egress, nic.ingress)]
    waiting = [
        element
        for way in (*ways, *(way for link in config.links for way in link.to.values()))
        for element in way.elements
        if element.shapes
    ]
    while waiting:
        element = waiting.pop()
        yield element
        waiting += [each for branch in element.branches.values() for each in branch]

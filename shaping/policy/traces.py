"""Traces of policies: files are read once, where a policy is read, and their contents go with it.

A policy that runs has its own copy: another directory, an upgrade and a crash leave it the same,
and a process with other rights never opens a path that a client names. See ADR 0018.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataplane.config.convert import Locate, error_at, shown
from dataplane.errors import ConfigError
from shaping.policy.schema import LineConfig, TraceConfig

# What handles traces loads numpy, which policies without one do without.
if TYPE_CHECKING:
    from shaping.trace import Trace

# Bounds on what a policy makes its instance store with each change; a large public trace takes
# 0.2 MB.
TRACES_MOST, PACKED_MOST = 256, 16 << 20
# Bound on the memory of all of them: a packed trace of 5 KB can be one of 16 MB. It is that of 20
# of the longest public traces, or of 400,000 rates.
MEMORY_MOST = 64 << 20


def read_traces(data: Any, locate: Locate, directory: str) -> Any:
    """The untyped data of a policy with the contents of its traces' files. Data of another form
    stays as it is: `convert_policy` refuses it. Raises ConfigError."""
    links = data.get("links") if isinstance(data, Mapping) else None
    if not isinstance(links, Mapping):
        return data
    found: dict[str, Any] = {}
    packed: dict[str, str] = {}
    known: dict[str, Trace] = {}
    memory = 0
    for key, line in links.items():
        if isinstance(line, Mapping) and (file := _unread(line.get("trace"))) is not None:
            from shaping.trace_files import read_trace

            if not file.isprintable():
                text = f"file {shown(file)}: expected characters that can be printed"
                raise error_at(locate, ("links", key, "trace"), text)
            path = os.path.join(directory, file)
            try:
                if path not in known:
                    known[path] = read_trace(path)
                    memory = _with(memory, known[path])
                trace = known[path]
                packed[trace.digest] = trace.packed
            except ConfigError as error:
                raise error_at(locate, ("links", key, "trace"), str(error)) from None
            given = line["trace"] if isinstance(line["trace"], Mapping) else {}
            line = {**line, "trace": {**given, "file": file, "digest": trace.digest}}
        found[key] = line
    if not packed:
        return data
    before = data.get("traces")
    before = before if isinstance(before, Mapping) else {}
    return {**data, "links": found, "traces": {**before, **packed}}


def _unread(trace: object) -> str | None:
    """The path of a trace that has not been read."""
    if isinstance(trace, Mapping) and "digest" not in trace and "steps" not in trace:
        trace = trace.get("file")
    return trace if isinstance(trace, str) and trace else None


def unpack_traces(
    lines: Mapping[str, LineConfig], packed: Mapping[str, str], locate: Locate
) -> dict[str, Trace]:
    """The traces that lines refer to, by digest. Raises ConfigError."""
    digests = {line.trace.digest for line in lines.values() if line.trace is not None}
    size = sum(len(text) for digest, text in packed.items() if digest in digests)
    if len(digests) > TRACES_MOST or size > PACKED_MOST:
        raise error_at(
            locate,
            ("links",),
            f"{len(digests)} traces of {size} bytes: expected at most {TRACES_MOST} and "
            f"{PACKED_MOST} bytes",
        )
    found: dict[str, Trace] = {}
    memory = 0
    for key, line in lines.items():
        if line.trace is None or line.trace.steps is not None or line.trace.digest in found:
            continue
        digest, path = line.trace.digest, ("links", key, "trace")
        if digest is None:
            raise error_at(
                locate,
                path,
                f"{shown(line.trace.file)} has not been read: vnic reads files of traces where it "
                "reads the file of a policy; expected digest, or steps",
            )
        if digest not in packed:
            raise error_at(locate, path, f"traces has no {digest}: give file without digest")
        from shaping.trace import unpack

        try:
            trace = unpack(packed[digest])
            if trace.digest != digest:
                raise ConfigError("is of another content than its digest")
            memory = _with(memory, trace)
        except ConfigError as error:
            raise error_at(locate, ("traces", digest), str(error)) from None
        found[digest] = trace
    return found


def _with(memory: int, trace: Trace) -> int:
    """The memory of the traces so far and of this one. Raises ConfigError."""
    memory += trace.entries * trace.ENTRY_BYTES
    if memory > MEMORY_MOST:
        raise ConfigError(
            f"with this trace, all take {memory >> 20} MiB of memory: expected at most "
            f"{MEMORY_MOST >> 20}"
        )
    return memory


def trace_of(config: TraceConfig, unpacked: Mapping[str, Trace]) -> Trace:
    """The trace of a line."""
    if config.steps is not None:
        from shaping.trace_setting import trace_of_steps

        return trace_of_steps(config.steps, config.loop)
    return unpacked[config.digest or ""]


def element_trace(config: TraceConfig, trace: Trace) -> dict[str, Any]:
    """The setting in the form of a TraceLink's argument."""
    if config.steps is not None:
        return {"steps": config.steps, "loop": config.loop}
    name = {} if config.file is None else {"file": config.file}
    return {**name, "loop": config.loop, "digest": config.digest, "data": trace.packed}


def trace_text(config: TraceConfig) -> str:
    """The setting as findings and tables show it."""
    name = "steps" if config.steps is not None else config.file or str(config.digest)[:12]
    return name if config.loop else f"{name} (once)"

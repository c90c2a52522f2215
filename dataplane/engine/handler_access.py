"""Reads and writes the handlers of elements while packets flow (dataplane.graph.handlers)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from dataplane.engine.engine import Engine
from dataplane.errors import ConfigError, VnicError, named
from dataplane.graph.element import Element
from dataplane.graph.handlers import Handler, Mode, handlers_of
from dataplane.graph.work import Call, Work


def find_handler(element: Element, name: str) -> Handler:
    """The handler with this name. Raises ConfigError where there is none."""
    found = handlers_of(type(element))
    if name not in found:
        known = f"a {type(element).__name__} has {', '.join(sorted(found))}"
        raise ConfigError(f"{element.name}: has no handler {name}; {known}", code="not-found")
    return found[name]


def describe(element: Element) -> dict[str, dict[str, Any]]:
    """The handlers as plain data: name -> {"read", "write" (whether possible), "mode", "shared",
    "help"}."""
    return {
        name: {
            "read": handler.read is not None,
            "write": handler.write is not None,
            "mode": handler.mode.value,
            "shared": handler.shared,
            "help": handler.help,
        }
        for name, handler in sorted(handlers_of(type(element)).items())
    }


# -- plain data ----------------------------------------------------------------------------------


def _plain_of(value: object) -> object:
    """Converts values that JSON cannot express but elements may return: numpy numbers and arrays,
    subclasses of int such as IntEnum."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain_of)


def plain(value: object) -> Any:
    """A copy of the value in JSON's types: None, bool, int, float, str, lists, dicts with str keys.
    Raises TypeError."""
    return msgspec.json.decode(_ENCODER.encode(value))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- reading -------------------------------------------------------------------------------------


def read_handler(element: Element, name: str) -> Any:
    """Reads a handler of this copy, between two batches; returns plain data. Raises ConfigError for
    a handler that does not exist or cannot be read, VnicError where reading failed."""
    handler = find_handler(element, name)
    if handler.read is None:
        raise ConfigError(f"{element.name}: handler {name} can only be written")
    method = getattr(element, handler.read)

    def take() -> bytes:
        # encoded here: the method may return a list that the element changes later
        return _ENCODER.encode(method())

    try:
        return msgspec.json.decode(
            take() if handler.shared or element.engine is None else element.engine.call(take)
        )
    except VnicError:
        raise
    except Exception as error:  # a user's class may raise anything
        raise VnicError(
            f"{element.name}: handler {name}: reading failed: {named(error)}"
        ) from error


# -- writing -------------------------------------------------------------------------------------


def write_handler(
    copies: Sequence[Element],
    name: str,
    value: object,
    *,
    halt: Callable[[Engine], object],
    resume: Callable[[Engine], object],
) -> Any:
    """Writes a value to all copies of one element; returns the first change's result if that is
    plain data, else None.

    halt, resume: stop an engine between two batches and start it again (an EngineGroup's, for
    example); used for quiescing handlers of running engines. Every engine for which `halt` was
    called is resumed in any case. The caller serializes calls: with two at once, engines could end
    with different values.

    Raises ConfigError for a handler that does not exist or cannot be written and for an invalid
    value, and any exception of `halt`; then nothing has changed. Raises VnicError, with the names
    of the engines, where the change itself failed; all other engines are changed nevertheless.
    """
    handler = find_handler(copies[0], name)
    where = f"{copies[0].name}: handler {name}"
    if handler.write is None:
        raise ConfigError(f"{where} can only be read")
    try:
        value = plain(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {_shown(value)}: expected plain data: {error}") from None
    engines = [_engine_of(copy, where) for copy in copies]
    changes = [
        _prepare(copy, handler, where, value) for copy in (copies[:1] if handler.shared else copies)
    ]
    with ExitStack() as stack:
        for engine in engines if handler.mode is Mode.QUIESCING else ():
            if engine.runner is not None:
                # registered before the halt, so that a halt that fails half-way is undone too
                stack.callback(resume, engine)
                halt(engine)
                if engine.runner is not None:
                    raise VnicError(f"{where}: engine {engine.name} did not stop")
        return (
            _publish(engines, changes, where)
            if not handler.shared
            else _change_shared(changes[0], where)
        )


def live_handlers(element: Element) -> dict[str, str]:
    """The live handlers of an element that write one of its arguments: names by argument."""
    return {
        each.argument: name
        for name, each in handlers_of(type(element)).items()
        if each.argument is not None and each.write is not None and each.mode is Mode.LIVE
    }


def prepare_arguments(
    element: Element, before: Mapping[str, object], after: Mapping[str, object]
) -> list[Callable[[], object]] | None:
    """How an element that was built with the arguments `before` becomes one with `after` while it
    runs: calls of which each changes one argument; None where it has to be built anew. An argument
    that goes is written as None. Raises ConfigError for an invalid value."""
    handlers = handlers_of(type(element))
    writers = {argument: handlers[name] for argument, name in live_handlers(element).items()}
    changed = [
        name
        for name in {**before, **after}
        if name not in before or name not in after or before[name] != after[name]
    ]
    if not changed:
        return []
    if element.engine is None or not writers.keys() >= set(changed):
        return None
    calls: list[Callable[[], object]] = []
    for name in changed:
        where = f"{element.name}: {name}"
        try:
            change = _prepare(element, writers[name], where, after.get(name))
        except VnicError:
            if name in after:
                raise
            return None
        work = change if isinstance(change, Work) else Call(change)
        calls.append(partial(element.engine.post, work))
    return calls


def _engine_of(copy: Element, where: str) -> Engine:
    if copy.engine is None:
        raise VnicError(f"{where}: the element is in no engine; load it first")
    return copy.engine


def _prepare(
    copy: Element, handler: Handler, where: str, value: object
) -> Work | Callable[[], object]:
    assert handler.write is not None
    try:
        change = getattr(copy, handler.write)(value)
    except VnicError:
        raise
    except Exception as error:  # a user's class may reject a value with any exception
        raise ConfigError(f"{where}: invalid value {_shown(value)}: {named(error)}") from error
    if not callable(change) and (handler.shared or not isinstance(change, Work)):
        wanted = "a callable" if handler.shared else "a Work or a callable"
        raise VnicError(
            f"{where}: {type(copy).__name__}.{handler.write} must return the change, "
            f"{wanted}; it did not"
        )
    return change  # type: ignore[no-any-return]


def _change_shared(change: Work | Callable[[], object], where: str) -> Any:
    """Makes a change of shared state, which needs no engine."""
    assert callable(change)
    try:
        return _result(change())
    except Exception as error:
        raise VnicError(f"{where}: the change failed: {named(error)}") from error


def _publish(engines: list[Engine], changes: list[Work | Callable[[], object]], where: str) -> Any:
    """Makes the changes, each on its engine's thread, or on this one if the engine is stopped."""
    done: list[tuple[str, object]] = []
    failed: list[tuple[str, BaseException]] = []
    for engine, change in zip(engines, changes, strict=True):
        try:
            done.append(
                (engine.name, engine.post(change if isinstance(change, Work) else Call(change)))
            )
        # also after an interrupt: the other copies get the value before it is raised
        except BaseException as error:
            failed.append((engine.name, error))
    for _, reason in failed:
        if not isinstance(reason, Exception):
            raise reason
    if failed:
        rest = f"; it was made in {', '.join(name for name, _ in done)}" if done else ""
        names = ", ".join(name for name, _ in failed)
        raise VnicError(
            f"{where}: the change failed in engine {names}: {named(failed[0][1])}{rest}"
        ) from failed[0][1]
    return _result(done[0][1])


def _result(value: object) -> Any:
    try:
        return plain(value)
    except (TypeError, ValueError, RecursionError):
        return None

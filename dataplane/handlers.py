"""Handlers: what control may read of an element and write to it while packets flow (Click's read and write handlers).

    HANDLERS = {"ttl": Handler(read="get_ttl", write="prepare_ttl", argument="ttl", help="TTL that packets get, 1 to 255")}

A class's handlers are its own and those of its bases; every element has `counters`. Names in a Handler are those of methods:

**read** takes no arguments and returns plain data. It runs between two batches and its data is encoded there too: what comes out was so at
one instant, whatever the element does afterwards.

**write** takes the value, and *prepares*: on control's thread, while the element works on. It checks the value, allocates, compiles,
raises ConfigError, and changes nothing. It returns the *change*: a `Work`, or a callable without arguments. The change runs between two
batches, so it is short and cannot fail: a store that puts in place as a whole what was prepared, so that nobody ever sees half of it.

How the copies of an element (one an engine, at most) get a change:

    live        one copy after the other, each through its engine's mailbox, while all engines run
    quiescing   first all engines that hold a copy are stopped between two batches, then all copies changed, then the engines go on: no
                engine works by the new value while another one still works by the old

Whatever the mode, all copies are prepared before the first is changed: an error leaves all as they were.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from dataplane.errors import ConfigError, GraphError, VnicError, named
from dataplane.work import Call, Work

if TYPE_CHECKING:
    from dataplane.element import Element
    from dataplane.engine import Engine


class Mode(enum.StrEnum):
    """How the copies of an element get a change."""

    LIVE = "live"
    QUIESCING = "quiescing"


@dataclass(frozen=True, kw_only=True)
class Handler:
    """One handler; `read` and `write` are names of methods, None: it cannot be read, or written.

    argument: the constructor's argument that a written value stands for, so that whoever builds the element again (after a crash, for an
    upgrade) gives it the value that was written last. None: nothing that is configured changes.
    shared: what it touches is not the copy's own but the same for all copies, and made to be touched by anybody at any time (the switch's
    table): reads and changes happen once, on control's thread, and no engine waits for them.
    """

    help: str
    read: str | None = None
    write: str | None = None
    mode: Mode = Mode.LIVE
    argument: str | None = None
    shared: bool = False


def handlers_of(kind: type[Element]) -> dict[str, Handler]:
    """The handlers of a class by name, its bases' included. Raises GraphError for one whose method is not there."""
    found: dict[str, Handler] = {}
    for each in reversed(kind.__mro__):
        found.update(vars(each).get("HANDLERS", {}))
    for name, handler in found.items():
        for method in filter(None, (handler.read, handler.write)):
            if not callable(getattr(kind, method, None)):
                raise GraphError(f"{kind.__name__}: handler {name}: there is no method {method}")
        if handler.read is None and handler.write is None:
            raise GraphError(f"{kind.__name__}: handler {name}: can neither be read nor written; name a method")
    return found


def find_handler(element: Element, name: str) -> Handler:
    """The handler of that name. Raises ConfigError where there is none."""
    found = handlers_of(type(element))
    if name not in found:
        raise ConfigError(f"{element.name}: has no handler {name}; a {type(element).__name__} has {', '.join(sorted(found))}")
    return found[name]


def describe(element: Element) -> dict[str, dict[str, Any]]:
    """What there is, as plain data: name -> {"read", "write": whether it can be, "mode", "shared", "help"}."""
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


# -- plain data ----------------------------------------------------------------------------------------------------------------


def _plain_of(value: object) -> object:
    """What JSON has no word for and elements may well have: numpy's numbers and arrays, integers with a name."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain_of)


def plain(value: object) -> Any:
    """A copy of the value as JSON would have it: None, bool, int, float, str, lists, dicts with str keys. Raises TypeError."""
    return msgspec.json.decode(_ENCODER.encode(value))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- reading -------------------------------------------------------------------------------------------------------------------


def read_handler(element: Element, name: str) -> Any:
    """What the handler reads of this copy, at one instant between two batches, as plain data. Raises ConfigError for a handler that is not
    there or cannot be read, VnicError where reading failed."""
    handler = find_handler(element, name)
    if handler.read is None:
        raise ConfigError(f"{element.name}: handler {name} can only be written")
    method = getattr(element, handler.read)

    def take() -> bytes:
        return _ENCODER.encode(method())  # encoded here: the element may have handed out a list that it goes on changing

    try:
        return msgspec.json.decode(take() if handler.shared or element.engine is None else element.engine.call(take))
    except VnicError:
        raise
    except Exception as error:  # a user's class may raise anything
        raise VnicError(f"{element.name}: handler {name}: reading failed: {named(error)}") from error


# -- writing -------------------------------------------------------------------------------------------------------------------


def write_handler(
    copies: Sequence[Element],
    name: str,
    value: object,
    *,
    halt: Callable[[Engine], object],
    resume: Callable[[Engine], object],
) -> Any:
    """Writes a value to all copies of one element; returns what the (first) change returned, if that is plain data, else None.

    halt, resume: stop an engine between two batches and let it go on (an EngineGroup's, say); used when quiescing, and only for engines
    that somebody runs. Each that was to be halted is resumed, whatever happens. One call at a time: of two, engines could see
    different ones last.

    Raises ConfigError for a handler that is not there or cannot be written and for a value that it refuses, and whatever `halt` raises;
    then nothing has changed. VnicError that names the engines where the change itself failed: it was made in the others, since one that
    has begun is better finished than left.
    """
    handler = find_handler(copies[0], name)
    where = f"{copies[0].name}: handler {name}"
    if handler.write is None:
        raise ConfigError(f"{where} can only be read")
    try:
        value = plain(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {_shown(value)}: want plain data: {error}") from None
    engines = [_engine_of(copy, where) for copy in copies]
    changes = [_prepare(copy, handler, where, value) for copy in (copies[:1] if handler.shared else copies)]
    with ExitStack() as stack:
        for engine in engines if handler.mode is Mode.QUIESCING else ():
            if engine.runner is not None:
                stack.callback(resume, engine)  # before it is halted: a halt that fails half-way is undone too
                halt(engine)
                if engine.runner is not None:
                    raise VnicError(f"{where}: engine {engine.name} did not stop")
        return _publish(engines, changes, where) if not handler.shared else _change_shared(changes[0], where)


def _engine_of(copy: Element, where: str) -> Engine:
    if copy.engine is None:
        raise VnicError(f"{where}: the element is in no engine; load it first")
    return copy.engine


def _prepare(copy: Element, handler: Handler, where: str, value: object) -> Work | Callable[[], object]:
    assert handler.write is not None
    try:
        change = getattr(copy, handler.write)(value)
    except VnicError:
        raise
    except Exception as error:  # a user's class may refuse a value with anything
        raise ConfigError(f"{where}: {_shown(value)} will not do: {named(error)}") from error
    if not callable(change) and (handler.shared or not isinstance(change, Work)):
        wanted = "a callable" if handler.shared else "a Work or a callable"
        raise VnicError(f"{where}: {type(copy).__name__}.{handler.write} must return the change, {wanted}; it did not")
    return change  # type: ignore[no-any-return]


def _change_shared(change: Work | Callable[[], object], where: str) -> Any:
    """Makes a change that concerns no engine."""
    assert callable(change)
    try:
        return _result(change())
    except Exception as error:
        raise VnicError(f"{where}: the change failed: {named(error)}") from error


def _publish(engines: list[Engine], changes: list[Work | Callable[[], object]], where: str) -> Any:
    """Makes the changes, each on its engine's thread, or here where nobody runs the engine."""
    done: list[tuple[str, object]] = []
    failed: list[tuple[str, BaseException]] = []
    for engine, change in zip(engines, changes, strict=True):
        try:
            done.append((engine.name, engine.post(change if isinstance(change, Work) else Call(change))))
        except BaseException as error:  # also an interrupt: the other copies get the value before it goes on
            failed.append((engine.name, error))
    for _, reason in failed:
        if not isinstance(reason, Exception):
            raise reason
    if failed:
        rest = f"; it was made in {', '.join(name for name, _ in done)}" if done else ""
        names = ", ".join(name for name, _ in failed)
        raise VnicError(f"{where}: the change failed in engine {names}: {named(failed[0][1])}{rest}") from failed[0][1]
    return _result(done[0][1])


def _result(value: object) -> Any:
    try:
        return plain(value)
    except (TypeError, ValueError, RecursionError):
        return None

"""Hand-over of a running engine to another engine with the same graph (Snap, section 4).

Both engines share the pool; they are in one process or in two.

    marks, loading = {}, Loading(new)     new is freshly built
    for part in save_parts(old, marks):   while old runs; may be left out
        loading.part(part)
    data = save_engine(old, marks)        old is between two batches, and may still go on afterwards
    loading.finish(data)                  after an error, new is as before
    start(new)                            the point of no return: old must not run again
    forget_engine(old)                    old gives up its packets, unfreed; before or after start

Until `start` nothing is written to shared memory. Packets in rings stay there: the rings are
shared. docs/state-format.md documents the format.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec

from dataplane.engine.engine import Engine
from dataplane.engine.state import StateWork, charged_ns, counts, overhead_ns, set_charges
from dataplane.errors import VnicError, named
from dataplane.graph.element import Element, PyElement
from dataplane.packet.pool import PacketPool

PREFIX = struct.Struct("<8sI")  # magic, version of the format
MAGIC = b"vnicengn"
FORMAT_VERSION = 2
# By version: the function that converts content of that version to the next.
# Format 1 had one random generator per engine; since then each element has its own stream.
FORMAT_UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda content: {key: value for key, value in content.items() if key != "random_state"}
}
BYTES_MAX = 1 << 28  # more than a state with as many packets as a pool may have
DEPTH_MAX = 32
PART_ELEMENTS = 8  # per part of save_parts: saving them delays an engine's packets by 0.2 ms

Marks = dict[str, tuple[Any, bytes]]

Count = Annotated[int, msgspec.Meta(ge=0)]  # below 2^64: msgpack has no larger integers


class Statistics(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of Element.statistics()."""

    packets: Count
    batches: Count
    received: Count
    generated: Count
    transmitted: Count
    held: Count
    dropped: dict[str, Count]
    counters: dict[str, Count]


class ElementState(msgspec.Struct, forbid_unknown_fields=True):
    """One element. kind: its class name; version: the class's STATE_VERSION."""

    name: str
    kind: str
    version: Count
    charged_ns: Count
    statistics: Statistics
    state: dict[str, Any]


class PoolState(msgspec.Struct, forbid_unknown_fields=True):
    """Identity of the pool that the packet indices refer to: its sizes, device and inode of its
    segment."""

    small: Count
    large: Count
    device: Count
    inode: Count


class EngineState(msgspec.Struct, forbid_unknown_fields=True):
    """An engine between two batches. Times are nanoseconds of its clock: CLOCK_MONOTONIC of this
    machine, or a virtual clock."""

    name: str
    clock: str
    now_ns: Count
    cpu_ns: Count
    overhead_ns: Count
    pool: PoolState
    elements: list[ElementState]


# made here: the first use of a type is slow, and packets wait during a hand-over
_DECODER = msgspec.msgpack.Decoder(EngineState)


def save_parts(engine: Engine, marks: Marks) -> Iterator[bytes]:
    """Saves the states of a running engine's elements, a few at a time, each between two batches.
    save_engine then saves only those that have changed since, so idle NICs do not lengthen a
    hand-over.

    Leaves out elements that hold packets, and Python elements, whose states may be expensive to
    save. marks: filled with the data by which save_engine recognizes changed elements. Raises as
    save_engine.
    """
    elements = [element for element in engine.elements if not isinstance(element, PyElement)]
    for first in range(0, len(elements), PART_ELEMENTS):
        some = elements[first : first + PART_ELEMENTS]

        def collect(work: StateWork, some: list[Element] = some) -> bytes:
            states = []
            for element in some:
                state = _save_element(element)
                if not state.state.get("packets") and not state.statistics.held:
                    states.append(state)
                    # encoded, since the state may be the element's own object
                    marks[element.name] = counts(element), msgspec.msgpack.encode(state.state)
            return _encode(_engine_state(engine, work, states))  # here, for the same reason

        yield engine.post(StateWork(collect))


def save_engine(engine: Engine, marks: Marks | None = None) -> bytes:
    """Returns the state of an engine between two batches; does not change the engine. marks: from
    save_parts; elements that have not changed since are left out. Raises VnicError, one line, for
    an element that cannot be handed over."""
    known = marks or {}

    def has_changed(element: Element) -> bool:
        try:
            counted, state = known.get(element.name, (None, b""))
            return counted != counts(element) or state != msgspec.msgpack.encode(
                element.save_state()
            )
        except Exception:
            return True  # _save_element raises the error

    def collect(work: StateWork) -> bytes:
        changed = [element for element in engine.elements if has_changed(element)]
        return _encode(_engine_state(engine, work, [_save_element(element) for element in changed]))

    data: bytes = engine.post(StateWork(collect))
    return data


class Loading:
    """Loads the state of another engine into a freshly built one, whose elements have the same
    names and classes. After an error (VnicError, one line) the engine is as before the call:
    everything is checked first, and if an element rejects its state nevertheless, the others get
    their previous state back."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._elements = {element.name: element for element in engine.elements}
        self._loaded: set[str] = set()  # by `part`

    def part(self, data: bytes) -> None:
        """Loads a part from `save_parts`."""
        with _printable():
            self._load(data, part=True)

    def finish(self, data: bytes, *, again: bool = False) -> None:
        """Loads a state from `save_engine`. again: the engine was forgotten (`forget_engine`) and
        gets the continued state back."""
        with _printable():
            self._load(data, again=again)

    def _load(self, data: bytes, *, part: bool = False, again: bool = False) -> None:
        engine, elements, loaded = self._engine, self._elements, self._loaded
        where = f"engine {engine.name}"
        if engine.running:
            raise VnicError(f"{where}: runs; a state is loaded before it starts")
        state = _decode(where, data)
        _check_engine(engine, state)
        names = {entry.name for entry in state.elements}
        if len(names) < len(state.elements):
            raise VnicError(f"{where}: its state has two elements of one name")
        strange = sorted(names - elements.keys())
        missing = [] if part else sorted(elements.keys() - names - loaded)
        if strange or missing:
            what = [
                f"{_few(names)} {verb}"
                for names, verb in ((strange, "only there"), (missing, "only here"))
                if names
            ]
            raise VnicError(f"{where}: its state is of another graph: {', '.join(what)}")
        pairs = [
            (elements[entry.name], *_upgrade(elements[entry.name], entry))
            for entry in state.elements
        ]
        _check_packets(engine.pool, pairs)
        if part and any(own.get("packets") for _, _, own in pairs):
            raise VnicError(
                f"{where}: a part of its state has packets, which the other engine still moves"
            )

        def apply(work: StateWork) -> None:
            fresh = [(element, element.statistics(), _save(element)) for element, _, _ in pairs]
            if not again and any(
                (statistics["packets"] or statistics["received"]) and element.name not in loaded
                for element, statistics, _ in fresh
            ):
                raise VnicError(
                    f"{where}: has seen packets of its own; load the state into a new engine"
                )
            touched = 0
            try:
                for element, statistics, own in pairs:
                    touched += 1
                    element.load_statistics(statistics)
                    _load(element, own)
            except BaseException:
                for element, statistics, own in fresh[:touched]:
                    element.load_statistics(statistics)
                    _load(element, own)
                raise
            charges = [(elements[entry.name], entry.charged_ns) for entry in state.elements]
            set_charges(engine, charges, state.overhead_ns, state.cpu_ns)
            engine.take_up()

        engine.post(StateWork(apply))
        loaded |= names


def load_engine(engine: Engine, data: bytes, *, again: bool = False) -> None:
    """Loads a state without parts, as `Loading.finish`."""
    Loading(engine).finish(data, again=again)


@contextmanager
def _printable() -> Iterator[None]:
    """Replaces unprintable characters in errors, which quote names from untrusted data."""
    try:
        yield
    except VnicError as error:
        raise VnicError(
            "".join(each if each.isprintable() else "?" for each in str(error))
        ) from error.__cause__


def forget_engine(engine: Engine) -> None:
    """Makes a stopped engine, whose state another engine continues, forget its packets without
    freeing them, and returns its free packets to the pool. Afterwards only `close` and
    `load_engine(again=True)` are allowed."""
    if engine.running:
        raise VnicError(f"engine {engine.name}: runs; stop it before another takes over")

    def forget(work: StateWork) -> None:
        work.return_cache = True
        for element in engine.elements:
            element.forget_state()

    engine.post(StateWork(forget))


# -- saving --------------------------------------------------------------------------------------


def _engine_state(engine: Engine, work: StateWork, elements: list[ElementState]) -> EngineState:
    return EngineState(
        name=engine.name,
        clock=_clock(engine),
        now_ns=engine.clock.now_ns,
        cpu_ns=engine.cpu_ns,
        overhead_ns=overhead_ns(engine),
        pool=_identity(engine.pool),
        elements=elements,
    )


def _encode(state: EngineState) -> bytes:
    return PREFIX.pack(MAGIC, FORMAT_VERSION) + msgspec.msgpack.encode(state)


def _clock(engine: Engine) -> str:
    return "virtual" if engine.clock.virtual else "monotonic"


def _identity(pool: PacketPool) -> PoolState:
    status = os.fstat(pool.fd)
    return PoolState(pool.small_count, pool.large_count, status.st_dev, status.st_ino)


def _save_element(element: Element) -> ElementState:
    kind = type(element)
    return ElementState(
        name=element.name,
        kind=kind.__name__,
        version=kind.STATE_VERSION,
        charged_ns=charged_ns(element),
        statistics=Statistics(**element.statistics()),
        state=_save(element),
    )


def _save(element: Element) -> dict[str, Any]:
    """The element's own state. Converts an exception or a wrong result of a user's class to
    VnicError."""
    kind = type(element)
    if not kind.MOVABLE:
        raise VnicError(
            f"{element.name}: a {kind.__name__} cannot be handed over; "
            "take it out of the graph first"
        )
    try:
        state = element.save_state()
    except VnicError:
        raise
    except Exception as error:
        raise VnicError(f"{element.name}: save_state failed: {named(error)}") from error
    if (
        not isinstance(state, dict)
        or not _plain(state, 0)
        or not isinstance(state.get("packets", b""), bytes | list)
    ):
        raise VnicError(
            f"{element.name}: save_state must return a dict of plain data "
            "(docs/state-format.md); it did not"
        )
    return state


def _plain(value: object, depth: int) -> bool:
    """True if msgpack returns the value unchanged."""
    if value is None or type(value) in (bool, float, str, bytes):
        return True
    if type(value) is int:
        return -(1 << 63) <= value < 1 << 64
    if depth == DEPTH_MAX:
        return False
    if type(value) is list:
        if set(map(type, value)) == {int}:  # the common case: packets
            return bool(min(value) >= -(1 << 63) and max(value) < 1 << 64)
        return all(_plain(each, depth + 1) for each in value)
    return type(value) is dict and all(
        type(key) is str and _plain(each, depth + 1) for key, each in value.items()
    )


# -- loading -------------------------------------------------------------------------------------


def _decode(where: str, data: bytes) -> EngineState:
    if len(data) < PREFIX.size or len(data) > BYTES_MAX or data[:8] != MAGIC:
        raise VnicError(f"{where}: what was handed over is no engine's state")
    version = PREFIX.unpack_from(data)[1]
    if version > FORMAT_VERSION:
        raise VnicError(
            f"{where}: its state has format {version}, this vnic reads up to {FORMAT_VERSION}; "
            "take one at least as new"
        )
    try:
        if version == FORMAT_VERSION:
            return _DECODER.decode(memoryview(data)[PREFIX.size :])
        content = msgspec.msgpack.decode(memoryview(data)[PREFIX.size :])
        for step in range(version, FORMAT_VERSION):
            content = FORMAT_UPGRADES[step](content)
        return msgspec.convert(content, EngineState)
    except Exception as error:  # damaged data may make any upgrade step raise anything
        raise VnicError(f"{where}: its state is damaged: {named(error)}") from None


def _check_engine(engine: Engine, state: EngineState) -> None:
    where = f"engine {engine.name}"
    if state.name != engine.name:
        raise VnicError(f"{where}: the state is that of engine {state.name[:40]}")
    if state.clock != _clock(engine) or state.now_ns > engine.clock.now_ns:
        raise VnicError(
            f"{where}: its state was saved at {state.now_ns} ns by another clock than this one; "
            "both must run on one machine"
        )
    if state.pool != _identity(engine.pool):
        raise VnicError(
            f"{where}: its state belongs to another pool of packets; both engines must share one"
        )


def _upgrade(element: Element, entry: ElementState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Statistics and state of an element, converted to its class's version."""
    kind = type(element)
    if entry.kind != kind.__name__:
        raise VnicError(
            f"{element.name}: is a {kind.__name__} here, and a {entry.kind[:40]} in the state"
        )
    if entry.version > kind.STATE_VERSION:
        raise VnicError(
            f"{element.name}: its state has version {entry.version}, "
            f"this {kind.__name__} reads up to {kind.STATE_VERSION}; take one at least as new"
        )
    try:
        changed: dict[str, Any] = {
            "statistics": msgspec.to_builtins(entry.statistics),
            "state": entry.state,
        }
        if entry.version == kind.STATE_VERSION:
            return changed["statistics"], entry.state
        for version in range(entry.version, kind.STATE_VERSION):
            if version not in kind.UPGRADES:
                raise VnicError(
                    f"{element.name}: a {kind.__name__} has no way from version {version} "
                    f"of its state to {version + 1}"
                )
            changed = kind.UPGRADES[version](changed)
        statistics = msgspec.to_builtins(msgspec.convert(changed["statistics"], Statistics))
        own = changed["state"]
        if not isinstance(own, dict):
            raise TypeError("no dict")
        return statistics, own
    except VnicError:
        raise
    except Exception as error:
        raise VnicError(f"{element.name}: its state is damaged: {named(error)}") from None


def _check_packets(
    pool: PacketPool, pairs: list[tuple[Element, dict[str, Any], dict[str, Any]]]
) -> None:
    """Checks that every packet in the states is in the pool, in use, within its buffer, and listed
    once."""
    owners = (
        bytearray(4 * (pool.small_count + pool.large_count))
        if any(own.get("packets") for _, _, own in pairs)
        else None
    )
    for number, (element, statistics, own) in enumerate(pairs, 1):
        packets = _packed(element, own.get("packets", b""))
        if statistics["held"] > len(packets) // 4:
            raise VnicError(
                f"{element.name}: its state holds {statistics['held']} packets "
                f"and names {len(packets) // 4}"
            )
        if owners is not None and (wrong := pool.check_held(packets, owners, number)) is not None:
            index, what = wrong
            if isinstance(what, int):
                what = f"{pairs[what - 1][0].name} holds"
            what = "the pool does not have" if what == "is not in the pool" else what
            raise VnicError(f"{element.name}: its state holds packet {index}, which {what}")


def _packed(element: Element, packets: object) -> bytes:
    """The packets of a state as packed indices; Python elements may save them as a list."""
    if isinstance(packets, list) and all(
        type(index) is int and 0 <= index < 1 << 32 for index in packets
    ):
        return struct.pack(f"<{len(packets)}I", *packets)
    if not isinstance(packets, bytes) or len(packets) % 4:
        raise VnicError(f"{element.name}: `packets` of its state is not a list of packets")
    return packets


def _load(element: Element, state: dict[str, Any]) -> None:
    try:
        element.load_state(state)
    except VnicError:
        raise
    except Exception as error:
        raise VnicError(f"{element.name}: load_state failed: {named(error)}") from error


def _few(names: list[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

"""Methods of the control API, and who calls them.

A method runs on the event loop's thread; methods run one after the other. None runs on an engine's thread.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from dataplane.errors import VnicError

FRESH_S = 0.01  # what was read so long ago is as good as new: many who ask at once cost the engines one snapshot
FRESH_TURNS = 10  # for readers without end: a tenth of control's time goes into them at most
FRESH_MOST = 64  # answers kept meanwhile: names that clients make up shall not fill the memory


class NotPermittedError(VnicError):
    """The client is not allowed to do that."""

    default_code = "not-permitted"


class Parameters(msgspec.Struct, forbid_unknown_fields=True):
    """What a method takes; most take nothing."""


class Named(Parameters):
    """A method about one NIC."""

    name: str


class Fresh:
    """Answers by what was asked, each good for FRESH_S, and for `turns` times what it took to make, from when it was made: the more there
    is to read, and the more often somebody asks, the older it may be."""

    def __init__(self, turns: int = 1) -> None:
        self._turns = turns
        self._kept: dict[object, tuple[float, Any]] = {}

    def get(self, asked: object, make: Callable[[], Any]) -> Any:
        """What is kept, or what `make` makes."""
        begin = time.monotonic()
        good_until, answer = self._kept.get(asked, (begin, None))
        if begin >= good_until:
            if len(self._kept) >= FRESH_MOST:
                self._kept.clear()
            answer = make()
            end = time.monotonic()
            self._kept[asked] = end + max(FRESH_S, self._turns * (end - begin)), answer
        return answer

    def clear(self) -> None:
        """Nothing is good any more."""
        self._kept.clear()


def user_name(uid: int) -> str:
    """A user as people know them: "alice (uid 1001)"."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def is_owner(uid: int | None) -> bool:
    """Whether a user is the instance's owner, or root; also None, which a NIC has whose owner is not said."""
    return uid is None or uid in (0, os.geteuid())


@dataclass
class Session:
    """A client's connection: who it is, and what ends with it. Two are never equal."""

    uid: int
    pid: int
    captures: set[int] = field(default_factory=set)

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def is_owner(self) -> bool:
        """The instance's owner, or root: sees and changes everything."""
        return is_owner(self.uid)

    @property
    def who(self) -> str:
        return f"user {user_name(self.uid)}"


class Caller:
    """Who calls a method, and the descriptors that came with the call. A method takes those that it keeps; the others are closed."""

    def __init__(self, session: Session, descriptors: list[int] | None = None) -> None:
        self.session = session
        self._descriptors: list[int | None] = list(descriptors or ())

    def take(self, index: int) -> int:
        """The descriptor that a parameter means by its number, from 0; the method's own from here on. Raises VnicError."""
        found = self._descriptors[index] if 0 <= index < len(self._descriptors) else None
        if found is None:
            raise VnicError(
                f"descriptor {index} did not come with the call; {len(self._descriptors)} did"
            )
        self._descriptors[index] = None
        return found

    def close(self) -> None:
        """Closes what nobody took."""
        for descriptor in filter(None.__ne__, self._descriptors):
            assert descriptor is not None
            os.close(descriptor)
        self._descriptors.clear()


class Reply(dict[str, Any]):
    """A method's answer with descriptors, which are closed when they have gone out."""

    def __init__(self, parameters: dict[str, Any], descriptors: list[int]) -> None:
        super().__init__(parameters)
        self.descriptors = descriptors


@dataclass(frozen=True)
class Method:
    """A method of the control API. `call` takes parameters and a Caller.

    read      returns the reply's parameters; `cached`: what it said may be some milliseconds old
    change    the same, and is logged with who asked for it; one change is made after the other. `call`
              may be a coroutine function: reads are answered meanwhile
    task      a coroutine function as well, which does not keep changes waiting
    stream    returns an asynchronous iterator over replies' parameters

    clients: users other than the instance's owner may call it, see `clients:` in the configuration; it is then the method's part to look
    at whose things it shows or changes.
    """

    name: str
    call: Callable[[Any, Caller], Any]
    parameters: type[Parameters] = Parameters
    kind: Literal["read", "change", "task", "stream"] = "read"
    cached: bool = False
    clients: bool = False

"""Methods of the control API, and their callers.

Methods run one after the other on the event loop's thread, never on an engine's thread.
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

# Replies younger than this are reused, so simultaneous callers cost the engines one snapshot.
FRESH_S = 0.01
FRESH_TURNS = 10  # bounds permanent readers to a tenth of control's time
FRESH_MOST = 64  # bound on stored replies, whose names clients choose


class NotPermittedError(VnicError):
    """The client is not allowed to do that."""

    default_code = "not-permitted"


class Parameters(msgspec.Struct, forbid_unknown_fields=True):
    """A method's parameters; by default none."""


class Named(Parameters):
    """A method about one NIC."""

    name: str


class Fresh:
    """A cache of replies by request. A reply is valid for FRESH_S, or for `turns` times the time
    that it took to make if that is longer, so that frequent expensive reads get older replies."""

    def __init__(self, turns: int = 1) -> None:
        self._turns = turns
        self._replies: dict[object, tuple[float, Any]] = {}

    def get(self, request: object, make: Callable[[], Any]) -> Any:
        """The cached reply, or a new one from `make`."""
        begin = time.monotonic()
        valid_until, reply = self._replies.get(request, (begin, None))
        if begin >= valid_until:
            if len(self._replies) >= FRESH_MOST:
                self._replies.clear()
            reply = make()
            end = time.monotonic()
            self._replies[request] = end + max(FRESH_S, self._turns * (end - begin)), reply
        return reply

    def clear(self) -> None:
        """Forgets all replies."""
        self._replies.clear()


def user_name(uid: int) -> str:
    """A user for messages: "alice (uid 1001)"."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def is_owner(uid: int | None) -> bool:
    """Whether a user is the instance's owner or root. None, the owner of a NIC without `owner:`,
    counts as the instance's owner."""
    return uid is None or uid in (0, os.geteuid())


@dataclass
class Session:
    """A client's connection: its user, and what ends with it: captures, and the policy of shaping
    that it holds, by its generation. Compared by identity."""

    uid: int
    pid: int
    captures: set[int] = field(default_factory=set)
    policy: int | None = None

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def is_owner(self) -> bool:
        """Whether the client is the instance's owner or root, who see and change everything."""
        return is_owner(self.uid)

    @property
    def who(self) -> str:
        return f"user {user_name(self.uid)}"


class Caller:
    """The session that calls a method, and the descriptors that came with the call. They are closed
    after the call unless the method takes them."""

    def __init__(self, session: Session, descriptors: list[int] | None = None) -> None:
        self.session = session
        self._descriptors: list[int | None] = list(descriptors or ())

    def take(self, index: int) -> int:
        """Takes the descriptor with a number, from 0, that a parameter has; the method closes it.
        Raises VnicError."""
        found = self._descriptors[index] if 0 <= index < len(self._descriptors) else None
        if found is None:
            raise VnicError(
                f"descriptor {index} did not come with the call; {len(self._descriptors)} did"
            )
        self._descriptors[index] = None
        return found

    def close(self) -> None:
        """Closes the descriptors that the method did not take."""
        for descriptor in filter(None.__ne__, self._descriptors):
            assert descriptor is not None
            os.close(descriptor)
        self._descriptors.clear()


class Reply(dict[str, Any]):
    """A method's reply with descriptors, which are closed after they were sent."""

    def __init__(self, parameters: dict[str, Any], descriptors: list[int]) -> None:
        super().__init__(parameters)
        self.descriptors = descriptors


@dataclass(frozen=True)
class Method:
    """A method of the control API. `call` takes parameters and a Caller.

    read      returns the reply's parameters; `cached`: they may be some milliseconds old
    change    the same; logged with its caller; changes run one after the other. `call` may be a
              coroutine function: reads are answered meanwhile
    task      a coroutine function, too, but changes do not wait for it
    stream    returns an asynchronous iterator over replies' parameters

    clients: users other than the instance's owner may call it, see `clients:` in the configuration;
    then the method must check the owner of everything that it shows or changes.
    """

    name: str
    call: Callable[[Any, Caller], Any]
    parameters: type[Parameters] = Parameters
    kind: Literal["read", "change", "task", "stream"] = "read"
    cached: bool = False
    clients: bool = False

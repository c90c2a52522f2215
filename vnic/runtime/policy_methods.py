"""API methods about the policy of shaping: see vnic.runtime.policy_life."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec

from dataplane.errors import ConfigError, VnicError, printable
from vnic.api.method import Caller, Method, Parameters, Session
from vnic.config.shape import network_of
from vnic.modules.lines import policy_elements
from vnic.runtime.apply import Change
from vnic.runtime.documents import decode_document, read_document
from vnic.runtime.policy_life import Author, Wish

LEASE_MOST_MS = 366 * 24 * 3600 * 1000
LEFT_MOST = 8  # names of elements that should not be there
ABOUT_MOST = 200  # characters of what a generation says about itself

_Time = Annotated[int, msgspec.Meta(ge=1, le=LEASE_MOST_MS)] | None
_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Shape(Parameters):
    policy: dict[str, Any] | None = None
    document: int | None = None
    for_ms: _Time = None
    confirm_ms: _Time = None
    hold: bool = False
    keeps_end: bool = False
    about: Annotated[str, msgspec.Meta(max_length=ABOUT_MOST)] = ""
    dry: bool = False


class UndoShape(Parameters):
    generation: _Number | None = None
    for_ms: _Time = None
    dry: bool = False


class HoldShape(Parameters):
    generation: _Number
    hold: bool = True


class ShapeLog(Parameters):
    generation: _Number | None = None


class ShapeStatus(Parameters):
    whole: bool = False


def _ns(time_ms: int | None) -> int | None:
    return None if time_ms is None else time_ms * 1_000_000


class PolicyMethods:
    """Methods over a runtime."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def methods(self) -> list[Method]:
        return [
            Method("Shape", self._shape, Shape, "change"),
            Method("UndoShape", self._undo, UndoShape, "change"),
            Method("ConfirmShape", self._confirm, kind="change"),
            Method("HoldShape", self._hold, HoldShape, "change"),
            Method("ShapeLog", self._log, ShapeLog),
            Method("ShapeStatus", self._status, ShapeStatus),
        ]

    def ended(self, session: Session) -> None:
        """A policy that the connection held ends with it."""
        if session.policy is not None:
            self._runtime.policy.let_go(session.policy)
            session.policy = None

    def _reply(self, changes: list[Change]) -> dict[str, Any]:
        generation = self._runtime.policy.term.generation
        return {"changes": [change.as_dict() for change in changes], "generation": generation}

    async def _shape(self, parameters: Shape, caller: Caller) -> dict[str, Any]:
        life, given = self._runtime.policy, parameters
        policy = given.policy
        if given.document is not None:
            if policy is not None:
                raise ConfigError("expected either policy or document")
            policy = decode_document(read_document(caller.take(given.document)))
        if policy is None and (given.for_ms or given.confirm_ms or given.hold):
            raise ConfigError("no policy cannot end: expected policy, or no for_ms and the like")
        if given.hold and given.confirm_ms is not None:
            raise ConfigError("hold and confirm_ms exclude each other")
        wish = Wish(_ns(given.for_ms), _ns(given.confirm_ms), given.hold, given.keeps_end)
        author = Author(caller.session.uid, printable(given.about))
        change = partial(life.apply, policy, wish, author, dry=given.dry)
        reply = self._reply(await self._runtime.aside(change))
        if given.hold and not given.dry:
            if (held := life.term.held) is None:
                raise VnicError("another policy has replaced it already")
            self._take_hold(held, caller.session)
            reply["held"] = held
        return reply

    async def _undo(self, parameters: UndoShape, caller: Caller) -> dict[str, Any]:
        author = Author(caller.session.uid, "undo")
        wish = Wish(_ns(parameters.for_ms))
        change = partial(
            self._runtime.policy.undo, parameters.generation, wish, author, dry=parameters.dry
        )
        return self._reply(await self._runtime.aside(change))

    def _confirm(self, _: Parameters, caller: Caller) -> dict[str, Any]:
        return {"generation": self._runtime.policy.confirm()}

    async def _hold(self, parameters: HoldShape, caller: Caller) -> dict[str, Any]:
        session = caller.session
        if parameters.hold:
            self._take_hold(parameters.generation, session)
        elif session.policy == parameters.generation:
            self.ended(session)
            await self._runtime.aside(self._runtime.policy.end)
        return {}

    def _take_hold(self, generation: int, session: Session) -> None:
        before = session.policy
        self._runtime.policy.hold(generation)
        session.policy = generation
        if before is not None:
            self._runtime.policy.let_go(before)

    def _log(self, parameters: ShapeLog, _: Caller) -> dict[str, Any]:
        life = self._runtime.policy
        if parameters.generation is not None:
            return {"generations": [life.generation(parameters.generation)]}
        return {"generations": life.generations()}

    def _status(self, parameters: ShapeStatus, caller: Caller) -> dict[str, Any]:
        status = self._runtime.policy.status()
        if not parameters.whole:
            return {"status": status}
        config = self._runtime.config
        network = network_of(config, (config.shape,))
        known = {
            "nics": dict(network.nics),
            "links": {name: list(ends) for name, ends in network.links.items()},
            "absent": sorted(name for name in network.absent if network.lacks(name)),
            "pool": self._runtime.pool.small_count,
        }
        # so that a command can say that nothing is left of a policy that has ended
        nics = self._runtime.nics
        left = policy_elements(nics.attached, nics.links) if config.shape is None else []
        whole = {"policy": config.shape, "network": known, "left": left[:LEFT_MOST]}
        return {"status": {**status, **whole}}

"""The generations of policies of shaping: what was the policy, since when, and who made it so. The
supervisor stores them (keeper.py), so that they survive a crash and an upgrade."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from dataplane.errors import ConfigError, VnicError
from vnic.api.log import Log
from vnic.config.policy_term import PolicyTerm
from vnic.store.keeper import Keeper, read_document

KEY = "policies"
GENERATIONS_MOST = 32
# A policy of 4096 lines has about half a megabyte. The newest is kept whatever it has.
BYTES_MOST = 32 << 20

log = Log("vnic")


class Generation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One policy. Its number never occurs again in the life of the instance.

    policy   plain data, in the form of a file; None: no policy
    at_s     when it was applied, in seconds since 1970
    uid      the user who did it; None: vnic itself, as when a policy's time was over
    what     the command or the reason, for people
    changes  the first differences from the generation before, for people
    of       the generation that was restored by it; None: none was; 0: no policy
    """

    number: int
    policy: msgspec.Raw
    term: PolicyTerm
    at_s: float
    uid: int | None = None
    what: str = ""
    changes: list[str] = []
    of: int | None = None

    @property
    def data(self) -> Any:
        return msgspec.json.decode(self.policy)

    @property
    def is_empty(self) -> bool:
        """Whether there was no policy."""
        return bytes(self.policy) == b"null"


class Policies:
    """The last generations, the newest last. The oldest are forgotten beyond GENERATIONS_MOST or
    BYTES_MOST."""

    def __init__(self, keeping: Keeper | None) -> None:
        self._keeping = keeping
        self._kept: dict[int, Generation] = {}
        for document in (keeping.take(KEY) if keeping is not None else None) or ():
            found = msgspec.json.decode(read_document(document), type=list[Generation])
            self._kept = {each.number: each for each in found}
            os.close(document)

    @property
    def next(self) -> int:
        """The number of the next generation."""
        return max(self._kept, default=0) + 1

    def all(self) -> list[Generation]:
        return list(self._kept.values())

    def find(self, number: int) -> Generation | None:
        return self._kept.get(number)

    def get(self, number: int) -> Generation:
        """Raises ConfigError for a generation that is not kept."""
        found = self._kept.get(number)
        if found is None:
            known = f"{min(self._kept)} to {max(self._kept)}" if self._kept else "none"
            raise ConfigError(
                f"generation {number}: is not kept; kept are {known}, see `vnic shape log`",
                code="not-found",
            )
        return found

    def before(self, number: int) -> int:
        """The generation to which an undo of `number` leads: of a restored one, the one before
        that; so each further undo goes further back. 0: no policy. Raises ConfigError where there
        is nothing before, or it is not kept."""
        if number == 0 or (found := self._kept.get(number)) is None:
            raise ConfigError("there is nothing to undo: no policy has been applied")
        number = number if found.of is None else found.of
        if number == 0:
            raise ConfigError("there is nothing to undo: there was no policy before generation 1")
        before = max((each for each in self._kept if each < number), default=0)
        if not before and number > 1:
            self.get(number - 1)
        return before

    def add(self, generation: Generation, back: int = 0) -> None:
        """Adds the newest. back: a generation that stays, since it may be restored. Raises
        VnicError where they cannot be stored, and then nothing has changed."""
        kept = {**self._kept, generation.number: generation}
        while len(kept) > GENERATIONS_MOST or (
            len(kept) > 2 and sum(len(each.policy) for each in kept.values()) > BYTES_MOST
        ):
            del kept[next(each for each in kept if each != back)]
        self._put(kept)

    def replace(self, generation: Generation) -> None:
        """Gives the generation of that number, where it is kept, another term. Raises VnicError,
        and then nothing has changed."""
        if generation.number in self._kept:
            self._put({**self._kept, generation.number: generation})

    def forget_from(self, number: int) -> None:
        """Removes the generations from `number` on, which have not become the policy."""
        kept = {each: found for each, found in self._kept.items() if each < number}
        if len(kept) < len(self._kept):
            try:
                self._put(kept)
            except VnicError as error:  # the next one is stored without them
                self._kept = kept
                log.warning("policies", why=str(error))

    def _put(self, kept: dict[int, Generation]) -> None:
        before, self._kept = self._kept, kept
        if self._keeping is None:
            return
        try:
            self._keeping.put_document(KEY, msgspec.json.encode(list(kept.values())))
        except BaseException:
            self._kept = before
            raise

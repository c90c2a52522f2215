"""Configurations before the last changes by `apply`, for `vnic undo`. The supervisor stores them
(keeper.py), so that they survive a crash and an upgrade."""

from __future__ import annotations

import os

import msgspec

from dataplane.errors import ConfigError
from vnic.store.keeper import Keeper, read_document

KEY = "history"
STEPS_MOST = 16
BYTES_MOST = 32 << 20


class History:
    """Encoded configurations, the newest last. The oldest are forgotten beyond STEPS_MOST or
    BYTES_MOST."""

    def __init__(self, keeping: Keeper | None) -> None:
        self._keeping = keeping
        self._steps: list[bytes] = []
        for document in (keeping.take(KEY) if keeping is not None else None) or ():
            steps = msgspec.json.decode(read_document(document), type=list[msgspec.Raw])
            self._steps = [bytes(step) for step in steps]
            os.close(document)

    def add(self, config: bytes) -> None:
        """Adds the configuration before a change."""
        self._steps = [*self._steps, config][-STEPS_MOST:]
        while len(self._steps) > 1 and sum(map(len, self._steps)) > BYTES_MOST:
            del self._steps[0]
        self._store()

    def last(self) -> bytes:
        """The configuration before the last change. Raises ConfigError where there is none."""
        if not self._steps:
            raise ConfigError(
                "there is nothing to undo: no `vnic apply` has changed this instance",
                code="not-found",
            )
        return self._steps[-1]

    def drop_last(self) -> None:
        """Removes the configuration before the last change, after `vnic undo`."""
        del self._steps[-1]
        self._store()

    def _store(self) -> None:
        if self._keeping is not None:
            self._keeping.put_document(
                KEY, msgspec.json.encode([msgspec.Raw(step) for step in self._steps])
            )

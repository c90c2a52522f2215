"""What an instance lost in a crash and continues without, shown in its status.

So the other NICs keep working, and users see the losses. The supervisor stores the list (keeper.py)
for later workers. An entry stays until its object is set up again.
"""

from __future__ import annotations

import os

import msgspec

from vnic.api.log import Log
from vnic.store.keeper import Keeper, read_document

KEY = "losses"

log = Log("vnic")


class Losses:
    """Lost objects, such as "nic web", with the reason of each; includes those stored by previous
    workers."""

    def __init__(self, keeping: Keeper | None) -> None:
        self._keeping = keeping
        self._kept: dict[str, str] = {}
        self._now: dict[str, str] = {}
        for document in (keeping.take(KEY) if keeping is not None else None) or ():
            self._kept |= msgspec.json.decode(read_document(document), type=dict[str, str])
            os.close(document)

    def add(self, what: str, why: str, *, kept: bool = True) -> None:
        """Records a loss in the log and the status. kept=False: the next worker tries again by
        itself."""
        log.error("lost", what=what, why=why)
        if kept:
            self._kept[what] = why
            self._keep()
        else:
            self._now[what] = why

    def found_again(self, what: str) -> None:
        """Removes the entry of an object that was set up again."""
        if self._kept.pop(what, None) is not None:
            self._keep()

    def status(self) -> list[dict[str, str]]:
        return [{"what": what, "why": why} for what, why in (self._kept | self._now).items()]

    def _keep(self) -> None:
        if self._keeping is not None:
            self._keeping.put_document(KEY, msgspec.json.encode(self._kept))

"""How long a policy of shaping stays, and which of the instance's policies it is."""

from __future__ import annotations

import time

import msgspec


def policy_clock_ns() -> int:
    """The clock of a policy's end: it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


# The fields of a policy's difference that are its term, not its settings.
TERM_FIELDS = ("until", "confirm", "held", "begin")
HIDDEN_FIELDS = (*TERM_FIELDS, "version")  # those that people are not told of


class PolicyTerm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of the stored configuration, so that the worker after a crash knows it.

    generation  number of the change by which the policy came; 0: there has been none
    began_ns    when its scenario began, by the engines' clock; None: when it is applied
    until_ns    when it ends, by `policy_clock_ns`
    confirm_ns  when it is withdrawn, unless it is confirmed before
    back        the generation that is restored then
    held        the generation whose command holds it: it ends with that command's connection
    """

    generation: int = 0
    began_ns: int | None = None
    until_ns: int | None = None
    confirm_ns: int | None = None
    back: int = 0
    held: int | None = None

    @property
    def ends(self) -> bool:
        """Whether it ends by itself."""
        return not (self.until_ns is self.confirm_ns is self.held is None)

    def fields(self, timed: bool) -> dict[str, int | None]:
        """What makes two terms of one policy differ. timed: the policy has a scenario."""
        began_ns = self.began_ns if timed else None
        return dict(
            zip(TERM_FIELDS, (self.until_ns, self.confirm_ns, self.held, began_ns), strict=True)
        )

"""Findings about a policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from dataplane.errors import ConfigError

Kind = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """One line about a policy.

    kind     error: cannot be applied; warning: probably not what is meant; note: what it means
    where    "FILE:LINE"; "" where the policy did not come from a file
    text     the place, what is the matter, and what to do about it
    """

    kind: Kind
    where: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.kind, self.text) if part)


def refuse(findings: Iterable[Finding]) -> None:
    """Raises ConfigError for the first error among the findings."""
    for finding in findings:
        if finding.kind == "error":
            raise ConfigError(": ".join(each for each in (finding.where, finding.text) if each))

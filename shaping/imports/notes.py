"""What an import says besides the policy: what differs, and what does not carry over."""

from __future__ import annotations

from dataplane.errors import ConfigError
from shaping.policy.findings import Finding, Kind

NOTES_MOST = 500  # a file of 10,000 classes has one note for each kind of difference, not for each
SHOWN_MOST = 60  # characters of a word that a message quotes


class Unsupported(ConfigError):
    """Something that the other tool can say and a policy cannot. The text is "what: not supported:
    why"."""


def unsupported(what: str, why: str) -> Unsupported:
    return Unsupported(f"{what}: not supported: {why}")


def quoted(word: object) -> str:
    """A word of a file as a message shows it: short and printable."""
    text = str(word)
    if len(text) > SHOWN_MOST:
        text = text[:SHOWN_MOST] + "..."
    return repr(text)


class Notes:
    """Findings in the order in which they were made. Of several with the same text the first one is
    kept, so that a thousand equal lines make one note."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._texts: set[tuple[Kind, str]] = set()
        self._errors: set[tuple[Kind, str]] = set()

    def note(self, where: str, text: str) -> None:
        """Something that carries over and differs in a detail."""
        self._add("note", where, text)

    def warn(self, where: str, text: str) -> None:
        """Something that packets will notice."""
        self._add("warning", where, text)

    def refuse(self, where: str, error: Unsupported) -> None:
        """Something that is left out."""
        self._add("error", where, str(error))

    def _add(self, kind: Kind, where: str, text: str) -> None:
        # What is left out is counted by itself: one such line decides whether there is a policy.
        texts = self._errors if kind == "error" else self._texts
        if (kind, text) in texts or len(texts) > NOTES_MOST:
            return
        if len(texts) == NOTES_MOST:
            where, text = "", f"more than {NOTES_MOST} notes: the rest is left out"
            kind = kind if kind == "error" else "warning"
        texts.add((kind, text))
        self.findings.append(Finding(kind, where, text))

    @property
    def refused(self) -> list[Finding]:
        return [each for each in self.findings if each.kind == "error"]

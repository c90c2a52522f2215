"""The words of a command, read one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.errors import ConfigError
from shaping.imports.notes import quoted


class Words:
    """A position in the words of a command. what: the command or qdisc, for errors."""

    def __init__(self, words: Sequence[str], what: str) -> None:
        self.words = words
        self.what = what
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.words)

    @property
    def next(self) -> str:
        """The next word, which stays the next one; "" behind the last."""
        return self.words[self.at] if self.at < len(self.words) else ""

    def take(self) -> str:
        """The next word. Raises ConfigError behind the last."""
        if self.at == len(self.words):
            raise ConfigError(f"{self.what}: ends too early: expected one word more")
        self.at += 1
        return self.words[self.at - 1]

    def value(self, name: str) -> str:
        """The value of an option."""
        if self.at == len(self.words):
            raise ConfigError(f"{self.what} {name}: has no value")
        return self.take()

    @property
    def has_only_table(self) -> bool:
        """Whether only the size of a hash table of u32 is left."""
        return self.next == "divisor" and self.at + 2 == len(self.words)

    def skip(self, *words: str) -> bool:
        """Takes the next word if it is one of these."""
        found = self.next in words and bool(self)
        self.at += found
        return found

    def has_number(self, *, signed: bool = False) -> bool:
        """Whether the next word begins as a number: tc takes it for an option's next value."""
        word = self.next
        if signed and word[:1] == "-":
            word = word[1:]
        return word[:1].isdigit() and word[:1].isascii()

    def option(self, names: Sequence[str], exact: Sequence[str] = ()) -> str:
        """The next word, an option: the first of `names` that it is or begins, as tc reads it, or
        one of `exact`. Raises ConfigError."""
        word = self.take()
        if word in exact or word in names:
            return word
        found = next((name for name in names if word and name.startswith(word)), None)
        if found is None:
            known = ", ".join([*names, *exact])
            raise ConfigError(f"{self.what}: unknown word {quoted(word)}: expected one of {known}")
        return found

    def once(self, given: object, name: str) -> None:
        """Raises ConfigError for an option that is there twice."""
        if given:
            raise ConfigError(f"{self.what} {name}: is there twice: expected it once")

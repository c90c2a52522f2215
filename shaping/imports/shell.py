"""Commands in a shell script, as far as they can be read without running it.

Comments, continued lines, quotes, redirections and `sudo` are read; variables, substitutions and
control structures are not: what they become is known only when the script runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from dataplane.errors import ConfigError
from shaping.imports.notes import quoted

LINE_MOST = 1 << 16  # characters of a command: shlex takes a microsecond for each
LINES_MOST = 200_000
WORDS_MOST = 512  # of a command, as in tc
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./\s-]*", re.ASCII)
_COMMENT = re.compile(r"(?:^|\s)#(.*)$", re.ASCII)
_REDIRECT = re.compile(r"(?:(?<=\s)\d|&)?(?:>>?|<)(?:&\d|\s*[\w./-]+)", re.ASCII)
_SEPARATORS = {";", "&&", "||", "&"}
_CONTROL = {"if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case",
            "esac", "function", "select", "{", "}", "source", "."}  # fmt: skip
LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.ASCII)


class Command(NamedTuple):
    """where: "FILE:LINE"; words: without sudo and redirections; space: network namespace; label:
    the one word of a comment behind it, "" if it has none or more."""

    where: str
    words: list[str]
    space: str
    label: str


def commands_of(text: str, name: str) -> Iterator[Command]:
    """The commands of a script, in order. Raises ConfigError."""
    for number, line in _lines(text, name):
        where = f"{name}:{number}"
        line, label = _without_comment(line)
        if _PLAIN.fullmatch(line):
            found = [line.split()]
        else:
            found = _split(line, where)
        for words in found:
            if len(words) > WORDS_MOST:
                raise ConfigError(f"{where}: {len(words)} words: expected at most {WORDS_MOST}")
            words, space = _bare(words, where)
            if words:
                yield Command(where, words, space, label)


def _lines(text: str, name: str) -> Iterator[tuple[int, str]]:
    """Lines, continued ones joined, with the number of the first of them. Raises ConfigError."""
    parts: list[str] = []
    begin = size = 0
    for number, line in enumerate(text.split("\n"), 1):
        if number > LINES_MOST:
            raise ConfigError(f"{name}: more than {LINES_MOST} lines: expected fewer")
        line = line.removesuffix("\r")
        begin = begin if parts else number
        size = size + len(line) if parts else len(line)
        if size > LINE_MOST:
            raise ConfigError(f"{name}:{begin}: a line of more than {LINE_MOST} characters")
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield begin, " ".join([*parts, line])
        parts = []
    if parts:
        yield begin, " ".join(parts)


def _without_comment(line: str) -> tuple[str, str]:
    """A line without its comment, and the comment's word if it has one only."""
    if "#" not in line:
        return line, ""
    match = _COMMENT.search(line)
    # A # within quotes begins no comment; such a line goes to shlex as a whole.
    if match is None or (set(line[: match.start()]) & set("\"'")):
        return line, ""
    comment = match[1].strip()
    return line[: match.start()], comment if LABEL.fullmatch(comment) else ""


def _split(line: str, where: str) -> list[list[str]]:
    """The commands of a line with quotes or operators. Raises ConfigError."""
    for sign in ("$", "`"):
        at = line.find(sign)
        if at >= 0 and not _in_single_quotes(line, at):
            word = re.split(r"[\s\"';|&]", line[at:], maxsplit=1)[0]
            raise ConfigError(
                f"{where}: {quoted(word)}: shell variables are not supported: write the value, or "
                "import what `sh -x SCRIPT` prints"
            )
    line = _REDIRECT.sub(" ", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>()")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError as error:
        raise ConfigError(f"{where}: {str(error).lower()}: expected the quotes in pairs") from None
    found: list[list[str]] = [[]]
    for word in words:
        if word in _SEPARATORS:
            found.append([])
        elif word and set(word) <= set(";&|<>()"):
            raise ConfigError(
                f"{where}: {quoted(word)} is not supported: expected commands such as tc qdisc "
                "add, each on a line"
            )
        else:
            found[-1].append(word)
    return found


def _in_single_quotes(line: str, at: int) -> bool:
    return line.count("'", 0, at) % 2 == 1


def _bare(words: list[str], where: str) -> tuple[list[str], str]:
    """A command without what runs it, and its network namespace."""
    space = ""
    while words:
        first = words[0].rpartition("/")[2]
        if words[0].strip("+") == "":  # as `sh -x` prints it
            words = words[1:]
        elif first in ("sudo", "doas", "command", "exec", "env", "nice", "time", "!"):
            words = words[1:]
            while words and (words[0].startswith("-") or _ASSIGNMENT.fullmatch(words[0])):
                takes = words[0] in ("-u", "-g", "--user", "--group", "-n") and first != "sudo"
                takes |= first == "sudo" and words[0] in ("-u", "-g", "--user", "--group")
                words = words[2:] if takes else words[1:]
        elif first == "ip" and words[1:3] in (["netns", "exec"], ["net", "exec"]):
            if len(words) < 5:
                raise ConfigError(f"{where}: ip netns exec: expected NAME and a command")
            space, words = words[3], words[4:]
        elif words[0] in _CONTROL or words[0].endswith("()"):
            raise ConfigError(
                f"{where}: {quoted(words[0])}: control structures of the shell are not supported: "
                "import what `sh -x SCRIPT` prints"
            )
        elif _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        else:
            break
    return words, space

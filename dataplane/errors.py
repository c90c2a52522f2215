"""The error classes. A message says what went wrong, with what, and what to do about it, on one
line."""

from __future__ import annotations

from typing import ClassVar

# The codes of errors, and what a program may do about them.
CODES = {
    "busy": "try again later: another change or an upgrade is under way",
    "exists": "choose another name or address",
    "failed": "look at the message and the log",
    "invalid": "correct the request",
    "limit": "remove something first: a bound is reached",
    "not-found": "the named object does not exist",
    "not-permitted": "ask the instance's owner",
    "port": "an interface, ring or capture could not be opened",
}

LINE_MOST = 4000  # characters: messages that carry errors are bounded
FOREIGN_MOST = 200  # characters from foreign exceptions, which may quote all of their input


class VnicError(Exception):
    """Base of every error that vnic raises on purpose. Exit status 1 at the command line: a failure
    at run time.

    code    a word for programs that does not change between versions: see CODES
    field   the part of the request that is wrong, such as nics.web.mtu; "": none in particular
    """

    default_code: ClassVar[str] = "failed"

    def __init__(
        self, message: str = "", /, *rest: object, code: str = "", field: str = ""
    ) -> None:
        super().__init__(message, *rest)
        self.code, self.field = code or self.default_code, field


class ConfigError(VnicError):
    """An invalid request: wrong value, unknown key, missing object. Exit status 2 at the command
    line."""

    default_code = "invalid"


class GraphError(ConfigError):
    """Elements that cannot be connected in this way."""


class PortError(VnicError):
    """A port (TAP, ring, capture) could not be opened or failed."""

    default_code = "port"


class CaptureError(ConfigError):
    """A capture file that cannot be read: missing, not a capture, of another link type, damaged."""


def one_line(error: BaseException) -> str:
    """The message of an exception for users: vnic's own, or "unexpected", name and message for a
    bug."""
    return (
        " ".join(str(error).split())[:LINE_MOST]
        if isinstance(error, VnicError)
        else f"unexpected {named(error)}"
    )


def printable(text: str) -> str:
    """Text without characters that a terminal takes for commands, or that change the order of what
    is read: they are written as in Python."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def named(error: BaseException) -> str:
    """The name and message of a foreign exception, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:FOREIGN_MOST]

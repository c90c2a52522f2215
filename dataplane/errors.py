"""The error tree. A message says what went wrong, with which thing, and what to do about it - on one line."""

from __future__ import annotations

LINE_MOST = 4000  # characters: errors travel in messages that are bounded
FOREIGN_MOST = 200  # of them, what others' code says: it may quote all of its input


class VnicError(Exception):
    """Base of every error that vnic raises on purpose. Exit status 1 at the command line: it failed while running."""


class ConfigError(VnicError):
    """What the user asked for cannot be: wrong value, unknown key, missing thing. Exit status 2 at the command line."""


class GraphError(ConfigError):
    """Elements that do not fit together."""


class PortError(VnicError):
    """A port (TAP, ring, capture) could not be opened or failed."""


class CaptureError(ConfigError):
    """A capture file that cannot be read: absent, no capture, of another link type, broken."""


def one_line(error: BaseException) -> str:
    """What an exception means to people: our own words, or that it is a bug, and which."""
    return " ".join(str(error).split())[:LINE_MOST] if isinstance(error, VnicError) else f"unexpected {named(error)}"


def named(error: BaseException) -> str:
    """An exception of code that is not ours, on one line behind its name."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:FOREIGN_MOST]

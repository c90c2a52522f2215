"""The error classes. A message says what went wrong, with what, and what to do about it, on one
line."""

from __future__ import annotations

LINE_MOST = 4000  # characters: messages that carry errors are bounded
FOREIGN_MOST = 200  # characters from foreign exceptions, which may quote all of their input


class VnicError(Exception):
    """Base of every error that vnic raises on purpose. Exit status 1 at the command line: a failure
    at run time."""


class ConfigError(VnicError):
    """An invalid request: wrong value, unknown key, missing object. Exit status 2 at the command
    line."""


class GraphError(ConfigError):
    """Elements that cannot be connected in this way."""


class PortError(VnicError):
    """A port (TAP, ring, capture) could not be opened or failed."""


class CaptureError(ConfigError):
    """A capture file that cannot be read: missing, not a capture, of another link type, damaged."""


def one_line(error: BaseException) -> str:
    """The message of an exception for users: vnic's own, or "unexpected", name and message for a
    bug."""
    return " ".join(str(error).split())[:LINE_MOST] if isinstance(error, VnicError) else f"unexpected {named(error)}"


def named(error: BaseException) -> str:
    """The name and message of a foreign exception, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:FOREIGN_MOST]

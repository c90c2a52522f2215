"""The error tree. A message says what went wrong, with which thing, and what to do about it - on one line."""

from __future__ import annotations


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

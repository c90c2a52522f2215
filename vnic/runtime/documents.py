"""Documents: descriptors of files that come with a request whose content is too long for it."""

from __future__ import annotations

import os
import stat
from typing import Any

import msgspec

from dataplane.descriptors import system_error
from dataplane.errors import ConfigError

# bytes: more than a configuration with a thousand NICs needs
DOCUMENT_MOST = 64 << 20


def read_document(descriptor: int) -> bytes:
    """Reads a document that a client passed, and closes its descriptor. Raises ConfigError."""
    try:
        status = os.fstat(descriptor)
        # a pipe could keep control waiting
        if not stat.S_ISREG(status.st_mode) or status.st_size > DOCUMENT_MOST:
            raise ConfigError(f"document: expected a file of at most {DOCUMENT_MOST} bytes")
        return os.pread(descriptor, status.st_size, 0)
    except OSError as error:
        raise ConfigError(f"document: cannot be read: {system_error(error)}") from None
    finally:
        os.close(descriptor)


def decode_document(document: bytes) -> dict[str, Any]:
    """The JSON object of a document. Raises ConfigError."""
    try:
        return msgspec.json.decode(document, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"document: {error}") from None

"""The base of the schema's structs."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Refuses unknown keys. HIDDEN: fields that the loader fills and a file may not."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()

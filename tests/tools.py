"""Programs and rights that tests ask the machine for."""

import os
import shutil

import pytest

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # a plain user's PATH lacks where Debian keeps ip, tcpdump, ethtool


def need(tool: str) -> str:
    """Path of a program; skips the test where it is not installed (in CI: fails it)."""
    path = shutil.which(tool, path=PATH)
    if path is None:
        pytest.skip(f"missing tool: {tool}")
    return path

"""Programs that tests need on the machine."""

import os
import shutil

import pytest

# a plain user's PATH lacks the directories where Debian installs ip, tcpdump, ethtool
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def need(tool: str) -> str:
    """Path of a program; skips the test where it is not installed (in CI: fails it)."""
    path = shutil.which(tool, path=PATH)
    if path is None:
        pytest.skip(f"missing tool: {tool}")
    return path

"""Which tool a file comes from, and its reader."""

from __future__ import annotations

import re
from collections.abc import Callable

from dataplane.errors import ConfigError
from shaping.imports.atc import read_atc
from shaping.imports.chaos_mesh import read_chaos_mesh
from shaping.imports.comcast import read_comcast
from shaping.imports.docker_tc import read_docker_tc
from shaping.imports.form import Draft, Names
from shaping.imports.pumba import read_pumba
from shaping.imports.tc import read_tc
from shaping.imports.tcconfig import read_tcconfig
from shaping.imports.wondershaper import read_wondershaper

READERS: dict[str, Callable[[str, str, Names], Draft]] = {
    "tc": read_tc, "tcconfig": read_tcconfig, "atc": read_atc, "chaos-mesh": read_chaos_mesh,
    "docker-tc": read_docker_tc, "comcast": read_comcast, "pumba": read_pumba,
    "wondershaper": read_wondershaper,
}  # fmt: skip

# In this order: the first that matches the beginning of a text is it.
_SIGNS = (
    ("chaos-mesh", re.compile(r"^[ \t]*kind:[ \t]*[\"']?(?:NetworkChaos|Schedule)", re.MULTILINE)),
    ("docker-tc", re.compile(r"com\.docker-tc\.")),
    ("atc", re.compile(r"\A\s*\{.*\"(?:up|down)\"\s*:\s*\{", re.DOTALL)),
    ("tcconfig", re.compile(r"\A\s*\{.*\"(?:outgoing|incoming)\"\s*:\s*\{", re.DOTALL)),
    ("wondershaper", re.compile(r"^[ \t]*(?:IFACE|DSPEED|USPEED)=", re.MULTILINE)),
    ("tc", re.compile(r"\A\s*\[|^(?:qdisc|class|filter) ", re.MULTILINE)),
)
_PROGRAM = re.compile(
    r"^(?:[+$#][ \t]{1,8})?(?:sudo[ \t]{1,8})?(?:\S{0,256}/)?"
    r"(tcset|comcast|pumba|wondershaper|tc)\s",
    re.MULTILINE,
)
_LOOK_AT = 1 << 16  # characters


def tool_of(text: str, name: str) -> str:
    """The name of the tool that a text is for. Raises ConfigError."""
    begin = text[:_LOOK_AT]
    for tool, sign in _SIGNS:
        if sign.search(begin):
            return tool
    if match := _PROGRAM.search(begin):
        return {"tcset": "tcconfig"}.get(match[1], match[1])
    raise ConfigError(
        f"{name}: is of no tool that is known: expected a file of {', '.join(READERS)}; name it "
        "with --from"
    )

"""Configuration files: YAML to `Config`, with line numbers for errors."""

from __future__ import annotations

import os

from dataplane.config.load import parse_yaml, read_text
from vnic.config.convert import convert_config
from vnic.config.schema import Config
from vnic.config.traces import read_files
from vnic.device.kinds.sockets import is_address
from vnic.device.namespaces import NAMED_NETNS_DIR


def parse_config(
    text: str, name: str = "<text>", directory: str | None = None, *, contained: bool = True
) -> Config:
    """A configuration from YAML text. name: for errors; directory: where module:Class and relative
    paths are found.

    contained=False: NICs need no container (in a replay).
    """
    data, locate = parse_yaml(text, name)
    data = read_files(data, locate, directory or os.getcwd())
    config = convert_config(data, locate, directory, contained=contained)
    for nic in config.nics.values():
        if nic.netns is not None:
            nic.netns = netns_path(nic.netns, directory or os.getcwd())
        for setting in ("read", "write", "listen", "connect"):
            path = getattr(nic, setting)
            if path is not None and not (setting in ("listen", "connect") and is_address(path)):
                path = os.path.abspath(os.path.join(directory or os.getcwd(), path))
                setattr(nic, setting, path)
    return config


def netns_path(netns: str, directory: str) -> str:
    """The path of a network namespace as a user writes it: a path, relative to `directory`, or a
    name of `ip netns`. It is a path from here on, so that it can be watched."""
    path = os.path.join(directory, netns)
    return path if "/" in netns or os.path.exists(path) else os.path.join(NAMED_NETNS_DIR, netns)


def load_config(path: str | os.PathLike[str], *, contained: bool = True) -> Config:
    """A configuration from a YAML file, or from standard input for "-". Raises ConfigError, whose
    text is "FILE:LINE: path: error: expected values"."""
    text, name = read_text(path)
    directory = os.getcwd() if name == "<stdin>" else os.path.dirname(os.path.abspath(name))
    return parse_config(text, name, directory, contained=contained)

"""Scripts of tc commands, and files for `tc -batch`."""

from __future__ import annotations

from dataplane.errors import ConfigError
from shaping.imports.notes import Notes, Unsupported, quoted
from shaping.imports.shell import Command, commands_of
from shaping.imports.tc_commands import is_command, run
from shaping.imports.tc_objects import Devices

# Commands beside tc that say nothing about shaping.
_IGNORED = {"ip", "modprobe", "ethtool", "echo", "set", "true", ":", "exit", "sleep", "sysctl",
            "cd", "export", "printf", "false", "return", "shopt", "trap", "wait", "ifconfig",
            "rmmod", "lsmod", "unset"}  # fmt: skip
_FLAGS = {"-force", "-s", "-d", "-r", "-p", "-i", "-j", "-g", "-o", "-statistics", "-stats",
          "-details", "-raw", "-pretty", "-iec", "-json", "-color", "-oneline", "-N", "-t",
          "-timestamp", "-echo", "-br"}  # fmt: skip


def read_script(text: str, name: str, notes: Notes) -> Devices:
    """What is there when a script has run. Raises ConfigError for a command that tc would
    refuse."""
    devices = Devices()
    for command in commands_of(text, name):
        try:
            _run(command, devices, notes)
        except Unsupported as error:
            notes.refuse(command.where, error)
            # What is below the missing object must not be refused for that.
            devices.checked = False
            for device in devices.values():
                device.checked = False
        except ConfigError as error:
            raise ConfigError(f"{command.where}: {error}") from None
    return devices


def _run(command: Command, devices: Devices, notes: Notes) -> None:
    words, space = command.words, command.space
    program = words[0].rpartition("/")[2]
    if program == "tc":
        words, space = _tc_options(words[1:], space)
        if not words:
            return
    elif not is_command(words):
        if program in ("iptables", "ip6tables", "nft", "ipset"):
            notes.warn(command.where, f"{program}: rules of a firewall are left out")
        elif program not in _IGNORED:
            raise ConfigError(
                f"{quoted(words[0])}: expected commands such as tc qdisc add dev eth0 root netem "
                "delay 10ms"
            )
        return
    run(words, devices, command.where, space=space, name=command.label)


def _tc_options(words: list[str], space: str) -> tuple[list[str], str]:
    """The words behind tc's own options, and the network namespace."""
    while words and words[0].startswith("-"):
        option = words[0].replace("--", "-")
        if option in ("-n", "-net", "-netns"):
            space, words = (words[1] if len(words) > 1 else ""), words[2:]
        elif option.startswith("-b"):
            raise ConfigError("tc -batch: expected the file with the commands itself")
        elif option in _FLAGS:
            words = words[1:]
        else:
            raise ConfigError(f"tc {quoted(option)}: unknown option")
    return words, space

"""comcast: its command lines. Latency is in ms, bandwidth in kbit/s."""

from __future__ import annotations

from dataplane.errors import ConfigError
from shaping.imports.form import EGRESS, Draft, Names, line_key
from shaping.imports.netem import Netem
from shaping.imports.notes import Unsupported, unsupported
from shaping.imports.peers import (
    command_lines,
    kilobits,
    located,
    milliseconds,
    options_of,
    put,
    same_names,
    share,
)
from shaping.policy.keys import ANY

_VALUED = same_names("device", "latency", "target-bw", "default-bw", "packet-loss", "target-addr",
                     "target-port", "target-proto")  # fmt: skip
_FLAGS = same_names("stop", "dry-run", "version")
_ALL = {"tcp", "udp", "icmp"}
ADDRESSES_MOST = 256


def read_comcast(text: str, name: str, names: Names) -> Draft:
    """Raises ConfigError."""
    draft = Draft(notes=names.notes)
    for where, words in command_lines(text, name, "comcast"):
        options = options_of(where, words, _VALUED, _FLAGS).options
        if "stop" in options:
            draft.links.clear()
            continue
        try:
            _line(where, options, names, draft)
        except Unsupported as error:
            draft.notes.refuse(where, error)
        except ConfigError as error:
            raise located(where, error) from None
    return draft


def _line(where: str, options: dict[str, str], names: Names, draft: Draft) -> None:
    nic = names.nic(options.get("device") or "eth0", where)
    if "target-port" in options:
        raise unsupported("--target-port", "a line is for all packets between two NICs")
    protocols = set(options.get("target-proto", "tcp,udp,icmp").lower().split(","))
    if protocols != _ALL:
        raise unsupported("--target-proto", "a line is for packets of all protocols")
    netem = Netem()
    if options.get("latency", "-1") != "-1":
        netem.delay = milliseconds("latency", options["latency"])
    netem.loss = share("packet-loss", options.get("packet-loss", "0"))
    rate = options.get("target-bw", "-1")
    bps = 0 if rate == "-1" else kilobits("target-bw", rate)
    for other in _others(options, names):
        put(draft, line_key(nic, EGRESS, other), netem, bps, where)
    if options.get("default-bw", "-1") != "-1":
        draft.notes.warn(where, "--default-bw: left out: it is for packets that are not impaired")


def _others(options: dict[str, str], names: Names) -> list[str]:
    if not options.get("target-addr"):
        return [ANY]
    found = []
    for address in options["target-addr"].split(",")[:ADDRESSES_MOST]:
        nic = names.of_address(address)
        if nic is None:
            raise unsupported(
                f"--target-addr {address[:60]}",
                f"no NIC is known to have it: write --map {address[:60]}=NIC",
            )
        found.append(nic)
    return found

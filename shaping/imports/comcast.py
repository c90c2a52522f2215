"""comcast: its command lines. Latency is in ms, bandwidth in kbit/s.

Packets of the target are those to one of the addresses, of one of the protocols, and, but for
ICMP, to one of the ports; all others have the default bandwidth."""

from __future__ import annotations

from dataplane.elements.classifier_rules import MAX_RULES
from dataplane.errors import ConfigError
from shaping.imports.filters import Rule
from shaping.imports.form import EGRESS, Draft, Names
from shaping.imports.netem import Netem
from shaping.imports.notes import Unsupported, quoted, unsupported
from shaping.imports.parts import Selection, put_selected
from shaping.imports.peers import (
    command_lines,
    kilobits,
    located,
    milliseconds,
    options_of,
    same_names,
    settings_of,
    share,
)
from shaping.imports.quantities import line_rate
from shaping.imports.rules import condition

_VALUED = same_names("device", "latency", "target-bw", "default-bw", "packet-loss", "target-addr",
                     "target-port", "target-proto")  # fmt: skip
_FLAGS = same_names("stop", "dry-run", "version")
_ALL = {"tcp", "udp", "icmp"}
DEFAULT_BPS = 10**9  # of other packets, where comcast is told nothing


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
    netem = Netem()
    if options.get("latency", "-1") != "-1":
        netem.delay = milliseconds("latency", options["latency"])
    netem.loss = share("packet-loss", options.get("packet-loss", "0"))
    rate = options.get("target-bw", "-1")
    bps = 0 if rate == "-1" else kilobits("target-bw", rate)
    target = Selection(where, _rules(options), settings_of(netem, bps, where, draft.notes))
    others = Selection(where, [{}], {})
    if options.get("default-bw", "-1") != "-1":
        bps = kilobits("default-bw", options["default-bw"])
        if target.rules != [{}] and 0 < bps < DEFAULT_BPS:
            others = others._replace(settings={"rate": line_rate("default-bw", bps)})
        else:
            draft.notes.warn(where, "--default-bw: left out: it is no limit for other packets")
    if {"protocol": "icmp"} in target.rules and len(target.rules) > 1:
        draft.notes.note(where, "--target-port: does not limit ICMP, all of which is impaired, too")
    put_selected(draft, nic, EGRESS, [target, others], names.of_address)


def _rules(options: dict[str, str]) -> list[Rule]:
    """What the target is. Raises ConfigError."""
    protocols = options.get("target-proto", "tcp,udp,icmp").lower().split(",")
    if unknown := set(protocols) - _ALL:
        raise ConfigError(f"target-proto {quoted(unknown.pop())}: expected tcp, udp or icmp")
    addresses = [each for each in options.get("target-addr", "").split(",") if each]
    ports = [each.replace(":", "-") for each in options.get("target-port", "").split(",") if each]
    rules: list[Rule] = [
        {"destination": condition("target-addr", "destination", each)} for each in addresses
    ] or [{}]
    if set(protocols) == _ALL and not ports:
        return rules
    targets: list[Rule] = []
    for protocol in dict.fromkeys(protocols):
        told: list[Rule] = [
            {"destination_port": condition("target-port", "destination_port", each)}
            for each in ports if protocol != "icmp"
        ]  # fmt: skip
        targets += [{"protocol": protocol, **each} for each in told] or [{"protocol": protocol}]
    if len(rules) * len(targets) > MAX_RULES:
        raise unsupported("more targets", f"expected at most {MAX_RULES} of them in all")
    return [{**target, **rule} for rule in rules for target in targets]

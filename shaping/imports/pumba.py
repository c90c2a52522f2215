"""pumba: its command lines, `netem` for what containers send and `iptables loss` for what they
receive. Times are in ms, shares in percent. `delay` has a jitter of 10 ms and a correlation of 20 %
where it is told none. `--egress-port` is the port that sends, `--ingress-port` the one that
receives, both of packets that the container sends."""

from __future__ import annotations

from dataplane.errors import ConfigError
from shaping.imports.filters import Rule
from shaping.imports.form import EGRESS, INGRESS, Draft, Names
from shaping.imports.netem import Netem
from shaping.imports.notes import Unsupported, quoted, unsupported
from shaping.imports.parts import Selection, put_selected
from shaping.imports.peers import (
    Options,
    command_lines,
    duration,
    located,
    milliseconds,
    options_of,
    same_names,
    settings_of,
    share,
)
from shaping.imports.quantities import rate_of, whole_of
from shaping.imports.rules import condition, note_families

_GLOBAL = (
    same_names("host|H", "log-level|l", "slackhook", "slackchannel", "interval", "label", "runtime",
               "containerd-address", "containerd-namespace"),
    same_names("random", "dry-run", "json|j", "skip-error", "tls", "tlsverify"),
)  # fmt: skip
_NETEM = (
    same_names("duration|d", "interface|i", "target|t", "egress-port|egressPort",
               "ingress-port|ingressPort", "tc-image", "pull-image"),
    same_names("pull"),
)  # fmt: skip
_IPTABLES = (
    same_names("duration|d", "interface|i", "protocol|p", "source|src|s", "destination|dest",
               "src-port|sport", "dst-port|dport", "iptables-image", "pull-image"),
    same_names("pull"),
)  # fmt: skip
# Packets that match one of these are impaired.
_NETEM_FILTERS = {"target": "destination", "egress-port": "source_port",
                  "ingress-port": "destination_port"}  # fmt: skip
_IPTABLES_FILTERS = {"source": "source", "destination": "destination", "src-port": "source_port",
                     "dst-port": "destination_port"}  # fmt: skip
_COMMANDS = {
    "delay": same_names("time|t", "jitter|j", "correlation|c", "distribution|d"),
    "loss": same_names("percent|p", "correlation|c"),
    "loss-state": same_names("p13", "p31", "p32", "p23", "p14"),
    "loss-gemodel": same_names("pg|p", "pb|r", "one-h", "one-k"),
    "rate": same_names("rate|r", "packetoverhead|p", "cellsize|s", "celloverhead|c"),
    "duplicate": same_names("percent|p", "correlation|c"),
    "corrupt": same_names("percent|p", "correlation|c"),
}
_IPTABLES_LOSS = same_names("mode|m", "probability|p", "every", "packet")


def read_pumba(text: str, name: str, names: Names) -> Draft:
    """Raises ConfigError."""
    draft = Draft(notes=names.notes)
    for where, words in command_lines(text, name, "pumba"):
        try:
            _command(where, words, names, draft)
        except Unsupported as error:
            draft.notes.refuse(where, error)
        except ConfigError as error:
            raise located(where, error) from None
    return draft


def _split(where: str, words: list[str], known: tuple[dict[str, str], dict[str, str]],
           expected: tuple[str, ...]) -> tuple[Options, str, list[str]]:  # fmt: skip
    """Options up to the next command, the command, and what is behind it."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        key, equals, _ = words[at].lstrip("-").partition("=")
        at += 1 if equals or key in known[1] else 2
    if at >= len(words) or words[at] not in expected:
        word = words[at] if at < len(words) else ""
        raise ConfigError(f"{where}: pumba {quoted(word)}: expected {', '.join(expected)}")
    return options_of(where, words[:at], *known), words[at], words[at + 1 :]


def _command(where: str, words: list[str], names: Names, draft: Draft) -> None:
    first, family, words = _split(where, words, _GLOBAL, ("netem", "iptables"))
    if "random" in first.options:
        draft.notes.warn(where, "--random: left out: the line is for all containers")
    both: Rule = {}
    if family == "netem":
        common, kind, words = _split(where, words, _NETEM, tuple(_COMMANDS))
        options = options_of(where, words, _COMMANDS[kind], {})
        netem = _netem(kind, options.options, where, draft)
        direction, filters = EGRESS, _NETEM_FILTERS
    else:
        common, _, words = _split(where, words, _IPTABLES, ("loss",))
        options = options_of(where, words, _IPTABLES_LOSS, {})
        netem = _iptables(options.options, where, draft)
        direction, filters = INGRESS, _IPTABLES_FILTERS
        if (protocol := common.options.get("protocol", "any")) != "any":
            both["protocol"] = condition("protocol", "protocol", protocol)
    rules: list[Rule] = [
        {**both, key: condition(option, key, each)}
        for option, key in filters.items()
        for each in common.options.get(option, "").split(",") if each
    ] or [both]  # fmt: skip
    for rule in rules:
        note_families(rule, where, draft.notes)
    if "duration" in common.options:
        text = common.options["duration"]
        duration("duration", text)
        draft.notes.note(where, f"--duration: apply it with --for {text}")
    for container in options.rest or [""]:
        if container.startswith("re2:"):
            raise unsupported(f"containers {container[:60]}", "name each container")
        nic = names.nic(container, where, "container")
        line = settings_of(netem, 0, where, draft.notes)
        put_selected(draft, nic, direction, [Selection(where, rules, line)], names.of_address)


def _netem(kind: str, options: dict[str, str], where: str, draft: Draft) -> Netem:
    netem = Netem()
    if kind == "delay":
        netem.delay = milliseconds("time", options.get("time", "100"))
        netem.jitter = milliseconds("jitter", options.get("jitter", "10"))
        if netem.jitter:
            netem.delay_correlation = share("correlation", options.get("correlation", "20"))
            netem.distribution = options.get("distribution", "")
        if "jitter" not in options:
            draft.notes.warn(where, "pumba delay: has a jitter of 10ms where it is told none")
    elif kind in ("loss", "duplicate", "corrupt"):
        setattr(netem, kind, share("percent", options.get("percent", "0")))
        setattr(netem, f"{kind}_correlation", share("correlation", options.get("correlation", "0")))
    elif kind == "loss-state":
        defaults = {"p13": "0", "p31": "100", "p32": "0", "p23": "100", "p14": "0"}
        netem.state = tuple(share(key, options.get(key, each)) for key, each in defaults.items())
    elif kind == "loss-gemodel":
        defaults = {"pg": "0", "pb": "100", "one-h": "100", "one-k": "0"}
        netem.gemodel = tuple(share(key, options.get(key, each)) for key, each in defaults.items())
    else:
        netem.rate = rate_of("rate", options.get("rate", "100kbit"))
        netem.overhead = whole_of("packetoverhead", options.get("packetoverhead", "0"), -(2**31))
        netem.cell = whole_of("cellsize", options.get("cellsize", "0"))
        netem.cell_overhead = whole_of("celloverhead", options.get("celloverhead", "0"), -(2**31))
    netem.check()
    return netem


def _iptables(options: dict[str, str], where: str, draft: Draft) -> Netem:
    if options.get("mode", "random") == "nth":
        every = whole_of("every", options.get("every", "1"), 1)
        draft.notes.note(where, f"mode nth: one of {every} packets, here at random")
        return Netem(loss=share("share", str(round(100 / every, 9))))
    probability = options.get("probability", "0")
    try:
        percent = round(float(probability) * 100, 9)
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise ConfigError(f"probability {quoted(probability)}: expected 0.0 to 1.0")
    return Netem(loss=share("probability", percent))

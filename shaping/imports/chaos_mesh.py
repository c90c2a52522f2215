"""Chaos Mesh: NetworkChaos resources, also within a Schedule, as YAML.

A selector's pods, or the value of its only label, stand for NICs. Rates ending in bps are bytes a
second: in `bandwidth` with prefixes of 1024, in `rate`, which is passed to netem, of 1000.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dataplane.config.convert import Locate, Path, path_text
from dataplane.elements.classifier_rules import MAX_RULES
from dataplane.errors import ConfigError
from dataplane.units import format_size
from shaping.imports.filters import Rule
from shaping.imports.form import EGRESS, INGRESS, Draft, Names, Settings, line_key
from shaping.imports.netem import Netem, line_of
from shaping.imports.notes import Unsupported, quoted, unsupported
from shaping.imports.parts import Selection, put_selected
from shaping.imports.peers import documents, duration, number_text, share
from shaping.imports.quantities import line_rate, rate_of, whole_of
from shaping.imports.rules import condition
from shaping.policy.keys import ANY, BOTH
from shaping.policy.scalars import QueueSize

NICS_MOST = 64  # that one selector names
_BANDWIDTH = re.compile(r"(\d{1,15})\s*([kmgt]?)bps", re.ASCII | re.IGNORECASE)
_TARGET = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*)):(\d{1,5})", re.ASCII)
_WAYS = {"to": [EGRESS], "from": [INGRESS], "both": [EGRESS, INGRESS]}
_KINDS = ("delay", "loss", "duplicate", "corrupt", "rate")
_ACTIONS = (*_KINDS, "netem", "bandwidth", "partition")


def read_chaos_mesh(text: str, name: str, names: Names) -> Draft:
    """Raises ConfigError."""
    draft = Draft(notes=names.notes)
    for value, locate in documents(text, name):
        items = value.get("items") if isinstance(value, Mapping) else None
        if isinstance(items, list):
            for number, item in enumerate(items):
                _Reader(names, draft, locate, ("items", number)).read(item)
        else:
            _Reader(names, draft, locate, ()).read(value)
    return draft


class _Reader:
    """Reads one resource. path: where it is in its document."""

    def __init__(self, names: Names, draft: Draft, locate: Locate, path: Path) -> None:
        self.names, self.draft, self.notes = names, draft, draft.notes
        self.locate, self.path = locate, path

    def where(self, *steps: str | int) -> str:
        return self.locate((*self.path, *steps))

    def error(self, text: str, *steps: str | int) -> ConfigError:
        return ConfigError(f"{self.where(*steps)}: {path_text((*self.path, *steps))}: {text}")

    def part(self, data: Any, *steps: str | int) -> Mapping[str, Any]:
        if not isinstance(data, Mapping):
            raise self.error(f"{quoted(data)}: expected a mapping", *steps)
        return data

    def read(self, value: Any) -> None:
        resource = self.part(value)
        kind = resource.get("kind")
        steps: tuple[str, ...] = ("spec",)
        spec = self.part(resource.get("spec"), *steps)
        if kind == "Schedule":
            steps = ("spec", "networkChaos")
            self.notes.warn(
                self.where("spec"), "schedule: left out: vnic shape apply --for ends a policy"
            )
            spec = self.part(spec.get("networkChaos"), *steps)
        elif kind != "NetworkChaos":
            raise self.error(f"kind {quoted(kind)}: expected NetworkChaos", "kind")
        self.spec(spec, steps)

    def spec(self, spec: Mapping[str, Any], steps: tuple[str, ...]) -> None:
        where = self.where(*steps)
        action = spec.get("action")
        if action not in _ACTIONS:
            raise self.error(f"{quoted(action)}: expected one of {', '.join(_ACTIONS)}", *steps,
                             "action")  # fmt: skip
        try:
            line = self.line(spec, str(action), steps)
            sources = self.nics(spec.get("selector"), steps, "selector")
            targets, rules = self.targets(spec, steps)
            ways = self.ways(spec, steps)
            if targets or not rules:
                for place in _places(sources, targets, ways):
                    self.draft.add_line(place, dict(line), where)
            for source, way in itertools.product(sources, ways if rules else ()):
                found = Selection(where, [_from(rule, way) for rule in rules], line)
                put_selected(self.draft, source, way, [found], self.names.of_address)
        except Unsupported as error:
            self.notes.refuse(where, error)
        if "duration" in spec:
            text = str(spec["duration"])
            duration("duration", text)
            self.notes.note(self.where(*steps, "duration"), f"duration: apply it with --for {text}")
        if "scheduler" in spec:
            self.notes.warn(self.where(*steps, "scheduler"), "scheduler: left out")
        if spec.get("mode", "all") != "all":
            self.notes.warn(
                self.where(*steps, "mode"),
                f"mode {quoted(spec['mode'])}: left out: the line is for all that are selected",
            )

    # -- places ------------------------------------------------------------------------------------

    def targets(
        self, spec: Mapping[str, Any], steps: tuple[str, ...]
    ) -> tuple[list[str], list[Rule]]:
        """NICs, and, where one of the targets is no NIC's, rules for all that are addresses."""
        targets: list[str] = []
        if spec.get("target") is not None:
            aimed = self.part(spec["target"], *steps, "target")
            targets += self.nics(aimed.get("selector"), (*steps, "target"), "selector")
        external = spec.get("externalTargets") or []
        if not isinstance(external, list) or len(external) > MAX_RULES:
            raise self.error(f"expected a list of at most {MAX_RULES}", *steps, "externalTargets")
        texts = [str(each) for each in external]
        nics = {text: nic for text in texts if (nic := self.names.of_address(text)) is not None}
        if len(nics) == len(set(texts)):
            return [*targets, *(nics[text] for text in texts)], []
        rules: list[Rule] = []
        for text in texts:
            rule = _rule_to(text)
            if rule is not None:
                rules.append(rule)
            elif text in nics:
                targets.append(nics[text])
            else:
                raise unsupported(
                    f"externalTargets {quoted(text)}",
                    f"no NIC is known to have it: write --map {text[:60]}=NIC, or its address",
                )
        return targets, rules

    def ways(self, spec: Mapping[str, Any], steps: tuple[str, ...]) -> list[str]:
        direction = str(spec.get("direction") or "to")
        if direction not in _WAYS:
            raise self.error(f"{quoted(direction)}: expected to, from or both", *steps, "direction")
        return _WAYS[direction]

    def nics(self, selector: Any, steps: tuple[str, ...], name: str) -> list[str]:
        where = self.where(*steps, name)
        data = self.part(selector if selector is not None else {}, *steps, name)
        pods = data.get("pods")
        if isinstance(pods, Mapping):
            found = [str(pod) for each in pods.values() if isinstance(each, list) for pod in each]
        else:
            labels = data.get("labelSelectors")
            found = [str(each) for each in labels.values()] if isinstance(labels, Mapping) else []
            if len(found) > 1:
                raise unsupported(
                    f"a selector of {len(found)} labels", "expected pods, or one label whose value "
                    "names a NIC"
                )  # fmt: skip
            if not found:
                found = [""]
        if len(found) > NICS_MOST:
            raise self.error(f"more than {NICS_MOST} pods: expected fewer", *steps, name)
        return [self.names.nic(each, where, "pod") for each in found]

    # -- settings ----------------------------------------------------------------------------------

    def line(self, spec: Mapping[str, Any], action: str, steps: tuple[str, ...]) -> Settings:
        where = self.where(*steps)
        if action == "partition":
            return {"loss": "100%"}
        if action == "bandwidth":
            return self.bandwidth(self.part(spec.get("bandwidth"), *steps, "bandwidth"), where)
        netem = Netem()
        given = [kind for kind in _KINDS if spec.get(kind) is not None]
        for kind in given if action == "netem" else [action]:
            part = self.part(spec.get(kind), *steps, kind)
            try:
                self.netem(netem, kind, part)
                netem.check()
            except Unsupported:
                raise
            except ConfigError as error:
                raise self.error(str(error), *steps, kind) from None
        return line_of(netem, where, self.notes)

    def netem(self, netem: Netem, kind: str, part: Mapping[str, Any]) -> None:
        correlation = share(f"{kind} correlation", part.get("correlation") or 0)
        if kind == "rate":
            netem.rate = rate_of("rate", number_text("rate", part.get("rate")))
        elif kind == "delay":
            netem.delay = duration("latency", str(part.get("latency") or ""))
            netem.jitter = duration("jitter", str(part.get("jitter") or "0"))
            netem.delay_correlation = correlation if netem.jitter else netem.delay_correlation
            reorder = part.get("reorder")
            if isinstance(reorder, Mapping):
                netem.reorder = share("reorder", reorder.get("reorder") or 0)
                netem.reorder_correlation = share(
                    "reorder correlation", reorder.get("correlation") or 0
                )
                gap = number_text("gap", reorder.get("gap") or 0)
                netem.gap = whole_of("reorder gap", gap) if netem.reorder else 0
        else:
            setattr(netem, kind, share(kind, part.get(kind) or 0))
            setattr(netem, f"{kind}_correlation", correlation)

    def bandwidth(self, part: Mapping[str, Any], where: str) -> Settings:
        text = number_text("bandwidth rate", part.get("rate"))
        match = _BANDWIDTH.fullmatch(text)
        if match is None:
            raise ConfigError(f"{where}: bandwidth rate {quoted(text)}: expected bps, kbps, mbps")
        bps = int(match[1]) * 8 * 1024 ** " kmgt".index(match[2].lower() or " ")
        self.notes.note(where, f"bandwidth rate {text}: bytes a second, in prefixes of 1024")
        found: Settings = {"rate": line_rate("bandwidth rate", bps)}
        limit = part.get("limit")
        if limit is not None:
            size = whole_of("bandwidth limit", number_text("limit", limit))
            if not QueueSize.LEAST <= size <= QueueSize.MOST:
                raise unsupported(f"bandwidth limit {size}", "a queue is 64b to 1gb")
            found["queue"] = format_size(size)
        self.notes.note(
            where, "bandwidth buffer, peakrate, minburst: left out: a line has no burst"
        )
        return found


def _places(sources: list[str], targets: list[str], ways: list[str]) -> Iterator[str]:
    for source, target in itertools.product(sources, targets or [ANY]):
        if len(ways) == 1 and source != target:
            yield line_key(source, ways[0], target)
        elif source != target:
            yield source if target == ANY else f"{source} {BOTH} {target}"


def _rule_to(text: str) -> Rule | None:
    """The rule for packets to an external target, whose port is one of TCP; None: its address is
    not known."""
    match = _TARGET.fullmatch(text)
    host, port = (match[1] or match[2], match[3]) if match is not None else (text, "")
    try:
        rule: Rule = {"destination": condition("externalTargets", "destination", host)}
    except ConfigError:
        return None
    if port:
        rule["protocol"] = "tcp"
        rule["destination_port"] = condition("externalTargets", "destination_port", port)
    return rule


def _from(rule: Rule, way: str) -> Rule:
    """The rule for packets from a target to its port, as Chaos Mesh matches what a pod receives;
    for what it sends, the rule itself."""
    if way == EGRESS:
        return rule
    return {"source" if key == "destination" else key: value for key, value in rule.items()}

"""Compiles a policy to elements: entries of `elements:` in a configuration, as plain data.

Each line becomes at most two elements: a Link, where it has a rate, or a TraceLink, where it has a
trace, and an Impairment, where it has anything else. A constant delay behind a rate belongs to the
Link.

    web -> any     web's egress
    any -> web     web's ingress
    web -> db      db's ingress, before what db receives from any NIC: a Classifier by the sender's
                   MAC address, with the pair's elements in the branch
    lan--dmz       the link's two directions
    web -> db/dns  in front of those of web -> db: a Classifier by the parts' matches, with each
                   part's elements in a branch

Classes become a Classifier and a Scheduler, in front of the lines of their place.

Names depend on the place only, and a setting that is there has its element even when it is 0. So
the elements of a policy whose numbers change are the same, and can be kept.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from dataplane.config.convert import did_you_mean
from dataplane.errors import ConfigError
from dataplane.units import format_time
from shaping.overhead import MAHIMAHI_BYTES
from shaping.policy.classes import EXAMPLES as CLASS_PLACES
from shaping.policy.classes import SCHEDULER_NAME, ClassEntry, element_entries, place_key
from shaping.policy.findings import refuse
from shaping.policy.keys import ANY, LinkKey
from shaping.policy.load import Policy
from shaping.policy.network import Network
from shaping.policy.overhead_schema import OverheadConfig
from shaping.policy.places import Line, Place, Plan, places_of, plan_of
from shaping.policy.scalars import QueueLength, Share
from shaping.policy.scenario import Scenario, Where, scenario_of, wrong_trees
from shaping.policy.schema import (
    CorruptConfig,
    DelayConfig,
    QueueConfig,
    ReorderConfig,
)
from shaping.policy.traces import element_trace

LINE_NAME, NAME, PAIRS_NAME, PARTS_NAME = "shape-line", "shape", "shape-pairs", "shape-parts"
NAME_MOST = 32  # characters of an element's name
EGRESS, INGRESS = "egress", "ingress"
FRAME_BYTES = 1514  # a full Ethernet frame without FCS
QUEUE_DEFAULT, QUEUE_DEFAULT_PACKETS = QueueLength("100ms"), 10
QUEUE_TRACE_PACKETS = 1000  # of interfaces of Linux, and of netem

ElementEntry = dict[str, Any]


class Chain(NamedTuple):
    """A chain of elements: of a NIC (direction: egress or ingress) or of a link (direction: the
    end that it leads to)."""

    owner: str
    direction: str
    of_link: bool = False

    def __str__(self) -> str:
        return f"{self.owner}.{self.direction}"


def compile_policy(policy: Policy, network: Network) -> dict[Chain, list[ElementEntry]]:
    """The elements of each chain, in the order in which packets pass them. Raises ConfigError for
    the first error that `check_policy` finds in the policy itself."""
    plan = plan_of(policy, network)
    if (scenario := scenario_of(policy, plan, network)) is not None:
        plan.findings.extend(wrong_trees(scenario))
    refuse(plan.findings)
    chains = compile_plan(plan, network, policy.seed)
    for entry in policy.classes:
        chain = class_chain(entry, network)
        if network.lacks(chain.owner):
            continue
        entries = chains.setdefault(chain, [])
        # in front of the line that the packets take, and behind those that they come from
        at = bool(entries) and entries[0].get("name") == PAIRS_NAME
        entries[at:at] = element_entries(entry, network, plan.shared.get(entry.key))
    return chains


def class_chain(entry: ClassEntry, network: Network) -> Chain:
    """The chain that the classes of an entry are in. Raises ConfigError."""
    key = place_key(entry.key)
    if isinstance(key, LinkKey):
        if network.lacks(key.first):
            return Chain(key.first, key.second, True)
        places = places_of(key, network)
        if not places:
            raise ConfigError(f"{entry.key}: {key.first} does not lead to {key.second} any more")
        [(place, _)] = places
        if not place.link:
            raise ConfigError(f"{entry.key}: is a pair of NICs: expected {CLASS_PLACES}")
        return chain_of_place(place)
    nic, way = key
    if nic not in network.nics and not network.lacks(nic):
        hint = did_you_mean(nic, list(network.nics)) if network.nics else "there are none"
        raise ConfigError(f"{entry.key}: there is no NIC {nic}; {hint}")
    return Chain(nic, way)


def compile_plan(
    plan: Plan, network: Network, seed: int | None = None
) -> dict[Chain, list[ElementEntry]]:
    chains: dict[Chain, list[ElementEntry]] = {}
    pairs: dict[str, dict[str, list[ElementEntry]]] = {}
    for place, lines in by_place(plan.lines.values()).items():
        if entries := _entries(lines):
            if place.is_pair:
                pairs.setdefault(place.target, {})[place.source] = entries
            else:
                chains[chain_of_place(place)] = entries
    for target, branches in pairs.items():
        chains.setdefault(Chain(target, INGRESS), []).insert(0, _pairs(branches, network))
    if seed is not None:
        for entries in chains.values():
            _seed(entries, seed)
    return chains


def _seed(entries: list[ElementEntry], seed: int) -> None:
    for entry in entries:
        if entry["element"] == "Impairment":
            entry["seed"] = seed
        for branch in entry.get("branches", {}).values():
            _seed(branch, seed)


def chain_of_place(place: Place) -> Chain:
    """The chain that a place's elements are in."""
    if place.link:
        return Chain(place.link, place.target, True)
    if place.target == ANY:
        return Chain(place.source, EGRESS)
    return Chain(place.target, INGRESS)


def _entries(lines: list[Line]) -> list[ElementEntry]:
    """The elements of one place: of its parts, in the order of the file, and of all its packets. A
    part without elements, such as `rate: none`, keeps its packets from the parts behind it."""
    entries = [each for line in lines if not line.place.part for each in elements_of(line)]
    parts = [(line, elements_of(line)) for line in lines if line.place.part]
    branches = [made for _, made in parts if made]
    if not branches:
        return entries
    numbers = itertools.count()
    gates = [next(numbers) if made else len(branches) for _, made in parts]
    split = {
        "element": "Classifier",
        "name": name_at(PARTS_NAME, parts[0][0].place.whole),
        "rules": [
            {**each, "gate": gate}
            for gate, (line, _) in zip(gates, parts, strict=True)
            for each in line.matches
        ],
        "default": len(branches),
        "branches": dict(enumerate(branches)),
    }
    return [split, *entries]


def elements_of(line: Line) -> list[ElementEntry]:
    """The elements of one line."""
    entries: list[ElementEntry] = []
    delay = line.delay
    if line.rate or "rate" in line.variants:
        link: ElementEntry = {"element": "Link", "name": name_at(LINE_NAME, line.place)}
        if line.trace is not None:
            link["element"] = "TraceLink"
            link["trace"] = element_trace(line.value("trace"), line.trace)
            # explicit, since an element does not change it while it runs
            link["overhead"] = (
                {"bytes": MAHIMAHI_BYTES} if line.trace.KIND == "opportunities" else "none"
            )
        else:
            link["rate"] = str(line.value("rate"))
        link["queue"] = _queue(queue_of(line))
        overhead: OverheadConfig | None = line.value("overhead")
        if overhead is not None:
            link["overhead"] = _overhead(overhead)
        if delay is not None and not line.jitters:
            link["delay"] = str(delay.mean)
            delay = None
        entries.append(link)
    impairment: ElementEntry = {}
    if (loss := line.loss) is not None:
        impairment["loss"] = loss.entry
    if (duplicate := line.value("duplicate")) is not None:
        impairment["duplicate"] = str(duplicate)
    if (corrupt := line.value("corrupt")) is not None:
        impairment["corrupt"] = _corrupt(corrupt)
    if (reorder := line.value("reorder")) is not None:
        impairment["reorder"] = _reorder(reorder)
    if delay is not None:
        impairment["delay"] = _delay(delay)
    if impairment:
        entries.append({"element": "Impairment", "name": name_at(NAME, line.place), **impairment})
    return entries


def by_place(lines: Iterable[Line]) -> dict[Place, list[Line]]:
    """Lines of the same packets or of parts of them, by their place."""
    found: dict[Place, list[Line]] = {}
    for line in lines:
        found.setdefault(line.place.whole, []).append(line)
    return found


class Argument(NamedTuple):
    """An argument of an element: `element` is the name that it has in its chain."""

    chain: Chain
    element: str
    name: str


def arguments_at(
    scenario: Scenario,
    network: Network,
    elapsed_ns: int,
    places: Collection[Where] | None = None,
) -> dict[Argument, Any]:
    """The arguments of a policy's elements that its scenario changes, of all places or of some, as
    they are `elapsed_ns` after its beginning."""
    trees: dict[Argument, Any] = {}
    for entry in scenario.classes_at(elapsed_ns, places):
        _, scheduler = element_entries(entry, network, scenario.shared.get(entry.key))
        argument = Argument(class_chain(entry, network), SCHEDULER_NAME, "classes")
        trees[argument] = scheduler["classes"]
    return trees | {
        Argument(chain_of_place(line.place), entry["name"], setting): entry[setting]
        for line in scenario.lines_at(elapsed_ns, places)
        for entry in elements_of(line)
        for setting in line.variants
        if setting in entry
    }


def name_at(name: str, place: Place) -> str:
    """The name of a place's element in its chain."""
    return element_name(name, place.source if place.is_pair else "", place.part)


def full_name(name: str, place: Place) -> str:
    """The name of a place's element in a running network."""
    above = [str(chain_of_place(place))]
    above += [PAIRS_NAME] if place.is_pair else []
    above += [name_at(PARTS_NAME, place.whole)] if place.part else []
    return ".".join([*above, name_at(name, place)])


def element_name(name: str, source: str, part: str = "") -> str:
    """The name of an element, for a pair with the name of the NIC that sends; of a long one and of
    a part, its beginning and a digest."""
    if not source and not part:
        return name
    whole = f"{name}-of-{part}" if part else f"{name}-from-{source}"
    if len(whole) <= NAME_MOST and not part:
        return whole
    digest = hashlib.sha256((f"{source}/{part}" if part else source).encode()).hexdigest()[:8]
    return f"{whole[: NAME_MOST - len(digest) - 1]}.{digest}"


def queue_of(line: Line) -> QueueConfig:
    """The queue in front of a line's rate."""
    given: QueueConfig | None = line.value("queue")
    if given is not None:
        return given
    if line.trace is not None:
        return QueueConfig(packets=QUEUE_TRACE_PACKETS)
    # The queue does not change with a scenario's rates: the first one counts.
    rate = next(filter(None, line.variants.get("rate", [line.rate])), 0)
    if rate * QUEUE_DEFAULT < QUEUE_DEFAULT_PACKETS * FRAME_BYTES * 8 * 10**9:
        return QueueConfig(packets=QUEUE_DEFAULT_PACKETS)
    return QueueConfig(time=QUEUE_DEFAULT)


def _pairs(branches: dict[str, list[ElementEntry]], network: Network) -> ElementEntry:
    """The Classifier of the pairs that lead to one NIC. branches: by the NIC that sends."""
    return {
        "element": "Classifier",
        "name": PAIRS_NAME,
        "rules": [{"source_mac": network.nics[source]} for source in branches],
        "branches": dict(enumerate(branches.values())),
    }


def _queue(queue: QueueConfig) -> str | dict[str, int]:
    if queue.packets is not None:
        return {"packets": queue.packets}
    return str(queue.time if queue.time is not None else queue.size)


def _overhead(overhead: OverheadConfig) -> str | dict[str, Any]:
    if overhead.keyword is not None:
        return overhead.keyword
    return overhead.added._asdict()


def _corrupt(corrupt: CorruptConfig) -> str | dict[str, str]:
    if (corrupt.part, corrupt.checksum) == ("any", "keep"):
        return str(corrupt.share)
    return {"share": str(corrupt.share), "part": corrupt.part, "checksum": corrupt.checksum}


def _reorder(reorder: ReorderConfig) -> dict[str, Any]:
    return {
        "share": str(reorder.share),
        "by": reorder.by,
        "within": format_time(reorder.within),
    }


def _delay(delay: DelayConfig) -> str | dict[str, str]:
    if delay.jitter is None:
        return str(delay.mean)
    return {
        "mean": str(delay.mean),
        "jitter": str(delay.jitter),
        "shape": delay.shape,
        "correlation": str(delay.correlation or Share(0)),
        "order": delay.order,
    }

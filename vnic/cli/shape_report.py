"""What was measured of a running policy, for `vnic shape show`."""

from __future__ import annotations

from typing import Any, NamedTuple

from shaping.loss_bounds import loss_bounds
from shaping.policy.classes import ClassEntry
from shaping.policy.compile import LINE_NAME, NAME, chain_of_place, full_name
from shaping.policy.keys import parse_key
from shaping.policy.load import convert_policy
from shaping.policy.network import Network
from shaping.policy.places import Line, plan_of
from shaping.policy.scenario import scenario_of
from shaping.settings import NO_MEMORY
from vnic.cli.common import about, plural
from vnic.cli.running_policy import running_network


class Asked(NamedTuple):
    """What a policy asks for at a moment."""

    lines: list[Line]
    classes: list[ClassEntry]


def asked_now(status: dict[str, Any]) -> Asked:
    """What the running policy asks for now. status: of ShapeStatus, with `whole`."""
    scenario, (network, _) = status["scenario"], running_network(status)
    return asked_at(status["policy"], network, scenario["elapsed_ns"] if scenario else 0)


def asked_at(shape: dict[str, Any], network: Network, elapsed_ns: int) -> Asked:
    """The lines and classes of a policy, `elapsed_ns` after its scenario began."""
    policy = convert_policy(shape)
    plan = plan_of(policy, network)
    scenario = scenario_of(policy, plan, network)
    if scenario is None:
        return Asked(list(plan.lines.values()), policy.classes)
    now = {line.place: line for line in scenario.lines_at(elapsed_ns)}
    classes = {entry.key: entry for entry in scenario.classes_at(elapsed_ns)}
    return Asked(
        [now.get(line.place, line) for line in plan.lines.values()],
        [classes.get(entry.key, entry) for entry in policy.classes],
    )


def waiting(shape: dict[str, Any], network: Network) -> list[dict[str, Any]]:
    """Rows of `vnic shape show` for lines whose NICs are not attached."""
    rows = []
    for key in shape.get("links", {}):
        parsed = parse_key(key)
        missing = [name for name in (parsed.first, parsed.second) if network.lacks(name)]
        if missing:
            rows.append(row_of(key, "", f"waits: {' and '.join(missing)} not attached"))
    return rows


def row_of(line: str, asked: str, kept: str) -> dict[str, Any]:
    """A line of `vnic shape show`, before anything is measured."""
    return {
        "line": line, "asked": asked,
        "packets": None, "rate_bps": None, "lost": None, "delay_ms": None, "kept": kept,
    }  # fmt: skip


def measured(
    line: Line,
    before: dict[str, dict[str, Any]],
    after: dict[str, dict[str, Any]],
    took_s: float,
) -> dict[str, Any]:
    """A line of `vnic shape show`."""
    rated, impaired = (after.get(full_name(name, line.place)) for name in (LINE_NAME, NAME))
    asked = ", ".join(f"{name} {setting}" for name, setting in line.settings.items())
    row = row_of(str(line.place), asked, "yes")
    reasons: list[str] = []
    full: list[str] = []  # a queue that is full drops, as asked
    for element in (rated, impaired):
        if element is None:
            continue
        row["packets"] = element["counters"].get("wire_packets", element["packets"])
        for reason, count in element["dropped"].items():
            if count and reason not in ("loss", "released"):
                text = f"{plural(count, 'packet')} dropped: {reason}"
                if reason in NO_MEMORY:
                    reasons.append(f"{text}: a larger pool: helps")
                else:
                    full.append(text)
    if rated is not None:
        sent = rated["counters"]["sent_bytes"]
        earlier = before.get(rated["name"], {"counters": {"sent_bytes": sent}})
        row["rate_bps"] = (sent - earlier["counters"]["sent_bytes"]) * 8 / took_s
    if impaired is not None:
        counters = impaired["counters"]
        if counters["delayed"]:
            row["delay_ms"] = counters["delay_ns"] / counters["delayed"] / 1e6
        if line.loss is not None and counters["wire_packets"]:
            row["lost"] = 100 * counters["lost"] / counters["wire_packets"]
            if "loss" not in line.variants:  # else its packets had several shares
                reasons += _judge_loss(line, counters["wire_packets"], counters["lost"])
    if rated is None and impaired is None:
        row["kept"] = f"waits: {chain_of_place(line.place).owner} not attached"
    elif reasons:
        row["kept"] = f"no: {'; '.join(reasons)}"
    elif not row["packets"]:
        row["kept"] = "no packets yet"
    elif full:
        row["kept"] = f"yes; {'; '.join(full)}"
    return row


def _judge_loss(line: Line, packets: int, lost: int) -> list[str]:
    """A loss outside of the bounds that its model allows with a probability of 1 - 10^-6."""
    assert line.loss is not None
    chain = line.loss.chain
    least, most = loss_bounds(chain, packets)
    if least <= lost <= most:
        return []
    return [f"{100 * lost / packets:.3g} % lost, expected {100 * chain.share:.3g} %"]


def share_rows(shares: list[dict[str, Any]]) -> list[list[Any]]:
    """The rows of `vnic shape show` about shares: what each NIC or class may send now, and what it
    seems to want."""
    return [
        [
            share["name"], about(share["capacity_bps"], "bit/s"),
            f"{group['name']} ({group['group']})" if "group" in group else group["name"],
            None if group["rate_bps"] is None else about(group["rate_bps"], "bit/s"),
            "more" if group["demand_bps"] is None else about(group["demand_bps"], "bit/s"),
        ]
        for share in shares
        for group in share["groups"]
    ]  # fmt: skip

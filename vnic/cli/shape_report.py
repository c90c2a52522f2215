"""What was measured of a running policy, for `vnic shape show`."""

from __future__ import annotations

import math
from typing import Any

from shaping.loss_model import Chain
from shaping.policy.compile import LINE_NAME, NAME, chain_of_place, element_name
from shaping.policy.load import convert_policy
from shaping.policy.network import Network
from shaping.policy.places import Line, plan_of
from vnic.cli.common import plural
from vnic.config.convert import convert_config
from vnic.config.shape import network_of


def lines_of(shape: dict[str, Any], network: Network) -> list[Line]:
    return list(plan_of(convert_policy(shape), network).lines.values())


def running_network(config: dict[str, Any]) -> Network:
    """The names of a running network, from its configuration."""
    return network_of(convert_config({**config, "shape": None}, contained=False))


def measured(
    line: Line,
    before: dict[str, dict[str, Any]],
    after: dict[str, dict[str, Any]],
    took_s: float,
) -> dict[str, Any]:
    """A line of `vnic shape show`."""
    source = line.place.source if line.place.is_pair else ""
    prefix = f"{chain_of_place(line.place)}."

    def find(name: str) -> dict[str, Any] | None:
        ending = f".{element_name(name, source)}"
        return next(
            (
                each
                for full, each in after.items()
                if full.startswith(prefix) and full.endswith(ending)
            ),
            None,
        )

    rated, impaired = find(LINE_NAME), find(NAME)
    row: dict[str, Any] = {
        "line": str(line.place),
        "asked": ", ".join(f"{name} {setting}" for name, setting in line.settings.items()),
        "packets": None, "rate_bps": None, "lost": None, "delay_ms": None, "kept": "yes",
    }  # fmt: skip
    reasons: list[str] = []
    for element in (rated, impaired):
        if element is None:
            continue
        row["packets"] = element["counters"].get("wire_packets", element["packets"])
        for reason, count in element["dropped"].items():
            if count and reason not in ("loss", "released"):
                reasons.append(f"{plural(count, 'packet')} dropped: {reason}")
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
            reasons += _judge_loss(line, counters["wire_packets"], counters["lost"])
    if rated is None and impaired is None:
        reasons.append("its elements are gone, perhaps with an earlier NIC; apply the policy again")
    if reasons:
        row["kept"] = f"no: {'; '.join(reasons)}"
    elif not row["packets"]:
        row["kept"] = "no packets yet"
    return row


def _judge_loss(line: Line, packets: int, lost: int) -> list[str]:
    """A loss outside of the bounds that its model allows with a probability of 1 - 10^-6."""
    assert line.loss is not None
    chain = line.loss.chain
    least, most = loss_bounds(chain, packets)
    if least <= lost <= most:
        return []
    return [f"{100 * lost / packets:.3g} % lost, expected {100 * chain.share:.3g} %"]


def loss_bounds(chain: Chain | None, packets: int) -> tuple[float, float]:
    """(least, most) losses among a number of packets, by the model; None: none."""
    if chain is None or not chain.share:
        return 0.0, 0.0
    burst = max(chain.mean_burst, 1.0)
    if math.isinf(burst):
        bound = 1.0
    else:
        deviation = math.sqrt(packets * chain.share * (1 - chain.share) * (2 * burst - 1))
        bound = 4.9 * deviation + 2 * burst
    wanted = packets * chain.share
    return wanted - bound, wanted + bound

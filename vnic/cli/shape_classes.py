"""What was measured of the classes of a running policy, for `vnic shape show`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dataplane.units import format_rate
from shaping.class_rows import add_row
from shaping.class_settings import ClassSetting
from shaping.policy.classes import SCHEDULER_NAME, ClassEntry, tree_setting
from shaping.policy.compile import class_chain
from shaping.policy.kept_classes import asked_of
from shaping.policy.network import Network
from vnic.cli.common import plural
from vnic.cli.shape_report import row_of

if TYPE_CHECKING:
    from vnic.api.client import Client

JUDGED_S = 0.2  # over less, the time of reading counts
NEAR = 0.02  # of a rate that is measured over a second or so: packets are not fractions
GONE = "no: its elements are gone; apply the policy again"

Table = dict[str, dict[str, Any]]


def class_tables(
    client: Client, entries: Iterable[ClassEntry], network: Network, names: Collection[str]
) -> dict[str, Table]:
    """Of each place of `classes`: what each class has sent, dropped and holds, by path. names: of
    all elements. Places whose Scheduler is gone are left out."""
    found: dict[str, Table] = {}
    for entry in entries:
        name = f"{class_chain(entry, network)}.{SCHEDULER_NAME}"
        if name in names:
            copies = client.call("ReadHandler", element=name, handler="classes")["copies"]
            found[entry.key] = _summed(copies)
    return found


def _summed(copies: list[dict[str, Any]]) -> Table:
    """The rows of all engines that have a copy of the Scheduler, added up."""
    table: Table = {}
    for copy in copies:
        for row in copy["value"]:
            if (known := table.get(row["path"])) is None:
                table[row["path"]] = row
            else:
                add_row(known, row)
    return table


def class_rows(
    entries: Iterable[ClassEntry],
    network: Network,
    before: dict[str, Table],
    after: dict[str, Table],
    took_s: float,
) -> Iterator[dict[str, Any]]:
    """The rows of `vnic shape show`, as those of lines."""
    for entry in entries:
        table, earlier = after.get(entry.key), before.get(entry.key, {})
        for each in tree_setting(entry).classes:
            owner = class_chain(entry, network).owner
            why = f"waits: {owner} not attached" if network.lacks(owner) else GONE
            row = row_of(name_of(entry, each), asked(each), why)
            if table is not None and each.path in table:
                _measure(row, each, table[each.path], earlier.get(each.path), took_s)
            yield row


def name_of(entry: ClassEntry, each: ClassSetting) -> str:
    """What a class is called: that of the root is its place."""
    return f"{entry.key}/{each.path}" if each.path else entry.key


def classes_by_name(entries: Iterable[ClassEntry]) -> dict[str, ClassSetting]:
    """The classes of places, by the names of `History`."""
    return {name_of(entry, each): each for entry in entries for each in tree_setting(entry).classes}


def asked(each: ClassSetting) -> str:
    """What a class is promised, in words of a policy file."""
    return ", ".join(
        value if name == "queue" else f"{name} {value}" for name, value in asked_of(each).items()
    )


def _measure(
    row: dict[str, Any],
    each: ClassSetting,
    now: dict[str, Any],
    earlier: dict[str, Any] | None,
    took_s: float,
) -> None:
    dropped = sum(now["dropped"].values())
    row["packets"] = now["sent_packets"] + dropped + now["waiting_packets"]
    row["kept"] = "yes" if row["packets"] else "no packets yet"
    if now["sent_packets"]:
        row["delay_ms"] = now["sojourn_ns"] / now["sent_packets"] / 1e6
    if dropped:
        row["lost"] = 100 * dropped / row["packets"]
    if earlier is None or not row["packets"]:
        return
    row["rate_bps"] = rate = (now["sent_bytes"] - earlier["sent_bytes"]) * 8 / took_s
    reasons = []
    if (
        took_s >= JUDGED_S
        and each.effective_bps
        and rate > each.effective_bps * (1 + NEAR) + 12_000 / took_s
    ):
        reasons.append(f"more than {format_rate(each.effective_bps)}")
    # a class gets its guarantee while it has packets; only one that always had some can tell
    busy = earlier["waiting_packets"] and now["waiting_packets"]
    if took_s >= JUDGED_S and busy and rate < each.guarantee_bps * (1 - NEAR) - 12_000 / took_s:
        reasons.append(f"less than {format_rate(each.guarantee_bps)}")
    if now["dropped"]["over_memory"]:
        count = plural(now["dropped"]["over_memory"], "packet")
        reasons.append(f"{count} dropped for lack of memory; a larger `pool:` helps")
    if reasons:
        row["kept"] = f"no: {'; '.join(reasons)}"

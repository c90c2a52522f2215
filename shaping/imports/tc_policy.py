"""The policy for what tc has set up on devices.

A device's root is what its NIC sends (or, where --map says so, what it receives); its ingress, and
an ifb device to which its ingress leads, the other direction.

    netem, tbf at the root            settings of `NIC -> any`
    netem, tbf in bands of prio       parts of `NIC -> any`, or, by address, `NIC -> other`
    htb, hfsc, prio below a rate      classes; netem in them, parts
    police, drop at ingress, egress   a rate or a loss, of a part where a filter selects packets
"""

from __future__ import annotations

from typing import NamedTuple

from shaping.imports.filters import Rule
from shaping.imports.form import Draft, Names, Settings, opposite
from shaping.imports.notes import Notes, Unsupported, unsupported
from shaping.imports.parts import Selection, put_selected
from shaping.imports.quantities import line_rate
from shaping.imports.rules import ALL
from shaping.imports.tc_objects import EGRESS_HOOK, INGRESS_HOOK, Device, Devices, Filter
from shaping.imports.tc_root import Root, size_setting


class Redirects(NamedTuple):
    """ifb devices to which others' ingress leads.

    whole: by name, the device of which they get all packets
    some: by name, the device of which they get some
    """

    whole: dict[str, str]
    some: dict[str, str]


def draft_of(devices: Devices, names: Names, notes: Notes) -> Draft:
    """Raises ConfigError; what cannot be said is in the notes."""
    draft = Draft(notes=notes)
    redirects = _redirects(devices, notes)
    for device in devices.values():
        if device.name in redirects.some:
            continue  # read with the filters that lead packets there
        if not device.qdiscs and not device.classes:
            continue
        try:
            _device(device, devices, redirects, names, draft)
        except Unsupported as error:
            notes.refuse(_where(device), error)
    return draft


def _where(device: Device) -> str:
    return next(iter(device.qdiscs.values())).where if device.qdiscs else ""


def _redirects(devices: Devices, notes: Notes) -> Redirects:
    found = Redirects({}, {})
    for device in devices.values():
        leading = [
            each for each in device.filters_of(INGRESS_HOOK) if each.redirect and not each.broken
        ]
        kind = found.whole if all(each.match in ALL for each in leading) else found.some
        for each in leading:
            target = _target(device, each)
            known = found.whole.get(target, found.some.get(target, device.name))
            if known == device.name:
                kind[target] = device.name
            else:
                notes.refuse(
                    each.where,
                    unsupported(f"mirred to {target} from several devices",
                                "each NIC has its own lines"),
                )  # fmt: skip
    return found


def _target(device: Device, each: Filter) -> str:
    """The name of the device that a filter redirects to, which is in the same namespace."""
    space, slash, _ = device.name.rpartition("/")
    return f"{space}{slash}{each.redirect}"


def _device(
    device: Device, devices: Devices, redirects: Redirects, names: Names, draft: Draft
) -> None:
    where = _where(device)
    comes_from = redirects.whole.get(device.name)
    if comes_from is not None and device.name not in names.given:
        nic, direction = names.place(comes_from, where)
        direction = opposite(direction)
    else:
        nic, direction = names.place(device.name, where)
    if device.root is not None:
        Root(device, nic, direction, names, draft).compile()
    for hook, way in ((INGRESS_HOOK, opposite(direction)), (EGRESS_HOOK, direction)):
        found = []
        for each in device.filters_of(hook):
            try:
                target = _target(device, each)
                if each.redirect and redirects.some.get(target) == device.name:
                    line: Settings = {}
                    if target in devices:
                        line = Root(devices[target], nic, way, names, draft).only_line()
                    found.append(Selection(each.where, _rules(each), line))
                else:
                    found += _verdict(each, draft.notes)
            except Unsupported as error:
                draft.notes.refuse(each.where, error)
        put_selected(draft, nic, way, found, names.of_address)


def _rules(each: Filter) -> list[Rule]:
    if each.broken is not None:
        raise each.broken
    rules: list[Rule] = each.match
    return rules


def _verdict(each: Filter, notes: Notes) -> list[Selection]:
    """What a filter of ingress or egress does with its packets; nothing for mirred of all."""
    rules = _rules(each)
    if each.redirect:
        return []
    if each.police is not None:
        rate, burst = each.police
        line = {"rate": line_rate("police rate", rate), "queue": size_setting("burst", burst)}
        notes.warn(
            each.where,
            "police: drops what exceeds the rate and burst at once; here as much as the burst "
            "waits, and no burst passes",
        )
        return [Selection(each.where, rules, line)]
    return [Selection(each.where, rules, {"loss": "100%"} if each.verdict == "drop" else {})]

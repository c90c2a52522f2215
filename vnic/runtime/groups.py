"""Makes and changes engine groups by their configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataplane.engine.cgroup import Cgroup
from dataplane.groups.group import EngineGroup
from dataplane.groups.guarantee import Guarantee
from dataplane.groups.threads import Mode
from vnic.config.schema import GroupConfig


def _group_settings(config: GroupConfig) -> dict[str, tuple[str, Any]]:
    """Names and values of dataplane.groups.threads.Settings, by the configuration's keys."""
    guarantee = config.guarantee
    return {
        "mode": ("mode", Mode(config.mode)),
        "cpus": ("cpus", config.cpus),
        "spin": ("spin_ns", int(config.spin or 0)),
        "slo": ("slo_ns", int(config.slo)),
        "guarantee": (
            "guarantee",
            guarantee and Guarantee(int(guarantee.runtime), int(guarantee.period)),
        ),
        "cgroup": ("cgroups", tuple(Cgroup(path) for path in config.cgroup)),
    }


def make_group(name: str, config: GroupConfig, *, tolerant: bool = False) -> EngineGroup:
    """An engine group by its configuration. tolerant: a missing cgroup is not an error, see
    EngineGroup. Raises ConfigError."""
    return EngineGroup(name, **dict(_group_settings(config).values()), tolerant=tolerant)


def change_group(group: EngineGroup, config: GroupConfig, words: Iterable[str]) -> None:
    """Applies the keys `words` of its configuration to a group. Raises as EngineGroup.change does,
    and then nothing has changed."""
    settings = _group_settings(config)
    if changes := dict(settings[word] for word in words if word in settings):
        group.change(**changes)
    for engine in group.engines:
        engine.budget_ns = int(config.budget)

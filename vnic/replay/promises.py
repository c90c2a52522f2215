"""What a policy promised, and whether a replay kept it: by line and by class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataplane.graph.element import Element
from shaping.policy.classes import SCHEDULER_NAME, ClassEntry, tree_setting
from shaping.policy.compile import class_chain
from shaping.policy.figures import line_bytes
from shaping.policy.kept import WINDOW_NS, RateWindows, judge, steady_rate
from shaping.policy.kept_classes import windows_of
from shaping.scheduler import Scheduler
from vnic.config.schema import Config
from vnic.config.shape import network_of, read_policy
from vnic.modules.lines import RunningLine

ETHERNET_BYTES = 14 + 4  # with one VLAN tag


class Promises:
    """The lines and classes of a configuration's policy, and what their elements count while a
    replay runs.

    Rates are judged in windows of WINDOW_NS of virtual time; windows in which nothing is due are
    passed over.
    """

    def __init__(
        self,
        config: Config,
        lines: Iterable[RunningLine],
        elements: Iterable[Element],
        start_ns: int,
    ) -> None:
        self.start_ns = self._window_ns = start_ns
        policy = read_policy(config.shape)
        self.seed = policy.seed
        frame = max(nic.mtu for nic in config.nics.values()) + ETHERNET_BYTES
        self._lines = [
            (each, RateWindows.of(each.line, frame) if steady_rate(each.line) else None)
            for each in lines
        ]
        network, schedulers = network_of(config), {}
        # of classes that a scenario changes, numbers are not judged by those of the beginning
        changed = {each.place for step in policy.steps for each in step.classes}
        for element in elements:
            if isinstance(element, Scheduler):
                schedulers[element.name] = element
        self._classes = [
            _Classes(entry, scheduler, frame)
            for entry in policy.classes
            if entry.key not in changed
            and (scheduler := _of_policy(schedulers, f"{class_chain(entry, network)}."))
        ]

    def window_until(self, due_ns: int) -> int:
        """The end of the window in which `due_ns` lies. Nothing is due before: if it lies behind
        the current window, that one has ended."""
        if due_ns > self._window_ns + WINDOW_NS:
            self._end_window()
            passed = -(-(due_ns - self._window_ns) // WINDOW_NS) - 1
            self._window_ns += passed * WINDOW_NS
        return self._window_ns + WINDOW_NS

    def _end_window(self) -> None:
        since_ns = self._window_ns - self.start_ns
        for each, windows in self._lines:
            if windows is not None and each.elements:
                windows.note(since_ns, each.elements[0].statistics()["counters"])
        for classes in self._classes:
            classes.note(since_ns)

    def results(self, now_ns: int) -> dict[str, Any]:
        """`seed`; `lines`: see Kept; `classes`: see ClassWindows.judged; `kept`: whether all
        promises are."""
        self._end_window()
        took_ns = now_ns - self.start_ns
        lines = []
        for each, windows in self._lines:
            counted = [
                {"type": type(element).__name__, **element.statistics()}
                for element in each.elements
            ]
            lines.append(judge(each.line, counted, took_ns, windows).as_dict())
        classes = [row for each in self._classes for row in each.rows(took_ns)]
        return {
            "seed": self.seed,
            "window_ns": WINDOW_NS,
            "kept": all(each["kept"] for each in (*lines, *classes)),
            "lines": lines,
            "classes": classes,
        }


class _Classes:
    """The classes of one place."""

    def __init__(self, entry: ClassEntry, scheduler: Scheduler, frame_bytes: int) -> None:
        self.key, self.scheduler = entry.key, scheduler
        frame = line_bytes(frame_bytes, entry.config.overhead)
        self.windows = {
            each.path: windows_of(each, entry.config.rate, frame)
            for each in tree_setting(entry).classes
        }

    def note(self, start_ns: int) -> None:
        rows = self.scheduler.get_classes()
        active = sum(row["sent_packets"] > 0 for row in rows)
        for row in rows:
            self.windows[row["path"]].note(start_ns, row, active)

    def rows(self, took_ns: int) -> list[dict[str, Any]]:
        return [
            self.windows[row["path"]].judged(
                f"{self.key}/{row['path']}" if row["path"] else self.key, row, took_ns
            )
            for row in self.scheduler.get_classes()
        ]


def _of_policy(schedulers: dict[str, Scheduler], chain: str) -> Scheduler | None:
    """The Scheduler of a policy in a chain."""
    for name, scheduler in schedulers.items():
        if name.startswith(chain) and name.endswith(f".{SCHEDULER_NAME}"):
            return scheduler
    return None

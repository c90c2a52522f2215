"""What a policy promised, and whether a replay kept it: by line, and by class where there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataplane.engine.engine import Engine
from dataplane.graph.element import Element
from dataplane.graph.handlers import handlers_of
from shaping.policy.kept import WINDOW_NS, RateWindows, element_names, judge
from shaping.policy.places import Line, plan_of
from vnic.config.schema import Config
from vnic.config.shape import network_of, read_policy

ETHERNET_BYTES = 14 + 4  # with one VLAN tag


class Promises:
    """The lines of a configuration's policy, and what their elements count while a replay runs.

    Rates are judged in windows of WINDOW_NS of virtual time; windows in which nothing is due are
    passed over.
    """

    def __init__(self, config: Config, engines: Iterable[Engine], start_ns: int) -> None:
        self.start_ns = self._window_ns = start_ns
        policy = read_policy(config.shape)
        self.seed = policy.seed
        found = {element.name: element for engine in engines for element in engine.elements}
        self._elements = found
        lines = list(plan_of(policy, network_of(config)).lines.values())
        names = element_names(lines)
        self._lines: list[tuple[Line, list[Element]]] = [
            (line, [found[name] for name in names[line.place] if name in found]) for line in lines
        ]
        frame = max(nic.mtu for nic in config.nics.values()) + ETHERNET_BYTES
        self._windows = {
            line.place: RateWindows.of(line, frame) for line, _ in self._lines if line.rate
        }

    def window_until(self, due_ns: int) -> int:
        """The end of the window in which `due_ns` lies. Nothing is due before: if it lies behind
        the current window, that one has ended."""
        if due_ns > self._window_ns + WINDOW_NS:
            self._end_window()
            passed = -(-(due_ns - self._window_ns) // WINDOW_NS) - 1
            self._window_ns += passed * WINDOW_NS
        return self._window_ns + WINDOW_NS

    def _end_window(self) -> None:
        for line, elements in self._lines:
            if line.rate:
                windows, since_ns = self._windows[line.place], self._window_ns - self.start_ns
                windows.note(since_ns, elements[0].statistics()["counters"])

    def results(self, now_ns: int) -> dict[str, Any]:
        """`seed`; `lines`: see Kept; `classes`: rows of every element with classes; `kept`: whether
        all promises are."""
        self._end_window()
        lines = []
        for line, elements in self._lines:
            counted = [{"type": type(each).__name__, **each.statistics()} for each in elements]
            windows = self._windows.get(line.place)
            lines.append(judge(line, counted, now_ns - self.start_ns, windows).as_dict())
        return {
            "seed": self.seed,
            "window_ns": WINDOW_NS,
            "kept": all(line["kept"] for line in lines),
            "lines": lines,
            "classes": self._classes(now_ns - self.start_ns),
        }

    def _classes(self, took_ns: int) -> list[dict[str, Any]]:
        """The rows of elements that divide a rate among classes, with mean rates."""
        return [
            {
                "element": name,
                **row,
                "mean_bps": row["sent_bytes"] * 8e9 / took_ns if took_ns else None,
            }
            for name, element in sorted(self._elements.items())
            if (handler := handlers_of(type(element)).get("classes")) and handler.read
            for row in getattr(element, handler.read)()
        ]

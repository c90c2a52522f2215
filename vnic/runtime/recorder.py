"""The last minute of a network, in samples of 100 ms: what NICs, lines of the policy and classes
have counted.

Control takes a sample by reading counters (dataplane/graph/tally.pxd); engines have no part in it.
A sample stores the series in which something happened, so that a network at rest costs a few bytes
for each sample, whatever the number of its NICs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from dataplane.config.convert import did_you_mean
from dataplane.errors import ConfigError, GraphError
from dataplane.graph.tally import Steps, TallyTable
from vnic.modules.lines import running_lines
from vnic.modules.link_node import LinkNode
from vnic.modules.nic_node import NicNode
from vnic.modules.series import (
    COLUMNS,
    COLUMNS_OF,
    LEVELS,
    NUMBER,
    Classes,
    Series,
    classes_in,
    series_of_classes,
    series_of_line,
    series_of_nic,
)
from vnic.modules.way import Way

PERIOD_NS = 100_000_000
SAMPLES = 600
# While nothing is counted, or asked for, for this time, samples are longer: each costs control
# 0.1 ms or more, and wakes a CPU. What comes first after such a time is in a sample of up to 1 s.
BUSY_NS = 10_000_000_000
QUIET_PERIOD_NS = 1_000_000_000
# Of all samples together, of which a series in which something happened takes 112 bytes: of a
# thousand NICs that are all busy, the last 30 s are kept.
BYTES_MOST = 64 << 20
# Series times steps of an answer, so that it takes control a tenth of a second at most.
ANSWER_MOST = 100_000


class Recorded(Protocol):
    """The part of vnic.runtime.runtime.Runtime that is recorded."""

    @property
    def config(self) -> Any: ...
    @property
    def lock(self) -> Any: ...
    @property
    def nics(self) -> Any: ...
    @property
    def changes(self) -> int: ...


class _Sample(NamedTuple):
    """begin_ns, end_ns: the interval; records: those of TallyTable.take, by the series' numbers."""

    begin_ns: int
    end_ns: int
    records: bytes


class Recorder:
    """Takes samples of a runtime, and answers questions about them. Called on control's thread
    only."""

    def __init__(self, runtime: Recorded) -> None:
        self._runtime = runtime
        self._seen = -1  # the runtime's changes, when the series were listed
        self._series: dict[
            int, Series
        ] = {}  # by number, those that are sampled, in the order of rows
        self._gone: dict[int, tuple[Series, int]] = {}  # by number, with when it was sampled last
        self._next_number = 0
        self._changed: list[Series] = []  # lines, classes with new settings since the last sample
        self._classes: list[tuple[Classes, object]] = []  # with the trees that are sampled
        self._samples: deque[_Sample] = deque()
        self._bytes = 0  # of all samples
        self._last_ns: int | None = None
        self._busy_ns: int | None = None  # when something was counted or asked for, the last time
        self._table = self._table_of({})

    def _table_of(self, series: Mapping[int, Series]) -> TallyTable:
        tallies = [each.tally for each in series.values()]
        return TallyTable(list(series), tallies, len(COLUMNS), LEVELS)

    # -- sampling ----------------------------------------------------------------------------------

    def take(self, now_ns: int) -> None:
        """Takes a sample. now_ns: of CLOCK_MONOTONIC, or virtual time."""
        self._list(now_ns)
        records = self._table.take()
        begin_ns, self._last_ns = self._last_ns, now_ns
        if begin_ns is None:  # what was counted before the first sample
            self._settle(now_ns)
            return
        if records:
            self._busy_ns = now_ns
        self._samples.append(_Sample(begin_ns, now_ns, records))
        self._settle(now_ns)
        self._bytes += len(records)
        oldest_ns = now_ns - SAMPLES * PERIOD_NS
        while self._bytes > BYTES_MOST or self._samples[0].end_ns <= oldest_ns:
            self._bytes -= len(self._samples.popleft().records)
        if self._gone:
            since_ns = self._samples[0].begin_ns if self._samples else now_ns
            self._gone = {number: each for number, each in self._gone.items() if each[1] > since_ns}

    def _note_since(self, new: Series, was: Series | None, now_ns: int) -> None:
        if was is None:  # its elements count from now on
            new.since_ns = self._last_ns or now_ns
        # A class shares with the others of its tree: their settings count, too.
        elif new.asked == was.asked and (new.kind == "line" or new.of is was.of):
            new.since_ns = was.since_ns
        if new.since_ns is None:
            self._changed.append(new)

    def _settle(self, now_ns: int) -> None:
        """The sample in which lines and classes got their settings is complete."""
        for series in self._changed:
            series.since_ns = now_ns
        self._changed.clear()

    def rest_ns(self, now_ns: int) -> int:
        """How long after `now_ns` the next sample is due; at most 0: it is."""
        if self._last_ns is None:
            return 0
        quiet = self._busy_ns is None or self._last_ns - self._busy_ns > BUSY_NS
        return self._last_ns + (QUIET_PERIOD_NS if quiet else PERIOD_NS) - now_ns

    def asked(self, now_ns: int) -> None:
        """A client asks: takes a sample if the last one is old, and more of them from now on."""
        self._busy_ns = now_ns
        if self.rest_ns(now_ns) <= 0:
            self.take(now_ns)

    def _list(self, now_ns: int) -> None:
        """Lists the series anew after a change of the network. Sums go on, so that nothing that is
        counted meanwhile is missed."""
        runtime = self._runtime
        changed = runtime.changes != self._seen
        if not changed and all(each.tree is tree for each, tree in self._classes):
            return
        # A change of the network is under way: the next sample sees it whole. Until then the
        # counters of what is leaving stay in memory.
        if not runtime.lock.acquire(blocking=False):
            return
        first = self._seen < 0
        try:
            self._seen = runtime.changes
            found = self._all()
        finally:
            runtime.lock.release()
        numbers = {series.key: number for number, (series, _) in self._gone.items()}
        numbers |= {series.key: number for number, series in self._series.items()}
        places = {number: place for place, number in enumerate(self._series)}
        series: dict[int, Series] = {}
        for each in found:
            number = numbers.pop(each.key, -1)
            if number < 0:
                number, self._next_number = self._next_number, self._next_number + 1
            series[number] = each
        gone = {
            **{number: (each.ended(), now_ns) for number, each in self._series.items()},
            **self._gone,
        }
        self._gone = {number: each for number, each in gone.items() if number not in series}
        table = self._table_of(series)
        self._changed.clear()
        for place, (number, each) in enumerate(series.items()):
            was = self._series.get(number)
            if each.kind != "nic":
                self._note_since(each, was, now_ns)
            if was is None:
                # What is new has counted from 0; a successor's elements have counted before.
                if first:
                    table.begin(place)
            # A NIC's ports stay when its elements change. Other elements of a line have other sums.
            elif each.kind == "nic" or each.of == was.of:
                table.go_on(place, self._table, places[number])
            else:
                table.begin(place)
        self._series, self._table = series, table

    def _all(self) -> list[Series]:
        """The series of the network as it is now; those of a NIC that is as before are kept."""
        runtime = self._runtime
        nics, links = runtime.nics.attached, runtime.nics.links
        kept: dict[object, list[Series]] = {}
        for each in self._series.values():
            if each.kind == "nic":
                kept.setdefault(each.of, []).append(each)
        found = [each for nic in nics.values() for each in kept.get(nic) or series_of_nic(nic)]
        found += map(series_of_line, running_lines(runtime.config, nics, links))
        self._classes = [(each, each.tree) for each in classes_in(_ways(nics, links))]
        for classes, tree in self._classes:
            found += series_of_classes(classes.element, classes.name, tree)
        return found

    # -- answers -----------------------------------------------------------------------------------

    def answer(
        self,
        names: Collection[str] | None = None,
        *,
        last_ns: int = SAMPLES * PERIOD_NS,
        step_ns: int = PERIOD_NS,
        visible: Callable[[Series], bool] = lambda series: True,
        alone: bool = False,
        offset_ns: int = 0,
    ) -> dict[str, Any]:
        """What was recorded in the last `last_ns`, in steps of at least `step_ns`: `begin`, and the
        end of each step in `times`, in seconds, with `offset_ns` added to the samples' times;
        `series`, each with a list for each of its columns, or with none where nothing happened.

        The last step ends with the last sample. names: of NICs, lines and classes; a class stands
        for those below it, unless `alone`. Raises ConfigError for an unknown name, and for too long
        an answer.
        """
        end_ns = self._last_ns or 0
        if self._last_ns is not None:
            self._list(end_ns)  # the network may have changed since the last sample
        chosen = self._chosen(names, visible, alone)
        # Samples are some milliseconds early or late: half a period more, and each is in its step.
        ages = [end_ns - each.end_ns + PERIOD_NS // 2 for each in self._samples]
        samples = [
            each for each, age_ns in zip(self._samples, ages, strict=True) if age_ns < last_ns
        ]
        steps = [age_ns // max(step_ns, PERIOD_NS) for age_ns in ages if age_ns < last_ns]
        places = {step: place for place, step in enumerate(dict.fromkeys(steps))}
        sums = Steps(len(places), len(COLUMNS), levels=LEVELS, ids=chosen, most=ANSWER_MOST)
        ends = [0] * len(places)
        for sample, step in zip(samples, steps, strict=True):
            try:
                sums.add(places[step], sample.records)
            except GraphError:
                raise ConfigError(
                    f"more than {ANSWER_MOST // len(places)} series of {len(places)} steps are too "
                    "many for one answer: ask for fewer names, a shorter time or longer steps",
                    code="limit",
                ) from None
            ends[places[step]] = sample.end_ns
        return {
            "begin": _seconds(samples[0].begin_ns + offset_ns) if samples else None,
            "times": [_seconds(each + offset_ns) for each in ends],
            "series": [
                {
                    **series.head(),
                    **self._times(number, series, offset_ns),
                    **_columns(series, number, sums),
                }
                for number, series in chosen.items()
            ],
        }

    def _chosen(
        self, names: Collection[str] | None, visible: Callable[[Series], bool], alone: bool
    ) -> dict[int, Series]:
        """By number. Raises ConfigError for a name that nothing has."""
        every = {**self._series, **{number: series for number, (series, _) in self._gone.items()}}
        every = {number: series for number, series in every.items() if visible(series)}
        if names is None:
            return every
        wanted = set(names)
        known = {name for series in every.values() for name in series.names}
        if unknown := sorted(wanted - known):
            hint = did_you_mean(unknown[0], sorted(known)) if known else "nothing is recorded"
            raise ConfigError(
                f"there is no NIC, line or class {unknown[0]}; {hint}", code="not-found"
            )
        return {
            number: series
            for number, series in every.items()
            if (series.name in wanted if alone else not wanted.isdisjoint(series.names))
        }

    def _times(self, number: int, series: Series, offset_ns: int) -> dict[str, float]:
        found = {}
        if series.kind != "nic":
            since_ns = series.since_ns or self._last_ns or 0
            found["since"] = _seconds(since_ns + offset_ns)
        if number in self._gone:
            found["ended"] = _seconds(self._gone[number][1] + offset_ns)
        return found


def _ways(nics: Mapping[str, NicNode], links: Mapping[str, LinkNode]) -> Iterator[tuple[str, Way]]:
    """The directions of NICs and links, by name."""
    for name, nic in nics.items():
        yield f"{name}.egress", nic.egress
        yield f"{name}.ingress", nic.ingress
    for name, link in links.items():
        for end, way in link.ways.items():
            yield f"{name}.{end}", way


def _seconds(ns: int) -> float:
    return round(ns / 1e9, 3)


def _columns(series: Series, number: int, sums: Steps) -> dict[str, list[int]]:
    found = {name: sums.column(number, NUMBER[name]) for name in COLUMNS_OF[series.kind]}
    return found if any(found.values()) else {}

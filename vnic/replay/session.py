"""A replay: a configuration's graph with captures as input, in virtual time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from dataplane.capture.reader import CaptureReader
from dataplane.capture.writer import CaptureWriter, format_of
from dataplane.engine.clock import Clock
from dataplane.engine.meter import Meter
from dataplane.errors import CaptureError, ConfigError, PortError
from dataplane.ports.pcap_sink import DropRecorder
from dataplane.ports.side_source import SideSource, Split
from dataplane.wire.rewrite import Rewrite
from vnic.config.schema import Config
from vnic.modules.devices import OneKind
from vnic.replay.kind import ReplayKind, ReplayNic
from vnic.replay.promises import Promises
from vnic.replay.sides import check_inputs
from vnic.replay.warnings import ABSURD_NS, drop_warnings, length_warning, span_warning
from vnic.runtime.runtime import Runtime
from vnic.runtime.stepped_time import SteppedTime

SLICE = 200_000  # packets between two reports of progress and checks for Ctrl-C: about 40 ms

Capture = str | os.PathLike[str] | int


def _rates(meter: Meter) -> dict[str, Any]:
    """Bit/s over time, in at most 2048 steps."""
    start_ns, bin_ns, bps = meter.rate()
    return {"start_ns": start_ns, "bin_ns": bin_ns, "bps": [round(value) for value in bps]}


def _received(nic: ReplayNic, reader: CaptureReader | None) -> int:
    """Packets of the capture that this NIC's container sent."""
    if isinstance(nic.source, SideSource) and nic.source.shared is not None:
        return nic.source.taken
    return reader.packets if reader else 0


def _truncated(nic: ReplayNic, reader: CaptureReader | None) -> int:
    if isinstance(nic.source, SideSource) and nic.source.shared is not None:
        return nic.source.cut
    return reader.truncated if reader else 0


def _shifts(readers: Mapping[str, CaptureReader]) -> dict[str, int]:
    """Nanoseconds to add to each input's times so that all begin with the earliest. Opens each a
    second time to read its first packet."""
    firsts: dict[str, int] = {}
    for name, reader in readers.items():
        if reader.size == 0:
            raise ConfigError(f"{reader.path}: a pipe cannot be aligned; use a file")
        first = CaptureReader(reader.path)
        try:
            found = next(first, None)
        except CaptureError:
            found = None
        finally:
            first.close()
        if found is not None:
            firsts[name] = found[0]
    earliest = min(firsts.values(), default=0)
    return {name: earliest - first for name, first in firsts.items()}


class Target:
    """An output: a temporary file in the same directory, renamed to its path once complete; or
    directly a device or pipe."""

    def __init__(self, output: Capture) -> None:
        self.file: Capture = output
        self.part, self.place, self.complete = "", "", False
        self.format = None if isinstance(output, int) else format_of(os.fspath(output))
        if not isinstance(output, int):
            place = os.path.realpath(output)
            if os.path.isfile(place) or not os.path.exists(place):
                self.place = place
                self.file = self.part = f"{place}.{os.getpid()}.part"

    def finish(self) -> None:
        """Renames a complete output to its path; removes an incomplete one."""
        if self.place and self.complete:
            os.replace(self.part, self.place)
            self.place = ""
        else:
            self.discard()

    def discard(self) -> None:
        if self.place:
            with suppress(FileNotFoundError):
                os.unlink(self.part)
            self.place = ""


class Replay:
    """Replays `inputs` (NIC's name -> capture) through `config`; the NICs transmit into `output`.

    Each packet enters at its recorded time, and timers fire at theirs; transmitted packets are
    written with the time of their departure, one interface per NIC. With drops=True, an interface
    "dropped" has the dropped packets, each with element and reason as comment. The outcome is a
    function of captures, configuration and seed; the number of engines does not change it.

    split: the only input's packets enter at the NICs of their sides. rewrite: changes to frames
    before they enter; macs_of_nics: the NICs' MAC addresses replace theirs. align: all inputs begin
    at the same time.

    Raises ConfigError (CaptureError for an unusable capture) and then leaves nothing open.
    """

    def __init__(
        self,
        config: Config,
        inputs: Mapping[str, Capture],
        output: Capture | None = None,
        *,
        output_format: str | None = None,
        drops: bool = False,
        seed: int = 0,
        split: Split | None = None,
        rewrite: Rewrite | None = None,
        macs_of_nics: bool = False,
        align: bool = False,
    ) -> None:
        if not config.outer_nics:
            raise ConfigError("a replay needs NICs: the configuration has none")
        check_inputs(config, inputs)
        self.config = config
        with ExitStack() as undo:
            readers: dict[str, CaptureReader] = {}
            for name, capture in inputs.items():
                readers[name] = CaptureReader(capture)
                undo.callback(readers[name].close)
            self.writer: CaptureWriter | None = None
            self._target: Target | None = None
            if output is not None:
                self._refuse_same(readers, output)
                self._target = Target(output)
                undo.callback(self._target.discard)
                names = [*config.nics, *(["dropped"] if drops else [])]
                try:
                    self.writer = CaptureWriter(
                        self._target.file, names, format=output_format or self._target.format
                    )
                except PortError as error:
                    raise PortError(
                        str(error).replace(self._target.part or "\0", str(output))
                    ) from None
                undo.callback(self.writer.close)
            if split is not None and len(readers) != 1:
                raise ConfigError("one capture is split, not several")
            macs = b"".join(nic.mac.packed for nic in config.nics.values() if nic.mac is not None)
            shifts = _shifts(readers) if align else {}
            self.kind = ReplayKind(
                readers,
                self.writer,
                split=split,
                rewrite=rewrite,
                macs=macs if macs_of_nics else b"",
                shifts=shifts,
            )
            self.clock = Clock(virtual=True)
            self.runtime = Runtime(config, devices=OneKind(self.kind), clock=self.clock, seed=seed)
            undo.callback(self.runtime.close)
            self.runtime.start()
            starts = [
                nic.source.first_ns
                for nic in self.kind.nics.values()
                if nic.source and nic.source.first_ns
            ]
            self.start_ns = min(starts, default=0)
            self.starts_apart_ns = max(starts, default=0) - self.start_ns
            self.clock.set(self.start_ns)
            self.runtime.policy.begin_scenario(self.start_ns)
            engines = self.runtime.engines
            self.time = SteppedTime(self.runtime)
            self._promises = (
                None
                if config.shape is None
                else Promises(
                    config,
                    self.runtime.lines(),
                    [element for engine in engines for element in engine.elements],
                    self.start_ns,
                )
            )
            self._recorder: DropRecorder | None = DropRecorder(
                self.writer if drops else None, len(config.nics), engines
            )
            undo.pop_all()

    @staticmethod
    def _refuse_same(readers: Mapping[str, CaptureReader], output: Capture) -> None:
        for reader in readers.values():
            both = (
                not isinstance(output, int)
                and os.path.exists(reader.path)
                and os.path.exists(output)
            )
            if both and os.path.samefile(reader.path, output):
                raise ConfigError(f"{reader.path}: is both input and output; write to another file")

    def run(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Runs to the end. progress: called every SLICE packets with the captures' bytes read and
        their total (0: unknown)."""
        readers = list(self.kind.readers.values())
        total = sum(reader.size for reader in readers)
        while self._run_slice():
            if progress is not None:
                progress(sum(reader.position for reader in readers), total)
        if self.writer is not None:
            self.writer.flush()
            if self._target is not None:
                self._target.complete = True

    def _run_slice(self) -> bool:
        """Runs for SLICE packets; with a policy only to the end of a window of its rates. False:
        nothing is left."""
        if self._promises is None:
            return self.time.run(SLICE) > 0
        due_ns = self.time.due_ns()
        if due_ns is not None:
            self.time.run(SLICE, self._promises.window_until(due_ns))
        return due_ns is not None

    @property
    def errors(self) -> list[str]:
        """Errors that ended a capture early; the packets before them were used."""
        return [reader.error for reader in self.kind.readers.values() if reader.error is not None]

    def results(self) -> dict[str, Any]:
        """Results: totals, per NIC and class, drops by reason, conservation."""
        status = self.runtime.status()
        stats = self.runtime.stats()
        dropped = {
            f"{element['name']}: {reason}": count
            for engine in stats["engines"]
            for element in engine["elements"]
            for reason, count in element["dropped"].items()
            if count
        }
        malformed = {
            f"{element['name']}: {reason}": count
            for engine in stats["engines"]
            for element in engine["elements"]
            if element["type"] == "Parse"
            for reason, count in element["counters"].items()
            if count
        }
        nics = []
        shared = self.kind.shared
        for name, nic in self.kind.nics.items():
            reader = self.kind.readers.get(name) if shared is None else shared.reader
            source = nic.source
            classes = {number: meter.summary() for number, meter in nic.sink.meters.items()}
            nics.append(
                {
                    "name": name,
                    "capture": reader.path if reader else None,
                    "received": _received(nic, reader),
                    "truncated": _truncated(nic, reader),
                    "out_of_order": source.out_of_order if source else 0,
                    "too_long": source.too_long if source else 0,
                    "egress_bps": self.config.nics[name].egress.rate,
                    "ingress_bps": self.config.nics[name].ingress.rate,
                    "transmitted": sum(each["packets"] for each in classes.values()),
                    "transmitted_bytes": sum(each["bytes"] for each in classes.values()),
                    "classes": classes,
                    "rates": {number: _rates(meter) for number, meter in nic.sink.meters.items()},
                }
            )
        result: dict[str, Any] = {
            "conserved": status["conserved"],
            "received": sum(reader.packets for reader in self.kind.readers.values()),
            "transmitted": sum(nic["transmitted"] for nic in nics),
            "start_ns": self.start_ns,
            "duration_ns": self.clock.now_ns - self.start_ns,
            "dropped": dict(sorted(dropped.items())),
            "dropped_rates": {}
            if self._recorder is None
            else {name: _rates(meter) for name, meter in sorted(self._recorder.meters.items())},
            "malformed": dict(sorted(malformed.items())),  # forwarded all the same
            "nics": nics,
            "errors": self.errors,
        }
        if shared is not None:
            result["unassigned"] = shared.unassigned
        if self._promises is not None:
            result["shape"] = self._promises.results(self.clock.now_ns)
        result["warnings"] = drop_warnings(result, split=shared is not None)
        if self.starts_apart_ns > ABSURD_NS:
            result["warnings"].append(span_warning(self.starts_apart_ns))
        result["warnings"] += [
            length_warning(reader.path, reader.overlong)
            for reader in dict.fromkeys(self.kind.readers.values())
            if reader.overlong
        ]
        return result

    def close(self) -> None:
        """Frees everything. After a complete `run` the output replaces its file; else that is
        unchanged. May be called twice. Raises PortError where it could not be written."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        self.runtime.close()
        for reader in self.kind.readers.values():
            reader.close()
        try:
            if self.writer is not None:
                self.writer.close()
        finally:
            if self._target is not None:
                self._target.finish()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

"""The API method History: what the worker has recorded, see recorder.py."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec

from vnic.api.method import Caller, Method, Parameters
from vnic.modules.series import Series
from vnic.runtime.recorder import PERIOD_NS, SAMPLES, Recorder

PERIOD_MS = PERIOD_NS // 1_000_000
MOST_MS = SAMPLES * PERIOD_MS
NAMES_MOST = 4096

Span = Annotated[int, msgspec.Meta(ge=PERIOD_MS, le=MOST_MS)]


class History(Parameters):
    names: Annotated[list[str], msgspec.Meta(max_length=NAMES_MOST)] | None = None
    last_ms: Span = MOST_MS
    step_ms: Span = PERIOD_MS
    alone: bool = False


def history_method(runtime: Any) -> Method:
    """Clients see the series of their own NICs."""

    def history(parameters: History, caller: Caller) -> dict[str, Any]:
        recorder: Recorder = runtime.recorder
        recorder.asked(time.monotonic_ns())
        session = caller.session
        mine = None if session.is_owner else set(runtime.nics.names(session.uid))

        def visible(series: Series) -> bool:
            return mine is None or (series.kind == "nic" and series.name in mine)

        return recorder.answer(
            parameters.names,
            last_ns=parameters.last_ms * 1_000_000,
            step_ns=parameters.step_ms * 1_000_000,
            visible=visible,
            alone=parameters.alone,
            offset_ns=time.time_ns() - time.monotonic_ns(),
        )

    return Method("History", history, History, cached=True, clients=True)

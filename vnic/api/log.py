"""The log of control: events with fields, one per line, as text or as JSON.

    log = Log("vnic")
    log.info("rate", nic="web", uid=1000)

    text   2026-11-25 10:00:00.123 INFO rate nic=web uid=1000
    json   {"time": "2026-11-25T10:00:00.123456+00:00", "level": "info", "event": "rate", ...}

A field that is None is left out. Uncaught exceptions are records too, with their traceback. In the
JSON format each line that code prints to standard output or error is a record as well, so every
line of the log can be parsed. VNIC_LOG_FORMAT ("text", "json") holds for all processes of an
instance. structlog, the usual library for such logs, imports rich: 50 ms and 6 MB in each of two
processes, while a worker that follows a crash has 200 ms for its whole start.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

FORMATS = ("text", "json")
VARIABLE = "VNIC_LOG_FORMAT"
WORD_MOST = 500
# Of uncaught exceptions: one that recurs for every batch must not displace all other lines.
UNCAUGHT_MOST = 10  # in each UNCAUGHT_S
UNCAUGHT_S = 10.0


class Log:
    """Logs events with fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, /, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, *, error: BaseException | None = None, **fields: Any) -> None:
        """error: logged with its traceback, for bugs."""
        self._log(logging.ERROR, event, fields, error)

    def _log(
        self, level: int, event: str, fields: dict[str, Any], error: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            given = {key: value for key, value in fields.items() if value is not None}
            self._logger.log(level, "%s", event, extra={"fields": given}, exc_info=error)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields, with text cut to WORD_MOST characters: clients' text may be long, and would
    displace other lines from the log."""
    found: dict[str, Any] = getattr(record, "fields", {})
    return {
        key: f"{value[:WORD_MOST]}..."
        if isinstance(value, str) and len(value) > WORD_MOST
        else value
        for key, value in found.items()
    }


class TextFormatter(logging.Formatter):
    """Text lines. prefix: instead of time and level, on a terminal."""

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        head = f"{when} {record.levelname}" if self._prefix is None else self._prefix
        line = " ".join(
            [
                head,
                record.getMessage(),
                *(f"{key}={_word(value)}" for key, value in _fields(record).items()),
            ]
        )
        return (
            line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"
        )


class JsonFormatter(logging.Formatter):
    """JSON lines: one object per line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat()
        entry = {
            "time": when,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info is not None:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _word(value: object) -> str:
    """A field's value on one line, in quotes unless it is plain: clients' text is not trusted."""
    text = str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)


class _Printed(io.TextIOBase):
    """A standard stream whose lines are records of the log."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, name: str) -> None:
        self._name, self._rest, self._lock = name, "", threading.RLock()
        self._busy = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            self._rest = rest[-WORD_MOST:]
            if self._busy:  # logging itself prints an error: it cannot write
                return len(text)
            self._busy = True
            try:
                for line in lines:
                    if line.strip():
                        Log("vnic").info("printed", stream=self._name, text=line)
            finally:
                self._busy = False
        return len(text)


class _Uncaught:
    """Logs exceptions that nothing catches, no more than UNCAUGHT_MOST in UNCAUGHT_S; the next
    record after that has the number of those left out."""

    def __init__(self) -> None:
        self._begun_s, self._count, self._left_out = -UNCAUGHT_S, 0, 0

    def log(self, error: BaseException | None, **fields: Any) -> None:
        now_s = time.monotonic()
        if now_s - self._begun_s >= UNCAUGHT_S:
            self._begun_s, self._count = now_s, 0
        self._count += 1
        if self._count > UNCAUGHT_MOST:
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out or None, 0
        exception = None if error is None else f"{type(error).__name__}: {error}"
        Log("vnic").error(
            "uncaught exception", error=error, exception=exception, **fields, unreported=left_out
        )

    def install(self) -> None:
        def in_main(kind: object, error: BaseException, traceback: object) -> None:
            self.log(error)

        sys.excepthook = in_main
        threading.excepthook = lambda args: self.log(
            args.exc_value, thread=None if args.thread is None else args.thread.name
        )
        sys.unraisablehook = lambda args: self.log(args.exc_value, where=repr(args.object))


def set_up(*, interactive: bool = False) -> None:
    """Sets up the log on standard error, in the format VNIC_LOG_FORMAT. interactive: a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = os.environ.get(VARIABLE) == "json"
    handler.setFormatter(
        JsonFormatter() if as_json else TextFormatter("vnic:" if interactive else None)
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _Uncaught().install()
    if as_json:
        sys.stdout, sys.stderr = _Printed("stdout"), _Printed("stderr")

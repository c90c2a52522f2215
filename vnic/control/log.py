"""The log of control: what happened, as an event with fields, a line each; as text for people or as JSON for programs.

    log = Log("vnic")
    log.info("rate", nic="web", uid=1000)

    text   2026-11-25 10:00:00.123 INFO rate nic=web uid=1000
    json   {"time": "2026-11-25T10:00:00.123456+00:00", "level": "info", "event": "rate", "nic": "web", "uid": 1000}

A field that is None is left out. VNIC_LOG_FORMAT ("text", "json") is for all processes of an instance. The field's own library for this,
structlog, loads rich with it: 50 ms and 6 MB in each of two processes, and a worker that follows a crash has 200 ms for everything.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

FORMATS = ("text", "json")
VARIABLE = "VNIC_LOG_FORMAT"
WORD_MOST = 500


class Log:
    """Logs events with fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, /, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, *, error: BaseException | None = None, **fields: Any) -> None:
        """`error`: with its traceback, for bugs."""
        self._log(logging.ERROR, event, fields, error)

    def _log(self, level: int, event: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            given = {key: value for key, value in fields.items() if value is not None}
            self._logger.log(level, "%s", event, extra={"fields": given}, exc_info=error)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Words of more than WORD_MOST characters cut: clients' are among them, and a few long ones would push all others out of the log."""
    found: dict[str, Any] = getattr(record, "fields", {})
    return {
        key: f"{value[:WORD_MOST]}..." if isinstance(value, str) and len(value) > WORD_MOST else value
        for key, value in found.items()
    }


class TextFormatter(logging.Formatter):
    """For people; `prefix`: instead of time and level, where they watch."""

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        head = f"{when} {record.levelname}" if self._prefix is None else self._prefix
        line = " ".join([head, record.getMessage(), *(f"{key}={_word(value)}" for key, value in _fields(record).items())])
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class JsonFormatter(logging.Formatter):
    """For programs: one object a line, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat()
        entry = {"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **_fields(record)}
        if record.exc_info is not None:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _word(value: object) -> str:
    """A field's value on one line: as it is where that is clear, in quotes otherwise. What clients send is among it."""
    text = str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)


def set_up(*, interactive: bool = False) -> None:
    """This process logs to standard error, as VNIC_LOG_FORMAT says. interactive: somebody watches."""
    handler = logging.StreamHandler()
    as_json = os.environ.get(VARIABLE) == "json"
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter("vnic:" if interactive else None))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

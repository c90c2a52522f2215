"""The log: one line an event, whatever is in its fields; text that can be read, JSON that can be parsed."""

import io
import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_command import environment, vnic  # noqa: F401 - a fixture
from vnic.control.log import WORD_MOST, JsonFormatter, Log, TextFormatter

pytestmark = pytest.mark.commands


def logged(formatter, say):
    """What `say` makes a Log write."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("vnic-test")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [handler]
    say(Log("vnic-test"))
    return stream.getvalue()


def test_text():
    line = logged(TextFormatter(), lambda log: log.info("rate", nic="web", uid=1000, why=None, text='a "b" c', nothing=""))
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO rate nic=web uid=1000 text="a \\"b\\" c" nothing=""\n', line
    )
    assert logged(TextFormatter("vnic:"), lambda log: log.warning("worker killed", pid=7)) == "vnic: worker killed pid=7\n"


def test_a_long_word_is_cut():
    """What a client calls a NIC that there is none of is in the log, but not all of it."""
    for formatter in (TextFormatter(), JsonFormatter()):
        line = logged(formatter, lambda log: log.info("SetLink", name="\u200b" * 85_000))
        assert len(line) < 6 * WORD_MOST + 200 and "..." in line


fields = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(max_size=20) | st.integers() | st.floats())


@given(st.text(max_size=20), fields)
def test_one_line_whatever_is_in_it(event, given):
    given.pop("error", None)
    text = logged(TextFormatter("vnic:"), lambda log: log.error(event.replace("\n", " "), **given))
    assert all(ord(character) >= 32 or character == "\n" for character in text[len(f"vnic: {event}") :])
    assert text.count("\n") == 1 + event.replace("\n", " ").count("\n")
    line = logged(JsonFormatter(), lambda log: log.error(event, **given))
    assert line.count("\n") == 1
    entry = json.loads(line)
    if not {"time", "level", "event"} & set(given):
        assert entry["event"] == event and entry["level"] == "error"
    assert {key: str(entry[key]) for key in given} == {key: str(value) for key, value in given.items()}


def test_a_bug_comes_with_its_traceback():
    def say(log):
        try:
            raise ZeroDivisionError("on purpose")
        except ZeroDivisionError as error:
            log.error("Attach", error=error)

    assert "on purpose" in json.loads(logged(JsonFormatter(), say))["traceback"]
    assert "ZeroDivisionError: on purpose" in logged(TextFormatter(), say)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_an_instance_s_log_as_json(environment, tmp_path, how):  # noqa: F811
    (tmp_path / "net.yaml").write_text("{}")
    options = ["--log-format", "json"] if how == "option" else []
    vnic({**environment, **({} if options else {"VNIC_LOG_FORMAT": "json"})}, "up", "-d", *options, str(tmp_path / "net.yaml"))
    try:
        vnic(environment, "group", "default", "--mode", "compacting")
        vnic(environment, "detach", "nobody", status=2)
        vnic(environment, "upgrade")
    finally:
        vnic(environment, "down")
    entries = [json.loads(line) for line in (tmp_path / "default.log").read_text().splitlines()]
    by_event = {entry["event"]: entry for entry in entries}
    assert by_event["SetGroup"]["name"] == "default"
    assert "is not attached" in by_event["Detach"]["refused"] and by_event["Detach"]["pid"] > 0
    assert by_event["worker took over"]["before"] != by_event["worker took over"]["pid"]
    assert [entry["level"] for entry in entries] == ["info"] * len(entries)

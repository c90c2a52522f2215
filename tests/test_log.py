"""The log: one line per event, with any content of fields; readable text, valid JSON."""

import io
import json
import logging
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.containers import Container
from tests.test_command import TREE, environment, ping, vnic, write_config  # noqa: F401 - a fixture
from vnic.api.log import UNCAUGHT_MOST, WORD_MOST, JsonFormatter, Log, TextFormatter

pytestmark = pytest.mark.commands


def logged(formatter, say):
    """The output of a Log when `say` is called."""
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
    """The log has only the beginning of a client's long name for a NIC that does not exist."""
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


PROGRAM = """
import sys, threading
from vnic.api.log import set_up
set_up()
print("printed to stdout")
print("to stderr, and", end=" ", file=sys.stderr)
print("its end\\n\\nanother line", file=sys.stderr)
for number in range(30):
    thread = threading.Thread(target=lambda: 1 / 0, name="counter")
    thread.start()
    thread.join()
class Ends:
    def __del__(self):
        raise KeyError("ignored")
Ends()
raise ValueError("the last word")
"""


def said(form):
    """Lines of standard output and error of a process that prints and fails in all ways."""
    given = {**os.environ, "VNIC_LOG_FORMAT": form, "PYTHONPATH": str(TREE)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_whatever_is_printed_is_a_record():
    out, lines = said("json")
    entries = [json.loads(line) for line in lines]
    assert out == []
    printed = [(entry["stream"], entry["text"]) for entry in entries if entry["event"] == "printed"]
    assert printed == [("stdout", "printed to stdout"), ("stderr", "to stderr, and its end"), ("stderr", "another line")]
    uncaught = [entry for entry in entries if entry["event"] == "uncaught exception"]
    assert len(uncaught) == UNCAUGHT_MOST  # of 32
    assert uncaught[0]["exception"] == "ZeroDivisionError: division by zero" and uncaught[0]["thread"] == "counter"
    assert all("Traceback" in entry["traceback"] and entry["time"] for entry in uncaught)


def test_text_says_when_an_exception_was():
    out, lines = said("text")
    assert out == ["printed to stdout"] and lines[0] == "to stderr, and its end"
    heads = [line for line in lines if "uncaught exception" in line]
    assert len(heads) == UNCAUGHT_MOST
    assert re.match(
        r'\d{4}-\d\d-\d\d [\d:.]+ ERROR uncaught exception exception="ZeroDivisionError: division by zero"', heads[0]
    )


FAILING = """
from dataplane.graph.element import PyElement
class Bad(PyElement):
    def process(self, batch):
        print("a word of its own")
        raise RuntimeError("on purpose")
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_failing_element_is_one_record(environment, tmp_path, form):  # noqa: F811
    """With its name, the exception and the traceback; and no more than one for many batches."""
    (tmp_path / "bad.py").write_text(FAILING)
    with Container() as a, Container() as b:
        config = json.loads(open(write_config(tmp_path / "net.yaml", a=a, b=b)).read())
        config["nics"]["a"].setdefault("egress", {})["elements"] = [{"element": "bad:Bad"}]
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        vnic(environment, "up", "-d", "--log-format", form, str(tmp_path / "net.yaml"))
        try:
            name = next(each for each in json.loads(vnic(environment, "handler", "--json")) if "bad" in each.lower())
            for _ in range(20):  # each sends ARP requests, which are not answered
                ping(a, "10.99.0.2", check=False)
                stats = json.loads(vnic(environment, "stats", "a", "--json"))["engines"][0]["elements"]
                if (dropped := next(each for each in stats if each["name"] == name)["dropped"]["exception"]) > 1:
                    break
            assert dropped > 1
        finally:
            vnic(environment, "down")
    text = (tmp_path / "default.log").read_text()
    # the exception, and the end of the traceback
    assert text.count("RuntimeError: on purpose") == 2
    if form == "text":
        (head,) = (line for line in text.splitlines() if "element failed" in line)
        assert f"ERROR element failed element={name} " in head and re.match(r"\d{4}-\d\d-\d\d ", head)
        return
    entries = [json.loads(line) for line in text.splitlines()]
    (failed,) = (entry for entry in entries if entry["event"] == "element failed")
    assert failed["element"] == name and failed["exception"] == "RuntimeError: on purpose" and "bad.py" in failed["traceback"]
    assert {"printed", "element failed"} <= {entry["event"] for entry in entries}


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

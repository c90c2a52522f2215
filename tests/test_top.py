"""`vnic top`: rows, what keys do, what is drawn; and in a terminal, which it leaves as it was."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_history_live import net  # noqa: F401 - a fixture
from tests.test_plot import FakeClient
from tests.test_recorder import NICS, POLICY, Recorded, frame
from tests.test_shape_live import until
from tests.tools import need
from vnic.api.client import Client
from vnic.cli import top
from vnic.cli.main import cli
from vnic.cli.top_rows import KINDS, SORTS, Row, add_past, ordered, rows_now
from vnic.cli.top_view import HELP, KEYS, LEAST, View, past_columns, short, table, text_of

TREE = Path(__file__).parents[1]
ROWS = [
    Row("line", "web -> db", 9e6, None, 1e7, 900, 20_000, 12.0, 3.0, 1.0, "rate 10mbit", [1e6, 5e6, 1e7]),
    Row("line", "db -> any", 1e6, packets=90, delay_ms=0.05, asked="loss 1%"),
    Row("class", "web.egress/gold", 2e6, packets=300, past_bps=[1.0, 2.0]),
    Row("nic", "web", 9e6, 1e6, packets=1000, queue_bytes=5, delay_ms=1500.0, past_bps=[0.0, 3.0]),
    Row("nic", "db", 1e6, 8e6, packets=950),
]


@pytest.fixture
def busy():
    """The recorder of a network whose lines are busy."""
    recorded = Recorded(NICS)
    recorded.net.shape(POLICY)
    recorded.take()
    recorded.net.send("web", [frame(1, 2, 600)] * 200, gap="5ms")
    recorded.go_on(10)
    yield FakeClient(recorded.recorder)
    recorded.net.run()
    recorded.net.close()


# -- rows ------------------------------------------------------------------------------------------


def test_rows_are_the_last_second(busy):
    rows = {row.key: row for row in rows_now(busy)}
    assert [key[0] for key in rows] == ["line", "line", "nic", "nic", "nic"]
    web, db, line = rows["nic", "web"], rows["nic", "db"], rows["line", "web -> any"]
    assert web.rate_bps == pytest.approx(960_000, rel=0.02) and web.in_bps == 0.0
    assert db.rate_bps == 0 < db.in_bps < 800_000
    assert line.rate_bps == pytest.approx(800_000, rel=0.02) and line.limit_bps == 800_000
    assert line.drops > 0 < line.lost and 0 < line.delay_ms < 80 and line.asked.startswith("rate 800kbit")
    assert rows["line", "web -> db"].limit_bps is None and rows["nic", "cam"].in_bps == 0.0
    found = [web, line]
    add_past(busy, found, 20)
    assert all(0 < len(row.past_bps) <= 20 and max(row.past_bps) > 0 for row in found)
    assert busy.calls[-1]["names"] == ["web", "web -> any"] and busy.calls[-1]["step_ms"] == 3000
    add_past(busy, [], 20)
    add_past(busy, found, 0)


@pytest.mark.parametrize("sort", SORTS)
def test_rows_are_sorted_within_their_kind(sort):
    for reverse in (False, True):
        found = ordered(ROWS, sort, reverse=reverse)
        assert [row.kind for row in found] == sorted((row.kind for row in ROWS), key=KINDS.index)
        lines = [row.name for row in found if row.kind == "line"]
        by_name = sort == "name"
        assert lines == (["db -> any", "web -> db"] if by_name != reverse else ["web -> db", "db -> any"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0"), (7, "7"), (0.5, "0.5"), (0.016, "0.02"), (0.001, "0"), (1.25, "1.25"),
        (999, "999"), (999.6, "1k"), (1234, "1.23k"), (9_984_000, "9.98M"), (123e9, "123G"), (5e15, "5e+03T"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert short(value) == text


@given(st.floats(0, 1e15))
def test_numbers_fit_their_column(value):
    assert len(short(value)) <= 6


# -- keys ------------------------------------------------------------------------------------------


def pressed(*keys: str, **view: Any) -> View:
    found = View(rows=list(ROWS), **view)
    for key in keys:
        found.press(key)
    return found


def test_keys_of_the_table():
    assert View().press("q") == "quit" and View().press("x") == ""
    assert pressed("p").paused and not pressed("p", " ").paused
    assert pressed("s").sort == "packets" and pressed(*"ssssss").sort == "rate" and pressed("r").reverse
    assert [row.kind for row in pressed("tab").shown()] == ["line", "line"]
    assert [row.kind for row in pressed("tab", "tab").shown()] == ["class"]
    assert len(pressed(*["tab"] * 4).shown()) == 5


def test_a_filter_is_typed():
    view = pressed("/", "d", "B")
    assert [row.name for row in view.shown()] == ["web -> db", "db -> any", "db"]
    assert view.draw(80, 24)[-1][0].text == "show names with: dB_"
    view.press("backspace")
    view.press("enter")
    assert view.filter == "d" and view.mode == ""
    assert view.press("q") == "quit"
    view.press("esc")
    assert view.filter == ""
    assert pressed("/", "w", "esc").filter == "" and pressed("/", *"x" * 99).filter == "x" * 60
    assert "nothing to show" in text_of(pressed("/", *"absent").draw(80, 24))


def test_rows_are_selected_and_scrolled():
    view = pressed("down")
    assert view.selected == ("line", "web -> db")
    for key, name in (
        ("j", "db -> any"),
        ("end", "db"),
        ("down", "db"),
        ("k", "web"),
        ("home", "web -> db"),
        ("up", "web -> db"),
    ):
        view.press(key)
        assert view.selected is not None and view.selected[1] == name, key
    many = View(rows=[Row("nic", f"n{number:02}") for number in range(60)], sort="name")
    for key, first in (("down", "n00"), ("pgdn", "n00"), ("pgdn", "n15"), ("end", "n40"), ("home", "n00")):
        many.press(key)
        shown = [row.name for row in many.visible(24)]
        assert len(shown) == 20 and many.selected is not None and many.selected[1] in shown
    many.rows = many.rows[:3]
    assert [row.name for row in many.visible(24)] == ["n00", "n01", "n02"]
    assert many.selected is not None
    many.rows = []
    many.press("down")
    assert many.visible(24) == []


def test_a_rate_is_typed_for_a_line_or_a_nic():
    view = pressed("down", "e", *"5mbit")
    assert "rate of web -> db, such as 10mbit or none: 5mbit_" in text_of(view.draw(80, 24))
    assert view.press("enter") == "rate" and view.line == "web -> db" and view.typed == "5mbit"
    view = pressed("end", "enter", "1")
    assert view.mode == "rate" and view.line == "db -> any"
    view.press("esc")
    assert view.mode == ""
    assert pressed("down", "e").press("enter") == ""  # nothing was typed
    for keys in ((), ("down", "j", "j")):
        view = pressed(*keys, "e")
        assert view.mode == "" and "select a line or a NIC first" in view.message
    # a selected row that the filter, or the view, hides is not changed
    for keys in (("/", *"nowhere", "enter"), ("tab", "tab")):
        view = pressed("down", *keys, "e")
        assert view.mode == "" and "select a line or a NIC first" in view.message


# -- the picture -----------------------------------------------------------------------------------


def test_a_screen_of_80_by_24():
    view = View(rows=list(ROWS), clock="10:00:00", instance="lab")
    lines = text_of(view.draw(80, 24)).splitlines()
    assert lines[0] == "vnic top, lab  10:00:00  by rate  2 lines  1 classes  2 NICs"
    assert lines[1].split() == ["LINE", "*BIT/S", "ASKED", "PKT/S", "QUEUE", "DELAY", "DROP/S", "last", "60", "s"]
    assert lines[2].split() == ["web", "->", "db", "9M", "10M", "900", "20k", "12ms", "3", "▁▄█"]
    assert lines[3].split() == ["db", "->", "any", "1M", "-", "90", "0", "50us", "0"]
    assert lines[9].split()[:8] == ["web", "9M", "1M", "1k", "5", "1.5s", "0", "█"]
    assert lines[-1] == KEYS and len(lines) == 24
    view.paused, view.filter, view.reverse = True, "w", True
    assert "PAUSED  by rate, reversed  filter 'w'  2 lines" in text_of(view.draw(80, 24))
    view.press("?")
    assert HELP[0] in text_of(view.draw(80, 24)) and all(len(line) <= 79 for line in HELP)
    view.press("x")
    assert view.mode == ""


@settings(deadline=None)
@given(st.integers(1, 240), st.integers(1, 60), st.lists(st.sampled_from([*"sr/pe?jx", "tab", "down", "end"]), max_size=6))
def test_every_screen_fits(width, height, keys):
    view = View(rows=[*ROWS, Row("line", "x" * 32 + " -> " + "y" * 32, past_bps=[1.0] * 200)])
    view.message = "m" * 300
    for key in keys:
        view.press(key)
    for blocks in (True, False):
        lines = view.draw(width, height, blocks=blocks)
        assert len(lines) <= height and all(len("".join(part.text for part in line)) <= width for line in lines)
        assert len(lines) == height or (width < LEAST[0] or height < LEAST[1])


def test_drops_alarm_and_the_selected_row_is_marked():
    line = table(ROWS[:1], 100)[1]
    assert [part.style for part in line if part.text.strip() == "3"] == ["alarm"]
    line = table(ROWS[:1], 100, selected=("line", "web -> db"))[1]
    assert {part.style for part in line} == {"reverse"}
    assert past_columns(80) == 17 and past_columns(20) == 1


# -- for programs ----------------------------------------------------------------------------------


def invoke(*words: str) -> Any:
    return CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["top", *words])


def test_once_and_batch(busy, monkeypatch):
    monkeypatch.setattr(top, "connect", lambda instance: busy)
    done = invoke("--once")
    assert done.exit_code == 0 and "\033" not in done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert done.output.index("web -> any") < done.output.index("NIC  ") < done.output.index("cam")
    twice = invoke("-b", "-n", "2", "-d", "100ms", "--filter", "web", "--sort", "name")
    assert twice.output.count("web -> any") == 2 and "cam" not in twice.output
    found = json.loads(invoke("--once", "--json").output)
    assert [row["kind"] for row in found["rows"]] == ["line", "line", "nic", "nic", "nic"]
    assert found["rows"][0]["limit_bps"] == 800_000 and found["rows"][0]["drops"] > 0
    lines = invoke("-b", "-n", "3", "-d", "100ms", "--json").output.splitlines()
    assert [len(json.loads(line)["rows"]) for line in lines] == [5, 5, 5]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "is not in a terminal: use --once, --batch or --json"),
        (["-n", "2"], "--count needs --batch"),
        (["-d", "5"], "has no unit"),
        (["-d", "1ms"], "expected 100ms to 1h"),
        (["--sort", "size"], "'size' is not one of"),
    ],
)
def test_mistakes_are_one_line(words, says):
    done = invoke(*words)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1


# -- in a terminal ---------------------------------------------------------------------------------


class Terminal:
    """A tmux of its own, in which a shell runs a command and then says how it ended."""

    def __init__(self, directory: Path, columns: int = 80, lines: int = 24) -> None:
        self._words = [need("tmux"), "-S", str(directory / "tmux"), "-f", "/dev/null"]
        self._runs = 0
        self.do("new-session", "-d", "-x", str(columns), "-y", str(lines), "-s", "t", "env PS1=ready: sh")
        until(lambda: "ready:" in self.shown())

    def do(self, *words: str) -> str:
        return subprocess.run([*self._words, *words], check=True, capture_output=True, text=True).stdout

    def shown(self) -> str:
        return self.do("capture-pane", "-p", "-t", "t")

    def press(self, *keys: str) -> None:
        self.do("send-keys", "-t", "t", *keys)

    def run(self, command: str, **environment: str) -> None:
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        self._runs += 1
        self.press("-l", f"clear; stty -g >before; {words} {command}; echo end {self._runs}: $?; stty -g >after")
        self.press("Enter")

    def ask(self, what: str) -> str:
        return self.do("display-message", "-p", "-t", "t", what).strip()

    def ended(self, status: int) -> None:
        """The command has ended so, and the terminal is as before."""
        until(lambda: f"end {self._runs}: {status}\n" in self.shown())
        assert self.ask("#{alternate_on} #{cursor_flag} #{keypad_flag}") == "0 1 0"

    def close(self) -> None:
        self.do("kill-server")


@pytest.fixture
def terminal(tmp_path, monkeypatch):
    (tmp_path / "tmux-place").mkdir()
    monkeypatch.chdir(tmp_path / "tmux-place")
    made = Terminal(tmp_path)
    yield made
    made.close()
    for name in ("before", "after"):
        assert (tmp_path / "tmux-place" / name).read_text()
    assert (tmp_path / "tmux-place/before").read_text() == (tmp_path / "tmux-place/after").read_text()


def rate_of(client: Client, line: str) -> int | None:
    found = client.call("History", last_ms=100)["series"]
    return next((each.get("rate_bps") for each in found if each["name"] == line), None)


def children_of(pid: str) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.commands
def test_in_a_terminal(net, terminal):  # noqa: F811
    net.shape("version: 1\nlinks: {a -> b: {rate: 1mbit}, b -> any: {delay: 1ms}}")
    command = f"{shlex.quote(sys.executable)} -m vnic.cli.main top -i {net.instance}"
    environment = {"VNIC_RUNTIME_DIR": os.environ["VNIC_RUNTIME_DIR"], "PYTHONPATH": str(TREE), "LC_ALL": "C.UTF-8"}
    terminal.run(command, **environment)
    until(lambda: "a -> b" in terminal.shown() and "? help" in terminal.shown())
    lines = terminal.shown().splitlines()
    assert len(lines) == 24 and max(map(len, lines)) <= 80 and terminal.ask("#{alternate_on}") == "1"
    terminal.press("s", "/", "b", "Enter")
    until(lambda: "by packets  filter 'b'" in terminal.shown())
    # the rate of the selected line, while packets flow
    terminal.press("/", "BSpace", "Enter", "Tab")
    terminal.press("-l", "/a -> b")
    terminal.press("Enter", "Down", "e")
    until(lambda: "rate of a -> b, such as" in terminal.shown())
    terminal.press("-l", "3mbit")
    terminal.press("Enter")
    until(lambda: "a -> b: 1 change made" in terminal.shown())
    until(lambda: rate_of(net.client, "a -> b") == 3_000_000)
    terminal.press("e")
    terminal.press("-l", "3mbps")
    terminal.press("Enter")
    until(lambda: "error:" in terminal.shown() and "mbps" in terminal.shown())
    assert rate_of(net.client, "a -> b") == 3_000_000
    terminal.do("resize-window", "-t", "t", "-x", "40", "-y", "10")
    until(lambda: len(terminal.shown().splitlines()) == 10 and "LINE" in terminal.shown())
    terminal.do("resize-window", "-t", "t", "-x", "120", "-y", "30")
    until(lambda: "last 60 s" in terminal.shown())
    terminal.press("q")
    terminal.ended(0)
    # Ctrl-C, a signal, and an instance that has gone
    terminal.run(command, **environment)
    until(lambda: "? help" in terminal.shown())
    terminal.press("C-c")
    terminal.ended(130)
    terminal.run(command, **environment)
    until(lambda: "? help" in terminal.shown())
    [running] = [pid for pid in children_of(terminal.ask("#{pane_pid}")) if b"top" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(running, signal.SIGTERM)
    terminal.ended(143)
    terminal.run(command.replace(net.instance, "absent"), **environment)
    terminal.ended(1)
    assert "instance absent does not run" in terminal.shown()
    terminal.run(command, **{**environment, "TERM": "nonsense"})
    terminal.ended(2)
    assert "this terminal cannot do it" in terminal.shown()
    # a worker that is replaced after a crash
    terminal.run(command, **environment)
    until(lambda: "? help" in terminal.shown())
    with Client(net.instance) as client:
        os.kill(client.call("Status")["status"]["pid"], signal.SIGKILL)
    until(lambda: "instance " in terminal.shown())
    with Client(net.instance) as client:
        client.call("SetRate", name="b", egress="7mbit")
    terminal.press("s")
    until(lambda: "by packets" in terminal.shown() and "? help" in terminal.shown() and "a -> b" in terminal.shown())
    terminal.press("q")
    terminal.ended(0)

"""Plots of what was recorded: axes, text, SVG and pages, and the command."""

from __future__ import annotations

import json
import os
import stat
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from shaping.policy.load import parse_policy, policy_data
from tests.test_recorder import POLICY, Recorded, frame
from vnic.cli import shape_plot
from vnic.cli.curves import MARKS_MOST, Curve, describe, names_of
from vnic.cli.curves import Recorded as Curves
from vnic.cli.main import cli
from vnic.cli.plot_svg import added_up, by_second, draw_page, draw_svg, legend_rows
from vnic.cli.plot_text import BLOCKS, PLAIN, SIDE, draw_text, resampled, sparkline
from vnic.cli.scale import scale_to, time_ticks

SVG = "{http://www.w3.org/2000/svg}"


class FakeClient:
    """Answers as an instance would whose recorder this is."""

    def __init__(self, recorder: Any) -> None:
        self.recorder, self.calls = recorder, []
        self.status: dict[str, Any] = {"policy": None, "scenario": None}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.calls.append(parameters)
        if method == "ShapeStatus":
            return {"status": self.status}
        names, last, step = (parameters.get(key) for key in ("names", "last_ms", "step_ms"))
        return self.recorder.answer(
            names, last_ns=(last or 60_000) * 10**6, step_ns=(step or 100) * 10**6, alone=parameters.get("alone", False)
        )

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def client(monkeypatch):
    """Of a network with a policy, whose lines were busy for a second."""
    recorded = Recorded()
    recorded.net.shape(POLICY)
    for _ in range(10):
        recorded.net.send("web", [frame(1, 2, 600)] * 40, gap="2ms")
        recorded.go_on()
    recorded.net.run()
    made = FakeClient(recorded.recorder)
    monkeypatch.setattr(shape_plot, "connect", lambda instance: made)
    yield made
    recorded.net.close()


def plot(*words: str, **environment: str) -> Any:
    return CliRunner(env={"COLUMNS": "80", **environment}).invoke(cli, ["shape", "plot", *words])


def curve(name: str = "web -> any", **changed: Any) -> Curve:
    found = {
        "name": name, "kind": "line", "way": "", "asked": "rate 10mbit", "limit_bps": 10_000_000, "ended": None,
        "rate_bps": [8e6, 0.0, 9e6, 1e7], "packets": [1.0] * 4, "queue_bytes": [0] * 4,
        "delay_ms": [1.0, None, 3.0, 50.0], "drops": [0.0, 0.0, 30.0, 20.0], "lost": [0.0] * 4, "octets": 337_500,
    }  # fmt: skip
    return Curve(**{**found, **changed})


BOUNDS = [100.0, 100.1, 100.2, 100.3, 100.4]


# -- axes ------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e13), st.integers(1, 8))
def test_an_axis_has_whole_ticks_up_to_the_highest_value(most, ticks):
    scale = scale_to(most, "bit/s", ticks=ticks)
    assert scale.most >= most * (1 - 1e-6) and scale.most <= most * 2.51 + scale.step
    assert scale.ticks[0] == 0 and scale.ticks[-1] == pytest.approx(scale.most)
    assert 1 <= len(scale.ticks) - 1 <= ticks + 1
    assert float(scale.text(scale.most)) * scale.divisor == pytest.approx(scale.most, rel=0.01)
    assert float(scale.text(scale.most)) < 1000 or scale.unit == "Tbit/s"


@pytest.mark.parametrize(
    ("most", "ticks", "unit"),
    [
        (10e6, ["0", "2.5", "5", "7.5", "10"], "Mbit/s"),
        (1, ["0", "0.25", "0.5", "0.75", "1"], "bit/s"),
        (0, ["0", "0.25", "0.5", "0.75", "1"], "bit/s"),
        (float("nan"), ["0", "0.25", "0.5", "0.75", "1"], "bit/s"),
        (1100, ["0", "0.5", "1", "1.5"], "kbit/s"),
    ],
)
def test_ticks(most, ticks, unit):
    scale = scale_to(most, "bit/s")
    assert [scale.text(each) for each in scale.ticks] == ticks and scale.unit == unit


@given(st.floats(0, 2e9), st.floats(0.1, 60), st.integers(1, 20))
def test_times_are_whole_seconds_within_the_plot(begin, span, most):
    found = time_ticks(begin, begin + span, most)
    assert len(found) <= most and all(begin <= each <= begin + span and each == int(each) for each in found)
    assert len({b - a for a, b in pairwise(found)}) <= 1


# -- sums over time --------------------------------------------------------------------------------

intervals = st.lists(st.tuples(st.floats(0.05, 1.5), st.floats(0, 1e6)), min_size=1, max_size=40)


@settings(deadline=None)
@given(intervals, st.integers(1, 100))
def test_columns_have_the_mean_of_their_time(rows, columns):
    bounds = [0.0]
    for long, _ in rows:
        bounds.append(bounds[-1] + long)
    values = [value for _, value in rows]
    found = resampled(values, bounds, columns)
    assert len(found) == columns and None not in found
    whole = sum(long * value for long, value in rows)
    assert sum(found) * bounds[-1] / columns == pytest.approx(whole, rel=1e-6, abs=1e-6)
    seconds, groups = by_second(bounds)
    added = added_up(values, bounds, groups)
    assert sum(rate * (b - a) for rate, (a, b) in zip(added, pairwise(seconds), strict=True)) == pytest.approx(whole)


def test_what_was_not_measured_is_left_out():
    assert resampled([None, 4.0], [0, 1, 2], 4) == [None, None, 4.0, 4.0]
    assert resampled([2.0, None], [0, 1, 2], 1) == [2.0]


# -- text ------------------------------------------------------------------------------------------


def test_a_sparkline():
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 1, 4, 8], highest=16) == " ▁▂▄"
    assert sparkline([None, 8], highest=4) == " █" and sparkline([]) == "" and sparkline([0.0]) == " "
    assert sparkline([0, 0.001, 4, 8], blocks=False) == " .=#"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_text_fits_the_terminal(width, count):
    text = draw_text(Curves(BOUNDS, [curve(lost=[1.0] * 4)] * count), width)
    assert max(map(len, text.splitlines())) <= max(width, SIDE + 10)
    assert text.count("web -> any") == text.count("rate   ") == text.count("delay  ") == count
    plain = draw_text(Curves(BOUNDS, [curve()] * count), width, blocks=False)
    assert plain.isascii() and not set(BLOCKS[1:]) & set(plain)


def test_a_chart_of_one_curve():
    text = draw_text(Curves(BOUNDS, [curve()]), SIDE + 12)
    lines = text.splitlines()
    assert lines[0] == "web -> any  rate 10mbit"
    assert lines[1:7] == [
        "rate    10 Mbit/s│      ▃▃▃███",
        "                 │▆▆▆   ██████",
        "                 │███   ██████",
        "                 │███   ██████",
        "                 │███   ██████",
        "                0│███   ██████",
    ]
    assert lines[12] == "                0│▁▁▁···▂▂▂███"
    assert len(lines) == 20 and "lost" not in text
    silent = draw_text(Curves(BOUNDS, [curve(rate_bps=[0.0] * 4, delay_ms=[None] * 4, drops=[0.0] * 4)]), 80)
    assert len(silent.splitlines()) == 5  # one row each where nothing is above 0
    coloured = draw_text(Curves(BOUNDS, [curve()]), SIDE + 12, colours=True)
    assert "\033[36m" in coloured and "\033" not in text


# -- pictures --------------------------------------------------------------------------------------


def paths(svg: str) -> list[str]:
    return [each.get("d", "") for each in ElementTree.fromstring(svg).iter(f"{SVG}path")]


def test_a_picture_has_axes_units_and_a_legend():
    svg = draw_svg(Curves(BOUNDS, [curve(), curve("db -> any", lost=[10.0] * 4)]), "two lines")
    root = ElementTree.fromstring(svg)
    texts = [each.text for each in root.iter(f"{SVG}text")]
    for wanted in ("two lines", "Rate, Mbit/s (dashed: asked for)", "Delay in queues, ms", "web -> any", "db -> any",
                   "Drops, packets/s (dotted: lost, as asked)", "rate 10mbit", "10", "60"):  # fmt: skip
        assert wanted in texts, wanted
    # rate and drops in one piece each, delay in two; the losses of one
    assert len(paths(svg)) == 2 * (1 + 2 + 1) + 1
    dashed = [each for each in root.iter(f"{SVG}line") if each.get("stroke-dasharray")]
    assert len(dashed) == 2 and "prefers-color-scheme: dark" in svg
    assert all(each.get("fill") or each.get("stroke") for each in root.iter() if each.get("class"))


def test_a_rate_far_above_what_there_was_does_not_flatten_it():
    svg = draw_svg(Curves(BOUNDS, [curve(limit_bps=10**9)]), "one")
    assert "dashed: asked for" not in svg and "Rate, Mbit/s" in svg


def test_a_single_curve_is_filled_and_one_that_is_gone_says_so():
    svg = draw_svg(Curves(BOUNDS, [curve(ended=100.2)]), "one")
    assert svg.count("fill-opacity") == 4 and "web -&gt; any (gone)" in svg


def test_names_are_text_also_in_a_page():
    name = "<script>alert('&')</script>"
    page = draw_page(Curves(BOUNDS, [curve(name, asked="a<b&c")]), name)
    assert "<script" not in page and "a&lt;b&amp;c" in page
    svg = draw_svg(Curves(BOUNDS, [curve(name)]), name)
    assert name in [each.text for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_page_loads_nothing():
    page = draw_page(Curves(BOUNDS, [curve(), curve("db -> any", delay_ms=[None] * 4)]), "lines")
    assert page.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    assert "<script" not in page and "src=" not in page and "@import" not in page
    assert page.count("<td>") == 16 and "<td>6.75 Mbit/s</td>" in page and "<td>10 Mbit/s</td>" in page
    assert "<td>50 ms</td>" in page and "<td>5</td>" in page


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("web", ["web"]),
        ("web -> db", ["web -> db"]),
        ("web  <->  db", ["web -> db", "db -> web"]),
        ("web <-> cam", ["web <-> cam"]),
        ("lan--dmz", ["lan--dmz -> dmz", "lan--dmz -> lan"]),
        ("absent", ["absent"]),
    ],
)
def test_what_a_name_stands_for(name, names):
    known = ["web", "db", "web -> db", "db -> web", "lan--dmz -> dmz", "lan--dmz -> lan"]
    assert names_of(name, [{"name": each} for each in known]) == names


# -- the command -----------------------------------------------------------------------------------


def test_the_lines_of_the_policy_are_shown(client):
    done = plot()
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 80 and "\033" not in done.output
    assert lines[0].startswith("web -> any  rate 800kbit") and any(each.startswith("web -> db  delay") for each in lines)
    assert not any(each.startswith("web egress") for each in lines)
    one = plot("web -> any").output
    assert "web -> db" not in one and "lost" in one and "drops" in one
    nic = plot("web").output
    assert "web egress" in nic and "web ingress" in nic and "->" not in nic


def test_json_has_the_numbers_in_units(client):
    found = json.loads(plot("web -> any", "--json", "--last", "1s").output)
    [line] = found["curves"]
    assert len(found["times"]) == 10 == len(line["rate_bps"])
    assert max(line["rate_bps"]) == pytest.approx(800_000, rel=0.1) and line["limit_bps"] == 800_000
    assert 0 < max(each for each in line["delay_ms"] if each is not None) < 70
    assert client.calls[-2] == {"names": ["web -> any"], "last_ms": 1000, "step_ms": 100} and found["steps"] == []


def test_files(client, tmp_path):
    for kind in ("svg", "html"):
        path = tmp_path / f"lines.{kind}"
        path.write_text("before")
        done = plot("-o", str(path))
        assert done.exit_code == 0 and done.output == f"{path}\n"
        assert "web -&gt; any" in path.read_text()
    ElementTree.parse(tmp_path / "lines.svg")
    assert sorted(os.listdir(tmp_path)) == ["lines.html", "lines.svg"]


def test_a_png_by_a_program_of_the_machine(client, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    done = plot("-o", str(tmp_path / "x.png"))
    assert done.exit_code == 2 and "rsvg-convert (package librsvg2-bin)" in done.stderr
    program = programs / "rsvg-convert"
    program.write_text('#!/bin/sh\n[ "$1" = --output ] || exit 3\n/bin/cp "$3" "$2"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    done = plot("-o", str(tmp_path / "x.png"))
    assert done.exit_code == 0, done.output
    ElementTree.parse(tmp_path / "x.png")
    program.write_text("#!/bin/sh\necho 'it is broken' >&2\nexit 1\n")
    (tmp_path / "x.png").write_text("before")
    done = plot("-o", str(tmp_path / "x.png"))
    assert done.exit_code == 1 and "rsvg-convert makes no PNG: it is broken" in done.stderr
    assert (tmp_path / "x.png").read_text() == "before" and sorted(os.listdir(tmp_path)) == ["bin", "x.png"]


@pytest.mark.parametrize(
    ("words", "says", "status"),
    [
        (["--last", "10"], "has no unit", 2),
        (["--last", "100ms"], "expected 1s to 60s", 2),
        (["--last", "61s"], "expected 1s to 60s", 2),
        (["-o", "x.pdf"], "expected a name that ends in .svg, .png, .html", 2),
        (["-o", "x"], "expected a name that ends in", 2),
        (["-o", "/nonexistent/x.svg"], "/nonexistent/x.svg: No such file or directory", 1),
        (["wep"], "there is no NIC, line or class wep; did you mean 'web'", 2),
    ],
)
def test_mistakes_are_one_line(client, words, says, status):
    done = plot(*words)
    assert done.exit_code == status and says in done.stderr and done.stderr.count("\n") == 1


def test_many_curves_are_the_busiest(client, monkeypatch):
    monkeypatch.setattr("vnic.cli.plot_svg.CURVES_MOST", 1)
    done = plot()
    assert "web -> any" in done.stdout and "web -> db" not in done.stdout
    assert done.stderr == "1 more had less traffic: name those to see\n"


SCENARIO = """\
version: 1
links:
  web -> any: {rate: 800kbit}
classes:
  web.egress: {rate: 4mbit, default: rest, tree: {calls: {match: {dscp: ef}, guarantee: 1mbit, ceiling: 2mbit}, rest: {}}}
scenario:
  - {at: 1s, set: {web -> any: {loss: 5%}}}
  - {at: 2s, ramp: {web -> any: {rate: 1mbit}}, over: 1s}
"""


def described(policy: str, elapsed_s: float, last_s: float, *curves: Curve, now: float = 1e6, monkeypatch: Any) -> Curves:
    """What describe adds to a picture of the last seconds."""
    monkeypatch.setattr("time.time", lambda: now)
    found = Curves([now - last_s, now], list(curves))
    network = {"nics": {"web": "", "db": ""}, "links": {}, "absent": [], "pool": 16384}
    scenario = {"elapsed_ns": int(elapsed_s * 1e9)}
    status = {"policy": policy_data(parse_policy(policy)), "scenario": scenario, "network": network}
    describe(found, status)
    return found


def test_steps_of_a_scenario_are_marked(monkeypatch):
    def marks(elapsed_s: float, last_s: float, more: str = "") -> list[tuple[float, int]]:
        found = described(SCENARIO + more, elapsed_s, last_s, monkeypatch=monkeypatch)
        return [(round(each.at - 1e6 + elapsed_s, 3), each.number) for each in found.marks]

    assert marks(1.5, 10) == [(1, 1)] and marks(2.5, 10) == [(1, 1), (2, 2)] and marks(2.5, 1) == [(2, 2)]
    assert marks(30, 10) == [] and marks(0.5, 10) == []
    again = "  - {at: 3s, repeat: yes}\n"
    assert marks(7.5, 5, again) == [(3, 3), (4, 1), (5, 2), (6, 3), (7, 1)]
    assert len(marks(3600, 60, again)) == MARKS_MOST
    assert marks(1e9, 60, again) == marks(1e9, 60, again)  # a scenario that has run for decades costs no more


def test_marks_and_promises_are_drawn(monkeypatch):
    calls = curve("web.egress/calls", kind="class", asked="", limit_bps=None)
    found = described(SCENARIO, 2.5, 10, calls, curve(), monkeypatch=monkeypatch)
    found.bounds = [1e6 - 10 + 2.5 * n for n in range(5)]
    assert calls.asked == "guarantee 1mbit, ceiling 2mbit, priority 4, fifo" and calls.limit_bps == 2_000_000
    drawn = draw_svg(found, "x")
    texts = [each.text or "" for each in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    assert texts.count("step 1") == texts.count("step 2") == 3  # in each panel
    assert "step 1: web -> any: loss 5%" in texts and "step 2: web -> any: rate 1mbit over 1s" in texts
    assert calls.asked in texts
    rows = draw_text(found, 80).splitlines()
    assert rows[-2].split() == ["steps", "1", "2"] and max(map(len, rows)) <= 80


def test_what_is_asked_of_a_curve_is_wrapped():
    long = "rate 10mbit, queue 60ms, overhead pppoe-ptm, delay {mean: 12ms, jitter: 3ms, shape: normal}, " * 3
    rows = legend_rows(Curves(BOUNDS, [curve("a -> any", asked=long), curve("b -> any", asked="rate 1mbit")]))
    assert [each.label for each in rows] == ["a -> any", "", "b -> any"]
    assert rows[1].text.endswith("\N{HORIZONTAL ELLIPSIS}") and long.startswith(rows[0].text)
    assert rows[2].text == "rate 1mbit" and [each.curve for each in rows] == [0, None, 1]


def test_several_names(client, tmp_path):
    done = plot("web -> any", "web -> db", "web -> any", "--json")
    assert sorted(each["name"] for each in json.loads(done.output)["curves"]) == ["web -> any", "web -> db"]
    for names, title in (
        (("web.egress/calls", "web.egress/a/b"), "web.egress: calls, a/b"),
        (("web.egress/calls", "db"), "web.egress/calls, db"),
        ((), "What the network does"),
        (("a" * 40, "b" * 40), "What the network does"),
    ):
        assert shape_plot._title(names) == title


def test_nothing_is_recorded_yet(monkeypatch):
    recorded = Recorded()
    monkeypatch.setattr(shape_plot, "connect", lambda instance: FakeClient(recorded.recorder))
    assert plot().output == "nothing is recorded yet\n"
    assert json.loads(plot("--json").output)["times"] == []
    recorded.net.close()


def test_terminals_without_blocks_or_colours(monkeypatch):
    from vnic.cli import plot_text

    class Out:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", Out())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert plot_text.has_blocks() and plot_text.has_colours()
    for encoding in ("ascii", None, "nonsense"):
        Out.encoding = encoding
        assert not plot_text.has_blocks()
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not plot_text.has_colours()
    assert set(PLAIN).isdisjoint(BLOCKS[1:])

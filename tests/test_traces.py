"""Traces: files of each format are read or refused with one line, statistics and packed form are what
the definition says, and the commands show and convert them."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.errors import ConfigError
from shaping.trace import OPPORTUNITY_BYTES, STEPS_MOST, OpportunityTrace, RateTrace, Trace, unpack
from shaping.trace_files import mahimahi_text, opportunities_of, read_trace, seconds_mbit_text
from tests.support.capture_files import pcap
from tests.test_trace_link import steps_of
from tests.wire_frames import Spec
from vnic.cli.main import cli, explain
from vnic.cli.shape_trace import PLOT_ROWS, blocks

MS, SECOND, MBIT = 10**6, 10**9, 10**6
times = st.lists(st.integers(0, 5000), min_size=1, max_size=60).map(sorted).filter(lambda each: each[-1] > 0)
rates = st.one_of(st.just(0), st.integers(1000, 10**10))
steps = (
    st.lists(st.tuples(st.integers(1, 5 * SECOND), rates), min_size=1, max_size=12)
    .filter(lambda each: any(rate for _, rate in each))
    .map(steps_of)
)


def run(*arguments: object):
    """(exit status, standard output, error as the command prints it)."""
    done = CliRunner().invoke(cli, [str(each) for each in arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def write(tmp_path: Path):
    def write(content: bytes | str, name: str = "t.trace") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# -- reading ---------------------------------------------------------------------------------------


def test_mahimahi_is_read_by_its_one_column(write):
    found = read_trace(write("0\n0\n7\n7\n1000\n"))
    assert isinstance(found, OpportunityTrace) and found.times_ms.tolist() == [0, 0, 7, 7, 1000]
    assert found.times_ms.dtype == np.uint32  # four bytes an opportunity
    assert read_trace(write("5"), "mahimahi").duration_ns == 5 * MS  # the last line may lack its end
    assert read_trace(write("5\r\n6\r\n")).times_ms.tolist() == [5, 6]


def test_seconds_and_mbit_are_read_by_their_two_columns(write):
    """A line's rate holds since the line before: the first only gives the begin."""
    found = read_trace(write("0.0 99\n1.5 12.25\n1.5 7\n2 0\n4.000000001\t1e-3\n"))
    assert isinstance(found, RateTrace)
    assert found.steps == [(1_500_000_000, 12_250_000), (2 * SECOND, 0), (4_000_000_001, 1000)]
    assert read_trace(write("10 1\n20 2\n")).steps == [(10 * SECOND, 2 * MBIT)]


@pytest.mark.parametrize("packing", [bytes, gzip.compress])
def test_each_packet_of_a_capture_is_an_opportunity(write, packing):
    begin = 1_700_000_000 * SECOND
    content = pcap([(begin + at * MS + 999_000, bytes(60)) for at in (0, 3, 3, 40)])
    assert read_trace(write(packing(content))).times_ms.tolist() == [0, 3, 3, 40]
    assert read_trace(write(packing(content)), every=120).times_ms.tolist() == [3, 40]


def test_a_capture_out_of_order_goes_on(write):
    found = read_trace(write(pcap([(at * MS, bytes(60)) for at in (5, 9, 7, 11)])))
    assert found.times_ms.tolist() == [0, 4, 4, 6]


def test_many_lines_are_read_in_parts(write):
    numbers = [number // 3 for number in range(1_000_000)]
    text = "\n".join(map(str, numbers)) + "\n"
    assert read_trace(write(text)).times_ms.tolist() == numbers
    assert read_trace(write(text.replace("\n", "\r\n")), "mahimahi").digest == OpportunityTrace(numbers).digest
    wrong = text.replace("\n300000\n", "\n299998\n", 1)
    with pytest.raises(ConfigError, match="t.trace:900001: 299998 ms, after 299999 ms in a line before"):
        read_trace(write(wrong))


# What is wrong, and what the error says behind FILE.
REFUSED = [
    ("", "^: is empty: expected a trace"),
    ("\n", ":1: an empty line: remove it: expected milliseconds"),
    ("1\n\n2\n", ":2: an empty line: remove it: expected a whole number of milliseconds"),
    ("0\n0\n", ":2: the last line is 0: the period needs a length"),
    ("5\n4\n", ":2: 4 ms, after 5 ms in a line before: put the lines in order"),
    ("1\n-2\n", ":2: '-2' is no line of a trace: expected a whole number of milliseconds"),
    ("1\n2.5\n", ":2: '2.5' is no line of a trace: expected a whole number"),
    ("1\nnan\n", ":2: 'nan' is no line of a trace: expected a whole number"),
    ("nan\n", ":1: 'nan' is no line"),
    ("1\n2 3\n", ":2: '2 3' is no line .*two numbers a line are the format seconds-mbit"),
    ("86400001\n", r":1: 86400001 ms: expected at most 86400000 \(24h\)"),
    ("1" + "0" * 30 + "\n", r":1: '100000000000'... is no line of a trace: expected at most 86400000 \(24h\)"),
    ("1" * 100, ":1: a line is longer than 64 bytes"),
    ("1\n2\n" + "3" * 3_000_000, ":3: a line is longer than 64 bytes"),
    ("1 2 3\n", ":1: '1 2 3' is no line of a trace: expected milliseconds"),
    ("# comment\n1\n", ":1: '# comment' is no line of a trace"),
    ("\x00" * 5000, ":1: a line is longer"),
    ("٣\n", ":1: .* is no line"),
    ("1_000\n", ":1: '1_000' is no line"),
    ("0 1\n", ":1: a single line"),
    ("0 1\n0 2\n", ":2: all lines have the same time"),
    ("0 1\n1 0\n", ": no rate above 0"),
    ("0 1\n2 1\n1 1\n", ":3: 1 s, after 2 s in the line before"),
    ("0 1\n1 nan\n", ":2: '1 nan' is no line of a trace: expected seconds and Mbit/s"),
    ("0 1\n1 inf\n", ":2: '1 inf' is no line"),
    ("0 1\n1 -5\n", ":2: -5 Mbit/s: expected 0 to 10000000"),
    ("-1 1\n1 5\n", ":1: -1 s: expected 0 to 86400"),
    ("0 1\n1e30 5\n", ":2: 1e30 s: expected 0 to 86400"),
    ("0 1\n1e999 5\n", ":2: 1e999 s: expected"),
    ("0 1\n1 1e30\n", ":2: 1e30 Mbit/s: expected"),
    ("0 1\n1 2 3\n", ":2: '1 2 3' is no line"),
    ("0 1\n1\n", ":2: '1' is no line of a trace: expected seconds and Mbit/s"),
    ("".join(f"{n / 10} 1\n" for n in range(STEPS_MOST + 2)), ": expected at most 100001 lines"),
    ("1\n" * 4_000_001, ": expected at most 4000000 lines"),
    (pcap([]), ": no packets"),
    (pcap([(5, bytes(60))]), ": all packets are within 1 ms"),
    (pcap([(5, bytes(60)), (10**18, bytes(60))]), "is longer than 24h: expected a part of it"),
    (pcap([(5 * MS, bytes(60)), (9 * MS, bytes(60))])[:-3], ": offset"),
    (b"\n\r\r\n" + bytes(50), ""),
]


@pytest.mark.parametrize(("content", "says"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_file_is_one_line_with_its_place(write, tmp_path, content, says):
    path = write(content)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:") and "\n" not in text and len(text) < 400
    assert re.search(says, text.removeprefix(str(path)))
    out = tmp_path / "out"
    for command in (("show", path), ("plot", path), ("import", path, "-o", out)):
        assert run("shape", "trace", *command)[0] == 2
    assert not out.exists() and explain(caught.value)[1] == 2
    assert sorted(os.listdir(tmp_path)) == ["t.trace"]


def test_a_sparse_file_of_4_gb_is_refused_at_its_begin(tmp_path):
    path = tmp_path / "sparse"
    for form in ("auto", "mahimahi", "seconds-mbit"):
        with open(path, "wb") as file:
            file.write(b"1\n" if form == "mahimahi" else b"")
            file.truncate(4 << 30)
        with pytest.raises(ConfigError, match=r"sparse:[12]: a line is longer than 64 bytes"):
            read_trace(path, form)


@pytest.mark.parametrize(("path", "says"), [
    ("nowhere", "nowhere: No such file"), (".", "Is a directory"), ("a\0b", "has a zero byte"), ("/dev/zero", "longer than"),
])  # fmt: skip
def test_a_path_without_a_trace_is_one_line(path, says):
    with pytest.raises(ConfigError, match=says):
        read_trace(path)


# -- content ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(times)
def test_opportunities_are_packed_written_and_read_again(tmp_path_factory, values):
    trace = OpportunityTrace(values)
    assert unpack(trace.packed).times_ms.tolist() == values
    assert unpack(OpportunityTrace(np.array(values) * 1000).packed).times_ms.tolist() == [1000 * each for each in values]
    path = tmp_path_factory.mktemp("t") / "x"
    path.write_bytes(mahimahi_text(trace))
    assert read_trace(path).digest == trace.digest and path.read_text().split() == list(map(str, values))


@settings(deadline=None)
@given(steps)
def test_rates_are_packed_written_and_read_again(values):
    trace = RateTrace(values)
    assert unpack(trace.packed).steps == trace.steps
    lines = [tuple(map(float, line.split())) for line in seconds_mbit_text(trace).decode().splitlines()]
    assert [(end * SECOND, mbit * MBIT) for end, mbit in lines[1:]] == [pytest.approx(step, rel=1e-8) for step in trace.steps]
    assert lines[0] == (0.0, lines[1][1])


def test_another_content_has_another_digest():
    digests = {
        each.digest
        for each in (OpportunityTrace([1]), OpportunityTrace([1, 1]), RateTrace([(1, 1000)]), RateTrace([(2, 1000)]))
    }
    assert len(digests) == 4 and RateTrace([(1, 5000), (2, 5000)]).digest == RateTrace([(2, 5000)]).digest


def test_a_trace_of_a_million_opportunities_is_small():
    rng = np.random.default_rng(1)
    trace = OpportunityTrace(np.cumsum(rng.poisson(0.5, 1_000_000)) + 1)
    assert len(trace.packed) < 400_000 and trace.times_ms.nbytes == 4_000_000


@pytest.mark.parametrize("text", [
    "", ":", "opportunities:", "opportunities:AAAA", "rates:eJwDAAAAAAE=", "opportunities:eJwDAAAAAAE=", "x" * (9 << 20),
    "opportunities:" + "é",
])  # fmt: skip
def test_a_damaged_packed_trace_is_refused(text):
    with pytest.raises(ConfigError, match="packed trace|opportunit|rates"):
        unpack(text)


def test_a_packed_trace_does_not_grow_beyond_its_bound():
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(1 << 28), 9)).decode()
    with pytest.raises(ConfigError, match="cut off or too long"):
        unpack(f"opportunities:{bomb}")


@pytest.mark.parametrize("make", [
    lambda: OpportunityTrace([]), lambda: OpportunityTrace([0]), lambda: OpportunityTrace([2, 1]), lambda: OpportunityTrace([-1, 1]),
    lambda: OpportunityTrace([1.5]), lambda: OpportunityTrace([10**9]), lambda: OpportunityTrace([[1]]),
    lambda: OpportunityTrace(np.ones(4_000_001, dtype=np.int64)), lambda: RateTrace([]), lambda: RateTrace([(1, 0)]),
    lambda: RateTrace([(1, -5)]), lambda: RateTrace([(1, 10**14)]), lambda: RateTrace([(5, 1000), (4, 1000)]),
    lambda: RateTrace([(10**15, 1000)]), lambda: RateTrace((n + 1, 1000 + n % 2) for n in range(STEPS_MOST + 1)),
])  # fmt: skip
def test_what_is_no_trace_is_refused(make):
    with pytest.raises(ConfigError):
        make()


# -- statistics ------------------------------------------------------------------------------------


def sent_until(trace: Trace, at: Fraction) -> Fraction:
    """Bytes that a line with the trace, repeated, could have sent until an instant in ns."""
    rounds, rest = divmod(at, trace.duration_ns)
    if isinstance(trace, OpportunityTrace):
        each, every = sum(t * MS <= rest for t in trace.times_ms.tolist()), trace.entries
        return (rounds * every + each) * OPPORTUNITY_BYTES
    total, sent, before = Fraction(0), Fraction(0), 0
    for end, rate in trace.steps:
        total += Fraction((end - before) * rate, 8 * SECOND)
        sent += max(min(Fraction(end), rest) - before, Fraction(0)) * rate / (8 * SECOND)
        before = end
    return rounds * total + sent


@settings(deadline=None)
@given(st.one_of(times.map(OpportunityTrace), steps.map(RateTrace)))
def test_rates_are_what_is_sent(trace):
    seconds = trace.bits_each_second()
    assert len(seconds) == -(-trace.duration_ns // SECOND)
    ends = [min((n + 1) * SECOND, trace.duration_ns) for n in range(len(seconds))]
    lengths = np.diff([0, *ends])
    total = sent_until(trace, Fraction(trace.duration_ns)) * 8
    if isinstance(trace, OpportunityTrace):
        total -= trace.times_ms.tolist().count(0) * OPPORTUNITY_BYTES * 8  # those of the next period
    assert float((seconds * lengths).sum() / 1e9) == pytest.approx(float(total), rel=1e-6)
    assert trace.mean_bps == max(int(total * SECOND / trace.duration_ns), 1)


@settings(deadline=None)
@given(st.one_of(times.map(OpportunityTrace), steps.map(RateTrace)), st.integers(1, 20_000), st.integers(0, 10**9))
def test_no_wait_is_longer_than_the_longest(trace, length, begin):
    """From any instant on, the bytes have been sent after the longest wait."""
    longest = trace.longest_wait_ns(length)
    begin = Fraction(begin % trace.duration_ns)
    slack = longest // 10**9 + 1  # of floating point
    assert sent_until(trace, begin + longest + slack) - sent_until(trace, begin) >= length


@pytest.mark.parametrize(("trace", "length", "longest_ms"), [
    (OpportunityTrace([0, 1, 5, 5, 1000]), 1, 995),
    (OpportunityTrace([0, 1, 5, 5, 1000]), 2 * 1504, 995),
    (OpportunityTrace([0, 1, 5, 5, 1000]), 2 * 1504 + 1, 999),
    (OpportunityTrace([0, 1, 5, 5, 1000]), 5 * 1504, 1000),
    (OpportunityTrace([0, 1, 5, 5, 1000]), 6 * 1504, 1995),
    (RateTrace([(SECOND, MBIT), (2 * SECOND, 0), (3 * SECOND, 2 * MBIT)]), 125, 1001),
    (RateTrace([(SECOND, MBIT), (2 * SECOND, 0), (3 * SECOND, 2 * MBIT)]), 125_000, 2000),
    (RateTrace([(SECOND, MBIT)]), 125_000, 1000),
])  # fmt: skip
def test_the_longest_wait(trace, length, longest_ms):
    assert trace.longest_wait_ns(length) == pytest.approx(longest_ms * MS, abs=2)


@pytest.mark.parametrize(("trace", "outage_ms"), [
    (OpportunityTrace([900, 901, 1000]), 900),  # from the last one of a period to the first
    (OpportunityTrace([0, 400, 1000]), 600),
    (RateTrace([(SECOND, 0), (2 * SECOND, MBIT), (3 * SECOND, 0)]), 2000),
    (RateTrace([(SECOND, 0), (2 * SECOND, MBIT)]), 1000),
    (RateTrace([(SECOND, MBIT)]), 0),
])  # fmt: skip
def test_the_longest_outage_goes_on_into_the_next_period(trace, outage_ms):
    assert trace.longest_outage_ns == outage_ms * MS


# -- conversion ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(steps, st.integers(1000, 200_000))
def test_an_opportunity_is_as_soon_as_its_bytes_could_have_been_sent(values, every):
    trace = RateTrace([(end, min(rate, 20 * MBIT)) for end, rate in values])
    try:
        found = opportunities_of(trace, every).times_ms.tolist()
    except ConfigError:
        total = sent_until(trace, Fraction(trace.duration_ns)) - 1
        assert total < every
        return
    for number, at in enumerate(found[:-1], 1):
        assert sent_until(trace, Fraction(at * MS)) >= number * every or at * MS >= trace.duration_ns
        assert sent_until(trace, Fraction((at - 1) * MS)) < number * every
    assert found[-1] == math.ceil(trace.duration_ns / MS)


def test_a_trace_of_opportunities_stays_as_it_is():
    trace = OpportunityTrace([1, 7])
    assert opportunities_of(trace, 99) is trace


# -- commands --------------------------------------------------------------------------------------


def test_show_has_the_figures(write):
    path = write("".join(f"{number}\n" for number in range(1, 3001)))
    status, out, _ = run("shape", "trace", "show", path, "--json")
    facts = json.loads(out)
    assert status == 0 and facts["rates_bps"] == [12_032_000] * 3 and facts["entries"] == 3000
    assert (facts["kind"], facts["duration_s"], facts["mean_bps"], facts["longest_outage_s"]) == (
        "opportunities",
        3,
        12_032_000,
        0.001,
    )
    table = run("shape", "trace", "show", path)[1]
    assert "12.03 Mbit/s" in table and "3000" in table


def test_import_converts_and_leaves_no_part(write, tmp_path):
    path, out = write("0 0\n1 12.032\n2 0\n"), tmp_path / "out.up"
    status, said, _ = run("shape", "trace", "import", path, "-o", out)
    assert status == 0 and said == f"{out}: 1000 lines, 2 s, 6.016 Mbit/s on average, at most 1.001 s without any\n"
    assert out.read_text().split() == [*map(str, range(1, 1000)), "2000"]
    status, said, err = run("shape", "trace", "import", path, "--every", "15040b", "-o", "-")
    assert status == 0 and said.split() == [*map(str, range(10, 1000, 10)), "2000"] and err.startswith("-: 100 lines")
    run("shape", "trace", "import", out, "--as", "seconds-mbit", "-o", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text() == "0 12.019968\n1 12.019968... \n".replace("... ", "") + "2 0.012032\n"
    assert sorted(os.listdir(tmp_path)) == ["back.txt", "out.up", "t.trace"]
    for wrong in (("--every", "5"), ("--every", "0b"), ("--every", "2gb"), ("--format", "wav")):
        assert run("shape", "trace", "import", path, *wrong, "-o", out)[0] == 2
    assert run("shape", "trace", "import", path, "--every", "1gb", "-o", out)[0] != 0
    assert out.read_text().count("\n") == 1000


def test_record_takes_one_direction(write, tmp_path):
    there = Spec(payload=bytes(100)).build()
    back = Spec(source=bytes([10, 0, 0, 2]), destination=bytes([10, 0, 0, 1]), payload=bytes(100)).build()
    other = bytes(12) + b"\x08\x06" + bytes(46)
    path = write(pcap([(at * MS, frame) for at, frame in [(0, there), (4, back), (6, there), (7, other), (9, back)]]))
    out = tmp_path / "o"
    for options, expected in (
        (("--from", "10.0.0.1"), ["0", "6"]),
        (("--to", "10.0.0.1"), ["0", "5"]),
        (("--from", "10.0.0.2", "--to", "10.0.0.1"), ["0", "5"]),
        (("--from", there[6:12].hex(":"), "--to", "10.0.0.2"), ["0", "6"]),
        ((), ["0", "4", "6", "7", "9"]),
    ):
        assert run("shape", "trace", "record", path, *options, "-o", out)[0] == 0
        assert out.read_text().split() == expected
    status, _, said = run("shape", "trace", "record", path, "--from", "::1", "-o", out)
    assert status == 2 and "no packets of this direction" in said
    assert run("shape", "trace", "record", path, "--from", "web", "-o", out)[0] == 2
    assert out.read_text().split() == expected


def test_plot_draws_blocks(write):
    path = write("".join(f"{number}\n" for number in range(1, 1001)) + "3000\n")
    status, out, _ = run("shape", "trace", "plot", path)
    lines = out.splitlines()
    assert status == 0 and len(lines) == PLOT_ROWS + 2 and lines[0] == "12.03 Mbit/s ┤█".rjust(16)
    assert lines[-1].endswith("3 s")
    assert json.loads(run("shape", "trace", "plot", path, "--json")[1])["rates_bps"] == [12_032_000, 0, 12_032]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=400).filter(any), st.integers(1, 300))
def test_blocks_fit_the_terminal(values, columns):
    lines = blocks(values, len(values), columns)
    assert len(lines) == PLOT_ROWS + 2 and all(len(line) <= max(columns, 45) for line in lines)


def test_plot_writes_the_same_picture_again(write, tmp_path):
    pytest.importorskip("matplotlib")
    path = write("5\n9\n2000\n", "$a$.up")
    for name, begins in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        pictures = []
        for _ in range(2):
            assert run("shape", "trace", "plot", path, "-o", tmp_path / name) == (0, "", "")
            pictures.append((tmp_path / name).read_bytes())
        assert pictures[0] == pictures[1] and pictures[0].startswith(begins)
    assert run("shape", "trace", "plot", path, "-o", tmp_path / "a.gif")[0] == 2

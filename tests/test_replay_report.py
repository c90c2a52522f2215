"""Reports of a replay: content, and errors before the run."""

from __future__ import annotations

import html
import json

import pytest

from tests.support.capture_files import pcap
from tests.test_replay import START_NS, A, B, frame
from tests.test_replay_command import place, vnic  # noqa: F401 - `place` is a fixture
from vnic.cli.common import about
from vnic.config.load import parse_config
from vnic.replay import report
from vnic.replay.session import Replay

pytest.importorskip("matplotlib")


def test_all_kinds(place):  # noqa: F811
    arguments = [option for kind in ("html", "png", "json") for option in ("--report", f"out.{kind}")]
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    assert (place / "out.png").read_bytes().startswith(b"\x89PNG")
    page = (place / "out.html").read_text()
    assert "50 packets in" in page and "every packet is accounted for" in page and "data:image/png;base64," in page
    report = json.loads((place / "out.json").read_text())
    rates = report["nics"][1]["rates"]["0"]
    received_bytes = sum(rates["bps"]) * rates["bin_ns"] / 8e9
    assert received_bytes == pytest.approx(report["nics"][1]["transmitted_bytes"], abs=len(rates["bps"])) == 5000


def test_a_page_says_what_it_shows(place):  # noqa: F811
    arguments = ["replay", "in.pcap", "-c", "net.yaml", "--seed", "7", "--report", "out.html", "--report", "out.json"]
    assert vnic(place, *arguments).returncode == 0
    page, about = (place / "out.html").read_text(), json.loads((place / "out.json").read_text())["about"]
    assert about["captures"] == "a=in.pcap" and about["configuration"] == "net.yaml" and about["seed"] == "7"
    assert about["command"] == "vnic " + " ".join(arguments) and about["vnic"] and about["written"]
    assert all(html.escape(value) in page for label, value in about.items() if label != "written")
    assert "bytes received" in page and "<td>5,000</td>" in page and "The class is the mark" in page


def figure(result):
    """matplotlib's axes of the picture: rates and delays of each NIC, drops last."""
    from unittest.mock import patch

    from matplotlib.figure import Figure

    with patch.object(Figure, "savefig", autospec=True) as saved:
        report.draw(result, report.origin_of(result, {}))
    return saved.call_args[0][0].axes


def test_the_plots_have_limits_drops_and_one_time_axis(tmp_path):
    """A limit on the sender is a line in the receiver's plot; no legend lies on a plot; all plots
    have the same time axis; delays of 0 do not make an axis of negative ones."""
    config = parse_config("nics:\n  a: {egress: {rate: 8mbit, queue: 10ms}}\n  b: {ingress: {rate: 20mbit}}\n", contained=False)
    there = [(START_NS + n * 500_000, frame(B, A, 1000, n)) for n in range(200)]
    back = [(START_NS + 10**7 + n * 10**6, frame(A, B, 100, n)) for n in range(5)]
    for name, packets in (("a", there), ("b", back)):
        (tmp_path / f"{name}.pcap").write_bytes(pcap(packets, nanoseconds=True))
    with Replay(config, {name: tmp_path / f"{name}.pcap" for name in ("a", "b")}) as replay:
        replay.run()
        result = replay.results()
    dropped = result["dropped_rates"]["a.egress.rate: queue_full"]
    assert sum(dropped["bps"]) * dropped["bin_ns"] / 8e9 == pytest.approx(
        1000 * result["dropped"]["a.egress.rate: queue_full"], abs=len(dropped["bps"])
    )
    to_a, delay_a, to_b, delay_b, drops, _ = figure(result)
    labels = [text.get_text() for text in to_b.get_legend().get_texts()]
    assert labels == ["received", "limit b ingress 20mbit", "limit a egress 8mbit"]
    assert sorted(line.get_ydata()[0] for line in to_b.lines) == [8, 20]
    assert [text.get_text() for text in drops.get_legend().get_texts()] == ["a.egress.rate: queue_full"]
    assert to_a.get_xlim() == to_b.get_xlim() == drops.get_xlim() == (0, result["duration_ns"] / 1e9)
    assert delay_a.get_ylim() == (0, 1) and delay_b.get_ylim()[0] == 0 < delay_b.get_ylim()[1]
    for axes in (to_a, to_b, delay_b, drops):
        bottom = axes.get_legend().get_window_extent().y0
        assert bottom >= axes.get_window_extent().y1 - 1, "the legend is above the plot"


def test_a_report_is_the_same_every_time(place):  # noqa: F811
    for name in ("one.png", "two.png"):
        vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--report", name)
    assert (place / "one.png").read_bytes() == (place / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("out.pdf", 2, "report out.pdf: expected a name in .html, .png, .json"),
        ("no/where.json", 1, "cannot write no/where.json: No such file"),
    ],
)
def test_refusals(place, name, status, message):  # noqa: F811
    done = vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--report", name)
    assert done.returncode == status and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("value", "unit", "base", "text"), [
    (0, "s", "n", "0 ns"), (999, "s", "n", "999 ns"), (1500, "s", "n", "1.5 us"), (2_310_383_799, "s", "n", "2.31 s"),
    (79_484_411_032_149_000, "s", "n", "79484411 s"), (14_010_192, "bit/s", "", "14.01 Mbit/s"), (4_046_115, "B", "", "4.046 MB"),
])  # fmt: skip
def test_figures_for_people(value, unit, base, text):
    assert about(value, unit, base=base) == text

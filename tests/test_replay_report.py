"""Reports of a replay: what they hold, and refusals before anything is run."""

from __future__ import annotations

import json

import pytest

from tests.test_replay_command import place, vnic  # noqa: F401 - `place` is a fixture
from vnic.cli.common import about

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


def test_a_report_is_the_same_every_time(place):  # noqa: F811
    for name in ("one.png", "two.png"):
        vnic(place, "replay", "in.pcap", "-c", "net.yaml", "--report", name)
    assert (place / "one.png").read_bytes() == (place / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("out.pdf", 2, "report out.pdf: want a name in .html, .png, .json"),
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

"""`bench truth`: promises are found and kept in virtual time, what is false is found out, and the page says all."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bench import report, truth
from bench.errors import BenchError, RequestError
from bench.promises import Absent, Outcome, Promise, Run, all_promises, delays, losses
from bench.promises.patterns import COUNT, MSS, stream


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(rounds=1, seconds=1, packets=100_000)


VIRTUAL = [each for each in all_promises() if not each.live]


@pytest.mark.parametrize("promise", VIRTUAL, ids=lambda each: f"{each.subject}: {each.what}")
def test_promises_are_kept_in_virtual_time(promise: Promise, run: Run) -> None:
    row = truth.measure(promise, run)
    assert row.verdict == "kept", row
    assert row.outcome.expected and row.outcome.measured and row.outcome.bound


def test_every_promise_has_a_line_of_its_own() -> None:
    lines = [(each.subject, each.what) for each in all_promises()]
    assert len(set(lines)) == len(lines) > 50
    assert {each.subject for each in all_promises()} >= {"Rates", "Delays", "Losses", "One seed, one pattern of losses"}


@pytest.mark.parametrize(
    "model",
    [
        dataclasses.replace(losses.MODELS[1], share=0.12),
        dataclasses.replace(losses.MODELS[4], correlation=0.6),
        dataclasses.replace(losses.MODELS[4], mean_run=5.0),
    ],
    ids=["share", "correlation", "runs"],
)
def test_what_is_false_is_found_out(model: losses.Model, run: Run) -> None:
    """The closed forms are compared with what was measured, and not with vnic's own numbers."""
    checks = [losses._share, losses._correlation] + ([losses._mean_run] if model.mean_run else [])
    assert not all(check(model, run).kept for check in checks)


def test_a_bent_distribution_is_found_out(run: Run) -> None:
    found = delays._delays(run, "normal")
    bent = Run(1, 1, run.packets, {"delays normal ": found * 1.1})
    assert delays._distribution("normal", run).kept and not delays._distribution("normal", bent).kept
    alternating = np.tile([1.0, 0.0], 50)
    assert losses.correlation_of(alternating) == pytest.approx(-1.0)
    assert list(losses.runs_of(np.array([1.0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1]))) == [2, 3]


def outcome(kept: bool | None = True, measured: str = "1") -> Outcome:
    return Outcome("<1>", measured, "exact", kept, {"n": 1})


def refuse(error: Exception) -> Outcome:
    raise error


PROMISES = [
    Promise("One", "kept <it>", lambda _: outcome(), "the sheet"),
    Promise("One", "broken", lambda _: outcome(False, "2")),
    Promise("Two", "a peer's", lambda _: outcome(None)),
    Promise("Two", "fails", lambda _: refuse(BenchError("no way\nat all"))),
    Promise("Two", "is not here", lambda _: refuse(Absent("no netem"))),
]


def test_a_page_and_a_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    result = truth.run_all(PROMISES, Run(1, 1, 100_000))
    assert result["counts"] == {"kept": 1, "broken": 2, "beside": 1}
    assert result["absent"] == [{"subject": "Two", "promise": "is not here", "why": "no netem"}]
    paths = truth.save(result)
    assert json.loads(paths[1].read_text())["promises"] == json.loads(json.dumps(result["promises"]))
    shown = paths[0].read_text()
    assert "kept &lt;it&gt;" in shown and "<it>" not in shown and "the sheet" in shown and "no netem" in shown
    assert shown.count('class="verdict kept"') == 1 and shown.count('class="verdict broken"') == 2 and "failed: no way" in shown
    assert "src=" not in shown and "href=" not in shown  # self-contained
    truth.show(result, paths)
    said = capsys.readouterr().out
    assert "broken: One: broken: 2, expected <1>, exact" in said and "1 promises kept, 2 broken, 1 not measured" in said


def test_subjects_are_chosen_by_their_beginning() -> None:
    assert {each.subject for each in truth.chosen(["los"], live=True)} == {"Losses"}
    assert not any(each.live for each in truth.chosen([], live=False))
    with pytest.raises(RequestError, match="--only x: expected the beginning of one of Delays, Losses"):
        truth.chosen(["x"], live=True)


def test_the_stream_is_the_same_in_frames_and_segments() -> None:
    from dataplane.graph.offload import captured_frame
    from dataplane.ports.memory import Frame
    from vnic.testing.measure import on_the_wire

    whole = [each for data in stream(44) for each in on_the_wire(Frame(*captured_frame(data, 1500)))]
    assert whole == stream(1) and len(whole) == COUNT and len(whole[0]) == 54 + MSS

"""Whether what is asked for is what happens: every promise of bench/promises, measured, as a page and as JSON."""

import html
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import machine, report
from bench.errors import BenchError, RequestError
from bench.promises import Absent, Outcome, Promise, Run, all_promises
from bench.tap import say
from dataplane.errors import VnicError

Json = dict[str, Any]
VERDICTS = {True: "kept", False: "broken", None: "beside"}


@dataclass(frozen=True)
class Row:
    """A promise, and what was measured of it."""

    subject: str
    promise: str
    source: str
    live: bool
    verdict: str
    outcome: Outcome
    seconds: float


def measure(promise: Promise, run: Run) -> Row:
    """Raises Absent where it cannot be measured here."""
    began_s = time.monotonic()
    try:
        outcome = promise.measure(run)
    except (BenchError, VnicError, AssertionError) as error:
        outcome = Outcome("a measurement", f"failed: {error}".splitlines()[0], "", False)
    took_s = round(time.monotonic() - began_s, 2)
    return Row(promise.subject, promise.what, promise.source, promise.live, VERDICTS[outcome.kept], outcome, took_s)


def chosen(subjects: Sequence[str], live: bool) -> list[Promise]:
    """The promises of the named subjects; none named: all. Raises RequestError for a name that none has."""
    promises = all_promises()
    known = list(dict.fromkeys(each.subject for each in promises))
    wanted = []
    for name in subjects:
        found = [each for each in known if each.lower().startswith(name.lower())]
        if len(found) != 1:
            raise RequestError(f"--only {name}: expected the beginning of one of {', '.join(known)}")
        wanted += found
    return [each for each in promises if (not wanted or each.subject in wanted) and (live or not each.live)]


def run_all(promises: Sequence[Promise], run: Run) -> Json:
    """Measures the promises, and says so line by line."""
    described, rows, absent = machine.describe(), [], []
    for promise in promises:
        try:
            row = measure(promise, run)
        except Absent as error:
            absent.append({"subject": promise.subject, "promise": promise.what, "why": str(error)})
            say(f"{'absent':7} {promise.subject}: {promise.what}: {error}")
            continue
        rows.append(row)
        say(f"{row.verdict:7} {row.subject}: {row.promise}: {row.outcome.measured}")
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS.values()}
    return {
        "counts": counts,
        "promises": [_flat(row) for row in rows],
        "absent": absent,
        "rounds": run.rounds,
        "seconds": run.seconds,
        "packets": run.packets,
        "machine": described,
    }


def _flat(row: Row) -> Json:
    found = asdict(row)
    outcome = found.pop("outcome")
    outcome.pop("kept")
    return {**found, **outcome}


def save(result: Json) -> tuple[Path, Path]:
    """Writes the page and the JSON; returns both paths."""
    data = report.save("truth", result)
    shown = data.with_suffix(".html")
    shown.write_text(page(result))
    return shown, data


STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% } th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
th { color: #666; font-weight: normal; font-size: .85rem } td.n { font-variant-numeric: tabular-nums } small { color: #777 }
.verdict { white-space: nowrap; font-weight: 600 } .kept { color: #0a7a3d } .broken { color: #b00020 } .beside td { color: #777 }
.sum { display: flex; gap: 1.5rem; flex-wrap: wrap; margin: 1rem 0 } .sum b { font-size: 1.6rem; display: block }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } th, td { border-color: #333 } .kept { color: #5ad18a }
 .broken { color: #ff7b86 } }
"""  # noqa: E501


def page(result: Json) -> str:
    """A self-contained page: a table for each subject."""
    subjects = list(dict.fromkeys(row["subject"] for row in result["promises"]))
    described = result["machine"]
    counts = result["counts"]
    total = counts["kept"] + counts["broken"]
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>vnic: asked and measured</title>'
        f"<style>{STYLE}</style></head><body><h1>Shaping: what was asked for, and what was measured</h1>",
        f'<div class="sum"><span class="kept"><b>{counts["kept"]} of {total}</b>promises kept</span>'
        f'<span class="broken"><b>{counts["broken"]}</b>broken</span>'
        f"<span><b>{counts['beside']}</b>figures of other programs beside them</span></div>",
        f"<p>{_text(described['cpu'])}, {described['cores']} cores, kernel {_text(described['kernel'])}, load before "
        f"{described['load_before']:.2f}, vnic {_text(described['commit'])}, {_text(described['date'])}. Live figures are medians "
        f"of {result['rounds']} rounds of {result['seconds']:g} s, in which all programs take turns; on a busy machine they are "
        f"those of the machine, too. Statistics are of {result['packets']:,} packets; bounds with 10<sup>-6</sup> are "
        "left by chance in one of a million cases.</p>",
    ]
    for subject in subjects:
        rows = "".join(_row(row) for row in result["promises"] if row["subject"] == subject)
        head = "".join(f"<th>{each}</th>" for each in ("promise", "expected", "measured", "bound", "verdict"))
        parts.append(f"<h2>{_text(subject)}</h2><table><tr>{head}</tr>{rows}</table>")
    if result["absent"]:
        lines = "".join(f"<li>{_text(each['promise'])}: {_text(each['why'])}</li>" for each in result["absent"])
        parts.append(f"<h2>Not measured</h2><ul>{lines}</ul>")
    return "".join(parts) + "</body></html>\n"


def _row(row: Json) -> str:
    source = f"<br><small>{_text(row['source'])}</small>" if row["source"] else ""
    cells = "".join(f'<td class="n">{_text(row[key])}</td>' for key in ("expected", "measured", "bound"))
    verdict = row["verdict"]
    shown = "" if verdict == "beside" else verdict
    return (
        f'<tr class="{verdict if verdict == "beside" else ""}"><td>{_text(row["promise"])}{source}</td>{cells}'
        f'<td class="verdict {verdict}">{shown}</td></tr>'
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def show(result: Json, paths: tuple[Path, Path]) -> None:
    """The broken promises, the counts and the files."""
    for row in result["promises"]:
        if row["verdict"] == "broken":
            print(f"broken: {row['subject']}: {row['promise']}: {row['measured']}, expected {row['expected']}, {row['bound']}")
    counts = result["counts"]
    print(f"{counts['kept']} promises kept, {counts['broken']} broken, {len(result['absent'])} not measured")
    print("\n".join(map(str, paths)))

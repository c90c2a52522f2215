"""Compares the public traces of Mahimahi with known figures, and TraceLink on them with its twin.

    git clone https://github.com/ravinet/mahimahi
    .venv/bin/python scripts/mahimahi_traces.py mahimahi/traces

The traces are not part of vnic. Of each file that is there the number of lines, the length, the
mean rate at 1504 bytes and the longest time between two lines are compared; then 20,000 packets are
sent over it, whose departures and drops are to be those of the twin (tests/test_trace_link.py) to
the nanosecond. Exit status: 0 all agree, 1 something differs, 2 there are no traces.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from shaping.trace import OpportunityTrace  # noqa: E402
from shaping.trace_files import read_trace  # noqa: E402
from tests.test_trace_link import FULL, MS, SECOND, START_NS, Mahimahi, TraceBench  # noqa: E402

# Lines, length in s, mean in Mbit/s, longest gap in s: computed from the files by another program.
KNOWN = {
    "ATT-LTE-driving.down": (338_895, 786, 5.19, 1.5),
    "ATT-LTE-driving.up": (70_336, 1012, 0.84, 78.3),
    "ATT-LTE-driving-2016.down": (45_604, 120, 4.57, 1.1),
    "ATT-LTE-driving-2016.up": (19_101, 120, 1.92, 4.1),
    "TMobile-LTE-driving.down": (505_078, 475, 12.80, 1.06),
    "TMobile-LTE-short.down": (194_846, 140, 16.75, 0.9),
    "TMobile-LTE-short.up": (155_381, 140, 13.35, 0.7),
    "TMobile-UMTS-driving.down": (156_262, 928, 2.03, 5.8),
    "TMobile-UMTS-driving.up": (73_197, 931, 0.95, 5.8),
    "Verizon-EVDO-driving.down": (46_065, 1062, 0.52, 11.6),
    "Verizon-EVDO-driving.up": (74_768, 1065, 0.84, 11.2),
    "Verizon-LTE-short.down": (58_655, 140, 5.04, 1.4),
    "Verizon-LTE-short.up": (69_367, 140, 5.96, 1.7),
}
PACKETS = 20_000


def figures(trace: OpportunityTrace) -> tuple[int, float, float, float]:
    gap_s = float(np.diff(trace.times_ms.astype(np.int64)).max()) / 1000
    return trace.entries, trace.duration_ns / 1e9, trace.mean_bps / 1e6, gap_s


def agree(found: tuple[int, float, float, float], known: tuple[int, float, float, float]) -> bool:
    """Whether they are the same in the digits that are known."""
    digits = (0, 0, 2, 2 if known[3] == 1.06 else 1)
    return found[0] == known[0] and all(
        abs(a - b) <= 0.5 * 10**-places + 1e-9
        for a, b, places in zip(found, known, digits, strict=True)
    )


def played(trace: OpportunityTrace) -> tuple[int, int, bool]:
    """(packets that left, packets dropped, whether both agree with the twin)."""
    rng = random.Random(trace.entries)
    # A little more than the line has, in bursts, so that its queue is full and empty in turn.
    gap_ns = 2 * 800 * 8 * SECOND // trace.mean_bps
    bench = TraceBench(trace=trace, queue={"packets": 100})
    twin, now = Mahimahi(trace.times_ms.tolist(), 100, START_NS, True), START_NS
    for number in range(PACKETS):
        now += 0 if number % 7 else rng.randrange(7 * gap_ns)
        length = rng.choice([60, FULL, rng.randrange(14, FULL)])
        bench.inject_at(now, bytes(length))
        twin.arrive(now, [length])
    end = now + 100 * trace.duration_ns
    bench.advance(end)
    twin.run(end, idle=False)
    same = bench.take() == twin.left and bench.dropped("queue_full") == twin.drops
    bench.close()
    assert now - START_NS > 10 * MS
    return len(twin.left), twin.drops, same


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    directory, compared, wrong = Path(sys.argv[1]), 0, 0
    print(
        f"{'trace':<26} {'lines':>7} {'s':>9} {'Mbit/s':>7} {'gap s':>7}  figures  "
        "left  dropped  departures"
    )
    for name, known in KNOWN.items():
        if not (directory / name).exists():
            print(f"{name:<26} is not there")
            continue
        trace = read_trace(directory / name, "mahimahi")
        assert isinstance(trace, OpportunityTrace)
        found, (left, dropped, same) = figures(trace), played(trace)
        right = agree(found, known)
        compared, wrong = compared + 1, wrong + (not right or not same)
        print(
            f"{name:<26} {found[0]:>7} {found[1]:>9.3f} {found[2]:>7.2f} {found[3]:>7.3f}  "
            f"{'agree' if right else f'DIFFER from {known}'}  {left:>6} {dropped:>7}  "
            f"{'agree' if same else 'DIFFER'}"
        )
    print(f"{compared} of {len(KNOWN)} traces compared, {wrong} differ")
    return 2 if not compared else 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""What is measured live, once for all promises: see bench/shaping.py."""

import os

from bench.promises import Absent, Run
from bench.shaping import Measured, measure_lives


def lives(run: Run) -> dict[str, Measured]:
    """Raises Absent for a user who may not make namespaces."""
    if os.geteuid() != 0:
        raise Absent("needs root")
    return run.once("lives", lambda: measure_lives(run.rounds, run.seconds))

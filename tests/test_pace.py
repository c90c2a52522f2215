"""Pace: its thread pauses regularly, whatever it runs; other threads do not."""

import resource
import threading
import time

import pytest

from dataplane.engine.pace import Pace


def pauses() -> int:
    """This thread's voluntary context switches."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def work(until) -> None:
    while not until():
        sum(range(100))


def test_a_busy_thread_pauses():
    before, began = pauses(), time.monotonic()
    with Pace(200_000, 1_000_000):
        work(lambda: pauses() - before >= 20)
    assert time.monotonic() - began >= 20 * 0.001  # every pause had its length


def test_it_ends_with_the_block_and_begins_again():
    for _ in range(3):
        before = pauses()
        with Pace(100_000, 100_000):
            work(lambda before=before: pauses() > before)
        before, cpu = pauses(), time.thread_time()
        work(lambda cpu=cpu: time.thread_time() - cpu > 0.02)  # 200 steps
        assert pauses() - before <= 1  # a signal that was pending


def test_other_threads_do_not_pause():
    seen = []

    def other():
        before, cpu = pauses(), time.thread_time()
        work(lambda: time.thread_time() - cpu > 0.02)
        seen.append(pauses() - before)

    with Pace(100_000, 100_000):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen[0] < 100  # 200 steps; its switches are waits for the GIL


@pytest.mark.parametrize("times", [(0, 1), (1, 0), (-1, 1), (10**9, 1), (1, 10**9)])
def test_times_out_of_range_are_refused(times):
    with pytest.raises(ValueError, match="pace"):
        Pace(*times)

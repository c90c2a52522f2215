"""Errors of benchmarks: one line that says what went wrong, with what, and what to do."""


class BenchError(Exception):
    """A benchmark cannot run, or a contestant does not work."""


class RequestError(BenchError):
    """An invalid request, which the user can correct: exit status 2."""

"""Errors of benchmarks: one line with the problem, the object, and advice."""


class BenchError(Exception):
    """A benchmark cannot run, or a contestant does not work."""


class RequestError(BenchError):
    """An invalid request, which the user can correct: exit status 2."""

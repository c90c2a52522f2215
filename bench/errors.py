"""What goes wrong in a benchmark: one line that says what, which, and what to do."""


class BenchError(Exception):
    """A benchmark cannot run or a contestant does not work."""


class RequestError(BenchError):
    """What was asked for cannot be: the user's to mend, exit status 2."""

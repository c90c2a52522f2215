"""What goes wrong in a benchmark: one line that says what, which, and what to do."""


class BenchError(Exception):
    """A benchmark cannot run or a contestant does not work."""

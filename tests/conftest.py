"""What every test shares. In CI (CI=true or --no-skips) a test that is skipped for something missing on the machine fails."""

import os

import pytest

MISSING = ("missing tool", "could not import")  # how the reasons of such skips begin


def pytest_addoption(parser):
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="skips for a missing tool or package are failures (default where CI=true)",
    )


def refuse_skip(report):
    """Turns the report of a skip for something missing into that of a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if reason.startswith(MISSING):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips forbids: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if item.config.getoption("--no-skips"):
        refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if collector.config.getoption("--no-skips"):
        refuse_skip(report)
    return report

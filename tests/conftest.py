"""Fixtures and hooks of all tests. In CI (CI=true or --no-skips) a test that is skipped because the
machine lacks something fails.

Fixtures for tests that need network namespaces: `container`, `make_container`, `leak_check`. A test
marked `root` needs root and is left out (not skipped) for other users. A test file with namespace
tests ends with a test that runs the file again as a plain user, see tests/support/plain_user.py.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support import plain_user
from tests.support.containers import IS_ROOT, Container, what_is_ours

MISSING = ("missing tool", "could not import")  # beginnings of such skips' reasons


def pytest_addoption(parser):
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="skips for a missing tool or package are failures (default where CI=true)",
    )


def refuse_skip(report):
    """Turns the report of such a skip into that of a failure."""
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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root; left out for a plain user")
    # a shell's background job ignores SIGINT, which its children inherit; tests of Ctrl-C send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Files that run again as a plain user take the longest: they come first, so that none of them
    # runs alone at the end, on one of two processes.
    long = {item.path for item in items if item.get_closest_marker("again")}
    items.sort(key=lambda item: item.path not in long)
    if not IS_ROOT:
        for_root = [item for item in items if item.get_closest_marker("root")]
        items[:] = [item for item in items if item not in for_root]
        config.hook.pytest_deselected(items=for_root)


@pytest.fixture
def leak_check() -> Iterator[None]:
    """Fails the test if it leaves an interface, namespace, child process, segment, or a descriptor
    of these."""
    gc.collect()
    before, threads = what_is_ours(), set(threading.enumerate())
    yield
    gc.collect()
    # the thread of the inotify instance closes its descriptors after its last watch is removed
    for thread in set(threading.enumerate()) - threads:
        if thread.name == "vnic-inotify":
            thread.join(10)
    after = what_is_ours()
    left = {kind: sorted(after[kind] - before[kind]) for kind in after if after[kind] - before[kind]}
    assert not left, f"left behind: {left}"


@pytest.fixture
def make_container(leak_check: None) -> Iterator[Callable[..., Container]]:
    """Creates containers, which end after the test."""
    made: list[Container] = []

    def make(*, user_namespace: bool = not IS_ROOT, nested: bool = False) -> Container:
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            pytest.skip("missing tool: /dev/net/tun cannot be opened by this user")
        try:
            made.append(Container(user_namespace=user_namespace, nested=nested))
        except RuntimeError as error:
            pytest.skip(f"missing tool: {error}; see kernel.apparmor_restrict_unprivileged_userns and user.max_user_namespaces")
        return made[-1]

    yield make
    for container in made:
        container.close()


@pytest.fixture
def container(make_container: Callable[..., Container]) -> Container:
    """A container: a process in its own network namespace; for a plain user in a user namespace,
    too."""
    return make_container()


@pytest.fixture
def run_as_plain_user(request: pytest.FixtureRequest, leak_check: None) -> Callable[[str], None]:
    """As root, runs a test file again as a plain user; shows its output if it fails."""

    def run(path: str) -> None:
        options = ["--no-skips"] if request.config.getoption("--no-skips") else []
        done = plain_user.run_pytest(*options, path)
        assert done.returncode == 0, done.stdout + done.stderr

    return run

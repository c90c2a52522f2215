"""Commands that hold a policy: what they do when the worker is killed, or Ctrl-C comes, at any moment; without an instance."""

from __future__ import annotations

import os
import signal
from collections import deque
from typing import Any

import pytest

from dataplane.errors import VnicError
from vnic.cli import shape_life
from vnic.cli.shape_life import Hold, interrupts


class Daemon:
    """Answers calls of one client after the other, as planned. Each plan is for one connection: its daemon's pid, and its
    replies, or the errors in their place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *plans: tuple[int, list[Any]]) -> None:
        self.plans, self.calls, self.open = deque(plans), list[tuple[str, Any]](), 0
        monkeypatch.setattr(shape_life, "connect", lambda instance: self.connect())
        monkeypatch.setattr(shape_life, "LOOK_S", 0.001)

    def connect(self) -> Any:
        self.open += 1
        return Connection(self, *self.plans.popleft())


class Connection:
    def __init__(self, daemon: Daemon, pid: int, replies: list[Any]) -> None:
        self.daemon, self.pid, self.replies = daemon, pid, deque(replies)

    def call(self, method: str, **parameters: Any) -> Any:
        self.daemon.calls.append((method, parameters.get("hold", True)))
        reply = self.replies.popleft()
        if callable(reply):
            reply = reply()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        self.daemon.open -= 1


HELD, OTHER = {"status": {"holds": [7]}}, {"status": {"holds": []}}
LOST = VnicError("connection lost")
ENDED = VnicError("generation 7: has ended", code="not-found")


def hold(daemon: Daemon) -> Hold:
    return Hold(daemon.connect(), "default", 7)


def test_it_ends_with_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, (1, [HELD, {}]))
    hold(daemon).end()
    assert daemon.calls == [("ShapeStatus", True), ("HoldShape", False)] and daemon.open == 0


def test_a_worker_that_is_killed_while_it_is_told_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is told, too: else the policy would stay until vnic gives the command up."""
    daemon = Daemon(monkeypatch, (1, [HELD, LOST, LOST]), (1, [{}, {}]))
    hold(daemon).end()
    assert daemon.calls[-2:] == [("HoldShape", True), ("HoldShape", False)] and not daemon.plans


def test_a_policy_that_ended_with_the_worker_needs_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, (1, [HELD, LOST, LOST]), (1, [ENDED]))
    hold(daemon).end()
    assert daemon.calls[-1] == ("HoldShape", True)


def test_another_instance_has_other_generations_of_that_number(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, (1, [LOST]), (2, []))
    assert not hold(daemon).is_there()
    assert daemon.calls == [("ShapeStatus", True)] and daemon.open == 0


def test_an_interrupt_leaves_no_call_without_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return HELD

    daemon = Daemon(monkeypatch, (1, [HELD, interrupted, HELD, {}]))
    assert hold(daemon).wait()
    assert [method for method, _ in daemon.calls] == ["ShapeStatus"] * 3 + ["HoldShape"]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_policy_that_another_one_replaces_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, (1, [HELD, HELD, OTHER]))
    assert not hold(daemon).wait()


def test_interrupts_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts() as event:
        os.kill(os.getpid(), signal.SIGINT)
        assert event.wait(60)
    assert signal.getsignal(signal.SIGINT) is before

"""Bounds on a user's share of control: the order of turns, and the rate of changes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Any

import pytest

from dataplane.errors import VnicError
from vnic.api import methods as control_methods
from vnic.api.bounds import Bucket, Turns
from vnic.api.method import Caller, Method, Parameters, Session
from vnic.api.methods import CHANGES_AT_ONCE, LINES_AT_ONCE, Call, Methods

ALICE, BOB = 54321, 54322


def test_a_bucket_gives_its_burst_and_then_its_rate():
    now = [0.0]
    bucket = Bucket(3, 2.0, lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.25
    assert bucket.take() == 0.25  # a failed take takes nothing
    now[0] = 0.5
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    now[0] = 1000.0
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


async def settle() -> None:
    """Waits until the loop is idle: a turn's end takes a few passes."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_turns_go_round_the_users():
    async def run() -> list[str]:
        turns, order = Turns(), []

        async def change(uid: int, name: str) -> None:
            async with turns.turn(uid):
                order.append(name)

        async with turns.turn(ALICE):
            tasks = [asyncio.ensure_future(change(ALICE, f"a{n}")) for n in range(4)]
            await settle()
            tasks += [asyncio.ensure_future(change(BOB, f"b{n}")) for n in range(2)]
            tasks.append(asyncio.ensure_future(change(0, "root")))
            await settle()
            assert order == []
        await asyncio.gather(*tasks)
        await settle()
        async with turns.turn(BOB):  # the lock is free again
            order.append("end")
        return order

    assert asyncio.run(run()) == ["a0", "b0", "root", "a1", "b1", "a2", "a3", "end"]


def test_a_turn_is_not_lost_with_who_waits_for_it():
    async def run() -> list[str]:
        turns, order = Turns(), []

        async def change(name: str, fails: bool = False) -> None:
            async with turns.turn(ALICE):
                order.append(name)
                if fails:
                    raise VnicError(name)

        async with turns.turn(ALICE):
            first, second, third = (asyncio.ensure_future(change(name, name == "2")) for name in "123")
            await settle()
            first.cancel()
        last = asyncio.ensure_future(change("4"))
        assert [type(each) for each in await asyncio.gather(first, second, third, last, return_exceptions=True)] == [
            asyncio.CancelledError, VnicError, type(None), type(None),
        ]  # fmt: skip
        # The turn and the cancellation in one pass of the loop.
        async with turns.turn(ALICE):
            late = asyncio.ensure_future(change("late"))
            await settle()
        while not turns._waiting and not late.done() and turns._held:
            await asyncio.sleep(0)
            late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        await settle()
        await asyncio.wait_for(change("5"), 10)
        return order

    order = asyncio.run(run())
    assert [each for each in order if each != "late"] == ["2", "3", "4", "5"]


def test_reading_comes_between_two_changes():
    """A read that arrives during a change is answered before the next change begins."""

    async def run() -> list[str]:
        turns, order, loop = Turns(), [], asyncio.get_running_loop()
        reading, writing = os.pipe()
        came = asyncio.Event()
        loop.add_reader(reading, lambda: (os.read(reading, 1), came.set()))

        async def read() -> None:
            await came.wait()
            order.append("read")

        async def change(number: int) -> None:
            async with turns.turn(ALICE):
                order.append(f"change {number}")
                if number == 0:
                    os.write(writing, b"x")  # while the loop is blocked

        tasks = [asyncio.ensure_future(each) for each in (read(), *(change(number) for number in range(3)))]
        await asyncio.gather(*tasks)
        loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)
        return order

    assert asyncio.run(run()) == ["change 0", "read", "change 1", "change 2"]


class Offered:
    interface, description = "org.example.Test", ""

    def __init__(self) -> None:
        self.made = 0

    def methods(self) -> list[Method]:
        return [Method("Change", self.change, kind="change", clients=True), Method("Read", lambda *_: {}, clients=True)]

    def change(self, parameters: Parameters, caller: Caller) -> dict[str, Any]:
        self.made += 1
        return {}

    def ended(self, session: Session) -> None:
        pass


def test_a_client_s_changes_and_lines_are_bounded(monkeypatch, caplog):
    """The owner and other clients are not affected, nor are reads."""
    now = [0.0]
    monkeypatch.setattr(control_methods, "Bucket", lambda burst, rate: Bucket(burst, rate, lambda: now[0]))
    offered = Offered()
    methods = Methods([offered], "0", lambda: None, {str(ALICE): {}, str(BOB): {}})

    def call(uid: int, name: str = "Change") -> None:
        asyncio.run(methods.answer(Call(f"org.example.Test.{name}"), Caller(Session(uid, 1))))

    with caplog.at_level(logging.INFO):
        for _ in range(CHANGES_AT_ONCE):
            call(ALICE)
        for _ in range(LINES_AT_ONCE):
            with pytest.raises(
                VnicError, match=r"uid 54321 may make 50 changes at once and 10 a second after that; try again in 0.1 s"
            ):
                call(ALICE)
        assert offered.made == CHANGES_AT_ONCE
        assert len(caplog.records) == LINES_AT_ONCE
        for uid in (BOB, *[os.geteuid()] * (2 * CHANGES_AT_ONCE)):
            call(uid)
            call(ALICE, "Read")
        assert offered.made == 3 * CHANGES_AT_ONCE + 1
        assert len(caplog.records) == LINES_AT_ONCE + 2 * CHANGES_AT_ONCE + 1
        now[0] = 10.0  # one more line
        call(ALICE)
        call(ALICE)
        assert offered.made == 3 * CHANGES_AT_ONCE + 3
        last = caplog.records[-1].fields
        assert (last["uid"], last["unlogged"]) == (ALICE, CHANGES_AT_ONCE)
        json.dumps(last)

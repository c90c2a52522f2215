"""An attach and an apply that a container delays: the event loop serves other calls, and all that changes meanwhile stays right."""

import asyncio
import threading

import pytest

from dataplane.engine.clock import Clock
from dataplane.errors import ConfigError, PortError, VnicError
from vnic.api.method import Caller, Session
from vnic.config.convert import convert_nic
from vnic.config.load import parse_config
from vnic.device.kinds.memory import MemoryKind
from vnic.modules.devices import OneKind
from vnic.modules.network_methods import Attach
from vnic.runtime.instance import Apply, Instance
from vnic.runtime.runtime import Runtime

PATIENCE_S = 60
OWNER = Session(0, 1)


class SlowDevices(OneKind):
    """Devices whose NIC `slow` is made when `go` is set. opening: it is being made."""

    def __init__(self):
        super().__init__(MemoryKind())
        self.opening, self.go, self.fails, self.forgotten = threading.Event(), threading.Event(), False, []

    def open(self, config, number, passed=None, /):
        if config.name == "slow":
            self.opening.set()
            assert self.go.wait(PATIENCE_S)
            if self.fails:
                raise PortError("nic slow: the TAP broke")
        return super().open(config, number, passed)

    def forget(self, name):
        self.forgotten.append(name)
        super().forget(name)


class Running:
    def __init__(self, config, loop, go):
        self.devices = SlowDevices()
        if go:
            self.devices.go.set()
        self.runtime = Runtime(
            parse_config(config, contained=False), devices=self.devices, clock=Clock(virtual=True), loop=loop
        )
        self.runtime.start()
        self.methods = {each.name: each.call for module in self.runtime.modules for each in module.methods()}
        self.instance = {each.name: each.call for each in Instance(self.runtime, None).methods()}

    async def being_made(self):
        assert await asyncio.get_running_loop().run_in_executor(None, self.devices.opening.wait, PATIENCE_S)

    def attach(self, name, **settings):
        parameters = Attach(name, {"pid": 1, **settings})
        return asyncio.create_task(self.methods["Attach"](parameters, Caller(OWNER)))

    def names(self):
        return [each["name"] for each in self.runtime.status()["nics"]]


def run(test, config="nics: {a: , b: }", *, go=False):
    """go: nothing is delayed at first."""

    async def main():
        running = Running(config, asyncio.get_running_loop(), go)
        try:
            await asyncio.wait_for(test(running), PATIENCE_S)
        finally:
            running.devices.go.set()
            running.runtime.close()

    asyncio.run(main())


def test_others_are_served_during_an_attach():
    async def test(running):
        task = running.attach("slow")
        await running.being_made()
        assert running.names() == ["a", "b"]
        assert running.runtime.stats("a")["nics"][0]["name"] == "a"
        running.runtime.nics.set_rate("a", egress_bps=10**6)
        running.runtime.nics.detach("b")
        with pytest.raises(ConfigError, match=r"^nic slow: is attached already") as caught:
            running.runtime.nics.attach(convert_nic("slow", {"pid": 1}))
        assert caught.value.code == "exists"
        running.devices.go.set()
        status = (await task)["nic"]
        assert running.names() == ["a", "slow"]
        assert status["number"] not in {
            each.number for each in running.runtime.nics.attached.values() if each.config.name == "a"
        }

    run(test)


def test_two_attaches_get_two_numbers_and_engines():
    async def test(running):
        task = running.attach("slow")
        await running.being_made()
        other = running.runtime.nics.attach(convert_nic("other", {"pid": 1}))
        running.devices.go.set()
        slow = (await task)["nic"]
        assert {slow["engine"], other["engine"]} == {"e0", "e1"}
        assert slow["number"] != other["number"]

    run(test, "engines: 2")


@pytest.mark.parametrize("end", ["fails", "closed", "upgrading"])
def test_an_attach_that_fails_leaves_nothing(end):
    async def test(running):
        task = running.attach("slow")
        await running.being_made()
        before = running.runtime.config.nics.copy()
        running.devices.fails = end == "fails"
        if end == "closed":
            running.runtime.close()
        running.runtime.upgrading = end == "upgrading"
        running.devices.go.set()
        with pytest.raises(VnicError):
            await task
        running.runtime.upgrading = False
        assert "slow" not in running.runtime.nics.attached
        assert running.devices.forgotten[-1] == "slow"
        assert running.runtime.config.nics == before
        if end != "closed":  # the name is free again
            running.devices.fails = False
            assert (await running.attach("slow"))["nic"]["name"] == "slow"

    run(test)


def test_others_are_served_during_an_apply_and_changes_meanwhile_are_kept():
    async def test(running):
        wanted = {"nics": {"a": {"pid": 1}, "slow": {"pid": 1}, "b": {"pid": 1, "egress": {"rate": "2mbit"}}}}
        before = running.runtime.config.nics["a"]
        apply = running.instance["Apply"](Apply(config=wanted), Caller(OWNER))
        task = asyncio.create_task(apply)
        await running.being_made()
        assert running.names() == ["a", "b"]
        running.runtime.nics.detach("b")  # as when its container ends: what is applied brings it back
        running.devices.go.set()
        changes = (await task)["changes"]
        assert [(each["action"], each["name"]) for each in changes if each["kind"] == "nic"] == [
            ("change", "a"),
            ("add", "slow"),
            ("add", "b"),
        ]
        assert sorted(running.names()) == ["a", "b", "slow"]
        assert running.runtime.nics.attached["b"].egress.shaper.rate_bps == 2_000_000
        assert before.name == "a"

    run(test)


@pytest.mark.parametrize("end", ["attached", "detached", "closed"])
def test_others_are_served_while_a_nic_is_attached_again(end):
    async def test(running):
        nics = running.runtime.nics
        number = nics.attached["slow"].number
        running.devices.go.clear()
        running.devices.opening.clear()
        nics.detach("slow", "its namespace is gone", waits=True)
        await running.being_made()
        assert running.names() == ["a"]
        assert [each["name"] for each in running.runtime.status()["waiting"]] == ["slow"]
        nics.set_rate("a", egress_bps=10**6)
        returning = asyncio.create_task(nics.watching.returned())
        if end == "detached":
            nics.detach("slow")
        if end == "closed":
            running.runtime.close()
        running.devices.go.set()
        await returning
        assert ("slow" in nics.attached) == (end == "attached")
        assert end == "closed" or running.runtime.status()["waiting"] == []
        if end == "attached":
            assert nics.attached["slow"].number == number
        else:
            assert running.devices.forgotten[-1] == "slow"

    run(test, "nics: {a: , slow: {netns: /proc/self/ns/net}}", go=True)

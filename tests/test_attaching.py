"""A live attach, with the engines running between any two of its steps: the container's first frames are switched."""

import pytest

from dataplane.engine.clock import Clock
from dataplane.engine.virtual_time import VirtualTime
from dataplane.ports.memory import Frame
from vnic.config.convert import convert_nic
from vnic.config.load import parse_config
from vnic.device.kinds.memory import MemoryKind
from vnic.modules.devices import OneKind
from vnic.modules.switch_host import SwitchHost
from vnic.runtime.runtime import Runtime
from vnic.runtime.stepped_time import SteppedTime

FIRST = [b"\xff" * 6 + bytes([2, 0, 0, 0, 0, 9]) + b"\x88\xb5" + bytes([n] * 46) for n in range(3)]


class EagerDevices(OneKind):
    """Devices whose container `late` has sent frames before the NIC is in the graph."""

    def open(self, config, number, passed=None, /):
        nic = super().open(config, number, passed)
        if config.name == "late":
            nic.port.inject([Frame(data) for data in FIRST])
        return nic


@pytest.fixture
def between(monkeypatch):
    """Runs the engines after each change of a graph and each call on an engine's thread."""
    running: list[Runtime] = []

    def run():
        for runtime in running:
            VirtualTime(runtime.engines).advance(runtime.clock.now_ns)

    def wrapped(function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            run()
            return result

        return call

    for name in ("add", "add_ahead", "load", "do"):
        monkeypatch.setattr(SwitchHost, name, wrapped(getattr(SwitchHost, name)))
    return running


@pytest.mark.parametrize("nics", ["", "web: ", "web: , db: "])
@pytest.mark.parametrize("engines", [1, 2, 3])
def test_a_live_attach_loses_no_first_frame(between, engines, nics):
    devices = EagerDevices(MemoryKind())
    config = parse_config(f"engines: {engines}\nnics: {{{nics}}}", contained=False)
    with Runtime(config, devices=devices, clock=Clock(virtual=True)) as runtime:
        runtime.start()
        between.append(runtime)
        runtime.nics.attach(convert_nic("late", {"mac": "02:00:00:00:00:09"}, (), contained=False))
        VirtualTime(runtime.engines).advance(runtime.clock.now_ns)
        for name in {"web", "db"} & devices.nics.keys():
            assert [frame.data for frame in devices.nics[name].port.take()] == FIRST
        dropped = {
            reason: count
            for engine in runtime.stats()["engines"]
            for element in engine["elements"]
            for reason, count in element["dropped"].items()
            if count
        }
        assert dropped == ({} if nics else {"no_destination": len(FIRST)})
        assert runtime.status()["conserved"]
        between.clear()


def test_a_link_that_is_down_is_down_for_first_frames_too(between):
    """A NIC that is attached while a scenario has its line down: elements get the values of the moment first."""
    devices = EagerDevices(MemoryKind())
    config = parse_config("nics: {web: , late: {mac: '02:00:00:00:00:09'}}", contained=False)
    with Runtime(config, devices=devices, clock=Clock(virtual=True)) as runtime:
        runtime.start()
        time = SteppedTime(runtime)
        time.run(1 << 62)
        devices.nics["web"].port.take()
        scenario = [{"at": "1s", "link": "late", "down": "1s"}]
        runtime.policy.apply({"version": 1, "scenario": scenario})
        SteppedTime(runtime).advance(runtime.clock.now_ns + 1_500_000_000)
        runtime.nics.detach("late")
        between.append(runtime)
        runtime.nics.attach(convert_nic("late", {"mac": "02:00:00:00:00:09"}, (), contained=False))
        VirtualTime(runtime.engines).advance(runtime.clock.now_ns)
        assert devices.nics["web"].port.take() == []
        (element,) = [each for each in runtime.stats("late")["engines"][0]["elements"] if each["name"] == "late.egress.shape"]
        assert element["dropped"]["loss"] == len(FIRST)
        between.clear()

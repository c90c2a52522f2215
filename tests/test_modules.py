"""Modules: methods in their own interface, engines in groups, clients set up and charged; also
after crash and upgrade."""

import json
from contextlib import suppress
from types import SimpleNamespace

import pytest
import varlink

from dataplane.engine.clock import Clock
from dataplane.errors import ConfigError, VnicError
from tests.test_command import environment, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import kill_worker, status
from vnic.api.client import Client
from vnic.api.method import Method
from vnic.api.methods import Methods
from vnic.config.convert import convert_config, decode_config, encode_config
from vnic.modules.module import Module
from vnic.runtime.runtime import Runtime

FRAME = "02" * 125  # 1000 bits


@pytest.fixture
def running(environment, tmp_path, leak_check, monkeypatch):  # noqa: F811
    """An instance with the example's module, in its own group."""
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path))
    groups = {"rest": {}, "meters": {"mode": "compacting"}}
    config = {"groups": groups, "modules": [{"module": "examples.meter:Meter", "group": "meters"}]}
    (tmp_path / "net.yaml").write_text(json.dumps(config))
    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        yield environment, f"unix:{tmp_path / 'default.sock'}"
    finally:
        with suppress(AssertionError):
            vnic(environment, "down")


def meter(method, **parameters):
    with Client() as client:
        return client.call(f"org.example.Meter.{method}", **parameters)


def until(condition):
    """Waits until the condition holds, or for the test's timeout."""
    while not condition():
        pass


def test_a_module_s_methods_engines_and_clients(running):
    env, address = running
    with varlink.Client.new_with_address(address) as client:
        assert "org.example.Meter" in client.get_interfaces()
        with client.open("org.example.Meter") as meters:
            meters.Open("fast", "1gbit")
            meters.Open("slow", "8kbit")
            meters.Send("fast", [FRAME] * 64)
            meters.Send("slow", [FRAME] * 64)
            until(lambda: meters.Read("fast")["left"] == 64)
            with pytest.raises(varlink.VarlinkError) as caught:
                meters.Open("fast", "1mbit")
            assert caught.value.error() == "org.vnic.Control.InvalidConfig"
    now = status(env)
    engine = {each["name"]: each for each in now["engines"]}["meters"]
    assert now["conserved"] and now["meters"] == ["fast", "slow"]
    assert (engine["group"], engine["thread"], engine["received"]) == ("meters", "meters.0", 128)
    books = {each["nic"]: each for each in json.loads(vnic(env, "accounts", "--json"))["accounts"]}
    assert books["fast"]["cpu_ns"] > 0 and books["slow"]["memory_bytes"] > 0
    meter("Close", name="fast")
    assert [each["nic"] for each in json.loads(vnic(env, "accounts", "--json"))["accounts"]] == ["slow"]
    assert "there is no such meter" in refused(lambda: meter("Read", name="fast"))
    assert status(env)["conserved"]


def refused(call):
    with pytest.raises(VnicError) as caught:
        call()
    return str(caught.value)


def test_an_upgrade_takes_along_what_a_module_s_engines_hold(running):
    env, _ = running
    meter("Open", name="slow", rate="8kbit")  # a packet in 125 ms
    meter("Send", name="slow", frames=[FRAME] * 50)
    until(lambda: meter("Read", name="slow")["waiting"] >= 40)
    report = json.loads(vnic(env, "upgrade", "--json"))
    assert {each["name"]: each["packets_moved"] > 0 for each in report["engines"]} == {"e0": False, "meters": True}
    after = meter("Read", name="slow")
    assert after["left"] + after["waiting"] == 50 and after["waiting"] > 0
    until(lambda: meter("Read", name="slow")["left"] > after["left"])
    assert status(env)["conserved"]


def test_after_a_crash_a_module_is_as_it_was_set_up(running):
    env, _ = running
    meter("Open", name="one", rate="1mbit")
    kill_worker(env)
    meter("Send", name="one", frames=[FRAME])
    until(lambda: meter("Read", name="one") == {"left": 1, "waiting": 0})
    assert status(env)["meters"] == ["one"]


class Refusing(Module):
    def __init__(self, runtime, **settings):
        raise RuntimeError("no, not today")


class Twice(Module):
    interface = "org.example.Twice"

    def methods(self):
        return [Method("A", print), Method("A", print)]


@pytest.mark.parametrize(("modules", "says"), [
    ([{"module": "Meter"}], "module Meter: unknown: expected module:Class"),
    ([{"module": "nowhere:Meter"}], "cannot import nowhere"),
    ([{"module": "tests.test_modules:Client"}], "has no module class Client"),
    ([{"module": "tests.test_modules:Refusing"}], "refuses its arguments: no, not today"),
    ([{"module": "examples.meter:Meter", "colour": "red"}], "refuses its arguments"),
    ([{"module": "examples.meter:Meter", "group": "most"}], "group most: there is none"),
    (["examples.meter:Meter"] * 2, "engine meters: the name is taken"),
])  # fmt: skip
def test_a_module_that_will_not_do_is_one_line(modules, says):
    config = convert_config({"modules": modules})
    with pytest.raises(ConfigError) as caught:
        Runtime(config, clock=Clock(virtual=True))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("data", "says"), [
    ({"modules": {"a": 1}}, "modules: invalid value a mapping"), ({"modules": [3]}, "modules[0]: invalid value 3"),
    ({"modules": [{"class": "a:B"}]}, "has no module"), ({"modules": [{"module": "a:B", "not ok": 1}]}, "not a constructor argument"),
])  # fmt: skip
def test_configuration_of_modules(data, says):
    with pytest.raises(ConfigError) as caught:
        convert_config(data)
    assert says in str(caught.value)


def test_what_a_module_was_told_travels():
    config = convert_config({"modules": ["examples.meter:Meter"]})
    runtime = Runtime(config, clock=Clock(virtual=True))
    runtime.start()
    runtime.modules[1]._open(type("P", (), {"name": "m", "rate": "1mbit"}), None)
    again = decode_config(encode_config(runtime.config))
    assert again.modules[0].arguments == {"group": None, "meters": {"m": "1mbit"}}
    assert config.modules[0].arguments == {}  # from the configuration
    runtime.close()
    successor = Runtime(again, clock=Clock(virtual=True))
    assert encode_config(successor.config) == encode_config(runtime.config)
    assert [element.name for element in successor.engines[1].elements] == ["m.rx", "m.rate", "m.left", "m.end"]
    successor.start()
    successor.close()


class Remembering(Module):
    """Saves its number among the modules of its class."""

    def __init__(self, runtime, number=0):
        super().__init__(runtime, number=number)
        self.number = self.loaded = number

    def save(self):
        return {"number": self.number}

    def load(self, state):
        self.loaded = state["number"]


def test_saved_states_are_matched_by_name():
    """Not by position, since versions may have different modules."""
    each = "tests.test_modules:Remembering"
    config = convert_config({"modules": [{"module": each, "number": 1}, {"module": each, "number": 2}]})
    runtime = Runtime(config, clock=Clock(virtual=True))
    state = runtime.save_control()
    assert list(state["modules"]) == ["nics", each, f"{each} 2"]
    state["modules"] = {"another": {"number": 9}} | dict(reversed(state["modules"].items()))
    for module in runtime.modules[1:]:
        module.loaded = None
    runtime.load_control(state)
    assert [module.loaded for module in runtime.modules[1:]] == [1, 2]
    runtime.close()


def test_a_method_is_one_module_s():
    with pytest.raises(ConfigError, match=r"method org.example.Twice.A: is another's already"):
        Methods([Twice(SimpleNamespace(module_name="twice"))], "0", lambda: None)


KEEPS = '''
import os
from vnic.api.method import Method, Parameters
from vnic.modules.module import Module

class Keeps(Module):
    """Keeps a memfd for its next worker, and tells which of its hooks were called."""

    interface = "org.example.Keeps"
    description = "interface org.example.Keeps\\n\\nmethod Tell() -> (content: string, hooks: []string, name: string)\\n"

    def __init__(self, runtime):
        super().__init__(runtime)
        self.hooks, found = [], self.kept("note")
        self.content = "new"
        if found:
            self.content = os.pread(found[0], 100, 0).decode()
            os.close(found[0])

    def methods(self):
        return [Method("Tell", self._tell)]

    def _tell(self, parameters, caller):
        return {"content": self.content, "hooks": self.hooks, "name": self.name}

    def open(self): self.hooks.append("open")
    def watch(self): self.hooks.append("watch")
    def claim(self, captures): self.hooks.append("claim")
    def start(self):
        self.hooks.append("start")
        if self.runtime.role == "first":
            note = os.memfd_create("note")
            os.pwrite(note, b"kept", 0)
            self.keep("note", note)
            self.keep("other", note)
            self.drop("other")
            os.close(note)
'''


def test_hooks_and_descriptors_that_outlive_a_worker(environment, tmp_path, leak_check, monkeypatch):  # noqa: F811
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "keeps.py").write_text(KEEPS)
    (tmp_path / "net.yaml").write_text("modules: [{module: keeps:Keeps}]")

    def tell():
        with Client() as client:
            return client.call("org.example.Keeps.Tell")

    vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
    try:
        first = tell()
        assert (first["content"], first["name"], sorted(first["hooks"])) == ("new", "keeps:Keeps", ["open", "start", "watch"])
        vnic(environment, "upgrade")
        after = tell()
        assert after["content"] == "kept" and after["hooks"] == ["open", "start", "watch", "claim"]
        kill_worker(environment)
        after = tell()
        assert after["content"] == "kept" and sorted(after["hooks"]) == ["open", "start", "watch"]
    finally:
        with suppress(AssertionError):
            vnic(environment, "down")

"""Makes workers fail, for tests.

VNIC_TEST_FAULT     of a new worker: the step of an upgrade, and "raises", "dies", "hangs",
                    "garbles" (sends an invalid answer) or "waits" (for a write to the FIFO
                    VNIC_TEST_GATE)
VNIC_TEST_PATIENCE  of an old worker: module:NAME=seconds
"""

import os
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

STEP, HOW = os.environ.get("VNIC_TEST_FAULT", "none none").split()
WHICH, _, WHAT = STEP.rpartition("-")  # such as first-load: the first engine loads its state
AT_CALL = 2 if WHICH == "second" else 1
ANSWERS = {"control": "done", "load": "loaded", "word": "mine", "run": "running_ns"}
PATIENCE, _, SECONDS = os.environ.get("VNIC_TEST_PATIENCE", "").partition("=")
NO_MESSAGE = b"\x01\0\0\0\xc1"  # invalid: 0xc1 is unused in MessagePack


def fail():
    if HOW == "dies":
        os._exit(9)
    if HOW == "hangs":
        time.sleep(3600)
    if HOW == "waits":
        with open(os.environ["VNIC_TEST_GATE"]) as gate:
            gate.read()
        return
    from dataplane.errors import VnicError

    raise VnicError(f"failed on purpose: {STEP}")


def failing(function, at_call=AT_CALL, caller=None):
    """Wraps `function` so that it fails at call `at_call` from the module `caller` (None: any)."""
    calls = []

    def wrapper(*arguments, **keywords):
        if caller in (None, sys._getframe(1).f_globals["__name__"]):
            calls.append(1)
            if len(calls) == at_call:
                fail()
        return function(*arguments, **keywords)

    return wrapper


def answering(send):
    """Wraps Channel.send so that it fails at the step's answer."""
    answers = []

    def wrapper(channel, **message):
        if ANSWERS[WHAT] in message:
            answers.append(1)
            if len(answers) == AT_CALL and HOW == "garbles":
                channel._socket.sendall(NO_MESSAGE)
                return
            if len(answers) == AT_CALL:
                fail()
        send(channel, **message)

    return wrapper


def spoil(module):
    match module.__name__, WHAT:
        case "vnic.daemon.upgrade", what if what == "word" or (HOW == "garbles" and what in ANSWERS):
            module.Channel.send = answering(module.Channel.send)
        case _ if HOW == "garbles":
            pass
        case "vnic.runtime.runtime", "brownout":
            module.Runtime.start = failing(module.Runtime.start)
        case "vnic.runtime.runtime", "control":
            module.Runtime.load_control = failing(module.Runtime.load_control)
        case "vnic.daemon.upgrade", "load":
            module.Loading.finish = failing(module.Loading.finish)
        case "vnic.api.server", "serve" if sys.argv[-1] == "successor":
            module.Server.start = failing(module.Server.start)
        case "dataplane.groups.group", "run":
            module.EngineGroup.resume = failing(module.EngineGroup.resume, caller="vnic.daemon.upgrade")
    if PATIENCE.startswith(f"{module.__name__}:"):
        setattr(module, PATIENCE.partition(":")[2], float(SECONDS))


class Spoiling(Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        spoil(module)


class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in (
            "vnic.runtime.runtime",
            "vnic.daemon.upgrade",
            "vnic.daemon.worker",
            "vnic.api.server",
            "dataplane.groups.group",
        ):
            return None
        spec = PathFinder.find_spec(name, path)
        spec.loader = Spoiling(spec.loader)
        return spec


if STEP == "start":
    fail()
sys.meta_path.insert(0, Finder())

"""A worker that fails on purpose: VNIC_TEST_FAULT names the step of an upgrade, and "raises", "dies" or "hangs". For tests only."""

import os
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

STEP, HOW = os.environ["VNIC_TEST_FAULT"].split()


def fail():
    if HOW == "dies":
        os._exit(9)
    if HOW == "hangs":
        time.sleep(3600)
    from dataplane.errors import VnicError

    raise VnicError(f"failed on purpose: {STEP}")


def failing(function, at_call=1):
    calls = []

    def wrapper(*arguments, **keywords):
        calls.append(1)
        if len(calls) == at_call:
            fail()
        return function(*arguments, **keywords)

    return wrapper


def spoil(module):
    match module.__name__, STEP:
        case "vnic.control.runtime", "brownout":
            module.Runtime.start = failing(module.Runtime.start)
        case "vnic.control.runtime", "control":
            module.Runtime.load_control = failing(module.Runtime.load_control)
        case "vnic.control.upgrade", "first-load":
            module.load_engine = failing(module.load_engine)
        case "vnic.control.upgrade", "second-load":
            module.load_engine = failing(module.load_engine, 2)
        case "vnic.control.server", "serve" if sys.argv[-1] == "successor":
            module.Server.start = failing(module.Server.start)
        case "dataplane.group", "first-run":
            module.EngineGroup.resume = failing(module.EngineGroup.resume)
        case "dataplane.group", "second-run":
            module.EngineGroup.resume = failing(module.EngineGroup.resume, 2)


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
        if name not in ("vnic.control.runtime", "vnic.control.upgrade", "vnic.control.server", "dataplane.group"):
            return None
        spec = PathFinder.find_spec(name, path)
        spec.loader = Spoiling(spec.loader)
        return spec


if STEP == "start":
    fail()
sys.meta_path.insert(0, Finder())

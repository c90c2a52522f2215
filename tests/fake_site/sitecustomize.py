"""Replaces the runtime by the fake one, in processes of the command that tests start."""

import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec


class _FakeRuntime(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name == "vnic.runtime.runtime" else None

    def exec_module(self, module: types.ModuleType) -> None:
        from tests.fake_daemon import FakeRuntime

        module.Runtime = FakeRuntime


sys.meta_path.insert(0, _FakeRuntime())

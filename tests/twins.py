"""Compiled classes of tests, over inline functions that Python does not see."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

TREE = Path(__file__).parents[1]


def compiled(name: str, place: Path) -> ModuleType:
    """The module tests/NAME.pyx, compiled in the directory `place`."""
    shutil.copy(TREE / f"tests/{name}.pyx", place)
    code = f"""
import sys; sys.path.insert(0, {str(TREE)!r})
from setuptools import setup, Extension
from Cython.Build import cythonize
setup(script_args=["-q", "build_ext", "--inplace"], ext_modules=cythonize(
    [Extension({name!r}, ["{name}.pyx"], include_dirs=[{str(TREE / "dataplane")!r}])],
    include_path=[{str(TREE)!r}], language_level=3, quiet=True))
"""
    environment = {**os.environ, "CFLAGS": "-O1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = place.glob(f"{name}*.so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Layers: imports and cimports only go down, and packages of one layer do not import each other."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The packages of the project that each package may import. No package may import others (tests,
# bench, ...).
ALLOWED = {
    "dataplane": set(),
    "shaping": {"dataplane"},
    "switching": {"dataplane"},
    "virt": {"dataplane"},
    "transport": {"dataplane"},
    "vnic": {"dataplane", "shaping", "switching", "virt", "transport"},
}
OURS = {*ALLOWED, "tests", "bench", "fuzz", "examples"}
FORBIDDEN = {"scapy"}  # GPL-2.0-only and slow: tests import it, lazily
EXCEPT = {"vnic/replay/dissect.py"}  # shows differences between packets
CYTHON_IMPORT = re.compile(r"^\s*(?:(?:cimport|import)\s+(?P<names>[\w., ]+)|from\s+(?P<source>[\w.]+)\s+c?import\b)")


def python_imports(text: str) -> list[tuple[int, str]]:
    """(line, module) of every import, absolute names; also import_module("...") with a constant."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in {
            "import_module",
            "__import__",
        }:
            found += [(node.lineno, each.value) for each in node.args[:1] if isinstance(each, ast.Constant)]
    return found


def cython_imports(text: str) -> list[tuple[int, str]]:
    """The same for .pyx and .pxd, by line, without a parser. Imports in docstrings count, too."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = CYTHON_IMPORT.match(line)
        if match and match["names"]:
            found += [(number, name.split()[0]) for name in match["names"].split(",") if name.split()]
        elif match and not match["source"].startswith("."):
            # a relative import that leaves its package is found below
            found.append((number, match["source"]))
    return found


def violations(root: Path) -> list[str]:
    """One line for every forbidden import: "path:line: package imports module"."""
    found = []
    for package, allowed in ALLOWED.items():
        for path in sorted((root / package).rglob("*.p*")):
            if path.suffix not in {".py", ".pyi", ".pyx", ".pxd"}:
                continue
            text = path.read_text()
            imports = python_imports(text) if path.suffix in {".py", ".pyi"} else cython_imports(text)
            for number, module in imports:
                top = module.split(".")[0]
                forbidden = top in FORBIDDEN and str(path.relative_to(root)) not in EXCEPT
                if forbidden or (top in OURS and top != package and top not in allowed):
                    found.append(f"{path.relative_to(root)}:{number}: {package} imports {module}")
    return found


# The rooms of vnic, from the bottom up: a room imports those before it only.
ROOMS = ("device", "config", "api", "store", "modules", "runtime", "daemon", "replay", "testing", "cli")


def modules_of(root: Path) -> dict[str, set[str]]:
    """By module, the modules of the project that it imports anywhere: also inside functions and under
    TYPE_CHECKING."""
    files: dict[str, list[Path]] = {}
    for package in ALLOWED:
        for path in sorted((root / package).rglob("*.p*")):
            if path.suffix in {".py", ".pyx", ".pxd"}:
                name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
                files.setdefault(name, []).append(path)
    found: dict[str, set[str]] = {}
    for name, paths in files.items():
        wanted = found[name] = set()
        for path in paths:
            text = path.read_text()
            if path.suffix == ".py":
                for node in ast.walk(ast.parse(text)):
                    if isinstance(node, ast.Import):
                        wanted.update(alias.name for alias in node.names)
                    elif isinstance(node, ast.ImportFrom):
                        assert node.level == 0, f"{path}: a relative import"
                        wanted.add(node.module or "")
                        wanted.update(f"{node.module}.{alias.name}" for alias in node.names)
            else:
                for match in re.finditer(r"^\s*from ([\w.]+) c?import (\([^)]*\)|.*)", text, re.M):
                    wanted.add(match[1])
                    wanted.update(f"{match[1]}.{each}" for each in re.findall(r"\w+", match[2]))
                wanted.update(re.findall(r"^\s*c?import ([\w.]+)", text, re.M))
        wanted.intersection_update(files)
        wanted.discard(name)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a circle, or []."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def room(module: str) -> str:
    """The folder of a module; a folder within a room belongs to the room. A package's own names (vnic.Client) are its parent's."""
    return ".".join(module.split(".")[:-1][:2]) or module


def test_no_modules_import_each_other_in_a_circle():
    assert circle(modules_of(ROOT)) == []


def test_no_rooms_import_each_other_in_a_circle():
    graph = modules_of(ROOT)
    packages = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    rooms: dict[str, set[str]] = {}
    for module in graph.keys() - packages:
        found = rooms.setdefault(room(module), set())
        found.update(room(each) for each in graph[module] - packages if room(each) != room(module))
    assert circle(rooms) == []


def test_the_rooms_of_vnic_import_those_below_only():
    assert {path.parent.name for path in (ROOT / "vnic").glob("*/__init__.py")} == set(ROOMS)
    for module, imported in modules_of(ROOT).items():
        for each in imported:
            if room(module).startswith("vnic.") and room(each).startswith("vnic."):
                above, below = room(module).removeprefix("vnic."), room(each).removeprefix("vnic.")
                assert ROOMS.index(below) <= ROOMS.index(above), f"{module} imports {each}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import dataplane.b", "import dataplane.a"),
        ("def f():\n    from dataplane.b import x", "from dataplane import a"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dataplane.b import x", "import dataplane.a"),
    ],
)
def test_a_circle_is_found(tmp_path, first, second):
    (tmp_path / "dataplane").mkdir()
    (tmp_path / "dataplane/a.py").write_text(first)
    (tmp_path / "dataplane/b.py").write_text(second)
    assert set(circle(modules_of(tmp_path))) == {"dataplane.a", "dataplane.b"}


def test_imports_only_go_down():
    assert violations(ROOT) == []


def test_the_packages_are_where_the_check_looks():
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} <= OURS
    for package in ("dataplane", "shaping", "switching", "virt", "vnic"):
        assert list((ROOT / package).rglob("*.py")), package
    assert "dataplane.graph.element" in [name for _, name in cython_imports((ROOT / "dataplane/engine/engine.pyx").read_text())]


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        ("dataplane/a.py", "import os\nimport vnic.cli", 2),
        ("dataplane/a.py", "def f():\n    from shaping import policy", 2),
        ("dataplane/a.py", "import importlib\nimportlib.import_module('virt.guest')", 2),
        ("dataplane/a.pyx", "cimport shaping.shaper", 1),
        ("dataplane/a.pyx", "from libc.stdint cimport uint32_t\nfrom shaping.shaper cimport Shaper", 2),
        ("dataplane/deep/er/a.pxd", "from vnic.device.nic cimport (\n    Nic)", 1),
        ("dataplane/a.pyx", "import os, virt.guest as guest", 1),
        ("shaping/a.py", "from virt import guest", 1),
        ("virt/a.pyi", "import transport", 1),
        ("transport/a.pyx", "cdef f():\n    import shaping.policy", 2),
        ("shaping/a.py", "import vnic", 1),
        ("vnic/a.py", "import bench.traffic", 1),
        ("vnic/a.py", "from tests import tools", 1),
        ("vnic/a.py", "def f():\n    import scapy.all", 2),
    ],
)
def test_a_climbing_import_is_found(tmp_path, path, text, line):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    [found] = violations(tmp_path)
    assert found.startswith(f"{path}:{line}: {path.split('/')[0]} imports ")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("dataplane/a.py", "import dataplane.packet.pool, os\nfrom . import element"),
        ("shaping/a.pyx", "from dataplane.graph.element cimport Element\ncimport dataplane.packet.pool as packet"),
        ("vnic/a.py", "import dataplane, shaping, virt, transport"),
        ("dataplane/a.py", '"""import vnic"""\ntext = "from shaping import x"'),
        ("bench/a.py", "import vnic, scapy, tests"),
    ],
)
def test_a_lawful_import_is_not(tmp_path, path, text):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert violations(tmp_path) == []

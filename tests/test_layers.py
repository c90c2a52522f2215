"""Layers: imports and cimports only go down, and packages of one layer do not import each other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The packages of the project that each package may import. No package may import others (tests,
# bench, ...).
ALLOWED = {
    "dataplane": set(),
    "shaping": {"dataplane"},
    "virt": {"dataplane"},
    "transport": {"dataplane"},
    "vnic": {"dataplane", "shaping", "virt", "transport"},
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


def test_imports_only_go_down():
    assert violations(ROOT) == []


def test_the_packages_are_where_the_check_looks():
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} <= OURS
    for package in ("dataplane", "shaping", "virt", "vnic"):
        assert list((ROOT / package).rglob("*.py")), package
    assert "dataplane.element" in [name for _, name in cython_imports((ROOT / "dataplane/engine.pyx").read_text())]


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
        ("dataplane/a.py", "import dataplane.packet, os\nfrom . import element"),
        ("shaping/a.pyx", "from dataplane.element cimport Element\ncimport dataplane.packet as packet"),
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

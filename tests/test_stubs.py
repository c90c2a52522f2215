"""The .pyi of each compiled module is correct: mypy's stubtest compares the two."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [name for name in ("dataplane", "shaping", "switching", "transport", "virt", "vnic") if (ROOT / name).exists()]
STUBS = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.pyi"))


def stubtest(modules, path, allowlist=ROOT / "tests/stubtest_allowlist.txt"):
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-disjoint-bases", "--ignore-unused-allowlist"]
    return subprocess.run([*command, "--allowlist", allowlist, *modules], cwd=path, capture_output=True, text=True)


@pytest.mark.timeout(720)  # mypy reads numpy's stubs first, without a cache on a fresh clone
def test_stubs_match_the_compiled_modules():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in STUBS]
    result = stubtest(modules, ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_stub_stands_beside_a_compiled_module():
    assert [path for path in STUBS if not path.with_suffix(".pyx").exists()] == []


def test_packages_are_marked_as_typed():
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").exists()] == []


def test_a_lying_stub_is_found(tmp_path):
    (tmp_path / "liar.py").write_text("def f(a): ...\n")
    (tmp_path / "liar.pyi").write_text("def f(b: int) -> None: ...\n")
    result = stubtest(["liar"], tmp_path)
    assert result.returncode == 1
    assert "liar.f" in result.stdout

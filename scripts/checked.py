"""Builds a copy of the tree with checks in it and runs the tests there.

usage: checked.py debug|asan [--build-only] [pytest's arguments]
       checked.py fuzz --build-only

The copy (build/debug, build/asan, build/fuzz) keeps the release build as it is; only what changed
is copied and compiled again.
debug: our invariants (vnic_check), bounds of memoryviews. asan: the same under AddressSanitizer.
fuzz: for the fuzzers, with the compiler that the environment names (fuzz/__main__.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {
    ".git",
    ".venv",
    "build",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    "results",
}
BUILT = {".so", ".pyc"}


def files(root: Path) -> dict[Path, os.stat_result]:
    """Every source file below `root`, by relative path."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name for name in folders if name not in LEFT_OUT and not name.endswith(".egg-info")
        ]
        for name in names:
            path = Path(folder) / name
            if path.suffix not in BUILT and not path.is_symlink():
                found[path.relative_to(root)] = path.stat()
    return found


def mirror(source: Path, target: Path) -> None:
    """Makes `target` hold the sources of `source`: changed files copied with their times, files
    that are gone removed."""
    wanted, there = files(source), files(target)
    for path, status in wanted.items():
        if path not in there or (there[path].st_mtime_ns, there[path].st_size) != (
            status.st_mtime_ns,
            status.st_size,
        ):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / path, target / path)
    for path in there.keys() - wanted.keys():
        (target / path).unlink()
        for built in (target / path).parent.glob(f"{path.stem}.*.so"):
            built.unlink()


def environment(kind: str, tree: Path) -> dict[str, str]:
    """What the build and the tests run with. PYTHONPATH comes before .venv's own path to the
    release build."""
    variables = {**os.environ, "VNIC_BUILD": kind, "PYTHONPATH": str(tree)}
    if kind == "asan":
        libraries = [
            subprocess.run(
                ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in (
                "libasan.so",
                "libstdc++.so.6",
            )  # ASan finds what C++ throws with only where that is there before it
        ]
        variables |= {
            # Python itself is not built with ASan, so its run-time library must be there before
            # Python is.
            "LD_PRELOAD": ":".join(str(Path(library).resolve()) for library in libraries),
            # Python's own small-object allocator would hide every object in big blocks that ASan
            # sees as one.
            "PYTHONMALLOC": "malloc",
            # Leaks: CPython leaves types, interned strings and modules to the end of the process,
            # and each would be reported.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:strict_string_checks=1",
        }
    return variables


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in {"debug", "asan", "fuzz"}:
        print(__doc__, file=sys.stderr)
        return 2
    kind, rest = arguments[0], arguments[1:]
    if kind == "fuzz" and rest != ["--build-only"]:
        print(__doc__, file=sys.stderr)
        return 2
    tree = ROOT / "build" / kind
    mirror(ROOT, tree)
    print(f"vnic: compiling the {kind} build in build/{kind}", file=sys.stderr)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    status = subprocess.run(
        build, cwd=tree, env={**os.environ, "VNIC_BUILD": kind}, stdout=sys.stderr
    ).returncode
    if status or "--build-only" in rest:
        return status
    os.chdir(tree)
    # A slower build is not to be timed: each test gets three times its time, those that measure are
    # left out, and as nothing measures, files run side by side.
    wanted = "not timing and not again and not commands"
    run = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-m",
        wanted,
        "--timeout",
        "900",
    ]
    run += ["-n", "logical", "--dist", "loadfile", "--max-worker-restart", "0", *rest]
    os.execvpe(run[0], run, environment(kind, tree))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

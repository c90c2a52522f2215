"""The source distribution, and the wheel built from it, work in a fresh environment."""

import faulthandler
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dataplane.abi import ABI
from tests.support import plain_user
from tests.support.capture_files import pcap
from tests.support.containers import IS_ROOT
from tests.tools import need

TREE = Path(__file__).parents[1]
EXAMPLE = TREE / "examples/compiled-element"
PACKAGES = ("dataplane", "shaping", "switching", "virt", "vnic")
NO_SOURCES = (".git", ".venv", ".*_cache", ".hypothesis", "*.egg-info", "*.so", "__pycache__", "abi.h", "bin", "build", "dist")
BUILD_S = 1800  # two minutes of CPU time, on a machine that may be ten times as busy

pytestmark = [pytest.mark.commands, pytest.mark.timeout(BUILD_S)]


@pytest.fixture(scope="module")
def place():
    """A directory that a plain user can access, too."""
    path = Path(tempfile.mkdtemp(prefix="vnic-package-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def packages(place):
    """The source distribution and the wheel built from it, with the build tools of this
    environment."""
    faulthandler.cancel_dump_traceback_later()  # pytest's timer: this takes minutes without hanging
    # From a copy: the tools write into the tree, which other tests use.
    shutil.copytree(TREE, place / "tree", ignore=shutil.ignore_patterns(*NO_SOURCES))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(place / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (place / "log").write_text(done.stdout + done.stderr)
    [source], [wheel] = (list((place / "dist").glob(pattern)) for pattern in ("vnic-*.tar.gz", "vnic-*.whl"))
    return source, wheel


def tracked(*patterns):
    """Files of the source tree that match."""
    return {str(path.relative_to(TREE)) for package in PACKAGES for each in patterns for path in (TREE / package).rglob(each)}


def test_the_source_distribution_has_every_source(packages):
    source, _ = packages
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("*.py", "*.pyx", "*.pxd", "*.pyi", "*.h") - {"dataplane/abi.h"} <= names
    assert {"setup.py", "LICENSE", "README.md", "Makefile", "scripts/man.py", "tests/conftest.py", "bench/micro.pyx"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_the_wheel_has_what_runs_and_what_compiled_elements_need_and_nothing_else(packages):
    _, wheel = packages
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert tracked("*.py", "*.pxd", "*.pyi", "*.h", "py.typed") <= names
    compiled = {re.sub(r"\.[^/]*$", "", name) for name in names if name.endswith(".so")}
    assert compiled == {name.removesuffix(".pyx") for name in tracked("*.pyx")}
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {*PACKAGES, "vnic"}
    assert not [name for name in names if name.endswith((".pyx", ".c"))]
    pages = {Path(name).name for name in names if "/share/man/man1/" in name}
    assert {"vnic.1", "vnic-up.1", "vnic-attach.1", "vnic-hook.1"} <= pages


def test_a_build_says_how_far_it_is(packages, place):
    log = (place / "log").read_text()
    modules = {name.removesuffix(".pyx") for name in tracked("*.pyx")}
    progress = re.findall(r"^vnic: \[(\d+)/(\d+)\] compiling (\S+)$", log, re.MULTILINE)
    assert {name for _, _, name in progress} == modules
    assert sorted(int(number) for number, _, _ in progress) == list(range(1, len(modules) + 1))
    assert {int(total) for _, total, _ in progress} == {len(modules)}
    assert re.search(rf"^vnic: compiled {len(modules)} modules in \d+ s$", log, re.MULTILINE)


def test_the_metadata_is_right(packages):
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *packages], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(packages[1]) as archive:
        [name] = [each for each in archive.namelist() if each.endswith("/METADATA")]
        text = archive.read(name).decode()
    # Links to files of the source tree do not work on a package page.
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in links if not re.match(r"https?://|#", link)] == []


# -- a fresh environment ---------------------------------------------------------------------------


def requirements(name, extras=()):
    """Names of the distributions that one requires, directly or indirectly."""
    found = {name}
    for text in metadata.requires(name) or []:
        each = Requirement(text)
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            found |= requirements(each.name)
    return found


def link(name, packages_directory):
    """Makes an installed distribution importable in another environment, without a network."""
    distribution = metadata.distribution(name)
    for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
        if not (packages_directory / top).exists():
            (packages_directory / top).symlink_to(distribution.locate_file(top))


def run(argv, cwd, *, user=True, timeout_s=480):
    """Runs a command of the fresh environment, outside the source tree; as root, runs it as a plain
    user."""
    if user and IS_ROOT:
        argv = [sys.executable, plain_user.__file__, "--", *map(str, argv)]
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VNIC_RUNTIME_DIR"}}
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture(scope="module")
def fresh(place, packages):
    """A virtual environment with vnic's requirements, the tools to compile an element, and the
    wheel, installed by pip."""
    directory = place / "fresh"
    venv.create(directory, with_pip=True)
    [site] = (directory / "lib").glob("python*/site-packages")
    needed = requirements("vnic") - {"vnic"} | requirements("Cython") | requirements("setuptools")
    for name in needed:
        link(name, site)
    if IS_ROOT:
        for folder, _, files in os.walk(place):
            for path in (folder, *(os.path.join(folder, file) for file in files)):
                os.chown(path, plain_user.UID, plain_user.UID, follow_symlinks=False)
    install = [directory / "bin/python", "-m", "pip", "install", "--no-index", "--disable-pip-version-check", packages[1]]
    done = run(install, place)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_the_installed_wheel_runs_the_demonstration(fresh, place):
    done = run([fresh / "bin/vnic", "demo", "--json", "--seconds", "0.5"], place)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["conserved"] is True and result["shaped_mbps"] > 0
    where = run(
        [fresh / "bin/python", "-c", "import dataplane.engine.engine as e, vnic; print(e.__file__, vnic.__file__)"], place
    )
    assert all(path.startswith(str(fresh)) for path in where.stdout.split())


def test_the_installed_wheel_passes_its_doctor(fresh, place):
    done = run([fresh / "bin/vnic", "doctor", "--json"], place)
    checks = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    assert checks["compiled modules"]["ok"], done.stdout


def test_man_finds_the_installed_pages(fresh):
    need("mandoc")
    pages = sorted((fresh / "share/man/man1").glob("*.1"))
    assert pages
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


# -- an element that is compiled outside -----------------------------------------------------------


def copy_example(place, name):
    copied = place / name
    shutil.copytree(EXAMPLE, copied)
    if IS_ROOT:
        for path in (copied, *copied.iterdir()):
            os.chown(path, plain_user.UID, plain_user.UID)
    return copied


def compile_element(fresh, directory):
    return run([fresh / "bin/python", "setup.py", "-q", "build_ext", "--inplace"], directory, timeout_s=1200)


def test_a_compiled_element_is_built_against_the_installed_wheel_and_runs(fresh, place):
    directory = copy_example(place, "element")
    done = compile_element(fresh, directory)
    assert done.returncode == 0, done.stdout + done.stderr
    frames = [(1000 * number, b"\2\0\0\0\0\2" + b"\2\0\0\0\0\1" + b"\x12\x34" + bytes([number]) * 60) for number in range(9)]
    (directory / "in.pcap").write_bytes(pcap(frames))
    done = run([fresh / "bin/vnic", "replay", "in.pcap", "-c", "net.yaml", "-o", "out.pcap", "--json"], directory)
    assert done.returncode == 0, done.stderr
    kept = (directory / "out.pcap").read_bytes()
    assert [number for number in range(9) if bytes([number]) * 60 in kept] == [0, 1, 3, 4, 6, 7]

    # As after an upgrade: the declarations have changed, but the element was not compiled again.
    header = next((fresh / "lib").glob("python*/site-packages/dataplane/abi.h"))
    text = header.read_text()
    assert ABI in text
    other = copy_example(place, "other")
    header.write_text(text.replace(ABI, "0123456789abcdef"))
    try:
        done = compile_element(fresh, other)
    finally:
        header.write_text(text)
    assert done.returncode == 0, done.stderr
    done = run([fresh / "bin/vnic", "config", "check", "net.yaml"], other)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "drop_every was compiled against another version of vnic (0123456789abcdef, installed is" in done.stderr
    assert done.stderr.endswith("compile it again\n")

    # An element without the check is rejected.
    unchecked = copy_example(place, "unchecked")
    source = (unchecked / "drop_every.pyx").read_text()
    (unchecked / "drop_every.pyx").write_text(source.replace("check_abi(__name__)\n", ""))
    assert compile_element(fresh, unchecked).returncode == 0
    done = run([fresh / "bin/vnic", "replay", directory / "in.pcap", "-c", "net.yaml", "-o", "out.pcap"], unchecked)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "drop_every.DropEvery is compiled, and its module does not call check_abi(__name__)" in done.stderr


# -- what is not whole -----------------------------------------------------------------------------


def test_an_incomplete_source_tree_is_refused(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TREE / name, tmp_path)
    for package in PACKAGES:
        shutil.copytree(TREE / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so", "element.pyx"))
    done = subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "incomplete source tree: dataplane/graph/element.pyx missing" in done.stderr


def test_the_doctor_finds_an_installation_without_compiled_modules(tmp_path):
    for package in PACKAGES:
        shutil.copytree(TREE / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so"))
    command = [sys.executable, "-m", "vnic.cli.main", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "FAIL  compiled modules: dataplane.abi cannot be imported: " in done.stdout
    assert "install vnic again" in done.stdout
    assert done.stderr == ""

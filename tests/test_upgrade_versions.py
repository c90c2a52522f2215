"""`vnic upgrade` to another version of vnic, installed in its own virtual environment, as users
do."""

import compileall
import json
import shutil
import site
import sys
import venv
from pathlib import Path

import pytest

from tests.support.containers import Container
from tests.test_command import TREE, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import inside, kill_worker, status
from tests.test_upgrade import RECEIVE, Traffic, two  # noqa: F401 - a fixture
from vnic.api.client import Client

pytestmark = pytest.mark.commands


def install(directory, version):
    """A vnic of another version in a virtual environment; returns its packages' directory and its
    Python."""
    venv.create(directory, symlinks=True)
    (packages,) = (directory / "lib").glob("python*/site-packages")
    ours = shutil.ignore_patterns("*.pyx", "*.pxd", "*.c", "__pycache__")
    for package in ("vnic", "dataplane", "shaping", "switching", "virt"):
        shutil.copytree(TREE / package, packages / package, ignore=ours)
    information = packages / f"vnic-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vnic\nVersion: {version}\n")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return packages, str(directory / "bin" / "python")


def change(file, *changes):
    text = file.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture
def newer(tmp_path):
    """A version with more configuration keys and another state format, which also reads the older
    one."""
    packages, python = install(tmp_path / "vnic-2", "99.1")
    change(packages / "vnic/config/schema.py", (
        "    owner: Annotated[\n", "    colour: str = 'blue'\n    owner: Annotated[\n"
    ))  # fmt: skip
    change(
        packages / "dataplane/engine/handover.py",
        ("FORMAT_VERSION = 2\n", "FORMAT_VERSION = 3\n"),
        ("\n}\nBYTES_MAX", ",\n    2: lambda content: {**content, 'mood': 'upgraded'},\n}\nBYTES_MAX"),
        ("    elements: list[ElementState]\n", "    elements: list[ElementState]\n    mood: str\n"),
        ("        elements=elements,\n    )", "        elements=elements,\n        mood='native',\n    )"),
    )
    compileall.compile_dir(packages / "vnic", quiet=1)
    return python


def versions(environment):  # noqa: F811
    found = status(environment)
    return found["version"], found["supervisor"]["version"]


@pytest.mark.timeout(600)
def test_to_a_newer_version_and_on(environment, two, newer, monkeypatch):  # noqa: F811
    """Twice: from the old version, and from the new one to itself."""
    a, b = two
    monkeypatch.setenv("VNIC_RUNTIME_DIR", environment["VNIC_RUNTIME_DIR"])
    ours, first = versions(environment)
    assert ours == first != "99.1"
    with Traffic(a, b) as traffic, Client() as client:
        vnic(environment, "upgrade", "--python", newer)
        assert versions(environment) == ("99.1", ours)
        assert f"vnic 99.1; supervisor and namespace agent remain {ours} until" in vnic(environment, "status")
        before = status(environment)["pid"]
        vnic(environment, "upgrade")  # "the same": the Python that runs
        assert client.call("Status")["status"]["pid"] != before
        assert versions(environment) == ("99.1", ours)
    assert 0 <= traffic.lost <= traffic.refused and int(traffic.exchanged[0]) > 20
    with Container() as c:  # supervisor and agent, still old, serve the new worker
        vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--address", "10.99.0.3/24")
        ping(c, "10.99.0.1")
        vnic(environment, "detach", "c")
    assert status(environment)["conserved"]


@pytest.mark.parametrize("two", ["10s"], indirect=True)
def test_packets_in_a_shaper_come_along(environment, two, newer):  # noqa: F811
    a, b = two
    ping(a, "10.99.0.2")
    vnic(environment, "rate", "a", "--egress", "6kbit")  # packets wait for six seconds
    receiver = inside(b, RECEIVE)
    assert receiver.stdout.readline() == "ready\n"
    a.python("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
             "for n in [*range(100), -1]: s.sendto(b'%d' % n, ('10.99.0.2', 7001))")  # fmt: skip
    report = json.loads(vnic(environment, "upgrade", "--python", newer, "--json"))
    assert sum(each["packets_moved"] for each in report["engines"]) > 30
    assert receiver.communicate(timeout=120)[0].split() == ["100", "0", "0"]


def test_a_crash_does_not_lead_back(environment, two, newer):  # noqa: F811
    """The old version could not read the new one's stored state."""
    a, _ = two
    ours = status(environment)["version"]
    vnic(environment, "upgrade", "--python", newer)
    kill_worker(environment)
    assert versions(environment) == ("99.1", ours)
    ping(a, "10.99.0.2")


def test_back_to_an_older_version_is_refused_in_one_line(environment, two, newer):  # noqa: F811
    a, _ = two
    vnic(environment, "upgrade", "--python", newer)
    before = status(environment)["pid"]
    older = Path(environment["VNIC_RUNTIME_DIR"]) / "older"
    older.write_text(f'#!/bin/sh\nPYTHONPATH={TREE} exec {sys.executable} "$@"\n')
    older.chmod(0o755)
    said = vnic(environment, "upgrade", "--python", str(older), status=1)
    assert "unknown field `colour`" in said and "this worker goes on" in said
    assert status(environment)["pid"] == before
    ping(a, "10.99.0.2")

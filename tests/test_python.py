"""The public names of `import vnic`, and the example of docs/python.md against a live instance."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vnic
from vnic.api.interface import DESCRIPTION

ROOT = Path(__file__).parent.parent


def test_the_public_names():
    from vnic.api.client import Client
    from vnic.testing import Network, Received, VirtualNetwork
    from vnic.testing.choose import network

    assert vnic.__all__ == ["Client", "ConfigError", "Network", "Received", "VirtualNetwork", "VnicError", "network"]
    assert (vnic.Client, vnic.Received, vnic.VirtualNetwork) == (Client, Received, VirtualNetwork)
    assert (vnic.Network, vnic.network) == (Network, network)
    assert issubclass(vnic.ConfigError, vnic.VnicError) and set(vnic.__all__) <= set(dir(vnic))
    with pytest.raises(AttributeError, match="module 'vnic' has no attribute 'Switch'"):
        _ = vnic.Switch


def test_import_vnic_imports_nothing_else():
    program = (
        "import sys; before = set(sys.modules); import vnic; print(sorted(set(sys.modules) - before - {'vnic', 'typing'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = [name for name in eval(done.stdout) if name.partition(".")[0] in ("vnic", "dataplane", "numpy", "msgspec", "json")]
    assert loaded == []


def test_the_page_lists_the_methods_of_networks():
    page = (ROOT / "docs/python.md").read_text().partition("## Networks for tests")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|(.*?)\|", page, re.MULTILINE)
    listed = {name for row, _ in rows for name in re.findall(r"`(\w+)", row)} - {"with"}
    virtual = {name for row, text in rows if text.strip() for name in re.findall(r"`(\w+)", row)} - {"with"}
    for kind, names in ((vnic.Network, listed), (vnic.VirtualNetwork, virtual)):
        attributes = {"config"} | {name for name in dir(kind) if not name.startswith("_")}
        assert names == attributes | ({"instance"} if kind is vnic.Network else set())


def test_the_page_shows_the_example():
    page = (ROOT / "docs/python.md").read_text()
    body = (ROOT / "examples/client.py").read_text().partition("def main")[2]
    assert body in page


def test_the_page_lists_the_methods_of_the_api():
    rows = (ROOT / "docs/python.md").read_text().partition("## The methods")[2].partition("## ")[0]
    listed = {name for row in re.findall(r"^\| (`.*?`) \|", rows, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(re.findall(r"^method (\w+)", DESCRIPTION, re.MULTILINE)) - {"Shutdown"}


@pytest.mark.commands
def test_the_example_runs(make_container, tmp_path):
    web, db, third = (make_container() for _ in range(3))
    path = tmp_path / "net.yaml"
    text = (ROOT / "examples/two-containers.yaml").read_text()
    text = text.replace("netns: /run/netns/web", f"pid: {web.pid}").replace("netns: /run/netns/db", f"pid: {db.pid}")
    path.write_text(text)
    environment = {**os.environ, "VNIC_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples/client.py"), str(path), str(third.pid)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "attached third" in lines
    assert any(line.startswith("third ") and line.endswith(" 10000000") for line in lines)
    assert any(line.startswith("queues [(") for line in lines)
    assert any(line.startswith("waiting {") and "packets" in line for line in lines)
    assert any(line.startswith("refused: nic absent: ") for line in lines), lines
    assert third.interfaces() == [] and web.interfaces() == []

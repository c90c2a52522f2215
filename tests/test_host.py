"""Routes of a NIC, and the host as a router between the switch and other networks, as in
docs/host.md."""

import json
import os
import re
import select
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataplane.errors import CODES, ConfigError, VnicError
from tests.support.containers import IS_ROOT
from tests.tools import need
from vnic.config.convert import CONFIG_VERSION, convert_config, convert_nic, decode_config, encode_config
from vnic.config.schema import ADDRESSES_MOST, ROUTES_MOST
from vnic.device import tap
from vnic.device.kinds.registry import interface_kind
from vnic.runtime.runtime import Runtime

ROOT = Path(__file__).parent.parent


def _request(config):
    return interface_kind(config.kind).request(config)


def routes(**settings):
    return [(each.to, each.via) for each in _request(convert_nic("web", {"pid": 1, **settings})).routes]


def test_gateway_is_short_for_the_default_route():
    assert routes(gateway="10.0.0.254") == [("default", "10.0.0.254")]
    assert routes(gateway="fd00::1", routes=[{"to": "10.1.0.0/16"}]) == [("10.1.0.0/16", None), ("default", "fd00::1")]
    assert routes(routes=[{"to": "default", "via": "10.0.0.1"}, {"to": "default", "via": "fd00::1"}]) == [
        ("default", "10.0.0.1"),
        ("default", "fd00::1"),
    ]
    assert routes() == []


def test_routes_survive_the_stored_configuration():
    config = convert_config({"nics": {"web": {"pid": 1, "gateway": "10.0.0.254", "routes": [{"to": "10.1.0.0/16"}]}}})
    again = decode_config(encode_config(config))
    assert _request(again.nics["web"]) == _request(config.nics["web"])
    assert len(again.nics["web"].routes) == 2


def test_a_stored_configuration_of_another_version_is_refused():
    stored = json.loads(encode_config(convert_config({"nics": {"web": {"pid": 1}}})))
    assert stored["version"] == CONFIG_VERSION
    text = rf"is of version {CONFIG_VERSION + 1}, and this vnic reads {CONFIG_VERSION}: upgrade to a version"
    with pytest.raises(ConfigError, match=text):
        decode_config(json.dumps({**stored, "version": CONFIG_VERSION + 1}).encode())
    for wrong in (b"{}", b'{"config": {}}', b'{"config": 1, "version": 1}', b""):
        with pytest.raises(ConfigError, match="cannot be read"):
            decode_config(wrong)


def test_every_error_has_a_code_that_is_explained():
    kinds = [VnicError]
    for kind in kinds:
        assert kind.default_code in CODES
        kinds += kind.__subclasses__()
    assert len(kinds) > 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gateway": "10.0.0.254/24"}, "gateway: '10.0.0.254/24' is not a gateway: expected an IP address"),
        ({"gateway": "224.0.0.1"}, "cannot be a gateway"),
        ({"gateway": 7}, "7 is not a gateway"),
        (
            {"routes": [{"to": "10.1.0.1/16"}]},
            "routes[0].to: '10.1.0.1/16' is not a network: expected address/prefix without host bits",
        ),
        ({"routes": [{"to": "10.1.0.0"}]}, "is not a network"),
        (
            {"routes": [{"to": "default"}]},
            "routes[0]: the default route needs a gateway: expected {to: default, via: 10.0.0.254}",
        ),
        ({"routes": [{"to": "fd00:1::/64", "via": "10.0.0.1"}]}, "mixes IPv4 and IPv6"),
        ({"routes": [{"via": "10.0.0.1"}]}, "routes[0]: has no to: expected to: a network such as 10.1.0.0/16, or default"),
        ({"routes": [{"to": "10.1.0.0/16", "dev": "eth0"}]}, "routes[0].dev: unknown key"),
        ({"routes": {"to": "10.1.0.0/16"}}, "routes: invalid value a mapping: expected a list of routes"),
        ({"gateway": "10.0.0.1", "routes": [{"to": "default", "via": "10.0.0.2"}]}, "names a destination twice"),
        ({"routes": [{"to": f"10.{n // 256}.{n % 256}.0/24"} for n in range(ROUTES_MOST + 1)]}, "expected a list of routes"),
    ],
)
def test_wrong_routes_are_refused(settings, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        routes(**settings)


def test_the_bounds_are_those_of_a_tap():
    assert (ADDRESSES_MOST, ROUTES_MOST) == (tap.MAX_ADDRESSES, tap.MAX_ROUTES)


def test_routes_are_set_in_the_container(container):
    config = {
        "nics": {
            "web": {
                "pid": container.pid,
                "addresses": ["10.0.0.1/24", "fd00::1/64"],
                "gateway": "10.0.0.254",
                "routes": [
                    {"to": "10.1.0.0/16", "via": "10.0.0.253"},
                    {"to": "fd01::/64", "via": "fd00::2"},
                    {"to": "10.9.0.0/16"},
                ],
            }
        }
    }
    with Runtime(convert_config(config)) as runtime:
        runtime.start()
        v4 = container.run("ip", "-4", "route").splitlines()
        assert any(line.startswith("default via 10.0.0.254 dev web") for line in v4)
        assert any(line.startswith("10.1.0.0/16 via 10.0.0.253 dev web") for line in v4)
        assert any(line.startswith("10.9.0.0/16 dev web") for line in v4)
        assert any(line.startswith("fd01::/64 via fd00::2 dev web") for line in container.run("ip", "-6", "route").splitlines())


# -- the host as a router --------------------------------------------------------------------------

ANSWER = """
import socket, sys
with socket.create_server(("198.51.100.2", 7000)) as server:
    server.settimeout(90)
    print("ready", flush=True)
    while True:
        connection, (address, _) = server.accept()
        with connection:
            connection.sendall(address.encode())
"""
ASK = """
import socket
with socket.create_connection(("198.51.100.2", 7000), timeout=120) as s:
    print(s.recv(100).decode())
"""


def shell_blocks():
    """The commands of docs/host.md under "Switch forwarding on" and "Translate addresses"."""
    text = (ROOT / "docs/host.md").read_text().partition("## Switch forwarding on")[2]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


@contextmanager
def vnic_up(host, path, runtime_dir):
    """Starts `vnic up` in the host's namespace, and waits until it is up."""
    environment = {**os.environ, "VNIC_RUNTIME_DIR": str(runtime_dir)}
    command = host.command([sys.executable, "-m", "vnic.cli.main", "up", str(path)])
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        while "Ctrl-C" not in "".join(lines):
            assert select.select([process.stderr], [], [], 45)[0], lines
            lines.append(process.stderr.readline())
            assert lines[-1], f"vnic up ended: {lines}"
        yield environment
    finally:
        process.terminate()
        process.communicate(timeout=180)


@pytest.mark.root
@pytest.mark.commands
def test_containers_reach_other_networks_through_the_host(make_container, tmp_path):
    for tool in ("iptables", "sysctl"):
        need(tool)
    host, outside, web, db = (make_container() for _ in range(4))
    host.run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "in0", "netns", str(outside.pid))
    host.run("ip", "address", "add", "198.51.100.1/24", "dev", "out0")
    host.run("ip", "link", "set", "out0", "up")
    outside.run("ip", "address", "add", "198.51.100.2/24", "dev", "in0")
    outside.run("ip", "link", "set", "in0", "up")

    text = (ROOT / "examples/host.yaml").read_text()
    assert text.partition("nics:")[2] in (ROOT / "docs/host.md").read_text()
    path = tmp_path / "host.yaml"
    path.write_text(text.replace("/run/netns/web", web.netns_path))
    server = outside.popen([sys.executable, "-c", ANSWER])
    try:
        assert server.stdout.readline() == "ready\n"
        with vnic_up(host, path, tmp_path / "run") as environment:
            assert "vnic0" in host.interfaces() and web.interfaces() == ["web"]
            assert web.run("ip", "-4", "route", "show", "default").startswith("default via 10.0.0.254 dev web")
            assert "1 received" in web.run("ping", "-c", "1", "-W", "20", "10.0.0.254")
            assert "100% packet loss" in web.run("ping", "-c", "1", "-W", "1", "198.51.100.2", check=False)
            for block in shell_blocks():
                host.run("sh", "-e", "-c", block)
            assert web.python(ASK).strip() == "198.51.100.1"  # the host's address, by translation

            attach = ["attach", "tap", "db", "--pid", str(db.pid), "--address", "10.0.0.2/24"]
            attach += ["--route", "198.51.100.0/24 via 10.0.0.254", "--route", "10.1.0.0/16"]
            command = host.command([sys.executable, "-m", "vnic.cli.main", *attach])
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=180)
            assert db.python(ASK).strip() == "198.51.100.1"
            wrong = [*command[:-1], "10.1.0.0/16 dev eth0"]
            refused = subprocess.run(wrong, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
            assert refused.returncode == 2 and "expected NETWORK or NETWORK via ADDRESS" in refused.stderr
        assert "vnic0" not in host.interfaces()
    finally:
        server.kill()
        server.communicate()


if IS_ROOT:

    @pytest.mark.timeout(600)
    @pytest.mark.again
    def test_all_this_as_a_plain_user(run_as_plain_user):
        run_as_plain_user(__file__)

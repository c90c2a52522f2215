"""The control API with other projects' clients: the Varlink project's, and one that passes
descriptors."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, TypedDict

import pytest
import varlink
from asyncvarlink import FileDescriptor, VarlinkClientProtocol, VarlinkInterface, connect_unix_varlink, varlinkmethod
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from dataplane.errors import VnicError
from tests.support.containers import Container
from tests.test_command import environment, ping, vnic, write_config  # noqa: F401 - a fixture
from vnic.api.client import Client
from vnic.api.interface import DESCRIPTORS_MOST

pytestmark = pytest.mark.commands


TREE = Path(__file__).parents[1]


@pytest.fixture
def running(environment, tmp_path, leak_check, monkeypatch):  # noqa: F811
    """An instance between two containers: its socket, the containers, the command's environment."""
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path))
    with Container() as a, Container() as b:
        vnic(environment, "up", "-d", write_config(tmp_path / "net.yaml", a=a, b=b))
        try:
            yield str(tmp_path / "default.sock"), a, b, environment
        finally:
            vnic(environment, "down")


def test_the_varlink_project_s_client(running):
    """It parses our interface definition, checks every parameter against it, and calls."""
    path = running[0]
    with varlink.Client.new_with_address(f"unix:{path}") as client:
        interfaces = client.get_interfaces()
        assert set(interfaces) == {"org.varlink.service", "org.vnic.Control"}
        with client.open("org.vnic.Control") as control:
            assert control.Status()["status"]["conserved"] is True
            assert control.SetRate("a", "10mbit", None)["nic"]["egress_bps"] == 10_000_000
            assert [each["name"] for each in control.Stats("a")["stats"]["nics"]] == ["a"]
            with pytest.raises(varlink.VarlinkError) as caught:
                control.Detach("nobody")
            assert caught.value.error() == "org.vnic.Control.InvalidConfig"
            assert "is not attached; attached: a, b" in caught.value.parameters()["message"]
            assert caught.value.parameters()["code"] == "not-found"
            with pytest.raises(varlink.VarlinkError) as caught:
                control.Apply({"nics": {"a": {"pid": 1, "mtu": 1}}}, None, True)
            assert (caught.value.parameters()["code"], caught.value.parameters()["field"]) == ("invalid", "nics.a.mtu")
            first = next(control.WatchStats(None, 20, _more=True))
            assert first["stats"]["engines"]
    command = [sys.executable, "-m", "varlink.cli", "call", f"unix:{path}/org.vnic.Control.Accounts"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {each["nic"] for each in said["accounts"]["accounts"]} == {"a", "b"}


class Captured(TypedDict):
    capture: int
    descriptor: FileDescriptor


class Control(VarlinkInterface, name="org.vnic.Control"):
    """A part of the interface, in asyncvarlink's form."""

    @varlinkmethod(return_parameter="nic", allow_foreign=True)
    async def Attach(self, *, name: str, nic: Any, netns: FileDescriptor, process: FileDescriptor | None = None) -> Any: ...

    @varlinkmethod(return_parameter="status", allow_foreign=True)
    async def Status(self) -> Any: ...

    @varlinkmethod
    async def StartCapture(self, *, point: str) -> Captured: ...


def test_a_client_that_passes_descriptors(running):
    """A call passes a namespace, a reply passes the end of a pipe."""
    path, a, _, env = running

    async def talk(container, pidfd):
        transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, path)
        try:
            control = protocol.make_proxy(Control)
            assert set((await protocol.make_proxy(VarlinkServiceInterface).GetInfo())["interfaces"]) >= {"org.vnic.Control"}
            with open(container.netns_path) as netns:
                nic = await control.Attach(
                    name="c", nic={"interface": "eth0", "addresses": ["10.99.0.3/24"]},
                    netns=FileDescriptor(netns), process=FileDescriptor(pidfd),
                )  # fmt: skip
            assert nic["nic"]["pid"] == container.pid
            with await control.StartCapture(point="c") as captured:
                await asyncio.to_thread(ping, container, "10.99.0.1")
                magic = await asyncio.to_thread(os.read, captured["descriptor"].fileno(), 24)
            assert magic[:4] == (0xA1B23C4D).to_bytes(4, sys.byteorder)
        finally:
            transport.close()

    with Container() as c:
        pidfd = os.pidfd_open(c.pid)
        try:
            asyncio.run(talk(c, pidfd))
        finally:
            os.close(pidfd)
        assert c.interfaces() == ["eth0"]
        ping(a, "10.99.0.3")
        status = json.loads(vnic(env, "status", "--json"))
        assert {nic["name"]: nic["pid"] for nic in status["nics"]}["c"] == c.pid
    # The process passed with it has ended, so the NIC is detached.
    with Client() as client:
        while "c" in [nic["name"] for nic in client.call("Status")["status"]["nics"]]:
            pass


def test_descriptors_that_nobody_wants_are_closed(running):
    """In a call that uses none, with a wrong number, of no namespace, or too many."""
    path, a, _, _ = running
    with Client(path) as client, open("/dev/null") as null, open(a.netns_path) as netns:
        worker = client.call("Status")["status"]["pid"]

        def open_files():
            return len(os.listdir(f"/proc/{worker}/fd"))

        before = open_files()
        for _ in range(50):
            client.call("Status", passing=[null.fileno()] * 5)
        for parameters, says in [
            ({"netns": 0}, "is not a network namespace"), ({"netns": 7}, "descriptor 7 did not come with the call"),
            ({"netns": -1}, "descriptor -1 did not come"), ({"netns": 1, "process": 0}, "is that of no process"),
            ({"netns": 1, "process": 1}, "descriptor 1 did not come"), ({"netns": 1, "nic": {"pid": 1}}, "choose one of them"),
        ]:  # fmt: skip
            with pytest.raises(VnicError, match=says):
                client.call("Attach", passing=[null.fileno(), netns.fileno()], **{"name": "x", "nic": {}, **parameters})
        assert open_files() == before
        assert client.call("Status")["status"]["conserved"]
    with Client(path) as greedy, pytest.raises((VnicError, OSError)):
        for _ in range(3):  # parts of a message, each with descriptors
            socket.send_fds(greedy._socket, [b"{"], [0] * DESCRIPTORS_MOST)
        greedy.call("Status")
    with Client(path) as client:
        client.call("Status")  # the other client is disconnected by now
        assert open_files() == before


def test_descriptors_belong_to_the_call_that_they_came_with(running):
    """Pipelined calls, of which the last has a descriptor: the kernel may deliver all their bytes
    at once."""
    path, _, _, _ = running
    with Client(path) as client, open("/dev/null") as null:
        status = b'{"method":"org.vnic.Control.Graph"}\0'
        attach = b'{"method":"org.vnic.Control.Attach","parameters":{"name":"x","nic":{},"netns":0}}\0'
        client._socket.sendall(status * 3)
        socket.send_fds(client._socket, [attach], [null.fileno()])
        client._socket.sendall(status)
        replies = [json.loads(client._message()) for _ in range(5)]
        assert [set(reply) for reply in replies] == [{"parameters"}] * 3 + [{"error", "parameters"}] + [{"parameters"}]
        assert "is not a network namespace" in replies[3]["parameters"]["message"]

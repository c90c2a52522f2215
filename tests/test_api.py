"""The control API over real sockets: clients' calls; broken clients do not affect others."""

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dataplane.errors import ConfigError, VnicError
from tests.fake_daemon import FakeRuntime
from vnic.api import connection
from vnic.api import interface as api
from vnic.api.client import Client
from vnic.api.events import QUEUE_MOST, Bus
from vnic.api.methods import Methods
from vnic.api.server import Server
from vnic.daemon.instance import instance_lock, listening
from vnic.runtime.instance import Instance

TREE = Path(__file__).parents[1]


def start_fake(instance="default", **options):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_daemon", instance], cwd=TREE, stdout=subprocess.PIPE, text=True, **options
    )
    process.up = process.stdout.readline() == "up\n"
    return process


@pytest.fixture
def runtime_directory(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(path))
    return path


def stop(process):
    if process.poll() is None:
        process.terminate()
    process.wait(10)
    process.stdout.close()


@pytest.fixture
def own_daemon(runtime_directory):
    """A daemon for tests that end it."""
    process = start_fake()
    assert process.up
    yield process
    stop(process)


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory):
    path = tmp_path_factory.mktemp("shared")
    path.chmod(0o700)
    process = start_fake(env={**os.environ, "VNIC_RUNTIME_DIR": str(path)})
    assert process.up
    process.directory = path
    yield process
    stop(process)


@pytest.fixture
def daemon(shared_daemon, monkeypatch):
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(shared_daemon.directory))
    return shared_daemon


def raw(*chunks, answers=1):
    """The daemon's answers to raw bytes, and whether it then closed the connection."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(api.socket_path("default"))
        try:
            for chunk in chunks:
                sock.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        got = b""
        while got.count(b"\0") < answers:
            try:
                data = sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return [json.loads(each) for each in got.split(b"\0")[:-1]], True
            got += data
        return [json.loads(each) for each in got.split(b"\0")[:-1]], False


def test_a_nic_s_life(daemon):
    with Client() as vnic:
        assert vnic.pid == daemon.pid
        nic = vnic.call("Attach", name="web", nic={"pid": 1, "queues": 2, "egress": {"rate": "100mbit"}})["nic"]
        assert (nic["queues"], nic["egress_bps"]) == (2, 100_000_000)
        assert vnic.call("SetRate", name="web", ingress="2.5gbit")["nic"]["ingress_bps"] == 2_500_000_000
        assert vnic.call("SetRate", name="web", egress="none")["nic"]["egress_bps"] is None
        vnic.call("SetLink", name="web", up=False)
        assert vnic.call("SetSpoofCheck", name="web", on=True)["nic"]["spoof_check"] is True
        assert vnic.call("Status")["status"]["nics"][0]["link"] == "down"
        assert vnic.call("Stats", name="web")["stats"]["nics"][0]["name"] == "web"
        assert vnic.call("Graph")["graph"] == "a -> b\n"
        vnic.call("Detach", name="web")
        assert vnic.call("Status")["status"]["nics"] == []


@pytest.mark.parametrize(("method", "parameters", "kind", "says"), [
    ("Attach", {"name": "web", "nic": {"pid": 1, "queues": 0}}, ConfigError, "web.queues: invalid value 0: expected 1 to 64"),
    ("Attach", {"name": "web", "nic": {"pid": 1, "quenes": 1}}, ConfigError, "did you mean 'queues'?"),
    ("Attach", {"name": "web", "nic": {}}, ConfigError, "give pid: or netns:"),
    ("Attach", {"name": "../x", "nic": {"pid": 1}}, ConfigError, "expected a name"),
    ("Attach", {"name": "web"}, ConfigError, "nic"),
    ("Attach", {"name": "web", "nic": {"pid": 4_000_000}}, ConfigError, "pid 4000000 does not exist"),
    ("Attach", {"name": "web", "nic": {"pid": 4_000_002}}, VnicError, "the TAP broke"),
    ("Attach", {"name": "web", "nic": {"pid": 4_000_001}}, VnicError, "unexpected ZeroDivisionError: a bug"),
    ("Detach", {"name": "web"}, ConfigError, "not attached"),
    ("SetRate", {"name": "web"}, ConfigError, "no rate given"),
    ("SetRate", {"name": "web", "egress": "1gbps"}, ConfigError, "write 1gbit"),
    ("SetRate", {"name": "web", "egress": 5}, ConfigError, "egress"),
    ("SetLink", {"name": "web", "up": "yes"}, ConfigError, "up"),
    ("Status", {"verbose": True}, ConfigError, "verbose"),
    ("Graph", {"format": "svg"}, ConfigError, "format"),
    ("Fly", {}, VnicError, "MethodNotFound"),
    ("org.example.Fly", {}, VnicError, "InterfaceNotFound"),
])  # fmt: skip
def test_errors_arrive_as_they_were_raised(daemon, method, parameters, kind, says):
    with Client() as vnic:
        with pytest.raises(kind) as caught:
            vnic.call(method, **parameters)
        assert type(caught.value) is kind or kind is VnicError
        assert says in str(caught.value)
        assert vnic.call("Status")["status"]["conserved"]  # the connection still works


def test_introspection(daemon):
    with Client() as vnic:
        assert vnic.call("org.varlink.service.GetInfo")["interfaces"] == ["org.varlink.service", "org.vnic.Control"]
        text = vnic.call("org.varlink.service.GetInterfaceDescription", interface="org.vnic.Control")["description"]
        for method in ("Attach", "Detach", "Status", "Stats", "Graph", "SetRate", "SetLink", "Shutdown"):
            assert f"method {method}(" in text


@pytest.mark.parametrize("junk", [
    b"\0", b"junk\0", b"[]\0", b"{}\0", b'{"method":3}\0', b"\xff\xfe\0", b"[" * 100_000 + b"\0",
    b'{"method":"a","parameters":[]}\0',
])  # fmt: skip
def test_junk_costs_its_sender_the_connection_and_nobody_else(daemon, junk):
    with Client() as other:
        answers, hung_up = raw(junk, answers=2)
        assert hung_up and answers[0]["error"] == "org.varlink.service.InvalidParameter"
        assert other.call("Status")["status"]["conserved"]


def test_a_message_without_end_is_cut_off(daemon):
    with Client() as other:
        answers, hung_up = raw(*[b"x" * 65536] * 64, answers=2)
        assert hung_up and len(answers) <= 1
        assert other.call("Status")["status"]["conserved"]


def test_pieces_pipelines_and_oneway(daemon):
    call = b'{"method":"org.vnic.Control.Graph"}\0'
    answers, _ = raw(call[:5], call[5:] + call + call[:-2] + b',"oneway":true}\0' + call, answers=3)
    assert answers == [{"parameters": {"graph": "a -> b\n"}}] * 3


def test_too_many_clients_are_told_so(daemon):
    clients = []
    try:
        with pytest.raises(VnicError, match="256 clients are connected"):
            for _ in range(270):
                clients.append(Client())
                clients[-1].call("Graph")
        assert len(clients) == 257
        clients.pop(0).close()
        # The daemon sees the end of that connection before a new one's request, or at worst rejects
        # once more.
        clients[0].call("Graph")
    finally:
        for client in clients:
            client.close()


def test_an_instance_is_one_process_and_a_dead_one_s_socket_is_replaced(own_daemon, runtime_directory):
    command = [sys.executable, "-m", "tests.fake_daemon", "default"]
    second = subprocess.run(command, cwd=TREE, capture_output=True, text=True)
    assert (
        f"instance default runs already (pid {own_daemon.pid}); stop it with 'vnic down' or choose --instance" in second.stderr
    )
    other = start_fake("lab")
    assert other.up
    with Client() as vnic:
        worker = os.pidfd_open(vnic.call("Status")["status"]["pid"])
    own_daemon.kill()
    own_daemon.wait()
    assert {path.name for path in runtime_directory.iterdir()} == {"default.lock", "default.sock", "lab.lock", "lab.sock"}
    assert select.select([worker], [], [], 10)[0]  # the kernel ends the worker with its supervisor
    os.close(worker)
    with pytest.raises(VnicError, match="instance default does not run; start it with 'vnic up"):
        Client()
    again = start_fake()
    assert again.up
    for process, instance in ((again, "default"), (other, "lab")):
        with Client(instance) as vnic:
            vnic.shutdown()
        assert process.wait(10) == 0
        assert process.stdout.read().startswith("closed")
        process.stdout.close()
    assert list(runtime_directory.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly_however_often(own_daemon, runtime_directory, number):
    with Client() as vnic:
        vnic.call("Status")
        for _ in range(3):
            own_daemon.send_signal(number)
        assert own_daemon.wait(10) == 0
    assert list(runtime_directory.iterdir()) == []


def test_the_socket_s_directory_must_be_ours_alone(runtime_directory, monkeypatch, tmp_path):
    assert api.socket_path("lab") == str(runtime_directory / "lab.sock")
    runtime_directory.chmod(0o755)
    with pytest.raises(VnicError, match="yours alone"):
        api.socket_path("lab")
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for bad in (link, Path("/tmp"), Path("/dev/null")):
        monkeypatch.setenv("VNIC_RUNTIME_DIR", str(bad))
        with pytest.raises(VnicError, match="yours alone"):
            api.socket_path("lab", create=True)
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path / "absent" / "run"))
    with pytest.raises(VnicError, match="VNIC_RUNTIME_DIR"):
        api.socket_path("lab", create=True)
    fresh = tmp_path / "fresh"
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(fresh))
    api.socket_path("lab", create=True)
    assert fresh.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path / ("x" * 120)))
    with pytest.raises(VnicError, match="too long"):
        api.socket_path("lab", create=True)
    for name in ("", "../x", "a/b", "x" * 33, "a\n"):
        with pytest.raises(ConfigError, match="expected a name"):
            api.socket_path(name)


def test_default_places(monkeypatch, tmp_path):
    monkeypatch.delenv("VNIC_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert api.runtime_directory() == str(tmp_path / "vnic")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert api.runtime_directory() == f"/tmp/vnic-{os.geteuid()}"


def test_an_empty_directory_does_not_outlive_the_instance(monkeypatch, tmp_path):
    monkeypatch.delenv("VNIC_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with instance_lock("one"):
        with instance_lock("two"):
            pass
        assert os.listdir(tmp_path / "vnic") == ["one.lock"]
    assert os.listdir(tmp_path) == []
    with instance_lock("one"):
        (tmp_path / "vnic" / "one.log").touch()
    assert os.listdir(tmp_path / "vnic") == ["one.log"]
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path / "mine"))
    with instance_lock("one"):
        pass
    assert os.listdir(tmp_path / "mine") == []


def test_an_instance_removes_only_its_own_files(monkeypatch, tmp_path):
    """A cleaner of old files removes the files of an instance, and another one of that name begins."""
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path / "mine"))
    files = [tmp_path / "mine" / f"one.{kind}" for kind in ("lock", "sock")]
    holder = """
import sys
from vnic.daemon.instance import instance_lock, listening
with instance_lock("one"), listening("one") as listener:
    listener.listen()
    print("holds", flush=True)
    sys.stdin.read()
"""
    with instance_lock("one"), listening("one"):
        for each in files:
            each.unlink()
        command = [sys.executable, "-c", holder]
        other = subprocess.Popen(command, cwd=TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "holds\n"
    assert all(each.exists() for each in files)
    with pytest.raises(ConfigError, match=f"one runs already .pid {other.pid}"), instance_lock("one"):
        pass
    Client("one").close()  # its socket is there
    assert other.communicate() == ("", None) and other.returncode == 0
    assert not any(each.exists() for each in files)


def test_an_instance_whose_files_are_gone_ends_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path / "mine"))
    with instance_lock("one"), listening("one"):
        shutil.rmtree(tmp_path / "mine")


@pytest.fixture
def open_directory():
    """A directory in which all users can reach a socket, unlike the daemon's directory."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_other_users_are_refused(open_directory, monkeypatch):
    path = open_directory / "s"
    if os.geteuid() != 0:  # this process cannot change its user, so the daemon does
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    async def ask():
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            path.chmod(0o777)
            listener.listen()
            instance = Instance(FakeRuntime(None), Bus(asyncio.get_running_loop()))
            server = Server(Methods([instance], "0.0", lambda: None))
            await server.start(listener)
            program = (
                f"import os, socket\nif os.getuid() == 0: os.setresuid(65534, 65534, 65534)\n"
                f"s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})\nprint(s.recv(4096))"
            )
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
            answer, _ = await process.communicate()
            await server.close()
            return answer

    answer = asyncio.run(ask())
    assert b"org.vnic.Control.NotPermitted" in answer and b"user nobody (uid 65534): may not use this vnic" in answer


def test_a_client_that_comes_with_an_upgrade_is_handed_over(open_directory):
    """Accepted but not read from, or not accepted yet: in both cases the next server gets it."""
    path = str(open_directory / "s")

    async def hand_over():
        with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as closing:
            listener.bind(path)
            listener.listen()
            server = Server(Methods([Instance(FakeRuntime(None), Bus(asyncio.get_running_loop()))], "0.0", lambda: None))
            await server.start(listener.dup())
            for _ in range(3):
                closing.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
            while not server.idle():
                await asyncio.sleep(0)
            server.stop_accepting()
            server.pause()
            handed_over = len(server.idle())
            assert await asyncio.gather(*server.let_go(), return_exceptions=True)
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    closing.enter_context(listener.accept()[0])
                    handed_over += 1
            return handed_over

    assert asyncio.run(hand_over()) == 3


def test_a_request_a_byte_at_a_time_is_cut_off_and_nobody_waits(open_directory, monkeypatch):
    """The limit for a whole request is a second here, also for a client that sends single bytes."""
    monkeypatch.setattr(connection, "REQUEST_S", 1.0)
    path = str(open_directory / "s")

    async def slow():
        reader, writer = await asyncio.open_unix_connection(path)
        begin = asyncio.get_running_loop().time()
        while True:
            try:
                writer.write(b"{")
                await writer.drain()
                if not await asyncio.wait_for(reader.read(100), 0.1):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        writer.close()
        return asyncio.get_running_loop().time() - begin

    async def quick(slow_ones):
        reader, writer = await asyncio.open_unix_connection(path)
        answers = 0
        while not all(each.done() for each in slow_ones):
            writer.write(b'{"method":"org.vnic.Control.Graph"}\0')
            assert b"a -> b" in await reader.readuntil(b"\0")
            answers += 1
        writer.close()
        return answers

    async def talk():
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            server = Server(Methods([Instance(FakeRuntime(None), Bus(asyncio.get_running_loop()))], "0.0", lambda: None))
            await server.start(listener)
            slow_ones = [asyncio.create_task(slow()) for _ in range(50)]
            answers = await quick(slow_ones)
            await server.close()
            return [each.result() for each in slow_ones], answers

    lasted, answers = asyncio.run(talk())
    assert all(seconds < 20 for seconds in lasted) and answers > 50


def test_statistics_in_a_stream(daemon):
    with Client() as vnic:
        stream = vnic.stream("WatchStats", interval_ms=20)
        first, second, third = next(stream), next(stream), next(stream)
        assert first["stats"] == third["stats"] and first["time"] < second["time"] < third["time"]
        assert 0.03 < third["time"] - first["time"] < 5
    for parameters, says in (({"interval_ms": 5}, "interval_ms"), ({"name": 3}, "name"), ({"every": 1}, "every")):
        with Client() as vnic, pytest.raises(ConfigError, match=says):
            next(vnic.stream("WatchStats", **parameters))
    with Client() as vnic, pytest.raises(VnicError, match="ExpectedMore"):
        vnic.call("Monitor")
    with Client() as vnic, pytest.raises(ConfigError, match="not attached"):
        next(vnic.stream("WatchStats", name="nobody"))


def test_a_slow_listener_loses_events_and_knows_how_many():
    async def listen():
        bus = Bus(asyncio.get_running_loop())
        slow, quick = bus.subscribe(), bus.subscribe()
        seen = []
        for number in range(QUEUE_MOST + 10):
            bus.emit("x", number=number)
            seen.append((await quick.next())["number"])
        assert seen == list(range(QUEUE_MOST + 10))
        assert [(await slow.next())["number"] for _ in range(QUEUE_MOST)] == seen[:QUEUE_MOST]
        bus.emit("x", number=-1)
        after = await slow.next()
        assert (after["number"], after["lost"]) == (-1, 10)
        bus.unsubscribe(slow)
        bus.unsubscribe(quick)
        assert not bus.heard

    asyncio.run(listen())


def test_two_hundred_clients_at_once(daemon):
    clients = [Client() for _ in range(200)]
    try:
        for client in clients:
            client._socket.sendall(b'{"method":"org.vnic.Control.Status"}\0')
        for client in clients:
            assert json.loads(client._message())["parameters"]["status"]["conserved"]
    finally:
        for client in clients:
            client.close()

"""The namespace agent ends with its daemon; watches report when a container is gone."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from dataplane.errors import ConfigError, PortError
from tests.support.containers import IS_ROOT
from vnic.device import agent as agents
from vnic.device.agent import NamespaceAgent
from vnic.device.namespaces import NetNamespace, identity_of
from vnic.device.tap import LinkChange, ReadCounters, Route, TapRequest


def ended(pidfd: int, timeout_s: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout_s)[0])


# --- the agent's life -----------------------------------------------------------------------------


def test_starts_soon_and_leaves_nothing(leak_check):
    """The time limit is generous, for a busy machine."""
    before = time.monotonic()
    with NamespaceAgent.start() as agent:
        with NetNamespace.find() as here, pytest.raises(PortError, match="gone"):
            agent.run(here, ReadCounters(0x7FFF0000))
        assert time.monotonic() - before < 10
        assert agent.alive
        pidfd = os.pidfd_open(agent.pid)
    assert ended(pidfd, 0)
    os.close(pidfd)
    assert not agent.alive
    agent.stop()


def test_an_agent_that_nobody_asks_lets_go_of_what_it_loaded(container):
    """It executes itself again, as the same process on the same socket, with less memory, and
    answers requests."""
    with start_agent(QUIET_S=0.1) as agent:

        def resident_bytes():
            with open(f"/proc/{agent.pid}/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        for _ in range(2):
            with agent.open_nic(TapRequest(name="eth0", pid=container.pid, addresses=("10.0.0.1/24",))) as tap:
                assert tap.counters()["rx_packets"] >= 0
            while resident_bytes() > 25 << 20:  # 17 MB; with the netlink library 34
                pass


# An agent that has loaded everything when another vnic is installed, which does not even start.
REPLACED = """
import pathlib, socket, sys
from vnic.device import agent
netlink, receive = agent.link.netlink, agent.receive_message
def load_and_replace():
    pathlib.Path(agent.link.__file__).write_text("raise SystemExit(7)")
    return netlink()
def say_and_receive(sock):
    print("waits", flush=True)
    return receive(sock)
agent.QUIET_S, agent.link.netlink, agent.receive_message = 0.05, load_and_replace, say_and_receive
agent.serve(socket.socket(fileno=int(sys.argv[1])))
"""


def test_an_agent_whose_code_was_replaced_stays_as_it_is(container, tmp_path):
    """An upgrade by pip does not change it, since the supervisor stays, too."""
    tree = Path(agents.__file__).parents[2]
    for part in ("vnic/__init__.py", "vnic/device", "dataplane/__init__.py", "dataplane/descriptors.py", "dataplane/errors.py"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (shutil.copytree if (tree / part).is_dir() else shutil.copy)(tree / part, tmp_path / part)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", REPLACED, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
        )
    with NamespaceAgent(process, ours) as agent, process.stdout:
        assert process.stdout.readline() == b"waits\n"
        with agent.open_nic(TapRequest(name="eth0", pid=container.pid)):
            assert container.interfaces() == ["eth0"]


def test_many_requests_leave_the_agent_as_it_was(container):
    with NamespaceAgent.start() as agent:

        def open_and_close() -> set[str]:
            with agent.open_nic(TapRequest(name="eth0", pid=container.pid, queues=3)):
                pass
            with pytest.raises(ConfigError):
                agent.open_nic(TapRequest(name="lo", pid=container.pid))
            return set(os.listdir(f"/proc/{agent.pid}/fd"))

        first = open_and_close()
        assert all(open_and_close() == first for _ in range(10))
        with open(f"/proc/{agent.pid}/task/{agent.pid}/children") as children:
            assert children.read() == ""
    assert container.interfaces() == []


def test_requests_from_many_threads(container):
    with NamespaceAgent.start() as agent:
        taps, errors = [], []

        def attach(number: int) -> None:
            try:
                taps.append(agent.open_nic(TapRequest(name=f"eth{number}", pid=container.pid, mac=f"02:00:00:00:00:0{number}")))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=attach, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert {(tap.name, tap.mac) for tap in taps} == {(f"eth{i}", f"02:00:00:00:00:0{i}") for i in range(8)}
        assert set(container.interfaces()) == {f"eth{i}" for i in range(8)}
        for tap in taps:
            tap.close()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_are_the_daemons_business(container, signal_number):
    with NamespaceAgent.start() as agent:
        agent.open_nic(TapRequest(name="eth0", pid=container.pid)).close()
        os.kill(agent.pid, signal_number)
        agent.open_nic(TapRequest(name="eth0", pid=container.pid)).close()
        assert os.getpgid(agent.pid) != os.getpgrp()


DAEMON = """
import sys, time
from vnic.device.agent import NamespaceAgent
from vnic.device.tap import TapRequest
agent = NamespaceAgent.start()
tap = agent.open_nic(TapRequest(name="eth0", pid=int(sys.argv[1]), queues=2))
print(agent.pid, flush=True)
sys.stdin.read()
"""


def test_ends_when_the_daemon_is_killed(container):
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON, str(container.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pidfd = os.pidfd_open(int(daemon.stdout.readline()))
    assert container.interfaces() == ["eth0"]
    assert not ended(pidfd, 0)
    daemon.kill()
    daemon.communicate()
    assert ended(pidfd, 10)
    os.close(pidfd)
    assert container.interfaces() == []


def test_a_dead_agent_is_replaced(container):
    with NamespaceAgent.start() as agent:
        tap = agent.open_nic(TapRequest(name="eth0", pid=container.pid))
        dead = agent.pid
        pidfd = os.pidfd_open(dead)
        os.kill(dead, signal.SIGKILL)
        assert ended(pidfd, 10)
        os.close(pidfd)
        assert container.interfaces() == ["eth0"], "TAPs outlive the agent"
        assert tap.counters()["rx_packets"] >= 0
        assert agent.pid != dead and agent.alive
        tap.close()
        assert container.interfaces() == []
    with NetNamespace.find() as here, pytest.raises(PortError, match=rf"the namespace agent \(pid {agent.pid}\) is gone"):
        agent.run(here, ReadCounters(1))
    assert not agent.alive, "one that was stopped is not"


def test_an_agent_that_does_not_answer_is_replaced(container, monkeypatch):
    monkeypatch.setattr(agents, "CALL_TIMEOUT_S", 0.3)
    with NamespaceAgent.start() as agent:
        silent = agent.pid
        os.kill(silent, signal.SIGSTOP)
        with pytest.raises(PortError, match="no answer from the namespace agent for 0.3 s; try again"):
            agent.open_nic(TapRequest(name="late", pid=container.pid))
        monkeypatch.setattr(agents, "CALL_TIMEOUT_S", 30)
        with agent.open_nic(TapRequest(name="eth0", pid=container.pid)) as tap:
            assert tap.name == "eth0"
            assert container.interfaces() == ["eth0"]
        assert agent.pid != silent and not os.path.exists(f"/proc/{silent}")


def start_agent(**constants):
    """An agent with other time limits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    changed = "".join(f"agent.{name} = {value!r}; " for name, value in constants.items())
    code = f"import socket, sys; from vnic.device import agent; {changed}agent.serve(socket.socket(fileno=int(sys.argv[1])))"
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    return NamespaceAgent(process, ours)


STOP_CHILDREN = """
echo ready
while kill -0 $$; do
    children=
    read -r children < /proc/$1/task/$1/children
    for child in $children; do kill -STOP $child 2>&- && echo stopped; done
done
"""


def test_a_child_that_somebody_in_the_container_stops(make_container):
    """Root of a user namespace may stop a process that enters it, and a stopped process gets no
    alarm."""
    container = make_container(user_namespace=True)
    with start_agent(CHILD_TIMEOUT_S=1.0) as agent:
        attack = subprocess.Popen(
            container.command(["sh", "-c", STOP_CHILDREN, "sh", str(agent.pid)]), stdout=subprocess.PIPE, text=True
        )
        try:
            assert attack.stdout.readline() == "ready\n"
            with pytest.raises(PortError, match="took longer than 1 s; try again"):
                while True:
                    agent.open_nic(TapRequest(name="eth0", pid=container.pid)).close()
        finally:
            attack.kill()
            assert "stopped" in attack.communicate()[0]
        assert container.interfaces() == [], "what the child had made went with it"
        agent.open_nic(TapRequest(name="eth0", pid=container.pid)).close()
        with open(f"/proc/{agent.pid}/task/{agent.pid}/children") as children:
            assert children.read() == ""


@pytest.mark.root
def test_root_s_child_is_out_of_reach_of_another_user_s_container(leak_check):
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", STOP_CHILDREN, "sh"]
    with NamespaceAgent.start() as agent:
        attack = subprocess.Popen(
            [*command, str(agent.pid)], stdout=subprocess.PIPE, text=True, user=54321, group=54321, extra_groups=[]
        )
        try:
            assert attack.stdout.readline() == "ready\n"
            for _ in range(20):
                agent.open_nic(TapRequest(name="eth0", pid=attack.pid, addresses=("10.0.0.1/24",))).close()
        finally:
            attack.kill()
            assert attack.communicate()[0] == ""


def test_a_child_that_dies_or_hangs_is_reported(leak_check, monkeypatch):
    """Runs the agent's loop in this process, with work that never answers."""
    monkeypatch.setattr(agents.link, "netlink", lambda: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # each with the time that it is given: on a busy machine the first one dies late
    how = [
        (60, lambda: os.kill(os.getpid(), signal.SIGKILL)),
        (0.5, lambda: signal.pause()),
        (0.5, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    ]
    outcomes = iter(how)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            # Called in the agent, since each child has its own copy of the iterator.
            run_child = agents.run_child

            def run(sock, request, netns_fd):
                agents.CHILD_TIMEOUT_S, outcome = next(outcomes)
                agents.answer_to = lambda request, netns_fd: outcome()
                return run_child(sock, request, netns_fd)

            agents.run_child = run
            agents.serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    with NetNamespace.find() as here:
        for number, message in enumerate([r"failed unexpectedly \(wait status 9\)", *2 * ["took longer than 0.5 s"]]):
            agents.send_message(ours, agents.Request(number, "pid 1", LinkChange(ifindex=1)), [here.fd])
            answer = agents.msgspec.json.decode(agents.receive_message(ours)[0], type=agents.Done)
            assert answer.number == number
            with pytest.raises(PortError, match=message):
                raise PortError(answer.error)
    ours.close()
    os.waitpid(pid, 0)


def test_a_request_too_long_is_refused(container):
    routes = tuple(Route("default", "10.0.0.1" + " " * 300) for _ in range(256))
    with NamespaceAgent.start() as agent, NetNamespace.find(container.pid) as namespace:
        with pytest.raises(ConfigError, match="too long; ask for less"):
            agent.run(namespace, TapRequest(name="eth0", routes=routes))
        agent.open_nic(TapRequest(name="eth0", pid=container.pid)).close()


def test_too_many_open_files_is_a_clear_error(container):
    """Descriptors beyond the limit are lost in transit: the TAP is removed."""
    script = """
import resource, sys
from dataplane.errors import PortError
from vnic.device.agent import NamespaceAgent
from vnic.device.tap import TapRequest
with NamespaceAgent.start() as agent:
    agent.open_nic(TapRequest(name="eth0", pid=int(sys.argv[1]))).close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    try:
        agent.open_nic(TapRequest(name="eth0", pid=int(sys.argv[1]), queues=64))
    except PortError as error:
        print(error)
    agent.open_nic(TapRequest(name="eth0", pid=int(sys.argv[1]))).close()
"""
    done = subprocess.run([sys.executable, "-c", script, str(container.pid)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "too many open files; raise the limit (ulimit -n)" in done.stdout
    assert container.interfaces() == []


def test_unclosed_things_warn(container):
    with NamespaceAgent.start() as agent, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent.open_nic(TapRequest(name="eth0", pid=container.pid))
        NetNamespace.find(container.pid).watch()
        messages = {str(each.message) for each in caught}
    assert {"unclosed tap eth0", f"unclosed pid {container.pid}", f"unclosed watch of pid {container.pid}"} <= messages


# --- targets that go ------------------------------------------------------------------------------


def test_a_process_that_has_ended_but_is_not_waited_for(leak_check):
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ConfigError, match=f"pid {child.pid}: no such process; give the pid of a process"):
        NetNamespace.find(child.pid)
    child.wait()
    for wrong in ({"pid": child.pid}, {"netns": f"/proc/{child.pid}/ns/net"}):
        with pytest.raises(ConfigError, match=f"pid {child.pid}: no such process"):
            NetNamespace.find(**wrong)


def test_a_process_that_exits_between_check_and_entry(container):
    """The namespace is held open: the TAP is created nevertheless, and the watch reports at
    once."""
    with NamespaceAgent.start() as agent, NetNamespace.find(container.pid) as namespace, namespace.watch() as watch:
        assert not watch.gone
        container.close()
        assert watch.wait(5)
        with pytest.raises(ConfigError, match="no such process"):
            agent.open_nic(TapRequest(name="eth0", pid=container.pid))
        with agent.open_nic(TapRequest(name="eth0"), namespace) as tap:
            assert tap.counters()["rx_packets"] == 0


def test_a_thread_is_no_process(leak_check):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with pytest.raises(ConfigError, match="no such process"):
        NetNamespace.find(thread.native_id)
    stop.set()
    thread.join()


def test_on_gone_in_a_loop_when_the_process_exits(container):
    async def main() -> None:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        with NetNamespace.find(container.pid) as namespace:
            watch = namespace.watch()
        calls = []
        watch.on_gone(loop, lambda: (calls.append(1), gone.set()))
        await asyncio.sleep(0)
        assert not calls
        assert not watch.gone
        container.close()
        await asyncio.wait_for(gone.wait(), 5)
        await asyncio.sleep(0)
        assert calls == [1]
        # if it is gone already
        again = asyncio.Event()
        watch.on_gone(loop, again.set)
        await asyncio.wait_for(again.wait(), 5)
        watch.close()

    asyncio.run(main())


def test_a_watch_of_our_own_namespace_never_reports(leak_check):
    with NetNamespace.find() as here, here.watch() as watch:
        assert here.identity == identity_of("/proc/self/ns/net")
        assert not watch.wait(0)


def test_a_tap_keeps_the_namespace_and_closing_it_on_gone_frees_it(container):
    """As the daemon does it. The kernel frees namespaces in the background, so this waits for the
    descriptors, not for the inode."""
    with NamespaceAgent.start() as agent:
        tap = agent.open_nic(TapRequest(name="eth0", pid=container.pid))
        with tap.watch() as watch:
            container.close()
            assert watch.wait(5)
            assert tap.counters()["rx_packets"] == 0, "still there, since we hold it"
            tap.close()


@pytest.fixture
def named_netns(leak_check):
    name = f"vnic-agent-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.root
def test_a_named_namespace_that_is_deleted(named_netns):
    with NetNamespace.find(netns=named_netns) as namespace, namespace.watch() as watch:
        other = f"{named_netns}-other"
        subprocess.run(["ip", "netns", "add", other], check=True)
        subprocess.run(["ip", "netns", "del", other], check=True)
        assert not watch.gone, "something happened in the directory, but not to this one"
        assert not watch.wait(0)
        subprocess.run(["ip", "netns", "del", named_netns], check=True)
        assert watch.wait(5)


@pytest.mark.root
def test_a_name_that_links_to_a_process(container, tmp_path):
    name = tmp_path / "blue"
    name.symlink_to(container.netns_path)
    with NetNamespace.find(netns=str(name)) as namespace, namespace.watch() as watch:
        assert namespace.pid == container.pid
        container.close()
        assert watch.wait(5)


def test_inotify_descriptors_are_ours_alone(leak_check, tmp_path):
    with NetNamespace.find() as here:
        here.path = str(tmp_path / "x")
        with here.watch() as watch:
            assert fcntl.fcntl(watch.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            assert watch.gone, "no such path"


if IS_ROOT:

    @pytest.mark.timeout(1200)
    @pytest.mark.again
    def test_all_this_as_a_plain_user(run_as_plain_user):
        run_as_plain_user(__file__)

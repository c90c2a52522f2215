"""The guardian: a process that owns the resources of a test's live network, and removes them.

    test --SOCK_SEQPACKET--> guardian --fork--> the instance's supervisor
                                       `------> a container (a process in its own namespaces), for
                                                each NIC without one

It ends when the test closes the socket or the test's process ends in any way; before that it ends
the instance, the programs that the test started in containers, all other processes in its own
containers, and these containers. It has one thread, and its own session, so that Ctrl-C on the
terminal reaches only the test. If the guardian itself is killed, the kernel ends supervisor and
containers.

Runs as `main` of `python -P -c '...' CHANNEL PIDFD`: a socket, and a pidfd of the test's process. A
request and its answer are a JSON object each, with descriptors where a method says so.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataplane.descriptors import close_all, receive_with_descriptors, system_error
from dataplane.errors import ConfigError, VnicError
from vnic.device.namespaces import NetNamespace, enter, has_exited
from vnic.device.new_container import end_with_parent, enter_new_namespaces
from vnic.testing.packet_sockets import packet_sockets
from vnic.testing.processes import end_processes

MESSAGE_MOST = 1 << 16
STOP_TIMEOUT_MS = 45_000  # longer than the supervisor waits for its worker

# Of interfaces that come: nothing that the kernel sends by itself.
QUIET = {"disable_ipv6": "1"}
QUIET_WITH_IPV6 = {
    "disable_ipv6": "0",
    "accept_dad": "0",
    "accept_ra": "0",
    "addr_gen_mode": "1",
    "router_solicitations": "0",
}

Answer = tuple[dict[str, Any], list[int]]


class Guardian:
    """The requests of the test; each method is one."""

    def __init__(self, channel: socket.socket, test: int) -> None:
        self._channel, self._test = channel, test
        self._containers: dict[
            str, tuple[int, int]
        ] = {}  # process, and descriptor of its network namespace
        self._programs: list[int] = []  # pidfds
        self._instance = ""
        self._supervisor = self._supervisor_pidfd = -1

    def container(self, name: str, ipv6: bool) -> Answer:
        """Makes a container. ipv6: its interface will have IPv6 addresses; it is switched off
        otherwise, since the kernel would send packets."""
        reading, writing = os.pipe()
        pid = self._fork(lambda: self._contain(name, ipv6, writing), keep=[writing])
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        if said != "ready":
            os.waitpid(pid, 0)
            raise VnicError(
                f"nic {name}: no container can be made for it: {said or 'its process ended'}; "
                f"`vnic doctor` says why"
            )
        self._containers[name] = pid, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return {"pid": pid}, []

    def _contain(self, name: str, ipv6: bool, writing: int) -> None:
        try:
            enter_new_namespaces()
        except OSError as error:
            os.write(writing, str(error.strerror).encode())
            return
        _set_defaults(QUIET_WITH_IPV6 if ipv6 else QUIET)
        with suppress(OSError):
            Path("/proc/self/comm").write_text(f"vnic-{name}"[:15])
        os.write(writing, b"ready")
        os.close(writing)
        while True:
            signal.pause()

    def allow_ipv6(self, name: str) -> Answer:
        """Lets interfaces that come to a container have IPv6 addresses."""
        namespace = self._containers[name][1]

        def child() -> None:
            enter(namespace, f"nic {name}")
            _set_defaults(QUIET_WITH_IPV6)

        os.waitpid(self._fork(child, keep=[namespace]), 0)
        return {}, []

    def remove(self, name: str) -> Answer:
        """Removes a container."""
        pid, namespace = self._containers.pop(name)
        end_processes([namespace], {pid})
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(namespace)
        return {}, []

    def up(self, instance: str, document: int) -> Answer:
        """Starts the instance of the configuration in `document`, a file that `encode_config`
        wrote; answers when it is up."""
        reading, writing = os.pipe()
        self._instance = instance
        # SIGTERM: without the guardian it stops as after `vnic down`.
        self._supervisor = self._fork(
            lambda: self._supervise(instance, document, writing),
            keep=[writing, document],
            at_end=signal.SIGTERM,
        )
        os.close(writing)
        self._supervisor_pidfd = os.pidfd_open(self._supervisor)
        poll = select.poll()
        for each in (reading, self._test):
            poll.register(each, select.POLLIN)
        poll.register(self._channel.fileno(), 0)  # its end only
        ready = {descriptor for descriptor, _ in poll.poll()}
        with os.fdopen(reading) as pipe:
            if reading not in ready:
                raise ConnectionResetError
            answer = json.loads(pipe.readline() or "{}")
        if not answer:
            raise VnicError("the instance ended while it came up")
        return answer, []

    def _supervise(self, instance: str, document: int, writing: int) -> None:
        def tell(answer: dict[str, Any]) -> None:
            with suppress(OSError):  # the guardian has ended
                os.write(writing, json.dumps(answer).encode() + b"\n")

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            from vnic.api.log import set_up
            from vnic.config.convert import decode_config
            from vnic.daemon.up import run_instance

            set_up()
            with os.fdopen(document, "rb") as file:
                config = decode_config(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0))
            run_instance(config, instance, lambda worker: tell({"worker": worker}))
        except VnicError as error:
            tell(_described(error))
        except BaseException as error:
            traceback.print_exc()
            tell({"error": f"the instance cannot be started: {type(error).__name__}: {error}"})

    def sockets(self, pid: int | None, netns: str | None, interface: str, queues: int) -> None:
        """Answers with packet sockets on an interface of a container."""

        def child() -> None:
            try:
                with NetNamespace.find(pid, netns) as namespace:
                    enter(namespace.fd, namespace.label)
                    found = packet_sockets(interface, queues)
            except OSError as error:
                self._fail(
                    VnicError(f"interface {interface}: cannot be tested: {system_error(error)}")
                )
            except VnicError as error:
                self._fail(error)
            else:
                self._answer({}, found)

        os.waitpid(self._fork(child, keep=[self._channel.fileno()]), 0)

    def program(self, pidfd: int) -> None:
        """Registers a program that ends with the network; there is no answer."""
        for each in [each for each in self._programs if has_exited(each)]:
            self._programs.remove(each)
            os.close(each)
        self._programs.append(os.dup(pidfd))

    # -- the process -------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answers requests until the test closes the channel, or is gone; then ends everything."""
        stop, stopped = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(stopped)
        signal.signal(signal.SIGTERM, lambda *_: None)
        poll = select.poll()
        for each in (self._channel.fileno(), self._test, stop):
            poll.register(each, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in poll.poll()}
                if self._test in ready or stop in ready:
                    break
                data, descriptors, _ = receive_with_descriptors(self._channel, MESSAGE_MOST, 1)
                if not data:
                    break
                self._serve(json.loads(data), descriptors)
        except ConnectionError:  # the test has ended
            pass
        finally:
            self._end()

    def _serve(self, request: dict[str, Any], descriptors: list[int]) -> None:
        method = getattr(self, request.pop("call"))
        passed = dict(zip(request.pop("passed"), descriptors, strict=True))
        try:
            found = method(**request, **passed)
            if found is not None:
                self._answer(*found)
        except VnicError as error:
            self._fail(error)
        except ConnectionError:
            raise
        except OSError as error:
            self._fail(VnicError(f"the guardian of the network: {system_error(error)}"))
        finally:
            close_all(descriptors)

    def _answer(self, answer: dict[str, Any], descriptors: list[int]) -> None:
        socket.send_fds(self._channel, [json.dumps(answer).encode()], descriptors)

    def _fail(self, error: VnicError) -> None:
        self._answer(_described(error), [])

    def _fork(
        self, run: Callable[[], None], *, keep: list[int], at_end: int = signal.SIGKILL
    ) -> int:
        """Runs a function in a child that has standard streams and `keep` alone, and gets the
        signal `at_end` when the guardian ends."""
        guardian = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            end_with_parent(at_end)
            if os.getppid() != guardian:
                os._exit(1)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for each in sorted(
                {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *keep}
            ):
                with suppress(OSError):
                    os.close(each)
            run()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    # -- the end -----------------------------------------------------------------------------------

    def _end(self) -> None:
        """Ends everything that was started."""
        for each in self._programs:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(each, signal.SIGKILL)
        if self._supervisor > 0:
            self._end_instance()
        own = {pid for pid, _ in self._containers.values()}
        end_processes([namespace for _, namespace in self._containers.values()], own)
        for pid in own:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _end_instance(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._supervisor_pidfd, signal.SIGTERM)
        if not has_exited(self._supervisor_pidfd, STOP_TIMEOUT_MS):
            signal.pidfd_send_signal(self._supervisor_pidfd, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(self._supervisor, 0)[1]) == 0:
            return
        from vnic.api.interface import socket_path
        from vnic.daemon.instance import instance_lock

        with suppress(VnicError), instance_lock(self._instance), suppress(FileNotFoundError):
            os.unlink(socket_path(self._instance))  # the supervisor was killed and left it


def _set_defaults(settings: dict[str, str]) -> None:
    """Settings of interfaces that come to the network namespace that this process is in."""
    for setting, value in settings.items():
        with suppress(
            OSError
        ):  # a kernel without IPv6, or /proc/sys is read-only: the kernel sends some packets
            Path(f"/proc/sys/net/ipv6/conf/default/{setting}").write_text(value)


def _described(error: VnicError) -> dict[str, Any]:
    return {
        "error": str(error),
        "config": isinstance(error, ConfigError),
        "code": error.code,
        "field": error.field,
    }


def main() -> None:
    channel, test = (int(each) for each in sys.argv[1:3])
    Guardian(socket.socket(fileno=channel), test).serve()

"""A configuration's network on this machine, for tests: a running instance, real containers, real
time."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dataplane.descriptors import close_all, system_error
from dataplane.errors import ConfigError, VnicError
from dataplane.ports.memory import Frame
from dataplane.units import format_time
from vnic.api.client import Client
from vnic.config.convert import encode_config
from vnic.config.copies import own_config
from vnic.config.schema import Config
from vnic.device.namespaces import NetNamespace
from vnic.device.packet_sockets import RING_FRAMES_LEAST
from vnic.testing.frames import Received, nanoseconds
from vnic.testing.guarded import Guarded
from vnic.testing.kit import (
    UNACCOUNTED,
    AnyNetwork,
    Configuration,
    Shaping,
    config_of,
    policy_of,
)
from vnic.testing.processes import end_processes
from vnic.testing.station import Station

ROOT = str(Path(__file__).resolve().parents[2])
LAUNCH = f"import sys; sys.path.insert(0, {ROOT!r}); from vnic.testing.launch import main; main()"
ETHERNET_BYTES, TAG_BYTES, VLAN = 14, 4, b"\x81\x00"
# A GSO frame takes as much of a queue as so many others: the socket buffer of a plain user's packet
# socket holds three of them.
GSO_WEIGHT = RING_FRAMES_LEAST // 2
EQUAL_READINGS = 3  # of an idle network's counters
READ_NS = 3_000_000  # between two readings
LOOK_NS = 50_000_000  # received frames are read at least so often, for want of room in the sockets
SLEEP_NS = 2_000_000  # shorter waits are precise, and read no frames
# An engine that has read nothing for so long is halted or stopped by the test, and sending goes on.
STALLED_NS = 1_000_000_000
_numbers = itertools.count(1)


class Network(AnyNetwork):
    """The network of `config` (YAML text, the path of a YAML file, or a Config), on this machine:
    an instance of vnic, and for each NIC without `pid` and `netns` a container, a network namespace
    that is removed at the end.

        with vnic.Network("nics: {a: {egress: {rate: 10mbit}}, b: {}}") as net:
            net.send("a", Ether(...) / IP(...) / UDP(...), at="1ms")
            net.run()
            net.assert_received("b", Ether(...) / IP(...) / UDP(...))
            net.exec("a", ["ip", "link"])

    Its methods are those of VirtualNetwork. Times are of a clock that runs in `advance`, `run` and
    `exec` alone, at the speed of real time. A plain user's containers are in user namespaces.
    Nothing is left on the machine after `close`, nor after the end of this process, however it
    ends.

    instance: the name of the instance; by default a unique one. client: a Client of it; a new one
    after the instance's worker was replaced after a crash.
    """

    live = True

    def __init__(self, config: Configuration, *, instance: str | None = None) -> None:
        super().__init__(config_of(config))
        self._owner = os.getpid()
        self._containers: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}  # descriptors of those that were made
        self._stations: dict[str, Station] = {}
        self._counted: dict[
            str, tuple[int, int]
        ] = {}  # rx_packets and tx_packets before the station was there
        self._coming: dict[str, list[Received]] = {
            name: [] for name in self.config.nics
        }  # not yet due by the clock
        self._programs: list[subprocess.Popen[Any]] = []
        self._now_ns = self._began_ns = 0
        self._zero_ns = 0  # time.monotonic_ns() at the clock's 0, while it runs
        self._works: tuple[int, ...] = ()
        self._restarts = 0
        self.instance = instance or f"python-{os.getpid()}-{next(_numbers)}"
        self._client: Client | None = None
        self._guarded: Guarded | None = Guarded()
        try:
            self.config, _ = self._with_containers(self.config)
            with _document(self.config) as document:
                self._guarded.call("up", {"document": document}, instance=self.instance)
            self._client = Client(self.instance)
            self._open_stations(list(self.config.nics))
        except BaseException:
            self._closed = True
            self._release()
            raise

    @property
    def client(self) -> Client:
        """A client of the instance."""
        if self._client is None:
            raise VnicError("the network is closed")
        return self._client

    @property
    def now_ns(self) -> int:
        """Time since the start, of the network's clock."""
        return self._now_ns

    def shape(self, policy: Shaping) -> list[str]:
        """Makes `policy` (YAML text, the path of a YAML file, or plain data; None: none) the policy
        of shaping, as `vnic shape apply` does; returns the changes. Raises ConfigError,
        VnicError."""
        data = policy_of(policy)
        with self._time():
            changes = self.client.shape(data)["changes"]
        self._shaped(data)
        return [f"{each['action']} {each['kind']} {each['name']}" for each in changes]

    def apply(self, config: Configuration) -> list[str]:
        """Changes the network to `config`, as `vnic apply` does; returns the changes, such as "add
        nic web". Unchanged parts keep their queues, tables, counters and containers. All or
        nothing. Raises ConfigError, VnicError."""
        wanted, made = self._with_containers(config_of(config))
        try:
            with (
                self._time(),
                _document(wanted) as document,
            ):  # what has arrived is read before an interface goes
                changes = self.client.call("Apply", passing=[document], document=0)["changes"]
        except BaseException:
            self._remove_containers(made)
            raise
        renewed = {
            change["name"]
            for change in changes
            if change["kind"] == "nic" and (change["action"] != "change" or change["remade"])
        }
        for name in renewed & self._stations.keys():
            self._stations.pop(name).close()
        self._changed(wanted)
        self._coming = {name: self._coming.get(name, []) for name in wanted.nics}
        self._open_stations([name for name in wanted.nics if name not in self._stations])
        self._remove_containers(
            [
                name
                for name, pid in self._containers.items()
                if name not in wanted.nics or wanted.nics[name].pid != pid
            ]
        )
        return [f"{change['action']} {change['kind']} {change['name']}" for change in changes]

    # -- containers --------------------------------------------------------------------------------

    def pid(self, nic: str) -> int | None:
        """The process of the container of `nic`; None where the configuration has its `netns`."""
        return self._nic_config(nic).pid

    def netns(self, nic: str) -> str:
        """The path of the network namespace of the container of `nic`."""
        config = self._nic_config(nic)
        return config.netns if config.netns is not None else f"/proc/{config.pid}/ns/net"

    def popen(
        self, nic: str, argv: Sequence[str], *, pass_fds: Sequence[int] = (), **options: Any
    ) -> subprocess.Popen[Any]:
        """Starts a program in the network namespace of the container of `nic`. options: of
        subprocess.Popen. The program ends with the network, at the latest. Raises ConfigError,
        VnicError."""
        config = self._nic_config(nic)
        if isinstance(argv, str) or not argv:
            raise ConfigError(
                f"argv {argv!r}: "
                f'expected a program and its arguments such as ["ping", "-c", "1", "10.0.0.2"]'
            )
        self._programs = [each for each in self._programs if each.poll() is None]
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            with NetNamespace.find(config.pid, config.netns) as namespace:
                program = subprocess.Popen(
                    # -I -S: nothing of the environment and no installed package, to start fast
                    [
                        sys.executable,
                        "-I",
                        "-S",
                        "-c",
                        LAUNCH,
                        str(namespace.fd),
                        str(writing),
                        *argv,
                    ],
                    pass_fds=[*pass_fds, namespace.fd, writing],
                    **options,
                )
        except OSError as error:
            os.close(reading)
            raise VnicError(
                f"nic {nic}: {argv[0]}: cannot be started: {system_error(error)}"
            ) from None
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._programs.append(program)
        with os.fdopen(reading, errors="replace") as errors:
            self._guard(program)
            why = errors.read()
        if why:
            program.wait()
            for stream in (program.stdin, program.stdout, program.stderr):
                if stream is not None:
                    stream.close()
            raise VnicError(f"nic {nic}: {why}")
        return program

    def _guard(self, program: subprocess.Popen[Any]) -> None:
        """Has the guardian end a program where this process is killed."""
        pidfd = os.pidfd_open(program.pid)
        try:
            if self._guarded is not None:
                self._guarded.tell("program", {"pidfd": pidfd})
        finally:
            os.close(pidfd)

    def exec(
        self,
        nic: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: str | int | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program in the network namespace of the container of `nic` to its end; time passes
        meanwhile. Returns its status and output, `stdout` and `stderr`. Raises VnicError where it
        takes longer than `timeout` or, with `check`, where its status is not 0."""
        limit_ns = None if timeout is None else nanoseconds(timeout)
        pipe = subprocess.PIPE
        process = self.popen(
            nic,
            argv,
            text=True,
            stdin=subprocess.DEVNULL if stdin is None else pipe,
            stdout=pipe,
            stderr=pipe,
        )
        with self._time(), process:
            end_ns = None if limit_ns is None else self._elapsed() + limit_ns
            while True:
                try:
                    output, errors = process.communicate(
                        stdin, timeout=(READ_NS if self._sending else LOOK_NS) / 1e9
                    )
                    break
                except subprocess.TimeoutExpired:
                    self._send_due(self._elapsed())
                    self._receive()
                    if end_ns is not None and self._elapsed() >= end_ns:
                        process.kill()
                        raise VnicError(
                            f"nic {nic}: {' '.join(argv)}: "
                            f"did not end within {format_time(limit_ns or 0)}"
                        ) from None
                except BaseException:
                    process.kill()
                    raise
            self._now_ns = self._elapsed()
            self._receive()
        self._arrive()
        if check and process.returncode:
            said = (errors or output).strip().splitlines()
            raise VnicError(
                f"nic {nic}: {' '.join(argv)}: "
                f"status {process.returncode}{f': {said[-1]}' if said else ''}"
            )
        return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)

    def log(self) -> str:
        """The log of the instance so far."""
        return "" if self._guarded is None else self._guarded.log()

    def _call(self, method: str, **parameters: Any) -> tuple[dict[str, Any], list[int]]:
        if self._guarded is None:
            raise VnicError("the network is closed")
        return self._guarded.call(method, **parameters)

    def _with_containers(self, config: Config) -> tuple[Config, list[str]]:
        """A copy of a configuration in which each NIC has a container, and the names of those that
        were made."""
        config, made = own_config(config), list[str]()
        try:
            for name, nic in config.nics.items():
                if nic.pid is not None or nic.netns is not None:
                    continue
                ipv6 = any(":" in address for address in nic.addresses)
                if name in self._containers and ipv6:
                    self._call("allow_ipv6", name=name)
                elif name not in self._containers:
                    pid = self._containers[name] = self._call("container", name=name, ipv6=ipv6)[0][
                        "pid"
                    ]
                    made.append(name)
                    with suppress(OSError):  # it has ended, and the next step says so
                        self._namespaces[name] = os.open(
                            f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC
                        )
                nic.pid = self._containers[name]
        except BaseException:
            self._remove_containers(made)
            raise
        return config, made

    def _remove_containers(self, names: list[str]) -> None:
        for name in names:
            del self._containers[name]
            close_all([self._namespaces.pop(name)] if name in self._namespaces else [])
            with suppress(VnicError):  # the guardian is gone, and the containers with it
                self._call("remove", name=name)

    def _open_stations(self, names: list[str]) -> None:
        for name in names:
            nic = self.config.nics[name]
            queues = (
                nic.queues if nic.kind == "tap" else 1
            )  # a veth's queues in the container are the kernel's
            _, sockets = self._call(
                "sockets", pid=nic.pid, netns=nic.netns, interface=nic.interface, queues=queues
            )
            if len(sockets) != queues:
                close_all(sockets)
                raise VnicError(
                    f"nic {name}: {len(sockets)} packet sockets came instead of {queues}"
                )
            self._stations[name] = Station(name, sockets)
        self._count(names)

    def _count(self, names: list[str]) -> None:
        """Remembers the counters of NICs whose stations have neither sent nor received yet."""
        status = self._status()
        self._restarts = status["supervisor"]["restarts"]
        for nic in status["nics"]:
            if nic["name"] in names:
                self._counted[nic["name"]] = (
                    nic["rx_packets"] + self._queue_drops(nic["name"]),
                    nic["tx_packets"],
                )

    # -- sending -----------------------------------------------------------------------------------

    def _check(self, nic: str, frames: list[Frame]) -> None:
        mtu = self.config.nics[nic].mtu
        for number, frame in enumerate(frames, 1):
            most = mtu + ETHERNET_BYTES + TAG_BYTES * (frame.data[12:14] == VLAN)
            if len(frame.data) < ETHERNET_BYTES:
                raise ConfigError(
                    f"send: packet {number}: {len(frame.data)} bytes: "
                    f"shorter than an Ethernet header"
                )
            if not frame.gso_type and len(frame.data) > most:
                raise ConfigError(
                    f"send: packet {number}: {len(frame.data)} bytes: "
                    f"nic {nic} with MTU {mtu} sends at most {most}"
                )

    def _send_due(self, until_ns: int) -> None:
        """Sends what is due until then, no faster than the NICs read: the kernel drops a frame that
        a NIC's queues have no room for, and does not say so to the sender."""
        burst, unread = 0, dict.fromkeys(self._stations, 0)
        while self._sending and self._sending[0][0] <= until_ns:
            _, _, nic, frame = heapq.heappop(self._sending)
            self._journal.note(self._elapsed(), nic, frame)
            self._stations[nic].send(frame)
            burst += 1
            if burst % 32 == 0:
                self._receive()
            unread[nic] += GSO_WEIGHT if frame.gso_type else 1
            if unread[nic] >= RING_FRAMES_LEAST:
                self._await_reading(nic)
                unread[nic] = 0

    def _await_reading(self, nic: str) -> None:
        """Waits until a NIC has read every frame that was sent, or its engine stalls."""
        end_ns = self._elapsed() + STALLED_NS
        while self._elapsed() < end_ns:
            status = self._status(receive=True)
            if self._replaced(status) or not any(
                self._unread(each) for each in status["nics"] if each["name"] == nic
            ):
                return

    # -- time --------------------------------------------------------------------------------------

    def advance(self, time: str | int) -> None:
        """Waits until `time` has passed, and sends the packets that are due meanwhile. Returns with
        the frames received that arrived in this time. Frames in flight arrive while the clock
        stands, and get its present time."""
        until_ns = self._now_ns + nanoseconds(time)
        with self._time():
            self._pass(until_ns)
            self._now_ns = until_ns
        self._arrive()

    def run(self, *, timeout: str | int = "60s") -> None:
        """Sends every packet and waits until the network is idle: its NICs have read or counted as
        dropped every sent frame, no element holds a packet, all counters were the same in three
        successive readings, and every frame that was delivered to a container is received. The time
        is then that of the last packet. Raises VnicError if the network is not idle within
        `timeout` after the last packet was sent."""
        limit_ns = nanoseconds(timeout)
        with self._time():
            last_ns = max([self._now_ns, *(each[0] for each in self._sending)])
            self._pass(last_ns)
            before, equal, why = None, 0, ""
            while equal < EQUAL_READINGS:
                if self._elapsed() > last_ns + limit_ns:
                    self._now_ns = self._elapsed()
                    raise VnicError(f"the network is not idle after {format_time(limit_ns)}: {why}")
                status = self._status(receive=True)
                why = self._in_flight(status)
                reading = [
                    [engine[term] for term in ("received", "generated", "transmitted", "dropped")]
                    for engine in status["engines"]
                ]
                if why:
                    equal = 0
                elif reading == before:
                    equal += 1
                else:
                    equal, why = 1, "packets go on coming"
                before = reading
            arrived = (each.time_ns for frames in self._coming.values() for each in frames)
            self._now_ns = max([last_ns, *arrived])
        self._arrive()

    def _in_flight(self, status: dict[str, Any]) -> str:
        """Why the network is not idle; "" where it is."""
        if self._replaced(status):
            for station in self._stations.values():
                station.sent = station.arrived = 0
            self._count(list(self._stations))
        for engine in status["engines"]:
            if engine["held"]:
                return f"engine {engine['name']} holds {engine['held']} packets"
        for nic in status["nics"]:
            name = nic["name"]
            if name not in self._stations:
                continue
            if unread := self._unread(nic):
                return f"nic {name} has not read {unread} packets"
            found, (_, tx) = self._stations[name], self._counted[name]
            if (missing := nic["tx_packets"] - tx - found.arrived) > 0:
                if not found.has_room:
                    raise VnicError(
                        f"nic {name}: there is no room for more received packets; "
                        f"take some, then go on"
                    )
                return f"nic {name} delivered {missing} packets that have not arrived"
        return ""

    def _replaced(self, status: dict[str, Any]) -> bool:
        """Whether the counters are those of another worker."""
        restarts: int = status["supervisor"]["restarts"]
        return restarts != self._restarts

    def _unread(self, nic: dict[str, Any]) -> int:
        """Frames that the container of a NIC, a row of Status, has sent and the NIC has neither
        read nor lost."""
        name = nic["name"]
        unread: int = self._counted[name][0] + self._stations[name].sent - nic["rx_packets"]
        return max(unread - self._queue_drops(name), 0) if unread > 0 else 0

    @contextmanager
    def _time(self) -> Iterator[None]:
        """The clock runs."""
        self._began_ns = self._now_ns
        self._zero_ns = time.monotonic_ns() - self._now_ns
        self._receive()
        yield

    def _elapsed(self) -> int:
        """The time of the running clock."""
        return time.monotonic_ns() - self._zero_ns

    def _pass(self, until_ns: int) -> None:
        """Waits until then, and sends what is due meanwhile."""
        while True:
            due_ns = min(until_ns, self._sending[0][0]) if self._sending else until_ns
            while (left_ns := due_ns - self._elapsed()) > 0:
                if left_ns <= SLEEP_NS:
                    time.sleep(left_ns / 1e9)
                else:
                    self._await_frames(min(left_ns - SLEEP_NS // 2, LOOK_NS))
                    self._receive()
            if self._sending and self._sending[0][0] <= until_ns:
                self._send_due(due_ns)
            else:
                break
        self._receive()

    def _await_frames(self, time_ns: int) -> None:
        poll = select.poll()
        for station in self._stations.values():
            if station.has_room:
                for descriptor in station.descriptors():
                    poll.register(descriptor, select.POLLIN)
        poll.poll(time_ns / 1e6)

    def _status(self, *, receive: bool = False) -> dict[str, Any]:
        """The result of Status, with counters read after the last call: the instance reuses replies
        that are some milliseconds old. receive: reads frames meanwhile."""
        while True:
            status: dict[str, Any] = self._read("Status")["status"]
            works = (status["pid"], *(engine["works"] for engine in status["engines"]))
            if works != self._works:
                self._works = works
                if receive:
                    self._receive()
                return status
            end_ns = time.monotonic_ns() + READ_NS
            while (left_ns := end_ns - time.monotonic_ns()) > 0:
                if not receive:
                    time.sleep(left_ns / 1e9)
                    continue
                self._await_frames(left_ns)
                self._receive()

    def _read(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method that only reads; again by another connection where the worker was
        replaced."""
        try:
            return self.client.call(method, **parameters)
        except ConfigError:
            raise
        except VnicError:
            if self._client is None:
                raise
            self._client.close()
            self._client = Client(self.instance)
            return self._client.call(method, **parameters)

    def _queue_drops(self, nic: str) -> int:
        """Frames of the container that the NIC's queues had no room for."""
        [found] = self._read("Stats", name=nic)["stats"]["nics"]
        return found["queue_drops"] or 0

    # -- receiving ---------------------------------------------------------------------------------

    def received(self, nic: str) -> list[Received]:
        """As of a VirtualNetwork. Raises VnicError, once, if frames were lost because more arrived
        than there is room for."""
        self._nic_config(nic)
        station = self._stations.get(nic)
        if station is not None and station.lost:
            lost, station.lost = station.lost, 0
            raise VnicError(
                f"nic {nic}: {lost} frames that arrived had no room; "
                f"take what arrives more often, or send less at once"
            )
        return super().received(nic)

    def take(self, nic: str) -> list[Received]:
        """As `received`, and removes them: the next call returns later frames only."""
        taken = super().take(nic)
        if (station := self._stations.get(nic)) is not None:
            station.stored_bytes = sum(len(each.data) for each in self._coming[nic])
        return taken

    def _receive(self) -> None:
        """Reads the frames that have arrived."""
        real_at_0_ns = time.time_ns() - time.monotonic_ns() + self._zero_ns
        for name, station in self._stations.items():
            coming = self._coming[name]
            for arrival in station.receive():
                least_ns = max(self._began_ns, coming[-1].time_ns if coming else 0)
                coming.append(
                    Received(
                        max(arrival.real_ns - real_at_0_ns, least_ns), arrival.data, arrival.queue
                    )
                )

    def _arrive(self) -> None:
        """Frames whose time has come are received."""
        for name, coming in self._coming.items():
            count = sum(each.time_ns <= self._now_ns for each in coming)
            self._received[name] += coming[:count]
            del coming[:count]

    def _stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self._read("Stats")["stats"]
        return stats

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the programs, the instance and the containers that this network made; returns when
        all are gone. Raises AssertionError where packets are unaccounted for, VnicError where the
        instance does not say. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            conserved = os.getpid() != self._owner or self._status()["conserved"]
        finally:
            self._release()
        assert conserved, UNACCOUNTED

    def _release(self) -> None:
        """Closes everything, in a fork of the test's process the descriptors alone."""
        guarded, self._guarded = self._guarded, None
        ours = os.getpid() == self._owner
        try:
            for program in self._programs if ours else []:
                if program.poll() is None:
                    program.kill()
                    program.wait()
            if self._client is not None:
                self._client.close()
                self._client = None
            for station in self._stations.values():
                station.close()
        finally:
            if guarded is not None:
                if not ours:
                    guarded.abandon()
                elif not guarded.close():
                    end_processes(self._namespaces.values())
            while self._namespaces:
                os.close(self._namespaces.popitem()[1])

    def __exit__(self, kind: object = None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:  # the test has failed already: nothing is to hide why
            self._closed = True
            self._release()

    def __del__(self) -> None:
        if getattr(self, "_guarded", None) is not None:
            warnings.warn(
                f"unclosed network {self.instance}", ResourceWarning, stacklevel=2, source=self
            )
            self._closed = True
            self._release()


@contextmanager
def _document(config: Config) -> Iterator[int]:
    """The descriptor of a file with a configuration."""
    descriptor = os.memfd_create("vnic-config", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(encode_config(config))
        yield descriptor
    finally:
        os.close(descriptor)

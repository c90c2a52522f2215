"""`vnic demo`: TCP between two containers over vnic, without a rate limit, then with one; packet
counts at the end."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import IO, Any

from dataplane.errors import VnicError
from dataplane.units import format_rate
from vnic.config.convert import convert_config
from vnic.device.link import try_tun_device
from vnic.runtime.runtime import Runtime

ADDRESSES = {"left": "10.99.0.1", "right": "10.99.0.2"}
MTU = 1500
ETHERNET_HEADER = 14
TCP_PORT, ECHO_PORT = 5001, 5002
ROUND_TRIPS = 1000

TERMS = ("received", "generated", "transmitted", "dropped", "held")  # of each engine's books

Progress = Callable[[str], None]


def books_of(status: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that says whether all packets are accounted for."""
    return {
        "conserved": bool(status["conserved"]),
        "conservation": [
            {term: engine[term] for term in ("name", *TERMS)} for engine in status["engines"]
        ],
    }


class Machine:
    """The demo's handle of a container or a guest, which answers requests over two streams, each a
    JSON object on a line.

    WHAT  what it is, in errors
    """

    WHAT = "container"

    def __init__(self, name: str, requests: IO[str], replies: IO[str]) -> None:
        self.name, self._requests, self._replies = name, requests, replies

    def ask(self, call: str, **arguments: Any) -> None:
        """Sends a request; `answer` waits for its reply."""
        self._requests.write(json.dumps({"call": call, **arguments}) + "\n")
        self._requests.flush()

    def answer(self) -> dict[str, Any]:
        """The reply to the oldest open request."""
        line = "."
        while line and not line.startswith("{"):  # a guest's kernel writes to its console, too
            line = self._replies.readline()
        if not line:
            raise VnicError(f"{self.WHAT} {self.name}: its process ended unexpectedly")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise VnicError(f"{self.WHAT} {self.name}: {reply['error']}")
        return reply


class DemoContainer(Machine):
    """A container process."""

    def __init__(self, name: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vnic.cli.demo_container", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C reaches only the demo, which ends its containers
            )
        self._channel = ours
        self._stream = ours.makefile("rw")
        super().__init__(name, self._stream, self._stream)
        try:
            self.pid = int(self.answer()["ready"])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the process, and with it the namespaces."""
        self._process.kill()
        self._process.wait()
        self._stream.close()
        self._channel.close()


def tcp(
    sender: Machine,
    receiver: Machine,
    seconds: float,
    settle: float,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[float, int]:
    """Goodput in bit/s of one TCP stream, and its MSS. meanwhile: is called while it lasts."""
    address = ADDRESSES[receiver.name]
    receiver.ask("receive", seconds=seconds, settle=settle)
    sender.ask("send", address=address, port=TCP_PORT)
    meanwhile()
    got, sent = receiver.answer(), sender.answer()
    if not got["seconds"]:
        raise VnicError(
            f"TCP from {sender.name} to {receiver.name} ended before it could be measured"
        )
    return got["bytes"] * 8 / got["seconds"], int(sent["mss"])


def goodput(rate_bps: int, mss: int) -> float:
    """What a rate leaves to the application: it counts layer-2 bits, of which the application
    receives MSS bytes of every full frame."""
    return rate_bps * mss / (MTU + ETHERNET_HEADER)


def round_trips(client: Machine, server: Machine, count: int = ROUND_TRIPS) -> dict[str, float]:
    """Median and 99th percentile of UDP round trips, in microseconds."""
    address = ADDRESSES[server.name]
    server.ask("echo", count=count)
    client.ask("ping", address=address, port=ECHO_PORT, count=count)
    times = sorted(client.answer()["times_us"])
    server.answer()
    if len(times) < 2:
        raise VnicError(f"round trips from {client.name} to {server.name}: no answers")
    cuts = statistics.quantiles(times, n=100)
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}


def _kind(progress: Progress) -> str:
    """The kind of the demo's NICs: TAPs, or where there is no device for them, veth pairs."""
    try:
        try_tun_device()
    except VnicError as error:
        progress(
            f"{str(error).partition(':')[0].removesuffix(' is missing')} cannot be used: "
            "over veth pairs instead"
        )
        return "veth"
    return "tap"


def run_demo(
    *, rate_bps: int, queues: int, seconds: float, spin: str, progress: Progress
) -> dict[str, Any]:
    """Runs the demo and returns its figures. Removes everything that it created, also on an
    exception or KeyboardInterrupt."""
    with ExitStack() as stack:
        kind = _kind(progress)
        progress("making two containers")
        left, right = (stack.enter_context(closing(DemoContainer(name))) for name in ADDRESSES)
        config = convert_config(
            {
                "spin": spin,
                "nics": {
                    each.name: {
                        "pid": each.pid,
                        "kind": kind,
                        "interface": "eth0",
                        "queues": queues,
                        "mtu": MTU,
                        "addresses": [f"{ADDRESSES[each.name]}/24"],
                    }
                    for each in (left, right)
                },
            }
        )
        runtime = stack.enter_context(Runtime(config))
        progress(f"attaching both to one vnic, {queues} queue pair{'s' if queues > 1 else ''} each")
        runtime.start()
        for each in (left, right):
            each.ask("listen", address=ADDRESSES[each.name], tcp_port=TCP_PORT, udp_port=ECHO_PORT)
            each.answer()

        progress(f"round trips: {ROUND_TRIPS} UDP datagrams there and back")
        rtt_us = round_trips(left, right)
        unshaped: dict[str, float] = {}
        shaped: dict[str, float] = {}
        for sender, receiver in ((left, right), (right, left)):
            progress(f"TCP {sender.name} -> {receiver.name}, unshaped, {seconds:g} s")
            unshaped[f"{sender.name}-{receiver.name}"] = tcp(sender, receiver, seconds, settle=0.3)[
                0
            ]
        for each in (left, right):
            runtime.nics.set_rate(each.name, egress_bps=rate_bps)
        mss = 0
        for sender, receiver in ((left, right), (right, left)):
            progress(
                f"TCP {sender.name} -> {receiver.name}, {format_rate(rate_bps)} applied live, "
                f"{seconds:g} s"
            )
            shaped[f"{sender.name}-{receiver.name}"], mss = tcp(
                sender, receiver, seconds, settle=0.5
            )
        expected_bps = goodput(rate_bps, mss)
        shaped_bps = statistics.fmean(shaped.values())
        status = runtime.status()
        per_queue = {nic["name"]: nic["queues"] for nic in runtime.stats()["nics"]}
        return {
            "kind": kind,
            "unshaped_gbps": round(statistics.fmean(unshaped.values()) / 1e9, 3),
            "unshaped_gbps_by_direction": {
                way: round(bps / 1e9, 3) for way, bps in unshaped.items()
            },
            "rate": format_rate(rate_bps),
            "shaped_mbps": round(shaped_bps / 1e6, 3),
            "shaped_mbps_by_direction": {way: round(bps / 1e6, 3) for way, bps in shaped.items()},
            "expected_mbps": round(expected_bps / 1e6, 3),
            "error_percent": round((shaped_bps / expected_bps - 1) * 100, 3),
            "rtt_us": rtt_us,
            "queues": per_queue,
            **books_of(status),
            "unprivileged": os.geteuid() != 0,
        }

"""TCP connections between containers: goodput and round trips, by the kernel's TCP and by iperf3.

Congestion control is CUBIC, whatever the machine's default is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.containers import Container
from tests.test_handlers_traffic import until

# Sends to argv[1]:argv[2] for argv[3] seconds. Prints the time before it connected, and, in
# microseconds, the kernel's shortest round trip and the mean over time of its smoothed one, as ss
# shows them.
SEND = """
import json, re, socket, struct, subprocess, sys, time
address, port, begin = sys.argv[1], sys.argv[2], time.monotonic()
end, found, data, look = begin + float(sys.argv[3]), [], bytes(1 << 16), 0.0
with socket.socket() as s:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    s.connect((address, int(port)))
    s.settimeout(0.1)
    while (now := time.monotonic()) < end:
        try:
            s.send(data)
        except TimeoutError:  # its buffer is full
            pass
        if now >= look:
            look = now + 0.2
            text = subprocess.run(["ss", "-tinH", "dport", "=", f":{port}"], capture_output=True, text=True).stdout
            found.append({key: float(re.search(rf" {key}:([0-9.]+)", text)[1]) for key in ("rtt", "minrtt") if f" {key}:" in text})
    # what still waits is of no use
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
rtts = [each["rtt"] for each in found if "minrtt" in each]
print(json.dumps([begin, 1000 * min(each["minrtt"] for each in found if "minrtt" in each), 1000 * sum(rtts) / len(rtts)]))
"""
# Receives on argv[1]; prints (time, bytes until then).
RECEIVE = """
import json, socket, sys, time
with socket.create_server(("", int(sys.argv[1]))) as server:
    server.settimeout(60)
    print("ready", flush=True)
    with server.accept()[0] as s:
        found = [(0.0, 0)]
        s.settimeout(60)
        try:
            while data := s.recv(1 << 20):
                found.append((time.monotonic(), found[-1][1] + len(data)))
        except ConnectionResetError:
            pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Transfer:
    """received: (seconds since the begin, bytes until then). Round trips in nanoseconds."""

    received: list[tuple[float, int]]
    rtt_least_ns: float
    rtt_mean_ns: float

    def goodput_bps(self, begin_s: float, end_s: float) -> float:
        """The payload between two instants. Bytes that came behind a loss count when it has been
        repaired."""

        at, counts = zip(*self.received, strict=True)
        assert at[-1] >= end_s, "the transfer ended early"
        first, last = np.interp([begin_s, end_s], at, counts)
        return float(8 * (last - first) / (end_s - begin_s))


def kernel_tcp(source: Container, target: Container, address: str, port: int, seconds: float) -> Transfer:
    """A connection of plain sockets."""
    receiver = target.popen([sys.executable, "-c", RECEIVE, str(port)])
    assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
    begin, least, mean = json.loads(source.python(SEND, address, str(port), str(seconds)))
    received = json.loads(receiver.communicate(timeout=120)[0])
    return Transfer([(at - begin, count) for at, count in received], 1000 * least, 1000 * mean)


def iperf3(source: Container, target: Container, address: str, port: int, seconds: int) -> Transfer:
    """A connection of iperf3."""
    server = target.popen(["iperf3", "-s", "-1", "-J", "-p", str(port)])
    try:
        until(lambda: f":{port} " in target.run("ss", "-tlnH"))
        words = ["iperf3", "-c", address, "-p", str(port), "-t", str(seconds), "-C", "cubic", "-J", "--get-server-output"]
        said = json.loads(source.run(*words))
        server.communicate(timeout=120)
    finally:
        server.kill()
        server.wait()
    received, total = [(0.0, 0)], 0
    for each in said["server_output_json"]["intervals"]:
        total += each["sum"]["bytes"]
        received.append((each["sum"]["end"], total))
    rtt: dict[str, Any] = said["end"]["streams"][0]["sender"]
    return Transfer(received, 1000 * rtt["min_rtt"], 1000 * rtt["mean_rtt"])


def flood(source: Container, target: Container, address: str, port: int, rate: str) -> list[subprocess.Popen[str]]:
    """UDP datagrams, until `end` ends them."""
    server = target.popen(["iperf3", "-s", "-1", "-p", str(port)])
    until(lambda: f":{port} " in target.run("ss", "-tlnH"))
    return [server, source.popen(["iperf3", "-c", address, "-p", str(port), "-u", "-b", rate, "-l", "1400", "-t", "600"])]


def end(processes: list[subprocess.Popen[str]]) -> None:
    for each in processes:
        each.kill()
        each.communicate(timeout=60)


def waited_ns(pid: int) -> int:
    """How long the threads of a process have waited for a processor, although they had work."""
    return sum(int((each / "schedstat").read_text().split()[1]) for each in Path(f"/proc/{pid}/task").iterdir())

"""The C probes (bench/*.c): compiled when needed, run as processes; each prints one JSON object."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.interrupts import held

HERE = Path(__file__).parent
BIN = HERE / "bin"
PROBES = ("bare", "stream", "blast", "pingpong", "sequence", "lines")


def compile_probes() -> None:
    """Compiles the probes that are older than their source into bench/bin/. Raises BenchError where
    gcc is missing or fails."""
    if not shutil.which("gcc"):
        raise BenchError("gcc is not installed: the probes are C programs (apt-get install gcc libc6-dev)")
    BIN.mkdir(exist_ok=True)
    newest_header = max(header.stat().st_mtime for header in HERE.glob("*.h"))
    for name in PROBES:
        source, binary = HERE / f"{name}.c", BIN / name
        if binary.exists() and binary.stat().st_mtime > max(source.stat().st_mtime, newest_header):
            continue
        command = ["gcc", "-O2", "-Wall", "-pthread", "-o", str(binary), str(source)]
        done = finish(command, timeout_seconds=60)
        if done.returncode:
            raise BenchError(f"{source.name} does not compile: {done.stderr.strip().splitlines()[0]}")


def finish(command: Sequence[str], timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and leaves no process behind. Raises BenchError where it is missing
    or takes too long."""
    process: subprocess.Popen[str] | None = None
    try:
        with held():
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
        output, complaint = process.communicate(timeout=timeout_seconds)
        return subprocess.CompletedProcess(command, process.returncode, output, complaint)
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{' '.join(command)} did not end within {timeout_seconds:.0f} s") from None
    finally:
        if process and process.poll() is None:
            process.kill()
            process.wait()


def probe(name: str, *arguments: object, timeout_seconds: float) -> dict[str, float]:
    """Runs a probe and returns its result. Raises BenchError where it fails or takes too long."""
    done = finish([str(BIN / name), *(str(a) for a in arguments)], timeout_seconds)
    if done.returncode:
        raise BenchError(f"{name} failed: {done.stderr.strip() or f'exit status {done.returncode}'}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def ping(netns: str, address: str, count: int, interval_ms: int) -> dict[str, float]:
    """Round trips of ICMP echoes, by iputils' ping: p50_us, p99_us, received. Raises BenchError
    where ping is missing or no reply came.

    At intervals below 10 ms ping polls for the reply instead of sleeping: so the round trip
    includes the path's wake-ups, not the client's.
    """
    command = ["nsenter", f"--net={netns}", "ping", "-n", "-c", str(count), "-i", f"{interval_ms / 1000:.3f}", address]
    done = finish(command, timeout_seconds=10 + 2 * count * interval_ms / 1000)
    times_us = sorted(float(text) * 1000 for text in re.findall(r"time=([0-9.]+) ms", done.stdout))
    if not times_us:
        raise BenchError(f"ping failed: {done.stderr.strip() or 'no answer'}")
    return {"p50_us": times_us[len(times_us) // 2], "p99_us": times_us[len(times_us) * 99 // 100], "received": len(times_us)}


def run(command: Sequence[str]) -> str:
    """Runs a tool to its end and returns its output. Raises BenchError with the first line of its
    error."""
    done = finish(command, timeout_seconds=30)
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[0]
        raise BenchError(f"{' '.join(command)}: {complaint}")
    return done.stdout

"""`vnic capture` on a running vnic: containers with traffic; captures, however they end, do not
disturb the network."""

import json
import os
import signal
import subprocess
import sys

import pytest

from dataplane.capture.reader import CaptureReader
from tests.support import plain_user
from tests.support.containers import IS_ROOT, Container
from tests.test_command import TREE, VNIC, environment, vnic  # noqa: F401 - `environment` is a fixture
from tests.test_supervisor import kill_worker

SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for number in range(int(sys.argv[1])):
        s.sendto(number.to_bytes(4, "big") + bytes(96), ("10.98.0.2", 9))
"""


@pytest.fixture(params=[1, 2], ids=["one-engine", "two-engines"])
def network(request, environment, tmp_path):  # noqa: F811
    """(environment, containers a and b): `vnic up` between them."""
    with Container() as a, Container() as b:
        file = tmp_path / "net.yaml"
        file.write_text(
            f"engines: {request.param}\nnics:\n"
            f"  a: {{pid: {a.pid}, interface: eth0, addresses: [10.98.0.1/24], egress: {{rate: 1gbit}}}}\n"
            f"  b: {{pid: {b.pid}, interface: eth0, addresses: [10.98.0.2/24]}}\n"
        )
        vnic(environment, "up", "-d", str(file))
        a.run("ping", "-c", "1", "-W", "5", "10.98.0.2")
        try:
            yield environment, a, b
            status = json.loads(vnic(environment, "status", "--json"))
            assert status["conserved"]
        finally:
            vnic(environment, "down")


def start(environment, *words, text=True):  # noqa: F811
    command = [*VNIC, "capture", *words]
    process = subprocess.Popen(command, env=environment, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=text)
    return process


def capturing(environment, count=1):  # noqa: F811
    """Waits until the graph has `count` capture elements; returns their names."""
    while True:
        elements = json.loads(vnic(environment, "stats", "--json"))["engines"]
        found = [each["name"] for engine in elements for each in engine["elements"] if ".capture" in each["name"]]
        if len(found) == count:
            return found


def numbers(path):
    """The numbers of a capture's datagrams, in order."""
    reader = CaptureReader(str(path))
    found = [int.from_bytes(data[42:46], "big") for _, data, _, _ in reader if len(data) == 142]
    reader.close()
    return found


def test_a_nic_in_both_directions_and_an_element(network, tmp_path):
    environment, a, _ = network  # noqa: F811
    both, entering = tmp_path / "both.pcap", tmp_path / "entering.pcap"
    processes = [start(environment, "a", "-w", str(both), "--json"), start(environment, "b.ingress.rate", "-w", str(entering))]
    found = sorted(name.rstrip("12") for name in capturing(environment, 3))
    assert found == ["a.rx.capture", "a.tx.capture", "b.ingress.rate.capture"]
    a.python(SEND, "500")
    a.run("ping", "-c", "3", "-i", "0.2", "10.98.0.2")
    for process in processes:
        process.send_signal(signal.SIGINT)
    (out, _), (_, complaint) = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert complaint.endswith(" captured, 0 missed\n")
    report = json.loads(out)
    assert report["missed"] == 0 and report["captured"] == sum(1 for _ in CaptureReader(str(both)))
    assert numbers(both) == numbers(entering) == list(range(500))
    kinds = [
        data[34]
        for _, data, _, _ in CaptureReader(str(both))
        if data[12:14] == b"\x08\x00" and data[23] == 1 and len(data) == 98
    ]
    assert kinds == [8, 0] * 3  # echo requests sent, replies received
    capturing(environment, 0)


def test_a_pipe_into_tcpdump_ends_by_count(network):
    environment, a, _ = network  # noqa: F811
    process = start(environment, "a.egress.rate", "-c", "7", "-s", "60", text=False)
    capturing(environment)
    a.python(SEND, "50")
    out, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    read = subprocess.run(["tcpdump", "-nn", "-r", "-"], input=out, capture_output=True, timeout=120, check=True)
    assert len(read.stdout.splitlines()) == 7 and b"snapshot length 60" in read.stderr
    capturing(environment, 0)


@pytest.mark.parametrize("how", ["killed", "reader gone", "detached", "duration"])
def test_however_it_ends_the_network_goes_on(network, tmp_path, how):
    environment, a, _ = network  # noqa: F811
    more = ["-d", "0.5"] if how == "duration" else []
    process = start(environment, "b", "-w", "-", *more, text=False)
    if how != "duration":  # that one may have ended before
        capturing(environment, 2)
    a.python(SEND, "20")
    if how == "killed":
        process.kill()
    elif how == "reader gone":
        process.stdout.close()
        a.python(SEND, "2000")
        process.send_signal(signal.SIGINT)
    elif how == "detached":
        vnic(environment, "detach", "b")
    process.wait(30)
    process.stderr.close()
    if how != "reader gone":
        process.stdout.close()
    if how in ("detached", "duration"):
        assert process.returncode == 0
    capturing(environment, 0)
    if how != "detached":
        a.run("ping", "-c", "1", "-W", "5", "10.98.0.2")
    assert not [name for name in os.listdir(environment["VNIC_RUNTIME_DIR"]) if name.startswith("capture-")]


@pytest.mark.parametrize(("words", "status", "message"), [
    (["x", "-w", "f"], 2, "nic x: is not attached; attached: a, b"),
    (["switch", "-w", "f"], 2, "nic switch: is not attached; attached: a, b"),
    (["a.nothing", "-w", "f"], 2, "capture: there is no point a.nothing; a has a, a."),
    (["a", "-w", "no/where"], 1, "cannot write no/where: No such file or directory"),
    (["a", "-w", "/dev/full"], 1, "cannot write /dev/full: No space left on device"),
    (["a", "--json"], 2, "--json and -w - both write to stdout"),
])  # fmt: skip
def test_bad_use(network, tmp_path, words, status, message):
    environment, _, _ = network  # noqa: F811
    environment = {**environment, "PYTHONPATH": str(TREE)}
    (tmp_path / "f").write_text("of yesterday")
    done = subprocess.run([*VNIC, "capture", *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "f").read_text() == "of yesterday"
    assert done.returncode == status and message in done.stderr and done.stderr.count("\n") == 1
    assert not [name for name in os.listdir(environment["VNIC_RUNTIME_DIR"]) if name.startswith("capture-")]


PACED = """
import select, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    number = 0
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0.0003)[0]:
        s.sendto(number.to_bytes(4, "big") + bytes(96), ("10.98.0.2", 9))
        number += 1
    print(number, flush=True)
"""


def test_an_upgrade_goes_unnoticed_by_captures(network, tmp_path):
    """Two captures, one started after another had ended; neither has missing, duplicate or
    reordered packets."""
    environment, a, _ = network  # noqa: F811
    with start(environment, "b", "-w", os.devnull) as first:
        capturing(environment, 2)
        first.send_signal(signal.SIGINT)
        assert first.wait(30) == 0
        first.communicate()
    sent, came = tmp_path / "sent.pcap", tmp_path / "came.pcap"
    processes = [start(environment, "a.rx", "-w", str(sent), "--json"), start(environment, "b.tx", "-w", str(came), "--json")]
    assert sorted(capturing(environment, 2)) in (["a.rx.capture2", "b.tx.capture3"], ["a.rx.capture3", "b.tx.capture2"])
    command = a.command([sys.executable, "-c", PACED])
    sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert sender.stdout.readline() == "begun\n"
    for _ in range(3):
        vnic(environment, "upgrade")
    count = int(sender.communicate("\n", timeout=120)[0])
    capturing(environment, 2)
    for process in processes:
        process.send_signal(signal.SIGINT)
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert numbers(sent) == list(range(count))
    assert sorted(numbers(came)) == list(range(count))
    for path, report in zip((sent, came), reports, strict=True):
        assert report["missed"] == 0 and report["captured"] == sum(1 for _ in CaptureReader(str(path)))
    # A client that disconnects during an upgrade ends its capture, in either worker.
    gone = start(environment, "a", "-w", os.devnull)
    capturing(environment, 2)
    upgrade = subprocess.Popen([*VNIC, "upgrade"], env=environment, cwd=TREE, stdout=subprocess.DEVNULL)
    gone.kill()
    gone.communicate()
    assert upgrade.wait(60) == 0
    capturing(environment, 0)


def test_after_a_crash_captures_end(network):
    environment, _, _ = network  # noqa: F811
    process = start(environment, "a", "-w", os.devnull)
    capturing(environment, 2)
    kill_worker(environment)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 1 and complaint.startswith("vnic: error: ") and complaint.count("\n") == 1
    capturing(environment, 0)


@pytest.mark.skipif(not IS_ROOT, reason="is the plain user's run already")
@pytest.mark.timeout(960)
@pytest.mark.again
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_live_capture.py", timeout_s=920)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "1 skipped" in done.stdout

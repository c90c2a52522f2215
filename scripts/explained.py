"""Makes the pictures of docs/a-policy-explained.md: runs examples/shaping/explained.yaml for a
minute between two network namespaces, with calls, work and backups, and draws what happens. Needs
iperf3 and Graphviz.

    python scripts/explained.py [DIRECTORY]    instead of docs/pictures
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.containers import Container  # noqa: E402
from vnic.testing import VirtualNetwork  # noqa: E402

POLICY = ROOT / "examples" / "shaping" / "explained.yaml"
ADDRESSES = {"client": "10.0.0.1", "server": "10.0.0.2"}
CLASSES = [f"client.egress/{name}" for name in ("calls", "work", "backups")]
MINUTE_S = 60
GAP_MS, SIZE = 5, 200  # of the packets whose delays and losses are drawn
# (the begin in seconds, iperf3's options): calls with DSCP ef, work, backups with DSCP cs1
TRAFFIC = [
    (0, ["-u", "-b", "800k", "-l", "200", "-S", "0xb8"]),
    (0, ["-C", "cubic"]),
    (8, ["-C", "cubic", "-S", "0x20"]),
]


def vnic(environment: dict[str, str], *words: str) -> str:
    argv = [sys.executable, "-m", "vnic.cli.main", *words]
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def light(picture: Path) -> None:
    """Leaves the light colours only, those of the other pictures."""
    picture.write_text(re.sub("<style>.*</style>\n", "", picture.read_text()))


def run(pictures: Path) -> None:
    """Draws the network, and the minute by class and line."""
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.ExitStack() as stack,
    ):
        environment = {**os.environ, "VNIC_RUNTIME_DIR": directory, "PYTHONPATH": str(ROOT)}
        boxes = {name: stack.enter_context(Container()) for name in ADDRESSES}
        nics = {
            name: {"pid": box.pid, "interface": "eth0", "addresses": [f"{ADDRESSES[name]}/24"]}
            for name, box in boxes.items()
        }
        file = Path(directory) / "net.yaml"
        file.write_text(json.dumps({"nics": nics}))  # JSON is YAML
        vnic(environment, "up", "-d", str(file))
        stack.callback(vnic, environment, "down")
        programs: list[subprocess.Popen[str]] = []

        def end() -> None:
            for each in programs:
                each.kill()
                each.communicate()

        stack.callback(end)
        for port in range(5201, 5201 + len(TRAFFIC)):
            programs.append(boxes["server"].popen(["iperf3", "-s", "-p", str(port)]))
        time.sleep(1)
        vnic(environment, "shape", "apply", str(POLICY))
        begin = time.monotonic()
        for port, (wait_s, options) in enumerate(TRAFFIC, 5201):
            words = [
                "iperf3",
                "-c",
                ADDRESSES["server"],
                "-p",
                str(port),
                "-t",
                str(2 * MINUTE_S),
                *options,
            ]
            line = f"sleep {wait_s}; exec {' '.join(words)}"
            programs.append(boxes["client"].popen(["sh", "-c", line]))
        time.sleep(begin + MINUTE_S + 1 - time.monotonic())
        last = ["--last", f"{MINUTE_S}s"]
        vnic(
            environment,
            "shape",
            "plot",
            *CLASSES,
            *last,
            "-o",
            str(pictures / "explained-classes.svg"),
        )
        vnic(
            environment,
            "shape",
            "plot",
            "client -> any",
            *last,
            "-o",
            str(pictures / "explained-line.svg"),
        )
        vnic(environment, "graph", "-o", str(pictures / "explained-network.svg"))
        for name in ("classes", "line"):
            light(pictures / f"explained-{name}.svg")
        print(vnic(environment, "shape", "show", "--promises"))


def frame(source: bytes, target: bytes, number: int) -> bytes:
    return target + source + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(SIZE - 18)


def draw_packets(pictures: Path) -> None:
    """Draws the delays and losses of the uplink's packets, one after the other for a minute of
    virtual time."""
    import matplotlib
    import numpy as np

    matplotlib.use("svg")
    from matplotlib import pyplot

    with VirtualNetwork(str(POLICY.parent / "net.yaml")) as net:
        mac = {name: nic.mac.packed for name, nic in net.config.nics.items()}
        net.send("server", frame(mac["server"], mac["client"], 0))  # the switch learns its address
        net.run()
        net.shape(str(POLICY))
        begin_ns, count = net.now_ns, MINUTE_S * 1000 // GAP_MS
        packets = [frame(mac["client"], mac["server"], number) for number in range(count)]
        net.send("client", packets, gap=GAP_MS * 10**6)
        net.take("server")
        net.run()
        came = {
            int.from_bytes(each.data[14:18], "big"): each.time_ns - begin_ns
            for each in net.take("server")
        }
    lost = np.array(sorted(set(range(count)) - came.keys()))
    delays = np.array([at / 1e6 - number * GAP_MS for number, at in sorted(came.items())])

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vnic",
        "font.size": 9,
        "font.family": "sans-serif",
    }
    with pyplot.rc_context(settings):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
        left.hist(delays, bins=np.arange(0, 26.5, 0.5), density=True, color="#56a3d9")
        x = np.linspace(0, 26, 131)
        left.plot(x, np.exp(-(((x - 12) / 3) ** 2) / 2) / (3 * np.sqrt(2 * np.pi)), color="#d55e00")
        left.set(
            title="Delays on the uplink",
            xlabel="ms",
            ylabel="share of packets in each ms",
            xlim=(0, 26),
        )
        left.legend(["normal: 12 ms, jitter 3 ms", f"{len(delays)} packets"], frameon=False)
        seconds, within = np.divmod(lost * GAP_MS / 1000, 1)
        right.plot(within, seconds + 0.5, "s", color="#d55e00", markersize=2.2)
        right.set_title(f"The {len(lost)} packets of {count} that are lost")
        right.set(xlabel="part of the second", ylabel="second", xlim=(0, 1), ylim=(MINUTE_S, 0))
        for second, text in ((20, "the storm begins"), (35, "it ends within 10 s")):
            right.axhline(second, color="#5c6573", linewidth=0.8, linestyle=":")
            right.text(0.99, second - 0.6, text, ha="right", color="#5c6573", fontsize=8)
        figure.savefig(pictures / "explained-packets.svg", metadata={"Date": None})


def main() -> None:
    pictures = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs" / "pictures"
    pictures.mkdir(exist_ok=True)
    draw_packets(pictures)
    run(pictures)


if __name__ == "__main__":
    main()

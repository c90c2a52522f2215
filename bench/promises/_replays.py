"""Replays of a generated capture through a policy's line, for promises in virtual time."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vnic.config.load import parse_config
from vnic.replay.session import Replay

START_S = 10**9
HEAD = bytes.fromhex("02000000000202000000000188b5")  # to b, from a, an experimental EtherType
PCAP_NS = np.array([0xA1B23C4D, 4 << 16 | 2, 0, 0, 65535, 1], "<u4").tobytes()
FRAME_BYTES = 60


def record(frame_bytes: int) -> np.dtype[np.void]:
    """A packet in a classic capture with times in ns."""
    return np.dtype(
        [("s", "<u4"), ("ns", "<u4"), ("stored", "<u4"), ("length", "<u4"), ("head", f"V{len(HEAD)}"), ("number", ">u4"),
         ("rest", f"V{frame_bytes - len(HEAD) - 4}")]
    )  # fmt: skip


def numbered(
    line: str, packets: int, gap_ns: int, frame_bytes: int = FRAME_BYTES
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sends numbered packets through the line a -> any with these settings; returns the numbers and the delays, in ns, of those
    that come, in the order in which they come."""
    kind = record(frame_bytes)
    frames = np.zeros(packets, kind)
    at = np.arange(packets, dtype=np.int64) * gap_ns
    frames["s"], frames["ns"] = START_S + at // 10**9, at % 10**9
    frames["stored"] = frames["length"] = frame_bytes
    frames["head"], frames["number"] = np.void(HEAD), np.arange(packets)
    text = (
        "pool: {small: 262144}\nnics: {a: {mac: '02:00:00:00:00:01'}, b: {mac: '02:00:00:00:00:02'}}\n"
        f"shape: {{seed: 42, links: {{a -> any: {line}}}}}\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        given, taken = Path(directory, "in.pcap"), Path(directory, "out.pcap")
        given.write_bytes(PCAP_NS + frames.tobytes())
        with Replay(parse_config(text, contained=False), {"a": given}, taken) as session:
            session.run()
        found = np.frombuffer(taken.read_bytes()[len(PCAP_NS) :], kind)
    numbers = found["number"].astype(np.int64)
    times = (found["s"].astype(np.int64) - START_S) * 10**9 + found["ns"]
    return numbers, times - numbers * gap_ns

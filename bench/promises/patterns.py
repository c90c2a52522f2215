"""The same packets are lost, whatever carries them: with and without GSO, in batches of one and of 32, on 1 and 4 engines, in virtual
time, in a replay and live, and before and after an upgrade in the middle."""

import os
import struct
import tempfile
from functools import partial
from pathlib import Path

from bench.frames import checksum
from bench.promises import Absent, Outcome, Promise, Run
from shaping.policy.load import parse_policy, policy_data
from vnic.api.client import Client
from vnic.config.load import parse_config
from vnic.replay.session import Replay
from vnic.testing.choose import network
from vnic.testing.kit import AnyNetwork

SUBJECT = "One seed, one pattern of losses"
COUNT, MSS, SEGMENTS = 1320, 1460, 44
POLICY = "version: 1\nseed: 42\nlinks: {a -> b: {loss: {share: 5%, burst: 4}}}\n"
MACS = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01"


def _network(engines: int) -> str:
    ends = (("a", 1, engines - 1), ("b", 2, engines // 2))
    nics = "".join(f"  {name}: {{mac: '02:00:00:00:00:0{number}', engine: {engine}}}\n" for name, number, engine in ends)
    return f"engines: {engines}\nnics:\n{nics}"


def stream(segments: int) -> list[bytes]:
    """A TCP stream of COUNT segments, in frames of so many of them."""
    payload = b"".join(n.to_bytes(2, "big") * (MSS // 2) for n in range(COUNT))
    frames = []
    for first in range(0, COUNT, segments):
        data = payload[first * MSS : (first + segments) * MSS]
        tcp = struct.pack("!HHIIBBHHH", 4000, 4001, 1 + first * MSS, 1, 5 << 4, 0x10, 4096, 0, 0)
        addresses = b"\x0a\0\0\x01\x0a\0\0\x02"
        pseudo = addresses + struct.pack("!HH", 6, len(tcp) + len(data))
        tcp = tcp[:16] + checksum(pseudo + tcp + data).to_bytes(2, "big") + tcp[18:]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp) + len(data), first, 0x4000, 64, 6, 0) + addresses
        ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
        frames.append(MACS + b"\x08\0" + ip + tcp + data)
    return frames


def _capture(path: Path, frames: list[bytes]) -> Path:
    head = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 17, 1)
    path.write_bytes(head + b"".join(struct.pack("<IIII", 10**9, 0, len(each), len(each)) + each for each in frames))
    return path


def _sent(net: AnyNetwork, directory: Path, segments: int, *, gap: int = 0, upgrade: bool = False) -> list[int]:
    """Which packets are lost of a stream."""
    net.send("b", MACS[6:] + MACS[:6] + b"\x88\xb5" + bytes(50))  # the switch learns where b is
    net.run()
    net.take("a")
    net.shape(policy_data(parse_policy(POLICY)))
    frames = stream(segments)
    if gap:
        net.send("a", frames, gap=gap)
    else:
        half = len(frames) // 2 if upgrade else len(frames)
        for part in (frames[:half], frames[half:]):
            if part:
                net.send_capture("a", _capture(directory / "in.pcap", part))
                net.run()
            if part and upgrade and part is not frames[half:]:
                with Client(net.instance) as client:  # type: ignore[attr-defined]
                    client.call("Upgrade")
                upgrade = False
    net.run()
    return net.measured("a -> b").lost


def _reference(run: Run) -> list[int]:
    """Packet by packet, in virtual time, on one engine."""

    def measure() -> list[int]:
        with tempfile.TemporaryDirectory() as directory, network(_network(1)) as net:
            return _sent(net, Path(directory), 1, gap=1)

    return run.once("pattern", measure)


def _same(run: Run, lost: list[int]) -> Outcome:
    wanted = _reference(run)
    differ = len(set(wanted) ^ set(lost))
    figures = {"lost": len(lost), "differ": differ, "packets": COUNT}
    measured = f"{differ} packets differ, {len(lost)} of {COUNT} lost"
    return Outcome(f"the {len(wanted)} packets lost one by one", measured, "exact", differ == 0 and bool(wanted), figures)


def _virtual(segments: int, engines: int, run: Run) -> Outcome:
    with tempfile.TemporaryDirectory() as directory, network(_network(engines)) as net:
        return _same(run, _sent(net, Path(directory), segments))


def _replay(segments: int, engines: int, run: Run) -> Outcome:
    shape = POLICY.replace("version: 1\n", "shape:\n  ").replace("\nlinks", "\n  links")
    text = _network(engines) + shape
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "out.pcapng")
        config = parse_config(text, contained=False)
        given = _capture(Path(directory, "in.pcap"), stream(segments))
        with Replay(config, {"a": given}, out) as session:
            session.run()
        return _same(run, _missing(out))


def _missing(capture: Path) -> list[int]:
    """The segments that a capture of a part of the stream lacks, by their sequence numbers."""
    from dataplane.capture.reader import CaptureReader

    found: set[int] = set()
    reader = CaptureReader(capture)
    for _, data, _, _ in reader:
        first = (int.from_bytes(data[38:42], "big") - 1) // MSS
        found.update(range(first, first + (len(data) - 54) // MSS))
    reader.close()
    return sorted(set(range(COUNT)) - found)


def _live(segments: int, engines: int, upgrade: bool, run: Run) -> Outcome:
    if os.geteuid() != 0:
        raise Absent("needs root")
    with tempfile.TemporaryDirectory() as directory, network(_network(engines), live=True) as net:
        return _same(run, _sent(net, Path(directory), segments, upgrade=upgrade))


def _promises() -> list[Promise]:
    found = []
    for kind, measure in (("virtual time", _virtual), ("a replay", _replay)):
        for segments in (1, SEGMENTS):
            for engines in (1, 4):
                gso = "GSO frames of 64 KB" if segments > 1 else "segments, batches of 32"
                label = f"{kind}, {gso}, {engines} engine{'s' if engines > 1 else ''}"
                found.append(Promise(SUBJECT, label, partial(measure, segments, engines)))
    for segments, engines, upgrade in ((1, 1, False), (SEGMENTS, 4, False), (1, 1, True), (SEGMENTS, 4, True)):
        gso = "GSO frames of 64 KB" if segments > 1 else "segments"
        label = f"live, {gso}, {engines} engine{'s' if engines > 1 else ''}{', an upgrade in the middle' if upgrade else ''}"
        found.append(Promise(SUBJECT, label, partial(_live, segments, engines, upgrade), live=True))
    return found


PROMISES = _promises()

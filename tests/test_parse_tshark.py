"""The parser's 5-tuples compared with tshark's, for every packet of the corpus that tshark
considers well-formed."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess

import numpy as np
import pytest

from dataplane.capture.reader import CaptureReader
from dataplane.capture.writer import CaptureWriter
from dataplane.elements.counter import Discard
from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import CaptureError
from dataplane.graph.element import PyElement
from dataplane.graph.port import PortRx
from dataplane.packet.pool import PacketPool
from dataplane.ports.pcap_source import PcapSource
from tests.test_replay import CORPUS, needs_corpus

IPV4, IPV6, L4, TRUNCATED, MALFORMED = 0x02, 0x04, 0x08, 0x20, 0x40
FIELDS = ["frame.number", "frame.protocols", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "ip.proto", "tcp.srcport", "tcp.dstport",
          "udp.srcport", "udp.dstport", "ip.frag_offset", "eth.src"]  # fmt: skip
IP_AT_ONCE = re.compile(r"eth:ethertype(?::vlan:ethertype){0,2}:(ip|ipv6)(?::|$)")
TRANSPORT_AT_ONCE = re.compile(r"eth:ethertype(?::vlan:ethertype){0,2}:(?:ip|ipv6):(tcp|udp)(?::|$)")


class Collect(PyElement):
    """Stores the parser's results, in order."""

    def __init__(self, *, name: str | None = None) -> None:
        self.rows: list[tuple[int, str, str, int, int, int]] = []

    def process(self, batch) -> None:
        for i in range(len(batch)):
            flags = int(batch.flags[i])
            size = 4 if flags & IPV4 else 16
            source, destination = (
                str(ipaddress.ip_address(np.asarray(column[i][:size]).tobytes())) if flags & (IPV4 | IPV6) else ""
                for column in (batch.source_address, batch.destination_address)
            )
            ports = (int(batch.source_port[i]), int(batch.destination_port[i])) if flags & L4 else (0, 0)
            self.rows.append((flags, source, destination, int(batch.ip_protocol[i]), *ports))


def gather(path) -> list[str]:
    """Writes all packets of the corpus into one capture, so that tshark starts once; returns each
    packet's file."""
    names: list[str] = []
    writer = CaptureWriter(str(path), ["all"])
    for capture in CORPUS:
        try:
            reader = CaptureReader(str(capture))
            for _, data, original, _ in reader:
                # Runts (an Ethernet header and two tags are 22 bytes) and frames longer than any
                # buffer are tested elsewhere.
                if 22 <= len(data) <= 65535:
                    writer.write(0, len(names) * 1000, data, original=original)
                    names.append(capture.name)
            reader.close()
        except CaptureError:
            continue
    writer.close()
    return names


def parsed(path) -> list[tuple[int, str, str, int, int, int]]:
    """The parser's results, one row per packet."""
    reader = CaptureReader(str(path))
    engine = Engine("e", PacketPool(small=256, large=64), clock=Clock(virtual=True))
    collect = Collect()
    source = PortRx(PcapSource("in", reader))
    source >> Parse() >> collect >> Discard()
    engine.load([source])
    advance(engine, 2**62)
    rows = collect.rows
    assert engine.conservation()["conserved"]
    engine.close()
    reader.close()
    return rows


@needs_corpus
def test_five_tuples_agree_with_tshark(tmp_path):
    if shutil.which("tshark") is None:
        pytest.skip("missing tool: tshark")
    path = tmp_path / "all.pcapng"
    names = gather(path)
    mine = parsed(path)
    command = ["tshark", "-n", "-r", str(path), "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-T", "fields"]
    command += ["-E", "occurrence=f", *(part for field in FIELDS for part in ("-e", field))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == len(mine) == len(names) > 10_000, done.stderr
    compared = addresses = ports = 0
    for file, line, (flags, source, destination, protocol, *mine_ports) in zip(names, lines, mine, strict=True):
        theirs = dict(zip(FIELDS, line.split("\t"), strict=False))
        chain = theirs["frame.protocols"]
        kind = IP_AT_ONCE.match(chain)
        if "_ws." in line or kind is None:
            continue
        where = (file, theirs["frame.number"], chain)
        compared += 1
        version = kind[1]
        if not flags & (IPV4 | IPV6) or not theirs[f"{version}.src"]:
            # tshark does not dissect it further, and the parser marks it
            assert flags & (MALFORMED | TRUNCATED), where
            continue
        addresses += 1
        assert (source, destination) == (theirs[f"{version}.src"], theirs[f"{version}.dst"]), where
        if version == "ip":
            assert protocol == int(theirs["ip.proto"]), where
        transport = TRANSPORT_AT_ONCE.match(chain)
        if transport and flags & L4:
            ports += 1
            assert mine_ports == [int(theirs[f"{transport[1]}.{end}"]) for end in ("srcport", "dstport")], where
    assert compared > 8000 and addresses > 0.997 * compared and ports > 5000, (compared, addresses, ports)

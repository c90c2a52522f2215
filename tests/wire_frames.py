"""Frames for the tests of parsing and offloads, built byte by byte, and simple references for
them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from dataplane.ports.memory import Frame

CSUM, TSO4, TSO6, USO, ECN = 0x01, 0x02, 0x04, 0x08, 0x10
NEEDS_CSUM = 1
GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 1, 4, 5, 0x80
TCP, UDP = 6, 17
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80


def checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    data = data + b"\0" if len(data) % 2 else data
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


@dataclass
class Spec:
    """A TCP or UDP packet in parts, so that the reference can build the segments instead of editing
    bytes."""

    version: int = 4
    protocol: int = TCP
    payload: bytes = b""
    tags: list[tuple[int, int]] = field(default_factory=list)  # (ethertype, TCI)
    # IPv6: (protocol, its bytes from the third on)
    extensions: list[tuple[int, bytes]] = field(default_factory=list)
    ip_options: bytes = b""
    tcp_options: bytes = b""
    tos: int = 0
    ttl: int = 64
    identification: int = 0
    fragment: int = 0x4000
    sequence: int = 1
    flags: int = ACK
    source: bytes = bytes([10, 0, 0, 1])
    destination: bytes = bytes([10, 0, 0, 2])
    source_port: int = 1234
    destination_port: int = 80

    def __post_init__(self) -> None:
        if self.version == 6 and len(self.source) == 4:
            self.source = bytes.fromhex("fd00") + bytes(13) + self.source[3:]
            self.destination = bytes.fromhex("fd00") + bytes(13) + self.destination[3:]

    @property
    def l3_offset(self) -> int:
        return 14 + 4 * len(self.tags)

    @property
    def l4_offset(self) -> int:
        if self.version == 4:
            return self.l3_offset + 20 + len(self.ip_options)
        return self.l3_offset + 40 + sum(2 + len(data) for _, data in self.extensions)

    @property
    def l4_bytes(self) -> int:
        return 20 + len(self.tcp_options) if self.protocol == TCP else 8

    @property
    def payload_offset(self) -> int:
        return self.l4_offset + self.l4_bytes

    @property
    def checksum_at(self) -> int:
        return 16 if self.protocol == TCP else 6

    def pseudo(self) -> bytes:
        return self.source + self.destination + struct.pack("!II", self.protocol, self.l4_bytes + len(self.payload))

    def transport(self) -> bytes:
        """Header and payload with checksum field 0."""
        if self.protocol == TCP:
            header = (
                struct.pack(
                    "!HHIIBBHHH",
                    self.source_port,
                    self.destination_port,
                    self.sequence,
                    7,
                    (self.l4_bytes // 4) << 4,
                    self.flags,
                    4096,
                    0,
                    0,
                )
                + self.tcp_options
            )
        else:
            header = struct.pack("!HHHH", self.source_port, self.destination_port, 8 + len(self.payload), 0)
        return header + self.payload

    def link(self) -> bytes:
        types = [kind for kind, _ in self.tags] + [0x0800 if self.version == 4 else 0x86DD]
        out = bytes.fromhex("020000000002020000000001") + struct.pack("!H", types[0])
        for (_, tci), kind in zip(self.tags, types[1:], strict=True):
            out += struct.pack("!HH", tci, kind)
        return out

    def network(self, l4_bytes: int) -> bytes:
        if self.version == 4:
            words = 5 + len(self.ip_options) // 4
            head = struct.pack(
                "!BBHHHBB",
                0x40 | words,
                self.tos,
                4 * words + l4_bytes,
                self.identification & 0xFFFF,
                self.fragment,
                self.ttl,
                self.protocol,
            )
            tail = self.source + self.destination + self.ip_options
            return head + struct.pack("!H", checksum(head + b"\0\0" + tail)) + tail
        chain = b""
        kinds = [kind for kind, _ in self.extensions] + [self.protocol]
        for (_, data), following in zip(self.extensions, kinds[1:], strict=True):
            chain += bytes([following, (2 + len(data)) // 8 - 1]) + data
        return struct.pack("!IHBB", 6 << 28 | self.tos << 20, len(chain) + l4_bytes, kinds[0], self.ttl) + (
            self.source + self.destination + chain
        )

    def build(self, complete: bool = True) -> bytes:
        """The frame with a complete checksum, or with the pseudo-header's sum only (as with
        VNET_NEEDS_CSUM)."""
        body = bytearray(self.transport())
        value = checksum(self.pseudo() + bytes(body)) or 0xFFFF if complete else 0xFFFF ^ checksum(self.pseudo())
        body[self.checksum_at : self.checksum_at + 2] = value.to_bytes(2, "big")
        return self.link() + self.network(len(body)) + bytes(body)

    def frame(self, gso_size: int = 0, gso_type: int | None = None) -> Frame:
        """The frame as a guest sends it: checksum left to the NIC, GSO if gso_size is given, and a
        wrong header_length."""
        if gso_size and gso_type is None:
            gso_type = (GSO_TCPV4 if self.version == 4 else GSO_TCPV6) if self.protocol == TCP else GSO_UDP_L4
            gso_type |= GSO_ECN if self.protocol == TCP and self.flags & CWR else 0
        return Frame(
            self.build(complete=False),
            NEEDS_CSUM,
            gso_type or 0,
            9 if gso_size else 0,
            gso_size,
            self.l4_offset,
            self.checksum_at,
        )

    def segments(self, gso_size: int) -> list[Spec]:
        """The frames that the sender's stack would send without segmentation offload."""
        parts = [self.payload[i : i + gso_size] for i in range(0, len(self.payload), gso_size)]
        out = []
        for i, part in enumerate(parts):
            flags = self.flags
            flags &= ~(FIN | PSH) if i < len(parts) - 1 else 0xFF
            flags &= ~CWR if i else 0xFF
            out.append(
                Spec(
                    **{
                        **self.__dict__,
                        "payload": part,
                        "identification": self.identification + i,
                        "flags": flags,
                        "sequence": (self.sequence + i * gso_size) & 0xFFFFFFFF,
                    }
                )
            )
        return out


def big_specs() -> dict[str, Spec]:
    """Frames of every kind that is segmented."""
    data = bytes(range(256)) * 64
    hop = [(0, bytes([5, 2, 0, 0, 1, 0])), (60, bytes([1, 4, 0, 0, 0, 0]))]
    return {
        "tcp4": Spec(payload=data[:5001], flags=ACK | FIN | PSH | CWR, identification=0xFFFE, sequence=0xFFFFFF00),
        "tcp4 options": Spec(payload=data[:3000], ip_options=b"\x01" * 8, tcp_options=b"\x01" * 12, tos=0xB9),
        "tcp4 vlan": Spec(payload=data[:4000], tags=[(0x8100, 0x2005)]),
        "tcp4 qinq": Spec(payload=data[:4000], tags=[(0x88A8, 7), (0x8100, 9)]),
        "tcp6": Spec(version=6, payload=data[:5000], flags=ACK | PSH, tcp_options=b"\x01" * 40),
        "tcp6 extensions": Spec(version=6, payload=data[:5000], extensions=hop, tags=[(0x9100, 4094)]),
        "udp4": Spec(protocol=UDP, payload=data[:4099]),
        "udp6 vlan": Spec(version=6, protocol=UDP, payload=data[:4099], tags=[(0x8100, 1)]),
    }

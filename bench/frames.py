"""Frames for the element benchmarks, built by hand."""

import random
import struct

ETHERTYPE_IPV4 = 0x0800
TCP, UDP = 6, 17
PORT = 5001
IPV4_BYTES, TCP_BYTES, UDP_BYTES, ETHERNET_BYTES = 20, 20, 8, 14


def mac(number: int) -> bytes:
    """A locally administered address."""
    return b"\x02\x00" + number.to_bytes(4, "big")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(protocol: int, length: int, destination: int = 1, source: int = 5000, destination_port: int = PORT) -> bytes:
    """An IPv4 frame of `length` bytes (without FCS) from mac(source) to mac(destination)."""
    ip_length = length - ETHERNET_BYTES
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, ip_length, 1, 0x4000, 64, protocol, 0, b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02")
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    if protocol == UDP:
        l4 = struct.pack("!HHHH", 40000, destination_port, ip_length - IPV4_BYTES, 0)
    else:
        l4 = struct.pack("!HHIIBBHHH", 40000, destination_port, 1, 1, TCP_BYTES // 4 << 4, 0x10, 65535, 0, 0)
    head = mac(destination) + mac(source) + ETHERTYPE_IPV4.to_bytes(2, "big") + ip + l4
    return head + bytes(length - len(head))


SMALL = frame(UDP, 60)
FULL = frame(TCP, 1514)
SEGMENT = 1448
HEADERS = ETHERNET_BYTES + IPV4_BYTES + TCP_BYTES
LARGE = frame(TCP, HEADERS + 44 * SEGMENT)
# (gso_type TCPv4, header_length, gso_size, csum_start, csum_offset) as the kernel sets them for
# such a frame
LARGE_GSO = (1, HEADERS, SEGMENT, ETHERNET_BYTES + IPV4_BYTES, 16)


def many_destinations(count: int) -> list[bytes]:
    """Small frames to mac(1) ... mac(count), in a fixed random order; from mac(count + 1)."""
    numbers = list(range(1, count + 1))
    random.Random(1).shuffle(numbers)
    return [frame(UDP, 60, destination=number, source=count + 1) for number in numbers]

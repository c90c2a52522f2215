"""The frame that tells switches where a guest is: a request of RARP (RFC 903) by the guest's own
address, as QEMU's announce_self broadcasts for guests that do not announce themselves."""

from __future__ import annotations

import struct

from dataplane.errors import ConfigError

MAC_BYTES = 6
BROADCAST = b"\xff" * MAC_BYTES
ETHERTYPE_RARP = 0x8035
ETHERNET, IPV4, REQUEST_REVERSE = 1, 0x0800, 3  # RFC 826's spaces and lengths, RFC 903's opcode
LEAST_FRAME_BYTES = 60  # of Ethernet, without its checksum


def rarp_request(mac: bytes) -> bytes:
    """A RARP request of a station that asks for its own IPv4 address. Nothing has to answer it: the
    source address is what counts. Raises ConfigError if `mac` is no station's address."""
    if len(mac) != MAC_BYTES or mac[0] & 1 or not any(mac):
        raise ConfigError(f"{mac.hex(':')} is no MAC address of a station")
    unknown = bytes(4)
    frame = BROADCAST + mac + struct.pack(">H", ETHERTYPE_RARP)
    frame += struct.pack(">HHBBH", ETHERNET, IPV4, MAC_BYTES, len(unknown), REQUEST_REVERSE)
    return (frame + mac + unknown + mac + unknown).ljust(LEAST_FRAME_BYTES, b"\0")

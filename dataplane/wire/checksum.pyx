"""Python functions of the checksum, for tests and tools. The implementation is in checksum.pxd."""
import sys

from libc.stdint cimport uint8_t, uint32_t


def internet_checksum(const uint8_t[::1] data, uint32_t start=0):
    """The Internet checksum (RFC 1071) of data[start:] as a number in network byte order. Any
    length and start."""
    cdef uint32_t length = <uint32_t>data.shape[0]
    if start > length:
        raise ValueError(f"start={start} is behind the {length} bytes")
    cdef uint64_t running = 0
    if length > start:
        running = checksum_add(0, &data[start], length - start)
    return int.from_bytes(int(0xFFFF ^ checksum_fold(running)).to_bytes(2, sys.byteorder), "big")


def shift_length(int partial, uint32_t old_bytes, uint32_t new_bytes):
    """Adjusts a folded pseudo-header sum (in network byte order) to another transport length."""
    raw = int.from_bytes(partial.to_bytes(2, "big"), sys.byteorder)
    shifted = int(checksum_shift_length(raw, old_bytes, new_bytes))
    return int.from_bytes(shifted.to_bytes(2, sys.byteorder), "big")

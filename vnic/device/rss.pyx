"""Rss. The contract is in rss.pxd."""
import ipaddress

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from dataplane.packet cimport PACKET_FRAGMENT, PACKET_IPV4, PACKET_IPV6, PACKET_L4, Context, Packet

from dataplane.errors import ConfigError

# The key of the published verification vectors. Nothing here depends on its secrecy: which queue a flow is on tells a guest only about
# itself. Who wants the two directions of a flow on one queue sets a key that repeats two bytes.
DEFAULT_KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
DEFAULT_TABLE_SIZE = 128


cdef class Rss:
    """Which queue a packet belongs on.

    key: 40 bytes (52 are taken too: some drivers set as many); table: queue numbers, a power of two of them up to 512; queues: how many
    there are. set_key and set_table belong on the engine's thread. Raises ConfigError for other lengths and for queues there are not.
    """

    def __init__(self, key=None, table=None, *, uint32_t queues=1):
        if not 1 <= queues <= 64:
            raise ConfigError(f"RSS: {queues} queues; want 1 to 64")
        self.queues = queues
        self.set_key(DEFAULT_KEY if key is None else key)
        self.set_table([i % queues for i in range(DEFAULT_TABLE_SIZE)] if table is None else table)

    def set_key(self, key):
        """Takes another key."""
        cdef uint32_t position, value, bit, hash
        if len(key) not in (40, 52):
            raise ConfigError(f"RSS: a key of {len(key)} bytes; want 40 or 52")
        self._key = bytes(key)
        bits = int.from_bytes(self._key, "big")
        length = 8 * len(self._key)
        for position in range(INPUT_MAX):
            # Input bit n (from the left) adds the 32 bits of the key that begin at its bit n.
            windows = [bits >> (length - 32 - 8 * int(position) - n) & 0xFFFFFFFF for n in range(8)]
            for value in range(256):
                hash = 0
                for bit in range(8):
                    if value & (0x80 >> bit):
                        hash ^= <uint32_t>windows[bit]
                self.parts[position][value] = hash

    def set_table(self, table):
        """Takes another indirection table."""
        table = list(table)
        if not 1 <= len(table) <= TABLE_MAX or len(table) & (len(table) - 1):
            raise ConfigError(f"RSS: a table of {len(table)} entries; want a power of two up to {TABLE_MAX}")
        for entry in table:
            if not 0 <= entry < self.queues:
                raise ConfigError(f"RSS: the table names queue {entry}; there are {self.queues} (from 0)")
        for i, entry in enumerate(table):
            self.entries[i] = entry
        self.entry_mask = <uint32_t>len(table) - 1

    @property
    def key(self):
        """The key, bytes."""
        return self._key

    @property
    def table(self):
        """The indirection table, a list of queue numbers."""
        return [self.entries[i] for i in range(self.entry_mask + 1)]

    cdef uint32_t hash_bytes(self, const uint8_t *data, uint32_t count, uint32_t first, uint32_t hash) noexcept nogil:
        """Goes on hashing: `count` bytes that stand at place `first` of the input."""
        cdef uint32_t i
        for i in range(count):
            hash ^= self.parts[first + i][data[i]]
        return hash

    cdef uint32_t hash_packet(self, Context *ctx, uint32_t index) noexcept nogil:
        """Hash of a parsed packet, noted in its record: addresses and, for TCP, UDP and SCTP that is not in fragments, ports (all fragments
        of a datagram must go to one queue). 0 for what is not IP."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint32_t hash = 0, size
        cdef uint8_t ports[4]
        if p.flags & (PACKET_IPV4 | PACKET_IPV6):
            size = 4 if p.flags & PACKET_IPV4 else 16
            hash = self.hash_bytes(p.source_address, size, 0, 0)
            hash = self.hash_bytes(p.destination_address, size, size, hash)
            if p.flags & PACKET_L4 and not p.flags & PACKET_FRAGMENT:
                ports[0], ports[1] = p.source_port >> 8, p.source_port & 0xFF
                ports[2], ports[3] = p.destination_port >> 8, p.destination_port & 0xFF
                hash = self.hash_bytes(ports, 4, 2 * size, hash)
        p.hash = hash
        return hash

    cdef uint32_t queue_of(self, uint32_t hash) noexcept nogil:
        """The indirection table's entry for a hash."""
        return self.entries[hash & self.entry_mask]

    def hash_tuple(self, source, destination, source_port=None, destination_port=None):
        """Hash of addresses (text) and, if given, ports. For tests and tools."""
        cdef bytes data = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
        if source_port is not None and destination_port is not None:
            data += int(source_port).to_bytes(2, "big") + int(destination_port).to_bytes(2, "big")
        if len(data) > INPUT_MAX:
            raise ConfigError("RSS: source and destination are of one family")
        return self.hash_bytes(<const uint8_t *>data, <uint32_t>len(data), 0, 0)

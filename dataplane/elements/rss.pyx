"""Rss. The contract is in rss.pxd."""
import ipaddress

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from dataplane.packet.pool cimport (PACKET_FRAGMENT, PACKET_IPV4, PACKET_IPV6, PACKET_L4, Context,
                                    Packet, PacketPool)

from dataplane.errors import ConfigError

# The key of the published verification vectors, a common default of NICs. A fixed default makes
# runs reproducible. A sender that knows the key can aim flows at one queue of a NIC that it may
# send to anyway; where that matters, set another key. A key that repeats two bytes steers both
# directions of a flow to one queue.
DEFAULT_KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcb"
                            "ae7b30b477cb2da38030f20c6a42b73bbeac01fa")
DEFAULT_TABLE_SIZE = 128


@cython.final
cdef class Rss:
    """Selects a NIC's queue for a packet.

    key: 40 bytes (or 52, of which 40 are used); None: DEFAULT_KEY. table: the indirection table, a
    list of queue numbers whose length is a power of two up to 512; None: 128 entries, all queues in
    turn. queues: 1 to 64. Raises ConfigError for other values.

    The hash covers addresses and ports of TCP, UDP and SCTP over IPv4 and IPv6; of fragments and
    other IP packets only the addresses, so that all fragments of a packet go to one queue. Packets
    that are not IP or not parsed have the hash 0 and go to the table's first queue.

    While the engine runs, set_key and set_table must be called on its thread (`engine.call`).
    """

    def __init__(self, key=None, table=None, *, queues=1):
        if type(queues) is not int or not 1 <= queues <= 64:
            raise ConfigError(f"RSS: {queues!r} queues: expected 1 to 64")
        self.queues = queues
        self.set_key(DEFAULT_KEY if key is None else key)
        self.set_table([i % queues for i in range(DEFAULT_TABLE_SIZE)] if table is None else table)

    # -- the packet path ---------------------------------------------------------------------------

    cdef uint32_t hash_packet(self, Context *ctx, uint32_t index) noexcept nogil:
        """Computes the hash from Parse's results and stores it in Packet.hash."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint32_t address_bytes, hash
        cdef uint8_t ports[4]
        # Only Parse sets these flags: a packet that was not parsed has neither, and its stale
        # second cache line is not read.
        if p.flags & PACKET_IPV4:
            address_bytes = 4
        elif p.flags & PACKET_IPV6:
            address_bytes = 16
        else:
            p.hash = 0
            return 0
        hash = (self.hash_bytes(0, p.source_address, address_bytes)
                ^ self.hash_bytes(address_bytes, p.destination_address, address_bytes))
        # only the first fragment has ports, so fragments are hashed without them
        if p.flags & (PACKET_L4 | PACKET_FRAGMENT) == PACKET_L4:
            ports[0], ports[1] = <uint8_t>(p.source_port >> 8), <uint8_t>p.source_port
            ports[2], ports[3] = <uint8_t>(p.destination_port >> 8), <uint8_t>p.destination_port
            hash ^= self.hash_bytes(2 * address_bytes, ports, 4)
        p.hash = hash
        return hash

    cdef uint32_t hash_bytes(self, uint32_t position, const uint8_t *data,
                             uint32_t count) noexcept nogil:
        """The contribution of `count` input bytes, beginning at `position`, to the hash."""
        cdef uint32_t i, hash = 0
        for i in range(count):
            hash ^= self.contribution[position + i][data[i]]
        return hash

    # -- control -----------------------------------------------------------------------------------

    def set_key(self, key):
        """Replaces the key; the hashes of all flows change."""
        cdef const uint8_t[::1] octets
        cdef int position, bit, value
        cdef uint64_t window
        if isinstance(key, (bytes, bytearray, memoryview)):
            # before its length is taken: a memoryview counts items, which may be wider than a byte
            key = bytes(key)
        if not isinstance(key, bytes) or len(key) not in (RSS_KEY, RSS_KEY_LONG):
            size = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise ConfigError(f"RSS: a key of {size}: expected {RSS_KEY} or {RSS_KEY_LONG} bytes")
        octets = key
        for position in range(RSS_INPUT):
            # The 40 key bits that the 32-bit window covers while it shifts by this byte.
            window = 0
            for bit in range(5):
                window = window << 8 | octets[position + bit]
            self.contribution[position][0] = 0
            for value in range(1, 256):
                # The window at the lowest set bit, xor the word of the other bits, a smaller value
                # and so computed already. The window reaches bit 0 last.
                bit = 0
                while not (value >> bit) & 1:
                    bit += 1
                self.contribution[position][value] = (
                    self.contribution[position][value & (value - 1)]
                    ^ <uint32_t>(window >> (bit + 1)))
        self.key = key

    def set_table(self, table):
        """Replaces the indirection table; entry i is the queue for hashes whose low bits are i."""
        cdef uint32_t i, queue
        try:
            entries = list(table)
        except TypeError:
            raise ConfigError(f"RSS: an indirection table of {type(table).__name__}: expected a "
                              "list of queue numbers") from None
        if not 1 <= len(entries) <= RSS_TABLE_MAX or len(entries) & (len(entries) - 1):
            raise ConfigError(f"RSS: an indirection table of {len(entries)} entries: expected a "
                              f"power of two up to {RSS_TABLE_MAX}")
        for entry in entries:
            if type(entry) is not int or not 0 <= entry < self.queues:
                raise ConfigError(f"RSS: the indirection table names queue {entry!r}; there are "
                                  f"{self.queues} (0 to {self.queues - 1})")
        for i, queue in enumerate(entries):
            self.indirection[i] = <uint16_t>queue
        self.table_mask = <uint32_t>len(entries) - 1

    @property
    def table(self):
        """The indirection table, a list of queue numbers."""
        return [self.indirection[i] for i in range(self.table_mask + 1)]

    def hash_tuple(self, source, destination, source_port=None, destination_port=None):
        """The hash of a flow: addresses as text or ipaddress objects, both IPv4 or both IPv6; both
        ports or neither. Raises ConfigError for other values."""
        cdef bytes data
        try:
            ends = [ipaddress.ip_address(source), ipaddress.ip_address(destination)]
        except ValueError as error:
            raise ConfigError(f"RSS: {error}: expected two addresses of one family") from None
        ports = [port for port in (source_port, destination_port) if port is not None]
        for port in ports:
            if type(port) is not int or not 0 <= port <= 65535:
                raise ConfigError(f"RSS: port {port!r}: expected 0 to 65535")
        if ends[0].version != ends[1].version or len(ports) == 1:
            raise ConfigError(f"RSS: {source} to {destination}: expected two addresses of one "
                              "family, and two ports or none")
        data = (b"".join(end.packed for end in ends)
                + b"".join(port.to_bytes(2, "big") for port in ports))
        return self.hash_bytes(0, data, <uint32_t>len(data))

    def hash_parsed(self, PacketPool pool not None, uint32_t index):
        """The hash of a parsed packet of the pool; for the packet's owner (an element in Python, a
        tool)."""
        cdef Context ctx
        if index >= pool.small_count + pool.large_count:
            raise IndexError(f"packet {index}: the pool has {pool.small_count + pool.large_count}")
        memset(&ctx, 0, sizeof(ctx))
        pool.attach(&ctx)
        return self.hash_packet(&ctx, index)

    def queue(self, uint32_t hash):
        """The queue for a hash."""
        return self.queue_of(hash)

"""DgramPort: frames over a datagram socket, one in each datagram: QEMU's `-netdev dgram`
(net/dgram.c of QEMU)."""
from libc.stdint cimport uint8_t, uint32_t
from dataplane.graph.port cimport Port
from dataplane.packet.pool cimport Batch, Context
from dataplane.ports.socket_calls cimport iovec, mmsghdr

cdef enum:
    MESSAGES = 32            # datagrams per system call
    PATH_BYTES = 128         # of a socket's address: sockaddr_un has 110, sockaddr_in6 28

cdef class DgramPort(Port):
    cdef int _fd
    cdef mmsghdr *_messages
    cdef iovec *_vectors                 # two for each message
    cdef uint8_t *_sink                  # LARGE_FRAME bytes for each: what a small buffer lacks
    cdef uint32_t *_staged
    cdef uint8_t[128] _peer
    cdef uint32_t _peer_bytes
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef void deliver(self, Context *ctx, Batch *batch, uint32_t number,
                      uint32_t index) noexcept nogil
    cdef void send(self, Context *ctx, uint32_t count) noexcept nogil

"""Software offloads. The contract is in offload.pxd.

A segment's checksum field gets the sender's pseudo-header sum, adjusted to the segment's length,
which is also correct with an IPv6 routing header. Segments always have a partial checksum
(VNET_NEEDS_CSUM); complete_checksum completes it where the port lacks the offload.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from dataplane.packet.pool cimport (BATCH_MAX, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4,
                                    HEADROOM, LARGE_FRAME, NO_PACKET, PACKET_FRAGMENT, PACKET_IPV4,
                                    PACKET_L4, PACKET_PARSED, VNET_NEEDS_CSUM, Batch, Context,
                                    Packet, PacketPool, batch_add, packet_alloc, packet_data,
                                    packet_free, packet_return_cache)
from dataplane.wire.checksum cimport (checksum_add, checksum_fold, checksum_pseudo,
                                      checksum_shift_length)
from dataplane.wire.headers cimport (GSO_TCP_SIZE_MIN, IPV6_BYTES, PARSE_OK, PROTOCOL_TCP,
                                     TCP_CHECKSUM_AT, TCP_CWR, TCP_FIN, TCP_PSH, check_offloads,
                                     is_above_link, load_be16, load_be32, parse_packet, store_be16,
                                     store_be32)


cdef inline uint32_t offloads_needed(const Packet *p) noexcept nogil:
    """The offloads that a port needs to take this GSO frame unsegmented (virtio 1.2, 5.1.3.1:
    segmentation includes the checksum)."""
    cdef uint8_t kind = p.gso_type & <uint8_t>~GSO_ECN
    cdef uint32_t needed = OFFLOAD_CSUM
    if p.gso_type & GSO_ECN:
        needed |= OFFLOAD_ECN
    if kind == GSO_TCPV4:
        return needed | OFFLOAD_TSO4
    if kind == GSO_TCPV6:
        return needed | OFFLOAD_TSO6
    if kind == GSO_UDP_L4:
        return needed | OFFLOAD_USO
    return <uint32_t>-1                          # unknown type: no port takes it


cdef bint can_segment(const Packet *p) noexcept nogil:
    """Checks what Parse has checked and segment() relies on: another element may have changed the
    packet since."""
    return (p.flags & PACKET_PARSED and p.flags & PACKET_L4 and p.vnet_flags & VNET_NEEDS_CSUM
            and offloads_needed(
                p) != <uint32_t>-1 and p.gso_size > 0 and p.csum_start == p.l4_offset
            and p.l3_offset < p.l4_offset
            and <uint32_t>p.csum_start + p.csum_offset + 2 <= p.header_length
            and p.header_length < p.length)


cdef void complete_offloads(Context *ctx, const Batch *batch, Cursor *cursor, Batch *ready,
                            uint32_t offloads,
                            uint64_t *generated, uint64_t *lost) noexcept nogil:
    cdef uint32_t index
    cdef Packet *p
    while cursor.packet < batch.count and ready.count < BATCH_MAX:
        index = batch.index[cursor.packet]
        p = &ctx.packets[index]
        if p.gso_type == GSO_NONE and (not p.vnet_flags & VNET_NEEDS_CSUM
                                       or offloads & OFFLOAD_CSUM):
            batch_add(ready, index)              # the most frequent case
        elif p.gso_type != GSO_NONE and not offloads_needed(p) & ~offloads:
            batch_add(ready, index)              # the port segments it
        elif not complete_packet(ctx, index, cursor, ready, offloads, generated, lost):
            return                               # `ready` is full before the frame is finished
        cursor.packet += 1
        cursor.payload = 0


cdef bint complete_packet(Context *ctx, uint32_t index, Cursor *cursor, Batch *ready,
                          uint32_t offloads, uint64_t *generated,
                          uint64_t *lost) noexcept nogil:
    """Performs one packet's offloads in software; False if `ready` became full before the frame was
    finished."""
    cdef Packet *p = &ctx.packets[index]
    cdef uint32_t first = ready.count, before = cursor.payload, missing, i
    cdef bint sound = True
    cdef int reason
    # in a graph without Parse; parsing may reveal that the frame is a single segment
    if not p.flags & PACKET_PARSED:
        reason = parse_packet(packet_data(ctx, index), p)
        sound = (check_offloads(p) if is_above_link(reason) else reason) == PARSE_OK
    if sound and p.gso_type == GSO_NONE:
        if (not p.vnet_flags & VNET_NEEDS_CSUM or offloads & OFFLOAD_CSUM
                or complete_checksum(ctx, index)):
            batch_add(ready, index)
            return True
        sound = False
    if not sound or not can_segment(p):
        packet_free(ctx, index)
        lost[0] += 1
        return True
    missing = segment(ctx, index, 1, &cursor.payload, ready)
    lost[0] += missing
    generated[0] += ready.count - first + missing
    if before == 0:
        generated[0] -= 1                        # one segment replaces the frame
    if not offloads & OFFLOAD_CSUM:
        for i in range(first, ready.count):      # here, while the segments are in the L1 cache
            complete_checksum(ctx, ready.index[i])
    if cursor.payload < p.length - p.header_length:
        return False
    packet_free(ctx, index)
    return True


cdef bint complete_checksum(Context *ctx, uint32_t index) noexcept nogil:
    cdef Packet *p = &ctx.packets[index]
    cdef uint8_t *data = packet_data(ctx, index)
    cdef uint16_t check
    # checked again: a graph may lack Parse, or an element may have shortened the frame
    if <uint32_t>p.csum_start + p.csum_offset + 2 > p.length:
        return False
    check = <uint16_t>~checksum_fold(checksum_add(0, data + p.csum_start, p.length - p.csum_start))
    if check == 0:
        # the same ones' complement number; in UDP, 0 would mean "no checksum" (RFC 768)
        check = 0xFFFF
    memcpy(data + p.csum_start + p.csum_offset, &check, 2)
    p.vnet_flags &= <uint8_t>~VNET_NEEDS_CSUM
    p.csum_start = p.csum_offset = 0
    return True


cdef uint32_t segment(Context *ctx, uint32_t index, uint32_t segments_each, uint32_t *done,
                      Batch *out,
                      uint32_t most=BATCH_MAX) noexcept nogil:
    cdef Packet *p = &ctx.packets[index]
    cdef uint32_t payload, chunk, bytes_each, copy, missing = 0
    cdef const uint8_t *data = packet_data(ctx, index)
    cdef uint8_t *cut
    if not can_segment(p):
        done[0] = p.length                       # ends the caller's loop
        return 1
    payload = p.length - p.header_length
    # bounded by the payload, since the product of two untrusted numbers may exceed 32 bits
    bytes_each = <uint32_t>min(<uint64_t>max(segments_each, 1) * p.gso_size, payload)
    while done[0] < payload and out.count < most:
        chunk = min(bytes_each, payload - done[0])
        copy = packet_alloc(ctx, p.header_length + chunk)
        if copy == NO_PACKET:
            missing += 1
        else:
            cut = packet_data(ctx, copy)
            memcpy(cut, data, p.header_length)
            memcpy(cut + p.header_length, data + p.header_length + done[0], chunk)
            finish_segment(p, &ctx.packets[copy], cut, done[0], chunk)
            batch_add(out, copy)
        done[0] += chunk
    return missing


cdef void finish_segment(const Packet *whole, Packet *p, uint8_t *data, uint32_t done,
                         uint32_t chunk) noexcept nogil:
    """Writes the record and headers of the segment with bytes `done` to `done + chunk` of the
    payload of frame `whole`."""
    cdef uint32_t length = whole.header_length + chunk
    cdef bint first = done == 0, last = done + chunk == whole.length - whole.header_length
    cdef uint8_t *l3 = data + whole.l3_offset
    cdef uint8_t *l4 = data + whole.l4_offset
    cdef uint16_t partial, check
    p[0] = whole[0]  # inherits time, port, queue, mark, hash and Parse's results
    p.offset = HEADROOM
    p.next = NO_PACKET
    p.length = length
    if chunk <= whole.gso_size:
        p.gso_type = GSO_NONE
        p.header_length = p.gso_size = 0
    if whole.flags & PACKET_IPV4:
        # 0 if the length exceeds the field (still a GSO frame), as in Linux' BIG TCP
        store_be16(l3 + 2, (<uint16_t>(length - whole.l3_offset)
                            if length - whole.l3_offset <= 0xFFFF else 0))
        store_be16(l3 + 4, <uint16_t>(load_be16(l3 + 4) + done // whole.gso_size))
        memset(l3 + 10, 0, 2)
        check = <uint16_t>~checksum_fold(checksum_add(0, l3, (l3[0] & 0x0F) * 4))
        memcpy(l3 + 10, &check, 2)
    else:
        length -= whole.l3_offset + IPV6_BYTES
        store_be16(l3 + 4, <uint16_t>length if length <= 0xFFFF else 0)
        length = whole.header_length + chunk
    if whole.gso_type == GSO_UDP_L4:
        store_be16(l4 + 4, <uint16_t>(length - whole.l4_offset))
    else:
        store_be32(l4 + 4, load_be32(l4 + 4) + done)
        if not last:                             # FIN and PSH belong to the last segment
            l4[13] &= <uint8_t>~(TCP_FIN | TCP_PSH)
        if not first:                            # CWR is sent once (RFC 3168, 6.1.2)
            l4[13] &= <uint8_t>~TCP_CWR
            p.gso_type &= <uint8_t>~GSO_ECN
    memcpy(&partial, data + whole.csum_start + whole.csum_offset, 2)
    partial = checksum_shift_length(partial, whole.length - whole.l4_offset,
                                    length - whole.l4_offset)
    memcpy(data + whole.csum_start + whole.csum_offset, &partial, 2)


cdef bint restore_gso(uint8_t *data, Packet *p, uint32_t mtu) noexcept nogil:
    cdef uint32_t headers
    cdef uint16_t partial
    if mtu == 0 or p.length <= mtu + LINK_HEADERS or parse_packet(data, p) != PARSE_OK:
        return False
    headers = <uint32_t>p.payload_offset - p.l3_offset
    if (p.ip_protocol != PROTOCOL_TCP or not p.flags & PACKET_L4 or p.flags & PACKET_FRAGMENT
            or mtu < headers + GSO_TCP_SIZE_MIN):
        return False
    p.gso_type = GSO_TCPV4 if p.flags & PACKET_IPV4 else GSO_TCPV6
    if data[p.l4_offset + 13] & TCP_CWR:
        p.gso_type |= GSO_ECN
    p.gso_size = <uint16_t>(mtu - headers)
    p.vnet_flags = VNET_NEEDS_CSUM
    p.csum_start, p.csum_offset = p.l4_offset, TCP_CHECKSUM_AT
    if parse_packet(data, p) != PARSE_OK or p.gso_type == GSO_NONE:
        p.vnet_flags = p.gso_type = 0
        p.gso_size = p.header_length = p.csum_start = p.csum_offset = 0
        return False
    # Segmentation needs the pseudo-header's sum in the field. Captures of Linux have it there,
    # others may not.
    partial = checksum_fold(checksum_pseudo(p, p.length - p.l4_offset))
    memcpy(data + p.l4_offset + TCP_CHECKSUM_AT, &partial, 2)
    return True


def split_frame(const uint8_t[::1] frame, int gso_type, int gso_size, int csum_start,
                int csum_offset, uint32_t segments_each=1,
                uint32_t buffers=9000):
    """Cuts one GSO frame with `segment`; for tests and tools.

    Returns a list of (data, vnet_flags, gso_type, header_length, gso_size, csum_start,
    csum_offset), and the number of segments lost because the pool of `buffers` packets was
    exhausted. Raises ValueError for a frame that Parse would drop.
    """
    cdef PacketPool pool = PacketPool(small=buffers, large=buffers)
    cdef Context ctx
    cdef Batch out
    cdef Packet *s
    cdef uint32_t done = 0, lost = 0, i
    memset(&ctx, 0, sizeof(ctx))
    pool.attach(&ctx)
    cdef uint32_t index = packet_alloc(&ctx, <uint32_t>frame.shape[0])
    if index == NO_PACKET or frame.shape[0] == 0:
        raise ValueError(f"a frame of {frame.shape[0]} bytes")
    cdef Packet *p = &ctx.packets[index]
    memcpy(packet_data(&ctx, index), &frame[0], p.length)
    p.vnet_flags, p.gso_type, p.gso_size = VNET_NEEDS_CSUM, gso_type, gso_size
    p.csum_start, p.csum_offset = csum_start, csum_offset
    if parse_packet(packet_data(&ctx, index), p) != PARSE_OK or p.gso_type == GSO_NONE:
        raise ValueError("no sound GSO frame")
    result = []
    while done < p.length - p.header_length:
        out.count = 0
        lost += segment(&ctx, index, segments_each, &done, &out)
        for i in range(out.count):
            s = &ctx.packets[out.index[i]]
            result.append((packet_data(&ctx, out.index[i])[:s.length], s.vnet_flags, s.gso_type,
                           s.header_length, s.gso_size,
                           s.csum_start, s.csum_offset))
    packet_return_cache(&ctx)
    return result, lost


def captured_frame(const uint8_t[::1] frame, uint32_t mtu):
    """A captured frame after `restore_gso`: (data, vnet_flags, gso_type, header_length, gso_size,
    csum_start, csum_offset). A frame that exceeds the buffers is returned unchanged."""
    cdef Packet p
    cdef bytearray data = bytearray(frame)
    if len(data) > LARGE_FRAME:
        return bytes(data), 0, 0, 0, 0, 0, 0
    memset(&p, 0, sizeof(p))
    p.length = <uint32_t>len(data)
    restore_gso(<uint8_t *><char *>data, &p, mtu)
    return (bytes(data), p.vnet_flags, p.gso_type, p.header_length, p.gso_size, p.csum_start,
            p.csum_offset)

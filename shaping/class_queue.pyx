"""ClassQueue. The contract is in class_queue.pxd."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from dataplane.graph.element cimport Element
from dataplane.graph.offload cimport can_segment, segment
from dataplane.packet.pool cimport (GSO_NONE, NO_PACKET, Batch, Packet, packet_data, packet_free)
from dataplane.wire.tos cimport ECN_CE, is_ecn_capable, set_tos
from shaping.class_heap cimport heap_add, heap_change, heap_remove
from shaping.cobalt cimport (COBALT_BLUE, cobalt_emptied, cobalt_overflowed, cobalt_verdict,
                             cobalt_wake)
from shaping.codel cimport CODEL_DROP, CODEL_KEEP, CODEL_MARK, codel_empty, codel_verdict
from shaping.flow_hash cimport flow_hash, host_hash
from shaping.flow_turns cimport (LIST_NONE, Flow, FlowAqm, FlowTurns, turns_begin, turns_charge,
                                 turns_next, turns_restore, turns_set_host)
from shaping.framing cimport Load, framed_bytes, packet_load
from shaping.ways cimport WAY_KEPT, WAY_USED, ways_claim

cdef enum:
    FULL_FRAME = 1514            # a queue of at most one such packet is no standing one


# -- flows -----------------------------------------------------------------------------------------


cdef inline uint32_t flow_of(ClassQueue *queue, Outlet *outlet, const Packet *p) noexcept nogil:
    """The number of the packet's flow."""
    cdef uint64_t hash = flow_hash(p, &outlet.keys)
    cdef uint32_t number, was
    if queue.turns.ways.words == NULL:
        return <uint32_t>hash & (queue.setting.flow_count - 1)
    number = ways_claim(&queue.turns.ways, hash, &was)
    if was < WAY_USED:
        admit(&queue.turns, outlet, p, number, was == WAY_KEPT)
    return number


cdef void admit(FlowTurns *turns, Outlet *outlet, const Packet *p, uint32_t number,
                bint kept) noexcept nogil:
    """A flow begins. kept: with the AQM's state that it had."""
    cdef uint32_t side
    if not kept:
        memset(&turns.flows[number].aqm, 0, sizeof(FlowAqm))
    for side in range(turns.sides):
        turns_set_host(turns, number, side, host_hash(p, turns.first_side + side, &outlet.keys))


cdef inline void rank(ClassQueue *queue, Flow *flow) noexcept nogil:
    """Moves a flow whose bytes have changed in the heap of the longest ones."""
    if flow.bytes == 0:
        heap_remove(&queue.longest, &flow.place)
    elif flow.place == 0:
        heap_add(&queue.longest, <uint32_t>(flow - queue.turns.flows), &flow.place,
                 <uint64_t>0 - flow.bytes)
    else:
        heap_change(&queue.longest, &flow.place, <uint64_t>0 - flow.bytes)


cdef inline void account(ClassQueue *queue, Flow *flow, Outlet *outlet, Load load,
                         int sign) noexcept nogil:
    """Bytes and segments that begin or cease to wait."""
    cdef int64_t size = sign * <int64_t>load.bytes
    flow.bytes += size
    queue.bytes += size
    outlet.bytes += size
    queue.segments += sign * <int64_t>load.segments
    if queue.longest.count:
        rank(queue, flow)


cdef inline void count_packet(ClassQueue *queue, Flow *flow, Outlet *outlet, uint32_t index,
                              int sign) noexcept nogil:
    outlet.counters.held += sign
    flow.packets += sign
    queue.packets += sign
    if index < outlet.ctx.small_count:
        outlet.small += sign
    else:
        outlet.large += sign


cdef void append(ClassQueue *queue, Flow *flow, Outlet *outlet, uint32_t index,
                 Load load) noexcept nogil:
    cdef Packet *p = &outlet.ctx.packets[index]
    if flow.packets == 0:
        flow.head = index
        if queue.setting.aqm == AQM_COBALT:
            cobalt_wake(&flow.aqm.cobalt, &queue.setting.codel, outlet.ctx.now_ns)
        else:
            codel_empty(&flow.aqm.codel)     # the line found it empty since
    else:
        outlet.ctx.packets[flow.tail].next = index
    flow.tail = index
    p.next = NO_PACKET
    count_packet(queue, flow, outlet, index, 1)
    account(queue, flow, outlet, load, 1)


cdef void unlink(ClassQueue *queue, Flow *flow, Outlet *outlet) noexcept nogil:
    """Removes the head; its bytes are counted by the caller."""
    cdef uint32_t index = flow.head
    flow.head = outlet.ctx.packets[index].next
    outlet.ctx.packets[index].next = NO_PACKET
    flow.done = 0
    count_packet(queue, flow, outlet, index, -1)


cdef Load part_load(const Outlet *outlet, const Packet *p, uint32_t bytes) noexcept nogil:
    """The load of `bytes` of a GSO frame's payload, from a segment's start on."""
    cdef Load load
    cdef uint32_t others = (bytes - 1) // p.gso_size
    load.segments = others + 1
    load.bytes = <uint32_t>(
        others * framed_bytes(&outlet.framing, <uint32_t>p.header_length + p.gso_size)
        + framed_bytes(&outlet.framing, p.header_length + bytes - others * p.gso_size))
    return load


cdef inline Load head_load(const Flow *flow, const Outlet *outlet) noexcept nogil:
    """Of the head of a flow that is not empty, or what is left of it."""
    cdef const Packet *p = &outlet.ctx.packets[flow.head]
    if flow.done:
        return part_load(outlet, p, p.length - p.header_length - flow.done)
    return packet_load(&outlet.framing, p)


cdef void drop_head(ClassQueue *queue, Flow *flow, Outlet *outlet, uint32_t reason) noexcept nogil:
    cdef uint32_t index = flow.head
    account(queue, flow, outlet, head_load(flow, outlet), -1)
    unlink(queue, flow, outlet)
    (<Element>outlet.element).drop(outlet.ctx, index, reason)


# -- arrival ---------------------------------------------------------------------------------------


cdef void queue_add(ClassQueue *queue, Outlet *outlet, uint32_t index) noexcept nogil:
    cdef Packet *p = &outlet.ctx.packets[index]
    cdef Load load = packet_load(&outlet.framing, p)
    p.release_ns = outlet.ctx.now_ns         # time of arrival while it waits
    if queue.setting.fair:
        add_to_flow(queue, outlet, index, load)
        while queue.packets > 1 and is_over(queue, 0, 0):
            queue_relieve(queue, outlet, QUEUE_FULL)
    elif is_over(queue, load.bytes, load.segments):
        add_part(queue, outlet, index, load)
    else:
        append(queue, queue.turns.flows, outlet, index, load)


cdef inline bint is_over(const ClassQueue *queue, uint32_t bytes, uint32_t segments) noexcept nogil:
    """Whether the queue exceeds its bounds with so much more in it."""
    return (queue.bytes + bytes > queue.setting.limit_bytes
            or queue.segments + segments > queue.setting.limit_segments)


cdef void add_to_flow(ClassQueue *queue, Outlet *outlet, uint32_t index, Load load) noexcept nogil:
    """Appends a packet to its flow, of a queue of several."""
    cdef uint32_t number = flow_of(queue, outlet, &outlet.ctx.packets[index])
    cdef Flow *flow = &queue.turns.flows[number]
    append(queue, flow, outlet, index, load)
    if flow.list == LIST_NONE:
        turns_begin(&queue.turns, number, queue.setting.quantum)


cdef void add_part(ClassQueue *queue, Outlet *outlet, uint32_t index, Load load) noexcept nogil:
    """A packet that does not fit a single flow: its first segments that fit are queued, as if it
    had been segmented before. An empty queue takes at least one packet."""
    cdef Packet *p = &outlet.ctx.packets[index]
    cdef uint64_t count = 0, each
    cdef uint32_t done = 0, lost
    cdef Batch part
    if is_cuttable(p):
        each = framed_bytes(&outlet.framing, <uint32_t>p.header_length + p.gso_size)
        if queue.setting.limit_bytes > queue.bytes and (queue.setting.limit_segments
                                                        > queue.segments):
            count = min((queue.setting.limit_bytes - queue.bytes) // each,
                        queue.setting.limit_segments - queue.segments)
        if count == 0 and queue.packets == 0:
            count = 1
    elif queue.packets == 0:
        append(queue, queue.turns.flows, outlet, index, load)
        return
    if count and count * p.gso_size < p.length - p.header_length:
        part.count = 0
        lost = segment(outlet.ctx, index, <uint32_t>count, &done, &part, 1)
        outlet.counters.generated += part.count + lost
        outlet.counters.drops[NO_BUFFER] += lost
        if part.count:
            append(queue, queue.turns.flows, outlet, part.index[0],
                   packet_load(&outlet.framing, &outlet.ctx.packets[part.index[0]]))
    queue.counts.full += 1
    (<Element>outlet.element).drop(outlet.ctx, index, QUEUE_FULL)


cdef void queue_relieve(ClassQueue *queue, Outlet *outlet, uint32_t reason) noexcept nogil:
    cdef Flow *flow = longest_flow(queue)
    cdef uint64_t left = flow.bytes // 2
    cdef uint32_t dropped = 0, most = DROP_BATCH
    if queue.setting.aqm == AQM_COBALT and reason == QUEUE_FULL:
        most = 1
    while dropped < most and flow.packets and (dropped == 0 or flow.bytes > left):
        drop_head(queue, flow, outlet, reason)
        dropped += 1
    if queue.setting.aqm == AQM_COBALT:
        cobalt_overflowed(&flow.aqm.cobalt, &queue.setting.codel, outlet.ctx.now_ns)
    else:
        flow.aqm.codel.count += dropped      # RFC 8290, 4.1: it is not controlled well enough
    if reason == QUEUE_FULL:
        queue.counts.full += dropped
    else:
        queue.counts.memory += dropped


cdef Flow *longest_flow(ClassQueue *queue) noexcept nogil:
    """The flow of which the most bytes wait. A queue that was full keeps its flows in order until
    it is empty: a search among all flows at each overflow would be as dear as there are many."""
    cdef uint32_t number
    if not queue.setting.fair:
        return queue.turns.flows
    if queue.longest.count == 0:
        for number in range(queue.setting.flow_count):
            if queue.turns.flows[number].packets:
                rank(queue, &queue.turns.flows[number])
    return &queue.turns.flows[queue.longest.entries[0].which]


# -- departure -------------------------------------------------------------------------------------


cdef uint32_t queue_take(ClassQueue *queue, Outlet *outlet, uint32_t quantum_bytes,
                         Load *load) noexcept nogil:
    cdef Flow *flow = queue.turns.flows
    cdef uint32_t index
    cdef uint64_t waited_ns
    while queue.packets:
        if queue.setting.fair:
            flow = &queue.turns.flows[turns_next(&queue.turns, queue.setting.quantum)]
        index = flow_take(queue, flow, outlet, quantum_bytes, load)
        if flow.packets == 0 and queue.setting.aqm == AQM_COBALT:
            cobalt_emptied(&flow.aqm.cobalt, &queue.setting.codel, outlet.ctx.now_ns)
        if index == NO_PACKET:
            continue
        if queue.setting.fair:
            turns_charge(&queue.turns, flow, load.bytes)
        waited_ns = outlet.ctx.now_ns - outlet.ctx.packets[index].release_ns
        queue.counts.sent_packets += 1
        queue.counts.sent_bytes += load.bytes
        queue.counts.sojourn_ns += waited_ns
        queue.counts.sojourn_max_ns = max(queue.counts.sojourn_max_ns, waited_ns)
        return index
    return NO_PACKET


cdef uint32_t flow_take(ClassQueue *queue, Flow *flow, Outlet *outlet, uint32_t quantum_bytes,
                        Load *load) noexcept nogil:
    """The next packet of a flow that its AQM does not drop; NO_PACKET: there is none, or no buffer
    for it."""
    cdef uint32_t index, most
    cdef int verdict
    while flow.packets:
        load[0] = head_load(flow, outlet)
        verdict = verdict_of(queue, flow, outlet, load)
        # verdicts are for single segments
        most = quantum_bytes if verdict == CODEL_KEEP and not is_flood(queue, flow) else 1
        if (flow.done or load.bytes > most) and is_cuttable(&outlet.ctx.packets[flow.head]):
            index = cut(queue, flow, outlet, most, load)
            if index == NO_PACKET:
                return NO_PACKET
        else:
            index = flow.head
            account(queue, flow, outlet, load[0], -1)
            unlink(queue, flow, outlet)
        if verdict == CODEL_KEEP:
            return index
        if verdict == CODEL_MARK:
            set_tos(packet_data(outlet.ctx, index), &outlet.ctx.packets[index],
                    outlet.ctx.packets[index].tos | ECN_CE)
            queue.counts.marked += 1
            return index
        queue.counts.codel += verdict == CODEL_DROP
        queue.counts.blue += verdict == COBALT_BLUE
        (<Element>outlet.element).drop(outlet.ctx, index, BLUE_DROPPED if verdict == COBALT_BLUE
                                       else CODEL_DROPPED)
    codel_empty(&flow.aqm.codel)             # COBALT drops no last packet
    return NO_PACKET


cdef inline bint is_flood(const ClassQueue *queue, const Flow *flow) noexcept nogil:
    """Whether BLUE drops packets of the flow."""
    return queue.setting.aqm == AQM_COBALT and flow.aqm.cobalt.chance != 0


cdef inline bint is_cuttable(const Packet *p) noexcept nogil:
    # can_segment: without Parse the offload fields are not validated
    return p.gso_type != GSO_NONE and can_segment(p)


cdef inline int verdict_of(ClassQueue *queue, Flow *flow, Outlet *outlet,
                           const Load *load) noexcept nogil:
    """What the AQM says of the head of a flow."""
    cdef const Packet *p = &outlet.ctx.packets[flow.head]
    cdef uint64_t now_ns = outlet.ctx.now_ns
    cdef int verdict = CODEL_KEEP
    if queue.setting.aqm == AQM_CODEL:
        verdict = codel_verdict(&flow.aqm.codel, &queue.setting.codel, now_ns,
                                now_ns - p.release_ns, queue.bytes <= FULL_FRAME,
                                is_ecn_capable(p))
    elif queue.setting.aqm == AQM_COBALT:
        verdict = cobalt_verdict(&flow.aqm.cobalt, &queue.setting.codel, now_ns,
                                 now_ns - p.release_ns, is_ecn_capable(p), &outlet.blue)
        if verdict != CODEL_MARK and flow.packets == 1 and (load.segments == 1
                                                            or not is_cuttable(p)):
            verdict = CODEL_KEEP             # the last one of a flow is not dropped
    return verdict


cdef uint32_t cut(ClassQueue *queue, Flow *flow, Outlet *outlet, uint32_t most_bytes,
                  Load *load) noexcept nogil:
    """Cuts a piece of at most `most_bytes` on the line, and at least one segment, off the front of
    the head, a GSO frame. Pieces for which there is no buffer are lost; NO_PACKET: so are all."""
    cdef uint32_t index = flow.head, each, lost, before = flow.done
    cdef Packet *p = &outlet.ctx.packets[index]
    cdef uint32_t payload = p.length - p.header_length
    cdef Batch piece
    piece.count = 0
    if flow.done == 0:
        outlet.split += 1
    each = max(<uint32_t>(most_bytes // framed_bytes(
        &outlet.framing, <uint32_t>p.header_length + p.gso_size)), <uint32_t>1)
    lost = segment(outlet.ctx, index, each, &flow.done, &piece, 1)
    account(queue, flow, outlet, part_load(outlet, p, flow.done - before), -1)
    if piece.count:
        load[0] = packet_load(&outlet.framing, &outlet.ctx.packets[piece.index[0]])
    outlet.counters.generated += piece.count + lost
    outlet.counters.drops[NO_BUFFER] += lost
    if flow.done >= payload:
        # the frame has become its pieces
        unlink(queue, flow, outlet)
        outlet.counters.generated -= 1
        packet_free(outlet.ctx, index)
    return piece.index[0] if piece.count else NO_PACKET


# -- control ---------------------------------------------------------------------------------------


cdef void queue_release(ClassQueue *queue, Outlet *outlet) noexcept nogil:
    cdef uint32_t number
    for number in range(queue.setting.flow_count):
        if queue.packets == 0:               # pages of flows that no packet used are not touched
            return
        while queue.turns.flows[number].packets:
            drop_head(queue, &queue.turns.flows[number], outlet, RELEASED)


cdef void queue_move(ClassQueue *queue, ClassQueue *source, Outlet *outlet) noexcept nogil:
    cdef Flow *flow
    cdef Load load
    cdef uint32_t number, index
    for number in range(source.setting.flow_count):
        if source.packets == 0:              # of 4096 idle classes, the flows took 60 ms
            return
        flow = &source.turns.flows[number]
        while flow.packets:
            if flow.done:                    # only the head of a flow can be sent in part
                index = cut(source, flow, outlet, <uint32_t>0xFFFFFFFF, &load)
                if index == NO_PACKET:
                    continue
            else:
                index, load = flow.head, head_load(flow, outlet)
                account(source, flow, outlet, load, -1)
                unlink(source, flow, outlet)
            if queue.setting.fair:
                add_to_flow(queue, outlet, index, load)
            else:
                append(queue, queue.turns.flows, outlet, index, load)


cdef void queue_restore(ClassQueue *queue, Outlet *outlet, uint32_t number) noexcept nogil:
    cdef Flow *flow = &queue.turns.flows[number]
    cdef uint32_t first = flow.head, done = flow.done, _i
    cdef Load load
    flow.bytes = 0
    for _i in range(flow.packets):
        load = head_load(flow, outlet)
        account(queue, flow, outlet, load, 1)
        queue.packets += 1
        if flow.head < outlet.ctx.small_count:
            outlet.small += 1
        else:
            outlet.large += 1
        flow.tail, flow.head, flow.done = flow.head, outlet.ctx.packets[flow.head].next, 0
    flow.head, flow.done = first, done
    if flow.list != LIST_NONE:
        turns_restore(&queue.turns, number)

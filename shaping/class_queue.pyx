"""ClassQueue. The contract is in class_queue.pxd."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.offload cimport can_segment, segment
from dataplane.packet.pool cimport (GSO_NONE, NO_PACKET, Batch, Packet, packet_data, packet_free)
from dataplane.wire.tos cimport ECN_CE, is_ecn_capable, set_tos
from shaping.codel cimport CODEL_DROP, CODEL_KEEP, CODEL_MARK, codel_empty, codel_verdict
from shaping.flow_hash cimport flow_hash
from shaping.framing cimport Load, framed_bytes, packet_load

cdef enum:
    FULL_FRAME = 1514            # a queue of at most one such packet is no standing one


# -- flows -----------------------------------------------------------------------------------------


cdef inline void list_append(ClassQueue *queue, FlowList *to, uint32_t number) noexcept nogil:
    if to.head == 0:
        to.head = number + 1
    else:
        queue.flows[to.tail - 1].next = number + 1
    to.tail = number + 1
    queue.flows[number].next = 0


cdef inline void list_pop(ClassQueue *queue, FlowList *of) noexcept nogil:
    of.head = queue.flows[of.head - 1].next


cdef inline void account(ClassQueue *queue, Flow *flow, Outlet *outlet, Load load,
                         int sign) noexcept nogil:
    """Bytes and segments that begin or cease to wait."""
    cdef int64_t size = sign * <int64_t>load.bytes
    flow.bytes += size
    queue.bytes += size
    outlet.bytes += size
    queue.segments += sign * <int64_t>load.segments


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
        codel_empty(&flow.codel)             # the line found it empty since
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
    cdef Flow *flow = queue.flows
    cdef uint32_t number = 0
    p.release_ns = outlet.ctx.now_ns         # time of arrival while it waits
    if queue.setting.fair:
        number = flow_hash(p, &outlet.keys) & (queue.setting.flow_count - 1)
        flow = &queue.flows[number]
    elif (queue.packets and (queue.bytes + load.bytes > queue.setting.limit_bytes
                             or queue.segments + load.segments > queue.setting.limit_segments)
          or load.bytes > queue.setting.limit_bytes
          or load.segments > queue.setting.limit_segments):
        add_part(queue, outlet, index, load)
        return
    append(queue, flow, outlet, index, load)
    if not queue.setting.fair:
        return
    if flow.list == LIST_NONE:
        flow.list, flow.deficit = LIST_NEW, queue.setting.quantum
        list_append(queue, &queue.new_flows, number)
    if (queue.packets > 1 and (queue.bytes > queue.setting.limit_bytes
                               or queue.segments > queue.setting.limit_segments)):
        queue_relieve(queue, outlet, QUEUE_FULL)


cdef void add_part(ClassQueue *queue, Outlet *outlet, uint32_t index, Load load) noexcept nogil:
    """A packet that does not fit a single flow: its first segments that fit are queued, as if it
    had been segmented before. An empty queue takes at least one packet."""
    cdef Packet *p = &outlet.ctx.packets[index]
    cdef uint64_t count = 0, each
    cdef uint32_t done = 0, lost
    cdef Batch part
    # can_segment: without Parse the offload fields are not validated
    if p.gso_type != GSO_NONE and can_segment(p):
        each = framed_bytes(&outlet.framing, <uint32_t>p.header_length + p.gso_size)
        if queue.setting.limit_bytes > queue.bytes and (queue.setting.limit_segments
                                                        > queue.segments):
            count = min((queue.setting.limit_bytes - queue.bytes) // each,
                        queue.setting.limit_segments - queue.segments)
        if count == 0 and queue.packets == 0:
            count = 1
    elif queue.packets == 0:
        append(queue, queue.flows, outlet, index, load)
        return
    if count and count * p.gso_size < p.length - p.header_length:
        part.count = 0
        lost = segment(outlet.ctx, index, <uint32_t>count, &done, &part, 1)
        outlet.counters.generated += part.count + lost
        outlet.counters.drops[NO_BUFFER] += lost
        if part.count:
            append(queue, queue.flows, outlet, part.index[0],
                   packet_load(&outlet.framing, &outlet.ctx.packets[part.index[0]]))
    queue.counts.full += 1
    (<Element>outlet.element).drop(outlet.ctx, index, QUEUE_FULL)


cdef void queue_relieve(ClassQueue *queue, Outlet *outlet, uint32_t reason) noexcept nogil:
    cdef Flow *longest = queue.flows
    cdef uint64_t left
    cdef uint32_t number, dropped = 0
    for number in range(queue.setting.flow_count):
        if queue.flows[number].bytes > longest.bytes:
            longest = &queue.flows[number]
    left = longest.bytes // 2
    while dropped < DROP_BATCH and longest.packets and (dropped == 0 or longest.bytes > left):
        drop_head(queue, longest, outlet, reason)
        dropped += 1
    longest.codel.count += dropped           # RFC 8290, 4.1: it is not controlled well enough
    if reason == QUEUE_FULL:
        queue.counts.full += dropped
    else:
        queue.counts.memory += dropped


# -- departure -------------------------------------------------------------------------------------


cdef uint32_t queue_take(ClassQueue *queue, Outlet *outlet, uint32_t quantum_bytes,
                         Load *load) noexcept nogil:
    cdef Flow *flow = queue.flows
    cdef uint32_t index
    cdef uint64_t waited_ns
    while queue.packets:
        if queue.setting.fair:
            flow = next_flow(queue)
        index = flow_take(queue, flow, outlet, quantum_bytes, load)
        if index == NO_PACKET:
            continue
        flow.deficit -= load.bytes
        waited_ns = outlet.ctx.now_ns - outlet.ctx.packets[index].release_ns
        queue.counts.sent_packets += 1
        queue.counts.sent_bytes += load.bytes
        queue.counts.sojourn_ns += waited_ns
        queue.counts.sojourn_max_ns = max(queue.counts.sojourn_max_ns, waited_ns)
        return index
    return NO_PACKET


cdef Flow *next_flow(ClassQueue *queue) noexcept nogil:
    """The flow whose turn it is, of a queue that is not empty: deficit round robin over the new
    flows first (RFC 8290, 4.2)."""
    cdef FlowList *flows
    cdef Flow *flow
    cdef uint32_t number
    while True:
        flows = &queue.new_flows if queue.new_flows.head else &queue.old_flows
        number = flows.head - 1
        flow = &queue.flows[number]
        if flow.deficit > 0 and flow.packets:
            return flow
        if flow.deficit <= 0:
            flow.deficit += queue.setting.quantum
        elif flow.list == LIST_OLD or queue.old_flows.head == 0:
            # it has sent all, and has waited a turn for more
            list_pop(queue, flows)
            flow.list = LIST_NONE
            continue
        list_pop(queue, flows)
        flow.list = LIST_OLD
        list_append(queue, &queue.old_flows, number)


cdef uint32_t flow_take(ClassQueue *queue, Flow *flow, Outlet *outlet, uint32_t quantum_bytes,
                        Load *load) noexcept nogil:
    """The next packet of a flow that CoDel does not drop; NO_PACKET: there is none, or no buffer
    for it."""
    cdef uint32_t index
    cdef Packet *p
    cdef int verdict = CODEL_KEEP
    while flow.packets:
        p = &outlet.ctx.packets[flow.head]
        if queue.setting.aqm:
            verdict = codel_verdict(&flow.codel, &queue.setting.codel, outlet.ctx.now_ns,
                                    outlet.ctx.now_ns - p.release_ns,
                                    queue.bytes <= FULL_FRAME, is_ecn_capable(p))
        load[0] = head_load(flow, outlet)
        if p.gso_type != GSO_NONE and (flow.done or load.bytes > quantum_bytes
                                       or verdict != CODEL_KEEP) and can_segment(p):
            index = cut(queue, flow, outlet, quantum_bytes if verdict == CODEL_KEEP else 1, load)
            if index == NO_PACKET:
                return NO_PACKET
        else:
            index = flow.head
            account(queue, flow, outlet, load[0], -1)
            unlink(queue, flow, outlet)
        if verdict == CODEL_DROP:
            queue.counts.codel += 1
            (<Element>outlet.element).drop(outlet.ctx, index, CODEL_DROPPED)
            continue
        if verdict == CODEL_MARK:
            set_tos(packet_data(outlet.ctx, index), &outlet.ctx.packets[index],
                    outlet.ctx.packets[index].tos | ECN_CE)
            queue.counts.marked += 1
        return index
    codel_empty(&flow.codel)
    return NO_PACKET


cdef uint32_t cut(ClassQueue *queue, Flow *flow, Outlet *outlet, uint32_t most_bytes,
                  Load *load) noexcept nogil:
    """Cuts a piece of at most `most_bytes` on the line, and at least one segment, off the front of
    the head, a GSO frame. NO_PACKET: there is no buffer, and the piece is lost."""
    cdef uint32_t index = flow.head, each, lost
    cdef Packet *p = &outlet.ctx.packets[index]
    cdef uint32_t payload = p.length - p.header_length
    cdef Batch piece
    piece.count = 0
    if flow.done == 0:
        outlet.split += 1
    each = max(<uint32_t>(most_bytes // framed_bytes(
        &outlet.framing, <uint32_t>p.header_length + p.gso_size)), <uint32_t>1)
    load[0] = part_load(outlet, p, <uint32_t>min(<uint64_t>each * p.gso_size,
                                                 <uint64_t>(payload - flow.done)))
    account(queue, flow, outlet, load[0], -1)
    lost = segment(outlet.ctx, index, each, &flow.done, &piece, 1)
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
        while queue.flows[number].packets:
            drop_head(queue, &queue.flows[number], outlet, RELEASED)


cdef void queue_move(ClassQueue *queue, ClassQueue *source, Outlet *outlet) noexcept nogil:
    cdef Flow *flow
    cdef Load load
    cdef uint32_t number, index, goal
    for number in range(source.setting.flow_count):
        flow = &source.flows[number]
        while flow.packets:
            if flow.done:                    # only the head of a flow can be sent in part
                index = cut(source, flow, outlet, <uint32_t>0xFFFFFFFF, &load)
                if index == NO_PACKET:
                    continue
            else:
                index, load = flow.head, head_load(flow, outlet)
                account(source, flow, outlet, load, -1)
                unlink(source, flow, outlet)
            goal = 0
            if queue.setting.fair:
                goal = <uint32_t>flow_hash(&outlet.ctx.packets[index], &outlet.keys)
                goal &= queue.setting.flow_count - 1
            append(queue, &queue.flows[goal], outlet, index, load)
            if queue.setting.fair and queue.flows[goal].list == LIST_NONE:
                queue.flows[goal].list = LIST_NEW
                queue.flows[goal].deficit = queue.setting.quantum
                list_append(queue, &queue.new_flows, goal)


cdef void queue_restore(ClassQueue *queue, Outlet *outlet, uint32_t number) noexcept nogil:
    cdef Flow *flow = &queue.flows[number]
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
        list_append(queue, &queue.new_flows if flow.list == LIST_NEW else &queue.old_flows, number)

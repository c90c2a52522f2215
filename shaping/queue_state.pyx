"""The saved state of a class's queue. The contract is in queue_state.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from dataplane.graph.offload cimport can_segment
from dataplane.packet.pool cimport Context, Packet
from dataplane.packet.queue cimport queue_head, queue_length, queue_packed
from shaping.class_queue cimport AQM_COBALT, ClassQueue, Outlet, queue_restore
from shaping.cobalt cimport Cobalt, cobalt_rests
from shaping.codel cimport PENDING_KEEP, Codel
from shaping.flow_turns cimport LAST_HOST, LIST_NONE, LIST_OLD, Flow, FlowTurns, host_append
from shaping.ways cimport (WAY_FREE, WAY_KEPT, WAY_SHARED, WAY_USED, WAYS, Ways, way_hash, way_set,
                           way_state)


# -- saving ----------------------------------------------------------------------------------------


cdef dict saved_queue(const ClassQueue *queue, const Context *ctx, list packed):
    cdef const FlowTurns *turns = &queue.turns
    cdef uint32_t number
    flows = []
    numbers = flows_in_turn(turns)
    # CoDel remembers in an idle flow what controlled it
    if not queue.setting.fair and (queue.packets or turns.flows[0].aqm.codel.count):
        numbers = [0]
    for number in numbers:
        found = saved_flow(number, &turns.flows[number], queue.setting.aqm, ctx, packed)
        if turns.ways.words != NULL:
            found += [way_hash(&turns.ways, number), way_state(&turns.ways, number) == WAY_SHARED,
                      [turns.flows[number].hosts[side] for side in range(turns.sides)],
                      turns.flows[number].turn]
        flows.append(found)
    counts = queue.counts
    saved = {"counts": [counts.sent_packets, counts.sent_bytes, counts.sojourn_ns,
                        counts.sojourn_max_ns, counts.marked, counts.full, counts.codel,
                        counts.memory, counts.blue],
             "flows": flows}
    if turns.ways.words != NULL:
        saved["kept"] = [
            [number, way_hash(&turns.ways, number), saved_cobalt(&turns.flows[number].aqm.cobalt)]
            for number in range(turns.ways.count) if way_state(&turns.ways, number) == WAY_KEPT
        ]
        saved["hosts"] = saved_hosts(turns)
    return saved


cdef list flows_in_turn(const FlowTurns *turns):
    """The numbers of the flows that are in a list, in the order of their turns."""
    cdef uint32_t number
    heads = [turns.new_flows.head, turns.old_flows.head]
    heads += [turns.hosts[<uint32_t>host].flows.head for host in waiting_hosts(turns)]
    found = []
    for head in heads:
        number = head
        while number:
            found.append(number - 1)
            number = turns.flows[number - 1].next
    return found


cdef list saved_hosts(const FlowTurns *turns):
    """The hosts that are in use, first those that wait for a turn, in the order of their turns."""
    cdef uint32_t number
    numbers = waiting_hosts(turns)
    for number in range(turns.host_ways.count):
        if way_state(&turns.host_ways, number) != WAY_FREE and turns.hosts[number].next == 0:
            numbers.append(number)
    return [[number, way_hash(&turns.host_ways, number), turns.hosts[number].deficit,
             turns.hosts[number].next != 0] for number in numbers]


cdef list waiting_hosts(const FlowTurns *turns):
    """The numbers of the hosts that wait for a turn, in the order of their turns."""
    cdef uint32_t number = turns.waiting_hosts.head
    found = []
    while number and number != LAST_HOST:
        found.append(number - 1)
        number = turns.hosts[number - 1].next
    return found


cdef list saved_flow(uint32_t number, const Flow *flow, uint32_t aqm, const Context *ctx,
                     list packed):
    packed.append(queue_packed(ctx.packets, flow.head, flow.packets))
    return [number, flow.list, flow.deficit, flow.done,
            saved_cobalt(&flow.aqm.cobalt) if aqm == AQM_COBALT else saved_codel(&flow.aqm.codel),
            flow.packets]


cdef list saved_codel(const Codel *codel):
    return [codel.above_ns, codel.drop_ns, codel.count, codel.last_count, codel.dropping,
            codel.pending]


cdef list saved_cobalt(const Cobalt *cobalt):
    return [cobalt.drop_ns, cobalt.blue_ns, cobalt.count, cobalt.chance, cobalt.dropping]


# -- loading ---------------------------------------------------------------------------------------


@cython.final
cdef class Packed:
    """The packets of a saved state, which its flows take one after the other."""

    def __init__(self, bytes packets not None):
        self.packets = packets

    cdef bytes take(self, uint32_t count):
        cdef bytes found = self.packets[self.at:self.at + 4 * <Py_ssize_t>count]
        if queue_length(found) != count:
            raise ValueError(f"a flow of {count} packets, which are not there")
        self.at += 4 * <Py_ssize_t>count
        return found


cdef int load_queue(ClassQueue *queue, dict saved, Packed packed, Outlet *outlet) except -1:
    cdef FlowTurns *turns = &queue.turns
    cdef Flow flow
    cdef uint32_t number
    (queue.counts.sent_packets, queue.counts.sent_bytes, queue.counts.sojourn_ns,
     queue.counts.sojourn_max_ns, queue.counts.marked, queue.counts.full, queue.counts.codel,
     queue.counts.memory, queue.counts.blue) = saved["counts"]
    if turns.ways.words != NULL:
        load_hosts(turns, saved["hosts"])
        for number, hash, cobalt in saved["kept"]:
            claim_saved(&turns.ways, number, hash, WAY_KEPT)
            read_cobalt(&turns.flows[number].aqm.cobalt, cobalt)
            if cobalt_rests(&turns.flows[number].aqm.cobalt):
                raise ValueError(f"flow {number} is kept for nothing")
    for each in saved["flows"]:
        number = each[0]
        if (number >= queue.setting.flow_count or turns.flows[number].packets
                or turns.flows[number].list != LIST_NONE):
            raise ValueError(f"flow {number} twice, or of another queue")
        read_flow(&flow, each[:6], queue.setting.aqm, packed, outlet.ctx)
        if (flow.list != LIST_NONE) != queue.setting.fair:
            raise ValueError(f"flow {number} is of another discipline")
        if turns.ways.words != NULL:
            _, _, _, _, _, _, hash, shared, hosts, flow.turn = each
            claim_saved(&turns.ways, number, hash, WAY_SHARED if shared else WAY_USED)
            read_flow_hosts(turns, &flow, hosts)
        turns.flows[number] = flow
        queue_restore(queue, outlet, number)
    for number in range(turns.host_ways.count):
        if (way_state(&turns.host_ways, number) != WAY_FREE and turns.hosts[number].users == 0
                and turns.hosts[number].next == 0):
            raise ValueError(f"host {number} of no flow")
    return 0


cdef int claim_saved(Ways *ways, uint32_t number, uint64_t hash, uint32_t state) except -1:
    """Gives a hash the number that it had."""
    if (number >= ways.count or way_state(ways, number) != WAY_FREE
            or (<uint32_t>hash & (ways.count - 1)) // WAYS != number // WAYS):
        raise ValueError(f"number {number} is of another hash")
    way_set(ways, number, hash, state)
    return 0


cdef int load_hosts(FlowTurns *turns, list saved) except -1:
    cdef uint32_t number
    for number, hash, deficit, waiting in saved:
        claim_saved(&turns.host_ways, number, hash, WAY_USED)
        turns.hosts[number].deficit = deficit
        if waiting:
            host_append(turns, number)
    return 0


cdef int read_flow_hosts(FlowTurns *turns, Flow *flow, list hosts) except -1:
    cdef uint32_t side, number
    if <uint32_t>len(hosts) != turns.sides:
        raise ValueError("a flow of other hosts")
    for side, number in enumerate(hosts):
        if number >= turns.host_ways.count or way_state(&turns.host_ways, number) == WAY_FREE:
            raise ValueError(f"a flow of host {number}, which is not there")
        flow.hosts[side] = number
    if flow.list == LIST_OLD and turns.sides and (
            flow.turn not in hosts or turns.hosts[flow.turn].next == 0):
        raise ValueError(f"a flow waits for host {flow.turn}, which does not")
    return 0


cdef int read_flow(Flow *flow, list saved, uint32_t aqm, Packed packed, Context *ctx) except -1:
    cdef const Packet *p
    memset(flow, 0, sizeof(Flow))
    _, flow.list, flow.deficit, flow.done, state, flow.packets = saved
    if aqm == AQM_COBALT:
        read_cobalt(&flow.aqm.cobalt, state)
    else:
        read_codel(&flow.aqm.codel, state)
    flow.head = queue_head(ctx.packets, ctx.total_count, packed.take(flow.packets))
    if flow.list > LIST_OLD:
        raise ValueError("a flow that cannot be")
    if flow.done == 0:
        return 0
    p = &ctx.packets[flow.head]
    if (flow.packets == 0 or not can_segment(p) or flow.done >= p.length - p.header_length
            or flow.done % p.gso_size):
        raise ValueError(f"packet {flow.head} cannot be the one that is being cut")
    return 0


cdef int read_codel(Codel *codel, list saved) except -1:
    (codel.above_ns, codel.drop_ns, codel.count, codel.last_count, codel.dropping,
     codel.pending) = saved
    if codel.pending > PENDING_KEEP or (codel.dropping and codel.count == 0):
        raise ValueError("CoDel cannot be so")
    return 0


cdef int read_cobalt(Cobalt *cobalt, list saved) except -1:
    cobalt.drop_ns, cobalt.blue_ns, cobalt.count, cobalt.chance, cobalt.dropping = saved
    return 0

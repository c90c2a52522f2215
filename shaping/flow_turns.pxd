"""FlowTurns: whose turn it is among the flows of a queue, and among their hosts.

Flows have turns by deficit round robin, those that begin before those that queue (RFC 8290, 4.2).
With hosts, so do hosts, and a host's turn is that of the first of its flows that queue. CAKE has no
turns of hosts: it divides the quantum of each flow by the number of flows that its host has in the
queue, the larger one of source and destination. The shares are the same, but a flow of a host with
a thousand flows then has a thousand turns for each packet. Here a flow stands in the list of the
host that has more flows; where not all of that host's flows do, because others stand in the lists
of hosts that have still more, its turn is as much shorter. So a packet costs the same whatever the
number of flows and hosts, but where many hosts have short turns, for which it costs at most the
square root of the number of flows.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from shaping.cobalt cimport Cobalt, cobalt_rests
from shaping.codel cimport Codel
from shaping.ways cimport WAY_FREE, WAY_KEPT, Ways, way_hash, way_set, ways_claim

cdef enum:
    SIDES = 2                    # of a flow: its source and its destination

# Flow.list
cdef enum:
    LIST_NONE = 0
    LIST_NEW = 1
    LIST_OLD = 2

cdef union FlowAqm:              # that of the queue's discipline
    Codel codel
    Cobalt cobalt

cdef struct Flow:                # all zero: idle
    uint32_t head                # of its packets, linked by Packet.next, where there are any
    uint32_t tail
    uint32_t packets
    uint32_t done                # payload bytes of the head that were cut off and sent
    uint64_t bytes               # on the line, of what waits
    int64_t deficit              # bytes that it may still send in this turn
    uint32_t next                # in the list: 1 + its number; 0: the last one
    uint32_t place               # 1 + place in the heap of the longest flows; 0: not there
    uint32_t hosts[SIDES]        # their numbers, while it is in a list
    uint32_t turn                # the one in whose list it is
    uint8_t list
    FlowAqm aqm

cdef struct FlowList:            # each 1 + the number of a flow, or of a host; 0: empty
    uint32_t head
    uint32_t tail

cdef enum:
    LAST_HOST = 0xFFFFFFFF

cdef struct Host:                # all zero: none; 32 bytes, in one cache line
    int64_t deficit              # 1/65536 bytes that its flows may still send in this turn
    FlowList flows               # those that queue, and stand here
    uint32_t listed              # how many these are
    uint32_t busy                # flows that queue, and have this host
    uint32_t users               # flows of any list that have this host
    uint32_t next                # in the list of hosts: 1 + its number, or LAST_HOST; 0: not there

cdef struct FlowTurns:
    Flow *flows
    Ways ways                    # of flows; no words: a flow's number is its hash's last bits
    FlowList new_flows
    FlowList old_flows           # without hosts
    Host *hosts                  # NULL: flows have turns without regard to their hosts
    uint32_t sides               # hosts of each flow: 0, 1 or 2
    uint32_t first_side          # 0: the source, 1: the destination
    Ways host_ways
    FlowList waiting_hosts

cdef inline void flow_append(FlowTurns *turns, FlowList *to, uint32_t number) noexcept nogil:
    if to.head == 0:
        to.head = number + 1
    else:
        turns.flows[to.tail - 1].next = number + 1
    to.tail = number + 1
    turns.flows[number].next = 0

cdef inline void host_append(FlowTurns *turns, uint32_t number) noexcept nogil:
    cdef FlowList *to = &turns.waiting_hosts
    if to.head == 0:
        to.head = number + 1
    else:
        turns.hosts[to.tail - 1].next = number + 1
    to.tail = number + 1
    turns.hosts[number].next = LAST_HOST

cdef inline void host_pop(FlowTurns *turns) noexcept nogil:
    cdef Host *host = &turns.hosts[turns.waiting_hosts.head - 1]
    turns.waiting_hosts.head = 0 if host.next == LAST_HOST else host.next
    host.next = 0

cdef inline void turns_set_host(FlowTurns *turns, uint32_t number, uint32_t side,
                                uint64_t hash) noexcept nogil:
    """Gives a flow that is about to begin one of its hosts, by the host's hash."""
    cdef uint32_t _was, host = ways_claim(&turns.host_ways, hash, &_was)
    turns.hosts[host].users += 1
    turns.flows[number].hosts[side] = host

cdef inline void turns_begin(FlowTurns *turns, uint32_t number, uint32_t quantum) noexcept nogil:
    """A flow that is in no list has a packet: it is a new one, with a share of its host's turn."""
    cdef Flow *flow = &turns.flows[number]
    cdef uint32_t busy = 1, side
    for side in range(turns.sides):
        busy = max(busy, turns.hosts[flow.hosts[side]].busy)
    flow.list, flow.deficit = LIST_NEW, max(quantum // busy, <uint32_t>1)
    flow_append(turns, &turns.new_flows, number)

cdef inline int64_t host_quantum(const Host *host, uint32_t quantum) noexcept nogil:
    cdef int64_t whole = <int64_t>quantum << 16
    # a change of a flow's host is noticed at the end of its turn, so it may be more than all
    return whole * host.listed // host.busy if 0 < host.listed < host.busy else whole

cdef inline void turns_queue(FlowTurns *turns, uint32_t number, uint32_t quantum) noexcept nogil:
    """A flow that is in no list any more queues for its next turn."""
    cdef Flow *flow = &turns.flows[number]
    cdef Host *host
    cdef uint32_t side
    if flow.list != LIST_OLD:
        flow.list = LIST_OLD
        for side in range(turns.sides):
            turns.hosts[flow.hosts[side]].busy += 1
    if turns.hosts == NULL:
        flow_append(turns, &turns.old_flows, number)
        return
    flow.turn = flow.hosts[0]
    for side in range(1, turns.sides):
        if turns.hosts[flow.hosts[side]].busy > turns.hosts[flow.turn].busy:
            flow.turn = flow.hosts[side]
    host = &turns.hosts[flow.turn]
    flow_append(turns, &host.flows, number)
    host.listed += 1
    if host.next == 0:
        host.deficit = host_quantum(host, quantum)
        host_append(turns, flow.turn)

cdef inline void free_host(FlowTurns *turns, uint32_t number) noexcept nogil:
    if turns.hosts[number].users == 0 and turns.hosts[number].next == 0:
        way_set(&turns.host_ways, number, 0, WAY_FREE)

cdef inline void turns_end(FlowTurns *turns, uint32_t number) noexcept nogil:
    """A flow that is in no list any more has nothing to send."""
    cdef Flow *flow = &turns.flows[number]
    cdef Host *host
    cdef uint32_t side
    for side in range(turns.sides):
        host = &turns.hosts[flow.hosts[side]]
        host.busy -= flow.list == LIST_OLD
        host.users -= 1
        free_host(turns, flow.hosts[side])
    flow.list = LIST_NONE
    if turns.ways.words != NULL:
        way_set(&turns.ways, number, way_hash(&turns.ways, number),
                WAY_FREE if cobalt_rests(&flow.aqm.cobalt) else WAY_KEPT)

cdef inline uint32_t next_host(FlowTurns *turns, uint32_t quantum) noexcept nogil:
    """The host whose turn it is; at least one has flows. As of flows: what it has sent too much it
    makes up for, also when it has nothing more to send."""
    cdef uint32_t number
    cdef Host *host
    while True:
        number = turns.waiting_hosts.head - 1
        host = &turns.hosts[number]
        if host.deficit > 0 and host.listed:
            return number
        host_pop(turns)
        if host.deficit <= 0:
            host.deficit += host_quantum(host, quantum)
            host_append(turns, number)
        else:
            free_host(turns, number)

cdef inline uint32_t turns_next(FlowTurns *turns, uint32_t quantum) noexcept nogil:
    """The flow whose turn it is; at least one has packets."""
    cdef FlowList *flows
    cdef Flow *flow
    cdef uint32_t number
    while True:
        flows = &turns.new_flows
        if flows.head == 0:
            flows = &turns.old_flows if turns.hosts == NULL else (
                &turns.hosts[next_host(turns, quantum)].flows)
        number = flows.head - 1
        flow = &turns.flows[number]
        if flow.deficit > 0 and flow.packets:
            return number
        flows.head = flow.next
        if flow.list == LIST_OLD and turns.hosts != NULL:
            turns.hosts[flow.turn].listed -= 1
        if flow.deficit <= 0:
            flow.deficit += quantum
        elif flow.list == LIST_OLD or (turns.old_flows.head == 0
                                       and turns.waiting_hosts.head == 0):
            # it has sent all, and has waited a turn for more
            turns_end(turns, number)
            continue
        turns_queue(turns, number, quantum)

cdef inline void turns_charge(FlowTurns *turns, Flow *flow, uint32_t bytes) noexcept nogil:
    """A flow whose turn it is has sent something."""
    flow.deficit -= bytes
    if turns.hosts != NULL and flow.list == LIST_OLD:
        turns.hosts[flow.turn].deficit -= <int64_t>bytes << 16

cdef inline void turns_restore(FlowTurns *turns, uint32_t number) noexcept nogil:
    """Puts a flow into the list that it was in, with its hosts."""
    cdef Flow *flow = &turns.flows[number]
    cdef uint32_t side
    for side in range(turns.sides):
        turns.hosts[flow.hosts[side]].users += 1
        turns.hosts[flow.hosts[side]].busy += flow.list == LIST_OLD
    if flow.list == LIST_NEW:
        flow_append(turns, &turns.new_flows, number)
    elif turns.hosts == NULL:
        flow_append(turns, &turns.old_flows, number)
    else:
        flow_append(turns, &turns.hosts[flow.turn].flows, number)
        turns.hosts[flow.turn].listed += 1

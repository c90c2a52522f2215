"""Tally. The contract is in tally.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from dataplane.graph.element cimport Element
from dataplane.graph.port cimport Port, QueueStats
from dataplane.vatomic cimport va_load_relaxed_u64

from dataplane.errors import GraphError

# Of a port: the fields of QueueStats that each name adds up, over all queues.
cdef dict PORT_FIELDS = {
    "rx_packets": ("rx_packets",), "rx_bytes": ("rx_bytes",), "rx_dropped": ("rx_dropped",),
    "tx_packets": ("tx_packets",), "tx_bytes": ("tx_bytes",), "tx_dropped": ("tx_dropped",),
    "rx_wire_packets": ("rx_packets", "rx_more_packets"),
    "rx_wire_bytes": ("rx_bytes", "rx_more_bytes"),
    "tx_wire_packets": ("tx_packets", "tx_more_packets"),
    "tx_wire_bytes": ("tx_bytes", "tx_more_bytes"),
}


cdef const uint64_t *field_of(const QueueStats *stats, str field):
    if field == "rx_packets":
        return &stats.rx_packets
    if field == "rx_bytes":
        return &stats.rx_bytes
    if field == "rx_dropped":
        return &stats.rx_dropped
    if field == "rx_more_packets":
        return &stats.rx_more_packets
    if field == "rx_more_bytes":
        return &stats.rx_more_bytes
    if field == "tx_packets":
        return &stats.tx_packets
    if field == "tx_bytes":
        return &stats.tx_bytes
    if field == "tx_dropped":
        return &stats.tx_dropped
    if field == "tx_more_packets":
        return &stats.tx_more_packets
    return &stats.tx_more_bytes


cdef class Tally:
    """A row of sums: `add` and `add_port` say which counters each of its columns adds up. What it
    adds up stays in memory as long as the Tally, also after it has left its graph."""

    def __init__(self, uint32_t columns):
        if not 1 <= columns <= TALLY_COLUMNS:
            raise GraphError(f"a Tally of {columns} columns: expected 1 to {TALLY_COLUMNS}")
        self.columns = columns
        self.owners = []

    def __dealloc__(self):
        free(self.terms)

    cdef int append(self, uint32_t column, const uint64_t *counter) except -1:
        cdef Term *terms
        if column >= self.columns:
            raise GraphError(f"column {column} of a Tally: it has {self.columns}")
        if self.count == self.room:
            terms = <Term *>realloc(self.terms, (2 * self.room + 8) * sizeof(Term))
            if terms == NULL:
                raise MemoryError("tally")
            self.terms, self.room = terms, 2 * self.room + 8
        self.terms[self.count].counter, self.terms[self.count].column = counter, column
        self.count += 1
        return 0

    def add(self, uint32_t column, Element element not None, str counter, *, but=()):
        """Adds a counter of an element to a column: one of its class' COUNTERS, "packets" or
        "held", or "dropped": all drops, but those for the reasons `but`. Raises GraphError for a
        counter that the class does not have."""
        cdef uint32_t i
        cls = type(element)
        if counter == "packets":
            self.append(column, &element.counters.packets)
        elif counter == "held":
            self.append(column, &element.counters.held)
        elif counter == "dropped":
            for i, reason in enumerate(cls.DROP_REASONS):
                if reason not in but:
                    self.append(column, &element.counters.drops[i])
        elif counter in cls.COUNTERS:
            i = cls.COUNTERS.index(counter)
            self.append(column, &element.counters.extra[i])
        else:
            raise GraphError(f"{element.name}: {cls.__name__} does not count {counter}")
        self.owners.append(element)

    def add_port(self, uint32_t column, Port port not None, str counter):
        """Adds a counter of all queues of a port, by its name in `queue_statistics`, to a
        column. Raises GraphError for an unknown name."""
        if counter not in PORT_FIELDS:
            raise GraphError(f"port {port.name}: does not count {counter}")
        for queue in range(port.queues):
            for field in PORT_FIELDS[counter]:
                self.append(column, field_of(&port.stats[<uint32_t>queue], field))
        self.owners.append(port)

    cdef void load(self, uint64_t *sums) noexcept nogil:
        cdef uint32_t i
        memset(sums, 0, self.columns * sizeof(uint64_t))
        for i in range(self.count):
            sums[self.terms[i].column] += va_load_relaxed_u64(self.terms[i].counter)

    def read(self):
        """The sums, by column."""
        cdef uint64_t sums[TALLY_COLUMNS]
        self.load(sums)
        return [sums[i] for i in range(self.columns)]


def take_changes(list tallies, uint64_t[:, ::1] sums not None, uint32_t[::1] rows not None,
                 uint64_t[:, ::1] changes not None, uint32_t levels=0):
    """Reads all tallies, which have as many columns as the arrays, into the rows of `sums`; returns
    how many of them have anything to report. `rows` gets their numbers, `changes` what their sums
    have grown by since the last call.

    levels: a bit for each column that is a level, such as the bytes in a queue: it is reported as
    it is, and a row in which it is not 0 has something to report.

    A sum that has become smaller counts from 0: its element was replaced, and what the new one has
    counted came since.
    """
    cdef uint64_t now[TALLY_COLUMNS]
    cdef uint32_t columns = <uint32_t>sums.shape[1], found = 0, i, column
    cdef uint64_t before
    cdef bint active
    cdef Tally tally
    if (sums.shape[0] < len(tallies) or rows.shape[0] < len(tallies)
            or changes.shape[0] < len(tallies) or changes.shape[1] != columns):
        raise GraphError("arrays that are too small for the tallies")
    for i in range(<uint32_t>len(tallies)):
        tally = <Tally?>tallies[i]
        if tally.columns != columns:
            raise GraphError(f"a Tally of {tally.columns} columns, for arrays of {columns}")
        tally.load(now)
        active = False
        for column in range(columns):
            before, sums[i, column] = sums[i, column], now[column]
            if levels >> column & 1:
                changes[found, column] = now[column]
                active |= now[column] != 0 or before != 0
            else:
                changes[found, column] = now[column] - (before if now[column] >= before else 0)
                active |= now[column] != before
        if active:
            rows[found] = i
            found += 1
    return found

"""Tally. The contract is in tally.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
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


cdef class TallyTable:
    """Tallies that are read together, again and again. ids: numbers for them.

    levels: a bit for each column that is a level, such as the bytes in a queue: what it is now is
    reported, not what it has grown by.
    """

    def __init__(self, list ids not None, list tallies not None, uint32_t columns,
                 uint32_t levels=0):
        cdef Tally tally
        if not 1 <= columns <= TALLY_COLUMNS or len(ids) != len(tallies):
            raise GraphError("a TallyTable of other columns or ids than its tallies have")
        for tally in tallies:
            if tally is None:
                raise TypeError("a TallyTable of None")
            if tally.columns != columns:
                raise GraphError(f"a Tally of {tally.columns} columns, for a table of {columns}")
        self.ids, self.tallies, self.columns, self.levels = ids, tallies, columns, levels
        self.sums = <uint64_t *>calloc(len(tallies) * columns + 1, sizeof(uint64_t))
        if self.sums == NULL:
            raise MemoryError("tally table")

    def __dealloc__(self):
        free(self.sums)

    def begin(self, uint32_t place):
        """What the tally counts from now on is reported."""
        if place >= len(self.tallies):
            raise GraphError(f"place {place} of a table of {len(self.tallies)}")
        (<Tally>self.tallies[place]).load(&self.sums[place * self.columns])

    def go_on(self, uint32_t place, TallyTable other not None, uint32_t other_place):
        """What the tally has counted since another table was read last is reported: there, a tally
        of the same counters has the place `other_place`."""
        if (place >= len(self.tallies) or other_place >= len(other.tallies)
                or other.columns != self.columns):
            raise GraphError(f"place {place} of a table of {len(self.tallies)}, that goes on from "
                             f"place {other_place} of {len(other.tallies)}")
        memcpy(&self.sums[place * self.columns], &other.sums[other_place * self.columns],
               self.columns * sizeof(uint64_t))

    def take(self):
        """Reads all tallies; returns a record of each that has something to report, packed: its id,
        then what each column has grown by since the last call, or is, as 64-bit numbers. A level
        that is not 0 is something to report.

        A sum that has become smaller counts from 0: its element was replaced, and what the new one
        has counted came since.
        """
        cdef uint64_t now[TALLY_COLUMNS]
        cdef uint64_t record[1 + TALLY_COLUMNS]
        cdef uint32_t place, column
        cdef uint64_t *before
        cdef bint active
        records = []
        for place in range(<uint32_t>len(self.tallies)):
            (<Tally>self.tallies[place]).load(now)
            before, active = &self.sums[place * self.columns], False
            for column in range(self.columns):
                if now[column] != before[column] or (self.levels >> column & 1 and now[column]):
                    active = True
                    break
            if not active:
                continue
            record[0] = self.ids[place]
            for column in range(self.columns):
                record[1 + column] = now[column]
                if not self.levels >> column & 1 and now[column] >= before[column]:
                    record[1 + column] -= before[column]
                before[column] = now[column]
            records.append((<char *>record)[:(1 + self.columns) * sizeof(uint64_t)])
        return b"".join(records)


cdef class Steps:
    """Adds up the records of a TallyTable by step. columns, levels: the table's. ids: of the
    tallies that are wanted. most: the number of ids times steps that it takes.
    """

    def __init__(self, uint32_t count, uint32_t columns, *, uint32_t levels=0,
                 ids not None, uint64_t most):
        if not 1 <= columns <= TALLY_COLUMNS:
            raise GraphError(f"steps of {columns} columns: expected 1 to {TALLY_COLUMNS}")
        self.count, self.columns, self.levels, self.most = count, columns, levels, most
        self.ids, self.places = frozenset(ids), {}

    def __dealloc__(self):
        free(self.sums)

    def add(self, uint32_t step, bytes records not None):
        """Adds records of `TallyTable.take` to a step; of levels, a step has the highest. Raises
        GraphError where there are more than `most`."""
        cdef const uint64_t *record = <const uint64_t *><const char *>records
        cdef uint64_t width = 1 + self.columns, left = len(records) // (8 * width)
        cdef uint64_t place
        cdef uint64_t *sums
        cdef uint32_t column
        if step >= self.count or len(records) % (8 * width):
            raise GraphError("records of another width, or a step that there is not")
        while left:
            if record[0] in self.ids:
                place = self.place_of(record[0])
                sums = &self.sums[(place * self.count + step) * self.columns]
                for column in range(self.columns):
                    if self.levels >> column & 1:
                        sums[column] = max(sums[column], record[1 + column])
                    else:
                        sums[column] += record[1 + column]
            record, left = record + width, left - 1

    cdef uint64_t place_of(self, uint64_t which) except? 0xFFFFFFFFFFFFFFFF:
        cdef uint64_t place = len(self.places), each = <uint64_t>self.count * self.columns
        cdef uint64_t *sums
        found = self.places.get(which)
        if found is not None:
            return found
        if (place + 1) * self.count > self.most:
            raise GraphError("too many ids and steps")
        if place == self.room:
            sums = <uint64_t *>realloc(self.sums, (2 * place + 4) * each * sizeof(uint64_t))
            if sums == NULL:
                raise MemoryError("steps")
            self.sums, self.room = sums, 2 * place + 4
        memset(&self.sums[place * each], 0, each * sizeof(uint64_t))
        self.places[which] = place
        return place

    def column(self, which, uint32_t column):
        """The numbers of a column, by step; empty where there is no record of that id."""
        cdef uint64_t *sums
        found = self.places.get(which)
        if found is None or column >= self.columns:
            return []
        sums = &self.sums[<uint64_t>found * self.count * self.columns + column]
        return [sums[<uint64_t>i * self.columns] for i in range(self.count)]

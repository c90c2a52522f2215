"""The counts of a Scheduler's classes as tallies, which control reads while its engine runs."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.tally cimport Tally
from shaping.class_queue cimport ClassQueue
from shaping.class_tree cimport ClassTree
from shaping.scheduler cimport Scheduler

from dataplane.errors import GraphError


cdef const uint64_t *count_of(const ClassQueue *queue, str name):
    if name == "sent_packets":
        return &queue.counts.sent_packets
    if name == "sent_bytes":
        return &queue.counts.sent_bytes
    if name == "waiting_bytes":
        return &queue.bytes
    if name == "sojourn_ns":
        return &queue.counts.sojourn_ns
    if name == "marked":
        return &queue.counts.marked
    if name == "queue_full":
        return &queue.counts.full
    if name == "codel":
        return &queue.counts.codel
    if name == "over_memory":
        return &queue.counts.memory
    if name == "blue":
        return &queue.counts.blue
    raise GraphError(f"a class does not count {name}")


def has_classes(element):
    """Whether an element has classes."""
    return isinstance(element, Scheduler)


def tree_of(Scheduler scheduler not None):
    """The tree of classes that runs now: another object after each change of the classes."""
    return scheduler.current()


def class_tallies(ClassTree tree not None, counts):
    """Of each class of a tree: its path ("" is all classes), and a Tally
    with a column for each of `counts`: the names of counts in `Scheduler.get_classes`, as a tuple
    where a column adds up several. Of a class with a tree, the sums of its classes. Raises
    GraphError for an unknown name."""
    cdef uint32_t number, which
    cdef uint64_t column
    classes = tree.setting.classes
    found = [Tally(len(counts)) for _ in classes]
    for tally in found:
        (<Tally>tally).owners.append(tree)
    for number in range(<uint32_t>len(classes)):
        if not tree.tree.classes[number].leaf:
            continue
        for column, names in enumerate(counts):
            for name in (names,) if isinstance(names, str) else names:
                counter = count_of(&tree.tree.classes[number].queue, name)
                which = number
                while True:
                    (<Tally>found[which]).append(<uint32_t>column, counter)
                    if which == 0:
                        break
                    which = tree.tree.classes[which].parent
    return [(each.path, tally) for each, tally in zip(classes, found, strict=True)]

"""walk: the elements of a graph in order. Compiled, since a change of the graph visits all of
it."""
from dataplane.graph.element cimport Element, Source

from dataplane.errors import GraphError


def walk(sources):
    """All elements reachable from `sources`, sources first, each before its successors.

    A source that takes input (a Link) ends a path and begins another. Raises GraphError for an
    unconnected output, a cycle, a start that is not a Source, or a Link that is not among
    `sources`.
    """
    return walk_new(sources, (), {})


def walk_new(sources, elements, dict known):
    """The elements reachable from `sources` and `elements` that are not in `known` ({name:
    element}), in the order of `walk`. Raises as `walk` does, except for a cycle through known
    elements, which it does not find."""
    cdef list finished = []
    cdef set done = set(), entered = set()
    sources = list(sources)
    for source in sources:
        if not isinstance(source, Source):
            raise GraphError(f"{source.name}: is no source, so a graph cannot begin with it")
    for element in [*sources, *elements]:
        if not is_known(element, known):
            visit(element, [], done, entered, finished, known)
    for source in entered.difference(sources):
        if not is_known(source, known):
            raise GraphError(f"{source.name}: packets are led to it, "
                             "but it is not among the engine's sources")
    finished.reverse()
    return ([each for each in finished if isinstance(each, Source)]
            + [each for each in finished if not isinstance(each, Source)])


cdef inline bint is_known(Element element, dict known) except -1:
    return known.get(element.name) is element


# Not a closure in `walk`: its reference cycle would keep a removed graph's elements, and their
# rings' descriptors, until Python's cycle collector runs.
cdef int visit(Element element, list on_path, set done, set entered, list finished,
               dict known) except -1:
    cdef Py_ssize_t gate
    if element in done:
        return 0
    if element in on_path:
        ring = [(<Element>each).name for each in on_path[on_path.index(element):]] + [element.name]
        raise GraphError(f"{element.name}: the graph has a cycle: {' >> '.join(ring)}")
    on_path.append(element)
    for gate in range(len(element.outputs)):
        target = element.outputs[gate]
        if target is None:
            raise GraphError(f"{element.name}: gate {gate} leads nowhere; "
                             "connect it, or end it in Discard()")
        if isinstance(target, Source):
            entered.add(target)
            continue
        if not is_known(<Element?>target, known):
            visit(<Element>target, on_path, done, entered, finished, known)
    on_path.pop()
    done.add(element)
    finished.append(element)
    return 0

"""Finds sockets of a network namespace that receive from a port, or every frame: proc(5),
/proc/PID/net."""

from vnic.device.tap import FindSocket

_LISTEN = "0A"  # TCP_LISTEN of <net/tcp_states.h>


def found(work: FindSocket) -> bool:
    """Whether this thread's network namespace has such a socket."""
    tables = ["packet"] if work.protocol == "packet" else [work.protocol, f"{work.protocol}6"]
    return any(_has(table, work) for table in tables)


def _has(table: str, work: FindSocket) -> bool:
    try:
        with open(f"/proc/thread-self/net/{table}") as lines:
            next(lines, None)  # the columns' names
            return any(_fits(line.split(), work) for line in lines)
    except FileNotFoundError:  # a kernel without IPv6
        return False


def _fits(fields: list[str], work: FindSocket) -> bool:
    if work.protocol == "packet":
        return True
    port = int(fields[1].rpartition(":")[2], 16)
    return port == work.port and (work.protocol == "udp" or fields[3] == _LISTEN)

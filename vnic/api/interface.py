"""The control API: Varlink (https://varlink.org) over a Unix socket, and the path of that socket.

A message is a JSON object and a NUL byte. This module imports nothing slow, since every command
imports it.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from dataplane.errors import ConfigError, VnicError

INTERFACE = "org.vnic.Control"
SERVICE = "org.varlink.service"
REQUEST_MOST = 256 * 1024  # bytes of a request
SYSTEM_DIRECTORY = "/run/vnic"  # root's instances
BACKLOG = 1024  # clients waiting to be accepted, also while no worker runs for a moment
DESCRIPTORS_MOST = 16  # received with a client's calls and not used yet
# bytes of a reply: more than the statistics of a thousand NICs with all their elements
REPLY_MOST = 64 * 1024 * 1024

DESCRIPTION = """\
# Controls a running vnic. Clients other than the instance's owner see and change their own NICs
# only. Rates are text such as "100mbit" (layer-2 bits a second), or "none".
interface org.vnic.Control

# Attaches a NIC to a container and connects it to the switch. nic: the settings of a NIC as in the
# configuration file. netns and process are numbers, from 0, of descriptors that come with the call:
# the container's network namespace, instead of pid or netns in nic, and a pidfd of a process at
# whose end the NIC is detached.
method Attach(name: string, nic: object, netns: ?int, process: ?int) -> (nic: object)

# Makes the network the one that a configuration describes: config is the content of a file as an
# object; or document is the number of a descriptor that comes with the call, a file with what
# `vnic.config.convert.encode_config` returns. dry: returns what would change. A change has kind
# (switch, node, link, nic, group), name, action (add, remove, change), fields with the values
# before and after, and remade where the NIC's interface is made again. All or nothing. For the
# instance's owner.
method Apply(config: ?object, document: ?int, dry: ?bool) -> (changes: []object)

# Goes back to the network before the last Apply that was not undone. For the instance's owner.
method Undo(dry: ?bool) -> (changes: []object)

# Makes an object in the form of a policy file the network's policy of shaping (null: none), and
# returns the changes, as Apply does, and the number of the policy's generation. Traces are part of
# it by their contents, as `vnic shape apply` puts them there; document is the number of a
# descriptor that comes with the call, a file with the object as JSON, for one that is too long for
# a request. for_ms: after how many milliseconds it ends by itself (null: never). confirm_ms: after
# how many it makes room for the policy before, unless ConfirmShape is called. hold: it ends with
# this connection, see HoldShape; held is the generation that the connection holds. keeps_end: it
# ends as the policy before was to, unless the others say otherwise, and its scenario goes on.
# about: what the log of generations says. dry: only returns what would change. For the instance's
# owner.
method Shape(
  policy: ?object, document: ?int, for_ms: ?int, confirm_ms: ?int, hold: ?bool, keeps_end: ?bool,
  about: ?string, dry: ?bool
) -> (changes: []object, generation: int, held: ?int)

# Makes an earlier generation's policy the policy again (null: the one before), as a new generation.
# What both have stays. It ends when it was to end, or after for_ms. For the instance's owner.
method UndoShape(
  generation: ?int, for_ms: ?int, dry: ?bool
) -> (changes: []object, generation: int)

# Makes a policy stay that waits to be confirmed. For the instance's owner.
method ConfirmShape() -> (generation: int)

# This connection holds a policy that was applied with hold, by the number that was in held; after
# a crash of the worker, within five seconds. hold false: it holds it no more, and the policy has
# ended when the reply comes. For the instance's owner.
method HoldShape(generation: int, hold: ?bool) -> ()

# The last 32 generations of the policy, the oldest first: generation, at (seconds since 1970), uid
# (null: vnic itself), what, until, unconfirmed, held, empty, of (the generation that it restored),
# changes (the first ones, as text). generation: only that one, with its policy. For the instance's
# owner.
method ShapeLog(generation: ?int) -> (generations: []object)

# The policy's generation, when it ends (ends_in_ms, withdrawn_in_ms, held), and where its scenario
# is. whole: also the policy, and the names that it may have (network). For the instance's owner.
method ShapeStatus(whole: ?bool) -> (status: object)

# The configuration as it runs, in the words of a file, with what was implied written out. For the
# instance's owner.
method GetConfig() -> (config: object)

# Detaches a NIC.
method Detach(name: string) -> ()

# Engines, NICs and switches; NICs that wait for their network namespaces, with the reasons; whether
# every packet is accounted for.
method Status() -> (status: object)

# Counters of one NIC, or of everything: per queue, and per element with drops by reason.
method Stats(name: ?string) -> (stats: object)

# A drawing of the running graph: text, dot (Graphviz) or json; of the elements of each engine, or
# of switches, NICs and links.
method Graph(format: ?string, elements: ?bool) -> (graph: string)

# Sets the rate of one or both directions of a NIC; one that is not given stays.
method SetRate(name: string, egress: ?string, ingress: ?string) -> (nic: object)

# The elements by name: type, engines that have a copy, handlers.
method Handlers(element: ?string) -> (elements: object)

# Reads a handler of each copy of an element, each between two batches.
method ReadHandler(element: string, handler: string) -> (copies: []object)

# Writes a handler of all copies of an element, or of none.
method WriteHandler(element: string, handler: string, value: ?object) -> (result: ?object)

# Changes an engine group while packets flow: its scheduling mode (dedicated, spreading,
# compacting), its CPUs; settings: other keys of a group in the configuration file, null to remove
# one.
method SetGroup(name: string, mode: ?string, cpus: ?[]int, settings: ?object) -> (group: object)

# CPU time and memory by NIC, and overhead, which is charged to no NIC. The sum is the engines' CPU
# time.
method Accounts() -> (accounts: object)

# Replaces the worker by a new one, of the version that is installed now or that the given Python
# has, while packets flow. The report has blackout, bytes of state, packets moved and packets lost
# of each engine, and the packets that each NIC's queues dropped meanwhile.
method Upgrade(python: ?string) -> (report: object)

# Counters, gauges and accounts for Prometheus: its text format, or as families with format json.
method Metrics(format: ?string) -> (text: ?string, families: ?[]object)

# The last minute, recorded in samples of 100 ms: of NICs, lines of the policy and classes, or of
# those with these names (of a class, with those below it). last_ms: of this time only; step_ms:
# samples are added up to steps of this length. begin, times: when the first step began and each one
# ended, in seconds since 1970. A series has kind (nic, line, class), name; of a NIC way (egress:
# what its container sends; ingress); of a line asked and rate_bps; of lines and classes since, when
# their settings were the last to change; ended if it is gone. Unless nothing happened, it has lists
# with a number for each step:
#   packets, bytes: on the wire, sent or received by a NIC, delivered by a line, sent by a class
#   drops; queue_bytes: the most that waited at the samples of the step
#   sojourn_ns: waits in queues, summed over the sojourn_packets that left them
#   of a line: no_memory (drops for want of buffers), sent_bytes (what its rate counts), lost,
#   duplicated, corrupted and reordered packets of those that arrived; delay_ns (delays, summed over
#   delay_packets; constant ones behind a rate are in neither); of a class: marked
# A class stands for those below it, too, unless `alone`.
method History(
  names: ?[]string, last_ms: ?int, step_ms: ?int, alone: ?bool
) -> (begin: ?float, times: []float, series: []object)

# Raises or cuts a NIC's link.
method SetLink(name: string, up: bool) -> ()

# on: drops frames that a NIC's container sends from another MAC address than the NIC's. For the
# instance's owner.
method SetSpoofCheck(name: string, on: bool) -> (nic: object)

# Captures the packets that pass a point (a NIC, or one of its elements by name) as pcap, until
# StopCapture or the end of this connection: into a pipe, whose reading end comes with the reply
# (descriptor is its number), or to the file or named pipe at path, which the daemon opens.
method StartCapture(point: string, path: ?string, snaplen: ?int) -> (capture: int, descriptor: ?int)

# Ends a capture of this connection. captured: packets in it; missed: packets for which the buffer
# had no room.
method StopCapture(capture: int) -> (point: string, captured: int, missed: int, error: ?string)

# Events as they happen; call with "more". An event has a name (attached, detached, rate, link,
# group, applied, step, capture, engine-moved, overrun, drops, worker), a time (seconds since 1970),
# and fields that depend on the name; detached has why, and waits if the NIC is attached again when
# its namespace returns. lost: events before it that were dropped since the client was too slow.
method Monitor() -> (event: object)

# Stats repeatedly; call with "more". interval_ms is at least 10.
method WatchStats(name: ?string, interval_ms: ?int) -> (time: float, stats: object)

# Detaches everything and ends the daemon; the connection closes at the end.
method Shutdown() -> ()

# Errors have a message for people, on one line, and a code for programs that does not change
# between versions: busy, exists, failed, invalid, limit, not-found, not-permitted, port. field is
# the part of the request that is wrong, such as nics.web.mtu.

# The request cannot be met as it is: wrong value, unknown name.
error InvalidConfig (message: string, code: string, field: ?string)

# The client may not see or change this.
error NotPermitted (message: string, code: string, field: ?string)

# A failure at run time.
error Failed (message: string, code: string, field: ?string)
"""

SERVICE_DESCRIPTION = """\
# The methods that every Varlink service has.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error ExpectedMore ()
error InvalidParameter (parameter: string)
error PermissionDenied ()
"""  # noqa: E501


def checked_instance(name: str) -> str:
    """Checks an instance's name, which becomes part of a path. Raises ConfigError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", name, re.ASCII):
        raise ConfigError(
            f"instance {name[:40]!r}: expected a name of 1 to 32 letters, digits, '_', '.', '-'"
        )
    return name


def runtime_directory(*, create: bool = False) -> str:
    """The directory of sockets, locks and logs, which only this user may write. Raises VnicError
    where that is not so.

    VNIC_RUNTIME_DIR, else /run/vnic for root, else $XDG_RUNTIME_DIR/vnic, else /tmp/vnic-UID. Any
    user could create the last one first, so client and daemon check owner and mode every time.
    """
    uid = os.geteuid()
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if chosen := os.environ.get("VNIC_RUNTIME_DIR"):
        path = os.path.abspath(chosen)
    elif uid == 0 and os.access("/run", os.W_OK):
        path = SYSTEM_DIRECTORY
    elif session.startswith("/") and os.path.isdir(session) and os.stat(session).st_uid == uid:
        path = os.path.join(session, "vnic")
    else:
        path = f"/tmp/vnic-{uid}"
    try:
        if create:
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
        status = os.lstat(path)
    except FileNotFoundError as error:
        if create:
            raise VnicError(
                f"{path}: {error.strerror}; make its parent directory or set VNIC_RUNTIME_DIR"
            ) from None
        return path
    except OSError as error:
        raise VnicError(
            f"{path}: {error.strerror}; set VNIC_RUNTIME_DIR to a directory of yours"
        ) from None
    # Other users may pass through it to the socket of an instance with clients (execute
    # permission), but not list or change it.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o066:
        raise VnicError(
            f"{path}: is not a directory of yours alone; "
            f"remove it, or chmod 700 it, or set VNIC_RUNTIME_DIR"
        )
    return path


def open_to_clients(instance: str) -> None:
    """Lets other users connect to the instance's existing socket. Raises ConfigError where a
    directory above it has no execute permission for them."""
    path = socket_path(instance)
    directory = os.path.dirname(path)
    os.chmod(directory, 0o711)
    while directory != "/":
        directory = os.path.dirname(directory)
        if not os.stat(directory).st_mode & stat.S_IXOTH:
            raise ConfigError(
                f"clients: other users cannot get past {directory}; "
                f"set VNIC_RUNTIME_DIR to a directory elsewhere"
            )
    os.chmod(path, 0o666)


def socket_path(instance: str, *, create: bool = False) -> str:
    """The path of an instance's socket. Raises ConfigError, VnicError."""
    path = os.path.join(runtime_directory(create=create), checked_instance(instance) + ".sock")
    if len(os.fsencode(path)) > 107:  # sockaddr_un.sun_path with its NUL
        raise VnicError(f"{path}: too long for a socket; set VNIC_RUNTIME_DIR to a shorter path")
    return path


def find_socket(instance: str) -> str:
    """The path of an instance's socket for a client: the user's own instance, else root's of that
    name; or the given path. Raises ConfigError, VnicError."""
    if instance.startswith("/"):
        return instance
    own = socket_path(instance)
    system = f"{SYSTEM_DIRECTORY}/{instance}.sock"
    # Only root can have created it: the directory is in root's.
    if (
        not os.path.exists(own)
        and not os.environ.get("VNIC_RUNTIME_DIR")
        and os.path.exists(system)
    ):
        return system
    return own


def not_running(instance: str) -> VnicError:
    option = "" if instance == "default" else f"-i {instance} "
    return VnicError(f"instance {instance} does not run; start it with 'vnic up {option}FILE.yaml'")

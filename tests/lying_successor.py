"""A program that an upgrade starts in place of a Python with vnic, and that sends false messages.

took-over        TookOver, before it is joined to the worker; ready-took-over: after that, then
                 sends the worker nothing
handed-over      HandedOver, which only a worker sends
changes          changes to what the supervisor stores: ends with status 3 if all are refused, else
                 with 4
flood            sends requests without end, and reads no answer
"""

import json
import os
import select
import socket
import sys

MODE = sys.argv[1]
calls, events = (socket.socket(fileno=int(number)) for number in sys.argv[-5:-3])


def say(kind):
    events.send(json.dumps({"type": kind}).encode())


def wait():
    select.select([], [], [])  # waits until it is killed


def call(number, what, **fields):
    message = json.dumps({"type": what, "number": number, **fields}).encode()
    descriptors = [os.open("/dev/zero", os.O_RDONLY)] if what == "Put" else []
    socket.send_fds(calls, [message], descriptors)
    for each in descriptors:
        os.close(each)


if MODE == "ready-took-over":
    say("Ready")
    joined = b""  # its descriptors stay open: the previous worker waits for an answer there
    while b"HandOver" not in joined:
        joined, _, _, _ = socket.recv_fds(events, 1 << 16, 100)
if MODE.endswith("took-over"):
    say("TookOver")
    wait()
elif MODE == "handed-over":
    for each in ("HandedOver", "Abandon", "Stop"):
        say(each)
    sys.exit(1)
elif MODE == "changes":
    tap = {"name": "liar", "type": "open_tap"}
    wanted = [("Put", {"key": "config"}), ("Drop", {"key": "nic/a"}), ("Open", {"nic": "b", "kind": "tap", "request": tap})]
    for number, (kind, fields) in enumerate(wanted):
        call(number, kind, **fields)
        if json.loads(calls.recv(1 << 16))["type"] != "Refused":
            sys.exit(4)
    sys.exit(3)
elif MODE == "flood":
    while True:
        call(1, "Put", key="x")

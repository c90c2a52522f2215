"""Messages to the front end that it has not asked for, on the socket of SET_BACKEND_REQ_FD."""

from __future__ import annotations

import os
import socket

from virt.vhost_user.messages import request_of_back_end
from virt.vhost_user.protocol import BackendRequest, ProtocolFeature
from virt.vhost_user.session import Session


def tell_config_changed(session: Session) -> bool:
    """Has the driver read the configuration space again: the link, an announcement, the speed.
    Returns whether the front end was told.

    It is not told while no ring is started: the device is suspended then, and a driver reads the
    space when it starts. One that does not read its socket is not waited for, and not told twice.
    """
    books = session.books
    held = session.descriptors.get(books.requests)
    wanted = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
    if held is None or not books.agreed(wanted):
        return False
    if not any(ring.started for ring in books.rings):
        return False
    data = request_of_back_end(BackendRequest.CONFIG_CHANGE_MSG)
    with socket.socket(fileno=os.dup(held)) as sock:
        try:
            return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
        except OSError:  # full, or closed by the front end, whose affair it is
            return False

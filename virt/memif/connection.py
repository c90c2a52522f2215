"""The socket of a memif connection, of which a killed worker's successor carries on.

A supervisor holds the socket and the stored books, so a worker may end at any instruction. For each
message: it is peeked at, and stays in the socket; the session handles it; the books are stored with
the answer that is due; the session settles (the rings start); the message is consumed; the answer
is sent; the books are stored without it.

A server's successor is given a message that was not consumed once more, which changes nothing; it
sends an answer that may not have been sent, unless a message waits, or the answer does. A client
that is not connected yet begins anew: nothing tells which ACK a message that waits is.

The peer is hostile: a message has 128 bytes, and a peer that does not read is disconnected.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from dataplane.descriptors import (
    awaits_reply,
    close_all,
    receive_with_descriptors,
    system_error,
    with_descriptors,
)
from virt.memif import protocol
from virt.memif.protocol import MESSAGE_BYTES, Disconnected, ProtocolError
from virt.memif.session import Answer, Books, ClientSession, Session

Store = Callable[[Books, Mapping[str, int]], None]

_MESSAGES_MOST = 64  # of one call of `read`: a peer that floods does not keep others waiting


class Connection:
    """A peer's socket and the session that it is served by.

    sock   a connected SOCK_SEQPACKET socket; the connection closes it
    store  stores books and descriptors by role, all at once, and returns when they are safe from
           this process's end
    """

    def __init__(self, sock: socket.socket, session: Session, store: Store) -> None:
        self.session = session
        self._sock, self._store_both = sock, store
        sock.setblocking(False)

    def fileno(self) -> int:
        """A descriptor that is readable when `read` is to be called."""
        return self._sock.fileno()

    def begin(self) -> None:
        """Begins a new connection. Raises ProtocolError, OSError."""
        self.session.books.answer = self.session.greet()
        self._store()
        self._send_answer()

    def resume(self) -> None:
        """Carries on from the books of a predecessor; before the first `read`. Raises ProtocolError
        or OSError if that is impossible."""
        session = self.session
        if isinstance(session, ClientSession) and not session.books.connected:
            raise ProtocolError("the connection was not complete when this process took over")
        session.resume()
        if session.books.answer is not None:
            if self._is_awaited():
                self._send_answer()
            else:
                session.books.answer = None
                self._store()

    def read(self) -> bool:
        """Handles what has arrived. Returns False if the peer has closed the connection. Raises
        ProtocolError, OSError, and then the caller closes the connection."""
        try:
            for _ in range(_MESSAGES_MOST):
                try:
                    if not self._read_one():
                        return False
                except BlockingIOError:
                    return True
        except ConnectionError:
            return False
        return True

    def _read_one(self) -> bool:
        session = self.session
        data, descriptors, cut = receive_with_descriptors(
            self._sock, MESSAGE_BYTES, 2, socket.MSG_PEEK | socket.MSG_DONTWAIT
        )
        if not data and not descriptors:
            return False
        if cut:
            close_all(descriptors)
            raise ProtocolError(
                f"a message that cannot be taken: expected {MESSAGE_BYTES} bytes, one descriptor "
                "and fewer files than the limit (ulimit -n)"
            )
        session.books.answer = session.handle(data, descriptors)
        self._store()
        session.settle()
        self._sock.recv(1, socket.MSG_DONTWAIT)  # all of the message goes
        self._send_answer()
        return True

    def close(self, why: str) -> None:
        """Disconnects the peer, also where other processes hold the socket, and tells it why;
        leaves nothing of it in the device, or in the store."""
        try:
            flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            self._sock.send(protocol.disconnect(why), flags)
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster, or does not read
        self._sock.close()
        self.session.close()
        self._store()

    def _store(self) -> None:
        self._store_both(self.session.books, self.session.descriptors)

    def _send_answer(self) -> None:
        answer = self.session.books.answer
        if answer is not None:
            self._send(answer)
            self.session.books.answer = None
            self._store()

    def _send(self, answer: Answer) -> None:
        held = self.session.descriptors.get(answer.descriptor)
        ancillary = with_descriptors([] if held is None else [held])
        try:
            self._sock.sendmsg([answer.data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise ProtocolError("the peer does not read its messages") from None
        except ConnectionError:
            raise Disconnected("it closed the connection") from None
        except OSError as error:  # such as ETOOMANYREFS
            raise ProtocolError(f"a message cannot be sent: {system_error(error)}") from None

    def _is_awaited(self) -> bool:
        """Whether the peer still waits for the answer to its last message, as far as one can
        see."""
        return awaits_reply(self._sock)

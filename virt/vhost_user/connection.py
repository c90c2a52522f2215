"""The stream connection to a front end, of which a killed worker's successor carries on.

A supervisor holds the socket and the stored books, so a worker may end at any instruction. For each
message:

1. it is peeked at: it stays in the socket, and descriptors that come with a peek are duplicates;
2. the session handles it: the books change, rings stop;
3. the books are stored, with the reply that is due;
4. the session settles: rings start, never ahead of the stored books;
5. the message is consumed, and the reply is sent;
6. if there was a reply, the books are stored without it.

A worker that ends before 5 leaves the message to its successor, which handles it again: to the same
effect (session.py). One that ends between consuming and replying leaves the reply in the books. The
successor sends it if the front end still waits for it: front ends wait for a reply before they send
anything else, so it is not waiting if there is another message, or if the reply lies unread in the
socket. What remains is a worker that ends between sending a reply and storing that it did, while
the front end has read the reply and is silent: it gets the reply twice. No order of two system
calls can avoid both a lost and a repeated reply; a lost one would stop the guest for ever.

The peer is hostile. Sizes are checked before a payload is read, and a message has at most a few
hundred bytes. Descriptors are taken only for a message that wants some, and as many as it wants;
the kernel closes all others when their bytes are consumed. A front end that does not read its
replies is disconnected, not waited for.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping

from dataplane.descriptors import (
    awaits_reply,
    close_all,
    receive_with_descriptors,
    system_error,
    with_descriptors,
)
from virt.vhost_user import messages
from virt.vhost_user.books import Answer, Books
from virt.vhost_user.messages import HEADER, Message
from virt.vhost_user.protocol import MOST_DESCRIPTORS, ProtocolError
from virt.vhost_user.session import Session

Store = Callable[[Books, Mapping[str, int]], None]

_SO_PEEK_OFF = 42  # <asm-generic/socket.h>; the socket module lacks it
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_MOST_MESSAGES = 64  # of one call of `read`: a front end that floods does not keep others waiting


class _Ended(Exception):
    """The front end has closed the connection."""


class Connection:
    """A front end's socket, and the session that it is served by.

    sock   a connected Unix stream socket; the connection closes it
    store  stores books and descriptors by role, all at once, and returns when they are safe from
           this process's end. Called after each message, so a role whose descriptor was replaced
           has another number than at the last call, or was missing there.
    """

    def __init__(self, sock: socket.socket, session: Session, store: Store) -> None:
        self.session = session
        self._sock, self._store = sock, store
        sock.setblocking(False)
        # Edge-triggered: the bytes of half a message stay in the socket, and must not wake again
        # and again those who wait for the other half.
        self._arrivals = select.epoll()
        self._arrivals.register(sock, select.EPOLLIN | select.EPOLLET)

    def fileno(self) -> int:
        """A descriptor that is readable when `read` is to be called."""
        return self._arrivals.fileno()

    def resume(self) -> None:
        """Carries on from the books of a predecessor; before the first `read`. Raises ConfigError,
        ProtocolError or OSError (session.py) if that is impossible."""
        self.session.resume()
        answer = self.session.books.answer
        if answer is not None:
            try:
                if self._is_awaited():
                    self._send(answer)
            except _Ended:
                return  # `read` will say so
            self._forget_answer()

    def read(self) -> bool:
        """Handles what has arrived. Returns False if the front end has closed the connection.

        Raises ProtocolError if it violates the protocol, or does not read its replies. In both
        cases the caller closes the connection."""
        self._arrivals.poll(0)
        try:
            for _ in range(_MOST_MESSAGES):
                if not self._read_one():
                    return True
        except (_Ended, ConnectionError):
            return False
        # there may be more: wakes the caller again if so
        self._arrivals.modify(self._sock, select.EPOLLIN | select.EPOLLET)
        return True

    def close(self) -> None:
        """Disconnects the front end, also where other processes hold the socket, and leaves nothing
        of it in the device, or in the store."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the front end was faster
        self.abandon()
        self.session.close()
        self._store(self.session.books, {})

    def abandon(self) -> None:
        """Closes this process's descriptors of the connection only: another process carries on."""
        self._arrivals.close()
        self._sock.close()

    # -- one message -----------------------------------------------------------------------------

    def _read_one(self) -> bool:
        found = self._peek()
        if found is None:
            return False
        message, descriptors = found
        session, books = self.session, self.session.books
        reply = session.handle(message, descriptors)
        if reply is not None:
            data = messages.reply(message.request, reply.payload)
            books.answer = Answer(data, reply.descriptor)
        else:
            books.answer = None
        self._store(books, session.descriptors.by_role())
        session.settle()
        self._consume(HEADER.size + len(message.payload))
        if books.answer is not None:
            self._send(books.answer)
            self._forget_answer()
        return True

    def _peek(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors, which stay in the socket, or None if it has not
        arrived in full."""
        self._peek_from_start()
        head = self._peek_on(HEADER.size)
        if head is None:
            return None
        request, needs_reply, size = messages.header(head)
        payload = self._peek_on(size)
        if payload is None:
            return None
        message = Message(request, needs_reply, payload)
        return message, self._peek_descriptors(message)

    def _peek_from_start(self) -> None:
        """The next peek begins with the first byte. The kernel moves the offset on with each."""
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)

    def _peek_descriptors(self, message: Message) -> list[int]:
        """The message's descriptors. They are looked for only if it wants any: if it came without,
        a peek returns those of a later message, as Linux walks on over all bytes that came without
        descriptors, also when it has found as many bytes as were asked for. So a front end that
        omits a descriptor may have that of a later message taken, which is its own fault and
        loss."""
        if not messages.wanted(message):
            return []
        self._peek_from_start()
        _, descriptors, cut = receive_with_descriptors(self._sock, 1, MOST_DESCRIPTORS + 1, _PEEK)
        if cut or len(descriptors) > MOST_DESCRIPTORS:
            close_all(descriptors)
            raise ProtocolError(
                f"{message.request.name}: descriptors cannot be taken: expected at most "
                f"{MOST_DESCRIPTORS}, and fewer than the limit of open files (ulimit -n)"
            )
        return descriptors

    def _peek_on(self, size: int) -> bytes | None:
        """The following bytes, or None if they have not all arrived. A peek ends after bytes that
        came with descriptors, even if there are more."""
        found = b""
        while len(found) < size:
            try:
                more = self._sock.recv(size - len(found), _PEEK)
            except BlockingIOError:
                return None
            if not more:
                raise _Ended
            found += more
        return found

    def _consume(self, size: int) -> None:
        """Takes peeked bytes off the socket. The kernel drops the descriptors with them."""
        while size:
            try:
                data = self._sock.recv(size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                data = b""
            if not data:  # a front end can arrange that by urgent data (MSG_OOB)
                raise ProtocolError("bytes of a message were taken back")
            size -= len(data)

    def _send(self, answer: Answer) -> None:
        held = self.session.descriptors.get(answer.descriptor)
        ancillary = with_descriptors([] if held is None else [held])
        try:
            sent = self._sock.sendmsg(
                [answer.data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            )
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            raise _Ended from None
        except OSError as error:  # such as ETOOMANYREFS
            raise ProtocolError(f"a reply cannot be sent: {system_error(error)}") from None
        if sent < len(answer.data):
            raise ProtocolError("the front end does not read its replies")

    def _forget_answer(self) -> None:
        self.session.books.answer = None
        self._store(self.session.books, self.session.descriptors.by_role())

    def _is_awaited(self) -> bool:
        """Whether the front end still waits for the reply to its last message, as far as one can
        see."""
        self._peek_from_start()
        return awaits_reply(self._sock)

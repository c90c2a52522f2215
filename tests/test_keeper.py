"""The worker's calls to the supervisor."""

import os
import socket
from contextlib import suppress

import pytest

from dataplane.errors import PortError, VnicError
from vnic.device.tap import TapRequest
from vnic.store import keeper
from vnic.store.keeper import receive


@pytest.fixture
def supervisor(monkeypatch):
    """The supervisor's socket, and a Keeper at the other end, with short timeouts."""
    monkeypatch.setattr(keeper, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(keeper, "SILENT_TIMEOUT_S", 0.04)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, keeper.Keeper(theirs)


def document(content):
    descriptor = keeper.write_document(content)
    status = os.fstat(descriptor)
    return descriptor, (status.st_dev, status.st_ino)


def is_open_here(identity):
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            status = os.fstat(int(number))
            if (status.st_dev, status.st_ino) == identity:
                return True
    return False


def test_a_late_answer_is_not_that_of_the_next_call(supervisor):
    """A TAP opened for a, too late, must not be taken for b's."""
    ours, keeping = supervisor
    with pytest.raises(VnicError, match="no answer from the supervisor"):
        keeping.open_nic("a", TapRequest(name="eth0"))
    first = keeper.decode_call(keeper.receive(ours)[0])
    (of_a, a), (of_b, b) = document(b"a"), document(b"b")
    keeper.send(ours, keeper.Opened(number=first.number), [of_a])
    keeper.send(ours, keeper.Opened(number=first.number + 1), [of_b])
    os.close(of_a)
    os.close(of_b)
    (got,) = keeping.open_nic("b", TapRequest(name="eth0"))
    assert keeper.read_document(got) == b"b"
    assert not is_open_here(a), "what came too late is closed"
    os.close(got)
    assert not is_open_here(b)
    assert keeper.decode_call(keeper.receive(ours)[0]).nic == "b"


def test_a_late_refusal_is_not_that_of_the_next_call(supervisor):
    ours, keeping = supervisor
    with pytest.raises(VnicError, match="no answer from the supervisor"):
        keeping.drop("nic/a")
    keeper.send(ours, keeper.Refused("a is not there", number=1))
    keeper.send(ours, keeper.Done(number=2))
    keeping.drop("nic/b")
    keeper.send(ours, keeper.Refused("c is not there", number=3))
    with pytest.raises(PortError, match="c is not there"):
        keeping.drop("nic/c")


def test_a_silent_supervisor_is_waited_for_once(supervisor, monkeypatch):
    ours, keeping = supervisor
    limits_s = []
    monkeypatch.setattr(keeper, "receive", lambda sock: limits_s.append(sock.gettimeout()) or receive(sock))
    for _ in range(3):
        with pytest.raises(VnicError, match=r"no answer from the supervisor for \S+ s"):
            keeping.drop("nic/a")
    keeper.send(ours, keeper.Refused("a is not there", number=4))
    for says in ("a is not there", "no answer"):
        with pytest.raises(VnicError, match=says):
            keeping.drop("nic/a")
    assert limits_s == [0.05, 0.04, 0.04, 0.04, 0.05]


def test_what_another_version_stored_is_one_line():
    """A document of the form before kinds had names."""
    descriptor, _ = document(b'{"label": "pid 1", "request": {"type": "open_tap", "name": "eth0"}, "tap": {}}')
    with pytest.raises(VnicError, match="stored by another version of vnic; use `vnic down` and `vnic up`$"):
        keeper.kept_kind([descriptor])
    with pytest.raises(VnicError, match="stored by another version"):
        keeper.kept_nic([descriptor], None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_kind_that_is_not_known_is_refused_by_name():
    descriptor, _ = document(b'{"label": "pid 1", "kind": "warp", "request": {}, "report": {}}')
    with pytest.raises(
        VnicError,
        match=r"kind 'warp': there is none: expected one of tap, veth, packet, capture, module, vhost-user, memif, stream, dgram$",
    ):
        keeper.kept_nic([descriptor], None)

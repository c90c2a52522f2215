"""The numbers of the vhost-user protocol, under the specification's names (QEMU,
docs/interop/vhost-user.rst), and the error of a front end that violates it."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from dataplane.errors import VnicError
from virt.vhost_user.features import Feature

VERSION = 1
VERSION_MASK = 0b11
REPLY = 1 << 2
NEED_REPLY = 1 << 3

# Feature bits that belong to vhost-user: a driver never sees them.
LOG_ALL = int(Feature.LOG_ALL)
PROTOCOL_FEATURES = int(Feature.PROTOCOL_FEATURES)

RING_INDEX_MASK = 0xFF  # of SET_VRING_KICK, CALL and ERR
NO_DESCRIPTOR = 1 << 8  # of the same: the front end sends none
RING_LOG = 1 << 0  # VHOST_VRING_F_LOG of SET_VRING_ADDR

LOG_PAGE_BYTES = 4096  # one bit of the log
MOST_DESCRIPTORS = (
    8  # with one message: the regions of SET_MEM_TABLE (VHOST_MEMORY_BASELINE_NREGIONS)
)
MOST_CONFIG_BYTES = 256  # VHOST_USER_MAX_CONFIG_SIZE
MOST_RING_SIZE = 1 << 15  # Virtio, section 2.7: split and packed


class Request(IntEnum):
    """Messages of the front end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """Messages of the back end, on the socket of SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class ProtocolFeature(IntFlag):
    """Optional parts of the protocol (VHOST_USER_PROTOCOL_F_...)."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


class Status(IntFlag):
    """The device's status (Virtio, section 2.1), of SET_STATUS and GET_STATUS."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class ProtocolError(VnicError):
    """What the front end sent cannot be understood, or not be answered with a refusal: the
    connection ends."""


class Refused(ProtocolError):
    """A well-formed request that the device refuses. The front end is told if it asked for a reply;
    otherwise the connection ends, because the front end would rely on what did not happen."""

"""The state of a connected front end, and what each message does to it.

`handle` changes the books and stops rings; `settle` starts rings. Between the two, the caller
stores the books (connection.py). Every message may be handled twice, since the process can be
killed before the message is taken off the socket; the second time has the same effect and the same
reply:

- values are set, not changed: features, sizes, addresses, status, MTU, log;
- a descriptor takes a role's place, so that another duplicate of the same file replaces it;
- a region that is there already is added in its own place; one that is gone is removed again;
- a ring's position is in the books when it has stopped, so that GET_VRING_BASE tells it again;
- the memory of GET_INFLIGHT_FD is made anew: the front end never had the former one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from dataplane.descriptors import close_all, system_error
from dataplane.errors import ConfigError
from virt.vhost_user import inflight, memory, messages
from virt.vhost_user.books import BOOKS_VERSION, Books, Inflight, Log, Region
from virt.vhost_user.descriptors import Descriptors, check_event, check_file, check_socket
from virt.vhost_user.device import Device, Offer
from virt.vhost_user.features import OF_VHOST, Feature, names
from virt.vhost_user.messages import SHAPES, U64, Area, Message
from virt.vhost_user.protocol import (
    LOG_ALL,
    MOST_CONFIG_BYTES,
    PROTOCOL_FEATURES,
    ProtocolFeature,
    Refused,
    Request,
)
from virt.vhost_user.rings import Rings

LEAST_MTU, MOST_MTU = 68, 65535  # Virtio, section 5.1.4.1
_MOST_STATUS = 0xFF
_READY, _FAILED = U64.pack(0), U64.pack(1)  # of a reply that was asked for


class Reply(NamedTuple):
    """A reply's payload, and the role of the descriptor that goes with it."""

    payload: bytes
    descriptor: str = ""


class Session:
    """One front end's session with a device.

    books, descriptors  as stored by a predecessor; without them, a front end that has said nothing
    counts   messages by name; "refused" those that were refused; bounded by the protocol's names
    refusal  the last reason for a refusal, or ""
    """

    def __init__(
        self,
        device: Device,
        offer: Offer,
        books: Books | None = None,
        descriptors: Mapping[str, int] | None = None,
    ) -> None:
        self.device, self.offer = device, offer
        self.books = Books.of(offer.rings) if books is None else books
        self.descriptors = Descriptors(descriptors)
        self.rings = Rings(self.books, self.descriptors, device)
        self.counts: Counter[str] = Counter()
        self.refusal = ""
        self._offered = offer.features | PROTOCOL_FEATURES

    # -- life ------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Carries on from a predecessor's books. Raises ConfigError if this device does not offer
        what the front end relies on, or the stored descriptors are not those that the books name;
        OSError or Refused if the guest's memory cannot be mapped."""
        self._check_books()
        books = self.books
        self.device.apply_features(books.features & ~OF_VHOST)
        self.device.apply_memory(books.memory, self._of(books.memory))
        if books.log:
            self._apply_log()
        if books.inflight:
            self._apply_inflight(books.inflight)
        self.device.set_mtu(books.mtu)
        self.device.set_status(books.status)
        self.rings.settle(resumed=True)

    def _check_books(self) -> None:
        books, offer = self.books, self.offer
        if books.version != BOOKS_VERSION:
            raise ConfigError(
                f"books of version {books.version} were stored: expected {BOOKS_VERSION}; restart "
                "the guest"
            )
        if len(books.rings) != offer.rings:
            raise ConfigError(
                f"the guest's device has {len(books.rings)} rings: the NIC cannot have "
                f"{offer.rings} before the guest is restarted"
            )
        if missing := books.features & ~self._offered:
            raise ConfigError(
                f"the guest uses {', '.join(names(missing))}: the NIC must offer it until the "
                "guest is restarted"
            )
        if missing := books.protocol_features & ~offer.protocol_features:
            raise ConfigError(
                f"the front end uses {ProtocolFeature(missing)!r}: it must be offered"
            )
        held = self.descriptors.by_role().keys()
        if lost := sorted(books.roles() - held):
            raise ConfigError(f"descriptors of the guest were not stored: {', '.join(lost)}")
        self.descriptors.close(*(held - books.roles()))

    def settle(self) -> None:
        """Starts the rings that may run. After the books are stored: the device must not be ahead
        of them."""
        self.rings.settle()

    def close(self) -> None:
        """The front end went: nothing of it is left. The device keeps no memory, and no
        descriptor."""
        self.rings.stop_all()
        self.device.set_log(None, None)
        if self.books.inflight:
            self.device.set_inflight(None, None)
        self.device.apply_memory([], [])
        self.device.apply_features(0)
        self.device.set_mtu(0)
        self.device.set_status(0)
        self.descriptors.close_all()
        self.books = Books.of(self.offer.rings)
        self.rings = Rings(self.books, self.descriptors, self.device)

    # -- messages --------------------------------------------------------------------------------

    def handle(self, message: Message, descriptors: list[int]) -> Reply | None:
        """What a message does; takes over its descriptors. Returns the reply, if one is due.

        Raises ProtocolError if the connection has to end: the message makes no sense, or it is
        refused and asks for no reply, so that the front end would go on as if it had been done.
        """
        self.counts[message.request.name] += 1
        try:
            messages.check_descriptors(message, len(descriptors))
            reply = self._done(message, descriptors)
        except Refused as error:
            self.counts["refused"] += 1
            self.refusal = str(error)
            shape = SHAPES.get(message.request)
            if self._is_asked(message) and not (shape and shape.answered):
                return Reply(_FAILED)
            raise
        finally:
            close_all(descriptors)  # what no handler has taken
        if reply is None and self._is_asked(message):
            return Reply(_READY)
        return reply

    def _is_asked(self, message: Message) -> bool:
        """Whether the front end waits for an acknowledgement; also to the message that agrees on
        acknowledgements."""
        return message.needs_reply and self.books.agreed(ProtocolFeature.REPLY_ACK)

    def _done(self, message: Message, descriptors: list[int]) -> Reply | None:
        handler = _HANDLERS.get(message.request)
        if handler is None:
            raise Refused(f"{message.request.name}: not offered")
        feature = SHAPES[message.request].feature
        if not self.books.agreed(feature):
            raise Refused(f"{message.request.name}: {feature.name} was not agreed on")
        try:
            return handler(self, message, descriptors)
        except OSError as error:
            raise Refused(f"{message.request.name}: {system_error(error)}") from None

    # -- features --------------------------------------------------------------------------------

    def _get_features(self, message: Message, descriptors: list[int]) -> Reply:
        return _number(self._offered)

    def _set_features(self, message: Message, descriptors: list[int]) -> None:
        features = messages.u64(message)
        if strange := features & ~self._offered:
            raise Refused(f"SET_FEATURES: {', '.join(names(strange))}: not offered")
        changed = (features ^ self.books.features) & ~OF_VHOST
        if changed and self.rings.running:
            # QEMU repeats them as they are, for each pair of queues
            raise Refused(
                f"SET_FEATURES: {', '.join(names(changed))} changed while ring "
                f"{min(self.rings.running)} runs"
            )
        if changed:
            # What a disabled ring was started with is not what it would run with now.
            for index in range(len(self.books.rings)):
                self.rings.end(index)
            self.device.apply_features(features & ~OF_VHOST)
        logged = features & LOG_ALL != self.books.features & LOG_ALL
        self.books.features = features
        if logged and self.books.log:
            self._apply_log()
        if not features & PROTOCOL_FEATURES:
            for ring in self.books.rings:
                ring.enabled = True

    def _get_protocol_features(self, message: Message, descriptors: list[int]) -> Reply:
        return _number(self.offer.protocol_features)

    def _set_protocol_features(self, message: Message, descriptors: list[int]) -> None:
        features = messages.u64(message)
        if strange := features & ~self.offer.protocol_features:
            raise Refused(f"SET_PROTOCOL_FEATURES: {strange:#x}: not offered")
        self.books.protocol_features = features

    def _set_owner(self, message: Message, descriptors: list[int]) -> None:
        self.books.owned = True

    def _reset_owner(self, message: Message, descriptors: list[int]) -> None:
        """Ignored, as is recommended: front ends have meant different things by it."""

    # -- memory ----------------------------------------------------------------------------------

    def _set_mem_table(self, message: Message, descriptors: list[int]) -> None:
        areas = messages.table(message)
        memory.check_apart("SET_MEM_TABLE", areas)
        regions = [memory.of_area(area, f"memory{index}") for index, area in enumerate(areas)]
        if regions == self.books.memory and self._has_files(regions, descriptors):
            return
        self._apply_memory("SET_MEM_TABLE", regions, descriptors)
        # now they take the place of the former ones
        self.descriptors.close(*(region.descriptor for region in self.books.memory))
        for region in regions:
            self.descriptors.put(region.descriptor, descriptors.pop(0))
        self.books.memory = regions

    def _add_mem_reg(self, message: Message, descriptors: list[int]) -> None:
        """QEMU adds all regions again for each pair of queues, while other pairs run."""
        area = messages.region(message)
        same = [region for region in self.books.memory if memory.area_of(region) == area]
        if same and self._has_files(same, descriptors):
            return
        others = [region for region in self.books.memory if region not in same]
        if len(others) >= self.offer.memory_slots:
            most = self.offer.memory_slots
            raise Refused(f"ADD_MEM_REG: {len(others) + 1} regions: expected at most {most}")
        memory.check_apart("ADD_MEM_REG", [*map(memory.area_of, others), area])
        region = memory.of_area(area, memory.free_role(others))
        self._apply_memory("ADD_MEM_REG", [*others, region], descriptors)
        self.descriptors.close(*(each.descriptor for each in same))
        self.descriptors.put(region.descriptor, descriptors.pop())
        self.books.memory = [*others, region]

    def _rem_mem_reg(self, message: Message, descriptors: list[int]) -> None:
        """One that is not there is no error: the message may come a second time."""
        area = messages.region(message)
        kept = [region for region in self.books.memory if not _same_place(region, area)]
        gone = [region.descriptor for region in self.books.memory if region not in kept]
        if gone:
            self._apply_memory("REM_MEM_REG", kept, [])
            self.descriptors.close(*gone)
            self.books.memory = kept

    def _apply_memory(self, request: str, regions: list[Region], arrived: list[int]) -> None:
        """Has the device map the regions; the files of the last of them have just arrived. Rings
        that run are stopped first."""
        former = len(regions) - len(arrived)
        for region, descriptor in zip(regions[former:], arrived, strict=True):
            where = f"{request}: region at {region.guest_address:#x}"
            check_file(where, descriptor, region.offset + region.size)
        self.rings.stop_all()
        self.device.apply_memory(regions, [*self._of(regions[:former]), *arrived])

    def _has_files(self, regions: list[Region], arrived: list[int]) -> bool:
        """Whether the regions' files are those that have just arrived."""
        return all(map(os.path.sameopenfile, self._of(regions), arrived))

    def _of(self, regions: list[Region]) -> list[int]:
        return [self.descriptors[region.descriptor] for region in regions]

    def _get_max_mem_slots(self, message: Message, descriptors: list[int]) -> Reply:
        return _number(self.offer.memory_slots)

    # -- rings -----------------------------------------------------------------------------------

    def _get_queue_num(self, message: Message, descriptors: list[int]) -> Reply:
        return _number(self.offer.queue_pairs)  # pairs, for a network device

    def _get_vring_base(self, message: Message, descriptors: list[int]) -> Reply:
        base = self.rings.get_base(message)
        return Reply(messages.STATE.pack(messages.state(message).ring, base))

    # -- migration and recovery ------------------------------------------------------------------

    def _set_log_base(self, message: Message, descriptors: list[int]) -> Reply:
        area = messages.log_area(message)
        check_file("SET_LOG_BASE", descriptors[0], area.offset + area.size)
        log = Log(area.size, area.offset)
        if self.books.features & LOG_ALL:
            self.device.set_log(log, descriptors[0])
        self.descriptors.put(log.descriptor, descriptors.pop())
        self.books.log = log
        # not an acknowledgement: QEMU waits for it, whether or not it has set need_reply
        return Reply(_READY)

    def _apply_log(self) -> None:
        log = self.books.log if self.books.features & LOG_ALL else None
        self.device.set_log(log, self.descriptors[log.descriptor] if log else None)

    def _set_log_fd(self, message: Message, descriptors: list[int]) -> None:
        """Held, and not used: no front end that we know waits for it."""
        check_event("SET_LOG_FD", descriptors[0])
        self.books.log_event = self.descriptors.put("log_event", descriptors.pop())

    def _get_inflight_fd(self, message: Message, descriptors: list[int]) -> Reply:
        wanted = messages.inflight(message)
        inflight.check("GET_INFLIGHT_FD", wanted, len(self.books.rings))
        packed = bool(self.books.features & Feature.RING_PACKED)
        made, descriptor = inflight.make(wanted, packed=packed)
        descriptors.append(descriptor)  # closed with them, should the device refuse it
        self._take_inflight(made, descriptors)
        data = messages.INFLIGHT.pack(made.size, made.offset, made.queues, made.queue_size)
        return Reply(data[: len(message.payload)], made.descriptor)

    def _set_inflight_fd(self, message: Message, descriptors: list[int]) -> None:
        area = messages.inflight(message)
        inflight.check("SET_INFLIGHT_FD", area, len(self.books.rings))
        packed = bool(self.books.features & Feature.RING_PACKED)
        least = area.queues * inflight.region_bytes(area.queue_size, packed=packed)
        if area.size < least:
            raise Refused(f"SET_INFLIGHT_FD: {area.size} bytes: expected {least} at least")
        check_file("SET_INFLIGHT_FD", descriptors[0], area.offset + area.size)
        self._take_inflight(
            Inflight(area.size, area.offset, area.queues, area.queue_size), descriptors
        )

    def _take_inflight(self, found: Inflight, descriptors: list[int]) -> None:
        self.rings.stop_all()
        self.device.set_inflight(found, descriptors[0])
        self.descriptors.put(found.descriptor, descriptors.pop())
        self.books.inflight = found

    def _apply_inflight(self, found: Inflight) -> None:
        self.device.set_inflight(found, self.descriptors[found.descriptor])

    # -- the device ------------------------------------------------------------------------------

    def _get_config(self, message: Message, descriptors: list[int]) -> Reply:
        access = messages.config_access(message)
        if access.offset + access.size > MOST_CONFIG_BYTES:
            return Reply(b"")  # an error
        # Fields behind those that the device knows read as zero, and mean nothing by that.
        space = self.device.read_config().ljust(MOST_CONFIG_BYTES, b"\0")
        head = messages.CONFIG.pack(access.offset, access.size, access.flags)
        return Reply(head + space[access.offset : access.offset + access.size])

    def _set_config(self, message: Message, descriptors: list[int]) -> Reply | None:
        """All fields are read-only (section 5.1.4); what a driver writes there has no effect."""
        self.counts["refused"] += 1
        self.refusal = "SET_CONFIG: the configuration space is read-only"
        return Reply(_FAILED) if self._is_asked(message) else None

    def _set_status(self, message: Message, descriptors: list[int]) -> None:
        status = messages.u64(message)
        if status > _MOST_STATUS:
            raise Refused(f"SET_STATUS: {status:#x}: expected 0 to {_MOST_STATUS:#x}")
        self.device.set_status(status)
        self.books.status = status

    def _get_status(self, message: Message, descriptors: list[int]) -> Reply:
        return _number(self.books.status)  # as written: DPDK wants its FEATURES_OK back

    def _reset_device(self, message: Message, descriptors: list[int]) -> None:
        """Rings are ended and disabled, and as they were before they were set up; memory and
        descriptors stay, of which QEMU sends some only once."""
        for index, ring in enumerate(self.books.rings):
            self.rings.end(index)
            ring.enabled, ring.size, ring.base, ring.addresses = False, 0, 0, None
        self.device.apply_features(0)
        self.device.set_status(0)
        self.books.features = self.books.status = 0
        if self.books.log:
            self._apply_log()

    def _net_set_mtu(self, message: Message, descriptors: list[int]) -> None:
        mtu = messages.u64(message)
        if not LEAST_MTU <= mtu <= MOST_MTU:
            raise Refused(f"NET_SET_MTU: {mtu}: expected {LEAST_MTU} to {MOST_MTU}")
        self.device.set_mtu(mtu)
        self.books.mtu = mtu

    def _send_rarp(self, message: Message, descriptors: list[int]) -> None:
        self.device.announce(message.payload[:6])

    def _set_backend_req_fd(self, message: Message, descriptors: list[int]) -> None:
        check_socket("SET_BACKEND_REQ_FD", descriptors[0])
        self.books.requests = self.descriptors.put("requests", descriptors.pop())


def _number(value: int) -> Reply:
    return Reply(U64.pack(value))


def _same_place(region: Region, area: Area) -> bool:
    """REM_MEM_REG's offset does not count."""
    return memory.area_of(region)._replace(offset=area.offset) == area


_Handler = Callable[[Session, Message, list[int]], Reply | None]
_HANDLERS: dict[Request, _Handler] = {
    Request.GET_FEATURES: Session._get_features,
    Request.SET_FEATURES: Session._set_features,
    Request.SET_OWNER: Session._set_owner,
    Request.RESET_OWNER: Session._reset_owner,
    Request.SET_MEM_TABLE: Session._set_mem_table,
    Request.SET_LOG_BASE: Session._set_log_base,
    Request.SET_LOG_FD: Session._set_log_fd,
    Request.SET_VRING_NUM: lambda session, message, _: session.rings.set_size(message),
    Request.SET_VRING_ADDR: lambda session, message, _: session.rings.set_addresses(message),
    Request.SET_VRING_BASE: lambda session, message, _: session.rings.set_base(message),
    Request.GET_VRING_BASE: Session._get_vring_base,
    Request.SET_VRING_KICK: lambda session, message, fds: session.rings.set_kick(message, fds),
    Request.SET_VRING_CALL: lambda session, message, fds: session.rings.set_call(message, fds),
    Request.SET_VRING_ERR: lambda session, message, fds: session.rings.set_error(message, fds),
    Request.GET_PROTOCOL_FEATURES: Session._get_protocol_features,
    Request.SET_PROTOCOL_FEATURES: Session._set_protocol_features,
    Request.GET_QUEUE_NUM: Session._get_queue_num,
    Request.SET_VRING_ENABLE: lambda session, message, _: session.rings.set_enabled(message),
    Request.SEND_RARP: Session._send_rarp,
    Request.NET_SET_MTU: Session._net_set_mtu,
    Request.SET_BACKEND_REQ_FD: Session._set_backend_req_fd,
    Request.GET_CONFIG: Session._get_config,
    Request.SET_CONFIG: Session._set_config,
    Request.GET_INFLIGHT_FD: Session._get_inflight_fd,
    Request.SET_INFLIGHT_FD: Session._set_inflight_fd,
    Request.RESET_DEVICE: Session._reset_device,
    Request.GET_MAX_MEM_SLOTS: Session._get_max_mem_slots,
    Request.ADD_MEM_REG: Session._add_mem_reg,
    Request.REM_MEM_REG: Session._rem_mem_reg,
    Request.SET_STATUS: Session._set_status,
    Request.GET_STATUS: Session._get_status,
}

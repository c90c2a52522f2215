"""The queue `cake` in plain Python: flows found by a hash of eight ways, hosts in turn and flows in turn, COBALT in
each. One class on one line, in virtual time; packets of IPv4 and UDP, without GSO frames."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction

WORD = 2**64 - 1
FRAME = 1514
NONE, NEW, OLD = "none", "new", "old"


@dataclass
class Sent:
    """A packet of the twin. ecn: its sender knows marks."""

    number: int
    source: bytes
    destination: bytes
    ports: tuple[int, int]
    length: int
    ecn: bool
    arrived: int = 0
    marked: bool = False


def step(a: int, b: int) -> int:
    product = (a & WORD) * (b & WORD)
    return (product >> 64) ^ (product & WORD)


def splitmix(key: int, n: int) -> int:
    """Number n of a stream."""
    x = (key + (n + 1) * 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


class Blue:
    """The draws of BLUE: uniform 32-bit numbers."""

    def __init__(self, key: int) -> None:
        self.key, self.count = key, 0

    def draw(self) -> int:
        self.count += 1
        return splitmix(self.key, self.count - 1) >> 32


@dataclass
class Setting:
    """rate: bit/s; times in ns; limit: bytes."""

    rate: int
    rtt: int = 100_000_000
    sides: tuple[int, ...] = (0, 1)
    flows: int = 4096
    limit: int = 1 << 62
    quantum: int | None = None

    @property
    def frame(self) -> int:
        return FRAME * 8 * 10**9 // self.rate

    @property
    def target(self) -> int:
        return max(self.rtt // 20, 3 * FRAME * 8 * 10**9 // self.rate // 2)

    @property
    def interval(self) -> int:
        return max(self.rtt + self.target - self.rtt // 20, 2 * self.target)

    @property
    def long(self) -> int:
        return max(self.target, 4 * FRAME * 8 * 10**9 // self.rate)

    @property
    def turn(self) -> int:
        return self.quantum or min(max(self.rate // 8 // 4096, 300), FRAME)


class Cobalt:
    """sch_cake's cobalt_should_drop, cobalt_queue_full and cobalt_queue_empty, the last one for all the time that the
    queue was empty."""

    def __init__(self, setting: Setting, blue: Blue) -> None:
        self.setting, self.blue = setting, blue
        self.count = self.drop_next = self.blue_timer = self.p_drop = 0
        self.dropping = False

    def law(self, at: int, steps: int = 1) -> int:
        return at + int(float(steps) * float(self.setting.interval) / math.sqrt(max(self.count, 1)))

    def decay(self, now: int) -> None:
        while self.count and now >= self.drop_next:
            steps = self.count // 32 if self.count >= 64 else 1
            self.count -= steps
            self.drop_next = self.law(self.drop_next, steps)

    def verdict(self, now: int, sojourn: int, *, ecn: bool) -> str:
        """keep, mark, or what drops it: codel or blue."""
        schedule = now - self.drop_next
        next_due = self.count > 0 and schedule >= 0
        verdict = "keep"
        if sojourn > self.setting.long:
            if not self.dropping:
                self.dropping = True
                self.drop_next = self.law(now)
            self.count = self.count or 1
        else:
            self.dropping = False
        if next_due and self.dropping:
            verdict = "mark" if ecn else "codel"
            self.count += 1
            self.drop_next = self.law(self.drop_next)
            schedule = now - self.drop_next
        elif next_due:
            self.decay(now)
            schedule = min(now - self.drop_next, 0)
        if self.p_drop and verdict != "codel" and self.blue.draw() < self.p_drop:
            verdict = "blue"
        if self.count == 0:
            self.drop_next = now + self.setting.interval
        elif schedule > 0 and verdict in ("keep", "mark"):
            self.drop_next = now
        return verdict

    def queue_full(self, now: int) -> None:
        if now - self.blue_timer > self.setting.target:
            self.p_drop = min(self.p_drop + (1 << 24), 2**32 - 1)
            self.blue_timer = now
        self.dropping, self.drop_next = True, now
        self.count = self.count or 1

    def queue_empty(self, now: int) -> None:
        if self.p_drop and now - self.blue_timer > self.setting.target:
            self.p_drop = max(self.p_drop - (1 << 20), 0)
            self.blue_timer = now

    def wake(self, now: int) -> None:
        self.dropping = False
        self.decay(now)
        if self.count == 0:
            self.drop_next = now + self.setting.interval
        if self.p_drop:
            visits = (now - self.blue_timer) // self.setting.target
            self.p_drop = max(self.p_drop - (visits << 20), 0)
            self.blue_timer += visits * self.setting.target


class Table:
    """Numbers of hashes, in sets of eight. kept: free numbers that their hash gets again."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.owner: dict[int, int] = {}  # number -> hash
        self.used: set[int] = set()
        self.shared: set[int] = set()

    def claim(self, hash_: int) -> int:
        own = hash_ % self.count
        numbers = [own - own % 8 + (own + i) % 8 for i in range(8)]
        for number in numbers:
            if self.owner.get(number) == hash_:
                return number
        if own in self.shared:
            return own
        free = [number for number in numbers if number not in self.used]
        free = [number for number in free if number not in self.owner] or free
        if not free:
            self.shared.add(own)
            return own
        self.owner[free[0]] = hash_
        return free[0]

    def release(self, number: int, *, keep: bool = False) -> None:
        self.used.discard(number)
        self.shared.discard(number)
        if not keep:
            del self.owner[number]


@dataclass
class Flow:
    cobalt: Cobalt
    hash: int
    packets: deque[Sent] = field(default_factory=deque)
    place: str = NONE
    deficit: int = 0
    hosts: list[int] = field(default_factory=list)
    turn: int | None = None

    @property
    def bytes(self) -> int:
        return sum(each.length for each in self.packets)


@dataclass
class Host:
    """users: flows of any list; busy: those that queue, wherever; flows: those that queue here."""

    users: int = 0
    busy: int = 0
    flows: deque[int] = field(default_factory=deque)
    deficit: int = 0


class Cake:
    def __init__(self, setting: Setting, keys: tuple[int, int], blue: int) -> None:
        self.setting, self.keys, self.blue = setting, keys, Blue(blue)
        self.clock = Fraction(0)
        self.flows: dict[int, Flow] = {}
        self.hosts: dict[int, Host] = {}
        self.flow_table = Table(setting.flows)
        self.host_table = Table(setting.flows * max(len(setting.sides), 1))
        self.new: deque[int] = deque()
        self.old: deque[int] = deque()  # without hosts
        self.waiting: deque[int] = deque()  # hosts
        self.packets = self.bytes = 0
        self.left: list[tuple[int, int, bool]] = []  # (time, number, marked)
        self.dropped: dict[str, list[int]] = {"queue_full": [], "codel": [], "blue": []}

    # -- hashes ------------------------------------------------------------------------------------

    def flow_hash(self, p: Sent) -> int:
        first, second = self.keys
        addresses = int.from_bytes(p.source + p.destination, "little")
        rest = 17 | p.ports[0] << 16 | p.ports[1] << 32
        return step(step(addresses ^ first, second) ^ first, rest ^ second)

    def host_hash(self, p: Sent, side: int) -> int:
        first, second = self.keys[::-1] if side else self.keys
        address = int.from_bytes(p.destination if side else p.source, "little")
        return step(step(address ^ first, second) ^ first, second)

    # -- arrival -----------------------------------------------------------------------------------

    def arrive(self, now: int, p: Sent) -> None:
        self.serve(now)
        p.arrived = now
        if self.packets == 0:
            self.clock = max(self.clock, Fraction(now))
            if self.clock <= now:
                self.send(now, p)
                return
        number = self.flow_of(p)
        flow = self.flows[number]
        if not flow.packets:
            flow.cobalt.wake(now)
        flow.packets.append(p)
        self.packets, self.bytes = self.packets + 1, self.bytes + p.length
        if flow.place == NONE:
            busy = max([1, *(self.hosts[host].busy for host in flow.hosts)])
            flow.place, flow.deficit = NEW, max(self.setting.turn // busy, 1)
            self.new.append(number)
        while self.packets > 1 and self.bytes > self.setting.limit:
            longest = min(self.flows, key=lambda each: (-self.flows[each].bytes, each))
            self.dropped["queue_full"].append(self.pop(self.flows[longest]).number)
            self.flows[longest].cobalt.queue_full(now)
        self.serve(now)

    def flow_of(self, p: Sent) -> int:
        hash_ = self.flow_hash(p)
        number = self.flow_table.claim(hash_)
        if number in self.flow_table.used:
            return number
        self.flow_table.used.add(number)
        flow = self.flows.get(number)
        if flow is None or flow.hash != hash_:
            flow = self.flows[number] = Flow(Cobalt(self.setting, self.blue), hash_)
        flow.hosts = []
        for side in self.setting.sides:
            host = self.host_table.claim(self.host_hash(p, side))
            self.host_table.used.add(host)
            self.hosts.setdefault(host, Host()).users += 1
            flow.hosts.append(host)
        return number

    # -- departure ---------------------------------------------------------------------------------

    def serve(self, until: int) -> None:
        while self.packets and (now := math.ceil(self.clock)) <= until:
            self.send(now, self.take(now))

    def send(self, now: int, p: Sent) -> None:
        self.left.append((now, p.number, p.marked))
        self.clock += Fraction(p.length * 8 * 10**9, self.setting.rate)

    def take(self, now: int) -> Sent:
        while True:
            flow = self.flows[self.next_flow()]
            while True:
                p = self.pop(flow)
                verdict = flow.cobalt.verdict(now, now - p.arrived, ecn=p.ecn)
                if verdict in ("keep", "mark") or not flow.packets:  # the last one is not dropped
                    break
                self.dropped[verdict].append(p.number)
            p.marked = verdict == "mark"
            flow.deficit -= p.length
            if flow.turn is not None and flow.place == OLD:
                self.hosts[flow.turn].deficit -= p.length << 16
            if not flow.packets:
                flow.cobalt.queue_empty(now)
            return p

    def next_flow(self) -> int:
        while True:
            flows = self.new or (self.hosts[self.next_host()].flows if self.setting.sides else self.old)
            number = flows[0]
            flow = self.flows[number]
            if flow.deficit > 0 and flow.packets:
                return number
            flows.popleft()
            if flow.deficit <= 0:
                flow.deficit += self.setting.turn
            elif flow.place == OLD or not (self.old or self.waiting):
                self.end(number)
                continue
            self.queue(number)

    def next_host(self) -> int:
        while True:
            number = self.waiting[0]
            host = self.hosts[number]
            if host.deficit > 0 and host.flows:
                return number
            self.waiting.popleft()
            if host.deficit <= 0:
                host.deficit += self.quantum_of(host)
                self.waiting.append(number)
            else:
                self.free(number)

    def quantum_of(self, host: Host) -> int:
        """In 1/65536 bytes."""
        whole = self.setting.turn << 16
        return whole * len(host.flows) // host.busy if 0 < len(host.flows) < host.busy else whole

    def queue(self, number: int) -> None:
        flow = self.flows[number]
        if flow.place != OLD:
            flow.place = OLD
            for host in flow.hosts:
                self.hosts[host].busy += 1
        if not flow.hosts:
            self.old.append(number)
            return
        flow.turn = max(flow.hosts, key=lambda each: self.hosts[each].busy)  # the source of equal ones
        host = self.hosts[flow.turn]
        host.flows.append(number)
        if flow.turn not in self.waiting:
            self.waiting.append(flow.turn)
            host.deficit = self.quantum_of(host)

    def end(self, number: int) -> None:
        flow = self.flows[number]
        for each in flow.hosts:
            self.hosts[each].users -= 1
            self.hosts[each].busy -= flow.place == OLD
            self.free(each)
        flow.place, flow.turn = NONE, None
        keep = flow.cobalt.count > 0 or flow.cobalt.p_drop > 0
        self.flow_table.release(number, keep=keep)
        if not keep:
            del self.flows[number]

    def free(self, number: int) -> None:
        if self.hosts[number].users == 0 and number not in self.waiting and number in self.host_table.used:
            self.host_table.release(number)

    def pop(self, flow: Flow) -> Sent:
        p = flow.packets.popleft()
        self.packets, self.bytes = self.packets - 1, self.bytes - p.length
        return p

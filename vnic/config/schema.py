"""The schema of configuration files as typed structs, and as a JSON Schema (`vnic config schema`).

Values are parsed where they enter (`convert.py`): a rate in these structs is in bit/s, a time in
nanoseconds, a MAC address in lower case. Code that builds a struct uses the same types:
`NicConfig(name="web", pid=42, egress=DirectionConfig(rate=Rate("1mbit")))`.

Each field is described in two places. The docstring of its struct says what the field does, one
entry a field. The `description` of its type says which values are accepted; an error quotes it.
`reference.py` makes the configuration reference and the descriptions in the JSON Schema of both.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from dataplane.config.scalars import (
    RSS_KEY_BYTES,
    SCALARS,
    Address,
    Ageing,
    CpuPeriod,
    CpuTime,
    Gateway,
    Mac,
    Network,
    QueueTime,
    Rate,
    RssKey,
    SchemaError,
    Slo,
    Spin,
    TurnBudget,
    User,
)
from dataplane.errors import ConfigError
from vnic.config.policy_term import PolicyTerm

# RFC 791's least IPv4 MTU; 65,535 bytes of a frame less an Ethernet header (Linux' ETH_MAX_MTU for
# TAP)
MTU_LEAST, MTU_MOST = 68, 65521
QUEUES_MOST = 64
ENGINES_MOST = 64
LINKS_MOST = 512  # each has a port on two switches, and there are 1024 ports
HOPS_MOST = 4096  # one-way links: some for each NIC
ADDRESSES_MOST, ROUTES_MOST = 64, 256  # of a NIC; vnic.device.tap has the same bounds

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(?!\n)$"
Name = Annotated[
    str,
    Meta(
        pattern=NAME_PATTERN,
        max_length=32,
        description="a name of 1 to 32 letters, digits, '_', '.', '-', a letter or digit first",
        examples=["limit"],
    ),
]
# Without a dot: elements of a link are named LINK.SWITCH.ELEMENT.
NODE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(?!\n)$"
NodeName = Annotated[
    str,
    Meta(
        pattern=NODE_PATTERN,
        max_length=32,
        description="a name of 1 to 32 letters, digits, '_', '-', a letter or digit first",
        examples=["lan"],
    ),
]
LINK_NAME_MOST = 66
LinkName = Annotated[
    str,
    Meta(
        pattern=NODE_PATTERN,
        max_length=LINK_NAME_MOST,
        description="a name of 1 to 66 letters, digits, '_', '-', a letter or digit first",
        examples=["uplink"],
    ),
]
InterfaceName = Annotated[
    str,
    Meta(
        pattern=r"^(?!\.{1,2}$)[^\s/:%\x00-\x20]+(?!\n)$",
        max_length=15,
        description="an interface name of 1 to 15 characters without space, '/', ':' or '%'",
        examples=["eth0"],
    ),
]
CgroupPath = Annotated[
    str,
    Meta(
        pattern=r"^/[^\x00-\x1f]*(?!\n)$",
        max_length=4095,
        description="the absolute path of a cgroup's directory, such as /sys/fs/cgroup/tenant",
    ),
]
SocketPath = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4095,
        description="the path of a Unix socket, or an address such as 127.0.0.1:5000",
        examples=["/run/vm1.sock"],
    ),
]
Features = Annotated[
    list[Annotated[str, Meta(max_length=32, description="a feature's name, such as packed")]],
    Meta(
        max_length=64,
        description="a list of features' names, such as [packed, uso]",
        examples=[["packed", "uso"]],
    ),
]
VlanId = Annotated[int, Meta(ge=1, le=4094, description="a VLAN number, 1 to 4094", examples=[10])]
IndirectionTable = Annotated[
    list[Annotated[int, Meta(ge=0, lt=QUEUES_MOST, description="a queue's number, from 0")]],
    Meta(
        min_length=1,
        max_length=512,
        description="a list of queue numbers whose length is a power of two up to 512",
        examples=[[0, 0, 0, 0]],
    ),
]


IMPLIED_SWITCH = "switch"  # the name of the switch where `nodes` has none


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    HIDDEN: ClassVar[tuple[str, ...]] = ()  # fields that the loader fills and a file may not


class GuaranteeConfig(_Strict):
    """CPU time that each thread of a group is guaranteed, and limited to.

    runtime: CPU time that a thread gets in each period.
    period: Length of the period.
    """

    runtime: Annotated[CpuTime, Meta(description="a time such as 900us", examples=["900us"])]
    period: Annotated[CpuPeriod, Meta(description="a time such as 1ms")]

    def __post_init__(self) -> None:
        if self.runtime > self.period:
            raise SchemaError(
                f"runtime {self.runtime} is more than the period: expected at most {self.period}"
            )


class GroupConfig(_Strict):
    """An engine group: how its engines get CPU time.

    mode: Scheduling mode. `spreading` gives each engine a thread of its own that sleeps when idle;
        `compacting` packs the engines onto as few threads as keep the queueing delay below `slo`;
        `dedicated` runs them on threads that poll without sleeping, one pinned to each CPU of
        `cpus`.
    cpus: CPUs that the threads of the group may run on. Default: all CPUs of the process. A
        dedicated group needs it.
    spin: Time that an idle thread polls before it sleeps. Default: the value of the top-level
        `spin`.
    slo: Queueing delay that a compacting group keeps its engines below by moving them to other
        threads.
    budget: Longest duration of one iteration of an engine; longer ones are counted as overruns. 0:
        no limit.
    guarantee: CPU time for each thread of the group. The kernel enforces it (SCHED_DEADLINE or
        SCHED_RR) where it permits that; elsewhere it is an upper bound only. Default: no guarantee.
    cgroup: Cgroups that the threads of the group join, so that the kernel charges and limits their
        CPU time. The cgroups must exist already.
    """

    mode: Annotated[
        Literal["dedicated", "spreading", "compacting"],
        Meta(description="dedicated, spreading or compacting", examples=["compacting"]),
    ] = "spreading"
    cpus: Annotated[
        list[Annotated[int, Meta(ge=0, le=4095, description="the number of a CPU, from 0")]] | None,
        Meta(description="a list of CPU numbers, such as [0, 1]", examples=[[0, 1]]),
    ] = None
    spin: Annotated[Spin | None, Meta(description="a time such as 20us, or 0")] = None
    slo: Annotated[Slo, Meta(description="a time such as 50us")] = msgspec.field(
        default_factory=lambda: Slo("50us")
    )
    budget: Annotated[TurnBudget, Meta(description="a time such as 1ms, or 0")] = msgspec.field(
        default_factory=lambda: TurnBudget("1ms")
    )
    guarantee: Annotated[
        GuaranteeConfig | None,
        Meta(
            description="{runtime: 900us, period: 1ms}",
            examples=[{"runtime": "900us", "period": "1ms"}],
        ),
    ] = None
    # A file may give one path in place of a list. (Not a union type here: msgspec 0.22 frees a
    # union of a str with a pattern and a list incorrectly.)
    cgroup: Annotated[
        list[CgroupPath],
        Meta(
            description="the absolute path of a cgroup, or a list with one path for each hierarchy",
            examples=[["/sys/fs/cgroup/tenant"]],
        ),
    ] = []

    def __post_init__(self) -> None:
        if len(set(self.cgroup)) != len(self.cgroup):
            raise SchemaError("cgroup names one twice: list each once")
        if self.mode == "dedicated" and not self.cpus:
            raise SchemaError("dedicated needs CPUs of its own, such as cpus: [1]")
        if self.cpus is not None and (not self.cpus or len(set(self.cpus)) != len(self.cpus)):
            raise SchemaError("cpus is empty or names one twice: expected cpus: [0, 1]")


class EngineConfig(_Strict):
    """An engine: a task that runs elements on a thread of its group.

    name: Name of the engine in commands and counters. Default: `e` and the engine's number, so
        `e0`.
    spin: Time that the engine's thread polls before it sleeps. Default: the `spin` of its group.
    cpu: CPU that the engine's thread is bound to. Only for engines of a spreading group; other
        groups have `cpus`. Default: any CPU of the group.
    group: Engine group that the engine belongs to. Default: the first entry of `groups`.
    """

    name: Annotated[str, Meta(description="a name such as fast", examples=["fast"])] | None = None
    spin: Annotated[Spin | None, Meta(description="a time such as 20us, or 0")] = None
    cpu: (
        Annotated[int, Meta(ge=0, le=4095, description="the number of a CPU, from 0", examples=[1])]
        | None
    ) = None
    group: (
        Annotated[str, Meta(description="the name of an engine group", examples=["default"])] | None
    ) = None


class ModuleConfig(_Strict):
    """A module that extends the control API; all other keys are keyword arguments of its
    constructor.

    module: Python class of the module. Its file is searched for beside the configuration file
        first.
    """

    HIDDEN = ("arguments",)

    module: Annotated[str, Meta(description="module:Class", examples=["echo:Echo"])]
    arguments: dict[str, Any] = {}


class ClientConfig(_Strict):
    """Limits for a user who may attach containers to this instance besides its owner.

    nics: Number of NICs that the user may attach.
    vlans: VLANs that the user's NICs may belong to; a NIC without `vlan` is an access port of the
        first. Default: the user may set no `vlan`.
    rate: Upper limit of each rate of the user's NICs. Default: no limit.
    queues: Queue pairs that each NIC of the user may have.
    group: Engine group whose engines serve the user's NICs. Default: all groups.
    pool_percent: Share of the packet pool that may wait in the shapers of all of the user's NICs
        together.
    on: Switch that the user's NICs are connected to. Default: the only switch; required where there
        are several.
    """

    nics: Annotated[int, Meta(ge=0, le=1024, description="a number of NICs, 0 to 1024")] = 16
    vlans: (
        Annotated[
            list[VlanId],
            Meta(
                min_length=1,
                description="a list of VLAN numbers, such as [10, 20]",
                examples=[[10, 20]],
            ),
        ]
        | None
    ) = None
    rate: Annotated[Rate | None, Meta(description="a rate such as 1gbit", examples=["1gbit"])] = (
        None
    )
    queues: Annotated[
        int, Meta(ge=1, le=QUEUES_MOST, description=f"a number of queue pairs, 1 to {QUEUES_MOST}")
    ] = 4
    group: (
        Annotated[str, Meta(description="the name of an engine group", examples=["default"])] | None
    ) = None
    pool_percent: Annotated[
        int,
        Meta(ge=1, le=100, description="a percentage of the packet pool, 1 to 100"),
    ] = 25
    on: Annotated[str, Meta(description="the name of a switch", examples=["switch"])] | None = None


class PoolConfig(_Strict):
    """Size of the packet pool: the number of packets that vnic can hold at once.

    small: Buffers of 2 KiB, for frames up to the usual MTU.
    large: Buffers of 68 KiB, for GSO frames and jumbo frames.
    """

    small: Annotated[
        int, Meta(ge=64, le=1 << 20, description="a number of 2 KiB buffers, 64 to 1048576")
    ] = 16384
    large: Annotated[
        int, Meta(ge=16, le=1 << 16, description="a number of 68 KiB buffers, 16 to 65536")
    ] = 1024


class SwitchConfig(_Strict):
    """The learning switch that connects all NICs.

    ageing: Time after which an address that sends nothing is removed from the table.
    table: Addresses that the table holds. Frames to addresses that do not fit are flooded.
    """

    ageing: Annotated[Ageing, Meta(description="a time such as 300s")] = msgspec.field(
        default_factory=lambda: Ageing("300s")
    )
    table: Annotated[
        int, Meta(ge=16, le=1 << 20, description="a number of addresses, 16 to 1048576")
    ] = 4096


class NodeConfig(_Strict):
    """A node of the network: a switch, or an element that one-way links lead packets through. All
    other keys of an element's node are keyword arguments of the element's constructor.

    A text stands for a node with the defaults: `lan: switch`, `seen: Counter`.

    switch: A learning switch with its settings; `{}` for the defaults.
    element: Class of the element: a built-in one (`vnic element` lists them) or a Python class,
        whose file is searched for beside the configuration file first.
    engine: Engine that runs the element, by number or name. Default: the first.
    """

    HIDDEN = ("arguments", "where")

    switch: Annotated[
        SwitchConfig | None,
        Meta(description="{ageing: 300s, table: 4096}", examples=[{"table": 16384}]),
    ] = None
    element: Annotated[
        str | None,
        Meta(
            description="a built-in element's name such as Counter, or module:Class",
            examples=["Counter"],
        ),
    ] = None
    engine: Annotated[
        int | str | None,
        Meta(description="an engine's number, from 0, or its name", examples=["e0"]),
    ] = None
    arguments: dict[str, Any] = {}  # the element's keyword arguments
    where: str = ""  # "FILE:LINE", for errors that show when the element is made

    def __post_init__(self) -> None:
        if (self.switch is None) == (self.element is None):
            raise SchemaError("needs either switch or element: {switch: {}} or {element: Counter}")
        if self.switch is not None and (self.engine is not None or self.arguments):
            raise SchemaError("is a switch, which every engine has: expected {switch: {...}} alone")


class VlanConfig(_Strict):
    """VLAN membership of a NIC: an access port of one VLAN, a trunk of several, or a port of
    untagged frames.

    access: VLAN of an access port: the container sends and receives untagged frames.
    trunk: VLANs of a trunk port: the container sends and receives tagged frames.
    untagged: Untagged and priority-tagged frames (VLAN 0) only; tagged frames are dropped.
    native: VLAN of the untagged frames on a trunk. Default: untagged frames are dropped.
    """

    access: VlanId | None = None
    trunk: Annotated[
        list[VlanId] | None,
        Meta(description="a list of VLAN numbers, such as [10, 20]", examples=[[10, 20]]),
    ] = None
    native: VlanId | None = None
    untagged: Annotated[bool, Meta(description="true or false", examples=[True])] = False

    def __post_init__(self) -> None:
        if (self.access is not None) + (self.trunk is not None) + self.untagged != 1:
            raise SchemaError(
                "needs exactly one of access, trunk and untagged: {access: 10}, {trunk: [10, 20]} "
                "or {untagged: true}"
            )
        if self.native is not None and self.trunk is None:
            raise SchemaError("native belongs to a trunk: expected {trunk: [10, 20], native: 1}")
        if self.trunk is not None and (not self.trunk or len(set(self.trunk)) != len(self.trunk)):
            raise SchemaError("trunk is empty or names a VLAN twice: expected {trunk: [10, 20]}")


class LinkVlanConfig(_Strict):
    """VLANs that a link carries, as a port of both switches.

    access: The one VLAN of the link, whose frames have no tag on it.
    trunk: VLANs whose frames have a tag on the link.
    untagged: Untagged and priority-tagged frames (VLAN 0) only.
    """

    # No native VLAN: a frame whose outer tag is removed on the link would belong to the VLAN of a
    # second tag that its sender wrote behind it.
    native: ClassVar[None] = None

    access: VlanId | None = None
    trunk: Annotated[
        list[VlanId] | None,
        Meta(description="a list of VLAN numbers, such as [10, 20]", examples=[[10, 20]]),
    ] = None
    untagged: Annotated[bool, Meta(description="true or false", examples=[True])] = False

    def __post_init__(self) -> None:
        if (self.access is not None) + (self.trunk is not None) + self.untagged != 1:
            raise SchemaError(
                "needs exactly one of access, trunk and untagged: {access: 10}, {trunk: [10, 20]} "
                "or {untagged: true}"
            )
        if self.trunk is not None and (not self.trunk or len(set(self.trunk)) != len(self.trunk)):
            raise SchemaError("trunk is empty or names a VLAN twice: expected {trunk: [10, 20]}")


class OffloadConfig(_Strict):
    """Work that the container's network stack leaves to the NIC.

    checksum: Checksum offload: packets may come without their TCP or UDP checksum. Segmentation
        needs it.
    tso: TCP segmentation offload (IPv4 and IPv6): the container sends frames of up to 64 KB.
    uso: UDP segmentation offload, which needs Linux 6.2 or newer; ignored by older kernels.
    """

    checksum: Annotated[bool, Meta(description="true or false")] = True
    tso: Annotated[bool, Meta(description="true or false")] = True
    uso: Annotated[bool, Meta(description="true or false")] = True

    def __post_init__(self) -> None:
        if not self.checksum and (self.tso or self.uso):
            raise SchemaError(
                "segmentation needs checksum offload: "
                "expected {checksum: false, tso: false, uso: false}"
            )


class RssConfig(_Strict):
    """Receive-side scaling: how flows are distributed over the queues of the NIC.

    key: Key of the Toeplitz hash. Default: a fixed key, so that the distribution is the same on
        each run.
    table: Indirection table: the low bits of a flow's hash select an entry, which is the flow's
        queue. Default: 128 entries that name the queues in turn.
    """

    key: Annotated[
        RssKey | None,
        Meta(
            description=f"{RSS_KEY_BYTES} bytes in hexadecimal, in quotes",
            examples=["6d5a56da" * 10],
        ),
    ] = None
    table: IndirectionTable | None = None

    def __post_init__(self) -> None:
        if self.table is not None and len(self.table) & (len(self.table) - 1):
            raise SchemaError(f"table has {len(self.table)} entries: expected a power of two")


class FeaturesConfig(_Strict):
    """Features of virtio-net that a driver is offered. A machine can move between two hosts, or two
    versions of vnic, that offer it the same.

    without: Features that are not offered, nor those that need them.
    only: Features that are offered, besides `version_1`, and if this vnic has them. Default: all
        that it has.
    """

    without: Features = []
    only: Features | None = None

    def __post_init__(self) -> None:
        from virt.vhost_user.features import Feature, parse_names

        for name, wanted in (("only", self.only), ("without", self.without)):
            try:
                found = parse_names(wanted or ())
            except ConfigError as error:
                raise SchemaError(f"{name}: {error}") from None
        if Feature.VERSION_1 in found:
            raise SchemaError("without: version_1 is needed by all others: expected other features")
        if self.only is not None and self.without:
            raise SchemaError("has both without and only: choose one of them")


class ElementConfig(_Strict):
    """An element of a chain; all other keys are keyword arguments of its constructor.

    A text stands for an element without arguments: `[Counter]` is `[{element: Counter}]`.

    element: Class of the element: a built-in one (`vnic element` lists them) or a Python class,
        whose file is searched for beside the configuration file first.
    name: Name of the element, appended to the names of NIC and direction, as in `web.egress.limit`.
        Default: the class in lower case. A number is appended where the name occurs twice.
    branches: Elements behind each output, by the output's number. All branches rejoin at the
        element that follows in the chain, or at the NIC's shaper.
    """

    HIDDEN = ("arguments", "where", "shapes")

    element: Annotated[
        str,
        Meta(
            description="a built-in element's name such as Counter, or module:Class",
            examples=["Counter"],
        ),
    ]
    name: Name | None = None
    branches: Annotated[
        dict[int, list[ElementConfig]],
        Meta(
            description="a mapping from output number to a list of elements",
            examples=[{0: ["Discard"]}],
        ),
    ] = {}
    arguments: dict[str, Any] = {}  # the constructor's keyword arguments
    where: str = ""  # "FILE:LINE", for errors that show when the element is made
    shapes: bool = False  # it belongs to the policy of `shape`


class DirectionConfig(_Strict):
    """Processing of packets in one direction.

    rate: Rate limit: bits of layer-2 frames without preamble and FCS, a second. Default: no limit.
    queue: Longest time that a packet may wait for the rate. The bytes of that time at the rate are
        the queue's bound, segments of GSO frames counted one by one; an empty queue takes one frame
        of any length, and further packets are dropped.
    elements: Chain of elements that packets pass: on the way out before the shaper and the switch,
        on the way in behind the switch and before the shaper.
    """

    rate: Annotated[
        Rate | None,
        Meta(description="a rate of layer-2 bits without preamble and FCS, such as 100mbit"),
    ] = None
    queue: Annotated[QueueTime, Meta(description="a time such as 100ms")] = msgspec.field(
        default_factory=lambda: QueueTime("100ms")
    )
    elements: Annotated[
        list[ElementConfig],
        Meta(
            description="a list of elements in the order that packets pass them",
            examples=[
                [
                    {
                        "element": "Classifier",
                        "name": "split",
                        "rules": [{"protocol": "udp"}],
                        "branches": {0: [{"element": "Shaper", "rate": "5mbit"}]},
                    }
                ]
            ],
        ),
    ] = []


class LinkConfig(_Strict):
    """A link between two switches, whose packets pass it in both directions; or one-way links.

    A text stands for a link without settings: `[lan -- dmz]` is `[{link: lan -- dmz}]`. A text with
    arrows is a row of one-way links, such as `web -> split[1] -> seen -> lan`: packets from the
    container of NIC `web` go to the element `split`; packets that leave `split` by its output 1 (0
    if not given) go to the element `seen` and then to the switch. A row begins at a NIC or an
    element and ends at an element, a switch, or a NIC, whose container receives the packets.
    One-way links have no settings.

    link: The two switches, with ` -- ` between them. Several links must not make a loop for any
        VLAN.
    name: Name of the link in commands and counters. Default: the two names, so `lan--dmz`.
    vlan: VLANs that the link carries, as a port of both switches. Default: all frames, as they are.
    rate: Rate limit of each direction. Default: no limit.
    queue: Longest time that a packet may wait for the rate, see `nics.egress.queue`.
    elements: Chain of elements that packets pass before the rate limit, in each direction.
    to: Settings of one direction, by the name of the switch that it leads to; for a link whose
        directions differ. Excludes `rate`, `queue` and `elements`.
    engine: Engine that runs the elements and rate limits of the link, by number or name. Default:
        the first. A link without either needs no engine of its own: each engine forwards its
        packets itself.
    """

    HIDDEN = ("where", "numbers")

    link: Annotated[
        str,
        Meta(
            pattern=r"^\s*[A-Za-z0-9][A-Za-z0-9_-]*\s+--\s+[A-Za-z0-9][A-Za-z0-9_-]*\s*(?!\n)$",
            max_length=80,
            description="two switches, such as lan -- dmz",
            examples=["lan -- dmz"],
        ),
    ]
    name: LinkName | None = None
    vlan: Annotated[
        LinkVlanConfig | None,
        Meta(
            description="{trunk: [10, 20]}, {access: 10} or {untagged: true}",
            examples=[{"trunk": [10, 20]}],
        ),
    ] = None
    rate: Annotated[
        Rate | None,
        Meta(description="a rate of layer-2 bits without preamble and FCS, such as 100mbit"),
    ] = None
    queue: Annotated[QueueTime | None, Meta(description="a time such as 100ms")] = None
    elements: Annotated[
        list[ElementConfig],
        Meta(
            description="a list of elements in the order that packets pass them",
            examples=[[{"element": "Counter", "name": "seen", "branches": {}}]],
        ),
    ] = []
    to: Annotated[
        dict[str, DirectionConfig],
        Meta(
            description="a mapping from a switch to {rate: 100mbit, queue: 100ms, elements: [...]}",
            examples=[{"dmz": {"rate": "20mbit"}, "lan": {"rate": "100mbit"}}],
        ),
    ] = {}
    engine: Annotated[
        int | str | None,
        Meta(description="an engine's number, from 0, or its name", examples=["e0"]),
    ] = None
    where: str = ""  # "FILE:LINE", for errors that show when it is made
    # numbers of its ports on the two switches, once assigned
    numbers: list[Annotated[int, Meta(ge=0, lt=1024)]] = []

    def __post_init__(self) -> None:
        first, second = self.ends
        self.link = f"{first} -- {second}"
        if first == second:
            raise SchemaError(f"{self.link} leads from a switch to itself: expected two switches")
        self.name = self.name or f"{first}--{second}"[:LINK_NAME_MOST]
        if self.to and (self.rate is not None or self.queue is not None or self.elements):
            raise SchemaError(
                "has both to and settings of all directions: "
                "give rate, queue and elements in to alone"
            )
        if stray := sorted(set(self.to) - {first, second}):
            raise SchemaError(
                f"to: {stray[0]} is not a switch of the link: expected {first} or {second}"
            )
        if self.rate is not None or self.queue is not None or self.elements:
            queue = {} if self.queue is None else {"queue": self.queue}
            for end in self.ends:
                self.to[end] = DirectionConfig(
                    rate=self.rate, elements=list(self.elements), **queue
                )
            self.rate, self.queue, self.elements = None, None, []
        for end in self.ends if self.to else ():
            self.to.setdefault(end, DirectionConfig())

    @property
    def ends(self) -> tuple[str, str]:
        """The two switches."""
        first, _, second = (
            self.link.partition("--") if " -- " not in self.link else self.link.partition(" -- ")
        )
        return first.strip(), second.strip()

    @property
    def plain(self) -> bool:
        """Whether it has neither elements nor rates nor an engine, so that each engine forwards its
        packets itself. A link whose rate is removed while it runs keeps its engine."""
        return self.engine is None and all(
            not way.elements and way.rate is None for way in self.to.values()
        )


class HopConfig(_Strict):
    """A one-way link: packets that leave `source` by `output` go to `target`.

    source: A NIC, for packets that its container sends, or a node that is an element.
    output: Output of the element, from 0.
    target: A node, or a NIC, for packets that its container receives.
    """

    HIDDEN = ("where",)

    source: str
    output: int
    target: str
    where: str = ""  # "FILE:LINE"

    @property
    def text(self) -> str:
        """The link in the form of a file."""
        return f"{self.source}{f'[{self.output}]' if self.output else ''} -> {self.target}"


class RouteConfig(_Strict):
    """A route of the container through its NIC, as `ip route add` takes it.

    to: Destination network, or `default` for all destinations that no other route covers.
    via: Address of the gateway. Default: the destination is on the link. The default route needs a
        gateway.
    """

    to: Annotated[Network, Meta(description="a network such as 10.1.0.0/16, or default")]
    via: Annotated[
        Gateway | None, Meta(description="the address of a gateway, such as 10.0.0.254")
    ] = None

    def __post_init__(self) -> None:
        if self.to == "default" and self.via is None:
            raise SchemaError(
                "the default route needs a gateway: expected {to: default, via: 10.0.0.254}"
            )
        if self.to != "default" and self.via is not None and (":" in self.to) != (":" in self.via):
            raise SchemaError(
                f"{self.to} via {self.via} mixes IPv4 and IPv6: expected both of one kind"
            )


class NicConfig(_Strict):
    """A NIC, and the container that it is attached to. One of `pid` and `netns` is required, except
    for kinds that need no container.

    pid: A process in the container. The NIC is removed when this process ends.
    netns: Network namespace of the container, by path. A relative path begins at the file's
        directory. The NIC is removed when the path is deleted or replaced.
    kind: Kind of the interface. `tap`: an emulated NIC with its queues and offloads, for which vnic
        opens /dev/net/tun. `veth`: one end of a veth pair, which needs no /dev/net/tun and forwards
        short frames faster, but long TCP frames slower; its queues and statistics in the container
        are the kernel's. `packet`: an existing interface, which vnic does not change; without `pid`
        and `netns` one of the host, which needs `host_interfaces: true`. `capture`: capture files
        in place of a container, see `read` and `write`. `module`: an engine of one of `modules`,
        which sends and receives the NIC's frames. `vhost-user`: a virtual machine or another
        program that drives a virtio-net device through a Unix socket, see `listen` and `connect`.
        `memif`: a program that uses memif, such as VPP or one with DPDK, by a Unix socket, too.
        `stream`, `dgram`: a virtual machine or another program that sends and receives frames
        through a socket, as QEMU's network back ends of these names do.
    interface: Name of the interface in the container. Default: the NIC's name.
    queues: Queue pairs of the NIC. Of kind `vhost-user`, those that the driver may use.
    mac: MAC address of the interface. Default: a locally administered address derived from the
        NIC's name.
    mtu: MTU of the interface: bytes of a packet without the Ethernet header.
    addresses: IP addresses of the interface, each with its prefix length.
    gateway: Gateway of the container's default route; short for a route with `to: default`.
    routes: Routes that are set in the container once the addresses are.
    engine: Engine that serves the NIC, by number or name. Default: the engine with the fewest NICs.
    on: Switch that the NIC is connected to. Default: the only switch; required where there are
        several.
    vlan: VLANs of the switch port. Default: frames pass as they are, with or without tags; for a
        client's NIC the first VLAN that the client was granted, or untagged frames only.
    spoof_check: Whether frames with another source MAC address than the NIC's are dropped. Default:
        true for a client's NIC, false for others.
    malformed: Treatment of packets of the container whose IP or transport header is malformed:
        `forward` forwards them by MAC address, as a switch does; `drop` drops them. They are
        counted in both cases.
    offloads: Offloads that the NIC offers to the container.
    rss: Distribution of flows over the queues.
    egress: Packets that the container sends.
    ingress: Packets that the container receives.
    owner: User who may see the NIC, capture its traffic and cut its link. Default: the instance's
        owner alone.
    read: Of kind `capture`, the capture file (pcap or pcapng) whose frames the NIC sends, at their
        times from the NIC's start on. A relative path begins at the file's directory.
    write: Of kind `capture`, the file for the frames that the NIC receives: pcapng if its name ends
        so, else pcap. A file that is there is overwritten.
    listen: Of kinds `vhost-user` and `stream`, the socket that vnic makes and the peer, a virtual
        machine, connects to. Of kind `dgram`, vnic's socket. It is the path of a Unix socket; of
        kinds `stream` and `dgram` also a loopback address and port. A relative path begins at the
        file's directory.
    connect: Of kinds `vhost-user` and `stream`, the socket that the peer makes (QEMU's
        `server=on`); vnic connects to it whenever it is there. So the machine outlives vnic. Of
        kind `dgram`, the peer's socket.
    socket_mode: Permissions of the socket of `listen`, as chmod(1) has them.
    socket_group: Group of the socket of `listen`: its name or number. Default: vnic's.
    features: Of kind `vhost-user`, features of virtio-net that the driver is offered. Their names
        are those that `vnic status --json` has under `offered`, or QEMU's; `tso` and `uso` are all
        features of these offloads.
    id: Of kind `memif`, the interface's number, which must be the same on both sides.
    secret: Of kind `memif`, what a client must say to a server that listens. Default: nothing.
    ring_size: Of kind `memif` with `connect`, descriptors of each ring: a power of two.
    """

    HIDDEN = ("name", "where", "number", "link_up", "passed", "waiting", "began_ns")

    name: Name
    pid: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=1 << 22,
                description="the number of a process in the container",
                examples=[4242],
            ),
        ]
        | None
    ) = None
    netns: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=4095,
                description="the path of a network namespace such as /run/netns/web",
                examples=["/run/netns/web"],
            ),
        ]
        | None
    ) = None
    kind: Annotated[
        Literal[
            "tap", "veth", "packet", "capture", "module", "vhost-user", "memif", "stream", "dgram"
        ],
        Meta(
            description="tap, veth, packet, capture, module, vhost-user, memif, stream or dgram",
            examples=["veth"],
        ),
    ] = "tap"
    interface: InterfaceName | None = None
    queues: Annotated[
        int, Meta(ge=1, le=QUEUES_MOST, description=f"1 to {QUEUES_MOST} queue pairs", examples=[4])
    ] = 1
    mac: Annotated[Mac | None, Meta(description="a MAC address such as 02:00:00:00:00:01")] = None
    mtu: Annotated[
        int,
        Meta(ge=MTU_LEAST, le=MTU_MOST, description=f"an MTU of {MTU_LEAST} to {MTU_MOST} bytes"),
    ] = 1500
    addresses: Annotated[
        list[Address],
        Meta(
            max_length=ADDRESSES_MOST,
            description='a list of address/prefix, such as [10.0.0.1/24, "fd00::1/64"]',
            examples=[["10.0.0.1/24", "fd00::1/64"]],
        ),
    ] = []
    gateway: Annotated[
        Gateway | None, Meta(description="the address of a gateway, such as 10.0.0.254")
    ] = None
    routes: Annotated[
        list[RouteConfig],
        Meta(
            max_length=ROUTES_MOST,
            description="a list of routes such as [{to: 10.1.0.0/16, via: 10.0.0.254}]",
            examples=[[{"to": "10.1.0.0/16", "via": "10.0.0.254"}]],
        ),
    ] = []
    engine: Annotated[
        int | str | None,
        Meta(description="an engine's number, from 0, or its name", examples=["e0"]),
    ] = None
    on: Annotated[str, Meta(description="the name of a switch", examples=["switch"])] | None = None
    vlan: Annotated[
        VlanConfig | None,
        Meta(
            description="{access: 10}, {trunk: [10, 20], native: 1} or {untagged: true}",
            examples=[{"trunk": [10, 20], "native": 1}],
        ),
    ] = None
    spoof_check: Annotated[bool | None, Meta(description="true or false", examples=[True])] = None
    malformed: Annotated[
        Literal["forward", "drop"], Meta(description="forward or drop", examples=["drop"])
    ] = "forward"
    offloads: Annotated[
        OffloadConfig,
        Meta(
            description="{checksum: true, tso: true, uso: true}",
            examples=[{"checksum": True, "tso": False, "uso": False}],
        ),
    ] = msgspec.field(default_factory=OffloadConfig)
    rss: Annotated[
        RssConfig,
        Meta(description='{key: "6d:5a:...", table: [0, 1]}', examples=[{"table": [0, 0, 0, 0]}]),
    ] = msgspec.field(default_factory=RssConfig)
    egress: Annotated[
        DirectionConfig,
        Meta(
            description="{rate: 100mbit, queue: 100ms, elements: [...]}",
            examples=[{"rate": "100mbit", "queue": "50ms"}],
        ),
    ] = msgspec.field(default_factory=DirectionConfig)
    ingress: Annotated[
        DirectionConfig,
        Meta(
            description="{rate: 100mbit, queue: 100ms, elements: [...]}",
            examples=[{"rate": "1gbit", "elements": ["Counter"]}],
        ),
    ] = msgspec.field(default_factory=DirectionConfig)
    owner: Annotated[
        User | None,
        Meta(description="a user's name such as alice, or number", examples=[1000]),
    ] = None
    read: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=4095,
                description="the path of a capture file",
                examples=["in.pcap"],
            ),
        ]
        | None
    ) = None
    write: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=4095,
                description="the path of a file",
                examples=["out.pcapng"],
            ),
        ]
        | None
    ) = None
    listen: SocketPath | None = None
    connect: SocketPath | None = None
    socket_mode: Annotated[
        str,
        Meta(
            pattern="^0?[0-7]{3}$",
            description='three octal digits in quotes, such as "0660"',
            examples=["0660"],
        ),
    ] = "0660"
    socket_group: (
        Annotated[str, Meta(min_length=1, max_length=32, description="a group", examples=["kvm"])]
        | None
    ) = None
    features: Annotated[
        FeaturesConfig,
        Meta(
            description="{without: [packed, uso]} or {only: [csum, guest_csum, mrg_rxbuf, ...]}",
            examples=[{"without": ["packed", "uso"]}],
        ),
    ] = msgspec.field(default_factory=FeaturesConfig)
    id: Annotated[
        int, Meta(ge=0, le=(1 << 32) - 1, description="a number below 2^32", examples=[1])
    ] = 0
    secret: (
        Annotated[
            str,
            Meta(
                pattern="^[!-~]{1,23}$",
                description="1 to 23 printable ASCII characters without spaces",
                examples=["sesame"],
            ),
        ]
        | None
    ) = None
    ring_size: Annotated[
        int,
        Meta(ge=2, le=16384, description="a power of two from 2 to 16384", examples=[2048]),
    ] = 1024
    where: str = ""  # "FILE:LINE" or "", for errors that show when it is attached
    began_ns: int | None = None  # when it began to send the frames of `read`, by the engines' clock
    number: Annotated[int, Meta(ge=0, lt=1024)] | None = (
        None  # of its port on the switch, once it has one
    )
    link_up: bool = True
    passed: bool = False  # a client passed its namespace as a descriptor
    waiting: str = ""  # why it is not attached, until a namespace appears at its path

    def __post_init__(self) -> None:
        if self.pid is not None and self.netns is not None:
            raise SchemaError("has both pid and netns: choose one of them")
        if self.interface is None:
            if len(self.name) > 15:
                raise SchemaError(
                    f"the name {self.name} is too long for an interface: expected interface: NAME "
                    "of at most 15 characters"
                )
            self.interface = self.name
        if self.mac is None:
            self.mac = Mac.from_name(self.name)
        if len(set(self.addresses)) != len(self.addresses):
            raise SchemaError("addresses names one twice")
        if self.gateway is not None:
            self.routes = [*self.routes, RouteConfig(to=Network("default"), via=self.gateway)]
            self.gateway = None
        destinations = [
            (route.to, route.to == "default" and ":" in str(route.via)) for route in self.routes
        ]
        if len(set(destinations)) != len(destinations):
            raise SchemaError("routes (or gateway) names a destination twice: list each once")
        if self.rss.table is not None and max(self.rss.table) >= self.queues:
            raise SchemaError(
                f"rss.table names queue {max(self.rss.table)}, "
                f"but there are {self.queues} (0 to {self.queues - 1})"
            )

    @property
    def returns(self) -> bool:
        """Whether the NIC is attached again when its namespace returns: only a NIC of the file
        whose namespace has a name. A process number may belong to another process by then, and a
        NIC that a client attached is attached again by the client."""
        return bool(self.where) and self.netns is not None and not self.netns.startswith("/proc/")


class MetricsConfig(_Strict):
    """Where metrics for Prometheus are served over HTTP. One of `listen` and `socket` is required.

    listen: Loopback address and TCP port. Every user of the machine can read the metrics there.
    socket: Path of a Unix socket. A relative path begins at the directory that vnic was started in.
    """

    listen: (
        Annotated[
            str,
            Meta(
                description='a loopback address and port, such as "127.0.0.1:9464"',
                examples=["127.0.0.1:9464"],
            ),
        ]
        | None
    ) = None
    socket: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=107,
                description="a path for a Unix socket",
                examples=["/run/vnic/metrics.sock"],
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        if (self.listen is None) == (self.socket is None):
            raise SchemaError('expected either {listen: "127.0.0.1:9464"} or {socket: PATH}')
        if self.listen is not None:
            host, _, port = self.listen.rpartition(":")
            try:
                fits = ipaddress.ip_address(host.strip("[]")).is_loopback and 0 < int(port) < 65536
            except ValueError:
                fits = False
            if not fits:
                raise SchemaError(
                    f"{self.listen} is not a loopback address and port: expected one such as "
                    "127.0.0.1:9464 or [::1]:9464"
                )


class Config(_Strict):
    """A configuration file.

    engines: Engines that process packets: their number, or a list with settings for each.
    groups: Engine groups by name. Default: one spreading group called `default`.
    spin: Time that idle threads poll before they sleep: shorter round trips for more CPU time.
    pool: Size of the packet pool.
    switch: Settings of the switch that all NICs are connected to, unless `nodes` has others; it is
        called `switch`.
    metrics: Where metrics for Prometheus are served. Default: nowhere; `vnic metrics` prints them.
    modules: Modules that extend the control API.
    clients: Other users of the machine who may attach containers to this instance, with their
        limits.
    nics: NICs by name.
    nodes: Switches by name, for a network of several, and elements that one-way links lead packets
        through.
    links: Links between switches, and one-way links between NICs, elements and switches.
    shape: Policy of shaping: rates, delays and losses of NICs, pairs of NICs and links.
    host_interfaces: Whether NICs may be attached in the network namespace that vnic runs in, the
        host's. A NIC of the file that is in that namespace allows it as well.
    """

    HIDDEN = ("directory", "partial", "hops", "shape_term")

    engines: Annotated[
        list[EngineConfig],
        Meta(
            min_length=1,
            max_length=ENGINES_MOST,
            description=f"a number, 1 to {ENGINES_MOST}, or a list of engines",
            examples=[[{"name": "fast", "spin": "20us"}, {}]],
        ),
    ] = msgspec.field(default_factory=lambda: [EngineConfig()])
    groups: Annotated[
        dict[Name, GroupConfig],
        Meta(
            description=(
                "a mapping from a group's name to its settings, such as {all: {mode: compacting}}"
            ),
            examples=[{"all": {"mode": "compacting"}}],
        ),
    ] = {}
    spin: Annotated[Spin, Meta(description="a time such as 20us, or 0")] = msgspec.field(
        default_factory=lambda: Spin(0)
    )
    pool: Annotated[
        PoolConfig,
        Meta(description="{small: 16384, large: 1024}", examples=[{"small": 65536, "large": 4096}]),
    ] = msgspec.field(default_factory=PoolConfig)
    switch: Annotated[
        SwitchConfig,
        Meta(
            description="{ageing: 300s, table: 4096}", examples=[{"ageing": "60s", "table": 16384}]
        ),
    ] = msgspec.field(default_factory=SwitchConfig)
    metrics: Annotated[
        MetricsConfig | None,
        Meta(
            description='{listen: "127.0.0.1:9464"} or {socket: PATH}',
            examples=[{"listen": "127.0.0.1:9464"}],
        ),
    ] = None
    modules: Annotated[
        list[ModuleConfig],
        Meta(
            description="a list of modules such as [{module: echo:Echo}]",
            examples=[[{"module": "echo:Echo"}]],
        ),
    ] = []
    clients: Annotated[
        dict[str, ClientConfig],
        Meta(
            description=(
                "a mapping from a user's name or number to limits, such as {alice: {nics: 4, "
                "vlans: [10]}}"
            ),
            examples=[{"1000": {"nics": 4, "vlans": [10]}}],
        ),
    ] = {}
    nics: Annotated[
        dict[str, NicConfig],
        Meta(
            description="a mapping from a NIC's name to its settings",
            examples=[{"web": {"netns": "/run/netns/web"}}],
        ),
    ] = {}
    nodes: Annotated[
        dict[NodeName, NodeConfig],
        Meta(
            description="a mapping from a name to {switch: {}} or {element: Counter}",
            examples=[
                {"seen": {"element": "Counter", "engine": "e0"}, "lan": {"switch": {"table": 1024}}}
            ],
        ),
    ] = {}
    links: Annotated[
        list[LinkConfig],
        Meta(
            max_length=LINKS_MOST + HOPS_MOST,
            description="a list of links such as [lan -- dmz]",
            examples=[["lan -- dmz"]],
        ),
    ] = []
    hops: list[HopConfig] = []  # the one-way links of `links`
    shape: Annotated[
        dict[str, Any] | None,
        Meta(
            description="a policy such as {links: {web <-> db: {delay: 20ms, loss: 1%}}}",
            examples=[{"seed": 42, "links": {}}],
        ),
    ] = None
    shape_term: PolicyTerm = PolicyTerm()  # until when `shape` is the policy
    host_interfaces: Annotated[bool, Meta(description="true or false", examples=[True])] = False
    directory: str | None = None  # of the file: where module:Class is looked for first
    # `vnic up --partial`: a NIC that cannot be attached at the start does not prevent the others
    partial: bool = False

    def __post_init__(self) -> None:
        self.groups = self.groups or {"default": GroupConfig()}
        for group in self.groups.values():
            self.fill(group)
        for number, engine in enumerate(self.engines):
            engine.name = engine.name or f"e{number}"
            engine.group = engine.group or next(iter(self.groups))
            if engine.group not in self.groups:
                raise SchemaError(
                    f"engines: {engine.name} is in group {engine.group}: expected one of "
                    f"{', '.join(self.groups)}"
                )
        for name, group in self.groups.items():
            self.check_group(name, group)
        for name, client in self.clients.items():
            if client.group is not None and all(
                engine.group != client.group for engine in self.engines
            ):
                known = ", ".join(dict.fromkeys(str(engine.group) for engine in self.engines))
                raise SchemaError(
                    f"clients: {name}: group {client.group} has no engine: expected one of {known}"
                )
        # By number from here on, so that the instance can start again after a user was deleted.
        self.clients = {str(int(User.parse(name))): client for name, client in self.clients.items()}
        names = [engine.name for engine in self.engines]
        if len(set(names)) != len(names):
            raise SchemaError("engines: two have the same name")

    @property
    def switches(self) -> dict[str, SwitchConfig]:
        """The switches by name."""
        named = {name: node.switch for name, node in self.nodes.items() if node.switch is not None}
        return named or {IMPLIED_SWITCH: self.switch}

    @property
    def elements(self) -> dict[str, NodeConfig]:
        """The nodes that are elements, by name."""
        return {name: node for name, node in self.nodes.items() if node.element is not None}

    @property
    def outer_nics(self) -> list[str]:
        """The NICs whose packets come from outside: those without a module behind them."""
        return [name for name, nic in self.nics.items() if nic.kind != "module"]

    @property
    def has_implied_switch(self) -> bool:
        """Whether its switch is the one of `switch`, since no node is a switch."""
        return all(node.switch is None for node in self.nodes.values())

    def switch_of(self, reference: str | None) -> str:
        """The name of the switch that `on:` means. Raises ConfigError."""
        names = list(self.switches)
        if reference is None and len(names) == 1:
            return names[0]
        if reference is None:
            raise SchemaError(f"is connected to no switch: expected on: {' or '.join(names)}")
        if reference not in names:
            raise SchemaError(
                f"on: there is no switch {reference!r}: expected {' or '.join(names)}"
            )
        return reference

    def fill(self, group: GroupConfig) -> None:
        """Fills in the settings that the group takes from the top level by default."""
        group.spin = self.spin if group.spin is None else group.spin

    def check_group(self, name: str, group: GroupConfig) -> None:
        """Checks the settings of the group called `name` against its engines. Raises
        ConfigError."""
        for engine in self.engines:
            if engine.group == name and engine.cpu is not None and group.mode != "spreading":
                raise SchemaError(
                    f"engines: {engine.name}: cpu is for spreading groups: set cpus: of group "
                    f"{name} instead"
                )

    @property
    def guaranteed(self) -> bool:
        """Whether a group has a guarantee of CPU time, which needs a capability (privileges.py)."""
        return any(group.guarantee is not None for group in self.groups.values())

    def engines_of(self, owner: int | None) -> list[int]:
        """The numbers of the engines that serve the NICs of a user (None: no user), unless the
        instance's owner chooses another one."""
        grant = None if owner is None else self.clients.get(str(int(owner)))
        wanted = None if grant is None else grant.group
        return [
            number for number, engine in enumerate(self.engines) if wanted in (None, engine.group)
        ]

    def engine_index(self, reference: int | str) -> int:
        """The number of the engine that `reference` (number or name) means. Raises ConfigError."""
        names = [engine.name for engine in self.engines]
        if isinstance(reference, str) and reference in names:
            return names.index(reference)
        if isinstance(reference, int) and 0 <= reference < len(names):
            return reference
        numbers = "0" if len(names) == 1 else f"a number from 0 to {len(names) - 1}"
        expected = ", ".join([numbers, *(str(name) for name in names if not isinstance(name, int))])
        raise SchemaError(f"engine {reference!r} does not exist: expected {expected}")


def encode_scalar(value: Any) -> Any:
    """msgspec's enc_hook: prints scalars in the form in which a file has them."""
    if isinstance(value, SCALARS):
        return str(value)
    raise NotImplementedError(type(value).__name__)


_EXAMPLES: dict[Any, str] = {
    Rate: "100mbit",
    Spin: "20us",
    Ageing: "300s",
    Slo: "50us",
    TurnBudget: "1ms",
    CpuTime: "900us",
    CpuPeriod: "1ms",
    QueueTime: "100ms",
    Mac: "02:00:00:00:00:01",
    Address: "10.0.0.1/24",
    Network: "10.1.0.0/16",
    Gateway: "10.0.0.254",
}


def scalar_example(kind: Any) -> str | None:
    """An example of a scalar, as in a file; None for other types and for scalars without an
    example."""
    return _EXAMPLES.get(kind)

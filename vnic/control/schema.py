"""The configuration's schema: what a file may say, as typed structs, and as a JSON Schema (`vnic config schema`).

Values are parsed where they enter (`convert.py`): a rate in these structs is bit/s, a time is nanoseconds, a MAC is lower case.
Code that builds a struct uses the same types: `NicConfig(name="web", pid=42, egress=DirectionConfig(rate=Rate("1mbit")))`.
The description of a field is what a user reads in an error ("want ...") and in the JSON Schema.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from vnic.control.scalars import (
    RSS_KEY_BYTES,
    SCALARS,
    Address,
    Ageing,
    CpuPeriod,
    CpuTime,
    Mac,
    QueueTime,
    Rate,
    RssKey,
    SchemaError,
    Slo,
    Spin,
    TurnBudget,
    User,
)

MTU_LEAST, MTU_MOST = (
    68,
    65521,
)  # RFC 791's least IPv4 MTU; 65,535 bytes of a frame less an Ethernet header (Linux' ETH_MAX_MTU for TAP)
QUEUES_MOST = 64
ENGINES_MOST = 64

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(?!\n)$"
Name = Annotated[
    str,
    Meta(
        pattern=NAME_PATTERN,
        max_length=32,
        description="a name of 1 to 32 letters, digits, '_', '.', '-', a letter or digit first",
    ),
]
InterfaceName = Annotated[
    str,
    Meta(
        pattern=r"^(?!\.{1,2}$)[^\s/:%\x00-\x20]+(?!\n)$",
        max_length=15,
        description="an interface name of 1 to 15 characters without space, '/', ':' or '%'",
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
VlanId = Annotated[int, Meta(ge=1, le=4094, description="a VLAN number, 1 to 4094")]
IndirectionTable = Annotated[
    list[Annotated[int, Meta(ge=0, lt=QUEUES_MOST, description="a queue's number, from 0")]],
    Meta(min_length=1, max_length=512, description="a list of queue numbers whose length is a power of two up to 512"),
]


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    HIDDEN: ClassVar[tuple[str, ...]] = ()  # fields that the loader fills and a file may not


class GuaranteeConfig(_Strict):
    """CPU time of each thread of a group: so much, and no more."""

    runtime: Annotated[CpuTime, Meta(description="a time such as 900us")]
    period: Annotated[CpuPeriod, Meta(description="a time such as 1ms")]

    def __post_init__(self) -> None:
        if self.runtime > self.period:
            raise SchemaError(f"runtime {self.runtime} is more than the period: want at most {self.period}")


class GroupConfig(_Strict):
    """An engine group: how its engines get CPU time."""

    mode: Annotated[Literal["dedicated", "spreading", "compacting"], Meta(description="dedicated, spreading or compacting")] = (
        "spreading"
    )
    cpus: Annotated[
        list[Annotated[int, Meta(ge=0, le=4095, description="the number of a CPU, from 0")]] | None,
        Meta(description="a list of CPU numbers, such as [0, 1]; default: any"),
    ] = None
    spin: Annotated[
        Spin | None, Meta(description="how long a thread polls before it sleeps, such as 20us; default: the file's spin")
    ] = None
    slo: Annotated[Slo, Meta(description="when compacting, the queueing delay to keep below, such as 50us")] = msgspec.field(
        default_factory=lambda: Slo("50us")
    )
    budget: Annotated[
        TurnBudget, Meta(description="how long an engine's turn may take, such as 1ms; 0: as long as it likes")
    ] = msgspec.field(default_factory=lambda: TurnBudget("1ms"))
    guarantee: Annotated[GuaranteeConfig | None, Meta(description="{runtime: 900us, period: 1ms}")] = None
    # In a file one path may stand for a list of one. (Not a union here: msgspec 0.22 frees one of text with a pattern and a list wrongly.)
    cgroup: Annotated[
        list[CgroupPath],
        Meta(description="the absolute path of a cgroup that its threads join, or a list of them, one of each hierarchy"),
    ] = []

    def __post_init__(self) -> None:
        if len(set(self.cgroup)) != len(self.cgroup):
            raise SchemaError("cgroup names one twice: want each once")
        if self.mode == "dedicated" and not self.cpus:
            raise SchemaError("dedicated needs CPUs of its own: want cpus: [1] or the like")
        if self.cpus is not None and (not self.cpus or len(set(self.cpus)) != len(self.cpus)):
            raise SchemaError("cpus is empty or names one twice: want cpus: [0, 1]")


class EngineConfig(_Strict):
    """One engine: a task that runs elements, in a group."""

    name: Annotated[str, Meta(description="a name; default: e and the engine's number")] | None = None
    spin: Annotated[
        Spin | None, Meta(description="how long it polls before it sleeps, such as 20us; default: its group's spin")
    ] = None
    cpu: Annotated[int, Meta(ge=0, le=4095, description="the number of the CPU it is bound to, from 0")] | None = None
    group: Annotated[str, Meta(description="the name of its group; default: the first of groups")] | None = None


class ModuleConfig(_Strict):
    """A module of the user's own: its class, and its constructor's keyword arguments."""

    HIDDEN = ("arguments",)

    module: Annotated[str, Meta(description="module:Class")]
    arguments: dict[str, Any] = {}


class ClientConfig(_Strict):
    """A user who may have NICs of his own on somebody else's vnic."""

    nics: Annotated[int, Meta(ge=0, le=1024, description="how many NICs the user may attach, 0 to 1024")] = 16
    vlans: (
        Annotated[list[VlanId], Meta(min_length=1, description="a list of the VLANs that they may be in, such as [10, 20]")]
        | None
    ) = None
    rate: Annotated[Rate | None, Meta(description="the highest rate that they may have, such as 1gbit")] = None
    queues: Annotated[
        int, Meta(ge=1, le=QUEUES_MOST, description=f"how many queue pairs each of them may have, 1 to {QUEUES_MOST}")
    ] = 4
    group: (
        Annotated[str, Meta(description="the name of the engine group in which they are and stay; default: in any")] | None
    ) = None
    pool_percent: Annotated[
        int,
        Meta(ge=1, le=100, description="how much of the packet pool may wait in shapers of all of them together, 1 to 100"),
    ] = 25


class PoolConfig(_Strict):
    """How many packets can be inside vnic at once."""

    small: Annotated[int, Meta(ge=64, le=1 << 20, description="2 KiB buffers, 64 to 1048576")] = 16384
    large: Annotated[int, Meta(ge=16, le=1 << 16, description="68 KiB buffers (GSO and jumbo frames), 16 to 65536")] = 1024


class SwitchConfig(_Strict):
    """The learning switch that all NICs are on."""

    ageing: Annotated[Ageing, Meta(description="how long a silent address stays known, such as 300s")] = msgspec.field(
        default_factory=lambda: Ageing("300s")
    )
    table: Annotated[int, Meta(ge=16, le=1 << 20, description="addresses the table holds, 16 to 1048576")] = 4096


class VlanConfig(_Strict):
    """The NIC's place in VLANs: an access port of one, or a trunk of several."""

    access: VlanId | None = None
    trunk: Annotated[list[VlanId] | None, Meta(description="a list of VLAN numbers, such as [10, 20]")] = None
    native: VlanId | None = None

    def __post_init__(self) -> None:
        if (self.access is None) == (self.trunk is None):
            raise SchemaError("want either {access: 10} or {trunk: [10, 20], native: 1}")
        if self.native is not None and self.trunk is None:
            raise SchemaError("native belongs to a trunk: want {trunk: [10, 20], native: 1}")
        if self.trunk is not None and (not self.trunk or len(set(self.trunk)) != len(self.trunk)):
            raise SchemaError("trunk is empty or names a VLAN twice: want {trunk: [10, 20]}")


class OffloadConfig(_Strict):
    """What the NIC takes over from the container's network stack."""

    checksum: Annotated[bool, Meta(description="true or false: checksum offload")] = True
    tso: Annotated[bool, Meta(description="true or false: TCP segmentation offload")] = True
    uso: Annotated[bool, Meta(description="true or false: UDP segmentation offload, where the kernel has it")] = True

    def __post_init__(self) -> None:
        if not self.checksum and (self.tso or self.uso):
            raise SchemaError("segmentation needs checksum offload: want {checksum: false, tso: false, uso: false}")


class RssConfig(_Strict):
    """How flows spread over the queues."""

    key: Annotated[RssKey | None, Meta(description=f"{RSS_KEY_BYTES} bytes in hexadecimal, in quotes")] = None
    table: IndirectionTable | None = None

    def __post_init__(self) -> None:
        if self.table is not None and len(self.table) & (len(self.table) - 1):
            raise SchemaError(f"table has {len(self.table)} entries: want a power of two")


class ElementConfig(_Strict):
    """One element of a chain: its class, its constructor's keyword arguments, and chains behind its further outputs."""

    HIDDEN = ("arguments", "where")

    element: Annotated[str, Meta(description="a built-in element's name such as Counter, or module:Class")]
    name: Name | None = None
    branches: Annotated[
        dict[int, list[ElementConfig]], Meta(description="a mapping from output number to a list of elements")
    ] = {}
    arguments: dict[str, Any] = {}  # the constructor's keyword arguments
    where: str = ""  # "FILE:LINE", for errors that show when the element is made


class DirectionConfig(_Strict):
    """What happens to packets on one way."""

    rate: Annotated[Rate | None, Meta(description="a rate of layer-2 bits without preamble and FCS, such as 100mbit")] = None
    queue: Annotated[QueueTime, Meta(description="how much the shaper may hold, as time at its rate, such as 100ms")] = (
        msgspec.field(default_factory=lambda: QueueTime("100ms"))
    )
    elements: Annotated[list[ElementConfig], Meta(description="a list of elements in the order that packets pass them")] = []


class NicConfig(_Strict):
    """One NIC and the container it is in."""

    HIDDEN = ("name", "where", "number", "link_up", "passed")

    name: Name
    pid: Annotated[int, Meta(ge=1, le=1 << 22, description="the number of a process in the container")] | None = None
    netns: (
        Annotated[
            str, Meta(min_length=1, max_length=4095, description="the path of a network namespace such as /run/netns/web")
        ]
        | None
    ) = None
    interface: InterfaceName | None = None
    queues: Annotated[int, Meta(ge=1, le=QUEUES_MOST, description=f"1 to {QUEUES_MOST} queue pairs")] = 1
    mac: Annotated[Mac | None, Meta(description="a MAC address such as 02:00:00:00:00:01; default: made from the name")] = None
    mtu: Annotated[int, Meta(ge=MTU_LEAST, le=MTU_MOST, description=f"an MTU of {MTU_LEAST} to {MTU_MOST} bytes")] = 1500
    addresses: Annotated[
        list[Address], Meta(max_length=256, description='a list of address/prefix, such as [10.0.0.1/24, "fd00::1/64"]')
    ] = []
    engine: Annotated[int | str | None, Meta(description="an engine's number, from 0, or its name; default: round robin")] = (
        None
    )
    vlan: Annotated[VlanConfig | None, Meta(description="{access: 10} or {trunk: [10, 20], native: 1}")] = None
    offloads: Annotated[OffloadConfig, Meta(description="{checksum: true, tso: true, uso: true}")] = msgspec.field(
        default_factory=OffloadConfig
    )
    rss: Annotated[RssConfig, Meta(description='{key: "6d:5a:...", table: [0, 1]}')] = msgspec.field(default_factory=RssConfig)
    egress: Annotated[
        DirectionConfig, Meta(description="what leaves the container: {rate: 100mbit, queue: 100ms, elements: [...]}")
    ] = msgspec.field(default_factory=DirectionConfig)
    ingress: Annotated[
        DirectionConfig, Meta(description="what enters the container: {rate: 100mbit, queue: 100ms, elements: [...]}")
    ] = msgspec.field(default_factory=DirectionConfig)
    owner: Annotated[
        User | None, Meta(description="the user whose it is, such as alice; default: nobody's but the instance's")
    ] = None
    where: str = ""  # "FILE:LINE" or "", for errors that show when it is attached
    number: Annotated[int, Meta(ge=0, lt=1024)] | None = None  # of its port on the switch, once it has one
    link_up: bool = True
    passed: bool = False  # a client passed its namespace as a descriptor

    def __post_init__(self) -> None:
        if self.pid is not None and self.netns is not None:
            raise SchemaError("has both pid and netns: want one of them")
        if self.interface is None:
            if len(self.name) > 15:
                raise SchemaError(
                    f"the name {self.name} is too long for an interface: want interface: NAME of at most 15 characters"
                )
            self.interface = self.name
        if self.mac is None:
            self.mac = Mac.from_name(self.name)
        if len(set(self.addresses)) != len(self.addresses):
            raise SchemaError("addresses names one twice")
        if self.rss.table is not None and max(self.rss.table) >= self.queues:
            raise SchemaError(
                f"rss.table names queue {max(self.rss.table)}, but there are {self.queues} (0 to {self.queues - 1})"
            )


class MetricsConfig(_Strict):
    """Where metrics for Prometheus are served."""

    listen: Annotated[str, Meta(description='a loopback address and port, such as "127.0.0.1:9464"')] | None = None
    socket: Annotated[str, Meta(min_length=1, max_length=107, description="a path for a Unix socket")] | None = None

    def __post_init__(self) -> None:
        if (self.listen is None) == (self.socket is None):
            raise SchemaError('want either {listen: "127.0.0.1:9464"} or {socket: PATH}')
        if self.listen is not None:
            host, _, port = self.listen.rpartition(":")
            try:
                fits = ipaddress.ip_address(host.strip("[]")).is_loopback and 0 < int(port) < 65536
            except ValueError:
                fits = False
            if not fits:
                raise SchemaError(
                    f"{self.listen} is no loopback address and port: want one such as 127.0.0.1:9464 or [::1]:9464"
                )


class Config(_Strict):
    """A whole file."""

    HIDDEN = ("directory",)

    engines: Annotated[
        list[EngineConfig],
        Meta(min_length=1, max_length=ENGINES_MOST, description=f"a number, 1 to {ENGINES_MOST}, or a list of engines"),
    ] = msgspec.field(default_factory=lambda: [EngineConfig()])
    groups: Annotated[
        dict[Name, GroupConfig],
        Meta(description="a mapping from a group's name to its settings, such as {all: {mode: compacting}}"),
    ] = {}
    spin: Annotated[Spin, Meta(description="how long engines poll before they sleep, such as 20us")] = msgspec.field(
        default_factory=lambda: Spin(0)
    )
    pool: Annotated[PoolConfig, Meta(description="{small: 16384, large: 1024}")] = msgspec.field(default_factory=PoolConfig)
    switch: Annotated[SwitchConfig, Meta(description="{ageing: 300s, table: 4096}")] = msgspec.field(
        default_factory=SwitchConfig
    )
    metrics: Annotated[MetricsConfig | None, Meta(description='{listen: "127.0.0.1:9464"} or {socket: PATH}')] = None
    modules: Annotated[list[ModuleConfig], Meta(description="a list of modules such as [{module: echo:Echo}]")] = []
    clients: Annotated[
        dict[str, ClientConfig],
        Meta(description="a mapping from a user's name to what that user may have, such as {alice: {nics: 4, vlans: [10]}}"),
    ] = {}
    nics: Annotated[dict[str, NicConfig], Meta(description="a mapping from a NIC's name to its settings")] = {}
    directory: str | None = None  # of the file: where module:Class is looked for first

    def __post_init__(self) -> None:
        self.groups = self.groups or {"default": GroupConfig()}
        for group in self.groups.values():
            self.fill(group)
        for number, engine in enumerate(self.engines):
            engine.name = engine.name or f"e{number}"
            engine.group = engine.group or next(iter(self.groups))
            if engine.group not in self.groups:
                raise SchemaError(f"engines: {engine.name} is in group {engine.group}: want one of {', '.join(self.groups)}")
        for name, group in self.groups.items():
            self.check_group(name, group)
        for name, client in self.clients.items():
            if client.group is not None and all(engine.group != client.group for engine in self.engines):
                known = ", ".join(dict.fromkeys(str(engine.group) for engine in self.engines))
                raise SchemaError(f"clients: {name}: group {client.group} has no engine: want one of {known}")
        # By number from here on: a user who is deleted while this runs is no reason not to come up again.
        self.clients = {str(int(User.parse(name))): client for name, client in self.clients.items()}
        names = [engine.name for engine in self.engines]
        if len(set(names)) != len(names):
            raise SchemaError("engines: two have the same name")

    def fill(self, group: GroupConfig) -> None:
        """Gives a group what it has of the whole where it says nothing."""
        group.spin = self.spin if group.spin is None else group.spin

    def check_group(self, name: str, group: GroupConfig) -> None:
        """Whether the group called `name` can be this one. Raises ConfigError."""
        for engine in self.engines:
            if engine.group == name and engine.cpu is not None and group.mode != "spreading":
                raise SchemaError(f"engines: {engine.name}: cpu is for spreading groups: want cpus: in group {name} instead")

    @property
    def guaranteed(self) -> bool:
        """Whether a group has a guarantee of CPU time, which takes a right (privileges.py)."""
        return any(group.guarantee is not None for group in self.groups.values())

    def engines_of(self, owner: int | None) -> list[int]:
        """The numbers of the engines where NICs of a user, or None's, are unless the instance's owner says otherwise."""
        grant = None if owner is None else self.clients.get(str(int(owner)))
        wanted = None if grant is None else grant.group
        return [number for number, engine in enumerate(self.engines) if wanted in (None, engine.group)]

    def engine_index(self, reference: int | str) -> int:
        """The number of the engine that `reference` (number or name) means. Raises ConfigError."""
        names = [engine.name for engine in self.engines]
        if isinstance(reference, str) and reference in names:
            return names.index(reference)
        if isinstance(reference, int) and 0 <= reference < len(names):
            return reference
        raise SchemaError(
            f"engine {reference!r} does not exist: want one of 0 to {len(names) - 1} or {', '.join(map(str, names))}"
        )


def encode_scalar(value: Any) -> Any:
    """msgspec's enc_hook: the scalars above print back as they were written."""
    if isinstance(value, SCALARS):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def _scalar_schema(kind: type) -> dict[str, Any]:
    examples = {
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
    }
    patterns = {Rate: r"^\s*[0-9.]+\s*[kKmMgGtT]?i?[bB][iI][tT]\s*$", Mac: "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$",
                RssKey: "^[0-9a-fA-F]{2}(:?[0-9a-fA-F]{2}){39}$"}  # fmt: skip
    schema: dict[str, Any] = {"type": "string"}
    if kind is User:
        schema = {"type": ["string", "integer"], "description": "a user's name or number"}
    if kind is Spin:
        schema = {"type": ["string", "integer"], "description": "0, or a time with its unit"}
    if kind in examples:
        schema["examples"] = [examples[kind]]
    if kind in patterns:
        schema["pattern"] = patterns[kind]
    return schema


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration file."""
    schema: dict[str, Any] = msgspec.json.schema(Config, schema_hook=_scalar_schema)
    definitions = schema["$defs"]
    for kind in (Config, NicConfig, ElementConfig, ModuleConfig):
        definition = definitions[kind.__name__]
        for hidden in kind.HIDDEN:
            definition["properties"].pop(hidden)
        definition["required"] = [each for each in definition.get("required", ()) if each not in kind.HIDDEN]
    for struct in ("ElementConfig", "ModuleConfig"):
        definitions[struct]["additionalProperties"] = True  # the constructor's arguments
    definitions["ElementConfig"]["properties"]["branches"]["propertyNames"] = {"pattern": "^[0-9]+$"}
    definitions["Config"]["properties"]["nics"]["propertyNames"] = {"pattern": NAME_PATTERN, "maxLength": 32}
    definitions["NicConfig"]["oneOf"] = [{"required": ["pid"]}, {"required": ["netns"]}]
    cgroups = definitions["GroupConfig"]["properties"]["cgroup"]
    definitions["GroupConfig"]["properties"]["cgroup"] = {
        "description": cgroups.pop("description"),
        "anyOf": [cgroups["items"], cgroups],
        "default": cgroups.pop("default"),
    }
    engines = definitions["Config"]["properties"]["engines"]
    definitions["Config"]["properties"]["engines"] = {
        "description": engines.pop("description"),
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": ENGINES_MOST}, engines],
        "default": 1,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "vnic configuration", **schema}

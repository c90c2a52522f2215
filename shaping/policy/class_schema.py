"""The schema of `classes` in policy files, as shaping.policy.schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from dataplane.config.convert import shown
from dataplane.config.scalars import SchemaError
from dataplane.elements.classifier_rules import READERS
from dataplane.errors import ConfigError
from shaping.class_settings import (
    DISCIPLINES,
    FLOWS_MOST,
    HOSTS,
    PRIORITIES,
    PRIORITY_DEFAULT,
    QUANTUM_LEAST,
    QUANTUM_MOST,
    WEIGHT_MOST,
)
from shaping.policy.keys import parse_name
from shaping.policy.overhead_schema import OVERHEAD_META, OverheadConfig
from shaping.policy.scalars import LineRate, LineTime, QueueLength, QueueSize, RoundTrip
from shaping.policy.strict import Strict

_RATE = Meta(description="a rate such as 10mbit", examples=["10mbit"])
_TIME = Meta(description="a time such as 5ms", examples=["5ms"])


class MatchConfig(Strict):
    """Packets by their headers. All conditions that are given must hold.

    protocol: Protocol behind the IP header.
    source: Address or prefix that sends.
    destination: Address or prefix that receives.
    source_port: Port that sends, or a range such as 80-90; of TCP, UDP and SCTP.
    destination_port: Port that receives, or a range.
    dscp: Differentiated services codepoint.
    vlan: Number in the outer VLAN tag; 0: none.
    source_mac: MAC address that sends.
    sender: NIC of the network that sends.
    """

    protocol: Annotated[
        str | int | None, Meta(description="tcp, udp, icmp, another name, or 0 to 255")
    ] = None
    source: Annotated[str | None, Meta(description="an address or prefix such as 10.0.0.0/8")] = (
        None
    )
    destination: Annotated[
        str | None, Meta(description="an address or prefix such as 10.0.0.0/8")
    ] = None
    source_port: Annotated[
        str | int | None, Meta(description="a port or a range such as 80-90")
    ] = None
    destination_port: Annotated[
        str | int | None, Meta(description="a port or a range such as 80-90")
    ] = None
    dscp: Annotated[
        str | int | None, Meta(description="a name such as ef, or 0 to 63", examples=["ef"])
    ] = None
    vlan: Annotated[str | int | None, Meta(description="a number from 0 to 4094")] = None
    source_mac: Annotated[
        str | None, Meta(description="a MAC address such as 02:00:00:00:00:01")
    ] = None
    sender: Annotated[str | None, Meta(description="the name of a NIC", examples=["web"])] = None

    def __post_init__(self) -> None:
        if not self.conditions and self.sender is None:
            raise SchemaError("matches nothing: expected conditions such as {dscp: ef}")
        if self.sender is not None:
            try:
                parse_name(self.sender, "the name of a NIC, such as web")
            except ConfigError as error:
                raise SchemaError(f"sender: {error}") from None
        for key, value in self.conditions.items():
            try:
                READERS[key](value)
            except ValueError as error:
                raise SchemaError(f"{key} {shown(value)}: expected {error}") from None

    @property
    def conditions(self) -> dict[str, Any]:
        """Those of a Classifier's rule."""
        return {
            name: value
            for name in self.__struct_fields__
            if name != "sender" and (value := getattr(self, name)) is not None
        }


class ClassQueueConfig(Strict):
    """How packets of a class wait.

    A text stands for a discipline: `fq_codel` is `{discipline: fq_codel}`.

    discipline: `fifo`: one after the other. `codel`: as `fifo`, and packets are dropped or marked
        when all wait too long for too long. `fq`: each flow in its turn. `fq_codel`: both.
    target: Wait that CoDel accepts. Default: 5ms, or 1.5 full packets at the ceiling where these
        take longer.
    interval: Time for which it may be exceeded. Default: 100ms.
    ecn: Whether CoDel marks packets of senders that know ECN, in place of dropping them.
    flows: Number of queues that flows are spread over, a power of 2. Default: 1024, of `cake` 4096.
    quantum: Bytes that a flow sends in its turn. Default: 1514, of `cake` fewer below 50mbit.
    rtt: Of `cake`: round trip of the flows. A 20th of it is the wait that is accepted, and it is
        the time for which that may be exceeded. Default: 100ms.
    hosts: Of `cake`: hosts that share equally, whatever the number of their flows: those that send
        (`source`), those that receive (`destination`), `both`, or `none`: flows share equally.
        Default: `both`.
    time: Longest time that a packet may wait at the ceiling.
    size: Bytes that may wait.
    packets: Packets that may wait. Default: a time of 100ms for `fifo`, 1000 for `codel`, 10240
        with flows, a size of four round trips at the ceiling, 4 MiB to 15.5 MB, for `cake`.
    """

    discipline: Annotated[
        Literal["fifo", "codel", "fq", "fq_codel", "cake"],
        Meta(description=f"one of {', '.join(DISCIPLINES)}", examples=["fq_codel"]),
    ] = "fifo"
    target: Annotated[LineTime | None, _TIME] = None
    interval: Annotated[LineTime | None, _TIME] = None
    ecn: bool | None = None
    flows: (
        Annotated[
            int,
            Meta(ge=1, le=FLOWS_MOST, description=f"a power of 2 up to {FLOWS_MOST}"),
        ]
        | None
    ) = None
    quantum: (
        Annotated[
            int,
            Meta(
                ge=QUANTUM_LEAST,
                le=QUANTUM_MOST,
                description=f"a number of bytes, {QUANTUM_LEAST} to {QUANTUM_MOST}",
            ),
        ]
        | None
    ) = None
    rtt: Annotated[RoundTrip | None, Meta(description="a time such as 100ms")] = None
    hosts: Annotated[
        Literal["none", "source", "destination", "both"] | None,
        Meta(description=f"one of {', '.join(HOSTS)}"),
    ] = None
    time: Annotated[QueueLength | None, Meta(description="a time such as 100ms")] = None
    size: Annotated[QueueSize | None, Meta(description="a size such as 64kb")] = None
    packets: (
        Annotated[int, Meta(ge=1, le=1 << 20, description="a number of packets, 1 to 1048576")]
        | None
    ) = None

    @property
    def entry(self) -> dict[str, Any]:
        """The `queue` of a Scheduler's class."""
        return {
            name: value
            if isinstance(value, (int, bool)) and type(value) in (int, bool)
            else str(value)
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }


class ClassConfig(Strict):
    """A class: packets that share a rate with those of other classes.

    match: Packets of the class, of those that its parent has: one mapping, or a list of which one
        holds. Classes are tried in the order of the file, those without `match` last.
    guarantee: What it gets whenever it has packets, before others get more than theirs. Default:
        nothing; of a class with a tree, what its classes are guaranteed together.
    ceiling: The most that it gets. Default: its parent's.
    weight: Its part of what siblings leave over, in proportion to theirs.
    priority: Among siblings, 0 is first: for guarantees, and then for what is left over.
    latency: How long it may send at its ceiling after a pause before its guarantee is used up.
    queue: How its packets wait. Excludes tree.
    tree: Classes that share what it gets, by name.
    """

    match: Annotated[
        list[MatchConfig], Meta(description="conditions such as {dscp: ef}, or a list of them")
    ] = []
    guarantee: Annotated[LineRate | None, _RATE] = None
    ceiling: Annotated[LineRate | None, _RATE] = None
    weight: Annotated[
        int, Meta(ge=1, le=WEIGHT_MOST, description=f"a number from 1 to {WEIGHT_MOST}")
    ] = 1
    priority: Annotated[
        int, Meta(ge=0, le=PRIORITIES - 1, description=f"a number from 0 to {PRIORITIES - 1}")
    ] = PRIORITY_DEFAULT
    latency: Annotated[LineTime | None, _TIME] = None
    queue: Annotated[
        ClassQueueConfig | None,
        Meta(
            description=f"one of {', '.join(DISCIPLINES)}, or a mapping",
            examples=[{"discipline": "fq_codel"}],
        ),
    ] = None
    tree: Annotated[
        dict[str, ClassConfig],
        Meta(description="a mapping from names to classes", examples=[{"rest": {}}]),
    ] = {}


class ClassStepConfig(Strict):
    """Numbers of a class that a step of a scenario changes.

    rate: Of a place without the name of a class: what all its classes share.
    guarantee: As in `classes`.
    ceiling: As in `classes`.
    weight: As in `classes`.
    priority: As in `classes`.
    latency: As in `classes`.
    """

    rate: Annotated[LineRate | None, _RATE] = None
    guarantee: Annotated[LineRate | None, _RATE] = None
    ceiling: Annotated[LineRate | None, _RATE] = None
    weight: (
        Annotated[int, Meta(ge=1, le=WEIGHT_MOST, description=f"a number from 1 to {WEIGHT_MOST}")]
        | None
    ) = None
    priority: (
        Annotated[
            int, Meta(ge=0, le=PRIORITIES - 1, description=f"a number from 0 to {PRIORITIES - 1}")
        ]
        | None
    ) = None
    latency: Annotated[LineTime | None, _TIME] = None

    @property
    def given(self) -> dict[str, Any]:
        """The numbers that it has, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}


class ClassesConfig(Strict):
    """A rate that is shared by classes.

    rate: What all classes share.
    overhead: What the line behind adds to each packet, counted against all rates.
    default: The class, by its path such as `gold/rest`, of packets that no class matches.
    tree: Classes by name.
    """

    rate: Annotated[LineRate, _RATE]
    default: Annotated[str, Meta(description="the path of a class such as rest", examples=["rest"])]
    tree: Annotated[
        dict[str, ClassConfig],
        Meta(description="a mapping from names to classes", examples=[{"rest": {}}]),
    ]
    overhead: Annotated[OverheadConfig | None, OVERHEAD_META] = None

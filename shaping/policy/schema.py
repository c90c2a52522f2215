"""The schema of policy files as typed structs.

Each field is described in two places, as in the configuration's schema: the docstring of its struct
says what the field does, and the `description` of its type which values are accepted.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from dataplane.config.convert import shown
from dataplane.config.scalars import SchemaError
from dataplane.errors import ConfigError
from shaping.impairment_settings import BY_MOST
from shaping.loss_model import Chain, chain_of
from shaping.policy.class_schema import ClassesConfig, ClassStepConfig, MatchConfig
from shaping.policy.keys import NAME_MOST
from shaping.policy.overhead_schema import OVERHEAD_META, OverheadConfig
from shaping.policy.scalars import (
    HoldTime,
    LineRate,
    LineTime,
    QueueLength,
    QueueSize,
    Share,
    StepTime,
)
from shaping.policy.share_schema import ShareConfig
from shaping.policy.strict import Strict as _Strict

POLICY_VERSION = 1
LINKS_MOST = 4096
MATCHES_MOST = 64  # of one part
STEPS_MOST = 1000
SEED_MOST = 2**63 - 1

_SHARE = Meta(description="a share of packets from 0% to 100%, such as 1%", examples=["1%"])
_CORRELATION = Meta(description="a correlation from 0% to 99%, such as 25%", examples=["25%"])
CORRELATION_MOST = Share("99%")  # with 100% nothing ever changes


class LossConfig(_Strict):
    """Packets that are lost, by one of four models.

    A text stands for independent losses: `1%` is `{share: 1%}`. With `share` alone losses are
    independent; with `burst` or `correlation` they come in bursts (Gilbert's model). `to_bad` and
    `to_good` make Gilbert and Elliott's model, `p13` and what goes with it the 4-state model.

    share: Share of all packets that are lost in the long run.
    burst: Mean number of packets that are lost in a row.
    correlation: Correlation between the losses of one packet and the next.
    to_bad: Probability to go from the good state to the bad one, for each packet.
    to_good: Probability to go from the bad state to the good one.
    bad: Share of packets that are lost in the bad state. Default: 100%.
    good: Share of packets that are lost in the good state. Default: 0%.
    p13: Probability that a burst begins, in the state without losses.
    p31: Probability that a burst ends. Default: 100% less `p13`.
    p32: Probability that packets pass within a burst. Default: 0%.
    p23: Probability that losses go on within a burst. Default: 100%.
    p14: Probability of a single loss outside of bursts. Default: 0%.
    """

    share: Annotated[Share | None, _SHARE] = None
    burst: (
        Annotated[
            float,
            Meta(ge=1, le=1e6, description="a number of packets from 1, such as 4", examples=[4]),
        ]
        | None
    ) = None
    correlation: Annotated[Share | None, _CORRELATION] = None
    to_bad: Annotated[Share | None, _SHARE] = None
    to_good: Annotated[Share | None, _SHARE] = None
    bad: Annotated[Share | None, _SHARE] = None
    good: Annotated[Share | None, _SHARE] = None
    p13: Annotated[Share | None, _SHARE] = None
    p31: Annotated[Share | None, _SHARE] = None
    p32: Annotated[Share | None, _SHARE] = None
    p23: Annotated[Share | None, _SHARE] = None
    p14: Annotated[Share | None, _SHARE] = None

    MODELS: ClassVar[dict[str, tuple[str, ...]]] = {
        "share": ("share", "burst", "correlation"),
        "to_bad": ("to_bad", "to_good", "bad", "good"),
        "p13": ("p13", "p31", "p32", "p23", "p14"),
    }

    @property
    def entry(self) -> str | dict[str, Any]:
        """The setting in the form of an Impairment's argument."""
        given = {
            name: value
            for name in self.MODELS[self.model]
            if (value := getattr(self, name)) is not None
        }
        if list(given) == ["share"]:
            return str(self.share)
        entry: dict[str, Any] = {name: str(value) for name, value in given.items()}
        if self.burst is not None:
            entry["burst"] = int(self.burst) if self.burst.is_integer() else self.burst
        return entry

    @property
    def chain(self) -> Chain:
        """What it does to packets."""
        return chain_of("loss", self.entry) or Chain((0.0,), ((1.0,),))

    @property
    def model(self) -> str:
        """The first key of its model: share, to_bad or p13."""
        return next(model for model in self.MODELS if getattr(self, model) is not None)

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        models = {
            model: [name for name in names if name in given] for model, names in self.MODELS.items()
        }
        used = [model for model, names in models.items() if names]
        if len(used) != 1:
            what = "has no model" if not used else f"mixes models ({', '.join(given)})"
            raise SchemaError(
                f"{what}: expected 1%, {{share: 1%, burst: 4}}, {{to_bad: 1%, to_good: 25%}} or "
                "{p13: 1%, p31: 25%}"
            )
        if used[0] not in given:
            raise SchemaError(f"{given[0]} without {used[0]}: expected {used[0]}, too")
        {
            "share": self._check_share,
            "to_bad": self._check_states,
            "p13": self._check_four_states,
        }[used[0]]()

    def _check_share(self) -> None:
        share = self.share or Share(0)
        if self.burst is not None and self.correlation is not None:
            raise SchemaError("has both burst and correlation: expected one of them")
        if self.correlation is not None and self.correlation > CORRELATION_MOST:
            raise SchemaError(
                f"correlation {self.correlation}: expected at most {CORRELATION_MOST}"
            )
        if self.burst is not None:
            most = 1 - 1 / (Fraction(str(self.burst)) + 1)
            if share > most:
                raise SchemaError(
                    f"bursts of {self.burst:g} with one packet between them lose "
                    f"{100 * float(most):.4g}%: expected share to be at most that"
                )

    def _check_states(self) -> None:
        if self.to_good is None:
            raise SchemaError("to_bad without to_good: expected to_good, such as 25%")
        if self.to_bad and not self.to_good:
            raise SchemaError("to_good 0% never leaves the bad state: expected more than 0%")
        self.bad = Share(1) if self.bad is None else self.bad
        self.good = Share(0) if self.good is None else self.good

    def _check_four_states(self) -> None:
        assert self.p13 is not None
        self.p31 = Share(1 - self.p13) if self.p31 is None else self.p31
        self.p32 = Share(0) if self.p32 is None else self.p32
        self.p23 = Share(1) if self.p23 is None else self.p23
        self.p14 = Share(0) if self.p14 is None else self.p14
        for first, second, together in (
            ("p13", "p14", self.p13 + self.p14),
            ("p31", "p32", self.p31 + self.p32),
        ):
            if together > 1:
                raise SchemaError(f"{first} and {second} are more than 100% together: lower one")
        if self.p13 and not self.p31:
            raise SchemaError("p31 0% never ends a burst: expected more than 0%")
        if self.p32 and not self.p23:
            raise SchemaError("p23 0% never leaves state 2: expected more than 0%, or p32: 0%")


class DelayConfig(_Strict):
    """Delay of packets, from the line's end on: waiting for the rate comes on top.

    A text stands for a constant delay: `40ms` is `{mean: 40ms}`.

    mean: Mean delay in one direction.
    jitter: Variation of the delay: with shape `uniform` the delay is at most this much shorter or
        longer, with the others it is the standard deviation. Default: the delay is
        constant.
    shape: Distribution of the delay.
    correlation: Correlation between the delays of one packet and the next. Default: 0%.
    order: Whether packets stay in order (`keep`), or a packet with a short delay overtakes others
        (`any`).
    """

    mean: Annotated[LineTime, Meta(description="a time such as 40ms", examples=["40ms"])]
    jitter: Annotated[
        LineTime | None, Meta(description="a time such as 10ms", examples=["10ms"])
    ] = None
    shape: Annotated[
        Literal["uniform", "normal", "pareto"],
        Meta(description="uniform, normal or pareto"),
    ] = "uniform"
    correlation: Annotated[Share | None, _CORRELATION] = None
    order: Annotated[Literal["keep", "any"], Meta(description="keep or any")] = "keep"

    def __post_init__(self) -> None:
        if (self.correlation or 0) > CORRELATION_MOST:
            raise SchemaError(
                f"correlation {self.correlation}: expected at most {CORRELATION_MOST}"
            )
        if self.jitter is None and (
            self.shape != "uniform" or self.correlation is not None or self.order != "keep"
        ):
            raise SchemaError(
                "has shape, correlation or order, and no jitter: expected jitter, such as 10ms"
            )

    @property
    def longest(self) -> int:
        """The mean and the jitter."""
        return self.mean + (self.jitter or 0)


class CorruptConfig(_Strict):
    """Packets in which bits are changed.

    A text stands for a share: `0.1%` is `{share: 0.1%}`.

    share: Share of packets that are changed.
    part: Part of the packet in which bits are changed; with `checksum: mend` the payload.
    checksum: Whether the packet's checksums stay as they are (`keep`), so that the receiver
        discards the packet, or are made valid (`mend`), so that the change reaches the application.
    """

    share: Annotated[Share, _SHARE]
    part: Annotated[
        Literal["any", "header", "payload"], Meta(description="any, header or payload")
    ] = "any"
    checksum: Annotated[Literal["keep", "mend"], Meta(description="keep or mend")] = "keep"

    def __post_init__(self) -> None:
        if self.checksum == "mend":
            if self.part == "header":
                raise SchemaError(
                    "checksum mend with part header: expected part: payload, whose checksums alone "
                    "can be made valid"
                )
            self.part = "payload"


class ReorderConfig(_Strict):
    """Packets that others overtake.

    A text stands for a share: `1%` is `{share: 1%}`.

    share: Share of packets that are held back.
    by: Number of packets that overtake a packet that is held back.
    within: Longest time that it waits for them.
    """

    share: Annotated[Share, _SHARE]
    by: Annotated[
        int, Meta(ge=1, le=BY_MOST, description=f"a number of packets, 1 to {BY_MOST}")
    ] = 1
    within: Annotated[HoldTime, Meta(description="a time such as 100ms")] = msgspec.field(
        default_factory=lambda: HoldTime("100ms")
    )


class QueueConfig(_Strict):
    """The longest queue in front of a line. Packets for which it has no place are dropped.

    A text stands for a time or a size: `100ms` is `{time: 100ms}`, `64kb` is `{size: 64kb}`.

    time: Longest time that a packet may wait for the rate.
    size: Bytes that may wait.
    packets: Packets that may wait, segments of GSO frames counted one by one.
    """

    time: Annotated[
        QueueLength | None, Meta(description="a time such as 100ms", examples=["100ms"])
    ] = None
    size: Annotated[QueueSize | None, Meta(description="a size such as 64kb")] = None
    packets: (
        Annotated[int, Meta(ge=1, le=1 << 20, description="a number of packets, 1 to 1048576")]
        | None
    ) = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.time, self.size, self.packets)) != 1:
            raise SchemaError("expected one of time, size and packets, such as {packets: 100}")


class TraceConfig(_Strict):
    """The course of a line's rate.

    A text stands for a file: `lte.up` is `{file: lte.up}`. A list stands for steps.

    file: File with a trace, in a format of `vnic shape trace import`. A relative path begins at the
        directory of the policy. The file is read once, when the policy is.
    loop: Whether the trace begins again at its end. Otherwise opportunities end, and of rates the
        last one stays.
    steps: Rates that each hold for a time, `{for: 10s, rate: 5mbit}`, or from a time on, `{at: 10s,
        rate: 5mbit}`; then the last one is the end, `{at: 30s}`. `0bit` is no rate at all.
    digest: SHA-256 of the content that was read from `file`, which is in `traces`.
    """

    file: (
        Annotated[
            str,
            Meta(min_length=1, max_length=4096, description="a path", examples=["lte.up"]),
        ]
        | None
    ) = None
    loop: bool = True
    steps: (
        Annotated[
            list[Any],
            Meta(
                description="a list of steps such as {for: 10s, rate: 5mbit}",
                examples=[[{"for": "10s", "rate": "5mbit"}]],
            ),
        ]
        | None
    ) = None
    digest: (
        Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="64 hexadecimal digits")] | None
    ) = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.file is None and self.digest is None):
            raise SchemaError("expected a file or steps, such as [{for: 10s, rate: 5mbit}]")
        if self.file is not None and not self.file.isprintable():
            # terminals of others show it
            raise SchemaError(f"file {shown(self.file)}: expected characters that can be printed")
        if self.steps is not None:
            from shaping.trace_setting import trace_of_steps  # loads numpy

            try:
                trace_of_steps(self.steps, self.loop)
            except ConfigError as error:
                raise SchemaError(str(error)) from None


class LineConfig(_Strict):
    """The line in one direction or both: settings of one entry of `links`.

    match: Packets of a part of the line, by their headers; one of the matches holds. For entries of
        parts, such as `web -> db/dns`.
    preset: Known line whose rate, delay and loss are taken where the entry has none of its own.
    rate: Rate of the line: bits of layer-2 frames without preamble and FCS, or what `overhead`
        says. `none` removes the rate of an earlier entry.
    trace: Rate of the line that varies with time, in place of `rate`: opportunities of a Mahimahi
        trace, or rates.
    queue: Longest queue in front of the line. Default: 100ms, or 10 packets where these take
        longer; of a trace 1000 packets.
    overhead: What the line adds to each packet, counted against the rate.
    delay: Delay in one direction; of an entry for both ways, in each of them.
    rtt: Delay there and back together, half in each direction. For entries for both ways.
    loss: Packets that are lost.
    duplicate: Share of packets that arrive twice.
    corrupt: Packets in which bits are changed.
    reorder: Packets that others overtake.
    """

    match: (
        Annotated[
            list[MatchConfig],
            Meta(
                description="conditions such as {protocol: udp, destination_port: 53}, or a list "
                "of them of which one holds",
                examples=[[{"protocol": "udp", "destination_port": 53}]],
                min_length=1,
                max_length=MATCHES_MOST,
            ),
        ]
        | None
    ) = None
    preset: Annotated[
        str | None,
        Meta(description="the name of a preset, such as wpt-3g", examples=["wpt-3g"]),
    ] = None
    rate: Annotated[
        LineRate | None, Meta(description="a rate such as 10mbit, or none", examples=["10mbit"])
    ] = None
    trace: Annotated[
        TraceConfig | None,
        Meta(
            description="a file such as lte.up, or steps [{for: 10s, rate: 5mbit}, ...]",
            examples=[[{"for": "28s", "rate": "20mbit"}, {"for": "2s", "rate": "0bit"}]],
        ),
    ] = None
    queue: Annotated[
        QueueConfig | None,
        Meta(description="100ms, 64kb or {packets: 100}", examples=[{"packets": 100}]),
    ] = None
    overhead: Annotated[OverheadConfig | None, OVERHEAD_META] = None
    delay: Annotated[
        DelayConfig | None,
        Meta(
            description="a time such as 40ms, or {mean: 40ms, jitter: 10ms}",
            examples=[{"mean": "40ms", "jitter": "10ms"}],
        ),
    ] = None
    rtt: Annotated[LineTime | None, Meta(description="a time such as 40ms", examples=["40ms"])] = (
        None
    )
    loss: Annotated[
        LossConfig | None,
        Meta(
            description="a share such as 1%, or {share: 1%, burst: 4}",
            examples=[{"share": "1%", "burst": 4}],
        ),
    ] = None
    duplicate: Annotated[Share | None, _SHARE] = None
    corrupt: Annotated[
        CorruptConfig | None,
        Meta(
            description="a share such as 0.1%, or {share: 0.1%, part: payload}",
            examples=[{"share": "0.1%"}],
        ),
    ] = None
    reorder: Annotated[
        ReorderConfig | None,
        Meta(
            description="a share such as 1%, or {share: 1%, by: 3}",
            examples=[{"share": "1%", "by": 3}],
        ),
    ] = None


_PLACES = Meta(
    description="a mapping from a place such as web -> db to settings such as {loss: 5%}",
    examples=[{"web -> db": {"loss": "5%"}}],
)


class StepConfig(_Strict):
    """A step of a scenario. It has `at` and one of `set`, `ramp` with `over`, `classes`, `link`
    with `down`, and `repeat`.

    at: Time of the step, from when the policy was applied on.
    set: Settings that lines have from then on, with keys and settings as in `links`; those that
        can change while packets flow.
    ramp: Settings that lines reach in equal parts every 100 ms, from what they are.
    classes: Numbers that classes have from then on, or with `over` reach in equal parts. A key is a
        place of `classes`, and behind a slash the class, such as `web.egress/gold`.
    over: Time after which a ramp has reached them.
    link: NIC or link on which nothing passes, in either direction.
    down: How long nothing passes.
    carrier: Whether the NIC has no carrier for that time, too, as with its cable pulled out.
    repeat: The scenario begins again, with what `links` says. Only in the last step.
    """

    at: Annotated[StepTime, Meta(description="a time such as 10s", examples=["10s"])]
    set: Annotated[dict[str, LineConfig] | None, _PLACES] = None
    ramp: Annotated[dict[str, LineConfig] | None, _PLACES] = None
    classes: Annotated[
        dict[str, ClassStepConfig] | None,
        Meta(
            description="a mapping from a class such as web.egress/gold to numbers such as "
            "{guarantee: 5mbit}",
            examples=[{"web.egress/gold": {"guarantee": "5mbit"}}],
        ),
    ] = None
    over: Annotated[StepTime | None, Meta(description="a time such as 5s", examples=["5s"])] = None
    link: (
        Annotated[
            str,
            Meta(max_length=NAME_MOST, description="the name of a NIC or link", examples=["web"]),
        ]
        | None
    ) = None
    down: Annotated[StepTime | None, Meta(description="a time such as 2s", examples=["2s"])] = None
    carrier: Annotated[
        Literal["yes", "no"] | None, Meta(description="yes or no", examples=["yes"])
    ] = None
    repeat: Annotated[Literal["yes"] | None, Meta(description="yes", examples=["yes"])] = None


class PolicyConfig(_Strict):
    """A policy: how the lines between NICs behave.

    version: Version of the file's form.
    seed: Number from which all random choices follow: the same seed makes the same choices.
        Default: one is chosen.
    classes: Classes of packets by where they share a rate. A key is `web.egress` (what NIC web
        sends), `web.ingress` (what it receives), or `lan--dmz -> dmz` (one way of a link).
    links: Lines by where they are. A key is `web -> db` (from one NIC to another), `web <-> db`
        (both ways), `web -> any` (all that NIC web sends), `any -> web` (all that it receives),
        `web` (both), the name of a link of the network (both ways), or `lan--dmz -> dmz` (one way
        of it). Of two entries for the same place and setting, the later one counts.
    traces: Contents of the traces' files by their digests, packed. vnic puts them here when it
        reads a policy, so that a policy that runs does not need the files.
    scenario: Timed changes, in the order of their times.
    shares: Capacities that several NICs or classes share, by name: what each may send follows from
        weights, levels and what the others send, and changes with it several times a second.
    """

    version: Annotated[
        int, Meta(ge=POLICY_VERSION, le=POLICY_VERSION, description=f"{POLICY_VERSION}")
    ]
    seed: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=SEED_MOST,
                description=f"a whole number from 0 to {SEED_MOST}",
                examples=[1],
            ),
        ]
        | None
    ) = None
    links: Annotated[
        dict[str, LineConfig],
        Meta(
            description="a mapping from a place such as web -> db to settings such as {rate: "
            "10mbit}",
            examples=[{"web <-> db": {"rate": "10mbit"}}],
        ),
    ] = {}
    classes: Annotated[
        dict[str, ClassesConfig],
        Meta(
            description="a mapping from a place such as web.egress to classes",
            examples=[{"web.egress": {"rate": "10mbit", "default": "rest", "tree": {"rest": {}}}}],
        ),
    ] = {}
    traces: Annotated[
        dict[str, str],
        Meta(description="a mapping from digests to packed traces, which vnic makes"),
    ] = {}
    scenario: Annotated[
        list[StepConfig],
        Meta(
            max_length=STEPS_MOST,
            description=f"a list of at most {STEPS_MOST} steps such as "
            "[{at: 10s, set: {web -> db: {loss: 5%}}}]",
            examples=[[{"at": "20s", "link": "web", "down": "2s"}]],
        ),
    ] = []
    shares: Annotated[
        dict[str, ShareConfig],
        Meta(
            description="a mapping from a name to a capacity and what shares it, such as "
            "{uplink: {capacity: 35gbit, web: {weight: 2}, db: {weight: 1}}}",
            examples=[{"uplink": {"capacity": "35gbit", "web": {"weight": 2}}}],
        ),
    ] = {}

"""Metrics for Prometheus: the numbers of `vnic stats`, `status` and `accounts`, under Prometheus'
conventions, over HTTP.

Every number is read from the same dictionaries that these commands print, so that both are equal.
Base units are seconds, bytes and packets; docs/metrics.md lists the names.

On a loopback address or a Unix socket, without authentication. Bounds keep the cost of clients low:
only GET /metrics, requests limited in size and time, connections in number, and simultaneous
requests share one text.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

from dataplane.errors import VnicError
from vnic.api.method import FRESH_TURNS, Fresh
from vnic.config.schema import MetricsConfig

HEAD_MOST = 8192  # bytes of a request
TIMEOUT_S = 5.0  # maximum duration of a connection
CONNECTIONS_MOST = 16
BACKLOG = 32  # waiting connections; asyncio also accepts up to so many at once
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RunningLine(Protocol):
    """A line of the policy of shaping, and its elements in the order in which packets pass."""

    @property
    def name(self) -> str: ...
    @property
    def rate_bps(self) -> int: ...
    @property
    def element_names(self) -> Sequence[str]: ...


class Readable(Protocol):
    """The part of vnic.runtime.runtime.Runtime that metrics read."""

    def status(self) -> dict[str, Any]: ...
    def stats(self, name: str | None = None, /) -> dict[str, Any]: ...
    def charges(self) -> dict[str, Any]: ...
    def lines(self) -> Sequence[RunningLine]: ...


class Collector:
    """Metrics of a runtime at the time of a request. process: `version` of vnic, and `supervisor`
    as in Status."""

    def __init__(self, runtime: Readable, process: Mapping[str, Any]) -> None:
        self._runtime, self._process = runtime, process

    def collect(self) -> Iterator[Metric]:
        """See https://prometheus.io/docs/practices/naming/."""
        status, stats, charges = (
            self._runtime.status(),
            self._runtime.stats(),
            self._runtime.charges(),
        )
        build = GaugeMetricFamily(
            "vnic_build_info", "1; its labels say which vnic runs.", labels=["version", "python"]
        )
        build.add_metric([self._process.get("version") or "unknown", platform.python_version()], 1)
        yield build
        restarts = (self._process.get("supervisor") or {}).get("restarts", 0)
        yield CounterMetricFamily(
            "vnic_worker_restarts",
            "Workers that were replaced after they had ended by a failure.",
            restarts,
        )
        yield GaugeMetricFamily(
            "vnic_conserved", "1 while every packet is accounted for.", int(status["conserved"])
        )
        yield from _queues(stats)
        yield from _elements(stats)
        yield from _shapers(stats)
        yield from _lines(self._runtime.lines(), stats)
        yield from _engines(status)
        cpu = CounterMetricFamily(
            "vnic_nic_cpu_seconds", "CPU time spent on behalf of a NIC.", labels=["nic"]
        )
        memory = GaugeMetricFamily(
            "vnic_nic_memory_bytes", "Memory held on behalf of a NIC.", labels=["nic"]
        )
        for account in charges["accounts"]:
            cpu.add_metric([account["nic"]], account["cpu_ns"] / 1e9)
            memory.add_metric([account["nic"]], account["memory_bytes"])
        yield cpu
        yield memory
        yield from _links(status)
        yield GaugeMetricFamily(
            "vnic_pool_packets_in_use", "Packets that are not free.", status["pool"]["in_use"]
        )
        yield GaugeMetricFamily(
            "vnic_switch_entries",
            "Addresses that the switch knows.",
            len(status["switch"]["entries"]),
        )


def _links(status: dict[str, Any]) -> Iterator[Metric]:
    link = GaugeMetricFamily("vnic_nic_link_up", "1 while the link is up.", labels=["nic"])
    rate = GaugeMetricFamily(
        "vnic_nic_rate_limit_bps",
        "Rate limit in bit/s of wire bytes, where there is one.",
        labels=WAYS,
    )
    limit = GaugeMetricFamily(
        "vnic_nic_queue_limit_bytes", "Wire bytes that may wait for a rate limit.", labels=WAYS
    )
    for nic in status["nics"]:
        link.add_metric([nic["name"]], int(nic["link"] == "up"))
        for direction in ("egress", "ingress"):
            if nic[f"{direction}_bps"]:
                rate.add_metric([nic["name"], direction], nic[f"{direction}_bps"])
                limit.add_metric([nic["name"], direction], nic[f"{direction}_queue_bytes"])
    yield from (link, rate, limit)


KINDS = (  # of queues: key of `stats`, what it counts
    ("packets", "Packets as the kernel counts them, a GSO frame as one"),
    ("bytes", "Bytes as the kernel counts them, the headers of a GSO frame once"),
    ("wire_packets", "Packets on a wire, each segment of a GSO frame as one"),
    ("wire_bytes", "Bytes on a wire, each segment of a GSO frame with its headers"),
    ("dropped", "Packets dropped"),
)


def _queues(stats: dict[str, Any]) -> Iterator[Metric]:
    for way, verb in (("rx", "receive"), ("tx", "transmit")):
        for kind, what in KINDS:
            name = f"vnic_nic_{verb}_{kind}"
            family = CounterMetricFamily(
                name, f"{what}; received is what the container sent.", labels=["nic", "queue"]
            )
            for nic in stats["nics"]:
                for number, queue in enumerate(nic["queues"]):
                    family.add_metric([nic["name"], str(number)], queue[f"{way}_{kind}"])
            yield family
    missed = CounterMetricFamily(
        "vnic_nic_queue_drops",
        "Packets sent that the NIC's queues had no room for.",
        labels=["nic"],
    )
    for nic in stats["nics"]:
        if nic["queue_drops"] is not None:
            missed.add_metric([nic["name"]], nic["queue_drops"])
    yield missed


WAYS = ["nic", "direction"]
ELEMENT = ["engine", "element"]


def _each_element(stats: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Labels and entry of every element."""
    for engine in stats["engines"]:
        for element in engine["elements"]:
            yield [engine["name"], element["name"]], element


def _elements(stats: dict[str, Any]) -> Iterator[Metric]:
    packets = CounterMetricFamily(
        "vnic_element_packets",
        "Packets that entered an element, or that a source took from its port.",
        labels=ELEMENT,
    )
    drops = CounterMetricFamily(
        "vnic_element_dropped_packets",
        "Packets that an element dropped.",
        labels=[*ELEMENT, "reason"],
    )
    held = GaugeMetricFamily(
        "vnic_element_held_packets", "Packets inside an element.", labels=ELEMENT
    )
    own = ["type", "counter"]
    events = CounterMetricFamily(
        "vnic_element_events",
        "Counters of an element's class, see its text.",
        labels=[*ELEMENT, *own],
    )
    octets = CounterMetricFamily(
        "vnic_element_bytes",
        "Counters of an element's class that count bytes.",
        labels=[*ELEMENT, *own],
    )
    matched = CounterMetricFamily(
        "vnic_classifier_rule_packets", "Packets that a rule matched.", labels=[*ELEMENT, "rule"]
    )
    for labels, element in _each_element(stats):
        packets.add_metric(labels, element["packets"])
        held.add_metric(labels, element["held"])
        for reason, count in element["dropped"].items():
            drops.add_metric([*labels, reason], count)
        if "sojourn_ns" not in element["counters"]:  # see _shapers
            for counter, count in element["counters"].items():
                family = octets if counter.endswith("bytes") else events
                family.add_metric([*labels, element["type"], counter], count)
        for rule, count in enumerate(element.get("hits", ())):
            matched.add_metric([*labels, str(rule)], count)
    yield from (packets, drops, held, events, octets, matched)


def _shapers(stats: dict[str, Any]) -> Iterator[Metric]:
    """The counters of shaping.shaper.Shaper, and of Link, which is one. The delay is a summary: its
    sum over its count is the mean."""
    delay = SummaryMetricFamily(
        "vnic_shaper_delay_seconds",
        "Time that a packet spent in the queue of a shaper.",
        labels=ELEMENT,
    )
    longest = GaugeMetricFamily(
        "vnic_shaper_delay_max_seconds", "The longest of these times so far.", labels=ELEMENT
    )
    sent = CounterMetricFamily(
        "vnic_shaper_sent_bytes", "Wire bytes sent while there was a rate.", labels=ELEMENT
    )
    delayed = CounterMetricFamily(
        "vnic_shaper_delayed_packets", "Packets that had to wait.", labels=ELEMENT
    )
    split = CounterMetricFamily(
        "vnic_shaper_split_packets", "GSO frames that were cut into smaller ones.", labels=ELEMENT
    )
    queue = GaugeMetricFamily("vnic_shaper_queue_bytes", "Wire bytes that wait.", labels=ELEMENT)
    packets = GaugeMetricFamily(
        "vnic_shaper_queue_packets", "Packets that wait, a GSO frame as one.", labels=ELEMENT
    )
    most = GaugeMetricFamily(
        "vnic_shaper_queue_max_bytes",
        "The most wire bytes that waited at once so far.",
        labels=ELEMENT,
    )
    limit = GaugeMetricFamily(
        "vnic_shaper_queue_limit_bytes",
        "Wire bytes that may wait, where there is a rate.",
        labels=ELEMENT,
    )
    line = GaugeMetricFamily(
        "vnic_link_line_packets", "Packets on a line or being sent on it.", labels=ELEMENT
    )
    for labels, element in _each_element(stats):
        counters = element["counters"]
        if "sojourn_ns" not in counters:
            continue
        on_line = counters.get("line_packets", 0)
        delay.add_metric(
            labels, counters["passed"] + counters["delayed"], counters["sojourn_ns"] / 1e9
        )
        longest.add_metric(labels, counters["sojourn_max_ns"] / 1e9)
        sent.add_metric(labels, counters["sent_bytes"])
        delayed.add_metric(labels, counters["delayed"])
        split.add_metric(labels, counters["split"])
        queue.add_metric(labels, counters["queue_bytes"])
        packets.add_metric(labels, element["held"] - on_line)
        if "line_packets" in counters:
            line.add_metric(labels, on_line)
        most.add_metric(labels, counters["queue_bytes_max"])
        if element.get("queue_limit_bytes") is not None:
            limit.add_metric(labels, element["queue_limit_bytes"])
    yield from (delay, longest, sent, delayed, split, queue, packets, most, limit, line)


LINE = ["line"]
LINE_COUNTERS = (  # of a line: the counter of its elements, the name, what it counts
    ("sent_bytes", "sent_bytes", "Bytes that the rate of a line counts, with its overhead."),
    ("lost", "lost_packets", "Packets that a line lost, as asked."),
    ("duplicated", "duplicated_packets", "Copies that a line made, as asked."),
    ("corrupted", "corrupted_packets", "Packets that a line corrupted, as asked."),
    ("reordered", "reordered_packets", "Packets that others overtook, as asked."),
)


def _lines(lines: Sequence[RunningLine], stats: dict[str, Any]) -> Iterator[Metric]:
    """The lines of the policy of shaping: the counters of their elements, of which the last one
    delivers."""
    elements = {element["name"]: element for _, element in _each_element(stats)}
    found = [
        (line, mine)
        for line in lines
        if (mine := [elements[name] for name in line.element_names if name in elements])
    ]
    packets = CounterMetricFamily(
        "vnic_line_packets", "Packets on a wire that a line delivered.", labels=LINE
    )
    octets = CounterMetricFamily("vnic_line_bytes", "Their layer-2 bytes.", labels=LINE)
    drops = CounterMetricFamily(
        "vnic_line_dropped_packets",
        "Packets that a line dropped, for other reasons than that it was to lose them.",
        labels=[*LINE, "reason"],
    )
    rate = GaugeMetricFamily("vnic_line_rate_bps", "The rate asked for, in bit/s.", labels=LINE)
    queue = SummaryMetricFamily(
        "vnic_line_queue_seconds", "Time that packets waited for a line's rate.", labels=LINE
    )
    delay = SummaryMetricFamily(
        "vnic_line_delay_seconds",
        "Delays of a line, but not a constant one behind a rate.",
        labels=LINE,
    )
    for line, mine in found:
        last = mine[-1]["counters"]
        packets.add_metric([line.name], last.get("delivered_packets", mine[-1]["packets"]))
        octets.add_metric([line.name], last.get("delivered_bytes", 0))
        if line.rate_bps:
            rate.add_metric([line.name], line.rate_bps)
        reasons: dict[str, int] = {}
        for element in mine:
            for reason, count in element["dropped"].items():
                reasons[reason] = reasons.get(reason, 0) + count
            counters = element["counters"]
            if "sojourn_ns" in counters:
                count = counters["passed"] + counters["delayed"]
                queue.add_metric([line.name], count, counters["sojourn_ns"] / 1e9)
            if "delay_ns" in counters:
                delay.add_metric([line.name], counters["delayed"], counters["delay_ns"] / 1e9)
        for reason, count in reasons.items():
            if reason != "loss":
                drops.add_metric([line.name, reason], count)
    yield from (packets, octets, drops, rate, queue, delay)
    for counter, name, text in LINE_COUNTERS:
        family = CounterMetricFamily(f"vnic_line_{name}", text, labels=LINE)
        for line, mine in found:
            for element in mine:
                if counter in element["counters"]:
                    family.add_metric([line.name], element["counters"][counter])
        yield family


def _engines(status: dict[str, Any]) -> Iterator[Metric]:
    for key, name, text, scale in (
        ("cpu_ns", "vnic_engine_cpu_seconds", "CPU time of an engine.", 1e-9),
        ("overruns", "vnic_engine_overruns", "Turns that took longer than the group's budget.", 1),
        ("sleeps", "vnic_engine_sleeps", "Times that an engine went to sleep.", 1),
    ):
        family = CounterMetricFamily(name, text, labels=["engine"])
        for engine in status["engines"]:
            family.add_metric([engine["name"]], engine[key] * scale)
        yield family


def text_of(runtime: Readable, process: Mapping[str, Any]) -> bytes:
    """The exposition, in Prometheus' text format. process: see Collector."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(runtime, process))
    return generate_latest(registry)


def families_of(runtime: Readable, process: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same for programs: [{"name", "type", "help", "samples": [{"name", "labels",
    "value"}]}]."""
    return [
        {
            "name": family.name,
            "type": family.type,
            "help": family.documentation,
            "samples": [
                {"name": each.name, "labels": each.labels, "value": each.value}
                for each in family.samples
            ],
        }
        for family in Collector(runtime, process).collect()
    ]


@contextlib.asynccontextmanager
async def serving(  # type: ignore[no-untyped-def]
    config: MetricsConfig, runtime: Readable, process: Mapping[str, Any], *, first: bool = True
):
    """Serves metrics at the configured address. first: no other worker of this instance serves it.
    Raises VnicError where the address is in use."""
    fresh = Fresh(FRESH_TURNS)
    connected: list[asyncio.WriteTransport] = []  # the oldest first

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Closes the oldest connection: else 16 idle connections would block all others.
        if len(connected) >= CONNECTIONS_MOST:
            connected.pop(0).abort()
        connected.append(transport := writer.transport)
        transport.set_write_buffer_limits(0)  # drain() then returns once the kernel has all bytes
        try:
            async with asyncio.timeout(TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(
                    _respond(
                        head.split(b"\r\n", 1)[0],
                        lambda: fresh.get(None, lambda: text_of(runtime, process)),
                    )
                )
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            transport.abort()  # close() would wait forever for a client that does not read
            with contextlib.suppress(ValueError):  # it was removed by a newer connection
                connected.remove(transport)

    try:
        if config.socket is not None:
            # Replaces an existing socket, such as the previous worker's, but no other file.
            server = await asyncio.start_unix_server(
                answer, config.socket, limit=HEAD_MOST, backlog=BACKLOG
            )
        else:
            host, _, port = str(config.listen).rpartition(":")
            if first:  # else two instances of a user would share the port (reuse_port)
                async with await asyncio.start_server(answer, host.strip("[]"), int(port)):
                    pass
            # reuse_port: the previous worker may still listen for a moment.
            server = await asyncio.start_server(
                answer,
                host.strip("[]"),
                int(port),
                limit=HEAD_MOST,
                backlog=BACKLOG,
                reuse_port=True,
            )
    except OSError as error:
        raise VnicError(
            f"metrics: {config.socket or config.listen}: {error.strerror}; choose another place"
        ) from None
    try:
        yield
    finally:
        server.close()


def _respond(request: bytes, text: Callable[[], bytes]) -> bytes:
    words = request.split(b" ")
    if (
        len(words) != 3
        or words[0] not in (b"GET", b"HEAD")
        or words[1].split(b"?")[0] != b"/metrics"
    ):
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    body = text()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    return head if words[0] == b"HEAD" else head + body

"""Known lines by name, with the tools that their numbers come from.

Each preset says whether its delay is a round trip (`rtt`, half in each direction) or one way
(`delay`), since tools differ in what they call latency: a number copied from one to the other is
easily halved or doubled.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.config.convert import shown
from shaping.policy.scalars import LineRate, LineTime, Share

WEBPAGETEST = "WebPageTest's connectivity profiles"
CHROME = (
    "Chrome DevTools' throttling, nominal numbers: DevTools itself delays requests above TCP, by "
    "several round trips"
)
LIGHTHOUSE = "Lighthouse's throttling constants"
FIREFOX = "Firefox' network throttling profiles"
ATC = "Augmented Traffic Control's profiles, one-way delays"
COMCAST = "comcast's network conditions, which it applies to what is sent only"

NO_LOSS = Share(0)


@dataclass(frozen=True)
class Preset:
    """Two directions, seen from the user of the line.

    down, up    rates; 0: no limit
    rtt         round trip, or None where the origin has one-way delays
    delay       (down, up) one way, or None where the origin has a round trip
    loss        share of packets that each direction loses
    one_way     the origin has one direction only: it is `up`, and `down` is as without the preset
    """

    name: str
    origin: str
    down: LineRate
    up: LineRate
    rtt: LineTime | None = None
    delay: tuple[LineTime, LineTime] | None = None
    loss: Share = NO_LOSS
    one_way: bool = False

    @property
    def delays(self) -> tuple[LineTime, LineTime]:
        """(down, up) one way."""
        return self.delay if self.delay is not None else halves(self.rtt or LineTime(0))

    @property
    def delay_text(self) -> str:
        """`rtt: 300ms`, or `delay: 90ms down, 100ms up`."""
        if self.delay is None:
            return f"rtt: {self.rtt}"
        down, up = self.delay
        if self.one_way:
            return f"delay: {up}"
        return f"delay: {up} each way" if up == down else f"delay: {down} down, {up} up"


def no_preset(name: str) -> str:
    """An error for a name that no preset has."""
    close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "`vnic shape presets` lists them"
    return f"there is no preset {shown(name)}; {hint}"


def halves(rtt: LineTime) -> tuple[LineTime, LineTime]:
    """A round trip as two one-way delays; the first is a nanosecond longer where it is odd."""
    return LineTime(rtt - rtt // 2), LineTime(rtt // 2)


def _rtt(origin: str, prefix: str, rows: str) -> Iterator[Preset]:
    """Rows of: name, down, up, round trip."""
    for row in rows.strip().splitlines():
        name, down, up, rtt = row.split()
        yield Preset(f"{prefix}-{name}", origin, LineRate(down), LineRate(up), rtt=LineTime(rtt))


def _both_delays(origin: str, prefix: str, rows: str) -> Iterator[Preset]:
    """Rows of: name, down, up, delay down, delay up, loss in each direction."""
    for row in rows.strip().splitlines():
        name, down, up, delay_down, delay_up, loss = row.split()
        yield Preset(
            f"{prefix}-{name}",
            origin,
            LineRate(down),
            LineRate(up),
            delay=(LineTime(delay_down), LineTime(delay_up)),
            loss=Share(loss),
        )


def _one_way(origin: str, prefix: str, rows: str) -> Iterator[Preset]:
    """Rows of: name, rate, delay, loss."""
    for row in rows.strip().splitlines():
        name, rate, delay, loss = row.split()
        yield Preset(
            f"{prefix}-{name}",
            origin,
            LineRate(0),
            LineRate(rate),
            delay=(LineTime(0), LineTime(delay)),
            loss=Share(loss),
            one_way=True,
        )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        *_rtt(
            WEBPAGETEST,
            "wpt",
            """
            dial    49kbit   30kbit   120ms
            edge    240kbit  200kbit  840ms
            2g      280kbit  256kbit  800ms
            3gslow  400kbit  400kbit  400ms
            3g      1.6mbit  768kbit  300ms
            3gfast  1.6mbit  768kbit  150ms
            4g      9mbit    9mbit    170ms
            lte     12mbit   12mbit   70ms
            dsl     1.5mbit  384kbit  50ms
            cable   5mbit    1mbit    28ms
            fios    20mbit   5mbit    4ms
            """,
        ),
        *_rtt(
            CHROME,
            "chrome",
            """
            slow-3g  500kbit  500kbit  400ms
            slow-4g  1.6mbit  750kbit  150ms
            fast-4g  9mbit    1.5mbit  60ms
            """,
        ),
        *_rtt(
            LIGHTHOUSE,
            "lighthouse",
            """
            slow-4g     1638.4kbit   750kbit  150ms
            regular-3g  700kbit      700kbit  300ms
            desktop     10.24mbit    none     40ms
            """,
        ),
        *_rtt(
            FIREFOX,
            "firefox",
            """
            gprs     50kbit   20kbit   500ms
            2g       250kbit  50kbit   300ms
            good-2g  450kbit  150kbit  150ms
            3g       750kbit  250kbit  100ms
            good-3g  1.5mbit  750kbit  40ms
            lte      4mbit    3mbit    20ms
            dsl      2mbit    1mbit    5ms
            wifi     30mbit   15mbit   2ms
            """,
        ),
        *_both_delays(
            ATC,
            "atc",
            """
            2g-rural      20kbit   18kbit   650ms  650ms  2%
            2g-urban      35kbit   32kbit   650ms  650ms  0%
            edge-good     250kbit  200kbit  350ms  370ms  0%
            edge-average  240kbit  200kbit  400ms  440ms  0%
            edge-lossy    240kbit  200kbit  400ms  440ms  1%
            3g-good       850kbit  420kbit  90ms   100ms  0%
            3g-average    780kbit  330kbit  100ms  100ms  0%
            dsl           2mbit    256kbit  5ms    5ms    0%
            cable         6mbit    1mbit    2ms    2ms    0%
            """,
        ),
        *_one_way(
            COMCAST,
            "comcast",
            """
            gprs      50kbit   500ms  2%
            edge      250kbit  300ms  1.5%
            3g        750kbit  250ms  1.5%
            dialup    40kbit   185ms  2%
            dsl-poor  2mbit    70ms   2%
            dsl-good  8mbit    40ms   0.5%
            wifi      30mbit   40ms   0.2%
            starlink  none     20ms   2.5%
            """,
        ),
    )
}

"""tc scripts and listings read as policies."""

from __future__ import annotations

import random

import pytest

from dataplane.errors import ConfigError
from shaping.imports.correlation import met_share
from shaping.imports.form import TEXT_MOST, Names
from shaping.imports.notes import NOTES_MOST, Notes
from shaping.imports.shell import LINE_MOST, LINES_MOST
from shaping.imports.tc import read_tc


def read(text: str, given: dict[str, str] | None = None, nic: str | None = "web"):
    """(links, classes, notes) of a text; every policy must be one that a file can hold."""
    notes = Notes()
    draft = read_tc(text, "tc.sh", Names(given or {}, nic if not given else None, notes))
    draft.check()
    assert draft.text
    return draft.links, draft.classes, [str(each) for each in notes.findings]


def lines(text: str, **more):
    links, classes, _ = read(text, **more)
    assert classes == {}
    return links


def netem(options: str):
    return lines(f"tc qdisc add dev eth0 root netem {options}").get("web -> any", {})


def refused(text: str, **more) -> list[str]:
    return [each for each in read(text, **more)[2] if ": error: " in each]


# -- netem -----------------------------------------------------------------------------------------

NETEM = [
    ("", {}),
    ("delay 100ms", {"delay": "100ms"}),
    ("latency 0.1s", {"delay": "100ms"}),
    ("delay 100us limit 5", {"delay": "100us"}),
    ("delay 100ms 10ms", {"delay": {"mean": "100ms", "jitter": "10ms", "order": "any"}}),
    (
        "delay 100ms 10ms 25%",
        {"delay": {"mean": "100ms", "jitter": "10ms", "correlation": "25%", "order": "any"}},
    ),
    (
        "delay 100ms 10ms distribution normal",
        {"delay": {"mean": "100ms", "jitter": "10ms", "shape": "normal", "order": "any"}},
    ),
    (
        "delay 100ms 10ms distribution pareto",
        {"delay": {"mean": "99.67ms", "jitter": "8.2ms", "shape": "pareto", "order": "any"}},
    ),
    (
        "delay 100ms 10ms distribution paretonormal",
        {"delay": {"mean": "99.75ms", "jitter": "8.34ms", "shape": "pareto", "order": "any"}},
    ),
    ("loss 1%", {"loss": "1%"}),
    ("loss random 0.3", {"loss": "0.3%"}),
    ("drop 5%", {"loss": "5%"}),
    ("loss 0.3% 25%", {"loss": {"share": "0.3%", "correlation": "25%"}}),
    ("loss 100%", {"loss": "100%"}),
    ("loss state 1%", {"loss": {"p13": "1%"}}),
    (
        "loss state 1% 20% 10% 30% 0.5%",
        {"loss": {"p13": "1%", "p31": "20%", "p32": "10%", "p23": "30%", "p14": "0.5%"}},
    ),
    ("loss gemodel 1%", {"loss": {"to_bad": "1%", "to_good": "99%"}}),
    (
        "loss gemodel 1% 25% 50% 0.1%",
        {"loss": {"to_bad": "1%", "to_good": "25%", "bad": "50%", "good": "0.1%"}},
    ),
    ("duplicate 1%", {"duplicate": "1%"}),
    ("corrupt 0.1%", {"corrupt": "0.1%"}),
    ("delay 10ms reorder 25%", {"delay": "10ms", "reorder": {"share": "25%", "by": 1}}),
    ("delay 10ms reorder 25% 50% gap 5", {"delay": "10ms", "reorder": {"share": "12.5%", "by": 1}}),
    ("delay 10ms reorder 100% gap 4", {"delay": "10ms", "reorder": {"share": "25%", "by": 1}}),
    ("rate 1mbit", {"rate": "1mbit", "queue": {"packets": 1000}}),
    ("rate 1mbps limit 9", {"rate": "8mbit", "queue": {"packets": 9}}),
    ("rate 20000", {"rate": "20kbit", "queue": {"packets": 1000}}),
    ("rate 1mibit", {"rate": "1048.576kbit", "queue": {"packets": 1000}}),
    ("rate 5mbit 20", {"rate": "5mbit", "queue": {"packets": 1000}, "overhead": {"bytes": 34}}),
    ("rate 5mbit -10", {"rate": "5mbit", "queue": {"packets": 1000}, "overhead": {"bytes": 4}}),
    (
        "rate 5mbit 18 48 5",
        {"rate": "5mbit", "queue": {"packets": 1000}, "overhead": "pppoe-vcmux"},
    ),
    (
        "rate 5mbit delay 20ms 5ms",
        {"rate": "5mbit", "queue": {"packets": 1000}, "delay": {"mean": "20ms", "jitter": "5ms"}},
    ),
    ("delay 0", {}),
    ("lo 1% du 2% co 3%", {"loss": "1%", "duplicate": "2%", "corrupt": "3%"}),
]


@pytest.mark.parametrize(("options", "line"), NETEM)
def test_netem(options, line):
    assert netem(options) == line


WRONG_NETEM = [
    ("delay 100", "netem delay '100' has no unit (ns, us or ms, depending on the version of tc): write 100ms, 100us or 100ns"),
    ("delay 1 2", "netem delay '1' has no unit"),
    ("delay 10ms 5", "netem jitter '5' has no unit"),
    ("delay nan", "netem delay 'nan': expected a number such as 40ms"),
    ("delay inf", "netem delay 'inf': expected a number such as 40ms"),
    ("delay -1ms", "netem delay '-1ms': expected a number such as 40ms"),
    ("delay 1e30ms", "netem delay '1e30ms': expected a number such as 40ms"),
    ("delay", "netem delay: has no value"),
    ("delay 5parsec", "netem delay '5parsec': unknown unit"),
    ("loss 101%", "netem loss '101%': expected 0% to 100%"),
    ("loss nan", "netem loss: unknown word 'nan': expected a share, random, state or gemodel"),
    ("loss 1% loss 2%", "netem loss: is there twice"),
    ("loss 1_0", "netem loss '1_0': expected a number such as 1%"),
    ("loss ١%", "netem loss: unknown word"),
    ("reorder 25%", "netem reorder: needs a delay"),
    ("delay 1ms gap 5", "netem gap: needs reorder"),
    ("delay 1ms ecn", "netem ecn: needs a loss"),
    ("delay 1ms distribution normal", "netem distribution: needs a delay and a jitter"),
    ("rate 1parsec", "netem rate '1parsec': unknown unit"),
    ("limit x", "netem limit 'x': expected a whole number"),
    ("limit 99999999999", "netem limit '99999999999': expected 0 to 4294967295"),
    ("speed 1mbit", "netem: unknown word 'speed': expected one of limit, latency, delay"),
    ("slot 10 200", "netem slot '10' has no unit"),
    ("slot 20ms 10ms", "netem slot: the longest delay is less than the shortest"),
]


@pytest.mark.parametrize(("options", "says"), WRONG_NETEM)
def test_netem_that_tc_refuses_or_reads_in_two_ways(options, says):
    with pytest.raises(ConfigError) as caught:
        netem(options)
    assert str(caught.value).startswith(f"tc.sh:1: {says}")
    assert "\n" not in str(caught.value)


UNSUPPORTED = [
    ("root netem slot 10ms 20ms packets 5", "netem slot: not supported: a line sends packets as they come"),
    ("root netem limit 0", "netem limit 0: not supported: it drops every packet: write loss 100%"),
    ("root netem rate 50%", "netem rate '50%': not supported: a NIC has no speed of its own"),
    ("root netem rate 100bit", "netem rate 100bit: not supported: a rate is 1kbit to 10tbit"),
    ("root netem rate 1mbit 0 100 5", "netem rate: cells of 100 bytes and 5 more: not supported"),
    ("root netem delay 2ms 1ms distribution experimental", "netem distribution 'experimental': not supported: its table"),
    ("root netem delay 7200s", "netem delay 7200s: not supported: a delay is an hour at most"),
    ("root netem loss state 60% 10% 10% 10% 50%", "netem loss state: not supported: p13 and p14 are more than 100%"),
    ("root netem loss 1% 100%", "netem loss: correlation 100%: not supported: nothing would ever change"),
    ("root red limit 400000 min 30000 max 90000 avpkt 1000", "qdisc red: not supported: expected netem, tbf"),
    ("root handle 1: htb default 10", "htb: not supported: it has no classes"),
    ("root handle 1: drr", "qdisc drr: not supported"),
]


@pytest.mark.parametrize(("command", "says"), UNSUPPORTED)
def test_what_a_policy_cannot_say_is_one_line(command, says):
    [line] = refused(f"\ntc qdisc add dev eth0 {command}")
    assert line.startswith(f"tc.sh:2: error: {says}")


def test_correlation_is_noted_with_netems_own_share():
    _, _, notes = read("tc qdisc add dev eth0 root netem loss 10% 25% duplicate 5% 25%")
    assert any("netem loss 10% 25%: netem loses 1.75% with this correlation; here 10% are lost" in each for each in notes)
    assert any("netem duplicate 5% 25%: left out" in each and "0.194%" in each for each in notes)
    _, _, notes = read("tc qdisc add dev eth0 root netem duplicate 5% 25%")
    assert any("tc does not send it" in each for each in notes)


@pytest.mark.parametrize(
    ("share", "correlation", "percent", "within"),
    [  # measured over a million draws of netem's formula
        (0.003, 0.25, 0.0, 0.0001), (0.01, 0.25, 0.0003, 0.0002), (0.05, 0.25, 0.19, 0.01),
        (0.10, 0.25, 1.73, 0.03), (0.25, 0.25, 16.7, 0.1), (0.5, 0.25, 50, 0.01),
        (0.05, 0.5, 0.0015, 0.0005), (0.10, 0.5, 0.11, 0.005), (0.25, 0.5, 7.0, 0.1),
        (0.25, 0.75, 0.82, 0.03), (0.10, 0.75, 0.0002, 0.0002),
    ],
)  # fmt: skip
def test_the_share_that_netem_meets(share, correlation, percent, within):
    assert abs(100 * met_share(share, correlation) - percent) <= within


@pytest.mark.parametrize(("share", "correlation"), [(0.2, 0.3), (0.4, 0.6), (0.3, 0.9), (0.45, 0.97)])
def test_the_share_that_netem_meets_against_its_formula(share, correlation):
    """The kernel's arithmetic: 32-bit numbers."""
    numbers, count, lost = random.Random(1), 300_000, 0
    rho, asked, last = int(correlation * 2**32), int(share * 2**32), 2**31
    for _ in range(count):
        last = (numbers.getrandbits(32) * (2**32 - rho) + last * rho) >> 32
        lost += asked >= last
    met = met_share(share, correlation)
    # a correlated sum varies by (1 + c) / (1 - c) more; five deviations
    assert abs(lost / count - met) <= 5 * (met * (1 + correlation) / (1 - correlation) / count) ** 0.5 + 0.0005


@pytest.mark.parametrize(("share", "correlation"), [(0, 0.5), (1, 0.5), (0.3, 0), (0.3, 1), (0.3, 0.99), (1e-9, 0.01)])
def test_the_share_that_netem_meets_at_bounds(share, correlation):
    assert 0 <= met_share(share, correlation) <= 1
    if correlation in (0, 1) or share in (0, 1):
        assert met_share(share, correlation) == share


def test_notes_of_what_differs():
    _, _, notes = read("tc qdisc add dev eth0 root netem delay 100ms 10ms loss 1% ecn\n" * 1)
    text = "\n".join(notes)
    for words in ("limit 1000: with a delay of 100ms netem drops beyond 121mbit", "packets overtake each other", "ecn: netem marks",
                  "GSO frame"):  # fmt: skip
        assert words in text
    _, _, notes = read("tc qdisc add dev eth0 root netem delay 100ms rate 10mbit")
    text = "\n".join(notes)
    assert "limit 1000: a queue of up to 1.21s" in text and "begins when the packet has been sent" in text


def test_a_seed():
    notes = Notes()
    draft = read_tc("tc qdisc add dev eth0 root netem loss 1% seed 42", "tc.sh", Names({}, "web", notes))
    assert draft.data == {"version": 1, "seed": 42, "links": {"web -> any": {"loss": "1%"}}}


# -- tbf, queues, directions -----------------------------------------------------------------------

SCRIPTS = [
    ("tc qdisc add dev eth0 root tbf rate 1mbit burst 32kbit latency 400ms", {"web -> any": {"rate": "1mbit", "queue": "400ms"}}),
    ("tc qdisc add dev eth0 root tbf rate 1mbit buffer 1600 limit 3000", {"web -> any": {"rate": "1mbit", "queue": "3000b"}}),
    (
        "tc qdisc add dev eth0 root tbf rate 1mbit burst 10kb/8 latency 50000 overhead 4 mpu 64 linklayer ethernet",
        {"web -> any": {"rate": "1mbit", "queue": "50ms", "overhead": "docsis"}},
    ),
    (
        "tc qdisc add dev eth0 root handle 1: stab overhead -4 linklayer atm tbf rate 1mbit burst 1600 latency 50ms",
        {"web -> any": {"rate": "1mbit", "queue": "50ms", "overhead": "pppoa-vcmux"}},
    ),
    (
        "tc qdisc add dev eth0 root handle 1: tbf rate 1mbit burst 1600 latency 50ms\n"
        "tc qdisc add dev eth0 parent 1:1 handle 2: netem delay 5ms",
        {"web -> any": {"rate": "1mbit", "queue": "50ms", "delay": "5ms"}},
    ),
    (
        "tc qdisc add dev eth0 root handle 1: netem delay 5ms loss 1%\n"
        "tc qdisc add dev eth0 parent 1:1 handle 2: tbf rate 1mbit burst 1600 latency 50ms\n"
        "tc qdisc add dev eth0 parent 2: pfifo limit 7",
        {"web -> any": {"rate": "1mbit", "queue": {"packets": 7}, "delay": "5ms", "loss": "1%"}},
    ),
    ("tc qdisc replace dev eth0 root netem delay 5ms\ntc qdisc change dev eth0 root netem loss 1%", {"web -> any": {"loss": "1%"}}),
    ("tc qdisc add dev eth0 root netem delay 5ms\ntc qdisc del dev eth0 root", {}),
    ("tc qdisc del dev eth0 root 2>/dev/null || true; tc qdisc add dev eth0 root netem delay 5ms", {"web -> any": {"delay": "5ms"}}),
    ("#!/bin/sh\nset -e\nsudo -n /sbin/tc q a dev eth0 root netem \\\n  delay 5ms # slow\n\n", {"web -> any": {"delay": "5ms"}}),
    ("+ tc qdisc add dev eth0 root netem delay 5ms\n+ echo done", {"web -> any": {"delay": "5ms"}}),
    ("tc qdisc add dev eth0 root netem 'delay' \"5ms\" && echo \"it's done # really\"", {"web -> any": {"delay": "5ms"}}),
    ("qdisc add dev eth0 root netem delay 5ms\n", {"web -> any": {"delay": "5ms"}}),  # tc -batch
    ("ip netns exec lab tc qdisc add dev eth0 root netem delay 5ms", {"web -> any": {"delay": "5ms"}}),
    ("tc -n lab -s qdisc add dev eth0 root netem delay 5ms", {"web -> any": {"delay": "5ms"}}),
    ("tc -s qdisc show dev eth0", {}),
    (
        "tc qdisc add dev eth0 ingress\n"
        "tc filter add dev eth0 parent ffff: protocol ip u32 match ip src 0.0.0.0/0 police rate 1mbit burst 10k drop flowid :1",
        {"any -> web": {"rate": "1mbit", "queue": "10kb"}},
    ),
    (
        "tc qdisc add dev eth0 clsact\ntc filter add dev eth0 ingress matchall action police rate 2mbit burst 20k conform-exceed drop",
        {"any -> web": {"rate": "2mbit", "queue": "20kb"}},
    ),
    ("tc qdisc add dev eth0 clsact\ntc filter add dev eth0 ingress matchall action drop", {"any -> web": {"loss": "100%"}}),
    (
        "modprobe ifb numifbs=1\nip link set dev ifb0 up\ntc qdisc add dev eth0 handle ffff: ingress\n"
        "tc filter add dev eth0 parent ffff: protocol ip u32 match u32 0 0 action mirred egress redirect dev ifb0\n"
        "tc qdisc add dev ifb0 root netem delay 9ms\ntc qdisc add dev eth0 root netem delay 5ms",
        {"web -> any": {"delay": "5ms"}, "any -> web": {"delay": "9ms"}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("script", "links"), SCRIPTS)
def test_a_script(script, links):
    assert lines(script) == links


def test_names_of_nics():
    script = "tc qdisc add dev eth0 root netem delay 1ms\ntc qdisc add dev veth7 root netem delay 2ms\n"
    links, _, notes = read(script, nic=None)
    assert links == {"eth0 -> any": {"delay": "1ms"}, "veth7 -> any": {"delay": "2ms"}}
    assert any("device eth0: taken for NIC eth0" in each for each in notes)
    assert lines(script, given={"eth0": "web", "veth7": "db.ingress"}) == {
        "web -> any": {"delay": "1ms"}, "any -> db": {"delay": "2ms"}}  # fmt: skip
    with pytest.raises(ConfigError, match="tc.sh:2: --nic web is for one device, and there are 'eth0' and 'veth7'"):
        read(script)
    with pytest.raises(ConfigError, match="device 'eth0:1' cannot be a NIC's name: write --map eth0:1=NIC"):
        read(script.replace("eth0", "eth0:1"), nic=None)
    with pytest.raises(ConfigError, match="'a b' is no name of a NIC"):
        read(script, given={"eth0": "a b"})


PAIRS = (
    "tc qdisc add dev eth0 root handle 1: prio bands 4 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    "tc qdisc add dev eth0 parent 1:2 handle 20: netem delay 5ms\n"
    "tc qdisc add dev eth0 parent 1:3 handle 30: netem loss 1%\n"
    "tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dst 10.0.0.5 flowid 1:2\n"
    "tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dst 10.0.0.6/32 flowid 1:2\n"
    "tc filter add dev eth0 parent 1: protocol ip prio 2 flower dst_ip 10.0.0.7 classid 1:3\n"
)


def test_netem_behind_filters_by_address_is_a_line_between_two_nics():
    given = {"eth0": "web", "10.0.0.5": "db", "10.0.0.6": "cam", "10.0.0.7": "lab"}
    links, _, notes = read(PAIRS, given=given)
    assert links == {"web -> db": {"delay": "5ms"}, "web -> cam": {"delay": "5ms"}, "web -> lab": {"loss": "1%"}}
    assert not any("priomap" in each for each in notes)
    # what a device sends is what a NIC behind it receives
    given["eth0"] = "web.ingress"
    text = PAIRS.replace("dst", "src")
    assert lines(text, given=given) == {
        "db -> web": {"delay": "5ms"},
        "cam -> web": {"delay": "5ms"},
        "lab -> web": {"loss": "1%"},
    }
    # with a part of the line to a NIC that is known
    text = PAIRS.replace("10.0.0.7", "10.0.0.7 ip_proto tcp dst_port 80")
    assert lines(text, given=given | {"eth0": "web", "10.0.0.5": "db"}) == {
        "web -> db": {"delay": "5ms"},
        "web -> cam": {"delay": "5ms"},
        "web -> lab/tcp-port-80": {"match": {"protocol": "tcp", "destination_port": 80}, "loss": "1%"},
    }


def test_netem_behind_filters_is_a_part_of_the_line():
    to_5, to_6, to_7 = ({"destination": f"10.0.0.{n}/32"} for n in (5, 6, 7))
    assert lines(PAIRS) == {
        "web -> any/host-10.0.0.5-and-1-more": {"match": [to_5, to_6], "delay": "5ms"},
        "web -> any/host-10.0.0.7": {"match": to_7, "loss": "1%"},
    }
    some = {"eth0": "web", "10.0.0.5": "db"}
    assert lines(PAIRS, given=some) == {
        "web -> db": {"delay": "5ms"},
        "web -> any/host-10.0.0.6": {"match": to_6, "delay": "5ms"},
        "web -> any/host-10.0.0.7": {"match": to_7, "loss": "1%"},
    }
    # a comment of one word behind netem names the part
    assert "web -> any/slow" in lines(PAIRS.replace("delay 5ms", "delay 5ms # slow"))
    assert "web -> any/-slow" not in lines(PAIRS.replace("delay 5ms", "delay 5ms # -slow"))
    given = {"eth0": "web.ingress"}
    found = lines(PAIRS.replace("dst", "src"), given=given)
    assert found["any -> web/from-10.0.0.7"] == {"match": {"source": "10.0.0.7/32"}, "loss": "1%"}


EVERYTHING = [{"vlan": 0}, {"destination": "0.0.0.0/0"}, {"destination": "::/0"}]


def test_the_first_filter_that_matches_has_a_packet_alone():
    """A line to db would be for its packets to port 22, too, and what all others get for those to db."""
    text = PAIRS + (
        "tc qdisc add dev eth0 parent 1:1 handle 10: netem delay 1ms\n"
        "tc filter add dev eth0 parent 1: protocol ip prio 3 u32 match ip dport 22 0xffff flowid 1:4\n"
    )
    links, _, notes = read(text, given={"eth0": "web", "10.0.0.7": "lab"})
    assert list(links.items()) == [
        ("web -> any/host-10.0.0.5-and-1-more", {
            "match": [{"destination": "10.0.0.5/32"}, {"destination": "10.0.0.6/32"}], "delay": "5ms"}),
        ("web -> any/lab", {"match": {"destination": "10.0.0.7/32"}, "loss": "1%"}),
        ("web -> any/port-22", {"match": {"destination_port": 22}, "rate": "none"}),
        ("web -> any/rest", {"match": EVERYTHING, "delay": "1ms"}),
    ]  # fmt: skip
    assert any("filters by addresses of NICs, and others for the same packets: parts of web -> any" in each for each in notes)
    # what no filter has is as before, and there is nothing to keep port 22 from
    links = lines(text.replace("tc qdisc add dev eth0 parent 1:1", "# "), given={"eth0": "web", "10.0.0.7": "lab"})
    assert list(links) == ["web -> any/host-10.0.0.5-and-1-more", "web -> lab"]


def test_filters_within_each_other():
    """Of a NIC whose network is within another's."""
    given = {"eth0": "web", "10.0.0.5": "db", "10.0.0.0/24": "lab", "10.0.1.7": "cam"}
    text = PAIRS.replace("10.0.0.6/32", "10.0.1.7").replace("10.0.0.7", "10.0.0.0/24")
    assert lines(text, given=given) == {
        "web -> any/db": {"match": {"destination": "10.0.0.5/32"}, "delay": "5ms"},
        "web -> cam": {"delay": "5ms"},
        "web -> any/lab": {"match": {"destination": "10.0.0.0/24"}, "loss": "1%"},
    }


def test_a_rate_in_several_lines():
    text = PAIRS.replace("netem delay 5ms", "tbf rate 1mbit burst 1600 latency 50ms")
    links, _, notes = read(text, given={"eth0": "web", "10.0.0.5": "db"})
    assert links["web -> db"]["rate"] == links["web -> any/host-10.0.0.6"]["rate"] == "1mbit"
    assert any("tc.sh:2: warning: rate 1mbit: of several lines together; here each has it" in each for each in notes)


def test_all_but_some_packets():
    """netem in the band that filters do not lead to, and in that of a filter for all."""
    text = (
        "tc qdisc add dev eth0 root handle 1: prio\n"
        "tc qdisc add dev eth0 parent 1:2 handle 20: netem loss 5%\n"
        "tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dport 22 0xffff flowid 1:1\n"
    )
    kept = ("web -> any/port-22", {"match": {"destination_port": 22}, "rate": "none"})
    assert list(lines(text).items()) == [kept, ("web -> any/rest", {"match": EVERYTHING, "loss": "5%"})]
    text = text.replace("1:2", "1:3") + "tc filter add dev eth0 parent 1: protocol ip prio 2 u32 match u32 0 0 flowid 1:3\n"
    assert list(lines(text).items()) == [
        kept, ("web -> any/rest", {"match": {"destination": "0.0.0.0/0"}, "loss": "5%"})]  # fmt: skip
    assert lines(text.replace("dport 22 0xffff", "dst 10.0.0.5"), given={"eth0": "web", "10.0.0.5": "db"}) == {
        "web -> any/db": {"match": {"destination": "10.0.0.5/32"}, "rate": "none"},
        "web -> any/rest": {"match": {"destination": "0.0.0.0/0"}, "loss": "5%"},
    }


def test_a_band_that_filters_and_priorities_lead_to():
    text = PAIRS.replace("priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", "")
    _, _, notes = read(text)
    assert any("prio priomap: leads packets of some TOS to a band, too: left out" in each for each in notes)
    assert lines(PAIRS.replace("flowid 1:2", "flowid 1:4")) == {
        "web -> any/host-10.0.0.7": {"match": {"destination": "10.0.0.7/32"}, "loss": "1%"}}  # fmt: skip


HTB_NETEM = """
tc qdisc add dev eth0 root handle 1: htb default 1
tc class add dev eth0 parent 1: classid 1:1 htb rate 32gbit
tc class add dev eth0 parent 1: classid 1:10 htb rate 5mbit ceil 6mbit
tc qdisc add dev eth0 parent 1:10 handle 10: netem delay 100ms
tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dport 22 0xffff flowid 1:1
tc filter add dev eth0 parent 1: protocol ip prio 5 u32 match ip dst 10.0.0.0/8 flowid 1:10
"""


def test_classes_without_parents_are_rates_of_parts():
    """As tcconfig and comcast make them: there is nothing to borrow."""
    links, classes, notes = read(HTB_NETEM)
    assert classes == {}
    assert list(links.items()) == [
        ("web -> any/port-22", {"match": {"destination_port": 22}, "rate": "none"}),
        ("web -> any/net-10.0.0.0-8", {"match": {"destination": "10.0.0.0/8"}, "delay": "100ms", "rate": "5mbit"}),
    ]
    text = "\n".join(notes)
    assert "htb sends its rate 5mbit, not its ceil 6mbit" in text and "htb rate 32gbit: taken for no limit" in text
    links = lines(HTB_NETEM.replace("32gbit", "1gbit overhead 4 mpu 64"))
    assert links["web -> any/rest"] == {"match": EVERYTHING, "rate": "1gbit", "overhead": "docsis"}
    assert lines(HTB_NETEM.replace("htb default 1", "htb default 10")) == {
        "web -> any/port-22": {"match": {"destination_port": 22}, "rate": "none"},
        "web -> any/rest": {"match": EVERYTHING, "delay": "100ms", "rate": "5mbit"},
    }


def test_netem_in_a_tree_is_a_class_and_a_part():
    script = htb(
        "class add DEV parent 1:1 classid 1:10 htb rate 4mbit ceil 10mbit # sync",
        "class add DEV parent 1:1 classid 1:20 htb rate 4mbit ceil 10mbit",
        "class add DEV parent 1:1 classid 1:30 htb rate 1mbit ceil 10mbit",
        "qdisc add DEV parent 1:10 handle 10: netem delay 9ms", "qdisc add DEV parent 10:1 handle 11: fq_codel",
        "qdisc add DEV parent 1:20 handle 20: netem loss 1%",
        "filter add DEV parent 1: prio 1 protocol ip u32 match ip dport 873 0xffff flowid 1:10",
        "filter add DEV parent 1: prio 2 protocol ip u32 match ip dst 10.0.0.5 flowid 1:20", default="30",
    )  # fmt: skip
    given = {"eth0": "web"}
    links, classes, notes = read(script, given=given)
    to_db = {"destination": "10.0.0.5/32"}
    assert links == {
        "web -> any/sync": {"match": {"destination_port": 873}, "delay": "9ms"},
        "web -> any/class-20": {"match": to_db, "loss": "1%"},
    }
    assert classes["web.egress"] == {
        "rate": "10mbit", "default": "class-30", "tree": {
            "sync": {"match": {"destination_port": 873}, "guarantee": "4mbit", "weight": 4, "queue": "fq_codel"},
            "class-20": {"match": to_db, "guarantee": "4mbit", "weight": 4},
            "class-30": {"guarantee": "1mbit"},
        },
    }  # fmt: skip
    assert any("in tc packets are delayed before they wait for the class, here behind it" in each for each in notes)
    # all that is left, and what is kept from it
    links = read(script.replace("parent 1:20 handle 20", "parent 1:30 handle 30"), given=given)[0]
    assert list(links.items()) == [
        ("web -> any/sync", {"match": {"destination_port": 873}, "delay": "9ms"}),
        ("web -> any/class-20", {"match": to_db, "rate": "none"}),
        ("web -> any/class-30", {"match": EVERYTHING, "loss": "1%"}),
    ]
    apart = script.replace("match ip dport 873", "match ip dst 10.0.0.6 match ip dport 873")
    assert list(read(apart, given=given | {"10.0.0.5": "db"})[0]) == ["web -> any/sync", "web -> db"]
    [line] = refused(script.replace("handle 20: netem loss 1%", "handle 20: netem slot 1ms"))
    assert line.startswith("tc.sh:8: error: netem slot: not supported")


INGRESS = """
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress prio 1 protocol ip flower ip_proto tcp dst_port 22 action pass
tc filter add dev eth0 ingress prio 2 protocol ip flower ip_proto udp action police rate 1mbit burst 10k conform-exceed drop
tc filter add dev eth0 ingress prio 3 protocol ip flower src_ip 10.0.0.0/8 action drop
tc filter add dev eth0 egress prio 1 protocol ip flower dst_ip 10.0.0.5 action drop
"""


def test_police_and_drop_of_some_packets():
    ssh = {"protocol": "tcp", "destination_port": 22}
    assert list(lines(INGRESS).items()) == [
        ("any -> web/tcp-port-22", {"match": ssh, "rate": "none"}),
        ("any -> web/udp", {"match": {"protocol": "udp"}, "rate": "1mbit", "queue": "10kb"}),
        ("any -> web/from-10.0.0.0-8", {"match": {"source": "10.0.0.0/8"}, "loss": "100%"}),
        ("web -> any/host-10.0.0.5", {"match": {"destination": "10.0.0.5/32"}, "loss": "100%"}),
    ]
    assert lines(INGRESS, given={"eth0": "web", "10.0.0.5": "db"})["web -> db"] == {"loss": "100%"}


def test_some_packets_that_are_received_through_an_ifb_device():
    script = (
        "tc qdisc add dev eth0 handle ffff: ingress\n"
        "tc filter add dev eth0 parent ffff: protocol ip prio 1 u32 match ip src 10.0.0.5 action mirred egress redirect dev ifb0\n"
        "tc filter add dev eth0 parent ffff: protocol ip prio 2 u32 match u32 0 0 action mirred egress redirect dev ifb1\n"
        "tc qdisc add dev ifb0 root handle 1: netem delay 9ms\ntc qdisc add dev ifb1 root netem loss 1%\n"
    )
    assert list(lines(script).items()) == [
        ("any -> web/from-10.0.0.5", {"match": {"source": "10.0.0.5/32"}, "delay": "9ms"}),
        ("any -> web/rest", {"match": {"destination": "0.0.0.0/0"}, "loss": "1%"}),
    ]
    one = script.replace("dev ifb1", "dev ifb2", 1)
    assert lines(one.replace("tc qdisc add dev ifb1", "#"), given={"eth0": "web", "10.0.0.5": "db"}) == {
        "db -> web": {"delay": "9ms"}
    }
    [line] = refused(script.replace("handle 1: netem delay 9ms", "handle 1: htb default 1"))
    assert line == "tc.sh:2: error: mirred of some packets to htb: not supported: expected netem, tbf or a queue"


def test_what_filters_of_lines_cannot_say():
    mac = PAIRS.replace("protocol ip prio 2 flower dst_ip 10.0.0.7", "protocol all prio 2 flower dst_mac 02:00:00:00:00:07")
    [line] = refused(mac)
    assert line == (
        "tc.sh:3: error: a line for 02:00:00:00:00:07: not supported: no NIC is known to have it: write --map 02:00:00:00:00:07=NIC"
    )
    known = {"eth0": "web", "02:00:00:00:00:07": "lab"}
    [line] = refused(mac, given=known)
    assert "match ether dst beside other filters for the same packets: not supported" in line
    known |= {"10.0.0.5": "db", "10.0.0.6": "cam"}
    assert list(lines(mac, given=known)) == ["web -> db", "web -> cam", "web -> lab"]
    [line] = refused(PAIRS.replace("match ip dst 10.0.0.5", "match ip protocol 1 0xff match ip dport 5 0xffff"))
    assert "a filter: not supported: destination_port: protocol 'icmp' has no ports" in line
    [line] = refused(PAIRS.replace("netem loss 1%", "pie"))
    assert line == "tc.sh:3: error: pie in a class: not supported: expected netem, tbf or a queue"
    [line] = refused(PAIRS.replace("netem loss 1%", "netem slot 1ms"))
    assert "netem slot: not supported" in line


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("count", [1, 100, 1000])
def test_many_filters_of_lines(count, known):
    commands = PAIRS.splitlines()[:3]
    addresses = [f"10.{n >> 8}.{n & 255}.1" for n in range(count)]
    commands += [
        f"tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dst {each} flowid 1:{2 + n % 2}"
        for n, each in enumerate(addresses)
    ]
    given = {each: f"nic{n}" for n, each in enumerate(addresses)} if known else {}
    links = lines("\n".join(commands), given={"eth0": "web", **given})
    if known:
        assert links == {f"web -> nic{n}": {"loss": "1%"} if n % 2 else {"delay": "5ms"} for n in range(count)}
    else:
        assert len(links) == min(count, 2) * -(-count // 128)  # 64 matches in each
        matches = [each["match"] for each in links.values()]
        assert sum(len(each) if isinstance(each, list) else 1 for each in matches) == count


def test_more_filters_than_a_part_can_have():
    commands = PAIRS.splitlines()[:3]
    commands += [
        f"tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dport {n} 0xffff flowid 1:2"
        for n in range(1, 20_000)
    ]
    [line] = refused("\n".join(commands))
    assert line == "tc.sh:2: error: more filters for web -> any: not supported: expected at most 1024"


# -- classes ---------------------------------------------------------------------------------------

HTB = """
tc qdisc add dev eth0 root handle 1: htb default 30
tc class add dev eth0 parent 1: classid 1:1 htb rate 6mbit overhead 4 mpu 64
tc class add dev eth0 parent 1:1 classid 1:10 htb rate 2mbit ceil 6mbit prio 0  # voice
tc class add dev eth0 parent 1:1 classid 1:20 htb rate 3mbit ceil 5mbit prio 1 burst 15k
tc class add dev eth0 parent 1:1 classid 1:30 htb rate 1mbit ceil 6mbit prio 1
tc qdisc add dev eth0 parent 1:10 handle 10: pfifo limit 50
tc qdisc add dev eth0 parent 1:20 handle 20: fq_codel limit 1000 target 3ms noecn
tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip tos 0xb8 0xfc flowid 1:10
tc filter add dev eth0 parent 1: protocol ip prio 2 u32 match ip dport 80 0xffff match ip protocol 6 0xff flowid 1:20
tc filter add dev eth0 parent 1: protocol ipv6 prio 3 flower ip_proto tcp dst_port 443-450 classid 1:20
"""
HTB_CLASSES = {
    "web.egress": {
        "rate": "6mbit",
        "overhead": "docsis",
        "default": "class-30",
        "tree": {
            "voice": {
                "match": {"dscp": "ef"}, "guarantee": "2mbit", "weight": 2, "priority": 0, "queue": {"discipline": "fifo", "packets": 50},
            },
            "class-20": {
                "match": [{"protocol": "tcp", "destination_port": 80}, {"protocol": "tcp", "destination_port": "443-450"}],
                "guarantee": "3mbit", "ceiling": "5mbit", "weight": 3, "priority": 1,
                "queue": {"discipline": "fq_codel", "packets": 1000, "target": "3ms", "ecn": False},
            },
            "class-30": {"guarantee": "1mbit", "priority": 1},
        },
    }
}  # fmt: skip


def overheads(text: str) -> str:
    """The overhead on every class, as htb has it."""
    return text.replace("htb rate", "htb overhead 4 mpu 64 rate").replace("6mbit overhead 4 mpu 64\n", "6mbit\n")


def test_htb():
    links, classes, notes = read(overheads(HTB))
    assert links == {} and classes == HTB_CLASSES
    text = "\n".join(notes)
    assert "htb burst and cburst: left out" in text and "matches IPv4 and IPv6" in text and "error" not in text


def classes_of(script: str, **more):
    links, classes, _ = read(script, **more)
    assert links == {}
    return classes["web.egress"]


def htb(*more: str, default: str = "10", top: str = "rate 10mbit") -> str:
    return "\n".join((
        f"tc qdisc add dev eth0 root handle 1: htb default {default}", f"tc class add dev eth0 parent 1: classid 1:1 htb {top}",
        *(f"tc {each}".replace("DEV", "dev eth0") for each in more),
    ))  # fmt: skip


def test_a_class_without_a_parent_has_its_rate_only():
    script = htb(top="rate 4mbit ceil 10mbit", default="1")
    _, classes, notes = read(script)
    assert classes["web.egress"] == {"rate": "4mbit", "default": "class-1", "tree": {"class-1": {"guarantee": "4mbit"}}}
    assert any("has no parent to borrow from: htb sends its rate 4mbit, not its ceil 10mbit" in each for each in notes)


def test_several_classes_at_the_top():
    script = htb("class add DEV parent 1: classid 1:2 htb rate 30mbit", default="1")
    assert classes_of(script) == {
        "rate": "40mbit", "default": "class-1",
        "tree": {
            "class-1": {"guarantee": "10mbit", "ceiling": "10mbit", "weight": 5},
            "class-2": {"guarantee": "30mbit", "ceiling": "30mbit", "weight": 8},
        },
    }  # fmt: skip


@pytest.mark.parametrize("default", ["0", "99", "1"])
def test_packets_that_htb_does_not_shape(default):
    """Without a default, and with one that is no leaf."""
    script = htb("class add DEV parent 1:1 classid 1:10 htb rate 4mbit ceil 10mbit", default=default)
    _, classes, notes = read(script)
    assert classes["web.egress"] == {
        "rate": "10mbit", "default": "direct", "tree": {"class-10": {"guarantee": "4mbit", "weight": 5, "priority": 0}, "direct": {}},
    } or classes["web.egress"]["default"] == "direct"  # fmt: skip
    assert any("packets that match no filter bypass its classes" in each for each in notes)


def test_guarantees_that_do_not_fit_are_lowered():
    script = htb(
        "class add DEV parent 1:1 classid 1:10 htb rate 9mbit ceil 10mbit",
        "class add DEV parent 1:1 classid 1:20 htb rate 6mbit ceil 10mbit",
    )
    _, classes, notes = read(script)
    tree = classes["web.egress"]["tree"]
    assert [each["guarantee"] for each in tree.values()] == ["6mbit", "4mbit"]
    assert any("guarantees of 15mbit together: there are 10mbit" in each for each in notes)


def test_nested_classes_and_filters_below_filters():
    script = htb(
        "class add DEV parent 1:1 classid 1:2 htb rate 8mbit ceil 10mbit prio 5",
        "class add DEV parent 1:2 classid 1:20 htb rate 2mbit ceil 4mbit prio 1 # sync",
        "class add DEV parent 1:2 classid 1:21 htb rate 1mbit ceil 10mbit prio 2",
        "class add DEV parent 1:1 classid 1:10 htb rate 1mbit prio 3",
        "filter add DEV parent 1: prio 1 protocol ip u32 match ip dst 10.0.0.0/8 flowid 1:2",
        "filter add DEV parent 1:2 prio 1 protocol ip u32 match ip sport 873 0xffff flowid 1:20",
        "filter add DEV parent 1:2 prio 2 protocol ip u32 match u32 0 0 flowid 1:21",
    )
    found = classes_of(script)
    assert found["tree"]["class-2"]["tree"] == {
        "sync": {"match": {"destination": "10.0.0.0/8", "source_port": 873}, "guarantee": "2mbit", "ceiling": "4mbit",
         "weight": 2, "priority": 1},
        "class-21": {"match": {"destination": "10.0.0.0/8"}, "guarantee": "1mbit", "priority": 2},
    }  # fmt: skip
    assert (found["tree"]["class-2"]["priority"], found["tree"]["class-10"]["priority"]) == (1, 3)


RULES = [
    ("protocol ip u32 match ip src 10.1.2.3", {"source": "10.1.2.3/32"}),
    ("protocol ip u32 match ip dst 10.0.0.0/8 match ip sport 80 0xffff", {"destination": "10.0.0.0/8", "source_port": 80}),
    ("protocol ip u32 match ip dport 0x50 0xfff0", {"destination_port": "80-95"}),
    ("protocol ip u32 match ip protocol 17 0xff", {"protocol": "udp"}),
    ("protocol ip u32 match ip protocol 200 0xff", {"protocol": 200}),
    ("protocol ip u32 match u32 0x00060000 0x00ff0000 at 8", {"protocol": "tcp"}),
    ("protocol ip u32 match u16 0x0050 0xffff at 22", {"destination_port": 80}),
    ("protocol ip u32 match u8 6 0xff at 9", {"protocol": "tcp"}),
    ("protocol ip u32 match u32 0x0a000000 0xff000000 at 12", {"source": "10.0.0.0/8"}),
    ("protocol ip u32 match ip tos 0x10 0xff", {"dscp": 4}),
    ("protocol ip u32 match ip dsfield 0xb8 0xfc", {"dscp": "ef"}),
    ("protocol ip u32 match ip tos 0x68 0xfc", {"dscp": "af31"}),
    ("protocol ip u32 match ip dst 0.0.0.0/0", {"destination": "0.0.0.0/0"}),
    ("protocol ipv6 u32 match ip6 dst 2001:db8::/32", {"destination": "2001:db8::/32"}),
    ("protocol ipv6 u32 match ip6 src ::1/128 match ip6 dport 53 0xffff", {"source": "::1/128", "destination_port": 53}),
    ("protocol ipv6 u32 match ip6 priority 0xb8 0xfc", {"dscp": "ef"}),
    ("protocol ipv6 u32 match ip6 protocol 58 0xff", {"protocol": "icmpv6"}),
    ("protocol all u32 match ether src 02:00:00:00:00:0a", {"source_mac": "02:00:00:00:00:0a"}),
    ("protocol ip u32 ht 800: match ip dport 22 0xffff", {"destination_port": 22}),
    ("protocol ip flower ip_proto udp dst_port 53 src_ip 10.0.0.0/24", {"protocol": "udp",
     "destination_port": 53, "source": "10.0.0.0/24"}),
    ("protocol ip flower ip_tos 0xb8/0xfc", {"dscp": "ef"}),
    ("protocol 802.1q flower vlan_id 7", {"vlan": 7}),
    ("protocol all flower src_mac 02:00:00:00:00:01", {"source_mac": "02:00:00:00:00:01"}),
    ("protocol ip matchall", {"destination": "0.0.0.0/0"}),
    ("protocol ipv6 matchall", {"destination": "::/0"}),
]  # fmt: skip


@pytest.mark.parametrize(("filter_", "rule"), RULES)
def test_a_filter_as_a_rule(filter_, rule):
    flow = "flowid" if " u32 " in filter_ else "classid"
    script = htb(
        "class add DEV parent 1:1 classid 1:10 htb rate 1mbit", "class add DEV parent 1:1 classid 1:20 htb rate 1mbit",
        f"filter add DEV parent 1: prio 1 {filter_} {flow} 1:20",
    )  # fmt: skip
    assert classes_of(script)["tree"]["class-20"]["match"] == rule


def test_a_mask_of_dscp_is_several_rules():
    script = htb(
        "class add DEV parent 1:1 classid 1:10 htb rate 1mbit", "class add DEV parent 1:1 classid 1:20 htb rate 1mbit",
        "filter add DEV parent 1: prio 1 protocol ip u32 match ip tos 0xa0 0xe0 flowid 1:20",
    )  # fmt: skip
    match = classes_of(script)["tree"]["class-20"]["match"]
    assert [each["dscp"] for each in match] == ["cs5", 41, 42, 43, "va", 45, "ef", 47]


def test_a_filter_that_matches_all_is_the_default():
    script = htb(
        "class add DEV parent 1:1 classid 1:20 htb rate 1mbit", "class add DEV parent 1:1 classid 1:30 htb rate 1mbit",
        "filter add DEV parent 1: prio 1 protocol all matchall classid 1:20",
        "filter add DEV parent 1: prio 2 protocol ip u32 match ip dport 1 0xffff flowid 1:30", default="30",
    )  # fmt: skip
    found, notes = classes_of(script), read(script)[2]
    assert found["default"] == "class-20" and "match" not in found["tree"]["class-30"]
    assert any("those behind it never match" in each for each in notes)


def test_filters_without_a_preference_are_tried_from_the_last_on():
    script = htb(
        "class add DEV parent 1:1 classid 1:20 htb rate 1mbit", "class add DEV parent 1:1 classid 1:30 htb rate 1mbit",
        "filter add DEV parent 1: protocol ip u32 match ip dst 10.0.0.0/8 flowid 1:20",
        "filter add DEV parent 1: protocol ip u32 match ip dst 10.1.0.0/16 flowid 1:30", default="20",
    )  # fmt: skip
    found, notes = classes_of(script), read(script)[2]
    assert list(found["tree"]) == ["class-30", "class-20"]
    assert any("filters without prio: the kernel tries the last one first" in each for each in notes)


def test_filters_that_alternate():
    classes = ("class add DEV parent 1:1 classid 1:20 htb rate 1mbit", "class add DEV parent 1:1 classid 1:30 htb rate 1mbit")
    alternating = (
        "filter add DEV parent 1: prio 1 protocol ip u32 match ip dst 10.1.0.0/16 flowid 1:20",
        "filter add DEV parent 1: prio 2 protocol ip u32 match ip dst 10.0.0.0/8 flowid 1:30",
        "filter add DEV parent 1: prio 3 protocol ip u32 match ip dport 80 0xffff flowid 1:20",
    )
    assert any("alternate" in each for each in read(htb(*classes, *alternating, default="30"))[2])
    apart = [each.replace("dport 80", "dst 11.0.0.0/8 match ip dport 80") for each in alternating]
    assert not any("alternate" in each for each in read(htb(*classes, *apart, default="30"))[2])


LEFT_OUT = [
    ("filter add DEV parent 1: protocol ip handle 5 fw classid 1:10", "filter fw: not supported: marks of the firewall do not exist here"),
    ("filter add DEV parent 1: protocol ip u32 match tcp dst 80 0xffff flowid 1:10", "u32 nexthdr: not supported: it counts from a header"),
    ("filter add DEV parent 1: protocol ip u32 match u8 0x05 0x0f at 0 match u16 0 0xffc0 at 2 flowid 1:10",
     "u32 match 0x05000000/0x0f00ffc0"),
    ("filter add DEV parent 1: protocol ip u32 match mark 6 0xffff flowid 1:10", "u32: not supported: match mark"),
    ("filter add DEV parent 1: protocol ip basic match 'meta(nf_mark eq 1)' classid 1:10", "filter basic: not supported"),
    ("filter add DEV parent 1: protocol ip flower tcp_flags 0x2 classid 1:10", "flower tcp_flags: not supported"),
    ("filter add DEV parent 1: protocol arp matchall classid 1:10", "filter protocol 'arp': not supported"),
    ("filter add DEV parent 1: protocol all u32 match ether dst 02:00:00:00:00:01 flowid 1:10", "match ether dst: not supported"),
    ("filter add DEV parent 1: protocol ip bpf bytecode '1,6 0 0 0' flowid 1:10", "filter 'bpf': not supported"),
    ("filter add DEV parent 1: protocol ip u32 match ip dport 80 0xffff flowid 1:77",
     "filter to 1:77: not supported: there is no such class"),
    ("qdisc add DEV parent 1:10 handle 10: pie", "pie in a class: not supported: expected one of pfifo"),
    ("qdisc add DEV parent 1:10 handle 10: fq_codel flows 100000", "fq_codel flows 131072: not supported: expected 1 to 65536"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "says"), LEFT_OUT)
def test_what_classes_leave_out_is_one_line(command, says):
    script = htb("class add DEV parent 1:1 classid 1:10 htb rate 1mbit", command)
    [line] = refused(script)
    assert line.startswith(f"tc.sh:4: error: {says}")


WRONG_TC = [
    ("tc qdisc add dev eth0 root tbf rate 1mbit latency 50ms", "tbf: has no burst"),
    ("tc qdisc add dev eth0 root tbf rate 1mbit burst 1600", "tbf: has neither limit nor latency"),
    ("tc qdisc add dev eth0 root tbf rate 1mbit burst 1600 limit 3000 latency 5ms", "tbf latency: is there twice"),
    ("tc qdisc add dev eth0 root netem delay 1ms\ntc qdisc add dev eth0 root netem delay 2ms",
     "root has a qdisc already, netem of tc.sh:1"),
    ("tc qdisc change dev eth0 root netem delay 2ms", "there is no netem to change"),
    ("tc qdisc add root netem delay 2ms", "tc qdisc add: names no device"),
    ("tc qdisc add dev eth0 netem delay 2ms", "tc qdisc add: has no parent"),
    ("tc qdisc add dev eth0 root handle 99999: netem delay 2ms", "handle '99999': expected hexadecimal digits, at most ffff"),
    ("tc qdisc add dev eth0 parent 5:1 netem delay 2ms", "parent 5:1: there is no qdisc 5:1"),
    ("tc class add dev eth0 parent 1: classid 1:1 htb rate 1mbit", "parent 1:: there is no qdisc htb for this class"),
    ("tc class add dev eth0 parent 1: classid 1:1 netem", "tc class add: netem has no classes"),
    ("tc filter add dev eth0 parent 9: matchall classid 9:1", "parent 9:: there is no qdisc 9:"),
    (htb("class add DEV parent 1:1 classid 1:2 htb ceil 1mbit"), "htb class: has no rate"),
    (htb("class add DEV parent 1:9 classid 1:2 htb rate 1mbit"), "parent 1:9: there is no such class"),
    (htb("class add DEV parent 1:1 classid 2:2 htb rate 1mbit"), "class 2:2: expected the major number"),
    (htb("class add DEV parent 1:1 classid 1:1 htb rate 1mbit"), "class 1:1 is there already"),
    (htb("filter add DEV parent 1: protocol ip u32 flowid 1:1"), "u32: matches nothing"),
    (htb("filter add DEV parent 1: protocol ip u32 match ip dst 10.0.0 flowid 1:1"), "'10.0.0': expected an IPv4 address"),
    (htb("filter add DEV parent 1: protocol ip flower dst_port 80 classid 1:1"), "flower: ports need ip_proto"),
    ("tc qdisc add dev $DEV root netem delay 2ms", "'$DEV': shell variables are not supported: write the value, or import what"),
    ("tc qdisc add dev `x` root netem delay 2ms", "'`x`': shell variables"),
    ("for i in 1 2; do tc qdisc add dev eth0 root netem delay 2ms; done", "'for': control structures of the shell"),
    ("tc qdisc add dev eth0 root netem delay '2ms", "no closing quotation: expected the quotes in pairs"),
    ("tc qdisc show | grep netem", "'|' is not supported"),
    ("frobnicate --now", "'frobnicate': expected commands such as tc qdisc add"),
    ("tc -b file", "tc -batch: expected the file with the commands itself"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "says"), WRONG_TC)
def test_a_script_that_cannot_be_read(script, says):
    with pytest.raises(ConfigError) as caught:
        read(script)
    number = script.count("\n") + 1
    assert str(caught.value).startswith(f"tc.sh:{number}: {says}"), str(caught.value)
    assert "\n" not in str(caught.value)


LEAVES = [
    ("pfifo", "fifo"),
    ("pfifo limit 10", {"discipline": "fifo", "packets": 10}),
    ("bfifo limit 10kb", {"discipline": "fifo", "size": "10kb"}),
    ("sfq perturb 10", "fq"),
    ("sfq limit 127 quantum 1514", {"discipline": "fq", "packets": 127, "quantum": 1514}),
    ("codel", "codel"),
    ("codel limit 100 target 20ms interval 30ms ecn", {"discipline": "codel", "packets": 100, "target": "20ms", "interval": "30ms",
     "ecn": True}),
    ("fq_codel target 2000", {"discipline": "fq_codel", "target": "2ms"}),
    ("fq_codel flows 300", {"discipline": "fq_codel", "flows": 512}),
    ("fq limit 3000 quantum 9000 maxrate 10mbit nopacing", {"discipline": "fq", "packets": 3000, "quantum": 9000}),
    ("cake", "cake"),
    ("cake besteffort rtt 20ms dual-dsthost", {"discipline": "cake", "rtt": "20ms", "hosts": "destination"}),
    ("cake satellite triple-isolate", {"discipline": "cake", "rtt": "1s"}),
    ("cake flows rtt 100ms", {"discipline": "cake", "hosts": "none"}),
    ("cake datacentre dual-srchost memlimit 2mb", {"discipline": "cake", "rtt": "100us", "hosts": "source", "size": "2mb"}),
]  # fmt: skip


@pytest.mark.parametrize(("qdisc", "queue"), LEAVES)
def test_the_queue_of_a_leaf(qdisc, queue):
    script = htb("class add DEV parent 1:1 classid 1:10 htb rate 1mbit", f"qdisc add DEV parent 1:10 handle 10: {qdisc}")
    assert classes_of(script)["tree"]["class-10"]["queue"] == queue


def test_cake_at_the_root():
    assert classes_of("tc qdisc add dev eth0 root cake bandwidth 20mbit docsis ether-vlan") == {
        "rate": "20mbit", "overhead": {"bytes": 22, "minimum": 64}, "default": "all", "tree": {"all": {"queue": "cake"}}}  # fmt: skip


CAKE_NOTES = [
    ("besteffort", []),
    ("", ["cake diffserv3: its tins: left out"]),
    ("diffserv4", ["cake diffserv4: its tins: left out"]),
    ("besteffort srchost", ["cake srchost, in place of hosts: source and their flows: left out"]),
    ("besteffort flowblind", ["cake flowblind, in place of hosts: none and their flows: left out"]),
    ("besteffort nat wash ack-filter", ["cake nat: left out", "cake wash: left out", "cake ack-filter: left out"]),
    ("besteffort autorate-ingress fwmark 0xff", ["cake autorate-ingress: left out", "cake fwmark: left out"]),
]


@pytest.mark.parametrize(("options", "said"), CAKE_NOTES)
def test_what_is_not_kept_of_cake_is_said(options, said):
    *_, notes = read(f"tc qdisc add dev eth0 root cake bandwidth 20mbit {options}")
    assert [each.split(": ", 2)[2] if each.startswith("tc.sh:") else each for each in notes if "cake" in each] == said, notes


@pytest.mark.parametrize(("options", "error"), [
    ("rtt 10us", "cake rtt 10us: not supported: expected 20us to 1h"),
    ("rtt 3601s", "cake rtt 3601s: not supported: expected 20us to 1h"),
    ("memlimit 10b", "cake memlimit 10b: not supported: a queue is 64b to 1gb"),
])  # fmt: skip
def test_what_cake_cannot_be_here(options, error):
    *_, notes = read(f"tc qdisc add dev eth0 root cake bandwidth 20mbit besteffort {options}")
    assert [each for each in notes if error in each], notes


def test_a_queue_below_tbf():
    script = (
        "tc qdisc add dev eth0 root handle 1: tbf rate 2mbit burst 1600 latency 50ms\ntc qdisc add dev eth0 parent 1:1 codel"
    )
    assert classes_of(script) == {"rate": "2mbit", "default": "all", "tree": {"all": {"queue": "codel"}}}


def test_prio_below_tbf():
    script = (
        "tc qdisc add dev eth0 root handle 1: tbf rate 2mbit burst 1600 latency 50ms\ntc qdisc add dev eth0 parent 1:1 handle 2: prio\n"
        "tc filter add dev eth0 parent 2: protocol ip prio 1 u32 match ip dport 22 0xffff flowid 2:1"
    )
    found = classes_of(script)
    assert (found["rate"], found["default"]) == ("2mbit", "band-1")
    assert [each["priority"] for each in found["tree"].values()] == [0, 1, 2]
    band = found["tree"]["band-0"]["match"]
    assert {"destination_port": 22} in band and {"dscp": 4} in band and {"dscp": 8} not in band and len(band) == 17


@pytest.mark.parametrize("qdisc", ["prio", "fq_codel", "sfq perturb 10", "pfifo limit 9", "fq", "pfifo_fast"])
def test_a_queue_without_a_rate_has_no_effect(qdisc):
    links, classes, notes = read(f"tc qdisc add dev eth0 root handle 1: {qdisc}")
    assert (links, classes) == ({}, {}) and any("never wait here" in each for each in notes)


HFSC = [
    ("sc rate 2mbit ul rate 5mbit", {"guarantee": "2mbit", "ceiling": "5mbit"}),
    ("rt rate 2mbit ls rate 2mbit", {"guarantee": "2mbit"}),
    ("ls rate 3mbit", {}),
    ("sc umax 1500b dmax 10ms rate 1mbit", {"guarantee": "1mbit", "latency": "10ms"}),
    ("sc m1 5mbit d 5ms m2 1mbit", {"guarantee": "1mbit", "latency": "5ms"}),
]


@pytest.mark.parametrize(("options", "settings"), HFSC)
def test_hfsc(options, settings):
    script = (
        "tc qdisc add dev eth0 root handle 1: hfsc default 10\n"
        "tc class add dev eth0 parent 1: classid 1:1 hfsc sc rate 10mbit ul rate 10mbit\n"
        f"tc class add dev eth0 parent 1:1 classid 1:10 hfsc {options}"
    )
    assert classes_of(script) == {"rate": "10mbit", "default": "class-10", "tree": {"class-10": settings}}
    [line] = refused(script.replace(options, "rt rate 1mbit ls rate 2mbit"))
    assert "hfsc class 1:10: not supported: rt and ls differ" in line


# -- listings --------------------------------------------------------------------------------------

SHOWN = """qdisc noqueue 0: dev lo root refcnt 2
qdisc htb 1: dev eth0 root refcnt 2 r2q 10 default 0x30 direct_packets_stat 7 direct_qlen 1000
 Sent 1234 bytes 12 pkt (dropped 0, overlimits 0 requeues 0)
 backlog 0b 0p requeues 0
qdisc fq_codel 10: dev eth0 parent 1:10 limit 10240p flows 1024 quantum 1514 target 5ms interval 100ms memory_limit 32Mb ecn drop_batch 64
  maxpacket 0 drop_overlimit 0 new_flow_count 0 ecn_mark 0
qdisc ingress ffff: dev eth0 parent ffff:fff1 ----------------
qdisc netem 1: dev ifb0 root refcnt 2 limit 1000 delay 100ms  10ms 25% loss 0.3% ecn
class htb 1:1 root rate 6Mbit ceil 6Mbit burst 15Kb cburst 1599b
 lended: 0 borrowed: 0 giants: 0
class htb 1:10 parent 1:1 leaf 10: prio 0 rate 5Mbit ceil 5Mbit burst 15Kb/8 mpu 0b cburst 1600b/8 mpu 0b level 0
class htb 1:30 parent 1:1 prio 1 rate 1Kbit ceil 6Mbit burst 15Kb cburst 1599b
filter parent 1: protocol ip pref 1 u32 chain 0
filter parent 1: protocol ip pref 1 u32 chain 0 fh 800: ht divisor 1
filter parent 1: protocol ip pref 1 u32 chain 0 fh 800::800 order 2048 key ht 800 bkt 0 *flowid 1:10 not_in_hw  (rule hit 0 success 0)
  match 00000050/0000ffff at 20 (success 0 )
  match 0a000000/ff000000 at 16 (success 0 )
filter parent 1: protocol ip pref 2 flower chain 0
filter parent 1: protocol ip pref 2 flower chain 0 handle 0x1 classid 1:30
  eth_type ipv4
  ip_proto tcp
  dst_port 22
  not_in_hw
filter protocol all pref 49152 matchall chain 0
filter protocol all pref 49152 matchall chain 0 handle 0x1
  not_in_hw
\taction order 1: mirred (Egress Redirect to device ifb0) stolen
 \tindex 1 ref 1 bind 1
"""


def test_what_tc_show_prints():
    links, classes, notes = read(SHOWN)
    assert links == {
        "any -> web": {"delay": {"mean": "100ms", "jitter": "10ms", "correlation": "25%", "order": "any"}, "loss": "0.3%"}}  # fmt: skip
    tree = classes["web.egress"]["tree"]
    assert tree["class-10"]["match"] == {"destination": "10.0.0.0/8", "destination_port": 80}
    assert tree["class-30"]["match"] == {"protocol": "tcp", "destination_port": 22}
    assert tree["class-10"]["queue"]["ecn"] is True and classes["web.egress"]["default"] == "class-30"
    assert not any(": error: " in each for each in notes)


SHOWN_LINES = [
    ("netem 1: dev eth0 root refcnt 2 limit 1000 loss state p13 1% p31 99% p32 0% p23 100% p14 0%", {"loss": {"p13": "1%"}}),
    ("netem 1: dev eth0 root limit 9 loss gemodel p 1% r 10% 1-h 70% 1-k 0.1%",
     {"loss": {"to_bad": "1%", "to_good": "10%", "bad": "70%", "good": "0.1%"}}),
    ("netem 1: dev eth0@if5 root limit 1000 delay 10ms reorder 25% 50% gap 5", {"delay": "10ms", "reorder": {"share": "12.5%", "by": 1}}),
    ("netem 1: dev eth0 root limit 50 rate 1Mbit packetoverhead 20 cellsize 48 celloverhead 5",
     {"rate": "1mbit", "queue": {"packets": 50}, "overhead": {"bytes": 34, "cell": "atm"}}),
    ("tbf 8001: dev eth0 root refcnt 2 rate 1Mbit burst 32Kb lat 400ms", {"rate": "1mbit", "queue": "400ms"}),
    ("tbf 8001: dev eth0 root refcnt 2 rate 1Mbit burst 5Kb peakrate 2Mbit minburst 1540b limit 3000b overhead 4",
     {"rate": "1mbit", "queue": "3000b", "overhead": {"bytes": 18}}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "settings"), SHOWN_LINES)
def test_a_line_of_tc_show(line, settings):
    assert lines(f"qdisc {line}\n Sent 0 bytes 0 pkt\n") == {"web -> any": settings}


JSON = """[{"kind":"netem","handle":"1:","dev":"eth0","root":true,"refcnt":2,"options":{"limit":1000,"delay":{"delay":0.1,"jitter":0.01,
"correlation":0.25},"loss-random":{"loss":0.003,"correlation":0},"ecn":false,"gap":0}}]
"""


def test_what_tc_prints_as_json():
    assert lines(JSON) == {
        "web -> any": {"delay": {"mean": "100ms", "jitter": "10ms", "correlation": "25%", "order": "any"}, "loss": "0.3%"}}  # fmt: skip
    text = (
        '[{"kind":"htb","handle":"1:","dev":"eth0","root":true,"options":{"r2q":10,"default":"0x10"}}]\n'
        "class htb 1:1 root rate 6Mbit ceil 6Mbit burst 1600b cburst 1600b \n"
        "class htb 1:10 parent 1:1 prio 0 rate 1Mbit ceil 6Mbit burst 1600b cburst 1600b \n"
        '[{"parent":"1:","protocol":"ip","pref":1,"kind":"u32","chain":0},{"parent":"1:","protocol":"ip","pref":1,"kind":"u32","options":'
        '{"fh":"800::800","flowid":"1:10","match":{"value":"60000","mask":"ff0000","offmask":"","off":8},'
        '"match":{"value":"369","mask":"ffff","offmask":"","off":20}}}]'
    )
    assert classes_of(text)["tree"] == {
        "class-10": {"match": {"protocol": "tcp", "destination_port": 873}, "guarantee": "1mbit"}}  # fmt: skip


# -- hostile ---------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tc qdisc add dev eth0 root netem delay " + "9" * 10_000_000, "a line of more than"),
        ("'" * 9 + "x" * 10_000_000, "a line of more than"),
        ("\n" * (LINES_MOST + 5), "more than"),
        ("tc qdisc add dev eth0 root netem limit 1\\\n" * 3000, "a line of more than"),
        ("tc " + "a " * 2000, "words: expected at most"),
        ("tc qdisc add dev " + "e" * 5000 + " root netem delay 1ms", "expected a device's name"),
        ("tc qdisc add dev eth0 root netem delay 1\u00b2ms", "netem delay '1\u00b2ms'"),
        ("tc qdisc add dev eth0 root netem delay \U0001f600", "netem delay"),
        ('tc qdisc add dev eth0 root netem delay "\'"1ms"\'"', "netem delay"),
        ('tc qdisc add dev eth0 root netem delay "\\"', "no closing quotation"),
        ("tc qdisc add dev eth0 root netem delay 1ms (", "'(' is not supported"),
        ("[" * 100_000, "no JSON"),
        ('{"kind": 1}', "kind '1': expected text"),
        ("[1, 2]", "expected an object"),
        ('[{"kind":"netem","handle":"1:","dev":"x","root":true,"options":{"delay":{"delay":1e999}}}]', "expected a number"),
        ('[{"kind":"netem","handle":"1:","dev":"x","root":true,"options":{"delay":[]}}]', ""),
        ("qdisc netem 1: dev eth0 root delay 1ms " + "x" * 70_000, "expected at most"),
        ("qdisc netem 1: dev eth0 root banana", "unknown word 'banana'"),
        ("class htb 1:1 root rate 1Mbit ceil 1Mbit\nclass htb 1:2 parent 1:3 rate 1Mbit\nqdisc htb 1: dev eth0 root", ""),
        ("tc qdisc add dev eth0 root netem delay 1ms\0", ""),
    ],
)  # fmt: skip
def test_hostile_texts_are_one_line(text, says):
    if says:
        assert says in one_line(text)
    else:
        try:
            read(text)
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 400


def test_many_equal_lines_make_one_note():
    script = "".join(f"tc qdisc add dev e{n} root netem delay 5ms 1ms\n" for n in range(2000))
    links, _, notes = read(script, nic=None)
    assert len(links) == 2000 and len(notes) == NOTES_MOST + 1 and "the rest is left out" in notes[-1]


def test_many_notes_do_not_hide_what_is_left_out():
    script = "".join(f"tc qdisc add dev e{n} root netem delay {n + 1}ms\n" for n in range(600))
    found = refused(f"{script}tc qdisc add dev f root netem slot 1ms\n", nic=None)
    assert len(found) == 1 and "netem slot: not supported" in found[0]
    script = "".join(f"tc qdisc add dev e{n} root netem delay {4000 + n}s\n" for n in range(600))
    found = [each for each in read(script, nic=None)[2] if "error: " in each]
    assert len(found) == NOTES_MOST + 1 and found[-1] == f"error: more than {NOTES_MOST} notes: the rest is left out"


@pytest.mark.parametrize("count", [1, 100, 4000])
def test_many_classes_and_filters(count):
    commands = [
        "tc qdisc add dev eth0 root handle 1: htb default 2",
        "tc class add dev eth0 parent 1: classid 1:1 htb rate 1gbit",
    ]
    commands += [f"tc class add dev eth0 parent 1:1 classid 1:{n + 2:x} htb rate 8kbit ceil 1gbit" for n in range(count)]
    commands += [
        f"tc filter add dev eth0 parent 1: prio {n + 1} protocol ip u32 match ip dport {n + 1} 0xffff flowid 1:{n + 2:x}"
        for n in range(min(count, 1000))
    ]
    found = classes_of("\n".join(commands))
    assert len(found["tree"]) == count


def test_more_than_a_policy_can_have():
    commands = [
        "tc qdisc add dev eth0 root handle 1: htb default 2",
        "tc class add dev eth0 parent 1: classid 1:1 htb rate 1gbit",
    ]
    commands += [f"tc class add dev eth0 parent 1:1 classid 1:{n + 2:x} htb rate 8kbit" for n in range(10_000)]
    [line] = refused("\n".join(commands))
    assert "10001 classes: not supported: expected at most 4096" in line


def test_removing_again_and_again_is_bounded():
    pair = "tc qdisc add dev eth0 root netem delay 1ms\ntc qdisc del dev eth0 root\n"
    assert "more than 1000 removals" in one_line(pair * 5000)


def test_many_different_correlations_are_bounded():
    script = "".join(f"tc qdisc add dev e{n} root netem loss {n % 50 + 0.5}% {n % 980 / 10 + 0.5}%\n" for n in range(1500))
    assert len(read(script, nic=None)[0]) == 1500


def test_the_bound_on_a_text_is_above_what_a_listing_takes():
    assert TEXT_MOST >= 10_000 * 600 and LINE_MOST >= 4096

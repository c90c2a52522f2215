"""Policies: files are parsed or refused with one line, and compile to the elements that they describe;
what `check_policy` foretells is what the numbers say."""

import math
import random
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.load import BYTES_MOST, dump_yaml
from dataplane.elements.classifier_rules import read_rules
from dataplane.errors import ConfigError
from shaping.policy import schema
from shaping.policy.check import POOL_SMALL, check_policy
from shaping.policy.compile import Chain, compile_policy, element_name
from shaping.policy.figures import bdp_packets, line_bytes
from shaping.policy.keys import parse_key
from shaping.policy.load import convert_policy, load_policy, parse_policy, policy_data
from shaping.policy.network import Network
from shaping.policy.places import Place, plan_of, setting_text
from shaping.policy.presets import PRESETS
from shaping.policy.scalars import LineRate, LineTime, Share
from vnic.config.load import parse_config
from vnic.config.reference import field_docs

WEB, DB, LAB = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3))
NETWORK = Network({"web": WEB, "db": DB, "lab": LAB}, {"lan--dmz": ("lan", "dmz"), "uplink": ("lan", "wan")})


def policy(*links, head="version: 1"):
    """A policy of entries such as `web -> db: {rate: 10mbit}`: the first is in line 3."""
    return parse_policy("\n".join((head, "links:", *(f"  {each}" for each in links))), "p.yaml")


def line(settings, key="web -> db"):
    """The typed settings of one entry."""
    return policy(f"{key}: {settings}").entries[0].settings


def elements(*links):
    return {str(chain): entries for chain, entries in compile_policy(policy(*links), NETWORK).items()}


def findings(*links, pool=POOL_SMALL):
    return [str(each) for each in check_policy(policy(*links), NETWORK, pool)]


# -- files -----------------------------------------------------------------------------------------


def test_a_full_file_is_parsed():
    text = """
version: 1
seed: 42
links:
  web <-> db: {preset: wpt-3g, loss: 1%}
  web -> db:
    loss: {burst: 4, share: 1%}
  any -> lab:
    {delay: {mean: 40ms, jitter: 10ms, shape: pareto, correlation: 30%, order: any}, duplicate: 0.1%,
     corrupt: {share: 0.1%, part: payload, checksum: mend}, reorder: {share: 0.5%, by: 3, within: 50ms},
     rate: 10mbit, queue: 64kb, overhead: {bytes: 18, minimum: 64, cell: atm}}
"""
    read = parse_policy(text, "p.yaml")
    assert (read.name, read.seed, [str(each.key) for each in read.entries]) == (
        "p.yaml",
        42,
        ["web <-> db", "web -> db", "any -> lab"],
    )
    first, second, third = read.entries
    assert first.where == "p.yaml:5" and first.lines == {"preset": "p.yaml:5", "loss": "p.yaml:5"}
    assert second.where == "p.yaml:6" and second.lines == {"loss": "p.yaml:7"}
    assert second.settings.loss.share == Share("1%") and second.settings.loss.burst == 4
    lab = third.settings
    assert (lab.delay.mean, lab.delay.jitter, lab.delay.shape) == (40_000_000, 10_000_000, "pareto")
    assert (lab.delay.correlation, lab.delay.order) == (Share("30%"), "any")
    assert (lab.corrupt.share, lab.corrupt.part, lab.corrupt.checksum) == (Share("0.1%"), "payload", "mend")
    assert (lab.reorder.share, lab.reorder.by, lab.reorder.within) == (Share("0.5%"), 3, 50_000_000)
    assert (lab.rate, lab.queue.size, lab.overhead.added) == (10**7, 65536, (4, 64, "atm"))
    assert parse_policy(dump_yaml(policy_data(read))).config == read.config


@pytest.mark.parametrize("text", ["version: 1", "version: 1\nlinks:\n", "version: 1\nlinks: {}", "{version: 1, seed: 0}"])
def test_a_policy_may_have_no_lines(text):
    read = parse_policy(text)
    assert read.entries == [] and check_policy(read, NETWORK) == [] and compile_policy(read, NETWORK) == {}


FORMS = [  # (setting, its text in the shortest form)
    ("loss: 1%", "1%"),
    ("loss: 0", "0%"),
    ("loss: {share: 0.1%}", "0.1%"),
    ("loss: 1 %", "1%"),
    ("loss: .5%", "0.5%"),
    ("loss: {share: 1%, burst: 4}", "{share: 1%, burst: 4}"),
    ("loss: {share: 1%, correlation: 25%}", "{share: 1%, correlation: 25%}"),
    ("loss: {to_bad: 1%, to_good: 25%}", "{to_bad: 1%, to_good: 25%, bad: 100%, good: 0%}"),
    ("loss: {to_bad: 1%, to_good: 25%, bad: 50%, good: 0.1%}", "{to_bad: 1%, to_good: 25%, bad: 50%, good: 0.1%}"),
    ("loss: {p13: 1%}", "{p13: 1%, p31: 99%, p32: 0%, p23: 100%, p14: 0%}"),
    ("duplicate: 0.1%", "0.1%"),
    ("corrupt: 0.1%", "0.1%"),
    ("corrupt: {share: 0.1%, part: header}", "{share: 0.1%, part: header}"),
    ("reorder: 1%", "1%"),
    ("reorder: {share: 1%, by: 3}", "{share: 1%, by: 3}"),
    ("delay: 40ms", "40ms"),
    ("delay: 0", "0ns"),
    ("delay: {mean: 40ms}", "40ms"),
    ("delay: {mean: 40ms, jitter: 10ms}", "{mean: 40ms, jitter: 10ms}"),
    ("rate: 10mbit", "10mbit"),
    ("rate: none", "none"),
    ("queue: 100ms", "100ms"),
    ("queue: 64kb", "64kb"),
    ("queue: 64k", "64kb"),
    ("queue: {time: 5ms}", "5ms"),
    ("queue: {size: 64kb}", "64kb"),
    ("queue: {packets: 100}", "{packets: 100}"),
    ("overhead: docsis", "docsis"),
    ("overhead: {bytes: 18, minimum: 64}", "{bytes: 18, minimum: 64}"),
]


@pytest.mark.parametrize(("text", "shortest"), FORMS)
def test_a_setting_in_each_form(text, shortest):
    name = text.partition(":")[0]
    assert setting_text(getattr(line(f"{{{text}}}"), name)) == shortest


UNITS = "expected one of ns, nsec, nsecs, us, usec, usecs, ms, msec, msecs, s, sec, secs, min, h"
MODELS = "expected 1%, {share: 1%, burst: 4}, {to_bad: 1%, to_good: 25%} or {p13: 1%, p31: 25%}"
WRONG = [  # (setting, the message behind "p.yaml:3: links.web -> db.")
    ("loss: 0.01", "loss: share '0.01' could mean two shares: write 0.01% or 1%"),
    ("loss: 1", "loss: share '1' could mean two shares: write 1% or 100%"),
    ("loss: '1'", "loss: share '1' could mean two shares: write 1% or 100%"),
    ("loss: 1e-5", "loss: share '0.00001' could mean two shares: write 0.00001% or 0.001%"),
    ("loss: 2", "loss: share '2' has no %: write 2%"),
    ("loss: 200", "loss: share '200' has no %: expected 0% to 100%"),
    ("loss: 101%", "loss: share 101%: expected 0% to 100%"),
    ("loss: -1%", "loss: share '-1%': expected 0% to 100%, such as 1%"),
    ("loss: -0.01", "loss: share '-0.01': expected 0% to 100%, such as 1%"),
    ("loss: .nan", "loss: share '.nan': expected 0% to 100%, such as 1%"),
    ("loss: .inf", "loss: share '.inf': expected 0% to 100%, such as 1%"),
    ("loss: 1e30", "loss: share '1e+30': expected 0% to 100%, such as 1%"),
    ("loss: 1e30%", "loss: share '1e30%': expected 0% to 100%, such as 1%"),
    ("loss: true", "loss: share 'True': expected 0% to 100%, such as 1%"),
    ("loss: ", "loss: has no value: expected a share such as 1%, or {share: 1%, burst: 4}"),
    ("loss: [1%]", "loss: invalid value a list: expected a share such as 1%, or {share: 1%, burst: 4}"),
    ("loss: {}", f"loss: has no model: {MODELS}"),
    ("loss: {share: 1}", "loss.share: share '1' could mean two shares: write 1% or 100%"),
    ("loss: {burst: 4}", "loss: burst without share: expected share, too"),
    ("loss: {share: 1%, burst: 0.5}", "loss.burst: invalid value 0.5: expected a number of packets from 1, such as 4"),
    ("loss: {share: 1%, burst: 1e30}", "loss.burst: invalid value 1e+30: expected a number of packets from 1, such as 4"),
    ("loss: {share: 1%, burst: .nan}", "loss.burst: invalid value '.nan': expected a number of packets from 1, such as 4"),
    (
        "loss: {share: 90%, burst: 2}",
        "loss: bursts of 2 with one packet between them lose 66.67%: expected share to be at most that",
    ),
    ("loss: {share: 1%, burst: 4, correlation: 25%}", "loss: has both burst and correlation: expected one of them"),
    ("loss: {share: 1%, correlation: 100%}", "loss: correlation 100%: expected at most 99%"),
    ("loss: {share: 1%, p13: 1%}", f"loss: mixes models (share, p13): {MODELS}"),
    ("loss: {to_bad: 1%}", "loss: to_bad without to_good: expected to_good, such as 25%"),
    ("loss: {bad: 1%}", "loss: bad without to_bad: expected to_bad, too"),
    ("loss: {to_bad: 1%, to_good: 0%}", "loss: to_good 0% never leaves the bad state: expected more than 0%"),
    ("loss: {p13: 60%, p14: 50%}", "loss: p13 and p14 are more than 100% together: lower one"),
    ("loss: {p13: 1%, p31: 60%, p32: 50%}", "loss: p31 and p32 are more than 100% together: lower one"),
    ("loss: {p13: 1%, p31: 0%}", "loss: p31 0% never ends a burst: expected more than 0%"),
    (
        "loss: {p13: 1%, p31: 5%, p32: 5%, p23: 0%}",
        "loss: p23 0% never leaves state 2: expected more than 0%, or p32: 0%",
    ),
    ("duplicate: 3", "duplicate: share '3' has no %: write 3%"),
    ("duplicate: {share: 1%}", "duplicate: share \"{'share': '1%'}\": expected 0% to 100%, such as 1%"),
    ("corrupt: 1e-7/bit", "corrupt: share '1e-7/bit': expected 0% to 100%, such as 1%"),
    ("corrupt: {share: 1%, part: tail}", "corrupt.part: invalid value 'tail': expected any, header or payload"),
    ("corrupt: {part: any}", "corrupt: has no share: expected share: a share of packets from 0% to 100%, such as 1%"),
    ("reorder: {share: 1%, by: 0}", "reorder.by: invalid value 0: expected a number of packets, 1 to 64"),
    (
        "reorder: {share: 1%, within: 100}",
        "reorder.within: within '100' has no unit (ns or us in tc, depending on its version, ms elsewhere): "
        "write 100us or 100ms",
    ),
    ("rate: 10", "rate: rate '10' has no unit (bit/s in tc, Mbit/s elsewhere): write 10bit or 10mbit"),
    ("rate: 0", "rate: rate 0 could mean no limit or nothing at all: write none, or loss: 100%"),
    ("rate: 10mbps", "rate: rate '10mbps' could mean bits (as elsewhere) or bytes (as in tc): write 10mbit or 80mbit"),
    ("rate: 1.5MB/s", "rate: rate '1.5MB/s' could mean bits (as elsewhere) or bytes (as in tc): write 1.5mbit or 12mbit"),
    ("rate: 10mb", "rate: rate '10mb': mb is no unit of rate; write 10mbit for bits a second"),
    ("rate: -5mbit", "rate: rate '-5mbit': expected a number with a unit such as 100mbit"),
    ("rate: .nan", "rate: rate '.nan': expected a number with a unit such as 100mbit"),
    ("rate: 1e30", "rate: rate '1e+30': expected a number with a unit such as 100mbit"),
    ("rate: 1e30mbit", "rate: rate '1e30mbit': expected a number with a unit such as 100mbit"),
    ("rate: 1bit", "rate: rate 1bit is out of range: expected 1kbit to 10tbit, or none"),
    ("rate: 100tbit", "rate: rate 100tbit is out of range: expected 1kbit to 10tbit, or none"),
    (
        "delay: 40",
        "delay: delay '40' has no unit (ns or us in tc, depending on its version, ms elsewhere): write 40us or 40ms",
    ),
    (
        "delay: {mean: 1.5}",
        "delay.mean: delay '1.5' has no unit (ns or us in tc, depending on its version, ms elsewhere): write 1.5us or 1.5ms",
    ),
    ("delay: -1ms", "delay: time '-1ms': expected a number with a unit such as 40ms"),
    ("delay: .nan", "delay: time '.nan': expected a number with a unit such as 40ms"),
    ("delay: 1e30", "delay: time '1e+30': expected a number with a unit such as 40ms"),
    ("delay: 40parsec", f"delay: time '40parsec': unknown unit 'parsec': {UNITS}"),
    ("delay: 2h", "delay: delay 7200s is out of range: expected 0ns to 3600s"),
    ("delay: {jitter: 4ms}", "delay: has no mean: expected mean: a time such as 40ms"),
    ("delay: {mean: 4ms, latency: 4ms}", "delay.latency: write mean: (one way)"),
    (
        "delay: {mean: 4ms, shape: pareto}",
        "delay: has shape, correlation or order, and no jitter: expected jitter, such as 10ms",
    ),
    ("delay: {mean: 4ms, jitter: 1ms, correlation: 100%}", "delay: correlation 100%: expected at most 99%"),
    (
        "delay: {mean: 4ms, jitter: 1ms, shape: laplace}",
        "delay.shape: invalid value 'laplace': expected uniform, normal or pareto",
    ),
    (
        "queue: 100",
        "queue: queue 100 has no unit: expected a time such as 100ms, a size such as 64kb, or {packets: 100}",
    ),
    ("queue: 100m", "queue: queue '100m' could mean bytes or milliseconds: write 100mb or 100ms"),
    ("queue: 64kbit", f"queue: queue: time '64kbit': unknown unit 'kbit': {UNITS}"),
    ("queue: 2h", "queue: queue 7200s is out of range: expected 1us to 60s"),
    ("queue: 1b", "queue: queue 1b is out of range: expected 64b to 1gb"),
    ("queue: {packets: 0}", "queue.packets: invalid value 0: expected a number of packets, 1 to 1048576"),
    ("queue: {}", "queue: expected one of time, size and packets, such as {packets: 100}"),
    ("queue: {packets: 1, time: 1ms}", "queue: expected one of time, size and packets, such as {packets: 100}"),
    ("overhead: 18", "overhead: invalid value 18: expected a keyword such as docsis, or {bytes: 18, minimum: 64}"),
    (
        "overhead: docsiz",
        "overhead: unknown keyword 'docsiz': expected one of raw, ethernet, docsis, pppoe-ptm, "
        "bridged-ptm, pppoa-vcmux, pppoa-llc, pppoe-vcmux, pppoe-llcsnap, bridged-vcmux, bridged-llcsnap, ipoa-vcmux, "
        "ipoa-llcsnap, conservative, ether-vlan, or {bytes: 18, minimum: 64}",
    ),
    ("overhead: {minimum: 64}", "overhead: has no bytes: expected a number of bytes, such as 18"),
    ("overhead: {bytes: 1000}", "overhead.bytes: invalid value 1000: expected a number of bytes, -50 to 256"),
    ("overhead: {bytes: 1, cell: sdh}", "overhead.cell: invalid value 'sdh': expected atm, ptm or none"),
    ("overhead: {keyword: docsis, bytes: 1}", "overhead: has both keyword and bytes, minimum or cell: expected one form"),
    ("latency: 40ms", "latency: could mean one way or there and back: write delay: (one way) or rtt: (both)"),
    ("jitter: 40ms", "jitter: belongs to the delay: write delay: {mean: 40ms, jitter: 10ms}"),
    ("limit: 1000", "limit: is the longest queue: write queue: 100ms, or {packets: 100}"),
    ("rtt: 40ms", "rtt: is there and back, and web -> db is one way: write delay:, or rtt: for web <-> db"),
    ("preset: wpt-3gg", "preset: there is no preset 'wpt-3gg'; did you mean 'wpt-3g'?"),
    ("preset: 3", "preset: invalid value 3: expected the name of a preset, such as wpt-3g"),
    ("ratee: 10mbit", "ratee: unknown key; did you mean 'rate'?"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_setting_is_refused_with_one_line(text, message):
    with pytest.raises(ConfigError) as error:
        policy(f"web -> db: {{{text}}}")
    assert str(error.value) == f"p.yaml:3: links.web -> db.{message}"


WRONG_FILES = [
    ("", "p.yaml: has no version: expected version: 1"),
    ("links: {}", "p.yaml:1: has no version: expected version: 1"),
    ("[]", "p.yaml:1: invalid value a list: expected a mapping with keys such as version, seed, links"),
    ("version: 2", "p.yaml:1: version: invalid value 2: expected 1"),
    ("version: one", "p.yaml:1: version: invalid value 'one': expected 1"),
    ("version: 1\nseed: -1", f"p.yaml:2: seed: invalid value -1: expected a whole number from 0 to {2**63 - 1}"),
    ("version: 1\nseed: 1.5", f"p.yaml:2: seed: invalid value 1.5: expected a whole number from 0 to {2**63 - 1}"),
    ("version: 1\nlinkz: {}", "p.yaml:2: linkz: unknown key; did you mean 'links'?"),
    (
        "version: 1\nlinks: []",
        "p.yaml:2: links: invalid value a list: expected at most 4096 entries in a mapping such as "
        "{web <-> db: {rate: 10mbit}}",
    ),
    (
        "version: 1\nlinks:\n  web: 10mbit",
        "p.yaml:3: links.web: invalid value '10mbit': expected settings such as {rate: 10mbit, delay: 20ms}",
    ),
    (
        "version: 1\nlinks:\n  web:",
        "p.yaml:3: links.web: invalid value nothing: expected settings such as {rate: 10mbit, delay: 20ms}",
    ),
    (
        "version: 1\nlinks:\n  web: {}",
        "p.yaml:3: links.web: invalid value without settings: expected settings such as {rate: 10mbit, delay: 20ms}",
    ),
    (
        "version: 1\nlinks:\n  web: {rtt: 40ms, delay: 20ms}",
        "p.yaml:3: links.web.rtt: has delay, too: expected one of them; rtt: 40ms is half of it each way",
    ),
    (
        "version: 1\nlinks:\n  any -> web: {rtt: 40ms}",
        "p.yaml:3: links.any -> web.rtt: is there and back, and any -> web is one way: write delay:, or rtt: for web",
    ),
    (
        "version: 1\nlinks:\n  web: {rate: 1mbit}\n  web: {rate: 1mbit}",
        "p.yaml:4: 'web' is there already, in line 3; remove one of them",
    ),
    (
        "version: 1\nlinks: {web: {rate: !!python/none x}}",
        "p.yaml:2: the tag '!!python/none' is not allowed: expected plain YAML without tags",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG_FILES)
def test_a_wrong_file_is_refused_with_one_line(text, message):
    with pytest.raises(ConfigError) as error:
        parse_policy(text, "p.yaml")
    assert str(error.value) == message


def test_too_many_entries_are_refused():
    many = {f"n{number} -> db": {"rate": "1mbit"} for number in range(schema.LINKS_MOST + 1)}
    with pytest.raises(ConfigError, match="links: invalid value of 4097 entries: expected at most 4096"):
        convert_policy({"version": 1, "links": many})
    many.popitem()
    assert len(convert_policy({"version": 1, "links": many}).entries) == schema.LINKS_MOST


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(number):
    for settings in (
        {"loss": {"share": "1%", "burst": number}},
        {"loss": number},
        {"rate": number},
        {"delay": number},
        {"queue": number},
    ):
        with pytest.raises(ConfigError, match="expected"):
            convert_policy({"version": 1, "links": {"web -> db": settings}})


def test_files_are_read(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nlinks: {web: {rtt: 40ms}}")
    assert load_policy(file).entries[0].settings.rtt == 40_000_000
    file.write_bytes(b"version: 1\n# \xff\n")
    with pytest.raises(ConfigError, match=r"p\.yaml:2: is not UTF-8 text$"):
        load_policy(file)
    file.write_bytes(b"#" * (BYTES_MOST + 1))
    with pytest.raises(ConfigError, match=r"p\.yaml: too large: expected at most 1048576 bytes$"):
        load_policy(file)
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file or directory$"):
        load_policy(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"is not a path: it has a zero byte$"):
        load_policy("a\0b")


@given(st.text(max_size=60), st.text(max_size=40), st.text(max_size=40))
def test_whatever_text_comes_is_read_or_refused_with_one_line(key, word, value):
    for text in (key, dump_yaml({"version": 1, "links": {key: {word: value}, "web <-> db": {"loss": value, "delay": value}}})):
        try:
            check_policy(parse_policy(text, "p.yaml"), NETWORK)
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1


SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
WORDS = [
    each.name
    for kind in (schema.LineConfig, schema.LossConfig, schema.DelayConfig, schema.QueueConfig)
    for each in msgspec.structs.fields(kind)
]
VALUE = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4))
)


@given(st.dictionaries(st.sampled_from(WORDS), VALUE, min_size=1, max_size=4))
def test_whatever_data_comes_is_taken_or_refused(settings):
    try:
        read = convert_policy({"version": 1, "links": {"web <-> db": settings}})
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        check_policy(read, NETWORK)


PERCENT = st.decimals(0, 50, places=3, allow_nan=False, allow_infinity=False).map(lambda number: f"{number}%")


@given(
    PERCENT,
    PERCENT,
    st.integers(1, 50),
    st.sampled_from(["5ms", "40ms", "1.5s"]),
    st.sampled_from(["1kbit", "3.3mbit", "10tbit"]),
)
def test_what_is_printed_is_read_again(share, other, burst, time, rate):
    read = policy(
        f"web: {{loss: {{share: {share}, burst: {burst}}}, delay: {{mean: {time}, jitter: {time}}}, rate: {rate}}}",
        f"db -> lab: {{loss: {{to_bad: {share}, to_good: 3%, bad: {other}}}, corrupt: {other}}}",
    )
    again = parse_policy(dump_yaml(policy_data(read)), "p.yaml")
    assert again.config == read.config
    assert compile_policy(again, NETWORK) == compile_policy(read, NETWORK)


@pytest.mark.parametrize(
    "kind",
    [
        each
        for each in vars(schema).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and not each.__name__.startswith("_")
    ],
)
def test_every_field_is_described(kind):
    described = field_docs(kind)
    assert set(described) == {each.name for each in msgspec.structs.fields(kind)}
    assert all(re.match(r"[A-Z`].*\.$", text) for text in described.values())


def test_the_schema_is_one_for_editors():
    made = msgspec.json.schema(schema.PolicyConfig, schema_hook=lambda kind: {"type": "string"})
    assert set(made["$defs"]["LineConfig"]["properties"]) >= {"preset", "rate", "rtt", "delay", "loss"}


# -- scalars ---------------------------------------------------------------------------------------


@given(st.integers(0, 10**12))
def test_shares_are_exact(number):
    share = Share(f"{number // 10**10}.{number % 10**10:010d}%")
    assert share == Share(str(share)) and share * 10**12 == number


def test_scalars_can_be_made_of_numbers():
    assert Share(1) == Share("100%") and str(LineRate(0)) == "none" and LineRate("none") == 0
    for wrong in (lambda: Share(2), lambda: LineRate(-1), lambda: LineRate(999), lambda: LineTime(-1)):
        with pytest.raises(ConfigError):
            wrong()


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "places"),
    [
        ("web -> db", ["web -> db"]),
        ("web   ->   db", ["web -> db"]),
        ("web <-> db", ["web -> db", "db -> web"]),
        ("web -> any", ["web -> any"]),
        ("any -> web", ["any -> web"]),
        ("web", ["web -> any", "any -> web"]),
        ("lan--dmz", ["lan--dmz -> dmz", "lan--dmz -> lan"]),
        ("lan--dmz -> dmz", ["lan--dmz -> dmz"]),
        ("lan--dmz -> lan", ["lan--dmz -> lan"]),
        ("uplink -> wan", ["uplink -> wan"]),
    ],
)
def test_a_key_is_for_its_places(key, places):
    plan = plan_of(policy(f"{key}: {{rate: 10mbit}}"), NETWORK)
    assert plan.findings == [] and [str(place) for place in plan.lines] == places


WRONG_KEYS = [
    ("web->db", "is not a place: write web -> db"),
    ("web<->db", "is not a place: write web <-> db"),
    ("web --> db", "is not a place: write web -> db"),
    ("web => db", "is not a place: write web -> db"),
    ("db <- web", "is not a place: write web -> db"),
    ("web ↔ db", "is not a place: write web <-> db"),
    ("lan -- dmz", "is not a place: write the link's name, such as lan--dmz"),
    ("web -> db -> lab", "is not a place: expected one arrow, such as web -> db"),
    ("we b", "is not a place: expected web -> db, web <-> db, web -> any, any -> web, web, or a link such as lan--dmz"),
    ("*", "is not a place: expected web -> db, web <-> db, web -> any, any -> web, web, or a link such as lan--dmz"),
    ("any", "names no NIC: expected web -> db, web <-> db, web -> any, any -> web, web, or a link such as lan--dmz"),
    ("any -> any", "names no NIC: expected web -> db, web <-> db, web -> any, any -> web, web, or a link such as lan--dmz"),
    ("any <-> web", "is all that web sends and receives: write web"),
    ("web <-> any", "is all that web sends and receives: write web"),
    ("web -> web", "leads from web to itself: expected two NICs"),
    (
        "a" * 67,
        "a name is longer than 66 characters: expected web -> db, web <-> db, web -> any, any -> web, web, or a link such as lan--dmz",
    ),
]


@pytest.mark.parametrize(("key", "message"), WRONG_KEYS)
def test_a_wrong_key_is_refused(key, message):
    with pytest.raises(ConfigError) as error:
        parse_key(key)
    assert str(error.value) == message
    with pytest.raises(ConfigError, match=rf"^p\.yaml:3: links\..*: {re.escape(message)}$"):
        policy(f"'{key}': {{rate: 1mbit}}")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("wep -> db", "there is no NIC or link wep; did you mean 'web'?"),
        ("web -> dbb", "there is no NIC or link dbb; did you mean 'db'?"),
        ("lan--dmx", "there is no NIC or link lan--dmx; did you mean 'lan--dmz'?"),
        ("dmz -> lan", "is a link: write lan--dmz -> lan"),
        ("dmz <-> lan", "is a link: write lan--dmz"),
        ("web -> dmz", "dmz is a switch: expected a NIC, or a link such as lan--dmz -> dmz"),
        ("web -> lan--dmz", "lan--dmz is a link, which stands first or alone: expected lan--dmz"),
        ("lan--dmz -> web", "lan--dmz is a link: expected lan--dmz, lan--dmz -> dmz or lan--dmz -> lan"),
        ("lan--dmz -> any", "lan--dmz is a link: expected lan--dmz, lan--dmz -> dmz or lan--dmz -> lan"),
        ("lan--dmz <-> dmz", "lan--dmz is a link: expected lan--dmz, lan--dmz -> dmz or lan--dmz -> lan"),
    ],
)
def test_a_place_that_the_network_does_not_have(key, message):
    read = policy("web: {rate: 1mbit}", f"{key}: {{rate: 1mbit}}")
    assert [str(each) for each in check_policy(read, NETWORK) if each.kind == "error"] == [f"p.yaml:4: error: {key}: {message}"]
    with pytest.raises(ConfigError) as error:
        compile_policy(read, NETWORK)
    assert str(error.value) == f"p.yaml:4: {key}: {message}"


def test_unknown_names_are_reported_up_to_a_bound():
    read = policy(*(f"n{number}: {{rate: 1mbit}}" for number in range(30)))
    assert [each.where for each in check_policy(read, NETWORK)] == [f"p.yaml:{number}" for number in range(3, 23)]


def test_a_network_without_names():
    [found] = check_policy(policy("web: {rate: 1mbit}"), Network())
    assert found == ("error", "p.yaml:3", "web: there is no NIC or link web: the network has none")


def test_a_nic_called_any_cannot_be_named():
    [found] = [each for each in check_policy(policy("web: {loss: 0}"), Network({"any": DB, "web": WEB})) if each.kind != "note"]
    assert found == ("warning", "p.yaml:3", "NIC any cannot be named here, where any means all NICs: give it another name")


# -- places ----------------------------------------------------------------------------------------


def test_later_entries_override_settings_of_the_same_place_only():
    read = policy(
        "web <-> db: {rate: 10mbit, loss: 1%}",
        "web -> db: {loss: {share: 1%, burst: 4}}",
        "db <-> web: {loss: 2%}",
        "web -> any: {loss: 3%}",
    )
    plan = plan_of(read, NETWORK)
    assert {str(place): str(each.settings["loss"]) for place, each in plan.lines.items()} == {
        "web -> db": "2%",
        "db -> web": "2%",
        "web -> any": "3%",
    }
    assert [each.rate for each in plan.lines.values()] == [10**7, 10**7, 0]
    assert [str(each) for each in plan.findings] == [
        "p.yaml:4: note: web -> db: loss {share: 1%, burst: 4} overrides loss 1% of p.yaml:3",
        "p.yaml:5: note: db -> web: loss 2% overrides loss 1% of p.yaml:3",
        "p.yaml:5: note: web -> db: loss 2% overrides loss {share: 1%, burst: 4} of p.yaml:4",
    ]


def test_rtt_and_delay_are_one_setting():
    plan = plan_of(policy("web <-> db: {rtt: 41ns}", "web -> db: {delay: 3ms}", "lab: {rtt: 40ms}"), NETWORK)
    assert {str(place): each.delay.mean for place, each in plan.lines.items()} == {
        "web -> db": 3_000_000,
        "db -> web": 20,
        "lab -> any": 20_000_000,
        "any -> lab": 20_000_000,
    }
    assert [str(each) for each in plan.findings] == [
        "p.yaml:4: note: web -> db: delay 3ms overrides delay 21ns (rtt 41ns) of p.yaml:3"
    ]


def test_delay_of_both_ways_is_in_each_of_them():
    plan = plan_of(policy("lan--dmz: {delay: 5ms}"), NETWORK)
    assert [each.delay.mean for each in plan.lines.values()] == [5_000_000] * 2


def test_a_queue_needs_a_rate():
    with pytest.raises(ConfigError) as error:
        elements("web -> db: {queue: 50ms}")
    assert str(error.value) == "p.yaml:3: web -> db: queue without rate: add the line's rate, such as rate: 10mbit"
    assert findings("web -> db: {rate: 10mbit, overhead: docsis}", "web <-> db: {rate: none}")[0] == (
        "p.yaml:3: warning: web -> db: overhead has no effect, since rate is none"
    )
    assert elements("web -> db: {queue: 50ms}", "web <-> db: {rate: 10mbit}").keys() == {"db.ingress", "web.ingress"}


# -- presets ---------------------------------------------------------------------------------------

PRESET_LINES = [  # (preset, rate up, rate down, delay up, delay down, loss up, loss down) of a NIC
    ("wpt-dial", "30kbit", "49kbit", "60ms", "60ms", None, None),
    ("wpt-3g", "768kbit", "1.6mbit", "150ms", "150ms", None, None),
    ("wpt-fios", "5mbit", "20mbit", "2ms", "2ms", None, None),
    ("chrome-slow-4g", "750kbit", "1.6mbit", "75ms", "75ms", None, None),
    ("lighthouse-slow-4g", "750kbit", "1.638400mbit", "75ms", "75ms", None, None),
    ("lighthouse-desktop", None, "10.24mbit", "20ms", "20ms", None, None),
    ("firefox-wifi", "15mbit", "30mbit", "1ms", "1ms", None, None),
    ("atc-2g-rural", "18kbit", "20kbit", "650ms", "650ms", "2%", "2%"),
    ("atc-edge-good", "200kbit", "250kbit", "370ms", "350ms", None, None),
    ("comcast-3g", "750kbit", None, "250ms", None, "1.5%", None),
    ("comcast-starlink", None, None, "20ms", None, "2.5%", None),
]


@pytest.mark.parametrize(("name", "rate_up", "rate_down", "delay_up", "delay_down", "loss_up", "loss_down"), PRESET_LINES)
def test_a_preset_has_the_numbers_of_its_origin(name, rate_up, rate_down, delay_up, delay_down, loss_up, loss_down):
    lines = plan_of(policy(f"web: {{preset: {name}}}"), NETWORK).lines
    wanted = {
        Place("web", "any"): (rate_up, delay_up, loss_up),
        Place("any", "web"): (rate_down, delay_down, loss_down),
    }
    wanted = {place: each for place, each in wanted.items() if any(each)}
    assert set(lines) == set(wanted)
    for place, (rate, delay, loss) in wanted.items():
        assert lines[place].rate == (LineRate(rate) if rate else 0)
        assert lines[place].delay.mean == LineTime(delay)
        assert (lines[place].loss and str(lines[place].loss.share)) == loss


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_origin_and_can_be_applied(name):
    preset = PRESETS[name]
    assert (preset.rtt is None) != (preset.delay is None) and preset.origin
    read = policy(f"web <-> db: {{preset: {name}}}")
    found = check_policy(read, NETWORK)
    assert [each for each in found if each.kind == "error"] == []
    assert any(preset.origin in each.text and ("rtt: " in each.text or "delay: " in each.text) for each in found)
    assert compile_policy(read, NETWORK)


def test_the_first_name_of_a_key_is_the_user_of_the_line():
    for key, up, down in (
        ("web <-> db", Place("web", "db"), Place("db", "web")),
        ("web", Place("web", "any"), Place("any", "web")),
        ("lan--dmz", Place("lan", "dmz", "lan--dmz"), Place("dmz", "lan", "lan--dmz")),
    ):
        lines = plan_of(policy(f"{key}: {{preset: wpt-3g}}"), NETWORK).lines
        assert (lines[up].rate, lines[down].rate) == (768_000, 1_600_000)
    for key, rate in (
        ("web -> db", 768_000),
        ("any -> web", 1_600_000),
        ("web -> any", 768_000),
        ("lan--dmz -> lan", 1_600_000),
    ):
        [only] = plan_of(policy(f"{key}: {{preset: wpt-3g}}"), NETWORK).lines.values()
        assert (only.rate, only.delay.mean) == (rate, 150_000_000)
    [only] = plan_of(policy("any -> web: {preset: comcast-3g}"), NETWORK).lines.values()
    assert (only.rate, only.delay.mean) == (750_000, 250_000_000)


def test_settings_beside_a_preset_replace_its_own():
    lines = plan_of(policy("web -> db: {preset: atc-2g-rural, rate: 1mbit, delay: 5ms, loss: 0}"), NETWORK)
    [only] = lines.lines.values()
    assert (only.rate, only.delay.mean, only.loss.share, lines.findings) == (10**6, 5_000_000, 0, [])
    [note] = plan_of(policy("web <-> db: {rate: 1mbit}", "web -> db: {preset: wpt-4g}"), NETWORK).findings
    assert note.text == "web -> db: rate 9mbit (preset wpt-4g) overrides rate 1mbit of p.yaml:3"


# -- what a loss model means -----------------------------------------------------------------------

LOSSES = [  # (loss, share, packets in a row)
    ("1%", 0.01, 1 / 0.99),
    ("0", 0.0, 0.0),
    ("100%", 1.0, math.inf),
    ("{share: 1%, burst: 4}", 0.01, 4),
    ("{share: 1%, burst: 1}", 0.01, 1),
    ("{share: 80%, burst: 4}", 0.8, 4),
    ("{share: 0.3%, correlation: 25%}", 0.003, 1 / (0.997 * 0.75)),
    ("{share: 5%, correlation: 0}", 0.05, 1 / 0.95),
    ("{to_bad: 1%, to_good: 25%}", 1 / 26, 4),
    ("{to_bad: 0, to_good: 0, good: 2%}", 0.02, 1 / 0.98),
    ("{to_bad: 1%, to_good: 25%, bad: 50%, good: 0.1%}", (0.5 + 25 * 0.001) / 26, None),
    ("{p13: 1%, p31: 25%}", 1 / 26, 4),
    ("{p13: 1%, p31: 20%, p32: 10%, p23: 30%, p14: 0.5%}", 0.05132, None),
    ("{p13: 0, p14: 10%}", 0.1 / 1.1, 1),
]


@pytest.mark.parametrize(("loss", "share", "burst"), LOSSES)
def test_the_share_and_the_bursts_of_a_model(loss, share, burst):
    chain = line(f"{{loss: {loss}}}").loss.chain
    assert chain.share == pytest.approx(share, rel=1e-4 if "p32" in loss else 1e-12)
    assert sum(chain.long_run) == pytest.approx(1) and all(sum(row) == pytest.approx(1) for row in chain.moves)
    if burst is not None:
        assert chain.mean_burst == pytest.approx(burst)


@pytest.mark.parametrize("loss", [loss for loss, _, _ in LOSSES])
def test_the_closed_forms_are_those_of_the_chain(loss):
    """The long run is what the moves lead to: one more packet changes nothing."""
    chain = line(f"{{loss: {loss}}}").loss.chain
    states = range(len(chain.loss))
    for to in states:
        assert sum(chain.long_run[i] * chain.moves[i][to] for i in states) == pytest.approx(chain.long_run[to], abs=1e-12)


def test_a_chain_does_what_its_numbers_say():
    rng = random.Random(7)
    chain = line("{loss: {p13: 1%, p31: 20%, p32: 10%, p23: 30%, p14: 0.5%}}").loss.chain
    state, lost, bursts, before, count = 0, 0, 0, False, 200_000
    for _ in range(count):
        state = rng.choices(range(4), chain.moves[state])[0]
        now = rng.random() < chain.loss[state]
        lost, bursts, before = lost + now, bursts + (now and not before), now
    assert lost / count == pytest.approx(chain.share, rel=0.1)
    assert lost / bursts == pytest.approx(chain.mean_burst, rel=0.1)


# -- elements --------------------------------------------------------------------------------------


def test_a_line_with_a_rate_and_a_constant_delay_is_one_element():
    assert elements("web -> any: {rate: 10mbit, queue: 50ms, overhead: docsis, delay: 20ms}") == {
        "web.egress": [
            {"element": "Link", "name": "shape-line", "rate": "10mbit", "queue": "50ms", "overhead": "docsis", "delay": "20ms"}
        ]
    }


def test_jitter_is_the_impairments():
    [link, impairment] = elements("any -> web: {rate: 10mbit, delay: {mean: 40ms, jitter: 10ms}, overhead: {bytes: 18}}")[
        "web.ingress"
    ]
    assert link == {
        "element": "Link",
        "name": "shape-line",
        "rate": "10mbit",
        "queue": "100ms",
        "overhead": {"bytes": 4, "minimum": 0, "cell": "none"},
    }
    assert impairment == {
        "element": "Impairment",
        "name": "shape",
        "delay": {"mean": "40ms", "jitter": "10ms", "shape": "uniform", "correlation": "0%", "order": "keep"},
    }


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("loss: 1%", {"loss": "1%"}),
        ("loss: 0", {"loss": "0%"}),
        ("loss: {share: 1%, burst: 4}", {"loss": {"share": "1%", "burst": 4}}),
        ("loss: {share: 1%, burst: 2.5}", {"loss": {"share": "1%", "burst": 2.5}}),
        ("loss: {share: 1%, correlation: 25%}", {"loss": {"share": "1%", "correlation": "25%"}}),
        (
            "loss: {to_bad: 1%, to_good: 25%}",
            {"loss": {"to_bad": "1%", "to_good": "25%", "bad": "100%", "good": "0%"}},
        ),
        ("loss: {p13: 1%}", {"loss": {"p13": "1%", "p31": "99%", "p32": "0%", "p23": "100%", "p14": "0%"}}),
        ("duplicate: 0.1%", {"duplicate": "0.1%"}),
        ("corrupt: 0.1%", {"corrupt": "0.1%"}),
        ("corrupt: {share: 0.1%, checksum: mend}", {"corrupt": {"share": "0.1%", "part": "payload", "checksum": "mend"}}),
        ("reorder: 1%", {"reorder": {"share": "1%", "by": 1, "within": "100ms"}}),
        ("delay: 40ms", {"delay": "40ms"}),
        ("delay: 0", {"delay": "0ns"}),
    ],
)
def test_the_arguments_of_an_impairment(text, arguments):
    assert elements(f"web -> any: {{{text}}}") == {"web.egress": [{"element": "Impairment", "name": "shape", **arguments}]}


@pytest.mark.parametrize(
    ("settings", "queue"),
    [
        ("rate: 10mbit", "100ms"),
        ("rate: 1mbit", {"packets": 10}),
        ("rate: 1mbit, queue: 10ms", "10ms"),
        ("rate: 10mbit, queue: 64kb", "64kb"),
        ("rate: 10mbit, queue: {packets: 3}", {"packets": 3}),
    ],
)
def test_the_queue_of_a_link(settings, queue):
    assert elements(f"web -> any: {{{settings}}}")["web.egress"][0]["queue"] == queue


def test_pairs_are_told_apart_by_the_senders_address():
    found = elements(
        "web -> db: {rate: 10mbit, loss: 1%}",
        "any -> db: {rate: 100mbit}",
        "lab <-> db: {delay: 5ms}",
    )
    assert list(found) == ["db.ingress", "lab.ingress"]
    classifier, line_ = found["db.ingress"]
    assert line_["name"] == "shape-line" and line_["rate"] == "100mbit"
    assert classifier == {
        "element": "Classifier",
        "name": "shape-pairs",
        "rules": [{"source_mac": WEB}, {"source_mac": LAB}],
        "branches": {
            0: [
                {"element": "Link", "name": "shape-line-from-web", "rate": "10mbit", "queue": "100ms"},
                {"element": "Impairment", "name": "shape-from-web", "loss": "1%"},
            ],
            1: [{"element": "Impairment", "name": "shape-from-lab", "delay": "5ms"}],
        },
    }


def test_links_have_chains_of_their_own():
    read = policy("lan--dmz: {rate: 1gbit}", "uplink -> wan: {loss: 1%}")
    assert list(compile_policy(read, NETWORK)) == [
        Chain("lan--dmz", "dmz", True),
        Chain("lan--dmz", "lan", True),
        Chain("uplink", "wan", True),
    ]


def names(entries):
    return [
        (entry["element"], entry["name"], [names(branch) for branch in entry.get("branches", {}).values()]) for entry in entries
    ]


def test_elements_stay_the_same_when_numbers_change():
    def shape(*links):
        return {chain: names(entries) for chain, entries in elements(*links).items()}

    before = shape("web <-> db: {rate: 10mbit, rtt: 40ms, loss: 1%}", "lab: {delay: {mean: 4ms, jitter: 1ms}}")
    assert before == shape("web <-> db: {rate: 99kbit, rtt: 0, loss: 0}", "lab: {delay: {mean: 0, jitter: 0}}")
    assert before == shape(
        "web <-> db: {preset: wpt-3g, loss: {share: 1%, burst: 3}}", "lab: {delay: {mean: 4ms, jitter: 9ms, shape: normal}}"
    )


def test_a_rate_of_none_leaves_no_link():
    assert elements("web -> db: {rate: 10mbit, delay: 1ms}", "web <-> db: {rate: none}") == {
        "db.ingress": [
            {
                "element": "Classifier",
                "name": "shape-pairs",
                "rules": [{"source_mac": WEB}],
                "branches": {0: [{"element": "Impairment", "name": "shape-from-web", "delay": "1ms"}]},
            }
        ]
    }
    assert elements("web -> db: {rate: 10mbit}", "web <-> db: {rate: none}") == {}


@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", fullmatch=True), unique=True, max_size=8))
def test_names_of_elements_are_valid_and_differ(nics):
    made = [element_name(name, nic) for nic in nics for name in ("shape", "shape-line")] + ["shape", "shape-line"]
    assert len(set(made)) == len(made) and max(map(len, made)) <= 32
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", each) for each in made)


def test_too_many_pairs_of_one_nic_are_refused():
    many = Network(
        {"db": DB, **{f"n{number}": f"02:00:00:00:{number // 256:02x}:{number % 256:02x}" for number in range(1025)}}
    )
    read = convert_policy({"version": 1, "links": {f"{name} -> db": {"loss": "1%"} for name in many.nics if name != "db"}})
    message = "n1024 -> db: more than 1024 lines lead to db: remove some"
    assert [each.text for each in check_policy(read, many) if each.kind == "error"] == [message]
    with pytest.raises(ConfigError, match=message):
        compile_policy(read, many)
    read.entries.pop()
    [(_, [classifier])] = compile_policy(read, many).items()
    assert len(read_rules(classifier["rules"])[0]) == len(classifier["branches"]) == 1024


def test_the_configuration_takes_the_elements():
    found = elements(
        "web <-> db: {preset: wpt-3g, loss: {p13: 1%}}",
        "web: {rate: 1gbit, delay: {mean: 4ms, jitter: 1ms}}",
        "lab: {reorder: 1%}",
    )
    nics = {name: {"netns": f"/run/netns/{name}"} for name in NETWORK.nics}
    for chain, entries in found.items():
        owner, direction = chain.split(".")
        nics[owner][direction] = {"elements": entries}
    config = parse_config(dump_yaml({"nics": nics}))
    classifier = config.nics["db"].ingress.elements[0]
    assert classifier.arguments == {"rules": [{"source_mac": WEB}]}
    assert read_rules(classifier.arguments["rules"])[0][0].source_mac == bytes.fromhex(WEB.replace(":", ""))
    assert [each.name for each in classifier.branches[0]] == ["shape-line-from-web", "shape-from-web"]
    assert classifier.branches[0][0].arguments["delay"] == "150ms"


# -- check -----------------------------------------------------------------------------------------

CHECKS = [  # (entries, findings that are among those found)
    (
        ["web -> any: {rate: 1gbit, delay: 80ms, queue: 1ms}"],
        [
            "p.yaml:3: error: web -> any: 6606 packets are under way at 1gbit, and a delay may hold a quarter of the pool's "
            "16384, 4096: set pool: {small: 26624}"
        ],
    ),
    (
        ["web -> any: {rate: 10tbit, delay: 1s, queue: 1us}"],
        [
            "p.yaml:3: error: web -> any: 825627477 packets are under way at 10tbit, and a delay may hold a quarter of the "
            "pool's 16384, 4096: use another rate: the largest pool has 1048576 packets"
        ],
    ),
    (
        ["web -> any: {rate: 10mbit}", "web -> db: {delay: 100ms}"],
        ["p.yaml:4: note: web -> db: 83 packets are under way at 10mbit, of 4096 that a delay may hold"],
    ),
    (
        ["any -> web: {delay: 100ms}"],
        [
            "p.yaml:3: note: any -> web: has a delay and no rate: 4096 packets, a quarter of the pool, are under way at most, "
            "which is 496mbit of full packets",
            "p.yaml:3: note: web: round trip 100ms to 110ms (100ms there, 0ns back; hosts add the rest)",
        ],
    ),
    (
        ["web -> db: {rate: 10mbit, queue: 64kb}"],
        ["p.yaml:3: note: web -> db: a packet waits at most 52.4ms for 10mbit"],
    ),
    (
        ["web -> db: {rate: 10mbit, queue: {packets: 1000}, overhead: {bytes: 14}}"],
        [
            "p.yaml:3: warning: web -> db: a packet waits at most 1.21s for 10mbit: TCP fills such a queue, and round trips get "
            "as long; lower queue"
        ],
    ),
    (
        ["web -> db: {rate: 1mbit, queue: 1ms}"],
        ["p.yaml:3: warning: web -> db: a queue of less than 2 packets drops most bursts: raise queue"],
    ),
    (
        ["web -> db: {rate: 1gbit}"],
        [
            "p.yaml:3: warning: web -> db: a full queue is 8257 packets, and a queue may take a quarter of the pool's 16384, "
            "4096: lower queue, or set pool: {small: 33792}"
        ],
    ),
    (
        ["web -> db: {delay: {mean: 10ms, jitter: 20ms, order: any}}"],
        [
            "p.yaml:3: warning: web -> db: jitter 20ms is more than the mean 10ms: delays below 0 become 0, so that the mean is "
            "longer; lower jitter or raise mean",
            "p.yaml:3: note: web -> db: packets overtake each other, which TCP can take for loss",
        ],
    ),
    (
        ["web <-> db: {loss: 1%}", "web -> db: {loss: {share: 1%, burst: 4}}"],
        [
            "p.yaml:4: note: web -> db: 1% of packets are lost, 4 in a row on average",
            "p.yaml:3: note: db -> web: 1% of packets are lost, 1.01 in a row on average",
            "p.yaml:3: note: web <-> db: 1.99% of round trips lose a packet (1% there, 1% back)",
        ],
    ),
    (
        ["web -> db: {loss: 1%}", "web -> any: {loss: 1%}", "any -> db: {corrupt: 1%}"],
        ["p.yaml:3: note: web <-> db: 2.97% of round trips lose a packet (2.97% there, 0% back)"],
    ),
    (["web -> db: {loss: 100%, rate: 1mbit}"], ["p.yaml:3: warning: web -> db: nothing arrives: loss is 100%"]),
    (
        ["web -> db: {reorder: {share: 1%, by: 3}}"],
        ["p.yaml:3: note: web -> db: 3 packets overtake 1% of all: TCP takes 3 or more for a loss"],
    ),
    (
        ["web <-> db: {rate: 100mbit, rtt: 100ms, queue: 10ms}", "web -> db: {loss: 0.01%}"],
        [
            "p.yaml:3: note: web <-> db: round trip 100ms to 134ms (50ms there, 50ms back; queues and hosts add the rest)",
            "p.yaml:3: note: web -> db: one TCP connection reaches 6.52mbit to 26.1mbit of payload: loss and round trip limit it, "
            "not the rate's 95.6mbit",
            "p.yaml:3: note: db -> web: one TCP connection reaches 19.9mbit to 95.6mbit of payload, by the rate; a queue of 359 "
            "packets would keep the line busy after losses",
        ],
    ),
    (
        ["web <-> db: {rtt: 100ms}", "web -> db: {loss: {share: 1%, burst: 4}}"],
        ["p.yaml:3: note: web -> db: one TCP connection reaches up to 3.4mbit of payload: loss and round trip limit it"],
    ),
    (
        ["lan--dmz: {rate: 10mbit, overhead: conservative}"],
        ["p.yaml:3: note: lan--dmz -> dmz: one TCP connection reaches 7.45mbit to 8.28mbit of payload, by the rate"],
    ),
    (
        ["web: {preset: comcast-3g}"],
        [
            "p.yaml:3: note: web: preset comcast-3g: rate 750kbit, delay: 250ms, loss 1.5% (comcast's network conditions, which "
            "it applies to what is sent only)"
        ],
    ),
    (
        ["web: {preset: atc-3g-good}"],
        [
            "p.yaml:3: note: web: preset atc-3g-good: 850kbit down, 420kbit up, delay: 90ms down, 100ms up (Augmented Traffic "
            "Control's profiles, one-way delays)"
        ],
    ),
]


@pytest.mark.parametrize(("links", "wanted"), CHECKS)
def test_what_a_policy_means(links, wanted):
    found = findings(*links)
    for each in wanted:
        assert each in found


def test_a_larger_pool_holds_more():
    entry = "web -> any: {rate: 1gbit, delay: 80ms, queue: 1ms}"
    assert [each for each in findings(entry, pool=26424) if "error" in each] == []
    assert [each for each in findings(entry, pool=26423) if "error" in each] != []


def test_lines_together_can_be_too_much_for_the_pool():
    five = [f"{key}: {{rate: 1gbit, delay: 49ms, queue: 1ms}}" for key in ("web", "db", "lab -> any")]
    [found] = [each for each in findings(*five) if "warning" in each]
    assert found == (
        "p.yaml:3: warning: all lines together hold up to 20645 packets, and the pool has 16384: set pool: {small: 21504}"
    )
    assert [each for each in findings(*five[:1]) if "warning" in each] == []


def test_errors_come_first():
    kinds = [each.kind for each in check_policy(policy("web -> db: {rate: 1gbit, delay: 90ms}", "zzz: {loss: 1%}"), NETWORK)]
    assert kinds == sorted(kinds, key=["error", "warning", "note"].index) and set(kinds) == {"error", "warning", "note"}


def test_bandwidth_delay_product():
    assert bdp_packets(10**9, 0) == 0
    assert bdp_packets(1514 * 8, 10**9) == 1 and bdp_packets(1514 * 8, 10**9 + 1) == 2
    assert bdp_packets(10**9, 49_600_000) == 4096  # what a quarter of the default pool holds at 1 Gbit/s


@pytest.mark.parametrize(
    ("overhead", "frame", "length"),
    [
        (None, 60, 60),
        ("raw", 1514, 1514),
        ("ethernet", 1514, 1538),
        ("ethernet", 60, 84),
        ("docsis", 1514, 1518),
        ("docsis", 60, 64),
        ("conservative", 1514, 33 * 53),
        ("pppoa-vcmux", 14 + 38, 53),
        ("pppoa-vcmux", 14 + 39, 106),
        ("pppoe-ptm", 1514, 1530 + 24),
        ("{bytes: -4, minimum: 40}", 54, 40),
    ],
)
def test_bytes_on_a_line(overhead, frame, length):
    given_ = line(f"{{rate: 1mbit, overhead: {overhead}}}").overhead if overhead else None
    assert line_bytes(frame, given_) == length

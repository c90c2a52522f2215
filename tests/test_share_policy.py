"""Shares in policy files: what is read, what it means, and what the allocator makes of it in virtual time."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.link import Link
from shaping.policy.check import check_policy
from shaping.policy.compile import compile_policy
from shaping.policy.forecast import forecasts
from shaping.policy.keys import ANY
from shaping.policy.load import convert_policy, names_in, parse_policy, policy_data
from shaping.policy.network import Network
from shaping.policy.places import Place, plan_of
from shaping.policy.share_notes import function_points
from shaping.shares.allocator import Allocator, Sample
from shaping.shares.function import BandwidthFunction, Piece, Point
from shaping.shares.uplink import EXACT_MOST, LEAST_BPS, Uplink, all_busy, make_uplink
from vnic.runtime.shares import LineOfNic
from vnic.testing import VirtualNetwork

NETWORK = Network({name: f"02:00:00:00:00:0{n}" for n, name in enumerate(("fg1", "fg2", "web", "db"), 1)}, {})
TABLE_1 = """version: 1
shares:
  uplink:
    capacity: 25mbit
    levels: [guaranteed, best_effort]
    fg1: {best_effort: [{weight: 20, upto: 10mbit}, {weight: 5}]}
    fg2: {guaranteed: [{weight: 10, upto: 10mbit}], best_effort: {weight: 10}}
"""
MBIT = 10**6


def shares(text):
    return parse_policy(f"version: 1\nshares:\n  up: {text}\n", "p.yaml")


# -- files -----------------------------------------------------------------------------------------


def test_shares_are_read_and_printed_in_full():
    read = parse_policy(TABLE_1, "p.yaml")
    assert policy_data(read)["shares"] == {
        "uplink": {
            "capacity": "25mbit",
            "levels": ["guaranteed", "best_effort"],
            "groups": {
                "fg1": {"best_effort": [{"weight": 20.0, "upto": "10mbit"}, {"weight": 5.0}]},
                "fg2": {"guaranteed": [{"weight": 10.0, "upto": "10mbit"}], "best_effort": [{"weight": 10.0}]},
            },
        }
    }
    again = convert_policy(policy_data(read))
    assert policy_data(again) == policy_data(read) and again.config == read.config
    assert read.share_lines == {"uplink": "p.yaml:3"}


@pytest.mark.parametrize("text", ["{weight: 2}", "[{weight: 2}]", "{best_effort: {weight: 2}}", "{best_effort: [{weight: 2}]}"])
def test_one_level_needs_no_name(text):
    read = shares(f"{{capacity: 1gbit, web: {text}, groups: {{db: {{weight: 1}}}}}}")
    groups = read.config.shares["up"].groups
    assert groups["web"] == {"best_effort": groups["web"]["best_effort"]} and groups["web"]["best_effort"][0].weight == 2
    assert list(groups) == ["web", "db"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "p.yaml:3: shares.up: invalid value 5: expected a mapping such as {uplink: {capacity: 35gbit"),
        ("{web: {weight: 1}}", "p.yaml:3: shares.up: has no capacity: expected capacity: a rate such as 35gbit"),
        ("{capacity: none, web: {weight: 1}}", "p.yaml:3: shares.up.capacity: none cannot be divided: expected a rate"),
        ("{capacity: 5, web: {weight: 1}}", "p.yaml:3: shares.up.capacity: rate '5' has no unit"),
        ("{capacity: 5mbps, web: {weight: 1}}", "p.yaml:3: shares.up.capacity: rate '5mbps' could mean bits"),
        ("{capacity: 1gbit}", "p.yaml:3: shares.up: has 0 groups: expected 1 to 4096, such as web: {weight: 2}"),
        ("{capacity: 150kbit, a: {weight: 1}, b: {weight: 1}}", "150kbit is too little for 2 NICs: expected 100kbit or more"),
        ("{capacity: 1gbit, levels: [], web: {weight: 1}}", "p.yaml:3: shares.up.levels: expected 1 to 8 different names"),
        ("{capacity: 1gbit, levels: [a, a], web: {weight: 1}}", "p.yaml:3: shares.up.levels: expected 1 to 8 different names"),
        ("{capacity: 1gbit, levels: [weight], web: {}}", "shares.up.levels: invalid value 'weight': expected a name"),
        ("{capacity: 1gbit, levels: ['A B'], web: {}}", "shares.up.levels: invalid value 'A B': expected a name"),
        ("{capacity: 1gbit, levels: 7, web: {weight: 1}}", "shares.up.levels: invalid value 7: expected a list of names"),
        ("{capacity: 1gbit, groups: 7}", "shares.up.groups: invalid value 7: expected a mapping"),
        ("{capacity: 1gbit, web: {weight: 1}, groups: {web: {weight: 1}}}", "shares.up.web: is in groups, too"),
        ("{capacity: 1gbit, web: {}}", "p.yaml:3: shares.up.web: invalid value without weight or levels: expected levels, such as {"),
        ("{capacity: 1gbit, web: 5}", "shares.up.web: invalid value 5: expected levels"),
        ("{capacity: 1gbit, web: {best_efort: {weight: 1}}}", "shares.up.web.best_efort: unknown level; did you mean 'best_effort'?"),
        ("{capacity: 1gbit, web: {best_effort: []}}", "shares.up.web.best_effort: invalid value of 0 pieces: expected 1 to 16 pieces"),
        ("{capacity: 1gbit, web: {best_effort: 5}}", "shares.up.web.best_effort: invalid value 5: expected 1 to 16 pieces"),
        ("{capacity: 1gbit, web: {best_effort: [5]}}", "shares.up.web.best_effort[0]: invalid value 5: expected a mapping"),
        ("{capacity: 1gbit, web: {weight: 0}}", "shares.up.web.best_effort[0].weight:"),
        ("{capacity: 1gbit, web: {weight: 1, upto: 5}}", "shares.up.web.best_effort[0].upto: rate '5' has no unit"),
        ("{capacity: 1gbit, web: {weight: 1, up: 5}}", "shares.up.web.best_effort[0].up: unknown key; did you mean 'upto'?"),
        ("{capacity: 1gbit, web: [{weight: 1}, {weight: 2}]}", "shares.up.web.best_effort[0]: has no upto, which only the last"),
        ("{capacity: 1gbit, web: [{weight: 1, upto: 5mbit}, {weight: 2, upto: 5mbit}]}", "upto 5mbit is not more than in the piece before"),
        ("{capacity: 1gbit, levels: [a, b], web: {a: {weight: 1}}}", "shares.up.web.a[0]: has no upto"),
        ("{capacity: 1gbit, levels: [a, b], web: {weight: 1}}", "shares.up.web.weight: unknown level; expected one of a, b"),
    ],
)  # fmt: skip
def test_a_wrong_share_is_refused_with_one_line(text, message):
    with pytest.raises(ConfigError) as raised:
        shares(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_bounds_on_files():
    many = ", ".join(f"n{n}: {{weight: 1}}" for n in range(4097))
    with pytest.raises(ConfigError, match="has 4097 groups: expected 1 to 4096"):
        shares(f"{{capacity: 10tbit, {many}}}")
    with pytest.raises(ConfigError, match="shares: invalid value of 65 entries: expected at most 64"):
        convert_policy({"version": 1, "shares": {str(n): {} for n in range(65)}})
    with pytest.raises(ConfigError, match="shares: invalid value 5: expected at most 64 entries"):
        convert_policy({"version": 1, "shares": 5})
    pieces = [{"weight": 1, "upto": f"{n}mbit"} for n in range(1, 17)]
    crowd = {f"n{n}": pieces for n in range(1025)}
    with pytest.raises(
        ConfigError, match="shares.up: 1025 NICs with 16400 pieces so far: expected at most 4096 NICs and 16384"
    ):
        convert_policy({"version": 1, "shares": {"up": {"capacity": "1tbit", "groups": crowd}}})
    halves = {name: {"capacity": "1tbit", "groups": {f"{name}{n}": {"weight": 1} for n in range(2100)}} for name in "ab"}
    with pytest.raises(ConfigError, match="shares.b: 4200 NICs with 4200 pieces so far"):
        convert_policy({"version": 1, "shares": halves})
    twice = {name: {"capacity": "1gbit", "web": {"weight": 1}} for name in ("a", "b")}
    with pytest.raises(ConfigError, match="shares.b.web: has a share of a already"):
        convert_policy({"version": 1, "shares": twice})


@settings(max_examples=200, deadline=None)
@given(
    data=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("1gbit")),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["capacity", "levels", "groups", "web", "weight", "upto", "best_effort", "x"]),
                inner,
                max_size=4,
            ),
        ),
        max_leaves=12,
    )
)
def test_whatever_data_comes_is_taken_or_refused(data):
    try:
        convert_policy({"version": 1, "shares": {"up": data}})
    except ConfigError as error:
        assert "\n" not in str(error)


# -- plans -----------------------------------------------------------------------------------------


def test_what_a_share_means():
    found = [str(each) for each in check_policy(parse_policy(TABLE_1, "p.yaml"), NETWORK)]
    assert "p.yaml:3: note: shares.uplink: fg1: 10mbit when all send; gets 0 at 0, 0 at 1, 10mbit at 1.5 and more" in found
    assert "p.yaml:3: note: shares.uplink: fg2: 15mbit when all send; gets 0 at 0, 10mbit at 1 and more" in found
    points = function_points(plan_of(parse_policy(TABLE_1), NETWORK), "uplink")
    assert points["fg1"] == [(0, 0), (1, 0), (1.5, 10e6), (1.875, 11.875e6)]
    assert points["total"] == [(0, 0), (1, 10e6), (1.5, 25e6), (1.875, 30.625e6)]
    with pytest.raises(KeyError):
        function_points(plan_of(parse_policy(TABLE_1), NETWORK), "nothing")


def test_each_nic_of_a_share_has_a_line_with_its_rate():
    compiled = compile_policy(parse_policy(TABLE_1), NETWORK)
    assert {
        str(chain): [(each["element"], each["name"], each["rate"]) for each in entries] for chain, entries in compiled.items()
    } == {
        "fg1.egress": [("Link", "shape-line", "10mbit")],
        "fg2.egress": [("Link", "shape-line", "15mbit")],
    }


def test_a_rate_of_the_line_is_a_bound_on_the_share():
    plan = plan_of(
        parse_policy(f"{TABLE_1}links:\n  fg1 -> any: {{rate: 4mbit, queue: 20ms}}\n  fg2: {{delay: 5ms}}\n"), NETWORK
    )
    assert not [each for each in plan.findings if each.kind == "error"]
    assert {group: plan.lines[Place(group, ANY)].rate for group in ("fg1", "fg2")} == {"fg1": 4 * MBIT, "fg2": 21 * MBIT}
    assert plan.uplinks["uplink"].functions["fg1"].limit == 4 * MBIT


def test_unknown_nics_are_named():
    def errors(text):
        return [str(each) for each in check_policy(shares(text), NETWORK) if each.kind == "error"]

    assert errors("{capacity: 1gbit, webb: {weight: 1}, db: {weight: 1}}") == [
        "p.yaml:3: error: shares.up: there is no NIC webb; did you mean 'web'?"
    ]
    with pytest.raises(ConfigError, match="invalid name 'a b': expected the name of a NIC or of a group, or a class such as"):
        shares("{capacity: 1gbit, a b: {weight: 1}}")
    many = ", ".join(f"n{n}: {{weight: 1}}" for n in range(100))
    assert len(errors(f"{{capacity: 1gbit, {many}}}")) == 20


def test_a_group_that_gets_nothing_is_warned_of():
    found = check_policy(
        shares("{capacity: 10mbit, levels: [high, low], web: {high: {weight: 1, upto: 20mbit}}, db: {low: {weight: 1}}}"),
        NETWORK,
    )
    [warning] = [str(each) for each in found if each.kind == "warning" and "db" in each.text and "queue" not in each.text]
    assert "shares.up: db: gets only 50kbit while the others send as much as they may: move it to a higher level" in warning


# -- uplinks ---------------------------------------------------------------------------------------


def uplink(capacity, **functions):
    return Uplink(int(capacity), functions)


def table_1(capacity):
    read = plan_of(parse_policy(TABLE_1), NETWORK).uplinks["uplink"]
    return Uplink(capacity, read.functions)


@pytest.mark.parametrize(
    ("capacity", "fg1", "fg2"), [(10, 0.05, 9.95), (25, 10, 15), (32.5, 12.5, 20), (35, 15, 20), (70, 30, 40)]
)
def test_the_rates_of_table_1(capacity, fg1, fg2):
    """With demands of 15 and 20: figure 4. A group that gets nothing has a two hundredth; what nobody wants is divided,
    too."""
    rates = table_1(int(capacity * MBIT)).rates({"fg1": 15e6, "fg2": 20e6})
    assert rates == {"fg1": fg1 * MBIT, "fg2": fg2 * MBIT}


some_functions = st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 10**9), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    made=some_functions,
    capacity=st.integers(10**6, 10**10),
    wanted=st.lists(st.one_of(st.just(math.inf), st.integers(0, 10**10)), min_size=8, max_size=8),
    copies=st.sampled_from([1, 20]),
)
def test_rates_never_exceed_the_capacity(made, capacity, wanted, copies):
    """Nor is any of it left while a group wants more; in fractions, and in floats (with many groups)."""
    groups = {
        f"g{n}.{copy}": {"best_effort": [Piece(weight, upto), *([] if bounded else [Piece(1)])]}
        for n, (weight, upto, bounded) in enumerate(made)
        for copy in range(copies)
    }
    up = make_uplink(capacity, groups, ["best_effort"], {})
    demands = {name: float(wanted[int(name[1:].split(".")[0])]) for name in groups}
    rates = up.rates(demands)
    assert sum(rates.values()) <= capacity
    assert all(rate >= min(up.least_of(name), up.functions[name].limit) for name, rate in rates.items())
    assert all(rate <= max(up.functions[name].limit, LEAST_BPS) for name, rate in rates.items())
    possible = sum(min(demands[name], up.functions[name].limit) for name in groups)
    slack = len(groups) + capacity * (0 if len(groups) <= EXACT_MOST else 1e-8)
    assert sum(rates.values()) >= min(possible, capacity) - slack


def test_a_bound_below_the_least_is_kept():
    one = BandwidthFunction((Point(0, 0),), Fraction(1))
    rates = uplink(10**9, slow=one.capped(10_000), fast=one).rates({"slow": math.inf, "fast": math.inf})
    assert rates == {"slow": 10_000, "fast": 10**9 - 10_000}


# -- groups of several NICs ------------------------------------------------------------------------

SEARCH = "{capacity: 40mbit, search: {weight: 3, of: {web: {weight: 2}, db: {}}}, fg1: {weight: 1}}"


def test_a_group_of_nics_is_read_and_means_what_it_says():
    read = shares(SEARCH)
    assert policy_data(read)["shares"]["up"] == {
        "capacity": "40mbit",
        "levels": ["best_effort"],
        "groups": {"search": {"best_effort": [{"weight": 3.0}]}, "fg1": {"best_effort": [{"weight": 1.0}]}},
        "members": {"search": {"web": {"best_effort": [{"weight": 2.0}]}, "db": {"best_effort": [{"weight": 1.0}]}}},
    }
    assert convert_policy(policy_data(read)).config == read.config and names_in(policy_data(read)) == {"web", "db", "fg1"}
    found = [str(each).partition("note: ")[2] for each in check_policy(read, NETWORK) if "shares.up" in each.text]
    assert found == [
        "shares.up: search: 30mbit when all send; gets 0 at 0 and more",
        "shares.up: search: web: 20mbit when all send; gets of what search gets 0 at 0 and more",
        "shares.up: search: db: 10mbit when all send; gets of what search gets 0 at 0 and more",
        "shares.up: fg1: 10mbit when all send; gets 0 at 0 and more",
    ]
    assert set(function_points(plan_of(read, NETWORK), "up")) == {"search", "fg1", "total"}


@pytest.mark.parametrize(
    ("demands", "expected"),
    [
        ({}, {"web": 20, "db": 10, "fg1": 10}),
        ({"web": 2}, {"web": 2, "db": 28, "fg1": 10}),  # what web does not want is db's before fg1's
        ({"fg1": 1}, {"web": 26, "db": 13, "fg1": 1}),
        ({"web": 2, "db": 3}, {"web": 2, "db": 3, "fg1": 35}),
    ],
)
def test_a_group_divides_what_it_gets(demands, expected):
    up = plan_of(shares(SEARCH), NETWORK).uplinks["up"]
    assert up.groups == {"web": "search", "db": "search"}
    rates = up.rates({**all_busy(up.leaves), **{name: mbit * 1e6 for name, mbit in demands.items()}})
    assert {name: round(rate / MBIT, 3) for name, rate in rates.items()} == expected


def test_figure_8_in_a_policy():
    """The groups of BwE's figure 8 under the site's function: cf1 and cf2 at the fair shares 7.5, 10, 12.5 and 15 of
    their own, where together they have 30, 40, 47.5 and 50."""
    site = "[{weight: 1.5, upto: 20mbit}, {weight: 0.333333, upto: 50mbit}, {weight: 0.2, upto: 100mbit}]"
    cf1, cf2 = "[{weight: 2, upto: 20mbit}, {weight: 1, upto: 25mbit}]", "{weight: 2, upto: 25mbit}"
    text = f"{{capacity: CAP, site: {{best_effort: {site}, of: {{web: {cf1}, db: {cf2}}}}}}}"
    for capacity, web, db in ((30, 15, 15), (40, 20, 20), (47.5, 22.5, 25), (50, 25, 25)):
        up = plan_of(shares(text.replace("CAP", f"{capacity}mbit")), NETWORK).uplinks["up"]
        rates = up.rates(all_busy(up.leaves))
        assert rates["web"] == pytest.approx(web * MBIT, abs=2) and rates["db"] == pytest.approx(db * MBIT, abs=2), capacity


@settings(max_examples=150, deadline=None)
@given(
    inner=st.lists(some_functions, min_size=1, max_size=4),
    outer=some_functions,
    capacity=st.integers(10**6, 10**10),
    data=st.data(),
)
def test_groups_of_nics_never_exceed_what_they_have(inner, outer, capacity, data):
    def pieces(weight, upto, bounded):
        return {"best_effort": [Piece(weight, upto), *([] if bounded else [Piece(1)])]}

    groups = {f"g{n}": pieces(*outer[n % len(outer)]) for n in range(len(inner))}
    members = {f"g{n}": {f"g{n}.{k}": pieces(*each) for k, each in enumerate(own)} for n, own in enumerate(inner)}
    up = make_uplink(capacity, {**groups, "alone": pieces(1, 1, False)}, ["best_effort"], {}, members)
    wants = st.one_of(st.just(math.inf), st.integers(0, 10**10))
    demands = {leaf: float(data.draw(wants)) for leaf in up.leaves}
    rates = up.rates(demands)
    assert rates.keys() == up.leaves.keys() and sum(rates.values()) <= capacity
    for group, own in up.members.items():
        least = sum(up.least_of(leaf) for leaf in own)
        assert sum(rates[leaf] for leaf in own) <= up.functions[group].limit + least + len(own)
    if all(demand == math.inf for demand in demands.values()):
        # what `alone` has no bound for is left by nothing but the least of others
        assert sum(rates.values()) >= capacity - len(rates) - sum(map(up.least_of, rates))


def test_many_nics_in_a_group_take_no_longer_than_alone():
    """Work, not time: how often a function is asked."""
    calls = []

    class Counted(BandwidthFunction):
        def __call__(self, share):
            calls.append(share)
            return super().__call__(share)

    counts = {}
    for count in (100, 1000):
        calls.clear()
        one = Counted((Point(0, 0),), Fraction(1))
        up = Uplink(10**12, {"s": one}, {"s": {f"n{n}": one for n in range(count)}})
        rates = up.rates({f"n{n}": 10**6 + n for n in range(count)})
        assert len(rates) == count
        counts[count] = len(calls)
    assert counts[1000] <= 12 * counts[100] + 1000


def test_a_group_whose_nics_are_gone_leaves_its_part_to_others():
    up = plan_of(shares(SEARCH), NETWORK).uplinks["up"]
    assert up.only({"web", "fg1"}).rates(all_busy(["web", "fg1"])) == {"web": 30 * MBIT, "fg1": 10 * MBIT}
    assert up.only({"fg1"}).rates(all_busy(["fg1"])) == {"fg1": 40 * MBIT}
    assert up.only(()).functions == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{capacity: 1gbit, s: {weight: 1, of: {}}}",
            "shares.up.s.of: invalid value of 0 NICs: expected 1 to 4096 NICs such as",
        ),
        ("{capacity: 1gbit, s: {weight: 1, of: 5}}", "shares.up.s.of: invalid value 5: expected 1 to 4096 NICs such as"),
        ("{capacity: 1gbit, s: {of: {web: {}}}}", "shares.up.s: invalid value without weight or levels"),
        ("{capacity: 1gbit, s: {weight: 1, of: {web: {}}}, web: {weight: 1}}", "shares.up.web: has a share of up already"),
        ("{capacity: 1gbit, s: {weight: 1, of: {web: {weight: 0}}}}", "shares.up.s.of.web.best_effort[0].weight: "),
        (
            "{capacity: 1gbit, s: {weight: 1}, members: {t: {web: {}}}}",
            "shares.up.members.t: there is no group t: expected one of s",
        ),
        ("{capacity: 1gbit, s: {weight: 1}, members: 7}", "shares.up.members: invalid value 7: expected a mapping"),
        ("{capacity: 1gbit, s: {weight: 1, of: {web: {}}}, members: {s: {db: {}}}}", "shares.up.s.of: is in members, too"),
        ("{capacity: 300kbit, s: {weight: 1, of: {web: {}, db: {}, fg1: {}, fg2: {}}}}", "300kbit is too little for 4 NICs"),
    ],
)
def test_a_wrong_group_is_refused_with_one_line(text, message):
    with pytest.raises(ConfigError) as found:
        shares(text)
    assert message in str(found.value) and "\n" not in str(found.value)


# -- classes ---------------------------------------------------------------------------------------

CLASSES = """version: 1
classes:
  web.egress:
    rate: 100mbit
    default: rest
    tree:
      gold: {match: {dscp: ef}, tree: {sync: {match: {protocol: tcp}, ceiling: 20mbit}, more: {}}}
      rest: {ceiling: 30mbit}
  db.ingress: {rate: 50mbit, default: all, tree: {all: {}}}
shares:
  up: {capacity: 40mbit, web.egress/gold: {weight: 3}, fg1: {weight: 1}, late: {weight: 4, of: {db.ingress/all: {}}}}
"""


def test_classes_of_a_share_have_its_ceilings():
    read = parse_policy(CLASSES, "p.yaml")
    assert names_in(policy_data(read)) == {"web", "db", "fg1"}
    assert convert_policy(policy_data(read)).config == read.config
    plan = plan_of(read, NETWORK)
    assert plan.shared == {"web.egress": {"gold": ("up", 15 * MBIT)}, "db.ingress": {"all": ("up", 20 * MBIT)}}
    assert [plan.rate_in_share(leaf) for leaf in plan.uplinks["up"].leaves] == [15 * MBIT, 5 * MBIT, 20 * MBIT]
    trees = {
        str(chain): entry["classes"]["tree"]
        for chain, entries in compile_policy(read, NETWORK).items()
        for entry in entries
        if entry["element"] == "Scheduler"
    }
    assert {name: trees["web.egress"]["gold"][name] for name in ("share", "ceiling")} == {"share": "up", "ceiling": "15mbit"}
    assert trees["web.egress"]["rest"] == {"ceiling": "30mbit", "mark": trees["web.egress"]["rest"]["mark"]}
    assert trees["db.ingress"]["all"]["ceiling"] == "20mbit"
    notes = [str(each).partition("note: ")[2] for each in check_policy(read, NETWORK) if "shares.up" in each.text]
    assert "shares.up: web.egress/gold: 15mbit when all send; gets 0 at 0, 100mbit at 33.33" in notes
    assert "shares.up: late: db.ingress/all: 20mbit when all send; gets of what late gets 0 at 0, 50mbit at 50" in notes


def test_a_ceiling_of_the_class_is_a_bound_on_the_share():
    read = parse_policy(
        CLASSES.replace("default: all, tree: {all: {}}", "default: all, tree: {all: {ceiling: 8mbit}}"), "p.yaml"
    )
    plan = plan_of(read, NETWORK)
    assert plan.rate_in_share("db.ingress/all") == 8 * MBIT and plan.uplinks["up"].leaves["db.ingress/all"].limit == 8 * MBIT
    # the line's rate of all that web sends bounds what its class may get
    assert plan.uplinks["up"].leaves["web.egress/gold"].limit == 100 * MBIT


def test_what_classes_reach_knows_of_their_share():
    """The least of gold's classes is what the share leaves them, the most what the line has."""

    def reached(text):
        read = parse_policy(text)
        return {each.place: each.goodput_bps for each in forecasts(plan_of(read, NETWORK), read, NETWORK)}

    found, free = reached(CLASSES), reached(CLASSES.partition("shares:")[0])
    assert found["web.egress/gold/more"][0] < 8 * MBIT < free["web.egress/gold/more"][0]
    assert found["web.egress/gold/more"][1] == free["web.egress/gold/more"][1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("web.egress/gold:", "web.egress/gould:", "shares.up: there is no class web.egress/gould"),
        ("web.egress/gold:", "web.ingress/gold:", "shares.up: there is no class web.ingress/gold"),
        ("web.egress/gold:", "web.egress/:", "shares.up: there is no class web.egress/"),
        ("more: {}", "more: {guarantee: 1mbit}", "shares.up: web.egress/gold: it, or a class in it, has a guarantee"),
        ("fg1:", "web:", "shares.up: web.egress/gold: web, which sends its packets, is there, too"),
        (
            "shares:",
            "scenario: [{at: 1s, classes: {web.egress/gold: {ceiling: 5mbit}}}]\nshares:",
            "share of up sets what gold",
        ),
        (
            "shares:",
            "scenario: [{at: 1s, classes: {web.egress/gold/more: {guarantee: 5mbit}}}]\nshares:",
            "the share of up sets what gold gets again and again",
        ),
    ],
)
def test_a_class_that_cannot_share_is_an_error(old, new, message):
    text = CLASSES.replace(old, new, 1)
    errors = [str(each) for each in check_policy(parse_policy(text, "p.yaml"), NETWORK) if each.kind == "error"]
    assert len(errors) == 1 and message in errors[0] and errors[0].startswith("p.yaml:")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("web <-> db/gold", "shares.up.web <-> db/gold: is both ways: expected web.egress"),
        ("/gold", "shares.up./gold: "),
        ("web.egress/rest: {weight: 1}, ' web.egress / rest '", "has a share of up already"),
    ],
)
def test_a_wrong_name_of_a_class_is_refused(name, message):
    with pytest.raises(ConfigError) as raised:
        parse_policy(CLASSES.replace("fg1:", f"{name}:"), "p.yaml")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_class_whose_nic_is_absent_leaves_its_part():
    network = Network({name: mac for name, mac in NETWORK.nics.items() if name != "db"}, {}, frozenset({"db"}))
    plan = plan_of(parse_policy(CLASSES), network)
    assert not [each for each in plan.findings if each.kind == "error"]
    assert plan.shared == {"web.egress": {"gold": ("up", 30 * MBIT)}}


# -- the allocator ---------------------------------------------------------------------------------


class Uplinked:
    """NICs that send over Links of one uplink, in virtual time; the rates are set every 100 ms."""

    PERIOD_NS = 100_000_000

    def __init__(self, up: Uplink) -> None:
        self.pool = PacketPool(small=16384, large=16)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=10**9))
        self.uplink, self.allocator = up, Allocator(up)
        self.ports = {name: MemoryPort(name, number) for number, name in enumerate(up.leaves)}
        begin = up.rates(all_busy(up.leaves))
        self.links = {name: Link(begin[name], queue="50ms", name=f"{name}.egress.shape-line") for name in up.leaves}
        sources = []
        for name, port in self.ports.items():
            rx = PortRx(port)
            rx >> self.links[name] >> PortTx(MemoryPort(f"{name}.out"))
            sources.append(rx)
        self.engine.load(sources)
        self.used: dict[str, float] = {}
        self.most = 0

    def rates(self) -> dict[str, int]:
        return {name: link.rate_bps for name, link in self.links.items()}

    def run(self, periods: int, **offered_bps: float) -> dict[str, float]:
        """Offers packets of 1250 bytes at these rates, evenly; returns what was sent in the last period, in Mbit/s."""
        for _ in range(periods):
            before = {name: link.statistics()["counters"]["sent_bytes"] for name, link in self.links.items()}
            begin = self.engine.clock.now_ns
            arrivals = sorted(
                (begin + int(k * 10_000 * 10**9 / bps), name)
                for name, bps in offered_bps.items()
                for k in range(int(self.PERIOD_NS * bps / 10**13))
            )
            for at, group in itertools.groupby(arrivals, key=lambda each: each[0]):
                advance(self.engine, at)
                for _, name in group:
                    self.ports[name].inject([bytes(1250)])
                advance(self.engine, at)
            advance(self.engine, begin + self.PERIOD_NS)
            self.used = {
                name: (link.statistics()["counters"]["sent_bytes"] - before[name]) * 8 / self.PERIOD_NS * 1000
                for name, link in self.links.items()
            }
            self.step()
        return self.used

    def step(self) -> None:
        """Measures and sets; all rates together are noted after each change."""
        enforcers = {name: LineOfNic(link) for name, link in self.links.items()}
        samples = {name: each.sample() for name, each in enforcers.items()}
        assert None not in samples.values()
        for name, rate in self.allocator.step(self.engine.clock.now_ns, samples):  # type: ignore[arg-type]
            enforcers[name].set_rate(rate)
            self.most = max(self.most, sum(self.rates().values()))

    def close(self) -> None:
        assert self.most <= self.uplink.capacity_bps
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


def test_rates_follow_the_demands():
    net = Uplinked(table_1(25 * MBIT))
    assert net.rates() == {"fg1": 10 * MBIT, "fg2": 15 * MBIT}
    # figure 4: at 25 Mbit/s the first gets 10 and the second 15 of the 15 and 20 that they want
    assert net.run(5, fg1=15e6, fg2=20e6) == pytest.approx({"fg1": 10, "fg2": 15}, rel=0.02)
    # the second one wants 5 only: the first one may have the rest as soon as that is seen
    net.run(15, fg1=15e6, fg2=5e6)
    assert net.run(1, fg1=15e6, fg2=5e6) == pytest.approx({"fg1": 15, "fg2": 5}, rel=0.02)
    # and has to give it back at once
    net.run(1, fg1=15e6, fg2=20e6)
    assert net.run(1, fg1=15e6, fg2=20e6) == pytest.approx({"fg1": 10, "fg2": 15}, rel=0.05)
    net.close()


def test_an_idle_uplink_leaves_room_to_begin():
    net = Uplinked(table_1(100 * MBIT))
    net.run(20)
    assert sum(net.rates().values()) == pytest.approx(100 * MBIT, rel=0.02)
    assert net.run(1, fg2=40e6)["fg2"] == pytest.approx(40, rel=0.05)
    net.run(3, fg2=90e6)
    assert net.run(1, fg2=90e6)["fg2"] == pytest.approx(90, rel=0.05)
    net.close()


def test_a_level_goes_before_the_next_one():
    """The first group wants all of its guarantee; the best effort of the other one gets what is left."""
    levels = {"fg1": {"low": [Piece(1)]}, "fg2": {"high": [Piece(1, 20 * MBIT)], "low": [Piece(1)]}}
    net = Uplinked(make_uplink(20 * MBIT, levels, ["high", "low"], {}))
    used = net.run(5, fg1=30e6, fg2=30e6)
    assert used == pytest.approx({"fg1": 0.1, "fg2": 19.9}, abs=0.1)
    net.run(15, fg1=30e6, fg2=4e6)
    assert net.run(1, fg1=30e6, fg2=4e6) == pytest.approx({"fg1": 15.6, "fg2": 4}, abs=0.3)
    net.close()


@settings(max_examples=15, deadline=None)
@given(offers=st.lists(st.lists(st.sampled_from([0, 1e6, 7e6, 30e6]), min_size=4, max_size=4), min_size=1, max_size=12))
def test_the_sum_of_rates_never_exceeds_the_capacity(offers):
    groups = {f"g{n}": {"best_effort": [Piece(n + 1)]} for n in range(4)}
    net = Uplinked(make_uplink(20 * MBIT, groups, ["best_effort"], {}))
    for offered in offers:
        net.run(2, **{f"g{n}": bps for n, bps in enumerate(offered) if bps})
        assert sum(net.rates().values()) <= 20 * MBIT
    net.close()


def test_a_nic_that_is_gone_leaves_its_share_to_the_others():
    allocator = Allocator(table_1(25 * MBIT))
    both = {"fg1": Sample(10 * MBIT, 0, 0, True), "fg2": Sample(15 * MBIT, 0, 0, True)}
    assert allocator.step(1, both) == []
    assert allocator.step(2, {"fg1": both["fg1"]}) == [("fg1", 25 * MBIT)]
    assert allocator.step(3, {}) == []
    # when it is back, what it may send is taken from the others first
    back = {"fg1": Sample(25 * MBIT, 0, 0, True), "fg2": Sample(0, 0, 0, False)}
    assert allocator.step(4, back) == [("fg2", 15 * MBIT), ("fg1", 10 * MBIT)]


def test_small_differences_are_left_as_they_are():
    allocator = Allocator(table_1(25 * MBIT))
    near = {"fg1": Sample(9_950_000, 0, 0, True), "fg2": Sample(15 * MBIT, 0, 0, True)}
    assert allocator.step(1, near) == []
    over = {"fg1": Sample(9_950_000, 0, 0, True), "fg2": Sample(15_100_000, 0, 0, True)}
    assert allocator.step(2, over) == [("fg2", 15 * MBIT)]


def test_a_counter_that_begins_anew_is_no_usage():
    allocator = Allocator(table_1(25 * MBIT))
    for at, sent in ((1, 10**9), (2, 0)):
        allocator.step(at * 10**8, {"fg1": Sample(10 * MBIT, sent, 0, False), "fg2": Sample(15 * MBIT, sent, 0, False)})
        assert allocator.demands == {"fg1": math.inf, "fg2": math.inf}


# -- a network -------------------------------------------------------------------------------------


def frame(source: int, target: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, target, 2, 0, 0, 0, 0, source]) + b"\x88\xb5" + bytes(1236)


def test_shares_of_a_running_network():
    """In virtual time the rates are those for when all send, until a step is made by hand."""
    net = VirtualNetwork("nics: {fg1: {mac: '02:00:00:00:00:01'}, fg2: {mac: '02:00:00:00:00:02'}}")
    assert net._runtime.status().get("shares") is None
    net.shape(TABLE_1)
    handlers = net._runtime.handlers()
    assert {"fg1.egress.shape-line", "fg2.egress.shape-line"} <= set(handlers)

    def rate(nic):
        return net._runtime.read_handler(f"{nic}.egress.shape-line", "rate")[0]["value"]

    assert (rate("fg1"), rate("fg2")) == ("10mbit", "15mbit")
    for _ in range(15):
        net.send("fg1", [frame(1, 2)] * 150, gap="666us")
        net.run()
        net._runtime.shares.step()
    [share] = net._runtime.status()["shares"]
    assert (share["name"], share["capacity_bps"]) == ("uplink", 25 * MBIT)
    assert sum(group["rate_bps"] for group in share["groups"]) <= 25 * MBIT
    assert {group["name"]: group["rate_bps"] > 15 * MBIT for group in share["groups"]} == {"fg1": True, "fg2": False}
    before = rate("fg1")
    net.shape(TABLE_1 + "links: {fg2 -> any: {delay: 1ms}}\n")  # another line: the rates stay
    assert rate("fg1") == before
    net.shape(None)
    assert net._runtime.status().get("shares") is None
    net.close()


EF = bytes.fromhex("45b8001400000000401100000a0000010a000002")


def test_a_class_and_a_nic_share_in_a_running_network():
    """What the NIC does not use the class gets, and a step of a scenario, another policy and the worker's elements know
    of it."""
    net = VirtualNetwork("nics: {web: {mac: '02:00:00:00:00:01'}, fg1: {mac: '02:00:00:00:00:02'}}")
    policy = CLASSES.replace("  db.ingress: {rate: 50mbit, default: all, tree: {all: {}}}\n", "").replace(
        ", late: {weight: 4, of: {db.ingress/all: {}}}", ""
    )
    net.shape(policy)
    gold = frame(1, 2)[:12] + b"\x08\x00" + EF + bytes(1216)

    def rates():
        [share] = net._runtime.status()["shares"]
        assert sum(group["rate_bps"] for group in share["groups"]) <= 40 * MBIT
        return {group["name"]: group["rate_bps"] for group in share["groups"]}

    def send(periods):
        for _ in range(periods):
            net.send("web", [gold] * 300, gap="333us")
            net.run()
            net._runtime.shares.step()

    assert rates() == {"web.egress/gold": 30 * MBIT, "fg1": 10 * MBIT}
    send(15)
    assert rates()["web.egress/gold"] > 35 * MBIT
    before = rates()
    net.shape(policy.replace("rest: {ceiling: 30mbit}", "rest: {ceiling: 25mbit}"))  # another class: what it has stays
    assert rates() == before
    tree = net._runtime.read_handler("web.egress.shape-classes", "tree")[0]["value"]
    assert tree["tree"]["gold"]["ceiling"] == "30mbit" and tree["tree"]["rest"]["ceiling"] == "25mbit"
    net.shape(policy.partition("shares:")[0])
    assert net._runtime.status().get("shares") is None
    net.shape(policy)
    assert rates() == {"web.egress/gold": 30 * MBIT, "fg1": 10 * MBIT}
    net.close()

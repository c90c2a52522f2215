"""Bandwidth functions and what they make of links: the numbers of BwE's paper (SIGCOMM'15), and what holds
for all functions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shaping.shares.allocate import divide, divide_links, fair_share
from shaping.shares.demand import DarkBandwidth, Demand
from shaping.shares.fill import water_fill
from shaping.shares.function import BandwidthFunction, Level, Piece, Point, level_ends, of_levels, total
from shaping.shares.hierarchy import effective, transform

LEVELS = [Level("guaranteed", 2), Level("best_effort")]
FG1 = {"best_effort": [Piece(20, 10), Piece(5)]}
FG2 = {"guaranteed": [Piece(10, 10)], "best_effort": [Piece(10)]}
INF = math.inf


def function(*points: tuple[object, object], slope: object = 0) -> BandwidthFunction:
    exact = tuple(Point(Fraction(str(share)), Fraction(str(bandwidth))) for share, bandwidth in ((0, 0), *points))
    return BandwidthFunction(exact, Fraction(str(slope)))


def table_1() -> dict[str, BandwidthFunction]:
    return {"fg1": of_levels(FG1, LEVELS, demand=15), "fg2": of_levels(FG2, LEVELS, demand=20)}


# -- the paper -------------------------------------------------------------------------------------


def test_the_functions_of_table_1_are_those_of_figure_3():
    found = table_1()
    assert found["fg1"] == function((2, 0), (2.5, 10), (3.5, 15))
    assert found["fg2"] == function((1, 10), (2, 10), (3, 20))
    assert of_levels(FG1, LEVELS) == function((2, 0), (2.5, 10), slope=5)


@pytest.mark.parametrize(
    ("capacity", "share", "fg1", "fg2"),
    [
        (0, 0, 0, 0), (5, 0.5, 0, 5), (10, 1, 0, 10), (17.5, 2.25, 5, 12.5), (25, 2.5, 10, 15), (32.5, 3, 12.5, 20),
        (35, 3.5, 15, 20), (36, INF, 15, 20), (1000, INF, 15, 20),
    ],
)  # fmt: skip
def test_one_link_of_figure_4(capacity, share, fg1, fg2):
    assert fair_share(Fraction(capacity), table_1()) == share
    assert divide(Fraction(capacity), table_1()) == {"fg1": fg1, "fg2": fg2}


def test_aggregation_and_back():
    """What a parent gets is divided at the fair share at which the children's sum is it."""
    parent = total(table_1().values())
    assert parent == function((1, 10), (2, 10), (2.5, 25), (3, 32.5), (3.5, 35))
    assert parent.limit == 35 and divide(parent(Fraction(9, 4)), table_1()) == {"fg1": 5, "fg2": Fraction(25, 2)}


def test_water_fill_of_figure_7():
    assert water_fill(9, [1, 2, 4, 4]) == (3, [1, 2, 3, 3], 0)
    assert water_fill(9, [4, 2, 4, 1]) == (3, [3, 2, 3, 1], 0)
    assert water_fill(15, [1, 2, 4, 4]) == (None, [1, 2, 4, 4], 4)
    assert water_fill(11, [1, 2, 4, 4]) == (None, [1, 2, 4, 4], 0)
    assert water_fill(1, [4, 4, 4]) == (Fraction(1, 3), [Fraction(1, 3)] * 3, 0)
    assert water_fill(5, []) == (None, [], 5)


MPFA = {
    "f1": (function((18, 18)), {"l1": Fraction(1, 4), "l2": Fraction(3, 4), "l3": Fraction(1, 4)}),
    "f2": (function((9, 18)), {"l2": Fraction(1)}),
    "f3": (function((6, 18)), {"l1": Fraction(1)}),
}
CAPACITIES = {"l1": Fraction(13), "l2": Fraction(13), "l3": Fraction(4)}


def test_the_functions_of_the_links():
    def of_link(link: str) -> BandwidthFunction:
        return total(each.scaled(parts.get(link, Fraction(0))) for each, parts in MPFA.values())

    assert of_link("l1") == function((6, 19.5), (18, 22.5))  # 3.25 s, then 0.25 s + 18
    assert of_link("l2") == function((9, 24.75), (18, 31.5))  # 2.75 s, then 0.75 s + 18
    assert of_link("l3") == function((18, 4.5))  # 0.25 s
    assert [of_link(link).share_for(CAPACITIES[link]) for link in CAPACITIES] == [4, Fraction(52, 11), 16]


def test_several_links_with_a_path_that_is_divided():
    found = divide_links(CAPACITIES, MPFA)
    assert found == {"f1": (4, 4), "f2": (5, 10), "f3": (4, 12)}


def test_several_links_with_one_path_each():
    one_path = {**MPFA, "f1": (MPFA["f1"][0], {"l2": Fraction(1)})}
    found = divide_links(CAPACITIES, one_path)
    third = Fraction(13, 3)
    assert found == {"f1": (third, third), "f2": (third, 2 * third), "f3": (third, 13)}
    assert [round(float(each.bandwidth), 2) for each in found.values()] == [4.33, 8.67, 13]


def figure_8() -> tuple[dict[str, BandwidthFunction], BandwidthFunction]:
    """cf1: 15, 20, 22.5 and 25 Gbit/s at 7.5, 10, 12.5 and 15; cf2: of slope 2 to 25; and the site."""
    members = {"cf1": function((10, 20), (15, 25)), "cf2": function((12.5, 25))}
    return members, function((20, 30), (50, 40), (100, 50))


def test_the_transformation_of_figure_8():
    members, site = figure_8()
    together = total(members.values())
    assert [together(Fraction(str(share))) for share in (7.5, 10, 12.5, 15, 100)] == [30, 40, 47.5, 50, 50]
    assert transform(together, site) == [(0, 0), (7.5, 20), (10, 50), (12.5, 87.5), (15, 100)]
    found = effective(members, site)
    slopes = {name: [round(float(slope), 3) for _, slope in each.slopes()] for name, each in found.items()}
    assert slopes == {"cf1": [0.75, 0.167, 0.067, 0.2, 0], "cf2": [0.75, 0.167, 0.133, 0, 0]}
    assert [share for share, _ in found["cf1"].slopes()] == [0, 20, 50, 87.5, 100]
    assert found["cf1"].limit == found["cf2"].limit == 25
    assert total(found.values()) == site


def test_a_limit_within_a_site_leaves_its_bandwidth_to_the_others():
    """Site 1 has cf1, with a demand of 100 behind 5 Gbit/s, and cf2 with 5; site 2 has cf3. The common link of 40
    divided by sites would be 20 for each, of which site 1 cannot use 10."""
    one = function(slope=1)
    cf1, cf2, cf3 = one.capped(100), one.capped(5), one.capped(100)
    sites = {"sf1": total([cf1, cf2]), "sf2": cf3}
    assert divide(Fraction(40), {"sf1": one.capped(105), "sf2": one.capped(100)}) == {"sf1": 20, "sf2": 20}
    assert fair_share(Fraction(40), sites) == Fraction(35, 2)
    groups = {**effective({"cf1": cf1, "cf2": cf2}, one), **effective({"cf3": cf3}, one)}
    links = {
        "cf1": {"narrow": Fraction(1), "common": Fraction(1)},
        "cf2": {"common": Fraction(1)},
        "cf3": {"common": Fraction(1)},
    }
    found = divide_links(
        {"narrow": Fraction(5), "common": Fraction(40)}, {name: (groups[name], links[name]) for name in groups}
    )
    assert {name: each.bandwidth for name, each in found.items()} == {"cf1": 5, "cf2": 5, "cf3": 30}


# -- functions -------------------------------------------------------------------------------------


amounts = st.fractions(min_value=0, max_value=100, max_denominator=20)
positive = st.fractions(min_value=Fraction(1, 10), max_value=20, max_denominator=10)


@st.composite
def functions(draw: st.DrawFn, *, flat: bool = True) -> BandwidthFunction:
    points = [Point(Fraction(0), Fraction(0))]
    for width, slope in draw(st.lists(st.tuples(positive, st.one_of(st.just(Fraction(0)), positive)), max_size=4)):
        last = points[-1]
        points.append(Point(last.share + width, last.bandwidth + width * slope))
    return BandwidthFunction(tuple(points), draw(positive) if not flat or draw(st.booleans()) else Fraction(0))


@given(function=functions(), bandwidth=amounts)
def test_the_share_for_a_bandwidth_is_the_least(function, bandwidth):
    share = function.share_for(bandwidth)
    if share == INF:
        assert function.limit < bandwidth
        return
    assert function(share) == bandwidth
    assert all(function(share * part) < bandwidth for part in (Fraction(0), Fraction(1, 2), Fraction(999, 1000)) if share)


@given(function=functions(), bandwidth=amounts, share=amounts)
def test_a_capped_function_is_the_lower_one(function, bandwidth, share):
    assert function.capped(bandwidth)(share) == min(function(share), bandwidth)
    assert function.capped(bandwidth).limit == min(function.limit, bandwidth)


@given(function=functions(), at=amounts, share=amounts, factor=positive)
def test_a_frozen_and_a_scaled_function(function, at, share, factor):
    assert function.frozen_at(at)(share) == function(min(at, share))
    assert function.frozen_at(INF) == function
    assert function.scaled(factor)(share) == factor * function(share)


@given(several=st.lists(functions(), max_size=6), share=amounts)
def test_a_sum_is_the_sum_at_each_share(several, share):
    found = total(several)
    assert found(share) == sum(each(share) for each in several)
    assert found.limit == sum(each.limit for each in several)


@pytest.mark.parametrize(
    ("points", "slope"), [((), 0), (((1, 0),), 0), (((0, 0), (0, 1)), 0), (((0, 0), (1, 2), (2, 1)), 0), (((0, 0),), -1)]
)
def test_what_falls_is_no_bandwidth_function(points, slope):
    with pytest.raises(ValueError, match="bandwidth function|cannot follow"):
        BandwidthFunction(tuple(Point(*point) for point in points), slope)


def test_levels_that_end_too_early_are_refused():
    with pytest.raises(ValueError, match="level guaranteed ends at 1/2, its pieces at 1"):
        of_levels(FG2, [Level("guaranteed", Fraction(1, 2)), Level("best_effort")])
    with pytest.raises(ValueError, match="level guaranteed has an end, and a piece without one"):
        of_levels({"guaranteed": [Piece(1)]}, LEVELS)


def test_levels_are_as_long_as_their_pieces_need():
    found = level_ends([FG1, FG2, {"guaranteed": [Piece(10, 20), Piece(1, 21)]}], ["guaranteed", "best_effort"])
    assert found == [Level("guaranteed", 3), Level("best_effort", None)]
    assert of_levels(FG2, found) == function((1, 10), (3, 10), slope=10)


@given(
    pieces=st.lists(
        st.dictionaries(st.sampled_from("abc"), st.lists(st.tuples(positive, positive), max_size=3)), min_size=1, max_size=4
    ),
    capacity=amounts,
)
def test_a_level_is_full_before_the_next_one_begins(pieces, capacity):
    """Strict priority: while a group lacks some of a level, nothing of the later levels is given to any."""
    groups = []
    for each in pieces:
        groups.append({})
        for name, own in each.items():
            ends = itertools.accumulate(bandwidth for _, bandwidth in own)
            groups[-1][name] = [Piece(weight, end) for (weight, _), end in zip(own, ends, strict=True)]
    levels = level_ends(groups, "abc")
    found = divide(capacity, dict(enumerate(of_levels(group, levels) for group in groups)))
    left = capacity
    before = dict.fromkeys(found, Fraction(0))
    for level in levels:
        wanted = {number: group[level.name][-1].upto if group.get(level.name) else 0 for number, group in enumerate(groups)}
        given_here = {number: min(max(found[number] - before[number], 0), wanted[number]) for number in found}
        assert sum(given_here.values()) == min(left, sum(wanted.values()))
        left -= sum(given_here.values())
        before = {number: before[number] + wanted[number] for number in found}


# -- allocation ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(capacity=amounts, several=st.lists(functions(), min_size=1, max_size=6))
def test_a_link_is_used_up_and_its_shares_are_equal(capacity, several):
    found = divide(capacity, dict(enumerate(several)))
    assert sum(found.values()) == min(capacity, sum(each.limit for each in several))
    share = fair_share(capacity, dict(enumerate(several)))
    assert all(found[number] == each(share) for number, each in enumerate(several))


@settings(max_examples=200, deadline=None)
@given(
    capacities=st.lists(amounts, min_size=1, max_size=4),
    several=st.lists(
        st.tuples(functions(), st.lists(st.sampled_from([0, 0, Fraction(1, 4), Fraction(1, 2), 1]), min_size=4, max_size=4)),
        min_size=1,
        max_size=6,
    ),
)
def test_several_links_are_divided_max_min_fair(capacities, several):
    """No link carries more than its capacity. A group that does not get all that it wants is held by a link that is full,
    and on which no group has a higher fair share, of which it would have to lose something."""
    links = dict(enumerate(capacities))
    groups = {
        number: (each, {link: parts[link] for link in links if parts[link]}) for number, (each, parts) in enumerate(several)
    }
    assume(all(parts or each.limit < INF for each, parts in groups.values()))
    found = divide_links(links, groups)
    used = {link: sum(found[number].bandwidth * parts.get(link, 0) for number, (_, parts) in groups.items()) for link in links}
    assert all(used[link] <= links[link] for link in links)
    for number, (each, parts) in groups.items():
        share, bandwidth = found[number]
        assert bandwidth == each(share)
        if bandwidth < each.limit:
            assert any(
                used[link] == links[link]
                and all(
                    found[other].share <= share or each_other(found[other].share) == each_other(share)
                    for other, (each_other, others) in groups.items()
                    if link in others
                )
                for link in parts
            )


@settings(max_examples=100, deadline=None)
@given(members=st.lists(functions(), min_size=1, max_size=4), outer=functions(), share=amounts)
def test_effective_functions_get_what_their_group_gets(members, outer, share):
    """At any fair share of the group they get its bandwidth, up to what they want, divided as it would be divided
    among them."""
    named = dict(enumerate(members))
    found = effective(named, outer)
    wanted = total(members).limit
    assert total(found.values())(share) == min(outer(share), wanted)
    expected = divide(min(outer(share), wanted), named)
    assert {number: each(share) for number, each in found.items()} == expected


@given(amount=amounts, demands=st.lists(amounts, max_size=8))
def test_water_fill_gives_all_and_to_none_too_much(amount, demands):
    level, allocations, bonus = water_fill(amount, demands)
    assert sum(allocations) + bonus == amount and (bonus == 0 or level is None)
    for demand, allocation in zip(demands, allocations, strict=True):
        assert allocation == (demand if level is None else min(demand, level))


# -- ten thousand groups ---------------------------------------------------------------------------


def many(count: int, seed: int = 7) -> list[BandwidthFunction]:
    """Groups of awkward weights and bounds, whose sums have long fractions."""
    found = []
    for number in range(count):
        a, b = (number * 7919 + seed) % 997 + 1, (number * 104729 + seed) % 991 + 1
        pieces = {"guaranteed": [Piece(Fraction(a, 10), Fraction(b, 10))], "best_effort": [Piece(b, a * 3), Piece(a)]}
        found.append((pieces, a * 5 + b))
    levels = level_ends([pieces for pieces, _ in found], ["guaranteed", "best_effort"])
    return [of_levels(pieces, levels, demand=demand) for pieces, demand in found]


def test_floats_are_close_to_fractions():
    """One link of 300 groups: the largest error of a group's bandwidth is a millionth of a millionth of the link."""
    exact = dict(enumerate(many(300)))
    floats = {number: each.as_floats() for number, each in exact.items()}
    for part in (0.01, 0.1, 0.5, 0.9, 0.999, 1):
        capacity = total(exact.values()).limit * Fraction(part)
        expected, found = divide(capacity, exact), divide(float(capacity), floats)
        worst = max(abs(float(expected[number]) - found[number]) for number in exact)
        assert worst <= 1e-12 * float(capacity)


def test_ten_thousand_groups_in_floats_use_up_their_link():
    groups = dict(enumerate(each.as_floats() for each in many(10_000)))
    wanted = sum(each.limit for each in groups.values())
    for part in (0.1, 0.5, 0.9):
        found = divide(part * wanted, groups)
        assert math.isclose(sum(found.values()), part * wanted, rel_tol=1e-9)
        share = fair_share(part * wanted, groups)
        assert all(found[number] == each(share) for number, each in groups.items())


# -- demand ----------------------------------------------------------------------------------------


def test_a_demand_is_the_most_of_a_window_and_some_more():
    second = 10**9
    demand = Demand(window_ns=10 * second, scale=1.1, least_bps=10)
    assert demand.estimate(0) == 10
    for at, used in ((1, 100), (2, 300), (3, 200), (4, 50)):
        demand.note(at * second, used)
    assert demand.estimate(4 * second) == pytest.approx(330)
    assert demand.estimate(11 * second) == pytest.approx(330)
    assert demand.estimate(12 * second) == pytest.approx(220)  # the 300 is 10 s old
    assert demand.estimate(13 * second) == pytest.approx(55)
    assert demand.estimate(14 * second) == 10


@given(steps=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 100)), max_size=60))
def test_a_demand_forgets_nothing_within_its_window(steps):
    demand, now, all_notes = Demand(window_ns=10, scale=1, least_bps=0), 0, []
    for gap, used in steps:
        now += gap
        demand.note(now, used)
        all_notes.append((now, used))
        assert demand.estimate(now) == max(each for at, each in all_notes if at > now - 10)


def test_dark_bandwidth_is_smoothed():
    second = 10**9
    dark = DarkBandwidth(half_ns=10 * second)
    dark.note(0, 100, 60)
    assert dark.bps == 40
    dark.note(10 * second, 100, 100)
    assert dark.bps == pytest.approx(20)
    dark.note(20 * second, 50, 100)  # the known groups seem to use more than the link: nothing is dark
    assert dark.bps == pytest.approx(10)

"""`vnic shape set`: a change of one line or class leaves all others as they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.errors import ConfigError
from shaping.policy.change import change_class, change_line
from shaping.policy.difference import difference_texts, differences, flat_policy
from shaping.policy.load import convert_policy, parse_policy, policy_data
from shaping.policy.network import Network
from shaping.policy.places import plan_of

NETWORK = Network(dict.fromkeys(("web", "db", "cam"), ""), {"lan--dmz": ("lan", "dmz")})
KEYS = [
    "web -> db",
    "db -> web",
    "web <-> db",
    "db <-> web",
    "cam -> db",
    "web",
    "web -> any",
    "any -> db",
    "lan--dmz",
    "lan--dmz -> dmz",
]
VALUES: dict[str, list[str]] = {
    "rate": ["10mbit", "20mbit"],
    "delay": ["1ms", "2ms", "3ms"],
    "loss": ["1%", "2%", "3%"],
    "duplicate": ["1%", "2%"],
    "preset": ["wpt-3g", "wpt-dsl"],
}


def policy(**links: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "links": links}


def effects(data: Any) -> dict[str, dict[str, Any]]:
    lines = plan_of(convert_policy(data), NETWORK).lines
    return {str(place): {name: each.value for name, each in line.settings.items()} for place, line in lines.items()}


def test_an_entry_keeps_its_place():
    """It does not come to override the later entry for one of its directions."""
    before = policy_data(parse_policy("version: 1\nlinks: {web <-> db: {loss: 1%, delay: 5ms}, web -> db: {loss: 5%}}"))
    after = effects(change_line(before, "web <-> db", {"delay": "9ms"}, NETWORK))
    was = effects(before)
    assert after["web -> db"]["loss"] == was["web -> db"]["loss"] and after["web -> db"]["delay"].mean == 9_000_000
    assert after["db -> web"]["delay"].mean == 9_000_000


def test_what_is_set_takes_effect():
    before = policy_data(parse_policy("version: 1\nlinks: {web <-> db: {loss: 1%}, web -> db: {loss: 5%}}"))
    after = effects(change_line(before, "web <-> db", {"loss": "7%"}, NETWORK))
    assert {str(line["loss"].share) for line in after.values()} == {"7%"}


def test_an_entry_is_told_by_its_names():
    before = policy_data(parse_policy("version: 1\nlinks: {web -> db: {loss: 1%}}"))
    after = change_line(before, "web  ->   db", {"loss": "2%", "delay": None}, NETWORK)
    assert list(after["links"]) == ["web -> db"] and effects(after) == effects(policy(**{"web -> db": {"loss": "2%"}}))
    assert change_line(after, "web -> db", {"loss": None}, NETWORK)["links"] == {}


@pytest.mark.parametrize(
    ("line", "changed", "says"),
    [
        ("web -> nosuch", {"loss": None}, "'web -> nosuch': there is no NIC or link nosuch"),
        ("web -> db", {"bogus": None}, "web -> db.bogus: unknown key; expected one of match, preset"),
        ("web -> db", {"latency": None}, "write delay: (one way) or rtt: (both)"),
        ("db <-> web", {"loss": None}, "db <-> web: has no loss: web <-> db has one for the same packets"),
        ("web->db", {"loss": "1%"}, "'web->db': is not a place: write web -> db"),
        ("-" * 100_000, {"loss": "1%"}, "is longer than 196 characters"),
        ("a\x1b[31m -> db", {"loss": "1%"}, "is not a place"),
    ],
)
def test_what_is_wrong_is_one_line(line, changed, says):
    before = policy_data(parse_policy("version: 1\nlinks: {web <-> db: {loss: 1%}}"))
    with pytest.raises(ConfigError) as caught:
        change_line(before, line, changed, NETWORK)
    assert says in str(caught.value) and len(str(caught.value)) < 300 and str(caught.value).isprintable()


entries = st.dictionaries(
    st.sampled_from(KEYS),
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}).filter(bool),
    max_size=5,
)


@settings(max_examples=400, deadline=None)
@given(links=entries, key=st.sampled_from(KEYS), name=st.sampled_from(list(VALUES)), data=st.data())
def test_a_change_is_what_was_asked_for_and_nothing_else(links, key, name, data):
    before = policy_data(convert_policy(policy(**links)))
    value = data.draw(st.sampled_from(VALUES[name]))
    try:
        after = change_line(before, key, {name: value}, NETWORK)
    except ConfigError as error:
        assert "change the file, and apply it" in str(error)
        return
    was, found = effects(before), effects(after)
    alone = effects(policy(**{key: {name: value}}))
    given_by = {place: set(line) for place, line in alone.items()}
    for place, line in alone.items():
        for setting, wanted in line.items():
            # of a preset, what the entry has itself stays
            if name != "preset" or setting not in links.get(key, {}):
                assert found[place][setting] == wanted
    for place in {*was, *found}:
        for setting in {*was.get(place, {}), *found.get(place, {})}:
            if setting in given_by.get(place, ()) or (name == "preset" and place in alone):
                continue
            assert was.get(place, {}).get(setting) == found.get(place, {}).get(setting)


TREE = """\
version: 1
classes:
  web.egress: {rate: 10mbit, default: b, tree: {a: {match: {dscp: ef}, priority: 3}, b: {tree: {c: {weight: 2}}}}}
"""


def test_a_class_is_changed():
    before = policy_data(parse_policy(TREE.replace("default: b", "default: b/c")))
    after = change_class(before, "web.egress/b/c", {"weight": 5, "queue": "fq_codel"})
    assert after["classes"]["web.egress"]["tree"]["b"]["tree"]["c"] == {"weight": 5, "queue": "fq_codel"}
    assert before["classes"]["web.egress"]["tree"]["b"]["tree"]["c"] == {"weight": 2}
    assert change_class(before, "web.egress", {"rate": "5mbit"})["classes"]["web.egress"]["rate"] == "5mbit"


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("db.egress/a", {"weight": 2}, "there are no classes of 'db.egress'; did you mean 'web.egress'?"),
        ("web.egress/x", {"weight": 2}, "'web.egress/x': there is no class x; expected one of a, b"),
        ("web.egress/a/x", {"weight": 2}, "there is no class x; it has no classes"),
        ("web.egress/a", {"bogus": None}, "web.egress/a.bogus: unknown key; expected one of match"),
        ("web.egress", {"wait": None}, "web.egress.wait: unknown key; expected one of rate, default"),
    ],
)
def test_a_class_that_is_not_there(name, changed, says):
    with pytest.raises(ConfigError) as caught:
        change_class(policy_data(parse_policy(TREE.replace("default: b", "default: b/c"))), name, changed)
    assert says in str(caught.value)


def test_differences_are_in_the_words_of_a_file():
    before = policy_data(parse_policy(TREE.replace("default: b", "default: b/c")))
    after = change_class(before, "web.egress/a", {"priority": 0, "queue": {"discipline": "codel", "ecn": False}, "match": None})
    found = difference_texts(differences(flat_policy(before), flat_policy(after)))
    assert found == [
        "- classes.web.egress.tree.a.match: [{dscp: ef}] -> none",
        "~ classes.web.egress.tree.a.priority: 3 -> 0",
        "+ classes.web.egress.tree.a.queue.discipline: codel",
        "+ classes.web.egress.tree.a.queue.ecn: false",
    ]

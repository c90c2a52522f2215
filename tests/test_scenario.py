"""Scenarios of policies: what is refused, what the settings are at each moment, and steps in virtual time."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.capture.reader import CaptureReader
from dataplane.capture.writer import CaptureWriter
from dataplane.errors import ConfigError, VnicError
from shaping.class_settings import PRIORITY_DEFAULT
from shaping.policy.check import check_policy
from shaping.policy.compile import arguments_at, compile_policy
from shaping.policy.difference import difference_texts, differences, flat_policy
from shaping.policy.load import convert_policy, parse_policy, policy_data
from shaping.policy.network import Network
from shaping.policy.places import plan_of
from shaping.policy.scenario import CHANGES_MOST, scenario_of
from shaping.policy.schema import STEPS_MOST
from tests.test_shape import frame, net  # noqa: F401 - a fixture
from vnic.config.convert import convert_nic
from vnic.config.load import parse_config
from vnic.config.shape import set_policy
from vnic.replay.session import Replay
from vnic.runtime import scenario as running
from vnic.testing import VirtualNetwork

MS, S = 10**6, 10**9
NAMES = Network(
    {"web": "02:00:00:00:00:01", "db": "02:00:00:00:00:02", "cam": "02:00:00:00:00:03"}, {"lan--dmz": ("lan", "dmz")}
)
EXAMPLE = """
version: 1
links:
  web -> any: {rate: 100mbit}
scenario:
  - {at: 10s, set: {web -> db: {loss: 5%}}}
  - {at: 20s, link: web, down: 2s}
  - {at: 30s, ramp: {web -> any: {rate: 10mbit}}, over: 5s}
  - {at: 60s, repeat: yes}
"""


def scenario(text, network=NAMES):
    policy = parse_policy(text, "x.yaml")
    plan = plan_of(policy, network)
    found = scenario_of(policy, plan, network)
    assert [each for each in plan.findings if each.kind == "error"] == []
    return found


def steps(*lines, links="{}"):
    return f"version: 1\nlinks: {links}\nscenario:\n" + "".join(f"  - {line}\n" for line in lines)


def at(found, seconds):
    """The arguments of elements that changed, then."""
    return {
        f"{key.chain}.{key.element}.{key.name}": value for key, value in arguments_at(found, NAMES, round(seconds * S)).items()
    }


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("5", "3: scenario[0]: invalid value 5: expected a mapping"),
        ("{at: 5s}", "does nothing: expected one of set, ramp, classes, link, repeat, and at"),
        ("{set: {web: {loss: 1%}}}", "has no at: expected at: a time such as 10s"),
        ("{at: 5, link: web, down: 1s}", "time '5' has no unit: write 5s or 5ms"),
        ("{at: -5s, link: web, down: 1s}", "time '-5s': expected a number with a unit"),
        ("{at: 8d, link: web, down: 1s}", "scenario[0].at"),
        ("{at: 200h, link: web, down: 1s}", "time 720000s is out of range: expected 0ns to 604800s"),
        ("{at: 5s, stop: web}", "unknown key"),
        ("{at: 5s, set: {}}", "expected a mapping from a place"),
        ("{at: 5s, set: [web]}", "expected a mapping from a place"),
        ("{at: 5s, set: {web: {}}}", "without settings"),
        ("{at: 5s, set: {web: {queue: 5ms}}}", "queue: cannot change while packets flow: write it in links: web"),
        ("{at: 5s, set: {web: {overhead: docsis}}}", "overhead: cannot change while packets flow"),
        ("{at: 5s, set: {web: {trace: [{for: 1s, rate: 1mbit}]}}}", "trace: cannot change while packets flow"),
        ("{at: 5s, set: {web -> any: {loss: 1%}, web  ->  any: {delay: 1s}}}", "set.web -> any: is there twice"),
        ("{at: 5s, link: any, down: 1s}", "link: invalid name 'any': expected the name of a NIC or link"),
        ("{at: 5s, link: '', down: 1s}", "link: invalid name ''"),
        ("{at: 5s, link: web -> db, down: 1s}", "link: invalid name 'web -> db'"),
        ('{at: 5s, link: "w\\e[31m", down: 1s}', "link: invalid name 'w\\x1b[31m'"),
        ("{at: 5s, set: {web: {rate: 5mbps}}}", "write 5mbit or 40mbit"),
        ("{at: 5s, set: {any: {loss: 1%}}}", "names no NIC"),
        ("{at: 5s, set: {web.egress/gold: {rate: 1mbit}}}", "is a class, and steps change lines only"),
        ("{at: 5s, ramp: {web: {delay: 1s}}}", "ramp has no over: expected over: a time such as 5s"),
        ("{at: 5s, ramp: {web: {delay: 1s}}, over: 1ns}", "1ns: expected at least 1ms"),
        ("{at: 5s, link: web}", "link has no down"),
        ("{at: 5s, link: web, down: 1s, over: 2s}", "over: belongs to ramp, and this is link"),
        ("{at: 5s, repeat: yes, carrier: yes}", "scenario[0].carrier: belongs to link, and this is repeat"),
        ("{at: 5s, link: web, down: 1s, carrier: 5}", "scenario[0].carrier: invalid value 5: expected yes or no"),
        ("{at: 5s, link: 7, down: 1s}", "expected the name of a NIC or link"),
        (f"{{at: 5s, link: {'x' * 100}, down: 1s}}", "scenario[0].link"),
        ("{at: 5s, link: web, down: 1s, set: {web: {loss: 1%}}}", "has set and link"),
        ("{at: 5s, repeat: no}", "expected yes"),
        ("{at: 5s, repeat: 3}", "expected yes"),
        ("{at: 99ms, repeat: yes}", "expected at least 100ms"),
        ("{at: 5s, repeat: yes}\n  - {at: 6s, repeat: yes}", "4: scenario[1]: is behind repeat"),
        ("{at: 5s, link: web, down: 1s}\n  - {at: 4s, link: web, down: 1s}", "4: scenario[1].at: 4s is before the step at 5s"),
    ],
)
def test_a_step_that_is_wrong(line, says):
    with pytest.raises(ConfigError) as caught:
        parse_policy(f"version: 1\nscenario:\n  - {line}\n", "x.yaml")
    assert says in str(caught.value) and str(caught.value).startswith("x.yaml:") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{at: 5s, set: {wbe: {loss: 1%}}}", "there is no NIC or link wbe; did you mean 'web'"),
        ("{at: 5s, link: wbe, down: 1s}", "there is no NIC or link wbe; did you mean 'web'"),
        ("{at: 5s, link: lan, down: 1s}", "lan is a switch"),
        ("{at: 5s, link: lan--dmz, down: 1s, carrier: yes}", "lan--dmz joins switches, and only NICs have a carrier"),
        ("{at: 5s, ramp: {web -> any: {rate: 1mbit}}, over: 1s}", "cannot go from none to 1mbit in parts, since none is no number"),
        ("{at: 5s, ramp: {db -> any: {rate: none}}, over: 1s}", "cannot go from 1mbit to none in parts"),
        ("{at: 5s, ramp: {db -> any: {loss: {to_bad: 1%, to_good: 5%}}}, over: 1s}", "the models differ"),
        ("{at: 5s, set: {db -> any: {loss: 90%}}}\n  - {at: 6s, ramp: {db -> any: {loss: {share: 5%, burst: 4}}}, over: 1s}", "lose"),
        ("{at: 5s, set: {db -> any: {delay: 10s, rate: 10gbit}}}", "packets are under way at 10gbit"),
    ],
)  # fmt: skip
def test_a_step_that_cannot_be_made(line, says):
    text = f"version: 1\nlinks: {{db -> any: {{rate: 1mbit}}}}\nscenario:\n  - {line}\n"
    found = [each for each in check_policy(parse_policy(text, "x.yaml"), NAMES) if each.kind == "error"]
    assert len(found) == 1 and says in found[0].text and found[0].where.startswith("x.yaml:"), found
    if "under way" not in says:
        with pytest.raises(ConfigError, match="x.yaml:"):
            compile_policy(parse_policy(text, "x.yaml"), NAMES)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("links: {db -> any: {trace: [{for: 1s, rate: 1mbit}]}}", "the line has a trace, which is its rate"),
        ("shares: {up: {capacity: 10mbit, db: {weight: 1}}}", "the share of up sets it again and again"),
    ],
)
@pytest.mark.parametrize(
    "step", ["set: {db -> any: {rate: 2mbit}}", "ramp: {db: {rate: 2mbit}}, over: 1s", "set: {db: {preset: wpt-3g}}"]
)
def test_a_rate_that_something_else_sets(rest, says, step):
    policy = parse_policy(f"version: 1\n{rest}\nscenario:\n  - {{at: 1s, {step}}}\n", "x.yaml")
    found = [each for each in check_policy(policy, NAMES) if each.kind == "error"]
    assert says in found[0].text and found[0].where == "x.yaml:4"


def test_bounds():
    with pytest.raises(ConfigError, match=f"of {STEPS_MOST + 1} steps: expected a list of at most {STEPS_MOST} steps"):
        convert_policy({"version": 1, "scenario": [{"at": "1s", "link": "web", "down": "1s"}] * (STEPS_MOST + 1)})
    most = [{"at": f"{n}s", "link": "web", "down": "1s"} for n in range(STEPS_MOST)]
    assert compile_policy(convert_policy({"version": 1, "scenario": most}), NAMES)
    each = {"loss": "1%", "delay": "1ms", "duplicate": "1%", "corrupt": "1%", "reorder": "1%", "rate": "1mbit"}
    many = [{"at": "1s", "set": {"web": each}}] * (CHANGES_MOST // 12 + 1)
    with pytest.raises(ConfigError, match=f"more than {CHANGES_MOST} settings change"):
        compile_policy(convert_policy({"version": 1, "scenario": many}), NAMES)


def test_a_scenario_survives_being_written_out():
    policy = parse_policy(EXAMPLE, "x.yaml")
    data = policy_data(policy)
    assert policy_data(convert_policy(data)) == data and len(data["scenario"]) == 4


def test_differences_of_two_scenarios():
    before, after = (flat_policy(policy_data(parse_policy(text, "x"))) for text in (
        EXAMPLE, EXAMPLE.replace("5%", "6%").replace("  - {at: 60s, repeat: yes}\n", "").replace("100mbit", "90mbit")))  # fmt: skip
    assert difference_texts(differences(before, after)) == [
        "~ web -> any.rate: 100mbit -> 90mbit",
        "- scenario {at: 10s, set: {web -> db: {loss: {share: 5%}}}}",
        "- scenario {at: 60s, repeat: yes}",
        "+ scenario {at: 10s, set: {web -> db: {loss: {share: 6%}}}}",
    ]
    once = flat_policy({"scenario": [{"at": "1s", "link": "a", "down": "1s"}]})
    thrice = flat_policy({"scenario": [{"at": "1s", "link": "a", "down": "1s"}] * 3})
    assert difference_texts(differences(once, thrice)) == ["+ scenario {at: 1s, link: a, down: 1s} (2 times)"]
    assert difference_texts(differences(once, once)) == []


def test_check_tells_what_each_step_means():
    found = [str(each) for each in check_policy(parse_policy(EXAMPLE, "x.yaml"), NAMES) if "step" in each.text]
    assert found == [
        "x.yaml:6: note: step 1 (at 10s): web -> db: loss 5% (before: web -> db loss 0%)",
        "x.yaml:7: note: step 2 (at 20s): web: nothing passes for 2s",
        "x.yaml:8: note: step 3 (at 30s): web -> any: rate 10mbit over 5s (before: web -> any rate 100mbit)",
        "x.yaml:9: note: step 4 (at 60s): again from the start",
    ]
    cut = steps("{at: 9s, link: web, down: 2s}", "{at: 10s, repeat: yes}")
    (warning,) = [each for each in check_policy(parse_policy(cut, "x.yaml"), NAMES) if each.kind == "warning"]
    assert "goes on when the scenario begins again at 10s, and is cut off" in warning.text


# -- what the settings are at each moment ----------------------------------------------------------


def test_the_example():
    found = scenario(EXAMPLE)
    line, egress, ingress, pair = (
        f"{name}" for name in ("web.egress.shape-line.rate", "web.egress.shape.loss", "web.ingress.shape.loss",
                               "db.ingress.shape-from-web.loss"))  # fmt: skip
    start = {line: "100mbit", egress: "0%", ingress: "0%", pair: "0%"}
    assert at(found, 0) == at(found, 9.999999999) == at(found, 60) == at(found, 129.999999999) == start
    assert at(found, 10) == at(found, 19) == at(found, 22) == at(found, 30) == at(found, 70) == {**start, pair: "5%"}
    assert at(found, 20) == at(found, 21.999999999) == {**start, pair: "5%", egress: "100%", ingress: "100%"}
    assert [at(found, 30 + n / 10)[line] for n in (1, 25, 49, 50)] == ["98.2mbit", "55mbit", "11.8mbit", "10mbit"]
    assert at(found, 30.199999999)[line] == "98.2mbit" and at(found, 59)[line] == "10mbit"
    position = found.position(30 * S + 250 * MS)
    assert (position.step.number, position.rounds, position.next_ns) == (3, 0, 50 * MS)
    assert found.position(185 * S).rounds == 3


def test_all_numbers_of_a_ramp():
    found = scenario(steps(
        "{at: 0s, ramp: {web <-> db: {rtt: 100ms}, db -> cam: {loss: {share: 10%, burst: 4}}}, over: 1s}",
        "{at: 2s, ramp: {db -> cam: {delay: {mean: 30ms, jitter: 10ms, shape: normal}, reorder: {share: 1%, by: 5}}}, over: 250ms}",
        links="{db -> cam: {delay: {mean: 10ms, jitter: 2ms}, reorder: {share: 0.5%, by: 1}}}",
    ))  # fmt: skip
    assert at(found, 0.5)["db.ingress.shape-from-web.delay"] == "25ms"
    cam = "cam.ingress.shape-from-db"
    assert at(found, 0.3)[f"{cam}.loss"] == {"share": "3%", "burst": 4} and at(found, 0)[f"{cam}.loss"] == "0%"
    assert at(found, 2.1)[f"{cam}.delay"] == {
        "mean": "18ms", "jitter": "5.2ms", "shape": "normal", "correlation": "0%", "order": "keep"}  # fmt: skip
    assert at(found, 2.2)[f"{cam}.reorder"] == {"share": "0.9%", "by": 4, "within": "100ms"}
    assert at(found, 2.25)[f"{cam}.reorder"] == {"share": "1%", "by": 5, "within": "100ms"}


def test_what_a_link_that_is_down_does_to_its_loss():
    found = scenario(steps(
        "{at: 1s, link: web, down: 4s}", "{at: 2s, set: {web -> any: {loss: 2%}}}", "{at: 4s, link: web, down: 3s}",
        links="{web -> any: {loss: 1%}}",
    ))  # fmt: skip
    assert [at(found, n)["web.egress.shape.loss"] for n in range(8)] == ["1%", *["100%"] * 6, "2%"]
    assert [at(found, n)["web.ingress.shape.loss"] for n in (0, 1, 6, 7)] == ["0%", "100%", "100%", "0%"]
    link = scenario(steps("{at: 1s, link: lan--dmz, down: 1s}"))
    assert at(link, 1) == {"lan--dmz.dmz.shape.loss": "100%", "lan--dmz.lan.shape.loss": "100%"}


def test_the_elements_are_the_same_at_all_times():
    """What a step gives is there from the beginning, as nothing; a queue stays what it is."""
    text = steps("{at: 5s, set: {web -> any: {rate: 1mbit, delay: {mean: 5ms, jitter: 1ms}, loss: 1%}}}",
                 links="{web -> any: {delay: 3ms}}")  # fmt: skip
    ((_, (line, shape)),) = compile_policy(parse_policy(text, "x"), NAMES).items()
    assert line == {"element": "Link", "name": "shape-line", "rate": "none", "queue": {"packets": 10}}
    assert shape == {"element": "Impairment", "name": "shape", "loss": "0%", "delay": "3ms"}
    assert at(scenario(text), 5)["web.egress.shape.delay"]["mean"] == "5ms"
    queued = text.replace("delay: 3ms", "delay: 3ms, queue: 64kb")
    ((_, (line, _)),) = compile_policy(parse_policy(queued, "x"), NAMES).items()
    assert line["queue"] == "64kb"


TIMES = st.integers(0, 30).map(lambda tenths: tenths * 100)
SETTINGS = ("delay", "loss", "rate")


@st.composite
def scripts(draw):
    """Random steps of web's two directions: (at in ms, kind, setting, value, over in ms)."""
    found = []
    for at_ms in sorted(draw(st.lists(TIMES, min_size=1, max_size=8))):
        kind = draw(st.sampled_from(("set", "ramp", "down")))
        name, value = draw(st.sampled_from(SETTINGS)), draw(st.integers(1, 90))
        found.append((at_ms, kind, name, value, draw(st.integers(1, 1500))))
    repeat_ms = draw(st.none() | st.integers(100, 4000))
    return found, repeat_ms if repeat_ms is None or repeat_ms >= found[-1][0] else None


UNITS = {"delay": "ms", "loss": "%", "rate": "mbit"}
SCALES = {"delay": MS, "loss": Fraction(1, 100), "rate": 10**6}


def reference(script, repeat_ms, now_ms):
    """The settings then, by going through the steps one after the other, in ms."""
    now_ms = now_ms % repeat_ms if repeat_ms is not None else now_ms
    value = {"delay": 5 * MS, "loss": Fraction(1, 100), "rate": 50 * 10**6}
    ramps = {}
    down_until = -1

    def current(name, when):
        if name not in ramps:
            return value[name]
        begin, over, first, last = ramps[name]
        passed = min((when - begin) // 100 * 100, over) if when < begin + over else over
        exact = first + Fraction(last - first) * passed / over
        return exact if name == "loss" else int(exact + Fraction(1, 2))

    for at_ms, kind, name, number, over in script:
        if at_ms > now_ms:
            break
        if kind == "down":
            if now_ms < at_ms + over:
                down_until = at_ms + over
            continue
        wanted = number * SCALES[name]
        if kind == "set":
            ramps.pop(name, None)
            value[name] = wanted
        else:
            ramps[name] = (at_ms, over, current(name, at_ms), wanted)
    found = {name: current(name, now_ms) for name in SETTINGS}
    if now_ms < down_until:
        found["loss"] = 1
    return found


@settings(max_examples=150, deadline=None)
@given(scripts(), st.lists(st.integers(0, 9000), min_size=1, max_size=20))
def test_values_against_a_reference(made, moments):
    script, repeat_ms = made
    lines = []
    for at_ms, kind, name, value, over in script:
        target = f"{{web -> any: {{{name}: {value}{UNITS[name]}}}}}"
        what = {"set": f"set: {target}", "ramp": f"ramp: {target}, over: {over}ms", "down": f"link: web, down: {over}ms"}[kind]
        lines.append(f"{{at: {at_ms}ms, {what}}}")
    if repeat_ms is not None:
        lines.append(f"{{at: {repeat_ms}ms, repeat: yes}}")
    found = scenario(steps(*lines, links="{web -> any: {rate: 50mbit, delay: 5ms, loss: 1%}}"))
    for now_ms in moments:
        values = {name: value for (place, name), value in found.values_at(now_ms * MS).items() if place.source == "web"}
        wanted = reference(script, repeat_ms, now_ms)
        got = {"delay": "mean", "loss": "share"}
        for name, value in values.items():
            number = getattr(value, got[name]) if name in got else value
            assert number == pytest.approx(wanted[name], abs=1e-12) if name == "loss" else number == wanted[name], (
                name,
                now_ms,
            )
        # what changes between two moments is told
        for earlier_ms in moments:
            if earlier_ms <= now_ms:
                told = found.places_changing(earlier_ms * MS, now_ms * MS)
                past = found.values_at(earlier_ms * MS)
                assert {key[0] for key, value in found.values_at(now_ms * MS).items() if past[key] != value} <= {*told}
        # nothing changes before the next instant
        next_ns = found.position(now_ms * MS).next_ns
        for later_ns in (now_ms * MS + 7,) if next_ns is None else (now_ms * MS + next_ns - 1, now_ms * MS + next_ns // 2):
            assert found.values_at(later_ns) == found.values_at(now_ms * MS)


# -- in virtual time -------------------------------------------------------------------------------


def test_a_step_is_made_at_its_nanosecond(net):  # noqa: F811
    net.shape(steps("{at: 1s, set: {web -> db: {delay: 5ms}}}", "{at: 2s, link: web, down: 1s}", "{at: 4s, repeat: yes}"))
    begin = net.now_ns
    offsets = [0, S - 1, S, 2 * S - 1, 2 * S, 3 * S - 1, 3 * S, 4 * S - 1, 4 * S, 5 * S - 1, 5 * S, 6 * S]
    for offset in offsets:
        net.send("web", [frame(1, 2)], at=begin + offset)
    net.run()
    late = {0: 0, S - 1: 0, S: 5 * MS, 2 * S - 1: 5 * MS, 3 * S: 5 * MS, 4 * S - 1: 5 * MS, 4 * S: 4 * MS + MS - 1,
            5 * S - 1: 0, 5 * S: 5 * MS}  # fmt: skip
    # the one of 4 s waits for the one before it, which is still on its way
    assert [each.time_ns - begin for each in net.take("db")] == [offset + late[offset] for offset in late]
    assert net.drops() == {"web.egress.shape: loss": 3}
    assert net.now_ns < begin + 7 * S  # steps do not prolong a run


def test_a_carrier_goes_while_its_nic_is_down(net):  # noqa: F811
    """From the step on for its time, each round; a policy that goes, or an own setting of the link, has its way."""
    flap = steps("{at: 1s, link: web, down: 1s, carrier: yes}", "{at: 2s, link: db, down: 1s}", "{at: 4s, repeat: yes}")
    set_to = []
    nics = net._runtime.nics.attached
    nics["web"].nic.set_carrier = set_to.append
    nics["db"].nic.set_carrier = lambda up: pytest.fail("no step names its carrier")

    def link(name="web"):
        return next(each["link"] for each in net._runtime.status()["nics"] if each["name"] == name)

    net.shape(flap)
    begin = net.now_ns
    for offset, up in ((S - 1, True), (S, False), (2 * S - 1, False), (2 * S, True), (4 * S, True), (5 * S, False)):
        net._run_until(begin + offset)
        assert (link() == "up") is up and link("db") == "up", offset
    assert set_to == [True, False, True, False]  # the first one: a worker before could have cut it
    net._runtime.nics.set_link("web", True)
    assert link() == "down" and set_to[-1] is False
    net.shape(None)
    assert link() == "up" and set_to[-1] is True
    net.shape(flap)
    net._runtime.nics.set_link("web", False)
    net._run_until(net.now_ns + 3 * S // 2)
    assert link() == "down" and set_to[-1] is False


def test_a_rate_comes_and_goes(net):  # noqa: F811
    """Packets that wait for a rate that goes leave at once."""
    net.shape(steps("{at: 1s, set: {web -> any: {rate: 1mbit}}}", "{at: 2s, set: {web -> any: {rate: none}}}",
                    links="{web -> any: {delay: 3ms}}"))  # fmt: skip
    begin = net.now_ns
    for at_ns in (0, S, 2 * S - 5 * MS):
        net.send("web", [frame(1, 2, 1250)] * 3, at=begin + at_ns)  # 10 ms each at 1 Mbit/s
    net.run()
    assert [each.time_ns - begin for each in net.take("db")] == [
        *[3 * MS] * 3, *[S + n * 10 * MS + 3 * MS for n in (1, 2, 3)], *[2 * S + 3 * MS] * 3]  # fmt: skip
    assert net.drops() == {}


def test_a_ramp_in_virtual_time(net):  # noqa: F811
    """Rates of 1, 2, 3, 4 and 5 Mbit/s, 100 ms each: bits leave at exactly these."""
    net.shape(steps("{at: 100ms, ramp: {web -> any: {rate: 5mbit}}, over: 400ms}",
                    links="{web -> any: {rate: 1mbit, queue: {packets: 1000}}}"))  # fmt: skip
    begin = net.now_ns
    net.send("web", [frame(1, 2, 1250)] * 150)  # 10,000 bits each
    net.run()
    times = [each.time_ns - begin for each in net.take("db")]
    # 100 ms at 1 Mbit/s from the start and 100 ms more until the first part; 10, 20, 30, 40 and 50 packets
    rates = [(200, 1), (300, 2), (400, 3), (500, 4), (10**9, 5)]
    wanted, now = [], Fraction(0)
    for _ in range(150):
        left = Fraction(10_000)
        while left:
            end_ms, mbit = next(each for each in rates if now < each[0] * MS)
            took = min(left * 1000 / mbit, end_ms * MS - now)
            now, left = now + took, left - took * mbit / 1000
        wanted.append(-(-now.numerator // now.denominator))
    assert times == wanted and net.drops() == {}


def test_a_step_loses_reorders_and_resets_nothing_else(net):  # noqa: F811
    """The losses of a line are the same with and without steps that change something else."""

    def lost(extra):
        net.shape(None)
        policy = steps(
            "{at: 100ms, set: {web -> any: {delay: 20ms}}}",
            "{at: 300ms, set: {web -> any: {rate: 50mbit}}}",
            "{at: 500ms, set: {web -> any: {delay: 1ms}}}",
            links="{web -> any: {loss: {share: 10%, burst: 3}}}",
        )
        net.shape((policy if extra else "version: 1\nlinks: {web -> any: {loss: {share: 10%, burst: 3}}}\n") + "seed: 4\n")
        net.send("web", [frame(1, 2) + n.to_bytes(4, "big") for n in range(1000)], gap="1ms")
        net.run()
        return [int.from_bytes(each.data[-4:], "big") for each in net.take("db")]

    plain = lost(False)
    assert 800 < len(plain) < 960
    assert lost(True) == plain  # the same packets, in order
    assert not set(net.drops()) - {"web.egress.shape: loss"}


def test_a_scenario_begins_when_its_policy_is_applied(net):  # noqa: F811
    def delay():
        return net._runtime.read_handler("web.egress.shape", "delay")[0]["value"]

    policy = steps("{at: 1s, set: {web -> any: {delay: 5ms}}}", links="{web -> any: {loss: 1%, delay: 1ms}}")
    net.advance("3s")
    net.shape(policy)
    net.advance("999999999ns")
    assert delay() == "1ms"
    net.advance("1ns")
    assert delay() == "5ms"
    net.shape(policy)  # the same again begins anew
    assert delay() == "1ms"
    net.advance("1s")
    assert delay() == "5ms"
    net.shape(policy.replace("loss: 1%", "loss: 2%"))
    assert delay() == "1ms"
    net.advance("1s")
    net.shape("version: 1\nlinks: {web -> any: {delay: 1ms}}")  # what the scenario has changed goes with it
    assert delay() == "1ms"
    net.advance("10s")
    assert delay() == "1ms"


def test_other_changes_leave_a_scenario_where_it_is(net):  # noqa: F811
    policy = steps("{at: 1s, set: {web -> db: {delay: 5ms}}}", "{at: 3s, set: {web -> db: {delay: 7ms}}}")
    net.shape(policy)
    net.advance("2s")
    life, name = net._runtime.policy, "db.ingress.shape-pairs.shape-from-web"

    def delay():
        return net._runtime.read_handler(name, "delay")[0]["value"]

    assert delay() == "5ms" and life.term.generation == 1
    running = net._runtime.config.shape
    # a whole network with the same policy, and elements that are made anew
    text = ("nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02', ingress: {elements: [Counter]}}, "
            "cam: {mac: '02:00:00:00:00:03'}}")  # fmt: skip
    config = parse_config(text, contained=False)
    set_policy(config, running)
    net._runtime.apply(config)
    assert delay() == "5ms" and life.term.generation == 1
    net._runtime.nics.detach("db")
    net._runtime.nics.attach(convert_nic("db", {"mac": "02:00:00:00:00:02"}, (), contained=False))
    assert delay() == "5ms"
    status = life.status()["scenario"]
    assert (status["elapsed_ns"], status["step"], status["next_in_ms"]) == (2 * S, 1, 1000)


def test_a_change_that_fails_leaves_a_scenario_where_it_is(net, monkeypatch):  # noqa: F811
    policy = steps("{at: 1s, set: {web -> any: {delay: 5ms}}}", links="{web -> any: {delay: 1ms}}")
    net.shape(policy)
    net.advance("1s")

    def refuses(undo=None):
        raise VnicError("cannot be stored")

    monkeypatch.setattr(net._runtime, "remember", refuses)
    with pytest.raises(VnicError, match="cannot be stored"):
        net.shape(policy.replace("5ms", "9ms").replace("1ms", "2ms"))
    monkeypatch.undo()
    assert net._runtime.read_handler("web.egress.shape", "delay")[0]["value"] == "5ms"
    assert net._runtime.policy.status()["scenario"]["step"] == 1
    net.advance("5s")
    assert net._runtime.read_handler("web.egress.shape", "delay")[0]["value"] == "5ms"


def test_a_step_that_fails_is_tried_again(net, monkeypatch):  # noqa: F811
    net.shape(steps("{at: 1s, set: {web -> any: {delay: 5ms, loss: 100%}}}"))
    write, refused = running.write_handler, []

    def once(elements, name, value, **options):
        if name == "delay" and not refused:
            refused.append(value)
            raise VnicError("the engine is busy")
        return write(elements, name, value, **options)

    monkeypatch.setattr(running, "write_handler", once)
    net.advance("1s")
    read = net._runtime.read_handler
    assert refused == ["5ms"] and read("web.egress.shape", "loss")[0]["value"] == "100%"
    assert read("web.egress.shape", "delay")[0]["value"] == "0ns"
    net.advance("1s")
    assert read("web.egress.shape", "delay")[0]["value"] == "5ms"


def test_a_step_costs_what_it_changes():
    """Not what the scenario has: of 4000 lines, the one that changes is looked at."""
    every = {f"n{n} -> any": {"delay": "1ms"} for n in range(4000)}
    policy = {"version": 1, "scenario": [
        {"at": "1s", "set": every}, {"at": "2s", "ramp": {"n7 -> any": {"delay": "9ms"}}, "over": "1s"}]}  # fmt: skip
    network = Network({f"n{n}": "" for n in range(4000)})
    found = scenario_of(convert_policy(policy), plan := plan_of(convert_policy(policy), network), network)
    assert plan.findings == [] and len(found.values_at(S)) == 4000
    assert len({*found.places_changing(0, S)}) == 4000
    (place,) = found.places_changing(2 * S, 2 * S + 100 * MS)
    assert place.source == "n7" and len(found.values_at(2 * S + 100 * MS, [place])) == 1
    assert [*found.places_changing(S, 2 * S - 1)] == [*found.places_changing(3 * S, 9 * S)] == []


CLASSES = """version: 1
classes:
  web.egress:
    rate: 8mbit
    default: rest
    tree:
      gold: {match: {destination_port: 9}, guarantee: 1mbit, ceiling: 4mbit, weight: 3}
      rest: {tree: {a: {match: {dscp: ef}}, b: {}}}
scenario:
"""


def test_classes_change_with_time():
    text = CLASSES.replace("default: rest", "default: rest/b")
    found = scenario(text + "  - {at: 1s, classes: {web.egress/gold: {guarantee: 2mbit, weight: 5}, web.egress/rest/a: {priority: 0}}}\n"
                     "  - {at: 2s, classes: {web.egress: {rate: 4mbit}}, over: 1s}\n  - {at: 9s, repeat: yes}\n")  # fmt: skip
    [name] = at(found, 0)
    assert name == "web.egress.shape-classes.classes"

    def tree(seconds):
        whole = at(found, seconds)[name]
        gold, inner = whole["tree"]["gold"], whole["tree"]["rest"]["tree"]["a"]
        return whole["rate"], gold["guarantee"], gold["ceiling"], gold["weight"], inner.get("priority")

    assert tree(0) == tree(0.999) == ("8mbit", "1mbit", "4mbit", 3, None)
    assert tree(1) == tree(2) == ("8mbit", "2mbit", "4mbit", 5, 0)
    assert [tree(2 + n / 10)[0] for n in (1, 2, 5, 9, 10)] == ["7.6mbit", "7.2mbit", "6mbit", "4.4mbit", "4mbit"]
    assert tree(8.9)[0] == "4mbit" and tree(9) == tree(0)
    assert {*found.places_changing(0, S)} == {"web.egress"} and not {*found.places_changing(3 * S, 8 * S)}
    assert found.position(2 * S + 1).next_ns == 100 * MS - 1
    before = found.before
    assert before[1] == [
        "web.egress/gold guarantee 1mbit",
        "web.egress/gold weight 3",
        f"web.egress/rest/a priority {PRIORITY_DEFAULT}",
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{at: 1s, classes: {web.egress/gold: {queue: fifo}}}", "classes.web.egress/gold.queue: unknown key"),
        (
            "{at: 1s, classes: {web.egress/gold: {rate: 1mbit}}}",
            "rate: is of all classes of a place: expected ceiling or guarantee",
        ),
        (
            "{at: 1s, classes: {web.egress: {weight: 2}}}",
            "weight: is of one class: expected a key such as web.egress/gold, or rate",
        ),
        ("{at: 1s, classes: {web.egress/gold: {}}}", "expected numbers such as {guarantee: 5mbit}"),
        ("{at: 1s, classes: {}}", "expected a mapping from a class"),
        ("{at: 1s, classes: {web.egress/gold: {weight: 0}}}", "weight"),
        ("{at: 1s, classes: {web.egress/gold: {guarantee: 5}}}", "has no unit"),
        ("{at: 1s, classes: {web.egress/gold: {weight: 2}}, over: 1ns}", "1ns: expected at least 1ms"),
        ("{at: 1s, classes: {web.egress/gold: {weight: 2}}, down: 1s}", "down: belongs to link, and this is classes"),
        ("{at: 1s, classes: {web.egress/gold: {weight: 2}}, set: {web: {loss: 1%}}}", "has set and classes"),
    ],
)
def test_a_step_of_classes_that_is_wrong(line, says):
    with pytest.raises(ConfigError) as caught:
        parse_policy(CLASSES.replace("default: rest", "default: rest/b") + f"  - {line}\n", "x.yaml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{at: 1s, classes: {db.egress/gold: {weight: 2}}}", "step 1 (at 1s): db.egress/gold: there is no db.egress in classes; did"),
        ("{at: 1s, classes: {web.egress/golf: {weight: 2}}}", "web.egress/golf: there is no such class"),
        ("{at: 1s, classes: {web.egress/rest: {guarantee: 2mbit}}, over: 1s}", "guarantee: is no number to begin with: use a step"),
        ("{at: 1s, classes: {web.egress/gold: {priority: 1}}, over: 1s}", "priority: does not change in parts"),
        ("{at: 1s, classes: {web.egress/gold: {guarantee: 9mbit}}}", "scenario: web.egress, 1s after the beginning: "),
        ("{at: 1s, classes: {web.egress: {rate: 500kbit}}, over: 2s}", "scenario: web.egress, 3s after the beginning: "),
    ],
)  # fmt: skip
def test_classes_that_do_not_fit(line, says):
    policy = parse_policy(CLASSES.replace("default: rest", "default: rest/b") + f"  - {line}\n", "x.yaml")
    errors = [str(each) for each in check_policy(policy, NAMES) if each.kind == "error"]
    assert len(errors) == 1 and says in errors[0], errors


def test_steps_of_many_classes_are_bounded():
    """Each step looks at a whole tree: a small file must not keep control busy."""
    tree = ", ".join(f"c{n}: {{}}" for n in range(1000))
    head = f"version: 1\nclasses:\n  web.egress: {{rate: 8mbit, default: c0, tree: {{{tree}}}}}\nscenario:\n"

    def errors(count: int, numbers: str) -> list[str]:
        lines = "".join(f"  - {{at: {n + 1}s, classes: {{{numbers}}}}}\n" for n in range(count))
        policy = parse_policy(head + lines, "x.yaml")
        found = [each.text for each in check_policy(policy, NAMES) if each.kind == "error"]
        if found:
            with pytest.raises(ConfigError, match="more than"):
                compile_policy(policy, NAMES)
        return found

    assert errors(100, "web.egress/c1: {weight: 2}") == []
    [error] = errors(250, "web.egress/c1: {weight: 2}")
    assert error.startswith("scenario: web.egress: its classes, at all instants of the steps, are more than 200000")
    [error] = errors(11, ", ".join(f"web.egress/c{n}: {{weight: 2}}" for n in range(1000)))
    assert error.endswith(f"more than {CHANGES_MOST} settings change: write fewer steps or places")


def test_a_class_gets_its_numbers_while_packets_flow():
    """A ceiling falls to a half for one second; nothing that waits is lost or overtaken."""
    with VirtualNetwork(
        "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}, cam: {mac: '02:00:00:00:00:03'}}"
    ) as own:
        own.send("db", frame(2, 1))
        own.run()
        own.take("web")
        own.shape("version: 1\nclasses:\n  web.egress:\n    rate: 8mbit\n    default: all\n"
                  "    tree: {all: {ceiling: 4mbit, queue: {packets: 5000}}}\n"
                  "scenario:\n  - {at: 1s, classes: {web.egress/all: {ceiling: 2mbit}}}\n"
                  "  - {at: 2s, classes: {web.egress/all: {ceiling: 4mbit}}}\n")  # fmt: skip
        begin = own.now_ns
        packets = [frame(1, 2, 1000)[:-4] + n.to_bytes(4, "big") for n in range(1500)]
        own.send("web", packets)
        own.run()
        got = own.take("db")
        assert [each.data for each in got] == packets and own.drops() == {}
        counts = [0] * 4
        for each in got:
            counts[min((each.time_ns - begin) // S, 3)] += 1
        assert counts[:3] == pytest.approx([500, 250, 500], abs=2)
        assert own._runtime.read_handler("web.egress.shape-classes", "tree")[0]["value"]["tree"]["all"]["ceiling"] == "4mbit"
        own.shape(None)


def test_a_value_that_an_element_refuses_is_refused_at_once(net):  # noqa: F811
    net.shape("version: 1\nlinks: {web: {delay: 1ms}}")
    with pytest.raises(ConfigError, match="reorder"):
        net.shape(steps("{at: 1s, set: {web: {reorder: {share: 1%, by: 1000}}}}"))
    assert net._runtime.policy.term.generation == 1
    assert net._runtime.read_handler("web.egress.shape", "delay")[0]["value"] == "1ms"


@pytest.mark.parametrize("engines", [1, 4])
def test_steps_are_part_of_a_replay(tmp_path, engines):
    """Golden: times from the first packet on, the same with any number of engines."""
    writer = CaptureWriter(str(tmp_path / "in.pcapng"), ["a"])
    first = 1_700_000_000 * S
    for n in range(400):
        writer.write(0, first + n * 10 * MS, frame(1, 2) + n.to_bytes(4, "big"))
    writer.close()
    text = (
        f"engines: {engines}\n"
        "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}, cam: {mac: '02:00:00:00:00:03'}}\n"
        "shape:\n  seed: 1\n  links: {web -> db: {loss: 10%}}\n  scenario:\n"
        "    - {at: 1s, set: {web -> db: {delay: 3ms}}}\n"
        "    - {at: 1500ms, link: web, down: 500ms}\n"
        "    - {at: 3s, ramp: {web -> db: {delay: 13ms}}, over: 1s}\n"
    )
    config = parse_config(text, contained=False)
    with Replay(config, {"web": str(tmp_path / "in.pcapng")}, str(tmp_path / "out.pcapng")) as replay:
        replay.run()
        assert replay.results()["conserved"]
    reader = CaptureReader(str(tmp_path / "out.pcapng"))
    got = [(int.from_bytes(data[-4:], "big"), when - first) for when, data, _, interface in reader if interface == 1]
    reader.close()
    assert got == golden()


def golden():
    """What arrives: the losses of the line's own random numbers, and the steps' delays."""
    with VirtualNetwork(
        "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}, cam: {mac: '02:00:00:00:00:03'}}"
    ) as plain:
        plain.shape("version: 1\nseed: 1\nlinks: {web -> db: {loss: 10%}}")
        # the flap loses 50 packets before they come to the line between web and db
        numbers = [n for n in range(400) if not 150 <= n < 200]
        plain.send("web", [frame(1, 2) + n.to_bytes(4, "big") for n in numbers], gap="1ms")
        plain.run()
        arrived = [int.from_bytes(each.data[-4:], "big") for each in plain.take("db")]

    def delay_ms(n):
        if n < 100:
            return 0
        return 3 if n < 300 else 3 + (n - 300) // 10

    return [(n, (n * 10 + delay_ms(n)) * MS) for n in arrived]


NAMED = """\
nics:
  web: {netns: a, egress: {elements: [{element: Impairment, name: shape, loss: 10%}]}}
  db: {netns: b}
shape:
  version: 1
  links: {web: {loss: 1%}}
  scenario: [{at: 1s, set: {web: {loss: 50%}}}]
"""


def test_an_element_of_the_users_that_has_the_name_of_one_of_a_policy():
    with VirtualNetwork(parse_config(NAMED, "named.yaml")) as made:
        elements = made._runtime.nics.attached["web"].egress.chain.elements
        mine, policy = (each for each in elements if each.name.startswith("web.egress.shape"))
        assert (mine.get_loss(), policy.get_loss()) == ("10%", "1%")
        made.advance("2s")
        assert (mine.get_loss(), policy.get_loss()) == ("10%", "50%")

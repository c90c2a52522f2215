"""Traces in policies and configurations: files are read once and their contents stay, in virtual time and
on a running instance."""

from __future__ import annotations

import json
import os

import msgspec
import numpy as np
import pytest

from dataplane.config.load import dump_yaml
from dataplane.errors import ConfigError
from shaping.policy.check import check_policy
from shaping.policy.compile import compile_policy
from shaping.policy.load import convert_policy, load_policy, parse_policy, policy_data
from shaping.policy.network import Network
from shaping.policy.places import Place, plan_of
from shaping.policy.traces import TRACES_MOST
from shaping.trace import OpportunityTrace, RateTrace
from shaping.trace_files import mahimahi_text
from tests.test_command import environment, vnic  # noqa: F401 - a fixture
from tests.test_shape_live import Shaped, shaped  # noqa: F401 - a fixture
from tests.test_supervisor import kill_worker
from vnic.api.client import Client
from vnic.config.convert import convert_config, decode_config, encode_config
from vnic.config.load import load_config, parse_config
from vnic.config.written import written_config
from vnic.testing import VirtualNetwork

MS = 10**6
NETWORK = Network({"web": "02:00:00:00:00:01", "db": "02:00:00:00:00:02"}, {})
NICS = "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}}"
LTE = OpportunityTrace([3, 4, 4, 9, 500])
STEPS = "[{for: 28s, rate: 20mbit}, {for: 2s, rate: 0bit}]"


@pytest.fixture
def lte(tmp_path, monkeypatch):
    """A file in a directory that is not the present one, and a path to it from the present one."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "policies" / "lte.up").write_bytes(mahimahi_text(LTE))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "policies"


def policy_in(directory, *links):
    path = directory / "p.yaml"
    path.write_text("\n".join(("version: 1", "links:", *(f"  {each}" for each in links))))
    return path


def findings(*links):
    return [
        str(each)
        for each in check_policy(parse_policy("version: 1\nlinks:\n" + "".join(f"  {each}\n" for each in links), "p"), NETWORK)
    ]


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["lte.up", "{file: lte.up, loop: no}", "{file: ./lte.up, loop: false}"])
def test_a_path_begins_at_the_directory_of_the_policy(lte, value):
    path = policy_in(lte, f"web -> any: {{trace: {value}, delay: 20ms}}", "db -> web: {trace: lte.up}")
    policy = load_policy(path)
    assert list(policy.traces) == [LTE.digest] == list(policy.config.traces)
    found = compile_policy(policy, NETWORK)
    entry = next(entries[0] for chain, entries in found.items() if str(chain) == "web.egress")
    assert entry["element"] == "TraceLink" and entry["trace"]["digest"] == LTE.digest
    assert entry["trace"]["data"] == LTE.packed and entry["trace"]["loop"] is ("loop" not in value)
    assert (entry["name"], entry["delay"], entry["queue"], entry["overhead"]) == (
        "shape-line",
        "20ms",
        {"packets": 1000},
        {"bytes": -10},
    )
    # a relative path of a policy that is beside the present directory
    assert load_policy(os.path.relpath(path)).traces.keys() == policy.traces.keys()


def test_as_sent_it_has_the_content_once_and_needs_no_file(lte):
    policy = load_policy(policy_in(lte, "web: {trace: lte.up}", "db: {trace: {file: lte.up, loop: no}}"))
    data = json.loads(json.dumps(policy_data(policy)))
    assert data["traces"] == {LTE.digest: LTE.packed} and data["links"]["web"]["trace"] == {
        "file": "lte.up",
        "digest": LTE.digest,
    }
    (lte / "lte.up").unlink()
    again = convert_policy(data)
    assert policy_data(again) == data and again.traces[LTE.digest].times_ms.tolist() == LTE.times_ms.tolist()
    assert policy_data(parse_policy(dump_yaml(data))) == data
    # a trace that no line has goes
    del data["links"]["web"], data["links"]["db"]
    assert "traces" not in policy_data(convert_policy(data))


def test_steps_need_no_file():
    policy = parse_policy(
        f"version: 1\nlinks: {{web -> any: {{trace: {STEPS}}}, db -> any: {{trace: {{steps: {STEPS}, loop: no}}}}}}"
    )
    assert policy.traces == {}
    (first,), (second,) = compile_policy(policy, NETWORK).values()
    assert first["trace"] == {"steps": [{"for": "28s", "rate": "20mbit"}, {"for": "2s", "rate": "0bit"}], "loop": True}
    assert second["trace"]["loop"] is False and first["overhead"] == "none"
    assert plan_of(policy, NETWORK).lines[Place("web", "any")].rate == 20_000_000 * 28 // 30


@pytest.mark.parametrize(("line", "says"), [
    ("{trace: nowhere.up}", "p.yaml:3: links.web -> any.trace: .*nowhere.up: No such file"),
    ("{trace: bad.up}", "p.yaml:3: links.web -> any.trace: .*bad.up:2: 1 ms, after 5 ms"),
    ("{trace: {file: bad.up}}", "p.yaml:3: links.web -> any.trace: .*bad.up:2: "),
    ("{trace: .}", "p.yaml:3: .*Is a directory"),
    ('{trace: "a\\0b"}', "p.yaml:3: .*characters that can be printed"),
    ("{trace: lte.up, rate: 5mbit}", "links.web -> any.trace: has rate, too: expected one of them"),
    ("{trace: lte.up, queue: 100ms}", "links.web -> any.queue: 100ms is no bound where the rate varies"),
    ("{trace: 5}", "links.web -> any.trace: invalid value 5: expected a file such as lte.up, or steps"),
    ("{trace: ''}", "links.web -> any.trace: invalid value '': expected a file"),
    ("{trace: }", "links.web -> any.trace: has no value: expected a file such as lte.up"),
    ("{trace: []}", "links.web -> any.trace: steps a list: expected"),
    ("{trace: {}}", "links.web -> any.trace: expected a file or steps"),
    ("{trace: {loop: no}}", "links.web -> any.trace: expected a file or steps"),
    ("{trace: {file: lte.up, loop: maybe}}", "links.web -> any.trace.loop: loop 'maybe': expected yes or no"),
    ("{trace: {file: lte.up, speed: 2}}", "links.web -> any.trace.speed: unknown key"),
    ("{trace: {file: lte.up, steps: []}}", "links.web -> any.trace: expected a file or steps"),
    ("{trace: {file: lte.up, digest: abc}}", "links.web -> any.trace.digest: "),
    (f"{{trace: {{digest: '{'0' * 64}'}}}}", f"links.web -> any.trace: traces has no {'0' * 64}"),
    ("{trace: [{for: 10, rate: 5mbit}]}", "links.web -> any.trace: step 1: time '10' has no unit"),
    ("{trace: [{for: 10s, rate: 5mbps}]}", "links.web -> any.trace: step 1: rate '5mbps': mbps is ambiguous"),
    ("{trace: [{for: 10s, rate: 0}]}", "links.web -> any.trace: step 1: rate 0 could mean no limit or nothing"),
    ("{trace: [7]}", "links.web -> any.trace: step 1 7: expected"),
])  # fmt: skip
def test_a_wrong_trace_is_one_line_with_its_place(lte, line, says):
    (lte / "bad.up").write_text("5\n1\n")
    with pytest.raises(ConfigError, match=says) as error:
        load_policy(policy_in(lte, f"web -> any: {line}"))
    assert "\n" not in str(error.value) and str(error.value).count("p.yaml:3") == 1


@pytest.mark.parametrize(("change", "says"), [
    ({"traces": {}}, f"^links.web.trace: traces has no {LTE.digest}"),
    ({"traces": {LTE.digest: "opportunities:AAAA"}}, f"^traces.{LTE.digest[:0]}.*damaged|cut off"),
    ({"traces": {LTE.digest: OpportunityTrace([1]).packed}}, "is of another content than its digest"),
    ({"traces": {LTE.digest: 5}}, "traces"),
    ({"traces": []}, "traces"),
    ({"links": {"web": {"trace": {"file": "/etc/shadow"}}}}, "'/etc/shadow' has not been read: vnic reads files of traces where"),
])  # fmt: skip
def test_data_of_a_client_opens_no_file_and_is_checked(change, says):
    data = {"version": 1, "links": {"web": {"trace": {"digest": LTE.digest}}}, "traces": {LTE.digest: LTE.packed}}
    convert_policy(data)
    with pytest.raises(ConfigError, match=says) as error:
        convert_policy({**data, **change})
    assert "\n" not in str(error.value)


def test_the_number_of_traces_is_bounded():
    traces = [OpportunityTrace([number]) for number in range(1, TRACES_MOST + 2)]
    links = {f"n{number}": {"trace": {"digest": each.digest}} for number, each in enumerate(traces)}
    with pytest.raises(ConfigError, match=f"{TRACES_MOST + 1} traces of .* bytes: expected at most"):
        convert_policy({"version": 1, "links": links, "traces": {each.digest: each.packed for each in traces}})


@pytest.mark.parametrize("kind", ["opportunities", "rates"])
def test_the_memory_of_traces_is_bounded(kind):
    """A packed trace of 5 KB can be one of 16 MB."""
    if kind == "opportunities":
        traces = [OpportunityTrace(np.append(np.zeros(3_999_999, dtype=np.int64), last)) for last in range(1, 6)]
    else:
        traces = [RateTrace((n * 1000, 1000 + n % 2 + more) for n in range(1, 100_001)) for more in range(5)]
    links = {f"n{number}": {"trace": {"digest": each.digest}} for number, each in enumerate(traces)}
    packed = {each.digest: each.packed for each in traces}
    with pytest.raises(ConfigError, match="with this trace, all take [0-9]+ MiB of memory: expected at most 64"):
        convert_policy({"version": 1, "links": links, "traces": packed})
    convert_policy({"version": 1, "links": dict(list(links.items())[:4]), "traces": packed})


def test_the_memory_of_files_of_traces_is_bounded(tmp_path):
    for number in range(1, 6):
        (tmp_path / f"{number}.up").write_bytes(b"0\n" * 3_999_999 + b"%d\n" % number)
    links = "".join(f"  n{number} -> any: {{trace: {number}.up}}\n" for number in range(1, 6))
    with pytest.raises(ConfigError, match="p.yaml:7: links.n5 -> any.trace: with this trace, all take 76 MiB"):
        parse_policy(f"version: 1\nlinks:\n{links}", str(tmp_path / "p.yaml"), str(tmp_path))


# -- places and what check foretells ---------------------------------------------------------------


def test_of_a_rate_and_a_trace_the_later_counts():
    def plan(*links):
        text = "version: 1\nlinks:\n" + "".join(f"  {each}\n" for each in links)
        return plan_of(parse_policy(text, "p"), NETWORK)

    found = plan("web: {rate: 10mbit}", f"web -> any: {{trace: {STEPS}}}")
    assert set(found.lines[Place("web", "any")].settings) == {"trace"} and set(found.lines[Place("any", "web")].settings) == {
        "rate"
    }
    assert [str(each) for each in found.findings] == ["p:4: note: web -> any: trace steps overrides rate 10mbit of p:3"]
    found = plan(f"web: {{trace: {STEPS}}}", "web -> any: {rate: none}")
    assert found.lines[Place("web", "any")].rate == 0 and found.lines[Place("web", "any")].trace is None
    found = plan(f"web: {{preset: wpt-3g, trace: {STEPS}}}")
    assert set(found.lines[Place("web", "any")].settings) == {"trace", "delay"}
    errors = [str(each) for each in plan("web: {rate: 1mbit, queue: 50ms}", f"web -> any: {{trace: {STEPS}}}").findings]
    assert any("web -> any: queue 50ms is no bound where the rate varies" in each for each in errors)
    errors = [str(each) for each in plan("web -> any: {queue: {packets: 5}}").findings]
    assert any("queue without rate: add the line's rate" in each for each in errors)


def test_check_says_what_a_trace_comes_to():
    said = findings(f"web -> any: {{trace: {STEPS}, queue: {{packets: 100}}, delay: 20ms}}")
    assert "p:3: note: web -> any: trace steps: 18.7mbit on average, 30s long, nothing for 2s at most" in said
    # 100 packets of 1514 bytes at 20 Mbit/s, and the outage
    assert "p:3: note: web -> any: a packet waits at most 2.06s for 100 packets before it" in said
    assert any("34 packets are under way at 20mbit" in each for each in said)  # of the busiest second
    assert any("one TCP connection reaches 6.96mbit to 17.9mbit of payload, by the rate" in each for each in said)
    said = findings(f"web -> any: {{trace: {STEPS}}}")
    assert any(
        "warning" in each and "waits at most" in each for each in findings("web -> any: {trace: [{for: 1s, rate: 1mbit}]}")
    )
    assert not any("error" in each for each in said)


def test_check_counts_opportunities(lte):
    policy = load_policy(policy_in(lte, "web -> any: {trace: {file: lte.up, loop: no}, queue: {packets: 5}}"))
    said = [str(each).partition("p.yaml:3: ")[2] for each in check_policy(policy, NETWORK)]
    assert "note: web -> any: trace lte.up (once): 120kbit on average, 500ms long, nothing for 491ms at most" in said
    assert "note: web -> any: a packet waits at most 500ms for 5 packets before it" in said
    assert "warning: web -> any: nothing passes after 500ms: loop is no" in said


# -- in a network ----------------------------------------------------------------------------------


def frame(source: int, target: int, size: int = 1514) -> bytes:
    return bytes([2, 0, 0, 0, 0, target]) + bytes([2, 0, 0, 0, 0, source]) + b"\x88\xb5" + bytes(size - 14)


def times(net, nic, begin):
    return [(each.time_ns - begin) / MS for each in net.take(nic)]


def test_a_policy_plays_a_trace_and_changes_it_while_packets_wait(lte):
    (lte / "slow.up").write_text("100\n")
    with VirtualNetwork(NICS) as net:
        begin = net.now_ns
        assert net.shape(policy_in(lte, "web -> any: {trace: lte.up, delay: 1ms}")) == ["add shape policy", "change nic web"]
        net.send("web", [frame(1, 2)] * 4)
        net.advance("6ms")
        assert times(net, "db", begin) == [4, 5, 5]
        assert net.shape(policy_in(lte, "web -> any: {trace: slow.up, delay: 1ms}")) == [
            "change shape policy",
            "change nic web",
        ]
        net.run()
        assert times(net, "db", begin) == [107] and net.drops() == {}
        net.shape(policy_in(lte, "web -> any: {trace: slow.up, delay: 5ms}"))  # the trace goes on
        at = net.now_ns
        net.send("web", [frame(1, 2)])
        net.run()
        assert times(net, "db", begin) == [pytest.approx(206 + 5)] and at == begin + 107 * MS
        net.shape(policy_in(lte, "web -> any: {rate: 1mbit}"))
        assert net.shape(None) == ["remove shape policy", "change nic web"]


def test_a_configuration_has_traces_of_policy_and_elements(lte):
    (lte / "net.yaml").write_text(
        "nics:\n  web:\n    mac: '02:00:00:00:00:01'\n    egress: {elements: [{element: TraceLink, trace: lte.up}]}\n"
        "  db: {mac: '02:00:00:00:00:02'}\nshape: {links: {any -> db: {trace: {file: lte.up, loop: no}}}}\n"
    )
    with VirtualNetwork(str(lte / "net.yaml")) as net:
        begin = net.now_ns
        net.send("web", [frame(1, 2)] * 2)
        net.run()
        assert times(net, "db", begin) == [4, 9]
        net.apply((lte / "net.yaml").read_text().replace("lte.up", str(lte / "lte.up")))
        with pytest.raises(ConfigError, match=r"<test>:4: nics.web.egress.elements\[0\].trace: .*nowhere: No such"):
            net.apply("nics:\n  web:\n    egress:\n      elements: [{element: TraceLink, trace: nowhere}]\n")
        with pytest.raises(ConfigError, match=r"<test>:2: links.web.trace: .*nowhere: No such"):
            net.apply("nics: {web: {}}\nshape: {links: {web: {trace: nowhere}}}\n")


def test_an_element_of_a_client_opens_no_file():
    element = {"element": "TraceLink", "trace": {"file": "/etc/shadow"}}
    config = convert_config({"nics": {"web": {"egress": {"elements": [element]}}}}, contained=False)
    with pytest.raises(ConfigError, match="'/etc/shadow' has not been read"):
        VirtualNetwork(config)


def test_a_stored_configuration_has_each_content_once(lte):
    """As many lines as there are NICs with one trace: what is stored, sent and shown grows with the
    trace once."""
    rng = np.random.default_rng(1)
    (lte / "lte.up").write_bytes(mahimahi_text(OpportunityTrace(np.cumsum(rng.poisson(2, 20_000)) + 1)))
    names = [f"n{number}" for number in range(50)]
    text = "nics: {" + ", ".join(f"{name}: {{}}" for name in names) + "}\nshape:\n  links:\n"
    text += "".join(f"    {name}: {{trace: lte.up}}\n    n0 -> {name}: {{trace: lte.up}}\n" for name in names[1:])
    (lte / "net.yaml").write_text(text)
    config = load_config(lte / "net.yaml", contained=False)
    (packed,) = config.shape["traces"].values()
    stored = encode_config(config)
    assert stored.count(packed.encode()) == 1 and len(packed) > 8000
    # what runs is not changed by that, and has the content
    assert config.nics["n1"].egress.elements[0].arguments["trace"]["data"] == packed
    again = decode_config(stored)
    assert again.nics["n1"].egress.elements == config.nics["n1"].egress.elements
    assert again.nics["n1"].ingress.elements == config.nics["n1"].ingress.elements  # in branches, too
    assert encode_config(again) == stored
    shown = written_config(config)
    assert json.dumps(msgspec.to_builtins(shown)).count(packed) == 1
    (lte / "lte.up").unlink()
    assert encode_config(parse_config(dump_yaml(shown), directory=str(lte), contained=False)).count(packed.encode()) == 1


# -- a running instance ----------------------------------------------------------------------------


def test_a_trace_survives_its_file_a_crash_and_an_upgrade(shaped: Shaped, tmp_path):  # noqa: F811
    """The request is too long for a message: the policy goes in a document."""
    directory = tmp_path / "policies"
    directory.mkdir()
    rng = np.random.default_rng(1)
    # a line that delays much, and whose packed trace is long
    noise = np.sort(rng.integers(1, 80_000_000, 400_000))
    (directory / "slow.down").write_bytes(mahimahi_text(OpportunityTrace(noise)))
    path = policy_in(directory, "a -> any: {trace: slow.down}")
    assert len(load_policy(path).config.traces.popitem()[1]) > 256 * 1024
    assert "a -> any.trace.file: slow.down" in shaped.shape("apply", str(path))
    (directory / "slow.down").unlink()

    def asked():
        return [(each["line"], each["asked"]) for each in shaped.lines()]

    def trace():
        (found,) = json.loads(vnic(shaped.environment, "handler", "a.egress.shape-line", "trace", "--json"))
        return found["value"]["file"], found["value"]["digest"]

    expected = [("a -> any", "trace slow.down")]
    assert asked() == expected
    before = trace()
    kill_worker(shaped.environment)
    assert asked() == expected and trace() == before
    vnic(shaped.environment, "upgrade")
    assert asked() == expected and trace() == before
    shaped.shape("set", "a -> any", "trace=[{for: 1s, rate: 10mbit}]")
    assert asked() == [("a -> any", "trace steps")] and trace()[0] == "steps"
    vnic(shaped.environment, "undo")
    assert asked() == expected and trace() == before
    (directory / "fast.up").write_text("1\n")
    shaped.shape("set", "b -> any", f"trace={directory / 'fast.up'}", "delay=1ms")
    assert asked() == [*expected, ("b -> any", f"trace {directory / 'fast.up'}, delay 1ms")]
    with Client(str(tmp_path / "default.sock")) as client, open(path) as file:
        for both, says in (({"a": 1}, "expected either policy or document"), (None, "document: ")):
            with pytest.raises(ConfigError, match=says):
                client.call("Shape", policy=both, passing=[file.fileno()], document=0)
    shaped.shape("clear")
    assert shaped.elements() == []

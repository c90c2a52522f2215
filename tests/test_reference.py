"""The reference of configuration and elements is complete, correct and current: pages, commands,
examples."""

import json
import re
import runpy
import struct
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from dataplane.errors import ConfigError
from tests.wire_frames import TCP, UDP, Spec
from vnic.cli.element_docs import built_in, describe_element
from vnic.cli.main import cli
from vnic.config import schema
from vnic.config.json_schema import json_schema
from vnic.config.load import load_config, parse_config
from vnic.config.reference import field_docs, find, reference
from vnic.testing import VirtualNetwork

ROOT = Path(__file__).parent.parent
STRUCTS = [each for each in vars(schema).values() if isinstance(each, type) and issubclass(each, schema._Strict)]


def run(*arguments):
    return CliRunner().invoke(cli, arguments)


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_field_is_described_and_nothing_else(kind):
    fields = {each.encode_name for each in msgspec.structs.fields(kind) if each.name not in kind.HIDDEN}
    described = field_docs(kind)
    assert set(described) == fields
    for name, text in described.items():
        assert re.match(r"[A-Z`].*\.$", text), (name, text)  # sentences


def test_every_key_says_what_it_accepts():
    assert [each.path for each in reference() if not each.accepts] == []


@pytest.mark.parametrize("key", reference(), ids=lambda key: key.path)
def test_the_example_of_every_key_is_accepted(key):
    text = key.example_yaml()
    assert f"{key.path.rpartition('.')[2]}:" in text
    parse_config(text, contained=False)


@pytest.mark.parametrize("key", [each for each in reference() if "least" in each.bounds], ids=lambda key: key.path)
def test_the_bounds_of_every_key_are_those_of_the_parser(key):
    least, most = key.bounds["least"], key.bounds["greatest"]
    for value in (least, most):
        if error := refusal(key, value):
            # Some values are within bounds but conflict with other keys; the error then names the
            # conflict.
            assert "out of range" not in error and f"invalid value {value}" not in error
    if isinstance(least, int):
        assert f"invalid value {least - 1}" in refusal(key, least - 1) and f"invalid value {most + 1}" in refusal(key, most + 1)
    else:
        assert "out of range" in refusal(key, re.sub(r"\d+", lambda match: str(int(match[0]) + 1), most))


def refusal(key, value):
    """The parser's error for the key's example with another value; "" if it is valid."""

    def put(document):
        for name, inner in document.items() if isinstance(document, dict) else enumerate(document):
            if name == key.path.rpartition(".")[2]:
                document[name] = value
                return True
            if isinstance(inner, dict | list) and put(inner):
                return True
        return False

    document = json.loads(json.dumps(key.document))
    assert put(document)
    try:
        parse_config(json.dumps(document), contained=False)
    except ConfigError as error:
        return str(error)
    return ""


def test_the_defaults_are_those_of_an_empty_file():
    compared = 0
    filled = json.loads(msgspec.json.encode(parse_config("nics: {web: {}}", contained=False), enc_hook=schema.encode_scalar))
    for key in reference():
        value = filled
        for step in key.plain_path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
            value = value["web"] if step == "nics" and value is filled["nics"] else value
        if value is not None and key.default is not None:
            assert value == key.default, key.path
            compared += 1
    assert compared > 10


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("nics.egress.rate", "nics.NAME.egress.rate"),
        ("nics.web.egress.rate", "nics.NAME.egress.rate"),
        ("nics.NAME.egress.rate", "nics.NAME.egress.rate"),
        ("engines[0].cpu", "engines[].cpu"),
        ("clients.alice.vlans", "clients.NAME.vlans"),
        ("nics.web.egress.elements[3].name", "nics.NAME.egress.elements[].name"),
        ("nics", "nics"),
    ],
)
def test_a_key_is_found_as_users_write_it(asked, path):
    assert find(asked).path == path
    assert run("config", "explain", asked).output.splitlines()[0] == path


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("rate", "did you mean clients.rate or nics.egress.rate or nics.ingress.rate?"),
        ("nics.egres.rate", "did you mean nics.egress.rate?"),
        ("nics.web.adresses", "did you mean nics.addresses?"),
        ("zzz", "`vnic config explain` lists the keys"),
        ("", "`vnic config explain` lists the keys"),
        (".[]..", "`vnic config explain` lists the keys"),
    ],
)
def test_an_unknown_key_is_refused_with_a_hint(asked, hint):
    with pytest.raises(ConfigError, match=re.escape(hint)):
        find(asked)


def test_explain_prints_what_there_is():
    text = run("config", "explain", "nics.mtu").output
    assert "MTU of the interface" in text and "68 to 65521" in text and "default:  1500" in text and "mtu: 1500" in text
    found = json.loads(run("config", "explain", "nics.mtu", "--json").output)
    assert found["default"] == 1500 and found["bounds"] == {"least": 68, "greatest": 65521}
    listed = json.loads(run("config", "explain", "--json").output)
    assert [each["path"] for each in listed] == [each.path for each in reference()]
    lines = run("config", "explain").output.splitlines()
    assert [line.split()[0] for line in lines] == [each.path for each in reference()]


def test_the_json_schema_describes_every_property():
    definitions = json_schema()["$defs"]
    for name, definition in definitions.items():
        for field, found in definition["properties"].items():
            assert found["description"].startswith(field_docs(getattr(schema, name))[field]), (name, field)


# -- elements --------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", built_in(), ids=lambda found: found.name)
def test_a_built_in_element_is_described(found):
    assert re.fullmatch(r"[A-Z][^.]*\.", found.summary) and found.ports
    assert all(each.about for each in found.arguments.values())
    assert all({**found.counters, **found.drops, "example": found.example_about}.values())
    assert all(each["help"] for each in found.handlers.values())
    text = run("element", found.name).output
    for word in (found.summary, *found.arguments, *found.counters, *found.drops, *found.handlers):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
    assert json.loads(run("element", found.name, "--json").output)["name"] == found.name


def test_the_constructor_takes_the_arguments_that_are_listed():
    listed = {each.name: list(each.arguments) for each in built_in()}
    assert listed == {
        "Classifier": ["rules", "default"],
        "Counter": [],
        "Discard": [],
        "Impairment": ["loss", "duplicate", "corrupt", "reorder", "delay", "seed"],
        "Link": ["rate", "queue", "overhead", "delay"],
        "Marker": ["dscp", "ecn", "pcp", "mark"],
        "Mirror": ["file", "snaplen", "buffer"],
        "Pacer": ["rate", "per", "rates", "horizon", "exceed", "flows"],
        "Parse": ["malformed"],
        "Policer": ["rate", "burst", "exceed"],
        "Scheduler": ["classes", "overhead", "burst"],
        "Shaper": ["rate", "queue", "burst"],
        "TraceLink": ["trace", "queue", "overhead", "delay"],
    }


def test_elements_are_listed():
    lines = run("element").output.splitlines()
    assert [line.split()[0] for line in lines] == [each.name for each in built_in()]
    assert [each["name"] for each in json.loads(run("element", "--json").output)] == [each.name for each in built_in()]


def test_an_element_of_the_users_own_is_described(monkeypatch):
    monkeypatch.chdir(ROOT / "examples")
    found = describe_element("ttl:SetTtl", str(ROOT / "examples"))
    assert found.arguments["ttl"].default == "64" and "dropped" in found.drops
    assert "SetTtl: Every IPv4 packet" in run("element", "ttl:SetTtl").output


def test_an_unknown_element_is_refused():
    with pytest.raises(ConfigError, match="element Shapr: unknown; did you mean 'Shaper'"):
        describe_element("Shapr")
    with pytest.raises(ConfigError, match="expected module:Class or one of Classifier, Counter"):
        describe_element("zzz")


# -- examples --------------------------------------------------------------------------------------


def frame(protocol, port, size=500):
    return Spec(protocol=protocol, destination_port=port, payload=bytes(size)).build()


@pytest.fixture
def network(tmp_path):
    """A network of an example, with files in the test's directory; closes it, and checks that
    packets are conserved."""
    made = []

    def make(text):
        made.append(VirtualNetwork(text.replace("/tmp/", f"{tmp_path}/")))
        return made[-1]

    yield make
    for each in made:
        each.close()


def sent(net, protocol, port, count, **when):
    """Sends frames from web to db, and advances time until none is in flight; returns how many
    frames of the protocol arrived."""
    net.send("web", [frame(protocol, port)] * count, **when)
    net.run()
    got = net.take("db")
    return len(got), (got[-1].time_ns - got[0].time_ns if len(got) > 1 else 0)


def at_rate(count, bits, rate, burst_ns=250_000):
    """Time from the first to the last of `count` frames leaving a shaper that was idle, less
    `burst` of credit; exact to one frame."""
    return pytest.approx((count - 1) * bits / rate * 1e9 - burst_ns, abs=bits / rate * 1e9)


def pcap_records(path, snaplen):
    """The records of a pcap file, read byte by byte: (bytes kept, length on the wire)."""
    data = path.read_bytes()
    magic, *_, limit, _ = struct.unpack("<IHHiIII", data[:24])
    assert magic == 0xA1B23C4D and limit == snaplen
    found, at = [], 24
    while at < len(data):
        _, _, kept, length = struct.unpack("<IIII", data[at : at + 16])
        found.append((kept, length))
        at += 16 + kept
    return found


def example_of(name):
    return next(each for each in built_in() if each.name == name).example


def test_the_example_of_classifier_limits_udp_alone(network):
    net = network(example_of("Classifier"))
    size = len(frame(UDP, 53)) * 8
    count, spread = sent(net, UDP, 53, 40)
    assert count == 40 and spread == at_rate(40, size, 5e6)
    assert sent(net, TCP, 80, 40) == (40, 0)


def test_the_example_of_discard_drops_udp_alone(network):
    net = network(example_of("Discard"))
    assert sent(net, UDP, 53, 5) == (0, 0) and sent(net, TCP, 80, 5)[0] == 5
    assert list(net.drops().values()) == [5] and "discarded" in next(iter(net.drops()))


def test_the_example_of_counter_counts(network):
    net = network(example_of("Counter"))
    assert sent(net, TCP, 80, 7)[0] == 7
    assert net.drops() == {}


def test_the_example_of_shaper_limits(network):
    net = network(example_of("Shaper"))
    count, spread = sent(net, TCP, 80, 30)
    assert count == 30 and spread == at_rate(30, len(frame(TCP, 80)) * 8, 20e6)


def test_the_example_of_link_is_a_line(network):
    net = network(example_of("Link"))
    count, length = 30, len(frame(TCP, 80)) + 16  # pppoe-ptm
    on_line = length + -(-length // 64)
    net.send("web", [frame(TCP, 80)] * count)
    begun = net.now_ns
    net.run()
    times = [received.time_ns - begun for received in net.take("db")]
    assert times == [15_000_000 + on_line * 800 * n for n in range(1, count + 1)]


def test_the_example_of_scheduler_lets_voice_first(network):
    net = network(example_of("Scheduler"))
    voice = bytearray(frame(UDP, 53))
    voice[15] = 46 << 2
    net.send("web", [*[frame(TCP, 80)] * 30, bytes(voice)])
    net.run()
    marks = [received.data[15] for received in net.take("db")]
    # those before it left at once, since they are within the burst
    assert marks.index(46 << 2) == 625 // len(frame(TCP, 80)) + 1 and len(marks) == 31


def test_the_example_of_tracelink_has_an_outage(network):
    net = network(example_of("TraceLink"))
    net.advance("27997ms")  # 3 ms before the outage of 2 s
    begun, each_ns = net.now_ns, len(frame(TCP, 80)) * 8 * 50
    net.send("web", [frame(TCP, 80)] * 100)
    net.run()
    times = [received.time_ns - begun - 30_000_000 for received in net.take("db")]
    sent_ns = [each_ns * n for n in range(1, 101)]
    assert times == [at if at <= 3_000_000 else at + 2_000_000_000 for at in sent_ns] and times[0] < 3_000_000


def test_the_example_of_policer_marks_the_excess(network):
    net = network(example_of("Policer"))
    count, lower_effort = 200, 1 << 2
    net.send("web", [frame(UDP, 53)] * count)
    net.run()
    marks = [received.data[15] for received in net.take("db")]
    conforming = 65536 // len(frame(UDP, 53)) + 1
    assert marks == [0] * conforming + [lower_effort] * (count - conforming)


def test_the_example_of_impairment_delays_and_loses(network):
    net = network(example_of("Impairment"))
    count = 2000
    net.send("web", [frame(UDP, 53)] * count)
    net.run()
    received = net.take("db")
    # five standard deviations
    assert abs(count - len(received) - count * 0.01) < 5 * (count * 0.01) ** 0.5
    assert {each.time_ns for each in received} == {300_000_000}


def test_the_example_of_pacer_limits_each_connection(network):
    net = network(example_of("Pacer"))
    count, length = 12, len(frame(UDP, 53))
    begun = net.now_ns
    net.send("web", [frame(UDP, port) for _ in range(count) for port in (53, 54)])
    net.run()
    times = [received.time_ns - begun for received in net.take("db")]
    assert times == [n * length * 4000 for n in range(count) for _ in range(2)]


def test_the_example_of_marker_marks(network):
    net = network(example_of("Marker"))
    net.send("web", [frame(UDP, 53), frame(TCP, 80)])
    net.run()
    assert [received.data[15] for received in net.take("db")] == [46 << 2] * 2


def test_the_example_of_parse_passes_packets(network):
    assert sent(network(example_of("Parse")), TCP, 80, 3)[0] == 3


def test_the_example_of_mirror_writes_what_the_container_sends(network, tmp_path):
    net = network(example_of("Mirror"))
    assert sent(net, TCP, 80, 3)[0] == 3
    net.close()
    assert pcap_records(tmp_path / "web.pcap", 128) == [(128, len(frame(TCP, 80)))] * 3


def test_mirror_yaml_writes_what_the_container_receives(network, tmp_path):
    net = network((ROOT / "examples/mirror.yaml").read_text())
    net.send("db", [frame(UDP, 53)] * 2)
    net.run()
    assert len(net.take("web")) == 2
    net.close()
    assert pcap_records(tmp_path / "web.pcap", 128) == [(128, len(frame(UDP, 53)))] * 2


def test_per_protocol_yaml_limits_each_protocol(network):
    net = network((ROOT / "examples/per-protocol.yaml").read_text())
    for protocol, port, rate in ((UDP, 53, 5e6), (TCP, 443, 50e6), (TCP, 5001, 100e6)):
        bits = len(frame(protocol, port)) * 8
        count, spread = sent(net, protocol, port, 50)
        assert count == 50 and spread == at_rate(50, bits, rate), port


def test_every_built_in_element_has_an_example_that_is_run():
    run_here = {
        name.removeprefix("test_the_example_of_").partition("_")[0] for name in globals() if "test_the_example_of" in name
    }
    assert {each.name.lower() for each in built_in()} <= run_here
    assert all(load_config(path) for path in (ROOT / "examples").glob("*.yaml"))


# -- pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["configuration.md", "elements.md"])
def test_the_generated_pages_are_current(name):
    pages = runpy.run_path(str(ROOT / "scripts/reference.py"))["PAGES"]
    assert (ROOT / "docs" / name).read_text() == pages[name](), "run make reference"

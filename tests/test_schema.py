"""Configuration files: valid ones are parsed; errors are one line with file, line, path and
expected values."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.load import BYTES_MOST
from dataplane.config.scalars import Mac, Rate
from dataplane.errors import ConfigError
from vnic.config.convert import convert_config, convert_nic, decode_config, encode_config
from vnic.config.json_schema import json_schema
from vnic.config.load import load_config, parse_config
from vnic.config.schema import Config, DirectionConfig, NicConfig, encode_scalar

FULL = """
engines: [{name: fast, spin: 20us, cpu: 0}, {}]
spin: 5us
pool: {small: 2048, large: 64}
switch: {ageing: 60s, table: 128}
nics:
  web:
    pid: 4242
    interface: eth0
    queues: 2
    mac: 12:00:00:00:00:01
    mtu: 9000
    addresses: [10.0.0.1/24, "fd00::1/64"]
    engine: fast
    vlan: {trunk: [10, 20], native: 1}
    offloads: {checksum: true, tso: true, uso: false}
    rss: {key: "KEY", table: [0, 1]}
    egress:
      rate: 100mbit
      queue: 50ms
      elements:
        - Counter
        - element: Classifier
          name: split
          rules: [{dscp: 46}]
          branches:
            1: [{element: "mine:Mark", value: 7}]
    ingress: {rate: 1gbit}
  db: {netns: netns/db, engine: 1}
""".replace("KEY", "6d5a56da" * 10)


def test_a_full_file_is_parsed():
    config = parse_config(FULL, "full.yaml", "/etc/vnic")
    assert [(e.name, e.spin, e.cpu) for e in config.engines] == [("fast", 20_000, 0), ("e1", None, None)]
    web, db = config.nics["web"], config.nics["db"]
    assert (web.name, web.pid, web.interface, web.queues, web.mtu) == ("web", 4242, "eth0", 2, 9000)
    assert web.mac == "12:00:00:00:00:01"
    assert web.addresses == ["10.0.0.1/24", "fd00::1/64"] and config.engine_index(web.engine) == 0
    assert web.vlan.trunk == [10, 20] and web.vlan.native == 1 and not web.offloads.uso
    assert web.rss.key == bytes.fromhex("6d5a56da" * 10) and web.rss.table == [0, 1]
    assert web.egress.rate == 100_000_000 and web.egress.queue == 50_000_000 and web.ingress.rate == 10**9
    counter, split = web.egress.elements
    assert (counter.element, counter.arguments) == ("Counter", {})
    assert (split.name, split.arguments, split.where) == ("split", {"rules": [{"dscp": 46}]}, "full.yaml:23")
    assert split.branches[1][0].element == "mine:Mark" and split.branches[1][0].arguments == {"value": 7}
    assert db.netns == "/etc/vnic/netns/db" and db.interface == "db" and db.mac == Mac.from_name("db")
    assert db.ingress.rate is None and config.switch.ageing == 60 * 10**9 and config.directory == "/etc/vnic"


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "engines: 3", "nics:\n", "spin: 0"])
def test_everything_has_a_default(text):
    config = parse_config(text)
    assert len(config.engines) == (3 if "3" in text else 1) and config.nics == {}
    assert config.pool.small == 16384


def nic(text):
    return "nics:\n  web:\n    pid: 1\n    " + text + "\n"


def offering(features):
    return f"nics:\n  web:\n    kind: vhost-user\n    listen: /run/web.sock\n    features: {features}\n"


WRONG = [
    # text, line, path, message
    (nic("quenes: 2"), 4, "nics.web.quenes", "unknown key; did you mean 'queues'?"),
    (nic("name: x"), 4, "nics.web.name", "unknown key"),
    (nic("where: x"), 4, "nics.web.where", "unknown key"),
    (nic("zzz: 2"), 4, "nics.web.zzz", "expected one of pid, netns, kind, interface"),
    (nic("mac: 02:00:00:00:00"), 4, "nics.web.mac", "not a MAC address: expected six bytes such as 02:00:00:00:00:01"),
    (nic("mac: 01:00:00:00:00:01"), 4, "nics.web.mac", "group address"),
    (nic("mac: 12"), 4, "nics.web.mac", "not a MAC address"),
    (nic("queues: 0"), 4, "nics.web.queues", "invalid value 0: expected 1 to 64 queue pairs"),
    (nic("queues: 65"), 4, "nics.web.queues", "expected 1 to 64"),
    (nic("queues: two"), 4, "nics.web.queues", "invalid value 'two': expected 1 to 64"),
    (nic("queues: true"), 4, "nics.web.queues", "invalid value true"),
    (nic("mtu: 70000"), 4, "nics.web.mtu", "invalid value 70000: expected an MTU of 68 to 65521 bytes"),
    (nic("addresses: [10.0.0.1/24, 10.0.0.2]"), 4, "nics.web.addresses[1]", "expected address/prefix such as 10.0.0.1/24"),
    (nic("addresses: 10.0.0.1/24"), 4, "nics.web.addresses", "expected a list"),
    (nic("interface: 'eth0 '"), 4, "nics.web.interface", "expected an interface name of 1 to 15"),
    (nic('interface: "eth0\\n"'), 4, "nics.web.interface", "expected an interface name of 1 to 15"),
    (nic("engine: 1"), 4, "nics.web.engine", "engine 1 does not exist"),
    (nic("engine: fast"), 4, "nics.web.engine", "expected 0, e0"),
    (nic("vlan: {access: 4095}"), 4, "nics.web.vlan.access", "expected a VLAN number, 1 to 4094"),
    (nic("vlan: {access: 1, trunk: [2]}"), 4, "nics.web.vlan", "needs exactly one of"),
    (nic("vlan: 10"), 4, "nics.web.vlan", "expected {access: 10}"),
    (nic("offloads: {tos: true}"), 4, "nics.web.offloads.tos", "did you mean 'tso'?"),
    (nic("offloads: {checksum: false}"), 4, "nics.web.offloads", "segmentation needs checksum"),
    (nic("rss: {table: [0, 1]}"), 2, "nics.web", "names queue 1, but there are 1"),
    (nic("rss: {table: [0, 0, 0]}"), 4, "nics.web.rss", "expected a power of two"),
    (nic("rss: {key: abc}"), 4, "nics.web.rss.key", "no RSS key: expected 40 bytes"),
    (offering("{without: [paket]}"), 5, "nics.web.features", "without: feature 'paket' is unknown: did you mean 'packed'?"),
    (offering("{without: [version_1]}"), 5, "nics.web.features", "version_1 is needed by all others"),
    (offering("{only: [csum], without: [packed]}"), 5, "nics.web.features", "has both without and only"),
    (offering("{only: csum}"), 5, "nics.web.features.only", "expected a list of features' names"),
    (offering("{only: [1]}"), 5, "nics.web.features.only[0]", "expected a feature's name"),
    (nic("egress: {rate: 10gbps}"), 4, "nics.web.egress.rate", "write 10gbit"),
    (nic("egress: {rate: 100}"), 4, "nics.web.egress.rate", "no unit: expected a number with one, such as 100mbit"),
    (nic("egress: {rate: 1bit}"), 4, "nics.web.egress.rate", "out of range"),
    (nic("egress: {queue: 1h}"), 4, "nics.web.egress.queue", "out of range: expected 1ms to 10s"),
    (nic("egress: {elements: [{name: x}]}"), 4, "nics.web.egress.elements[0]", "has no element: expected element: a built-in"),
    (nic("egress: {elements: [3]}"), 4, "nics.web.egress.elements[0]", "expected an element such as"),
    (nic("egress: {elements: [{element: C, where: x y}]}"), None, None, None),
    (nic("egress: {elements: [{element: C, branches: {a: []}}]}"), 4, "nics.web.egress.elements[0].branches.a", "not an output"),
    (nic("egress: {elements: [{element: C, branches: {1: [{elment: D}]}}]}"), 4, "elements[0].branches.1[0]", "has no element"),
    (nic("egress:\n      elements:\n        - element: C\n          2x: 1"), 7, "elements[0].2x", "not a constructor argument"),
    (nic("netns: /run/netns/x"), 2, "nics.web", "has both pid and netns"),
    (nic("pid: 2"), 4, None, "'pid' is there already, in line 3; remove one of them"),
    (nic("pidd: 2"), 4, "nics.web.pidd", "did you mean 'pid'?"),
    ("nics:\n  web: {}", 2, "nics.web", "give pid: or netns:, or `vnic attach tap web --pid PID` later"),
    ("nics:\n  web:\n", 2, "nics.web", "give pid: or netns:"),
    ("nics: {a: {pid: 0}}", 1, "nics.a.pid", "expected the number of a process"),
    ("nics: {a: {pid: 1, mac: 02:00:00:00:00:01},\n b: {pid: 1, mac: 02:00:00:00:00:01}}", 2, "nics.b.mac", "a's already"),
    ("nics: {a-name-of-sixteen: {pid: 1}}", 1, "nics.a-name-of-sixteen", "interface: NAME"),
    ("nics: {a/b: {pid: 1}}", 1, "nics.a/b", "expected a name of 1 to 32"),
    ("nics: [web]", 1, "nics", "invalid value a list: expected a mapping"),
    ("nics: {web: 3}", 1, "nics.web", "invalid value 3: expected a mapping with keys such as pid, netns"),
    ("engines: 0", 1, "engines", "invalid value 0: expected a number, 1 to 64, or a list"),
    ("engines: []", 1, "engines", "expected a number, 1 to 64, or a list"),
    ("engines: many", 1, "engines", "expected a number, 1 to 64, or a list"),
    ("engines: [{name: a}, {name: a}]", 1, None, "two have the same name"),
    ("engines:\n- {}\n- {cpu: -1}", 3, "engines[1].cpu", "expected the number of a CPU"),
    ("spin: 5", 1, "spin", "such as 250us"),
    ("pool: {smal: 1}", 1, "pool.smal", "did you mean 'small'?"),
    ("directory: /", 1, "directory", "unknown key"),
    ("switch: {table: 1}", 1, "switch.table", "expected a number of addresses, 16 to"),
    ("- a", 1, None, "invalid value a list: expected a mapping with keys such as engines"),
    ("a: b: c", 1, None, "no YAML"),
    ("a:\n\t- b", 2, None, "no YAML"),
    ("a: [", None, None, "no YAML"),
    ("a: 1\n---\nb: 2", 2, None, "no YAML"),
    ("a: \x07", None, None, "no YAML"),
    ("spin: !!python/object/apply:os.system [id]", 1, None, "is not allowed: expected plain YAML"),
    ("spin: !!int x", 1, None, "is not allowed"),
    ("spin: !mine x", 1, None, "is not allowed"),
    ("? [a]\n: 1", 1, None, "a key must be a word"),
    ("a: &x [1, *x]", 1, None, "too deep"),
    ("a: " + "1" * 5000, 1, None, "is too long"),
    ("[" * 5000, None, None, "too deep"),
    ("[" * 60 + "]" * 60, 1, None, "too deep"),
    (("a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
     "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]"), None, None, "aliases expanded"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "path", "says"), WRONG)
def test_what_is_wrong_gets_one_line(text, line, path, says):
    if says is None:  # not checked: an element's arguments
        parse_config(text)
        return
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "FILE.yaml")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert message.startswith(f"FILE.yaml:{line}: " if line else "FILE.yaml")
    assert path is None or f"{path}: " in message
    assert says in message


def test_files(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.yaml: No such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"a.yaml:2: is not UTF-8"):
        load_config(path)
    path.write_bytes(b"#" * (BYTES_MOST + 1))
    with pytest.raises(ConfigError, match="too large"):
        load_config(path)
    path.write_text("engines: 2\n")
    config = load_config(path)
    assert len(config.engines) == 2 and config.directory == str(tmp_path)


def test_structs_by_hand_have_the_same_rules():
    nic = NicConfig(name="web", pid=1, egress=DirectionConfig(rate=Rate("10mbit")))
    assert nic.egress.rate == 10_000_000 and nic.interface == "web"
    with pytest.raises(ConfigError, match="both"):
        NicConfig(name="web", pid=1, netns="/x")
    with pytest.raises(ConfigError):
        Rate("10mbps")


def test_a_mac_from_a_name_is_local_unicast_and_stable():
    assert Mac.from_name("web") == Mac.from_name("web") != Mac.from_name("db")
    assert Mac.from_name("web").packed[0] & 3 == 2


def test_a_config_prints_as_it_was_written():
    text = msgspec.json.encode(parse_config(FULL), enc_hook=encode_scalar).decode()
    assert '"rate":"100mbit"' in text and '"queue":"50ms"' in text and '"ageing":"60s"' in text
    assert json.loads(text)["nics"]["web"]["mac"] == "12:00:00:00:00:01"


def test_the_json_schema_describes_every_key():
    schema = json_schema()
    definitions = schema["$defs"]
    assert schema["$ref"] == "#/$defs/Config"
    assert set(definitions["Config"]["properties"]) == {
        "engines", "groups", "metrics", "spin", "pool", "switch", "modules", "clients", "host_interfaces", "nics", "nodes", "links",
        "shape",
    }  # fmt: skip
    assert definitions["NicConfig"]["additionalProperties"] is False
    assert "name" not in definitions["NicConfig"]["properties"] and "where" not in definitions["ElementConfig"]["properties"]
    json.dumps(schema)


def refused_in_one_line(function, argument):
    message = ""
    try:
        function(argument)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


words = st.sampled_from(["100mbit", "5ms", "Counter", "drop", "02:00:00:00:00:01"])
keys = st.sampled_from([*NicConfig.__struct_fields__, *Config.__struct_fields__, *DirectionConfig.__struct_fields__,
                        "element", "branches", "1", "table", "key", "access"])  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_any_data_is_converted_or_refused(data):
    for convert in (convert_config, lambda data: convert_nic("web", data)):
        refused_in_one_line(convert, data)


@given(st.text(alphabet=st.sampled_from("abn:{}[]-&*!#'\"\n \t|>?,1%@~0x."), max_size=60))
def test_any_text_is_parsed_or_refused(text):
    refused_in_one_line(parse_config, text)


def test_groups():
    config = parse_config(
        "groups: {fast: {mode: dedicated, cpus: [1]}, rest: {mode: compacting, slo: 80us, guarantee: {runtime: 500us, period: 1ms}}}\n"
        "engines: [{group: rest, spin: 5us}, {}, {name: x, group: rest}]\nspin: 7us\n"
    )
    assert [(engine.name, engine.group, engine.spin) for engine in config.engines] == [
        ("e0", "rest", 5000),
        ("e1", "fast", None),
        ("x", "rest", None),
    ]
    assert [group.spin for group in config.groups.values()] == [7000, 7000]
    assert int(config.groups["rest"].slo) == 80_000 and int(config.groups["rest"].guarantee.runtime) == 500_000
    assert list(parse_config("engines: 2").groups) == ["default"]


def test_cgroups_of_groups():
    config = parse_config("groups: {a: {cgroup: /sys/fs/cgroup/a}, b: {cgroup: [/x/cpu/b, /x/cpuacct/b]}, c: {}}")
    assert [group.cgroup for group in config.groups.values()] == [["/sys/fs/cgroup/a"], ["/x/cpu/b", "/x/cpuacct/b"], []]
    assert decode_config(encode_config(config)) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("groups: {a: {mode: fast}}", "groups.a.mode: invalid value 'fast': expected dedicated, spreading or compacting"),
        ("groups: {a: {mode: dedicated}}", "dedicated needs CPUs of its own, such as cpus: [1]"),
        ("groups: {a: {cpus: []}}", "cpus is empty or names one twice"),
        ("groups: {a: {guarantee: {runtime: 2ms, period: 1ms}}}", "runtime 2ms is more than the period"),
        ("groups: {a: {}}\nengines: [{group: b}]", "e0 is in group b: expected one of a"),
        ("groups: {a: {mode: compacting}}\nengines: [{cpu: 0}]", "cpu is for spreading groups"),
        ("groups: {a: {}, b: {}}\nclients: {1000: {group: b}}", "clients: 1000: group b has no engine: expected one of a"),
        (
            "clients: {1000: {queues: 65}}",
            "clients.1000.queues: invalid value 65: expected a number of queue pairs, 1 to 64",
        ),
        (
            "clients: {1000: {pool_percent: 0}}",
            "clients.1000.pool_percent: invalid value 0: expected a percentage of the packet pool",
        ),
        (
            "groups: {a: {cgroup: tenant}}",
            "groups.a.cgroup[0]: invalid value 'tenant': expected the absolute path of a cgroup's directory",
        ),
        (
            "groups: {a: {cgroup: [/a, b]}}",
            "groups.a.cgroup[1]: invalid value 'b': expected the absolute path of a cgroup's directory",
        ),
        ('groups: {a: {cgroup: "/a\\0b"}}', "groups.a.cgroup[0]: invalid value '/a\\x00b': expected the absolute path"),
        ("groups: {a: {cgroup: [/a, /a]}}", "cgroup names one twice: list each once"),
        ("groups: {a: {slo: 1ns}}", "slo 1ns is out of range"),
        ("metrics: {listen: '0.0.0.0:9464'}", "0.0.0.0:9464 is not a loopback address and port"),
        ("metrics: {listen: 'localhost'}", "is not a loopback address and port"),
        ("metrics: {}", "expected either {listen:"),
    ],
)
def test_groups_that_are_wrong(text, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_config(text)


def test_a_namespace_has_a_path_or_the_name_that_ip_netns_knows(tmp_path):
    """A bare name is a file beside the configuration, if it exists; else NetNamespace.find looks in
    /run/netns."""
    (tmp_path / "beside").write_text("")
    text = "nics: {a: {netns: beside}, b: {netns: ncweb}, c: {netns: /run/netns/x}, d: {netns: ./ncweb}}"
    config = parse_config(text, directory=str(tmp_path))
    found = {name: nic.netns for name, nic in config.nics.items()}
    assert found == {"a": f"{tmp_path}/beside", "b": "/run/netns/ncweb", "c": "/run/netns/x", "d": f"{tmp_path}/./ncweb"}

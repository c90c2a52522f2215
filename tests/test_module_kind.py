"""NICs of kind module: a module's engine is a port of the switch."""

import json
import shutil
import subprocess
from contextlib import suppress

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.utils import wrpcap

from dataplane.engine.virtual_time import VirtualTime
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx, PortTx
from tests.support.containers import Container
from tests.test_apply import element, frame, reached
from tests.test_command import TREE, VNIC, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import conserved, kill_worker, status
from vnic.config.load import parse_config
from vnic.config.written import written_config
from vnic.modules.engine_host import EngineHost
from vnic.modules.module import Module
from vnic.testing import VirtualNetwork

HERE, WEB = "02:00:00:00:00:09", "02:00:00:00:00:01"
NET = """
engines: {engines}
modules: [{{module: "examples.answering:Answering", nic: beacon, address: 10.0.0.9, mac: "02:00:00:00:00:09"}}]
nics:
  beacon: {{kind: module, mac: "02:00:00:00:00:09"}}
  web: {{mac: "02:00:00:00:00:01"}}
  db: {{}}
"""


@pytest.fixture(params=[1, 3])
def engines(request):
    return request.param


def asked(**fields):
    return Ether(src=WEB, dst=HERE) / IP(src="10.0.0.1", dst="10.0.0.9") / ICMP(**fields) / b"0123456789"


def test_a_module_s_engine_answers(engines):
    with VirtualNetwork(NET.format(engines=engines)) as net:
        net.send("web", Ether(src=WEB, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=WEB, psrc="10.0.0.1", pdst="10.0.0.9"))
        net.run()
        [answer] = net.take("web")
        assert (answer.packet[ARP].op, answer.packet[ARP].hwsrc, answer.packet[ARP].psrc) == (2, HERE, "10.0.0.9")
        for number in range(200):
            net.send("web", asked(id=number, seq=65535 - number))
        net.run()
        answers = net.take("web")
        assert [each.packet[ICMP].id for each in answers] == list(range(200))
        for number, each in enumerate(answers):
            wanted = (
                Ether(src=HERE, dst=WEB)
                / IP(src="10.0.0.9", dst="10.0.0.1", id=1)
                / ICMP(type=0, id=number, seq=65535 - number)
            )
            assert each.data[:14] == bytes(wanted)[:14] and each.data[34:42] == bytes(wanted / b"0123456789")[34:42]
        assert len(net.take("db")) == 1  # the ARP request; the switch has learnt the module's address at its NIC's port
        assert net._runtime.pool.in_use == 0 and net._runtime.status()["conserved"]


def test_what_is_sent_while_a_side_is_not_there_is_dropped(engines):
    text = NET.format(engines=engines)
    with VirtualNetwork(text.replace("nic: beacon", "nic: other")) as net:  # no module is behind beacon, no NIC is other
        net.send("web", asked())
        net.run()
        assert net.drops() == {"beacon.tx: link_down": 1}
        [nic] = [nic for nic in net._runtime.status()["nics"] if nic["name"] == "beacon"]
        assert nic["module"] is False and net._runtime.pool.in_use == 0


def test_the_nic_goes_and_returns(engines):
    text = NET.format(engines=engines)
    without = "\n".join(line for line in text.splitlines() if "kind: module" not in line)
    with VirtualNetwork(text) as net:
        net.send("web", asked())
        net.run()
        assert len(net.take("web")) == 1
        assert net.apply(without) == ["remove nic beacon"]
        net.send("web", asked())
        net.run()
        assert net.take("web") == [] and net._runtime.pool.in_use == 0
        assert net.apply(text) == ["add nic beacon"]
        net.send("web", asked())
        net.run()
        assert len(net.take("web")) == 1 and net._runtime.pool.in_use == 0


class Talks(Module):
    """Sends on what it receives, and refuses to start where it is told so."""

    def __init__(self, runtime, nic, fails=False):
        super().__init__(runtime, nic=nic, fails=fails)
        port = runtime.module_port(nic)
        receive = PortRx(port)
        receive >> PortTx(port)
        runtime.add_engine(f"{nic}-engine", make=EngineHost).load([receive])


def test_packets_in_the_rings_are_freed_with_the_nic():
    text = "modules: [{module: 'tests.test_module_kind:Talks', nic: m}]\nnics: {m: {kind: module}, a: {}}"
    with VirtualNetwork(text) as net:
        runtime = net._runtime
        nics, engine = runtime.nics, runtime.engines[1]
        net._time = VirtualTime(runtime.engines[:1])  # the module's engine stands still
        net.send("a", [frame(1)] * 20)
        net.run()
        assert runtime.pool.in_use == 20
        pair = nics.ports._pairs["m"]
        pair.from_module.push_many(pair.to_module.pop_many(12))  # as if it had sent them back, and the NIC's engine stood still
        nics.detach("m")
        assert runtime.pool.in_use == 8 and not pair.module.joined
        net._time = VirtualTime([engine])
        net.run()
        assert runtime.pool.in_use == 0
        net._time = VirtualTime(runtime.engines)
        assert {key: count for key, count in net.drops().items() if "link_down" in key} == {"m.module.tx: link_down": 8}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nics: {m: {kind: module, netns: /run/netns/x}}", "nics.m.netns: is not a setting of NICs of kind module"),
        ("nics: {m: {kind: module, queues: 2}}", "nics.m.queues: is not a setting of NICs of kind module"),
    ],
)
def test_settings_that_it_has_not_are_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_config(text)


def test_one_module_a_nic():
    modules = [{"module": "tests.test_module_kind:Talks", "nic": "m"}, {"module": "tests.test_module_kind:Talks", "nic": "m"}]
    text = json.dumps({"modules": modules})
    with pytest.raises(ConfigError, match="nic m: another module is behind it already"):
        VirtualNetwork(text)


def test_it_is_written_as_a_file_has_it():
    config = parse_config(
        "nics: {m: {kind: module, egress: {rate: 1mbit}, offloads: {checksum: false, tso: false, uso: false}}}"
    )
    found = written_config(config)
    assert set(found["nics"]["m"]) == {"kind", "mac", "egress", "ingress", "offloads", "malformed"}
    assert written_config(parse_config(json.dumps(found))) == found


def test_the_module_takes_the_offloads_that_are_configured():
    text = "modules: [{module: 'tests.test_module_kind:Talks', nic: m}]\nnics: {m: {kind: module%s}, a: {}}"
    for offloads, flags in (("", 31), (", offloads: {checksum: false, tso: false, uso: false}", 0)):
        with VirtualNetwork(text % offloads) as net:
            assert element(net, "m.tx").port.offloads == flags
            assert reached(net, "a", frame(1)) == "a"  # the module sends it back


def test_upgrade_and_crash(environment, tmp_path, leak_check):  # noqa: F811
    with Container() as box:
        config = {
            "engines": 2,
            "modules": [{"module": "examples.answering:Answering", "nic": "beacon", "address": "10.99.0.9", "mac": HERE}],
            "nics": {
                "beacon": {"kind": "module", "mac": HERE},
                "web": {"pid": box.pid, "interface": "eth0", "addresses": ["10.99.0.1/24"], "engine": 1},
            },
        }
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            ping(box, "10.99.0.9")
            assert {nic["name"]: nic.get("module") for nic in status(environment)["nics"]} == {"beacon": True, "web": None}
            vnic(environment, "upgrade")
            ping(box, "10.99.0.9")
            kill_worker(environment)
            ping(box, "10.99.0.9")
            vnic(environment, "detach", "beacon")
            vnic(environment, "apply", str(tmp_path / "net.yaml"))
            ping(box, "10.99.0.9")
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")


def test_in_a_replay_the_module_answers(tmp_path):
    """Captures are those of the other NICs, in the order of the file."""
    wrpcap(str(tmp_path / "in.pcap"), [asked(id=number) for number in range(5)])
    (tmp_path / "net.yaml").write_text(NET.format(engines=2).replace("examples.answering", "answering"))
    shutil.copy(TREE / "examples/answering.py", tmp_path)
    done = vnic_in(tmp_path, "replay", "in.pcap", "-c", "net.yaml", "-o", "out.pcapng", "--json")
    assert [(nic["name"], nic["transmitted"]) for nic in json.loads(done)["nics"]] == [("web", 5), ("db", 1)]
    refused = vnic_in(tmp_path, "replay", "--port", "beacon=in.pcap", "-c", "net.yaml", "-o", "out.pcapng", status=2)
    assert "port beacon: its module sends for this NIC; others are web, db" in refused
    done = vnic_in(tmp_path, "replay", "in.pcap", "-c", "net.yaml", "-o", "out.pcapng", "--split", "mac", "--json")
    assert [(nic["name"], nic["transmitted"]) for nic in json.loads(done)["nics"]] == [("web", 5), ("db", 1)]


def vnic_in(directory, *words, status=0):
    done = subprocess.run([*VNIC, *words], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + (done.stderr if status else "")

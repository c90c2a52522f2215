"""The losses of one seed are the same packets: with and without GSO, one by one and in batches, on one
and four engines, in virtual time, in a replay and live, and across an upgrade. Each case is compared
with the same reference, so all are equal."""

from __future__ import annotations

import hashlib

import pytest

import vnic
from shaping.loss_model import chain_of
from tests.support.capture_files import pcap
from tests.test_impairment import hit_below
from tests.wire_frames import ACK, Spec
from vnic.config.load import parse_config
from vnic.replay.session import Replay
from vnic.testing import AnyNetwork
from vnic.testing.measure import on_the_wire

SEED, COUNT, MSS = 42, 1320, 1460
SEGMENTS = 44  # of a GSO frame of nearly 64 KB
MODELS = {"random": "5%", "bursts": "{share: 5%, burst: 4}", "four states": "{p13: 5%, p31: 20%, p32: 10%, p23: 30%, p14: 2%}"}
NAME = "db.ingress.shape-pairs.shape-from-web"
START_NS = 10**18


def network(engines: int) -> str:
    return (
        f"engines: {engines}\n"
        "nics:\n"
        f"  web: {{mac: '02:00:00:00:00:01', engine: {engines - 1}}}\n"
        f"  db:\n    mac: '02:00:00:00:00:02'\n    engine: {engines // 2}\n"
    )


def policy(model: str) -> str:
    return f"version: 1\nseed: {SEED}\nlinks: {{web -> db: {{loss: {MODELS[model]}}}}}"


def stream(gso: bool) -> list[bytes]:
    """One TCP stream from web to db in frames of 44 segments, or in segments."""
    payload = b"".join(n.to_bytes(2, "big") * (MSS // 2) for n in range(COUNT))
    each = SEGMENTS * MSS if gso else MSS
    return [
        Spec(payload=payload[at : at + each], sequence=1 + at, identification=at // MSS, flags=ACK).build()
        for at in range(0, len(payload), each)
    ]


def wanted(model: str) -> set[int]:
    """The numbers of the packets that the seed, the element's name and the model lose."""
    from dataplane.config.load import parse_yaml

    key = int.from_bytes(hashlib.blake2b(f"{SEED}\0{NAME}\0loss".encode(), digest_size=8).digest(), "little")
    loss, _ = parse_yaml(MODELS[model], "model")
    found = hit_below(chain_of("loss", loss), key, COUNT)
    assert len(found) > 30
    return found


def to_web(net: AnyNetwork) -> None:
    """The switch learns where db is, so that nothing is flooded."""
    net.send("db", Spec().build()[6:12] + Spec().build()[:6] + b"\x88\xb5" + bytes(50))
    net.run()
    net.take("web")


def lost(net: AnyNetwork) -> set[int]:
    found = net.measured("web -> db")
    assert len(found.packets) == COUNT and found.duplicates == found.unknown == 0
    return set(found.lost)


def lost_of(net: AnyNetwork) -> set[int]:
    """Of the packets since the last change of the policy."""
    return set(net.measured("web -> db").lost)


@pytest.mark.parametrize("engines", [1, 4])
@pytest.mark.parametrize("gso", [False, True], ids=["segments", "gso"])
@pytest.mark.parametrize("model", MODELS)
def test_in_virtual_time_and_in_a_replay(vnic_network, tmp_path, model, gso, engines):
    frames = stream(gso)
    (tmp_path / "in.pcap").write_bytes(pcap([(START_NS, data) for data in frames], snaplen=1 << 17))
    net = vnic_network(network(engines), live=False)
    to_web(net)
    net.shape(policy(model))
    assert net.send_capture("web", tmp_path / "in.pcap") == len(frames)
    net.run()
    assert lost(net) == wanted(model)
    # a replay of the same capture
    section = policy(model).replace("version: 1\n", "shape:\n  ").replace("\nlinks", "\n  links")
    with Replay(parse_config(network(engines) + section, contained=False), {"web": tmp_path / "in.pcap"}) as session:
        session.run()
        [line] = session.results()["shape"]["lines"]
    assert line["kept"] and line["shares"]["loss"]["packets"] == len(wanted(model))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engines", [1, 4])
@pytest.mark.parametrize("gso", [False, True], ids=["segments", "gso"])
def test_one_by_one_and_in_batches(vnic_network, model, engines, gso):
    """A gap of 1 ns makes batches of one packet, no gap those of 32."""
    from dataplane.graph.offload import captured_frame
    from dataplane.ports.memory import Frame

    for gap in (0, 1):
        net = vnic_network(network(engines), live=False)
        to_web(net)
        net.shape(policy(model))
        for number, data in enumerate(stream(gso)):
            net._push(net.now_ns + gap * number, "web", Frame(*captured_frame(data, 1500)))
        net.run()
        assert lost(net) == wanted(model)


@pytest.mark.parametrize("change", ["cam -> db: {loss: 50%}, ", "any -> db: {delay: 1ms}, ", "web -> any: {duplicate: 0%}, "])
def test_other_lines_leave_the_losses_of_one_as_they_are(vnic_network, change):
    """Wherever they stand in the file, from the beginning or from the middle on."""
    for at in (0, COUNT // 2):
        net = vnic_network(network(1) + "  cam: {}\n", live=False)
        to_web(net)
        frames, before = stream(False), policy("bursts")
        net.shape(before)
        if at:
            net.send("web", frames[:at])
            net.run()
        first = lost_of(net)
        net.shape(before.replace("links: {", f"links: {{{change}"))
        net.send("web", frames[at:])
        net.run()
        assert first | {number + at for number in lost_of(net)} == wanted("bursts")


@pytest.mark.parametrize("model", MODELS)
def test_a_replay_writes_what_passes(tmp_path, model):
    """The packets themselves, not their number."""
    frames = stream(True)
    (tmp_path / "in.pcap").write_bytes(pcap([(START_NS, data) for data in frames], snaplen=1 << 17))
    section = policy(model).replace("version: 1\n", "shape:\n  ").replace("\nlinks", "\n  links")
    config = parse_config(network(2) + "    offloads: {checksum: false, tso: false, uso: false}\n" + section, contained=False)
    with Replay(config, {"web": tmp_path / "in.pcap"}, tmp_path / "out.pcapng") as session:
        session.run()
    from dataplane.capture.reader import CaptureReader

    reader = CaptureReader(tmp_path / "out.pcapng")
    written = [data for _, data, _, _ in reader]
    reader.close()
    gone = wanted(model)
    assert written == [data for n, data in enumerate(stream(False)) if n not in gone]


@pytest.mark.commands
@pytest.mark.parametrize(("gso", "engines"), [(False, 1), (True, 1), (False, 4), (True, 4)])
def test_live_and_across_an_upgrade(make_container, vnic_network, tmp_path, monkeypatch, gso, engines):
    make_container().close()
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("VNIC_RUNTIME_DIR", str(tmp_path / "run"))
    model, frames = "bursts", stream(gso)
    net = vnic_network(network(engines), live=True)
    to_web(net)
    net.shape(policy(model))
    half = len(frames) // 2
    for number, part in enumerate((frames[:half], frames[half:])):
        (tmp_path / f"{number}.pcap").write_bytes(pcap([(START_NS, data) for data in part], snaplen=1 << 17))
        net.send_capture("web", tmp_path / f"{number}.pcap")
        net.run()
        if number == 0:
            with vnic.Client(net.instance) as client:
                report = client.call("Upgrade")["report"]
            assert report
    assert lost(net) == wanted(model)


def test_the_reference_sees_the_same_packets():
    """What is sent with GSO is, on the wire, what is sent without."""
    from dataplane.graph.offload import captured_frame
    from dataplane.ports.memory import Frame

    whole = [each for data in stream(True) for each in on_the_wire(Frame(*captured_frame(data, 1500)))]
    assert whole == stream(False)

"""The last minute of a network: samples against what the network's counters say, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.errors import ConfigError
from tests.test_shape import frame
from vnic.runtime import recorder as recording
from vnic.runtime.recorder import BUSY_NS, PERIOD_NS, QUIET_PERIOD_NS, SAMPLES
from vnic.testing import VirtualNetwork

NICS = """
nics:
  web: {mac: '02:00:00:00:00:01', egress: {rate: 1mbit, queue: 20ms}}
  db: {mac: '02:00:00:00:00:02'}
  cam: {mac: '02:00:00:00:00:03'}
"""
POLICY = """
version: 1
links:
  web -> any: {rate: 800kbit, queue: {packets: 10}, delay: 5ms, loss: 10%, duplicate: 10%}
  web -> db: {delay: {mean: 20ms, jitter: 5ms}, corrupt: 10%}
"""


class Recorded:
    """A network in virtual time, of which a sample is taken each 100 ms."""

    def __init__(self, config: str = NICS) -> None:
        self.net = VirtualNetwork(config)
        self.recorder = self.net._runtime.recorder
        for nic, number in (("web", 1), ("db", 2), ("cam", 3)):  # the switch knows all addresses
            self.net.send(nic, frame(number, 9))
        self.net.run()
        self.take()

    def take(self) -> None:
        self.recorder.take(self.net._clock.now_ns)

    def go_on(self, samples: int = 1) -> None:
        for _ in range(samples):
            self.net.advance(PERIOD_NS)
            self.take()

    def series(self, *names: str, **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
        found = self.recorder.answer(names or None, **options)["series"]
        return {(each["name"], each.get("way", "")): each for each in found}


@pytest.fixture
def recorded():
    made = Recorded()
    yield made
    made.net.close()


def total(series: dict[str, Any], column: str) -> int:
    return sum(series.get(column, []))


def test_nothing_happens(recorded):
    assert recorded.recorder.answer()["times"] == []
    recorded.go_on(3)
    found = recorded.recorder.answer()
    assert found["begin"] == 1.0 and found["times"] == [1.1, 1.2, 1.3]
    assert [(each["name"], each["way"]) for each in found["series"]] == [
        (name, way) for name in ("web", "db", "cam") for way in ("egress", "ingress")
    ]  # fmt: skip
    assert all("packets" not in each for each in found["series"])


def test_what_happens_is_in_its_sample(recorded):
    recorded.go_on()
    recorded.net.send("web", [frame(1, 2, 500)] * 3, at=recorded.net.now_ns + 50_000_000)
    recorded.go_on(2)
    web, db = (recorded.series()[key] for key in (("web", "egress"), ("db", "ingress")))
    assert web["packets"] == [0, 3, 0] and web["bytes"] == [0, 1500, 0]
    # 4 ms each at 1 Mbit/s; the first one and the second, by the burst's credit, wait less
    assert web["sojourn_packets"] == [0, 3, 0] and 7_000_000 < web["sojourn_ns"][1] < 13_000_000
    assert db["packets"] == [0, 3, 0] and db["sojourn_ns"] == [0, 0, 0]
    assert web["queue_bytes"] == [0, 0, 0]
    recorded.net.send("web", [frame(1, 2, 500)] * 20)
    recorded.net.advance("1ms")
    recorded.take()  # a sample that is much too early is in the step of the one before
    web = recorded.series()["web", "egress"]
    assert len(web["packets"]) == 3 and web["packets"][-1] == 20
    assert web["queue_bytes"][-1] > 0 < web["drops"][-1]
    recorded.net.run()


def test_the_sums_are_those_of_the_counters(recorded):
    recorded.net.shape(POLICY)
    recorded.take()
    before = {nic["name"]: nic["queues"][0] for nic in recorded.net._runtime.stats()["nics"]}
    for _ in range(7):
        recorded.net.send("web", [frame(1, 2, 300)] * 40 + [frame(1, 3, 200)] * 20, gap="300us")
        recorded.go_on(3)
    recorded.net.run()
    recorded.take()
    stats = recorded.net._runtime.stats()
    elements = {each["name"]: each for engine in stats["engines"] for each in engine["elements"]}
    nics = {nic["name"]: nic["queues"][0] for nic in stats["nics"]}
    found = recorded.series()
    for name, way, verb in (("web", "egress", "rx"), ("db", "ingress", "tx"), ("cam", "ingress", "tx")):
        for column in ("packets", "bytes"):
            counter = f"{verb}_wire_{column}"
            assert total(found[name, way], column) == nics[name][counter] - before[name][counter] > 0
    all_of_web, to_db = found["web -> any", ""], found["web -> db", ""]
    assert all_of_web["asked"] == "rate 800kbit, queue {packets: 10}, delay 5ms, loss 10%, duplicate 10%"
    line, shape = elements["web.egress.shape-line"], elements["web.egress.shape"]
    for column, counter in (("packets", "delivered_packets"), ("bytes", "delivered_bytes"), ("lost", "lost"),
                            ("duplicated", "duplicated"), ("corrupted", "corrupted")):  # fmt: skip
        assert total(all_of_web, column) == shape["counters"][counter], column
    assert total(all_of_web, "lost") > 0 < total(all_of_web, "duplicated")
    for column in ("sent_bytes", "sojourn_ns"):
        assert total(all_of_web, column) == line["counters"][column] > 0
    assert total(all_of_web, "sojourn_packets") == line["counters"]["passed"] + line["counters"]["delayed"]
    assert total(all_of_web, "drops") == line["dropped"]["queue_full"] > 0
    pair = elements["db.ingress.shape-pairs.shape-from-web"]["counters"]
    assert total(to_db, "delay_ns") == pair["delay_ns"] and total(to_db, "delay_packets") == pair["delayed"]
    assert total(to_db, "packets") == pair["delivered_packets"] and total(to_db, "corrupted") == pair["corrupted"] > 0
    assert total(found["web", "egress"], "drops") == line["dropped"]["queue_full"]  # but not what is lost as asked


def test_an_element_of_the_user_s_with_the_policy_s_name(recorded):
    recorded.net.apply(NICS.replace("queue: 20ms", "queue: 20ms, elements: [{element: Counter, name: shape}]"))
    recorded.net.shape("version: 1\nlinks: {web -> any: {delay: 1ms}}")
    recorded.take()
    recorded.net.send("web", [frame(1, 2, 300)] * 2)
    recorded.go_on()
    line = recorded.series()["web -> any", ""]
    assert total(line, "packets") == total(line, "delay_packets") == 2


def test_lines_come_change_and_go(recorded):
    recorded.go_on()
    recorded.net.shape("version: 1\nlinks: {web -> db: {delay: 1ms}, web -> cam: {delay: 1ms}}")
    assert "web -> db" in {name for name, _ in recorded.series()}  # before the next sample
    recorded.net.send("web", [frame(1, 2)] * 3 + [frame(1, 3)] * 2)
    recorded.go_on()
    recorded.net.shape("version: 1\nlinks: {web -> db: {delay: 2ms}}")
    recorded.net.send("web", [frame(1, 2)] * 4)
    recorded.go_on()
    found = recorded.series()
    assert found["web -> db", ""]["packets"] == [0, 3, 4]  # the element stays, and what it has counted
    assert found["web -> db", ""]["asked"] == "delay 2ms" and "ended" not in found["web -> db", ""]
    gone = found["web -> cam", ""]
    assert gone["packets"] == [0, 2, 0] and gone["ended"] == 1.3
    recorded.net.shape("version: 1\nlinks: {web -> cam: {loss: 0%}}")  # it is back, with another element
    recorded.net.send("web", [frame(1, 3)] * 5)
    recorded.go_on()
    recorded.net.send("web", [frame(1, 3)] * 6)
    recorded.go_on()
    back = recorded.series()["web -> cam", ""]
    assert "ended" not in back and back["packets"] == [0, 2, 0, 5, 6]
    recorded.net.shape(None)
    recorded.go_on(SAMPLES + 1)
    assert [name for name, way in recorded.series() if not way] == []


def test_nics_come_and_go(recorded):
    recorded.net.send("web", [frame(1, 2)] * 3)
    recorded.go_on()
    recorded.net.apply(NICS.replace("1mbit", "2mbit").replace("cam:", "new:"))
    recorded.net.send("web", [frame(1, 2)] * 4)
    recorded.go_on()
    found = recorded.series()
    assert found["web", "egress"]["packets"] == [3, 4]
    assert "ended" in found["cam", "egress"] and "ended" not in found["new", "egress"]
    # another queue, and so another shaper, whose counters begin at 0: what it drops, it has dropped since
    recorded.net.send("web", [frame(1, 2)] * 100)
    recorded.go_on()
    dropped = recorded.series()["web", "egress"]["drops"]
    recorded.net.apply(NICS.replace("20ms", "5ms").replace("cam:", "new:"))
    recorded.net.send("web", [frame(1, 2)] * 20)
    recorded.go_on()
    drops = recorded.net.drops()["web.egress.rate: queue_full"]
    assert recorded.series()["web", "egress"]["drops"] == [*dropped, drops] and 0 < drops < dropped[-1]


CLASSES = """
      elements:
        - {element: Classifier, name: split, rules: [{source_mac: '02:00:00:00:00:01', mark: 1, gate: 0}], default: 0}
        - element: 'shaping.scheduler:Scheduler'
          name: tree
          classes: {rate: 100kbit, default: rest, tree: {gold: {tree: {voice: {mark: 1}, other: {}}}, rest: {}}}
"""


def test_classes():
    with_classes = NICS.replace("db: {mac: '02:00:00:00:00:02'}", f"db:\n    mac: '02:00:00:00:00:02'\n    ingress:{CLASSES}")
    recorded = Recorded(with_classes)
    element = "db.ingress.tree"

    def counted(name: str) -> int:
        snapshots = [dict(engine.snapshot()) for engine in recorded.net._runtime.engines]
        return next(each[element]["counters"][name] for each in snapshots if element in each)

    before, waited_ns = counted("sent_bytes"), counted("sojourn_ns")
    recorded.net.send("web", [frame(1, 2, 250)] * 3)
    recorded.net.send("cam", [frame(3, 2, 250)] * 2)
    recorded.go_on()
    found = {name: each for (name, way), each in recorded.series().items() if each["kind"] == "class"}
    assert list(found) == [element, *(f"{element}/{path}" for path in ("gold", "gold/voice", "gold/other", "rest"))]
    assert total(found[element], "bytes") == counted("sent_bytes") - before == 5 * 250
    assert total(found[f"{element}/gold"], "packets") == total(found[f"{element}/gold/voice"], "packets") == 3
    assert total(found[f"{element}/rest"], "packets") == 2 and "packets" not in found[f"{element}/gold/other"]
    assert total(found[element], "sojourn_ns") == counted("sojourn_ns") - waited_ns > 0
    assert list(recorded.series(f"{element}/gold")) == [
        (f"{element}/{path}", "") for path in ("gold", "gold/voice", "gold/other")
    ]
    tree = {"rate": "100kbit", "default": "rest", "tree": {"gold": {"mark": 1}, "rest": {}}}
    recorded.net._runtime.write_handler(element, "tree", tree)
    recorded.go_on()
    recorded.net.send("web", [frame(1, 2, 250)] * 4)
    recorded.go_on()
    found = recorded.series(f"{element}/gold")
    assert found[f"{element}/gold", ""]["packets"] == [3, 0, 4]
    assert "ended" in found[f"{element}/gold/voice", ""]
    recorded.net.run()
    recorded.net.close()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=14),
    st.integers(1, 8).map(lambda n: n * PERIOD_NS),
    st.integers(1, 20).map(lambda n: n * PERIOD_NS),
    st.data(),
)
def test_steps_have_what_their_samples_have(counts, step_ns, last_ns, data):
    """Samples that are up to 40 ms early or late."""
    recorded = Recorded()
    late = [data.draw(st.integers(-40, 40)) * 1_000_000 for _ in counts]
    for number, count in enumerate(counts):
        recorded.net.send("db", [frame(2, 1)] * count)
        recorded.net.run()
        recorded.recorder.take(10**9 + (number + 1) * PERIOD_NS + late[number])
    found = recorded.recorder.answer(["db"], last_ns=last_ns, step_ns=step_ns)
    ends = [10**9 + (number + 1) * PERIOD_NS + each for number, each in enumerate(late)]
    chosen = [(end, count) for end, count in zip(ends, counts, strict=True) if ends[-1] - end < last_ns - PERIOD_NS // 2]
    steps: dict[int, list[tuple[int, int]]] = {}
    for end, count in chosen:
        steps.setdefault((ends[-1] - end + PERIOD_NS // 2) // step_ns, []).append((end, count))
    [sent] = [each for each in found["series"] if each["way"] == "egress"]
    assert found["times"] == [round(each[-1][0] / 1e9, 3) for each in steps.values()]
    expected = [sum(count for _, count in each) for each in steps.values()]
    assert sent.get("packets", [0] * len(steps)) == expected
    recorded.net.close()


def test_at_most_a_minute_is_kept(recorded):
    for _ in range(SAMPLES + 50):
        recorded.go_on()
    found = recorded.recorder.answer()
    assert len(found["times"]) == SAMPLES and found["times"][-1] == pytest.approx(1 + (SAMPLES + 50) / 10)


def test_samples_are_longer_while_nothing_happens(recorded):
    """Time from each sample to the next one."""
    recorder, now_ns = recorded.recorder, recorded.net._clock.now_ns
    assert recorder.rest_ns(now_ns) == QUIET_PERIOD_NS  # nothing has happened yet
    assert recorder.rest_ns(now_ns + 2 * QUIET_PERIOD_NS) < 0
    recorded.net.send("web", frame(1, 2))
    recorded.go_on()
    now_ns = recorded.net._clock.now_ns
    for _ in range(BUSY_NS // PERIOD_NS):
        assert recorder.rest_ns(now_ns) == PERIOD_NS
        now_ns += PERIOD_NS
        recorder.take(now_ns)
    now_ns += PERIOD_NS
    recorder.take(now_ns)
    assert recorder.rest_ns(now_ns) == QUIET_PERIOD_NS
    before = len(recorder.answer()["times"])
    recorder.asked(now_ns + PERIOD_NS - 1)  # too soon for another sample
    assert len(recorder.answer()["times"]) == before and recorder.rest_ns(now_ns) == PERIOD_NS
    recorder.asked(now_ns + PERIOD_NS)
    assert len(recorder.answer()["times"]) == before + 1


def test_a_question_comes_first():
    """Before any sample: what follows is what the first answer begins with."""
    with VirtualNetwork(NICS) as net:
        recorder = net._runtime.recorder
        assert recorder.rest_ns(5) == 0 and recorder.answer()["series"] == []
        recorder.asked(10**9)
        assert len(recorder.answer()["series"]) == 6


def test_a_bound_on_memory(recorded, monkeypatch):
    """What is kept of busy series is bounded: the oldest samples go first."""
    monkeypatch.setattr(recording, "BYTES_MOST", 112 * 10)
    for _ in range(20):
        recorded.net.send("db", [frame(2, 1)])
        recorded.go_on()
    found = recorded.recorder.answer(["db"])
    assert len(found["times"]) < 20 and found["series"][0]["packets"][-1] == 1


def test_what_is_asked_wrongly(recorded):
    recorded.go_on(2)
    with pytest.raises(ConfigError, match="there is no NIC, line or class wep; did you mean 'web'") as caught:
        recorded.recorder.answer(["web", "wep"])
    assert caught.value.code == "not-found"
    with pytest.raises(ConfigError, match="nothing is recorded"):
        recorded.recorder.answer(["web"], visible=lambda series: False)


def test_an_answer_is_bounded(recorded, monkeypatch):
    monkeypatch.setattr(recording, "ANSWER_MOST", 10)
    recorded.net.send("web", [frame(1, 2)] * 3)
    recorded.go_on(8)
    with pytest.raises(ConfigError, match="more than 1 series of 8 steps are too many") as caught:
        recorded.recorder.answer()
    assert caught.value.code == "limit"
    assert recorded.recorder.answer(["web"])["series"][0]["packets"][0] == 3
    assert recorded.recorder.answer(step_ns=2 * PERIOD_NS)["series"][0]["packets"] == [3, 0, 0, 0]


def test_a_change_under_way_is_seen_with_the_next_sample(recorded):
    """Control does not wait for a change that another thread makes."""
    import threading

    held, done = threading.Event(), threading.Event()

    def hold():
        with recorded.net._runtime.lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    recorded.net._runtime._stored += 1
    thread.start()
    held.wait(60)
    recorded.net.send("web", [frame(1, 2)])
    recorded.go_on()
    done.set()
    thread.join()
    assert recorded.recorder._seen != recorded.net._runtime.changes
    recorded.go_on()
    assert recorded.recorder._seen == recorded.net._runtime.changes
    assert recorded.series("web")["web", "egress"]["packets"] == [1, 0]

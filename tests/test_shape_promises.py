"""`vnic shape show --promises` and `--watch`: what is kept, what is broken, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from shaping.class_settings import ClassSetting, QueueSettings
from shaping.policy.load import convert_policy
from shaping.policy.places import plan_of
from tests.test_plot import FakeClient
from tests.test_recorder import NICS, Recorded, frame
from vnic.cli import shape_show
from vnic.cli.main import cli
from vnic.cli.shape_classes import classes_by_name
from vnic.cli.shape_promises import Measured, Promise, judged, judged_class, promises_of
from vnic.cli.shape_report import asked_at
from vnic.config.shape import network_of
from vnic.modules.lines import policy_elements
from vnic.runtime.policy_methods import PolicyMethods, ShapeStatus

FREE = NICS.replace(", egress: {rate: 1mbit, queue: 20ms}", "")


class Shaped(Recorded):
    """A network whose lines have a policy; the FakeClient answers History, GetConfig and Stats."""

    def __init__(self, links: str) -> None:
        super().__init__(FREE)
        self.shape(links)
        self.go_on()

    def shape(self, links: str) -> None:
        self.net.shape(f"version: 1\nlinks: {links}")

    def send(self, count: int, gap: str, source: str = "web", size: int = 600) -> None:
        sender, target = {"web": (1, 2), "db": (2, 1)}[source]
        self.net.send(source, [frame(sender, target, size)] * count, gap=gap)

    def promises(self) -> dict[tuple[str, str], Promise]:
        config = self.net._runtime.config
        asked = asked_at(config.shape, network_of(config), self.net.now_ns)
        found = promises_of(FakeClient(self.recorder), asked.lines, classes_by_name(asked.classes))
        return {(each.line, each.promise): each for each in found}

    def close(self) -> None:
        self.net.run()
        self.net.close()


@pytest.fixture
def recorded_classes():
    made = Shaped("{}")
    made.net.shape(CLASSES)
    made.go_on()
    yield made
    made.close()


@pytest.fixture
def shaped():
    made: list[Shaped] = []

    def make(links: str) -> Shaped:
        made.append(Shaped(links))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_rate_with_packets_waiting_and_without(shaped):
    net = shaped("{web -> any: {rate: 1mbit, queue: 100ms}, db -> any: {rate: 1mbit}}")
    found = net.promises()["web -> any", "rate"]
    assert found.kept is None and found.reason == "no packets yet" and found.asked == "1mbit"
    net.send(1000, "3ms")  # 1.6 Mbit/s
    net.send(100, "30ms", "db")
    net.go_on(29)
    found = net.promises()
    busy, idle = found["web -> any", "rate"], found["db -> any", "rate"]
    assert busy.kept and busy.reason.startswith("packets waited 9")
    assert idle.kept and 150 < float(idle.measured.split()[0]) < 165 and idle.reason == "the sender sends less"


def test_delays_losses_and_order(shaped):
    net = shaped("{web -> db: {delay: {mean: 20ms, jitter: 5ms}, loss: {share: 10%, burst: 2}, duplicate: 5%, corrupt: 5%},"
                 " db -> any: {delay: 7ms, reorder: 10%}}")  # fmt: skip
    net.send(4000, "1ms")
    net.send(400, "1ms", "db")
    net.go_on(42)
    found = net.promises()
    assert [promise for line, promise in found if line == "web -> db"] == ["delay", "loss", "duplicate", "corrupt", "order"]
    assert all(each.kept for each in found.values()), found
    assert found["db -> any", "delay"].measured == "7 ms on average" and found["db -> any", "delay"].reason == "400 packets"
    loss = found["web -> db", "loss"]
    assert 8 < float(loss.measured.split()[0]) < 12 and loss.reason.endswith("of 4000 packets")
    order = found["web -> db", "order"]
    assert (order.asked, order.measured, order.reason) == ("keep", "0 overtaken", "each packet waits for those before it")


def test_a_new_setting_is_judged_from_then_on(shaped):
    net = shaped("{web -> db: {delay: 20ms, loss: 0%}}")
    net.send(100, "1ms")
    net.go_on(3)
    assert net.promises()["web -> db", "delay"].measured == "20 ms on average"
    net.shape("{web -> db: {delay: 2ms, loss: 100%}}")
    found = net.promises()["web -> db", "delay"]
    assert found.kept is None and found.reason == "no packets yet"
    net.go_on()
    net.send(100, "1ms")
    net.go_on(3)
    assert net.promises()["web -> db", "loss"].measured == "100 %"
    net.shape("{web -> db: {delay: 2ms, loss: 0%}}")
    net.send(10, "1ms")  # within the sample in which the setting changed: not judged
    net.go_on()
    assert net.promises()["web -> db", "delay"].kept is None
    net.send(20, "1ms")
    net.go_on()
    found = net.promises()
    assert found["web -> db", "delay"].measured == "2 ms on average" and found["web -> db", "loss"].reason == "0 of 20 packets"


def test_a_pool_that_is_too_small_breaks_promises(shaped):
    net = shaped("{web -> db: {delay: 5s}}")
    for _ in range(5):
        net.send(1000, "100us", size=100)
        net.go_on()
    found = net.promises()["web -> db", "delay"]
    assert not found.kept and found.reason == "904 packets dropped for want of buffers: a larger pool: helps"


def test_a_constant_delay_behind_a_rate(shaped):
    net = shaped("{web -> any: {rate: 10mbit, delay: 5ms}}")
    assert net.promises()["web -> any", "delay"].kept is None
    net.send(3, "1ms")
    net.go_on()
    found = net.promises()["web -> any", "delay"]
    assert found.kept and found.measured == "-" and found.reason == "each packet takes it behind the rate"


# -- broken ones, of made-up records ---------------------------------------------------------------


def one(links: str, promise: str, seconds: float = 0.1, since: float = 0.0, **columns: list[int]) -> Promise:
    config = convert_policy({"version": 1, "links": {"web -> db": links}})
    from shaping.policy.network import Network

    network = Network({"web": "02:00:00:00:00:01", "db": "02:00:00:00:00:02"})
    [line] = plan_of(config, network).lines.values()
    count = max(map(len, columns.values()))
    bounds = [seconds * number for number in range(count + 1)]
    measured = Measured({"since": since, **columns}, bounds)
    return next(each for each in judged(line, measured) if each.promise == promise)


def test_a_rate_that_is_exceeded_or_not_reached():
    rate: Any = {"rate": "8mbit"}  # 100 kB in a sample
    found = one(rate, "rate", sent_bytes=[100_000] * 10 + [120_000] * 10, queue_bytes=[0] * 20)
    assert found.kept is False and found.reason == "9.6 Mbit/s in 1 s"
    assert one(rate, "rate", sent_bytes=[100_000] * 9 + [190_000], queue_bytes=[0] * 10).kept  # a late engine catches up
    found = one(rate, "rate", sent_bytes=[101_000] * 600, queue_bytes=[0] * 600)
    assert found.kept is False and found.reason == "8.08 Mbit/s in 60 s"
    found = one(rate, "rate", sent_bytes=[80_000] * 20, queue_bytes=[5000] * 20)
    assert found.kept is False and found.reason == "packets waited for 1.9 s, and 6.4 Mbit/s was sent"
    assert one(rate, "rate", sent_bytes=[80_000] * 20, queue_bytes=[5000, 0] * 10).kept
    assert one(rate, "rate", sent_bytes=[100_000] * 10, queue_bytes=[5000] * 10).reason == "packets waited 90 % of the time"


def test_shares_outside_of_their_bounds():
    loss: Any = {"loss": "1%"}
    assert one(loss, "loss", arrived=[100_000], lost=[1000]).kept
    for lost, kept in ((0, False), (800, False), (1200, False), (950, True)):
        found = one(loss, "loss", arrived=[100_000], lost=[lost])
        assert found.kept is kept
        assert kept or found.reason.startswith(f"{lost} of 100000 packets, expected 8")
    assert one({"loss": "0%"}, "loss", arrived=[10], lost=[0]).kept
    assert not one({"loss": "0%"}, "loss", arrived=[10], lost=[1]).kept
    corrupt: Any = {"corrupt": "10%"}
    assert one(corrupt, "corrupt", arrived=[10_000], corrupted=[0]).kept
    assert not one(corrupt, "corrupt", arrived=[10_000], corrupted=[1200]).kept
    assert not one({"duplicate": "10%"}, "duplicate", arrived=[10_000], duplicated=[0]).kept


def test_delays_outside_of_their_bounds():
    assert one({"delay": "1ms"}, "delay", delay_ns=[2_000_000], delay_packets=[2]).kept
    assert not one({"delay": "1ms"}, "delay", delay_ns=[2_000_100], delay_packets=[2]).kept
    jitter: Any = {"delay": {"mean": "10ms", "jitter": "2ms", "order": "any"}}
    assert one(jitter, "delay", delay_ns=[10_010_000 * 10_000], delay_packets=[10_000]).kept
    for mean in (9_900_000, 10_100_000):
        found = one(jitter, "delay", delay_ns=[mean * 10_000], delay_packets=[10_000])
        assert found.kept is False and found.reason.startswith("expected 10ms within 0.05")
    kept: Any = {"delay": {"mean": "10ms", "jitter": "2ms"}}
    found = one(kept, "delay", delay_ns=[11_000_000 * 10_000], delay_packets=[10_000])
    assert found.kept and "longer" in found.reason
    found = one(jitter, "order", delay_ns=[10**7], delay_packets=[1])
    assert (found.asked, found.kept, found.reason) == ("any", True, "packets may overtake each other")


def test_a_line_that_is_not_recorded_yet():
    found = one({"loss": "1%"}, "loss", arrived=[])
    assert found.kept is None and found.reason == "no packets yet"
    config = convert_policy({"version": 1, "links": {"web -> db": {"loss": "1%"}}})
    from shaping.policy.network import Network

    [line] = plan_of(config, Network({"web": "02:00:00:00:00:01", "db": "02:00:00:00:00:02"})).lines.values()
    [found] = judged(line, Measured(None, []))
    assert found.kept is None and found.reason == "nothing is recorded of it yet"


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=20), st.floats(0, 3))
def test_samples_before_a_change_do_not_count(counts, since):
    bounds = [0.1 * number for number in range(len(counts) + 1)]
    measured = Measured({"since": since, "lost": counts}, bounds)
    expected = [each for each, begin in zip(counts, bounds, strict=False) if begin >= since - 1e-3]
    assert measured.column("lost") == expected and measured.sum("lost") == sum(expected)
    assert measured.seconds == pytest.approx(0.1 * len(expected))


CLASSES = """
version: 1
classes:
  web.egress:
    rate: 1mbit
    default: rest
    tree:
      gold: {match: {destination_port: 9}, guarantee: 700kbit, ceiling: 800kbit}
      rest: {guarantee: 100kbit}
"""


def test_ceilings_and_guarantees_of_classes(recorded_classes):
    net = recorded_classes
    names = ["web.egress", "web.egress/gold", "web.egress/rest"]
    assert {key: each.kept for key, each in net.promises().items()} == {
        (names[0], "ceiling"): None, (names[1], "ceiling"): None, (names[1], "guarantee"): None,
        (names[2], "ceiling"): None, (names[2], "guarantee"): None,
    }  # fmt: skip
    net.send(1500, "2ms")  # 2.5 Mbit/s of `rest`
    net.go_on(29)
    found = net.promises()
    assert all(each.kept for key, each in found.items() if key[0] != names[1])
    assert found[names[2], "guarantee"].measured.startswith("9")  # all that is left over: 970 kbit/s
    assert found[names[2], "guarantee"].reason.startswith("packets waited")
    # what was recorded before the settings changed does not count
    net.net.shape(CLASSES.replace("1mbit", "600kbit").replace("700kbit", "400kbit"))
    net.go_on(2)
    assert net.promises()[names[0], "ceiling"].kept


def test_a_class_beyond_its_ceiling_and_below_its_guarantee():
    bounds = [0.1 * number for number in range(51)]
    series = {"since": 0.0, "bytes": [12_000] * 50, "queue_bytes": [1000] * 50}  # 960 kbit/s
    setting = ClassSetting("gold", 0, guarantee_bps=2_000_000, effective_bps=500_000, queue=QueueSettings("fifo"))
    ceiling, guarantee = judged_class("web.egress/gold", setting, Measured(series, bounds))
    assert ceiling.kept is False and ceiling.reason == "960 kbit/s in 1 s"
    assert guarantee.kept is False and guarantee.reason == "packets waited for 4.9 s, and 960 kbit/s was sent"
    idle = {**series, "queue_bytes": [0] * 50}
    _, guarantee = judged_class("web.egress/gold", setting, Measured(idle, bounds))
    assert guarantee.kept and guarantee.reason == "the sender sends less"
    [ceiling] = judged_class("web.egress", setting._replace(queue=None), Measured(series, bounds))
    assert ceiling.promise == "ceiling"


# -- the command -----------------------------------------------------------------------------------


class Client(FakeClient):
    """Also answers ShapeStatus, Status, ReadHandler and Stats. `turns` looks at the counters, and
    Ctrl-C is pressed."""

    def __init__(self, net: Shaped, turns: int = 100) -> None:
        super().__init__(net.recorder)
        self.net, self.turns = net, turns

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        runtime = self.net.net._runtime
        if method == "ShapeStatus":
            return PolicyMethods(runtime)._status(ShapeStatus(**parameters), None)
        if method == "Status":
            return {"status": {"shares": []}}
        if method == "ReadHandler":
            return runtime.handlers.read(**parameters)
        self.turns -= 1
        if self.turns < 0:
            raise KeyboardInterrupt
        if method == "Stats":
            self.net.send(10, "1ms")
            self.net.net.advance("20ms")
            return {"stats": runtime.stats()}
        return super().call(method, **parameters)


def show(monkeypatch, client: Client, *words: str) -> Any:
    monkeypatch.setattr(shape_show, "connect", lambda instance: client)
    return CliRunner().invoke(cli, ["shape", "show", *words])


def test_show_once_and_again_and_again(shaped, monkeypatch):
    net = shaped("{web -> any: {rate: 10mbit, delay: 5ms}}")
    once = show(monkeypatch, Client(net), "--over", "1ms", "--json")
    assert once.exit_code == 0
    [line] = json.loads(once.output)["lines"]
    assert line["line"] == "web -> any" and line["kept"] == "yes" and line["packets"] > 0
    done = show(monkeypatch, Client(net, turns=4), "--watch", "1ms", "--json")
    assert done.exit_code == 0
    lines = [json.loads(each) for each in done.output.splitlines()]
    assert len(lines) == 3 and all(each["time"] and each["lines"][0]["packets"] for each in lines)
    text = show(monkeypatch, Client(net, turns=3), "--watch", "1ms")
    assert text.output.count("kept?") == 2 and "\033" not in text.output
    net.net.shape(None)
    assert show(monkeypatch, Client(net), "--over", "1ms").output == "no policy\n"
    assert show(monkeypatch, Client(net), "--promises").output == "no policy\n"
    found = json.loads(show(monkeypatch, Client(net), "--over", "1ms", "--json").output)
    assert (found["lines"], found["left"]) == ([], [])


def test_show_promises(shaped, monkeypatch):
    net = shaped("{web -> any: {rate: 10mbit, delay: 5ms, loss: 50%}}")
    net.send(50, "1ms")
    net.go_on()
    found = json.loads(show(monkeypatch, Client(net), "--promises", "--json").output)
    assert [(each["promise"], each["asked"], each["kept"]) for each in found["promises"]] == [
        ("rate", "10mbit", True), ("delay", "5ms", True), ("loss", "50%", True),
    ]  # fmt: skip
    text = show(monkeypatch, Client(net), "--promises").output
    assert text.count("web -> any") == 1 and "yes" in text and "of 50 packets" in text
    again = show(monkeypatch, Client(net, turns=2), "--promises", "--watch", "1ms", "--json")
    assert len(again.output.splitlines()) == 2


@pytest.mark.parametrize("words", [["--watch", "5"], ["--over", "0s"], ["--watch", "1us"]])
def test_mistakes_are_one_line(words):
    done = CliRunner().invoke(cli, ["shape", "show", *words])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1


# -- what varies -----------------------------------------------------------------------------------


def test_what_a_scenario_changes_is_measured_and_not_judged(shaped):
    """Samples before the step have the value before it."""
    net = shaped("{}")
    net.net.shape(
        "version: 1\nlinks: {web -> any: {rate: 10mbit, delay: 1ms, loss: 0%}, db -> any: {delay: 1ms, loss: 0%}}\n"
        "scenario:\n- {at: 1500ms, set: {web -> any: {rate: 1mbit}}}\n- {at: 1500ms, set: {db: {loss: 50%, delay: 4ms}}}"
    )
    net.go_on()
    net.send(500, "4ms", size=1000)  # 2 Mbit/s
    net.send(500, "4ms", source="db")
    for _ in range(25):
        net.go_on()
    found = net.promises()
    assert {key: each.reason for key, each in found.items() if each.kept is None} == dict.fromkeys(
        [("web -> any", "rate"), ("db -> any", "delay"), ("db -> any", "loss"), ("any -> db", "delay"), ("any -> db", "loss")],
        "the scenario changes it",
    )
    assert found["web -> any", "rate"].measured.endswith("Mbit/s") and found["web -> any", "delay"].kept
    assert [each["rate_bps"] for each in net.recorder.answer(["web -> any"])["series"]] == [10**6]  # as it is now


def test_a_trace_has_no_rate_to_judge(shaped):
    net = shaped("{web -> any: {trace: [{for: 1s, rate: 2mbit}, {for: 1s, rate: 0.5mbit}], delay: 1ms}}")
    net.send(500, "4ms", size=1000)
    for _ in range(20):
        net.go_on()
    found = net.promises()
    assert found["web -> any", "trace"].kept is None and found["web -> any", "trace"].reason == "it is that of the trace"
    assert found["web -> any", "trace"].asked == "steps" and found["web -> any", "delay"].kept


def test_a_rate_of_a_share_is_not_judged(shaped):
    net = shaped("{}")
    net.net.shape("version: 1\nshares: {up: {capacity: 2mbit, web: {weight: 1}, db: {weight: 1}}}")
    net.go_on()
    net.send(200, "4ms", size=1000)
    for _ in range(8):
        net.go_on()
    found = net.promises()["web -> any", "rate"]
    assert found.kept is None and found.reason == "it changes with what the others of the share send"


def test_nothing_is_left_of_a_policy_though_a_user_s_element_has_such_a_name(shaped):
    net = shaped("{web -> db: {delay: 1ms}, web -> any: {rate: 1mbit}}")
    net.net.apply(FREE.replace("web: {", "web: {egress: {elements: [{element: Counter, name: shape}]}, "))
    methods = PolicyMethods(net.net._runtime)
    assert methods._status(ShapeStatus(whole=True), None)["status"]["left"] == []
    assert policy_elements(net.net._runtime.nics.attached, {}) == []
    net.shape("{web -> db: {delay: 1ms}}")
    assert policy_elements(net.net._runtime.nics.attached, {}) == [
        "db.ingress.shape-pairs",
        "db.ingress.shape-pairs.shape-from-web",
    ]
    net.net.shape(None)
    assert methods._status(ShapeStatus(whole=True), None)["status"]["left"] == []


def test_promises_of_many_lines_are_asked_for_together(shaped):
    net = shaped("{}")
    net.net.shape(
        "version: 1\nclasses:\n  web.egress: {rate: 100mbit, default: c0, tree: {"
        + ", ".join(f"c{n}: {{guarantee: 100kbit}}" for n in range(300)) + "}}"
    )  # fmt: skip
    net.go_on()
    net.send(20, "1ms")
    net.go_on()
    client = FakeClient(net.recorder)
    config = net.net._runtime.config
    found = promises_of(client, [], classes_by_name(convert_policy(config.shape).classes))
    assert len(client.calls) == 5 and len(found) == 601
    ceiling = next(each for each in found if (each.line, each.promise) == ("web.egress", "ceiling"))
    assert ceiling.kept and ceiling.measured != "-"

"""Hand-over of engines: a run with hand-overs equals the run without, byte for byte and nanosecond
for nanosecond."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dataplane.capture.reader import CaptureReader
from dataplane.elements.counter import Discard
from dataplane.elements.mirror import Mirror
from dataplane.engine import handover
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handover import PREFIX, forget_engine, load_engine, save_engine
from dataplane.engine.running import advance, start
from dataplane.errors import VnicError
from dataplane.graph.element import Element, PyElement
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.shaper import Shaper
from tests.handover_twin import MBIT, Pair, Seen, busy, contents, entry, finish, packed
from tests.test_shared_memory import free_list

ROOT = Path(__file__).parent.parent
RATE = st.sampled_from([20_000, 333_333, 10 * MBIT, None, 977 * MBIT])
SEND = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 1), st.sampled_from([0, 46, 500, 1400]), st.integers(1, 40), st.just(0)),
    # 30,000 bytes in segments of 60 are more segments than a batch holds: the shaper keeps the
    # frame while it segments it.
    st.tuples(
        st.just("send"), st.integers(0, 1), st.sampled_from([4000, 30_000]), st.integers(1, 3), st.sampled_from([60, 1400])
    ),
)
RUN = st.tuples(st.just("run"), st.sampled_from([0, 1, 999, 123_457, 10**7, 10**9]), st.sampled_from([3, 3, 3, 2, 1, 0]))
SET_RATE = st.tuples(st.just("set_rate"), st.integers(0, 1), st.sampled_from(["egress", "ingress"]), RATE)
HAND_OVER = st.tuples(st.just("hand_over"), st.integers(0, 1))
PREPARE = st.tuples(st.just("prepare"), st.integers(0, 1))
ROUND = st.tuples(SEND, RUN, st.one_of(SEND, RUN, SET_RATE, HAND_OVER, PREPARE), st.one_of(RUN, PREPARE), HAND_OVER)


def play(steps: list[tuple[Any, ...]], rates: tuple[int | None, ...], *, with_handovers: bool) -> tuple[list[Any], Pair]:
    pair = Pair(rates[:2], rates[2:])
    books = []
    for name, *arguments in steps:
        if name not in ("prepare", "hand_over") or with_handovers:
            getattr(pair, name)(*arguments)
        books.append(pair.books())
    pair.run(10**6, 3)
    return [*books, pair.books(), pair.table.entries(now_ns=pair.clock.now_ns), pair.out], pair


@settings(max_examples=120, deadline=None)
@given(rounds=st.lists(ROUND, min_size=1, max_size=6), rates=st.tuples(RATE, RATE, RATE, RATE))
def test_nobody_can_tell_that_engines_were_handed_over(rounds, rates):
    steps = [step for steps in rounds for step in steps]
    expected, plain = play(steps, rates, with_handovers=False)
    found, handed = play(steps, rates, with_handovers=True)
    assert found == expected
    states = [msgspec.msgpack.decode(data[PREFIX.size :]) for data in handed.handed_over]
    elements = [element for state in states for element in state["elements"]]
    event(f"held: {any(element['statistics']['held'] for element in elements)}")
    event(f"being cut: {any(element['state'].get('split') for element in elements)}")
    plain.close()
    handed.close()


def test_the_scenario_holds_what_it_should():
    pair = busy()
    state = pair.homes[0].elements["a.egress"].save_state()
    assert len(state["packets"]) > 10
    assert state["split"] is not None
    assert len(pair.homes[1].elements["b.ingress"].save_state()["packets"]) > 5
    pair.close()


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    return finish(busy())


def test_saving_changes_nothing(undisturbed):
    pair = busy()
    for home in pair.homes:
        assert save_engine(home.engine) == save_engine(home.engine)
    assert finish(pair) == undisturbed


def test_both_engines_one_after_the_other_and_back_again(undisturbed):
    pair = busy()
    for number in (0, 1, 0, 1):
        pair.hand_over(number)
    assert finish(pair) == undisturbed


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("step", ["save", "damaged", "load", "loaded"])
def test_a_failure_before_the_point_of_no_return_leaves_the_old_engine_as_it_was(undisturbed, number: int, step: str):
    pair = busy()
    old, new = pair.homes[number], pair.build(number)
    seen = "ab"[number] + ".seen"
    before = new.engine.snapshot(), save_engine(new.engine)
    if step == "save":
        old.elements[seen].fails = "save"  # type: ignore[attr-defined]
        with pytest.raises(VnicError, match=f"^{seen}: save_state failed: RuntimeError: no way$"):
            save_engine(old.engine)
    else:
        data = save_engine(old.engine)
        if step == "damaged":
            with pytest.raises(VnicError):
                load_engine(new.engine, data[:-1])
        elif step == "load":
            new.elements[seen].fails = "load"  # type: ignore[attr-defined]
            with pytest.raises(VnicError, match=f"^{seen}: load_state failed: KeyError"):
                load_engine(new.engine, data)
        else:
            load_engine(new.engine, data)
            forget_engine(new.engine)  # the engine that does not go on must forget its state
        if step != "loaded":
            assert (new.engine.snapshot(), save_engine(new.engine)) == before, "the new engine is not as fresh as it was"
    new.engine.close()
    assert finish(pair) == undisturbed


def test_only_what_has_changed_is_sent_at_the_end(undisturbed):
    pair = busy()
    pair.prepare(0)
    pair.prepare(1)
    everything = {element["name"] for element in contents(save_engine(pair.homes[0].engine))["elements"]}
    # nothing has passed since: what holds packets, what is in Python, and the switch's timer
    pair.hand_over(0)
    sent = {element["name"] for element in contents(pair.handed_over[-1])["elements"]}
    assert {"a.egress", "a.seen"} <= sent < everything
    assert not sent & {"a.rx", "a.parse", "a.split", "a.0", "a.1", "a.2", "a.tx"}
    pair.hand_over(1)
    assert finish(pair) == undisturbed


def test_a_part_without_the_rest_is_refused():
    pair = busy()
    pair.prepare(0)
    _, loading, marks = pair.prepared[0]
    content = contents(save_engine(pair.homes[0].engine, marks))
    content["elements"] = [element for element in content["elements"] if element["name"] != "a.seen"]
    with pytest.raises(VnicError, match="^engine a: its state is of another graph: a.seen only here$"):
        loading.finish(packed(content))
    with pytest.raises(VnicError, match="^engine a: a part of its state has packets"):
        loading.part(save_engine(pair.homes[0].engine))
    pair.close()


def test_a_second_attempt_succeeds(undisturbed):
    pair = busy()
    old, new = pair.homes[0], pair.build(0)
    data = save_engine(old.engine)
    new.elements["a.seen"].fails = "load"  # type: ignore[attr-defined]
    with pytest.raises(VnicError):
        load_engine(new.engine, data)
    new.elements["a.seen"].fails = None  # type: ignore[attr-defined]
    load_engine(new.engine, data)
    forget_engine(old.engine)
    old.engine.close()
    pair.homes[0] = new
    assert finish(pair) == undisturbed


def test_forgetting_returns_free_packets_to_the_pool():
    pool = PacketPool(64, 2)
    engine = Engine("e", pool, clock=Clock(virtual=True))
    port, other = MemoryPort("m"), MemoryPort("n")
    rx = PortRx(port)
    _ = rx >> Shaper(1000, queue="10s", name="slow") >> PortTx(other)
    engine.load([rx])
    port.inject([bytes(100)] * 10)
    advance(engine, 0)
    assert pool.in_use == 9
    assert len(free_list(pool, "small")) < 64 - 9  # the engine has some more in its cache
    forget_engine(engine)
    assert pool.in_use == 9
    assert len(free_list(pool, "small")) == 64 - 9
    engine.close()
    assert pool.in_use == 9


OTHER_PROCESS = """
import pickle, sys
from dataplane.engine.handover import forget_engine, load_engine
from tests.handover_twin import Pair, RATES, finish
now_ns, *segments = map(int, sys.argv[1:])
pair = Pair(*RATES, segments=segments, start_ns=now_ns)
states, pair.incoming = pickle.load(sys.stdin.buffer)
for home, state in zip(pair.homes, states):
    load_engine(home.engine, state)
print("loaded", flush=True)
if not sys.stdin.buffer.read(1):
    sys.exit()                     # the other side goes on; what a process holds is not freed by its end
pickle.dump(finish(pair), sys.stdout.buffer)
"""


@pytest.mark.parametrize("goes_on", ["here", "there"])
def test_another_process_takes_over(undisturbed, goes_on: str):
    pair = busy()
    segments = pair.segments
    command = [sys.executable, "-c", OTHER_PROCESS, str(pair.clock.now_ns), *map(str, segments)]
    with subprocess.Popen(command, pass_fds=segments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        pickle.dump(([save_engine(home.engine) for home in pair.homes], pair.incoming), child.stdin)
        child.stdin.flush()
        assert child.stdout.readline() == b"loaded\n"
        if goes_on == "here":
            child.stdin.close()
            assert child.wait() == 0
            assert finish(pair) == undisturbed
            return
        for home in pair.homes:
            forget_engine(home.engine)
            home.engine.close()
        out, _ = child.communicate(b"!")
    books, frames = pickle.loads(out)
    assert [books, pair.out + frames] == undisturbed
    assert pair.pool.in_use == 0


def test_with_threads_what_is_held_leaves_on_time():
    pool, count, each_ns = PacketPool(128, 2), 30, 4_000_000
    ports, ends, engines = [MemoryPort("m") for _ in range(2)], [MemoryPort("n") for _ in range(2)], []
    for port, end in zip(ports, ends, strict=True):
        engine = Engine("e", pool)
        rx = PortRx(port)
        _ = rx >> Shaper(2 * MBIT, queue="1s", burst=0, name="slow") >> PortTx(end)
        engine.load([rx])
        engines.append(engine)
    old, new = engines
    start(old)
    ports[0].inject([i.to_bytes(4, "big") + bytes(996) for i in range(count)])
    out: list[Any] = []
    while len(out) < 5:
        out += ends[0].take()
    old.stop()
    load_engine(new, save_engine(old))
    forget_engine(old)
    out += ends[0].take()
    start(new)
    while len(out) < count:
        out += ends[1].take()
    assert [int.from_bytes(frame.data[:4], "big") for frame in out] == list(range(count))
    times = [frame.time_ns - out[0].time_ns for frame in out]
    assert all(time_ns >= i * each_ns for i, time_ns in enumerate(times)), "earlier than the rate allows"
    assert new.conservation()["transmitted"] == count
    assert new.conservation()["conserved"]
    for engine in engines:
        engine.close()
    assert pool.in_use == 0


def test_accounts_go_on():
    pool = PacketPool(64, 2)
    engines = []
    for _ in range(2):
        engine, port, end = Engine("e", pool), MemoryPort("m"), MemoryPort("n")
        rx = PortRx(port)
        _ = rx >> PortTx(end)
        engine.load([rx])
        engines.append((engine, port, end))
    (old, port, end), (new, _, _) = engines
    start(old)
    port.inject([bytes(100)] * 50)
    while old.snapshot()[0][1]["received"] < 50:
        pass
    old.stop()
    load_engine(new, save_engine(old))
    assert new.charges() == old.charges()
    assert new.cpu_ns == old.cpu_ns > 0
    forget_engine(old)
    old.close()
    new.close()


# -- mirrors ---------------------------------------------------------------------------------------


def mirror_engine(pool: PacketPool, clock: Clock, file: Any) -> tuple[Engine, MemoryPort, Mirror]:
    engine, port = Engine("e", pool, clock=clock), MemoryPort("m")
    rx, mirror = PortRx(port), Mirror(file, name="mirror")
    _ = rx >> mirror >> Discard(name="end")
    engine.load([rx])
    return engine, port, mirror


def test_a_mirrors_file_goes_on_without_a_gap(tmp_path: Path):
    pool, clock, file = PacketPool(64, 2), Clock(virtual=True), tmp_path / "all.pcap"
    old, old_port, _ = mirror_engine(pool, clock, file)
    old_port.inject([bytes([1]) * 60] * 3)
    advance(old, 0)
    # A new engine is started, receives nothing, and is closed: the file does not change.
    new, port, mirror = mirror_engine(pool, clock, file)
    assert mirror.error is not None and "written by another process" in mirror.error
    port.inject([bytes(60)])
    advance(new, 0)
    new.close()
    old_port.inject([bytes([2]) * 60])
    advance(old, 0)
    new, port, mirror = mirror_engine(pool, clock, file)
    load_engine(new, save_engine(old))
    forget_engine(old)
    port.inject([bytes([3]) * 60] * 2)
    advance(new, 0)
    assert mirror.statistics()["counters"]["mirrored"] == 6
    assert mirror.error is None
    old.close()
    new.close()
    reader = CaptureReader(str(file))
    assert [data[0] for _, data, _, _ in reader] == [1, 1, 1, 2, 3, 3]
    assert reader.error is None
    reader.close()


def test_a_mirror_waits_until_the_file_is_free(tmp_path: Path):
    pool, clock, file = PacketPool(64, 2), Clock(virtual=True), tmp_path / "all.pcap"
    (old, old_port, _), (new, port, _) = mirror_engine(pool, clock, file), mirror_engine(pool, clock, file)
    load_engine(new, save_engine(old))
    port.inject([bytes([2]) * 60])
    advance(new, 0)  # goes to its buffer; the writer waits for the lock
    old_port.inject([bytes([1]) * 60])
    advance(old, 0)
    old.close()
    new.close()
    reader = CaptureReader(str(file))
    assert [data[0] for _, data, _, _ in reader] == [1, 2]
    reader.close()


def test_a_capture_into_an_open_file_does_not_move(tmp_path: Path):
    with open(tmp_path / "x.pcap", "wb") as file:
        engine, _, _ = mirror_engine(PacketPool(64, 2), Clock(virtual=True), file.fileno())
        with pytest.raises(VnicError, match="^mirror: a capture into an open file cannot be handed over; end it first$"):
            save_engine(engine)
        engine.close()


# -- versions --------------------------------------------------------------------------------------


class OldTally(PyElement):
    """Version 1 of a user's element: one number, and drop reasons with their names of version 1."""

    DROP_REASONS = ("exception", "big")
    COUNTERS = ("passed",)

    def __init__(self, *, name: str | None = None) -> None:
        self.total = 17

    def save_state(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


def to_2(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "state": {"totals": [entry["state"]["total"], 0]}}


def to_3(entry: dict[str, Any]) -> dict[str, Any]:
    statistics = copy.deepcopy(entry["statistics"])
    statistics["dropped"]["too_long"] = statistics["dropped"].pop("big")
    return {"statistics": statistics, "state": {"sum": sum(entry["state"]["totals"])}}


class Tally(PyElement):
    """Version 3 of it."""

    STATE_VERSION = 3
    UPGRADES = {1: to_2, 2: to_3}
    DROP_REASONS = ("exception", "too_long")
    COUNTERS = ("passed",)

    def __init__(self, *, name: str | None = None) -> None:
        self.sum = 0

    def load_state(self, state: dict[str, Any]) -> None:
        self.sum = state["sum"]


OldTally.__name__ = "Tally"


def tally_engine(kind: type[PyElement], pool: PacketPool) -> tuple[Engine, Element]:
    engine = Engine("e", pool, clock=Clock(virtual=True))
    rx, tally = PortRx(MemoryPort("m")), kind(name="tally")
    _ = rx >> tally >> Discard()
    engine.load([rx])
    return engine, tally


def test_a_newer_class_reads_what_older_ones_saved():
    pool = PacketPool(64, 2)
    (old, _), (new, tally) = tally_engine(OldTally, pool), tally_engine(Tally, pool)
    content = contents(save_engine(old))
    entry(content, "tally")["statistics"]["dropped"]["big"] = 4
    load_engine(new, packed(content))
    assert tally.sum == 17  # type: ignore[attr-defined]
    assert tally.statistics()["dropped"]["too_long"] == 4
    with pytest.raises(VnicError, match="^tally: its state has version 3, this Tally reads up to 1; take one at least as new$"):
        load_engine(old, save_engine(new))
    entry(content, "tally")["state"] = {}
    with pytest.raises(VnicError, match="^tally: its state is damaged: KeyError: 'total'$"):
        load_engine(tally_engine(Tally, pool)[0], packed(content))


def test_a_newer_format_reads_the_older_one(monkeypatch):
    pool = PacketPool(64, 2)
    (old, _), (new, _) = tally_engine(Tally, pool), tally_engine(Tally, pool)
    content = contents(save_engine(old))
    content["engine"] = content.pop("name")
    entry(content, "tally")["state"] = {"sum": 5}

    def step(content: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in content.items() if key != "engine"}, "name": content["engine"]}

    monkeypatch.setattr(handover, "FORMAT_VERSION", 2)
    monkeypatch.setattr(handover, "FORMAT_UPGRADES", {1: step})
    load_engine(new, packed(content, 1))
    monkeypatch.setattr(handover, "FORMAT_UPGRADES", {})
    with pytest.raises(VnicError, match="^engine e: its state is damaged"):
        load_engine(tally_engine(Tally, pool)[0], packed(content, 1))


def test_the_twin_is_not_blind():
    """The comparison above detects a lost packet, a late packet and a counter that restarts."""
    steps = [("send", 0, 500, 30, 0), ("run", 10**7, 3), ("hand_over", 0), ("run", 10**10, 3)]
    expected, plain = play(steps, (MBIT, None, None, None), with_handovers=False)

    class Forgetful(Pair):
        def hand_over(self, number: int) -> None:
            Pair.hand_over(self, number)
            seen = self.homes[number].elements["a.seen"]
            assert isinstance(seen, Seen)
            shaper = self.homes[number].elements["a.egress"]
            state = shaper.save_state()
            shaper.load_state({**state, "next_ns": state["next_ns"] + 1})

    pair = Forgetful((MBIT, None), (None, None))
    for name, *arguments in steps:
        getattr(pair, name)(*arguments)
    pair.run(10**6, 3)
    assert [frame.data for _, frame in pair.out] == [frame.data for _, frame in expected[-1]]
    assert pair.out != expected[-1]
    plain.close()
    pair.close()


# Engine a of busy(), as these versions wrote it: 1 of everything; 2: ports count segments; 3: packets wait to be
# flooded; 4: format 2, without a random generator of the engine, and with packed lists of packets; 5: frames can be filtered.
GOLDENS = [ROOT / f"tests/data/engine-state-{number}.bin" for number in (1, 2, 3, 4, 5)]
GOLDEN = GOLDENS[-1]


@pytest.mark.parametrize("file", GOLDENS)
def test_what_these_versions_wrote_is_read(undisturbed, monkeypatch, file):
    pair, golden = busy(), file.read_bytes()
    monkeypatch.setattr(handover, "_identity", lambda pool: handover.PoolState(**contents(golden)["pool"]))
    new = pair.build(0)
    load_engine(new.engine, golden)
    forget_engine(pair.homes[0].engine)
    pair.homes[0].engine.close()
    pair.homes[0] = new
    assert finish(pair) == undisturbed


def test_a_change_of_the_format_is_a_new_version():
    """If this fails: raise the class's STATE_VERSION (or FORMAT_VERSION), add the step to its
    UPGRADES, keep the old file for the test above, and store a new one beside it."""
    pair = busy()
    found, golden = contents(save_engine(pair.homes[0].engine)), contents(GOLDEN.read_bytes())
    assert PREFIX.unpack_from(GOLDEN.read_bytes()) == (handover.MAGIC, handover.FORMAT_VERSION)
    assert {**found, "pool": golden["pool"]} == golden
    pair.close()

"""The life of a policy: generations, undo, ends, and NICs that are attached anew; without a daemon."""

from __future__ import annotations

import asyncio
import errno
import os

import msgspec
import pytest

from dataplane.engine.clock import Clock
from dataplane.errors import ConfigError, VnicError
from vnic.config.convert import convert_nic, decode_config
from vnic.config.load import parse_config
from vnic.daemon.worker import RETRY_S, Worker
from vnic.device.kinds.memory import MemoryKind
from vnic.modules.devices import OneKind
from vnic.runtime import policy_life
from vnic.runtime.policy_life import LET_GO, NOT_CONFIRMED, RETURN_NS, TIME_OVER, Author, Wish
from vnic.runtime.runtime import Runtime
from vnic.store import keeper, policies
from vnic.store.policies import GENERATIONS_MOST, Policies

NET = "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}}"
S = 10**9


def policy(**links: str) -> dict:
    """web="5ms": web -> any has this delay."""
    return {"version": 1, "links": {f"{name} -> any": {"delay": delay} for name, delay in links.items()}}


class Store:
    """What a supervisor stores, for one worker after the other. fails: keys that cannot be stored."""

    may_change = True

    def __init__(self):
        self.documents: dict[str, bytes] = {}
        self.fails: set[str] = set()

    def put_document(self, key, content):
        if key in self.fails:
            raise VnicError(f"{key} cannot be kept")
        self.documents[key] = content

    def take(self, key):
        return [keeper.write_document(self.documents[key])] if key in self.documents else None

    def put(self, key, descriptors):
        pass

    def drop(self, key):
        self.documents.pop(key, None)

    def inherited(self, prefix):
        return []

    def drop_inherited(self, *prefixes):
        pass


class Instance:
    """A runtime on a store, and the clock of policies."""

    def __init__(self, monkeypatch, text=NET):
        self.now_ns, self.store, self.text = 100 * S, Store(), text
        monkeypatch.setattr(policy_life, "policy_clock_ns", lambda: self.now_ns)
        self.runtime = self._start("first", parse_config(text, contained=False))

    def _start(self, role, config):
        devices = OneKind(MemoryKind())
        runtime = Runtime(config, devices=devices, clock=Clock(virtual=True), keeping=self.store, role=role)
        runtime.start()
        return runtime

    def crash(self):
        """Another worker begins with what is stored."""
        self.runtime = self._start("crash", decode_config(self.store.documents["config"]))

    @property
    def life(self):
        return self.runtime.policy

    @property
    def running(self):
        shape = self.runtime.config.shape
        return None if shape is None else {key.split()[0]: line["delay"]["mean"] for key, line in shape["links"].items()}

    def elements(self):
        """The policy's elements that are in the graph, with their delays."""
        return {
            name.removesuffix(".egress.shape"): self.runtime.read_handler(name, "delay")[0]["value"]
            for name in self.runtime.handlers()
            if name.endswith(".shape")
        }

    def apply(self, wish=Wish(), **links):  # noqa: B008
        self.life.apply(policy(**links), wish, Author(7, "apply"))
        assert self.elements() == links
        return self.life.term.generation


@pytest.fixture
def instance(monkeypatch):
    made = Instance(monkeypatch)
    yield made
    made.runtime.close()


def test_each_change_is_a_generation(instance):
    assert instance.life.term.generation == 0 and instance.life.generations() == []
    assert [instance.apply(web="5ms"), instance.apply(web="6ms"), instance.apply(web="6ms")] == [1, 2, 2]
    instance.life.apply(None, author=Author(7, "clear"))
    assert instance.running is None and instance.elements() == {}
    found = instance.life.generations()
    assert [each["generation"] for each in found] == [1, 2, 3]
    assert [each["empty"] for each in found] == [False, False, True]
    assert found[0]["changes"] == ["+ web -> any.delay.mean: 5ms"] and found[0]["uid"] == 7
    assert found[1]["changes"] == ["~ web -> any.delay.mean: 5ms -> 6ms"]
    assert instance.life.generation(2)["policy"]["links"]["web -> any"]["delay"]["mean"] == "6ms"
    with pytest.raises(ConfigError, match="generation 4: is not kept; kept are 1 to 3"):
        instance.life.generation(4)


def test_undo_goes_further_back_each_time(instance):
    for delay in ("1ms", "2ms", "3ms"):
        instance.apply(web=delay)
    for number, delay in ((4, "2ms"), (5, "1ms")):
        instance.life.undo()
        assert instance.running == instance.elements() == {"web": delay}
        assert instance.life.term.generation == number
    instance.life.undo()
    assert instance.running is None and instance.elements() == {}
    with pytest.raises(ConfigError, match="nothing to undo"):
        instance.life.undo()
    instance.life.undo(3)
    assert instance.running == {"web": "3ms"}
    instance.life.undo()  # to what was before generation 3
    assert instance.running == {"web": "2ms"}


def test_an_undo_keeps_what_both_have(instance):
    instance.apply(web="5ms", db="5ms")
    before = {each.name: each for engine in instance.runtime.engines for each in engine.elements}
    instance.apply(web="6ms", db="5ms")
    instance.life.undo()
    after = {each.name: each for engine in instance.runtime.engines for each in engine.elements}
    assert all(after[name] is element for name, element in before.items())
    assert instance.elements() == {"web": "5ms", "db": "5ms"}


def test_the_oldest_generations_are_forgotten(instance):
    for number in range(1, GENERATIONS_MOST + 10):
        instance.apply(web=f"{number}ms")
    found = [each["generation"] for each in instance.life.generations()]
    assert found == list(range(10, GENERATIONS_MOST + 10))
    for _ in range(GENERATIONS_MOST // 2 - 1):
        instance.life.undo()
    # each undo is a generation, too: the one that the next would lead to is forgotten
    assert instance.running == {"web": "26ms"}
    instance.life.undo()
    with pytest.raises(ConfigError, match="generation 24: is not kept; kept are 26 to 57"):
        instance.life.undo()


def test_generations_have_a_bound_of_bytes(monkeypatch):
    monkeypatch.setattr(policies, "BYTES_MOST", 1000)
    kept = Policies(None)
    for number in range(1, 6):
        raw = msgspec.Raw(msgspec.json.encode("x" * 400))
        kept.add(policies.Generation(number=number, policy=raw, term=policies.PolicyTerm(), at_s=0.0), back=1)
    assert [each.number for each in kept.all()] == [1, 5]


def test_generations_survive_a_crash(instance):
    instance.apply(web="5ms")
    instance.apply(web="6ms")
    instance.crash()
    assert instance.elements() == {"web": "6ms"} and instance.life.term.generation == 2
    instance.life.undo()
    assert instance.running == {"web": "5ms"} and instance.life.term.generation == 3


@pytest.mark.parametrize("key", ["policies", "config"])
def test_what_cannot_be_stored_changes_nothing(instance, key):
    instance.apply(web="5ms")
    instance.store.fails = {key}
    with pytest.raises(VnicError, match="cannot be kept"):
        instance.apply(web="6ms")
    instance.store.fails = set()
    assert instance.elements() == {"web": "5ms"} and instance.life.term.generation == 1
    assert [each["generation"] for each in instance.life.generations()] == [1]
    assert instance.apply(web="7ms") == 2


def test_a_worker_that_dies_between_the_two_is_no_generation(instance):
    """Generations are stored first; the configuration, which decides, still has the one before."""
    instance.apply(web="5ms")
    config = instance.store.documents["config"]
    instance.apply(web="6ms")
    instance.store.documents["config"] = config
    instance.crash()
    assert instance.elements() == {"web": "5ms"}
    assert [each["generation"] for each in instance.life.generations()] == [1]
    assert instance.apply(web="7ms") == 2


def test_a_policy_of_the_file_is_the_first_generation(monkeypatch):
    made = Instance(monkeypatch, f"{NET}\nshape: {{links: {{web -> any: {{delay: 5ms}}}}}}")
    (found,) = made.life.generations()
    assert (found["generation"], found["uid"], found["what"]) == (1, os.geteuid(), "up")
    made.crash()
    assert len(made.life.generations()) == 1
    made.life.undo()
    assert made.running is None
    made.runtime.close()


# -- ends ------------------------------------------------------------------------------------------


def test_a_policy_ends_when_its_time_is_over(instance):
    instance.apply(Wish(for_ns=10 * S), web="5ms")
    instance.life.apply(policy(web="6ms"), Wish(keeps_end=True))
    instance.now_ns += 10 * S - 1
    assert instance.life.left_ns() == 1 and instance.life.end() is None
    instance.now_ns += 1
    assert instance.life.end() == TIME_OVER
    assert instance.running is None and instance.elements() == {} and instance.life.left_ns() is None
    (last,) = instance.life.generations()[-1:]
    assert last["what"] == TIME_OVER and last["uid"] is None and last["empty"]


def test_a_policy_that_is_not_confirmed_makes_room_for_the_one_before(instance):
    instance.apply(web="5ms")
    instance.apply(Wish(confirm_ns=S), web="6ms")
    instance.apply(Wish(confirm_ns=S), web="7ms")  # of two unconfirmed ones neither stays
    instance.life.apply(policy(web="8ms"), Wish(keeps_end=True))
    assert instance.life.status()["withdrawn_in_ms"] == 1000 and instance.life.status()["back"] == 1
    instance.now_ns += S
    assert instance.life.end() == NOT_CONFIRMED
    assert instance.elements() == {"web": "5ms"} and instance.life.left_ns() is None
    assert instance.life.generations()[-1]["of"] == 1


def test_a_confirmed_policy_stays(instance):
    with pytest.raises(VnicError, match="no policy waits"):
        instance.life.confirm()
    instance.apply(Wish(confirm_ns=S), web="6ms")
    assert instance.life.confirm() == 1
    instance.now_ns += 100 * S
    assert instance.life.left_ns() is None and instance.life.end() is None
    assert not instance.life.generations()[-1]["unconfirmed"]
    instance.crash()
    assert instance.elements() == {"web": "6ms"} and instance.life.left_ns() is None


def test_the_policy_before_has_its_own_end(instance):
    instance.apply(Wish(for_ns=10 * S), web="5ms")
    instance.apply(Wish(confirm_ns=S), web="6ms")
    instance.now_ns += S
    assert instance.life.end() == NOT_CONFIRMED
    assert instance.life.left_ns() == 9 * S
    instance.apply(Wish(confirm_ns=20 * S), web="6ms")
    instance.now_ns += 20 * S  # the one before is over by then
    assert instance.life.end() == NOT_CONFIRMED and instance.running is None


def test_the_generation_to_return_to_is_not_forgotten(instance):
    instance.apply(web="5ms")
    instance.apply(Wish(confirm_ns=S), web="6ms")
    for number in range(GENERATIONS_MOST + 5):
        instance.life.apply(policy(db=f"{number + 1}ms"), Wish(keeps_end=True))
    instance.now_ns += S
    assert instance.life.end() == NOT_CONFIRMED and instance.elements() == {"web": "5ms"}


@pytest.mark.parametrize("before", [None, "5ms"])
def test_an_end_that_comes_while_there_is_no_worker(instance, before):
    if before is not None:
        instance.apply(web=before)
    instance.apply(Wish(confirm_ns=S), web="6ms")
    instance.now_ns += S
    instance.crash()  # ended before anything was built
    assert instance.elements() == ({} if before is None else {"web": before})
    assert instance.life.generations()[-1]["what"] == NOT_CONFIRMED
    instance.crash()
    assert instance.elements() == ({} if before is None else {"web": before})


def test_an_undo_of_a_policy_that_has_ended_asks_for_a_time(instance):
    instance.apply(Wish(for_ns=10 * S), web="5ms")
    instance.apply(web="6ms")
    instance.now_ns += 4 * S
    instance.life.undo()
    assert instance.elements() == {"web": "5ms"} and instance.life.left_ns() == 6 * S
    instance.now_ns += 6 * S
    assert instance.life.end() == TIME_OVER
    with pytest.raises(ConfigError, match="generation 1: its time is over; give another one"):
        instance.life.undo(1)
    instance.life.undo(1, Wish(for_ns=S))
    assert instance.life.left_ns() == S


def test_a_held_policy_ends_with_its_last_connection(instance):
    instance.apply(Wish(held=True), web="5ms")
    held = instance.life.term.held
    assert held == 1 and instance.life.left_ns() == RETURN_NS
    instance.life.hold(held)
    instance.life.hold(held)
    instance.life.apply(policy(web="6ms"), Wish(keeps_end=True))
    assert instance.life.left_ns() is None
    instance.life.let_go(held)
    assert instance.life.left_ns() is None
    instance.life.let_go(held)
    assert instance.life.left_ns() == 0 and instance.life.end() == LET_GO
    assert instance.elements() == {}
    with pytest.raises(VnicError, match="has ended"):
        instance.life.hold(held)


def test_after_a_crash_a_command_has_five_seconds_to_hold_its_policy(instance):
    instance.apply(Wish(held=True), web="5ms")
    instance.life.hold(1)
    instance.crash()
    assert instance.life.left_ns() == RETURN_NS
    instance.life.hold(1)
    instance.now_ns += 2 * RETURN_NS
    assert instance.life.left_ns() is None and instance.life.end() is None
    instance.crash()
    instance.now_ns += RETURN_NS
    assert instance.life.end() == LET_GO and instance.elements() == {}


@pytest.mark.parametrize("there", [False, True])
def test_a_held_policy_returns_only_to_its_command(instance, there):
    instance.apply(Wish(held=True), web="5ms")
    instance.life.hold(1)
    instance.apply(Wish(confirm_ns=S), web="6ms")
    instance.now_ns += S
    if not there:
        instance.life.let_go(1)
    assert instance.life.end() == NOT_CONFIRMED
    assert instance.elements() == ({"web": "5ms"} if there else {})
    assert instance.life.left_ns() is None


def test_a_policy_before_that_the_network_has_no_place_for(instance):
    """NICs that are gone are no reason to keep a policy that was not confirmed."""
    instance.apply(web="5ms", db="5ms")
    instance.apply(Wish(confirm_ns=S), web="6ms")
    instance.runtime.nics.detach("db")
    instance.now_ns += S
    assert instance.life.end() == NOT_CONFIRMED and instance.elements() == {"web": "5ms"}


# -- NICs that are attached anew -------------------------------------------------------------------


def pair(delay="5ms"):
    return {"version": 1, "links": {"web <-> db": {"delay": delay}, "db": {"loss": "1%"}}}


def names(instance):
    return sorted(name for name in instance.runtime.handlers() if ".shape" in name)


@pytest.mark.parametrize("mac", ["02:00:00:00:00:02", "02:00:00:00:00:22"])
def test_a_nic_that_is_attached_anew_has_the_policy(instance, mac):
    instance.life.apply(pair())
    before = names(instance)
    assert len(before) == 6
    instance.runtime.nics.detach("db")
    instance.runtime.nics.attach(convert_nic("db", {"mac": mac}, (), contained=False))
    assert names(instance) == before and instance.life.term.generation == 1
    (rules,) = [
        each.config.ingress.elements[0].arguments["rules"]
        for name, each in instance.runtime.nics.attached.items()
        if name == "web"
    ]
    assert rules == [{"source_mac": mac}]
    instance.crash()
    assert names(instance) == before
    instance.life.apply(None)
    assert names(instance) == []


def test_what_is_not_attached_is_no_error_in_the_running_policy(instance):
    instance.life.apply(pair())
    instance.runtime.nics.detach("db")
    instance.life.apply(pair("6ms"))  # a change of its numbers
    assert names(instance) == []
    with pytest.raises(ConfigError, match="there is no NIC or link dbx"):
        instance.life.apply({"version": 1, "links": {"web -> dbx": {"delay": "1ms"}}})
    instance.runtime.nics.attach(convert_nic("db", {"mac": "02:00:00:00:00:02"}, (), contained=False))
    assert len(names(instance)) == 6
    instance.life.apply(None)
    with pytest.raises(ConfigError, match="there is no NIC or link dbx"):
        instance.life.apply({"version": 1, "links": {"web -> dbx": {"delay": "1ms"}}})


def test_a_nic_that_waited_has_the_policy_that_came_meanwhile(instance):
    instance.runtime.nics.detach("db", "its container has ended", waits=True)
    instance.life.apply({**pair(), "scenario": [{"at": "0s", "set": {"web -> db": {"loss": "7%"}}}]})
    assert names(instance) == ["web.ingress.shape-pairs", "web.ingress.shape-pairs.shape-from-db"]
    instance.runtime.nics.bring_back(instance.runtime.config.nics["db"])
    assert len(names(instance)) == 6
    name = "db.ingress.shape-pairs.shape-from-web"
    assert instance.runtime.read_handler(name, "loss")[0]["value"] == "7%"


def test_whatever_hinders_its_end_a_policy_is_ended_later(caplog):
    """A worker that stopped to look would keep it for ever."""

    class Policy:
        def left_ns(self):
            return 0

        def end(self):
            raise OSError(errno.EMFILE, "Too many open files")

    class Runtime:
        policy = Policy()

        async def aside(self, call):
            return call()

    worker = Worker.__new__(Worker)
    worker._runtime = Runtime()
    asyncio.run(worker._end_policy())
    assert "tried again" in caplog.text and worker._rest_s() == RETRY_S

"""The running scenario of an instance's policy: writes the handlers of its elements when a step
comes (shaping.policy.scenario says what the values are at each moment).

The configuration has the values of the beginning. They are not changed by steps, so nothing needs
to be stored for a step, and a policy has the same configuration at all times. From the instant at
which it began, which is stored, a worker after a crash and an upgrade's successor find the values
of the moment. Elements that are made get these before a packet reaches them.

Live, a thread waits for the next step, by the monotonic clock; in virtual time, SteppedTime makes
the steps at their instants.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from dataplane.engine.handler_access import live_handlers, read_handler, write_handler
from dataplane.errors import VnicError
from dataplane.graph.element import Element
from shaping.policy.compile import Argument, arguments_at, elements_of
from shaping.policy.findings import refuse
from shaping.policy.load import convert_policy, names_in
from shaping.policy.network import Network
from shaping.policy.places import Setting, plan_of
from shaping.policy.scenario import Scenario, scenario_of, step_text
from shaping.policy.steps import carriers_of_steps
from vnic.api.log import Log
from vnic.config.elements import convert_elements
from vnic.config.schema import Config
from vnic.modules.chain import Chain, check_chain
from vnic.modules.host import Host
from vnic.modules.network import Network as Nics

RETRY_NS = 10**9  # after a step that could not be made

log = Log("vnic")


class Stage(Host, Protocol):
    """The part of a runtime in which a scenario runs."""

    nics: Nics


class _Play(NamedTuple):
    """A scenario that runs. network: its names; chains: the arguments that it changes, by the
    chain's name."""

    policy: Any
    began_ns: int
    scenario: Scenario
    network: Network
    chains: dict[str, list[Argument]]


class ScenarioRunner:
    """Makes the steps of the running policy's scenario, with the runtime's lock.

    paused: nothing is written, since another worker has the engines, or gets them.
    """

    def __init__(self, runtime: Stage) -> None:
        self._runtime = runtime
        self._play: _Play | None = None
        self._values: dict[Argument, Any] = {}  # at the last look
        self._looked_ns = 0  # since the beginning
        self._failed: set[Argument] = set()  # whose values could not be written
        self._left: set[Argument] = set()  # of the scenario before, until `sync`
        self._carriers: set[str] = set()  # NICs that this scenario or one before may have cut
        self._step = 0  # the number of the step that was told last
        self.due_ns: int | None = None  # when something changes next, by the engines' clock
        self.paused = runtime.role == "successor"
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    # -- which scenario ----------------------------------------------------------------------------

    def set(self, config: Config, *, checked: bool = False) -> None:
        """Makes the scenario of a configuration's policy the one that runs; `sync` then writes its
        values. checked: it has been running. Raises ConfigError, and then nothing has changed."""
        policy, now = config.shape, self._play
        self._failed.clear()
        self.note_carriers(policy)
        if policy is None or not policy.get("scenario"):
            self._left |= self._values.keys()
            self._play, self._values, self.due_ns = None, {}, None
            return
        began_ns = config.shape_term.began_ns
        assert began_ns is not None
        scenario, network = _scenario(config)
        if not checked and (now is None or now.policy != policy):
            _check(scenario)
        chains: dict[str, list[Argument]] = {}
        for argument in arguments_at(scenario, network, 0):
            chains.setdefault(str(argument.chain), []).append(argument)
        before = self._values.keys()
        self._play = _Play(policy, began_ns, scenario, network, chains)
        self._look()
        self._left = (self._left | before) - self._values.keys()

    def note_carriers(self, policy: Any) -> None:
        """Of the NICs whose carrier this policy cuts, `sync` sees to it, whichever policy runs by
        then: a worker that was killed has left them as they were. policy: plain data; None: none.
        """
        self._carriers |= carriers_of_steps((policy or {}).get("scenario"))

    @property
    def elapsed_ns(self) -> int:
        """Since the scenario began."""
        assert self._play is not None
        return max(self._runtime.clock.now_ns - self._play.began_ns, 0)

    def status(self) -> dict[str, Any] | None:
        """Where the scenario is; None: there is none."""
        if self._play is None:
            return None
        at = self._play.scenario.position(self.elapsed_ns)
        return {
            "elapsed_ns": self.elapsed_ns,
            "round": at.rounds + 1,
            "step": None if at.step is None else at.step.number,
            "what": None if at.step is None else step_text(at.step),
            "steps": len(self._play.scenario.steps),
            "next_in_ms": None if at.next_ns is None else at.next_ns // 1_000_000,
        }

    # -- writing -----------------------------------------------------------------------------------

    def sync(self) -> None:
        """Gives all elements the values of the moment, whatever they have, and what another
        scenario has changed the values of the configuration."""
        if self.paused:
            return
        left, self._left = self._left, set()
        for argument in left:
            chain = self._chain(argument)
            if chain is not None and (element := chain.of_policy.get(argument.element)) is not None:
                arguments = chain.configs[element.name].arguments
                self._put(element, argument, arguments.get(argument.name))
        if self._play is None:
            self._settle_carriers()
            if self.due_ns is not None:
                self._wake()
            return
        self._look()
        self.settle({
            name: chain.of_policy
            for name, arguments in self._play.chains.items()
            if (chain := self._chain(arguments[0])) is not None
        })  # fmt: skip
        self._settle_carriers()
        self._wake()

    def settle(self, chains: Mapping[str, Mapping[str, Element]]) -> None:
        """Gives elements, by their chain's name and their own, the values of the moment."""
        if self._play is None or self.paused:
            return
        for name, elements in chains.items():
            for argument in self._play.chains.get(name, ()):
                self._put(elements.get(argument.element), argument, self._values[argument])

    def step(self) -> None:
        """Makes the changes that are due."""
        if self.paused:
            return
        if self._play is None:
            self.due_ns = None
            self._settle_carriers()
            return
        failed, self._failed = self._failed, set()
        for argument in {*self._look(self._looked_ns), *failed}:
            if (chain := self._chain(argument)) is not None:
                element = chain.of_policy.get(argument.element)
                self._put(element, argument, self._values[argument])
        self._settle_carriers()

    def cuts_carrier(self, nic: str) -> bool:
        """Whether a NIC has no carrier now."""
        if self._play is None or self.paused:
            return False
        return self._play.scenario.carriers_at(self.elapsed_ns).get(nic, False)

    def _settle_carriers(self) -> None:
        """Cuts the carriers of the moment, and restores the others. Where a change fails, it is
        tried again."""
        play, nics = self._play, self._runtime.nics
        wanted = {} if play is None else play.scenario.carriers_at(self.elapsed_ns)
        left, self._carriers = self._carriers, set(wanted)
        for name in left | self._carriers:
            if (node := nics.attached.get(name)) is None:
                continue
            try:
                nics.settle_carrier(node, wanted.get(name, False))
            except VnicError as error:
                log.error("scenario", nic=name, why=str(error))
                self._carriers.add(name)
                self._try_again()

    def _try_again(self) -> None:
        retry_ns = self._runtime.clock.now_ns + RETRY_NS
        self.due_ns = retry_ns if self.due_ns is None else min(self.due_ns, retry_ns)

    def _put(self, element: Element | None, argument: Argument, value: Any) -> None:
        """Writes a handler of an element that exists, unless it has the value. What cannot be
        written now is tried again."""
        if element is None:
            return
        try:
            handler = live_handlers(element)[argument.name]
            if read_handler(element, handler) != value:
                write_handler([element], handler, value, halt=_never, resume=_never)
        except VnicError as error:
            log.error("scenario", element=element.name, why=str(error))
            self._failed.add(argument)
            self._try_again()

    def _look(self, since_ns: int | None = None) -> list[Argument]:
        """Finds the values of the moment, and when they change next; returns the arguments whose
        values are others. since_ns: the moment of the last look, where only what has changed since
        then is looked at."""
        play, elapsed_ns = self._play, self.elapsed_ns
        assert play is not None
        scenario, before = play.scenario, self._values
        if since_ns is None:
            self._values = now = arguments_at(scenario, play.network, elapsed_ns)
        else:
            places = scenario.places_changing(since_ns, elapsed_ns)
            now = arguments_at(scenario, play.network, elapsed_ns, places)
        changed = [argument for argument, value in now.items() if before.get(argument) != value]
        self._values |= now
        self._looked_ns = elapsed_ns
        at = scenario.position(elapsed_ns)
        self.due_ns = None if at.next_ns is None else play.began_ns + elapsed_ns + at.next_ns
        number = 0 if at.step is None else at.step.number
        if number != self._step and at.step is not None and not self.paused:
            self._runtime.emit("step", step=number, what=step_text(at.step))
        self._step = number
        return changed

    def _chain(self, argument: Argument) -> Chain | None:
        """The chain of an argument's element in the running network; None: its NIC is not
        attached."""
        owner, nics = argument.chain.owner, self._runtime.nics
        node = nics.links.get(owner) if argument.chain.of_link else nics.attached.get(owner)
        return None if node is None else node.chains.get(str(argument.chain))

    # -- the thread --------------------------------------------------------------------------------

    def pause(self) -> None:
        """From now on nothing is written, until `resume`."""
        with self._runtime.lock:
            self.paused = True

    def resume(self) -> None:
        """The engines are this worker's."""
        with self._runtime.lock:
            self.paused = False
            self.sync()

    def close(self) -> None:
        """Ends the thread."""
        self._wake()

    def _wake(self) -> None:
        """The next step may come earlier than the thread knows."""
        if self._runtime.clock.virtual:
            return
        if self._thread is None and not self._runtime.closed:
            self._thread = threading.Thread(target=self._run, name="vnic-scenario", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        while not self._runtime.closed:
            with self._changed:
                if (rest_s := self._rest_s()) is None or rest_s > 0:
                    self._changed.wait(rest_s)
                    continue
            with self._runtime.lock:
                if not self._runtime.closed and self.due_ns is not None:
                    self.step()

    def _rest_s(self) -> float | None:
        """Until the next step; None: there is none."""
        due_ns = self.due_ns
        if due_ns is None or self.paused:
            return None
        return (due_ns - self._runtime.clock.now_ns) / 1e9


def _scenario(config: Config) -> tuple[Scenario, Network]:
    """The scenario of a configuration's policy, and the network that it is for. Names that the
    network lacks are those of NICs that are not attached."""
    policy = convert_policy(config.shape)
    links = {str(link.name): link.ends for link in config.links}
    names = names_in(config.shape) - links.keys()
    network = Network({**dict.fromkeys(names, ""), **dict.fromkeys(config.nics, "")}, links)
    plan = plan_of(policy, network)
    scenario = scenario_of(policy, plan, network)
    refuse(plan.findings)
    assert scenario is not None
    return scenario, network


def _check(scenario: Scenario) -> None:
    """Raises ConfigError for a value that an element refuses, before any step is made."""
    for line in scenario.lines.values():
        for name, values in line.variants.items():
            for value in values:
                entries = elements_of(line.with_settings({name: Setting(value, line.where)}))
                check_chain(convert_elements(entries, ("shape", str(line.place)), lambda path: ""))


def _never(engine: object) -> None:
    raise AssertionError("a live handler halts no engine")

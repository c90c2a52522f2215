"""The runtime of an instance: its modules, the engines that they build, and the groups that give
these CPU time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from dataplane.elements.classifier import Classifier
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.errors import ConfigError, VnicError, named, one_line
from dataplane.graph.drawing import to_data, to_dot, to_text
from dataplane.graph.element import Element, Source
from dataplane.groups.group import EngineGroup
from dataplane.ports.ring_port import RingPort
from shaping.shaper import Shaper
from vnic.api.events import Emit
from vnic.api.log import Log
from vnic.config.convert import changed_group, decode_config, encode_config
from vnic.config.copies import own_config
from vnic.config.policy_term import PolicyTerm
from vnic.config.schema import Config, ModuleConfig
from vnic.config.shape import take_out
from vnic.modules.accounts import Accounts
from vnic.modules.chain import module_class
from vnic.modules.devices import AgentDevices, Devices
from vnic.modules.engine_host import EngineHost
from vnic.modules.lines import RunningLine, running_lines
from vnic.modules.module import MODULE_KEYS, Module
from vnic.modules.network_methods import NetworkModule
from vnic.runtime.apply import Applying, Change, difference, prepared
from vnic.runtime.groups import change_group, make_group
from vnic.runtime.handlers import Handlers
from vnic.runtime.picture import network_data, network_dot, network_text
from vnic.runtime.policy_life import Author, PolicyLife
from vnic.runtime.recorder import Recorder
from vnic.runtime.shares import Shares
from vnic.store.history import History
from vnic.store.keeper import GUARANTEED, Keeper
from vnic.store.losses import Losses
from vnic.store.segments import Segments

T = TypeVar("T")
H = TypeVar("H", bound=EngineHost)

APPLY_TRIES = 8


log = Log("vnic")


def _counters(element: Element, statistics: dict[str, Any]) -> dict[str, Any]:
    """The counters of an element in `stats`. `packets`: those that entered, or that a source took;
    also the bound of a shaper's queue at its rate, and the packets that each rule of a classifier
    matched."""
    found = {"type": type(element).__name__, **statistics}
    if isinstance(element, Source):
        found["packets"] = statistics["received"]
    if isinstance(element, Shaper):
        found["queue_limit_bytes"] = element.queue_limit_bytes
    if isinstance(element, Classifier):
        found["hits"] = element.hits()
    return found


class _Made(NamedTuple):
    """The engines that a module made in its constructor, and the names of the NICs whose module
    side it took."""

    hosted: list[EngineHost]
    ports: set[str]


class Runtime:
    """Runs a configuration. All methods may be called from any thread; none is called from an
    engine's.

    loop: the event loop; containers are watched on it. None: they are not watched.
    devices: opens the NICs; interfaces in containers by default. clock: with a virtual clock the
    engines have no threads, and VirtualTime runs them.
    """

    def __init__(
        self,
        config: Config,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        devices: Devices | None = None,
        clock: Clock | None = None,
        seed: int = 0,
        keeping: Keeper | None = None,
        role: Literal["first", "crash", "successor"] = "first",
    ) -> None:
        self.emit: Emit = lambda event, /, **fields: None  # replaced where events are wanted
        self.config = own_config(config)
        self.role, self.loop, self._seed = role, loop, seed
        self.keeping = keeping
        self._kept_guaranteed = self.config.guaranteed
        self.lock = threading.RLock()
        self.closed = self.upgrading = False
        self.clock = clock or Clock()
        self.losses = Losses(keeping)
        # has no thread until the first change
        self._changes = ThreadPoolExecutor(1, "vnic-changes")
        self._history = History(keeping)
        self._stored = 0  # how often the configuration was stored
        self.policy = PolicyLife(self)
        self.policy.begin()
        self.segments = Segments(keeping, reset=role == "crash")
        self.pool = self.segments.pool(config.pool.small, config.pool.large)
        # In virtual time there are no threads. A worker that takes over must not fail because a
        # cgroup has been removed since.
        wanted = {} if self.clock.virtual else config.groups
        self.groups = {
            name: make_group(name, each, tolerant=role != "first") for name, each in wanted.items()
        }
        self.hosted: list[EngineHost] = []
        self.module_name = "nics"
        self.nics = NetworkModule(self, devices or AgentDevices())
        self.modules: list[Module] = [self.nics]
        self._users: dict[Module, tuple[ModuleConfig, _Made]] = {}  # the users' modules
        for each in list(self.config.modules):
            self._add(each)
        self.shares = Shares(self, self.nics)
        self.accounts = Accounts(self.hosted, self._clients)
        self._handlers = Handlers(
            self.hosted,
            self.nics.attached,
            self.nics.links,
            self.nics.wiring.nodes,
            halt=lambda engine: self.group_of(engine).halt(engine),
            resume=lambda engine: self.group_of(engine).resume(engine),
            set_rate=self.nics.set_rate,
        )
        self.recorder = Recorder(self)
        self._lines: tuple[int, list[RunningLine]] = -1, []

    def _add(self, config: ModuleConfig) -> None:
        before, taken = len(self.hosted), self.nics.ports.taken
        try:
            module = self._make(config)
        except VnicError as error:
            if self.role != "crash":
                raise
            self._do_without(config, self._made_since(before, taken), str(error))
        else:
            self.modules.append(module)
            self._users[module] = config, self._made_since(before, taken)

    def _made_since(self, hosted: int, taken: set[str]) -> _Made:
        return _Made(self.hosted[hosted:], self.nics.ports.taken - taken)

    def _make(self, config: ModuleConfig) -> Module:
        kind = module_class(config.module, self.config.directory)
        same = sum(each.module == config.module for each, _ in self._users.values())
        self.module_name = f"{config.module} {same + 1}" if same else config.module
        try:
            module = kind(self, **config.arguments)
        except VnicError:
            raise
        except Exception as error:  # a user's module may raise any exception
            raise ConfigError(f"module {config.module}: refuses its arguments: {error}") from error
        config.arguments = module.settings  # its changes there are stored
        return module

    def lose(self, module: Module, error: Exception) -> None:
        """After a crash: continues without a user's module that failed. Raises the error in any
        other role, and for a module of vnic's own."""
        if self.role != "crash" or module not in self._users:
            raise error
        self._logged(module, "close", module.close)
        config, made = self._users.pop(module)
        self.modules.remove(module)
        self._do_without(config, made, one_line(error))
        self.remember()

    def _do_without(self, config: ModuleConfig, made: _Made, why: str) -> None:
        """Removes a user's module and its engines, also from the configuration: a successor must
        have the same engines."""
        self.config.modules = [each for each in self.config.modules if each is not config]
        for each in made.hosted:
            self.group_of(each.engine).remove(each.engine)
            each.engine.close()  # packets that it holds are dropped
            self.hosted.remove(each)
        self.nics.ports.give_back(made.ports)
        self.losses.add(f"module {config.module}", why)

    # -- what modules build on ---------------------------------------------------------------------

    def add_engine(
        self,
        name: str,
        group: str | None = None,
        *,
        spin_ns: int = 0,
        cpu: int | None = None,
        make: Callable[[Engine], H],
    ) -> H:
        """Makes an engine in a group (the first, by default), for a module's constructor. make:
        returns the EngineHost of the engine. Raises ConfigError for an unknown group and for a name
        that is taken."""
        group = group or next(iter(self.config.groups))
        if group not in self.config.groups:
            raise ConfigError(
                f"engine {name}: group {group}: there is none; there are "
                f"{', '.join(self.config.groups)}",
                code="not-found",
            )
        if any(each.engine.name == name for each in self.hosted):
            raise ConfigError(f"engine {name}: the name is taken; choose another")
        budget_ns = int(self.config.groups[group].budget)
        engine = Engine(
            name,
            self.pool,
            clock=self.clock,
            spin_ns=spin_ns,
            cpu=cpu,
            seed=self._seed,
            budget_ns=budget_ns,
        )
        hosted = make(engine)
        self.hosted.append(hosted)
        if self.groups:
            self.groups[group].add(engine)
        return hosted

    def module_port(self, nic: str) -> RingPort:
        """A module's side of the NIC of kind `module` of that name, for a module's constructor: the
        port receives the packets that were sent to the NIC. The NIC may come and go. Raises
        ConfigError."""
        return self.nics.ports.take(nic)

    def remember(self, undo: Callable[[], object] | None = None) -> None:
        """Has the supervisor store the configuration as it is now, with which the next worker
        begins. A change is stored before it is made, where that is possible. undo: called if it
        cannot be stored. Raises VnicError then."""
        self._stored += 1
        if self.keeping is not None and not self.closed:
            try:
                self.keeping.put_document("config", encode_config(self.config))
            except BaseException:
                if undo is not None:
                    undo()
                raise
            if (guaranteed := self.config.guaranteed) is not self._kept_guaranteed:
                self._kept_guaranteed = guaranteed
                self.keeping.put_document(GUARANTEED, b"") if guaranteed else self.keeping.drop(
                    GUARANTEED
                )
            self.nics.watching.changed()

    async def aside(self, change: Callable[[], T]) -> T:
        """Makes a change on the thread of changes; the event loop serves other calls meanwhile. One
        change runs after the other. A caller that is cancelled leaves when the change has ended."""
        running = asyncio.get_running_loop().run_in_executor(self._changes, change)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise

    @property
    def changes(self) -> int:
        """How often the network has changed: what was derived from it is out of date when this
        is."""
        return self._stored

    def lines(self) -> list[RunningLine]:
        """The lines of the running policy, with their elements."""
        with self.lock:
            if self._lines[0] != self._stored:
                found = running_lines(self.config, self.nics.attached, self.nics.links)
                self._lines = self._stored, found
            return self._lines[1]

    def check_open(self) -> None:
        """Raises VnicError (code busy) during an upgrade, when nothing may be changed."""
        if self.upgrading:
            raise VnicError("an upgrade is under way; try again when it is over", code="busy")

    @property
    def runs(self) -> bool:
        """Whether this worker runs its engines: a successor does not before it takes over."""
        return self.role != "successor" or all(group.alive for group in self.groups.values())

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the engines, attaches the configured NICs and starts the other modules: all, or
        none and the error of the first that failed. A successor only builds its graph, see
        `start_threads`. After a failure only the first worker closes everything: another worker's
        interfaces belong to the instance, and what it made itself ends with its process."""
        with self.lock:
            for module in list(self.modules):
                self._hook(module, module.open)
            try:
                if self.role != "successor":
                    self.start_threads()
                for module in list(self.modules):
                    self._hook(module, module.start)
                if self.role != "successor":
                    self.remember()
                if self.role == "crash" and self.keeping is not None:
                    self.keeping.drop_inherited(MODULE_KEYS)  # of modules that no longer exist
                self.shares.renew()
            except BaseException:
                if self.role == "first":
                    self.close()
                raise

    def _hook(self, module: Module, hook: Callable[[], object]) -> None:
        """Calls a hook of a module's start; after a crash, continues without a user's module that
        fails."""
        try:
            hook()
        except Exception as error:
            if module in self._users and not isinstance(error, VnicError):
                error = VnicError(
                    f"module {self._users[module][0].module}: does not start: {one_line(error)}"
                )
            self.lose(module, error)

    def start_threads(self) -> None:
        """Starts the engines' threads; on the loop's thread. A successor's engines run only when
        they have their state."""
        for group in self.groups.values():
            group.start(run=self.role != "successor")
        self.policy.scenario.sync()
        for module in list(self.modules):
            self._hook(module, module.watch)

    def claim(self, captures: set[int], policies: Iterable[int] = ()) -> None:
        """Calls the modules' `claim` when this successor has taken over: clients with these
        captures, and that hold these policies, are connected to it."""
        self.policy.claim(policies)
        for module in self.modules:
            self._logged(module, "claim", partial(module.claim, captures))

    def let_go(self) -> None:
        """Calls the modules' `let_go` when a successor has taken over and this worker ends."""
        for module in self.modules:
            self._logged(module, "let_go", module.let_go)

    def close(self) -> None:
        """Detaches everything and ends engines and devices. May be called twice."""
        with self.lock:
            if self.closed:
                return
            self.closed, self.upgrading = True, False
            for module in reversed(self.modules):
                self._logged(module, "close", module.close)
            for group in self.groups.values():
                group.stop()
            for each in self.hosted:
                each.engine.close()
            for module in reversed(self.modules):
                self._logged(module, "closed", module.closed)
            self.policy.scenario.close()
            self._changes.shutdown(wait=False)
        self.shares.close()

    def _logged(self, module: Module, name: str, hook: Callable[[], object]) -> None:
        """Calls a hook of a module. An error of a user's module is logged, so that the hooks of the
        others still run."""
        try:
            hook()
        except Exception as error:
            if module not in self._users:
                raise
            log.error(name, error=error)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def engines(self) -> list[Engine]:
        """The engines, in the order in which modules made them."""
        return [each.engine for each in self.hosted]

    # -- groups ------------------------------------------------------------------------------------

    def group_of(self, engine: Engine) -> EngineGroup:
        """The group that the engine is in."""
        return next(group for group in self.groups.values() if engine in group.engines)

    def set_group(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Changes settings of a group while packets flow: given as below its name in a file; None
        removes one. Returns its status. Raises ConfigError, VnicError, and then nothing has
        changed."""
        with self.lock:
            self.check_open()
            if name not in self.groups:
                raise ConfigError(
                    f"group {name}: there is none; there are {', '.join(self.groups)}",
                    code="not-found",
                )
            self.change_group(name, settings)
            self.emit(
                "group",
                group=name,
                **{
                    "mode": self.config.groups[name].mode,
                    "cpus": self.config.groups[name].cpus,
                    **settings,
                },
            )
            return self.groups[name].status()

    def change_group(self, name: str, settings: dict[str, Any]) -> None:
        """As `set_group`, for a group that exists."""
        with self.lock:
            wanted = changed_group(name, self.config.groups[name], settings)
            self.config.fill(wanted)
            self.config.check_group(name, wanted)
            before, self.config.groups[name] = self.config.groups[name], wanted

            def undo() -> None:
                self.config.groups[name] = before

            self.remember(undo)
            try:
                change_group(self.groups[name], wanted, settings)
            except BaseException:
                undo()
                self.remember()
                raise

    # -- handlers: see vnic.runtime.handlers -------------------------------------------------------

    def handlers(self, element: str | None = None) -> dict[str, dict[str, Any]]:
        """The handlers of all elements, or of one: see Handlers.describe."""
        with self.lock:
            return self._handlers.describe(element)

    def read_handler(self, element: str, handler: str) -> list[dict[str, Any]]:
        """Reads a handler: [{"engine", "value"}] of each copy of the element."""
        with self.lock:
            return self._handlers.read(element, handler)

    def write_handler(self, element: str, handler: str, value: object) -> Any:
        """Writes a handler of all copies of the element, or of none; returns what the change
        returned."""
        with self.lock:
            self.check_open()
            result = self._handlers.write(element, handler, value)
            self.remember()
            self.emit("handler", element=element, handler=handler)
            return result

    # -- the whole network: see vnic.runtime.apply -------------------------------------------------

    def compare(self, wanted: Config) -> list[Change]:
        """The changes that `apply` would make. Raises ConfigError."""
        with self.lock:
            return difference(self.config, prepared(self.config, wanted, self.nics))

    def apply(self, wanted: Config, author: Author | None = None) -> list[Change]:
        """Changes the network to the wanted one while packets flow; returns the changes. All or
        nothing. Raises VnicError. May be called on any thread; the lock is free while the
        interfaces of new NICs are made."""
        return self.change(wanted, author, undoable=True)

    def undo(self, author: Author | None = None, *, dry: bool = False) -> list[Change]:
        """Goes back to the network before the last `apply` that was not undone. Raises VnicError if
        there is none."""
        with self.lock:
            before = decode_config(self._history.last())
            # NICs that clients attach and detach themselves stay as they are now.
            before.nics = {name: nic for name, nic in before.nics.items() if not nic.passed}
            if before.shape_term.ends:  # its time would be another one
                take_out(before)
            before.shape_term = PolicyTerm()
        if dry:
            return self.compare(before)
        changes = self.change(before, author)
        with self.lock:
            self._history.drop_last()
        return changes

    def change(
        self,
        wanted: Config,
        author: Author | None = None,
        *,
        restored: int | None = None,
        undoable: bool = False,
    ) -> list[Change]:
        """Changes the network, as `apply`. restored: the generation that another policy restores.
        undoable: `undo` leads back."""
        for _ in range(APPLY_TRIES):
            with self.lock:
                self.check_open()
                ready = prepared(self.config, wanted, self.nics)
                changes = difference(self.config, ready)
                if not any(each.kind == "shape" for each in changes):
                    ready.shape_term = self.config.shape_term
                applying, stored = Applying(self, self.nics, ready, changes), self._stored
            try:
                with self.lock:
                    applying.reserve()
                applying.open()
                with self.lock:
                    self.check_open()
                    if stored != self._stored:  # meanwhile, a container has ended or returned
                        continue
                    before = encode_config(self.config)
                    if changes:
                        with self.policy.changing(ready, changes, author or Author(), restored):
                            applying.run()
                        self.shares.renew()
                        self.emit(
                            "applied",
                            changes=[str(each) for each in changes[:32]],
                        )
                    if changes and undoable:
                        self._note(before)
                    return changes
            finally:
                with self.lock:
                    applying.close()
        raise VnicError(
            "containers come and go too fast to apply a network; try again", code="busy"
        )

    def renew_policy(self) -> None:
        """Gives the network the elements of its policy of shaping where they are missing. Raises
        VnicError."""
        self.policy.renew()

    def settle_policy(self, chains: Mapping[str, Mapping[str, Element]]) -> None:
        """Gives elements that are made, by their chain's name, what the policy's scenario has made
        of their settings."""
        self.policy.scenario.settle(chains)

    def cuts_carrier(self, nic: str) -> bool:
        """Whether a NIC has no carrier now because of the policy's scenario."""
        return self.policy.scenario.cuts_carrier(nic)

    def _note(self, before: bytes) -> None:
        try:
            self._history.add(before)
        except VnicError as error:
            log.warning("applied, but cannot be undone", why=str(error))

    # -- upgrade -----------------------------------------------------------------------------------

    def begin_upgrade(self) -> None:
        """From now on nothing is attached, detached or set, until `end_upgrade`. Stores the
        configuration once more, as this version writes it. Raises VnicError if an upgrade is under
        way."""
        with self.lock:
            self.check_open()
            self.remember()
            self.upgrading = True

    def end_upgrade(self) -> None:
        """Allows changes again: the upgrade failed, and this worker continues."""
        with self.lock:
            self.upgrading = False
            self.policy.scenario.resume()
            for module in self.modules:
                try:
                    module.end_upgrade()
                except Exception as error:
                    # of a user's module, or since the supervisor ends: call the others all the same
                    log.error("end_upgrade", error=error)

    def _by_name(self) -> dict[str, Module]:
        return {module.name: module for module in self.modules}

    def save_control(self) -> dict[str, Any]:
        """The counts and the modules' states that control keeps, for the next worker."""
        return {
            "modules": {name: module.save() for name, module in self._by_name().items()},
            "gone": self.accounts.gone,
            "engines": {
                each.engine.name: {"retired": each.retired, "charged": each.charged}
                for each in self.hosted
            },
        }

    def load_control(self, state: dict[str, Any]) -> None:
        """Loads a result of `save_control`. Members that this version does not know are ignored.
        Raises VnicError."""
        try:
            modules = self._by_name()
            for name, saved in state.get("modules", {}).items():
                if name in modules:
                    modules[name].load(saved)
            self.accounts.gone = {str(nic): int(ns) for nic, ns in state.get("gone", {}).items()}
            for each in self.hosted:
                counts = state.get("engines", {}).get(each.engine.name, {})
                each.retired.update({term: int(counts["retired"][term]) for term in each.retired})
                each.charged = {
                    str(name): int(ns) for name, ns in counts.get("charged", {}).items()
                }
            self.accounts.settle()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VnicError(f"what control counted cannot be read: {named(error)}") from None

    # -- status and counters -----------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Engines, groups, pool and the modules' parts; `conserved`: whether the conservation law
        holds in every engine."""
        with self.lock:
            engines = [
                {**each.engine.status(), **each.conservation(), **self._place(each.engine)}
                for each in self.hosted
            ]
            found = {
                "conserved": all(engine["conserved"] for engine in engines),
                "engines": engines,
                "groups": [group.status() for group in self.groups.values()],
                "lost": self.losses.status(),
            }
            for module in self.modules:
                found |= module.status()
            pool = {
                "small": self.pool.small_count,
                "large": self.pool.large_count,
                "in_use": self.pool.in_use,
            }
            if shares := self.shares.status():
                found["shares"] = shares
            return {**found, "pool": pool}

    def _place(self, engine: Engine) -> dict[str, Any]:
        """The group of an engine, and the thread that runs it now."""
        group = next((group for group in self.groups.values() if engine in group.engines), None)
        return {} if group is None else {"group": group.name, "thread": group.thread_of(engine)}

    def charges(self) -> dict[str, Any]:
        """CPU time and memory by client; see vnic.modules.accounts."""
        with self.lock:
            for group in self.groups.values():
                group.settle()
            return self.accounts.collect()

    def _clients(self) -> dict[str, int]:
        """The clients that are charged, with the bytes of memory of each."""
        found: dict[str, int] = {}
        for module in self.modules:
            try:
                found |= module.accounts()
            except Exception as error:
                # of a user's module: must leave neither other accounts open nor a NIC half detached
                log.error("accounts", error=error)
        return found

    def is_client(self, name: str) -> bool:
        """Whether a user's module has a client of that name."""
        for module in self._users:
            with suppress(Exception):  # raised by the user's module
                if name in module.accounts():
                    return True
        return False

    def stats(self, name: str | None = None) -> dict[str, Any]:
        """Counters of one NIC, or of everything: of NICs, their queues, and elements with their
        drops by reason."""
        with self.lock:
            nics = self.nics.statistics(name)
            elements = {
                each: {element.name: element for element in each.engine.elements}
                for each in self.hosted
            }
            return {
                "nics": nics,
                "engines": [
                    {
                        "name": each.engine.name,
                        "elements": [
                            {"name": element, "nic": found.owner, **_counters(found, statistics)}
                            for element, statistics in each.engine.snapshot()
                            if (found := elements[each][element]).owner == name or name is None
                        ],
                    }
                    for each in self.hosted
                ],
            }

    def graph(
        self, style: Literal["text", "dot", "json"] = "text", *, elements: bool = True
    ) -> str:
        """A picture of the elements of each engine, or of the network: "text", "dot" for Graphviz,
        or "json"."""
        with self.lock:
            if not elements:
                draw = {"text": network_text, "dot": network_dot}.get(style)
                return json.dumps(network_data(self.config)) if draw is None else draw(self.config)
            engines = self.engines
            if style == "dot":
                return to_dot([element for engine in engines for element in engine.elements])
            if style == "json":
                return json.dumps({engine.name: to_data(engine.elements) for engine in engines})
            return "\n".join(f"{engine.name}:\n{to_text(engine.elements)}" for engine in engines)

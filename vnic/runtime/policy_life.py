"""The life of an instance's policy of shaping: its generations, its end, and the way back.

Every change of the policy makes a generation (vnic.store.policies). It is stored before the
configuration that has its number, and removed again where that does not come to be: a worker that
finds a generation newer than the configuration's forgets it.

A policy ends by its time, since it was not confirmed, or with the connection of the command that
holds it. `PolicyTerm`, which says so, is part of the stored configuration.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec

from dataplane.errors import ConfigError, VnicError
from shaping.policy.difference import difference_texts
from vnic.api.log import Log
from vnic.config.copies import own_config
from vnic.config.policy_term import HIDDEN_FIELDS, PolicyTerm, policy_clock_ns
from vnic.config.schema import Config
from vnic.config.shape import set_policy
from vnic.runtime.apply import Change
from vnic.runtime.scenario import ScenarioRunner, Stage
from vnic.store.policies import Generation, Policies

# After a crash, the time for a command to connect to the new worker and go on holding its policy.
RETURN_NS = 5 * 10**9
CHANGES_MOST, TEXT_MOST = 8, 200  # that a generation lists; characters of each

NOT_CONFIRMED, TIME_OVER, LET_GO = (
    "withdrawn: not confirmed in time",
    "ended: its time was over",
    "ended: the command that held it has ended",
)

log = Log("vnic")


class Author(NamedTuple):
    """Who changes the policy, and how. uid None: vnic itself."""

    uid: int | None = None
    what: str = ""


@dataclass(frozen=True)
class Wish:
    """How long a new policy is to stay. for_ns, confirm_ns: from now. held: as long as the
    connection from which the call came. keeps_end: as the policy before was to, unless another wish
    says otherwise; its scenario goes on."""

    for_ns: int | None = None
    confirm_ns: int | None = None
    held: bool = False
    keeps_end: bool = False


class Changes(Stage, Protocol):
    """The part of a runtime that changes its network."""

    def compare(self, wanted: Config) -> list[Change]: ...
    def change(
        self,
        wanted: Config,
        author: Author | None = None,
        *,
        restored: int | None = None,
        undoable: bool = False,
    ) -> list[Change]: ...


class PolicyLife:
    """The policy of a runtime. All methods may be called from any thread.

    scenario: that of the policy, if it has one. woken: called when the time until the policy's end
    may have changed.
    """

    def __init__(self, runtime: Changes) -> None:
        self._runtime = runtime
        self._kept = Policies(runtime.keeping)
        self.scenario = ScenarioRunner(runtime)
        self._holders: Counter[int] = Counter()  # connections, by the generation that they hold
        # until then, a command may come back and hold its policy
        self._grace_ns = policy_clock_ns() + RETURN_NS
        self.woken: Callable[[], object] = lambda: None

    @property
    def term(self) -> PolicyTerm:
        return self._runtime.config.shape_term

    # -- changes -----------------------------------------------------------------------------------

    def apply(
        self,
        policy: Any,
        wish: Wish = Wish(),  # noqa: B008 - frozen
        author: Author = Author(),  # noqa: B008 - a tuple
        *,
        of: int | None = None,
        dry: bool = False,
    ) -> list[Change]:
        """Makes `policy` (plain data, see shaping.policy; None: none) the policy of the running
        network, as `Runtime.apply` does. of: the generation that it restores. Raises VnicError, and
        then nothing has changed."""
        runtime = self._runtime
        with runtime.lock:
            wanted = self._copy()
            set_policy(wanted, policy, spared=(wanted.shape, *([] if of is None else [policy])))
            wanted.shape_term = PolicyTerm() if policy is None else self._new_term(wish)
            if dry:
                return runtime.compare(wanted)
            return runtime.change(wanted, author, restored=of, undoable=True)

    def _copy(self) -> Config:
        """A copy of the running configuration, to be changed before the lock is free: so nothing
        else changes meanwhile. A policy makes no interfaces, which could take long."""
        wanted = own_config(self._runtime.config)
        # the others are in the running network only, see `prepared`
        wanted.nics = {name: nic for name, nic in wanted.nics.items() if not nic.passed}
        return wanted

    def _new_term(self, wish: Wish) -> PolicyTerm:
        now, clock_ns = self.term, policy_clock_ns()
        began_ns = self._runtime.clock.now_ns
        term = now if wish.keeps_end else PolicyTerm(began_ns=began_ns)
        if wish.for_ns is not None:
            term = msgspec.structs.replace(term, until_ns=clock_ns + wish.for_ns)
        if wish.held:
            term = msgspec.structs.replace(term, held=self._next)
        if wish.confirm_ns is not None:
            # Of two in a row that were not confirmed, neither is to stay.
            back = now.generation if now.confirm_ns is None else now.back
            term = msgspec.structs.replace(term, confirm_ns=clock_ns + wish.confirm_ns, back=back)
        return term

    def undo(
        self,
        number: int | None = None,
        wish: Wish = Wish(),  # noqa: B008 - frozen
        author: Author = Author(),  # noqa: B008 - a tuple
        *,
        dry: bool = False,
    ) -> list[Change]:
        """Makes an earlier generation's policy (None: the one before) the policy again. What both
        have stays. It ends when it was to end. Raises VnicError."""
        with self._runtime.lock:
            number = self._kept.before(self.term.generation) if number is None else number
            policy, for_ns = None, wish.for_ns
            if number > 0 and not (found := self._kept.get(number)).is_empty:
                policy, for_ns = found.data, _left_ns(found) if for_ns is None else for_ns
        return self.apply(policy, Wish(for_ns=for_ns), author, of=number, dry=dry)

    def confirm(self) -> int:
        """Makes a policy stay that waits to be confirmed; returns its generation. Raises
        VnicError."""
        runtime = self._runtime
        with runtime.lock:
            runtime.check_open()
            before = self.term
            if before.confirm_ns is None:
                raise VnicError("no policy waits to be confirmed", code="not-found")
            runtime.config.shape_term = msgspec.structs.replace(before, confirm_ns=None, back=0)

            def undo() -> None:
                runtime.config.shape_term = before

            runtime.remember(undo)
            if (found := self._kept.find(before.generation)) is not None:
                try:
                    self._kept.replace(msgspec.structs.replace(found, term=self.term))
                except VnicError as error:
                    log.warning("a policy is confirmed, but not in the log", why=str(error))
        self.woken()
        return before.generation

    # -- generations -------------------------------------------------------------------------------

    @property
    def _next(self) -> int:
        return max(self._kept.next, self.term.generation + 1)

    def begin(self) -> None:
        """Before this worker builds anything: forgets generations that have not come to be, ends a
        policy whose end came while there was no worker, and notes a policy of the file."""
        config = self._runtime.config
        if self._runtime.role == "successor":
            self.scenario.set(config, checked=True)
            return
        self._kept.forget_from(config.shape_term.generation + 1)
        if (why := self._why_over()) is not None:
            self.scenario.note_carriers(config.shape)
            policy, term = self._following(why)
            restored = self.term.back if policy is not None else None
            self._put(config, policy, term)
            config.shape_term = self._note(config, Author(None, why), {}, restored)
            log.info("policy of shaping", why=why)
        elif config.shape is not None and config.shape_term.generation == 0:
            author = Author(os.geteuid(), "up")
            config.shape_term = self._note(config, author, {}, None)
        self.scenario.set(config, checked=self._runtime.role == "crash")

    def begin_scenario(self, at_ns: int) -> None:
        """Lets the scenario begin at an instant of the engines' clock, such as a replay's first
        packet."""
        with self._runtime.lock:
            config = self._runtime.config
            if config.shape is not None:
                config.shape_term = msgspec.structs.replace(config.shape_term, began_ns=at_ns)
                self.scenario.set(config, checked=True)
                self.scenario.sync()

    @contextmanager
    def changing(
        self, wanted: Config, changes: list[Change], author: Author, restored: int | None
    ) -> Iterator[None]:
        """Around the change of the network to `wanted`, with the runtime's lock: notes another
        policy, and forgets it where the change fails; and lets its scenario begin."""
        change = next((each for each in changes if each.kind == "shape"), None)
        if change is not None:
            wanted.shape_term = self._note(wanted, author, change.fields, restored)
        try:
            self.scenario.set(wanted)
            yield
        except BaseException:
            if change is not None:
                self._kept.forget_from(wanted.shape_term.generation)
            self.scenario.set(self._runtime.config, checked=True)
            self.scenario.sync()
            raise
        self.scenario.sync()
        if change is not None:
            if wanted.shape_term.held is not None:
                self._grace_ns = policy_clock_ns() + RETURN_NS
            self.woken()

    def _note(
        self,
        config: Config,
        author: Author,
        fields: dict[str, tuple[Any, Any]],
        restored: int | None,
    ) -> PolicyTerm:
        """Stores a generation; returns its term. Raises VnicError."""
        number = self._next
        term = msgspec.structs.replace(config.shape_term, generation=number)
        if config.shape is not None and term.began_ns is None:
            term = msgspec.structs.replace(term, began_ns=self._runtime.clock.now_ns)
        generation = Generation(
            number=number,
            policy=msgspec.Raw(msgspec.json.encode(config.shape)),
            term=term,
            at_s=round(time.time(), 3),
            uid=author.uid,
            what=author.what,
            changes=_shown(fields),
            of=restored,
        )
        self._kept.add(generation, term.back)
        return term

    # -- the end -----------------------------------------------------------------------------------

    def left_ns(self) -> int | None:
        """How long the policy stays at least; at most 0: its end has come. None: it has no end that
        is known."""
        term, ends = self.term, []
        if term.until_ns is not None:
            ends.append(term.until_ns)
        if term.confirm_ns is not None:
            ends.append(term.confirm_ns)
        if term.held is not None and not self._holders[term.held]:
            ends.append(self._grace_ns)
        return min(ends) - policy_clock_ns() if ends else None

    def _why_over(self) -> str | None:
        """Why the policy is to end now; None: it is not."""
        term, now_ns = self.term, policy_clock_ns()
        if term.confirm_ns is not None and now_ns >= term.confirm_ns:
            return NOT_CONFIRMED
        if term.until_ns is not None and now_ns >= term.until_ns:
            return TIME_OVER
        if term.held is not None and not self._holders[term.held] and now_ns >= self._grace_ns:
            return LET_GO
        return None

    def end(self) -> str | None:
        """Ends the policy if its end has come; returns why it did. One that was not confirmed makes
        room for the policy before. Raises VnicError."""
        runtime = self._runtime
        with runtime.lock:
            why = self._why_over()
            if why is None or runtime.upgrading or runtime.closed:
                return None
            policy, term = self._following(why)
            restored = self.term.back if policy is not None else None
            wanted = self._copy()
            self._put(wanted, policy, term)
            runtime.change(wanted, Author(None, why), restored=restored)
        return why

    @staticmethod
    def _put(config: Config, policy: Any, term: PolicyTerm) -> None:
        """Gives a configuration a policy that was running before, without one that the network has
        become too different for."""
        try:
            set_policy(config, policy, spared=(policy,))
            config.shape_term = term
        except ConfigError as error:
            log.error("the policy before cannot be restored", why=str(error))
            set_policy(config, None)
            config.shape_term = PolicyTerm()

    def _following(self, why: str) -> tuple[Any, PolicyTerm]:
        """What follows the policy at its end, with its term: none, or the one before."""
        found = self._kept.find(self.term.back) if why is NOT_CONFIRMED else None
        if found is None or found.is_empty:
            return None, PolicyTerm()
        term = msgspec.structs.replace(found.term, confirm_ns=None, back=0)
        over = term.until_ns is not None and policy_clock_ns() >= term.until_ns
        if over or (term.held is not None and not self._holders[term.held]):
            return None, PolicyTerm()
        return found.data, term

    # -- commands that hold a policy ---------------------------------------------------------------

    def _holds(self) -> list[int]:
        """The generations that connections may hold: of the policy that runs, and of the one that
        may return."""
        back = self._kept.find(self.term.back)
        held = self.term.held, None if back is None else back.term.held
        return [each for each in held if each is not None]

    def hold(self, generation: int) -> None:
        """A connection holds the policy that was applied as `generation` from now on. Raises
        VnicError where that has ended."""
        with self._runtime.lock:
            if generation not in self._holds():
                raise VnicError(
                    f"generation {generation}: has ended, and no connection can hold it",
                    code="not-found",
                )
            self._holders[generation] += 1

    def let_go(self, generation: int) -> None:
        """A connection that held a policy has ended, or holds it no more: the policy ends with the
        last one."""
        with self._runtime.lock:
            self._holders[generation] -= 1
            self._grace_ns = policy_clock_ns()
        self.woken()

    def claim(self, held: Iterable[int]) -> None:
        """A successor has taken over, with connections that hold policies."""
        self.scenario.resume()
        self._holders.update(held)
        self._grace_ns = policy_clock_ns() + RETURN_NS
        self.woken()

    # -- a NIC that is attached anew ---------------------------------------------------------------

    def renew(self) -> None:
        """Gives the running network the elements of its policy where they are missing. Raises
        VnicError."""
        with self._runtime.lock:
            if self._runtime.config.shape is None:
                return
            wanted = self._copy()
            set_policy(wanted, wanted.shape, spared=(wanted.shape,))
            self._runtime.change(wanted)

    # -- what is told ------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The policy that runs: generation, and when it ends."""
        term, now_ns = self.term, policy_clock_ns()
        back = self._kept.find(term.back)

        def left_ms(at_ns: int | None) -> int | None:
            return None if at_ns is None else max(at_ns - now_ns, 0) // 1_000_000

        return {
            "generation": term.generation,
            "ends_in_ms": left_ms(term.until_ns),
            "withdrawn_in_ms": left_ms(term.confirm_ns),
            "back": None if back is None or back.is_empty else back.number,
            "held": term.held is not None,
            "holds": self._holds(),
            "scenario": self.scenario.status(),
        }

    def generations(self) -> list[dict[str, Any]]:
        """All generations, the oldest first, without their policies."""
        return [self._told(each) for each in self._kept.all()]

    def generation(self, number: int) -> dict[str, Any]:
        """One generation with its policy. Raises ConfigError."""
        found = self._kept.get(number)
        return {**self._told(found), "policy": found.data}

    def _told(self, each: Generation) -> dict[str, Any]:
        until_ns = each.term.until_ns
        left_s = None if until_ns is None else (until_ns - policy_clock_ns()) / 1e9
        return {
            "generation": each.number,
            "at": each.at_s,
            "uid": each.uid,
            "what": each.what,
            "until": None if left_s is None else round(time.time() + left_s, 3),
            "unconfirmed": each.term.confirm_ns is not None,
            "held": each.term.held is not None,
            "empty": each.is_empty,
            "of": each.of,
            "changes": each.changes,
        }


def _left_ns(generation: Generation) -> int | None:
    """How long a generation's policy is still to stay, where it is restored; None: for ever. Raises
    ConfigError where its end has come, or cannot be known."""
    if generation.term.held is not None:
        raise ConfigError(
            f"generation {generation.number}: was a command's; give a time, such as --for 10m"
        )
    if generation.term.until_ns is None:
        return None
    left_ns = generation.term.until_ns - policy_clock_ns()
    if left_ns <= 0:
        raise ConfigError(
            f"generation {generation.number}: its time is over; give another one, such as --for 10m"
        )
    return left_ns


def _shown(fields: dict[str, tuple[Any, Any]]) -> list[str]:
    """The first differences of two policies, as text."""
    found = [(path, was, will) for path, (was, will) in fields.items() if path not in HIDDEN_FIELDS]
    texts = [text[:TEXT_MOST] for text in difference_texts(found[:CHANGES_MOST])]
    more = len(found) - len(texts)
    return [*texts, f"and {more} more"] if more else texts

"""`vnic shape diff`, `log`, `undo`, `confirm`: generations of a policy; commands that hold one."""

from __future__ import annotations

import datetime
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from dataplane.errors import VnicError, printable
from vnic.cli.common import (
    Time,
    connect,
    instance_option,
    json_option,
    plural,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from vnic.api.client import Client

LOOK_S = 1.0  # between two checks whether the policy that a command holds is still there
RETURN_S = 5.0  # after a crash of the worker, the time to hold it again


# -- commands --------------------------------------------------------------------------------------


@click.command()
@click.argument("before", metavar="FILE|GENERATION")
@click.argument("after", metavar="[FILE|GENERATION]", required=False)
@instance_option
@json_option
def diff(before: str, after: str | None, instance: str, as_json: bool) -> None:
    """Show how two policies differ.

    With one argument, how the running policy would have to change to become it. A number is a
    generation, as `vnic shape log` lists them, 0 stands for no policy; ./7 is a file of that name.

    \b
    vnic shape diff slow.yaml              what `apply slow.yaml` would change
    vnic shape diff 4 5
    vnic shape diff slow.yaml fast.yaml    needs no running instance
    """
    from shaping.policy.difference import difference_texts, differences, flat_policy

    if after is None:
        with connect(instance) as client:
            running = client.call("ShapeStatus", whole=True)["status"]["policy"]
        policies = [running, _policy(before, instance)]
    else:
        policies = [_policy(before, instance), _policy(after, instance)]
    flat = [flat_policy(each) for each in policies]
    found = [each for each in differences(*flat) if each[0] != "version"]
    if as_json:
        print_json({
            "differences": [
                {"field": path, "before": was, "after": will} for path, was, will in found
            ]
        })  # fmt: skip
        return
    for text in difference_texts(found):
        click.echo(printable(text))
    if not found:
        click.echo("no difference")


@click.command()
@instance_option
@json_option
def log(instance: str, as_json: bool) -> None:
    """List the last 32 policies.

    Each with the user who made the change, when, how, and until when it stays. They survive an
    upgrade and a crash of the worker.

    \b
    vnic shape log
    vnic shape diff 4 5
    vnic shape undo 4
    """
    with connect(instance) as client:
        found = client.call("ShapeLog")["generations"]
        running = client.call("ShapeStatus")["status"]["generation"]
    if as_json:
        print_json({"generation": running, "generations": found})
        return
    print_table(
        [">", "when", "who", "what", "until", "changes"],
        [
            [
                f"{'*' if each['generation'] == running else ''}{each['generation']}",
                _when(each["at"]), _user(each["uid"]), _what(each), _until(each),
                "; ".join(each["changes"]),
            ]
            for each in found
        ],
    )  # fmt: skip


@click.command()
@click.argument("generation", metavar="[GENERATION]", type=click.IntRange(0), required=False)
@click.option("--for", "for_ns", type=Time(), help="End the policy after this time.")
@click.option("-n", "--dry-run", "dry", is_flag=True, help="Only show what would change.")
@instance_option
@json_option
def undo(
    generation: int | None, for_ns: int | None, dry: bool, instance: str, as_json: bool
) -> None:
    """Go back to an earlier policy.

    By default to the one before; another `undo` goes further back. What both policies have stays as
    it is, and packets that wait go on waiting. A policy that was to end ends when it was to; where
    its time is over, give --for.

    \b
    vnic shape undo
    vnic shape undo 4 --for 10m
    """
    with connect(instance) as client:
        for_ms = None if for_ns is None else max(for_ns // 1_000_000, 1)
        answer = client.call("UndoShape", generation=generation, for_ms=for_ms, dry=dry)
    report("undo", answer, instance, dry=dry, as_json=as_json)


@click.command()
@instance_option
@json_option
def confirm(instance: str, as_json: bool) -> None:
    """Make a policy stay that was applied with --confirm.

    \b
    vnic shape apply slow.yaml --confirm 1m
    vnic shape confirm
    """
    with connect(instance) as client:
        answer = client.call("ConfirmShape")
    print_json(answer) if as_json else click.echo(f"generation {answer['generation']} stays")


COMMANDS = (diff, log, undo, confirm)


def _policy(text: str, instance: str) -> Any:
    """The policy of a file or generation, as plain data; None: none."""
    from shaping.policy.load import load_policy, policy_data

    if not (text.isascii() and text.isdecimal()):
        return policy_data(load_policy(text))
    if int(text) == 0:
        return None
    with connect(instance) as client:
        return client.call("ShapeLog", generation=int(text))["generations"][0]["policy"]


# -- texts -----------------------------------------------------------------------------------------


def report(what: str, answer: dict[str, Any], instance: str, *, dry: bool, as_json: bool) -> None:
    """Prints what a change of the policy has changed, its generation, and the way back."""
    from shaping.policy.difference import difference_texts
    from vnic.config.policy_term import HIDDEN_FIELDS

    changes, generation = answer["changes"], answer["generation"]
    back = f"vnic shape undo{'' if instance == 'default' else f' -i {instance}'}"
    if as_json:
        given = {} if dry else {"generation": generation, "undo": back}
        print_json({"changes": changes, **given})
        return
    fields = [each for change in changes if change["kind"] == "shape" for each in change["fields"]]
    found = [
        (each["field"], each["before"], each["after"])
        for each in fields
        if each["field"] not in HIDDEN_FIELDS
    ]
    for text in difference_texts(found):
        click.echo(printable(text))
    if not changes:
        click.echo(f"{what}: nothing to change")
    elif dry:
        click.echo(f"{what}: {plural(len(found), 'change')} would be made")
    else:
        click.echo(f"{what}: {plural(len(found), 'change')} made")
        click.echo(f"generation {generation}; `{back}` goes back")


def ending_texts(status: dict[str, Any]) -> list[str]:
    """When the running policy ends."""
    texts = []
    if (left_ms := status["withdrawn_in_ms"]) is not None:
        back = "no policy" if status["back"] is None else f"generation {status['back']} again"
        texts.append(f"withdrawn in {span(left_ms)} unless `vnic shape confirm` comes: then {back}")
    if (left_ms := status["ends_in_ms"]) is not None:
        texts.append(f"ends in {span(left_ms)}")
    if status["held"]:
        texts.append("ends with the command that applied it")
    return texts


def scenario_text(scenario: dict[str, Any]) -> str:
    """Which step of a scenario is in effect."""
    step, of = scenario["step"], scenario["steps"]
    now = f"step {step} of {of}: {scenario['what']}" if step else f"before step 1 of {of}"
    since = f"{span(scenario['elapsed_ns'] // 1_000_000)} since it began"
    again = f", round {scenario['round']}" if scenario["round"] > 1 else ""
    left_ms = scenario["next_in_ms"]
    following = "nothing more" if left_ms is None else f"next change in {span(left_ms)}"
    return f"scenario: {now}; {since}{again}; {following}"


def span(time_ms: int) -> str:
    """A time for people, such as "4m 10s"."""
    if time_ms < 60_000:
        return f"{time_ms / 1000:.3g}s"
    found = []
    left_s = time_ms // 1000
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if count := left_s // size:
            found.append(f"{count}{unit}")
        left_s %= size
    return " ".join(found[:2])


def _when(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M:%S")


def _user(uid: int | None) -> str:
    if uid is None:
        return "vnic"
    import pwd

    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"uid {uid}"


def _what(generation: dict[str, Any]) -> str:
    of = generation["of"]
    restored = "" if of is None else f" (generation {of})"
    return f"{generation['what'] or 'changed'}{restored}"


def _until(generation: dict[str, Any]) -> str | None:
    if generation["empty"]:
        return "no policy"
    found = [] if generation["until"] is None else [_when(generation["until"])]
    found += ["confirmed"] if generation["unconfirmed"] else []
    found += ["its command ends"] if generation["held"] else []
    return ", ".join(found) or None


# -- holding a policy ------------------------------------------------------------------------------


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """While it lasts, Ctrl-C sets the event, and leaves no call of the API without its reply."""
    event = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


class Hold:
    """The policy that this command has applied; it ends with `client`'s connection, which is made
    again after a crash of the worker."""

    def __init__(self, client: Client, instance: str, generation: int) -> None:
        self._client, self._instance, self._generation = client, instance, generation
        self._daemon = client.pid

    def is_there(self) -> bool:
        """Whether the policy is still there. Raises VnicError where there is no instance any
        more."""
        try:
            return self._generation in self._client.call("ShapeStatus")["status"]["holds"]
        except VnicError:
            return self._connect()

    def _connect(self) -> bool:
        until_s = time.monotonic() + RETURN_S
        self._client.close()
        while True:
            try:
                self._client = connect(self._instance)
                if self._client.pid != self._daemon:
                    # another instance by now, whose generations have the same numbers
                    self._client.close()
                    return False
                self._client.call("HoldShape", generation=self._generation)
                return True
            except VnicError as error:
                self._client.close()
                if error.code == "not-found":
                    return False
                if time.monotonic() > until_s:
                    raise
            time.sleep(LOOK_S / 10)

    def wait(self) -> bool:
        """Waits for Ctrl-C, and then ends the policy. False: it had ended, or another one has
        replaced it."""
        with interrupts() as interrupted:
            while self.is_there():
                if interrupted.wait(LOOK_S):
                    self.end()
                    return True
        return False

    def end(self) -> None:
        """Ends the policy; returns when it has ended."""
        while self.is_there():
            with suppress(VnicError):  # the worker is killed meanwhile: the next one is asked
                self._client.call("HoldShape", generation=self._generation, hold=False)
                break
        self._client.close()

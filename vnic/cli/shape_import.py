"""`vnic shape import` and `vnic shape tc`: policies from what other tools have, and back to tc."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from dataplane.errors import printable
from vnic.cli.common import connect, instance_option, json_option, plural, print_json

if TYPE_CHECKING:
    from shaping.imports.form import Draft
    from shaping.policy.findings import Finding

TOOLS = ("tcconfig", "atc", "chaos-mesh", "docker-tc", "comcast", "pumba", "wondershaper", "tc")
REFUSED_SHOWN = 20

nic_option = click.option(
    "--nic", metavar="NIC", help="The NIC for the one device that the file is about."
)
map_option = click.option(
    "--map", "mapped", metavar="NAME=NIC,...", multiple=True,
    help="NICs for devices, containers or addresses, such as eth0=web, ifb0=web.ingress or "
    "10.0.0.5=db.",
)  # fmt: skip
output_option = click.option(
    "-o", "--output", type=click.Path(), metavar="FILE", help="Write to FILE."
)
partial_option = click.option(
    "--partial", is_flag=True, help="Leave out what is not supported, in place of failing."
)


@click.command(name="import")
@click.argument("file", metavar="[FILE|-]", default="-", type=click.Path())
@click.option(
    "--from", "tool", type=click.Choice(TOOLS), metavar="TOOL",
    help=f"Where FILE comes from: {', '.join(TOOLS)}. Default: told by its content.",
)  # fmt: skip
@nic_option
@map_option
@partial_option
@output_option
@json_option
def import_policy(
    file: str,
    tool: str | None,
    nic: str | None,
    mapped: tuple[str, ...],
    partial: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Make a policy of the file or command line of another tool.

    The policy goes to stdout or -o FILE, and to stderr what differs here. What a policy cannot say
    is an error; with --partial it is left out.

    Exit status: 0 the policy was made, 2 it was not.

    \b
    tcshow eth0 | vnic shape import --nic web -o slow.yaml
    vnic shape import chaos.yaml --map tikv=db
    echo 'pumba netem delay --time 100 web' | vnic shape import
    """
    _import(file, tool, nic, mapped, partial=partial, output=output, as_json=as_json)


@click.group()
def tc() -> None:
    """Read and write what tc(8) has.

    \b
    vnic shape tc import setup.sh --nic web -o slow.yaml
    tc qdisc show | vnic shape tc import --map eth0=web
    vnic shape tc export web > setup.sh
    """


@tc.command(name="import")
@click.argument("file", metavar="[FILE|-]", default="-", type=click.Path())
@nic_option
@map_option
@partial_option
@output_option
@json_option
def tc_import(
    file: str,
    nic: str | None,
    mapped: tuple[str, ...],
    partial: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Make a policy of tc commands, or of what tc shows.

    That is what `tc qdisc show`, `tc class show` and `tc filter show` print, with or without -s, -d
    and -j.

    netem and tbf become lines, htb, hfsc and prio below a rate classes, police at the ingress and
    an ifb device the other direction. The policy goes to stdout or -o FILE, and to stderr what
    differs here, such as what netem's correlation makes of a loss. What a policy cannot say is an
    error; with --partial it is left out.

    Exit status: 0 the policy was made, 2 it was not.

    \b
    vnic shape tc import setup.sh --nic web -o slow.yaml
    vnic shape tc import setup.sh --map eth0=web,10.0.0.5=db
    sh -x setup.sh 2>&1 | vnic shape tc import
    (tc qdisc show; tc class show dev eth0; tc filter show dev eth0) | vnic shape tc import
    """
    _import(file, "tc", nic, mapped, partial=partial, output=output, as_json=as_json)


@tc.command()
@click.argument("nic", required=False)
@click.option("-f", "--file", type=click.Path(), metavar="FILE.yaml",
              help="The policy. Default: the running one.")  # fmt: skip
@click.option("-c", "--config", "network", type=click.Path(), metavar="NET.yaml",
              help="The network that the policy is for. Default: the running one.")  # fmt: skip
@click.option("--dev", metavar="DEVICE", help="The interface. Default: the NIC's name.")
@output_option
@instance_option
@json_option
def export(
    nic: str | None,
    file: str | None,
    network: str | None,
    dev: str | None,
    output: str | None,
    instance: str,
    as_json: bool,
) -> None:
    """Print the policy of a NIC as a script of tc commands.

    It has comments on what tc cannot say. Without NIC: of all NICs that the policy is about.

    \b
    vnic shape tc export web --dev eth0 | sh
    vnic shape tc export web -f slow.yaml -c net.yaml -o setup.sh
    """
    from shaping.imports.export import export_tc, nics_of

    policy, classes, known = _policy(file, network, instance)
    if nic is not None and nic not in known.nics:
        from dataplane.config.convert import did_you_mean

        hint = did_you_mean(nic, list(known.nics)) if known.nics else "the network has none"
        raise click.UsageError(f"there is no NIC {nic}; {hint}")
    chosen = [nic] if nic is not None else nics_of(policy, classes, known)
    if not chosen:
        raise click.UsageError("the policy is about no NIC")
    if dev is not None and len(chosen) > 1:
        raise click.UsageError(f"--dev is for one NIC, and there are {', '.join(chosen[:8])}")
    scripts = [export_tc(policy, classes, known, each, dev or each) for each in chosen]
    text = "\n".join(script.text for script in scripts)
    findings = [finding for script in scripts for finding in script.notes.findings]
    if output is not None:
        _write(output, text)
    if as_json:
        print_json({"script": text, "findings": [each._asdict() for each in findings]})
    elif output is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{output}: written, {plural(len(findings), 'note')}")


# -- shared ----------------------------------------------------------------------------------------


def _names(mapped: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in (part for text in mapped for part in text.split(",")):
        # From the right: a name of another tool may hold an equals sign, a NIC's may not.
        name, equals, nic = each.strip().rpartition("=")
        if not equals or not name or not nic:
            raise click.UsageError(f"--map {each}: expected NAME=NIC, such as eth0=web")
        found[name] = nic
    return found


def _import(
    file: str,
    tool: str | None,
    nic: str | None,
    mapped: tuple[str, ...],
    *,
    partial: bool,
    output: str | None,
    as_json: bool,
) -> None:
    from dataplane.config.load import read_text
    from shaping.imports.detect import READERS, tool_of
    from shaping.imports.form import TEXT_MOST, Names
    from shaping.imports.notes import Notes

    notes = Notes()
    names = Names(_names(mapped), nic, notes)
    text, name = read_text(file, TEXT_MOST)
    draft = READERS[tool or tool_of(text, name)](text, name, names)
    refused = draft.notes.refused
    if refused and not partial:
        _refuse(name, refused, draft, as_json)
    draft.check()
    made = draft.text
    if output is not None:
        _write(output, made)
    if as_json:
        print_json({"ok": True, "policy": draft.data, "findings": _findings(draft)})
        return
    for finding in draft.notes.findings:
        click.echo(printable(str(finding)), err=True)
    if draft.empty:
        click.echo(f"{name}: nothing to shape", err=True)
    if output is None:
        click.echo(made, nl=False)


def _refuse(name: str, refused: list[Finding], draft: Draft, as_json: bool) -> None:
    """Ends the command: every line that has no counterpart is said at once."""
    if as_json:
        print_json({"ok": False, "policy": None, "findings": _findings(draft)})
    else:
        for finding in refused[:REFUSED_SHOWN]:
            click.echo(printable(str(finding)), err=True)
        if len(refused) > REFUSED_SHOWN:
            click.echo(f"and {len(refused) - REFUSED_SHOWN} more", err=True)
        click.echo(
            f"vnic: error: {name}: {plural(len(refused), 'thing')} not supported; --partial leaves "
            "them out",
            err=True,
        )
    raise click.exceptions.Exit(2)


def _findings(draft: Draft) -> list[dict[str, Any]]:
    return [each._asdict() for each in draft.notes.findings]


def _write(path: str, text: str) -> None:
    """Writes a file as a whole or not at all."""
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise click.UsageError(f"{path}: {error.strerror}") from None


def _policy(file: str | None, network: str | None, instance: str) -> tuple[Any, Any, Any]:
    """(policy, its classes as plain data, network)"""
    from dataplane.config.load import parse_yaml, read_text
    from shaping.policy.load import convert_policy
    from vnic.config.shape import network_of

    running: dict[str, Any] | None = None
    if file is None or network is None:
        with connect(instance) as client:
            running = client.call("GetConfig")["config"]
    if network is not None:
        from vnic.config.load import load_config

        known = network_of(load_config(network, contained=False))
    else:
        from vnic.config.convert import convert_config

        assert running is not None
        known = network_of(convert_config({**running, "shape": None}, contained=False))
    if file is None:
        assert running is not None
        data: Any = running.get("shape")
        if data is None:
            raise click.UsageError("no policy is running: name one with -f FILE")
        locate, name = (lambda path: ""), ""
    else:
        text, name = read_text(file)
        data, locate = parse_yaml(text, name)
    classes: Any = {}
    if isinstance(data, dict):
        data = dict(data)
        classes = data.pop("classes", None) or {}
    if not isinstance(classes, dict):
        raise click.UsageError(f"{name}: classes: expected a mapping")
    return convert_policy(data, locate, name), classes, known

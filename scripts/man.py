"""Writes man pages: vnic(1) and one for each command, from what `vnic COMMAND --help` says.

usage: man.py DIRECTORY [VERSION]
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent

FILES = [
    (
        "/run/vnic, $XDG_RUNTIME_DIR/vnic",
        "Control sockets, locks and logs of root's instances, and of a plain user's.",
    ),
]


def escape(text: str) -> str:
    """Text as roff prints it: no backslash, and no dot or quote at the begin of a line, means
    anything else."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.splitlines())


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a help text. One that begins with \\b, as click has it, is printed as it
    stands."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        verbatim, _, rest = paragraph.partition("\b\n")
        if rest and not verbatim.strip():
            yield f".PP\n.nf\n.RS\n{escape(rest)}\n.RE\n.fi"
        else:
            yield f".PP\n{escape(' '.join(paragraph.split()))}"


def section(title: str, lines: list[str]) -> list[str]:
    return [f".SH {title}", *lines] if lines else []


def definition(term: str, text: str) -> str:
    return f".TP\n\\fB{escape(term)}\\fR\n{escape(text)}"


def options(context: click.Context, command: click.Command) -> list[str]:
    records = [
        each.get_help_record(context)
        for each in command.get_params(context)
        if isinstance(each, click.Option)
    ]
    return [
        definition(" ".join(term.split()), " ".join(text.split()))
        for term, text in filter(None, records)
    ]


def page(context: click.Context, command: click.Command, version: str, see: list[str]) -> str:
    """One page. The commands of a group below the first are sections of its page."""
    name = context.command_path.replace(" ", "-")
    summary, *_ = inspect.cleandoc(command.help or "").split("\n\n")
    summary = " ".join(summary.split())
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f'.TH {escape(name.upper())} 1 "" "vnic {version}" "vnic"']
    lines += section("NAME", [f"{escape(name)} \\- {escape(summary.rstrip('.'))}"])
    lines += section("SYNOPSIS", [f"\\fB{escape(context.command_path)}\\fR {escape(usage)}"])
    lines += section(
        "DESCRIPTION", [each.removeprefix(".PP\n") for each in paragraphs(command.help or "")]
    )
    lines += section("OPTIONS", options(context, command))
    if isinstance(command, click.Group):
        below = [
            (each, command.get_command(context, each)) for each in command.list_commands(context)
        ]
        if context.parent is None:
            found = [
                definition(f"{name}-{each}(1)", found.get_short_help_str(100))
                for each, found in below
                if found
            ]
            lines += section("COMMANDS", found)
            lines += section("FILES", [definition(*each) for each in FILES])
        for each, found in below if context.parent is not None else []:
            if found is not None:
                child = click.Context(found, info_name=each, parent=context)
                pieces = " ".join(found.collect_usage_pieces(child))
                lines += [
                    f'.SH "{escape(child.command_path.upper())}"',
                    f"\\fB{escape(child.command_path)}\\fR {escape(pieces)}",
                ]
                lines += [*paragraphs(found.help or ""), *options(child, found)]
    lines += section("SEE ALSO", [escape(", ".join(f"{each}(1)" for each in see))])
    return "\n".join(lines) + "\n"


def write(folder: Path, version: str) -> list[Path]:
    """Writes all pages, and returns their paths."""
    from vnic.cli.main import COMMANDS, cli

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.1"):
        old.unlink()
    root = click.Context(cli, info_name="vnic", **cli.context_settings)
    pages = {"vnic": page(root, cli, version, [f"vnic-{name}" for name in COMMANDS])}
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        pages[f"vnic-{name}"] = page(
            click.Context(command, info_name=name, parent=root), command, version, ["vnic"]
        )
    written = []
    for name, text in pages.items():
        written.append(folder / f"{name}.1")
        written[-1].write_text(text)
    return written


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    pages = write(Path(arguments[0]), *(arguments[1:] or [""]))
    print(f"{len(pages)} pages in {arguments[0]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

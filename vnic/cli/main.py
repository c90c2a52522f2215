"""The `vnic` command. Commands are imported when they run, so that help, errors and completion
answer at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

# numpy's BLAS starts a thread for every CPU, which spins for a while; nothing here multiplies
# matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataplane.descriptors import system_error  # noqa: E402 - as above
from dataplane.errors import ConfigError, VnicError, one_line, printable  # noqa: E402 - may import numpy

# name -> (module, one line of help), so that `vnic --help` imports no module; "": not listed there
COMMANDS = {
    "demo": ("vnic.cli.run", "Connect two containers and measure TCP between them."),
    "up": ("vnic.cli.run", "Run a configuration file."),
    "down": ("vnic.cli.run", "Stop a running instance."),
    "upgrade": ("vnic.cli.upgrade", "Replace the running program without interrupting traffic."),
    "apply": ("vnic.cli.apply", "Change a running network to what a file describes."),
    "undo": ("vnic.cli.apply", "Go back to the network before the last apply."),
    "shape": ("vnic.cli.shape", "Give a running network rates, delays and losses."),
    "attach": ("vnic.cli.nics", "Attach a NIC to a container."),
    "exec-with": ("vnic.cli.exec_with", "Run a program, such as QEMU, with a NIC of its own."),
    "detach": ("vnic.cli.nics", "Detach a NIC."),
    "rate": ("vnic.cli.nics", "Set or remove a NIC's rate limits."),
    "link": ("vnic.cli.nics", "Set a NIC's link up or down."),
    "status": ("vnic.cli.show", "Show engines, NICs and switch."),
    "stats": ("vnic.cli.show", "Show counters, per queue and element."),
    "accounts": ("vnic.cli.groups", "Show CPU time and memory by NIC."),
    "group": ("vnic.cli.groups", "Change how an engine group gets CPU time."),
    "handler": ("vnic.cli.handlers", "Read or write element handlers."),
    "top": ("vnic.cli.top", "Watch rates, queues and drops live."),
    "monitor": ("vnic.cli.show", "Show events as they occur."),
    "metrics": ("vnic.cli.show", "Show metrics for Prometheus."),
    "capture": ("vnic.cli.capture", "Capture packets at a NIC or an element."),
    "graph": ("vnic.cli.show", "Show the packet graph."),
    "replay": ("vnic.cli.replay", "Send captures through a configuration in virtual time."),
    "diff": ("vnic.cli.replay", "Compare two captures, packet by packet."),
    "element": ("vnic.cli.element", "List or describe the built-in elements."),
    "doctor": ("vnic.cli.check", "Check this machine and suggest fixes."),
    "config": ("vnic.cli.check", "Check, explain and compare configurations."),
    "completion": ("vnic.cli.check", "Print the completion script for a shell."),
    "hook": ("vnic.cli.hook", ""),  # container runtimes call it
}


class LazyGroup(click.Group):
    """A group that imports a command when it is used, and the one place where errors become a line
    and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items() if line])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(COMMANDS)}"
            )
            raise click.UsageError(f"unknown command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Exit status: 0 done, 1 it failed while running, 2 the user's mistake, 130 interrupted."""
        extra["standalone_mode"] = False
        try:
            status = super().main(args, prog_name or "vnic", **extra)
            sys.stdout.flush()
            sys.exit(status if isinstance(status, int) else 0)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(130)
        except BrokenPipeError:
            # The reader of the output has closed the pipe. Python flushes again at exit: redirect
            # that to /dev/null.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)
        except Exception as error:
            fail(error, self._path(sys.argv[1:] if args is None else args))

    def _path(self, args: Sequence[str]) -> str:
        """The command that these arguments call, as typed: what click does not say of a wrong
        option."""
        path, command = "vnic", self
        for word in args:
            if not isinstance(command, click.Group) or word not in command.list_commands(
                _NO_CONTEXT
            ):
                break
            path = f"{path} {word}"
            command = command.get_command(_NO_CONTEXT, word)  # type: ignore[assignment]
        return path


_NO_CONTEXT = click.Context(click.Command("vnic"))


def explain(error: Exception, command: str = "vnic") -> tuple[str, int]:
    """What an error means to the user: one line, and the exit status. command: what was called."""
    match error:
        case click.UsageError():
            path = error.ctx.command_path if error.ctx is not None else command
            message, status = f"{error.format_message()} (see '{path} --help')", 2
        case click.ClickException():
            message, status = error.format_message(), 2
        case ConfigError():
            message, status = str(error), 2
        case VnicError():
            message, status = str(error), 1
        case OSError():
            place = f"{error.filename}: " if error.filename is not None else ""
            message, status = place + system_error(error), 1
        case _:
            message, status = f"{one_line(error)}; VNIC_DEBUG=1 shows where", 1
    return printable(" ".join(message.split())), status


def fail(error: Exception, command: str = "vnic") -> NoReturn:
    """One line on stderr, with VNIC_DEBUG=1 the traceback before it, and the end."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    message, status = explain(error, command)
    if os.environ.get("VNIC_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    click.echo(f"vnic: error: {message}", err=True)
    sys.exit(status)


def version() -> str:
    """The distribution's version, or "unknown" where it runs from a tree that was never
    installed."""
    from importlib import metadata

    try:
        return metadata.version("vnic")
    except metadata.PackageNotFoundError:
        return "unknown"


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"vnic {version()}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def cli() -> None:
    """Software NICs for containers: switched, shaped and counted, without root.

    \b
    vnic up net.yaml                   run a configuration; Ctrl-C stops it
    vnic attach tap web --pid 4242     give the container of process 4242 a NIC

    Exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted.
    """


def main() -> NoReturn:
    cli.main()


if __name__ == "__main__":
    main()

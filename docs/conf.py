"""The web site: `make docs` builds it of the Markdown files of the whole tree, so that their links
work here and on GitHub."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "vnic"
author = "the vnic authors"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "bench/README.md",
    "dataplane/README.md",
    "examples/README.md",
    "examples/shaping/README.md",
    "shaping/README.md",
    "vnic/README.md",
]
html_theme = "furo"
html_title = "vnic"
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 3
pygments_style = "sphinx"
highlight_language = "text"
nitpicky = True


def commands() -> str:
    """docs/commands.md: the help of all commands, as `--help` prints it."""
    import click

    from vnic.cli.main import cli

    os.environ["COLUMNS"] = "96"
    lines = ["# Commands", "", "The help of each command, as `--help` prints it.", ""]

    def add(command: click.Command, path: str, parent: click.Context | None) -> None:
        context = click.Context(
            command,
            info_name=path.rpartition(" ")[2],
            parent=parent,
            terminal_width=96,
            max_content_width=96,
        )
        lines.extend([f"## {path}", "", "```text", command.get_help(context), "```", ""])
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                add(inner, f"{path} {name}", context)

    add(cli, "vnic", None)
    return "\n".join(lines)


(ROOT / "docs/commands.md").write_text(commands())

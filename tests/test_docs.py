"""The pages are correct: link targets, commands and options exist, configurations are valid."""

import re
from pathlib import Path

import click
import pytest

from vnic.cli.main import cli
from vnic.config.load import parse_config

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "*/README.md")
    for path in ROOT.glob(pattern)
    if path != ROOT / "docs/commands.md" and not path.is_relative_to(ROOT / "build")
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def page_name(path):
    return str(path.relative_to(ROOT))


def anchors(path):
    """The anchors that GitHub gives the headings of a page."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE):
        text = LINK.sub(lambda match: match[0].partition("]")[0][1:], heading).replace("`", "").lower()
        found.add(re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-"))
    return found


def dead_links(path):
    dead = []
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path if not file else path.parent / file
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path):
    assert dead_links(path) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# One two\n")
    page = tmp_path / "a.md"
    page.write_text("[a](b.md) [b](b.md#one-two) [c](c.md) [d](b.md#three) [e](#here) [f](https://example.org)\n\n# Here\n")
    assert dead_links(page) == ["c.md", "b.md#three"]


def commands_in(text):
    """vnic's commands in a page: in code blocks, one per line, and between backquotes."""
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    text = FENCE.sub("", text)
    lines += [line for line in text.splitlines() if line.startswith("    ")] + INLINE.findall(text)
    for line in lines:
        if match := re.match(r"(?:\.venv/bin/)?vnic ((?!#).*)", line.strip()):
            yield re.split(r"\s+#| \||  +| && |\$\(", match[1])[0].split()


def unknown(words):
    """A word of a command line that vnic does not have; None if it has all."""
    command, context = cli, click.Context(cli, info_name="vnic")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        if re.fullmatch(r"[^a-z].*", name):  # a placeholder
            return None
        found = command.get_command(context, name)
        if found is None:
            return name
        command, context = found, click.Context(found, info_name=name, parent=context)
    if "--" in words:  # another program's command line follows
        words = words[: words.index("--")]
    known = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help", "--version"}
    return next((word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word) and word not in known), None)


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=page_name)
def test_commands_and_options_exist(path):
    assert [words for words in commands_in(path.read_text()) if unknown(words) is not None] == []


def test_a_command_that_is_not_there_is_found():
    text = "`vnic upp x`\n\n    vnic stats web --wacth 1s   # again\n\n```\nvnic attach tap x --pid 1\n.venv/bin/vnic up -d x.yaml\n```\n"
    assert [unknown(words) for words in commands_in(text)] == [None, None, "--wacth", "upp"]


@pytest.mark.parametrize("path", [path for path in PAGES if "```yaml" in path.read_text()], ids=page_name)
def test_configurations_are_valid(path):
    for kind, block in FENCE.findall(path.read_text()):
        if kind == "yaml" and re.search(r"^(nics|groups|engines|pool|switch|metrics|modules|clients)\b", block, re.MULTILINE):
            parse_config(block, page_name(path), contained=False)


TIMED = re.compile(r"--(?:for|confirm|over|watch|last|delay) ([0-9][^\s`,)]*)")


def commands_below(command: click.Command):
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from commands_below(command.get_command(click.Context(command), name))


def test_the_times_of_examples_are_accepted():
    """Those of pages, of files of examples, and of the commands' help."""
    from vnic.cli.common import Time

    files = [*PAGES, *ROOT.glob("examples/**/*.yaml")]
    texts = [path.read_text() for path in files] + [each.help or "" for each in commands_below(cli)]
    found = {time for text in texts for time in TIMED.findall(text)}
    assert {"10m", "1m", "5s"} <= found
    for time in found:
        assert Time().convert(time, None, None) > 0
    assert Time().convert("1.5m", None, None) == 90 * 10**9
    with pytest.raises(click.UsageError, match="expected a number with a unit such as 30s or 10m"):
        Time().convert("ten", None, None)

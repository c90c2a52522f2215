"""Writes the pages of docs/ that are made of the program: configuration.md and elements.md. With
--check, changes nothing and fails where a page is not as it would be written."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from vnic.cli.element_docs import built_in  # noqa: E402
from vnic.config import schema  # noqa: E402
from vnic.config.reference import Key, reference  # noqa: E402

MADE = "<!-- Made by `make reference`; change the docstrings in {source} instead. -->"


def cell(text: str) -> str:
    """A cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def values_of(key: Key) -> str:
    facts = dict(key.facts())
    text = facts["accepts"]
    if "bounds" in facts and not any(str(each) in text for each in facts["bounds"].split(" to ")):
        text += f"; {facts['bounds']}"
    return text


def title(key: Key) -> str:
    return key.plain_path + (", nics.ingress" if key.path.endswith(".egress") else "")


def anchor(key: Key) -> str:
    """The anchor that GitHub and Sphinx make of a heading."""
    if key.path.endswith(".ingress"):
        return "nicsegress-nicsingress"
    return title(key).replace(".", "").replace(",", "").replace(" ", "-")


def table(keys: list[Key]) -> list[str]:
    lines = ["| key | what it does | values | default |", "|---|---|---|---|"]
    for key in keys:
        name = key.path.rpartition(".")[2]
        shown = f"[`{name}`](#{anchor(key)})" if key.keys else f"`{name}`"
        default = dict(key.facts()).get("default", "")
        lines.append(f"| {shown} | {cell(key.about)} | {cell(values_of(key))} | {cell(default)} |")
    return lines


def configuration() -> str:
    """docs/configuration.md"""
    keys = reference()
    by_path = {each.path: each for each in keys}
    lines = [
        MADE.format(source="vnic/config/schema.py"),
        "",
        "# Configuration reference",
        "",
        "A configuration is a YAML file: `vnic up FILE.yaml` runs it,",
        "`vnic config check FILE.yaml` checks it without running anything, and",
        "`vnic config explain KEY` prints one entry of this page. Editors complete and check it",
        "with the JSON Schema that `vnic config schema` prints. Words such as `on` and `no` are",
        "text, as in YAML 1.2. Each key may be left out unless it is required.",
        "",
        "Rates are written with their unit: `100mbit` is 100,000,000 bits a second, `kbit`,",
        "`gbit` and `tbit` likewise; `kibit` to `tibit` are powers of 1024. Times are written as",
        "`20us`, `5ms` or `2s`.",
        "",
        *table([each for each in keys if "." not in each.path]),
        "",
    ]
    sections = [each for each in keys if each.keys and ".ingress." not in each.path]
    for key in sections:
        if key.path.endswith(".ingress"):
            continue
        struct = STRUCTS.get(key.plain_path)
        lines += [f"## {title(key)}", ""]
        if struct is not None:
            from vnic.config.reference import about_struct

            lines += [*about_struct(getattr(schema, struct)).splitlines(), ""]
        else:
            lines += [key.about, ""]
        lines += [
            "```yaml",
            *key.example_yaml().splitlines(),
            "```",
            "",
            *table([by_path[each] for each in key.keys]),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


STRUCTS = {
    "engines": "EngineConfig",
    "groups": "GroupConfig",
    "groups.guarantee": "GuaranteeConfig",
    "pool": "PoolConfig",
    "switch": "SwitchConfig",
    "metrics": "MetricsConfig",
    "modules": "ModuleConfig",
    "clients": "ClientConfig",
    "nics": "NicConfig",
    "nics.routes": "RouteConfig",
    "nics.vlan": "VlanConfig",
    "nics.offloads": "OffloadConfig",
    "nics.rss": "RssConfig",
    "nics.egress": "DirectionConfig",
    "nics.egress.elements": "ElementConfig",
}


def elements() -> str:
    """docs/elements.md"""
    found = built_in()
    lines = [
        MADE.format(source="the element's class"),
        "",
        "# Built-in elements",
        "",
        "An element receives packets, does one thing with them, and passes them to the next. A",
        "NIC has a chain of elements for each direction: `egress: {elements: [...]}` for packets",
        "that its container sends, `ingress: {elements: [...]}` for those that it receives. An",
        "element with several outputs takes `branches:`, a chain for each output by its number;",
        "all branches rejoin at the element that follows.",
        "",
        "`vnic element NAME` prints an entry of this page, `vnic graph --elements` shows those of",
        "a running instance, `vnic stats` their counters, and `vnic handler` reads and writes",
        "their handlers while packets flow. [The tutorial](tutorial-element.md) shows how to",
        "write your own.",
        "",
        "| element | |",
        "|---|---|",
        *(f"| [`{each.name}`](#{each.name.lower()}) | {cell(each.summary)} |" for each in found),
        "",
        "## Examples",
        "",
        "Rate limits by protocol, [examples/per-protocol.yaml](../examples/per-protocol.yaml):",
        "",
        "```yaml",
        *(ROOT / "examples/per-protocol.yaml").read_text().splitlines(),
        "```",
        "",
        "A copy of all packets in a file, [examples/mirror.yaml](../examples/mirror.yaml):",
        "",
        "```yaml",
        *(ROOT / "examples/mirror.yaml").read_text().splitlines(),
        "```",
        "",
    ]
    for each in found:
        lines += [f"## {each.name}", "", each.summary, ""]
        for paragraph in [each.ports, *each.about]:
            lines += [paragraph, ""]
        if each.arguments:
            lines += ["| argument | | default |", "|---|---|---|"]
            lines += [
                f"| `{name}` | {cell(argument.about)} | {cell(argument.default or 'required')} |"
                for name, argument in each.arguments.items()
            ]
            lines.append("")
        lines += ["| counter | |", "|---|---|", "| `packets` | packets that came in |"]
        lines += [f"| `{name}` | {cell(text)} |" for name, text in each.counters.items()]
        lines += [
            f"| `{name}` (drop reason) | {cell(text)} |" for name, text in each.drops.items()
        ] + [""]
        lines += ["| handler | | |", "|---|---|---|"]
        for name, handler in each.handlers.items():
            ways = " and ".join(way for way in ("read", "write") if handler[way])
            lines.append(f"| `{name}` | {ways} | {cell(handler['help'])} |")
        lines += ["", each.example_about, "", "```yaml", *each.example.splitlines(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


PAGES = {"configuration.md": configuration, "elements.md": elements}


def main() -> None:
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / "docs" / name, make()
        if not path.exists() or path.read_text() != text:
            stale.append(f"docs/{name}")
            if "--check" not in sys.argv:
                path.write_text(text)
    if "--check" in sys.argv and stale:
        raise SystemExit(f"{', '.join(stale)}: not current; run make reference")


if __name__ == "__main__":
    main()

"""docker-tc: labels of containers, in a compose file, a `docker run` command, or one a line.

Values are those of tc: `1mbps` is a million bytes a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dataplane.errors import ConfigError
from shaping.imports.form import EGRESS, Draft, Names, line_key
from shaping.imports.netem import Netem
from shaping.imports.notes import Unsupported, quoted
from shaping.imports.peers import documents, located, number_text, put, share
from shaping.imports.quantities import rate_of, time_of
from shaping.imports.shell import commands_of

PREFIX = "com.docker-tc."
QUEUE = "50ms"  # docker-tc gives tbf this latency
_LABEL = re.compile(rf"\s*[-\"']*\s*{re.escape(PREFIX)}\w+", re.ASCII)


def read_docker_tc(text: str, name: str, names: Names) -> Draft:
    """Raises ConfigError."""
    draft = Draft(notes=names.notes)
    for where, service, labels in _labelled(text, name):
        if labels.get("enabled", "1") != "1":
            draft.notes.note(where, f"{service or 'labels'}: not enabled: left out")
            continue
        try:
            _line(where, names.nic(service, where, "container"), labels, draft)
        except Unsupported as error:
            draft.notes.refuse(where, error)
        except ConfigError as error:
            raise located(where, error) from None
    return draft


def _labelled(text: str, name: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(where, container, labels without the prefix) of each container that has some."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    if first.strip().startswith(("docker", "podman", "sudo ")):
        for command in commands_of(text, name):
            yield from _run(command.where, command.words)
    elif _LABEL.match(first):
        labels: dict[str, str] = {}
        for number, line in enumerate(text.split("\n"), 1):
            label = line.strip().removeprefix("-").strip().strip("\"'")
            if label and not label.startswith("#"):
                labels.update(_pair(label.replace(":", "=", 1), f"{name}:{number}"))
        yield f"{name}:1", "", labels
    else:
        for value, locate in documents(text, name):
            services = value.get("services") if isinstance(value, Mapping) else None
            if not isinstance(services, Mapping):
                raise ConfigError(f"{name}: expected services with labels {PREFIX}...")
            for service, each in services.items():
                found = each.get("labels") if isinstance(each, Mapping) else None
                where = locate(("services", service, "labels"))
                labels = dict(_of_service(found, where))
                if labels:
                    yield where, str(service), labels


def _run(where: str, words: list[str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    labels: dict[str, str] = {}
    container = ""
    for number, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key in ("--label", "-l", "--name"):
            value = value if equals else (words[number + 1] if number + 1 < len(words) else "")
            if key == "--name":
                container = value
            else:
                labels.update(_pair(value, where))
    if labels:
        yield where, container, labels


def _of_service(found: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(found, Mapping):
        for key, value in found.items():
            if str(key).startswith(PREFIX):
                yield str(key).removeprefix(PREFIX), number_text(str(key), value)
    elif isinstance(found, list):
        for each in found:
            yield from _pair(str(each), where).items()


def _pair(text: str, where: str) -> dict[str, str]:
    key, equals, value = text.partition("=")
    if not key.startswith(PREFIX):
        return {}
    if not equals:
        raise ConfigError(f"{where}: {quoted(text)}: expected {PREFIX}NAME=VALUE")
    return {key.removeprefix(PREFIX).strip(): value.strip().strip("\"'")}


def _line(where: str, nic: str, labels: dict[str, str], draft: Draft) -> None:
    netem = Netem()
    rate = 0
    for key, value in labels.items():
        if key == "limit":
            rate = rate_of("limit", value)
            if value.lower().endswith("bps"):
                draft.notes.note(where, f"limit {value}: bytes a second, as in tc")
        elif key == "delay":
            netem.delay = time_of("delay", value)
        elif key in ("loss", "duplicate", "corrupt"):
            setattr(netem, key, share(key, value))
        elif key != "enabled":
            raise ConfigError(
                f"label {quoted(PREFIX + key)}: expected limit, delay, loss, duplicate or corrupt"
            )
    place = line_key(nic, EGRESS)
    put(draft, place, netem, rate, where)
    if rate:
        draft.add_line(place, {"queue": QUEUE}, where)

"""What the readers of other tools' files share: command lines, values, and lines of a policy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dataplane.config.load import BYTES_MOST, parse_yaml
from dataplane.errors import ConfigError
from shaping.imports.form import Draft, Settings
from shaping.imports.netem import Netem, line_of
from shaping.imports.notes import Notes, quoted
from shaping.imports.quantities import TIMES, line_rate, percent_of, time_of
from shaping.imports.shell import commands_of

COMMANDS_MOST = 10_000  # each makes a line
DOCUMENTS_MOST = 64  # of a YAML file
_BARE = re.compile(r"\d{1,12}(?:\.\d{0,9})?", re.ASCII)


class Options(NamedTuple):
    """A command line: where, options by their first name, and what is left, in order."""

    where: str
    options: dict[str, str]
    rest: list[str]


def command_lines(text: str, name: str, program: str) -> Iterator[tuple[str, list[str]]]:
    """("FILE:LINE", the words behind the program) of each call of it. Raises ConfigError for
    another command."""
    for number, command in enumerate(commands_of(text, name)):
        if number == COMMANDS_MOST:
            raise ConfigError(f"{name}: more than {COMMANDS_MOST} commands: expected fewer")
        if command.words[0].rpartition("/")[2] != program:
            raise ConfigError(
                f"{command.where}: {quoted(command.words[0])}: expected commands of {program}"
            )
        yield command.where, command.words[1:]


def options_of(
    where: str, words: list[str], valued: Mapping[str, str], flags: Mapping[str, str]
) -> Options:
    """Options of a command line: --name value, --name=value, -n value. valued, flags: the first
    name by each name, those without dashes. Raises ConfigError for others."""
    found = Options(where, {}, [])
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("-") or word == "-":
            found.rest.append(word)
            continue
        key, equals, value = word.lstrip("-").partition("=")
        if key in flags:
            found.options[flags[key]] = value or "true"
        elif key in valued:
            if not equals:
                if at == len(words):
                    raise ConfigError(f"{where}: {quoted(word)}: has no value")
                value = words[at]
                at += 1
            before = found.options.get(valued[key])
            found.options[valued[key]] = value if before is None else f"{before},{value}"
        else:
            known = [each for each in [*valued, *flags] if len(each) > 1] or [*valued, *flags]
            close = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean --{close[0]}?" if close else f"expected options such as --{known[0]}"
            )
            raise ConfigError(f"{where}: unknown option {quoted(word)}: {hint}")
    return found


def located(where: str, error: ConfigError) -> ConfigError:
    """The error with the place that it is at."""
    text = str(error)
    return error if text.startswith(where) else ConfigError(f"{where}: {text}")


def same_names(*names: str) -> dict[str, str]:
    """Options by their names; "time|t" has two."""
    return {each: name.split("|")[0] for name in names for each in name.split("|")}


def number_text(what: str, value: Any) -> str:
    """A number of JSON or YAML, or its text. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{what} {quoted(value)}: expected a number or text")
    return f"{value:.9f}" if isinstance(value, float) else str(value).strip()


def share(what: str, value: Any) -> Any:
    """A share of packets from a percentage with or without %. Raises ConfigError."""
    return percent_of(what, number_text(what, value))


def milliseconds(what: str, value: Any) -> int:
    """ns of a time that has no unit, where the tool says that it is in ms, or has one. Raises
    ConfigError."""
    text = number_text(what, value)
    return time_of(what, f"{text}ms" if _BARE.fullmatch(text) else text)


def kilobits(what: str, value: Any) -> int:
    """bit/s of a whole number of kbit/s; 0 for 0 and nothing. Raises ConfigError."""
    text = number_text(what, value) if value is not None else ""
    text = text.strip().removesuffix("kbit")
    if not text:
        return 0
    if _BARE.fullmatch(text) is None:
        raise ConfigError(f"{what} {quoted(text)}: expected a number of kbit/s")
    return int(float(text) * 1000)


def duration(what: str, text: str) -> int:
    """ns of a duration such as 1m30s or 90ms, as Go prints it. Raises ConfigError."""
    units = {**TIMES, "µs": 1000, "m": 60 * 10**9, "h": 3600 * 10**9}
    total, at = 0.0, 0
    for match in re.finditer(r"(\d{1,12}(?:\.\d{0,9})?)(ns|us|µs|ms|s|m|h)", text[:64]):
        if match.start() != at:
            break
        total += float(match[1]) * units[match[2]]
        at = match.end()
    if text.strip() == "0":
        return 0
    if not text or at != len(text):
        raise ConfigError(f"{what} {quoted(text)}: expected a duration such as 90ms or 5m")
    return round(total)


def settings_of(netem: Netem, rate: int, where: str, notes: Notes) -> Settings:
    """The settings of a line for what a tool tells netem, and for a rate of its own, 0: none.
    Raises ConfigError."""
    line: Settings = line_of(netem, where, notes)
    if rate:
        line["rate"] = line_rate("rate", rate)
    return line


def put(draft: Draft, place: str, netem: Netem, rate: int, where: str) -> None:
    """Adds a line of `settings_of`. Raises ConfigError."""
    if line := settings_of(netem, rate, where, draft.notes):
        draft.add_line(place, line, where)


def documents(text: str, name: str) -> Iterator[tuple[Any, Any]]:
    """(value, its Locate) of each document of a YAML file. Raises ConfigError."""
    if len(text) > BYTES_MOST:
        raise ConfigError(f"{name}: too large: expected at most {BYTES_MOST} bytes")
    lines = text.split("\n")
    starts = [0, *(number for number, line in enumerate(lines) if re.match(r"---\s*(?:#|$)", line))]
    if len(starts) > DOCUMENTS_MOST:
        raise ConfigError(f"{name}: more than {DOCUMENTS_MOST} documents: expected fewer")
    for begin, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        part = "\n".join(lines[begin:end]).removeprefix("---")
        # Lines before it keep the numbers of lines in errors.
        value, locate = parse_yaml("\n" * begin + part, name)
        if value is not None:
            yield value, locate

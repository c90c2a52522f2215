"""What vnic promises of shaping, and how each promise is measured: one file a subject, each with a list PROMISES.

A file in this folder is found by itself. The promises of one subject are measured in the order of their
list; what several of them need is measured once (`Run.once`)."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

T = TypeVar("T")
Json = Mapping[str, object]


@dataclass(frozen=True)
class Outcome:
    """expected, measured, bound: as text, with units. kept: whether the promise is; None: it is another program's figure, for
    comparison. figures: the numbers, for the JSON."""

    expected: str
    measured: str
    bound: str
    kept: bool | None
    figures: Json = field(default_factory=dict)


class Absent(Exception):
    """What is to be measured is not on this machine, or not in this tree: the promise is left out, with this reason."""


@dataclass
class Run:
    """One run over all promises: how long and how often live figures are measured, and what is measured already."""

    rounds: int
    seconds: float
    packets: int
    _found: dict[str, object] = field(default_factory=dict)

    def once(self, key: str, measure: Callable[[], T]) -> T:
        """The result of `measure`, which is called for each key once."""
        if key not in self._found:
            self._found[key] = measure()
        return cast("T", self._found[key])


@dataclass(frozen=True)
class Promise:
    """One promise. what: in one line; source: where it, or its expected value, comes from; live: it needs root and takes real
    time."""

    subject: str
    what: str
    measure: Callable[[Run], Outcome]
    source: str = ""
    live: bool = False


def all_promises() -> list[Promise]:
    """Those of all files, in the order of the files' names."""
    found: list[Promise] = []
    for module in sorted(each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_")):
        found += importlib.import_module(f"{__name__}.{module}").PROMISES
    return found

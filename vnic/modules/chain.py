"""Chains: builds and connects the elements that a configuration puts between a NIC or link and a
switch."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

from dataplane.config.convert import did_you_mean
from dataplane.engine.handler_access import prepare_arguments
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.element import Element
from vnic.config.schema import ElementConfig, HopConfig, NodeConfig
from vnic.modules.module import Module

T = TypeVar("T")

# Short names for use in a configuration; all others are module:Class.
BUILT_IN = {
    "Classifier": "dataplane.elements.classifier:Classifier",
    "Counter": "dataplane.elements.counter:Counter",
    "Discard": "dataplane.elements.counter:Discard",
    "Impairment": "shaping.impairment:Impairment",
    "Link": "shaping.link:Link",
    "Marker": "shaping.marker:Marker",
    "Mirror": "dataplane.elements.mirror:Mirror",
    "Pacer": "shaping.pacer:Pacer",
    "Parse": "dataplane.elements.parse:Parse",
    "Policer": "shaping.policer:Policer",
    "Scheduler": "shaping.scheduler:Scheduler",
    "Shaper": "shaping.shaper:Shaper",
    "TraceLink": "shaping.trace_link:TraceLink",
}

# Elements that lead packets to outputs by rules and hold none: to build one anew loses nothing.
OF_RULES = ("Classifier",)


@contextmanager
def _importing_from(directory: str | None) -> Iterator[None]:
    """Puts the configuration file's directory first on sys.path while its elements are imported."""
    if directory is None:
        yield
        return
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)


def element_class(reference: str, directory: str | None = None) -> type[Element]:
    """The class named by `reference` ("Counter" or "module:Class"). Raises ConfigError when there
    is none."""
    target = BUILT_IN.get(reference, reference)
    if ":" not in target:
        known = sorted(BUILT_IN)
        hint = did_you_mean(reference, known).replace(
            "expected one of", "expected module:Class or one of"
        )
        raise ConfigError(f"element {reference}: unknown; {hint}")
    return _imported(target, "element", Element, directory)


def module_class(reference: str, directory: str | None = None) -> type[Module]:
    """The module class named by `reference` ("module:Class"). Raises ConfigError when there is
    none."""
    if ":" not in reference:
        raise ConfigError(f"module {reference}: unknown: expected module:Class")
    return _imported(reference, "module", Module, directory)


def _imported(reference: str, what: str, kind: type[T], directory: str | None) -> type[T]:
    module_name, _, class_name = reference.partition(":")
    try:
        with _importing_from(directory):
            module = importlib.import_module(module_name)
    except Exception as error:  # importing a user's module may raise any exception
        raise ConfigError(f"{what} {reference}: cannot import {module_name}: {error}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{what} {reference}: {module_name} has no {what} class {class_name}")
    return found


class Chain:
    """Elements in a row. head: the first element; ends: the open outputs (element, output) of the
    last; configs: by element name, the configuration that it was built from; of_policy: the
    elements of the policy of shaping by their configured names, which a user's element may have,
    too; edges: all connections (element, output, target); changes: those of arguments of elements
    that were taken over, for `settle`; of_rules: whether rules are among what changes.

    Elements that no engine runs are connected at once. Elements that run, taken over from a chain
    before (see `build_chain`), are connected by `connect`, between two batches.
    """

    def __init__(self) -> None:
        self.head: Element | None = None
        self.ends: list[tuple[Element, int]] = []
        self.elements: list[Element] = []
        self.configs: dict[str, ElementConfig] = {}
        self.of_policy: dict[str, Element] = {}
        self.edges: list[tuple[Element, int, Element]] = []
        self.changes: list[Callable[[], object]] = []
        self.of_rules = False

    def append(self, element: Element) -> None:
        """Connects every open output to `element`, whose outputs are then the open ones."""
        self.join(element)
        self.elements.append(element)
        self.ends = [(element, gate) for gate in range(len(element.outputs))]

    def join(self, element: Element) -> None:
        """Connects every open output to `element`, and leaves none open."""
        if self.head is None:
            self.head = element
        for end, gate in self.ends:
            self.edges.append((end, gate, element))
            if end.engine is None:
                end.connect(gate, element)
        self.ends = []

    def connect(self) -> None:
        """Makes all connections of the chain, on the thread of the engine that runs its
        elements."""
        for element, gate, target in self.edges:
            element.connect(gate, target)

    def settle(self) -> None:
        """Gives elements that were taken over the arguments of their new configuration: other rules
        and what is behind them between the same two batches. Else the packets of a flow that comes
        into another class could overtake those that wait where it was."""
        changes, self.changes = self.changes, []
        engine = next((each.engine for each in self.elements if each.engine is not None), None)
        if len(changes) > 1 and engine is not None and self.of_rules:
            engine.call(lambda: [change() for change in changes])
            return
        for change in changes:
            change()


def build_chain(
    configs: list[ElementConfig],
    prefix: str,
    directory: str | None = None,
    before: Chain | None = None,
) -> Chain:
    """Builds the elements of `configs` in order; their names are `prefix` and the configured name
    (default: the class in lower case).

    An element with several outputs may have branches, output -> chain; all rejoin at the next
    element. The number of the output is a part of the names of a branch's elements, but of those of
    a policy, whose own names are unique: they stay when another pair of NICs takes the output.
    before: a chain whose elements are taken over where name and class are the same, and the
    arguments are, too, or can change while the element runs (see `Chain.settle`).
    """
    chain = Chain()
    _extend(chain, configs, prefix, directory, set(), before or Chain())
    return chain


def _extend(
    chain: Chain,
    configs: list[ElementConfig],
    prefix: str,
    directory: str | None,
    names: set[str],
    before: Chain,
) -> None:
    for config in configs:
        element, changes = _build_element(config, prefix, directory, names, before)
        chain.append(element)
        chain.changes += changes
        chain.of_rules = chain.of_rules or (config.element in OF_RULES and bool(changes))
        chain.configs[element.name] = config
        if config.shapes and config.name is not None:
            chain.of_policy[config.name] = element
        ends: list[tuple[Element, int]] = []
        for gate in range(len(element.outputs)):
            branch = Chain()
            branch.ends = [(element, gate)]
            # What a policy puts into branches has names that say what for: the numbers of the
            # outputs are others after a change, and the elements are to be the same.
            _extend(
                branch,
                config.branches.get(gate, []),
                element.name if config.shapes else f"{element.name}.{gate}",
                directory,
                names,
                before,
            )
            chain.elements += branch.elements
            chain.configs |= branch.configs
            chain.of_policy |= branch.of_policy
            chain.edges += branch.edges
            chain.changes += branch.changes
            chain.of_rules = chain.of_rules or branch.of_rules
            ends += branch.ends
        _check_branches(config, element)
        chain.ends = ends


def check_chain(configs: list[ElementConfig], directory: str | None = None) -> None:
    """Raises ConfigError where `build_chain` would, as far as that can be known without running a
    user's constructors: built-in elements are made, and the classes of others are only imported."""
    for config in configs:
        if config.element in BUILT_IN:
            element, _ = _build_element(config, "check", directory, set(), Chain())
            _check_branches(config, element)
        else:
            _class_of(config, directory)
        for branch in config.branches.values():
            check_chain(branch, directory)


def check_node(
    name: str, node: NodeConfig, hops: Iterable[HopConfig], directory: str | None = None
) -> None:
    """As `check_chain`, for a node that is an element and the one-way links that begin there."""
    made = node_element(node)
    check_chain([made], directory)
    if made.element in BUILT_IN:
        element = make_element(made, name, directory)
        for hop in hops:
            if hop.source == name:
                check_output(hop, element)


def node_element(node: NodeConfig) -> ElementConfig:
    """The element of a node."""
    assert node.element is not None
    return ElementConfig(element=node.element, arguments=node.arguments, where=node.where)


def check_output(hop: HopConfig, element: Element) -> None:
    """Raises ConfigError for a one-way link that begins at an output that its element does not
    have."""
    count = len(element.outputs)
    if hop.output >= count:
        has = f"outputs 0 to {count - 1}" if count > 1 else "one output" if count else "no output"
        text = f"{hop.text}: {hop.source} has {has}"
        raise ConfigError(f"{hop.where}: {text}" if hop.where else text)


def _check_branches(config: ElementConfig, element: Element) -> None:
    if stray := sorted(set(config.branches) - set(range(len(element.outputs)))):
        text = (
            f"{config.element}: branch {stray[0]}: the element has outputs 0 to "
            f"{len(element.outputs) - 1}"
        )
        raise _error_at(config, text)


def _error_at(config: ElementConfig, text: str) -> ConfigError:
    return ConfigError(f"{config.where}: {text}" if config.where else text)


def _class_of(config: ElementConfig, directory: str | None) -> type[Element]:
    try:
        return element_class(config.element, directory)
    except ConfigError as error:
        raise _error_at(config, str(error)) from error


def _arguments_error(config: ElementConfig, error: TypeError) -> str:
    """The error in the arguments of a constructor, in the words of the configuration."""
    text, remedy = str(error), f"`vnic element {config.element}` lists them"
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", text):
        return f"{config.element} has no argument {unknown[1]!r}; {remedy}"
    if missing := re.search(r"missing \d+ required positional arguments?: (.*)", text):
        return f"{config.element} lacks the argument {missing[1]}; {remedy}"
    if "positional argument" in text:  # Cython's message does not name it
        return f"{config.element} lacks an argument; {remedy}"
    return f"{config.element} refuses its arguments: {text}"


def _build_element(
    config: ElementConfig, prefix: str, directory: str | None, names: set[str], before: Chain
) -> tuple[Element, list[Callable[[], object]]]:
    """The element, and the changes that give one that was taken over its arguments."""
    found = _class_of(config, directory)
    base = f"{prefix}.{config.name or re.sub(r'(?<!^)(?=[A-Z])', '-', found.__name__).lower()}"
    name, number = base, 2
    while name in names:
        name, number = f"{base}-{number}", number + 1
    names.add(name)
    was = before.configs.get(name)
    if was is not None and was.element == config.element and not _turns(was, config):
        element = next(element for element in before.elements if element.name == name)
        # A new element may accept what one that runs refuses, such as a Classifier with another
        # number of outputs; or it says what is wrong.
        with suppress(VnicError):
            changes = prepare_arguments(element, was.arguments, config.arguments)
            if changes is not None:
                return element, changes
    return make_element(config, name, directory), []


def _turns(was: ElementConfig, config: ElementConfig) -> bool:
    """Whether an element of OF_RULES has other rules and other branches. Rules are changed after
    connections: in between, packets would take the ways of others, so a new element takes its
    place."""
    return (
        config.element in OF_RULES
        and was.arguments != config.arguments
        and _names(was.branches) != _names(config.branches)
    )


def _names(branches: Mapping[int, list[ElementConfig]]) -> dict[int, list[tuple[str, str | None]]]:
    return {
        gate: [(each.element, each.name) for each in branch]
        for gate, branch in branches.items()
        if branch
    }


def make_element(config: ElementConfig, name: str, directory: str | None) -> Element:
    """The element that `config` describes, called `name`. Raises ConfigError."""
    found = _class_of(config, directory)
    try:
        return found(**config.arguments, name=name)
    except VnicError as error:
        raise _error_at(config, str(error)) from error
    except TypeError as error:
        raise _error_at(config, f"{name}: {_arguments_error(config, error)}") from error
    except Exception as error:  # a user's class may reject its arguments with any exception
        raise _error_at(
            config, f"{name}: {config.element} refuses its arguments: {error}"
        ) from error

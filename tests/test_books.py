"""The conservation law holds for whole engines while their NICs are attached and detached."""

import gc
import os
from contextlib import suppress

import pytest

from tests.test_handlers_runtime import Running
from tests.test_handlers_traffic import until
from vnic.config.load import parse_config

FRAMES = 20


def running(text):
    return Running(parse_config(text, "<test>", os.getcwd(), contained=False))


def nic(text):
    return next(iter(parse_config(f"{{engines: 2, nics: {{{text}}}}}", "<test>", os.getcwd(), contained=False).nics.values()))


def send(made, name):
    """Sends broadcasts from a NIC's container; returns when its engine has read them all."""
    source = made.element(f"{name}.rx")
    taken = source.statistics()["received"] + FRAMES
    made.devices.nics[name].port.inject([b"\xff" * 6 + bytes([2, 0, 0, 0, 0, 9]) + b"\x88\xb5" + bytes(46)] * FRAMES)
    until(lambda: source.statistics()["received"] == taken)


@pytest.mark.parametrize("text", ["engines: 1", "engines: 2", "{engines: 2, nics: {a: {engine: 0}}}"])
def test_the_last_nic_of_an_engine_comes_and_goes(text):
    """The switch and the elements before the rings of other engines' NICs are removed with it, and
    added with the next one."""
    made = running(text)
    try:
        for cycle in range(1, 4):
            made.runtime.nics.attach(nic(f"x: {{engine: {len(made.runtime.engines) - 1}}}"))
            send(made, "x")
            assert made.runtime.status()["conserved"]
            made.runtime.nics.detach("x")
            found = made.runtime.status()
            assert found["conserved"]
            (mine,) = [each for each in found["engines"] if each["name"] == f"e{len(found['engines']) - 1}"]
            assert mine["received"] == mine["transmitted"] + mine["dropped"] == cycle * FRAMES
    finally:
        made.close()


def rings():
    """Segments of rings that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum("vnic-ring" in each for each in found)


def test_a_nic_takes_its_descriptors_along():
    """The descriptors of a NIC's ring are closed when the NIC is removed, not by Python's cycle
    collector."""
    made = running("engines: 2")
    try:
        gc.collect()
        before = rings()
        gc.disable()
        for _ in range(3):
            made.runtime.nics.attach(nic("x: {}"))
            assert rings() > before
            made.runtime.nics.detach("x")
            assert rings() == before
    finally:
        gc.enable()
        made.close()

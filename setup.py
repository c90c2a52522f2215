"""Compiled modules, man pages and the package's description: what pyproject.toml cannot say.

VNIC_BUILD picks release (default), debug (invariants checked) or asan.
"""

import hashlib
import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

# setuptools, imported before, brings it
from distutils.command.install_data import install_data  # isort: skip

# What a wheel holds. TREE_MODULES are compiled in the source tree only, see BuildModules.
MODULES = [
    "dataplane.abi",
    "dataplane.capture.reader",
    "dataplane.capture.writer",
    "dataplane.engine.clock",
    "dataplane.engine.balancer",
    "dataplane.groups.compactor",
    "dataplane.graph.element",
    "dataplane.engine.element_arrays",
    "dataplane.engine.engine",
    "dataplane.engine.thread",
    "dataplane.engine.state",
    "dataplane.graph.link",
    "dataplane.engine.meter",
    "dataplane.graph.offload",
    "dataplane.engine.pace",
    "dataplane.packet.pool",
    "dataplane.packet.queue",
    "dataplane.engine.polling",
    "dataplane.graph.port",
    "dataplane.packet.ring",
    "dataplane.engine.settle",
    "dataplane.graph.tally",
    "dataplane.engine.virtual_time",
    "dataplane.graph.walk",
    "dataplane.engine.warm_up",
    "dataplane.graph.work",
    "dataplane.elements.classifier",
    "dataplane.elements.counter",
    "dataplane.elements.departures",
    "switching.l2_switch",
    "switching.mac_table",
    "dataplane.elements.mirror",
    "dataplane.elements.parse",
    "dataplane.ports.loopback",
    "dataplane.ports.memory",
    "dataplane.ports.pcap_sink",
    "dataplane.ports.pcap_source",
    "dataplane.ports.pcap_writer",
    "dataplane.ports.ring_port",
    "dataplane.ports.side_source",
    "dataplane.wire.checksum",
    "dataplane.wire.headers",
    "dataplane.wire.rewrite",
    "shaping.class_queue",
    "shaping.class_tallies",
    "shaping.class_tree",
    "shaping.flow_clocks",
    "shaping.impairment",
    "shaping.framing",
    "shaping.link",
    "shaping.mark_table",
    "shaping.marker",
    "shaping.pacer",
    "shaping.policer",
    "shaping.pool_share",
    "shaping.queue_state",
    "shaping.scheduler",
    "shaping.schedule",
    "shaping.shaper",
    "shaping.trace_link",
    "shaping.timing_wheel",
    "dataplane.elements.nic_tx",
    "dataplane.ports.dgram_port",
    "dataplane.ports.packet_port",
    "dataplane.elements.rss",
    "dataplane.ports.stream_port",
    "dataplane.ports.tap_port",
    "virt.control_ring",
    "virt.flow_memory",
    "virt.guest_memory",
    "virt.guest_tx",
    "virt.memif_port",
    "virt.queue_setup",
    "virt.virtio_port",
]
TREE_MODULES = ["bench.micro", "fuzz.guest"]

BUILD = os.environ.get("VNIC_BUILD", "release")
FLAGS = {
    # Aligned, because a replay was measured to be up to 10 % slower or faster with where functions
    # and loops happen to lie.
    "release": ["-O3", "-g1", "-falign-functions=64", "-falign-loops=32"],
    "debug": ["-O1", "-g", "-DVNIC_DEBUG"],
    "asan": ["-O1", "-g", "-DVNIC_DEBUG", "-fno-omit-frame-pointer", "-fsanitize=address"],
    # by Clang, see fuzz/__main__.py
    "fuzz": ["-O2", "-g", "-DVNIC_DEBUG", "-DVNIC_FUZZ", "-fsanitize=address"],
}
# Of the fuzz build: the modules whose code the fuzzers explore, and those that are compiled
# besides. All others are the release build's.
EXPLORED = (
    "virt.",
    "dataplane.elements.parse",
    "dataplane.graph.offload",
    "dataplane.wire.headers",
)
FUZZED = (*EXPLORED, "dataplane.packet.pool", "fuzz.")
if BUILD not in FLAGS:
    raise SystemExit(f"VNIC_BUILD={BUILD}: expected one of {', '.join(FLAGS)}")
CHECKED = BUILD != "release"
CPUS = os.cpu_count() or 1
ABI_HEADER = Path("dataplane/abi.h")
WITH_ABI = ["dataplane.abi", "bench.micro"]  # what includes it


def source(name: str) -> str:
    return name.replace(".", "/") + ".pyx"


def extension(name: str) -> Extension:
    headers = [
        "dataplane/vatomic.h",
        "dataplane/capture/formats.h",
        "dataplane/capture/preallocate.h",
        *(["virt/notifier.h", "virt/sigbus.h"] if name.startswith("virt.") else []),
        *(["fuzz/interfere.h"] if name.startswith("fuzz.") else []),
    ]
    flags = [*FLAGS[BUILD]]
    if BUILD == "fuzz" and name.startswith(EXPLORED):
        flags += ["-fsanitize=fuzzer-no-link", "-D_GNU_SOURCE", "-include", "fuzz/interfere.h"]
    return Extension(
        name,
        [source(name)],
        include_dirs=["dataplane", "virt", *(["fuzz"] if name.startswith("fuzz.") else [])],
        depends=[*headers, str(ABI_HEADER)] if name in WITH_ABI else headers,
        extra_compile_args=[*flags, "-Wall", "-Wno-unused-function", "-fno-strict-aliasing"],
        extra_link_args=["-fsanitize=address"] if BUILD == "asan" else [],
    )


def write_abi_header() -> None:
    """Writes dataplane/abi.h: the fingerprint of every declaration that compiled code outside the
    package may rely on."""
    digest = hashlib.sha256()
    for package in ("dataplane", "shaping", "switching"):
        for path in sorted(each for kind in ("*.pxd", "*.h") for each in Path(package).rglob(kind)):
            if path != ABI_HEADER:
                digest.update(f"{path.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    text = f'/* Written by setup.py. */\n#define VNIC_ABI "{digest.hexdigest()[:16]}"\n'
    if (
        not ABI_HEADER.exists() or ABI_HEADER.read_text() != text
    ):  # an unchanged file compiles nothing anew
        ABI_HEADER.write_text(text)


class BuildModules(build_ext):
    """Translates and compiles the modules, and says on standard error how far it is: a full build
    takes minutes."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.inplace:
            # The bench measures the source tree, and the fuzzers test it. In a wheel they would be
            # top-level packages with common names.
            self.extensions = [each for each in self.extensions if each.name not in TREE_MODULES]

    def build_extensions(self) -> None:
        # Imported here: a source distribution is made without it.
        from Cython.Build import cythonize

        translated = cythonize(
            [extension(each.name) for each in self.extensions],
            nthreads=CPUS,
            # The generated C differs between builds (bounds checks), so each keeps its own.
            build_dir=f"build/cython-{BUILD}",
            compiler_directives={
                "language_level": "3",
                "boundscheck": CHECKED,
                "wraparound": CHECKED,
                "cdivision": True,
                "initializedcheck": CHECKED,
                "embedsignature": True,
            },
        )
        sources = {each.name: each.sources for each in translated}
        for each in self.extensions:
            each.sources = sources[each.name]
        self._stale = [each.name for each in self.extensions if self._is_stale(each)]
        self._begun = itertools.count(1)
        began_s = time.monotonic()
        super().build_extensions()
        if self._stale:
            count = f"{len(self._stale)} module{'s' if len(self._stale) > 1 else ''}"
            say(f"compiled {count} in {time.monotonic() - began_s:.0f} s")

    def _is_stale(self, each: Extension) -> bool:
        return bool(
            self.force
            or newer_group(
                [*each.sources, *each.depends], self.get_ext_fullpath(each.name), "newer"
            )
        )

    def build_extension(self, ext: Extension) -> None:
        if ext.name in self._stale:
            # Modules are compiled in several threads: taking the next number is one step.
            say(f"[{next(self._begun)}/{len(self._stale)}] compiling {ext.name.replace('.', '/')}")
        super().build_extension(ext)


class InstallData(install_data):
    """Makes the man pages from the commands' help, so that the two never differ."""

    def run(self) -> None:
        folder = Path("build/man")
        command = [sys.executable, "scripts/man.py", str(folder), self.distribution.get_version()]
        subprocess.run(command, check=True)
        self.data_files = [("share/man/man1", [str(page) for page in sorted(folder.glob("*.1"))])]
        super().run()


def say(text: str) -> None:
    """Writes a line at once: the lines of two threads do not mix."""
    sys.stderr.write(f"vnic: {text}\n")
    sys.stderr.flush()


def description() -> str:
    """The README for a package page, where links to files of the source tree lead nowhere: their
    text stays."""
    return re.sub(r"\[([^\]]+)\]\((?![a-z]+:|#)[^)]*\)", r"\1", Path("README.md").read_text())


write_abi_header()  # also for the files that a wheel copies before anything is compiled
missing = [source(name) for name in MODULES if not Path(source(name)).exists()]
if missing:
    raise SystemExit(f"incomplete source tree: {', '.join(missing)} missing")

setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    options={"build_ext": {"parallel": CPUS}},
    cmdclass={"build_ext": BuildModules, "install_data": InstallData},
    ext_modules=[
        extension(name)
        for name in [*MODULES, *(each for each in TREE_MODULES if Path(source(each)).exists())]
        if BUILD != "fuzz" or name.startswith(FUZZED)
    ],
    data_files=[("share/man/man1", [])],
)

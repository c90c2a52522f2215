"""The explicit list of compiled modules. VNIC_BUILD picks release (default), debug (invariants checked) or asan."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = [
    "bench.micro",
    "dataplane.capture.reader",
    "dataplane.capture.writer",
    "dataplane.clock",
    "dataplane.balancer",
    "dataplane.compactor",
    "dataplane.element",
    "dataplane.engine",
    "dataplane.engine_thread",
    "dataplane.engine_state",
    "dataplane.meter",
    "dataplane.offload",
    "dataplane.packet",
    "dataplane.port",
    "dataplane.ring",
    "dataplane.settle",
    "dataplane.virtual_time",
    "dataplane.warm_up",
    "dataplane.work",
    "dataplane.elements.classifier",
    "dataplane.elements.counter",
    "dataplane.elements.departures",
    "dataplane.elements.l2_switch",
    "dataplane.elements.mac_table",
    "dataplane.elements.mirror",
    "dataplane.elements.parse",
    "dataplane.ports.loopback",
    "dataplane.ports.memory",
    "dataplane.ports.pcap_sink",
    "dataplane.ports.pcap_source",
    "dataplane.ports.pcap_writer",
    "dataplane.ports.ring_port",
    "dataplane.wire.checksum",
    "dataplane.wire.headers",
    "shaping.pool_share",
    "shaping.shaper",
    "vnic.device.nic_tx",
    "vnic.device.rss",
    "vnic.device.tap_port",
]

BUILD = os.environ.get("VNIC_BUILD", "release")
FLAGS = {
    "release": ["-O3", "-g1"],
    "debug": ["-O1", "-g", "-DVNIC_DEBUG"],
    "asan": ["-O1", "-g", "-DVNIC_DEBUG", "-fno-omit-frame-pointer", "-fsanitize=address"],
}
if BUILD not in FLAGS:
    raise SystemExit(f"VNIC_BUILD={BUILD}: want one of {', '.join(FLAGS)}")
CHECKED = BUILD != "release"

extensions = [
    Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=["dataplane"],
        depends=["dataplane/vatomic.h", "dataplane/capture/formats.h"],
        extra_compile_args=[*FLAGS[BUILD], "-Wall", "-Wno-unused-function", "-fno-strict-aliasing"],
        extra_link_args=["-fsanitize=address"] if BUILD == "asan" else [],
    )
    for name in MODULES
    if Path(name.replace(".", "/") + ".pyx").exists()
]

setup(
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=cythonize(
        extensions,
        nthreads=os.cpu_count() or 1,
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
    ),
)

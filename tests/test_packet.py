"""The pool: layout, allocation compared with a model, many threads, errors that the debug build
detects."""

import subprocess
import sys

import numpy as np
import pytest

from dataplane.packet.pool import PACKET_DTYPE, PacketPool, check_layout


def test_record_is_two_cache_lines_and_agrees_with_c():
    assert PACKET_DTYPE.itemsize == 128
    check_layout(PACKET_DTYPE)


def test_a_disagreeing_layout_is_refused():
    wrong = np.dtype([(name, PACKET_DTYPE[name]) for name in PACKET_DTYPE.names if name != "mark"])
    with pytest.raises(ImportError, match="Packet"):
        check_layout(wrong)
    names = list(PACKET_DTYPE.names)
    names[2], names[3] = names[3], names[2]
    with pytest.raises(ImportError, match=r"Packet\.(length|next)"):
        check_layout(np.dtype([(name, PACKET_DTYPE[name]) for name in names]))


@pytest.mark.parametrize(("small", "large"), [(0, 1), (1, 0), (1 << 24, 1)])
def test_sizes_are_bounded(small, large):
    with pytest.raises(ValueError, match="packet pool"):
        PacketPool(small, large)


def test_another_process_can_map_the_segment():
    import mmap
    import os

    pool = PacketPool(small=8, large=2)
    with mmap.mmap(pool.fd, os.fstat(pool.fd).st_size, prot=mmap.PROT_READ) as view:
        assert view[:8] == b"vnicpool"


def test_a_worker_without_elements_in_python_does_not_load_numpy():
    """Loading numpy is a third of the CPU time of a worker's start, after a crash and in an
    upgrade."""
    code = "import sys, vnic.runtime.runtime, vnic.daemon.worker, vnic.daemon.upgrade; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=240, check=False).returncode == 0

"""Compressed captures: recognised by content, read in bounded memory, damaged ones up to the
damage."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading

import lz4.frame
import pytest
import zstandard

from dataplane.capture.reader import CaptureReader
from dataplane.errors import CaptureError
from tests.support.capture_files import enhanced, interface, pcap, section

FRAMES = [bytes([number]) * (60 + number) for number in range(50)]
PACKETS = [(1_700_000_000_000_000_000 + number * 1000, frame) for number, frame in enumerate(FRAMES)]
CONTENTS = {
    "pcap": pcap(PACKETS),
    "pcapng": section() + interface() + b"".join(enhanced(frame, time_ns // 1000) for time_ns, frame in PACKETS),
}
COMPRESS = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lz4.frame.compress,
}


def packets_of(file) -> list[tuple[int, bytes]]:
    reader = CaptureReader(file)
    try:
        return [(time_ns, data) for time_ns, data, _, _ in reader]
    finally:
        reader.close()


@pytest.mark.parametrize("method", COMPRESS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_compressed_captures(tmp_path, method, kind):
    path = tmp_path / "capture.with-any-name"
    path.write_bytes(COMPRESS[method](CONTENTS[kind]))
    assert packets_of(str(path)) == PACKETS
    reader = CaptureReader(str(path))
    # the content's length is unknown before its end
    assert reader.format == kind and reader.size == 0
    reader.close()


@pytest.mark.parametrize("method", COMPRESS)
def test_several_compressed_files_one_after_the_other_are_one(tmp_path, method):
    path = tmp_path / "capture"
    half = len(CONTENTS["pcap"]) // 2
    path.write_bytes(COMPRESS[method](CONTENTS["pcap"][:half]) + COMPRESS[method](CONTENTS["pcap"][half:]))
    assert packets_of(str(path)) == PACKETS


@pytest.mark.parametrize("method", COMPRESS)
def test_compressed_captures_come_through_a_pipe(method):
    source, sink = os.pipe()
    content = COMPRESS[method](CONTENTS["pcap"])

    def write() -> None:
        with os.fdopen(sink, "wb", buffering=0) as file:
            for at in range(0, len(content), 7):
                file.write(content[at : at + 7])

    thread = threading.Thread(target=write)
    thread.start()
    assert packets_of(source) == PACKETS
    os.close(source)
    thread.join()


@pytest.mark.parametrize("method", COMPRESS)
def test_a_damaged_file_gives_what_is_before_the_damage(tmp_path, method):
    content = bytearray(COMPRESS[method](pcap(PACKETS * 2000)))
    content[len(content) // 2 :][:64] = content[len(content) // 2 : len(content) // 2 + 64] = os.urandom(64)
    path = tmp_path / "capture"
    path.write_bytes(content)
    reader = CaptureReader(str(path))
    seen = 0
    with pytest.raises(CaptureError) as broken:
        for _ in reader:
            seen += 1
    assert "\n" not in str(broken.value) and str(broken.value).startswith(f"{path}: offset ")
    assert reader.error == str(broken.value) and seen == reader.packets
    reader.close()


# zstd's library detects truncation only by the content
@pytest.mark.parametrize("method", ["gzip", "lz4"])
def test_a_cut_file_says_so(tmp_path, method):
    content = COMPRESS[method](CONTENTS["pcap"] + pcap([(0, os.urandom(1000))] * 200)[24:])
    path = tmp_path / "capture"
    path.write_bytes(content[:-100])
    with pytest.raises(CaptureError, match="cannot be decompressed further|ends within a packet"):
        packets_of(str(path))


def test_other_content_is_named(tmp_path):
    path = tmp_path / "notes.gz"
    path.write_bytes(gzip.compress(b"hello, world, this is text"))
    with pytest.raises(CaptureError, match="begins with 68 65 6c 6c: not a capture"):
        CaptureReader(str(path))
    path.write_bytes(b"\x1f\x8b" + bytes(40))
    with pytest.raises(CaptureError, match="cannot be decompressed further: Unknown compression method"):
        CaptureReader(str(path))


@pytest.mark.parametrize(("module", "method", "package"), [("zstandard", "zstd", "zstandard"), ("lz4.frame", "lz4", "lz4")])
def test_without_the_library_the_error_says_what_helps(tmp_path, monkeypatch, module, method, package):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "capture"
    path.write_bytes(COMPRESS[method](CONTENTS["pcap"]))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CaptureError) as refused:
        CaptureReader(str(path))
    assert str(refused.value) == (
        f"{path}: is compressed by {method}: pip install {package}, or pipe it: {method} -dc FILE | vnic replay - ..."
    )
    assert len(os.listdir("/proc/self/fd")) == before


BOMB = """
import resource, sys
from dataplane.capture.reader import CaptureReader
from dataplane.errors import CaptureError
reader = CaptureReader(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(next(reader)[1]))
try:
    next(reader)
except CaptureError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("method", COMPRESS)
def test_memory_does_not_follow_what_a_small_file_unpacks_to(tmp_path, method):
    """256 MiB of zeros after a section header, as one block of a type that is skipped."""
    zeros = bytes(1 << 28)
    block = (0xBAD).to_bytes(4, "little") + (len(zeros) + 12).to_bytes(4, "little")
    path = tmp_path / "bomb"
    path.write_bytes(COMPRESS[method](section() + interface() + enhanced(FRAMES[0], 1) + block + zeros))
    done = subprocess.run([sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, timeout=220, check=True)
    first, error, grown = done.stdout.splitlines()
    assert (first, error) == ("60", f"{path}: offset {28 + 20 + 92}: the file ends within a block")
    assert int(grown) < 40  # MiB

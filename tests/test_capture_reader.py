"""Captures of every format are read; damaged ones give the packets before the damage, then an error
of one line."""

from __future__ import annotations

import os
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.capture.reader import CaptureReader
from dataplane.errors import CaptureError
from tests.support.capture_files import block, enhanced, interface, obsolete, option, pcap, section, simple

FRAMES = [bytes([n]) * (60 + n) for n in range(5)]
TIMES = [1_700_000_000_123_456_000 + n * 1_001_000 for n in range(5)]
PACKETS = list(zip(TIMES, FRAMES, strict=True))
HEAD = section() + interface()
GOOD = enhanced(FRAMES[0], 1)


def read(tmp_path, content: bytes):
    """(packets as (time, data), the error or None)."""
    path = tmp_path / "capture"
    path.write_bytes(content)
    reader = CaptureReader(str(path))
    got = []
    try:
        for time_ns, data, _, _ in reader:
            got.append((time_ns, data))
    except CaptureError as error:
        assert str(error) == reader.error
        return got, str(error).removeprefix(str(path))
    finally:
        reader.close()
    return got, None


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap(tmp_path, order, nanoseconds):
    assert read(tmp_path, pcap(PACKETS, order=order, nanoseconds=nanoseconds)) == (PACKETS, None)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("resolution", "ticks_a_second"),
    [
        (b"", 10**6), (b"\x06", 10**6), (b"\x09", 10**9), (b"\x03", 1000), (b"\x00", 1), (b"\x8a", 1024),
        (b"\x94", 1 << 20), (b"\x0c", 10**12),
    ],
)  # fmt: skip
def test_pcapng_resolutions(tmp_path, order, resolution, ticks_a_second):
    options = option(9, resolution, order) + option(0, b"", order) if resolution else b""
    ticks = [1_000_000 * ticks_a_second + 7 * n for n in range(5)]
    content = section(order) + interface(order, options=options)
    content += b"".join(enhanced(data, each, order) for data, each in zip(FRAMES, ticks, strict=True))
    expected = [(each * 10**9 // ticks_a_second, data) for data, each in zip(FRAMES, ticks, strict=True)]
    assert read(tmp_path, content) == (expected, None)


@pytest.mark.parametrize("order", "<>")
def test_pcapng_offset_sections_interfaces_and_blocks(tmp_path, order):
    shifted = option(14, struct.pack(order + "q", -5), order) + option(2, b"eth7", order)
    other = ">" if order == "<" else "<"
    content = (
        section(order)
        + interface(order, options=shifted)
        + interface(order, snaplen=64)
        + block(5, bytes(24), order)  # interface statistics: skipped
        + enhanced(FRAMES[0], 10 * 10**6, order, options=option(1, b"a comment", order) + option(0, b"", order))
        + obsolete(FRAMES[1], 11 * 10**6, order, number=1)
        + section(other)
        + interface(other, options=option(9, b"\x09", other))
        + enhanced(FRAMES[2], 12, other)
        + simple(FRAMES[3], other)
    )
    path = tmp_path / "capture"
    path.write_bytes(content)
    reader = CaptureReader(str(path))
    got = list(reader)
    assert [(time_ns, data, number) for time_ns, data, _, number in got] == [
        (5 * 10**9, FRAMES[0], 0),
        (11 * 10**9, FRAMES[1], 1),
        (12, FRAMES[2], 2),
        (12, FRAMES[3], 2),  # a simple packet has no time: gets the previous one's
    ]
    assert reader.names == ["eth7", None, None]
    reader.close()


def test_a_simple_packet_is_as_long_as_its_interface_keeps(tmp_path):
    content = section() + interface(snaplen=61) + simple(FRAMES[4][:61], original=64)
    path = tmp_path / "capture"
    path.write_bytes(content)
    reader = CaptureReader(str(path))
    assert [(data, original) for _, data, original, _ in reader] == [(FRAMES[4][:61], 64)]
    assert reader.truncated == 1
    reader.close()


def test_a_packet_was_never_longer_than_a_frame_can_be(tmp_path):
    """The original length in the file is not trusted: computations of shapers and schedules must
    not overflow."""
    path = tmp_path / "capture"
    lengths = [262144, 262145, 2**31 + 200_000_000, 2**32 - 1]
    for content in (
        pcap([(TIMES[0], FRAMES[0], each) for each in lengths]),
        HEAD + b"".join(simple(FRAMES[0], original=each) for each in lengths),
    ):
        path.write_bytes(content)
        reader = CaptureReader(str(path))
        assert [original for _, _, original, _ in reader] == [262144] * 4
        assert (reader.overlong, reader.truncated) == (3, 4)
        reader.close()


def test_interfaces_of_all_sections_are_bounded(tmp_path):
    sections = (section() + interface() * 32768) * 8
    content = sections + section() + interface() + GOOD
    got, error = read(tmp_path, HEAD + GOOD + content)
    assert got == [(1000, FRAMES[0])]
    assert error is not None and error.endswith(": more than 262144 interfaces in all sections")
    got, error = read(tmp_path, sections + GOOD)
    assert (got, error) == ([(1000, FRAMES[0])], None)


def test_an_interface_without_packets_may_be_of_any_kind(tmp_path):
    content = section() + interface(link_type=113) + interface() + enhanced(FRAMES[0], 1, number=1)
    assert read(tmp_path, content) == ([(1000, FRAMES[0])], None)
    assert read(tmp_path, section() + interface(link_type=113)) == ([], None)


def test_a_section_header_alone_is_a_capture_without_packets(tmp_path):
    assert read(tmp_path, section()) == read(tmp_path, pcap([])) == ([], None)


@pytest.mark.parametrize("order", "<>")
def test_the_modified_pcap_of_old_patches(tmp_path, order):
    """Its records have the interface's number, the protocol and the packet's type, too."""
    content = struct.pack(order + "I", 0xA1B2CD34) + pcap([], order=order)[4:]
    for time_ns, data in PACKETS:
        content += struct.pack(order + "IIII", time_ns // 10**9, time_ns % 10**9 // 1000, len(data), len(data))
        content += struct.pack(order + "IHBx", 3, 8, 4) + data
    assert read(tmp_path, content) == (PACKETS, None)
    assert read(tmp_path, content[:-10]) == (PACKETS[:-1], ": offset 366: the file ends within a packet")


@pytest.mark.parametrize("make", [
    lambda packets: pcap(packets, link_type=0x24000001),  # bits 28 to 31: 2 words of 16 bits
    lambda packets: section() + interface(options=option(13, b"\x04")) + b"".join(enhanced(data, 1, original=original)
                                                                                  for _, data, original in packets),
    lambda packets: section() + interface(options=option(13, b"\x20")) + b"".join(enhanced(data, 1, original=original)
                                                                                  for _, data, original in packets),
])  # fmt: skip
def test_a_frame_check_sequence_is_no_part_of_the_frame(tmp_path, make):
    path = tmp_path / "capture"
    path.write_bytes(
        make([(1000, FRAMES[0] + b"FCS!", 64), (1000, FRAMES[0][:58], 64), (1000, FRAMES[0] + b"F", 64), (1000, b"F", 1)])
    )
    reader = CaptureReader(str(path))
    assert [(data, original) for _, data, original, _ in reader] == [
        (FRAMES[0], 60), (FRAMES[0][:58], 60), (FRAMES[0], 60), (b"", 0),
    ]  # fmt: skip
    assert reader.truncated == 1
    reader.close()


def test_large_unknown_blocks_are_passed_over(tmp_path):
    content = section() + interface() + block(0x0BAD, bytes(9_000_000)) + enhanced(FRAMES[0], 1)
    assert read(tmp_path, content) == ([(1000, FRAMES[0])], None)


def test_a_pipe_is_a_file():
    source, sink = os.pipe()
    content = pcap(PACKETS * 2000)
    thread = threading.Thread(target=lambda: (os.write(sink, content[:10]), _write_all(sink, content[10:])))
    thread.start()
    reader = CaptureReader(source)
    os.close(source)
    assert sum(1 for _ in reader) == len(PACKETS) * 2000
    thread.join()
    reader.close()


def _write_all(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


@pytest.mark.parametrize("content", [
    pcap(PACKETS), pcap(PACKETS, order=">", nanoseconds=True),
    section() + interface() + b"".join(enhanced(data, 1) for data in FRAMES[:3])
    + section(">") + interface(">") + obsolete(FRAMES[3], 9, ">"),
])  # fmt: skip
def test_every_prefix_gives_what_it_holds(tmp_path, content):
    whole, error = read(tmp_path, content)
    assert error is None
    seen = 0
    for length in range(len(content)):
        try:
            got, error = read(tmp_path, content[:length])
        except CaptureError as refused:
            assert length < 100 or content.startswith(b"\x0a\x0d\x0d\x0a"), refused
            assert "\n" not in str(refused)
            continue
        assert got == whole[: len(got)] and len(got) >= seen
        seen = len(got)
        assert error is None or ("the file ends" in error and "offset" in error)


@pytest.mark.parametrize(("content", "message"), [
    (b"", ": is empty"),
    (b"\xd4\xc3", ": 2 bytes are not a capture: expected pcap or pcapng"),
    (b"hello, world, this is text", ": begins with 68 65 6c 6c: not a capture: expected pcap or pcapng (Wireshark's editcap -F pcapng "
     "converts many others, such as ERF)"),
    (b"snoop\0\0\0" + bytes(24), ": is a snoop capture: expected pcap or pcapng; Wireshark's `editcap -F pcapng FILE "
     "NEW.pcapng` converts it"),
    (b"GMBU" + bytes(24), ": is a Microsoft Network Monitor 2 capture: expected pcap or pcapng; Wireshark's `editcap -F pcapng FILE "
     "NEW.pcapng` converts it"),
    (b"\xfd7zXZ\0" + bytes(24), ": is compressed by xz: xz -dc FILE | vnic replay - ..."),
    (pcap([])[:20], ": the file's header ends at byte 20 of 24"),
    (pcap(PACKETS, link_type=113), ": link type 113, Linux cooked (SLL): expected Ethernet"),
    (pcap(PACKETS, link_type=9999), ": link type 9999: expected Ethernet"),
    (section() + interface(link_type=127) + enhanced(FRAMES[0], 1),
     ": offset 48: link type 127, IEEE 802.11 with radiotap header: expected Ethernet"),
    (pcap(PACKETS, link_type=274), ": link type 274, Ethernet mPackets (IEEE 802.3br): expected Ethernet"),
    (section() + enhanced(FRAMES[0], 1), ": offset 28: a packet of an interface that its section does not describe"),
    (b"\x0a\x0d\x0d\x0a" + bytes(24), ": offset 0: a section header without the byte-order magic"),
])  # fmt: skip
def test_what_cannot_be_used_at_all(tmp_path, content, message):
    path = tmp_path / "capture"
    path.write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CaptureError) as refused:
        CaptureReader(str(path))
    assert str(refused.value) == f"{path}{message}"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("content", "offset", "message"), [
    (pcap(PACKETS[:1]) + struct.pack("<IIII", 1, 1, 0xFFFFFFFF, 60), 100, "a record says that it has more than 262144 bytes"),
    (pcap(PACKETS[:1]) + struct.pack("<IIII", 1, 1, 60, 60) + b"short", 100, "the file ends within a packet"),
    (HEAD + GOOD + struct.pack("<II", 6, 0xFFFFFFFC) + bytes(64), 140, "a packet's block has more than 1 MiB"),
    (HEAD + GOOD + struct.pack("<II", 77, 0xFFFFFFFC) + bytes(64), 140, "the file ends within a block"),
    (HEAD + GOOD + struct.pack("<III", 77, 8, 8), 140, "a block has an impossible length"),
    (HEAD + GOOD + struct.pack("<IIIII", 77, 17, 8, 8, 8), 140, "a block has an impossible length"),
    (HEAD + GOOD + struct.pack("<IIII", 77, 16, 8, 20), 140, "a block's two lengths differ"),
    (HEAD + GOOD + block(6, struct.pack("<IIIII", 0, 0, 0, 999, 999) + bytes(64)), 140, "a packet is longer than its block"),
    (HEAD + GOOD + block(6, bytes(8)), 140, "a packet's block is shorter than its own header"),
    (HEAD + GOOD + enhanced(FRAMES[1], 1, number=1), 140, "a packet of an interface that its section does not describe"),
    (HEAD + GOOD + enhanced(FRAMES[1], 2**64 - 1), 140, "a time stamp outside 1970 to 2262"),
    (HEAD + GOOD + block(1, bytes(4)), 140, "an interface description of less than 20 bytes"),
    (HEAD + GOOD + interface(options=struct.pack("<HH", 2, 999)), 140, "an option is longer than its block"),
    (HEAD + GOOD + interface(options=option(9, b"\xff")), 140, "an interface counts time in steps too fine to represent"),
    (HEAD + GOOD + interface(link_type=105) + enhanced(FRAMES[1], 1, number=1), 160, "link type 105, IEEE 802.11: expected Ethernet"),
    (HEAD + GOOD + section()[:8] + bytes(24), 140, "a section header without the byte-order magic"),
    (HEAD + GOOD + block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 9, 0, -1)), 140, "a section of an unknown version: expected 1"),
])  # fmt: skip
def test_what_is_before_the_break_is_used(tmp_path, content, offset, message):
    got, error = read(tmp_path, content)
    assert [data for _, data in got] == [FRAMES[0]]
    assert error == f": offset {offset}: {message}"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([pcap(PACKETS), HEAD + GOOD + interface() + simple(FRAMES[1]) + obsolete(FRAMES[2], 3), HEAD]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.binary(max_size=64),
)
def test_damaged_files_do_no_damage(tmp_path_factory, content, damage, tail):
    damaged = bytearray(content)
    for at, value in damage:
        damaged[at % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(damaged) + tail)
    try:
        reader = CaptureReader(str(path))
    except CaptureError as refused:
        assert "\n" not in str(refused)
        return
    try:
        for time_ns, data, original, _ in reader:
            assert 0 <= time_ns < 2**63 and len(data) <= min(original, len(content) + len(tail))
    except CaptureError:
        assert reader.error
    reader.close()


def test_absent_and_directory(tmp_path):
    with pytest.raises(CaptureError, match="No such file"):
        CaptureReader(str(tmp_path / "none"))
    with pytest.raises(CaptureError, match="Is a directory"):
        CaptureReader(str(tmp_path))

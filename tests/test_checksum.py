"""The Internet checksum compared with a plain implementation of RFC 1071."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.wire.checksum import internet_checksum, shift_length
from tests.wire_frames import checksum


def test_the_example_of_the_rfc():
    # RFC 1071, section 3: the sum is ddf2.
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2


@settings(deadline=None)
@given(data=st.binary(max_size=300), start=st.integers(0, 40))
def test_twin_at_any_length_and_offset(data, start):
    if start > len(data):
        with pytest.raises(ValueError, match="behind"):
            internet_checksum(data, start)
    else:
        assert internet_checksum(data, start) == checksum(data[start:])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 65535, 69504])
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80])
def test_carries_of_long_runs(size, byte):
    assert internet_checksum(bytes([byte]) * size) == checksum(bytes([byte]) * size)


@settings(deadline=None)
@given(data=st.binary(max_size=100).filter(lambda data: any(data)), old=st.integers(0, 70000), new=st.integers(0, 70000))
def test_a_new_length_in_a_pseudo_header(data, old, new):
    data = data + bytes(len(data) % 2)
    before = 0xFFFF ^ checksum(data + old.to_bytes(4, "big"))
    after = 0xFFFF ^ checksum(data + new.to_bytes(4, "big"))
    # 0 and FFFF are the same number
    assert shift_length(before, old, new) % 0xFFFF == after % 0xFFFF

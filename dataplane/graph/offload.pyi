def split_frame(
    frame: bytes | bytearray | memoryview,
    gso_type: int,
    gso_size: int,
    csum_start: int,
    csum_offset: int,
    segments_each: int = 1,
    buffers: int = 9000,
) -> tuple[list[tuple[bytes, int, int, int, int, int, int]], int]: ...
def captured_frame(
    frame: bytes | bytearray | memoryview, mtu: int
) -> tuple[bytes, int, int, int, int, int, int]: ...

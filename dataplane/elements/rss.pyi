from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import final

from dataplane.packet.pool import PacketPool

DEFAULT_KEY: bytes
DEFAULT_TABLE_SIZE: int

@final
class Rss:
    @property
    def queues(self) -> int: ...
    @property
    def key(self) -> bytes: ...
    def __init__(
        self, key: bytes | None = None, table: Iterable[int] | None = None, *, queues: int = 1
    ) -> None: ...
    def set_key(self, key: bytes) -> None: ...
    def set_table(self, table: Iterable[int]) -> None: ...
    @property
    def table(self) -> list[int]: ...
    def hash_tuple(
        self,
        source: str | IPv4Address | IPv6Address,
        destination: str | IPv4Address | IPv6Address,
        source_port: int | None = None,
        destination_port: int | None = None,
    ) -> int: ...
    def hash_parsed(self, pool: PacketPool, index: int) -> int: ...
    def queue(self, hash: int) -> int: ...  # noqa: A002

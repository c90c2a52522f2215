"""The check of compiled elements outside this package: see abi.pxd, which they cimport."""

ABI: str

def require_check(cls: type, root: type) -> None:
    """Raises TypeError where `cls` or a base of it is compiled, not ours, and its module did not call check_abi."""

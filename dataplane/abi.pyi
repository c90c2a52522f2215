"""The check of compiled elements outside this package: see abi.pxd, which they cimport."""

ABI: str

def require_check(cls: type, root: type) -> None:
    """Raises TypeError if `cls` or one of its bases is compiled, is not part of this package, and
    its module did not call check_abi."""

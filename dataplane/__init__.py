"""Packets, elements, engines and ports: the packets' path. See README.md beside this file."""


def get_include() -> str:
    """Directory of the C headers that compiled elements outside this package include: for
    `include_dirs` in their setup.py."""
    return __path__[0]

"""Guards against compiled elements that were built against other declarations than those installed.

A compiled element outside this package has the layout of our structs and vtables compiled in.
Cython checks at import that no class has become smaller, but not that their fields and methods
still have the same offsets. So each such module calls `check_abi(__name__)`: abi.h, which is
compiled into both sides, has a fingerprint of all declarations.
"""

cdef extern from "abi.h":
    const char *VNIC_ABI

cdef int check(str module, const char *abi) except -1

cdef inline int check_abi(str module) except -1:
    """Raises ImportError where `module` was compiled against other declarations."""
    return check(module, VNIC_ABI)

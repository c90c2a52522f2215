"""The check of compiled elements outside this package. The contract is in abi.pxd."""
import sys
from importlib.machinery import ExtensionFileLoader

from libc.string cimport strcmp

ABI = VNIC_ABI.decode()

cdef frozenset OURS = frozenset({"dataplane", "shaping", "switching", "virt"})
cdef set checked = set()


cdef int check(str module, const char *abi) except -1:
    if strcmp(abi, VNIC_ABI) != 0:
        raise ImportError(f"{module} was compiled against another version of vnic "
                          f"({abi.decode()}, installed is {ABI}): compile it again")
    checked.add(module)
    return 0


def require_check(type cls, type root):
    """Raises TypeError if `cls` or one of its bases is compiled, is not part of this package, and
    its module did not call check_abi."""
    for base in cls.__mro__:
        if base is root:
            break
        name = base.__module__
        if name in checked or name.partition(".")[0] in OURS:
            continue
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if isinstance(getattr(spec, "loader", None), ExtensionFileLoader):
            raise TypeError(f"{name}.{base.__name__} is compiled, and its module does not call "
                            "check_abi(__name__) of dataplane.abi: without it, a build for another "
                            "version of vnic would crash")

"""A call that no native unwinder can walk past.

torch collects a native backtrace for every C++ error. Inside a greenlet the unwinder would walk past the
greenlet's base into stack memory that belongs to somebody else by then, and kill the process. A call made
from an anonymous executable page has no unwind table, so every unwinder stops there. The page is written,
then made read-execute; it is never writable and executable together. It touches nothing global and costs
about 0.5 µs a call.
"""

import ctypes
import mmap
import os
import platform
import struct
import sys
from collections.abc import Callable

from interlace.errors import PlatformError

ACCEPT = "INTERLACE_ACCEPT_UNSAFE_STACKS"


def _x86_64(target: int) -> bytes:
    """`endbr64; sub rsp,8; mov rax,target; call rax; add rsp,8; ret`."""
    return (
        b"\xf3\x0f\x1e\xfa\x48\x83\xec\x08\x48\xb8"
        + struct.pack("<Q", target)
        + b"\xff\xd0\x48\x83\xc4\x08\xc3"
    )


def _aarch64(target: int) -> bytes:
    """`bti c; stp x29,x30,[sp,#-16]!; mov x16,target; blr x16; ldp x29,x30,[sp],#16; ret`."""
    words = [0xD503245F, 0xA9BF7BFD]
    words += [
        (0xD2800010 if part == 0 else 0xF2800010) | part << 21 | (target >> 16 * part & 0xFFFF) << 5
        for part in range(4)
    ]
    words += [0xD63F0200, 0xA8C17BFD, 0xD65F03C0]
    return b"".join(struct.pack("<I", word) for word in words)


_MACHINES = {"x86_64": _x86_64, "amd64": _x86_64, "aarch64": _aarch64, "arm64": _aarch64}


def _page(code: bytes) -> int:
    """The address of a read-execute page that starts with `code`; it lives as long as the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = mmap.PAGESIZE
    address = libc.mmap(
        None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap: " + os.strerror(ctypes.get_errno()))
    ctypes.memmove(address, code, len(code))
    if libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        raise OSError(ctypes.get_errno(), "mprotect: " + os.strerror(ctypes.get_errno()))
    return int(address)


def guarded_call() -> Callable[[Callable[[], object]], object]:
    """A function that calls its argument through a frame that ends every native backtrace.

    Raises:
        PlatformError: No such frame can be had here. Setting `INTERLACE_ACCEPT_UNSAFE_STACKS=1` accepts the
            risk that an error inside torch kills the process.
    """
    if os.environ.get(ACCEPT) == "1":
        return _unguarded
    machine = platform.machine().lower()
    try:
        if sys.implementation.name != "cpython" or sys.platform == "win32" or machine not in _MACHINES:
            raise OSError(f"no code for {sys.implementation.name} on {sys.platform} {machine}")
        target = ctypes.cast(ctypes.pythonapi.PyObject_CallNoArgs, ctypes.c_void_p).value
        assert target is not None
        address = _page(_MACHINES[machine](target))
    except OSError as error:
        raise PlatformError(
            f"Traces need a stack frame that native unwinders cannot pass, and none can be had: {error}.\n"
            "Without it an error raised inside torch may kill the process instead of reaching you.\n"
            f"Set the environment variable {ACCEPT}=1 to accept that."
        ) from error
    call: Callable[[Callable[[], object]], object] = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(
        address
    )
    return call


def _unguarded(function: Callable[[], object]) -> object:
    return function()


def is_guarded(call: Callable[[Callable[[], object]], object]) -> bool:
    """Whether what `guarded_call` gave does guard."""
    return call is not _unguarded

"""Ask the operating system for permission to use AMX."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

# Linux, x86-64: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); see the kernel's
# Documentation/arch/x86/xstate.rst. Threads that start later inherit the permission.
_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


@cache
def amx_allowed() -> bool:
    """Whether this process may use AMX's tiles; asks the system for them at the first call.

    False on systems other than Linux on x86-64. Asking is safe: where there is no AMX, the system
    call returns an error.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    syscall = ctypes.CDLL(None).syscall
    numbers = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return bool(syscall(*(ctypes.c_long(number) for number in numbers)) == 0)

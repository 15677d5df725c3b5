"""What a process must ask its system for before it may use some of the processor's registers."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

# Linux, x86-64: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); see the kernel's
# Documentation/arch/x86/xstate.rst. Threads started later inherit the permission.
_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


@cache
def amx_allowed() -> bool:
    """Ask for AMX's tiles; False where the system does not give them, or is none we can ask.

    Nothing is executed that could fail: a processor or a system without them only says no.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    syscall = ctypes.CDLL(None).syscall
    numbers = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return bool(syscall(*(ctypes.c_long(number) for number in numbers)) == 0)

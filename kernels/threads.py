"""Threads and locks that bear signals, forks and small stacks.

Python's own are made for programs without signal handlers that raise: an exception inside of
Thread.start or a compiler leaves broken locks, or is lost.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from .jit import compile_for, compiler_lock

_STACK = 8 << 20  # bytes, as main threads have; of which the system provides the used part
_POLL = 0.2  # seconds after which a waiting thread sees a signal where nothing wakes it (Windows)


def start_thread(function: Callable[..., None], *arguments: Any) -> None:
    """Start a daemon thread with a large stack.

    Raises RuntimeError where the system starts no more threads, as at the end of the process.
    """
    with _stack_size_lock:
        former = threading.stack_size()
        try:
            with contextlib.suppress(ValueError, RuntimeError):  # the system's own size will do
                threading.stack_size(_STACK)
            _thread.start_new_thread(function, arguments)
        finally:
            threading.stack_size(former)


def compile_in_thread(function: Any, arguments: tuple[Any, ...]) -> None:
    """Compile an entry for the types of `arguments`, or load it from the cache, in a new thread.

    It has a large stack, where the caller may have a small one. An exception that a signal handler
    raises ends the wait, not the compiler, which would swallow it.
    """
    outcome: SimpleQueue[BaseException | None] = SimpleQueue()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.put(context.run(compile_for, function, arguments))
        except BaseException as error:
            outcome.put(error)

    try:
        start_thread(work)
    except RuntimeError:  # no more threads
        compile_for(function, arguments)
        return
    while True:
        with contextlib.suppress(Empty):
            error = outcome.get(timeout=_POLL)
            break
    if error is not None:
        raise error


def call(function: Any, *arguments: Any) -> Any:
    """Call an entry in this thread; what it needs is compiled or loaded in another."""
    if not function.signatures:
        compile_in_thread(function, arguments)
    return function(*arguments)


# ---- locks --------------------------------------------------------------------------------------

_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def new_lock() -> Any:
    """A lock that is free in a forked child, whoever holds it in the parent. For `with`."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def is_mine(lock: Any) -> bool:
    """Whether this thread holds a `new_lock`, as a signal handler may find."""
    return bool(lock._is_owned())


_stack_size_lock = new_lock()


# A fork copies one thread, and memory as the others leave it at that moment. It waits until no
# other thread compiles: the compiler's state and its locks, some inside of LLVM, are then at rest.
def _after_fork_in_child() -> None:
    compiler_lock.release()
    for lock in list(_locks):
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=compiler_lock.acquire,
        after_in_parent=compiler_lock.release,
        after_in_child=_after_fork_in_child,
    )


@atexit.register
def _wait_for_compiler() -> None:
    """Wait for a thread that compiles still: it would crash while Python ends."""
    with compiler_lock:
        pass

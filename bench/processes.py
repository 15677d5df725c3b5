"""Worker processes that call functions on request: each engine is measured in its own."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

# Seconds before each request. Idle threads of OpenMP spin for up to 0.2 s before they sleep.
PAUSE = 0.3


class WorkerError(Exception):
    """A call in a worker process failed; the text gives the reason."""


class Worker(NamedTuple):
    """A process and this side's end of the pipe to it."""

    process: BaseProcess
    connection: Connection


def start() -> Worker:
    """Start a fresh process, by spawning: threads do not survive a fork."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()  # recv() then fails when the process dies
    return Worker(process, here)


def serve(connection: Connection) -> None:
    """Run in the process: answer requests (function, arguments) until None arrives."""
    while (request := connection.recv()) is not None:
        function, arguments = request
        try:
            reply = True, function(*arguments)
        except ImportError as error:
            reply = False, f"{error.name or error} is not installed"
        except RuntimeError as error:  # an engine's own message
            reply = False, first_line(str(error))
        except Exception as error:  # other engines raise anything
            reply = False, first_line(f"{type(error).__name__}: {error}")
        connection.send(reply)


def first_line(text: str) -> str:
    """Return the first line that is not blank."""
    return next((line for line in text.splitlines() if line.strip()), "failed")


def ask(worker: Worker, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in the worker's process and return its result; raises WorkerError."""
    time.sleep(PAUSE)
    try:
        worker.connection.send((function, arguments))
        succeeded, value = worker.connection.recv()
    except (EOFError, OSError) as error:
        raise WorkerError(end_of(worker.process)) from error
    if not succeeded:
        raise WorkerError(value)
    return value


def end_of(process: BaseProcess) -> str:
    """Describe how a process ended."""
    process.join()
    code = process.exitcode or 0
    if code < 0:  # SIGILL: an unsupported instruction; SIGKILL: out of memory
        return f"killed by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def stop(worker: Worker) -> None:
    """End a process, if it still runs, and wait until its memory is free."""
    if worker.process.is_alive():
        worker.connection.send(None)
    worker.process.join()
    worker.connection.close()


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process and return its result; raises WorkerError."""
    worker = start()
    try:
        return ask(worker, function, *arguments)
    finally:
        stop(worker)

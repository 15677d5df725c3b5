"""Processes that do what they are asked and sleep in between: each engine is measured in one."""

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
    """A process could not do what it was asked; the text says why."""


class Worker(NamedTuple):
    """A process, and our end of the pipe to it."""

    process: BaseProcess
    connection: Connection


def start() -> Worker:
    """A fresh process, which has loaded nothing yet. Not a fork: threads do not survive one."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()  # so that recv() fails when the process dies
    return Worker(process, here)


def serve(connection: Connection) -> None:
    """The life of the process: calls (function, arguments) and answers, until None comes."""
    while (request := connection.recv()) is not None:
        function, arguments = request
        try:
            reply = True, function(*arguments)
        except ImportError as error:
            reply = False, f"{error.name or error} is not installed"
        except RuntimeError as error:  # an engine's own words
            reply = False, first_line(str(error))
        except Exception as error:  # whatever else another engine raises is told, too, not hidden
            reply = False, first_line(f"{type(error).__name__}: {error}")
        connection.send(reply)


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line for line in text.splitlines() if line.strip()), "failed")


def ask(worker: Worker, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in the worker's process; raises WorkerError."""
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
    """How a process ended, in words."""
    process.join()
    code = process.exitcode or 0
    if code < 0:  # an instruction that the processor lacks is SIGILL; want of memory is SIGKILL
        return f"killed by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def stop(worker: Worker) -> None:
    """Ends a process, and waits until its memory is free; one that is dead already stays so."""
    if worker.process.is_alive():
        worker.connection.send(None)
    worker.process.join()
    worker.connection.close()


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a process of its own; raises WorkerError."""
    worker = start()
    try:
        return ask(worker, function, *arguments)
    finally:
        stop(worker)

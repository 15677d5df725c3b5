"""The entry: runs a command and turns whatever happens into an exit code.

    0    done; also when the reader of stdout has gone, as in `minigpt generate … | head -c 10`
    1    a file or its data is bad, or the machine lacks memory or disk
    2    the command line is wrong
    130  interrupted by Ctrl-C

A failure prints one line on stderr, `Error: …`, and never a traceback.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line of this process and exits."""
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not disturb the way out
        code = 130
        if sys.stdout is not None and sys.stdout.isatty():
            print()
    _silence_broken_stdout()
    gc.freeze()  # see _run
    sys.exit(code)


def _run(args: list[str]) -> int:
    """The exit code of `args`; a failure has printed its line."""
    # The modules we load are objects by the hundred thousand that live to the end: to search them
    # for garbage again and again, and once more on the way out, takes a sixth of a short command.
    gc.set_threshold(100_000)
    # imported here, so that Ctrl-C during the imports ends in `main`, too
    import click

    from ..errors import MinigptError
    from .commands import cli
    from .terminal import describe_bug, fail, prepare

    prepare()
    try:
        if "_MINIGPT_COMPLETE" in os.environ:  # the shell asks how a line could go on
            cli.main(args, prog_name="minigpt")
        with cli.make_context("minigpt", args) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:  # --help and --version end so
        return done.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "minigpt"
        return fail(f"{error.format_message()} (try '{command} --help')", 2)
    except MinigptError as error:
        return fail(str(error), 1)
    except BrokenPipeError:
        return 0
    except MemoryError as error:
        return fail(f"out of memory: {error}; a smaller model, or less text, needs less", 1)
    except OSError as error:
        return fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except Exception as error:  # the last resort, so that a user gets a line to report
        return fail(describe_bug(error), 1)
    return 0


def _silence_broken_stdout() -> None:
    """If stdout cannot be flushed, sends the rest nowhere: Python would complain on its way out."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

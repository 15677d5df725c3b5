"""The entry point: runs a command and maps its outcome to an exit code.

    0    done; also if the reader of stdout has gone, as in `minigpt generate … | head -c 10`
    1    a file or its data is bad, or memory or disk is exhausted
    2    the command line is wrong: an unknown option, or one out of its range, even if it takes the
         model to know the range
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
    """Run the command line of this process and exit.

    Inside a notebook or an interactive Python (`%run -m minigpt …`), whose process lives on, no
    setting of the process changes.
    """
    if hasattr(sys, "ps1"):
        sys.exit(_run(sys.argv[1:]))
    # The loaded modules are hundreds of thousands of objects that live until exit. Searching them
    # for garbage again and again, and once more at exit, takes a sixth of a short command's time.
    gc.set_threshold(100_000)
    try:
        code = _run(sys.argv[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C must not disturb the exit
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = 130
        if sys.stdout is not None and sys.stdout.isatty():
            print()
    _silence_broken_streams()
    gc.freeze()
    sys.exit(code)


def _run(args: list[str]) -> int:
    """Run `args`, print the line of a failure, and return the exit code."""
    # Imported here for Ctrl-C during the imports to be handled in `main`.
    from ..errors import warnings_shown_by
    from .terminal import (
        compiling_noted,
        prepare,
        show_warning,
        signal_handlers_restored,
        warnings_on_one_line,
    )

    prepare()
    with (
        signal_handlers_restored(),
        warnings_shown_by(show_warning),
        warnings_on_one_line(),
        compiling_noted(),
    ):
        return _invoke(args)


def _invoke(args: list[str]) -> int:
    """Run the command of `args` and map its outcome to an exit code."""
    import click

    from ..errors import InputError, MinigptError
    from ..kernels.events import CompilerError
    from .commands import cli
    from .terminal import describe_bug, fail

    try:
        if "_MINIGPT_COMPLETE" in os.environ:  # the shell asks for completions
            cli.main(args, prog_name="minigpt")
        with cli.make_context("minigpt", args) as context:
            try:
                cli.invoke(context)
            except InputError as error:
                command = cli.commands[context.invoked_subcommand or ""]
                is_option = error.argument in [parameter.name for parameter in command.params]
                return fail(str(error), 2 if is_option else 1)
    except click.exceptions.Exit as done:  # raised by --help and --version
        return done.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "minigpt"
        return fail(f"{error.format_message()} (try '{path} --help')", 2)
    except (MinigptError, CompilerError) as error:
        return fail(str(error), 1)
    except BrokenPipeError:
        return 0
    except MemoryError as error:
        return fail(f"out of memory: {error}; a smaller model, or less text, needs less", 1)
    except OSError as error:
        return fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except Exception as error:  # a bug: one line that a user can report
        return fail(describe_bug(error), 1)
    return 0


def _silence_broken_streams() -> None:
    """Point streams that cannot be flushed at the null device.

    Python flushes both at exit; a failure there would print a warning and exit with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""`minigpt compile`: compiles the kernels ahead of their first use."""

from __future__ import annotations

import click

from .terminal import end_at_once_on_interrupt, show_line, verbose_option, write


@click.command(
    "compile",
    short_help="Compile all kernels ahead.",
    epilog="Example: minigpt compile --verbose",
)
@verbose_option
def compile_command(verbose: bool) -> None:
    """Compile all kernels, for all dtypes, into the cache, and print its folder.

    The first use of each would compile it, too. A container image, or an installation that other
    users run, holds them from the beginning. They fit processors of the kind that compiled them.

    MINIGPT_CACHE names another folder than the user's cache.
    """
    from ..precompile import compile_kernels

    end_at_once_on_interrupt()
    folder = compile_kernels(lambda phase: show_line(phase and f"compiling   {phase}"))
    write(f"{folder}\n")

"""The group of all commands."""

from __future__ import annotations

import click

from .. import __version__
from .bench import bench
from .compare import compare
from .compile import compile_command
from .convert import convert
from .eval import evaluate
from .generate import generate
from .info import info
from .tokenize import tokenize
from .train import train
from .train_tokenizer import train_tokenizer


@click.group(
    invoke_without_command=True,  # `minigpt` alone shows the help
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog='Shell completion: put eval "$(_MINIGPT_COMPLETE=bash_source minigpt)" into ~/.bashrc; '
    "zsh_source and fish_source do the same for zsh and fish.",
)
@click.version_option(__version__, prog_name="minigpt", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run and train GPT-2-architecture models such as Cerebras-GPT on the CPU."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    generate, info, tokenize, convert, train, train_tokenizer, evaluate, compare, bench,
    compile_command,
):  # fmt: skip
    cli.add_command(command)

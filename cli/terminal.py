"""How commands read and write: text in, the result on stdout, notes and failures on stderr."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import click
from click.shell_completion import CompletionItem

from ..bundled import BUNDLED_MODEL
from ..errors import InputError, MinigptError

# Those of weights.py and api.py, which are too heavy to be imported for --help.
DTYPES = ("auto", "f32", "bf16", "int8", "int4")
MAX_THREADS = 256

LARGEST_INPUT = 64 << 20  # bytes; far beyond every context, and it keeps /dev/zero from our memory
STDIN = "standard input"  # as messages and tables call it


class Text(click.ParamType):
    """An argument that is text: UTF-8, and not empty where that would mean nothing."""

    name = "text"

    def __init__(self, may_be_empty: bool = False) -> None:
        self.may_be_empty = may_be_empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.fail("it is not UTF-8 text", param, ctx)
        if not value and not self.may_be_empty:
            self.fail("it is empty, and must be a text of at least one character", param, ctx)
        return str(value)


def complete_source(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Lets the shell complete the name of a folder or file."""
    return [CompletionItem(incomplete, type="file")]


model_option = click.option(
    "-m",
    "--model",
    "source",
    shell_complete=complete_source,
    default=str(BUNDLED_MODEL),
    show_default="the model in the box",
    metavar="SOURCE",
    help="A folder in Hugging Face layout, a GGUF file, or a hub id such as "
    "cerebras/Cerebras-GPT-111M.",
)
dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPES), default="auto", help="How the weights are held in memory."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Threads to compute with. Default: one for each processor.",
)
verbose_option = click.option(
    "--verbose", is_flag=True, help="Write notes and timings to stderr even if it is no terminal."
)


def prepare() -> None:
    """Makes stdout UTF-8 without newline translation, whatever the locale; closed ones harmless."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (until the end)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding="utf-8", newline="")


def read_text(argument: str | None, name: str) -> str:
    """The text of an argument, or of stdin where it is `-`, or absent and stdin no terminal.

    Text comes as it is: no newline is added, removed or translated. Raises UsageError where there
    is none to read, InputError where stdin cannot be read, is no UTF-8 or endlessly long.
    """
    if argument not in (None, "-"):
        return str(argument)
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise click.UsageError(
            f"Missing argument '{name}': give it, or a text on standard input.",
            click.get_current_context(),
        )
    return _decoded(sys.stdin.buffer, STDIN)


def read_file(name: str) -> str:
    """The text of a file, as it is. Raises InputError where it is none, or endlessly long."""
    try:
        with Path(name).open("rb") as file:
            return _decoded(file, name)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None


def _decoded(file: BinaryIO, name: str) -> str:
    """All of a file as text; raises InputError, with the file's name."""
    try:
        data = file.read(LARGEST_INPUT + 1)
        if len(data) > LARGEST_INPUT:
            raise InputError(f"{name}: longer than {LARGEST_INPUT} bytes; give less at once")
        return data.decode("utf-8")
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not UTF-8 text: byte {error.start} is {data[error.start]:#04x}"
        ) from None


def write(text: str) -> None:
    """Puts a piece of the result on stdout, at once.

    Raises BrokenPipeError where nobody reads any more, MinigptError where it cannot be written.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Windows reports a closed pipe as EINVAL
        if error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL):
            raise BrokenPipeError from None
        raise MinigptError(f"standard output: cannot be written: {error.strerror}") from None


def end_line() -> None:
    """Ends the line where a person looks; what a program reads is the result and nothing else."""
    if sys.stdout.isatty():
        write("\n")


def note(text: str, verbose: bool) -> None:
    """Something beside the result: on stderr, for a person who looks or who asked for it."""
    if verbose or sys.stderr.isatty():
        _tell(f"[{text}]")


def show_line(text: str) -> None:
    """One line on stderr for a person who looks, in place of the one before; "" takes it away."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1  # a full line would begin the next
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{text[:width]:<{width}}\r{text[:width]}")
            sys.stderr.flush()


def progress_line(label: str, rate: Callable[[float], str]) -> Callable[[int, int], None]:
    """A function that shows (done, total) as a line: how much, how fast, how long still.

    rate  how what is done in a second is written: lambda r: f"{r:.0f} tokens/s"

        glinda_of_oz.txt   43 %   812 tokens/s   1:05 left
    """
    start = short_repr = perf_counter()

    def show(done: int, total: int) -> None:
        nonlocal short_repr
        now = perf_counter()
        if not done or now - short_repr < 0.1:  # no eye reads faster
            return
        short_repr = now
        speed = done / (now - start)
        left = f"{clock((total - done) / speed)} left"
        show_line(f"{label}   {100 * done // total} %   {rate(speed)}   {left}")

    return show


def clock(seconds: float) -> str:
    """65.2 → "1:05", 3725 → "1:02:05"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def fail(message: str, code: int) -> int:
    """Prints `message` as the one line of a failure; gives back `code`."""
    show_line("")  # where a progress line stands, its place is taken
    line = " ".join(message.split())
    short_repr = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
    _tell(f"Error: {short_repr}")
    return code


def _tell(line: str) -> None:
    """Puts a line on stderr. Where that cannot be written, result and exit code have to do."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def end_at_once_on_interrupt() -> None:
    """From here on Ctrl-C ends the process where it stands; what was written is already out.

    While kernels are compiled, its exception could come up inside a callback of the compiler,
    which drops it; and a thread that still compiles must not see Python being taken down.
    """

    def end(*_: object) -> None:
        if sys.stdout.isatty():  # past Python's buffer, which may be in use
            os.write(sys.stdout.fileno(), b"\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end)


def describe_bug(error: Exception) -> str:
    """What to say of an error that no part of the program foresaw: what it is, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}, line {last.lineno}"
    return f"{place}: {type(error).__name__}: {error}; this is a bug in minigpt, please report it"

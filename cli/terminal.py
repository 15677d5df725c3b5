"""Input and output of the commands: the result on stdout, notes and errors on stderr."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from .. import texts
from ..bundled import BUNDLED_MODEL
from ..errors import MinigptError, printable
from ..kernels import events

if TYPE_CHECKING:
    from .. import GPTTokenizer

Command = TypeVar("Command", bound=Callable[..., Any])  # or the function that becomes one

# Copies of weights.table.DTYPES and arguments.MAX_THREADS, which a test compares: importing the
# originals loads NumPy and Numba, and --help should not wait for these.
DTYPES = ("auto", "f32", "bf16", "int8", "int4")
MAX_THREADS = 256

MAX_INPUT_BYTES = 64 << 20  # far beyond any context; a read of /dev/zero ends here


class Text(click.types.StringParamType):
    """A parameter type for UTF-8 text, which must not be empty unless `may_be_empty`."""

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


class NewPath(click.Path):
    """A parameter type for the name of a folder or file that a command writes anew."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.name in ("", ".."):  # "" is that of an empty argument, of "." and of "/", too
            self.fail(f"{str(value)!r} does not name a new folder or file", param, ctx)
        return path


def complete_source(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Ask the shell to complete the name of a folder or file."""
    return [CompletionItem(incomplete, type="file")]


def expand_wildcards(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """The names of files with * and ? expanded on Windows, whose shells leave that to programs.

    A name that matches no file is kept, for the error that it is missing. An empty name is a wrong
    command line.
    """
    if "" in value:
        raise click.BadParameter("the name of a file is empty", ctx, param)
    if os.name != "nt":
        return value
    names: list[str] = []
    for name in value:
        pattern = name.replace("[", "[[]")  # a bracket stands for itself there
        found = glob.glob(pattern) if "*" in name or "?" in name else []  # noqa: PTH207
        names += sorted(found) or [name]
    return tuple(names)


def files_argument(name: str, metavar: str, required: bool = False) -> Callable[[Command], Command]:
    """The argument of a command that takes any number of files; see `expand_wildcards`."""
    return click.argument(
        name,
        nargs=-1,
        required=required,
        metavar=metavar,
        callback=expand_wildcards,
        shell_complete=complete_source,
    )


model_option = click.option(
    "-m",
    "--model",
    "source",
    shell_complete=complete_source,
    default=str(BUNDLED_MODEL),
    show_default="the bundled model",
    metavar="SOURCE",
    help="A folder in Hugging Face layout, a GGUF file, or a hub id such as "
    "cerebras/Cerebras-GPT-111M.",
)
tokenizer_option = click.option(
    "--tokenizer",
    type=Text(),
    shell_complete=complete_source,
    metavar="SOURCE",
    help="Tokenizer of another folder, GGUF file or hub id, for a model without one. "
    "Default: the model's own.",
)
special_option = click.option(
    "--special",
    is_flag=True,
    help="Read special tokens such as <|endoftext|> in the text as these tokens. "
    "By default they are plain text.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    help="Data type of the weights in memory. auto: that of the files, f16 and f64 as f32. "
    "Files of int8 and int4 are dequantized for another.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Number of threads that compute. Default: one per processor.",
)
# Whether --verbose is given, also to the thread that compiles: click's context is one thread's own.
_is_verbose: ContextVar[bool] = ContextVar("is_verbose", default=False)


def _remember_verbose(_context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    _is_verbose.set(value)
    return value


verbose_option = click.option(
    "--verbose",
    is_flag=True,
    callback=_remember_verbose,
    help="Write notes and timings to stderr even if stderr is not a terminal.",
)


def chosen_tokenizer(source: str | None) -> GPTTokenizer | None:
    """The tokenizer that --tokenizer names, or None for the model's own."""
    if source is None:
        return None
    from .. import GPTTokenizer

    return GPTTokenizer.from_pretrained(source)


def prepare() -> None:
    """Make stdout UTF-8 without newline translation, and replace streams that are closed.

    Notes and errors for a closed stderr go to the null device. A result for a closed stdout would
    be lost: writing it fails. A stream that is no file, such as a notebook's, stays as it is.
    """
    if sys.stdout is None:
        descriptor = os.open(os.devnull, os.O_RDONLY)  # a write to it raises OSError
        sys.stdout = open(descriptor, "w")  # noqa: SIM115, PTH123  (open until exit)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (open until exit)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; the stream of a notebook or a test may lack `isatty`."""
    return hasattr(stream, "isatty") and bool(stream.isatty())


def read_text(argument: str | None, name: str) -> str:
    """Return the argument, or all of stdin if it is `-` or if it is absent and stdin is piped.

    argument  the command line's value, None if absent
    name      the argument's name in messages

    No newline is added, removed or translated. Raises UsageError if there is no text to read,
    InputError if stdin cannot be read, is no text or is longer than MAX_INPUT_BYTES: see texts.py.
    """
    if argument not in (None, "-"):
        return str(argument)
    check_stdin(argument, name)
    return texts.read_text(texts.STDIN, MAX_INPUT_BYTES, is_prompt=True)


def check_stdin(argument: str | None, name: str) -> None:
    """Raise UsageError if stdin is closed, or if it is a terminal and the argument is absent."""
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise click.UsageError(
            f"Missing argument '{name}': give it, or a text on standard input.",
            click.get_current_context(),
        )


def write(text: str) -> None:
    """Write part of the result to stdout and flush it.

    Raises BrokenPipeError if the reader has closed the pipe, MinigptError on any other failure.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Windows reports a closed pipe as EINVAL.
        if error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL):
            raise BrokenPipeError from None
        raise MinigptError(f"standard output: cannot be written: {error.strerror}") from None


def end_line() -> None:
    """Write a newline if stdout is a terminal; a program reads the result and nothing else."""
    if is_terminal(sys.stdout):
        write("\n")


def note(text: str, verbose: bool) -> None:
    """Write `[text]` to stderr, if stderr is a terminal or `verbose` is set."""
    if verbose or is_terminal(sys.stderr):
        _write_error_line(f"[{text}]")


def show_warning(message: str) -> None:
    """Write `Warning: message` as one line on stderr, terminal or not."""
    show_line("")  # erases a progress line
    _write_error_line(f"Warning: {message}")


@contextlib.contextmanager
def warnings_on_one_line() -> Iterator[None]:
    """Write the warnings of other packages as `show_warning` does: Numba's contain a traceback."""
    original = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_kwargs: (
        f"Warning: {next(iter(str(message).splitlines()), '')}\n"
    )
    try:
        yield
    finally:
        warnings.formatwarning = original


@contextlib.contextmanager
def compiling_noted() -> Iterator[None]:
    """Write a note before the first kernel that this command has to compile."""
    noted = False

    def write_note() -> None:
        nonlocal noted
        if noted:
            return
        noted = True
        show_line("")  # erases a progress line
        note("compiling the kernels for this processor takes some ten seconds", _is_verbose.get())

    _is_verbose.set(False)  # of a command before this one
    token = events.on_compile.set(write_note)
    try:
        yield
    finally:
        events.on_compile.reset(token)


def show_line(text: str) -> None:
    """Replace the progress line on stderr, if that is a terminal; "" erases it."""
    if is_terminal(sys.stderr):
        width = shutil.get_terminal_size().columns - 1  # a full line would wrap
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{text[:width]:<{width}}\r{text[:width]}")
            sys.stderr.flush()


def progress_line(label: str, rate: Callable[[float], str]) -> Callable[[int, int], None]:
    """Return a function of (done, total) that shows progress, speed and time left on one line.

    label  the beginning of the line
    rate   formats the units done per second: lambda r: f"{r:.0f} tokens/s"

        glinda_of_oz.txt   43 %   812 tokens/s   1:05 left
    """
    start = last_shown = perf_counter()

    def show(done: int, total: int) -> None:
        nonlocal last_shown
        now = perf_counter()
        if not done or now - last_shown < 0.1:  # nobody reads faster
            return
        last_shown = now
        speed = done / (now - start)
        left = f"{clock((total - done) / speed)} left"
        show_line(f"{label}   {100 * done // total} %   {rate(speed)}   {left}")

    return show


def clock(seconds: float) -> str:
    """Format a time as a clock shows it: 65.2 → "1:05", 3725 → "1:02:05"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def fail(message: str, code: int) -> int:
    """Print `Error: message` as one line on stderr, and return `code`."""
    show_line("")  # erases a progress line
    line = " ".join(message.split())
    _write_error_line(f"Error: {printable(line)}")
    return code


def _write_error_line(line: str) -> None:
    """Write a line to stderr; if stderr cannot be written, result and exit code remain."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def in_main_thread() -> bool:
    """Whether this is the main thread, the only one that may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def is_interactive() -> bool:
    """Whether the command runs inside a notebook or an interactive Python, which lives on."""
    return hasattr(sys, "ps1")


@contextlib.contextmanager
def signal_handlers_restored() -> Iterator[None]:
    """Put the handlers of SIGINT and SIGTERM back at the end."""
    if not in_main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: set by C code, which Python cannot set again
                signal.signal(number, handler)


def end_at_once_on_interrupt() -> None:
    """Make Ctrl-C end the process at once, with exit code 130; written output is already flushed.

    While kernels compile, KeyboardInterrupt could be raised inside a callback of the compiler,
    which swallows it; and a thread that still compiles would crash while Python shuts down.
    Has no effect where the process lives on after the command.
    """
    if is_interactive() or not in_main_thread():
        return

    def end(*_: object) -> None:
        if is_terminal(sys.stdout):  # directly: Python's buffer may be in use
            os.write(sys.stdout.fileno(), b"\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end)


def describe_bug(error: Exception) -> str:
    """Return the message for an unexpected exception: where it was raised, its type and text."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}"
    return f"{where}: {type(error).__name__}: {error}; this is a bug in minigpt, please report it"

"""`minigpt compare`: how far the predictions of two models diverge on a text."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .eval import check_stride, file_progress, stride_option, window_option
from .terminal import (
    DTYPES,
    check_stdin,
    chosen_tokenizer,
    complete_source,
    end_at_once_on_interrupt,
    show_line,
    special_option,
    threads_option,
    tokenizer_option,
    write,
)

if TYPE_CHECKING:
    from ..evaluation.perplexity import Comparison


@click.command(
    short_help="Compare the predictions of two models, or two dtypes of one, on a text.",
    epilog="Example: minigpt compare FOLDER FOLDER --dtype-b bf16 --text book.txt",
)
@click.argument("a", shell_complete=complete_source)
@click.argument("b", shell_complete=complete_source)
@click.option(
    "--text",
    "file",
    required=True,
    metavar="FILE",
    shell_complete=complete_source,
    help="A text for both models to predict, or a .jsonl, .ndjson or .json file of objects with a "
    '"text"; - for standard input.',
)
@click.option(
    "--dtype-a",
    type=click.Choice(DTYPES),
    default="auto",
    help="Data type of A's weights in memory.",
)
@click.option(
    "--dtype-b",
    type=click.Choice(DTYPES),
    default="auto",
    help="Data type of B's weights in memory.",
)
@window_option
@stride_option
@special_option
@tokenizer_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(
    a: str,
    b: str,
    file: str,
    dtype_a: str,
    dtype_b: str,
    window: int | None,
    stride: int | None,
    special: bool,
    tokenizer: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Predict every token of a text with the models A and B, and compare their predictions.

    A and B are folders, GGUF files or hub ids, and may be the same; both are in memory at once, and
    must have the same tokens. Printed are the perplexity of each, the divergence KL(A||B) of the
    predicted probabilities in nats per token, and the fraction of tokens for which both models find
    the same token the most probable.
    """
    check_stride(window, stride)
    if file == "-":
        check_stdin(file, "FILE")
    end_at_once_on_interrupt()

    from ..evaluation.run import compare_on_file

    result = compare_on_file(
        a,
        b,
        file,
        tokenizer=chosen_tokenizer(tokenizer),
        dtype_a=dtype_a,
        dtype_b=dtype_b,
        threads=threads,
        window=window,
        stride=stride,
        allow_special=special,
        progress=file_progress(),
    )
    show_line("")
    if as_json:
        write(json.dumps({"model_a": a, "model_b": b, **asdict(result)}) + "\n")
    else:
        write(_table(a, b, result) + "\n")


def _table(a: str, b: str, result: Comparison) -> str:
    """The result for a person; a row is a measure, its value, its unit, and what it is of."""
    change = f"{result.perplexity_change_percent:+.3f} % to A's"
    same_token = "of tokens have the same likeliest one"
    rows = (
        ("perplexity", f"{result.perplexity_a:.4f}", "", "A"),
        ("", f"{result.perplexity_b:.4f}", "", f"B, {change}"),
        ("KL(A||B)", f"{result.kl_mean:.3g}", "nats", "mean of the tokens"),
        ("", f"{result.kl_p99:.3g}", "nats", "99 of 100 tokens are below"),
        ("", f"{result.kl_max:.3g}", "nats", "largest"),
        ("top-1", f"{100 * result.top1_agreement:.2f}", "%", same_token),
        ("speed", f"{result.tokens_per_s:.1f}", "tokens/s", "by both together"),
    )
    lines = [f"{name:<10} {value:>10} {unit:<8}  {of}" for name, value, unit, of in rows]
    head = [
        f"A  {a}: {result.dtype_a}",
        f"B  {b}: {result.dtype_b}",
        f"{result.tokens} tokens, window {result.window}, stride {result.stride}",
    ]
    return "\n".join([*head, *lines])

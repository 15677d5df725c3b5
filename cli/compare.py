"""`minigpt compare`: how far apart two models are on a text."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .eval import (
    check_enough,
    check_stride,
    read_named,
    stride_option,
    tokens_per_s,
    window_option,
)
from .terminal import (
    DTYPES,
    complete_source,
    end_at_once_on_interrupt,
    progress_line,
    show_line,
    threads_option,
    write,
)

if TYPE_CHECKING:
    from ..evaluation.perplexity import Comparison


@click.command(
    short_help="Tell how far apart two models, or two dtypes of one, are on a text.",
    epilog="Example: minigpt compare FOLDER FOLDER --dtype-b bf16 --text book.txt",
)
@click.argument("a", shell_complete=complete_source)
@click.argument("b", shell_complete=complete_source)
@click.option(
    "--text",
    "file",
    required=True,
    metavar="FILE",
    help="A text in UTF-8 that both models predict; - for standard input.",
)
@click.option(
    "--dtype-a", type=click.Choice(DTYPES), default="auto", help="How A's weights are held."
)
@click.option(
    "--dtype-b", type=click.Choice(DTYPES), default="auto", help="How B's weights are held."
)
@window_option
@stride_option
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
    threads: int | None,
    as_json: bool,
) -> None:
    """Predicts each token of a text with the models A and B, and compares what they predict.

    A and B are folders or hub ids, and can be the same one at two dtypes; both are in memory at
    once, and must have the same tokens. Told are the perplexity of each, the divergence
    KL(A||B) of a token's probabilities, in nats, and how often both hold the same token likeliest.
    """
    check_stride(window, stride)
    name, text = read_named(file)

    from .. import GPTTokenizer

    tokenizers = [GPTTokenizer.from_pretrained(source) for source in (a, b)]

    from ..evaluation import perplexity as evaluate

    ids = evaluate.common_ids(*tokenizers, text)
    check_enough(ids, name)
    end_at_once_on_interrupt()
    show_line("loading")

    from .. import GPTModel

    models = [
        GPTModel.from_pretrained(source, dtype=dtype, threads=threads)
        for source, dtype in ((a, dtype_a), (b, dtype_b))
    ]
    progress = progress_line(name, tokens_per_s)
    result = evaluate.compare(*models, ids, window, stride, progress)
    show_line("")
    if as_json:
        write(json.dumps({"model_a": a, "model_b": b, **asdict(result)}) + "\n")
    else:
        write(_table(a, b, result) + "\n")


def _table(a: str, b: str, found: Comparison) -> str:
    """The result for a person: name, number, unit, and what it is of."""
    change = f"{found.perplexity_change_percent:+.3f} % to A's"
    likeliest = "of tokens have the same likeliest one"
    rows = (
        ("perplexity", f"{found.perplexity_a:.4f}", "", "A"),
        ("", f"{found.perplexity_b:.4f}", "", f"B, {change}"),
        ("KL(A||B)", f"{found.kl_mean:.3g}", "nats", "mean of the tokens"),
        ("", f"{found.kl_p99:.3g}", "nats", "99 of 100 tokens are below"),
        ("", f"{found.kl_max:.3g}", "nats", "largest"),
        ("top-1", f"{100 * found.top1_agreement:.2f}", "%", likeliest),
        ("speed", f"{found.tokens_per_s:.1f}", "tokens/s", "by both together"),
    )
    lines = [f"{name:<10} {number:>10} {unit:<8}  {of}" for name, number, unit, of in rows]
    head = [
        f"A  {a}: {found.dtype_a}",
        f"B  {b}: {found.dtype_b}",
        f"{found.tokens} tokens, window {found.window}, stride {found.stride}",
    ]
    return "\n".join([*head, *lines])

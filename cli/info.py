"""`minigpt info`: what a model source is, from its headers alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..bundled import BUNDLED_MODEL
from .terminal import complete_source, write

if TYPE_CHECKING:
    from ..description import SourceDescription


@click.command(
    short_help="Describe a model source.",
    epilog="Example: minigpt info cerebras/Cerebras-GPT-111M",
)
@click.argument("source", default=str(BUNDLED_MODEL), shell_complete=complete_source)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(source: str, as_json: bool) -> None:
    """Print the sizes, dtype and memory needs of SOURCE.

    SOURCE is a folder, a GGUF file or a hub id; by default the bundled model.

    Only config.json and the headers of the weight files are read, not the weights.
    """
    from ..description import describe

    description = describe(source)
    write((json.dumps(asdict(description)) if as_json else _table(description)) + "\n")


def _table(model: SourceDescription) -> str:
    """The description for a person, a line for each fact."""
    lines = {
        "source": model.source,
        "architecture": f"{model.model_type}, {model.activation_function}, "
        + ("tied head" if model.tied_head else "own head"),
        "layers": f"{model.n_layer} of width {model.n_embd}, MLP {model.n_inner}",
        "heads": f"{model.n_head} of size {model.n_embd // model.n_head}",
        "context": f"{model.n_positions} tokens",
        "vocabulary": f"{model.vocab_size} tokens",
        "parameters": f"{model.parameters:,}",
        "on disk": f"{_size(model.disk_bytes)}, {model.dtype}, {', '.join(model.files)}",
        "memory": f"{_size(model.memory_bytes)}: weights {_size(model.weights_bytes)}, "
        f"KV cache at full context {_size(model.kv_cache_bytes)}",
    }
    return "\n".join(f"{name:<13} {value}" for name, value in lines.items())


def _size(count: int) -> str:
    """1234567 → "1.2 MB"."""
    if count < 1000:
        return f"{count} bytes"
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 999.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"

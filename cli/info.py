"""`minigpt info`: what a model source is, from its headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..bundled import BUNDLED_MODEL
from .terminal import complete_source, write


@click.command(
    short_help="Describe a model source.",
    epilog="Example: minigpt info cerebras/Cerebras-GPT-111M",
)
@click.argument("source", default=str(BUNDLED_MODEL), shell_complete=complete_source)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(source: str, as_json: bool) -> None:
    """Print the sizes, dtype and memory needs of SOURCE.

    SOURCE is a folder, a GGUF file or a hub id; by default the bundled model.

    Reads config.json and the headers of the weight files, not the weights.
    """
    from ..checkpoint import resolve

    facts = _facts(resolve(source))
    write((json.dumps(facts) if as_json else _table(facts)) + "\n")


def _facts(folder: Path) -> dict[str, Any]:
    """Everything `info` tells, under the names that --json shows; sizes in bytes."""
    from ..checkpoint import open_checkpoint
    from ..config import GPTConfig
    from ..model.kv_cache import state_bytes
    from ..weights.checks import checked_names, checked_quantized, quantized_dtype
    from ..weights.table import HEAD, parameter_count, tensor_shapes, weights_bytes

    config = GPTConfig.from_source(folder)
    checkpoint = open_checkpoint(folder)
    held = quantized_dtype(checkpoint)
    if held:
        _, names, shapes = checked_quantized(checkpoint, config, held)
        dtypes, tied = [held], HEAD not in shapes
    else:
        _, names = checked_names(checkpoint, config)
        shapes = tensor_shapes(config)
        tied = config.tie_word_embeddings or HEAD not in names
        stored = {name: checkpoint.tensors[names[name]].dtype for name in shapes}
        dtypes = sorted(set(stored.values()))
        # as `--dtype auto` holds them: the vectors, few and small, always as f32
        matrices = {dtype for name, dtype in stored.items() if shapes[name][1:]}
        held = "bf16" if matrices == {"BF16"} else "f32"
    weights = weights_bytes(config, held, tied)
    cache = state_bytes(config, 1, config.n_positions, held)
    return {
        "source": str(folder),
        "model_type": config.model_type,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "n_positions": config.n_positions,
        "vocab_size": config.vocab_size,
        "activation_function": config.activation_function,
        "tied_head": tied,
        "parameters": parameter_count(config, tied),
        "dtype": "+".join(dtypes).lower(),
        "files": [path.name for path in checkpoint.files],
        "disk_bytes": sum(path.stat().st_size for path in checkpoint.files),
        "weights_bytes": weights,
        "kv_cache_bytes": cache,
        "memory_bytes": weights + cache,
    }


def _table(facts: dict[str, Any]) -> str:
    """The facts for a person, a line each."""
    lines = {
        "source": facts["source"],
        "architecture": f"{facts['model_type']}, {facts['activation_function']}, "
        + ("tied head" if facts["tied_head"] else "own head"),
        "layers": f"{facts['n_layer']} of width {facts['n_embd']}, MLP {facts['n_inner']}",
        "heads": f"{facts['n_head']} of size {facts['n_embd'] // facts['n_head']}",
        "context": f"{facts['n_positions']} tokens",
        "vocabulary": f"{facts['vocab_size']} tokens",
        "parameters": f"{facts['parameters']:,}",
        "on disk": f"{_size(facts['disk_bytes'])}, {facts['dtype']}, {', '.join(facts['files'])}",
        "memory": f"{_size(facts['memory_bytes'])}: weights {_size(facts['weights_bytes'])}, "
        f"KV cache at full context {_size(facts['kv_cache_bytes'])}",
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

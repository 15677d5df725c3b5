"""The engines that models.py compares: minigpt, transformers, OpenVINO, CTranslate2 and llama.cpp.

Each function loads a random checkpoint (random_checkpoint.py) and returns an Engine: the same
tasks, done as well as that engine can, and timed. Two engines read files of their own format, which
the functions in PREPARE write beside the checkpoint. All of this runs in processes that models.py
starts; an engine that is not installed raises ImportError there.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from random_checkpoint import N_POSITIONS, VOCAB, config_of, random_tensors, shapes_of


class Engine(NamedTuple):
    """The tasks of an engine; the last two are None where they are not measured.

    prefill(ids)        process a prompt, int64 [T], with an empty cache; returns
                        (seconds, float32 [V]: the logits after its last token)
    decode(ids, count)  process a prompt, then generate `count` tokens after a first one, greedily;
                        returns the seconds of these `count` steps
    batch(ids, count)   the same for many prompts of one length, int64 [B, T], together
    passes(ids, drafts) process a prompt, then the rows of `drafts`, int64 [count, k], one after the
                        other, each in one pass up to the logits after all its k tokens; returns
                        the seconds of these `count` passes
    """

    prefill: Callable[[np.ndarray], tuple[float, np.ndarray]]
    decode: Callable[[np.ndarray, int], float]
    batch: Callable[[np.ndarray, int], float] | None = None
    passes: Callable[[np.ndarray, np.ndarray], float] | None = None


# ---- minigpt --------------------------------------------------------------------------------


def load_minigpt(folder: Path, size: str, dtype: str, threads: int) -> Engine:
    """Load minigpt through its Python interface."""
    from minigpt import GPTModel, Scheduler

    model = GPTModel.from_pretrained(folder, dtype=dtype, threads=threads)

    def prefill(ids: np.ndarray) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        cache = model.engine.new_cache(1, len(ids))
        last = model.engine.forward(cache, [cache.allocate()], [ids])
        return time.perf_counter() - start, last[0]

    def decode(ids: np.ndarray, count: int) -> float:
        stream = model.stream(ids, max_new_tokens=count + 1, eos_token_id=None)
        next(stream)  # the prompt is read here
        start = time.perf_counter()
        for _ in stream:
            pass
        return time.perf_counter() - start

    def batch(ids: np.ndarray, count: int) -> float:
        B, T = ids.shape
        scheduler = Scheduler(model, slots=B, capacity=T + B + count)
        requests = [
            scheduler.add(prompt, max_new_tokens=B + count, eos_token_id=None) for prompt in ids
        ]
        waiting = {id(request) for request in requests}
        while waiting:  # the first prompts generate while the last are read, B tokens at most
            waiting -= {id(event.request) for event in scheduler.step()}
        start = time.perf_counter()
        for _ in range(count):
            scheduler.step()
        return time.perf_counter() - start

    def passes(ids: np.ndarray, drafts: np.ndarray) -> float:
        cache = model.engine.new_cache(1, len(ids) + drafts.size)
        slot = cache.allocate()
        model.engine.forward(cache, [slot], [ids])
        start = time.perf_counter()
        for draft in drafts:
            model.engine.forward(cache, [slot], [draft], last=None)
        return time.perf_counter() - start

    return Engine(prefill, decode, batch, passes)


# ---- transformers ---------------------------------------------------------------------------


def hush_transformers() -> None:
    """Silence transformers, and hide `kernels` from it; called before its import.

    That is a package of Hugging Face; transformers would import this folder's kernels.py.
    """
    sys.modules["kernels"] = None  # type: ignore[assignment]
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_transformers(folder: Path, size: str, dtype: str, threads: int) -> Engine:
    """Load PyTorch, with the faster of two attentions and a plain loop in place of `generate`."""
    hush_transformers()
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    torch_dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch_dtype).eval()
    # Older releases call the KV cache past_key_values.
    named_cache = "cache" in inspect.signature(GPT2LMHeadModel.forward).parameters
    cache_name = "cache" if named_cache else "past_key_values"

    def step(ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        output = model(ids[None], use_cache=True, logits_to_keep=1, **{cache_name: cache})
        return output.logits[0, -1], output[cache_name]

    @torch.inference_mode()
    def prefill(ids: np.ndarray) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        last, _ = step(torch.from_numpy(ids), None)
        return time.perf_counter() - start, last.float().numpy()

    @torch.inference_mode()
    def decode(ids: np.ndarray, count: int) -> float:
        last, cache = step(torch.from_numpy(ids), None)
        start = time.perf_counter()
        for _ in range(count):
            last, cache = step(last.argmax().view(1), cache)
        return time.perf_counter() - start

    def faster_attention(seconds: Callable[[], float]) -> str:
        """Return the attention that takes less time for a task, after a warm-up of each."""
        times = {}
        for attention in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
            times[attention] = [seconds() for _ in range(3)][1:]
        return min(times, key=lambda attention: min(times[attention]))

    ids = np.arange(256)
    for_prefill = faster_attention(lambda: prefill(ids)[0])
    for_decode = faster_attention(lambda: decode(ids[:16], 4))

    def prefill_best(ids: np.ndarray) -> tuple[float, np.ndarray]:
        model.set_attn_implementation(for_prefill)
        return prefill(ids)

    def decode_best(ids: np.ndarray, count: int) -> float:
        model.set_attn_implementation(for_decode)
        return decode(ids, count)

    @torch.inference_mode()
    def batch(ids: np.ndarray, count: int) -> float:
        model.set_attn_implementation(for_decode)

        def step(ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
            output = model(ids, use_cache=True, logits_to_keep=1, **{cache_name: cache})
            return output.logits[:, -1].argmax(-1, keepdim=True), output[cache_name]

        tokens, cache = step(torch.from_numpy(ids), None)
        start = time.perf_counter()
        for _ in range(count):
            tokens, cache = step(tokens, cache)
        return time.perf_counter() - start

    @torch.inference_mode()
    def passes(ids: np.ndarray, drafts: np.ndarray) -> float:
        model.set_attn_implementation(for_decode)
        cache = step(torch.from_numpy(ids), None)[1]
        start = time.perf_counter()
        for draft in torch.from_numpy(drafts):
            output = model(draft[None], use_cache=True, **{cache_name: cache})
            cache = output[cache_name]
        return time.perf_counter() - start

    return Engine(prefill_best, decode_best, batch, passes)


# ---- OpenVINO -------------------------------------------------------------------------------


def load_openvino(folder: Path, size: str, dtype: str, threads: int) -> Engine:
    """Load OpenVINO, with a graph for each of: the last logits, all logits, many sequences.

    The latter two are compiled when they are first used, after the peak of memory is taken.
    """
    import openvino_graph as graph

    sequence = graph.Sequence(folder, dtype, threads, last_only=True)

    @cache
    def with_all_logits() -> graph.Sequence:
        return graph.Sequence(folder, dtype, threads, last_only=False)

    @cache
    def pipeline(sequences: int) -> graph.Batch:
        target = folder / f"openvino-{dtype}"
        if not target.exists():
            hush_transformers()
            graph.save_for_genai(folder, dtype, target)
        return graph.Batch(target, dtype, threads, sequences)

    def prefill(ids: np.ndarray) -> tuple[float, np.ndarray]:
        sequence.clear()
        start = time.perf_counter()
        last = sequence.step(ids)
        return time.perf_counter() - start, last[-1].copy()

    def decode(ids: np.ndarray, count: int) -> float:
        sequence.clear()
        last = sequence.step(ids)
        start = time.perf_counter()
        for _ in range(count):
            last = sequence.step(np.array([last.argmax()]))
        return time.perf_counter() - start

    def batch(ids: np.ndarray, count: int) -> float:
        pipeline(len(ids)).start(ids, count + 1)
        start = time.perf_counter()
        pipeline(len(ids)).finish()
        return time.perf_counter() - start

    def passes(ids: np.ndarray, drafts: np.ndarray) -> float:
        with_all_logits().clear()
        with_all_logits().step(ids)
        start = time.perf_counter()
        for draft in drafts:
            with_all_logits().step(draft)
        return time.perf_counter() - start

    return Engine(prefill, decode, batch, passes)


# ---- CTranslate2 ----------------------------------------------------------------------------


def token_name(token_id: int) -> str:
    """Name a token: CTranslate2 takes tokens as strings, and knows <|endoftext|>."""
    return "<|endoftext|>" if token_id == VOCAB - 1 else f"t{token_id}"


def prepare_ctranslate2(folder: Path, size: str, dtype: str) -> None:
    """Convert the checkpoint in float32; loading converts to a narrower dtype."""
    hush_transformers()
    from ctranslate2.converters import TransformersConverter

    vocabulary = {token_name(token_id): token_id for token_id in range(VOCAB)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    if not (folder / "ctranslate2").exists():
        TransformersConverter(str(folder)).convert(str(folder / "ctranslate2"))


def load_ctranslate2(folder: Path, size: str, dtype: str, threads: int) -> Engine:
    """Load CTranslate2's generator, whose steps are timed in its callback."""
    import ctranslate2

    compute_type = {"f32": "float32", "bf16": "bfloat16", "int8": "int8"}[dtype]
    if compute_type not in ctranslate2.get_supported_compute_types("cpu"):
        raise RuntimeError(f"has no {compute_type} for this processor")
    generator = ctranslate2.Generator(
        str(folder / "ctranslate2"), compute_type=compute_type, intra_threads=threads
    )

    def generate(ids: np.ndarray, count: int, **options: Any) -> Any:
        """Process ids at once and generate at most `count` tokens."""
        prompt = [token_name(token_id) for token_id in ids]
        options |= {"max_length": count, "include_prompt_in_result": False}
        return generator.generate_batch([prompt], **options)[0]

    def prefill(ids: np.ndarray) -> tuple[float, np.ndarray]:
        # forward_batch would compute the logits of every position, this only the last one's.
        start = time.perf_counter()
        result = generate(ids, 1, return_logits_vocab=True)
        seconds = time.perf_counter() - start
        return seconds, np.array(result.logits[0][0], dtype=np.float32)

    def decode(ids: np.ndarray, count: int) -> float:
        times = []

        def note_time(_: Any) -> bool:
            times.append(time.perf_counter())
            return False  # continue

        # min_length = max_length: <|endoftext|> cannot end it
        generate(ids, count + 1, min_length=count + 1, callback=note_time)
        return times[count] - times[0]

    return Engine(prefill, decode)


# ---- llama.cpp ------------------------------------------------------------------------------

# Names in a GGUF file; the suffixes `.weight` and `.bias` stay the same.
GGUF_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return a name in GGUF: `blk.3.ffn_up.weight` for `transformer.h.3.mlp.c_fc.weight`."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("transformer.h."):
        return f"{GGUF_NAMES[stem]}.{kind}"
    layer, _, part = stem.removeprefix("transformer.h.").partition(".")
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def is_narrowed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a quantized file stores this tensor quantized: the matrices, but not wpe."""
    return len(shape) == 2 and name != "transformer.wpe.weight"


def is_conv1d(name: str) -> bool:
    """Whether GPT-2 stores a matrix as [in, out]."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def few_outputs(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor with a single output."""
    return (*shape[:-1], 1) if is_conv1d(name) else (1, *shape[1:])


def as_stored(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Return a tensor in the form of its GGUF file: matrices [out, in], blocks as bytes."""
    if is_conv1d(name):
        tensor = tensor.T
    if dtype == "f32" or not is_narrowed(name, tensor.shape):
        return np.ascontiguousarray(tensor)
    if dtype == "f16":
        return np.ascontiguousarray(tensor, np.float16)
    if dtype in ("q8_0", "q4_0"):
        from gguf import GGMLQuantizationType, quants

        kind = GGMLQuantizationType[dtype.upper()]
        return quants.quantize(np.ascontiguousarray(tensor, np.float32), kind)
    bits = np.ascontiguousarray(tensor).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to the nearest, even


def prepare_llama_cpp(folder: Path, size: str, dtype: str) -> None:
    """Write the checkpoint as GGUF, tensor by tensor, without a tokenizer: it is given ids.

    The weights are drawn again, which saves reading the checkpoint.
    """
    import gguf

    path = folder / f"{dtype}.gguf"
    if path.exists():
        return
    config: dict[str, Any] = config_of(size)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(N_POSITIONS)
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config["n_inner"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    for name, shape in shapes_of(size).items():
        kind = dtype if is_narrowed(name, shape) else "f32"
        ggml_type = gguf.GGMLQuantizationType[kind.upper()]
        few = as_stored(name, np.zeros(few_outputs(name, shape), np.float32), dtype)
        outputs = shape[-1] if is_conv1d(name) else shape[0]
        stored_shape, nbytes = (outputs, *few.shape[1:]), few.nbytes * outputs
        writer.add_tensor_info(gguf_name(name), stored_shape, few.dtype, nbytes, ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in random_tensors(size):
        writer.write_tensor_data(as_stored(name, tensor, dtype))
    writer.close()


def load_llama_cpp(folder: Path, size: str, dtype: str, threads: int) -> Engine:
    """Load llama.cpp through llama-cpp-python's C interface; the KV cache is f16, its default."""
    import llama_cpp as llama

    llama.llama_log_set(silent, None)
    model = llama.llama_model_load_from_file(
        str(folder / f"{dtype}.gguf").encode(), llama.llama_model_default_params()
    )
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = N_POSITIONS
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama.llama_init_from_model(model, parameters) if model else None
    if not context:
        raise RuntimeError(f"does not load {dtype}.gguf")
    memory = llama.llama_get_memory(context)

    def feed(ids: Iterable[int]) -> np.ndarray:
        """Return the logits after the last of ids, float32 [V], a view of llama.cpp's memory."""
        tokens = np.array(ids, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(llama.llama_token))
        if llama.llama_decode(context, llama.llama_batch_get_one(pointer, len(tokens))):
            raise RuntimeError(f"failed to read {len(tokens)} tokens")
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (VOCAB,))

    def prefill(ids: np.ndarray) -> tuple[float, np.ndarray]:
        llama.llama_memory_clear(memory, False)
        start = time.perf_counter()
        last = feed(ids)
        return time.perf_counter() - start, last.copy()

    def decode(ids: np.ndarray, count: int) -> float:
        llama.llama_memory_clear(memory, False)
        last = feed(ids)
        start = time.perf_counter()
        for _ in range(count):
            last = feed([int(last.argmax())])
        return time.perf_counter() - start

    return Engine(prefill, decode)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level: int, text: bytes, data: Any) -> None:
    """Discard llama.cpp's log. The callback must outlive the engine."""


# ---- in the engine's process ----------------------------------------------------------------

LOAD = {
    "minigpt": load_minigpt,
    "transformers": load_transformers,
    "openvino": load_openvino,
    "ctranslate2": load_ctranslate2,
    "llama.cpp": load_llama_cpp,
}
PREPARE = {
    "ctranslate2": prepare_ctranslate2,
    "llama.cpp": prepare_llama_cpp,
}
loaded: list[Engine] = []  # this process's engine


def load(engine: str, folder: Path, size: str, dtype: str, threads: int) -> None:
    """Load an engine in this process."""
    loaded.append(LOAD[engine](folder, size, dtype, threads))


def prefill(ids: np.ndarray) -> tuple[float, np.ndarray]:
    """Call prefill of this process's engine."""
    return loaded[0].prefill(ids)


def decode(ids: np.ndarray, count: int) -> float:
    """Call decode of this process's engine."""
    return loaded[0].decode(ids, count)


def does(task: str) -> bool:
    """Whether this process's engine has a task: a field of Engine."""
    return getattr(loaded[0], task) is not None


def batch(ids: np.ndarray, count: int) -> float:
    """Call batch of this process's engine, which has it."""
    return loaded[0].batch(ids, count)  # type: ignore[misc]


def passes(ids: np.ndarray, drafts: np.ndarray) -> float:
    """Call passes of this process's engine, which has it."""
    return loaded[0].passes(ids, drafts)  # type: ignore[misc]


def peak_rss() -> int | None:
    """Return the peak resident memory of this process in bytes; None on Windows."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage starts from the parent's peak
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None

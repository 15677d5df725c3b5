"""GPT-2's graph for OpenVINO, built from a checkpoint's folder by the openvino package alone.

The tensors of model.safetensors become constants. Attention is one operation,
ScaledDotProductAttention, and keys and values are state variables: OpenVINO's CPU plugin fuses
both, and OpenVINO GenAI replaces them by its paged attention.

Weights of 8 and 4 bits are integers, a Convert, and a Multiply by their scales, from which the
plugin multiplies the integers themselves. 8 bits have a scale for each output; 4 bits a scale and a
zero point for each GROUP weights of an output.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

GROUP = 128  # weights that share a scale in 4 bits
MIN_SCALE = np.float32(1e-30)
HIDDEN = np.float32(-3e38)  # added to the score of a key behind its query


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the float32 tensors of model.safetensors, memory-mapped, without `transformer.`."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    return {
        name.removeprefix("transformer."): data[slice(*entry["data_offsets"])]
        .view(np.float32)
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


# ---- weights --------------------------------------------------------------------------------


def weight(w: np.ndarray, dtype: str) -> Any:
    """Return a node of float32 for the rows of w, [N, K], held in a dtype.

    bf16 is float32 here: compile_graph asks the plugin to convert it.
    """
    if dtype == "int8":
        return int8_weight(w)
    if dtype == "int4":
        return int4_weight(w)
    return op.constant(np.ascontiguousarray(w))


def int8_weight(w: np.ndarray) -> Any:
    scale = np.maximum(np.abs(w).max(axis=1, keepdims=True) / 127, MIN_SCALE)
    q = np.rint(w / scale).astype(np.int8)
    return op.multiply(op.convert(op.constant(q), "f32"), op.constant(scale))


def int4_weight(w: np.ndarray) -> Any:
    groups = w.reshape(len(w), -1, GROUP)
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    scale = np.maximum((high - low) / 15, MIN_SCALE)
    zero = np.clip(np.rint(-low / scale), 0, 15)
    q = np.clip(np.rint(groups / scale) + zero, 0, 15)
    difference = op.subtract(int4_values(q), int4_values(zero))
    scaled = op.multiply(difference, op.constant(scale))
    return op.reshape(scaled, op.constant(np.array(w.shape)), False)


def int4_values(q: np.ndarray) -> Any:
    """Return a node of float32 for integers from 0 to 15, held in 4 bits."""
    flat = np.append(q.ravel(), [0] * (q.size % 2)).astype(np.uint8)
    packed = flat[0::2] | flat[1::2] << 4
    tensor = ov.Tensor(packed, ov.Shape(q.shape), ov.Type.u4)
    return op.convert(op.constant(tensor, shared_memory=False), "f32")


# ---- the graph ------------------------------------------------------------------------------


class Inputs:
    """The inputs of the graph, and what all layers derive from them.

    input_ids, position_ids  int64 [B, T]
    attention_mask           int64 [B, past + T]; only its shape counts
    beam_idx                 int32 [B]: the sequences that the state variables continue
    """

    def __init__(self) -> None:
        self.ids = parameter("input_ids", 2, np.int64)
        self.attention_mask = parameter("attention_mask", 2, np.int64)
        self.positions = parameter("position_ids", 2, np.int64)
        self.beam_idx = parameter("beam_idx", 1, np.int32)
        self.batch = op.gather(op.shape_of(self.ids), integers([0]), integers(0))
        self.mask = self.causal_mask()

    def causal_mask(self) -> Any:
        """Return float32 [B, 1, T, past + T], which is added to the scores."""
        zero, one = integers(0), integers(1)
        total = op.gather(op.shape_of(self.attention_mask), one, zero)
        keys = op.unsqueeze(op.range(zero, total, one, "i64"), integers([0, 1]))
        later = op.greater(keys, op.unsqueeze(self.positions, integers(2)))
        mask = op.select(later, op.constant(HIDDEN), op.constant(np.float32(0)))
        return op.unsqueeze(mask, one)

    def all(self) -> list[Any]:
        return [self.ids, self.attention_mask, self.positions, self.beam_idx]


def parameter(name: str, axes: int, dtype: type) -> Any:
    """Return an input of any shape."""
    node = op.parameter([-1] * axes, dtype, name=name)
    node.output(0).set_names({name})
    return node


def integers(value: Any) -> Any:
    """Return a constant, int64."""
    return op.constant(np.array(value, np.int64))


class Gpt2:
    """The graph of a checkpoint in a dtype: f32, bf16, int8 or int4."""

    def __init__(self, folder: Path, dtype: str) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.layers, self.heads, self.width = (
            config[name] for name in ("n_layer", "n_head", "n_embd")
        )
        self.epsilon = config["layer_norm_epsilon"]
        self.tensors = read_tensors(folder)
        self.dtype = dtype
        self.assignments: list[Any] = []  # of the state variables

    def model(self, last_only: bool) -> ov.Model:
        """Return the graph from Inputs to `logits`, float32 [B, T, V]; [B, 1, V] of the last."""
        inputs = Inputs()
        wte = weight(self.tensors["wte.weight"], self.dtype)
        wpe = op.constant(self.tensors["wpe.weight"])
        zero = integers(0)
        x = op.add(op.gather(wte, inputs.ids, zero), op.gather(wpe, inputs.positions, zero))
        for layer in range(self.layers):
            x = self.block(x, f"h.{layer}", inputs)
        x = self.layernorm(x, "ln_f")
        if last_only:
            x = op.gather(x, integers([-1]), integers(1))
        result = op.result(op.matmul(x, wte, False, True))
        result.output(0).set_names({"logits"})
        return ov.Model([result], self.assignments, inputs.all(), "gpt2")

    def block(self, x: Any, h: str, inputs: Inputs) -> Any:
        y = self.attention(self.layernorm(x, f"{h}.ln_1"), h, inputs)
        x = op.add(x, self.linear(y, f"{h}.attn.c_proj"))
        y = op.gelu(self.linear(self.layernorm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc"), "erf")
        return op.add(x, self.linear(y, f"{h}.mlp.c_proj"))

    def attention(self, x: Any, h: str, inputs: Inputs) -> Any:
        qkv = op.split(self.linear(x, f"{h}.attn.c_attn"), integers(2), 3)
        split = integers([0, 0, self.heads, self.width // self.heads])
        q, k, v = (
            op.transpose(op.reshape(part, split, True), integers([0, 2, 1, 3]))
            for part in qkv.outputs()
        )
        keys = self.append(f"{h}.keys", k, inputs)
        values = self.append(f"{h}.values", v, inputs)
        out = op.scaled_dot_product_attention(q, keys, values, inputs.mask)
        merged = op.transpose(out, integers([0, 2, 1, 3]))
        return op.reshape(merged, integers([0, 0, self.width]), True)

    def append(self, name: str, new: Any, inputs: Inputs) -> Any:
        """Append keys or values, [B, heads, T, D], to a state variable; return all of them."""
        D = self.width // self.heads
        info = ov.op.util.VariableInfo()
        info.variable_id, info.data_type = name, ov.Type.f32
        info.data_shape = ov.PartialShape([-1, self.heads, -1, D])
        variable = ov.op.util.Variable(info)
        shape = op.concat([inputs.batch, integers([self.heads, 0, D])], 0)
        past = op.read_value(op.broadcast(op.constant(np.float32(0)), shape), variable)
        total = op.concat([op.gather(past, inputs.beam_idx, integers(0)), new], 2)
        self.assignments.append(op.assign(total, variable))
        return total

    def linear(self, x: Any, name: str) -> Any:
        """Return x · w + bias; the checkpoint has w as [K, N]."""
        w = weight(self.tensors[f"{name}.weight"].T, self.dtype)
        return op.add(op.matmul(x, w, False, True), op.constant(self.tensors[f"{name}.bias"]))

    def layernorm(self, x: Any, name: str) -> Any:
        normal = op.mvn(x, integers([-1]), True, self.epsilon, "inside_sqrt")
        scaled = op.multiply(normal, op.constant(self.tensors[f"{name}.weight"]))
        return op.add(scaled, op.constant(self.tensors[f"{name}.bias"]))


# ---- running it -----------------------------------------------------------------------------


def properties(dtype: str, threads: int) -> dict[str, Any]:
    """Return the CPU plugin's settings: all but float32 compute in bfloat16."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32" if dtype == "f32" else "bf16",
    }


class Sequence:
    """A compiled graph and one sequence, which grows by each step."""

    def __init__(self, folder: Path, dtype: str, threads: int, last_only: bool) -> None:
        graph = Gpt2(folder, dtype).model(last_only)
        compiled = ov.Core().compile_model(graph, "CPU", properties(dtype, threads))
        self.request = compiled.create_infer_request()
        self.length = 0

    def clear(self) -> None:
        """Begin another sequence."""
        self.request.reset_state()
        self.length = 0

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Append ids, int64 [T]; return the logits, float32 [T or 1, V], until the next step."""
        end = self.length + len(ids)
        inputs = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.length, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.length = end
        outputs = self.request.infer(inputs, share_inputs=True, share_outputs=True)
        return outputs["logits"][0]


def save_for_genai(folder: Path, dtype: str, target: Path) -> None:
    """Write the graph as openvino-genai reads it, with a tokenizer that nothing uses."""
    from openvino_tokenizers import convert_tokenizer
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    target.mkdir(exist_ok=True)
    graph = Gpt2(folder, dtype).model(last_only=False)
    ov.save_model(graph, target / "openvino_model.xml", compress_to_fp16=False)
    bpe = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="b")
    for part, name in zip(
        convert_tokenizer(tokenizer, with_detokenizer=True), ("", "de"), strict=True
    ):
        ov.save_model(part, target / f"openvino_{name}tokenizer.xml")


class Batch:
    """OpenVINO GenAI's continuous batching, of sequences that are generated greedily."""

    def __init__(self, target: Path, dtype: str, threads: int, sequences: int) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_seqs = sequences
        scheduler.max_num_batched_tokens = 1 << 16
        scheduler.enable_prefix_caching = False
        settings = properties(dtype, threads)
        self.pipeline = genai.ContinuousBatchingPipeline(target, scheduler, "CPU", settings)
        self.generation = genai.GenerationConfig()
        self.generation.ignore_eos = True

    def start(self, prompts: np.ndarray, count: int) -> None:
        """Process prompts, int64 [B, T], to the first of `count` tokens of each."""
        self.generation.max_new_tokens = count
        self.handles = [
            self.pipeline.add_request(i, ov.Tensor(prompt[None].copy()), self.generation)
            for i, prompt in enumerate(prompts)
        ]
        self.pipeline.step()

    def finish(self) -> list[list[int]]:
        """Generate all tokens that remain; return the sequences' tokens."""
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return [handle.read_all()[0].generated_ids for handle in self.handles]

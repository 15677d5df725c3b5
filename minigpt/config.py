"""The config of a model: the fields of config.json that change its results, checked when read.

Names are Hugging Face's (`GPT2Config`, and `BTLMConfig` for the muP variants of Cerebras). A
GPTConfig from `from_dict`, `from_file` or `from_source` needs no further checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint.files import read_small_file
from .checkpoint.strict_json import parse_json_object, read_json_object
from .errors import ConfigError, short_repr

if TYPE_CHECKING:
    from .checkpoint.gguf import GGUF

# {Hugging Face's name of an activation function: its formula}; "gelu" is exact, by erf.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}

GENERATION_CONFIG = "generation_config.json"
_MAX_CONFIG_BYTES = 16_000_000
_MAX_SIZE = 2**24  # of any dimension; a product of two fits an int64 easily
_MAX_LAYERS = 10_000  # the names of each take time and memory
_MAX_SCALE = 1e6
_GPT2_END_OF_TEXT = 50256

# The muP keys and their names in older files of Cerebras.
_OLDER_NAME = {
    "mup_embeddings_scale": "embeddings_scale",
    "mup_width_scale": "width_scale",
    "mup_scale_qk_dot_by_d": "scale_qk_dot_by_d",
}


@dataclass(frozen=True)
class GPTConfig:
    """The sizes and variants of a GPT-2 architecture.

    n_layer, n_head, n_embd        L, NH and C; C is a multiple of NH
    n_inner                        H, the width of the MLP; default 4·C
    n_positions, vocab_size        the longest sequence, and V
    activation_function            Hugging Face's name, a key of ACTIVATIONS
    layer_norm_epsilon             added to the variance under the root
    scale_attn_weights             attention scores ÷ √HS (÷ HS where mup_scale_qk_dot_by_d)
    scale_attn_by_inverse_layer_idx    … and ÷ (layer index + 1)
    tie_word_embeddings            whether the head is wte
    eos_token_ids                  the tokens that end a text, () where the vocabulary has none
    start_token_id                 the token a text begins after: bos_token_id, else eos_token_id
    model_type                     "gpt2" or "btlm"
    mup_embeddings_scale           (wte + wpe) × this
    mup_output_alpha, mup_width_scale  logits × both
    """

    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int
    n_positions: int
    vocab_size: int
    activation_function: str
    layer_norm_epsilon: float
    scale_attn_weights: bool
    scale_attn_by_inverse_layer_idx: bool
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    start_token_id: int | None
    model_type: str
    mup_embeddings_scale: float = 1.0
    mup_output_alpha: float = 1.0
    mup_width_scale: float = 1.0
    mup_scale_qk_dot_by_d: bool = False

    @property
    def head_size(self) -> int:
        """HS = C ÷ NH."""
        return self.n_embd // self.n_head

    @property
    def activation(self) -> str:
        """The formula of the activation function: "gelu", "gelu_tanh", "relu" or "silu"."""
        return ACTIVATIONS[self.activation_function]

    @property
    def eos_token_id(self) -> int | None:
        """The first of eos_token_ids, which stands between documents; None where there is none."""
        return self.eos_token_ids[0] if self.eos_token_ids else None

    @classmethod
    def from_file(cls, path: Path) -> GPTConfig:
        """The config in the file `path`, a config.json.

        Raises ConfigError, which names the file and the key.
        """
        data = read_json_object(Path(path), _MAX_CONFIG_BYTES, ConfigError)
        return cls.from_dict(data, str(path))

    @classmethod
    def from_source(cls, files: Path | GGUF) -> GPTConfig:
        """The config of a folder with a config.json, of a GGUF file, or of its parsed header.

        The tokens that begin and end a text are those of a folder's generation_config.json, where
        it names any that the vocabulary has, before those of its config.json. Raises ConfigError,
        which names the file and the key, and CheckpointError for a damaged GGUF file.
        """
        if isinstance(files, Path) and not files.is_file():
            path = files / "config.json"
            data = read_json_object(path, _MAX_CONFIG_BYTES, ConfigError)
            config = cls.from_dict(data, str(path))
            tokens = _tokens_of_generation_config(files, config.vocab_size)
            return cls.from_dict({**data, **tokens}, str(path)) if tokens else config
        from .checkpoint.gguf_gpt2 import gguf_config, open_gguf  # only a GGUF file needs it

        gguf = open_gguf(files)
        return cls.from_dict(gguf_config(gguf), str(gguf.file.path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> GPTConfig:
        """The config in the parsed object of a config.json.

        where  the beginning of error messages: the path of the file

        A missing size is an error; other missing keys have Hugging Face's defaults; unknown keys
        are ignored. Raises ConfigError for a value of the wrong type, out of range, or of another
        architecture.
        """
        read = _Reader(data, where)
        model_type = read.choice("model_type", "gpt2", ("gpt2", "btlm"))
        read.choice("position_embedding_type", "learned", ("learned",))
        if read.boolean("add_cross_attention", False):
            raise ConfigError(f"{where}: add_cross_attention is true; it must be false")
        n_embd, n_head = read.size("n_embd"), read.size("n_head")
        if n_embd % n_head:
            raise ConfigError(f"{where}: n_embd {n_embd} is not a multiple of n_head {n_head}")
        vocab_size = read.size("vocab_size")
        ends = read.tokens("eos_token_id", vocab_size)
        if not ends and vocab_size > _GPT2_END_OF_TEXT:
            ends = [_GPT2_END_OF_TEXT]
        starts = read.tokens("bos_token_id", vocab_size) or ends
        return cls(
            n_layer=read.size("n_layer", maximum=_MAX_LAYERS),
            n_head=n_head,
            n_embd=n_embd,
            n_inner=4 * n_embd if read.get("n_inner") is None else read.size("n_inner"),
            n_positions=read.size("n_ctx" if read.get("n_positions") is None else "n_positions"),
            vocab_size=vocab_size,
            activation_function=_activation(read),
            layer_norm_epsilon=read.number("layer_norm_epsilon", 1e-5, below=1.0),
            scale_attn_weights=read.boolean("scale_attn_weights", True),
            scale_attn_by_inverse_layer_idx=read.boolean("scale_attn_by_inverse_layer_idx", False),
            tie_word_embeddings=read.boolean("tie_word_embeddings", True),
            eos_token_ids=tuple(ends),
            start_token_id=starts[0] if starts else None,
            model_type=model_type,
            mup_embeddings_scale=read.number("mup_embeddings_scale", 1.0, below=_MAX_SCALE),
            mup_output_alpha=read.number("mup_output_alpha", 1.0, below=_MAX_SCALE),
            mup_width_scale=read.number("mup_width_scale", 1.0, below=_MAX_SCALE),
            mup_scale_qk_dot_by_d=read.boolean("mup_scale_qk_dot_by_d", False),
        )

    def to_dict(self) -> dict[str, Any]:
        """The object of a config.json that Hugging Face's libraries read."""
        architecture = "GPT2LMHeadModel" if self.model_type == "gpt2" else "BTLMLMHeadModel"
        ends = self.eos_token_ids
        data: dict[str, Any] = {
            "architectures": [architecture],
            "model_type": self.model_type,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_embd": self.n_embd,
            "n_inner": self.n_inner,
            "n_positions": self.n_positions,
            "vocab_size": self.vocab_size,
            "activation_function": self.activation_function,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "scale_attn_weights": self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.start_token_id,
            "eos_token_id": list(ends) if len(ends) > 1 else self.eos_token_id,
        }
        if self.model_type == "btlm":
            data |= {
                "position_embedding_type": "learned",
                "mup_embeddings_scale": self.mup_embeddings_scale,
                "mup_output_alpha": self.mup_output_alpha,
                "mup_width_scale": self.mup_width_scale,
                "mup_scale_qk_dot_by_d": self.mup_scale_qk_dot_by_d,
            }
        return data


def _activation(read: _Reader) -> str:
    """A key of ACTIVATIONS; "swish", which Hugging Face accepts too, is the older name of silu."""
    name = read.choice("activation_function", "gelu_new", (*ACTIVATIONS, "swish"))
    return "silu" if name == "swish" else name


def read_generation_config(files: Path | GGUF) -> bytes | None:
    """The content of a folder's generation_config.json; None where there is none.

    Raises ConfigError for one that cannot be read.
    """
    if not isinstance(files, Path) or files.is_file():
        return None
    path = files / GENERATION_CONFIG
    if not (path.exists() or path.is_symlink()):  # a broken link is an error, when it is opened
        return None
    return read_small_file(path, _MAX_CONFIG_BYTES, ConfigError)


def _tokens_of_generation_config(folder: Path, vocab_size: int) -> dict[str, list[int]]:
    """{key: ids} of the tokens that generation_config.json names and the vocabulary has."""
    content, where = read_generation_config(folder), str(folder / GENERATION_CONFIG)
    if content is None:
        return {}
    read = _Reader(parse_json_object(content, where, ConfigError), where)
    named = {key: read.tokens(key, vocab_size) for key in ("bos_token_id", "eos_token_id")}
    return {key: ids for key, ids in named.items() if ids}


class _Reader:
    """Typed, range-checked access to the object of a config.json; `null` counts as missing."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def get(self, key: str) -> Any:
        """The value of a key or of its older name; None where it is missing."""
        value = self.data.get(key)
        return self.data.get(_OLDER_NAME.get(key, key)) if value is None else value

    def wrong(self, key: str, value: object, right: str) -> ConfigError:
        """The error for a value; `right` says what it must be."""
        is_scalar = isinstance(value, str | int | float | None)
        found = short_repr(value) if is_scalar else f"a JSON {type(value).__name__}"
        return ConfigError(f"{self.where}: {key} cannot be {found}; it must be {right}")

    def size(self, key: str, maximum: int = _MAX_SIZE) -> int:
        """An integer from 1 to `maximum`; missing is an error."""
        value = self.get(key)
        if type(value) is not int or not 1 <= value <= maximum:
            raise self.wrong(key, value, f"an integer from 1 to {maximum}")
        return value

    def number(self, key: str, default: float, below: float) -> float:
        """A number above 0 and below `below`."""
        value = self.get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 < value < below:  # false for NaN
            raise self.wrong(key, value, f"a number above 0 and below {below:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or False."""
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.wrong(key, value, "true or false")
        return value

    def tokens(self, key: str, vocab_size: int) -> list[int]:
        """The ids below `vocab_size` of a token id or a list of these, each once.

        Configs of small models often have GPT-2's 50256, which is beyond their vocabulary.
        """
        value = self.get(key)
        ids = value if type(value) is list else [value]
        if any(i is not None and type(i) is not int for i in ids):
            raise self.wrong(key, value, "a token id, a list of these, or null")
        return [i for i in dict.fromkeys(ids) if i is not None and 0 <= i < vocab_size]

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """One of `choices`."""
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not str or value not in choices:
            raise self.wrong(key, value, "one of " + ", ".join(choices))
        return value

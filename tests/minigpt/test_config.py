"""config.json: real configs, defaults of missing keys, and errors for wrong values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.config import GPTConfig
from minigpt.errors import ConfigError

# The config.json of Cerebras-GPT 111M; 256M to 6.7B have the same keys.
SHORT: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 768,
    "tie_word_embeddings": True,
    "n_positions": 2048,
    "vocab_size": 50257,
    "n_layer": 10,
    "resid_pdrop": 0.0,
    "layer_norm_epsilon": 1e-05,
    "n_head": 12,
    "scale_attn_weights": True,
    "attn_pdrop": 0.0,
    "n_inner": 3072,
    "activation_function": "gelu",
    "embd_pdrop": 0.0,
}
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16}


def config(**changes: object) -> GPTConfig:
    return GPTConfig.from_dict({**SIZES, "vocab_size": 50257, **changes}, "config.json")


def test_the_short_config_of_cerebras_gpt() -> None:
    assert GPTConfig.from_dict(SHORT, "config.json") == GPTConfig(
        n_layer=10,
        n_head=12,
        n_embd=768,
        n_inner=3072,
        n_positions=2048,
        vocab_size=50257,
        activation_function="gelu",
        layer_norm_epsilon=1e-5,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        tie_word_embeddings=True,
        eos_token_ids=(50256,),
        start_token_id=50256,
        model_type="gpt2",
    )


def test_missing_values_have_hugging_face_s_defaults() -> None:
    read = config()
    assert (read.n_inner, read.activation_function, read.layer_norm_epsilon) == (
        32,
        "gelu_new",
        1e-5,
    )
    assert (read.scale_attn_weights, read.tie_word_embeddings) == (True, True)
    assert (read.model_type, read.eos_token_id, read.head_size) == ("gpt2", 50256, 4)
    assert config(n_inner=None).n_inner == 32


def test_n_ctx_is_used_without_n_positions() -> None:
    assert config(n_positions=None, n_ctx=7).n_positions == 7
    assert config(n_positions=16, n_ctx=7).n_positions == 16


@pytest.mark.parametrize(
    ("vocab_size", "eos", "expected"),
    [
        (50257, None, (50256,)),
        (50257, 5, (5,)),
        (50257, [7, 5], (7, 5)),
        (50257, [7, 5, 7, None], (7, 5)),
        (50257, [], (50256,)),
        (50256, None, ()),
        (100, 50256, ()),  # what transformers writes for a small model
        (100, [50256, 46], (46,)),
        (100, -1, ()),
        (50258, 99999, (50256,)),
    ],
)
def test_tokens_that_end_a_text(vocab_size: int, eos: object, expected: tuple[int, ...]) -> None:
    read = config(vocab_size=vocab_size, eos_token_id=eos)
    assert read.eos_token_ids == expected
    assert read.eos_token_id == read.start_token_id == (expected[0] if expected else None)


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [(3, 5, 3), (None, 5, 5), (50256, [5, 6], 5), (0, None, 0), (None, 50256, None), ([3], 5, 3)],
)
def test_the_token_that_a_text_begins_after(bos: object, eos: object, expected: int | None) -> None:
    read = config(vocab_size=100, bos_token_id=bos, eos_token_id=eos)
    assert read.start_token_id == expected


def written(folder: Path, config_json: object, generation_config: object) -> Path:
    """A folder with these files; bytes are written as they are."""
    for name, content in (
        ("config.json", config_json),
        ("generation_config.json", generation_config),
    ):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("in_config", "in_generation_config", "expected"),
    [
        ({"eos_token_id": 9}, {"eos_token_id": [9, 46]}, (9, 46)),
        ({"eos_token_id": [9, 46]}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": 9}, {}, (9,)),
        ({"eos_token_id": 9}, {"eos_token_id": None}, (9,)),
        ({"eos_token_id": 9}, {"eos_token_id": 50256}, (9,)),  # beyond the vocabulary
        ({"eos_token_id": 50256}, {"eos_token_id": [50256, 46]}, (46,)),
        ({"eos_token_id": 9}, {"bos_token_id": 3}, (9,)),
    ],
)
def test_generation_config_goes_before_config(
    in_config: dict[str, Any],
    in_generation_config: dict[str, Any],
    expected: tuple[int, ...],
    tmp_path: Path,
) -> None:
    sizes = {**SIZES, "vocab_size": 100}
    folder = written(tmp_path, {**sizes, **in_config}, in_generation_config)
    read = GPTConfig.from_source(folder)
    assert read.eos_token_ids == expected
    assert read.start_token_id == in_generation_config.get("bos_token_id", expected[0])


def test_a_start_of_config_json_goes_before_an_end_of_generation_config(tmp_path: Path) -> None:
    data = {**SIZES, "vocab_size": 100, "bos_token_id": 2}
    read = GPTConfig.from_source(written(tmp_path, data, {"eos_token_id": 5}))
    assert (read.start_token_id, read.eos_token_id) == (2, 5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b'{"eos_token_id": 1e400}',
        b'{"eos_token_id": "9"}',
        b'{"eos_token_id": [[9]]}',
        b'{"bos_token_id": true}',
        b'{"eos_token_id": {"a": 1}}',
        b'{"eos_token_id": 1.0}',
        b"[" * 100_000,
        b'{"a": 1, "a": 2}',
        b"\xff\xfe",
        b'{"eos_token_id": [' + b"9," * 2_100_000 + b"9]}",
        b" " * 17_000_000,
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_hostile_generation_config_is_one_line(content: bytes, tmp_path: Path) -> None:
    folder = written(tmp_path, {**SIZES, "vocab_size": 100}, content)
    with pytest.raises(ConfigError) as caught:
        GPTConfig.from_source(folder)
    message = str(caught.value)
    assert message.startswith(str(folder / "generation_config.json"))
    assert "\n" not in message
    assert len(message) < len(str(folder)) + 300


def test_a_generation_config_that_is_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "vocab_size": 9}), encoding="utf-8")
    (tmp_path / "generation_config.json").mkdir()
    with pytest.raises(ConfigError, match=r"generation_config[.]json: is a folder"):
        GPTConfig.from_source(tmp_path)


def test_mup_keys_and_their_older_names() -> None:
    new = config(
        model_type="btlm",
        position_embedding_type="learned",
        mup_embeddings_scale=10,
        mup_output_alpha=2.0,
        mup_width_scale=0.25,
        mup_scale_qk_dot_by_d=True,
    )
    assert (new.mup_embeddings_scale, new.mup_output_alpha, new.mup_width_scale) == (10, 2, 0.25)
    assert new.mup_scale_qk_dot_by_d
    old = config(
        model_type="btlm",
        embeddings_scale=10,
        mup_output_alpha=2.0,
        width_scale=0.25,
        scale_qk_dot_by_d=True,
    )
    assert old == new


def test_to_dict_reads_back_as_the_same_config() -> None:
    gpt2 = config(activation_function="swish", scale_attn_by_inverse_layer_idx=True)
    assert gpt2.activation_function == "silu"
    assert GPTConfig.from_dict(gpt2.to_dict(), "x") == gpt2
    assert gpt2.to_dict()["architectures"] == ["GPT2LMHeadModel"]
    btlm = config(model_type="btlm", mup_width_scale=0.5, vocab_size=11)
    assert GPTConfig.from_dict(btlm.to_dict(), "x") == btlm
    assert replace(btlm, mup_width_scale=1.0).to_dict() != btlm.to_dict()
    several = config(eos_token_id=[7, 5], bos_token_id=3)
    assert (several.to_dict()["eos_token_id"], several.to_dict()["bos_token_id"]) == ([7, 5], 3)
    assert GPTConfig.from_dict(several.to_dict(), "x") == several


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, None) for key in (*SIZES, "vocab_size")],
        *[(key, 0) for key in (*SIZES, "vocab_size", "n_inner")],
        ("n_layer", True),
        ("n_layer", 2.0),
        ("n_layer", "2"),
        ("n_layer", -1),
        ("n_layer", 10**6),
        ("n_embd", 2**30),
        ("n_embd", 10**400),
        ("n_embd", 9),
        ("n_positions", [16]),
        ("layer_norm_epsilon", 0),
        ("layer_norm_epsilon", 1.0),
        ("layer_norm_epsilon", float("nan")),
        ("layer_norm_epsilon", True),
        ("activation_function", "swiglu"),
        ("activation_function", ["gelu"]),
        ("scale_attn_weights", 1),
        ("tie_word_embeddings", "true"),
        ("scale_attn_by_inverse_layer_idx", 0),
        ("eos_token_id", "x"),
        ("eos_token_id", True),
        ("eos_token_id", [1, "x"]),
        ("bos_token_id", "x"),
        ("model_type", "llama"),
        ("model_type", 2),
        ("position_embedding_type", "alibi"),
        ("add_cross_attention", True),
        ("mup_width_scale", 0.0),
        ("mup_output_alpha", float("inf")),
        ("mup_scale_qk_dot_by_d", 1.0),
    ],
)
def test_a_wrong_value_is_one_line_that_names_file_and_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{key: value})
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert (key if (key, value) != ("n_positions", None) else "n_ctx") in message
    assert "\n" not in message
    assert len(message) < 300


def test_an_unknown_activation_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, silu"
    ):
        config(activation_function="mish")


def test_from_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHORT), encoding="utf-8")
    assert GPTConfig.from_file(path).n_embd == 768
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config[.]json: is not valid JSON"):
        GPTConfig.from_file(path)
    with pytest.raises(ConfigError, match="no such file"):
        GPTConfig.from_file(tmp_path / "absent.json")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a.é", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=5,
)
KEYS = sorted({*SHORT, *config(model_type="btlm").to_dict(), "add_cross_attention", "n_ctx"})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), JSON_VALUES))
def test_any_values_give_a_config_or_a_config_error(changes: dict[str, Any]) -> None:
    try:
        read = config(**changes)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert GPTConfig.from_dict(read.to_dict(), "x") == read

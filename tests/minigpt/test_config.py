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
        eos_token_id=50256,
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
        (50257, None, 50256),
        (50257, 5, 5),
        (50257, [7, 5], 7),
        (50257, [], 50256),
        (50256, None, None),
        (100, 50256, None),  # what transformers writes for a small model
        (50258, 99999, 50256),
    ],
)
def test_end_of_text(vocab_size: int, eos: object, expected: int | None) -> None:
    assert config(vocab_size=vocab_size, eos_token_id=eos).eos_token_id == expected


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

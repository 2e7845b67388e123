"""Tiny random models of many families, built on first use and shared by the tests of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
import transformers

import multispec as ms

VOCABULARY = 64
WINDOW = 6
IDS = (5, 9, 3, 7, 5, 9, 3, 8, 4)

Kind = Literal["causal", "text2text", "speech"]
_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "pad_token_id": 0,
}
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
    "bos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """How to build one family, and what its target is expected to offer."""

    model: str
    config: str
    options: dict[str, Any] = field(default_factory=dict)
    kind: Kind = "causal"
    tree: bool = True
    recurrent: bool = False
    window: int | None = None
    seed: int = 0  # of weights whose greedy output is not one symbol for ever


def _causal(stem: str, **options: Any) -> Family:
    return Family(f"{stem}ForCausalLM", f"{stem}Config", options)


def _llama_like(stem: str, config: str | None = None, **options: Any) -> Family:
    return Family(f"{stem}ForCausalLM", config or f"{stem}Config", {**_LLAMA_LIKE, **options})


def _sliding(stem: str, config: str | None = None, **options: Any) -> Family:
    found = {**_LLAMA_LIKE, "sliding_window": WINDOW, **options}
    return Family(f"{stem}ForCausalLM", config or f"{stem}Config", found, window=WINDOW)


def _recurrent(stem: str, options: dict[str, Any]) -> Family:
    return Family(f"{stem}ForCausalLM", f"{stem}Config", options, tree=False, recurrent=True)


_GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_DELTA: dict[str, Any] = {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
_JAMBA: dict[str, Any] = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 4,
    "use_mamba_kernels": False,
}
_FALCON_H1: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}
_OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "init_std": 0.3,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.3,
}
_BLOOM: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": 0.3,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "initializer_factor": 3.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
_BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "init_std": 0.2,
    "decoder_start_token_id": 2,
    "bos_token_id": 2,
    "pad_token_id": 0,
}
_WHISPER: dict[str, Any] = {
    **_BART,
    "init_std": 0.3,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 64,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}

FAMILIES: dict[str, Family] = {
    "llama": _llama_like("Llama"),
    "qwen2": _llama_like("Qwen2"),
    "qwen3": _llama_like("Qwen3", head_dim=8),
    "mistral": _sliding("Mistral"),
    "gemma2": _sliding("Gemma2", **_GEMMA),
    "gemma3": _sliding("Gemma3", "Gemma3TextConfig", **_GEMMA),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "mixtral": _llama_like("Mixtral", num_local_experts=4),
    "opt": _causal("OPT", **_OPT),
    "phi": _llama_like("Phi"),
    "gpt_neox": _llama_like("GPTNeoX", num_key_value_heads=None),
    "deepseek_v3": _llama_like("DeepseekV3", **_EXPERTS, **_LATENT),
    "bloom": Family("BloomForCausalLM", "BloomConfig", _BLOOM, tree=False, seed=3),
    "falcon": Family(
        "FalconForCausalLM", "FalconConfig", {**_SMALL, "num_attention_heads": 4, "alibi": True}, tree=False
    ),
    "mamba": _recurrent("Mamba", {**_SMALL, "state_size": 4}),
    "mamba2": _recurrent("Mamba2", {**_SMALL, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "qwen3_next": _recurrent("Qwen3Next", {**_LLAMA_LIKE, **_EXPERTS, **_DELTA}),
    "jamba": _recurrent("Jamba", {**_LLAMA_LIKE, **_JAMBA}),
    "falcon_h1": _recurrent("FalconH1", {**_LLAMA_LIKE, **_FALCON_H1}),
    "lfm2": _recurrent(
        "Lfm2",
        {**_LLAMA_LIKE, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    ),
    "t5": Family("T5ForConditionalGeneration", "T5Config", _T5, "text2text", tree=False, seed=2),
    "bart": Family("BartForConditionalGeneration", "BartConfig", _BART, "text2text", tree=False),
    "whisper": Family("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER, "speech", tree=False),
}
CAUSAL = [name for name, family in FAMILIES.items() if family.kind == "causal"]
RECURRENT = [name for name, family in FAMILIES.items() if family.recurrent]
TREES = [name for name, family in FAMILIES.items() if family.tree]
CHAINS = [name for name, family in FAMILIES.items() if not family.tree]
SLIDING = [name for name, family in FAMILIES.items() if family.window]


def build(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of this family that never ends by itself; ``changes`` go into its config."""
    family = FAMILIES[name]
    # Tied random embeddings make a model repeat its last symbol for ever.
    own = {"eos_token_id": None, "forced_eos_token_id": None, "tie_word_embeddings": False}
    options = {**family.options, **own, **changes}
    options = {key: value for key, value in options.items() if key != "num_key_value_heads" or value}
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(family.seed + 100 * seed)
        model: Any = getattr(transformers, family.model)(
            getattr(transformers, family.config)(**options)
        ).eval()
    if "eos_token_id" not in changes:
        model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


@cache
def shared(name: str, seed: int = 0) -> Any:
    """The model of this family and seed, made once; never change it."""
    return build(name, seed)


@cache
def generator(name: str) -> ms.Generator:
    """A generator over ``shared(name)``."""
    return ms.load(model=shared(name))


def features(seed: int = 0) -> torch.Tensor:
    """Audio features for the tiny Whisper."""
    return torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(seed))


def prompt(name: str, ids: Sequence[int] = IDS) -> ms.Prompt:
    """``ids`` as this family takes them: to decode from, or to encode (as a seed of audio features)."""
    family = FAMILIES[name]
    if family.kind == "causal":
        return ms.Prompt(ids=torch.tensor(list(ids)))
    start = shared(name).config.decoder_start_token_id
    conditioning = {"input_ids": torch.tensor([list(ids)])}
    if family.kind == "speech":
        conditioning = {"input_features": features(sum(ids))}
    return ms.Prompt(ids=torch.tensor([start]), conditioning=conditioning)


def plain_generate(name: str, ids: Sequence[int] = IDS, max_new_tokens: int = 24) -> list[int]:
    """What transformers' own greedy generate emits, without the prompt."""
    model, given = shared(name), prompt(name, ids)
    kind = FAMILIES[name].kind
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if kind == "causal":
        return list(model.generate(given.ids[None], **settings)[0, len(given.ids) :].tolist())
    if kind == "text2text":
        return list(model.generate(given.conditioning["input_ids"], **settings)[0, 1:].tolist())
    # Whisper's own generate adds language and task symbols: ask the one it inherits.
    generate: Callable[..., Any] = transformers.GenerationMixin.generate  # pyright: ignore[reportAttributeAccessIssue]
    inputs = given.conditioning["input_features"]
    found = generate(model, inputs, decoder_input_ids=given.ids[None], **settings)
    return list(found[0, 1:].tolist())


def forward_last(name: str, ids: Sequence[int]) -> torch.Tensor:
    """Logits ``[V]`` after ``ids`` from one plain pass without a cache."""
    with torch.inference_mode():
        logits: torch.Tensor = shared(name)(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return logits

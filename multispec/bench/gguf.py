"""A Llama of transformers written as GGUF, the file that llama.cpp reads, in float32.

llama.cpp rotates neighbouring pairs of a head where transformers rotates its halves, so the rows of the query
and key projections change places. The layout and the names of the keys are those of the GGUF specification
(ggml, docs/gguf.md).
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multispec.errors import UnsupportedError

_NORMAL, _CONTROL = 1, 3


def paired(weight: Tensor, heads: int) -> Tensor:
    """The rows of a projection ``[heads * d, D]``, each head's halves interleaved.

    >>> paired(torch.arange(4.0)[:, None], 1).flatten().tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def check_fits(model: Any) -> None:
    """Refuse what this file cannot hold.

    Raises:
        UnsupportedError: another architecture than Llama, biases, or scaled rotations.
    """
    config = model.config
    llama = type(model).__name__ == "LlamaForCausalLM"
    rope = getattr(config, "rope_parameters", None) or {}
    plain = llama and rope.get("rope_type", "default") == "default" and config.hidden_act == "silu"
    if not plain or config.attention_bias or config.mlp_bias:
        raise UnsupportedError(
            "GGUF is written for LlamaForCausalLM without biases and scaled rotations: got "
            f"{type(model).__name__}. Leave llama.cpp out: --peers transformers."
        )


def write_gguf(model: Any, folder: str | Path, path: Path) -> Path:
    """Write ``model`` with the tokenizer in ``folder`` to ``path``.

    Raises:
        UnsupportedError: a model that it cannot hold, or no package ``gguf`` to write it with.
    """
    check_fits(model)
    try:
        gguf = import_module("gguf")
    except ImportError as error:
        raise UnsupportedError(f"GGUF needs the package gguf ({error}): pip install gguf") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    _write_config(writer, model.config)
    _write_tokenizer(writer, Path(folder), model.config.vocab_size)
    for name, array in _arrays(model).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_config(writer: Any, config: Any) -> None:
    writer.add_name("multispec bench")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)


def _write_tokenizer(writer: Any, folder: Path, size: int) -> None:
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = found["model"]
    if model.get("type") != "BPE":
        raise UnsupportedError(f"GGUF is written with a BPE tokenizer: got {model.get('type')!r}.")
    names = {number: token for token, number in model["vocab"].items()}
    special = {one["id"]: one["content"] for one in found.get("added_tokens", []) if one.get("special")}
    names |= special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([names.get(n, f"<unused {n}>") for n in range(size)])
    writer.add_token_types([_CONTROL if n in special else _NORMAL for n in range(size)])
    pairs = (one if isinstance(one, str) else " ".join(one) for one in model["merges"])
    writer.add_token_merges(list(pairs))
    if special:
        writer.add_bos_token_id(min(special))
        writer.add_eos_token_id(min(special))


def _arrays(model: Any) -> dict[str, NDArray[np.float32]]:
    config, inner = model.config, model.model
    tensors = {"token_embd.weight": inner.embed_tokens.weight, "output_norm.weight": inner.norm.weight}
    if model.lm_head.weight is not inner.embed_tokens.weight:
        tensors["output.weight"] = model.lm_head.weight
    for n, layer in enumerate(inner.layers):
        attention, mlp = layer.self_attn, layer.mlp
        tensors |= {
            f"blk.{n}.attn_norm.weight": layer.input_layernorm.weight,
            f"blk.{n}.attn_q.weight": paired(attention.q_proj.weight, config.num_attention_heads),
            f"blk.{n}.attn_k.weight": paired(attention.k_proj.weight, config.num_key_value_heads),
            f"blk.{n}.attn_v.weight": attention.v_proj.weight,
            f"blk.{n}.attn_output.weight": attention.o_proj.weight,
            f"blk.{n}.ffn_norm.weight": layer.post_attention_layernorm.weight,
            f"blk.{n}.ffn_gate.weight": mlp.gate_proj.weight,
            f"blk.{n}.ffn_up.weight": mlp.up_proj.weight,
            f"blk.{n}.ffn_down.weight": mlp.down_proj.weight,
        }
    with torch.inference_mode():
        return {name: one.detach().float().contiguous().numpy() for name, one in tensors.items()}

"""The Llama family's arithmetic with fewer calls: merged projections, one rotation, no wrappers.

Same weights, same formulas, same order of layers as the transformers module it reads, so the
results agree up to rounding (checked when a target is made). It exists because on small models the
time goes into Python between kernels, not into the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.cache import RaggedCache
from multispec.targets.masks import Attention, Pass

FAMILY = frozenset(f"{name}ForCausalLM" for name in ("Emu3", "Llama", "Mistral", "Qwen2", "Qwen3"))
Linear = Callable[[Tensor], Tensor]
# Smaller weights sit in the processor's cache, where a plain product is faster (measured).
_PACKED_FROM = 2**18


def merged(modules: list[Any], pack: bool) -> Linear:
    """One linear map for several with the same input; outputs side by side.

    ``pack`` reorders the weights once for oneDNN, which makes a pass over a few rows cost what one
    row costs on a CPU. The reordered weights are a copy.
    """
    weight = (
        torch.cat([module.weight.detach() for module in modules]) if len(modules) > 1 else modules[0].weight
    )
    biases = [module.bias for module in modules if module.bias is not None]
    bias = torch.cat([b.detach() for b in biases]) if biases else None
    if not pack or weight.numel() < _PACKED_FROM:
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 8)
    run: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: run(x, packed, bias, "none", [], "")


def can_pack(weight: Tensor) -> bool:
    """True where oneDNN takes reordered float32 weights."""
    usable = weight.device.type == "cpu" and weight.dtype == torch.float32
    return usable and torch.backends.mkldnn.is_available()


@dataclass(frozen=True)
class Layer:
    """One decoder layer, ready to run."""

    kind: str
    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear


class FusedForward:
    """A ``ragged.Forward`` for the Llama family.

    Passes may name up to ``positions`` positions, also where they hold fewer symbols.

    >>> FusedForward.fits(object())
    False
    """

    def __init__(self, model: Any, attention: Attention, pack: bool, positions: int = 0) -> None:
        config = model.config
        self.attention = attention
        self.layers = int(config.num_hidden_layers)
        self.like = model.model.embed_tokens.weight
        self._embedding = model.model.embed_tokens.weight
        self._eps = float(config.rms_norm_eps)
        self._norm = model.model.norm.weight
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._head = merged([model.lm_head], pack)
        self._rotary = model.model.rotary_emb
        self._cos, self._sin = torch.empty(0), torch.empty(0)
        self._positions = positions
        kinds = getattr(config, "layer_types", None) or attention.kinds * self.layers
        pairs = zip(model.model.layers, kinds, strict=False)
        self._layers = [_read(layer, kind, pack) for layer, kind in pairs]

    @staticmethod
    def fits(model: object) -> bool:
        """True for models whose arithmetic is the one written here."""
        if type(model).__name__ not in FAMILY:
            return False
        config: Any = getattr(model, "config", None)
        rope = getattr(config, "rope_parameters", None) or {}
        return bool(config.hidden_act == "silu" and rope.get("rope_type", "default") == "default")

    def _tables(self, end: int) -> None:
        if len(self._cos) >= end:
            return
        positions = torch.arange(max(end, 2 * len(self._cos)), device=self.like.device)
        cos, sin = self._rotary(self.like, positions[None])
        half = sin.shape[-1] // 2
        # Rotation is a half-turn of the vector: fold its sign into the table.
        self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers."""
        self._tables(max(cache.ledger.end, self._positions))
        at = step.table if step.table is not None else slice(step.start, step.end)
        cos, sin = self._cos[at].unsqueeze(-2), self._sin[at].unsqueeze(-2)
        hidden = F.embedding(ids, self._embedding)
        for index, layer in enumerate(self._layers):
            mask = step.masks[layer.kind]
            hidden = hidden + self._attend(layer, hidden, cos, sin, mask, cache, index)
            hidden = hidden + self._mlp(layer, hidden)
        if keep is not None:
            hidden = hidden[:, keep]
        return self._head(self._rms(hidden, self._norm))

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._eps)

    def _attend(
        self,
        layer: Layer,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: RaggedCache,
        index: int,
    ) -> Tensor:
        heads = self._heads + 2 * self._kv_heads
        qkv = layer.qkv(self._rms(hidden, layer.input_norm)).unflatten(-1, (heads, -1))
        qk, value = qkv[:, :, : heads - self._kv_heads], qkv[:, :, heads - self._kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            query, key = qk[:, :, : self._heads], qk[:, :, self._heads :]
            qk = torch.cat([self._rms(query, layer.q_norm), self._rms(key, layer.k_norm)], 2)
        qk = torch.addcmul(qk * cos, qk.roll(qk.shape[-1] // 2, -1), sin)
        query, key = (
            qk[:, :, : self._heads].transpose(1, 2),
            qk[:, :, self._heads :].transpose(1, 2),
        )
        keys, values = cache.ragged[index].update(key, value.transpose(1, 2))
        causal = mask is None and query.shape[2] > 1
        grouped = self._heads != self._kv_heads
        mixed = F.scaled_dot_product_attention(
            query, keys, values, mask, is_causal=causal, enable_gqa=grouped
        )
        return layer.out(mixed.transpose(1, 2).flatten(2))

    def _mlp(self, layer: Layer, hidden: Tensor) -> Tensor:
        gate, up = layer.gate_up(self._rms(hidden, layer.post_norm)).chunk(2, -1)
        return layer.down(F.silu(gate) * up)


def _read(layer: Any, kind: str, pack: bool) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Layer(
        kind=kind,
        input_norm=layer.input_layernorm.weight,
        qkv=merged([attention.q_proj, attention.k_proj, attention.v_proj], pack),
        q_norm=None if q_norm is None else q_norm.weight,
        k_norm=None if k_norm is None else k_norm.weight,
        out=merged([attention.o_proj], pack),
        post_norm=layer.post_attention_layernorm.weight,
        gate_up=merged([mlp.gate_proj, mlp.up_proj], pack),
        down=merged([mlp.down_proj], pack),
    )

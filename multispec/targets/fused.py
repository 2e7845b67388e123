"""The Llama family's arithmetic with fewer calls: merged projections, one rotation, no wrappers.

Same weights, same formulas, same order of layers as the transformers module it reads, so the
results agree up to rounding (checked when a target is made). It exists because on small models the
time goes into Python between kernels, not into the kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.cache import RaggedCache
from multispec.targets.masks import Attention, Pass
from multispec.targets.ragged import Forward, ModuleForward
from multispec.targets.views import Linear, MakeLinear, Sublayers, Watch

FAMILY = frozenset(f"{name}ForCausalLM" for name in ("Emu3", "Llama", "Mistral", "Qwen2", "Qwen3"))


def merged(modules: list[Any], make: MakeLinear) -> Linear:
    """One linear map for several with the same input; outputs side by side."""
    weight = (
        torch.cat([module.weight.detach() for module in modules]) if len(modules) > 1 else modules[0].weight
    )
    biases = [module.bias for module in modules if module.bias is not None]
    bias = torch.cat([b.detach() for b in biases]) if biases else None
    return make(weight, bias)


def as_it_is(weight: Tensor, bias: Tensor | None) -> Linear:
    """The product with a weight."""
    return lambda x: F.linear(x, weight, bias)


@dataclass(frozen=True)
class Layer:
    """One decoder layer, ready to run; a draft may leave out its attention or its perceptron."""

    index: int
    kind: str
    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear
    attends: bool = True
    thinks: bool = True


class _Spread(NamedTuple):
    """Where the ``real`` symbols of a pass belong: from ``[B, Q, ...]`` to ``[1, n, ...]``, and out again."""

    rows: int
    width: int
    real: Tensor

    def back(self, x: Tensor) -> Tensor:
        """Side by side, without the padding."""
        return x.flatten(0, 1).index_select(0, self.real)[None]

    def out(self, x: Tensor) -> Tensor:
        """In their places, with zeros between."""
        full = x.new_zeros((self.rows * self.width, *x.shape[2:]))
        full[self.real] = x[0]
        return full.view(self.rows, self.width, *x.shape[2:])


class FusedForward:
    """A ``ragged.Forward`` for the Llama family.

    ``make`` makes its linear maps ready, as ``targets.fast.Maker`` does. Passes may name up to ``positions``
    positions, also where they hold fewer symbols.

    >>> FusedForward.fits(object())
    False
    """

    def __init__(
        self, model: Any, attention: Attention, make: MakeLinear = as_it_is, positions: int = 0
    ) -> None:
        config = model.config
        self.model = model
        self.attention = attention
        self.layers = int(config.num_hidden_layers)
        self.like = model.model.embed_tokens.weight
        self._embedding = model.model.embed_tokens.weight
        self._eps = float(config.rms_norm_eps)
        self._norm = model.model.norm.weight
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._rotary = model.model.rotary_emb
        self._cos, self._sin = torch.empty(0), torch.empty(0)
        self._positions = positions
        self._made: dict[MakeLinear, Forward] = {}
        self._read(make)

    def _read(self, make: MakeLinear) -> None:
        kinds = getattr(self.model.config, "layer_types", None) or self.attention.kinds * self.layers
        pairs = zip(self.model.model.layers, kinds, strict=False)
        self._head = merged([self.model.lm_head], make)
        self._layers = [_read(index, layer, kind, make) for index, (layer, kind) in enumerate(pairs)]

    @staticmethod
    def fits(model: object) -> bool:
        """True for models whose arithmetic is the one written here."""
        if type(model).__name__ not in FAMILY:
            return False
        config: Any = getattr(model, "config", None)
        rope = getattr(config, "rope_parameters", None) or {}
        return bool(config.hidden_act == "silu" and rope.get("rope_type", "default") == "default")

    @property
    def sublayers(self) -> Sequence[Layer]:
        """Its layers, as far as they are run."""
        return self._layers

    def rotations(self, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[end or more, head]`` by position; the sign of a half-turn is in the sines."""
        self._tables(max(end, self._positions))
        return self._cos, self._sin

    def without(self, skipped: Sublayers) -> FusedForward:
        """The same weights with some sublayers left out; caches keep their numbers."""
        twin = copy.copy(self)
        twin._made = {}
        kept = [
            replace(one, attends=one.index not in skipped.attention, thinks=one.index not in skipped.mlp)
            for one in self._layers
        ]
        twin._layers = [one for one in kept if one.attends or one.thinks]
        return twin

    def with_linear(self, make: MakeLinear) -> Forward:
        """The same formulas with other linear maps, made of the same weights: once for every ``make``."""
        if make not in self._made:
            twin = copy.copy(self)
            twin._made = {}
            twin._read(make)
            self._made[make] = twin
        return self._made[make]

    def observing(self, watch: Watch) -> Forward:
        """The model's own modules, watched."""
        return ModuleForward(self.model, self.attention, self.layers).observing(watch)

    def reaching(self, positions: int) -> FusedForward:
        """The same, for passes that name up to ``positions`` positions."""
        twin = copy.copy(self)
        twin._positions, twin._made = positions, {}
        return twin

    def _tables(self, end: int) -> None:
        if len(self._cos) >= end:
            return
        positions = torch.arange(max(end, 2 * len(self._cos)), device=self.like.device)
        cos, sin = self._rotary(self.like, positions[None])
        half = sin.shape[-1] // 2
        # Rotation is a half-turn of the vector: fold its sign into the table.
        self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers; without the padding, where the pass says what that is."""
        if step.real is None or keep is not None:
            return self.read_out(self.through(self.embed(ids), step, cache), keep)
        spread = _Spread(len(ids), ids.shape[1], step.real)
        hidden = self._run(spread.back(self.embed(ids)), step, cache, self._layers, spread)
        return spread.out(self.read_out(hidden, None))

    def embed(self, ids: Tensor) -> Tensor:
        """What enters the first layer."""
        return F.embedding(ids, self._embedding)

    def through(
        self, hidden: Tensor, step: Pass, cache: RaggedCache, first: int = 0, end: int | None = None
    ) -> Tensor:
        """Run the layers from ``first`` to before ``end``."""
        return self._run(hidden, step, cache, self._layers[first:end], None)

    def _run(
        self, hidden: Tensor, step: Pass, cache: RaggedCache, layers: list[Layer], spread: _Spread | None
    ) -> Tensor:
        self._tables(max(cache.ledger.end, self._positions))
        at = step.table if step.table is not None else slice(step.start, step.end)
        cos, sin = self._cos[at].unsqueeze(-2), self._sin[at].unsqueeze(-2)
        if spread is not None:
            cos, sin = spread.back(cos), spread.back(sin)
        for layer in layers:
            if layer.attends:
                mask = step.masks[layer.kind]
                hidden = hidden + self._attend(layer, hidden, cos, sin, mask, cache, spread)
            if layer.thinks:
                hidden = hidden + self._mlp(layer, hidden)
        return hidden

    def read_out(self, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """The last norm and the head: logits, or only those of the columns ``keep``."""
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
        spread: _Spread | None,
    ) -> Tensor:
        heads = self._heads + 2 * self._kv_heads
        qkv = layer.qkv(self._rms(hidden, layer.input_norm)).unflatten(-1, (heads, -1))
        qk, value = qkv[:, :, : heads - self._kv_heads], qkv[:, :, heads - self._kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            query, key = qk[:, :, : self._heads], qk[:, :, self._heads :]
            qk = torch.cat([self._rms(query, layer.q_norm), self._rms(key, layer.k_norm)], 2)
        qk = torch.addcmul(qk * cos, qk.roll(qk.shape[-1] // 2, -1), sin)
        if spread is not None:
            qk, value = spread.out(qk), spread.out(value)
        query, key = (
            qk[:, :, : self._heads].transpose(1, 2),
            qk[:, :, self._heads :].transpose(1, 2),
        )
        keys, values = cache.ragged[layer.index].update(key, value.transpose(1, 2))
        causal = mask is None and query.shape[2] > 1
        grouped = self._heads != self._kv_heads
        mixed = F.scaled_dot_product_attention(
            query, keys, values, mask, is_causal=causal, enable_gqa=grouped
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        return layer.out(mixed if spread is None else spread.back(mixed))

    def _mlp(self, layer: Layer, hidden: Tensor) -> Tensor:
        gate, up = layer.gate_up(self._rms(hidden, layer.post_norm)).chunk(2, -1)
        return layer.down(F.silu(gate) * up)


def _read(index: int, layer: Any, kind: str, make: MakeLinear) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Layer(
        index=index,
        kind=kind,
        input_norm=layer.input_layernorm.weight,
        qkv=merged([attention.q_proj, attention.k_proj, attention.v_proj], make),
        q_norm=None if q_norm is None else q_norm.weight,
        k_norm=None if k_norm is None else k_norm.weight,
        out=merged([attention.o_proj], make),
        post_norm=layer.post_attention_layernorm.weight,
        gate_up=merged([mlp.gate_proj, mlp.up_proj], make),
        down=merged([mlp.down_proj], make),
    )

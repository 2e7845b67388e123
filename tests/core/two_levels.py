"""A two-level model of one attention layer per level, in float64, and its law without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.cache import RaggedCache
from multispec.stream import Prompt, Slot, StreamSpec
from multispec.targets.masks import Attention, Pass
from multispec.targets.two_level import TwoLevelTarget
from multispec.testing import FakeModel

WIDTH = 6


class Layer:
    """One attention layer with a residual, and positions added to its input."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(4, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
        self.q, self.k, self.v, self.mix = drawn * 0.7
        self.places = torch.randn(64, WIDTH, generator=generator, dtype=torch.float64)

    def __call__(self, x: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """Run behind a cache."""
        x = x + self.places[step.positions(x.device)]
        q, k, v = (torch.einsum("btc,dc->btd", x, w)[:, None] for w in (self.q, self.k, self.v))
        keys, values = cache.ragged[0].update(k, v)
        mask = next(iter(step.masks.values()))
        causal = mask is None and x.shape[1] > 1
        mixed = F.scaled_dot_product_attention(q, keys, values, mask, is_causal=causal)[:, 0]
        return torch.tanh(x + mixed @ self.mix)

    def last(self, x: Tensor) -> Tensor:
        """The last state of ``x [T, C]``, from nothing."""
        x = x + self.places[: len(x)]
        weights = torch.softmax((x[-1] @ self.q.T) @ (x @ self.k.T).T / WIDTH**0.5, -1)
        return torch.tanh(x[-1] + (weights @ (x @ self.v.T)) @ self.mix)


@dataclass(frozen=True, eq=False)
class Tiny:
    """A random two-level model: ``sizes`` symbols per slot, ``lead`` and ``lockstep`` of its depth model."""

    sizes: tuple[int, ...] = (3, 3)
    lead: int = 1
    lockstep: bool = False
    kinds: tuple[str, ...] = ("full_attention",)
    seed: int = 0
    scale: float = 2.0
    positions: int | None = None

    @cached_property
    def weights(self) -> Tensor:
        """Embeddings of prompt, frames and depth, and heads ``[4, K, V, C]``."""
        generator = torch.Generator().manual_seed(self.seed)
        size = (4, len(self.sizes), 16, WIDTH)
        return torch.randn(size, generator=generator, dtype=torch.float64)

    @cached_property
    def levels(self) -> tuple[Layer, Layer]:
        """The layers of both models."""
        return Layer(self.seed + 1), Layer(self.seed + 2)

    @property
    def spec(self) -> StreamSpec:
        """Its stream."""
        return StreamSpec(slots=tuple(Slot(size=size) for size in self.sizes))

    def target(self) -> TwoLevelTarget:
        """The target under test."""
        return TwoLevelTarget("tiny", Time(self), Depth(self), self.spec, self.positions)

    def after(self, prefix: Sequence[int], prompt_length: int) -> Tensor:
        """Logits behind a prefix, everything computed anew."""
        codes, slots = list(prefix[prompt_length:]), len(self.sizes)
        prompt, frame, depth, heads = self.weights
        frames = [codes[i : i + slots] for i in range(0, len(codes) - slots + 1, slots)]
        inputs = [prompt[0, one] for one in prefix[:prompt_length]]
        inputs += [sum(frame[k, code] for k, code in enumerate(one)) * torch.ones(()) for one in frames]
        state, own = self.levels[0].last(torch.stack(inputs)), codes[len(frames) * slots :]
        if own:
            entries = [depth[k, code] + (1 - self.lead) * state for k, code in enumerate(own)]
            state = self.levels[1].last(torch.stack([state] * self.lead + entries))
        out = torch.full((max(self.sizes),), -torch.inf, dtype=torch.float64)
        size = self.sizes[len(own)]
        out[:size] = heads[len(own), :size] @ state * self.scale
        return out

    def fake(self) -> FakeModel:
        """The same law behind a strict fake."""
        return FakeModel(self.after, self.spec, supports_tree=False)


class Time:
    """The model over frames."""

    layers = 1

    def __init__(self, tiny: Tiny) -> None:
        self._tiny = tiny
        self.attention = Attention(kinds=tiny.kinds, window=64)
        self.like = tiny.weights

    def prompt(self, prompt: Prompt) -> Tensor:
        """An embedding per id."""
        return self._tiny.weights[0, 0, prompt.ids]

    def frames(self, codes: Tensor, first: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        """The sum of an embedding per slot."""
        slots = torch.arange(codes.shape[-1])
        return self._tiny.weights[1, slots, codes].sum(2)

    def __call__(self, inputs: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """One layer."""
        return self._tiny.levels[0](inputs, step, cache)

    def head(self, states: Tensor) -> Tensor:
        """Slot 0."""
        return states @ self._tiny.weights[3, 0, : self._tiny.sizes[0]].T * self._tiny.scale


class Depth:
    """The model over the symbols of a frame."""

    layers = 1

    def __init__(self, tiny: Tiny) -> None:
        self._tiny = tiny
        self.attention = Attention(kinds=tiny.kinds, window=64)
        self.like = tiny.weights
        self.lead, self.lockstep = tiny.lead, tiny.lockstep

    def __call__(self, states: Tensor, codes: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """One layer."""
        entries = step.positions(codes.device).expand(len(codes), -1)
        if self.lockstep:
            assert len({*entries[:, 0].tolist()}) == 1
        slots = (entries - self.lead).clamp(0, len(self._tiny.sizes) - 1)
        x = self._tiny.weights[2, slots, codes]
        state = states[:, None]
        x = torch.where((entries < self.lead)[..., None], state, x) if self.lead else x + state
        return self._tiny.levels[1](x, step, cache)

    def head(self, found: Tensor, slot: int) -> Tensor:
        """The slots behind the first."""
        return found @ self._tiny.weights[3, slot, : self._tiny.sizes[slot]].T * self._tiny.scale

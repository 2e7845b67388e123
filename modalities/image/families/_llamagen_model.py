"""LlamaGen's transformer: shapes read from a checkpoint, weights under their published names.

Sun et al. (2024), arXiv 2406.06525, section 2.2: a Llama whose rotation is two-dimensional and whose
prefix (a class, or the features of a caption) is not rotated but zeroed, so that every code looks at
all of it alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from multispec.cache import RaggedCache
from multispec.errors import ModelLoadError, UsageError
from multispec.modalities.image.checkpoints import State, first_line, refuse_missing
from multispec.targets.masks import Attention, Pass

# (dim, layers) -> heads, of GPT-B, L, XL, XXL, XXXL, 1B, 3B and 7B: the shapes do not tell.
_HEADS = {
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 36): 20,
    (1536, 48): 24,
    (2560, 48): 40,
    (2048, 22): 32,
    (3200, 24): 32,
    (4096, 32): 32,
}
# Tables that older checkpoints carry along; they are computed here.
_COMPUTED = re.compile(r"^(freqs_cis|causal_mask)$|\.kv_cache\.")
# How the queries, keys and values [B, heads, S, C] of a layer become what it found there.
Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class LlamaGenConfig:
    """The shape of a LlamaGen that draws ``grid`` x ``grid`` codes.

    ``classes`` are those of a class-conditional model without the one for nothing; a text-conditional
    one has none, and takes up to ``caption_length`` features of ``caption_dim`` numbers.
    """

    model_type: ClassVar[str] = "llamagen"
    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocab_size: int
    grid: int
    classes: int = 0
    caption_dim: int = 0
    caption_length: int = 0
    norm_eps: float = 1e-5
    rope_base: float = 10000.0

    @property
    def textual(self) -> bool:
        """True for a text-conditional model."""
        return self.caption_dim > 0

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.heads

    @property
    def prefix_length(self) -> int:
        """The most symbols before the first code."""
        return self.caption_length if self.textual else 1

    @staticmethod
    def of(state: Mapping[str, Tensor], grid: int, heads: int | None = None) -> LlamaGenConfig:
        """The shape that these weights have.

        Raises:
            ModelLoadError: they are no LlamaGen's, or their heads are not known.
        """
        try:
            vocab_size, dim = state["tok_embeddings.weight"].shape
            numbers = {int(found[1]) for name in state if (found := re.match(r"layers\.(\d+)\.", name))}
            layers, rows = 1 + max(numbers), state["layers.0.attention.wqkv.weight"].shape[0]
            hidden = state["layers.0.feed_forward.w1.weight"].shape[0]
            condition = _condition(state)
        except (KeyError, ValueError) as error:
            raise ModelLoadError(
                f"These weights are no LlamaGen's: {first_line(error)} is not among them. Expected "
                "tok_embeddings, cls_embedding, layers.N, norm and output, as in c2i_B_256.pt."
            ) from error
        heads = heads or _HEADS.get((dim, layers))
        if heads is None or dim % heads or dim // heads % 4:
            raise ModelLoadError(
                f"A LlamaGen of {layers} layers and {dim} channels is none of the published ones, and its "
                f"weights do not tell its heads: got heads={heads}. Pass heads=..., with a multiple of 4 "
                "channels each."
            )
        head_dim = dim // heads
        return LlamaGenConfig(
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=(rows - dim) // (2 * head_dim),
            hidden=hidden,
            vocab_size=vocab_size,
            grid=grid,
            **condition,
        )


def _condition(state: Mapping[str, Tensor]) -> dict[str, int]:
    if "cls_embedding.embedding_table.weight" in state:
        # One more than there are classes: the last stands for nothing.
        return {"classes": state["cls_embedding.embedding_table.weight"].shape[0] - 1}
    length, channels = state["cls_embedding.uncond_embedding"].shape
    return {"caption_dim": channels, "caption_length": length}


class _Attention(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self._heads = (config.heads, config.kv_heads, config.kv_heads)
        width = sum(self._heads) * config.head_dim
        self.wqkv = nn.Linear(config.dim, width, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        states = rearrange(self.wqkv(x), "b s (h c) -> b s h c", h=sum(self._heads))
        q, k, v = states.split(self._heads, 2)
        turned = (rotate(q, rotation), rotate(k, rotation), v)
        mixed = mix(*(rearrange(one, "b s h c -> b h s c") for one in turned))
        out: Tensor = self.wo(rearrange(mixed, "b h s c -> b s (h c)"))
        return out


class _FeedForward(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class _Block(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.feed_forward = _FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rotation: Tensor, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, mix)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class _Classes(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.classes + 1, config.dim)

    def forward(self, classes: Tensor) -> Tensor:
        out: Tensor = self.embedding_table(classes)
        return out


class _Projection(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)


class _Captions(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.cap_proj = _Projection(config)
        self.uncond_embedding = nn.Buffer(torch.empty(config.caption_length, config.caption_dim))

    def forward(self, features: Tensor) -> Tensor:
        inner = F.gelu(self.cap_proj.fc1(features), approximate="tanh")
        out: Tensor = self.cap_proj.fc2(inner)
        return out


class LlamaGenModel(nn.Module):
    """The transformer; ``forward`` is a plain pass without a cache, the reference of ``LlamaGenForward``."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = _Captions(config) if config.textual else _Classes(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    @staticmethod
    def of(
        state: Mapping[str, Tensor], grid: int, heads: int | None = None, source: object = "the state dict"
    ) -> LlamaGenModel:
        """From weights under the published names, drawing ``grid`` x ``grid`` codes.

        Raises:
            UsageError: a grid without codes.
            ModelLoadError: weights are missing, are too many, or have shapes that do not fit together.
        """
        if grid < 1:
            raise UsageError(f"LlamaGen draws squares of at least one code: got a grid of {grid}.")
        own: State = {name: value for name, value in state.items() if not _COMPUTED.search(name)}
        config = LlamaGenConfig.of(own, grid, heads)
        with torch.device("meta"):
            model = LlamaGenModel(config)
        try:
            missing, unexpected = model.load_state_dict(own, strict=False, assign=True)
        except RuntimeError as error:
            raise ModelLoadError(
                f"The shapes of the weights in {str(source)!r} do not fit together: "
                f"{' '.join(str(error).split())} Read as {config}."
            ) from error
        refuse_missing(missing, source)
        if unexpected:
            raise ModelLoadError(
                f"{len(unexpected)} weights of {str(source)!r} have no place in a LlamaGen, the first is "
                f"{unexpected[0]!r}. Is this a checkpoint of another model?"
            )
        return model.requires_grad_(False).eval()

    def run(self, embedded: Tensor, rotation: Tensor, mix: Mix, keep: Tensor | None = None) -> Tensor:
        """Logits of embedded symbols, whose queries and keys are turned by ``rotation [B, S, C / 2]``."""
        hidden = embedded
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, rotation, lambda q, k, v, index=index: mix(index, q, k, v))
        logits: Tensor = self.output(self.norm(hidden if keep is None else hidden[:, keep]))
        return logits

    def rotations(self, device: torch.device) -> Tensor:
        """Complex ``[1 + grid * grid, head_dim / 2]``: zero for the prefix, then one row per code."""
        return rotations(self.config.grid, self.config.head_dim, self.config.rope_base).to(device)

    def forward(self, prefix: Tensor, codes: Sequence[int]) -> Tensor:
        """Logits ``[n + S, V]`` of one row: a prefix ``[n, C]`` of embeddings, then codes."""
        symbols = torch.tensor(codes, dtype=torch.long, device=prefix.device)
        embedded = torch.cat([prefix, self.tok_embeddings(symbols)])[None]
        cells = torch.arange(embedded.shape[1], device=prefix.device) - len(prefix) + 1

        def mix(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1]
            )

        rotation = self.rotations(prefix.device)[cells.clamp(min=0)]
        return self.run(embedded, rotation[None], mix)[0]


def rotations(grid: int, head_dim: int, base: float) -> Tensor:
    """Complex ``[1 + grid * grid, head_dim / 2]``: half of the angles count rows, half columns.

    Row 0 is zero and belongs to the prefix, whose queries and keys the published model multiplies by it.
    """
    half = head_dim // 2
    frequencies = base ** (-torch.arange(0, half, 2).float() / half)
    angles = torch.outer(torch.arange(grid).float(), frequencies)
    rows, columns = angles.repeat_interleave(grid, 0), angles.repeat(grid, 1)
    table = torch.cat([rows, columns], -1)
    turns = torch.polar(torch.ones_like(table), table)
    return torch.cat([torch.zeros_like(turns[:1]), turns])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn pairs of channels of ``x [B, S, heads, C]`` by ``rotation [B, S, C / 2]``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(rearrange(wide, "b s h (c two) -> b s h c two", two=2).contiguous())
    turned = torch.view_as_real(pairs * rotation.unsqueeze(-2))
    return rearrange(turned, "b s h c two -> b s h (c two)").to(x.dtype)


class LlamaGenForward:
    """A ``ragged.Forward`` of one batch: ``prefixes [n, C]`` are what each row of it starts from."""

    def __init__(self, model: LlamaGenModel, prefixes: Sequence[Tensor]) -> None:
        self._model, self._prefixes = model, prefixes
        self.attention = Attention(kinds=("full_attention",))
        self.layers = model.config.layers
        self.like: Tensor = model.tok_embeddings.weight
        self._lengths = torch.tensor([len(prefix) for prefix in prefixes], device=self.like.device)
        self._table = model.rotations(self.like.device)

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers."""
        embedded = self._prefixed(ids, step) if step.prefill else self._model.tok_embeddings(ids)
        rows = torch.tensor(list(step.rows), device=ids.device)
        cells = step.positions(ids.device) - self._lengths[rows][:, None] + 1
        # Padding of short rows may lie behind the last code; nobody reads it.
        rotation = self._table[cells.clamp(0, len(self._table) - 1)]
        mask = step.masks["full_attention"]

        def mix(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.ragged[index].update(k, v)
            causal = mask is None and q.shape[2] > 1
            grouped = keys.shape[1] != q.shape[1]
            return F.scaled_dot_product_attention(q, keys, values, mask, is_causal=causal, enable_gqa=grouped)

        return self._model.run(embedded, rotation, mix, keep)

    def _prefixed(self, ids: Tensor, step: Pass) -> Tensor:
        prefixes = [self._prefixes[row] for row in step.rows]
        padded = [F.pad(prefix, (0, 0, 0, ids.shape[1] - len(prefix))) for prefix in prefixes]
        return torch.stack(padded)


def square(length: int) -> int:
    """The side of a square of so many codes.

    Raises:
        ModelLoadError: it is none.
    """
    side = math.isqrt(length)
    if side * side != length:
        raise ModelLoadError(f"LlamaGen draws squares: got a stream of {length} codes. Check config.json.")
    return side

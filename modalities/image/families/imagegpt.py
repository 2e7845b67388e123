"""ImageGPT: pictures of 32 x 32 colour clusters, drawn from nothing or completed from their upper rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import ImageGPTForCausalImageModeling
from transformers.image_processing_base import ImageProcessingMixin

from multispec.cache import RaggedCache
from multispec.errors import ModelLoadError, PromptError, UnsupportedError
from multispec.guidance import Guidance
from multispec.modalities.image.checkpoints import first_line, load_pretrained
from multispec.modalities.image.codec import check_codes
from multispec.modalities.image.families._pixels import require_size
from multispec.modalities.image.families._targets import RaggedTarget, checked_target
from multispec.modalities.layout import Layout, Raster
from multispec.sampling import Sampling
from multispec.stream import Prompt, StreamSpec
from multispec.targets.causal import refuse_meta
from multispec.targets.loading import Device
from multispec.targets.masks import Attention, Pass


def fits(config: object) -> bool:
    """True for the configuration of an ImageGPT."""
    return getattr(config, "model_type", None) == "imagegpt"


def load(
    name_or_path: str | Path,
    *,
    device: Device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> ImageGPT:
    """The model of a folder or hub id.

    Raises:
        ModelLoadError: the model or its clusters cannot be read.
    """
    model, _ = load_pretrained(
        ImageGPTForCausalImageModeling,
        name_or_path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(str(name_or_path))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"The colour clusters of {str(name_or_path)!r} cannot be read: {first_line(error)} They are in "
            "preprocessor_config.json: copy it too."
        ) from error
    return ImageGPT.from_model(model, settings.get("clusters"))


class ImageGPT:
    """Chen et al. (2020), "Generative Pretraining from Pixels": one symbol is one pixel's colour cluster.

    The prompt is the model's start symbol, or that and the upper rows of a picture, which are then
    completed. There are no words and no guidance; it is drawn from its own law at temperature 1.

    >>> family = load("openai/imagegpt-small")                                 # doctest: +SKIP
    >>> family.prompt().ids.tolist()                                           # doctest: +SKIP
    [512]
    >>> rows = family.codec.encode(pixels)[:16]                                # doctest: +SKIP
    >>> Generator(family.target, Images(family)).generate({"rows": rows})      # doctest: +SKIP
    """

    def __init__(self, model: Any, codec: Clusters) -> None:
        positions = int(model.config.n_positions)
        side = math.isqrt(positions)
        if side * side != positions or side < 3:
            raise UnsupportedError(
                f"ImageGPT draws squares, one position per pixel: got n_positions = {positions}, expected a "
                "square of at least 9, such as 1024."
            )
        colours = int(model.lm_head.weight.shape[0])
        if codec.cardinality != colours:
            raise ModelLoadError(
                f"The model scores {colours} colours and the image processor has {codec.cardinality} "
                "clusters. Load the image processor that belongs to the model."
            )
        self.codec = codec
        self.model = model
        self.guidance, self.sampling = Guidance(scale=1.0), Sampling()
        self.symbols = range(colours)
        self._side, self._start = side, int(model.config.vocab_size) - 1
        self._raster = Raster(height=side, width=side, codes=colours, prompt_size=self._start + 1)
        self.target = _target(model, self._raster.spec, self._start)

    @staticmethod
    def from_model(model: Any, processor: Any) -> ImageGPT:
        """From an ``ImageGPTForCausalImageModeling`` and its image processor, or its clusters ``[V, 3]``.

        Raises:
            ModelLoadError: a model without weights, or clusters that are missing or not the model's.
            UnsupportedError: positions that are no square.
        """
        refuse_meta(model)
        clusters = getattr(processor, "clusters", processor)
        if clusters is None:
            raise ModelLoadError(
                "ImageGPT needs the clusters of its image processor to make colours of codes: got None. Load "
                "the processor from the folder of the model, whose preprocessor_config.json has them."
            )
        return ImageGPT(model.eval(), Clusters(torch.as_tensor(clusters, dtype=torch.float32)))

    def layout(self, size: tuple[int, int] | None = None, /) -> Layout:
        """A square with one symbol per pixel.

        Raises:
            UsageError: another size.
        """
        require_size(size, (self._side, self._side))
        return self._raster

    def prompt(self, caption: str = "", size: tuple[int, int] | None = None, /) -> Prompt:
        """Start from nothing.

        Raises:
            PromptError: words.
            UsageError: a size that the model cannot draw.
        """
        self.layout(size)
        if caption.strip():
            raise PromptError(
                f"ImageGPT reads no words: got the caption {caption[:40]!r}. Pass '' for a picture from "
                'nothing, or {"rows": ...} with the upper rows of a picture, as lists of codes.'
            )
        return Prompt(ids=torch.tensor([self._start]), spec=self._raster.spec)

    def completion(self, rows: Any, /) -> Prompt:
        """Start from the upper rows of a picture, given as lists of codes or as a tensor ``[H, W]``.

        Raises:
            PromptError: rows that are no upper part of a picture.
        """
        upper = self._rows(rows)
        ids = torch.cat([torch.tensor([self._start]), upper.flatten()])
        return Prompt(ids=ids, spec=self._completed(upper).spec)

    def _rows(self, given: Any) -> Int[Tensor, "H W"]:
        try:
            rows = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            rows = torch.empty(0)
        whole = rows.ndim == 2 and not rows.is_floating_point() and rows.dtype != torch.bool
        if not whole or rows.shape[1] != self._side or not 1 <= len(rows) < self._side:
            raise PromptError(
                f"A picture is completed from 1 to {self._side - 1} rows of {self._side} codes: got shape "
                f"{tuple(rows.shape)}. Pass codec.encode(pixels)[:{self._side // 2}] for its upper half."
            )
        if bool(((rows < 0) | (rows >= self.codec.cardinality)).any()):
            raise PromptError(
                f"Codes must lie in [0, {self.codec.cardinality}): got {int(rows.min())} .. "
                f"{int(rows.max())}. Make them with the codec of this family."
            )
        return rows.long().cpu()

    def _completed(self, rows: Tensor) -> Completed:
        upper = tuple(tuple(row) for row in rows.tolist())
        return Completed(upper=upper, rest=replace(self._raster, height=self._side - len(upper)))

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """There is none.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "ImageGPT was trained without captions, so there is nothing to guide it by. Leave guidance and "
            "negative out."
        )

    def layout_of(self, prompt: Prompt, /) -> Layout:
        """The square, or what is missing of it."""
        given = prompt.ids[1:]
        return self._completed(rearrange(given, "(h w) -> h w", w=self._side)) if len(given) else self._raster


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The lower rows of a picture whose ``upper`` ones are given: the stream is ``rest`` alone.

    >>> layout = Completed(upper=((3, 1),), rest=Raster(height=1, width=2, codes=4))
    >>> layout.coordinates(1), layout.grid([2, 0]).tolist()
    ((1, 1), [[3, 1], [2, 0]])
    """

    upper: tuple[tuple[int, ...], ...]
    rest: Raster

    @property
    def height(self) -> int:
        """Rows of the whole picture."""
        return len(self.upper) + self.rest.height

    @property
    def width(self) -> int:
        """Codes in a row."""
        return self.rest.width

    @property
    def length(self) -> int:
        """Symbols that are drawn."""
        return self.rest.length

    @property
    def spec(self) -> StreamSpec:
        """The stream of the lower rows."""
        return self.rest.spec

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(row, column) of a position in the whole picture."""
        found = self.rest.coordinates(position)
        return None if found is None else (found[0] + len(self.upper), found[1])

    def grid(self, tokens: Sequence[int], /, missing: int = 0) -> Int[Tensor, "H W"]:
        """The codes of the whole picture; what is not there yet is ``missing``."""
        return torch.cat([torch.tensor(self.upper), self.rest.grid(tokens, missing)])


class Clusters:
    """Colours in [-1, 1], one per code, found by k-means over the pixels of the training set."""

    def __init__(self, clusters: Float[Tensor, "V 3"]) -> None:
        self.codebook = clusters

    @property
    def cardinality(self) -> int:
        """How many colours there are."""
        return len(self.codebook)

    @property
    def stride(self) -> int:
        """One pixel per code."""
        return 1

    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """The nearest colour of every pixel."""
        colours = rearrange(pixels.float().cpu() * 2 - 1, "c h w -> h w c")
        distances = self.codebook.square().sum(-1) - 2 * colours @ self.codebook.T
        return distances.argmin(-1)

    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """The colours.

        Raises:
            UsageError: a code that has no colour.
        """
        check_codes(codes, self.cardinality)
        return ((rearrange(self.codebook[codes.cpu()], "h w c -> c h w") + 1) / 2).clamp(0, 1)


class ImageGPTForward:
    """A ``ragged.Forward`` over the modules of an ImageGPT.

    Its own forward flattens any mask to two dimensions and cuts the causal one out of a square, which
    leaves no way in for trees and ragged rows; projections, norms and embeddings are the model's.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self._body, self._head = model.transformer, model.lm_head
        self.attention = Attention(kinds=("full_attention",))
        self.layers = int(config.n_layer)
        self.like: Tensor = model.transformer.wte.weight
        self._heads, self._positions = int(config.n_head), int(config.n_positions)
        self._scaled, self._by_layer = config.scale_attn_weights, config.scale_attn_by_inverse_layer_idx
        self._upcast = bool(config.reorder_and_upcast_attn)

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers."""
        # Padding of short rows may lie behind the last position; nobody reads it.
        at = step.positions(self.like.device).clamp(max=self._positions - 1)
        hidden = self._body.wte(ids) + self._body.wpe(at)
        mask = step.masks["full_attention"]
        for index, block in enumerate(self._body.h):
            hidden = hidden + self._attend(index, block, hidden, mask, cache)
            hidden = hidden + block.mlp(block.ln_2(hidden))
        hidden = hidden if keep is None else hidden[:, keep]
        logits: Tensor = self._head(self._body.ln_f(hidden))
        return logits

    def _attend(
        self, index: int, block: Any, hidden: Tensor, mask: Tensor | None, cache: RaggedCache
    ) -> Tensor:
        qkv = block.attn.c_attn(block.ln_1(hidden))
        q, k, v = rearrange(qkv, "b s (three h c) -> three b h s c", three=3, h=self._heads)
        k, v = cache.ragged[index].update(k, v)
        if self._upcast:
            q, k, v, mask = q.float(), k.float(), v.float(), None if mask is None else mask.float()
        scale = (q.shape[-1] ** -0.5 if self._scaled else 1.0) / (index + 1 if self._by_layer else 1)
        causal = mask is None and q.shape[2] > 1
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
        out: Tensor = block.attn.c_proj(rearrange(mixed.to(hidden.dtype), "b h s c -> b s (h c)"))
        return out


def _target(model: Any, spec: StreamSpec, start: int) -> RaggedTarget:
    forward = ImageGPTForward(model)

    def plain(prompt: Prompt, symbols: Sequence[int]) -> Tensor:
        ids = torch.tensor([[*prompt.ids.tolist(), *symbols]], device=forward.like.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, -1]
        return logits

    prompts = [Prompt(ids=torch.tensor([start])), Prompt(ids=torch.tensor([start, 1, 0]))]
    return checked_target(
        "ImageGPT",
        lambda _: forward,
        spec,
        context_length=1 + int(model.config.n_positions),
        prompts=prompts,
        reference=plain,
    )

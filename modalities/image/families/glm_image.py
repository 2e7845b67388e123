"""GLM-Image: a small preview of the picture and then the picture, with positions in two dimensions.

Z.ai (2026), the autoregressive half of ``zai-org/GLM-Image``. Prompts are words in a large vocabulary, the
head scores picture codes and two marks. The prompt names two grids, and positions go on in them: M-RoPE,
Wang et al. (2024), arXiv 2409.12191, section 2.1. What draws pixels from the codes is a diffusion
transformer, which transformers does not have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GlmImageForConditionalGeneration
from transformers.cache_utils import DynamicCache

from multispec.errors import ModelLoadError, PromptError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.checkpoints import load_pretrained, load_processor
from multispec.modalities.image.codec import check_codes, check_sides
from multispec.modalities.image.families._pixels import Scale, grid_of
from multispec.modalities.image.families._targets import InnerForward, checked_target, inner_name
from multispec.modalities.image.reading import check_caption, tokenizer_of, with_room
from multispec.modalities.layout import Raster
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Allowed, Forced, Prompt, Slot, StreamSpec
from multispec.targets.causal import context_length, decoder_config, refuse_meta
from multispec.targets.masks import Pass
from multispec.targets.ragged import Forward

# Pixels per code in one direction, and codes per side of a square preview, as the processor has them.
STRIDE = 32
PREVIEW = STRIDE // 2
GRIDS = "image_grid_thw"


def fits(config: Any) -> bool:
    """True for the configuration of a GLM-Image model."""
    return getattr(config, "model_type", None) == "glm_image"


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> GlmImage:
    """The model of a folder or hub id.

    Raises:
        ModelLoadError: a part that is missing or cannot be read.
        UnsupportedError: a language model that cannot be run over ragged rows.
    """
    model, _ = load_pretrained(
        GlmImageForConditionalGeneration,
        name_or_path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    return GlmImage.from_model(model, load_processor(name_or_path, trust_remote_code))


@dataclass(frozen=True, kw_only=True)
class PreviewedRaster:
    """The codes of a ``preview``, then those of the ``picture`` and what is forced behind it.

    >>> preview, picture = Raster(height=1, width=1, codes=4), Raster(height=1, width=2, codes=4, tail=(4,))
    >>> layout = PreviewedRaster(preview=preview, picture=picture)
    >>> [layout.coordinates(position) for position in range(layout.length)]
    [None, (0, 0), (0, 1), None]
    """

    preview: Raster
    picture: Raster

    @property
    def height(self) -> int:
        """Rows of codes of the picture."""
        return self.picture.height

    @property
    def width(self) -> int:
        """Codes in a row of the picture."""
        return self.picture.width

    @property
    def length(self) -> int:
        """Symbols of preview and picture, forced ones included."""
        return self.preview.length + self.picture.length

    @property
    def spec(self) -> StreamSpec:
        """The stream of one picture; its ``row_length`` is that of the picture."""
        return replace(self.picture.spec, fixed_length=self.length, grammar=self.grammar)

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(row, column) in the picture; None in the preview and behind the last code."""
        return self.picture.coordinates(position - self.preview.length)

    def grammar(self, generated: Sequence[int], /) -> Forced | Allowed | None:
        """Codes in both grids, then what is forced."""
        place = len(generated) - self.preview.length
        return self.preview.grammar(generated) if place < 0 else self.picture.grammar(range(place))

    def grid(self, tokens: Sequence[int], /, missing: int = 0) -> Int[Tensor, "H W"]:
        """The codes of the picture; what is not there yet is ``missing``.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        return self.picture.grid(list(tokens)[self.preview.length :], missing)

    def preview_grid(self, tokens: Sequence[int], /, missing: int = 0) -> Int[Tensor, "H W"]:
        """The codes of the preview.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        return self.preview.grid(list(tokens)[: self.preview.length], missing)


def grids_of(height: int, width: int) -> Int[Tensor, "2 3"]:
    """What the processor makes of a picture of ``height x width`` codes: it, then its preview.

    >>> grids_of(36, 24).tolist()
    [[1, 36, 24], [1, 19, 13]]
    """
    ratio = height / width
    preview = (int(math.sqrt(ratio) * PREVIEW), int(math.sqrt(1 / ratio) * PREVIEW))
    return torch.tensor([[1, height, width], [1, *preview]])


def positions(length: int, grids: Int[Tensor, "G 3"]) -> Int[Tensor, "3 S"]:
    """(time, row, column) of a prompt of ``length`` words, of the grids behind it, and of the end.

    The last grid comes first. A grid starts where all that came before has ended, and takes as much
    as its longer side.

    >>> positions(2, torch.tensor([[1, 1, 2], [1, 1, 1]])).tolist()
    [[0, 1, 2, 3, 3, 5], [0, 1, 2, 3, 3, 5], [0, 1, 2, 3, 4, 5]]
    """
    parts = [repeat(torch.arange(length), "s -> three s", three=3)]
    start = length
    for _, height, width in reversed(grids.tolist()):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns])
        parts.append(rearrange(places, "three h w -> three (h w)") + start)
        start += max(height, width)
    return torch.cat([*parts, torch.full((3, 1), start)], 1)


class _Tables:
    """The positions of every row of a session: a function of its prompts, so nothing is rolled back."""

    def __init__(self, prompts: Sequence[Prompt], device: torch.device) -> None:
        rows = [positions(len(prompt.ids), _grids(prompt)) for prompt in prompts]
        width = max(row.shape[1] for row in rows)
        padded = [F.pad(row.float(), (0, width - row.shape[1]), mode="replicate").long() for row in rows]
        self._table = torch.stack(padded).to(device)

    def __call__(self, step: Pass) -> Int[Tensor, "3 B Q"]:
        table = self._table[list(step.rows)]
        # Padding of short rows may point behind the end; nobody reads what it computes.
        flat = step.positions(table.device).clamp(max=table.shape[-1] - 1)
        return rearrange(table.gather(2, repeat(flat, "b q -> b three q", three=3)), "b three q -> three b q")


def _grids(prompt: Prompt) -> Tensor:
    grids = prompt.conditioning.get(GRIDS)
    if grids is None or grids.ndim != 2 or grids.shape[1] != 3 or not len(grids):
        raise PromptError(
            f"GLM-Image places its symbols by the grids of the picture: got a prompt with "
            f"{sorted(prompt.conditioning) or 'nothing'} beside its ids. Make it with GlmImage.prompt(), or "
            f"give it conditioning={{{GRIDS!r}: grids}} with grids [G, 3], as the processor does."
        )
    return grids


@dataclass(frozen=True)
class GlmImageCodec:
    """The picture tokenizer of a model, which encodes only."""

    model: Any
    scale: Scale = Scale()

    @property
    def codebook(self) -> Float[Tensor, "V C"]:
        """The direction of each code."""
        return F.normalize(self.model.model.vqmodel.quantize.embedding.weight.detach(), dim=-1)

    @property
    def cardinality(self) -> int:
        """Entries of the codebook."""
        return int(self.model.config.vq_config.num_embeddings)

    @property
    def stride(self) -> int:
        """Pixels in one direction per code: two patches, since a picture is seen at half its size."""
        return 2 * int(self.model.config.vision_config.patch_size)

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """The codes of a picture, seen at half its size as the processor does.

        Raises:
            UsageError: a picture whose sides are no multiples of 2 patches.
        """
        patch = self.stride // 2
        height, width = check_sides(pixels, self.stride)
        size = (height * patch, width * patch)
        half = F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
        values = self.scale.into(half).to(self.codebook)
        patches = rearrange(values, "c (h p) (w q) -> (h w) (c p q)", p=patch, q=patch)
        grid = torch.tensor([[1, height, width]], device=values.device)
        seen = self.model.get_image_features(patches, grid).pooler_output
        codes: Tensor = self.model.get_image_tokens(seen)
        return rearrange(codes.cpu(), "(h w) -> h w", h=height)

    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """Nothing: the checkpoint has no decoder.

        Raises:
            UsageError: a code outside the codebook.
            UnsupportedError: always; says where to get pixels.
        """
        check_codes(codes, self.cardinality)
        raise UnsupportedError(
            "GLM-Image cannot draw pixels here: its GlmImageVQVAE encodes only, and what draws from codes "
            "is the diffusion transformer of diffusers' GlmImagePipeline. Give it the codes: prompt=caption, "
            "height=..., width=..., prior_token_ids=codec.prior_token_ids(layout.grid(tokens))."
        )

    def prior_token_ids(self, codes: Int[Tensor, "H W"]) -> Int[Tensor, "1 S"]:
        """The codes as diffusers' ``GlmImagePipeline`` takes them: each twice in both directions."""
        return repeat(codes, "h w -> 1 (h two w also)", two=2, also=2)


@dataclass(frozen=True, kw_only=True)
class GlmImage:
    """A GLM-Image model as a family of picture models.

    It was not trained with guidance; where somebody asks for it, the other branch has a negative caption,
    or none. It is drawn at temperature 0.9 from 0.75 of the mass, as its model card says.

    >>> family = GlmImage.from_model(model, processor)                         # doctest: +SKIP
    >>> family.layout((1152, 768)).length                                      # doctest: +SKIP
    1112
    """

    target: Target
    model: Any
    codec: GlmImageCodec
    processor: Any
    guidance: Guidance = Guidance(scale=1.0)
    sampling: Sampling = Sampling(temperature=0.9, top_p=0.75)

    @staticmethod
    def from_model(model: Any, processor: Any) -> GlmImage:
        """Around a ``GlmImageForConditionalGeneration`` and its ``GlmImageProcessor``.

        Raises:
            ModelLoadError: a tokenizer in place of the processor, or a model without weights.
            UnsupportedError: a language model that cannot be run over ragged rows.
        """
        if not isinstance(getattr(processor, "target_h", None), int):
            raise ModelLoadError(
                f"GLM-Image needs its GlmImageProcessor, which writes grids into prompts: got "
                f"{type(processor).__name__}. Load it with AutoProcessor."
            )
        return GlmImage(
            target=_target(model.eval()),
            model=model,
            codec=GlmImageCodec(model, Scale.of(processor)),
            processor=processor,
        )

    @property
    def symbols(self) -> range:
        """The codes themselves: the head scores nothing before them."""
        return range(self.codec.cardinality)

    def layout(self, size: tuple[int, int] | None = None, /) -> PreviewedRaster:
        """Any grid whose preview has a code in each direction; the processor's own size without one.

        Raises:
            UsageError: a size that is no multiple of 32 pixels, or too long for its width.
        """
        height, width = size or (self.processor.target_h, self.processor.target_w)
        grids = grids_of(*grid_of((height, width), STRIDE))
        if not int(grids.min()):
            raise UsageError(
                f"This model cannot draw {height} x {width} pixels: the preview would have no code in one "
                f"direction. One side may be up to {PREVIEW**2} times as long as the other."
            )
        return _layout(self.model, grids)

    def layout_of(self, prompt: Prompt, /) -> PreviewedRaster:
        """The layout that a prompt was made for.

        Raises:
            PromptError: a prompt without grids.
        """
        return _layout(self.model, _grids(prompt))

    def prompt(self, caption: str, size: tuple[int, int] | None = None, /) -> Prompt:
        """The caption in the checkpoint's chat template, both grids in words, begin-of-image.

        Raises:
            PromptError: a caption that the tokenizer cannot read, or that leaves no room for the picture.
            UsageError: a size that the model cannot draw.
        """
        check_caption(tokenizer_of(self.processor), caption)
        return self._prompt(caption, self.layout(size))

    def _prompt(self, caption: str, layout: PreviewedRaster) -> Prompt:
        size = {"target_h": layout.height * STRIDE, "target_w": layout.width * STRIDE}
        if getattr(self.processor, "chat_template", None):
            messages = [[{"role": "user", "content": [{"type": "text", "text": caption}]}]]
            more = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
            given = self.processor.apply_chat_template(messages, **more, **size)
        else:
            given = self.processor(text=[caption], return_tensors="pt", **size)
        prompt = Prompt(ids=given["input_ids"][0], conditioning={GRIDS: given[GRIDS]}, spec=layout.spec)
        return with_room(prompt, layout.length, self.target)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The same grids behind a negative caption, or behind none.

        Raises:
            PromptError: a negative caption that the tokenizer cannot read or that leaves no room, or a
                prompt without grids.
        """
        if negative is not None:
            check_caption(tokenizer_of(self.processor), negative)
        return self._prompt(negative or "", self.layout_of(prompt))


def _layout(model: Any, grids: Tensor) -> PreviewedRaster:
    config = decoder_config(model)
    codes = int(model.config.vq_config.num_embeddings)
    sizes: dict[str, Any] = {
        "codes": codes,
        "vocab_size": int(config.vision_vocab_size),
        "prompt_size": int(config.vocab_size),
    }
    (_, height, width), (_, low, narrow) = grids.tolist()
    return PreviewedRaster(
        preview=Raster(height=low, width=narrow, **sizes),
        picture=Raster(height=height, width=width, tail=(model.config.image_end_token_id,), **sizes),
    )


def _target(model: Any) -> Target:
    refuse_meta(model)
    config = decoder_config(model)

    def bind(prompts: Sequence[Prompt]) -> Forward:
        embed = model.get_input_embeddings()
        tables = _Tables(prompts, embed.weight.device)
        return InnerForward(model, lambda ids, step: embed(ids), model.lm_head, tables)

    spec = StreamSpec(
        slots=(Slot(size=int(config.vision_vocab_size)),),
        end_ids=(model.config.image_end_token_id,),
        prompt_size=int(config.vocab_size),
    )
    trial = {GRIDS: torch.tensor([[1, 3, 2], [1, 1, 2]])}
    words = range(int(config.vocab_size) - 1, 0, -1)
    prompts = [Prompt(ids=torch.tensor(words[:n]), conditioning=trial) for n in (4, 2)]
    return checked_target(
        inner_name(model),
        bind,
        spec,
        context_length=context_length(model),
        prompts=prompts,
        reference=lambda prompt, codes: _own_logits(model, prompt, codes),
    )


def _own_logits(model: Any, prompt: Prompt, codes: Sequence[int]) -> Tensor:
    """Step by step through the model's own forward, whose notes on the module are put back."""
    inner = model.model
    kept = inner.rope_deltas, inner._cached_decode_position_ids, inner._prefill_len
    more = {"past_key_values": DynamicCache(config=decoder_config(model)), "use_cache": True}
    grids = prompt.conditioning[GRIDS].to(model.device)
    try:
        out = model(input_ids=prompt.ids[None].to(model.device), image_grid_thw=grids, **more)
        for code in codes:
            out = model(input_ids=torch.tensor([[code]], device=model.device), image_grid_thw=grids, **more)
    finally:
        inner.rope_deltas, inner._cached_decode_position_ids, inner._prefill_len = kept
    logits: Tensor = out.logits[0, -1]
    return logits

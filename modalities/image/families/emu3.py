"""Emu3: words and picture codes in one vocabulary, with a grammar of row ends and frame ends.

Wang et al. (2024), arXiv 2409.18869, section 2.2. A prompt is bos, the caption, begin-of-image, the grid in
words ("90*90") and the sign that codes follow; then ``height`` rows of ``width`` codes with a row end each,
end-of-frame, end-of-image and eos. Guidance mixes log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Emu3ForCausalLM, Emu3ForConditionalGeneration

from multispec.errors import ModelLoadError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.checkpoints import load_pretrained, load_processor
from multispec.modalities.image.codec import check_codes, check_sides
from multispec.modalities.image.families._pixels import Scale, grid_of
from multispec.modalities.image.reading import check_caption, token_id, tokenizer_of, with_room
from multispec.modalities.layout import Layout, Raster
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Allowed, Forced, Prompt, Slot, StreamSpec
from multispec.targets import CausalTarget

# What the released model was shown with.
SCALE, TOP_K = 3.0, 2048
AREA = 720 * 720


def fits(config: Any) -> bool:
    """True for the configuration of an Emu3 model with a picture tokenizer."""
    return getattr(config, "model_type", None) == "emu3"


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Emu3:
    """The model of a folder or hub id.

    Raises:
        ModelLoadError: a part that is missing or cannot be read.
    """
    model, _ = load_pretrained(
        Emu3ForConditionalGeneration,
        name_or_path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    return Emu3.from_model(model, load_processor(name_or_path, trust_remote_code), owned=True)


@dataclass(frozen=True)
class VisualIds:
    """Which id of the language model is which code of the picture tokenizer.

    ``ids`` are in ascending order, and ``codes[n]`` is the code of ``ids[n]``. Outside, the codes of a
    picture are the numbers n; in the released model both are the same up to an offset.

    >>> visual = VisualIds.named({"<|visual token 000001|>": 7, "<|visual token 000000|>": 9, "word": 8})
    >>> visual.ids, visual.codes.tolist(), visual.contiguous
    ((7, 9), [1, 0], False)
    """

    ids: tuple[int, ...]
    codes: Int[Tensor, " V"]

    @staticmethod
    def named(vocabulary: Mapping[str, int]) -> VisualIds:
        """From the names of the visual symbols, which hold their codes.

        Raises:
            ModelLoadError: no visual symbols, or codes that are missing.
        """
        first, last = "<|visual token ", "|>"
        named = {
            one: int(name.removeprefix(first).removesuffix(last))
            for name, one in vocabulary.items()
            if name.startswith(first)
        }
        if not named or sorted(named.values()) != list(range(len(named))):
            raise ModelLoadError(
                f"The vocabulary_map of Emu3 must name '<|visual token 000000|>' and so on without gaps: got "
                f"{len(named)} of them. Copy the complete config.json."
            )
        ids = tuple(sorted(named))
        return VisualIds(ids, torch.tensor([named[one] for one in ids]))

    @property
    def contiguous(self) -> bool:
        """True where the ids are one segment of the vocabulary."""
        return self.ids[-1] - self.ids[0] + 1 == len(self.ids)


@dataclass(frozen=True)
class ScatteredRaster:
    """A raster over the codes 0 .. n - 1 whose symbols are ``ids``, anywhere in a vocabulary of ``size``.

    ``places`` says what each position is, and which symbols are forced.

    >>> layout = ScatteredRaster(Raster(height=1, width=2, codes=2, tail=(5,)), (3, 8), 10)
    >>> layout.grid([8, 3, 5]).tolist()
    [[1, 0]]
    """

    places: Raster
    ids: tuple[int, ...]
    size: int

    @property
    def height(self) -> int:
        """Rows of codes."""
        return self.places.height

    @property
    def width(self) -> int:
        """Codes in a row."""
        return self.places.width

    @property
    def length(self) -> int:
        """Symbols of a whole picture, forced ones included."""
        return self.places.length

    @property
    def spec(self) -> StreamSpec:
        """The stream of one picture."""
        return replace(self.places.spec, slots=(Slot(size=self.size),), grammar=self.grammar)

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(row, column) of a position; None where the grammar forces a symbol or the picture is over."""
        return self.places.coordinates(position)

    def grammar(self, generated: Sequence[int], /) -> Forced | Allowed | None:
        """A forced symbol, or the ids of the codes."""
        left = self.places.grammar(generated)
        return Allowed(self.ids) if isinstance(left, Allowed) else left

    def grid(self, tokens: Sequence[int], /, missing: int = 0) -> Int[Tensor, "H W"]:
        """The codes ``0 .. n - 1`` of a picture; what is not there yet is ``missing``.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        code = {one: n for n, one in enumerate(self.ids)}
        flat = list(tokens)[: self.length]
        for position, token in enumerate(flat):
            if self.coordinates(position) is not None:
                if token not in code:
                    raise UsageError(
                        f"The symbol {token} at position {position} is no code of this model, which has "
                        f"{len(code)} ids from {self.ids[0]} to {self.ids[-1]}. Is this the layout that the "
                        "tokens were made with?"
                    )
                flat[position] = code[token]
        return self.places.grid(flat, missing)


@dataclass(frozen=True)
class Emu3Codec:
    """The ``Emu3VQVAE`` of a model, over the numbers of its visual ids."""

    vq: Any
    visual: VisualIds
    scale: Scale = Scale()

    @property
    def stride(self) -> int:
        """Pixels in one direction per code."""
        return int(self.vq.spatial_scale_factor)

    @property
    def codebook(self) -> Float[Tensor, "V C"]:
        """The vector of each code."""
        weight: Tensor = self.vq.quantize.embedding.weight.detach()
        return weight[self.visual.codes.to(weight.device)]

    @property
    def cardinality(self) -> int:
        """Entries of the codebook."""
        return len(self.visual.ids)

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """The nearest code at every place.

        Raises:
            UsageError: a picture whose sides are no multiples of the stride.
        """
        check_sides(pixels, self.stride)
        values = self.scale.into(pixels.to(self.codebook))
        sizes = torch.tensor([pixels.shape[1:]])
        (codes,) = self.vq.encode(values[None], sizes).image_tokens
        return self.visual.codes.argsort()[codes.cpu()]

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """Pixels in [0, 1].

        Raises:
            UsageError: a code outside the codebook.
        """
        check_codes(codes, self.cardinality)
        own = self.visual.codes[codes].to(self.codebook.device)
        pixels: Tensor = self.vq.decode(own[None])
        return self.scale.back(pixels[0])


def text_model(model: Any) -> Any:
    """The language model inside, as an ``Emu3ForCausalLM`` of the same weights.

    Without the picture tokenizer on the way, and of a shape that the fused arithmetic can read.
    """
    with torch.device("meta"):
        shell = Emu3ForCausalLM(model.config.get_text_config())
    shell.model, shell.lm_head = model.model.text_model, model.lm_head
    shell.generation_config = model.generation_config
    return shell.eval()


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The ids of the symbols that are no codes and no words."""

    row_end: int
    tail: tuple[int, ...]

    @staticmethod
    def of(model: Any, tokenizer: Any) -> Marks:
        """From the names in the tokenizer and in the model's vocabulary map.

        Raises:
            ModelLoadError: a symbol that nothing names.
        """
        row_end = model.vocabulary_mapping.eol_token_id
        if row_end is None:
            raise ModelLoadError(
                "The vocabulary_map of Emu3 must name '<|extra_200|>', the end of a row: it does not. "
                "Copy the complete config.json."
            )
        tail = (token_id(tokenizer, name) for name in ("eof_token", "eoi_token", "eos_token"))
        return Marks(row_end=row_end, tail=tuple(tail))


@dataclass(frozen=True, kw_only=True)
class Emu3:
    """An Emu3 model as a family of picture models; ``area`` is that of its own pictures, in pixels.

    It is drawn from the 2048 best at temperature 1, as its authors show it.

    >>> family = Emu3.from_model(model, processor)                             # doctest: +SKIP
    >>> family.layout((512, 768)).length                                       # doctest: +SKIP
    6211
    """

    target: Target
    codec: Emu3Codec
    guidance: Guidance
    processor: Any
    marks: Marks
    area: int
    sampling: Sampling = Sampling(top_k=TOP_K)

    @staticmethod
    def from_model(model: Any, processor: Any, *, owned: bool = False) -> Emu3:
        """Around an ``Emu3ForConditionalGeneration`` and its processor (or its tokenizer alone).

        ``owned`` says that the model is ours alone: see ``CausalTarget``.

        Raises:
            ModelLoadError: special symbols that nothing names, or a model without weights.
        """
        tokenizer = tokenizer_of(processor)
        for name in ("boi_token", "image_wrapper_token", "bos_token"):
            token_id(tokenizer, name)
        visual = VisualIds.named(model.config.vocabulary_map or {})
        if len(visual.ids) != model.config.vq_config.codebook_size:
            raise ModelLoadError(
                f"The vocabulary of this Emu3 names {len(visual.ids)} codes, and its picture tokenizer has "
                f"{model.config.vq_config.codebook_size}. Copy both parts of one checkpoint."
            )
        scale = model.generation_config.guidance_scale
        return Emu3(
            target=CausalTarget(text_model(model), owned=owned),
            codec=Emu3Codec(model.model.vqmodel, visual, Scale.of(processor)),
            guidance=Guidance(scale=SCALE if scale is None else float(scale), convention="log_softmax"),
            processor=processor,
            marks=Marks.of(model, tokenizer),
            area=int(getattr(processor, "image_area", AREA)),
        )

    @property
    def symbols(self) -> tuple[int, ...]:
        """The ids of the codes, which may lie anywhere in the vocabulary."""
        return self.codec.visual.ids

    def layout(self, size: tuple[int, int] | None = None, /) -> Layout:
        """Any grid that fits into the model's context; a square of ``area`` pixels without a size.

        Raises:
            UsageError: a size that is no multiple of the stride, or too large.
        """
        stride = self.codec.stride
        if size is None:
            side = round(math.sqrt(self.area) / stride)
            return self._checked(self._grid(side, side))
        return self._checked(self._grid(*grid_of(size, stride)))

    def _grid(self, height: int, width: int) -> Layout:
        visual, size = self.codec.visual, self.target.spec.vocab_size
        places = Raster(
            height=height,
            width=width,
            codes=len(visual.ids),
            row_end=self.marks.row_end,
            tail=self.marks.tail,
        )
        if visual.contiguous:
            return replace(places, offset=visual.ids[0], vocab_size=size)
        return ScatteredRaster(places, visual.ids, size)

    def _checked(self, layout: Layout) -> Layout:
        limit = self.target.context_length
        if limit is not None and layout.length >= limit:
            side = math.isqrt(limit)
            while side > 1 and self._grid(side, side).length >= limit:
                side -= 1
            stride = self.codec.stride
            raise UsageError(
                f"A picture of {layout.height * stride} x {layout.width * stride} pixels takes "
                f"{layout.length} symbols, and the model's context holds {limit}, prompt included. "
                f"Ask for at most about {side * stride} x {side * stride} pixels."
            )
        return layout

    def layout_of(self, prompt: Prompt, /) -> Layout:
        """The layout that a prompt was made for.

        Raises:
            UsageError: a prompt that was made elsewhere.
        """
        spec = prompt.spec
        if spec is None or spec.row_length is None or spec.fixed_length is None:
            raise UsageError(
                "This prompt says nothing of its picture: got a prompt without spec. Make it with "
                "Emu3.prompt(caption, size)."
            )
        rows = (spec.fixed_length - len(self.marks.tail)) // spec.row_length
        return self._grid(rows, spec.row_length - 1)

    def prompt(self, caption: str, size: tuple[int, int] | None = None, /) -> Prompt:
        """bos, the caption, begin-of-image, the grid in words, the sign that codes follow.

        Raises:
            PromptError: a caption that the tokenizer cannot read, or that leaves no room for the picture.
            UsageError: a size that the model cannot draw.
        """
        check_caption(tokenizer_of(self.processor), caption)
        return self._prompt(caption, self.layout(size))

    def _prompt(self, caption: str, layout: Layout) -> Prompt:
        words = tokenizer_of(self.processor)
        grid = f"{words.boi_token}{layout.height}*{layout.width}{words.image_wrapper_token}"
        ids = words(f"{words.bos_token}{caption}{grid}")["input_ids"]
        return with_room(Prompt(ids=torch.tensor(ids), spec=layout.spec), layout.length, self.target)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The same grid behind a negative caption, or behind none.

        Raises:
            PromptError: a negative caption that the tokenizer cannot read, or that leaves no room.
        """
        if negative is not None:
            check_caption(tokenizer_of(self.processor), negative)
        return self._prompt(negative or "", self.layout_of(prompt))

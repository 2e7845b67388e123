"""Chameleon's pictures: the checkpoints of Chameleon, Anole and Lumina-mGPT in transformers' class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from transformers import ChameleonForConditionalGeneration

from multispec.errors import ModelLoadError, UnknownNameError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.checkpoints import (
    State,
    first_line,
    load_pretrained,
    load_tokenizer,
    refuse_missing,
)
from multispec.modalities.image.codec import check_codes, check_sides
from multispec.modalities.image.families._pixels import require_size
from multispec.modalities.image.family import PictureCodec
from multispec.modalities.image.reading import check_caption, tokenizer_of, with_room
from multispec.modalities.image.vqgan import VQGAN
from multispec.modalities.layout import Layout, Raster
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.targets import CausalTarget
from multispec.targets.causal import refuse_meta
from multispec.targets.loading import Device

Style = Literal["chameleon", "lumina"]
# Where checkpoints keep the original tokenizer, decoder included.
_ORIGINAL = ("vqgan.ckpt", "tokenizer/vqgan.ckpt", "vqgan.pt", "vqgan.safetensors")
_PREFIX = "model.vqmodel."
# What the authors draw with: Meta's options for pictures, and the sampling script of Lumina-mGPT.
_SHOWN: dict[Style, tuple[Guidance, Sampling]] = {
    "chameleon": (Guidance(scale=3.0), Sampling(temperature=0.7, top_p=0.9)),
    "lumina": (Guidance(scale=4.0), Sampling(top_k=2000)),
}
# Lumina-mGPT counts its sizes in squares of so many codes.
_GRID = 2


def fits(config: object) -> bool:
    """True for the configuration of a Chameleon, which Anole and Lumina-mGPT share."""
    return getattr(config, "model_type", None) == "chameleon"


def load(
    name_or_path: str | Path,
    *,
    style: str | None = None,
    vqgan: str | Path | None = None,
    image_size: int | None = None,
    device: Device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Chameleon:
    """The model of a folder or hub id; ``vqgan`` is the file of the original picture tokenizer.

    In a folder that file is found as ``vqgan.ckpt`` or ``tokenizer/vqgan.ckpt``, and decoders that
    ports keep among the model's own weights are found too.

    Raises:
        ModelLoadError: the model, its tokenizer or the picture tokenizer cannot be read.
    """
    pictures = _pictures(Path(name_or_path), vqgan, device)
    model, missing = load_pretrained(
        ChameleonForConditionalGeneration,
        name_or_path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        optional=[_PREFIX],
    )
    refuse_missing([] if pictures is not None else missing, name_or_path)
    tokenizer = load_tokenizer(name_or_path, trust_remote_code)
    return Chameleon.from_model(model, tokenizer, style=style, vqgan=pictures, image_size=image_size)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The ids of Chameleon's vocabulary that pictures are made of; the defaults are the released ones.

    ``sizes`` is the id of a side of 0 squares, and sides may have up to ``most`` of them; ``order[i]`` is
    the code of the picture tokenizer that the id ``offset + i`` stands for.
    """

    offset: int = 4
    begin: int = 8197
    end: int = 8196
    turn: int = 8710
    row_end: int = 8803
    sizes: int = 8804
    most: int = 64
    order: tuple[int, ...] = tuple(range(8192))

    @staticmethod
    def of(vocabulary: Mapping[str, int] | None, codes: int) -> Marks:
        """As a vocabulary map names them; what it does not name is as released.

        Raises:
            UnsupportedError: picture ids that do not follow each other, or are not one per code.
        """
        names = vocabulary or {}
        found = {symbol: names[name] for symbol, name in _NAMES.items() if name in names}
        if "sizes" in found:
            found["most"] = next(n for n in count(1) if names.get(_size_name(n)) != found["sizes"] + n) - 1
        pictures = sorted(
            (number, _code(name)) for name, number in names.items() if name.startswith("IMGIMG")
        )
        if not pictures:
            return Marks(order=tuple(range(codes)), **found)
        ids, order = [number for number, _ in pictures], tuple(code for _, code in pictures)
        if ids != list(range(ids[0], ids[0] + len(ids))) or sorted(order) != list(range(codes)):
            raise UnsupportedError(
                f"Chameleon's picture symbols must be one range of ids, one per code: got {len(ids)} ids "
                f"from {ids[0]} to {ids[-1]} for {codes} codes. Check vocabulary_map in config.json."
            )
        return Marks(offset=ids[0], order=order, **found)


def _size_name(squares: int) -> str:
    return f"<reserved{8800 + squares:05d}>"


_NAMES = {
    "begin": "<racm3:break>",
    "end": "<eoss>",
    "turn": "<reserved08706>",
    "row_end": "<reserved08799>",
    "sizes": _size_name(0),
}
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


def _code(name: str) -> int:
    """The code in a name such as IMGIMGBCZ: its digits as letters, A is 0."""
    digits = name.removeprefix("IMGIMG")[:-1].translate(_DIGITS)
    if not digits.isdecimal():
        raise UnsupportedError(
            f"The picture symbol {name!r} names no code: expected letters A to J between IMGIMG and Z. "
            "Check vocabulary_map in config.json."
        )
    return int(digits)


class Chameleon:
    """Chameleon (2024, arXiv 2405.09818), Anole (2407.06135) and Lumina-mGPT (2408.02657).

    ``chameleon`` draws squares of 32 x 32 codes in a run; ``lumina`` any size, which its prompt names
    in squares of 32 pixels, with a symbol after every row. transformers' forward pass forbids picture
    symbols; the target here takes logits from the hidden states, and leaves the model as it is.
    ``chameleon`` is drawn at temperature 0.7 from 0.9 of the mass, ``lumina`` at 1 from the 2000 best, as
    by their authors.

    >>> family = load("Alpha-VLLM/Lumina-mGPT-7B-768")                         # doctest: +SKIP
    >>> family.layout((768, 512)).length                                       # doctest: +SKIP
    1585
    """

    def __init__(
        self, model: Any, tokenizer: Any, codec: PictureCodec, marks: Marks, style: Style, side: int
    ) -> None:
        self.codec = codec
        self.marks = marks
        self.symbols = range(marks.offset, marks.offset + codec.cardinality)
        self.style = style
        self.guidance, self.sampling = _SHOWN[style]
        self._tokenizer = tokenizer
        self._start = _start(tokenizer, model.config)
        self._vocab_size = int(model.lm_head.weight.shape[0])
        self._side = side
        self.target = CausalTarget(UnmaskedChameleon(model))

    @staticmethod
    def from_model(
        model: Any,
        processor: Any,
        *,
        style: str | None = None,
        vqgan: VQGAN | None = None,
        image_size: int | None = None,
    ) -> Chameleon:
        """From a ``ChameleonForConditionalGeneration`` and its processor or tokenizer.

        ``style`` is found in the model's name and settings where it is not given, ``image_size`` (the
        pixels of a side when nobody asks for a size) in the name of a Lumina-mGPT. Without ``vqgan``, the
        original picture tokenizer, pictures can be read but not drawn: transformers has no decoder.

        Raises:
            UnknownNameError: a style that does not exist.
            UsageError: an image size that cannot be drawn.
            ModelLoadError: a model without weights, or a picture tokenizer with another number of codes.
            UnsupportedError: a vocabulary whose picture symbols are no range.
        """
        refuse_meta(model)
        chosen = _style(model.config) if style is None else _named(style)
        inner: PictureCodec = EncoderOnly(model.model.vqmodel) if vqgan is None else vqgan
        codes = int(model.config.vq_config.num_embeddings)
        if inner.cardinality != codes:
            raise ModelLoadError(
                f"The model has {codes} picture codes and the picture tokenizer {inner.cardinality}. Load "
                "the tokenizer that belongs to the model."
            )
        marks = Marks.of(model.config.vocabulary_map, codes)
        side = image_size or _own_side(model.config, chosen)
        family = Chameleon(model, tokenizer_of(processor), Reordered(inner, marks.order), marks, chosen, side)
        family.layout()
        return family

    def layout(self, size: tuple[int, int] | None = None, /) -> Layout:
        """Rows of codes and the end symbol; Lumina's rows end with a symbol of their own.

        Raises:
            UsageError: a size that this model cannot draw.
        """
        height, width = (self._side, self._side) if size is None else size
        self._check_size(height, width)
        lumina, marks = self.style == "lumina", self.marks
        layout = Raster(
            height=height // self.codec.stride,
            width=width // self.codec.stride,
            codes=self.codec.cardinality,
            offset=marks.offset,
            vocab_size=self._vocab_size,
            row_end=marks.row_end if lumina else None,
            tail=(marks.end,),
        )
        context = self.target.context_length
        if context is not None and layout.length >= context:
            raise UsageError(
                f"A picture of {height} x {width} pixels takes {layout.length} symbols, and the model's "
                f"context holds {context}, prompt included. Ask for a smaller one."
            )
        return layout

    def _check_size(self, height: int, width: int) -> None:
        if self.style == "chameleon":
            require_size((height, width), (self._side, self._side))
            return
        unit = _GRID * self.codec.stride
        largest = self.marks.most * unit
        if min(height, width) < unit or height % unit or width % unit or max(height, width) > largest:
            raise UsageError(
                f"Lumina-mGPT draws sides of {unit}, {2 * unit}, ... {largest} pixels: got {height} x "
                f"{width}. Round them to multiples of {unit}; this model knows areas near {self._side} x "
                f"{self._side}."
            )

    def prompt(self, caption: str, size: tuple[int, int] | None = None, /) -> Prompt:
        """The caption, the end of its turn, and the symbols that begin a picture of this size.

        Raises:
            PromptError: a caption that the tokenizer cannot read, or that leaves no room for the picture.
            UsageError: a size that the model cannot draw.
        """
        layout = self.layout(size)
        check_caption(self._tokenizer, caption)
        text = caption
        if self.style == "lumina":
            height, width = self._size(layout)
            text = f"Generate an image of {width}x{height} according to the following prompt:\n{caption}"
        words: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [self._start, *words, self.marks.turn, *self._opening(layout)]
        return with_room(Prompt(ids=torch.tensor(ids), spec=layout.spec), layout.length, self.target)

    def _size(self, layout: Layout) -> tuple[int, int]:
        return layout.height * self.codec.stride, layout.width * self.codec.stride

    def _opening(self, layout: Layout) -> list[int]:
        if self.style == "chameleon":
            return [self.marks.begin]
        sides = (layout.height // _GRID, layout.width // _GRID)
        return [self.marks.begin, *(self.marks.sizes + side for side in sides)]

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """``negative`` as a caption; without it what the authors use: Lumina the picture's beginning alone,
        Chameleon the start symbol before it.
        """
        layout = self.layout_of(prompt)
        if negative is not None:
            return self.prompt(negative, self._size(layout))
        ids = self._opening(layout)
        if self.style == "chameleon":
            ids = [self._start, *ids]
        return replace(prompt, ids=torch.tensor(ids), guidance=None, unconditional=None)

    def layout_of(self, prompt: Prompt, /) -> Layout:
        """The layout whose size the prompt names.

        Raises:
            UsageError: a prompt that does not end with the beginning of a picture.
        """
        if self.style == "chameleon":
            return self.layout()
        begin, *sides = prompt.ids[-3:].tolist()
        if begin != self.marks.begin or len(sides) != 2:
            raise UsageError(
                f"A prompt of Lumina-mGPT ends with {self.marks.begin} and two sizes: got "
                f"{prompt.ids[-3:].tolist()}. Make it with family.prompt(caption, size)."
            )
        height, width = ((side - self.marks.sizes) * _GRID * self.codec.stride for side in sides)
        return self.layout((height, width))


class UnmaskedChameleon(nn.Module):
    """A Chameleon whose picture symbols keep their logits; every weight is the model's own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.lm_head = model.model, model.lm_head
        self.config, self.generation_config = model.config, model.generation_config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        weight: Tensor = self.lm_head.weight
        return weight.device

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        head: nn.Module = self.lm_head
        return head

    def forward(
        self, past_key_values: Any = None, logits_to_keep: int | Tensor = 0, **inputs: Any
    ) -> SimpleNamespace:
        """Logits of the columns to keep; an integer keeps that many of the last ones, 0 all."""
        hidden = self.model(past_key_values=past_key_values, **inputs).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return SimpleNamespace(logits=self.lm_head(hidden[:, kept]))


class Reordered:
    """A picture tokenizer whose codes count in the order of the model's ids."""

    def __init__(self, inner: PictureCodec, order: Sequence[int]) -> None:
        self._inner = inner
        self._order = torch.tensor(list(order))
        self._places = self._order.argsort()

    @property
    def cardinality(self) -> int:
        """Entries of the codebook."""
        return self._inner.cardinality

    @property
    def stride(self) -> int:
        """Pixels in one direction per code."""
        return self._inner.stride

    @property
    def codebook(self) -> Float[Tensor, "V C"]:
        """The vector of each code."""
        codebook = self._inner.codebook
        return codebook[self._order.to(codebook.device)]

    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """Codes of a picture."""
        return self._places[self._inner.encode(pixels)]

    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """Pixels in [0, 1].

        Raises:
            UsageError: a code outside the codebook.
            UnsupportedError: the checkpoint has no decoder.
        """
        check_codes(codes, self.cardinality)
        return self._inner.decode(self._order[codes.cpu()])


class EncoderOnly:
    """transformers' ``ChameleonVQVAE``, which reads pictures and cannot draw them."""

    def __init__(self, vqmodel: Any) -> None:
        self._vqmodel = vqmodel

    @property
    def cardinality(self) -> int:
        """Entries of the codebook."""
        return len(self.codebook)

    @property
    def stride(self) -> int:
        """Pixels in one direction per code."""
        return int(2 ** (len(self._vqmodel.config.channel_multiplier) - 1))

    @property
    def codebook(self) -> Float[Tensor, "V C"]:
        """The vector of each code."""
        weight: Tensor = self._vqmodel.quantize.embedding.weight
        return weight.detach()

    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """The nearest code at every place.

        Raises:
            UsageError: a picture whose sides are no multiples of the stride.
        """
        height, _ = check_sides(pixels, self.stride)
        with torch.inference_mode():
            found = self._vqmodel.encode(pixels[None].to(self.codebook) * 2 - 1, return_dict=True)
        codes: Tensor = found.image_tokens.cpu()
        return rearrange(codes, "(h w) -> h w", h=height)

    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """There is no way back here.

        Raises:
            UsageError: a code outside the codebook.
            UnsupportedError: otherwise; says where to get a decoder.
        """
        check_codes(codes, self.cardinality)
        raise UnsupportedError(
            "transformers' ChameleonVQVAE has no decoder, so codes cannot become pixels. The original "
            "checkpoint of Chameleon has one in tokenizer/vqgan.ckpt: put it into the model's folder, or "
            "pass vqgan=... to this family's load. The tokens are complete without it."
        )


def _named(style: str) -> Style:
    found: dict[str, Style] = {name: name for name in get_args(Style)}
    if style not in found:
        raise UnknownNameError("style", style, found)
    return found[style]


def _style(config: Any) -> Style:
    # Lumina's trainer leaves a setting of its own in the config.
    named = "lumina" in str(getattr(config, "_name_or_path", "")).lower()
    return "lumina" if named or getattr(config, "z_loss_weight", None) is not None else "chameleon"


def _own_side(config: Any, style: Style) -> int:
    """The side in pixels that a model was trained for."""
    resolution = int(config.vq_config.resolution)
    if style == "chameleon":
        return resolution
    name = str(getattr(config, "_name_or_path", ""))
    return next((side for side in (1024, 768, 512) if str(side) in name), resolution)


def _start(tokenizer: Any, config: Any) -> int:
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else config.bos_token_id
    return int(found or 0)


def _pictures(folder: Path, vqgan: str | Path | None, device: Device | None) -> VQGAN | None:
    """The picture tokenizer with a decoder, where there is one."""
    if vqgan is not None:
        return VQGAN.load(vqgan, device=device)
    for name in _ORIGINAL:
        if (folder / name).is_file():
            return VQGAN.load(folder / name, device=device)
    state = _embedded(folder)
    if not any(name.startswith("decoder.") for name in state):
        return None
    codec = VQGAN.of(state, folder)
    codec.network.to("cpu" if device is None else device, torch.float32)
    return codec


def _embedded(folder: Path) -> State:
    """The picture tokenizer among a model's own safetensors."""
    state: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(_PREFIX)]  # noqa: SIM118
                state |= {name.removeprefix(_PREFIX): file.get_tensor(name) for name in names}
        except Exception as error:  # safetensors raises its own kind for files that are cut short
            raise ModelLoadError(
                f"No weights can be read from {str(path)!r}: {first_line(error)} The file may be cut short: "
                "copy it again."
            ) from error
    return state

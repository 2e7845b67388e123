"""The image modality: captions in, pictures out, around any family of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from multispec.errors import PromptError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.family import Completes, Family
from multispec.modalities.layout import Layout
from multispec.modality import IdsOnly, StreamDecoder
from multispec.neighbours import Neighbours
from multispec.row import Stop
from multispec.sampling import Sampling
from multispec.stream import Prompt

# When a stream shows a partial picture.
PARTIAL = ("row", "step", "none")
# What is not drawn yet: a warm light grey, which neither shines beside a picture nor looks like a part of it.
GROUND = (0.87, 0.86, 0.84)


def to_image(pixels: Float[Tensor, "3 height width"]) -> Image.Image:
    """A picture of pixels in [0, 1]."""
    whole = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(whole.permute(1, 2, 0).cpu().numpy())


def to_pixels(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """Pixels in [0, 1] of a picture, transparency laid on white."""
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image.convert("RGBA"))
    values = np.asarray(flat.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Images:
    """Captions in, pictures out.

    A prompt is a caption, or ``{"caption": ..., "size": (height, width)}`` in pixels; where the family
    completes pictures, ``{"rows": ...}`` are the upper rows of codes of one. A picture's ``info`` holds
    its ``caption``, its ``grid`` of codes (-1: not there yet) and its ``layout``.
    Streams give a partial picture after each finished row; with ``partial="step"`` after every
    symbol, with "none" never.

    Raises:
        UsageError: an unknown kind of partial pictures.

    >>> generator = Generator(family.target, Images(family))                   # doctest: +SKIP
    >>> generator.generate("a red heart").output.save("heart.png")             # doctest: +SKIP
    """

    family: Family
    partial: str = "row"

    def __post_init__(self) -> None:
        if self.partial not in PARTIAL:
            raise UsageError(f"partial is one of {', '.join(PARTIAL)}: got {self.partial!r}.")

    def encode(self, prompt: Any) -> Prompt:
        """The prompt with the picture's stream, the model's own guidance, and the other branch of that.

        Raises:
            PromptError: no caption, one that the model cannot read, or rows that are none.
            UsageError: a size that the model cannot draw.
            UnsupportedError: rows, for a model that completes no pictures.
        """
        caption, made = self._made(prompt)
        guidance = made.guidance or self.family.guidance
        other = made.unconditional
        if other is None and not guidance.neutral:
            other = self.family.unconditional(made, None)
        return replace(made, guidance=guidance, unconditional=other, text=caption)

    def _made(self, prompt: Any) -> tuple[str, Prompt]:
        if not isinstance(prompt, Mapping) or set(prompt) != {"rows"}:
            caption, size = _read(prompt)
            return caption, self.family.prompt(caption, size)
        if not isinstance(self.family, Completes):
            raise UnsupportedError(
                f"{type(self.family).__name__} draws whole pictures only: got upper rows to complete. Ask "
                "for a picture by a caption."
            )
        return "", self.family.completion(prompt["rows"])

    @property
    def guidance(self) -> Guidance:
        """The family's own."""
        return self.family.guidance

    @property
    def sampling(self) -> Sampling:
        """The family's own."""
        return self.family.sampling

    @property
    def drafter(self) -> str:
        """Codes hang on those beside them, less on those far back: a window settles in a few passes."""
        return "jacobi"

    @property
    def neighbours(self) -> Neighbours:
        """Codes that look alike, by the family's codebook."""
        return self._near

    @cached_property
    def _near(self) -> Neighbours:
        return Neighbours(codebook=self.family.codec.codebook, symbols=self.family.symbols)

    def unconditional(self, prompt: Prompt, negative: Any) -> Prompt:
        """The prompt without a caption, or with a negative one.

        Raises:
            PromptError: a negative that is no caption.
        """
        if isinstance(negative, Prompt):
            return negative
        if negative is not None and not isinstance(negative, str):
            raise PromptError(f"A negative prompt is a caption: got {type(negative).__name__}.")
        return self.family.unconditional(prompt, negative)

    def stops(self, prompt: Prompt, strings: Sequence[str]) -> list[Stop]:
        """None: a picture ends with its last row.

        Raises:
            UsageError: stop strings.
        """
        if strings:
            raise UsageError(f"A picture holds no text to stop at: got stop={list(strings)}. Leave it out.")
        return []

    def decode(self, prompt: Prompt, tokens: Sequence[int], strings: Sequence[str]) -> Image.Image | None:
        """The picture, also of a part of its symbols; None for ids that were given without a layout.

        Raises:
            UsageError: a symbol that is no code of this model.
            UnsupportedError: the picture tokenizer has no decoder.
        """
        if prompt.spec is None:
            return None
        return picture(self.family, self.family.layout_of(prompt), tokens, prompt.text or "")

    def stream(self, prompt: Prompt, strings: Sequence[str]) -> StreamDecoder:
        """A decoder for one row."""
        if prompt.spec is None:
            return IdsOnly().stream(prompt, strings)
        return PictureStream(self.family, self.family.layout_of(prompt), prompt.text or "", self.partial)


def _read(prompt: Any) -> tuple[str, tuple[int, int] | None]:
    if isinstance(prompt, str):
        return prompt, None
    if isinstance(prompt, Mapping) and {"caption"} <= set(prompt) <= {"caption", "size"}:
        caption, size = prompt["caption"], prompt.get("size")
        if isinstance(caption, str):
            return caption, None if size is None else _size(size)
    raise PromptError(
        'A picture is asked for by a caption, by {"caption": ..., "size": (height, width)}, or to be '
        f'completed by {{"rows": ...}}: got {prompt!r}.'
    )


def _size(size: Any) -> tuple[int, int]:
    pair = isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(one, int) for one in size)
    if not pair or min(size) < 1:
        raise UsageError(f"A size is (height, width) in whole pixels: got {size!r}.")
    return size[0], size[1]


def picture(family: Family, layout: Layout, tokens: Sequence[int], caption: str) -> Image.Image:
    """The picture of these symbols, with ``caption``, ``grid`` and ``layout`` in its info.

    What is not there yet is a quiet ground.

    Raises:
        UsageError: a symbol that is no code of this model.
        UnsupportedError: the picture tokenizer has no decoder.
    """
    codes = layout.grid(tokens)
    # What is not there yet is what one asks for.
    there = codes == layout.grid(tokens, 1)
    image = to_image(_drawn(family, codes, there))
    grid = torch.where(there, codes, -1)
    image.info |= {"caption": caption, "grid": tuple(map(tuple, grid.tolist())), "layout": layout}
    return image


def _drawn(family: Family, codes: Int[Tensor, "H W"], there: Tensor) -> Float[Tensor, "3 height width"]:
    if bool(there.all()):
        return family.codec.decode(codes)
    ground = torch.tensor(GROUND)[:, None, None]
    pixels = family.codec.decode(_continued(codes, there))
    height, width = pixels.shape[1:]
    visible = torch.nn.functional.interpolate(there[None, None].float(), (height, width), mode="nearest")[0]
    return torch.where(visible > 0, pixels, ground)


def _continued(codes: Int[Tensor, "H W"], there: Tensor) -> Int[Tensor, "H W"]:
    """Every missing code is the one above it, or the one before it in the first row.

    A decoder looks at what surrounds a place, so that the edge of what is there looks as it will.
    """
    codes = codes.clone()
    for row, column in (~there).nonzero().tolist():
        above = (row - 1, column) if row else (row, max(column - 1, 0))
        codes[row, column] = codes[above]
    return codes


class PictureStream:
    """Partial pictures of one row of a batch, as its symbols come."""

    def __init__(self, family: Family, layout: Layout, caption: str, partial: str) -> None:
        self._family, self._layout, self._caption = family, layout, caption
        self._partial = partial
        self._tokens: list[int] = []

    def push(self, token: int) -> Image.Image | None:
        """The picture up to here where a row is finished (or at every symbol); else None."""
        self._tokens.append(token)
        if self._partial == "none" or not self._due():
            return None
        try:
            return picture(self._family, self._layout, self._tokens, self._caption)
        except UnsupportedError:  # said once, with the result, which keeps the symbols
            self._partial = "none"
            return None

    def _due(self) -> bool:
        place = self._layout.coordinates(len(self._tokens) - 1)
        if place is None:
            return False
        return self._partial == "step" or place[1] == self._layout.width - 1

    def finish(self) -> None:
        """Nothing is held back."""

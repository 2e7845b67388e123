"""Pixels: the scale that a picture tokenizer was trained on, and the sizes that a model draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import UsageError


@dataclass(frozen=True)
class Scale:
    """``(pixels - mean) / std`` per colour, and back; [-1, 1] unless a checkpoint says otherwise.

    >>> Scale().back(torch.ones(3, 1, 1)).flatten().tolist()
    [1.0, 1.0, 1.0]
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @staticmethod
    def of(processor: Any) -> Scale:
        """The scale in the image processor of a checkpoint."""
        images = getattr(processor, "image_processor", None)
        if images is None:
            return Scale()
        return Scale(tuple(images.image_mean), tuple(images.image_std))

    def into(self, pixels: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
        """What the picture tokenizer takes."""
        mean, std = (torch.tensor(one).to(pixels)[:, None, None] for one in (self.mean, self.std))
        return (pixels - mean) / std

    def back(self, values: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
        """Pixels in [0, 1], in float32 on the CPU."""
        mean, std = (torch.tensor(one)[:, None, None] for one in (self.mean, self.std))
        return (values.float().cpu() * std + mean).clamp(0, 1)


def require_size(size: tuple[int, int] | None, own: tuple[int, int]) -> None:
    """Refuse every size but the only one that a model draws, in pixels.

    Raises:
        UsageError: names its own.
    """
    if size is not None and tuple(size) != own:
        raise UsageError(
            f"This model draws pictures of {own[0]} x {own[1]} pixels and no others: got "
            f"{' x '.join(map(str, size))}. Leave the size out, and resize the picture."
        )


def grid_of(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of codes of a picture of (height, width) pixels.

    Raises:
        UsageError: a side that is no multiple of ``stride``; names the nearest size.

    >>> grid_of((64, 96), 32)
    (2, 3)
    """
    height, width = size
    if height % stride or width % stride or min(size) < stride:
        low, narrow = (max(round(side / stride), 1) * stride for side in size)
        raise UsageError(
            f"This model draws pictures whose sides are multiples of {stride} pixels: got {height} x "
            f"{width}. The nearest is {low} x {narrow}."
        )
    return height // stride, width // stride

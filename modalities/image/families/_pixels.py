"""Pixels in [0, 1] and the scale that a picture tokenizer was trained on."""

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


def check_sides(pixels: Tensor, stride: int) -> tuple[int, int]:
    """The grid of codes of a picture.

    Raises:
        UsageError: a side that is no multiple of ``stride``.
    """
    height, width = pixels.shape[-2:]
    if height % stride or width % stride:
        raise UsageError(
            f"A picture's sides must be multiples of {stride} pixels: got {height} x {width}. "
            "Resize or crop it first."
        )
    return height // stride, width // stride

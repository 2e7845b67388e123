"""A codec small enough to check by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class TinyCodec:
    """Pixels ``[H, W]`` in 0 .. cardinality ** K - 1 as K digits each: codes ``[(H W), K]`` and back.

    >>> codec = TinyCodec()
    >>> codec.decode(codec.encode(torch.tensor([[5, 15]] * 2))).tolist()
    [[5, 15], [5, 15]]
    """

    cardinality: int = 4
    num_codebooks: int = 2
    grid: tuple[int, int] = (2, 2)

    @property
    def _powers(self) -> Tensor:
        return self.cardinality ** torch.arange(self.num_codebooks)

    def encode(self, media: Int[Tensor, "H W"], /) -> Int[Tensor, "S K"]:
        """Digits of every pixel, lowest first, in raster order."""
        return rearrange(media, "h w -> (h w) 1") // self._powers % self.cardinality

    def decode(self, codes: Int[Tensor, "S K"], /) -> Int[Tensor, "H W"]:
        """Pixels of the grid."""
        return rearrange((codes * self._powers).sum(-1), "(h w) -> h w", h=self.grid[0])

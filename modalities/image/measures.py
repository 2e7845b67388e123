"""Measures of pictures that need no weights of anybody else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from multispec.errors import UsageError
from multispec.modalities.image.family import PictureCodec

# Wang et al. (2004), section III-C: an 11 x 11 Gaussian window of standard deviation 1.5.
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def _same(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise UsageError(
            f"Pictures are compared pixel by pixel: got {tuple(first.shape)} and {tuple(second.shape)}. "
            "Bring them to one size."
        )
    return first.double(), second.double()


def psnr(first: Float[Tensor, "C height width"], second: Float[Tensor, "C2 height2 width2"]) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]: -10 log10 of the mean squared difference.

    inf for equal pictures.

    Raises:
        UsageError: pictures of different sizes.

    >>> round(psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.1)), 4)
    20.0
    """
    x, y = _same(first, second)
    return float(-10 * (x - y).square().mean().log10())


def ssim(first: Float[Tensor, "C height width"], second: Float[Tensor, "C2 height2 width2"]) -> float:
    """Structural similarity (Wang et al. 2004, eq. 13) of pictures in [0, 1].

    An 11 x 11 Gaussian window of standard deviation 1.5, K1 = 0.01, K2 = 0.03, L = 1, weighted moments
    without Bessel's correction; the mean over all places where the window lies inside the picture, and
    over the colours, each taken by itself.

    Raises:
        UsageError: pictures of different sizes, or smaller than the window.

    >>> round(ssim(torch.zeros(3, 11, 11), torch.ones(3, 11, 11)), 6)
    0.0001
    """
    x, y = _same(first, second)
    if min(x.shape[1:]) < WINDOW:
        raise UsageError(
            f"SSIM looks at windows of {WINDOW} x {WINDOW} pixels: got a picture of "
            f"{x.shape[1]} x {x.shape[2]}. Compare larger pictures, or use psnr."
        )
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    both = _windowed(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * both + c2) / (var_x + var_y + c2)
    return float((brightness * structure).mean())


def _windowed(picture: Tensor) -> Tensor:
    """Weighted means over every window inside the picture."""
    offsets = torch.arange(WINDOW, dtype=picture.dtype) - WINDOW // 2
    w = torch.exp(-offsets.square() / (2 * SIGMA**2))
    w = w / w.sum()
    lines = rearrange(picture, "c h w -> c 1 h w")
    found: Tensor = F.conv2d(F.conv2d(lines, w[None, None, :, None]), w[None, None, None, :])
    return found


def codebook_features(
    codec: PictureCodec, pictures: Sequence[Float[Tensor, "3 height width"]]
) -> Float[Tensor, "N C"]:
    """Of each picture the mean of the codebook vectors it is encoded to.

    Raises:
        UsageError: no pictures.
    """
    if not pictures:
        raise UsageError("Features need a picture at least: got none.")
    book = codec.codebook.detach().double().cpu()
    return torch.stack([book[codec.encode(picture)].mean((0, 1)) for picture in pictures])


def frechet_distance(first: Float[Tensor, "N C"], second: Float[Tensor, "M C2"]) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (Dowson and Landau 1982, eq. 4).

    ||m1 - m2||^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), unbiased covariances. With ``codebook_features`` it
    tells pictures of one codec apart; it is not FID, whose features are those of Inception, and values
    for different codecs cannot be compared.

    Raises:
        UsageError: fewer than two rows of features, or features of different lengths.

    >>> frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
    9.0
    """
    if min(len(first), len(second)) < 2 or first.shape[1] != second.shape[1]:
        raise UsageError(
            "A Frechet distance needs two rows of features on each side, of one length: got "
            f"{tuple(first.shape)} and {tuple(second.shape)}. Take more pictures, and one codec."
        )
    x, y = first.double(), second.double()
    s1, s2 = torch.atleast_2d(torch.cov(x.T)), torch.atleast_2d(torch.cov(y.T))
    root = _root(s1)
    # tr (S1 S2)^(1/2) by the symmetric matrix with the same eigenvalues.
    crossed = torch.linalg.eigvalsh(root @ s2 @ root).clamp(min=0).sqrt().sum()
    moved = (x.mean(0) - y.mean(0)).square().sum()
    return float((moved + s1.trace() + s2.trace() - 2 * crossed).clamp(min=0))


def _root(matrix: Tensor) -> Tensor:
    """The square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root

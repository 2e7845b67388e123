"""Measures against values that are known otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from multispec.errors import UsageError
from multispec.modalities.image.measures import (
    codebook_features,
    frechet_distance,
    psnr,
    ssim,
)


def noise(seed: int, size: tuple[int, ...] = (3, 24, 20)) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_known_differences() -> None:
    black = torch.zeros(3, 8, 8)
    assert psnr(black, black) == math.inf
    assert psnr(black, torch.ones(3, 8, 8)) == pytest.approx(0)
    assert psnr(black, torch.full((3, 8, 8), 0.01)) == pytest.approx(40)
    one = black.clone()
    one[0, 0, 0] = 1  # mean squared difference 1 / 192
    assert psnr(black, one) == pytest.approx(10 * math.log10(192))


def test_ssim_of_equal_pictures_is_one() -> None:
    assert ssim(noise(0), noise(0)) == pytest.approx(1)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.2, 0.3), (0.5, 0.5)])
def test_ssim_of_flat_pictures_is_the_brightness_term(a: float, b: float) -> None:
    expected = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
    assert ssim(torch.full((3, 12, 12), a), torch.full((3, 12, 12), b)) == pytest.approx(expected, abs=1e-6)


def test_ssim_agrees_with_gaussian_filters_of_scipy() -> None:
    """The usual way to write it: filter the whole picture, then leave the border out."""
    x, y = noise(1).double().numpy(), noise(2).double().numpy()

    def mean(values: np.ndarray) -> np.ndarray:
        filtered = [ndimage.gaussian_filter(one, 1.5, truncate=3.5) for one in values]
        return np.stack(filtered)[:, 5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.0001, 0.0009
    expected = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(noise(1), noise(2)) == pytest.approx(expected.mean(), abs=1e-9)


def test_ssim_of_an_inverted_picture_is_negative() -> None:
    assert ssim(noise(3), 1 - noise(3)) < -0.5


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_of_different_sizes_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(UsageError, match=r"got \(3, 24, 20\) and \(3, 24, 24\). Bring them to one size"):
        measure(noise(0), noise(0, (3, 24, 24)))


def test_a_window_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(UsageError, match="windows of 11 x 11 pixels: got a picture of 10 x 30"):
        ssim(noise(0, (3, 10, 30)), noise(1, (3, 10, 30)))


def test_frechet_distance_of_one_dimension() -> None:
    """(m1 - m2)^2 + (s1 - s2)^2."""
    first, second = torch.tensor([[1.0], [3.0]]), torch.tensor([[4.0], [10.0]])
    expected = (2 - 7) ** 2 + (math.sqrt(2) - math.sqrt(18)) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_frechet_distance_agrees_with_sqrtm() -> None:
    first, second = noise(4, (40, 5)).double(), noise(5, (30, 5)).double() ** 2 * 3
    s1, s2 = np.cov(first.numpy().T), np.cov(second.numpy().T)
    moved = float((first.mean(0) - second.mean(0)).square().sum())
    expected = moved + np.trace(s1 + s2 - 2 * np.real(np.asarray(linalg.sqrtm(s1 @ s2))))
    assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, abs=1e-9)


def test_frechet_distance_of_few_rows_is_still_one() -> None:
    """Fewer rows than features: covariances without full rank."""
    rows = noise(6, (3, 8))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows, rows + 1) == pytest.approx(8, abs=1e-6)


@pytest.mark.parametrize("rows", [torch.zeros(1, 3), torch.zeros(4, 2)])
def test_features_that_cannot_be_compared_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="two rows of features on each side"):
        frechet_distance(torch.zeros(4, 3), rows)


class Shades:
    """A codec whose code n is a grey of n / 3, one pixel per code."""

    cardinality, stride = 4, 1
    codebook = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [3.0, 5.0]])

    def encode(self, pixels: torch.Tensor, /) -> torch.Tensor:
        return (pixels[0] * 3).round().long()

    def decode(self, codes: torch.Tensor, /) -> torch.Tensor:
        return (codes / 3).expand(3, -1, -1)


def test_features_are_the_mean_of_the_codes() -> None:
    codec = Shades()
    pictures = [codec.decode(torch.tensor([[0, 1]])), codec.decode(torch.tensor([[3, 3]]))]
    assert codebook_features(codec, pictures).tolist() == [[0.5, 0.5], [3.0, 5.0]]
    with pytest.raises(UsageError, match="need a picture"):
        codebook_features(codec, [])

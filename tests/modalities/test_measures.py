"""Measures against values that are known otherwise."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from multispec.errors import PromptError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.measures import (
    codebook_features,
    frechet_distance,
    psnr,
    ssim,
    token_nll,
)
from multispec.modalities.layout import Raster
from multispec.modalities.speech.layouts import Delayed
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.testing import SlotTableModel, TableModel, play, row


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


def test_the_likelihood_is_that_of_the_table() -> None:
    model = TableModel(vocab_size=5, seed=3)
    tokens = [2, 0, 4, 4]
    table = model.table.log_softmax(-1)
    expected = [-float(table[a, b]) for a, b in zip([1, *tokens], tokens, strict=False)]
    prompt = Prompt(ids=torch.tensor([1]))
    assert token_nll(model, prompt, tokens).tolist() == pytest.approx(expected)
    cold = token_nll(model, prompt, tokens, sampling=Sampling(temperature=0.5))
    assert float(cold[0]) == pytest.approx(-float((2 * model.table[1]).log_softmax(-1)[2]))


def test_the_likelihood_of_all_streams_sums_to_one() -> None:
    """Guided, and with a grammar: forced symbols are free."""
    layout = Raster(height=2, width=1, codes=3, vocab_size=5, row_end=4, header=(3,))
    model = TableModel(vocab_size=5, seed=4)
    prompt = Prompt(
        ids=torch.tensor([1]),
        spec=layout.spec,
        guidance=Guidance(scale=2.0),
        unconditional=Prompt(ids=torch.tensor([0])),
    )
    total = 0.0
    for codes in product(range(3), repeat=2):
        tokens = layout.tokens(torch.tensor(codes)[:, None])
        nll = token_nll(model, prompt, tokens.tolist())
        assert [float(nll[n]) for n in (0, 2, 4)] == [0.0, 0.0, 0.0]
        total += math.exp(-float(nll.sum()))
    assert total == pytest.approx(1)


def test_a_long_stream_takes_several_passes() -> None:
    """More symbols than a pass may hold: the same numbers."""
    model = TableModel(vocab_size=5, seed=5)
    tokens = torch.randint(5, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    table = model.table.log_softmax(-1)
    expected = [-float(table[a, b]) for a, b in zip([1, *tokens], tokens, strict=False)]
    found = token_nll(model, Prompt(ids=torch.tensor([1])), tokens)
    assert torch.allclose(found, torch.tensor(expected).double())
    assert len(model.sessions[-1].calls) == 3
    assert len(token_nll(model, Prompt(ids=torch.tensor([1])), tokens[:1])) == 1


def test_the_likelihood_of_nothing_is_refused() -> None:
    with pytest.raises(PromptError, match="got none"):
        token_nll(TableModel(), Prompt(ids=torch.tensor([1])), [])


# ---- parallel slots: each given the steps before ----

STEPS = Delayed(delays=(0, 1), codes_per_book=3, start=3, frames=2)


def by_hand(model: SlotTableModel, tokens: list[int], start: int) -> list[float]:
    """Codes alone, each slot by the row of the step before."""
    found, last = list[float](), [start, start]
    for place in range(0, len(tokens), 2):
        rows = model.table[last[0] * 5 + last[1], :, :3].log_softmax(-1)
        last = tokens[place : place + 2]
        found += [0.0 if code > 2 else -float(rows[slot, code]) for slot, code in enumerate(last)]
    return found


def test_the_likelihood_of_parallel_slots() -> None:
    """That of every stream, by the table; the triangles are free, and all of it sums to one."""
    model, prompt = SlotTableModel(2, 4, seed=3, spec=STEPS.spec), Prompt(ids=torch.tensor([3, 3]))
    total = 0.0
    for codes in product(range(3), repeat=4):
        tokens = STEPS.tokens(torch.tensor(codes).view(2, 2)).tolist()
        nll = token_nll(model, prompt, tokens)
        assert nll.tolist() == pytest.approx(by_hand(model, tokens, 3))
        total += math.exp(-float(nll.sum()))
    assert total == pytest.approx(1)


def test_a_result_has_the_likelihood_that_it_was_drawn_with() -> None:
    """Settings that look back, per slot, on more steps than a pass may hold."""
    spec = replace(STEPS, frames=150).spec
    model, prompt = SlotTableModel(2, 4, seed=3, spec=spec), Prompt(ids=torch.tensor([3, 3]))
    sampling = Sampling(temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.01, seed=4)
    asked = replace(row((3, 3)), sampling=sampling, max_new_tokens=302, keep_scores=True)
    found = play(model, asked)[0]
    assert found.log_probs is not None and found.tokens.shape == (151, 2)
    nll = token_nll(model, prompt, found.tokens.flatten().tolist(), sampling=sampling)
    assert torch.allclose(nll, -found.log_probs.double())
    assert len(model.sessions[-1].calls) == 2
    assert float(nll.mean()) > 0.1


def test_part_of_a_step_has_no_likelihood() -> None:
    with pytest.raises(PromptError, match="2 parallel slots has a likelihood step by step: got 3"):
        token_nll(SlotTableModel(2, 4, spec=STEPS.spec), Prompt(ids=torch.tensor([3, 3])), [0, 3, 1])

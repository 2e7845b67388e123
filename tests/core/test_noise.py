"""Noise is a pure function of (seed, sample, position, slot, symbol, purpose), and looks random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, spearmanr
from torch import Tensor

from multispec import sampling
from multispec.sampling import (
    MAX_SEED,
    CounterNoise,
    Law,
    Purpose,
    _mix,
    _mix_,
    _signed,
    _symbol_codes,
    _uniform,
)

CPU = torch.device("cpu")
DRAWS = 100_000
FEW = 10_000
VOCABULARY = 12
SCORES = torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64)


def law(places: int) -> Law:
    return Law(SCORES.expand(places, -1), greedy=False)


def unsigned(keys: Sequence[int]) -> list[str]:
    return [hex(key & (2**64 - 1)) for key in keys]


# ---- golden values: a seed's output may never change silently ----


def test_keys_are_pinned() -> None:
    assert unsigned(CounterNoise(0).keys([0, 1, 100], Purpose.SYMBOL)) == [
        "0x1957a7604e215178",
        "0x2ce809ae01cab7d7",
        "0xbd989a71978fdedd",
    ]
    assert unsigned(CounterNoise(7, 3, 4).keys([0, 5], Purpose.ACCEPT, 9)) == [
        "0x8367573d996d8f99",
        "0x8dfaa38780f53a4c",
    ]
    assert unsigned(CounterNoise(MAX_SEED).keys([0], Purpose.DRAFT)) == ["0x79d2390d9fc647bd"]


def test_uniforms_are_pinned() -> None:
    found = CounterNoise(7).uniforms([0, 1, 2], Purpose.RESIDUAL, 5).tolist()
    expected = ["0x1.5f75413906649p-1", "0x1.6c74f2a6b9dadp-1", "0x1.7be85659e0103p-1"]
    assert [value.hex() for value in found] == expected


def test_gumbel_values_are_pinned() -> None:
    expected = [-0.7169009684725149, 1.8496024280280798, 0.125026261022745, 2.1837058873741912]
    found = CounterNoise(7).gumbel([0], 4, CPU)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-14)


def test_symbols_are_pinned() -> None:
    positions = range(8)
    symbols = [CounterNoise(7, n).symbols(law(8), positions).tolist() for n in (0, 1)]
    assert symbols == [[10, 11, 10, 10, 7, 11, 10, 7], [11, 11, 9, 2, 9, 2, 9, 4]]
    chosen = CounterNoise(7).choose(law(8).probs, positions, Purpose.DRAFT, 3)
    assert chosen.tolist() == [11, 6, 5, 11, 6, 10, 9, 7]


# ---- the hash ----


@given(st.integers(0, 2**64 - 1))
def test_scalar_and_tensor_mix_agree(value: int) -> None:
    found = int(_mix_(torch.tensor([_signed(value)])))
    assert found == _signed(_mix(value))


def test_mix_is_pinned() -> None:
    assert [hex(_mix(value)) for value in (1, 2**64 - 1)] == [
        "0x5692161d100b05e5",
        "0xb4d055fcf2cbbd7b",
    ]


@pytest.mark.parametrize("bit", range(0, 64, 3))
def test_each_input_bit_reaches_half_of_the_output_bits(bit: int) -> None:
    flips = [(_mix(value) ^ _mix(value ^ (1 << bit))).bit_count() for value in range(1, 200)]
    assert 29 < sum(flips) / len(flips) < 35


@pytest.mark.parametrize("bits", [0, -1, 2**63 - 1, -(2**63), 4095, 4096, -4096])
def test_uniforms_never_reach_the_ends(bits: int) -> None:
    """Strictly inside (0, 1) at extreme bits, so that the Gumbel noise is finite."""
    value = _uniform(torch.tensor([bits]))
    assert 0 < float(value) < 1
    assert bool(torch.isfinite(-(-value.log()).log()))


def test_the_smallest_and_largest_uniform() -> None:
    assert float(_uniform(torch.tensor([0]))) == 2.0**-53
    assert float(_uniform(torch.tensor([-1]))) == 1 - 2.0**-53


# ---- a draw depends on its own key and on nothing else ----


@example([0, 0, 2], 0)
@given(st.lists(st.integers(0, 80), min_size=1, max_size=12), st.integers(0, MAX_SEED))
@settings(max_examples=60, deadline=None)
def test_symbols_do_not_depend_on_who_asks_with_them(positions: list[int], seed: int) -> None:
    """Any positions, in any order and with repetitions: each as if it were asked alone."""
    alone = [int(CounterNoise(seed).symbols(law(1), [position])) for position in positions]
    assert CounterNoise(seed).symbols(law(len(positions)), positions).tolist() == alone


@given(st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=5), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_symbols_do_not_depend_on_earlier_questions(questions: list[list[int]]) -> None:
    """The table of blocks already hashed is invisible."""
    noise = CounterNoise(3)
    for positions in questions:
        found = noise.perturbed(law(len(positions)), positions)
        fresh = SCORES + CounterNoise(3).gumbel(positions, VOCABULARY, CPU)
        assert torch.equal(found, fresh)


def test_vocabularies_share_a_noise_object() -> None:
    """A draft with fewer symbols gets the noise of the first symbols."""
    noise = CounterNoise(5)
    wide = noise.perturbed(law(3), [4, 5, 6]) - SCORES
    narrow = Law(torch.zeros(3, 7, dtype=torch.float64), greedy=False)
    assert torch.allclose(noise.perturbed(narrow, [4, 5, 6]), wide[:, :7], atol=1e-12)
    assert torch.equal(noise.perturbed(law(3), [4, 5, 6]) - SCORES, wide)


@pytest.mark.parametrize("kept", [1, 3, 100, 900])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hash_of_the_support_equals_the_dense_table(
    monkeypatch: pytest.MonkeyPatch, kept: int, dtype: torch.dtype
) -> None:
    """With a truncated law and a large vocabulary, noise is made only where p > 0: the same noise."""
    scores = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1), dtype=dtype)
    scores = scores.masked_fill(scores < scores.topk(kept).values[:, -1:], -torch.inf)
    scores[0, 500:] = -torch.inf
    some, positions = Law(scores, greedy=False), [5, 6, 6, 9]
    dense = CounterNoise(2).perturbed(some, positions)
    monkeypatch.setattr(sampling, "DENSE_VOCABULARY", 10)
    assert torch.equal(CounterNoise(2).perturbed(some, positions), dense)


def test_choose_and_accepts_do_not_depend_on_the_batch() -> None:
    noise, probs = CounterNoise(4), law(5).probs
    positions = [9, 2, 2, 30, 0]
    p, q = probs[:, 3], torch.full((5,), 0.2, dtype=torch.float64)
    chosen = noise.choose(probs, positions, Purpose.DRAFT, 6)
    passed = noise.accepts(p, q, positions, 6)
    for i, position in enumerate(positions):
        row = slice(i, i + 1)
        assert chosen[row] == noise.choose(probs[row], [position], Purpose.DRAFT, 6)
        assert passed[row] == noise.accepts(p[row], q[row], [position], 6)


def test_slots_are_positions_of_frames() -> None:
    """With K slots, position s is slot s % K of frame s // K; slot 0 of one slot is the plain stream."""
    keys = {CounterNoise(1, 0, 4).keys([position], Purpose.SYMBOL)[0] for position in range(64)}
    assert len(keys) == 64
    four, one = CounterNoise(1, 0, 4), CounterNoise(1)
    assert four.keys([8], Purpose.SYMBOL) == one.keys([2], Purpose.SYMBOL)
    assert four.keys([9], Purpose.SYMBOL) != one.keys([3], Purpose.SYMBOL)


def test_all_keys_differ() -> None:
    """Seeds (large ones too), samples, purposes, extra keys, positions: no two share a key."""
    keys = [
        key
        for seed in (0, 1, 2, 2**31, 2**32, 2**62, MAX_SEED)
        for sample in (0, 1, 2**31 - 1)
        for purpose in Purpose
        for extra in (0, 1, 4096, 2**40)
        for key in CounterNoise(seed, sample).keys(range(20), purpose, extra)
    ]
    assert len(set(keys)) == len(keys)


# ---- it looks random ----


def keys_of(noise: CounterNoise, purpose: Purpose, extra: int = 0) -> Tensor:
    """The keys of many positions at once: ``noise.keys``, which is checked on some."""
    step = 0x9E3779B97F4A7C15
    base = _mix(_mix(noise.seed + step) + noise.sample * 8 + purpose)
    base = _mix((base + extra * 0xD1342543DE82EF95) % 2**64)
    found = _mix_(torch.arange(DRAWS) * _signed(step) + _signed(base))
    some = range(0, DRAWS, 4999)
    assert found[list(some)].tolist() == noise.keys(some, purpose, extra)
    return found


def uniforms(purpose: Purpose = Purpose.SYMBOL, seed: int = 0, extra: int = 0) -> Tensor:
    return _uniform(_mix_(keys_of(CounterNoise(seed), purpose, extra)))


@cache
def gumbel() -> Tensor:
    """``CounterNoise(8).gumbel`` at many positions ``[n, V]``, checked on some."""
    noise = CounterNoise(8)
    codes = _symbol_codes(VOCABULARY, CPU)
    bits = _mix_(keys_of(noise, Purpose.SYMBOL)[:, None] ^ codes)
    found = -(-_uniform(bits).log()).log()
    some = range(0, DRAWS, 4999)
    assert torch.equal(found[list(some)], noise.gumbel(some, VOCABULARY, CPU))
    return found


@pytest.mark.parametrize("purpose", Purpose)
def test_uniforms_are_uniform(purpose: Purpose) -> None:
    """Over positions, one seed (Kolmogorov-Smirnov)."""
    assert kstest(uniforms(purpose).numpy(), "uniform").pvalue > 1e-3


def test_uniforms_are_uniform_over_seeds_and_samples() -> None:
    seeds = [CounterNoise(seed).uniforms([3], Purpose.ACCEPT) for seed in range(2_000)]
    samples = [CounterNoise(0, sample).uniforms([3], Purpose.ACCEPT) for sample in range(2_000)]
    for found in (seeds, samples):
        assert kstest(torch.cat(found).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        {"purpose": Purpose.DRAFT},
        {"purpose": Purpose.ACCEPT},
        {"purpose": Purpose.RESIDUAL},
        {"seed": 1},
        {"seed": MAX_SEED},
        {"extra": 1},
    ],
)
def test_keys_are_independent(other: dict[str, int]) -> None:
    """Purposes, seeds and extra keys: a 10 x 10 contingency table and a rank correlation."""
    first, second = uniforms(), uniforms(**other)  # type: ignore[arg-type]
    cells = ((first * 10).long() * 10 + (second * 10).long()).bincount(minlength=100)
    assert chisquare(cells.numpy()).pvalue > 1e-3
    correlation: Any = spearmanr(first.numpy(), second.numpy())
    assert abs(correlation.statistic) < 0.015


def test_neighbouring_positions_are_independent() -> None:
    first = uniforms()
    cells = ((first[:-1] * 10).long() * 10 + (first[1:] * 10).long()).bincount(minlength=100)
    assert chisquare(cells.numpy()).pvalue > 1e-3


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    """Over positions and symbols: mean 0.5772, variance pi squared over 6."""
    found = gumbel()
    assert float(found.mean()) == pytest.approx(0.5772156649, abs=0.005)
    assert float(found.var()) == pytest.approx(math.pi**2 / 6, abs=0.01)
    correlation = torch.corrcoef(found.T) - torch.eye(VOCABULARY)
    assert float(correlation.abs().max()) < 0.02


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_argmax_frequencies_match_p(temperature: float) -> None:
    some = Law(SCORES.expand(100, -1) / temperature, greedy=False)
    draws = (some.scores[0] + gumbel()).argmax(-1)
    assert torch.equal(CounterNoise(8).symbols(some, range(100)), draws[:100])
    counts = draws.bincount(minlength=VOCABULARY)
    assert chisquare(counts.numpy(), some.probs[0].numpy() * DRAWS).pvalue > 1e-3


def test_top_two_are_draws_without_replacement() -> None:
    """The best two of log p + G: the first by p, the second by p without the first."""
    p = law(1).probs[0]
    best = (SCORES + gumbel()).topk(2).indices
    cells = (best[:, 0] * VOCABULARY + best[:, 1]).bincount(minlength=VOCABULARY**2)
    expected = p[:, None] * p / (1 - p[:, None])
    off = ~torch.eye(VOCABULARY, dtype=torch.bool)
    found = cells.view(VOCABULARY, VOCABULARY)
    assert int(found[~off].sum()) == 0
    assert chisquare(found[off].numpy(), expected[off].numpy() * DRAWS).pvalue > 1e-3


def test_choose_frequencies_match_unnormalised_probs() -> None:
    probs = law(FEW).probs * 3
    found = CounterNoise(8).choose(probs, range(FEW), Purpose.RESIDUAL, 2)
    counts = found.bincount(minlength=VOCABULARY).numpy()
    assert chisquare(counts, probs[0].numpy() / 3 * FEW).pvalue > 1e-3


def test_choose_never_gives_a_symbol_without_mass() -> None:
    """Leading, inner and trailing zeros, and masses that rounding loses."""
    probs = torch.tensor([0.0, 1e-300, 0.0, 0.5, 0.0, 0.5, 1e-20, 0.0], dtype=torch.float64)
    found = CounterNoise(8).choose(probs.expand(FEW, -1), range(FEW), Purpose.DRAFT)
    assert set(found.tolist()) <= {3, 5}


@pytest.mark.parametrize(("p", "q", "rate"), [(0.2, 0.5, 0.4), (0.5, 0.2, 1), (0, 0.5, 0), (1, 1, 1)])
def test_accepts_with_probability_p_over_q(p: float, q: float, rate: float) -> None:
    """Exactly never where p is 0, exactly always where p >= q."""
    count = FEW
    p_rows, q_rows = (torch.full((count,), x, dtype=torch.float64) for x in (p, q))
    found = float(CounterNoise(6).accepts(p_rows, q_rows, range(count)).double().mean())
    assert found == (pytest.approx(rate, abs=0.02) if 0 < rate < 1 else rate)


def test_greedy_law_ignores_the_noise() -> None:
    greedy = Law(SCORES.expand(4, -1), greedy=True)
    assert CounterNoise(1).symbols(greedy, range(4)).tolist() == [VOCABULARY - 1] * 4
    assert greedy.probs.sum() == 4
    assert greedy.log_probs[0, -1] == 0

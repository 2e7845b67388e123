"""Repetition aware sampling: its closed form is the law of the two draws, and drafting keeps it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

import multispec as ms
from multispec.errors import SamplingError
from multispec.repetition_aware import RecentPenalty, RepetitionAware
from multispec.sampling import Noise
from multispec.testing import ScriptedDrafter, TableModel, enumerate_law, play, row
from multispec.verifiers import Rejection

SIZE = 4
RULES = {
    "plain": RepetitionAware(window=3, repeats=1, top_k=2),
    "mass": RepetitionAware(window=4, repeats=2, top_p=0.7, temperature=0.6),
    "other": RepetitionAware(window=3, repeats=1, top_k=3, other=True),
    "cosyvoice": RepetitionAware.cosyvoice(),
    "higgs": RepetitionAware.higgs(temperature=0.7, top_k=3, top_p=0.9, ignored=(2, 900)),
}


def _two_draws(rule: RepetitionAware, ids: list[int], p: list[float]) -> list[float]:
    """The law of the published loop, outcome by outcome: a first draw, and perhaps a second one."""
    warm = [value ** (1 / rule.temperature) for value in p]
    warm = [value / sum(warm) for value in warm]
    kept: list[int] = []
    mass = 0.0
    order = sorted(range(SIZE), key=lambda one: -warm[one])
    whole = sum(warm[one] for one in order[: rule.top_k]) if rule.top_k_first and rule.top_k else 1.0
    for symbol in order:
        if mass >= rule.top_p * whole or (rule.top_k and len(kept) >= rule.top_k):
            break
        kept.append(symbol)
        mass += warm[symbol]
    law = [0.0] * SIZE
    for first in kept:
        chance = warm[first] / mass
        if first in rule.ignored or ids[-rule.window :].count(first) < rule.repeats:
            law[first] += chance
            continue
        rest = [0.0 if rule.other and one == first else p[one] for one in range(SIZE)]
        for second in range(SIZE):
            law[second] += chance * rest[second] / sum(rest)
    return law


@pytest.mark.parametrize("name", RULES)
def test_the_closed_form_is_the_law_of_the_two_draws(name: str) -> None:
    """For every prefix of five symbols of four, and several laws, to 1e-12."""
    rule = RULES[name]
    draw = torch.Generator().manual_seed(0)
    prefixes = torch.tensor(list(itertools.product(range(SIZE), repeat=5)))[::7]
    scores = torch.randn(len(prefixes), SIZE, generator=draw, dtype=torch.float64)
    scores[::3, 1] = -torch.inf  # what a grammar bans stays banned
    found = rule(prefixes, scores).exp()
    torch.testing.assert_close(found.sum(-1), torch.ones(len(prefixes), dtype=torch.float64))
    for ids, p, law in zip(prefixes.tolist(), scores.softmax(-1).tolist(), found.tolist(), strict=True):
        assert law == pytest.approx(_two_draws(rule, ids, p), abs=1e-12)
    assert bool((found[::3, 1] == 0).all())


def test_a_symbol_that_is_alone_cannot_be_avoided() -> None:
    """Where p is one symbol, the second draw gives it again whatever is asked."""
    rule = RULES["other"]
    alone = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]])
    assert rule(torch.tensor([[0, 0]]), alone).exp().tolist() == [[1, 0, 0, 0]]


def test_ids_of_another_vocabulary_count_for_nothing() -> None:
    """A prompt may be in symbols that the stream does not have."""
    scores = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(1))
    fresh, foreign = (RULES["plain"](torch.tensor([ids]), scores) for ids in ([3], [3, 900, -1]))
    assert torch.equal(fresh, foreign)


def _drafter() -> Any:
    """What was said before, again: the very drafts that the rule is there to break."""
    return ScriptedDrafter(lambda request: ms.Draft.chain([request.history.ids[-1]] * request.budget.nodes))


def test_drafting_keeps_the_law() -> None:
    """The law of whole generations through the loop, enumerated: with drafts it is that of plain decoding."""
    model = TableModel(SIZE, seed=3)
    rule = RepetitionAware(window=2, repeats=1, top_k=2)

    def law(drafter: Any) -> Mapping[tuple[int, ...], float]:
        def outcome(noise: Noise) -> tuple[int, ...]:
            settings: dict[str, Any] = {"processors": (rule,), "max_new_tokens": 3, "verifier": Rejection()}
            found = play(model, row(noise=noise, drafter=drafter, **settings))[0]
            return tuple(found.tokens.tolist())

        return enumerate_law(outcome)

    plain, drafted = law(None), law(_drafter())
    assert set(plain) == set(drafted) and len(plain) > SIZE
    for tokens, chance in plain.items():
        assert drafted[tokens] == pytest.approx(chance, abs=1e-9)


def test_the_same_seed_gives_the_same_symbols() -> None:
    """Coupled: with any draft those of plain decoding, and fewer loops than without the rule."""
    model = TableModel(8, seed=5, scale=4.0)
    rule = RepetitionAware(window=5, repeats=1, top_k=2)
    settings: dict[str, Any] = {"processors": (rule,), "max_new_tokens": 40}
    plain = play(model, row(**settings))[0]
    assert play(model, row(drafter=_drafter(), **settings))[0].tokens.tolist() == plain.tokens.tolist()
    free = play(model, row(max_new_tokens=40))[0]

    def repeats(tokens: Sequence[int]) -> int:
        return sum(token in tokens[max(n - 5, 0) : n] for n, token in enumerate(tokens))

    assert repeats(plain.tokens.tolist()) < repeats(free.tokens.tolist())


def test_the_recent_penalty() -> None:
    """transformers' repetition penalty over the last symbols: the very same where the window holds all."""
    scores = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[0, 1, 1], [2, 3, 0]])
    expected = cast(Any, RepetitionPenaltyLogitsProcessor(1.7))(ids, scores.clone())
    assert torch.equal(RecentPenalty(1.7, 3)(ids, scores), expected)
    assert torch.equal(RecentPenalty(1.7, 1)(ids, scores), RecentPenalty(1.7, 9)(ids[:, -1:], scores))


def test_settings_outside_their_range() -> None:
    """Each is refused with what was got."""
    wrong: list[dict[str, Any]] = [{"repeats": 0}, {"top_k": -1}, {"top_p": 0.0}, {"temperature": 0.0}]
    for settings in wrong:
        with pytest.raises(SamplingError, match="Repetition aware sampling needs"):
            RepetitionAware(**cast(dict[str, Any], {"window": 3, "repeats": 1} | settings))
    with pytest.raises(SamplingError, match="A window holds one symbol at least: got 0"):
        RepetitionAware(window=0, repeats=1)
    with pytest.raises(SamplingError, match="A window holds one symbol"):
        RecentPenalty(1.1, 0)
    with pytest.raises(SamplingError, match="must be > 0: got 0"):
        RecentPenalty(0, 5)

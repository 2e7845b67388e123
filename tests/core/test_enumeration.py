"""The law of whole generations through the real loop, computed exactly, is the target's own law.

What is expected is derived here from the table of logits alone, with rules written in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import power_divergence
from torch import Tensor

from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import UnsupportedError
from multispec.history import History
from multispec.policies import FixedLength
from multispec.processing import LogitsProcessor, Pipeline, Places
from multispec.protocols import Budget, Drafter, Past, Policy, Verifier
from multispec.sampling import (
    CounterNoise,
    Noise,
    Purpose,
    Sampling,
    _mix_,
    _signed,
    _symbol_codes,
    _uniform,
)
from multispec.stream import DraftKind, Generation
from multispec.testing import EnumeratedNoise, TableModel, TreeDrafter, enumerate_law, play, row
from multispec.verifiers import Coupled, Rejection

VOCABULARY = 12
LENGTH = 3
PROMPT = (8, 9, 10, 1, 8)
SEEDS = 100_000
Scores = NDArray[np.float64]
JointLaw = dict[tuple[int, ...], float]


# ---- the independent derivation: rules in numpy, one prefix at a time ----


class Nudge:
    """A user's processor with a state: favours what the prefix and the number of calls point to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        scores[:, (int(input_ids.sum()) + self.calls) % VOCABULARY] += 3.0
        scores[:, self.calls % 2 :: 2] -= 0.7
        return scores


def nudged(scores: Scores, prefix: Sequence[int], step: int) -> Scores:
    found = scores.copy()
    found[(sum(prefix) + step) % VOCABULARY] += 3.0
    found[step % 2 :: 2] -= 0.7
    return found


def penalised(scores: Scores, prefix: Sequence[int], step: int) -> Scores:
    found = scores.copy()
    for symbol in set(prefix):
        found[symbol] = found[symbol] * 1.7 if found[symbol] < 0 else found[symbol] / 1.7
    return found


def softmax(scores: Scores) -> Scores:
    grown = np.exp(scores - scores.max())
    return np.asarray(grown / grown.sum())


def greedy(scores: Scores, prefix: Sequence[int], step: int) -> Scores:
    return np.where(np.arange(VOCABULARY) == scores.argmax(), 0.0, -np.inf)


def cooled(scores: Scores, prefix: Sequence[int], step: int) -> Scores:
    return scores / 0.7


def best_three(scores: Scores, prefix: Sequence[int], step: int) -> Scores:
    return np.where(scores >= np.sort(scores)[-3], scores, -np.inf)


def nucleus(scores: Scores, prefix: Sequence[int], step: int) -> Scores:
    probs, kept, mass = softmax(scores), np.full(VOCABULARY, -np.inf), 0.0
    for symbol in np.argsort(-probs):
        if mass < 0.8:
            kept[symbol] = scores[symbol]
        mass += probs[symbol]
    return kept


def not_below(scores: Scores, prefix: Sequence[int], step: int) -> Scores:
    probs = softmax(scores)
    return np.where(probs >= 0.2 * probs.max(), scores, -np.inf)


def untouched(scores: Scores, prefix: Sequence[int], step: int) -> Scores:
    return scores


@dataclass(frozen=True)
class Setting:
    """One way of sampling: ours, and the rule it stands for; ``support`` is that of the raw logits."""

    sampling: Mapping[str, Any]
    rule: Callable[[Scores, Sequence[int], int], Scores]
    support: int
    processors: Callable[[], tuple[LogitsProcessor, ...]] = tuple


SETTINGS = {
    "greedy": Setting({"temperature": 0.0}, greedy, 12),
    "temperature": Setting({"temperature": 0.7}, cooled, 3),
    "top_k": Setting({"top_k": 3}, best_three, 12),
    "top_p": Setting({"top_p": 0.8}, nucleus, 4),
    "min_p": Setting({"min_p": 0.2}, not_below, 4),
    "repetition": Setting({"repetition_penalty": 1.7}, penalised, 3),
    "foreign": Setting({}, nudged, 3, lambda: (Nudge(),)),
}


@lru_cache
def target(support: int) -> TableModel:
    return TableModel(order=1, seed=11, scale=1.0, support=support)


@lru_cache
def draft(support: int) -> TableModel:
    """Near the target, so that drafts are accepted sometimes."""
    generator = torch.Generator().manual_seed(5)
    near = target(VOCABULARY).table
    near = near + 0.5 * torch.randn(near.shape, generator=generator, dtype=near.dtype)
    table = near.masked_fill(near < near.topk(support).values[:, -1:], -torch.inf)
    return TableModel(table=table, strict=False)


def expected_law(setting: Setting, length: int = LENGTH) -> JointLaw:
    """The product of the conditional laws, read off the table."""
    table = target(setting.support).table.numpy()
    law: JointLaw = {(): 1.0}
    for step in range(1, length + 1):
        grown: JointLaw = {}
        for prefix, mass in law.items():
            ids = (*PROMPT, *prefix)
            probs = softmax(setting.rule(table[ids[-1]], ids, step))
            grown |= {(*prefix, s): mass * float(p) for s, p in enumerate(probs) if p > 0}
        law = grown
    return law


# ---- the loop under test ----


@dataclass(frozen=True)
class Once:
    """Drafts in the first round after the prompt, and not from then on."""

    name: ClassVar[str] = "once"
    nodes: int

    def budget(self, past: Past, default_nodes: int) -> Budget:
        return Budget(nodes=self.nodes if past.rounds == 1 else 0)


@dataclass
class Tally:
    """How much was drafted and accepted over all branches: a test of drafts that are never tried is void."""

    drafted: int = 0
    accepted: int = 0

    def add(self, result: Generation) -> tuple[int, ...]:
        self.drafted += result.report.drafted
        self.accepted += result.report.accepted
        return tuple(result.tokens.tolist())


def settings_of(
    setting: Setting, drafter: Drafter | None, verifier: Verifier, policy: Policy, **changes: Any
) -> Any:
    end = len(PROMPT) + LENGTH
    return row(
        PROMPT,
        sampling=Sampling(**{**setting.sampling, "seed": changes.pop("seed", 0)}),
        processors=setting.processors(),
        drafter=drafter,
        verifier=verifier,
        policy=policy,
        max_new_tokens=LENGTH + 8,
        stops=(lambda ids, scores: len(ids) >= end,),
        **changes,
    )


def enumerated(
    setting: Setting, drafter: Drafter | None, policy: Policy, verifier: Verifier
) -> tuple[JointLaw, Tally]:
    tally = Tally()

    def run(noise: Noise) -> tuple[int, ...]:
        asked = settings_of(setting, drafter, verifier, policy, noise=noise)
        return tally.add(play(target(setting.support), asked)[0])

    return enumerate_law(run, horizon=LENGTH), tally


def assert_same_law(found: JointLaw, expected: JointLaw) -> None:
    assert sum(found.values()) == pytest.approx(1, abs=1e-9)
    assert set(found) == {key for key, mass in expected.items() if mass > 0}
    assert max(abs(found[key] - expected[key]) for key in found) < 1e-9


DRAFTERS: dict[str, Callable[[], Drafter | None]] = {
    "plain": lambda: None,
    "draft_model": lambda: DraftModel(draft(2), 2),
    "prompt_lookup": lambda: PromptLookup(num_draft_tokens=2),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_rejection_has_the_law_of_the_target(name: str, drafter: str) -> None:
    """Three symbols, every setting, every kind of chain: within 1e-9."""
    setting = SETTINGS[name]
    found, tally = enumerated(setting, DRAFTERS[drafter](), FixedLength(), Rejection())
    assert_same_law(found, expected_law(setting))
    assert (tally.drafted > 0) == (drafter != "plain")
    assert drafter == "plain" or name == "greedy" or 0 < tally.accepted < tally.drafted


def test_rejection_has_the_law_of_a_full_vocabulary() -> None:
    """All twelve symbols possible everywhere, a draft model that covers two of them, two symbols."""
    setting = Setting({"temperature": 0.7}, cooled, VOCABULARY)
    drafter = DraftModel(draft(2), 1)
    tally = Tally()

    def run(noise: Noise) -> tuple[int, ...]:
        asked = settings_of(setting, drafter, Rejection(), FixedLength(), noise=noise)
        return tally.add(play(target(VOCABULARY), asked)[0])[:2]

    assert_same_law(enumerate_law(run, horizon=2), expected_law(setting, 2))
    assert 0 < tally.accepted < tally.drafted


@pytest.mark.parametrize("name", SETTINGS)
def test_plain_coupled_has_the_law_of_the_target(name: str) -> None:
    """Without a draft, the default verifier samples p."""
    setting = SETTINGS[name]
    found, _ = enumerated(setting, None, FixedLength(), Coupled())
    assert_same_law(found, expected_law(setting))


# Rule, kind, branching, symbols per law of the target and of the drafter.
TREES: list[tuple[str, DraftKind, tuple[int, ...], int, int]] = [
    ("temperature", "point", (2, 2), 3, 4),
    ("repetition", "point", (2, 2), 3, 4),
    ("temperature", "sampled", (2, 2), 2, 2),
    ("temperature", "sampled", (3,), 2, 3),
    ("repetition", "sampled", (2, 1), 2, 2),
    ("temperature", "without_replacement", (2, 2), 3, 2),
    ("repetition", "without_replacement", (2, 1), 2, 3),
    ("repetition", "without_replacement", (3,), 3, 4),
]


@pytest.mark.parametrize(("name", "kind", "branching", "symbols", "drafted"), TREES)
def test_trees_keep_the_law(
    name: str, kind: DraftKind, branching: tuple[int, ...], symbols: int, drafted: int
) -> None:
    """Siblings that are given, independent, or drawn one after the other: within 1e-9."""
    setting = replace(SETTINGS[name], support=symbols)
    drafter = TreeDrafter(draft(drafted), branching, kind)
    found, tally = enumerated(setting, drafter, Once(6), Rejection())
    assert_same_law(found, expected_law(setting))
    assert 0 < tally.accepted < tally.drafted


def test_a_wrong_q_is_noticed() -> None:
    """The enumeration itself can fail: tokens of one law, q of another."""
    setting = SETTINGS["temperature"]

    class Liar(TreeDrafter):
        def _propose(self, request: Any) -> Any:
            draft = super()._propose(request)
            if draft.q is not None:
                object.__setattr__(draft, "q", (draft.q + draft.q.roll(1, -1)) / 2)
            return draft

    found, _ = enumerated(setting, Liar(draft(2), (1, 1), "sampled"), FixedLength(), Rejection())
    expected = expected_law(setting)
    assert max(abs(found.get(key, 0) - mass) for key, mass in expected.items()) > 1e-3


# ---- the default verifier: equal to plain sampling seed by seed, which has the law ----


def gumbel(seeds: int) -> Tensor:
    """``CounterNoise(seed).gumbel`` at the first three positions of many seeds at once ``[n, 3, V]``."""
    step = _signed(0x9E3779B97F4A7C15)
    base = _mix_(_mix_(_mix_(torch.arange(seeds) + step) + Purpose.SYMBOL))
    keys = _mix_(base[:, None] + torch.arange(LENGTH) * step)
    codes = _symbol_codes(VOCABULARY, torch.device("cpu"))
    uniform = _uniform(_mix_(keys[:, :, None] ^ codes))
    return -(-uniform.log()).log()


@pytest.fixture(scope="module")
def noise() -> Tensor:
    found = gumbel(SEEDS)
    for seed in range(0, SEEDS, 1013):
        own = CounterNoise(seed).gumbel(range(LENGTH), VOCABULARY, torch.device("cpu"))
        assert torch.equal(found[seed], own)
    return found


def sampled(setting: Setting, noise: Tensor) -> Tensor:
    """What plain sampling emits for every seed ``[n, 3]``, from the laws of all prefixes."""
    singles = [(a,) for a in range(VOCABULARY)]
    pairs = [(a, b) for a in range(VOCABULARY) for b in range(VOCABULARY)]
    prefixes: list[tuple[int, ...]] = [(), *singles, *pairs]
    pipeline = Pipeline(Sampling(**setting.sampling), VOCABULARY, processors=setting.processors())
    table = target(setting.support).table
    logits = torch.stack([table[(*PROMPT, *prefix)[-1]] for prefix in prefixes])
    law = pipeline.law(logits, Places(History(PROMPT), tuple(prefixes)))
    scores = law.probs.log() if law.greedy else law.scores
    x0 = (scores[0] + noise[:, 0]).argmax(-1)
    x1 = (scores[1 + x0] + noise[:, 1]).argmax(-1)
    x2 = (scores[1 + VOCABULARY + x0 * VOCABULARY + x1] + noise[:, 2]).argmax(-1)
    return torch.stack([x0, x1, x2], 1)


def g_test(draws: Tensor, expected: JointLaw) -> float:
    """The p-value of the draws under the expected joint law; rare outcomes are put together."""
    codes = draws @ torch.tensor([VOCABULARY**2, VOCABULARY, 1])
    counts = torch.bincount(codes, minlength=VOCABULARY**3).double().numpy()
    law = np.zeros(VOCABULARY**3)
    for (a, b, c), mass in expected.items():
        law[(a * VOCABULARY + b) * VOCABULARY + c] = mass
    assert counts[law == 0].sum() == 0
    common = law * len(draws) >= 5
    cells = [np.append(x[common], x[~common].sum()) for x in (counts, law * len(draws))]
    if cells[1][-1] == 0:
        cells = [cell[:-1] for cell in cells]
    return float(power_divergence(cells[0], cells[1], lambda_="log-likelihood").pvalue)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "greedy"])
def test_seeds_follow_the_law(name: str, noise: Tensor) -> None:
    """The joint law of three symbols over 100,000 seeds (G-test)."""
    setting = SETTINGS[name]
    assert g_test(sampled(setting, noise), expected_law(setting)) > 1e-3


def test_seeds_follow_the_law_of_a_full_vocabulary(noise: Tensor) -> None:
    """The same where all 1,728 outcomes are possible."""
    setting = Setting({"temperature": 0.7}, cooled, VOCABULARY)
    assert g_test(sampled(setting, noise), expected_law(setting)) > 1e-3


COUPLED: dict[str, Callable[[], Drafter | None]] = {
    **DRAFTERS,
    "random_trees": lambda: TreeDrafter(),
    "point_trees": lambda: TreeDrafter(draft(4), (2, 2), "point"),
    "sampled_trees": lambda: TreeDrafter(draft(4), (2, 2), "sampled"),
}


@pytest.mark.parametrize("drafter", COUPLED)
@pytest.mark.parametrize("name", SETTINGS)
def test_coupled_emits_what_the_seed_says(name: str, drafter: str, noise: Tensor) -> None:
    """Any drafter, chain or tree: the very symbols of plain sampling, seed by seed."""
    setting, count = SETTINGS[name], 24
    method = COUPLED[drafter]()
    rows = [settings_of(setting, method, Coupled(), FixedLength(), seed=seed) for seed in range(count)]
    found = play(target(setting.support), *rows)
    assert torch.equal(torch.stack([one.tokens for one in found]), sampled(setting, noise[:count]))
    accepted = sum(one.report.accepted for one in found)
    assert drafter in ("plain", "random_trees") or name == "greedy" or accepted > 0


# ---- the enumerating noise refuses what it cannot do ----


def test_enumeration_refuses_two_laws_at_one_position() -> None:
    """A coupled draft model shares Gumbel noise with the target: no product of branches."""
    setting = SETTINGS["temperature"]
    with pytest.raises(UnsupportedError, match="share the noise of position"):
        enumerated_raw(setting, DraftModel(draft(2), 2))


def enumerated_raw(setting: Setting, drafter: Drafter) -> None:
    policy, noise = FixedLength(), EnumeratedNoise()
    play(target(3), settings_of(setting, drafter, Coupled(), policy, noise=noise))


def test_enumeration_refuses_a_draw_that_is_used_twice() -> None:
    """Noise is fresh at every draw."""
    noise = EnumeratedNoise()
    noise.choose(torch.tensor([[0.5, 0.5]]), [0], Purpose.DRAFT, 7)
    with pytest.raises(AssertionError, match="used twice"):
        noise.choose(torch.tensor([[0.5, 0.5]]), [0], Purpose.DRAFT, 7)

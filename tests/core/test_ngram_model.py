"""The Kneser-Ney model against its formula, and drafts from its q."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multispec.drafters.ngram_model import NgramCounts, NgramModel
from multispec.errors import IncompatibleModelsError, UsageError
from multispec.policies import FixedLength
from multispec.processing import Pipeline
from multispec.protocols import Budget
from multispec.sampling import CounterNoise, Noise, Sampling
from multispec.stream import Slot, StreamSpec
from multispec.testing import TableModel, enumerate_law, play, row
from multispec.verifiers import Rejection
from tests.core.drafting import ask, begin, same_as_plain

SIZE = 4
TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=3)


class ByHand:
    """The same model from sets and lists: texts end with a symbol of their own, SIZE."""

    def __init__(self, texts: Sequence[Sequence[int]], order: int) -> None:
        self.joined = [x for text in texts for x in (*text, SIZE)]
        self.order = order

    def grams(self, k: int) -> list[tuple[int, ...]]:
        return [tuple(self.joined[i : i + k]) for i in range(len(self.joined) - k + 1)]

    def count(self, gram: tuple[int, ...]) -> int:
        k = len(gram)
        if gram[-1] == SIZE:
            return 0
        if k == self.order:
            return self.grams(k).count(gram)
        before = {longer[0] for longer in self.grams(k + 1) if longer[1:] == gram}
        return len(before) + (gram == tuple(self.joined[:k]))

    def discount(self, k: int) -> float:
        counts = [self.count(gram) for gram in {*self.grams(k)}]
        n1, n2 = counts.count(1), counts.count(2)
        return n1 / (n1 + 2 * n2) if n1 and n2 else 0.5

    def p(self, w: tuple[int, ...], x: int) -> float:
        k = len(w) + 1
        counts = {y: self.count((*w, y)) for y in range(SIZE)}
        total = sum(counts.values())
        lower = self.p(w[1:], x) if w else 1 / SIZE
        if not total:
            return lower
        d = self.discount(k)
        left = d * sum(c > 0 for c in counts.values()) / total
        return max(counts[x] - d, 0) / total + left * lower


@given(TEXTS, st.lists(st.integers(0, 2), max_size=4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_kneser_ney_by_its_formula(texts: list[list[int]], context: list[int], order: int) -> None:
    """All symbols behind any context: to 1e-12, and summing to 1 with mass everywhere."""
    model, by_hand = NgramCounts(texts, vocab_size=SIZE, order=order), ByHand(texts, order)
    found = model.probs(context)
    w = tuple(context[max(len(context) - order + 1, 0) :])
    while w and not any(by_hand.count((*w, x)) for x in range(SIZE)):
        w = w[1:]
    # The longest context that is known decides; a longer one that is not says nothing.
    assert found.tolist() == pytest.approx([by_hand.p(w, x) for x in range(SIZE)], abs=1e-12)
    assert found.sum() == pytest.approx(1) and (found > 0).all()


def model(**changes: Any) -> NgramModel:
    settings: dict[str, Any] = {"references": [[0, 1, 2, 0, 1, 3, 0, 1, 2]], "vocab_size": SIZE, "order": 3}
    return NgramModel(**(settings | changes))


def test_q_is_the_law_that_the_symbols_were_drawn_from() -> None:
    """Temperature and top-k of the row apply; each row of q is the n-gram law behind its own prefix."""
    drafter, rules = model(), Pipeline(Sampling(temperature=0.5, top_k=2), SIZE)
    draft = ask(begin(drafter, [2, 0], vocab_size=SIZE), [2, 0], coupled=False, pipeline=rules)
    assert draft.kind == "sampled" and draft.q is not None and len(draft) == 5
    prefix = [2, 0]
    for token, q in zip(draft.ids, draft.q, strict=True):
        best = NgramCounts(drafter.references, vocab_size=SIZE, order=3).probs(prefix) ** 2
        best[best < sorted(best)[-2]] = 0  # equals of the second stay
        assert q.tolist() == pytest.approx((best / best.sum()).tolist())
        prefix.append(token)


def test_point_drafts_are_the_best_symbols() -> None:
    session = begin(model(sample=False), [3, 0], vocab_size=SIZE)
    rules = Pipeline(Sampling(), SIZE)
    draft = ask(session, [3, 0], nodes=2, coupled=False, pipeline=rules)
    assert draft.kind == "point" and draft.ids == [1, 2]
    greedy = ask(
        begin(model(), [3, 0], vocab_size=SIZE),
        [3, 0],
        nodes=2,
        pipeline=Pipeline(Sampling(temperature=0), SIZE),
    )
    assert greedy.ids == [1, 2]


def test_unsure_laws_end_the_draft_behind_their_symbol() -> None:
    session, rules = begin(model(sample=False), [3, 0], vocab_size=SIZE), Pipeline(Sampling(), SIZE)
    assert len(ask(session, [3, 0], pipeline=rules, budget=Budget(9, confidence=0.99))) == 1
    assert len(ask(session, [3, 0], pipeline=rules, budget=Budget(9, confidence=0.0))) == 9


def test_parallel_slots_stay_within_their_slot() -> None:
    spec = StreamSpec(slots=(Slot(size=2), Slot(size=2, offset=2)), parallel=True)
    session = begin(model(), [0, 2], vocab_size=SIZE, spec=spec)
    draft = ask(session, [0, 2], nodes=4, pipeline=Pipeline(Sampling(), SIZE))
    assert [token // 2 for token in draft.ids] == [0, 1, 0, 1]


@pytest.mark.usefixtures("unchecked")
def test_rejection_keeps_the_law_of_the_target() -> None:
    """Two symbols with two drafted, every draw enumerated: within 1e-9 of plain decoding."""
    target = TableModel(SIZE, seed=2, support=3)

    def law(drafter: NgramModel | None) -> dict[tuple[int, ...], float]:
        def run(noise: Noise) -> tuple[int, ...]:
            asked = row(
                [1],
                drafter=drafter,
                verifier=Rejection(),
                policy=FixedLength(num_draft_tokens=2),
                max_new_tokens=3,
                noise=noise,
            )
            return tuple(play(target, asked)[0].tokens.tolist()[:2])

        return enumerate_law(run, horizon=2)

    plain, drafted = law(None), law(model())
    assert set(plain) == set(drafted)
    assert max(abs(plain[key] - drafted[key]) for key in plain) < 1e-9


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sample", [True, False])
def test_seeds_decide(sample: bool) -> None:
    target = TableModel(SIZE, seed=1, scale=3.0)
    texts = [play(target, row([1], sampling=Sampling(seed=9), max_new_tokens=60))[0].tokens.tolist()]
    assert same_as_plain(model(references=texts, sample=sample), [target]) > 5


def test_the_shared_noise_guesses_what_the_target_draws() -> None:
    """A draft of a coupled row is what plain sampling from q emits with this seed."""
    noise, rules = CounterNoise(3), Pipeline(Sampling(), SIZE)
    found = ask(begin(model(), [1], vocab_size=SIZE), [1], pipeline=rules, noise=noise)
    again = ask(begin(model(), [1], vocab_size=SIZE), [1], pipeline=rules, noise=noise)
    other = ask(begin(model(), [1], vocab_size=SIZE), [1], nodes=40, pipeline=rules, noise=CounterNoise(4))
    assert found.kind == "point" and found.ids == again.ids and {*other.ids} == {0, 1, 2, 3}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"order": 0}, "order >= 1"),
        ({"vocab_size": 0}, "vocab_size >= 1"),
        ({"references": []}, "got 0 texts"),
        ({"references": [[]]}, "without ids"),
        ({"vocab_size": 3}, "largest id 3"),
        ({"num_draft_tokens": 0}, "num_draft_tokens >= 1"),
    ],
)
def test_settings_that_cannot_be_right(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        model(**changes)


def test_targets_of_another_vocabulary() -> None:
    with pytest.raises(IncompatibleModelsError, match="of 4 symbols, and the target has 12"):
        begin(model(), [1])

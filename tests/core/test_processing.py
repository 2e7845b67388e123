"""From logits to scores: transformers' own numbers, on the prefix that leads to each place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import generation as hf

from multispec.errors import UnsupportedError
from multispec.history import History
from multispec.processing import (
    BadWords,
    Foreign,
    LogitsProcessor,
    MinNewTokens,
    MinP,
    Pipeline,
    Places,
    Pointwise,
    RepetitionPenalty,
    Rule,
    Temperature,
    TopK,
    TopP,
    TypicalP,
)
from multispec.sampling import Sampling
from multispec.stream import Allowed, Forced
from multispec.testing import FakeModel, ScriptedDrafter, TableModel, TreeDrafter, play, row
from multispec.tree import path_to
from multispec.verifiers import Coupled, Rejection

VOCABULARY = 12
PROMPT = (3, 1, 2, 3)
OUTPUT = (5, 1, 1, 7)
# The root, a chain below it, and siblings: parents and symbols of a drafted tree.
PARENTS = (-1, 0, 0, 1, 3)
TOKENS = (1, 2, 9, 3, 1)
PATHS = tuple(tuple(TOKENS[node] for node in path_to(PARENTS, end)) for end in range(-1, len(PARENTS)))
WORDS = ((4,), (1, 2), (7, 1, 2), (3, 1, 2, 3), (2, 2), (1, 2, 3, 1, 6), (9, 9, 9, 9, 9, 9))


def history(prompt: Sequence[int] = PROMPT, output: Sequence[int] = OUTPUT) -> History:
    found = History(prompt)
    found.extend(output)
    return found


def logits(places: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(places, VOCABULARY, generator=generator, dtype=dtype) * 3


def tied(places: int, dtype: torch.dtype) -> Tensor:
    return (logits(places, dtype) / 2).round()


def one_by_one(processor: LogitsProcessor, scores: Tensor, places: Places) -> Tensor:
    """transformers' processor on every explicit prefix."""
    rows = [
        processor(torch.tensor([[*places.history.ids, *path]]), scores[n : n + 1].clone())
        for n, path in enumerate(places.drafted)
    ]
    return torch.cat(rows)


POINTWISE: list[tuple[Rule, Any]] = [
    (Temperature(0.7), hf.TemperatureLogitsWarper(0.7)),
    (TopK(4), hf.TopKLogitsWarper(4)),
    (TopK(1), hf.TopKLogitsWarper(1)),
    (TopK(50), hf.TopKLogitsWarper(50)),
    (TopP(0.8), hf.TopPLogitsWarper(0.8)),
    (TopP(0.05), hf.TopPLogitsWarper(0.05)),
    (MinP(0.1), hf.MinPLogitsWarper(0.1)),
    (MinP(1.0), hf.MinPLogitsWarper(1.0)),
    (TypicalP(0.6), hf.TypicalLogitsWarper(0.6)),
    (TypicalP(0.05), hf.TypicalLogitsWarper(0.05)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [logits, tied])
@pytest.mark.parametrize(("ours", "theirs"), POINTWISE, ids=lambda rule: type(rule).__name__)
def test_warpers_equal_transformers(
    ours: Rule, theirs: Any, make: Callable[[int, torch.dtype], Tensor], dtype: torch.dtype
) -> None:
    """Bit for bit, on all places at once, ties included."""
    scores, places = make(200, dtype), Places(history(), ((),) * 200)
    assert torch.equal(ours(scores, places), theirs(None, scores))


PREFIX: list[tuple[Rule, Any]] = [
    (RepetitionPenalty(1.3), hf.RepetitionPenaltyLogitsProcessor(1.3)),
    (RepetitionPenalty(0.8), hf.RepetitionPenaltyLogitsProcessor(0.8)),
    (
        BadWords(WORDS),
        hf.NoBadWordsLogitsProcessor([list(word) for word in WORDS], eos_token_id=None),
    ),
    (BadWords(((4,), (6,))), hf.NoBadWordsLogitsProcessor([[4], [6]], eos_token_id=None)),
    (
        MinNewTokens(6, (0, 11)),
        hf.MinNewTokensLengthLogitsProcessor(len(PROMPT), 6, [0, 11], device="cpu"),
    ),
    (
        MinNewTokens(2, (0,)),
        hf.MinNewTokensLengthLogitsProcessor(len(PROMPT), 2, [0], device="cpu"),
    ),
    (
        Foreign(hf.SequenceBiasLogitsProcessor([[[4], 1.5], [[1, 2], -3.0], [[1, 2, 3], 2.0]])),
        hf.SequenceBiasLogitsProcessor([[[4], 1.5], [[1, 2], -3.0], [[1, 2, 3], 2.0]]),
    ),
    (Foreign(hf.NoRepeatNGramLogitsProcessor(2)), hf.NoRepeatNGramLogitsProcessor(2)),
]
DRAFTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "chain": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 1)),
    "tree": PATHS,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("drafted", DRAFTS)
@pytest.mark.parametrize("output", [(), (5, 1), OUTPUT])
@pytest.mark.parametrize(("ours", "theirs"), PREFIX, ids=lambda rule: type(rule).__name__)
def test_prefix_rules_equal_transformers_on_each_prefix(
    ours: Rule, theirs: Any, output: Sequence[int], drafted: str, dtype: torch.dtype
) -> None:
    """Committed symbols and the drafted ones on the way, for chains and trees."""
    places = Places(history(output=output), DRAFTS[drafted])
    scores = logits(len(places), dtype)
    assert torch.equal(ours(scores, places), one_by_one(theirs, scores, places))


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_bad_words_equal_transformers(words: list[list[int]], prompt: list[int], drafted: list[int]) -> None:
    """Words of any length after prompts of any length, shorter ones included."""
    places = Places(History(prompt), (tuple(drafted),))
    theirs = hf.NoBadWordsLogitsProcessor(words, eos_token_id=None)
    scores = logits(1)
    found = BadWords(tuple(map(tuple, words)))(scores, places)
    assert torch.equal(found, one_by_one(theirs, scores, places))


def test_long_bad_words_do_not_hide_short_ones_behind_short_prompts() -> None:
    """A prompt shorter than the longest word is still seen whole."""
    rule = BadWords(((1, 2, 3), (9, 9, 9, 9, 9)))
    found = rule(logits(1), Places(History((0, 1, 2)), ((),)))
    assert (found[0] == -torch.inf).nonzero().flatten().tolist() == [3]


def test_all_rules_together_equal_transformers_in_its_order() -> None:
    """A whole pipeline against transformers' list of processors and warpers."""
    words = [list(word) for word in WORDS]
    asked = Sampling(
        temperature=0.7,
        top_k=8,
        top_p=0.9,
        min_p=0.02,
        typical_p=0.9,
        repetition_penalty=1.3,
        bad_words=words,
        min_new_tokens=6,
    )
    theirs = [
        hf.RepetitionPenaltyLogitsProcessor(1.3),
        hf.NoBadWordsLogitsProcessor(words, eos_token_id=None),
        hf.MinNewTokensLengthLogitsProcessor(len(PROMPT), 6, [0], device="cpu"),
        hf.TemperatureLogitsWarper(0.7),
        hf.TopKLogitsWarper(8),
        hf.TopPLogitsWarper(0.9),
        hf.MinPLogitsWarper(0.02),
        hf.TypicalLogitsWarper(0.9),
    ]
    places, scores = Places(history(), PATHS), logits(len(PATHS))
    expected = scores
    for processor in theirs:
        expected = one_by_one(processor, expected, places)
    pipeline = Pipeline(asked, VOCABULARY, end_ids=(0,))
    assert torch.equal(pipeline.law(scores, places).scores, expected)


def test_transformers_processors_can_be_handed_in() -> None:
    """The same list as foreign processors gives the same scores."""
    theirs: list[Any] = [
        hf.RepetitionPenaltyLogitsProcessor(1.3),
        hf.NoRepeatNGramLogitsProcessor(2),
        hf.TemperatureLogitsWarper(0.7),
        hf.TopPLogitsWarper(0.9),
    ]
    places, scores = Places(history(), PATHS), logits(len(PATHS))
    expected = scores
    for processor in theirs:
        expected = one_by_one(processor, expected, places)
    pipeline = Pipeline(Sampling(), VOCABULARY, processors=theirs)
    assert torch.equal(pipeline.law(scores, places).scores, expected)


@pytest.mark.parametrize("output", [(), OUTPUT])
def test_presence_and_frequency_penalties_count_the_output(output: Sequence[int]) -> None:
    """Once and per occurrence, over output and drafted symbols, not over the prompt."""
    asked = Sampling(presence_penalty=0.7, frequency_penalty=0.3)
    pipeline, scores = Pipeline(asked, VOCABULARY), logits(len(PATHS))
    found = pipeline.law(scores, Places(history(output=output), PATHS)).scores
    for place, path in enumerate(PATHS):
        seen = [*output, *path]
        for symbol in range(VOCABULARY):
            loss = 0.7 * (symbol in seen) + 0.3 * seen.count(symbol)
            assert float(found[place, symbol]) == pytest.approx(float(scores[place, symbol]) - loss, abs=1e-6)


def test_penalties_follow_what_is_committed() -> None:
    """The counts kept over many rounds equal fresh ones."""
    asked = Sampling(presence_penalty=0.7, frequency_penalty=0.3, repetition_penalty=1.2)
    pipeline, kept, scores = Pipeline(asked, VOCABULARY), history(output=()), logits(len(PATHS))
    for tokens in ((5,), (1, 1, 7), (2, 5, 5)):
        pipeline.law(scores, Places(kept, PATHS))
        kept.extend(tokens)
    fresh = history(output=(5, 1, 1, 7, 2, 5, 5))
    found, expected = (pipeline.law(scores, Places(h, PATHS)).scores for h in (kept, fresh))
    assert torch.equal(found, expected)


def test_bias_and_allowed_ids() -> None:
    asked = Sampling(logit_bias={2: 1.5, 7: -4.0}, allowed_ids=[2, 7, 8])
    scores = logits(3)
    found = Pipeline(asked, VOCABULARY).law(scores, Places(history(), ((),) * 3)).scores
    expected = torch.full_like(scores, -torch.inf)
    expected[:, [2, 7, 8]] = scores[:, [2, 7, 8]] + torch.tensor([1.5, -4.0, 0.0])
    assert torch.equal(found, expected)


def test_grammar_sees_each_prefix() -> None:
    """Forced symbols are certain, even without mass; allowed ones keep their scores."""

    def grammar(generated: Sequence[int]) -> Forced | Allowed | None:
        rules = (Forced(4), Allowed((1, 2)), None)
        return rules[len(generated) % 3]

    pipeline = Pipeline(Sampling(), VOCABULARY, grammar=grammar)
    scores = logits(3)
    scores[0, 4] = -torch.inf
    found = pipeline.law(scores, Places(history(output=(1, 1, 1)), ((), (4,), (4, 1)))).scores
    assert found[0].softmax(-1)[4] == 1
    assert (found[1] > -torch.inf).nonzero().flatten().tolist() == [1, 2]
    assert torch.equal(found[2], scores[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_processed_in_float32(dtype: torch.dtype) -> None:
    some = logits(2).to(dtype)
    found = Pipeline(Sampling(temperature=0.7), VOCABULARY).law(some, Places(history(), ((),) * 2))
    assert torch.equal(found.scores, some.float() / 0.7)


def test_greedy_leaves_warpers_out() -> None:
    """Temperature and truncation change no argmax, and no softmax is taken at temperature 0."""
    asked = Sampling(temperature=0.0, top_k=3, top_p=0.5, min_p=0.3, typical_p=0.5)
    assert Pipeline(asked, VOCABULARY).rules == []


# ---- foreign processors: how often they are called, on what, and what becomes of their state ----


class Follower:
    """Asserts that every prefix extends the last one it was shown by exactly one symbol."""

    shown: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self) -> None:
        self.last: tuple[int, ...] = ()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ids = tuple(input_ids[0].tolist())
        assert input_ids.shape[0] == scores.shape[0] == 1
        assert not self.last or ids[:-1] == self.last
        self.last = ids
        Follower.shown.append(ids)
        scores[:, ids[-1]] -= 1.0
        return scores


class Counter:
    """Favours another symbol at every call: a leaked call changes everything after it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        scores[:, (5 * self.calls) % VOCABULARY] += 4.0
        return scores


DRAFTERS: dict[str, Callable[[list[int]], Any]] = {
    "right": lambda plain: ScriptedDrafter(plain),
    "wrong": lambda plain: ScriptedDrafter([(token + 1) % VOCABULARY for token in plain]),
    "half": lambda plain: ScriptedDrafter([t if i % 3 else 0 for i, t in enumerate(plain)]),
    "random_trees": lambda plain: TreeDrafter(),
    "model_trees": lambda plain: TreeDrafter(TableModel(seed=4, scale=1.0), (2, 2), "sampled"),
}


@pytest.mark.parametrize("processor", [Follower, Counter])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_state_follows_accepted_symbols_only(drafter: str, processor: type[Follower] | type[Counter]) -> None:
    """A stateful processor never sees a rejected draft: the output is that of plain sampling."""
    target = TableModel(seed=4)
    asked: dict[str, Any] = {"processors": (processor(),), "max_new_tokens": 20}
    plain = play(target, row(**asked))[0].tokens.tolist()
    found = play(target, row(drafter=DRAFTERS[drafter](plain), **asked))[0]
    assert found.tokens.tolist() == plain
    assert found.report.drafted > 0
    assert found.report.notes == []


def test_the_users_object_is_never_called() -> None:
    """State lives in copies, so one object serves many rows and many runs."""
    counter = Counter()
    target = TableModel(seed=4)
    first = play(target, *[row(processors=(counter,), drafter=TreeDrafter())] * 3)
    again = play(target, row(processors=(counter,)))
    assert counter.calls == 0
    assert {tuple(one.tokens.tolist()) for one in (*first, *again)} == {tuple(again[0].tokens.tolist())}


def test_rejection_also_keeps_state_apart() -> None:
    """Under rejection the drafter asks for its own laws, on copies."""
    Follower.shown.clear()
    drafter = TreeDrafter(TableModel(seed=5, scale=1.0), (2, 1), "sampled")
    found = play(
        TableModel(seed=4),
        row(drafter=drafter, verifier=Rejection(), processors=(Follower(),), max_new_tokens=12),
    )[0]
    emitted = (1, *found.tokens.tolist())
    assert found.report.notes == []
    assert found.report.accepted < found.report.drafted
    assert {emitted[: n + 1] for n in range(12)} <= set(Follower.shown)


def test_foreign_processors_are_called_once_per_place() -> None:
    Follower.shown.clear()
    rule = Foreign(Follower())
    rule(logits(len(PATHS)), Places(history(), PATHS))
    assert Follower.shown == [(*PROMPT, *OUTPUT, *path) for path in PATHS]


def test_pointwise_warpers_are_called_once_per_round() -> None:
    class Counting(hf.TopKLogitsWarper):
        calls = 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            Counting.calls += 1
            return super().__call__(input_ids, scores)

    Counting.__module__, Counting.__name__ = "transformers.fake", "TopKLogitsWarper"
    pipeline = Pipeline(Sampling(), VOCABULARY, processors=[Counting(4)])
    assert isinstance(pipeline.rules[0], Pointwise)
    scores, places = logits(len(PATHS)), Places(history(), PATHS)
    assert torch.equal(pipeline.law(scores, places).scores, TopK(4)(scores, places))
    assert Counting.calls == 1


def test_left_padding_is_shown_to_foreign_processors() -> None:
    Follower.shown.clear()
    padded = History((3, 4), padding=(0, 0, 0))
    Foreign(Follower())(logits(1), Places(padded, ((7,),)))
    assert Follower.shown == [(0, 0, 0, 3, 4, 7)]


def test_a_processor_that_cannot_be_copied_is_refused() -> None:
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores

    with pytest.raises(UnsupportedError, match="Locked cannot be copied .*__deepcopy__"):
        Pipeline(Sampling(), VOCABULARY, processors=[Locked()])


def test_guidance_with_a_cache_of_its_own_is_refused() -> None:
    guided = object.__new__(hf.UnbatchedClassifierFreeGuidanceLogitsProcessor)
    with pytest.raises(UnsupportedError, match="cannot follow a rejected draft.*guidance=scale"):
        Pipeline(Sampling(), VOCABULARY, processors=[guided])


def test_forks_do_not_move_each_other() -> None:
    """What a drafter computes with its fork leaves the row's own state where it was."""
    pipeline = Pipeline(Sampling(), VOCABULARY, processors=[Counter()])
    scores, places = logits(3), Places(history(), ((), (1,), (1, 2)))
    expected = pipeline.fork().law(scores, places).scores
    pipeline.fork().law(scores, places)
    found = pipeline.law(scores, places).scores
    assert torch.equal(found, expected)
    pipeline.commit((1, 2))
    after = pipeline.fork().law(scores[2:], Places(history(output=(*OUTPUT, 1, 2)), ((),)))
    assert torch.equal(after.scores, found[2:])


def test_a_trimmed_round_leaves_the_state_at_the_last_symbol() -> None:
    """Trimming keeps the state of what was emitted, whatever was drafted behind."""
    pipeline = Pipeline(Sampling(), VOCABULARY, processors=[Counter()])
    pipeline.law(logits(4), Places(history(), ((), (1,), (1, 2), (1, 2, 3))))
    pipeline.commit((1, 2))
    rule = pipeline.rules[0]
    assert isinstance(rule, Foreign)
    assert isinstance(rule._committed, Counter)
    assert rule._committed.calls == 2


def test_culprit_names_the_rule_that_left_nothing() -> None:
    class Eraser:
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores - torch.inf

    places, scores = Places(history(), ((),)), logits(1)
    named = Pipeline(Sampling(), VOCABULARY, processors=[Counter(), Eraser()])
    assert named.culprit(scores, places, 0) == "Eraser"
    broken = scores.clone()
    broken[0, 0] = torch.nan
    assert named.culprit(broken, places, 0) == "the model's own logits"


def test_fakes_keep_the_row_settings() -> None:
    """The helper of these tests runs the default verifier."""
    assert isinstance(row().verifier, Coupled)
    assert isinstance(TableModel(), FakeModel)

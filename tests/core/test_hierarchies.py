"""Drafters made of drafters: cascades, fallbacks, mixtures and merged trees keep every promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
import transformers

from multispec.drafters import (
    SJD,
    BestGain,
    Cascade,
    DraftModel,
    Fallback,
    HorizontalCascade,
    Jacobi,
    MaxGram,
    Merged,
    NgramModel,
    PromptLookup,
    SuffixDecoding,
    TokenRecycling,
)
from multispec.drafters.fitting import go_back
from multispec.drafters.merged import shared_out
from multispec.drafters.retracting import in_line
from multispec.errors import DraftError, IncompatibleModelsError, UnsupportedError, UsageError
from multispec.history import History
from multispec.policies import Confidence
from multispec.protocols import Budget, Drafter, Past, Request
from multispec.sampling import Law, Noise, Sampling
from multispec.stream import Draft
from multispec.testing import (
    FakeModel,
    FakeSession,
    ScriptedDrafter,
    SlotTableModel,
    TableModel,
    TreeDrafter,
    enumerate_law,
    play,
    row,
)
from multispec.testing.laws import output_law, variation
from multispec.verifiers import Rejection
from tests.core.drafting import ask, begin, observed, same_as_plain

TARGET = TableModel(seed=1, scale=2.5)
# Behind the prompt comes 0 and nothing else, so that every symbol that has a choice is drafted.
PROMPT = (1, 0, 3)
_DRAWN = TableModel(4, seed=4, support=2).table
_DRAWN[3] = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])
SMALL = TableModel(4, table=_DRAWN)


def near(seed: int, target: TableModel = TARGET, scale: float = 0.8, **abilities: Any) -> TableModel:
    """A model whose laws are near the target's, so that drafts are accepted sometimes."""
    generator = torch.Generator().manual_seed(seed)
    table = target.table.nan_to_num(neginf=-1.0)
    table = table + scale * torch.randn(table.shape, generator=generator).double()
    if target is SMALL:
        table = table.masked_fill(table < table.topk(2).values[:, -1:], -torch.inf)
    return TableModel(target.spec.vocab_size, table=table, strict=False, **abilities)


HIERARCHIES: dict[str, Callable[[TableModel], Drafter]] = {
    "lookup for a model": lambda t: Cascade(near(2, t), MaxGram(), 3, 2),
    "model for a model": lambda t: Cascade(near(2, t), DraftModel(near(3, t), 2), 3, 2),
    "three stages": lambda t: Cascade(near(2, t), Cascade(near(3, t), MaxGram(), 2, 1), 3, 2),
    "staged": lambda t: Cascade(near(2, t), NgramModel([[0, 1, 2, 1]], t.spec.vocab_size), 3, 2),
    "once a round": lambda t: Cascade(near(2, t), PromptLookup(), 3, 2),
    "tree for a model": lambda t: Cascade(near(2, t), TreeDrafter(near(3, t), kind="sampled"), 3, 2),
    "horizontal": lambda t: HorizontalCascade((DraftModel(near(2, t), 2), MaxGram()), (2, 2)),
    "whole scheme": lambda t: HorizontalCascade(
        (Cascade(near(2, t), MaxGram(), 2, 1), DraftModel(near(3, t), 2)), (2, 1)
    ),
    "horizontal inside": lambda t: Cascade(
        near(2, t), HorizontalCascade((DraftModel(near(3, t), 1), MaxGram()), (1, 1)), 3, 2
    ),
    "fallback": lambda t: Fallback((PromptLookup(3, 2, 2), DraftModel(near(2, t), 2))),
    "best gain": lambda t: BestGain((SuffixDecoding(), DraftModel(near(2, t), 2)), (0.0, 0.1)),
    "merged": lambda t: Merged((DraftModel(near(2, t), 2), DraftModel(near(3, t), 2), PromptLookup(2, 1))),
    "one is silent": lambda t: Merged((DraftModel(near(2, t), 2), ScriptedDrafter([]))),
}


@pytest.mark.parametrize("name", HIERARCHIES)
def test_seeds_say_the_same(name: str) -> None:
    """Ragged rows, coupled: the symbols of plain decoding, in fewer rounds."""
    drafter = HIERARCHIES[name](TARGET)
    plain = [row(ids, sampling=Sampling(seed=n)) for n, ids in enumerate([(1, 2), (0, 11, 5, 11)])]
    found = play(TARGET, *(replace(one, drafter=drafter, max_new_tokens=10) for one in plain))
    alone = play(TARGET, *(replace(one, max_new_tokens=10) for one in plain))
    assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in alone]
    assert not any(one.report.notes for one in found)
    assert sum(one.report.accepted for one in found) > 0


@dataclass(frozen=True)
class Once:
    """Drafts in the first round after the prompt, and not from then on."""

    name: ClassVar[str] = "once"
    most: int = 2

    def budget(self, past: Past, default_nodes: int) -> Budget:
        return Budget(nodes=min(default_nodes, self.most) if past.rounds == 1 else 0)


@pytest.mark.parametrize("name", HIERARCHIES)
def test_rejection_keeps_the_law(name: str) -> None:
    """Every draw of every stage enumerated, three symbols: within 1e-9 of plain decoding."""
    drafted = [0, 0]

    def run(noise: Noise) -> tuple[int, ...]:
        asked = row(PROMPT, drafter=drafter, verifier=Rejection(), policy=Once(), noise=noise, stops=(three,))
        found = play(SMALL, asked)[0]
        assert not found.report.notes
        drafted[0] += found.report.drafted
        drafted[1] += found.report.accepted
        return tuple(found.tokens.tolist())

    def three(ids: Sequence[int], scores: torch.Tensor) -> bool:
        return len(ids) >= 6

    drafter = HIERARCHIES[name](SMALL)
    assert variation(enumerate_law(run, horizon=3), plain_law()) < 1e-9
    assert 0 < drafted[1] < drafted[0]


@cache
def plain_law() -> dict[tuple[int, ...], float]:
    return output_law(SMALL, prompt=PROMPT)


@pytest.mark.parametrize("inner", ["lookup for a model", "model for a model", "three stages", "staged"])
def test_the_middle_model_keeps_its_own_law(inner: str) -> None:
    """Whatever drafts for it, what a cascade drafts is drawn from its model, and q says so."""
    model = near(2, SMALL)
    cascade = HIERARCHIES[inner](SMALL)
    prompt = [*PROMPT, 0]

    def drafted(noise: Noise) -> tuple[int, ...]:
        session = begin(cascade, PROMPT, vocab_size=4)
        pipeline = pipeline_of(4)
        draft = ask(session, prompt, 2, noise=noise, coupled=False, pipeline=pipeline)
        assert draft.q is not None
        ids = [*prompt, *draft.ids]
        for place, q in enumerate(draft.q):
            p = model.after(ids[: len(prompt) + place], len(PROMPT)).softmax(-1)
            assert torch.allclose(q, p)
        return tuple(draft.ids)

    found = enumerate_law(drafted)
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(2):
        grown: dict[tuple[int, ...], float] = {}
        for path, mass in expected.items():
            probs = model.after([*prompt, *path], len(PROMPT)).softmax(-1).tolist()
            grown |= {(*path, x): mass * p for x, p in enumerate(probs)}
        expected = grown
    assert variation(found, expected) < 1e-9


def pipeline_of(vocab_size: int) -> Any:
    from multispec.processing import Pipeline

    return Pipeline(Sampling(), vocab_size)


def test_the_model_is_run_less_often() -> None:
    """A stage below that is always right: one pass of the model for a whole draft."""
    middle, below = TableModel(seed=1, strict=False), TableModel(seed=1, strict=False)
    model = TableModel(seed=1)
    cascade = Cascade(middle, DraftModel(below, 8), 6, 5)
    found = play(model, row(drafter=cascade, max_new_tokens=29))[0]
    assert found.report.acceptance_rate == 1
    passes = len(middle.sessions[0].calls)
    assert passes <= found.report.target_calls
    alone = play(model, row(drafter=DraftModel(TableModel(seed=1), 6), max_new_tokens=29))[0]
    assert alone.report.draft_calls > 4 * passes


def test_caches_of_all_stages_hold_what_was_emitted() -> None:
    """Behind every round, in the middle model and in the one below."""
    for seed in range(2):
        middle, below = near(2), near(3)
        found = play(
            TARGET,
            row(
                drafter=Cascade(middle, DraftModel(below, 3), 5, 3),
                verifier=Rejection(),
                max_new_tokens=25,
                sampling=Sampling(seed=seed),
            ),
        )[0]
        ids = [1, *found.tokens.tolist()]
        for model in (middle, below):
            kept = model.sessions[-1].kept[0]
            assert kept == ids[: len(kept)]
        assert 0 < found.report.accepted < found.report.drafted


def test_a_policy_ends_drafts_of_cascades() -> None:
    """Behind the first symbol that its model is unsure of."""
    cascade = Cascade(near(2), MaxGram(), 6)
    confident = play(
        TARGET, row(drafter=cascade, policy=Confidence(threshold=0.9, max_draft_tokens=6), max_new_tokens=12)
    )[0]
    plain = play(TARGET, row(max_new_tokens=12))[0]
    always = play(TARGET, row(drafter=cascade, max_new_tokens=12))[0]
    assert confident.tokens.tolist() == plain.tokens.tolist()
    assert 0 < confident.report.drafted < always.report.drafted
    both = HorizontalCascade((DraftModel(near(2), 4), MaxGram()), (4, 4))
    session = begin(both, [3, 4])
    sure = ask(session, [3, 4, 3], 8, budget=Budget(nodes=8, confidence=1.0))
    assert len(sure) == 1


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).double().eval()


def test_transformers_models_in_stages() -> None:
    """Two models with caches of their own."""
    from multispec.targets import target_for

    target = target_for(llama(0))
    cascade = Cascade(llama(1), DraftModel(llama(2), 2), 4, 2)
    rows = [row(ids, sampling=Sampling(seed=n)) for n, ids in enumerate([(5, 9, 3), (7,)])]
    plain = play(target, *rows)
    found = play(target, *(replace(one, drafter=cascade) for one in rows))
    assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in plain]
    assert not any(one.report.notes for one in found)


class Stuck(FakeSession):
    """A state at symbol 9 that goes back to 7 at most."""

    def length(self, number: int) -> int:
        return 9

    def rewind(self, number: int, length: int) -> int:
        return 7


def test_a_state_that_cannot_go_back_is_said() -> None:
    """As it happens with a recurrent model in the stage below."""
    stuck = Stuck(TARGET, [], [])
    go_back(stuck, 0, 8)
    with pytest.raises(UnsupportedError, match="has to go back to symbol 5"):
        go_back(stuck, 0, 5)


# ---- max_gram ----


def test_max_gram_takes_back_what_did_not_stand() -> None:
    """Behind retractions, the same drafts as an index that never saw those symbols."""
    drafter = MaxGram(max_ngram=3)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (60,), generator=generator).tolist()
    session = begin(drafter, ids[:5], vocab_size=4)
    for length in range(5, 60):
        wrong = torch.randint(0, 4, (7,), generator=generator).tolist()
        for ahead in range(1, 7):
            ask(session, [*ids[:length], *wrong[:ahead]], 4)
        session.retract(0, length)  # type: ignore[attr-defined]
        fresh = ask(begin(drafter, ids[:length], vocab_size=4), ids[:length], 4)
        assert ask(session, ids[:length], 4).ids == fresh.ids


def test_max_gram_starts_anew_behind_what_it_has_forgotten() -> None:
    """More symbols taken back than it remembers."""
    session = begin(MaxGram(2), [1, 2])
    ask(session, [1, 2] * 700)
    session.retract(0, 4)  # type: ignore[attr-defined]
    assert ask(session, [1, 2, 3, 1], 3).ids == [2, 3, 1]


# ---- who drafts, and who learns what ----


def test_fallback_asks_the_next_where_nothing_was_found() -> None:
    """Row by row, and each no more than its own number."""
    drafter = Fallback(
        (PromptLookup(max_ngram=2, num_draft_tokens=2, min_ngram=2), ScriptedDrafter([7, 8, 9], 3))
    )
    assert drafter.num_draft_tokens == 3
    session = begin(drafter, [1, 2, 3, 1, 2], [1, 2, 3])
    drafts = session.propose([asked(0, [1, 2, 3, 1, 2]), asked(1, [1, 2, 3])])
    assert [draft.ids for draft in drafts] == [[3, 1], [7, 8, 9]]


def asked(number: int, ids: list[int], nodes: int = 9) -> Request:
    from multispec.sampling import CounterNoise

    return Request(number, History(ids), Budget(nodes), CounterNoise(0), pipeline_of(12), True)


def test_best_gain_learns_who_is_right() -> None:
    """The free one is always wrong, the model always right: the model drafts, though it costs more."""
    model = TableModel(seed=1)
    wrong = ScriptedDrafter(lambda request: Draft.chain([0] * request.budget.nodes), 4)
    right = DraftModel(TableModel(seed=1, strict=False), 4)
    best = BestGain((wrong, right), costs=(0.0, 0.2))
    found = play(model, row(drafter=best, max_new_tokens=60, sampling=Sampling(seed=3)))[0]
    assert found.report.acceptance_rate > 0.6
    dear = BestGain((wrong, right), costs=(0.0, 50.0))
    cheap = play(model, row(drafter=dear, max_new_tokens=30, sampling=Sampling(seed=3)))[0]
    assert cheap.report.draft_calls == 1


def test_merged_shares_the_budget_and_the_nodes() -> None:
    """Equal beginnings once; each member sees its own nodes."""
    one, two = ScriptedDrafter([5, 6, 7], 3), ScriptedDrafter([5, 8], 2)
    session = begin(Merged((one, two)), [1])
    draft = ask(session, [1], 5)
    assert (draft.ids, draft.parents) == ([5, 6, 7, 8], (-1, 0, 1, 0))
    assert shared_out(3, [3, 2]) == [2, 1]
    logits = torch.arange(5.0)[:, None].expand(5, 12)
    session.observe(0, observed(draft, logits, [5, 8, 2], (0, 3)))
    members = session._members.sessions  # type: ignore[attr-defined]
    seen = [member._rows[0].seen[0] for member in members]
    assert [one.path for one in seen] == [(0,), (0, 1)]
    assert [one.logits[:, 0].tolist() for one in seen] == [[0, 1, 2, 3], [0, 1, 4]]
    assert ask(session, [1], 1).ids == [5]


def test_parallel_slots() -> None:
    """Fallback and best gain take them with drafters that do; the others say why not."""
    model: FakeModel = SlotTableModel(2, 3, scale=4.0)
    assert same_as_plain(Fallback((PromptLookup(3, 6, 3), Jacobi())), [model]) > 0
    assert same_as_plain(BestGain((PromptLookup(), TokenRecycling()), (0.0, 0.0)), [model]) >= 0
    small = near(2)
    for drafter, said in (
        (Merged((MaxGram(), PromptLookup())), "chains can be scored"),
        (HorizontalCascade((MaxGram(),), (3,)), "move together"),
        (Cascade(small, MaxGram()), "2 slots of this stream move together"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            play(model, row([1, 2], drafter=drafter))


def test_windows_among_others() -> None:
    """A drafter that lives on its own last pass, when another's draft was verified."""
    drafter = Fallback((PromptLookup(2, 3, 2), SJD(num_draft_tokens=3)))
    assert same_as_plain(drafter, [TARGET]) > 0


def test_what_cannot_be_right_is_refused() -> None:
    """Before anything is generated."""
    for make, said in (
        (lambda: Fallback(()), "fallback is made of one drafter or more"),
        (lambda: Merged((MaxGram,)), "among them type"),  # type: ignore[arg-type]
        (lambda: BestGain((MaxGram(),), ()), "best_gain needs for each drafter the cost"),
        (lambda: BestGain((MaxGram(),), (0.0,), memory=0.0), "memory 0.0"),
        (lambda: HorizontalCascade((MaxGram(),), (0,)), "a length >= 1 for each drafter"),
        (lambda: Cascade(TARGET, MaxGram(), 0), "num_draft_tokens >= 1"),
        (lambda: MaxGram(0), "max_ngram >= 1"),
    ):
        with pytest.raises(UsageError, match=said):
            make()
    with pytest.raises(UnsupportedError, match="prompt_lookup cannot draft behind symbols"):
        begin(HorizontalCascade((MaxGram(), PromptLookup()), (1, 1)), [1])
    with pytest.raises(UnsupportedError, match="only chains can be scored"):
        play(TableModel(supports_tree=False), row(drafter=Merged((MaxGram(), MaxGram()))))
    with pytest.raises(IncompatibleModelsError, match="the draft model has 900 symbols, the target 12"):
        begin(Cascade(TableModel(900), MaxGram()), [1])
    greedy = ScriptedDrafter(lambda _: Draft.chain([1] * 9))
    with pytest.raises(DraftError, match="9 nodes exceeds the budget of 4"):
        ask(begin(Fallback((greedy,)), [1]), [1], 9)


def test_in_line_takes_the_first_children() -> None:
    """With the laws that they were drawn from."""
    q = torch.eye(5).double()
    tree = Draft(tokens=torch.arange(5), parents=(-1, -1, 0, 0, 2), q=q, kind="sampled")
    line = in_line(tree)
    assert (line.ids, line.kind) == ([0, 2, 4], "sampled")
    assert line.q is not None and torch.equal(line.q, q[[0, 2, 4]])
    assert Law(q.log(), greedy=False).mode.tolist() == [*range(5)]

"""THE loop: batches, stops, failing drafters, broken logits, grammars, frames."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import DrafterWarning, GenerationError, InvalidLogitsError
from multispec.generator import Generator
from multispec.loop import rounds
from multispec.policies import FixedLength, Off
from multispec.protocols import Request
from multispec.report import Clock
from multispec.row import Row, RowSettings
from multispec.sampling import Sampling
from multispec.stream import Allowed, Draft, Forced, Generation, Slot, StreamSpec
from multispec.testing import (
    FakeModel,
    ScriptedDrafter,
    ScriptedModel,
    TableModel,
    TreeDrafter,
    play,
    row,
)
from multispec.verifiers import Coupled, Rejection

VOCABULARY = 12
SCRIPT = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)


def ids(found: Sequence[Generation]) -> list[list[int]]:
    return [one.tokens.tolist() for one in found]


# ---- batches ----


def mixed() -> list[RowSettings]:
    """Rows that differ in everything: prompt, seed, settings, drafter, policy, rule, length, stop."""
    near = TableModel(seed=1, scale=1.2, strict=False)
    shared = DraftModel(near, 3)
    return [
        row((1,), max_new_tokens=20),
        row((4, 5, 6), drafter=shared, sampling=Sampling(seed=7, temperature=0.6)),
        row((2, 2), drafter=PromptLookup(), max_new_tokens=17, sampling=Sampling(seed=9)),
        row((3,), drafter=TreeDrafter(near, (2, 2), "sampled"), max_new_tokens=9),
        row((9, 8, 7, 6, 5), drafter=shared, max_new_tokens=14, sampling=Sampling(top_k=3)),
        row((1,), drafter=TreeDrafter(near, (2,), "sampled", 2), verifier=Rejection()),
        row((1,), drafter=shared, policy=Off(), sampling=Sampling(temperature=0)),
        row((5,), drafter=shared, stops=(lambda seen, scores: len(seen) > 6,), max_new_tokens=30),
        row((6, 1), drafter=shared, sampling=Sampling(sample=3, repetition_penalty=1.3)),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_rows_do_not_depend_on_their_neighbours(seed: int) -> None:
    """Any order of a ragged batch gives what each row gives alone, flags and counters included."""
    target, rows = TableModel(seed=1), mixed()
    order = random.Random(seed).sample(range(len(rows)), len(rows) - seed)
    together = play(target, *[rows[n] for n in order])
    alone = [play(target, rows[n])[0] for n in order]
    assert ids(together) == ids(alone)
    assert [a.from_draft for a in together] == [b.from_draft for b in alone]
    assert [a.report.histogram for a in together] == [b.report.histogram for b in alone]
    assert [a.finish_reason for a in together] == [b.finish_reason for b in alone]


def test_rows_leave_when_they_are_done() -> None:
    """A pass holds the rows that still go on, and no others."""
    target = ScriptedModel(SCRIPT)
    play(target, *[row(max_new_tokens=length) for length in (3, 1, 5, 3)])
    calls = target.sessions[0].calls
    assert [call.rows for call in calls] == [(0, 2, 3), (0, 2, 3), (2,), (2,)]
    assert set(target.sessions[0].kept) == {0, 1, 2, 3}


def test_drafters_forget_rows_that_are_done() -> None:
    model = TableModel(seed=1, strict=False)
    drafter = DraftModel(model, 2)
    play(TableModel(seed=1), *[row(drafter=drafter, max_new_tokens=n) for n in (4, 9)])
    assert model.sessions[0].cached == {}


def test_every_round_yields_its_steps() -> None:
    """Steps carry symbol, origin, row and position, in order."""
    target = ScriptedModel(SCRIPT)
    asked = row(drafter=ScriptedDrafter(SCRIPT), max_new_tokens=8)
    found = list(rounds(target, [Row(0, asked, target.spec)], Clock()))
    assert [[step.token for step in steps] for steps in found] == [[1], [2, 3, 4, 5, 6], [7, 8]]
    assert [step.position for steps in found for step in steps] == list(range(8))
    assert [step.from_draft for step in found[1]] == [True] * 4 + [False]


@pytest.mark.parametrize("length", range(1, 12))
def test_the_length_is_never_exceeded(length: int) -> None:
    found = play(ScriptedModel(SCRIPT), row(drafter=ScriptedDrafter(SCRIPT * 2), max_new_tokens=length))
    assert found[0].tokens.tolist() == [*SCRIPT, *SCRIPT][:length]
    assert found[0].finish_reason == "length"


@pytest.mark.parametrize("end", range(1, 8))
def test_nothing_is_kept_behind_an_end(end: int) -> None:
    """Wherever the end falls in a draft; the strict target refuses anything behind it."""
    target = ScriptedModel(SCRIPT, end_ids=(end,))
    asked = row(drafter=ScriptedDrafter(SCRIPT), end_ids=(end,), max_new_tokens=9)
    found = play(target, asked)[0]
    assert found.tokens.tolist() == list(range(1, end + 1))
    assert found.finish_reason == "stop"
    assert len(found.from_draft) == end


def test_a_stop_is_asked_after_every_symbol_with_its_scores() -> None:
    seen: list[tuple[int, int]] = []

    def stop(all_ids: Sequence[int], scores: Tensor) -> bool:
        seen.append((len(all_ids), int(scores.argmax())))
        return all_ids[-1] == 4

    found = play(ScriptedModel(SCRIPT), row(drafter=ScriptedDrafter(SCRIPT), stops=(stop,)))[0]
    assert seen == [(2, 1), (3, 2), (4, 3), (5, 4)]
    assert (found.tokens.tolist(), found.finish_reason) == ([1, 2, 3, 4], "stop")


def test_a_stop_at_the_length_cap_is_a_stop() -> None:
    asked = row(max_new_tokens=4, stops=(lambda seen, scores: seen[-1] == 4,))
    assert play(ScriptedModel(SCRIPT), asked)[0].finish_reason == "stop"


def test_scores_are_those_of_the_emitted_symbols() -> None:
    """Raw logits, processed scores and log p, with and without a draft."""
    target = TableModel(seed=1)
    asked: dict[str, Any] = {"keep_scores": True, "sampling": Sampling(temperature=0.5, seed=3)}
    plain, drafted = (
        play(target, row(drafter=drafter, **asked))[0] for drafter in (None, TreeDrafter(target))
    )
    assert plain.logits is not None and drafted.logits is not None
    assert plain.scores is not None and plain.log_probs is not None
    prefix = [1, *plain.tokens.tolist()]
    assert torch.equal(plain.logits, target.table[prefix[:-1]])
    assert torch.equal(plain.scores, plain.logits / 0.5)
    expected = plain.scores.log_softmax(-1)[range(8), plain.tokens.tolist()]
    assert torch.equal(plain.log_probs, expected)
    assert torch.equal(plain.logits, drafted.logits)


# ---- interruption ----


def test_ctrl_c_returns_what_was_made() -> None:
    """KeyboardInterrupt in the middle of a batch: partial results, marked as interrupted."""

    def interrupt(all_ids: Sequence[int], prompt_length: int) -> Tensor:
        if len(all_ids) - prompt_length == 5:
            raise KeyboardInterrupt
        return TableModel(seed=1).table[all_ids[-1]]

    spec = TableModel().spec
    full = Generator(TableModel(seed=1)).generate([[1], [2, 3]], drafter=None, max_new_tokens=9)
    target = FakeModel(interrupt, spec)
    found = Generator(target).generate([[1], [2, 3]], drafter=None, max_new_tokens=9)
    assert ids(found) == [one[:5] for one in ids(full)]
    assert [one.finish_reason for one in found] == ["interrupted"] * 2
    assert [len(one.from_draft) for one in found] == [5, 5]


def test_any_other_error_carries_what_was_made() -> None:
    def fail(all_ids: Sequence[int], prompt_length: int) -> Tensor:
        if len(all_ids) - prompt_length == 3:
            raise ZeroDivisionError("oops")
        return TableModel(seed=1).table[all_ids[-1]]

    generator = Generator(FakeModel(fail, TableModel().spec))
    with pytest.raises(GenerationError, match="broke after 3 symbols: ZeroDivisionError: oops") as error:
        generator.generate([1], drafter=None, max_new_tokens=9)
    assert [len(one.tokens) for one in error.value.partial] == [3]


# ---- drafters that fail ----


def raising(request: Request) -> Draft:
    raise ZeroDivisionError("no draft today")


def at_most(count: int, then: Callable[[Request], Any]) -> Callable[[Request], Draft]:
    """Right drafts for so many symbols, then something else."""

    def propose(request: Request) -> Draft:
        if request.round_start < count:
            return Draft.chain([0])
        found: Draft = then(request)
        return found

    return propose


def sampled(q: Tensor) -> Draft:
    return Draft.chain([0] * len(q), q)


BROKEN: dict[str, tuple[Callable[[Request], Any], str]] = {
    "raises": (raising, "ZeroDivisionError: no draft today"),
    "ids out of range": (lambda request: Draft.chain([12]), r"lie in \[0, 12\)"),
    "negative ids": (lambda request: Draft.chain([-1]), r"lie in \[0, 12\)"),
    "a broken tree": (
        lambda request: Draft(tokens=torch.tensor([1, 2]), parents=(1, 0)),
        "parents come before their children",
    ),
    "q without rows": (
        lambda request: Draft(tokens=torch.tensor([1]), parents=(-1,), kind="sampled"),
        "needs q",
    ),
    "q that is no law": (lambda request: sampled(torch.full((1, 12), 0.5)), "must sum to 1"),
    "q over other symbols": (lambda request: sampled(torch.full((1, 4), 0.25)), "q"),
    "too many nodes": (lambda request: Draft.chain([1] * 9), "exceeds the budget of 4"),
}


@pytest.mark.parametrize("rule", [Coupled(), Rejection()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("late", [0, 4])
@pytest.mark.parametrize("name", BROKEN)
def test_a_failing_drafter_is_set_aside(name: str, late: int, rule: Any) -> None:
    """One warning, the report counts it, and the output is that of plain decoding."""
    then, message = BROKEN[name]
    target = TableModel(seed=1)
    drafter = ScriptedDrafter(at_most(late, then))
    asked: dict[str, Any] = {"verifier": rule, "max_new_tokens": 10}
    with pytest.warns(DrafterWarning, match=message) as caught:
        found = play(target, row(drafter=drafter, **asked))[0]
    assert len(caught) == 1
    assert found.report.drafter_failures == len(found.report.notes) == 1
    assert "set aside" in found.report.notes[0]
    assert len(found.tokens) == 10
    if rule.coupled or not late:
        assert found.tokens.tolist() == play(target, row(**asked))[0].tokens.tolist()


def test_a_failing_drafter_leaves_other_drafters_alone() -> None:
    """Only the rows that use it go on plainly."""
    target = TableModel(seed=1)
    rows = [row(drafter=ScriptedDrafter(raising)), row(drafter=TreeDrafter(target, (1, 1), "sampled"))]
    with pytest.warns(DrafterWarning, match="no draft today"):
        found = play(target, *rows)
    assert [one.report.drafter_failures for one in found] == [1, 0]
    assert (found[0].report.drafted == 0, found[1].report.accepted > 0) == (True, True)


class Failing(ScriptedDrafter):
    """Sessions that fail at one of their methods."""

    def __init__(self, method: str) -> None:
        super().__init__(SCRIPT)
        object.__setattr__(self, "method", method)

    def begin(self, context: Any) -> Any:
        session = super().begin(context)

        def fail(*args: Any) -> Any:
            raise ZeroDivisionError(f"{self.method} fails")

        if self.method == "begin":
            fail()
        setattr(session, self.method, fail)
        return session

    method: str = ""


@pytest.mark.parametrize("method", ["begin", "propose", "observe", "end"])
def test_every_method_of_a_drafter_may_fail(method: str) -> None:
    """A drafter is advice: whatever of it breaks, the output is complete."""
    with pytest.warns(DrafterWarning, match=f"{method} fails"):
        found = play(ScriptedModel(SCRIPT), row(drafter=Failing(method), max_new_tokens=7))[0]
    assert found.tokens.tolist() == list(SCRIPT[:7])
    assert found.report.drafter_failures == 1


@pytest.mark.parametrize("returned", [[], [None], [Draft.empty(), Draft.empty()], None])
def test_a_session_that_returns_anything_else(returned: Any) -> None:
    """Too few drafts, too many, or none at all."""

    class Odd(ScriptedDrafter):
        def begin(self, context: Any) -> Any:
            session = super().begin(context)
            session.propose = lambda requests: returned  # type: ignore[method-assign]
            return session

    with pytest.warns(DrafterWarning):
        found = play(ScriptedModel(SCRIPT), row(drafter=Odd(SCRIPT), max_new_tokens=7))[0]
    assert found.tokens.tolist() == list(SCRIPT[:7])


def test_trees_are_refused_where_only_chains_are_scored() -> None:
    target = TableModel(seed=1, supports_tree=False)
    with pytest.warns(DrafterWarning, match="chains only .this fake scores chains."):
        found = play(target, row(drafter=TreeDrafter(target, (2,), "point")))[0]
    assert ids([found]) == ids(play(target, row()))


# ---- logits that nothing can be drawn from ----


def broken_at(position: int, value: float, everywhere: bool) -> FakeModel:
    """A scripted model whose logits break at one position."""

    def after(all_ids: Sequence[int], prompt_length: int) -> Tensor:
        place = len(all_ids) - prompt_length
        logits = torch.zeros(VOCABULARY, dtype=torch.float64)
        logits[SCRIPT[place % 10]] = 50
        if place == position:
            logits[slice(None) if everywhere else slice(3, 4)] = value
        return logits

    return FakeModel(after, ScriptedModel(SCRIPT).spec)


INVALID = [(float("nan"), False), (float("nan"), True), (float("-inf"), True), (float("inf"), False)]


@pytest.mark.parametrize(("value", "everywhere"), INVALID)
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
@pytest.mark.parametrize("position", [0, 2])
def test_broken_logits_name_the_position(
    value: float, everywhere: bool, greedy: bool, verifier: str, position: int
) -> None:
    """NaN, +inf and -inf everywhere, where nothing was drafted."""
    generator = Generator(broken_at(position, value, everywhere))
    message = f"at position {position} of row 0: after the model's own logits"
    with pytest.raises(InvalidLogitsError, match=message) as error:
        generator.generate(
            [1],
            drafter=None,
            verifier=verifier,
            sampling=Sampling(temperature=0 if greedy else 1),
            max_new_tokens=5,
        )
    assert ids(error.value.partial) == [list(SCRIPT[:position])]


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_broken_logits_inside_a_draft(verifier: str) -> None:
    """Behind accepted symbols of a draft: the same position, and those symbols are in the partial."""
    generator = Generator(broken_at(4, float("nan"), True))
    with pytest.raises(InvalidLogitsError, match="at position 4 of row 0") as error:
        generator.generate([1], drafter=ScriptedDrafter(SCRIPT), verifier=verifier, max_new_tokens=9)
    assert ids(error.value.partial) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_broken_logits_behind_a_stop_do_no_harm(verifier: str) -> None:
    """What plain decoding never looks at must not break a drafted run."""
    target = broken_at(4, float("nan"), True)
    rule = Coupled() if verifier == "coupled" else Rejection()
    stop: Any = (lambda seen, scores: seen[-1] == 4,)
    plain = play(target, row(stops=stop, verifier=rule))
    found = play(target, row(stops=stop, verifier=rule, drafter=ScriptedDrafter(SCRIPT)))
    assert ids(found) == ids(plain) == [[1, 2, 3, 4]]


def test_broken_logits_in_a_rejected_branch_do_no_harm() -> None:
    """Places that are not reached are not looked at."""

    def after(all_ids: Sequence[int], prompt_length: int) -> Tensor:
        logits = TableModel(seed=1).table[all_ids[-1]].clone()
        return logits * torch.nan if all_ids[-1] == 0 else logits

    target = FakeModel(after, TableModel().spec)
    asked = row(sampling=Sampling(allowed_ids=range(1, 12)), drafter=ScriptedDrafter([0] * 20))
    plain = row(sampling=Sampling(allowed_ids=range(1, 12)))
    assert ids(play(target, asked)) == ids(play(target, plain))


def test_the_processor_that_left_nothing_is_named() -> None:
    class Eraser:
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores if input_ids.shape[1] < 4 else scores - torch.inf

    generator = Generator(ScriptedModel(SCRIPT))
    with pytest.raises(InvalidLogitsError, match="position 3 of row 0: after Eraser") as error:
        generator.generate([1], drafter=None, logits_processor=[Eraser()], max_new_tokens=9)
    assert ids(error.value.partial) == [[1, 2, 3]]


def test_a_grammar_that_allows_nothing_is_named() -> None:
    spec = StreamSpec(slots=(Slot(size=VOCABULARY),), grammar=lambda generated: Allowed(()))
    with pytest.raises(InvalidLogitsError, match="position 0 of row 0: after GrammarRule"):
        play(TableModel(spec=spec), row())


# ---- frames, grammars, lengths ----


def frames(**changes: Any) -> TableModel:
    return TableModel(seed=1, spec=StreamSpec(slots=(Slot(size=VOCABULARY),) * 4, **changes))


def test_four_slots_give_frames() -> None:
    """Tokens are [T, 4]; a frame that was not finished is left out."""
    target = frames()
    plain = play(target, row(max_new_tokens=14))[0]
    drafted = play(target, row(max_new_tokens=14, drafter=TreeDrafter(target, (2, 2), "sampled")))[0]
    assert plain.tokens.shape == (3, 4)
    assert torch.equal(plain.tokens, drafted.tokens)
    assert len(plain.from_draft) == 14
    assert drafted.report.accepted > 0


def test_slots_have_noise_of_their_own() -> None:
    """The same laws in one slot or four: other symbols."""
    one, four = (play(target, row(max_new_tokens=16))[0] for target in (TableModel(seed=1), frames()))
    assert one.tokens.tolist() != four.tokens.flatten().tolist()


def test_a_fixed_length_ends_the_stream() -> None:
    target = frames(fixed_length=8)
    for drafter in (None, TreeDrafter(target, (2, 2), "sampled")):
        found = play(target, row(max_new_tokens=30, drafter=drafter))[0]
        assert found.tokens.shape == (2, 4)
        assert found.finish_reason == "stop"


def every_third(generated: Sequence[int]) -> Forced | Allowed | None:
    """Position 0, 3, 6 ... is symbol 9; position 1, 4, 7 ... is 1 or 2."""
    return (Forced(9), Allowed((1, 2)), None)[len(generated) % 3]


def by_grammar(request: Request) -> Draft:
    """Right where the grammar leaves one symbol, a guess elsewhere."""
    start = request.round_start
    tokens = [9 if (start + n) % 3 == 0 else 1 for n in range(request.budget.nodes)]
    return Draft.chain(tokens)


GRAMMAR = StreamSpec(slots=(Slot(size=VOCABULARY),), grammar=every_third)


@pytest.mark.parametrize("rule", [Coupled(), Rejection()], ids=lambda rule: rule.name)
def test_forced_symbols_count_as_forced(rule: Any) -> None:
    """Emitted and forced, never drafted or accepted; the counters still add up."""
    found = play(
        TableModel(seed=1, spec=GRAMMAR),
        row(drafter=ScriptedDrafter(by_grammar), verifier=rule, max_new_tokens=30),
    )[0]
    report, tokens = found.report, found.tokens.tolist()
    assert all(tokens[n] == 9 for n in range(0, 30, 3))
    assert all(tokens[n] in (1, 2) for n in range(1, 30, 3))
    assert (report.forced, report.new_tokens) == (10, 30)
    free = sum(flag for n, flag in enumerate(found.from_draft) if n % 3)
    assert 0 < report.accepted == free < report.drafted
    assert report.notes == []


def test_forced_symbols_are_no_positions_of_a_draft() -> None:
    """The rates per position count what the target could have refused."""
    found = play(
        TableModel(seed=1, spec=GRAMMAR),
        row(drafter=ScriptedDrafter(by_grammar), policy=FixedLength(), max_new_tokens=30),
    )[0]
    assert sum(found.report.accepted_at) == found.report.accepted
    assert sum(found.report.drafted_at) == found.report.drafted


def test_a_grammar_leaves_the_seed_alone() -> None:
    """Forced symbols cost no randomness: drafted or not, the free symbols are the same."""
    target = TableModel(seed=1, spec=GRAMMAR)
    drafted = row(drafter=ScriptedDrafter(by_grammar), max_new_tokens=30)
    assert ids(play(target, drafted)) == ids(play(target, row(max_new_tokens=30)))


# ---- the fakes themselves notice a loop that is wrong ----


def test_a_strict_target_notices_wrong_calls() -> None:
    """Unscored paths, rows that were dropped, roots without mass, symbols behind an end."""
    target = ScriptedModel(SCRIPT, end_ids=(2,))
    session = target.begin([row((5,)).prompt, row((6,)).prompt], [20, 20], 9)
    session.prefill()
    draft = Draft.chain([2, 3])
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: session.commit([0], [()]), "without being scored"),
        (lambda: session.score([0], [7], [draft]), "has no mass"),
        (lambda: session.score([3], [1], [draft]), "not open"),
        (lambda: session.score([0, 0], [1, 1], [draft, draft]), "once per pass"),
        (lambda: session.score([0], [2], [draft]), "behind its end"),
    ]
    for call, message in cases:
        with pytest.raises(AssertionError, match=message):
            call()
    session.score([0], [1], [draft])
    with pytest.raises(AssertionError, match="was scored and not committed"):
        session.score([0], [1], [draft])
    with pytest.raises(AssertionError, match="kept symbols behind an end"):
        session.commit([0], [(0,)])
    session.drop([1])
    with pytest.raises(AssertionError, match="not open"):
        session.drop([1])


def test_a_strict_target_notices_a_path_that_was_not_scored() -> None:
    session = ScriptedModel(SCRIPT).begin([row((5,)).prompt], [20], 9)
    session.prefill()
    session.score([0], [1], [Draft(tokens=torch.tensor([2, 3]), parents=(-1, -1))])
    with pytest.raises(AssertionError, match="is no path of the draft"):
        session.commit([0], [(0, 1)])

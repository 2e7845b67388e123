"""Two-level models: the law of the plain model whatever is drafted, two passes a round, exact rollback."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from multispec.drafters import DraftModel, Jacobi
from multispec.drafters.depth_ngram import DepthNgram
from multispec.drafters.previous_frame import PreviousFrame
from multispec.errors import PromptError, UnsupportedError
from multispec.policies import FixedLength
from multispec.protocols import Budget, Drafter, Past, Policy, Request, TargetSession
from multispec.sampling import Noise, Sampling
from multispec.stream import Draft, Prompt, Slot, StreamSpec
from multispec.targets.two_level import TwoLevelSession, TwoLevelTarget
from multispec.testing import FakeModel, ScriptedDrafter, TableModel, TreeDrafter, enumerate_law, play, row
from multispec.verifiers import Rejection
from tests.core.two_levels import Depth, Time, Tiny

MODELS = {
    "two_slots": Tiny(),
    "uneven_slots": Tiny(sizes=(3, 4, 5, 3)),
    "text_first": Tiny(sizes=(5, 3, 3), lead=0),
    "lockstep": Tiny(sizes=(3, 3, 3, 3), lockstep=True),
    "windowed": Tiny(sizes=(3, 3, 3), kinds=("sliding_attention",)),
}
PROMPTS = ((1,), (1, 2), (2, 0, 1))


def good_guesses(tiny: Tiny, chance: float = 0.85) -> Callable[[Request], Draft]:
    """Drafts of random length that mostly follow the argmax: rows of a batch come to stand anywhere."""

    def propose(request: Request) -> Draft:
        rng = random.Random(repr(request.history.ids))
        ids, drafted = list(request.history.ids), list[int]()
        for _ in range(rng.randrange(request.budget.nodes + 1)):
            best = int(tiny.after(ids, request.history.prompt_length).argmax())
            drafted.append(best if rng.random() < chance else 0)
            ids.append(drafted[-1])
        return Draft.chain(drafted)

    return propose


def asked(place: int, temperature: float = 0.3, **changes: Any) -> Any:
    sampling = Sampling(seed=place, temperature=temperature)
    return row(PROMPTS[place], sampling=sampling, max_new_tokens=17 - 3 * place, **changes)


@pytest.mark.parametrize("name", MODELS)
def test_any_drafter_emits_what_the_seed_says(name: str) -> None:
    """Three ragged rows together give what each of them gives alone by the law itself, drafted or plain."""
    tiny = MODELS[name]
    expected = [play(tiny.fake(), asked(place))[0].tokens for place in range(len(PROMPTS))]
    drafters: list[Drafter | None] = [
        None,
        ScriptedDrafter(good_guesses(tiny), num_draft_tokens=11),
        Jacobi(num_draft_tokens=7),
        DraftModel(Tiny(tiny.sizes, tiny.lead, seed=tiny.seed, scale=1.5).target(), 5),
    ]
    for drafter in drafters:
        found = play(tiny.target(), *(asked(place, drafter=drafter) for place in range(len(PROMPTS))))
        assert all(torch.equal(one.tokens, plain) for one, plain in zip(found, expected, strict=True))
        assert all(one.report.drafter_failures == 0 for one in found)
        assert drafter is None or sum(one.report.accepted for one in found) > 0


class Checked:
    """A session beside the symbols that it ought to hold; every logit is compared with the law."""

    def __init__(self, tiny: Tiny) -> None:
        self.tiny, self.rng = tiny, random.Random(7)
        prompts = [Prompt(ids=torch.tensor(ids)) for ids in PROMPTS]
        self.session: TargetSession = tiny.target().begin(prompts, [60] * len(prompts), 16)
        self.held = {number: list(ids) for number, ids in enumerate(PROMPTS)}
        for number, logits in enumerate(self.session.prefill().logits):
            self.compare(number, self.held[number], logits[0])

    def compare(self, number: int, prefix: Sequence[int], logits: Tensor) -> None:
        expected = self.tiny.after(prefix, len(PROMPTS[number]))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)

    def symbol(self, number: int, ahead: int = 0) -> int:
        position = len(self.held[number]) - len(PROMPTS[number]) + ahead
        return self.rng.randrange(self.tiny.sizes[position % len(self.tiny.sizes)])

    def some(self) -> list[int]:
        return sorted(self.rng.sample(sorted(self.held), self.rng.randint(1, len(self.held))))

    def draft(self) -> None:
        rows = self.some()
        runs = {number: [self.symbol(number, i) for i in range(self.rng.randint(1, 11))] for number in rows}
        drafts = [Draft.chain(runs[number][1:]) for number in rows]
        scores = self.session.score(rows, [runs[number][0] for number in rows], drafts)
        for number, logits in zip(rows, scores.logits, strict=True):
            assert len(logits) == len(runs[number])
            for node in range(len(logits)):
                self.compare(number, [*self.held[number], *runs[number][: node + 1]], logits[node])
        kept = {number: self.rng.randint(1, len(runs[number])) for number in rows}
        self.session.commit(rows, [tuple(range(kept[number] - 1)) for number in rows])
        for number in rows:
            self.held[number] += runs[number][: kept[number]]

    def extend(self) -> None:
        rows = self.some()
        tokens = [self.symbol(number) for number in rows]
        for number, token, logits in zip(rows, tokens, self.session.extend(rows, tokens), strict=True):
            self.held[number].append(token)
            self.compare(number, self.held[number], logits[0])

    def walk(self) -> None:
        number, steps = self.some()[0], self.rng.randint(0, 4)
        tokens = [self.symbol(number, i) for i in range(self.rng.randint(1, 5))]
        self.held[number] += tokens

        def choose(logits: Tensor) -> int | None:
            nonlocal steps
            self.compare(number, self.held[number], logits[0])
            if not steps:
                return None
            steps -= 1
            self.held[number].append(self.symbol(number))
            return self.held[number][-1]

        assert self.session.walk(number, tokens, choose) >= 1

    def rewind(self) -> None:
        number = self.some()[0]
        length = self.rng.randint(len(PROMPTS[number]), len(self.held[number]))
        self.session.checkpoint(number)
        assert self.session.rewind(number, length) == length
        del self.held[number][length:]

    def play(self, rounds: int) -> None:
        for _ in range(rounds):
            self.rng.choice([self.draft, self.draft, self.extend, self.walk, self.rewind])()
            for number, ids in self.held.items():
                if len(ids) > 40:
                    self.session.rewind(number, 20)
                    del ids[20:]
                assert self.session.length(number) == len(ids)


@pytest.mark.parametrize("name", MODELS)
def test_every_logit_is_the_law_after_any_history(name: str) -> None:
    """Drafts, plain steps, walks and rewinds in random order, on some of the rows; then a row leaves."""
    checked = Checked(MODELS[name])
    checked.play(30)
    checked.session.drop([1])
    del checked.held[1]
    checked.play(12)


# ---- what it costs ----


def greedy_stream(tiny: Tiny, length: int) -> list[int]:
    ids = [1]
    for _ in range(length):
        ids.append(int(tiny.after(ids, 1).argmax()))
    return ids[1:]


def test_plain_decoding_costs_what_the_model_itself_costs() -> None:
    """One pass of the time model and K - 1 of the depth model per frame; the report counts both."""
    target = Tiny(sizes=(3,) * 4).target()
    (found,) = play(target, row(max_new_tokens=20))
    assert (target.passes.prompts, target.passes.time, target.passes.depth) == (1, 4, 15)
    assert found.report.target_calls == 20


def test_a_draft_of_several_frames_costs_two_passes() -> None:
    """Three frames behind a root, from the middle of one: a pass of each model, cut back in mid-frame."""
    tiny = Tiny(sizes=(3,) * 4)
    target = tiny.target()
    session = target.begin([Prompt(ids=torch.tensor([1]))], [40], 16)
    assert isinstance(session, TwoLevelSession)
    session.prefill()
    stream = greedy_stream(tiny, 16)
    session.score([0], stream[:1], [Draft.empty()])
    session.commit([0], [()])
    assert (session.passes.time, session.passes.depth) == (0, 1)
    scores = session.score([0], stream[1:2], [Draft.chain(stream[2:14])])
    assert (session.passes.time, session.passes.depth, list(scores.calls)) == (1, 2, [2])
    session.commit([0], [tuple(range(8))])
    assert session.length(0) == 1 + 1 + 9
    again = session.score([0], stream[10:11], [Draft.empty()])
    assert (session.passes.time, session.passes.depth, list(again.calls)) == (1, 3, [1])
    torch.testing.assert_close(again.logits[0][0], tiny.after([1, *stream[:11]], 1), rtol=0, atol=1e-9)


def test_good_drafts_cut_sequential_depth_passes_by_three() -> None:
    """Greedy, eight codebooks: 7 depth passes per frame plainly, and at most a third of them with guesses."""
    tiny = Tiny(sizes=(3,) * 8, scale=4.0)
    script, frames = greedy_stream(tiny, 64), 8
    wrong = [(one + 1) % 3 if place % 13 == 12 else one for place, one in enumerate(script)]
    greedy, found = Sampling(temperature=0), {}
    for drafter in (None, ScriptedDrafter(wrong, num_draft_tokens=16)):
        target = tiny.target()
        (one,) = play(target, row(sampling=greedy, max_new_tokens=64, drafter=drafter))
        assert one.tokens.flatten().tolist() == script
        found[drafter is None] = target.passes.depth / frames
    assert found[True] == pytest.approx(7)
    assert found[False] * 3 <= found[True]


def test_frame_drafters_cut_depth_passes_of_a_repeating_stream() -> None:
    """A model that settles into a period is guessed from its own frames; the symbols stay what they are."""
    passes, made = dict[str, int](), list[Tensor]()
    for name, drafter in (("plain", None), ("copy", PreviousFrame()), ("ngram", DepthNgram())):
        target = Tiny(sizes=(3,) * 8, scale=4.0, seed=5).target()
        asked = row(sampling=Sampling(temperature=0), max_new_tokens=96, drafter=drafter)
        made.append(play(target, asked)[0].tokens)
        passes[name] = target.passes.depth
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert passes["ngram"] * 3 <= passes["plain"]
    assert passes["copy"] * 3 <= passes["plain"]


# ---- the law of whole generations: 2 frames x 2 codebooks x 3 codes ----


class Once:
    """Drafts in the second round alone."""

    name: ClassVar[str] = "once"

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """Two symbols, or none."""
        return Budget(nodes=2 if past.rounds == 1 else 0)


def sampled_draft() -> FakeModel:
    return TableModel(3, order=1, seed=5, support=2, strict=False)


LAWFUL: dict[str, tuple[Drafter, Policy]] = {
    "previous_frame": (PreviousFrame(num_draft_tokens=3), FixedLength()),
    "draft_model": (DraftModel(sampled_draft(), 2), Once()),
}


@pytest.mark.parametrize("name", LAWFUL)
def test_rejection_has_the_law_of_a_two_level_stream(name: str) -> None:
    """Two frames of two codebooks of three codes: every one of 81 outcomes has its probability to 1e-9."""
    tiny, (drafter, policy) = Tiny(scale=0.6), LAWFUL[name]
    target, tally = tiny.target(), {"drafted": 0, "accepted": 0}

    def run(noise: Noise) -> tuple[int, ...]:
        (found,) = play(
            target,
            row(
                (1,),
                verifier=Rejection(),
                policy=policy,
                drafter=drafter,
                noise=noise,
                max_new_tokens=4,
            ),
        )
        tally["drafted"] += found.report.drafted
        tally["accepted"] += found.report.accepted
        return tuple(found.tokens.flatten().tolist())

    law = enumerate_law(run)
    assert set(law) == set(product(range(3), repeat=4))
    for outcome, mass in law.items():
        expected = 1.0
        for place, symbol in enumerate(outcome):
            expected *= float(tiny.after([1, *outcome[:place]], 1).softmax(-1)[symbol])
        assert mass == pytest.approx(expected, abs=1e-9)
    assert 0 < tally["accepted"] < tally["drafted"]


# ---- what is refused ----


def test_trees_are_refused() -> None:
    """By the loop with a warning, by the session with an error."""
    tiny = Tiny()
    with pytest.warns(UserWarning, match="scores chains only"):
        play(tiny.target(), row(drafter=TreeDrafter()))
    session = tiny.target().begin([Prompt(ids=torch.tensor([1]))], [8], 4)
    session.prefill()
    tree = Draft(tokens=torch.tensor([0, 1]), parents=(-1, -1))
    with pytest.raises(UnsupportedError, match="chains in"):
        session.score([0], [1], [tree])


def test_a_stream_without_sequential_slots_is_refused() -> None:
    """One slot, or parallel ones."""
    tiny = Tiny()
    for spec in (
        StreamSpec(slots=(Slot(size=3),)),
        StreamSpec(slots=(Slot(size=3),) * 2, parallel=True),
    ):
        with pytest.raises(UnsupportedError, match="sequential slots"):
            TwoLevelTarget("tiny", Time(tiny), Depth(tiny), spec)


def test_what_does_not_fit_the_time_model_is_refused() -> None:
    """Frames count, not symbols: the last one is never run."""
    target = Tiny(positions=4).target()
    prompt = Prompt(ids=torch.tensor([1, 2]))
    target.begin([prompt], [2 + 6], 4)
    with pytest.raises(PromptError, match="at most 6 symbols"):
        target.begin([prompt], [2 + 7], 4)


def test_nobody_goes_back_into_the_prompt() -> None:
    """The states of a prompt are not kept."""
    session = Tiny().target().begin([Prompt(ids=torch.tensor([1, 2]))], [8], 4)
    session.prefill()
    with pytest.raises(UnsupportedError, match="Begin another session"):
        session.rewind(0, 1)

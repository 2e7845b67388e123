"""Parallel slots: whole steps, exact laws by enumeration, seeds, endings, counts and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from multispec.drafters import DraftModel, Jacobi, PromptLookup, RowCopy
from multispec.drafters.rowwise import EachRow
from multispec.errors import DrafterWarning, InvalidLogitsError, PromptError, UnsupportedError, UsageError
from multispec.generator import Generator
from multispec.guidance import Guidance
from multispec.modalities.speech.layouts import Delayed
from multispec.policies import FixedLength
from multispec.protocols import Context, Drafter, DraftSession, Request, Verifier
from multispec.sampling import Noise, Purpose, Sampling
from multispec.stream import (
    Allowed,
    Draft,
    EverySlot,
    Forced,
    Generation,
    Observation,
    Prompt,
    Slot,
    StreamSpec,
)
from multispec.testing import (
    ScriptedDrafter,
    SlotTableModel,
    TreeDrafter,
    enumerate_law,
    play,
    row,
)
from multispec.verifiers import BudgetedRejection, CoolSD, Coupled, Rejection

# Codes 0 .. 2, then the start and pad symbol.
CODES, START = 3, 3
LAYOUT = Delayed(delays=(0, 1), codes_per_book=CODES, start=START, frames=2)
TARGET = SlotTableModel(2, 4, seed=3, spec=LAYOUT.spec)
NEAR = SlotTableModel(
    table=TARGET.table + 0.6 * SlotTableModel(2, 4, seed=8).table, spec=LAYOUT.spec, strict=False
)
PROMPT = (START, START)
LENGTH = 6
JointLaw = dict[tuple[int, ...], float]


def law_of(
    model: SlotTableModel, layout: Delayed, prompt: Sequence[int], temperature: float = 1.0
) -> JointLaw:
    """The law of whole streams, read off the table step by step."""
    table = model.table.numpy()
    law: JointLaw = {(): 1.0}
    for _ in range(layout.spec.fixed_length // 2 if layout.spec.fixed_length else 0):
        grown: JointLaw = {}
        for prefix, mass in law.items():
            last = (*prompt, *prefix)[-2:]
            logits = table[last[0] * 5 + last[1]]
            slots = [_slot_law(layout, prefix, slot, logits[slot] / temperature) for slot in range(2)]
            for a, p in enumerate(slots[0]):
                for b, q in enumerate(slots[1]):
                    if p * q > 0:
                        grown[(*prefix, a, b)] = grown.get((*prefix, a, b), 0.0) + mass * float(p * q)
        law = grown
    return law


def _slot_law(layout: Delayed, prefix: Sequence[int], slot: int, scores: Any) -> Any:
    # The delays by hand: the second codebook starts and ends a step later.
    frame = len(prefix) // 2 - layout.delays[slot]
    probs = np.zeros(4)
    if 0 <= frame < (layout.frames or 0):
        probs[:CODES] = np.exp(scores[:CODES]) / np.exp(scores[:CODES]).sum()
    else:
        probs[START] = 1.0
    return probs


@dataclass(frozen=True, eq=False)
class SlotDrafter:
    """Steps drawn from a model's law (or its best symbols), every slot by itself."""

    name: ClassVar[str] = "slots"
    model: SlotTableModel
    kind: str = "sampled"
    num_draft_tokens: int = 4

    def begin(self, context: Context) -> DraftSession:
        return EachRow(context, lambda _: self)

    def propose(self, request: Request) -> Draft:
        history, tokens, q = request.history, list[int](), list[Tensor]()
        while len(tokens) < request.budget.nodes:
            start = request.round_start + len(tokens)
            logits = self.model.after([*history.ids, *tokens], history.prompt_length)
            probs = torch.stack([self._probs(logits[slot], start + slot) for slot in range(2)])
            positions, key = [start, start + 1], request.round_start
            if self.kind == "point":
                tokens += probs.argmax(-1).tolist()
            else:
                tokens += request.noise.choose(probs, positions, Purpose.DRAFT, key).tolist()
            q.append(probs)
        together = torch.cat(q) if q else torch.zeros(0, 4)
        return Draft.chain(tokens, together if self.kind == "sampled" and tokens else None)

    def _probs(self, logits: Tensor, position: int) -> Tensor:
        """The best two codes, fewer than the target has: some symbols come by correction alone."""
        probs = torch.zeros(4, dtype=torch.float64)
        if LAYOUT.coordinates(position) is None:
            probs[START] = 1.0
            return probs
        best = logits[:CODES].topk(2)
        probs[best.indices] = best.values.softmax(-1)
        return probs

    def observe(self, observation: Observation) -> None:
        pass


def asked(drafter: Drafter | None, verifier: Verifier, nodes: int = 4, **changes: Any) -> Any:
    settings: dict[str, Any] = {"policy": FixedLength(num_draft_tokens=nodes), "max_new_tokens": LENGTH}
    return row(PROMPT, drafter=drafter, verifier=verifier, **(settings | changes))


@dataclass
class Tally:
    """What happened over all branches."""

    drafted: int = 0
    accepted: int = 0
    spent: float = 0.0

    def add(self, result: Generation, noise: Any) -> tuple[int, ...]:
        self.drafted += result.report.drafted
        self.accepted += result.report.accepted
        self.spent += noise.weight * result.report.variation_spent
        return tuple(result.tokens.flatten().tolist())


def enumerated(drafter: Drafter | None, verifier: Verifier, **changes: Any) -> tuple[JointLaw, Tally]:
    tally = Tally()

    def run(noise: Noise) -> tuple[int, ...]:
        return tally.add(play(TARGET, asked(drafter, verifier, noise=noise, **changes))[0], noise)

    return enumerate_law(run), tally


def assert_same_law(found: JointLaw, expected: JointLaw) -> None:
    assert sum(found.values()) == pytest.approx(1, abs=1e-9)
    assert set(found) == set(expected)
    assert max(abs(found[key] - expected[key]) for key in found) < 1e-9


@pytest.mark.parametrize("kind", ["plain", "point", "sampled"])
def test_rejection_has_the_law_of_delayed_streams(kind: str) -> None:
    """Two frames, two codebooks, three codes, delays (0, 1): all 81 outcomes within 1e-9."""
    drafters: dict[str, Drafter | None] = {
        "plain": None,
        "point": SlotDrafter(NEAR, "point"),
        "sampled": SlotDrafter(NEAR),
    }
    found, tally = enumerated(drafters[kind], Rejection())
    expected = law_of(TARGET, LAYOUT, PROMPT)
    assert len(expected) == 81
    assert_same_law(found, expected)
    assert (tally.drafted > 0) == (kind != "plain")
    assert kind == "plain" or 0 < tally.accepted < tally.drafted


def test_rejection_has_the_law_of_two_drafted_steps() -> None:
    """Three frames, two steps in a draft: what stands behind a corrected slot is not looked at."""
    layout = replace(LAYOUT, frames=3)
    # Two codes in each law, so that there are few enough outcomes.
    table = TARGET.table.masked_fill(TARGET.table == TARGET.table[..., :CODES].amin(-1, True), -torch.inf)
    model = SlotTableModel(table=table, spec=layout.spec)

    def run(noise: Noise) -> tuple[int, ...]:
        settings = asked(
            ScriptedDrafter([0, 3, 1, 2, 0, 0, 3, 1]), Rejection(), max_new_tokens=8, noise=noise
        )
        return tuple(play(model, settings)[0].tokens.flatten().tolist())

    assert_same_law(enumerate_law(run), law_of(model, layout, PROMPT))


def test_the_enumeration_notices_a_wrong_q() -> None:
    """Tokens of one law, q of another: so the tests above can fail."""

    @dataclass(frozen=True, eq=False)
    class Liar(SlotDrafter):
        def propose(self, request: Request) -> Draft:
            draft = super().propose(request)
            return draft if draft.q is None else replace(draft, q=(draft.q + draft.q.roll(1, -1)) / 2)

    found, _ = enumerated(Liar(NEAR), Rejection())
    expected = law_of(TARGET, LAYOUT, PROMPT)
    assert max(abs(found.get(key, 0) - mass) for key, mass in expected.items()) > 1e-3


@pytest.mark.parametrize(
    "verifier", [CoolSD(delta=1.4), BudgetedRejection(per_token=0.1)], ids=lambda v: v.name
)
def test_the_meter_of_relaxed_rules(verifier: Verifier) -> None:
    """The mean of what is reported bounds the distance of the joint law; the budget holds."""
    found, tally = enumerated(SlotDrafter(NEAR), verifier)
    expected = law_of(TARGET, LAYOUT, PROMPT)
    assert sum(found.values()) == pytest.approx(1, abs=1e-9)
    distance = sum(max(found.get(key, 0.0) - mass, 0.0) for key, mass in expected.items())
    assert 1e-4 < distance <= tally.spent + 1e-9
    assert verifier.name != "budget" or tally.spent <= 0.1 * LENGTH


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 2},
    {"repetition_penalty": 1.6, "top_p": 0.9},
    {"frequency_penalty": 0.5, "min_new_tokens": 3, "logit_bias": {1: 0.4}},
]
DRAFTERS: dict[str, Drafter] = {
    "jacobi": Jacobi(num_draft_tokens=9),
    "prompt_lookup": PromptLookup(),
    "row_copy": RowCopy(),
    "slots": SlotDrafter(NEAR, "point"),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_any_drafter_emits_what_the_seed_says(drafter: str) -> None:
    """Plain decoding, drafts and neighbours: the same symbols, setting by setting."""
    layout = replace(LAYOUT, frames=12)
    model = SlotTableModel(table=TARGET.table, spec=layout.spec)
    settings: list[dict[str, Any]] = [
        {"sampling": Sampling(**one, seed=seed), "max_new_tokens": 26} for seed, one in enumerate(SETTINGS)
    ]
    plain = [play(model, asked(None, Coupled(), **one))[0] for one in settings]
    drafted = play(model, *(asked(DRAFTERS[drafter], Coupled(), 6, **one) for one in settings))
    for one, other in zip(plain, drafted, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert one.tokens.shape == (13, 2) and one.report.step_compression == 1
    assert sum(one.report.accepted for one in drafted) > 0
    assert sum(one.report.target_calls for one in drafted) < 13 * len(settings)


def test_slots_are_drawn_as_streams_of_their_own() -> None:
    """Penalties and foreign processors see the symbols of their slot, as transformers' rows B K do."""
    seen: list[list[int]] = []

    def watch(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids[0].tolist())
        return scores

    model = SlotTableModel(2, 4, seed=1)
    found = play(model, asked(None, Coupled(), processors=(watch,)))[0]
    columns = [[START, *found.tokens[:, slot].tolist()] for slot in range(2)]
    assert seen == [column[: step + 1] for step in range(3) for column in columns]


def test_slots_have_sizes_of_their_own() -> None:
    """A slot's law is that of its own segment."""
    spec = StreamSpec(slots=(Slot(size=2), Slot(size=3, offset=2)), parallel=True)
    found = play(SlotTableModel(2, 5, spec=spec, seed=2), row((0, 2), max_new_tokens=40))[0]
    assert {*found.tokens[:, 0].tolist()} <= {0, 1} and {*found.tokens[:, 1].tolist()} <= {2, 3, 4}


# ---- counts ----


def scripted(*tokens: int, **changes: Any) -> Generation:
    """Greedy decoding of a model whose best symbols are 0, 1, 2 in turn, in both slots."""
    table = torch.full((25, 2, 4), -5.0, dtype=torch.float64)
    for a in range(5):
        for b in range(5):
            table[a * 5 + b, 0, (a + 1) % 3] = 5.0
            table[a * 5 + b, 1, (b + 1) % 3] = 5.0
    spec = changes.pop("spec", StreamSpec(slots=(Slot(size=4),) * 2, parallel=True))
    drafter = ScriptedDrafter(tokens) if tokens else None
    settings = {"sampling": Sampling(temperature=0), "max_new_tokens": 8, "drafter": drafter} | changes
    return play(SlotTableModel(table=table, spec=spec), row((2, 2), **settings))[0]


def test_what_a_round_counts() -> None:
    """A draft of two steps, the second with one wrong slot: three symbols accepted, one step in full."""
    found = scripted(0, 0, 1, 1, 2, 0, 0, 0)
    assert found.tokens.tolist() == [[0, 0], [1, 1], [2, 2], [0, 0]]
    report = found.report
    assert (report.drafted, report.accepted, report.new_tokens) == (4, 3, 8)
    assert report.drafted_at == [1, 1] and report.accepted_at == [1, 0]
    assert report.histogram == {0: 2, 3: 1}
    assert (report.rounds, report.target_calls, report.step) == (3, 3, 2)
    assert report.mean_acceptance_length == pytest.approx(4 / 3) == report.step_compression
    assert found.from_draft == (False, False, True, True, True, False, False, False)
    plain = scripted().report
    assert plain.mean_acceptance_length == plain.step_compression == 1


def test_a_budget_is_rounded_up_to_steps() -> None:
    """One symbol of a step cannot be checked; what remains bounds it all the same."""
    found = scripted(0, 0, 1, 1, 2, 2, 0, 0, policy=FixedLength(num_draft_tokens=1))
    assert found.report.drafted == 2 and found.report.accepted == 2
    odd = scripted(0, 0, 1, 1, 2, 2, 0, 0, max_new_tokens=7)
    assert odd.tokens.shape == (3, 2) and odd.finish_reason == "length"


def test_forced_symbols_are_no_guesses() -> None:
    """The triangles count as forced, neither as drafted nor as accepted."""
    layout = replace(LAYOUT, frames=3)
    model = SlotTableModel(table=TARGET.table, spec=layout.spec)
    truth = play(model, asked(None, Coupled(), max_new_tokens=8))[0].tokens.flatten().tolist()
    found = play(model, asked(ScriptedDrafter(truth), Coupled(), 6, max_new_tokens=8))[0].report
    assert (found.forced, found.drafted, found.accepted, found.rounds) == (2, 4, 4, 2)


# ---- endings ----


def test_an_end_finishes_its_step() -> None:
    """By an id in any slot, or by one in every slot, or by a stop."""
    spec = StreamSpec(slots=(Slot(size=4),) * 2, parallel=True, end_ids=(1,))
    by_id = scripted(0, 0, 1, 1, 2, 2, 0, 0, spec=spec, end_ids=(1,))
    assert by_id.tokens.tolist() == [[0, 0], [1, 1]] and by_id.finish_reason == "stop"
    assert by_id.report.accepted == 2 == by_id.report.drafted
    every = replace(spec, ended=EverySlot(ids=(2,), slots=2))
    assert scripted(0, 0, 1, 1, 2, 2, 0, 0, spec=every, end_ids=(1,)).tokens.shape == (3, 2)
    stopped = scripted(0, 0, 1, 1, 2, 2, stops=(lambda ids, scores: len(ids) == 5,))
    assert stopped.tokens.shape == (2, 2) and stopped.finish_reason == "stop"


@pytest.mark.parametrize("drafted", [False, True])
def test_a_countdown_ends_all(drafted: bool) -> None:
    """The first slot ends by chance; the last one as many steps later as it is behind."""
    layout = Delayed(delays=(0, 2), codes_per_book=2, start=3, end=2)
    model = SlotTableModel(2, 4, seed=5, spec=layout.spec)
    drafter = Jacobi(num_draft_tokens=8) if drafted else None
    rows = [
        asked(drafter, Coupled(), 8, sampling=Sampling(seed=seed), max_new_tokens=60, end_ids=(2,))
        for seed in range(6)
    ]
    for found in play(model, *rows):
        assert found.finish_reason == "stop"
        first, second = found.tokens.T.tolist()
        assert first.index(2) + 2 == second.index(2) == len(second) - 1
        assert len(layout.codes(found.tokens.flatten().tolist())) == first.index(2)


# ---- both branches of guidance ----


def test_guidance_mixes_every_slot() -> None:
    """Steps of both branches move together, at the scale of each position."""
    model = SlotTableModel(2, 4, seed=4)
    guidance = Guidance(scale=3.0, stop=4)
    other = Prompt(ids=torch.tensor([0, 1, 2, 2]))
    prompt = Prompt(ids=torch.tensor([1, 1]), guidance=guidance, unconditional=other)
    settings = replace(row((1, 1)), prompt=prompt, sampling=Sampling(temperature=0))
    plain = play(model, settings)[0].tokens.tolist()
    drafted = play(model, *[replace(settings, drafter=Jacobi(num_draft_tokens=4))] * 2)
    assert all(one.tokens.tolist() == plain for one in drafted)
    first = guidance.mix(model.after([1, 1], 2), model.after([2, 2], 2), range(2)).argmax(-1).tolist()
    second = guidance.mix(model.after(first, 2), model.after(first, 2), range(2, 4)).argmax(-1).tolist()
    assert plain[:3] == [first, second, model.after(second, 2).argmax(-1).tolist()]


# ---- what cannot be ----


def test_trees_are_set_aside() -> None:
    """A tree has no steps: the drafter is set aside, and the output stays."""
    with pytest.warns(DrafterWarning, match="2 parallel slots takes chains"):
        found = scripted(drafter=TreeDrafter())
    assert found.tokens.tolist() == scripted().tokens.tolist()
    assert found.report.drafter_failures == 1


def test_a_draft_model_is_refused() -> None:
    """It walks symbol by symbol."""
    with pytest.raises(UnsupportedError, match="2 slots of this stream move together"):
        play(TARGET, asked(DraftModel(TARGET), Coupled()))


def test_prompts_and_lengths_are_whole_steps() -> None:
    """Half a step is nothing that the model could be shown."""
    with pytest.raises(PromptError, match="holds whole steps: got 3"):
        play(TARGET, row((3, 3, 3)))
    generator = Generator(TARGET)
    with pytest.raises(UsageError, match="moves by steps of 2: got 1"):
        generator.generate([3, 3], max_new_tokens=1)
    assert generator.generate([3, 3], max_new_tokens=5, drafter=None).tokens.shape == (2, 2)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_law_that_is_none_is_named(penalty: float) -> None:
    """NaN in one slot: the slot, the position, the rule; what was made before is kept."""
    table = TARGET.table.clone()
    table[:, 1, :CODES] = torch.nan
    model = SlotTableModel(table=table, spec=LAYOUT.spec)
    drafter = ScriptedDrafter([0, 3, 1, 1, 3, 1])
    with pytest.raises(
        InvalidLogitsError, match="slot 1 at position 3 of row 0: after the model's own logits"
    ):
        play(model, asked(drafter, Coupled(), sampling=Sampling(repetition_penalty=penalty)))


def test_a_grammar_cannot_look_at_its_own_step() -> None:
    """What it says may not hang on a slot that is drawn beside it: those symbols read -1."""
    seen: list[list[int]] = []

    def grammar(generated: Sequence[int]) -> Forced | Allowed | None:
        seen.append([*generated])
        return None

    spec = StreamSpec(slots=(Slot(size=4),) * 2, parallel=True, grammar=grammar)
    scripted(0, 0, 1, 1, spec=spec, max_new_tokens=6)
    assert [0, 0, -1] in seen and [0, 0, 1, 1, -1] in seen
    assert all(-1 not in one[: len(one) // 2 * 2] for one in seen)

"""Traps 25 to 30: vocabularies, exceptions, statistics, many processes, many codebooks."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from multispec.drafters import DraftModel
from multispec.errors import DrafterWarning, IncompatibleModelsError
from multispec.guidance import Guidance
from multispec.history import History
from multispec.policies import FixedLength, Heuristic
from multispec.processing import Pipeline, Places
from multispec.protocols import Request, Standing
from multispec.sampling import CounterNoise, Law, Purpose, Sampling
from multispec.stream import Draft, Forced, Prompt, Slot, StreamSpec
from multispec.testing import ScriptedDrafter, ScriptedModel, TableModel, play, row
from multispec.verifiers import Coupled, Rejection
from tests.models import zoo
from tests.traps.tools import by_hand, constant, distance, generation, law, tokens_of

SCRIPT = [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_trap_25_vocabularies_that_differ_by_padding_work_together(size: int) -> None:
    """A smaller or a larger draft vocabulary keeps the law, and q always sums to one."""
    target = TableModel(3, seed=1)
    drafter = DraftModel(TableModel(size, seed=2, strict=False))
    prompt = (1,)
    assert distance(law(target, drafter=drafter, prompt=prompt), by_hand(target)) < 1e-9


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
@pytest.mark.parametrize("size", [60, 70])
def test_trap_25_padding_symbols_of_a_real_draft_are_never_drafted(size: int, verifier: str) -> None:
    """A draft model padded to another multiple drafts ids of the target only, and none is set aside."""
    draft = zoo.build("llama", 3, vocab_size=size)
    prompt = zoo.prompt("llama", [5, 9, 3, 7])
    settings: dict[str, Any] = {"sampling": Sampling(seed=3), "max_new_tokens": 24}
    found = zoo.generator("llama").generate(prompt, drafter=DraftModel(draft), verifier=verifier, **settings)
    assert found.report.drafter_failures == 0 and found.report.drafted > 0
    if verifier == "coupled":
        plain = zoo.generator("llama").generate(prompt, drafter=None, **settings)
        assert found.tokens.tolist() == plain.tokens.tolist()


def test_trap_26_another_vocabulary_is_refused_with_the_reason() -> None:
    """Models of different tokenizers are not coupled by re-encoding text: the error says what to do."""
    draft = zoo.build("llama", vocab_size=1000)
    with pytest.raises(IncompatibleModelsError, match="1000 symbols, the target 64.*Use a draft of the same"):
        zoo.generator("llama").generate(zoo.prompt("llama"), drafter=DraftModel(draft), max_new_tokens=4)


def _failing_after(count: int) -> ScriptedDrafter:
    calls: list[int] = []

    def propose(request: Request) -> Draft:
        calls.append(1)
        if len(calls) > count:
            raise RuntimeError("the draft broke")
        return Draft.chain([1])

    return ScriptedDrafter(propose)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_trap_27_a_drafter_that_raises_leaves_the_model_as_it_was(count: int) -> None:
    """No configuration is changed and not restored, and the output goes on as if nothing had happened."""
    model = zoo.shared("llama")
    before = (model.config.to_dict(), model.generation_config.to_dict(), model.training)
    settings: dict[str, Any] = {"sampling": Sampling(seed=3), "max_new_tokens": 12}
    plain = zoo.generator("llama").generate(zoo.prompt("llama"), drafter=None, **settings)
    with pytest.warns(DrafterWarning, match="the draft broke"):
        found = zoo.generator("llama").generate(
            zoo.prompt("llama"), drafter=_failing_after(count), **settings
        )
    assert found.tokens.tolist() == plain.tokens.tolist()
    assert found.report.drafter_failures == 1
    assert (model.config.to_dict(), model.generation_config.to_dict(), model.training) == before


def test_trap_27_a_draft_model_is_not_changed_by_drafting() -> None:
    """The assistant keeps its weights and its configurations, and can be used again."""
    draft = zoo.shared("llama", 1)
    weights = {name: value.clone() for name, value in draft.state_dict().items()}
    before = (draft.config.to_dict(), draft.generation_config.to_dict())
    drafter = DraftModel(draft)
    runs = [
        zoo.generator("llama").generate(zoo.prompt("llama"), drafter=drafter, max_new_tokens=9)
        for _ in range(2)
    ]
    assert runs[0].tokens.tolist() == runs[1].tokens.tolist()
    assert (draft.config.to_dict(), draft.generation_config.to_dict()) == before
    assert all(torch.equal(value, weights[name]) for name, value in draft.state_dict().items())


def test_trap_27_a_schedule_does_not_persist_across_calls() -> None:
    """The same policy object starts anew in every generation."""
    policy = Heuristic()
    settings: dict[str, Any] = {"drafter": ScriptedDrafter(SCRIPT * 4), "max_new_tokens": 20}
    first, second = (generation(ScriptedModel(SCRIPT), policy=policy, **settings) for _ in range(2))
    assert first.report.histogram == second.report.histogram
    assert first.report.rounds == second.report.rounds


def test_trap_28_counters_are_those_counted_by_hand() -> None:
    """Drafts of four, wrong at places 3 and 7: two, three and (there is room for no more) two accepted."""
    script = [2, 3, 4, 0, 6, 7, 8, 0, 2, 3, 4]
    result = generation(ScriptedModel(SCRIPT), drafter=ScriptedDrafter(script), max_new_tokens=11)
    report = result.report
    assert result.tokens.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4]
    assert result.from_draft == tuple(place not in (0, 3, 7, 10) for place in range(11))
    assert (report.new_tokens, report.rounds, report.target_calls) == (11, 4, 4)
    assert (report.drafted, report.accepted) == (10, 7)
    assert (report.drafted_at, report.accepted_at) == ([3, 3, 2, 2], [3, 3, 1, 0])
    assert report.histogram == {0: 1, 2: 2, 3: 1}
    assert report.mean_acceptance_length == 11 / 4 and report.acceptance_rate == 0.7


def test_trap_28_positions_that_were_never_drafted_are_not_rejections() -> None:
    """Drafts of one symbol, always right: position 1 has rate 1, and there is no position 2."""
    result = generation(
        ScriptedModel(SCRIPT),
        drafter=ScriptedDrafter(SCRIPT * 3),
        policy=FixedLength(num_draft_tokens=1),
        max_new_tokens=12,
    )
    assert result.report.acceptance_by_position == [1.0]


def test_trap_28_a_row_that_is_done_counts_nothing_more() -> None:
    """A short row in a batch with a long one has the counters that it has alone."""
    settings = {"drafter": ScriptedDrafter(SCRIPT * 4)}
    short: dict[str, Any] = {"max_new_tokens": 3, **settings}
    long: dict[str, Any] = {"max_new_tokens": 30, **settings}
    batch = play(ScriptedModel(SCRIPT), row(**short), row(**long))
    alone = [generation(ScriptedModel(SCRIPT), **one) for one in (short, long)]
    for together, single in zip(batch, alone, strict=True):
        ours, theirs = together.report.to_dict(), single.report.to_dict()
        for timed in ("seconds", "tokens_per_second"):
            ours.pop(timed)
            theirs.pop(timed)
        assert ours == theirs


_VERDICTS = """
import json, sys, torch
from multispec.protocols import Standing
from multispec.sampling import CounterNoise, Law
from multispec.stream import Draft
from multispec.verifiers import Coupled, Rejection
given = json.load(sys.stdin)
law = Law(torch.tensor(given["logits"], dtype=torch.float64), greedy=False)
draft = Draft.chain(given["tokens"], torch.tensor(given["q"], dtype=torch.float64))
rules = (Coupled(), Rejection())
at = Standing(3)
out = [[rule.verify(draft, law, CounterNoise(seed), at).tokens for rule in rules] for seed in range(40)]
json.dump(out, sys.stdout)
"""


def test_trap_29_processes_agree_without_talking() -> None:
    """Two ranks with the same logits accept the same symbols: the noise is a function, not a state."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    q = torch.randn(4, 9, generator=generator, dtype=torch.float64).softmax(-1)
    given = {"logits": logits.tolist(), "tokens": [1, 2, 3, 4], "q": q.tolist()}
    torch.rand(3)  # this rank has drawn from its own generator, the other has not
    found = subprocess.run(
        [sys.executable, "-c", _VERDICTS],
        input=json.dumps(given),
        env={**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    draft = Draft.chain([1, 2, 3, 4], q)
    here = [
        [
            list(rule.verify(draft, Law(logits, greedy=False), CounterNoise(seed), Standing(3)).tokens)
            for rule in (Coupled(), Rejection())
        ]
        for seed in range(40)
    ]
    assert json.loads(found.stdout) == here
    assert {len(tokens) for pair in here for tokens in pair} > {1}


def test_trap_29_the_place_in_a_batch_decides_nothing() -> None:
    """A row's symbols are those it has alone, wherever it stands among its neighbours."""
    model = TableModel(seed=8)
    rows = [row(prompt=(n + 1,), sampling=Sampling(seed=n), max_new_tokens=12) for n in range(4)]
    alone = [play(model, one)[0].tokens.tolist() for one in rows]
    for order in ([3, 1, 0, 2], [2, 3]):
        together = play(model, *(rows[n] for n in order))
        assert [one.tokens.tolist() for one in together] == [alone[n] for n in order]


FRAME = StreamSpec(slots=(Slot(size=6), Slot(size=6), Slot(size=6)))


def test_trap_30_each_codebook_of_a_frame_has_noise_of_its_own() -> None:
    """The same law at every slot gives different symbols per slot, and the keys follow (frame, slot)."""
    flat = Law(torch.zeros(300, 6), greedy=False)
    framed = CounterNoise(5, slots=3).symbols(flat, range(300)).view(100, 3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        same = float((framed[:, first] == framed[:, second]).float().mean())
        assert 0.05 < same < 0.32, "about one in six by chance"
    keys = [CounterNoise(5, slots=3).keys([position], Purpose.SYMBOL)[0] for position in range(300)]
    assert len(set(keys)) == 300


@pytest.mark.parametrize("drafted", [(1, 1), (2, 3, 4, 5), (0, 0, 0, 0)])
def test_trap_30_rollback_acts_on_the_flat_stream(drafted: tuple[int, ...]) -> None:
    """Drafts that are rejected inside a frame leave it as plain decoding does: one decision per codebook."""
    model = TableModel(6, seed=3, order=3, spec=FRAME)
    settings: dict[str, Any] = {"prompt": (1, 2, 3), "sampling": Sampling(seed=9), "max_new_tokens": 21}
    plain = play(model, row(**settings))[0]
    drafter = ScriptedDrafter(constant(*drafted))
    found = play(model, row(drafter=drafter, **settings))[0]
    assert plain.tokens.shape == (7, 3)
    assert found.tokens.tolist() == plain.tokens.tolist()
    perfect = ScriptedDrafter(plain.tokens.flatten().tolist(), num_draft_tokens=5)
    assert play(model, row(drafter=perfect, **settings))[0].report.acceptance_rate == 1


def test_trap_30_a_stop_inside_a_frame_trims_to_whole_frames() -> None:
    """A stop acts on the flat stream; the frames that are given out are whole."""
    script = [0, 1, 2, 3, 4, 5, 2, 2]
    spec = StreamSpec(slots=FRAME.slots, fixed_length=8)
    table = TableModel(6, seed=3, spec=spec)
    found = play(table, row(drafter=ScriptedDrafter(script), max_new_tokens=30))[0]
    assert found.finish_reason == "stop"
    assert found.report.new_tokens == 8 and found.tokens.shape == (2, 3)


def test_trap_30_forced_codes_cost_no_randomness_and_no_acceptance() -> None:
    """A grammar over the flat stream (padding of a delay pattern) counts as forced, not as accepted."""
    spec = StreamSpec(
        slots=FRAME.slots, grammar=lambda seen: Forced(5) if len(seen) % 3 == 2 and len(seen) < 6 else None
    )
    model = TableModel(6, seed=3, spec=spec)
    settings: dict[str, Any] = {"sampling": Sampling(seed=9), "max_new_tokens": 12}
    plain = play(model, row(**settings))[0]
    assert plain.tokens[0, 2] == plain.tokens[1, 2] == 5
    drafter = ScriptedDrafter(plain.tokens.flatten().tolist(), num_draft_tokens=5)
    drafted = play(model, row(drafter=drafter, **settings))[0]
    assert drafted.tokens.tolist() == plain.tokens.tolist()
    assert plain.report.forced == drafted.report.forced == 2
    assert drafted.report.accepted == drafted.report.drafted < sum(drafted.from_draft) + 1
    assert tokens_of(model, **settings) == plain.tokens.flatten().tolist()


def test_trap_30_both_branches_of_guidance_roll_back_together() -> None:
    """What the unconditional branch holds behind its own prompt is what was emitted, whatever was drafted."""
    other = Prompt(ids=torch.tensor([3, 3, 7]))
    prompt = Prompt(ids=torch.tensor([1]), guidance=Guidance(scale=2.0), unconditional=other)
    model = TableModel(seed=3)
    wrong = ScriptedDrafter([5, 5, 5, 5] * 4, num_draft_tokens=4)
    plain = play(model, dataclasses.replace(row(max_new_tokens=12), prompt=prompt))[0]
    drafted = play(model, dataclasses.replace(row(max_new_tokens=12, drafter=wrong), prompt=prompt))[0]
    assert drafted.tokens.tolist() == plain.tokens.tolist()
    assert drafted.report.drafted > drafted.report.accepted
    kept = model.sessions[-1].kept
    assert kept[1][3:] == kept[0][1:] == plain.tokens.tolist()[:-1]


def test_trap_30_p_is_formed_after_mixing() -> None:
    """Top-k of the guided logits, not the guided top-k's: a symbol banned in one branch may come."""
    c, u = torch.tensor([[2.0, 1.9, 0.0]]), torch.tensor([[2.0, -3.0, 0.0]])
    mixed = Guidance(scale=2.0).mix(c, u, [0])
    law = Pipeline(Sampling(top_k=1), 3).law(mixed, Places(History([0]), ((),)))
    assert law.probs.tolist() == [[0.0, 1.0, 0.0]] and int(c.argmax()) == 0

"""Traps 8, 9 and 19 to 24: what the caches hold after a round, and how rounding is told from error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.drafters import DraftModel
from multispec.policies import FixedLength
from multispec.stream import Draft
from multispec.targets import CausalTarget
from multispec.targets.causal import CausalRunner
from multispec.targets.encoder_decoder import EncoderDecoderTarget
from multispec.targets.ragged import RaggedSession
from multispec.targets.rowwise import RowwiseSession, snapshot
from multispec.testing import ScriptedDrafter, ScriptedModel
from tests.models import zoo
from tests.traps.tools import generation

SCRIPT = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Sessions run where the loop runs them."""
    with torch.inference_mode():
        yield


def test_trap_08_the_bonus_comes_once_and_only_after_full_acceptance() -> None:
    """Four drafted and accepted give five symbols; three of four give four, the correction among them."""
    full = generation(ScriptedModel(SCRIPT), drafter=ScriptedDrafter(SCRIPT), max_new_tokens=11)
    assert full.from_draft == (False, True, True, True, True, False, True, True, True, True, False)
    assert full.report.histogram == {0: 1, 4: 2}
    assert full.report.mean_acceptance_length == 11 / 3
    short = ScriptedDrafter([0, *SCRIPT[1:4], 0])
    part = generation(ScriptedModel(SCRIPT), drafter=short, max_new_tokens=5)
    assert part.from_draft == (False, True, True, True, False)
    assert part.report.histogram == {0: 1, 3: 1}


def test_trap_08_the_draft_cache_catches_up_after_full_acceptance() -> None:
    """After a bonus the draft model lacks its own last symbol: it is run, never skipped or run twice."""
    target, draft = ScriptedModel(SCRIPT), ScriptedModel(SCRIPT, strict=False)
    drafter = DraftModel(draft, num_draft_tokens=4)
    result = generation(target, drafter=drafter, max_new_tokens=40)
    assert result.report.acceptance_rate == 1
    emitted = [1, *result.tokens.tolist()]
    kept = draft.sessions[0].kept[0]
    assert kept == emitted[: len(kept)] and len(kept) >= len(emitted) - 2


@pytest.mark.parametrize("wrong", range(6))
def test_trap_09_the_caches_hold_what_was_emitted_whatever_was_rejected(wrong: int) -> None:
    """A draft that is wrong at one place: both caches are cut to the symbol (the fakes check it)."""
    script = [9 if n % 6 == wrong else token for n, token in enumerate(SCRIPT * 3)]
    result = generation(
        ScriptedModel(SCRIPT),
        drafter=ScriptedDrafter(script),
        max_new_tokens=25,
        policy=FixedLength(num_draft_tokens=5),
    )
    assert result.tokens.tolist() == (SCRIPT * 3)[:25]
    draft = ScriptedModel(script, strict=False)
    drafter = DraftModel(draft, num_draft_tokens=5)
    assert (
        generation(ScriptedModel(SCRIPT), drafter=drafter, max_new_tokens=25).tokens.tolist()
        == ((SCRIPT * 3)[:25])
    )


def _scores_after_rejection(session: Any, ids: tuple[int, ...], accepted: int) -> tuple[Any, list[int]]:
    """Run a draft of three, accept some of it, and score one more symbol."""
    session.prefill()
    session.score([0], [6], [Draft.chain([11, 12, 13])])
    session.commit([0], [tuple(range(accepted))])
    found = session.score([0], [20], [Draft.chain([21, 22])]).logits[0]
    return found, [*ids, 6, *[11, 12, 13][:accepted], 20, 21, 22]


def _assert_fresh(name: str, found: torch.Tensor, ids: list[int]) -> None:
    for back in range(3):
        expected = zoo.forward_last(name, ids[: len(ids) - back])
        torch.testing.assert_close(found[2 - back], expected, **CLOSE)


@pytest.mark.parametrize("accepted", range(4))
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2", "bloom"])
def test_trap_09_cropping_removes_exactly_what_was_rejected(name: str, accepted: int) -> None:
    """In transformers' own caches: nothing rejected (crop by 0, also of sliding layers) up to all of it."""
    ids = zoo.IDS * 2
    session = RowwiseSession(CausalRunner(zoo.shared(name)), [zoo.prompt(name, ids)])
    found, full = _scores_after_rejection(session, ids, accepted)
    assert session.length(0) == len(full) - 3
    _assert_fresh(name, found, full)


def _bfloat16(name: str) -> Any:
    return zoo.build(name).to(torch.bfloat16)


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_trap_19_in_half_precision_only_near_ties_may_differ(name: str) -> None:
    """In bfloat16 drafted and plain output differ only where the two best scores are within the noise."""
    generator = ms.load(model=_bfloat16(name))
    differences = 0
    for shift in range(4):
        prompt = zoo.prompt(name, [(3 * n + shift) % 50 + 3 for n in range(7)])
        settings: dict[str, Any] = {"sampling": ms.Sampling(temperature=0), "max_new_tokens": 20}
        plain = generator.generate(prompt, drafter=None, output_scores=True, **settings)
        drafter = ScriptedDrafter(plain.tokens.tolist(), num_draft_tokens=6)
        drafted = generator.generate(prompt, drafter=drafter, output_scores=True, **settings)
        pairs = enumerate(zip(plain.tokens.tolist(), drafted.tokens.tolist(), strict=True))
        at = next((n for n, (a, b) in pairs if a != b), len(plain.tokens))
        noise = (plain.logits[:at] - drafted.logits[:at]).float().abs().max()
        assert noise < 0.15 * plain.logits.float().std()
        if at < len(plain.tokens):
            best = plain.logits[at].float().topk(2).values
            assert best[0] - best[1] <= 2 * noise
            differences += 1
    assert differences <= 2


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_trap_19_in_float32_equality_is_exact(name: str) -> None:
    """The same comparison in float32 has no exceptions at all."""
    for shift in range(4):
        prompt = zoo.prompt(name, [(3 * n + shift) % 50 + 3 for n in range(7)])
        settings: dict[str, Any] = {"sampling": ms.Sampling(temperature=0), "max_new_tokens": 20}
        plain = zoo.generator(name).generate(prompt, drafter=None, **settings)
        drafter = ScriptedDrafter(plain.tokens.tolist(), num_draft_tokens=6)
        drafted = zoo.generator(name).generate(prompt, drafter=drafter, **settings)
        assert drafted.tokens.tolist() == plain.tokens.tolist()
        assert drafted.report.acceptance_rate == 1


@pytest.mark.parametrize("name", zoo.SLIDING)
@pytest.mark.parametrize("accepted", [0, 2])
def test_trap_21_a_rollback_across_a_sliding_window_leaves_no_stale_keys(name: str, accepted: int) -> None:
    """A rejected draft longer than the window has pushed nothing out that is still needed."""
    ids = zoo.IDS * 2
    target = CausalTarget(zoo.shared(name))
    session = target.begin([zoo.prompt(name, ids)], [64], 16)
    assert isinstance(session, RaggedSession)
    session.prefill()
    long = [11, 12, *range(20, 20 + 2 * zoo.WINDOW)]
    session.score([0], [6], [Draft.chain(long)])
    session.commit([0], [tuple(range(accepted))])
    found = session.score([0], [20], [Draft.chain([21, 22])]).logits[0]
    _assert_fresh(name, found, [*ids, 6, *long[:accepted], 20, 21, 22])


@pytest.mark.parametrize("name", zoo.RECURRENT)
def test_trap_22_a_snapshot_is_not_changed_by_later_passes(name: str) -> None:
    """The state that a rollback returns to is a copy: running on does not reach it."""
    runner = CausalRunner(zoo.shared(name))
    _, cache = runner.start(zoo.prompt(name))
    kept = snapshot(cache)
    with torch.inference_mode():
        before = runner.step([7], snapshot(kept), 1)
        for token in (11, 12, 13):
            runner.step([token], cache, 1)
        torch.testing.assert_close(runner.step([7], snapshot(kept), 1), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", zoo.RECURRENT)
def test_trap_22_recurrent_models_survive_rejection_in_every_round(name: str) -> None:
    """A drafter that is always wrong changes nothing, with states that cannot be cropped."""
    settings: dict[str, Any] = {"sampling": ms.Sampling(seed=4), "max_new_tokens": 14}
    plain = zoo.generator(name).generate(zoo.prompt(name), drafter=None, **settings)
    wrong = [(token + 1) % zoo.VOCABULARY for token in plain.tokens.tolist()]
    drafter = ScriptedDrafter(wrong, num_draft_tokens=4)
    drafted = zoo.generator(name).generate(zoo.prompt(name), drafter=drafter, **settings)
    assert drafted.tokens.tolist() == plain.tokens.tolist()
    assert drafted.report.accepted == 0 and drafted.report.drafted > 20


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma3"])
def test_trap_23_left_padding_shifts_no_position(name: str) -> None:
    """A padded row inside ``generate`` gives what it gives alone, with a draft model and given positions."""
    model = zoo.shared(name)
    ids = torch.tensor([[0, 0, 0, 5, 9, 3, 7], [4, 8, 5, 9, 3, 8, 4]])
    mask = (ids != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    loop = ms.speculative(DraftModel(zoo.shared(name, 1)))
    settings: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    together = model.generate(
        ids, attention_mask=mask, position_ids=positions, custom_generate=loop, **settings
    )
    alone = [model.generate(row[row != 0][None], **settings)[0, -10:].tolist() for row in ids]
    assert together[:, 7:].tolist() == alone


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_trap_24_the_cross_attention_cache_is_never_cropped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollback cuts the decoder's own cache; the encoder runs once and its keys keep their length."""
    model = zoo.shared(name)
    encoder, runs = model.get_encoder(), []
    handle = encoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        session: Any = EncoderDecoderTarget(model).begin([zoo.prompt(name)], [32], 4)
        session.prefill()
        cross = session._rows[0].cache.pair.cross_attention_cache
        length = cross.get_seq_length()
        assert length > 1
        for _ in range(5):
            session.score([0], [6], [Draft.chain([11, 12, 13])])
            session.commit([0], [(0,)])
            pair = session._rows[0].cache.pair
            assert pair.cross_attention_cache.get_seq_length() == length
            assert pair.self_attention_cache.get_seq_length() == session.length(0)
    finally:
        handle.remove()
    assert runs == [1]

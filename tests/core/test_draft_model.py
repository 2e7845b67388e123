"""A draft model is driven by our own loop: caches, vocabularies and configs stay in order."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from multispec.drafters import DraftModel
from multispec.drafters.draft_model import fit
from multispec.errors import IncompatibleModelsError, UsageError
from multispec.policies import Heuristic
from multispec.protocols import Budget, Past, Policy
from multispec.sampling import Sampling
from multispec.stream import Generation
from multispec.targets import target_for
from multispec.testing import FakeModel, TableModel, play, row
from multispec.verifiers import Coupled, Rejection

TARGET = TableModel(seed=1)
LENGTH = 30


def near(seed: int = 2, **abilities: Any) -> TableModel:
    """A model whose laws are near the target's, so that drafts are accepted sometimes."""
    generator = torch.Generator().manual_seed(seed)
    table = TARGET.table + torch.randn(TARGET.table.shape, generator=generator).double()
    return TableModel(table=table, strict=False, **abilities)


def run(drafter: DraftModel | None, target: Any = TARGET, **asked: Any) -> Generation:
    wanted: dict[str, Any] = {"max_new_tokens": LENGTH} | asked
    return play(target, row(drafter=drafter, **wanted))[0]


def drafts_in_its_cache(model: FakeModel, found: Generation) -> bool:
    """The draft's cache, when its row ended, held committed symbols only and nothing else."""
    ids = [1, *found.tokens.tolist()]
    kept = model.sessions[-1].kept[0]
    return kept == ids[: len(kept)]


@pytest.mark.parametrize("croppable", [True, False])
@pytest.mark.parametrize("rule", [Coupled(), Rejection()], ids=lambda rule: rule.name)
def test_the_cache_follows_what_is_accepted(croppable: bool, rule: Any) -> None:
    """Accepted, rejected and half accepted drafts, in models that crop and in those that replay."""
    model = near(croppable=croppable)
    found = run(DraftModel(model, 4), verifier=rule)
    assert 0 < found.report.accepted < found.report.drafted
    assert drafts_in_its_cache(model, found)


def test_models_that_replay_draft_the_same() -> None:
    """Going back to a checkpoint changes nothing but the cost."""
    crops, replays = near(), near(croppable=False)
    first, second = (run(DraftModel(model, 4)) for model in (crops, replays))
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.report.histogram == second.report.histogram


def test_catching_up_after_full_acceptance() -> None:
    """The last drafted symbol was never run: the next round runs it with the bonus, in one pass."""
    model = TableModel(seed=1)
    found = run(DraftModel(model, 3), max_new_tokens=13)
    assert found.report.acceptance_rate == 1
    assert drafts_in_its_cache(model, found)
    sizes = [1 + len(call.drafts[0]) for call in model.sessions[0].calls]
    assert sizes == [1, 1, 1, 2, 1, 1, 2, 1, 1]
    assert found.report.draft_calls == 1 + len(sizes)


class EveryThird(Heuristic):
    """Two plain rounds, then a draft."""

    def budget(self, past: Past, default_nodes: int) -> Budget:
        return Budget(nodes=3 if past.rounds % 3 == 0 else 0)


def test_catching_up_after_plain_rounds() -> None:
    """Symbols of rounds without a draft are run before the next draft."""
    policy: Policy = EveryThird()
    model = near()
    found = run(DraftModel(model, 3), policy=policy)
    assert found.tokens.tolist() == run(None).tokens.tolist()
    assert drafts_in_its_cache(model, found)
    assert any(len(call.drafts[0]) >= 2 for call in model.sessions[0].calls)


def test_catching_up_in_chunks() -> None:
    """More symbols than a pass may hold are run piece by piece."""

    class Late(Heuristic):
        def budget(self, past: Past, default_nodes: int) -> Budget:
            return Budget(nodes=3 if past.rounds > 80 else 0)

    model = near()
    found = run(DraftModel(model, 3), policy=Late(), max_new_tokens=90)
    assert found.tokens.tolist() == run(None, max_new_tokens=90).tokens.tolist()
    assert [1 + len(call.drafts[0]) for call in model.sessions[0].calls][:3] == [32, 32, 17]


@pytest.mark.parametrize("padded", ["draft", "target"])
@pytest.mark.parametrize("rule", [Coupled(), Rejection()], ids=lambda rule: rule.name)
def test_padded_vocabularies_work_both_ways(padded: str, rule: Any) -> None:
    """Extra symbols of the draft are cut, missing ones get no mass; nothing is lost."""
    wide, narrow = TableModel(16, seed=1), TableModel(12, seed=1)
    target, draft = (narrow, wide) if padded == "draft" else (wide, narrow)
    model = TableModel(table=draft.table, strict=False, spec=draft.spec)
    found = run(DraftModel(model, 3), target, verifier=rule)
    assert found.report.notes == []
    assert found.report.drafted > 0
    if rule.coupled:
        assert found.tokens.tolist() == run(None, target).tokens.tolist()


def test_fitting_logits_to_a_vocabulary() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert fit(logits, 2).tolist() == [[1, 2]]
    assert fit(logits, 3) is logits
    assert fit(logits, 4).tolist() == [[1, 2, 3, -torch.inf]]


def test_another_vocabulary_is_refused() -> None:
    """More than padding apart: another tokenizer. Said before anything is generated."""
    with pytest.raises(IncompatibleModelsError, match="the draft has 900 symbols, the target 12"):
        run(DraftModel(TableModel(900), 3))


def test_nothing_to_draft_is_refused() -> None:
    with pytest.raises(UsageError, match="num_draft_tokens must be >= 1: got 0"):
        DraftModel(TableModel(), 0)


def test_rows_are_drafted_in_lockstep() -> None:
    """Four rows of different length cost as many passes as the longest draft, not as all together."""
    model = near()
    drafter = DraftModel(model, 3)
    prompts = [(1,), (4, 2, 7), (9, 9), (0, 1, 2, 3, 4)]
    rows = [row(prompt, drafter=drafter, max_new_tokens=12) for prompt in prompts]
    together = play(TARGET, *rows)
    alone = [play(TARGET, one)[0] for one in rows]
    assert [a.tokens.tolist() for a in together] == [b.tokens.tolist() for b in alone]
    assert len(model.sessions[0].calls[0].rows) == 4
    calls = len(model.sessions[0].calls)
    assert calls < sum(len(session.calls) for session in model.sessions[1:])


# ---- transformers models as drafts ----


@cache
def llama(seed: int, vocabulary: int = 32) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.4,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).double().eval()


@cache
def mamba() -> Any:
    torch.manual_seed(3)
    config = transformers.MambaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=None
    )
    return transformers.MambaForCausalLM(config).eval()


PROMPT = (5, 9, 3, 7, 5, 9)


def on_llama(drafter: DraftModel | None, **asked: Any) -> Generation:
    settings: dict[str, Any] = {"max_new_tokens": 24, "sampling": Sampling(seed=4)} | asked
    return play(target_for(llama(0)), row(PROMPT, drafter=drafter, **settings))[0]


@pytest.mark.parametrize("model", [lambda: llama(1), mamba], ids=["llama", "mamba"])
def test_transformers_models_draft(model: Any) -> None:
    """A model that can be cropped, and one whose state has to go back to a checkpoint."""
    found = on_llama(DraftModel(model(), 3))
    assert found.report.notes == []
    assert found.report.drafted > 0
    assert found.tokens.tolist() == on_llama(None).tokens.tolist()


def test_a_recurrent_draft_rewinds_to_what_was_committed() -> None:
    """Drafts of a Mamba after rejections are those of a fresh Mamba on the same prefix."""
    target = target_for(llama(0))
    greedy = {"sampling": Sampling(temperature=0), "max_new_tokens": 12}
    drafter = DraftModel(mamba(), 3)
    seen: list[tuple[list[int], list[int]]] = []
    begin = drafter.begin

    def watched(context: Any) -> Any:
        session = begin(context)
        propose = session.propose

        def noted(requests: Any) -> Any:
            drafts = propose(requests)
            seen.extend(
                (list(r.history.ids), d.tokens.tolist()) for r, d in zip(requests, drafts, strict=True)
            )
            return drafts

        session.propose = noted  # type: ignore[method-assign]
        return session

    object.__setattr__(drafter, "begin", watched)
    found = play(target, row(PROMPT, drafter=drafter, **greedy))[0]
    assert found.report.accepted < found.report.drafted
    for ids, drafted in seen:
        for token in drafted:
            with torch.inference_mode():
                logits = mamba()(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert token == int(logits.argmax())
            ids.append(token)


def test_configs_stay_as_they_are() -> None:
    """Drafting leaves no trace on the model: configs, weights, mode, generation settings."""
    model = llama(1)
    model.generation_config.num_assistant_tokens = 7
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    weights = copy.deepcopy(model.state_dict())
    for policy in (Heuristic(), None):
        on_llama(DraftModel(model, 3), **({"policy": policy} if policy else {}))
    assert model.config.to_dict() == config
    assert model.generation_config.to_dict() == generation
    assert not model.training
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_vocabularies_of_one_family_differ_by_padding() -> None:
    found = on_llama(DraftModel(llama(1, 40), 3))
    assert found.report.notes == []
    assert found.tokens.tolist() == on_llama(None).tokens.tolist()

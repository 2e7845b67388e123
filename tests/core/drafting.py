"""Drafters by hand: one row, one request at a time; and through the loop against plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from multispec.history import History
from multispec.processing import Pipeline
from multispec.protocols import Budget, Context, Drafter, DraftSession, Request
from multispec.sampling import CounterNoise, Law, Sampling
from multispec.stream import Draft, Observation, Prompt, StreamSpec
from multispec.testing import FakeModel, SlotTableModel, TableModel, play, row
from multispec.tree import path_to
from multispec.verifiers import Rejection

VOCABULARY = 12
CPU = torch.device("cpu")


def begin(
    drafter: Drafter, *prompts: Sequence[int], vocab_size: int = VOCABULARY, spec: StreamSpec | None = None
) -> DraftSession:
    """A session with a row for each prompt."""
    rows = {n: Prompt(ids=torch.tensor(list(ids), dtype=torch.long)) for n, ids in enumerate(prompts)}
    return drafter.begin(
        Context(
            prompts=rows,
            capacity=dict.fromkeys(rows, 99),
            vocab_size=vocab_size,
            device=CPU,
            specs={} if spec is None else dict.fromkeys(rows, spec),
        )
    )


def ask(session: DraftSession, history: History | Sequence[int], nodes: int = 5, **changes: Any) -> Draft:
    """The draft for one row that has come so far."""
    settings: dict[str, Any] = {
        "row": 0,
        "history": history if isinstance(history, History) else History(history),
        "budget": Budget(nodes=nodes),
        "noise": CounterNoise(0),
        "pipeline": Pipeline(Sampling(), VOCABULARY),
        "coupled": True,
    }
    draft = session.propose([Request(**(settings | changes))])[0]
    return draft.check(VOCABULARY if draft.q is None else draft.q.shape[-1])


def paths(draft: Draft) -> set[tuple[int, ...]]:
    """All root-to-node paths of a draft, as symbols; each stands there once."""
    found = [tuple(draft.ids[n] for n in path_to(draft.parents, node)) for node in range(len(draft))]
    assert len({*found}) == len(found)
    return {*found}


def observed(
    draft: Draft, logits: torch.Tensor, emitted: Sequence[int], path: tuple[int, ...] = (), start: int = 0
) -> Observation:
    """What a round shows to a drafter."""
    law = Law(logits.double(), greedy=False)
    return Observation(draft=draft, path=path, emitted=tuple(emitted), logits=logits, law=law, start=start)


def models(*, trees: bool = True) -> list[FakeModel]:
    """A stream of one slot, one that repeats itself, and two slots that move together."""
    peaked = TableModel(VOCABULARY, seed=3, scale=6.0, supports_tree=trees)
    return [TableModel(VOCABULARY, order=2, seed=1, support=3), peaked, SlotTableModel(2, 3, scale=4.0)]


def same_as_plain(drafter: Drafter, streams: Sequence[FakeModel] | None = None) -> int:
    """Ragged rows, seed by seed, equal plain decoding; under rejection nothing breaks. Accepted symbols."""
    accepted = 0
    for model in models() if streams is None else streams:
        step, top = model.spec.step, model.spec.slots[0].size
        prompts = [[1, 2] * step, [2, 1, 2, 1] * step, [0, top - 1] * step]
        settings = [{"sampling": Sampling(seed=n), "max_new_tokens": 16} for n in range(3)]
        both = zip(prompts, settings, strict=True)
        plain, drafted, tested = [], [], []
        for ids, asked in both:
            plain.append(row(ids, **asked))
            drafted.append(row(ids, drafter=drafter, **asked))
            tested.append(row(ids, drafter=drafter, verifier=Rejection(), **asked))
        found = play(model, *drafted)
        assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in play(model, *plain)]
        assert not any(one.report.drafter_failures for one in (*found, *play(model, *tested)))
        accepted += sum(one.report.accepted for one in found)
    return accepted

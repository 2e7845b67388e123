"""A draft model that is drafted for itself: cascades, staged drafting, hierarchies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from multispec.drafters.model_rows import ModelRows
from multispec.drafters.references import require_at_least
from multispec.drafters.retracting import Retracting, agreeing, ahead, in_line, unseen
from multispec.drafters.salted import Salted
from multispec.drafters.stopping import Stopping
from multispec.processing import Places
from multispec.protocols import Budget, Context, Drafter, DraftSession, Request, Target
from multispec.sampling import Law, Purpose
from multispec.stream import Draft, Observation
from multispec.targets import target_for
from multispec.targets.loading import load_model


@dataclass(frozen=True)
class Cascade:
    """Draft with a model that ``drafter`` drafts for: symbols of the model's own law, in fewer of its passes.

    The vertical cascade of Chen et al. (2023), "Cascade Speculative Drafting for Even Faster LLM Inference",
    section 4.1: every stage is the target of the next, down to one that costs nothing (``MaxGram``). The
    second stage of Spector and Re (2023), "Accelerating LLM Inference with Staged Speculative Decoding",
    section 3.2, with ``NgramModel`` as ``drafter``. Cascades nest: ``drafter`` may be a ``Cascade``. The
    hierarchy of TriForce, where the model is the target itself on a sparse cache, is ``TriForce``.

    In each inner round ``drafter`` drafts ``inner_tokens`` symbols at most behind those drafted so far, the
    model runs them in one pass, and they are kept as long as they pass: with min(1, q / r) for an inner law
    r, from noise of their own, else a symbol of norm((q - r)+) ends the round (Leviathan et al. 2023,
    algorithm 1). So each symbol has the model's law q given those before, and q is what the target is told.
    Under a ``coupled`` verifier all stages share the target's noise.

    Drafters that cannot follow symbols that may be taken back draft once per round of the target, behind
    the committed symbols; ``MaxGram``, ``DraftModel``, ``NgramModel``, ``HorizontalCascade`` and ``Cascade``
    draft again behind those drafted.

    Raises:
        UsageError: nothing to draft.
        ModelLoadError: the model cannot be read.
    """

    name: ClassVar[str] = "cascade"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv 2312.11462; Spector and Re 2023, arXiv 2308.04623"
    trained: ClassVar[bool] = True
    model: Any
    drafter: Drafter
    num_draft_tokens: int = 8
    inner_tokens: int = 4
    guidance: bool = True
    _target: Target = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, inner_tokens=1)
        owned = isinstance(self.model, (str, Path))
        object.__setattr__(
            self, "_target", target_for(load_model(self.model) if owned else self.model, owned=owned)
        )

    def begin(self, context: Context) -> DraftSession:
        """Run the prompts through the model, and open the stage below.

        Raises:
            IncompatibleModelsError: the vocabularies do not match.
            UnsupportedError: slots that are parallel, on either side.
        """
        model = ModelRows(self.name, self._target, context, guidance=self.guidance)
        room = {row: most + self.num_draft_tokens for row, most in context.capacity.items()}
        inner = self.drafter.begin(replace(context, capacity=room, trees=False))
        return CascadeSession(model, inner, self.inner_tokens)


@dataclass
class _Walk:
    """One row while it is being drafted for."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    done: bool = False

    def __post_init__(self) -> None:
        self.stopping = Stopping(self.request.budget)
        self.noise = Salted(self.request.noise, self.request.round_start)

    @property
    def ids(self) -> list[int]:
        return [*self.request.history.ids, *self.tokens]

    def inner(self, most: int, nodes: int) -> Request:
        """What the stage below is asked for."""
        return self.request._replace(
            history=ahead(self.request.history, self.tokens) if self.tokens else self.request.history,
            budget=Budget(nodes=min(most, nodes)),
            noise=self.noise,
            pipeline=self.request.pipeline.fork(),
        )

    def take(self, tokens: Sequence[int], law: Law) -> None:
        """These symbols, each with the law that it was drawn from, up to where the budget ends the draft."""
        for place, x in enumerate(tokens):
            self.tokens.append(x)
            self.q.append(law.probs[place : place + 1])
            self.done = self.stopping.behind(law.at(place), x)
            if self.done:
                break

    def draft(self) -> Draft:
        return Draft.chain(self.tokens, None if self.request.coupled else torch.cat(self.q))


class CascadeSession:
    """The model over the rows of a batch, and the session of the stage below."""

    def __init__(self, model: ModelRows, inner: DraftSession, inner_tokens: int) -> None:
        self._model, self._inner, self._most = model, inner, inner_tokens
        # What was drafted behind so many committed symbols, until the target has spoken.
        self._pending: dict[int, tuple[int, list[int]]] = {}

    @property
    def calls(self) -> int:
        """Forward passes of all stages."""
        return self._model.calls + self._inner.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Inner rounds over all rows together, until each has its draft."""
        walks = {r.row: _Walk(r) for r in requests if r.budget.nodes > 0}
        self._model.mark(list(walks))
        while live := {row: walk for row, walk in walks.items() if not walk.done}:
            self._round(live)
        for row, walk in walks.items():
            self._pending[row] = (len(walk.request.history.ids), walk.tokens)
        return [walks[r.row].draft() if r.row in walks else Draft.empty() for r in requests]

    def _round(self, live: Mapping[int, _Walk]) -> None:
        drafts = self._inner_drafts(live)
        found = self._model.score({row: (walk.ids, drafts[row]) for row, walk in live.items()})
        paths: dict[int, range] = {}
        for row, walk in live.items():
            paths[row] = self._decide(walk, drafts[row], found[row])
        self._model.commit(paths)

    def _inner_drafts(self, live: Mapping[int, _Walk]) -> dict[int, Draft]:
        follows = isinstance(self._inner, Retracting)
        asked: list[Request] = []
        for walk in live.values():
            # One symbol always comes from the model itself.
            nodes = walk.request.budget.nodes - len(walk.tokens) - 1
            if nodes > 0 and (follows or not walk.tokens):
                asked.append(walk.inner(self._most, nodes))
        drafts = dict.fromkeys(live, Draft.empty())
        if asked:
            made = self._inner.propose(asked)
            drafts |= {r.row: in_line(draft) for r, draft in zip(asked, made, strict=True)}
        return drafts

    def _decide(self, walk: _Walk, draft: Draft, logits: Tensor) -> range:
        """Keep what passes and one symbol more; the nodes that are kept."""
        drafted = draft.ids
        paths = tuple((*walk.tokens, *drafted[:depth]) for depth in range(len(draft) + 1))
        law = walk.request.pipeline.law(logits, Places(walk.request.history, paths))
        start = walk.request.round_start + len(walk.tokens)
        way = matching if walk.request.coupled else tested
        count, last = way(draft, law, walk.noise, start)
        emitted = (*drafted[:count], last)
        walk.take(emitted, law)
        if isinstance(self._inner, Retracting):
            path = tuple(range(count))
            seen = Observation(draft, path, emitted, logits, law, start)
            self._inner.observe(walk.request.row, seen)
        return range(count)

    def observe(self, row: int, observation: Observation) -> None:
        """Take back what the target did not emit, in all stages."""
        emitted = observation.emitted
        if row in self._pending:
            start, drafted = self._pending.pop(row)
            # The last symbol is run next, also where it happens to be the one that was drafted there.
            self._take_back(row, start + min(agreeing(drafted, emitted), len(emitted) - 1))
        if not isinstance(self._inner, Retracting):
            self._inner.observe(row, unseen(observation))

    def retract(self, row: int, length: int) -> None:
        """Forget what was drafted behind the first ``length`` symbols of a row."""
        self._pending.pop(row, None)
        self._take_back(row, length)

    def _take_back(self, row: int, length: int) -> None:
        self._model.keep(row, length)
        if isinstance(self._inner, Retracting):
            self._inner.retract(row, length)

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._model.drop(rows)
        self._inner.end(rows)


def matching(draft: Draft, law: Law, noise: Salted, start: int) -> tuple[int, int]:
    """How many symbols of a chain the shared noise emits too, and the symbol it emits behind them."""
    x = noise.symbols(law, range(start, start + len(law))).tolist()
    count = agreeing(draft.ids, x)
    return count, x[count]


def tested(draft: Draft, law: Law, noise: Salted, start: int) -> tuple[int, int]:
    """How many symbols of a chain pass with min(1, q / r), and a symbol of what is left behind them."""
    q, nodes = law.probs, range(len(draft))
    r = torch.zeros_like(q[:-1])
    if draft.q is None:
        r.scatter_(-1, draft.tokens.to(q.device)[:, None], 1.0)
    else:
        r.copy_(draft.q)
    count, left = len(draft), q[-1:]
    if nodes:
        x = draft.tokens.to(q.device)[:, None]
        positions = range(start, start + len(draft))
        passed = noise.accepts(q[:-1].gather(-1, x)[:, 0], r.gather(-1, x)[:, 0], positions, start).tolist()
        if False in passed:
            count = passed.index(False)
            rest = (q[count : count + 1] - r[count : count + 1]).clamp(min=0)
            left = rest if float(rest.sum()) > 0 else q[count : count + 1]
    return count, int(noise.choose(left, [start + count], Purpose.RESIDUAL, start))

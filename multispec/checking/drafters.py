"""Drafters that are always right, sometimes and never: what a check drafts with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from multispec.branches import begin
from multispec.checking.prompts import encodes, model_of
from multispec.drafters import DraftModel, EachRow, SjdPac, ZipAR
from multispec.errors import UnsupportedError, UsageError
from multispec.generator import Generator
from multispec.methods import Entry, Lent, catalog, why_not
from multispec.protocols import (
    Context,
    Drafter,
    DraftSession,
    Request,
    Scores,
    Target,
    TargetSession,
    walk,
)
from multispec.stream import Draft, Observation, Prompt
from multispec.testing import FakeModel, TreeDrafter
from multispec.verifiers import Coupled


def default_drafters(generator: Generator, prompts: Sequence[Prompt] = ()) -> dict[str, Drafter]:
    """A good, a worse and a hopeless drafter, beside those of the catalog that need no training.

    Without a draft model the model drafts for itself, which has every draft accepted. Drafters that refuse
    the streams of ``prompts`` are left out.
    """
    target = generator.target
    found = _own_draft(generator)
    found["draft_model (made worse)"] = DraftModel(Tilted(target))
    made = {entry.name: _made(entry, target) for entry in catalog() if _comes_alone(entry)}
    found |= _fitting(made, target, prompts)
    found["random ids"] = RandomIds()
    if target.capabilities.supports_tree and not encodes(model_of(target)):
        found["trees"] = _trees(target, prompts)
    return found


def _own_draft(generator: Generator) -> dict[str, Drafter]:
    try:
        own = generator.methods.drafter("draft_model")
    except UsageError:
        own = None
    if own is None:
        return {"draft_model (itself)": DraftModel(generator.target)}
    return {"draft_model": own}


def _comes_alone(entry: Entry) -> bool:
    return entry.kind == "drafter" and not entry.trained and entry.by_name and not entry.base


def _made(entry: Entry, target: Target) -> Any:
    if entry.method is SjdPac and not target.capabilities.supports_tree:
        return SjdPac(width=1)
    # Rows of small pictures are shorter than the usual window, and would be drawn one after the other.
    return ZipAR(window=2) if entry.method is ZipAR else entry.make(lent=Lent(target=target))


def _context(target: Target, prompts: Sequence[Prompt]) -> Context:
    """These prompts in a session of the target's; without prompts, the stream of the model."""
    asked = list(prompts) or [Prompt(ids=torch.tensor([0]))]
    capacity = [len(prompt.ids) + 1 for prompt in asked]
    session = begin(target, asked, capacity, 1)
    session.prefill()
    return Context(
        prompts=dict(enumerate(asked)),
        capacity=dict(enumerate(capacity)),
        vocab_size=target.spec.vocab_size,
        device=target.device,
        specs={row: prompt.spec or target.spec for row, prompt in enumerate(asked)},
        trees=target.capabilities.supports_tree,
        target=target,
        session=session,
    )


@torch.inference_mode()
def _fitting(
    drafters: Mapping[str, Drafter], target: Target, prompts: Sequence[Prompt]
) -> dict[str, Drafter]:
    """Those that do not refuse these streams."""
    context, found = _context(target, prompts), dict[str, Drafter]()
    for name, drafter in drafters.items():
        specs = context.specs.values()
        if any(why_not(drafter, Coupled(), spec, True, context.trees) for spec in specs):
            continue
        try:
            drafter.begin(context)
        except UnsupportedError:
            continue
        found[name] = drafter
    return found


def _trees(target: Target, prompts: Sequence[Prompt]) -> TreeDrafter:
    known = {tuple(prompt.ids.tolist()): prompt for prompt in prompts}

    @torch.inference_mode()
    def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
        start, generated = tuple(prefix[:prompt_length]), list(prefix[prompt_length:])
        like = known.get(start) or Prompt(ids=torch.tensor(start))
        session = begin(target, [like], [len(prefix) + 1], max(len(generated), 1))
        logits = session.prefill().logits[0]
        if generated:
            logits = session.score([0], generated[:1], [Draft.chain(generated[1:])]).logits[0]
        return logits[-1].clone().cpu()

    return TreeDrafter(worse(FakeModel(after, target.spec)))


@torch.inference_mode()
def fresh_logits(target: Target, generated: Sequence[int], like: Prompt) -> Tensor:
    """The logits ``[V]`` after a prompt and what was generated behind it, run from the beginning.

    In one pass where both are of one kind, as in texts, else symbol by symbol; guided where ``like`` is.
    """
    following = list(generated)
    if not like.guided and like.spec is None and target.spec.prompt_size is None:
        ids = torch.cat([like.ids, torch.tensor(following, dtype=like.ids.dtype)])
        like, following = replace(like, ids=ids), []
    session = begin(target, [like], [len(like.ids) + len(following) + 1], 1)
    logits = session.prefill().logits[0]
    for token in following:
        logits = session.extend([0], [token])[0]
    return logits[-1].clone()


def tilt(logits: Tensor) -> Tensor:
    """The same logits, wrong by about half their own spread, in a fixed pattern."""
    wave = torch.arange(logits.shape[-1], device=logits.device).mul(2.4).cos()
    return logits + (0.5 * logits.float().std(-1, keepdim=True) * wave).to(logits.dtype)


def worse(model: FakeModel) -> FakeModel:
    """What a weaker draft model looks like."""

    def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
        return tilt(model.after(prefix, prompt_length))

    return FakeModel(after, model.spec, strict=False)


class Tilted:
    """A target whose logits are wrong: what a weaker draft model looks like."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.spec = target.spec
        self.capabilities = target.capabilities
        self.device = target.device
        self.context_length = target.context_length

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """The target's own session, tilted."""
        return _TiltedSession(self._target.begin(prompts, capacity, nodes))


class _TiltedSession:
    """Tilts what has logits and hands the rest on."""

    def __init__(self, session: TargetSession) -> None:
        self._session = session
        self.commit = session.commit
        self.checkpoint = session.checkpoint
        self.rewind = session.rewind
        self.length = session.length
        self.drop = session.drop

    def prefill(self) -> Scores:
        """The prompts."""
        return _tilted(self._session.prefill())

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Roots and drafts."""
        return _tilted(self._session.score(rows, roots, drafts))

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> Sequence[Tensor]:
        """One symbol per row."""
        return [tilt(logits) for logits in self._session.extend(rows, tokens)]

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Symbol after symbol."""
        return walk(self, row, tokens, choose)


def _tilted(scores: Scores) -> Scores:
    return Scores(logits=[tilt(logits) for logits in scores.logits], calls=scores.calls)


@dataclass(frozen=True)
class RandomIds:
    """Drafts ids drawn by chance: hardly ever accepted, so that every round rolls back."""

    name: ClassVar[str] = "random_ids"
    num_draft_tokens: int = 4

    def begin(self, context: Context) -> DraftSession:
        """Nothing to keep."""
        return EachRow(context, lambda _: _Guess(context.vocab_size))


@dataclass(frozen=True)
class _Guess:
    vocab_size: int

    def propose(self, request: Request) -> Draft:
        """As many as may be drafted."""
        rng = random.Random(len(request.history))
        return Draft.chain([rng.randrange(self.vocab_size) for _ in range(request.budget.nodes)])

    def observe(self, observation: Observation) -> None:
        """It learns nothing."""

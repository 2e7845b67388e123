"""Drafts by the target itself with less to compute, in the target's own cache.

What all self-speculation has in common: the committed symbols are in the target's key/value cache already,
exact, so a draft reads them there, writes its own entries behind them, and the verifying pass writes over
these. There is no second cache, no second prefill and nothing to catch up with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from multispec.branches import GuidedSession
from multispec.drafters.draft_model import DraftModelSession
from multispec.errors import UnsupportedError, UsageError
from multispec.protocols import Capabilities, Context, Request, Scores, Target, TargetSession
from multispec.stream import Draft, Observation, Prompt, StreamSpec
from multispec.targets.ragged import Forward, Layered, Metered, RaggedSession

Way = TypeVar("Way", bound=Hashable)
# Opens the session that drafts over these rows of the target's own.
Open = Callable[[RaggedSession, Sequence[int]], TargetSession]
_INSTEAD = "Use draft_model with a smaller model, or prompt_lookup, which needs no model."


class Itself:
    """The target of a context as what drafts: its session, its rows there, its layers.

    Raises:
        UnsupportedError: a target whose layers or cache nothing here can reach.
    """

    def __init__(self, context: Context, name: str) -> None:
        self.context = context
        self.target, self.session = _own(context, name)
        self.forward = _layered(self.session, self.target, name)

    @property
    def layers(self) -> int:
        """How many it has."""
        return self.forward.layers

    def rows(self) -> list[int]:
        """The rows of the session for those of the context: all, then the other branches of those guided."""
        branches = [self.branches(row) for row in self.context.prompts]
        return [*(row for row, *_ in branches), *(twin for _, *twins in branches for twin in twins)]

    def branches(self, row: int) -> list[int]:
        """The row of the session for a row of the context, and its other branch where it is guided."""
        outer = self.context.session
        return outer.branches(row) if isinstance(outer, GuidedSession) else [row]

    def ids(self, request: Request, branch: int) -> list[int]:
        """The symbols of a row as a branch of it has them: behind the branch's own prompt."""
        generated = request.history.ids[len(self.context.prompts[request.row].ids) :]
        return [*self.session.prompts[branch].ids.tolist(), *generated]

    def drafting(self, open_: Open, nodes: int) -> DraftModelSession:
        """The walk of a draft model over a session that ``open_`` opens."""
        drafting = DraftModelSession(Borrowed(self, open_), self.context, nodes)
        drafting.calls = 0  # its prompts were run by the target
        return drafting


def _own(context: Context, name: str) -> tuple[Target, RaggedSession]:
    target, session = context.target, context.session
    if target is None or session is None:
        raise UsageError(
            f"{name} drafts with the target itself, and this context names none: got target={target}, "
            f"session={session}. Begin it through a Generator, or pass both in Context."
        )
    widest = max([target.spec.step, *(spec.step for spec in context.specs.values())])
    if widest > 1:
        raise UnsupportedError(
            f"{name} walks symbol by symbol, and {widest} slots of this stream move together. "
            "Use jacobi, row_copy or prompt_lookup."
        )
    inner = session.inner if isinstance(session, GuidedSession) else session
    if isinstance(inner, RaggedSession):
        return target, inner
    can = target.capabilities
    why = can.why or "prompts that bring more than symbols, an encoder or a recurrent state keep their own"
    raise UnsupportedError(
        f"{name} drafts in the target's key/value cache, and this target is run {can.way or 'elsewhere'} "
        f"in a state that nothing else can write to ({why}). {_INSTEAD}"
    )


def _layered(session: RaggedSession, target: Target, name: str) -> Layered:
    forward = session.forward
    while isinstance(forward, Metered):
        forward = forward.inner
    if isinstance(forward, Layered):
        return forward
    raise UnsupportedError(
        f"{name} needs a target whose layers can be reached one by one: {type(forward).__name__} runs this "
        f"model as a whole. {_INSTEAD}"
    )


class Borrowed:
    """The target as a draft model sees it."""

    def __init__(self, itself: Itself, open_: Open) -> None:
        self._itself, self._open = itself, open_
        self.spec: StreamSpec = itself.target.spec
        self.capabilities: Capabilities = itself.target.capabilities
        self.device: torch.device = itself.target.device
        self.context_length: int | None = itself.target.context_length

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over the rows that are there."""
        return self._open(self._itself.session, self._itself.rows())


class SharedSession:
    """A ``TargetSession`` over rows of the target's own session and cache, run by another ``forward``.

    What it commits has to be taken back before the target goes on: see ``borrowed``.
    """

    def __init__(self, base: RaggedSession, rows: Sequence[int], forward: Forward) -> None:
        self._base, self._rows = base, list(rows)
        self.forward = forward

    def _mapped(self, rows: Sequence[int]) -> list[int]:
        return [self._rows[row] for row in rows]

    def _through(self) -> RaggedSession:
        return self._base.through(self.forward)

    def prefill(self) -> Scores:
        """Nothing to run, and nothing to say of it: the target ran the prompts."""
        return Scores(logits=[self.forward.like.new_zeros(1, 1)] * len(self._rows))

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run roots and drafts behind what is committed."""
        return self._through().score(self._mapped(rows), roots, drafts)

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep them for this draft."""
        self._through().commit(self._mapped(rows), paths)

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> Sequence[Tensor]:
        """Run one symbol per row and keep it for this draft."""
        return self._through().extend(self._mapped(rows), tokens)

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Run symbol after symbol and keep them for this draft."""
        return self._through().walk(self._rows[row], tokens, choose)

    def checkpoint(self, row: int) -> None:
        """Nothing to remember: this cache can go back anywhere."""

    def rewind(self, row: int, length: int) -> int:
        """Forget everything behind the first ``length`` symbols of a row."""
        return self._base.rewind(self._rows[row], length)

    def length(self, row: int) -> int:
        """Symbols of a row that are in the cache."""
        return self._base.length(self._rows[row])

    def drop(self, rows: Sequence[int]) -> None:
        """Nothing to free: the rows are the target's."""


@contextmanager
def borrowed(session: RaggedSession) -> Iterator[None]:
    """Whatever is run and committed inside is taken back at the end, also where something raises."""
    lengths = list(session.cache.ledger.lengths)
    try:
        yield
    finally:
        session.cache.ledger.lengths = lengths


class SelfDraftSession(Generic[Way]):
    """Drafts of rows in the target's cache, each the way that ``way`` names for its row.

    Rows of one way are drafted for in lockstep by the forward that ``forward`` gives for it.
    ``searching`` counts the passes that were made to find a way; ``done`` is told of rows that end.
    """

    def __init__(
        self,
        itself: Itself,
        nodes: int,
        way: Callable[[Request], Way],
        forward: Callable[[Way], Forward],
        done: Callable[[int], None] | None = None,
    ) -> None:
        self._base = itself.session
        self._way, self._forward, self._done = way, forward, done
        self._shared = SharedSession(itself.session, itself.rows(), itself.forward)
        self._walks = itself.drafting(lambda base, rows: self._shared, nodes)
        self.searching = 0

    @property
    def calls(self) -> int:
        """Passes of the lighter target, and those that were spent on looking for it."""
        return self._walks.calls + self.searching

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Draft, and leave the target's cache as it was."""
        ways = {request.row: self._way(request) for request in requests if request.budget.nodes > 0}
        found: dict[int, Draft] = {}
        with borrowed(self._base):
            for way in dict.fromkeys(ways.values()):
                asked = [request for request in requests if ways.get(request.row) == way]
                self._shared.forward = self._forward(way)
                drafts = self._walks.propose(asked)
                found |= {request.row: draft for request, draft in zip(asked, drafts, strict=True)}
        return [found.get(request.row, Draft.empty()) for request in requests]

    def observe(self, row: int, observation: Observation) -> None:
        """Nothing to roll back: the cache is the target's."""

    def retract(self, row: int, length: int) -> None:
        """Nothing to forget: drafts are gone when they are handed over."""

    def end(self, rows: Sequence[int]) -> None:
        """Nothing to free; what was found may be of use to others."""
        for row in rows:
            if self._done is not None:
                self._done(row)

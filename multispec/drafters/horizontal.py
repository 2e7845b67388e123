"""Horizontal cascade: the better drafter for the first symbols, cheaper ones for those behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.drafters.references import takes_trees
from multispec.drafters.retracting import Retracting, agreeing, ahead, in_line
from multispec.drafters.salted import Salted
from multispec.drafters.several import require_drafters
from multispec.drafters.stopping import looks
from multispec.errors import UnsupportedError, UsageError
from multispec.protocols import Context, Drafter, DraftSession, Request
from multispec.sampling import Law
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class HorizontalCascade:
    """Draft the first ``lengths[0]`` symbols with the first drafter, the next with the second, and so on.

    Chen et al. (2023), "Cascade Speculative Drafting for Even Faster LLM Inference", section 4.2: the chance
    that a symbol is kept falls with its place in the draft, so later ones are left to cheaper drafters, the
    last of which (``MaxGram``) costs nothing. With ``Cascade`` as a drafter it is their whole scheme. Each
    symbol keeps the law it was drawn from, a point mass q = 1. A drafter that has nothing to say leaves its
    symbols to the next.

    Raises:
        UsageError: no drafters, or not one length >= 1 for each.

    >>> from multispec.drafters import MaxGram
    >>> HorizontalCascade((MaxGram(), MaxGram(max_ngram=2)), lengths=(4, 6)).num_draft_tokens
    10
    """

    name: ClassVar[str] = "horizontal_cascade"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv 2312.11462"
    trained: ClassVar[bool] = False
    drafters: Sequence[Drafter]
    lengths: Sequence[int]

    def __post_init__(self) -> None:
        require_drafters(self.name, self.drafters)
        if len(self.lengths) != len(self.drafters) or any(length < 1 for length in self.lengths):
            raise UsageError(
                f"horizontal_cascade needs a length >= 1 for each drafter: got {list(self.lengths)} for "
                f"{len(self.drafters)} drafters."
            )

    @property
    def num_draft_tokens(self) -> int:
        """All lengths together."""
        return sum(self.lengths)

    def begin(self, context: Context) -> DraftSession:
        """A session of each.

        Raises:
            UnsupportedError: parallel slots, or a drafter that cannot go on behind drafted symbols.
        """
        if not all(takes_trees(context, row) for row in context.prompts):
            raise UnsupportedError(
                "horizontal_cascade changes drafters from symbol to symbol, and slots of this stream move "
                "together. Use fallback with the same drafters."
            )
        sessions = [drafter.begin(context) for drafter in self.drafters]
        for drafter, session in list(zip(self.drafters, sessions, strict=True)):
            if not isinstance(session, Retracting):
                raise UnsupportedError(
                    f"{drafter.name} cannot draft behind symbols that may be taken back. Use max_gram, "
                    "draft_model, ngram_model or cascade as the stages of horizontal_cascade."
                )
        kept = [session for session in sessions if isinstance(session, Retracting)]
        return _Session(kept, list(self.lengths), context.vocab_size, context.device)


@dataclass
class _Line:
    """What has been drafted for a row so far, by whom, and from which laws."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    parts: list[tuple[int, Draft]] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        self.start = len(self.request.history.ids)

    def ask(self, stage: int, length: int) -> Request:
        request = self.request
        nodes = min(length, request.budget.nodes - len(self.tokens))
        return request._replace(
            history=ahead(request.history, self.tokens) if self.tokens else request.history,
            budget=request.budget._replace(nodes=nodes),
            noise=Salted(request.noise, -1000 - stage) if stage else request.noise,
            pipeline=request.pipeline.fork(),
        )

    def take(self, stage: int, draft: Draft, asked: int) -> None:
        self.tokens += draft.ids
        self.parts.append((stage, draft))
        unsure = looks(self.request.budget) and 0 < len(draft) < asked
        self.ended = unsure or len(self.tokens) >= self.request.budget.nodes

    def draft(self, vocab_size: int, device: torch.device) -> Draft:
        if all(draft.q is None for _, draft in self.parts):
            return Draft.chain(self.tokens)
        rows: list[Tensor] = []
        for _, draft in self.parts:
            point = F.one_hot(draft.tokens.to(device), vocab_size).double()
            rows.append(point if draft.q is None else draft.q.double())
        return Draft.chain(self.tokens, torch.cat(rows))


class _Session:
    def __init__(
        self, stages: Sequence[Retracting], lengths: list[int], vocab_size: int, device: torch.device
    ) -> None:
        self._stages, self._lengths = stages, lengths
        self._vocab_size, self._device = vocab_size, device
        self._lines: dict[int, _Line] = {}

    @property
    def calls(self) -> int:
        """Forward passes of all stages."""
        return sum(stage.calls for stage in self._stages)

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Stage by stage, all rows together."""
        lines = {r.row: _Line(r) for r in requests if r.budget.nodes > 0}
        spare = dict.fromkeys(lines, 0)
        for number, stage in enumerate(self._stages):
            live = {row: line for row, line in lines.items() if not line.ended}
            asked = [line.ask(number, self._lengths[number] + spare[row]) for row, line in live.items()]
            made = stage.propose(asked) if asked else []
            for request, draft in zip(asked, made, strict=True):
                lines[request.row].take(number, in_line(draft), request.budget.nodes)
                spare[request.row] = request.budget.nodes - len(draft)
        self._lines |= lines
        size, device = self._vocab_size, self._device
        return [lines[r.row].draft(size, device) if r.row in lines else Draft.empty() for r in requests]

    def observe(self, row: int, observation: Observation) -> None:
        """To the first stage what became of its part; the others go back to what stands."""
        line = self._lines.pop(row, None)
        if line is None:
            return
        emitted = observation.emitted
        stands = line.start + min(agreeing(line.tokens, emitted), len(emitted) - 1)
        first = line.parts[0][1]
        size, law = len(first), observation.law
        self._stages[0].observe(
            row,
            observation._replace(
                draft=first,
                path=tuple(range(min(size, len(observation.path)))),
                logits=observation.logits[: size + 1],
                law=Law(law.scores[: size + 1], greedy=law.greedy),
                hidden=None if observation.hidden is None else observation.hidden[: size + 1],
            ),
        )
        for stage, _ in line.parts[1:]:
            self._stages[stage].retract(row, stands)

    def retract(self, row: int, length: int) -> None:
        """Forget what was drafted behind the first ``length`` symbols of a row."""
        self._lines.pop(row, None)
        for stage in self._stages:
            stage.retract(row, length)

    def end(self, rows: Sequence[int]) -> None:
        """Forget rows that are done."""
        for stage in self._stages:
            stage.end(rows)

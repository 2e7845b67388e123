"""ZipAR: the rows of a picture are decoded side by side, each a little behind the one above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from multispec.drafters.starts import Filled, Tail, own_key, permitted
from multispec.drafters.window import check_window, each_stream, guesses
from multispec.errors import UnsupportedError, UsageError
from multispec.history import Prefix
from multispec.protocols import MAX_NODES, Context, DraftSession, Request
from multispec.sampling import Law, Purpose
from multispec.stream import Draft, Observation, StreamSpec


@dataclass(frozen=True)
class ZipAR:
    """Begin row r + 1 as soon as row r is ``window`` symbols ahead of it, and advance all rows in each pass.

    He et al. (2024), "ZipAR: Accelerating Auto-regressive Image Generation through Spatial Locality":
    W + window (H - 1) passes for a picture of H rows of W symbols. The draft is the chain up
    to the furthest row in progress. Places that are not decided yet hold provisional symbols, copied from
    the row above, where the authors leave them out of sight; the law behind each row's last symbol gives
    its next one. Row 0 begins with the first symbol that the grammar does not force.

    With the verifier ``zipar`` the symbols stand as they are drawn. Exact verifiers treat them as any
    draft: what they keep of it is exact, and mostly less than with ``jacobi``.

    ``num_draft_tokens`` bounds the chain: rows that begin beyond it wait.

    Raises:
        UsageError: nothing to draft, a window below 1.
        UnsupportedError: a stream without rows.

    >>> ZipAR(window=8).window
    8
    """

    name: ClassVar[str] = "zipar"
    paper: ClassVar[str] = "He et al. 2024, arXiv 2412.04062"
    trained: ClassVar[bool] = False
    window: int = 8
    num_draft_tokens: int = MAX_NODES

    def __post_init__(self) -> None:
        check_window(self.name, self.num_draft_tokens, "copy_above")
        if self.window < 1:
            raise UsageError(
                f"zipar needs a window >= 1: got {self.window}. A row begins when the one above it is so "
                "many symbols ahead; row_length or more decodes row by row."
            )

    def begin(self, context: Context) -> DraftSession:
        """What each row of the batch has settled.

        Raises:
            UnsupportedError: a stream without rows.
        """
        return each_stream(context, lambda spec: self._wave(spec, context))

    def _wave(self, spec: StreamSpec, context: Context) -> _Wave:
        if spec.row_length is None:
            raise UnsupportedError(
                "zipar decodes the rows of a picture side by side: got a stream without row_length. Use "
                "jacobi, which needs no rows, or give the StreamSpec its row_length."
            )
        tail = Tail("copy_above", spec, context.vocab_size, context.device)
        return _Wave(spec.row_length, self.window, tail)


@dataclass
class _Wave:
    """The rows in progress: ``settled`` symbols with the laws they were drawn from, and ``fronts``.

    A front is the first undecided place of a row that may advance.
    """

    width: int
    window: int
    tail: Tail
    settled: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    fronts: list[int] = field(default_factory=list)
    origin: int | None = None
    seen: Observation | None = None

    def observe(self, observation: Observation) -> None:
        """Keep the laws behind every place of the chain."""
        self.seen = observation

    def propose(self, request: Request) -> Draft:
        """Settle the fronts of the last pass, then lay the chain to the new ones."""
        start = request.round_start
        self.settled = {place: found for place, found in self.settled.items() if place >= start}
        if self.seen is not None:
            self._settle(request, self.seen)
        symbols, decided = self._places(request)
        if self.origin is None:
            self.origin = self._header(request)
        self.fronts = self._open(start, decided, self.origin)
        length = max(self.fronts) - start
        leading = next((i for i, one in enumerate(decided[:length]) if not one), length)
        tokens = symbols[:length]
        if guesses(request) and not leading:
            return Draft.chain(tokens)
        return replace(Draft.chain(tokens, self._laws(start, tokens)), settled=leading)

    def _settle(self, request: Request, seen: Observation) -> None:
        """One symbol for each row that was to advance, from the law behind its last one."""
        start, scored = request.round_start, {*range(len(seen.law))}.difference(seen.law.invalid_places())
        fronts = [front for front in self.fronts if front >= start and front - seen.start in scored]
        if not fronts:
            return
        rows = torch.tensor(fronts, device=seen.law.scores.device) - seen.start
        law = Law(seen.law.scores[rows], greedy=seen.law.greedy)
        if guesses(request):
            found = request.noise.symbols(law, fronts)
        else:
            found = request.noise.choose(law.probs, fronts, Purpose.DRAFT, own_key(request))
        self.settled |= zip(fronts, zip(found.tolist(), law.probs, strict=True), strict=True)

    def _places(self, request: Request) -> tuple[list[int], list[bool]]:
        """A symbol for every place in reach, and whether it is decided: settled, or forced."""
        start, symbols = request.round_start, list[int]()
        prefix, decided = Prefix(request.history, symbols), list[bool]()
        # Rows begin ``window`` apart, so no more than these can be in progress.
        reach = (self.width // self.window + 2) * self.width
        for place in range(start, start + min(self.tail.room(request), reach)):
            forced = len(permitted(self.tail.spec, prefix)) == 1
            known = self.settled.get(place) if not forced else None
            decided.append(forced or known is not None)
            symbols.append(self.tail.options(prefix, start)[0] if known is None else known[0])
        return symbols, decided

    def _header(self, request: Request) -> int:
        """How many symbols are forced before the first row."""
        symbols: list[int] = []
        prefix, furthest = Prefix(request.history, symbols, generated=0), request.round_start + MAX_NODES
        while len(symbols) < furthest and len(left := permitted(self.tail.spec, prefix)) == 1:
            symbols.append(left[0])
        return len(symbols)

    def _open(self, start: int, decided: Sequence[bool], origin: int) -> list[int]:
        """The fronts of the rows that may advance, as far as the chain reaches."""
        fronts: list[int] = []
        last, ahead = start + len(decided), self.width + self.window
        row = (start - origin) // self.width
        for first in range(origin + row * self.width, last + 1, self.width):
            places = range(max(first, start), min(first + self.width, last + 1))
            front = next((j for j in places if j == last or not decided[j - start]), first + self.width)
            column = front - first
            if column < self.width and ahead >= min(column + self.window, self.width):
                fronts.append(front)
            if not column:
                break
            ahead = column
        return fronts

    def _laws(self, start: int, tokens: list[int]) -> Tensor:
        """The law each symbol was drawn from; what was copied or forced is a point mass."""
        q = Filled(tokens).q(self.tail.vocab_size, self.tail.device)
        for place, (_, law) in self.settled.items():
            if place - start < len(tokens):
                q[place - start] = law
        return q

"""What the engine costs at any acceptance, without a trained draft: drafts of the known continuation.

A first run, plain, says what follows. Then a drafter that costs nothing drafts just that, each symbol
replaced by another with chance 1 - alpha, so that a position is accepted with chance alpha where those before
it were. A draft of n symbols then emits (1 - alpha^(n+1)) / (1 - alpha) in the mean (Leviathan et al. 2023,
equation 1); with passes that cost what a plain one costs, that would be the speed ratio.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from multispec.bench.cases import Request
from multispec.bench.ours import Ours
from multispec.drafters.rowwise import EachRow
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession
from multispec.protocols import Request as DraftRequest
from multispec.stream import Draft, Observation


@dataclass
class _Saying:
    """Drafts what is known to follow, with errors."""

    script: Sequence[int]
    alpha: float
    vocab_size: int

    def propose(self, request: DraftRequest) -> Draft:
        start = request.round_start
        tokens = self.script[start : start + request.budget.nodes]
        return Draft.chain([self._said(start + n, token) for n, token in enumerate(tokens)])

    def _said(self, position: int, token: int) -> int:
        right = random.Random(position).random() < self.alpha
        return token if right else (token + 1) % self.vocab_size

    def observe(self, observation: Observation) -> None:
        """Nothing to learn."""


@dataclass(frozen=True, eq=False)
class Known:
    """Drafts a known continuation; each symbol is right with chance ``alpha``.

    Raises:
        UsageError: ``alpha`` outside [0, 1].
    """

    name: ClassVar[str] = "known"
    script: Sequence[int]
    alpha: float
    num_draft_tokens: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"An acceptance is a chance from 0 to 1: got {self.alpha}.")

    def begin(self, context: Context) -> DraftSession:
        """One for each row; all have the same script."""
        return EachRow(context, lambda _: _Saying(self.script, self.alpha, context.vocab_size))


@dataclass(frozen=True)
class Synthetic:
    """One acceptance at one draft length: speed beside plain decoding, ideal and seen, and own time."""

    alpha: float
    num_draft_tokens: int
    symbols_per_round: float
    ratio: float
    ideal: float
    own_ms_per_round: float | None

    def to_dict(self) -> dict[str, Any]:
        """Every figure."""
        return asdict(self)


def ideal(alpha: float, n: int) -> float:
    """Symbols that a round emits in the mean.

    >>> ideal(0.5, 2)
    1.75
    """
    return sum(alpha**i for i in range(n + 1))


def synthetic(
    plain: Ours,
    request: Request,
    alphas: Sequence[float],
    lengths: Sequence[int] = (4, 8),
    runs: int = 3,
    note: Callable[[str], None] = lambda _: None,
) -> list[Synthetic]:
    """Every acceptance at every length, on the first prompt of a request."""
    one = Request(request.category, request.prompts[:1], request.sampling[:1], request.new_tokens)
    script = plain.run(one).tokens[0]
    found = []
    for alpha in alphas:
        for length in lengths:
            note(f"acceptance {alpha:g}, {length} symbols")
            drafter = Known(script, alpha, length)
            found.append(_measured(plain, drafter, one, runs))
    return found


def _measured(plain: Ours, drafter: Known, request: Request, runs: int) -> Synthetic:
    drafted = Ours("known", plain.generator, drafter, None, plain.endless, plain.meter)
    pairs = [(plain.run(request), drafted.run(request)) for _ in range(runs + 1)][1:]
    own = [
        1000 * (run.seconds - run.forward) / max(run.rounds, 1) for _, run in pairs if run.forward is not None
    ]
    return Synthetic(
        alpha=drafter.alpha,
        num_draft_tokens=drafter.num_draft_tokens,
        symbols_per_round=statistics.median(run.symbols / max(run.rounds, 1) for _, run in pairs),
        ratio=statistics.median(before.pace / after.pace for before, after in pairs),
        ideal=ideal(drafter.alpha, drafter.num_draft_tokens),
        own_ms_per_round=statistics.median(own) if own else None,
    )

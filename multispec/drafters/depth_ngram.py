"""Depth n-grams: which code followed the codes above it in its frame, counted while generating."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.previous_frame import check_period, period_of
from multispec.drafters.starts import permitted
from multispec.drafters.window import each_stream
from multispec.errors import UsageError
from multispec.history import Prefix
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation, StreamSpec

# What a symbol is guessed from: its slot, codes above it in the frame, and its code in the frame before.
_Key = tuple[int, tuple[int, ...], int | None]


@dataclass(frozen=True)
class DepthNgram:
    """Draft code k of a frame as what most often followed the codes above it, so far in this output.

    S(x) = f(w, x) / f(w), where w is the longest context that has been seen: the last n - 1 codes above x
    in its frame together with code k of the frame before, then without the latter, then one code fewer, down
    to the slot alone: the back-off of Brants et al. (2007), "Large Language Models in Machine Translation",
    section 4. The counts are those of the text itself, as in Ou et al. (2024), "Lossless Acceleration via
    Adaptive N-gram Parallel Decoding". Of equals the latest is taken. The draft ends behind a symbol with
    S below the budget's confidence.

    ``max_ngram`` is n. ``period`` is the number of codes in a frame where the stream has one slot.

    Raises:
        UsageError: nothing to draft, an n-gram without a code, or a period without symbols.

    >>> DepthNgram(max_ngram=3).num_draft_tokens
    32
    """

    name: ClassVar[str] = "depth_ngram"
    paper: ClassVar[str] = "Ou et al. 2024, arXiv 2404.08698"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 32
    max_ngram: int = 4
    period: int | None = None

    def __post_init__(self) -> None:
        check_period(self.name, self.num_draft_tokens, self.period)
        if self.max_ngram < 1:
            raise UsageError(
                f"depth_ngram counts n-grams of one code or more: got max_ngram={self.max_ngram}. Use 2 to 5."
            )

    def begin(self, context: Context) -> DraftSession:
        """Counts per row.

        Raises:
            UnsupportedError: a stream without frames, and no period.
        """
        return each_stream(
            context, lambda spec: _Counts(spec, period_of(self.name, spec, self.period), self.max_ngram)
        )


@dataclass
class _Counts:
    spec: StreamSpec
    period: int
    n: int
    # f(w, x): in the order in which symbols were last seen
    following: defaultdict[_Key, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    done: int = 0

    def propose(self, request: Request) -> Draft:
        """Count what has been committed since, then go from guess to guess."""
        committed = Prefix(request.history)
        for place in range(self.done, len(committed)):
            self._count(committed, place)
        self.done = len(committed)
        return Draft.chain(self._guesses(request))

    def _count(self, symbols: Sequence[int], place: int) -> None:
        x = symbols[place]
        for w in self._contexts(symbols, place):
            seen = self.following[w]
            seen[x] = seen.pop(x, 0) + 1  # the latest stands last

    def _contexts(self, symbols: Sequence[int], place: int) -> Iterator[_Key]:
        """Everything that a place may be guessed from, the longest first."""
        slot = place % self.period
        above = tuple(symbols[place - min(slot, self.n - 1) : place])
        before = symbols[place - self.period] if place >= self.period else None
        for start in range(len(above) + 1):
            if before is not None:
                yield slot, above[start:], before
            yield slot, above[start:], None

    def _guesses(self, request: Request) -> list[int]:
        drafted: list[int] = []
        prefix = Prefix(request.history, drafted)
        for _ in range(request.budget.nodes):
            options = permitted(self.spec, prefix)
            symbol, share = (options[0], 1.0) if len(options) == 1 else self._best(prefix)
            if symbol is None or symbol not in options:
                break
            drafted.append(symbol)
            if share < request.budget.confidence:
                break
        return drafted

    def _best(self, prefix: Prefix) -> tuple[int | None, float]:
        """The symbol with the most counts behind the longest context, and its S."""
        for w in self._contexts(prefix, len(prefix)):
            if (seen := self.following.get(w)) is not None:
                x = max(reversed(seen), key=seen.__getitem__)
                return x, seen[x] / seen.total()
        return None, 0.0

    def observe(self, observation: Observation) -> None:
        """The counts are taken from the committed symbols themselves."""

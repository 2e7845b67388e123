"""Previous frame: sound goes on as it was a frame ago."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.drafters.starts import permitted
from multispec.drafters.window import each_stream
from multispec.errors import UnsupportedError, UsageError
from multispec.history import Prefix
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation, StreamSpec


@dataclass(frozen=True)
class PreviousFrame:
    """Draft each symbol of a frame as it was one frame before, any number of frames on.

    The spatial prior that speculative Jacobi decoding starts its windows from (Teng et al. 2024), turned from
    the row above to the frame before; it computes nothing. A frame is one symbol for each slot of the
    stream; ``period`` symbols where codes are flattened into a stream of one slot. Symbols that the grammar
    forces are drafted as they are. The draft ends where there is nothing to copy, or where it is not allowed.

    Raises:
        UsageError: nothing to draft, or a period without symbols.

    >>> PreviousFrame(period=7).num_draft_tokens
    32
    """

    name: ClassVar[str] = "previous_frame"
    paper: ClassVar[str] = "Teng et al. 2024, arXiv 2410.01699"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 32
    period: int | None = None

    def __post_init__(self) -> None:
        check_period(self.name, self.num_draft_tokens, self.period)

    def begin(self, context: Context) -> DraftSession:
        """Nothing to keep but the streams.

        Raises:
            UnsupportedError: a stream without frames, and no period.
        """
        return each_stream(context, lambda spec: _Copy(spec, period_of(self.name, spec, self.period)))


def check_period(name: str, num_draft_tokens: int, period: int | None) -> None:
    """Settings that drafters of frames share.

    Raises:
        UsageError: nothing to draft, or a period without symbols.
    """
    if num_draft_tokens < 1 or (period is not None and period < 1):
        raise UsageError(
            f"{name} needs num_draft_tokens >= 1 and a period of at least one symbol: got "
            f"num_draft_tokens={num_draft_tokens}, period={period}. Streams with slots need no period."
        )


def period_of(name: str, spec: StreamSpec, period: int | None) -> int:
    """Symbols of a frame: those given, else the slots of the stream.

    Raises:
        UnsupportedError: neither says where frames begin.
    """
    found = period or len(spec.slots)
    if found == 1 and period is None:
        raise UnsupportedError(
            f"{name} drafts from the frame before, and this stream has one slot: nothing says how long "
            "a frame is. Pass period=7 for seven codes per frame, or use another drafter (prompt_lookup)."
        )
    return found


@dataclass(frozen=True)
class _Copy:
    spec: StreamSpec
    period: int

    def propose(self, request: Request) -> Draft:
        """Copy up to the first place that has nothing to be copied."""
        copied: list[int] = []
        prefix = Prefix(request.history, copied)
        for _ in range(request.budget.nodes):
            options, source = permitted(self.spec, prefix), len(prefix) - self.period
            symbol = options[0] if len(options) == 1 else prefix[source] if source >= 0 else None
            if symbol is None or symbol not in options:
                break
            copied.append(symbol)
        return Draft.chain(copied)

    def observe(self, observation: Observation) -> None:
        """The frame before is in the history."""

"""Jacobi decoding with shared Gumbel noise: the next guess of every position is the last pass's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from multispec.drafters.starts import Start, Tail
from multispec.drafters.window import Known, Window, check_window, each_stream
from multispec.protocols import Context, DraftSession, Request

# No stream gets there: the noise of these positions is asked for by nobody else.
_BEYOND = 2**40


@dataclass(frozen=True)
class Jacobi:
    """Draft X_j = argmax(log P_j + G_j) at every window position, P_j from the last pass, G_j for good.

    The fixed point of the map is what plain sampling emits: Wiggers and Hoogeboom (2020), "Predictive
    Sampling with Forecasting Autoregressive Models"; for pictures So et al. (2025), "Speculative Coupled
    Decoding", with Gumbel sharing. A position keeps its symbol from pass to pass with probability at
    least (1 - TV) / (1 + TV), where independent draws (``sjd``) nearly always change it.

    Under a ``coupled`` verifier G is the target's own noise: the output is that of the seed. Under a
    verifier of laws G is noise that no verifier uses, fixed for each position until it is committed, and
    q_j := P_j: the noise of a position says nothing about lower positions, so given those X_j ~ P_j.

    Raises:
        UsageError: nothing to draft.
        UnknownNameError: no such start.

    >>> Jacobi().num_draft_tokens
    32
    """

    name: ClassVar[str] = "jacobi"
    paper: ClassVar[str] = "So et al. 2025, arXiv 2510.24211"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 32
    start: Start = "copy_above"

    def __post_init__(self) -> None:
        check_window(self.name, self.num_draft_tokens, self.start)

    def begin(self, context: Context) -> DraftSession:
        """A window per row."""
        size, device = context.vocab_size, context.device
        return each_stream(context, lambda spec: Window(shared, Tail(self.start, spec, size, device)))


def shared(request: Request, known: Known) -> Tensor:
    """argmax(log P_j + G_j), with the same G_j in every round."""
    return request.noise.symbols(known.law, [_BEYOND + position for position in known.positions])

"""Speculative Jacobi decoding: the window is drawn afresh from every pass of the target itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from multispec.drafters.starts import Start, Tail, own_key
from multispec.drafters.window import Known, Window, check_window, each_stream
from multispec.protocols import Context, DraftSession, Request
from multispec.sampling import Purpose


@dataclass(frozen=True)
class SJD:
    """Draft a window of symbols, each drawn from the law that the last pass gave for its position.

    Teng et al. (2024), "Accelerating Auto-regressive Text-to-Image Generation with Training-free
    Speculative Jacobi Decoding": X_j ~ P_j afresh behind each rejection, Q_j := P_j, and a
    window of 16. P_j was computed on a prefix that is partly wrong by now; as q it is exact all the same.
    Under a ``coupled`` verifier a fresh draw would be a worse guess than the shared noise, so there this
    is ``jacobi``.

    Raises:
        UsageError: nothing to draft.
        UnknownNameError: no such start.

    >>> SJD(num_draft_tokens=32).start
    'copy_above'
    """

    name: ClassVar[str] = "sjd"
    paper: ClassVar[str] = "Teng et al. 2024, arXiv 2410.01699"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 16
    start: Start = "copy_above"

    def __post_init__(self) -> None:
        check_window(self.name, self.num_draft_tokens, self.start)

    def begin(self, context: Context) -> DraftSession:
        """A window per row."""
        size, device = context.vocab_size, context.device
        return each_stream(context, lambda spec: Window(fresh, Tail(self.start, spec, size, device)))


def fresh(request: Request, known: Known) -> Tensor:
    """X_j ~ P_j, independent of all draws before."""
    return request.noise.choose(known.p, known.positions, Purpose.DRAFT, own_key(request))

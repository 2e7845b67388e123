"""Speculative coupled decoding by maximal coupling: a window keeps as many symbols as any rule can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.drafters.starts import Start, Tail, own_key
from multispec.drafters.window import Known, Window, check_window, each_stream
from multispec.protocols import Context, DraftSession, Request
from multispec.sampling import Purpose


@dataclass(frozen=True)
class ScdMaximal:
    """Draft X_j <- MRS(P_j, Q_j, X_j) at every window position, also behind the rejection; Q_j := P_j.

    So et al. (2025), "Speculative Coupled Decoding", with the maximal coupling: a position keeps its
    symbol with probability 1 - TV(P_j, Q_j), the most that is possible. The law of a *kept* symbol is
    P_j as well, and that is what is recorded: with the old Q_j on record the output is biased. Under a
    ``coupled`` verifier the shared noise already is a coupling, so there this is ``jacobi``.

    Raises:
        UsageError: nothing to draft.
        UnknownNameError: no such start.

    >>> ScdMaximal().num_draft_tokens
    32
    """

    name: ClassVar[str] = "scd_mc"
    paper: ClassVar[str] = "So et al. 2025, arXiv 2510.24211"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 32
    start: Start = "copy_above"

    def __post_init__(self) -> None:
        check_window(self.name, self.num_draft_tokens, self.start)

    def begin(self, context: Context) -> DraftSession:
        """A window per row."""
        size, device = context.vocab_size, context.device
        return each_stream(context, lambda spec: Window(coupled, Tail(self.start, spec, size, device)))


def coupled(request: Request, known: Known) -> Tensor:
    """Keep X_j with min(1, P_j / Q_j), else draw from norm((P_j - Q_j)+): both in one draw."""
    p = known.p
    if known.q is not None:
        m = len(known.x)
        x = torch.tensor(known.x, device=p.device)
        p = torch.cat([maximal_coupling(p[:m], known.q.to(p), x), p[m:]])
    return request.noise.choose(p, known.positions, Purpose.DRAFT, own_key(request))


def maximal_coupling(
    p: Float[Tensor, "m V"], q: Float[Tensor, "m V"], x: Int[Tensor, " m"]
) -> Float[Tensor, "m V"]:
    """The law, given x ~ q, of the y ~ p that equals x as often as possible.

    >>> maximal_coupling(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    tensor([[0.5000, 0.5000]])
    """
    kept = (p.gather(-1, x[:, None]) / q.gather(-1, x[:, None])).clamp_(max=1)
    rest = (p - q).clamp_(min=0)
    total = rest.sum(-1, keepdim=True)
    # Where rounding leaves no rest, p is q and x is kept.
    kept = torch.where(total > 0, kept, 1.0)
    rest *= (1 - kept) / torch.where(total > 0, total, 1.0)
    return rest.scatter_add_(-1, x[:, None], kept)

"""Speculative cascades: the drafter's own law where it will do, the target's where it will not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multispec.errors import UnknownNameError, UnsupportedError, UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.toward import Toward, asks_for_q

_DEFERRALS = ("chow", "diff", "opt", "token_v1", "token_v2", "token_v3")


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Speculative sampling towards pi, made of p where the drafter should defer and of q where not.

    Narasimhan et al. (2024), "Faster Cascades via Speculative Decoding", table 1. At each place pi = p if

    * ``chow``: max q < 1 - alpha;
    * ``diff``: max q < max p - alpha;
    * ``opt``: max q < max p - alpha TV(p, q);

    and pi = q otherwise; or symbol by symbol pi(x) = q(x) 1[x in A] + p(x) q(not A), where A holds x with

    * ``token_v1``: q(x) >= max p - alpha;
    * ``token_v2``: p(x) >= max p - alpha;
    * ``token_v3``: p(x) >= (1 - alpha) max p.

    The output has the law pi exactly, with the acceptance of ``rejection`` against it, and ``spent`` is
    TV(pi, p), exact on every draft. Behind the draft, where there is no q, pi = p.

    Raises:
        UnknownNameError: no such deferral; UsageError: alpha below 0 or infinite. UnsupportedError: at
            ``verify``, for all but the last two deferrals, given symbols (q = 1) or temperature 0, where a
            draft is always sure.
    """

    name: ClassVar[str] = "cascade"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Narasimhan et al. 2024, arXiv 2405.19261"
    deferral: str = "opt"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if self.deferral not in _DEFERRALS:
            raise UnknownNameError("deferral", self.deferral, _DEFERRALS)
        if not 0 <= self.alpha < float("inf"):
            raise UsageError(f"cascade needs a finite alpha >= 0: got {self.alpha}.")

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        if self.deferral not in ("token_v2", "token_v3"):
            asks_for_q(draft, f"cascade with deferral={self.deferral!r}")
            if p.greedy and len(draft):
                raise UnsupportedError(
                    f"cascade with deferral={self.deferral!r} asks how sure the drafter is, and at "
                    "temperature 0 it always is: got a greedy law. Use deferral='token_v3', or a temperature "
                    "above 0."
                )
        return Toward(make=self._pi).walk(draft, p, noise, standing)

    def _pi(self, p: Tensor, q: Tensor) -> Tensor:
        top, alpha = p.amax(-1, keepdim=True), self.alpha
        if self.deferral.startswith("token"):
            bound = top * (1 - alpha) if self.deferral == "token_v3" else top - alpha
            A = (q if self.deferral == "token_v1" else p) >= bound
            return q * A + p * (q * ~A).sum(-1, keepdim=True)
        sure = q.amax(-1, keepdim=True)
        bound = {
            "chow": torch.full_like(top, 1 - alpha),
            "diff": top - alpha,
            "opt": top - alpha * (p - q).clamp(min=0).sum(-1, keepdim=True),
        }[self.deferral]
        return torch.where(sure < bound, p, q)

"""ZipAR: what the drafter's schedule has settled is emitted without a test, and metered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict


@dataclass(frozen=True, kw_only=True)
class ZipARVerifier:
    """Emit the symbols that the ``zipar`` drafter has settled, then draw the next one from p.

    He et al. (2024), "ZipAR: Accelerating Auto-regressive Image Generation through Spatial Locality":
    rows are decoded side by side and nothing is verified. A settled symbol was drawn from the
    law q behind a row that was not finished yet; with the row finished, p is the law that it should have
    had, and TV(q, p) is what it spent. q is a function of the symbols before it, so the mean of what is
    reported is exactly the mean total variation of the symbols' conditional laws.

    The noise is that of the seed, so that few symbols differ from plain decoding. A draft without settled
    symbols, that of any other drafter, is not looked at: then this decodes plainly.
    """

    name: ClassVar[str] = "zipar"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = True
    paper: ClassVar[str] = "He et al. 2024, arXiv 2412.04062"

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Accept what is settled; the symbol behind it has its whole prefix now."""
        n = draft.settled
        following = int(noise.symbols(p.at(n), [standing.start + n]))
        spent = _variation(draft, p, n).tolist() if n else []
        return Verdict(path=tuple(range(n)), tokens=(*draft.ids[:n], following), spent=(*spent, 0.0))


def _variation(draft: Draft, p: Law, n: int) -> Tensor:
    """TV between p and the law each settled symbol was drawn from; 1 - p(x) for a point mass."""
    if draft.q is None:
        x = draft.tokens[:n, None].to(p.probs.device)
        return 1 - p.probs[:n].gather(-1, x)[:, 0]
    difference: Tensor = torch.abs(draft.q[:n].to(p.probs) - p.probs[:n])
    return difference.sum(-1) / 2

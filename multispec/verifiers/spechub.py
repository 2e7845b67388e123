"""SpecHub: pairs of siblings around the symbol that the drafter finds most probable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.narrow import without
from multispec.verifiers.siblings import Choice, Siblings, in_turn, walk


@dataclass(frozen=True, kw_only=True)
class SpecHub:
    """The target's law from pairs that hold the hub a = argmax q, by optimal transport in closed form.

    Sun et al. (2024), "SpecHub: Provable Acceleration to Multi-Draft Speculative Decoding". A
    pair {x, a} comes with w(x) = q(x) / (1 - q(a)): x drawn first and then a, or a first and x from what is
    left. Of w(x) as much as p(x) can take goes to x, of the rest as much as p(a) can take to a, and what
    then is left of p is the law of the symbol when both are refused.

    Siblings are drawn without replacement. Where the first is not the hub, the hub takes the place of the
    second, which it mostly is; a hub that was not drafted can be emitted, and ends the round. More than two
    siblings: the others follow by recursive rejection. Given siblings (point masses) are tested as by
    ``rejection``, and so is a node with one child.

    Raises:
        UnsupportedError: at ``verify``, independent siblings.
    """

    name: ClassVar[str] = "spechub"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Sun et al. 2024, arXiv 2411.05289"

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node judge the first two children together."""
        if draft.kind == "sampled" and not draft.is_chain:
            raise UnsupportedError(
                "SpecHub pairs each symbol with another one: got independent siblings, which may be equal. "
                "Use k_seq or rejection, or a drafter that draws without replacement."
            )
        return walk(_among, draft, p, noise, standing, whole=True)


def _among(at: Siblings) -> Choice:
    a = int(at.q.argmax())
    if at.kind != "without_replacement" or len(at.x) == 1 or float(at.q[0, a]) >= 1:
        return in_turn(at)
    first, second = at.x[:2].tolist()
    x = second if first == a else first
    w = (at.q / (1 - at.q[0, a])).index_fill(-1, at.x.new_tensor([a]), 0.0)
    kept = torch.minimum(at.p, w)
    if at.passes(0, kept[0, x], w[0, x]):
        return (1 if first == a else 0), at.p
    spare = float((w - kept).sum())
    if at.passes(1, at.p[0, a], spare):
        return _hub(at, a)
    kept[0, a] = torch.minimum(at.p[0, a], kept.new_tensor(spare))
    return _others(at, (at.p - kept).clamp_(min=0))


def _hub(at: Siblings, a: int) -> Choice:
    drafted = at.x[:2].tolist()
    if a in drafted:
        return drafted.index(a), at.p
    return None, torch.zeros_like(at.p).index_fill_(-1, at.x.new_tensor([a]), 1.0)


def _others(at: Siblings, rest: Tensor) -> Choice:
    """What the third sibling and those behind it are tested against."""
    total = rest.sum()
    left = rest / total if float(total) > 0 else at.p
    q = without(without(at.q, at.x[:1]), at.x[1:2])
    return in_turn(replace(at, p=left, q=q), begin=2)

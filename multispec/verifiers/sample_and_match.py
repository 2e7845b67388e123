"""Sample and match: the target draws for itself, and keeps what was drafted as long as it is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, Verdict
from multispec.tree import children
from multispec.verifiers.narrow import narrowed


@dataclass(frozen=True, kw_only=True)
class SampleAndMatch:
    """The target's law from any draft, without its q: y ~ p at each node, go on with the child that is y.

    The rule of black-box and retrieval drafters (He et al. 2023, REST). Given siblings (point masses) lose
    nothing by it: the sum of p over them is the most that any rule accepts. Sampled ones do: sum p q instead
    of sum min(p, q), so prefer ``rejection`` or ``block`` there. ``coupled`` is this rule with the noise of
    the seed.
    """

    name: ClassVar[str] = "sample_and_match"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "He et al. 2023, arXiv 2311.08252"

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree along the symbols drawn."""
        narrow, below, start = narrowed(draft, p), children(draft.parents), standing.start
        path, node = list[int](), -1
        while True:
            place = narrow.probs[node + 1 : node + 2]
            y = narrow.first + int(noise.choose(place, [start + len(path)], Purpose.RESIDUAL, start))
            step = next((c for c in below.get(node, ()) if draft.ids[c] == y), None)
            if step is None:
                return Verdict(path=tuple(path), tokens=(*(draft.ids[node] for node in path), y))
            path.append(step)
            node = step

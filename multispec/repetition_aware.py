"""Rules against loops in codec streams, as pure functions of the prefix: drafts are verified through them.

Both are logits processors: ``generate(..., logits_processor=[RepetitionAware.cosyvoice()])``. What they look
at is the ids before the place that is asked about, drafted ones included, so no state has to be rolled back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import SamplingError


def _check_window(window: int) -> None:
    if window < 1:
        raise SamplingError(
            f"A window holds one symbol at least: got {window}. Leave the rule out to switch it off."
        )


@dataclass(frozen=True, kw_only=True)
class RepetitionAware:
    """Repetition aware sampling, Chen et al. (2024), arXiv 2406.05370, algorithm 1, in closed form.

    The authors draw y from the nucleus of p, and where y stands ``repeats`` times or more among the last
    ``window``
    symbols, they draw anew from p itself. Both draws together have the law ::

        p'(x) = nuc(x) (1 - rep(x)) + sum_y nuc(y) rep(y) p(x)            with rep(y) in {0, 1} from the
        prefix

    which no draw enters, so it is sampled (and drafted for) as any other. Where ``other`` is set, the second
    draw never gives y again: p(x) is then p(x) / (1 - p(y)) for x other than y. Ids that are ``ignored``
    never count as repeated.

    ``nuc`` is made at ``temperature`` from the ``top_k`` best up to mass ``top_p``, counted in all symbols
    or, where ``top_k_first``, in those k; p is the model's own law.
    It takes the place of the warpers: leave Sampling at temperature 1, or greedy, without top-k and top-p.

    Raises:
        SamplingError: a setting outside its range.

    >>> rule = RepetitionAware(window=2, repeats=1, top_k=1)
    >>> rule(torch.tensor([[0, 0]]), torch.tensor([[2.0, 1.0]]).log()).exp().round(decimals=2)
    tensor([[0.6700, 0.3300]])
    """

    window: int
    repeats: int
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0
    other: bool = False
    ignored: tuple[int, ...] = ()
    top_k_first: bool = False
    reads: ClassVar[Literal["scores", "prefix"]] = "prefix"

    def __post_init__(self) -> None:
        _check_window(self.window)
        if self.repeats < 1 or self.top_k < 0 or not 0 < self.top_p <= 1 or not self.temperature > 0:
            raise SamplingError(
                "Repetition aware sampling needs repeats >= 1, top_k >= 0, top_p in (0, 1] and temperature > "
                f"0: got {self.repeats}, {self.top_k}, {self.top_p}, {self.temperature}. 0 and 1 are off."
            )

    @staticmethod
    def cosyvoice() -> RepetitionAware:
        """As in CosyVoice 2: 25 symbols, 0.8 of the mass, nothing twice within ten."""
        return RepetitionAware(window=10, repeats=1, top_k=25, top_p=0.8)

    @staticmethod
    def higgs(
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 0.95,
        ignored: tuple[int, ...] = (1024, 1025),
    ) -> RepetitionAware:
        """As in Higgs Audio v2: in each codebook, nothing a third time within seven, but begin and end."""
        nucleus: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k_first": True}
        return RepetitionAware(window=7, repeats=2, top_k=top_k, ignored=ignored, **nucleus)

    def __call__(self, input_ids: Int[Tensor, "n S"], scores: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """log p' behind each of the prefixes ``input_ids``; -inf where it is 0."""
        p = scores.double().softmax(-1)
        nucleus = self._nucleus(scores.double() / self.temperature)
        repeated = _counts(input_ids[:, -self.window :], scores.shape[-1]) >= self.repeats
        repeated[:, [one for one in self.ignored if one < scores.shape[-1]]] = False
        again = torch.where(repeated, nucleus, 0.0)
        law = (nucleus - again) + self._second(p, again)
        return law.log().to(scores.dtype)

    def _nucleus(self, scores: Tensor) -> Tensor:
        mass, order = scores.softmax(-1).sort(descending=True)
        if self.top_k and self.top_k_first:
            mass = mass / mass[:, : self.top_k].sum(-1, keepdim=True)
        dropped = mass.cumsum(-1) - mass >= self.top_p
        if self.top_k:
            dropped[:, self.top_k :] = True
        dropped[:, 0] = False
        kept = torch.zeros_like(mass).scatter(-1, order, mass.masked_fill(dropped, 0.0))
        return kept / kept.sum(-1, keepdim=True)

    def _second(self, p: Tensor, again: Tensor) -> Tensor:
        """What the second draw adds, for ``again`` the mass of the first draws that are repeated."""
        if not self.other:
            return again.sum(-1, keepdim=True) * p
        # A symbol that is alone in p cannot be avoided.
        left = 1 - p
        shares = torch.where(left > 0, again / left.clamp(min=1e-300), 0.0)
        return p * (shares.sum(-1, keepdim=True) - shares) + torch.where(left > 0, 0.0, again)


@dataclass(frozen=True)
class RecentPenalty:
    """The repetition penalty of Keskar et al. (2019), arXiv 1909.05858, section 4.1, over the last symbols.

    OuteTTS asks for 1.1 over 64: over a whole stream of codes it would ban what speech is made of.

    Raises:
        SamplingError: a setting outside its range.

    >>> RecentPenalty(2.0, 1)(torch.tensor([[0, 1]]), torch.tensor([[4.0, 4.0, -1.0]]))
    tensor([[ 4.,  2., -1.]])
    """

    penalty: float
    window: int
    reads: ClassVar[Literal["scores", "prefix"]] = "prefix"

    def __post_init__(self) -> None:
        _check_window(self.window)
        if not self.penalty > 0:
            raise SamplingError(f"A repetition penalty must be > 0: got {self.penalty}. 1 is off.")

    def __call__(self, input_ids: Int[Tensor, "n S"], scores: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """Positive scores of recent symbols divided by the penalty, others multiplied with it."""
        recent = _counts(input_ids[:, -self.window :], scores.shape[-1]) > 0
        weaker = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(recent, weaker, scores)


def _counts(ids: Tensor, size: int) -> Tensor:
    """How often each symbol stands in each row; ids of another vocabulary (a prompt's) count for nothing."""
    inside = (ids >= 0) & (ids < size)
    found = torch.zeros(len(ids), size, dtype=torch.long, device=ids.device)
    return found.scatter_add_(-1, torch.where(inside, ids, 0), inside.long())

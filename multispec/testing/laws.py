"""The exact law of what any drafter and verifier emit together, and what a rule reports against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.protocols import Drafter, Standing, Verifier
from multispec.sampling import Law, Noise, Purpose, Sampling
from multispec.stream import Draft
from multispec.testing.models import FakeModel, require
from multispec.testing.noise import enumerate_law
from multispec.testing.playing import play, row
from multispec.verifiers import Coupled

Tokens = tuple[int, ...]


def output_law(
    model: FakeModel,
    drafter: Drafter | None = None,
    verifier: Verifier | None = None,
    *,
    prompt: Sequence[int] = (1,),
    max_new_tokens: int = 3,
    sampling: Sampling | None = None,
    **changes: Any,
) -> dict[Tokens, float]:
    """The probability of every output of the real loop; without a drafter, that of plain decoding.

    The loop runs once for every sequence of draws, so ask for few symbols of few (``support``).

    Raises:
        AssertionError: the drafter was set aside: its law is that of plain decoding, which shows nothing.
        UnsupportedError: a drafter that shares the target's Gumbel noise; compare seeds there.

    >>> model = TableModel(seed=1, support=2)
    >>> drafted = output_law(model, TreeDrafter(TableModel(seed=2), kind="sampled"), Rejection())
    >>> variation(output_law(model), drafted) < 1e-9
    True
    """
    rule = Coupled() if verifier is None else verifier

    def run(noise: Noise) -> Tokens:
        asked = row(
            prompt,
            drafter=drafter,
            verifier=rule,
            sampling=sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            noise=noise,
            **changes,
        )
        made = play(model, asked)[0]
        require(not made.report.drafter_failures, "; ".join(made.report.notes))
        return tuple(made.tokens.flatten().tolist())

    return enumerate_law(run)


def variation(one: Mapping[Tokens, float], other: Mapping[Tokens, float]) -> float:
    """The total variation between two laws: half the sum of |p - q|.

    >>> variation({(0,): 0.5, (1,): 0.5}, {(0,): 1.0})
    0.5
    """
    return sum(abs(one.get(x, 0.0) - other.get(x, 0.0)) for x in {*one, *other}) / 2


class Trial(NamedTuple):
    """What became of one drafted symbol x ~ q: the ``law [V]`` emitted at its place, and what was spent.

    ``variation`` is TV(law, p), computed (of given symbols the mean over x of TV(law behind x, p));
    ``reported`` the mean of what the rule says it spent; ``accepted`` the probability that x was kept.
    """

    law: Tensor
    variation: float
    reported: float
    accepted: float


@dataclass(frozen=True)
class _Outcome:
    drafted: int
    symbol: int
    spent: float
    kept: bool


def one_trial(
    verifier: Verifier, p: Float[Tensor, " V"], q: Float[Tensor, " V"], *, point: bool = False
) -> Trial:
    """Draw one symbol from q and let the rule decide, by exact enumeration: the meter of any rule.

    With ``point`` the rule is not told q, as for copied symbols. A rule is metered right when ``reported``
    is ``variation``, and on the safe side when it is more; an exact rule has 0 for both.

    >>> from multispec.verifiers import Lenience
    >>> found = one_trial(Lenience(l=0.5), torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]))
    >>> abs(found.reported - found.variation) < 1e-9
    True
    """
    p, q = p.double() / p.double().sum(), q.double() / q.double().sum()
    # Behind the drafted symbol, whatever it is, comes p once more.
    law = Law(torch.stack([p, p]).log(), greedy=False)

    def run(noise: Noise) -> _Outcome:
        x = noise.choose(q[None], [0], Purpose.DRAFT, 4095)
        draft = Draft.chain(x, None if point else q[None])
        found = verifier.verify(draft, law, noise, Standing(0, length=2))
        return _Outcome(int(x), found.tokens[0], sum(found.spent[:1]), bool(found.path))

    outcomes = enumerate_law(run, horizon=1)
    behind = torch.zeros(len(p), len(p), dtype=p.dtype)
    for one, weight in outcomes.items():
        behind[one.drafted, one.symbol] += weight
    emitted = behind.sum(0)
    apart = behind - q[:, None] * p if point else emitted - p
    return Trial(
        law=emitted,
        variation=float(apart.abs().sum() / 2),
        reported=sum(weight * one.spent for one, weight in outcomes.items()),
        accepted=sum(weight for one, weight in outcomes.items() if one.kept),
    )

"""Which layers to leave out: candidates drawn or proposed by a Gaussian process, and how they are rated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multispec.branches import begin
from multispec.drafters.self_draft import Itself
from multispec.drafters.skip_layers import SkipLayers, between, check_length
from multispec.errors import UsageError
from multispec.protocols import Context, Target
from multispec.stream import Prompt
from multispec.targets.ragged import Forward, RaggedSession
from multispec.targets.views import Modules, Sublayers

# Candidates among which a Gaussian process chooses, and the most trials that it looks back on.
_CHOICES, _LOOKS_BACK = 128, 100
_NOISE = 1e-3
_WINDOW = 128


@dataclass
class Space:
    """Sets of sublayers that may be left out: of ``inner`` layers, ``count`` of their parts, or any number.

    With ``whole`` both parts of a layer go together.
    """

    inner: Sequence[int]
    whole: bool = False
    count: int | None = None

    @property
    def size(self) -> int:
        """How many parts there are to choose from."""
        return len(self.inner) * (1 if self.whole else 2)

    def drawn(self, generator: torch.Generator) -> Tensor:
        """A random set, as a vector of zeros and ones."""
        count = self.count
        if count is None:
            count = int(torch.randint(1, max(2, self.size), (1,), generator=generator))
        z = torch.zeros(self.size, dtype=torch.float64)
        z[torch.randperm(self.size, generator=generator)[:count]] = 1
        return z

    def sublayers(self, z: Tensor) -> Sublayers:
        """The set that a vector stands for."""
        chosen = [place for place, taken in enumerate(z.tolist()) if taken]
        if self.whole:
            return Sublayers.whole(self.inner[place] for place in chosen)
        layers = len(self.inner)
        return Sublayers(
            frozenset(self.inner[place] for place in chosen if place < layers),
            frozenset(self.inner[place - layers] for place in chosen if place >= layers),
        )


@dataclass
class Tried:
    """What was tried, and how it was rated; ``best`` is the highest so far."""

    z: list[Tensor] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, z: Tensor, score: float) -> bool:
        """Note a trial; True where it is better than all before."""
        better = not self.scores or score > max(self.scores)
        self.z.append(z)
        self.scores.append(score)
        return better

    def proposed(self, space: Space, generator: torch.Generator) -> Tensor:
        """The candidate with the largest expected improvement under a Gaussian process.

        Squared-exponential kernel over the vectors, length scale sqrt(size), as for Draft & Verify's and
        SWIFT's Bayesian steps.
        """
        z = torch.stack(self.z[-_LOOKS_BACK:])
        y = torch.tensor(self.scores[-_LOOKS_BACK:], dtype=torch.float64)
        scale = max(float(y.std(correction=0)), 1e-6)
        y = (y - y.mean()) / scale
        choices = torch.stack([space.drawn(generator) for _ in range(_CHOICES)])
        k = _kernel(z, z, space.size) + _NOISE * torch.eye(len(z), dtype=torch.float64)
        cross = _kernel(choices, z, space.size)
        solved = torch.linalg.solve(k, torch.cat([y[:, None], cross.T], 1))
        mu = cross @ solved[:, 0]
        sigma = (1 - (cross * solved[:, 1:].T).sum(1)).clamp(min=1e-12).sqrt()
        u = (mu - y.max()) / sigma
        normal = torch.distributions.Normal(0.0, 1.0)
        gain = sigma * (u * normal.cdf(u) + normal.log_prob(u).exp())
        return choices[int(gain.argmax())]


def _kernel(a: Tensor, b: Tensor, size: int) -> Tensor:
    return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * size))


def matchness(session: RaggedSession, row: int, ids: Sequence[int], width: int, lighter: Forward) -> float:
    """How often ``lighter`` would have put first what comes in ``ids``, the row's symbols with the next one.

    Looked at in one pass over the last ``width`` committed symbols.
    """
    length = session.length(row)
    start = max(0, length - width)
    logits = session.rerun(row, ids[start:length], lighter)
    expected = torch.tensor(ids[start + 1 : length + 1], device=logits.device)
    return float((logits.argmax(-1) == expected).double().mean())


def expected_speed(accepted: float, cost: float, drafted: int) -> float:
    """Symbols per cost of a plain pass, at this rate of acceptance per symbol and cost per drafted one.

    Leviathan et al. (2023), theorem 3.8: (1 - a^(g+1)) / ((1 - a) (g c + 1)).

    >>> expected_speed(1.0, 0.5, 3)
    1.6
    """
    emitted = drafted + 1 if accepted >= 1 else (1 - accepted ** (drafted + 1)) / (1 - accepted)
    return emitted / (drafted * cost + 1)


@torch.inference_mode()
def search_layers(
    target: Target,
    sequences: Sequence[Sequence[int]],
    *,
    trials: int = 64,
    whole: bool = False,
    num_draft_tokens: int = 5,
    seed: int = 0,
) -> SkipLayers:
    """The layers that ``target`` had best leave out to draft ``sequences`` of ids, as a drafter.

    Zhang et al. (2023), Draft & Verify, section 3.2: Bayesian optimisation of the time per symbol over all
    sets z. The time is taken from the theory, with the rate at which the lighter target puts first what
    follows in the sequences (which should be its own output) and the share of parameters it still runs;
    so that a search gives the same layers on every machine. A quarter of the trials is drawn at random.

    Raises:
        UsageError: no sequences, or no trials.
        UnsupportedError: a target whose layers cannot be left out.
    """
    check_length(num_draft_tokens)
    if trials < 1 or not sequences or min(map(len, sequences)) < 2:
        raise UsageError(
            f"search_layers needs a trial, and sequences of two ids at least: got {trials} trials and "
            f"lengths {[len(ids) for ids in sequences]}. Pass what the target generated."
        )
    itself = _over(target, sequences)
    space = Space(between(itself.layers, "search_layers"), whole)
    modules = Modules(itself.forward.model, itself.layers)
    generator, tried = torch.Generator().manual_seed(seed), Tried()
    best = Sublayers()
    for trial in range(trials):
        random = trial < max(2, trials // 4)
        z = space.drawn(generator) if random else tried.proposed(space, generator)
        skipped = space.sublayers(z)
        rates = [
            matchness(itself.session, row, ids, _WINDOW, itself.forward.without(skipped))
            for row, ids in enumerate(sequences)
        ]
        speed = expected_speed(sum(rates) / len(rates), modules.share(skipped), num_draft_tokens)
        if tried.add(z, speed):
            best = skipped
    return SkipLayers(
        tuple(sorted(best.attention)), tuple(sorted(best.mlp)), num_draft_tokens=num_draft_tokens
    )


def _over(target: Target, sequences: Sequence[Sequence[int]]) -> Itself:
    """The target with all but the last symbol of every sequence run."""
    prompts = [Prompt(ids=torch.tensor(list(ids[:-1]))) for ids in sequences]
    session = begin(target, prompts, [len(ids) for ids in sequences], 2 * _WINDOW)
    context = Context(
        prompts=dict(enumerate(prompts)),
        capacity={row: len(ids) for row, ids in enumerate(sequences)},
        vocab_size=target.spec.vocab_size,
        device=target.device,
        target=target,
        session=session,
    )
    itself = Itself(context, "search_layers")
    session.prefill()
    return itself

"""The meter of relaxed rules: what they report as spent, against the law of what they emit.

Nothing is sampled. The loop is run once for every sequence of draws it can make, over a table of the
model's own logits, so that both sides are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from multispec.checking.drafters import worse
from multispec.checking.laws import Few, Replays, Tokens, few_for, law_after
from multispec.checking.prompts import refuse_steps
from multispec.checking.results import Finding
from multispec.drafters import EachRow
from multispec.errors import UnsupportedError, UsageError
from multispec.modality import Modality
from multispec.neighbours import UsesNeighbours
from multispec.processing import Places
from multispec.protocols import Context, DraftSession, Request, Verifier
from multispec.sampling import Noise, Purpose
from multispec.stream import Draft, Generation, Observation, Prompt
from multispec.testing import FakeModel, enumerate_law, play, row
from multispec.verifiers import BudgetedRejection

# The first symbol is never drafted; then come one trial and what follows it, which needs no enumeration.
_NEW_TOKENS = 3
_HORIZON = 2
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Outcome:
    """What one sequence of draws gave: the first symbols, what was reported as spent, and a failure."""

    tokens: Tokens
    emitted: int
    spent: float
    failure: str = ""


def meter_holds(
    replays: Replays,
    prompts: Sequence[Prompt],
    verifier: Verifier,
    modality: Modality,
    quick: bool,
) -> Finding:
    """The mean of what one-step trials report against the total variation of what they emit, from p and q.

    A rule that spends by an allowance is held to it in every run.

    Raises:
        UnsupportedError: the rule needs neighbours and there are none, its noise cannot be enumerated, or
            slots are parallel.
    """
    refuse_steps(replays.target, prompts)
    rule, found = informed(verifier, modality), Finding()
    for place, prompt in enumerate(prompts[: 2 if quick else 4]):
        model = replays.of(prompt)
        few = few_for("one trial", model, prompt)
        law = _outcomes(model, prompt, rule, few)
        reported = sum(weight * one.spent for one, weight in law.items())
        variation = _variation(model, prompt, law, few)
        found.cases += len(law)
        said = f"prompt {place}: {reported:.4f} reported, total variation {variation:.4f}"
        right = abs(reported - variation) <= _ROUNDING
        (found.notes if right else found.wrong).append(said)
        found.wrong.extend(sorted({one.failure for one in law if one.failure}))
        found.wrong.extend(_overspent(law, rule))
    return found


def informed(verifier: Verifier, modality: Modality) -> Verifier:
    """The rule, with the neighbours of the modality where it was given none."""
    if not isinstance(verifier, UsesNeighbours) or verifier.neighbours is not None:
        return verifier
    rule: Any = verifier
    found: Verifier = replace(rule, neighbours=modality.neighbours)
    return found


def _outcomes(model: FakeModel, prompt: Prompt, rule: Verifier, few: Few) -> dict[Outcome, float]:
    """The exact law of what the loop emits and reports."""

    def run(noise: Noise) -> Outcome:
        asked = row(
            prompt.ids.tolist(),
            sampling=few.sampling(),
            verifier=rule,
            drafter=OneTrial(worse(model)),
            max_new_tokens=_NEW_TOKENS,
            end_ids=model.spec.end_ids,
            noise=noise,
        )
        return _outcome(play(model, asked)[0])

    try:
        return enumerate_law(run, _HORIZON)
    except UsageError as error:  # the rule needs something that this model does not have
        raise UnsupportedError(str(error)) from error


def _outcome(made: Generation) -> Outcome:
    report = made.report
    failure = report.notes[-1] if report.drafter_failures else ""
    tokens = tuple(made.tokens.flatten().tolist()[:_HORIZON])
    return Outcome(tokens, report.new_tokens, report.variation_spent, failure)


def _variation(model: FakeModel, prompt: Prompt, law: Mapping[Outcome, float], few: Few) -> float:
    """The mean over first symbols of the total variation of the second one's law from p."""
    behind: dict[int, dict[int, float]] = {}
    for one, weight in law.items():
        if len(one.tokens) == _HORIZON:
            first, second = one.tokens
            seen = behind.setdefault(first, {})
            seen[second] = seen.get(second, 0.0) + weight
    total = 0.0
    for first, seen in behind.items():
        p = law_after(model, prompt, (first,), few.sampling()) * sum(seen.values())
        o = torch.zeros_like(p)
        o[list(seen)] = torch.tensor(list(seen.values()), dtype=o.dtype)
        total += float((o - p).abs().sum()) / 2
    return total


def _overspent(law: Mapping[Outcome, float], rule: Verifier) -> list[str]:
    if not isinstance(rule, BudgetedRejection):
        return []
    worst = max(one.spent - rule.per_token * one.emitted for one in law)
    return [f"spends {worst:.2g} more than its allowance"] if worst > _ROUNDING else []


@dataclass(frozen=True)
class OneTrial:
    """Drafts one symbol, drawn from q, for the second place of a stream, and none elsewhere.

    It counts as settled, for rules that look at nothing else.
    """

    name: ClassVar[str] = "one_trial"
    model: FakeModel
    num_draft_tokens: int = 1

    def begin(self, context: Context) -> DraftSession:
        """The same for every row."""
        return EachRow(context, lambda _: _Trial(self.model))


@dataclass(frozen=True)
class _Trial:
    model: FakeModel

    def propose(self, request: Request) -> Draft:
        """x ~ q."""
        if request.round_start != 1:
            return Draft.empty()
        history = request.history
        logits = self.model.after(history.ids, history.prompt_length)[None]
        law = request.pipeline.law(logits, Places(history, ((),)))
        x = request.noise.choose(law.probs, [1], Purpose.DRAFT)
        return replace(Draft.chain(x, law.probs), settled=1)

    def observe(self, observation: Observation) -> None:
        """It learns nothing."""

"""Which checks there are for a model, in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multispec.checking import scoring
from multispec.checking.drafters import default_drafters
from multispec.checking.equality import Equality
from multispec.checking.laws import (
    ERROR_RATE,
    QUICK_SAMPLES,
    SAMPLES,
    Replays,
    joint_law_holds,
    law_drafters,
)
from multispec.checking.meter import meter_holds
from multispec.checking.prompts import default_prompts, draws
from multispec.checking.results import Check, CheckResult, Finding
from multispec.errors import DrafterWarning
from multispec.generator import Generator
from multispec.methods import catalog, why_not
from multispec.protocols import Drafter, Verifier
from multispec.stream import Prompt
from multispec.testing import TreeDrafter
from multispec.verifiers import BlockVerification

# Rules that promise the law are tried with these: chains, trees, whatever drafts with a model.
_FOR_LAWS = ("draft_model", "trees", "prompt_lookup", "random ids")
# With the shared noise this drafts what jacobi drafts: a short check tries it under the law alone.
_LIKE_JACOBI = ("scd_mc",)
# Enough of them for rules that look at given symbols alone.
_DRAFTS_PER_RULE = 2


def check_model(
    generator: Generator,
    *,
    drafters: Mapping[str, Drafter] | None = None,
    verifiers: Sequence[Verifier] | None = None,
    prompts: Sequence[Prompt] | None = None,
    quick: bool = False,
) -> list[CheckResult]:
    """Check every promise on this model; nothing is printed, and what breaks is a row that fails.

    ``drafters`` (by the names that the rows show), ``verifiers`` and ``prompts`` default to all that
    fit: see ``default_drafters`` and ``default_prompts``. ``quick`` takes fewer and shorter cases, every
    method at least once all the same: see ``left_out``.

    Raises:
        UnsupportedError: no prompts were given, and none can be made up for this model.

    >>> all(result.ok for result in check_model(load("text")))                 # doctest: +SKIP
    True
    """
    return list(iter_checks(generator, drafters=drafters, verifiers=verifiers, prompts=prompts, quick=quick))


def iter_checks(
    generator: Generator,
    *,
    drafters: Mapping[str, Drafter] | None = None,
    verifiers: Sequence[Verifier] | None = None,
    prompts: Sequence[Prompt] | None = None,
    quick: bool = False,
) -> Iterator[CheckResult]:
    """The rows of ``check_model`` as each is done."""
    asked = list(default_prompts(generator) if prompts is None else prompts)
    if quick:
        asked = _few(asked)
    plan = Plan(
        equality=Equality(generator, asked, quick),
        replays=Replays(generator.target),
        drafters=default_drafters(generator, asked) if drafters is None else drafters,
        verifiers=_all_verifiers() if verifiers is None else verifiers,
        chosen=drafters is not None,
    )
    for check in _checks(plan):
        with warnings.catch_warnings():
            # A drafter that fails is a row of its own here.
            warnings.simplefilter("ignore", DrafterWarning)
            result = check.settle()
        yield result


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is checked with what."""

    equality: Equality
    replays: Replays
    drafters: Mapping[str, Drafter]
    verifiers: Sequence[Verifier]
    chosen: bool

    def drafters_for(self, verifier: Verifier, first: bool) -> dict[str, Drafter]:
        """Those that the rule is tried with: all that were chosen, or all for the first rule of seeds.

        Drafters have the same symbols to offer to every rule, so two of the others will do.
        """
        if self.chosen:
            return dict(self.drafters)
        if first and verifier.coupled:
            spared = _LIKE_JACOBI if self.equality.quick else ()
            return {name: one for name, one in self.drafters.items() if name not in spared}
        usual = {name: one for name, one in self.drafters.items() if name.startswith(_FOR_LAWS)}
        fitting = {
            name: one for name, one in (usual or dict(self.drafters)).items() if self._fits(one, verifier)
        }
        return dict(list(fitting.items())[:_DRAFTS_PER_RULE])

    def _fits(self, drafter: Drafter, verifier: Verifier) -> bool:
        target = self.equality.target
        chains = verifier.name == BlockVerification.name and isinstance(drafter, TreeDrafter)
        return not chains and not why_not(drafter, verifier, target.spec, True)


def _all_verifiers() -> list[Verifier]:
    return [
        entry.make() for entry in catalog() if entry.kind == "verifier" and entry.by_name and not entry.base
    ]


def _checks(plan: Plan) -> Iterator[Check]:
    equality = plan.equality
    target, prompts = equality.target, equality.prompts
    yield Check("generate", "greedy tokens = the model's own generate", equality.of_generate)
    same = "logits of drafts scored at once = a fresh run's"
    yield Check("chains, rolled back", same, _later(scoring.chains, target, prompts))
    yield Check("trees, rolled back", same, _later(scoring.trees, target, prompts))
    yield Check("batch", "tokens in a mixed batch = tokens alone", equality.of_batches)
    seeds = [one for one in plan.verifiers if one.exactness == "seed"]
    for verifier in plan.verifiers:
        yield from _of_rule(plan, verifier, verifier in seeds[:1])


def _few(prompts: list[Prompt]) -> list[Prompt]:
    """The first two and the last, which is a text where there is a tokenizer; all that are drawn behind."""
    return prompts if draws(prompts) else [*prompts[:2], *prompts[2:][-1:]]


def left_out(generator: Generator) -> list[str]:
    """What ``quick`` spares of the whole check of a model, in words.

    Raises:
        UnsupportedError: no prompts can be made up for this model.
    """
    asked = default_prompts(generator)
    spared, short = len(asked) - len(_few(asked)), Equality(generator, asked, quick=True)
    return [
        *([f"{spared} of {len(asked)} prompts"] if spared else []),
        f"the settings {', '.join(short.left_out)}",
        f"more than {short.new_tokens} new tokens",
        f"{SAMPLES - QUICK_SAMPLES} of {SAMPLES} samples of each law, and all but one prompt for it",
        "further kinds of siblings and windows under the law",
        f"{', '.join(_LIKE_JACOBI)} under the shared noise, where it drafts what jacobi drafts",
    ]


def _of_rule(plan: Plan, verifier: Verifier, first: bool) -> Iterator[Check]:
    promise, name, equality = verifier.exactness, verifier.name, plan.equality
    if promise not in ("seed", "law"):
        modality = equality.generator.modality
        run = _later(meter_holds, plan.replays, equality.prompts, verifier, modality, equality.quick)
        yield Check(f"{name}, meter", "variation reported = that of one-step trials, computed", run)
        return
    tokens = "tokens = plain decoding" if promise == "seed" else "greedy tokens = plain decoding"
    for label, drafter in plan.drafters_for(verifier, first).items():
        yield Check(f"{name}, {label}", tokens, _later(equality.of_rule, verifier, drafter))
    if promise == "law":
        yield from _of_law(plan, verifier)


def _of_law(plan: Plan, verifier: Verifier) -> Iterator[Check]:
    prompts, quick = plan.equality.prompts, plan.equality.quick
    makers = law_drafters(plan.replays.target, verifier, quick)
    # One level of error for all tests together (Bonferroni).
    limit = ERROR_RATE / max(len(makers) * min(len(prompts), 2), 1)
    for label, make in makers.items():
        run = _later(joint_law_holds, plan.replays, prompts, verifier, label, make, limit, quick)
        yield Check(f"{verifier.name}, {label}", "joint law of tokens = the model's, G-test", run)


def _later(check: Callable[..., Finding], *arguments: Any) -> Callable[[], Finding]:
    return lambda: check(*arguments)

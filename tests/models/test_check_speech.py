"""``multispec check`` on models that speak: one code after the other, several at once, and on two levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

import multispec as ms
from multispec.checking import (
    CheckResult,
    check_model,
    default_drafters,
    default_prompts,
    laws,
    rows,
    scoring,
)
from multispec.checking.drafters import RandomIds
from multispec.modalities.speech.adapter import Speech
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.verifiers import BudgetedRejection, Coupled, Rejection
from tests.models import flat_speech, test_csm, test_musicgen

FAMILIES: dict[str, Callable[[], Any]] = {
    "flat": lambda: flat_speech.family("orpheus"),
    "two levels": test_csm.family,
    "parallel": lambda: test_musicgen.family_of("mono"),
}
DRAFTERS = {"random ids": RandomIds(), "prompt_lookup": ms.drafters.PromptLookup()}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are checked in every call here."""
    monkeypatch.setattr(laws, "QUICK_SAMPLES", 20)
    monkeypatch.setattr(scoring, "_ROUNDS", 1)


def speaker(name: str) -> ms.Generator:
    """A tiny model of this kind."""
    family = FAMILIES[name]()
    return ms.Generator(family.target, Speech(family))


def checked(generator: ms.Generator, **settings: Any) -> dict[tuple[str, str], CheckResult]:
    """The rows of one prompt, by name and what is compared."""
    asked = default_prompts(generator)[:1]
    usual: dict[str, Any] = {"prompts": asked, "quick": True, "drafters": DRAFTERS}
    return {(one.name, one.compared[:5]): one for one in check_model(generator, **(usual | settings))}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_kind_of_speech_passes(name: str) -> None:
    """Exact rules by tokens; what looks at single symbols is left out where several move together."""
    results = checked(speaker(name), verifiers=[Coupled(), BudgetedRejection()])
    assert [one for one in results.values() if not one.ok] == []
    assert all(results[f"coupled, {draft}", "token"].cases for draft in DRAFTERS)
    skipped = {row for (row, _), one in results.items() if one.skipped}
    single = {"chains, rolled back", "budget, meter"}
    assert single <= skipped if name == "parallel" else not single & skipped
    if name == "parallel":
        assert "slots of this stream move together" in results["budget, meter", "varia"].detail


def test_the_law_of_codes_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codebooks that take turns have no ids in common, so their best symbols are taken one by one."""
    generator = speaker("two levels")
    label = "draft_model (made worse)"
    make = laws.law_drafters(generator.target, Rejection(), True)[label]
    monkeypatch.setattr(rows, "law_drafters", lambda *_: {label: make})
    results = checked(generator, verifiers=[Rejection()], drafters={"random ids": RandomIds()})
    assert results[f"rejection, {label}", "joint"].ok
    assert "outcomes" in results[f"rejection, {label}", "joint"].detail


@dataclass(frozen=True)
class Trusting:
    """Takes the first drafted symbol unseen."""

    name: ClassVar[str] = "trusting"
    exactness: ClassVar[Exactness] = "seed"
    coupled: ClassVar[bool] = True

    def verify(self, draft: ms.Draft, p: Law, noise: Noise, standing: Standing) -> ms.Verdict:
        found = Coupled().verify(draft, p, noise, standing)
        return ms.Verdict((), (draft.ids[0],)) if len(draft) and not found.path else found


def test_a_rule_that_breaks_its_seed_is_found() -> None:
    results = checked(speaker("two levels"), verifiers=[Trusting()], drafters={"random ids": RandomIds()})
    assert not results["trusting, random ids", "token"].ok


def test_drafters_of_the_catalog_are_taken_as_they_fit() -> None:
    parallel = speaker("parallel")
    found = {*default_drafters(parallel, default_prompts(parallel)[:1])}
    assert {"jacobi", "previous_frame", "depth_ngram", "prompt_lookup"} <= found
    assert not {"lookahead", "zipar"} & found

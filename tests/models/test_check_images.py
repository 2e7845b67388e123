"""``multispec check`` on models that draw: right ones pass, and each kind of mistake makes a row fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

import multispec as ms
from multispec.checking import (
    CheckResult,
    check_model,
    default_drafters,
    default_prompts,
    equality,
    laws,
    prompts,
    rows,
    scoring,
)
from multispec.checking.drafters import RandomIds
from multispec.cli import app
from multispec.errors import UnsupportedError
from multispec.modalities.image.adapter import Images
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.verifiers import (
    BudgetedRejection,
    CoolSD,
    Coupled,
    Lantern,
    Rejection,
    ZipARVerifier,
)
from tests.core.test_checking import Careless, Trusting, Wrong, forgotten_roll_back
from tests.models import (
    drawing,
    test_chameleon,
    test_emu3,
    test_glm_image,
    test_imagegpt,
    test_janus,
    test_llamagen,
)

RELAXED = [BudgetedRejection(), Lantern(k=4), ZipARVerifier()]
FAMILIES: dict[str, Callable[[], Any]] = {
    "janus": test_janus.family,
    "emu3": test_emu3.family,
    "glm_image": test_glm_image.family,
    "imagegpt": test_imagegpt.family,
    "chameleon": test_chameleon.family,
    "lumina": lambda: test_chameleon.family("lumina"),
    "llamagen": test_llamagen.family,
}
DRAFTERS = {"random ids": RandomIds(), "row_copy": ms.drafters.RowCopy()}
TREES = {"sjd_pac": ms.drafters.SjdPac(), "zipar": ms.drafters.ZipAR(window=2)}


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Checks that take seconds (shapes are checked in every call here); no table of neighbours is kept."""
    monkeypatch.setattr(laws, "QUICK_SAMPLES", 20)
    monkeypatch.setattr(scoring, "_ROUNDS", 2)
    monkeypatch.setattr(equality, "_QUICK", ("greedy", "repetition_penalty 1.3"))
    monkeypatch.setenv("MULTISPEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models in the embedded format."""
    return drawing.save(tmp_path_factory.mktemp("drawing"))


@pytest.fixture
def raster(folder: Path) -> ms.Generator:
    """The target among them."""
    return ms.load(folder / "target")


def drawer(name: str) -> ms.Generator:
    """A tiny model of this family."""
    made = FAMILIES[name]()
    return ms.Generator(made.target, Images(made))


def checked(generator: ms.Generator, **settings: Any) -> list[CheckResult]:
    """The rows, of two prompts: guided and not."""
    asked = [] if "prompts" in settings else default_prompts(generator)[:2]
    usual: dict[str, Any] = {"prompts": asked, "quick": True, "drafters": DRAFTERS, "verifiers": [Coupled()]}
    return check_model(generator, **(usual | settings))


def failed(results: Sequence[CheckResult]) -> set[str]:
    return {one.name for one in results if not one.ok}


# ---- right models ----


def test_a_family_passes_by_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule and drafter of the catalog on a guided model with a grammar, each shortly."""
    monkeypatch.setattr(equality, "_QUICK", ("greedy",))
    monkeypatch.setattr(prompts, "CAPTIONS", prompts.CAPTIONS[:2])
    monkeypatch.setattr(laws, "QUICK_SAMPLES", 10)
    result = CliRunner().invoke(app, ["check", str(folder / "target"), "--quick", "--json"])
    assert result.exit_code == 0, result.output
    found = {(one["name"], one["compared"][:5]): one for one in json.loads(result.stdout)["results"]}
    assert {name for (name, _), one in found.items() if one["skipped"]} == {"generate"}
    names = {name for name, _ in found}
    assert {
        "coupled, zipar",
        "coupled, trees",
        "trees, rolled back",
        "lantern, meter",
        "budget, meter",
    } <= names
    assert ("rejection, sjd_pac", "joint") in found
    assert all(one["cases"] for one in found.values() if not one["skipped"])


@pytest.mark.parametrize("name", FAMILIES)
def test_family_passes(name: str) -> None:
    """Grids, words and codes of different vocabularies, guidance in every convention, forced symbols."""
    generator = drawer(name)
    asked = default_prompts(generator)[:3]
    if name == "glm_image":  # whose own pictures are too long to see the end of
        small, grids = test_glm_image.small, test_glm_image.SMALL
        asked = [small("blue", grids[1], 2.0), small("two cats", grids[2]), small("a dog", grids[3], 3.0)]
    results = checked(generator, prompts=asked, drafters=TREES, verifiers=[Coupled(), *RELAXED])
    assert failed(results) == set(), results
    assert {one.name for one in results if one.skipped} == ({"generate"} if name != "imagegpt" else set())
    ruled = {one.name: one.detail for one in results if one.name.startswith("coupled")}
    assert {*TREES, "trees"} <= {*default_drafters(generator, asked)}
    forced = name in ("emu3", "glm_image", "chameleon", "lumina")
    assert all(("forced" in detail) == forced for detail in ruled.values()), ruled


def test_the_law_of_guided_decoding_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right and wrong rules, where prompts are of another vocabulary than pictures."""
    generator, label = drawer("janus"), "siblings, without_replacement"
    make = laws.law_drafters(generator.target, Rejection(), quick=True)[label]
    monkeypatch.setattr(rows, "law_drafters", lambda *_: {label: make})
    monkeypatch.setattr(laws, "QUICK_SAMPLES", 150)
    asked = default_prompts(generator)[:1]
    assert asked[0].guided
    results = checked(generator, prompts=asked, drafters={}, verifiers=[Rejection(), Careless()])
    assert failed(results) == {f"careless, {label}"}
    assert [one.cases for one in results if "joint law" in one.compared] == [150, 150]


# ---- mistakes, each of which has to be found ----


def test_a_rule_that_breaks_its_seed_is_found(raster: ms.Generator) -> None:
    assert failed(checked(raster, verifiers=[Trusting()])) == {"trusting, random ids", "trusting, row_copy"}


def wrong(generator: ms.Generator, mistake: Callable[[Any], Any]) -> set[str]:
    """The rows that fail with this mistake in every session."""
    made = Wrong(generator.target, mistake)
    drafters = {"draft_model": ms.drafters.DraftModel(generator.target)}
    return failed(checked(ms.Generator(made, generator.modality), drafters=drafters))


def test_broken_roll_back_is_found(raster: ms.Generator) -> None:
    names = {"chains, rolled back", "trees, rolled back", "coupled, draft_model"}
    assert names <= wrong(raster, forgotten_roll_back)


def forgetful_branch(session: Any) -> Any:
    """Unconditional branches, which come last, lose an accepted symbol; no others do."""
    right, count = session.commit, 2

    def commit(rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        pairs = zip(rows, paths, strict=True)
        right(rows, [path[:-1] if row >= count else path for row, path in pairs])

    session.commit = commit
    return session


def test_a_branch_that_is_not_rolled_back_is_found(raster: ms.Generator) -> None:
    assert {"chains, rolled back", "trees, rolled back"} <= wrong(raster, forgetful_branch)


@dataclass(frozen=True, kw_only=True)
class Modest:
    """COOL-SD that reports half of what it spends."""

    name: ClassVar[str] = "modest"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False

    def verify(self, draft: ms.Draft, p: Law, noise: Noise, standing: Standing) -> ms.Verdict:
        found = CoolSD().verify(draft, p, noise, standing)
        return found._replace(spent=tuple(one / 2 for one in found.spent))


def by_name(results: Sequence[CheckResult]) -> dict[str, CheckResult]:
    return {one.name: one for one in results}


def test_a_broken_meter_is_found(raster: ms.Generator) -> None:
    found = by_name(checked(raster, drafters={}, verifiers=[Modest(), CoolSD()]))
    assert found["cool_sd, meter"].ok and found["cool_sd, meter"].cases
    assert not found["modest, meter"].ok and "total variation" in found["modest, meter"].detail


def test_an_allowance_that_is_exceeded_is_found(
    raster: ms.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its meter is right, and still it may not spend so much."""
    monkeypatch.setattr(BudgetedRejection, "_thetas", lambda _, __, most: [1.0] * len(most))
    found = by_name(checked(raster, drafters={}, verifiers=[BudgetedRejection(per_token=0.001)]))
    assert not found["budget, meter"].ok
    assert "more than its allowance" in found["budget, meter"].detail


# ---- what is asked ----


def test_prompts_are_guided_and_not(raster: ms.Generator) -> None:
    asked = default_prompts(raster)
    assert [prompt.guided for prompt in asked] == [True, False, True, True]
    scales = [prompt.guidance.scale for prompt in asked if prompt.guidance is not None]
    assert len({*scales}) == 2 and all(prompt.spec is not None for prompt in asked)


def test_models_without_words_complete_pictures() -> None:
    asked = default_prompts(drawer("imagegpt"))
    assert [len(prompt.ids) for prompt in asked] == [1, 5, 9, 5]
    assert not any(prompt.guided for prompt in asked)


def test_a_model_that_reads_nothing_here_needs_prompts() -> None:
    """A LlamaGen for captions whose text encoder was not given."""
    made = test_llamagen.family(text=True)
    with pytest.raises(UnsupportedError, match="Pass prompts"):
        default_prompts(ms.Generator(made.target, Images(made)))
    features = made.featured(*test_llamagen.caption(1, 3))
    results = checked(ms.Generator(made.target, Images(made)), prompts=[features])
    assert failed(results) == set(), results


def test_only_drafters_that_fit_the_streams_are_taken(raster: ms.Generator) -> None:
    asked = default_prompts(raster)
    assert "zipar" in default_drafters(raster, asked)
    rowless = [replace(prompt, spec=replace(_spec(prompt), row_length=None)) for prompt in asked]
    assert "zipar" not in default_drafters(raster, rowless)


def _spec(prompt: ms.Prompt) -> Any:
    return prompt.spec

"""``multispec check``: right models pass, and each kind of mistake makes a row fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from typer.testing import CliRunner

import multispec as ms
from multispec.checking import (
    CheckResult,
    check_model,
    default_drafters,
    g_test,
    laws,
    rows,
)
from multispec.checking.drafters import RandomIds
from multispec.checking.equality import Equality, cut_gap
from multispec.checking.laws import CHOICES, NEW_TOKENS, few_for, joint_law
from multispec.checking.results import Check, Finding
from multispec.cli import app
from multispec.protocols import Context, DraftSession, Exactness, Scores, Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.testing import TableModel
from multispec.verifiers import BudgetedRejection, CoolSD, Coupled, Lantern, Rejection, ZipARVerifier
from tests.models import zoo

FAMILIES = ("gemma2", "mamba", "qwen3_next", "t5", "whisper")
THROUGH_FILES = ("llama",)
DRAFTERS = {"random ids": RandomIds(), "prompt_lookup": ms.drafters.PromptLookup()}


def checked(generator: ms.Generator, **settings: Any) -> dict[str, CheckResult]:
    """The rows by name."""
    settings = {"quick": True, "drafters": DRAFTERS, "verifiers": [Coupled()], **settings}
    return {one.name: one for one in check_model(generator, **settings)}


def failed(results: dict[str, CheckResult]) -> set[str]:
    return {name for name, one in results.items() if not one.ok}


# ---- right models ----


@pytest.mark.parametrize("name", FAMILIES)
def test_family_passes(name: str) -> None:
    """Models that end by themselves, half-way through a draft too."""
    results = checked(ms.load(model=zoo.build(name, eos_token_id=1)))
    assert failed(results) == set(), results
    assert results["trees, rolled back"].skipped != zoo.FAMILIES[name].tree
    assert all(one.cases for one in results.values() if not one.skipped)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distribution tests that take seconds: shapes are checked in every call here."""
    monkeypatch.setattr(laws, "QUICK_SAMPLES", 60)


@pytest.mark.parametrize("name", THROUGH_FILES)
@pytest.mark.usefixtures("few_samples")
def test_family_passes_by_command(name: str, tmp_path: Path) -> None:
    zoo.build(name, eos_token_id=1).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--quick", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"] and len(found["results"]) > 10
    assert any("top_k 8" in one for one in found["left_out"])
    _covers_every_promise({one["name"] for one in found["results"]})
    compared = {one["compared"] for one in found["results"]}
    assert any("G-test" in one for one in compared)


def _covers_every_promise(names: set[str]) -> None:
    """A quick check has every rule that promises something exact, and every drafter that comes alone."""
    rules = {one.name for one in ms.catalog() if one.exactness in ("seed", "law") and not one.base}
    assert rules <= {name.partition(",")[0] for name in names}
    drafters = {name for name in default_drafters(zoo.generator("llama")) if "itself" not in name}
    assert drafters <= {name.partition(", ")[2] for name in names}


@pytest.mark.usefixtures("few_samples")
def test_methods_are_chosen_by_name(tmp_path: Path) -> None:
    """With options; drafters by themselves meet the natural rules."""
    zoo.build("llama", eos_token_id=1).save_pretrained(tmp_path)
    asked = ["check", str(tmp_path), "--quick", "--json"]
    result = CliRunner().invoke(app, [*asked, "--drafter", "sjd:start=uniform", "--verifier", "coupled"])
    names = [one["name"] for one in json.loads(result.stdout)["results"]]
    assert [name for name in names if "," in name and "rolled" not in name] == ["coupled, sjd:start=uniform"]
    wrong = CliRunner().invoke(app, [*asked, "--drafter", "sjdd"])
    assert wrong.exit_code == 2 and "Did you mean 'sjd'" in wrong.stderr


def test_half_precision_passes() -> None:
    model = zoo.build("llama", eos_token_id=1).to(torch.bfloat16)
    assert failed(checked(ms.load(model=model))) == set()


def test_default_drafters_reach_from_right_to_hopeless() -> None:
    drafters = default_drafters(zoo.generator("llama"))
    assert {"draft_model (itself)", "draft_model (made worse)", "random ids", "trees"} <= {*drafters}
    given = ms.load(model=zoo.shared("llama"), draft=zoo.shared("llama", 1))
    assert "draft_model" in default_drafters(given)


# ---- mistakes, each of which has to be found ----


class Wrong:
    """A target with one mistake in its sessions."""

    def __init__(self, target: Any, mistake: Callable[[Any], Any]) -> None:
        self._target, self._mistake = target, mistake
        self.model = target.model
        self.spec, self.capabilities = target.spec, target.capabilities
        self.device, self.context_length = target.device, target.context_length

    def begin(self, prompts: Any, capacity: Any, nodes: int) -> Any:
        return self._mistake(self._target.begin(prompts, capacity, nodes))


def wrong(mistake: Callable[[Any], Any], **settings: Any) -> dict[str, CheckResult]:
    """The rows of a tiny Llama with this mistake."""
    return checked(ms.Generator(Wrong(zoo.generator("llama").target, mistake)), **settings)


def perturbed_drafts(session: Any) -> Any:
    """Logits are right for plain steps and a little wrong where something was drafted."""
    right = session.score

    def score(rows: Sequence[int], roots: Sequence[int], drafts: Sequence[ms.Draft]) -> Scores:
        scores = right(rows, roots, drafts)
        wave = torch.arange(scores.logits[0].shape[-1]).cos()
        pairs = zip(scores.logits, drafts, strict=True)
        return Scores(logits=[x + 0.3 * wave if len(draft) else x for x, draft in pairs])

    session.score = score
    return session


def perturbed_always(session: Any) -> Any:
    """All logits are wrong, with and without drafts."""
    for name in ("score", "prefill"):
        right = getattr(session, name)

        def score(*arguments: Any, right: Any = right) -> Scores:
            found = right(*arguments)
            wave = torch.arange(found.logits[0].shape[-1]).cos()
            return Scores(logits=[logits + 2 * wave for logits in found.logits])

        setattr(session, name, score)
    return session


def forgotten_roll_back(session: Any) -> Any:
    """One accepted symbol is not kept in the cache."""
    right = session.commit

    def commit(rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        right(rows, [path[:-1] for path in paths])

    session.commit = commit
    return session


def test_perturbed_draft_scores_are_found() -> None:
    names = failed(wrong(perturbed_drafts))
    assert {"chains, rolled back", "trees, rolled back", "coupled, random ids"} <= names
    assert not {"generate", "batch"} & names


def test_perturbed_logits_are_found_by_the_models_own_generate() -> None:
    assert "generate" in failed(wrong(perturbed_always))


def test_broken_roll_back_is_found() -> None:
    drafters = {"draft_model": ms.drafters.DraftModel(zoo.shared("llama"))}
    names = failed(wrong(forgotten_roll_back, drafters=drafters))
    assert {"chains, rolled back", "trees, rolled back", "coupled, draft_model"} <= names


@dataclass(frozen=True, kw_only=True)
class Trusting:
    """Accepts the first symbol of every draft."""

    name: ClassVar[str] = "trusting"
    exactness: ClassVar[Exactness] = "seed"
    coupled: ClassVar[bool] = True

    def verify(self, draft: ms.Draft, p: Law, noise: Noise, start: int) -> ms.Verdict:
        last = 1 if len(draft) else 0
        x = int(noise.symbols(p.at(last), [start + last])[0])
        return ms.Verdict(path=(0,) * last, tokens=(*draft.tokens[:last].tolist(), x))


@dataclass(frozen=True, kw_only=True)
class Careless:
    """Rejection that draws from p again after a rejection, not from what the draft left over."""

    name: ClassVar[str] = "careless"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False

    def verify(self, draft: ms.Draft, p: Law, noise: Noise, standing: Standing) -> ms.Verdict:
        start = standing.start
        found = Rejection().verify(draft, p, noise, standing)
        end = len(found.path)
        again = noise.choose(p.probs[end : end + 1], [start + end], Purpose.RESIDUAL, start)
        return ms.Verdict(path=found.path, tokens=(*found.tokens[:-1], int(again)))


def test_a_rule_that_breaks_its_seed_is_found() -> None:
    names = failed(checked(zoo.generator("llama"), verifiers=[Trusting()]))
    assert names == {"trusting, random ids", "trusting, prompt_lookup"}


@pytest.mark.usefixtures("few_samples")
def test_a_rule_that_breaks_its_law_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "siblings, without_replacement"
    make = laws.law_drafters(zoo.generator("llama").target, Rejection(), quick=True)[name]
    monkeypatch.setattr(rows, "law_drafters", lambda *_: {name: make})
    rules = [Careless(), Rejection()]
    results = checked(zoo.generator("llama"), verifiers=rules, drafters={})
    assert not results[f"careless, {name}"].ok
    assert results[f"rejection, {name}"].ok


def test_a_rule_may_be_right_greedily_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "law_drafters", lambda *_: {})
    results = checked(zoo.generator("llama"), verifiers=[Careless()])
    assert results["careless, random ids"].ok and results["careless, prompt_lookup"].ok


@dataclass(frozen=True)
class Failing:
    """A drafter that raises."""

    name: ClassVar[str] = "failing"
    num_draft_tokens: int = 4

    def begin(self, context: Context) -> DraftSession:
        raise RuntimeError("no such index")


def test_a_drafter_that_is_set_aside_is_found() -> None:
    """Its tokens are right, which proves nothing."""
    result = checked(zoo.generator("llama"), drafters={"failing": Failing()})["coupled, failing"]
    assert not result.ok
    assert "no such index" in result.detail


def test_the_command_fails_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.build("llama").save_pretrained(tmp_path)

    def broken() -> Finding:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(rows, "_checks", lambda *_: iter([Check("batch", "sky", broken)]))
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--quick"])
    assert "left out, being quick" in result.stdout
    assert result.exit_code == 1
    assert "the sky fell" in result.stdout
    assert "1 failed" in result.stdout


# ---- what the checks are made of ----


@dataclass(frozen=True, kw_only=True)
class Careful:
    """Rejection as a relaxed rule: it spends nothing, and reports just that."""

    name: ClassVar[str] = "careful"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False

    def verify(self, draft: ms.Draft, p: Law, noise: Noise, standing: Standing) -> ms.Verdict:
        return Rejection().verify(draft, p, noise, standing)


@dataclass(frozen=True, kw_only=True)
class Silent:
    """COOL-SD that does not say what it spends."""

    name: ClassVar[str] = "silent"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False

    def verify(self, draft: ms.Draft, p: Law, noise: Noise, standing: Standing) -> ms.Verdict:
        return CoolSD().verify(draft, p, noise, standing)._replace(spent=())


def test_relaxed_rules_are_held_to_their_meter() -> None:
    """Exactly, on the model's own logits; one that needs neighbours is skipped where there are none."""
    rules = [CoolSD(), BudgetedRejection(), ZipARVerifier(), Careful(), Silent(), Lantern()]
    results = checked(zoo.generator("llama"), verifiers=rules, drafters={})
    meters = {name.removesuffix(", meter"): one for name, one in results.items() if "meter" in name}
    assert [*meters] == ["cool_sd", "budget", "zipar", "careful", "silent", "lantern"]
    assert {name for name, one in meters.items() if not one.ok} == {"silent"}
    assert {name for name, one in meters.items() if one.skipped} == {"lantern"}
    assert "was given none" in meters["lantern"].detail
    assert "0.0000 reported, total variation 0.0000" in meters["careful"].detail
    assert "0.0000 reported, total variation 0.0000" not in meters["cool_sd"].detail


def plan_of(**settings: Any) -> rows.Plan:
    equality = Equality(zoo.generator("llama"), [], quick=settings.pop("quick", True))
    drafters = default_drafters(equality.generator)
    asked = {"drafters": drafters, "verifiers": [], "chosen": False, **settings}
    return rows.Plan(equality=equality, replays=laws.Replays(equality.target), **asked)


def test_every_drafter_meets_its_natural_rule_and_every_rule_two_drafters() -> None:
    """With shared noise scd_mc is jacobi; what was chosen by name meets every rule."""
    plan = plan_of()
    assert {"jacobi", "sjd", "scd_mc", "sjd_pac", "row_copy", "token_recycling"} <= {*plan.drafters}
    assert "zipar" not in plan.drafters, "a text has no rows"
    assert {*plan.drafters} - {*plan.drafters_for(Coupled(), True)} == {"scd_mc"}
    assert {*plan_of(quick=False).drafters_for(Coupled(), True)} == {*plan.drafters}
    for entry in ms.catalog():
        if entry.exactness == "law" and not entry.base:
            drafts = plan.drafters_for(entry.make(), False)
            assert len(drafts) == 2, entry.name
            assert not (entry.name == "block" and "trees" in drafts)
    chosen = {"random ids": RandomIds(), "sjd": ms.drafters.SJD(), "jacobi": ms.drafters.Jacobi()}
    assert {*plan_of(drafters=chosen, chosen=True).drafters_for(Rejection(), False)} == {*chosen}


def test_each_rule_is_tried_with_siblings_that_it_takes() -> None:
    target = zoo.generator("llama").target
    kinds = {
        entry.name: {*laws.law_drafters(target, entry.make(), quick=False)}
        for entry in ms.catalog()
        if entry.exactness == "law" and not entry.base
    }
    assert kinds["spechub"] == {"draft_model (made worse)", "siblings, without_replacement"}
    assert kinds["k_seq"] == {"draft_model (made worse)", "siblings, sampled"}
    assert kinds["block"] == {"draft_model (made worse)"}
    assert {"jacobi", "sjd_pac", "siblings, point"} <= kinds["rejection"]


def test_windows_are_tried_on_the_law_that_they_can_hit() -> None:
    """The best symbols alone, at a temperature at which none of them has it all."""
    model = TableModel(6, seed=3, scale=9, end_ids=(2,))
    few = few_for("sjd_pac", model, ms.Prompt(ids=torch.tensor([1])))
    assert few.only is not None and len(few.only) == CHOICES and 2 not in few.only
    law = joint_law(model, ms.Prompt(ids=torch.tensor([1])), few)
    assert {token for one in law for token in one} == {*few.only}
    assert sum(law.values()) == pytest.approx(1, abs=1e-12) and max(law.values()) < 0.95
    assert all(len(one) == few.new_tokens for one in law)


def test_joint_law_sums_to_one_and_ends_at_ends() -> None:
    model = TableModel(6, seed=3, end_ids=(2,))
    law = joint_law(model, ms.Prompt(ids=torch.tensor([1])))
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert all(len(one) == NEW_TOKENS or one[-1] == 2 for one in law)
    assert len(law) <= CHOICES**NEW_TOKENS


def test_g_test_knows_right_from_wrong() -> None:
    law: dict[tuple[int, ...], float] = {(0,): 0.7, (1,): 0.2, (2,): 0.1}
    assert g_test({(0,): 705, (1,): 198, (2,): 97}, law, 1000) > 0.5
    assert g_test({(0,): 600, (1,): 250, (2,): 150}, law, 1000) < 1e-9
    assert g_test({(3,): 1, (0,): 999}, law, 1000) == 0, "an outcome that cannot be"


def test_cut_gap_sees_the_edge_of_a_cut_only() -> None:
    raw = torch.tensor([3.0, 2.0, 1.0, -4.0])
    kept = raw.masked_fill(raw < 1.5, -torch.inf)
    assert cut_gap(raw, raw, 0, 1) == float("inf")
    assert cut_gap(raw, kept, 0, 2) == 0, "the first that was left out"
    assert cut_gap(raw, kept, 0, 3) == pytest.approx(1), "its own edge is nearer"
    assert cut_gap(raw, kept, 1, 0) == 0, "the last that was kept"

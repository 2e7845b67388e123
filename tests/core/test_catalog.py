"""The catalog: everything public is in it, and every entry runs on every stream that it claims."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

import multispec as ms
from multispec import drafters, methods, policies, structures, verifiers
from multispec.checking import default_drafters
from multispec.drafters import EachRow, build_datastore
from multispec.errors import MethodWarning, UnsupportedError, UsageError
from multispec.generator import Generator
from multispec.methods import KINDS, Entry, Lent, catalog, find, make, refuse
from multispec.neighbours import UsesNeighbours
from multispec.protocols import Context, Drafter, DraftSession, Request
from multispec.stream import Draft, DraftKind, Generation, Observation, Prompt, StreamSpec
from multispec.structures import Ground, StaticTree
from multispec.testing import (
    FakeModel,
    TableModel,
    TreeDrafter,
    fake_neighbours,
    fake_streams,
    kind_of,
    one_trial,
    output_law,
    play,
    row,
    variation,
)
from multispec.verifiers import BlockVerification, Coupled, Rejection
from tests.models import zoo

ROOT = Path(__file__).resolve().parents[2]
PACKAGES: dict[str, ModuleType] = {"begin": drafters, "verify": verifiers, "budget": policies}
MODELS = fake_streams(seed=1)
LENGTH = 6
# What the drafters that are made of others are made of.
PARTS = {
    "among": "drafters=prompt_lookup+anpd",
    "best_gain": "drafters=prompt_lookup+anpd,costs=0.1+0.1",
    "fallback": "drafters=prompt_lookup+anpd",
    "horizontal_cascade": "drafters=max_gram+max_gram,lengths=2+2",
    "merged": "drafters=prompt_lookup+anpd",
}


def entries(kind: str) -> list[Entry]:
    return [one for one in catalog() if one.kind == kind]


def streams_of(entry: Entry) -> list[str]:
    return [name for name in MODELS if kind_of(name) in entry.streams]


def prompts(model: FakeModel) -> list[list[int]]:
    """Two of different lengths that repeat themselves, in whole frames."""
    turn = [1, 2] if model.spec.step > 1 or model.spec.grammar is None else [1, 6]
    return [turn * 2, turn]


def plays(stream: str, drafter: Any, **settings: Any) -> list[Generation]:
    """Two rows of one batch, each with a seed of its own."""
    model = MODELS[stream]
    rows = [
        row(ids, drafter=drafter, sampling=ms.Sampling(seed=seed), max_new_tokens=LENGTH, **settings)
        for seed, ids in enumerate(prompts(model))
    ]
    return play(model, *rows)


@cache
def plain(stream: str) -> list[list[int]]:
    """What plain decoding emits."""
    return [one.tokens.tolist() for one in plays(stream, None)]


def weaker(model: FakeModel) -> FakeModel:
    """A draft model: of the same stream, and not of the same mind."""

    def after(prefix: Sequence[int], prompt_length: int) -> torch.Tensor:
        found = model.after(prefix, prompt_length)
        return found + 0.4 * torch.arange(found.shape[-1]).cos()

    return FakeModel(after, model.spec, strict=False, supports_tree=model.capabilities.supports_tree)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A datastore for each stream, of what plain decoding emits."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        name: build_datastore(
            [[*ids, *tokens] for ids, tokens in zip(prompts(model), flat(name), strict=True)],
            folder / name,
            vocab_size=model.spec.vocab_size,
        )
        for name, model in MODELS.items()
    }


def flat(stream: str) -> list[list[int]]:
    return [torch.tensor(tokens).flatten().tolist() for tokens in plain(stream)]


def made(entry: Entry, stream: str, store: Path) -> Any:
    """The method as its name makes it, with what it needs."""
    model = MODELS[stream]
    options = str(store) if "FILE" in entry.needs else PARTS.get(entry.name, "")
    found = entry.make(options, Lent(target=model, draft=weaker(model)))
    if isinstance(found, UsesNeighbours):
        rule: Any = found
        return replace(rule, neighbours=fake_neighbours(model))
    return found


# ---- what is in it ----


def test_it_has_the_field() -> None:
    """Names are unique per kind; every entry says what it does, promises and where it is published."""
    found = catalog()
    assert len(found) >= 60
    assert len({(one.kind, one.name) for one in found}) == len(found)
    for one in found:
        assert one.kind in KINDS and json.dumps(one.to_dict())
        assert one.summary.endswith(".") and len(one.summary) > 20, one.name
        assert one.paper or one.name == "off", one.name
        assert one.exactness in ("any", "seed", "law", "group", "bounded", "heuristic")
        assert one.streams and set(one.streams) <= set(methods.STREAMS)
        assert (ROOT / one.file).exists(), one.file
        assert not one.base or find(one.kind, one.base).method is one.method


@pytest.mark.parametrize("verb", PACKAGES)
def test_everything_public_is_in_it(verb: str) -> None:
    """Every class of the packages that is a method, exported or not: a new file has to be exported."""
    package, known = PACKAGES[verb], {one.method for one in catalog()}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for name, one in vars(importlib.import_module(module.name)).items():
            own = inspect.isclass(one) and one.__module__ == module.name and not name.startswith("_")
            if own and "paper" in vars(one) and callable(getattr(one, verb, None)):
                assert one in known, f"{module.name}.{name} is not exported by {package.__name__}"


def test_every_shape_is_in_it() -> None:
    """Structures that have a name, and functions that give a tree."""
    found = {one.name: one for one in entries("structure")}
    assert set(structures.STRUCTURES) <= set(found)
    assert {"expansion", "calibrated", "sequoia_sized", "pack"} <= set(found)
    public = [getattr(structures, name) for name in structures.__all__]
    named = {one for one in public if inspect.isclass(one) and "paper" in vars(one)}
    assert named <= {one.method for one in found.values()}
    with pytest.raises(UsageError, match="needs measured accuracies"):
        found["calibrated"].make()


# ---- every entry runs, and keeps its promise ----


@pytest.mark.parametrize("entry", entries("drafter"), ids=lambda one: one.name)
def test_a_drafter_leaves_the_output_as_it_is(entry: Entry, stores: dict[str, Path]) -> None:
    """Seed by seed on every stream; what one of the models cannot have is refused in one sentence."""
    if "tokenizer" in entry.needs:
        pytest.skip("it needs two tokenizers: its own tests have them")
    ran = set[str]()
    for stream in streams_of(entry):
        model = MODELS[stream]
        try:
            drafter = made(entry, stream, stores[stream])
            refuse(drafter, Coupled(), model.spec, False, model.capabilities.supports_tree)
            found = plays(stream, drafter)
        except UnsupportedError as error:
            assert " Use " in str(error) or ": use " in str(error), error
            continue
        assert [one.tokens.tolist() for one in found] == plain(stream), stream
        assert not any(one.report.drafter_failures for one in found), found[0].report.notes
        ran.add(kind_of(stream))
    if not ran:  # it drafts with the layers of its target
        ran = {kind_of(stream) for stream in streams_of(entry) if layers_draft(entry, MODELS[stream].spec)}
    assert ran == {kind_of(stream) for stream in streams_of(entry)}


def layers_draft(entry: Entry, spec: StreamSpec) -> bool:
    """The same with a transformer, whose stream holds what ``spec`` says."""
    generator = zoo.generator("llama")
    # Every symbol has been there, so that those that copy have something to copy.
    prompt = Prompt(ids=torch.arange(generator.target.spec.vocab_size), spec=spec)
    settings: dict[str, Any] = {"max_new_tokens": LENGTH, "sampling": ms.Sampling(seed=2)}
    try:
        drafter = entry.make(lent=Lent(target=generator.target, draft=generator.target))
        found = generator.generate(prompt, drafter=drafter, **settings)
    except UnsupportedError:
        return False
    expected = generator.generate(prompt, drafter=None, **settings)
    assert found.tokens.tolist() == expected.tokens.tolist()
    return found.report.drafted > 0 and not found.report.drafter_failures


DRAWING = ("draft_model", "ngram_model", "sjd", "scd_mc", "sjd_ac", "anpd", "token_recycling", "jacobi")


@pytest.mark.parametrize("name", DRAWING)
def test_a_drafter_leaves_the_law_as_it_is(name: str, stores: dict[str, Path]) -> None:
    """By exact enumeration under rejection, on few symbols."""
    small = few(MODELS["text"])
    drafter = made(find("drafter", name), "text", stores["text"])
    found = output_law(small, drafter, Rejection(), prompt=(1, 2, 1))
    assert variation(found, output_law(small, prompt=(1, 2, 1))) < 1e-9


def few(model: FakeModel) -> FakeModel:
    """The same model with two symbols in each law."""
    assert isinstance(model, TableModel)
    best = model.table.topk(2).values[:, -1:]
    return TableModel(8, table=model.table.masked_fill(model.table < best, -torch.inf), spec=model.spec)


@pytest.mark.parametrize("entry", entries("verifier"), ids=lambda one: one.name)
def test_a_verifier_keeps_its_promise(entry: Entry, stores: dict[str, Path]) -> None:
    """seed: equality. All others: valid output of the length asked for; the meter stays at 0 where exact."""
    for stream in ["text"] if entry.base and not entry.settings else streams_of(entry):
        model = MODELS[stream]
        window = drafters.SJD(num_draft_tokens=4, start="uniform")
        drafter = window if model.spec.step > 1 else drafters.DraftModel(weaker(model), num_draft_tokens=3)
        found = plays(stream, drafter, verifier=made(entry, stream, stores[stream]))
        for one, expected in zip(found, plain(stream), strict=True):
            assert one.tokens.shape == torch.tensor(expected).shape
            assert entry.exactness != "seed" or one.tokens.tolist() == expected
            assert not one.report.drafter_failures and one.report.drafted > 0
            spent = one.report.variation_spent
            assert spent == 0 if entry.exactness in ("seed", "law") else 0 <= spent <= LENGTH


LAWS = [one for one in entries("verifier") if one.exactness == "law" and not one.base]


@pytest.mark.parametrize("entry", LAWS, ids=lambda one: one.name)
def test_a_rule_that_promises_the_law_keeps_it(entry: Entry) -> None:
    """By exact enumeration, on a chain or on siblings as the rule takes them."""
    model, rule = TableModel(4, seed=1, support=2), entry.make()
    branching = (1, 1) if entry.method is BlockVerification else (2,)
    kind: DraftKind = "without_replacement" if entry.name in ("spechub", "rejection") else "sampled"
    drafter = TreeDrafter(TableModel(4, seed=5, scale=0.7), kind=kind, branching=branching)
    assert variation(output_law(model, drafter, rule), output_law(model)) < 1e-9


@pytest.mark.parametrize("entry", entries("verifier"), ids=lambda one: one.name)
@pytest.mark.parametrize("point", [False, True])
def test_the_meter_of_every_rule_is_the_variation(entry: Entry, point: bool) -> None:
    """Reported against computed, for drawn symbols and for given ones; 0 for exact rules."""
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.2, 0.1, 0.6, 0.1])
    rule = entry.make()
    if isinstance(rule, UsesNeighbours):
        asked: Any = rule
        rule = replace(asked, neighbours=fake_neighbours(TableModel(4)))
    try:
        trial = one_trial(rule, p, q, point=point)
    except UnsupportedError:
        assert point and entry.method in (verifiers.Contrastive, verifiers.Cascade)
        return
    assert trial.reported == pytest.approx(trial.variation, abs=1e-9)
    assert entry.exactness not in ("seed", "law") or trial.variation == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("entry", entries("policy"), ids=lambda one: one.name)
def test_a_policy_leaves_the_output_as_it_is(entry: Entry) -> None:
    for stream in streams_of(entry):
        window: Drafter = ms.drafters.SJD(num_draft_tokens=6)
        drafter = window if stream == "parallel" else ms.drafters.DraftModel(weaker(MODELS[stream]))
        found = plays(stream, drafter, policy=made(entry, stream, Path()))
        assert [one.tokens.tolist() for one in found] == plain(stream)


@dataclass(frozen=True, eq=False)
class Shaped:
    """Drafts a tree of this shape, filled with the best symbols of a model's law."""

    name: ClassVar[str] = "shaped"
    shape: Entry
    model: FakeModel
    num_draft_tokens: int = 6

    def begin(self, context: Context) -> DraftSession:
        return EachRow(context, lambda _: self)

    def observe(self, observation: Observation) -> None:
        """It learns nothing."""

    def propose(self, request: Request) -> Draft:
        def expand(paths: Sequence[tuple[int, ...]]) -> torch.Tensor:
            history = request.history
            rows = [self.model.after([*history.ids, *path], history.prompt_length) for path in paths]
            return torch.stack(rows).softmax(-1)

        if self.shape.by_name:
            grown: Draft = self.shape.make().grow(Ground(expand=expand, nodes=request.budget.nodes))
            return grown
        if self.shape.name == "pack":
            beams = [[int(x) for x in expand([()])[0].topk(2).indices], [1]]
            return structures.pack(beams, request.budget.nodes)
        parents = self.shape.method(**SHAPES[self.shape.name])[: request.budget.nodes]
        tree: Draft = StaticTree(parents).grow(Ground(expand=expand, nodes=len(parents)))
        return tree


# What shapes are made of.
SHAPES: dict[str, dict[str, Any]] = {
    "expansion": {"widths": (2, 2)},
    "calibrated": {"accuracies": ((0.6, 0.3), (0.5, 0.2)), "nodes": 5},
    "sequoia_sized": {
        "acceptance": (0.6, 0.3),
        "target_costs": (1.0, 1.05, 1.1, 1.15),
        "draft_cost": 0.1,
        "depth": 3,
    },
}


@pytest.mark.parametrize("entry", entries("structure"), ids=lambda one: one.name)
def test_a_shape_leaves_the_output_as_it_is(entry: Entry) -> None:
    """On every kind of stream that takes trees, with symbols accepted on the way."""
    for stream in ("text", "image", "frames"):
        found = plays(stream, Shaped(entry, weaker(MODELS[stream])))
        assert [one.tokens.tolist() for one in found] == plain(stream)
        assert sum(one.report.drafted for one in found) > 0


# ---- pairs that make no sense ----


# The rules that refuse something, and one that does not.
RULES = [
    find("verifier", name)
    for name in (
        "block",
        "cascade",
        "cascade_token_v3",
        "contrastive",
        "k_seq",
        "optimal",
        "spechub",
        "typical",
    )
]


@pytest.mark.parametrize("entry", RULES, ids=lambda one: one.name)
def test_a_pair_runs_or_is_refused_before_anything_is_computed(entry: Entry, stores: dict[str, Path]) -> None:
    """With drafters of every kind: chains and trees, given and drawn."""
    model, rule = MODELS["text"], made(entry, "text", stores["text"])
    for name in ("prompt_lookup", "token_recycling", "sjd", "sjd_pac", "draft_model"):
        drafter = made(find("drafter", name), "text", stores["text"])
        for greedy in (False, True) if name == "draft_model" else (False,):
            why = methods.why_not(drafter, rule, model.spec, greedy)
            sampling = ms.Sampling(temperature=0.0 if greedy else 1.0, seed=3)
            settings = {"sampling": sampling, "max_new_tokens": LENGTH, "drafter": drafter, "verifier": rule}
            opened = len(model.sessions)
            if why:
                with pytest.raises(UnsupportedError, match="This pair cannot be used"):
                    Generator(model).generate([1, 2, 1, 2], **settings)
                assert len(model.sessions) == opened and why.endswith(".")
            else:
                made_ = Generator(model).generate([1, 2, 1, 2], **settings)
                assert len(made_.tokens) == LENGTH and not made_.report.drafter_failures


@pytest.mark.parametrize(
    ("drafter", "verifier", "greedy", "refused"),
    [
        ("prompt_lookup", "contrastive", False, "draw"),
        ("prompt_lookup", "cascade", False, "draw"),
        ("prompt_lookup", "cascade_token_v2", False, ""),
        ("sjd:start=uniform", "cascade_diff", False, ""),
        ("sjd:start=uniform", "cascade_diff", True, "temperature 0"),
        ("sjd:start=uniform", "contrastive", False, ""),
        ("sjd", "contrastive", False, "sjd:start=uniform"),
        ("token_recycling", "block", False, "traversal"),
        ("suffix_decoding_path", "block", False, ""),
        ("sjd_ac", "block", False, ""),
        ("sjd_pac", "k_seq", False, "without replacement"),
        ("token_recycling", "k_seq", False, ""),
    ],
)
def test_what_is_refused_says_what_would_work(
    drafter: str, verifier: str, greedy: bool, refused: str
) -> None:
    pair = make("drafter", drafter), make("verifier", verifier)
    why = methods.why_not(*pair, MODELS["text"].spec, greedy)
    assert refused in why and bool(why) == bool(refused)
    if refused:
        with pytest.raises(UnsupportedError, match=refused):
            refuse(*pair, MODELS["text"].spec, greedy)


def test_what_nobody_knows_is_not_refused() -> None:
    """Drafters of other people may draft anything; plain decoding goes with any rule."""
    spec = MODELS["text"].spec
    assert methods.why_not(None, verifiers.Contrastive(), spec, False) == ""
    assert methods.why_not(TreeDrafter(), verifiers.Contrastive(), spec, False) == ""
    assert methods.why_not(find("drafter", "token_recycling").make(), BlockVerification(), spec, False)
    parallel = MODELS["parallel"].spec
    assert methods.why_not(make("drafter", "token_recycling"), BlockVerification(), parallel, False) == ""


# ---- by name, with options ----


def test_options_stand_behind_the_name(stores: dict[str, Path]) -> None:
    store = str(stores["text"])
    assert make("drafter", f"rest:{store},num_draft_tokens=4").num_draft_tokens == 4
    assert make("drafter", f"ngram_model:{store},order=2,sample=false").sample is False
    assert len(make("drafter", f"llma:{store}").references) == 2
    assert make("drafter", f"suffix_decoding:{store},factor=2").factor == 2.0
    assert make("drafter", "sjd:start=copy_left").start == "copy_left"
    assert make("drafter", "llma:remember=TRUE").remember is True
    assert make("verifier", "budget:per_token=0.1") == verifiers.BudgetedRejection(per_token=0.1)
    assert make("verifier", "gsd:radius=none").radius is None
    assert make("policy", "fixed:num_draft_tokens=3") == policies.FixedLength(num_draft_tokens=3)
    assert make("drafter", "copyspec:num_draft_tokens=4").min_ngram == 5


def test_a_generator_takes_names_with_options(stores: dict[str, Path]) -> None:
    """And makes a drafter once, so that it keeps what it has learned."""
    generator = Generator(MODELS["text"])
    settings: dict[str, Any] = {
        "max_new_tokens": LENGTH,
        "sampling": ms.Sampling(seed=0),
        "policy": "fixed:num_draft_tokens=2",
    }
    named = f"rest:{stores['text']}"
    found = generator.generate(prompts(MODELS["text"])[0], drafter=named, **settings)
    assert found.tokens.tolist() == plain("text")[0] and found.report.accepted > 0
    assert generator.methods.drafter(named) is generator.methods.drafter(named)
    assert generator.drafting("sjd:num_draft_tokens=3").methods.drafter("auto").num_draft_tokens == 3  # type: ignore[union-attr]


WRONG: list[tuple[methods.Kind, str, str]] = [
    ("drafter", "rest", "needs a datastore of build_datastore: rest:FILE"),
    ("drafter", "llma", "llma:remember=true"),
    ("drafter", "ngram_model", "ngram_model:FILE"),
    ("drafter", "draft_model", "needs a draft model.*draft_model:FOLDER"),
    ("drafter", "prompt_lookup:5", "expected one of .*max_ngram"),
    ("drafter", "prompt_lookup:max_ngram=many", "max_ngram= takes int: got 'many'"),
    ("drafter", "prompt_lookup:max_ngram=5,4", "key=value behind the first"),
    ("drafter", "llma:remember=yes", "takes bool: got 'yes'"),
    ("drafter", "prompt_lookup:ngram=5", "Unknown setting of prompt_lookup 'ngram'. Did you mean"),
    ("verifier", "budget:per_tokn=5", "Did you mean 'per_token'"),
    ("verifier", "contrastiv", "Did you mean 'contrastive'"),
]


@pytest.mark.parametrize(("kind", "text", "message"), WRONG)
def test_what_cannot_be_made_says_what_to_pass(kind: methods.Kind, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(kind, text)


def test_what_needs_nothing_is_made_by_its_name() -> None:
    """The rest says what it needs."""
    for entry in catalog():
        if entry.by_name:
            assert entry.make().name in (entry.base or entry.name, "static_tree")
        else:
            assert entry.needs


def test_the_texts_of_a_datastore_are_those_it_was_built_from(tmp_path: Path) -> None:
    texts = ((5, 6, 7), (1,), (0, 7, 0))
    path = build_datastore(texts, tmp_path / "store", vocab_size=8)
    assert ms.drafters.Datastore(path).texts() == texts


# ---- methods of other packages ----

THEIRS = '''
from dataclasses import dataclass
from typing import ClassVar
from multispec.drafters import EachRow
from multispec.sampling import Purpose
from multispec.stream import Draft, Verdict


@dataclass(frozen=True)
class Again:
    """Draft the last symbol once more."""

    name: ClassVar[str] = "again"
    paper: ClassVar[str] = "Nobody 2026"
    trained: ClassVar[bool] = False
    streams: ClassVar[tuple[str, ...]] = ("text",)
    num_draft_tokens: int = 2

    def begin(self, context):
        return EachRow(context, lambda _: self)

    def propose(self, request):
        return Draft.chain(request.history.ids[-1:] * request.budget.nodes)

    def observe(self, observation):
        pass


@dataclass(frozen=True, kw_only=True)
class Never:
    """Refuse every draft, and draw from p."""

    name: ClassVar[str] = "never"
    paper: ClassVar[str] = "Nobody 2026"
    exactness: ClassVar[str] = "law"
    coupled: ClassVar[bool] = False

    def verify(self, draft, p, noise, standing):
        x = noise.choose(p.probs[:1], [standing.start], Purpose.RESIDUAL, standing.start)
        return Verdict(path=(), tokens=(int(x),))


class Taken(Again):
    name = "prompt_lookup"


nothing = 3
'''


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with two methods, installed on the path."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    points = "[multispec.methods]\nagain = theirs:Again\nnever = theirs:Never\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return info / "entry_points.txt"


@pytest.mark.usefixtures("others")
def test_methods_of_another_package_are_in_the_catalog_and_in_check() -> None:
    found = {one.name: one for one in catalog() if one.package == "theirs"}
    assert {name: one.kind for name, one in found.items()} == {"again": "drafter", "never": "verifier"}
    assert found["again"].streams == ("text",) and found["never"].exactness == "law"
    generator = Generator(MODELS["text"])
    made = generator.generate([1, 2], drafter="again", max_new_tokens=LENGTH, sampling=ms.Sampling(seed=1))
    assert made.tokens.tolist() == plain("text")[1] and made.report.drafted > 0
    assert "again" in default_drafters(generator)
    model = TableModel(4, seed=1, support=2)
    law = output_law(model, make("drafter", "again"), make("verifier", "never"))
    assert variation(law, output_law(model)) < 1e-9


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nothing = theirs:nothing", "is no method"),
        ("lost = theirs:lost", "AttributeError"),
        ("gone = not_installed:X", "ModuleNotFoundError"),
        ("taken = theirs:Taken", "there is a drafter 'prompt_lookup' already"),
    ],
)
def test_what_another_package_got_wrong_is_left_out(others: Path, line: str, why: str) -> None:
    """With a warning; everything else stays usable."""
    others.write_text(f"[multispec.methods]\nagain = theirs:Again\n{line}\n")
    methods._catalog.cache_clear()
    with pytest.warns(MethodWarning, match=f"'theirs' is left out: .*{why}"):
        found = catalog()
    assert [one.name for one in found if one.package == "theirs"] == ["again"]
    methods._catalog.cache_clear()

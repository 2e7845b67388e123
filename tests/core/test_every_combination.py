"""Every drafter, and every structure, under rules that promise something exact: kept, or refused.

Rules that promise the law are enumerated, through the real loop, to 1e-9; those that promise the seed's own
symbols are compared seed by seed. A pair that makes no sense is refused, and the message says what to use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from multispec.drafters import DraftModel, build_datastore
from multispec.errors import UnsupportedError, UsageError
from multispec.methods import Entry, Lent, catalog, refuse
from multispec.policies import FixedLength
from multispec.protocols import Budget, Drafter, Past, Verifier
from multispec.sampling import Noise, Sampling
from multispec.structures import STRUCTURES
from multispec.testing import TableModel, enumerate_law, play, row, variation

# Behind the prompt comes 0 and nothing else, so that every symbol that has a choice is drafted.
PROMPT = (1, 0, 3)
_TABLE = TableModel(4, seed=4, support=2).table
_TABLE[3] = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])
TARGET = TableModel(4, table=_TABLE)
EMITTED = 3
# What the drafters that are made of others are made of, and what has to be given.
PARTS = {
    "among": "drafters=prompt_lookup+anpd",
    "best_gain": "drafters=prompt_lookup+anpd,costs=0.1+0.1",
    "fallback": "drafters=prompt_lookup+anpd",
    "horizontal_cascade": "drafters=max_gram+max_gram,lengths=2+2",
    "merged": "drafters=prompt_lookup+anpd",
}
pytestmark = pytest.mark.usefixtures("unchecked")
RULES = [one for one in catalog() if one.exactness in ("seed", "law") and not one.base]


# Rules look at drafts, and these draft in every way there is: given or drawn, as chains or as trees.
KINDS = ("cascade", "draft_model", "merged", "prompt_lookup", "scd_mc", "sjd_pac", "suffix_decoding")
# It needs more than a few symbols before it drafts; its own tests give it that.
SLOW = {"lookahead"}
# They judge a path from its end, so that draws behind the symbols that are looked at matter too.
FROM_THE_END = ("block", "traversal")
Make = Callable[[], Drafter | None]


@cache
def near() -> TableModel:
    """A draft model: laws of two symbols, near the target's."""
    generator = torch.Generator().manual_seed(2)
    table = _TABLE.nan_to_num(neginf=-1.0) + 0.8 * torch.randn(_TABLE.shape, generator=generator).double()
    return TableModel(
        4, table=table.masked_fill(table < table.topk(2).values[:, -1:], -torch.inf), strict=False
    )


@dataclass(frozen=True)
class Little:
    """Two symbols, three in a tree, in the first rounds behind the prompt."""

    name: ClassVar[str] = "little"
    nodes: int
    rounds: int

    def budget(self, past: Past, default_nodes: int) -> Budget:
        return Budget(nodes=min(default_nodes, self.nodes) if 1 <= past.rounds <= self.rounds else 0)


@cache
def plain_law() -> dict[tuple[int, ...], float]:
    return emitted_law(lambda: None, next(one.make() for one in RULES if one.name == "rejection"))[0]


def emitted_law(make: Make, rule: Verifier, nodes: int = 2) -> tuple[dict[tuple[int, ...], float], int]:
    """The exact law of the first symbols, and how many were drafted over all branches.

    Each branch has a drafter of its own: some remember. The guesses of Jacobi have noise of their own, far
    behind all positions, so there all draws are explored, over fewer of them.
    """
    drafted, beyond, late = 0, getattr(make(), "name", "") == "jacobi", rule.name in FROM_THE_END
    little = Little(nodes, 1 if late else 2)

    def run(noise: Noise) -> tuple[int, ...]:
        nonlocal drafted
        settings: dict[str, Any] = {"max_new_tokens": EMITTED} if beyond else {"stops": (enough,)}
        asked = row(PROMPT, drafter=make(), verifier=rule, policy=little, noise=noise, **settings)
        found = play(TARGET, asked)[0]
        if found.report.drafter_failures:
            raise AssertionError(found.report.notes[-1])
        drafted += found.report.drafted
        return tuple(found.tokens.tolist())

    horizon = 1 + nodes if late else EMITTED
    return enumerate_law(run, horizon=None if beyond else horizon), drafted


def enough(ids: Sequence[int], scores: torch.Tensor) -> bool:
    return len(ids) >= len(PROMPT) + EMITTED


@cache
def plain_seeds() -> list[list[int]]:
    return seeds(None, next(one.make() for one in RULES if one.exactness == "seed"))[0]


def seeds(drafter: Drafter | None, rule: Verifier) -> tuple[list[list[int]], int]:
    """What six seeds emit, as one batch, and how many were drafted."""
    settings: dict[str, Any] = {"drafter": drafter, "verifier": rule, "policy": FixedLength()}
    rows = [row(PROMPT, sampling=Sampling(seed=seed), max_new_tokens=6, **settings) for seed in range(6)]
    found = play(TARGET, *rows)
    if any(one.report.drafter_failures for one in found):
        raise AssertionError(found[0].report.notes)
    return [one.tokens.tolist() for one in found], sum(one.report.drafted for one in found)


def deviates(make: Make, rule: Verifier, nodes: int) -> str:
    """What is wrong with a pair; "" where it keeps the promise of the rule and something was drafted.

    Raises:
        UnsupportedError: the pair makes no sense.
    """
    drafter = make()
    refuse(drafter, rule, TARGET.spec, greedy=False)
    if rule.exactness == "seed":
        found, drafted = seeds(drafter, rule)
        kept = found == plain_seeds()
    else:
        law, drafted = emitted_law(make, rule, nodes)
        kept = variation(law, plain_law()) < 1e-9
    return "" if kept and drafted else "nothing was drafted" if kept else "another law"


def wrong(name: str, make: Make, rule: Verifier, nodes: int = 2) -> list[str]:
    """Nothing where the promise is kept, or the pair is refused with a word on what to use instead."""
    try:
        found = deviates(make, rule, nodes)
    except (UnsupportedError, UsageError) as error:
        found = "" if " Use " in str(error) or ": use " in str(error) else str(error)
    except AssertionError as error:
        found = str(error) or "another assertion"
    if found == "nothing was drafted" and name in SLOW:
        found = ""
    return [f"{name}: {found}"] if found else []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [[1, 0, 3, 0, 2, 0, 1], [0, 1, 0, 2]]
    return build_datastore(texts, tmp_path_factory.mktemp("store") / "texts", vocab_size=4)


def drafters() -> Iterator[Entry]:
    """Those of the catalog that need no more than a draft model, a datastore, or each other; no presets."""
    for entry in catalog():
        if entry.kind == "drafter" and not entry.base and "text" in entry.streams:
            if "tokenizer" not in entry.needs:
                yield entry


@pytest.mark.parametrize("rule", RULES, ids=lambda one: one.name)
def test_every_drafter_under_every_exact_rule(rule: Entry, store: Path) -> None:
    """Kept or refused, and something is drafted: all of them under the natural rules, else every kind."""

    def made(entry: Entry) -> Drafter:
        options = str(store) if "FILE" in entry.needs else PARTS.get(entry.name, "")
        found: Drafter = entry.make(options, Lent(target=TARGET, draft=near()))
        return found

    natural = rule.name in ("coupled", "rejection")
    tried = [one for one in drafters() if natural or one.name in KINDS]
    found = [wrong(one.name, partial(made, one), rule.make()) for one in tried]
    assert sum(found, []) == []


# Under the others a structure is what any tree is: they have trees of their own in test_exact_verifiers.
SHAPED = [one for one in RULES if one.name in ("block", "coupled", "k_seq", "rejection")]


@pytest.mark.parametrize("rule", SHAPED, ids=lambda one: one.name)
def test_every_structure_under_exact_rules(rule: Entry) -> None:
    """A draft model's tree of two nodes in every shape that has a name; one static for most."""
    # One that draws its beams takes seconds to enumerate, and has its own tests of that.
    spared = {"coupled": (), "rejection": ("rsd_s",)}.get(rule.name, ("eagle", "medusa", "specinfer"))
    found = [
        wrong(name, partial(DraftModel, near(), structure=name), rule.make())
        for name in STRUCTURES
        if name not in spared
    ]
    assert sum(found, []) == []


@pytest.mark.parametrize("name", ["optimal", "spechub"])
def test_siblings_whose_number_was_drawn_are_refused(name: str) -> None:
    """Rules that judge siblings together take a fixed number of them: with dyspec the law is another one."""
    rule = next(one.make() for one in RULES if one.name == name)
    with pytest.raises(UnsupportedError, match="how many dyspec draws.*use rejection or traversal"):
        refuse(DraftModel(near(), structure="dyspec"), rule, TARGET.spec, greedy=False)

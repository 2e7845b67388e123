"""The ways to generate that are compared, for any stream: a drafter with a rule, under a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import multispec as ms
from multispec.errors import MultispecError, UsageError
from multispec.generator import Generator
from multispec.methods import Entry
from multispec.neighbours import Neighbours
from multispec.protocols import Exactness
from multispec.verifiers import (
    GSD,
    BudgetedRejection,
    CoolSD,
    Coupled,
    Lantern,
    LanternPlusPlus,
    Rejection,
)

DRAFT_LENGTHS = (4, 8, 16)
ALLOWANCES = (0.01, 0.02, 0.05, 0.1, 0.2)
EXACT: tuple[Exactness, ...] = ("seed", "law")
# The published rules look at 1,000 neighbours in a codebook of 16,384.
PUBLISHED_SHARE = 1000 / 16384


@dataclass(frozen=True)
class Way:
    """A drafter with a rule; ``family`` and ``setting`` make up its name.

    ``trained`` says that the drafter is a draft model. Without a ``policy`` it drafts as far as it does by
    itself in every round, whether that pays or not.
    """

    family: str
    setting: str
    drafter: Any
    verifier: Any
    trained: bool = False
    policy: Any = None

    @property
    def name(self) -> str:
        """What tables call it."""
        model = ", draft" if self.trained and not self.exact else ""
        return f"{self.family}{model} {self.setting}".strip()

    @property
    def exactness(self) -> Exactness:
        """What its rule promises."""
        promise: Exactness = self.verifier.exactness
        return promise

    @property
    def exact(self) -> bool:
        """Whether what it makes has the law of plain decoding."""
        return self.exactness in EXACT

    def draw(self, generator: Generator, prompts: Any, **settings: Any) -> Any:
        """What the generator makes of the prompts in this way."""
        return generator.generate(
            prompts, drafter=self.drafter, verifier=self.verifier, policy=self.policy, **settings
        )


PLAIN = Way("plain", "", None, Coupled())


def windows(make: Callable[..., Any], verifier: Any, family: str, sizes: Iterable[int]) -> list[Way]:
    """One drafter with windows of several lengths."""
    return [Way(family, str(n), make(num_draft_tokens=n), verifier) for n in sizes]


def draft_model(generator: Generator) -> Any:
    """The drafter with the draft model that was loaded; None where there was none."""
    try:
        return generator.methods.drafter("draft_model")
    except UsageError:
        return None


def draft_ways(generator: Generator) -> list[Way]:
    """The draft model at several lengths by either exact rule; nothing where there is none."""
    drafter = draft_model(generator)
    if drafter is None:
        return []
    rules = (("draft model", Coupled()), ("draft model, rejection", Rejection()))
    return [
        Way(family, str(n), replace(drafter, num_draft_tokens=n), rule, trained=True)
        for family, rule in rules
        for n in DRAFT_LENGTHS
    ]


def relaxed_rules(neighbours: Neighbours | None) -> list[tuple[str, str, Any]]:
    """Family, setting and rule of everything that errs, but for ``zipar``.

    As many neighbours as the published share of the codebook, and within the distance that the last of
    these typically has: the published radius belongs to another codebook.
    """
    k = 1 if neighbours is None else max(1, round(PUBLISHED_SHARE * neighbours.size))
    radius = None if neighbours is None else float(neighbours.nearest(k).squared[:, -1].median())
    return [
        *(("LANTERN", str(delta), Lantern(delta=delta, k=k)) for delta in (0.1, 0.3)),
        *(("LANTERN++", f"{delta:g}", LanternPlusPlus(delta=delta, k=k)) for delta in (2.0, 5.0)),
        *(("GSD", str(group), GSD(group=group, radius=radius)) for group in (14, 50)),
        *(("COOL-SD", str(delta), CoolSD(delta=delta)) for delta in (1.1, 1.5)),
        *(("budget", str(share), BudgetedRejection(per_token=share)) for share in ALLOWANCES),
    ]


def relaxed_ways(generator: Generator, window: Any, num_draft_tokens: int | None = None) -> list[Way]:
    """Every relaxed rule on a window that needs no training, and on the draft model where there is one.

    ``num_draft_tokens`` is how far the draft model drafts; None: as it was loaded.
    """
    rules = relaxed_rules(generator.modality.neighbours)
    found = [Way(family, setting, window, rule) for family, setting, rule in rules]
    drafter = draft_model(generator)
    if drafter is None:
        return found
    if num_draft_tokens is not None:
        drafter = replace(drafter, num_draft_tokens=num_draft_tokens)
    return found + [Way(family, setting, drafter, rule, trained=True) for family, setting, rule in rules]


def fitting(stream: str) -> Iterator[Entry]:
    """What the catalog has for a stream."""
    return (entry for entry in ms.catalog() if stream in entry.streams)


def other_ways(known: Sequence[Way], stream: str, window: Any) -> list[Way]:
    """What the catalog has for a stream, needs no training nor files, and is in none of the known ways."""
    seen = {type(part) for way in known for part in (way.drafter, way.verifier)}
    found = []
    for entry in fitting(stream):
        own = entry.by_name and not entry.base and not entry.trained and entry.method not in seen
        if own and entry.kind == "drafter":
            found.append(Way(entry.name, "", entry.method(), Coupled()))
        elif own and entry.kind == "verifier":
            found.append(Way(entry.name, "", window, entry.method()))
    return found


def usable(
    generator: Generator, found: Sequence[Way], prompt: Any, **settings: Any
) -> tuple[list[Way], dict[str, str]]:
    """Those that this model can be run with, warmed up; why the others cannot."""
    good, refused = list[Way](), dict[str, str]()
    for way in found:
        if why := why_not(generator, way, prompt, **settings):
            refused[way.name] = why
        else:
            good.append(way)
    return good, refused


def why_not(generator: Generator, way: Way, prompt: Any, **settings: Any) -> str:
    """Why this model cannot be run in this way; "" where it can, and then it is warmed up."""
    try:
        result = way.draw(generator, prompt, **settings)
    except MultispecError as error:
        return str(error)
    return failure(result.report)


def failure(report: Any) -> str:
    """Why generation went on without its drafter; "" where it did not."""
    return str(report.notes[-1]) if report.drafter_failures else ""

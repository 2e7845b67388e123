"""The ways to draw a picture that are compared: a drafter with a rule of acceptance, under a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import multispec as ms
from multispec.drafters import SJD, Jacobi, PromptLookup, RowCopy, ScdMaximal, SjdPac, ZipAR
from multispec.drafters.starts import Start
from multispec.errors import MultispecError, UsageError
from multispec.generator import Generator
from multispec.modalities.image.adapter import Images
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
    ZipARVerifier,
)

WINDOWS = (16, 32, 64)
DRAFT_LENGTHS = (4, 8, 16)
ALLOWANCES = (0.01, 0.02, 0.05, 0.1, 0.2)
EXACT: tuple[Exactness, ...] = ("seed", "law")
# The published rules look at 1,000 neighbours in a codebook of 16,384.
PUBLISHED_SHARE = 1000 / 16384


@dataclass(frozen=True)
class Way:
    """A drafter with a rule; ``family`` and ``setting`` make up its name.

    ``trained`` says that the drafter is a draft model.
    """

    family: str
    setting: str
    drafter: Any
    verifier: Any
    trained: bool = False

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
        """Whether its pictures have the law of plain ones."""
        return self.exactness in EXACT

    def draw(self, generator: Generator, prompts: Any, **settings: Any) -> Any:
        """What the generator makes of the prompts in this way."""
        return generator.generate(prompts, drafter=self.drafter, verifier=self.verifier, **settings)


PLAIN = Way("plain", "", None, Coupled())


def windows(make: Callable[[int], Any], verifier: Any, family: str) -> list[Way]:
    """One drafter with windows of several lengths."""
    return [Way(family, str(n), make(n), verifier) for n in WINDOWS]


def exact_ways() -> list[Way]:
    """What needs no training and leaves the law of the pictures as it is."""
    coupled, rejection = Coupled(), Rejection()
    starts = [one for one in get_args(Start) if one != Jacobi().start]
    return [
        Way("prompt lookup", "", PromptLookup(), coupled),
        Way("row copy", "", RowCopy(), coupled),
        *windows(lambda n: Jacobi(num_draft_tokens=n), coupled, "jacobi"),
        *windows(lambda n: SJD(num_draft_tokens=n), rejection, "sjd"),
        *windows(lambda n: ScdMaximal(num_draft_tokens=n), rejection, "scd_mc"),
        *windows(lambda n: SjdPac(num_draft_tokens=n), coupled, "sjd_pac, coupled"),
        *windows(lambda n: SjdPac(num_draft_tokens=n), rejection, "sjd_pac, rejection"),
        *(Way("jacobi 32 from", one, Jacobi(start=one), coupled) for one in starts),
    ]


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


def relaxed_ways(generator: Generator) -> list[Way]:
    """Every relaxed rule on the window that needs no training, and on the draft model where there is one."""
    rules = relaxed_rules(generator.modality.neighbours)
    found = [Way(family, setting, ScdMaximal(), rule) for family, setting, rule in rules]
    drafter = draft_model(generator)
    if drafter is not None:
        drafter = replace(drafter, num_draft_tokens=DRAFT_LENGTHS[1])
        found += [Way(family, setting, drafter, rule, trained=True) for family, setting, rule in rules]
    return [*found, *zipar_ways(generator)]


def zipar_ways(generator: Generator) -> list[Way]:
    """Rows side by side, a quarter, half and three quarters of a row apart."""
    width = cast(Images, generator.modality).family.layout().width
    apart = sorted({max(width * n // 4, 1) for n in (1, 2, 3)})
    return [Way("ZipAR", str(window), ZipAR(window=window), ZipARVerifier()) for window in apart]


def other_ways(known: Sequence[Way]) -> list[Way]:
    """What the catalog has for pictures, needs no training nor files, and is in none of the known ways."""
    seen = {type(part) for way in known for part in (way.drafter, way.verifier)}
    found = []
    for entry in ms.catalog():
        own = entry.by_name and not entry.base and not entry.trained
        fits = own and "image" in entry.streams and entry.method not in seen
        if fits and entry.kind == "drafter":
            found.append(Way(entry.name, "", entry.method(), Coupled()))
        elif fits and entry.kind == "verifier":
            found.append(Way(entry.name, "", ScdMaximal(), entry.method()))
    return found


def all_ways(generator: Generator) -> list[Way]:
    """Plain decoding first, then everything in the catalog that fits a stream of codes."""
    known = [PLAIN, *draft_ways(generator), *exact_ways(), *relaxed_ways(generator)]
    return known + other_ways(known)


def usable(
    generator: Generator, found: Sequence[Way], prompt: Any, **settings: Any
) -> tuple[list[Way], dict[str, str]]:
    """Those that this model can be run with, warmed up; why the others cannot."""
    good, refused = list[Way](), dict[str, str]()
    for way in found:
        try:
            result = way.draw(generator, prompt, **settings)
        except MultispecError as error:
            refused[way.name] = str(error)
            continue
        if result.report.drafter_failures:
            refused[way.name] = result.report.notes[-1]
        else:
            good.append(way)
    return good, refused

"""The ways to say a text that are compared: what fits a stream of frames, and speech's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import multispec as ms
from multispec.drafters import SJD, Jacobi, PromptLookup, ScdMaximal, SjdPac
from multispec.generator import Generator
from multispec.verifiers import Coupled, Rejection
from recipes._image_ways import PLAIN, Way, draft_model, draft_ways, relaxed_rules

# A word has twenty frames or so: longer windows guess at the next one.
WINDOWS = (4, 8, 16, 32)


def windows(make: Any, verifier: Any, family: str, sizes: Sequence[int]) -> list[Way]:
    """One drafter with windows of several lengths."""
    return [Way(family, str(n), make(num_draft_tokens=n), verifier) for n in sizes]


def exact_ways(sizes: Sequence[int] = WINDOWS) -> list[Way]:
    """What needs no training and leaves the law of the sound as it is."""
    coupled, rejection = Coupled(), Rejection()
    return [
        *(Way("prompt lookup", str(n), PromptLookup(num_draft_tokens=n), coupled) for n in (4, 10)),
        *windows(Jacobi, coupled, "jacobi", sizes),
        *windows(SJD, rejection, "sjd", sizes),
        *windows(ScdMaximal, rejection, "scd_mc", sizes),
        *windows(SjdPac, coupled, "sjd_pac, coupled", sizes),
        *windows(SjdPac, rejection, "sjd_pac, rejection", sizes),
    ]


def relaxed_ways(generator: Generator) -> list[Way]:
    """Every relaxed rule on the window that needs no training, and on the draft model where there is one."""
    rules = relaxed_rules(generator.modality.neighbours)
    window = ScdMaximal(num_draft_tokens=WINDOWS[1])
    found = [Way(family, setting, window, rule) for family, setting, rule in rules]
    drafter = draft_model(generator)
    if drafter is not None:
        found += [Way(family, setting, drafter, rule, trained=True) for family, setting, rule in rules]
    return found


def other_ways(known: Sequence[Way]) -> list[Way]:
    """What the catalog has for speech, needs no training nor files, and is in none of the known ways."""
    seen = {type(part) for way in known for part in (way.drafter, way.verifier)}
    found = []
    for entry in ms.catalog():
        own = entry.by_name and not entry.base and not entry.trained
        fits = own and "speech" in entry.streams and entry.method not in seen
        if fits and entry.kind == "drafter":
            found.append(Way(entry.name, "", entry.method(), Coupled()))
        elif fits and entry.kind == "verifier":
            found.append(Way(entry.name, "", ScdMaximal(num_draft_tokens=WINDOWS[1]), entry.method()))
    return found


def all_ways(generator: Generator) -> list[Way]:
    """Plain decoding first, then everything in the catalog that fits a stream of frames."""
    known = [PLAIN, *draft_ways(generator), *exact_ways(), *relaxed_ways(generator)]
    return known + other_ways(known)

"""The ways to say a text that are compared: what fits a stream of frames, and speech's own."""

from __future__ import annotations

from collections.abc import Sequence

from multispec.drafters import SJD, Jacobi, PromptLookup, ScdMaximal, SjdPac
from multispec.generator import Generator
from multispec.verifiers import Coupled, Rejection
from recipes._ways import PLAIN, Way, draft_ways, other_ways, relaxed_ways, windows

# A word has twenty frames or so: longer windows guess at the next one.
WINDOWS = (4, 8, 16, 32)


def exact_ways(sizes: Sequence[int] = WINDOWS) -> list[Way]:
    """What needs no training and leaves the law of the sound as it is."""
    coupled, rejection = Coupled(), Rejection()
    return [
        *windows(PromptLookup, coupled, "prompt lookup", (4, 10)),
        *windows(Jacobi, coupled, "jacobi", sizes),
        *windows(SJD, rejection, "sjd", sizes),
        *windows(ScdMaximal, rejection, "scd_mc", sizes),
        *windows(SjdPac, coupled, "sjd_pac, coupled", sizes),
        *windows(SjdPac, rejection, "sjd_pac, rejection", sizes),
    ]


def all_ways(generator: Generator) -> list[Way]:
    """Plain decoding first, then everything in the catalog that fits a stream of frames."""
    window = ScdMaximal(num_draft_tokens=WINDOWS[1])
    known = [PLAIN, *draft_ways(generator), *exact_ways(), *relaxed_ways(generator, window)]
    return known + other_ways(known, "speech", window)

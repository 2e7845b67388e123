"""The ways to draw a picture that are compared: windows, rows side by side, and every rule on them."""

from __future__ import annotations

from typing import cast, get_args

from multispec.drafters import SJD, Jacobi, PromptLookup, RowCopy, ScdMaximal, SjdPac, ZipAR
from multispec.drafters.starts import Start
from multispec.generator import Generator
from multispec.modalities.image.adapter import Images
from multispec.verifiers import Coupled, Rejection, ZipARVerifier
from recipes._ways import DRAFT_LENGTHS, PLAIN, Way, draft_ways, other_ways, relaxed_ways, windows

WINDOWS = (16, 32, 64)


def exact_ways() -> list[Way]:
    """What needs no training and leaves the law of the pictures as it is."""
    coupled, rejection = Coupled(), Rejection()
    starts = [one for one in get_args(Start) if one != Jacobi().start]
    return [
        Way("prompt lookup", "", PromptLookup(), coupled),
        Way("row copy", "", RowCopy(), coupled),
        *windows(Jacobi, coupled, "jacobi", WINDOWS),
        *windows(SJD, rejection, "sjd", WINDOWS),
        *windows(ScdMaximal, rejection, "scd_mc", WINDOWS),
        *windows(SjdPac, coupled, "sjd_pac, coupled", WINDOWS),
        *windows(SjdPac, rejection, "sjd_pac, rejection", WINDOWS),
        *(Way("jacobi 32 from", one, Jacobi(start=one), coupled) for one in starts),
    ]


def zipar_ways(generator: Generator) -> list[Way]:
    """Rows side by side, a quarter, half and three quarters of a row apart."""
    width = cast(Images, generator.modality).family.layout().width
    apart = sorted({max(width * n // 4, 1) for n in (1, 2, 3)})
    return [Way("ZipAR", str(window), ZipAR(window=window), ZipARVerifier()) for window in apart]


def all_ways(generator: Generator) -> list[Way]:
    """Plain decoding first, then everything in the catalog that fits a stream of codes."""
    relaxed = relaxed_ways(generator, ScdMaximal(), DRAFT_LENGTHS[1])
    known = [PLAIN, *draft_ways(generator), *exact_ways(), *relaxed, *zipar_ways(generator)]
    return known + other_ways(known, "image", ScdMaximal())

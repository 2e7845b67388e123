"""Flat, delayed and two-level streams: the same seed, the same codes, whatever drafts, alone or in fours."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from multispec.drafters import (
    ANPD,
    LLMA,
    SJD,
    Cacheback,
    DepthNgram,
    DraftModel,
    Jacobi,
    Lookahead,
    NgramModel,
    NGrammys,
    PreviousFrame,
    PromptLookup,
    Rest,
    RowCopy,
    ScdMaximal,
    SjdPac,
    SuffixAutomatonDrafter,
    SuffixDecoding,
    TokenRecycling,
    ZipAR,
    build_datastore,
)
from multispec.errors import UnsupportedError
from multispec.protocols import Drafter
from multispec.sampling import Sampling
from multispec.stream import Generation
from multispec.testing import play, row
from tests.core.speech_streams import STREAMS, Near, Speech, delayed, flat, two_level

pytestmark = pytest.mark.usefixtures("unchecked")

# Settings of the four rows of a batch, each with a length and so an end of its own.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.5},
    {"temperature": 0.8, "top_k": 2},
    {"temperature": 0.6, "repetition_penalty": 1.2, "frequency_penalty": 0.2},
)
FRAMES = 9


@cache
def stream(name: str) -> Speech:
    """Longer streams than those that are enumerated, and laws that are more certain."""
    made = {"flat": flat, "delayed": delayed, "two_level": two_level}[name]
    return made(frames=FRAMES, scale=4.0) if name == "two_level" else made(frames=FRAMES)


def plainly(name: str) -> list[Generation]:
    return [alone(name, n, None) for n in range(len(SETTINGS))]


def asked(name: str, n: int, drafter: Drafter | None) -> Any:
    sampling = Sampling(seed=20 + n, **SETTINGS[n])
    length = stream(name).length - 2 * n
    return row(stream(name).prompt, sampling=sampling, max_new_tokens=length, drafter=drafter)


def alone(name: str, n: int, drafter: Drafter | None) -> Generation:
    return play(stream(name).model, asked(name, n, drafter))[0]


@cache
def plain(name: str) -> list[list[int]]:
    return [one.tokens.flatten().tolist() for one in plainly(name)]


@cache
def earlier(name: str) -> tuple[tuple[int, ...], ...]:
    """What other seeds gave: texts of codes to look things up in."""
    speech = stream(name)
    rows = [
        row(speech.prompt, sampling=Sampling(seed=n, temperature=0.5), max_new_tokens=speech.length)
        for n in range(3)
    ]
    return tuple(tuple(one.tokens.flatten().tolist()) for one in play(speech.model, *rows))


def stored(name: str, folder: Any) -> Rest:
    size = stream(name).spec.vocab_size
    return Rest(build_datastore(earlier(name), folder / f"{name}.store", vocab_size=size), min_match=1)


Make = Callable[[str, Any], Drafter]
DRAFTERS: dict[str, Make] = {
    "anpd": lambda name, _: ANPD(),
    "cacheback": lambda name, _: Cacheback(),
    "depth_ngram": lambda name, _: DepthNgram(period=2),
    "draft_model": lambda name, _: DraftModel(stream(name).near, 4),
    "jacobi": lambda name, _: Jacobi(num_draft_tokens=8),
    "jacobi_uniform": lambda name, _: Jacobi(num_draft_tokens=6, start="uniform"),
    "llma": lambda name, _: LLMA(references=earlier(name)),
    "lookahead": lambda name, _: Lookahead(window=3, ngram=3, guesses=3),
    "n_grammys": lambda name, _: NGrammys(),
    "near": lambda name, _: Near(stream(name), "point", num_draft_tokens=6),
    "ngram_model": lambda name, _: NgramModel(
        references=earlier(name), vocab_size=stream(name).spec.vocab_size
    ),
    "previous_frame": lambda name, _: PreviousFrame(period=2),
    "prompt_lookup": lambda name, _: PromptLookup(),
    "rest": stored,
    "row_copy": lambda name, _: RowCopy(),
    "scd_mc": lambda name, _: ScdMaximal(num_draft_tokens=8),
    "sjd": lambda name, _: SJD(num_draft_tokens=8),
    "sjd_pac": lambda name, _: SjdPac(num_draft_tokens=8, width=2 if name == "flat" else 1),
    "suffix_automaton": lambda name, _: SuffixAutomatonDrafter(references=earlier(name)),
    "suffix_decoding": lambda name, _: SuffixDecoding(references=earlier(name), tree=name == "flat"),
    "token_recycling": lambda name, _: TokenRecycling(
        num_draft_tokens=8, width=3, shape=None if name == "flat" else (-1, 0, 1)
    ),
}
# Trees and steps do not go together; those that make neither are told so before anything is drawn.
REFUSED = {
    ("draft_model", "delayed"): "2 slots of this stream move together",
    ("lookahead", "delayed"): "2 slots of this stream move together",
}
# Two-level models score chains: what comes as a tree is set aside, with a warning.
TREES = {("lookahead", "two_level"), ("cacheback", "two_level"), ("n_grammys", "two_level")}
TREES |= {("rest", "two_level")}


@pytest.mark.filterwarnings("ignore::multispec.errors.DrafterWarning")
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_same_seed_gives_the_same_codes(drafter: str, name: str, tmp_path: Any) -> None:
    """Four rows together, each with settings, a seed and an end of its own, and two of them alone."""
    method = DRAFTERS[drafter](name, tmp_path)
    refusal = REFUSED.get((drafter, name))
    if refusal is not None:
        with pytest.raises(UnsupportedError, match=refusal):
            alone(name, 0, method)
        return
    together = play(stream(name).model, *(asked(name, n, method) for n in range(len(SETTINGS))))
    assert [one.tokens.flatten().tolist() for one in together] == plain(name)
    single = [alone(name, n, method) for n in (0, 1)]
    assert [one.tokens.flatten().tolist() for one in single] == plain(name)[:2]
    assert all(
        one.report.accepted == other.report.accepted for one, other in zip(together, single, strict=False)
    )
    if (drafter, name) not in TREES:
        assert not any(one.report.drafter_failures for one in together)
        assert sum(one.report.accepted for one in together) > 0


def test_rows_of_a_batch_draft_differently(tmp_path: Any) -> None:
    """A drafter for each row, one without."""
    for name in STREAMS:
        chosen = [
            None,
            *(DRAFTERS[one](name, tmp_path) for one in ("jacobi", "prompt_lookup", "depth_ngram")),
        ]
        found = play(stream(name).model, *(asked(name, n, one) for n, one in enumerate(chosen)))
        assert [one.tokens.flatten().tolist() for one in found] == plain(name)


def test_rows_of_pictures_are_asked_for() -> None:
    """ZipAR needs them: parallel slots have none."""
    with pytest.raises(UnsupportedError, match="without row_length"):
        alone("delayed", 0, ZipAR())


def test_seeds_differ() -> None:
    """So equality says something."""
    for name in STREAMS:
        assert (
            torch.unique(torch.tensor([one[: stream(name).length - 6] for one in plain(name)]), dim=0).shape[
                0
            ]
            > 2
        )

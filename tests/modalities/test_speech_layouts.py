"""Layouts of speech streams: round trips of any layout, and grammars that leave what the layout says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multispec.errors import UsageError
from multispec.modalities.speech.family import FrameLayout
from multispec.modalities.speech.layouts import Delayed, Flattened, Levels
from multispec.stream import Forced, StreamSpec

ORPHEUS = Flattened(
    codes_per_book=4096,
    order=(0, 1, 3, 4, 2, 5, 6),
    offsets=tuple(128266 + 4096 * place for place in range(7)),
    end=128258,
    vocab_size=156940,
)
DIA = (0, 8, 9, 10, 11, 12, 13, 14, 15)
EXAMPLES = 40

delays = st.lists(st.integers(0, 5), min_size=1, max_size=5).map(tuple)


def random_codes(frames: int, books: int, size: int, seed: int) -> torch.Tensor:
    return torch.randint(0, size, (frames, books), generator=torch.Generator().manual_seed(seed))


def spoken(spec: StreamSpec, seed: int, likely: int | None = None, most: int = 200) -> list[int]:
    """Symbols drawn by chance from what the grammar leaves, until the stream ends; ``likely`` is an id."""
    rng, symbols = random.Random(seed), list[int]()
    while len(symbols) < most:
        left = None if spec.grammar is None else spec.grammar(symbols)
        if isinstance(left, Forced):
            symbols.append(left.symbol)
        else:
            allowed: Sequence[int] = range(spec.vocab_size) if left is None else left.symbols
            ends = likely in allowed and rng.random() < 0.2
            symbols.append(likely if ends and likely is not None else rng.choice(allowed))
        whole = len(symbols) % spec.step == 0
        over = symbols[-1] in spec.end_ids if spec.ended is None else whole and spec.ended(symbols)
        if over or len(symbols) == spec.fixed_length:
            return symbols
    raise AssertionError("the stream does not end")


# ---- delayed ----


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(delays, st.integers(0, 6), st.sampled_from(["none", "countdown", "every_slot"]), st.integers(0, 9))
def test_any_delays_round_trip(delays: tuple[int, ...], frames: int, ending: str, seed: int) -> None:
    """Codes to a stream and back, whatever the delays, the ending and the number of frames."""
    specials: dict[str, Any] = {"start": 8, "pad": 9}
    if ending != "none":
        specials |= {"end": 7, "ending": ending}
    for known in (frames, None) if ending != "none" else (frames,):
        layout = Delayed(delays=delays, codes_per_book=7, frames=known, **specials)
        codes = random_codes(frames, len(delays), 7, seed)
        tokens = layout.tokens(codes)
        assert torch.equal(layout.codes(tokens.tolist()), codes)
        assert len(tokens) == ((frames + max(delays)) * len(delays) if frames else 0)
        for position, symbol in enumerate(tokens.tolist()):
            place = layout.coordinates(position)
            if place is not None and place[0] < frames:
                assert symbol == codes[place]


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(delays, st.sampled_from(["countdown", "every_slot"]), st.integers(0, 99), st.booleans())
def test_a_grammar_ends_every_slot(delays: tuple[int, ...], ending: str, seed: int, known: bool) -> None:
    """Whatever the model says, all codebooks end, starts and ends stand where the delays put them."""
    # A codebook of the same delay as the first one cannot see its end in time.
    delays = (0, *(delay + 1 for delay in delays))
    frames = 4 if known else None
    layout = Delayed(
        delays=delays, codes_per_book=3, start=5, pad=6, end=3, frames=frames, ending=ending, offsets=()
    )
    symbols = spoken(layout.spec, seed, likely=3)
    columns = [symbols[slot :: len(delays)] for slot in range(len(delays))]
    firsts = [column.index(3) for column in columns]
    for column, delay, first in zip(columns, delays, firsts, strict=True):
        assert column[:delay] == [5] * delay
        assert {*column[delay:first]} <= {0, 1, 2}
        assert {*column[first + 1 :]} <= ({6} if ending == "countdown" else {3})
    if ending == "countdown":
        assert len({first - delay for first, delay in zip(firsts, delays, strict=True)}) == 1
        assert len(columns[0]) == max(firsts) + 1
    assert firsts[0] == min(firsts)
    whole = min(first - delay for first, delay in zip(firsts, delays, strict=True))
    assert layout.codes(symbols).shape == (whole, len(delays))
    assert frames is None or whole <= frames


def test_musicgen_is_padded_as_in_transformers() -> None:
    """The picture in ``build_delay_pattern_mask``: 4 codebooks, 8 columns with that of the start."""
    layout = Delayed(delays=(0, 1, 2, 3), codes_per_book=8, start=8, frames=4)
    stream = layout.tokens(random_codes(4, 4, 8, 0)).view(-1, 4).T
    assert stream.shape == (4, 7)
    assert (stream == 8).int().tolist() == [
        [0, 0, 0, 0, 1, 1, 1],
        [1, 0, 0, 0, 0, 1, 1],
        [1, 1, 0, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0, 0],
    ]
    assert layout.spec.fixed_length == 28 and layout.spec.ended is None


def test_an_end_counts_down() -> None:
    """Dia: the first channel ends, each other one as many steps later as it is behind."""
    layout = Delayed(delays=(0, 2, 3), codes_per_book=4, start=6, pad=5, end=4)
    symbols = [1, 6, 6, 2, 6, 6, 4]
    while not (len(symbols) % 3 == 0 and layout.ended(symbols)):
        left = layout.grammar(symbols)
        symbols.append(left.symbol if isinstance(left, Forced) else 0)
    assert torch.tensor(symbols).view(-1, 3).T.tolist() == [
        [1, 2, 4, 5, 5, 5],
        [6, 6, 0, 0, 4, 5],
        [6, 6, 6, 0, 0, 4],
    ]
    assert layout.codes(symbols).tolist() == [[1, 0, 0], [2, 0, 0]]


def test_half_a_frame_is_none() -> None:
    """While a stream grows, only frames whose every codebook has come are there."""
    layout = Delayed(delays=DIA, codes_per_book=1024, start=1026, pad=1025, end=1024)
    codes = random_codes(20, 9, 1024, 1)
    tokens = layout.tokens(codes).tolist()
    for steps in (0, 15, 16, 20):
        assert torch.equal(layout.codes(tokens[: steps * 9]), codes[: max(steps - 15, 0)])


def test_the_codes_of_slots_may_have_places_of_their_own() -> None:
    """Offsets per codebook: one vocabulary in segments."""
    layout = Delayed(delays=(0, 1), codes_per_book=4, start=8, offsets=(0, 4), frames=2)
    codes = torch.tensor([[3, 1], [0, 2]])
    assert layout.tokens(codes).tolist() == [3, 8, 0, 5, 8, 6]
    assert torch.equal(layout.codes(layout.tokens(codes).tolist()), codes)
    assert layout.spec.vocab_size == 9


# ---- flattened ----


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.permutations(range(4)), st.integers(0, 5), st.integers(0, 3), st.integers(0, 9))
def test_any_order_round_trips(order: Sequence[int], frames: int, header: int, seed: int) -> None:
    """Codes to a stream and back, in any order within the frame."""
    layout = Flattened(
        codes_per_book=5,
        order=tuple(order),
        offsets=(10, 15, 20, 10),
        vocab_size=25,
        header=tuple(range(header)),
        end=9,
    )
    codes = random_codes(frames, 4, 5, seed)
    tokens = layout.tokens(codes).tolist()
    assert torch.equal(layout.codes(tokens), codes)
    assert torch.equal(layout.codes([*tokens, 9]), codes)
    for position, symbol in enumerate(tokens):
        place = layout.coordinates(position)
        assert (place is None) == (position < header)
        if place is not None:
            assert codes[place] == symbol - layout.offsets[(position - header) % 4]
    for position in range(len(tokens)):
        left = layout.grammar(tokens[:position])
        assert left == Forced(tokens[position]) if position < header else tokens[position] in left.symbols  # type: ignore[union-attr]


def test_orpheus() -> None:
    """code = id - 128266 - 4096 (i mod 7), three levels of SNAC in the order of its authors."""
    codes = random_codes(3, 7, 4096, 0)
    tokens = ORPHEUS.tokens(codes)
    own = (tokens - 128266 - 4096 * (torch.arange(21) % 7)).view(3, 7)
    level_1, level_2 = own[:, [1, 4]], own[:, [2, 3, 5, 6]]
    assert torch.equal(codes, torch.cat([own[:, :1], level_1, level_2], 1))
    assert ORPHEUS.codes(tokens[:-1].tolist()).shape == (2, 7)


def test_an_end_within_a_frame() -> None:
    """Only where the layout says so; with ``frames`` it is forced."""
    free = Flattened(codes_per_book=2, order=(0, 1), offsets=(0, 2), vocab_size=5, end=4, ends_within=True)
    assert free.grammar([0]).symbols == range(2, 5)  # type: ignore[union-attr]
    assert free.codes([0, 4]).shape == (0, 2)
    fixed = Flattened(codes_per_book=2, order=(0, 1), offsets=(0, 2), vocab_size=5, end=4, frames=1)
    assert fixed.grammar([0]).symbols == range(2, 4)  # type: ignore[union-attr]
    assert fixed.grammar([0, 2]) == Forced(4) and fixed.spec.fixed_length == 3
    assert spoken(fixed.spec, 0)[-1] == 4
    loose = Flattened(codes_per_book=2, order=(0, 1), offsets=(0, 2), vocab_size=5, end=4, strict=False)
    assert loose.spec.grammar is None


# ---- two levels ----


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 5), st.booleans(), st.integers(0, 9))
def test_frames_of_levels_round_trip(books: int, frames: int, apart: bool, seed: int) -> None:
    """Codes to a stream and back."""
    offsets = tuple(range(0, 6 * books, 6)) if apart else ()
    layout = Levels(num_codebooks=books, codes_per_book=6, offsets=offsets)
    codes = random_codes(frames, books, 6, seed)
    assert torch.equal(layout.codes(layout.tokens(codes).tolist()), codes)
    assert layout.spec.step == 1 and len(layout.spec.slots) == books


def test_levels_end_by_an_id_or_by_a_frame() -> None:
    """Qwen3-Omni ends in the first codebook, CSM by a frame of zeros that is none of the sound."""
    by_id = Levels(num_codebooks=3, codes_per_book=4, end=4, frames=5)
    assert by_id.grammar([]).symbols == range(5) and by_id.grammar([0]).symbols == range(4)  # type: ignore[union-attr]
    assert by_id.codes([1, 2, 3, 4]).tolist() == [[1, 2, 3]]
    assert by_id.spec.fixed_length == 15 and by_id.coordinates(15) is None
    csm = Levels(num_codebooks=2, codes_per_book=4, every=(0,))
    ended = csm.spec.ended
    assert ended is not None
    assert [ended(s) for s in ([], [0], [0, 0], [1, 0], [1, 0, 0], [1, 0, 0, 0])] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert csm.codes([1, 0, 0, 0]).tolist() == [[1, 0]]


# ---- what cannot be ----


LAYOUTS = [
    ORPHEUS,
    Delayed(delays=(0, 1), codes_per_book=4, start=4, frames=3),
    Levels(num_codebooks=3, codes_per_book=4),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: type(layout).__name__)
def test_wrong_codes_and_symbols_are_named(layout: Any) -> None:
    """Codes of another codec, symbols that are no codes."""
    assert isinstance(layout, FrameLayout)
    books = layout.num_codebooks
    with pytest.raises(UsageError, match=rf"must be \[T, {books}\]"):
        layout.tokens(torch.zeros(2, books + 1, dtype=torch.long))
    with pytest.raises(UsageError, match="Codes must lie in"):
        layout.tokens(torch.full((2, books), 5000))
    with pytest.raises(UsageError, match="at position 0 must lie in"):
        layout.codes([200_000] * 4 * books)


IMPOSSIBLE: list[tuple[type, dict[str, Any], str]] = [
    (Flattened, {"order": (0, 2), "offsets": (0, 4), "vocab_size": 8}, "names each codebook once"),
    (Flattened, {"order": (0, 1), "offsets": (0,), "vocab_size": 8}, "an offset for each"),
    (Flattened, {"order": (0, 1), "offsets": (0, 6), "vocab_size": 8}, "fit into the vocabulary"),
    (Delayed, {"delays": (0, -1), "start": 4, "frames": 2}, "Delays count"),
    (Delayed, {"delays": (0, 1), "start": 4}, "needs an end"),
    (Delayed, {"delays": (0, 1), "start": 4, "end": 5, "ending": "silence"}, "countdown"),
    (Delayed, {"delays": (0, 1), "start": 9, "end": 5, "vocab_size": 8}, "Specials"),
    (Levels, {"num_codebooks": 0}, "needs codebooks"),
]


@pytest.mark.parametrize(("kind", "fields", "message"), IMPOSSIBLE)
def test_impossible_layouts_are_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    """Each names the rule."""
    with pytest.raises(UsageError, match=message):
        kind(codes_per_book=4, **fields)

"""The three ways in which codes of K codebooks become one stream, as ``FrameLayout``: pure arithmetic.

* ``Flattened``: frame by frame, each codebook at its place (Orpheus, Spark, alternation); one slot.
* ``Delayed``: all codebooks side by side, each behind the one before (MusicGen, Parler, Dia, Higgs).
* ``Levels``: frame by frame, the codebooks of a frame one after the other (CSM, Qwen3-Omni, Moshi).

Positions count generated symbols from 0. A symbol of codebook k stands for the code ``symbol - offset_k``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from multispec.errors import UsageError
from multispec.stream import Allowed, EverySlot, Forced, Slot, StreamSpec


def _require(holds: bool, rule: str, got: object) -> None:
    if not holds:
        raise UsageError(f"{rule}: got {got!r}. Is this the layout of the model's config?")


def _check_books(codes: int, offsets: Sequence[int], count: int, vocab_size: int) -> None:
    _require(count > 0 and codes > 0, "A layout needs codebooks with codes in them", (count, codes))
    _require(len(offsets) == count, f"A layout of {count} codebooks needs an offset for each", offsets)
    inside = all(0 <= offset and offset + codes <= vocab_size for offset in offsets)
    _require(inside, f"Codes must fit into the vocabulary of {vocab_size} symbols", (codes, tuple(offsets)))


def _code(symbol: int, offset: int, codes: int, position: int) -> int:
    if not offset <= symbol < offset + codes:
        raise UsageError(
            f"A code at position {position} must lie in [{offset}, {offset + codes}): got {symbol}. Is this "
            "the layout that the tokens were made with?"
        )
    return symbol - offset


def _checked(codes: Tensor, books: int, size: int) -> Tensor:
    if codes.ndim != 2 or codes.shape[1] != books:
        raise UsageError(f"Codes must be [T, {books}]: got {tuple(codes.shape)}. Is this the model's codec?")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
        raise UsageError(
            f"Codes must lie in [0, {size}): got {int(codes.min())} .. {int(codes.max())}. Is this the codec "
            "that the model was trained with?"
        )
    return codes.long()


def _grid(rows: Sequence[Sequence[int]], books: int) -> Int[Tensor, "T K"]:
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), books)


@dataclass(frozen=True, kw_only=True)
class Flattened:
    """Frames one after the other, in one stream of one slot.

    ``order[j]`` is the codebook at place j of a frame, so that place j of a frame holds the symbols
    ``offsets[j] .. offsets[j] + codes - 1``. ``header`` is forced before the first frame. ``end`` ends the
    stream, between frames or, with ``ends_within``, anywhere; ``frames`` is where it ends by itself. Without
    ``strict`` there is no grammar: the model may say what it likes, and ``codes`` looks at it.

    Raises:
        UsageError: an order that is none, codes outside the vocabulary.

    >>> orpheus = Flattened(codes_per_book=4096, order=(0, 1, 3, 4, 2, 5, 6), end=128258, vocab_size=156940,
    ...                     offsets=tuple(128266 + 4096 * place for place in range(7)))
    >>> orpheus.coordinates(9)
    (1, 3)
    """

    codes_per_book: int
    order: tuple[int, ...]
    offsets: tuple[int, ...]
    vocab_size: int
    end: int | None = None
    header: tuple[int, ...] = ()
    frames: int | None = None
    ends_within: bool = False
    strict: bool = True

    def __post_init__(self) -> None:
        _check_books(self.codes_per_book, self.offsets, len(self.order), self.vocab_size)
        _require(
            sorted(self.order) == [*range(len(self.order))], "An order names each codebook once", self.order
        )

    @property
    def num_codebooks(self) -> int:
        """Codebooks of a frame."""
        return len(self.order)

    @cached_property
    def _allowed(self) -> tuple[Allowed, ...]:
        ends = [self.ends_within or place == 0 for place in range(len(self.order))]
        return tuple(
            _allowed(offset, self.codes_per_book, self.end if may_end else None)
            for offset, may_end in zip(self.offsets, ends, strict=True)
        )

    def grammar(self, generated: Sequence[int], /) -> Forced | Allowed | None:
        """The header, then the segment of each place, then the end."""
        position = len(generated)
        if position < len(self.header):
            return Forced(self.header[position])
        frame, place = divmod(position - len(self.header), len(self.order))
        if self.frames is not None and frame >= self.frames:
            return None if self.end is None else Forced(self.end)
        return self._allowed[place]

    @property
    def spec(self) -> StreamSpec:
        """One slot; ``row_length`` is a frame, so that copying from above copies the frame before."""
        length = None
        if self.frames is not None:
            length = len(self.header) + self.frames * len(self.order) + (self.end is not None)
        return StreamSpec(
            slots=(Slot(size=self.vocab_size),),
            end_ids=() if self.end is None else (self.end,),
            fixed_length=length,
            grammar=self.grammar if self.strict else None,
            row_length=len(self.order),
        )

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(frame, codebook) of a position; None in the header and behind the last frame."""
        frame, place = divmod(position - len(self.header), len(self.order))
        if frame < 0 or (self.frames is not None and frame >= self.frames):
            return None
        return frame, self.order[place]

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        """The codes of all whole frames before the end.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        first = len(self.header)
        body = [*tokens[first:]]
        if self.end is not None and self.end in body:
            body = body[: body.index(self.end)]
        if self.frames is not None:
            body = body[: self.frames * len(self.order)]
        whole = len(body) // len(self.order) * len(self.order)
        size = self.codes_per_book
        places = [place % len(self.order) for place in range(whole)]
        flat = [
            _code(symbol, self.offsets[place], size, first + n)
            for n, (symbol, place) in enumerate(zip(body, places, strict=False))
        ]
        grid = _grid(
            [flat[n : n + len(self.order)] for n in range(0, whole, len(self.order))], len(self.order)
        )
        return torch.empty_like(grid).index_copy_(1, torch.tensor(self.order), grid)

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        """The header and the frames; ``codes`` undoes it."""
        grid = _checked(codes, len(self.order), self.codes_per_book)[:, list(self.order)]
        flat = rearrange(grid + torch.tensor(self.offsets), "t k -> (t k)")
        return torch.cat([torch.tensor(self.header, dtype=torch.long), flat])


@lru_cache(maxsize=256)
def _allowed(offset: int, codes: int, *more: int | None) -> Allowed:
    """A segment and some symbols beside it; a range where they follow each other."""
    beside = [symbol for symbol in more if symbol is not None]
    last = offset + codes
    while last in beside:
        beside.remove(last)
        last += 1
    segment = range(offset, last)
    return Allowed((*segment, *beside) if beside else segment)


@dataclass(frozen=True, kw_only=True)
class Delayed:
    """K codebooks side by side, codebook k late by ``delays[k]`` steps: frame f of it stands in step f + d_k.

    ::

        step          0  1  2  3  4  5  6          delays (0, 1, 3), three frames, S start, E end, P pad
        codebook 0    a  b  c  E  P  P  P
        codebook 1    S  a  b  c  E  P  P
        codebook 2    S  S  S  a  b  c  E

    The start triangle is forced. Streams end in one of three ways:

    * without ``end``: behind ``frames`` frames, with pads as the last triangle (MusicGen);
    * ``ending="countdown"``: the codebook of the least delay says ``end`` (or comes to ``frames``), and the
      others are forced to say it as many steps later as they are behind, then pad (Dia, Higgs);
    * ``ending="every_slot"``: each says ``end`` itself, at the earliest a step behind the one before; a
      codebook that has ended is forced to repeat it, and the stream ends when all have (Parler).

    ``offsets`` default to 0: then the same id stands for a code in every codebook.

    Raises:
        UsageError: delays below 0, specials or codes outside the vocabulary, a stream without an end.

    >>> layout = Delayed(delays=(0, 1), codes_per_book=3, start=3, frames=2)
    >>> layout.tokens(torch.tensor([[0, 1], [2, 0]])).tolist()
    [0, 3, 2, 1, 3, 0]
    """

    delays: tuple[int, ...]
    codes_per_book: int
    start: int
    pad: int | None = None
    end: int | None = None
    frames: int | None = None
    ending: str = "countdown"
    offsets: tuple[int, ...] = ()
    vocab_size: int = 0
    prompt_size: int | None = None

    def __post_init__(self) -> None:
        count = len(self.delays)
        # What was left out follows from the rest.
        if not self.offsets:
            object.__setattr__(self, "offsets", (0,) * count)
        if not self.vocab_size:
            top = max(
                [offset + self.codes_per_book for offset in self.offsets] + [s + 1 for s in self._specials]
            )
            object.__setattr__(self, "vocab_size", top)
        _check_books(self.codes_per_book, self.offsets, count, self.vocab_size)
        _require(min(self.delays) >= 0, "Delays count steps from 0", self.delays)
        inside = all(0 <= symbol < self.vocab_size for symbol in self._specials)
        _require(inside, f"Specials must lie in the vocabulary of {self.vocab_size}", self._specials)
        known = self.ending in ("countdown", "every_slot")
        _require(known, "An ending is 'countdown' or 'every_slot'", self.ending)
        endless = self.end is None and self.frames is None
        _require(not endless, "A stream needs an end: a symbol or a number of frames", self.end)

    @property
    def _specials(self) -> tuple[int, ...]:
        return tuple(s for s in (self.start, self.pad, self.end) if s is not None)

    @property
    def num_codebooks(self) -> int:
        """Codebooks of a frame."""
        return len(self.delays)

    @property
    def _filler(self) -> int:
        return self.start if self.pad is None else self.pad

    @cached_property
    def _leader(self) -> int:
        return self.delays.index(min(self.delays))

    @property
    def _span(self) -> int:
        return max(self.delays) - min(self.delays)

    @cached_property
    def _segments(self) -> tuple[tuple[Allowed, Allowed], ...]:
        """What each codebook may say: codes, and codes or the end."""
        size = self.codes_per_book
        return tuple((_allowed(offset, size), _allowed(offset, size, self.end)) for offset in self.offsets)

    # ---- the grammar ----

    def grammar(self, generated: Sequence[int], /) -> Forced | Allowed | None:
        """Start triangle, codes, end triangle; looks at earlier steps alone."""
        step, slot = divmod(len(generated), len(self.delays))
        if step < self.delays[slot]:
            return Forced(self.start)
        if self.ending == "every_slot" and self.end is not None:
            return self._in_turn(generated, step, slot, self.end)
        ended = self._ended_at(generated, step)
        frames = self.frames if ended is None else ended
        behind = -1 if frames is None else step - self.delays[slot] - frames
        if behind < 0:
            return self._segments[slot][slot == self._leader and ended is None]
        return Forced(self.end if behind == 0 and self.end is not None else self._filler)

    def _ended_at(self, generated: Sequence[int], step: int) -> int | None:
        """How many frames there are, where the leader has said so."""
        if self.end is None:
            return None
        count, leader = len(self.delays), self._leader
        # The stream is over so many steps behind the end: what lies further back need not be looked at.
        for back in range(max(step - self._span - 1, self.delays[leader]), step):
            if generated[back * count + leader] == self.end:
                return back - self.delays[leader]
        return None

    def _in_turn(self, generated: Sequence[int], step: int, slot: int, end: int) -> Forced | Allowed:
        count = len(self.delays)
        before = (step - 1) * count
        if step > self.delays[slot] and generated[before + slot] == end:
            return Forced(end)
        if self.frames is not None and step - self.delays[slot] >= self.frames:
            return Forced(end)
        may_end = slot == self._leader or (step > 0 and generated[before + self._turn[slot]] == end)
        return self._segments[slot][may_end]

    @cached_property
    def _turn(self) -> dict[int, int]:
        """The codebook that has to end before each one."""
        order = sorted(range(len(self.delays)), key=lambda slot: self.delays[slot])
        return dict(zip(order[1:], order, strict=False))

    def ended(self, generated: Sequence[int], /) -> bool:
        """True behind the step in which the last codebook has ended."""
        count = len(self.delays)
        steps = len(generated) // count
        if self.ending == "every_slot" and self.end is not None:
            return EverySlot(ids=(self.end,), slots=count)(generated)
        frames = self._ended_at(generated, steps)
        return frames is not None and steps > frames + max(self.delays)

    @property
    def spec(self) -> StreamSpec:
        """K parallel slots; ``fixed_length`` where ``frames`` are known."""
        length = None
        if self.frames is not None:
            length = (self.frames + max(self.delays) + (self.end is not None)) * len(self.delays)
        return StreamSpec(
            slots=(Slot(size=self.vocab_size),) * len(self.delays),
            parallel=True,
            delays=self.delays,
            order="delayed",
            end_ids=() if self.end is None else (self.end,),
            ended=None if self.end is None else self.ended,
            fixed_length=length,
            grammar=self.grammar,
            prompt_size=self.prompt_size,
        )

    # ---- codes ----

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(frame, codebook) of a position; None in the triangles."""
        step, slot = divmod(position, len(self.delays))
        frame = step - self.delays[slot]
        inside = frame >= 0 and (self.frames is None or frame < self.frames)
        return (frame, slot) if inside else None

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        """The codes of all frames whose every codebook has come.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        columns = [
            self._column([*tokens[slot :: len(self.delays)]], slot) for slot in range(len(self.delays))
        ]
        frames = min(map(len, columns))
        return rearrange([_row(column[:frames]) for column in columns], "k t -> t k")

    def _column(self, symbols: Sequence[int], slot: int) -> list[int]:
        """The codes of one codebook, up to its end."""
        own = symbols[self.delays[slot] :][: self.frames]
        size, offset, found = self.codes_per_book, self.offsets[slot], list[int]()
        for frame, symbol in enumerate(own):
            if symbol in (self.end, self._filler) and not offset <= symbol < offset + size:
                break
            position = (frame + self.delays[slot]) * len(self.delays) + slot
            found.append(_code(symbol, offset, size, position))
        return found

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        """The steps in which these frames stand, triangles filled; ``codes`` undoes it."""
        grid = _checked(codes, len(self.delays), self.codes_per_book) + torch.tensor(self.offsets)
        steps = len(grid) + max(self.delays) if len(grid) else 0
        stream = torch.full((steps, len(self.delays)), self.start, dtype=torch.long)
        for slot, delay in enumerate(self.delays if steps else ()):
            stream[delay : delay + len(grid), slot] = grid[:, slot]
            stream[delay + len(grid) :, slot] = self._filler
            if self.end is not None:
                every = self.ending == "every_slot"
                stream[delay + len(grid) :, slot][: None if every else 1] = self.end
        return rearrange(stream, "s k -> (s k)")


def _row(codes: Sequence[int]) -> Tensor:
    return torch.tensor(codes, dtype=torch.long)


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Two levels: K sequential slots for each frame, the codebooks one after the other.

    The first slot holds ``offsets[0] ..`` and may say ``end``, which ends the stream within its frame
    (Qwen3-Omni). With ``every`` a frame whose slots all hold one of those ids ends it (CSM: zeros); that
    frame is none of the sound. ``frames`` is where it ends by itself.

    Raises:
        UsageError: codes outside the vocabulary.

    >>> Levels(num_codebooks=4, codes_per_book=8).coordinates(6)
    (1, 2)
    """

    num_codebooks: int
    codes_per_book: int
    offsets: tuple[int, ...] = ()
    vocab_size: int = 0
    end: int | None = None
    every: tuple[int, ...] = ()
    frames: int | None = None
    prompt_size: int | None = None

    def __post_init__(self) -> None:
        if not self.offsets:
            object.__setattr__(self, "offsets", (0,) * self.num_codebooks)
        if not self.vocab_size:
            top = max([0, *(offset + self.codes_per_book for offset in self.offsets)])
            object.__setattr__(self, "vocab_size", max(top, 0 if self.end is None else self.end + 1))
        _check_books(self.codes_per_book, self.offsets, self.num_codebooks, self.vocab_size)

    @cached_property
    def _segments(self) -> tuple[Allowed, ...]:
        size = self.codes_per_book
        ends = (self.end, *(None,) * (self.num_codebooks - 1))
        return tuple(_allowed(offset, size, end) for offset, end in zip(self.offsets, ends, strict=True))

    def grammar(self, generated: Sequence[int], /) -> Forced | Allowed | None:
        """The segment of each slot."""
        return self._segments[len(generated) % self.num_codebooks]

    @property
    def spec(self) -> StreamSpec:
        """K sequential slots."""
        count, size = self.num_codebooks, self.codes_per_book
        plain = {*self.offsets} == {0} and size == self.vocab_size
        return StreamSpec(
            slots=(Slot(size=self.vocab_size),) * count,
            end_ids=() if self.end is None else (self.end,),
            ended=EverySlot(ids=self.every, slots=count) if self.every else None,
            fixed_length=None if self.frames is None else self.frames * count,
            grammar=None if plain else self.grammar,
            row_length=count,
            prompt_size=self.prompt_size,
        )

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(frame, codebook) of a position."""
        frame, slot = divmod(position, self.num_codebooks)
        return None if self.frames is not None and frame >= self.frames else (frame, slot)

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        """The codes of all whole frames before the end.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        count, size = self.num_codebooks, self.codes_per_book
        rows: list[list[int]] = []
        for first in range(0, len(tokens) // count * count, count):
            frame = [*tokens[first : first + count]]
            if frame[0] == self.end or (self.every and {*frame} <= {*self.every}):
                break
            pairs = enumerate(zip(frame, self.offsets, strict=True), first)
            rows.append([_code(symbol, offset, size, place) for place, (symbol, offset) in pairs])
        return _grid(rows[: self.frames], count)

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        """The frames one after the other; ``codes`` undoes it."""
        grid = _checked(codes, self.num_codebooks, self.codes_per_book) + torch.tensor(self.offsets)
        return rearrange(grid, "t k -> (t k)")

"""Layouts: what each position of a media stream is, and the grammar of its forced symbols.

A layout is pure arithmetic: positions count generated symbols from 0, and nothing looks at what
the symbols are. It turns tokens into a grid of codes and back, and says which symbols the grammar
forces (row ends, headers, the end of the picture), so that nobody writes a
``prefix_allowed_tokens_fn`` by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from multispec.errors import UsageError
from multispec.stream import Allowed, Forced, Slot, StreamSpec


@runtime_checkable
class Layout(Protocol):
    """The stream of one picture: which position is which place of the grid, and what is forced."""

    @property
    def height(self) -> int:
        """Rows of codes."""
        ...

    @property
    def width(self) -> int:
        """Codes in a row."""
        ...

    @property
    def length(self) -> int:
        """Symbols of a whole picture, forced ones included."""
        ...

    @property
    def spec(self) -> StreamSpec:
        """The stream of one picture."""
        ...

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(row, column) of a position of the final picture; None for every other symbol."""
        ...

    def grid(self, tokens: Sequence[int], /, missing: int = 0) -> Int[Tensor, "H W"]:
        """The codes of a picture; what is not there yet is ``missing``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Raster:
    """A picture of ``height`` rows of ``width`` codes, row by row.

    ``header`` are the symbols forced before the first code, ``row_end`` is forced after every row
    and ``tail`` after the last one. Codes are the ids ``offset .. offset + codes - 1`` of a
    vocabulary of ``vocab_size`` symbols; with ``input_size`` prompts have a vocabulary of their own.

    Raises:
        UsageError: a grid without symbols, or codes outside the vocabulary.

    >>> layout = Raster(height=2, width=2, codes=4, offset=10, row_end=9, tail=(8,))
    >>> [layout.coordinates(position) for position in range(layout.length)]
    [(0, 0), (0, 1), None, (1, 0), (1, 1), None, None]
    """

    height: int
    width: int
    codes: int
    offset: int = 0
    vocab_size: int | None = None
    prompt_size: int | None = None
    header: tuple[int, ...] = ()
    row_end: int | None = None
    tail: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.codes) < 1 or self.offset < 0:
            raise UsageError(
                f"A raster needs at least one row, one column and one code: got {self.height} x {self.width} "
                f"of {self.codes} codes from id {self.offset}."
            )
        if self.vocab_size is not None and self.offset + self.codes > self.vocab_size:
            raise UsageError(
                f"The codes {self.offset} .. {self.offset + self.codes - 1} do not fit into a vocabulary of "
                f"{self.vocab_size} symbols. Is this the picture tokenizer that belongs to the model?"
            )

    @property
    def row_length(self) -> int:
        """Positions from one code to the one beneath it."""
        return self.width + (self.row_end is not None)

    @property
    def length(self) -> int:
        """Symbols of a whole picture, forced ones included."""
        return len(self.header) + self.height * self.row_length + len(self.tail)

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(row, column) of a position; None where the grammar forces a symbol or the picture is over."""
        row, column = divmod(position - len(self.header), self.row_length)
        inside = position >= len(self.header) and row < self.height and column < self.width
        return (row, column) if inside else None

    def position(self, row: int, column: int) -> int:
        """The position of a code."""
        return len(self.header) + row * self.row_length + column

    def forced(self, position: int) -> int | None:
        """The symbol that is forced at a position, or None at a code."""
        if position < len(self.header):
            return self.header[position]
        behind = position - len(self.header) - self.height * self.row_length
        if behind >= 0:
            return self.tail[behind] if behind < len(self.tail) else None
        return None if self.coordinates(position) is not None else self.row_end

    def grammar(self, generated: Sequence[int], /) -> Forced | Allowed | None:
        """The grammar of the stream: a forced symbol, or the segment of the codes."""
        position = len(generated)
        symbol = self.forced(position)
        if symbol is not None:
            return Forced(symbol)
        if self.coordinates(position) is None:
            return None
        return Allowed(range(self.offset, self.offset + self.codes))

    @property
    def spec(self) -> StreamSpec:
        """The stream of one picture."""
        slot = Slot(size=self.vocab_size or self.offset + self.codes)
        plain = self.length == self.height * self.width and self.codes == slot.size
        return StreamSpec(
            slots=(slot,),
            order="raster",
            fixed_length=self.length,
            grammar=None if plain else self.grammar,
            row_length=self.row_length,
            prompt_size=self.prompt_size,
        )

    def grid(self, tokens: Sequence[int], /, missing: int = 0) -> Int[Tensor, "H W"]:
        """The codes ``0 .. codes - 1`` of a picture; what is not there yet is ``missing``.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        ids = torch.tensor([*tokens][: self.length], dtype=torch.long)
        body = ids[len(self.header) : len(self.header) + self.height * self.row_length]
        full = torch.full((self.height * self.row_length,), missing + self.offset, dtype=torch.long)
        full[: len(body)] = body
        grid = rearrange(full, "(h w) -> h w", h=self.height)[:, : self.width] - self.offset
        wrong = (grid < 0) | (grid >= self.codes)
        if bool(wrong.any()):
            row, column = torch.nonzero(wrong)[0].tolist()
            raise UsageError(
                f"A picture's codes must lie in [{self.offset}, {self.offset + self.codes}): got "
                f"{int(grid[row, column]) + self.offset} at row {row}, column {column}. Is this the layout "
                "that the tokens were made with?"
            )
        return grid

    def tokens(self, grid: Int[Tensor, "H W"]) -> Int[Tensor, " S"]:
        """The whole stream of a grid of codes, forced symbols included; ``grid`` undoes it."""
        body = grid + self.offset
        if self.row_end is not None:
            body = torch.cat([body, torch.full((self.height, 1), self.row_end)], 1)
        flat = rearrange(body, "h w -> (h w)")
        return torch.cat(
            [torch.tensor(self.header, dtype=torch.long), flat, torch.tensor(self.tail, dtype=torch.long)]
        )

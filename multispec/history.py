"""What has been committed in one row: the ids, and counts that penalties need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor


class History:
    """The committed symbols of one row, prompt included; grows by what each round commits.

    ``first`` is where the symbols of the stream begin: 0, or behind a prompt in other symbols.

    ``ids`` is one growing list; ``generated`` are the ids after the prompt. ``padding`` is shown
    to foreign processors before them, and to nobody else.
    """

    def __init__(
        self, prompt: Sequence[int], padding: Sequence[int] = (), *, foreign_prompt: bool = False
    ) -> None:
        self.ids: list[int] = list(prompt)
        self.first = len(self.ids) if foreign_prompt else 0
        self.padding = tuple(padding)
        self.prompt_length = len(self.ids)
        self._seen: Tensor | None = None
        self._counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def generated(self) -> list[int]:
        """The ids after the prompt."""
        return self.ids[self.prompt_length :]

    @property
    def position(self) -> int:
        """The position of the next symbol, counted from the first generated one."""
        return len(self.ids) - self.prompt_length

    def extend(self, tokens: Sequence[int]) -> None:
        """Commit ``tokens``."""
        self.ids.extend(tokens)
        if self._seen is not None:
            self._seen[list(tokens)] = True
        if self._counts is not None:
            new = torch.tensor(tokens, dtype=torch.long, device=self._counts.device)
            self._counts.scatter_add_(0, new, torch.ones_like(new, dtype=self._counts.dtype))

    def seen(self, vocab_size: int, device: torch.device) -> Tensor:
        """Bool ``[V]``: which symbols occur in prompt or output. Kept up to date, not rebuilt."""
        if self._seen is None:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(self.ids[self.first :], dtype=torch.long, device=device)] = True
        return self._seen

    def counts(self, vocab_size: int, device: torch.device) -> Tensor:
        """Float ``[V]``: how often each symbol occurs in the output."""
        if self._counts is None:
            generated = torch.tensor(self.generated, dtype=torch.long, device=device)
            self._counts = torch.bincount(generated, minlength=vocab_size).to(torch.float32)
        return self._counts


class Prefix(Sequence[int]):
    """The symbols generated so far and those drafted behind them, without a copy.

    >>> history = History([7]); history.extend([1, 2]); list(Prefix(history, (3,)))
    [1, 2, 3]
    """

    def __init__(self, history: History, drafted: Sequence[int] = (), generated: int | None = None) -> None:
        self._ids, self._start, self._drafted = history.ids, history.prompt_length, drafted
        self._generated = history.position if generated is None else generated

    def __len__(self) -> int:
        return self._generated + len(self._drafted)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"symbol {index} of {len(self)}")
        if place < self._generated:
            return self._ids[self._start + place]
        return self._drafted[place - self._generated]

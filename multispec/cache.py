"""A preallocated key/value cache with rows of different length: write, commit, rewind, gather.

A row's committed symbols fill positions 0 .. length - 1. A round writes its nodes behind them; a
rollback only moves ``lengths``, and a tree path is gathered to be contiguous. Nothing grows while
generating, and a sliding window is a mask, so what a rollback needs is always there. The rows are the
first of the places that are allocated: where one leaves, the last one moves in, and a new one comes
behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from multispec.errors import OutOfMemoryError


def allocate(shape: Sequence[int], like: Tensor, what: str) -> Tensor:
    """Zeros of ``shape``; zeros, since a masked NaN would still poison an attention sum.

    Raises:
        OutOfMemoryError: names ``what`` and how much it needs.
    """
    try:
        return torch.zeros(*shape, dtype=like.dtype, device=like.device)
    except (RuntimeError, MemoryError) as error:
        size = like.element_size() * torch.Size(shape).numel() / 2**20
        raise OutOfMemoryError(
            f"No memory left for {what}: {size:,.0f} MiB of shape {tuple(shape)} on {like.device}. "
            "Lower max_new_tokens or the batch, or load the model in a smaller dtype."
        ) from error


class Ledger:
    """Where each row of the cache stands: committed lengths, and where the current round writes."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.lengths = [0] * rows
        self.capacity = capacity
        self.slots: Tensor | None = None
        self.end = 0

    def open(self, width: int, device: torch.device) -> None:
        """Let the next pass write ``width`` entries behind each row's committed ones."""
        self.end = max(self.lengths) + width
        if len(self.lengths) == 1:
            self.slots = None
            return
        starts = torch.tensor(self.lengths, device=device)
        self.slots = starts[:, None] + torch.arange(width, device=device)


class RaggedLayer(CacheLayerMixin):
    """Keys and values ``[B, heads, capacity, C]`` of one layer."""

    is_sliding = False
    is_croppable = True
    is_compileable = False
    keys: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    values: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, ledger: Ledger, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger
        self.index = index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the shapes that the model turns out to use."""
        room = (len(self.ledger.lengths), key_states.shape[1], self.ledger.capacity)
        name = f"the key/value cache of layer {self.index}"
        self.hold(
            allocate((*room, key_states.shape[-1]), key_states, name),
            allocate((*room, value_states.shape[-1]), value_states, name),
        )

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Keep entries in this memory from now on."""
        self.dtype, self.device = keys.dtype, keys.device
        self._places = (keys, values)
        self.keys, self.values = keys, values
        self.is_initialized = True

    @property
    def entry_bytes(self) -> int:
        """What one entry of one row takes; 0 before the first pass."""
        if not self.is_initialized:
            return 0
        return sum(x.element_size() * x.shape[1] * x.shape[-1] for x in self._places)

    @property
    def places(self) -> int:
        """Rows that there is memory for; 0 before the first pass."""
        return len(self._places[0]) if self.is_initialized else 0

    def show(self, rows: int) -> None:
        """Let the first so many places be the rows."""
        if self.is_initialized:
            keys, values = self._places
            self.keys = keys[:rows]  # pyright: ignore[reportIncompatibleVariableOverride]
            self.values = values[:rows]  # pyright: ignore[reportIncompatibleVariableOverride]

    def resize(self, rows: int, places: int, capacity: int) -> None:
        """So many places of this capacity, which hold what the first ``rows`` held."""
        if not self.is_initialized:
            return
        name = f"the key/value cache of layer {self.index}"
        grown: list[Tensor] = []
        for old in self._places:
            new = allocate((places, old.shape[1], capacity, old.shape[-1]), old, name)
            kept = min(capacity, old.shape[2])
            new[:rows, :, :kept] = old[:rows, :, :kept]
            grown.append(new)
        self.hold(grown[0], grown[1])

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first ``length`` entries of one place into another."""
        if self.is_initialized:
            for states in self._places:
                states[target, :, :length] = states[source, :, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write behind the committed entries and return all that any row may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        ledger, slots = self.ledger, self.ledger.slots
        if slots is None:
            start = ledger.lengths[0]
            self.keys[:, :, start : ledger.end] = key_states
            self.values[:, :, start : ledger.end] = value_states
        else:
            rows = torch.arange(len(slots), device=slots.device)[:, None]
            self.keys[rows, :, slots] = key_states.transpose(1, 2)
            self.values[rows, :, slots] = value_states.transpose(1, 2)
        return self.keys[:, :, : ledger.end], self.values[:, :, : ledger.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of what ``update`` will return."""
        return max(self.ledger.lengths) + query_length, 0

    def get_seq_length(self) -> int:
        """The longest committed row."""
        return max(self.ledger.lengths)

    def get_max_length(self) -> int:
        """The capacity."""
        return self.ledger.capacity

    def gather(self, row: int, start: int, nodes: Tensor) -> None:
        """Move the entries of the nodes on a path to be contiguous behind ``start``."""
        if self.is_initialized:
            for states in (self.keys, self.values):
                states[row, :, start : start + len(nodes)] = states[row, :, start + nodes]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        if self.is_initialized:
            self.hold(self.keys[rows], self.values[rows])


class RaggedCache(Cache):
    """One ``RaggedLayer`` per layer of a model, sharing one ``Ledger``."""

    def __init__(self, layers: int, rows: int, capacity: int) -> None:
        self.ledger = Ledger(rows, capacity)
        self.ragged = [RaggedLayer(self.ledger, index) for index in range(layers)]
        super().__init__(layers=list(self.ragged))

    def commit(self, row: int, path: Sequence[int]) -> None:
        """Keep the root and the nodes of ``path``, gathered where they do not follow each other."""
        start = self.ledger.lengths[row] + 1
        if list(path) != list(range(len(path))):
            nodes = torch.tensor(path)
            for layer in self.ragged:
                layer.gather(row, start, nodes)
        self.ledger.lengths[row] = start + len(path)

    def rewind(self, row: int, length: int) -> None:
        """Forget everything behind the first ``length`` entries of a row."""
        self.ledger.lengths[row] = min(length, self.ledger.lengths[row])

    def alone(self, row: int, count: int = 1) -> RaggedCache:
        """One row (or ``count`` neighbours) as a batch of its own, in the same memory."""
        twin = RaggedCache(len(self.ragged), count, self.ledger.capacity)
        twin.ledger.lengths = self.ledger.lengths[row : row + count]
        for mine, other in zip(self.ragged, twin.ragged, strict=True):
            if mine.is_initialized:
                other.hold(mine.keys[row : row + count], mine.values[row : row + count])
        return twin

    def add(self, rows: int, capacity: int) -> RaggedCache:
        """So many empty rows behind the others: they as a batch of their own, in the same memory.

        All rows together need no more than ``capacity`` entries each. Memory is allocated anew only where
        there are too few places, or too small ones; then it is as much as is needed now.
        """
        ledger, held = self.ledger, len(self.ledger.lengths)
        small = any(0 < layer.places < held + rows for layer in self.ragged)
        if small or capacity > ledger.capacity:
            ledger.capacity = capacity
            for layer in self.ragged:
                layer.resize(held, held + rows, capacity)
        ledger.lengths = [*ledger.lengths, *[0] * rows]
        for layer in self.ragged:
            layer.show(held + rows)
        return self.alone(held, rows)

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Take rows out, the last ones moving in where they were; the old rows in their new order."""
        ledger, order = self.ledger, list(range(len(self.ledger.lengths)))
        for row in sorted(rows, reverse=True):
            last = len(order) - 1
            if row < last:
                for layer in self.ragged:
                    layer.move(last, row, ledger.lengths[last])
                ledger.lengths[row], order[row] = ledger.lengths[last], order[last]
            order, ledger.lengths = order[:last], ledger.lengths[:last]
        for layer in self.ragged:
            layer.show(len(order))
        return order

    @property
    def entry_bytes(self) -> int:
        """What one entry of one row takes in all layers; 0 before the first pass."""
        return sum(layer.entry_bytes for layer in self.ragged)

    @property
    def allocated(self) -> int:
        """Bytes of all places, taken or free."""
        return sum(layer.entry_bytes * layer.places for layer in self.ragged) * self.ledger.capacity

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch, in this order."""
        index = torch.tensor(rows, dtype=torch.long)
        for layer in self.ragged:
            layer.keep(index)
        self.ledger.lengths = [self.ledger.lengths[row] for row in rows]
